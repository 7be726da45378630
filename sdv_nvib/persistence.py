"""Files that can be trusted: a model as JSON and safetensors, nothing in it is ever executed.

Beside quality in the flow, above the fitted model: a folder holds JSON documents and one file of
tensors, and a manifest with the format's version, the versions that wrote it and a checksum of
every file. A folder is written under a temporary name and then renamed, so it is there as a whole
or not at all. What is read is checked before it is used: checksums find accidents, and everything
else is checked as if the file had been written to do harm.
"""

import datetime
import decimal
import hashlib
import importlib.metadata
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import warnings
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdv_nvib.errors import ModelFileError, NVIBError, StorageError
from sdv_nvib.model import NETWORK_VERSION, ModelConfig, TabularNVIB
from sdv_nvib.nvib import Mixture
from sdv_nvib.sampling import FittedModel
from sdv_nvib.tokens import (
    MAX_DECIMALS,
    CategoricalColumn,
    NumericalColumn,
    TableSchema,
    label_index,
)
from sdv_nvib.training import EpochRecord, TrainerState, choose_device

__all__ = [
    'WRITING',
    'Checkpoint',
    'decode_value',
    'encode_value',
    'file_checksum',
    'fingerprint',
    'put_in_place',
    'read_folder',
    'reading',
    'restore_model',
    'restore_schema',
    'store_model',
    'store_schema',
    'whole_file',
    'write_folder',
]

FORMAT, FORMAT_VERSION = 'sdv_nvib model', NETWORK_VERSION
CHECKPOINT_VERSION = 6  # raised when states of before would be read wrongly
MANIFEST, TENSORS = 'manifest.json', 'tensors.safetensors'
WRITING = '.writing.'
MAX_JSON_BYTES = 2**28
MAX_TEMPERATURE = 1000
MAX_ORDERED_TOKENS = 2**24  # ordered columns times their longest vocabulary
MAX_VALUE_DEPTH = 50
PACKAGES = ('sdv-nvib', 'sdv', 'rdt', 'torch', 'numpy')
SAME_MAJOR = ('sdv', 'rdt')
ARRAYS = (
    'points',
    'point_tokens',
    'edges',
    'edge_tokens',
    'cell_low',
    'cell_high',
    'first_cell',
)
NUMPY_KINDS = 'biuf'
DTYPES = frozenset(
    ['bool', 'object', 'boolean', 'float16', 'float32', 'float64', 'Float32', 'Float64']
    + ['string', 'string[python]', 'string[pyarrow]']
    + [f'{kind}{bits}' for kind in ('int', 'uint', 'Int', 'UInt') for bits in (8, 16, 32, 64)]
    + [f'datetime64[{unit}]' for unit in ('s', 'ms', 'us', 'ns')]
)


# ------------------------------------------------------------------------- values to JSON


def encode_value(value: Any) -> Any:
    """Turn a value into what JSON can hold, with its type.

    Text, truth values, whole numbers, finite floats and lists stay what they are; all else becomes
    an object with a `type`.

    Raises:
        ModelFileError: The value is of a type that no file can hold safely.
    """
    if value is None or type(value) in (str, bool, int):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {'type': 'float', 'value': repr(value)}
    if isinstance(value, list):
        return [encode_value(item) for item in value]
    if isinstance(value, tuple):
        return {'type': 'tuple', 'value': [encode_value(item) for item in value]}
    if isinstance(value, dict):
        items = [[encode_value(key), encode_value(item)] for key, item in value.items()]
        return {'type': 'dict', 'value': items}
    if isinstance(value, np.generic) and value.dtype.kind in NUMPY_KINDS:
        plain = value.item()
        return {'type': 'numpy', 'dtype': value.dtype.name, 'value': encode_value(plain)}
    if value is pd.NaT or value is pd.NA:
        return {'type': 'missing', 'value': repr(value)}
    if isinstance(value, pd.Timestamp):
        zone = None if value.tz is None else _zone(value.tz)
        whole = int(value.asm8.astype(np.int64))  # in UTC where there is a zone
        return {'type': 'timestamp', 'value': whole, 'unit': value.unit, 'zone': zone}
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        return {'type': 'datetime', 'value': value.isoformat()}
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return {'type': 'date', 'value': value.isoformat()}
    if isinstance(value, datetime.tzinfo) and value.utcoffset(None) is not None:
        return {'type': 'offset', 'value': value.utcoffset(None).total_seconds()}  # type: ignore[union-attr]
    if isinstance(value, decimal.Decimal):
        return {'type': 'decimal', 'value': str(value)}
    if isinstance(value, pd.CategoricalDtype):
        categories = value.categories
        return {
            'type': 'category',
            'value': None if categories is None else [encode_value(item) for item in categories],
            'dtype': None if categories is None else encode_value(categories.dtype),
            'ordered': bool(value.ordered),
        }
    if isinstance(value, np.dtype | pd.api.extensions.ExtensionDtype) and str(value) in DTYPES:
        if isinstance(value, pd.StringDtype):
            return {'type': 'dtype', 'value': f'string[{value.storage}]'}
        return {'type': 'dtype', 'value': str(value)}
    if isinstance(value, pd.DatetimeTZDtype):
        return {'type': 'zoned dtype', 'value': _zone(value.tz), 'unit': value.unit}
    raise ModelFileError(
        f'A saved model can hold numbers, text, truth values and dates, received {value!r} of '
        f'{type(value).__module__}.{type(value).__qualname__}. Convert the column first, or use '
        '`save`, which pickles.'
    )


def _zone(zone: Any) -> str:
    """The name of a time zone: pandas would take a path for a name, and open that file."""
    name = str(zone)
    if (
        not re.fullmatch(r'UTC([+-]\d\d:\d\d)?', name)
        and name not in zoneinfo.available_timezones()
    ):
        raise ModelFileError(
            f'A time zone must be one of the IANA database, or UTC and an offset, received '
            f'{name[:80]!r}. Convert the column to a zone such as UTC first.'
        )
    return name


def decode_value(stored: Any, depth: int = 0) -> Any:
    """The value that `encode_value` was given.

    Raises:
        ModelFileError: It was not written by `encode_value`.
    """
    if depth > MAX_VALUE_DEPTH:
        raise ModelFileError(f'Values must be nested at most {MAX_VALUE_DEPTH} deep.')
    if isinstance(stored, list):
        return [decode_value(item, depth + 1) for item in stored]
    if not isinstance(stored, dict):
        return stored
    kind, value = stored['type'], stored['value']
    if kind == 'float':
        return float(value)
    if kind == 'tuple':
        return tuple(decode_value(item, depth + 1) for item in value)
    if kind == 'dict':
        pairs = [[decode_value(part, depth + 1) for part in pair] for pair in value]
        return {key: item for key, item in pairs}
    if kind == 'numpy' and np.dtype(stored['dtype']).kind in NUMPY_KINDS:
        return np.dtype(stored['dtype']).type(decode_value(value, depth + 1))
    if kind == 'missing':
        return {'NaT': pd.NaT, '<NA>': pd.NA}[value]
    if kind == 'timestamp':
        stamp, zone = pd.Timestamp(np.datetime64(int(value), stored['unit'])), stored['zone']
        return stamp if zone is None else stamp.tz_localize('UTC').tz_convert(_zone(zone))
    if kind == 'datetime':
        return datetime.datetime.fromisoformat(value)
    if kind == 'date':
        return datetime.date.fromisoformat(value)
    if kind == 'offset':
        return datetime.timezone(datetime.timedelta(seconds=float(value)))
    if kind == 'decimal':
        return decimal.Decimal(value)
    if kind == 'category':
        if value is None:
            return pd.CategoricalDtype(ordered=bool(stored['ordered']))
        items = pd.Index(
            [decode_value(item, depth + 1) for item in value],
            dtype=decode_value(stored['dtype'], depth + 1),
        )
        return pd.CategoricalDtype(items, ordered=bool(stored['ordered']))
    if kind == 'dtype' and value in DTYPES:
        return pd.api.types.pandas_dtype(value)
    if kind == 'zoned dtype':
        return pd.DatetimeTZDtype(unit=stored['unit'], tz=_zone(value))
    raise ModelFileError(f'A value must be of a known type, received {str(kind)[:80]!r}.')


# ------------------------------------------------------------------------- folders


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Say of whatever goes wrong inside that the files of `folder` are to blame.

    Raises:
        ModelFileError: The content is not what a saved model holds.
        StorageError: The files cannot be read.
    """
    remedy = 'Take another copy, or fit and save the model again.'
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"The saved model in '{folder}' cannot be used: {error}") from error
    except NVIBError as error:
        raise ModelFileError(
            f"The saved model in '{folder}' cannot be used: {error} {remedy}"
        ) from error
    except OSError as error:
        raise StorageError(
            f"The saved model in '{folder}' cannot be read: {error}. Give the folder that "
            'save_model wrote.'
        ) from error
    except Exception as error:  # a file may be wrong in every way there is
        raise ModelFileError(
            f"The saved model in '{folder}' must be as save_model wrote it, it is damaged or was "
            f'changed ({type(error).__name__}: {str(error)[:200]}). {remedy}'
        ) from error


def write_folder(folder: Path, documents: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a new folder, as a whole or not at all.

    Args:
        folder: Where; nothing may be there yet but an empty folder.
        documents: File name to what its JSON holds.
        tensors: Name to tensor.

    Raises:
        StorageError: Something is there already, or the disk is full or read-only.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise StorageError(
            f"save_model needs a new or empty folder, '{folder}' is not. Choose another, or "
            'remove this one first.'
        )
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
        for name, document in documents.items():
            (temporary / name).write_text(json.dumps(document, allow_nan=False), 'ascii')
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary / TENSORS)
        files = sorted([*documents, TENSORS])
        manifest = {
            'format': FORMAT,
            'format_version': FORMAT_VERSION,
            'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
            'files': {name: file_checksum(temporary / name) for name in files},
        }
        manifest['checksum'] = _checksum_of(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), 'ascii')
        for name in [*files, MANIFEST]:
            _flush(temporary / name)
        temporary.chmod(0o755)
        put_in_place(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"The model could not be saved to '{folder}': {error}. The model in memory is as it "
            'was; free some space or choose another place, and save again.'
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Documents by file name, and the tensors, of a folder that `write_folder` wrote.

    Call it inside `reading`.

    Raises:
        ModelFileError: A checksum is wrong, or the format or a version does not fit.
    """
    manifest = _load_json(folder / MANIFEST)
    if manifest.get('format') != FORMAT:
        raise ModelFileError(f'{MANIFEST} must say that it is of a {FORMAT}; it does not.')
    if manifest['format_version'] != FORMAT_VERSION:
        raise ModelFileError(
            f'format version must be {FORMAT_VERSION}, received '
            f'{str(manifest["format_version"])[:20]}. Load it with the version of sdv-nvib that '
            f'wrote it, {str(manifest["versions"]["sdv-nvib"])[:20]}, or fit again.'
        )
    if manifest.pop('checksum') != _checksum_of(manifest):
        raise ModelFileError(f'{MANIFEST} does not match its checksum. Take another copy.')
    _check_versions(manifest['versions'])
    files = manifest['files']
    if TENSORS not in files or any(Path(name).name != name for name in files):
        raise ModelFileError(f'{MANIFEST} must list plain file names, {TENSORS} among them.')
    for name, expected in files.items():
        if (folder / name).stat().st_size != expected['bytes'] or (
            file_checksum(folder / name) != expected
        ):
            raise ModelFileError(f'{name} does not match its checksum. Take another copy.')
    documents = {name: _load_json(folder / name) for name in files if name != TENSORS}
    return documents, load_file(folder / TENSORS)


def _check_versions(versions: dict[str, str]) -> None:
    different = []
    for name in PACKAGES:
        there, here = str(versions[name])[:40], importlib.metadata.version(name)
        if name in SAME_MAJOR and there.split('.')[0] != here.split('.')[0]:
            raise ModelFileError(
                f'{name} must be of the same major version as when the model was saved, received '
                f'{there}, here is {here}. Install {name}=={there}.'
            )
        if there != here:
            different.append(f'{name}=={there} (here {here})')
    if different:
        warnings.warn(
            f'The model was saved with other versions: {", ".join(different)}. Its rows for one '
            'seed may differ; install those versions to get the same ones.',
            stacklevel=6,
        )


def _load_json(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelFileError(f'{path.name} must have at most {MAX_JSON_BYTES} bytes.')
    return json.loads(path.read_text('ascii'), parse_constant=_refuse_constant)


def _refuse_constant(text: str) -> None:
    raise ModelFileError(f'JSON numbers must be finite, received {text}.')


def file_checksum(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256')
    return {'sha256': digest.hexdigest(), 'bytes': path.stat().st_size}


def _checksum_of(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which takes its name when it is whole and on the disk.

    The file to write ends as `path` does, and starts with `WRITING`.
    """
    # A name of its own: a process that was thought dead may still be writing the same file.
    temporary = path.with_name(f'{WRITING}{secrets.token_hex(4)}.{path.name}')
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file or folder its name once the disk holds it, in place of what has the name."""
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the disk hold a file or a folder's entries before going on."""
    if os.name == 'nt':
        return  # Windows flushes no folder, and files only to those who write them
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------- schema


def store_schema(
    schema: TableSchema, encode: Callable[[Any], Any] = encode_value
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A schema as JSON, and its arrays as tensors.

    Args:
        schema: The schema.
        encode: Makes what JSON can hold of labels and types; `repr` where none is read again.
    """
    columns: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for place, column in enumerate(schema.columns):
        stored: dict[str, Any] = {
            'name': encode(column.name),
            'has_missing': column.has_missing,
        }
        if isinstance(column, CategoricalColumn):
            stored['categories'] = [encode(value) for value in column.categories]
            stored['is_ordered'] = column.is_ordered
            stored['dtype'] = encode(pd.api.types.pandas_dtype(column.dtype))
        else:
            stored['step'] = encode_value(float(column.step))
            stored['decimals'] = int(column.decimals)
            stored['grid_start'] = encode_value(float(column.grid_start))
            for name in ARRAYS:
                array = np.array(getattr(column, name))
                tensors[f'schema.{place}.{name}'] = torch.from_numpy(array)
        columns.append(stored)
    return columns, tensors


def restore_schema(columns: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> TableSchema:
    """The schema that `store_schema` was given, checked.

    Raises:
        ModelFileError: Its parts contradict each other.
    """
    restored: list[CategoricalColumn | NumericalColumn] = []
    for place, stored in enumerate(columns):
        name, has_missing = decode_value(stored['name']), bool(stored['has_missing'])
        if 'categories' in stored:
            values = np.empty(len(stored['categories']), dtype=object)
            values[:] = [decode_value(value) for value in stored['categories']]
            dtype = decode_value(stored['dtype'])
            _require(_is_dtype(dtype), name, 'dtype must be the type of a column')
            categorical = CategoricalColumn(
                name, label_index(values), has_missing, bool(stored['is_ordered']), dtype
            )
            _require(categorical.categories.is_unique, name, 'categories must be distinct')
            _require(_is_decodable(categorical), name, f'categories must be of the type {dtype}')
            restored.append(categorical)
        else:
            arrays = {array: tensors[f'schema.{place}.{array}'].numpy() for array in ARRAYS}
            numerical = NumericalColumn(
                name=name,
                has_missing=has_missing,
                step=float(decode_value(stored['step'])),
                decimals=int(stored['decimals']),
                grid_start=float(decode_value(stored['grid_start'])),
                **arrays,
            )
            _check_numerical(numerical)
            restored.append(numerical)
        _require(restored[-1].num_tokens > 0, name, 'a column must have a token')
    schema = TableSchema(tuple(restored))
    _require(len(set(schema.names)) == len(schema.names), '', 'column names must be distinct')
    return schema


def _is_dtype(value: Any) -> bool:
    return isinstance(value, np.dtype | pd.api.extensions.ExtensionDtype)


def _is_decodable(column: CategoricalColumn) -> bool:
    try:
        column.decode(np.arange(column.num_tokens), np.random.default_rng(0))
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _check_numerical(column: NumericalColumn) -> None:
    """Arrays that `decode` and `encode` can index without looking."""
    first, tokens = column.first_cell, column.num_tokens
    low, high = column.cell_low, column.cell_high
    for name in ARRAYS:
        kind = 'i' if name in ('point_tokens', 'edge_tokens', 'first_cell') else 'f'
        array = getattr(column, name)
        _require(
            array.ndim == 1 and array.dtype.kind == kind and array.dtype.itemsize == 8,
            column.name,
            f'{name} must be one row of 64-bit numbers',
        )
    cells = len(first) > 1 and first[0] == 0 and first[-1] == len(low) == len(high)
    _require(
        bool(cells and (np.diff(first) > 0).all()), column.name, 'every token must have its cells'
    )
    numbers = slice(0, len(low) - column.has_missing)
    in_order = np.isfinite(low[numbers]).all() and (low[numbers] <= high[numbers]).all()
    _require(bool(in_order), column.name, 'cells must be finite and have their ends in order')
    for name in ('points', 'edges'):
        array = getattr(column, name)
        ascending = np.isfinite(array).all() and (np.diff(array) >= 0).all()
        _require(bool(ascending), column.name, f'{name} must ascend')
    for name, length in (
        ('point_tokens', len(column.points)),
        # A column of missing values alone has neither edges nor tokens beside them.
        ('edge_tokens', 0 if tokens == column.has_missing else len(column.edges) + 1),
    ):
        array = getattr(column, name)
        inside = len(array) == length and (array >= 0).all() and (array < tokens).all()
        _require(bool(inside), column.name, f'{name} must name its tokens')
    _require(
        math.isfinite(column.step) and column.step >= 0 and 0 <= column.decimals <= MAX_DECIMALS,
        column.name,
        'the grid must have a spacing and decimals',
    )


def _require(condition: bool, column: Any, rule: str) -> None:
    if not condition:
        raise ModelFileError(f"{rule}, and those of column '{column}' do not.")


# ------------------------------------------------------------------------- network


def store_model(model: FittedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A fitted model as JSON, and its weights as tensors on the CPU."""
    tensors = {
        f'network.{name}': parameter.detach().cpu()
        for name, parameter in model.network.named_parameters()
    }
    if model.posteriors is not None:
        kept = model.posteriors.to('cpu')
        tensors |= {f'posteriors.{name}': getattr(kept, name) for name in ('mu', 'logvar', 'alpha')}
    history = [vars(record) for record in model.history]
    network = model.network
    stored = {
        'history': history,
        'reads_mixture': network.reads_mixture,
        'sharpening': network.sharpening,
        'temperatures': network.temperatures.tolist(),
    }
    return stored, tensors


def restore_model(
    stored: dict[str, Any],
    tensors: Mapping[str, Tensor],
    schema: TableSchema,
    config: ModelConfig,
    enable_gpu: bool,
) -> FittedModel:
    """The fitted model, on the best device there is, with its sampling at the start.

    Raises:
        ModelFileError: Weights, schema and configuration do not fit each other.
    """
    weights = {
        name.removeprefix('network.'): tensor
        for name, tensor in tensors.items()
        if name.startswith('network.')
    }
    _check_sizes(weights, schema, config)
    with torch.random.fork_rng(devices=[]):  # initial weights that are replaced at once
        network = TabularNVIB(schema.positions, config)
    parameters = dict(network.named_parameters())
    if set(parameters) != set(weights):
        raise ModelFileError('The weights must be those of the network that the parameters name.')
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape or weights[name].dtype != parameter.dtype:
            raise ModelFileError(f'The weights {name} must be {tuple(parameter.shape)} floats.')
        if not weights[name].isfinite().all():
            raise ModelFileError(f'The weights {name} must be finite numbers.')
        with torch.no_grad():
            parameter.copy_(weights[name])
    network.eval().to(choose_device(enable_gpu))
    if not isinstance(stored['reads_mixture'], bool):
        raise ModelFileError(
            f'reads_mixture must be true or false, received {stored["reads_mixture"]!r}.'
        )
    network.reads_mixture = stored['reads_mixture']
    network.sharpening = stored['sharpening']
    if not (isinstance(network.sharpening, float) and 0 <= network.sharpening <= 1):
        raise ModelFileError(
            f'sharpening must be a number from 0 to 1, received {network.sharpening!r}.'
        )
    temperatures = stored['temperatures']
    if len(temperatures) != network.num_columns or not all(
        isinstance(value, float) and 1 <= value <= MAX_TEMPERATURE for value in temperatures
    ):
        raise ModelFileError(
            f'temperatures must be {network.num_columns} numbers from 1 to {MAX_TEMPERATURE}, '
            f'received {temperatures!r}.'
        )
    network.temperatures.copy_(torch.tensor(temperatures))
    history = [EpochRecord(**record) for record in stored['history']]
    posteriors = None
    if 'posteriors.mu' in tensors:
        mu, logvar, alpha = (tensors[f'posteriors.{name}'] for name in ('mu', 'logvar', 'alpha'))
        rows, components = mu.shape[0], len(schema.columns) + 1
        if (
            rows == 0
            or mu.shape != logvar.shape
            or mu.shape != (rows, components, config.d_model)
            or alpha.shape != (rows, components)
            or not all(tensor.dtype == torch.float32 for tensor in (mu, logvar, alpha))
        ):
            raise ModelFileError('The remembered posteriors must be mixtures of this table.')
        posteriors = Mixture(mu, logvar, alpha)
    return FittedModel(network, history, enable_gpu, posteriors)


def _check_sizes(weights: Mapping[str, Tensor], schema: TableSchema, config: ModelConfig) -> None:
    """Compare what the network will take with what the file holds, before memory is taken."""
    layers = {
        side: len({name.split('.')[1] for name in weights if name.startswith(f'{side}.')})
        for side in ('encoder', 'decoder')
    }
    found = {
        'd_model': weights['column_query'].shape[-1],
        'dim_feedforward': weights['decoder.0.feedforward.0.weight'].shape[0],
        'num_encoder_layers': layers['encoder'],
        'num_decoder_layers': layers['decoder'],
        'tokens': len(weights['output_bias']),
    }
    needed = {name: getattr(config, name) for name in list(found)[:-1]}
    needed['tokens'] = sum(schema.sizes)
    if found != needed:
        raise ModelFileError(f'The weights must be those of {needed}, received {found}.')
    ordered = [len(p) for p in schema.positions if not np.isnan(p).all()]
    if len(ordered) * max(ordered, default=0) > MAX_ORDERED_TOKENS:
        raise ModelFileError(f'Ordered tokens must be at most {MAX_ORDERED_TOKENS}.')


# ------------------------------------------------------------------------- checkpoints


def fingerprint(documents: Any, tensors: Mapping[str, Tensor]) -> str:
    """Checksum of what JSON can hold and of named tensors together."""
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True, default=repr).encode())
    for name in sorted(tensors):
        array = tensors[name].cpu().numpy()
        digest.update(f'{name} {array.dtype} {array.shape}'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Checkpoint:
    """The state of a fit after its last whole epoch, in one file that is replaced as a whole.

    A disk that fills up while training does not end the training: `failure` keeps the error.

    Args:
        folder: Where the file is, made if need be.

    Attributes:
        identity: `fingerprint` of the data and the settings that the state belongs to.

    Raises:
        StorageError: The folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / 'checkpoint.safetensors'
        self.identity = ''
        self.failure: StorageError | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise StorageError(
                f"checkpoint needs a folder to write to, '{folder}' is not one: {error}. Choose "
                'another, or fit without checkpoint.'
            ) from error

    def save(self, state: TrainerState) -> None:
        """Replace the file by this state."""
        content = {'format_version': CHECKPOINT_VERSION, 'identity': self.identity, **state.numbers}
        text = json.dumps(content)
        temporary = self.path.with_suffix('.writing')
        try:
            checksum = fingerprint(content, state.tensors)
            tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
            save_file(tensors, temporary, {'state': text, 'checksum': checksum})
            put_in_place(temporary, self.path)
            self.failure = None
        except (OSError, SafetensorError) as error:
            self.failure = StorageError(
                f"The checkpoint '{self.path}' could not be written: {error}. The fit has gone on "
                'to its end and the synthesizer can be used; free some space or choose another '
                'folder before the next fit.'
            )

    def load(self, identity: str) -> TrainerState | None:
        """The state in the file, or `None` where there is no file yet.

        Args:
            identity: What this fit's states belong to from now on.

        Raises:
            ModelFileError: It is damaged, or of other data or settings.
        """
        self.identity = identity
        if not self.path.exists():
            return None
        remedy = 'Give another folder, or remove the file to start over.'
        try:
            with safe_open(self.path, framework='pt') as file:
                header = file.metadata()
                content = json.loads(header['state'])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            damaged = header['checksum'] != fingerprint(content, tensors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(
                f"The checkpoint '{self.path}' is damaged ({error}). {remedy}"
            ) from error
        if damaged:
            raise ModelFileError(f"The checkpoint '{self.path}' is damaged. {remedy}")
        if content.pop('format_version') != CHECKPOINT_VERSION or (
            content.pop('identity') != self.identity
        ):
            raise ModelFileError(
                f"The checkpoint '{self.path}' must be of the same data, metadata, arguments and "
                f'versions as this fit, it is not. {remedy}'
            )
        return TrainerState(tensors, content)
