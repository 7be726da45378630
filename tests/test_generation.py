"""Tests of generation: caches change nothing, what is known stays, draws follow the model."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chisquare
from torch.nn import functional

from sdv_nvib import generation, kernels
from sdv_nvib.generation import (
    LEAST_ORDERS,
    AnyOrderGenerator,
    Steering,
    draw_tokens,
    seeded_generator,
)
from sdv_nvib.kernels import TILE
from sdv_nvib.nvib import Mixture, MixtureSample, prior_mixture, sample_mixture

ROOT = Path(__file__).parents[1]
SIZES = (3, 20, 4, 2, 7)  # of the columns of `network`


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_rows(rows):
    generator = rng()
    return torch.stack([torch.randint(s, (rows,), generator=generator) for s in SIZES], 1)


@pytest.fixture(params=['tiles', 'steps'])
def generator_of(request):
    """Both ways to draw: compiled, as with float32 on every CPU, and by torch's operations."""
    dtype = torch.float32 if request.param == 'tiles' else torch.float64

    def make(model, rows):
        return AnyOrderGenerator(model.to(dtype), rows)

    return make


def generate(model, rows, generator, known=None):
    return AnyOrderGenerator(model, rows).generate(rows, generator, known=known)


def generate_without_cache(model, rows, generator):
    """Any-order generation as its definition says: everything encoded and decoded every time."""
    kappa = model.config.kappa
    orders = (1 + torch.rand(LEAST_ORDERS, model.num_columns, generator=generator)).argsort(1)
    order = orders[torch.arange(rows) % LEAST_ORDERS]
    layers, drawn = model.output_layers(), torch.zeros(rows, 0, dtype=torch.int64)
    prior = prior_mixture(rows, model.config.d_model, model.column_query)
    draws = [] if model.reads_mixture else [sample_mixture(prior, kappa, generator)]
    for place in range(model.num_columns):
        if model.reads_mixture:
            seen = model.encode(drawn, order[:, :place])
            hidden = model.decode_mixture(seen, order[:, place : place + 1])[:, -1]
        else:
            sample = MixtureSample(
                torch.cat([d.z for d in draws], 1), torch.cat([d.log_pi for d in draws], 1)
            )
            hidden = model.decode(sample, order[:, : place + 1])[:, -1]
        tokens = torch.empty(rows, dtype=torch.int64)
        for column, layer in enumerate(layers):
            asked = order[:, place] == column
            if asked.any():
                tokens[asked] = draw_tokens(functional.linear(hidden[asked], *layer), generator)
        drawn = torch.cat([drawn, tokens[:, None]], 1)
        if place + 1 < model.num_columns and not model.reads_mixture:
            seen = model.encode(drawn, order[:, : place + 1])
            newest = Mixture(seen.mu[:, -1:], seen.logvar[:, -1:], seen.alpha[:, -1:])
            draws.append(sample_mixture(newest, kappa, generator))
    return drawn.gather(1, order.argsort(1))


def test_all_digits_of_a_seed_count():
    def numbers(*entropy):
        generator = seeded_generator(torch.device('cpu'), *entropy)
        return torch.empty(2000, dtype=torch.int64).random_(0, 2**24, generator=generator)

    assert torch.equal(numbers(5, 2), numbers(5, 2))
    for entropy in ((5 + 2**32,), (5, 1), (6,)):
        assert (numbers(5) != numbers(*entropy)).sum() > 1990
    bits = np.random.MT19937(np.random.SeedSequence([5, 2]))
    bits.state = bits.state | {'state': bits.state['state'] | {'pos': 624}}
    assert (bits.random_raw(2000) % 2**24).tolist() == numbers(5, 2).tolist()


def test_impossible_tokens_are_not_drawn_by_the_largest_number(monkeypatch):
    logits = torch.tensor([[0.0, -math.inf]])
    largest = 1 - 2**-24
    monkeypatch.setattr(torch, 'rand', lambda *_, **__: torch.tensor([largest]))
    monkeypatch.setattr(generation, 'GOLDEN_STEP', 255)  # the last number before 1 of 32 bits
    assert draw_tokens(logits.expand(2, 2), rng()).tolist() == [0, 0]


def test_equal_rows_do_not_come_out_equal():
    generator = rng()
    drawn = torch.stack([draw_tokens(torch.zeros(400, 10), generator) for _ in range(8)], 1)
    assert len(drawn.unique(dim=0)) > 390


@pytest.mark.parametrize(('kappa', 'reads_mixture'), [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize('rows', [11, 1])
@torch.inference_mode()
def test_generation_with_cache_equals_generation_without(network, rows, kappa, reads_mixture):
    model = network(kappa=kappa, num_encoder_layers=2)
    model.reads_mixture = reads_mixture
    if reads_mixture:
        model.sharpening = 0.25
        model.temperatures.copy_(torch.linspace(1, 2, len(SIZES)))
    # Sharp distributions, so that a wrong hidden state means a wrong token.
    model.output_bias.mul_(5)
    model.token_output.free.mul_(50)
    for seed in range(3):
        cached = generate(model, rows, rng(seed))
        assert torch.equal(cached, generate_without_cache(model, rows, rng(seed)))
    assert cached.shape == (rows, len(SIZES))
    assert (cached >= 0).all()
    assert (cached < torch.tensor(SIZES)).all()


@torch.no_grad()
def test_given_values_count_as_known_where_logits_are_tempered(build_model):
    model = build_model(4, 3).eval()
    model.token_output.free.mul_(50)
    model.reads_mixture, model.sharpening = True, 0.3
    model.temperatures.copy_(torch.tensor([3.0, 2.0]))
    # Each row knows one value: the other one is the second of its order.
    for column, size in enumerate((4, 3)):
        expected = torch.zeros(7)
        given = torch.tensor([[1, -1] if column else [-1, 2]])
        AnyOrderGenerator(model, 1).generate(1, rng(), known=given, expected=expected)
        rows = given.where(given >= 0, torch.zeros(1, dtype=torch.int64)).repeat(size, 1)
        rows[:, column] = torch.arange(size)
        order = torch.tensor([[1 - column, column]]).expand(size, -1)
        shares = torch.exp(-model(rows, order, rng()).nll[:, column])
        assert torch.allclose(expected.split((4, 3))[column], shares, atol=1e-5)


def from_tiles(tiles):
    """`(tiles, n, TILE)` to rows `(B, n)`."""
    return torch.from_numpy(tiles.swapaxes(1, 2).reshape(-1, tiles.shape[1]))


@pytest.fixture
def calls(monkeypatch):
    """What the compiled function is called with, and what comes back in the tokens."""
    seen, draw_tiles = [], kernels.draw_tiles

    def watched(*args):
        before = [np.copy(a) if isinstance(a, np.ndarray) else a for a in args]
        draws = np.random.default_rng()
        draws.bit_generator.state = args[6].bit_generator.state
        draw_tiles(*args)
        seen.append([*before[:6], draws, *before[7:], args[1]])

    monkeypatch.setattr(kernels, 'draw_tiles', watched)
    return seen


def sampled(mixture, noise, kappa, weights):
    """As `sample_mixture` of one component a row, from given noise, `(B, kappa, p)`."""
    alpha = mixture.alpha.double() / kappa
    log_pi = torch.empty(len(alpha), kappa)
    for k in range(kappa):
        for row, a in enumerate(alpha[:, 0].tolist()):
            uniform = max(weights.random(), float(np.finfo(np.float32).tiny))
            log_pi[row, k] = math.log(weights.standard_gamma(a + 1)) + math.log(uniform) / a
    return MixtureSample(mixture.mu + (0.5 * mixture.logvar).exp() * noise, log_pi)


@pytest.mark.parametrize(
    'sizes',
    [
        {},
        {'kappa': 2, 'num_encoder_layers': 2, 'dim_feedforward': 1},
        {'d_model': 30, 'nhead': 3, 'dim_feedforward': 21, 'num_decoder_layers': 1},
    ],
    ids=str,
)
@torch.inference_mode()
def test_compiled_generation_is_what_its_definition_says(network, calls, sizes):
    model = network(**sizes).float()
    kappa = model.config.kappa
    model.output_bias.mul_(5)
    model.token_output.free.mul_(50)
    model.nvib.log_alpha.weight.normal_(generator=rng()).mul_(0.1)
    known = only_known(draw_rows(3 * TILE), [2])
    known[TILE:] = -1  # one tile knows a column, the others do not
    expected = torch.zeros(sum(SIZES))
    generated = AnyOrderGenerator(model, 3 * TILE).generate(
        3 * TILE, rng(), known=known, expected=expected
    )
    (_, given, order, num_known, noise, uniform, weights, *_, drawn) = calls[0]
    assert num_known == 0
    assert from_tiles(drawn).sort(0).values.equal(generated.sort(0).values)
    layers, probabilities = model.output_layers(), torch.zeros(len(SIZES), max(SIZES))
    for tile in range(3):
        rows = [from_tiles(part[tile : tile + 1]) for part in (given, order, uniform, drawn)]
        tokens, places, numbers, result = rows
        at = torch.arange(TILE)
        draws = []
        for place in range(len(SIZES)):
            seen = model.encode(result.gather(1, places[:, :place]), places[:, :place])
            newest = Mixture(seen.mu[:, -1:], seen.logvar[:, -1:], seen.alpha[:, -1:])
            eps = torch.from_numpy(noise[tile, place]).permute(2, 0, 1)
            draws.append(sampled(newest, eps, kappa, weights))
            sample = MixtureSample(
                torch.cat([d.z for d in draws], 1), torch.cat([d.log_pi for d in draws], 1)
            )
            hidden = model.decode(sample, places[:, : place + 1])[:, -1]
            for column, layer in enumerate(layers):
                asks = (places[:, place] == column) & (tokens[at, column] < 0)
                shares = functional.linear(hidden[asks], *layer).softmax(1)
                ends = shares.cumsum(1)
                ends[:, -1] = 1  # rounding
                wanted = (ends <= numbers[asks, column, None]).sum(1)
                assert torch.equal(wanted, result[asks, column])
                probabilities[column, : SIZES[column]] += shares.sum(0)
    wanted = torch.cat([p[:size] for p, size in zip(probabilities, SIZES, strict=True)])
    assert torch.allclose(expected, wanted, atol=1e-3)


@torch.inference_mode()
def test_a_few_rows_are_drawn_in_several_orders(network, calls):
    AnyOrderGenerator(network().float(), 40).generate(40, rng())
    first = from_tiles(calls[0][2])[:40, 0]
    assert len(first.unique()) > 1
    orders = from_tiles(calls[0][2])[:40].unique(dim=0)
    assert LEAST_ORDERS // 2 < len(orders) <= LEAST_ORDERS


@torch.inference_mode()
def test_rows_of_a_tile_ask_for_the_same_column_where_they_can(network, calls):
    AnyOrderGenerator(network().float(), 8 * TILE).generate(8 * TILE, rng())
    order = calls[0][2]
    assert (order == order[:, :, :1]).all()


def test_both_ways_draw_from_the_same_distribution(network, monkeypatch):
    monkeypatch.setattr(generation, 'ROWS_PER_ORDER', 1)
    model = network()
    with torch.no_grad():
        model.token_output.free.mul_(30)
        model.output_bias.mul_(2)
    rows, counts = 4000, []
    for dtype in (torch.float32, torch.float64):
        drawn = generate(model.to(dtype), rows, rng(len(counts)))
        counts.append((drawn[:, 0] * SIZES[1] + drawn[:, 1]).bincount(minlength=60).double())
    total = sum(counts)
    frequent = total >= 20
    expected = total[frequent] / 2
    statistic = ((counts[0][frequent] - expected).square() / expected).sum() * 2
    assert chi2.sf(statistic, int(frequent.sum()) - 1) > 1e-3


def test_generation_follows_its_seed_and_leaves_the_global_generator_alone(network):
    model, before = network(), torch.get_rng_state()
    one, same, other = (generate(model, 50, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def only_known(rows, columns):
    """Token ids of some columns, -1 in the others."""
    known = torch.full_like(rows, -1)
    known[:, list(columns)] = rows[:, list(columns)]
    return known


@pytest.mark.parametrize('columns', [(2,), (4, 0), (0, 1, 2, 3, 4)])
def test_known_columns_come_back_unchanged(network, columns, generator_of):
    rows = draw_rows(13)
    known = only_known(rows, columns)
    generated = generator_of(network(), 13).generate(13, rng(), known=known)
    assert torch.equal(generated[:, list(columns)], rows[:, list(columns)])


def test_each_row_may_know_other_columns(network, generator_of):
    rows = draw_rows(150)
    hidden = torch.rand(rows.shape, generator=rng(3)) < 0.5
    known = rows.masked_fill(hidden, -1)
    generated = generator_of(network(), 150).generate(150, rng(), known=known)
    assert torch.equal(generated[~hidden], rows[~hidden])
    assert (generated >= 0).all()
    assert (generated < torch.tensor(SIZES)).all()


def test_draws_of_tokens_have_the_frequencies_of_softmax():
    logits = torch.tensor([2.0, 0.0, -1.0, -math.inf, 1.0, -5.0])
    generator = rng()
    # The first of a few rows drawn together: rows of one call are not independent.
    drawn = torch.cat([draw_tokens(logits.expand(5, -1), generator)[:1] for _ in range(20_000)])
    counts = drawn.bincount(minlength=6).numpy()
    possible = logits.isfinite().numpy()
    assert counts[~possible].sum() == 0
    expected = len(drawn) * logits.double().softmax(0).numpy()
    assert chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def test_shares_among_rows_drawn_together_are_those_of_the_model_to_one_row():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    counts = draw_tokens(logits.expand(1000, -1), rng()).bincount(minlength=4)
    assert (counts - 1000 * logits.softmax(0)).abs().max() < 2


def test_every_row_is_drawn_by_its_own_probabilities():
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.9, 0.1, 0.0], [0.5, 0.3, 0.2]])
    drawn = torch.stack([draw_tokens(shares.log(), rng(seed)) for seed in range(4000)])
    counts = functional.one_hot(drawn, 3).sum(0) / 4000
    assert (counts - shares).abs().max() < 4 * (0.25 / 4000) ** 0.5
    # Equal rows have neighbouring numbers of the sequence, which are far apart.
    same = (drawn[:, 0] == drawn[:, 3]).float().mean()
    assert same < (shares[0] ** 2).sum() + 4 * (0.25 / 4000) ** 0.5


def test_rows_that_are_alike_share_the_tokens_evenly():
    # Every fourth row likes the last token, in no order that the rows show.
    kinds = torch.randperm(200, generator=rng(9)) < 50
    shares = torch.where(kinds[:, None], torch.tensor([0.1, 0.9]), torch.tensor([0.8, 0.2]))
    drawn = torch.stack([draw_tokens(shares.log(), rng(seed)) for seed in range(200)])
    for kind, expected in ((kinds, 45), (~kinds, 30)):
        counts = drawn[:, kind].sum(1).float()
        assert counts.mean() == pytest.approx(expected, abs=0.3)
        assert counts.std() < 0.75  # independent draws: 2.1 and 4.9


@pytest.mark.parametrize('reads_mixture', [False, True])
def test_memory_that_was_used_before_changes_nothing(network, reads_mixture, generator_of):
    model = network()
    model.reads_mixture = reads_mixture
    generator = generator_of(model, 40)
    generator.generate(40, rng(1))
    for rows in (40, 7, 0, 40):
        fresh = generator_of(model, rows).generate(rows, rng())
        assert fresh.shape == (rows, len(SIZES))
        assert torch.equal(generator.generate(rows, rng()), fresh)


def test_noise_is_drawn_for_a_part_of_the_rows_at_a_time(network, calls, monkeypatch):
    monkeypatch.setattr(generation, 'MAX_NOISE', 1)
    rows = draw_rows(200)
    generated = generate(network().float(), 200, rng(), known=only_known(rows, [3]))
    assert [call[1].shape for call in calls] == [(1, len(SIZES), TILE)] * 4
    assert generation.CHUNK_UNIT == TILE  # named twice, that numba need not be imported for it
    assert torch.equal(generated[:, 3], rows[:, 3])
    assert (generated >= 0).all()


def test_numbers_are_stratified_among_rows_of_one_order():
    size = torch.tensor([5, 1, 30])
    group = torch.arange(3).repeat_interleave(size)
    numbers = generation._stratified(group, size, 4, rng())
    assert numbers.shape == (36, 4)
    for part in numbers.split(size.tolist()):
        places = (part * len(part)).long()
        assert torch.equal(
            places.sort(0).values, torch.arange(len(part)).unsqueeze(1).expand(-1, 4)
        )
    assert len(numbers[6:].argsort(0).T.unique(dim=0)) == 4  # columns in orders of their own


def test_steering_is_the_same_in_both_ways(network, generator_of):
    model, excluded = network(), (0, 19, -1, 1, 6)
    with torch.no_grad():
        model.output_bias.copy_(3 * (0.618 * torch.arange(len(model.output_bias)) % 1))
        model.token_output.free.zero_()
        model.token_output.smooth.zero_()
    steering = Steering((1.0, 0.3, 2.0, 1.0, 1.0), (1.0, 0.5, 1.0, 1.0, 0.8), excluded)
    expected = torch.zeros(sum(SIZES))
    drawn = generator_of(model, 3000).generate(3000, rng(), steering=steering, expected=expected)
    for column, (token, size) in enumerate(zip(excluded, SIZES, strict=True)):
        shares = expected.split(SIZES)[column] / 3000
        assert shares.sum() == pytest.approx(1, abs=1e-4)
        assert token < 0 or (shares[token] == 0 and not (drawn[:, column] == token).any())
        counts = drawn[:, column].bincount(minlength=size) / 3000
        assert torch.allclose(counts, shares, atol=0.03)
        logits = model.output_bias.split(SIZES)[column].detach().unsqueeze(0).clone()
        assert torch.allclose(shares, steering.apply(logits, column).softmax(1)[0], atol=1e-4)


COMPILED = """
import sys, warnings
import numpy as np, torch
sys.path.insert(0, {package!r})
from sdv_nvib.generation import AnyOrderGenerator
from sdv_nvib.model import ModelConfig, TabularNVIB
torch.manual_seed(0)
model = TabularNVIB([np.full(3, np.nan)] * 2, ModelConfig(d_model=8, nhead=2, dim_feedforward=8))
generator = AnyOrderGenerator(model, 70)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter('always')
    rows = [generator.generate(70, torch.Generator().manual_seed(0)) for _ in range(2)]
assert torch.equal(*rows)
print(type(generator.steps).__name__, [str(w.message) for w in seen], rows[0].tolist())
"""


@pytest.fixture
def drawn_in_a_process(tmp_path):
    """Type of the steps, warnings and rows, with a copy of the package and settings of its own."""
    shutil.copytree(
        ROOT / 'sdv_nvib', tmp_path / 'sdv_nvib', ignore=shutil.ignore_patterns('__pycache__')
    )

    def run(**settings):
        done = subprocess.run(
            [sys.executable, '-c', COMPILED.format(package=str(tmp_path))],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        name, rest = done.stdout.split(maxsplit=1)
        messages, _, rows = rest.rpartition('] [[')
        return name, messages, rows

    return run


def test_what_is_compiled_is_kept_and_compiled_anew_where_it_is_damaged(
    drawn_in_a_process, tmp_path
):
    folder = tmp_path / 'cache'
    settings = {'NUMBA_CACHE_DIR': str(folder)}
    name, messages, rows = drawn_in_a_process(**settings)
    assert (name, messages) == ('_Tiles', '[')
    index, code = (list(folder.rglob(pattern)) for pattern in ('*.nbi', '*.nbc'))
    assert len(index) == len(code) == 1
    written = code[0].stat().st_mtime_ns
    assert drawn_in_a_process(**settings) == ('_Tiles', '[', rows)
    assert code[0].stat().st_mtime_ns == written
    code[0].write_bytes(code[0].read_bytes()[:1000])
    name, messages, same = drawn_in_a_process(**settings)
    assert name == '_Tiles'
    assert 'could not be read from or written to disk' in messages
    assert 'NUMBA_CACHE_DIR' in messages
    assert same == rows


def test_without_compilation_rows_are_drawn_by_the_operations_of_torch(drawn_in_a_process):
    assert drawn_in_a_process(NUMBA_DISABLE_JIT='1')[:2] == ('_Steps', '[')


def test_a_failure_of_the_compiled_function_itself_is_not_hidden():
    def fails(x):
        raise RuntimeError('of its own')

    function = kernels._Kept(fails)
    with pytest.warns(UserWarning, match='of its own'), pytest.raises(RuntimeError):
        function(1)
    with pytest.raises(RuntimeError, match='of its own'):
        function(1)
