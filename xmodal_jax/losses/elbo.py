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


def kl_warmup(
    step: Int[Array, "batch"], *, warmup: int = 0, cycle: int = 0, ramp: float = 0.5
) -> Float[Array, "batch"]:
    """The weight of the divergence at a step, from 0 to 1.

    Linear over the first ``warmup`` steps (Bowman et al. 2016, arXiv:1511.06349, sec. 3.1); with ``cycle`` again and
    again: every ``cycle`` steps it rises over their share ``ramp`` and then stays 1 (cyclical annealing, Fu et al.
    2019, arXiv:1903.10145, eq. 6-7).
    """
    step = step.astype(jnp.float32)
    weight = jnp.ones_like(step)
    if warmup:
        weight = jnp.minimum((step + 1.0) / warmup, 1.0)
    if cycle:
        weight = jnp.minimum(weight, jnp.minimum((step % cycle + 1.0) / (ramp * cycle), 1.0))
    return weight


def free_bits(
    divergence: Float[Array, "*rows batch dim"],
    least: float,
    *,
    present: Bool[Array, "*rows batch"],
    axis_name: AxisName = None,
) -> Float[Array, "*rows batch"]:
    """``sum_j max(least, mean_batch KL_j)`` as a term of each example, in nats (Kingma et al. 2016, arXiv:1606.04934,
    eq. 15, a group per dimension).

    A dimension whose mean over the global batch (of the examples ``present``) lies below ``least`` counts as ``least``
    and has no gradient: it may say that much for free.
    """
    if not least:
        return divergence.sum(axis=-1)
    weights = present.astype(divergence.dtype)[..., None]
    total, count = psum(
        (jnp.where(weights > 0, divergence, 0.0).sum(axis=-2), weights.sum(axis=-2)), axis_name
    )
    mean = lax.stop_gradient(total / jnp.maximum(count, 1.0))
    kept = jnp.expand_dims(mean > least, -2)
    return jnp.where(kept, divergence, least).sum(axis=-1)


def kl_to(
    q: Posterior,
    p: Posterior,
    *,
    least: float = 0.0,
    present: Bool[Array, "*rows batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, "*rows batch"]:
    """``KL(q || p)`` summed over dimensions, with `free_bits`."""
    if present is None:
        present = jnp.ones(q.mean.shape[:-1], bool)
    return free_bits(kl(q, p), least, present=present, axis_name=axis_name)


@jax.custom_vjp
def handle(z: Float[Array, "*rows dim"]) -> tuple[Array, Array, Array]:
    """``z`` itself, and two zeros ``[*rows]``: what the gradient of z is multiplied by is only said later.

    With ``a`` and ``b`` the zeros' cotangents, the gradient that arrives at z is multiplied by ``a / b``. So a loss
    that adds ``w * a_zero + b_zero`` wherever it adds what z led to scales z's gradient by ``w``, though ``w`` is
    made of z.
    """
    zeros = jnp.zeros(z.shape[:-1], z.dtype)
    return z, zeros, zeros


def _handle_forward(z):
    return handle(z), None


def _handle_backward(_, cotangents):
    of_z, a, b = cotangents
    return (of_z * jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))[..., None],)


handle.defvjp(_handle_forward, _handle_backward)


def importance_bound(log_weights: Float[Array, "k *rows"]) -> Float[Array, "*rows"]:
    """``log 1/K sum_k w_k`` (Burda et al. 2016, arXiv:1509.00519, eq. 8)."""
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def doubly_reparametrised(
    log_weights: Float[Array, "k *rows"],
    scale_zero: Float[Array, "k *rows"],
    one_zero: Float[Array, "k *rows"],
) -> Float[Array, "*rows"]:
    """`importance_bound` in value, with the gradient of Tucker et al. 2019 (arXiv:1810.04152, eq. 8).

    With the normalised weights ``w_k`` the gradient is ``sum_k w_k d log_weight_k`` to the model, and ``sum_k w_k^2
    (d log_weight_k / d z_k) dz_k`` to the posterior. The weights' densities must be those of the detached
    posterior, and their samples come through `handle`, whose zeros are given here.
    """
    share = lax.stop_gradient(jax.nn.softmax(log_weights, axis=0))
    surrogate = (share * log_weights + share * scale_zero + one_zero).sum(axis=0)
    value = lax.stop_gradient(importance_bound(log_weights))
    return value + surrogate - lax.stop_gradient(surrogate)
