import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.nets.pooling import POOLS, Pool
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
