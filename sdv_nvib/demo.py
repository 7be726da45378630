"""A table to try things on, which a dependency ships: no download, no file of our own.

Duty: the command line's demo, the examples and the documentation all run on it.
"""

import pandas as pd
from sdmetrics.demos import load_single_table_demo
from sdv.metadata import Metadata

__all__ = ['TABLE', 'load_demo']

TABLE = 'student_placements'


def load_demo() -> tuple[pd.DataFrame, Metadata]:
    """Return SDMetrics' demo table, `(215, 17)`, and its metadata in SDV 2's form.

    It has numbers, categories, booleans, dates, missing values and a primary key.

    Example:
        >>> table, metadata = load_demo()
        >>> table.shape
        (215, 17)
    """
    tables, _, old_metadata = load_single_table_demo()
    columns = {
        name: {key: value for key, value in column.items() if key != 'computer_representation'}
        for name, column in old_metadata['tables'][TABLE]['columns'].items()
    }
    columns['student_id'] = {'sdtype': 'id'}
    table = {'columns': columns, 'primary_key': 'student_id'}
    return tables[TABLE], Metadata.load_from_dict({'tables': {TABLE: table}})
