"""Throughput, cost and memory of `sample_to_parquet` with one and more workers, as Markdown.

Memory is read from /proc, and so on Linux alone.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from sdv.utils import load_synthesizer


def steady_rate(paths: list[Path], workers: int, rows_per_part: int) -> float:
    """Rows per second between the first finished parts and the last, without the start."""
    times = sorted(path.stat().st_mtime for path in paths)
    return (len(times) - workers) * rows_per_part / (times[-1] - times[workers - 1])


def peak_megabytes(pid: int | str) -> float:
    """Most resident memory of a running process so far; none if it has just ended."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in status.splitlines())
    return next((int(line[1]) / 1024 for line in lines if line[0] == 'VmHWM:'), 0.0)


def watch_workers(peaks: dict[int, float], is_over: threading.Event) -> None:
    """Note the most memory of every worker process until all is over."""
    while not is_over.wait(0.2):
        for child in multiprocessing.active_children():
            if child.pid is not None:
                peaks[child.pid] = max(peaks.get(child.pid, 0.0), peak_megabytes(child.pid))


def checksums(folder: Path) -> dict[int, str]:
    """The SHA-256 of every part."""
    manifest = json.loads((folder / '_manifest.json').read_text('utf-8'))
    return {part['part']: part['sha256'] for part in manifest['parts']}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', type=Path, required=True, help='A file that `save` wrote.')
    parser.add_argument('--output', type=Path, required=True, help='Folder for the rows.')
    parser.add_argument('--parts', type=int, default=8, help='Parts per worker.')
    parser.add_argument('--rows-per-part', type=int, default=50_000)
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)  # one worker is this process: it gets one thread, as the others do
    synthesizer = load_synthesizer(options.model)
    lines, rates, parts = [], [], []
    for workers in options.workers:
        folder = options.output / f'workers{workers}'
        shutil.rmtree(folder, ignore_errors=True)
        num_rows = options.parts * workers * options.rows_per_part
        cpu, started = sum(os.times()[:4]), time.perf_counter()
        peaks: dict[int, float] = {}
        is_over = threading.Event()
        watcher = threading.Thread(target=watch_workers, args=(peaks, is_over))
        watcher.start()
        paths = synthesizer.sample_to_parquet(
            folder, num_rows, options.rows_per_part, workers=workers
        )
        is_over.set()
        watcher.join()
        seconds, used = time.perf_counter() - started, sum(os.times()[:4]) - cpu
        rates.append(steady_rate(paths, workers, options.rows_per_part))
        parts.append(checksums(folder))
        lines.append(
            {
                'workers': workers,
                'rows': num_rows,
                'seconds': round(seconds, 1),
                'rows per second, steady': round(rates[-1]),
                'efficiency': round(rates[-1] / workers * options.workers[0] / rates[0], 3),
                'CPU seconds per part': round(used / len(paths), 2),
                'MB per worker': round(max(peaks.values(), default=peak_megabytes('self'))),
                'bytes per row': round(sum(p.stat().st_size for p in paths) / num_rows, 1),
            }
        )
    table = pd.DataFrame(lines)
    print('|', ' | '.join(table.columns), '|')
    print('|', ' | '.join('---' for _ in table.columns), '|')
    for line in table.astype(str).to_numpy():
        print('|', ' | '.join(line), '|')
    pairs = [(a[n], b[n]) for a, b in pairwise(parts) for n in a.keys() & b.keys()]
    print(f'\nParts that differ between runs: {sum(a != b for a, b in pairs)} of {len(pairs)}.')
