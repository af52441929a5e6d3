"""Flows along ordinary differential equations ``dx/dt = v(x, t)``: solvers, and the change of the log-density.

The time t runs from 0 (noise) to 1 (data). A velocity is a function ``v(x, t)`` of a batch ``x [B, ...]`` and one time
per example ``t [B]``; x may also be a pytree of such arrays. All functions can be compiled into one program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xmodal_jax.core.examples import per_example, select_examples
from xmodal_jax.types import ExampleKeys

State = Any
"""A pytree of arrays ``[B, ...]``."""
Velocity = Callable[[State, Float[Array, "batch"]], State]
"""``v(x, t [B]) -> dx/dt``, with the structure of x."""


def time_grid(steps: int, *, shift: float = 1.0) -> Float[Array, "times"]:
    """The times of ``steps`` steps from 0 (noise) to 1 (data), ``[steps + 1]``.

    With ``shift`` a the uniform times u become ``u / (u + a (1 - u))``: above 1 there are more steps near the noise, as
    large images need (Esser et al. 2024, arXiv:2403.03206, eq. 23, whose time is 1 - t).

    Raises:
      ValueError: ``steps`` is below 1, or ``shift`` is not positive.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"steps must be at least 1 and shift positive, got {steps} and {shift}")
    return shift_times(jnp.linspace(0.0, 1.0, steps + 1), shift)


def times_from(start: Float[Array, "batch"], grid: Float[Array, "times"]) -> Float[Array, "times batch"]:
    """A grid of times from 0 to 1, as times from each example's ``start`` to 1."""
    return start[None] + (1.0 - start[None]) * grid[:, None]


def shift_times(t: Float[Array, "*shape"], shift: float) -> Float[Array, "*shape"]:
    """``t / (t + shift (1 - t))``; see `time_grid`."""
    return t if shift == 1.0 else t / (t + shift * (1.0 - t))


# -- solvers with fixed steps ----------------------------------------------------------------------------------


def _add(x: State, scale: Float[Array, "batch"], slope: State) -> State:
    """``x + scale * slope``, with one scale per example."""
    return jax.tree.map(lambda a, b: a + per_example(scale, a) * b, x, slope)


def euler_step(velocity: Velocity, x: State, t: Array, dt: Array) -> State:
    """Euler's method, of first order: one evaluation of the velocity per step."""
    return _add(x, dt, velocity(x, t))


def midpoint_step(velocity: Velocity, x: State, t: Array, dt: Array) -> State:
    """The midpoint method, of second order: two evaluations per step."""
    middle = _add(x, 0.5 * dt, velocity(x, t))
    return _add(x, dt, velocity(middle, t + 0.5 * dt))


def heun_step(velocity: Velocity, x: State, t: Array, dt: Array) -> State:
    """Heun's method, of second order: two evaluations per step."""
    first = velocity(x, t)
    second = velocity(_add(x, dt, first), t + dt)
    return _add(x, 0.5 * dt, jax.tree.map(jnp.add, first, second))


class Solver(NamedTuple):
    """A method with fixed steps."""

    step: Callable[[Velocity, State, Array, Array], State]
    """``step(velocity, x, t [B], dt [B]) -> x at the time t + dt``."""
    evaluations: int
    """Evaluations of the velocity in each step."""


SOLVERS: dict[str, Solver] = {
    "euler": Solver(euler_step, 1),
    "midpoint": Solver(midpoint_step, 2),
    "heun": Solver(heun_step, 2),
}
"""The solvers with fixed steps, by name."""


def solve(
    velocity: Velocity,
    x: State,
    times: Float[Array, "times"] | Float[Array, "times batch"],
    *,
    solver: str = "heun",
    correct: Callable[[State, Array], State] | None = None,
) -> State:
    """The state at the last of ``times``, from the state ``x`` at the first of them.

    Args:
      velocity: ``v(x, t [B])``.
      x: the state, a pytree of arrays ``[B, ...]``.
      times: ``[N + 1]`` for N steps, increasing or decreasing; or ``[N + 1, B]``, with times for each example.
      solver: a key of `SOLVERS`.
      correct: ``correct(x, t [B])`` replaces the state after every step, for example to keep known parts; None: nothing
        does.
    Raises:
      ValueError: there is no such solver, or there are fewer than two times.

    Example::

        x = solve(lambda x, t: -x, jnp.ones((4, 2)), time_grid(50))  # exp(-1)
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if not jnp.ndim(times) or len(times) < 2:
        raise ValueError(f"times must be an array of at least two, such as time_grid(steps), got {times}")
    batch = jax.tree.leaves(x)[0].shape[0]
    step = SOLVERS[solver].step

    def body(x, interval):
        t, dt = (jnp.broadcast_to(value, (batch,)) for value in interval)
        x = step(velocity, x, t, dt)
        return x if correct is None else correct(x, t + dt), None

    return jax.lax.scan(body, x, (times[:-1], times[1:] - times[:-1]))[0]


# -- a solver with adaptive steps ------------------------------------------------------------------------------

# Coefficients of Dormand and Prince's method of order 5(4) (J. Comput. Appl. Math. 6, 1980, p. 19, table 2).
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FIFTH = (*_STAGES[6], 0.0)
_FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)


class AdaptiveSolution(NamedTuple):
    """The result of `solve_adaptive`."""

    x: State
    """The state at the end time."""
    evaluations: Int[Array, "batch"]
    """Evaluations of the velocity for each example."""
    finished: Array
    """``[B]``: whether the example reached the end time within the largest number of steps."""


class _Progress(NamedTuple):
    """The loop state of `solve_adaptive`; one time and one step size per example."""

    x: State
    t: Array
    dt: Array
    steps: Array


def solve_adaptive(
    velocity: Velocity,
    x: State,
    start: float | Float[Array, "batch"] = 0.0,
    end: float | Float[Array, "batch"] = 1.0,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 200,
) -> AdaptiveSolution:
    """The state at the time ``end``, by Dormand and Prince's method with step sizes of its own for each example.

    A step is accepted if the root mean square over the example's elements of ``error / (atol + rtol |x|)`` is at most
    1. The result of an example does not depend on the rest of the batch.

    Args:
      velocity: ``v(x, t [B])``.
      x: the state at the time ``start``, a pytree of arrays ``[B, ...]``.
      start, end: the times between which the equation is solved, one for all or one per example ``[B]``; ``end`` may be
        the smaller one.
      rtol, atol: relative and absolute tolerance of the error of one step.
      max_steps: the largest number of steps, rejected ones included.
    """
    batch = jax.tree.leaves(x)[0].shape[0]
    start, end = (jnp.broadcast_to(jnp.asarray(time, jnp.float32), (batch,)) for time in (start, end))
    sign = jnp.where(end >= start, 1.0, -1.0)

    def active(progress):
        return (sign * (end - progress.t) > 1e-6) & (progress.steps < max_steps)

    def body(progress):
        dt = sign * jnp.minimum(progress.dt, sign * (end - progress.t))
        new, error = _dormand_prince(velocity, progress.x, progress.t, dt)
        ratio = _error_ratio(error, progress.x, new, rtol, atol)
        running = active(progress)
        accept = running & (ratio <= 1.0)
        # The error of a step of order 5 is proportional to dt^5; 0.9 makes the next step likely to be accepted.
        factor = jnp.clip(0.9 * jnp.maximum(ratio, 1e-10) ** -0.2, 0.2, 5.0)
        return _Progress(
            x=select_examples(accept, new, progress.x),
            t=jnp.where(accept, progress.t + dt, progress.t),
            dt=jnp.where(running, sign * dt * factor, progress.dt),
            steps=progress.steps + running,
        )

    first = _Progress(x, start, jnp.abs(end - start) / 20, jnp.zeros(batch, jnp.int32))
    last = jax.lax.while_loop(lambda progress: active(progress).any(), body, first)
    return AdaptiveSolution(last.x, len(_NODES) * last.steps, ~(sign * (end - last.t) > 1e-6))


def _dormand_prince(velocity: Velocity, x: State, t: Array, dt: Array) -> tuple[State, State]:
    """One step of order 5: the new state, and its difference from that of order 4, which estimates the error."""
    slopes: list[State] = []
    for node, row in zip(_NODES, _STAGES, strict=True):
        stage = x
        for weight, slope in zip(row, slopes, strict=True):
            stage = _add(stage, weight * dt, slope)
        slopes.append(velocity(stage, t + node * dt))
    new, error = x, jax.tree.map(jnp.zeros_like, x)
    for fifth, fourth, slope in zip(_FIFTH, _FOURTH, slopes, strict=True):
        new = _add(new, fifth * dt, slope)
        error = _add(error, (fifth - fourth) * dt, slope)
    return new, error


def _error_ratio(error: State, old: State, new: State, rtol: float, atol: float) -> Float[Array, "batch"]:
    """The root mean square of ``error / (atol + rtol max(|old|, |new|))`` of each example; 1 is the limit. A state that
    is not finite has the ratio infinity, so that the step is repeated with a smaller size."""
    total, count = 0.0, 0
    for e, a, b in zip(*map(jax.tree.leaves, (error, old, new)), strict=True):
        scaled = e / (atol + rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)))
        total = total + jnp.square(scaled).reshape(e.shape[0], -1).sum(axis=1)
        count += math.prod(e.shape[1:])
    ratio = jnp.sqrt(total / count)
    return jnp.where(jnp.isfinite(ratio), ratio, jnp.inf)


# -- densities -------------------------------------------------------------------------------------------------


def divergence(
    velocity: Velocity, x: Float[Array, "batch ..."], t: Float[Array, "batch"]
) -> tuple[Array, Array]:
    """``(v, div v)`` with the exact divergence ``sum_i dv_i / dx_i`` ``[B]``: one derivative for each of the D elements
    of an example, so for D up to about 100."""
    flat = x.reshape(x.shape[0], -1)
    evaluate = lambda flat: velocity(flat.reshape(x.shape), t).reshape(flat.shape)

    def diagonal(i):
        """``dv_i / dx_i`` of every example."""
        tangent = jnp.zeros_like(flat).at[:, i].set(1.0)
        return jax.jvp(evaluate, (flat,), (tangent,))[1][:, i]

    trace = jax.lax.map(diagonal, jnp.arange(flat.shape[1])).sum(axis=0)
    return velocity(x, t), trace


def estimate_divergence(
    velocity: Velocity,
    x: Float[Array, "batch ..."],
    t: Float[Array, "batch"],
    probe: Float[Array, "batch ..."],
) -> tuple[Array, Array]:
    """``(v, e^T (dv/dx) e)``: Hutchinson's estimate of the divergence ``[B]``.

    It is unbiased for a ``probe`` e of independent elements with mean 0 and variance 1, such as random signs.
    """
    value, slope = jax.jvp(lambda x: velocity(x, t), (x,), (probe,))
    return value, (probe * slope).reshape(x.shape[0], -1).sum(axis=1)


def log_density(
    velocity: Velocity,
    x: Float[Array, "batch ..."],
    times: Float[Array, "times"],
    *,
    keys: ExampleKeys | None = None,
    solver: str = "heun",
) -> tuple[Float[Array, "batch"], Float[Array, "batch ..."]]:
    r"""The log-density of data under a flow from standard normal noise, in nats, and the noise of each example.

    .. math::  \log p(x) = \log N(x_0; 0, I) - \int_0^1 \operatorname{div} v(x_t, t)\, dt

    where :math:`x_t` solves the equation from the data at t = 1 back to t = 0 (Chen et al. 2018, arXiv:1806.07366,
    theorem 1). State and integral are solved together. The field has to be that of the model: a guided field has no
    density that was trained.

    Args:
      velocity: ``v(x, t [B])``.
      x: the data ``[B, ...]``.
      times: increasing from 0 to 1, such as `time_grid`.
      keys: one key per example, from which random signs are drawn for Hutchinson's estimate of the divergence (an
        unbiased estimate of the log-density for the solver's steps); None: the exact divergence.
      solver: a key of `SOLVERS`.
    Returns:
      ``(log p(x) [B], noise [B, ...])``.
    Raises:
      ValueError: the times decrease (which is not checked of times that are traced), or as in `solve`.
    """
    if not isinstance(times, jax.core.Tracer) and times[0] > times[-1]:
        raise ValueError(f"times must increase from 0 (noise) to 1 (data), got {times[0]} to {times[-1]}")
    probe = None
    if keys is not None:
        probe = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(keys)

    def augmented(state, t):
        """The velocity, and the rate of change of the integral of the divergence."""
        if probe is None:
            return divergence(velocity, state[0], t)
        return estimate_divergence(velocity, state[0], t, probe)

    start = (x, jnp.zeros(x.shape[0], x.dtype))
    noise, backward_integral = solve(
        augmented, start, times[::-1], solver=solver
    )  # minus the integral from 0 to 1
    flat = noise.reshape(x.shape[0], -1)
    log_prior = -0.5 * jnp.square(flat).sum(axis=1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)
    return log_prior + backward_integral, noise


def bits_per_dimension(
    log_density: Float[Array, "batch"], dimensions: int, *, unit: float = 127.5
) -> Float[Array, "batch"]:
    """``-log p / (D log 2) + log2(unit)``: bits for each of D values, from the log-density in nats of scaled values.

    ``unit`` is the number of steps of the original values in a scaled length of 1: 127.5 for 8-bit pixels scaled to
    [-1, 1]. To be a bound for the discrete values, the density has to be that of uniformly dequantised ones.
    """
    return -log_density / (dimensions * math.log(2)) + math.log2(unit)
