"""What the bottleneck does, by number of rows: its weights, delta, kappa, and none at all.

    python examples/bottleneck_by_rows.py --data DATA --datasets adult shoppers \\
        --rows 200 1000 5000 --output results/

DATA is as in benchmark.py. For every setting, table, size and seed: a random subset is trained on,
as many rows are drawn, and

- held-out nats: reconstruction of test rows that were not trained on, per row;
- C2ST between the drawn rows and the subset;
- trend error between the drawn rows and the subset, in percent;
- utility on the test rows, the mean of up to eight times as many drawn rows as the subset has;
- DCR share of 4,000 drawn rows: nearer to the subset than to as many test rows;
- nats through F.

Every run adds a line to OUTPUT/bottleneck.csv, and a run that has one is not repeated.
bottleneck.md has the means over tables and seeds, and bottleneck.png shows them beside the default.
"""

import argparse
import json
from datetime import date
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sdv.metadata import Metadata

from sdv_nvib import quality, training
from sdv_nvib.generation import AnyOrderGenerator
from sdv_nvib.model import ModelConfig, TabularNVIB
from sdv_nvib.nvib import NVIBLayer
from sdv_nvib.tokens import TableSchema
from sdv_nvib.training import Trainer, TrainingConfig

SETTINGS = {
    'default': {},
    'lambda 0': {'scale': 0.0},
    'lambda / 5': {'scale': 0.2},
    'lambda x 5': {'scale': 5.0},
    'L_G alone x 5': {'scale_g': 5.0},
    'L_D alone x 5': {'scale_d': 5.0},
    'delta 0.1': {'delta': 0.1},
    'kappa 2': {'kappa': 2},
    'no bottleneck': {'scale': 0.0, 'bypass': True},
}
KEYS = ['setting', 'dataset', 'rows', 'seed']
MEASURES = ['held-out nats', 'C2ST', 'trend error %', 'utility', 'DCR share', 'nats through F']
DRAWN = 4000
SAMPLES = 8  # whose utilities are averaged, where as many are drawn
COLOURS = ('#000000', '#E69F00', '#56B4E9', '#0072B2', '#CC79A7', '#999999', '#F0E442', '#009E73',
           '#D55E00')  # fmt: skip


@torch.no_grad()
def take_away(bottleneck: NVIBLayer) -> None:
    """Vectors go through as they are: equal weights, and standard deviations of 0.0025.

    Log-variance and log alpha stand beyond the clamps of the layer, where no gradient reaches them.
    """
    bottleneck.mu_logvar.weight[bottleneck.p :] = 0.0
    bottleneck.mu_logvar.bias[bottleneck.p :] = -20.0
    bottleneck.log_alpha.weight.zero_()
    bottleneck.log_alpha.bias.fill_(20.0)


def run(folder: Path, setting: str, rows: int, seed: int) -> dict[str, float]:
    chosen = SETTINGS[setting]
    train, test = (pd.read_csv(next(folder.glob(f'{part}.csv*'))) for part in ('train', 'test'))
    metadata = Metadata.load_from_json(str(folder / 'metadata.json'))
    target = json.loads((folder / 'info.json').read_text())['target']
    columns = next(iter(metadata.tables.values())).columns
    numerical = {name for name, c in columns.items() if c['sdtype'] == 'numerical'}
    train = train.sample(min(rows, len(train)), random_state=seed).reset_index(drop=True)
    schema = TableSchema.fit(train, numerical)
    tokens = torch.from_numpy(schema.encode(train))
    torch.manual_seed(seed)
    network = TabularNVIB(
        schema.positions,
        ModelConfig(delta=chosen.get('delta', 1.0), kappa=chosen.get('kappa', 1)),
    )
    if chosen.get('bypass'):
        take_away(network.nvib)
    weight = training._auto_lambda(round(0.9 * len(train))) * chosen.get('scale', 1.0)
    config = TrainingConfig(
        lambda_gaussian=weight * chosen.get('scale_g', 1.0),
        lambda_dirichlet=weight * chosen.get('scale_d', 1.0),
        seed=seed,
    )
    trainer = Trainer(network, config)
    trainer.fit(tokens)
    generator = torch.Generator().manual_seed(seed)
    source, size = AnyOrderGenerator(network, 2000), max(DRAWN, len(train))
    drawn = [source.generate(min(2000, size - k), generator) for k in range(0, size, 2000)]
    drawn = schema.decode(torch.cat(drawn).numpy(), np.random.default_rng(seed))
    for name in numerical & set(train):
        if pd.api.types.is_integer_dtype(train[name]):
            drawn[name] = drawn[name].round()
    known = torch.from_numpy(schema.encode(test[schema.knows(test)].head(2000)))
    with torch.no_grad():
        order = torch.rand(known.shape, generator=generator).argsort(1)
        nats = network(known, order, generator).nll.sum(1).mean().item()
    rows = len(train)
    starts = range(0, min(SAMPLES * rows, len(drawn) - rows + 1), rows)
    samples = [drawn.iloc[k : k + rows].reset_index(drop=True) for k in starts]
    utilities = [quality.utility(sample, test, metadata, target) for sample in samples]
    as_many = samples[0]
    return {
        'held-out nats': nats,
        'C2ST': quality.c2st(train, as_many, metadata),
        'trend error %': quality.trend_error(train, as_many, metadata),
        'utility': float(np.mean(utilities)),
        'DCR share': quality.dcr_share(train, test, drawn, metadata, max_rows=DRAWN),
        'nats through F': trainer.best.nats if trainer.best else float('nan'),
    }


def markdown(frame: pd.DataFrame, words: str) -> str:
    lines = ['# The bottleneck by number of rows', '', words]
    order = [s for s in SETTINGS if s in set(frame['setting'])]
    for (dataset, rows), part in frame.groupby(['dataset', 'rows'], sort=False):
        mean = part.groupby('setting')[MEASURES].mean().loc[order_of(part, order)]
        lines += ['', f'{dataset}, {rows:,} rows, {part["seed"].nunique()} subset(s)', '']
        lines += ['| | ' + ' | '.join(MEASURES) + ' |', '|' + '---|' * (len(MEASURES) + 1)]
        lines += [
            f'| {name} | ' + ' | '.join(f'{v:.3f}' if v < 100 else f'{v:.0f}' for v in row) + ' |'
            for name, row in zip(mean.index, mean.to_numpy(), strict=True)
        ]
    return '\n'.join(lines) + '\n'


def order_of(part: pd.DataFrame, order: list[str]) -> list[str]:
    present = set(part['setting'])
    return [name for name in order if name in present]


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Four measures against rows, one line per setting; nats and utility less the default's."""
    shown = [('held-out nats', True), ('C2ST', False), ('utility', True), ('DCR share', False)]
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.2), layout='constrained')
    means = frame.groupby(['setting', 'rows', 'dataset'])[MEASURES].mean()
    rows = sorted(frame['rows'].unique())
    for axis, (measure, is_relative) in zip(axes, shown, strict=True):
        values = means[measure]
        if is_relative:
            values = values - values.xs('default').reindex(values.index.droplevel(0)).to_numpy()
        values = values.groupby(['setting', 'rows']).mean()
        for (setting, marker), colour in zip(
            zip(SETTINGS, 'osD^v<>PX', strict=True), COLOURS, strict=True
        ):
            if setting in values.index:
                line = values.xs(setting)
                axis.plot(line.index, line, marker=marker, color=colour, label=setting)
        axis.set(xscale='log', xlabel='rows')
        axis.set_xticks(rows, [f'{size:,}' for size in rows])
        axis.minorticks_off()
        axis.set_title(measure + (' less the default’s' if is_relative else ''))
        axis.grid(alpha=0.3)
    axes[-1].axhline(0.5, color='#888888', linestyle=':')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--datasets', nargs='+', default=['adult'])
    parser.add_argument('--rows', type=int, nargs='+', default=[200, 1000, 5000, 30_000])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--settings', nargs='+', default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument('--output', type=Path, required=True)
    arguments = parser.parse_args()
    if 'default' not in arguments.settings:
        parser.error('--settings needs default, which the plot compares the others with.')
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / 'bottleneck.csv'
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*KEYS, *MEASURES])
    wanted = [
        (setting, dataset, rows, seed)
        for rows in arguments.rows
        for seed in arguments.seeds
        for dataset in arguments.datasets
        for setting in arguments.settings
    ]
    for key in wanted:
        if (done[KEYS] == list(key)).all(axis=1).any():
            continue
        setting, dataset, rows, seed = key
        result = run(arguments.data / dataset, setting, rows, seed)
        line = pd.DataFrame([dict(zip(KEYS, key, strict=True)) | result])
        done = line if done.empty else pd.concat([done, line], ignore_index=True)
        done.to_csv(path, index=False)
        print(*key, {name: round(value, 3) for name, value in result.items()}, flush=True)
    versions = ', '.join(f'{p} {version(p)}' for p in ('sdv-nvib', 'sdv', 'torch'))
    words = f'{versions}, {torch.get_num_threads()} threads, {date.today()}.'
    (arguments.output / 'bottleneck.md').write_text(markdown(done, words))
    plot(done, arguments.output / 'bottleneck.png')


if __name__ == '__main__':
    main()
