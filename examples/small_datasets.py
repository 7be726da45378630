"""The small tables of scikit-learn and sdmetrics, as dataset folders for benchmark.py.

    python examples/small_datasets.py --output DATA

Every folder has train.csv and test.csv (a random third), metadata.json and info.json.
"""

import argparse
import json
from pathlib import Path

from sdv.metadata import Metadata
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.model_selection import train_test_split

from sdv_nvib.demo import TABLE, load_demo


def tables():
    """Yield a name, a table, its metadata and its target column."""
    for load in (load_breast_cancer, load_diabetes, load_iris, load_wine):
        name = load.__name__.removeprefix('load_')
        raw = {'scaled': False} if load is load_diabetes else {}
        bunch = load(as_frame=True, **raw)
        table, classes = bunch.frame, {'sex'}
        if 'target_names' in bunch:
            table['target'] = bunch.target_names[bunch.target]
            classes = {'target'}
        columns = {
            column: {'sdtype': 'categorical' if column in classes else 'numerical'}
            for column in table
        }
        metadata = Metadata.load_from_dict({'tables': {name: {'columns': columns}}})
        yield name, table, metadata, 'target'
    table, metadata = load_demo()
    yield TABLE, table, metadata, 'placed'


def main():
    """Write every table's folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, required=True)
    output = parser.parse_args().output
    for name, table, metadata, target in tables():
        folder = output / name
        folder.mkdir(parents=True)
        train, test = train_test_split(table, test_size=1 / 3, random_state=0)
        train.to_csv(folder / 'train.csv', index=False)
        test.to_csv(folder / 'test.csv', index=False)
        metadata.save_to_json(folder / 'metadata.json')
        (folder / 'info.json').write_text(json.dumps({'target': target}))
        print(f'{folder}: {len(train)} and {len(test)} rows, {table.shape[1]} columns')


if __name__ == '__main__':
    main()
