"""The adversarial loss of an objective's name, on the outputs ``[B, outputs]`` of the critic.

The objectives are those of `losses.adversarial`: on logits (`LogitLoss`), or on features (`FeatureLoss`, MMD-GANs).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.collectives import AxisName
from xmodal_jax.losses.adversarial import (
    FEATURE_OBJECTIVES,
    OBJECTIVES,
    Adversarial,
    FeatureObjective,
    matching_aware,
)

ObjectiveName = Literal[(*OBJECTIVES, *FEATURE_OBJECTIVES)]
"""The names of all objectives."""

Outputs = Float[Array, "batch outputs"]
Share = Float[Array, ""]
"""This device's share of a mean over the global batch."""


class Mismatched(NamedTuple):
    """The critic's outputs for real images with the condition of another example."""

    outputs: Outputs
    present: Bool[Array, "batch"]
    """``bool [B]``: whether the mismatched condition is present and differs from the condition of the image."""


@dataclasses.dataclass(frozen=True)
class LogitLoss:
    """An objective on the logit of each example."""

    objective: Adversarial
    outputs: ClassVar[int] = 1
    has_logits: ClassVar[bool] = True

    def discriminator(
        self, real: Outputs, fake: Outputs, mismatched: Mismatched | None, present: Array, axis_name: AxisName
    ) -> Share:
        """The discriminator's loss, from the critic's logits ``[B, 1]`` for real and generated images; with
        ``mismatched`` (real images with wrong conditions), the loss of GAN-CLS, in which these also count as fake.

        ``present [B]``: which examples count.
        """
        options = dict(present=present, axis_name=axis_name)
        # ``terms [B]``: the loss of each example.
        if mismatched is None:
            terms = self.objective.discriminator(real[:, 0], fake[:, 0], **options)
        else:
            discriminator_loss, mismatched_logits = matching_aware(self.objective), mismatched.outputs[:, 0]
            terms = discriminator_loss(
                real[:, 0], fake[:, 0], mismatched_logits, mismatched_present=mismatched.present, **options
            )
        return collectives.batch_mean(terms, present.astype(jnp.float32), axis_name=axis_name)

    def generator(self, fake: Outputs, real: Outputs, present: Array, axis_name: AxisName) -> Share:
        """The generator's loss, from the critic's logits ``[B, 1]`` for generated and real images (which only
        relativistic objectives use)."""
        terms = self.objective.generator(fake[:, 0], real[:, 0], present=present, axis_name=axis_name)
        return collectives.batch_mean(terms, present.astype(jnp.float32), axis_name=axis_name)

    def critic_value(
        self, outputs: Outputs, real: Outputs, fake: Outputs, present: Array, axis_name: AxisName
    ) -> Float[Array, "batch"]:
        """The scalar whose gradient is penalised, of the critic's ``outputs`` at some inputs."""
        return outputs[:, 0]


@dataclasses.dataclass(frozen=True)
class FeatureLoss:
    """An objective on the features of all examples."""

    objective: FeatureObjective
    outputs: ClassVar[int] = 16
    """Features (Bińkowski et al. 2018, arXiv:1801.01401, section 5)."""
    has_logits: ClassVar[bool] = False

    def discriminator(
        self, real: Outputs, fake: Outputs, mismatched: Mismatched | None, present: Array, axis_name: AxisName
    ) -> Share:
        """The discriminator's loss, from the critic's features ``[B, outputs]``; with ``mismatched``, the mean of this
        loss and the loss of real against mismatched features (as in GAN-CLS)."""
        fake_loss = self.objective.discriminator(real, fake, present=present, axis_name=axis_name)
        if mismatched is None:
            return fake_loss
        mismatched_loss = self.objective.discriminator(
            real, mismatched.outputs, present=mismatched.present, axis_name=axis_name
        )
        return 0.5 * (fake_loss + mismatched_loss)

    def generator(self, fake: Outputs, real: Outputs, present: Array, axis_name: AxisName) -> Share:
        """The generator's loss, from the critic's features ``[B, outputs]`` for generated and real images."""
        return self.objective.generator(fake, real, present=present, axis_name=axis_name)

    def critic_value(
        self, outputs: Outputs, real: Outputs, fake: Outputs, present: Array, axis_name: AxisName
    ) -> Float[Array, "batch"]:
        """The scalar whose gradient is penalised: the witness function at the ``outputs`` of some inputs."""
        return self.objective.witness(outputs, real, fake, present=present, axis_name=axis_name)


def adversarial_loss(name: str) -> LogitLoss | FeatureLoss:
    """The loss of an objective, by its name.

    Raises:
      ValueError: there is no such objective.
    """
    if name in OBJECTIVES:
        return LogitLoss(OBJECTIVES[name])
    if name in FEATURE_OBJECTIVES:
        return FeatureLoss(FEATURE_OBJECTIVES[name])
    known = ", ".join((*OBJECTIVES, *FEATURE_OBJECTIVES))
    raise ValueError(f"objective must be one of {known}, got {name!r}")
