"""Multi-head attention with padding masks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
    logits_BHQK = (
        jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    )
    allowed = None if mask is None else mask[:, None, None, :]
    if causal:
        earlier = jnp.tril(jnp.ones((1, 1, q.shape[1], k.shape[1]), bool))
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
    ``implementation``: None is two einsums (on the CPU faster than ``jax.nn.dot_product_attention``, by a
    quarter at 64 tokens); "xla" and "cudnn" are those of ``jax.nn.dot_product_attention``, the latter the
    flash kernels of NVIDIA GPUs (bfloat16 or float16 only). Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    if implementation is None:
        weights = attention_weights(q, k, mask, causal=causal)
        return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
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

    Raises:
      ValueError: ``heads`` does not divide the width.
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
        kv: Float[Array, "batch keys kv_dim"] | None = None,
        mask: Bool[Array, "batch keys"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Float[Array, "batch queries dim"] | tuple[Array, Array]:
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"heads={self.heads} must divide the width {width}")
        shape = (self.heads, width // self.heads)
        if kv is None:
            qkv = nn.DenseGeneral((3, *shape), dtype=self.dtype, name="qkv")(x)
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        else:
            q = nn.DenseGeneral(shape, dtype=self.dtype, name="query")(x)
            keys_values = nn.DenseGeneral((2, *shape), dtype=self.dtype, name="key_value")(kv)
            k, v = keys_values[:, :, 0], keys_values[:, :, 1]
        if return_weights or self.is_mutable_collection("intermediates"):
            weights = attention_weights(q, k, mask, causal=self.causal)
            self.sow("intermediates", "weights", weights)
            out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
        else:
            out = attention(q, k, v, mask, causal=self.causal, implementation=self.implementation)
        start = nn.initializers.variance_scaling(self.out_scale**2, "fan_in", "truncated_normal")
        out = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=start, dtype=self.dtype, name="out")(out)
        return (out, weights) if return_weights else out
