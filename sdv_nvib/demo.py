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

    Examples:
        >>> table, metadata = load_demo()
        >>> table.shape
        (215, 17)
    """
    tables, _, old_metadata = load_single_table_demo()
    described = old_metadata['tables'][TABLE]['columns'] | {'student_id': {'sdtype': 'id'}}
    columns = {  # in the table's order: SDV warns of another
        name: {k: v for k, v in described[name].items() if k != 'computer_representation'}
        for name in tables[TABLE]
    }
    table = {'columns': columns, 'primary_key': 'student_id'}
    return tables[TABLE], Metadata.load_from_dict({'tables': {TABLE: table}})
