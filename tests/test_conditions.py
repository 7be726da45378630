"""Rows on demand: conditions, known columns and constraints, and the logic beneath them."""

import numpy as np
import pandas as pd
import pytest
from sdv.cag import (
    FixedCombinations,
    FixedIncrements,
    Inequality,
    OneHotEncoding,
    Range,
    SingleTableProgrammableConstraint,
)
from sdv.metadata import Metadata
from sdv.sampling import Condition, DataFrameCondition

from sdv_nvib import ConditionError, InvalidTableError, NVIBSynthesizer, UnknownValueError
from sdv_nvib.conditions import assign_draws, dates_as, meets, with_given_values

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings("ignore:No 'datetime_format' is present"),
    pytest.mark.filterwarnings('ignore:The training data does not cover the full range'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),  # one epoch teaches little
]

SMALL = {
    'epochs': 1,
    'batch_size': 100,
    'd_model': 16,
    'dim_feedforward': 32,
    'num_decoder_layers': 1,
}


def make_trips(rows=200, seed=0):
    """Columns that every constraint of SDV can hold on, and some that none does."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 100, rows)
    start = pd.Timestamp('2020-01-01') + pd.to_timedelta(rng.integers(0, 900, rows), unit='D')
    city = rng.choice(['Bern', 'Geneva', 'Lyon'], rows)
    kind = rng.integers(0, 3, rows)
    return pd.DataFrame(
        {
            'trip': [f'T{i:04d}' for i in range(rows)],
            'email': [f'{i}@example.org' for i in range(rows)],
            'country': np.where(city == 'Lyon', 'France', 'Switzerland'),
            'city': city,
            'low': low,
            'middle': low + rng.integers(1, 50, rows),
            'high': low + 50 + rng.integers(1, 50, rows),
            'start': start,
            'end': start + pd.to_timedelta(rng.integers(1, 30, rows), unit='D'),
            'price': 25 * rng.integers(1, 60, rows),
            'is_train': (kind == 0).astype(int),
            'is_bus': (kind == 1).astype(int),
            'is_boat': (kind == 2).astype(int),
            'paid': rng.random(rows) < 0.3,
            'weight': pd.Series(rng.lognormal(3, 1, rows).round(2)).mask(rng.random(rows) < 0.2),
        }
    )


TRIPS = make_trips()
TRIPS.loc[TRIPS['paid'] & (TRIPS['price'] < 300), 'price'] = 300
SDTYPES = {
    'trip': 'id',
    'email': 'email',
    'country': 'categorical',
    'city': 'categorical',
    'start': 'datetime',
    'end': 'datetime',
    'paid': 'boolean',
}


def make_synthesizer(constraints=(), **changes):
    columns = {name: {'sdtype': SDTYPES.get(name, 'numerical')} for name in TRIPS}
    table = {'columns': columns, 'primary_key': 'trip'}
    metadata = Metadata.load_from_dict({'tables': {'trips': table}})
    synthesizer = NVIBSynthesizer(metadata, **{**SMALL, **changes})
    if constraints:
        synthesizer.add_constraints(list(constraints))
    synthesizer.fit({'trips': TRIPS})
    return synthesizer


@pytest.fixture(scope='module')
def fitted():
    return make_synthesizer()


# The logic beneath


def test_open_rows_get_draws_of_their_own_group_once_each():
    rng = np.random.default_rng(0)
    open_groups, drawn_groups = rng.integers(0, 5, 40), rng.integers(0, 6, 50)
    rows, draws = assign_draws(open_groups, drawn_groups)
    assert np.array_equal(open_groups[rows], drawn_groups[draws])
    assert len(set(rows)) == len(rows)
    assert len(set(draws)) == len(draws)
    counts = [np.bincount(groups, minlength=6) for groups in (open_groups, drawn_groups)]
    assert len(rows) == np.minimum(*counts).sum()


def test_a_draw_meets_equal_values_near_numbers_and_missing_by_missing():
    drawn = pd.DataFrame({'a': ['x', 'x', None, 'x'], 'b': [100.0, 102.0, 100.0, np.nan]})
    wanted = pd.DataFrame({'a': ['x', 'x', None, None], 'b': [100.9, 100.0, 100.0, np.nan]})
    given = pd.DataFrame(True, drawn.index, drawn.columns)
    assert meets(drawn, wanted, given, ['a']).tolist() == [True, True, True, False]
    assert meets(drawn, wanted, given, ['a', 'b']).tolist() == [True, False, True, False]
    given.loc[1, 'b'] = False
    given.loc[3, 'a'] = False
    assert meets(drawn, wanted, given, ['a', 'b']).all()


@pytest.mark.parametrize(
    ('drawn', 'wanted', 'dtype'),
    [
        (pd.Series([1, 2, 3]), pd.Series([7, 8, 9], dtype=object), 'int64'),
        (pd.Series([1, 2, 3]), pd.Series([7.0, 8.0, 9.0]), 'int64'),
        (pd.Series([1, 2, 3]), pd.Series([7.5, 8.0, 9.0]), 'float64'),
        (pd.Series([1.5, np.nan, 3]), pd.Series([7, None, 9]), 'float64'),
        (pd.Series([True, False, True]), pd.Series([False] * 3, dtype=object), 'bool'),
        (pd.Series(['a', 'b', 'a'], dtype='category'), pd.Series(['b', 'b', 'b']), 'category'),
        (pd.Series([1, 2, None], dtype='Int64'), pd.Series([5, 6, None]), 'Int64'),
    ],
)
def test_given_values_are_put_in_the_drawn_columns_dtype(drawn, wanted, dtype):
    result = with_given_values(drawn, wanted, np.ones(3, bool))
    assert str(result.dtype) == dtype
    assert [value for value in result if pd.notna(value)] == list(wanted.dropna())
    assert result.isna().equals(wanted.isna())
    half = with_given_values(drawn, wanted, np.array([False, True, False]))
    assert half.iloc[0] == drawn.iloc[0]


# Conditions that the model knows


def known_rows(rows=80):
    return TRIPS.sample(rows, random_state=1)


@pytest.mark.parametrize('batch_size', [None, 17])
def test_all_different_rows_are_completed_at_the_first_try(fitted, batch_size):
    known = known_rows()[['city', 'price', 'weight', 'start', 'paid', 'email']]
    sampled = fitted.sample_remaining_columns(known, max_tries_per_batch=1, batch_size=batch_size)[
        'trips'
    ]
    assert list(sampled.columns) == list(TRIPS.columns)
    pd.testing.assert_frame_equal(sampled[known.columns], known)
    assert sampled['trip'].is_unique
    assert sampled['low'].nunique() > 20


def test_all_rows_are_drawn_in_one_call_of_the_model(fitted, monkeypatch):
    sizes = []
    draw = fitted._model.sample
    monkeypatch.setattr(
        fitted._model, 'sample', lambda rows, *args: sizes.append(rows) or draw(rows, *args)
    )
    fitted.sample_remaining_columns(known_rows()[['price', 'weight']])
    assert sizes == [80]


def test_numbers_between_seen_ones_come_back_exactly(fitted):
    weights = TRIPS['weight'].dropna().sort_values().to_numpy()
    between = (weights[:-1] + weights[1:]) / 2 + 1e-4  # not rounded as the column is
    known = pd.DataFrame({'weight': between})
    sampled = fitted.sample_remaining_columns(known, max_tries_per_batch=1)['trips']
    assert sampled['weight'].tolist() == between.tolist()


def test_numbers_beyond_seen_ones_are_refused_with_the_range_or_kept_exactly(fitted):
    condition = [Condition({'price': 100_000}, num_rows=3)]
    with pytest.raises(UnknownValueError) as caught:
        fitted.sample_from_conditions(condition)
    for word in ("'trips'", "'price'", '100000', str(TRIPS['price'].max()), 'enforce_min_max'):
        assert word in str(caught.value)
    free = make_synthesizer(enforce_min_max_values=False)
    sampled = free.sample_from_conditions(condition, max_tries_per_batch=1)['trips']
    assert sampled['price'].tolist() == [100_000] * 3
    assert sampled.dtypes.equals(TRIPS.dtypes)


@pytest.mark.parametrize('constraints', [(), (Inequality('low', 'high'),)], ids=['', 'constraint'])
def test_fractions_of_whole_numbers_are_refused_with_the_whole_ones(constraints):
    made = make_synthesizer(constraints)
    with pytest.raises(UnknownValueError) as caught:
        made.sample_from_conditions([Condition({'low': 39.5, 'high': 99}, num_rows=3)])
    for word in ("'trips'", "'low'", 'must be a whole number', '39.5', 'Give 39 or 40.'):
        assert word in str(caught.value)
    sampled = made.sample_remaining_columns(pd.DataFrame({'low': [39.0] * 3, 'high': 99}))['trips']
    assert sampled['low'].tolist() == [39] * 3
    assert sampled['low'].dtype == 'int64'


@pytest.mark.parametrize('name', ['low', 'weight'])
def test_text_in_place_of_a_number_is_refused(fitted, name):
    with pytest.raises(UnknownValueError, match=rf"'trips', column '{name}'.*received 'much'"):
        fitted.sample_remaining_columns(pd.DataFrame({name: [40, 'much']}))


def test_fractions_of_rounded_numbers_are_refused_unless_these_are_not_rounded():
    table = pd.DataFrame({'hours': [38.0, 40.0, np.nan, 45.0] * 20, 'paid': [True, False] * 40})
    columns = {'hours': {'sdtype': 'numerical'}, 'paid': {'sdtype': 'boolean'}}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    condition = [Condition({'hours': 39.5}, num_rows=2)]
    for enforce_rounding in (True, False):
        made = NVIBSynthesizer(metadata, enforce_rounding=enforce_rounding, **SMALL)
        made.fit({'t': table})
        if enforce_rounding:
            with pytest.raises(UnknownValueError, match='39 or 40, or fit with enforce_rounding'):
                made.sample_from_conditions(condition)
        else:
            assert (made.sample_from_conditions(condition)['t']['hours'] == 39.5).all()


def test_an_unknown_category_is_refused_by_column_value_and_nearest_ones(fitted, tmp_path):
    known = pd.DataFrame({'city': ['Bern', 'Genova']})
    with pytest.raises(UnknownValueError) as caught:
        fitted.sample_remaining_columns(known, output_folder_path=str(tmp_path))
    for word in ("'city'", "'Genova'", "['Geneva', "):
        assert word in str(caught.value)


def test_dates_are_met_in_any_unit_also_beyond_seen_ones(fitted):
    days = ['2021-03-04', '2021-03-05', '2035-01-01']
    for unit in ('s', 'us', 'ns'):
        known = pd.DataFrame({'start': pd.Series(days).astype(f'datetime64[{unit}]')})
        sampled = fitted.sample_remaining_columns(known, max_tries_per_batch=1)['trips']
        assert sampled['start'].dt.strftime('%Y-%m-%d').tolist() == days
        assert sampled['start'].dtype == TRIPS['start'].dtype
    noon = pd.Timestamp('2021-03-04 12:00')  # pandas makes it a column of seconds
    sampled = fitted.sample_from_conditions([Condition({'start': noon}, num_rows=2)])['trips']
    assert sampled['start'].tolist() == [noon] * 2
    with pytest.raises(UnknownValueError, match=r"'start'.*'%Y-%m-%d'.*'soon'"):
        fitted.sample_remaining_columns(pd.DataFrame({'start': ['2021-03-04', 'soon']}))


def test_given_dates_need_not_be_of_the_type_that_the_column_has(fitted):
    for days in (['2021-03-04', '2035-01-01'], pd.to_datetime(['2021-03-04', '2035-01-01'])):
        sampled = fitted.sample_remaining_columns(pd.DataFrame({'start': days}))['trips']
        assert sampled['start'].dtype == TRIPS['start'].dtype
        assert sampled['start'].tolist() == pd.to_datetime(days).tolist()


@pytest.mark.parametrize('dtype', ['object', 'datetime64[ns]', 'datetime64[ns, Europe/Berlin]'])
def test_dates_and_texts_become_the_type_of_a_column(dtype):
    dtype = pd.api.types.pandas_dtype(dtype)
    zone = '%z' if getattr(dtype, 'tz', None) else ''
    form = f'%d.%m.%Y{zone}'
    dates = pd.Series(pd.to_datetime(['2020-02-01', None])).astype('datetime64[s]')
    dates = dates.dt.tz_localize('Europe/Berlin') if zone else dates
    texts = dates.dt.strftime(form)
    for values in (dates, texts):
        made = dates_as(dtype, values, form)
        assert made.dtype == dtype
        assert made.tolist()[0] == (texts[0] if dtype.kind == 'O' and not zone else dates[0])
        assert made.isna().tolist() == [False, True]


@pytest.mark.parametrize('unit', ['s', 'us'])
def test_tables_of_dates_in_any_unit_come_back(unit):
    dates = TRIPS[['start', 'end']].astype(f'datetime64[{unit}]')
    columns = {name: {'sdtype': 'datetime'} for name in dates}
    metadata = Metadata.load_from_dict({'tables': {'trips': {'columns': columns}}})
    synthesizer = NVIBSynthesizer(metadata, **SMALL)
    synthesizer.fit({'trips': dates})
    sampled = synthesizer.sample(50)['trips']
    assert sampled.dtypes.equals(dates.dtypes)
    assert sampled['start'].between(dates['start'].min(), dates['start'].max()).all()
    filled = synthesizer.impute({'trips': dates.assign(end=pd.NaT)})['trips']
    assert filled['end'].between(dates['end'].min(), dates['end'].max()).all()
    compared = NVIBSynthesizer(metadata, **SMALL)
    compared.add_constraints([DATES])
    with pytest.raises(InvalidTableError, match=r"'start'.*nanoseconds.*as_unit\('ns'\)"):
        compared.fit({'trips': dates})


def test_a_missing_value_may_be_a_condition_of_some_rows_only(fitted):
    known = pd.DataFrame({'weight': [np.nan, 12.5, np.nan], 'city': ['Bern', 'Lyon', 'Lyon']})
    sampled = fitted.sample_remaining_columns(known, max_tries_per_batch=1)['trips']
    pd.testing.assert_frame_equal(sampled[['weight', 'city']], known)
    with pytest.raises(UnknownValueError, match=r"'price'.*missing"):
        fitted.sample_remaining_columns(pd.DataFrame({'price': [np.nan]}))


def test_batches_are_written_as_they_come(fitted, tmp_path):
    conditions = [
        Condition({'city': 'Bern'}, num_rows=10),
        DataFrameCondition(pd.DataFrame({'city': ['Lyon', 'Geneva'], 'paid': [True, False]})),
    ]
    sampled = fitted.sample_from_conditions(
        conditions, batch_size=4, output_folder_path=str(tmp_path)
    )['trips']
    assert sampled['city'].tolist() == ['Bern'] * 10 + ['Lyon', 'Geneva']
    assert sampled['paid'].tolist()[10:] == [True, False]
    written = pd.read_csv(next(tmp_path.glob('*.csv')))
    assert written['trip'].tolist() == sampled['trip'].tolist()
    assert list(written.columns) == list(TRIPS.columns)


def test_an_error_leaves_the_finished_batches_in_the_file(fitted, tmp_path, monkeypatch):
    draw, calls = fitted._model.sample, []

    def fail_later(rows, *args):
        calls.append(rows)
        if len(calls) == 3:
            raise MemoryError('no more')
        return draw(rows, *args)

    monkeypatch.setattr(fitted._model, 'sample', fail_later)
    known = known_rows()[['city']]
    with pytest.raises(MemoryError, match=r'Partial results are stored in .*csv\. no more'):
        fitted.sample_remaining_columns(known, batch_size=10, output_folder_path=str(tmp_path))
    assert len(pd.read_csv(next(tmp_path.glob('*.csv')))) == 20


# Constraints


class PaidIsDear(SingleTableProgrammableConstraint):
    """Paid trips cost at least 300: a constraint of a user's own, which transforms nothing."""

    def transform(self, data):
        return data.assign(paid=data['paid'].astype(int))

    def reverse_transform(self, transformed_data):
        rows = transformed_data.assign(paid=transformed_data['paid'].astype(bool))
        rows.loc[rows['paid'] & (rows['price'] < 300), 'price'] = 300
        return rows

    def get_updated_metadata(self, metadata):
        metadata.tables['trips'].columns['paid']['sdtype'] = 'categorical'
        return metadata

    def is_valid(self, synthetic_data):
        return ~synthetic_data['paid'] | (synthetic_data['price'] >= 300)


TRAINS = ['is_train', 'is_bus', 'is_boat']
COMBINATIONS = FixedCombinations(column_names=['country', 'city'])
RANGE = Range(low_column_name='low', middle_column_name='middle', high_column_name='high')
DATES = Inequality(low_column_name='start', high_column_name='end', strict_boundaries=True)


def in_one_country(rows):
    return (rows['country'] == 'France') == (rows['city'] == 'Lyon')


def in_range(rows):
    return (rows['low'] < rows['middle']) & (rows['middle'] < rows['high'])


CONSTRAINTS = {
    'fixed combinations': ([COMBINATIONS], in_one_country),
    'inequality': (
        [Inequality(low_column_name='low', high_column_name='high')],
        lambda rows: rows['low'] <= rows['high'],
    ),
    'inequality of dates': ([DATES], lambda rows: rows['start'] < rows['end']),
    'range': ([RANGE], in_range),
    'one-hot encoding': (
        [OneHotEncoding(column_names=TRAINS)],
        lambda rows: rows[TRAINS].sum(axis=1) == 1,
    ),
    'one-hot encoding as a category': (
        [OneHotEncoding(column_names=TRAINS, learning_strategy='categorical')],
        lambda rows: rows[TRAINS].sum(axis=1) == 1,
    ),
    'fixed increments': (
        [FixedIncrements(column_name='price', increment_value=25)],
        lambda rows: rows['price'] % 25 == 0,
    ),
    "a user's own": (
        [PaidIsDear()],
        lambda rows: ~rows['paid'] | (rows['price'] >= 300),
    ),
    'chained and rejected': (
        [COMBINATIONS, RANGE, Inequality(low_column_name='low', high_column_name='middle'), DATES],
        lambda rows: in_one_country(rows) & in_range(rows) & (rows['start'] < rows['end']),
    ),
}


@pytest.mark.parametrize('kind', CONSTRAINTS)
def test_constraints_hold_with_and_without_conditions(kind):
    constraints, holds = CONSTRAINTS[kind]
    synthesizer = make_synthesizer(constraints)
    sampled = synthesizer.sample(num_rows=100)['trips']
    # All columns of constraints are given: everything is known to the model.
    known = known_rows(20).drop(columns=['trip', 'paid', 'weight'])
    rest = synthesizer.sample_remaining_columns(known, max_tries_per_batch=20)['trips']
    pd.testing.assert_frame_equal(rest[known.columns], known)
    # Some are: a part is met by rejection.
    part = [Condition({'city': 'Lyon', 'is_bus': 1, 'paid': True}, num_rows=10)]
    some = synthesizer.sample_from_conditions(part)['trips']
    assert (some[['city', 'is_bus', 'paid']] == ['Lyon', 1, True]).all(axis=None)
    for rows, size in ((sampled, 100), (rest, 20), (some, 10)):
        assert len(rows) == size
        assert holds(rows).all()
        synthesizer.validate_constraints(rows)
        assert rows.dtypes.equals(TRIPS.dtypes)


def test_a_condition_that_breaks_a_constraint_is_refused():
    synthesizer = make_synthesizer([COMBINATIONS])
    known = pd.DataFrame({'country': ['France'], 'city': ['Bern']})
    with pytest.raises(ConditionError, match=r"FixedCombinations.*'France'"):
        synthesizer.sample_remaining_columns(known)


def test_the_lowest_column_of_a_range_is_known_to_the_model_by_itself():
    synthesizer = make_synthesizer([RANGE, DATES])
    known = TRIPS[['low', 'start']].sample(40, random_state=2)
    sampled = synthesizer.sample_remaining_columns(known, max_tries_per_batch=1)['trips']
    pd.testing.assert_frame_equal(sampled[['low', 'start']], known)
    assert in_range(sampled).all()
    assert (sampled['start'] < sampled['end']).all()


def test_what_rejection_cannot_find_is_left_out_with_sdvs_warning():
    synthesizer = make_synthesizer([RANGE])
    known = pd.DataFrame({'high': TRIPS['high'].head(40)})
    with pytest.warns(UserWarning, match='Only able to sample'):
        sampled = synthesizer.sample_remaining_columns(known, max_tries_per_batch=2)['trips']
    assert 0 < len(sampled) < 40
    assert sampled['high'].equals(known['high'].loc[sampled.index])
    impossible = [Condition({'high': TRIPS['high'].max(), 'low': 0, 'city': 'Bern'}, num_rows=2)]
    with pytest.raises(ValueError, match='Unable to sample any rows'):
        synthesizer.sample_from_conditions(impossible, max_tries_per_batch=1)


def test_the_progress_bar_counts_accepted_rows(fitted, capsys):
    fitted.sample_remaining_columns(known_rows()[['price']], batch_size=40)
    shown = capsys.readouterr().err
    assert 'Sampling remaining columns: 100%' in shown
    assert '80/80' in shown
    fitted.sample_from_conditions([Condition({'city': 'Bern'}, 3), Condition({'paid': True}, 4)])
    shown = capsys.readouterr().err
    assert 'Sampling conditions' in shown
    assert '7/7' in shown


# Given values that constraints and their transformers do not keep


def fit_pair(low, high, constraint=Inequality, form=None, **settings):
    """A synthesizer of two columns, the lower of which is named first, or of three."""
    table = pd.DataFrame({'low': low, 'high': high})
    described = {'sdtype': 'datetime' if form is not None else 'numerical'}
    described |= {'datetime_format': form} if form else {}
    columns = dict.fromkeys(table, described)
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    synthesizer = NVIBSynthesizer(metadata, **{**SMALL, **settings})
    synthesizer.add_constraints([constraint('low', 'high')])
    synthesizer.fit({'t': table})
    return synthesizer, table


def test_a_number_given_exactly_holds_to_the_constraint_as_the_drawn_one_near_it_did():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 100, 400).round(2)
    synthesizer, table = fit_pair(low, (low + rng.uniform(0, 0.5, 400)).round(2))
    drawn = [
        synthesizer.sample_from_conditions([Condition({'high': 50.0}, num_rows=40)])['t'],
        synthesizer.sample_remaining_columns(table[['high']].head(40))['t'],
        synthesizer.impute({'t': table.assign(low=np.nan).head(40)})['t'],
    ]
    assert (drawn[0]['high'] == 50).all()
    for rows in drawn:
        assert len(rows) == 40
        assert (rows['low'] <= rows['high']).all()


def test_a_low_value_out_of_range_is_refused_or_leaves_no_rows():
    low = np.arange(200) % 50
    high = low + np.arange(200) % 7
    synthesizer, _ = fit_pair(low, high)
    with pytest.raises(UnknownValueError, match=r"'low'.*\[0, 49\], received 1000"):
        synthesizer.sample_from_conditions([Condition({'low': 1000}, num_rows=3)])
    unlimited, _ = fit_pair(low, high, enforce_min_max_values=False)
    with pytest.raises(ValueError, match='Unable to sample any rows'):
        unlimited.sample_from_conditions([Condition({'low': 1000}, num_rows=3)])


@pytest.mark.parametrize('form', ['%Y-%m-%d', ''])
def test_durations_between_dates_come_back_exactly(form):
    rng = np.random.default_rng(0)
    days, start = [5, 7, 14, 4000], pd.Timestamp('2020-01-01')
    low = start + pd.to_timedelta(rng.integers(0, 300, 300), 'D')
    high = low + pd.to_timedelta(rng.choice(days, 300), 'D')
    dates = [column.strftime(form) if form else column for column in (low, high)]
    synthesizer, _ = fit_pair(*dates, form=form)
    drawn = synthesizer.sample(300)['t'].apply(pd.to_datetime)
    inside = drawn[drawn['high'].between(high.min(), high.max(), inclusive='neither')]
    assert set((inside['high'] - inside['low']) / pd.Timedelta(days=1)) == set(days)
    assert (drawn['low'] == drawn['low'].dt.normalize()).all()


def test_durations_in_a_range_of_dates_come_back_exactly():
    rng = np.random.default_rng(0)
    low = pd.Timestamp('2020-01-01') + pd.to_timedelta(rng.integers(0, 10**6, 300), 's')
    middle = low + pd.to_timedelta(rng.choice([3650, 3651], 300), 'D')
    high = middle + pd.to_timedelta(rng.choice([1, 2, 10**6], 300), 'us')
    table = pd.DataFrame({'a': low, 'b': middle, 'c': high})
    columns = {name: {'sdtype': 'datetime'} for name in table}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    synthesizer = NVIBSynthesizer(metadata, **SMALL)
    synthesizer.add_constraints([Range('a', 'b', 'c')])
    synthesizer.fit({'t': table})
    drawn = synthesizer.sample(300)['t']
    inside = drawn[
        drawn['b'].between(middle.min(), middle.max(), inclusive='neither')
        & drawn['c'].between(high.min(), high.max(), inclusive='neither')
    ]
    assert set((inside['b'] - inside['a']) / pd.Timedelta(days=1)) == {3650, 3651}
    assert set((inside['c'] - inside['b']) / pd.Timedelta(microseconds=1)) == {1, 2, 10**6}


def test_texts_that_sdv_would_read_as_other_dates_are_refused_under_an_inequality():
    with pytest.raises(InvalidTableError, match=r"'low'.*'%d/%m/%Y'.*pandas\.to_datetime"):
        fit_pair(['05/01/2020'] * 20, ['06/01/2020'] * 20, form='%d/%m/%Y')


def test_whole_numbers_with_gaps_are_refused_under_an_inequality():
    low = pd.Series([1, 2, None, 4] * 10, dtype='Int64')
    with pytest.raises(InvalidTableError, match=r"'low'.*Int64.*astype\('float64'\)"):
        fit_pair(low, low + 1)


def test_missing_conditions_of_every_kind():
    values = pd.Series([1, 2, None, 4] * 20, dtype='Int64')
    metadata = Metadata.load_from_dict(
        {'tables': {'t': {'columns': {name: {'sdtype': 'numerical'} for name in 'ab'}}}}
    )
    synthesizer = NVIBSynthesizer(metadata, **SMALL)
    synthesizer.fit({'t': pd.DataFrame({'a': values, 'b': range(80)})})
    for missing in (pd.NA, None, np.nan):
        drawn = synthesizer.sample_from_conditions([Condition({'a': missing}, num_rows=3)])['t']
        assert drawn['a'].isna().tolist() == [True] * 3
    mixed = pd.DataFrame({'a': pd.Series([pd.NA, 1], dtype=object)})
    drawn = synthesizer.sample_remaining_columns(mixed)['t']
    assert drawn['a'].astype(object).fillna(-1).tolist() == [-1, 1]


def fit_dates(table, constraints, sdtypes=None, **settings):
    columns = {name: {'sdtype': (sdtypes or {}).get(name, 'datetime')} for name in table}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    synthesizer = NVIBSynthesizer(metadata, **{**SMALL, 'epochs': 2, **settings})
    synthesizer.add_constraints(constraints)
    synthesizer.fit({'t': table})
    return synthesizer


def days_after(start, days):
    return pd.Timestamp(start) + pd.to_timedelta(days, 'D')


def test_exact_durations_are_what_later_constraints_are_checked_on():
    rng = np.random.default_rng(0)
    day = rng.choice([0, 10, 20, 30], 300)
    last = days_after('2020-01-08', day)
    other = last - pd.to_timedelta(rng.choice([10, 20], 300), 'D')
    table = pd.DataFrame({'a': days_after('2020-01-01', day), 'b': last, 'c': other})
    rules = [Inequality('a', 'b'), Inequality('c', 'b', strict_boundaries=True)]
    synthesizer = fit_dates(table, rules)
    drawn = synthesizer.sample(300)['t']
    assert len(drawn) > 200
    assert (drawn['c'] < drawn['b']).all()
    synthesizer.validate_constraints(drawn)


def test_conditions_under_dates_with_gaps_and_another_constraint():
    rng = np.random.default_rng(0)
    low = pd.Series(days_after('2020-01-01', rng.choice([0, 31], 200)))
    table = pd.DataFrame(
        {'a': low.mask(rng.random(200) < 0.5), 'b': days_after('2020-02-08', [0] * 200)}
    )
    table['city'] = rng.choice(['Bern', 'Lyon'], 200)
    table['land'] = table['city'].map({'Bern': 'CH', 'Lyon': 'F'})
    rules = [Inequality('a', 'b'), FixedCombinations(['city', 'land'])]
    synthesizer = fit_dates(table, rules, {'city': 'categorical', 'land': 'categorical'}, epochs=20)
    for known in ({'a': None}, {'city': 'Lyon'}):
        drawn = synthesizer.sample_from_conditions([Condition(known, num_rows=1)])['t']
        assert len(drawn) == 1
    known = pd.DataFrame({'b': table['b'].head(100)})
    gaps = synthesizer.sample_remaining_columns(known)['t']['a'].isna().mean()
    assert 0.3 < gaps < 0.7


@pytest.mark.parametrize('form', ['%Y-%-m-%-d', '%H:%M', '%Y-%m-%dT%H:%M:%SZ', '%d %b %Y'])
def test_texts_that_sdv_reads_rightly_work_under_an_inequality(form):
    low = pd.date_range('2020-01-01 08:00', periods=12, freq='15min').repeat(5)
    high = low + pd.to_timedelta([60, 120] * 30, 'min')
    synthesizer, table = fit_pair(low.strftime(form), high.strftime(form), form=form)
    drawn = synthesizer.sample(50)['t']
    assert set(drawn['low']) <= set(table['low'])
    assert set(drawn['high']) <= set(table['high'])


@pytest.mark.skipif(
    pd.__version__ < '2.2', reason='SDV compares pandas.NA, which pandas gave to NumPy before 2.2'
)
def test_whole_numbers_may_have_gaps_above_the_lowest_column():
    low = pd.Series([1, 2, 3, 4] * 10, dtype='Int64')
    synthesizer, _ = fit_pair(low, (low + 1).where(low != 2))
    drawn = synthesizer.sample(50)['t']
    assert drawn['high'].isna().any()
    assert drawn.dtypes.tolist() == [low.dtype] * 2


def test_a_column_may_be_named_as_the_one_that_takes_the_place_of_another():
    table = pd.DataFrame({'low': range(60), 'high': range(60, 120), 'low.fillna': [0, 1, 2] * 20})
    synthesizer = fit_dates(table, [Inequality('low', 'high')], dict.fromkeys(table, 'numerical'))
    drawn = synthesizer.sample_from_conditions([Condition({'low': 50}, num_rows=3)])['t']
    assert drawn['low'].tolist() == [50] * 3


def test_dates_of_several_offsets_become_those_of_a_zone():
    texts = pd.Series(['2020-01-05 00:00:00+0100', '2020-07-05 00:00:00+0200'])
    dtype = pd.DatetimeTZDtype(tz='Europe/Berlin')
    made = dates_as(dtype, texts, '%Y-%m-%d %H:%M:%S%z')
    assert made.dtype == dtype
    assert made.dt.strftime('%m-%d %H').tolist() == ['01-05 00', '07-05 00']
    naive = pd.Series(pd.to_datetime(['2020-01-05']))
    assert dates_as(np.dtype(object), naive, '%Y-%m-%d %z').tolist() == ['2020-01-05 +0000']
