"""What the images of a GAN are conditioned on: nothing, a class, a sentence, or a sentence and its words.

Each condition is a configuration, a member of the union `ConditionConfig`. Its ``build`` makes its encoder: functions
that embed the condition of a batch. Generator and discriminator each have parameters for it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.models.conditions import CaptionEncoder, ClassEncoder, ConditionEncoder, DataSizes
from xmodal_jax.nets.encoders import (
    TextDecoderConfig,
    TextEncoder,
    TextTransformerConfig,
)

# -- configurations ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NoCondition:
    """No condition: an unconditional GAN."""

    name: ClassVar[str] = "none"
    """Name by which the command line chooses the part."""
    reads_text: ClassVar[bool] = False
    """Whether the condition is a caption."""
    uses_words: ClassVar[bool] = False
    """Whether the generator gets a vector per word."""
    head: Literal["none", "linear"] = "none"
    """How the discriminator scores the image's features: by a hidden layer and an output layer (none), or by a linear
    map (linear, of R3GAN)."""
    matching_aware: ClassVar[bool] = False
    """Whether the discriminator also learns to reject real images with the condition of another example."""
    auxiliary_weight: ClassVar[float] = 0.0
    """Weight of the auxiliary loss, which predicts the condition."""

    def build(self, sizes: DataSizes, *, frozen_text: bool = False) -> ConditionEncoder:
        return ConditionEncoder()


@dataclasses.dataclass(frozen=True)
class _Conditional:
    """The options that all conditions have."""

    head: Literal["concat", "projection", "linear"] = "concat"
    """How the discriminator compares image and condition: from their concatenated features (concat), by an inner
    product beside a score of the image alone (projection), or by an inner product of linear maps of both (linear, of
    R3GAN)."""
    matching_aware: bool = True
    """Whether the discriminator also learns to reject real images with the condition of another example (GAN-CLS)."""
    auxiliary_weight: float = 1.0
    """Weight of the auxiliary loss of both networks (AC-GAN): the discriminator learns to predict the condition (the
    class, or the caption token by token) from real images, and the generator learns to make images from which the
    discriminator predicts it. 0: no such loss."""

    def __post_init__(self):
        check_at_least(self, 0, "auxiliary_weight")


@dataclasses.dataclass(frozen=True)
class ClassCondition(_Conditional):
    """The class of an image, as a learned embedding."""

    name: ClassVar[str] = "class"
    reads_text: ClassVar[bool] = False
    uses_words: ClassVar[bool] = False
    width: int = 64
    """Dimensions of the embedding of a class."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "width")

    def build(self, sizes: DataSizes, *, frozen_text: bool = False) -> ClassEncoder:
        """The encoder. Raises ValueError: there are no labels."""
        return ClassEncoder(self, sizes.classes)


@dataclasses.dataclass(frozen=True)
class SentenceCondition(_Conditional):
    """The caption of an image, as one vector."""

    name: ClassVar[str] = "sentence"
    reads_text: ClassVar[bool] = True
    uses_words: ClassVar[bool] = False
    """Whether the generator gets a vector per word, besides that of the sentence."""
    text: TextEncoder = TextTransformerConfig(width=64)
    """Encoder of captions. Generator and discriminator each train one, unless --read-with or --text-encoder gives a
    frozen one."""
    decoder: TextDecoderConfig = TextDecoderConfig(width=64)
    """Text decoder of the auxiliary loss. The discriminator predicts captions by this decoder."""

    def build(self, sizes: DataSizes, *, frozen_text: bool = False) -> CaptionEncoder:
        """The encoder. Raises ValueError: there are no captions."""
        return CaptionEncoder(self, sizes.vocab_size, sizes.length, frozen_text)


@dataclasses.dataclass(frozen=True)
class WordsCondition(SentenceCondition):
    """The caption of an image, as one vector and one vector per word, to which the generator attends."""

    name: ClassVar[str] = "words"
    uses_words: ClassVar[bool] = True


ConditionConfig = NoCondition | ClassCondition | SentenceCondition | WordsCondition
"""The conditions, by name."""
