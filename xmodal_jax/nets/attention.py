"""Multi-head attention with padding masks, causality and a cache for decoding."""

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
    """The attention map ``softmax(q k^T / sqrt(dim))`` in float32.

    Args:
      q, k: queries and keys.
      mask: True on valid keys; None: all.
      causal: whether a query may not attend to later keys.
    Returns:
      The weights of each query, which sum to 1; all 0 where no key is allowed.
    """
    return _weights(q.swapaxes(1, 2), k.swapaxes(1, 2), mask, causal)


def _weights(q_BHQD: Array, k_BHKD: Array, mask: Array | None, causal: bool) -> Array:
    """The attention map ``[B, H, Q, K]`` of queries and keys whose heads come before their tokens.

    ``mask [B, K]`` is True on valid keys; None: all. ``causal``: whether a query may not attend to later keys.
    """
    logits_BHQK = jnp.einsum("bhqd,bhkd->bhqk", q_BHQD, k_BHKD, preferred_element_type=jnp.float32)
    logits_BHQK = logits_BHQK * q_BHQD.shape[-1] ** -0.5
    allowed = None if mask is None else mask[:, None, None, :]
    if causal:
        not_later = jnp.tril(jnp.ones((1, 1, *logits_BHQK.shape[2:]), bool))
        allowed = not_later if mask is None else allowed & not_later
    if allowed is None:
        return jax.nn.softmax(logits_BHQK, axis=-1)
    # A finite minimum, so that the softmax of a query without any allowed key is finite; it is then set to zero.
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
    """Scaled dot-product attention: ``softmax(q k^T / sqrt(dim)) v``, with the softmax in float32.

    Args:
      q, k, v: queries, keys and values.
      mask: True on valid keys; None: all.
      causal: whether a query may not attend to later keys.
      implementation: None computes two products with the heads before the tokens, which on a CPU is faster than
        ``jax.nn.dot_product_attention`` (at 197 tokens three times). "xla" and "cudnn" are the implementations of that
        function; "cudnn" is the flash kernel of NVIDIA GPUs, for bfloat16 and float16.
    Returns:
      ``[batch, queries, heads, dim]``; zeros, with a zero gradient, for a query without any allowed key.

    References:
      Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762, eq. 1.
    """
    if implementation is None:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B, heads, tokens, dim]
        weights = _weights(q, k, mask, causal)
        return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v).swapaxes(1, 2)
    key_mask = None if mask is None else mask[:, None, None, :]  # [B, heads, queries, keys]
    out = jax.nn.dot_product_attention(
        q, k, v, mask=key_mask, is_causal=causal, implementation=implementation
    )
    if mask is None:  # every query has an allowed key
        return out
    # Queries without any allowed key give 0. A causal query t may attend to the valid keys up to t.
    has_allowed_key = jnp.cumsum(mask, axis=1) > 0 if causal else mask.any(axis=1, keepdims=True)
    return jnp.where(has_allowed_key[:, :, None, None], out, jnp.zeros_like(out))


class MultiHeadAttention(nn.Module):
    """Self-attention, or cross-attention if ``kv`` is given: ``[B, N, D] (, [B, M, E]) -> [B, N, D]``.

    ``mask`` is True on valid *keys*. With ``return_weights`` the result is a pair of the output and the attention map
    ``[B, H, N, M]``; under ``apply(..., mutable=["intermediates"])`` the map is recorded there as ``weights``. The
    output projection is initialized ``out_scale`` times as large as usual.

    Several examples of ``x`` may share one of ``kv``, whose keys and values are then computed once: with ``kv``
    ``[B / n, M, E]``, example ``i`` of ``kv`` belongs to the examples ``n i`` to ``n i + n - 1`` of ``x``.

    For decoding one token at a time, ``x`` is ``[B, 1, D]`` and ``position`` the token's index. Self-attention then
    keeps the keys and values of all tokens so far in the collection ``cache``. The first call creates it, with as many
    positions as ``mask`` has; ``mask`` is True on those that may be attended to. Cross-attention computes the keys and
    values of ``kv`` at the first call and keeps them in the collection ``memory``.

    Raises:
      ValueError: ``heads`` does not divide the width, or the examples of ``kv`` do not divide those of ``x``.
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
        """The attention of ``x`` to itself or, with ``kv``, to ``kv``: ``[B, N, D]``.

        Args:
          x: the tokens ``[B, N, D]`` that queries are computed from.
          kv: tokens ``[B / n, M, E]`` for keys and values, each example of which serves n consecutive examples of
            ``x``; None: self-attention.
          mask: True on valid keys, ``[examples of kv or x, keys]``; None: all.
          position: index of the one token in ``x`` when decoding token by token, with the keys and values of earlier
            tokens in a cache.
          return_weights: whether to return a pair of the output and the attention map ``[B, H, N, M]``.
        """
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
            if q.shape[0] % kv.shape[0]:
                raise ValueError(
                    f"{q.shape[0]} rows cannot share {kv.shape[0]} rows of keys and values: not as many for each"
                )
            q = q.reshape(kv.shape[0], -1, *shape)  # the queries of all examples that share an example of kv
            k, v = self._keys_and_values(kv, shape, keep=position is not None)
        causal = self.causal and position is None  # in decoding the cache has no later keys
        # Computed in two steps where somebody asks for the attention map: `attention` returns none.
        if return_weights or self.is_mutable_collection("intermediates"):
            weights = attention_weights(q, k, mask, causal=causal)
            out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
            weights = _split_queries(weights, x.shape[0])  # one map per example of x
            self.sow("intermediates", "weights", weights)
        else:
            out = attention(q, k, v, mask, causal=causal, implementation=self.implementation)
        out = out.reshape(*x.shape[:2], *shape)
        init = nn.initializers.variance_scaling(self.out_scale**2, "fan_in", "truncated_normal")
        out = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=init, dtype=self.dtype, name="out")(out)
        return (out, weights) if return_weights else out

    def _with_cached(self, k: Array, v: Array, mask: Array | None, position) -> tuple[Array, Array]:
        """Writes the keys and values ``[B, 1, H, size]`` of the token at ``position`` into the cache.

        Returns those of all positions of the cache, ``[B, cache length, H, size]``; the mask has as many positions.
        """
        if k.shape[1] != 1 or mask is None:
            raise ValueError(
                f"with a position one token at a time, and a mask over the cache; got {k.shape[1]} tokens"
            )
        updated = []
        for name, new in (("key", k), ("value", v)):
            # Zeros [B, cache length, H, size] at first.
            cache = self.variable(
                "cache", name, jnp.zeros, (k.shape[0], mask.shape[1], *k.shape[2:]), k.dtype
            )
            cache.value = jax.lax.dynamic_update_slice(cache.value, new, (0, position, 0, 0))
            updated.append(cache.value)
        return updated[0], updated[1]

    def _keys_and_values(self, kv: Array, shape: tuple[int, int], *, keep: bool) -> tuple[Array, Array]:
        """The keys and values of ``kv [B, M, E]``, each ``[B, M, *shape]`` with ``shape`` = (heads, head size).

        With ``keep`` they are computed at the first call, and kept in the collection ``memory`` for the next calls.
        """
        if keep and self.has_variable("memory", "key"):
            return self.get_variable("memory", "key"), self.get_variable("memory", "value")
        both = nn.DenseGeneral((2, *shape), dtype=self.dtype, name="key_value")(kv)
        k, v = both[:, :, 0], both[:, :, 1]
        if keep:
            self.put_variable("memory", "key", k)
            self.put_variable("memory", "value", v)
        return k, v


def _split_queries(weights: Float[Array, "kv_batch heads queries keys"], batch: int) -> Array:
    """The attention map ``[batch, heads, queries per example, keys]`` of each example.

    Where ``n = batch / kv_batch`` examples share the keys of one example of ``kv``, the query axis of ``weights`` holds
    the queries of all ``n`` examples, one example after the other.
    """
    kv_batch, heads, queries, keys = weights.shape
    if kv_batch == batch:
        return weights
    n = batch // kv_batch
    weights = weights.reshape(kv_batch, heads, n, queries // n, keys)
    return weights.swapaxes(1, 2).reshape(batch, heads, queries // n, keys)
