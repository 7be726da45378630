"""Rows on disk, batch by batch: what was killed goes on after the last whole batch.

Above persistence in the flow. A CSV file grows by whole batches, and a small file beside it says
what continues it; it is replaced after each batch and removed after the last one, so that whatever
the CSV file holds beyond it is part of a batch that was not finished.
"""

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd

from sdv_nvib.errors import StorageError
from sdv_nvib.persistence import put_in_place

__all__ = ['BatchFile', 'BatchProgress']


@dataclass(frozen=True)
class BatchProgress:
    """How far the rows in a file have come.

    Attributes:
        identity: Fingerprint of the model and the arguments that the rows come from.
        seed: What every batch is seeded by, with its number.
        drawn: Rows drawn since the generators of keys were reset, rejected ones included.
        batches: Whole batches in the file.
        bytes: Size of the file with these.
    """

    identity: str
    seed: int
    drawn: int
    batches: int = 0
    bytes: int = 0


class BatchFile:
    """A CSV file of batches, new or continued.

    Args:
        path: The file.
        start: Where new rows would start. The file is continued, in place of starting anew, if
            something of the same identity is in it.

    Attributes:
        progress: Where the rows are.
        is_continued: Whether there was something to continue.

    Raises:
        StorageError: The file is there and cannot be continued, or the folder cannot be written.
    """

    def __init__(self, path: Path, start: BatchProgress) -> None:
        self.path = path
        self._note = path.with_name(f'{path.name}.progress')
        remedy = f"Give another folder, or remove '{path}' and '{self._note}' to start over."
        try:
            self.is_continued = self._note.exists()
            if self.is_continued:
                self.progress = self._read(remedy)
                if self.progress.identity != start.identity:
                    raise StorageError(
                        f"'{path}' must be of the same fitted model and arguments to be continued, "
                        f'it is not. {remedy}'
                    )
                with path.open('ab') as file:  # made here if the note was all there was
                    if file.tell() < self.progress.bytes:
                        raise StorageError(
                            f"'{path}' must have at least {self.progress.bytes} bytes to be "
                            f'continued, it has {file.tell()}. {remedy}'
                        )
                    file.truncate(self.progress.bytes)
            elif path.exists():
                raise StorageError(
                    f"'{path}' exists already, and was not left unfinished. Give another folder, "
                    'or remove it first.'
                )
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write(start)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"Rows cannot be written to '{path}': {error}. Give a folder to write to."
            ) from error

    def append(self, rows: pd.DataFrame, drawn: int) -> None:
        """Write one more batch, and note it once the disk holds it.

        Args:
            rows: The batch.
            drawn: See `BatchProgress`.

        Raises:
            StorageError: The disk is full, or the file cannot be written any more.
        """
        done = self.progress
        try:
            with self.path.open('ab') as file:
                rows.to_csv(file, index=False, header=done.bytes == 0)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            self._write(replace(done, drawn=drawn, batches=done.batches + 1, bytes=size))
        except OSError as error:
            raise StorageError(
                f"Batch {done.batches + 1} could not be written to '{self.path}': {error}. The "
                f'{done.batches} before it are in the file; free some space and call again with '
                'the same arguments to go on after them.'
            ) from error

    def finish(self) -> None:
        """Say that all batches are in the file."""
        self._note.unlink()

    def _write(self, progress: BatchProgress) -> None:
        temporary = self._note.with_suffix('.writing')
        temporary.write_text(json.dumps(asdict(progress)), 'ascii')
        put_in_place(temporary, self._note)
        self.progress = progress

    def _read(self, remedy: str) -> BatchProgress:
        try:
            stored = json.loads(self._note.read_text('ascii'))
            progress = BatchProgress(**stored)
            counts = [stored[field.name] for field in fields(progress) if field.name != 'identity']
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError('counts must not be negative')
        except (ValueError, TypeError, RecursionError) as error:
            raise StorageError(f"'{self._note}' is damaged ({error}). {remedy}") from error
        return progress
