"""What a flow generates from: nothing, a class, a sentence, or a sentence and its words.

The encoders are those of `models.conditions`. A condition that is dropped in training, or that an example lacks, is
replaced by a learned one, which is the unconditional model of classifier-free guidance.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.models.conditions import CaptionEncoder, ClassEncoder, ConditionEncoder, DataSizes
from xmodal_jax.models.towers import presence_masks
from xmodal_jax.nets.encoders import TextEncoder, TextTransformerConfig
from xmodal_jax.types import Batch, Condition, ExampleKeys, Key, Params, Tokens


@dataclasses.dataclass(frozen=True)
class NoCondition:
    """No condition: an unconditional flow."""

    name: ClassVar[str] = "none"
    """Name by which the command line chooses the part."""
    reads_text: ClassVar[bool] = False
    """Whether the condition is a caption."""
    uses_words: ClassVar[bool] = False
    """Whether the network gets a vector per word."""
    dropout: ClassVar[float] = 0.0
    """Probability that an example is trained without its condition."""

    def build(self, sizes: DataSizes) -> ConditionEncoder:
        """The encoder of no condition."""
        return ConditionEncoder()


@dataclasses.dataclass(frozen=True)
class _Conditional:
    """The options that all conditions have."""

    dropout: float = 0.1
    """Probability that an example is trained without its condition, for classifier-free guidance."""

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


@dataclasses.dataclass(frozen=True)
class ClassCondition(_Conditional):
    """The class of an example, as a learned embedding."""

    name: ClassVar[str] = "class"
    reads_text: ClassVar[bool] = False
    uses_words: ClassVar[bool] = False
    width: int = 64
    """Dimensions of the embedding of a class."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "width")

    def build(self, sizes: DataSizes) -> ClassEncoder:
        """The encoder. Raises ValueError: there are no labels."""
        return ClassEncoder(self, sizes.classes)


@dataclasses.dataclass(frozen=True)
class SentenceCondition(_Conditional):
    """The caption of an example, as one vector."""

    name: ClassVar[str] = "sentence"
    reads_text: ClassVar[bool] = True
    uses_words: ClassVar[bool] = False
    text: TextEncoder = TextTransformerConfig(width=128, positions="sincos", embedding_std=1.0)
    """Encoder of captions, trained with the flow."""

    def build(self, sizes: DataSizes) -> CaptionEncoder:
        """The encoder. Raises ValueError: there are no captions."""
        return CaptionEncoder(self, sizes.vocab_size, sizes.length, frozen_text=False)


@dataclasses.dataclass(frozen=True)
class WordsCondition(SentenceCondition):
    """The caption of an example, as one vector and one vector per word, to which the network attends."""

    name: ClassVar[str] = "words"
    uses_words: ClassVar[bool] = True


FlowConditionConfig = NoCondition | ClassCondition | SentenceCondition | WordsCondition
"""The conditions, by name."""


# -- conditions of a batch ---------------------------------------------------------------------------------------


def init_condition(encoder: ConditionEncoder, key: Key) -> dict[str, Params]:
    """Parameters of the condition's encoder, and ``null``, the learned condition of the unconditional model."""
    params = encoder.init(key)
    if encoder.width:
        null_key = fold_in_name(key, "null")
        params["null"] = {"embedding": 0.02 * jax.random.normal(null_key, (2, encoder.width))}
    return params


def null_condition(params: Params, like: Condition) -> Condition:
    """The unconditional model's condition, of the shape of ``like``: a learned vector, and one learned word."""
    if like.vector is None:
        return like
    vector, word = params["null"]["embedding"]
    words = None
    if like.words is not None:
        values = jnp.broadcast_to(word.astype(like.words.values.dtype), like.words.values.shape)
        first_only = jnp.arange(values.shape[1]) == 0
        words = Tokens(values, jnp.broadcast_to(first_only, values.shape[:2]))
    return Condition(jnp.broadcast_to(vector.astype(like.vector.dtype), like.vector.shape), words)


def encode_condition(
    encoder: ConditionEncoder, params: Params, batch: Batch, keys: ExampleKeys | None
) -> Condition:
    """The condition of a batch as the network gets it, without dropped ones; see `has_condition`."""
    condition = encoder.generator_input(encoder.encode(params, None, batch, keys))
    if condition.words is not None and condition.words.mask is None:
        mask = jnp.ones(condition.words.values.shape[:2], bool)
        condition = condition._replace(words=condition.words._replace(mask=mask))
    return condition


def has_condition(encoder: ConditionEncoder, batch: Batch, count: int) -> Bool[Array, "batch"]:
    """Which of the ``count`` examples have their condition: a known class, or a caption that is present."""
    known = jnp.broadcast_to(jnp.asarray(encoder.is_known(batch)), (count,))
    if encoder.condition_modality == "image" or "present" not in batch:
        return known
    return known & presence_masks(batch, (encoder.condition_modality,))[encoder.condition_modality]
