"""Presets of GANs: objectives with the regularisation of their authors (R3GAN and StackGAN with their networks too), as
changes of a `GANConfig` and of the optimizers.

::

    config = with_preset(GANConfig(), "r3gan")
    optimizer = dataclasses.replace(optimizer, **OPTIMIZER_PRESETS.get("r3gan", {}))  # of each network
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.penalties import DraganPenalty, GradientPenalty, R1Penalty, R2Penalty
from xmodal_jax.nets.encoders import R3GANEncoderConfig
from xmodal_jax.nets.gan import DCGANGeneratorConfig, R3GANGeneratorConfig, StackGANGeneratorConfig

_R3GAN_PENALTY = dict(weight=0.5, final_weight=0.05, before_augmentation=True)
"""Options of both penalties. Their weight is gamma of Huang et al. 2024 for 32 x 32 pixels (ImageNet)."""
_RELATIVISTIC_R1_R2 = dict(
    objective="relativistic",
    penalty=R1Penalty(**_R3GAN_PENALTY),
    second_penalty=R2Penalty(**_R3GAN_PENALTY),
)

OBJECTIVE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "minimax": dict(objective="minimax"),
    "non_saturating": dict(objective="non_saturating"),
    "non_saturating_r1": dict(objective="non_saturating", penalty=R1Penalty(weight=1.0)),
    "non_saturating_dragan": dict(objective="non_saturating", penalty=DraganPenalty()),
    "lsgan": dict(objective="lsgan"),
    "hinge": dict(objective="hinge"),
    "hinge_spectral": dict(objective="hinge", spectral=True),
    "hinge_lecam": dict(objective="hinge", lecam=0.3),
    "wgan_clip": dict(objective="wgan", clip=0.01),
    "wgan_gp": dict(objective="wgan", penalty=GradientPenalty()),
    "relativistic_average": dict(objective="relativistic_average"),
    "relativistic_r1_r2": _RELATIVISTIC_R1_R2,
    "r3gan": dict(
        _RELATIVISTIC_R1_R2,
        generator=R3GANGeneratorConfig(width=32),
        discriminator=R3GANEncoderConfig(width=32),
        condition=dict(head="linear"),
    ),
    "stackgan": dict(
        objective="non_saturating",
        generator=StackGANGeneratorConfig(
            scale=2,  # small images, such as those of 28 pixels, have no quarter that can be halved again
            skip=False,
            first=DCGANGeneratorConfig(width=32, conditioning=64, conditioning_weight=2.0),
        ),
    ),
    "jsd": dict(objective="jsd"),
    "mmd_rbf": dict(objective="mmd_rbf", penalty=GradientPenalty(weight=1.0)),
    "mmd_rq": dict(objective="mmd_rq", penalty=GradientPenalty(weight=1.0)),
}
"""The fields of `GANConfig` that a preset sets, by its name. Where it changes some options of a part only, the value is
a mapping of these options."""

OPTIMIZER_PRESETS: Mapping[str, Mapping[str, Any]] = {"r3gan": dict(learning_rate=1e-3)}
"""By name of a preset, the options that it sets of the optimizers of both networks. R3GAN's residual networks without
normalization learn too slowly at DCGAN's learning rates."""


def with_preset(config: GANConfig, name: str) -> GANConfig:
    """``config`` with the objective, the regularisation and the networks of a preset of `OBJECTIVE_PRESETS`; without a
    condition there is no conditioning augmentation.

    Raises:
      ValueError: there is no preset of this name.
    """
    if name not in OBJECTIVE_PRESETS:
        raise ValueError(f"{name!r} is no preset: choose of {', '.join(OBJECTIVE_PRESETS)}")
    changes = {
        field: dataclasses.replace(getattr(config, field), **value) if isinstance(value, Mapping) else value
        for field, value in OBJECTIVE_PRESETS[name].items()
    }
    if "generator" in changes and config.condition.name == "none":
        changes["generator"] = changes["generator"].without_conditioning()
    return dataclasses.replace(config, **changes)
