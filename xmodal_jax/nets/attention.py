"""Multi-head attention with padding masks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def attention_weights(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys heads dim"],
    mask: Bool[Array, "batch keys"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "batch heads queries keys"]:
    """The attention map ``softmax(q k^T / sqrt(dim))``, float32.

    Rows sum to 1, or to 0 where no key is allowed. ``mask`` tells which keys hold content;
    ``causal`` also forbids keys later than the query.
    """
    return _weights(q.swapaxes(1, 2), k.swapaxes(1, 2), mask, causal)


def _weights(q_BHQD: Array, k_BHKD: Array, mask: Array | None, causal: bool) -> Array:
    logits_BHQK = jnp.einsum("bhqd,bhkd->bhqk", q_BHQD, k_BHKD, preferred_element_type=jnp.float32)
    logits_BHQK = logits_BHQK * q_BHQD.shape[-1] ** -0.5
    allowed = None if mask is None else mask[:, None, None, :]
    if causal:
        earlier = jnp.tril(jnp.ones((1, 1, *logits_BHQK.shape[2:]), bool))
        allowed = earlier if mask is None else allowed & earlier
    if allowed is None:
        return jax.nn.softmax(logits_BHQK, axis=-1)
    # Finite, so that a row without any allowed key stays finite; it is then set to zero.
    weights = jax.nn.softmax(jnp.where(allowed, logits_BHQK, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.where(allowed.any(axis=-1, keepdims=True), weights, 0.0)


def attention(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys heads dim"],
    v: Float[Array, "batch keys heads dim"],
    mask: Bool[Array, "batch keys"] | None = None,
    *,
    causal: bool = False,
    implementation: str | None = None,
) -> Float[Array, "batch queries heads dim"]:
    """``softmax(q k^T / sqrt(dim)) v`` over the keys that ``mask`` and ``causal`` (not later) allow.

    The softmax is float32. A query without any allowed key gives zeros, with a zero gradient.
    ``implementation``: None is two products with the heads before the tokens (on the CPU faster than
    ``jax.nn.dot_product_attention``, at 197 tokens three times); "xla" and "cudnn" are those of that function, the
    latter the flash kernels of NVIDIA GPUs (bfloat16 or float16 only). Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    if implementation is None:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        weights = _weights(q, k, mask, causal)
        return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v).swapaxes(1, 2)
    full = None if mask is None else mask[:, None, None, :]
    out = jax.nn.dot_product_attention(q, k, v, mask=full, is_causal=causal, implementation=implementation)
    if mask is None:
        return out
    any_key = jnp.cumsum(mask, axis=1) > 0 if causal else mask.any(axis=1, keepdims=True)
    return jnp.where(any_key[:, :, None, None], out, jnp.zeros_like(out))


class MultiHeadAttention(nn.Module):
    """Self-attention, or cross-attention when ``kv`` is given: ``[B, N, D] (, [B, M, E]) -> [B, N, D]``.

    ``mask`` tells which *keys* hold content. With ``return_weights`` the result is a pair of the
    output and the map ``[B, H, N, M]``; under ``apply(..., mutable=["intermediates"])`` the map is recorded there as
    ``weights``. The output's weights start ``out_scale`` times as large as usual.

    Several rows of ``x`` may share one of ``kv`` (``[B / n, M, E]``: rows ``n i`` and on share row ``i``); its keys and
    values are then computed once.

    One token at a time, ``position`` is its place and ``x`` ``[B, 1, D]``. Self-attention keeps keys and values of the
    tokens so far in the collection ``cache``, made at the first call for as many as ``mask`` is long, which says which
    of them may be seen. Cross-attention computes those of ``kv`` at the first call and keeps them in ``memory``.

    Raises:
      ValueError: ``heads`` does not divide the width, or the rows of ``kv`` those of ``x``.
    """

    heads: int
    causal: bool = False
    dtype: Any = None
    implementation: str | None = None
    out_scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries dim"],
        kv: Float[Array, "kv_batch keys kv_dim"] | None = None,
        mask: Bool[Array, "..."] | None = None,
        *,
        position: Int[Array, ""] | int | None = None,
        return_weights: bool = False,
    ) -> Float[Array, "batch queries dim"] | tuple[Array, Array]:
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"heads={self.heads} must divide the width {width}")
        shape = (self.heads, width // self.heads)
        if kv is None:
            qkv = nn.DenseGeneral((3, *shape), dtype=self.dtype, name="qkv")(x)
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
            if position is not None:
                k, v = self._with_cached(k, v, mask, position)
        else:
            q = nn.DenseGeneral(shape, dtype=self.dtype, name="query")(x)
            if len(q) % len(kv):
                raise ValueError(
                    f"{len(q)} rows cannot share {len(kv)} rows of keys and values: not as many for each"
                )
            q = q.reshape(len(kv), -1, *shape)  # the queries that share keys side by side
            k, v = self._keys_and_values(kv, shape, keep=position is not None)
        causal = self.causal and position is None  # a token's keys are those so far
        if return_weights or self.is_mutable_collection("intermediates"):
            weights = attention_weights(q, k, mask, causal=causal)
            out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
            weights = _apart(weights, len(x))
            self.sow("intermediates", "weights", weights)
        else:
            out = attention(q, k, v, mask, causal=causal, implementation=self.implementation)
        out = out.reshape(*x.shape[:2], *shape)
        start = nn.initializers.variance_scaling(self.out_scale**2, "fan_in", "truncated_normal")
        out = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=start, dtype=self.dtype, name="out")(out)
        return (out, weights) if return_weights else out

    def _with_cached(self, k: Array, v: Array, mask: Array | None, position) -> tuple[Array, Array]:
        if k.shape[1] != 1 or mask is None:
            raise ValueError(
                f"with a position one token at a time, and a mask over the cache; got {k.shape[1]} tokens"
            )
        found = []
        for name, new in (("key", k), ("value", v)):
            kept = self.variable("cache", name, jnp.zeros, (len(k), mask.shape[1], *k.shape[2:]), k.dtype)
            kept.value = jax.lax.dynamic_update_slice(kept.value, new, (0, position, 0, 0))
            found.append(kept.value)
        return found[0], found[1]

    def _keys_and_values(self, kv: Array, shape: tuple[int, int], *, keep: bool) -> tuple[Array, Array]:
        if keep and self.has_variable("memory", "key"):
            return self.get_variable("memory", "key"), self.get_variable("memory", "value")
        both = nn.DenseGeneral((2, *shape), dtype=self.dtype, name="key_value")(kv)
        k, v = both[:, :, 0], both[:, :, 1]
        if keep:
            self.put_variable("memory", "key", k)
            self.put_variable("memory", "value", v)
        return k, v


def _apart(weights: Float[Array, "kv_batch heads queries keys"], batch: int) -> Array:
    """The map of each row, of rows whose queries stood side by side."""
    rows, heads, queries, keys = weights.shape
    if rows == batch:
        return weights
    each = batch // rows
    weights = weights.reshape(rows, heads, each, queries // each, keys)
    return weights.swapaxes(1, 2).reshape(batch, heads, queries // each, keys)
