"""Protection: what few rows have is in no sampled row and in no file."""

import numpy as np
import pandas as pd
import pytest
from sdv.cag import FixedCombinations, Inequality
from sdv.metadata import Metadata

from sdv_nvib import InvalidTableError, NVIBSynthesizer
from sdv_nvib.protection import protect_categories, protect_numbers

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),
    pytest.mark.filterwarnings("ignore:No 'datetime_format' is present"),
    pytest.mark.filterwarnings('ignore:The training data does not cover the full range'),
]
NUMERICAL = {'sdtype': 'numerical'}
TINY = {'epochs': 1, 'd_model': 8, 'nhead': 2, 'num_decoder_layers': 1, 'dim_feedforward': 8}


def rng(seed=0):
    return np.random.default_rng(seed)


# Numbers and dates


@pytest.mark.parametrize('threshold', [2, 5, 20])
def test_no_unshared_value_is_left_and_the_distribution_stays(threshold):
    values = pd.Series(rng().lognormal(3, 1, 2000))
    protected = protect_numbers(values, threshold, NUMERICAL)
    assert not protected.isin(values).any()
    assert values.corr(protected, method='spearman') > 0.999
    quantiles = np.linspace(0.05, 0.95, 19)
    relative = protected.quantile(quantiles) / values.quantile(quantiles)
    np.testing.assert_allclose(relative, 1, atol=0.02)


def test_extremes_have_no_part_in_what_is_kept():
    values = pd.Series(rng().normal(size=500))
    moved = values.copy()
    moved[values.idxmax()], moved[values.idxmin()] = 1e9, -1e9
    protected = [protect_numbers(one, 5, NUMERICAL) for one in (values, moved)]
    pd.testing.assert_series_equal(protected[0], protected[1])
    assert (protected[0] == protected[0].max()).sum() >= 5
    assert (protected[0] == protected[0].min()).sum() >= 5


def test_values_that_enough_rows_share_stay_exactly_where_they_were():
    values = pd.Series(np.where(rng().random(400) < 0.5, 0.0, rng(1).random(400)))
    protected = protect_numbers(values, 5, NUMERICAL)
    assert (protected[values == 0] == 0).all()
    assert (protected[values != 0] > 0).all()


def test_a_few_unshared_values_join_the_nearest_shared_one():
    values = pd.Series([0.0] * 20 + [10.0] * 20 + [1.0, 8.0, 99.0])
    protected = protect_numbers(values, 5, NUMERICAL)
    assert protected.tolist() == [0.0] * 20 + [10.0] * 20 + [0.0, 10.0, 10.0]


@pytest.mark.parametrize('dtype', ['int64', 'int8', 'Int64', 'float32', 'Float64', 'object'])
def test_dtype_and_grid_stay(dtype):
    values = pd.Series(rng().integers(0, 25, 200) * 5).astype(dtype)
    if dtype in ('Int64', 'Float64', 'float32'):
        values = values.mask(rng(1).random(200) < 0.2)
    protected = protect_numbers(values, 20, NUMERICAL)
    assert protected.dtype == values.dtype
    assert (protected.isna() == values.isna()).all()
    assert (protected.dropna().astype(float) % 5 == 0).all()
    assert protected.value_counts().min() < len(values)


def test_int64_limits_are_no_overflow():
    limits = np.iinfo(np.int64)
    values = pd.Series([limits.min, limits.max, *range(-40, 40)] * 1)
    protected = protect_numbers(values, 3, NUMERICAL)
    assert protected.between(-40, 40).all()


@pytest.mark.parametrize('layout', [None, '%d.%m.%Y', '%Y-%m-%d %H:%M:%S'])
def test_dates_stay_dates_of_their_format(layout):
    days = pd.Series(pd.Timestamp('2001-01-01') + pd.to_timedelta(rng().permutation(900), 'D'))
    days = days.mask(rng(1).random(900) < 0.1)
    values = days if layout is None else days.dt.strftime(layout)
    column = {'sdtype': 'datetime'} | ({} if layout is None else {'datetime_format': layout})
    protected = protect_numbers(values, 10, column)
    assert protected.dtype == values.dtype
    parsed = pd.to_datetime(protected, format=layout)
    assert (parsed.dropna() == parsed.dropna().dt.normalize()).all()
    assert parsed.max() < days.max()
    assert parsed.min() > days.min()
    assert (parsed.isna() == days.isna()).all()


def test_too_few_values_become_missing_or_are_an_error():
    some = pd.Series([1.0, 2.0, *[None] * 8])
    assert protect_numbers(some, 3, NUMERICAL).isna().all()
    with pytest.raises(InvalidTableError, match=r'at least 3 rows.*Lower numerical_threshold'):
        protect_numbers(pd.Series([1, 2], name='a'), 3, NUMERICAL)


def test_a_column_of_missing_values_alone_stays_one():
    empty = pd.Series([None] * 5, dtype='float64')
    pd.testing.assert_series_equal(protect_numbers(empty, 3, NUMERICAL), empty)


# Categories


@pytest.mark.parametrize('dtype', ['object', 'category', 'string'])
@pytest.mark.parametrize('replacement', ['frequent', 'missing'])
def test_rare_categories_are_replaced(dtype, replacement):
    values = pd.Series(['a'] * 50 + ['b'] * 30 + ['c'] * 2 + ['d', None]).astype(dtype)
    protected = protect_categories(values, 3, replacement, rng())
    assert set(protected.dropna()) == {'a', 'b'}
    assert protected.isna().sum() == (4 if replacement == 'missing' else 1)
    assert (protected[:80].astype(str) == values[:80].astype(str)).all()
    if dtype == 'category':
        assert list(protected.cat.categories) == ['a', 'b']
    else:
        assert protected.dtype == values.dtype


def test_truth_values_and_codes_can_be_replaced_too():
    truths = pd.Series([True] * 20 + [False])
    assert protect_categories(truths, 2, 'frequent', rng()).tolist() == [True] * 21
    codes = pd.Series([7] * 20 + [8])
    protected = protect_categories(codes, 2, 'frequent', rng())
    assert protected.tolist() == [7] * 21
    assert protected.dtype == codes.dtype


def test_without_a_frequent_category_there_is_an_error_with_the_remedy():
    values = pd.Series(['a', 'b', 'c'], name='street')
    with pytest.raises(InvalidTableError, match="'street' must have a category in at least 2 rows"):
        protect_categories(values, 2, 'frequent', rng())
    assert protect_categories(values, 2, 'missing', rng()).isna().all()


# The attack on the model


def test_an_overfitted_model_is_found_out_and_an_unseen_row_is_the_least_likely():
    source = rng(5)
    table = pd.DataFrame({c: source.choice(list('abcdefgh'), 120) for c in 'uvwxyz'})
    seen, unseen = table[:60], table[60:]
    columns = {name: {'sdtype': 'categorical'} for name in table}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    fitted = NVIBSynthesizer(
        metadata, epochs=60, d_model=32, lambda_gaussian=0.0, lambda_dirichlet=0.0
    )
    fitted.fit({'t': seen.copy()})
    attack = fitted.membership_inference({'t': seen}, {'t': unseen})
    chance = fitted.membership_inference({'t': unseen[:30]}, {'t': unseen[30:]})
    assert attack.auc > 0.6 > chance.auc
    assert attack.tpr_interval[0] <= attack.tpr_at_1_percent <= attack.tpr_interval[1]
    reference = NVIBSynthesizer(metadata, epochs=3, d_model=32)
    reference.fit({'t': pd.concat([seen[:0], table[60:90]]).copy()})
    half = {'t': unseen[30:]}
    calibrated = fitted.membership_inference({'t': seen}, half, reference)
    assert calibrated.auc > 0.57
    strange = unseen.assign(u='never seen')
    attack = fitted.membership_inference({'t': seen}, {'t': strange})
    assert (attack.auc, attack.tpr_at_1_percent) == (1.0, 1.0)
    summary = fitted.evaluate({'t': seen}, test={'t': unseen}).to_dict()
    assert summary['membership inference by likelihood (AUC)'] > 0.6
    assert summary['nats through the bottleneck'] > 0


# The whole way


def make_table(rows=400):
    source = rng(3)
    table = pd.DataFrame(
        {
            'wage': source.lognormal(7, 1, rows).round(6),
            'born': pd.Timestamp('1950-01-01')
            + pd.to_timedelta(source.integers(0, 10**9, rows), unit='s'),
            'job': source.choice(['cook', 'smith', 'clerk'], rows).astype(object),
            'shop': source.choice(['north', 'south'], rows).astype(object),
            'grade': source.choice(['low', 'high'], rows).astype(object),
            'key': [f'K{i:04d}' for i in range(rows)],
            'mail': [f'person{i}@real.org' for i in range(rows)],
        }
    )
    table.loc[3, 'job'] = 'astronaut-zzyx'
    table.loc[4, 'shop'] = 'lighthouse-qqvw'
    table.loc[[5, 6], 'grade'] = 'middling'
    return table


COLUMNS = {
    'wage': {'sdtype': 'numerical'},
    'born': {'sdtype': 'datetime', 'datetime_format': '%Y-%m-%d %H:%M:%S'},
    'job': {'sdtype': 'categorical'},
    'shop': {'sdtype': 'id'},
    'grade': {'sdtype': 'ordinal', 'range_values': ['low', 'middling', 'high']},
    'key': {'sdtype': 'id', 'regex_format': r'K\d{4}'},
    'mail': {'sdtype': 'email', 'pii': True},
}


PROTECTED = {'rare_category_threshold': 5, 'numerical_threshold': 5}


def make_metadata(is_detected=False):
    """Metadata as written by hand, or with the ranges and categories that SDV detects."""
    table = {'columns': COLUMNS, 'primary_key': 'key'}
    metadata = Metadata.load_from_dict({'tables': {'t': table}})
    if is_detected:
        found = Metadata.detect_from_dataframes({'t': make_table()}).to_dict()['tables']['t']
        for name in ('wage', 'born', 'job'):
            assert found['columns'][name].keys() & {'range_min', 'range_values'}
            metadata.update_column(name, **found['columns'][name])
    return metadata


def fit(is_detected=False, **changes):
    synthesizer = NVIBSynthesizer(make_metadata(is_detected), **{**TINY, **changes})
    synthesizer.fit({'t': make_table()})
    return synthesizer


@pytest.fixture(scope='module', params=[False, True], ids=['written', 'detected'])
def protected(request):
    return fit(request.param, **PROTECTED)


def traces(folder):
    """Values of the training table that are in the files, as text or as eight or four bytes."""
    content = b'\n'.join(file.read_bytes() for file in sorted(folder.rglob('*')) if file.is_file())
    table = make_table()
    born = table['born'].astype('datetime64[ns]').astype('int64')
    found = {
        repr(text)
        for text in [
            *('astronaut-zzyx', 'lighthouse-qqvw'),
            *(str(date) for date in table['born']),
            *table['mail'],
            *table['key'],
        ]
        if text.encode() in content
    }
    for values in (table['wage'], born):
        for value in values.tolist():
            forms = [repr(value).encode(), np.float64(value).tobytes()]
            if any(form in content for form in forms):
                found.add(value)
    return found


def test_no_file_holds_a_value_of_few_rows(protected, tmp_path):
    protected.save_model(tmp_path / 'model')
    assert not traces(tmp_path / 'model')
    (tmp_path / 'pickle').mkdir()
    protected.save(tmp_path / 'pickle' / 'model.pkl')
    assert not traces(tmp_path / 'pickle')


def test_without_protection_the_search_finds_them(tmp_path):
    fit().save_model(tmp_path / 'model')
    found = traces(tmp_path / 'model')
    assert {"'astronaut-zzyx'", "'lighthouse-qqvw'"} <= found
    assert len(found) > 10


def test_no_sampled_row_has_a_value_of_few_rows(protected):
    sampled, real = protected.sample(2000)['t'], make_table()
    assert set(sampled['job']) <= {'cook', 'smith', 'clerk'}
    assert set(sampled['shop']) <= {'north', 'south'}
    assert set(sampled['grade']) <= {'low', 'high'}
    assert not sampled['wage'].isin(real['wage']).any()
    assert sampled['wage'].max() < real['wage'].nlargest(5).min()
    assert sampled['wage'].min() > real['wage'].nsmallest(5).max()
    assert not set(sampled['mail']) & set(real['mail'])
    protected.get_metadata().validate_data({'t': sampled})
    make_metadata().validate_data({'t': sampled})


@pytest.mark.parametrize('replacement', ['frequent', 'missing'])
def test_rare_combinations_that_are_fixed_are_replaced_as_a_whole(replacement, tmp_path):
    source = rng(4)
    places = source.choice(['Bern', 'Rome', 'Oslo'], 200).astype(object)
    lands = pd.Series(places).map({'Bern': 'CH', 'Rome': 'IT', 'Oslo': 'NO'})
    table = pd.DataFrame({'place': places, 'land': lands.astype('category')})
    table['size'] = source.normal(size=200)
    table.loc[[7, 8], 'place'] = 'hamlet-qqzz'
    table.loc[9] = 'Rome', 'NO', 9  # each is frequent, together they are one row's
    metadata = Metadata.detect_from_dataframes({'t': table})
    changes = {**PROTECTED, 'rare_category_replacement': replacement}
    synthesizer = NVIBSynthesizer(metadata, **{**TINY, **changes})
    synthesizer.add_constraints([FixedCombinations(['place', 'land'])])
    synthesizer.fit({'t': table.copy()})
    sampled = synthesizer.sample(500)['t']
    expected = {('Bern', 'CH'), ('Rome', 'IT'), ('Oslo', 'NO')}
    combinations = set(sampled[['place', 'land']].dropna().itertuples(index=False, name=None))
    assert combinations == expected
    assert sampled[['place', 'land']].isna().all(axis=1).any() == (replacement == 'missing')
    synthesizer.save_model(tmp_path / 'model')
    synthesizer.save(tmp_path / 'model.pkl')
    for file in tmp_path.rglob('*.*'):
        assert file.is_dir() or b'hamlet-qqzz' not in file.read_bytes()


def test_rows_that_break_a_constraint_once_protected_are_refused_with_the_remedy():
    source = rng()
    low = source.normal(size=200)
    table = pd.DataFrame({'low': low, 'high': low + source.exponential(0.1, 200)})
    columns = {'columns': {'low': NUMERICAL, 'high': NUMERICAL}}
    metadata = Metadata.load_from_dict({'tables': {'t': columns}})
    synthesizer = NVIBSynthesizer(metadata, **TINY, numerical_threshold=5)
    synthesizer.add_constraints([Inequality('low', 'high')])
    with pytest.raises(InvalidTableError, match=r'meet the constraints.*Lower numerical_threshold'):
        synthesizer.fit({'t': table})


def test_the_table_of_the_user_stays_as_it_was():
    table, synthesizer = make_table(), fit(**PROTECTED)
    given = table.copy()
    with pytest.warns(UserWarning, match='already been fitted'):
        synthesizer.preprocess({'t': given})
    pd.testing.assert_frame_equal(given, table)


def test_generators_do_not_depend_on_the_rows():
    metadata = make_metadata()
    seeds = []
    for table in (make_table(), make_table()[::-1].reset_index(drop=True)):
        synthesizer = NVIBSynthesizer(metadata, **TINY)
        synthesizer.preprocess({'t': table})
        transformers = synthesizer.get_transformers().values()
        seeds.append([t.random_seed for t in transformers if t is not None])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == len(seeds[0])
