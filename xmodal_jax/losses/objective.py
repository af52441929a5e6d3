"""What every objective of a VAE takes and returns, with one modality or with several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import AxisName
from xmodal_jax.probability.distributions import Posterior
from xmodal_jax.probability.priors import Prior
from xmodal_jax.types import ExampleKeys

Weight = Float[Array, "batch"] | float
"""Weight of a divergence, one for each example or the same for all."""


class ObjectiveInputs(NamedTuple):
    """What an objective is computed from: B examples, M modalities, R latents of each example (the axis ``rows``).

    D is the number of latent dimensions, P that of private ones, which belong to one modality. In an autoencoder of one
    modality the axis M is absent; it has a ``posterior`` and no ``experts``.
    """

    present: Bool[Array, "*m batch"]
    """Which example has which modality."""
    log_likelihood: Callable[[Float[Array, "*m rows batch latent"]], Float[Array, "*m rows batch"]]
    """``log p(x_m | z)`` for R latents of each example, in nats; 0 where x_m is missing."""
    kl_to_prior: Callable[[Posterior, Bool[Array, "*rows batch"]], Float[Array, "*rows batch"]]
    """``kl_to_prior(q [*rows, B, D], present [*rows, B])``: the KL divergence of q from the prior, with free bits. With
    several modalities that prior is N(0, 1); objectives with another one use ``prior.log_prob``."""
    prior: Posterior | Prior
    """The prior of all latents; with one modality ``p(z)``, ``[B, D]``."""
    keys: ExampleKeys
    """Random keys of the examples' samples."""
    posterior: Posterior | None = None
    """``[B, D]``: ``q(z | x)``; with several modalities the joint encoder's, None without one. A log-scale of -inf
    makes it a point."""
    experts: Posterior | None = None
    """``[M, B, D]``: ``q(z | x_m)`` of each modality alone; None with one modality, and in a hierarchy of latents."""
    private: Posterior | None = None
    """``[M, B, P]``: posterior of each modality's private variables; None in models without them."""
    networks: Any = None
    """Methods of further networks, which some objectives call; None with one modality."""
    axis_name: AxisName = None
    """Device axis over which the batch is split; None: the arrays hold the whole batch."""

    @property
    def num_present(self) -> Float[Array, "batch"]:
        """How many modalities each example has, at least 1."""
        return jnp.maximum(self.present.sum(axis=0), 1).astype(jnp.float32)


class ObjectiveTerms(NamedTuple):
    """What an objective returns: a loss for each example, and what is logged."""

    loss: Float[Array, "batch"]
    metrics: dict[str, Float[Array, "batch"]]
    """Per-example values by name, whose means are logged."""
    batch_terms: dict[str, tuple[Array, Array]] = {}
    """Terms that are one number of the whole batch, by name: this device's share of it, and its weight in the loss."""
    latent: Float[Array, "batch dim"] | None = None
    """The latents that were decoded, for a critic; None where the objective serves no model with a critic."""
