"""Checkpoints: a killed fit ends with the weights of one that was not."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sdv.metadata import Metadata

from sdv_nvib import ModelFileError, NVIBSynthesizer, StorageError
from sdv_nvib.training import Trainer, TrainingConfig

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),
]
METADATA = {
    'tables': {
        't': {'columns': {'a': {'sdtype': 'numerical'}, 'g': {'sdtype': 'categorical'}}},
    }
}
TINY = {
    'epochs': 4,
    'd_model': 8,
    'nhead': 2,
    'num_decoder_layers': 1,
    'dim_feedforward': 8,
    'enable_gpu': False,
}
KILLS = 20


def make_data(seed=0, rows=120):
    rng = np.random.default_rng(seed)
    return {'t': pd.DataFrame({'a': rng.normal(size=rows), 'g': rng.choice(list('xyz'), rows)})}


def make(**changes):
    return NVIBSynthesizer(Metadata.load_from_dict(METADATA), **{**TINY, **changes})


def weights(synthesizer):
    return synthesizer._model.network.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize('dropout', [0.0, 0.2])
@pytest.mark.parametrize('epochs', [1, 3, 5])
def test_training_goes_on_bit_for_bit_after_any_epoch(build_model, dropout, epochs):
    tokens = torch.randint(3, (90, 4), generator=torch.Generator().manual_seed(0))

    def train(resume=None, on_epoch=None, seed=0):
        torch.manual_seed(seed)
        model = build_model(3, 3, 3, 3, seed=seed, dropout=dropout)
        trainer = Trainer(model, TrainingConfig(epochs=12, batch_size=32))
        trainer.fit(tokens, on_epoch and (lambda record, _: on_epoch(trainer, record)), resume)
        return trainer

    states = {}
    with torch.random.fork_rng():
        whole = train(on_epoch=lambda t, record: states.setdefault(record.epoch, t.state()))
        state = states[epochs]
        # What goes through a file must be as good: JSON, and tensors that are no views.
        state = replace(state, numbers=json.loads(json.dumps(state.numbers)))
        resumed = train(state, seed=7)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert whole.stop_reason == resumed.stop_reason
    without_time = [[replace(r, seconds=0.0) for r in t.history] for t in (whole, resumed)]
    assert without_time[0] == without_time[1]


def test_a_fit_goes_on_with_as_many_parts_whatever_the_number_of_threads(build_model):
    tokens = torch.randint(3, (200, 4), generator=torch.Generator().manual_seed(0))

    def train(threads, resume=None, on_epoch=None):
        torch.set_num_threads(threads)
        try:
            trainer = Trainer(build_model(3, 3, 3, 3), TrainingConfig(epochs=4, batch_size=64))
            trainer.fit(tokens, on_epoch and (lambda record, _: on_epoch(trainer, record)), resume)
        finally:
            torch.set_num_threads(1)
        return trainer

    states = {}
    whole = train(2, on_epoch=lambda t, record: states.setdefault(record.epoch, t.state()))
    resumed, other = train(1, states[2]), train(1)
    assert (whole.num_parts, resumed.num_parts, other.num_parts) == (2, 2, 1)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert not same(whole.model.state_dict(), other.model.state_dict())


def test_a_checkpoint_of_a_whole_fit_gives_that_fit_again(tmp_path):
    plain, first, again = make(), make(), make()
    plain.fit(make_data())
    first.fit(make_data(), checkpoint=tmp_path / 'folder')
    again.fit(make_data(), checkpoint=tmp_path / 'folder')
    assert same(weights(plain), weights(first))
    assert same(weights(plain), weights(again))
    pd.testing.assert_frame_equal(again.get_loss_values(), first.get_loss_values())
    pd.testing.assert_frame_equal(again.sample(20)['t'], plain.sample(20)['t'])
    assert [file.name for file in (tmp_path / 'folder').iterdir()] == ['checkpoint.safetensors']


SCRIPT = """
import os, random, signal, sys, time, warnings
warnings.simplefilter('ignore')
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_checkpoint import make, make_data, same, weights

folder, kills = sys.argv[2], int(sys.argv[3])
plain = make(epochs=12)
plain.fit(make_data())
started = time.monotonic()  # of a second fit: the first one warms up
make(epochs=12).fit(make_data(), checkpoint=f'{folder}/0')
longest = time.monotonic() - started
killed, fits = 0, 1
moments = random.Random(0)
for trial in range(50 * kills):
    if killed == kills:
        break
    child = os.fork()
    if not child:
        make(epochs=12).fit(make_data(), checkpoint=f'{folder}/{fits}')
        os._exit(0)
    time.sleep(moments.uniform(0, 0.8 * longest))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):  # this fit came to its end: the next moments need another
        assert status == 0
        fits += 1
assert killed == kills, killed
for path in sorted(os.listdir(folder)):
    resumed = make(epochs=12)
    resumed.fit(make_data(), checkpoint=f'{folder}/{path}')
    assert same(weights(plain), weights(resumed)), path
"""


def test_a_fit_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    command = [sys.executable, '-c', SCRIPT, os.path.dirname(__file__), str(tmp_path), str(KILLS)]
    subprocess.run(command, check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


@pytest.mark.parametrize(
    'change', [{'seed': 1}, {'epochs': 5}, {'d_model': 16}, {'learning_rate': 1e-3}], ids=str
)
def test_a_checkpoint_of_other_arguments_is_refused(change, tmp_path):
    make().fit(make_data(), checkpoint=tmp_path)
    with pytest.raises(ModelFileError, match=r'must be of the same data.*remove the file'):
        make(**change).fit(make_data(), checkpoint=tmp_path)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    make().fit(make_data(), checkpoint=tmp_path)
    with pytest.raises(ModelFileError, match='must be of the same data'):
        make().fit(make_data(seed=1), checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    make(epochs=1).fit(make_data(), checkpoint=tmp_path)
    path = tmp_path / 'checkpoint.safetensors'
    original = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [original[:n] for n in (0, 9, len(original) // 2, len(original) - 1)]
    for place in rng.integers(0, len(original), 20):
        flipped = bytearray(original)
        flipped[place] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match='checkpoint'):
            make(epochs=1).fit(make_data(), checkpoint=tmp_path)


def test_a_checkpoint_holds_no_training_row(tmp_path):
    make(epochs=1).fit(make_data(), checkpoint=tmp_path)
    with safe_open(tmp_path / 'checkpoint.safetensors', framework='pt') as file:
        prefixes = {name.split('.')[0] for name in file.keys()}  # noqa: SIM118
        text = str(file.metadata())
    assert prefixes == {'model', 'average', 'best', 'optimizer', 'random'}
    assert not any(repr(value) in text for value in make_data()['t']['a'])


def test_a_folder_that_cannot_be_written_to_costs_no_fitted_model(tmp_path):
    (tmp_path / 'file').write_text('')
    synthesizer = make(epochs=1)
    synthesizer.fit(make_data())
    with pytest.raises(StorageError, match='Choose another, or fit without checkpoint'):
        synthesizer.fit(make_data(), checkpoint=tmp_path / 'file')
    assert len(synthesizer.sample(5)['t']) == 5


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write')
def test_a_read_only_folder_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match='needs a folder to write to'):
        make().fit(make_data(), checkpoint=tmp_path)


def test_a_disk_that_fills_up_ends_in_an_error_and_a_fitted_model(tmp_path, monkeypatch):
    written = []

    def full(tensors, path, metadata=None):
        written.append(path)
        if len(written) > 1:
            raise OSError(28, 'No space left on device')
        return save_file(tensors, path, metadata)

    monkeypatch.setattr('sdv_nvib.persistence.save_file', full)
    plain, synthesizer = make(), make()
    plain.fit(make_data())
    with pytest.raises(StorageError, match=r'No space left.*the synthesizer can be used'):
        synthesizer.fit(make_data(), checkpoint=tmp_path)
    assert len(written) == len(synthesizer.get_loss_values())
    assert same(weights(plain), weights(synthesizer))
    assert len(synthesizer.sample(5)['t']) == 5


def test_a_disk_without_room_for_a_checkpoint_ends_in_an_error_and_a_fitted_model(
    tmp_path, full_disk
):
    plain, synthesizer = make(), make()
    plain.fit(make_data())
    with full_disk(2000), pytest.raises(StorageError, match='the synthesizer can be used'):
        synthesizer.fit(make_data(), checkpoint=tmp_path)
    assert same(weights(plain), weights(synthesizer))
    synthesizer = make()
    synthesizer.fit(make_data(), checkpoint=tmp_path)  # with room again
    assert same(weights(plain), weights(synthesizer))
