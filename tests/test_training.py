"""Tests of the training loop: it learns, it stops, and it always leaves its best weights."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sdv_nvib import training
from sdv_nvib.errors import TrainingError
from sdv_nvib.generation import AnyOrderGenerator
from sdv_nvib.training import (
    AVERAGED_SHARE,
    SHARPENING_MEAN,
    SHARPENINGS,
    TEMPERATURES,
    TRAINING_SHARE,
    Schedule,
    Trainer,
    TrainingConfig,
    likely_temperatures,
)

MODES = ['any-order', 'single-pass']
MAP = torch.tensor([3, 1, 5, 0, 2, 4])  # the planted dependency: second = MAP[first]


def planted_rows(rows, seed=0, weights=(1.0,) * 6):
    generator = torch.Generator().manual_seed(seed)
    first = torch.multinomial(torch.tensor(weights), rows, replacement=True, generator=generator)
    return torch.stack([first, MAP[first]], 1)


@pytest.fixture
def make_trainer(build_model):
    def make(*, seed=0, generation='any-order', sizes=(6, 6), ordered=(), **config):
        settings = {'epochs': 5, 'batch_size': 50, 'learning_rate': 1e-2} | config
        shape = {'ordered': ordered, 'generation': generation, 'num_decoder_layers': 1}
        model = build_model(*sizes, seed=seed, **shape)
        return Trainer(model, TrainingConfig(seed=seed, **settings))

    return make


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def cost_of(trainer):
    """Held-out nats of an epoch, and with few rows a part of those learned by heart."""
    num_rows = trainer.rows.num_rows
    fewer = max(1, 200 / num_rows)
    weight = (0.65 * fewer**2 if trainer.is_thorough else 0.5 * fewer) * (10 <= num_rows < 500)
    return lambda record: record.validation_reconstruction + weight * record.memorised


def assert_has_best_weights(trainer):
    best = trainer.best
    epochs = trainer.history if best.epoch else [best, *trainer.history]  # 0: the copula's rows
    assert best == min(epochs, key=cost_of(trainer))
    weights = weights_of(trainer)
    trainer.averaged.load_state_dict(trainer.best_weights)
    reached = trainer.validate()['validation_reconstruction']
    assert reached == pytest.approx(best.validation_reconstruction, abs=1e-5)
    # The output is calibrated in the end.
    inner = [name for name in weights if not name.startswith(('output_bias', 'token_output'))]
    for name in inner:
        assert_close(weights[name], trainer.best_weights[name], rtol=0, atol=0)
    assert not trainer.model.training


# Learning.


@pytest.mark.parametrize('generation', MODES)
def test_beats_independent_columns_on_a_planted_dependency(make_trainer, generation):
    trainer = make_trainer(generation=generation, epochs=15)
    trainer.fit(planted_rows(500))
    independent = 2 * math.log(6)
    joint = math.log(6)
    reached = trainer.validate()['validation_reconstruction']
    assert reached < 0.5 * (independent + joint)
    if generation == 'any-order':  # a bound on the likelihood cannot be better than the truth
        assert reached > 0.9 * joint
    new = planted_rows(100, seed=9)
    assert (trainer.model.reconstruct(new) == new).float().mean() > 0.9
    record = trainer.history[-1]
    assert record.nats > 0.5
    assert record.active_components > 0.5


@pytest.mark.parametrize('generation', MODES)
def test_cut_to_the_prior_component_it_knows_only_the_columns_one_by_one(make_trainer, generation):
    trainer = make_trainer(generation=generation, epochs=15)
    rows = planted_rows(500, weights=(0.1, 0.1, 0.5, 0.1, 0.1, 0.1))
    trainer.fit(rows)
    cut = trainer.model.reconstruct(rows, cut=True)
    whole = trainer.model.reconstruct(rows)
    if generation == 'any-order':
        assert torch.equal(cut, rows.mode(0).values.expand_as(rows))
    of_the_mode = (rows == rows.mode(0).values).float().mean()
    assert (cut == rows).float().mean() <= of_the_mode
    assert (whole == rows).float().mean() > of_the_mode + 0.2


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_pretraining_knows_what_is_smooth_and_nothing_by_heart(make_trainer):
    noise = torch.randint(6, (250, 1), generator=torch.Generator().manual_seed(1))
    rows = torch.cat([planted_rows(250), noise], 1)
    trainer = make_trainer(sizes=(6, 6, 6), epochs=200)  # enough to know the rows by heart
    trainer._prepare(rows)
    before = trainer.validate()
    trainer._pretrain()
    assert trainer.step == trainer.pretraining_steps == 50 * trainer.steps_per_epoch
    after = trainer.validate()
    gained = before['validation_reconstruction'] - after['validation_reconstruction']
    assert gained > 0.25
    assert abs(after['memorised']) < 0.1
    assert not trainer.history
    assert trainer.best.epoch == 0
    assert trainer.best.validation_reconstruction == after['validation_reconstruction']
    assert_close(dict(trainer.averaged.state_dict()), trainer.best_weights)


def test_rows_that_teach_nothing_leave_what_the_copula_knew(make_trainer):
    noise = torch.randint(6, (60, 2), generator=torch.Generator().manual_seed(1))
    trainer = make_trainer(epochs=30)
    trainer.fit(noise)
    assert trainer.best.epoch == 0
    assert len(trainer.history) < 30
    pretrained = make_trainer(epochs=30)
    pretrained._prepare(noise)
    pretrained._pretrain()
    assert_close(trainer.best_weights, pretrained.best_weights)


@pytest.mark.parametrize(('rows', 'expected'), [(9, 0), (11, 5), (2200, 200), (2230, 0)])
def test_few_rows_alone_are_pretrained_for(make_trainer, rows, expected):
    trainer = make_trainer(epochs=20)
    trainer._prepare(planted_rows(rows))
    assert trainer.pretraining_steps == expected
    assert trainer.schedule.end == 20 * trainer.steps_per_epoch + expected


@pytest.mark.parametrize(
    ('ordered', 'learned'),  # of 108 rows 0.1 nats of all others make up for
    [((), (0.1, 0.12)), ((0,), (0.044, 0.046))],
)
def test_few_rows_learned_by_heart_count_against_an_epoch(make_trainer, ordered, learned):
    trainer = make_trainer(ordered=ordered)
    trainer.fit(planted_rows(120))
    assert_has_best_weights(trainer)
    best = trainer.best
    gained = best.validation_reconstruction - 0.1
    for more, is_kept in [(learned[1], False), (learned[0], True)]:
        record = replace(best, validation_reconstruction=gained, memorised=best.memorised + more)
        trainer._judge(record)
        assert (trainer.best is record) == is_kept


def test_parts_of_a_batch_on_threads_give_the_gradients_of_their_mean_loss(
    make_trainer, two_threads
):
    trainer = make_trainer(batch_size=64, epochs=1)
    trainer.fit(planted_rows(200))
    assert trainer.num_parts == 2
    rows, state = planted_rows(50, seed=3), trainer.noise.get_state()
    losses = trainer._set_gradients(rows, 0.5)
    gradients = [parameter.grad for parameter in trainer.model.parameters()]
    trainer.noise.set_state(state)
    seeds = torch.randint(2**62, (2,), generator=trainer.noise).tolist()
    expected = sum(
        0.5 * trainer._forward(trainer.model, part, torch.Generator().manual_seed(seed), 0.5)[0]
        for part, seed in zip(rows.split(25), seeds, strict=True)
    )
    assert_close(losses, expected.detach())
    whole = torch.autograd.grad(expected[0], list(trainer.model.parameters()), allow_unused=True)
    for gradient, other in zip(gradients, whole, strict=True):
        assert gradient is other is None or torch.allclose(gradient, other, atol=1e-6)
    assert torch.get_num_threads() == 2


def test_two_threads_give_the_same_weights_every_time(make_trainer, two_threads):
    first, second = make_trainer(batch_size=64), make_trainer(batch_size=64)
    for trainer in first, second:
        trainer.fit(planted_rows(300))
        assert trainer.num_parts == 2
    assert_close(weights_of(first), weights_of(second), rtol=0, atol=0)
    assert first.history[-1].loss < first.history[0].loss


def test_the_same_seed_gives_the_same_weights_bit_for_bit(make_trainer):
    runs = []
    for seed in (0, 0, 1):
        before = torch.get_rng_state()
        trainer = make_trainer(seed=0, epochs=2)
        trainer.config = TrainingConfig(epochs=2, batch_size=50, learning_rate=1e-2, seed=seed)
        trainer.fit(planted_rows(200))
        assert torch.equal(torch.get_rng_state(), before)
        runs.append(weights_of(trainer))
    one, same, other = runs
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize('rows', [1, 2, 7, 31])
def test_fewer_rows_than_a_batch_train(make_trainer, rows):
    trainer = make_trainer(batch_size=512, epochs=20)
    trainer.fit(planted_rows(rows))
    assert trainer.steps_per_epoch == 1
    assert trainer.step - trainer.pretraining_steps == len(trainer.history) <= 20
    fitted = [record.reconstruction for record in trainer.history]
    assert min(fitted) < fitted[0]
    assert_has_best_weights(trainer)


def test_default_settings_fit_the_number_of_rows(make_trainer):
    sizes, rates = [], []
    for rows in (1, 10, 1_000, 10_000, 200_000):
        trainer = make_trainer(epochs=None, batch_size=None, learning_rate=None)
        trainer._prepare(torch.zeros(rows, 2, dtype=torch.int64))
        epochs = trainer.schedule.end / trainer.steps_per_epoch
        # Few rows get more passes, many rows get more steps, and nobody gets next to nothing.
        assert epochs >= 3
        assert trainer.schedule.end >= 1_000
        assert epochs <= 10 or trainer.schedule.end < 5_000
        assert min(rows, 16) <= trainer.batch_size + 1 <= 1_024
        sizes.append(trainer.batch_size)
        rates.append(trainer.learning_rate)
    assert sizes == sorted(sizes)
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[2] < rates[-1] == 2e-3
    assert sizes[-1] > sizes[1]


def test_held_out_rows_are_not_trained_on(make_trainer):
    rows = torch.arange(100).unsqueeze(1).repeat(1, 2)
    trainer = make_trainer(sizes=(100, 100), epochs=1)
    trainer.fit(rows)
    train, held_out = (set(r[:, 0].tolist()) for r in (trainer.rows.some, trainer.rows.held_out))
    assert len(held_out) == 10
    assert train | held_out == set(range(100))
    assert not train & held_out


# Stopping.


def test_early_stopping_keeps_the_best_weights(make_trainer):
    """Noise cannot be learnt, only learnt by heart: the held-out loss rises again."""
    noise = torch.randint(6, (60, 2), generator=torch.Generator().manual_seed(0))
    trainer = make_trainer(epochs=60, lambda_gaussian=0.0, lambda_dirichlet=0.0)
    trainer.fit(noise)
    losses = [record.validation_reconstruction for record in trainer.history]
    assert len(losses) < 60
    assert losses[-1] > min(losses)
    assert trainer.stop_reason
    assert_has_best_weights(trainer)


def test_nats_learned_by_heart_are_counted(make_trainer, monkeypatch):
    monkeypatch.setattr(training, 'PRETRAINED_ROWS', range(0))
    noise = torch.randint(6, (60, 4), generator=torch.Generator().manual_seed(0))
    trainer = make_trainer(sizes=(6,) * 4, epochs=100, lambda_gaussian=0.0, lambda_dirichlet=0.0)
    trainer._prepare(noise)
    # However unlike the few held-out rows are: independent columns have learned none by heart.
    assert trainer.validate()['memorised'] == pytest.approx(0.0, abs=0.15)
    trainer.fit(noise)
    first, last = trainer.history[0], trainer.history[-1]
    learned = first.reconstruction - last.reconstruction
    assert last.memorised - first.memorised > 0.1
    assert last.memorised - first.memorised == pytest.approx(learned, rel=0.5)


def test_history_counts_epochs_and_reports_each_to_the_callback(make_trainer):
    seen = []
    trainer = make_trainer(epochs=4)
    trainer.fit(planted_rows(100), lambda record, done: seen.append((record, done)))
    records, done = zip(*seen, strict=True)
    assert list(records) == trainer.history
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert list(done) == sorted(done)
    assert done[-1] == TRAINING_SHARE  # calibration is still to come
    for record in records:
        # Annealing scales both KL terms together, up to their full weights.
        kl = 0.5 * (record.kl_gaussian + record.kl_dirichlet)
        assert record.reconstruction <= record.loss <= record.reconstruction + kl + 1e-5
        assert record.validation_loss >= record.validation_reconstruction


def test_a_loss_that_turns_nan_keeps_the_best_weights_and_says_so(make_trainer):
    trainer = make_trainer(epochs=10)

    def poison(record, done):
        if record.epoch == 3:
            trainer.model.output_bias.data[0] = math.nan

    with pytest.warns(UserWarning, match='epoch 4: the loss was no number'):
        trainer.fit(planted_rows(200), poison)
    assert len(trainer.history) == 3
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert_has_best_weights(trainer)


def test_a_loss_of_nan_from_the_start_is_an_error(make_trainer):
    with pytest.raises(TrainingError, match='learning_rate'):
        make_trainer(learning_rate=1e30).fit(planted_rows(200))


def test_weights_that_turn_nan_in_the_very_last_step_are_an_error(make_trainer):
    """One step in all: its loss is a number, the weights after it are not."""
    trainer = make_trainer(epochs=1, batch_size=512)
    trainer.config = TrainingConfig(epochs=1, batch_size=512, learning_rate=math.inf)
    with pytest.raises(TrainingError, match='learning_rate'):
        trainer.fit(planted_rows(20))


def test_an_interrupt_leaves_the_best_weights_and_says_so(make_trainer):
    trainer = make_trainer(epochs=50)

    def interrupt(record, done):
        if record.epoch == 4:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match='interrupted after 4 epochs'):
        trainer.fit(planted_rows(200), interrupt)
    assert len(trainer.history) == 4
    assert_has_best_weights(trainer)
    assert trainer.model.reconstruct(planted_rows(3)).shape == (3, 2)


def test_a_collapsed_bottleneck_is_noticed(make_trainer):
    trainer = make_trainer(epochs=40, lambda_gaussian=1e4)
    with pytest.warns(UserWarning, match='collapsed'):
        trainer.fit(planted_rows(200))
    assert trainer.history[-1].nats < 0.5
    # What is left is the entropy of independent columns.
    assert trainer.validate()['validation_reconstruction'] > 1.8 * math.log(6)


# Schedule.


def test_generated_rows_are_calibrated_to_the_shares_of_the_rows(make_trainer):
    trainer = make_trainer(epochs=3)
    trainer.fit(planted_rows(500, weights=(0.1, 0.1, 0.5, 0.1, 0.1, 0.1)))
    rows = trainer.rows.some
    counts = (rows + trainer.model.offsets).flatten().bincount(minlength=12)

    def error(weights):
        trainer.model.load_state_dict(weights)
        expected, generator = torch.zeros(12), AnyOrderGenerator(trainer.model, 250)
        for seed in range(40):  # each with orders of its own
            noise = torch.Generator().manual_seed(seed)
            generator.generate(250, noise, expected=expected)
        assert expected.sum() == pytest.approx(2 * 10_000, rel=1e-5)
        return (expected / 10_000 - counts / len(rows)).abs().sum()

    calibrated = error(weights_of(trainer))
    assert calibrated < 0.2 * error(trainer.best_weights)


def test_labels_about_equally_frequent_are_generated_equally_often(make_trainer):
    trainer = make_trainer(epochs=40)
    column = torch.arange(6).repeat_interleave(torch.tensor([20, 15, 16, 17, 18, 14]))
    trainer.fit(torch.stack([column, MAP[column]], 1))
    expected, generator = torch.zeros(12), AnyOrderGenerator(trainer.model, 250)
    for seed in range(40):  # each with orders of its own
        generator.generate(250, torch.Generator().manual_seed(seed), expected=expected)
    shares = expected[:6].numpy() / 10_000
    assert shares == pytest.approx(1 / 6, abs=0.008)  # 0.02 off are the rows' own


def test_columns_too_sure_of_themselves_are_tempered_and_few_rows_alone(make_trainer):
    def fitted(rows):
        trainer, tokens = make_trainer(sizes=(6, 6), epochs=10), planted_rows(rows)
        tokens[::3, 1] = tokens[::3, 1].roll(1)  # a third of them tells little
        trainer.fit(tokens)
        return trainer

    trainer = fitted(300)
    model = trainer.model
    assert 0 < model.sharpening <= SHARPENINGS[-1]
    model.token_output.free.data[:6] *= 8  # the first column's logits depart by as much more
    model.sharpening = 0.0
    model.temperatures.fill_(1)
    trainer._temper()
    assert 1.3 < model.temperatures[0] < 8
    assert 1.0 <= model.temperatures[1] < 1.6

    many = fitted(700)
    assert model.reads_mixture
    assert not many.model.reads_mixture
    assert many.model.sharpening == 0
    assert_close(many.model.temperatures, torch.ones(2))


def test_few_rows_hardly_move_temperatures_apart():
    # Of each column as much evidence a row, the first for 3 and the second for 1; and of the
    # rows together for a sharpening of 0.4.
    wanted = np.log([3.0, 1.0])
    sharper = 5 * (SHARPENINGS[:, None, None] - 0.4) ** 2
    one_row = 0.5 * (np.log(TEMPERATURES)[:, None] - wanted) ** 2 + sharper
    nothing, few, many = (likely_temperatures(rows * one_row) for rows in (0, 4, 1000))
    assert nothing[0] == pytest.approx(SHARPENING_MEAN)
    assert 0.25 < few[0] < many[0] == pytest.approx(0.4)
    assert_close(nothing[1], np.array([1.0, 1.0]))
    assert 1.0 <= few[1][1] < few[1][0] < 2.5
    assert_close(np.log(many[1]), wanted, atol=0.06, rtol=0)


def test_an_interruption_while_calibrating_keeps_the_best_weights(make_trainer, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AnyOrderGenerator, 'generate', interrupted)
    trainer = make_trainer(epochs=2)
    with pytest.warns(UserWarning, match='interrupted at its end'):
        trainer.fit(planted_rows(200))
    assert_has_best_weights(trainer)


def test_schedule_warms_up_holds_and_ends_at_zero():
    schedule = Schedule(1000)
    rates = [schedule.learning_rate(step) for step in range(1001)]
    assert 0 < rates[0] < 0.1
    assert rates[:50] == sorted(rates[:50])
    assert all(rate == 1.0 for rate in rates[50:500])
    assert rates[500:] == sorted(rates[500:], reverse=True)
    assert 0 < rates[999] < 0.01
    assert rates[1000] == 0.0


def test_kept_weights_average_the_last_steps(make_trainer):
    trainer = make_trainer(epochs=1)
    trainer._prepare(planted_rows(500))
    name, expected = 'column_query', None
    for count, batch in enumerate(trainer._batches()):
        trainer._train_step(batch)
        current = trainer.model.state_dict()[name].clone()
        share = 1 / (AVERAGED_SHARE * count + 1)
        expected = current if expected is None else expected + share * (current - expected)
    assert_close(trainer.averaged.state_dict()[name], expected)
    assert not torch.allclose(expected, current)


def test_pretraining_has_a_peak_and_a_cooldown_of_its_own(make_trainer):
    schedule = Schedule(1200, 200)
    rates = [schedule.learning_rate(step) for step in range(1201)]
    assert rates[60:101] == [1.0] * 41
    assert rates[100:200] == sorted(rates[100:200], reverse=True)
    assert 0 < rates[199] < 0.02
    assert rates[200:600] == [1.0] * 400
    assert rates[1200] == 0.0


def test_pretraining_on_numbers_has_batches_of_its_many_rows(make_trainer, monkeypatch):
    sizes, step = [], Trainer._train_step

    def watch(self, batch):
        sizes.append(len(batch))
        return step(self, batch)

    monkeypatch.setattr(Trainer, '_train_step', watch)
    for ordered, batch_size, expected, of_epochs in [
        ((0,), None, 128, 32),
        ((0,), 20, 20, 20),
        ((0,), 4096, 128, 90),
        ((), None, 32, 32),
    ]:
        trainer = make_trainer(ordered=ordered, epochs=40, batch_size=batch_size)
        trainer.fit(planted_rows(100))
        assert set(sizes[: trainer.pretraining_steps]) == {expected}
        assert max(sizes[trainer.pretraining_steps :]) == of_epochs
        assert trainer.schedule.pretraining == bool(ordered) * trainer.pretraining_steps
        sizes.clear()


def test_pretraining_interrupted_keeps_what_it_had(make_trainer, monkeypatch, two_threads):
    parts, step = [], Trainer._train_step

    def interrupted(self, batch):
        parts.append(self.num_parts)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, '_train_step', interrupted)
    trainer = make_trainer(ordered=(0, 1), epochs=40, batch_size=None)
    with pytest.warns(UserWarning, match='interrupted after 0 epochs'):
        trainer.fit(planted_rows(100))
    assert parts == [2, 2, 2]
    assert trainer.num_parts == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize('total', [1, 2, 7, 1000])
def test_rates_and_kl_weights_stay_between_zero_and_one(total):
    schedule = Schedule(total)
    steps = range(2 * total)
    weights = [schedule.kl_weight(step) for step in steps]
    assert weights == sorted(weights)
    assert weights[0] == 0.0
    assert weights[-1] == 1.0
    assert all(0 <= schedule.learning_rate(step) <= 1 for step in steps)
    assert schedule.learning_rate(0) > 0
