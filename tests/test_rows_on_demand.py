"""Steering, filling in, likelihood, encoding: what else a fitted synthesizer tells of rows."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sdv.cag import FixedCombinations, Inequality
from sdv.metadata import Metadata
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from sdv_nvib import (
    ConditionError,
    InvalidParameterError,
    InvalidTableError,
    NotFittedError,
    NVIBSynthesizer,
    RowEmbedder,
    UnknownValueError,
)
from sdv_nvib.generation import Steering
from sdv_nvib.quality import LIKELIHOOD_AUC
from sdv_nvib.sampling import FittedModel

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:The training data does not cover the full range'),
]

SDTYPES = {'key': 'id', 'left': 'categorical', 'right': 'categorical', 'born': 'datetime'}


def make_pairs(rows=240, seed=0):
    """Left and right are the same letter; high is low and something; a third of sizes is missing.

    The sizes of 'c' are far from those of the others.
    """
    rng = np.random.default_rng(seed)
    letter = rng.choice(list('abc'), rows)
    low = rng.integers(0, 50, rows)
    size = np.where(letter == 'c', 1000, 10) + rng.normal(size=rows).round(2)
    born = pd.Timestamp('2020-01-01') + pd.to_timedelta(rng.integers(0, 90, rows), unit='D')
    return pd.DataFrame(
        {
            'key': np.arange(rows),
            'left': letter,
            'right': letter,
            'low': low,
            'high': low + rng.integers(0, 20, rows),
            'size': pd.Series(size).mask(rng.random(rows) < 0.3),
            'born': born.strftime('%d/%m/%Y'),
        }
    )


PAIRS = make_pairs()


def fit(constraints=(), **changes):
    columns = {name: {'sdtype': SDTYPES.get(name, 'numerical')} for name in PAIRS}
    columns['born']['datetime_format'] = '%d/%m/%Y'
    table = {'columns': columns, 'primary_key': 'key'}
    settings = {'epochs': 30, 'batch_size': 40, 'learning_rate': 1e-2, 'd_model': 16}
    settings |= {'lambda_gaussian': 0.01, 'lambda_dirichlet': 0.01}
    synthesizer = NVIBSynthesizer(
        Metadata.load_from_dict({'tables': {'pairs': table}}),
        **{**settings, 'dim_feedforward': 32, 'num_decoder_layers': 1, **changes},
    )
    if constraints:
        synthesizer.add_constraints(list(constraints))
    synthesizer.fit({'pairs': PAIRS})
    return synthesizer


@pytest.fixture(scope='module')
def fitted():
    return fit()


def disagreement(rows):
    return (rows['left'] != rows['right']).mean()


def concentration(rows):
    """Chance that two rows have the same value of `low`, which is spread evenly in the table."""
    return rows['low'].value_counts(normalize=True).pow(2).sum()


# Steering


def test_top_p_keeps_the_fewest_likely_tokens_and_excluded_ones_go():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.1, 0.6, 0.25]]).log()
    kept = Steering((1.0,), (0.7,), (-1,)).apply(logits, 0).isfinite()
    assert kept.tolist() == [[True, True, False, False], [False, False, True, True]]
    kept = Steering((1.0,), (0.01,), (-1,)).apply(logits, 0).isfinite()
    assert kept.sum(1).tolist() == [1, 1]
    kept = Steering((1.0,), (1.0,), (2,)).apply(logits.clone(), 0).isfinite()
    assert kept.tolist() == [[True, True, False, True]] * 2
    sharper = Steering((0.5,), (1.0,), (-1,)).apply(logits, 0).softmax(-1)
    torch.testing.assert_close(sharper, logits.exp().square() / logits.exp().square().sum(1, True))


@pytest.mark.parametrize('generation', ['any-order', 'single-pass'])
def test_steering_reaches_every_drawn_column(build_model, generation):
    network = build_model(3, 5, 4, generation=generation).eval()
    network.output_bias.data.copy_(torch.tensor([0, 0, 9.0, *[0] * 5, 1, 0, 0, 0.5]))
    model = FittedModel(network, [], enable_gpu=False)
    rows = model.sample(300, None, Steering((1.0, 1.0, 0.01), (1.0, 1.0, 1.0), (2, -1, -1)))
    assert 2 not in rows[:, 0]
    assert len(np.unique(rows[:, 1])) == 5
    assert np.bincount(rows[:, 2], minlength=4)[0] > 290


@pytest.mark.parametrize('generation', ['any-order', 'single-pass'])
def test_weights_are_met_exactly_and_the_rest_follows(fitted, generation):
    synthesizer = fitted if generation == 'any-order' else fit(generation=generation, epochs=2)
    sampled = synthesizer.sample(200, shares={'left': {'a': 1, 'c': 3}})['pairs']
    assert sampled['left'].value_counts().to_dict() == {'c': 150, 'a': 50}
    assert sampled['key'].is_unique
    if generation == 'any-order':
        assert disagreement(sampled) < 0.2


def test_temperature_sharpens_one_column_or_all(fitted):
    assert len(fitted.sample(3, temperature=np.float32(0.5), top_p=np.float64(0.9))['pairs']) == 3
    plain, cold = fitted.sample(400)['pairs'], fitted.sample(400, temperature=0.05)['pairs']
    assert disagreement(cold) <= disagreement(plain)
    assert concentration(cold) > 1.2 * concentration(plain)
    one = fitted.sample(400, top_p={'low': 0.05})['pairs']
    assert concentration(one) > 1.2 * concentration(plain)
    assert one['high'].nunique() > 20
    assert concentration(cold) > 1.2 * concentration(fitted.sample(400)['pairs'])  # it is over


@pytest.mark.parametrize(
    'arguments',
    [
        {'shares': {'left': {'a': 0, 'b': 0.0}}},
        {'shares': {'left': {'a': float('nan'), 'b': 1}}},
        {'shares': {'left': {'a': 1.5, 'b': -0.5}}},
        {'shares': {'left': {}}},
        {'shares': {'left': ['a', 'b']}},
        {'shares': {'left': {'a': 'many', 'b': 1}}},
        {'temperature': 0},
        {'temperature': {'size': -1.0}},
        {'temperature': {'key': 0.5}},
        {'top_p': 1.5},
        {'top_p': {'left': 'much'}},
    ],
)
def test_steering_out_of_range_is_refused_by_name_and_value(fitted, arguments):
    with pytest.raises(InvalidParameterError) as caught:
        fitted.sample(10, **arguments)
    (argument, value), *_ = arguments.items()
    assert argument in str(caught.value)
    assert isinstance(value, int | float) or next(iter(value)) in str(caught.value)


# Filling in


def with_holes(share=0.3, seed=1):
    holes = np.random.default_rng(seed).random(PAIRS.shape) < share
    return PAIRS.mask(pd.DataFrame(holes, PAIRS.index, PAIRS.columns).assign(key=False))


@pytest.mark.parametrize('method', ['sample', 'mean'])
def test_missing_cells_are_filled_and_observed_ones_untouched(fitted, method):
    rows = with_holes().iloc[:60].sample(frac=1, random_state=0)
    filled = fitted.impute({'pairs': rows}, method=method)['pairs']
    assert filled.notna().all(axis=None)
    assert filled.index.equals(rows.index)
    for name in rows:
        there = rows[name].notna()
        assert (filled.loc[there, name] == rows.loc[there, name]).all()
        assert filled[name].dtype == rows[name].dtype
    pd.to_datetime(filled['born'], format='%d/%m/%Y')
    one_letter = rows['left'].isna() & rows['right'].notna()
    assert one_letter.sum() > 5
    assert disagreement(filled[one_letter]) < 0.3


def test_several_imputations_differ_where_values_are_missing(fitted):
    rows = with_holes().head(40)
    several = [each['pairs'] for each in fitted.impute({'pairs': rows}, num_imputations=3)]
    assert len(several) == 3
    assert not several[0].equals(several[1])
    assert all(each.notna().all(axis=None) for each in several)


def test_the_mean_is_nearer_to_the_truth_than_a_draw(fitted):
    rows = PAIRS[PAIRS['size'].notna()].head(60)
    holes = rows.assign(high=np.nan)
    error = {
        method: (fitted.impute({'pairs': holes}, method=method)['pairs']['high'] - rows['high'])
        .pow(2)
        .mean()
        for method in ('sample', 'mean')
    }
    assert error['mean'] < error['sample']


def test_filled_rows_hold_to_constraints():
    synthesizer = fit([Inequality(low_column_name='low', high_column_name='high')], epochs=2)
    rows = with_holes().head(30)
    filled = synthesizer.impute({'pairs': rows})['pairs']
    assert filled.notna().all(axis=None)
    assert (filled['low'] <= filled['high']).all()
    broken = rows.assign(low=5, high=3)
    with pytest.raises(ConditionError, match='Inequality'):
        synthesizer.impute({'pairs': broken})


def test_a_full_table_is_returned_as_it_is(fitted):
    full = PAIRS.dropna()
    pd.testing.assert_frame_equal(fitted.impute({'pairs': full})['pairs'], full)


@pytest.mark.parametrize('arguments', [{'method': 'best'}, {'num_imputations': 0}])
def test_imputing_refuses_other_methods_and_numbers(fitted, arguments):
    with pytest.raises(InvalidParameterError, match=str(next(iter(arguments.values())))):
        fitted.impute({'pairs': PAIRS}, **arguments)


# Likelihood


def test_rows_that_break_what_was_learned_are_less_likely(fitted):
    broken = PAIRS.assign(right=PAIRS['right'].map({'a': 'b', 'b': 'c', 'c': 'a'}))
    usual, odd = (fitted.log_likelihood({'pairs': rows}) for rows in (PAIRS, broken))
    assert usual.index.equals(PAIRS.index)
    assert (usual < 0).all()
    assert (odd < usual).mean() > 0.9
    terms = fitted.log_likelihood({'pairs': broken}, per_column=True)
    assert list(terms.columns) == [name for name in PAIRS if name != 'key']
    np.testing.assert_allclose(terms.sum(axis=1), odd, rtol=1e-5)
    # Either letter, whichever comes second in the order, is what surprises.
    change = terms.mean() - fitted.log_likelihood({'pairs': PAIRS}, per_column=True).mean()
    assert change[['left', 'right']].max() < change[['low', 'high', 'born']].min()


def test_likelihood_is_deterministic_and_more_orders_are_less_noisy(fitted):
    fitted.reset_sampling()
    expected = fitted.sample(20)['pairs']
    fitted.reset_sampling()
    rows = {'pairs': PAIRS.head(30)}
    assert fitted.log_likelihood(rows).equals(fitted.log_likelihood(rows))
    pd.testing.assert_frame_equal(fitted.sample(20)['pairs'], expected)
    exact = fitted.log_likelihood(rows, num_orders=200)
    errors = [(fitted.log_likelihood(rows, num_orders=k) - exact).abs().mean() for k in (1, 20)]
    assert errors[1] < errors[0]


def test_a_models_likelihood_sums_to_one_where_nothing_is_hidden(build_model):
    """Without latent noise the two columns' conditionals are exact: e^lnp sums to 1."""
    network = build_model(3, 4).eval()
    network.nvib.mu_logvar.weight.data.zero_()
    network.nvib.mu_logvar.bias.data[16:] = -12.0
    network.nvib.log_alpha.bias.data.fill_(-5.0)
    model = FittedModel(network, [], enable_gpu=False)
    rows = np.array([[a, b] for a in range(3) for b in range(4)])
    total = np.exp(model.log_likelihood(rows, 50).sum(1)).sum()
    assert total == pytest.approx(1, abs=0.01)


def test_likelihood_refuses_unknown_values_and_numbers_of_orders(fitted):
    with pytest.raises(UnknownValueError, match="'left'"):
        fitted.log_likelihood({'pairs': PAIRS.assign(left='z')})
    with pytest.raises(InvalidParameterError, match='num_orders'):
        fitted.log_likelihood({'pairs': PAIRS}, num_orders=0)
    assert len(fitted.log_likelihood({'pairs': PAIRS}, num_orders=np.int64(1))) == len(PAIRS)


# What the bottleneck keeps


def test_rows_are_encoded_to_components_that_tell_them_apart(fitted):
    encoding = fitted.encode({'pairs': PAIRS})
    num_columns = len(PAIRS.columns) - 1
    assert encoding.mu.shape == encoding.logvar.shape == (len(PAIRS), num_columns, 16)
    assert encoding.embedding.shape == (len(PAIRS), 16)
    assert (encoding.alpha > 0).all()
    assert np.isfinite(encoding.logvar).all()
    assert encoding.columns == tuple(PAIRS.columns[1:])
    half = len(PAIRS) // 2
    probe = LogisticRegression(max_iter=1000).fit(encoding.embedding[:half], PAIRS['left'][:half])
    assert probe.score(encoding.embedding[half:], PAIRS['left'][half:]) > 0.9


@torch.inference_mode()
def test_small_variances_are_told_beside_large_means(build_model):
    network = build_model(3, 4, generation='single-pass')
    network.nvib.mu_logvar.bias[:16] = 1000.0
    network.nvib.mu_logvar.bias[16:] = -10.0
    rows = np.array([[a, b] for a in range(3) for b in range(4)])
    encoded = FittedModel(network, [], enable_gpu=False).encode(rows, 1)
    logvar = network.encode(torch.from_numpy(rows)).logvar[:, 1:]
    torch.testing.assert_close(encoded.logvar, logvar)


def test_vectors_of_rows_are_a_step_of_scikit_learn(fitted):
    embedder = RowEmbedder(fitted, num_orders=2)
    pipeline = make_pipeline(embedder, LogisticRegression(max_iter=1000))
    scores = cross_val_score(pipeline, PAIRS, PAIRS['left'], cv=2, error_score='raise')
    assert scores.mean() > 0.9
    vectors = embedder.set_output(transform='pandas').fit_transform(PAIRS.head(10))
    expected = fitted.encode({'pairs': PAIRS.head(10)}, num_orders=2).embedding
    np.testing.assert_array_equal(vectors, expected)
    assert vectors.index.equals(PAIRS.index[:10])
    assert list(vectors.columns) == list(embedder.get_feature_names_out())
    assert clone(embedder).synthesizer is fitted
    with pytest.raises(NotFittedError):
        RowEmbedder(NVIBSynthesizer(fitted.metadata)).transform(PAIRS)


def test_encoding_one_row_equals_encoding_it_among_others_without_random_orders():
    synthesizer = fit(generation='single-pass', epochs=1)
    everything = synthesizer.encode({'pairs': PAIRS})
    one = synthesizer.encode({'pairs': PAIRS.iloc[[7]]})
    np.testing.assert_allclose(one.mu[0], everything.mu[7], atol=1e-5)
    np.testing.assert_allclose(one.alpha[0], everything.alpha[7], rtol=1e-4)


def test_a_column_attends_to_the_one_it_copies(fitted):
    weights = fitted.attention_weights({'pairs': PAIRS})
    names = list(PAIRS.columns[1:])
    assert list(weights.index) == names
    assert list(weights.columns) == ['(prior)', *names]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert (np.diag(weights[names]) == 0).all()  # no query reads its own column
    assert weights.loc['left', names].idxmax() == 'right'
    assert weights.loc['right', names].idxmax() == 'left'
    with pytest.raises(InvalidTableError, match='at least one row'):
        fitted.attention_weights({'pairs': PAIRS.iloc[:0]})


def test_attention_of_rows_is_the_mean_over_them_and_single_pass_reads_all_of_f():
    synthesizer = fit(generation='single-pass', epochs=1, num_decoder_layers=2)
    both = synthesizer.attention_weights({'pairs': PAIRS.iloc[:2]})
    each = [synthesizer.attention_weights({'pairs': PAIRS.iloc[[i]]}) for i in (0, 1)]
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, atol=1e-6)
    assert (np.diag(both.iloc[:, 1:]) > 0).all()
    np.testing.assert_allclose(both.sum(axis=1), 1, atol=1e-5)


def test_similar_rows_grow_apart_with_variety(fitted):
    distance = []
    for variety in (0.0, 0.3, 0.6, 1.0):
        rows = fitted.sample_similar({'pairs': PAIRS}, variety)['pairs']
        assert rows.index.equals(PAIRS.index)
        same = (rows == PAIRS) | (rows.isna() & PAIRS.isna())
        distance.append(1 - same.drop(columns='key').mean(axis=None))
    assert distance[0] == 0
    assert distance == sorted(distance)
    assert distance[-1] > 0.5
    with pytest.raises(InvalidParameterError, match='variety'):
        fitted.sample_similar({'pairs': PAIRS}, 2)


def unlike(rows, others):
    """Share of cells that differ, without the ids."""
    rows, others = (each.drop(columns='key').reset_index(drop=True) for each in (rows, others))
    return 1 - ((rows == others) | (rows.isna() & others.isna())).mean(axis=None)


def test_rows_between_leave_the_one_row_and_come_to_the_other(fitted):
    first, last = PAIRS.iloc[:120], PAIRS.iloc[:119:-1]
    ends = {'data': {'pairs': first}, 'other': {'pairs': last}}
    path = [fitted.sample_between(**ends, position=t)['pairs'] for t in np.linspace(0, 1, 6)]
    from_first = [unlike(rows, first) for rows in path]
    from_last = [unlike(rows, last) for rows in path]
    assert from_first[0] == from_last[-1] == 0
    assert from_first == sorted(from_first)
    assert from_last == sorted(from_last, reverse=True)
    assert all(rows.index.equals(first.index) for rows in path)
    assert all(rows.dtypes.equals(first.dtypes) for rows in path)
    # What is drawn follows what is left: rows are likelier than cells of both at random.
    middle = fitted.sample_between(**ends)['pairs']
    is_first = np.random.default_rng(0).random(first.shape) < 0.5
    crossed = first.where(is_first, last.set_axis(first.index))
    assert disagreement(middle) < disagreement(crossed)


def test_a_cell_on_the_way_is_the_ones_then_drawn_then_the_others(fitted):
    """At any position the cells kept at both of its sides are kept."""
    first, last = PAIRS.assign(left='a', right='a').head(80), PAIRS.assign(left='c').head(80)
    path = [
        fitted.sample_between({'pairs': first}, {'pairs': last}, t)['pairs']['left']
        for t in (0.2, 0.5, 0.8)
    ]
    is_kept = [[(left == end).mean() for left in path] for end in ('a', 'c')]
    assert is_kept[0] == sorted(is_kept[0], reverse=True)
    assert is_kept[1] == sorted(is_kept[1])
    assert 0.2 < is_kept[0][1] < 0.9


@pytest.mark.parametrize('method', ['sample_similar', 'sample_between'])
def test_columns_that_a_constraint_ties_stay_or_go_together(method):
    tied = [
        Inequality(low_column_name='low', high_column_name='high'),
        FixedCombinations(column_names=['left', 'right']),
    ]
    synthesizer = fit(tied, epochs=1)
    assert sorted(map(sorted, synthesizer._tied_columns())) == [['high', 'low'], ['left', 'right']]
    rows = [{'pairs': PAIRS.head(60)}]
    if method == 'sample_between':
        rows.append({'pairs': PAIRS.tail(60)})
    drawn = getattr(synthesizer, method)(*rows, 0.5, max_tries=1)['pairs']
    assert len(drawn) == 60
    assert (drawn['low'] <= drawn['high']).all()
    assert (drawn['left'] == drawn['right']).all()


def test_rows_between_refuse_other_positions_and_numbers_of_rows(fitted):
    rows = {'pairs': PAIRS}
    with pytest.raises(InvalidParameterError, match='position'):
        fitted.sample_between(rows, rows, 1.5)
    with pytest.raises(InvalidParameterError, match='240, received 7'):
        fitted.sample_between(rows, {'pairs': PAIRS.head(7)})


def test_single_pass_generation_refuses_what_takes_conditionals():
    synthesizer = fit(generation='single-pass', epochs=1)
    rows = {'pairs': PAIRS.head(20)}
    for call in (
        lambda: synthesizer.sample_similar(rows),
        lambda: synthesizer.sample_between(rows, rows),
        lambda: synthesizer.get_column_importance(rows),
        lambda: synthesizer.log_likelihood(rows),
        lambda: synthesizer.membership_inference(rows, rows),
    ):
        with pytest.raises(InvalidParameterError, match="generation='any-order'"):
            call()
    scores = synthesizer.evaluate(rows, test=rows)
    assert math.isnan(scores.to_dict()[LIKELIHOOD_AUC])


# Which columns carry what


def test_columns_that_tell_of_others_are_important_and_lonely_ones_are_not(fitted):
    importance = fitted.get_column_importance({'pairs': PAIRS})
    nats = importance.set_index('Column')['Shared Nats']
    assert set(nats.index) == set(PAIRS.columns[1:])
    assert nats.is_monotonic_decreasing
    # Each letter is known from the other: ln 3 nats.
    assert nats[['left', 'right']].min() > 0.8 * np.log(3)
    assert nats['born'] < 0.3 * nats['left']
    assert importance['Pseudo-Count Share'].sum() == pytest.approx(1)
    assert (importance['Pseudo-Count Share'] > 0).all()


def test_the_plot_of_importance_shows_both_measures_of_every_column(fitted):
    figure = fitted.get_column_importance_plot({'pairs': PAIRS.head(50)}, title='Pairs')
    importance = fitted.get_column_importance({'pairs': PAIRS.head(50)})
    assert figure.layout.title.text == 'Pairs'
    for bars, measure in zip(figure.data, ['Shared Nats', 'Pseudo-Count Share'], strict=True):
        assert list(bars.y) == list(importance['Column'])
        np.testing.assert_allclose(bars.x, importance[measure])
    assert {a.text for a in figure.layout.annotations} == {'Shared Nats', 'Pseudo-Count Share'}


def test_shared_information_is_nothing_where_nothing_passes(build_model):
    """With a prior component alone in effect, no column tells of another; one column has none."""
    network = build_model(3, 4, 5).eval()
    network.nvib.log_alpha.bias.data.fill_(-5.0)
    network.nvib.mu_logvar.weight.data.zero_()
    network.nvib.mu_logvar.bias.data.zero_()
    rows = np.random.default_rng(0).integers(0, 3, (400, 3))
    shared = FittedModel(network, [], enable_gpu=False).shared_information(rows)
    assert abs(shared.mean(0)).max() < 0.01
    alone = FittedModel(build_model(3).eval(), [], enable_gpu=False)
    assert alone.shared_information(rows[:, :1]).tolist() == [[0.0]] * 400
