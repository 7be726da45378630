"""`NVIBSynthesizer`: the SDV contract.

With `processor.py` alone it touches SDV's private interface. Last in the flow but for the command
line: SDV's data processor makes a processed table, the schema makes tokens, the trainer a model;
sampling goes the same way back.
"""

import copy
import datetime
import functools
import hashlib
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import torch
from rdt.transformers import FloatFormatter
from sdv.cag import FixedCombinations, Inequality
from sdv.cag._errors import ConstraintNotMetError
from sdv.cag.programmable_constraint import ProgrammableConstraintHarness
from sdv.metadata import Metadata
from sdv.sampling import Condition, DataFrameCondition
from sdv.single_table.base import FIXED_RNG_SEED, BaseSingleTableSynthesizer
from tqdm.auto import tqdm

from sdv_nvib._version import __version__
from sdv_nvib.batches import BatchFile, BatchProgress
from sdv_nvib.conditions import assign_draws, dates_as, meets, with_given_values
from sdv_nvib.domain import public_schema, public_table, require_domain
from sdv_nvib.errors import (
    ConditionError,
    InvalidParameterError,
    InvalidTableError,
    ModelFileError,
    NotFittedError,
    UnknownValueError,
)
from sdv_nvib.generation import Steering
from sdv_nvib.ids import CountedIds, PatternIds, check_regex
from sdv_nvib.model import ModelConfig, TabularNVIB
from sdv_nvib.parts import (
    ENGINES,
    PartFolder,
    PartTask,
    Plan,
    infer_schema,
    installed_versions,
    run_parts,
)
from sdv_nvib.persistence import (
    Checkpoint,
    decode_value,
    encode_value,
    fingerprint,
    read_folder,
    reading,
    restore_model,
    restore_schema,
    store_model,
    store_schema,
    write_folder,
)
from sdv_nvib.private_training import PrivacyGuarantee, PrivateTrainer
from sdv_nvib.processes import from_first, process_rank_and_count, require_equal
from sdv_nvib.processor import (
    DateEncoder,
    can_be_written,
    compared_columns,
    constrained_columns,
    fits_as_float,
    is_read_without_format,
    keep_texts_of_dates,
    keep_zones,
    key_formats,
    lowest_columns,
    restore_constraints,
    restore_learned,
    restore_processor,
    seed_generators,
    skip_generated,
    skip_keys,
    store_constraints,
    store_processor,
    with_exact_durations,
)
from sdv_nvib.protection import (
    protect_categories,
    protect_combinations,
    protect_numbers,
    without_values,
)
from sdv_nvib.quality import (
    LIKELIHOOD_AUC,
    LIKELIHOOD_TPR,
    NEEDS_UNSEEN,
    MembershipInference,
    QualityEvaluation,
    evaluate_quality,
    interval_text,
    membership_inference,
)
from sdv_nvib.report import write_report
from sdv_nvib.sampling import FittedModel, remember_posteriors
from sdv_nvib.streaming import RowsOnDisk, TableFiles
from sdv_nvib.tokens import CategoricalColumn, KnownRows, TableSchema, TableSummary
from sdv_nvib.training import EpochRecord, Trainer, TrainingConfig, choose_device

if TYPE_CHECKING:
    import pyarrow.dataset as pads

__all__ = ['NVIBSynthesizer', 'RowEncoding']

GENERATIONS = ('any-order', 'single-pass')
IMPUTATIONS = ('sample', 'mean')
MEAN_DRAWS = 25
MAX_SEED = 2**32 - 1
ATTACK_ROWS = 4000
PART_BATCH_ROWS = 50_000  # every part's rows follow from it
SCHEMA_ROWS = 1000
LATENT_SOURCES = ('prior', 'posteriors')
REPLACEMENTS = ('frequent', 'missing')
REAL = int | float | np.integer | np.floating
LOSS_COLUMNS = {
    'epoch': 'Epoch',
    'loss': 'Loss',
    'validation_loss': 'Validation Loss',
    'reconstruction': 'Reconstruction',
    'validation_reconstruction': 'Validation Reconstruction',
    'memorised': 'Memorised',
    'kl_gaussian': 'L_G',
    'kl_dirichlet': 'L_D',
    'nats': 'Nats',
    'active_components': 'Active Components',
    'learning_rate': 'Learning Rate',
    'seconds': 'Seconds',
}


@dataclass(frozen=True)
class RowEncoding:
    """What the bottleneck keeps of N rows: one Gaussian component for each of n columns.

    Attributes:
        columns: Names of the modelled columns.
        mu: Means, `(N, n, p)`.
        logvar: Log-variances, `(N, n, p)`.
        alpha: Pseudo-counts, `(N, n)`; the prior component's is 1.
    """

    columns: tuple[Hashable, ...]
    mu: np.ndarray
    logvar: np.ndarray
    alpha: np.ndarray

    @property
    def embedding(self) -> np.ndarray:
        """The mean of each row's components, weighted by their pseudo-counts, `(N, p)`."""
        weights = self.alpha / self.alpha.sum(1, keepdims=True)
        return (weights[:, :, None] * self.mu).sum(1)


class NVIBSynthesizer(BaseSingleTableSynthesizer):
    """Single-table synthesizer whose model is a transformer VAE with an NVIB.

    Batch size, epochs and the end of training follow the number of rows where they are not given.

    Args:
        metadata: `sdv.metadata.Metadata` of one table.
        enforce_min_max_values: Keep numerical values within the range seen in `fit`.
        enforce_rounding: Round numerical values as in the data.
        locales: Locales of generated personal data.
        epochs: Most passes over the data; `None` chooses by the number of rows. Training stops
            earlier when held-out rows stop improving.
        batch_size: Rows per training step; `None` chooses by the number of rows.
        learning_rate: Peak learning rate of AdamW, Muon's is three times it; `None` chooses by the
            number of rows.
        weight_decay: Decoupled weight decay of both.
        d_model: Width of the network and of the latent vectors.
        nhead: Attention heads; must divide `d_model`.
        num_encoder_layers: Encoder depth.
        num_decoder_layers: Decoder depth.
        dim_feedforward: Hidden width of the feed-forward blocks.
        dropout: Dropout probability.
        lambda_gaussian: Weight of the Gaussian KL term L_G; `None` chooses by the number of rows.
        lambda_dirichlet: Weight of the Dirichlet KL term L_D; `None` chooses by the number of rows.
        kappa: Latent vectors sampled per mixture component.
        delta: Growth of the conditional prior's pseudo-count with the number of components.
        generation: 'any-order', one column after the other in random orders, or 'single-pass',
            all columns from one draw of F.
        latent_source: Where single-pass generation takes F from: 'prior', or 'posteriors', the
            remembered mixtures of up to 2,048 training rows (which reveal those rows, as far as
            the bottleneck lets them).
        rare_category_threshold: Categories that fewer rows have are replaced before anything is
            learned: no model, file or sampled row holds them. 1, the default, keeps all.
        rare_category_replacement: What replaces them: 'frequent', one of the other categories as
            often as rows have them, or 'missing'.
        numerical_threshold: Numbers and dates that fewer rows share are replaced by values made
            from means of at least so many rows, the extremes by the mean of the rows next to
            them, before anything is learned. 1, the default, keeps all, and the model keeps
            training values inside its bins.
        target_epsilon: Fit with differential privacy of this epsilon, by DP-SGD; needs the extra
            `dp`. The metadata must say what values each column may have, and sampled rows keep to
            it; nothing else is learned of the rows but what the noise covers. The number of rows,
            the metadata and the arguments are not protected. `None`, the default, is without.
        target_delta: Probability that the bound of epsilon may fail with; below one in the number
            of rows.
        seed: Seed of the fit.
        verbose: Show a progress line while fitting.
        enable_gpu: Use CUDA or MPS where there is one.

    Raises:
        InvalidParameterError: An argument is out of its range.

    Examples:
        >>> table = pd.DataFrame({'age': [31, 45, None, 22] * 20, 'paid': [True, False] * 40})
        >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
        >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
        >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
        >>> synthesizer.fit({'people': table})
        >>> len(synthesizer.sample(num_rows=10)['people'])
        10
    """

    _steering: Steering | None = None  # of the call under way

    _checkpoint: Checkpoint | None = None
    _drawn: int = 0  # rows since the generators of keys were reset
    _files: TableFiles | None = None  # of the fit under way
    metadata: Metadata
    _chained_constraints: list[Any]
    _original_metadata: Metadata
    _privacy_guarantee: PrivacyGuarantee | None = None
    _model_sdtype_transformers: ClassVar = {'categorical': None, 'boolean': None, 'ordinal': None}

    def __init__(
        self,
        metadata: Metadata,
        enforce_min_max_values: bool = True,
        enforce_rounding: bool = True,
        locales: str | list[str] = ['en_US'],  # noqa: B006 SDV's own default; never changed
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.1,
        d_model: int = 64,
        nhead: int = 4,
        num_encoder_layers: int = 1,
        num_decoder_layers: int = 3,
        dim_feedforward: int = 64,
        dropout: float = 0.0,
        lambda_gaussian: float | None = None,
        lambda_dirichlet: float | None = None,
        kappa: int = 1,
        delta: float = 1.0,
        generation: str = 'any-order',
        latent_source: str = 'prior',
        rare_category_threshold: int = 1,
        rare_category_replacement: str = 'frequent',
        numerical_threshold: int = 1,
        target_epsilon: float | None = None,
        target_delta: float = 1e-6,
        seed: int = 0,
        verbose: bool = False,
        enable_gpu: bool = True,
    ) -> None:
        self.enforce_min_max_values = enforce_min_max_values
        self.enforce_rounding = enforce_rounding
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.d_model = d_model
        self.nhead = nhead
        self.num_encoder_layers = num_encoder_layers
        self.num_decoder_layers = num_decoder_layers
        self.dim_feedforward = dim_feedforward
        self.dropout = dropout
        self.lambda_gaussian = lambda_gaussian
        self.lambda_dirichlet = lambda_dirichlet
        self.kappa = kappa
        self.delta = delta
        self.generation = generation
        self.latent_source = latent_source
        self.rare_category_threshold = rare_category_threshold
        self.rare_category_replacement = rare_category_replacement
        self.numerical_threshold = numerical_threshold
        self.target_epsilon = target_epsilon
        self.target_delta = target_delta
        self.seed = seed
        self.verbose = verbose
        self.enable_gpu = enable_gpu
        self._validate_parameters()
        super().__init__(
            metadata=metadata,
            enforce_min_max_values=enforce_min_max_values,
            enforce_rounding=enforce_rounding,
            locales=locales,
        )
        if target_epsilon is not None:
            self._require_private()

    def _validate_parameters(self) -> None:
        for name in ('epochs', 'batch_size'):
            if getattr(self, name) is not None:
                self._whole_number(
                    name, getattr(self, name), 1, remedy='a number, or None to choose by the data'
                )
        for name in (
            'd_model',
            'nhead',
            'num_encoder_layers',
            'num_decoder_layers',
            'dim_feedforward',
            'kappa',
            'rare_category_threshold',
            'numerical_threshold',
        ):
            self._whole_number(name, getattr(self, name), 1, remedy='a number')
        self._whole_number('seed', self.seed, 0, remedy=f'a number up to {MAX_SEED}')
        if self.seed > MAX_SEED:
            raise InvalidParameterError(
                f'seed must be a whole number of at most {MAX_SEED}, received {self.seed!r}.'
            )
        if self.learning_rate is not None:
            self._require_real('learning_rate', 0, 1, open_below=True)
        self._require_real('weight_decay', 0, 1)
        self._require_real('dropout', 0, 1, open_above=True)
        for name in ('lambda_gaussian', 'lambda_dirichlet'):
            if getattr(self, name) is not None:
                self._require_real(name, 0, float('inf'), open_above=True)
        self._require_real('delta', 0, 1)
        if self.target_epsilon is not None:
            self._require_real('target_epsilon', 0, float('inf'), open_below=True, open_above=True)
        self._require_real('target_delta', 0, 1, open_below=True, open_above=True)
        if self.d_model % self.nhead:
            raise InvalidParameterError(
                f'nhead must divide d_model, received nhead={self.nhead} and '
                f'd_model={self.d_model}. Choose another pair, for example 4 and 64.'
            )
        for name, allowed in (
            ('generation', GENERATIONS),
            ('latent_source', LATENT_SOURCES),
            ('rare_category_replacement', REPLACEMENTS),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidParameterError(
                    f'{name} must be one of {allowed}, received {getattr(self, name)!r}.'
                )
        for name in ('enforce_min_max_values', 'enforce_rounding', 'verbose', 'enable_gpu'):
            if not isinstance(getattr(self, name), bool):
                raise InvalidParameterError(
                    f'{name} must be True or False, received {getattr(self, name)!r}.'
                )

    def _require_real(
        self,
        name: str,
        least: float,
        most: float,
        *,
        open_below: bool = False,
        open_above: bool = False,
    ) -> None:
        value = getattr(self, name)
        inside = (
            isinstance(value, REAL)
            and not isinstance(value, bool)
            and (least < value if open_below else least <= value)
            and (value < most if open_above else value <= most)
        )
        if not inside:
            interval = f'{"(" if open_below else "["}{least}, {most}{")" if open_above else "]"}'
            raise InvalidParameterError(
                f'{name} must be a number in {interval}, received {value!r}.'
            )

    # Differential privacy

    def _require_private(self) -> None:
        """Refuse what would learn of the rows without noise."""
        for name, harmless in (
            ('rare_category_threshold', 1),
            ('numerical_threshold', 1),
            ('latent_source', 'prior'),
        ):
            if getattr(self, name) != harmless:
                raise InvalidParameterError(
                    f'{name} must be {harmless!r} with target_epsilon, received '
                    f'{getattr(self, name)!r}: it goes by the rows without noise. Leave it out.'
                )
        described = self._original_metadata.tables[self._table_name]
        if getattr(self, '_composite_keys', None):
            raise InvalidParameterError(
                f"Table '{self._table_name}' must not have a key of several columns with "
                'target_epsilon: SDV learns their combinations from the rows. Remove the key.'
            )
        keys = described._get_primary_and_alternate_keys() | described._get_set_of_sequence_keys()
        require_domain(self._table_name, described.columns, keys)

    def _public_table(self, table: pd.DataFrame | None = None) -> pd.DataFrame:
        """The table that transformers learn from; of `table`, only which ids are numbers."""
        columns = self._get_table_metadata().columns
        names = columns if table is None else table.columns
        numeric = [] if table is None else [str(name) for name in table.select_dtypes('number')]
        return public_table({name: columns[name] for name in names}, numeric)

    def _public_schema(self) -> TableSchema:
        processed = self._data_processor.transform(self._public_table())
        transformers = self._data_processor._hyper_transformer.field_transformers
        for name in processed:
            if type(transformers.get(name)) not in (
                type(None),
                FloatFormatter,
                DateEncoder,
            ):
                raise InvalidParameterError(
                    f"Table '{self._table_name}', column '{name}' must have SDV's default "
                    f'transformer with target_epsilon, received {transformers[name]}. Do not '
                    'update it.'
                )
        return public_schema(self._get_table_metadata().columns, processed)

    def _auto_assign_transformers(self, data: dict[str, pd.DataFrame]) -> None:
        if self.target_epsilon is not None:
            data = {name: self._public_table(table) for name, table in data.items()}
        super()._auto_assign_transformers(data)

    @property
    def privacy_guarantee(self) -> PrivacyGuarantee | None:
        """What the fit has spent, `None` without `target_epsilon` or before `fit`."""
        return self._privacy_guarantee

    def get_info(self) -> dict[str, Any]:
        """SDV's information about the synthesizer, with `differential_privacy` where there is."""
        info = super().get_info()
        if self._privacy_guarantee is not None:
            info['differential_privacy'] = asdict(self._privacy_guarantee)
        return info

    # Preparing the table

    def _update_default_transformers(self) -> None:
        """Leave missing values visible: RDT's defaults would draw them again at random."""
        super()._update_default_transformers()
        self._data_processor._update_transformers_by_sdtypes(
            'numerical',
            FloatFormatter(
                missing_value_replacement=None,
                missing_value_generation=None,
                learn_rounding_scheme=self.enforce_rounding,
                enforce_min_max_values=self.enforce_min_max_values,
            ),
        )
        self._data_processor._update_transformers_by_sdtypes(
            'datetime',
            DateEncoder(missing_value_replacement=None, missing_value_generation=None),
        )

    def add_constraints(self, constraints: list) -> None:
        """Add SDV constraints, before `fit`; see `sdv.cag`.

        Args:
            constraints: Constraints to hold in every sampled row.

        Raises:
            InvalidParameterError: With `target_epsilon`: constraints learn from the rows.

        Examples:
            >>> from sdv.cag import Inequality
            >>> table = pd.DataFrame({'low': [1, 4, 2, 3] * 20, 'high': [5, 4, 7, 6] * 20})
            >>> columns = {name: {'sdtype': 'numerical'} for name in table}
            >>> metadata = Metadata.load_from_dict({'tables': {'ranges': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.add_constraints([Inequality('low', 'high')])
            >>> synthesizer.fit({'ranges': table})
            >>> ranges = synthesizer.sample(num_rows=50)['ranges']
            >>> bool((ranges['low'] <= ranges['high']).all())
            True
        """
        if self.target_epsilon is not None:
            raise InvalidParameterError(
                f"Table '{self._table_name}' cannot have constraints with target_epsilon, received "
                f'{len(constraints)}: SDV fits them to the rows without noise. Leave them out, and '
                'drop sampled rows that break a rule.'
            )
        super().add_constraints(constraints)
        # SDV makes a new data processor for the changed metadata, with its own transformers.
        self._update_default_transformers()

    def _validate(self, table_data: pd.DataFrame) -> list:
        """Refuse values that cannot come back, before anything is fitted."""
        self._validate_numbers(table_data)
        columns = self._original_metadata.tables[self._table_name].columns
        chain = self._chained_constraints
        compared = {name for constraint in chain for name in compared_columns(constraint)}
        lowest = {c._low_column_name for c in chain if isinstance(c, Inequality)}
        for name, column in columns.items():
            values, form = table_data[name], column.get('datetime_format')
            has_order = column['sdtype'] in ('numerical', 'datetime')
            if has_order and isinstance(values.dtype, pd.CategoricalDtype):
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{name}': values of the sdtype "
                    f"'{column['sdtype']}' must not be of the dtype category. Convert the column: "
                    f"table['{name}'].astype(object)"
                    + ('.infer_objects().' if column['sdtype'] == 'numerical' else '.')
                )
            # RDT writes UTC in a format without a zone, and takes it for local time again.
            has_zone = isinstance(values.dtype, pd.DatetimeTZDtype)
            is_date = has_zone or pd.api.types.is_datetime64_dtype(values)
            bounds = pd.Timestamp.min, pd.Timestamp.max
            ends = values.dropna().dt.tz_localize(None).agg(['min', 'max']) if is_date else []
            if not all(bounds[0] <= end <= bounds[1] for end in ends if not pd.isna(end)):
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{name}': dates must be between "
                    f'{bounds[0]:%Y-%m-%d} and {bounds[1]:%Y-%m-%d}, received '
                    f'{values.min()} to {values.max()}. Replace those outside, or make numbers of '
                    'them.'
                )
            if is_date and values.dt.unit != 'ns' and name in compared:
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{name}': SDV's Inequality and Range "
                    f'count dates in nanoseconds, received {values.dtype}. Convert the column: '
                    f"table['{name}'].dt.as_unit('ns')."
                )
            if name in lowest and not is_date and form and not is_read_without_format(form):
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{name}': SDV's Inequality reads text "
                    f'without its format, and takes another date for one of {form!r}. Convert the '
                    f"columns: table['{name}'] = pandas.to_datetime(table['{name}'], "
                    f'format={form!r}).'
                )
            if is_date and form and has_zone != ('%z' in form.lower()):
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{name}': the datetime_format of dates "
                    f"must have a '%z' if they have a time zone and none otherwise, received "
                    f'{form!r} for {values.dtype}. Correct datetime_format, or remove it.'
                )
            if is_date and form and not can_be_written(values, form):
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{name}': dates must be in the range of "
                    f'their type as their format writes them, received {values.min()} to '
                    f'{values.max()} for {form!r}. Correct datetime_format, or remove it.'
                )
            if column['sdtype'] == 'numerical' and values.dtype == object and values.notna().any():
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{name}': numbers must have a numerical "
                    f'dtype, received {values.dropna().iloc[0]!r} in a column of objects. Convert '
                    'it with pandas.to_numeric.'
                )
        return super()._validate(table_data)

    def _validate_numbers(self, table_data: pd.DataFrame) -> None:
        """Refuse numbers that cannot come back."""
        columns = self._original_metadata.tables[self._table_name].columns
        for column in table_data.select_dtypes('number'):
            values = table_data[column].to_numpy(dtype=np.float64, na_value=np.nan)
            if np.isinf(values).any():
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{column}': values must be finite, "
                    f'received {int(np.isinf(values).sum())} infinite value(s). Replace them with '
                    'a number or a missing value.'
                )
            dtype = table_data[column].dtype
            is_nullable = pd.api.types.is_integer_dtype(dtype) and not isinstance(dtype, np.dtype)
            largest = np.nanmax(np.abs(values), initial=0.0)
            if is_nullable and largest >= 2.0**62:  # RDT cannot cast them back
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{column}': whole numbers that may be "
                    f'missing must be below 2**62, received {largest:.3g}. Convert the column to '
                    'float64.'
                )
            is_number = columns.get(column, {}).get('sdtype') == 'numerical'
            if is_number and not fits_as_float(table_data[column]):
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{column}': whole numbers must fit their "
                    f'type as floats, too, received {table_data[column].max()} in a column of '
                    f'{dtype}. Make a missing value of it, or convert the column to float64.'
                )

    def preprocess(self, data: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """Transform a table to what the model is fitted to.

        Args:
            data: Table name to table.

        Returns:
            Table name to processed table.

        Raises:
            InvalidTableError: The table cannot be modelled.
        """
        tables = [table for table in data.values() if isinstance(table, pd.DataFrame)]
        names = [table.columns for table in tables]
        for table in tables:
            repeated = table.columns.map(str)[table.columns.map(str).duplicated()]
            if len(repeated):
                raise InvalidTableError(
                    f"Table '{self._table_name}' must have distinct column names, also as text, "
                    f'received {sorted(set(repeated))} twice. Rename columns.'
                )
            for name in table.select_dtypes(object):
                unhashable = table[name][~table[name].map(pd.api.types.is_hashable)]
                if len(unhashable):
                    raise InvalidTableError(
                        f"Table '{self._table_name}', column '{name}': values must be hashable, "
                        f'received {unhashable.iloc[0]!r}. Turn lists and dictionaries into text '
                        'or into columns of their own.'
                    )
            lowest = lowest_columns(self._chained_constraints)
            for name in [name for name in lowest if name in table]:
                values = table[name]
                if pd.api.types.is_integer_dtype(values.dtype) and values.isna().any():
                    raise InvalidTableError(
                        f"Table '{self._table_name}', column '{name}': SDV's Inequality and Range "
                        f'put means in place of missing values, which {values.dtype} cannot hold. '
                        f"Convert the column: table['{name}'].astype('float64')."
                    )
        try:
            return super().preprocess(data)
        except Exception:
            # SDV gives integer names back only where nothing was wrong.
            for table, columns in zip(tables, names, strict=True):
                table.columns = columns
            raise

    def _preprocess_helper(self, table_data: pd.DataFrame) -> pd.DataFrame:
        """Protect the values; remember the order of the columns: SDV returns the metadata's."""
        self._column_order = list(table_data.columns)
        if self.rare_category_threshold == self.numerical_threshold == 1:
            return super()._preprocess_helper(table_data)
        protected = self._protect(table_data)
        self._forget_values(protected)
        self._constraints_fitted = False  # SDV has fitted them to the rows as they were
        try:
            return super()._preprocess_helper(protected)
        except ConstraintNotMetError as error:
            raise InvalidTableError(
                f"Table '{self._table_name}': rows must meet the constraints after their rare "
                f'values are replaced as well, some do not any more. Lower numerical_threshold, '
                f'{self.numerical_threshold}, or rare_category_threshold, '
                f'{self.rare_category_threshold}, or leave the constraint out.'
            ) from error

    def _forget_values(self, protected: pd.DataFrame) -> None:
        """Take values of rows out of the metadata, which SDV keeps in every file."""

        def cleaned(metadata: Metadata) -> Metadata:
            described = metadata.to_dict()
            table = described['tables'][self._table_name]
            known = set(protected)
            ours = {name: column for name, column in table['columns'].items() if name in known}
            table['columns'] |= without_values(
                ours, protected, self.rare_category_threshold > 1, self.numerical_threshold > 1
            )
            result = Metadata.load_from_dict(described)
            result._reset_updated_flag()
            return result

        self._original_metadata = cleaned(self._original_metadata)
        self.metadata = cleaned(self.metadata)
        self._input_metadata = self.metadata
        self._data_processor.metadata = self.metadata._convert_to_single_table()

    def _protect(self, table: pd.DataFrame) -> pd.DataFrame:
        """Replace what too few rows have, before constraints, transformers and model see it."""
        described = self._original_metadata.tables[self._table_name]
        keys = described._get_primary_and_alternate_keys() | described._get_set_of_sequence_keys()
        if self.rare_category_threshold > 1:
            table = self._protect_together(table)
        protected = {}
        for place, name in enumerate(table.columns):
            column, values = described.columns[name], table[name]
            sdtype = column['sdtype']
            # An id that is no key and has no format is modelled as a category.
            is_category = sdtype in ('categorical', 'boolean', 'ordinal') or (
                sdtype == 'id' and not column.get('regex_format')
            )
            if name not in keys and is_category and self.rare_category_threshold > 1:
                rng = np.random.default_rng([self.seed, place])
                values = protect_categories(
                    values, self.rare_category_threshold, self.rare_category_replacement, rng
                )
            elif name not in keys and sdtype in ('numerical', 'datetime'):
                values = protect_numbers(values, self.numerical_threshold, column)
            protected[name] = values
        return pd.DataFrame(protected, index=table.index)

    def _protect_together(self, table: pd.DataFrame) -> pd.DataFrame:
        """Replace rare combinations of columns whose combinations are fixed."""
        groups: list[set[str]] = []
        for constraint in self._get_all_constraints_list():
            if isinstance(constraint, FixedCombinations):
                joined = set(constraint.column_names).union(
                    *(group for group in groups if group & set(constraint.column_names))
                )
                groups = [group for group in groups if not group & joined] + [joined]
        for group in groups:
            names = [name for name in table if name in group]
            rng = np.random.default_rng([self.seed, list(table).index(names[0])])
            protected = protect_combinations(
                table[names], self.rare_category_threshold, self.rare_category_replacement, rng
            )
            table = table.assign(**{str(name): protected[name] for name in names})
        return table

    def _preprocess(self, table_data: pd.DataFrame) -> pd.DataFrame:
        if not len(table_data):
            raise InvalidTableError(
                f"Table '{self._table_name}' must have at least one row, it has none. Fit on a "
                'table with rows.'
            )
        if self.target_epsilon is None:
            processed = super()._preprocess(table_data)
        else:
            self._data_processor.fit(self._public_table(table_data))
            processed = self._data_processor.transform(table_data)
        seed_generators(self._data_processor, self.seed)
        keep_texts_of_dates(self._data_processor)
        self._drawn = 0
        for name in keep_zones(self._data_processor, table_data):
            raise InvalidTableError(
                f"Table '{self._table_name}', column '{name}': dates of several time zones come "
                f'back in UTC, received {table_data[name].dropna().iloc[0]!r}, whose format has no '
                'place for its hours. Convert the column to datetime64.'
            )
        self._require_values(table_data, processed)
        self._require_columns(processed)
        return processed

    def _require_values(self, table: pd.DataFrame, processed: pd.DataFrame) -> None:
        """Refuse values that transformers made missing values of, as dates of mixed zones."""
        for name in table.columns.intersection(processed.columns):
            lost = processed[name].isna().to_numpy() & table[name].notna().to_numpy()
            if lost.any():
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{name}': every value must be readable, "
                    f'{int(lost.sum())} value(s) are not, the first is '
                    f'{table[name][lost].iloc[0]!r}. Give the column one format and one time '
                    'zone, and name the format in the metadata.'
                )

    def fit_processed_data(self, processed_data: dict[str, pd.DataFrame]) -> None:
        """Fit the model to a table from `preprocess`.

        Args:
            processed_data: Table name to a processed table.

        Raises:
            InvalidTableError: The table has no rows or no columns.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> processed = synthesizer.preprocess({'people': table})
            >>> synthesizer.fit_processed_data(processed)
            >>> len(synthesizer.sample(num_rows=10)['people'])
            10
        """
        for processed in processed_data.values():
            self._require_columns(processed)
        super().fit_processed_data(processed_data)

    def _require_columns(self, processed: pd.DataFrame) -> None:
        if processed.empty:
            raise InvalidTableError(
                f"Table '{self._table_name}' must have a column to model and a row, it has "
                f'{len(processed)} row(s), and the columns '
                f'{list(self._get_table_metadata().columns)}. Ids and personal data are not '
                'modelled, SDV generates them: add a numerical, datetime, categorical or boolean '
                'column, or set the sdtype of one of these.'
            )

    def _numerical_columns(self, processed: pd.DataFrame) -> frozenset[Hashable]:
        """Columns that a transformer made numbers of; the others reach the model as they are."""
        transformers = self._data_processor._hyper_transformer.field_transformers
        return frozenset(
            column
            for column in processed.columns
            if transformers.get(column, True) is not None
            and pd.api.types.is_numeric_dtype(processed[column])
            and not pd.api.types.is_bool_dtype(processed[column])
        )

    def _ordinal_values(self, processed: pd.DataFrame) -> dict[Hashable, Sequence]:
        """Ascending values of ordinal columns; those that were too rare have no token.

        Nor do those that the column's own type has no place for.
        """
        columns = self._get_table_metadata().columns
        keeps_all = self.rare_category_threshold == 1
        values: dict[Hashable, Sequence] = {}
        for name, column in columns.items():
            if column['sdtype'] == 'ordinal' and column.get('range_values'):
                dtype = processed[name].dtype
                has_all = not isinstance(dtype, pd.CategoricalDtype)
                values[name] = [
                    value
                    for value in column['range_values']
                    if (keeps_all and (has_all or value in dtype.categories))
                    or (processed[name] == value).any()
                ]
        return values

    # Fitting

    def fit(self, data: dict[str, pd.DataFrame], checkpoint: str | Path | None = None) -> None:
        """Fit the synthesizer to a table.

        Args:
            data: Table name to table.
            checkpoint: Folder for the state of the training after each epoch. A fit that was
                killed goes on from there when it is called again with the same data and
                arguments, and on a CPU ends with the same weights as one that was not. A
                checkpoint of a whole fit gives that fit again: remove it to train anew.

        Raises:
            InvalidTableError: The table cannot be modelled.
            InvalidParameterError: With `target_epsilon`: a checkpoint, fewer rows than one in
                `target_delta`, or an epsilon that no noise meets.
            TrainingError: The loss was no number in the first epoch.
            ModelFileError: The checkpoint is damaged, or of other data or arguments.
            StorageError: The folder cannot be written to; or could not any more during the fit,
                and then the synthesizer is fitted all the same.
        """
        if checkpoint is not None and self.target_epsilon is not None:
            raise InvalidParameterError(
                'fit cannot have a checkpoint with target_epsilon: the file would hold the secret '
                'noise. Leave it out.'
            )
        # Opened before anything else: a folder that cannot be used costs no fitted model.
        opened = None if checkpoint is None else Checkpoint(Path(checkpoint))
        tables = data if isinstance(data, dict) else {}  # SDV refuses anything else, in super().fit
        self._require_tables(tables)
        names = {name: table.columns for name, table in tables.items()}
        self._checkpoint = opened
        try:
            super().fit(data)
        finally:
            self._checkpoint = None
            for name, columns in names.items():  # SDV gives integer names back after success only
                data[name].columns = columns
        if opened is not None and opened.failure is not None:
            raise opened.failure

    def fit_dataset(
        self,
        source: 'str | Path | Sequence[str | Path] | pads.Dataset',
        checkpoint: str | Path | None = None,
    ) -> None:
        """Fit the synthesizer to a table in files, however large, without holding it in memory.

        The files are read three times: for a sample of 200,000 rows with every column's range,
        from which types, ranges and the bins of numbers are learned; for all categories, missing
        values and frequent numbers; and to keep their rows as tokens, 2 bytes a value, in a
        temporary file that the training reads. A table of up to 200,000 rows is learned from as
        `fit` learns from it, but for the types of pandas: nullable numbers are floats, and texts
        and categories objects. An epoch is one pass over the rows, or over about 1,000,000 of them
        where there are more.

        Where `torch.distributed` has been initialised, by `torchrun` or Ray Train, its processes
        share the rows and every one ends with the same model; the first keeps the checkpoint.

        Args:
            source: A folder of Parquet or CSV files, one file, a list of them, or a
                `pyarrow.dataset.Dataset`.
            checkpoint: As in `fit`. Processes that are started again go on from it together.

        Raises:
            InvalidParameterError: There are no such files, PyArrow is not installed, or rare values
                are to be protected, which needs the whole table at once.
            InvalidTableError: The table cannot be modelled, or the files disagree about a column.
            TrainingError: The loss was no number in the first epoch, or the processes do not read
                the same table.
            ModelFileError: The checkpoint is damaged, or of other data or arguments.
            StorageError: A folder cannot be written to.

        Examples:
            >>> import tempfile
            >>> table = pd.DataFrame({'age': [31, 45, None, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     table.to_parquet(f'{folder}/part-0.parquet')
            ...     synthesizer.fit_dataset(folder)
            >>> len(synthesizer.sample(num_rows=10)['people'])
            10
        """
        if self.target_epsilon is not None:
            raise InvalidParameterError(
                f'fit_dataset needs target_epsilon=None, received {self.target_epsilon}: training '
                'with differential privacy takes the whole table. Use fit.'
            )
        for name in ('rare_category_threshold', 'numerical_threshold'):
            if getattr(self, name) > 1:
                raise InvalidParameterError(
                    f'fit_dataset needs {name}=1, received {getattr(self, name)}: what is rare is '
                    'known of a whole table only. Use fit, or replace rare values in the files.'
                )
        columns = self._original_metadata.tables[self._table_name].columns
        dates = {
            name: column.get('datetime_format')
            for name, column in columns.items()
            if column['sdtype'] == 'datetime'
        }
        numbers = [name for name, column in columns.items() if column['sdtype'] == 'numerical']
        is_first = process_rank_and_count()[0] == 0
        self._files = TableFiles(source, numbers, dates, verbose=self.verbose and is_first)
        try:
            sample = self._files.sample(self.seed)
            self.fit({self._table_name: sample}, checkpoint if is_first else None)
        finally:
            self._files = None

    def _transform_more(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Preprocess more rows of the table whose sample the transformers were fitted to."""
        return self._data_processor.transform(self._validate_transform_constraints(rows))

    def _learn_schema(self, processed: pd.DataFrame) -> TableSchema:
        """The vocabularies of a table, or of the files whose sample it is."""
        if self.target_epsilon is not None:
            return self._public_schema()
        summary = TableSummary(self._numerical_columns(processed), self._ordinal_values(processed))
        if self._files is None:
            summary.add(processed)
        else:
            for _, rows in self._files.chunks('Counting'):
                summary.add(self._transform_more(rows))
        return summary.schema(processed)

    def _learning_rows(
        self, schema: TableSchema, processed: pd.DataFrame, device: torch.device
    ) -> torch.Tensor | RowsOnDisk:
        """Token ids of a table, or a source of those of the files whose sample it is."""
        if self._files is None:
            return torch.from_numpy(schema.encode(processed))

        def encode(rows: pd.DataFrame) -> np.ndarray:
            return schema.encode(self._transform_more(rows))

        return RowsOnDisk(self._files, encode, schema.sizes, self.seed, device)

    def _identity(self, schema: TableSchema, tokens: torch.Tensor | RowsOnDisk) -> str:
        """What decides the weights that a fit ends with."""
        columns, arrays = store_schema(schema, repr)
        versions = {'sdv-nvib': __version__, 'torch': torch.__version__}
        content = [self._deciding_parameters(), columns, versions]
        if isinstance(tokens, RowsOnDisk):
            return fingerprint([*content, tokens.checksum, tokens.num_processes], arrays)
        return fingerprint(content, {**arrays, 'tokens': tokens})

    def _deciding_parameters(self) -> dict[str, Any]:
        """Arguments of the constructor that decide what comes out."""
        outside = ('verbose', 'enable_gpu')
        return {name: v for name, v in self.get_parameters().items() if name not in outside}

    def _fit(self, processed_table: pd.DataFrame) -> None:
        """Learn the schema, train the network, keep it with its best weights."""
        device = choose_device(self.enable_gpu)
        schema = self._learn_schema(processed_table)
        tokens = self._learning_rows(schema, processed_table, device)
        checkpoint = self._checkpoint
        resume = None
        if checkpoint is not None:
            resume = checkpoint.load(self._identity(schema, tokens))
        if isinstance(tokens, RowsOnDisk):
            columns, arrays = store_schema(schema)
            seen = {**arrays, 'held out': tokens.held_out}
            require_equal(fingerprint([columns, tokens.num_rows], seen))
            resume = from_first(resume)
        # Initialisation and dropout know no generator of their own: the global state is borrowed
        # with our seed and given back as it was.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = TabularNVIB(schema.positions, self._model_config())
            network.to(device)
            trainer = self._trainer(network)
            with self._progress() as show:

                def on_epoch(record: EpochRecord, share: float) -> None:
                    show(record, share)
                    if checkpoint is not None:
                        checkpoint.save(trainer.state())

                trainer.fit(tokens, on_epoch, resume)
        self._privacy_guarantee = trainer.guarantee if isinstance(trainer, PrivateTrainer) else None
        remembers = self.generation == 'single-pass' and self.latent_source == 'posteriors'
        posteriors = remember_posteriors(network, trainer.rows.some) if remembers else None
        self._schema = schema
        self._model = FittedModel(network, trainer.history, self.enable_gpu, posteriors)

    def _trainer(self, network: TabularNVIB) -> Trainer:
        config = self._training_config()
        if self.target_epsilon is None:
            return Trainer(network, config)
        # Whoever knows the seed can take the noise off: it is the system's, and forgotten.
        rng = np.random.default_rng()
        torch.manual_seed(int(rng.integers(2**62)))  # dropout's, inside the fork
        return PrivateTrainer(
            network,
            replace(config, seed=int(rng.integers(2**62))),
            rng=rng,
            epsilon=self.target_epsilon,
            delta=self.target_delta,
        )

    def _model_config(self) -> ModelConfig:
        names = ModelConfig.__dataclass_fields__
        return ModelConfig(**{name: getattr(self, name) for name in names})

    def _training_config(self) -> TrainingConfig:
        names = TrainingConfig.__dataclass_fields__
        return TrainingConfig(**{name: getattr(self, name) for name in names})

    def _progress(self) -> '_FitProgress':
        is_first = self._files is None or process_rank_and_count()[0] == 0
        return _FitProgress(disable=not (self.verbose and is_first))

    def get_loss_values(self) -> pd.DataFrame:
        """Losses by epoch.

        Returns:
            One row per epoch: Epoch, Loss, Validation Loss, Reconstruction, Validation
            Reconstruction, L_G, L_D, Nats (through the bottleneck, per held-out row), Active
            Components, Learning Rate, Seconds (since the start), Memorised (how much better rows
            trained on are told than held-out ones). Losses are nats per row. There are none with
            `target_epsilon`: they are taken from the rows without noise.

        Raises:
            NotFittedError: Nothing has been fitted yet.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> synthesizer.get_loss_values()['Epoch'].tolist()
            [1, 2]
        """
        self._validate_fit_before_sample()
        names = EpochRecord.__dataclass_fields__
        records = pd.DataFrame([vars(r) for r in self._model.history], columns=list(names))
        return records.rename(columns=LOSS_COLUMNS)[list(LOSS_COLUMNS.values())]

    def get_loss_values_plot(self, title: str = 'NVIB loss function') -> go.Figure:
        """Plot the losses by epoch.

        Args:
            title: Title of the figure.

        Raises:
            NotFittedError: Nothing has been fitted yet.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> [line.name for line in synthesizer.get_loss_values_plot().data]
            ['Loss', 'Validation Loss', 'Reconstruction', 'Validation Reconstruction']
        """
        lines = ['Loss', 'Validation Loss', 'Reconstruction', 'Validation Reconstruction']
        figure = px.line(
            self.get_loss_values(),
            x='Epoch',
            y=lines,
            color_discrete_sequence=['#0072B2', '#E69F00', '#56B4E9', '#D55E00'],
        )
        return figure.update_layout(
            title=title, yaxis_title='Nats per row', legend_title_text='', template='plotly_white'
        )

    def get_column_importance(self, data: dict[str, pd.DataFrame]) -> pd.DataFrame:
        """How much each column tells of the others, and how often the bottleneck offers it.

        Shared nats are the mean of ln p(other columns | column) − ln p(other columns): what the
        others lose when the column is hidden, the mutual information as far as the model has
        learned it. The share of the pseudo-counts is the weight of the column's component in F
        before any query reads it. It is no measure of importance: L_G weights each component's
        divergence by it, so that it goes to components near the prior, which say little.

        Args:
            data: Table name to a table of real rows, a few hundred or more.

        Returns:
            One row per modelled column, the most telling first: Column, Shared Nats, Pseudo-Count
            Share.

        Raises:
            NotFittedError: Nothing has been fitted yet.
            InvalidParameterError: Generation is single-pass, which has no such conditionals.
            UnknownValueError: A value that the training data did not have.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> sorted(synthesizer.get_column_importance({'people': table})['Column'])
            ['age', 'paid']
        """
        self._require_any_order('get_column_importance')
        _, _, tokens = self._encode_table(data)
        alpha = self.encode(data).alpha
        shares = alpha / alpha.sum(1, keepdims=True)
        importance = pd.DataFrame(
            {
                'Column': self._schema.names,
                'Shared Nats': self._model.shared_information(tokens).mean(0, dtype=np.float64),
                'Pseudo-Count Share': shares.mean(0, dtype=np.float64),
            }
        )
        return importance.sort_values('Shared Nats', ascending=False, ignore_index=True)

    def get_column_importance_plot(
        self, data: dict[str, pd.DataFrame], title: str = 'What columns tell of each other'
    ) -> go.Figure:
        """Plot `get_column_importance`, the two measures side by side.

        Args:
            data: Table name to a table of real rows, a few hundred or more.
            title: Title of the figure.

        Raises:
            NotFittedError: Nothing has been fitted yet.
            InvalidParameterError: Generation is single-pass.
            UnknownValueError: A value that the training data did not have.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> figure = synthesizer.get_column_importance_plot({'people': table})
            >>> [bars.name for bars in figure.data]
            ['Shared Nats', 'Pseudo-Count Share']
        """
        importance = self.get_column_importance(data)
        figure = px.bar(
            importance.melt('Column', var_name='Measure', value_name='Value'),
            x='Value',
            y='Column',
            color='Measure',
            facet_col='Measure',
            orientation='h',
            color_discrete_sequence=['#0072B2', '#E69F00'],
        )
        figure.for_each_annotation(lambda a: a.update(text=a.text.removeprefix('Measure=')))
        figure.update_xaxes(matches=None, title='')
        figure.update_yaxes(autorange='reversed', type='category', dtick=1)  # each has its name
        height = max(450, 150 + 22 * len(importance))
        return figure.update_layout(
            title=title, showlegend=False, template='plotly_white', height=height
        )

    # Saving

    def save_model(self, folder: str | Path) -> None:
        """Save the fitted synthesizer as JSON and safetensors, without a pickle.

        The folder appears as a whole or not at all. Sampling after `load_model` starts over, as
        after `reset_sampling`.

        Args:
            folder: A new or empty folder.

        Raises:
            NotFittedError: Nothing has been fitted yet.
            ModelFileError: There are values, transformers or constraints of classes that no file
                can hold safely; `save` pickles them.
            StorageError: Something is in the folder, or it cannot be written.
        """
        self._validate_fit_before_sample()
        columns, arrays = store_schema(self._schema)
        model, weights = store_model(self._model)
        parameters = {name: encode_value(v) for name, v in self.get_parameters().items()}
        documents = {
            'metadata.json': self._original_metadata.to_dict(),
            'parameters.json': parameters,
            'constraints.json': store_constraints(self._get_all_constraints_list()),
            'transformers.json': store_processor(self._data_processor),
            'model.json': {
                'fitted_date': self._fitted_date,
                'sdv_version': self._fitted_sdv_version,
                'column_order': self._column_order,
                'original_columns': encode_value(self._original_columns.to_list()),
                'schema': columns,
                'privacy': None
                if self._privacy_guarantee is None
                else asdict(self._privacy_guarantee),
                **model,
            },
        }
        write_folder(Path(folder), documents, {**arrays, **weights})

    @classmethod
    def load_model(cls, folder: str | Path) -> 'NVIBSynthesizer':
        """Load what `save_model` saved; no code of the files is run.

        Args:
            folder: The folder.

        Returns:
            The fitted synthesizer; its first rows are those of the saved one after
            `reset_sampling`.

        Raises:
            ModelFileError: The files are damaged, of another format, or contradict themselves.
            StorageError: The files cannot be read.
        """
        with reading(Path(folder)):
            documents, tensors = read_folder(Path(folder))
            parameters = {k: decode_value(v) for k, v in documents['parameters.json'].items()}
            metadata = Metadata.load_from_dict(documents['metadata.json'])
            for column in metadata.tables[metadata._get_single_table_name()].columns.values():
                check_regex(column.get('regex_format') or '')
            metadata._reset_updated_flag()
            synthesizer = cls(metadata, **parameters)
            synthesizer._restore_constraints(documents['constraints.json'])
            restore_processor(synthesizer._data_processor, documents['transformers.json'])
            stored = documents['model.json']
            datetime.date.fromisoformat(stored['fitted_date'])
            synthesizer._schema = restore_schema(stored['schema'], tensors)
            synthesizer._model = restore_model(
                stored,
                tensors,
                synthesizer._schema,
                synthesizer._model_config(),
                synthesizer.enable_gpu,
            )
            synthesizer._check_restored(stored)
            synthesizer.sample(num_rows=1)  # parts that contradict each other show here
            synthesizer._try_categories()
            synthesizer.reset_sampling()
        return synthesizer

    def _restore_constraints(self, stored: list[dict[str, Any]]) -> None:
        """Add the constraints of a file to a new synthesizer, and what they had learned."""
        if not stored:
            return
        self.add_constraints(restore_constraints(stored))
        metadata = self._original_metadata
        constraints = [*self._chained_constraints, *self._reject_sampling_constraints]
        for constraint, one in zip(constraints, stored, strict=True):
            is_chained = constraint in self._chained_constraints
            restore_learned(constraint, metadata if is_chained else self._original_metadata, one)
            if is_chained:
                metadata = constraint.get_updated_metadata(metadata)
        self._constraints_fitted = True

    def _try_categories(self) -> None:
        """Have constraints turn every category of the columns that they made back."""
        known = self._original_metadata.tables[self._table_name].columns
        made = {
            column.name: column.categories
            for column in self._schema.columns
            if isinstance(column, CategoricalColumn) and column.name not in known
        }
        num_rows = max((len(categories) for categories in made.values()), default=0)
        if not num_rows:
            return
        row = self._sample(1)
        rows = row.loc[row.index.repeat(num_rows)].reset_index(drop=True)
        for name, categories in made.items():
            if len(categories):  # it may be missing in every row
                rows[name] = np.resize(categories, num_rows)
        turned = self.reverse_transform_constraints(self._data_processor.reverse_transform(rows))
        if set(turned) != set(known):
            raise ModelFileError(f'Constraints must give the columns {list(known)[:20]}.')

    def _check_restored(self, stored: dict[str, Any]) -> None:
        """Take the last attributes of a loaded synthesizer, and compare its parts."""
        columns = set(self._original_metadata.tables[self._table_name].columns)
        modelled = self._data_processor._hyper_transformer._output_columns
        if set(stored['column_order']) != columns or set(self._schema.names) != set(modelled):
            raise ModelFileError('The columns of metadata, transformers and model must agree.')
        if (stored['privacy'] is None) != (self.target_epsilon is None):
            raise ModelFileError(
                'A privacy guarantee must come with target_epsilon, and only then.'
            )
        if stored['privacy'] is not None:
            guarantee = PrivacyGuarantee(**stored['privacy'])
            *numbers, accountant = vars(guarantee).values()
            if not all(type(n) in (int, float) for n in numbers) or type(accountant) is not str:
                raise ModelFileError('A privacy guarantee must be of numbers and an accountant.')
            self._privacy_guarantee = guarantee
        self._column_order = list(stored['column_order'])
        self._original_columns = pd.Index(decode_value(stored['original_columns']))
        self._fitted_date = stored['fitted_date']
        self._fitted_sdv_version = str(stored['sdv_version'])
        self._fitted = True

    # Sampling

    def _validate_fit_before_sample(self) -> None:
        if not self._fitted:
            raise NotFittedError(
                f"The synthesizer of table '{self._table_name}' has not been fitted. Call fit "
                'first, or load one that has been.'
            )

    def sample(
        self,
        num_rows: int,
        main_table_name: str | None = None,
        max_tries_per_batch: int = 100,
        batch_size: int | None = None,
        output_folder_path: str | None = None,
        *,
        shares: Mapping[str, Mapping[Any, float]] | None = None,
        temperature: float | Mapping[str, float] = 1.0,
        top_p: float | Mapping[str, float] = 1.0,
    ) -> dict[str, pd.DataFrame]:
        """Sample rows; the first five arguments are SDV's.

        Args:
            num_rows: Rows to sample.
            main_table_name: Name of the table.
            max_tries_per_batch: Most tries of a batch where constraints reject rows.
            batch_size: Rows in a batch; `None` for all.
            output_folder_path: Folder that the rows are written to, batch by batch, as CSV. With a
                `batch_size` below `num_rows` and without `shares` the rows are in the file alone,
                so that memory does not grow with them, and the returned table has none; a call that
                was killed goes on after its last whole batch when it is made again, by this
                synthesizer or one that was loaded.
            shares: For columns to balance the weight of each value, in proportion to which it
                occurs; values that are not named do not. The other columns follow the model given
                these values. Two balanced columns are drawn independently of each other.
            temperature: Below 1 the model's likely values become likelier still, above 1 less so;
                positive, for all columns or by column.
            top_p: Draw from the fewest most likely values that make up this share of the
                probability, in (0, 1]; for all columns or by column.

        Returns:
            Table name to the sampled table.

        Raises:
            InvalidParameterError: `num_rows` is no whole number, or a weight, temperature or top_p
                is out of its range or of a column that is not modelled.
            StorageError: The folder cannot be written to, or holds rows of something else.

        Examples:
            >>> table = pd.DataFrame({'size': range(100), 'rare': [True] + [False] * 99})
            >>> columns = {'size': {'sdtype': 'numerical'}, 'rare': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'t': table})
            >>> half = synthesizer.sample(10, shares={'rare': {True: 1, False: 1}})
            >>> int(half['t']['rare'].sum())
            5
        """
        self._validate_fit_before_sample()
        self._whole_number('num_rows', num_rows, 0)
        with self._steered(temperature, top_p):
            has_batches = 0 < (batch_size or 0) < num_rows
            if output_folder_path and batch_size and has_batches and not shares:
                name = self._table_name if main_table_name is None else main_table_name
                self._validate_table_name(name)
                self._check_input_metadata_updated()
                path = Path(output_folder_path) / f'{self._table_name}.csv'
                return {name: self._sample_to_file(num_rows, max_tries_per_batch, batch_size, path)}
            if not shares:
                with _telling_why():
                    return super().sample(
                        num_rows,
                        main_table_name,
                        max_tries_per_batch,
                        batch_size,
                        output_folder_path,
                    )
            conditions = DataFrameCondition(self._balanced(num_rows, shares))
            return self.sample_from_conditions(
                [conditions], max_tries_per_batch, batch_size, output_folder_path
            )

    def _sample_to_file(
        self, num_rows: int, max_tries: int, batch_size: int, path: Path
    ) -> pd.DataFrame:
        """Batches to a CSV file, after those that are in it; returns a table without rows.

        Every batch has a seed of its own, so that one that is drawn after a continuation is the
        one that it would have been.
        """
        if not self._random_state_set:
            self._set_random_state(FIXED_RNG_SEED)
        steering = None if self._steering is None else vars(self._steering)
        arguments = [num_rows, batch_size, max_tries, steering]
        identity = fingerprint([self._fingerprint(), *arguments], {})
        seed = int(self._model.rng.integers(2**62))
        file = BatchFile(path, BatchProgress(identity, seed, self._drawn))
        done = file.progress
        if file.is_continued:
            skip_generated(self._data_processor, done.drawn, batch_size)
            self._drawn = done.drawn
        with tqdm(total=num_rows, initial=done.batches * batch_size, desc='Sampling rows') as bar:
            for batch in range(done.batches, math.ceil(num_rows / batch_size)):
                state = np.random.SeedSequence([done.seed, batch]).generate_state(1, np.uint64)
                self._set_random_state(int(state[0]) >> 1)
                size = min(batch_size, num_rows - batch * batch_size)
                rows = self._sample_batch(size, max_tries)
                file.append(rows, self._drawn)
                bar.update(len(rows))
        file.finish()
        has_names = len(self._original_columns) > 0
        return pd.DataFrame(columns=self._original_columns if has_names else self._column_order)

    def reset_sampling(self) -> None:
        """Draw the rows, keys and personal data again that came first after `fit`."""
        super().reset_sampling()
        self._drawn = 0

    def _balanced(self, num_rows: int, shares: Mapping[str, Mapping[Any, float]]) -> pd.DataFrame:
        """Columns whose values have the wanted shares, exactly but for rounding."""
        rng = np.random.default_rng(self.seed)
        columns = {}
        for name, wanted in shares.items():
            if not isinstance(wanted, Mapping):
                raise InvalidParameterError(
                    f"shares of column '{name}' must be a mapping of values to weights, received "
                    f'{wanted!r}. Name every value that may occur, with its weight.'
                )
            weights = pd.Series(list(wanted.values()), dtype=object)
            parts = pd.to_numeric(weights, errors='coerce').to_numpy(dtype=float)
            if not (np.isfinite(parts) & (parts >= 0)).all() or not parts.sum() > 0:
                raise InvalidParameterError(
                    f"shares of column '{name}' must be numbers of at least 0, and one above it, "
                    f'received {dict(wanted)}. Name every value that may occur, with its weight.'
                )
            ends = np.round(parts.cumsum() / parts.sum() * num_rows).astype(int)
            values = pd.Series(list(wanted)).repeat(np.diff(ends, prepend=0))
            columns[name] = values.iloc[rng.permutation(num_rows)].array
        return pd.DataFrame(columns)

    @contextmanager
    def _steered(
        self,
        temperature: float | Mapping[str, float] = 1.0,
        top_p: float | Mapping[str, float] = 1.0,
        *,
        exclude_missing: bool = False,
    ) -> Iterator[None]:
        """Draw otherwise than by the model's own probabilities inside this block."""
        if temperature == 1 and top_p == 1 and not exclude_missing:
            yield
            return
        columns = self._schema.columns
        # A column that is always missing has no other token.
        excluded = [
            column.num_tokens - 1
            if exclude_missing and column.has_missing and column.num_tokens > 1
            else -1
            for column in columns
        ]
        self._steering = Steering(
            self._by_column('temperature', temperature, float('inf')),
            self._by_column('top_p', top_p, 1),
            tuple(excluded),
        )
        try:
            yield
        finally:
            self._steering = None

    def _by_column(
        self, argument: str, value: float | Mapping[str, float], most: float
    ) -> tuple[float, ...]:
        names = self._schema.names
        by_column: Mapping[Any, float] = (
            value if isinstance(value, Mapping) else {name: value for name in names}
        )
        for name, number in by_column.items():
            if name not in names:
                raise InvalidParameterError(
                    f"{argument} was given for column '{name}', which the model does not have. "
                    f'Its columns are {names}.'
                )
            if not isinstance(number, REAL) or not 0 < number <= most:
                raise InvalidParameterError(
                    f"{argument} of column '{name}' must be a number in (0, {most}], received "
                    f'{number!r}.'
                )
        return tuple(float(by_column.get(name, 1.0)) for name in names)

    def _sample(self, num_rows: int, conditions: KnownRows | None = None) -> pd.DataFrame:
        """Draw a processed table; SDV calls it, and hands on what `_draw_rows` gave it."""
        known = None if conditions is None else conditions.tokens
        tokens = self._model.sample(num_rows, known, self._steering)
        return self._schema.decode(tokens, self._model.rng, conditions)

    def _sample_rows(self, *args: Any, **kwargs: Any) -> tuple[pd.DataFrame, int]:
        """Rows in the order of the fitted table's columns."""
        self._drawn += args[0]
        sampled, num_valid = super()._sample_rows(*args, **kwargs)
        order = [name for name in self._column_order if name in sampled.columns]
        return sampled[order + [name for name in sampled.columns if name not in order]], num_valid

    def reverse_transform_constraints(self, sampled: pd.DataFrame) -> pd.DataFrame:
        """The columns that constraints have replaced, in rows that hold to them; SDV calls it."""
        chain = self._chained_constraints
        self._chained_constraints = [with_exact_durations(constraint) for constraint in chain]
        try:
            return super().reverse_transform_constraints(sampled)
        finally:
            self._chained_constraints = chain

    # Sampling in parts

    def sample_to_parquet(
        self,
        folder: str | Path,
        num_rows: int,
        rows_per_part: int = 100_000,
        *,
        workers: int = 1,
        engine: str = 'processes',
        seed: int = 0,
        conditions: Sequence[Condition] = (),
        max_tries_per_batch: int = 100,
    ) -> list[Path]:
        """Write rows, as many as the disk holds, to a folder of Parquet files.

        Each file holds what `sample_part` draws: any number of workers, in any order, makes the
        same files. A call that ended early or was killed goes on when it is made again with the
        same arguments. `_manifest.json` lists the parts that are whole, with rows and checksums.

        Args:
            folder: A new or empty folder, or one that the same call began. All workers write to it.
            num_rows: Rows of all parts.
            rows_per_part: Rows of each file but the last.
            workers: How many processes or actors draw parts, each with a copy of the model and
                one thread. One, with the engine 'processes', is this process itself.
            engine: 'processes' of this machine, or 'ray' for Ray Data.
            seed: Seed of the rows.
            conditions: SDV's conditions; their rows must add up to `num_rows`.
            max_tries_per_batch: Most tries of a batch where constraints reject rows.

        Returns:
            The files, in order.

        Raises:
            InvalidParameterError: An argument is out of its range, keys cannot be made in parts, or
                a package is missing.
            ConditionError: Too many rows are rejected.
            StorageError: The folder is of another model or other arguments, or cannot be written.
            WorkerError: The workers die again and again.
        """
        draw = functools.partial(
            self.sample_part,
            num_rows=num_rows,
            rows_per_part=rows_per_part,
            seed=seed,
            conditions=conditions,
            max_tries_per_batch=max_tries_per_batch,
        )
        draw(0)  # checks the arguments
        self._whole_number('workers', workers, 1)
        if engine not in ENGINES:
            raise InvalidParameterError(f'engine must be one of {ENGINES}, received {engine!r}.')
        plan = Plan(
            model=self._fingerprint(),
            num_rows=num_rows,
            rows_per_part=rows_per_part,
            seed=seed,
            conditions=[
                [c.get_num_rows(), encode_value(c.get_column_values())] for c in conditions
            ],
            device=self._model.network.device.type,
            versions=installed_versions(),
        )
        opened = PartFolder(Path(folder).absolute(), plan)
        missing = opened.open_parts()
        if missing:
            first_rows = next(self.sample_part(0, min(num_rows, SCHEMA_ROWS)))
            schema = infer_schema(first_rows, f"Table '{self._table_name}'")
            task = PartTask(draw, opened.folder, schema)
            with tqdm(total=num_rows, unit='row', disable=not self.verbose) as progress:
                progress.update(num_rows - sum(plan.rows_of(part) for part in missing))
                for record in run_parts(task, missing, workers, engine):
                    opened.add(record)
                    progress.update(record.rows)
        opened.close()
        return opened.paths()

    def sample_part(
        self,
        part: int,
        num_rows: int,
        rows_per_part: int = 100_000,
        *,
        seed: int = 0,
        conditions: Sequence[Condition] = (),
        max_tries_per_batch: int = 100,
    ) -> Iterator[pd.DataFrame]:
        """Draw one part of a large table, independently of all other parts.

        The rows follow from the model, the arguments and the number of the part, not from what
        else is or was sampled. Ids that may not repeat take the numbers of their rows, so they
        are distinct between parts too; other personal data that may not repeat, such as e-mail
        addresses, begins with the number of its part.

        Args:
            part: Number of the part, from 0.
            num_rows: Rows of all parts.
            rows_per_part: Rows of each part but the last.
            seed: Seed of all parts.
            conditions: SDV's conditions on the rows of all parts, in their order.
            max_tries_per_batch: Most tries of a batch where constraints reject rows.

        Returns:
            The part's rows, in tables of at most 50,000.

        Raises:
            InvalidParameterError: An argument is out of its range, or keys cannot be made in parts.
            ConditionError: Too many rows are rejected.

        Examples:
            >>> table = pd.DataFrame({'key': range(80), 'paid': [True, False] * 40})
            >>> columns = {'key': {'sdtype': 'id'}, 'paid': {'sdtype': 'boolean'}}
            >>> described = {'columns': columns, 'primary_key': 'key'}
            >>> metadata = Metadata.load_from_dict({'tables': {'t': described}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'t': table})
            >>> last = next(synthesizer.sample_part(2, num_rows=25, rows_per_part=10))
            >>> last['key'].to_list()
            [20, 21, 22, 23, 24]
        """
        formats = self._require_parts(part, num_rows, rows_per_part, seed, conditions)
        ends = np.cumsum([condition.get_num_rows() for condition in conditions])
        drawer = self._drawer(
            f'{seed} {part}', [n for n, ids in formats.items() if ids is not None]
        )
        stop = min(num_rows, (part + 1) * rows_per_part)

        def draw() -> Iterator[pd.DataFrame]:
            for start in range(part * rows_per_part, stop, PART_BATCH_ROWS):
                end = min(start + PART_BATCH_ROWS, stop)
                wanted = [
                    Condition(condition.get_column_values(), num_rows=overlap)
                    for condition, last in zip(conditions, ends.tolist(), strict=True)
                    if (overlap := min(end, last) - max(start, last - condition.get_num_rows())) > 0
                ]
                rows = drawer._draw_all(end - start, wanted, max_tries_per_batch)
                for name, ids in formats.items():
                    if ids is None:
                        rows[name] = f'{part}-' + rows[name].astype(str)
                    else:
                        rows[name] = pd.Series(ids.values(start, len(rows)), rows.index).astype(
                            self._data_processor._dtypes[name]
                        )
                yield rows

        return draw()

    def _require_parts(
        self,
        part: int,
        num_rows: int,
        rows_per_part: int,
        seed: int,
        conditions: Sequence[Condition],
    ) -> dict[str, CountedIds | PatternIds | None]:
        """Check the arguments of `sample_part`; how values that may not repeat are made."""
        self._validate_fit_before_sample()
        self._whole_number('num_rows', num_rows, 1)
        self._whole_number('rows_per_part', rows_per_part, 1)
        self._whole_number('part', part, 0, -(-num_rows // rows_per_part) - 1)
        self._whole_number('seed', seed, 0, MAX_SEED)
        if not all(isinstance(condition, Condition) for condition in conditions):
            raise InvalidParameterError(
                'conditions must be of the class sdv.sampling.Condition, received '
                f'{[type(condition).__name__ for condition in conditions]}.'
            )
        rows = sum(condition.get_num_rows() for condition in conditions)
        if conditions and rows != num_rows:
            raise InvalidParameterError(
                f'num_rows must be the sum of the rows of the conditions, {rows}, received '
                f'{num_rows}.'
            )
        formats = key_formats(self._data_processor, self._table_name)
        for name, ids in formats.items():
            if ids is not None and ids.size < num_rows:
                raise InvalidParameterError(
                    f"Table '{self._table_name}', column '{name}': its format makes {ids.size} "
                    f'different values, num_rows is {num_rows}. Give it a longer regex_format in '
                    'the metadata, and fit again.'
                )
        for condition in conditions:
            for name in formats.keys() & condition.get_column_values().keys():
                raise InvalidParameterError(
                    f"Table '{self._table_name}', column '{name}': a value that may not repeat "
                    'cannot be a condition. Leave it out.'
                )
        one_of_each = [Condition(c.get_column_values(), num_rows=1) for c in conditions]
        self._validate_conditions(self._make_condition_dfs(one_of_each))
        return formats

    def _drawer(self, seed: str, keys: list[str]) -> 'NVIBSynthesizer':
        """This synthesizer with generators of its own; it counts in place of making keys."""
        drawer = copy.copy(self)
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], 'big') // 2
        drawer._data_processor = copy.deepcopy(self._data_processor)
        skip_keys(drawer._data_processor, keys)
        seed_generators(drawer._data_processor, number)
        drawer._model = self._model.with_random_state(number)
        drawer._random_state_set = True
        return drawer

    def _draw_all(
        self, num_rows: int, conditions: Sequence[Condition], max_tries: int
    ) -> pd.DataFrame:
        """Exactly so many rows, under conditions if there are any."""
        if conditions:
            drawn = [  # SDV would put conditions on the same columns together
                self._sample_with_conditions(rows, max_tries, None)
                for condition in conditions
                for rows in self._make_condition_dfs([condition])
            ]
            table = pd.concat(drawn, ignore_index=True)
        else:
            table = self._sample_in_batches(num_rows, num_rows, max_tries)
        if len(table) < num_rows:
            raise ConditionError(
                f"Table '{self._table_name}': constraints and conditions let {len(table)} of "
                f'{num_rows} rows through in {max_tries} tries. Raise max_tries_per_batch, or ask '
                'for something likelier.'
            )
        return table

    @staticmethod
    def _whole_number(
        name: str, value: Any, least: int, most: int | None = None, remedy: str = ''
    ) -> None:
        is_number = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_number or value < least or (most is not None and value > most):
            until = '' if most is None else f' and at most {most}'
            how = f' Give {remedy}.' if remedy else ''
            raise InvalidParameterError(
                f'{name} must be a whole number of at least {least}{until}, received {value!r}.'
                + how
            )

    def _fingerprint(self) -> str:
        """What decides the rows that this synthesizer draws, but for versions and device."""
        columns, arrays = store_schema(self._schema, repr)
        _, weights = store_model(self._model)
        transformers = self._data_processor._hyper_transformer.field_transformers
        documents = [
            self._deciding_parameters(),
            columns,
            self._original_metadata.to_dict(),
            [constraint.get_constraint_dict() for constraint in self.get_constraints()],
            [[name, repr(transformer)] for name, transformer in transformers.items()],
            self._column_order,
        ]
        return fingerprint(documents, {**arrays, **weights})

    # Conditions

    def sample_from_conditions(
        self,
        conditions: list[Condition | DataFrameCondition],
        max_tries_per_batch: int = 100,
        batch_size: int | None = None,
        output_folder_path: str | None = None,
    ) -> dict[str, pd.DataFrame]:
        """Sample rows with given values; the arguments are SDV's.

        The given values of a row come first in its column order: nothing is drawn in vain, and
        all rows are drawn together. Draws are tried again, and rows left out with SDV's warning
        after the last try, only where a constraint rejects them, and where just some of the
        columns that a constraint replaces are given (the lowest of an inequality or a range is
        known to the model by itself).

        Args:
            conditions: Values of columns with a number of rows, or tables of them.
            max_tries_per_batch: Most draws of a batch, of which all but the first are for rows that
                constraints, or conditions that only rejection can meet, have rejected.
            batch_size: Rows in a batch; `None` for all.
            output_folder_path: Folder with a CSV file that accepted rows are written to, batch by
                batch; after an error they are there.

        Returns:
            Table name to the sampled table; rows of conditions on the same columns together.

        Raises:
            UnknownValueError: A value that the model cannot make.
            ConditionError: Given values break a constraint.
            ValueError: A column is not there or is the primary key, or no row could be sampled.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> paid = Condition({'paid': True}, num_rows=3)
            >>> synthesizer.sample_from_conditions([paid])['people']['paid'].tolist()
            [True, True, True]
        """
        with _telling_why():
            return super().sample_from_conditions(
                conditions, max_tries_per_batch, batch_size, output_folder_path
            )

    def sample_remaining_columns(
        self,
        known_columns: pd.DataFrame,
        max_tries_per_batch: int = 100,
        batch_size: int | None = None,
        output_folder_path: str | None = None,
    ) -> dict[str, pd.DataFrame]:
        """Sample the other columns of rows; the arguments are SDV's.

        As `sample_from_conditions`, with another condition in every row if need be.

        Args:
            known_columns: The given values, a missing one too where it is NaN or None.
            max_tries_per_batch: Most draws of a batch, of which all but the first are for rows that
                constraints, or conditions that only rejection can meet, have rejected.
            batch_size: Rows in a batch; `None` for all.
            output_folder_path: Folder with a CSV file that accepted rows are written to, batch by
                batch; after an error they are there.

        Returns:
            Table name to the sampled table, with the index of `known_columns`.

        Raises:
            UnknownValueError: A value that the model cannot make.
            ConditionError: Given values break a constraint.
            ValueError: A column is not there or is the primary key, or no row could be sampled.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> known = pd.DataFrame({'age': [22, 45]})
            >>> synthesizer.sample_remaining_columns(known)['people']['age'].tolist()
            [22, 45]
        """
        with _telling_why():
            return super().sample_remaining_columns(
                known_columns, max_tries_per_batch, batch_size, output_folder_path
            )

    def _validate_known_columns(self, conditions: pd.DataFrame) -> None:
        self._validate_fit_before_sample()  # SDV does not ask here
        super()._validate_known_columns(conditions)

    def _validate_conditions_unseen_columns(self, conditions: pd.DataFrame) -> None:
        """Refuse what cannot be met before anything is sampled, so that the error says why."""
        super()._validate_conditions_unseen_columns(conditions)
        self._require_whole(conditions)
        self._require_range(conditions)
        self._know(conditions, pd.DataFrame(True, conditions.index, conditions.columns))

    def _know(self, table: pd.DataFrame, given: pd.DataFrame) -> tuple[KnownRows, set[Hashable]]:
        """What the model can be told of rows, and the columns that are left to rejection.

        A constraint that replaces columns by others is applied to the rows in which all of them
        are given. In other rows they are left to rejection, but for the lowest column of an
        inequality or a range where no row has all of them.

        Args:
            table: N rows of some of the original columns.
            given: Which of its cells are given, of the same shape; a given cell may be missing.

        Raises:
            UnknownValueError: A given value is not one that the model can make.
            ConditionError: Given values break a constraint.
        """
        table, given = table.reset_index(drop=True), given.reset_index(drop=True)
        for name in table.select_dtypes(object):  # RDT makes no float of pandas.NA
            table[name] = table[name].where(table[name].notna(), np.nan)
        for name in table.select_dtypes(['datetime', 'datetimetz']):
            table[name] = table[name].dt.as_unit('ns')  # SDV's constraints count them in these
        sources: dict[Hashable, set[Hashable]] = {name: {name} for name in table}
        rejected: set[Hashable] = set()
        for constraint, before, after in self._changes(self._chained_constraints):
            replaced = {name for name in before if before[name] != after.get(name)}
            present = [name for name in table if name in replaced]
            source = {name for column in present for name in sources[column]}
            # SDV's constraints put means in place of missing values, which then are not known.
            is_known = given[present] & table[present].notna()
            whole = is_known.all(axis=1) & (len(present) == len(replaced))
            if isinstance(constraint, ProgrammableConstraintHarness):
                # One of the user's own may read and change any column: all have to be compared.
                whole &= False
                rejected |= {name for column in table for name in sources[column]}
            told: dict[Any, tuple[pd.Series, pd.Series]] = {}
            kept = lowest_columns([constraint])  # these keep their values, under another name
            if whole.any():
                transformed = self._transform_valid(constraint, table[whole])
                for column in transformed.columns.difference(table.columns, sort=False):
                    told[column] = transformed[column], whole
            else:
                for name in present:
                    if name in kept:
                        told[kept[name]] = table[name], is_known[name]
            for name in present:
                is_met = told[kept[name]][1] if kept.get(name) in told else whole
                if (given[name] & ~is_met).any():
                    rejected |= sources[name]
            table, given = table.drop(columns=present), given.drop(columns=present)
            for column, (values, where) in told.items():
                table[column], given[column], sources[column] = values, where, source
        processed = []
        for name in table:
            cells = table.loc[given[name], [name]]
            parts = self._data_processor.transform(cells, is_condition=True) if len(cells) else {}
            processed += [values for _, values in parts.items()]
            if self.generation == 'single-pass' and set(parts) & set(self._schema.names):
                rejected |= sources[name]
        known = self._schema.encode_known(len(table), processed)
        if self.generation == 'single-pass':
            known = self._schema.encode_known(len(table), [])
        # Personal data is not drawn: it is put in its place.
        return known, set(self._drawn_columns(rejected))

    def _changes(self, constraints: Sequence) -> Iterator[tuple[Any, dict, dict]]:
        """Each of a chain of constraints, and the table's columns before and after it."""
        metadata = self._original_metadata
        for constraint in constraints:
            before = metadata.tables[self._table_name].columns
            metadata = constraint.get_updated_metadata(metadata)
            yield constraint, before, metadata.tables[self._table_name].columns

    def _transform_valid(self, constraint: Any, rows: pd.DataFrame) -> pd.DataFrame:
        is_valid = constraint.is_valid(rows)
        if not is_valid.all():
            name = type(getattr(constraint, 'programmable_constraint', constraint)).__name__
            raise ConditionError(
                f"Table '{self._table_name}': given values must hold to the constraint {name}, "
                f'{int((~is_valid).sum())} row(s) do not, the first is '
                f'{rows[~is_valid].iloc[0].to_dict()}. Change these values, or leave some of them '
                'out.'
            )
        return constraint.transform(rows)

    def _require_whole(self, table: pd.DataFrame) -> None:
        """Refuse fractions in columns that are drawn as whole numbers."""
        columns = self._original_metadata.tables[self._table_name].columns
        transformers = self._data_processor._hyper_transformer.field_transformers
        dtypes = dict(self._data_processor._dtypes)
        for constraint in self._chained_constraints[:1]:  # it knows the columns it replaces
            dtypes |= constraint._dtypes[self._table_name]
        for name in table:
            is_integer = pd.api.types.is_integer_dtype(dtypes[name])
            is_rounded = getattr(transformers.get(name), '_rounding_digits', None) == 0
            if columns[name]['sdtype'] != 'numerical' or not (is_integer or is_rounded):
                continue
            numbers = self._numbers(table[name])
            fractions = numbers[numbers % 1 > 0]
            if len(fractions):
                value = fractions.iloc[0]
                remedy = '' if is_integer else ', or fit with enforce_rounding=False'
                raise UnknownValueError(
                    f"Table '{self._table_name}', column '{name}': a condition must be a whole "
                    'number, as all numbers of the training data are, received '
                    f'{value}. Give {math.floor(value)} or {math.ceil(value)}{remedy}.'
                )

    def _require_range(self, table: pd.DataFrame) -> None:
        """Refuse dates that are none, and numbers outside the range seen in `fit`, when clipped."""
        transformers = self._data_processor._hyper_transformer.field_transformers
        lowest = lowest_columns(self._chained_constraints)
        for name in table:
            # Inequality and Range keep the values of their lowest column, under another name.
            transformer = transformers.get(name if name in transformers else lowest.get(name))
            if isinstance(transformer, DateEncoder):
                self._require_dates(table[name], transformer)
            if not isinstance(transformer, FloatFormatter) or not self.enforce_min_max_values:
                continue
            numbers = self._numbers(table[name])
            low, high = transformer._min_value, transformer._max_value
            outside = numbers[(numbers < low) | (numbers > high)]
            if len(outside):
                raise UnknownValueError(
                    f"Table '{self._table_name}', column '{name}': with enforce_min_max_values a "
                    f'condition must be in the range of the training data, [{low}, {high}], '
                    f'received {outside.iloc[0]}. Give a value in this range, or fit with '
                    'enforce_min_max_values=False.'
                )

    def _numbers(self, values: pd.Series) -> pd.Series:
        """Conditions on a column of numbers, as numbers."""
        numbers = pd.to_numeric(values, errors='coerce')
        others = values[numbers.isna() & values.notna()]
        if len(others):
            raise UnknownValueError(
                f"Table '{self._table_name}', column '{values.name}': a condition must be a "
                f'number, received {others.iloc[0]!r}. Give a number.'
            )
        return numbers

    def _require_dates(self, values: pd.Series, transformer: DateEncoder) -> None:
        try:
            transformer._convert_to_datetime(values)
        except (TypeError, ValueError) as error:
            if len(values) > 1:  # which of them?
                for place in range(len(values)):
                    self._require_dates(values.iloc[[place]], transformer)
            raise UnknownValueError(
                f"Table '{self._table_name}', column '{values.name}': a condition must be a date "
                f'in the format {transformer.datetime_format!r} and in the range of nanoseconds, '
                f'received {values.iloc[0]!r}. Write it as in the training data.'
            ) from error

    def _sample_with_conditions(
        self,
        conditions: pd.DataFrame,
        max_tries_per_batch: int,
        batch_size: int | None,
        progress_bar: tqdm | None = None,
        output_file_path: str | None = None,
        keep_extra_columns: bool = False,
    ) -> pd.DataFrame:
        """Rows that meet conditions, all different if need be, with the conditions' index.

        In place of SDV's loop over unique conditions: whole batches at once, and further tries
        only for rows that constraints or conditions unknown to the model have rejected.
        """
        given = pd.DataFrame(True, conditions.index, conditions.columns)
        accepted = []
        for rows in self._complete(
            conditions, given, max_tries_per_batch, batch_size, keep_extra_columns
        ):
            accepted.append(rows)
            if output_file_path:
                is_first = not os.path.exists(output_file_path) or not os.path.getsize(
                    output_file_path
                )
                rows.to_csv(output_file_path, index=False, mode='a', header=is_first)
            if progress_bar is not None:
                progress_bar.update(len(rows))
        if not accepted:
            return pd.DataFrame()
        sampled = pd.concat(accepted).sort_index()
        return sampled.set_axis(conditions.index[sampled.index])

    def _complete(
        self,
        table: pd.DataFrame,
        given: pd.DataFrame,
        max_tries: int,
        batch_size: int | None = None,
        keep_extra_columns: bool = False,
        fill_missing: bool = False,
    ) -> Iterator[pd.DataFrame]:
        """Draw what is not given of rows, try by try, and yield the accepted rows of each try.

        Args:
            table: N rows of some of the original columns.
            given: Which of its cells are given, of the same shape; a given cell may be missing.
            max_tries: Most draws of each batch.
            batch_size: Rows in a batch; `None` for all.
            keep_extra_columns: SDV's, of multi-table synthesizers.
            fill_missing: Reject rows in which a cell of `table` that is not given is missing.

        Yields:
            Complete rows, indexed by the number of their row in `table`.
        """
        known, rejected = self._know(table, given)
        same = table.where(given).assign(**{f'{name} given': given[name] for name in given})
        groups = same.groupby(list(same.columns), dropna=False, sort=False).ngroup().to_numpy()
        to_meet = [name for name in table if name in rejected]
        batch_size = batch_size or max(1, len(table))
        for start in range(0, len(table), batch_size):
            open_rows = np.arange(start, min(start + batch_size, len(table)))
            limit, num_draws = 10 * len(open_rows), len(open_rows)
            for _ in range(max_tries):
                rows = np.resize(open_rows, num_draws)
                drawn, _ = self._sample_rows(
                    len(rows), {}, known.take(rows), keep_extra_columns=keep_extra_columns
                )
                rows = rows[drawn.index]
                is_met = meets(drawn, table.iloc[rows], given.iloc[rows], to_meet)
                if fill_missing:
                    holes = drawn[table.columns].isna().to_numpy()
                    is_met &= ~(holes & ~given.to_numpy()[rows]).any(axis=1)
                drawn = self._with_given(drawn[is_met].set_axis(rows[is_met]), table, given)
                # A number near the given one held to the constraints; the given one may not.
                drawn = drawn[self._are_valid(drawn)]
                served, draws = assign_draws(groups[open_rows], groups[drawn.index])
                valid_rate = max(1, len(drawn)) / num_draws
                if len(served):
                    yield drawn.iloc[draws].set_axis(open_rows[served])
                open_rows = np.delete(open_rows, served)
                if not len(open_rows):
                    break
                num_draws = min(limit, int(len(open_rows) / valid_rate))

    def _are_valid(self, rows: pd.DataFrame) -> np.ndarray:
        """Which complete rows hold to all constraints, `(N,)`."""
        table, names = rows.reset_index(drop=True), set(rows)
        is_valid = np.ones(len(rows), dtype=bool)
        for constraint in self._reject_sampling_constraints:
            is_valid &= np.asarray(constraint.is_valid(table))
        for number, constraint in enumerate(self._chained_constraints):
            chosen = table[is_valid]
            if number and not names.issuperset(constrained_columns(constraint) or [None]):
                for before in self._chained_constraints[:number] if len(chosen) else ():
                    chosen = before.transform(chosen)
            if len(chosen):
                is_valid[is_valid] = np.asarray(constraint.is_valid(chosen))
        return is_valid

    def _with_given(
        self, drawn: pd.DataFrame, table: pd.DataFrame, given: pd.DataFrame
    ) -> pd.DataFrame:
        """Drawn rows, indexed by their rows in `table`, with the given cells exactly as given."""
        columns = self._original_metadata.tables[self._table_name].columns
        for name in table:
            wanted, places = table[name].iloc[drawn.index], given[name].to_numpy()[drawn.index]
            if columns[name]['sdtype'] == 'datetime' and wanted.dtype != drawn[name].dtype:
                form = columns[name].get('datetime_format')
                if not form and not pd.api.types.is_datetime64_any_dtype(drawn[name]):
                    continue  # the drawn date is the given one, written as the others are
                wanted = dates_as(drawn[name].dtype, wanted, form)
            drawn[name] = with_given_values(drawn[name], wanted, places)
        return drawn

    # Rows in, something else about them out

    def _encode_table(self, data: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, Any, np.ndarray]:
        """A valid table, a data processor to use with it, and its token ids, `(N, n)`."""
        table = self._valid_table(data)
        processor = copy.deepcopy(self._data_processor)  # keys' generators must not advance
        transformed = processor.transform(self._validate_transform_constraints(table))
        return table, processor, self._schema.encode(transformed)

    def _drawn_columns(self, names: Iterable[Hashable]) -> list[Hashable]:
        """Those of the original columns that are drawn; ids and personal data are made anew."""
        transformers = self._data_processor._hyper_transformer.field_transformers
        made = {name for name, t in transformers.items() if t is not None and t.is_generator()}
        return [name for name in names if name not in made]

    def _require_tables(self, data: Any) -> None:
        """Refuse anything but a dictionary of tables, as which SDV takes a single one too."""
        received = [f'a {type(data).__name__}']
        if isinstance(data, dict):
            others = [table for table in data.values() if not isinstance(table, pd.DataFrame)]
            received = [f'one with a {type(table).__name__}' for table in others]
        if received:
            raise InvalidTableError(
                'Data must be a dictionary of table names to DataFrames, received '
                f'{received[0]}. Hand in {{{self._table_name!r}: table}}.'
            )

    def _table_of(self, data: dict[str, pd.DataFrame] | pd.DataFrame) -> pd.DataFrame:
        """The table that was handed in, by itself or under its name."""
        if isinstance(data, pd.DataFrame):
            return data
        self._require_tables(data)
        if self._table_name not in data:
            raise InvalidTableError(
                f"Data must have table '{self._table_name}', received {sorted(map(str, data))}. "
                f'Hand in {{{self._table_name!r}: table}}.'
            )
        return data[self._table_name]

    def _valid_table(
        self, data: dict[str, pd.DataFrame], *, incomplete: bool = False
    ) -> pd.DataFrame:
        self._validate_fit_before_sample()
        self._require_tables(data)
        # SDV calls integer columns by strings.
        named = {name: table.rename(columns=str) for name, table in data.items()}
        metadata = self._original_metadata
        if incomplete:  # detected metadata forbid missing values where there were none
            described = metadata.to_dict()
            for column in described['tables'][self._table_name]['columns'].values():
                column.pop('range_is_nullable', None)
            metadata = Metadata.load_from_dict(described)
        metadata.validate_data(named)
        return named[self._table_name]

    def impute(
        self,
        data: dict[str, pd.DataFrame],
        num_imputations: int | None = None,
        *,
        method: str = 'sample',
        max_tries: int = 100,
    ) -> dict[str, pd.DataFrame] | list[dict[str, pd.DataFrame]]:
        """Fill missing values in, given the observed values of their row.

        Observed cells stay untouched. Ids and personal data are not modelled and stay as given,
        and so does a column that had no value at all in `fit`.

        Args:
            data: Table name to a table of N rows.
            num_imputations: How many filled tables to return, in a list; `None` for one table.
            method: 'sample', every missing value drawn; or 'mean', of 25 draws the mean of
                numbers, the middle of dates and the most frequent of all others.
            max_tries: Most draws of a row where constraints reject draws.

        Returns:
            Table name to the filled table, or a list of these.

        Raises:
            InvalidParameterError: An argument is out of its range.
            UnknownValueError: An observed value that the model has no token for.
            ConditionError: No draw of some row holds to the constraints.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, None, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> int(synthesizer.impute({'people': table})['people']['age'].isna().sum())
            0
        """
        table = self._valid_table(data, incomplete=True)
        if method not in IMPUTATIONS:
            raise InvalidParameterError(
                f'method must be one of {IMPUTATIONS}, received {method!r}.'
            )
        if num_imputations is not None and num_imputations < 1:
            raise InvalidParameterError(
                f'num_imputations must be at least 1, or None for one table, received '
                f'{num_imputations!r}.'
            )
        empty = {c.name for c in self._schema.columns if c.has_missing and c.num_tokens == 1}
        names = [name for name in self._drawn_columns(table) if name not in empty]
        holes = table[names].isna()
        rows = np.flatnonzero(holes.any(axis=1))
        filled = []
        for _ in range(num_imputations or 1):
            result = table.copy()
            if len(rows):
                draws = self._fill(table[names].iloc[rows], method, max_tries)
                for name in names:
                    values = draws[name].set_axis(table.index[rows])
                    places = holes[name].to_numpy()
                    wanted = values.set_axis(rows).reindex(range(len(table)))
                    result[name] = with_given_values(
                        table[name], wanted.set_axis(table.index), places
                    )
            columns = data[self._table_name].columns
            filled.append({self._table_name: result.set_axis(columns, axis=1)})
        return filled[0] if num_imputations is None else filled

    def _fill(self, table: pd.DataFrame, method: str, max_tries: int) -> pd.DataFrame:
        """Complete rows for incomplete ones, in their order."""
        num_draws = MEAN_DRAWS if method == 'mean' else 1
        repeated = table.iloc[np.tile(np.arange(len(table)), num_draws)]
        with self._steered(exclude_missing=True):
            tries = self._complete(repeated, repeated.notna(), max_tries, fill_missing=True)
            accepted = list(tries)
        draws = pd.concat(accepted).sort_index() if accepted else table.iloc[:0]
        if len(draws) < len(repeated):
            raise ConditionError(
                f"Table '{self._table_name}': filled rows must hold to the constraints, and "
                f'{len(repeated) - len(draws)} of {len(repeated)} draws did not in {max_tries} '
                'tries. Raise max_tries, or look for observed values that leave no choice.'
            )
        if method == 'sample':
            return draws
        groups = draws.groupby(draws.index % len(table))
        columns = self._original_metadata.tables[self._table_name].columns
        return pd.DataFrame(
            {name: self._middle(groups[str(name)], columns[name]) for name in table},
            index=range(len(table)),
        )

    @staticmethod
    def _middle(groups: Any, column: dict[str, Any]) -> pd.Series:
        """One value for several drawn ones of each row."""
        if column['sdtype'] == 'numerical':
            return groups.mean()

        def middle_date(values: pd.Series) -> Any:
            dates = pd.to_datetime(values, format=column.get('datetime_format'))
            return values.iloc[np.argsort(dates.to_numpy())[len(values) // 2]]

        if column['sdtype'] == 'datetime':
            return groups.agg(middle_date)
        return groups.agg(lambda values: values.value_counts().index[0])

    def log_likelihood(
        self, data: dict[str, pd.DataFrame], *, num_orders: int = 8, per_column: bool = False
    ) -> pd.Series | pd.DataFrame:
        """How likely rows are to the model, in nats: the lower, the more of an anomaly.

        The mean over random column orders of the sum over columns of ln p(value | values before
        it), with F read as in `sample`: a lower bound on ln p(row). Numbers count by their bin, so
        that tables with other bins do not compare. The same rows give the same numbers every time.

        Args:
            data: Table name to a table of N rows.
            num_orders: Column orders per row; more are less noisy, and take longer.
            per_column: Return the terms of the sum.

        Returns:
            `(N,)` with the table's index; with `per_column` a table of one column for each
            modelled one.

        Raises:
            InvalidParameterError: `num_orders` is below 1, or generation is single-pass, which
                has no such conditionals.
            UnknownValueError: A value that the training data did not have.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> bool((synthesizer.log_likelihood({'people': table}) < 0).all())
            True
        """
        self._require_any_order('log_likelihood')
        table, _, tokens = self._encode_table(data)
        self._whole_number('num_orders', num_orders, 1)
        terms = self._model.log_likelihood(tokens, num_orders)
        if per_column:
            return pd.DataFrame(terms, index=table.index, columns=self._schema.names)
        return pd.Series(terms.sum(1), index=table.index, name='log_likelihood')

    def _require_any_order(self, method: str) -> None:
        if self.generation != 'any-order':
            raise InvalidParameterError(
                f"{method} needs generation='any-order', received {self.generation!r}. Fit a "
                'synthesizer with that.'
            )

    def encode(self, data: dict[str, pd.DataFrame], *, num_orders: int = 8) -> RowEncoding:
        """What the bottleneck keeps of rows: a Gaussian component per column, and an embedding.

        Args:
            data: Table name to a table of N rows.
            num_orders: Column orders that components are averaged over, in any-order generation.

        Raises:
            InvalidParameterError: `num_orders` is below 1.
            UnknownValueError: A value that the training data did not have.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> synthesizer.encode({'people': table}).embedding.shape
            (80, 64)
        """
        _, _, tokens = self._encode_table(data)
        self._whole_number('num_orders', num_orders, 1)
        mixture = self._model.encode(tokens, num_orders)
        parts = (mixture.mu, mixture.logvar, mixture.alpha)
        return RowEncoding(tuple(self._schema.names), *(part.numpy() for part in parts))

    def attention_weights(self, data: dict[str, pd.DataFrame]) -> pd.DataFrame:
        """Which columns the decoder reads when it answers for a column: evaluation attention.

        Each column is asked as in `reconstruct`: in any-order generation of F of all other columns,
        in single-pass generation of all of F. A weight says what was read, not what decided.

        Args:
            data: Table name to a table of N rows; a single row for a map of that row.

        Returns:
            A row for each column asked, with the share of its attention that goes to the prior
            component, '(prior)', and to the component of each column: means over the rows given,
            the heads and the decoder layers. Rows sum to 1.

        Raises:
            InvalidTableError: The table has no rows.
            UnknownValueError: A value that the training data did not have.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> weights = synthesizer.attention_weights({'people': table})
            >>> list(weights.columns), float(weights.loc['age', 'age'])
            (['(prior)', 'age', 'paid'], 0.0)
        """
        _, _, tokens = self._encode_table(data)
        if not len(tokens):
            raise InvalidTableError(
                f"Table '{self._table_name}' must have at least one row, it has none. Give rows to "
                'take the mean over.'
            )
        names = list(self._schema.names)
        weights = self._model.attention_weights(tokens)
        return pd.DataFrame(weights, index=names, columns=['(prior)', *names])

    def sample_similar(
        self, data: dict[str, pd.DataFrame], variety: float = 0.5, *, max_tries: int = 100
    ) -> dict[str, pd.DataFrame]:
        """Draw a row like each of the given ones.

        Each value is left in F with probability 1 − `variety`; the others are drawn from F of
        those left. Which cells are left follows from `seed` and the row's place in the table: for
        several rows like one of them, repeat it in the table.

        Args:
            data: Table name to a table of N rows.
            variety: From 0, the same rows but for ids and personal data, to 1, unrelated ones.
            max_tries: Most draws of a row where constraints reject draws.

        Returns:
            Table name to N rows with the index given; without those that constraints rejected.

        Raises:
            InvalidParameterError: `variety` is not in [0, 1].
            UnknownValueError: A value that the training data did not have.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> synthesizer.sample_similar({'people': table}, variety=0)['people'].equals(table)
            True
        """
        table = self._valid_table(data)
        self._require_any_order('sample_similar')
        if not isinstance(variety, int | float) or not 0 <= variety <= 1:
            raise InvalidParameterError(f'variety must be in [0, 1], received {variety!r}.')
        left = self._positions(table) >= variety
        return self._varied(data, table[left.columns], left, max_tries)

    def sample_between(
        self,
        data: dict[str, pd.DataFrame],
        other: dict[str, pd.DataFrame],
        position: float = 0.5,
        *,
        max_tries: int = 100,
    ) -> dict[str, pd.DataFrame]:
        """Draw a row between each of the given ones and its counterpart.

        F of the new row is a draw from both rows' mixtures. Like every F that the decoder reads it
        has one component per column at most: that of the row in `data` with probability
        (1 − t)² at position t, that of the row in `other` with probability t². The columns left,
        half of them at t = ½, are drawn from it. From 0 to 1 each cell changes once from the one
        row's value to drawn ones, and once to the other row's value.

        Args:
            data: Table name to a table of N rows.
            other: Table name to N other rows, the counterparts in the same order.
            position: From 0, the rows of `data` but for ids and personal data, to 1, those of
                `other`.
            max_tries: Most draws of a row where constraints reject draws.

        Returns:
            Table name to N rows with the index of `data`; without those that constraints rejected.

        Raises:
            InvalidParameterError: `position` is not in [0, 1], the tables have not as many rows,
                or generation is single-pass.
            UnknownValueError: A value that the training data did not have.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> first, last = ({'people': rows} for rows in (table.head(2), table.tail(2)))
            >>> synthesizer.sample_between(first, last, position=1.0)['people']
               age   paid
            0   38   True
            1   22  False
        """
        tables = [self._valid_table(each) for each in (data, other)]
        self._require_any_order('sample_between')
        if not isinstance(position, int | float) or not 0 <= position <= 1:
            raise InvalidParameterError(f'position must be in [0, 1], received {position!r}.')
        num_rows = len(tables[0])
        if len(tables[1]) != num_rows:
            raise InvalidParameterError(
                f'other must have as many rows as data, {num_rows}, received {len(tables[1])}. '
                'Choose a counterpart for each row.'
            )
        cells = self._positions(tables[0])
        is_first, is_last = cells < (1 - position) ** 2, cells >= 1 - position**2
        both = pd.concat([table[cells.columns] for table in tables], ignore_index=True)
        chosen = np.arange(num_rows)[:, None] + num_rows * is_last.to_numpy()
        mixed = pd.DataFrame(
            {name: both[name].take(rows).array for name, rows in zip(cells, chosen.T, strict=True)},
            index=cells.index,
        )
        return self._varied(data, mixed, is_first | is_last, max_tries)

    def _positions(self, table: pd.DataFrame) -> pd.DataFrame:
        """A number in [0, 1) for each cell that is drawn, which decides when it is left out of F.

        The same for columns that a constraint ties together: they stay or go together, since a
        part of them would be left to rejection, and parts of two rows might break the constraint.
        """
        names = self._drawn_columns(table)
        rng = np.random.default_rng(self.seed)
        cells = pd.DataFrame(rng.random((len(table), len(names))), table.index, pd.Index(names))
        for tied in self._tied_columns():
            together = [name for name in names if name in tied]
            for name in together[1:]:
                cells[name] = cells[together[0]]
        return cells

    def _tied_columns(self) -> list[set[Hashable]]:
        """Sets of original columns that constraints replace, or reject, together."""
        groups: list[set[Hashable]] = []
        rejecting = [[constraint] for constraint in self._reject_sampling_constraints]
        for chain in [self._chained_constraints, *rejecting]:
            sources: dict[Hashable, set[Hashable]] = {}
            for _, before, after in self._changes(chain):
                changed = {name for name in before if before[name] != after.get(name)}
                tied = {name for column in changed for name in sources.get(column, {column})}
                sources |= {name: tied for name in after if name not in before}
                touched = [group for group in groups if group & tied]
                groups = [group for group in groups if not group & tied]
                groups.append(tied.union(*touched))
        return groups

    def _varied(
        self,
        data: dict[str, pd.DataFrame],
        table: pd.DataFrame,
        left: pd.DataFrame,
        max_tries: int,
    ) -> dict[str, pd.DataFrame]:
        """Rows of `table` with the cells `left` in F and the others drawn; ids are made anew."""
        accepted = list(self._complete(table, left, max_tries))
        none = table.iloc[:0].reset_index(drop=True)
        drawn = pd.concat(accepted).sort_index() if accepted else none
        names = data[self._table_name].columns
        drawn = drawn.set_axis(table.index[drawn.index]).reindex(columns=names.map(str))
        return {self._table_name: drawn.set_axis(names, axis=1)}

    def reconstruct(self, data: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """Pass rows through the bottleneck and decode them, deterministically.

        F is the encoder's output, read by evaluation attention, and every column is its most
        likely value: in single-pass generation given F of the whole row, in any-order generation
        given F of all other columns. Ids and personal data are not modelled and stay as given.

        Args:
            data: Table name to a table of N rows.

        Returns:
            Table name to the reconstructed table, with the columns and the index given; rows whose
            reconstruction breaks a constraint are left out.

        Raises:
            NotFittedError: Nothing has been fitted yet.
            UnknownValueError: A value that the training data did not have.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> rebuilt = synthesizer.reconstruct({'people': table})['people']
            >>> rebuilt.shape
            (80, 2)
        """
        table, processor, rows = self._encode_table(data)
        tokens = self._model.reconstruct(rows)
        processed = self._schema.decode_median(tokens)
        rebuilt = self.reverse_transform_constraints(processor.reverse_transform(processed))
        result = table.iloc[rebuilt.index].copy()
        transformers = processor._hyper_transformer.field_transformers
        for name in rebuilt.columns.intersection(table.columns, sort=False):
            transformer = transformers.get(name)
            if transformer is None or not transformer.is_generator():
                result[name] = rebuilt[name].array
        return {self._table_name: result.set_axis(data[self._table_name].columns, axis=1)}

    def evaluate(
        self,
        real_data: dict[str, pd.DataFrame] | pd.DataFrame,
        num_rows: int | None = None,
        *,
        test: dict[str, pd.DataFrame] | pd.DataFrame | None = None,
        target: str | None = None,
        sensitive: list[str] | None = None,
        known: list[str] | None = None,
        verbose: bool = False,
    ) -> QualityEvaluation:
        """Sample rows and score them against real ones.

        Args:
            real_data: The real table, usually the one fitted on.
            num_rows: Rows to sample; as many as the real table has when `None`.
            test: Real rows that were not fitted on, for utility and privacy.
            target: Column to predict, for utility.
            sensitive: Columns that an attacker may want to know, for disclosure protection.
            known: Columns that the attacker knows; `None` for all that are not sensitive.
            verbose: Show progress lines.

        Returns:
            SDMetrics' quality and diagnostic reports and a summary of all measures.

        Raises:
            NotFittedError: Nothing has been fitted yet.
        """
        real = self._table_of(real_data)
        test = None if test is None else self._table_of(test)
        synthetic = self._sample_to_score(len(real) if num_rows is None else num_rows, verbose)
        return self._score(real, synthetic, test, target, (sensitive, known), verbose)

    def _sample_to_score(self, num_rows: int, verbose: bool) -> pd.DataFrame:
        """The table that `sample` draws, with SDV's progress line where it was asked for."""
        self._validate_fit_before_sample()
        rows = self._sample_with_progress_bar(num_rows, show_progress_bar=verbose)
        return (
            rows if self._original_columns.empty else rows.set_axis(self._original_columns, axis=1)
        )

    def _score(
        self,
        real: pd.DataFrame,
        synthetic: pd.DataFrame,
        test: pd.DataFrame | None,
        target: str | None,
        attack: tuple[list[str] | None, list[str] | None],
        verbose: bool,
    ) -> QualityEvaluation:
        """Score rows, and add what the model gives away."""
        evaluation = evaluate_quality(
            real,
            synthetic,
            Metadata.load_from_dict(self._original_metadata.to_dict()),
            test=test,
            target=target,
            sensitive=attack[0],
            known=attack[1],
            seed=self.seed,
            verbose=verbose,
        )
        summary = pd.concat([evaluation.summary, self._privacy_of_model(real, test)])
        return replace(evaluation, summary=summary.reset_index(drop=True))

    def membership_inference(
        self,
        members: dict[str, pd.DataFrame],
        others: dict[str, pd.DataFrame],
        reference: 'NVIBSynthesizer | None' = None,
    ) -> MembershipInference:
        """Attack the model: take the rows that it finds likely for training rows.

        The attacker has the model itself, which says more than synthetic rows do. A row with a
        value that the model has no token for counts as the least likely.

        Args:
            members: Table name to rows that the model was fitted to.
            others: Table name to rows of the same kind that it was not fitted to.
            reference: A synthesizer fitted to neither: the attacker's own, whose likelihood says
                how likely a row is anyway. What this model adds to it is a stronger sign.

        Raises:
            NotFittedError: Nothing has been fitted yet.
            InvalidParameterError: One of the tables has no rows, or generation is single-pass,
                which has no likelihood of rows.

        Examples:
            >>> table = pd.DataFrame({'age': [31, 45, 38, 22] * 20, 'paid': [True, False] * 40})
            >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
            >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
            >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
            >>> synthesizer.fit({'people': table})
            >>> attack = synthesizer.membership_inference({'people': table}, {'people': table})
            >>> round(float(attack.auc), 2)  # the same rows cannot be told apart
            0.5
        """
        for each in (self, reference):
            if each is not None:
                each._require_any_order('membership_inference')
        for data in (members, others):
            self._require_tables(data)
        tables = [self._table_of(data) for data in (members, others)]
        scores = self._attack_scores(tables)
        if reference is not None:
            anyway = reference._attack_scores(tables)
            scores = [one - other for one, other in zip(scores, anyway, strict=True)]
        return membership_inference(*scores, seed=self.seed)

    def _attack_scores(self, tables: list[pd.DataFrame]) -> list[np.ndarray]:
        """Likelihoods of rows; those with a value that is new are the least likely of all."""
        self._validate_fit_before_sample()
        scores = [self._log_likelihood(table) for table in tables]
        least = min([0.0, *(one[np.isfinite(one)].min(initial=0.0) for one in scores)]) - 1.0
        return [np.maximum(one, least) for one in scores]

    def _log_likelihood(self, table: pd.DataFrame) -> np.ndarray:
        """A bound for each of at most `ATTACK_ROWS` rows, minus infinity where a value is new."""
        rows = table.rename(columns=str)
        if len(rows) > ATTACK_ROWS:
            rows = rows.sample(ATTACK_ROWS, random_state=np.random.RandomState(self.seed))
        processor = copy.deepcopy(self._data_processor)
        processed = processor.transform(self._validate_transform_constraints(rows))
        known = self._schema.knows(processed)
        scores = np.full(len(known), -np.inf)
        tokens = self._schema.encode(processed[known])
        scores[known] = self._model.log_likelihood(tokens, num_orders=4).sum(1)
        return scores

    def _privacy_of_model(self, real: pd.DataFrame, test: pd.DataFrame | None) -> pd.DataFrame:
        """What the model, not its rows, gives away: the summary's last rows."""
        rows = []
        if self._model.history:
            best = min(self._model.history, key=lambda r: r.validation_reconstruction)
            rows.append(
                (
                    'nats through the bottleneck',
                    best.nats,
                    math.nan,
                    'Per held-out row. Bounds what remembered posteriors, and rows made from them, '
                    'reveal of their source row; not what the weights have memorised.',
                )
            )
        spent = self._privacy_guarantee
        if spent is not None:
            rows.append(
                (
                    'differential privacy (epsilon)',
                    spent.epsilon,
                    math.nan,
                    f'Of model and synthetic rows, with delta {spent.delta:.2g}: {spent.steps} '
                    f'steps at sample rate {spent.sample_rate:.3g} and noise multiplier '
                    f'{spent.noise_multiplier:.3g}. The number of rows, the metadata and these '
                    'scores, which are taken from the real rows, are not protected.',
                )
            )
        values, note = (math.nan, math.nan), f'Not measured: {NEEDS_UNSEEN}'
        intervals = ['', '']
        if test is not None and self.generation != 'any-order':
            note = 'Not measured: single-pass generation has no likelihood of rows'
        elif test is not None:
            attack = self.membership_inference({self._table_name: real}, {self._table_name: test})
            values = (attack.auc, attack.tpr_at_1_percent)
            intervals = [
                f'; {interval_text(interval)}'
                for interval in (attack.auc_interval, attack.tpr_interval)
            ]
            note = 'An attacker with the model takes rows it finds likely for training rows'
        names = (LIKELIHOOD_AUC, LIKELIHOOD_TPR)
        for measure, value, ideal, interval in zip(
            names, values, (0.5, 0.01), intervals, strict=True
        ):
            rows.append((measure, value, ideal, f'{note}{interval}.'))
        return pd.DataFrame(rows, columns=['measure', 'value', 'ideal', 'meaning'])

    def write_report(
        self,
        path: str | Path,
        real_data: dict[str, pd.DataFrame] | pd.DataFrame,
        num_rows: int | None = None,
        *,
        test: dict[str, pd.DataFrame] | pd.DataFrame | None = None,
        target: str | None = None,
        sensitive: list[str] | None = None,
        known: list[str] | None = None,
        verbose: bool = False,
    ) -> QualityEvaluation:
        """Sample rows and write one HTML page about them, for readers who do not program.

        Args:
            path: File to write, replaced if it is there.
            real_data: The real table, usually the one fitted on.
            num_rows: Rows to sample; as many as the real table has when `None`.
            test: Real rows that were not fitted on; without them the page cannot judge privacy.
            target: Column to predict, for utility.
            sensitive: Columns that an attacker may want to know, for disclosure protection.
            known: Columns that the attacker knows; `None` for all that are not sensitive.
            verbose: Show progress lines.

        Returns:
            The scores on the page, as `evaluate` returns them.

        Raises:
            NotFittedError: Nothing has been fitted yet.
        """
        real = self._table_of(real_data)
        test = None if test is None else self._table_of(test)
        synthetic = self._sample_to_score(len(real) if num_rows is None else num_rows, verbose)
        return write_report(
            path,
            real,
            synthetic,
            Metadata.load_from_dict(self._original_metadata.to_dict()),
            evaluation=self._score(real, synthetic, test, target, (sensitive, known), verbose),
            test=test,
            target=target,
            sensitive=sensitive,
            known=known,
            seed=self.seed,
            history=self.get_loss_values() if self._model.history else None,
            parameters=self.get_parameters(),
            verbose=verbose,
        )


@contextmanager
def _telling_why() -> Iterator[None]:
    """Add the reason to the message of an error that SDV put in the place of another."""
    try:
        yield
    except Exception as error:
        if error.__cause__ is not None and str(error).startswith('Error: Sampling terminated'):
            error.args = (f'{error} {error.__cause__}',)
        raise


class _FitProgress:
    """One tqdm line over a fit: share done and time left, epoch, loss, reconstruction, KL."""

    def __init__(self, disable: bool) -> None:
        self._bar = tqdm(
            total=100,
            desc='Fitting',
            unit='%',
            disable=disable,
            bar_format='{l_bar}{bar}| [{elapsed}<{remaining}{postfix}]',
        )

    def __enter__(self) -> Callable[[EpochRecord, float], None]:
        return self._update

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            self._bar.n = 100
        self._bar.close()

    def _update(self, record: EpochRecord, share: float) -> None:
        self._bar.n = round(100 * share)
        if math.isnan(record.loss):  # with differential privacy nobody may see it
            self._bar.set_postfix_str(f'epoch {record.epoch}')
            return
        self._bar.set_postfix_str(
            f'epoch {record.epoch}, loss {record.loss:.2f}, held-out '
            f'{record.validation_reconstruction:.2f}, reconstruction {record.reconstruction:.2f}, '
            f'KL {record.nats:.0f} nats'
        )
