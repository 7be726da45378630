"""Ids by their number: distinct, of the format, and the same wherever counting starts."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdv_nvib import InvalidParameterError
from sdv_nvib.ids import CountedIds, PatternIds, pattern_of_template

WHERE = "Table 't', column 'id'"
SMALL = [
    '[a-c]{2}x',
    '[0-9]{1,3}',
    r'\d[A-C]?',
    '[a-b]{0,2}-[0-9]{1,2}',
    '(ab)c',
    '([a-b][0-1]){2}',
    '[aab-c]',
    '^K[0-3]$',
    r'[\d_]{2}',
    '.',
    '([x-z])?[0-1]',
]


@pytest.mark.parametrize('pattern', SMALL)
def test_all_ids_are_distinct_and_match(pattern):
    ids = PatternIds(pattern, WHERE)
    values = ids.values(0, ids.size)
    assert len(set(values)) == ids.size
    assert all(re.fullmatch(pattern, value, re.DOTALL) for value in values)


def test_as_many_ids_as_there_are_strings():
    assert PatternIds('[a-b]{0,2}-[0-9]{1,2}', WHERE).size == (1 + 2 + 4) * (10 + 100)
    assert PatternIds('[aab-c]', WHERE).size == 3
    assert PatternIds(r'\d{30}', WHERE).size == 10**30


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 10**12), count=st.integers(1, 40))
@pytest.mark.parametrize('pattern', [r'ID_\d{14}', '[0-9]{1,13}', r'[A-Z]{2,9}-\d{5}', r'\d{30}'])
def test_counting_may_start_anywhere(pattern, start, count):
    ids = PatternIds(pattern, WHERE)
    whole = ids.values(start, count)
    assert whole.tolist() == [ids.values(n, 1)[0] for n in range(start, start + count)]
    assert all(re.fullmatch(pattern, value) for value in whole)
    assert len(set(whole)) == count


def test_fixed_lengths_count_in_order():
    values = PatternIds(r'[A-Z]{2}\d{3}', WHERE).values(998, 4)
    assert values.tolist() == ['AA998', 'AA999', 'AB000', 'AB001']


@pytest.mark.parametrize('pattern', ['a?a?', '[0-9]{1,3}[0-9]{1,2}', '[a-b]{1,2}x?[b-c]{1,2}'])
def test_ambiguous_patterns_are_refused(pattern):
    with pytest.raises(InvalidParameterError, match=rf'{WHERE}.*no two numbers.*fit again'):
        PatternIds(pattern, WHERE)


def test_numbers_of_varying_length_are_refused_where_zeros_lead():
    with pytest.raises(InvalidParameterError, match='no two numbers'):
        PatternIds('[0-9]{1,3}', WHERE, as_number=True)
    ids = PatternIds('[1-9][0-9]{0,2}', WHERE, as_number=True)
    assert sorted(map(int, ids.values(0, ids.size))) == list(range(1, 1000))


@pytest.mark.parametrize('pattern', ['a|bc', '[^a]', '(ab){1,2}', 'a*?'])
def test_other_patterns_are_refused(pattern):
    with pytest.raises(InvalidParameterError, match=rf'{WHERE}.*literals, classes and repeats'):
        PatternIds(pattern, WHERE)


def test_a_template_is_followed_literally():
    pattern = pattern_of_template('a.b-?%#!', 'xyz^]-')
    ids = PatternIds(pattern, WHERE)
    values = ids.values(0, ids.size)
    assert len(set(values)) == ids.size == 6 * 9 * 10 * 11
    assert all(re.fullmatch(r'a\.b-[xyz^\]\-][1-9][0-9][0-9]?', value) for value in values)


def test_numbers_are_counted():
    ids = CountedIds(5, 9)
    assert ids.size == 5
    np.testing.assert_array_equal(ids.values(2, 3), [7, 8, 9])
