"""Augmentation of the discriminator's inputs, by name: the union `Augmentation` is the table.

Real and generated images are augmented alike, and the generator's gradient passes through the augmentation. To add
one, write its transformation in `preprocess.gan_augment` and a class here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.core.schedules import Number, half_cosine
from xmodal_jax.preprocess.gan_augment import AdaConfig, Images, ada_augment, ada_update, diff_augment
from xmodal_jax.types import ExampleKeys

STILL_COLORS = dict(brightness=0.0, contrast=0.0, hue=0.0, saturation=0.0)


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options that all augmentations have."""

    color: bool = False
    """Whether the augmentation also changes brightness, saturation and contrast. Off by default, because captions name
    colours."""
    cutout: float = 0.0
    """Side of a rectangle that is set to 0, as a fraction of the image's side; 0: no rectangle. Off by default, because
    the rectangle may hide an object of the caption."""
    needs_logits: ClassVar[bool] = False
    """Whether the augmentation depends on the discriminator's logits."""

    def __post_init__(self):
        check_at_least(self, 0, "cutout")

    def initial_variables(self) -> dict[str, Any]:
        """The initial values of the GAN's variables that this augmentation updates, by name."""
        return {}

    def apply(self, images: Images, variables: dict[str, Any], keys: ExampleKeys) -> Images:
        """The augmented images."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DiffAugment(_Options):
    """DiffAugment: random shifts, and optionally colours and cutouts, of every image."""

    name: ClassVar[str] = "diff"
    translation: float = 0.125
    """Largest shift of an image, as a fraction of the side of the image."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 0, "translation")

    def apply(self, images: Images, variables: dict[str, Any], keys: ExampleKeys) -> Images:
        options = dict(color=self.color, translation=self.translation, cutout=self.cutout)
        return diff_augment(images, fold_in_name(keys, "augment"), **options)


@dataclasses.dataclass(frozen=True)
class _RandomlyApplied(_Options):
    """The options of ADA's transformations, each of which is applied to an image with one probability.

    The probability changes in the course of the training; it is one of the GAN's variables.
    """

    def initial_probability(self) -> float:
        """The probability in the first step."""
        return 0.0

    def initial_variables(self) -> dict[str, Any]:
        return {"augment_probability": jnp.float32(self.initial_probability())}

    def apply(self, images: Images, variables: dict[str, Any], keys: ExampleKeys) -> Images:
        """The images, each transformed with the current probability; ``keys``: one random key for each image."""
        # ADA's own defaults also change colours; ``color=False`` sets the strengths of these changes to 0.
        options = AdaConfig(cutout=self.cutout, **({} if self.color else STILL_COLORS))
        return ada_augment(
            images, fold_in_name(keys, "augment"), variables["augment_probability"], config=options
        )

    def next_probability(
        self,
        probability: Float[Array, ""],
        real_logits: Float[Array, "batch"],
        present: Array,
        progress: Number,
        axis_name,
    ) -> Float[Array, ""]:
        """The probability of augmentation in the next step, given that of this step and the logits of its real images.

        ``present [B]``: which examples count. ``progress``: the fraction of the training that is over. ``axis_name``:
        the axis of devices, or None.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AdaptiveAugment(_RandomlyApplied):
    """ADA: transformations whose probability rises when the discriminator becomes too sure of real images."""

    name: ClassVar[str] = "ada"
    needs_logits: ClassVar[bool] = True
    target: float = 0.6
    """Target for the mean sign of the discriminator's logits on real images, from -1 to 1. The probability of
    augmentation rises while the mean sign is above the target, and falls while it is below."""
    ramp: int = 500_000
    """Number of training images in which the probability of augmentation can go from 0 to 1."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "ramp")

    def next_probability(self, probability, real_logits, present, progress, axis_name) -> Float[Array, ""]:
        """It rises if the mean sign of the logits over the global batch is above ``target``, and falls if it is
        below."""
        device_share = collectives.batch_mean(
            jnp.sign(real_logits), present.astype(jnp.float32), axis_name=axis_name
        )
        # The sum of the devices' shares is the mean over the global batch. The probability has no gradient.
        sign_mean = jax.lax.stop_gradient(collectives.psum(device_share, axis_name))
        global_batch_size = len(present) * collectives.axis_size(axis_name)
        return ada_update(
            probability, sign_mean, examples=global_batch_size, target=self.target, ramp=self.ramp
        )


@dataclasses.dataclass(frozen=True)
class ScheduledAugment(_RandomlyApplied):
    """ADA's transformations, whose probability follows a schedule (R3GAN)."""

    name: ClassVar[str] = "scheduled"
    probability: float = 0.0
    """Probability of each transformation in the first step, from 0 to 1."""
    final_probability: float = 0.55
    """Probability at the last step, to which it changes along half a cosine."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("probability", "final_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    def initial_probability(self) -> float:
        return self.probability

    def next_probability(self, probability, real_logits, present, progress, axis_name) -> Float[Array, ""]:
        """The schedule's value at ``progress``."""
        return jnp.float32(half_cosine(self.probability, self.final_probability, progress))


Augmentation = DiffAugment | AdaptiveAugment | ScheduledAugment
"""The augmentations, by name."""
