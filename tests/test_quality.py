"""Tests of the scores: known answers, agreement with SDMetrics, and tables that are no help."""

import math

import numpy as np
import pandas as pd
import pytest
from sdmetrics.demos import load_single_table_demo
from sdmetrics.single_column import KSComplement, TVComplement
from sdv.metadata import Metadata

from sdv_nvib import quality
from sdv_nvib.errors import InvalidParameterError


def make_metadata(primary_key=None, **sdtypes):
    columns = {name: {'sdtype': sdtype} for name, sdtype in sdtypes.items()}
    table = {'columns': columns} | ({'primary_key': primary_key} if primary_key else {})
    return Metadata.load_from_dict({'tables': {'t': table}})


MIXED = make_metadata(
    'key', key='id', x='numerical', y='numerical', when='datetime', kind='categorical'
)


def make_mixed(rows, seed):
    """Two dependent numbers, a date with gaps that depends on x, a category that depends on x."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    when = pd.Timestamp('2020-01-01') + pd.to_timedelta(100 * x + rng.normal(size=rows), unit='D')
    return pd.DataFrame(
        {
            'key': np.arange(rows) + 10_000 * seed,
            'x': x,
            'y': x + 0.3 * rng.normal(size=rows),
            'when': pd.Series(when).where(rng.random(rows) > 0.2),
            'kind': np.where(x + rng.normal(size=rows) > 0, 'high', 'low'),
        }
    )


@pytest.fixture(scope='module')
def demo():
    real, synthetic, metadata = load_single_table_demo()
    table = next(iter(metadata['tables']))
    columns = metadata['tables'][table]['columns']
    described = {'columns': columns, 'primary_key': 'student_id'}
    real, synthetic = (
        data.get(table) if isinstance(data, dict) else data for data in (real, synthetic)
    )
    return real, synthetic, Metadata.load_from_dict({'tables': {table: described}})


@pytest.fixture(scope='module')
def halves():
    return make_mixed(1500, 1), make_mixed(1500, 2)


def independent(table, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({name: rng.permutation(table[name]) for name in table})


# ------------------------------------------------------------------------- shapes and trends


def test_shape_errors_are_one_minus_sdmetrics_complements(demo):
    real, synthetic, metadata = demo
    errors = quality.shape_errors(real, synthetic, metadata)
    assert 'student_id' not in errors
    assert len(errors) == 16
    for name in ('salary', 'degree_perc', 'duration'):
        expected = 1 - KSComplement.compute(real[name], synthetic[name])
        assert errors[name] == pytest.approx(expected, abs=1e-12)
    for name in ('gender', 'high_spec', 'placed'):
        expected = 1 - TVComplement.compute(real[name], synthetic[name])
        assert errors[name] == pytest.approx(expected, abs=1e-12)
    assert quality.shape_error(real, synthetic, metadata) == pytest.approx(100 * errors.mean())


def test_trend_error_of_four_rows_by_hand():
    metadata = make_metadata(a='numerical', b='numerical', c='categorical')
    real = pd.DataFrame({'a': [0, 1, 2, 3], 'b': [0, 1, 2, 3], 'c': ['u', 'u', 'v', 'v']})
    synthetic = pd.DataFrame({'a': [0, 1, 2, 3], 'b': [3, 2, 1, 0], 'c': ['u', 'u', 'v', None]})
    errors = quality.pair_errors(real, synthetic, metadata)
    assert errors.loc['a', 'b'] == pytest.approx(1.0)  # |1 - (-1)| / 2
    # each value of a is a bin of its own: three of four cells agree
    assert errors.loc['a', 'c'] == pytest.approx(0.25)
    # b against c: real {0u, 1u, 2v, 3v}, synthetic {3u, 2u, 1v, 0 missing}: nothing in common
    assert errors.loc['c', 'b'] == pytest.approx(1.0)
    expected = 100 * (1.0 + 0.25 + 1.0) / 3
    assert quality.trend_error(real, synthetic, metadata) == pytest.approx(expected)


def test_trend_error_takes_the_bins_of_the_real_table():
    metadata = make_metadata(a='numerical', c='categorical')
    real = pd.DataFrame({'a': [0.0, 1, 2, 3, 4, 5, 6, 7, 8, 10], 'c': list('uuuuuvvvvv')})
    outlier = real.assign(a=real['a'].replace(10.0, 1e6))
    assert quality.trend_error(real, outlier, metadata) == 0.0  # the outermost bin is open
    assert quality.trend_error(outlier, real, metadata) == pytest.approx(10.0)


def test_labels_are_compared_as_text():
    metadata = make_metadata(c='categorical', flag='boolean')
    real = pd.DataFrame({'c': [1, 2, 2, 3], 'flag': [True, False, True, False]})
    text = real.astype(str)
    decimals = real.assign(c=real['c'].astype(float))
    for other in (text, decimals):
        assert quality.shape_error(real, other, metadata) == 0.0
        assert quality.trend_error(real, other, metadata) == 0.0
        assert quality.exact_copies(real, other, metadata) == 1.0


def test_dates_as_text_and_as_timestamps_are_equal():
    columns = {'when': {'sdtype': 'datetime', 'datetime_format': '%d/%m/%Y'}}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    text = pd.DataFrame({'when': ['01/02/2020', '15/03/2021', None]})
    stamps = pd.DataFrame({'when': pd.to_datetime(text['when'], format='%d/%m/%Y')})
    later = stamps + pd.Timedelta(days=1)
    assert quality.exact_copies(text, stamps, metadata) == 1.0
    assert quality.exact_copies(text, later, metadata) == pytest.approx(1 / 3)  # the missing one


def test_floor_is_what_a_second_sample_scores(halves):
    first, _ = halves
    floor = quality.trend_error_floor(first, MIXED, seed=3, repeats=10)
    samples = [make_mixed(1500, seed) for seed in range(3, 11)]
    scores = [quality.trend_error(first, sample, MIXED) for sample in samples]
    assert floor == pytest.approx(np.mean(scores), rel=0.4)
    assert floor < quality.trend_error(first, independent(first), MIXED) / 5


# ------------------------------------------------------------------------- classifiers


def test_c2st_is_high_for_a_second_sample_and_low_for_independent_columns(halves):
    first, second = halves
    assert quality.c2st(first, second, MIXED) > 0.9
    assert quality.c2st(first, independent(first), MIXED) < 0.15


def test_c2st_sees_missing_values_and_is_reproducible(halves):
    first, second = halves
    filled = second.assign(when=second['when'].fillna(second['when'].mean()))
    score = quality.c2st(first, filled, MIXED, seed=4)
    assert score < 0.9
    assert score == quality.c2st(first, filled, MIXED, seed=4)


def test_c2st_lumps_rare_levels():
    metadata = make_metadata(c='categorical')
    rng = np.random.default_rng(0)
    draw = [pd.DataFrame({'c': rng.zipf(1.3, 1500) % 5000}) for _ in range(2)]
    assert draw[0]['c'].nunique() > 255
    assert quality.c2st(*draw, metadata) > 0.85


@pytest.mark.parametrize('present', [0, 1, 3])
def test_a_number_that_hardly_any_row_has_is_no_obstacle(present):
    metadata = make_metadata(x='numerical', rare='numerical', y='boolean')
    rng = np.random.default_rng(0)
    table = pd.DataFrame({'x': rng.normal(size=12_000), 'rare': np.nan})
    table['y'] = rng.random(12_000) < 1 / (1 + np.exp(-table.x))
    other = table.assign(x=rng.normal(size=12_000))
    table.loc[rng.permutation(12_000)[:present], 'rare'] = 5.0
    for seed in range(3):  # folds and early stopping divide the rows in another way
        assert quality.c2st(table, table, metadata, seed=seed, max_rows=900) > 0.8
        assert 0.6 < quality.c2st(table[:900], other[:900], metadata, seed=seed) <= 1
        assert 0.7 < quality.utility(table, table[:2000], metadata, 'y', seed=seed) < 0.9


def test_utility_of_a_copied_binary_target_is_one_and_of_noise_a_half():
    metadata = make_metadata(x='numerical', y='boolean')
    rng = np.random.default_rng(0)
    x = rng.normal(size=900)
    known, noise = x > 0, rng.random(900) > 0.5
    learned = pd.DataFrame({'x': x, 'y': known})
    train, test = learned.iloc[:600], learned.iloc[600:]
    assert quality.utility(train, test, metadata, 'y') > 0.99
    scrambled = train.assign(y=noise[:600])
    assert quality.utility(scrambled, test, metadata, 'y') < 0.75
    one_class = train.assign(y=True)
    assert quality.utility(one_class, test, metadata, 'y') == 0.5


def test_utility_of_three_classes_with_one_that_synthesis_lost():
    metadata = make_metadata(x='numerical', y='categorical')
    x = np.tile(np.arange(3.0), 100)
    table = pd.DataFrame({'x': x, 'y': np.array(['a', 'b', 'c'])[x.astype(int)]})
    assert quality.utility(table, table, metadata, 'y') == pytest.approx(1.0)
    # 'c' has no probability: half for c, and a and b are told from each other but not from c
    lost = quality.utility(table[table['y'] != 'c'], table, metadata, 'y')
    assert 0.5 < lost < 0.95


def test_utility_of_a_number_is_the_root_mean_squared_error():
    metadata = make_metadata(x='numerical', y='numerical')
    train = pd.DataFrame({'x': [0.0] * 50, 'y': [1.0, 3.0] * 25})
    test = pd.DataFrame({'x': [0.0, 0.0], 'y': [2.0, 6.0]})
    expected = math.sqrt((0 + 16) / 2)  # all it can learn is the mean, 2
    assert quality.utility(train, test, metadata, 'y') == pytest.approx(expected)


# ------------------------------------------------------------------------- distances


def test_distances_by_hand():
    rows = np.array([[0.0, 0.0], [np.nan, 1.0]])
    others = np.array([[0.25, 0.0], [np.nan, 0.0]])
    distances = quality._distances(rows, others, np.array([False, True]))
    np.testing.assert_allclose(distances, [[0.25, 1.0], [2.0, 1.0]])


def test_dcr_share_of_copies_strangers_and_ties(halves):
    first, second = halves
    assert quality.dcr_share(first, second, first, MIXED) == 1.0
    assert quality.dcr_share(second, first, first, MIXED) == 0.0
    assert quality.dcr_share(first, second, make_mixed(1500, 3), MIXED) == pytest.approx(
        0.5, abs=0.05
    )
    metadata = make_metadata(c='categorical')
    same = pd.DataFrame({'c': list('ab')})
    assert quality.dcr_share(same, same, same, metadata) == 0.5


@pytest.mark.parametrize('seed', [0, 1])
def test_dcr_share_compares_every_part_of_a_longer_table(seed):
    metadata = make_metadata(c='categorical')
    short, long = pd.DataFrame({'c': list('aa')}), pd.DataFrame({'c': list('bccccc')})
    made = pd.DataFrame({'c': list('bbb')})
    # One of three parts has the only equal row, the others tie.
    assert quality.dcr_share(short, long, made, metadata, seed=seed) == pytest.approx(1 / 3)
    assert quality.dcr_share(long, short, made, metadata, seed=seed) == pytest.approx(2 / 3)


def test_exact_copies_leave_out_the_key():
    table = make_mixed(10, 1)
    rows = pd.concat([table.iloc[:3], make_mixed(7, 2)]).assign(key=np.arange(10) + 777)
    assert quality.exact_copies(table, rows, MIXED) == pytest.approx(0.3)
    assert quality.exact_copies(table, table.sample(frac=1, random_state=0), MIXED) == 1.0


def test_precision_and_coverage_tell_a_narrow_from_a_wide_sample(halves):
    first, second = halves
    precision, coverage = quality.precision_and_coverage(first, second, MIXED)
    assert precision > 0.9
    assert coverage > 0.9
    narrow = first.iloc[np.argsort(first['x'].abs().to_numpy())[:150]]
    narrow = pd.concat([narrow] * 10)
    precision, coverage = quality.precision_and_coverage(first, narrow, MIXED)
    assert precision > 0.9
    assert coverage < 0.6
    wide = independent(first).assign(y=lambda t: 3 * t['y'])
    assert quality.precision_and_coverage(first, wide, MIXED)[0] < 0.8


# ------------------------------------------------------------------------- the report


def test_evaluation_holds_reports_and_every_measure(demo):
    real, synthetic, metadata = demo
    train, test = real.iloc[::2], real.iloc[1::2]
    name = next(iter(metadata.tables))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    evaluation = quality.evaluate_quality(
        {name: train}, {name: synthetic}, metadata, test=test, target='placed', seed=1
    )
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    values = evaluation.to_dict()
    assert list(evaluation.summary) == ['measure', 'value', 'ideal', 'meaning']
    assert not [name for name, value in values.items() if math.isnan(value)]
    assert values['SDMetrics quality'] == evaluation.quality_report.get_score()
    assert values['SDMetrics diagnostic'] == evaluation.diagnostic_report.get_score()
    assert values['C2ST'] == quality.c2st(train, synthetic, metadata, seed=1)
    assert values['trend error %'] == quality.trend_error(train, synthetic, metadata)
    assert values['utility of real rows'] == quality.utility(
        train, test, metadata, 'placed', seed=1
    )


def test_equal_seeds_give_equal_scores(halves):
    first, second = (half.iloc[:60] for half in halves)
    scores = [
        quality.evaluate_quality(first, second, MIXED, test=first, target='y', seed=seed).to_dict()
        for seed in (1, 1, 2)
    ]
    assert scores[0] == scores[1]
    assert scores[0]['C2ST'] != scores[2]['C2ST']


def test_without_test_rows_and_target_the_summary_says_what_it_lacks(demo):
    real, synthetic, metadata = (demo[0].iloc[:80], demo[1].iloc[:80], demo[2])
    summary = quality.evaluate_quality(real, synthetic, metadata).summary.set_index('measure')
    for measure in ('utility', 'DCR share', 'SDMetrics DCR overfitting protection'):
        assert math.isnan(summary.loc[measure, 'value'])
        assert summary.loc[measure, 'meaning'].startswith('Not measured: ')
    named = quality.evaluate_quality(real, synthetic, metadata, target='placed').summary
    row = named.set_index('measure').loc['utility']
    assert 0.5 <= row['value'] <= 1
    assert 'has seen' in row['meaning']


def test_tiny_table_with_constant_and_empty_columns():
    metadata = make_metadata(
        a='numerical', constant='numerical', empty='numerical', none='categorical', c='categorical'
    )
    real = pd.DataFrame(
        {
            'a': [1.0, 2, 3, 4, 5],
            'constant': 7,
            'empty': np.nan,
            'none': pd.Series([None] * 5, dtype=object),
            'c': list('aabbb'),
        }
    )
    result = quality.evaluate_quality(real, real.iloc[::-1], metadata, test=real, target='c')
    values = result.to_dict()
    assert values['shape error %'] == 0.0
    assert values['trend error %'] == 0.0
    assert values['exact copies'] == 1.0
    assert values['DCR share'] == 0.5
    without = quality.evaluate_quality(real, real.iloc[::-1], metadata, target='c')
    for summary in (result.summary, without.summary):
        assert not summary['meaning'].str.startswith('Failed').any()
    assert math.isnan(values['C2ST'])
    meaning = result.summary.set_index('measure').loc['C2ST', 'meaning']
    assert meaning.startswith('Not measurable')


def test_names_may_be_whole_numbers_as_in_fit():
    metadata = make_metadata(**{'0': 'numerical', '1': 'categorical'})
    table = pd.DataFrame({0: range(60), 1: list('ab') * 30})
    assert quality.evaluate_quality(table, table, metadata).to_dict()['shape error %'] == 0


def test_single_column_has_no_trend():
    metadata = make_metadata(a='numerical')
    table = pd.DataFrame({'a': np.arange(30.0)})
    assert math.isnan(quality.trend_error(table, table, metadata))
    assert quality.shape_error(table, table + 100, metadata) == 100.0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'real': make_mixed(5, 1).drop(columns='x')}, "real must have every column.*'x'"),
        ({'synthetic': make_mixed(5, 1).iloc[:0]}, 'synthetic must have at least one row'),
        ({'test': [1, 2]}, 'test must be a DataFrame.*list'),
        ({'real': {'other': make_mixed(5, 1)}}, "one table 't'.*other"),
        ({'target': 'key'}, "target must be.*'key'"),
        ({'target': 'when'}, 'target must be'),
        ({'metadata': {}}, 'metadata must be an sdv.metadata.Metadata'),
        ({'metadata': Metadata()}, 'exactly one table, received 0'),
        ({'seed': -1}, 'seed must be'),
        ({'metadata': make_metadata(key='id')}, 'nothing to score'),
    ],
)
def test_bad_arguments(change, message):
    table = make_mixed(5, 1)
    arguments = {'real': table, 'synthetic': table, 'metadata': MIXED} | change
    with pytest.raises(InvalidParameterError, match=message):
        quality.evaluate_quality(**arguments)


def test_plot_is_a_picture_of_all_columns(demo, tmp_path):
    real, synthetic, metadata = demo
    path = tmp_path / 'plot.png'
    columns = ['salary', 'start_date', 'gender', 'placed', 'duration']
    assert quality.save_plot(real, synthetic, metadata, path, columns=columns) == path
    assert path.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    few = quality.save_plot(real, synthetic, metadata, tmp_path / 'few.png', columns=columns[:2])
    assert few.stat().st_size < path.stat().st_size
    with pytest.raises(InvalidParameterError, match='student_id'):
        quality.save_plot(real, synthetic, metadata, path, columns=['student_id'])


@pytest.mark.parametrize('number', [0.0, 7.0, 1e17])
def test_plot_of_columns_of_one_value(number, tmp_path):
    metadata = make_metadata(when='datetime', x='numerical', empty='numerical')
    for rows in (1, 5):
        when = pd.Timestamp('2020-01-01')
        table = pd.DataFrame({'when': [when] * rows, 'x': number, 'empty': np.nan})
        assert quality.save_plot(table, table, metadata, tmp_path / 'plot.png').exists()


# Membership inference and near copies


def test_copies_are_near_and_strangers_are_not(halves):
    first, second = halves
    assert quality.near_copies(first, second, first, MIXED) == 1.0
    strangers = quality.near_copies(first, second, make_mixed(1500, 3), MIXED)
    assert strangers == pytest.approx(0.01, abs=0.01)
    nudged = first.assign(x=first['x'] + 1e-6)
    assert quality.exact_copies(first, nudged, MIXED) == 0.0
    assert quality.near_copies(first, second, nudged, MIXED) == 1.0


def test_an_attack_by_distance_finds_copies_and_nothing_else(halves):
    first, second = halves
    copied = quality.distance_attack(first, second, first, MIXED)
    assert copied.auc > 0.99
    assert copied.tpr_at_1_percent > 0.95
    fair = quality.distance_attack(first, second, make_mixed(1500, 3), MIXED)
    assert fair.auc == pytest.approx(0.5, abs=0.03)
    assert fair.tpr_at_1_percent < 0.03


def test_scores_of_an_attack_have_known_answers():
    attack = quality.membership_inference(np.array([3.0, 2.0]), np.array([1.0, 0.0]))
    assert (attack.auc, attack.tpr_at_1_percent) == (1.0, 1.0)
    attack = quality.membership_inference(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
    assert (attack.auc, attack.tpr_at_1_percent) == (0.75, 0.5)
    attack = quality.membership_inference(np.zeros(5), np.zeros(5))
    assert (attack.auc, attack.tpr_at_1_percent) == (0.5, 0.0)
    ties = np.arange(1000.0)
    attack = quality.membership_inference(ties, ties)
    assert (attack.auc, attack.tpr_at_1_percent) == pytest.approx((0.5, 0.01))
    with pytest.raises(InvalidParameterError, match='received 0 and 1'):
        quality.membership_inference(np.empty(0), np.ones(1))


def test_bootstrap_intervals_hold_the_truth_and_narrow_with_rows():
    rng = np.random.default_rng(0)
    widths = []
    for rows in (200, 3200):
        attack = quality.membership_inference(rng.normal(1, 1, rows), rng.normal(size=rows))
        low, high = attack.auc_interval
        assert low < 0.7602 < high  # the AUC of two normals one standard deviation apart
        assert low < attack.auc < high
        low, high = attack.tpr_interval
        assert low < 0.0924 < high  # P(Z > 2.326 - 1)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    again = [quality.membership_inference(np.arange(9.0), np.arange(8.0)) for _ in range(2)]
    assert again[0].auc_interval == again[1].auc_interval


# Disclosure


def make_disclosure(rows, seed, flip):
    """A number that tells a secret but for a share that is flipped."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 10, rows)
    secret = np.where(rng.random(rows) < flip, 1 - x % 2, x % 2)
    return pd.DataFrame({'x': x.astype(float), 'other': rng.choice(list('ab'), rows), 's': secret})


DISCLOSURE = make_metadata(x='numerical', other='categorical', s='categorical')


def test_disclosure_protection_of_known_attacks():
    real = make_disclosure(600, 1, 0.0)
    told, noise = make_disclosure(600, 2, 0.0), make_disclosure(600, 3, 0.5)
    score = quality.disclosure_protection
    assert score(real, told, DISCLOSURE, 's', ['x']) == 0.0
    assert score(real, told, DISCLOSURE, 's') == 0.0
    assert score(real, noise, DISCLOSURE, 's', ['x']) == pytest.approx(1.0, abs=0.1)
    assert score(real, told, DISCLOSURE, 's', ['other']) == pytest.approx(1.0, abs=0.1)
    half = make_disclosure(3000, 4, 0.25)
    assert score(real, half, DISCLOSURE, 's', ['x']) == pytest.approx(0.5, abs=0.1)
    # a missing value and labels of another type are values like any other
    text = told.astype({'s': str}).mask(told['x'] == 3)
    assert score(real, text, DISCLOSURE, 's', ['x']) == 0.0


def test_evaluation_scores_the_named_columns_and_refuses_others():
    real, made = make_disclosure(60, 1, 0.0), make_disclosure(60, 2, 0.0)
    summary = quality.evaluate_quality(
        real, made, DISCLOSURE, sensitive=['s', 'other'], known=['x']
    ).to_dict()
    assert summary['disclosure protection of s'] == 0.0
    assert summary['disclosure protection of other'] > 0.7
    for sensitive, known in ((['gone'], None), (['s'], ['s']), (['s', 'x', 'other'], None)):
        with pytest.raises(InvalidParameterError, match='sensitive and known must name different'):
            quality.evaluate_quality(real, made, DISCLOSURE, sensitive=sensitive, known=known)
