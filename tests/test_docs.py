"""The documentation: every Python block and every example runs, and the pages build."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / 'docs' / 'pages').glob('*.md'))
# Minutes to hours; they take data or train fully.
LONG = ('ablations', 'benchmark', 'on_demand', 'privacy_cost', 'quickstart')
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


def test_commands_of_the_tutorial_exist():
    from sdv_nvib.cli import main

    text = '\n'.join(blocks(ROOT / 'docs/pages/tutorial.md', 'bash'))
    named = re.findall(r'^sdv-nvib (\w+)', text, re.MULTILINE)
    assert {'demo', 'detect', 'fit', 'sample', 'report'} == set(named) <= set(main.commands)


def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet']
    options = ['--config-file', str(ROOT / 'docs' / 'mkdocs.yml'), '--site-dir', str(tmp_path)]
    done = subprocess.run(command + options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert 'write_report' in (tmp_path / 'reference' / 'index.html').read_text(encoding='utf-8')


def test_the_notebook_runs_and_is_committed_with_its_pictures(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / 'examples' / 'quickstart.ipynb', as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 3
    NotebookClient(notebook, timeout=600, resources={'metadata': {'path': tmp_path}}).execute()
    assert (tmp_path / 'report.html').exists()
