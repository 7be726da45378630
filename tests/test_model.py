"""Tests of the network: equivalences, what may see what, learning, both ways to generate."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sdv_nvib.generation import AnyOrderGenerator, decode_once
from sdv_nvib.model import ModelConfig, TabularNVIB, TokenTable
from sdv_nvib.nvib import MixtureSample, sample_mixture

SIZES = (3, 20, 4, 2, 7)
MODES = ['any-order', 'single-pass']


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_rows(rows, sizes=SIZES, seed=0):
    generator = rng(seed)
    return torch.stack([torch.randint(s, (rows,), generator=generator) for s in sizes], 1)


def draw_orders(rows, columns=5, seed=0):
    return torch.rand(rows, columns, generator=rng(seed)).argsort(1)


# Equivalences.


@pytest.mark.parametrize('generation', MODES)
@pytest.mark.parametrize('cut', [False, True])
def test_reconstructing_rows_together_equals_one_by_one(network, generation, cut):
    model, rows = network(generation=generation), draw_rows(9)
    alone = torch.cat([model.reconstruct(row[None], cut=cut) for row in rows])
    assert torch.equal(model.reconstruct(rows, cut=cut), alone)


@pytest.mark.parametrize('generation', MODES)
def test_hidden_states_of_rows_together_equal_one_by_one(network, generation):
    model, rows, orders = network(generation=generation), draw_rows(9), draw_orders(9)
    seen = len(SIZES) - (generation == 'any-order')

    def decode(index):
        order = orders[index]
        mixture = model.encode(rows[index].gather(1, order)[:, :seen], order[:, :seen])
        sample = MixtureSample(mixture.mu, mixture.alpha.log())
        return model.decode(sample, order)

    everything = torch.arange(9)
    assert_close(decode(everything), torch.cat([decode(i[None]) for i in everything]))


def test_every_decoder_layer_reads_the_same_keys_and_values(network):
    model = network(num_decoder_layers=3)
    first, *others = [layer.attention for layer in model.decoder_layers]
    assert len(others) == 2
    for copied in (model, copy.deepcopy(model)):
        first, *others = [layer.attention for layer in copied.decoder_layers]
        for other in others:
            assert other.key is first.key
            assert other.value is first.value
            assert other.query is not first.query


def test_single_pass_does_not_depend_on_the_order_of_columns(network):
    model, rows, orders = network(generation='single-pass'), draw_rows(9), draw_orders(9)
    straight, moved = model.encode(rows), model.encode(rows.gather(1, orders), orders)
    # The prior component stays first.
    places = torch.cat([torch.zeros(9, 1, dtype=torch.int64), 1 + orders], 1)
    assert_close(moved.alpha, straight.alpha.gather(1, places))
    assert_close(moved.mu, straight.mu.gather(1, places.unsqueeze(-1).expand_as(moved.mu)))
    columns = torch.arange(len(SIZES)).expand(9, -1)
    hidden = model.decode(sample_mixture(straight, generator=rng()), columns)
    shuffled = sample_mixture(straight, generator=rng())
    index = places.flip(1)
    shuffled = MixtureSample(
        shuffled.z.gather(1, index.unsqueeze(-1).expand_as(shuffled.z)),
        shuffled.log_pi.gather(1, index),
    )
    in_order = model.decode(shuffled, orders)
    assert_close(in_order, hidden.gather(1, orders.unsqueeze(-1).expand_as(hidden)))


def test_any_order_encoding_of_a_prefix_is_a_prefix_of_the_encoding(network):
    model, rows, orders = network(num_encoder_layers=2), draw_rows(9), draw_orders(9)
    placed = rows.gather(1, orders)
    full, prefix = model.encode(placed, orders), model.encode(placed[:, :2], orders[:, :2])
    assert_close(full.mu[:, :3], prefix.mu)
    assert_close(full.logvar[:, :3], prefix.logvar)
    assert_close(full.alpha[:, :3], prefix.alpha)


def test_a_query_reads_the_components_before_it_as_a_set(network):
    model, order = network(), torch.arange(len(SIZES)).expand(2, -1)
    mixture = model.encode(draw_rows(2)[:, :-1], order[:, :-1])
    sample = sample_mixture(mixture, generator=rng())
    swapped = torch.tensor([2, 0, 1, 3, 4])
    other = MixtureSample(sample.z[:, swapped], sample.log_pi[:, swapped])
    one, two = model.decode(sample, order), model.decode(other, order)
    assert_close(one[:, 2:], two[:, 2:])
    assert not torch.allclose(one[:, :2], two[:, :2])


# The bottleneck is the only passage.


@pytest.mark.parametrize('kappa', [1, 2])
def test_any_order_decoder_sees_earlier_columns_and_nothing_else(network, kappa):
    model = network(kappa=kappa, num_encoder_layers=2)
    order = torch.tensor([[3, 0, 4, 1, 2]])
    tokens = draw_rows(1)
    nll = model(tokens, order, rng()).nll[0]
    used = (tokens + model.offsets)[0]  # row of the embedding table, by column
    columns = order[0].tolist()
    for place, column in enumerate(columns):
        (grad,) = torch.autograd.grad(nll[column], model.token_embedding.free, retain_graph=True)
        for other_place, other in enumerate(columns):
            reached = bool((grad[used[other]] != 0).any())
            assert reached == (other_place < place), (place, other_place)


def test_single_pass_decoder_sees_every_column(network):
    model, tokens = network(generation='single-pass'), draw_rows(1)
    nll = model(tokens, draw_orders(1), rng()).nll[0]
    used = (tokens + model.offsets)[0]
    for column in range(len(SIZES)):
        (grad,) = torch.autograd.grad(nll[column], model.token_embedding.free, retain_graph=True)
        assert (grad[used] != 0).any(1).all()


@pytest.mark.parametrize('generation', MODES)
def test_a_cut_bottleneck_tells_the_decoder_nothing_of_the_row(network, generation):
    cut = network(generation=generation).reconstruct(draw_rows(20), cut=True)
    assert (cut == cut[0]).all()


@pytest.mark.parametrize('kappa', [1, 2])
@pytest.mark.parametrize('generation', MODES)
def test_gradients_reach_every_parameter(network, generation, kappa):
    model = network(generation=generation, kappa=kappa)
    output = model(draw_rows(64), draw_orders(64), rng())
    (output.nll.sum() + output.kl_gaussian.sum() + output.kl_dirichlet.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


# Learning.


def overfit(model, rows, steps=200):
    """Mean loss of each column over the last steps."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, fused=True)
    generator, losses = rng(), []
    for _ in range(steps):
        order = torch.rand(rows.shape, generator=generator).argsort(1)
        nll = model(rows, order, generator).nll
        optimizer.zero_grad()
        nll.sum(1).mean().backward()
        optimizer.step()
        losses.append(nll.detach().mean(0))
    return torch.stack(losses[-30:]).mean(0)


@pytest.mark.parametrize('kappa', [1, 2])
@pytest.mark.parametrize('generation', MODES)
def test_overfits_eight_rows(build_model, generation, kappa):
    model = build_model(8, 8, 8, ordered=(1,), generation=generation, kappa=kappa)
    generator = rng(1)
    rows = torch.stack([torch.randperm(8, generator=generator) for _ in range(3)], 1)
    losses = overfit(model, rows)
    assert torch.equal(model.eval().reconstruct(rows), rows)
    # Any-order must guess the first column of an order, each column in a third of the orders.
    expected = math.log(8) / 3 if generation == 'any-order' else 0.0
    assert (losses < expected + 0.35).all()
    if generation == 'any-order':
        assert (losses > expected - 0.35).all()
        rows = rows.repeat(50, 1)
        known = torch.full_like(rows, -1)
        known[:, 2] = rows[:, 2]
        generated = AnyOrderGenerator(model, 400).generate(400, rng(), known=known)
        # The known third is right anyway; independent columns would give 0.42.
        assert (generated == rows).float().mean() > 0.8


@torch.no_grad()
def test_outside_training_f_itself_is_read_where_the_model_says_so(network):
    model, rows = network(), draw_rows(9)
    order = torch.rand(rows.shape, generator=rng(3)).argsort(1)
    sampled = model.eval()(rows, order, rng()).nll
    model.reads_mixture = True
    one, other = (model(rows, order, rng(seed)).nll for seed in (0, 1))
    assert torch.equal(one, other)
    # Place by place: the query of a place sees the prior component and those before it.
    placed = rows.gather(1, order)
    for place in range(rows.shape[1]):
        mixture = model.encode(placed[:, :place], order[:, :place])
        hidden = model.decode_mixture(mixture, order[:, place : place + 1])[:, 0]
        for b, column in enumerate(order[:, place].tolist()):
            weight, bias = model.output_layers()[column]
            logits = hidden[b] @ weight.T + bias
            assert_close(one[b, column], -logits.float().log_softmax(0)[rows[b, column]])
    assert torch.equal(model.train()(rows, order, rng()).nll, sampled)


@torch.no_grad()
def test_tempered_logits_have_the_likelihood_told_for_them(network):
    model, rows = network().eval(), draw_rows(9)
    model.reads_mixture = True
    order = torch.rand(rows.shape, generator=rng(3)).argsort(1)
    powers = [0.0, 0.4]
    told = model.nll_at_temperatures(rows, order, rng(), powers, [1.0, 2.0, 5.0])
    assert_close(told[0, 0], model(rows, order, rng()).nll)
    model.temperatures.copy_(torch.tensor([2.0, 5.0, 1.0, 2.0, 5.0]))
    for of_power, model.sharpening in zip(told, powers, strict=True):
        expected = torch.stack([of_power[k, :, c] for c, k in enumerate([1, 2, 0, 1, 2])], 1)
        assert_close(model(rows, order, rng()).nll, expected)


@torch.no_grad()
def test_tempered_logits_depart_from_the_shares_by_no_more_than_the_network_says(network):
    model, rows = network().eval(), draw_rows(9)
    model.reads_mixture, order = True, torch.arange(5).expand(9, -1)
    plain = model.decode_mixture(model.encode(rows[:, :4], order[:, :4]), order, causal=True)
    model.sharpening = 0.5
    model.temperatures.fill_(1.5)
    scaled = model.decode_mixture(model.encode(rows[:, :4], order[:, :4]), order, causal=True)
    factors = torch.tensor([0, 1 / 1.5, 2**0.5 / 1.5, 1, 1])
    assert_close(scaled, plain * factors[:, None], check_dtype=False)


@torch.no_grad()
def test_sharpened_logits_are_the_shares_where_nothing_is_known(network):
    model, rows = network(), draw_rows(9)
    model.eval().reads_mixture, model.sharpening = True, 0.3
    order = torch.rand(rows.shape, generator=rng(3)).argsort(1)
    first = order[:, :1]
    nll = model(rows, order, rng()).nll.gather(1, first).squeeze(1)
    shares = [bias.log_softmax(0) for _, bias in model.output_layers()]
    expected = [-shares[c][row[c]] for c, row in zip(first.squeeze(1), rows, strict=True)]
    assert_close(nll, torch.stack(expected), check_dtype=False)


# Tables of tokens.


def test_neighbouring_tokens_of_an_ordered_column_are_close():
    position = np.append((np.arange(256) + 0.5) / 256, np.nan)  # a missing token at the end
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        table = TokenTable([np.full(300, np.nan), position], 32, std=0.5)
    vectors = table().detach()
    unordered, ordered = vectors[:300], vectors[300:556]
    near = (ordered[1:] - ordered[:-1]).norm(dim=1).mean()
    far = (ordered[128:] - ordered[:128]).norm(dim=1).mean()
    assert near < 0.5 * far
    assert torch.equal(unordered, table.free[:300])
    assert torch.equal(vectors[556], table.free[556])
    assert not torch.allclose(ordered, table.free[300:556], atol=0.1)
    # All tokens start at the same scale.
    for part in (unordered, ordered):
        assert part.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.2)


def test_moving_one_ordered_token_moves_its_neighbours_most():
    position = (np.arange(64) + 0.5) / 64
    table = TokenTable([position], 8, std=0.5)
    before = table().detach()
    table()[32].sum().backward()
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.sub_(0.01 * parameter.grad)
    moved = (table() - before).detach().sum(1).abs()
    assert moved[31] > 0.5 * moved[32]
    assert moved[8] < 0.5 * moved[31]


def test_slow_changes_along_a_column_are_learned_before_fast_ones():
    position = (np.arange(64) + 0.5) / 64
    left = []
    for frequency in (0.5, 64 / 6):  # the lowest and the highest of the features
        target = torch.from_numpy(np.cos(2 * np.pi * frequency * position)).float().unsqueeze(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            table = TokenTable([position], 1, std=0.02)
        optimizer = torch.optim.Adam(table.parameters(), 0.02)
        for _ in range(20):
            optimizer.zero_grad()
            (table() - target).square().mean().backward()
            optimizer.step()
        left.append((table() - target).square().mean().item())
    # Both are 0.5 at the start; with equal amplitudes 0.02 is left of the fast one.
    assert left[0] < 0.1
    assert left[1] > 0.25


# Odd tables.


@pytest.mark.parametrize('generation', MODES)
@pytest.mark.parametrize('sizes', [(5,), (1,), (1, 4), (1, 1)])
def test_one_column_or_one_token_is_enough(build_model, generation, sizes):
    model = build_model(*sizes, ordered=(0,), generation=generation)
    rows = draw_rows(10, sizes)
    output = model(rows, draw_orders(10, len(sizes)), rng())
    output.nll.sum().backward()
    assert output.nll.isfinite().all()
    assert output.nats.isfinite().all()
    assert model.reconstruct(rows).shape == rows.shape
    if generation == 'any-order':
        generated = AnyOrderGenerator(model, 10).generate(10, rng())
    else:
        generated = decode_once(model, model.sample_latent(10, rng()), rng())
    assert generated.shape == rows.shape
    assert (generated < torch.tensor(sizes)).all()
    assert (generated[:, [s == 1 for s in sizes]] == 0).all()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_twenty_thousand_categories_need_one_table_of_logits_at_a_time(build_model):
    sizes, rows = (20_000, 3, 20_000), 32
    model, tokens = build_model(*sizes, ordered=(1,)), draw_rows(32, sizes)
    with LargestTensor() as largest:
        model(tokens, draw_orders(rows, 3), rng()).nll.sum().backward()
        AnyOrderGenerator(model, rows).generate(rows, rng())
        model.reconstruct(tokens)
    table = sum(sizes) * model.config.d_model
    assert rows * 20_000 <= largest.elements <= max(table, rows * 20_000)


def test_a_vocabulary_has_no_features_where_it_has_no_order():
    model = TabularNVIB([np.full(20_000, np.nan), np.linspace(0, 1, 50)], ModelConfig())
    assert model.token_embedding.features.shape[:2] == (1, 50)
