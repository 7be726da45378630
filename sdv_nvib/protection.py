"""Protection of single rows' values, before anything learns from a table.

Early in the flow, on the table as the user gave it: what is replaced here reaches neither the data
processor nor the model, so no file of a fitted synthesizer can hold it; nor can it by the metadata,
which lose the values that SDV has detected in the rows. Rare categories are
replaced by frequent ones or by a missing value; numbers and dates that few rows share are replaced
by values made from means of several rows (univariate microaggregation).

References:
    Domingo-Ferrer and Mateo-Sanz, Practical data-oriented microaggregation for statistical
    disclosure control, IEEE TKDE 14 (2002).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sdv_nvib.errors import InvalidTableError
from sdv_nvib.tokens import grid

__all__ = ['protect_categories', 'protect_combinations', 'protect_numbers', 'without_values']

INTEGER_BOUND = 2.0**63 - 2**10  # the largest float that a 64-bit integer can hold


def protect_categories(
    values: pd.Series, threshold: int, replacement: str, rng: np.random.Generator
) -> pd.Series:
    """Replace the categories that fewer than `threshold` rows have.

    Args:
        values: A column of categories.
        threshold: Rows that a category must have to be kept.
        replacement: 'frequent', one of the kept categories, drawn as often as the rows have them;
            or 'missing'.
        rng: Source of the draws.

    Returns:
        The column; a `category` dtype loses the categories that are gone.

    Raises:
        InvalidTableError: No category is frequent enough to replace the others.
    """
    counts = values.value_counts()
    kept = counts[counts >= threshold].index
    rare = values.notna() & ~values.isin(kept)
    if not rare.any():
        return _without_unused(values)
    if replacement == 'missing':
        changed = values.mask(rare)
    elif len(kept):
        pool = values[values.isin(kept)]
        changed = values.copy()
        drawn = pool.iloc[rng.integers(len(pool), size=int(rare.sum()))]
        changed[rare] = drawn.to_numpy(dtype=object) if values.dtype == object else drawn.array
    else:
        raise InvalidTableError(
            f"Column '{values.name}' must have a category in at least {threshold} rows to replace "
            f'its rare ones, the most frequent is in {int(counts.max())}. Lower '
            "rare_category_threshold, set rare_category_replacement='missing', or make the column "
            'an id or personal data.'
        )
    return _without_unused(changed)


def protect_combinations(
    table: pd.DataFrame, threshold: int, replacement: str, rng: np.random.Generator
) -> pd.DataFrame:
    """Replace the combinations of categories that fewer than `threshold` rows have, as a whole.

    Args:
        table: Columns whose combinations have to stay those of the rows.
        threshold: Rows that a combination must have to be kept.
        replacement: As for `protect_categories`; of a missing one every value is missing.
        rng: Source of the draws.

    Raises:
        InvalidTableError: No combination is frequent enough to replace the others.
    """
    codes = table.groupby(list(table), dropna=False, observed=True, sort=False).ngroup()
    codes = codes.rename(', '.join(map(str, table))).reset_index(drop=True)
    kept = protect_categories(codes, threshold, replacement, rng)
    first = pd.Series(codes.drop_duplicates().index, codes.drop_duplicates())
    rows = kept.map(first).fillna(0).astype(int)
    changed = table.iloc[rows].set_axis(table.index)
    gone = kept.isna().to_numpy()
    return changed.apply(
        lambda values: _without_unused(values.mask(gone) if gone.any() else values)
    )


def _without_unused(values: pd.Series) -> pd.Series:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.remove_unused_categories()
    return values


def without_values(
    columns: Mapping[str, Mapping[str, Any]],
    table: pd.DataFrame,
    rare_categories: bool,
    numbers: bool,
) -> dict[str, dict[str, Any]]:
    """Metadata of columns without the values that single rows may have given them.

    SDV detects every category and both ends of every range; what the user wrote there cannot be
    told from that. Ordinal columns keep their values, whose order only the user knows.

    Args:
        columns: Column name to its metadata.
        table: The protected table.
        rare_categories: Whether categories were protected.
        numbers: Whether numbers and dates were.
    """
    described = {}
    for name, column in columns.items():
        gone: tuple[str, ...] = ()
        if rare_categories and column['sdtype'] == 'categorical':
            gone += ('range_values',)
        if rare_categories and table[name].isna().any():
            gone += ('range_is_nullable',)
        if numbers and column['sdtype'] in ('numerical', 'datetime'):
            gone += ('range_min', 'range_max')
        described[name] = {key: value for key, value in column.items() if key not in gone}
    return described


def protect_numbers(values: pd.Series, threshold: int, sdtype: Mapping[str, Any]) -> pd.Series:
    """Replace numbers or dates that fewer than `threshold` rows have.

    The others are sorted and cut into groups of at least `threshold` rows. The rows of a group are
    spread evenly up to the midpoints between its mean and the neighbouring groups' means; those of
    the outermost groups take the mean of the group next to them, so that an extreme value has no
    part in what is kept. Values stay on the column's own grid.

    Args:
        values: A column of numbers or dates.
        threshold: Rows whose mean may be kept.
        sdtype: The column's metadata.

    Returns:
        The column, in the same dtype and format.

    Raises:
        InvalidTableError: Fewer than `threshold` rows have a value, and none may be missing.
    """
    is_date = sdtype['sdtype'] == 'datetime' and not pd.api.types.is_numeric_dtype(values)
    present = values.notna().to_numpy()
    dates = None
    if is_date:
        dates = pd.to_datetime(values[present], format=sdtype.get('datetime_format'))
        numbers = dates.astype('int64').to_numpy(np.float64)
    else:
        numbers = pd.to_numeric(values[present]).to_numpy(np.float64)
    if 0 < len(numbers) < threshold:
        if present.all():
            raise InvalidTableError(
                f"Column '{values.name}' must have values in at least {threshold} rows, it has "
                f'them in {len(numbers)}. Lower numerical_threshold, or give more rows.'
            )
        return values.mask(present)
    changed = _microaggregate(numbers, threshold)
    moved = changed != numbers
    new = pd.Series(changed[moved])
    if dates is not None:
        new = new.astype('int64').astype(dates.dtype)
        if not pd.api.types.is_datetime64_any_dtype(values):
            new = new.dt.strftime(sdtype.get('datetime_format') or '%Y-%m-%d %H:%M:%S')
    elif pd.api.types.is_integer_dtype(values):
        new = new.round().clip(-INTEGER_BOUND, INTEGER_BOUND)
    result = values.copy()
    result.iloc[np.flatnonzero(present)[moved]] = new.astype(values.dtype).array
    return result


def _microaggregate(numbers: np.ndarray, threshold: int) -> np.ndarray:
    """Numbers `(N,)` in any order to their protected values, in the same order."""
    unique, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    rare = np.flatnonzero((counts < threshold)[inverse])
    if not len(rare):
        return numbers
    step, decimals = grid(unique)
    if len(rare) < threshold:  # too few for a group: they join the nearest value that is shared
        shared = unique[counts >= threshold]
        right = np.searchsorted(shared, numbers[rare]).clip(1, max(len(shared) - 1, 1))
        pair = shared[np.stack([right - 1, right.clip(max=len(shared) - 1)])]
        nearest = np.abs(pair - numbers[rare]).argmin(0)
        changed = pair[nearest, np.arange(len(rare))]
    else:
        order = rare[np.argsort(numbers[rare], kind='stable')]
        groups = np.array_split(numbers[order], len(order) // threshold)
        means = np.array([group.mean() for group in groups])
        if len(means) > 2:
            means[0], means[-1] = means[1], means[-2]
        middles = means[:-1] / 2 + means[1:] / 2
        low, high = np.append(means[:1], middles), np.append(middles, means[-1:])
        spread = [
            a + (np.arange(len(group)) + 0.5) / len(group) * (b - a)
            for a, b, group in zip(low, high, groups, strict=True)
        ]
        rare, changed = order, np.concatenate(spread)
        if step:
            steps = np.round((changed - unique[0]) / step)
            changed = np.round(unique[0] + step * steps, decimals)
    result = numbers.copy()
    result[rare] = changed
    return result
