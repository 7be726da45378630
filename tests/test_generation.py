"""Tests of generation: caches change nothing, what is known stays, draws follow the model."""

import math

import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional

from sdv_nvib.generation import LEAST_ORDERS, AnyOrderGenerator, draw_tokens
from sdv_nvib.nvib import Mixture, MixtureSample, prior_mixture, sample_mixture

SIZES = (3, 20, 4, 2, 7)  # of the columns of `network`


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_rows(rows):
    generator = rng()
    return torch.stack([torch.randint(s, (rows,), generator=generator) for s in SIZES], 1)


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


@pytest.mark.parametrize(('kappa', 'reads_mixture'), [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize('rows', [11, 1])
@torch.inference_mode()
def test_generation_with_cache_equals_generation_without(network, rows, kappa, reads_mixture):
    model = network(kappa=kappa, num_encoder_layers=2)
    model.reads_mixture = reads_mixture
    # Sharp distributions, so that a wrong hidden state means a wrong token.
    model.output_bias.mul_(5)
    model.token_output.free.mul_(50)
    for seed in range(3):
        cached = generate(model, rows, rng(seed))
        assert torch.equal(cached, generate_without_cache(model, rows, rng(seed)))
    assert cached.shape == (rows, len(SIZES))
    assert (cached >= 0).all()
    assert (cached < torch.tensor(SIZES)).all()


@torch.inference_mode()
def test_a_few_rows_are_drawn_in_several_orders(network, monkeypatch):
    first = []
    generator = AnyOrderGenerator(network(), 40)
    ask = generator.reader.ask

    def watched(column, work):
        first.append(column)
        ask(column, work)

    monkeypatch.setattr(generator.reader, 'ask', watched)
    generator.generate(40, rng())
    assert len(first[0].unique()) > 1
    assert len(first[0][:LEAST_ORDERS].unique()) > 1
    assert torch.equal(first[0][:LEAST_ORDERS], first[0][LEAST_ORDERS : 2 * LEAST_ORDERS])


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
def test_known_columns_come_back_unchanged(network, columns):
    rows = draw_rows(13)
    generated = generate(network(), 13, rng(), known=only_known(rows, columns))
    assert torch.equal(generated[:, list(columns)], rows[:, list(columns)])


def test_each_row_may_know_other_columns(network):
    rows = draw_rows(50)
    hidden = torch.rand(rows.shape, generator=rng(3)) < 0.5
    generated = generate(network(), 50, rng(), known=rows.masked_fill(hidden, -1))
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


@pytest.mark.parametrize('reads_mixture', [False, True])
def test_memory_that_was_used_before_changes_nothing(network, reads_mixture):
    model = network()
    model.reads_mixture = reads_mixture
    generator = AnyOrderGenerator(model, 40)
    generator.generate(40, rng(1))
    for rows in (40, 7, 40):
        assert torch.equal(generator.generate(rows, rng()), generate(model, rows, rng()))
