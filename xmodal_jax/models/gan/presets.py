"""Objectives with the regularisation that their authors add, as changes of a `GANConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xmodal_jax.models.gan.penalties import DraganPenalty, GradientPenalty, R1Penalty

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
    "jsd": dict(objective="jsd"),
    "mmd_rbf": dict(objective="mmd_rbf", penalty=GradientPenalty(weight=1.0)),
    "mmd_rq": dict(objective="mmd_rq", penalty=GradientPenalty(weight=1.0)),
}
"""By name, the fields of `GANConfig` that a preset sets."""
