"""Scores of synthetic rows against real ones, and a picture of both.

Duty: everything that is measured after sampling. `evaluate_quality` gathers SDMetrics' reports and
the scores that published tables use in one plain table; each score is also a function of its own,
tables in and a float out, so that a benchmark scores every synthesizer with the same code. This
module knows nothing of any synthesizer.

All scores look at the *modelled* columns: numerical, datetime, categorical and boolean ones of the
metadata. Keys, ids and personal data are made by generators, so they are left out. Category labels
are compared as text (a trip through CSV changes their type), dates as numbers (nanoseconds), and a
missing value counts as a value of its own wherever a score allows it.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from sdv_nvib.errors import InvalidParameterError

if TYPE_CHECKING:
    from sdv.metadata import Metadata

Table = pd.DataFrame | dict[str, pd.DataFrame]

LABEL_SDTYPES = ('categorical', 'boolean', 'ordinal')
TREND_BINS = 10
MISSING = '(missing)'
SPARSE_VALUES = 20
TREE_LEVELS = 255  # scikit-learn's gradient boosting knows at most 255 levels per column
C2ST_ROWS = 10_000
C2ST_FOLDS = 3
UTILITY_ROWS = 50_000
UTILITY_CLASSES = 30
DISTANCE_ROWS = 5_000
REFERENCE_ROWS = 20_000
MAX_PARTS = 20  # of a longer table, for a DCR share
FLOOR_REPEATS = 5
DISTANCE_CHUNK = 500
NEIGHBOUR = 5
SDMETRICS_DCR_ROWS = 1_000
SDMETRICS_DCR_CHUNK = 250
DISCLOSURE_ROWS = 10_000
RESAMPLES = 200
NEEDS_UNSEEN = 'it needs real rows that were not used for training; give them as `test`'
DISTANCE_AUC = 'membership inference by distance (AUC)'
DISTANCE_TPR = 'membership inference by distance (TPR at 1 % FPR)'
LIKELIHOOD_AUC = 'membership inference by likelihood (AUC)'
LIKELIHOOD_TPR = 'membership inference by likelihood (TPR at 1 % FPR)'
REAL_COLOUR, SYNTHETIC_COLOUR = '#0072B2', '#E69F00'  # Okabe and Ito: safe for colour-blind eyes


@dataclass(frozen=True)
class QualityEvaluation:
    """Everything `evaluate_quality` found out about one synthetic table.

    Attributes:
        quality_report: SDMetrics' QualityReport, as `sdv.evaluation.evaluate_quality` gives it.
        diagnostic_report: SDMetrics' DiagnosticReport, as `sdv.evaluation.run_diagnostic` gives it.
        summary: One row per measure, with the columns `measure`, `value`, `ideal` (NaN where there
            is none) and `meaning`. A measure that cannot be taken is NaN, and `meaning` says why.
        shape_errors: How far each column is off, as `shape_errors` returns it.
        pair_errors: How far each pair of columns is off, as `pair_errors` returns it.
    """

    quality_report: Any = field(repr=False)
    diagnostic_report: Any = field(repr=False)
    summary: pd.DataFrame
    shape_errors: pd.Series = field(repr=False)
    pair_errors: pd.DataFrame = field(repr=False)

    def to_dict(self) -> dict[str, float]:
        """Return the value of every measure under the measure's name."""
        return dict(zip(self.summary['measure'], self.summary['value'].astype(float), strict=True))


@dataclass(frozen=True)
class BinnedTables:
    """Two tables as codes of labelled bins: what pictures and counts are made of.

    Attributes:
        labels: Modelled column to the names of its bins, in order.
        ordered: Whether the bins of each column have an order (numbers and dates).
        real: Codes of the real rows, `(rows, columns)` int64.
        synthetic: Codes of the synthetic rows, `(rows, columns)` int64.
    """

    labels: dict[str, list[str]]
    ordered: list[bool]
    real: np.ndarray
    synthetic: np.ndarray


@dataclass(frozen=True)
class _Encoded:
    """Tables as numbers: one (rows, columns) float64 array each, NaN for a missing value.

    A category is its rank by joint frequency, the same in all tables.
    """

    names: list[str]
    categorical: np.ndarray
    tables: list[np.ndarray]


# ------------------------------------------------------------------------- tables to numbers


def _table_metadata(metadata: Metadata) -> tuple[str, dict[str, Any]]:
    """Return the name and the metadata dictionary of the only table."""
    if not hasattr(metadata, 'to_dict'):
        raise InvalidParameterError(
            'metadata must be an sdv.metadata.Metadata with one table, received '
            f'{type(metadata).__name__}. Load it with Metadata.load_from_json or load_from_dict.'
        )
    tables = metadata.to_dict().get('tables', {})
    if len(tables) != 1:
        raise InvalidParameterError(
            f'metadata must describe exactly one table, received {len(tables)}: {list(tables)}. '
            'Evaluate each table with metadata of its own.'
        )
    return next(iter(tables.items()))


def _modelled_columns(table_metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metadata of the modelled columns: of statistical sdtype and no key."""
    keys: set[str] = set()
    for entry in ('primary_key', 'sequence_key'):
        key = table_metadata.get(entry) or []
        keys.update([key] if isinstance(key, str) else key)
    for alternate in table_metadata.get('alternate_keys') or []:
        keys.update([alternate] if isinstance(alternate, str) else alternate)
    sdtypes = ('numerical', 'datetime', *LABEL_SDTYPES)
    return {
        name: column
        for name, column in table_metadata['columns'].items()
        if name not in keys and column['sdtype'] in sdtypes
    }


def _frame(table: Table, metadata: Metadata, argument: str) -> pd.DataFrame:
    """Return the table as a frame that holds the metadata's columns, or say what is wrong."""
    name, table_metadata = _table_metadata(metadata)
    if isinstance(table, dict):
        if list(table) != [name]:
            raise InvalidParameterError(
                f'{argument} must hold the one table {name!r} of the metadata, received '
                f'{list(table)}.'
            )
        table = table[name]
    if not isinstance(table, pd.DataFrame):
        raise InvalidParameterError(
            f'{argument} must be a DataFrame or a dictionary with one, received '
            f'{type(table).__name__}.'
        )
    names = table.columns.astype(str)
    if any(isinstance(column, int) for column in table.columns) and names.is_unique:
        table = table.set_axis(names, axis=1)  # as SDV does in `fit`
    missing = [column for column in table_metadata['columns'] if column not in table.columns]
    if missing:
        raise InvalidParameterError(
            f'{argument} must have every column of table {name!r}; it lacks {missing}. '
            'Add them, or remove them from the metadata.'
        )
    if len(table) == 0:
        raise InvalidParameterError(f'{argument} must have at least one row, received none.')
    return table[list(table_metadata['columns'])].reset_index(drop=True)


def _label_text(label: Any) -> str:
    """Return the text of a category label, a whole number without decimals."""
    if isinstance(label, (float, np.floating)) and math.isfinite(label) and label == int(label):
        return str(int(label))
    return str(label)


def _text(series: pd.Series) -> pd.Series:
    """Return the labels as text, missing ones as None."""
    codes, labels = pd.factorize(series)
    texts = np.array([_label_text(label) for label in labels] + [None], dtype=object)
    return pd.Series(texts[codes], index=series.index, name=series.name, dtype=object)


def _number(series: pd.Series, column: dict[str, Any]) -> np.ndarray:
    """Return numbers, or nanoseconds since 1970 for dates, as float64 with NaN for missing."""
    if column['sdtype'] == 'datetime':
        if not pd.api.types.is_datetime64_any_dtype(series):
            text_format = column.get('datetime_format')
            dates = pd.to_datetime(series, format=text_format, errors='coerce', utc=True)
            if text_format and dates.isna().sum() > series.isna().sum():
                loose = pd.to_datetime(series, format='mixed', errors='coerce', utc=True)
                dates = dates.fillna(loose)
            series = dates
        if series.dt.tz is not None:
            series = series.dt.tz_convert('UTC').dt.tz_localize(None)
        values = series.astype('datetime64[ns]').astype('int64').to_numpy(float)
        values[series.isna().to_numpy()] = np.nan
        return values
    values = pd.to_numeric(series, errors='coerce').to_numpy(dtype=float, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _encode(tables: list[pd.DataFrame], metadata: Metadata) -> _Encoded:
    """Turn tables of one metadata into numbers, with category codes common to all of them."""
    name, table_metadata = _table_metadata(metadata)
    columns = _modelled_columns(table_metadata)
    if not columns:
        raise InvalidParameterError(
            f'table {name!r} must have a numerical, datetime, categorical or boolean column that '
            'is no key; it has none, so there is nothing to score.'
        )
    names = list(columns)
    categorical = np.array([columns[n]['sdtype'] in LABEL_SDTYPES for n in names])
    out = [np.empty((len(table), len(names))) for table in tables]
    for j, column in enumerate(names):
        if categorical[j]:
            texts = [_text(table[column]) for table in tables]
            counts = pd.concat(texts).value_counts()
            # by frequency, then by name: the same codes in every run
            order = counts.sort_index().sort_values(ascending=False, kind='stable')
            codes = pd.Series(np.arange(len(order), dtype=float), index=order.index)
            for array, text in zip(out, texts, strict=True):
                array[:, j] = text.map(codes).to_numpy(float)
        else:
            for array, table in zip(out, tables, strict=True):
                array[:, j] = _number(table[column], columns[column])
    return _Encoded(names, categorical, out)


def _encode_checked(metadata: Metadata, **tables: Table) -> _Encoded:
    """Check the named tables and encode them, in the order given."""
    return _encode([_frame(table, metadata, name) for name, table in tables.items()], metadata)


def _subsample(rows: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most `size` rows, drawn without replacement."""
    return rows if len(rows) <= size else rows[rng.permutation(len(rows))[:size]]


# ------------------------------------------------------------------------- shapes and trends


def _total_variation(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the total variation distance between two samples of integer codes, in [0, 1]."""
    size = int(max(real.max(), synthetic.max())) + 1
    if size > 1_000_000:  # wide code ranges: count only what occurs
        codes = np.unique(np.concatenate([real, synthetic]), return_inverse=True)[1]
        real, synthetic = codes[: len(real)], codes[len(real) :]
        size = int(codes.max()) + 1
    p = np.bincount(real, minlength=size) / len(real)
    q = np.bincount(synthetic, minlength=size) / len(synthetic)
    return float(np.abs(p - q).sum() / 2)


def _kolmogorov_smirnov(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the largest distance between two empirical distribution functions, in [0, 1]."""
    values = np.concatenate([real, synthetic])
    below_real = np.searchsorted(np.sort(real), values, side='right') / len(real)
    below_synthetic = np.searchsorted(np.sort(synthetic), values, side='right') / len(synthetic)
    return float(np.abs(below_real - below_synthetic).max())


def shape_errors(real: Table, synthetic: Table, metadata: Metadata) -> pd.Series:
    """Return how far each column's distribution is off.

    Args:
        real: Real rows.
        synthetic: Synthetic rows, any number of them.
        metadata: Metadata with one table.

    Returns:
        One value in [0, 1] per modelled column: 1 - KSComplement for numbers and dates,
        1 - TVComplement for categories, over the values that are there. A column without any value
        scores 0 if both tables have none, else 1.

    Raises:
        InvalidParameterError: If tables and metadata do not fit.
    """
    encoded = _encode_checked(metadata, real=real, synthetic=synthetic)
    errors = {}
    for j, name in enumerate(encoded.names):
        a, b = (table[~np.isnan(table[:, j]), j] for table in encoded.tables)
        if len(a) == 0 or len(b) == 0:
            errors[name] = float(len(a) != len(b))
        elif encoded.categorical[j]:
            errors[name] = _total_variation(a.astype(np.int64), b.astype(np.int64))
        else:
            errors[name] = _kolmogorov_smirnov(a, b)
    return pd.Series(errors, name='shape error')


def shape_error(real: Table, synthetic: Table, metadata: Metadata) -> float:
    """Return the mean error of the columns' distributions in per cent (0 is best).

    Arguments and errors are those of `shape_errors`, of which this is the mean.

    Source:
        "Shape" of Zhang et al., TabSyn, ICLR 2024 (arXiv 2310.09656), section 4.
    """
    return 100 * float(shape_errors(real, synthetic, metadata).mean())


def _trend_codes(encoded: _Encoded) -> list[np.ndarray]:
    """Return the tables as integer codes, numbers cut at the first table's bins; 0 is missing."""
    out = [np.zeros(table.shape, dtype=np.int64) for table in encoded.tables]
    for j, is_category in enumerate(encoded.categorical):
        first = encoded.tables[0][:, j]
        known = first[~np.isnan(first)]
        # Equal widths over the real range; the outer bins are open, so values beyond it fall there.
        low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
        inner = np.linspace(low, high, TREND_BINS + 1)[1:-1]
        for codes, table in zip(out, encoded.tables, strict=True):
            present = ~np.isnan(table[:, j])
            values = table[present, j]
            binned = values if is_category else np.searchsorted(inner, values, side='right')
            codes[present, j] = binned.astype(np.int64) + 1
    return out


def _correlations(encoded: _Encoded) -> list[np.ndarray]:
    """Return each table's Pearson correlations over pairwise complete rows, 0 where undefined."""
    with np.errstate(all='ignore'):
        return [np.nan_to_num(pd.DataFrame(table).corr().to_numpy()) for table in encoded.tables]


def pair_errors(real: Table, synthetic: Table, metadata: Metadata) -> pd.DataFrame:
    """Return how far the dependence of each pair of columns is off.

    Args:
        real: Real rows; they give the bins.
        synthetic: Synthetic rows, any number of them.
        metadata: Metadata with one table.

    Returns:
        A symmetric (columns, columns) frame with values in [0, 1] and NaN on the diagonal. Two
        numbers or dates: half the absolute difference of their Pearson correlations (over rows
        that have both; a constant column correlates 0). Otherwise the total variation distance of
        the contingency tables, a number cut into 10 equal-width bins over the real range and a
        missing value taken as a category.

    Raises:
        InvalidParameterError: If tables and metadata do not fit.
    """
    encoded = _encode_checked(metadata, real=real, synthetic=synthetic)
    codes, correlations = _trend_codes(encoded), _correlations(encoded)
    size = len(encoded.names)
    errors = np.full((size, size), np.nan)
    for i in range(size):
        for j in range(i):
            if encoded.categorical[i] or encoded.categorical[j]:
                levels = max(int(table[:, j].max()) for table in codes) + 1
                a, b = (table[:, i] * levels + table[:, j] for table in codes)
                errors[i, j] = _total_variation(a, b)
            else:
                errors[i, j] = abs(correlations[0][i, j] - correlations[1][i, j]) / 2
            errors[j, i] = errors[i, j]
    return pd.DataFrame(errors, index=encoded.names, columns=encoded.names)


def trend_error(real: Table, synthetic: Table, metadata: Metadata) -> float:
    """Return the mean error over all pairs of columns in per cent (0 is best).

    This is the published kind. SDMetrics' Column Pair Trends differs twice: it averages only the
    pairs that depend strongly in the real table, and it cuts each table over its own range, so
    that one outlier moves every bin.

    Arguments and errors are those of `pair_errors`, of which this is the mean; NaN for a table
    with a single modelled column.

    Source:
        "Trend" of Zhang et al., TabSyn, ICLR 2024 (arXiv 2310.09656), section 4.
    """
    return _mean_trend_error(pair_errors(real, synthetic, metadata))


def _mean_trend_error(errors: pd.DataFrame) -> float:
    """Return the mean over pairs in per cent, NaN for a table with a single modelled column."""
    below = errors.to_numpy()[np.tril_indices(len(errors), -1)]
    return 100 * float(below.mean()) if len(below) else math.nan


def trend_error_floor(
    real: Table, metadata: Metadata, *, seed: int = 0, repeats: int = FLOOR_REPEATS
) -> float:
    """Return the trend error in per cent that a second real sample of this size would have.

    Args:
        real: Real rows, at least 2.
        metadata: Metadata with one table.
        seed: Seed of the random halves.
        repeats: How many random halvings are averaged, at least 1.

    Returns:
        The mean trend error between two random halves over the square root of 2: halves carry
        twice the variance of the whole. NaN for a single row or a single column.

    Raises:
        InvalidParameterError: If table and metadata do not fit.
    """
    rows = _frame(real, metadata, 'real')
    if len(rows) < 2:
        return math.nan
    rng, half, errors = np.random.default_rng(seed), len(rows) // 2, []
    for _ in range(repeats):
        order = rng.permutation(len(rows))
        halves = rows.iloc[order[:half]], rows.iloc[order[half:]]
        errors.append(trend_error(*halves, metadata))
    return float(np.mean(errors)) / math.sqrt(2)


def _bin_number(value: float, width: float, is_date: bool) -> str:
    """Return a bin's edge as text, as exact as the bins are wide."""
    if is_date:
        text = str(np.datetime64(int(value), 'ns').astype('datetime64[s]'))
        return text.replace('T', ' ') if width < 2 * 86_400e9 else text[:10]
    decimals = max(0, 1 - math.floor(math.log10(width))) if width > 0 else 2
    return f'{value:.{decimals}f}' if decimals < 8 else f'{value:.4g}'


def _bin_numbers(
    tables: list[np.ndarray], bins: int, is_date: bool
) -> tuple[list[np.ndarray], list[str]]:
    """Return codes (-1: missing) and names of bins over the middle 99 % of the real values.

    The outermost bins are open, so neither the smallest nor the largest value can be read off.
    """
    known = np.concatenate([table[~np.isnan(table)] for table in tables])
    first = tables[0][~np.isnan(tables[0])]
    first = first if len(first) else known
    values = np.unique(first)
    if len(values) <= bins:  # few values: a bin for each, and others go to the nearest
        inner = (values[1:] + values[:-1]) / 2
        step = float(np.diff(values).min()) if len(values) > 1 else 1.0
        whole = not is_date and bool((values == np.round(values)).all())
        names = [f'{v:.0f}' if whole else _bin_number(v, step, is_date) for v in values]
    else:
        low, high = np.quantile(first, [0.005, 0.995])
        low, high = (low, high) if high > low else (values[0], values[-1])
        inner = np.linspace(low, high, bins + 1)[1:-1]
        edges = [_bin_number(edge, (high - low) / bins, is_date) for edge in inner]
        middle = [f'{a} to {b}' for a, b in pairwise(edges)]
        names = [f'below {edges[0]}', *middle, f'{edges[-1]} and more']
    codes = [np.searchsorted(inner, table, side='right') for table in tables]
    return [np.where(np.isnan(t), -1, c) for t, c in zip(tables, codes, strict=True)], names


def _bin_labels(tables: list[pd.Series], bins: int) -> tuple[list[np.ndarray], list[str]]:
    """Return codes (-1: missing) and names of the most frequent real labels, the rest as one."""
    texts = [_text(table) for table in tables]
    counts = texts[0].value_counts()
    names = list(counts.sort_index().sort_values(ascending=False, kind='stable').index)
    if len(names) > bins or not all(text.dropna().isin(names).all() for text in texts):
        names = names[: bins - 1]
    place = {name: code for code, name in enumerate(names)}
    codes = [
        np.where(text.isna(), -1, text.map(place).fillna(len(names)).to_numpy(float))
        for text in texts
    ]
    others = any((code == len(names)).any() for code in codes)
    return [code.astype(np.int64) for code in codes], [*names, *['(others)'] * others]


def bin_tables(
    real: Table, synthetic: Table, metadata: Metadata, *, bins: int = 24
) -> BinnedTables:
    """Cut every modelled column of both tables into the same few bins.

    Args:
        real: Real rows; they give the bins.
        synthetic: Synthetic rows, any number of them.
        metadata: Metadata with one table.
        bins: Most bins per column, at least 2; a missing value gets one more. Numbers and dates:
            their values if there are few, else equal widths over the middle 99 % of the real
            values, the outer bins open. Categories: the most frequent ones, and one for the rest.

    Returns:
        The codes of both tables and the names of the bins.

    Raises:
        InvalidParameterError: If tables and metadata do not fit.
    """
    tables = [_frame(real, metadata, 'real'), _frame(synthetic, metadata, 'synthetic')]
    columns = _modelled_columns(_table_metadata(metadata)[1])
    labels, ordered = {}, []
    out = [np.empty((len(table), len(columns)), dtype=np.int64) for table in tables]
    for j, (name, column) in enumerate(columns.items()):
        ordered.append(column['sdtype'] not in LABEL_SDTYPES)
        if ordered[j]:
            numbers = [_number(table[name], column) for table in tables]
            codes, names = _bin_numbers(numbers, bins, column['sdtype'] == 'datetime')
        else:
            codes, names = _bin_labels([table[name] for table in tables], bins)
        if any((code == -1).any() for code in codes):
            codes = [np.where(code == -1, len(names), code) for code in codes]
            names = [*names, MISSING]
        for array, code in zip(out, codes, strict=True):
            array[:, j] = code
        labels[name] = names
    return BinnedTables(labels, ordered, *out)


# ------------------------------------------------------------------------- classifiers


def _for_trees(tables: list[np.ndarray], categorical: np.ndarray) -> list[np.ndarray]:
    """Return the tables with at most 255 levels per category; the rarer ones share the last."""
    return [np.where(categorical, np.minimum(table, TREE_LEVELS - 1), table) for table in tables]


def _fill_sparse(
    learned: np.ndarray, categorical: np.ndarray, *others: np.ndarray
) -> list[np.ndarray]:
    """Return the tables with missing as the lowest number of numbers that `learned` hardly has.

    scikit-learn cannot bin a number that is missing in every row, and each fold, or what early
    stopping leaves of one, may be without the few values that there are.
    """
    missing = np.isnan(learned)
    sparse = ~categorical & ((~missing).sum(axis=0) < SPARSE_VALUES)
    lowest = np.where(missing, np.inf, learned).min(axis=0) - 1
    lowest = np.where(np.isfinite(lowest), lowest, 0.0)
    return [np.where(sparse & np.isnan(table), lowest, table) for table in (learned, *others)]


def c2st(
    real: Table,
    synthetic: Table,
    metadata: Metadata,
    *,
    seed: int = 0,
    max_rows: int = C2ST_ROWS,
) -> float:
    """Return how well a gradient-boosted classifier is deceived (classifier two-sample test).

    Args:
        real: Real rows.
        synthetic: Synthetic rows.
        metadata: Metadata with one table.
        seed: Seed of subsample, folds and classifier.
        max_rows: Largest number of rows used of each table; both give equally many.

    Returns:
        1 - (2 max(AUC, 1/2) - 1), AUC averaged over 3 folds: 1 if the classifier cannot tell real
        from synthetic rows, 0 if it always can. NaN with fewer than 6 rows a side.

    Raises:
        InvalidParameterError: If tables and metadata do not fit.

    Source:
        Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, ICLR 2017.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    encoded = _encode_checked(metadata, real=real, synthetic=synthetic)
    size = min(max_rows, *(len(table) for table in encoded.tables))
    if size < 2 * C2ST_FOLDS:
        return math.nan
    rng = np.random.default_rng(seed)
    tables = _for_trees(encoded.tables, encoded.categorical)
    rows = np.concatenate([_subsample(table, size, rng) for table in tables])
    labels = np.repeat([0, 1], size)
    if not rows.shape[1]:
        return 1.0
    (rows,) = _fill_sparse(rows, encoded.categorical)
    classifier = HistGradientBoostingClassifier(
        categorical_features=encoded.categorical, random_state=seed
    )
    folds = StratifiedKFold(C2ST_FOLDS, shuffle=True, random_state=seed)
    auc = cross_val_score(classifier, rows, labels, cv=folds, scoring='roc_auc').mean()
    return float(1 - (2 * max(auc, 0.5) - 1))


def _check_target(target: str, metadata: Metadata) -> str:
    """Return the sdtype of a target column that utility can be measured on."""
    name, table_metadata = _table_metadata(metadata)
    columns = _modelled_columns(table_metadata)
    allowed = [n for n, column in columns.items() if column['sdtype'] != 'datetime']
    if target not in allowed:
        raise InvalidParameterError(
            f'target must be a numerical, categorical or boolean column of table {name!r} that is '
            f'no key, received {target!r}. Possible targets: {allowed}.'
        )
    return columns[target]['sdtype']


def _auc(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, model: Any
) -> float:
    """Return the AUC on the test rows, one class against the rest and averaged over classes."""
    from sklearn.metrics import roc_auc_score

    classes = np.unique(truth)
    if len(classes) < 2:
        return math.nan
    # A class of one row cannot be split off for early stopping; it gets probability 0, as a class
    # the synthetic rows do not have.
    known, counts = np.unique(labels, return_counts=True)
    keep = np.isin(labels, known[counts > 1])
    if len(np.unique(labels[keep])) < 2:
        return 0.5
    model.fit(train[keep], labels[keep])
    probabilities = dict(zip(model.classes_, model.predict_proba(test).T, strict=True))
    nothing = np.zeros(len(test))
    return float(
        np.mean([roc_auc_score(truth == c, probabilities.get(c, nothing)) for c in classes])
    )


def utility(train: Table, test: Table, metadata: Metadata, target: str, *, seed: int = 0) -> float:
    """Return how well a model trained on `train` predicts the target of `test`.

    Train it on synthetic and on real rows and compare: that difference is what synthesis costs.

    Args:
        train: Rows to learn from, synthetic or real (at most 50,000 of them are used).
        test: Real rows that nothing was trained on.
        metadata: Metadata with one table.
        target: A categorical or boolean column (classification) or a numerical one (regression).
        seed: Seed of subsample and model.

    Returns:
        Classification: area under the ROC curve, averaged over classes one against the rest (the
        30 most frequent ones, all others as one). Regression: root mean squared error in the
        target's unit. Rows without target are left out; NaN if none are left or if the test rows
        have one class only.

    Raises:
        InvalidParameterError: If tables and metadata do not fit or the target cannot be one.

    Source:
        "Machine learning efficiency" of Xu et al., CTGAN, NeurIPS 2019.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    is_number = _check_target(target, metadata) == 'numerical'
    encoded = _encode_checked(metadata, train=train, test=test)
    at = encoded.names.index(target)
    capped = _for_trees(encoded.tables, encoded.categorical)
    fitting, scoring = (t[~np.isnan(t[:, at])] for t in capped)
    fitting = _subsample(fitting, UTILITY_ROWS, np.random.default_rng(seed))
    if len(fitting) == 0 or len(scoring) == 0:
        return math.nan
    if np.isnan(np.delete(fitting, at, axis=1)).all():
        return math.nan
    y, y_test = fitting[:, at], scoring[:, at]
    categorical, x, x_test = (
        np.delete(of_column, at, axis=-1) for of_column in (encoded.categorical, fitting, scoring)
    )
    x, x_test = _fill_sparse(x, categorical, x_test)
    options = {'categorical_features': categorical, 'random_state': seed}
    if is_number:
        predicted = HistGradientBoostingRegressor(**options).fit(x, y).predict(x_test)
        return float(np.sqrt(np.mean((predicted - y_test) ** 2)))
    y, y_test = (np.minimum(labels, UTILITY_CLASSES) for labels in (y, y_test))
    return _auc(x, y, x_test, y_test, HistGradientBoostingClassifier(**options))


# ------------------------------------------------------------------------- distances


def _scaled(encoded: _Encoded, real: list[int]) -> list[np.ndarray]:
    """Return the tables with numbers divided by the range of the tables in `real`."""
    known = np.concatenate([encoded.tables[i] for i in real])
    out = [table.astype(np.float64) for table in encoded.tables]
    for j in np.flatnonzero(~encoded.categorical):
        values = known[~np.isnan(known[:, j]), j]
        low, width = (values.min(), np.ptp(values)) if len(values) else (0.0, 0.0)
        for table in out:
            table[:, j] = (table[:, j] - low) / (width or 1.0)
    return out


def _distances(rows: np.ndarray, others: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Return the (rows, others) distances: |difference| per number, 0 or 1 per category.

    A missing value is at 1 from any value and at 0 from another missing one.
    """
    total = np.zeros((len(rows), len(others)), dtype=np.float32)
    for j, is_category in enumerate(categorical):
        a, b = rows[:, j], others[:, j]
        no_a, no_b = np.isnan(a), np.isnan(b)
        a, b = np.where(no_a, -9.0, a)[:, None], np.where(no_b, -9.0, b)[None, :]
        if is_category:
            total += a != b
        else:
            part = np.abs(a.astype(np.float32) - b.astype(np.float32))
            if no_a.any() or no_b.any():
                part[no_a[:, None] != no_b[None, :]] = 1.0
            total += part
    return total


def _nearest(rows: np.ndarray, others: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Return each row's distance to the nearest of the others, in chunks: (rows,)."""
    starts = range(0, len(rows), DISTANCE_CHUNK)
    return np.concatenate(
        [_distances(rows[i : i + DISTANCE_CHUNK], others, categorical).min(axis=1) for i in starts]
    )


def dcr_share(
    train: Table,
    holdout: Table,
    synthetic: Table,
    metadata: Metadata,
    *,
    seed: int = 0,
    max_rows: int = DISTANCE_ROWS,
    max_references: int = REFERENCE_ROWS,
) -> float:
    """Return the share of synthetic rows nearer to training rows than to rows never seen.

    Args:
        train: Real rows the synthesizer was trained on.
        holdout: Real rows of the same kind that it has not seen.
        synthetic: Synthetic rows.
        metadata: Metadata with one table.
        seed: Seed of the subsamples.
        max_rows: Largest number of synthetic rows used.
        max_references: Largest number of rows used of `train` and of `holdout`. Where one table has
            several times as many rows as the other, each such part of it, up to 20, is compared
            with the other, and the mean is taken.

    Returns:
        A share in [0, 1]; ties count half. 0.5: no row of the training table is given away; near 1:
        the synthesizer copies. Distance to the closest record (DCR): the sum over columns of the
        difference in units of the real range, or 0/1 for equal/different categories.

    Raises:
        InvalidParameterError: If tables and metadata do not fit.

    Source:
        Platzer and Reutterer, Holdout-Based Empirical Assessment of Mixed-Type Synthetic Data,
        Frontiers in Big Data 4, 2021.
    """
    encoded = _encode_checked(metadata, train=train, holdout=holdout, synthetic=synthetic)
    seen, unseen, made = _scaled(encoded, real=[0, 1])
    rng = np.random.default_rng(seed)
    made = _subsample(made, max_rows, rng)
    size = min(len(seen), len(unseen), max_references)
    most = min(max_references, MAX_PARTS * size)
    seen, unseen = (rng.permutation(rows)[:most] for rows in (seen, unseen))
    to_seen, to_unseen = (
        np.stack(
            [
                _nearest(made, rows[start : start + size], encoded.categorical)
                for start in range(0, len(rows) - size + 1, size)
            ]
        )
        for rows in (seen, unseen)
    )  # one row of distances, and for the longer table one for each part of it
    return float(np.mean((to_seen < to_unseen) + 0.5 * (to_seen == to_unseen)))


def precision_and_coverage(
    real: Table,
    synthetic: Table,
    metadata: Metadata,
    *,
    seed: int = 0,
    max_rows: int = DISTANCE_ROWS,
) -> tuple[float, float]:
    """Return how typical the synthetic rows are, and how much of the real table they reach.

    A ball stands around each real row and reaches to its 5th nearest other real row, in the
    distance of `dcr_share`.

    Args:
        real: Real rows, at least 6.
        synthetic: Synthetic rows.
        metadata: Metadata with one table.
        seed: Seed of the subsamples.
        max_rows: Largest number of rows used of each table; both give equally many.

    Returns:
        Precision: share of synthetic rows inside any ball. Coverage: share of balls with a
        synthetic row inside; about 0.97 for a second real sample. Both NaN below 6 rows.

    Raises:
        InvalidParameterError: If tables and metadata do not fit.

    Source:
        Precision: Kynkäänniemi et al., NeurIPS 2019. Coverage: Naeem et al., ICML 2020, section 3.
    """
    encoded = _encode_checked(metadata, real=real, synthetic=synthetic)
    rng = np.random.default_rng(seed)
    size = min(max_rows, *(len(table) for table in encoded.tables))
    if size <= NEIGHBOUR:
        return math.nan, math.nan
    first, second = (_subsample(table, size, rng) for table in _scaled(encoded, real=[0]))
    covered, precise = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for start in range(0, size, DISTANCE_CHUNK):
        chunk = first[start : start + DISTANCE_CHUNK]
        among = _distances(chunk, first, encoded.categorical)
        # position 0 is the row itself
        radius = np.partition(among, NEIGHBOUR, axis=1)[:, NEIGHBOUR, None]
        inside = _distances(chunk, second, encoded.categorical) <= radius
        covered[start : start + DISTANCE_CHUNK] = inside.any(axis=1)
        precise |= inside.any(axis=0)
    return float(precise.mean()), float(covered.mean())


def exact_copies(train: Table, rows: Table, metadata: Metadata) -> float:
    """Return the share of rows that equal a training row in all modelled columns.

    Args:
        train: Real rows the synthesizer was trained on.
        rows: Rows to look up: synthetic ones, or unseen real ones for comparison (some tables
            hold many equal rows by nature).
        metadata: Metadata with one table.

    Returns:
        A share in [0, 1].

    Raises:
        InvalidParameterError: If tables and metadata do not fit.
    """
    encoded = _encode_checked(metadata, train=train, rows=rows)
    # + 0.0 turns -0.0 into 0.0, and NaN gets one bit pattern: rows are compared byte by byte.
    flat = [np.where(np.isnan(table), np.nan, table) + 0.0 for table in encoded.tables]
    width = flat[0].shape[1] * flat[0].itemsize
    known, looked_up = (np.ascontiguousarray(t).view(f'V{width}').ravel() for t in flat)
    stored = {row.tobytes() for row in known}
    return float(np.mean([row.tobytes() in stored for row in looked_up]))


def near_copies(
    train: Table,
    holdout: Table,
    synthetic: Table,
    metadata: Metadata,
    *,
    seed: int = 0,
    max_rows: int = DISTANCE_ROWS,
    max_references: int = REFERENCE_ROWS,
) -> float:
    """Return the share of synthetic rows as near to a training row as hardly any unseen row is.

    Near is what the nearest 1 % of the unseen rows are, in the distance of `dcr_share`.

    Args:
        train: Real rows the synthesizer was trained on.
        holdout: Real rows of the same kind that it has not seen.
        synthetic: Synthetic rows.
        metadata: Metadata with one table.
        seed: Seed of the subsamples.
        max_rows: Largest number of rows used of `holdout` and of `synthetic`.
        max_references: Largest number of rows used of `train`.

    Returns:
        A share in [0, 1]; about 0.01 for rows that the synthesizer could have made without the
        training rows. Where more than 1 % of unseen rows are exact copies, it is their share.

    Raises:
        InvalidParameterError: If tables and metadata do not fit.
    """
    encoded = _encode_checked(metadata, train=train, holdout=holdout, synthetic=synthetic)
    rng = np.random.default_rng(seed)
    sizes = (max_references, max_rows, max_rows)
    seen, unseen, made = (
        _subsample(table, size, rng)
        for table, size in zip(_scaled(encoded, real=[0, 1]), sizes, strict=True)
    )
    near = np.quantile(_nearest(unseen, seen, encoded.categorical), 0.01)
    return float(np.mean(_nearest(made, seen, encoded.categorical) <= near))


@dataclass(frozen=True)
class MembershipInference:
    """How well an attacker tells training rows from unseen ones.

    Attributes:
        auc: Area under the ROC curve; 0.5 is chance.
        tpr_at_1_percent: Share of training rows found at a false-positive rate of 1 %; 0.01 is
            chance.
        auc_interval: Where the AUC of 95 % of bootstrap resamples of the rows lies.
        tpr_interval: The same of the true-positive rate.
        false_positive_rates: The ROC curve.
        true_positive_rates: The ROC curve.
    """

    auc: float
    tpr_at_1_percent: float
    auc_interval: tuple[float, float]
    tpr_interval: tuple[float, float]
    false_positive_rates: np.ndarray = field(repr=False)
    true_positive_rates: np.ndarray = field(repr=False)


def membership_inference(
    members: np.ndarray, others: np.ndarray, *, seed: int = 0
) -> MembershipInference:
    """Return the attack that takes the rows with the highest scores for training rows.

    Args:
        members: Scores of training rows, `(N,)`.
        others: Scores of unseen rows of the same kind, `(M,)`.
        seed: Seed of the bootstrap.

    Raises:
        InvalidParameterError: If there are no scores of one kind.

    Source:
        Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022, for the
        true-positive rate at a low false-positive rate.
    """
    if not len(members) or not len(others):
        raise InvalidParameterError(
            f'membership_inference needs scores of training rows and of unseen ones, received '
            f'{len(members)} and {len(others)}.'
        )
    auc, tpr, false, true = _attack(members, others)
    rng = np.random.default_rng(seed)
    resampled = [
        _attack(*(scores[rng.integers(len(scores), size=len(scores))] for scores in both))[:2]
        for both in [(members, others)] * RESAMPLES
    ]
    low, high = np.quantile(np.array(resampled), [0.025, 0.975], axis=0).tolist()
    return MembershipInference(auc, tpr, (low[0], high[0]), (low[1], high[1]), false, true)


def _attack(members: np.ndarray, others: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
    """AUC, true-positive rate at 1 % false positives, and the ROC curve."""
    from sklearn.metrics import auc, roc_curve

    is_member = np.repeat([1, 0], [len(members), len(others)])
    false, true, _ = roc_curve(
        is_member, np.concatenate([members, others]), drop_intermediate=False
    )
    return float(auc(false, true)), float(true[false <= 0.01].max()), false, true


def disclosure_protection(
    real: Table,
    synthetic: Table,
    metadata: Metadata,
    sensitive: str,
    known: list[str] | None = None,
    *,
    seed: int = 0,
    max_rows: int = DISCLOSURE_ROWS,
) -> float:
    """Return how badly a column of real rows is guessed from others by help of synthetic rows.

    The attacker knows some columns of a real row, looks up the synthetic rows that agree in all of
    them and guesses the sensitive column as these have it; real rows without such synthetic rows
    are left out. Numbers and dates are cut into 10 bins. Guessing well need not give a row away:
    compare with what unseen real rows in place of the synthetic ones score.

    Args:
        real: Real rows the synthesizer was trained on.
        synthetic: Synthetic rows.
        metadata: Metadata with one table.
        sensitive: Column that the attacker wants to know.
        known: Columns that the attacker knows; all other modelled ones if `None`. The fewer, the
            more rows agree.
        seed: Seed of the subsamples.
        max_rows: Largest number of rows used of each table.

    Returns:
        SDMetrics' DisclosureProtection in [0, 1]: 1 if the attacker does no better than guessing
        blindly. NaN where no row can be looked up.

    Raises:
        InvalidParameterError: If tables and metadata do not fit, or a column is not modelled.

    Source:
        Correct attribution probability: Taub, Elliot, Pampaka and Smith, PSD 2018.
    """
    from sdmetrics.single_table import DisclosureProtection

    columns = _modelled_columns(_table_metadata(metadata)[1])
    keys = _known_columns(columns, [sensitive], known)
    rng = np.random.default_rng(seed)
    tables = []
    for name, table in (('real', real), ('synthetic', synthetic)):
        frame = _frame(table, metadata, name)
        frame = frame.iloc[rng.permutation(len(frame))[:max_rows]].reset_index(drop=True)
        values = {
            column: _text(frame[column])
            if columns[column]['sdtype'] in LABEL_SDTYPES
            else _number(frame[column], columns[column])
            for column in [*keys, sensitive]
        }
        tables.append(pd.DataFrame(values))
    numbers = [c for c in [*keys, sensitive] if columns[c]['sdtype'] not in LABEL_SDTYPES]
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Mean of empty slice')
        return float(
            DisclosureProtection.compute(
                *tables,
                known_column_names=keys,
                sensitive_column_names=[sensitive],
                continuous_column_names=numbers,
            )
        )


def _known_columns(
    columns: dict[str, dict[str, Any]], sensitive: list[str], known: list[str] | None
) -> list[str]:
    """What an attacker knows: the named columns, or all that are not sensitive."""
    wrong = [name for name in [*sensitive, *(known or [])] if name not in columns]
    keys = [name for name in columns if name not in sensitive] if known is None else list(known)
    if wrong or not keys or set(keys) & set(sensitive):
        raise InvalidParameterError(
            'sensitive and known must name different modelled columns, at least one each, received '
            f'{sensitive} and {known}. Possible: {list(columns)}.'
        )
    return keys


def distance_attack(
    train: Table,
    holdout: Table,
    synthetic: Table,
    metadata: Metadata,
    *,
    seed: int = 0,
    max_rows: int = DISTANCE_ROWS,
    max_references: int = REFERENCE_ROWS,
) -> MembershipInference:
    """Return the attack that takes rows near to a synthetic row for training rows.

    The attacker has the synthetic rows alone.

    Args:
        train: Real rows the synthesizer was trained on.
        holdout: Real rows of the same kind that it has not seen.
        synthetic: Synthetic rows.
        metadata: Metadata with one table.
        seed: Seed of the subsamples.
        max_rows: Largest number of rows used of `train` and of `holdout`.
        max_references: Largest number of synthetic rows used.

    Raises:
        InvalidParameterError: If tables and metadata do not fit.
    """
    encoded = _encode_checked(metadata, train=train, holdout=holdout, synthetic=synthetic)
    rng = np.random.default_rng(seed)
    sizes = (max_rows, max_rows, max_references)
    seen, unseen, made = (
        _subsample(table, size, rng)
        for table, size in zip(_scaled(encoded, real=[0, 1]), sizes, strict=True)
    )
    scores = [-_nearest(rows, made, encoded.categorical) for rows in (seen, unseen)]
    return membership_inference(*scores, seed=seed)


# ------------------------------------------------------------------------- the report


@contextlib.contextmanager
def _kept_numpy_state(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator for code that knows no other, and put it back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


class _Summary:
    """The rows of the summary; a measure that raises becomes NaN with the reason."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float, str]] = []

    def add(
        self, measure: str, value: float | Callable[[], float], ideal: float, meaning: str
    ) -> float:
        """Append a measure and return its value."""
        try:
            number = float(value() if callable(value) else value)
            if math.isnan(number):
                meaning = f'Not measurable on this table. {meaning}'
        except InvalidParameterError:
            raise
        except Exception as error:  # one score must not cost the others
            number, meaning = math.nan, f'Failed: {type(error).__name__}: {error}'
        self.rows.append((measure, number, ideal, meaning))
        return number

    def skip(self, measure: str, reason: str) -> None:
        """Append a measure that was not taken, with the reason."""
        self.rows.append((measure, math.nan, math.nan, f'Not measured: {reason}.'))

    def frame(self) -> pd.DataFrame:
        """Return the summary table."""
        return pd.DataFrame(self.rows, columns=['measure', 'value', 'ideal', 'meaning'])


def _with_text_labels(table: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
    """Return a copy with category labels as text, for SDMetrics."""
    columns = _modelled_columns(_table_metadata(metadata)[1])
    labels = [n for n, c in columns.items() if c['sdtype'] in LABEL_SDTYPES]
    return table.assign(**{name: _text(table[name]) for name in labels}) if labels else table


def _reports(
    real: pd.DataFrame, synthetic: pd.DataFrame, metadata: Metadata, seed: int
) -> tuple[Any, Any]:
    """Return SDMetrics' quality and diagnostic reports, made as SDV 2 users make them."""
    from sdv.evaluation import evaluate_quality as sdv_quality
    from sdv.evaluation import run_diagnostic

    name = _table_metadata(metadata)[0]
    with _kept_numpy_state(seed):
        quality = sdv_quality(
            {name: _with_text_labels(real, metadata)},
            {name: _with_text_labels(synthetic, metadata)},
            metadata,
            verbose=False,
        )
        diagnostic = run_diagnostic({name: real}, {name: synthetic}, metadata, verbose=False)
    return quality, diagnostic


def _add_fidelity(
    out: _Summary,
    reports: tuple[Any, Any],
    errors: tuple[pd.Series, pd.DataFrame],
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    metadata: Metadata,
    seed: int,
) -> None:
    """Add SDMetrics' scores and how much the synthetic rows look like the real ones."""
    properties = reports[0].get_properties().set_index('Property')['Score']
    out.add('SDMetrics quality', reports[0].get_score(), 1, 'Mean of the next two; 1 is best.')
    out.add(
        'SDMetrics column shapes',
        properties['Column Shapes'],
        1,
        'How alike single columns are, as SDMetrics reports it.',
    )
    out.add(
        'SDMetrics column pair trends',
        properties['Column Pair Trends'],
        1,
        'How alike strongly dependent pairs are, each table cut over its own range.',
    )
    out.add('SDMetrics diagnostic', reports[1].get_score(), 1, 'Valid values, types and keys.')
    out.add(
        'shape error %',
        100 * float(errors[0].mean()),
        0,
        'Mean distance of single columns, as published tables give it; 0 is best.',
    )
    floor = trend_error_floor(real, metadata, seed=seed)
    out.add(
        'trend error %',
        _mean_trend_error(errors[1]),
        floor,
        'Mean error over all pairs of columns, the real bins, as published tables give it.',
    )
    out.add('trend error floor %', floor, math.nan, 'What a second real sample would score.')
    out.add(
        'C2ST',
        lambda: c2st(real, synthetic, metadata, seed=seed),
        1,
        '1: a gradient-boosted classifier cannot tell synthetic from real; 0: it always can.',
    )
    precision, coverage = precision_and_coverage(real, synthetic, metadata, seed=seed)
    out.add('precision', precision, 1, 'Share of synthetic rows close to real ones.')
    out.add('coverage', coverage, 1, 'Share of real rows with a synthetic one close by.')


def _add_utility(
    out: _Summary,
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    test: pd.DataFrame | None,
    metadata: Metadata,
    target: str | None,
    seed: int,
) -> None:
    """Add the scores of a model trained on synthetic and on real rows."""
    if target is None:
        out.skip('utility', 'no target column was named')
        out.skip('utility of real rows', 'no target column was named')
        return
    unit = 'RMSE, lower is better' if _check_target(target, metadata) == 'numerical' else 'AUC'
    note, learn = 'on test rows', real
    if test is None:
        # Scored on training rows of the synthesizer: optimistic, and the meaning says so.
        order = np.random.default_rng(seed).permutation(len(real))
        cut = max(1, len(real) // 4)
        test, learn = real.iloc[order[:cut]], real.iloc[order[cut:]]
        note = 'on a quarter of the real rows, which the synthesizer has seen (no test was given)'
    rows = test
    try:
        best = utility(learn, rows, metadata, target, seed=seed) if len(learn) else math.nan
    except ValueError:
        best = math.nan
    out.add(
        'utility',
        lambda: utility(synthetic, rows, metadata, target, seed=seed),
        best,
        f'Predicting {target!r} after training on synthetic rows ({unit}), {note}.',
    )
    out.add(
        'utility of real rows', best, math.nan, f'The same after training on real rows, {note}.'
    )


def _sdmetrics_dcr(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    test: pd.DataFrame | None,
    metadata: Metadata,
    seed: int,
) -> float:
    """Return SDMetrics' DCR baseline protection, or with test rows its overfitting protection."""
    from sdmetrics.single_table import DCRBaselineProtection, DCROverfittingProtection

    name = _table_metadata(metadata)[0]
    columns = _modelled_columns(_table_metadata(metadata)[1])
    rng = np.random.default_rng(seed)
    size = min(SDMETRICS_DCR_ROWS, len(real), len(real if test is None else test))

    def prepared(table: pd.DataFrame, rows: int) -> pd.DataFrame:
        picked = table.iloc[rng.permutation(len(table))[:rows]].reset_index(drop=True)
        return _with_text_labels(picked[list(columns)], metadata)

    tables = [prepared(real, size), prepared(synthetic, SDMETRICS_DCR_ROWS)]
    tables += [] if test is None else [prepared(test, size)]
    # It fails on numbers without any value, and what no row has makes no distance.
    known = {
        column: about
        for column, about in columns.items()
        if all(table[column].notna().any() for table in (tables[0], *tables[2:]))
    }
    if not known:
        return math.nan
    tables = [table[list(known)] for table in tables]
    described = {'tables': {name: {'columns': known}}, 'METADATA_SPEC_VERSION': 'V2'}
    # SDMetrics sets every row of a chunk beside every row of another, and copies that table for
    # every column: with these settings it takes a third of the time and a quarter of the memory.
    # Its random rows have a generator of their own, seeded by a class attribute.
    settings = {'_seed': seed, 'CHUNK_SIZE': SDMETRICS_DCR_CHUNK}
    with _kept_numpy_state(seed), pd.option_context('mode.copy_on_write', True):
        if test is not None:
            overfitting: Any = type('Set', (DCROverfittingProtection,), settings)
            return overfitting.compute(*tables, described, name)
        baseline: Any = type('Set', (DCRBaselineProtection,), settings)
        return baseline.compute(*tables, described, name)


def _add_privacy(
    out: _Summary,
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    test: pd.DataFrame | None,
    metadata: Metadata,
    seed: int,
) -> None:
    """Add the scores that tell new rows from remembered ones."""
    if test is None:
        out.skip('DCR share', NEEDS_UNSEEN)
    else:
        out.add(
            'DCR share',
            lambda: dcr_share(real, test, synthetic, metadata, seed=seed),
            0.5,
            'Synthetic rows nearer to a training row than to an unseen one; 1: they are copies.',
        )
    out.add(
        'SDMetrics DCR baseline protection',
        lambda: _sdmetrics_dcr(real, synthetic, None, metadata, seed),
        1,
        'Distance to real rows against that of random values; at most 1,000 rows a table.',
    )
    if test is None:
        out.skip('SDMetrics DCR overfitting protection', NEEDS_UNSEEN)
    else:
        out.add(
            'SDMetrics DCR overfitting protection',
            lambda: _sdmetrics_dcr(real, synthetic, test, metadata, seed),
            1,
            'Below 1: synthetic rows sit closer to training rows; at most 1,000 rows a table.',
        )
    same = math.nan if test is None else exact_copies(real, test, metadata)
    out.add(
        'exact copies',
        lambda: exact_copies(real, synthetic, metadata),
        0 if test is None else same,
        'Share of synthetic rows equal to a training row in every modelled column.',
    )
    measured = ('exact copies among test rows', 'near copies', DISTANCE_AUC, DISTANCE_TPR)
    if test is None:
        for measure in measured:
            out.skip(measure, NEEDS_UNSEEN)
        return
    out.add(measured[0], same, math.nan, 'The same share of unseen rows.')
    out.add(
        measured[1],
        lambda: near_copies(real, test, synthetic, metadata, seed=seed),
        0.01,
        'Synthetic rows as near to a training row as the nearest 1 % of unseen rows are.',
    )
    attack = distance_attack(real, test, synthetic, metadata, seed=seed)
    note = 'An attacker with the synthetic rows alone takes those near to one for training rows'
    for measure, value, ideal, interval in (
        (DISTANCE_AUC, attack.auc, 0.5, attack.auc_interval),
        (DISTANCE_TPR, attack.tpr_at_1_percent, 0.01, attack.tpr_interval),
    ):
        out.add(measure, value, ideal, f'{note}; {interval_text(interval)}.')


def interval_text(interval: tuple[float, float]) -> str:
    """Return a bootstrap interval in words."""
    return f'95 % interval {interval[0]:.3f} to {interval[1]:.3f}'


def _add_disclosure(
    out: _Summary,
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    metadata: Metadata,
    sensitive: list[str],
    known: list[str] | None,
    seed: int,
) -> None:
    """Add how badly each sensitive column is guessed."""
    keys = 'all others that are not sensitive' if known is None else ', '.join(known)
    columns = _known_columns(_modelled_columns(_table_metadata(metadata)[1]), sensitive, known)
    for name in sensitive:
        out.add(
            f'disclosure protection of {name}',
            partial(disclosure_protection, real, synthetic, metadata, name, columns, seed=seed),
            1,
            f'Guessing {name!r} of a training row from synthetic rows by the columns known '
            f'({keys}); 1: as good as blind guessing.',
        )


def evaluate_quality(
    real: Table,
    synthetic: Table,
    metadata: Metadata,
    *,
    test: Table | None = None,
    target: str | None = None,
    sensitive: list[str] | None = None,
    known: list[str] | None = None,
    seed: int = 0,
    verbose: bool = False,
) -> QualityEvaluation:
    """Score synthetic rows against real ones: SDMetrics' reports and one plain table.

    Args:
        real: The rows the synthesizer was trained on, a frame or SDV 2's `{table: frame}`.
        synthetic: Synthetic rows, best as many as real ones.
        metadata: An `sdv.metadata.Metadata` with one table.
        test: Real rows *not* used for training. Needed for the DCR share, SDMetrics' overfitting
            protection and a fair utility. Without it the utility is scored on a quarter of the
            real rows, which the synthesizer has seen; the summary says so.
        target: Column to predict for the utility; none, no utility.
        sensitive: Columns that an attacker may want to know, for disclosure protection.
        known: Columns that the attacker knows; `None` for all that are not sensitive.
        seed: Seed of every random choice; equal seeds give equal scores.
        verbose: Show a progress line.

    Returns:
        The two reports and the summary, one row per measure.

    Raises:
        InvalidParameterError: If tables and metadata do not fit, a table has no rows or nothing
            to score, or the target cannot be one.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise InvalidParameterError(
            f'seed must be a whole number of at least 0, received {seed!r}.'
        )
    seed = int(seed) % 2**32
    real_rows = _frame(real, metadata, 'real')
    made_rows = _frame(synthetic, metadata, 'synthetic')
    test_rows = None if test is None else _frame(test, metadata, 'test')
    if target is not None:
        _check_target(target, metadata)
    if sensitive:
        _known_columns(_modelled_columns(_table_metadata(metadata)[1]), sensitive, known)
    _encode([real_rows.iloc[:1]], metadata)  # raises early if there is nothing to score
    both, out = (real_rows, made_rows, metadata), _Summary()
    with tqdm(total=4, desc='Scoring', disable=not verbose, unit='step') as progress:
        reports = _reports(*both, seed)
        progress.update()
        errors = shape_errors(*both), pair_errors(*both)
        _add_fidelity(out, reports, errors, *both, seed)
        progress.update()
        _add_utility(out, real_rows, made_rows, test_rows, metadata, target, seed)
        progress.update()
        _add_privacy(out, real_rows, made_rows, test_rows, metadata, seed)
        if sensitive:
            _add_disclosure(out, real_rows, made_rows, metadata, list(sensitive), known, seed)
        progress.update()
    return QualityEvaluation(*reports, out.frame(), *errors)


# ------------------------------------------------------------------------- the picture


def _draw_numbers(axis: Any, tables: list[np.ndarray], is_date: bool) -> None:
    """Draw two outlines of histograms over the real range, without its outermost 0.5 %."""
    known = [table[~np.isnan(table)] for table in tables]
    values = known[0] if len(known[0]) else known[1]
    low, high = np.quantile(values, [0.005, 0.995]) if len(values) else (0.0, 1.0)
    if low == high:
        margin = max(0.5, 1e-9 * abs(low))  # wide enough for thirty bins of any number or date
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, 31)
    shown = edges.astype('int64').astype('datetime64[ns]') if is_date else edges
    for values, all_values, colour in zip(
        known, tables, (REAL_COLOUR, SYNTHETIC_COLOUR), strict=True
    ):
        heights = np.histogram(values, edges)[0] / max(len(all_values), 1)
        filled = colour == REAL_COLOUR
        axis.stairs(heights, shown, color=colour, fill=filled, alpha=0.5 if filled else 1.0)
        axis.stairs(heights, shown, color=colour, linewidth=1.5)


def _draw_labels(axis: Any, tables: list[pd.Series]) -> None:
    """Draw two bars for each of the 8 most frequent real labels, and one pair for the rest."""
    texts = [_text(table).fillna('(missing)') for table in tables]
    top = list(texts[0].value_counts().index[:8])
    rest = not all(text.isin(top).all() for text in texts)
    place = np.arange(len(top) + rest)
    for k, (text, colour) in enumerate(zip(texts, (REAL_COLOUR, SYNTHETIC_COLOUR), strict=True)):
        shares = text.where(text.isin(top), '(others)').value_counts(normalize=True)
        heights = shares.reindex([*top, '(others)']).fillna(0).to_numpy()[: len(place)]
        axis.bar(place + (k - 0.5) * 0.4, heights, 0.4, color=colour)
    names = [name if len(name) <= 14 else f'{name[:13]}…' for name in top]
    names += ['(others)'] * rest
    axis.set_xticks(place, names, rotation=35, ha='right', fontsize=7)


def save_plot(
    real: Table,
    synthetic: Table,
    metadata: Metadata,
    path: str | Path,
    *,
    columns: list[str] | None = None,
) -> Path:
    """Draw every column's distribution, real against synthetic, and save the picture.

    Args:
        real: Real rows.
        synthetic: Synthetic rows.
        metadata: Metadata with one table.
        path: File to write; its ending (png, svg, pdf) gives the format.
        columns: Modelled columns to draw; the first 24 if none are named.

    Returns:
        The path written. Heights are shares of the table's rows; missing values are named in the
        title (numbers, dates) or get a bar (categories).

    Raises:
        InvalidParameterError: If tables and metadata do not fit or a column is not modelled.
    """
    from matplotlib.figure import Figure  # no pyplot: no window, no state
    from matplotlib.patches import Patch

    tables = [_frame(real, metadata, 'real'), _frame(synthetic, metadata, 'synthetic')]
    modelled = _modelled_columns(_table_metadata(metadata)[1])
    names = list(modelled)[:24] if columns is None else list(columns)
    unknown = [name for name in names if name not in modelled]
    if unknown or not names:
        raise InvalidParameterError(
            f'columns must name modelled columns of the table, received {unknown or names}. '
            f'Possible: {list(modelled)}.'
        )
    wide = min(4, len(names))
    high = -(-len(names) // wide)
    figure = Figure(figsize=(3.4 * wide, 2.6 * high + 0.5), layout='constrained')
    axes = np.atleast_1d(figure.subplots(high, wide, squeeze=False)).ravel()
    for axis, name in zip(axes, names, strict=False):
        title, sdtype = name, modelled[name]['sdtype']
        if sdtype in LABEL_SDTYPES:
            _draw_labels(axis, [table[name] for table in tables])
        else:
            values = [_number(table[name], modelled[name]) for table in tables]
            _draw_numbers(axis, values, sdtype == 'datetime')
            gaps = [np.isnan(value).mean() for value in values]
            title += f'\nmissing: {gaps[0]:.0%} | {gaps[1]:.0%}' if max(gaps) > 0 else ''
            axis.tick_params(axis='x', labelsize=7, rotation=35 if sdtype == 'datetime' else 0)
        axis.set_title(title, fontsize=9)
        axis.tick_params(axis='y', labelsize=7)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    keys = [Patch(color=colour) for colour in (REAL_COLOUR, SYNTHETIC_COLOUR)]
    figure.legend(keys, ['real', 'synthetic'], loc='outside upper right', ncols=2)
    figure.savefig(path, dpi=120)
    return Path(path)
