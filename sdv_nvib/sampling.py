"""The fitted model: a trained network with its own random generators, giving rows of token ids.

Fifth in the flow: it keeps rows in chunks whose logits fit in memory, remembers posteriors for
single-pass generation, and moves between devices. No pandas.
"""

import copy
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdv_nvib.errors import ModelFileError
from sdv_nvib.generation import (
    AnyOrderGenerator,
    Steering,
    decode_once,
    rows_at_once,
    seeded_generator,
)
from sdv_nvib.model import NETWORK_VERSION, TabularNVIB
from sdv_nvib.nvib import Mixture, sample_mixture
from sdv_nvib.training import EpochRecord, choose_device, map_on_threads

__all__ = ['FittedModel']

REMEMBERED_POSTERIORS = 2048


class FittedModel:
    """A trained network and the state of its sampling.

    Pickling moves the weights to the CPU; loading moves them to the best device there is, so a
    model fitted on one device samples on another.

    Args:
        network: The trained network.
        history: What training recorded.
        enable_gpu: Whether a GPU may be used.
        posteriors: Mixtures of some training rows, where single-pass generation starts from them
            in place of the prior.

    Attributes:
        rng: Draws values inside bins, seeded together with the network's generator.
    """

    def __init__(
        self,
        network: TabularNVIB,
        history: Sequence[EpochRecord],
        enable_gpu: bool,
        posteriors: Mixture | None = None,
    ) -> None:
        self.network = network
        self.history = list(history)
        self.enable_gpu = enable_gpu
        self.posteriors = posteriors
        self.set_random_state(0)

    def set_random_state(self, random_state: int) -> None:
        """Seed the generators of tokens and of values inside bins."""
        self._generator = seeded_generator(self.network.device, random_state)
        self.rng = np.random.default_rng(random_state)

    def with_random_state(self, random_state: int) -> 'FittedModel':
        """The same network and posteriors, with generators of their own."""
        model = FittedModel(self.network, self.history, self.enable_gpu, self.posteriors)
        model.set_random_state(random_state)
        return model

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        device = self.network.device
        state['network'] = copy.deepcopy(self.network).to('cpu')
        state['_generator'] = self._generator.get_state()
        state['_generator_device'] = device.type
        state['_network_version'] = NETWORK_VERSION
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        received = state.pop('_network_version', 'none')
        if received != NETWORK_VERSION:
            raise ModelFileError(
                f'A pickled model must have a network of version {NETWORK_VERSION}, received '
                f'{received}. Load it with the version of sdv-nvib that wrote it, or fit again.'
            )
        generator_state, generator_device = state.pop('_generator'), state.pop('_generator_device')
        self.__dict__.update(state)
        device = choose_device(self.enable_gpu)
        self.network.to(device)
        self._generator = torch.Generator(device)
        if device.type == generator_device:
            self._generator.set_state(generator_state)
        else:  # The two kinds of generator have no common state: start a new sequence.
            self._generator.manual_seed(0)

    @property
    def chunk_rows(self) -> int:
        """Rows that are worked on at a time."""
        return rows_at_once(self.network)

    def sample(
        self, num_rows: int, known: np.ndarray | None = None, steering: Steering | None = None
    ) -> np.ndarray:
        """Draw rows.

        Args:
            num_rows: N.
            known: Token ids of given values, -1 where a value is to be drawn, `(N, n)`; any-order
                only.
            steering: How values are drawn, if not from the model's probabilities as they are.

        Returns:
            Token ids, `(N, n)` int64.
        """
        given = None if known is None else torch.from_numpy(known).to(self.network.device)
        starts = range(0, num_rows, self.chunk_rows)
        # Every chunk has a generator of its own, so that threads cannot change what comes out.
        seeds = torch.randint(
            2**62, (len(starts),), generator=self._generator, device=self.network.device
        )

        own = threading.local()  # each thread's memory for keys and values

        def draw(start: int, seed: int) -> Tensor:
            size = min(self.chunk_rows, num_rows - start)
            rows = None if given is None else given[start : start + size]
            generator = seeded_generator(self.network.device, seed)
            if not self.network.is_any_order:
                return self._sample_once(size, generator, steering).cpu()
            if not hasattr(own, 'generator'):
                own.generator = AnyOrderGenerator(self.network, min(self.chunk_rows, num_rows))
            return own.generator.generate(size, generator, known=rows, steering=steering).cpu()

        workers = torch.get_num_threads() if self.network.device.type == 'cpu' else 1
        with map_on_threads(workers) as map_chunks:
            chunks = list(map_chunks(draw, starts, seeds.tolist()))
        none = torch.empty(0, self.network.num_columns, dtype=torch.int64)
        return torch.cat([none, *chunks]).numpy()

    def _sample_once(
        self, size: int, generator: torch.Generator, steering: Steering | None
    ) -> Tensor:
        """Single-pass: F from the prior, or a remembered row's F, then one decode."""
        network = self.network
        if self.posteriors is None:
            sample = network.sample_latent(size, generator)
        else:
            posteriors = self.posteriors.to(network.device)
            rows = torch.randint(
                len(posteriors.mu), (size,), generator=generator, device=network.device
            )
            sample = sample_mixture(posteriors.select(rows), network.config.kappa, generator)
        return decode_once(network, sample, generator, steering)

    def reconstruct(self, tokens: np.ndarray, *, cut: bool = False) -> np.ndarray:
        """`TabularNVIB.reconstruct` in chunks, `(N, n)` to `(N, n)`."""
        rows = torch.from_numpy(tokens).to(self.network.device)
        chunks = [self.network.reconstruct(c, cut=cut).cpu() for c in rows.split(self.chunk_rows)]
        return torch.cat(chunks).numpy()

    def attention_weights(self, tokens: np.ndarray) -> np.ndarray:
        """Mean over rows of `TabularNVIB.attention_weights`, `(N, n)` to `(n, n + 1)`."""
        rows = torch.from_numpy(tokens).to(self.network.device)
        chunks = rows.split(self.chunk_rows)
        total = torch.stack([self.network.attention_weights(c).sum(0) for c in chunks]).sum(0)
        return (total / len(rows)).cpu().numpy()

    @torch.inference_mode()
    def log_likelihood(self, tokens: np.ndarray, num_orders: int) -> np.ndarray:
        """Mean over random column orders of ln p(column | columns before it).

        The sum over columns bounds ln p(row) from below. Any-order generation only. The same rows
        give the same numbers every time, and sampling does not advance.

        Args:
            tokens: Token ids, `(N, n)`.
            num_orders: Orders per row, and draws of F where draws are read.

        Returns:
            Nats, `(N, n)`.
        """
        chunks = []
        for rows, generator in self._chunks_of(tokens):
            orders = [self._random_order(rows, generator) for _ in range(num_orders)]
            terms = [self.network(rows, order, generator).nll for order in orders]
            chunks.append(-torch.stack(terms).mean(0).cpu())
        return torch.cat(chunks).numpy()

    @torch.inference_mode()
    def shared_information(self, tokens: np.ndarray) -> np.ndarray:
        """What each column tells of the others: ln p(others | column) − ln p(others).

        Both are read off one random order of the others, with the column before all of them and
        after all of them. Any-order generation only; deterministic, as `log_likelihood`.

        Args:
            tokens: Token ids, `(N, n)`.

        Returns:
            Nats, `(N, n)`; their mean over rows estimates each column's mutual information with
            the others.
        """
        chunks = []
        for rows, generator in self._chunks_of(tokens):
            shared = []
            for column in range(rows.shape[1]):
                order = self._random_order(rows, generator)
                others = order[order != column].view(len(rows), rows.shape[1] - 1)
                one = order.new_full((len(rows), 1), column)
                first, last = (
                    self.network(rows, torch.cat(parts, 1), generator).nll
                    for parts in ([one, others], [others, one])
                )
                gain = last - first
                shared.append(gain.sum(1) - gain[:, column])
            chunks.append(torch.stack(shared, 1).cpu())
        return torch.cat(chunks).numpy()

    @torch.inference_mode()
    def encode(self, tokens: np.ndarray, num_orders: int) -> Mixture:
        """F of rows without its prior component, one component per column in table order.

        In any-order mode a component knows the columns before its own: means, variances and
        pseudo-counts are those of the mixture over `num_orders` random orders.

        Args:
            tokens: Token ids, `(N, n)`.
            num_orders: Orders per row.

        Returns:
            Mixtures of n components, on the CPU.
        """
        chunks = []
        for rows, generator in self._chunks_of(tokens):
            means, variances, counts = [], [], []
            for _ in range(num_orders if self.network.is_any_order else 1):
                order = self._random_order(rows, generator)
                mixture = self.network.encode(rows.gather(1, order), order)
                place = order.argsort(1)
                mu, logvar = (
                    part[:, 1:].gather(1, place.unsqueeze(-1).expand(-1, -1, part.shape[-1]))
                    for part in (mixture.mu, mixture.logvar)
                )
                means.append(mu)
                variances.append(logvar.exp())
                counts.append(mixture.alpha[:, 1:].gather(1, place))
            within, alpha = (torch.stack(part).mean(0) for part in (variances, counts))
            between, mu = torch.var_mean(torch.stack(means), 0, correction=0)
            chunks.append((mu.cpu(), (within + between).log().cpu(), alpha.cpu()))
        return Mixture(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))

    def _chunks_of(self, tokens: np.ndarray) -> Iterator[tuple[Tensor, torch.Generator]]:
        """Rows in chunks, with a generator that is the same every time."""
        generator = torch.Generator(self.network.device).manual_seed(0)
        rows = torch.from_numpy(tokens).to(self.network.device)
        for chunk in rows.split(self.chunk_rows):
            yield chunk, generator

    @staticmethod
    def _random_order(rows: Tensor, generator: torch.Generator) -> Tensor:
        """A permutation of the columns for each row, `(B, n)`."""
        return torch.rand(rows.shape, generator=generator, device=rows.device).argsort(1)


@torch.inference_mode()
def remember_posteriors(network: TabularNVIB, tokens: Tensor) -> Mixture:
    """Mixtures of the first `REMEMBERED_POSTERIORS` of the given rows, on the CPU."""
    return network.encode(tokens[:REMEMBERED_POSTERIORS].to(network.device)).to('cpu')
