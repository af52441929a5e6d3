"""Corrupted inputs, for denoising autoencoders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import ExampleKeys


def add_noise(x: Array, keys: ExampleKeys, scale: float) -> Array:
    """``x [B, ...]`` plus Gaussian noise of standard deviation ``scale`` (Vincent et al. 2010, JMLR 11, sec. 3.3)."""
    keys = fold_in_name(keys, "corrupt")
    return x + scale * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def mask_elements(x: Array, keys: ExampleKeys, rate: float, value: int = 0) -> Array:
    """``x [B, ...]`` with each element replaced by ``value`` with probability ``rate`` (Vincent et al. 2008, ICML,
    sec. 2.3)."""
    keys = fold_in_name(keys, "corrupt")
    masked = jax.vmap(lambda key: jax.random.bernoulli(key, rate, x.shape[1:]))(keys)
    return jnp.where(masked, jnp.asarray(value, x.dtype), x)
