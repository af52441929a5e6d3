"""Losses: mathematics on arrays, without networks or configuration."""

from xmodal_jax.losses.adversarial import (
    KERNELS,
    OBJECTIVES,
    Adversarial,
    clip_weights,
    jsd_bound,
    matching_aware,
    mmd_discriminator,
    mmd_generator,
    witness,
)
from xmodal_jax.losses.alignment import coral, deep_cca, mmd
from xmodal_jax.losses.contrastive import info_nce, sigmoid_loss, triplet_loss
from xmodal_jax.losses.gradient_cache import chunked, gradient_cache
from xmodal_jax.losses.penalties import (
    dragan,
    gradient_penalty,
    lecam,
    matching_aware_penalty,
    squared_gradient,
)
from xmodal_jax.losses.sequence import ctc, ctc_fits, token_cross_entropy
from xmodal_jax.losses.word_region import word_region_loss, word_region_scores

__all__ = [
    "KERNELS",
    "OBJECTIVES",
    "Adversarial",
    "chunked",
    "clip_weights",
    "coral",
    "ctc",
    "ctc_fits",
    "deep_cca",
    "dragan",
    "gradient_cache",
    "gradient_penalty",
    "info_nce",
    "jsd_bound",
    "lecam",
    "matching_aware",
    "matching_aware_penalty",
    "mmd",
    "mmd_discriminator",
    "mmd_generator",
    "sigmoid_loss",
    "squared_gradient",
    "token_cross_entropy",
    "triplet_loss",
    "witness",
    "word_region_loss",
    "word_region_scores",
]
