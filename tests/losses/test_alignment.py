from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.devices import LAYOUTS, assert_same, values_and_gradients
from tests.oracles import alignment as oracle
from xmodal_jax.losses import coral, deep_cca, mmd
from xmodal_jax.probability import kernels

KERNELS = ("rbf", "rational_quadratic", "rational_quadratic_star", "distance", "polynomial")


def make(n, m, x_dim=3, y_dim=3, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, x_dim)), 1.5 * rng.normal(size=(m, y_dim)) + 0.3
    if n == m:
        y[:, : min(x_dim, y_dim)] += 0.8 * x[:, : min(x_dim, y_dim)]
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd_is_the_definition(name, unbiased):
    x, y = make(7, 11)
    got = jax.jit(partial(mmd, kernel=getattr(kernels, name), unbiased=unbiased))(x, y)
    np.testing.assert_allclose(got, oracle.mmd(name, x, y, unbiased), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_biased_mmd_of_a_sample_with_itself_is_zero_with_a_finite_gradient(name):
    x, _ = make(7, 7)
    fn = partial(mmd, kernel=getattr(kernels, name))
    grad_of = jax.jit(jax.value_and_grad(lambda x: fn(x, x + 0.0, unbiased=False)))
    value, grad = grad_of(x)
    assert abs(float(value)) < 1e-5 and np.isfinite(grad).all()
    assert np.isfinite(grad_of(jnp.zeros_like(x))[1]).all()


def test_unbiased_mmd_has_mean_zero_under_the_null():
    draws = np.random.default_rng(0).normal(size=(400, 2, 7, 3)).astype(np.float32)
    fn = jax.jit(
        jax.vmap(lambda d, unbiased: mmd(d[0], d[1], unbiased=unbiased), in_axes=(0, None)), static_argnums=1
    )
    unbiased, biased = np.asarray(fn(draws, True)), np.asarray(fn(draws, False))
    error = unbiased.std() / 20
    assert abs(unbiased.mean()) < 4 * error
    assert biased.mean() > 10 * error


def test_coral_is_the_distance_of_covariances():
    x, y = make(13, 7)
    np.testing.assert_allclose(jax.jit(coral)(x, y), oracle.coral(x, y), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(coral)(x + np.float32(5.0), x), 0.0, atol=1e-9)  # a shift is not seen


@pytest.mark.parametrize("dims", [(3, 5), (5, 3)])
def test_deep_cca_is_the_sum_of_canonical_correlations(dims):
    x, y = make(53, 53, *dims)
    correlations = oracle.canonical_correlations(x, y)
    options = [dict(ridge=0.0), dict(ridge=0.0, top=2), dict(ridge=0.1)]
    found = -np.array(jax.jit(lambda x, y: [deep_cca(x, y, **o) for o in options])(x, y))
    np.testing.assert_allclose(found[0], correlations.sum(), rtol=1e-5)
    np.testing.assert_allclose(found[1], correlations[:2].sum(), rtol=1e-5)
    np.testing.assert_allclose(found[2], oracle.ridge_cca(x, y, 0.1), rtol=1e-5)
    with pytest.raises(ValueError, match="top=4"):
        jax.eval_shape(lambda x, y: deep_cca(x, y, top=4), x, y)


def test_deep_cca_does_not_see_an_invertible_map():
    x, y = make(53, 53)
    w = np.float32([[1.0, 2.0, 0.5], [0.0, 1.5, -1.0], [0.3, 0.0, 2.0]])
    apart = jax.jit(partial(deep_cca, ridge=0.0))
    np.testing.assert_allclose(apart(np.asarray(x) @ w + np.float32(1.0), y), apart(x, y), rtol=1e-4)


def test_deep_cca_has_a_finite_gradient_at_equal_correlations():
    """Of a view with itself all correlations are 1, and the gradient of their sum is 0."""
    x, _ = make(53, 53)
    value, grad = jax.jit(jax.value_and_grad(lambda x, y: deep_cca(x, y, ridge=0.0)))(x, x)
    np.testing.assert_allclose(value, -3.0, rtol=1e-5)
    np.testing.assert_allclose(grad, 0.0, atol=1e-5)
    assert np.isfinite(jax.jit(jax.grad(lambda x: deep_cca(x, x)))(np.ones((7, 3), np.float32))).all()


def of(fn, **options):
    def loss(split, shared, axis_name):
        args = {"present": split["present"], "axis_name": axis_name, **options}
        return fn(split["x"], split["y"] + shared["mix"] * jnp.tanh(split["x"]), **args)

    return loss


LOSSES = {
    "mmd": of(mmd),
    "biased mmd": of(mmd, unbiased=False, kernel=kernels.rational_quadratic_star),
    "distance mmd": of(mmd, kernel=kernels.distance),
    "coral": of(coral),
    "deep_cca": of(deep_cca),
}


def batch():
    x, y = make(24, 24)
    return {"x": x, "y": y, "present": jnp.asarray(np.arange(24) % 5 != 2)}, {"mix": jnp.float32(0.7)}


def doubles():
    wide = lambda x: jnp.asarray(np.float64(x)) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(wide, batch())


@pytest.fixture(scope="module")
def one_device():
    with jax.enable_x64(True):
        return values_and_gradients(LOSSES, *doubles())


@pytest.mark.parametrize(("devices", "mode"), LAYOUTS)
def test_shares_sum_to_the_value_of_one_device(devices, mode, one_device):
    """In double precision: MMD is a small difference of large means, and the sums' order changes with the devices."""
    with jax.enable_x64(True):
        got = values_and_gradients(LOSSES, *doubles(), devices, mode)
    assert_same(got, one_device, rtol=1e-10)


def test_absent_examples_have_no_part():
    split, shared = batch()
    split = jax.tree.map(np.array, split)
    keep = np.flatnonzero(split["present"])
    absent = np.flatnonzero(~np.asarray(split["present"]))
    losses = {k: LOSSES[k] for k in ("mmd", "coral", "deep_cca")}
    sliced = values_and_gradients(losses, {k: v[keep] for k, v in split.items()}, shared)
    split["x"][absent[0]] = np.inf
    masked = jax.tree.map(np.asarray, values_and_gradients(losses, split, shared))
    for name, (value, (grads, _)) in masked.items():
        np.testing.assert_allclose(value, sliced[name][0], rtol=2e-5, atol=1e-6)
        for key in ("x", "y"):
            np.testing.assert_array_equal(grads[key][absent], 0.0)
            want = sliced[name][1][0][key]
            np.testing.assert_allclose(
                grads[key][keep], want, rtol=0, atol=5e-5 * np.abs(want).max(), err_msg=name
            )


def test_too_few_examples_give_a_finite_value():
    x, y = make(3, 3)

    @jax.jit
    def every(x, present):
        of = lambda fn: jax.value_and_grad(lambda x: fn(x, y, present=present))(x)
        return {fn.__name__: of(fn) for fn in (mmd, coral, deep_cca)}

    for count in (0, 1):
        for name, (value, grad) in every(x, np.arange(3) < count).items():
            assert np.isfinite(value) and np.isfinite(grad).all(), (name, count)


def test_one_sided_presence():
    x, y = make(7, 11)
    mask, ones = jnp.asarray(np.arange(7) < 5), jnp.asarray(np.ones(11, bool))
    for fn in (mmd, coral):
        both = lambda x, y, fn=fn: (fn(x, y, present=mask, y_present=ones), fn(x[:5], y))
        np.testing.assert_allclose(*jax.jit(both)(x, y), rtol=1e-5)
