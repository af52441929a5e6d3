"""How a trained flow generates: solvers of its equation with fixed or adaptive steps, and large steps of mean velocity.

Each sampler is a configuration with the method ``sample``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.examples import per_example, select_examples
from xmodal_jax.core.parts import Basic
from xmodal_jax.probability import ode


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The options that all samplers have."""

    guidance: Basic[float] = 1.0
    """Strength of classifier-free guidance: 1 is the model of the condition, above 1 more than it; each step then costs
    twice as much."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The times from and to which there is guidance. Near the noise it shifts colours and brightness toward extremes,
    which a later start prevents (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""
    uses_mean: ClassVar[bool] = False
    """Whether the sampler needs a network that predicts mean velocities."""

    def __post_init__(self):
        """Checks the interval."""
        start, end = self.guidance_interval
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"guidance_interval needs two times with 0 <= start < end <= 1, got {self.guidance_interval}"
            )

    def guidance_at(self, t: Float[Array, "batch"]) -> Float[Array, "batch"]:
        """The strength of guidance at the times t, which is 1 outside of the interval."""
        start, end = self.guidance_interval
        return jnp.where((t >= start) & (t <= end), self.guidance, 1.0)


@dataclasses.dataclass(frozen=True)
class _FixedSteps(SamplerConfig):
    """A solver with fixed steps."""

    steps: Basic[int] = 25
    """Number of steps from noise to data."""
    shift: float = 1.0
    """Above 1 there are more steps near the noise, which large images need."""
    solver: ClassVar[str] = ""
    """The key of `probability.ode.SOLVERS`."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "steps")
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, got {self.shift}")

    def sample(
        self,
        velocity: ode.Velocity,
        z: Array,
        *,
        start: float | Array = 0.0,
        correct: Callable[[Array, Array], Array] | None = None,
    ) -> Array:
        """The data at t = 1, from the states ``z [B, ...]`` at the time ``start``.

        Args:
          velocity: ``v(z, t [B])``.
          z: the states.
          start: the time of z, one for all or one per example.
          correct: ``correct(z, t [B])`` replaces the states after every step; None: nothing does.
        """
        grid = ode.time_grid(self.steps, shift=self.shift)
        times = ode.times_from(start_times(start, z.shape[0]), grid)
        return ode.solve(velocity, z, times, solver=self.solver, correct=correct)


@dataclasses.dataclass(frozen=True)
class EulerSampler(_FixedSteps):
    """Euler's method: one evaluation of the network per step."""

    name: ClassVar[str] = "euler"
    solver: ClassVar[str] = "euler"


@dataclasses.dataclass(frozen=True)
class MidpointSampler(_FixedSteps):
    """The midpoint method: two evaluations of the network per step."""

    name: ClassVar[str] = "midpoint"
    solver: ClassVar[str] = "midpoint"


@dataclasses.dataclass(frozen=True)
class HeunSampler(_FixedSteps):
    """Heun's method: two evaluations of the network per step."""

    name: ClassVar[str] = "heun"
    solver: ClassVar[str] = "heun"


@dataclasses.dataclass(frozen=True)
class AdaptiveSampler(SamplerConfig):
    """Dormand and Prince's method, with step sizes chosen for each example."""

    name: ClassVar[str] = "adaptive"
    tolerance: Basic[float] = 1e-3
    """Relative and absolute tolerance of the error of a step."""
    max_steps: int = 200
    """Largest number of steps, each of seven evaluations of the network. An example that needs more is NaN."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "max_steps")
        if self.tolerance <= 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}")

    def sample(self, velocity, z, *, start=0.0, correct=None) -> Array:
        """As `EulerSampler.sample`. Raises ValueError: ``correct`` is given, which only samplers with fixed steps
        take."""
        if correct is not None:
            raise ValueError(
                "the sampler adaptive cannot keep parts of the data known: choose one with fixed steps, such as heun"
            )
        options = dict(rtol=self.tolerance, atol=self.tolerance, max_steps=self.max_steps)
        solution = ode.solve_adaptive(velocity, z, start, 1.0, **options)
        return select_examples(solution.finished, solution.x, jnp.full_like(z, jnp.nan))


@dataclasses.dataclass(frozen=True)
class JumpSampler(SamplerConfig):
    """Steps of mean velocity, for the objectives mean_flow and shortcut: one step generates.

    The objective shortcut trains only steps whose number is a power of 2, from noise on.
    """

    name: ClassVar[str] = "jump"
    uses_mean: ClassVar[bool] = True
    steps: Basic[int] = 1
    """Number of steps from noise to data."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "steps")

    def sample(self, mean_velocity, z, *, start=0.0, correct=None) -> Array:
        """As `EulerSampler.sample`, with ``mean_velocity(z, t, r)``, the mean velocity from t to r."""
        grid = jnp.linspace(0.0, 1.0, self.steps + 1)
        times = ode.times_from(start_times(start, z.shape[0]), grid)

        def body(z, interval):
            t, r = interval
            z = z + per_example(r - t, z) * mean_velocity(z, t, r)
            return z if correct is None else correct(z, r), None

        return jax.lax.scan(body, z, (times[:-1], times[1:]))[0]


def start_times(start: float | Array, count: int) -> Float[Array, "batch"]:
    """The time ``start`` of each of ``count`` examples, one for all or ``[B]``.

    Raises:
      ValueError: it has another shape, or lies outside [0, 1] (which is not checked of values that are traced).
    """
    if jnp.shape(start) not in ((), (count,)):
        raise ValueError(
            f"start must be one time, or one for each of {count} examples, got {jnp.shape(start)}"
        )
    if not isinstance(start, jax.core.Tracer):
        times = np.asarray(start, np.float32)
        if not ((times >= 0.0) & (times <= 1.0)).all():
            raise ValueError(f"start must lie in [0, 1], from noise (0) to data (1), got {start}")
    return jnp.broadcast_to(jnp.asarray(start, jnp.float32), (count,))


Sampler = HeunSampler | EulerSampler | MidpointSampler | AdaptiveSampler | JumpSampler
"""The samplers, by name."""
