r"""Flow matching: regression of the velocity that moves noise to data, and its one-step variants.

One convention holds everywhere: the time t runs from 0 (noise :math:`\epsilon`) to 1 (data x),

.. math::  z_t = (1 - t)\,\epsilon + t\,x, \qquad v = dz_t/dt = x - \epsilon

(Lipman et al. 2023, arXiv:2210.02747, sec. 4.1 with sigma_min = 0; Liu et al. 2023, arXiv:2209.03003). The equation
``dz/dt = v(z, t)`` is solved by `probability.ode`. Times are ``[B]``, one per example.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.examples import per_example
from xmodal_jax.types import ExampleKeys

MIN_GAP = 0.05
"""Smallest value of ``1 - t`` by which a prediction of the data is divided to get a velocity (see
`data_to_velocity`)."""


def interpolate(
    x: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], t: Float[Array, "batch"]
) -> Float[Array, "batch ..."]:
    """The state ``(1 - t) noise + t x`` at the time t."""
    t = per_example(t, x)
    return (1.0 - t) * noise + t * x


# -- times -----------------------------------------------------------------------------------------------------


def uniform_times(keys: ExampleKeys) -> Float[Array, "batch"]:
    """Times drawn uniformly from [0, 1), one for each key."""
    return jax.vmap(jax.random.uniform)(keys)


def logit_normal_times(keys: ExampleKeys, mean: float = 0.0, std: float = 1.0) -> Float[Array, "batch"]:
    """Times ``sigmoid(n)`` with ``n ~ N(mean, std^2)``, which favour the middle of the way (Esser et al. 2024,
    arXiv:2403.03206, sec. 3.1, whose time is 1 - t, so that the sign of its mean is the opposite)."""
    return jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))


# -- losses ----------------------------------------------------------------------------------------------------


def velocity_loss(
    predicted: Float[Array, "batch ..."], x: Float[Array, "batch ..."], noise: Float[Array, "batch ..."]
) -> Float[Array, "batch"]:
    """The mean over elements of ``(predicted - (x - noise))^2`` for each example (Lipman et al. 2023, eq. 23)."""
    return squared_error(predicted, x - noise)


def squared_error(a: Float[Array, "batch ..."], b: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
    """The mean over elements of ``(a - b)^2`` for each example, in float32."""
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    return jnp.square(difference).reshape(difference.shape[0], -1).mean(axis=1)


def data_to_velocity(
    predicted: Float[Array, "batch ..."], z: Float[Array, "batch ..."], t: Float[Array, "batch"]
) -> Float[Array, "batch ..."]:
    """The velocity ``(predicted - z) / (1 - t)`` of a network that predicts the data x from z (Li and He 2025,
    arXiv:2511.13720, table 1). The divisor is at least `MIN_GAP`: up to the time ``1 - MIN_GAP`` a right prediction has
    the velocity ``x - noise``, after it a smaller one."""
    return (predicted - z) / per_example(jnp.maximum(1.0 - t, MIN_GAP), z)


def adaptive_weight(
    error: Float[Array, "batch"], *, power: float = 1.0, constant: float = 1e-3
) -> Float[Array, "batch"]:
    """The loss ``error / stop_gradient(error + constant)^power``, in which examples with a large error count less (Geng
    et al. 2025, arXiv:2505.13447, eq. 22, whose error is the sum over elements where that of `squared_error` is their
    mean, so that the same ``constant`` counts for more here)."""
    return error / jax.lax.stop_gradient(error + constant) ** power


# -- guidance --------------------------------------------------------------------------------------------------


def guide(
    conditional: Float[Array, "batch ..."], unconditional: Float[Array, "batch ..."], scale: Array | float
) -> Float[Array, "batch ..."]:
    """Classifier-free guidance ``u + scale (c - u)``: scale 1 is the conditional velocity, above 1 is more than it (Ho
    and Salimans 2022, arXiv:2207.12598, eq. 6 with scale = 1 + w). No density has this velocity."""
    return unconditional + scale * (conditional - unconditional)


# -- one step --------------------------------------------------------------------------------------------------

MeanVelocity = Callable[[Array, Array, Array], Array]
"""``u(z, t [B], r [B])``: the mean velocity between the times t and r >= t of the path through z at the time t, so that
``z_r = z_t + (r - t) u(z_t, t, r)``."""


def mean_velocity_target(
    u: MeanVelocity,
    z: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
    r: Float[Array, "batch"],
    velocity: Float[Array, "batch ..."],
    tangent: Float[Array, "batch ..."] | None = None,
) -> tuple[Array, Array]:
    r"""``(u(z, t, r), target)`` of MeanFlow (Geng et al. 2025, arXiv:2505.13447, eq. 6, 9 and 10), in this convention.

    With :math:`(r - t)\,u = z_r - z_t` and r fixed, the derivative along the path with respect to t gives

    .. math::  u = v + (r - t)\,\frac{du}{dt}, \qquad \frac{du}{dt} = \partial_z u\, v + \partial_t u

    so that the target is ``stop_gradient(v + (r - t) du/dt)``; the derivative is one ``jax.jvp``. Where ``r = t`` the
    target is the velocity itself. A sample is ``noise + u(noise, 0, 1)``.

    Args:
      u: the network, a function of ``(z, t, r)``.
      z: the states at the times ``t``.
      t, r: the times, ``t <= r``.
      velocity: the velocity v at z, such as ``x - noise``, whose mean is that of the flow.
      tangent: the velocity along which u is differentiated; None: ``velocity``. The network's own, ``u(z, t, t)``,
        makes the target less noisy (Geng et al. 2025b, arXiv:2512.02012).
    """
    tangents = (velocity if tangent is None else tangent, jnp.ones_like(t), jnp.zeros_like(r))
    prediction, slope = jax.jvp(u, (z, t, r), tangents)
    return prediction, jax.lax.stop_gradient(velocity + per_example(r - t, z) * slope)


def shortcut_target(
    u: MeanVelocity, z: Float[Array, "batch ..."], t: Float[Array, "batch"], step: Float[Array, "batch"]
) -> Float[Array, "batch ..."]:
    """The target of a step of length ``2 step``: the mean of two consecutive predictions of length ``step`` (Frans et
    al. 2025, arXiv:2410.12557, eq. 4), without a gradient."""
    first = u(z, t, t + step)
    middle = z + per_example(step, z) * first
    second = u(middle, t + step, t + 2.0 * step)
    return jax.lax.stop_gradient(0.5 * (first + second))
