"""The autoencoders of one modality: a configuration class for each, and their table `AutoencoderModel`.

A class holds the options of its model and defines how it differs from the others: its objective, and whether the
encoder is stochastic, conditional on the label, or trained against a critic. A new model is an objective in
`losses.autoencoder` and a class here.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array

from xmodal_jax.core.checks import check_at_least, check_one_of
from xmodal_jax.losses import autoencoder as objectives
from xmodal_jax.losses.autoencoder import KERNELS
from xmodal_jax.losses.elbo import ESTIMATORS
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms, Weight
from xmodal_jax.models.vae.modalities import ModalityConfig
from xmodal_jax.models.vae.model_config import (
    ModelConfig,
    VariationalConfig,
)
from xmodal_jax.nets.vae import SCALES
from xmodal_jax.preprocess.corruption import add_noise, mask_elements
from xmodal_jax.types import ExampleKeys

CORRUPTIONS = ("gaussian", "masking")


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(ModelConfig):
    """The options and functions that all autoencoders of one modality have."""

    stochastic: ClassVar[bool] = True
    """Whether the encoder outputs a normal distribution; if not, it outputs a point."""
    conditional: ClassVar[bool] = False
    """Whether encoder and decoder get the label."""
    learn_prior: ClassVar[bool] = False
    """Whether the prior p(z | label) is learned, by a network; else it is N(0, 1)."""
    has_likelihood: ClassVar[bool] = False
    """Whether the model has a posterior density q(z | x), with which ``log p(x)`` can be estimated."""
    critic_objective: ClassVar[str | None] = None
    """Objective of autoencoder and critic, a key of `losses.adversarial.OBJECTIVES`; None: the model has no critic."""
    free_bits: ClassVar[float] = 0.0
    """Nats that the divergence of each latent dimension from the prior may have without cost (free bits); 0: all of it
    counts."""

    def objective(self, inputs: ObjectiveInputs, beta: Weight) -> ObjectiveTerms:
        """The loss, without the adversarial term of a model with a critic. ``beta``: the annealed weight of the
        divergence (`divergence_weight`); unused here, where the loss is the reconstruction alone."""
        return objectives.reconstruction(inputs)

    def corrupt(self, modality: ModalityConfig, x: Array, keys: ExampleKeys) -> Array:
        """The encoder's input in training, from the clean one."""
        return x

    def check_modality(self, modality: ModalityConfig) -> None:
        """Raises ValueError if the model does not fit this kind of data."""


@dataclasses.dataclass(frozen=True)
class DeterministicConfig(AutoencoderConfig):
    """An autoencoder whose encoder returns points."""

    stochastic: ClassVar[bool] = False
    has_prior: ClassVar[bool] = False
    posterior_scale: ClassVar[str] = "exp"
    """Unused, since the encoder outputs no scale."""


@dataclasses.dataclass(frozen=True)
class AEConfig(DeterministicConfig):
    """Autoencoder."""

    name: ClassVar[str] = "ae"


@dataclasses.dataclass(frozen=True)
class DAEConfig(DeterministicConfig):
    """Denoising autoencoder (Vincent et al. 2008, ICML)."""

    name: ClassVar[str] = "dae"

    corruption: str = "gaussian"
    """How the encoder's input is corrupted in training: "gaussian" adds noise; "masking" replaces elements of images
    and audio by 0 (mid-grey in images), tokens by padding, and labels by -1 (missing)."""
    noise: float = 0.3
    """Strength of the corruption: for "gaussian" the standard deviation of the noise (pixels lie in [-1, 1]), for
    "masking" the probability that an element is replaced."""

    def __post_init__(self):
        """Checks the corruption and its strength."""
        super().__post_init__()
        check_one_of(self, corruption=CORRUPTIONS)
        check_at_least(self, 0, "noise")
        if self.corruption == "masking" and self.noise >= 1:
            raise ValueError(f"noise is the probability of masking and must be below 1, got {self.noise}")

    def corrupt(self, modality: ModalityConfig, x: Array, keys: ExampleKeys) -> Array:
        """The encoder's input ``x [B, ...]`` with noise added or with elements replaced, see ``corruption``.

        ``modality``: its configuration, which has the value of a masked element. ``keys``: one for each example.
        """
        if not self.noise:
            return x
        if self.corruption == "gaussian":
            return add_noise(x, keys, self.noise)
        return mask_elements(x, keys, self.noise, modality.mask_value)

    def check_modality(self, modality: ModalityConfig) -> None:
        if self.corruption == "gaussian" and not modality.real_valued:
            raise ValueError(f"gaussian noise on {modality.kind}: set corruption to 'masking'")


@dataclasses.dataclass(frozen=True)
class VAEConfig(AutoencoderConfig, VariationalConfig):
    """Variational autoencoder (Kingma and Welling 2014)."""

    name: ClassVar[str] = "vae"
    has_likelihood: ClassVar[bool] = True
    beta: ClassVar[float] = 1.0
    """Weight of the divergence of the posterior from the prior."""

    samples: int = 1
    """Number of latent samples of each example in a step; the reconstruction loss is averaged over them."""
    free_bits: float = 0.0
    """Nats that the divergence of each latent dimension from the prior may have without cost (free bits); 0: all of it
    counts."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "samples")
        check_at_least(self, 0, "beta", "free_bits")

    def objective(self, inputs: ObjectiveInputs, beta: Weight) -> ObjectiveTerms:
        return objectives.elbo(inputs, samples=self.samples, beta=beta)


@dataclasses.dataclass(frozen=True)
class BetaVAEConfig(VAEConfig):
    """Beta-VAE (Higgins et al. 2017)."""

    name: ClassVar[str] = "beta_vae"

    beta: float = 4.0
    """Weight of the divergence of the posterior from the prior."""


@dataclasses.dataclass(frozen=True)
class CVAEConfig(VAEConfig):
    """Conditional VAE, of data given the label (Sohn et al. 2015)."""

    name: ClassVar[str] = "cvae"
    conditional: ClassVar[bool] = True

    beta: float = 1.0
    """Weight of the divergence of the posterior from the prior."""
    learn_prior: bool = False
    """Whether the prior p(z | label) is learned, by a network; else it is N(0, 1)."""


@dataclasses.dataclass(frozen=True)
class IWAEConfig(AutoencoderConfig, VariationalConfig):
    """Importance-weighted autoencoder (Burda et al. 2016)."""

    name: ClassVar[str] = "iwae"
    has_likelihood: ClassVar[bool] = True

    samples: int = 5
    """Number K of importance samples of each example's bound."""
    estimator: str = "iwae"
    """Estimator of the gradient of the importance-weighted bound: "iwae", or "dreg" (doubly reparametrized)."""

    def __post_init__(self):
        super().__post_init__()
        check_one_of(self, estimator=ESTIMATORS)
        check_at_least(self, 1, "samples")

    def objective(self, inputs: ObjectiveInputs, beta: Weight) -> ObjectiveTerms:
        return objectives.importance_weighted(
            inputs, samples=self.samples, estimator=self.estimator, beta=beta
        )


@dataclasses.dataclass(frozen=True)
class WAEMMDConfig(AutoencoderConfig, VariationalConfig):
    """Wasserstein autoencoder with the maximum mean discrepancy (Tolstikhin et al. 2018)."""

    name: ClassVar[str] = "wae_mmd"

    beta: float = 10.0
    """Weight of the maximum mean discrepancy between latents and samples of the prior."""
    kernel: str = "imq"
    """Kernel of the maximum mean discrepancy: "imq" (inverse multiquadratic), "rbf" (sum of Gaussians), "rq" (rational
    quadratic) or "distance", ``k(x, y) = ||x|| + ||y|| - ||x - y||`` (energy distance)."""
    stochastic: bool = False
    """Whether the encoder outputs a normal distribution; if not, it outputs a point."""

    def __post_init__(self):
        super().__post_init__()
        check_one_of(self, kernel=tuple(KERNELS))
        check_at_least(self, 0, "beta")

    def objective(self, inputs: ObjectiveInputs, beta: Weight) -> ObjectiveTerms:
        return objectives.mmd_to_prior(inputs, kernel=self.kernel, beta=beta)


@dataclasses.dataclass(frozen=True)
class AdversarialConfig(AutoencoderConfig):
    """An autoencoder whose latents a critic distinguishes from samples of the prior."""

    beta: float = 1.0
    """Weight of the adversarial loss in the autoencoder's loss; a critic computes it from latents."""
    stochastic: bool = False
    """Whether the encoder outputs a normal distribution; if not, it outputs a point."""
    posterior_scale: str = "exp"
    """For stochastic=True only. How an encoder's output r becomes the scale s of a posterior: "exp" (s^2 = exp(r)),
    "softplus" (s = softplus(r)), or "softmax" (s = D softmax(r) over the D latent dimensions, so that the scales of an
    example have mean 1)."""
    critic_steps: int = 1
    """Steps of the critic for each step of the autoencoder."""

    def __post_init__(self):
        super().__post_init__()
        check_one_of(self, posterior_scale=SCALES)
        check_at_least(self, 1, "critic_steps")
        check_at_least(self, 0, "beta")


@dataclasses.dataclass(frozen=True)
class AAEConfig(AdversarialConfig):
    """Adversarial autoencoder (Makhzani et al. 2016)."""

    name: ClassVar[str] = "aae"
    critic_objective: ClassVar[str] = "non_saturating"


@dataclasses.dataclass(frozen=True)
class JSDVAEConfig(AdversarialConfig):
    """An autoencoder that minimises the Jensen-Shannon divergence of latents and prior, by its f-GAN bound."""

    name: ClassVar[str] = "jsd_vae"
    critic_objective: ClassVar[str] = "jsd"

    stochastic: bool = True
    """Whether the encoder outputs a normal distribution; if not, it outputs a point."""


AutoencoderModel = (
    AEConfig
    | DAEConfig
    | VAEConfig
    | BetaVAEConfig
    | CVAEConfig
    | IWAEConfig
    | WAEMMDConfig
    | JSDVAEConfig
    | AAEConfig
)
"""The table of autoencoders of one modality (see `core.parts`)."""
