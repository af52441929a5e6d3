"""From tokens to one vector per example."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.types import Tokens

POOLS = ("mean", "cls", "attention")


class Pool(nn.Module):
    """``Tokens [B, N, D] -> [B, D]`` in float32: "mean" of the content, "cls" (first token), or "attention".

    "attention" is multi-head attention of one learned query over the tokens (arXiv:2106.04560, sec. 2.2,
    without the MLP). Masked positions have no influence; an example without content gives zeros (for
    "attention" the bias of its output projection), with a zero gradient to the tokens.

    Raises:
      ValueError: ``kind`` is unknown.
    """

    kind: str = "mean"
    heads: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        values, mask = tokens
        if self.kind == "mean":
            values = values.astype(jnp.float32)
            if mask is None:
                return values.mean(axis=1)
            count = mask.sum(axis=1).astype(jnp.float32)[:, None]
            return jnp.where(mask[:, :, None], values, 0.0).sum(axis=1) / jnp.maximum(count, 1.0)
        if self.kind == "cls":
            first = values[:, 0].astype(jnp.float32)
            return first if mask is None else jnp.where(mask[:, :1], first, 0.0)
        if self.kind == "attention":
            query = self.param("query", nn.initializers.normal(0.02), (values.shape[-1],), jnp.float32)
            query = jnp.broadcast_to(query[None, None, :], (values.shape[0], 1, values.shape[-1]))
            if mask is not None:
                values = jnp.where(mask[:, :, None], values, jnp.zeros_like(values))
            pooled = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(query, values, mask)
            return pooled[:, 0].astype(jnp.float32)
        raise ValueError(f"pool must be one of {POOLS}, got {self.kind!r}")


def prepend_class_token(module: nn.Module, x, mask):
    """``[B, N, D] -> [B, 1 + N, D]`` with a learned first token, and its mask; for compact methods."""
    token = module.param("class_token", nn.initializers.normal(0.02), (x.shape[-1],), jnp.float32)
    token = jnp.broadcast_to(token.astype(x.dtype)[None, None, :], (x.shape[0], 1, x.shape[-1]))
    if mask is not None:
        mask = jnp.concatenate([jnp.ones((x.shape[0], 1), bool), mask], axis=1)
    return jnp.concatenate([token, x], axis=1), mask
