"""Rows of a smooth model of a table: what a network sees before it sees few rows themselves.

Third in the flow, beside the network: token ids in, token ids out. No torch here.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import scale

__all__ = ['copula_rows', 'is_ordered', 'token_shares']

PENALTIES = np.geomspace(0.1, 1000, 17)
SHARE_ROUNDS, SHARE_ROWS, SHARE_RATE = 100, 4096, 0.1
CHANCE_FACTOR = 2  # what is taken off a squared covariance, in units of what chance gives
MIN_ORDERED = 3  # tokens of a column whose order counts; fewer are labels
ROWS_PER_LABEL = 5  # at least, for a chi-squared to say anything
MAX_LABELS = 4096  # whose dependence is drawn, of all columns together


def copula_rows(
    tokens: np.ndarray, positions: Sequence[np.ndarray], num_rows: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw rows from a Gaussian copula of numbers given one of labels.

    The labels of a row, its tokens without an order and what is missing, are the largest entries
    of Gaussian vectors with the covariance of their indicators. Its ordered tokens are the
    quantiles of normal scores, which depend on the labels linearly and on each other by a shrunk
    covariance. What labels have in common with another column is shrunk pair by pair, by 1 less
    twice the ratio of the squared covariances that independent columns would have to theirs: so
    much is left of the covariances of labels, and its root of the indicators that numbers depend
    on. A pair that has no more than twice is taken to be independent. Every column has its
    `token_shares` in the mean.

    Args:
        tokens: Token ids of the table, `(N, n)`, at least 2 rows.
        positions: Quantile positions of each column's tokens, NaN where a token has no order
            (`TableSchema.positions`).
        num_rows: Rows to draw.
        rng: Source of randomness.

    Returns:
        Token ids, `(num_rows, n)` int64.

    References:
        James and Stein, Estimation with quadratic loss, Fourth Berkeley Symposium (1961), for the
        pairs; Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance
        matrices, Journal of Multivariate Analysis 88 (2004), for the scores.
    """
    num_ordered = [int(np.isfinite(p).sum()) for p in positions]
    ordered = [i for i, p in enumerate(positions) if is_ordered(p)]
    labelled = [i for i, p in enumerate(positions) if i not in ordered or np.isnan(p).any()]
    indicators = [
        np.eye(2)[(tokens[:, i] == num_ordered[i]).astype(np.int64)]  # its last one is missing
        if i in ordered
        else np.eye(len(positions[i]))[tokens[:, i]]
        for i in labelled
    ]
    label_shares = [
        indicator.mean(0) if i in ordered else token_shares(tokens[:, i], positions[i])
        for i, indicator in zip(labelled, indicators, strict=True)
    ]
    drawn_labels = _draw_labels(indicators, label_shares, num_rows, rng)
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


def is_ordered(positions: np.ndarray) -> bool:
    """Whether a column is one of numbers to the copula; others are labels.

    Args:
        positions: Quantile positions of its tokens, NaN where a token has no order.
    """
    return int(np.isfinite(positions).sum()) >= MIN_ORDERED


def token_shares(column: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Shares of a column's tokens that drawn rows are to have.

    They are those of the column's rows. But labels, or what has fewer than three ordered tokens,
    whose counts are no more unequal than equal shares would make them (chi-squared at most its
    expectation) have equal ones: what chance has made says which rows they were.

    Args:
        column: Token ids of the column, `(N,)`.
        positions: Quantile positions of its tokens, NaN where a token has no order.

    Returns:
        Shares, `(tokens,)`, 0 of tokens that no row has.
    """
    counts = np.bincount(column, minlength=len(positions))
    shares = counts / max(1, len(column))
    seen = counts > 0
    num_rows, num_labels = len(column), int(seen.sum())
    if is_ordered(positions) or num_rows < ROWS_PER_LABEL * max(1, num_labels):
        return shares
    # Chi-squared and its expectation times the rows, in whole numbers.
    if num_labels * (counts**2).sum() - num_rows**2 <= (num_labels - 1) * num_rows:
        shares[seen] = 1 / num_labels
    return shares


def _shares(column: np.ndarray, size: int) -> np.ndarray:
    """Shares of the tokens of a column, `(size,)`."""
    return np.bincount(column, minlength=size) / max(1, len(column))


def _left_of(squares: np.ndarray, spreads: np.ndarray | float, num_rows: int) -> np.ndarray:
    """How much of the covariances of pairs of columns is left, in [0, 1].

    Args:
        squares: Sum of the squared covariances of each pair.
        spreads: Product of the variances of both.
        num_rows: Rows that they are from: independent columns have squares of spreads / num_rows.
    """
    chance = CHANCE_FACTOR * spreads / num_rows
    return 1 - np.divide(chance, squares, out=np.ones_like(squares), where=squares > chance)


def _valid(factors: np.ndarray) -> np.ndarray:
    """A correlation matrix near symmetric factors: no variance is negative in any direction."""
    np.fill_diagonal(factors, 1)
    values, vectors = np.linalg.eigh(factors)
    root = vectors * np.sqrt(values.clip(0))
    root /= np.sqrt((root**2).sum(1, keepdims=True))
    return root @ root.T


def _draw_labels(
    indicators: Sequence[np.ndarray],
    shares: Sequence[np.ndarray],
    num_rows: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Labels that depend on each other as those of `(N, k)` indicators do, less what is chance."""
    sizes = np.array([indicator.shape[1] for indicator in indicators], np.int64)
    by_size = sizes.argsort(kind='stable')
    joint = by_size[sizes[by_size].cumsum() <= MAX_LABELS]  # the others depend on no label
    drawn = [rng.choice(len(share), num_rows, p=share) for share in shares]
    if not len(joint):
        return drawn
    num_seen, starts = len(indicators[0]), sizes[joint].cumsum() - sizes[joint]
    deviations = np.concatenate([indicators[i] - indicators[i].mean(0) for i in joint], 1)
    covariance = deviations.T @ deviations / num_seen
    squares = np.add.reduceat(np.add.reduceat(covariance**2, starts), starts, 1)
    spread = np.add.reduceat(covariance.diagonal(), starts)
    left = _valid(_left_of(squares, np.outer(spread, spread), num_seen))
    block = np.repeat(np.arange(len(joint)), sizes[joint])
    covariance *= left[block[:, None], block]
    covariance[np.diag_indices_from(covariance)] += 1e-8  # labels of a column add up to nothing
    root = np.linalg.cholesky(covariance).astype(np.float32)
    heights = rng.standard_normal((num_rows, len(root)), np.float32) @ root.T
    for i, height in zip(joint, np.split(heights, starts[1:], 1), strict=True):
        share = shares[i].astype(np.float32)
        height = height + share
        bias = np.where(share > 0, 0, -np.inf).astype(np.float32)
        for _ in range(SHARE_ROUNDS):
            highest = (height[:SHARE_ROWS] + bias).argmax(1)
            # Half a row more on either side: a rare label may have been drawn for none.
            ratio = (share + 0.5 / SHARE_ROWS) / (_shares(highest, len(share)) + 0.5 / SHARE_ROWS)
            bias += SHARE_RATE * np.log(ratio).clip(-1, 1).astype(np.float32)
        drawn[i] = (height + bias).argmax(1)
    return drawn


def _draw_scores(
    scores: np.ndarray,
    indicators: Sequence[np.ndarray],
    drawn_labels: Sequence[np.ndarray],
    num_rows: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Normal scores given drawn labels: ridge regressions, and residuals with a covariance."""
    num_seen, num_scores = scores.shape
    drawn = np.zeros((num_rows, num_scores))
    residuals, unexplained = scores.copy(), np.ones(num_scores)
    squares = [((x.T @ scores / num_seen) ** 2).sum(0) for x in indicators]  # scores have mean 0
    scaled = [
        np.sqrt(_left_of(square, x.var(0).sum(), num_seen))
        for square, x in zip(squares, indicators, strict=True)
    ]
    for t in range(num_scores):
        used = [g for g, factor in enumerate(scaled) if factor[t] > 0]
        if not used:
            continue
        seen = np.concatenate([scaled[g][t] * indicators[g] for g in used], 1)
        ridge = RidgeCV(PENALTIES).fit(seen, scores[:, t])
        residuals[:, t] -= ridge.predict(seen)
        unexplained[t] = -ridge.best_score_  # mean squared error of rows left out one by one
        ends = np.cumsum([indicators[g].shape[1] for g in used])
        for g, effect in zip(used, np.split(ridge.coef_, ends[:-1]), strict=True):
            drawn[:, t] += scaled[g][t] * effect[drawn_labels[g]]
    covariance, _ = ledoit_wolf(scale(residuals))
    noise = rng.multivariate_normal(np.zeros(num_scores), covariance, num_rows, method='eigh')
    return drawn + noise * np.sqrt(unexplained.clip(0, 1))
