import jax
import numpy as np
import optax
import pytest

from benchmarks.hlo import collective_bytes
from tests.support import assert_device_invariant, assert_trees_identical, gradient_engine, loss_and_gradient
from tests.train.toy import make_toy, toy_arrays, toy_batch
from xmodal_jax.core import collectives
from xmodal_jax.nets.encoders import TextTransformerConfig, build_encoder
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.optim import Optimizer, make_optimizer
from xmodal_jax.train.parallel import MIN_SHARDED_SIZE, DeviceData, leaf_spec, make_engine
from xmodal_jax.train.step import check_accumulation, describe_non_finite, make_init, make_step
from xmodal_jax.types import Method


def test_loss_and_gradient_do_not_depend_on_devices():
    assert_device_invariant(make_toy(), toy_batch(), initialize=True)


def test_accumulation_equals_the_whole_batch_and_is_device_invariant():
    config = Optimizer(accumulate=2)
    _, whole = loss_and_gradient(make_toy(), toy_batch())
    _, parts = loss_and_gradient(make_toy(), toy_batch(), config=config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), whole, parts)
    layouts = [("pmap", 8, 1), ("sharded", 8, 4)]  # the test above has all of them
    assert_device_invariant(make_toy(), toy_batch(), config=config, layouts=layouts)


def engine_for(mode, config=None, fsdp=1):
    config = config or Optimizer(ema=0.9)
    method, tx = make_toy(), make_optimizer(config, 20)
    return make_engine(
        mode,
        make_init(method, tx, config),
        lambda axis: make_step(method, tx, config, axis_name=axis),
        fsdp=fsdp,
    )


def stacked(steps, n=16):
    arrays = toy_arrays(steps * n)
    xs = {k: v.reshape(steps, n, *v.shape[1:]) for k, v in arrays.items()}
    return {**xs, "index": np.arange(steps * n, dtype=np.int32).reshape(steps, n)}


@pytest.mark.parametrize("mode,fsdp", [("jit", 1), ("pmap", 1), ("sharded", 4)])
def test_many_steps_in_one_program_equal_one_at_a_time(mode, fsdp):
    engine, xs = engine_for(mode, fsdp=fsdp), stacked(4)
    key = jax.random.key(0)
    together, metrics = engine.run(engine.init(key, toy_batch()), None, engine.put(xs))
    state = engine.init(key, toy_batch())
    for k in range(4):
        state, one = engine.run(state, None, engine.put(jax.tree.map(lambda x, k=k: x[k : k + 1], xs)))
        np.testing.assert_allclose(one["loss"][0], metrics["loss"][k], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(engine.fetch(together).params),
        jax.tree.leaves(engine.fetch(state).params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["jit", "pmap", "sharded"])
def test_rows_of_resident_data_equal_the_same_batches_from_the_host(mode):
    engine, xs, key = engine_for(mode), stacked(2), jax.random.key(0)
    arrays = toy_arrays(32)
    rows = {"row": np.arange(32, dtype=np.int32).reshape(2, 16), "index": xs["index"]}
    a, _ = engine.run(
        engine.init(key, toy_batch()), DeviceData(engine.put_resident(arrays)), engine.put(rows)
    )
    b, _ = engine.run(engine.init(key, toy_batch()), None, engine.put(xs))
    assert_trees_identical(engine.fetch(a), engine.fetch(b))


@pytest.mark.parametrize("mode,seeds,fsdp", [("jit", None, 1), ("pmap", 2, 1), ("sharded", 2, 4)])
def test_frozen_parameters_reach_every_step_and_stay_as_they_are(mode, seeds, fsdp):
    """They have no axis of seeds, and only they are split over devices as the state is."""
    frozen = {
        "kernel": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32),
        "bias": np.ones(64, np.float32),
    }

    def make_step(axis_name):
        def step(state, batch, frozen):
            total = (batch["x"] @ frozen["kernel"] + frozen["bias"][None]).mean()
            total = total if axis_name is None else jax.lax.pmean(total, axis_name)
            return state + total, {"total": total}

        return step

    engine = make_engine(
        mode, lambda key, batch: np.float32(0.0) * batch["x"].mean(), make_step, seeds=seeds, fsdp=fsdp
    )
    keys = jax.random.key(0) if seeds is None else jax.random.split(jax.random.key(0), seeds)
    xs = stacked(2)
    each = xs if seeds is None else jax.tree.map(lambda x: np.stack([x, 2 * x], axis=1), xs)
    placed = engine.put_frozen(frozen)
    state, metrics = engine.run(engine.init(keys, toy_batch()), DeviceData(frozen=placed), engine.put(each))
    means = [(x @ frozen["kernel"] + frozen["bias"]).mean() for x in xs["x"]]
    doubled = [(2 * x @ frozen["kernel"] + frozen["bias"]).mean() for x in xs["x"]]
    wanted = np.array(means if seeds is None else list(zip(means, doubled, strict=True)))
    np.testing.assert_allclose(metrics["total"], wanted, rtol=1e-4)
    np.testing.assert_allclose(engine.fetch(state), wanted.sum(axis=0), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, engine.fetch(placed), frozen)
    if mode == "sharded":
        assert not placed["kernel"].is_fully_replicated and placed["bias"].is_fully_replicated


@pytest.mark.parametrize("mode,fsdp", [("jit", 1), ("pmap", 1), ("sharded", 2)])
def test_place_is_the_inverse_of_fetch(mode, fsdp):
    engine = engine_for(mode, fsdp=fsdp)
    state = engine.fetch(engine.init(jax.random.key(0), toy_batch()))
    assert_trees_identical(engine.fetch(engine.put_state(state)), state)


def test_sharded_state_is_split_by_size():
    engine = engine_for("sharded", fsdp=4)
    state = engine.init(jax.random.key(0), toy_batch())
    kernel = state.params["layer"]["kernel"]
    assert kernel.size >= MIN_SHARDED_SIZE
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    assert state.params["layer"]["bias"].addressable_shards[0].data.shape == (64,)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert moments and all(x.addressable_shards[0].data.size == x.size // 4 for x in moments)


def test_leaf_spec_splits_the_largest_axis_that_divides():
    assert leaf_spec((3, 1024, 4096), 4) == jax.sharding.PartitionSpec(None, None, "fsdp")
    assert leaf_spec((4099, 64), 4) == jax.sharding.PartitionSpec(None, "fsdp")
    assert leaf_spec((4099, 61), 4) == jax.sharding.PartitionSpec()
    assert leaf_spec((8, 8), 4) == jax.sharding.PartitionSpec()


def test_the_step_compiles_once(tmp_path):
    """Also for a state from a checkpoint."""
    engine = engine_for("jit")
    state = engine.init(jax.random.key(0), toy_batch())
    for _ in range(3):
        state, _ = engine.run(state, None, engine.put(stacked(1)))
    assert engine.run._cache_size() == 1
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, engine.fetch(state), {})
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path).restore(engine.abstract(jax.random.key(0), toy_batch()))
    state = engine.put_state(restored)
    for _ in range(2):
        state, _ = engine.run(state, None, engine.put(stacked(1)))
    assert engine.run._cache_size() == 1


def test_what_does_not_fit_the_devices_is_said():
    engine = engine_for("pmap")
    with pytest.raises(ValueError, match="batch of 12 does not divide by the 8 devices"):
        engine.put(stacked(1, 12))
    with pytest.raises(ValueError, match="fsdp=3 does not divide the 8 devices"):
        engine_for("sharded", fsdp=3)
    with pytest.raises(ValueError, match="needs parallel='sharded'"):
        engine_for("jit", fsdp=2)


def test_non_finite_names_what_broke():
    names = ["a/kernel", "b/kernel"]
    assert describe_non_finite(np.array([True, True, True]), names) is None
    assert describe_non_finite(np.array([False, True, True]), names) == "the loss"
    assert (
        describe_non_finite(np.array([False, True, False]), names) == "the loss and the gradients of b/kernel"
    )


def test_ema_follows_its_recursion():
    config = Optimizer(ema=0.5)
    method, tx = make_toy(), optax.sgd(0.1)
    step = jax.jit(make_step(method, tx, config))
    state = make_init(method, tx, config)(jax.random.key(0), toy_batch())
    expected = np.asarray(state.params["out"]["kernel"])
    for t in range(5):
        state, _ = step(state, toy_batch())
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["out"]["kernel"])
    np.testing.assert_allclose(state.ema["out"]["kernel"], expected, rtol=1e-5)


def test_given_parameters_are_the_start_and_must_fit():
    config, method, tx = Optimizer(), make_toy(), optax.sgd(0.1)
    given = jax.tree.map(lambda x: x + 1.0, method.init(jax.random.key(5), toy_batch()))
    state = make_init(method, tx, config, params=given)(jax.random.key(0), toy_batch())
    assert_trees_identical(state.params, given)
    other = {**given, "out": {"kernel": np.ones((3, 1), np.float32)}}
    with pytest.raises(AssertionError, match="shape"):
        make_init(method, tx, config, params=other)(jax.random.key(0), toy_batch())


def bytes_sent(method, rows):
    """By each device in a step, with every large array split over eight devices; from the compiled program."""
    engine = gradient_engine(method, mode="sharded", devices=8, fsdp=8)
    batch = {"text": np.ones((rows, 16), np.int32), "index": np.arange(rows, dtype=np.int32)}
    state = engine.abstract(jax.random.key(0), batch)
    xs = engine.put(jax.tree.map(lambda x: x[None], batch))
    hlo = engine.run.lower(state, None, xs).compile().as_text()
    return sum(sent for sent, _ in collective_bytes(hlo, 8).values())


def test_where_the_state_is_split_weights_travel_and_activations_do_not(monkeypatch):
    """Four times the batch hardly sends more. (Without `shard_examples` the compiler splits scanned layers by
    features.)"""
    config = TextTransformerConfig(width=64, depth=2, heads=4, scan_layers=True)
    encoder = build_encoder("text", config, vocab_size=50, max_length=16)

    def loss(params, batch, key, *, axis_name=None):
        tokens = encoder.apply({"params": params}, batch["text"]).values
        return collectives.batch_mean((tokens**2).mean(axis=(1, 2)), axis_name=axis_name), {}

    method = Method(lambda key, batch: encoder.init(key, batch["text"])["params"], loss, None)
    assert bytes_sent(method, 256) < 1.3 * bytes_sent(method, 64)
    monkeypatch.setattr(collectives, "mesh_size", lambda: 1)
    assert bytes_sent(method, 256) > 2 * bytes_sent(method, 64)


def test_parts_that_do_not_divide_the_batch_are_refused_with_the_flag():
    batch = {"x": np.zeros((8, 3)), "index": np.arange(8)}
    for parts in (1, 2, 8):
        check_accumulation(parts, batch)
    with pytest.raises(ValueError, match="^--optimizer.accumulate is 3, .* of 8 examples \\(--batch-size"):
        check_accumulation(3, batch)
