"""What the configurations of all VAEs share, of one or several modalities."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array

from xmodal_jax.core.checks import check_at_least, check_one_of
from xmodal_jax.losses.elbo import kl_warmup
from xmodal_jax.models.vae.modalities import ModalityConfigs
from xmodal_jax.nets.vae import SCALES
from xmodal_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class ModelConfig(ModalityConfigs):
    """What all VAEs have. A model is a subclass with a ``name`` and the options that only some models have."""

    name: ClassVar[str]
    """Name by which the command line chooses the part."""
    has_prior: ClassVar[bool] = True
    """Whether training brings the latents close to a prior that can be sampled, so that decoded samples of it resemble
    the data."""

    latent: int = 64
    """Dimensions of the latent variable."""
    hidden: int = 256
    """Units of the hidden layer between an encoder and its posterior, and of the hidden layers of the networks that
    only some models have: the critic, a learned prior, the joint encoder, flows, and the networks between the levels of
    a hierarchy of latents."""

    def __post_init__(self):
        check_at_least(self, 1, "latent", "hidden")

    def divergence_weight(self, batch: Batch) -> float | Array:
        """Weight of the divergence in the loss of a batch, the argument ``beta`` of the model's objective; 0 here, as
        the loss has no divergence."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class VariationalConfig(ModelConfig):
    """A model with a divergence of posteriors from a prior, whose weight can be annealed from 0."""

    beta: ClassVar[float] = 1.0
    """Weight of the divergence after annealing; an option of most models."""

    posterior_scale: str = "exp"
    """How an encoder's output r becomes the scale s of a posterior: "exp" (s^2 = exp(r)), "softplus" (s = softplus(r)),
    or "softmax" (s = D softmax(r) over the D latent dimensions, so that the scales of an example have mean 1)."""
    warmup: int = 0
    """Steps over which the weight of the divergence rises from 0 to its full value; 0: the weight is constant."""
    cycle: int = 0
    """Length in steps of a cyclical schedule, in which the weight of the divergence starts from 0 in each cycle; 0: no
    cycles."""
    ramp: float = 0.5
    """Fraction of each cycle of the cyclical schedule in which the weight of the divergence rises; above 0, at most
    1."""

    def __post_init__(self):
        """Checks the posterior's scale and the schedule of the divergence's weight."""
        super().__post_init__()
        check_one_of(self, posterior_scale=SCALES)
        check_at_least(self, 0, "warmup", "cycle")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp must lie in (0, 1], got {self.ramp}")

    def divergence_weight(self, batch: Batch) -> float | Array:
        """The weight ``beta`` of the divergence after KL annealing (warm-up, cycles) at the batch's training step,
        ``[B]``.

        In training a batch holds the step as ``batch["step"]``, one number for each example. Outside of training it has
        none, and the weight is ``beta``.
        """
        if "step" not in batch:
            return self.beta
        return self.beta * kl_warmup(batch["step"], warmup=self.warmup, cycle=self.cycle, ramp=self.ramp)
