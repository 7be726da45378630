"""Differentially private training: DP-SGD with Poisson sampling, accounted by Opacus.

Beside training in the flow: the same loop, with each row's gradient clipped, Gaussian noise on
their sum, and nothing else taken from the rows: no held-out rows, no losses, no choice of the best
weights. Opacus' own gradient hooks see the weights of modules alone and this network uses many of
them by hand (token tables, column queries, projections with a bias dimension), so the gradients of
single rows are `torch.func`'s, and Opacus does the accounting.
"""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdv_nvib.errors import InvalidParameterError
from sdv_nvib.generation import seeded_generator
from sdv_nvib.training import EpochRecord, Rows, RowsInMemory, Trainer

__all__ = ['PrivacyGuarantee', 'PrivateTrainer', 'clipped_sum', 'plan']

MAX_GRAD_NORM = 1.0
MAX_GRADIENTS = 2**25  # in memory together: 128 MB of float32
MAX_ROWS_AT_ONCE = 512
AUTO_EPOCHS = 20
MARGINAL_SHARE = 0.3  # of epsilon; as epsilons of Gaussian noise add by their squares, 5 % of it
MAX_NOISE_MULTIPLIER = 1e4
ORDERS = [*range(2, 64), 80, 96, 128, 192, 256, 384, 512]  # whole: hundreds of times as fast


@dataclass(frozen=True)
class PrivacyGuarantee:
    """What the released model guarantees to each row, and the accounting that says so.

    Two tables that differ by one row more or less give models whose distributions differ by at
    most a factor e^epsilon, but for a probability delta.

    Attributes:
        epsilon: Spent, for `delta`.
        delta: As asked for.
        noise_multiplier: Standard deviation of the noise on a sum of clipped gradients, in units
            of `max_grad_norm`.
        sample_rate: Probability of each row to be in a batch.
        steps: Noisy steps taken.
        max_grad_norm: Largest norm of one row's gradient.
        marginal_noise_multiplier: Standard deviation of the noise on the counts that the output
            biases start from, in units of the norm of one row's counts.
        accountant: Who adds up.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    marginal_noise_multiplier: float
    accountant: str


def spent(delta: float, *mechanisms: tuple[float, float, int]) -> float:
    """Epsilon of mechanisms one after the other, by Opacus' accountant of Rényi divergences.

    Args:
        delta: Probability that the bound may fail with.
        mechanisms: Noise multiplier, sample rate and number of steps of each.

    References:
        Mironov, Talwar and Zhang, Rényi Differential Privacy of the Sampled Gaussian Mechanism,
        arXiv 1908.10530.
    """
    accountant = _new_accountant()
    accountant.history = [one for one in mechanisms if one[2]]
    return float(accountant.get_epsilon(delta, alphas=ORDERS)) if accountant.history else 0.0


def _new_accountant() -> Any:
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise InvalidParameterError(
            "target_epsilon needs Opacus, which is not installed. Run pip install 'sdv-nvib[dp]'."
        ) from error
    return RDPAccountant()


def plan(epsilon: float, delta: float, sample_rate: float, steps: int) -> tuple[float, float]:
    """Noise multipliers of the counts and of the steps that together spend epsilon.

    Raises:
        InvalidParameterError: No reasonable noise is enough.
    """

    def least(target: float, *before: tuple[float, float, int], rate: float, count: int) -> float:
        low, high = 0.0, 1.0
        while spent(delta, *before, (high, rate, count)) > target:
            low, high = high, 2 * high
            if high > MAX_NOISE_MULTIPLIER:
                raise InvalidParameterError(
                    f'target_epsilon={epsilon} with target_delta={delta} cannot be met by {steps} '
                    f'steps at sample rate {sample_rate:.3g}. Raise it, or lower epochs.'
                )
        while high - low > 0.005 * high:
            middle = (low + high) / 2
            is_enough = middle > 0.05 and spent(delta, *before, (middle, rate, count)) <= target
            low, high = (low, middle) if is_enough else (middle, high)
        return high

    counts = least(MARGINAL_SHARE * epsilon, rate=1.0, count=1)
    return counts, least(epsilon, (counts, 1.0, 1), rate=sample_rate, count=steps)


def clipped_sum(gradients: Mapping[str, Tensor], max_norm: float) -> dict[str, Tensor]:
    """Sum over rows of their gradients, each scaled down to a norm of at most `max_norm`.

    A row whose gradient is no number counts as zero: no row may break the sum.

    Args:
        gradients: Name of each weight to its gradients, `(B, ...)`.
        max_norm: Largest norm of one row's gradients together.

    Returns:
        Name of each weight to the sum, `(...)`.
    """
    squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
    norms = torch.stack(squares).sum(0).sqrt()
    is_number = norms.isfinite()
    # A little less than the bound, so that rounding cannot pass it.
    factors = ((1 - 1e-5) * max_norm / norms.clamp_min(1e-12)).clamp_max(1.0)
    factors = factors.where(is_number, 0.0)
    return {
        name: torch.tensordot(factors, g if is_number.all() else g.nan_to_num(0.0, 0.0, 0.0), 1)
        for name, g in gradients.items()
    }


@dataclass
class PrivateTrainer(Trainer):
    """Fits a model by DP-SGD; the history stays empty, since losses are taken from the rows.

    Number of rows and vocabulary count as public. Everything random in the fit has to stay secret,
    the latent noise too: `rng` and `config.seed` must come from the system's entropy and be
    forgotten. `epochs` passes over the rows take place on average, `batch_size` rows in a batch.

    Attributes:
        rng: Source of the noise and of the choice of rows. NumPy's, since torch's generator of the
            CPU takes 32 bits of a seed, few enough to try.
        epsilon: What the fit may spend.
        delta: Probability that the bound may fail with.

    References:
        Abadi et al., Deep Learning with Differential Privacy, CCS 2016, arXiv 1607.00133.
    """

    rng: np.random.Generator = field(kw_only=True)
    epsilon: float = field(kw_only=True)
    delta: float = field(kw_only=True)

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """What the steps taken so far have spent."""
        mechanisms = (
            (self.marginal_noise_multiplier, 1.0, 1),
            (self.noise_multiplier, self.sample_rate, self.step),
        )
        return PrivacyGuarantee(
            epsilon=spent(self.delta, *mechanisms),
            delta=self.delta,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.step,
            max_grad_norm=MAX_GRAD_NORM,
            marginal_noise_multiplier=self.marginal_noise_multiplier,
            accountant='opacus.accountants.RDPAccountant',
        )

    def _prepare(self, tokens: Tensor | Rows) -> None:
        num_rows = len(cast(Tensor, tokens))
        if self.delta >= 1 / num_rows:
            raise InvalidParameterError(
                f'target_delta must be below one in the number of rows, 1/{num_rows}: otherwise '
                f'giving whole rows away could meet it. Received {self.delta}.'
            )
        self.config = replace(
            self.config,
            batch_size=self.config.batch_size or _auto_batch_size(num_rows),
            epochs=self.config.epochs or AUTO_EPOCHS,
        )
        super()._prepare(tokens)
        self.noise = seeded_generator(self.model.device, *self.rng.integers(2**63, size=2).tolist())
        self.model.reads_mixture = False  # a gain not measured under this noise

    def _num_parts(self, batch_size: int) -> int:
        """One: the rows of a batch are differentiated together, with all threads of torch."""
        return 1

    def _source(self, tokens: Tensor | Rows) -> Rows:
        """Nothing is held out: what held-out rows chose would be told by the model."""
        return _AllRows(cast(Tensor, tokens).to(self.model.device))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW alone: Muon gives every direction of a gradient the same length, noise as well."""
        return [self._adamw()]

    def _num_pretraining_steps(self, num_steps: int) -> int:
        """None: the copula is fitted to the rows."""
        return 0

    def _start_biases(self) -> None:
        """Plan the noise, and start from noisy frequencies; those within the noise count as one."""
        self.sample_rate = self.batch_size / len(self.rows.some)
        self.marginal_noise_multiplier, self.noise_multiplier = plan(
            self.epsilon, self.delta, self.sample_rate, self.schedule.end
        )
        counts, std = self._noisy_counts()
        with torch.no_grad():
            shares = counts.where(counts > 2 * std, 1.0) / len(self.rows.some)
            self.model.output_bias.copy_(shares.log())

    def _noisy_counts(self) -> tuple[Tensor, float]:
        """How many rows have each token, `(V,)`, with noise, and the noise's standard deviation.

        One row changes one count of each column: the norm of its counts is the root of their
        number.
        """
        flat = (self.rows.some + self.model.offsets).flatten()
        counts = torch.bincount(flat, minlength=len(self.model.output_bias)).float()
        std = self.marginal_noise_multiplier * math.sqrt(self.model.num_columns)
        return counts + std * self._normal(counts), std

    def _normal(self, like: Tensor) -> Tensor:
        draw = self.rng.standard_normal(tuple(like.shape), dtype=np.float32)
        return torch.from_numpy(draw).to(like.device)

    def _batches(self) -> Iterator[Tensor]:
        """Every row by itself with the same probability: a batch may be of any size."""
        num_rows = len(self.rows.some)
        for _ in range(self.steps_per_epoch):
            is_in = torch.from_numpy(self.rng.random(num_rows) < self.sample_rate)
            yield self.rows.some[is_in.to(self.rows.some.device)]

    def _run_epoch(self) -> EpochRecord | None:
        self.model.train()
        for batch in self._batches():
            self._train_step(batch)
        if self.step >= self.schedule.end:
            self.stop_reason = 'the schedule has ended'
        unknown = dict.fromkeys(EpochRecord.__dataclass_fields__, math.nan)
        record = EpochRecord(**unknown)  # type: ignore[arg-type]
        return replace(
            record,
            epoch=self.step // self.steps_per_epoch,
            learning_rate=self.optimizers[0].param_groups[0]['lr'],
            seconds=time.monotonic() - self.started,
        )

    def _train_step(self, batch: Tensor) -> Tensor:
        """One noisy step; its losses, which nobody may see, are not returned."""
        self._set_learning_rates()
        sums = self._clipped_gradients(batch, self.schedule.kl_weight(self.step))
        std = self.noise_multiplier * MAX_GRAD_NORM
        for name, parameter in self.model.named_parameters():
            # Divided by the expected size of the batch: its true size is not public.
            parameter.grad = (sums[name] + std * self._normal(parameter)) / self.batch_size
        self.step += 1  # counted first: an interrupted step counts as taken
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)
        return torch.empty(0)

    def _clipped_gradients(self, batch: Tensor, kl_weight: float) -> dict[str, Tensor]:
        """Sum over a batch of the clipped gradients of its rows."""
        weights = {name: weight.detach() for name, weight in self.model.named_parameters()}

        def loss(weights: dict[str, Tensor], row: Tensor, order: Tensor) -> Tensor:
            output = functional_call(self.model, weights, (row[None], order[None], self.noise))
            bottleneck = (
                self.lambda_gaussian * output.kl_gaussian
                + self.lambda_dirichlet * output.kl_dirichlet
            )
            return (output.nll.sum(1) + kl_weight * bottleneck).squeeze(0)

        gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness='different')
        sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        num_weights = sum(weight.numel() for weight in weights.values())
        rows_at_once = max(1, min(MAX_ROWS_AT_ONCE, MAX_GRADIENTS // num_weights))
        # The other kernels have no rule for vmap, and the Gamma draws' gradient is slow without.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='There is a performance drop')
            for rows in batch.split(rows_at_once) if len(batch) else ():
                order = torch.rand(rows.shape, generator=self.noise, device=rows.device).argsort(1)
                clipped = clipped_sum(gradients(weights, rows, order), MAX_GRAD_NORM)
                for name, part in clipped.items():
                    sums[name] += part
        return sums

    def _finish(self) -> None:
        """The averaged weights of the last step are the model's: all are equally private."""
        if self.step:
            self.model.load_state_dict(self.averaged.state_dict())
        self.model.eval()


class _AllRows(RowsInMemory):
    """Rows in memory, none of them held out."""

    def __init__(self, tokens: Tensor) -> None:
        self.some, self.held_out = tokens, tokens[:0]
        self.num_rows = self.epoch_rows = len(tokens)


def _auto_batch_size(num_rows: int) -> int:
    """About a thirtieth of the rows: in large batches the noise is less against the sum."""
    return min(num_rows, max(64, 2 ** round(math.log2(max(1.0, num_rows / 30)))))
