"""What a fitted synthesizer does with rows on demand, measured against real rows.

    pip install '.[examples]'
    python examples/on_demand.py --data DATA/adult --output docs/pages/on_demand.md

DATA/adult holds train.csv[.gz], test.csv[.gz] and metadata.json (SDV, one table) of the adult
table. Writes a Markdown page of tables: the time of conditional sampling, conditional
distributions, filling in missing values beside scikit-learn, planted anomalies, what the
bottleneck keeps, rows between others, what columns tell of each other, constraints, and synthetic
minority rows for a classifier.
"""

import argparse
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from sdv.cag import (
    FixedCombinations,
    FixedIncrements,
    Inequality,
    OneHotEncoding,
    Range,
    SingleTableProgrammableConstraint,
)
from sdv.metadata import Metadata
from sdv.sampling import Condition
from sdv.single_table import NVIBSynthesizer
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler


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


def timing(synthesizer, test, name, num_rows, repeats=3):
    """Time of plain rows, of a rare condition and of all-different known columns.

    Processor seconds, which other work on the machine hardly changes: the least of some repeats.
    """
    column, shares = 'native.country', test['native.country'].value_counts(normalize=True)
    value = (shares - 0.001).abs().idxmin()  # about one row in a thousand has it
    rare = f'under {column}: {value}, which one test row in {1 / shares[value]:.0f} meets'
    condition = [Condition({column: value}, num_rows)]
    known = test.sample(num_rows, replace=True, random_state=0)[['age', 'fnlwgt', 'education']]
    known = known.reset_index(drop=True)
    calls = {
        'plain': lambda: synthesizer.sample(num_rows),
        rare: lambda: synthesizer.sample_from_conditions(condition),
        'all different, three known columns': lambda: synthesizer.sample_remaining_columns(known),
    }
    rows, first = [], None
    for label, call in calls.items():
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            sampled = call()[name]
            seconds.append(time.process_time() - start)
        first = first or min(seconds)
        rows.append(
            {
                'rows': f'{len(sampled):,} {label}',
                'CPU seconds': f'{min(seconds):.2f}',
                'times plain': f'{min(seconds) / first:.2f}',
            }
        )
    return as_table(rows)


def conditionals(synthesizer, train, test, name, draws=3, splits=100):
    """Sampled rows against training rows, beside real hold-outs of the same size.

    A rule chooses the conditions: the two most frequent values of every column of categories; all
    other columns of categories are compared. As many rows are sampled as test rows meet the
    condition. The distance of one hold-out of that size is a matter of luck: the ratio is to the
    mean over random splits of all real rows that meet the condition into parts of the same sizes.
    """
    rng, rows = np.random.default_rng(0), []
    columns = list(train.select_dtypes(object))
    for known in columns:
        for value in train[known].value_counts().index[:2]:
            real, held_out = (table[table[known] == value] for table in (train, test))
            size = len(held_out)
            everything = pd.concat([real, held_out])[columns].astype('category')
            condition = [Condition({known: value}, size)]
            drawn = [synthesizer.sample_from_conditions(condition)[name] for _ in range(draws)]
            for column in columns:
                if column != known:
                    noise = []
                    for _ in range(splits):
                        values = everything[column].iloc[rng.permutation(len(everything))]
                        noise.append(total_variation(values[size:], values[:size]))
                    errors = [total_variation(real[column], each[column]) for each in drawn]
                    row = (f'{known}: {value}', column, size, np.mean(noise), np.mean(errors))
                    rows.append(row)
    pairs = pd.DataFrame(rows, columns=['condition', 'column', 'rows', 'hold-out', 'sampled'])
    pairs['ratio'] = pairs['sampled'] / pairs['hold-out']
    table, ratios = [], []
    for condition, group in pairs.groupby('condition', sort=False):
        noise, error = group['hold-out'].mean(), group['sampled'].mean()
        cells = dict(zip(group['column'], group['ratio'].map('{:.2f}'.format), strict=True))
        row = {'condition': condition, 'rows': group['rows'].iloc[0]}
        row |= {'hold-out': f'{noise:.4f}', 'sampled': f'{error:.4f}'}
        row |= {'sampled / hold-out': f'{error / noise:.2f}'}
        table.append(row)
        ratios.append({'ratio': condition} | {column: cells.get(column, '') for column in columns})
    within = sum(float(row['sampled / hold-out']) <= 1.5 for row in table)
    return (
        f'{as_table(table)}\n\nWithin 1.5 times a hold-out: {within} of {len(table)} conditions, '
        f'{(pairs["ratio"] <= 1.5).sum()} of {len(pairs)} pairs of a condition and a column; '
        f'median ratio {pairs["ratio"].median():.2f}.\n\n{as_table(ratios)}'
    )


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
        is_husband, is_wife = drawn['relationship'] == 'Husband', drawn['relationship'] == 'Wife'
        is_odd = is_husband & (drawn['sex'] != 'Male') | is_wife & (drawn['sex'] != 'Female')
        is_odd |= (is_husband | is_wife) & ~drawn['marital.status'].str.startswith('Married')
        row['husbands, wives at odds'] = f'{is_odd.sum() / (is_husband | is_wife).sum():.1%}'
        row['nats'] = f'{synthesizer.log_likelihood({name: drawn}, num_orders=4).mean():.2f}'
        rows.append(row)
    return as_table(rows)


def importance(synthesizer, test, name, num_rows):
    """Shared nats beside what might stand for them."""
    rows = {name: test.head(num_rows)}
    encoding = synthesizer.encode(rows)
    variance = np.exp(encoding.logvar)
    divergence = (variance + encoding.mu**2 - 1 - encoding.logvar).sum(2).mean(0) / 2
    read = synthesizer.attention_weights(rows).drop(columns='(prior)').mean()
    more = pd.DataFrame({'Divergence (Nats)': divergence, 'Attention': read}, encoding.columns)
    synthesizer.get_column_importance_plot(rows).write_html('column_importance.html')
    measured = synthesizer.get_column_importance(rows).join(more.astype(float), on='Column')
    ranks = measured.drop(columns='Column').corr('spearman').iloc[0, 1:].round(2)
    return (
        f'{as_table(measured.round(3))}\n\nRank correlations with the shared nats: '
        f'{ranks.to_dict()}.'
    )


def minority(synthesizer, train, test, name, repeats=3):
    """A classifier of a class of 2 %: scored on real rows, whatever rows it was trained on."""
    from imblearn.over_sampling import SMOTENC

    rare, common = (train[train['income'] == value] for value in ('>50K', '<=50K'))
    few = pd.concat([rare.head(len(common) // 49), common])
    own = NVIBSynthesizer(synthesizer.metadata, epochs=synthesizer.epochs)
    own.fit({name: few})
    missing = len(common) - len(few[few['income'] == '>50K'])
    x, y = few.drop(columns='income'), few['income'] == '>50K'
    names = list(x.select_dtypes(object))
    coder = OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1).fit(x[names])
    is_name = [column in names for column in x]

    def coded(table):
        return table.assign(**dict(zip(names, coder.transform(table[names]).T, strict=True)))

    def with_synthetic(seed):
        drawn = own.sample_from_conditions([Condition({'income': '>50K'}, missing)])[name]
        more = pd.concat([x, drawn.drop(columns='income')])
        return coded(more), np.append(y, [True] * missing), None

    methods = {
        'as it is': lambda seed: (coded(x), y, None),
        'class weights': lambda seed: (coded(x), y, 'balanced'),
        'SMOTE': lambda seed: (
            *SMOTENC(is_name, random_state=seed).fit_resample(coded(x), y),
            None,
        ),
        'synthetic rows': with_synthetic,
    }
    rows, truth = [], test['income'] == '>50K'
    for label, training in methods.items():
        scores = []
        for seed in range(repeats):
            rows_x, rows_y, weight = training(seed)
            model = HistGradientBoostingClassifier(
                categorical_features=is_name, class_weight=weight, random_state=seed
            )
            model.fit(rows_x, rows_y)
            score = model.predict_proba(coded(test.drop(columns='income')))[:, 1]
            scores.append(
                [
                    roc_auc_score(truth, score),
                    average_precision_score(truth, score),
                    balanced_accuracy_score(truth, score > 0.5),
                    f1_score(truth, score > 0.5),
                ]
            )
        measures = ('ROC AUC', 'average precision', 'balanced accuracy', 'F1')
        cells = zip(measures, np.mean(scores, 0), np.std(scores, 0), strict=True)
        rows.append({'trained on': label} | {m: f'{a:.3f} ± {b:.3f}' for m, a, b in cells})
    return as_table(rows)


class SpousesAreMarried(SingleTableProgrammableConstraint):
    """Husbands and wives are married: a constraint of a user's own, which transforms nothing."""

    def transform(self, data):
        return data

    def reverse_transform(self, transformed_data):
        return transformed_data

    def get_updated_metadata(self, metadata):
        return metadata

    def is_valid(self, synthetic_data):
        is_spouse = synthetic_data['relationship'].isin(['Husband', 'Wife'])
        return ~is_spouse | synthetic_data['marital.status'].str.startswith('Married')


def constraints(train, metadata, name, num_rows):
    """Every class of SDV's constraints on real rows that hold to it, and rows that break it."""
    races = pd.get_dummies(train['race'], prefix='race', dtype=int)
    table, described = pd.concat([train, races], axis=1), metadata.to_dict()
    table = table.head(4 * num_rows)
    described['tables'][name]['columns'] |= {race: {'sdtype': 'numerical'} for race in races}
    seen = pd.MultiIndex.from_frame(table[['native.country', 'race']])
    kinds = {
        FixedCombinations(['native.country', 'race']): lambda t: pd.Series(
            pd.MultiIndex.from_frame(t[['native.country', 'race']]).isin(seen), t.index
        ),
        Inequality('education.num', 'age'): lambda t: t['education.num'] <= t['age'],
        Range('education.num', 'age', 'fnlwgt'): lambda t: (
            (t['education.num'] < t['age']) & (t['age'] < t['fnlwgt'])
        ),
        OneHotEncoding(list(races)): lambda t: t[list(races)].sum(axis=1) == 1,
        FixedIncrements('hours.per.week', 5): lambda t: t['hours.per.week'] % 5 == 0,
        SpousesAreMarried(): SpousesAreMarried().is_valid,
    }
    rows = []
    for constraint, holds in kinds.items():
        synthesizer = NVIBSynthesizer(Metadata.load_from_dict(described), epochs=2)
        synthesizer.add_constraints([constraint])
        synthesizer.fit({name: table[holds(table)]})
        condition = [Condition({'sex': 'Female', 'education': 'Masters'}, num_rows)]
        drawn = [synthesizer.sample(num_rows), synthesizer.sample_from_conditions(condition)]
        rows.append(
            {
                'constraint': type(constraint).__name__,
                'rows, rows under a condition': ', '.join(f'{len(d[name]):,}' for d in drawn),
                'that break it': ', '.join(str((~holds(d[name])).sum()) for d in drawn),
            }
        )
    return as_table(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--epochs', type=int)
    parser.add_argument('--rows', type=int, default=1000, help='rows of each measured table')
    parser.add_argument('--model', type=Path, help='folder to keep the fitted model in, or of one')
    arguments = parser.parse_args()
    train, test = (read(arguments.data, part) for part in ('train', 'test'))
    metadata = Metadata.load_from_json(arguments.data / 'metadata.json')
    (name,) = metadata.tables
    start = time.perf_counter()
    if arguments.model and arguments.model.exists():
        synthesizer = NVIBSynthesizer.load_model(arguments.model)
    else:
        synthesizer = NVIBSynthesizer(metadata, epochs=arguments.epochs)
        synthesizer.fit({name: train})
        if arguments.model:
            synthesizer.save_model(arguments.model)
    size = arguments.rows
    sections = {
        'Time of conditions': lambda: timing(synthesizer, test, name, 10 * size),
        'Conditional distributions': lambda: conditionals(synthesizer, train, test, name),
        'Filling in missing values': lambda: imputation(synthesizer, train, test, name, size),
        'Planted anomalies': lambda: anomalies(synthesizer, train, test, name, size),
        'What the bottleneck keeps': lambda: bottleneck(synthesizer, train, test, name, 2 * size),
        'Between two rows': lambda: between(synthesizer, train, test, name, size),
        'Which columns carry what': lambda: importance(synthesizer, test, name, size),
        'Constraints': lambda: constraints(train, metadata, name, size),
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
        f'{platform.machine()}, {len(synthesizer.get_loss_values())} epochs; '
        f'{datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n'
    )
    for title, measure in sections.items():
        page += f'\n## {title}\n\n{measure()}\n'
        arguments.output.write_text(page)
        print(title, f'{time.perf_counter() - start:.0f} s', flush=True)


if __name__ == '__main__':
    main()
