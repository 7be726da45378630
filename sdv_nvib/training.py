"""The training loop: held-out rows, schedule, annealing, early stopping, history.

Fourth in the flow. It knows sources of token tensors and a model that returns `ModelOutput`; no
pandas. Where a source gives each of several processes its share of the rows, the gradients are
those of the joint batch.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sdv_nvib.copula import copula_rows, is_ordered, token_shares
from sdv_nvib.errors import TrainingError
from sdv_nvib.generation import AnyOrderGenerator, rows_at_once
from sdv_nvib.model import ModelOutput, TabularNVIB
from sdv_nvib.muon import Muon
from sdv_nvib.processes import from_all, sum_over_processes

__all__ = [
    'EpochRecord',
    'Rows',
    'RowsInMemory',
    'Trainer',
    'TrainerState',
    'TrainingConfig',
    'autocast_dtype',
    'choose_device',
    'map_on_threads',
]

VALIDATION_SHARE = 0.1
MAX_VALIDATION_ROWS = 4096
MAX_CALIBRATION_ROWS = 2**17
CALIBRATION_ROWS = (2**12, 2**16)  # fewest and most generated rows of a pass
CALIBRATION_PASSES = 2
CALIBRATION_CHUNKS = 8  # fewest of a pass: each has column orders of its own
MIN_PART_ROWS = 32  # a pass costs as much as some twenty rows before the first one
EVALUATION_BATCH = 2048
WARMUP_SHARE, COOLDOWN_SHARE, ANNEALING_SHARE = 0.05, 0.5, 0.2
PATIENCE_SHARE = 0.05
HIDDEN = ('encoder.', 'decoder.', 'nvib.')  # parameters whose matrices map hidden vectors
MUON_FACTOR = 3.0  # its learning rate, of AdamW's
AVERAGED_SHARE = 0.1  # of the steps so far that the averaged weights reach back
GRADIENT_CLIP = 1.0
TRAINING_SHARE = 0.9  # of the time of a fit; the rest calibrates the output
COLLAPSED_NATS = 0.5
FEW_ROWS = 500  # below, F itself is read outside training, and the output is tempered
PRETRAINED_ROWS = range(10, 2000)  # to train on, before which the network sees a copula's rows
PRETRAINING_SHARE = 0.25  # of the steps that epochs may take
COPULA_ROWS = 2**14
MEMORISED_WEIGHT, MEMORISED_ROWS = 0.5, 200  # beside held-out nats; more with fewer rows
THOROUGH_WEIGHT = 0.65  # the same after pretraining with batches and a cooldown of its own
THOROUGH_SHARE = 0.5  # of the columns that are ordered, for such pretraining
TEMPERATURES = np.geomspace(1, 8, 19)
TEMPERATURE_SPREAD, TEMPERATURE_MEAN_SPREAD = 0.3, 0.4  # of their logarithms, beforehand
SHARPENINGS = np.linspace(0, 0.5, 11)
SHARPENING_MEAN, SHARPENING_SPREAD = 0.25, 0.15  # beforehand
SCORED_ROWS = 512  # fewest held-out ones, and as many trained on


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a fit.

    Attributes:
        epochs: Most passes over the training rows; `None` chooses by the number of rows.
        batch_size: Rows per step; `None` chooses by the number of rows.
        learning_rate: Peak of AdamW's schedule, Muon's is three times it; `None` chooses by the
            number of rows.
        weight_decay: Decoupled weight decay of both.
        lambda_gaussian: Weight of L_G; `None` chooses by the number of rows.
        lambda_dirichlet: Weight of L_D; `None` chooses by the number of rows.
        seed: Seed of every random choice of the fit.
    """

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.1
    lambda_gaussian: float | None = None
    lambda_dirichlet: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class EpochRecord:
    """Losses of one epoch, means per row; `validation_*` on held-out rows.

    Attributes:
        epoch: Number of the epoch, from 1; 0 are the rows of the copula before them.
        loss: Training loss as optimised, with annealed weights of the KL terms, nats.
        reconstruction: Training reconstruction, nats.
        kl_gaussian: L_G.
        kl_dirichlet: L_D.
        validation_loss: Held-out loss, with full weights of the KL terms, nats.
        validation_reconstruction: Held-out reconstruction, nats; a bound on the negative
            log-likelihood, and what chooses the best weights, with few rows beside `memorised`.
        memorised: How much less the reconstruction of rows trained on is than that of held-out
            ones, nats, beyond what it is for independent columns.
        nats: Unscaled KL, what passes through the bottleneck, on held-out rows.
        active_components: Components in use, on held-out rows.
        learning_rate: At the end of the epoch.
        seconds: Wall time since the start of the fit.
    """

    epoch: int
    loss: float
    reconstruction: float
    kl_gaussian: float
    kl_dirichlet: float
    validation_loss: float
    validation_reconstruction: float
    memorised: float
    nats: float
    active_components: float
    learning_rate: float
    seconds: float


def choose_device(enable_gpu: bool) -> torch.device:
    """CUDA, else MPS, else the CPU; the CPU alone when `enable_gpu` is False."""
    if enable_gpu and torch.cuda.is_available():
        return torch.device('cuda')
    if enable_gpu and torch.backends.mps.is_available():
        try:
            torch._standard_gamma(torch.ones(1, device='mps'))
        except NotImplementedError:  # by versions of torch without that kernel
            return torch.device('cpu')
        return torch.device('mps')
    return torch.device('cpu')


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the processor multiplies it natively and gains by it, else `None`.

    On CPUs that is AMX alone: with AVX512-BF16 and these small matrices the conversions cost more
    than the products save.
    """
    if device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device.type == 'cpu' and torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return None


@contextmanager
def map_on_threads(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` whose calls run side by side, each with one thread of torch.

    The products of a small network are too small to be worth dividing; independent parts of the
    rows divide evenly.

    Args:
        workers: Calls at a time; with one, `map` itself, and torch keeps its threads.
    """
    if workers == 1:
        yield map
        return
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(workers) as pool:
        try:
            torch.set_num_threads(1)
            yield pool.map
        finally:
            torch.set_num_threads(threads)


class Schedule:
    """Learning rate and KL weight by step: warm-up, a constant peak, a linear cooldown to zero.

    Thorough pretraining, the first of the steps, has a cooldown of its own.
    """

    def __init__(self, total_steps: int, pretraining_steps: int = 0) -> None:
        self.end, self.pretraining = total_steps, pretraining_steps
        self.warmup = max(1, round(WARMUP_SHARE * total_steps))
        self.annealing = max(1, round(ANNEALING_SHARE * total_steps))

    def learning_rate(self, step: int) -> float:
        """Share of the peak, in [0, 1]."""
        warm = min(1.0, (step + 1) / self.warmup)
        end = self.pretraining if step < self.pretraining else self.end
        left = (end - step) / max(1, end - round((1 - COOLDOWN_SHARE) * end))
        return warm * min(1.0, max(0.0, left))

    def kl_weight(self, step: int) -> float:
        """The annealing schedule A, in [0, 1]."""
        return min(1.0, step / self.annealing)


class Rows(Protocol):
    """Where the trainer's rows come from, and which are held out.

    Attributes:
        num_rows: Rows to train on, of all processes together.
        epoch_rows: How many of them an epoch has.
        rank: Number of this process.
        num_processes: How many share the rows; all have equally many.
        held_out: Token ids of the held-out rows, the same in every process, `(V, n)`.
        some: Rows to train on, all of them or a random sample, `(S, n)`.
    """

    num_rows: int
    epoch_rows: int
    rank: int
    num_processes: int
    held_out: Tensor
    some: Tensor

    def batches(self, epoch: int, size: int) -> Iterator[Tensor]:
        """Token ids of this process's rows of an epoch, counted from 0, in batches `(size, n)`."""
        ...


class RowsInMemory:
    """Rows of one process, in memory; a tenth of them, but at most 4,096, held out.

    Args:
        tokens: Token ids of all rows, `(N, n)` int64, on any device.
        generator: Holds rows out, and shuffles the others for each epoch.
        device: Where the batches are to be.
    """

    rank, num_processes = 0, 1

    def __init__(self, tokens: Tensor, generator: torch.Generator, device: torch.device) -> None:
        shuffled = tokens[torch.randperm(len(tokens), generator=generator)]
        held_out = min(MAX_VALIDATION_ROWS, round(VALIDATION_SHARE * len(tokens)))
        # Too few rows to hold any out: they are their own validation.
        self.some = shuffled[held_out:].to(device)
        self.held_out = (shuffled[:held_out] if held_out else shuffled).to(device)
        self.num_rows = self.epoch_rows = len(self.some)
        self._generator = generator

    def batches(self, epoch: int, size: int) -> Iterator[Tensor]:
        """The rows in a new random order; the last batch may be smaller."""
        permutation = torch.randperm(len(self.some), generator=self._generator)
        for rows in permutation.to(self.some.device).split(size):
            yield self.some[rows]


@dataclass(frozen=True)
class TrainerState:
    """Everything that decides how training goes on after an epoch.

    Attributes:
        tensors: Weights, best weights, the optimiser's moments, states of the generators.
        numbers: The rest, as JSON can hold it.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass
class Trainer:
    """Fits a model to token ids and leaves it with its best weights.

    Those are running averages over the last tenth of the steps: they are judged on held-out rows
    after every epoch (and after the copula's rows, before the first one) and kept. Their held-out
    loss is lower than that of any single step's weights before the cooldown, and smooth, so that
    training may end when it rises.

    Tables of few rows are preceded by rows of a Gaussian copula, of which nothing need be learned
    by heart.

    In any-order mode the output is calibrated afterwards: with few rows by temperatures, always by
    the shares of the table, after pretraining those of the copula, in generated rows. With few rows
    F itself is read, by evaluation attention, wherever the model is not being trained: its noise is
    for training.

    Attributes:
        model: The network, on its device.
        config: Settings.
        history: One record per epoch.
        stop_reason: Why training ended, in words.
    """

    model: TabularNVIB
    config: TrainingConfig
    history: list[EpochRecord] = field(default_factory=list)
    stop_reason: str = ''
    map: Callable[..., Iterator[Any]] = field(default=map, init=False, repr=False)

    def fit(
        self,
        tokens: Tensor | Rows,
        on_epoch: Callable[[EpochRecord, float], None] | None = None,
        resume: TrainerState | None = None,
    ) -> None:
        """Train until held-out rows stop gaining (`_cost`) or the budget is spent.

        Ctrl-C ends training early, and so does a loss that is no number; the best weights so far
        are kept in every case.

        Args:
            tokens: Token ids of all rows, `(N, n)` int64, on any device; or a source of rows.
            on_epoch: Called after each epoch with its record and the expected share of the whole
                fit that is done.
            resume: Where to go on: the `state` of a trainer of the same data and settings. On a
                CPU the weights become those of a training that was never interrupted.

        Raises:
            TrainingError: The loss was no number before any weights could be kept.
        """
        self._prepare(tokens)
        if resume is not None:
            self._resume(resume)
        share = TRAINING_SHARE if self.model.is_any_order else 1.0
        try:
            if resume is None:
                self._pretrain()
            with map_on_threads(self.num_parts) as self.map:
                while not self.stop_reason:
                    record = self._run_epoch()
                    if on_epoch is not None and record is not None:
                        on_epoch(record, share * min(1.0, self.step / self.schedule.end))
        except KeyboardInterrupt:
            self.stop_reason = 'interrupted'
            kept = 'the best weights so far' if self.best else 'the weights of an unfinished epoch'
            warnings.warn(
                f'Training was interrupted after {len(self.history)} epochs; the model has {kept}.',
                stacklevel=2,
            )
        # Rows are generated in chunks of a size that no number of threads changes.
        is_alone = self.model.device.type == 'cpu' and self.rows.num_processes == 1
        workers = torch.get_num_threads() if is_alone else self.num_parts
        with map_on_threads(workers) as self.map:
            self._finish()
        self.map = map

    def _prepare(self, tokens: Tensor | Rows) -> None:
        device = self.model.device
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.noise = torch.Generator(device).manual_seed(self.config.seed + 1)
        self.rows = self._source(tokens)
        num_rows = self.rows.num_rows
        self.batch_size = min(num_rows, self.config.batch_size or _auto_batch_size(num_rows))
        # Every process has as many rows as any other: the mean of their gradients is the joint
        # batch's.
        self.local_batch_size = max(1, self.batch_size // self.rows.num_processes)
        self.num_parts = self._num_parts(self.batch_size)
        self.lambda_gaussian, self.lambda_dirichlet = (
            _auto_lambda(num_rows) if weight is None else weight
            for weight in (self.config.lambda_gaussian, self.config.lambda_dirichlet)
        )
        self.learning_rate = self.config.learning_rate or _auto_learning_rate(num_rows)
        local_rows = self.rows.epoch_rows // self.rows.num_processes
        self.steps_per_epoch = math.ceil(local_rows / self.local_batch_size)
        epochs = self.config.epochs or _auto_epochs(num_rows, self.steps_per_epoch)
        steps = epochs * self.steps_per_epoch
        self.pretraining_steps = self._num_pretraining_steps(steps)
        # Of numbers the copula knows nearly all, and the network is to know it, too; what labels
        # have to do with each other is less in the copula than in the rows.
        ordered_share = float(np.mean([is_ordered(p) for p in self.model.positions]))
        self.is_thorough = self.pretraining_steps > 0 and ordered_share >= THOROUGH_SHARE
        cooled = self.pretraining_steps if self.is_thorough else 0
        self.schedule = Schedule(self.pretraining_steps + steps, cooled)
        self.patience = max(3, math.ceil(PATIENCE_SHARE * epochs))
        self.model.reads_mixture = self.model.is_any_order and num_rows < FEW_ROWS
        self.model.sharpening = 0.0  # of a network that was trained before, too
        self.model.temperatures.fill_(1)
        self.optimizers = self._optimizers()
        self._start_biases()
        self.replica: nn.Module = self.model
        if self.rows.num_processes > 1:  # from here on all have the first one's weights
            # The maps of ordered tokens are unused where a table has no ordered column.
            self.replica = DistributedDataParallel(self.model, find_unused_parameters=True)
        self.average = AveragedModel(self.model, multi_avg_fn=_average)
        self.autocast = autocast_dtype(device)
        self.step = 0
        self.best: EpochRecord | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.started = time.monotonic()

    def _num_pretraining_steps(self, num_steps: int) -> int:
        """Steps before the first epoch, where the epochs may take `num_steps`."""
        is_pretrained = self.rows.num_rows in PRETRAINED_ROWS
        return round(PRETRAINING_SHARE * num_steps) if is_pretrained else 0

    def _pretrain(self) -> None:
        """Learn from rows of a Gaussian copula what a smooth model knows of few rows.

        There are as many of them as one likes, so that nothing is learned by heart, and the rows
        themselves have to teach the rest alone. Where most columns are ordered, batches have the
        size for so many rows, and the learning rate has come down before the rows themselves are
        seen.

        References:
            Huang et al., Catalytic prior distributions with application to generalized linear
            models, PNAS 117 (2020), whose rows of a simpler model are a prior, too.
        """
        if not self.pretraining_steps:
            return
        self._seed_noise(0)
        rng = np.random.default_rng([self.config.seed, self.rows.rank])
        rows = self._few_rows()
        drawn = torch.from_numpy(copula_rows(rows, self.model.positions, COPULA_ROWS, rng))
        batch_size = self.batch_size
        if self.is_thorough:
            auto = _auto_batch_size(COPULA_ROWS)
            batch_size = max(batch_size, min(self.config.batch_size or auto, auto))
        size = max(1, batch_size // self.rows.num_processes)
        self.model.train()
        sums = torch.zeros(4, device=self.model.device)
        parts, self.num_parts = self.num_parts, self._num_parts(batch_size)
        try:
            with map_on_threads(self.num_parts) as self.map:
                for _ in range(self.pretraining_steps):
                    chosen = torch.randint(COPULA_ROWS, (size,), generator=self.generator)
                    sums += self._train_step(drawn[chosen].to(self.model.device))
                record = self._record(0, sums, self.pretraining_steps)
        finally:
            self.num_parts = parts
        if record is not None:
            self._judge(record)

    def _few_rows(self) -> np.ndarray:
        """The rows to train on of all processes, where they are pretrained for, `(N, n)`."""
        rows = self.rows.some.cpu().numpy()
        return np.concatenate(from_all(rows)) if self.rows.num_processes > 1 else rows

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the maps between hidden vectors, AdamW for everything else."""
        hidden = [
            parameter
            for name, parameter in self.model.named_parameters()
            if name.startswith(HIDDEN) and parameter.ndim == 2 and min(parameter.shape) > 1
        ]
        rate = MUON_FACTOR * self.learning_rate
        group = {'params': hidden, 'peak': rate}
        muon = [Muon([group], rate, self.config.weight_decay)] if hidden else []
        return [self._adamw(hidden), *muon]

    def _adamw(self, others: Sequence[nn.Parameter] = ()) -> torch.optim.AdamW:
        """AdamW for all weights but `others`."""
        left = {id(parameter) for parameter in others}
        # Biases and norms are few, and the output biases are the columns' shares: neither decays.
        weights, biases = (
            [p for p in self.model.parameters() if (p.ndim > 1) is is_matrix and id(p) not in left]
            for is_matrix in (True, False)
        )
        rate, decay = self.learning_rate, self.config.weight_decay
        return torch.optim.AdamW(
            [
                {'params': weights, 'weight_decay': decay, 'peak': rate},
                {'params': biases, 'weight_decay': 0.0, 'peak': rate},
            ],
            lr=rate,
            fused=self.model.device.type in ('cpu', 'cuda'),
        )

    def _set_learning_rates(self) -> None:
        share = self.schedule.learning_rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = share * group['peak']

    def _num_parts(self, batch_size: int) -> int:
        """Parts of a batch that have a thread each."""
        # Dropout draws from torch's one global generator: threads would race for its numbers.
        is_divisible = self.rows.num_processes == 1 and self.model.config.dropout == 0
        if self.model.device.type != 'cpu' or not is_divisible:
            return 1
        return max(1, min(torch.get_num_threads(), batch_size // MIN_PART_ROWS))

    def _source(self, tokens: Tensor | Rows) -> Rows:
        """Where the rows come from; some of those in memory are held out."""
        if isinstance(tokens, Tensor):
            return RowsInMemory(tokens, self.generator, self.model.device)
        return tokens

    def _start_biases(self) -> None:
        self.model.start_from_marginals(self.rows.some)
        held_out, seen = self.rows.held_out, self.rows.some[:SCORED_ROWS]
        self.start_gap = self._independent_nats(held_out) - self._independent_nats(seen)

    @torch.no_grad()
    def _independent_nats(self, rows: Tensor) -> float:
        """Mean over rows of what independent columns, with the shares at the start, need."""
        model = self.model
        biases = torch.cat([b.log_softmax(0) for b in model.output_bias.split(model.sizes)])
        return -biases[rows + model.offsets].sum(1).mean().item()

    @property
    def averaged(self) -> TabularNVIB:
        """The network with the averaged weights."""
        return cast(TabularNVIB, self.average.module)

    def state(self) -> TrainerState:
        """What `fit` needs to go on from here, after a whole epoch: a copy, on the CPU."""
        moments = [optimizer.state_dict()['state'] for optimizer in self.optimizers]
        groups: dict[str, dict[str, Tensor]] = {
            'model': dict(self.model.named_parameters()),
            'average': dict(self.averaged.named_parameters()),
            'best': self.best_weights,
            'optimizer': {
                f'{o}.{i}.{k}': moment
                for o, states in enumerate(moments)
                for i, state in states.items()
                for k, moment in state.items()
            },
            'random': {
                'rows': self.generator.get_state(),
                'noise': self.noise.get_state(),
                'dropout': torch.random.get_rng_state(),
            },
        }
        tensors = {
            f'{group}.{name}': tensor.detach().to('cpu', copy=True)
            for group, members in groups.items()
            for name, tensor in members.items()
        }
        numbers = {
            'step': self.step,
            'num_averaged': int(self.average.n_averaged),
            'best': None if self.best is None else asdict(self.best),
            'history': [asdict(record) for record in self.history],
            'stop_reason': self.stop_reason,
            'num_parts': self.num_parts,
            'schedule': vars(self.schedule),
            'seconds': time.monotonic() - self.started,
        }
        return TrainerState(tensors, numbers)

    def _resume(self, state: TrainerState) -> None:
        groups: dict[str, dict[str, Tensor]] = {
            group: {} for group in ('model', 'average', 'best', 'optimizer', 'random')
        }
        for name, tensor in state.tensors.items():
            group, member = name.split('.', 1)
            groups[group][member] = tensor
        with torch.no_grad():
            for group, model in (('model', self.model), ('average', self.averaged)):
                for name, parameter in model.named_parameters():
                    parameter.copy_(groups[group][name])
        self.best_weights = {
            name: tensor.to(self.model.device) for name, tensor in groups['best'].items()
        }
        moments: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for name, tensor in groups['optimizer'].items():
            number, place, moment = name.split('.')
            moments[int(number)].setdefault(int(place), {})[moment] = tensor
        for optimizer, states in zip(self.optimizers, moments, strict=True):
            settings = optimizer.state_dict()['param_groups']
            optimizer.load_state_dict({'state': states, 'param_groups': settings})
        self.generator.set_state(groups['random']['rows'])
        self.noise.set_state(groups['random']['noise'])
        torch.random.set_rng_state(groups['random']['dropout'])
        numbers = state.numbers
        self.step, self.stop_reason = numbers['step'], numbers['stop_reason']
        self.num_parts = numbers['num_parts']  # each has noise of its own: as many as there were
        self.average.n_averaged.fill_(numbers['num_averaged'])
        self.best = None if numbers['best'] is None else EpochRecord(**numbers['best'])
        self.history = [EpochRecord(**record) for record in numbers['history']]
        vars(self.schedule).update(numbers['schedule'])
        self.started = time.monotonic() - numbers['seconds']

    def _seed_noise(self, stage: int) -> None:
        """Give every one of several processes noise of its own for pretraining (0) or an epoch.

        It is a seed of the stage, not a state that goes on: the first process's checkpoint then
        is enough for all.
        """
        if self.rows.num_processes == 1:
            return
        sequence = np.random.SeedSequence([self.config.seed, stage, self.rows.rank])
        seed = int(sequence.generate_state(1, np.uint64)[0]) >> 1
        self.noise.manual_seed(seed)
        torch.manual_seed(seed)  # dropout's

    def _batches(self) -> Iterator[Tensor]:
        epoch = len(self.history)
        self._seed_noise(epoch + 1)
        return self.rows.batches(epoch, self.local_batch_size)

    def _run_epoch(self) -> EpochRecord | None:
        """One pass over an epoch's rows; `None` if the loss stopped being a number."""
        self.model.train()
        sums = torch.zeros(4, device=self.model.device)
        num_batches = 0
        for batch in self._batches():
            sums += self._train_step(batch)
            num_batches += 1
            if self.step >= self.schedule.end:
                break
        record = self._record(len(self.history) + 1, sums, num_batches)
        if record is None:
            self._stop_on_nan()
            return None
        self.history.append(record)
        self._judge(record)
        return record

    def _record(self, epoch: int, sums: Tensor, num_batches: int) -> EpochRecord | None:
        """An epoch's losses and the held-out ones; `None` if they are no numbers."""
        means = self._sum_over_processes(sums) / (num_batches * self.rows.num_processes)
        loss, reconstruction, kl_g, kl_d = means.tolist()
        validation = self.validate()
        # The last step of an epoch may break the weights after its own loss was a number.
        if not math.isfinite(loss + validation['validation_reconstruction']):
            return None
        return EpochRecord(
            epoch=epoch,
            loss=loss,
            reconstruction=reconstruction,
            kl_gaussian=kl_g,
            kl_dirichlet=kl_d,
            **validation,
            learning_rate=self.optimizers[0].param_groups[0]['lr'],
            seconds=time.monotonic() - self.started,
        )

    def _train_step(self, batch: Tensor) -> Tensor:
        """One optimiser step; loss, reconstruction, L_G and L_D, detached, `(4,)`."""
        self._set_learning_rates()
        kl_weight = self.schedule.kl_weight(self.step)
        losses = self._set_gradients(batch, kl_weight)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        return losses

    def _set_gradients(self, batch: Tensor, kl_weight: float) -> Tensor:
        """Gradients of a batch's mean losses; the losses, detached, `(4,)`."""
        self.model.zero_grad(set_to_none=True)
        if self.num_parts == 1:
            losses, _ = self._forward(self.replica, batch, self.noise, kl_weight)
            losses[0].backward()
            return losses.detach()
        parameters = list(self.model.parameters())
        parts = batch.tensor_split(min(self.num_parts, len(batch)))
        # Every part has noise of its own, whichever thread comes first.
        seeds = torch.randint(2**62, (len(parts),), generator=self.noise).tolist()

        def differentiate(part: Tensor, seed: int) -> tuple[Tensor, Sequence[Tensor | None]]:
            noise = torch.Generator().manual_seed(seed)
            losses = self._forward(self.model, part, noise, kl_weight)[0] * len(part) / len(batch)
            return losses.detach(), torch.autograd.grad(losses[0], parameters, allow_unused=True)

        total = torch.zeros(4)
        for losses, gradients in self.map(differentiate, parts, seeds):
            total += losses
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = (
                        gradient if parameter.grad is None else parameter.grad.add_(gradient)
                    )
        return total

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return sum_over_processes(values) if self.rows.num_processes > 1 else values

    def _forward(
        self, model: nn.Module, batch: Tensor, noise: torch.Generator, kl_weight: float
    ) -> tuple[Tensor, ModelOutput]:
        """Loss, reconstruction, L_G and L_D, `(4,)`, and the output they are from."""
        shape, device = batch.shape, batch.device
        order = torch.rand(shape, generator=noise, device=device).argsort(1)
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = model(batch, order, noise)
        reconstruction = output.nll.sum(1).mean()
        kl_g, kl_d = output.kl_gaussian.mean(), output.kl_dirichlet.mean()
        loss = reconstruction + kl_weight * (
            self.lambda_gaussian * kl_g + self.lambda_dirichlet * kl_d
        )
        return torch.stack([loss, reconstruction, kl_g, kl_d]), output

    def validate(self) -> dict[str, float]:
        """Held-out loss of the averaged weights, with the same noise and orders every time."""
        rank, num_processes = self.rows.rank, self.rows.num_processes
        rows = _repeated(self.rows.held_out)
        sums = self._sum_over_processes(self._score(rows[rank::num_processes]))
        loss, reconstruction, nats, active = (sums / len(rows)).tolist()
        seen = _repeated(self.rows.some[:SCORED_ROWS])
        own = self._score(seen)[1] / len(seen) + self.start_gap
        expected = self._sum_over_processes(own).item() / num_processes
        return {
            'validation_loss': loss,
            'validation_reconstruction': reconstruction,
            'memorised': reconstruction - expected,
            'nats': nats,
            'active_components': active,
        }

    def _score(self, rows: Tensor) -> Tensor:
        """Sums over rows of loss, reconstruction, nats and active components, `(4,)`."""
        model = self.averaged.eval()

        def score(batch: Tensor, noise: torch.Generator) -> Tensor:
            losses, output = self._forward(model, batch, noise, 1.0)
            passed = torch.stack([output.nats.mean(), output.active_components.float().mean()])
            return torch.cat([losses[:2], passed]) * len(batch)

        return self._sum_over_rows(score, rows, self.config.seed + 2 + self.rows.rank)

    def _sum_over_rows(
        self, of_batch: Callable[[Tensor, torch.Generator], Tensor], rows: Tensor, seed: int
    ) -> Tensor:
        """Sum of what `of_batch` gives for batches of rows, each with noise of its own."""
        batches = rows.split(min(EVALUATION_BATCH, rows_at_once(self.model)))

        def compute(batch: Tensor, number: int) -> Tensor:
            noise = torch.Generator(self.model.device).manual_seed(seed + number * 2**16)
            with torch.no_grad():
                return of_batch(batch, noise)

        return torch.stack(list(self.map(compute, batches, range(len(batches))))).sum(0)

    def _judge(self, record: EpochRecord) -> None:
        """Keep the best averaged weights; stop when they have not improved for a while."""
        if self.best is None or self._cost(record) < self._cost(self.best):
            self.best = record
            self.best_weights = copy.deepcopy(self.averaged.state_dict())
        # While the KL weights rise the task itself changes: waiting starts later, within reason.
        annealing_steps = max(0, self.schedule.annealing - self.pretraining_steps)
        annealing_epochs = min(annealing_steps // self.steps_per_epoch, 2 * self.patience)
        if self.step >= self.schedule.end:
            self.stop_reason = 'the schedule has ended'
        elif (
            self.best is not None
            and record.epoch - max(self.best.epoch, annealing_epochs) >= self.patience
        ):
            self.stop_reason = 'the held-out loss stopped improving'

    def _cost(self, record: EpochRecord) -> float:
        """What the best weights have least of: held-out nats.

        With few rows half of the nats learned by heart count, too: training goes on as long as
        held-out rows gain more than a third of what rows trained on do. With fewer than 200 they
        count for more, as they say more of each row, and after thorough pretraining, since what
        the rows themselves still teach is then mostly that.
        """
        is_strict = self.pretraining_steps > 0 and self.rows.num_rows < FEW_ROWS
        strictness = max(1.0, MEMORISED_ROWS / self.rows.num_rows)
        if not is_strict:
            weight = 0.0
        elif self.is_thorough:
            weight = THOROUGH_WEIGHT * strictness**2
        else:
            weight = MEMORISED_WEIGHT * strictness
        return record.validation_reconstruction + weight * record.memorised

    def _stop_on_nan(self) -> None:
        if self.best is None:
            raise TrainingError(
                'Training stopped: the loss was no number in the first epoch. Lower '
                f'learning_rate (it was {self.learning_rate:.2g}).'
            )
        self.stop_reason = 'the loss was no number'
        warnings.warn(
            f'Training stopped in epoch {len(self.history) + 1}: the loss was no number. The '
            f'best weights, of epoch {self.best.epoch}, are kept. Lower learning_rate (it was '
            f'{self.learning_rate:.2g}) to train longer.',
            stacklevel=2,
        )

    def _finish(self) -> None:
        self.model.eval()
        if self.best is None:
            return
        for model in (self.model, self.averaged):
            model.load_state_dict(self.best_weights)
        if self.model.is_any_order:
            try:
                if self.rows.num_rows < FEW_ROWS:
                    self._temper()
                self._calibrate()
            except KeyboardInterrupt:
                self.stop_reason = 'interrupted'
                warnings.warn(
                    'Training was interrupted at its end; the model has the best weights, and the '
                    "shares of its columns' values may be some percent off.",
                    stacklevel=2,
                )
        if self.best.nats < COLLAPSED_NATS and self.model.num_columns > 1:
            warnings.warn(
                f'Only {self.best.nats:.2g} nats per row pass through the bottleneck: it '
                'has collapsed, and columns are generated nearly independently. Lower '
                f'lambda_gaussian (it was {self.lambda_gaussian:.2g}).',
                stacklevel=2,
            )

    @torch.no_grad()
    def _temper(self) -> None:
        """Make logits as sure of themselves as the held-out rows say (`likely_temperatures`).

        What is learned by heart makes them too sure, most where few columns are known and in a
        column of noise: each column's departures from its shares are divided by a temperature,
        which falls with a power of the number of known columns, to 1 at the lowest. Unless that
        power is 0, none are left where nothing is known.

        References:
            Guo et al., On calibration of modern neural networks, ICML 2017.
        """
        model, held_out = self.model, self.rows.held_out
        rows = _repeated(held_out)

        def score(batch: Tensor, noise: torch.Generator) -> Tensor:
            order = torch.rand(batch.shape, generator=noise, device=batch.device).argsort(1)
            nll = model.nll_at_temperatures(
                batch, order, noise, SHARPENINGS.tolist(), TEMPERATURES.tolist()
            )
            return nll.sum(2)

        rank, num_processes = self.rows.rank, self.rows.num_processes
        own = self._sum_over_rows(score, rows[rank::num_processes], self.config.seed + 3 + rank)
        nll = self._sum_over_processes(own) * len(held_out) / len(rows)
        sharpening, temperatures = likely_temperatures(nll.cpu().double().numpy())
        model.sharpening = sharpening
        model.temperatures.copy_(torch.from_numpy(temperatures))

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Move the output biases until generated rows have the table's shares in the mean.

        Gradient descent leaves each token's mean probability some percent off its share of the
        rows, and every step of generation builds on those before it. The logarithm of the ratio
        of both is added to the token's bias. After pretraining the shares are the copula's
        (`token_shares`).
        """
        model = self.model
        if self.pretraining_steps:
            columns = zip(self._few_rows().T, model.positions, strict=True)
            shares = torch.from_numpy(np.concatenate([token_shares(*column) for column in columns]))
            shares = shares.to(model.output_bias)
        else:
            some = self.rows.some[:MAX_CALIBRATION_ROWS]
            counts = (some + model.offsets).flatten().bincount(minlength=len(model.output_bias))
            shares = counts / len(some)
        fewest, most = CALIBRATION_ROWS
        num_rows = min(most, max(fewest, 4 * self.rows.num_rows)) // self.rows.num_processes
        size = min(rows_at_once(model), math.ceil(num_rows / CALIBRATION_CHUNKS))
        sizes = [min(size, num_rows - start) for start in range(0, num_rows, size)]

        def generate(rows: int, seed: int) -> Tensor:
            expected = torch.zeros_like(model.output_bias)
            noise = torch.Generator(model.device).manual_seed(seed)
            AnyOrderGenerator(model, rows).generate(rows, noise, expected=expected)
            return expected

        for number in range(CALIBRATION_PASSES):
            sequence = np.random.SeedSequence([self.config.seed, self.rows.rank, number])
            seeds = sequence.generate_state(len(sizes), np.uint64) >> np.uint64(1)
            expected = torch.stack(list(self.map(generate, sizes, seeds.tolist()))).sum(0)
            # Those of all processes, so that every one of them moves its biases alike.
            sums = self._sum_over_processes(torch.stack([expected, shares * num_rows]))
            model.output_bias.add_(((sums[1] + 1) / (sums[0] + 1)).log())


def likely_temperatures(nll: np.ndarray) -> tuple[float, np.ndarray]:
    r"""The most likely sharpening, and each column's most likely temperature, given some rows.

    Before the rows, $\ln T_c$ is normal around a mean that the columns share, with a standard
    deviation of 0.3, and that mean is normal around 0 with 0.4: a few rows hardly move columns
    apart, many decide each by itself. The sharpening is normal around 0.25 with 0.15.

    Args:
        nll: Negative log-likelihood of the rows at each of `SHARPENINGS` and `TEMPERATURES`, for
            each column, `(S, T, n)`.

    Returns:
        One of `SHARPENINGS`, and one of `TEMPERATURES` for each column, `(n,)`.
    """
    log_temperatures = np.log(TEMPERATURES)

    def cost(s: int, mean: float) -> np.ndarray:
        distance = (log_temperatures - mean)[:, None] / TEMPERATURE_SPREAD
        return nll[s] + distance**2 / 2

    def shared_cost(choice: tuple[int, float]) -> float:
        s, mean = choice
        distance = (SHARPENINGS[s] - SHARPENING_MEAN) / SHARPENING_SPREAD
        own = cost(s, mean).min(0).sum()
        return own + (mean / TEMPERATURE_MEAN_SPREAD) ** 2 / 2 + distance**2 / 2

    s, mean = min(product(range(len(SHARPENINGS)), log_temperatures), key=shared_cost)
    return float(SHARPENINGS[s]), TEMPERATURES[cost(s, mean).argmin(0)]


def _repeated(rows: Tensor) -> Tensor:
    """Few rows are scored under several column orders, so that noise does not choose."""
    return rows.repeat(max(1, math.ceil(SCORED_ROWS / len(rows))), 1)


def _average(
    averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int
) -> None:
    """Move the running averages towards the current weights."""
    torch._foreach_lerp_(
        list(averaged), list(current), 1 / (AVERAGED_SHARE * float(num_averaged) + 1)
    )


def _auto_batch_size(num_rows: int) -> int:
    """A power of two between 32 and 128, for about fifty steps an epoch on small tables."""
    return int(2 ** min(7, max(5, round(math.log2(max(1, num_rows / 50))))))


def _auto_learning_rate(num_rows: int) -> float:
    """0.002; half of it for 200 rows, whose noise is learned by heart at higher ones."""
    return 2e-3 * min(1.0, (num_rows / 2000) ** 0.3)


def _auto_lambda(num_rows: int) -> float:
    """0.05 for 30,000 rows; the fewer rows, the narrower the bottleneck, down to a limit."""
    return min(0.5, 0.05 * (30_000 / num_rows) ** 0.5)


def _auto_epochs(num_rows: int, steps_per_epoch: int) -> int:
    """Passes that make about 2,400 steps, and more on large tables as the root of their rows."""
    steps = 2400 * max(1.0, num_rows / 30_000) ** 0.5
    return max(3, round(steps / steps_per_epoch))
