"""The configuration of a conditional GAN."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.parts import Advanced, Basic
from xmodal_jax.models.gan.augmentation import Augmentation
from xmodal_jax.models.gan.conditions import ConditionConfig, WordsCondition
from xmodal_jax.models.gan.objective import ObjectiveName, adversarial_loss
from xmodal_jax.models.gan.penalties import Penalty
from xmodal_jax.nets.encoders import ConvNetConfig, ImageBackbone
from xmodal_jax.nets.gan import Generator, ResidualGeneratorConfig


@dataclasses.dataclass(frozen=True)
class ContrastiveLosses:
    """Contrastive losses of images and captions, for both networks (XMC-GAN): the discriminator's on real images, the
    generator's on generated ones. A weight of 0 turns a loss off."""

    sentence_weight: float = 0.0
    """Weight of the contrastive loss between images and conditions (sentences or classes); 0: no such loss."""
    word_weight: float = 0.0
    """Weight of the contrastive loss between image regions and words; 0: no such loss."""
    image_weight: float = 0.0
    """Weight of the generator's contrastive loss between each generated image and the real image with the same caption;
    0: no such loss."""
    temperature: float = 0.1
    """Temperature of the contrastive losses for sentences and images."""

    def __post_init__(self):
        check_at_least(self, 0, "sentence_weight", "word_weight", "image_weight")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Reconstruction of real images (VAE-GAN): every second image is generated from noise that an encoder infers from
    the real image, and the generator minimises the negative ELBO, in nats per pixel and channel."""

    name: ClassVar[str] = "vae"
    weight: float = 1.0
    """Weight of the negative ELBO of real images in the generator's loss."""
    encoder: ImageBackbone = ConvNetConfig(width=64, norm="none")
    """Image encoder that infers the noise of an image. Only real images are encoded."""
    pixel_scale: float = 0.15
    """Standard deviation of the normal distribution of a pixel around its reconstruction; pixels lie in [-1, 1]."""
    kl_weight: float = 4.0
    """Weight of the KL divergence of the inferred noise from the prior. Above 1, the noise holds less of what the
    caption already determines."""

    def __post_init__(self):
        check_at_least(self, 0, "weight", "kl_weight")
        if self.pixel_scale <= 0:
            raise ValueError(f"pixel_scale must be positive, got {self.pixel_scale}")


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """How a frozen captioner or a frozen image encoder takes part in training. With both, the features are those of the
    image encoder."""

    name: ClassVar[str] = "frozen"
    projected: bool = True
    """Whether the discriminator also gets the features of the frozen network (Projected GAN, Sauer et al. 2021,
    arXiv:2111.01007)."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual loss of reconstructed images: 1 minus the mean cosine of the frozen network's features
    of reconstructed and real images. 0: no such loss."""
    redescription_weight: float = 1.0
    """Weight of the frozen captioner's cross-entropy of the captions given the generated images (MirrorGAN); 0: no such
    loss."""

    def __post_init__(self):
        check_at_least(self, 0, "perceptual_weight", "redescription_weight")


@dataclasses.dataclass(frozen=True)
class GANConfig:
    """Networks, objective and regularisation of a conditional GAN."""

    objective: Basic[ObjectiveName] = "hinge"
    """Adversarial loss. mmd_rbf, mmd_rq and so on are MMD-GANs with the kernel of that name."""
    condition: ConditionConfig = WordsCondition()
    """Condition of the images: nothing (none), the class (class), the caption as one vector (sentence), or the caption
    as one vector and a vector per word (words)."""
    generator: Generator = ResidualGeneratorConfig()
    """Generator of images."""
    discriminator: ImageBackbone = ConvNetConfig(norm="none")
    """Image encoder of the discriminator. A head on the tokens of the encoder scores images."""
    d_steps: int = 1
    """Steps of the discriminator for each step of the generator."""
    penalty: Penalty | None = None
    """Gradient penalty of the discriminator. None: no penalty."""
    second_penalty: Advanced[Penalty | None] = None
    """Gradient penalty of the discriminator that is added to the first one, such as r2 to r1 (R3GAN). None: there is no
    second one."""
    spectral: bool = False
    """Whether the weights of the discriminator are divided by their largest singular value (spectral normalization)."""
    clip: float = 0.0
    """Largest absolute value that the discriminator's weights are clipped to (0.01 for WGAN); 0: no clipping."""
    lecam: float = 0.0
    """Weight of the LeCam regularization of the discriminator's logits (0.3 in the paper); 0: no regularization."""
    augmentation: Augmentation | None = None
    """Augmentation of images before the discriminator. Real and generated images are augmented alike; None: no
    augmentation."""
    contrastive: ContrastiveLosses = ContrastiveLosses()
    """Weights of the contrastive losses (InfoNCE): of images and their conditions, of image regions and words, and of
    generated and real images; by default all are 0, and there is none of these losses."""
    reconstruction: Reconstruction | None = None
    """Reconstruction of real images (VAE-GAN). None: real images are not reconstructed."""
    features: FrozenFeatures | None = None
    """Use of the features of a frozen captioner or image encoder (--redescribe, --image-encoder). None: no features are
    used."""

    def __post_init__(self):
        """Checks that the chosen parts fit each other."""
        check_at_least(self, 0, "clip", "lecam")
        check_at_least(self, 1, "d_steps")
        self._check_condition()
        # The critic of an MMD-GAN outputs features: what needs a real/fake logit cannot be used with it.
        if not adversarial_loss(self.objective).has_logits:
            needs_logits = self.augmentation is not None and self.augmentation.needs_logits
            if self.condition.head in ("projection", "linear") or self.lecam or needs_logits:
                raise ValueError(
                    f"the objective {self.objective} has features instead of a logit: choose the head concat (none"
                    " without a condition), and neither lecam nor the augmentation ada"
                )
        if self.generator.refines_images and self.reconstruction is not None:
            raise ValueError(
                f"reconstruction infers the noise of an image, and the generator {self.generator.name} has a first "
                "stage in place of noise: choose --model.reconstruction none (a first stage of its own run, "
                "--first-stage, may have one)"
            )
        if self.features is not None and self.features.perceptual_weight and self.reconstruction is None:
            raise ValueError(
                "perceptual_weight compares reconstructed images with real ones: choose a reconstruction or set it"
                " to 0"
            )

    def _check_condition(self) -> None:
        """Raises ValueError if a weight, the generator or the penalty needs a condition that there is not."""
        conditional = self.condition.name != "none"
        if self.contrastive.word_weight and not self.condition.reads_text:
            raise ValueError(
                "word_weight compares image regions with words: the condition must be words or sentence"
            )
        if self.contrastive.sentence_weight and not conditional:
            raise ValueError("sentence_weight compares images with conditions: choose a condition")
        if self.generator.conditioning and not conditional:
            raise ValueError("conditioning changes the condition's vector: choose a condition")
        for penalty in self.penalties.values():
            if penalty.needs_condition and not conditional:
                raise ValueError(
                    f"the penalty {penalty.name} is on pairs of image and condition: choose r1 without a condition"
                )

    @property
    def penalties(self) -> dict[str, Penalty]:
        """The gradient penalties by the names of their fields."""
        both = {"penalty": self.penalty, "second_penalty": self.second_penalty}
        return {name: penalty for name, penalty in both.items() if penalty is not None}
