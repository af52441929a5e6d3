import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles.nets import group_norm as oracle
from xmodal_jax.nets.norm import GroupNorm


def group_norm(x, groups):
    """The oracle, which knows one image, over a batch of any rank."""
    x = np.asarray(x, np.float64)
    return np.stack([oracle(one.reshape(-1, 1, one.shape[-1]), groups).reshape(one.shape) for one in x])


@pytest.mark.parametrize(
    "shape, groups", [((3, 7, 5, 12), 4), ((2, 11, 6), 6), ((5, 9), 3), ((1, 3, 2, 5, 8), 1)]
)
def test_is_the_papers(shape, groups):
    """In float64: the variance is a difference of two means."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(3 + 2 * rng.normal(size=shape))
        params = {
            "scale": jnp.asarray(rng.normal(size=shape[-1:])),
            "bias": jnp.asarray(rng.normal(size=shape[-1:])),
        }
        result = np.asarray(jax.jit(GroupNorm(groups).apply)({"params": params}, x))
        expected = group_norm(x, groups) * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(result, expected, atol=1e-9)


def test_equals_flax_in_parameters_value_and_gradient():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 5, 12)) + 1.0, jnp.float32)
    ours, theirs = GroupNorm(4), nn.GroupNorm(4)
    params = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, ours.init(jax.random.key(1), x))
    weight = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    results = [
        jax.jit(jax.value_and_grad(lambda p, x, layer=layer: (layer.apply(p, x) * weight).sum(), (0, 1)))(
            params, x
        )
        for layer in (ours, theirs)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), *results)


def test_a_constant_image_is_the_bias_and_has_a_finite_gradient():
    layer = GroupNorm(2)
    x = jnp.full((1, 3, 3, 4), 1000.0)
    params = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(params, x), jnp.zeros_like(x))
    assert np.isfinite(jax.jit(jax.grad(lambda x: layer.apply(params, x).sum()))(x)).all()


def test_statistics_are_precise_in_half_precision():
    x = 50.0 + jax.random.normal(jax.random.key(0), (2, 16, 16, 8))
    layer = GroupNorm(2, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(1), x)
    y = layer.apply(params, x)
    assert y.dtype == jnp.bfloat16
    expected = group_norm(x, 2)
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.001, rtol=2**-8)  # its last digit


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="5 groups do not divide 12 channels"):
        GroupNorm(5).init(jax.random.key(0), jnp.zeros((1, 2, 2, 12)))
