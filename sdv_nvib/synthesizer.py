"""`NVIBSynthesizer`: the SDV contract. The only module that touches SDV's private interface.

Last in the flow but for the command line: SDV's data processor makes a processed table, the schema
makes tokens, the trainer a model; sampling goes the same way back.
"""

import copy
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import torch
from rdt.transformers import FloatFormatter, UnixTimestampEncoder
from sdv.cag.programmable_constraint import ProgrammableConstraintHarness
from sdv.metadata import Metadata
from sdv.single_table.base import BaseSingleTableSynthesizer
from tqdm.auto import tqdm

from sdv_nvib.conditions import assign_draws, meets, with_given_values
from sdv_nvib.errors import (
    ConditionError,
    InvalidParameterError,
    InvalidTableError,
    NotFittedError,
    UnknownValueError,
)
from sdv_nvib.model import ModelConfig, TabularNVIB
from sdv_nvib.quality import QualityEvaluation, evaluate_quality
from sdv_nvib.sampling import FittedModel, remember_posteriors
from sdv_nvib.tokens import KnownRows, TableSchema
from sdv_nvib.training import EpochRecord, Trainer, TrainingConfig, choose_device

__all__ = ['NVIBSynthesizer']

GENERATIONS = ('any-order', 'single-pass')
MAX_SEED = 2**32 - 1
LATENT_SOURCES = ('prior', 'posteriors')
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
        for name, allowed in (('generation', GENERATIONS), ('latent_source', LATENT_SOURCES)):
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
        """Refuse infinite values before anything is fitted."""
        for column in table_data.select_dtypes('number'):
            values = table_data[column].to_numpy(dtype=np.float64, na_value=np.nan)
            if np.isinf(values).any():
                raise InvalidTableError(
                    f"Table '{self._table_name}', column '{column}': values must be finite, "
                    f'received {int(np.isinf(values).sum())} infinite value(s). Replace them with '
                    'a number or a missing value.'
                )
        return super()._validate(table_data)

    def _preprocess_helper(self, table_data: pd.DataFrame) -> pd.DataFrame:
        """Remember the order of the columns: SDV would return them in the metadata's."""
        self._column_order = list(table_data.columns)
        return super()._preprocess_helper(table_data)

    def _preprocess(self, table_data: pd.DataFrame) -> pd.DataFrame:
        if not len(table_data):
            raise InvalidTableError(
                f"Table '{self._table_name}' must have at least one row, it has none. Fit on a "
                'table with rows.'
            )
        processed = super()._preprocess(table_data)
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

    def _ordinal_values(self) -> dict[Hashable, Sequence]:
        columns = self._get_table_metadata().columns
        return {
            name: column['range_values']
            for name, column in columns.items()
            if column['sdtype'] == 'ordinal' and column.get('range_values')
        }

    # Fitting

    def _fit(self, processed_table: pd.DataFrame) -> None:
        """Learn the schema, train the network, keep it with its best weights."""
        schema = TableSchema.fit(
            processed_table, self._numerical_columns(processed_table), self._ordinal_values()
        )
        tokens = torch.from_numpy(schema.encode(processed_table))
        # Initialisation and dropout know no generator of their own: the global state is borrowed
        # with our seed and given back as it was.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = TabularNVIB(schema.positions, self._model_config())
            network.to(choose_device(self.enable_gpu))
            trainer = Trainer(network, self._training_config())
            with self._progress() as on_epoch:
                trainer.fit(tokens, on_epoch)
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

    # Sampling

    def _validate_fit_before_sample(self) -> None:
        if not self._fitted:
            raise NotFittedError(
                f"The synthesizer of table '{self._table_name}' has not been fitted. Call fit "
                'first, or load one that has been.'
            )

    def _sample(self, num_rows: int, conditions: KnownRows | None = None) -> pd.DataFrame:
        """Draw a processed table; SDV calls it, and hands on what `_draw_rows` gave it."""
        known = None if conditions is None else conditions.tokens
        return self._schema.decode(self._model.sample(num_rows, known), self._model.rng, conditions)

    def _sample_rows(self, *args: Any, **kwargs: Any) -> tuple[pd.DataFrame, int]:
        """Rows in the order of the fitted table's columns."""
        sampled, num_valid = super()._sample_rows(*args, **kwargs)
        order = [name for name in self._column_order if name in sampled.columns]
        return sampled[order + [name for name in sampled.columns if name not in order]], num_valid

    # Conditions

    def _validate_known_columns(self, conditions: pd.DataFrame) -> None:
        self._validate_fit_before_sample()  # SDV does not ask here
        super()._validate_known_columns(conditions)

    def _validate_conditions_unseen_columns(self, conditions: pd.DataFrame) -> None:
        """Refuse what cannot be met before anything is sampled, so that the error says why."""
        super()._validate_conditions_unseen_columns(conditions)
        self._know(conditions, pd.DataFrame(True, conditions.index, conditions.columns))

    def _know(self, table: pd.DataFrame, given: pd.DataFrame) -> tuple[KnownRows, set[Hashable]]:
        """What the model can be told of rows, and the columns that are left to rejection.

        A constraint that replaces columns by others is applied to the rows in which all of them
        are given; in other rows they are left to rejection.

        Args:
            table: N rows of some of the original columns.
            given: Which of its cells are given, of the same shape; a given cell may be missing.

        Raises:
            UnknownValueError: A given value is not one that the model can make.
            ConditionError: Given values break a constraint.
        """
        table, given = table.reset_index(drop=True), given.reset_index(drop=True)
        self._require_range(table, given)
        sources: dict[Hashable, set[Hashable]] = {name: {name} for name in table}
        rejected: set[Hashable] = set()
        metadata = self._original_metadata
        for constraint in self._chained_constraints:
            before = metadata.tables[self._table_name].columns
            metadata = constraint.get_updated_metadata(metadata)
            after = metadata.tables[self._table_name].columns
            replaced = {name for name in before if before[name] != after.get(name)}
            present = [name for name in table if name in replaced]
            source = {name for column in present for name in sources[column]}
            # SDV's constraints put means in place of missing values, which then are not known.
            whole = (given[present] & table[present].notna()).all(axis=1)
            whole &= len(present) == len(replaced)
            if isinstance(constraint, ProgrammableConstraintHarness):
                # One of the user's own may read and change any column: all have to be compared.
                whole &= False
                source = {name for column in table for name in sources[column]}
            if not whole.all():
                rejected |= source
            transformed = self._transform_valid(constraint, table[whole]) if whole.any() else None
            table, given = table.drop(columns=present), given.drop(columns=present)
            if transformed is not None:
                for column in transformed.columns.difference(table.columns, sort=False):
                    table[column], given[column] = transformed[column], whole
                    sources[column] = source
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
        transformers = self._data_processor._hyper_transformer.field_transformers
        generated = {name for name, t in transformers.items() if t and t.is_generator()}
        return known, rejected - generated  # personal data is not drawn, it is put in its place

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

    def _require_range(self, table: pd.DataFrame, given: pd.DataFrame) -> None:
        """Numbers outside the range seen in `fit`, which would be clipped to it, are refused."""
        transformers = self._data_processor._hyper_transformer.field_transformers
        for name in table:
            transformer = transformers.get(name)
            if not isinstance(transformer, FloatFormatter) or not self.enforce_min_max_values:
                continue
            numbers = pd.to_numeric(table[name][given[name]])
            low, high = transformer._min_value, transformer._max_value
            outside = numbers[(numbers < low) | (numbers > high)]
            if len(outside):
                raise UnknownValueError(
                    f"Table '{self._table_name}', column '{name}': with enforce_min_max_values a "
                    f'condition must be in the range of the training data, [{low}, {high}], '
                    f'received {outside.iloc[0]!r}. Give a value in this range, or fit with '
                    'enforce_min_max_values=False.'
                )

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
    ) -> Iterator[pd.DataFrame]:
        """Draw what is not given of rows, try by try, and yield the accepted rows of each try.

        Args:
            table: N rows of some of the original columns.
            given: Which of its cells are given, of the same shape; a given cell may be missing.
            max_tries: Most draws of each batch.
            batch_size: Rows in a batch; `None` for all.
            keep_extra_columns: SDV's, of multi-table synthesizers.

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
                drawn, rows = drawn[is_met], rows[is_met]
                served, draws = assign_draws(groups[open_rows], groups[rows])
                valid_rate = max(1, len(rows)) / num_draws
                if len(served):
                    rows = open_rows[served]
                    yield self._with_given(drawn.iloc[draws].set_axis(rows), table, given)
                open_rows = np.delete(open_rows, served)
                if not len(open_rows):
                    break
                num_draws = min(limit, int(len(open_rows) / valid_rate))

    def _with_given(
        self, drawn: pd.DataFrame, table: pd.DataFrame, given: pd.DataFrame
    ) -> pd.DataFrame:
        """Drawn rows, indexed by their rows in `table`, with the given cells exactly as given."""
        columns = self._original_metadata.tables[self._table_name].columns
        for name in table:
            wanted, places = table[name].iloc[drawn.index], given[name].to_numpy()[drawn.index]
            is_date = columns[name]['sdtype'] == 'datetime'
            if is_date and wanted.dtype != drawn[name].dtype:
                continue  # the drawn date is the given one, in the column's own format
            drawn[name] = with_given_values(drawn[name], wanted, places)
        return drawn

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
        return evaluate_quality(
            real,
            synthetic[self._table_name],
            Metadata.load_from_dict(self._original_metadata.to_dict()),
            test=test,
            target=target,
            seed=self.seed,
            verbose=verbose,
        )


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
