"""Quantities that change in the course of a training."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.types import Batch

Number = float | Float[Array, ""]


def half_cosine(start: float, end: float, progress: Number) -> Float[Array, ""]:
    """``start`` at ``progress`` 0, ``end`` at 1, and half a cosine in between, flat at both ends.

    ``progress``: the fraction of the training that is over.
    """
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def batch_progress(batch: Batch) -> Number:
    """The fraction of the training that is over, from 0 to below 1: ``batch["progress"]``, which only batches of a
    training have; 0 without it."""
    return batch["progress"][0] if "progress" in batch else 0.0
