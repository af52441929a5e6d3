"""Conditional GANs of images: `GANConfig` says what one is made of, `make_gan` makes it."""

from xmodal_jax.models.gan.augmentation import AdaptiveAugment, DiffAugment
from xmodal_jax.models.gan.conditions import ClassCondition, NoCondition, SentenceCondition, WordsCondition
from xmodal_jax.models.gan.config import ContrastiveLosses, FrozenFeatures, GANConfig, Reconstruction
from xmodal_jax.models.gan.inputs import FrozenCaptioner, FrozenEncoder
from xmodal_jax.models.gan.method import ConditionalGAN, make_gan
from xmodal_jax.models.gan.penalties import (
    DraganPenalty,
    GradientPenalty,
    MatchingAwarePenalty,
    R1Penalty,
    R2Penalty,
)

__all__ = [
    "AdaptiveAugment",
    "ClassCondition",
    "ConditionalGAN",
    "ContrastiveLosses",
    "DiffAugment",
    "DraganPenalty",
    "FrozenCaptioner",
    "FrozenEncoder",
    "FrozenFeatures",
    "GANConfig",
    "GradientPenalty",
    "MatchingAwarePenalty",
    "NoCondition",
    "R1Penalty",
    "R2Penalty",
    "Reconstruction",
    "SentenceCondition",
    "WordsCondition",
    "make_gan",
]
