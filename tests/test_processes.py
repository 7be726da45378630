"""Several processes that train together, under torchrun and Ray Train."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch


def fit_and_be_killed(folder, rank):
    """A fit of which process 1 was killed once, after its first checkpoint, and one in peace."""
    from test_streaming import make

    checkpoint, killed = folder / 'checkpoint', folder / 'killed'

    def die():
        while not (checkpoint / 'checkpoint.safetensors').exists():
            time.sleep(0.01)
        killed.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1 and not killed.exists():
        threading.Thread(target=die, daemon=True).start()
    settings = {'epochs': 8, 'batch_size': 64}
    interrupted, whole = make(**settings), make(**settings)
    interrupted.fit_dataset(folder / 'rows', checkpoint=checkpoint)
    whole.fit_dataset(folder / 'rows')
    return interrupted, whole


def weights(synthesizer):
    """All weights in one row."""
    return torch.cat([p.flatten() for p in synthesizer._model.network.parameters()]).detach()


SCRIPT = """
import json, os, sys, warnings
warnings.simplefilter('ignore')
import torch
torch.set_num_threads(1)
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_processes import fit_and_be_killed, weights
from sdv_nvib import TrainingError, training
from sdv_nvib.model import ModelConfig, TabularNVIB
from sdv_nvib.processes import require_equal
from sdv_nvib.training import GRADIENT_CLIP, RowsInMemory, Trainer, TrainingConfig
import numpy as np

folder = Path(sys.argv[2])
dist.init_process_group('gloo')
rank, count = dist.get_rank(), dist.get_world_size()


class Share(RowsInMemory):
    '''Every second row.'''

    def __init__(self, tokens):
        super().__init__(tokens, torch.Generator().manual_seed(0), torch.device('cpu'))
        self.rank, self.num_processes = rank, count
        self.batch = self.some[:64]

    def batches(self, epoch, size):
        yield self.batch[self.rank :: self.num_processes]


def trainer():
    torch.manual_seed(rank)  # what differs must become the same
    tokens = torch.randint(3, (300, 4), generator=torch.Generator().manual_seed(0))
    config = ModelConfig(d_model=16, nhead=2, num_encoder_layers=1, num_decoder_layers=2,
                         dim_feedforward=32)
    model = TabularNVIB([np.full(3, np.nan)] * 4, config).double()
    trainer = Trainer(model, TrainingConfig(batch_size=64))
    trainer._prepare(Share(tokens))
    return trainer


torch.set_default_dtype(torch.float64)
together, alone = trainer(), trainer()
for _ in range(3):
    # One process: the joint batch, each row with the noise that it has in its process.
    losses = []
    for alone.rows.rank in range(count):
        batch, = alone._batches()
        kl_weight = alone.schedule.kl_weight(alone.step)
        losses.append(alone._forward(alone.model, batch, alone.noise, kl_weight)[0][0])
    alone._set_learning_rates()
    alone.model.zero_grad()
    torch.stack(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(alone.model.parameters(), GRADIENT_CLIP)
    together._train_step(*together._batches())
    pairs = [
        (p.grad, q.grad)
        for p, q in zip(together.model.parameters(), alone.model.parameters(), strict=True)
    ]
    assert all((p is None) == (q is None) for p, q in pairs)  # of ordered columns, here are none
    gradients = [(p - q).abs().max().item() for p, q in pairs if q is not None]
    sizes = [q.abs().max().item() for p, q in pairs if q is not None]
    for optimizer in alone.optimizers:
        optimizer.step()
    alone.step += 1
torch.set_default_dtype(torch.float32)

fitted_to, draw = [], training.copula_rows
training.copula_rows = lambda rows, *settings: fitted_to.append(rows) or draw(rows, *settings)
pretrained = trainer()
everything = pretrained.rows.some
pretrained.rows.some = everything[rank::count]
pretrained.pretraining_steps = 1
pretrained._pretrain()
training.copula_rows = draw
sorted_rows = [sorted(map(tuple, rows.tolist())) for rows in (fitted_to[0], everything)]

try:
    require_equal(str(rank))
    refused = ''
except TrainingError as error:
    refused = str(error)

interrupted, whole = fit_and_be_killed(folder, rank)
everywhere = [torch.empty_like(weights(whole)) for _ in range(count)]
dist.all_gather(everywhere, weights(whole))
result = {
    'gradients': max(gradients),
    'sizes': max(sizes),
    'refused': refused,
    'copula of all rows': sorted_rows[0] == sorted_rows[1],
    'noise of pretraining': pretrained.noise.initial_seed(),
    'same after a kill': torch.equal(weights(interrupted), weights(whole)),
    'same everywhere': all(torch.equal(w, everywhere[0]) for w in everywhere),
    'restarts': int(os.environ['TORCHELASTIC_RESTART_COUNT']),
    'epochs': len(interrupted.get_loss_values()),
    'held out': float(whole.get_loss_values()['Validation Reconstruction'].min()),
    'rows': len(interrupted.sample(50)['t']),
}
(folder / f'result-{rank}.json').write_text(json.dumps(result))
dist.destroy_process_group()
"""


RAY_SCRIPT = """
import sys
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

tests, folder = sys.argv[1:]


def train(settings):
    import json, sys, warnings
    from pathlib import Path
    warnings.simplefilter('ignore')
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, settings['tests'])
    import ray.train
    from test_processes import fit_and_be_killed, weights
    folder = Path(settings['folder'])
    rank = ray.train.get_context().get_world_rank()
    interrupted, whole = fit_and_be_killed(folder, rank)
    result = {
        'same after a kill': torch.equal(weights(interrupted), weights(whole)),
        'epochs': len(interrupted.get_loss_values()),
        'weights': weights(interrupted).double().sum().item(),
    }
    (folder / f'worker-{rank}.json').write_text(json.dumps(result))


ray.init(num_cpus=3, include_dashboard=False, log_to_driver=True)
TorchTrainer(
    train,
    train_loop_config={'tests': tests, 'folder': folder},
    torch_config=TorchConfig(backend='gloo'),
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(
        storage_path=folder + '/ray', failure_config=FailureConfig(max_failures=1)
    ),
).fit()
"""


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """What two processes under torchrun found, one of which was killed once."""
    from test_streaming import make_table, write

    folder = tmp_path_factory.mktemp('processes')
    write(make_table(400), folder / 'rows')
    script = folder / 'script.py'
    script.write_text(SCRIPT)
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    arguments = ['--max-restarts=2', str(script), str(Path(__file__).parent), str(folder)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
    # torchrun keeps one store for all attempts, in which gloo finds addresses of the dead.
    environment['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    assert (folder / 'killed').exists()
    return [json.loads((folder / f'result-{rank}.json').read_text()) for rank in (0, 1)]


def test_gradients_are_those_of_one_process_with_the_joint_batch(results):
    for result in results:
        assert result['sizes'] > 1e-3
        assert result['gradients'] < 1e-9


def test_pretraining_knows_the_rows_of_all_and_has_noise_of_its_own(results):
    assert all(result['copula of all rows'] for result in results)
    assert results[0]['noise of pretraining'] != results[1]['noise of pretraining']


def test_a_killed_process_costs_nothing_but_time(results):
    for result in results:
        assert result['restarts'] >= 1
        assert result['same after a kill']
        assert result['rows'] == 50


def test_every_process_ends_with_the_same_model(results):
    assert all(result['same everywhere'] for result in results)
    assert results[0]['held out'] == results[1]['held out']


def test_processes_that_read_other_tables_are_refused(results):
    assert all('must read the same table' in result['refused'] for result in results)


def run_with_ray(code, *arguments, **environment):
    command = [sys.executable, '-W', 'ignore', '-c', code, *arguments]
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'RAY_USAGE_STATS_ENABLED': '0',
        'RAY_raylet_start_wait_time_s': '600',  # a busy machine is no error
        'RAY_gcs_server_request_timeout_seconds': '600',
        'RAY_worker_register_timeout_seconds': '600',
        'RAY_worker_niceness': '0',
        **environment,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.ray
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_guide_for_ray_train_runs(tmp_path):
    pytest.importorskip('ray.train.torch')
    from sdv.metadata import Metadata
    from sdv.utils import load_synthesizer
    from test_streaming import make_table, write

    page = Path(__file__).parents[1] / 'docs/pages/large_scale.md'
    blocks = page.read_text(encoding='utf-8').split('```py\n')[1:]
    (code,) = (b.split('```')[0] for b in blocks if 'TorchTrainer(' in b.split('```')[0])
    for whole, small in (
        ('/shared/', f'{tmp_path}/'),
        ("metadata.json'))", "metadata.json'), epochs=1, d_model=16)"),
        ('num_workers=4', 'num_workers=2'),
        ('import ray\n', 'import ray\nray.init(num_cpus=3, include_dashboard=False)\n'),
    ):
        assert whole in code
        code = code.replace(whole, small)
    table = make_table(300)
    write(table, tmp_path / 'rows')
    Metadata.detect_from_dataframes({'t': table}).save_to_json(tmp_path / 'metadata.json')
    run_with_ray(code, HOME=str(tmp_path))  # where Ray keeps what it has no other place for
    assert len(load_synthesizer(tmp_path / 'model.pkl').sample(5)['t']) == 5


@pytest.mark.ray
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_ray_train_goes_on_after_a_worker_was_killed(tmp_path):
    pytest.importorskip('ray.train.torch')
    from test_streaming import make_table, write

    write(make_table(300), tmp_path / 'rows')
    run_with_ray(RAY_SCRIPT, str(Path(__file__).parent), str(tmp_path))
    assert (tmp_path / 'killed').exists()
    results = [json.loads((tmp_path / f'worker-{rank}.json').read_text()) for rank in (0, 1)]
    assert all(result['same after a kill'] for result in results)
    assert results[0] == results[1]
    assert (tmp_path / 'checkpoint' / 'checkpoint.safetensors').exists()
