"""Losses: mathematics on arrays, without networks or configuration.

Most return one term per example; `core.collectives.batch_mean` averages the terms over the global batch.

::

    from xmodal_jax.losses import info_nce

    terms = info_nce(image_embeddings, text_embeddings, temperature=0.07, normalize=True)  # [B], in nats
    loss = terms.mean()
"""

from xmodal_jax.losses.adversarial import (
    FEATURE_OBJECTIVES,
    KERNELS,
    OBJECTIVES,
    Adversarial,
    FeatureObjective,
    clip_weights,
    jsd_bound,
    matching_aware,
    mmd_discriminator,
    mmd_generator,
    witness,
)
from xmodal_jax.losses.alignment import coral, deep_cca, mmd
from xmodal_jax.losses.autoencoder import importance_weighted, mmd_to_prior, prior_log_ratio
from xmodal_jax.losses.contrastive import changed_text_loss, info_nce, sigmoid_loss, triplet_loss
from xmodal_jax.losses.elbo import (
    doubly_reparametrized_bound,
    importance_bound,
    kl_warmup,
    kl_with_free_bits,
)
from xmodal_jax.losses.flow import (
    data_to_velocity,
    guide,
    interpolate,
    logit_normal_times,
    mean_velocity_target,
    shortcut_target,
    uniform_times,
    velocity_loss,
)
from xmodal_jax.losses.gradient_cache import chunked, gradient_cache
from xmodal_jax.losses.modality_gap import centroid_uniformity, pair_distance
from xmodal_jax.losses.multimodal_elbo import (
    code_vae,
    crmvae,
    dmvae,
    flow_match,
    jmvae,
    joint_elbo,
    mhvae,
    mmjsd,
    mmvae,
    mmvm,
    mopoe,
    mvae,
    mvtcae,
    nexus,
    unimodal_elbos,
)
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms
from xmodal_jax.losses.penalties import (
    dragan,
    gradient_penalty,
    lecam,
    matching_aware_penalty,
    squared_gradient,
)
from xmodal_jax.losses.sequence import ctc, ctc_fits, token_cross_entropy
from xmodal_jax.losses.spectral import (
    SpectralTerms,
    log_mel_distance,
    multi_resolution_stft_loss,
    stft_loss,
)
from xmodal_jax.losses.word_region import word_region_loss, word_region_scores

__all__ = [
    "FEATURE_OBJECTIVES",
    "KERNELS",
    "OBJECTIVES",
    "Adversarial",
    "FeatureObjective",
    "ObjectiveInputs",
    "ObjectiveTerms",
    "SpectralTerms",
    "centroid_uniformity",
    "changed_text_loss",
    "chunked",
    "clip_weights",
    "code_vae",
    "coral",
    "crmvae",
    "ctc",
    "ctc_fits",
    "data_to_velocity",
    "deep_cca",
    "dmvae",
    "doubly_reparametrized_bound",
    "dragan",
    "flow_match",
    "gradient_cache",
    "gradient_penalty",
    "guide",
    "importance_bound",
    "importance_weighted",
    "info_nce",
    "interpolate",
    "jmvae",
    "joint_elbo",
    "jsd_bound",
    "kl_warmup",
    "kl_with_free_bits",
    "lecam",
    "log_mel_distance",
    "logit_normal_times",
    "matching_aware",
    "matching_aware_penalty",
    "mean_velocity_target",
    "mhvae",
    "mmd",
    "mmd_discriminator",
    "mmd_generator",
    "mmd_to_prior",
    "mmjsd",
    "mmvae",
    "mmvm",
    "mopoe",
    "mvae",
    "multi_resolution_stft_loss",
    "mvtcae",
    "nexus",
    "prior_log_ratio",
    "shortcut_target",
    "pair_distance",
    "sigmoid_loss",
    "squared_gradient",
    "stft_loss",
    "token_cross_entropy",
    "triplet_loss",
    "uniform_times",
    "unimodal_elbos",
    "velocity_loss",
    "witness",
    "word_region_loss",
    "word_region_scores",
]
