"""Tables as they should not be: each works, or is refused before training with one clear error.

The profile `ci` generates 100 tables, `nightly` (`HYPOTHESIS_PROFILE=nightly`) 2,000. Whatever
they found is kept below as a plain test.
"""

import os
import socket
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sdv.errors import InvalidDataError
from sdv.metadata import Metadata

from sdv_nvib import NVIBError, NVIBSynthesizer

settings.register_profile(
    'ci',
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile('nightly', settings.get_profile('ci'), max_examples=2000)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'ci'))

TINY = {
    'epochs': 1,
    'd_model': 4,
    'nhead': 1,
    'num_decoder_layers': 1,
    'dim_feedforward': 4,
    'enable_gpu': False,
}
FLOATS = [0.0, -0.0, 1e300, -1e300, 5e-324, 2.0**53 + 2, 0.1, 1e-9]
INTEGERS = [0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63)]
TEXTS = [
    '',
    ' ',
    'x' * 5000,
    'é',
    '\u202e',
    '\x00',
    'nan',
    'None',
    '😀',
    "'; --",
    '{0}',
    '#',
    'a.b',
]
NAMES = ['a', 'A', '', ' ', 'ü', 'a.value', 'a#1', '{x}', 'index', '0', 'level_0', 'x' * 300]
DATES = ['2001-01-01', '1970-01-01', '1677-09-22', '2262-04-11', '1999-12-31']


def missing(values, rows):
    """Some of the values missing: none, any or all."""
    masks = st.one_of(
        st.just([False] * rows),
        st.just([True] * rows),
        st.lists(st.booleans(), min_size=rows, max_size=rows),
    )
    return st.tuples(values, masks)


@st.composite
def columns(draw, rows):
    """A column and its metadata."""

    def series(pool, dtype):
        drawn = draw(st.lists(pool, min_size=rows, max_size=rows))
        mask = draw(missing(st.none(), rows))[1]
        made = pd.Series(drawn, dtype=object)
        if dtype in ('int64', 'int8', 'uint16', 'bool'):
            return made.astype(dtype)
        return made.mask(pd.Series(mask, dtype=bool)).astype(dtype)

    sdtype = draw(st.sampled_from(['numerical', 'categorical', 'boolean', 'datetime', 'ordinal']))
    if sdtype == 'numerical':
        dtype = draw(st.sampled_from(['int64', 'int8', 'uint16', 'Int64', 'float64', 'float32']))
        if dtype.lower().startswith('int64'):
            pool = st.sampled_from(INTEGERS) | st.integers(-(2**63), 2**63 - 1)
        elif dtype.startswith(('int', 'uint')):
            pool = st.integers(0, 127)
        else:
            pool = st.sampled_from(FLOATS) | st.floats(allow_nan=False, allow_infinity=False)
        if dtype == 'float32':
            pool = st.floats(allow_nan=False, allow_infinity=False, width=32)
        return series(pool, dtype), {'sdtype': 'numerical'}
    if sdtype == 'boolean':
        dtype = draw(st.sampled_from(['bool', 'boolean', 'object']))
        return series(st.booleans(), dtype), {'sdtype': 'boolean'}
    if sdtype == 'datetime':
        pool = st.sampled_from(DATES) | st.dates(
            pd.Timestamp('1700-01-01').date(), pd.Timestamp('2200-01-01').date()
        ).map(str)
        if draw(st.booleans()):
            return series(pool, 'object'), {'sdtype': 'datetime', 'datetime_format': '%Y-%m-%d'}
        return pd.to_datetime(series(pool, 'object')), {'sdtype': 'datetime'}
    if sdtype == 'ordinal':
        order = ['low', 'mid', 'high']
        described = {'sdtype': 'ordinal', 'range_values': order}
        return series(st.sampled_from(order), 'object'), described
    pool = draw(
        st.sampled_from(
            [
                st.sampled_from(TEXTS) | st.text(max_size=20),
                st.sampled_from(INTEGERS),
                st.sampled_from(FLOATS),
                st.sampled_from([1, '1', 1.5, True, 'True']),
            ]
        )
    )
    dtype = draw(st.sampled_from(['object', 'category']))
    return series(pool, dtype), {'sdtype': 'categorical'}


@st.composite
def tables(draw):
    rows = draw(st.sampled_from([1, 2, 3, 7, 40]))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    made = {name: draw(columns(rows)) for name in names}
    table = pd.DataFrame({name: values for name, (values, _) in made.items()})
    return table, {name: column for name, (_, column) in made.items()}


def check(table, described, **changes):
    """Fit and sample, or one clear error; returns the sampled table, or `None` if refused."""
    given_table = table.copy(deep=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            metadata = Metadata.load_from_dict({'tables': {'t': {'columns': described}}})
            synthesizer = NVIBSynthesizer(metadata, **{**TINY, **changes})
            synthesizer.preprocess({'t': table})  # before training
        except (InvalidDataError, NVIBError):
            pd.testing.assert_frame_equal(table, given_table)
            return None
        synthesizer.fit({'t': table})
        sampled = synthesizer.sample(30)['t']
        metadata.validate_data({'t': sampled})
    pd.testing.assert_frame_equal(table, given_table)
    assert list(sampled.columns) == list(table.columns)
    assert len(sampled) == 30
    for name in table.columns:
        real, made = table[name], sampled[name]
        assert real.isna().any() or not made.isna().any(), name
        if real.notna().any():
            assert made.dtype == real.dtype, name
        if described[name]['sdtype'] == 'numerical':
            assert made.dropna().between(real.min(), real.max()).all(), name
        elif described[name]['sdtype'] != 'datetime':
            known = set(real.dropna()) | set(described[name].get('range_values', ()))
            assert set(made.dropna()) <= known, name
    return sampled


@given(tables())
def test_a_table_works_or_is_refused(table):
    check(*table)


# Kept findings and tables that are too large to generate


NUMERICAL, CATEGORICAL = {'sdtype': 'numerical'}, {'sdtype': 'categorical'}


@pytest.mark.parametrize(
    'values',
    [[1e300, -1e300, 1.0] * 5, [5e-324, 0.0] * 8, [2**63 - 1, -(2**63), 0] * 5, [7] * 9, [3]],
    ids=['huge', 'denormal', 'int64 limits', 'constant', 'one row'],
)
def test_extreme_numbers_work(values):
    assert check(pd.DataFrame({'a': values}), {'a': NUMERICAL}) is not None


def test_nullable_whole_numbers_at_the_limits_are_refused():
    table = pd.DataFrame({'a': pd.Series([2**63 - 1, None, -(2**63), 5] * 4, dtype='Int64')})
    assert check(table, {'a': NUMERICAL}) is None


def test_text_that_differs_after_a_nul_character_works():
    table = pd.DataFrame({'a': ['', '\x00', 'b\x00c', 'b'] * 5})
    assert check(table, {'a': CATEGORICAL}) is not None


def test_a_column_of_missing_values_alone_works():
    table = pd.DataFrame(
        {'a': [np.nan] * 5, 'b': pd.Series([None] * 5, dtype=object), 'c': [1] * 5}
    )
    described = {'a': NUMERICAL, 'b': CATEGORICAL, 'c': NUMERICAL}
    sampled = check(table, described)
    assert sampled[['a', 'b']].isna().all(axis=None)


@pytest.mark.parametrize('zone', ['UTC', 'Europe/Zurich'])
def test_time_zones_work_or_are_refused(zone):
    days = pd.Series(pd.date_range('2001-03-01', periods=60, freq='13h', tz=zone))
    check(pd.DataFrame({'a': days}), {'a': {'sdtype': 'datetime'}})


@pytest.mark.parametrize('year', [1200, 3000])
def test_dates_out_of_the_range_of_nanoseconds_work_or_are_refused(year):
    days = pd.Series([f'{year}-01-{d:02d}' for d in range(1, 29)])
    check(pd.DataFrame({'a': days}), {'a': {'sdtype': 'datetime', 'datetime_format': '%Y-%m-%d'}})


def test_twenty_thousand_categories_and_a_hundred_and_fifty_columns_work():
    many = pd.DataFrame({'a': [f'c{i}' for i in range(20_000)]})
    assert check(many, {'a': CATEGORICAL}, batch_size=2048) is not None
    wide = pd.DataFrame(np.arange(150 * 8).reshape(8, 150) % 7).rename(columns=str)
    assert check(wide, {name: NUMERICAL for name in wide}) is not None


def test_duplicated_column_names_are_refused():
    table = pd.DataFrame([[1, 2], [3, 4]], columns=['a', 'a'])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        metadata = Metadata.load_from_dict({'tables': {'t': {'columns': {'a': NUMERICAL}}}})
        with pytest.raises(InvalidDataError, match=r"distinct.*received \['a'\] twice"):
            NVIBSynthesizer(metadata, **TINY).fit({'t': table})


def test_names_that_differ_in_type_alone_are_refused_and_the_table_stays_as_it_was():
    table = pd.DataFrame([[1, 2], [3, 4]], columns=[1, '1'])
    given_table = table.copy()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        metadata = Metadata.load_from_dict({'tables': {'t': {'columns': {'1': NUMERICAL}}}})
        with pytest.raises(InvalidDataError, match='distinct'):
            NVIBSynthesizer(metadata, **TINY).fit({'t': table})
    pd.testing.assert_frame_equal(table, given_table)


def test_a_refused_table_with_integer_names_stays_as_it_was():
    table = pd.DataFrame({0: [np.inf, 1.0]})
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        metadata = Metadata.load_from_dict({'tables': {'t': {'columns': {'0': NUMERICAL}}}})
        with pytest.raises(InvalidDataError):
            NVIBSynthesizer(metadata, **TINY).fit({'t': table})
    assert list(table.columns) == [0]


# Determinism, and no connection anywhere


def fit_and_sample():
    source = np.random.default_rng(0)
    table = pd.DataFrame({'a': source.normal(size=80), 'b': source.choice(list('xy'), 80)})
    metadata = Metadata.load_from_dict(
        {'tables': {'t': {'columns': {'a': NUMERICAL, 'b': CATEGORICAL}}}}
    )
    synthesizer = NVIBSynthesizer(metadata, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        synthesizer.fit({'t': table})
        return synthesizer.sample(5000)['t']


@pytest.mark.parametrize('threads', [1, 2])
def test_another_process_gives_the_same_rows_whatever_its_threads_and_global_seeds(
    threads, tmp_path
):
    script = (
        'import sys, random, numpy, torch; sys.path.insert(0, sys.argv[1]); '
        f'torch.set_num_threads({threads}); numpy.random.seed({threads}); '
        f'torch.manual_seed({threads}); random.seed({threads}); '
        'from test_bad_input import fit_and_sample; fit_and_sample().to_csv(sys.argv[2])'
    )
    path = tmp_path / 'rows.csv'
    command = [sys.executable, '-W', 'ignore', '-c', script, os.path.dirname(__file__), str(path)]
    subprocess.run(command, check=True)
    assert path.read_text() == fit_and_sample().to_csv()


def test_nothing_connects_and_no_global_random_state_changes(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError('a connection was attempted')

    for name in ('connect', 'connect_ex', 'sendto'):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    source = np.random.default_rng(0)
    table = pd.DataFrame({'a': source.normal(size=80), 'b': source.choice(list('xy'), 80)})
    described = {'a': NUMERICAL, 'b': CATEGORICAL}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': described}}})
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        synthesizer = NVIBSynthesizer(metadata, **TINY)
        synthesizer.fit({'t': table}, checkpoint=tmp_path / 'checkpoint')
        synthesizer.sample(20)
        synthesizer.save_model(tmp_path / 'model')
        NVIBSynthesizer.load_model(tmp_path / 'model').sample(20)
        synthesizer.evaluate({'t': table}, test={'t': table[:40]})
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
