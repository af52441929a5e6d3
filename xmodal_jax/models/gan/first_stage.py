"""The first stage of a GAN whose generator refines images (StackGAN)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.types import Params


class FirstStage(NamedTuple):
    """A trained GAN of smaller images, whose generator is frozen in the training of the second stage.

    Both stages have the same conditions: tokens of captions by the same tokenizer, or the same classes.
    """

    config: GANConfig
    shape: tuple[int, int, int]
    """Height, width and channels of its images."""
    params: Params | None = None
    """The parameters that its `types.GAN.predict` takes, without those of the discriminator; None: those of a trained
    second stage, which hold them."""
    by_seed: bool = False
    """Whether each of several seeds that train at once has a first stage of its own: the arrays of ``params`` then have
    a leading axis of seeds."""


def first_stage_config(config: GANConfig) -> GANConfig:
    """The configuration by which the first stage of ``config`` is trained: that of the second, with the generator
    ``config.generator.first`` and without frozen features."""
    return dataclasses.replace(config, generator=config.generator.first, features=None)
