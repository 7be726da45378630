"""How fitting and sampling grow with rows, columns and categories.

    python examples/growth.py --data DATA/adult --output results/

Rows: drawn from the table in DATA with replacement, each number moved by a little noise so that
copies of a row are no copies; default arguments. Columns and categories: tables made here, and one
epoch, since there the cost of a step is the question. Every measurement is a process of its own.
OUTPUT gets growth.csv, growth.md and growth.png; what growth.csv has is not measured again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CASES = (
    *(('rows', size) for size in (10_000, 100_000, 1_000_000)),
    *(('columns', size) for size in (10, 50, 150)),
    *(('categories', size) for size in (200, 2_000, 20_000)),
)
MADE_ROWS = {'columns': 10_000, 'categories': 40_000}


def more_rows(folder, size):
    """Return so many rows like those of a table, and their metadata."""
    import numpy as np
    import pandas as pd
    from sdv.metadata import Metadata

    metadata = Metadata.load_from_json(str(folder / 'metadata.json'))
    path = next(folder.glob('train.csv*'))
    rng = np.random.default_rng(0)
    table = pd.read_csv(path).sample(size, replace=True, random_state=0, ignore_index=True)
    columns = next(iter(metadata.tables.values())).columns
    for name, column in columns.items():
        if column['sdtype'] == 'numerical':
            noise = rng.normal(0, 0.01 * table[name].std(), size)
            moved = (table[name] + noise).clip(table[name].min(), table[name].max())
            table[name] = moved.round().astype(table[name].dtype)
    return table, metadata


def made_table(kind, size):
    """Return a table of related columns, half of them numbers, and its metadata."""
    import numpy as np
    import pandas as pd
    from sdv.metadata import Metadata

    rng, num_rows = np.random.default_rng(0), MADE_ROWS[kind]
    hidden, columns = rng.normal(size=num_rows), {}
    for c in range(size if kind == 'columns' else 10):
        values = hidden + rng.normal(size=num_rows)
        classes = np.digitize(values, [-2, -1, 0, 1, 2])
        columns[f'column {c}'] = values if c % 2 else np.array(list('abcdef'))[classes]
    if kind == 'categories':
        columns['many'] = [f'v{n}' for n in rng.permutation(num_rows) % size]
    table = pd.DataFrame(columns)
    sdtypes = {
        name: {'sdtype': 'numerical' if values.dtype == float else 'categorical'}
        for name, values in table.items()
    }
    return table, Metadata.load_from_dict({'tables': {'made': {'columns': sdtypes}}})


def measure(job):
    """Fit and sample one table; print the result as JSON."""
    import resource
    import warnings

    import torch
    from sdv.single_table import NVIBSynthesizer

    warnings.simplefilter('ignore')
    torch.set_num_threads(job['threads'])
    kind, size = job['kind'], job['size']
    is_whole = kind == 'rows'
    table, metadata = more_rows(Path(job['data']), size) if is_whole else made_table(kind, size)
    model = NVIBSynthesizer(metadata, epochs=None if is_whole else 1)
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit({next(iter(metadata.tables)): table})
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    history = model.get_loss_values()
    started = time.process_time()
    model.sample(num_rows=10_000)
    sample = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        'Kind': kind,
        'Size': size,
        'Rows': len(table),
        'Epochs': len(history),
        'Fit_Time': wall,
        'Fit_CPU_Time': cpu,
        'Rows_Per_CPU_Second': 10_000 / sample,
        'Peak_Memory_MB': peak / (2**20 if sys.platform == 'darwin' else 2**10),
    }
    print(json.dumps(result, default=float))


def draw(frame, path):
    """Draw the CPU seconds of a fit and peak memory against rows, columns and categories."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.4), layout='constrained')
    panels = figure.subplots(2, 3, sharey='row')
    for column, (kind, runs) in enumerate(frame.groupby('Kind', sort=False)):
        for axis, measured in zip(
            panels[:, column], ('Fit_CPU_Time', 'Peak_Memory_MB'), strict=True
        ):
            axis.plot(runs['Size'], runs[measured], marker='o', color='#0072B2')
            axis.set(xscale='log', xlabel=kind)
            axis.set_xticks(runs['Size'], [f'{size:,}' for size in runs['Size']])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    panels[0, 0].set(yscale='log', ylabel='fit, CPU seconds')
    panels[0, 0].yaxis.set_major_formatter('{x:,g}')
    panels[1, 0].set(ylim=(0, None), ylabel='peak memory, MB')
    figure.savefig(path, dpi=130)


def main():
    """Measure what is missing and report on everything."""
    import pandas as pd

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, help='folder with train.csv[.gz] and metadata.json')
    parser.add_argument('--output', type=Path, default=Path('results'))
    parser.add_argument('--cores', default='0,1', help='cores of every run; one thread each')
    parser.add_argument('--job', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        return measure(json.loads(arguments.job))
    if not arguments.data or not (arguments.data / 'metadata.json').exists():
        parser.error(f'--data must have train.csv[.gz] and metadata.json, got {arguments.data}')
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / 'growth.csv'
    frame = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=['Kind', 'Size'])
    cores = {int(core) for core in arguments.cores.split(',')}
    for kind, size in CASES:
        if ((frame['Kind'] == kind) & (frame['Size'] == size)).any():
            continue
        job = {'kind': kind, 'size': size, 'data': str(arguments.data), 'threads': len(cores)}
        done = subprocess.run(
            [sys.executable, __file__, '--job', json.dumps(job)],
            env=os.environ | {'OMP_NUM_THREADS': str(len(cores))},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        result = json.loads(done.stdout.splitlines()[-1])
        frame = pd.DataFrame([*frame.to_dict('records'), result])
        frame.to_csv(path, index=False)
        print(result, flush=True)
    lines = [list(frame.columns), ['---'] * len(frame.columns)]
    lines += [
        [value if isinstance(value, str) else f'{value:,.0f}' for value in row]
        for row in frame.itertuples(index=False)
    ]
    table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    (arguments.output / 'growth.md').write_text(f'{table}\n')
    draw(frame, arguments.output / 'growth.png')
    print(table)


if __name__ == '__main__':
    main()
