import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import random_params
from xmodal_jax.nets.pooling import POOLS, Pool, max_pool
from xmodal_jax.types import Tokens

B, N, D = 3, 5, 6
MASK = jnp.asarray(np.arange(N)[None, :] < np.array([5, 2, 0])[:, None])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("kind", POOLS)
def test_padding_has_no_influence(key, kind):
    values = normal(0, B, N, D)
    pool = Pool(kind, heads=2)
    params = random_params(pool.init, key, Tokens(values, MASK))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(values):
        pooled = pool.apply(params, Tokens(values, MASK))
        return jnp.sum(jnp.sin(pooled)), pooled

    gradient, pooled = run(values)
    assert pooled.shape == (B, D) and bool(jnp.all(jnp.isfinite(pooled)))
    changed = np.where(MASK[:, :, None], values, np.float32(1e3))
    np.testing.assert_array_equal(run(changed)[1], pooled)
    cut = jax.jit(lambda v: pool.apply(params, Tokens(v, None)))(np.asarray(values)[1:2, :2])
    np.testing.assert_allclose(pooled[1:2], cut, atol=1e-6)
    places, lengths = np.arange(N)[None, :], np.asarray(MASK).sum(1)[:, None]
    allowed = np.asarray(MASK) & {"cls": places == 0, "last": places == lengths - 1}.get(kind, True)
    used = np.abs(gradient).max(-1) > 0
    if kind == "max":  # not every token has the largest value of a dimension
        assert not (used & ~allowed).any() and (used.any(1) == allowed.any(1)).all()
    else:
        np.testing.assert_array_equal(used, allowed)


def test_mean_is_the_mean(key):
    values = normal(0, B, N, D)
    pooled = jax.jit(lambda v: Pool().apply({}, Tokens(v, MASK)))(values)
    np.testing.assert_allclose(pooled[1], np.array(values)[1, :2].mean(0), atol=1e-6)
    np.testing.assert_array_equal(pooled[2], 0.0)


def test_bfloat16_tokens_are_averaged_in_float32(key):
    values = jax.random.normal(key, (B, N, D)).astype(jnp.bfloat16)
    assert Pool().apply({}, Tokens(values, None)).dtype == jnp.float32


def test_unknown_kind(key):
    with pytest.raises(ValueError, match="mean"):
        Pool("median").init(key, Tokens(jnp.ones((B, N, D)), None))


WINDOWS = [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 0), (5, 2, 2)]


@pytest.mark.parametrize("window, stride, padding", WINDOWS)
def test_max_pool_is_flaxs_in_value_gradient_and_gradient_of_gradient(key, window, stride, padding):
    """With many ties, where the gradient goes to the first largest pixel."""
    x = jnp.asarray(np.round(2 * np.asarray(normal(0, 2, 11, 7, 3))))
    plain = lambda x: nn.max_pool(x, (window,) * 2, (stride,) * 2, ((padding,) * 2,) * 2)
    ours = lambda x: max_pool(x, window, stride, padding)
    weight = normal(1, *jax.eval_shape(plain, x).shape)
    gradient = lambda pool: jax.grad(lambda x: (jnp.tanh(pool(x)) * weight).sum())
    penalty = lambda pool: jax.grad(lambda x: jnp.square(gradient(pool)(x)).sum())
    everything = lambda pool: jax.jit(lambda x: (pool(x), gradient(pool)(x), penalty(pool)(x)))(x)
    found, wanted = everything(ours), everything(plain)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-6)
    np.testing.assert_allclose(found[2], wanted[2], atol=1e-5)


def test_max_pool_gives_each_window_one_pixel(key):
    """A constant image: every window's gradient goes to its first pixel, also beside the padding."""
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2, 1).sum()))(np.zeros((1, 6, 6, 1), np.float32))
    expected = np.zeros((6, 6))
    for i in range(3):
        for j in range(3):
            expected[max(2 * i - 1, 0), max(2 * j - 1, 0)] += 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_max_pool_passes_no_gradient_beside_the_largest(key):
    x = np.random.default_rng(0).permutation(np.arange(36, dtype=np.float32)).reshape(1, 6, 6, 1)
    pool = lambda x: max_pool(x, 2, 2, 0)
    pooled, gradient = jax.jit(lambda x: (pool(x), jax.grad(lambda x: pool(x).sum())(x)))(x)
    np.testing.assert_array_equal(np.asarray(gradient) != 0, x == np.repeat(np.repeat(pooled, 2, 1), 2, 2))
