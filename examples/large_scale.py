"""Throughput, cost and memory of `sample_to_parquet` with one and more workers, as Markdown."""

import argparse
import os
import resource
import shutil
import time
from pathlib import Path

import pandas as pd
from sdv.utils import load_synthesizer


def steady_rate(paths: list[Path], workers: int, rows_per_part: int) -> float:
    """Rows per second between the first finished parts and the last, without the start."""
    times = sorted(path.stat().st_mtime for path in paths)
    return (len(times) - workers) * rows_per_part / (times[-1] - times[workers - 1])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', type=Path, required=True, help='A file that `save` wrote.')
    parser.add_argument('--output', type=Path, required=True, help='Folder for the rows.')
    parser.add_argument('--parts', type=int, default=8, help='Parts per worker.')
    parser.add_argument('--rows-per-part', type=int, default=20_000)
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    options = parser.parse_args()
    synthesizer = load_synthesizer(options.model)
    lines = []
    for workers in options.workers:
        folder = options.output / f'workers{workers}'
        shutil.rmtree(folder, ignore_errors=True)
        num_rows = options.parts * workers * options.rows_per_part
        cpu, started = os.times(), time.perf_counter()
        paths = synthesizer.sample_to_parquet(
            folder, num_rows, options.rows_per_part, workers=workers
        )
        seconds, done = time.perf_counter() - started, os.times()
        used = sum(done[:4]) - sum(cpu[:4])
        who = resource.RUSAGE_SELF if workers == 1 else resource.RUSAGE_CHILDREN
        lines.append(
            {
                'workers': workers,
                'rows': num_rows,
                'seconds': round(seconds, 1),
                'rows per second, steady': round(
                    steady_rate(paths, workers, options.rows_per_part)
                ),
                'CPU seconds per part': round(used / len(paths), 2),
                'MB per worker': round(resource.getrusage(who).ru_maxrss / 1024),
                'bytes per row': round(sum(p.stat().st_size for p in paths) / num_rows, 1),
            }
        )
    table = pd.DataFrame(lines)
    print('|', ' | '.join(table.columns), '|')
    print('|', ' | '.join('---' for _ in table.columns), '|')
    for line in table.astype(str).to_numpy():
        print('|', ' | '.join(line), '|')
