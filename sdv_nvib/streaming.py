"""Tables in files, larger than memory: read in chunks, sampled, and kept as tokens on disk.

Beside the trainer in the flow, which takes its rows from here. Which rows are sampled or held out,
and the order in which they are learned from, follow from the seed and from their places in the
table alone, not from how the files are cut into chunks.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdv_nvib.errors import InvalidParameterError, InvalidTableError, StorageError
from sdv_nvib.processes import process_rank_and_count
from sdv_nvib.training import MAX_VALIDATION_ROWS, VALIDATION_SHARE

if TYPE_CHECKING:
    import pyarrow.dataset as pads

__all__ = ['RowsOnDisk', 'TableFiles', 'import_arrow']

FORMATS = {'.parquet': 'parquet', '.pq': 'parquet', '.csv': 'csv', '.csv.gz': 'csv'}
CHUNK_ROWS = 2**16
SAMPLE_ROWS = 200_000
EPOCH_ROWS = 2**20
BLOCK_ROWS = 2**10  # read from the disk in one piece
BUFFER_BLOCKS = 2**8  # shuffled together in memory


class TableFiles:
    """One table in Parquet or CSV files, in their order.

    Args:
        source: A folder, a file, a list of files, or a `pyarrow.dataset.Dataset`.
        numbers: Columns of numbers.
        dates: Columns of dates, with their formats where these are known; text in CSV files.
        verbose: Show a progress line for each pass over the rows.

    Attributes:
        num_rows: Rows of the table; known after the first pass.

    Raises:
        InvalidParameterError: There are no such files, or they are of several formats.
        InvalidTableError: The files disagree about a column.
    """

    def __init__(
        self,
        source: 'str | Path | Sequence[str | Path] | pads.Dataset',
        numbers: Sequence[str] = (),
        dates: Mapping[str, str | None] | None = None,
        verbose: bool = False,
    ) -> None:
        self._numbers, self._dates = numbers, dates or {}
        self._dataset = _open(source, list(self._dates))
        self._dtypes: pd.Series | None = None
        self._verbose = verbose
        self.num_rows = 0

    def chunks(self, purpose: str) -> Iterator[tuple[int, pd.DataFrame]]:
        """The table piece by piece: the number of each piece's first row, and the rows.

        Raises:
            InvalidTableError: A file cannot be read as the table that the first ones promise.
        """
        import pyarrow as pa

        start = 0
        bar = tqdm(
            total=self.num_rows or None,
            desc=purpose,
            unit=' rows',
            unit_scale=True,
            disable=not self._verbose,
        )
        # Little is read ahead and nothing beside it: memory stays that of a few chunks.
        batches = self._dataset.to_batches(
            batch_size=CHUNK_ROWS, batch_readahead=1, fragment_readahead=1, use_threads=False
        )
        with bar:
            try:
                for batch in batches:
                    if not batch.num_rows:
                        continue
                    table = batch.to_pandas()
                    if self._dtypes is not None:
                        table = table.astype(self._dtypes)
                    table.index = pd.RangeIndex(start, start + len(table))
                    yield start, table
                    start += len(table)
                    bar.update(len(table))
            except pa.ArrowInvalid as error:
                raise InvalidTableError(
                    f'Every file must hold the same columns in the same types, after {start} '
                    f'rows one does not: {error}. Write the table as Parquet, or give a '
                    'pyarrow.dataset.Dataset with its schema.'
                ) from error
        self.num_rows = start

    def sample(self, seed: int) -> pd.DataFrame:
        """A random sample of up to 200,000 rows, with every column's extremes and a missing value.

        Whatever is learned of a table's types, ranges and missing values can be learned from it.
        A table of no more rows comes back as it is. From then on all chunks have its types, which
        missing values change.

        Args:
            seed: Decides which rows.

        Returns:
            The rows, in the order of the table.

        Raises:
            InvalidTableError: There is no row.
        """
        sample = _Sample(seed, self._ordered)
        for start, table in self.chunks('Sampling'):
            sample.add(start, table)
        if not self.num_rows:
            raise InvalidTableError('The files must hold at least one row, they hold none.')
        rows = sample.rows()
        self._dtypes = rows.dtypes
        return rows

    def _ordered(self, values: pd.Series) -> pd.Series | None:
        """Numbers or dates of a column that has a smallest and a largest value."""
        name = str(values.name)
        if name in self._numbers:
            return pd.to_numeric(values, errors='coerce').dropna()
        if name not in self._dates:
            return None
        return pd.to_datetime(values, format=self._dates[name], errors='coerce').dropna()


class _Sample:
    """The rows of the smallest random keys so far, and those with an extreme or missing value."""

    def __init__(self, seed: int, ordered: Callable[[pd.Series], pd.Series | None]) -> None:
        self._seed = seed
        self._ordered = ordered
        self._parts: list[pd.DataFrame] = []
        self._keys = np.empty(0)
        self._largest_key = 1.0
        self._witnesses: dict[tuple[str, str], tuple[Any, pd.DataFrame]] = {}

    def add(self, start: int, table: pd.DataFrame) -> None:
        """See more rows, the first of which is number `start` of the table."""
        keys = _random_keys(self._seed, 'sample', start, len(table))
        chosen = keys < self._largest_key
        if chosen.any():
            self._parts.append(table[chosen])
            self._keys = np.append(self._keys, keys[chosen])
        if len(self._keys) > 2 * SAMPLE_ROWS:
            self._prune()
        for name in table.columns:
            self._find_witnesses(name, table)

    def _prune(self) -> None:
        if len(self._keys) <= SAMPLE_ROWS:
            return
        self._largest_key = np.partition(self._keys, SAMPLE_ROWS)[SAMPLE_ROWS]
        kept = self._keys < self._largest_key
        self._parts = [pd.concat(self._parts)[kept]]
        self._keys = self._keys[kept]

    def _find_witnesses(self, name: str, table: pd.DataFrame) -> None:
        missing = table[name].isna().to_numpy()
        if missing.any():
            first = int(missing.argmax())
            self._witnesses.setdefault((name, 'missing'), (None, table.iloc[[first]]))
        values = self._ordered(table[name])
        if values is None or values.empty:
            return
        for kind, place in (('least', int(values.argmin())), ('most', int(values.argmax()))):
            value, row = values.iloc[place], values.index[[place]]
            known = self._witnesses.get((name, kind))
            if known is None or (value < known[0] if kind == 'least' else value > known[0]):
                self._witnesses[name, kind] = (value, table.loc[row])

    def rows(self) -> pd.DataFrame:
        """The sample and the rows of extremes and missing values, in the table's order."""
        self._prune()
        together = pd.concat([*self._parts, *(row for _, row in self._witnesses.values())])
        together = together[~together.index.duplicated()].sort_index()
        return together.reset_index(drop=True)


class RowsOnDisk:
    """Token ids of one process's share of a table, in a temporary file; some rows held out.

    The rows are cut into blocks. A pass reads all blocks in random order and shuffles 256 of them
    at a time in memory; an epoch is a pass, or a part of one with about a million rows. Memory
    does not grow with the table.

    Args:
        table: The files, read once before.
        encode: Rows of the table to token ids, `(N, n)`.
        sizes: Vocabulary size of each column.
        seed: Decides which rows are held out, and all orders.
        device: Where the batches are to be.

    Attributes:
        checksum: Of the token ids of this process.

    Raises:
        InvalidTableError: There are more processes than rows.
        StorageError: The temporary folder is full.
    """

    def __init__(
        self,
        table: TableFiles,
        encode: Callable[[pd.DataFrame], np.ndarray],
        sizes: Sequence[int],
        seed: int,
        device: torch.device,
    ) -> None:
        self.rank, self.num_processes = process_rank_and_count()
        self._seed, self._device, self._num_columns = seed, device, len(sizes)
        self._dtype = np.dtype(np.uint16 if max(sizes) <= 2**16 else np.uint32)
        self._file = tempfile.TemporaryFile(prefix='sdv_nvib-tokens-')  # noqa: SIM115 closed with us
        self.checksum, held_out, total = self._write(table, encode)
        self._local_rows = total // self.num_processes
        if not self._local_rows:
            raise InvalidTableError(
                f'Every process needs a row to train on, there are {total} row(s) for '
                f'{self.num_processes} processes. Start fewer.'
            )
        self.num_rows = self._local_rows * self.num_processes
        blocks = -(-self._local_rows // BLOCK_ROWS)
        self._parts = min(blocks, -(-self.num_rows // EPOCH_ROWS))  # epochs in a pass
        self.epoch_rows = self.num_processes * min(
            self._local_rows, -(-blocks // self._parts) * BLOCK_ROWS
        )
        self.some = next(self._buffers(0))
        self.held_out = self._to_tensor(held_out) if len(held_out) else self.some

    def _write(
        self, table: TableFiles, encode: Callable[[pd.DataFrame], np.ndarray]
    ) -> tuple[str, np.ndarray, int]:
        """Write this process's rows; checksum, held-out rows, number of all rows to train on."""
        share = min(VALIDATION_SHARE, MAX_VALIDATION_ROWS / table.num_rows)
        checksum, held_out, total = hashlib.sha256(), [], 0
        for start, rows in table.chunks('Encoding'):
            is_held_out = _random_keys(self._seed, 'held out', start, len(rows)) < share
            place = total + np.cumsum(~is_held_out) - 1
            total += int((~is_held_out).sum())
            wanted = is_held_out | (place % self.num_processes == self.rank)
            if not wanted.any():
                continue
            tokens = encode(rows[wanted]).astype(self._dtype)
            held_out.append(tokens[is_held_out[wanted]])
            content = tokens[~is_held_out[wanted]].tobytes()
            checksum.update(content)
            try:
                self._file.write(content)
            except OSError as error:
                raise StorageError(
                    f"The temporary folder '{tempfile.gettempdir()}' must have room for "
                    f'{self._dtype.itemsize * self._num_columns} bytes a row: {error}. Set TMPDIR '
                    'to another folder.'
                ) from error
        empty = np.empty((0, self._num_columns), self._dtype)
        return checksum.hexdigest(), np.concatenate([empty, *held_out]), total

    def batches(self, epoch: int, size: int) -> Iterator[Tensor]:
        """Token ids of the rows of an epoch, `(size, n)` int64; the last batch may be smaller.

        The same epoch gives the same batches every time.
        """
        left = torch.empty(0, self._num_columns, dtype=torch.int64, device=self._device)
        for buffer in self._buffers(epoch):
            left = torch.cat([left, buffer])
            whole = len(left) - len(left) % size
            yield from left[:whole].split(size)
            left = left[whole:]
        if len(left):
            yield left

    def _buffers(self, epoch: int) -> Iterator[Tensor]:
        """The rows of an epoch, shuffled in pieces that fit in memory."""
        sequence, part = divmod(epoch, self._parts)
        # The same blocks in every process, whose epochs then are equally long.
        rng = np.random.default_rng([self._seed, sequence])
        starts = rng.permutation(np.arange(0, self._local_rows, BLOCK_ROWS))
        mine = starts[part :: self._parts]
        rng = np.random.default_rng([self._seed, sequence, part])
        for i in range(0, len(mine), BUFFER_BLOCKS):
            blocks = [self._read(start) for start in mine[i : i + BUFFER_BLOCKS]]
            yield self._to_tensor(rng.permutation(np.concatenate(blocks)))

    def _read(self, start: int) -> np.ndarray:
        row_bytes = self._dtype.itemsize * self._num_columns
        self._file.seek(start * row_bytes)
        count = min(BLOCK_ROWS, self._local_rows - start)
        content = self._file.read(count * row_bytes)
        return np.frombuffer(content, self._dtype).reshape(count, self._num_columns)

    def _to_tensor(self, tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int64)).to(self._device)


def _random_keys(seed: int, purpose: str, start: int, count: int) -> np.ndarray:
    """A number in [0, 1) for each of the rows from `start` on, the same every time."""
    salt = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)[0]
    places = np.arange(start, start + count, dtype=np.uint64)
    # Hashed twice: the salt must not only move the places.
    hashes = pd.util.hash_array(pd.util.hash_array(places) ^ salt)
    return (hashes >> np.uint64(11)) * 2.0**-53


def import_arrow() -> ModuleType:
    """PyArrow with its readers and writers of files.

    Raises:
        InvalidParameterError: It is not installed.
    """
    try:
        import pyarrow.csv
        import pyarrow.dataset
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidParameterError(
            'Tables in Parquet or CSV files need PyArrow, which is not installed. '
            "Run: pip install 'sdv-nvib[parquet]'"
        ) from error
    return pyarrow


def _open(
    source: 'str | Path | Sequence[str | Path] | pads.Dataset', text_columns: Sequence[str]
) -> 'pads.Dataset':
    pa = import_arrow()
    if isinstance(source, pa.dataset.Dataset):
        return source
    files = _files(source)
    formats = {_format(path) for path in files}
    if len(formats) != 1 or None in formats:
        raise InvalidParameterError(
            f'source must be files of one kind, {" or ".join(FORMATS)}, received '
            f'{[str(path) for path in files[:5]]}{" and others" if len(files) > 5 else ""}. '
            'Give a folder or a list of such files.'
        )
    file_format: Any = 'parquet'
    if formats == {'csv'}:
        options = pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in text_columns}, strings_can_be_null=True
        )
        file_format = pa.dataset.CsvFileFormat(convert_options=options)
    try:
        paths = [str(path) for path in files]
        dataset = pa.dataset.dataset(paths, format=file_format)
        schemas = [fragment.physical_schema for fragment in dataset.get_fragments()]
        # Not the first file's alone: whole numbers in one may be fractions, or missing, in others.
        unified = pa.unify_schemas(schemas, promote_options='permissive')
        schema = pa.schema([_plain(field) for field in unified])
        return pa.dataset.dataset(paths, schema=schema, format=file_format)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InvalidTableError(
            f'Every file must hold the same columns in types that go together: {error}. Write the '
            'columns in one type.'
        ) from error


def _plain(field: Any) -> Any:
    """A field that holds values themselves: dictionaries differ from file to file."""
    import pyarrow as pa

    is_dictionary = pa.types.is_dictionary(field.type)
    return field.with_type(field.type.value_type) if is_dictionary else field


def _files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    files = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob('*') if p.is_file() and _format(p) is not None)
            files += sorted(p for p in inside if not _is_hidden(p.relative_to(path)))
        elif path.is_file():
            files.append(path)
        else:
            raise InvalidParameterError(f"source must be files or folders, '{path}' is neither.")
    return files


def _is_hidden(path: Path) -> bool:
    """Whether a writer keeps it to itself, as Spark and Hive do."""
    return any(part.startswith(('.', '_')) for part in path.parts)


def _format(path: Path) -> str | None:
    return next((kind for end, kind in FORMATS.items() if path.name.endswith(end)), None)
