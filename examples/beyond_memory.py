"""Files larger than memory: fitted under a hard limit, and as well as a table in memory.

    python examples/beyond_memory.py large --output OUTPUT
    python examples/beyond_memory.py same --data DATA/adult --output OUTPUT

`large` draws 20,000,000 rows from a model of eight columns of the demo table, and fits them in a
process that may not have more than 3 GB of address space (Linux). Rows that are there are kept, so
the command goes on where it stopped. `same` fits a dataset of `examples/benchmark.py` from 40
Parquet files and from memory, with the defaults, and scores both.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sdv.metadata import Metadata

from sdv_nvib import NVIBSynthesizer
from sdv_nvib.demo import TABLE, load_demo

COLUMNS = [
    'gender',
    'degree_type',
    'degree_perc',
    'experience_years',
    'mba_perc',
    'salary',
    'placed',
    'start_date',
]
SMALL = {
    'd_model': 16,
    'nhead': 2,
    'num_decoder_layers': 1,
    'dim_feedforward': 32,
    'enable_gpu': False,
}
LARGE = {'epochs': 1, 'batch_size': 4096, 'verbose': True}


def demo():
    """Eight columns of the demo table and their metadata."""
    table, metadata = load_demo()
    columns = metadata.tables[TABLE].columns
    described = {'columns': {name: columns[name] for name in COLUMNS}}
    return table[COLUMNS], Metadata.load_from_dict({'tables': {TABLE: described}})


def cpu_seconds():
    return sum(os.times()[:4])


def peak_megabytes():
    """Most resident memory so far; `getrusage` would count the process that started this one."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith('VmHWM:'))


def fit_large(folder):
    """Fit the files, in a process under a limit, and print what it took."""
    base = peak_megabytes()
    started = cpu_seconds()
    synthesizer = NVIBSynthesizer(demo()[1], **SMALL, **LARGE)
    synthesizer.fit_dataset(folder)
    made = synthesizer.sample(1_000)[TABLE]
    found = {
        'CPU seconds': round(cpu_seconds() - started),
        'peak resident MB': peak_megabytes(),
        'of which imports': base,
        'held-out nats': float(synthesizer.get_loss_values()['Validation Reconstruction'].min()),
        'sampled': len(made),
    }
    print(json.dumps(found))


def large(options):
    table, metadata = demo()
    folder = options.output / 'rows'
    model = NVIBSynthesizer(metadata, epochs=50, **SMALL)
    model.fit({TABLE: table})
    started = cpu_seconds()
    paths = model.sample_to_parquet(folder, options.rows, 500_000, workers=os.cpu_count() or 1)
    size = sum(path.stat().st_size for path in paths) / 2**20
    used = cpu_seconds() - started
    print(f'{options.rows:,} rows in {len(paths)} files, {size:,.0f} MB, {used:.0f} CPU seconds')
    limit = int(options.limit * 2**30)
    subprocess.run(
        [sys.executable, __file__, 'fit', '--output', folder],
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )


def same(options):
    from sdv_nvib.quality import evaluate_quality

    metadata = Metadata.load_from_json(options.data / 'metadata.json')
    name = next(iter(metadata.tables))
    train, test = (pd.read_csv(options.data / f'{split}.csv.gz') for split in ('train', 'test'))
    folder = options.output / 'files'
    folder.mkdir(parents=True)
    for k, rows in enumerate(np.array_split(np.arange(len(train)), 40)):
        train.iloc[rows].to_parquet(folder / f'part-{k:02d}.parquet', index=False)
    for source in ('files', 'memory'):
        synthesizer = NVIBSynthesizer(metadata)
        started = cpu_seconds()
        if source == 'files':
            synthesizer.fit_dataset(folder)
        else:
            synthesizer.fit({name: train})
        used = cpu_seconds() - started
        made = synthesizer.sample(len(train))
        scores = evaluate_quality(train, made, metadata, test=test).to_dict()
        line = {
            'from': source,
            'C2ST': round(scores['C2ST'], 3),
            'trend error %': round(scores['trend error %'], 2),
            'held-out nats': float(
                synthesizer.get_loss_values()['Validation Reconstruction'].min()
            ),
            'CPU seconds': round(used),
        }
        print(json.dumps(line), flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['large', 'same', 'fit'])
    parser.add_argument('--output', type=Path, required=True, help='A new folder.')
    parser.add_argument('--data', type=Path, help='Folder of a dataset, for `same`.')
    parser.add_argument('--rows', type=int, default=20_000_000)
    parser.add_argument('--limit', type=float, default=3, help='GB of address space.')
    chosen = parser.parse_args()
    if chosen.what == 'fit':
        fit_large(chosen.output)
    elif chosen.what == 'large':
        large(chosen)
    else:
        same(chosen)
