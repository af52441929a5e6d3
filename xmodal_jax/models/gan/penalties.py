"""Gradient penalties of the discriminator, by name: the union `Penalty` is the table.

The gradient is with respect to the discriminator's inputs: augmented images, and features of a frozen network if it
gets those too; with ``before_augmentation`` to the images alone, before both.

To add one, write its terms in `losses.penalties` and a class here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.collectives import AxisName
from xmodal_jax.core.schedules import Number, half_cosine
from xmodal_jax.losses import penalties
from xmodal_jax.models.gan.inputs import ImageInputs
from xmodal_jax.types import ExampleKeys


class PenaltyInputs(NamedTuple):
    """Inputs of a gradient penalty: the critic, real and generated images, and their condition.

    Where the gradient is taken ``before_augmentation``, the images are not augmented and have no features, and the
    critic augments them.
    """

    critic: Callable[..., Float[Array, "batch"]]
    """``critic(inputs, vector=None, keys=None)``: the discriminator's output for `ImageInputs`, one number per example.
    ``vector`` None: that of the batch's condition. ``keys`` None: the random keys of real images."""
    real: ImageInputs
    """The discriminator's inputs of real images."""
    fake: ImageInputs
    """The discriminator's inputs of generated images."""
    vector: Float[Array, "batch dim"] | None
    """The condition's vector; None: there is no condition."""
    fake_keys: ExampleKeys
    """The random keys of generated images."""
    keys: ExampleKeys
    """Random keys of the penalty."""
    present: jax.Array
    """Which examples count, bool ``[B]``."""
    axis_name: AxisName


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options that all penalties have."""

    weight: float = 10.0
    """Weight of the gradient penalty in the discriminator's loss. Usual values are 10 for gp (1 for MMD-GANs) and
    dragan, 5 to 10 for r1 and 1 for ma_gp."""
    final_weight: float | None = None
    """Weight of the penalty at the last step, to which it changes from ``weight`` along half a cosine (R3GAN: a tenth).
    None: the weight is constant."""
    every: int = 1
    """Number n of steps between computations of the penalty, which is multiplied by n in return (lazy regularization).
    1: the penalty is computed at every step."""
    before_augmentation: bool = False
    """Whether the gradient is with respect to images before their augmentation (R3GAN), through the augmentation and a
    frozen network, instead of the discriminator's inputs."""
    needs_condition: ClassVar[bool] = False
    """Whether the penalty uses the gradient with respect to the condition."""

    def __post_init__(self):
        check_at_least(self, 0, "weight", *(["final_weight"] if self.final_weight is not None else []))
        check_at_least(self, 1, "every")

    def weight_at(self, progress: Number) -> Number:
        """The weight after the fraction ``progress`` of the training."""
        if self.final_weight is None:
            return self.weight
        return half_cosine(self.weight, self.final_weight, progress)

    def terms(self, inputs: PenaltyInputs) -> Float[Array, "batch"]:
        """The penalty of each example, without ``weight``."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GradientPenalty(_Options):
    """WGAN-GP: the gradient's norm is pulled towards 1 between real and generated images (MMD-GANs: the gradient of the
    witness function)."""

    name: ClassVar[str] = "gp"

    def terms(self, inputs: PenaltyInputs) -> Float[Array, "batch"]:
        return penalties.gradient_penalty(inputs.critic, inputs.real, inputs.fake, inputs.keys)


@dataclasses.dataclass(frozen=True)
class R1Penalty(_Options):
    """R1: half the squared gradient at real images."""

    name: ClassVar[str] = "r1"

    def terms(self, inputs: PenaltyInputs) -> Float[Array, "batch"]:
        return penalties.squared_gradient(inputs.critic, inputs.real)


@dataclasses.dataclass(frozen=True)
class R2Penalty(_Options):
    """R2: half the squared gradient at generated images."""

    name: ClassVar[str] = "r2"

    def terms(self, inputs: PenaltyInputs) -> Float[Array, "batch"]:
        critic = lambda x: inputs.critic(x, keys=inputs.fake_keys)
        return penalties.squared_gradient(critic, inputs.fake)


@dataclasses.dataclass(frozen=True)
class DraganPenalty(_Options):
    """DRAGAN: the gradient's norm is pulled towards 1 around real images."""

    name: ClassVar[str] = "dragan"

    def terms(self, inputs: PenaltyInputs) -> Float[Array, "batch"]:
        """The penalty ``[B]`` at the critic's real inputs (images and frozen tokens) with noise added to them."""
        # The names of the arrays choose the noise: "seen" is the spelling of earlier versions.
        real = {"image": inputs.real.image, "seen": inputs.real.tokens}
        critic = lambda x: inputs.critic(ImageInputs(x["image"], x["seen"]))
        return penalties.dragan(critic, real, inputs.keys, present=inputs.present, axis_name=inputs.axis_name)


@dataclasses.dataclass(frozen=True)
class MatchingAwarePenalty(_Options):
    """MA-GP (DF-GAN): the gradient by image and condition at real images with their conditions."""

    name: ClassVar[str] = "ma_gp"
    needs_condition: ClassVar[bool] = True

    def terms(self, inputs: PenaltyInputs) -> Float[Array, "batch"]:
        critic = lambda x, vector: inputs.critic(x, vector=vector)
        return penalties.matching_aware_penalty(critic, inputs.real, inputs.vector)


Penalty = GradientPenalty | R1Penalty | R2Penalty | DraganPenalty | MatchingAwarePenalty
"""The penalties, by name."""
