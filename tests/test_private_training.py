"""Differential privacy: what a row can change, how much noise there is, what nothing may learn."""

import copy
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sdv.cag import Inequality
from sdv.errors import InvalidDataError
from sdv.metadata import Metadata

from sdv_nvib import InvalidParameterError, ModelFileError, NVIBSynthesizer
from sdv_nvib.private_training import (
    MAX_GRAD_NORM,
    ORDERS,
    PrivateTrainer,
    clipped_sum,
    plan,
    spent,
)
from sdv_nvib.training import TrainingConfig

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:The training data does not cover the full range'),
]
opacus = pytest.importorskip('opacus.accountants')
TINY = {'d_model': 8, 'nhead': 2, 'num_decoder_layers': 1, 'dim_feedforward': 8}
MAP = torch.tensor([3, 1, 5, 0, 2, 4])  # the planted dependency: second = MAP[first]


@pytest.fixture
def make_trainer(build_model):
    def make(rows=None, *, epsilon=5.0, generation='any-order', seed=0, **config):
        settings = {'epochs': 1, 'batch_size': 20} | config
        model = build_model(6, 6, ordered=(1,), generation=generation)
        trainer = PrivateTrainer(
            model,
            TrainingConfig(seed=seed, **settings),
            rng=np.random.default_rng(seed),
            epsilon=epsilon,
            delta=1e-4,
        )
        if rows is not None:
            trainer._prepare(rows)
        return trainer

    return make


def planted_rows(count, seed=0):
    first = torch.randint(6, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([first, MAP[first]], 1)


def norm(gradients):
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))


# One row


@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e6])
def test_the_sum_of_clipped_gradients_is_bounded_row_by_row(scale):
    generator = torch.Generator().manual_seed(0)
    gradients = {
        'a': scale * torch.randn(7, 3, 2, generator=generator),
        'b': scale * torch.randn(7, 4, generator=generator),
    }
    together = clipped_sum(gradients, 0.5)
    single = [clipped_sum({k: g[i : i + 1] for k, g in gradients.items()}, 0.5) for i in range(7)]
    assert all(norm(one) <= 0.5 for one in single)
    assert norm(together) <= 7 * 0.5
    for name, total in together.items():
        torch.testing.assert_close(total, sum(one[name] for one in single))
    if scale == 1e-3:  # what is within the bound stays as it is
        torch.testing.assert_close(together['b'], gradients['b'].sum(0))


def test_a_row_whose_gradient_is_no_number_counts_as_zero():
    gradients = {'a': torch.tensor([[3.0, 4.0], [math.nan, 1.0], [math.inf, 0.0]])}
    total = clipped_sum(gradients, 1.0)['a']
    torch.testing.assert_close(total, torch.tensor([0.6, 0.8]), atol=1e-4, rtol=0)


@pytest.mark.parametrize('generation', ['any-order', 'single-pass'])
def test_gradients_of_rows_are_those_of_a_batch_of_one(make_trainer, generation):
    """Against plain backward passes, one row at a time, with the same latent noise."""
    rows = planted_rows(5)
    trainer = make_trainer(rows, generation=generation, epochs=1)
    model = trainer.model
    for row in rows:
        trainer.noise.manual_seed(3)
        private = trainer._clipped_gradients(row[None], 0.5)
        trainer.noise.manual_seed(3)
        order = torch.rand((1, 2), generator=trainer.noise).argsort(1)
        output = model(row[None], order, trainer.noise)
        bottleneck = trainer.lambda_gaussian * output.kl_gaussian
        bottleneck = bottleneck + trainer.lambda_dirichlet * output.kl_dirichlet
        model.zero_grad()
        (output.nll.sum() + 0.5 * bottleneck.sum()).backward()
        plain = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
        }
        factor = min(1.0, MAX_GRAD_NORM / norm(plain))
        assert norm(private) <= MAX_GRAD_NORM
        for name, gradient in plain.items():
            torch.testing.assert_close(private[name], factor * gradient, atol=1e-4, rtol=1e-3)


def test_every_weight_gets_a_gradient_and_an_empty_batch_none(make_trainer):
    trainer = make_trainer(planted_rows(40))
    sums = trainer._clipped_gradients(trainer.rows.some, 1.0)
    assert set(sums) == {name for name, _ in trainer.model.named_parameters()}
    assert [name for name, total in sums.items() if not total.any()] == []
    assert norm(trainer._clipped_gradients(trainer.rows.some[:0], 1.0)) == 0


# Noise


def test_the_noise_of_a_step_has_the_planned_scale(make_trainer):
    trainer = make_trainer(planted_rows(100))
    trainer.optimizers = []  # the gradient is what is looked at
    draws = []
    for _ in range(20):
        trainer._train_step(trainer.rows.some[:0])
        draws.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    noise = trainer.batch_size * torch.stack(draws)
    expected = trainer.noise_multiplier * MAX_GRAD_NORM
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=expected / 50)
    assert not torch.equal(noise[0], noise[1])


def test_the_noise_of_the_counts_has_the_planned_scale(make_trainer):
    rows = planted_rows(2000)
    trainer = make_trainer(rows)
    noisy, std = zip(*[trainer._noisy_counts() for _ in range(300)], strict=True)
    true = torch.bincount((rows + torch.tensor([0, 6])).flatten())
    # The counts of one row, one in each of two columns, have the norm of the root of two.
    assert std[0] == pytest.approx(trainer.marginal_noise_multiplier * math.sqrt(2))
    noise = torch.stack(noisy) - true
    assert float(noise.std()) == pytest.approx(std[0], rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=4 * std[0] / 60)


def test_the_output_starts_from_the_noisy_counts_and_forgets_what_is_within_the_noise(make_trainer):
    rows = torch.zeros(5000, 2, dtype=torch.int64)
    trainer = make_trainer(rows, epsilon=20.0)
    start = trainer.model.output_bias.detach().exp()
    torch.testing.assert_close(start[[0, 6]], torch.ones(2), atol=0.02, rtol=0)
    assert start.min() == pytest.approx(1 / 5000)


def test_batches_are_poisson_samples(make_trainer):
    rows = torch.arange(6).repeat(50)[:, None].expand(-1, 2).clone()
    trainer = make_trainer(rows, batch_size=30)
    sizes = [len(batch) for _ in range(60) for batch in trainer._batches()]
    assert trainer.sample_rate == 0.1
    assert np.mean(sizes) == pytest.approx(30, rel=0.05)
    assert np.var(sizes) == pytest.approx(300 * 0.1 * 0.9, rel=0.25)


# Accounting


def test_accounting_is_that_of_opacus():
    for noise, rate, steps in ((1.1, 0.02, 300), (3.0, 0.1, 50)):
        accountant = opacus.RDPAccountant()
        accountant.history = [(8.0, 1.0, 1), (noise, rate, steps)]
        ours = spent(1e-5, (8.0, 1.0, 1), (noise, rate, steps))
        assert ours == accountant.get_epsilon(1e-5, alphas=ORDERS)
        assert ours == pytest.approx(accountant.get_epsilon(1e-5), rel=0.02)
        tight = opacus.PRVAccountant()
        tight.history = accountant.history
        assert ours > tight.get_epsilon(1e-5)  # a tighter accountant agrees that it is a bound


@pytest.mark.parametrize('epsilon', [0.5, 3.0, 10.0])
def test_a_plan_spends_what_it_may_and_no_more(epsilon):
    counts, steps = plan(epsilon, 1e-5, 0.05, 100)
    total = spent(1e-5, (counts, 1.0, 1), (steps, 0.05, 100))
    assert 0.97 * epsilon < total <= epsilon
    assert spent(1e-5, (counts, 1.0, 1)) < 0.31 * epsilon


def test_what_no_noise_meets_is_refused():
    with pytest.raises(InvalidParameterError, match=r'target_epsilon=1e-05 .* Raise it'):
        plan(1e-5, 1e-9, 0.5, 1000)


# The trainer


def test_it_learns_and_counts_the_steps_it_took(make_trainer):
    rows = planted_rows(3000)
    trainer = make_trainer(epsilon=50.0, epochs=8, batch_size=250, learning_rate=2e-2)
    trainer.fit(rows)
    order = torch.rand(500, 2).argsort(1)
    nll = trainer.model(rows[:500], order, torch.Generator().manual_seed(0)).nll.sum(1).mean()
    assert nll < 1.5 * math.log(6)  # independent columns: 2 ln 6
    assert trainer.step == 8 * 12 == trainer.guarantee.steps
    assert trainer.guarantee.epsilon <= 50
    assert trainer.history == []
    assert not trainer.model.training


def test_few_rows_are_not_preceded_by_rows_of_a_copula_of_them(make_trainer):
    rows = planted_rows(200)
    trainer = make_trainer(rows, epochs=8)
    assert trainer.pretraining_steps == 0
    trainer.fit(rows)
    assert trainer.step == 8 * 10 == trainer.schedule.end


def test_an_interrupted_fit_has_spent_less(make_trainer):
    trainer = make_trainer(epochs=10)

    def interrupt(record, done):
        assert math.isnan(record.loss)
        assert math.isnan(record.validation_reconstruction)
        if record.epoch == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match='interrupted'):
        trainer.fit(planted_rows(100), interrupt)
    assert trainer.guarantee.steps == 10
    assert trainer.guarantee.epsilon < 4.8


def test_delta_must_be_below_one_in_the_number_of_rows(make_trainer):
    trainer = make_trainer()
    with pytest.raises(InvalidParameterError, match=r'target_delta must be below .* 1/10001'):
        trainer.fit(planted_rows(10_001))


# The synthesizer

NUMBER = {'sdtype': 'numerical', 'range_is_nullable': False}
COLUMNS = {
    'key': {'sdtype': 'id', 'regex_format': r'K\d{5}'},
    'age': NUMBER | {'range_min': 0, 'range_max': 120, 'decimal_places': 0},
    'wage': {'sdtype': 'numerical', 'range_min': 0, 'range_max': 1e6, 'decimal_places': 2},
    'born': {
        'sdtype': 'datetime',
        'datetime_format': '%Y-%m-%d',
        'range_min': '1900-01-01',
        'range_max': '2030-01-01',
    },
    'job': {
        'sdtype': 'categorical',
        'range_values': ['cook', 'smith', 'clerk', 'pilot'],
        'range_is_nullable': False,
    },
    'paid': {'sdtype': 'boolean'},
    'mail': {'sdtype': 'email'},
}


def make_table(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    born = pd.Timestamp('1950-01-01') + pd.to_timedelta(rng.integers(0, 20_000, rows), unit='D')
    return pd.DataFrame(
        {
            'key': [f'K{i:05d}' for i in range(rows)],
            'age': rng.integers(18, 60, rows),
            'wage': pd.Series(rng.lognormal(7, 1, rows).round(2)).mask(rng.random(rows) < 0.1),
            'born': born.strftime('%Y-%m-%d'),
            'job': rng.choice(['cook', 'smith'], rows),
            'paid': rng.choice([True, False, None], rows),
            'mail': [f'person{i}@real.org' for i in range(rows)],
        }
    )


def make(changes=None, **arguments):
    columns = {name: column | (changes or {}).get(name, {}) for name, column in COLUMNS.items()}
    metadata = Metadata.load_from_dict(
        {'tables': {'t': {'columns': columns, 'primary_key': 'key'}}}
    )
    settings = {'target_epsilon': 3.0, 'epochs': 1, **TINY, **arguments}
    return NVIBSynthesizer(metadata, **settings)


@pytest.fixture(scope='module')
def fitted():
    synthesizer = make()
    synthesizer.fit({'t': make_table()})
    return synthesizer


def test_rows_keep_to_the_metadata_and_the_guarantee_is_told(fitted):
    sampled = fitted.sample(200)['t']
    described = Metadata.load_from_dict(fitted.get_metadata().to_dict())
    described.validate_data({'t': sampled})
    job = fitted._schema.columns[fitted._schema.names.index('job')]
    assert list(job.categories) == COLUMNS['job']['range_values']  # two of them were never seen
    assert sampled['age'].dtype == 'int64'
    guarantee = fitted.privacy_guarantee
    assert 2.8 < guarantee.epsilon <= 3.0
    assert fitted.get_info()['differential_privacy']['epsilon'] == guarantee.epsilon
    assert 'differential_privacy' not in make(target_epsilon=None).get_info()
    assert guarantee.sample_rate * 300 == 64


def test_everything_but_the_weights_is_the_same_for_other_rows(fitted, tmp_path):
    """Two tables that share no value: schema, transformers and files differ in weights alone."""
    other = make()
    table = make_table(seed=1)
    table['age'], table['job'] = table['age'] + 45, 'pilot'
    table['wage'], table['paid'] = (table['wage'] * 7).round(2), True
    table['born'] = '2001-01-01'
    other.fit({'t': table})
    for synthesizer, name in ((fitted, 'one'), (other, 'two')):
        synthesizer.save_model(tmp_path / name)
    for document in ('metadata.json', 'parameters.json', 'transformers.json', 'model.json'):
        one, two = ((tmp_path / name / document).read_text() for name in ('one', 'two'))
        assert one == two
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / n / 'tensors.safetensors') for n in ('one', 'two'))
    different = {n for n in one if one[n].numpy().tobytes() != two[n].numpy().tobytes()}
    assert different == {name for name in one if name.startswith('network.')}


def test_the_same_seed_and_rows_give_other_noise(fitted):
    again = make()
    again.fit({'t': make_table()})
    weights, other = (s._model.network.output_bias for s in (fitted, again))
    assert not torch.equal(weights, other)


def test_nothing_that_is_kept_was_taken_from_rows_without_noise(fitted):
    assert fitted.get_loss_values().empty
    assert list(fitted.get_loss_values())[:2] == ['Epoch', 'Loss']
    assert fitted._model.posteriors is None
    parameters = fitted.get_parameters()
    assert (parameters['seed'], parameters['target_epsilon']) == (0, 3.0)


def test_saved_models_keep_their_guarantee(fitted, tmp_path):
    fitted.save_model(tmp_path / 'model')
    loaded = NVIBSynthesizer.load_model(tmp_path / 'model')
    assert loaded.privacy_guarantee == fitted.privacy_guarantee
    fitted.reset_sampling()
    pd.testing.assert_frame_equal(loaded.sample(20)['t'], fitted.sample(20)['t'])


def test_evaluation_and_report_tell_the_guarantee(fitted, tmp_path):
    seen, unseen = make_table(60), make_table(60, seed=3)
    summary = fitted.evaluate({'t': seen}, test={'t': unseen}).summary.set_index('measure')
    row = summary.loc['differential privacy (epsilon)']
    assert row['value'] == fitted.privacy_guarantee.epsilon
    assert 'delta 1e-06' in row['meaning']
    assert 'nats through the bottleneck' not in summary.index
    page = tmp_path / 'report.html'
    fitted.write_report(page, {'t': seen}, test={'t': unseen})
    assert 'differential privacy (epsilon)' in page.read_text(encoding='utf-8')


def test_rows_beyond_the_metadata_are_refused_before_anything_is_learned():
    synthesizer = make()
    table = make_table().assign(age=130)
    with pytest.raises(InvalidDataError, match=r"Out of range values .* 'age'"):
        synthesizer.fit({'t': table})


def test_missing_bounds_are_refused_at_once():
    columns = {'age': {'sdtype': 'numerical'}, 'job': {'sdtype': 'categorical'}}
    metadata = Metadata.load_from_dict({'tables': {'t': {'columns': columns}}})
    with pytest.raises(
        InvalidParameterError, match=r"'age' .*lacks range_min.*'job' .*range_values"
    ):
        NVIBSynthesizer(metadata, target_epsilon=1.0)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'target_epsilon': 0}, r'target_epsilon must be a number in \(0, inf\)'),
        ({'target_delta': 0.0}, r'target_delta must be'),
        ({'rare_category_threshold': 5}, 'rare_category_threshold must be 1 with target_epsilon'),
        ({'numerical_threshold': 5}, 'numerical_threshold must be 1 with target_epsilon'),
        ({'latent_source': 'posteriors'}, "latent_source must be 'prior' with target_epsilon"),
    ],
)
def test_arguments_that_go_by_the_rows_are_refused(arguments, message):
    with pytest.raises(InvalidParameterError, match=message):
        make(**arguments)


def test_constraints_checkpoints_and_other_transformers_are_refused(tmp_path):
    from rdt.transformers import GaussianNormalizer

    with pytest.raises(InvalidParameterError, match=r'cannot have constraints with target_epsilon'):
        make().add_constraints([Inequality('age', 'wage')])
    with pytest.raises(InvalidParameterError, match=r'cannot have a checkpoint'):
        make().fit({'t': make_table()}, checkpoint=tmp_path / 'state')
    assert not (tmp_path / 'state').exists()
    synthesizer = make()
    synthesizer.auto_assign_transformers({'t': make_table()})
    synthesizer.update_transformers({'wage': GaussianNormalizer()})
    with pytest.raises(InvalidParameterError, match=r"column 'wage' must have SDV's default"):
        synthesizer.fit({'t': make_table()})


def test_the_guarantee_of_a_fit_without_is_none():
    synthesizer = make(target_epsilon=None)
    synthesizer.fit({'t': make_table(60)})
    assert synthesizer.privacy_guarantee is None
    assert replace(make()._training_config(), seed=1).seed == 1


@pytest.mark.parametrize('privacy', [None, {'epsilon': 1.0}, 'wrong type'])
def test_a_guarantee_that_contradicts_the_file_is_refused(fitted, privacy):
    stored = {
        'privacy': privacy,
        'column_order': list(COLUMNS),
        'original_columns': [],
        'fitted_date': '2000-01-01',
        'sdv_version': '2',
    }
    if privacy == 'wrong type':
        stored['privacy'] = asdict(fitted.privacy_guarantee) | {'epsilon': '0'}
    copied = copy.deepcopy(fitted)
    with pytest.raises((ModelFileError, TypeError), match=r'guarantee|missing'):
        copied._check_restored(stored)
