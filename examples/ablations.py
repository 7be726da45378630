"""What the bottleneck does: ways to read F while generating, F cut off, and single-pass generation.

    python examples/ablations.py --data DATA --dataset adult --output docs/pages/ablations.md

DATA is laid out as for benchmark.py. One any-order fit per seed serves all ways of reading F and
the cut; single-pass generation has a fit of its own.
"""

import argparse
import json
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sdv.metadata import Metadata
from sdv.single_table import NVIBSynthesizer
from torch.nn import functional

from sdv_nvib import quality
from sdv_nvib.generation import ROWS_PER_ORDER, AnyOrderGenerator, draw_tokens
from sdv_nvib.model import TabularNVIB
from sdv_nvib.nvib import prior_mixture, sample_mixture

CHUNK = 4096
READINGS = {
    'kept': 'F sampled, a column’s draw kept (the default)',
    'fresh': 'F sampled afresh at every step',
    'evaluation': 'F itself, by evaluation attention',
}


@torch.inference_mode()
def generate(network: TabularNVIB, rows: int, reading: str, generator: torch.Generator):
    """Any-order generation, with F read in one of three ways, `(rows, n)`."""
    if reading == 'kept':
        return AnyOrderGenerator(network, rows).generate(rows, generator)
    n, layers = network.num_columns, network.output_layers()
    order = torch.randperm(n, generator=generator).expand(rows, -1)
    placed = torch.empty(rows, n, dtype=torch.int64)
    for place in range(n):
        seen = order[:, :place]
        mixture = network.encode(placed[:, :place], seen)
        if reading == 'evaluation':
            hidden = network.decode_mixture(mixture, order[:, place : place + 1])
        else:
            sample = sample_mixture(mixture, network.config.kappa, generator)
            hidden = network.decode(sample, order[:, : place + 1])
        logits = functional.linear(hidden[:, -1], *layers[int(order[0, place])])
        placed[:, place] = draw_tokens(logits, generator)
    return placed.gather(1, order.argsort(1))


@torch.inference_mode()
def held_out_nats(synthesizer: NVIBSynthesizer, tokens: torch.Tensor, cut: bool) -> float:
    """Reconstruction nats per row, F sampled, or cut to the prior component."""
    network, generator = synthesizer._model.network, torch.Generator().manual_seed(0)
    total = 0.0
    for rows in tokens.split(CHUNK):
        order = torch.rand(rows.shape, generator=generator).argsort(1)
        if cut:
            prior = prior_mixture(rows.numel(), network.config.d_model, network.column_query)
            sample = sample_mixture(prior, network.config.kappa, generator)
            columns = torch.arange(rows.shape[1]).expand(len(rows), -1).reshape(-1, 1)
            hidden = network.decode(sample, columns).view(*rows.shape, -1)
            total += network.token_nll(hidden, rows).sum().item()
        else:
            total += network(rows, order, generator).nll.sum().item()
    return total / len(tokens)


def independent_nats(train: np.ndarray, test: np.ndarray, sizes: list[int]) -> float:
    """Cross-entropy of independent columns with the training frequencies, nats per row."""
    nats = 0.0
    for column, size in enumerate(sizes):
        counts = np.bincount(train[:, column], minlength=size) + 0.5
        nats -= np.log(counts / counts.sum())[test[:, column]].mean()
    return float(nats)


def scores(real: pd.DataFrame, synthetic: pd.DataFrame, metadata: Metadata) -> dict[str, float]:
    return {
        'C2ST': quality.c2st(real, synthetic, metadata),
        'trend error %': quality.trend_error(real, synthetic, metadata),
        'shape error %': quality.shape_error(real, synthetic, metadata),
    }


def processed_tokens(synthesizer: NVIBSynthesizer, table: pd.DataFrame) -> np.ndarray:
    """Token ids of a table; rows with a value that training did not have are left out."""
    processed = synthesizer._data_processor.transform(table)
    known = np.ones(len(processed), bool)
    for column in synthesizer._schema.columns:
        if hasattr(column, 'categories'):
            known &= processed[column.name].isin(column.categories).to_numpy()
    return synthesizer._schema.encode(processed[known])


def decode_raw(synthesizer: NVIBSynthesizer, tokens: torch.Tensor) -> pd.DataFrame:
    processed = synthesizer._schema.decode(tokens.numpy(), np.random.default_rng(0))
    return synthesizer._data_processor.reverse_transform(processed)


def any_order(real, test, metadata, name, seed) -> tuple[list[dict], list[dict]]:
    synthesizer = NVIBSynthesizer(metadata, seed=seed)
    synthesizer.fit({name: real})
    network, generator = synthesizer._model.network, torch.Generator().manual_seed(seed)
    readings = []
    for reading, words in READINGS.items():
        # What keeps its draws takes orders by itself, one for as many rows.
        size, step = len(real), CHUNK if reading == 'kept' else ROWS_PER_ORDER
        sizes = [min(step, size - start) for start in range(0, size, step)]
        tokens = torch.cat([generate(network, rows, reading, generator) for rows in sizes])
        table = decode_raw(synthesizer, tokens)
        readings.append({'generation': words} | scores(real, table, metadata))
    train_tokens = processed_tokens(synthesizer, real)
    test_tokens = processed_tokens(synthesizer, test)
    held_out = torch.from_numpy(test_tokens)
    last = synthesizer.get_loss_values().iloc[-1]
    accuracy = {
        cut: (
            synthesizer._model.reconstruct(test_tokens[:2000], cut=cut) == test_tokens[:2000]
        ).mean()
        for cut in (False, True)
    }
    bottleneck = [
        {'F': 'whole', 'nats per test row': held_out_nats(synthesizer, held_out, cut=False),
         'values predicted right': accuracy[False], 'nats through F': last['Nats'],
         'active components': last['Active Components']},
        {'F': 'cut to the prior component',
         'nats per test row': held_out_nats(synthesizer, held_out, cut=True),
         'values predicted right': accuracy[True], 'nats through F': 0.0,
         'active components': 0.0},
        {'F': '(independent columns)',
         'nats per test row': independent_nats(train_tokens, test_tokens, network.sizes)},
    ]  # fmt: skip
    return readings, bottleneck


def single_pass(real, metadata, name, seed) -> list[dict]:
    results = []
    for source in ('prior', 'posteriors'):
        synthesizer = NVIBSynthesizer(
            metadata, seed=seed, generation='single-pass', latent_source=source
        )
        synthesizer.fit({name: real})
        synthetic = synthesizer.sample(num_rows=len(real))[name]
        losses = synthesizer.get_loss_values().iloc[-1]
        results.append(
            {'generation': f'single-pass, F from the {source}'}
            | scores(real, synthetic, metadata)
            | {'reconstruction nats': losses['Validation Reconstruction'], 'nats': losses['Nats']}
        )
    return results


def markdown(rows: list[dict], by: str) -> str:
    """Mean over seeds, and spread where there are several."""
    frame = pd.DataFrame(rows)
    order = frame[by].drop_duplicates()
    grouped = frame.groupby(by)
    mean, spread = grouped.mean().loc[order], grouped.std().loc[order]
    cells = mean.copy().astype(object)
    for column in mean:
        for row in mean.index:
            value, width = mean.loc[row, column], spread.loc[row, column]
            text = '' if pd.isna(value) else f'{value:.3f}'
            cells.loc[row, column] = text + ('' if pd.isna(width) else f' ± {width:.3f}')
    lines = [
        f'| {by} | ' + ' | '.join(cells.columns) + ' |',
        '|' + '---|' * (len(cells.columns) + 1),
    ]
    lines += [f'| {row} | ' + ' | '.join(cells.loc[row]) + ' |' for row in cells.index]
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--dataset', default='adult')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--rows', type=int, help='train on so many rows only')
    parser.add_argument('--skip-single-pass', action='store_true')
    parser.add_argument('--output', type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.data / arguments.dataset
    real, test = (pd.read_csv(next(folder.glob(f'{part}.csv*'))) for part in ('train', 'test'))
    real = real.head(arguments.rows) if arguments.rows else real
    metadata = Metadata.load_from_dict(json.loads((folder / 'metadata.json').read_text()))
    name = next(iter(metadata.tables))
    readings, bottleneck, single = [], [], []
    for seed in arguments.seeds:
        more_readings, more_bottleneck = any_order(real, test, metadata, name, seed)
        readings += more_readings
        bottleneck += more_bottleneck
        if not arguments.skip_single_pass:
            single += single_pass(real, metadata, name, seed)
    versions = ', '.join(f'{p} {version(p)}' for p in ('sdv-nvib', 'sdv', 'torch'))
    parts = [
        f'{arguments.dataset}, {len(real):,} training rows, seeds {arguments.seeds}, {versions}, '
        f'{platform.machine()}, {date.today()}.',
        '## Ways to read F in any-order generation', markdown(readings, 'generation'),
        '## Is the bottleneck in use?', markdown(bottleneck, 'F'),
    ]  # fmt: skip
    if single:
        parts += ['## Single-pass generation', markdown(single, 'generation')]
    arguments.output.write_text('\n\n'.join(parts) + '\n')
    print(arguments.output.read_text())


if __name__ == '__main__':
    main()
