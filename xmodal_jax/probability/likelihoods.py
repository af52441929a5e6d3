"""How likely data are under what a decoder says of them, one number per example, in nats."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.probability.distributions import (
    Laplace,
    Normal,
    bernoulli_log_prob,
    categorical_log_prob,
)

DENSITIES = ("normal", "laplace", "bernoulli")


def dense_log_likelihood(
    kind: str, said: Float[Array, "rows batch *shape"], x: Float[Array, "batch *shape"], *, scale: float = 1.0
) -> Float[Array, "rows batch"]:
    """``log p(x | said)``, summed over all elements of an example, of several decodings (``rows``) of each.

    "normal" and "laplace": ``said`` is the mean, ``scale`` the standard deviation or Laplace's b; "bernoulli":
    ``said`` are logits and x lies in [0, 1].

    Raises:
      ValueError: another kind.
    """
    x = jnp.broadcast_to(x[None], said.shape)
    if kind == "bernoulli":
        terms = bernoulli_log_prob(said, x)
    elif kind in ("normal", "laplace"):
        family = Normal if kind == "normal" else Laplace
        terms = family(said, jnp.full((1,) * said.ndim, math.log(scale), said.dtype)).log_prob(x)
    else:
        raise ValueError(f"likelihood must be one of {DENSITIES} here, got {kind!r}")
    return terms.reshape(*terms.shape[:2], -1).sum(axis=-1)


def token_log_likelihood(
    logits: Float[Array, "rows batch length vocab"],
    ids: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
) -> Float[Array, "rows batch"]:
    """``sum_t log p(id_t)`` over the tokens under the mask."""
    ids = jnp.broadcast_to(ids[None], logits.shape[:-1])
    return jnp.where(mask[None], categorical_log_prob(logits, ids), 0.0).sum(axis=-1)


def label_log_likelihood(
    logits: Float[Array, "rows batch classes"], labels: Int[Array, "batch"]
) -> Float[Array, "rows batch"]:
    """``log p(label)``."""
    return categorical_log_prob(logits, jnp.broadcast_to(labels[None], logits.shape[:-1]))
