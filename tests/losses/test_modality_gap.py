"""The losses that reduce the modality gap, against their definitions in NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.losses.devices import LAYOUTS, assert_same, values_and_gradients
from tests.oracles import alignment as oracle
from xmodal_jax.core.collectives import batch_mean
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import centroid_uniformity, pair_distance
from xmodal_jax.metrics import modality_gap


def make(n=11, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n, dim)) + [[[0.6]], [[-0.4]]]
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    return jnp.asarray(unit(x), jnp.float32), jnp.asarray(unit(y), jnp.float32)


@pytest.mark.parametrize("scale", [0.5, 2.0, 9.0])
def test_values_are_the_definitions(scale):
    x, y = make()
    np.testing.assert_allclose(pair_distance(x, y), oracle.pair_distance(x, y), rtol=1e-5)
    np.testing.assert_allclose(
        centroid_uniformity(x, y, scale=scale), oracle.centroid_uniformity(x, y, scale), rtol=1e-5
    )


def test_extremes():
    x, _ = make()
    np.testing.assert_allclose(pair_distance(x, x), 0.0, atol=1e-12)
    np.testing.assert_allclose(pair_distance(x, -x), 4.0, rtol=1e-6)
    same = jnp.broadcast_to(x[:1], x.shape)
    np.testing.assert_allclose(centroid_uniformity(same, same), 0.0, atol=1e-6)
    # The corners of a regular simplex of n points have the squared distance 2n / (n - 1).
    corners = l2_normalize(jnp.eye(5) - 0.2)
    np.testing.assert_allclose(centroid_uniformity(corners, corners), -2.0 * 2.5, rtol=1e-5)
    # Potentials that float32 cannot hold.
    np.testing.assert_allclose(centroid_uniformity(corners, corners, scale=500.0), -1250.0, rtol=1e-5)


def test_the_gradient_is_that_of_differences():
    direction, step = np.random.default_rng(1).normal(size=(5, 3)), 1e-5
    with jax.enable_x64(True):
        x, y = (jnp.asarray(np.float64(v)) for v in make(n=5, dim=3))
        grad = np.asarray(jax.jit(jax.grad(lambda x: centroid_uniformity(x, y, scale=1.3)))(x))
    x, y = np.asarray(x), np.asarray(y)
    high, low = (oracle.centroid_uniformity(x + sign * step * direction, y, 1.3) for sign in (1, -1))
    np.testing.assert_allclose(np.sum(grad * direction), (high - low) / (2 * step), rtol=1e-6)


def of(loss):
    """``loss(x, y, present, axis_name)`` of two embeddings that share a parameter."""

    def share(split, shared, axis_name):
        y = l2_normalize(split["y"] + shared["mix"] * jnp.tanh(split["x"]))
        return loss(split["x"], y, split["present"], axis_name)

    return share


LOSSES = {
    "pair_distance": of(
        lambda x, y, present, axis: batch_mean(
            pair_distance(x, y, present=present), present.astype(x.dtype), axis_name=axis
        )
    ),
    "centroid_uniformity": of(lambda x, y, p, axis: centroid_uniformity(x, y, present=p, axis_name=axis)),
}


def batch(n=24):
    x, y = make(n)
    return {"x": x, "y": y, "present": jnp.asarray(np.arange(n) % 5 != 2)}, {"mix": jnp.float32(0.7)}


@pytest.fixture(scope="module")
def one_device():
    return values_and_gradients(LOSSES, *batch())


@pytest.mark.parametrize(("devices", "mode"), LAYOUTS)
def test_shares_sum_to_the_value_of_one_device(devices, mode, one_device):
    assert_same(values_and_gradients(LOSSES, *batch(), devices, mode), one_device)


def test_absent_pairs_have_no_part():
    split, shared = batch()
    split = jax.tree.map(np.array, split)
    keep, absent = np.flatnonzero(split["present"]), np.flatnonzero(~split["present"])
    sliced = values_and_gradients(LOSSES, {k: v[keep] for k, v in split.items()}, shared)
    split["x"][absent[0]] = np.nan
    split["x"][absent[1]] = -split["y"][absent[1]]
    masked = jax.tree.map(np.asarray, values_and_gradients(LOSSES, split, shared))
    for name, (value, (grads, _)) in masked.items():
        np.testing.assert_allclose(value, sliced[name][0], rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(grads["x"][absent[1:]], 0.0)
        np.testing.assert_allclose(grads["x"][keep], sliced[name][1][0]["x"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pairs_are_exactly_zero(count):
    x, y = make(6)
    present = jnp.arange(6) < count
    loss = jax.jit(jax.value_and_grad(lambda x, y: centroid_uniformity(x, y, present=present), (0, 1)))
    value, grads = loss(x, y)
    assert value == 0.0 and not any(np.any(g) for g in grads)


def test_they_close_the_gap_and_do_not_collapse():
    """By gradient descent on the embeddings: the distance alone leaves them where they meet, the uniformity spreads
    them."""
    raw = jnp.stack(make(16, 6))

    def loss(raw):
        x, y = l2_normalize(raw)
        return pair_distance(x, y).mean() + centroid_uniformity(x, y)

    @jax.jit
    def train(raw):
        tx = optax.adam(0.05)

        def step(carry, _):
            raw, state = carry
            updates, state = tx.update(jax.grad(loss)(raw), state)
            return (optax.apply_updates(raw, updates), state), None

        return jax.lax.scan(step, (raw, tx.init(raw)), None, length=200)[0][0]

    trained = l2_normalize(train(raw))
    assert modality_gap(*raw) > 0.5 and modality_gap(*trained) < 0.02
    assert centroid_uniformity(*trained) < centroid_uniformity(*raw) - 0.5
    np.testing.assert_allclose(np.linalg.norm(trained.mean(axis=(0, 1))), 0.0, atol=0.05)


def test_shapes_that_do_not_fit_are_refused():
    x, y = make()
    with pytest.raises(ValueError, match=r"y must be \[batch, dim\]"):
        centroid_uniformity(x, y[:5])
    with pytest.raises(ValueError, match="present"):
        pair_distance(x, y, present=jnp.ones(3, bool))
