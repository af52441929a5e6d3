"""Several seeds in one program: each is the run that its seed alone would be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import assert_trees_identical
from tests.train.test_loop import stop_at, train
from tests.train.toy import make_toy
from xmodal_jax.core import runtime
from xmodal_jax.train import loop
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.loop import NonFiniteError, Preempted
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.parallel import DeviceData, over_seeds
from xmodal_jax.train.run import stack_scores
from xmodal_jax.types import Method

# Adam divides by a gradient's size, and so makes rounding in the smallest gradients visible; this one does not.
LINEAR = Optimizer(name="sgd", learning_rate=1e-2, ema=0.9)
EVALUATE = lambda params: {"test/bias": float(params["layer"]["bias"].sum())}


@pytest.mark.parametrize(
    "options",
    [
        dict(parallel="jit", dispatch=2),
        dict(parallel="jit", resident=False),
        dict(parallel="pmap"),
        dict(parallel="sharded", fsdp=4, resident=False, dispatch=3),
    ],
    ids=["jit", "jit from the host", "pmap", "sharded"],
)
def test_each_seed_is_the_run_that_it_would_be_alone(tmp_path, options):
    options = dict(seed=5, evaluate=EVALUATE, checkpoint_every=0, optimizer=LINEAR, **options)
    together, run = train(tmp_path / "together", seeds=3, **options)
    rows = run.read_metrics()
    for k in range(3):
        alone, its_run = train(tmp_path / str(k), **{**options, "seed": 5 + k, "parallel": "jit", "fsdp": 1})
        for a, b in zip(jax.tree.leaves(alone.params[0]), jax.tree.leaves(together.params[k]), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
        for row, its_row in zip(rows, its_run.read_metrics(), strict=True):
            for name, value in its_row.items():
                found = row[name] if isinstance(row[name], int | float) else row[name][k]
                np.testing.assert_allclose(found, value, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("mode,fsdp", [("jit", 1), ("pmap", 1), ("sharded", 2)])
def test_a_stopped_run_of_several_seeds_ends_bit_identical(tmp_path, mode, fsdp):
    options = dict(parallel=mode, fsdp=fsdp, seeds=2, eval_every=2, monitor="test/score")
    whole, run = train(tmp_path / "a", evaluate=lambda p: {"test/score": 0.0}, **options)
    with pytest.raises(Preempted):
        train(tmp_path / "b", evaluate=stop_at(3), **options)  # in the second evaluation, of two seeds
    rest, rest_run = train(tmp_path / "b", evaluate=lambda p: {"test/score": 0.0}, resume=True, **options)
    assert_trees_identical(whole.state, rest.state)
    assert run.read_metrics() == rest_run.read_metrics()
    kept = [restore_run(tmp_path / "b", seed=seed).params for seed in (0, 1)]
    for own, params in zip(rest.params, kept, strict=True):
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"holds the seeds \[0, 1\]"):
        restore_run(tmp_path / "b")


def test_one_after_the_other_or_all_at_once_is_the_same():
    def step(state, data, x):
        return {"w": state["w"] + data @ state["w"] * x}, {"loss": (state["w"] * x).sum()}

    keys = jax.random.split(jax.random.key(0), 2)
    state, data = {"w": jax.random.normal(keys[0], (3, 5))}, jax.random.normal(keys[1], (5, 5))
    x = jnp.array([1.0, -2.0, 0.5])
    for a, b in zip(
        jax.tree.leaves(jax.jit(over_seeds(step, "vmap"))(state, data, x)),
        jax.tree.leaves(jax.jit(over_seeds(step, "map"))(state, data, x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", ["vmap", "map"])
def test_of_some_frozen_networks_each_seed_has_its_own(strategy):
    def step(state, data, x):
        return state * data.frozen["shared"] + data.frozen["own"] * x, {}

    state, x, own = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0]), jnp.array([7.0, 11.0])
    data = DeviceData(frozen={"shared": jnp.float32(10.0), "own": own})
    after, _ = jax.jit(over_seeds(step, strategy, frozen_by_seed=("own",)))(state, data, x)
    np.testing.assert_array_equal(after, [1 * 10 + 7 * 3, 2 * 10 + 11 * 5])


def test_too_little_memory_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "free_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="2 seeds at once need .* GiB are free. Lower --seeds"):
        train(tmp_path, seeds=2)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_free_memory_is_less_than_the_machine_has():
    free = runtime.free_memory()
    assert free is None or 2**20 < free * jax.local_device_count() < 2**50


def diverging(*broken):
    """The toy method whose loss is not a number in the given ``(seed, step)``s, counted from 0."""
    toy = make_toy(noise=0.0)
    own = jax.jit(loop.make_training(toy, LINEAR, 6).init)
    # The key of that step, as the step itself draws it.
    key_of = lambda seed: own(jax.random.key(seed), {"x": np.zeros((1, 64), np.float32)}).key
    keys = [jax.random.key_data(jax.random.fold_in(key_of(seed), step)) for seed, step in broken]

    def loss(params, batch, key, *, axis_name=None):
        value, aux = toy.loss(params, batch, key, axis_name=axis_name)
        bad = jnp.array([(jax.random.key_data(key) == k).all() for k in keys]).any()
        return jnp.where(bad, jnp.nan, value), aux

    return Method(toy.init, loss, toy.predict)


def test_the_seed_that_diverges_is_named(tmp_path):
    with pytest.raises(NonFiniteError, match="step 3 of seed 1: the loss"):
        train(tmp_path, seeds=2, method=diverging((1, 2)), checkpoint_every=0)


def test_a_seed_that_diverges_is_dropped_and_the_others_go_on(tmp_path, capsys):
    options = dict(seeds=3, optimizer=LINEAR, evaluate=EVALUATE, checkpoint_every=0)
    whole, _ = train(tmp_path / "whole", method=diverging((9, 0)), **options)
    options |= dict(on_divergence="drop")
    result, run = train(tmp_path / "rest", method=diverging((1, 2)), **options)
    assert (result.seeds, result.diverged, len(result.params)) == ([0, 2], [1], 2)
    for k, params in zip((0, 2), result.params, strict=True):
        assert_trees_identical(whole.params[k], params)
    assert (
        "step 3 of seed 1: the loss are no longer finite. This seed is dropped; 2 go on."
        in capsys.readouterr().out
    )
    rows = run.read_metrics()
    sizes = [len(row["train/loss"]) for row in rows if "train/loss" in row]
    assert sizes == [3, 3, 2, 2, 2, 2]
    assert len(rows[-1]["test/bias"]) == 2
    again, _ = train(tmp_path / "rest", method=diverging((1, 2)), resume=True, **options)
    assert (again.seeds, again.diverged, len(again.params)) == ([0, 2], [1], 2)
    with pytest.raises(NonFiniteError, match="step 5 of seed 2: the loss"):
        train(tmp_path / "none", method=diverging((0, 1), (1, 2), (2, 4)), **options)


def test_scores_of_several_seeds_become_lists():
    assert stack_scores([{"a/b": 1.0}]) == {"a/b": 1.0}
    assert stack_scores([{"a/b": 1.0}, {"a/b": 3.0}]) == {"a/b": [1.0, 3.0]}
