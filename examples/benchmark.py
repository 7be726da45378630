"""Benchmark of single-table synthesizers: any SDV tables, any SDV synthesizers, several seeds.

    python examples/benchmark.py --data DATA --datasets adult magic --seeds 0 1 2 \\
        --synthesizers NVIBSynthesizer TVAESynthesizer CTGANSynthesizer TabularARGN RealTest \\
        --output results/

DATA holds one folder per dataset: train.csv[.gz], metadata.json (SDV, one table) and, optionally,
test.csv[.gz] (real rows kept from training) and info.json (`{"target": "..."}`). A synthesizer is
the name of a class in `sdv.single_table`, or

- TabularARGN: MOSTLY AI's, with its defaults. Its full installation replaces much of torch; the
  tabular part needs only
      pip install --no-deps mostlyai-engine==2.7.3
      pip install opacus "psutil<6" pyarrow datasets transformers pydantic
- IndependentColumns: every column drawn on its own from the training rows; what its scores are
  above or below the ideal tells of the split, not of a model.
- RealTest: no synthesizer but the real test rows themselves, the noise floor.

Every run is a process of its own on the same cores with as many threads: fit (wall and CPU
seconds), sample as many rows as there are training rows (rows per second), peak memory of both in
MB, then the scores of `sdv_nvib.quality`, the same code for all; where training rows are fewer
than 2,000, utility (its mean) and DCR share are of several such samples, 2,000 rows in all. Each
run leaves one JSON file in OUTPUT/runs; runs that have one are not repeated (--retry repeats the
failed ones), so the same command goes on where it stopped. OUTPUT gets results.csv (every run),
results.md (mean and spread over seeds), quality_time.png and errors_DATASET.png, a heat map of
every column's and every pair's error. Column names are SDGym's where it has one.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise, product
from pathlib import Path

KEYS = ('Synthesizer', 'Dataset', 'Seed', 'Resplit', 'Synthesizer_Kwargs')
THREAD_VARIABLES = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')
NAMES = {'SDMetrics quality': 'Quality_Score', 'SDMetrics diagnostic': 'Diagnostic_Score'}
# fmt: off
SHOWN = {  # columns of the Markdown table: decimals
    'Train_Time': 0, 'Train_CPU_Time': 0, 'Rows_Per_Second': 0, 'Peak_Memory_MB': 0,
    'Quality_Score': 3, 'Shape_Error_%': 2, 'Trend_Error_%': 2, 'C2ST': 3, 'Coverage': 3,
    'Utility': 3, 'DCR_Share': 3, 'Exact_Copies': 4,
}
# fmt: on
SCORED_ROWS = 2000  # fewer leave utility and DCR share to chance
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#D55E00', '#56B4E9', '#000000')
MARKERS = 'osD^vPX*'


class _SDVModel:
    """A class of `sdv.single_table`, under the three verbs of this benchmark."""

    def __init__(self, name, metadata, seed, kwargs):
        import numpy as np
        import sdv.single_table
        import torch

        if not hasattr(sdv.single_table, name):
            raise ValueError(f'sdv.single_table has no {name}; is its package installed?')
        # SDV's own synthesizers draw from the global generators; ours has a seed of its own.
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        if name == 'NVIBSynthesizer':
            kwargs = {'seed': seed} | kwargs
        self.model = getattr(sdv.single_table, name)(metadata, **kwargs)
        self.table = next(iter(metadata.tables))

    def fit(self, rows):
        self.model.fit({self.table: rows})

    def sample(self, size):
        return self.model.sample(num_rows=size)[self.table]

    def size(self, folder):
        path = folder / 'model.bin'
        self.model.save(str(path))
        return path.stat().st_size


class _TabularARGN:
    """MOSTLY AI's autoregressive network, with its defaults."""

    def __init__(self, metadata, seed, kwargs):
        try:
            from mostlyai.engine import TabularARGN
        except ImportError as error:
            message = f'TabularARGN cannot be imported ({error}); --help says how to install it.'
            raise ImportError(message) from error
        key = next(iter(metadata.tables.values())).primary_key
        self.model = TabularARGN(random_state=seed, tgt_primary_key=key, **kwargs)

    def fit(self, rows):
        self.model.fit(rows)

    def sample(self, size):
        return self.model.sample(n_samples=size)

    def size(self, folder):
        files = Path(self.model._get_workspace_dir()).rglob('*model*')
        return sum(path.stat().st_size for path in files if path.is_file())


class _IndependentColumns:
    """Every column drawn on its own from the training rows."""

    def __init__(self, seed):
        import numpy as np

        self.rng, self.size = np.random.default_rng(seed), lambda folder: 0

    def fit(self, rows):
        self.rows = rows

    def sample(self, size):
        import pandas as pd

        drawn = [
            column.sample(size, replace=True, random_state=self.rng).reset_index(drop=True)
            for _, column in self.rows.items()
        ]
        return pd.concat(drawn, axis=1)


class _RealTest:
    """The real test rows in place of synthetic ones."""

    def __init__(self, test):
        if test is None:
            raise ValueError('RealTest needs test.csv or test.csv.gz in the dataset folder.')
        self.fit, self.sample, self.size = lambda rows: None, lambda size: test, lambda folder: 0


def read_split(folder, name):
    """Return a split of a dataset as a frame, or None if the folder has none."""
    import pandas as pd

    found = [folder / f'{name}{end}' for end in ('.csv.gz', '.csv')]
    return next((pd.read_csv(path) for path in found if path.exists()), None)


def peak_memory():
    """Return the largest resident size of this process (or of a child) so far in MB."""
    import resource

    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(which).ru_maxrss for which in who)
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def timed(action, *arguments):
    """Return the result of a call with its wall and CPU seconds (children included)."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    result = action(*arguments)
    return result, time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def column_name(measure):
    """Return the result's column of a measure: 'trend error %' is 'Trend_Error_%'."""
    words = measure.removeprefix('SDMetrics ').split()
    return NAMES.get(measure, '_'.join(word[0].upper() + word[1:] for word in words))


def make_model(job, metadata, test):
    """Return the synthesizer that a job names."""
    name, seed, kwargs = job['Synthesizer'], job['Seed'], job['Synthesizer_Kwargs']
    if name == 'RealTest':
        return _RealTest(test)
    if name == 'IndependentColumns':
        return _IndependentColumns(seed)
    if name == 'TabularARGN':
        return _TabularARGN(metadata, seed, kwargs)
    return _SDVModel(name, metadata, seed, kwargs)


def measure(job, result, scratch):
    """Fit, sample and score one job; fill in `result` as far as it gets."""
    import pandas as pd
    from sdv.metadata import Metadata
    from sklearn.model_selection import KFold

    from sdv_nvib.quality import (
        dcr_share,
        evaluate_quality,
        pair_errors,
        shape_errors,
        utility,
    )

    folder = Path(job['Folder'])
    metadata = Metadata.load_from_json(str(folder / 'metadata.json'))
    train, test = read_split(folder, 'train'), read_split(folder, 'test')
    info = folder / 'info.json'
    target = json.loads(info.read_text()).get('target') if info.exists() else None
    if job['Resplit'] and test is not None:  # a fold of its own for every seed, the same for all
        rows = pd.concat([train, test], ignore_index=True)
        num_folds = max(2, round(len(rows) / len(test)))
        repeat, fold = divmod(job['Seed'], num_folds)
        folds = list(KFold(num_folds, shuffle=True, random_state=repeat).split(rows))
        train, test = (rows.iloc[part].reset_index(drop=True) for part in folds[fold])
    unseen = train.iloc[:0]
    if job['Rows']:  # another subset for every seed, the same for every synthesizer
        size = min(job['Rows'], len(train))
        chosen = train.sample(size, random_state=job['Seed'])
        train, unseen = chosen.reset_index(drop=True), train.drop(chosen.index)
    result.update(Rows=len(train), Columns=train.shape[1])
    result['Dataset_Size_MB'] = train.memory_usage(deep=True).sum() / 1e6
    model = make_model(job, metadata, test)
    result['Base_Memory_MB'] = peak_memory()
    _, result['Train_Time'], result['Train_CPU_Time'] = timed(model.fit, train)
    synthetic, result['Sample_Time'], result['Sample_CPU_Time'] = timed(model.sample, len(train))
    result['Rows_Per_Second'] = len(synthetic) / max(result['Sample_Time'], 1e-9)
    result['Peak_Memory_MB'] = peak_memory()
    result['Synthesizer_Size_MB'] = model.size(scratch) / 1e6
    evaluation, result['Evaluate_Time'], _ = timed(
        lambda: evaluate_quality(train, synthetic, metadata, test=test, target=target)
    )
    scores = {column_name(measure): value for measure, value in evaluation.to_dict().items()}
    result.update(scores)
    if test is not None and len(train) < SCORED_ROWS and job['Synthesizer'] != 'RealTest':
        samples = [synthetic]
        samples += [model.sample(len(train)) for _ in range(1, math.ceil(SCORED_ROWS / len(train)))]
        result['DCR_Share'] = dcr_share(train, test, pd.concat(samples), metadata)
        if target is not None:
            more = [utility(sample, test, metadata, target) for sample in samples[1:]]
            result['Utility'] = (result['Utility'] + sum(more)) / len(samples)
    errors = pair_errors(train, synthetic, metadata).to_numpy(copy=True)
    columns = shape_errors(train, synthetic, metadata)
    errors[range(len(errors)), range(len(errors))] = columns
    result['errors'] = {'columns': list(columns.index), 'matrix': errors.tolist()}
    if job['Synthesizer'] == 'RealTest':  # no model; its rows are the very rows it is scored on
        no_sense = ('Train_Time', 'Train_CPU_Time', 'Rows_Per_Second', 'Utility', 'DCR_Share')
        result.update(dict.fromkeys((*no_sense, 'DCR_Overfitting_Protection'), float('nan')))
        if len(unseen):  # rows of neither table: what the luck of the subset makes of their share
            result['DCR_Share'] = dcr_share(train, test, unseen, metadata)


def run_child(job):
    """Do one job and write its JSON, with the error if it failed."""
    import tempfile
    import warnings

    import torch

    warnings.simplefilter('ignore')
    threads = len(job['Cores'].split(','))
    torch.set_num_threads(threads)
    result = {key: job[key] for key in KEYS}
    result.update(Cores=job['Cores'], Threads=threads, Date=now(), error=None)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            measure(job, result, Path(scratch))
    except Exception as error:
        result['error'] = f'{type(error).__name__}: {error}'
        result['traceback'] = traceback.format_exc()
    write_json(job['Output'], result)


def now():
    """Return the time as text."""
    return datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')


def write_json(path, result):
    """Write a result in one step: an interrupted run leaves no half file."""
    part = Path(path).with_suffix('.part')
    part.write_text(json.dumps(result, indent=1, default=float))
    part.replace(path)


def start(job, timeout):
    """Run a job in a process of its own on its cores, and make sure it leaves a result."""
    threads = str(len(job['Cores'].split(',')))
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, threads)
    root = str(Path(__file__).resolve().parents[1])  # works from a checkout, too
    environment['PYTHONPATH'] = os.pathsep.join([root, environment.get('PYTHONPATH', '')])
    cores = {int(core) for core in job['Cores'].split(',')}
    pin = (lambda: os.sched_setaffinity(0, cores)) if hasattr(os, 'sched_setaffinity') else None
    command = [sys.executable, str(Path(__file__).resolve()), '--job', json.dumps(job)]
    failure = None
    with open(Path(job['Output']).with_suffix('.log'), 'w') as log:
        try:
            done = subprocess.run(
                command, env=environment, preexec_fn=pin, timeout=timeout, stdout=log, stderr=log
            )
            failure = f'the process ended with code {done.returncode}' if done.returncode else None
        except subprocess.TimeoutExpired:
            failure = f'stopped after {timeout} s'
    if not Path(job['Output']).exists():  # killed, for instance for want of memory
        note = {key: job[key] for key in (*KEYS, 'Cores')}
        write_json(job['Output'], note | {'error': failure or 'no result was written'})
    return json.loads(Path(job['Output']).read_text())


def list_jobs(arguments):
    """Return the jobs of the command line, seeds outermost: every method soon has a first run."""
    kwargs = json.loads(arguments.synthesizer_kwargs)
    rows = f'-{arguments.rows}' if arguments.rows else ''
    split = '-resplit' if arguments.resplit else ''
    jobs = []
    for seed, dataset, name in product(arguments.seeds, arguments.datasets, arguments.synthesizers):
        output = arguments.output / 'runs' / f'{dataset}{rows}-{name}-{seed}{split}.json'
        job = {'Synthesizer': name, 'Dataset': f'{dataset}{rows}', 'Seed': seed}
        job |= {'Synthesizer_Kwargs': kwargs.get(name, {}), 'Cores': arguments.cores}
        job |= {'Rows': arguments.rows, 'Resplit': arguments.resplit}
        job |= {'Folder': str((arguments.data / dataset).resolve())}
        jobs.append(job | {'Output': str(output.resolve())})
    return jobs


def outdated(job, retry):
    """Whether a job has to be run: no result yet, other settings, or failed and to be retried."""
    path = Path(job['Output'])
    if not path.exists():
        return True
    result = json.loads(path.read_text())
    changed = any(result.get(key) != job[key] for key in ('Synthesizer_Kwargs', 'Cores'))
    return changed or (retry and bool(result['error']))


def processor():
    """Return the processor's name."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    return next(names, platform.processor() or platform.machine())


def header(arguments):
    """Return what a reader needs to repeat the table."""
    versions = [f'Python {platform.python_version()}']
    for package in ('sdv-nvib', 'torch', 'sdv', 'sdmetrics', 'scikit-learn', 'mostlyai-engine'):
        try:
            versions.append(f'{package} {version(package)}')
        except PackageNotFoundError:
            continue
    hidden = {'--data': 'DATA', '--output': 'OUTPUT'}  # the reader has folders of their own
    words = [hidden.get(before, word) for before, word in pairwise(sys.argv)]
    return (
        f'Command: `python examples/benchmark.py {" ".join(words)}`  \n'
        f'Versions: {", ".join(versions)}  \n'
        f'Processor: {processor()}, cores {arguments.cores}, '
        f'{len(arguments.cores.split(","))} threads; {now()}\n'
    )


def spread(values, decimals):
    """Return the mean, with the standard deviation if there are several values."""
    values = values.dropna()
    if values.empty:
        return '–'
    text = f'{values.mean():,.{decimals}f}'
    return text if len(values) == 1 else f'{text} ± {values.std():,.{decimals}f}'


def markdown(frame, arguments):
    """Return the table of means and spreads, a row per dataset and synthesizer."""
    lines = ['# Benchmark', '', header(arguments)]
    lines += ['Mean ± standard deviation over seeds. Times in seconds, memory in MB.', '']
    lines += ['| ' + ' | '.join(['Dataset', 'Synthesizer', 'Runs', *SHOWN]) + ' |']
    lines += ['|' + '---|' * (3 + len(SHOWN))]
    for (dataset, name), group in frame.groupby(['Dataset', 'Synthesizer'], sort=False):
        good = group[group['error'].isna()]
        cells = [dataset, name, f'{len(good)}/{len(group)}']
        for column, decimals in SHOWN.items():
            text = spread(good.get(column, good['error']), decimals)
            if column == 'Utility' and len(good):
                text += f' ({spread(good["Utility_Of_Real_Rows"], decimals)})'
            cells.append(text)
        lines.append('| ' + ' | '.join(cells) + ' |')
    floor = frame.get('Trend_Error_Floor_%')
    if floor is not None:
        floors = floor.groupby(frame['Dataset'], sort=False).mean().dropna()
        text = ', '.join(f'{name} {value:.2f} %' for name, value in floors.items())
        lines += ['', f'Trend error of a second real sample (two halves over √2): {text}.']
    lines += ['Utility: AUC or RMSE on test rows; in brackets after training on real rows.']
    for (dataset, name, error), runs in frame.groupby(['Dataset', 'Synthesizer', 'error']):
        lines += [f'Failed: {name} on {dataset}, seeds {list(runs["Seed"])}: {error}']
    return '\n'.join(lines) + '\n'


def draw(frame, path):
    """Draw quality against fit time: one panel per dataset, one point per synthesizer."""
    from matplotlib.figure import Figure

    good = frame[frame['error'].isna()]
    if good.empty:
        return
    datasets, names = list(good['Dataset'].unique()), list(good['Synthesizer'].unique())
    figure = Figure(figsize=(3.6 * len(datasets) + 1.8, 3.6), layout='constrained')
    axes = figure.subplots(1, len(datasets), squeeze=False, sharey=True)[0]
    for axis, dataset in zip(axes, datasets, strict=True):
        for k, name in enumerate(names):
            runs = good[(good['Dataset'] == dataset) & (good['Synthesizer'] == name)]
            style = {'color': COLOURS[k % 7], 'label': name}
            if name == 'RealTest':
                axis.axhline(runs['C2ST'].mean(), linestyle=':', **style)
            elif len(runs):
                x, y = runs['Train_Time'], runs['C2ST']
                errors = {'xerr': x.std(), 'yerr': y.std()} if len(runs) > 1 else {}
                axis.errorbar(x.mean(), y.mean(), fmt=MARKERS[k % 8], **errors, **style)
        axis.set(title=dataset, xscale='log', xlabel='fit, wall seconds', ylim=(-0.05, 1.05))
        axis.set_xlim(1, 2 * max(10, good['Train_Time'].max()))
        axis.xaxis.set_major_formatter('{x:g}')
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('C2ST (1: not told from real)')
    known = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc='outside right upper', fontsize=8)
    figure.savefig(path, dpi=130)


def draw_errors(runs, path):
    """Draw one dataset's errors: columns on the diagonal, pairs beside it, means over seeds."""
    import numpy as np
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(run['Synthesizer'] for run in runs))
    labels = runs[0]['errors']['columns']
    matrices = [
        100 * np.mean([r['errors']['matrix'] for r in runs if r['Synthesizer'] == name], axis=0)
        for name in names
    ]
    size = 2.2 + 0.16 * len(labels)
    figure = Figure(figsize=(size * len(names) + 1, size), layout='constrained')
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    top = max(5, np.percentile(matrices, 98))
    for axis, name, matrix in zip(axes, names, matrices, strict=True):
        image = axis.imshow(matrix, vmin=0, vmax=top, cmap='cividis_r')
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.set_title(name, fontsize=9)
    figure.colorbar(image, ax=list(axes), label='error, % (diagonal: shape; other: trend)')
    figure.savefig(path, dpi=130)


def report(arguments):
    """Write the CSV, the Markdown table and the plots of all runs in the output folder."""
    import pandas as pd

    paths = sorted((arguments.output / 'runs').glob('*.json'))
    runs = [json.loads(path.read_text()) for path in paths]
    frame = pd.DataFrame(runs).drop(columns=['traceback', 'errors'], errors='ignore')
    last = frame['Synthesizer'].eq('RealTest')
    frame = frame.assign(last=last).sort_values(['Dataset', 'last', 'Synthesizer', 'Seed'])
    frame = frame.drop(columns='last')
    frame.to_csv(arguments.output / 'results.csv', index=False)
    text = markdown(frame, arguments)
    (arguments.output / 'results.md').write_text(text, encoding='utf-8')
    draw(frame, arguments.output / 'quality_time.png')
    for dataset in dict.fromkeys(run['Dataset'] for run in runs):
        scored = [run for run in runs if run['Dataset'] == dataset and 'errors' in run]
        if scored:
            draw_errors(scored, arguments.output / f'errors_{dataset}.png')
    return text


def main():
    """Run what is missing and report on everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, help='folder with one folder per dataset')
    parser.add_argument('--datasets', nargs='+', help='default: every folder with metadata.json')
    parser.add_argument('--synthesizers', nargs='+', default=['NVIBSynthesizer'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--output', type=Path, default=Path('results'))
    parser.add_argument('--cores', default='0,1', help='cores of every run; one thread each')
    parser.add_argument('--rows', type=int, help='train on a random subset of this size')
    parser.add_argument(
        '--resplit',
        action='store_true',
        help='divide train and test rows anew: every seed is one fold of a repeated '
        'cross-validation (with a third of the rows for the test, seeds 0 to 2 the first one)',
    )
    parser.add_argument('--timeout', type=float, help='seconds after which a run is given up')
    parser.add_argument('--retry', action='store_true', help='repeat runs that failed')
    parser.add_argument(
        '--synthesizer-kwargs',
        default='{}',
        help='JSON of constructor arguments: {"NVIBSynthesizer": {"epochs": 5}}',
    )
    parser.add_argument('--job', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        return run_child(json.loads(arguments.job))
    if not arguments.data or not arguments.data.is_dir():
        parser.error(f'--data must be a folder with datasets, received {arguments.data}')
    found = sorted(path.parent.name for path in arguments.data.glob('*/metadata.json'))
    arguments.datasets = arguments.datasets or found
    unknown = set(arguments.datasets) - set(found)
    if unknown:
        parser.error(f'{arguments.data} has no {sorted(unknown)}; it has {found}')
    (arguments.output / 'runs').mkdir(parents=True, exist_ok=True)
    jobs = list_jobs(arguments)
    for number, job in enumerate(jobs, 1):
        name = f'[{number}/{len(jobs)}] {job["Dataset"]} {job["Synthesizer"]} seed {job["Seed"]}'
        if not outdated(job, arguments.retry):
            print(f'{name}: already there', flush=True)
            continue
        Path(job['Output']).unlink(missing_ok=True)
        print(f'{name} ...', flush=True)
        result = start(job, arguments.timeout)
        scores = ('Train_Time', 'Quality_Score', 'Trend_Error_%', 'C2ST')
        done = ', '.join(f'{score} {result.get(score, 0):.4g}' for score in scores)
        print(f'{name}: {"failed: " + result["error"] if result["error"] else done}', flush=True)
        report(arguments)
    print(report(arguments))


if __name__ == '__main__':
    main()
