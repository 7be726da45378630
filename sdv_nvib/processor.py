"""SDV's data processor and constraints as JSON and back.

Between persistence and the synthesizer in the flow; with the synthesizer the only module that
touches SDV's and RDT's private state. Transformers are made again by their constructors, from an
allow-list of classes, and then get what they had learned, from an allow-list of attributes with
their types; constraints likewise. And keys for parts of a table that know nothing of each other.
"""

import copy
import datetime
import functools
import hashlib
import inspect
import string
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from faker.config import PROVIDERS
from rdt.transformers import (
    AnonymizedFaker,
    FloatFormatter,
    IndexGenerator,
    NullTransformer,
    RegexGenerator,
    UnixTimestampEncoder,
)
from sdv.cag import FixedCombinations, FixedIncrements, Inequality, OneHotEncoding, Range
from sdv.cag._utils import load_constraint_from_dict
from sdv.cag.base import BaseConstraint
from sdv.cag.programmable_constraint import ProgrammableConstraintHarness
from sdv.data_processing.data_processor import DataProcessor
from sdv.data_processing.datetime_formatter import DatetimeFormatter
from sdv.data_processing.numerical_formatter import NumericalFormatter
from sdv.metadata import Metadata

from sdv_nvib.conditions import readable_format
from sdv_nvib.errors import InvalidParameterError, ModelFileError
from sdv_nvib.ids import CountedIds, PatternIds, check_regex, pattern_of_template
from sdv_nvib.persistence import decode_value, encode_value

__all__ = [
    'DateEncoder',
    'can_be_written',
    'compared_columns',
    'constrained_columns',
    'fits_as_float',
    'is_read_without_format',
    'keep_texts_of_dates',
    'keep_zones',
    'key_formats',
    'lowest_columns',
    'restore_constraints',
    'restore_learned',
    'restore_processor',
    'seed_generators',
    'skip_generated',
    'skip_keys',
    'store_constraints',
    'store_processor',
    'with_exact_durations',
]


class DateEncoder(UnixTimestampEncoder):
    """RDT's encoder of dates, in nanoseconds whatever the unit of their type.

    RDT counts a date in its own unit and takes the count for nanoseconds again: every date of a
    type in seconds or microseconds would come back in January 1970. What it writes in a format it
    reads again by guessing: the day for the month, or not at all.
    """

    def _convert_to_datetime(self, data: pd.Series) -> pd.Series:
        dates = super()._convert_to_datetime(data)
        return dates.dt.as_unit('ns') if pd.api.types.is_datetime64_any_dtype(dates) else dates

    def _format_datetime(self, datetime_data: pd.Series) -> pd.Series:
        if not pd.api.types.is_datetime64_any_dtype(self._dtype):
            return super()._format_datetime(datetime_data)
        form = self._get_pandas_datetime_format()
        has_zone = isinstance(self._dtype, pd.DatetimeTZDtype)
        if has_zone:  # a format without hours can hold the days of this zone alone
            datetime_data = datetime_data.dt.tz_convert(self._dtype.tz)
        text = datetime_data.dt.strftime(self.datetime_format)
        return pd.to_datetime(text, format=form, utc=has_zone).astype(self._dtype)


NUMBER = (int, float, np.integer, np.floating)
COUNT = (int, np.integer)
DTYPE = (np.dtype, pd.api.extensions.ExtensionDtype)
OPTIONAL_NUMBER = (type(None), *NUMBER)
NULLS: dict[str, tuple[type, ...]] = {
    'nulls': (type(None), bool, np.bool_),
    '_missing_value_generation': (type(None), str),
    '_missing_value_replacement': (type(None), str, *NUMBER),
    '_null_percentage': OPTIONAL_NUMBER,
    '_min_value': OPTIONAL_NUMBER,
    '_max_value': OPTIONAL_NUMBER,
}
RANGE: dict[str, tuple[type, ...]] = {'_min_value': OPTIONAL_NUMBER, '_max_value': OPTIONAL_NUMBER}
CARDINALITY: dict[str, tuple[type, ...]] = {
    '_data_cardinality': (type(None), *COUNT),
    '_data_cardinality_scale': (type(None), dict),
}
DATES: dict[str, tuple[type, ...]] = {
    '_dtype': DTYPE,
    '_has_multiple_timezones': (bool, np.bool_),
    '_timezone_offset': (type(None), datetime.tzinfo),
    **RANGE,
}
LEARNED: dict[type, dict[str, tuple[type, ...]]] = {
    FloatFormatter: {'_dtype': DTYPE, '_rounding_digits': (type(None), *COUNT), **RANGE},
    DateEncoder: DATES,
    UnixTimestampEncoder: DATES,
    RegexGenerator: {'data_length': COUNT, **CARDINALITY},
    AnonymizedFaker: {
        'data_length': COUNT,
        **CARDINALITY,
        '_nan_frequency': NUMBER,
        '_faker_random_seed': COUNT,
    },
}
CLASSES = {cls.__name__: cls for cls in LEARNED}
FORMATTERS: dict[str, tuple[type, dict[str, tuple[type, ...]]]] = {
    'numerical': (
        NumericalFormatter,
        {'_dtype': DTYPE, '_rounding_digits': (type(None), *COUNT), **RANGE},
    ),
    'datetime': (DatetimeFormatter, {'_dtype': DTYPE, 'datetime_format': (type(None), str)}),
}
OPTIONAL_TEXT = (type(None), str)
COMPARISON: dict[str, tuple[type, ...]] = {
    '_fillna_low_column_name': (str,),
    '_nan_column_name': (str,),
    '_dtype': DTYPE,
    '_is_datetime': (bool, np.bool_),
    '_low_datetime_format': OPTIONAL_TEXT,
    '_high_datetime_format': OPTIONAL_TEXT,
}
ANY_CONSTRAINT: dict[str, tuple[type, ...]] = {
    '_single_table': (bool,),
    '_table_name': (str,),
    '_dtypes': (dict,),
    '_original_data_columns': (dict,),
    '_datetime_min_max_value': (dict,),
}
CONSTRAINTS: dict[type, dict[str, tuple[type, ...]]] = {
    FixedCombinations: {'_joint_column': (str,), '_ids_to_combinations': (dict,)},
    FixedIncrements: {'_fixed_increments_column_name': (str,), '_dtype': DTYPE},
    Inequality: {'_diff_column_name': (str,), **COMPARISON},
    OneHotEncoding: {'_categorical_column': (str,), '_transformed_col_names': (list,)},
    Range: {
        '_low_diff_column_name': (str,),
        '_high_diff_column_name': (str,),
        '_middle_datetime_format': OPTIONAL_TEXT,
        **COMPARISON,
    },
}
CONSTRAINT_NAMES = sorted(cls.__name__ for cls in CONSTRAINTS)
MAX_SEED = 2**32 - 2
MAX_CARDINALITY = 10**7
MAX_FAKER_LENGTH = 10**4  # of texts and lists; limits of a random number may be larger
TEMPLATES = ('bothify', 'lexify', 'numerify')


def seed_generators(processor: DataProcessor, seed: int) -> None:
    """Seed the transformers of a fitted processor by our seed and their columns' names.

    RDT takes a hash of the column's first five values for a seed: whoever has the model could
    confirm a guess of them, and a row could be told by the seed alone.
    """
    for name, transformer in processor._hyper_transformer.field_transformers.items():
        if transformer is None:
            continue
        digest = hashlib.sha256(f'{seed} {name}'.encode('utf-8', 'surrogatepass')).digest()
        transformer.random_seed = int.from_bytes(digest[:8], 'big') % MAX_SEED
        if isinstance(transformer, AnonymizedFaker):
            transformer._faker_random_seed = transformer.random_seed
    processor.reset_sampling()


def can_be_written(dates: pd.Series, form: str) -> bool:
    """Whether the first and the last date come back from text of a format, but for its precision.

    A format may leave the year or its century out, or move a date beyond what its type can hold.
    """
    ends = dates.agg(['min', 'max']).dropna()
    try:  # in UTC, since summer and winter of a zone are two zones once written
        again = pd.to_datetime(ends.dt.strftime(form), format=readable_format(form), utc=True)
    except pd.errors.OutOfBoundsDatetime:
        return False
    same = ends if ends.dt.tz is None else ends.dt.tz_convert('UTC')
    return bool((again.dt.year == same.dt.year).all())


def fits_as_float(values: pd.Series) -> bool:
    """Whether whole numbers fit their type again when they have been floats, as RDT makes them."""
    dtype = values.dtype
    if not isinstance(dtype, np.dtype) or dtype.kind not in 'iu':
        return True
    return int(values.to_numpy(np.float64).max(initial=0)) <= np.iinfo(dtype.name).max


def is_read_without_format(form: str) -> bool:
    """Whether pandas reads dates in a format as what they are without being told the format."""
    if '%z' in form.lower():
        return False
    for probe in ('2003-04-05 06:07:08', '2010-11-12 13:14:15'):
        text = pd.Timestamp(probe).strftime(form)
        try:
            same = pd.to_datetime(text).strftime(form) == text
        except ValueError:
            same = False
        if not same:
            return False
    return True


def compared_columns(constraint: BaseConstraint) -> list[str]:
    """Columns that an Inequality or a Range compares, the lowest first; none of other kinds."""
    if isinstance(constraint, Range):
        middle = constraint._middle_column_name
        return [constraint._low_column_name, middle, constraint._high_column_name]
    if isinstance(constraint, Inequality):
        return [constraint._low_column_name, constraint._high_column_name]
    return []


def constrained_columns(constraint: BaseConstraint) -> set[str]:
    """Columns that a constraint names; none of one of the user's own, which may read any."""
    if isinstance(constraint, ProgrammableConstraintHarness):
        return set()
    parameters = constraint.get_constraint_dict()['parameters'].items()
    named = [value for parameter, value in parameters if 'column_name' in parameter]
    return {name for value in named for name in ([value] if isinstance(value, str) else value)}


def lowest_columns(constraints: Iterable[BaseConstraint]) -> dict[Hashable, str]:
    """Lowest columns of inequalities and ranges, and the columns that hold their values."""
    return {
        one._low_column_name: one._fillna_low_column_name
        for one in constraints
        if isinstance(one, Inequality | Range)
    }


def with_exact_durations(constraint: BaseConstraint) -> BaseConstraint:
    """A fitted constraint that brings durations between dates back to the nanosecond.

    SDV draws them as logarithms, whose exponentials are some nanoseconds off, and five days less
    one nanosecond are four days in a format of days. So durations are lengthened by what they may
    be off, and what dates have too much is taken away again.
    """
    if not compared_columns(constraint) or not constraint._is_datetime:
        return constraint
    exact = copy.copy(constraint)
    exact.reverse_transform = functools.partial(_reverse_exactly, constraint)
    return exact


def _reverse_exactly(constraint: BaseConstraint, drawn: pd.DataFrame) -> pd.DataFrame:
    is_range = isinstance(constraint, Range)
    ends = ('_low_diff', '_high_diff') if is_range else ('_diff',)
    names = [getattr(constraint, f'{end}_column_name') for end in ends]
    columns = constraint.metadata.tables[constraint._table_name].columns
    low = drawn[constraint._fillna_low_column_name]
    form = columns[constraint._low_column_name].get('datetime_format')
    dates = _dates(low, form)
    expected, longer = [], drawn
    surplus = np.zeros(len(drawn))
    for name in names:
        durations = np.exp(drawn[name].to_numpy(np.float64)) - 1
        # Nanoseconds, a power of ten, that a duration is known to after a logarithm.
        spread = durations * 2**-50 * (np.log1p(durations) + 2)
        resolution = 10 ** np.ceil(np.log10(spread.clip(1)))
        durations = (durations / resolution).round() * resolution
        logarithms = np.log(durations + 1)
        longer = longer.assign(**{name: logarithms + 2**-52 * (logarithms + 2)})
        dates = dates + pd.to_timedelta(durations, unit='ns')
        surplus = surplus + resolution
        expected.append((dates, surplus))
    rows = constraint.reverse_transform(longer)
    for name, (dates, most) in zip(compared_columns(constraint)[1:], expected, strict=True):
        form = columns[name].get('datetime_format') or ''
        is_text = not pd.api.types.is_datetime64_dtype(rows[name])
        if is_text and '%f' not in form:
            continue  # its format has cut off what was too much
        made = _dates(rows[name], form)
        too_much = made - dates
        is_off = (too_much > pd.Timedelta(0)) & (too_much <= pd.to_timedelta(most, unit='ns'))
        better = dates.dt.strftime(form) if is_text else dates
        rows = rows.assign(**{name: rows[name].mask(is_off, better)})
    return rows


def _dates(values: pd.Series, form: str | None) -> pd.Series:
    """Dates or texts as dates in nanoseconds."""
    return pd.to_datetime(values, format=readable_format(form)).dt.as_unit('ns')


def keep_texts_of_dates(processor: DataProcessor) -> None:
    """Have dates without leading zeros stay as their transformer has written them.

    SDV reads such a text again to write it in its format, by guessing: the day for the month.
    """
    for name, transformer in processor._hyper_transformer.field_transformers.items():
        form = getattr(transformer, 'datetime_format', None)
        if form and readable_format(form) != form:
            processor.formatters.pop(name, None)


def keep_zones(processor: DataProcessor, table: pd.DataFrame) -> list[str]:
    """Have dates come back with a zone where their column has one.

    RDT learns the zone from values that it can read without their format, and gives dates without
    one where there are none. Dates of several zones it gives in UTC.

    Returns:
        Columns of several zones whose format cannot hold the same dates in UTC.
    """
    unfit = []
    for name, transformer in processor._hyper_transformer.field_transformers.items():
        if not isinstance(transformer, UnixTimestampEncoder) or transformer._timezone_offset:
            continue
        form, present = transformer.datetime_format, table[name].dropna()
        if isinstance(processor._dtypes[name], pd.DatetimeTZDtype):
            transformer._timezone_offset = datetime.UTC
        elif '%z' in (form or '') and len(present):
            if transformer._has_multiple_timezones:
                dates = pd.to_datetime(present, format=form, utc=True)
                written = pd.to_datetime(dates.dt.strftime(form), format=form, utc=True)
                unfit += [] if (dates == written).all() else [name]
            else:
                first = pd.to_datetime(present.iloc[0], format=form)
                transformer._timezone_offset = first.tzinfo
    return unfit


def skip_generated(processor: DataProcessor, num_rows: int, batch_size: int) -> None:
    """Bring keys and personal data to where they are after so many rows in batches.

    Args:
        processor: A fitted data processor.
        num_rows: Rows since `reset_sampling`.
        batch_size: Rows to make at once.
    """
    processor.reset_sampling()
    hyper = processor._hyper_transformer
    transformers = hyper.field_transformers.items()
    made = [name for name, one in transformers if one is not None and one.is_generator()]
    others = [name for name in made if name not in processor._keys]
    for start in range(0, num_rows if made else 0, batch_size):
        size = min(batch_size, num_rows - start)
        if others:
            hyper.create_anonymized_columns(num_rows=size, column_names=others)
        if processor._keys:
            processor.generate_keys(size)


def key_formats(
    processor: DataProcessor, table_name: str
) -> dict[str, CountedIds | PatternIds | None]:
    """How the values of the columns without repeats are made, each from its number.

    Returns:
        Column to its format; `None` where only Faker can make the values, which are text.

    Raises:
        InvalidParameterError: A column's values cannot be told apart between parts.
    """
    formats: dict[str, CountedIds | PatternIds | None] = {}
    for name, transformer in processor._hyper_transformer.field_transformers.items():
        if transformer is None or not transformer.is_generator():
            continue
        where = f"Table '{table_name}', column '{name}'"
        if type(transformer) not in (RegexGenerator, AnonymizedFaker):
            raise InvalidParameterError(
                f'{where}: parts can be drawn with RegexGenerator and AnonymizedFaker alone, '
                f'received {type(transformer).__name__}. Fit with the default transformer.'
            )
        if transformer.cardinality_rule in ('match', 'scale'):
            raise InvalidParameterError(
                f"{where}: parts do not know each other's values, so the cardinality_rule must be "
                f"'unique' or None, received {transformer.cardinality_rule!r}. Fit with one of "
                'these.'
            )
        if transformer.cardinality_rule == 'unique':
            formats[name] = _key_format(transformer, processor._dtypes[name], where)
    return formats


def _key_format(transformer: Any, dtype: Any, where: str) -> CountedIds | PatternIds | None:
    is_number = pd.api.types.is_numeric_dtype(dtype)
    if isinstance(transformer, RegexGenerator):
        return PatternIds(transformer.regex_format, where, as_number=is_number)
    function, options = transformer.function_name, transformer.function_kwargs
    if function == 'random_int' and is_number:
        # SDV's range for integer keys is its own choice, not the table's.
        last = np.iinfo(dtype.name.lower()).max if pd.api.types.is_integer_dtype(dtype) else 2**53
        return CountedIds(options['min'], int(last))
    if function in TEMPLATES and 'text' in options:
        letters = options.get('letters', string.ascii_letters)
        return PatternIds(pattern_of_template(options['text'], letters), where, as_number=is_number)
    if is_number:
        raise InvalidParameterError(
            f'{where}: keys made by {function} must be text for parts to mark them, received '
            f'{dtype}. Fit with text, or with an id that has a regex_format.'
        )
    return None


def skip_keys(processor: DataProcessor, names: Iterable[str]) -> None:
    """Have a processor count in place of making these columns' values, which is slow."""
    for name in names:
        counter = IndexGenerator()
        counter.fit(pd.DataFrame({name: [0]}), name)
        processor._hyper_transformer.field_transformers[name] = counter


def store_processor(processor: DataProcessor) -> dict[str, Any]:
    """What a fitted data processor has learned, as JSON.

    Raises:
        ModelFileError: A transformer is of a class that no file can hold safely.
    """
    hyper = processor._hyper_transformer
    if processor.grouped_columns_to_transformers:
        raise ModelFileError(
            'save_model cannot hold transformers of several columns, received those of '
            f'{list(processor.grouped_columns_to_transformers)}. Use `save`, which pickles.'
        )
    return {
        'sdtypes': hyper.field_sdtypes,
        'input_columns': hyper._input_columns,
        'output_columns': hyper._output_columns,
        'dtypes': [[name, encode_value(dtype)] for name, dtype in processor._dtypes.items()],
        'formatters': _store_formatters(processor.formatters),
        'transformers': [
            [name, None if transformer is None else _store_transformer(name, transformer)]
            for name, transformer in hyper.field_transformers.items()
        ],
    }


def restore_processor(processor: DataProcessor, stored: dict[str, Any]) -> None:
    """Bring a new data processor to the state that `store_processor` was given.

    Sampling starts over, as after `reset_sampling`.

    Raises:
        ModelFileError: A class, an attribute or a type is not allowed.
    """
    names = list(processor.metadata.columns)
    transformers = {
        name: None if one is None else _restore_transformer(name, one)
        for name, one in stored['transformers']
    }
    dtypes = {name: decode_value(dtype) for name, dtype in stored['dtypes']}
    for part in (transformers, dtypes, stored['input_columns']):
        if set(part) != set(names):
            raise ModelFileError(f'Transformers must be those of the columns {names[:20]}.')
    if not all(isinstance(dtype, DTYPE) for dtype in dtypes.values()):
        raise ModelFileError('Every column must have a dtype.')
    hyper = processor._hyper_transformer
    hyper.set_config({'sdtypes': stored['sdtypes'], 'transformers': transformers})
    hyper._input_columns = list(stored['input_columns'])
    hyper._transformers_sequence = [
        transformers[name] for name in hyper._input_columns if transformers[name] is not None
    ]
    hyper._output_columns = list(stored['output_columns'])
    hyper._fitted_fields = set(names)
    hyper._fitted, hyper._modified_config = True, False
    processor._dtypes = pd.Series(dtypes, dtype=object)
    processor.formatters = {
        name: _restore_formatter(
            processor.metadata.columns[name],
            attributes,
            processor._enforce_rounding,
            processor._enforce_min_max_values,
        )
        for name, attributes in stored['formatters']
    }
    processor._prepared_for_fitting = processor.fitted = True
    processor.reset_sampling()


def store_constraints(constraints: list[BaseConstraint]) -> list[dict[str, Any]]:
    """What fitted constraints have learned, as JSON.

    Raises:
        ModelFileError: One is made of the user's own code, which no file can hold safely.
    """
    stored = []
    for constraint in constraints:
        if type(constraint) not in CONSTRAINTS:
            raise ModelFileError(
                f'save_model can hold the constraints {CONSTRAINT_NAMES}, received a '
                f'{type(constraint).__name__}. Use `save`, which pickles.'
            )
        described = constraint.get_constraint_dict()
        allowed = ANY_CONSTRAINT | CONSTRAINTS[type(constraint)]
        stored.append(
            {
                'class': described['class_name'],
                'parameters': {k: encode_value(v) for k, v in described['parameters'].items()},
                'learned': _attributes(constraint, allowed),
                'formatters': _store_formatters(constraint._formatters[constraint._table_name]),
            }
        )
    return stored


def restore_constraints(stored: list[dict[str, Any]]) -> list[BaseConstraint]:
    """Constraints as their constructors make them, to be added to a synthesizer.

    Raises:
        ModelFileError: A class is not allowed.
    """
    constraints = []
    for one in stored:
        if one['class'] not in CONSTRAINT_NAMES:
            raise ModelFileError(
                f'A constraint must be one of {CONSTRAINT_NAMES}, received '
                f'{str(one["class"])[:80]!r}.'
            )
        parameters = {key: decode_value(value) for key, value in one['parameters'].items()}
        constraints.append(
            load_constraint_from_dict({'class_name': one['class'], 'parameters': parameters})
        )
    return constraints


def restore_learned(constraint: BaseConstraint, metadata: Metadata, stored: dict[str, Any]) -> None:
    """Give a new constraint what `store_constraints` kept of it.

    Args:
        constraint: One of `restore_constraints`.
        metadata: What the constraint was fitted with: that of the table before it.
        stored: Its entry.

    Raises:
        ModelFileError: An attribute, a type or a column is not allowed.
    """
    _set_attributes(constraint, stored['learned'], ANY_CONSTRAINT | CONSTRAINTS[type(constraint)])
    table = constraint._table_name
    if list(metadata.tables) != [table]:
        raise ModelFileError(f'Constraints must be of the table {list(metadata.tables)}.')
    columns = metadata.tables[table].columns
    for name, part in (('_dtypes', dict), ('_original_data_columns', list)):
        value = getattr(constraint, name)
        if (
            set(value) != {table}
            or type(value[table]) is not part
            or set(value[table]) != set(columns)
        ):
            raise ModelFileError(f'{name} of a constraint must be of the columns of its table.')
    constraint._formatters = {
        table: {name: _restore_formatter(columns[name], one) for name, one in stored['formatters']}
    }
    if isinstance(constraint, FixedCombinations):
        combinations = constraint._ids_to_combinations
        constraint._combinations_to_ids = {value: key for key, value in combinations.items()}
        rows = pd.DataFrame(list(combinations.values()), columns=constraint.column_names)
        dtypes = {name: constraint._dtypes[table][name] for name in constraint.column_names}
        constraint._combinations = rows.astype(dtypes)
    constraint.metadata, constraint._fitted = metadata, True


def _formatter_kind(formatter: NumericalFormatter | DatetimeFormatter) -> str:
    return 'numerical' if isinstance(formatter, NumericalFormatter) else 'datetime'


def _store_formatters(formatters: dict[str, Any]) -> list[list[Any]]:
    return [
        [name, _attributes(formatter, FORMATTERS[_formatter_kind(formatter)][1])]
        for name, formatter in formatters.items()
    ]


def _restore_formatter(
    column: dict[str, Any],
    attributes: dict[str, Any],
    enforce_rounding: bool = True,
    enforce_min_max_values: bool = True,
) -> NumericalFormatter | DatetimeFormatter:
    formatter: NumericalFormatter | DatetimeFormatter
    if column['sdtype'] == 'numerical':
        formatter = NumericalFormatter(
            enforce_rounding=enforce_rounding,
            enforce_min_max_values=enforce_min_max_values,
            decimal_places=column.get('decimal_places'),
        )
    else:
        formatter = DatetimeFormatter(datetime_format=column.get('datetime_format'))
    _set_attributes(formatter, attributes, FORMATTERS[_formatter_kind(formatter)][1])
    return formatter


def _store_transformer(name: str, transformer: Any) -> dict[str, Any]:
    cls = type(transformer)
    if cls not in LEARNED:
        raise ModelFileError(
            f"save_model can hold transformers of the classes {sorted(CLASSES)}, column '{name}' "
            f'has a {cls.__name__}. Use `save`, which pickles, or fit with the default transformer.'
        )
    parameters = inspect.signature(cls).parameters
    stored = {
        'class': cls.__name__,
        'parameters': {key: encode_value(getattr(transformer, key)) for key in parameters},
        'learned': _attributes(transformer, LEARNED[cls]),
        'random_seed': int(transformer.random_seed),
        'column_prefix': transformer.column_prefix,
        'has_null_column': 'is_null' in transformer.output_properties,
    }
    if getattr(transformer, 'null_transformer', None) is not None:
        stored['nulls'] = _attributes(transformer.null_transformer, NULLS)
    return stored


def _restore_transformer(name: str, stored: dict[str, Any]) -> Any:
    if stored['class'] not in CLASSES:
        raise ModelFileError(
            f'A transformer must be one of {sorted(CLASSES)}, received '
            f'{str(stored["class"])[:80]!r}.'
        )
    cls = CLASSES[stored['class']]
    parameters = {key: decode_value(value) for key, value in stored['parameters'].items()}
    if cls is AnonymizedFaker:
        _check_faker(parameters)
    if cls is RegexGenerator:
        check_regex(parameters['regex_format'])
    transformer = cls(**parameters)
    transformer.columns = [name]
    transformer.column_prefix = str(stored['column_prefix'])
    if stored['has_null_column']:
        transformer.output_properties['is_null'] = {'sdtype': 'float', 'next_transformer': None}
    transformer.output_columns = transformer.get_output_columns()
    transformer.random_seed = _seed(stored['random_seed'])
    _set_attributes(transformer, stored['learned'], LEARNED[cls])
    if cls in (AnonymizedFaker, RegexGenerator):
        _check_cardinality(transformer)
    if 'nulls' in stored:
        transformer.null_transformer = NullTransformer()
        _set_attributes(transformer.null_transformer, stored['nulls'], NULLS)
    return transformer


def _check_faker(parameters: dict[str, Any]) -> None:
    """Only a public function of a provider that Faker ships, with plain arguments."""
    provider, function = parameters['provider_name'], parameters['function_name']
    known = {path.removeprefix('faker.providers.') for path in PROVIDERS} | {'BaseProvider'}
    base = str(provider).split('.')[0]
    if base not in known or not str(function).isidentifier() or str(function).startswith('_'):
        raise ModelFileError(
            f'Personal data must come from a function of Faker, received {str(provider)[:80]!r} '
            f'and {str(function)[:80]!r}.'
        )
    for name, value in (parameters['function_kwargs'] or {}).items():
        is_long = len(str(value)) > MAX_FAKER_LENGTH
        is_large = isinstance(value, int | float) and abs(value) > MAX_FAKER_LENGTH
        if is_long or (is_large and function not in ('random_int', 'random_number')):
            raise ModelFileError(
                f'Arguments of Faker must be at most {MAX_FAKER_LENGTH}, received '
                f'{str(name)[:40]}={str(value)[:40]}.'
            )


def _check_cardinality(transformer: AnonymizedFaker | RegexGenerator) -> None:
    """Counts that a single row can be made with."""
    scale = transformer._data_cardinality_scale or {'num_repetitions': []}
    counts = [transformer._data_cardinality or 0, *scale['num_repetitions']]
    if not all(isinstance(count, COUNT) and 0 <= count <= MAX_CARDINALITY for count in counts):
        raise ModelFileError(
            f'Counts of repeated values must be at most {MAX_CARDINALITY}, received '
            f'{str(counts)[:80]}.'
        )


def _seed(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise ModelFileError(f'A seed must be in [0, {MAX_SEED}], received {str(value)[:40]}.')
    return value


def _attributes(owner: Any, allowed: dict[str, tuple[type, ...]]) -> dict[str, Any]:
    return {key: encode_value(getattr(owner, key, None)) for key in allowed}


def _set_attributes(
    owner: Any, stored: dict[str, Any], allowed: dict[str, tuple[type, ...]]
) -> None:
    if set(stored) != set(allowed):
        raise ModelFileError(
            f'{type(owner).__name__} must have the attributes {sorted(allowed)}, received '
            f'{[str(key)[:40] for key in stored][:20]}.'
        )
    for key, types in allowed.items():
        value = decode_value(stored[key])
        # Python counts True and False among the whole numbers.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ModelFileError(
                f'{key} of {type(owner).__name__} must be of another type, received '
                f'{str(value)[:80]!r}.'
            )
        setattr(owner, key, value)
