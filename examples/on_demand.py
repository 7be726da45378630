"""What a fitted synthesizer does with rows on demand, measured against real rows.

    pip install '.[examples]'
    python examples/on_demand.py --data DATA/adult --output docs/pages/on_demand.md

DATA/adult holds train.csv[.gz], test.csv[.gz] and metadata.json (SDV, one table) of the adult
table. Writes a Markdown page of tables: the time of conditional sampling, conditional
distributions, filling in missing values beside scikit-learn, planted anomalies, what the
bottleneck keeps, rows between others, what columns tell of each other, and synthetic minority rows
for a classifier.
"""

import argparse
import os
import platform
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from sdv.metadata import Metadata
from sdv.sampling import Condition
from sdv.single_table import NVIBSynthesizer
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

CONDITIONS = [  # the condition, and the column whose distribution is compared
    ({'sex': 'Female'}, 'relationship'),
    ({'education': 'Bachelors'}, 'occupation'),
    ({'income': '>50K'}, 'education'),
    ({'marital.status': 'Never-married'}, 'relationship'),
    ({'race': 'Black', 'sex': 'Male'}, 'workclass'),
    ({'occupation': 'Exec-managerial'}, 'income'),
]


def read(folder, name):
    table = pd.read_csv(next(folder.glob(f'{name}.csv*')))
    return table.apply(lambda c: c.str.strip() if c.dtype == object else c)


def as_table(rows):
    """Rows of cells to Markdown."""
    frame = pd.DataFrame(rows)
    lines = ['| ' + ' | '.join(frame) + ' |', '|---' * frame.shape[1] + '|']
    lines += ['| ' + ' | '.join(map(str, row)) + ' |' for row in frame.to_numpy(dtype=object)]
    return '\n'.join(lines)


def total_variation(a, b):
    shares = [values.value_counts(normalize=True) for values in (a, b)]
    return shares[0].sub(shares[1], fill_value=0).abs().sum() / 2


def one_hot(columns):
    numbers = columns.select_dtypes('number').columns
    return make_column_transformer(
        (StandardScaler(), numbers),
        (
            OneHotEncoder(handle_unknown='ignore', sparse_output=False),
            columns.columns.difference(numbers),
        ),
    )


def timing(synthesizer, test, name, num_rows):
    """Seconds of plain rows, of a rare condition and of all-different known columns."""
    rare = synthesizer_rare(test)
    known = test.sample(num_rows, replace=True, random_state=0)[['age', 'fnlwgt', 'education']]
    known = known.reset_index(drop=True)
    calls = {
        'plain': lambda: synthesizer.sample(num_rows),
        f'under {rare}': lambda: synthesizer.sample_from_conditions([Condition(rare, num_rows)]),
        'all different, three known columns': lambda: synthesizer.sample_remaining_columns(known),
    }
    rows, first = [], None
    for label, call in calls.items():
        start = time.perf_counter()
        sampled = call()[name]
        seconds = time.perf_counter() - start
        first = first or seconds
        rows.append(
            {
                'rows': f'{len(sampled):,} {label}',
                'seconds': f'{seconds:.2f}',
                'times plain': f'{seconds / first:.2f}',
            }
        )
    return as_table(rows)


def synthesizer_rare(test):
    """A value that about one row in a thousand has."""
    shares = test['native.country'].value_counts(normalize=True)
    return {'native.country': (shares - 0.001).abs().idxmin()}


def conditionals(synthesizer, train, test, name, draws=3, splits=200):
    """Sampled rows against training rows, beside hold-outs: the one there is, and random ones.

    The distance of one hold-out is a matter of luck: the ratio is to the mean over random splits of
    all real rows that meet the condition into parts of the same sizes.
    """
    rng, rows = np.random.default_rng(0), []
    for condition, column in CONDITIONS:
        real, held_out = (
            table[(table[list(condition)] == list(condition.values())).all(axis=1)][column]
            for table in (train, test)
        )
        size, everything = len(held_out), pd.concat([real, held_out])
        shuffled = (everything.iloc[rng.permutation(len(everything))] for _ in range(splits))
        noise = np.mean([total_variation(each[size:], each[:size]) for each in shuffled])
        condition_rows = [Condition(condition, size)]
        errors = [
            total_variation(real, synthesizer.sample_from_conditions(condition_rows)[name][column])
            for _ in range(draws)
        ]
        rows.append(
            {
                'p(column given condition)': f'{column} given {condition}',
                'rows': size,
                'this hold-out': f'{total_variation(real, held_out):.4f}',
                'random hold-outs': f'{noise:.4f}',
                'sampled': f'{np.mean(errors):.4f} ± {np.std(errors):.4f}',
                'sampled / random hold-outs': f'{np.mean(errors) / noise:.2f}',
            }
        )
    return as_table(rows)


def imputation(synthesizer, train, test, name, num_rows):
    """Error of filled cells: of numbers over their spread, of categories the share wrong."""
    truth = test.head(num_rows)
    numbers = list(truth.select_dtypes('number'))
    names = [c for c in truth if c not in numbers]
    rng, rows = np.random.default_rng(0), []
    coder = OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1)
    coder.fit(train[names])
    spread = train[numbers].std()

    def coded(table):
        filled = table[names].where(table[names].notna(), 'no value')
        codes = pd.DataFrame(coder.transform(filled), table.index, names)
        return pd.concat([table[numbers], codes.where(table[names].notna())], axis=1)

    def by_sklearn(imputer, holes):
        imputer.fit(coded(train.head(3000)))
        values = pd.DataFrame(imputer.transform(coded(holes)), holes.index, [*numbers, *names])
        limits = [len(each) - 1 for each in coder.categories_]
        codes = values[names].round().clip(0, pd.Series(limits, names), axis=1)
        categories = pd.DataFrame(coder.inverse_transform(codes), holes.index, names)
        return pd.concat([values[numbers], categories], axis=1)

    methods = {
        'NVIBSynthesizer, a draw': lambda t: synthesizer.impute({name: t})[name],
        'NVIBSynthesizer, mean': lambda t: synthesizer.impute({name: t}, method='mean')[name],
        'IterativeImputer': lambda t: by_sklearn(IterativeImputer(random_state=0), t),
        'KNNImputer': lambda t: by_sklearn(KNNImputer(), t),
    }
    for share in (0.1, 0.3):
        for kind in ('at random', 'by age'):
            # By age: the older half loses three times as many values as the younger.
            old = (truth['age'] > truth['age'].median()).to_numpy()
            chance = (
                np.where(old, 1.5, 0.5) * share if kind == 'by age' else np.full(len(old), share)
            )
            gone = pd.DataFrame(
                rng.random(truth.shape) < chance[:, None], truth.index, truth.columns
            )
            gone['age'] &= kind == 'at random'
            holes = truth.mask(gone)
            for label, fill in methods.items():
                filled = fill(holes)
                squares = ((filled[numbers] - truth[numbers]) / spread).pow(2).where(gone[numbers])
                wrong = (filled[names] != truth[names]).where(gone[names])
                rows.append(
                    {
                        'missing': f'{share:.0%} {kind}',
                        'method': label,
                        'numbers (RMSE / std)': f'{np.sqrt(squares.stack().mean()):.3f}',
                        'categories wrong': f'{wrong.stack().mean():.3f}',
                    }
                )
    return as_table(rows)


def anomalies(synthesizer, train, test, name, num_rows):
    """Rows with a quarter of their cells taken from other rows: every value usual by itself."""
    usual = test.head(num_rows).reset_index(drop=True)
    rng, planted = (
        np.random.default_rng(0),
        test.iloc[num_rows : 2 * num_rows].reset_index(drop=True),
    )
    for column in planted:
        moved = rng.random(num_rows) < 0.25
        planted.loc[moved, column] = rng.permutation(planted[column])[moved]
    rows = pd.concat([usual, planted], ignore_index=True)
    is_planted = np.repeat([0, 1], num_rows)
    encoder = one_hot(train).fit(train)
    forest = IsolationForest(random_state=0).fit(encoder.transform(train))
    scores = {
        f'log_likelihood, {k} orders': -synthesizer.log_likelihood({name: rows}, num_orders=k)
        for k in (1, 8)
    }
    scores['IsolationForest'] = -forest.score_samples(encoder.transform(rows))
    return as_table(
        [{'score': s, 'ROC AUC': f'{roc_auc_score(is_planted, v):.3f}'} for s, v in scores.items()]
    )


def bottleneck(synthesizer, train, test, name, num_rows):
    rows, (fit_rows, score_rows) = [], (train.head(num_rows), test.head(num_rows))
    encodings = [
        synthesizer.encode({name: t.assign(income='<=50K')}) for t in (fit_rows, score_rows)
    ]
    inputs = [t.drop(columns='income') for t in (fit_rows, score_rows)]
    size = encodings[0].embedding.shape[1]
    pca = make_pipeline(one_hot(inputs[0]), PCA(size, random_state=0)).fit(inputs[0])
    features = {
        f'embedding ({size})': [e.embedding for e in encodings],
        f'PCA of the one-hot table ({size})': [pca.transform(t) for t in inputs],
    }
    for label, (x, y) in features.items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(x, fit_rows['income'])
        auc = roc_auc_score(score_rows['income'], probe.decision_function(y))
        rows.append({'linear probe of income on': label, 'AUC': f'{auc:.3f}'})
    similar = []
    for variety in (0, 0.25, 0.5, 0.75, 1):
        drawn = synthesizer.sample_similar({name: score_rows}, variety)[name]
        similar.append(
            {'variety': variety, 'cells unlike the source row': f'{unlike(drawn, score_rows):.3f}'}
        )
    return '\n\n'.join(map(as_table, (rows, similar)))


def unlike(rows, others):
    """Share of the cells that differ."""
    return 1 - (rows == others).to_numpy().mean()


def between(synthesizer, train, test, name, num_rows):
    """The path from test rows to other test rows, and how likely the rows on it are."""
    first, last = (
        test.iloc[k * num_rows : (k + 1) * num_rows].reset_index(drop=True) for k in (0, 1)
    )
    numbers, spread = list(test.select_dtypes('number')), train.std(numeric_only=True)
    is_first = np.random.default_rng(0).random(first.shape) < 0.5
    path = {
        t: synthesizer.sample_between({name: first}, {name: last}, t)[name]
        for t in (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
    }
    path['cells of both at random'] = first.where(is_first, last)
    rows = []
    for position, drawn in path.items():
        row = {'position': position}
        for label, end in (('first', first), ('last', last)):
            gap = (drawn[numbers] - end[numbers]).abs() / spread
            row[f'cells unlike the {label}'] = f'{unlike(drawn, end):.3f}'
            row[f'numbers from the {label} (std)'] = f'{gap.to_numpy().mean():.3f}'
        row['nats'] = f'{synthesizer.log_likelihood({name: drawn}, num_orders=4).mean():.2f}'
        rows.append(row)
    return as_table(rows)


def importance(synthesizer, test, name, num_rows):
    measured = synthesizer.get_column_importance({name: test.head(num_rows)})
    ranks = measured.drop(columns='Column').corr('spearman').iloc[0, 1]
    return f'{as_table(measured.round(3))}\n\nRank correlation of the two: {ranks:.2f}.'


def minority(synthesizer, train, test, name):
    """A classifier of a class of 2 %: scored on real rows, whatever rows it was trained on."""
    from imblearn.over_sampling import SMOTENC

    rare, common = (train[train['income'] == value] for value in ('>50K', '<=50K'))
    few = pd.concat([rare.head(len(common) // 49), common])
    own = NVIBSynthesizer(synthesizer.metadata, epochs=synthesizer.epochs)
    own.fit({name: few})
    missing = len(common) - len(few[few['income'] == '>50K'])
    synthetic = own.sample_from_conditions([Condition({'income': '>50K'}, missing)])[name]
    x, y = few.drop(columns='income'), few['income'] == '>50K'
    names = list(x.select_dtypes(object))
    coder = OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1).fit(x[names])

    def coded(table):
        return table.assign(**dict(zip(names, coder.transform(table[names]).T, strict=True)))

    is_name = [column in names for column in x]
    more_x = pd.concat([x, synthetic.drop(columns='income')])
    training = {
        'as it is': (coded(x), y, None),
        'class weights': (coded(x), y, 'balanced'),
        'SMOTE': (*SMOTENC(is_name, random_state=0).fit_resample(coded(x), y), None),
        'synthetic rows': (coded(more_x), np.append(y, [True] * len(synthetic)), None),
    }
    rows, truth = [], test['income'] == '>50K'
    for label, (rows_x, rows_y, weight) in training.items():
        model = HistGradientBoostingClassifier(
            categorical_features=is_name, class_weight=weight, random_state=0
        )
        score = model.fit(rows_x, rows_y).predict_proba(coded(test.drop(columns='income')))[:, 1]
        rows.append(
            {
                'trained on': label,
                'ROC AUC': f'{roc_auc_score(truth, score):.3f}',
                'average precision': f'{average_precision_score(truth, score):.3f}',
            }
        )
    return as_table(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--epochs', type=int)
    parser.add_argument('--rows', type=int, default=1000, help='rows of each measured table')
    arguments = parser.parse_args()
    train, test = (read(arguments.data, part) for part in ('train', 'test'))
    metadata = Metadata.load_from_json(arguments.data / 'metadata.json')
    (name,) = metadata.tables
    synthesizer = NVIBSynthesizer(metadata, epochs=arguments.epochs)
    start = time.perf_counter()
    synthesizer.fit({name: train})
    seconds = time.perf_counter() - start
    size = arguments.rows
    sections = {
        'Time of conditions': lambda: timing(synthesizer, test, name, 10 * size),
        'Conditional distributions (total variation to training rows)': lambda: conditionals(
            synthesizer, train, test, name
        ),
        'Filling in missing values': lambda: imputation(synthesizer, train, test, name, size),
        'Planted anomalies': lambda: anomalies(synthesizer, train, test, name, size),
        'What the bottleneck keeps': lambda: bottleneck(synthesizer, train, test, name, 2 * size),
        'Between two rows': lambda: between(synthesizer, train, test, name, size),
        'Which columns carry what': lambda: importance(synthesizer, test, name, size),
        'A rare class': lambda: minority(synthesizer, train, test, name),
    }
    packages = ('sdv-nvib', 'torch', 'sdv', 'scikit-learn', 'imbalanced-learn')
    versions = ', '.join(f'{package} {version(package)}' for package in packages)
    cores = len(os.sched_getaffinity(0))
    command = f'python examples/on_demand.py --data DATA/adult --output OUTPUT --rows {size}'
    if arguments.epochs:
        command += f' --epochs {arguments.epochs}'
    page = (
        f'# Rows on demand, measured\n\nCommand: `{command}`  \nVersions: Python '
        f'{platform.python_version()}, {versions}  \nProcessor: {cores} core(s) of '
        f'{platform.machine()}, fitted in {seconds:.0f} s ({len(synthesizer.get_loss_values())} '
        f'epochs); {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC\n'
    )
    for title, measure in sections.items():
        page += f'\n## {title}\n\n{measure()}\n'
        arguments.output.write_text(page)
        print(title, f'{time.perf_counter() - start:.0f} s', flush=True)


if __name__ == '__main__':
    main()
