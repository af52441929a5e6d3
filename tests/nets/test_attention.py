import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import nets as oracle
from xmodal_jax.nets.attention import MultiHeadAttention, attention, attention_weights

B, N, M, H, D = 3, 5, 7, 2, 11
MASK = jnp.asarray(np.arange(M)[None, :] < np.array([7, 3, 0])[:, None])  # the last example has no key at all


def qkv(queries=N, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(B, n, H, D)), dtype) for n in (queries, M, M)]


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_oracle(implementation, causal):
    q, k, v = qkv(M if causal else N)
    attend = lambda q, k, v: attention(q, k, v, MASK, causal=causal, implementation=implementation)
    out = jax.jit(attend)(q, k, v)
    for b in range(B):
        allowed = np.broadcast_to(np.array(MASK[b]), (q.shape[1], M))
        allowed = np.tril(allowed) if causal else allowed
        expected = oracle.attention(*(np.array(a[b], np.float64) for a in (q, k, v)), allowed)
        np.testing.assert_allclose(out[b], expected, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_equals_torch(causal):
    torch = pytest.importorskip("torch")
    q, k, v = qkv(M if causal else N)
    there = np.asarray(MASK[:2, None, None])  # without the example that has no key
    allowed = np.broadcast_to(there, (2, 1, q.shape[1], M))
    allowed = torch.tensor(np.tril(allowed) if causal else allowed)
    heads_first = [torch.tensor(np.asarray(x[:2])).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=allowed).transpose(1, 2)
    np.testing.assert_allclose(attention(q, k, v, MASK, causal=causal)[:2], want, atol=2e-6)


def test_implementations_have_equal_gradients():
    args = qkv()
    gradients = [
        jax.jit(
            jax.grad(
                lambda q, k, v, i=i: jnp.sum(jnp.sin(attention(q, k, v, MASK, implementation=i))), (0, 1, 2)
            )
        )(*args)
        for i in (None, "xla")
    ]
    gradients = jax.tree.map(np.asarray, gradients)
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    for g in gradients[0]:
        assert np.all(g[2] == 0.0)  # no key: a zero gradient, not NaN
    for g in gradients[0][1:]:
        assert np.all(g[1, 3:] == 0.0) and np.all(g[1, :3] != 0.0)


def test_weights_sum_to_one_or_to_zero():
    q, k, _ = qkv()
    weights = np.asarray(jax.jit(attention_weights)(q, k, MASK))
    np.testing.assert_allclose(weights.sum(-1)[:2], 1.0, rtol=1e-6)
    assert np.all(weights[2] == 0.0) and np.all(weights[1, :, :, 3:] == 0.0)


def test_softmax_is_float32_in_bfloat16():
    q, k, v = qkv(dtype=jnp.bfloat16)
    assert jax.eval_shape(attention_weights, q, k).dtype == jnp.float32
    assert jax.eval_shape(attention, q, k, v).dtype == jnp.bfloat16


def test_module_returns_the_same_with_and_without_weights(key):
    x = jax.random.normal(key, (B, N, 6))
    kv = jax.random.normal(key, (B, M, 13))
    for args in ((x, kv, MASK), (x, None, MASK[:, :N])):
        module = MultiHeadAttention(heads=2)
        out, params = module.init_with_output(key, *args)
        again, weights = module.apply(params, *args, return_weights=True)
        np.testing.assert_array_equal(out, again)
        assert out.shape == (B, N, 6) and weights.shape == (B, 2, N, M if args[1] is not None else N)


def test_heads_must_divide_the_width(key):
    with pytest.raises(ValueError, match="must divide"):
        MultiHeadAttention(heads=4).init(key, jnp.ones((2, 3, 6)))
