"""What the configurations of all VAEs share, of one or several modalities."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array

from xmodal_jax.losses.elbo import kl_warmup
from xmodal_jax.models.vae.modalities import ModalityConfigs
from xmodal_jax.nets.vae import SCALES
from xmodal_jax.types import Batch


def check_at_least(config: Any, least: int, *options: str) -> None:
    """Raises ValueError for the first option whose value is below ``least``."""
    for option in options:
        if getattr(config, option) < least:
            raise ValueError(f"{option} must be at least {least}, got {getattr(config, option)}")


def check_not_negative(config: Any, *options: str) -> None:
    """Raises ValueError for the first option whose value is negative."""
    for option in options:
        if getattr(config, option) < 0:
            raise ValueError(f"{option} must not be negative, got {getattr(config, option)}")


def check_one_of(config: Any, **allowed: tuple[str, ...]) -> None:
    """Raises ValueError for the first option whose value is none of those allowed."""
    for option, values in allowed.items():
        if getattr(config, option) not in values:
            raise ValueError(f"{option} must be one of {values}, got {getattr(config, option)!r}")


@dataclasses.dataclass(frozen=True)
class ModelConfig(ModalityConfigs):
    """What all VAEs have. A model is a subclass with a ``name`` and the options that only some models have."""

    name: ClassVar[str]

    latent: int = 64
    """Dimensions of the latent."""
    hidden: int = 256
    """Units of the layer between an encoder and its posterior, and of all smaller networks."""

    def __post_init__(self):
        check_at_least(self, 1, "latent", "hidden")


@dataclasses.dataclass(frozen=True)
class VariationalConfig(ModelConfig):
    """A model with a divergence of posteriors from a prior, whose weight can be annealed from 0."""

    posterior_scale: str = "exp"
    """How a network's output becomes the scale of a posterior: "exp", "softplus" or "softmax"."""
    warmup: int = 0
    """Steps over which the weight of the divergence rises from 0; 0: it is constant."""
    cycle: int = 0
    """Steps after which the weight starts from 0 again; 0: never."""
    ramp: float = 0.5
    """Fraction of a cycle in which the weight rises."""

    def __post_init__(self):
        super().__post_init__()
        check_one_of(self, posterior_scale=SCALES)
        check_not_negative(self, "warmup", "cycle")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp must lie in (0, 1], got {self.ramp}")

    def annealed_weight(self, weight: float, batch: Batch) -> float | Array:
        """A divergence's ``weight`` after KL annealing (warm-up, cycles) at the training step ``batch["step"]``.

        Outside of training a batch has no step, and ``weight`` is returned.
        """
        if "step" not in batch:
            return weight
        return weight * kl_warmup(batch["step"], warmup=self.warmup, cycle=self.cycle, ramp=self.ramp)
