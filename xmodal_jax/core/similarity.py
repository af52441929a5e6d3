"""Similarities and distances between vectors."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_shapes


def l2_normalize(x: Float[Array, "*batch dim"], *, eps: float = 1e-12) -> Float[Array, "*batch dim"]:
    """Vectors along the last axis scaled to length 1: ``x / max(||x||, eps)``, with a finite gradient at 0."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(square > eps * eps, 1.0 / jnp.sqrt(jnp.maximum(square, eps * eps)), 1.0 / eps)


@check_shapes
def squared_distances(a: Float[Array, "n dim"], b: Float[Array, "m dim"]) -> Float[Array, "n m"]:
    """``||a_i - b_j||^2``, as ``|a|^2 + |b|^2 - 2 a b`` and not below 0: rounding can make it slightly negative."""
    aa = jnp.sum(a * a, axis=-1)[:, None]
    bb = jnp.sum(b * b, axis=-1)[None, :]
    return jnp.maximum(aa + bb - 2.0 * a @ b.T, 0.0)
