"""Encoders of what is generated from: nothing, a class, a sentence, or a sentence and its words.

Generators of all kinds share them. What they are made of stands in the configurations of GANs
(`models.gan.conditions`) and of flows (`models.flow.conditions`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.examples import per_example
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.losses import sequence
from xmodal_jax.models.contrastive import text_ids
from xmodal_jax.models.towers import make_encoder
from xmodal_jax.nets.encoders import build_decoder, build_pool
from xmodal_jax.nets.gan import SentenceEncoder
from xmodal_jax.types import Batch, Condition, ExampleKeys, Key, Params, Tokens


class DataSizes(NamedTuple):
    """The sizes of the data that the networks depend on."""

    shape: tuple[int, ...]
    """The shape of what is generated: height, width and channels of the images."""
    vocab_size: int = 0
    """Tokens of the vocabulary; 0: there are no captions."""
    length: int = 0
    """Tokens of a caption."""
    classes: int = 0
    """Number of classes; 0: there are no labels."""


class ConditionEncoder:
    """Embeds the condition of a batch. This base class is the encoder of an unconditional GAN."""

    modalities: tuple[str, ...] = ("image",)
    """The modalities that an example must have to count in the losses."""
    width: int = 0
    """Dimensions of the condition's vector; 0: there is none."""

    @property
    def condition_modality(self) -> str:
        """The modality of ``modalities`` that the condition is read from; "image" where the condition is no modality
        that can be missing: for no condition, and for classes, where `is_known` decides."""
        return self.modalities[-1]

    def example(self) -> Condition:
        """A condition of zeros for one example, to initialise networks with."""
        return Condition()

    def init(self, key: Key) -> dict[str, Params]:
        """Initial parameters, by name."""
        return {}

    def encode(
        self, params: Params, frozen: Params | None, batch: Batch, keys: ExampleKeys | None
    ) -> Condition:
        """The condition of a batch. ``params``: those of generator or discriminator; ``frozen``: see `types.GAN`."""
        return Condition()

    def generator_input(self, condition: Condition) -> Condition:
        """The part of the condition that the generator gets."""
        return condition

    def is_known(self, batch: Batch) -> Bool[Array, "batch"] | bool:
        """Which examples have a condition."""
        return True

    def ids(self, batch: Batch) -> Int[Array, "batch"]:
        """Integers that are equal for equal conditions."""
        raise NotImplementedError("there is no condition")

    # -- prediction of the condition from an image, for the auxiliary loss --

    def init_predictor(self, key: Key, tokens: Tokens) -> Params:
        """Parameters of the network that predicts the condition from image tokens."""
        raise NotImplementedError("there is no condition")

    def prediction_loss(self, params: Params, tokens: Array, batch: Batch) -> Float[Array, "batch"]:
        """Cross-entropy of the condition given image tokens, in nats (per token, for captions)."""
        raise NotImplementedError("there is no condition")


@dataclasses.dataclass(frozen=True)
class ClassEncoder(ConditionEncoder):
    """Embeds the batch's ``label``; -1 is unknown."""

    config: Any
    """The condition's configuration, with the ``width`` of a class's embedding."""
    classes: int

    def __post_init__(self):
        if not self.classes:
            raise ValueError("the condition 'class' needs labels, and the data set has none")

    @property
    def width(self) -> int:
        return self.config.width

    def example(self) -> Condition:
        return Condition(jnp.zeros((1, self.width)))

    def init(self, key: Key) -> dict[str, Params]:
        # The last row is the embedding of unknown labels, which the index -1 selects.
        embedding = jax.random.normal(fold_in_name(key, "classes"), (self.classes + 1, self.width))
        return {"classes": {"embedding": embedding}}

    def encode(self, params, frozen, batch, keys) -> Condition:
        """The classes' embeddings. Raises ValueError: there are no labels, or they are no classes from 0 to
        ``classes`` - 1 or -1 (which is not checked of labels that are traced)."""
        labels = condition_field(batch, "label", 1)
        if not isinstance(labels, jax.core.Tracer) and labels.size:
            wrong = np.asarray(labels)[(np.asarray(labels) < -1) | (np.asarray(labels) >= self.classes)]
            if wrong.size:
                raise ValueError(
                    f"label must be from 0 to {self.classes - 1}, or -1 where it is unknown, got {wrong[0]}"
                )
        return Condition(params["classes"]["embedding"][labels])

    def is_known(self, batch) -> Bool[Array, "batch"]:
        return batch["label"] >= 0

    def ids(self, batch) -> Int[Array, "batch"]:
        return batch["label"]

    @functools.cached_property
    def predictor(self) -> nn.Module:
        return nn.Dense(self.classes)

    def init_predictor(self, key: Key, tokens: Tokens) -> Params:
        return self.predictor.init(key, tokens.values.mean(axis=1))["params"]

    def prediction_loss(self, params, tokens, batch) -> Float[Array, "batch"]:
        """Cross-entropy in nats of the class, as predicted from the mean of the image tokens ``[B, length, D]`` by the
        linear layer with the parameters ``params``."""
        logits = self.predictor.apply({"params": params}, tokens.mean(axis=1))
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        known_label = jnp.maximum(batch["label"], 0)  # unknown ones (-1) do not count, so any class serves
        return -jnp.take_along_axis(log_p, known_label[:, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class CaptionEncoder(ConditionEncoder):
    """Encodes the batch's ``text`` ``[B, length]`` with its mask."""

    config: Any
    """The condition's configuration: ``text`` is the encoder, ``uses_words`` whether a generator gets the words, and
    ``decoder`` (where there is an auxiliary loss) the decoder that predicts captions."""
    vocab_size: int
    length: int
    frozen_text: bool
    """Whether the text encoder keeps its pretrained parameters, which are then in ``frozen["text"]``; False: it is
    trained."""
    modalities: ClassVar[tuple[str, ...]] = ("image", "text")

    def __post_init__(self):
        if not (self.vocab_size and self.length):
            raise ValueError(f"the condition {self.config.name!r} needs captions, and the data set has none")

    @property
    def width(self) -> int:
        return self.config.text.width

    def example(self) -> Condition:
        """A condition of zeros for one example: the sentence's vector, and those of ``length`` words."""
        words = Tokens(jnp.zeros((1, self.length, self.width)), jnp.ones((1, self.length), bool))
        return Condition(jnp.zeros((1, self.width)), words)

    @functools.cached_property
    def encoder(self) -> SentenceEncoder:
        """The text encoder, and the pool that computes the sentence's vector from the words' vectors.

        The pool "own" is that of the pretrained text encoder, which then must be built with it.
        """
        # ``example``: the shape of the texts, by which `make_encoder` sizes the position embeddings.
        config, example = self.config.text, {"text": jax.ShapeDtypeStruct((1, self.length), jnp.int32)}
        own_pool = config.pool == "own"
        head = "pool" if own_pool else "none"
        encoder = make_encoder("text", config, example, vocab_size=self.vocab_size, head=head)
        return SentenceEncoder(encoder, None if own_pool else build_pool(config))

    def init(self, key: Key) -> dict[str, Params]:
        if self.frozen_text:
            return {}
        ids = jnp.ones((1, self.length), jnp.int32)
        return {"text": self.encoder.init(fold_in_name(key, "text"), ids, ids > 0)["params"]}

    def encode(self, params, frozen, batch, keys) -> Condition:
        """The captions' vectors, and those of their words; by the frozen text encoder if ``params`` has none.

        ``keys``: of dropout, one for each example; None: no dropout.
        """
        ids = condition_field(batch, "text", 2)
        encoder_params = params["text"] if "text" in params else frozen["text"]
        variables = {"params": encoder_params}
        sentence, words = self.encoder.apply(variables, ids, _mask(batch), keys=keys)
        return Condition(sentence, words)

    def generator_input(self, condition: Condition) -> Condition:
        return condition if self.config.uses_words else condition._replace(words=None)

    def ids(self, batch) -> Int[Array, "batch"]:
        return text_ids(batch["text"], mask=batch.get("text_mask"))

    @functools.cached_property
    def predictor(self) -> nn.Module:
        return build_decoder(self.config.decoder, vocab_size=self.vocab_size, max_length=self.length)

    def init_predictor(self, key: Key, tokens: Tokens) -> Params:
        ids = jnp.ones((1, self.length), jnp.int32)  # an example caption: any token ids serve
        return self.predictor.init(key, ids, tokens)["params"]

    def prediction_loss(self, params, tokens, batch) -> Float[Array, "batch"]:
        """Cross-entropy of the caption in nats per token: each token is predicted from the tokens before it and the
        image tokens ``tokens [B, length, D]``."""
        logits = self.predictor.apply({"params": params}, batch["text"][:, :-1], Tokens(tokens, mask=None))
        return sequence.token_cross_entropy(logits, batch["text"][:, 1:], _mask(batch)[:, 1:])


def condition_field(batch: Batch, name: str, rank: int) -> Int[Array, "batch ..."]:
    """The batch's field ``name``, integers with ``rank`` axes, from which the condition is read.

    Raises:
      ValueError: the batch has no such field, or it holds something else.
    """
    expected = (
        f'the condition is read from the field "{name}", integers {"[B]" if rank == 1 else "[B, length]"}'
    )
    if name not in batch:
        raise ValueError(
            f"{expected}, which the batch does not have (fields: {', '.join(sorted(batch)) or 'none'})"
        )
    values = batch[name]
    if jnp.ndim(values) != rank or not jnp.issubdtype(jnp.result_type(values), jnp.integer):
        raise ValueError(f"{expected}, got {jnp.result_type(values)} {list(jnp.shape(values))}")
    return values


def _mask(batch: Batch) -> Any:
    """Which tokens ``[B, length]`` of the batch's captions are no padding (0)."""
    return batch.get("text_mask", batch["text"] != 0)


def interpolate_conditions(start: Any, end: Any, fraction: Float[Array, "batch"]) -> Any:
    """``start + fraction (end - start)`` of all vectors of two conditions (pytrees); a word of either one is present.

    ``fraction``: of each example, from 0 (``start``) to 1 (``end``).
    """

    def interpolate(x: Array, y: Array) -> Array:
        """The interpolation of one array ``[B, ...]`` of both conditions."""
        if x.dtype == bool:  # a mask of words
            return x | y
        return x + per_example(fraction, x) * (y - x)

    return jax.tree.map(interpolate, start, end)
