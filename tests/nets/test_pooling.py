import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.nets.pooling import POOLS, Pool, max_pool
from xmodal_jax.types import Tokens

B, N, D = 3, 5, 6
MASK = jnp.arange(N)[None, :] < jnp.array([5, 2, 0])[:, None]


@pytest.mark.parametrize("kind", POOLS)
def test_padding_has_no_influence(key, kind):
    values = jax.random.normal(key, (B, N, D))
    pool = Pool(kind, heads=2)
    pooled, params = pool.init_with_output(key, Tokens(values, MASK))
    assert pooled.shape == (B, D) and bool(jnp.all(jnp.isfinite(pooled)))
    changed = jnp.where(MASK[:, :, None], values, 1e3)
    np.testing.assert_array_equal(pool.apply(params, Tokens(changed, MASK)), pooled)
    cut = pool.apply(params, Tokens(values[1:2, :2], None))
    np.testing.assert_allclose(pooled[1:2], cut, atol=1e-6)
    gradient = jax.grad(lambda v: jnp.sum(jnp.sin(pool.apply(params, Tokens(v, MASK)))))(values)
    allowed = MASK if kind != "cls" else MASK & (jnp.arange(N) == 0)[None, :]
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, allowed)


def test_mean_is_the_mean(key):
    values = jax.random.normal(key, (B, N, D))
    pooled = Pool().apply({}, Tokens(values, MASK))
    np.testing.assert_allclose(pooled[1], np.array(values)[1, :2].mean(0), atol=1e-6)
    np.testing.assert_array_equal(pooled[2], 0.0)


def test_bfloat16_tokens_are_averaged_in_float32(key):
    values = jax.random.normal(key, (B, N, D)).astype(jnp.bfloat16)
    assert Pool().apply({}, Tokens(values, None)).dtype == jnp.float32


def test_unknown_kind(key):
    with pytest.raises(ValueError, match="mean"):
        Pool("max").init(key, Tokens(jnp.ones((B, N, D)), None))


WINDOWS = [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 0), (5, 2, 2)]


@pytest.mark.parametrize("window, stride, padding", WINDOWS)
def test_max_pool_is_flaxs_in_value_gradient_and_gradient_of_gradient(key, window, stride, padding):
    """With many ties, where the gradient goes to the first largest pixel."""
    x = jnp.round(2 * jax.random.normal(key, (2, 11, 7, 3)))
    plain = lambda x: nn.max_pool(x, (window,) * 2, (stride,) * 2, ((padding,) * 2,) * 2)
    ours = lambda x: max_pool(x, window, stride, padding)
    np.testing.assert_array_equal(ours(x), plain(x))
    weight = jax.random.normal(jax.random.key(1), plain(x).shape)
    gradient = lambda pool: jax.grad(lambda x: (jnp.tanh(pool(x)) * weight).sum())
    np.testing.assert_allclose(jax.jit(gradient(ours))(x), gradient(plain)(x), atol=1e-6)
    penalty = lambda pool: jax.grad(lambda x: jnp.square(gradient(pool)(x)).sum())
    np.testing.assert_allclose(jax.jit(penalty(ours))(x), penalty(plain)(x), atol=1e-5)


def test_max_pool_gives_each_window_one_pixel(key):
    """A constant image: every window's gradient goes to its first pixel, also beside the padding."""
    gradient = jax.grad(lambda x: max_pool(x, 3, 2, 1).sum())(jnp.zeros((1, 6, 6, 1)))
    expected = np.zeros((6, 6))
    for i in range(3):
        for j in range(3):
            expected[max(2 * i - 1, 0), max(2 * j - 1, 0)] += 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_max_pool_passes_no_gradient_beside_the_largest(key):
    x = jax.random.permutation(key, jnp.arange(36.0)).reshape(1, 6, 6, 1)
    gradient = jax.grad(lambda x: max_pool(x, 2, 2, 0).sum())(x)
    np.testing.assert_array_equal(
        gradient != 0, x == jnp.repeat(jnp.repeat(max_pool(x, 2, 2, 0), 2, 1), 2, 2)
    )
