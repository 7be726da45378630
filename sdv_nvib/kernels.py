"""Any-order generation compiled for the processor at hand: few rows at a time, all of the network.

Below the network, knowing arrays alone. A tile of rows goes through all steps, and the keys and
values of a table of some 20 columns stay in the processor's cache, from which operations over many
rows would drive them each time; products of matrices keep their sums in vector registers. Compiled
when it is first called, in some fifteen seconds, and kept on disk.

References:
    Goto and van de Geijn, Anatomy of high-performance matrix multiplication, ACM TOMS 34 (2008).
"""

import math
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    'CAN_COMPILE',
    'TILE',
    'CompiledBottleneck',
    'CompiledLayers',
    'CompiledNetwork',
    'draw_tiles',
]

# Unless the environment variable NUMBA_DISABLE_JIT is set.
CAN_COMPILE = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]

TILE = 64  # rows; a multiple of what the registers below hold

# Sums of a block of outputs fill the registers: outputs, vectors of rows for each, floats of one.
BLOCK = 4
VECTORS, LANES = (4, 16) if get_host_cpu_features().get('avx512f') else (2, 8)

VECTOR = ir.VectorType(ir.FloatType(), LANES)
INTEGER = ir.IntType(32)

OPTIONS: dict[str, Any] = {'nogil': True, 'fastmath': {'contract'}, 'error_model': 'numpy'}


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Part of what is compiled with the function that calls it."""
    return numba.njit(**OPTIONS)(function)


class _Kept:
    """A function compiled when it is first called, and kept on disk for later processes.

    Where it cannot be kept, or what was kept is damaged, a warning says so and it is compiled for
    this process alone.
    """

    FAILURES = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)

    def __init__(self, function: Callable[..., None]) -> None:
        self.__doc__ = function.__doc__
        self._function = function
        self._lock = threading.Lock()
        self._compiled: Any = None
        self._is_kept = True

    def __call__(self, *args: Any) -> None:
        was_kept = self._is_kept
        try:
            self._prepared()(*args)
        except self.FAILURES as error:
            # Reading and writing the file come before anything is drawn.
            if not was_kept:
                raise
            with self._lock:  # of several threads the first compiles
                if self._is_kept:
                    self._is_kept, self._compiled = False, _compile(self._function)
                    self._warn(error)
            self._compiled(*args)

    def _warn(self, error: Exception) -> None:
        warnings.warn(
            f'The compiled function could not be read from or written to disk ({error!r}): every '
            'process compiles it anew, which takes some 15 s. Set NUMBA_CACHE_DIR to a folder that '
            'can be written to, or empty the one that it names.',
            stacklevel=3,
        )

    def _prepared(self) -> Any:
        with self._lock:
            if self._compiled is None:
                self._compiled = numba.njit(cache=True, **OPTIONS)(self._function)
            return self._compiled


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that writes LLVM's instructions, called without its typing context."""
    return intrinsic(function)


def _data(context: Any, builder: Any, signature: Any, args: Any, place: int) -> Any:
    """Pointer to the first element of an array argument."""
    return context.make_array(signature.args[place])(context, builder, args[place]).data


def _vector_at(builder: Any, pointer: Any, offset: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [offset]), VECTOR.as_pointer())


def _load(builder: Any, pointer: Any, offset: Any) -> Any:
    return builder.load(_vector_at(builder, pointer, offset), align=4)


def _store(builder: Any, value: Any, pointer: Any, offset: Any) -> None:
    builder.store(value, _vector_at(builder, pointer, offset), align=4)


def _load_everywhere(builder: Any, pointer: Any, offset: Any) -> Any:
    """One number in all places of a vector."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    number = builder.load(builder.gep(pointer, [offset]))
    vector = builder.insert_element(undefined, number, ir.Constant(INTEGER, 0))
    first = ir.Constant(ir.VectorType(INTEGER, LANES), [0] * LANES)
    return builder.shuffle_vector(vector, undefined, first)


def _add_product(builder: Any, total: Any, left: Any, right: Any) -> None:
    product = builder.fmul(left, right, flags=('contract',))
    builder.store(builder.fadd(builder.load(total), product, flags=('contract',)), total)


def _multiply_block(outputs: int, *, add: bool) -> Callable[..., None]:
    """Some outputs of a linear map: `y[first:] = w[first:] x + b[first:]`, or `+=` with `add`."""

    @_intrinsic
    def block(typingctx: Any, w: Any, b: Any, first: Any, x: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, b, x, y = (_data(context, builder, signature, args, i) for i in (0, 1, 3, 4))
            shape = context.make_array(signature.args[0])(context, builder, args[0]).shape
            num_inputs = cgutils.unpack_tuple(builder, shape, 2)[1]
            size = args[2].type
            tile = ir.Constant(size, TILE)
            places = [builder.add(args[2], ir.Constant(size, a)) for a in range(outputs)]
            for start in range(0, TILE, VECTORS * LANES):
                offsets = [ir.Constant(size, start + v * LANES) for v in range(VECTORS)]
                sums = []
                for place in places:
                    constant = _load_everywhere(builder, b, place)
                    for offset in offsets:
                        value = constant
                        if add:
                            at = builder.add(builder.mul(place, tile), offset)
                            value = builder.fadd(value, _load(builder, y, at))
                        sums.append(cgutils.alloca_once_value(builder, value))
                with cgutils.for_range(builder, num_inputs) as loop:
                    row = builder.mul(loop.index, tile)
                    inputs = [_load(builder, x, builder.add(row, offset)) for offset in offsets]
                    for a, place in enumerate(places):
                        at = builder.add(builder.mul(place, num_inputs), loop.index)
                        weight = _load_everywhere(builder, w, at)
                        for v in range(VECTORS):
                            _add_product(builder, sums[a * VECTORS + v], weight, inputs[v])
                for a, place in enumerate(places):
                    for v, offset in enumerate(offsets):
                        at = builder.add(builder.mul(place, tile), offset)
                        _store(builder, builder.load(sums[a * VECTORS + v]), y, at)
            return context.get_dummy_value()

        return types.void(w, b, first, x, y), codegen

    return block


@_intrinsic
def _sum_products(
    typingctx: Any, a: Any, a0: Any, b: Any, b0: Any, step: Any, count: Any, y: Any, y0: Any
) -> Any:
    """y[y0] += Σ_i a[a0 + i] b[b0 + i step], of rows of `TILE` numbers in flat arrays."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, y = (_data(context, builder, signature, args, i) for i in (0, 2, 6))
        size = args[1].type
        tile = ir.Constant(size, TILE)
        a0, b0, step, y0 = (builder.mul(args[i], tile) for i in (1, 3, 4, 7))
        places = [ir.Constant(size, start) for start in range(0, TILE, LANES)]
        ends = [builder.add(y0, place) for place in places]
        sums = [cgutils.alloca_once_value(builder, _load(builder, y, end)) for end in ends]
        with cgutils.for_range(builder, args[5]) as loop:
            at_a = builder.add(a0, builder.mul(loop.index, tile))
            at_b = builder.add(b0, builder.mul(loop.index, step))
            for total, place in zip(sums, places, strict=True):
                left = _load(builder, a, builder.add(at_a, place))
                _add_product(builder, total, left, _load(builder, b, builder.add(at_b, place)))
        for total, end in zip(sums, ends, strict=True):
            _store(builder, builder.load(total), y, end)
        return context.get_dummy_value()

    return types.void(a, a0, b, b0, step, count, y, y0), codegen


@_intrinsic
def _scale(typingctx: Any, x: Any, shifted: Any) -> Any:
    """Scale by 2^n: x 2^n for shifted = n + `SHIFT`, whose last bits are those of n."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        exponent = builder.shl(builder.bitcast(args[1], INTEGER), ir.Constant(INTEGER, 23))
        bits = builder.add(builder.bitcast(args[0], INTEGER), exponent)
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32, types.float32), codegen


# Numbers that meet float32 must be float32 themselves, or the loops become those of float64.
ZERO, HALF, ONE = (np.float32(number) for number in (0, 0.5, 1))
ALMOST_ONE = np.nextafter(ONE, ZERO)
MINUS_INFINITY = np.float32(-np.inf)
NORM_EPSILON = np.float32(1e-5)
SHIFT = np.float32(1.5 * 2**23)  # added to a number, it leaves no digits but the integer's
LOG2_E, LN_2 = np.float32(1 / math.log(2)), np.float32(0.693359375)
LN_2_REST = np.float32(math.log(2) - 0.693359375)
E2, E3, E4, E5, E6 = (np.float32(1 / math.factorial(k)) for k in range(2, 7))
LEAST_EXPONENT, GREATEST_EXPONENT = np.float32(-87), np.float32(88)
ROOT_HALF = np.float32(math.sqrt(0.5))
P, A1, A2, A3, A4, A5 = (
    np.float32(number)
    for number in (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)
LEAST_UNIFORM = float(np.finfo(np.float32).tiny)


class CompiledLayers(NamedTuple):
    """Weights of the encoder's or the decoder's layers, `(layers, outputs, inputs)` each."""

    query: np.ndarray
    query_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    first: np.ndarray
    first_bias: np.ndarray
    second: np.ndarray
    second_bias: np.ndarray


class CompiledBottleneck(NamedTuple):
    """Weights from encoded values to F, and from draws of it to keys and values.

    Attributes:
        moments: To means and halved log-variances, `(2p, d_model)`.
        moments_bias: `(2p,)`.
        alpha: From vectors and their squares to log pseudo-counts, `(1, 2 d_model)`.
        alpha_bias: `(1,)`.
        key: `(d_model, p)`.
        value: `(d_model, p)`.
        prior_log_alpha: Log pseudo-count of the prior component.
        log_std_range: Limits of halved log-variances, `(2,)`.
        log_alpha_range: Limits of log pseudo-counts, `(2,)`.
    """

    moments: np.ndarray
    moments_bias: np.ndarray
    alpha: np.ndarray
    alpha_bias: np.ndarray
    key: np.ndarray
    value: np.ndarray
    prior_log_alpha: np.float32
    log_std_range: np.ndarray
    log_alpha_range: np.ndarray


class CompiledNetwork(NamedTuple):
    """All that generation needs of a network, float32; norms folded into the maps behind them.

    Attributes:
        nhead: Heads.
        kappa: Draws per component.
        offsets: First flat token of each column, then their number, `(n + 1,)`.
        embedding: `(V, d_model)`, the vectors' means zero.
        encoder: The encoder's layers.
        encoder_key: `(layers, d_model, d_model)`.
        encoder_value: `(layers, d_model, d_model)`.
        bottleneck: The bottleneck.
        queries: What the decoder starts from, `(n, d_model)`, means zero.
        first_queries: Its first layer's queries, `(n, d_model)`.
        decoder: The decoder's layers; the first one's `query` is not used.
        output: `(V, d_model)`.
        output_bias: `(V,)`.
    """

    nhead: int
    kappa: int
    offsets: np.ndarray
    embedding: np.ndarray
    encoder: CompiledLayers
    encoder_key: np.ndarray
    encoder_value: np.ndarray
    bottleneck: CompiledBottleneck
    queries: np.ndarray
    first_queries: np.ndarray
    decoder: CompiledLayers
    output: np.ndarray
    output_bias: np.ndarray


class _Work(NamedTuple):
    """Arrays of one tile, written over at every step; rows innermost.

    Attributes:
        x: Hidden states, `(d_model, TILE)`.
        normed: `x` after a layer norm.
        query: Scaled queries.
        heads: What the heads have read.
        hidden: Of the feed-forward blocks.
        scale: A number per row, `(TILE,)`.
        moments: Means and halved log-variances, then standard deviations, `(2p, TILE)`.
        powers: `normed` and its squares.
        log_alpha: `(1, TILE)`.
        z: A draw of a component, `(p, TILE)`.
        weights: Attention's, `(n kappa, TILE)`.
        seen_keys: The encoder's, `(layers, n, d_model, TILE)`; its biases are zero.
        seen_values: The encoder's.
        seen_bias: `(n, TILE)`.
        keys: The decoder's, `(n kappa, d_model, TILE)`.
        values: The decoder's.
        bias: The decoder's, `(n kappa, TILE)`.
        logits: Of one column.
        selected: A number per row: its token, then its column.
        drawn: A token per row.
        asks: Whether a row's value is still to be drawn.
        no_bias: Zeros, `(d_model,)`.
    """

    x: np.ndarray
    normed: np.ndarray
    query: np.ndarray
    heads: np.ndarray
    hidden: np.ndarray
    scale: np.ndarray
    moments: np.ndarray
    powers: np.ndarray
    log_alpha: np.ndarray
    z: np.ndarray
    weights: np.ndarray
    seen_keys: np.ndarray
    seen_values: np.ndarray
    seen_bias: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    bias: np.ndarray
    logits: np.ndarray
    selected: np.ndarray
    drawn: np.ndarray
    asks: np.ndarray
    no_bias: np.ndarray


@_compile
def _exp(x: Any) -> Any:
    """To 2e-7 of the result between -87 and 88, whose results are given beyond."""
    shifted = min(max(x, LEAST_EXPONENT), GREATEST_EXPONENT) * LOG2_E + SHIFT
    n = shifted - SHIFT
    r = (min(max(x, LEAST_EXPONENT), GREATEST_EXPONENT) - n * LN_2) - n * LN_2_REST
    tail = E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))
    return _scale(ONE + r * (ONE + r * tail), shifted)


@_compile
def _gelu(x: Any) -> None:
    """GELU in place, with erf to 2e-7 (Abramowitz and Stegun, 7.1.26)."""
    for i in range(x.shape[0]):
        for r in range(TILE):
            size = abs(x[i, r])
            root = size * ROOT_HALF
            t = ONE / (ONE + P * root)
            series = t * (A1 + t * (A2 + t * (A3 + t * (A4 + t * A5))))
            x[i, r] = HALF * (x[i, r] + size * (ONE - series * _exp(-root * root)))


def _product(*, add: bool) -> Callable[..., None]:
    """A function that writes y = W x + b, `(I, TILE)` to `(O, TILE)`; with `add` adds it to y."""
    some, one = _multiply_block(BLOCK, add=add), _multiply_block(1, add=add)

    @_compile
    def product(w: Any, b: Any, x: Any, y: Any) -> None:
        i = 0
        while i + BLOCK <= w.shape[0]:
            some(w, b, i, x, y)
            i += BLOCK
        while i < w.shape[0]:
            one(w, b, i, x, y)
            i += 1

    return product


_multiply, _multiply_add = _product(add=False), _product(add=True)


@_compile
def _normalise(x: Any, out: Any, scale: Any) -> None:
    """Layer norm of vectors with mean zero, without gain and bias."""
    scale[:] = ZERO
    for i in range(x.shape[0]):
        for r in range(TILE):
            scale[r] += x[i, r] * x[i, r]
    share = ONE / np.float32(x.shape[0])
    for r in range(TILE):
        scale[r] = ONE / np.sqrt(scale[r] * share + NORM_EPSILON)
    for i in range(x.shape[0]):
        for r in range(TILE):
            out[i, r] = x[i, r] * scale[r]


@_compile
def _softmax(x: Any, length: Any, total: Any) -> None:
    """Softmax over the first `length` rows, in place."""
    total[:] = x[0]
    for i in range(1, length):
        for r in range(TILE):
            total[r] = max(total[r], x[i, r])
    for i in range(length):
        for r in range(TILE):
            x[i, r] = _exp(x[i, r] - total[r])
    total[:] = ZERO
    for i in range(length):
        for r in range(TILE):
            total[r] += x[i, r]
    for r in range(TILE):
        total[r] = ONE / total[r]
    for i in range(length):
        for r in range(TILE):
            x[i, r] *= total[r]


@_compile
def _attend(
    keys: Any, values: Any, bias: Any, length: Any, query: Any, nhead: Any,
    weights: Any, total: Any, out: Any,
) -> None:  # fmt: skip
    """Attention of one scaled query per row over the first `length` keys."""
    d_model = query.shape[0]
    size = d_model // nhead
    out[:] = ZERO
    for first in range(0, d_model, size):
        for i in range(length):
            weights[i] = bias[i]
            at = i * d_model + first
            _sum_products(query.ravel(), first, keys.ravel(), at, 1, size, weights.ravel(), i)
        _softmax(weights, length, total)
        for i in range(first, first + size):
            _sum_products(weights.ravel(), 0, values.ravel(), i, d_model, length, out.ravel(), i)


@_compile
def _finish_layer(layers: Any, i: Any, work: Any) -> None:
    """Add a layer's residual branches to `x`, given what its heads have read."""
    _multiply_add(layers.out[i], layers.out_bias[i], work.heads, work.x)
    _normalise(work.x, work.normed, work.scale)
    _multiply(layers.first[i], layers.first_bias[i], work.normed, work.hidden)
    _gelu(work.hidden)
    _multiply_add(layers.second[i], layers.second_bias[i], work.hidden, work.x)


@_compile
def _gather(table: Any, index: Any, out: Any) -> None:
    for r in range(TILE):
        for i in range(table.shape[1]):
            out[i, r] = table[index[r], i]


@_compile
def _steer(logits: Any, temperature: Any, top_p: Any, excluded: Any) -> None:
    """As `Steering.apply`, for all rows of one column."""
    if temperature != 1:
        for v in range(len(logits)):
            for r in range(TILE):
                logits[v, r] /= temperature
    if excluded >= 0:
        logits[excluded] = MINUS_INFINITY
    if top_p < 1:
        for r in range(TILE):
            shares = np.exp(logits[:, r].astype(np.float64) - logits[:, r].max())
            shares /= shares.sum()
            before = 0.0
            for v in np.argsort(-shares, kind='mergesort'):
                # A token stays where those before it do not make up the share yet.
                if before >= top_p:
                    logits[v, r] = MINUS_INFINITY
                before += shares[v]


@_compile
def _accumulate(logits: Any, top: Any) -> None:
    """Logits to cumulative unnormalised probabilities, in place."""
    top[:] = logits[0]
    for v in range(1, len(logits)):
        for r in range(TILE):
            top[r] = max(top[r], logits[v, r])
    for v in range(len(logits)):
        for r in range(TILE):
            is_possible = logits[v, r] > MINUS_INFINITY
            logits[v, r] = _exp(logits[v, r] - top[r]) if is_possible else ZERO
    for v in range(1, len(logits)):
        for r in range(TILE):
            logits[v, r] += logits[v - 1, r]


@_compile
def _draw_log_gamma(alpha: Any, rng: Any) -> Any:
    """As `nvib.draw_log_gamma`."""
    uniform = max(rng.random(), LEAST_UNIFORM)
    return math.log(rng.standard_gamma(alpha + 1.0)) + math.log(uniform) / alpha


@_compile
def _workspace(network: Any, n: Any) -> Any:
    """Memory for one tile."""
    d_model, p = network.bottleneck.key.shape
    num_draws, depth = n * network.kappa, len(network.encoder.out)
    longest = max(1, (network.offsets[1:] - network.offsets[:-1]).max())
    x = np.zeros((d_model, TILE), np.float32)
    seen_keys = np.zeros((depth, n, d_model, TILE), np.float32)
    keys = np.zeros((num_draws, d_model, TILE), np.float32)
    return _Work(
        x,
        np.zeros_like(x),
        np.zeros_like(x),
        np.zeros_like(x),
        np.zeros((network.decoder.first.shape[1], TILE), np.float32),
        np.zeros(TILE, np.float32),
        np.zeros((2 * p, TILE), np.float32),
        np.zeros((2 * d_model, TILE), np.float32),
        np.zeros((1, TILE), np.float32),
        np.zeros((p, TILE), np.float32),
        np.zeros((num_draws, TILE), np.float32),
        seen_keys,
        np.zeros_like(seen_keys),
        np.zeros((n, TILE), np.float32),
        keys,
        np.zeros_like(keys),
        np.zeros((num_draws, TILE), np.float32),
        np.zeros((longest, TILE), np.float32),
        np.zeros(TILE, np.int64),
        np.zeros(TILE, np.int64),
        np.zeros(TILE, np.bool_),
        np.zeros(d_model, np.float32),
    )


@_compile
def _encode(network: Any, work: Any, place: Any) -> None:
    """The component of one more value per row, whose flat token is `selected`: its moments."""
    encoder, bottleneck = network.encoder, network.bottleneck
    d_model = len(work.x)
    _gather(network.embedding, work.selected, work.x)
    for i in range(len(encoder.out)):
        keys, values = work.seen_keys[i], work.seen_values[i]
        _normalise(work.x, work.normed, work.scale)
        _multiply(network.encoder_key[i], work.no_bias, work.normed, keys[place])
        _multiply(network.encoder_value[i], work.no_bias, work.normed, values[place])
        _multiply(encoder.query[i], encoder.query_bias[i], work.normed, work.query)
        _attend(
            keys, values, work.seen_bias, place + 1, work.query, network.nhead, work.weights,
            work.scale, work.heads,
        )  # fmt: skip
        _finish_layer(encoder, i, work)
    _normalise(work.x, work.normed, work.scale)
    _multiply(bottleneck.moments, bottleneck.moments_bias, work.normed, work.moments)
    work.powers[:d_model] = work.normed
    work.powers[d_model:] = work.normed * work.normed
    _multiply(bottleneck.alpha, bottleneck.alpha_bias, work.powers, work.log_alpha)


@_compile
def _append_draws(network: Any, work: Any, place: Any, noise: Any, rng: Any) -> None:
    """Draw from the component of a place, whose moments are there: keys, values and biases."""
    bottleneck, kappa = network.bottleneck, network.kappa
    log_std_range, log_alpha_range = bottleneck.log_std_range, bottleneck.log_alpha_range
    moments, scale, z, p = work.moments, work.scale, work.z, len(work.z)
    root = np.float32(0.5 / math.sqrt(len(work.x) // network.nhead))
    for i in range(p, 2 * p):
        for r in range(TILE):
            log_std = min(max(moments[i, r], log_std_range[0]), log_std_range[1])
            moments[i, r] = _exp(log_std)
    for k in range(kappa):
        scale[:] = ZERO
        for i in range(p):
            for r in range(TILE):
                z[i, r] = moments[i, r] + moments[p + i, r] * noise[k, i, r]
                scale[r] += z[i, r] * z[i, r]
        at = place * kappa + k
        for r in range(TILE):
            limited = min(max(work.log_alpha[0, r], log_alpha_range[0]), log_alpha_range[1])
            log_pi = np.float32(_draw_log_gamma(math.exp(float(limited)) / kappa, rng))
            work.bias[at, r] = log_pi - root * scale[r]
        _multiply(bottleneck.key, work.no_bias, z, work.keys[at])
        _multiply(bottleneck.value, work.no_bias, z, work.values[at])


@_compile
def _ask(network: Any, work: Any, length: Any) -> None:
    """Ask each row for its `selected` column: normalised hidden states in `normed`."""
    decoder = network.decoder
    _gather(network.queries, work.selected, work.x)
    _gather(network.first_queries, work.selected, work.query)
    for i in range(len(decoder.out)):
        if i > 0:
            _normalise(work.x, work.normed, work.scale)
            _multiply(decoder.query[i], decoder.query_bias[i], work.normed, work.query)
        _attend(
            work.keys, work.values, work.bias, length, work.query, network.nhead, work.weights,
            work.scale, work.heads,
        )  # fmt: skip
        _finish_layer(decoder, i, work)
    _normalise(work.x, work.normed, work.scale)


@_compile
def _answer(
    work: Any, column: Any, cumulative: Any, uniform: Any, tokens: Any, expected: Any
) -> None:
    """Draw the values of one column, by inverse transform sampling, in the rows that ask for it."""
    scale, drawn = work.scale, work.drawn
    for r in range(TILE):
        # Below the sum, so that no impossible token at the end is drawn.
        scale[r] = min(uniform[r], ALMOST_ONE) * cumulative[-1, r]
        drawn[r] = 0
    for v in range(len(cumulative) - 1):
        for r in range(TILE):
            drawn[r] += cumulative[v, r] <= scale[r]
    for r in range(TILE):
        if work.asks[r] and work.selected[r] == column:
            work.asks[r] = False
            tokens[r] = drawn[r]
            if len(expected):
                before = ZERO
                for v in range(len(cumulative)):
                    expected[v] += (cumulative[v, r] - before) / cumulative[-1, r]
                    before = cumulative[v, r]


@_Kept
def draw_tiles(
    network: Any, tokens: Any, order: Any, num_known: Any, noise: Any, uniform: Any, rng: Any,
    temperature: Any, top_p: Any, excluded: Any, expected: Any,
) -> None:  # fmt: skip
    """Draw rows, tile by tile.

    Args:
        network: `CompiledNetwork`.
        tokens: Token ids in column order, int64, `(tiles, n, TILE)`; those that are -1 are drawn.
        order: Column at each place, int64, `(tiles, n, TILE)`.
        num_known: Places at the start of the orders that every row knows.
        noise: Standard normal numbers, `(tiles, n, kappa, p, TILE)`.
        uniform: Numbers in [0, 1) in column order, `(tiles, n, TILE)`.
        rng: Draws the weights: for each place, draw and row a Gamma and a uniform number.
        temperature: As in `Steering`, float32, `(n,)`.
        top_p: As in `Steering`, float64, `(n,)`.
        excluded: As in `Steering`, int64, `(n,)`.
        expected: What the probabilities that values are drawn from are added to, float64, `(V,)`;
            of length zero for none.
    """
    num_tiles, n, _ = tokens.shape
    offsets, work = network.offsets, _workspace(network, n)
    index, asks = work.selected, work.asks
    for tile in range(num_tiles):
        for place in range(n):
            # F has one more component: the prior's, then that of the value at the place before.
            if place > 0:
                for r in range(TILE):
                    column = order[tile, place - 1, r]
                    index[r] = offsets[column] + tokens[tile, column, r]
                _encode(network, work, place - 1)
            else:
                work.moments[:] = ZERO
                work.log_alpha[:] = network.bottleneck.prior_log_alpha
            _append_draws(network, work, place, noise[tile, place], rng)
            if place < num_known:
                continue
            for r in range(TILE):
                index[r] = order[tile, place, r]
                asks[r] = tokens[tile, index[r], r] < 0
            _ask(network, work, (place + 1) * network.kappa)
            for r in range(TILE):
                if asks[r]:
                    column = index[r]
                    low, high = offsets[column], offsets[column + 1]
                    logits = work.logits[: high - low]
                    _multiply(
                        network.output[low:high], network.output_bias[low:high], work.normed, logits
                    )
                    _steer(logits, temperature[column], top_p[column], excluded[column])
                    _accumulate(logits, work.scale)
                    counted = expected[low:high] if len(expected) else expected
                    _answer(
                        work, column, logits, uniform[tile, column], tokens[tile, column], counted
                    )
