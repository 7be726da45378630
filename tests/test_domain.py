"""The vocabulary out of metadata alone: every value of the domain has a token and comes back."""

import numpy as np
import pandas as pd
import pytest

from sdv_nvib import InvalidParameterError
from sdv_nvib.domain import public_schema, public_table, require_domain

COLUMNS = {
    'age': {
        'sdtype': 'numerical',
        'range_min': 17,
        'range_max': 90,
        'decimal_places': 0,
        'range_is_nullable': False,
    },
    'gain': {'sdtype': 'numerical', 'range_min': -500, 'range_max': 99_999, 'decimal_places': 0},
    'rate': {'sdtype': 'numerical', 'range_min': -1.5, 'range_max': 0.5, 'decimal_places': 2},
    'job': {
        'sdtype': 'categorical',
        'range_values': ['cook', 'smith'],
        'range_is_nullable': False,
    },
    'grade': {'sdtype': 'ordinal', 'range_values': ['low', 'mid', 'high']},
    'paid': {'sdtype': 'boolean', 'range_is_nullable': False},
}


def encode_and_decode(name, values):
    columns = {name: COLUMNS[name]}
    schema = public_schema(columns, public_table(columns))
    table = pd.DataFrame({name: values})
    tokens = schema.encode(table)
    return schema, tokens[:, 0], schema.decode(tokens, np.random.default_rng(0))[name]


@pytest.mark.parametrize(
    ('name', 'values'),
    [
        ('age', np.arange(17, 91)),
        ('rate', np.round(np.arange(-150, 51) / 100, 2)),
        ('job', ['smith', 'cook']),
        ('grade', ['mid', np.nan, 'low', 'high']),
        ('paid', [True, False]),
    ],
)
def test_few_values_have_a_token_each_and_come_back(name, values):
    schema, tokens, decoded = encode_and_decode(name, values)
    assert len(set(tokens)) == len(values)
    assert schema.sizes[0] >= len(values)
    expected = pd.Series(values, name=name)
    pd.testing.assert_series_equal(decoded, expected, check_dtype=False)


def test_a_wide_range_has_bins_of_equal_width_and_tokens_for_zero_and_both_ends():
    values = np.arange(-500, 100_000.0)
    schema, tokens, decoded = encode_and_decode('gain', values)
    assert schema.sizes[0] <= 257
    assert (np.diff(tokens) >= 0).all()
    for exact in (-500, 0, 99_999):
        assert (tokens == tokens[values == exact]).sum() == 1
    assert decoded.between(-500, 99_999).all()
    assert (decoded == decoded.round()).all()
    widths = np.bincount(tokens)[1:-1]
    assert np.median(widths) == widths.max() < 100_500 / 240
    again = schema.encode(pd.DataFrame({'gain': decoded}))[:, 0]
    np.testing.assert_array_equal(again, tokens)  # no drawn value leaves its bin
    # Every value of a bin is as likely as any other.
    one_bin = np.full(200_000, tokens[50_000])
    drawn = schema.columns[0].decode(one_bin, np.random.default_rng(0))
    shares = drawn.value_counts(normalize=True)
    assert len(shares) == widths.max()
    np.testing.assert_allclose(shares, 1 / widths.max(), rtol=0.25)


@pytest.mark.parametrize('layout', ['%d.%m.%Y', '%Y-%m-%d %H:%M', None])
def test_dates_keep_to_their_range_and_format(layout):
    ends = pd.to_datetime(['2001-01-01', '2003-06-30'])
    text = ends.strftime(layout or '%Y-%m-%d')
    column = {'sdtype': 'datetime', 'range_min': text[0], 'range_max': text[1]}
    column |= {'datetime_format': layout} if layout else {}
    table = public_table({'born': column})
    processed = pd.DataFrame({'born': [*ends.astype('int64').astype(float), np.nan]})
    schema = public_schema({'born': column}, processed)
    days = pd.DataFrame({'born': pd.date_range(*ends).astype('int64').astype(float)})
    tokens = schema.encode(days)
    decoded = pd.to_datetime(schema.decode(tokens, np.random.default_rng(0))['born'])
    assert (decoded - pd.to_datetime(days['born'])).abs().max() <= pd.Timedelta(days=5)
    assert table['born'].dropna().nunique() == 2
    if layout == '%d.%m.%Y':
        assert (decoded == decoded.dt.normalize()).all()
        assert decoded.between(*ends).all()


def test_a_constant_range_and_more_decimals_than_a_grid_can_have():
    columns = {
        'one': {'sdtype': 'numerical', 'range_min': 3, 'range_max': 3, 'decimal_places': 0},
        'fine': {'sdtype': 'numerical', 'range_min': 0, 'range_max': 1, 'decimal_places': 12},
    }
    schema = public_schema(columns, public_table(columns))
    table = pd.DataFrame({'one': [3.0, 3.0, np.nan], 'fine': [0.123456789012, 1.0, 0.0]})
    decoded = schema.decode(schema.encode(table), np.random.default_rng(0))
    assert decoded['one'].tolist()[:2] == [3.0, 3.0]
    np.testing.assert_allclose(decoded['fine'], table['fine'], atol=1 / 250)


def test_public_tables_have_the_dtypes_of_sampled_rows_and_unique_ids():
    columns = {**COLUMNS, 'key': {'sdtype': 'id'}, 'mail': {'sdtype': 'email'}}
    table = public_table(columns, numeric_ids={'key'})
    kinds = {name: str(dtype) for name, dtype in table.dtypes.items()}
    assert kinds == {
        'age': 'int64',
        'gain': 'float64',
        'rate': 'float64',
        'job': 'object',
        'grade': 'object',
        'paid': 'bool',
        'key': 'int64',
        'mail': 'object',
    }
    assert table['key'].is_unique


def test_what_the_metadata_lacks_is_named_column_by_column():
    columns = {
        'age': {'sdtype': 'numerical', 'range_min': 0},
        'born': {'sdtype': 'datetime'},
        'job': {'sdtype': 'categorical', 'high_cardinality': True},
        'shop': {'sdtype': 'id'},
        'town': {'sdtype': 'city', 'pii': False},
        'rate': {'sdtype': 'numerical', 'range_min': 0, 'range_max': 0.55, 'decimal_places': 1},
        'key': {'sdtype': 'id'},
        'paid': {'sdtype': 'boolean'},
        'mail': {'sdtype': 'email'},
    }
    with pytest.raises(InvalidParameterError) as caught:
        require_domain('people', columns, {'key'})
    message = str(caught.value)
    for part in (
        "Table 'people'",
        "'age' (numerical) lacks range_max, decimal_places",
        "'born' (datetime) lacks range_min, range_max",
        "'job' (categorical) lacks range_values",
        "'shop' (id) lacks regex_format",
        "'town' (city) has pii=False",
        "'rate' has a range of more than 1 decimal_places",
        'metadata.update_column',
    ):
        assert part in message
    for fine in ("'key'", "'paid'", "'mail'"):
        assert fine not in message
    require_domain('people', COLUMNS, set())
