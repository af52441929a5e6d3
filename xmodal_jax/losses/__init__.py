"""Losses: mathematics on arrays, without networks or configuration."""

from xmodal_jax.losses.alignment import coral, deep_cca, mmd
from xmodal_jax.losses.contrastive import info_nce, sigmoid_loss, triplet_loss
from xmodal_jax.losses.tiled import chunked, gradient_cache

__all__ = [
    "chunked",
    "coral",
    "deep_cca",
    "gradient_cache",
    "info_nce",
    "mmd",
    "sigmoid_loss",
    "triplet_loss",
]
