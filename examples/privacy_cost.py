"""What protection costs in quality: thresholds on any table, differential privacy on adult.

    python examples/privacy_cost.py --data DATA --dataset adult --rows 30000

DATA is laid out as for benchmark.py. Prints Markdown tables. The ranges of adult's numbers are
round ones around its codebook's; its categories are those of both files, taken for the codebook.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sdv.metadata import Metadata
from sdv.single_table import NVIBSynthesizer

from sdv_nvib import quality

ADULT_RANGES = {
    'age': (17, 90),
    'fnlwgt': (0, 1_500_000),
    'education.num': (1, 16),
    'capital.gain': (0, 99_999),
    'capital.loss': (0, 5_000),
    'hours.per.week': (1, 99),
}
EPSILONS = (1.0, 3.0, 10.0)
HEADER = (
    '| | C2ST | trend error % | shape error % | utility | fit, CPU s |\n|---|---|---|---|---|---|'
)


def with_ranges(metadata: Metadata, known: pd.DataFrame) -> Metadata:
    """The metadata of adult with the values that its columns may have."""
    described = metadata.to_dict()
    (table,) = described['tables'].values()
    for name, column in table['columns'].items():
        column['range_is_nullable'] = bool(known[name].isna().any())
        if column['sdtype'] == 'numerical':
            low, high = ADULT_RANGES[name]
            column |= {'range_min': low, 'range_max': high, 'decimal_places': 0}
        else:
            column['range_values'] = sorted(known[name].dropna().unique())
    return Metadata.load_from_dict(described)


def score(label, train, test, made, metadata, target, seconds=float('nan')):
    """One line of a table."""
    cells = [
        f'{quality.c2st(train, made, metadata):.3f}',
        f'{quality.trend_error(train, made, metadata):.2f}',
        f'{quality.shape_error(train, made, metadata):.2f}',
        f'{quality.utility(made, test, metadata, target):.3f}',
        '' if np.isnan(seconds) else f'{seconds:.0f}',
    ]
    print(f'| {label} | {" | ".join(cells)} |', flush=True)


def fit_and_score(label, train, test, metadata, target, **arguments):
    """Fit with these arguments, sample as many rows as were fitted on, print one line."""
    (name,) = metadata.tables
    started = time.process_time()
    synthesizer = NVIBSynthesizer(metadata, **arguments)
    synthesizer.fit({name: train.copy()})
    seconds = time.process_time() - started
    made = synthesizer.sample(num_rows=len(train))[name]
    score(label, train, test, made, metadata, target, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='folder of the tables')
    parser.add_argument('--dataset', default='adult')
    parser.add_argument('--target', default='income')
    parser.add_argument('--rows', type=int, default=30_000, help='of the training rows')
    parser.add_argument('--epochs', type=int, help='of every fit')
    parser.add_argument('--d-model', type=int, default=64)
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    folder = options.data / options.dataset
    metadata = Metadata.load_from_json(folder / 'metadata.json')
    real, test = (pd.read_csv(next(folder.glob(f'{part}.csv*'))) for part in ('train', 'test'))
    train = real.sample(min(options.rows, len(real)), random_state=0).reset_index(drop=True)
    rows, size = (train, test), {'epochs': options.epochs, 'd_model': options.d_model}

    print(f'{options.dataset}, {len(train):,} rows, {size}\n\n{HEADER}')
    for rare, numbers in ((1, 1), (5, 1), (1, 5), (5, 5)):
        label = f'rare_category_threshold {rare}, numerical_threshold {numbers}'
        thresholds = {'rare_category_threshold': rare, 'numerical_threshold': numbers}
        fit_and_score(label, *rows, metadata, options.target, **thresholds, **size)
    if options.dataset != 'adult':
        return
    ranged = with_ranges(metadata, pd.concat([real, test]))
    print(f'\n{HEADER}')
    for epsilon in EPSILONS:
        label = f'epsilon {epsilon:g}, delta 1e-6'
        fit_and_score(label, *rows, ranged, options.target, target_epsilon=epsilon, **size)
    rng = np.random.default_rng(0)
    independent = pd.DataFrame({name: rng.permutation(train[name]) for name in train})
    score('independent columns, no privacy', *rows, independent, ranged, options.target)


if __name__ == '__main__':
    main()
