"""Terms of evidence lower bounds, one per example and in nats: divergences with free bits, importance-weighted
bounds and their gradients, schedules of the divergence's weight."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.collectives import AxisName, psum
from xmodal_jax.probability.distributions import Posterior, kl

ESTIMATORS = ("iwae", "dreg")
"""Gradient estimators of importance-weighted bounds: "iwae" differentiates the bound, "dreg" is
`doubly_reparametrized_bound`."""


def kl_warmup(
    step: Int[Array, "batch"], *, warmup: int = 0, cycle: int = 0, ramp: float = 0.5
) -> Float[Array, "batch"]:
    """Weight of the divergence at an optimizer step, from 0 to 1.

    It rises linearly over the first ``warmup`` steps (Bowman et al. 2016, arXiv:1511.06349, sec. 3.1). With ``cycle``
    it starts again every ``cycle`` steps, rises over the fraction ``ramp`` of the cycle and then stays 1 (cyclical
    annealing, Fu et al. 2019, arXiv:1903.10145, eq. 6-7). With both, the smaller weight counts.
    """
    step = step.astype(jnp.float32)
    weight = jnp.ones_like(step)
    if warmup:
        weight = jnp.minimum((step + 1.0) / warmup, 1.0)
    if cycle:
        weight = jnp.minimum(weight, jnp.minimum((step % cycle + 1.0) / (ramp * cycle), 1.0))
    return weight


def sum_with_free_bits(
    divergence: Float[Array, "*rows batch dim"],
    free_bits: float,
    *,
    present: Bool[Array, "*rows batch"],
    axis_name: AxisName = None,
) -> Float[Array, "*rows batch"]:
    """``sum_j max(free_bits, mean_batch KL_j)`` as a term of each example (Kingma et al. 2016, arXiv:1606.04934,
    eq. 15, with one group per dimension).

    Args:
      divergence: ``KL_j`` of each latent dimension j, in nats.
      free_bits: nats that each dimension may have without cost. A dimension whose mean over the global batch lies
        below it counts as ``free_bits`` and has no gradient.
      present: the examples over which that mean is taken.
      axis_name: device axis over which the batch is split.
    """
    if not free_bits:
        return divergence.sum(axis=-1)
    weights = present.astype(divergence.dtype)[..., None]
    total, count = psum(
        (jnp.where(weights > 0, divergence, 0.0).sum(axis=-2), weights.sum(axis=-2)), axis_name
    )
    mean = lax.stop_gradient(total / jnp.maximum(count, 1.0))
    above = jnp.expand_dims(mean > free_bits, -2)
    return jnp.where(above, divergence, free_bits).sum(axis=-1)


def kl_with_free_bits(
    q: Posterior,
    p: Posterior,
    *,
    free_bits: float = 0.0,
    present: Bool[Array, "*rows batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, "*rows batch"]:
    """``KL(q || p)`` of ``[*rows, B, D]``, summed over dimensions by `sum_with_free_bits`; ``present`` None: all."""
    if present is None:
        present = jnp.ones(q.mean.shape[:-1], bool)
    return sum_with_free_bits(kl(q, p), free_bits, present=present, axis_name=axis_name)


@jax.custom_vjp
def deferred_gradient_scale(z: Float[Array, "*rows dim"]) -> tuple[Array, Array, Array]:
    """``z`` and two gradient probes, zeros ``[*rows]``, by which a factor that is computed later scales z's gradient.

    The gradient that arrives at z is multiplied by ``a / b``, where a and b are the gradients of the loss with respect
    to the two probes. A loss that adds ``w * weight_probe + unit_probe`` to every term that depends on z thus scales
    z's gradient by ``w``, although ``w`` is itself a function of z. `doubly_reparametrized_bound` uses it.
    """
    zeros = jnp.zeros(z.shape[:-1], z.dtype)
    return z, zeros, zeros


def _deferred_forward(z):
    return deferred_gradient_scale(z), None


def _deferred_backward(_, cotangents):
    z_gradient, a, b = cotangents
    return (z_gradient * jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))[..., None],)


deferred_gradient_scale.defvjp(_deferred_forward, _deferred_backward)


def importance_bound(log_weights: Float[Array, "k *rows"]) -> Float[Array, "*rows"]:
    """``log 1/K sum_k w_k`` (Burda et al. 2016, arXiv:1509.00519, eq. 8)."""
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def doubly_reparametrized_bound(
    log_weights: Float[Array, "k *rows"],
    weight_probe: Float[Array, "k *rows"],
    unit_probe: Float[Array, "k *rows"],
) -> Float[Array, "*rows"]:
    """`importance_bound` with the doubly reparametrized gradient, DReG (Tucker et al. 2019, arXiv:1810.04152, eq. 8).

    With the normalised weights ``w_k`` the gradient is ``sum_k w_k d log_weight_k`` with respect to the model, and
    ``sum_k w_k^2 (d log_weight_k / d z_k) dz_k`` with respect to the posterior.

    Args:
      log_weights: computed with the densities of the detached posterior, from samples z that went through
        `deferred_gradient_scale`.
      weight_probe: the first of the two zeros that it returned.
      unit_probe: the second one.
    """
    normalised = lax.stop_gradient(jax.nn.softmax(log_weights, axis=0))
    surrogate = (normalised * log_weights + normalised * weight_probe + unit_probe).sum(axis=0)
    value = lax.stop_gradient(importance_bound(log_weights))
    return value + surrogate - lax.stop_gradient(surrogate)
