"""Rows of a smooth model of a table: what a network sees before it sees few rows themselves.

Third in the flow, beside the network: token ids in, token ids out. No torch here.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import scale

__all__ = ['copula_rows']

PENALTIES = np.geomspace(0.1, 1000, 17)
SHARE_ROUNDS, SHARE_ROWS, SHARE_RATE = 100, 4096, 0.1


def copula_rows(
    tokens: np.ndarray, positions: Sequence[np.ndarray], num_rows: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw rows from a Gaussian copula of numbers given one of labels.

    The labels of a row, its tokens without an order and what is missing, are the largest entries
    of Gaussian vectors with the covariance of their indicators, shrunk between columns. Its ordered
    tokens are the quantiles of normal scores, which depend on the labels linearly and on each
    other by a shrunk covariance. All strengths of shrinkage are estimated. Every column has its
    shares of the table in the mean.

    Args:
        tokens: Token ids of the table, `(N, n)`, at least 2 rows.
        positions: Quantile positions of each column's tokens, NaN where a token has no order
            (`TableSchema.positions`).
        num_rows: Rows to draw.
        rng: Source of randomness.

    Returns:
        Token ids, `(num_rows, n)` int64.

    References:
        Schäfer and Strimmer, A shrinkage approach to large-scale covariance matrix estimation,
        Statistical Applications in Genetics and Molecular Biology 4 (2005), target D; Ledoit and
        Wolf, A well-conditioned estimator for large-dimensional covariance matrices, Journal of
        Multivariate Analysis 88 (2004).
    """
    num_ordered = [int(np.isfinite(p).sum()) for p in positions]
    ordered = [i for i, k in enumerate(num_ordered) if k > 2]
    labelled = [i for i, p in enumerate(positions) if i not in ordered or np.isnan(p).any()]
    indicators = [
        np.eye(2)[(tokens[:, i] == num_ordered[i]).astype(np.int64)]  # its last one is missing
        if i in ordered
        else np.eye(len(positions[i]))[tokens[:, i]]
        for i in labelled
    ]
    drawn_labels = _draw_labels(indicators, num_rows, rng)
    drawn = np.zeros((num_rows, tokens.shape[1]), np.int64)
    for i, column in zip(labelled, drawn_labels, strict=True):
        drawn[:, i] = column * num_ordered[i] if i in ordered else column
    if not ordered:
        return drawn
    ends, scores = [], []
    for i in ordered:
        present = tokens[:, i] < num_ordered[i]
        shares = _shares(tokens[present, i], num_ordered[i])
        ends.append(np.cumsum(shares))
        middles = np.append(ends[-1] - shares / 2, 0.5)  # a missing one's is its column's mean
        scores.append(ndtri(middles)[tokens[:, i]])
    drawn_scores = _draw_scores(scale(np.stack(scores, 1)), indicators, drawn_labels, num_rows, rng)
    for i, end, score in zip(ordered, ends, drawn_scores.T, strict=True):
        present = drawn[:, i] < num_ordered[i]
        rank = score[present].argsort().argsort()
        quantile = (rank + rng.random(len(rank))) / max(1, len(rank))
        drawn[present, i] = np.searchsorted(end[:-1], quantile, side='right')
    return drawn


def _shares(column: np.ndarray, size: int) -> np.ndarray:
    """Shares of the tokens of a column, `(size,)`."""
    return np.bincount(column, minlength=size) / max(1, len(column))


def _draw_labels(
    indicators: Sequence[np.ndarray], num_rows: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Labels that depend on each other as those of `(N, k)` indicators do, less what is chance."""
    if not indicators:
        return []
    centred = [indicator - indicator.mean(0) for indicator in indicators]
    shrinkage = _shrinkage(centred)
    num_seen = len(centred[0])
    shared = rng.standard_normal((num_rows, num_seen), np.float32)
    drawn = []
    for indicator, deviation in zip(indicators, centred, strict=True):
        size = indicator.shape[1]
        joint = shared @ (deviation / np.sqrt(num_seen)).astype(np.float32)
        share = indicator.mean(0).astype(np.float32)
        root = np.sqrt(share)
        own = root * rng.standard_normal((num_rows, size), np.float32)
        own -= root**2 * own.sum(1, keepdims=True)  # the covariance of an indicator, too
        height = share + math.sqrt(1 - shrinkage) * joint + math.sqrt(shrinkage) * own
        bias = np.where(share > 0, 0, -np.inf).astype(np.float32)
        for _ in range(SHARE_ROUNDS):
            highest = (height[:SHARE_ROWS] + bias).argmax(1)
            # Half a row more on either side: a rare label may have been drawn for none.
            ratio = (share + 0.5 / SHARE_ROWS) / (_shares(highest, size) + 0.5 / SHARE_ROWS)
            bias += SHARE_RATE * np.log(ratio).clip(-1, 1).astype(np.float32)
        drawn.append((height + bias).argmax(1))
    return drawn


def _shrinkage(columns: Sequence[np.ndarray]) -> float:
    """How much of the squared covariances between columns is expected of chance, in [0, 1].

    Args:
        columns: Centred vectors of every row for each column, `(N, k)` each; they are compared at
            a total variance of 1.
    """
    num_rows = len(columns[0])
    norm, products = np.zeros(num_rows), np.zeros((num_rows, num_rows))
    fourth = squares = 0.0  # what columns have by themselves is taken off
    for column in columns:
        scaled = column / max(np.sqrt(column.var(0).sum()), 1e-9)
        gram = scaled @ scaled.T / num_rows
        squares -= (gram**2).sum()
        fourth -= (gram.diagonal() ** 2).mean() * num_rows**2
        products += gram
        norm += gram.diagonal() * num_rows
    squares += (products**2).sum()
    fourth += (norm**2).mean()
    variance = (fourth - squares) / (num_rows - 1)
    return float(np.clip(variance / max(squares, 1e-12), 0, 1))


def _draw_scores(
    scores: np.ndarray,
    indicators: Sequence[np.ndarray],
    drawn_labels: Sequence[np.ndarray],
    num_rows: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Normal scores given drawn labels: ridge regression, and residuals with a covariance."""
    drawn = np.zeros((num_rows, scores.shape[1]))
    residuals, left = scores, np.ones(scores.shape[1])
    if indicators:
        seen = np.concatenate(indicators, 1)
        ridge = RidgeCV(PENALTIES, alpha_per_target=True).fit(seen, scores)
        residuals = scores - ridge.predict(seen).reshape(scores.shape)
        left = -np.asarray(ridge.best_score_)  # mean squared error of rows left out one by one
        effects = ridge.coef_.reshape(scores.shape[1], -1).T
        offsets = np.cumsum([0, *(indicator.shape[1] for indicator in indicators)])
        for column, offset in zip(drawn_labels, offsets, strict=False):
            drawn += effects[offset + column]
    covariance, _ = ledoit_wolf(scale(residuals))
    noise = rng.multivariate_normal(np.zeros(len(left)), covariance, num_rows, method='eigh')
    return drawn + noise * np.sqrt(left.clip(0, 1))
