"""Tests of the power that makes numbers normal."""

import numpy as np
import pytest
from scipy.stats import skew

from sdv_nvib.power import PowerTransform


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize('power', [1, 3])
def test_skew_is_taken_off_and_every_number_comes_back(power, rng):
    numbers = rng.gamma(2, size=500) ** power
    transform = PowerTransform.of(numbers)
    scores = transform.forward(numbers)
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert scores.std() == pytest.approx(1)
    assert abs(skew(scores)) < 0.4 < abs(skew(numbers)) / 2
    np.testing.assert_allclose(transform.backward(scores), numbers, rtol=1e-9, atol=1e-12)
    assert (np.diff(transform.forward(np.sort(numbers))) > 0).all()


def test_neither_unit_nor_zero_matter(rng):
    numbers = rng.gamma(2, size=500)
    scores = PowerTransform.of(numbers).forward(numbers)
    moved = 500 * numbers - 1e6
    np.testing.assert_allclose(PowerTransform.of(moved).forward(moved), scores, atol=1e-6)


@pytest.mark.parametrize(
    'numbers',
    [[], [1.0], [1.0, 2.0, 2.0], [-1.7e308, 0.0, 1.7e308], [5e-324, 1e-323, 1.5e-323]],
)
def test_too_few_numbers_and_those_at_the_end_of_floats_have_none(numbers):
    assert PowerTransform.of(np.array(numbers)) is None


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('outlier', [-999_999.0, 1e15, -1e300])
def test_an_outlier_gives_neither_warnings_nor_numbers_beyond_floats(outlier, rng):
    numbers = np.append(rng.normal(50, 10, 1000), outlier)
    transform = PowerTransform.of(numbers)
    assert transform is None or np.isfinite(transform.forward(numbers)).all()
