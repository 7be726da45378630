"""The SDV contract: every public method, every sdtype, constraints, conditions and bad input."""

import inspect
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from rdt.transformers import FloatFormatter, GaussianNormalizer, LabelEncoder, OneHotEncoder
from sdv.cag import FixedCombinations, FixedIncrements, Inequality, OneHotEncoding, Range
from sdv.errors import InvalidDataError, InvalidDataTypeError, SamplingError, SynthesizerInputError
from sdv.metadata import Metadata
from sdv.sampling import Condition, DataFrameCondition
from sdv.utils import load_synthesizer

from sdv_nvib import (
    InvalidParameterError,
    InvalidTableError,
    NotFittedError,
    NVIBSynthesizer,
    QualityEvaluation,
    UnknownValueError,
)

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:The metadata lists columns in a different order'),
    pytest.mark.filterwarnings("ignore:No 'datetime_format' is present"),
    pytest.mark.filterwarnings('ignore:The training data does not cover the full range'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),  # two epochs teach little
]

SMALL = {'epochs': 2, 'batch_size': 128, 'd_model': 16, 'dim_feedforward': 32}
GENERATIONS = ('any-order', 'single-pass')


def make_metadata(columns, primary_key=None, **keys):
    table = {'columns': columns, **keys}
    if primary_key:
        table['primary_key'] = primary_key
    return Metadata.load_from_dict({'tables': {'t': table}})


def make_people(rows=300, seed=0):
    """A small table: a wage that is missing exactly for children, dates, categories."""
    rng = np.random.default_rng(seed)
    child = rng.random(rows) < 0.3
    born = pd.Timestamp('1990-01-01') + pd.to_timedelta(rng.integers(0, 9000, rows), unit='D')
    return pd.DataFrame(
        {
            'group': np.where(child, 'child', rng.choice(['adult', 'senior'], rows)),
            'wage': pd.Series(rng.lognormal(7, 0.5, rows).round(2)).mask(child),
            'score': rng.integers(0, 5000, rows),
            'member': rng.random(rows) < 0.5,
            'born': pd.Series(born).dt.strftime('%d.%m.%Y').mask(rng.random(rows) < 0.1),
        }
    )


PEOPLE_COLUMNS = {  # in another order than the table's
    'born': {'sdtype': 'datetime', 'datetime_format': '%d.%m.%Y'},
    'score': {'sdtype': 'numerical'},
    'group': {'sdtype': 'categorical'},
    'wage': {'sdtype': 'numerical'},
    'member': {'sdtype': 'boolean'},
}
PEOPLE = make_people()


def make_synthesizer(**changes):
    return NVIBSynthesizer(make_metadata(PEOPLE_COLUMNS), **{**SMALL, **changes})


@pytest.fixture(scope='module', params=GENERATIONS)
def fitted(request):
    """A fitted synthesizer; tests call `reset_sampling` before they compare rows."""
    synthesizer = make_synthesizer(generation=request.param, latent_source='posteriors')
    synthesizer.fit({'t': PEOPLE})
    return synthesizer


@pytest.fixture(scope='module')
def any_order():
    synthesizer = make_synthesizer()
    synthesizer.fit({'t': PEOPLE})
    return synthesizer


# Arguments


def test_every_argument_is_stored_under_its_own_name():
    given = {
        'enforce_min_max_values': False,
        'enforce_rounding': False,
        'locales': ['de_DE'],
        'epochs': 3,
        'batch_size': 7,
        'learning_rate': 0.01,
        'weight_decay': 0.5,
        'd_model': 12,
        'nhead': 3,
        'num_encoder_layers': 1,
        'num_decoder_layers': 3,
        'dim_feedforward': 20,
        'dropout': 0.25,
        'lambda_gaussian': 0.75,
        'lambda_dirichlet': 0.125,
        'kappa': 2,
        'delta': 0.0,
        'generation': 'single-pass',
        'latent_source': 'posteriors',
        'rare_category_threshold': 3,
        'rare_category_replacement': 'missing',
        'numerical_threshold': 4,
        'target_epsilon': None,  # it excludes some of the others
        'target_delta': 1e-7,
        'seed': 5,
        'verbose': True,
        'enable_gpu': False,
    }
    assert set(given) == set(inspect.signature(NVIBSynthesizer).parameters) - {'metadata'}
    synthesizer = NVIBSynthesizer(make_metadata(PEOPLE_COLUMNS), **given)
    assert synthesizer.get_parameters() == given
    assert {name: getattr(synthesizer, name) for name in given} == given


OUT_OF_RANGE = [
    *[(name, value) for name in ('epochs', 'batch_size') for value in (0, -1, 1.5, '3', True)],
    *[
        (name, value)
        for name in (
            'd_model',
            'nhead',
            'num_encoder_layers',
            'num_decoder_layers',
            'dim_feedforward',
            'kappa',
            'rare_category_threshold',
            'numerical_threshold',
        )
        for value in (0, 2.5, None, True)
    ],
    *[('seed', value) for value in (-1, 0.5, None, 2**64)],
    *[('learning_rate', value) for value in (0, -1e-3, 1.5, float('nan'), '1')],
    *[('weight_decay', value) for value in (-0.1, 2, None)],
    *[('dropout', value) for value in (-0.1, 1, None)],
    *[('lambda_gaussian', value) for value in (-1, float('inf'), 'x')],
    *[('lambda_dirichlet', value) for value in (-1, float('nan'), '0')],
    *[('delta', value) for value in (-0.5, 1.5, None)],
    *[('generation', value) for value in ('any order', None, 1)],
    *[('latent_source', value) for value in ('both', None)],
    *[('rare_category_replacement', value) for value in ('other', None)],
    *[
        (name, value)
        for name in ('verbose', 'enable_gpu', 'enforce_min_max_values', 'enforce_rounding')
        for value in (None, 1, 'yes')
    ],
]


@pytest.mark.parametrize(('name', 'value'), OUT_OF_RANGE)
def test_an_argument_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(InvalidParameterError) as caught:
        make_synthesizer(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value, SynthesizerInputError)
    assert isinstance(caught.value, ValueError)


def test_heads_must_divide_the_width():
    with pytest.raises(InvalidParameterError, match='nhead=3 and d_model=16'):
        make_synthesizer(nhead=3)


# Fit and sample


def test_fit_and_sample_take_and_give_a_table_by_name(fitted):
    sampled = fitted.sample(num_rows=50)
    assert list(sampled) == ['t']
    assert sampled['t'].shape == (50, PEOPLE.shape[1])
    assert list(sampled['t'].columns) == list(PEOPLE.columns)
    assert sampled['t'].dtypes.equals(PEOPLE.dtypes)
    fitted.get_metadata().validate_data(sampled)


def test_fit_leaves_the_given_table_as_it_was(fitted):
    pd.testing.assert_frame_equal(PEOPLE, make_people())


def test_preprocess_and_fit_processed_data_make_the_same_model_as_fit(any_order):
    synthesizer = make_synthesizer()
    processed = synthesizer.preprocess({'t': PEOPLE})
    assert set(processed['t'].columns) == set(PEOPLE.columns)
    assert processed['t']['wage'].isna().equals(PEOPLE['wage'].isna())
    synthesizer.fit_processed_data(processed)
    any_order.reset_sampling()
    expected = any_order.sample(num_rows=40)['t']
    pd.testing.assert_frame_equal(synthesizer.sample(num_rows=40)['t'], expected)


def test_rows_come_in_batches_and_are_written_to_csv(fitted, tmp_path):
    sampled = fitted.sample(num_rows=60, batch_size=20)['t']
    assert len(sampled) == 60
    empty = fitted.sample(num_rows=60, batch_size=20, output_folder_path=str(tmp_path))['t']
    assert empty.empty  # the rows are in the file alone
    written = pd.read_csv(next(tmp_path.glob('*.csv')))
    assert len(written) == 60
    assert list(written) == list(empty) == list(sampled)


def test_reset_sampling_gives_the_same_rows_again_and_sampling_on_others(fitted):
    fitted.reset_sampling()
    first = fitted.sample(num_rows=30)['t']
    second = fitted.sample(num_rows=30)['t']
    fitted.reset_sampling()
    pd.testing.assert_frame_equal(fitted.sample(num_rows=30)['t'], first)
    assert not first.equals(second)


def test_two_fits_with_one_seed_give_the_same_rows_and_another_seed_others(any_order):
    any_order.reset_sampling()
    expected = any_order.sample(num_rows=30)['t']
    again, other = make_synthesizer(), make_synthesizer(seed=1)
    for synthesizer in (again, other):
        synthesizer.fit({'t': PEOPLE})
    pd.testing.assert_frame_equal(again.sample(num_rows=30)['t'], expected)
    assert not other.sample(num_rows=30)['t'].equals(expected)


def test_fit_and_sample_leave_the_global_random_states_alone():
    rows = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 the global state is what this test is about
        torch.manual_seed(seed)
        random.seed(seed)
        python_state = random.getstate()
        numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        synthesizer = make_synthesizer(epochs=1, dropout=0.1)
        synthesizer.fit({'t': PEOPLE})
        rows.append(synthesizer.sample(num_rows=20)['t'])
        after = np.random.get_state()  # noqa: NPY002
        np.testing.assert_array_equal(after[1], numpy_state[1])
        assert after[2:] == numpy_state[2:]
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert random.getstate() == python_state
    pd.testing.assert_frame_equal(*rows)


@pytest.mark.parametrize('generation', GENERATIONS)
@pytest.mark.parametrize('rows', [1, 3])
def test_a_few_rows_can_be_fitted(rows, generation):
    synthesizer = make_synthesizer(generation=generation)
    synthesizer.fit({'t': PEOPLE.head(rows)})
    sampled = synthesizer.sample(num_rows=10)['t']
    assert len(sampled) == 10
    assert set(sampled['group']) <= set(PEOPLE['group'].head(rows))


def test_a_second_fit_replaces_the_first():
    synthesizer = make_synthesizer(epochs=1)
    synthesizer.fit({'t': PEOPLE})
    adults = PEOPLE[PEOPLE['group'] == 'adult'].reset_index(drop=True)[PEOPLE.columns[::-1]]
    synthesizer.fit({'t': adults})
    sampled = synthesizer.sample(num_rows=20)['t']
    assert set(sampled['group']) == {'adult'}
    assert list(sampled.columns) == list(adults.columns)


def test_columns_may_be_called_by_integers():
    table = PEOPLE.set_axis([4, 3, 2, 1, 0], axis=1)
    columns = {str(4 - PEOPLE.columns.get_loc(name)): v for name, v in PEOPLE_COLUMNS.items()}
    synthesizer = NVIBSynthesizer(make_metadata(columns), **SMALL)
    synthesizer.fit({'t': table})
    assert list(table.columns) == [4, 3, 2, 1, 0]
    sampled = synthesizer.sample(num_rows=60)['t']
    assert list(sampled.columns) == [4, 3, 2, 1, 0]
    assert set(sampled[4]) <= set(PEOPLE['group'])
    assert sampled[2].between(0, 5000).all()
    assert list(synthesizer.reconstruct({'t': table})['t'].columns) == [4, 3, 2, 1, 0]


# Every sdtype


def make_everything(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    gaps = lambda values: pd.Series(values).mask(rng.random(rows) < 0.15)  # noqa: E731
    days = pd.Timestamp('2001-01-01') + pd.to_timedelta(rng.integers(0, 5000, rows), unit='D')
    strings = pd.Series(days).dt.strftime
    return pd.DataFrame(
        {
            'int64': rng.integers(-50, 3000, rows),
            'float64': gaps(rng.normal(0, 100, rows).round(1)),
            'Int64': gaps(rng.integers(0, 9, rows)).astype('Int64'),
            'Float64': gaps(rng.normal(size=rows).round(3)).astype('Float64'),
            'int8': rng.integers(0, 100, rows).astype('int8'),
            'float32': gaps(rng.normal(size=rows)).astype('float32'),
            'boolean': gaps(rng.random(rows) < 0.4).astype('boolean'),
            'bool': rng.random(rows) < 0.4,
            'bool object': gaps(rng.random(rows) < 0.4),
            'category': gaps(rng.choice(['x', 'y', 'z'], rows)).astype('category'),
            'string': gaps(rng.choice(['x', 'y', 'z'], rows)).astype('string'),
            'codes': rng.integers(0, 4, rows),
            'grade': gaps(rng.choice(['low', 'high'], rows)),
            'datetime64': gaps(days),
            'time': gaps(days + pd.to_timedelta(rng.integers(0, 86_400, rows), unit='s')),
            'iso date': gaps(strings('%Y-%m-%d')),
            'dotted date': gaps(strings('%d.%m.%Y')),
            'minutes': gaps(strings('%Y/%m/%d %H:%M')),
            'regex key': [f'ID-{i:05d}' for i in range(rows)],
            'other key': np.arange(rows) + 7,
            'shop': rng.choice(['s1', 's2'], rows),
            'email': [f'user{i}@example.com' for i in range(rows)],
            'phone': gaps([f'+1-555-{i:04d}' for i in range(rows)]),
            'note': rng.choice(['aa', 'bb'], rows),
        }
    )


EVERYTHING = make_everything()
SDTYPES = {
    'note': {'sdtype': 'unknown', 'pii': True},
    'phone': {'sdtype': 'phone_number', 'pii': True},
    'email': {'sdtype': 'email', 'pii': True},
    'shop': {'sdtype': 'id'},
    'other key': {'sdtype': 'id'},
    'regex key': {'sdtype': 'id', 'regex_format': r'ID-\d{5}'},
    'dotted date': {'sdtype': 'datetime', 'datetime_format': '%d.%m.%Y'},
    'minutes': {'sdtype': 'datetime', 'datetime_format': '%Y/%m/%d %H:%M'},
    'grade': {'sdtype': 'ordinal', 'range_values': ['low', 'mid', 'high']},
    **{name: {'sdtype': 'datetime'} for name in ('datetime64', 'time', 'iso date')},
    **{name: {'sdtype': 'boolean'} for name in ('boolean', 'bool', 'bool object')},
    **{name: {'sdtype': 'categorical'} for name in ('category', 'string', 'codes')},
    **{
        name: {'sdtype': 'numerical'}
        for name in ('int64', 'float64', 'Int64', 'Float64', 'int8', 'float32')
    },
}


@pytest.fixture(scope='module')
def everything():
    metadata = make_metadata(SDTYPES, 'regex key', alternate_keys=['other key'])
    synthesizer = NVIBSynthesizer(metadata, **{**SMALL, 'epochs': 10, 'batch_size': 64})
    synthesizer.fit({'t': EVERYTHING})
    return synthesizer, synthesizer.sample(num_rows=1500)['t']


def test_every_sdtype_comes_back_in_its_dtype_and_its_place(everything):
    synthesizer, sampled = everything
    assert list(sampled.columns) == list(EVERYTHING.columns)
    differing = sampled.dtypes[sampled.dtypes != EVERYTHING.dtypes]
    assert differing.empty, f'{differing}'
    synthesizer.get_metadata().validate_data({'t': sampled})


def test_every_column_has_its_share_of_missing_values(everything):
    _, sampled = everything
    modelled = [name for name in EVERYTHING if name not in ('phone', 'note', 'email')]
    shares = EVERYTHING[modelled].isna().mean()
    np.testing.assert_allclose(sampled[modelled].isna().mean(), shares, atol=0.06)
    assert (sampled[shares.index[shares == 0]].notna()).all(axis=None)


@pytest.mark.parametrize('decimals', [('float64', 1), ('Float64', 3), ('Int64', 0)])
def test_numbers_are_rounded_as_they_were_and_stay_in_range(decimals, everything):
    name, places = decimals
    values = everything[1][name].dropna()
    pd.testing.assert_series_equal(values, values.round(places))
    assert values.between(EVERYTHING[name].min(), EVERYTHING[name].max()).all()


@pytest.mark.parametrize(
    ('name', 'layout'),
    [('iso date', '%Y-%m-%d'), ('dotted date', '%d.%m.%Y'), ('minutes', '%Y/%m/%d %H:%M')],
)
def test_dates_keep_their_format(name, layout, everything):
    values = everything[1][name].dropna()
    parsed = pd.to_datetime(values, format=layout)
    assert (parsed.dt.strftime(layout) == values).all()
    assert (parsed == parsed.dt.normalize()).all()


def test_whole_days_stay_whole_days_and_whole_seconds_whole_seconds(everything):
    days, times = everything[1]['datetime64'].dropna(), everything[1]['time'].dropna()
    assert (days == days.dt.normalize()).all()
    assert (times == times.dt.floor('s')).all()
    assert (times != times.dt.normalize()).any()


def test_categories_are_the_known_ones(everything):
    for name in ('boolean', 'bool', 'bool object', 'category', 'string', 'codes', 'shop'):
        assert set(everything[1][name].dropna()) == set(EVERYTHING[name].dropna())
    assert set(everything[1]['grade'].dropna()) >= {'low', 'high'}


def test_keys_are_unique_and_personal_data_is_not_the_real_one(everything):
    _, sampled = everything
    assert sampled['regex key'].is_unique
    assert sampled['regex key'].str.fullmatch(r'ID-\d{5}').all()
    assert sampled['other key'].is_unique
    assert not sampled['email'].isin(EVERYTHING['email']).any()


def test_missing_values_keep_their_relation_to_other_columns():
    table = PEOPLE[['group', 'wage']]
    metadata = make_metadata({name: PEOPLE_COLUMNS[name] for name in table})
    weak = {'lambda_gaussian': 0.05, 'lambda_dirichlet': 0.05}
    settings = {'epochs': 40, 'batch_size': 32, 'learning_rate': 1e-2} | weak
    synthesizer = NVIBSynthesizer(metadata, **{**SMALL, **settings})
    synthesizer.fit({'t': table})
    sampled = synthesizer.sample(num_rows=1000)['t']
    agree = sampled['wage'].isna() == (sampled['group'] == 'child')
    assert agree.mean() > 0.95  # 0.58 if they were independent


# Transformers and metadata


@pytest.mark.filterwarnings('ignore:Replacing the default transformer')
@pytest.mark.parametrize(
    ('column', 'transformer'),
    [
        ('group', LabelEncoder(add_noise=True)),
        ('group', OneHotEncoder()),
        ('wage', FloatFormatter(missing_value_replacement='mean', learn_rounding_scheme=True)),
        ('score', GaussianNormalizer(learn_rounding_scheme=True)),
    ],
)
def test_transformers_can_be_replaced(column, transformer):
    synthesizer = make_synthesizer()
    synthesizer.auto_assign_transformers({'t': PEOPLE})
    synthesizer.update_transformers({column: transformer})
    synthesizer.fit({'t': PEOPLE})
    assert isinstance(synthesizer.get_transformers()[column], type(transformer))
    sampled = synthesizer.sample(num_rows=50)['t']
    assert sampled.dtypes.equals(PEOPLE.dtypes)
    assert list(sampled.columns) == list(PEOPLE.columns)
    assert set(sampled['group']) <= set(PEOPLE['group'])


def test_missing_values_stay_visible_to_the_model(any_order):
    transformers = any_order.get_transformers()
    assert set(transformers) == set(PEOPLE.columns)
    for name in ('wage', 'born'):
        assert transformers[name].missing_value_generation is None
        assert transformers[name].missing_value_replacement is None
    assert transformers['group'] is transformers['member'] is None


def test_info_and_metadata_are_those_of_the_synthesizer(any_order):
    info = any_order.get_info()
    assert info['class_name'] == 'NVIBSynthesizer'
    assert info['is_fit'] is True
    assert make_synthesizer().get_info()['is_fit'] is False
    assert any_order.get_metadata().to_dict() == make_metadata(PEOPLE_COLUMNS).to_dict()


def test_a_saved_synthesizer_continues_with_the_same_rows(fitted, tmp_path):
    fitted.save(str(tmp_path / 'synthesizer.pkl'))
    loaded = load_synthesizer(str(tmp_path / 'synthesizer.pkl'))
    expected = fitted.sample(num_rows=25)['t']
    pd.testing.assert_frame_equal(loaded.sample(num_rows=25)['t'], expected)
    loaded.reset_sampling()
    fitted.reset_sampling()
    expected = fitted.sample(num_rows=25)['t']
    pd.testing.assert_frame_equal(loaded.sample(num_rows=25)['t'], expected)


def test_a_saved_synthesizer_gives_the_same_rows_in_a_fresh_interpreter(any_order, tmp_path):
    paths = [str(tmp_path / 'synthesizer.pkl'), str(tmp_path / 'rows.pkl')]
    any_order.save(paths[0])
    expected = any_order.sample(num_rows=25)['t']
    script = (
        'import sys; from sdv.utils import load_synthesizer\n'
        'loaded = load_synthesizer(sys.argv[1])\n'
        "loaded.sample(num_rows=25)['t'].to_pickle(sys.argv[2])"
    )
    subprocess.run([sys.executable, '-c', script, *paths], check=True, capture_output=True)
    pd.testing.assert_frame_equal(pd.read_pickle(paths[1]), expected)


# Constraints


def make_trips(rows=300):
    rng = np.random.default_rng(3)
    low = rng.integers(0, 100, rows)
    city = rng.choice(['Bern', 'Geneva', 'Lyon'], rows)
    kind = rng.integers(0, 3, rows)
    return pd.DataFrame(
        {
            'country': np.where(city == 'Lyon', 'France', 'Switzerland'),
            'city': city,
            'low': low,
            'middle': low + rng.integers(1, 50, rows),
            'high': low + 50 + rng.integers(1, 50, rows),
            'price': 25 * rng.integers(1, 60, rows),
            'is_train': (kind == 0).astype(int),
            'is_bus': (kind == 1).astype(int),
            'is_boat': (kind == 2).astype(int),
        }
    )


TRIPS = make_trips()
TRIP_COLUMNS = {
    name: {'sdtype': 'categorical' if name in ('country', 'city') else 'numerical'}
    for name in TRIPS
}


def one_hot(table):
    return table[['is_train', 'is_bus', 'is_boat']].sum(axis=1) == 1


CONSTRAINTS = {
    'fixed combinations': (
        FixedCombinations(column_names=['country', 'city']),
        lambda table: (table['country'] == 'France') == (table['city'] == 'Lyon'),
    ),
    'inequality': (
        Inequality(low_column_name='low', high_column_name='high'),
        lambda table: table['low'] <= table['high'],
    ),
    'range': (
        Range(low_column_name='low', middle_column_name='middle', high_column_name='high'),
        lambda table: (table['low'] < table['middle']) & (table['middle'] < table['high']),
    ),
    'one-hot encoding': (OneHotEncoding(column_names=['is_train', 'is_bus', 'is_boat']), one_hot),
    'fixed increments': (
        FixedIncrements(column_name='price', increment_value=25),
        lambda table: table['price'] % 25 == 0,
    ),
}


@pytest.mark.parametrize('kind', CONSTRAINTS)
def test_constraints_hold_in_every_row(kind):
    constraint, holds = CONSTRAINTS[kind]
    synthesizer = NVIBSynthesizer(make_metadata(TRIP_COLUMNS), **SMALL)
    synthesizer.add_constraints([constraint])
    synthesizer.fit({'t': TRIPS})
    sampled = synthesizer.sample(num_rows=200)['t']
    assert len(sampled) == 200
    assert holds(sampled).all()
    assert list(sampled.columns) == list(TRIPS.columns)
    assert sampled.dtypes.equals(TRIPS.dtypes)
    rebuilt = synthesizer.reconstruct({'t': TRIPS})['t']
    assert holds(rebuilt).all()
    assert list(rebuilt.columns) == list(TRIPS.columns)
    for transformer in synthesizer.get_transformers().values():
        assert transformer is None or transformer.missing_value_generation is None


def test_conditions_and_constraints_hold_together():
    synthesizer = NVIBSynthesizer(make_metadata(TRIP_COLUMNS), **SMALL)
    synthesizer.add_constraints([CONSTRAINTS['range'][0], CONSTRAINTS['fixed combinations'][0]])
    synthesizer.fit({'t': TRIPS})
    condition = Condition({'is_train': 1}, num_rows=20)
    sampled = synthesizer.sample_from_conditions([condition])['t']
    assert len(sampled) == 20
    assert (sampled['is_train'] == 1).all()
    assert CONSTRAINTS['range'][1](sampled).all()
    assert CONSTRAINTS['fixed combinations'][1](sampled).all()


# Conditions

CONDITIONS = {
    'categorical': {'group': 'senior'},
    'boolean': {'member': True},
    'integer': {'score': int(PEOPLE['score'].iloc[3])},
    'float': {'wage': float(PEOPLE['wage'].dropna().iloc[3])},
    'datetime': {'born': PEOPLE['born'].dropna().iloc[3]},
    'missing number': {'wage': None},
    'missing date': {'born': None},
    'several': {'group': 'adult', 'member': False, 'score': int(PEOPLE['score'].iloc[4])},
    'several with a missing one': {'group': 'child', 'wage': None},
}


@pytest.mark.parametrize('kind', CONDITIONS)
def test_any_order_meets_conditions_at_the_first_try(kind, any_order):
    condition = Condition(CONDITIONS[kind], num_rows=30)
    sampled = any_order.sample_from_conditions([condition], max_tries_per_batch=1)['t']
    assert len(sampled) == 30
    assert list(sampled.columns) == list(PEOPLE.columns)
    for name, value in CONDITIONS[kind].items():
        assert (sampled[name].isna() if value is None else sampled[name] == value).all()
    assert not sampled.duplicated().all()


@pytest.mark.parametrize('kind', ['categorical', 'boolean', 'missing number'])
def test_single_pass_meets_conditions_by_rejection(kind):
    synthesizer = make_synthesizer(generation='single-pass')
    synthesizer.fit({'t': PEOPLE})
    condition = Condition(CONDITIONS[kind], num_rows=30)
    sampled = synthesizer.sample_from_conditions([condition])['t']
    assert len(sampled) == 30
    for name, value in CONDITIONS[kind].items():
        assert (sampled[name].isna() if value is None else sampled[name] == value).all()


def test_several_conditions_are_met_each_and_written_to_csv(any_order, tmp_path):
    conditions = [
        Condition({'group': 'child'}, num_rows=5),
        DataFrameCondition(pd.DataFrame({'group': ['senior', 'adult'], 'member': [True, False]})),
    ]
    sampled = any_order.sample_from_conditions(conditions, output_folder_path=str(tmp_path))['t']
    assert sampled['group'].tolist() == ['child'] * 5 + ['senior', 'adult']
    assert sampled['member'].tolist()[5:] == [True, False]
    written = pd.read_csv(next(tmp_path.glob('*.csv')))
    assert sorted(written['group']) == sorted(sampled['group'])


def test_remaining_columns_are_sampled_row_by_row(any_order):
    known = PEOPLE[['group', 'wage', 'score']].head(25)
    sampled = any_order.sample_remaining_columns(known, max_tries_per_batch=1)['t']
    pd.testing.assert_frame_equal(sampled[known.columns.tolist()], known, check_names=False)


def test_a_condition_with_an_unknown_category_is_refused(any_order):
    with pytest.raises(UnknownValueError) as caught:
        any_order.sample_from_conditions([Condition({'group': 'robot'}, num_rows=2)])
    for word in ("'group'", "'robot'", "'adult'"):
        assert word in str(caught.value)


# Reports


def test_losses_are_a_table_with_a_row_for_each_epoch(fitted):
    losses = fitted.get_loss_values()
    assert losses.columns.tolist() == [
        'Epoch',
        'Loss',
        'Validation Loss',
        'Reconstruction',
        'Validation Reconstruction',
        'Memorised',
        'L_G',
        'L_D',
        'Nats',
        'Active Components',
        'Learning Rate',
        'Seconds',
    ]
    assert losses['Epoch'].tolist() == [1, 2]
    assert np.isfinite(losses).all(axis=None)


def test_the_plot_of_the_losses_has_four_lines(fitted):
    figure = fitted.get_loss_values_plot(title='My losses')
    losses = fitted.get_loss_values()
    assert figure.layout.title.text == 'My losses'
    assert [line.name for line in figure.data] == [
        'Loss',
        'Validation Loss',
        'Reconstruction',
        'Validation Reconstruction',
    ]
    for line in figure.data:
        np.testing.assert_array_equal(line.y, losses[line.name])


def test_evaluate_scores_samples_against_real_rows(any_order):
    evaluation = any_order.evaluate({'t': PEOPLE}, num_rows=200)
    assert isinstance(evaluation, QualityEvaluation)
    scores = evaluation.summary.set_index('measure')['value']
    for measure in ('SDMetrics quality', 'shape error %', 'trend error %', 'C2ST'):
        assert np.isfinite(scores[measure])
    for arguments in ({'real_data': {'u': PEOPLE}}, {'real_data': PEOPLE, 'test': {'u': PEOPLE}}):
        with pytest.raises(InvalidTableError, match=r"must have table 't', received \['u'\]"):
            any_order.evaluate(**arguments)


def test_a_verbose_fit_shows_one_line_and_a_silent_one_nothing(capfd):
    make_synthesizer(verbose=True).fit({'t': PEOPLE})
    shown = capfd.readouterr()
    assert shown.err.count('\n') == 1
    last = shown.err.split('\r')[-1]
    for word in ('Fitting: 100%', 'epoch 2', 'loss', 'reconstruction', 'KL'):
        assert word in last
    make_synthesizer(epochs=1).fit({'t': PEOPLE})
    silent = capfd.readouterr()
    assert 'Fitting' not in shown.out + silent.out + silent.err


# Reconstruction


def test_reconstruction_is_deterministic_and_keeps_what_is_not_modelled(everything):
    synthesizer, _ = everything
    table = EVERYTHING.head(40).set_index(np.arange(40) + 1000)[EVERYTHING.columns[::-1]]
    before = table.copy()
    rebuilt = synthesizer.reconstruct({'t': table})['t']
    pd.testing.assert_frame_equal(table, before)
    assert rebuilt.index.equals(table.index)
    assert list(rebuilt.columns) == list(table.columns)
    assert rebuilt.dtypes.equals(table.dtypes)
    kept = ['regex key', 'other key', 'email', 'phone', 'note']
    pd.testing.assert_frame_equal(rebuilt[kept], table[kept])
    assert not rebuilt['float64'].equals(table['float64'])
    synthesizer.sample(num_rows=3)
    pd.testing.assert_frame_equal(synthesizer.reconstruct({'t': table})['t'], rebuilt)


def test_reconstruction_does_not_advance_sampling(any_order):
    any_order.reset_sampling()
    expected = any_order.sample(num_rows=10)['t']
    any_order.reset_sampling()
    any_order.reconstruct({'t': PEOPLE})
    pd.testing.assert_frame_equal(any_order.sample(num_rows=10)['t'], expected)


def test_an_unknown_category_cannot_be_reconstructed(fitted):
    table = PEOPLE.head(3).assign(group=['child', 'adult', 'robot'])
    with pytest.raises(UnknownValueError, match=r"'group' .*'robot'"):
        fitted.reconstruct({'t': table})


# Bad input


@pytest.mark.parametrize(
    'call',
    [
        lambda synthesizer: synthesizer.sample(num_rows=5),
        lambda synthesizer: synthesizer.sample_from_conditions([Condition({'group': 'child'})]),
        lambda synthesizer: synthesizer.sample_remaining_columns(PEOPLE[['group']].head(2)),
        lambda synthesizer: synthesizer.get_loss_values(),
        lambda synthesizer: synthesizer.get_loss_values_plot(),
        lambda synthesizer: synthesizer.reconstruct({'t': PEOPLE}),
        lambda synthesizer: synthesizer.evaluate({'t': PEOPLE}),
    ],
)
def test_nothing_works_before_fit(call):
    with pytest.raises(NotFittedError, match='has not been fitted') as caught:
        call(make_synthesizer())
    assert isinstance(caught.value, SamplingError)


@pytest.mark.parametrize('value', [np.inf, -np.inf])
def test_infinite_values_are_refused_before_anything_is_fitted(value):
    table = PEOPLE.assign(wage=PEOPLE['wage'].where(PEOPLE.index != 5, value))
    with pytest.raises(InvalidTableError, match="'t', column 'wage'") as caught:
        make_synthesizer().fit({'t': table})
    assert isinstance(caught.value, InvalidDataError)


def test_a_table_of_ids_and_personal_data_alone_is_refused():
    columns = {'key': {'sdtype': 'id'}, 'mail': {'sdtype': 'email', 'pii': True}}
    table = pd.DataFrame({'key': [1, 2, 3], 'mail': ['a@b.c', 'd@e.f', 'g@h.i']})
    with pytest.raises(InvalidTableError, match='must have a column to model'):
        NVIBSynthesizer(make_metadata(columns, 'key'), **SMALL).fit({'t': table})


def test_an_empty_table_is_refused():
    with pytest.raises(InvalidTableError, match='at least one row'):
        make_synthesizer().fit({'t': PEOPLE.head(0)})
    synthesizer = make_synthesizer()
    processed = synthesizer.preprocess({'t': PEOPLE})
    with pytest.raises(InvalidTableError, match='a row'):
        synthesizer.fit_processed_data({'t': processed['t'].head(0)})
    assert not synthesizer.get_info()['is_fit']


def test_a_table_without_its_name_is_refused_as_sdv_does():
    table = pd.DataFrame({'a': range(5)})
    synthesizer = NVIBSynthesizer(Metadata.detect_from_dataframes({'table': table}))
    with pytest.raises(InvalidDataTypeError, match='dictionary containing exactly one table'):
        synthesizer.fit(table)


def test_data_that_are_no_dictionary_of_tables_are_refused(any_order):
    with pytest.raises(InvalidTableError, match=r"DataFrames, received a DataFrame.*{'t': table}"):
        any_order.log_likelihood(PEOPLE)
    with pytest.raises(InvalidTableError, match='received one with a list'):
        any_order.log_likelihood({'t': [1, 2]})
    with pytest.raises(InvalidTableError, match='received a DataFrame'):
        any_order.membership_inference(PEOPLE, {'t': PEOPLE})
    with pytest.raises(InvalidTableError, match='received one with a list'):
        make_synthesizer().fit({'t': [1, 2]})
