"""Training in two stages, each with its own loss and its own parameters."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import assert_device_invariant, assert_trees_identical
from tests.train.toy import make_toy, toy_arrays, toy_batch
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.train import step
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.loop import Preempted, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run
from xmodal_jax.types import Stage

STEPS, FIRST = 10, 4
OPTIMIZER = Optimizer(name="adamw", learning_rate=1e-2, weight_decay=0.3, ema=0.9)


def make_staged(share=FIRST / STEPS):
    """The toy, whose ``layer`` learns first, to twice the loss, and ``out`` then. Both losses have gradients for all of
    the parameters: it is the step that must hold still."""
    toy = make_toy()

    def first(params, batch, key, *, axis_name=None):
        value, aux = toy.loss(params, batch, key, axis_name=axis_name)
        return 2.0 * value, {"twice": value}

    return toy._replace(initial_stage=Stage(first, share, lambda path: path.startswith("layer/")))


STAGED = make_staged()


def kept(state, name, prefix):
    """The parameters, or moments, below a name."""
    return jax.tree.map(np.asarray, getattr(state, name)[prefix])


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "muon"])
def test_each_stage_moves_its_own_parameters_alone(optimizer):
    """Bit for bit, in every step, though both have a gradient, a momentum and a decay."""
    config = dataclasses.replace(OPTIMIZER, name=optimizer)
    training = step.make_training(make_staged(), config, STEPS)
    assert training.initial_steps == FIRST
    batch = jax.tree.map(jnp.asarray, toy_batch())
    state = training.init(jax.random.key(0), batch)
    first, then = jax.jit(training.make_initial_step(None)), jax.jit(training.make_step(None))
    for k in range(STEPS):
        early = k < FIRST
        new, metrics = (first if early else then)(state, batch)
        assert ("twice" in metrics) == early and ("absolute" in metrics) != early
        for part in ("layer", "out"):
            stays = (part == "out") == early
            assert same(kept(state, "params", part), kept(new, "params", part)) == stays, (k, part)
        state = new
    # What the whole gradient was is still reported.
    assert metrics["grad_norm"] > 0


def test_a_stage_is_training_with_the_rest_frozen():
    """The first steps are those of a method that has the stage's loss alone and whose other parameters are held."""
    staged, config = make_staged(), dataclasses.replace(OPTIMIZER, clip_norm=None)
    batch = jax.tree.map(jnp.asarray, toy_batch())
    training = step.make_training(staged, config, STEPS)
    state = training.init(jax.random.key(0), batch)
    alone = step.make_training(
        staged._replace(loss=staged.initial_stage.loss, initial_stage=None),
        dataclasses.replace(config, freeze=("^out/",)),
        STEPS,
    )
    other = alone.init(jax.random.key(0), batch)
    first, plain = jax.jit(training.make_initial_step(None)), jax.jit(alone.make_step(None))
    for _ in range(FIRST):
        state, _ = first(state, batch)
        other, _ = plain(other, batch)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("share,steps,first", [(0.5, 7, 4), (0.5, 5, 2), (0.01, 10, 0), (0.99, 10, 10)])
def test_the_first_stage_is_a_share_of_the_steps(share, steps, first):
    assert step.make_training(make_staged(share), OPTIMIZER, steps).initial_steps == first


def test_one_stage_has_no_first_step():
    training = step.make_training(make_toy(), OPTIMIZER, STEPS)
    assert training.initial_steps == 0 and training.make_initial_step is None


@pytest.mark.parametrize("make", ["make_initial_step", "make_step"])
def test_the_devices_do_not_change_a_stage(make):
    layouts = [("pmap", 4, 1), ("sharded", 4, 2)]
    assert_device_invariant(make_staged(), toy_batch(), layouts=layouts, make=make)


def train(path, *, stop_at=None, **changes):
    """The state a run ends with, or None where it is stopped at a step, and its log."""
    config = RunConfig(run_dir=path, **{**dict(steps=STEPS, batch_size=16, checkpoint_every=2), **changes})
    loader, timer = Loader(ArraySource(toy_arrays()), batch_size=16, seed=config.seed), Timer()
    count = []

    def evaluate(params):
        count.append(1)
        if stop_at is not None and len(count) * config.eval_every == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with Run.create(config.run_dir, config, resume=config.resume, tensorboard=False) as run:
        try:
            return fit(STAGED, loader, config, OPTIMIZER, run, timer, evaluate=evaluate), run
        except Preempted:
            return None, run
        finally:
            loader.close()
            timer.clock.close()


@pytest.mark.parametrize(
    "stop_at,mode,fsdp",
    [(2, "jit", 1), (4, "jit", 1), (6, "jit", 1), (4, "pmap", 1), (4, "sharded", 2)],
)
def test_a_run_resumes_across_the_switch(tmp_path, stop_at, mode, fsdp):
    """Stopped in the first stage, between the two and in the second."""
    how = dict(parallel=mode, fsdp=fsdp, eval_every=2, dispatch=2)
    whole, run = train(tmp_path / "whole", **how)
    stopped, _ = train(tmp_path / "stopped", stop_at=stop_at, **how)
    assert stopped is None
    rest, rest_run = train(tmp_path / "stopped", resume=True, **how)
    assert rest.resumed == stop_at
    assert_trees_identical(whole.state, rest.state)
    assert run.read_metrics() == rest_run.read_metrics()


def test_the_switch_comes_after_its_step_whatever_the_dispatch(tmp_path):
    """Three of nine steps are the first stage's; four steps at once would run over its end."""
    config = RunConfig(run_dir=tmp_path, steps=9, batch_size=16, dispatch=4)
    loader, timer = Loader(ArraySource(toy_arrays()), batch_size=16, seed=0), Timer()
    with Run.create(config.run_dir, config, tensorboard=False) as run:
        fit(make_staged(1 / 3), loader, config, OPTIMIZER, run, timer)
    loader.close()
    timer.clock.close()
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == [3, 6, 9]
    assert ["train/twice" in row for row in rows] == [True, False, False]
