"""The fitted model: a trained network with its own random generators, giving rows of token ids.

Fifth in the flow: it keeps rows in chunks whose logits fit in memory, remembers posteriors for
single-pass generation, and moves between devices. No pandas.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdv_nvib.model import TabularNVIB
from sdv_nvib.nvib import Mixture, sample_mixture
from sdv_nvib.training import EpochRecord, choose_device

__all__ = ['FittedModel']

MAX_CHUNK_ROWS = 2048
MAX_CHUNK_LOGITS = 2**23  # 32 MB of float32
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
        self._generator = torch.Generator(self.network.device).manual_seed(random_state)
        self.rng = np.random.default_rng(random_state)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        device = self.network.device
        state['network'] = copy.deepcopy(self.network).to('cpu')
        state['_generator'] = self._generator.get_state()
        state['_generator_device'] = device.type
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
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
        """Rows whose logits of the largest vocabulary fit in memory together."""
        return max(1, min(MAX_CHUNK_ROWS, MAX_CHUNK_LOGITS // max(self.network.sizes)))

    def sample(self, num_rows: int, known: np.ndarray | None = None) -> np.ndarray:
        """Draw rows.

        Args:
            num_rows: N.
            known: Token ids of given values, -1 where a value is to be drawn, `(N, n)`; any-order
                only.

        Returns:
            Token ids, `(N, n)` int64.
        """
        given = None if known is None else torch.from_numpy(known).to(self.network.device)
        starts = range(0, num_rows, self.chunk_rows)
        # Every chunk has a generator of its own, so that threads cannot change what comes out.
        seeds = torch.randint(
            2**62, (len(starts),), generator=self._generator, device=self.network.device
        )

        def draw(start: int, seed: int) -> Tensor:
            size = min(self.chunk_rows, num_rows - start)
            rows = None if given is None else given[start : start + size]
            generator = torch.Generator(self.network.device).manual_seed(seed)
            return self._sample_chunk(size, generator, rows).cpu()

        with _one_thread_each(self.network.device) as workers:
            chunks = list(workers.map(draw, starts, seeds.tolist()))
        none = torch.empty(0, self.network.num_columns, dtype=torch.int64)
        return torch.cat([none, *chunks]).numpy()

    def _sample_chunk(self, size: int, generator: torch.Generator, known: Tensor | None) -> Tensor:
        network = self.network
        if network.is_any_order:
            return network.generate(size, generator, known=known)
        # Single-pass: F from the prior, or a remembered row's F, then one decode.
        if self.posteriors is None:
            sample = network.sample_latent(size, generator)
        else:
            posteriors = self.posteriors.to(network.device)
            rows = torch.randint(
                len(posteriors.mu), (size,), generator=generator, device=network.device
            )
            sample = sample_mixture(posteriors.select(rows), network.config.kappa, generator)
        return network.decode_once(sample, generator)

    def reconstruct(self, tokens: np.ndarray, *, cut: bool = False) -> np.ndarray:
        """`TabularNVIB.reconstruct` in chunks, `(N, n)` to `(N, n)`."""
        rows = torch.from_numpy(tokens).to(self.network.device)
        chunks = [self.network.reconstruct(c, cut=cut).cpu() for c in rows.split(self.chunk_rows)]
        return torch.cat(chunks).numpy()

    @torch.inference_mode()
    def row_nats(self, tokens: np.ndarray, *, repeats: int = 4, seed: int = 0) -> np.ndarray:
        """Reconstruction of each row in nats, a bound on its negative log-likelihood.

        Args:
            tokens: Token ids, `(N, n)`.
            repeats: Draws of the column order and of F to average.
            seed: Seed of these draws.

        Returns:
            `(N,)`.
        """
        device = self.network.device
        generator = torch.Generator(device).manual_seed(seed)
        sums = []
        for rows in torch.from_numpy(tokens).to(device).split(self.chunk_rows):
            total = torch.zeros(len(rows), device=device)
            for _ in range(repeats):
                order = torch.rand(rows.shape, generator=generator, device=device).argsort(1)
                total += self.network(rows, order, generator).nll.sum(1)
            sums.append(total.cpu())
        return (torch.cat([torch.empty(0), *sums]) / repeats).numpy()


@contextmanager
def _one_thread_each(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Workers for independent chunks: on the CPU as many as torch has threads, each with one.

    The products of one chunk are too small to be worth dividing; whole chunks divide evenly.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads if device.type == 'cpu' else 1) as workers:
        try:
            torch.set_num_threads(1)
            yield workers
        finally:
            torch.set_num_threads(threads)


@torch.inference_mode()
def remember_posteriors(network: TabularNVIB, tokens: Tensor) -> Mixture:
    """Mixtures of the first `REMEMBERED_POSTERIORS` of the given rows, on the CPU."""
    return network.encode(tokens[:REMEMBERED_POSTERIORS].to(network.device)).to('cpu')
