"""The objectives of a flow: flow matching, and two that train networks for few large steps.

Each is a configuration whose ``terms`` are the losses of the examples of a batch. A network of all of them is a
function ``(z, t, r) -> velocity``: r is None for flow matching, else the end of the step whose mean velocity it
predicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.examples import per_example
from xmodal_jax.core.parts import Basic
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.losses import flow
from xmodal_jax.probability.ode import shift_times
from xmodal_jax.types import ExampleKeys

Network = Callable[[Array, Array, Array | None], Array]
"""``network(z, t, r) -> velocity`` for the parameters, conditions and dropout keys of a batch."""


@dataclasses.dataclass(frozen=True)
class _Objective:
    """The options that all objectives have: the distribution of the times of training."""

    times: Literal["logit_normal", "uniform"] = "logit_normal"
    """Distribution of the times of training: logit-normal, which favours the middle of the way, or uniform."""
    time_mean: float = 0.0
    """Mean of the logit of the times (logit_normal): below 0 there are more times near the noise, where the condition
    has to say what is generated."""
    time_std: float = 1.0
    """Standard deviation of the logit of the times (logit_normal)."""
    time_shift: float = 1.0
    """Moves the times toward the noise if above 1: t becomes t / (t + shift (1 - t)). The square root of the ratio of
    the numbers of pixels carries settings from one resolution to another."""

    def __post_init__(self):
        if self.time_std <= 0 or self.time_shift <= 0:
            raise ValueError(
                f"time_std and time_shift must be positive, got {self.time_std} and {self.time_shift}"
            )

    def sample_times(self, keys: ExampleKeys) -> Float[Array, "batch"]:
        """One time for each key."""
        if self.times == "uniform":
            return shift_times(flow.uniform_times(keys), self.time_shift)
        return shift_times(flow.logit_normal_times(keys, self.time_mean, self.time_std), self.time_shift)


@dataclasses.dataclass(frozen=True)
class FlowMatching(_Objective):
    """Regression of the velocity (Lipman et al. 2023)."""

    name: ClassVar[str] = "flow_matching"
    """Name by which the command line chooses the part."""
    predicts_mean: ClassVar[bool] = False
    """Whether the network predicts the mean velocity of a step, so that one step can generate."""

    prediction: Basic[Literal["velocity", "data"]] = "velocity"
    """What the network's output is: the velocity, or the data, from which the velocity is computed. Data suit large
    patches; the loss is that of the velocity in both cases."""

    def terms(self, network: Network, x: Array, noise: Array, keys: ExampleKeys) -> Float[Array, "batch"]:
        """The squared error of the velocity of each example at a random time."""
        t = self.sample_times(fold_in_name(keys, "time"))
        z = flow.interpolate(x, noise, t)
        output = network(z, t, None)
        if self.prediction == "data":  # the target is divided by the same 1 - t, which has a lower bound
            return flow.squared_error(flow.data_to_velocity(output, z, t), flow.data_to_velocity(x, z, t))
        return flow.velocity_loss(output, x, noise)

    def velocity(self, network: Network, z: Array, t: Array) -> Array:
        """The velocity at the states z."""
        output = network(z, t, None)
        return flow.data_to_velocity(output, z, t) if self.prediction == "data" else output


@dataclasses.dataclass(frozen=True)
class _MeanVelocity(_Objective):
    """The options of objectives whose network predicts mean velocities ``u(z, t, r)`` from t to r."""

    predicts_mean: ClassVar[bool] = True

    def velocity(self, network: Network, z: Array, t: Array) -> Array:
        """The velocity at the states z: the mean velocity of a step of length 0."""
        return network(z, t, t)


@dataclasses.dataclass(frozen=True)
class MeanFlow(_MeanVelocity):
    """Regression of the mean velocity of a step by its identity with the velocity (Geng et al. 2025)."""

    name: ClassVar[str] = "mean_flow"

    step_fraction: Basic[float] = 0.25
    """Fraction of the examples whose step has a length above 0; the others train the velocity."""
    power: float = 1.0
    """How much less examples with a large error count: the error is divided by itself to this power. 0: squared
    error."""
    constant: float = 1e-3
    """Added to the error before the power is taken."""
    tangent: Literal["predicted", "conditional"] = "predicted"
    """Velocity along which the mean velocity is differentiated: the network's own (predicted), which needs one more
    evaluation and makes the target less noisy, or data minus noise (conditional)."""

    def __post_init__(self):
        """Checks the fraction and the weighting."""
        super().__post_init__()
        check_at_least(self, 0, "power", "constant")
        if not 0 < self.step_fraction <= 1:
            raise ValueError(f"step_fraction must lie in (0, 1], got {self.step_fraction}")

    def terms(self, network: Network, x: Array, noise: Array, keys: ExampleKeys) -> Float[Array, "batch"]:
        """The weighted squared error of the mean velocity of each example between two random times."""
        first = self.sample_times(fold_in_name(keys, "time"))
        second = self.sample_times(fold_in_name(keys, "end"))
        choice = jax.vmap(jax.random.uniform)(fold_in_name(keys, "step"))
        t = jnp.minimum(first, second)
        r = jnp.where(choice < self.step_fraction, jnp.maximum(first, second), t)
        z = flow.interpolate(x, noise, t)
        tangent = jax.lax.stop_gradient(network(z, t, t)) if self.tangent == "predicted" else None
        prediction, target = flow.mean_velocity_target(network, z, t, r, x - noise, tangent)
        error = flow.squared_error(prediction, target)
        return flow.adaptive_weight(error, power=self.power, constant=self.constant)


@dataclasses.dataclass(frozen=True)
class Shortcut(_MeanVelocity):
    """Steps whose lengths are powers of 1/2, each trained to be two of half the length (Frans et al. 2025)."""

    name: ClassVar[str] = "shortcut"

    levels: int = 6
    """The smallest step has the length 1 / 2^levels; it is the velocity."""
    step_fraction: Basic[float] = 0.25
    """Fraction of the examples that train a step which is two smaller ones; the others train the velocity."""

    def __post_init__(self):
        """Checks the number of levels and the fraction."""
        super().__post_init__()
        check_at_least(self, 1, "levels")
        if not 0 < self.step_fraction <= 1:
            raise ValueError(f"step_fraction must lie in (0, 1], got {self.step_fraction}")

    def terms(self, network: Network, x: Array, noise: Array, keys: ExampleKeys) -> Float[Array, "batch"]:
        """The squared error of each example: of the velocity, or of the mean velocity of a step.

        A step has one of the lengths ``2^-k``, k from 0 to levels - 1, and starts at a multiple of its length.
        """
        exponents = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.levels))(
            fold_in_name(keys, "level")
        )
        length = 0.5 ** exponents.astype(jnp.float32)
        start = jnp.floor(jax.vmap(jax.random.uniform)(fold_in_name(keys, "start")) / length) * length
        choice = jax.vmap(jax.random.uniform)(fold_in_name(keys, "step"))
        large = choice < self.step_fraction
        t = jnp.where(large, start, self.sample_times(fold_in_name(keys, "time")))
        z = flow.interpolate(x, noise, t)
        # The targets of all examples are computed, because examples of both kinds are anywhere in the batch.
        half_step = 0.5 * length
        smallest = exponents == self.levels - 1  # half of it is the velocity
        step_to = lambda z, t, r: network(z, t, jnp.where(smallest, t, r))
        two_steps = flow.shortcut_target(step_to, z, t, half_step)
        target = jnp.where(per_example(large, x), two_steps, x - noise)
        prediction = network(z, t, jnp.where(large, t + length, t))
        return flow.squared_error(prediction, target)


FlowObjective = FlowMatching | MeanFlow | Shortcut
"""The objectives, by name."""
