"""Terms of evidence lower bounds, one per example and in nats: divergences with free bits, importance-weighted
bounds and their gradients, schedules of the divergence's weight."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.collectives import AxisName, psum
from xmodal_jax.probability.distributions import Posterior, kl

ESTIMATORS = ("iwae", "dreg")
"""Gradient estimators of importance-weighted bounds: "iwae" differentiates the bound, "dreg" is
`doubly_reparametrized_bound`."""


def kl_warmup(
    step: Int[Array, "batch"], *, warmup: int = 0, cycle: int = 0, ramp: float = 0.5
) -> Float[Array, "batch"]:
    """Weight of the KL divergence at an optimizer step, from 0 to 1.

    ``step``: the number of steps taken so far, the same for all examples. The weight rises linearly over the first
    ``warmup`` steps (Bowman et al. 2016, arXiv:1511.06349, sec. 3.1). With ``cycle``
    it starts again every ``cycle`` steps, rises over the fraction ``ramp`` of the cycle and then stays 1 (cyclical
    annealing, Fu et al. 2019, arXiv:1903.10145, eq. 6-7). With both, the weight is the smaller of the two. A value of 0
    turns ``warmup`` or ``cycle`` off.
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

    The axes ``*rows`` are those before the batch, such as modalities or subsets of them; each has a mean of its own.

    Args:
      divergence: ``KL_j`` of each latent dimension j, in nats.
      free_bits: nats that each dimension may have without cost; 0: plain ``sum_j KL_j``. A dimension whose mean over
        the global batch lies below it counts as ``free_bits`` and has no gradient.
      present: the examples over which that mean is taken.
      axis_name: device axis over which the batch is split.
    """
    if not free_bits:
        return divergence.sum(axis=-1)
    weights = present.astype(divergence.dtype)[..., None]
    # Sums over the examples of all devices.
    total, count = psum(
        (jnp.where(weights > 0, divergence, 0.0).sum(axis=-2), weights.sum(axis=-2)), axis_name
    )
    mean = lax.stop_gradient(total / jnp.maximum(count, 1.0))  # [*rows, D]
    exceeds_free_bits = jnp.expand_dims(mean > free_bits, -2)  # [*rows, 1, D], the same for all examples
    return jnp.where(exceeds_free_bits, divergence, free_bits).sum(axis=-1)


def kl_with_free_bits(
    q: Posterior,
    p: Posterior,
    *,
    free_bits: float = 0.0,
    present: Bool[Array, "*rows batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, "*rows batch"]:
    """``KL(q || p)`` in nats for q and p of ``[*rows, B, D]``, summed over D with free bits by `sum_with_free_bits`.

    ``present`` None: all examples count for the mean divergence that is compared with ``free_bits``.
    """
    if present is None:
        present = jnp.ones(q.mean.shape[:-1], bool)
    return sum_with_free_bits(kl(q, p), free_bits, present=present, axis_name=axis_name)


@jax.custom_vjp
def deferred_gradient_scale(z: Float[Array, "*rows dim"]) -> tuple[Array, Array, Array]:
    """``(z, weight_probe, unit_probe)``: z unchanged, and two arrays of zeros that let later code scale z's gradient.

    In the backward pass the gradient that arrives at z is multiplied by ``a / b``, where a and b are the gradients of
    the loss with respect to ``weight_probe`` and ``unit_probe``, both ``[*rows]``. A loss that adds ``w * weight_probe
    + unit_probe`` to every term that depends on z has ``a / b = w`` and thus scales z's gradient by ``w``, although
    ``w`` is computed from z itself. `doubly_reparametrized_bound` uses it.
    """
    zeros = jnp.zeros(z.shape[:-1], z.dtype)
    return z, zeros, zeros


def _deferred_forward(z):
    return deferred_gradient_scale(z), None


def _deferred_backward(_, cotangents):
    """z's gradient times ``a / b``, the gradients of the two probes of `deferred_gradient_scale`; 0 where b is 0."""
    z_gradient, a, b = cotangents
    return (z_gradient * jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))[..., None],)


deferred_gradient_scale.defvjp(_deferred_forward, _deferred_backward)


@check_shapes
def importance_bound(log_weights: Float[Array, "k *rows"]) -> Float[Array, "*rows"]:
    """``log 1/K sum_k w_k`` of K importance weights w (Burda et al. 2016, arXiv:1509.00519, eq. 8), in nats."""
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


@check_shapes
def doubly_reparametrized_bound(
    log_weights: Float[Array, "k *rows"],
    weight_probe: Float[Array, "k *rows"],
    unit_probe: Float[Array, "k *rows"],
    *,
    beta: Float[Array, "..."] | float = 1.0,
) -> Float[Array, "*rows"]:
    r"""`importance_bound` with the doubly reparametrized gradient, DReG (Tucker et al. 2019, arXiv:1810.04152, eq. 8).

    For ``log w = log p(x | z) + beta (log p(z) - log q(z | x))`` and the normalised weights :math:`\tilde w_k`, the
    gradient with respect to the model is :math:`\sum_k \tilde w_k \, \mathrm{d} \log w_k`, and with respect to the
    posterior

    .. math:: \sum_k \tilde w_k \big((1 - \beta) + \beta \tilde w_k\big)
              \frac{\partial \log w_k}{\partial z_k} \frac{\mathrm{d} z_k}{\mathrm{d} \phi}

    The paper has beta = 1, where the weight is :math:`\tilde w_k^2`. The general weight follows in the same way: the
    derivative of :math:`\log q` by its own parameters enters with :math:`-\beta \tilde w_k`, whose expectation the
    reparametrization of a score (eq. 5) turns into :math:`-\beta \, \partial \tilde w_k / \partial z_k`, and
    :math:`\partial \tilde w_k / \partial z_k = \tilde w_k (1 - \tilde w_k) \, \partial \log w_k / \partial z_k`.

    The estimate is unbiased if all K samples are drawn from the density q in the weights. It is biased if q is a
    mixture and the samples are drawn from one of its components (as in `losses.multimodal_elbo.mmvae`).

    Args:
      log_weights: computed with the densities of the detached posterior, from samples z that went through
        `deferred_gradient_scale`.
      weight_probe, unit_probe: the two arrays of zeros that `deferred_gradient_scale` returned.
      beta: the weight of the ratio of densities in ``log_weights``, of a shape that broadcasts against theirs.
    """
    normalised = lax.stop_gradient(jax.nn.softmax(log_weights, axis=0))
    scale = (1.0 - beta) + beta * normalised
    surrogate = (normalised * log_weights + scale * weight_probe + unit_probe).sum(axis=0)
    # The value of the bound, with the gradient of the surrogate.
    value = lax.stop_gradient(importance_bound(log_weights))
    return value + surrogate - lax.stop_gradient(surrogate)
