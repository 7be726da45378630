"""Rows in a folder: a sampling that was killed ends with the file of one that was not."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from sdv.cag import Inequality
from sdv.metadata import Metadata

from sdv_nvib import NVIBSynthesizer, StorageError

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),
]
COLUMNS = {
    'key': {'sdtype': 'id', 'regex_format': r'K-\d{6}'},
    'other': {'sdtype': 'id'},
    'email': {'sdtype': 'email', 'pii': True},
    'low': {'sdtype': 'numerical'},
    'high': {'sdtype': 'numerical'},
    'kind': {'sdtype': 'categorical'},
}
KEYS = {'primary_key': 'key', 'alternate_keys': ['other']}
KILLS = 5


def make(constraints=(), names=tuple(COLUMNS), last_kind='ü'):
    rng = np.random.default_rng(0)
    low = rng.normal(size=120).round(3)
    table = pd.DataFrame(
        {
            'key': [f'K-{i:06d}' for i in range(120)],
            'other': np.arange(120),
            'email': [f'user{i}@example.com' for i in range(120)],
            'low': low,
            'high': low + rng.random(120).round(3),
            'kind': rng.choice(['x, "quoted"', 'y\nnext line', last_kind], 120),
        }
    )[list(names)]
    keys = KEYS if 'other' in names else {'primary_key': 'key'}
    described = {'columns': {name: COLUMNS[name] for name in names}, **keys}
    metadata = Metadata.load_from_dict({'tables': {'t': described}})
    synthesizer = NVIBSynthesizer(
        metadata, epochs=1, d_model=8, nhead=2, num_decoder_layers=1, dim_feedforward=8
    )
    if constraints:
        synthesizer.add_constraints(list(constraints))
    synthesizer.fit({'t': table})
    return synthesizer


@pytest.fixture(scope='module')
def fitted():
    return make()


def sample(synthesizer, folder, num_rows=1050, batch_size=100, **changes):
    synthesizer.reset_sampling()
    return synthesizer.sample(
        num_rows, batch_size=batch_size, output_folder_path=str(folder), **changes
    )


@pytest.fixture(scope='module')
def whole(fitted, tmp_path_factory):
    """The bytes of a file that was written without interruption."""
    folder = tmp_path_factory.mktemp('whole')
    returned = sample(fitted, folder)['t']
    assert list(returned.columns) == list(COLUMNS)
    assert returned.empty
    assert [file.name for file in folder.iterdir()] == ['t.csv']
    return (folder / 't.csv').read_bytes()


def interrupt(monkeypatch, synthesizer, folder, batches):
    """Begin to sample, and stop after so many batches."""
    draw, drawn = type(synthesizer)._sample_batch, []

    def stop(self, *args, **kwargs):
        if len(drawn) == batches:
            raise KeyboardInterrupt
        drawn.append(args)
        return draw(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(synthesizer), '_sample_batch', stop)
        with pytest.raises(KeyboardInterrupt):
            sample(synthesizer, folder)


def test_the_file_holds_every_row_once(fitted, whole, tmp_path):
    (tmp_path / 't.csv').write_bytes(whole)
    rows = pd.read_csv(tmp_path / 't.csv')
    assert rows.shape == (1050, len(COLUMNS))
    assert rows['key'].is_unique
    assert rows['other'].is_unique
    assert rows['kind'].isin(['x, "quoted"', 'y\nnext line', 'ü']).all()
    assert len(rows[['low', 'high']].drop_duplicates()) > 1000
    # Another call goes on with other rows and keys, as without a folder.
    again = fitted.sample(100, batch_size=50, output_folder_path=str(tmp_path / 'again'))['t']
    assert again.empty
    others = pd.read_csv(tmp_path / 'again' / 't.csv')
    assert not others['key'].isin(rows['key']).any()
    assert not others['email'].isin(rows['email'][-100:]).all()


@pytest.mark.parametrize('batches', [0, 1, 6, 10])
def test_a_loaded_model_goes_on_where_another_process_ended(
    batches, fitted, whole, tmp_path, monkeypatch
):
    fitted.save_model(tmp_path / 'model')
    interrupt(monkeypatch, fitted, tmp_path, batches)
    with (tmp_path / 't.csv').open('ab') as file:  # half of a batch that was under way
        file.write(b'K-000')
    loaded = NVIBSynthesizer.load_model(tmp_path / 'model')
    loaded.sample(1050, batch_size=100, output_folder_path=str(tmp_path))
    assert (tmp_path / 't.csv').read_bytes() == whole
    assert {file.name for file in tmp_path.iterdir()} == {'model', 't.csv'}


def test_keys_stay_unique_after_other_rows(fitted, tmp_path, monkeypatch):
    fitted.reset_sampling()
    first = fitted.sample(70)['t']
    with monkeypatch.context() as patch:
        patch.setattr(fitted, 'reset_sampling', lambda: None)
        interrupt(monkeypatch, fitted, tmp_path, 3)
        fitted.sample(33)
        sample(fitted, tmp_path)
    rows = pd.concat([first, pd.read_csv(tmp_path / 't.csv')])
    assert len(rows) == 70 + 1050
    assert rows['key'].is_unique
    assert rows['other'].is_unique


SCRIPT = """
import os, random, signal, sys, time, warnings
warnings.simplefilter('ignore')
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_batches import make, sample

folder, kills = sys.argv[2], int(sys.argv[3])
fitted = make()
sample(fitted, f'{folder}/first')  # warms up
started = time.monotonic()
sample(fitted, f'{folder}/whole')
longest = time.monotonic() - started
with open(f'{folder}/whole/t.csv', 'rb') as file:
    whole = file.read()
moments = random.Random(0)
killed, files = 0, 1
for trial in range(50 * kills):
    if killed == kills:
        break
    child = os.fork()
    if not child:
        sample(fitted, f'{folder}/{files}')
        os._exit(0)
    time.sleep(moments.uniform(0, 0.8 * longest))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):  # this file is whole: the next moments need another
        assert status == 0
        files += 1
assert killed == kills, killed
for number in range(1, files + 1):
    path = f'{folder}/{number}/t.csv'
    if not os.path.exists(path) or os.path.exists(f'{path}.progress'):
        sample(fitted, f'{folder}/{number}')
    with open(path, 'rb') as file:
        assert file.read() == whole, number
"""


def test_a_sampling_killed_at_random_moments_ends_with_the_same_file(tmp_path):
    command = [sys.executable, '-c', SCRIPT, os.path.dirname(__file__), str(tmp_path), str(KILLS)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1'}
    subprocess.run(command, check=True, env=environment)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    # Without `other` and `email`: Faker remembers every unique value that it has made.
    synthesizer = make(names=('key', 'low', 'kind'))
    peaks = []
    for num_rows in (1000, 10_000):
        tracemalloc.start()
        sample(synthesizer, tmp_path / str(num_rows), num_rows, 500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 9000 * 30  # a row has more than 80 bytes


def test_constraints_hold_in_the_file(tmp_path):
    synthesizer = make([Inequality('low', 'high')])
    sample(synthesizer, tmp_path, 250)
    rows = pd.read_csv(tmp_path / 't.csv')
    assert len(rows) == 250
    assert (rows['low'] <= rows['high']).all()


@pytest.mark.parametrize(
    'change', [{'num_rows': 999}, {'batch_size': 101}, {'temperature': 0.5}], ids=str
)
def test_rows_of_other_arguments_are_not_continued(change, fitted, tmp_path, monkeypatch):
    interrupt(monkeypatch, fitted, tmp_path, 2)
    with pytest.raises(StorageError, match=r'same fitted model and arguments.*start over'):
        sample(fitted, tmp_path, **change)


def test_rows_of_a_model_with_other_values_are_not_continued(fitted, tmp_path, monkeypatch):
    other = make(last_kind='ö')
    for name, weight in fitted._model.network.state_dict().items():
        assert weight.equal(other._model.network.state_dict()[name])
    interrupt(monkeypatch, fitted, tmp_path, 1)
    with pytest.raises(StorageError, match='same fitted model and arguments'):
        sample(other, tmp_path)


def test_a_finished_file_is_left_alone(fitted, tmp_path):
    sample(fitted, tmp_path, 200)
    before = (tmp_path / 't.csv').read_bytes()
    with pytest.raises(StorageError, match='exists already'):
        sample(fitted, tmp_path, 200)
    assert (tmp_path / 't.csv').read_bytes() == before


@pytest.mark.parametrize('note', ['', '[]', '{"identity": "x"}', '{"seed": -1}', '[' * 10_000])
def test_a_damaged_note_is_an_error(note, fitted, tmp_path, monkeypatch):
    interrupt(monkeypatch, fitted, tmp_path, 2)
    (tmp_path / 't.csv.progress').write_text(note)
    with pytest.raises(StorageError, match=r'is damaged.*to start over'):
        sample(fitted, tmp_path)


def test_a_file_that_lost_rows_is_an_error(fitted, tmp_path, monkeypatch):
    interrupt(monkeypatch, fitted, tmp_path, 2)
    with (tmp_path / 't.csv').open('ab') as file:
        file.truncate(100)
    with pytest.raises(StorageError, match=r'must have at least \d+ bytes'):
        sample(fitted, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_an_error(fitted, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(StorageError, match='Give a folder to write to'):
        sample(fitted, tmp_path / 'file')


def test_a_full_disk_is_an_error_and_the_rows_go_on_later(fitted, whole, tmp_path, full_disk):
    with (
        full_disk(len(whole) // 2),
        pytest.raises(StorageError, match=r'Batch \d+ could not be written.*to go on'),
    ):
        sample(fitted, tmp_path)
    assert len(fitted.sample(5)['t']) == 5
    sample(fitted, tmp_path)
    assert (tmp_path / 't.csv').read_bytes() == whole


def test_labels_that_no_model_file_holds_can_be_sampled_to_files_and_checkpointed(tmp_path):
    table = pd.DataFrame({'s': pd.to_timedelta(np.arange(60) % 5, 'h'), 'x': np.arange(60)})
    columns = {'s': {'sdtype': 'categorical'}, 'x': {'sdtype': 'numerical'}}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    synthesizer = NVIBSynthesizer(metadata, epochs=1, d_model=8, nhead=2, dim_feedforward=8)
    synthesizer.fit({'t': table}, checkpoint=tmp_path / 'checkpoint')
    synthesizer.sample(20, batch_size=5, output_folder_path=str(tmp_path))
    sampled = pd.read_csv(tmp_path / 't.csv')
    assert len(sampled) == 20
    assert sampled['s'].isin(table['s'].astype(str)).all()
