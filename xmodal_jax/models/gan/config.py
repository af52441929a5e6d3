"""The configuration of a conditional GAN."""

from __future__ import annotations

import dataclasses
from typing import Literal

from xmodal_jax.nets.encoders import (
    ConvNetConfig,
    ImageBackbone,
    TextDecoderConfig,
    TextEncoder,
    TextTransformerConfig,
)
from xmodal_jax.nets.gan import GeneratorConfig

Objective = Literal[
    "hinge", "non_saturating", "minimax", "lsgan", "wgan", "jsd", "relativistic", "relativistic_average",
    "mmd_rbf", "mmd_rq", "mmd_rq_star", "mmd_distance",
]  # fmt: skip
Penalty = Literal["none", "gp", "r1", "r2", "dragan", "ma_gp"]


@dataclasses.dataclass(frozen=True)
class GANConfig:
    """Networks, objective and what keeps the game in balance."""

    objective: Objective = "hinge"
    """What the players minimise: `losses.adversarial`; ``mmd_*``: MMD-GAN with that kernel."""
    condition: Literal["none", "class", "sentence", "words"] = "words"
    """What an image is to show: nothing in particular, a class, a sentence as one vector, or that and its words."""
    head: Literal["concat", "projection"] = "concat"
    """How the discriminator compares image and condition; see `nets.gan.Critic`."""
    generator: GeneratorConfig = GeneratorConfig()
    """Of images."""
    discriminator: ImageBackbone = ConvNetConfig(norm="none")
    """An image encoder, whose tokens the critic sees."""
    text: TextEncoder = TextTransformerConfig(width=64)
    """Encoder of captions. Each player trains its own, unless there is one that stays as it is."""
    classes: int = 64
    """Dimensions of a class's embedding."""
    d_steps: int = 1
    """Steps of the discriminator for each of the generator."""
    matching_aware: bool = True
    """The discriminator also sees real images with the condition of another (GAN-CLS)."""
    penalty: Penalty = "none"
    """On the discriminator's gradient by what it is shown (augmented images; where it is ``projected``, what the
    captioner sees in them as well): WGAN-GP (for MMD on the witness), R1 at real images, R2 at generated ones, DRAGAN,
    or the matching-aware penalty of DF-GAN."""
    penalty_weight: float = 10.0
    """Its weight: 10 for gp, 1 for the witness of rq*, 5 to 10 for r1, 1 for ma_gp."""
    penalty_every: int = 1
    """Computes the penalty only every so many steps, so many times as strong (lazy regularisation)."""
    lecam: float = 0.0
    """Weight of LeCam's regularisation of the logits; 0.3 in the paper."""
    clip: float = 0.0
    """Clips the discriminator's weights to this size (WGAN: 0.01); 0: never."""
    spectral: bool = False
    """Spectral normalisation of the discriminator."""
    sentence_weight: float = 0.0
    """Contrastive loss of images and sentences, for both players: real images, generated ones (XMC-GAN)."""
    word_weight: float = 0.0
    """The same of regions and words."""
    image_weight: float = 0.0
    """Contrastive loss of generated and real images of the same caption, for the generator."""
    temperature: float = 0.1
    """Of the contrastive losses of sentences and images."""
    auxiliary_weight: float = 1.0
    """The discriminator reads the condition off real images (its class, or its caption word by word), and the generator
    is to make images of which it reads the right one (AC-GAN)."""
    decoder: TextDecoderConfig = TextDecoderConfig(width=64)
    """What reads captions."""
    redescription_weight: float = 1.0
    """Where there is a captioner: how much the generator is held to images that it describes as asked (MirrorGAN)."""
    projected: bool = False
    """Where there is a captioner or a pretrained image encoder: the discriminator also sees what that sees, which stays
    as it is (Projected GAN, Sauer et al. 2021, arXiv:2111.01007)."""
    perceptual_weight: float = 0.0
    """Where there is one of them and images are rebuilt: how much these are held to look to it as the real ones do, in
    one minus the mean cosine of its tokens."""
    reconstruction_weight: float = 0.0
    """Every second image is made of noise that an encoder finds in the real one, and held to be like it, in nats per
    pixel and channel (VAE-GAN): what an image looks like is learned from the first step on."""
    encoder: ImageBackbone = ConvNetConfig(width=64, norm="none")
    """The image encoder that finds the noise."""
    pixel_scale: float = 0.15
    """Standard deviation of a pixel around its reconstruction, of the range [-1, 1]."""
    kl_weight: float = 4.0
    """Weight of the KL of the noise found to the noise that images are drawn from; above 1 leaves to the caption what
    the caption says."""
    augment: Literal["none", "diff", "ada"] = "none"
    """Of what the discriminator sees, real and generated: DiffAugment, or adaptive augmentation."""
    color: bool = False
    """DiffAugment and ADA: change brightness, saturation and contrast as well. Off, as captions speak of colours."""
    translation: float = 0.125
    """DiffAugment: largest shift, as a share of the side."""
    cutout: float = 0.0
    """DiffAugment and ADA: side of what is blanked, as a share of the image's; the object that the caption names may be
    there."""
    ada_target: float = 0.6
    """ADA: mean sign of the logits of real images that is aimed at."""
    ada_ramp: int = 500_000
    """ADA: images after which the probability of augmentation can have gone from 0 to 1."""

    def __post_init__(self):
        names = (
            "penalty", "sentence", "word", "image", "auxiliary", "redescription", "perceptual", "reconstruction", "kl",
        )  # fmt: skip
        for name in (*(f"{each}_weight" for each in names), "lecam", "clip", "cutout", "translation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.pixel_scale <= 0:
            raise ValueError(f"pixel_scale must be positive, got {self.pixel_scale}")
        for name in ("d_steps", "penalty_every", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.perceptual_weight and not self.reconstruction_weight:
            raise ValueError("perceptual_weight needs images that are rebuilt: set reconstruction_weight")
        if self.word_weight and not self.reads:
            raise ValueError(
                "word_weight compares regions with words: the condition must be words or sentence"
            )
        if self.penalty == "ma_gp" and self.condition == "none":
            raise ValueError("the penalty ma_gp is on pairs of image and condition: choose r1 without one")
        if self.mmd and (self.head != "concat" or self.lecam or self.augment == "ada"):
            raise ValueError(
                "an MMD critic has features in place of a logit: choose the head concat, and neither lecam nor ada"
            )

    @property
    def mmd(self) -> str | None:
        """The kernel, of MMD-GANs."""
        return self.objective.removeprefix("mmd_") if self.objective.startswith("mmd_") else None

    @property
    def reads(self) -> bool:
        """Whether captions are encoded."""
        return self.condition in ("sentence", "words")

    @property
    def compares(self) -> bool:
        """Whether there are contrastive losses with captions or classes."""
        return self.condition != "none" and self.sentence_weight > 0
