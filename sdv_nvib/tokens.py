"""Table to tokens and back: every column becomes one token out of a finite vocabulary.

Second in the flow, after SDV's own transformers: a processed DataFrame in, an integer array out,
and the reverse. A missing value is a token like any other, so that its relation to other columns
is learned. No networks here.
"""

import difflib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri
from scipy.stats import kstest

from sdv_nvib.errors import InvalidTableError, UnknownValueError
from sdv_nvib.power import PowerTransform

__all__ = [
    'CategoricalColumn',
    'KnownRows',
    'NumericalColumn',
    'NumericalSummary',
    'TableSchema',
    'TableSummary',
    'grid',
    'label_index',
]

MAX_BINS = 256
VALUES_PER_BIN = 12  # at least; a small table is not learned value by value
CELLS_PER_BIN = 128
SMOOTHED_NUMBERS = 2000  # fewer are spread by a smooth density in place of their own midpoints
SMOOTH_CELLS_PER_BIN = 16
HEAPED_SHARE = 0.2  # of numbers that coincide though the density has them apart: they are heaped
LEAST_LIKELY = 0.05  # Kolmogorov-Smirnov p-value of a bin's numbers under that density
MAX_GRID_POINTS = 10_000  # of a bin; where there are more, its numbers hardly coincide
MAX_DECIMALS = 9
MAX_GRID_INTEGER = 2.0**61  # differences of two still fit in 64 bits
MAX_COUNTED = 2**16  # distinct numbers that are counted exactly over many chunks


@dataclass(frozen=True)
class CategoricalColumn:
    """A column whose tokens are its categories, the missing value last where there is one.

    Attributes:
        name: Column name in the processed table.
        categories: The distinct values, in their order where they have one.
        has_missing: Whether the missing value is a token.
        is_ordered: Whether the order of `categories` means something.
        dtype: The column's own, which decoded values have again.
    """

    name: Hashable
    categories: pd.Index
    has_missing: bool
    is_ordered: bool = False
    dtype: Any = object

    @classmethod
    def fit(cls, values: pd.Series, order: Sequence | None = None) -> 'CategoricalColumn':
        """Learn the categories of a column, rare ones included.

        Args:
            values: The column.
            order: Every possible value in ascending order, for ordinal columns.
        """
        known = label_index([] if order is None else order)
        return cls(values.name, known, False, order is not None, values.dtype).extended(values)

    def extended(self, values: pd.Series) -> 'CategoricalColumn':
        """The column with the categories of more rows, new ones last."""
        # Not `unique`, which takes text that differs after a NUL character for the same.
        present = label_index(dict.fromkeys(values.dropna().astype(object)))
        new = present[self.categories.get_indexer(present) < 0]
        has_missing = self.has_missing or bool(values.isna().any())
        if not len(new) and has_missing == self.has_missing:
            return self
        return replace(self, categories=self.categories.append(new), has_missing=has_missing)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return len(self.categories) + self.has_missing

    def knows(self, values: pd.Series) -> np.ndarray:
        """Whether each value has a token, `(N,)`."""
        known = self.categories.get_indexer(label_index(values.astype(object))) >= 0
        return np.where(values.isna(), self.has_missing, known)

    @property
    def positions(self) -> np.ndarray:
        """Quantile position of each token in (0, 1), NaN where tokens have no order."""
        if not self.is_ordered:
            return np.full(self.num_tokens, np.nan)
        return _positions(len(self.categories), self.has_missing)

    def encode(self, values: pd.Series) -> np.ndarray:
        """Values to token ids, `(N,)`.

        Raises:
            UnknownValueError: A value was not there when the schema was learned.
        """
        tokens = self.categories.get_indexer(label_index(values.astype(object)))
        missing = values.isna().to_numpy()
        tokens = np.where(missing, len(self.categories), tokens)
        unknown = (tokens < 0) | (missing & (not self.has_missing))
        if unknown.any():
            first = values[unknown].iloc[0]
            first = first.item() if isinstance(first, np.generic) else first
            raise UnknownValueError(
                f"Column '{self.name}' has {int(unknown.sum())} value(s) that were not in the "
                f'training data, the first is {first!r}. Use one of the known values; the nearest '
                f'are {self._nearest(first)}.'
            )
        return tokens

    def _nearest(self, value: object) -> list:
        """Up to three categories that are spelled most like a value."""
        by_name = {str(category): category for category in self.categories}
        names = difflib.get_close_matches(str(value), list(by_name), n=3, cutoff=0.0)
        return [by_name[name] for name in names]

    def decode(self, tokens: np.ndarray, rng: np.random.Generator) -> pd.Series:
        """Token ids to values; nothing is random here."""
        values = np.append(self.categories.to_numpy(dtype=object), [np.nan])
        return pd.Series(values[tokens], name=self.name, dtype=object).astype(self.dtype)


@dataclass
class NumericalSummary:
    """How often the values of a column of numbers occur, learned chunk by chunk.

    Exact for up to 2¹⁶ distinct values. Beyond, only the frequent ones are kept, and their counts
    are short by at most one row in 2¹⁶ (a mergeable Misra-Gries summary): point masses are found
    in one pass, whatever the number of rows.

    Attributes:
        values: Distinct values, ascending.
        counts: Rows that have each of them.
        num_numbers: Rows that have a number.
        has_missing: Whether a row has none.
        is_exact: Whether all distinct values are there.

    References:
        Agarwal et al., Mergeable summaries, ACM TODS 38 (2013), section 2.
    """

    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    num_numbers: int = 0
    has_missing: bool = False
    is_exact: bool = True

    def add(self, values: pd.Series) -> None:
        """Count the values of more rows."""
        numbers = _to_float(values)
        present = numbers[~np.isnan(numbers)]
        self.has_missing |= len(present) < len(numbers)
        self.num_numbers += len(present)
        self._prune()  # before a merge: what one chunk has alone is counted exactly
        unique, counts = np.unique(present, return_counts=True)
        together, place = np.unique(np.concatenate([self.values, unique]), return_inverse=True)
        total = np.zeros(len(together), np.int64)
        np.add.at(total, place, np.concatenate([self.counts, counts]))
        self.values, self.counts = together, total

    def _prune(self) -> None:
        if len(self.values) <= MAX_COUNTED:
            return
        least = np.partition(self.counts, -MAX_COUNTED - 1)[-MAX_COUNTED - 1]
        kept = self.counts > least
        self.values, self.counts = self.values[kept], self.counts[kept] - least
        self.is_exact = False


@dataclass(frozen=True)
class NumericalColumn:
    """A column of numbers whose tokens are ordered: single values, or bins of equal frequency.

    Each token owns cells, intervals from which a value is drawn: a value with a token of its own,
    or one that occurs more than once, is a cell of width zero and comes back exactly; another is
    spread up to the midpoints towards its neighbours.

    Attributes:
        name: Column name in the processed table.
        points: Values with a token of their own, ascending, `(P,)`.
        point_tokens: Their tokens.
        edges: Boundaries between the other tokens, ascending.
        edge_tokens: The token below each boundary, then the one above the last.
        cell_low: Lower ends of all cells, in token order, NaN for the missing value's.
        cell_high: Upper ends.
        first_cell: First cell of each token, then the number of cells, `(num_tokens + 1,)`.
        has_missing: Whether the missing value is a token (the last one).
        step: Spacing of the grid that all values lie on, 0 where there is none.
        decimals: Decimal places of the grid.
        grid_start: The smallest value.
    """

    name: Hashable
    points: np.ndarray
    point_tokens: np.ndarray
    edges: np.ndarray
    edge_tokens: np.ndarray
    cell_low: np.ndarray
    cell_high: np.ndarray
    first_cell: np.ndarray
    has_missing: bool
    step: float
    decimals: int
    grid_start: float

    @classmethod
    def fit(cls, values: pd.Series, summary: NumericalSummary | None = None) -> 'NumericalColumn':
        """Learn points, bins and cells of a column of floats.

        Args:
            values: The column; or a sample of it with its smallest and its largest value, for the
                bins.
            summary: Of the whole column, where `values` is a sample.
        """
        if summary is None:
            summary = NumericalSummary()
            summary.add(values)
        numbers = _to_float(values)
        numbers = np.sort(numbers[~np.isnan(numbers)])
        unique, total, has_missing = summary.values, summary.num_numbers, summary.has_missing
        if summary.is_exact and len(unique) <= min(MAX_BINS, max(2, total // VALUES_PER_BIN)):
            is_point = np.ones(len(unique), bool)
        else:
            is_point = summary.counts > max(total / MAX_BINS, VALUES_PER_BIN)
        groups = [np.array([point]) for point in unique[is_point]]
        bins = _equal_frequency_bins(numbers[~np.isin(numbers, unique[is_point])], len(groups))
        kinds = [True] * len(groups) + [False] * len(bins)
        groups += bins
        # Tokens in the order of their medians, so that neighbouring tokens are neighbouring values.
        order = np.argsort([np.median(group) for group in groups], kind='stable')
        token_of = np.argsort(order)
        is_bin = ~np.array(kinds, bool)
        seen = np.union1d(unique, numbers)
        spacing = step, decimals = grid(seen)
        cells = [
            _cells(groups[i], unique[is_point], step / 2) if is_bin[i] else (groups[i], groups[i])
            for i in order
        ]
        if total < SMOOTHED_NUMBERS:
            smooth = _smooth_cells(
                [groups[i] for i in order if is_bin[i]], unique[is_point], spacing
            )
            for place, of_bin in zip(np.flatnonzero(is_bin[order]), smooth, strict=True):
                cells[place] = of_bin or cells[place]
        if has_missing:
            cells.append((np.array([np.nan]), np.array([np.nan])))
        ranged = is_bin if is_bin.any() else ~is_bin
        bounds = sorted((groups[i][0], groups[i][-1], token_of[i]) for i in np.flatnonzero(ranged))
        return cls(
            name=values.name,
            points=unique[is_point],
            point_tokens=token_of[~is_bin],
            edges=np.array([low / 2 + high / 2 for (_, low, _), (high, _, _) in pairwise(bounds)]),
            edge_tokens=np.array([token for _, _, token in bounds], dtype=np.int64),
            cell_low=np.concatenate([low for low, _ in cells] or [np.empty(0)]),
            cell_high=np.concatenate([high for _, high in cells] or [np.empty(0)]),
            first_cell=np.cumsum([0] + [len(low) for low, _ in cells]),
            has_missing=has_missing,
            step=step,
            decimals=decimals,
            grid_start=seen[0] if len(seen) else np.nan,
        )

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return len(self.first_cell) - 1

    def knows(self, values: pd.Series) -> np.ndarray:
        """Whether each value has a token, `(N,)`."""
        return np.where(
            np.isnan(_to_float(values)), self.has_missing, self.num_tokens > self.has_missing
        )

    @property
    def positions(self) -> np.ndarray:
        """Quantile position of each token in (0, 1), NaN for the missing value."""
        return _positions(self.num_tokens - self.has_missing, self.has_missing)

    def encode(self, values: pd.Series) -> np.ndarray:
        """Values to token ids, `(N,)`; a number between or beyond the seen ones to the nearest.

        Raises:
            UnknownValueError: A value is missing and none was when the schema was learned, or
                the other way round.
        """
        numbers = _to_float(values)
        missing = np.isnan(numbers)
        if missing.any() and not self.has_missing:
            raise UnknownValueError(
                f"Column '{self.name}' has {int(missing.sum())} missing value(s) (nan), and had "
                'none in the training data. Fill them in first, or train on a table in which '
                'they may be missing.'
            )
        if self.num_tokens == self.has_missing:
            if not missing.all():
                raise UnknownValueError(
                    f"Column '{self.name}' has the value {numbers[~missing][0]!r}, and only "
                    'missing ones in the training data. Leave it missing.'
                )
            return np.zeros(len(numbers), dtype=np.int64)
        filled = np.where(missing, 0.0, numbers)
        tokens = self.edge_tokens[np.searchsorted(self.edges, filled)]
        if len(self.points):
            nearest = np.searchsorted(self.points, filled).clip(max=len(self.points) - 1)
            exact = self.points[nearest] == filled
            tokens = np.where(exact, self.point_tokens[nearest], tokens)
        return np.where(missing, self.num_tokens - 1, tokens)

    def decode(self, tokens: np.ndarray, rng: np.random.Generator) -> pd.Series:
        """Token ids to values, drawn evenly from the token's cells and evenly within a cell."""
        first, count = self.first_cell[tokens], np.diff(self.first_cell)[tokens]
        cell = first + (rng.random(len(tokens)) * count).astype(np.int64)
        low, high = self.cell_low[cell], self.cell_high[cell]
        inside = self._on_grid(low + rng.random(len(tokens)) * (high - low))
        # Cells of width zero are taken as they are: no arithmetic may touch a point mass.
        return pd.Series(np.where(low == high, low, inside), name=self.name)

    def decode_median(self, tokens: np.ndarray) -> pd.Series:
        """Token ids to the middle value of each token, for deterministic output."""
        middle = (self.first_cell[:-1] + self.first_cell[1:] - 1) // 2
        low, high = self.cell_low[middle], self.cell_high[middle]
        values = np.where(low == high, low, self._on_grid(low / 2 + high / 2))
        return pd.Series(values[tokens], name=self.name)

    def _on_grid(self, values: np.ndarray) -> np.ndarray:
        if not self.step:
            return values
        steps = np.round((values - self.grid_start) / self.step)
        return np.round(self.grid_start + self.step * steps, self.decimals)


def label_index(labels: Iterable) -> pd.Index:
    """Labels of any kind to look up; tuples are labels, not levels of an index."""
    return pd.Index(list(labels), dtype=object, tupleize_cols=False)


def _to_float(values: pd.Series) -> np.ndarray:
    return pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)


def _positions(num_ordered: int, has_missing: bool) -> np.ndarray:
    positions = (np.arange(num_ordered) + 0.5) / max(num_ordered, 1)
    return np.append(positions, [np.nan] * has_missing)


def _equal_frequency_bins(numbers: np.ndarray, num_points: int) -> list[np.ndarray]:
    """Sorted numbers cut into bins of about equal frequency; equal values stay together."""
    num_bins = min(MAX_BINS - num_points, len(numbers) // VALUES_PER_BIN)
    if num_bins < 2:
        return [numbers] if len(numbers) else []
    cuts = numbers[np.arange(1, num_bins) * len(numbers) // num_bins]
    starts = np.unique(np.searchsorted(numbers, cuts))
    return np.split(numbers, starts[starts > 0])


def _cells(numbers: np.ndarray, points: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values of one bin to the ends of their cells, which stop `margin` short of points."""
    if len(numbers) > CELLS_PER_BIN:
        ranks = (np.arange(CELLS_PER_BIN) + 0.5) * len(numbers) / CELLS_PER_BIN
        numbers = numbers[ranks.astype(np.int64)]
    middles = numbers[:-1] / 2 + numbers[1:] / 2
    low, high = np.append(numbers[:1], middles), np.append(middles, numbers[-1:])
    fences = np.concatenate([[-np.inf], points, [np.inf]])
    above = np.searchsorted(fences, numbers)
    low, high = (
        np.maximum(low, fences[above - 1] + margin),
        np.minimum(high, fences[above] - margin),
    )
    same_before = np.append([False], numbers[1:] == numbers[:-1])
    repeated = same_before | np.append(same_before[1:], [False])
    return np.where(repeated, numbers, low), np.where(repeated, numbers, high)


def _smooth_cells(
    bins: Sequence[np.ndarray], points: np.ndarray, spacing: tuple[float, int]
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """Sorted numbers of bins to cells of equal mass under a smooth density.

    There are none, `None`, for bins whose numbers are spread otherwise or around a point, and for
    any where the numbers are heaped.
    """
    nowhere: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(bins)
    numbers = np.concatenate([*bins, []])
    power, step = PowerTransform.of(numbers), spacing[0]
    if power is None:
        return nowhere
    if np.diff(np.unique(numbers)).min() < 4 * np.spacing(np.abs(numbers).max()):
        return nowhere  # there are hardly any floats between them
    cells, excess, chance = nowhere.copy(), 0.0, 0.0
    shares = np.linspace(0, 1, SMOOTH_CELLS_PER_BIN + 1)
    for i, (inside, (low, high)) in enumerate(
        zip(bins, _territories(bins, points, spacing), strict=True)
    ):
        # A little less than half a step, so that rounding stays inside.
        low, high = low - 0.4999 * step, high + 0.4999 * step
        with np.errstate(all='ignore'):
            least, most = ndtr(power.forward(np.array([low, high])))
            mass = np.linspace(least, most, SMOOTH_CELLS_PER_BIN + 1)
            ends = power.backward(ndtri(mass)).clip(low, high)
        ends[0], ends[-1] = low, high
        # NaN is no end either.
        if _has_between(points, inside[0], inside[-1]) or not (np.diff(ends) > 0).all():
            continue
        excess += len(inside) - len(np.unique(inside))
        if step and high - low < MAX_GRID_POINTS * step:
            cuts = np.append(np.arange(low, high, step), high)
            likely = np.diff(np.interp(cuts, ends, shares))
            alike = len(inside) - (1 - (1 - likely) ** len(inside)).sum()
            chance, excess = chance + alike, excess - alike
        if kstest(np.interp(inside, ends, shares), 'uniform').pvalue > LEAST_LIKELY:
            cells[i] = ends[:-1], ends[1:]
    is_heaped = excess > max(2 * chance**0.5, HEAPED_SHARE * len(numbers))
    return nowhere if is_heaped else cells


def _territories(
    bins: Sequence[np.ndarray], points: np.ndarray, spacing: tuple[float, int]
) -> np.ndarray:
    """Lowest and highest number that is encoded as each bin, `(B, 2)`.

    Between two bins those up to the middle belong to the lower one, unless points are there.
    """
    step, decimals = spacing
    ends = np.array([[inside[0], inside[-1]] for inside in bins])
    for below, above in pairwise(ends):
        if _has_between(points, below[1], above[0]):
            continue
        middle = below[1] / 2 + above[0] / 2
        if not step:
            below[1], above[0] = middle, np.nextafter(middle, np.inf)
            continue
        steps = np.floor((middle - below[1]) / step + 0.5)
        if np.round(below[1] + steps * step, decimals) > middle:
            steps -= 1
        below[1] = np.round(below[1] + steps * step, decimals)
        above[0] = np.round(below[1] + step, decimals)
    return ends


def _has_between(points: np.ndarray, low: float, high: float) -> bool:
    return bool(((points > low) & (points < high)).any())


def grid(unique: np.ndarray) -> tuple[float, int]:
    """Spacing and decimal places of the coarsest decimal grid of all values; 0 if there is none."""
    if len(unique) < 2:
        return 0.0, 0
    for decimals in range(MAX_DECIMALS + 1):
        whole = np.round(unique * 10.0**decimals)
        if np.abs(whole).max() > MAX_GRID_INTEGER:
            break
        if (np.round(unique, decimals) == unique).all():
            return float(np.gcd.reduce(np.diff(whole).astype(np.int64))) / 10**decimals, decimals
    return 0.0, 0


Column = CategoricalColumn | NumericalColumn


@dataclass(frozen=True)
class KnownRows:
    """Values that are given of N rows, of other columns in each row if need be.

    Attributes:
        tokens: Token ids, -1 where nothing is given, `(N, n)` int64.
        numbers: The given numbers themselves, which are one of many in their bin; NaN elsewhere,
            `(N, n)`.
    """

    tokens: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> 'KnownRows':
        """The rows in `rows`, `(R,)` integers."""
        return KnownRows(self.tokens[rows], self.numbers[rows])


@dataclass(frozen=True)
class TableSchema:
    """The vocabularies of a table's modelled columns, learned once and then frozen.

    Attributes:
        columns: One entry per modelled column, in table order.

    Examples:
        >>> table = pd.DataFrame({'colour': ['red', 'blue', None], 'size': [1.0, 2.0, 2.0]})
        >>> schema = TableSchema.fit(table, numerical={'size'})
        >>> schema.encode(table).tolist()
        [[0, 0], [1, 1], [2, 1]]
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame,
        numerical: set | frozenset,
        orders: Mapping[Hashable, Sequence] | None = None,
    ) -> 'TableSchema':
        """Learn the vocabulary of every column.

        Args:
            table: Processed table of N rows.
            numerical: Names of the columns that are numbers; all others are categories.
            orders: For ordinal columns, all values in ascending order.

        Raises:
            InvalidTableError: The table has no rows or no columns, or an infinite value.
        """
        summary = TableSummary(numerical, orders)
        summary.add(table)
        return summary.schema(table)

    @property
    def names(self) -> list[Hashable]:
        """Column names, in order."""
        return [column.name for column in self.columns]

    @property
    def sizes(self) -> list[int]:
        """Vocabulary size of each column."""
        return [column.num_tokens for column in self.columns]

    @property
    def positions(self) -> list[np.ndarray]:
        """Quantile positions of each column's tokens, NaN where there is no order."""
        return [column.positions for column in self.columns]

    def knows(self, table: pd.DataFrame) -> np.ndarray:
        """Whether every value of each row has a token, `(N,)`."""
        return np.all([column.knows(table[column.name]) for column in self.columns], axis=0)

    def encode(self, table: pd.DataFrame) -> np.ndarray:
        """Processed table to token ids, `(N, n)` int64; only the schema's columns are read."""
        encoded = [column.encode(table[column.name]) for column in self.columns]
        return np.stack(encoded, 1).astype(np.int64)

    def encode_known(self, num_rows: int, given: Iterable[pd.Series]) -> KnownRows:
        """Given cells of a processed table to known values.

        Args:
            num_rows: N.
            given: The given values of some columns, each indexed by the numbers of its rows; a
                given value may be missing. Columns that the schema does not have are passed over.

        Raises:
            UnknownValueError: A given value has no token.
        """
        shape, places = (
            (num_rows, len(self.columns)),
            {name: i for i, name in enumerate(self.names)},
        )
        tokens, numbers = np.full(shape, -1, dtype=np.int64), np.full(shape, np.nan)
        for values in given:
            if values.name not in places:
                continue
            i = places[values.name]
            column = self.columns[i]
            tokens[values.index, i] = column.encode(values)
            if isinstance(column, NumericalColumn):
                numbers[values.index, i] = _to_float(values)
        return KnownRows(tokens, numbers)

    def decode(
        self, tokens: np.ndarray, rng: np.random.Generator, known: KnownRows | None = None
    ) -> pd.DataFrame:
        """Token ids `(N, n)` to a processed table.

        Numbers are drawn inside their bins, and are the known ones where they are known.
        """
        decoded = [column.decode(tokens[:, i], rng) for i, column in enumerate(self.columns)]
        if known is not None:
            decoded = [
                values.where(np.isnan(numbers), numbers)
                if isinstance(column, NumericalColumn)
                else values
                for column, values, numbers in zip(
                    self.columns, decoded, known.numbers.T, strict=True
                )
            ]
        return pd.concat(decoded, axis=1)

    def decode_median(self, tokens: np.ndarray) -> pd.DataFrame:
        """Token ids `(N, n)` to a processed table, each bin by its middle value."""
        rng = np.random.default_rng(0)  # categories do not use it
        decoded = [
            column.decode_median(tokens[:, i])
            if isinstance(column, NumericalColumn)
            else column.decode(tokens[:, i], rng)
            for i, column in enumerate(self.columns)
        ]
        return pd.concat(decoded, axis=1)


class TableSummary:
    """What the vocabularies need to know of rows that are seen chunk by chunk.

    Args:
        numerical: Names of the columns that are numbers; all others are categories.
        orders: For ordinal columns, all values in ascending order.
    """

    def __init__(
        self, numerical: set | frozenset, orders: Mapping[Hashable, Sequence] | None = None
    ) -> None:
        self._numerical = numerical
        self._orders = orders or {}
        self._columns: dict[Hashable, CategoricalColumn | NumericalSummary] = {}

    def add(self, table: pd.DataFrame) -> None:
        """Take more rows of a processed table into account.

        Raises:
            InvalidTableError: There are no rows or no columns, or an infinite value.
        """
        if table.empty:
            raise InvalidTableError(
                f'A table needs at least one row and one modelled column, it has {len(table)} '
                f'rows and the columns {list(table.columns)}. Ids and personal data are not '
                'modelled: add a column of another sdtype.'
            )
        for name in table.columns:
            values, known = table[name], self._columns.get(name)
            if name not in self._numerical:
                self._columns[name] = (
                    known.extended(values)
                    if isinstance(known, CategoricalColumn)
                    else CategoricalColumn.fit(values, self._orders.get(name))
                )
                continue
            infinite = np.isinf(_to_float(values))
            if infinite.any():
                raise InvalidTableError(
                    f"Column '{name}' must be finite, it has {int(infinite.sum())} infinite "
                    'value(s). Replace them with a number or a missing value.'
                )
            summary = known if isinstance(known, NumericalSummary) else NumericalSummary()
            summary.add(values)
            self._columns[name] = summary

    def schema(self, sample: pd.DataFrame) -> TableSchema:
        """The vocabularies of all rows seen.

        Args:
            sample: All the rows; or a sample of them, for the bins, with the smallest and the
                largest value of every column of numbers.
        """
        return TableSchema(
            tuple(
                NumericalColumn.fit(sample[name], column)
                if isinstance(column, NumericalSummary)
                else replace(column, dtype=sample[name].dtype)
                for name, column in self._columns.items()
            )
        )
