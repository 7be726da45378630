"""Tests of the fitted model: seeds, chunks, pickling, both ways to generate."""

import cloudpickle
import numpy as np
import pytest
import torch

from sdv_nvib import generation, sampling
from sdv_nvib.errors import ModelFileError
from sdv_nvib.sampling import FittedModel, remember_posteriors
from sdv_nvib.training import Trainer, TrainingConfig

SIZES = (3, 5, 4)
WAYS = ['any-order', 'single-pass', 'posteriors']


def draw_rows(rows):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(size, (rows,), generator=generator) for size in SIZES], 1)


@pytest.fixture
def fitted(build_model, monkeypatch):
    """A model that was not trained, in chunks of eight rows."""
    monkeypatch.setattr(generation, 'MAX_CHUNK_ROWS', 8)
    monkeypatch.setattr(generation, 'CHUNK_UNIT', 8)

    def build(way='any-order'):
        generation = 'any-order' if way == 'any-order' else 'single-pass'
        network = build_model(*SIZES, ordered=(1,), generation=generation).eval()
        posteriors = remember_posteriors(network, draw_rows(30)) if way == 'posteriors' else None
        model = FittedModel(network, [], enable_gpu=False, posteriors=posteriors)
        assert model.chunk_rows == 8
        return model

    return build


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('rows', [1, 7, 8, 9, 24])
def test_as_many_rows_as_asked_of_tokens_that_exist(fitted, way, rows):
    sample = fitted(way).sample(rows)
    assert sample.shape == (rows, len(SIZES))
    assert sample.dtype == np.int64
    assert (sample >= 0).all()
    assert (sample < SIZES).all()


@pytest.mark.parametrize('way', WAYS)
def test_the_same_seed_gives_the_same_rows(fitted, way):
    model, before = fitted(way), torch.get_rng_state()
    first, following = model.sample(20), model.sample(20)
    assert not np.array_equal(first, following)
    model.set_random_state(0)
    assert np.array_equal(model.sample(20), first)
    model.set_random_state(1)
    assert not np.array_equal(model.sample(20), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_governs_values_inside_bins_too(fitted):
    model = fitted()
    first = model.rng.random(5)
    model.set_random_state(0)
    assert np.array_equal(model.rng.random(5), first)


@pytest.mark.parametrize('reads_mixture', [False, True])
def test_no_rows_give_no_scores(fitted, reads_mixture):
    model = fitted('any-order')
    model.network.reads_mixture = reads_mixture
    none = np.empty((0, len(SIZES)), np.int64)
    assert model.log_likelihood(none, num_orders=2).shape == none.shape
    assert model.reconstruct(none).shape == none.shape
    assert model.sample(0).shape == none.shape


@pytest.mark.parametrize('way', WAYS)
def test_a_pickle_with_a_network_of_another_version_is_refused(fitted, way, monkeypatch):
    model = fitted(way)
    with monkeypatch.context() as patch:
        patch.setattr(sampling, 'NETWORK_VERSION', 2)
        other = cloudpickle.dumps(model)
    with pytest.raises(ModelFileError, match=r'version 5, received 2\. Load it with'):
        cloudpickle.loads(other)
    state = model.__getstate__()
    del state['_network_version']  # as pickles before it was kept
    with pytest.raises(ModelFileError, match='version 5, received none'):
        FittedModel.__new__(FittedModel).__setstate__(state)


@pytest.mark.parametrize('way', WAYS)
def test_pickling_keeps_the_place_in_the_sequence_of_rows(fitted, way):
    model = fitted(way)
    model.sample(5)
    model.rng.random(3)
    copy = cloudpickle.loads(cloudpickle.dumps(model))
    assert np.array_equal(copy.sample(20), model.sample(20))
    assert np.array_equal(copy.rng.random(5), model.rng.random(5))
    rows = draw_rows(10).numpy()
    assert np.array_equal(copy.reconstruct(rows), model.reconstruct(rows))


def test_known_values_stay_with_their_rows_across_chunks(fitted):
    rows = draw_rows(21).numpy()
    known = rows.copy()
    known[:, [1, *range(3, rows.shape[1])]] = -1
    sample = fitted().sample(21, known)
    assert np.array_equal(sample[:, [2, 0]], rows[:, [2, 0]])


@pytest.mark.parametrize('cut', [False, True])
def test_reconstruction_in_chunks_equals_the_networks(fitted, cut):
    model, rows = fitted(), draw_rows(21)
    expected = model.network.reconstruct(rows, cut=cut).numpy()
    assert np.array_equal(model.reconstruct(rows.numpy(), cut=cut), expected)


def test_a_large_vocabulary_makes_chunks_small(build_model):
    small, large = (
        FittedModel(build_model(size, 2), [], enable_gpu=False).chunk_rows for size in (100, 20_000)
    )
    assert small == generation.MAX_CHUNK_ROWS
    assert 1 <= large < small
    assert large * 20_000 <= generation.MAX_CHUNK_LOGITS


def test_no_more_posteriors_are_remembered_than_the_limit(build_model, monkeypatch):
    monkeypatch.setattr(sampling, 'REMEMBERED_POSTERIORS', 10)
    network = build_model(*SIZES, generation='single-pass')
    mixture = remember_posteriors(network, draw_rows(30))
    assert mixture.mu.shape[0] == 10
    assert torch.equal(mixture.mu, network.encode(draw_rows(30)[:10]).mu)


def agreement(rows):
    """Share of rows whose second column is the first, as in the table trained on."""
    return (rows[:, 0] == rows[:, 1]).mean()


def test_generated_rows_have_the_planted_dependency(build_model):
    """Any-order and remembered posteriors; the prior alone, the method's own, is weaker."""
    first = torch.arange(5).repeat(100)
    rows, share = torch.stack([first, first], 1), {}
    for way in WAYS:
        generation = 'any-order' if way == 'any-order' else 'single-pass'
        network = build_model(5, 5, generation=generation, num_decoder_layers=1)
        config = TrainingConfig(epochs=20, batch_size=50, learning_rate=1e-2, seed=1)
        trainer = Trainer(network, config)
        trainer.fit(rows)
        posteriors = remember_posteriors(network, rows) if way == 'posteriors' else None
        model = FittedModel(network, trainer.history, enable_gpu=False, posteriors=posteriors)
        sample = model.sample(1000)
        share[way] = agreement(sample)
        # Every value as often as in the table, more or less.
        assert np.bincount(sample[:, 0], minlength=5).min() > 40
    assert share['any-order'] > 0.8
    assert share['posteriors'] > 0.8
    assert share['single-pass'] > 0.3  # independent columns agree in 0.2
