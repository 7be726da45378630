"""A table in parts: a folder of Parquet files, each of which can be written by anyone at any time.

Between persistence and the synthesizer in the flow. A part's rows follow from the plan and the
part's number alone, so that workers need not know of each other, and a run that ended early goes on
with the parts that are missing. A part appears under its name when it is whole; the manifest lists
it with its rows and checksum. Processes of one machine or Ray's actors do the work; PyArrow and Ray
are imported when they are needed.
"""

import importlib.metadata
import json
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pandas as pd
import torch

from sdv_nvib.errors import (
    InvalidParameterError,
    InvalidTableError,
    NVIBError,
    StorageError,
    WorkerError,
)
from sdv_nvib.persistence import WRITING, file_checksum, whole_file
from sdv_nvib.streaming import import_arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    'ENGINES',
    'PartFolder',
    'PartRecord',
    'PartTask',
    'Plan',
    'infer_schema',
    'installed_versions',
    'run_parts',
]

FORMAT, FORMAT_VERSION = 'sdv_nvib parts', 1
MANIFEST = '_manifest.json'  # readers of a folder of Parquet files pass over it
PACKAGES = ('sdv-nvib', 'sdv', 'rdt', 'faker', 'torch', 'numpy', 'pandas', 'pyarrow')
ENGINES = ('processes', 'ray')


@dataclass(frozen=True)
class Plan:
    """What decides every byte of a folder of parts.

    Attributes:
        model: Fingerprint of the fitted synthesizer.
        num_rows: Rows of all parts.
        rows_per_part: Rows of each part but the last.
        seed: Seed of all parts.
        conditions: Number of rows and values of every condition, as JSON.
        device: Kind of device the model draws on.
        versions: Version of every package that rows or files follow from.
    """

    model: str
    num_rows: int
    rows_per_part: int
    seed: int
    conditions: list[list[Any]]
    device: str
    versions: dict[str, str]

    @property
    def num_parts(self) -> int:
        """Parts, the last of which may be smaller."""
        return -(-self.num_rows // self.rows_per_part)

    def rows_of(self, part: int) -> int:
        """Rows of a part."""
        return min(self.rows_per_part, self.num_rows - part * self.rows_per_part)


@dataclass(frozen=True)
class PartRecord:
    """A part that is whole."""

    part: int
    rows: int
    sha256: str
    bytes: int


def part_name(part: int) -> str:
    """File name of a part."""
    return f'part-{part:06d}.parquet'


def installed_versions() -> dict[str, str]:
    """The packages that rows or files follow from."""
    import_arrow()
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def infer_schema(rows: pd.DataFrame, where: str) -> 'pa.Schema':
    """The Arrow types of a table from some of its rows.

    All parts have the same types, also where a part's rows would suggest others. A column without
    a value in these rows counts as text.

    Args:
        rows: Some rows.
        where: The table, for errors.

    Raises:
        InvalidTableError: The values of a column are of several types.
    """
    arrow = import_arrow()
    fields = []
    for name in rows:
        try:
            kind = arrow.Array.from_pandas(rows[name]).type
        except arrow.ArrowException as error:
            raise InvalidTableError(
                f"{where}, column '{name}': the values of a column of a Parquet file must be of "
                f'one type: {error}. Convert the column before fit.'
            ) from error
        fields.append((str(name), arrow.string() if arrow.types.is_null(kind) else kind))
    return arrow.schema(fields)


class PartFolder:
    """The folder of a plan's parts, and the manifest of those that are whole.

    Args:
        folder: Made if need be.
        plan: What the folder is of.

    Raises:
        StorageError: The folder is of another plan, holds something else, or cannot be used.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._records: dict[int, PartRecord] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / MANIFEST).exists():
                self._read()
            elif any(not file.name.startswith(WRITING) for file in folder.iterdir()):
                raise StorageError(
                    'sample_to_parquet needs a new or empty folder, or one that it began, and '
                    f"'{folder}' has other files. Choose another."
                )
            else:
                self._write()
        except StorageError:
            raise
        except OSError as error:
            raise _unwritten(folder, error) from error

    def _read(self) -> None:
        path = self.folder / MANIFEST
        try:
            content = json.loads(path.read_text('utf-8'))
            if (content['format'], content['format_version']) != (FORMAT, FORMAT_VERSION):
                raise ValueError(f'it is of the format {content["format"]!r}')
            plan, records = dict(content['plan']), [PartRecord(**one) for one in content['parts']]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"'{path}' must be as sample_to_parquet wrote it, it is damaged ({error}). Give "
                'another folder.'
            ) from error
        wanted = json.loads(json.dumps(asdict(self.plan)))
        different = [
            f'{name} {plan.get(name)!r}, received {value!r}'
            for name, value in wanted.items()
            if plan.get(name) != value
        ]
        if different:
            raise StorageError(
                f"The parts in '{self.folder}' must be of the same model and arguments, they were "
                f'begun with {"; ".join(different)}. Give these, or another folder.'
            )
        self._records = {record.part: record for record in records}

    def _write(self) -> None:
        content = {
            'format': FORMAT,
            'format_version': FORMAT_VERSION,
            'plan': asdict(self.plan),
            'parts': [asdict(self._records[part]) for part in sorted(self._records)],
        }
        text = json.dumps(content, indent=1)
        with whole_file(self.folder / MANIFEST) as path:
            path.write_text(text, 'utf-8')

    def paths(self) -> list[Path]:
        """The files of all parts, in order."""
        return [self.folder / part_name(part) for part in range(self.plan.num_parts)]

    def open_parts(self) -> list[int]:
        """The parts that are not listed, or whose file is not there or of another size."""
        return [
            part
            for part, path in enumerate(self.paths())
            if part not in self._records
            or not path.exists()
            or path.stat().st_size != self._records[part].bytes
        ]

    def add(self, record: PartRecord) -> None:
        """List a part that is whole.

        Raises:
            StorageError: The manifest cannot be written.
        """
        self._records[record.part] = record
        try:
            self._write()
        except OSError as error:
            raise _unwritten(self.folder, error) from error

    def close(self) -> None:
        """Remove what workers that were killed have left."""
        for path in self.folder.glob(f'{WRITING}*'):
            path.unlink(missing_ok=True)


def _unwritten(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"'{path}' could not be written: {error}. Parts that are whole stay; free some space or "
        'mend the folder, and call sample_to_parquet again.'
    )


@dataclass(frozen=True)
class PartTask:
    """Writes parts; it is pickled once for every worker.

    Attributes:
        draw: A part's tables, one after the other, by its number.
        folder: Where the parts go.
        schema: Arrow types of all parts.
    """

    draw: Callable[[int], Iterator[pd.DataFrame]]
    folder: Path
    schema: 'pa.Schema'

    def write(self, part: int) -> PartRecord:
        """Draw and write one part.

        Raises:
            StorageError: It cannot be written.
        """
        arrow = import_arrow()
        path, rows = self.folder / part_name(part), 0
        try:
            with whole_file(path) as temporary:
                with arrow.parquet.ParquetWriter(temporary, self.schema) as writer:
                    for table in self.draw(part):
                        writer.write_table(
                            arrow.Table.from_pandas(table, self.schema, preserve_index=False)
                        )
                        rows += len(table)
                checksum = file_checksum(temporary)
        except arrow.ArrowException as error:
            raise InvalidTableError(
                f"'{path.name}': all rows must have the types of the first ones, {error}. Convert "
                'the column before fit.'
            ) from error
        except OSError as error:
            raise _unwritten(path, error) from error
        return PartRecord(part, rows, **checksum)


def run_parts(
    task: PartTask, parts: Sequence[int], workers: int, engine: str
) -> Iterator[PartRecord]:
    """Write parts, and yield each when it is whole.

    Args:
        task: What writes them.
        parts: Their numbers.
        workers: Processes or actors; one of the engine 'processes' is this process itself.
        engine: 'processes' or 'ray'.

    Raises:
        WorkerError: All workers died before any of them had written a part.
    """
    if engine == 'ray':
        yield from _run_by_ray(task, parts, workers)
    elif workers == 1:
        yield from map(task.write, parts)
    else:
        yield from _run_by_processes(task, parts, workers)


# ------------------------------------------------------------------------- processes

_task: PartTask  # of a worker process


def _start_worker(pickled: Path) -> None:
    """Load the model, once for each process."""
    global _task
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _task = pickle.loads(pickled.read_bytes())


def _end_with_parent() -> None:
    """A killed driver cannot tell its workers."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_part(part: int) -> PartRecord:
    return _task.write(part)


def _run_by_processes(task: PartTask, parts: Sequence[int], workers: int) -> Iterator[PartRecord]:
    left = set(parts)
    # Through a file: a process is started before it has imported anything, and would keep the
    # driver and the start of the others waiting for all that goes through its pipe.
    with tempfile.TemporaryDirectory() as private:
        pickled = Path(private) / 'task.pkl'
        pickled.write_bytes(cloudpickle.dumps(task))
        while left:
            before = len(left)
            # Forked processes could inherit locks of torch's threads.
            pool = ProcessPoolExecutor(
                min(workers, len(left)), get_context('spawn'), _start_worker, (pickled,)
            )
            try:
                futures = [pool.submit(_write_part, part) for part in sorted(left)]
                for future in as_completed(futures):
                    record = future.result()
                    left.discard(record.part)
                    yield record
            except BrokenProcessPool as error:
                # One that was killed takes the others with it: all start again, if they get on.
                if len(left) == before:
                    raise WorkerError(
                        f'{workers} worker process(es) ended before any part was written. Take '
                        'fewer workers or rows_per_part if memory ran out; a script must call '
                        "sample_to_parquet under `if __name__ == '__main__':`. Parts that are "
                        'whole stay.'
                    ) from error
            finally:
                pool.shutdown(cancel_futures=True)


# ------------------------------------------------------------------------- Ray


class _RayWorker:
    """An actor of Ray Data, which keeps the model from part to part."""

    def __init__(self, pickled: bytes) -> None:
        torch.set_num_threads(1)
        self.task: PartTask = pickle.loads(pickled)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {'result': [pickle.dumps(self._write(int(part))) for part in batch['part']]}

    def _write(self, part: int) -> PartRecord | NVIBError:
        """An error of ours is a result: Ray would wrap it, and try again."""
        try:
            return self.task.write(part)
        except NVIBError as error:
            return error


def _run_by_ray(task: PartTask, parts: Sequence[int], workers: int) -> Iterator[PartRecord]:
    """Ray restarts actors that died, and gives their parts to others."""
    try:
        import ray.data
    except ImportError as error:
        raise InvalidParameterError(
            "engine='ray' needs Ray, which is not installed. Run: pip install 'sdv-nvib[ray]'"
        ) from error
    if not parts:
        return
    written = ray.data.from_items(
        [{'part': part} for part in parts], override_num_blocks=len(parts)
    ).map_batches(
        _RayWorker,
        fn_constructor_args=(cloudpickle.dumps(task),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
        num_cpus=1,
    )
    for row in written.iter_rows():
        result = pickle.loads(row['result'])
        if isinstance(result, NVIBError):
            raise result
        yield result
