"""Large tables in parts: the same files whoever writes them, in whatever order, killed or not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rdt.transformers import AnonymizedFaker
from sdv.cag import FixedCombinations, Inequality
from sdv.metadata import Metadata
from sdv.sampling import Condition, DataFrameCondition
from sdv.utils import load_synthesizer

from sdv_nvib import ConditionError, InvalidParameterError, NVIBSynthesizer, StorageError
from sdv_nvib.parts import PartFolder

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),
    pytest.mark.filterwarnings('ignore:Replacing the default transformer'),
    pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning'),
]
COLUMNS = {
    'key': {'sdtype': 'id', 'regex_format': r'K-\d{6}'},
    'low': {'sdtype': 'numerical'},
    'high': {'sdtype': 'numerical'},
    'city': {'sdtype': 'categorical'},
    'land': {'sdtype': 'categorical'},
    'name': {'sdtype': 'first_name', 'pii': True},
    'mail': {'sdtype': 'email', 'pii': True},
}
CONSTRAINTS = [Inequality('low', 'high'), FixedCombinations(['city', 'land'])]
TINY = {
    'epochs': 1,
    'd_model': 8,
    'nhead': 2,
    'num_decoder_layers': 1,
    'dim_feedforward': 8,
    'enable_gpu': False,
}


def make_table(rows=120):
    rng = np.random.default_rng(0)
    low, city = rng.integers(0, 50, rows), rng.integers(0, 4, rows)
    return pd.DataFrame(
        {
            'key': [f'K-{n:06d}' for n in range(rows)],
            'low': low,
            'high': low + rng.integers(1, 9, rows),
            'city': np.array(['Bern', 'Genf', 'Rom', 'Pisa'])[city],
            'land': np.array(['CH', 'CH', 'IT', 'IT'])[city],
            'name': ['Ann', None] * (rows // 2),
            'mail': [f'{n}@example.org' for n in range(rows)],
        }
    )


def fit(table, columns, constraints=(), keys=(), transformers=None, **changes):
    described = {'columns': columns}
    if keys:
        described |= {'primary_key': keys[0], 'alternate_keys': list(keys[1:])}
    metadata = Metadata.load_from_dict({'tables': {'t': described}})
    synthesizer = NVIBSynthesizer(metadata, **{**TINY, **changes})
    synthesizer.add_constraints(list(constraints))
    if transformers:
        synthesizer.auto_assign_transformers({'t': table})
        synthesizer.update_transformers(transformers)
    synthesizer.fit({'t': table})
    return synthesizer


def make():
    return fit(make_table(), COLUMNS, CONSTRAINTS, ['key', 'mail'])


def fit_keys(values, column, **others):
    """A synthesizer of one key and one value."""
    table = pd.DataFrame({'key': values, 'v': np.arange(len(values)) % 7})
    return fit(table, {'key': column, 'v': {'sdtype': 'numerical'}}, keys=['key'], **others)


@pytest.fixture(scope='module')
def synthesizer():
    return make()


@pytest.fixture(scope='module')
def whole(synthesizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp('parts') / 'whole'
    synthesizer.sample_to_parquet(folder, 1_000, 150)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def draw(synthesizer, part, *args, **kwargs):
    return pd.concat(synthesizer.sample_part(part, *args, **kwargs), ignore_index=True)


def test_a_folder_holds_the_rows_asked_for_and_a_manifest_of_them(synthesizer, whole):
    manifest = json.loads((whole / '_manifest.json').read_text())
    assert [one['rows'] for one in manifest['parts']] == [150] * 6 + [100]
    assert sorted(contents(whole)) == [
        '_manifest.json',
        *(f'part-{part:06d}.parquet' for part in range(7)),
    ]
    for one in manifest['parts']:
        part = whole / f'part-{one["part"]:06d}.parquet'
        assert pq.read_metadata(part).num_rows == one['rows']
        printed = subprocess.run(['sha256sum', part], capture_output=True, text=True, check=True)
        assert printed.stdout.split()[0] == one['sha256']
    table = pd.read_parquet(whole)
    assert list(table) == list(COLUMNS)
    assert len(table) == 1_000


def test_keys_are_distinct_in_all_parts_and_constraints_hold(whole):
    table = pd.read_parquet(whole)
    assert table['key'].tolist() == [f'K-{n:06d}' for n in range(1_000)]
    assert table['mail'].is_unique
    assert table['mail'].str.fullmatch(r'\d-[^@\s]+@[^@\s]+').all()
    assert (table['high'] >= table['low']).all()
    pairs = set(zip(table['city'], table['land'], strict=True))
    assert pairs <= {('Bern', 'CH'), ('Genf', 'CH'), ('Rom', 'IT'), ('Pisa', 'IT')}
    assert table['name'].isna().mean() == pytest.approx(0.5, abs=0.01)
    assert table['name'].nunique() > 50


def test_parts_are_unlike_each_other_and_follow_the_seed(synthesizer):
    parts = [draw(synthesizer, part, 450, 150) for part in range(3)]
    others = [draw(synthesizer, part, 450, 150, seed=1) for part in range(3)]
    modelled = ['low', 'high', 'city', 'name']
    tables = [table[modelled].to_csv() for table in parts + others]
    assert len(set(tables)) == 6


def test_a_part_does_not_depend_on_what_was_sampled_before(synthesizer, whole):
    expected = pd.read_parquet(whole / 'part-000002.parquet')
    synthesizer.reset_sampling()
    first = synthesizer.sample(10)['t']
    for num_rows in (1_000, 2_000):  # nor on how many parts there are
        part = draw(synthesizer, 2, num_rows, 150)
        assert part.to_csv() == expected.to_csv()
    rest = synthesizer.sample(20)['t']
    synthesizer.reset_sampling()  # nor the other way round
    for table in first, rest:
        pd.testing.assert_frame_equal(synthesizer.sample(len(table))['t'], table)
    synthesizer.reset_sampling()


def test_batches_of_a_part_go_on_counting(synthesizer, monkeypatch):
    monkeypatch.setattr('sdv_nvib.synthesizer.PART_BATCH_ROWS', 40)
    tables = list(synthesizer.sample_part(1, 400, 100))
    assert [len(table) for table in tables] == [40, 40, 20]
    table = pd.concat(tables)
    assert table['key'].tolist() == [f'K-{n:06d}' for n in range(100, 200)]
    assert table['mail'].is_unique


def test_conditions_are_met_by_as_many_rows_as_asked_for(synthesizer, tmp_path):
    conditions = [
        Condition({'city': 'Rom', 'land': 'IT'}, num_rows=145),
        Condition({'low': 7}, num_rows=5),
        Condition({'city': 'Bern', 'land': 'CH'}, num_rows=150),
    ]
    synthesizer.sample_to_parquet(tmp_path / 'p', 300, 70, conditions=conditions)
    table = pd.read_parquet(tmp_path / 'p')
    assert (table['city'][:145] == 'Rom').all()
    assert (table['low'][145:150] == 7).all()
    assert (table['city'][150:] == 'Bern').all()
    assert table['key'].is_unique
    assert table['mail'].is_unique
    assert (table['high'] >= table['low']).all()


def test_conditions_that_nothing_meets_are_refused_before_any_part(synthesizer, tmp_path):
    conditions = [Condition({'city': 'Rom', 'land': 'CH'}, num_rows=10)]
    with pytest.raises(ConditionError, match='FixedCombinations'):
        synthesizer.sample_to_parquet(tmp_path / 'p', 10, conditions=conditions)
    assert not (tmp_path / 'p').exists()


def test_conditions_that_too_few_rows_meet_are_an_error_and_leave_no_part(synthesizer, tmp_path):
    conditions = [Condition({'high': 27}, num_rows=100)]
    with pytest.raises(ConditionError, match=r'of 100 rows through in 1 tries\. Raise max_tries'):
        synthesizer.sample_to_parquet(
            tmp_path / 'p', 100, conditions=conditions, max_tries_per_batch=1
        )
    assert [path.name for path in (tmp_path / 'p').iterdir()] == ['_manifest.json']


def test_a_part_that_is_missing_or_cut_is_written_again(synthesizer, whole, tmp_path):
    folder = tmp_path / 'p'
    folder.mkdir()
    for name, content in contents(whole).items():
        (folder / name).write_bytes(content)
    (folder / 'part-000001.parquet').unlink()
    (folder / 'part-000004.parquet').write_bytes(b'PAR1')
    (folder / '.writing.abc.part-000003.parquet').write_bytes(b'left by a killed worker')
    kept = folder / 'part-000000.parquet'
    before = kept.stat().st_mtime_ns
    synthesizer.sample_to_parquet(folder, 1_000, 150)
    assert contents(folder) == contents(whole)
    assert kept.stat().st_mtime_ns == before


def test_a_saved_model_goes_on_where_another_process_began(whole, synthesizer, tmp_path):
    synthesizer.save(tmp_path / 'model.pkl')
    loaded = load_synthesizer(tmp_path / 'model.pkl')
    (whole / 'part-000005.parquet').rename(tmp_path / 'kept')
    loaded.sample_to_parquet(whole, 1_000, 150)
    assert (whole / 'part-000005.parquet').read_bytes() == (tmp_path / 'kept').read_bytes()


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'seed': 1}, 'seed 0, received 1'),
        ({'num_rows': 999}, 'num_rows 1000, received 999'),
        ({'rows_per_part': 151}, 'rows_per_part 150, received 151'),
        ({'conditions': [Condition({'low': 7}, num_rows=1_000)]}, 'conditions'),
    ],
)
def test_a_folder_of_other_arguments_is_refused(change, named, synthesizer, whole):
    before = contents(whole)
    with pytest.raises(StorageError, match=rf'begun with {named}.*another folder'):
        synthesizer.sample_to_parquet(whole, **{'num_rows': 1_000, 'rows_per_part': 150, **change})
    assert contents(whole) == before


def test_a_folder_of_another_model_is_refused(whole):
    other = fit(make_table(), COLUMNS, CONSTRAINTS, ['key', 'mail'], seed=1)
    with pytest.raises(StorageError, match='begun with model'):
        other.sample_to_parquet(whole, 1_000, 150)
    same_weights = fit(make_table(), COLUMNS, CONSTRAINTS[:1], ['key', 'mail'])
    with pytest.raises(StorageError, match='begun with model'):
        same_weights.sample_to_parquet(whole, 1_000, 150)


def test_a_folder_with_other_files_is_refused(synthesizer, tmp_path):
    (tmp_path / 'mine.txt').write_text('')
    with pytest.raises(StorageError, match=r'has other files\. Choose another'):
        synthesizer.sample_to_parquet(tmp_path, 10)


@pytest.mark.parametrize('content', ['', '{}', '[1]', '{"format": "x", "format_version": 1}'])
def test_a_damaged_manifest_is_refused(content, synthesizer, tmp_path):
    (tmp_path / '_manifest.json').write_text(content)
    with pytest.raises(StorageError, match='it is damaged'):
        synthesizer.sample_to_parquet(tmp_path, 10)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_rows': 0}, 'num_rows must be a whole number of at least 1, received 0'),
        ({'rows_per_part': 1.5}, 'rows_per_part must be a whole number'),
        ({'workers': 0}, 'workers must be'),
        ({'engine': 'dask'}, r"engine must be one of .*received 'dask'"),
        ({'seed': -1}, 'seed must be'),
        ({'num_rows': 2_000_000}, "column 'key': its format makes 1000000 different values"),
        ({'conditions': [Condition({'low': 7}, num_rows=9)]}, 'sum of the rows .*, 9, received 10'),
        ({'conditions': [Condition({'mail': 'a@b.c'}, num_rows=10)]}, "'mail'.*may not repeat"),
        ({'conditions': [DataFrameCondition(pd.DataFrame({'low': [7]}))]}, 'must be of the class'),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message, synthesizer, tmp_path):
    with pytest.raises(InvalidParameterError, match=message):
        synthesizer.sample_to_parquet(tmp_path / 'p', **{'num_rows': 10, **arguments})
    assert not (tmp_path / 'p').exists()


@pytest.mark.parametrize(
    ('values', 'column', 'pattern'),
    [
        (list(range(60)), {'sdtype': 'id'}, r'\d+'),
        ([f'u{n}' for n in range(60)], {'sdtype': 'id'}, r'sdv-id-[A-Za-z]{6}'),
        (list(range(100, 160)), {'sdtype': 'id', 'regex_format': '[1-9][0-9]{2}'}, r'[1-9]\d\d'),
        ([f'{n}' for n in range(60)], {'sdtype': 'ssn', 'pii': True}, r'\d-\d{3}-\d\d-\d{4}'),
    ],
    ids=['number', 'text', 'pattern of numbers', 'personal'],
)
def test_every_kind_of_key_is_distinct_in_all_parts(values, column, pattern):
    synthesizer = fit_keys(values, column)
    keys = pd.concat(draw(synthesizer, part, 190, 50)['key'] for part in range(4))
    assert len(keys) == keys.nunique() == 190
    assert keys.dtype == pd.Series(values).dtype
    assert all(re.fullmatch(pattern, str(key)) for key in keys)


def test_a_model_that_save_model_kept_draws_the_same_parts(tmp_path):
    synthesizer = fit_keys([f'u{n}' for n in range(60)], {'sdtype': 'id'})
    synthesizer.save_model(tmp_path / 'model')
    synthesizer.sample_to_parquet(tmp_path / 'p', 60, 20)
    (tmp_path / 'p' / 'part-000001.parquet').rename(tmp_path / 'kept')
    NVIBSynthesizer.load_model(tmp_path / 'model').sample_to_parquet(tmp_path / 'p', 60, 20)
    again = tmp_path / 'p' / 'part-000001.parquet'
    assert again.read_bytes() == (tmp_path / 'kept').read_bytes()


def test_keys_that_parts_cannot_tell_apart_are_refused():
    phones = fit_keys(list(range(60)), {'sdtype': 'phone_number', 'pii': True})
    with pytest.raises(InvalidParameterError, match=r"Table 't', column 'key'.*must be text"):
        phones.sample_part(0, 10)
    table = pd.DataFrame({'n': list('abc') * 20, 'v': range(60)})
    columns = {'n': {'sdtype': 'first_name', 'pii': True}, 'v': {'sdtype': 'numerical'}}
    rule = AnonymizedFaker('person', 'first_name', cardinality_rule='match')
    with pytest.raises(InvalidParameterError, match=r"column 'n'.*received 'match'"):
        fit(table, columns, transformers={'n': rule}).sample_part(0, 10)


def test_all_parts_have_the_same_types(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            'rare': np.where(rng.random(300) < 0.03, 'x', None),
            'whole': pd.array(np.where(rng.random(300) < 0.03, 5, None), dtype='Int64'),
            'day': pd.to_datetime('2024-01-01') + pd.to_timedelta(rng.integers(0, 99, 300), 'D'),
            'kind': pd.Categorical(rng.choice(list('ab'), 300)),
        }
    )
    columns = {
        'rare': {'sdtype': 'categorical'},
        'whole': {'sdtype': 'numerical'},
        'day': {'sdtype': 'datetime'},
        'kind': {'sdtype': 'categorical'},
    }
    paths = fit(table, columns).sample_to_parquet(tmp_path / 'p', 60, 6)
    schemas = {str(pq.read_schema(path).remove_metadata()) for path in paths}
    assert len(schemas) == 1
    whole = pd.read_parquet(tmp_path / 'p')
    assert any(pd.read_parquet(path)['rare'].isna().all() for path in paths)
    assert set(whole['rare'].dropna()) <= {'x'}


def test_values_of_several_types_are_refused_before_any_part(tmp_path):
    table = pd.DataFrame({'m': ['a', 1] * 30, 'v': range(60)})
    columns = {'m': {'sdtype': 'categorical'}, 'v': {'sdtype': 'numerical'}}
    mixed = fit(table, columns)
    with pytest.raises(ValueError, match="column 'm': the values of a column of a Parquet file"):
        mixed.sample_to_parquet(tmp_path / 'p', 60)


def test_a_disk_that_fills_up_keeps_what_is_whole(synthesizer, whole, tmp_path, monkeypatch):
    add, added = PartFolder.add, []

    def full(self, record):
        added.append(record)
        if len(added) == 4:
            raise StorageError(28, 'No space left on device')
        add(self, record)

    monkeypatch.setattr(PartFolder, 'add', full)
    with pytest.raises(StorageError, match='No space left'):
        synthesizer.sample_to_parquet(tmp_path / 'p', 1_000, 150)
    monkeypatch.undo()
    synthesizer.sample_to_parquet(tmp_path / 'p', 1_000, 150)
    assert contents(tmp_path / 'p') == contents(whole)


DRIVERS = """
import os, random, signal, sys, time, warnings
warnings.simplefilter('ignore')
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_parts import contents, make

folder, kills = sys.argv[2], int(sys.argv[3])
synthesizer = make()
for name in 'warm', 'whole':
    started = time.monotonic()
    synthesizer.sample_to_parquet(f'{folder}/{name}', 1_000, 100)
longest = time.monotonic() - started
moments, killed, calls = random.Random(0), 0, 0
while killed < kills:
    child = os.fork()
    if not child:
        synthesizer.sample_to_parquet(f'{folder}/{calls}', 1_000, 100)
        os._exit(0)
    time.sleep(moments.uniform(0, 0.6 * longest))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):  # this call came to its end: the next moments need another
        assert status == 0
        calls += 1
for name in range(calls + 1):
    synthesizer.sample_to_parquet(f'{folder}/{name}', 1_000, 100)
    assert contents(f'{folder}/{name}') == contents(f'{folder}/whole'), name
"""


def run_script(script, *arguments):
    command = [sys.executable, '-c', script, os.path.dirname(__file__), *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def test_a_call_killed_at_random_moments_ends_with_the_same_files(tmp_path):
    run_script(DRIVERS, tmp_path, 4)


WORKERS = """
import multiprocessing, os, signal, sys, threading, time, warnings
warnings.simplefilter('ignore')
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_parts import contents, make

folder = Path(sys.argv[2])


def wait_for(is_true):
    deadline = time.monotonic() + 900
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parts(name):
    return len(list((folder / name).glob('part-*')))


def session_of(process):
    try:
        return int(process.joinpath('stat').read_text().rsplit(')')[-1].split()[3])
    except OSError:  # it has just ended
        return -1


def members(session):
    return [p for p in Path('/proc').glob('[0-9]*') if session_of(p) == session]


if __name__ == '__main__':
    synthesizer = make()
    synthesizer.sample_to_parquet(folder / 'one', 6_000, 300)

    # The driver is killed, its workers end of themselves.
    driver = os.fork()
    if not driver:
        os.setsid()
        synthesizer.sample_to_parquet(folder / 'two', 6_000, 300, workers=2)
        os._exit(0)
    wait_for(lambda: parts('two') > 1)
    assert len(members(driver)) > 2
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    wait_for(lambda: not members(driver))
    assert parts('two') < 20

    # A worker is killed, the call goes on to its end.
    def kill():
        wait_for(lambda: parts('two') > so_far)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        killed.append(parts('two'))

    so_far, killed = parts('two'), []
    thread = threading.Thread(target=kill)
    thread.start()
    synthesizer.sample_to_parquet(folder / 'two', 6_000, 300, workers=2)
    thread.join()
    assert killed and killed[0] < 20, killed
    assert contents(folder / 'two') == contents(folder / 'one')
"""


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')
@pytest.mark.skipif(os.environ.get('HYPOTHESIS_PROFILE') != 'nightly', reason='takes minutes')
def test_killed_drivers_and_workers_lose_nothing_and_two_workers_write_what_one_does(tmp_path):
    run_script(WORKERS, tmp_path)
