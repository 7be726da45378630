"""The documentation: every Python block and every example runs, and the pages build."""

import re
import runpy
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.image import imread
from sdv.metadata import Metadata
from sdv.multi_table import HMASynthesizer
from sdv.utils import load_synthesizer

from sdv_nvib.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / 'docs' / 'pages').glob('*.md'))
# Minutes to hours; they take data or train fully.
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
)
EXAMPLES = [path for path in sorted((ROOT / 'examples').glob('*.py')) if path.stem not in LONG]

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:No .datetime_format. is present'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),  # a few epochs teach little
]


def blocks(path, language):
    found = re.findall(rf'```{language}\n(.*?)```', path.read_text(encoding='utf-8'), re.DOTALL)
    return [block for block in found if not block.startswith('--8<--')]


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name='__main__')
    assert capsys.readouterr().out


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
    whole, small = 'NVIBSynthesizer(metadata)', 'NVIBSynthesizer(metadata, epochs=1, d_model=16)'
    assert whole in code
    names = {
        'adult': adult,
        'adult_test': make_people(40, seed=1).assign(age=adult['age'], hours=adult['hours']),
        'adult_with_holes': adult.mask(np.random.default_rng(2).random(adult.shape) < 0.2),
    }
    exec(compile(code.replace(whole, small), 'README.md', 'exec'), names)
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
    page = ROOT / 'docs/pages/large_scale.md'
    (code,) = (block for block in blocks(page, 'py') if 'init_process_group' in block)
    (command,) = (block for block in blocks(page, 'bash') if 'torchrun' in block)
    (tmp_path / 'rows').mkdir()
    make_people(300, seed=0).to_csv(tmp_path / 'rows' / 'people.csv', index=False)
    metadata = Metadata.detect_from_dataframes({'people': make_people(300, seed=0)})
    metadata.save_to_json(tmp_path / 'metadata.json')
    whole, many = "('metadata.json'))", '--nproc-per-node=4'
    assert whole in code
    assert many in command
    (tmp_path / 'train.py').write_text(code.replace(whole, f'{whole[:-1]}, epochs=1, d_model=16)'))
    words = command.replace(many, '--nproc-per-node=2').split()
    module = [sys.executable, '-m', 'torch.distributed.run', *words[1:]]
    done = subprocess.run(module, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(load_synthesizer(tmp_path / 'model.pkl').sample(5)['people']) == 5


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
