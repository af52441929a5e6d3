"""Random restarts: the initialisation that goes on is the one whose own training has the lowest loss."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import assert_trees_identical
from tests.train.test_loop import train
from tests.train.test_schedule import make as make_gan
from tests.train.toy import make_toy
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.report.comparison import read_run
from xmodal_jax.train import gan_step, loop
from xmodal_jax.train.loop import NonFiniteError, Preempted
from xmodal_jax.train.restarts import Restarts, Trial, better_trial, trial_loss
from xmodal_jax.types import Method

COUNT, TRIAL_STEPS = 3, 4
make_training = loop.make_training


@pytest.fixture
def with_restarts(monkeypatch):
    """Trainings of the loop try three initialisations in their first four steps."""
    restarts = Restarts(COUNT, TRIAL_STEPS)
    with_them = lambda *args, **options: make_training(*args, **options)._replace(restarts=restarts)
    monkeypatch.setattr(loop, "make_training", with_them)


def train_alone(monkeypatch, path, number, **options):
    """A training without a choice, that begins with an initialisation of this number."""

    def make(*args, **options):
        training = make_training(*args, **options)
        fold_in = lambda key: fold_in_name(key, f"restart {number}") if number else key
        return training._replace(init=lambda key, batch: training.init(fold_in(key), batch))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_training", make)
        return train(path, **options)


def rows_of(run):
    return [row for row in run.read_metrics() if "train/loss" in row]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_initialisation_of_the_lowest_loss_goes_on(tmp_path, monkeypatch, with_restarts, seed):
    options = dict(steps=6, seed=seed)
    result, run = train(tmp_path / "restarts", **options)
    alone = [train_alone(monkeypatch, tmp_path / str(n), n, **options) for n in range(COUNT)]
    losses = [
        rows_of(its_run)[TRIAL_STEPS - 1]["train/loss"] for _, its_run in alone
    ]  # a quarter is one step
    (chosen,) = result.restarts.chosen
    assert chosen == int(np.argmin(losses))
    np.testing.assert_allclose(result.restarts.losses, [losses], rtol=1e-6)
    best, its_run = alone[chosen]
    assert_trees_identical(result.state, best.state)
    assert run.read_metrics() == its_run.read_metrics()


def test_different_seeds_choose_different_initialisations(tmp_path, with_restarts):
    """Else the test before would not tell a choice from a habit."""
    result, _ = train(tmp_path, seeds=6)
    assert len(set(result.restarts.chosen)) > 1


@pytest.mark.parametrize(
    "options",
    [
        dict(dispatch=2),
        dict(resident=False, dispatch=4),
        dict(parallel="pmap"),
        dict(parallel="sharded", fsdp=2, resident=False),
    ],
    ids=["dispatch", "from the host", "pmap", "sharded"],
)
def test_the_choice_does_not_depend_on_the_devices(tmp_path, with_restarts, options):
    plain, _ = train(tmp_path / "plain", steps=8)
    other, _ = train(tmp_path / "other", steps=8, **options)
    assert other.restarts.chosen == plain.restarts.chosen
    for a, b in zip(jax.tree.leaves(plain.params[0]), jax.tree.leaves(other.params[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("mode,fsdp", [("jit", 1), ("sharded", 2)])
def test_each_seed_chooses_as_it_would_alone(tmp_path, with_restarts, mode, fsdp):
    together, run = train(tmp_path / "together", seeds=3, parallel=mode, fsdp=fsdp)
    for k in range(3):
        alone, its_run = train(tmp_path / str(k), seed=k)
        assert together.restarts.chosen[k] == alone.restarts.chosen[0]
        for a, b in zip(jax.tree.leaves(alone.params[0]), jax.tree.leaves(together.params[k]), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)  # Adam shows rounding
        ours = [row["train/loss"][k] for row in rows_of(run)]
        np.testing.assert_allclose(ours, [row["train/loss"] for row in rows_of(its_run)], rtol=1e-3)


def stop_at_call(monkeypatch, number):
    """The process is asked to stop in the ``number``-th call of a compiled program, those of all initialisations
    counted."""
    calls = []
    run_steps = loop.TrainingLoop._run_steps

    def run(self):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_steps(self)

    monkeypatch.setattr(loop.TrainingLoop, "_run_steps", run)


@pytest.mark.parametrize("call", [2, 7, 12, 13])
def test_a_stopped_run_ends_bit_identical(tmp_path, monkeypatch, with_restarts, call):
    """Stopped in the first trial, in the second, with the last step of the last one, and after the choice."""
    whole, run = train(tmp_path / "a", steps=6)
    with monkeypatch.context() as patch:
        stop_at_call(patch, call)
        message = "training begins anew" if call <= COUNT * TRIAL_STEPS else "stopped at step 5"
        with pytest.raises(Preempted, match=message):
            train(tmp_path / "b", steps=6)
    rest, rest_run = train(tmp_path / "b", steps=6, resume=True)
    assert rest.restarts == whole.restarts
    assert_trees_identical(whole.state, rest.state)
    assert run.read_metrics() == rest_run.read_metrics()


def diverging(numbers, seed=0):
    """The toy whose loss is not a number with these initialisations."""
    toy = make_toy(noise=0.0)
    keys = [jax.random.key(seed)] + [fold_in_name(jax.random.key(seed), f"restart {n}") for n in (1, 2)]

    def init(key, batch):
        return {**toy.init(key, batch), "mark": jax.random.normal(key, (1,))}

    bad = jnp.stack([jax.random.normal(fold_in_name(keys[n], "init"), (1,)) for n in numbers])

    def loss(params, batch, key, *, axis_name=None):
        value, aux = toy.loss(params, batch, key, axis_name=axis_name)
        is_bad = (jnp.abs(jax.lax.stop_gradient(params["mark"])[None] - bad) < 1e-3).any()
        return jnp.where(is_bad, jnp.nan, value), aux

    return Method(init, loss, toy.predict)


def test_an_initialisation_that_diverges_is_not_chosen(tmp_path, with_restarts):
    result, _ = train(tmp_path, method=diverging([0, 2]))
    assert result.restarts.chosen == [1]
    first, second, third = result.restarts.losses[0]
    assert first is None and third is None and second > 0


def test_if_all_diverge_the_run_says_so(tmp_path, with_restarts):
    with pytest.raises(NonFiniteError, match="step 1: "):
        train(tmp_path, method=diverging([0, 1, 2]))


def trial(number, losses, finite=True):
    losses = np.asarray(losses, np.float32)
    flags = np.broadcast_to(np.asarray(finite)[..., None], (*losses.shape, 3))
    state = {"w": jnp.full((*losses.shape[1:], 2), float(number))}
    return Trial(state, [{"loss": losses, "finite": flags}], np.full(losses.shape[1:], number))


def test_the_loss_of_a_trial_is_the_mean_of_its_last_quarter():
    losses = np.arange(8.0)
    assert trial_loss(trial(0, losses).metrics) == 6.5
    assert trial_loss(trial(0, [3.0]).metrics) == 3.0
    flags = np.array([True] * 7 + [False])  # a gradient that is not finite, though the loss is
    assert trial_loss(trial(0, losses, flags).metrics) == np.inf


def test_each_seed_keeps_its_better_trial():
    a, b = trial(0, [[1.0, 5.0, 2.0]]), trial(1, [[2.0, 4.0, 2.0]])
    best = better_trial(a, b)
    np.testing.assert_array_equal(best.number, [0, 1, 0])  # the first one where they are equal
    np.testing.assert_array_equal(best.state["w"], [[0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(best.metrics[0]["loss"], [[1.0, 4.0, 2.0]])


@pytest.mark.parametrize(
    "fraction,restarts,of_it,expected",
    [
        (0.5, 3, 0.25, (3, 5)),
        (0.5, 1, 0.25, (1, 0)),
        (0.0, 3, 0.25, (1, 0)),
        (0.05, 2, 0.25, (2, 1)),
        (0.5, 2, 1.0, (2, 20)),
    ],
)
def test_of_a_gan_initialisations_are_chosen_in_its_pretraining(fraction, restarts, of_it, expected):
    optimizer = gan_step.GANOptimizer(
        pretrain_fraction=fraction, pretrain_restarts=restarts, restart_fraction=of_it
    )
    gan = make_gan()._replace(pretrain_generator=lambda *_, **__: None)
    assert gan_step.make_training(gan, optimizer, 40).restarts == expected


@pytest.mark.parametrize(
    "wrong", [dict(pretrain_restarts=0), dict(restart_fraction=0.0), dict(restart_fraction=1.5)]
)
def test_restarts_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="pretrain_restarts must be at least 1"):
        dataclasses.replace(gan_step.GANOptimizer(), **wrong)


@pytest.mark.parametrize("resumed,step_ms,seconds", [(0, 1000.0, 26.0), (10, 2600.0, 67.6)])
def test_dropped_initialisations_count_in_the_time_of_a_run(tmp_path, resumed, step_ms, seconds):
    """20 steps and 2 x 3 of initialisations that were dropped; a run resumed after the choice has not timed these."""
    restarts = {"steps": 3, "losses": [[2.0, 1.0, None]], "chosen": [1]}
    result = {"metrics": {}, "steps": 20, "resumed": resumed, "diverged": [], "restarts": restarts}
    (tmp_path / "result.json").write_text(json.dumps(result | {"timing": {"train": 26.0}}))
    values = read_run(tmp_path).values
    assert values["steps"] == 20 and values["step_ms"] == pytest.approx(step_ms)
    assert values["train_seconds"] == pytest.approx(seconds)
