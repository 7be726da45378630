"""What metadata alone says of a table's values: the vocabulary of a differentially private model.

Beside tokens in the flow: nothing here sees a row. Whatever is usually learned from a table is
learned from a public table instead, made out of the ranges in the metadata: SDV's and RDT's
transformers are fitted to it, and the schema has equal-width bins in place of those of equal
frequency.
"""

import math
from collections.abc import Container, Hashable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from sdv_nvib.errors import InvalidParameterError
from sdv_nvib.tokens import MAX_BINS, MAX_DECIMALS, CategoricalColumn, NumericalColumn, TableSchema

__all__ = ['public_schema', 'public_table', 'require_domain']

LABEL_SDTYPES = ('categorical', 'ordinal')
NEEDED = {
    'numerical': ('range_min', 'range_max', 'decimal_places'),
    'datetime': ('range_min', 'range_max'),
    'categorical': ('range_values',),
    'ordinal': ('range_values',),
    'boolean': (),
}
MAX_WHOLE = 2.0**53  # whole numbers up to here are exact as floats
DAY, SECOND = 86_400e9, 1e9  # nanoseconds
TIME_OF_DAY = ('%H', '%I', '%p', '%M', '%S', '%f', '%X', '%c', '%T', '%R')


def require_domain(
    table: str, columns: Mapping[str, Mapping[str, Any]], keys: Container[str]
) -> None:
    """Check that the metadata says which values every modelled column may have.

    Args:
        table: Name of the table.
        columns: Column name to its metadata.
        keys: Names of the keys, which are not modelled.

    Raises:
        InvalidParameterError: Something is missing; the message names every such column.
    """
    problems = []
    for name, column in columns.items():
        sdtype = column['sdtype']
        if name in keys:
            continue
        if sdtype in NEEDED:
            missing = [key for key in NEEDED[sdtype] if column.get(key) is None]
            if missing:
                problems.append(f"'{name}' ({sdtype}) lacks {', '.join(missing)}")
            elif sdtype == 'numerical':
                problems += _problems_of_number(name, column)
        elif sdtype == 'id' and not column.get('regex_format'):
            problems.append(f"'{name}' (id) lacks regex_format, its values would be categories")
        elif sdtype not in ('id', 'unknown') and not column.get('pii', True):
            problems.append(f"'{name}' ({sdtype}) has pii=False, its values would be categories")
    if problems:
        raise InvalidParameterError(
            'With target_epsilon nothing may be learned of the rows but what the noise covers: the '
            f"metadata must say what values the columns may have. Table '{table}': "
            f'{"; ".join(problems)}. Set them by metadata.update_column, from what is known '
            'without the rows: ranges that SDV detected are values of the rows.'
        )


def _problems_of_number(name: str, column: Mapping[str, Any]) -> list[str]:
    low, high, decimals = (column[key] for key in NEEDED['numerical'])
    if not -MAX_WHOLE <= low <= high <= MAX_WHOLE:
        return [f"'{name}' must have its range within 2**53, has {low!r} to {high!r}"]
    if any(round(float(end), decimals) != end for end in (low, high)):
        return [f"'{name}' has a range of more than {decimals} decimal_places, {low!r} to {high!r}"]
    return []


def public_table(
    columns: Mapping[str, Mapping[str, Any]], numeric_ids: Container[str] = ()
) -> pd.DataFrame:
    """A table whose every value is from the metadata: the ends of ranges, all categories.

    Its dtypes are those of sampled rows: whole numbers that are never missing are int64, other
    numbers float64, dates text where they have a format.

    Args:
        columns: Column name to its metadata, which `require_domain` has found complete.
        numeric_ids: Ids and personal data that are numbers; all others are text.
    """
    values = {name: _public_values(column) for name, column in columns.items()}
    length = max([2, *(len(column) for column in values.values() if column is not None)])
    table = {}
    for name, column in values.items():
        if column is None:
            column = pd.Series(range(length))
            column = column if name in numeric_ids else column.astype(str)
        table[name] = column.iloc[np.resize(np.arange(len(column)), length)].reset_index(drop=True)
    return pd.DataFrame(table)


def _public_values(column: Mapping[str, Any]) -> pd.Series | None:
    """Values of one column; `None` for ids and personal data."""
    sdtype, nullable = column['sdtype'], column.get('range_is_nullable', True)
    if sdtype in LABEL_SDTYPES:
        return pd.Series([*column['range_values'], *[None] * nullable])
    if sdtype == 'boolean':
        return pd.Series([False, True, *[None] * nullable])
    if sdtype == 'numerical':
        low, high, decimals = (column[key] for key in NEEDED['numerical'])
        numbers = pd.Series([low, round(low + 10.0**-decimals, decimals), high], dtype='float64')
        if decimals == 0 and not nullable:
            return numbers.astype('int64')
        return pd.concat([numbers, pd.Series([np.nan] * nullable)], ignore_index=True)
    if sdtype == 'datetime':
        ends, layout = [column['range_min'], column['range_max']], column.get('datetime_format')
        if layout:
            return pd.Series([*ends, *[None] * nullable], dtype=object)
        return pd.Series(pd.to_datetime([*ends, *[None] * nullable])).astype('datetime64[ns]')
    return None


def public_schema(columns: Mapping[str, Mapping[str, Any]], processed: pd.DataFrame) -> TableSchema:
    """The vocabularies of the modelled columns.

    Categories are those of the metadata. Numbers and dates have a token for each value of their
    grid where there are few, else bins of equal width; numbers have tokens of their own for both
    ends of the range and for zero, where the values of many columns pile up.

    Args:
        columns: Column name to its metadata.
        processed: The public table, transformed: the ranges as the model sees them.
    """
    made: list[CategoricalColumn | NumericalColumn] = []
    for name in processed:
        column, values = columns[str(name)], processed[name]
        nullable, sdtype = bool(values.isna().any()), column['sdtype']
        if sdtype in LABEL_SDTYPES or sdtype == 'boolean':
            labels = column['range_values'] if sdtype in LABEL_SDTYPES else [False, True]
            index = pd.Index(list(labels), dtype=object)
            is_ordered = sdtype == 'ordinal'
            made.append(CategoricalColumn(name, index, nullable, is_ordered, values.dtype))
            continue
        low, high = float(values.min()), float(values.max())
        if sdtype == 'datetime':
            step = _date_step(column.get('datetime_format'))
            made.append(_numbers(name, low, high, step, 0, [], nullable))
        elif column['decimal_places'] > MAX_DECIMALS:
            made.append(_numbers(name, low, high, 0.0, 0, [], nullable))
        else:
            decimals = column['decimal_places']
            own = sorted({low, high, *([0.0] if low < 0 < high else [])})
            made.append(_numbers(name, low, high, 10.0**-decimals, decimals, own, nullable))
    return TableSchema(tuple(made))


def _date_step(layout: str | None) -> float:
    """Spacing of the dates that a format can write, in nanoseconds; 0 where there is no format."""
    if not layout or '%f' in layout:
        return 0.0
    return SECOND if any(code in layout for code in TIME_OF_DAY) else DAY


def _numbers(
    name: Hashable,
    low: float,
    high: float,
    step: float,
    decimals: int,
    own: list[float],
    has_missing: bool,
) -> NumericalColumn:
    """Tokens of equal width over a range; the values in `own`, on the grid, are one token each."""
    unit = step or (high - low) / 2**32 or 1.0
    count = round((high - low) / unit) + 1
    if count <= MAX_BINS:
        ends = [(place, place) for place in range(count)]
    else:
        places = [round((value - low) / unit) for value in own]
        size = math.ceil(count / (MAX_BINS - 2 * len(own)))  # each gap may end in a smaller bin
        ends = [(place, place) for place in places]
        for before, after in pairwise([-1, *places, count]):
            starts = range(before + 1, after, size)
            ends += [(start, min(start + size, after) - 1) for start in starts]
        ends.sort()
    first, last = np.array(ends, dtype=np.float64).T
    is_point = first == last
    values = np.round(low + unit * first, decimals) if step else low + unit * first
    # Half a step beyond the outermost values: rounding then gives each the same share.
    cell_low = np.where(is_point, values, low + unit * (first - 0.5))
    cell_high = np.where(is_point, values, low + unit * (last + 0.5))
    ranged = np.flatnonzero(is_point if is_point.all() else ~is_point)
    missing = [np.nan] * has_missing
    return NumericalColumn(
        name=name,
        points=values[is_point],
        point_tokens=np.flatnonzero(is_point),
        edges=cell_high[ranged[:-1]] / 2 + cell_low[ranged[1:]] / 2,
        edge_tokens=ranged,
        cell_low=np.append(cell_low, missing),
        cell_high=np.append(cell_high, missing),
        first_cell=np.arange(len(ends) + has_missing + 1),
        has_missing=has_missing,
        step=step,
        decimals=decimals,
        grid_start=low,
    )
