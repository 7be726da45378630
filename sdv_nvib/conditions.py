"""Conditions on rows: which draws meet them, and the given values put in their place.

Sixth in the flow, between drawn rows and SDV's interface: tables of draws and tables of conditions
in, row numbers and tables out. No networks, and nothing of SDV.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

__all__ = ['assign_draws', 'dates_as', 'meets', 'readable_format', 'with_given_values']

FLOAT_TOLERANCE = 0.01  # relative; a number drawn this near to the condition is made equal to it


def meets(
    drawn: pd.DataFrame, wanted: pd.DataFrame, given: pd.DataFrame, columns: Sequence[Hashable]
) -> np.ndarray:
    """Which drawn rows have the wanted values, `(N,)` booleans.

    Args:
        drawn: N drawn rows.
        wanted: What each of them should be, in the same order.
        given: Which cells of `wanted` count, of its shape; a cell that counts may be missing.
        columns: Columns to compare.
    """
    result = np.ones(len(drawn), dtype=bool)
    for name in columns:
        values, targets = drawn[name].reset_index(drop=True), wanted[name].reset_index(drop=True)
        if pd.api.types.is_float_dtype(values.dtype):
            targets = pd.to_numeric(targets)
            same = (values - targets).abs() <= targets.abs() * FLOAT_TOLERANCE
        else:
            same = values.astype(object) == targets.astype(object)
        same |= values.isna() & targets.isna()
        result &= same.to_numpy(dtype=bool) | ~given[name].to_numpy(dtype=bool)
    return result


def dates_as(dtype: Any, values: pd.Series, form: str | None) -> pd.Series:
    """Dates, or texts that are some, in the type that a column of dates has.

    Args:
        dtype: Of the column: one of dates, with or without a zone, or of texts in a format.
        values: Dates or texts in the column's format; without a zone they are taken for UTC.
        form: The column's format.
    """
    is_date = pd.api.types.is_datetime64_any_dtype(values)
    if not pd.api.types.is_datetime64_any_dtype(dtype):
        if not is_date or form is None:
            return values
        has_zone = values.dt.tz is not None or '%z' not in form
        return (values if has_zone else values.dt.tz_localize('UTC')).dt.strftime(form)
    dates = pd.to_datetime(values, format=None if is_date else readable_format(form), utc=True)
    return dates.dt.tz_convert(getattr(dtype, 'tz', None)).astype(dtype)


def readable_format(form: str | None) -> str | None:
    """A format as pandas reads it: of days without leading zeros it reads none that it writes."""
    return form.replace('%-', '%').replace('%#', '%') if form else None


def with_given_values(drawn: pd.Series, wanted: pd.Series, given: np.ndarray) -> pd.Series:
    """A drawn column with the given values in their places, in its own dtype where that can be.

    Args:
        drawn: N drawn values.
        wanted: N values, in the same order.
        given: Which of them to put in place, `(N,)`. Where both are missing, the draw is left as
            it is, missing in the column's own way.
    """
    places = given & ~(wanted.isna() & drawn.isna().to_numpy()).to_numpy()
    if not places.any():
        return drawn
    values = drawn.astype(object).to_numpy(copy=True)
    values[places] = wanted.astype(object).to_numpy()[places]
    result = pd.Series(values, index=drawn.index, name=drawn.name, dtype=object)
    if pd.api.types.is_integer_dtype(drawn.dtype):
        present = pd.to_numeric(result.dropna())
        is_whole = not len(present) or (present % 1 == 0).all()
        if not is_whole or (len(present) < len(result) and isinstance(drawn.dtype, np.dtype)):
            return result.infer_objects()
    return result.astype(drawn.dtype)


def assign_draws(
    open_groups: np.ndarray, drawn_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give each open row one valid draw of its own group, first come first served.

    Rows with equal conditions form a group: a draw made for one of them serves any.

    Args:
        open_groups: Group of each open row, `(M,)`.
        drawn_groups: Group of each valid draw, `(D,)`.

    Returns:
        Places of the rows served, in `open_groups`, and of the draws they get, in `drawn_groups`.

    Examples:
        >>> assign_draws(np.array([7, 8, 7]), np.array([7, 9, 7, 7]))
        (array([0, 2]), array([0, 2]))
    """
    tables = [
        pd.DataFrame({'group': groups, 'place': np.arange(len(groups))})
        for groups in (open_groups, drawn_groups)
    ]
    for table in tables:
        table['rank'] = table.groupby('group').cumcount()
    matched = tables[0].merge(tables[1], on=['group', 'rank'])
    return matched['place_x'].to_numpy(), matched['place_y'].to_numpy()
