import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.devices import assert_same, values_and_gradients
from tests.oracles import adversarial as oracle
from xmodal_jax.core.collectives import batch_mean
from xmodal_jax.core.random import example_keys
from xmodal_jax.losses import dragan, gradient_penalty, lecam, matching_aware_penalty, squared_gradient

KEYS = example_keys(jax.random.key(5), jnp.arange(7))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linear(w):
    """A critic with the gradient w everywhere."""
    return lambda x: (w[None] * x).sum(axis=range(1, x.ndim))


def half_square(x):
    """A critic whose gradient is its input."""
    return 0.5 * sum((leaf * leaf).sum(axis=range(1, leaf.ndim)) for leaf in jax.tree.leaves(x))


def length(w):
    """Over all axes: a norm along one of them alone would be another number."""
    return np.sqrt((np.float64(w) ** 2).sum())


def test_penalties_of_linear_critics():
    """The gradient is one vector over all axes, and the same wherever it is taken."""
    w, real, fake = normal(3, 2, 5), normal(7, 3, 2, 5, seed=1), normal(7, 3, 2, 5, seed=2)
    assert length(w) > 1.5 * np.linalg.norm(w, axis=0).max()
    want = np.full(7, (length(w) - 1) ** 2)
    np.testing.assert_allclose(gradient_penalty(linear(w), real, fake, KEYS), want, rtol=1e-5)
    np.testing.assert_allclose(dragan(linear(w), real, KEYS), want, rtol=1e-5)
    got = gradient_penalty(linear(w), real, fake, KEYS, target=0.5)
    np.testing.assert_allclose(got, np.full(7, (length(w) - 0.5) ** 2), rtol=1e-5)
    np.testing.assert_allclose(squared_gradient(linear(w), real), np.full(7, length(w) ** 2 / 2), rtol=1e-5)


def test_squared_gradient_of_a_quadratic_form():
    a, b, x = normal(3, 3), normal(3, seed=1), normal(7, 3, seed=2)
    critic = lambda x: 0.5 * jnp.einsum("bi,ij,bj->b", x, a, x) + x @ b
    gradient = np.float64(x) @ (np.float64(a) + np.float64(a).T) / 2 + np.float64(b)
    np.testing.assert_allclose(squared_gradient(critic, x), (gradient**2).sum(axis=1) / 2, rtol=1e-5)


def test_gradient_penalty_is_taken_between_real_and_generated():
    """With one weight for all of an example's arrays and elements, from its own key."""
    one, zero = jnp.ones((7, 1)), jnp.zeros((7, 1))
    reveal = jax.jit(lambda keys: jnp.sqrt(gradient_penalty(half_square, one, zero, keys, target=0.0)))
    u = np.asarray(reveal(KEYS))
    assert (u >= 0).all() and (u < 1).all() and len(set(u)) == 7
    np.testing.assert_array_equal(reveal(KEYS[::-1]), u[::-1])
    real = {"image": normal(7, 3, 2), "sentence": normal(7, 5, seed=1)}
    fake = {"image": normal(7, 3, 2, seed=2), "sentence": normal(7, 5, seed=3)}
    got = jax.jit(lambda real, fake: gradient_penalty(half_square, real, fake, KEYS))(real, fake)
    rows = lambda x: np.concatenate([np.float64(leaf).reshape(7, -1) for leaf in jax.tree.leaves(x)], axis=1)
    point = u[:, None] * rows(real) + (1 - u[:, None]) * rows(fake)
    np.testing.assert_allclose(got, (np.linalg.norm(point, axis=1) - 1) ** 2, rtol=1e-4)


def dragan_points(real, **options):
    """Where DRAGAN takes its gradient: each element in turn by a critic whose gradient is that element."""

    def element(e):
        critic = lambda x: 0.5 * (e[None] * x * x).sum(axis=(1, 2))
        return dragan(critic, real, KEYS[: len(real)], target=0.0, **options)

    size = real[0].size
    basis = jnp.eye(size).reshape(size, *real.shape[1:])
    return np.sqrt(jax.jit(jax.vmap(element))(basis)).T.reshape(real.shape)  # the real elements are positive


def test_dragan_is_taken_around_the_real():
    real = jnp.abs(normal(7, 3, 2)) + 0.1
    noise = (dragan_points(real) - np.float64(real)) / (0.5 * np.std(np.float64(real)))
    assert noise.min() > -1e-5 and noise.max() < 1 and np.unique(noise.round(5)).size == real.size
    assert abs(noise.mean() - 0.5) < 4 / np.sqrt(12 * noise.size)
    half = (dragan_points(real, scale=0.25) - np.float64(real)) / (0.25 * np.std(np.float64(real)))
    np.testing.assert_allclose(half, noise, atol=1e-4)


def test_absent_examples_have_no_part_in_dragan():
    real, w = normal(7, 3, 2), normal(3, 2, seed=1)
    present = jnp.arange(7) % 3 != 1
    keep, absent = np.flatnonzero(present), np.flatnonzero(~np.asarray(present))
    real = real.at[absent[0]].set(jnp.inf)
    term = jax.jit(
        lambda x, keys, present: dragan(lambda x: jnp.tanh(linear(w)(x)), x, keys, present=present)
    )
    sliced, masked = term(real[keep], KEYS[keep], None), term(real, KEYS, present)
    np.testing.assert_allclose(masked[keep], sliced, rtol=1e-5)
    np.testing.assert_array_equal(masked[absent], 0.0)
    gradient = jax.grad(lambda x: term(x, KEYS, present).sum())(real)
    np.testing.assert_array_equal(gradient[absent], 0.0)
    assert np.isfinite(gradient).all() and np.abs(gradient[keep]).max() > 0


def test_gradients_of_the_penalty_are_those_of_finite_differences():
    """Second derivatives of a critic: of its input's gradient by its parameters."""
    rng = np.random.default_rng(4)
    w, v, x = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=(7, 3))

    def loss(params, x):
        critic = lambda x: jnp.tanh(x @ params["w"].T) @ params["v"]
        return gradient_penalty(critic, x, x, KEYS).mean(), squared_gradient(critic, x).mean()

    params = {"w": jnp.float32(w), "v": jnp.float32(v)}
    gp, r1 = jax.jit(jax.jacrev(loss))(params, jnp.float32(x))
    for got, scale, target in ((gp, 1.0, 1.0), (r1, 0.5, 0.0)):
        mean = lambda w, v, scale=scale, target=target: (
            scale * oracle.two_layer_penalty(w, v, x, target).mean()
        )
        want = oracle.finite_difference(lambda w, mean=mean: mean(w, v), w)
        np.testing.assert_allclose(got["w"], want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
        want = oracle.finite_difference(lambda v, mean=mean: mean(w, v), v)
        np.testing.assert_allclose(got["v"], want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_a_gradient_of_zero_has_a_finite_gradient():
    x = normal(7, 3)
    terms = {
        "gp": lambda w: gradient_penalty(linear(w), x, x, KEYS),
        "dragan": lambda w: dragan(linear(w), x, KEYS),
        "ma-gp": lambda w: matching_aware_penalty(lambda x, s: linear(w)(x) + linear(w)(s), x, x),
    }
    for name, term in terms.items():
        value, gradient = jax.jit(jax.value_and_grad(lambda w, term=term: term(w).mean()))(jnp.zeros(3))
        assert value == (0.0 if name == "ma-gp" else 1.0), name
        np.testing.assert_array_equal(gradient, 0.0)


def test_matching_aware_penalty_of_linear_critics():
    a, b, x, s = normal(3, 2) / 2, normal(5, seed=1) / 2, normal(7, 3, 2, seed=2), normal(7, 5, seed=3)
    critic = lambda x, s: linear(a)(x) + linear(b)(s)
    want = 2 * (length(a) + length(b)) ** 6
    np.testing.assert_allclose(matching_aware_penalty(critic, x, s), np.full(7, want), rtol=1e-5)
    got = matching_aware_penalty(critic, x, s, factor=3.0, power=4.0)
    np.testing.assert_allclose(got, np.full(7, 3 * (length(a) + length(b)) ** 4), rtol=1e-5)
    want = 2 * (length(a) ** 2 + length(b) ** 2) ** 3
    got = matching_aware_penalty(critic, x, s, joint=True)
    np.testing.assert_allclose(got, np.full(7, want), rtol=1e-5)


def test_lecam():
    real, fake = jnp.array([2.0, -1.0, 0.5]), jnp.array([-3.0, 1.0, 0.25])
    want = [(2 + 0.5) ** 2 + (0.75 + 3) ** 2, 0.0, (0.5 + 0.5) ** 2 + (0.75 - 0.25) ** 2]
    np.testing.assert_allclose(lecam(real, fake, 0.75, -0.5), want, rtol=1e-6)
    by_averages = jax.grad(lambda r, f: lecam(real, fake, r, f).sum(), (0, 1))
    assert by_averages(jnp.float32(0.75), jnp.float32(-0.5)) == (0.0, 0.0)
    by_logits = jax.grad(lambda r: lecam(r, fake, 0.75, -0.5).sum())(real)
    np.testing.assert_allclose(by_logits, [2 * 2.5, 0.0, 2 * 1.0], rtol=1e-6)


# -- the number of devices -----------------------------------------------------------------------------------


def batch():
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(2, 24, 3, 2))
    split = {"real": real, "fake": fake, "index": np.arange(24), "present": np.arange(24) % 5 != 2}
    return {k: jnp.asarray(v) for k, v in split.items()}, {"w": jnp.asarray(rng.normal(size=(6, 5)))}


def of(penalty):
    def loss(split, shared, axis_name):
        critic = lambda x: jnp.tanh(x.reshape(-1, 6) @ shared["w"]).sum(axis=1)
        keys = example_keys(jax.random.key(7), split["index"])
        terms = penalty(critic, split, keys, axis_name)
        return batch_mean(terms, split["present"].astype(terms.dtype), axis_name=axis_name)

    return loss


LOSSES = {
    "gradient penalty": of(lambda c, x, keys, _: gradient_penalty(c, x["real"], x["fake"], keys)),
    "dragan": of(
        lambda c, x, keys, axis_name: dragan(c, x["real"], keys, present=x["present"], axis_name=axis_name)
    ),
}


@pytest.fixture(scope="module")
def one_device():
    with jax.enable_x64(True):
        return values_and_gradients(LOSSES, *batch())


@pytest.mark.parametrize(("devices", "mode"), [(8, "pmap"), (2, "shard_map")])
def test_devices_do_not_change_the_result(devices, mode, one_device):
    with jax.enable_x64(True):
        assert_same(values_and_gradients(LOSSES, *batch(), devices, mode), one_device, rtol=1e-9)
    assert all(np.abs(want[1][1]["w"]).max() > 1e-3 for want in one_device.values())
