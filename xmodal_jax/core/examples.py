"""One value for each example of a batch, applied to arrays whose first axis is the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped


def per_example(
    values: Shaped[Array, "batch"], like: Shaped[Array, "batch ..."]
) -> Shaped[Array, "batch ..."]:
    """``values [B]`` with as many axes as ``like [B, ...]``, so that they broadcast; in its dtype unless they are
    booleans."""
    values = values if values.dtype == bool else values.astype(like.dtype)
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def select_examples(mask: Bool[Array, "batch"], x: Any, y: Any) -> Any:
    """The examples of ``x`` where ``mask``, else those of ``y``: two pytrees of arrays ``[B, ...]``."""
    return jax.tree.map(lambda a, b: jnp.where(per_example(mask, a), a, b), x, y)
