"""Table to tokens and back: round trips of every kind of column, privacy, and bad input."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from sdv_nvib.errors import InvalidTableError, UnknownValueError
from sdv_nvib.tokens import CategoricalColumn, NumericalColumn, TableSchema

ROWS = 4000


def with_gaps(values, rng, share=0.1):
    """The values, a share of them missing."""
    series = pd.Series(values, name='x')
    return series.mask(rng.random(len(series)) < share)


def zero_inflated(rng):
    return np.where(rng.random(ROWS) < 0.6, 0.0, rng.normal(size=ROWS))


def zero_inflated_integers(rng):
    return np.where(rng.random(ROWS) < 0.6, 0, rng.normal(0, 400, ROWS).round())


def datetimes(rng, unit):
    start = pd.Timestamp('1995-01-01').value
    return start + unit * rng.integers(0, 10_000, ROWS).astype(float)


NUMERICAL = {
    'normal': lambda rng: rng.normal(size=ROWS),
    'heavy tails': lambda rng: rng.standard_cauchy(ROWS),
    'zero-inflated': zero_inflated,
    'zero-inflated integers': zero_inflated_integers,
    'many point masses': lambda rng: np.where(
        rng.random(ROWS) < 0.5, rng.integers(-20, 20, ROWS), rng.normal(0, 10, ROWS).round(2)
    ),
    'few integers': lambda rng: rng.integers(0, 9, ROWS).astype(float),
    'many integers': lambda rng: rng.integers(-5000, 5000, ROWS).astype(float),
    'skewed integers': lambda rng: np.floor(rng.lognormal(6, 2, ROWS)),
    'grid of 50': lambda rng: 50.0 * rng.integers(3, 2000, ROWS),
    'two decimals': lambda rng: rng.normal(0, 30, ROWS).round(2),
    'huge': lambda rng: 1e300 * rng.normal(size=ROWS),
    'tiny': lambda rng: 1e-300 * rng.normal(size=ROWS),
    'wide': lambda rng: 10.0 ** rng.uniform(-200, 200, ROWS),
    'nanoseconds': lambda rng: datetimes(rng, 1),
    'days': lambda rng: datetimes(rng, 86_400e9),
    'two values': lambda rng: rng.choice([-1.5, 2.5], ROWS),
}

CATEGORICAL = {
    'strings': ['a', 'b', 'b', None, 'rare'],
    'booleans': [True, False, True, True, False],
    'booleans with gaps': [True, None, False, np.nan, True],
    'mixed types': pd.Series([1, '1', 2.5, ('a', 1), None], dtype=object),
    'integers and gaps as objects': pd.Series([1, 2, None, 2, 1], dtype=object),
    'integers': [3, 1, 2, 3, 3],
    'category': pd.Series(['u', 'v', None, 'u', 'v'], dtype='category'),
    'ordered category': pd.Series(
        pd.Categorical(['low', 'high', None, 'low', 'high'], ['low', 'mid', 'high'], ordered=True)
    ),
    'nullable integer': pd.Series([1, 2, None, 2, 1], dtype='Int64'),
    'nullable boolean': pd.Series([True, None, False, True, None], dtype='boolean'),
    'string': pd.Series(['a', 'b', None, 'a', 'b'], dtype='string'),
    'timestamps': pd.to_datetime(['2020-01-01', '2021-01-01', None, '2020-01-01', None]),
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize('kind', NUMERICAL)
@pytest.mark.parametrize('gaps', [0.0, 0.2])
def test_numbers_come_back_with_their_tokens_their_distribution_and_their_range(kind, gaps, rng):
    values = with_gaps(NUMERICAL[kind](rng), rng, gaps)
    column = NumericalColumn.fit(values)
    tokens = column.encode(values)
    decoded = column.decode(tokens, rng)
    assert decoded.name == 'x'
    assert tokens.max() < column.num_tokens <= 257
    np.testing.assert_array_equal(column.encode(decoded), tokens)
    np.testing.assert_array_equal(decoded.isna(), values.isna())
    assert decoded.min() >= values.min()
    assert decoded.max() <= values.max()
    assert ks_2samp(decoded.dropna(), values.dropna(), method='asymp').statistic < 0.01
    frequent = values.value_counts().loc[lambda counts: counts > ROWS / 100]
    for value, count in frequent.items():
        assert (decoded == value).sum() == count


@pytest.mark.parametrize('kind', NUMERICAL)
def test_median_values_have_the_same_tokens_and_are_deterministic(kind, rng):
    values = with_gaps(NUMERICAL[kind](rng), rng)
    column = NumericalColumn.fit(values)
    tokens = column.encode(values)
    median = column.decode_median(tokens)
    np.testing.assert_array_equal(column.encode(median), tokens)
    pd.testing.assert_series_equal(median, column.decode_median(tokens))


@pytest.mark.parametrize(
    ('kind', 'step', 'decimals'),
    [
        ('many integers', 1, 0),
        ('skewed integers', 1, 0),
        ('grid of 50', 50, 0),
        ('two decimals', 0.01, 2),
        ('days', 86_400e9, 0),
    ],
)
def test_every_decoded_value_lies_on_the_grid_of_the_column(kind, step, decimals, rng):
    values = with_gaps(NUMERICAL[kind](rng), rng)
    column = NumericalColumn.fit(values)
    tokens = column.encode(values)
    for decoded in (column.decode(tokens, rng), column.decode_median(tokens)):
        present = decoded.dropna()
        steps = (present - values.min()) / step
        np.testing.assert_allclose(steps, steps.round(), atol=1e-6)
        np.testing.assert_array_equal(present, present.round(decimals))


@pytest.mark.parametrize('seed', range(150))
def test_random_columns_come_back_with_their_tokens(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 800))
    parts = np.stack(
        [
            rng.normal(0, 10.0 ** rng.integers(-3, 9), size),
            rng.integers(-300, 300, size) * float(rng.integers(1, 60)),
            rng.normal(0, 5, size).round(int(rng.integers(0, 5))),
            np.full(size, rng.normal()),
        ]
    )
    kinds = rng.choice(4, int(rng.integers(1, 4)))
    values = with_gaps(parts[rng.choice(kinds, size), np.arange(size)], rng, 0.3 * rng.random())
    column = NumericalColumn.fit(values)
    tokens = column.encode(values)
    np.testing.assert_array_equal(column.encode(column.decode(tokens, rng)), tokens)
    np.testing.assert_array_equal(column.encode(column.decode_median(tokens)), tokens)
    positions = column.positions[: column.num_tokens - column.has_missing]
    assert (np.diff(positions) > 0).all()
    order = values.dropna().sort_values()
    if not len(column.points):  # bins of their own alone: tokens rise with the values
        assert (np.diff(column.encode(order)) >= 0).all()


def test_values_that_occur_once_are_not_reproduced_and_repeated_ones_are(rng):
    values = pd.Series(np.append(rng.normal(size=2000), np.repeat(rng.normal(size=20), 5)))
    column = NumericalColumn.fit(values)
    decoded = column.decode(np.tile(column.encode(values), 50), rng)
    counts = values.value_counts()
    assert not np.isin(decoded, counts[counts == 1].index).any()
    assert set(counts[counts > 1].index) <= set(decoded)


SMOOTH = {
    'normal': lambda rng, size: rng.normal(size=size),
    'skewed': lambda rng, size: np.exp(rng.normal(size=size)),
    'one decimal': lambda rng, size: rng.normal(5, 1, size).round(1),
    'whole numbers': lambda rng, size: rng.gamma(3, 20, size).round(),
}


@pytest.mark.parametrize('kind', SMOOTH)
def test_few_numbers_are_spread_as_smoothly_as_others_of_their_kind(kind, rng):
    near_seen, near_others = [], []
    for _ in range(20):
        values, others = pd.Series(SMOOTH[kind](rng, 90)), SMOOTH[kind](rng, 3000)
        column = NumericalColumn.fit(values)
        tokens = np.repeat(column.encode(values), 20)
        decoded = column.decode(tokens, rng)
        np.testing.assert_array_equal(column.encode(decoded), tokens)
        assert values.min() <= decoded.min() <= decoded.max() <= values.max()
        inside = (others >= values.min()) & (others <= values.max())
        near_others.append(np.isin(others[inside], values).mean())
        near_seen.append(np.isin(decoded, values).mean())
    # As many of them are training values as of numbers that were never seen.
    assert np.mean(near_seen) == pytest.approx(np.mean(near_others), abs=0.08)


@pytest.mark.parametrize('seed', range(6))
def test_few_heaped_numbers_stay_heaped(seed):
    rng = np.random.default_rng(seed)
    heaps = np.round(rng.normal(1000, 300, 60), -2)
    values = pd.Series(np.append(heaps, rng.normal(1000, 300, 60).round()))
    column = NumericalColumn.fit(values)
    decoded = column.decode(np.repeat(column.encode(values), 20), rng)
    seen = (values % 100 == 0).mean()
    # One that occurs once in its bin is spread as others are.
    assert (decoded % 100 == 0).mean() > 0.75 * seen


@pytest.mark.parametrize('seed', range(10))
@pytest.mark.parametrize('scale', [1.0, 0.3])
def test_few_numbers_far_from_zero_stay_in_their_bins_and_range(seed, scale):
    rng = np.random.default_rng(seed)
    values = pd.Series(1e12 + scale * rng.normal(size=150))
    column = NumericalColumn.fit(values)
    tokens = np.repeat(column.encode(values), 20)
    decoded = column.decode(tokens, rng)
    np.testing.assert_array_equal(column.encode(decoded), tokens)
    assert values.min() <= decoded.min() <= decoded.max() <= values.max()


def test_few_numbers_leave_gaps_and_outliers_nearly_alone(rng):
    clusters = pd.Series(np.append(rng.normal(size=100), 30 + rng.normal(size=101)))
    column = NumericalColumn.fit(clusters)
    decoded = column.decode(np.repeat(column.encode(clusters), 20), rng)
    assert ((decoded > 5) & (decoded < 25)).mean() < 0.015  # not a whole bin of 1/25
    outlier = pd.Series(np.append(rng.normal(size=199), 1e9))
    column = NumericalColumn.fit(outlier)
    decoded = column.decode(np.repeat(column.encode(outlier), 20), rng)
    assert ((decoded > 5) & (decoded < 0.9e9)).mean() < 0.015


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([np.nan] * 3, [np.nan] * 3),
        ([7.5] * 3, [7.5] * 3),
        ([7.5, np.nan, 7.5], [7.5, np.nan, 7.5]),
        ([3.25], [3.25]),
        ([np.nan], [np.nan]),
        ([1.0, 2.0], [1.0, 2.0]),
        ([0.1, np.nan], [0.1, np.nan]),
    ],
)
def test_the_smallest_columns_come_back_as_they_were(values, expected, rng):
    column = NumericalColumn.fit(pd.Series(values, name='x'))
    tokens = column.encode(pd.Series(values))
    np.testing.assert_array_equal(column.decode(tokens, rng), expected)
    np.testing.assert_array_equal(column.decode_median(tokens), expected)


def test_five_distinct_rows_share_a_bin(rng):
    values = pd.Series([0.31, 1.7, 2.22, 9.4, 15.03])
    column = NumericalColumn.fit(values)
    assert column.num_tokens == 1
    decoded = column.decode(column.encode(values), rng)
    assert decoded.between(0.31, 15.03).all()


@pytest.mark.parametrize('value', [-1e9, 17.2, 1e9])
def test_unseen_numbers_take_the_nearest_token(value, rng):
    values = pd.Series(rng.uniform(0, 100, 1000))
    column = NumericalColumn.fit(values)
    nearest = values.iloc[(values - value).abs().argmin()]
    token = column.encode(pd.Series([value]))
    assert abs(token[0] - column.encode(pd.Series([nearest]))[0]) <= 1


@pytest.mark.parametrize('kind', CATEGORICAL)
def test_categories_come_back_with_their_type_and_their_dtype(kind, rng):
    values = pd.Series(CATEGORICAL[kind], name='x')
    column = CategoricalColumn.fit(values)
    tokens = column.encode(values)
    decoded = column.decode(tokens, rng)
    pd.testing.assert_series_equal(decoded, values.mask(values.isna()))
    present = values.notna()
    assert list(map(type, decoded[present])) == list(map(type, values[present]))
    np.testing.assert_array_equal(column.encode(decoded), tokens)
    assert np.isnan(column.positions).all()


def test_ordered_categories_have_rising_positions_unseen_ones_too():
    values = pd.Series(['high', None, 'low', 'high'], name='x')
    column = CategoricalColumn.fit(values, order=['low', 'mid', 'high'])
    assert column.encode(values).tolist() == [2, 3, 0, 2]
    np.testing.assert_allclose(column.positions, [1 / 6, 1 / 2, 5 / 6, np.nan])


def test_twenty_thousand_categories_have_a_token_each(rng):
    values = pd.Series([f'category {i}' for i in range(20_000)], name='x').sample(
        frac=1, random_state=0
    )
    column = CategoricalColumn.fit(values)
    tokens = column.encode(values)
    assert column.num_tokens == 20_000
    assert column.decode(tokens, rng).tolist() == values.tolist()


@pytest.mark.parametrize(
    ('trained', 'given', 'message'),
    [
        (['a', 'b'], ['a', 'quite new'], "Column 'x' .*'quite new'"),
        (['a', 'b'], ['a', None], "Column 'x' .*None"),
        ([1.0, 2.0], [1.0, np.nan], "Column 'x' .*nan"),
        ([np.nan, np.nan], [np.nan, 4.5], "Column 'x' .*4.5"),
    ],
)
def test_unknown_values_are_refused_by_column_and_value(trained, given, message):
    kind = CategoricalColumn if isinstance(trained[0], str) else NumericalColumn
    column = kind.fit(pd.Series(trained, name='x'))
    with pytest.raises(UnknownValueError, match=message):
        column.encode(pd.Series(given, name='x'))


@pytest.mark.parametrize('value', [np.inf, -np.inf])
def test_infinite_values_are_refused(value):
    table = pd.DataFrame({'size': [1.0, value, 2.0]})
    with pytest.raises(InvalidTableError, match="Column 'size' must be finite"):
        TableSchema.fit(table, numerical={'size'})


@pytest.mark.parametrize('table', [pd.DataFrame(), pd.DataFrame({'x': []})])
def test_a_table_without_rows_or_columns_is_refused(table):
    with pytest.raises(InvalidTableError, match='at least one row and one modelled column'):
        TableSchema.fit(table, numerical=set())


def test_a_table_comes_back_column_by_column(rng):
    table = pd.DataFrame(
        {
            'size': with_gaps(rng.normal(size=ROWS), rng),
            'grade': pd.Series(rng.choice(['low', 'high'], ROWS), dtype='category'),
            7: rng.choice([True, False], ROWS),
        }
    )
    schema = TableSchema.fit(table, numerical={'size'}, orders={'grade': ['low', 'mid', 'high']})
    tokens = schema.encode(table[[7, 'grade', 'size']])
    assert tokens.shape == (ROWS, 3)
    assert tokens.dtype == np.int64
    assert schema.names == ['size', 'grade', 7]
    assert schema.sizes == [257, 3, 2]
    assert [len(positions) for positions in schema.positions] == schema.sizes
    for decoded in (schema.decode(tokens, rng), schema.decode_median(tokens)):
        assert decoded.dtypes.equals(table.dtypes)
        np.testing.assert_array_equal(schema.encode(decoded), tokens)
        pd.testing.assert_frame_equal(decoded[['grade', 7]], table[['grade', 7]])
