"""`NVIBSynthesizer`: the SDV contract. The only module that touches SDV's private interface.

Last in the flow but for the command line: SDV's data processor makes a processed table, the schema
makes tokens, the trainer a model; sampling goes the same way back.
"""

import copy
import datetime
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import torch
from rdt.transformers import FloatFormatter, UnixTimestampEncoder
from sdv.metadata import Metadata
from sdv.single_table.base import BaseSingleTableSynthesizer
from tqdm.auto import tqdm

from sdv_nvib._version import __version__
from sdv_nvib.errors import (
    InvalidParameterError,
    InvalidTableError,
    ModelFileError,
    NotFittedError,
)
from sdv_nvib.model import ModelConfig, TabularNVIB
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
from sdv_nvib.processor import restore_processor, seed_generators, store_processor
from sdv_nvib.protection import protect_categories, protect_numbers
from sdv_nvib.quality import (
    MembershipInference,
    QualityEvaluation,
    evaluate_quality,
    membership_inference,
)
from sdv_nvib.sampling import FittedModel, remember_posteriors
from sdv_nvib.tokens import NumericalColumn, TableSchema
from sdv_nvib.training import EpochRecord, Trainer, TrainingConfig, choose_device

__all__ = ['NVIBSynthesizer']

GENERATIONS = ('any-order', 'single-pass')
MAX_SEED = 2**32 - 1
ATTACK_ROWS = 4000
LATENT_SOURCES = ('prior', 'posteriors')
REPLACEMENTS = ('frequent', 'missing')
LOSS_COLUMNS = {
    'epoch': 'Epoch',
    'loss': 'Loss',
    'validation_loss': 'Validation Loss',
    'reconstruction': 'Reconstruction',
    'validation_reconstruction': 'Validation Reconstruction',
    'kl_gaussian': 'L_G',
    'kl_dirichlet': 'L_D',
    'nats': 'Nats',
    'active_components': 'Active Components',
    'learning_rate': 'Learning Rate',
    'seconds': 'Seconds',
}


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
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay of AdamW.
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
        seed: Seed of the fit.
        verbose: Show a progress line while fitting.
        enable_gpu: Use CUDA or MPS where there is one.

    Raises:
        InvalidParameterError: An argument is out of its range.

    Example:
        >>> table = pd.DataFrame({'age': [31, 45, None, 22] * 20, 'paid': [True, False] * 40})
        >>> columns = {'age': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
        >>> metadata = Metadata.load_from_dict({'tables': {'people': {'columns': columns}}})
        >>> synthesizer = NVIBSynthesizer(metadata, epochs=2)
        >>> synthesizer.fit({'people': table})
        >>> len(synthesizer.sample(num_rows=10)['people'])
        10
    """

    _checkpoint: Checkpoint | None = None
    _model_sdtype_transformers: ClassVar = {'categorical': None, 'boolean': None, 'ordinal': None}

    def __init__(
        self,
        metadata: Metadata,
        enforce_min_max_values: bool = True,
        enforce_rounding: bool = True,
        locales: str | list[str] = ['en_US'],  # noqa: B006 SDV's own default; never changed
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-5,
        d_model: int = 64,
        nhead: int = 4,
        num_encoder_layers: int = 1,
        num_decoder_layers: int = 3,
        dim_feedforward: int = 128,
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

    def _validate_parameters(self) -> None:
        for name in ('epochs', 'batch_size'):
            if getattr(self, name) is not None:
                self._require_integer(name, 1, 'a number, or None to choose by the data')
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
            self._require_integer(name, 1, 'a number')
        self._require_integer('seed', 0, f'a number up to {MAX_SEED}')
        if self.seed > MAX_SEED:
            raise InvalidParameterError(
                f'seed must be a whole number of at most {MAX_SEED}, received {self.seed!r}.'
            )
        self._require_real('learning_rate', 0, 1, open_below=True)
        self._require_real('weight_decay', 0, 1)
        self._require_real('dropout', 0, 1, open_above=True)
        for name in ('lambda_gaussian', 'lambda_dirichlet'):
            if getattr(self, name) is not None:
                self._require_real(name, 0, float('inf'), open_above=True)
        self._require_real('delta', 0, 1)
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

    def _require_integer(self, name: str, least: int, remedy: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidParameterError(
                f'{name} must be a whole number of at least {least}, received {value!r}. '
                f'Give {remedy}.'
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
            isinstance(value, int | float | np.integer | np.floating)
            and not isinstance(value, bool)
            and (least < value if open_below else least <= value)
            and (value < most if open_above else value <= most)
        )
        if not inside:
            interval = f'{"(" if open_below else "["}{least}, {most}{")" if open_above else "]"}'
            raise InvalidParameterError(
                f'{name} must be a number in {interval}, received {value!r}.'
            )

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
            UnixTimestampEncoder(missing_value_replacement=None, missing_value_generation=None),
        )

    def add_constraints(self, constraints: list) -> None:
        """Add SDV constraints; see `sdv.cag`.

        Args:
            constraints: Constraints to hold in every sampled row.
        """
        super().add_constraints(constraints)
        # SDV makes a new data processor for the changed metadata, with its own transformers.
        self._update_default_transformers()

    def _validate(self, table_data: pd.DataFrame) -> list:
        """Refuse numbers that cannot come back, before anything is fitted."""
        for column in table_data.select_dtypes('number'):
            values = table_data[column].to_numpy(dtype=np.float64, na_value=np.nan)
            if np.isinf(values).any():
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{column}': values must be finite, "
                    f'received {int(np.isinf(values).sum())} infinite value(s). Replace them with '
                    'a number or a missing value.'
                )
            dtype = table_data[column].dtype
            if pd.api.types.is_integer_dtype(dtype) and not isinstance(dtype, np.dtype):
                if (np.nan_to_num(np.abs(values)) >= 2.0**62).any():  # RDT cannot cast them back
                    raise InvalidTableError(
                        f"Table '{self._table_name}', column '{column}': whole numbers that may be "
                        f'missing must be below 2**62, received {np.nanmax(np.abs(values)):.3g}. '
                        'Convert the column to float64.'
                    )
        return super()._validate(table_data)

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
        return super()._preprocess_helper(self._protect(table_data))

    def _protect(self, table: pd.DataFrame) -> pd.DataFrame:
        """Replace what too few rows have, before constraints, transformers and model see it."""
        if self.rare_category_threshold == self.numerical_threshold == 1:
            return table
        described = self._original_metadata.tables[self._table_name]
        keys = described._get_primary_and_alternate_keys() | described._get_set_of_sequence_keys()
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

    def _preprocess(self, table_data: pd.DataFrame) -> pd.DataFrame:
        if not len(table_data):
            raise InvalidTableError(
                f"Table '{self._table_name}' must have at least one row, it has none. Fit on a "
                'table with rows.'
            )
        processed = super()._preprocess(table_data)
        seed_generators(self._data_processor, self.seed)
        self._require_columns(processed)
        return processed

    def fit_processed_data(self, processed_data: dict[str, pd.DataFrame]) -> None:
        """Fit the model to a table from `preprocess`.

        Args:
            processed_data: Table name to a processed table.

        Raises:
            InvalidTableError: The table has no rows or no columns.
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
        """Ascending values of ordinal columns; those that were too rare have no token."""
        columns = self._get_table_metadata().columns
        keeps_all = self.rare_category_threshold == 1
        return {
            name: [
                value
                for value in column['range_values']
                if keeps_all or (processed[name] == value).any()
            ]
            for name, column in columns.items()
            if column['sdtype'] == 'ordinal' and column.get('range_values')
        }

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
            TrainingError: The loss was no number in the first epoch.
            ModelFileError: The checkpoint is damaged, or of other data or arguments.
            StorageError: The folder cannot be written to; or could not any more during the fit,
                and then the synthesizer is fitted all the same.
        """
        # Opened before anything else: a folder that cannot be used costs no fitted model.
        opened = None if checkpoint is None else Checkpoint(Path(checkpoint))
        self._checkpoint = opened
        names = {name: table.columns for name, table in data.items()}
        try:
            super().fit(data)
        finally:
            self._checkpoint = None
            for name, columns in names.items():  # SDV gives integer names back after success only
                data[name].columns = columns
        if opened is not None and opened.failure is not None:
            raise opened.failure

    def _identity(self, schema: TableSchema, tokens: torch.Tensor) -> str:
        """What decides the weights that a fit ends with."""
        columns, arrays = store_schema(schema)
        parameters = self.get_parameters()
        for name in ('verbose', 'enable_gpu'):
            del parameters[name]
        versions = {'sdv-nvib': __version__, 'torch': torch.__version__}
        return fingerprint([parameters, columns, versions], {**arrays, 'tokens': tokens})

    def _fit(self, processed_table: pd.DataFrame) -> None:
        """Learn the schema, train the network, keep it with its best weights."""
        schema = TableSchema.fit(
            processed_table,
            self._numerical_columns(processed_table),
            self._ordinal_values(processed_table),
        )
        tokens = torch.from_numpy(schema.encode(processed_table))
        checkpoint = self._checkpoint
        resume = None
        if checkpoint is not None:
            resume = checkpoint.load(self._identity(schema, tokens))
        # Initialisation and dropout know no generator of their own: the global state is borrowed
        # with our seed and given back as it was.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = TabularNVIB(schema.positions, self._model_config())
            network.to(choose_device(self.enable_gpu))
            trainer = Trainer(network, self._training_config())
            with self._progress() as show:

                def on_epoch(record: EpochRecord, share: float) -> None:
                    show(record, share)
                    if checkpoint is not None:
                        checkpoint.save(trainer.state())

                trainer.fit(tokens, on_epoch, resume)
        remembers = self.generation == 'single-pass' and self.latent_source == 'posteriors'
        posteriors = remember_posteriors(network, trainer.train_rows) if remembers else None
        self._schema = schema
        self._model = FittedModel(network, trainer.history, self.enable_gpu, posteriors)

    def _model_config(self) -> ModelConfig:
        names = ModelConfig.__dataclass_fields__
        return ModelConfig(**{name: getattr(self, name) for name in names})

    def _training_config(self) -> TrainingConfig:
        names = TrainingConfig.__dataclass_fields__
        return TrainingConfig(**{name: getattr(self, name) for name in names})

    def _progress(self) -> '_FitProgress':
        return _FitProgress(disable=not self.verbose)

    def get_loss_values(self) -> pd.DataFrame:
        """Losses by epoch.

        Returns:
            One row per epoch: Epoch, Loss, Validation Loss, Reconstruction, Validation
            Reconstruction, L_G, L_D, Nats (through the bottleneck, per held-out row), Active
            Components, Learning Rate, Seconds (since the start). Losses are nats per row.

        Raises:
            NotFittedError: Nothing has been fitted yet.
        """
        self._validate_fit_before_sample()
        records = pd.DataFrame([vars(record) for record in self._model.history])
        return records.rename(columns=LOSS_COLUMNS)[list(LOSS_COLUMNS.values())]

    def get_loss_values_plot(self, title: str = 'NVIB loss function') -> go.Figure:
        """Plot the losses by epoch.

        Args:
            title: Title of the figure.

        Raises:
            NotFittedError: Nothing has been fitted yet.
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

    # Saving

    def save_model(self, folder: str | Path) -> None:
        """Save the fitted synthesizer as JSON and safetensors, without a pickle.

        The folder appears as a whole or not at all. Sampling after `load_model` starts over, as
        after `reset_sampling`.

        Args:
            folder: A new or empty folder.

        Raises:
            NotFittedError: Nothing has been fitted yet.
            ModelFileError: There are constraints, or values or transformers of classes that no
                file can hold safely; `save` pickles them.
            StorageError: Something is in the folder, or it cannot be written.
        """
        self._validate_fit_before_sample()
        if self._chained_constraints or self._reject_sampling_constraints:
            raise ModelFileError(
                f"save_model cannot hold constraints, table '{self._table_name}' has "
                f'{len(self._get_all_constraints_list())}. Use `save`, which pickles.'
            )
        columns, arrays = store_schema(self._schema)
        model, weights = store_model(self._model)
        parameters = {name: encode_value(v) for name, v in self.get_parameters().items()}
        documents = {
            'metadata.json': self._original_metadata.to_dict(),
            'parameters.json': parameters,
            'transformers.json': store_processor(self._data_processor),
            'model.json': {
                'fitted_date': self._fitted_date,
                'sdv_version': self._fitted_sdv_version,
                'column_order': self._column_order,
                'original_columns': encode_value(self._original_columns.to_list()),
                'schema': columns,
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
            metadata._reset_updated_flag()
            synthesizer = cls(metadata, **parameters)
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
            synthesizer.reset_sampling()
        return synthesizer

    def _check_restored(self, stored: dict[str, Any]) -> None:
        """Take the last attributes of a loaded synthesizer, and compare its parts."""
        columns = set(self._get_table_metadata().columns)
        modelled = self._data_processor._hyper_transformer._output_columns
        if set(stored['column_order']) != columns or set(self._schema.names) != set(modelled):
            raise ModelFileError('The columns of metadata, transformers and model must agree.')
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

    def _validate_known_columns(self, conditions: pd.DataFrame) -> None:
        self._validate_fit_before_sample()  # SDV does not ask here
        super()._validate_known_columns(conditions)

    def _transform_conditions(self, condition_df: pd.DataFrame) -> pd.DataFrame:
        """Leave missing conditions to `_sample_rows`: SDV would lose them in a group-by."""
        return super()._transform_conditions(condition_df).dropna(axis='columns')

    def _sample_rows(
        self,
        num_rows: int,
        conditions: dict | None = None,
        transformed_conditions: dict | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[pd.DataFrame, int]:
        """Rows in the order of the fitted table's columns; missing conditions are known columns."""
        missing = {
            name: np.nan
            for name, value in (conditions or {}).items()
            if pd.isna(value) and name in self._schema.names
        }
        if missing:
            transformed_conditions = {**(transformed_conditions or {}), **missing}
        sampled, num_valid = super()._sample_rows(
            num_rows, conditions, transformed_conditions, *args, **kwargs
        )
        order = [name for name in self._column_order if name in sampled.columns]
        return sampled[order + [name for name in sampled.columns if name not in order]], num_valid

    def _sample(self, num_rows: int, conditions: dict | None = None) -> pd.DataFrame:
        """Draw a processed table; SDV's transformed conditions are known columns.

        Raises:
            NotImplementedError: Single-pass generation has conditions: SDV then rejects.
        """
        known = {name: v for name, v in (conditions or {}).items() if name in self._schema.names}
        if not known:
            return self._schema.decode(self._model.sample(num_rows), self._model.rng)
        if self.generation == 'single-pass':
            raise NotImplementedError('Single-pass generation meets conditions by rejection.')
        places = [self._schema.names.index(name) for name in known]
        columns = [self._schema.columns[place] for place in places]
        tokens = [
            column.encode(pd.Series([value]))
            for column, value in zip(columns, known.values(), strict=True)
        ]
        rows = np.full((num_rows, len(self._schema.columns)), -1, dtype=np.int64)
        rows[:, places] = np.array(tokens, dtype=np.int64).reshape(1, -1)
        sampled = self._schema.decode(self._model.sample(num_rows, rows), self._model.rng)
        for column in columns:
            if isinstance(column, NumericalColumn):  # this very value, not another of its bin
                sampled[column.name] = known[column.name]
        return sampled

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
        """
        self._validate_fit_before_sample()
        # SDV calls integer columns by strings.
        named = {name: table.rename(columns=str) for name, table in data.items()}
        self._original_metadata.validate_data(named)
        table = named[self._table_name]
        processor = copy.deepcopy(self._data_processor)  # keys' generators must not advance
        transformed = processor.transform(self._validate_transform_constraints(table))
        tokens = self._model.reconstruct(self._schema.encode(transformed))
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
        verbose: bool = False,
    ) -> QualityEvaluation:
        """Sample rows and score them against real ones.

        Args:
            real_data: The real table, usually the one fitted on.
            num_rows: Rows to sample; as many as the real table has when `None`.
            test: Real rows that were not fitted on, for utility and privacy.
            target: Column to predict, for utility.
            verbose: Show SDMetrics' progress.

        Returns:
            SDMetrics' quality and diagnostic reports and a summary of all measures.

        Raises:
            NotFittedError: Nothing has been fitted yet.
        """
        self._validate_fit_before_sample()
        real = real_data[self._table_name] if isinstance(real_data, dict) else real_data
        synthetic = self.sample(num_rows=len(real) if num_rows is None else num_rows)
        evaluation = evaluate_quality(
            real,
            synthetic[self._table_name],
            Metadata.load_from_dict(self._original_metadata.to_dict()),
            test=test,
            target=target,
            seed=self.seed,
            verbose=verbose,
        )
        summary = pd.concat([evaluation.summary, self._privacy_of_model(real, test)])
        return replace(evaluation, summary=summary.reset_index(drop=True))

    def membership_inference(
        self, members: dict[str, pd.DataFrame], others: dict[str, pd.DataFrame]
    ) -> MembershipInference:
        """Attack the model: take the rows that it finds likely for training rows.

        The attacker has the model itself, which says more than synthetic rows do. A row with a
        value that the model has no token for counts as the least likely.

        Args:
            members: Table name to rows that the model was fitted to.
            others: Table name to rows of the same kind that it was not fitted to.

        Raises:
            NotFittedError: Nothing has been fitted yet.
            InvalidParameterError: One of the tables has no rows.
        """
        self._validate_fit_before_sample()
        scores = [self._log_likelihood(data[self._table_name]) for data in (members, others)]
        least = min([0.0, *(one[np.isfinite(one)].min(initial=0.0) for one in scores)]) - 1.0
        return membership_inference(*(np.maximum(one, least) for one in scores))

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
        scores[known] = -self._model.row_nats(tokens, seed=self.seed)
        return scores

    def _privacy_of_model(
        self, real: pd.DataFrame, test: dict[str, pd.DataFrame] | pd.DataFrame | None
    ) -> pd.DataFrame:
        """What the model, not its rows, gives away: the summary's last rows."""
        nats = min(self._model.history, key=lambda r: r.validation_reconstruction).nats
        rows = [
            (
                'nats through the bottleneck',
                nats,
                math.nan,
                'Per held-out row. Bounds what remembered posteriors, and rows made from them, '
                'reveal of their source row; not what the weights have memorised.',
            )
        ]
        names = ('AUC', 'TPR at 1 % FPR')
        values, note = (math.nan, math.nan), 'Not taken: it needs `test`.'
        if test is not None:
            unseen = test[self._table_name] if isinstance(test, dict) else test
            tables = ({self._table_name: table} for table in (real, unseen))
            attack = self.membership_inference(*tables)
            values = (attack.auc, attack.tpr_at_1_percent)
            note = 'An attacker with the model takes rows it finds likely for training rows.'
        for name, value, ideal in zip(names, values, (0.5, 0.01), strict=True):
            rows.append((f'membership inference by likelihood ({name})', value, ideal, note))
        return pd.DataFrame(rows, columns=['measure', 'value', 'ideal', 'meaning'])


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

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def _update(self, record: EpochRecord, share: float) -> None:
        self._bar.n = round(100 * share)
        self._bar.set_postfix_str(
            f'epoch {record.epoch}, loss {record.loss:.2f}, held-out '
            f'{record.validation_reconstruction:.2f}, reconstruction {record.reconstruction:.2f}, '
            f'KL {record.nats:.0f} nats'
        )
