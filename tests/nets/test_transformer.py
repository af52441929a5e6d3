import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import nets as oracle
from tests.support import random_params
from xmodal_jax.core.random import example_keys
from xmodal_jax.nets.transformer import (
    PositionEmbedding,
    Transformer,
    TransformerBlock,
    sincos_grid,
    stack_layers,
)

B, N, D = 3, 5, 14
MASK = jnp.asarray(np.arange(N)[None, :] < np.array([5, 3, 1])[:, None])


def inputs():
    return jnp.asarray(np.random.default_rng(0).normal(size=(B, N, D)), jnp.float32)


def test_block_equals_the_oracle(key):
    block = TransformerBlock(heads=2, mlp_ratio=3.0, causal=True)
    params = random_params(block.init, key, inputs(), MASK)
    out = jax.jit(block.apply)(params, inputs(), MASK)
    reference = jax.tree.map(lambda p: np.array(p, np.float64), flax.core.unfreeze(params["params"]))
    for b in range(B):
        allowed = np.broadcast_to(np.array(MASK[b]), (N, N))
        expected = oracle.transformer_block(reference, np.array(inputs()[b], np.float64), np.tril(allowed))
        np.testing.assert_allclose(out[b], expected, atol=5e-6)


def test_scanned_equals_unscanned(key):
    """With rematerialization, cross-attention and dropout, in value and gradient."""
    kv = jnp.asarray(np.random.default_rng(1).normal(size=(B, 7, 6)), jnp.float32)
    kv_mask = jnp.asarray(np.arange(7)[None] < np.array([7, 2, 7])[:, None])
    keys = example_keys(key, jnp.arange(B))
    make = lambda scan, remat: Transformer(
        2, 2, dropout=0.2, drop_path=0.3, cross=True, scan_layers=scan, remat=remat
    )
    plain = make(False, False)
    params = random_params(plain.init, key, inputs(), MASK, kv, kv_mask)["params"]
    stacked = stack_layers(params, 2)
    scanned = make(True, True)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
        jnp.shape, jax.eval_shape(scanned.init, key, inputs(), MASK, kv, kv_mask)["params"]
    )

    def loss(module):
        return lambda p, x: jnp.sum(jnp.sin(module.apply({"params": p}, x, MASK, kv, kv_mask, keys=keys)))

    value, (gradient, dx) = jax.jit(jax.value_and_grad(loss(plain), (0, 1)))(params, inputs())
    value2, (gradient2, dx2) = jax.jit(jax.value_and_grad(loss(scanned), (0, 1)))(stacked, inputs())
    np.testing.assert_allclose(value, value2, rtol=1e-5)
    np.testing.assert_allclose(dx, dx2, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), stack_layers(gradient, 2), gradient2
    )
    # the layers draw different masks, and drawing does change the value
    evaluated = jax.jit(plain.apply)({"params": params}, inputs(), MASK, kv, kv_mask)
    assert not np.allclose(jnp.sum(jnp.sin(evaluated)), value, rtol=1e-3)


def test_causality_and_padding_by_gradient(key):
    module = Transformer(2, 2, causal=True)
    params = random_params(module.init, key, inputs())
    jacobian = jax.jit(jax.jacrev(lambda x: module.apply(params, x).sum(-1)))(inputs()[:1])
    jacobian = np.asarray(jacobian)[0, :, 0]  # [query, key, D]
    depends = np.abs(jacobian).max(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((N, N), bool)))

    module = Transformer(2, 2)
    loss = lambda x: jnp.sum(jnp.where(MASK[:, :, None], module.apply(params, x, MASK), 0.0) ** 2)
    depends = np.array(jnp.abs(jax.jit(jax.grad(loss))(inputs())).max(-1) > 0)
    np.testing.assert_array_equal(depends, np.array(MASK))


def test_examples_do_not_mix_and_dropout_follows_the_example(key):
    module = Transformer(2, 2, dropout=0.5)
    params = random_params(module.init, key, inputs())
    keys = example_keys(key, jnp.arange(B))
    run = jax.jit(module.apply)
    whole = run(params, inputs(), MASK, keys=keys)
    order = np.array([2, 0, 1])
    permuted = run(params, np.asarray(inputs())[order], np.asarray(MASK)[order], keys=keys[order])
    np.testing.assert_allclose(permuted, np.asarray(whole)[order], atol=1e-5)


def test_positions(key):
    table = sincos_grid((3, 5), 14)
    assert table.shape == (15, 14)
    assert np.unique(table.round(6), axis=0).shape[0] == 15
    rate = 10000 ** (-2 / 3)  # part of 6 per axis: three rates; row 2, column 4
    expected = [np.sin(2 * rate), np.sin(4 * rate), np.cos(4 * rate)]
    np.testing.assert_allclose(table[2 * 5 + 4, [2, 6 + 2, 6 + 5]], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="at most 3"):
        PositionEmbedding((3,)).init(key, jnp.ones((2, 5, 4)))
    with pytest.raises(ValueError, match="sincos"):
        PositionEmbedding((5,), "rotary").init(key, jnp.ones((2, 5, 4)))
