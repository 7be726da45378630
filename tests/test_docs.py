"""The documentation: every Python block and every example runs, and the pages build."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from matplotlib.image import imread
from sdv.metadata import Metadata
from sdv.multi_table import HMASynthesizer
from sdv.utils import load_synthesizer

from sdv_nvib.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / 'docs' / 'pages').glob('*.md'))
# They take arguments; most take data, and minutes to hours.
LONG = (
    'ablations',
    'benchmark',
    'beyond_memory',
    'bottleneck_by_rows',
    'growth',
    'large_scale',
    'on_demand',
    'privacy_cost',
    'quickstart',
    'small_datasets',
)
EXAMPLES = [path for path in sorted((ROOT / 'examples').glob('*.py')) if path.stem not in LONG]

SMALL = 'epochs=1, d_model=16'
WITH_FEW_STEPS = ('NVIBSynthesizer(metadata)', f'NVIBSynthesizer(metadata, {SMALL})')

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:No .datetime_format. is present'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),  # a few epochs teach little
]


LARGE_SCALE = ROOT / 'docs/pages/large_scale.md'
# Of every block that is not `python`, by the tests here, of the command line, of Ray and of Spark.
RUN = (
    'examples/quickstart.py',
    'sdv-nvib demo trial\n',
    'sdv-nvib detect people.csv ',
    'examples/beyond_memory.py',
    'examples/privacy_cost.py',
    'init_process_group',
    'torchrun ',
    'TorchTrainer(',
    "engine='ray'",
    'kind: RayJob',
    'def draw_parts(',
    # The command that `.ci/run` takes from the README; it installs the package, too.
    '-m pytest',
    'pip install .\n',
)


def blocks(path, language):
    found = re.findall(rf'```{language}\n(.*?)```', path.read_text(encoding='utf-8'), re.DOTALL)
    return [block for block in found if not block.startswith('--8<--')]


def block_with(text, language, path=LARGE_SCALE):
    (block,) = (block for block in blocks(path, language) if text in block)
    return block


def replaced(code, *pairs):
    for whole, small in pairs:
        assert whole in code
        code = code.replace(whole, small)
    return code


def test_every_block_is_one_that_runs():
    for path in (ROOT / 'README.md', *PAGES):
        fences = re.findall(r'^```.*$', path.read_text(encoding='utf-8'), re.MULTILINE)
        assert set(fences[1::2]) <= {'```'}
        assert set(fences[::2]) <= {'```python', '```py', '```bash', '```yaml'}
        others = [block for language in ('py', 'bash', 'yaml') for block in blocks(path, language)]
        assert [block for block in others if not any(text in block for text in RUN)] == []


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name='__main__')
    assert capsys.readouterr().out


def test_the_small_tables_are_datasets_of_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['small_datasets.py', '--output', str(tmp_path)])
    runpy.run_path(str(ROOT / 'examples/small_datasets.py'), run_name='__main__')
    for folder in tmp_path.iterdir():
        metadata = Metadata.load_from_json(folder / 'metadata.json')
        train, test = (pd.read_csv(folder / f'{split}.csv') for split in ('train', 'test'))
        metadata.validate_data({folder.name: train})
        assert json.loads((folder / 'info.json').read_text())['target'] in test
        assert len(train) == pytest.approx(2 * len(test), abs=2)
    assert len(list(tmp_path.iterdir())) == 5


def test_every_example_is_in_the_guides():
    included = re.findall(
        r'--8<-- "examples/(\w+)\.py"', (ROOT / 'docs/pages/how-to.md').read_text()
    )
    assert sorted(included) == sorted(path.stem for path in EXAMPLES)


@pytest.mark.parametrize(
    'path', [path for path in PAGES if blocks(path, 'python')], ids=lambda path: path.stem
)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile('\n'.join(blocks(path, 'python')), str(path), 'exec'), {'__name__': '__main__'})
    assert (tmp_path / 'report.html').exists() or path.stem != 'tutorial'


def make_people(rows, seed):
    rng = np.random.default_rng(seed)
    age, is_rich = rng.integers(17, 90, rows), rng.random(rows) < 0.3
    hours = pd.Series(rng.normal(40 + 5 * is_rich, 5).round()).mask(rng.random(rows) < 0.1)
    return pd.DataFrame({'age': age, 'hours': hours, 'income': np.where(is_rich, '>50K', '<=50K')})


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adult = make_people(80, seed=0)
    Metadata.detect_from_dataframes({'adult': adult}).save_to_json('metadata.json')
    code = '\n'.join(blocks(ROOT / 'README.md', 'python'))
    names = {
        'adult': adult,
        'adult_test': make_people(40, seed=1).assign(age=adult['age'], hours=adult['hours']),
        'adult_with_holes': adult.mask(np.random.default_rng(2).random(adult.shape) < 0.2),
    }
    exec(compile(replaced(code, WITH_FEW_STEPS), 'README.md', 'exec'), names)
    assert (tmp_path / 'report.html').exists()
    assert not names['filled']['adult'].isna().any(axis=None)
    assert len(names['surprise']) == len(names['vectors']) == len(names['alike']['adult']) == 40


def test_commands_of_tutorial_and_readme_run(tmp_path, monkeypatch):
    tutorial, readme = (ROOT / name for name in ('docs/pages/tutorial.md', 'README.md'))
    _, demo, commands = blocks(tutorial, 'bash')
    assert demo == 'sdv-nvib demo trial\n'  # the command line's own tests run it
    assert commands in blocks(readme, 'bash')
    monkeypatch.chdir(tmp_path)
    make_people(60, seed=0).to_csv('people.csv', index=False)
    for line in commands.splitlines():
        program, *words = line.split()
        quick = ['--epochs', '1', '--set', 'd_model=16'] if words[0] == 'fit' else []
        result = CliRunner().invoke(main, words + quick)
        assert (program, result.exit_code) == ('sdv-nvib', 0), result.output
    assert len(pd.read_csv('synthetic.csv')) == 1000
    assert (tmp_path / 'report.html').exists()


def test_the_guide_for_several_processes_runs(tmp_path):
    code, commands = block_with('init_process_group', 'py'), block_with('torchrun', 'bash')
    variable, command = commands.splitlines()
    (tmp_path / 'rows').mkdir()
    make_people(300, seed=0).to_csv(tmp_path / 'rows' / 'people.csv', index=False)
    metadata = Metadata.detect_from_dataframes({'people': make_people(300, seed=0)})
    metadata.save_to_json(tmp_path / 'metadata.json')
    whole = "('metadata.json'))"
    (tmp_path / 'train.py').write_text(replaced(code, (whole, f'{whole[:-1]}, {SMALL})')))
    words = replaced(command, ('--nproc-per-node=4', '--nproc-per-node=2')).split()
    module = [sys.executable, '-m', 'torch.distributed.run', *words[1:]]
    name, value = variable.removeprefix('export ').split('=')
    environment = {**os.environ, name: value}
    done = subprocess.run(
        module, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert len(load_synthesizer(tmp_path / 'model.pkl').sample(5)['people']) == 5


@pytest.fixture
def adult(tmp_path, monkeypatch):
    """A folder with a table for the scripts that take adult, and the way to run a command in it."""
    data = tmp_path / 'DATA' / 'adult'
    data.mkdir(parents=True)
    people = make_people(180, seed=0).rename(columns={'hours': 'hours.per.week'})
    people[:120].to_csv(data / 'train.csv.gz', index=False)
    people[120:].to_csv(data / 'test.csv.gz', index=False)
    Metadata.detect_from_dataframes({'adult': people}).save_to_json(data / 'metadata.json')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'examples').mkdir()

    def run(command, *changes):
        program, script, *words = command.split()
        assert program == 'python'
        code = replaced((ROOT / script).read_text(encoding='utf-8'), *changes)
        Path(script).write_text(code, encoding='utf-8')
        monkeypatch.setattr(sys, 'argv', [script, *words])
        runpy.run_path(script, run_name='__main__')

    return run


def test_the_commands_for_files_larger_than_memory_run(adult, monkeypatch, capfd):
    large, same = block_with('beyond_memory', 'bash').splitlines()
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)
    adult(f'{large} --rows 2000', ('epochs=50', 'epochs=1'))
    assert 'peak resident MB' in capfd.readouterr().out
    adult(same, WITH_FEW_STEPS)
    printed = [json.loads(line)['from'] for line in capfd.readouterr().out.splitlines()]
    assert printed == ['files', 'memory']


def test_the_benchmark_runs_and_goes_on_where_it_stopped(adult, monkeypatch, capsys):
    (Path('DATA') / 'adult' / 'info.json').write_text('{"target": "income"}')
    command = (
        'python examples/benchmark.py --data DATA --output OUTPUT --seeds 0 1 --resplit --cores 0 '
        '--synthesizers IndependentColumns RealTest'
    )
    adult(command)
    assert 'already there' not in capsys.readouterr().out
    results = pd.read_csv('OUTPUT/results.csv').set_index(['Synthesizer', 'Seed'])
    assert results['error'].isna().all()
    assert results['C2ST'].between(0, 1).all()
    # Every seed has rows of its own to train on.
    assert results.loc['IndependentColumns', 'Utility_Of_Real_Rows'].nunique() == 2
    for name in ('results.md', 'quality_time.png', 'errors_adult.png'):
        assert (Path('OUTPUT') / name).stat().st_size
    adult(command)
    assert capsys.readouterr().out.count('already there') == 4


def test_the_command_for_the_cost_of_privacy_runs(adult, capsys):
    command = block_with('privacy_cost', 'bash', ROOT / 'docs/pages/privacy.md')
    adult(replaced(command, ('--rows 6000', '--rows 100'), ('--epochs 5', '--epochs 1')))
    assert capsys.readouterr().out.count('\n| ') == 10  # two headings, eight fits


def test_the_command_of_the_readme_that_sets_up_an_example_runs_it(tmp_path):
    command = block_with('quickstart.py', 'bash', ROOT / 'README.md')
    setup, install, run = command.strip().split(' && ')
    tests = block_with('-m pytest', 'bash', ROOT / 'README.md')  # `.ci/run` runs all of it
    installed = replaced(tests, ('.venv-test', '.venv'), ("'.[test]'", '.'))
    assert installed.startswith(f'{setup} && {install} && ')
    program, script = shlex.split(run)
    assert program == '.venv/bin/python'
    code = (ROOT / script).read_text(encoding='utf-8')
    small = ('NVIBSynthesizer(metadata, verbose=True)', f'NVIBSynthesizer(metadata, {SMALL})')
    (tmp_path / 'quickstart.py').write_text(replaced(code, small), encoding='utf-8')
    command = [sys.executable, 'quickstart.py']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'SDMetrics quality' in done.stdout
    assert (tmp_path / 'quickstart.png').exists()


def test_the_job_for_kubernetes_is_whole():
    job = yaml.safe_load(block_with('kind: RayJob', 'yaml'))  # an anchor that is none is an error
    assert (job['apiVersion'], job['kind']) == ('ray.io/v1', 'RayJob')
    program, script = job['spec']['entrypoint'].split()
    assert (program, Path(script).parent, Path(script).name) == (
        'python', Path('/shared'), 'sample.py'
    )  # fmt: skip
    cluster = job['spec']['rayClusterSpec']
    head, (workers,) = cluster['headGroupSpec'], cluster['workerGroupSpecs']
    assert workers['minReplicas'] <= workers['replicas'] <= workers['maxReplicas']
    assert head['template'] == workers['template']
    pod = workers['template']['spec']
    (container,), (volume,) = pod['containers'], pod['volumes']
    assert container['volumeMounts'] == [{'name': volume['name'], 'mountPath': '/shared'}]
    assert volume['persistentVolumeClaim']['claimName']
    cores = workers['replicas'] * int(container['resources']['limits']['cpu'])
    assert f"engine='ray', workers={cores})" in LARGE_SCALE.read_text(encoding='utf-8')


def test_hma_has_no_argument_for_a_synthesizer():
    assert 'cannot take this' in (ROOT / 'docs/pages/limits.md').read_text(encoding='utf-8')
    assert list(signature(HMASynthesizer).parameters) == ['metadata', 'locales', 'verbose']
    settings = signature(HMASynthesizer.set_table_parameters).parameters
    assert list(settings) == ['self', 'table_name', 'table_parameters']


def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet']
    options = ['--config-file', str(ROOT / 'docs' / 'mkdocs.yml'), '--site-dir', str(tmp_path)]
    done = subprocess.run(command + options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    reference = (tmp_path / 'reference' / 'index.html').read_text(encoding='utf-8')
    assert 'write_report' in reference
    assert all(f'Usage: sdv-nvib {name} [OPTIONS]' in reference for name in main.commands)
    assert '<summary>Example</summary>' not in reference  # of a docstring: code runs together there
    explanation = (tmp_path / 'explanation' / 'index.html').read_text(encoding='utf-8')
    assert explanation.count('<math') > 15
    assert 'arithmatex' not in explanation


def test_the_figures_of_the_explanation_are_those_that_the_script_draws(tmp_path, monkeypatch):
    script, page = ROOT / 'docs' / 'figures.py', ROOT / 'docs' / 'pages' / 'explanation.md'
    monkeypatch.setattr(sys, 'argv', [str(script), str(tmp_path)])
    runpy.run_path(str(script), run_name='__main__')
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == set(re.findall(r'\((\w+\.png)\)', page.read_text(encoding='utf-8')))
    for name in drawn:
        new, kept = (imread(folder / name) for folder in (tmp_path, page.parent))
        assert new.shape == kept.shape
        assert abs(new - kept).mean() < 0.01  # fonts may differ by a version of matplotlib


def test_the_notebook_runs_and_is_committed_with_its_pictures(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / 'examples' / 'quickstart.ipynb', as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 5
    NotebookClient(notebook, timeout=600, resources={'metadata': {'path': tmp_path}}).execute()
    assert (tmp_path / 'report.html').exists()
