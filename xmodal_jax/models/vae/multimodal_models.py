"""The multimodal VAEs: a configuration class for each, and their table `MultimodalVAEModel`.

A class holds the options of its model and defines how it differs from the others: its objective, how latents are
inferred from some of the modalities, and which parts its network has. A new model is an objective in
`losses.multimodal_elbo` and a class here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_at_least, check_one_of
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.losses import multimodal_elbo as objectives
from xmodal_jax.losses.elbo import ESTIMATORS
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms, Weight
from xmodal_jax.models.vae import generation, inference
from xmodal_jax.models.vae.inference import LatentSamples, Observed
from xmodal_jax.models.vae.modalities import TextConfig
from xmodal_jax.models.vae.model_config import (
    VariationalConfig,
)
from xmodal_jax.models.vae.networks import Apply, Network, NetworkConfig
from xmodal_jax.probability.distributions import FAMILIES, Posterior
from xmodal_jax.probability.mixtures import Mixture
from xmodal_jax.probability.posteriors import consensus_of_experts
from xmodal_jax.types import ExampleKeys


@dataclasses.dataclass(frozen=True)
class MultimodalVAEConfig(VariationalConfig):
    """The options and functions that all multimodal VAEs have."""

    posterior: ClassVar[str] = "normal"
    """Family of posteriors and priors."""
    free_bits: ClassVar[float] = 0.0
    """Nats that the divergence of each latent dimension from the prior may have without cost (free bits); 0: all of it
    counts."""
    initial_fraction: ClassVar[float] = 0.0
    """Fraction of the training steps in an initial stage with another objective; 0: there is one stage."""

    text: TextConfig = TextConfig(weight=20.0)
    """Encoder, decoder and likelihood of texts. Their weight is 20 by default, because the log-likelihood of a sentence
    is some tens of nats and that of an image thousands."""
    latent: int = 32
    """Dimensions of the latent variable that the modalities share."""
    beta: float = 1.0
    """Weight of the divergence of the posterior from the prior."""
    rescale: bool = False
    """Whether each modality's log-likelihood is also multiplied by D / d, where d is the modality's number of elements
    and D the largest modality's."""

    def objective(self, inputs: ObjectiveInputs, beta: Weight) -> ObjectiveTerms:
        """The loss; ``beta`` is the annealed weight of the divergence (`divergence_weight`)."""
        raise NotImplementedError

    def initial_objective(self, inputs: ObjectiveInputs, beta: Weight) -> ObjectiveTerms:
        """The loss of the initial stage, which trains the joint encoder and the decoders."""
        raise NotImplementedError

    def infer(self, inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
        """Samples of the latents given the observed modalities, see `models.vae.inference`: here of
        `shared_posterior`, which must be one distribution."""
        q = self.shared_posterior(inputs, observed)
        return inference.from_posterior(inputs, q, observed, keys, samples)

    def shared_posterior(self, inputs: ObjectiveInputs, observed: Observed) -> Posterior | Mixture | None:
        """The density that `infer` draws the shared latents from, given the observed modalities ``[M, B]``; None if it
        is not known (a hierarchy of latents, or a posterior that is only sampled), or there is no prior."""
        return None

    def network_parts(self) -> dict[str, Any]:
        """The fields of `NetworkConfig` that are not the same in all models."""
        return {}

    def network_config(self) -> NetworkConfig:
        """Sizes and parts of the model's network."""
        return NetworkConfig(
            self.latent, hidden=self.hidden, family=self.posterior, scale=self.posterior_scale,
            **self.network_parts(),
        )  # fmt: skip

    @property
    def shared_dim(self) -> int:
        """Dimensions of the shared latents that are sampled and decoded."""
        return self.latent

    def sample_prior(self, apply: Apply, keys: ExampleKeys, count: int) -> Float[Array, "count dim"]:
        """Samples of the prior of the shared latents, one for each of the ``count`` keys. ``apply(method)``: calls a
        method of the network with its parameters."""
        return inference.sample_prior(apply("prior"), keys, samples=1, batch=count)[0]

    def decoder_latents(
        self, network: Network, apply: Apply, shared: Float[Array, "n dim"], keys: ExampleKeys | None
    ) -> Float[Array, "m 1 n latent"]:
        """The latents that each modality is decoded from, given N shared latents; the axis of length 1 is that of
        samples.

        ``apply(method, *args)``: calls a method of ``network`` with its parameters. ``keys``: of private latents; None:
        their prior's mean.
        """
        return generation.decoder_latents(network, apply, shared, keys)


@dataclasses.dataclass(frozen=True)
class ClosedFormConfig(MultimodalVAEConfig):
    """A model with normal posteriors, whose divergence from the prior has a closed form."""

    free_bits: float = 0.0
    """Nats that the divergence of each latent dimension from the prior may have without cost (free bits); 0: all of it
    counts."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 0, "free_bits")


@dataclasses.dataclass(frozen=True)
class JMVAEConfig(ClosedFormConfig):
    """Joint multimodal VAE (Suzuki et al. 2016): a joint encoder, which each modality's own encoder approximates."""

    name: ClassVar[str] = "jmvae"

    alpha: float = 0.1
    """Weight of the divergences between the joint posterior and each single modality's posterior."""

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.jmvae(inputs, alpha=self.alpha, beta=beta)

    def shared_posterior(self, inputs, observed):
        return inference.joint_or_product(inputs, observed)

    def network_parts(self) -> dict[str, Any]:
        return dict(joint=True)


@dataclasses.dataclass(frozen=True)
class TwoStageConfig(ClosedFormConfig):
    """A model whose joint VAE is trained first and then frozen, while the encoders of single modalities are trained."""

    initial_fraction: float = 0.5
    """Fraction of the training steps in the initial stage, which trains the joint VAE; the encoders of single
    modalities are trained in the rest."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.initial_fraction < 1:
            raise ValueError(f"initial_fraction must lie between 0 and 1, got {self.initial_fraction}")

    def initial_objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.joint_elbo(inputs, beta=beta)

    def network_parts(self) -> dict[str, Any]:
        return dict(joint=True)


@dataclasses.dataclass(frozen=True)
class TELBOConfig(TwoStageConfig):
    """Triple ELBO (Vedantam et al. 2018): a joint VAE, then each modality's ELBO with frozen decoders."""

    name: ClassVar[str] = "telbo"

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.unimodal_elbos(inputs, beta=beta)

    def shared_posterior(self, inputs, observed):
        return inference.joint_or_product(inputs, observed)


@dataclasses.dataclass(frozen=True)
class JNFConfig(TwoStageConfig):
    """Joint normalizing flows (Senellart et al. 2025): a joint VAE, then a flow for each modality's posterior."""

    name: ClassVar[str] = "jnf"

    flows: int = 2
    """Number of layers of the normalizing flow that shapes the posterior of the latent given one modality; each
    modality has a flow."""
    hmc_steps: int = 50
    """Number of proposals of Hamiltonian Monte Carlo, which samples the latent given several modalities; the last state
    is the sample."""
    hmc_leapfrog: int = 10
    """Number of leapfrog steps in each proposal of Hamiltonian Monte Carlo."""
    hmc_step_size: float = 0.05
    """Step size of the leapfrog integrator of Hamiltonian Monte Carlo, which samples the latent given several
    modalities. With larger steps a proposal goes further, but is rejected more often."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "flows")

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.flow_match(inputs)

    def infer(self, inputs, observed, keys, samples) -> LatentSamples:
        return inference.from_flows(
            inputs, observed, keys, samples,
            steps=self.hmc_steps, leapfrog=self.hmc_leapfrog, step_size=self.hmc_step_size,
        )  # fmt: skip

    def network_parts(self) -> dict[str, Any]:
        return dict(joint=True, flows=self.flows)


@dataclasses.dataclass(frozen=True)
class MVAEConfig(ClosedFormConfig):
    """MVAE (Wu and Goodman 2018): products of experts of some subsets of the modalities."""

    name: ClassVar[str] = "mvae"

    subsets: int = 1
    """Number of random subsets of the modalities for each example in each training step, in addition to the full set. A
    subset has 2 to M - 1 of the M modalities."""
    single: bool = True
    """Whether the loss also includes an ELBO for each modality alone."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 0, "subsets")

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.mvae(inputs, subsets=self.subsets, single=self.single, beta=beta)

    def shared_posterior(self, inputs, observed):
        return inference.product_and_prior(inputs, observed)


@dataclasses.dataclass(frozen=True)
class MoPoEConfig(ClosedFormConfig):
    """Mixture of products of experts (Sutter et al. 2021): the products of all subsets of the modalities."""

    name: ClassVar[str] = "mopoe"

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.mopoe(inputs, beta=beta)

    def shared_posterior(self, inputs, observed):
        return inference.full_product_and_prior(inputs, observed)


@dataclasses.dataclass(frozen=True)
class MMJSDConfig(MultimodalVAEConfig):
    """mmJSD (Sutter et al. 2020): the Jensen-Shannon divergence of all experts and the prior."""

    name: ClassVar[str] = "mmjsd"

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.mmjsd(inputs, beta=beta)

    def infer(self, inputs, observed, keys, samples) -> LatentSamples:
        return inference.from_mixture(inputs, observed, keys, samples)

    def shared_posterior(self, inputs, observed):
        return inference.mixture(inputs, observed)


@dataclasses.dataclass(frozen=True)
class MVTCAEConfig(ClosedFormConfig):
    """Multi-view total correlation autoencoder (Hwang et al. 2021): the product of experts, near each of them."""

    name: ClassVar[str] = "mvtcae"

    beta: float = 2.5
    """Weight of the divergences of the joint posterior from the prior and from the single modalities' posteriors."""
    alpha: float = 5 / 6
    """Fraction of the weight beta that goes to the divergence of the joint posterior from the single modalities'
    posteriors, from 0 to 1; its divergence from the prior gets the fraction 1 - alpha."""

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.mvtcae(inputs, alpha=self.alpha, beta=beta)

    def shared_posterior(self, inputs, observed):
        return inference.product(inputs, observed)


@dataclasses.dataclass(frozen=True)
class CRMVAEConfig(ClosedFormConfig):
    """CRMVAE (Suzuki and Matsuo 2023): the product of experts and each expert reconstruct all modalities."""

    name: ClassVar[str] = "crmvae"

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.crmvae(inputs, beta=beta)

    def shared_posterior(self, inputs, observed):
        return inference.product(inputs, observed)


@dataclasses.dataclass(frozen=True)
class DMVAEConfig(ClosedFormConfig):
    """Disentangled multimodal VAE (Lee and Pavlovic 2021): shared and private latents, products of experts."""

    name: ClassVar[str] = "dmvae"

    private: int = 32
    """Dimensions of the private latent of each modality."""
    private_beta: float = 1.0
    """Weight of the divergence of the private latents from their prior."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "private")

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.dmvae(inputs, private_beta=self.private_beta, beta=beta)

    def shared_posterior(self, inputs, observed):
        return inference.product_and_prior(inputs, observed)

    def network_parts(self) -> dict[str, Any]:
        return dict(private=self.private)


@dataclasses.dataclass(frozen=True)
class MixtureConfig(MultimodalVAEConfig):
    """A mixture of experts with an importance-weighted bound."""

    posterior: str = "normal"
    """Family of posteriors and priors: "normal" or "laplace"."""
    samples: int = 1
    """Number of importance samples from each modality's posterior."""
    estimator: str = "iwae"
    """Estimator of the gradient of the importance-weighted bound: "iwae", or "dreg" (doubly reparametrized)."""

    def __post_init__(self):
        super().__post_init__()
        check_one_of(self, posterior=tuple(FAMILIES), estimator=ESTIMATORS)
        check_at_least(self, 1, "samples")

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.mmvae(inputs, samples=self.samples, estimator=self.estimator, beta=beta)

    def infer(self, inputs, observed, keys, samples) -> LatentSamples:
        return inference.from_mixture(inputs, observed, keys, samples)

    def shared_posterior(self, inputs, observed):
        return inference.mixture(inputs, observed)


@dataclasses.dataclass(frozen=True)
class MMVAEConfig(MixtureConfig):
    """MMVAE (Shi et al. 2019): a mixture of experts."""

    name: ClassVar[str] = "mmvae"

    learn_prior: bool = False
    """Whether the scales of the prior are learned; else they are 1."""

    def network_parts(self) -> dict[str, Any]:
        return dict(learn_prior=self.learn_prior)


@dataclasses.dataclass(frozen=True)
class MMVAEPlusConfig(MixtureConfig):
    """MMVAE+ (Palumbo et al. 2023): a mixture of experts with private latents."""

    name: ClassVar[str] = "mmvae_plus"

    private: int = 32
    """Dimensions of the private latent of each modality."""
    learn_prior: bool = False
    """Whether the scales of the shared latent's prior are learned; else they are 1."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "private")

    def network_parts(self) -> dict[str, Any]:
        return dict(private=self.private, learn_auxiliary=True, learn_prior=self.learn_prior)


@dataclasses.dataclass(frozen=True)
class CMVAEConfig(MixtureConfig):
    """Clustering multimodal VAE (Palumbo et al. 2024): MMVAE+ with a mixture as prior."""

    name: ClassVar[str] = "cmvae"

    private: int = 32
    """Dimensions of the private latent of each modality."""
    clusters: int = 10
    """Number of components in the shared latent's prior, a mixture."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "private", "clusters")

    def network_parts(self) -> dict[str, Any]:
        return dict(private=self.private, learn_auxiliary=True, clusters=self.clusters)


@dataclasses.dataclass(frozen=True)
class NexusConfig(ClosedFormConfig):
    """Nexus (Vasco et al. 2022): a VAE of each modality, and a top-level latent of their latents."""

    name: ClassVar[str] = "nexus"

    top: int = 64
    """Dimensions of the top-level latent, which is inferred from the latents of the modalities."""
    top_beta: float = 1.0
    """Weight of the divergence of the top-level latent from the prior."""
    gamma: float = 1.0
    """Weight of the loss of reconstructing the modalities' latents from the top-level latent."""
    dropout: float = 0.5
    """Probability that the top-level latent is inferred from only some of the modalities in training."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "top")

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.nexus(
            inputs, top_beta=self.top_beta, gamma=self.gamma, dropout=self.dropout, beta=beta
        )

    def infer(self, inputs, observed, keys, samples) -> LatentSamples:
        return inference.from_messages(inputs, observed, keys, samples)

    def network_parts(self) -> dict[str, Any]:
        return dict(top=self.top)

    @property
    def shared_dim(self) -> int:
        return self.top

    def sample_prior(self, apply, keys, count) -> Float[Array, "count top"]:
        return jax.vmap(lambda key: jax.random.normal(key, (self.top,)))(fold_in_name(keys, "prior"))

    def decoder_latents(self, network, apply, shared, keys) -> Float[Array, "m 1 n latent"]:
        return generation.decoder_latents_from_top(network, apply, shared, keys)


@dataclasses.dataclass(frozen=True)
class MHVAEConfig(MultimodalVAEConfig):
    """Multimodal hierarchical VAE (Dorent et al. 2023): latents of several levels."""

    name: ClassVar[str] = "mhvae"

    subsets: int = 1
    """Number of subsets of the modalities that are sampled for each example in each step; 0: all subsets are used."""
    levels: int = 3
    """Number of levels in the hierarchy of latents."""

    def __post_init__(self):
        """Checks the numbers of subsets and levels."""
        super().__post_init__()
        check_at_least(self, 0, "subsets")
        if self.levels < 2:
            raise ValueError(
                f"levels must be at least 2 for mhvae, got {self.levels}: with one it is mopoe over all subsets"
            )

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.mhvae(inputs, subsets=self.subsets, beta=beta)

    def infer(self, inputs, observed, keys, samples) -> LatentSamples:
        return inference.from_levels(inputs, observed, keys, samples)

    def network_parts(self) -> dict[str, Any]:
        return dict(levels=self.levels)

    def decoder_latents(self, network, apply, shared, keys) -> Float[Array, "m 1 n latent"]:
        return generation.decoder_latents_from_deepest(network, apply, shared, keys)


@dataclasses.dataclass(frozen=True)
class MMVMConfig(MultimodalVAEConfig):
    """MMVM (Sutter et al. 2024): a VAE of each modality, whose prior is the mixture of the posteriors of all."""

    name: ClassVar[str] = "mmvm"
    has_prior: ClassVar[bool] = False

    alpha: float = 0.0
    """Weight of N(0, 1) in the mixture that is the prior, from 0 to 1; the posteriors of the modalities share the
    rest."""
    kl_samples: int = 0
    """Samples of each posterior that estimate its divergence from the mixture; 0: a closed-form upper bound of the
    divergence is minimised instead."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 0, "kl_samples")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.mmvm(inputs, alpha=self.alpha, kl_samples=self.kl_samples, beta=beta)

    def infer(self, inputs, observed, keys, samples) -> LatentSamples:
        return inference.from_own_expert(inputs, observed, keys, samples)


@dataclasses.dataclass(frozen=True)
class CoDEVAEConfig(ClosedFormConfig):
    """CoDE-VAE (Mancisidor et al. 2025): the consensus of dependent experts of all subsets, with learned weights."""

    name: ClassVar[str] = "code_vae"

    correlation: float = 0.5
    """Correlation of the errors of any two modalities' experts, at least 0 and below 1; 0: the consensus is their
    product."""
    entropy_weight: float = 1000.0
    """Weight of the entropy of the subsets' weights, in nats: the smaller, the more the weights go to the subsets with
    the largest ELBO."""
    subsets: int = 0
    """Number of random subsets of each example whose reconstructions are computed in a training step; 0: those of all
    subsets."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 0, "entropy_weight", "subsets")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation must lie in [0, 1), got {self.correlation}")

    def objective(self, inputs, beta) -> ObjectiveTerms:
        return objectives.code_vae(
            inputs, inputs.networks.learned_array("subset_logits"), correlation=self.correlation,
            entropy_weight=self.entropy_weight, subsets=self.subsets, beta=beta,
        )  # fmt: skip

    def shared_posterior(self, inputs, observed):
        return consensus_of_experts(inputs.experts, observed, self.correlation)

    def network_parts(self) -> dict[str, Any]:
        return dict(arrays=(("subset_logits", _count_subsets),))


def _count_subsets(modalities: int) -> tuple[int]:
    """The number of subsets of the modalities but the empty one, as the shape of an array."""
    return (2**modalities - 1,)


MultimodalVAEModel = (
    JMVAEConfig
    | TELBOConfig
    | MVAEConfig
    | MMVAEConfig
    | MoPoEConfig
    | MMJSDConfig
    | MVTCAEConfig
    | DMVAEConfig
    | MMVAEPlusConfig
    | CMVAEConfig
    | CRMVAEConfig
    | NexusConfig
    | MHVAEConfig
    | JNFConfig
    | MMVMConfig
    | CoDEVAEConfig
)
"""The table of multimodal VAEs (see `core.parts`)."""
