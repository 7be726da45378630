"""The main job on a table that a dependency ships: fit, sample, score, draw.

    python examples/quickstart.py [picture.png]

The table has numbers, categories, booleans, dates, missing values and a primary key.
"""

import sys

import pandas as pd
from sdmetrics.demos import load_single_table_demo
from sdv.metadata import Metadata
from sdv.single_table import NVIBSynthesizer

from sdv_nvib import save_plot

TABLE = 'student_placements'


def load_demo() -> tuple[pd.DataFrame, Metadata]:
    """The table and its metadata, in SDV 2's form."""
    tables, _, old_metadata = load_single_table_demo()
    columns = {
        name: {key: value for key, value in column.items() if key != 'computer_representation'}
        for name, column in old_metadata['tables'][TABLE]['columns'].items()
    }
    columns['student_id'] = {'sdtype': 'id'}
    table = {'columns': columns, 'primary_key': 'student_id'}
    return tables[TABLE], Metadata.load_from_dict({'tables': {TABLE: table}})


def main() -> None:
    picture = sys.argv[1] if len(sys.argv) > 1 else 'quickstart.png'
    real, metadata = load_demo()
    synthesizer = NVIBSynthesizer(metadata, verbose=True)
    synthesizer.fit({TABLE: real})
    synthetic = synthesizer.sample(num_rows=len(real))
    print(synthetic[TABLE].head().T.to_string())
    report = synthesizer.evaluate(real, target='placed')
    print(report.summary[['measure', 'value', 'ideal']].round(3).to_string(index=False))
    save_plot(real, synthetic[TABLE], metadata, picture)
    print(f'Real against synthetic: {picture}')


if __name__ == '__main__':
    main()
