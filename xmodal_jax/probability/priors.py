"""Priors of the latent variables of multimodal VAEs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.probability.distributions import Posterior


class Prior(NamedTuple):
    """Prior of the latent variables: a mixture of C components for those that all modalities share, and one
    distribution for the private ones. D shared dimensions, M modalities, P private dimensions."""

    components: Posterior
    """``[C, D]``: the components of the shared variables' prior."""
    logits: Float[Array, "components"]
    """Unnormalised log-probabilities of the components."""
    private: Posterior | None = None
    """``[P]``: prior of the private variables; None in models without them."""
    auxiliary: Posterior | None = None
    """``[M, P]``: where a modality's private variables are drawn from when it is generated from other modalities; None
    in models without private variables."""

    def log_prob(self, z: Float[Array, "*rows dim"]) -> Float[Array, "*rows"]:
        """``log sum_c p(c) p(z | c)`` over the components c, for shared variables z."""
        row_axes = z.ndim - 1

        def component_log_prob(component):
            """``log p(z | c)``, ``[*rows]``, for one component ``[D]``."""
            to_shape_of_z = lambda x: jnp.broadcast_to(x.reshape((1,) * row_axes + x.shape), z.shape)
            return jax.tree.map(to_shape_of_z, component).log_prob(z).sum(axis=-1)

        log_p = jax.nn.log_softmax(self.logits).reshape((-1,) + (1,) * row_axes)  # log p(c)
        return jax.nn.logsumexp(log_p + jax.vmap(component_log_prob)(self.components), axis=0)
