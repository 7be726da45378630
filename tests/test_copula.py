"""Tests of the smooth model of few rows: it knows what is linear, and takes no chance for more."""

import numpy as np
import pytest

from sdv_nvib import copula
from sdv_nvib.copula import copula_rows, token_shares

LABELS = np.full(4, np.nan)


def quantiles(tokens, missing=0):
    return np.append((np.arange(tokens) + 0.5) / tokens, [np.nan] * missing)


def tokens_of(numbers, bins):
    return (numbers.argsort().argsort() * bins) // len(numbers)


def agreement(one, other, sizes=(4, 4)):
    """Cramér's V of two columns of labels."""
    table = np.zeros(sizes)
    np.add.at(table, (one, other), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return np.sqrt(((table - expected) ** 2 / expected).sum() / table.sum() / (min(sizes) - 1))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_every_column_has_its_shares(rng):
    labels = rng.choice(4, 300, p=[0.7, 0.2, 0.08, 0.02])
    numbers = np.where(labels == 1, 20, tokens_of(rng.normal(size=300), 20))  # 20: missing
    table = np.stack([labels, numbers, rng.integers(2, size=300)], 1)
    positions = [LABELS, quantiles(20, missing=1), LABELS[:2]]
    drawn = copula_rows(table, positions, 20_000, rng)
    assert drawn.dtype == np.int64
    for seen, made, position in zip(table.T, drawn.T, positions, strict=True):
        shares = np.bincount(made, minlength=len(position)) / len(made)
        assert shares == pytest.approx(token_shares(seen, position), abs=0.012)


def test_shares_that_chance_made_unequal_are_nearer_to_the_true_ones(rng):
    columns = rng.integers(10, size=(300, 120))
    own = [np.bincount(column, minlength=10) / 120 for column in columns]
    likely = [token_shares(column, np.full(10, np.nan)) for column in columns]
    own_error, error = (np.mean((np.stack(shares) - 0.1) ** 2) for shares in (own, likely))
    assert error < 0.8 * own_error
    assert all(shares.sum() == pytest.approx(1) for shares in likely)


@pytest.mark.parametrize(
    ('counts', 'positions'),
    [
        ([90, 20, 10], LABELS[:3]),
        ([48, 41, 31], LABELS[:3]),
        ([10, *[1] * 90], np.full(91, np.nan)),  # a frequent one among rare ones
        ([40, 50, 45], quantiles(3)),
        ([0, 120, 0], LABELS[:3]),
        ([40, 40, 0], LABELS[:3]),
    ],
)
def test_other_shares_are_those_of_the_column(counts, positions):
    column = np.repeat(np.arange(len(counts)), counts)
    assert token_shares(column, positions) == pytest.approx(np.array(counts) / sum(counts))


@pytest.mark.parametrize('counts', [(28, 21), (36, 28), (55, 45), (66, 55)])  # chi-squared is 1
def test_labels_as_unequal_as_is_expected_are_made_equal(counts):
    column = np.repeat(np.arange(2), counts)
    assert token_shares(column, LABELS[:2]).tolist() == [0.5, 0.5]


def test_nearly_equal_labels_are_nearly_equal_in_drawn_rows(rng):
    column = np.repeat(np.arange(3), [35, 33, 32])
    drawn = copula_rows(column[:, None], [LABELS[:3]], 50_000, rng)
    assert np.bincount(drawn[:, 0]) / 50_000 == pytest.approx(1 / 3, abs=0.01)


def test_what_depends_linearly_depends_in_drawn_rows(rng):
    label = rng.integers(4, size=250)
    one = np.array([0.0, 6.0, 2.0, 4.0])[label] + rng.normal(size=250)
    other = rng.normal(size=250) - 2 * one
    numbers = np.where(label == 3, 30, tokens_of(other, 30))  # missing with one label alone
    twin = np.where(rng.random(250) < 0.9, (label + 1) % 4, rng.integers(4, size=250))
    table = np.stack([label, tokens_of(one, 30), numbers, twin], 1)
    positions = [LABELS, quantiles(30), quantiles(30, missing=1), LABELS]
    drawn = copula_rows(table, positions, 20_000, rng)
    for label in range(4):
        seen, made = (t[t[:, 0] == label, 1].mean() for t in (table, drawn))
        assert made == pytest.approx(seen, abs=2)
    present = drawn[:, 2] < 30
    assert np.corrcoef(drawn[present, 1], drawn[present, 2])[0, 1] < -0.8
    assert (drawn[~present, 0] == 3).mean() > 0.7
    assert agreement(drawn[:, 0], drawn[:, 3]) > 0.6 * agreement(table[:, 0], table[:, 3])


def test_what_may_be_chance_is_left_out(rng):
    noise = np.stack([rng.integers(4, size=60) for _ in range(2)], 1)
    assert agreement(*noise.T) > 0.1
    numbers = [tokens_of(rng.normal(size=60), 7) for _ in range(2)]
    table = np.column_stack([noise, *numbers])
    drawn = copula_rows(table, [LABELS, LABELS, quantiles(7), quantiles(7)], 20_000, rng)
    assert agreement(*drawn[:, :2].T) < 0.05
    assert abs(np.corrcoef(drawn[:, 2], drawn[:, 3])[0, 1]) < 0.1
    means = [drawn[drawn[:, 0] == label, 2].mean() for label in range(4)]
    assert np.ptp(means) < 0.5


def test_weak_effects_of_labels_are_shrunk_and_not_lost(rng):
    effects = np.array([-0.3, 0.1, 0.2, 0.0])
    label = rng.integers(4, size=(60, 150))
    numbers = tokens_of((effects[label] + rng.normal(size=label.shape)).T, 12).T
    seen, made = [], []
    for columns in zip(label, numbers, strict=True):
        table = np.stack(columns, 1)
        drawn = copula_rows(table, [LABELS, quantiles(12)], 5_000, rng)
        for t, found in ((table, seen), (drawn, made)):
            found.append(np.var([t[t[:, 0] == k, 1].mean() for k in range(4)]))
    assert 0.2 < np.mean(made) / np.mean(seen) < 0.6


def test_what_is_left_of_pairs_is_made_a_correlation_matrix():
    left = np.array([[1, 0.9, 0.9], [0.9, 1, 0.0], [0.9, 0.0, 1]])
    assert np.linalg.eigvalsh(left)[0] < 0
    valid = copula._valid(left.copy())
    assert np.diag(valid) == pytest.approx(1)
    assert np.linalg.eigvalsh(valid)[0] > -1e-9
    assert valid == pytest.approx(left, abs=0.35)


def test_columns_of_noise_do_not_hide_two_that_depend_on_each_other(rng):
    label = rng.integers(4, size=120)
    twin = np.where(rng.random(120) < 0.8, label, rng.integers(4, size=120))
    number = tokens_of(label + 0.8 * rng.normal(size=120), 15)
    noise = rng.integers(4, size=(120, 20))
    positions = [LABELS, LABELS, quantiles(15), *[LABELS] * 20]
    table = np.column_stack([label, twin, number, noise])
    alone = copula_rows(table[:, :3], positions[:3], 20_000, rng)
    drawn = copula_rows(table, positions, 20_000, rng)
    assert agreement(*alone[:, :2].T) > 0.5 * agreement(label, twin)
    assert agreement(*drawn[:, :2].T) > 0.9 * agreement(*alone[:, :2].T)
    correlation = np.corrcoef(drawn[:, [0, 2]].T)[0, 1]
    assert correlation > 0.8 * np.corrcoef(label, number)[0, 1]
    pairs = [agreement(drawn[:, 0], drawn[:, j]) for j in range(3, 23)]
    assert np.mean(pairs) < 0.02 < 0.1 < np.mean([agreement(label, n) for n in noise.T])


def test_columns_of_very_many_labels_are_drawn_by_themselves(rng, monkeypatch):
    monkeypatch.setattr(copula, 'MAX_LABELS', 20)
    few = rng.integers(4, size=(200, 2))
    few[:, 1] = few[:, 0]
    many = few[:, 0] * 10 + rng.integers(10, size=200)
    positions = [LABELS, LABELS, np.full(40, np.nan)]
    drawn = copula_rows(np.column_stack([few, many]), positions, 20_000, rng)
    assert agreement(*drawn[:, :2].T) > 0.8
    assert agreement(drawn[:, 0], drawn[:, 2] // 10) < 0.05
    made = np.bincount(drawn[:, 2], minlength=40) / len(drawn)
    assert made == pytest.approx(token_shares(many, positions[2]), abs=0.01)


@pytest.mark.parametrize('rows', [2, 10, 40])
def test_constant_columns_and_values_never_seen_are_no_obstacle(rng, rows):
    ordered = rng.integers(3, size=rows)  # of 5 tokens two are never seen
    table = np.stack([np.zeros(rows, int), ordered, np.full(rows, 3), np.full(rows, 2)], 1)
    positions = [LABELS[:1], quantiles(5), quantiles(3, missing=1), LABELS]
    drawn = copula_rows(table, positions, 500, rng)
    assert all(set(made) <= set(seen) for made, seen in zip(drawn.T, table.T, strict=True))


def test_the_same_seed_gives_the_same_rows():
    table = np.random.default_rng(1).integers(4, size=(50, 3))
    positions = [LABELS, quantiles(4), LABELS]
    one, same, other = (
        copula_rows(table, positions, 100, np.random.default_rng(seed)) for seed in (2, 2, 3)
    )
    assert (one == same).all()
    assert (one != other).any()
