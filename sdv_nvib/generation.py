"""Rows of token ids drawn from the network, in both of its ways.

Fourth in the flow, after the network: any-order generation takes one step per column over cached
keys and values, single-pass generation is one decode. `TabularNVIB` says what is computed; here it
is computed for many rows and one query each, in the layout and order that take the least time: on
a CPU compiled, else by torch's operations over many rows.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdv_nvib.model import DecoderLayer, EncoderLayer, ModelConfig, TabularNVIB
from sdv_nvib.nvib import (
    LOG_ALPHA_RANGE,
    LOGVAR_RANGE,
    PRIOR_ALPHA,
    Mixture,
    MixtureSample,
    draw_log_gamma,
    prior_mixture,
    sample_mixture,
)

__all__ = [
    'AnyOrderGenerator',
    'Steering',
    'decode_once',
    'draw_tokens',
    'rows_at_once',
    'seeded_generator',
]

MAX_CHUNK_ROWS = 4096
CHUNK_UNIT = 64  # rows that compiled generation works on at a time
MAX_CHUNK_LOGITS = 2**23  # 32 MB of float32
MAX_CHUNK_CACHE = 2**24  # 64 MB of float32; with twice as much fewer reads hit the cache
MAX_NOISE = 2**20  # 4 MB of float32, drawn at once for compiled generation

GOLDEN_STEP = 2654435769  # 2**32 divided by the golden ratio

ROWS_PER_ORDER = 256  # more orders bring no more quality, and cost time
LEAST_ORDERS = 8  # few rows of one order would all share what the model gets wrong in it


def seeded_generator(device: torch.device, *entropy: int) -> torch.Generator:
    """A generator whose sequence all digits of some numbers decide.

    A seed that is handed to torch counts by its lowest 32 bits on a CPU: among a hundred thousand
    generators two would draw the same. There the whole state of the Mersenne Twister is filled, as
    NumPy fills it.

    Args:
        device: Of the generator.
        entropy: Whole numbers of at least 0.
    """
    generator, sequence = torch.Generator(device), np.random.SeedSequence(entropy)
    if device.type != 'cpu':
        return generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)
    key = np.random.MT19937(sequence).state['state']['key']
    state = generator.manual_seed(0).get_state()
    # A 64-bit number for each word, after the seed and two counters that say: all words are used.
    state[24 : 24 + 8 * len(key)] = torch.from_numpy(key.astype(np.uint64).view(np.uint8))
    return generator.set_state(state)


@dataclass(frozen=True)
class Steering:
    """How tokens are drawn, column by column.

    Attributes:
        temperature: What log-probabilities are divided by, positive; below 1 sharper.
        top_p: Share of the probability, in (0, 1], whose fewest most likely tokens are drawn from.
        excluded: A token that is never drawn, -1 for none.
    """

    temperature: tuple[float, ...]
    top_p: tuple[float, ...]
    excluded: tuple[int, ...]

    def apply(self, logits: Tensor, column: int) -> Tensor:
        """Steered logits of one column, `(B, V)` to the same."""
        logits = logits.float() / self.temperature[column]
        if self.excluded[column] >= 0:
            logits[:, self.excluded[column]] = -math.inf
        if self.top_p[column] < 1:
            ordered, places = logits.sort(descending=True)
            shares = ordered.softmax(-1)
            # A token stays where those before it do not make up the share yet: the first always.
            is_tail = shares.cumsum(-1) - shares >= self.top_p[column]
            logits = logits.masked_fill(is_tail.gather(1, places.argsort(1)), -math.inf)
        return logits


def draw_tokens(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One draw per row from unnormalised log-probabilities, `(B, V)` to `(B,)`.

    Each draw follows its row's probabilities; together the rows have their uniform numbers spread
    evenly over [0, 1), and so do those that are alike: rows in the order of their expected token
    have the numbers of a Weyl sequence, moved by a random distance. Few rows then tell more about
    the model than as many independent ones.

    References:
        L'Ecuyer, Lécot and Tuffin, Operations Research 56 (2008): array-RQMC.
    """
    num_rows, device = len(logits), logits.device
    cumulative = logits.float().softmax(-1).cumsum(-1)
    shuffled = torch.randperm(num_rows, generator=generator, device=device)  # among equal ones
    ascending = shuffled[cumulative.sum(-1)[shuffled].argsort(descending=True)]
    rank = torch.empty_like(ascending)
    rank[ascending] = torch.arange(num_rows, device=device)
    start = (torch.rand(1, generator=generator, device=device) * 2**24).long() * 2**8
    uniform = ((start + GOLDEN_STEP * rank) & 0xFFFFFFFF).float() / 2**32
    uniform = uniform.clamp_max(1 - 2**-24).unsqueeze(1)
    # Inverse transform sampling.
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn.squeeze(-1).clamp(max=logits.shape[-1] - 1)


def rows_at_once(network: TabularNVIB) -> int:
    """Rows whose logits, keys and values fit in memory together, whole tiles of them."""
    config = network.config
    memories = config.num_encoder_layers + (2 if network.reads_mixture else config.kappa)
    cache = 2 * memories * network.num_columns * config.d_model
    by_memory = min(MAX_CHUNK_LOGITS // max(network.sizes), MAX_CHUNK_CACHE // cache)
    return max(CHUNK_UNIT, min(MAX_CHUNK_ROWS, by_memory) // CHUNK_UNIT * CHUNK_UNIT)


@torch.inference_mode()
def decode_once(
    network: TabularNVIB,
    sample: MixtureSample,
    generator: torch.Generator,
    steering: Steering | None = None,
) -> Tensor:
    """Single-pass generation: every column from one sample of F, `(B, n)` token ids."""
    num_rows = sample.z.shape[0]
    order = torch.arange(network.num_columns, device=network.device).expand(num_rows, -1)
    hidden = network.decode(sample, order).unbind(1)
    logits = [
        functional.linear(h, *layer)
        for h, layer in zip(hidden, network.output_layers(), strict=True)
    ]
    if steering is not None:
        logits = [steering.apply(values, c) for c, values in enumerate(logits)]
    return torch.stack([draw_tokens(values, generator) for values in logits], 1)


class AnyOrderGenerator:
    """Any-order generation: one column after the other, each few rows in another order.

    Many orders average out what the model gets wrong in any one of them. A column's draw from F,
    where draws are read, is kept once made, and so are keys and values: each step encodes one new
    token per row and asks one query.

    The weights are those of the network when this object was made.

    Args:
        network: A network in any-order mode.
        max_rows: The most rows drawn at once.
    """

    @torch.inference_mode()
    def __init__(self, network: TabularNVIB, max_rows: int) -> None:
        self.network = network
        self.steps: _Tiles | _Steps
        self.steps = _Tiles(network) if _can_compile(network) else _Steps(network, max_rows)

    @torch.inference_mode()
    def generate(
        self,
        num_rows: int,
        generator: torch.Generator,
        *,
        known: Tensor | None = None,
        steering: Steering | None = None,
        expected: Tensor | None = None,
    ) -> Tensor:
        """Draw rows.

        Args:
            num_rows: B, at most `max_rows`.
            generator: Source of randomness, on the model's device.
            known: Token ids of values that are given, -1 where a value is to be drawn, `(B, n)`;
                each row may know other columns. They come first in the row's order.
            steering: How values are drawn, if not from the model's probabilities as they are.
            expected: How often each token is expected, `(V,)` for those of all columns: the
                probabilities that values are drawn from are added to it.

        Returns:
            Token ids in column order, `(B, n)`.
        """
        num_columns, device = self.network.num_columns, self.network.device
        if known is None:
            known = torch.full((num_rows, num_columns), -1, device=device)
        if num_rows == 0:
            return known
        num_orders = max(LEAST_ORDERS, math.ceil(num_rows / ROWS_PER_ORDER))
        blocks = torch.arange(num_rows, device=device) % num_orders
        places = torch.rand((num_orders, num_columns), generator=generator, device=device)
        order = (places[blocks] + (known < 0)).argsort(1)
        return self.steps.draw(known, order, generator, steering, expected)


def _can_compile(network: TabularNVIB) -> bool:
    """Whether there is a compiled function for what is asked: draws from F in float32, on a CPU."""
    is_float = network.column_query.dtype is torch.float32
    if network.device.type != 'cpu' or not is_float or network.reads_mixture:
        return False
    from sdv_nvib import kernels  # numba takes half a second, which `import sdv` need not

    return kernels.CAN_COMPILE


class _Tiles:
    """All steps of a few rows at a time, compiled: see `kernels`.

    Args:
        network: A network on a CPU.
    """

    def __init__(self, network: TabularNVIB) -> None:
        from sdv_nvib import kernels

        self.kernels = kernels
        self.sizes, self.shape = network.sizes, (network.config.kappa, network.nvib.p)
        reader = _SampleReader(network, 1)
        bottleneck, outputs = reader.bottleneck, reader.output_layers
        encoder = [_Layer(layer) for layer in network.encoder_layers]
        self.network = kernels.CompiledNetwork(
            nhead=network.config.nhead,
            kappa=network.config.kappa,
            offsets=np.cumsum([0, *network.sizes]),
            embedding=_array(_centred(network.token_embedding())),
            encoder=kernels.CompiledLayers(**_stacked(encoder)),
            encoder_key=_array(torch.stack([layer.key for layer in encoder])),
            encoder_value=_array(torch.stack([layer.value for layer in encoder])),
            bottleneck=kernels.CompiledBottleneck(
                moments=_array(bottleneck.weight.T),
                moments_bias=_array(bottleneck.bias),
                alpha=_array(torch.cat([bottleneck.first, bottleneck.second], 1)),
                alpha_bias=_array(bottleneck.constant),
                key=_array(reader.layers[0].key),
                value=_array(reader.layers[0].value),
                prior_log_alpha=np.float32(math.log(PRIOR_ALPHA)),
                log_std_range=np.array(LOGVAR_RANGE, np.float32) / 2,
                log_alpha_range=np.array(LOG_ALPHA_RANGE, np.float32),
            ),
            queries=_array(reader.queries.T),
            first_queries=_array(reader.first_queries.T),
            decoder=kernels.CompiledLayers(**_stacked(reader.layers)),
            output=_array(torch.cat([weight for weight, _ in outputs])),
            output_bias=_array(torch.cat([bias for _, bias in outputs])),
        )

    def draw(
        self,
        known: Tensor,
        order: Tensor,
        generator: torch.Generator,
        steering: Steering | None,
        expected: Tensor | None,
    ) -> Tensor:
        """As `AnyOrderGenerator.generate`, in the given order of the columns, `(B, n)`."""
        n = known.shape[1]
        if steering is None:
            steering = Steering((1.0,) * n, (1.0,) * n, (-1,) * n)
        totals = np.zeros(0 if expected is None else sum(self.sizes))
        # Rows of one order side by side, so that those of a tile ask for the same column: sorted by
        # a number that is the same for the same order, whatever digits of it overflow.
        key, together = (order * n ** torch.arange(n)).sum(1).sort(stable=True)
        group, size = key.unique_consecutive(return_inverse=True, return_counts=True)[1:]
        uniform = _stratified(group, size, n, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        tokens = torch.empty_like(known)
        weights = np.random.default_rng(seed)
        tile = self.kernels.TILE
        at_once = max(1, MAX_NOISE // (math.prod(self.shape) * n * tile)) * tile
        for rows, numbers in zip(together.split(at_once), uniform.split(at_once), strict=True):
            drawn = _in_tiles(known[rows], tile)
            self.kernels.draw_tiles(
                self.network,
                drawn,
                _in_tiles(order[rows], tile),
                int((known[rows] >= 0).sum(1).min()),
                torch.randn((len(drawn), n, *self.shape, tile), generator=generator).numpy(),
                _in_tiles(numbers, tile),
                weights,
                np.array(steering.temperature, np.float32),
                np.array(steering.top_p, np.float64),
                np.array(steering.excluded, np.int64),
                totals,
            )
            tokens[rows] = torch.from_numpy(drawn.swapaxes(1, 2).reshape(-1, n)[: len(rows)])
        if expected is not None:
            expected += torch.from_numpy(totals)
        return tokens


def _stratified(group: Tensor, size: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Latin hypercube samples: in every group of rows one number of a column in each equal part.

    Rows of one order have columns before it in common: they are more alike than all rows are.

    Args:
        group: Number of each row's group, ascending, `(B,)`.
        size: Rows of each group, `(G,)`.
        n: Columns.
        generator: Source of randomness.

    Returns:
        Numbers in [0, 1), `(B, n)`.

    References:
        McKay, Beckman and Conover, Technometrics 21 (1979).
    """
    keys = torch.rand((n, len(group)), generator=generator, dtype=torch.float64)
    shuffled = (group + keys).argsort(1)
    first = size.cumsum(0) - size
    rank = torch.arange(len(group)) - first[group]
    strata = torch.empty_like(shuffled).scatter_(1, shuffled, rank.expand(n, -1)).T
    within = torch.rand((len(group), n), generator=generator)
    return (strata + within) / size[group].unsqueeze(1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().copy(order='C')


def _stacked(layers: list['_Layer']) -> dict[str, np.ndarray]:
    """Weights of all layers by name, a leading dimension for the layers."""
    maps = ('query', 'out', 'first', 'second')
    weights = {name: torch.stack([getattr(layer, name) for layer in layers]) for name in maps}
    for name in maps:
        biases = [getattr(layer, f'{name}_bias').squeeze(1) for layer in layers]
        weights[f'{name}_bias'] = torch.stack(biases)
    return {name: _array(weight) for name, weight in weights.items()}


def _in_tiles(rows: Tensor, tile: int) -> np.ndarray:
    """Rows `(B, n)` as `(tiles, n, tile)`; zeros, which ask for nothing, fill the last tile up."""
    filled = functional.pad(rows, (0, 0, 0, -len(rows) % tile))
    return _array(filled.unflatten(0, (-1, tile)).transpose(1, 2))


class _Steps:
    """One step after the other for all rows, by torch's operations over many rows.

    Args:
        network: A network in any-order mode.
        max_rows: The most rows drawn at once.
    """

    def __init__(self, network: TabularNVIB, max_rows: int) -> None:
        self.network = network
        config = network.config
        length = network.num_columns
        self.embedding = _centred(network.token_embedding()).T.contiguous()
        self.encoder = [_Layer(layer) for layer in network.encoder_layers]
        self.seen = [layer.memory(length, max_rows) for layer in self.encoder]
        self.work = _Workspace(config, max_rows, self.embedding)
        self.reader: _MixtureReader | _SampleReader
        if network.reads_mixture:
            self.reader = _MixtureReader(network, max_rows)
        else:
            self.reader = _SampleReader(network, max_rows)

    def draw(
        self,
        known: Tensor,
        order: Tensor,
        generator: torch.Generator,
        steering: Steering | None,
        expected: Tensor | None,
    ) -> Tensor:
        """As `AnyOrderGenerator.generate`, in the given order of the columns, `(B, n)`."""
        num_rows, num_columns = known.shape
        num_known = int((known >= 0).sum(1).min())
        tokens = known.clone()
        for memory in self.seen:
            memory.clear(num_rows)
        self.work.clear(num_rows)
        self.reader.clear(num_rows, generator)
        for place in range(num_columns):
            column = order[:, place]
            if place >= num_known:
                self.reader.ask(column, self.work)
                self._draw_columns(column, tokens, generator, steering, expected)
            if place + 1 < num_columns:
                token = tokens.gather(1, column.unsqueeze(1)).squeeze(1)
                self._append_token(token + self.network.offsets[column], generator)
        return tokens

    def _append_token(self, token: Tensor, generator: torch.Generator) -> None:
        """Encode one more value per row, `(B,)` flat token ids, and add its component to F."""
        work = self.work
        torch.index_select(self.embedding, 1, token, out=work.x)
        for layer, memory in zip(self.encoder, self.seen, strict=True):
            work.normalise()
            memory.append(work.normed)
            layer.project(work.normed, work.query)
            memory.read(work.query, work.heads)
            layer.update(work)
        work.normalise()
        self.reader.append(work.normed, generator)

    def _draw_columns(
        self,
        column: Tensor,
        tokens: Tensor,
        generator: torch.Generator,
        steering: Steering | None,
        expected: Tensor | None,
    ) -> None:
        """Draw one value per row where it is not known yet: row b's of column `column[b]`."""
        network, num_columns = self.network, self.network.num_columns
        unknown = tokens.gather(1, column.unsqueeze(1)).squeeze(1) < 0
        asked = torch.where(unknown, column, num_columns)
        sizes = asked.bincount(minlength=num_columns + 1).tolist()
        rows_by_column = asked.argsort(stable=True)
        # One gather for all columns, of whose rows each then takes a slice.
        hidden = torch.index_select(self.work.normed, 1, rows_by_column, out=self.work.query)
        groups = zip(rows_by_column.split(sizes), hidden.split(sizes, 1), strict=True)
        for c, (rows, asking) in enumerate(groups):
            if c < num_columns and len(rows):
                logits = functional.linear(asking.T, *self.reader.output_layers[c])
                if steering is not None:
                    logits = steering.apply(logits, c)
                if expected is not None:
                    expected.split(network.sizes)[c].add_(logits.softmax(-1).sum(0))
                tokens[rows, c] = draw_tokens(logits, generator)


class _SampleReader:
    """The decoder over draws from F: its projections of each vector are kept.

    Args:
        network: Whose decoder this is.
        max_rows: The most rows at work.
    """

    def __init__(self, network: TabularNVIB, max_rows: int) -> None:
        self.attention = network.decoder_layers[0].attention
        self.bottleneck = _Bottleneck(network, max_rows)
        self.layers = [_Layer(layer) for layer in network.decoder_layers]
        self.output_layers = [
            _folded(network.decoder_norm, weight, bias) for weight, bias in network.output_layers()
        ]
        queries = _centred(network.column_query)
        self.queries = queries.T.contiguous()
        # All layers read F with the first one's keys and values.
        first, length = self.layers[0], network.num_columns * network.config.kappa
        self.memory = first.memory(length, max_rows)
        # The first layer's queries depend on the column alone.
        self.first_queries = first.project(functional.layer_norm(queries, queries.shape[1:]).T)

    def clear(self, num_rows: int, generator: torch.Generator) -> None:
        """Forget F but for its prior component, and take up as many rows."""
        self.memory.clear(num_rows)
        prior = prior_mixture(num_rows, self.bottleneck.p, self.queries)
        self._append(sample_mixture(prior, self.bottleneck.kappa, generator))

    def append(self, normed: Tensor, generator: torch.Generator) -> None:
        """Add a draw of the component that an encoded value gives, `(d_model, B)`, to F."""
        self._append(self.bottleneck.sample(normed, generator))

    def _append(self, sample: MixtureSample) -> None:
        biases = self.attention.key_bias(sample).unbind(1)
        for z, bias in zip(sample.z.unbind(1), biases, strict=True):
            self.memory.append(z.T, bias)

    def ask(self, column: Tensor, work: '_Workspace') -> None:
        """Leave the normalised hidden state of one query per row, `(B,)`, in `work.normed`."""
        torch.index_select(self.queries, 1, column, out=work.x)
        torch.index_select(self.first_queries, 1, column, out=work.query)
        for i, layer in enumerate(self.layers):
            if i > 0:
                work.normalise()
                layer.project(work.normed, work.query)
            self.memory.read(work.query, work.heads)
            layer.update(work)
        work.normalise()


class _MixtureReader:
    """The decoder over F itself, by evaluation attention; as `_SampleReader`, without draws.

    Args:
        network: Whose decoder this is.
        max_rows: The most rows at work.
    """

    def __init__(self, network: TabularNVIB, max_rows: int) -> None:
        self.network, self.p = network, network.nvib.p
        self.attention = network.decoder_layers[0].attention
        self.output_layers = network.output_layers()
        shape, like = (max_rows, network.num_columns), network.column_query
        self.keys = like.new_empty(*shape, 2 * self.p)
        self.bias = like.new_empty(shape)
        self.values = torch.empty_like(self.keys)

    def clear(self, num_rows: int, generator: torch.Generator) -> None:
        """Forget F but for its prior component, and take up as many rows."""
        self.num_rows, self.length = num_rows, 0
        self._append(prior_mixture(num_rows, self.p, self.keys))

    def append(self, normed: Tensor, generator: torch.Generator) -> None:
        """Add the component that an encoded value gives, `(d_model, B)`, to F."""
        norm = self.network.encoder_norm
        h = torch.addcmul(norm.bias, normed.T.contiguous(), norm.weight)
        self._append(self.network.nvib.components(h.unsqueeze(1)))

    def _append(self, component: Mixture) -> None:
        projected = self.attention.project_mixture(component)
        for kept, new in zip((self.keys, self.bias, self.values), projected, strict=True):
            kept[: self.num_rows, self.length] = new.squeeze(1)
        self.length += 1

    def ask(self, column: Tensor, work: '_Workspace') -> None:
        """Leave the normalised hidden state of one query per row, `(B,)`, in `work.normed`."""
        rows, places = slice(self.num_rows), slice(self.length)
        projected = self.keys[rows, places], self.bias[rows, places], self.values[rows, places]
        hidden = self.network.decode_projected(projected, column.unsqueeze(1))
        work.normed.copy_(hidden.squeeze(1).T)


class _Workspace:
    """What the rows at work need besides memories, the rows innermost, as `_Layer` explains.

    Memory is taken once and used for all rows drawn: the system clears fresh pages, which takes
    as long as working on them.

    Args:
        config: Sizes.
        max_rows: The most rows at work.
        like: A tensor of the wanted dtype and device.
    """

    def __init__(self, config: ModelConfig, max_rows: int, like: Tensor) -> None:
        d_model = config.d_model
        self.sizes = (d_model, d_model, d_model, d_model, config.dim_feedforward, 1)
        self.store = like.new_empty(sum(self.sizes) * max_rows)
        self.mean = like.new_full((1, d_model), 1 / d_model)

    def clear(self, num_rows: int) -> None:
        """Take up as many rows: views `(size, B)` of the memory."""
        size = sum(self.sizes)
        parts = self.store[: size * num_rows].view(size, num_rows).split(self.sizes)
        self.x, self.normed, self.query, self.heads, self.hidden, self.scale = parts

    def normalise(self) -> None:
        """Layer norm of `x` without gain and bias, into `normed`: its mean is zero."""
        torch.mul(self.x, self.x, out=self.normed)
        torch.mm(self.mean, self.normed, out=self.scale).add_(1e-5).rsqrt_()
        torch.mul(self.x, self.scale, out=self.normed)


class _Bottleneck:
    """The NVIB layer behind the encoder's norm, and draws from the components that it gives.

    Args:
        network: Whose bottleneck this is.
        max_rows: The most rows at work.
    """

    def __init__(self, network: TabularNVIB, max_rows: int) -> None:
        norm, nvib = network.encoder_norm, network.nvib
        self.kappa, self.p = network.config.kappa, nvib.p
        weight, bias = _folded(norm, nvib.mu_logvar.weight, nvib.mu_logvar.bias)
        # The standard deviation is exp(logvar / 2): what gives the log-variance is halved.
        half = torch.ones_like(bias)
        half[self.p :] = 0.5
        self.weight, self.bias = (weight * half.unsqueeze(1)).T, bias * half
        # ln alpha = w1 h + w2 h^2 + b, of h = g n + a, in powers of the normalised n.
        first, second = nvib.log_alpha.weight.view(2, -1)
        self.first = (norm.weight * (first + 2 * second * norm.bias)).unsqueeze(0)
        self.second = (norm.weight.square() * second).unsqueeze(0)
        self.constant = nvib.log_alpha.bias + norm.bias @ (first + second * norm.bias)
        self.moments = weight.new_empty(max_rows, 2 * self.p)
        self.vectors = weight.new_empty(max_rows, self.kappa, self.p)

    def sample(self, normed: Tensor, generator: torch.Generator) -> MixtureSample:
        """As `sample_mixture` of one component a row, from what the encoder's norm gives.

        Args:
            normed: Normalised vectors, without gain and bias, `(d_model, B)`.
            generator: Source of randomness.

        Returns:
            `kappa` weighted vectors a row, which the next call writes over.
        """
        num_rows = normed.shape[1]
        moments = torch.mm(normed.T, self.weight, out=self.moments[:num_rows]).add_(self.bias)
        mu, log_std = moments.unsqueeze(1).split(self.p, -1)
        std = log_std.clamp_(*(0.5 * limit for limit in LOGVAR_RANGE)).exp_()
        log_alpha = torch.mm(self.first, normed).addmm_(self.second, normed.square())
        alpha = log_alpha.add_(self.constant).clamp_(*LOG_ALPHA_RANGE).exp_().T
        noise = self.vectors[:num_rows].normal_(generator=generator)
        log_pi = draw_log_gamma((alpha / self.kappa).expand(-1, self.kappa), generator)
        return MixtureSample(torch.addcmul(mu, std, noise, out=noise), log_pi)


class _Memory:
    """Keys and values of what its rows may read, `(d_model, B)` each step, and reading them.

    For one query and a few keys per row, elementwise products over many rows take a fraction of
    the time of a fused attention kernel, which pays for every row.
    """

    def __init__(self, key: Tensor, value: Tensor, nhead: int, length: int, max_rows: int) -> None:
        self.key, self.value = key, value
        d_model = len(key)
        self.heads = (nhead, d_model // nhead)
        self.store = key.new_empty(2 * length * d_model * max_rows)
        self.biases = key.new_empty(length * max_rows)
        self.scratch = key.new_empty(2 * length * nhead * max_rows)

    def clear(self, num_rows: int) -> None:
        """Forget keys and values, and take up as many rows."""
        d_model = math.prod(self.heads)
        rows = max(num_rows, 1)
        length = self.biases.numel() // rows
        shape = (length, *self.heads, num_rows)
        half = len(self.store) // 2
        used = length * d_model * num_rows
        self.keys = self.store[:used].view(shape)
        self.values = self.store[half : half + used].view(shape)
        self.bias = self.biases[: length * num_rows].view(length, 1, num_rows)
        used = 2 * length * self.heads[0] * num_rows
        self.scores, self.weights = self.scratch[:used].view(2, length, self.heads[0], num_rows)
        self.length = 0

    def append(self, x: Tensor, bias: Tensor | None = None) -> None:
        """Store the key and value of one more vector per row.

        Args:
            x: Vectors, `(p, B)`.
            bias: What the key adds to every score, `(B,)`.
        """
        torch.mm(self.key, x, out=self.keys[self.length].flatten(0, 1))
        torch.mm(self.value, x, out=self.values[self.length].flatten(0, 1))
        if bias is None:
            self.bias[self.length].zero_()
        else:
            self.bias[self.length] = bias
        self.length += 1

    def read(self, query: Tensor, out: Tensor) -> None:
        """Attention of one scaled query per row over all keys, `(d_model, B)` to the same."""
        query, heads = query.unflatten(0, self.heads), out.unflatten(0, self.heads)
        keys, scores = self.keys[: self.length], self.scores[: self.length]
        # One pass over the keys and no product of their size, as a product and a sum would have.
        start = self.bias[: self.length]
        for q, k in zip(query.unbind(1), keys.unbind(2), strict=True):
            start = torch.addcmul(start, q, k, out=scores)
        weights = torch.softmax(scores, 0, out=self.weights[: self.length]).unsqueeze(2).unbind(0)
        torch.mul(weights[0], self.values[0], out=heads)
        for weight, value in zip(weights[1:], self.values[1 : self.length].unbind(0), strict=True):
            heads.addcmul_(weight, value)


class _Layer:
    """A layer of the network for one query per row, which reads a memory.

    The rows are the innermost dimension, `(d_model, B)`, so that nothing is moved between products
    of matrices.

    A layer norm is linear up to one number per row: gain and bias are folded into the linear map
    behind it. The mean it removes is removed from whatever is added to the residual stream, which
    no layer reads in any other way.
    """

    def __init__(self, layer: EncoderLayer | DecoderLayer) -> None:
        if isinstance(layer, EncoderLayer):
            nhead, out = layer.nhead, layer.out
            weight, bias = _folded(layer.norm1, layer.qkv.weight, layer.qkv.bias)
            query, self.key, self.value = weight.chunk(3)
            # A key's bias changes no softmax. The weights sum to one: a value's bias is added once.
            query_bias, _, value_bias = bias.chunk(3)
            out_bias = out.bias + out.weight @ value_bias
        else:
            attention = layer.attention
            nhead, out = attention.nhead, attention.out
            query, query_bias = _folded(layer.norm1, attention.query.weight, attention.query.bias)
            self.key, self.value = attention.key.weight, attention.value.weight
            out_bias = out.bias
        self.nhead = nhead
        scale = math.sqrt(nhead / len(query))
        self.query, self.query_bias = query * scale, (query_bias * scale).unsqueeze(1)
        self.out, self.out_bias = _centred(out.weight, 0), _centred(out_bias, 0).unsqueeze(1)
        first, _, second = cast(tuple[nn.Linear, nn.Module, nn.Linear], tuple(layer.feedforward))
        self.first, first_bias = _folded(layer.norm2, first.weight, first.bias)
        self.first_bias = first_bias.unsqueeze(1)
        self.second, self.second_bias = _centred(second.weight, 0), _centred(second.bias, 0)
        self.second_bias = self.second_bias.unsqueeze(1)

    def memory(self, length: int, max_rows: int) -> _Memory:
        """A memory for this layer's keys and values of `length` vectors per row."""
        return _Memory(self.key, self.value, self.nhead, length, max_rows)

    def project(self, normed: Tensor, out: Tensor | None = None) -> Tensor:
        """Scaled queries from normalised vectors, both `(d_model, B)`."""
        return torch.mm(self.query, normed, out=out).add_(self.query_bias)

    def update(self, work: _Workspace) -> None:
        """Add the layer's residual branches to `x`, given what the heads have read."""
        work.x.addmm_(self.out, work.heads).add_(self.out_bias)
        work.normalise()
        torch.mm(self.first, work.normed, out=work.hidden).add_(self.first_bias)
        work.x.addmm_(self.second, torch.ops.aten.gelu_(work.hidden)).add_(self.second_bias)


def _centred(x: Tensor, dim: int = -1) -> Tensor:
    return x - x.mean(dim, keepdim=True)


def _folded(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear map with the gain and bias of the layer norm before it."""
    return weight * norm.weight, bias + weight @ norm.bias
