"""The command line: every command on a small table, its files, its errors and exit codes."""

import io
import json

import pandas as pd
import pytest
from click.testing import CliRunner
from sdv.cag import FixedCombinations
from sdv.metadata import Metadata

from sdv_nvib import NVIBSynthesizer
from sdv_nvib.cli import main
from sdv_nvib.demo import load_demo

COLUMNS = ['gender', 'high_perc', 'work_experience', 'degree_type', 'salary']
SMALL = ['--epochs', '2', '--set', 'd_model=16', '--set', 'dim_feedforward=32', '--quiet']


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a table, its metadata and a fitted model; tests add files of other names."""
    folder = tmp_path_factory.mktemp('cli')
    table = load_demo()[0][COLUMNS]
    table.head(120).to_csv(folder / 'real.csv', index=False)
    table.tail(60).to_parquet(folder / 'test.parquet')
    run('detect', folder / 'real.csv', '-o', folder / 'metadata.json')
    run('fit', folder / 'real.csv', folder / 'metadata.json', '-o', folder / 'model.pkl', *SMALL)
    return folder


def test_detect_writes_metadata_to_stdout_and_names_the_table(folder):
    result = run('detect', folder / 'test.parquet', '--table-name', 'students')
    columns = json.loads(result.stdout)['tables']['students']['columns']
    assert list(columns) == COLUMNS
    assert columns['gender']['sdtype'] == 'categorical'


def test_sample_writes_csv_to_stdout_and_the_same_rows_again(folder):
    first = run('sample', folder / 'model.pkl', '--rows', 7)
    table = pd.read_csv(io.StringIO(first.stdout))
    assert table.shape == (7, 5)
    assert list(table) == COLUMNS
    assert run('sample', folder / 'model.pkl', '--rows', 7).stdout == first.stdout


def test_sample_meets_conditions_of_every_type(folder):
    out = folder / 'conditioned.parquet'
    conditions = ['gender=F', 'work_experience=true', 'high_perc=70.0', 'salary=']
    options = [word for condition in conditions for word in ('--condition', condition)]
    run('sample', folder / 'model.pkl', '--rows', 5, '-o', out, *options)
    table = pd.read_parquet(out)
    assert len(table) == 5
    assert (table['gender'] == 'F').all()
    assert table['work_experience'].all()
    assert (table['high_perc'] == 70).all()
    assert table['salary'].isna().all()


def test_sample_completes_known_rows(folder):
    known = pd.DataFrame({'gender': ['F', 'M', 'F'], 'degree_type': ['Others'] * 3})
    known.to_csv(folder / 'known.csv', index=False)
    result = run('sample', folder / 'model.pkl', '--like', folder / 'known.csv')
    table = pd.read_csv(io.StringIO(result.stdout))
    pd.testing.assert_frame_equal(table[list(known)], known)


def test_sample_writes_parts_and_goes_on(folder):
    words = ['sample', folder / 'model.pkl', '--rows', 30, '--to-parquet', folder / 'parts']
    run(*words, '--condition', 'gender=F', '--quiet')
    part = folder / 'parts' / 'part-000000.parquet'
    written = part.read_bytes()
    assert (pd.read_parquet(folder / 'parts')['gender'] == 'F').all()
    part.unlink()
    run(*words, '--condition', 'gender=F', '--quiet')
    assert part.read_bytes() == written
    assert 'begun with conditions' in run(*words, code=1).stderr


def test_evaluate_and_report(folder):
    scored = [folder / 'model.pkl', folder / 'real.csv', '--test', folder / 'test.parquet']
    attacked = ['--sensitive', 'degree_type', '--known', 'gender']
    result = run('evaluate', *scored, '--target', 'work_experience', '--rows', 50, *attacked)
    summary = pd.read_csv(io.StringIO(result.stdout))  # progress went to stderr
    values = summary.set_index('measure')['value']
    measured = {'SDMetrics quality', 'utility', 'DCR share', 'disclosure protection of degree_type'}
    assert measured <= set(values.dropna().index)
    page = folder / 'page.html'
    result = run('report', *scored, '-o', page, '--rows', 50)
    assert 'Scoring' in result.stderr
    assert '<td>16</td>' in page.read_text(encoding='utf-8')  # d_model, among the parameters
    assert str(page) == result.stdout.strip()
    assert not list(folder.glob('.*'))  # nothing half-written is left


@pytest.mark.parametrize(
    'words',
    [
        ['sample', '--rows', '20'],
        ['sample', '--condition', 'gender=F', '--rows', '20'],
        ['sample', '--like', 'LIKE'],
        ['evaluate', 'REAL', '--rows', '20'],
    ],
    ids=lambda words: ' '.join(words[:2]),
)
def test_quiet_is_silent(folder, words):
    table = pd.DataFrame({'gender': ['F', 'M']})
    table.to_csv(folder / 'few.csv', index=False)
    files = {'LIKE': folder / 'few.csv', 'REAL': folder / 'real.csv'}
    command, *options = (files.get(word, word) for word in words)
    assert run(command, folder / 'model.pkl', *options, '--quiet').stderr == ''


def test_progress_goes_to_stderr_unless_it_is_quiet(folder):
    result = run('sample', folder / 'model.pkl', '--condition', 'gender=F', '--rows', 5)
    assert 'Sampling conditions' in result.stderr
    assert len(pd.read_csv(io.StringIO(result.stdout))) == 5


@pytest.mark.parametrize('name', ['full.csv', 'full.csv.gz', 'full.parquet'])
def test_a_full_disk_leaves_no_half_written_file(folder, name, full_disk):
    before = sorted(folder.iterdir())
    with full_disk(4000):
        command = ['sample', folder / 'model.pkl', '--rows', 2000, '-o', folder / name, '--quiet']
        result = run(*command, code=1)
    assert result.stderr.startswith('Error: ')
    assert len(result.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_demo_leaves_every_file(tmp_path):
    result = run('demo', tmp_path / 'trial', '--epochs', 1, '--quiet')
    names = [
        'real.csv', 'test.csv', 'metadata.json', 'model.pkl', 'synthetic.csv', 'report.html'
    ]  # fmt: skip
    assert [line.rsplit('/', 1)[1] for line in result.stdout.split()] == names
    assert all((tmp_path / 'trial' / name).stat().st_size for name in names)
    page = (tmp_path / 'trial' / 'report.html').read_text(encoding='utf-8')
    assert '<span class="status">Not measured' not in page  # all three lines are judged


def test_text_labels_of_a_csv_file_stay_text(tmp_path):
    pd.DataFrame({'code': ['007', '010'] * 30, 'n': range(60)}).to_csv(
        tmp_path / 't.csv', index=False
    )
    columns = {'code': {'sdtype': 'categorical'}, 'n': {'sdtype': 'numerical'}}
    metadata = {'tables': {'t': {'columns': columns}}, 'METADATA_SPEC_VERSION': 'V2'}
    (tmp_path / 'm.json').write_text(json.dumps(metadata))
    run('fit', tmp_path / 't.csv', tmp_path / 'm.json', '-o', tmp_path / 'model', *SMALL)
    result = run('sample', tmp_path / 'model', '--rows', 3, '--condition', 'code=007')
    assert [line.split(',')[0] for line in result.stdout.split()[1:]] == ['007'] * 3


def test_labels_that_look_missing_or_are_no_text(tmp_path):
    table = pd.DataFrame({'land': ['NA', 'DE', 'FR', None] * 20, 'paid': [True, None] * 40})
    table.to_csv(tmp_path / 't.csv', index=False)
    columns = {
        'land': {'sdtype': 'categorical', 'range_values': ['NA', 'DE', 'FR']},
        'paid': {'sdtype': 'boolean'},
    }
    metadata = {'tables': {'t': {'columns': columns}}, 'METADATA_SPEC_VERSION': 'V2'}
    (tmp_path / 'm.json').write_text(json.dumps(metadata))
    run('fit', tmp_path / 't.csv', tmp_path / 'm.json', '-o', tmp_path / 'model', *SMALL)
    conditions = ['--condition', 'land=NA', '--condition', 'paid=True']
    out = tmp_path / 'out.parquet'
    run('sample', tmp_path / 'model', '--rows', 3, '-o', out, *conditions)
    drawn = pd.read_parquet(out)
    assert drawn['land'].tolist() == ['NA'] * 3
    assert drawn['paid'].tolist() == [True] * 3
    run('sample', tmp_path / 'model', '--rows', 2, '-o', out, '--force', '--condition', 'land=')
    assert pd.read_parquet(out)['land'].isna().all()


@pytest.mark.parametrize('condition', ['code=2', 'code=2.0', 'code=2e0', 'paid=true', 'paid=True'])
def test_conditions_on_labels_that_are_numbers_or_truth_values(tmp_path, condition):
    table = pd.DataFrame({'code': [1.0, 2.0, None, 3.0] * 20, 'paid': [True, None] * 40})
    table.to_parquet(tmp_path / 't.parquet')
    columns = {name: {'sdtype': 'categorical'} for name in table}
    metadata = {'tables': {'t': {'columns': columns}}, 'METADATA_SPEC_VERSION': 'V2'}
    (tmp_path / 'm.json').write_text(json.dumps(metadata))
    run('fit', tmp_path / 't.parquet', tmp_path / 'm.json', '-o', tmp_path / 'model', *SMALL)
    out = tmp_path / 'out.parquet'
    run('sample', tmp_path / 'model', '--rows', 3, '-o', out, '--condition', condition)
    name = condition.split('=')[0]
    assert pd.read_parquet(out)[name].tolist() == [{'code': 2.0, 'paid': True}[name]] * 3


def test_text_labels_of_a_csv_file_stay_text_under_constraints(tmp_path):
    table = pd.DataFrame({'code': ['007', '010'] * 30, 'land': ['A', 'B'] * 30})
    table.to_csv(tmp_path / 't.csv', index=False)
    columns = {name: {'sdtype': 'categorical'} for name in table}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    synthesizer = NVIBSynthesizer(metadata, epochs=1, d_model=16)
    synthesizer.add_constraints([FixedCombinations(['code', 'land'])])
    synthesizer.fit({'t': table})
    synthesizer.save(str(tmp_path / 'model'))
    table.head(3).to_csv(tmp_path / 'known.csv', index=False)
    result = run('sample', tmp_path / 'model', '--like', tmp_path / 'known.csv')
    assert [line.split(',')[0] for line in result.stdout.split()[1:]] == ['007', '010', '007']


def test_nothing_is_overwritten_without_force(folder):
    out = folder / 'kept.csv'
    out.write_text('mine')
    result = run('sample', folder / 'model.pkl', '-o', out, code=1)
    assert '--force' in result.stderr
    assert out.read_text() == 'mine'
    run('sample', folder / 'model.pkl', '-o', out, '--force', '--rows', 3)
    assert len(pd.read_csv(out)) == 3


@pytest.mark.parametrize(
    ('words', 'code', 'says'),
    [
        (['sample', 'MODEL', '-o', 'FOLDER/x.xlsx'], 1, 'ends in one of'),
        (['sample', 'MODEL', '--condition', 'age=3'], 1, "no column 'age'"),
        (['sample', 'MODEL', '--condition', 'gender=robot'], 1, 'robot'),
        (['sample', 'MODEL', '--condition', 'gender'], 2, 'name=value'),
        (['sample', 'MODEL', '--like', 'FOLDER/real.csv', '--rows', '3'], 2, 'leave out --rows'),
        (['sample', 'MODEL', '--to-parquet', 'FOLDER/p', '-o', 'FOLDER/x.csv'], 2, 'place of -o'),
        (['sample', 'MODEL', '--workers', '2'], 2, 'goes with --to-parquet'),
        (['sample', 'FOLDER/nowhere.pkl'], 2, 'does not exist'),
        (['sample', 'FOLDER/real.csv'], 1, 'is no model'),
        (['sample', 'MODEL', '-o', 'FOLDER/none/x.csv'], 1, 'Make it first'),
        (['sample', 'MODEL', '--condition', 'high_perc=much'], 1, "'high_perc' holds numbers"),
        (['sample', 'MODEL', '--condition', 'salary=27000.5'], 1, 'Give 27000 or 27001, or fit'),
        (['detect', 'FOLDER/metadata.json'], 1, 'ends in one of'),
        (['fit', 'FOLDER/real.csv', 'FOLDER/real.csv', '-o', 'FOLDER/m'], 1, 'metadata'),
        (['fit', 'FOLDER/real.csv', 'FOLDER/metadata.json', '-o', 'FOLDER/m', '--set', 'depth=3'],
         1, 'd_model'),
        (['fit', 'FOLDER/real.csv', 'FOLDER/metadata.json', '-o', 'FOLDER/m', '--set',
          'metadata=3'],
         1, 'd_model'),
        (['evaluate', 'MODEL', 'FOLDER/real.csv', '--target', 'nothing'], 1, 'Possible targets'),
        (['evaluate', 'MODEL', 'FOLDER/real.csv', '-o', 'FOLDER/x.txt'], 1, 'ends in one of'),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_the_remedy(folder, words, code, says):
    words = [w.replace('MODEL', str(folder / 'model.pkl')) for w in words]
    result = run(*(w.replace('FOLDER', str(folder)) for w in words), code=code)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith('Error: ')
    assert says in line
    assert 'Traceback' not in result.stderr
    assert result.stdout == ''
    assert not (folder / 'm').exists()


@pytest.mark.parametrize(
    ('name', 'content', 'says'),
    [
        ('latin.csv', b'name,x\nM\xfcller,1\n', 'UTF-8'),
        ('ragged.csv', b'a,b\n1,2\n3,4,5\n', 'line 3'),
        ('nothing.csv', b'', 'No columns'),
        ('no.csv.gz', b'a,b\n1,2\n', 'gzip'),
        ('no.parquet', b'a,b\n1,2\n', 'as Parquet'),
        ('names.csv', b'a,b\n', 'must hold rows'),
    ],
    ids=lambda case: case if isinstance(case, str) and '.' in case else '',
)
def test_files_that_hold_no_table_are_refused_by_name(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    line = run('detect', tmp_path / name, code=1).stderr
    assert line.startswith(f"Error: '{tmp_path / name}' must hold ")
    assert says in line
    assert len(line.splitlines()) == 1


def test_debug_shows_the_error_itself(folder):
    words = ['--debug', 'sample', str(folder / 'model.pkl'), '--condition', 'age=3']
    result = CliRunner().invoke(main, words)
    assert type(result.exception).__name__ == 'InvalidParameterError'


@pytest.mark.parametrize('command', sorted(main.commands))
def test_help_has_an_example(command):
    assert f'sdv-nvib {command} ' in run(command, '--help').stdout.split('Example')[1]
