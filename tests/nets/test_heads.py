"""Projection heads against their equations, written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.random import batch_keys
from xmodal_jax.nets.heads import (
    AnyHead,
    IdentityHeadConfig,
    LinearHeadConfig,
    MLPHeadConfig,
    SAILHeadConfig,
    ShareLockHeadConfig,
    as_head,
)

FEATURES = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)


def layer_norm(x, p):
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    return normed * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def linear(x, p):
    assert "bias" not in p["project"]
    return dense(layer_norm(x, p["norm"]), p["project"])


def mlp(x, p):
    assert p["hidden"]["kernel"].shape == (6, 14)
    return dense(np.asarray(jax.nn.gelu(dense(layer_norm(x, p["norm"]), p["hidden"]))), p["project"])


def sharelock(x, p):
    assert sorted(p) == ["hidden_0", "hidden_1", "hidden_2", "norm_0", "norm_1", "norm_2", "project"]
    for k in range(3):
        x = np.maximum(layer_norm(dense(x, p[f"hidden_{k}"]), p[f"norm_{k}"]), 0)
    return dense(x, p["project"])


def sail(x, p):
    x = layer_norm(x, p["norm"])
    gate, values = (dense(x, p[name]) for name in ("gate", "values"))
    assert gate.shape == values.shape == (5, 48)
    return dense(np.minimum(np.maximum(gate, 0), 6) * values, p["project"])


def random_head(config, scale=1.0):
    """The module with random parameters, biases and scales included."""
    module, rng = config.build(7), np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), FEATURES)["params"]
    return module, jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "config, equation",
    [(LinearHeadConfig(), linear), (MLPHeadConfig(), mlp), (ShareLockHeadConfig(width=11), sharelock),
     (SAILHeadConfig(), sail)],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_the_head_is_its_equation(config, equation):
    module, params = random_head(config, scale=3.0)  # beyond the 6 of ReLU6
    found = jax.jit(module.apply)({"params": params}, FEATURES)
    expected = equation(np.float64(FEATURES), jax.tree.map(np.float64, params))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_sharelocks_dropout_is_drawn_for_each_example():
    module, params = random_head(ShareLockHeadConfig(width=32, depth=2, dropout=0.5))
    apply = jax.jit(lambda x, keys: module.apply({"params": params}, x, keys))
    same = jnp.repeat(FEATURES[:1], 400, axis=0)
    keys = batch_keys(jax.random.key(0), {"index": jnp.arange(400)})
    dropped = apply(same, keys)
    assert len(np.unique(np.round(dropped, 4), axis=0)) > 300
    # Of one hidden layer the mean over draws is the value without dropout.
    spread = np.asarray(dropped).std(0) / np.sqrt(400)
    plain = module.apply({"params": params}, FEATURES[:1])[0]
    assert (np.abs(dropped.mean(0) - plain) < 4 * spread).all()
    # No example has an influence on another one, as with batch norm.
    np.testing.assert_allclose(apply(same[:3], keys[:3]), dropped[:3], rtol=1e-5, atol=1e-5)


def test_the_identity_keeps_the_features_and_their_dimensions():
    assert IdentityHeadConfig().build(6).apply({}, FEATURES) is FEATURES
    with pytest.raises(
        ValueError, match="have 6 dimensions: give --model.embed-dim 6, not 7, or another head"
    ):
        IdentityHeadConfig().build(7).apply({}, FEATURES)


def test_heads_are_chosen_by_name():
    names = ("linear", "mlp", "own", "identity", "sharelock", "sail")
    assert tuple(type(as_head(name)) for name in names) == AnyHead.__args__
    assert as_head(SAILHeadConfig(widening=2)).widening == 2
    with pytest.raises(ValueError, match="must be one of linear, mlp, own, identity, sharelock, sail"):
        as_head("quadratic")
    for wrong in (dict(depth=0), dict(width=0), dict(dropout=1.0)):
        with pytest.raises(ValueError, match=f"ShareLockHeadConfig.{next(iter(wrong))}"):
            ShareLockHeadConfig(**wrong)
