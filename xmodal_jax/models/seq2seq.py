"""Sequence-to-sequence models: captions of images and videos, transcripts of speech.

`make_seq2seq` is the method; `make_text_generator` gives a function that generates text with its parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core import collectives
from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.decoding import (
    GeneratedTokens,
    Step,
    beam_search,
    check_sampling,
    ctc_greedy,
    sample,
)
from xmodal_jax.core.language_model import LanguageModelFusion
from xmodal_jax.core.random import batch_index, batch_keys, fold_in_name
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import chunked, info_nce, sequence
from xmodal_jax.models.contrastive import MAX_SCALE, matching_ids, text_ids
from xmodal_jax.models.towers import (
    AudioFeatures,
    Augmentation,
    first_example,
    make_encoder,
    preprocess_modality,
    presence_masks,
)
from xmodal_jax.nets.attention_maps import attention_maps
from xmodal_jax.nets.encoders import (
    AudioEncoder,
    AudioTransformerConfig,
    ConvNetConfig,
    ImageEncoder,
    StackedFramesConfig,
    TextDecoderConfig,
    VideoEncoder,
    build_decoder,
)
from xmodal_jax.nets.fusion import content_mask
from xmodal_jax.nets.pooling import Pool
from xmodal_jax.nets.text import TextDecoder
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.types import Batch, EncoderSlot, ExampleKeys, Key, Method, Params, Tokens


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """An objective: the base of its parts. It trains a decoder, a CTC head or both."""

    name: ClassVar[str]
    """Name by which the command line chooses the part."""
    decodes: ClassVar[bool] = True
    """Whether the model has a decoder."""
    aligns: ClassVar[bool] = True
    """Whether the model has a CTC head."""

    def __post_init__(self):
        """Checks that all options are fractions."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < 1:
                raise ValueError(f"{type(self).__name__}.{field.name} must lie in [0, 1), got {value}")


@dataclasses.dataclass(frozen=True)
class AttentionObjective(ObjectiveConfig):
    """The decoder's cross-entropy of the next token."""

    name: ClassVar[str] = "attention"
    aligns: ClassVar[bool] = False
    ctc_weight: ClassVar[float] = 0.0
    """Weight of the CTC loss."""

    label_smoothing: float = 0.1
    """Fraction of the target distribution that is spread evenly over the vocabulary."""


@dataclasses.dataclass(frozen=True)
class CTCObjective(ObjectiveConfig):
    """CTC over the encoder's tokens, without a decoder."""

    name: ClassVar[str] = "ctc"
    decodes: ClassVar[bool] = False
    ctc_weight: ClassVar[float] = 1.0


@dataclasses.dataclass(frozen=True)
class JointObjective(ObjectiveConfig):
    """The decoder's cross-entropy and CTC."""

    name: ClassVar[str] = "joint"

    ctc_weight: float = 0.3
    """Weight of the CTC loss, from 0 to 1; the weight of the decoder's cross-entropy is one minus this."""
    label_smoothing: float = 0.1
    """Fraction of the target distribution of the decoder's cross-entropy that is spread evenly over the vocabulary."""


Objective = AttentionObjective | CTCObjective | JointObjective
"""The objectives by name."""


@dataclasses.dataclass(frozen=True)
class ContrastiveObjective:
    """A contrastive loss between the source and its text (CoCa).

    The first half of the decoder's layers then has no cross-attention, so that its output represents the text alone;
    the source's tokens are pooled by attention.
    """

    name: ClassVar[str] = "info_nce"

    weight: float = 0.5
    """Weight of the contrastive loss between source and text."""
    embed_dim: int = 128
    """Dimensions of the embeddings of source and text that the contrastive loss compares."""
    temperature: float = 0.07
    """Initial temperature of the contrastive loss. It is learned."""

    def __post_init__(self):
        """Checks the weight and the temperature."""
        if self.weight <= 0 or self.temperature <= 1 / MAX_SCALE:
            raise ValueError(
                f"the contrastive weight must be positive and the temperature above {1 / MAX_SCALE}, got {self.weight} "
                f"and {self.temperature}"
            )


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """Encoder, decoder and objective of a sequence-to-sequence model."""

    objective: Objective = AttentionObjective()
    """Training objective: the decoder's cross-entropy (attention), CTC on the encoder's tokens (ctc), or both
    (joint)."""
    contrastive: ContrastiveObjective | None = None
    """Contrastive loss between the source and its text, beside the objective; None: no such loss."""
    decoder: TextDecoderConfig = TextDecoderConfig()
    """Text decoder, a causal transformer; not used with the objective ctc."""
    image: ImageEncoder = ConvNetConfig(token_positions=True)
    """Image encoder."""
    audio: AudioEncoder = AudioTransformerConfig(downsample=4)
    """Audio encoder."""
    video: VideoEncoder = StackedFramesConfig(token_positions=True)
    """Video encoder: a transformer over blocks of frames and pixels (tubelet), a convolutional network on each frame
    and a transformer over the frames (frames), or a convolutional network that gets all frames at once, as its input
    channels (stacked)."""
    features: AudioFeatures = AudioFeatures()
    """Input of the audio encoder: spectrogram or waveform."""
    augment: Augmentation = Augmentation(image=AugmentConfig(translate=0))
    """Random changes of the inputs, in training only."""

    def __post_init__(self):
        """Checks that the model has the decoder layers that the contrastive loss needs."""
        if self.has_contrastive_loss and (not self.decodes or self.decoder.depth < 2):
            raise ValueError(
                "a contrastive loss needs the objective attention or joint and a decoder of at least two layers, of "
                f"which the first half has no cross-attention; got {self.objective.name!r} and {self.decoder.depth}"
            )

    @property
    def has_contrastive_loss(self) -> bool:
        """Whether the contrastive loss of source and text is part of the loss."""
        return self.contrastive is not None

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder."""
        return self.objective.decodes

    @property
    def aligns(self) -> bool:
        """Whether there is a CTC head."""
        return self.objective.aligns

    @property
    def decodings(self) -> tuple[GenerationConfig, ...]:
        """The deterministic ways to generate text with the trained model, best first."""
        with_decoder = (BeamSearchConfig(), GreedySearchConfig()) if self.decodes else ()
        return (*with_decoder, CTCBestPathConfig()) if self.aligns else with_decoder


class CTCHead(nn.Module):
    """Tokens to logits over the vocabulary, whose id 0 (padding) is the blank."""

    vocab_size: int
    """Size of the vocabulary."""

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames vocab"]:
        return nn.Dense(self.vocab_size, name="logits")(nn.LayerNorm(name="norm")(tokens).astype(jnp.float32))


class ContrastHead(nn.Module):
    """``(source, text)``: unit vectors ``[B, embed_dim]`` of the source and of its text, for the contrastive loss.

    The text is represented by the decoder's state at its last token, which depends on all tokens. The parameter
    ``log_scale`` is the logarithm of the loss's inverse temperature (`inverse_temperature`).
    """

    embed_dim: int
    """Dimensions of the embeddings."""
    temperature: float
    """Initial temperature."""

    @nn.compact
    def __call__(
        self, tokens: Tokens, states: Float[Array, "batch length dim"], mask: Bool[Array, "batch length"]
    ):
        """``(source, text)``: unit vectors ``[B, embed_dim]`` of the source and of its text.

        ``tokens`` are the source's, ``states`` the decoder's at each token of the text; ``mask`` is True at valid
        tokens of the text.
        """
        # The decoder is causal: the state of the last valid token is the only one that depends on the whole text.
        last_position = jnp.maximum(mask.sum(axis=1) - 1, 0)
        text = jnp.take_along_axis(states, last_position[:, None, None], axis=1)[:, 0].astype(jnp.float32)
        source = nn.LayerNorm(name="norm")(Pool("attention", name="pool")(tokens))
        # The parameter is the logarithm of the inverse temperature, -log(temperature).
        initial_log_scale = nn.initializers.constant(-math.log(self.temperature))
        self.param("log_scale", initial_log_scale, ())  # not used here, but by the loss
        source = l2_normalize(nn.Dense(self.embed_dim, use_bias=False, name="source")(source))
        text = l2_normalize(nn.Dense(self.embed_dim, use_bias=False, name="text")(text))
        return source, text


def inverse_temperature(contrast_params: Params) -> Float[Array, ""]:
    """The inverse temperature of the contrastive loss, from the parameters of its `ContrastHead`; at most
    `MAX_SCALE`."""
    return jnp.minimum(jnp.exp(contrast_params["log_scale"]), MAX_SCALE)


class Seq2SeqOutput(NamedTuple):
    """The prediction of a `make_seq2seq` method: how well the model predicts the texts that the batch holds."""

    cross_entropy: Float[Array, "batch"]
    """Cross-entropy of the decoder given the true previous tokens, in nats per token; zeros without a decoder."""
    ctc: Float[Array, "batch"]
    """CTC loss, in nats per token; zeros without a CTC head."""
    embeddings: dict[str, Float[Array, "batch dim"]]
    """Unit vectors of the source and of its text, by modality; empty without the contrastive loss."""


class _Terms(NamedTuple):
    """The losses of each example and the embeddings, from which the loss of a batch is computed."""

    losses: dict[str, tuple[Array, Array]]
    """By name of the loss, the loss of each example ``[B]`` and the weight of each example ``[B]`` in the mean."""
    embeddings: tuple[Array, Array] | None
    """What `ContrastHead` returns; None without the contrastive loss."""
    present: Bool[Array, "batch"]
    """Which examples have the source and a text."""


@dataclasses.dataclass(frozen=True)
class _Model:
    """Encoder, decoder and heads for one configuration, and their losses."""

    config: Seq2SeqConfig
    source: str
    """The source modality: image, audio or video."""
    vocab_size: int
    length: int
    """Tokens of a text, with padding."""

    def __post_init__(self):
        if self.source not in ("image", "audio", "video"):
            raise ValueError(f"the source must be image, audio or video, got {self.source!r}")

    def encoder(self, batch: Batch) -> nn.Module:
        return make_encoder(self.source, getattr(self.config, self.source), batch, vocab_size=self.vocab_size)

    @property
    def decoder(self) -> TextDecoder:
        """The text decoder. With a contrastive loss the first half of its layers (``text_depth``) has no
        cross-attention, so that their output represents the text alone (CoCa)."""
        text_depth = self.config.decoder.depth // 2 if self.config.has_contrastive_loss else 0
        sizes = dict(vocab_size=self.vocab_size, max_length=self.length, text_depth=text_depth)
        return build_decoder(self.config.decoder, **sizes)

    @property
    def contrast_head(self) -> ContrastHead:
        return ContrastHead(self.config.contrastive.embed_dim, self.config.contrastive.temperature)

    @property
    def ctc_head(self) -> CTCHead:
        return CTCHead(self.vocab_size)

    def init(self, key: Key, batch: Batch) -> Params:
        """Initial parameters of the encoder, and of the decoder and the heads that the configuration has.

        They depend on the shapes of the batch only, so that the network is run on one example.
        """
        example, params = first_example(batch), {}
        inputs, mask = preprocess_modality(self.source, example, self.config.features)
        encoder = self.encoder(example)
        tokens, variables = encoder.init_with_output(fold_in_name(key, self.source), inputs, mask)
        params[self.source] = variables["params"]
        if self.config.decodes:
            ids = jnp.ones((1, self.length), jnp.int32)  # an example text: any token ids serve
            params["decoder"] = self.decoder.init(fold_in_name(key, "decoder"), ids, tokens)["params"]
        if self.config.has_contrastive_loss:
            width = self.config.decoder.width
            # Decoder states and text mask for one example; only their shapes matter.
            states, mask = jnp.zeros((1, self.length, width)), jnp.ones((1, self.length), bool)
            variables = self.contrast_head.init(fold_in_name(key, "contrast"), tokens, states, mask)
            params["contrast"] = variables["params"]
        if self.config.aligns:
            params["ctc"] = self.ctc_head.init(fold_in_name(key, "ctc"), tokens.values)["params"]
        return params

    @property
    def encoder_slots(self) -> tuple[EncoderSlot, ...]:
        """The parts of the model that can start from trained parameters: encoder, decoder and CTC head."""
        slots = [EncoderSlot(name=self.source, path=self.source, fields=(self.source,))]
        if self.config.decodes:
            # A language model has no cross-attention: these layers keep their initial parameters.
            slots.append(EncoderSlot(name="decoder", path="decoder", fields=("text",), new_parts="/cross_"))
        if self.config.aligns:
            slots.append(EncoderSlot(name="ctc", path="ctc"))
        return tuple(slots)

    def encode(self, params: Params, batch: Batch, keys: ExampleKeys | None = None) -> Tokens:
        """The encoder's tokens of the source; the mask is False throughout in examples without the source.

        ``keys`` draw augmentation and dropout in training; None in evaluation.
        """
        inputs, mask = preprocess_modality(
            self.source, batch, self.config.features, self.config.augment, keys
        )
        tokens = self.encoder(batch).apply({"params": params[self.source]}, inputs, mask, keys=keys)
        return Tokens(tokens.values, content_mask(tokens, presence_masks(batch, (self.source,))[self.source]))

    def decode(self, params: Params, ids: Array, memory: Tokens, keys: ExampleKeys | None = None):
        """``(logits, states)`` at every token of ``ids [B, L]``, given the source's tokens ``memory``.

        The logits ``[B, L, vocab]`` predict the next token. The states ``[B, L, width]`` are the output of the
        decoder's first layers, those without cross-attention, which represent the text alone.
        """
        keys = None if keys is None else fold_in_name(keys, "decoder")  # dropout differs from the encoder's
        return self.decoder.apply({"params": params["decoder"]}, ids, memory, keys=keys, states=True)

    def ctc_logits(self, params: Params, memory: Tokens) -> Array:
        return self.ctc_head.apply({"params": params["ctc"]}, memory.values)

    def cross_attention(
        self, params: Params, ids: Array, memory: Tokens
    ) -> Float[Array, "batch length tokens"]:
        """The decoder's attention from each token of ``ids [B, length]`` to each token of the source (``memory``),
        ``[B, length, tokens]``: the mean over layers and heads.

        Raises:
          ValueError: the decoder does not record its attention, as with ``scan_layers``.
        """
        variables = {"params": params["decoder"]}
        # The attention layers store their weights in the collection "intermediates"; the logits are not needed.
        _, state = self.decoder.apply(variables, ids, memory, mutable=["intermediates"])
        maps = attention_maps(state.get("intermediates", {}))
        # The mean over heads of each layer's map [B, heads, length, tokens].
        layer_maps = [w.mean(axis=1) for path, w in maps.items() if path.endswith("cross_attention")]
        if not layer_maps:
            raise ValueError("a decoder with scan_layers records no attention: leave it out")
        return sum(layer_maps) / len(layer_maps)

    def terms(self, params: Params, batch: Batch, keys: ExampleKeys | None) -> _Terms:
        """The losses of each example, and the embeddings of source and text if there is a contrastive loss.

        The batch holds the source and ``text [B, L]``, token ids from the begin to the end token. ``keys``, one for
        each example, draw dropout and augmentation in training; None in evaluation.
        """
        memory = self.encode(params, batch, keys)
        ids = batch["text"]
        # The valid tokens; none in an example that lacks the text or the source.
        mask = batch.get("text_mask", ids != 0) & presence_masks(batch, ("text",))["text"][:, None]
        mask &= presence_masks(batch, (self.source,))[self.source][:, None]
        targets, target_mask = ids[:, 1:], mask[:, 1:]  # the decoder predicts the next token
        losses, embeddings = {}, None
        if self.config.decodes:
            # The contrastive loss needs the state of the last token as well, which predicts nothing.
            inputs = ids if self.config.has_contrastive_loss else ids[:, :-1]
            logits, states = self.decode(params, inputs, memory, keys)
            logits = logits[:, : targets.shape[1]]  # without those of the last token, if it was an input
            if self.config.has_contrastive_loss:
                variables = {"params": params["contrast"]}
                embeddings = self.contrast_head.apply(variables, memory, states, mask)
            losses |= self.decoder_losses(logits, targets, target_mask)
        if self.config.aligns:
            losses |= self.ctc_losses(params, memory, targets, target_mask)
        return _Terms(losses, embeddings, mask.any(axis=1))

    def decoder_losses(self, logits: Array, targets: Array, mask: Array) -> dict[str, tuple[Array, Array]]:
        """The decoder's label-smoothed loss, cross-entropy and accuracy, each as ``(value [B], weight [B])``.

        Values are means over the tokens of an example; the weight is its number of tokens, so that the weighted mean
        over examples is a mean over tokens. ``logits [B, L, vocab]``, ``targets [B, L]``: the tokens to predict;
        ``mask [B, L]``: which targets are valid.
        """
        count = mask.sum(axis=1).astype(jnp.float32)
        smoothing = self.config.objective.label_smoothing
        smoothed = sequence.token_cross_entropy(logits, targets, mask, smoothing=smoothing)
        plain = sequence.token_cross_entropy(logits, targets, mask)
        correct = ((logits.argmax(axis=-1) == targets) & mask).sum(axis=1) / jnp.maximum(count, 1)
        return {"loss": (smoothed, count), "cross_entropy": (plain, count), "accuracy": (correct, count)}

    def ctc_losses(self, params: Params, memory: Tokens, targets: Array, mask: Array):
        """The CTC loss per token, and whether a text cannot be aligned, each as ``(value [B], weight [B])``.

        A text that needs more labels than the source has tokens (``memory``) has no alignment; it has no weight in the
        loss. ``targets [B, L]``: the texts without the begin token; ``mask [B, L]`` is True on the valid ones, the end
        token included. The labels of CTC are the targets before the end token.
        """
        # A target is valid and not the end token if the target after it is valid.
        label_mask = mask & jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
        label_count = label_mask.sum(axis=1)
        fits = sequence.ctc_fits(memory.mask, targets, label_mask)
        has_text = (label_count > 0).astype(jnp.float32)
        logits = self.ctc_logits(params, memory)
        loss = sequence.ctc(logits, memory.mask, targets, label_mask) / jnp.maximum(label_count, 1)
        return {"ctc": (loss, has_text * fits), "ctc_unaligned": (1.0 - fits, has_text)}

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name: str | None = None, chunks: int = 1):
        """``(loss, aux)``, as this device's share of the mean over the global batch:

        ``(1 - ctc_weight) * cross_entropy + ctc_weight * CTC + contrastive.weight * InfoNCE``

        The cross-entropy is label-smoothed. Terms that the configuration lacks are 0. Encoder and decoder run on
        ``chunks`` parts of the batch, one after the other, which saves memory; the contrastive loss sees all of it.
        """
        key = fold_in_name(key, "seq2seq")
        inputs = (batch, batch_keys(key, batch))  # one random key for each example
        if chunks == 1:
            losses, embeddings, present = self.terms(params, *inputs)
        else:
            terms = chunked(lambda params, inputs: self.terms(params, *inputs), chunks)(params, inputs)
            losses, embeddings, present = terms
        if embeddings is not None:
            source, text = embeddings
            scale = inverse_temperature(params["contrast"])
            # Examples with equal texts, or of the same picture, are positives of each other.
            ids = text_ids(batch["text"], mask=batch.get("text_mask"))
            contrastive = info_nce(
                source, text, temperature=1.0 / scale, present=present,
                match=matching_ids(ids, batch), duplicates="positive", axis_name=axis_name,
            )  # fmt: skip
            losses["contrastive"] = (contrastive, present.astype(jnp.float32))
        aux = {
            name: collectives.batch_mean(value, weight, axis_name=axis_name)
            for name, (value, weight) in losses.items()
        }
        ctc_weight = self.config.objective.ctc_weight
        # "loss" is the smoothed cross-entropy; aux reports the plain one, "cross_entropy", in place of it.
        total = (1 - ctc_weight) * aux.pop("loss", 0.0) + ctc_weight * aux.get("ctc", 0.0)
        contrastive_weight = self.config.contrastive.weight if self.config.has_contrastive_loss else 0.0
        total += contrastive_weight * aux.get("contrastive", 0.0)
        return total, jax.lax.stop_gradient(aux)

    def predict(self, params: Params, batch: Batch) -> Seq2SeqOutput:
        """Cross-entropy and CTC loss of each example's text, and the embeddings of source and text.

        Losses that the configuration lacks are 0; without the contrastive loss there are no embeddings.
        """
        losses, embeddings, _ = self.terms(params, batch, keys=None)
        # Each loss is ``(value [B], weight [B])``; predictions need no weights.
        zeros = jnp.zeros(len(batch_index(batch)))
        cross_entropy, _ = losses.get("cross_entropy", (zeros, None))
        ctc, _ = losses.get("ctc", (zeros, None))
        if embeddings is None:
            return Seq2SeqOutput(cross_entropy, ctc, {})
        source, text = embeddings
        return Seq2SeqOutput(cross_entropy, ctc, {self.source: source, "text": text})


def make_seq2seq(config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int) -> Method:
    """A method that predicts text from a source (image, audio or video), trained by teacher forcing, CTC or both.

    The batch holds the source, ``text`` int32 ``[B, length]`` from the begin to the end token, and its mask. Given the
    source and the tokens up to ``t``, the decoder predicts token ``t + 1``; its loss is the mean label-smoothed
    cross-entropy over the tokens of the global batch. The CTC loss is the mean over texts of ``-log p(text) / tokens``,
    without the begin and the end token. An example without the source or without text has no influence.

    The contrastive loss, where there is one, is the InfoNCE of source and text over the global batch (CoCa, Yu et al.
    2022, arXiv:2205.01917, eq. 3), in which equal texts are positives of each other.

    aux: ``cross_entropy`` and ``accuracy`` (per token, teacher forced), ``contrastive``, ``ctc``, and
    ``ctc_unaligned``, the fraction of texts that are longer than the source's tokens can align with.

    Args:
      config: encoder, decoder and objective.
      source: the source modality.
      vocab_size: size of the vocabulary.
      length: tokens of a text, with padding.

    Returns:
      The method; ``predict(params, batch)`` gives a `Seq2SeqOutput`.

    Raises:
      ValueError: an unknown source.
    """
    model = _Model(config, source, vocab_size, length)
    return Method(
        model.init, model.loss, model.predict, encoders=model.encoder_slots,
        needs_whole_batch=config.has_contrastive_loss,
    )  # fmt: skip


def make_feature_extractor(
    config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int
) -> Callable[[Params, Batch], Float[Array, "batch dim"]]:
    """``features(params, batch) -> [B, width]``: the mean of the source encoder's tokens.

    The arguments, and the parameters ``params``, are those of `make_seq2seq`.
    """
    model = _Model(config, source, vocab_size, length)

    def features(params: Params, batch: Batch) -> Float[Array, "batch dim"]:
        return Pool("mean").apply({}, model.encode(params, batch))

    return features


class Captioner(NamedTuple):
    """A captioner as functions that can be differentiated in the pixels; see `make_captioner`."""

    encode: Callable[..., Array]
    """``encode(params, pixels) -> [B, N, width]``: the image encoder's tokens."""
    cross_entropy: Callable[..., Array]
    """``cross_entropy(params, tokens, ids, mask) -> [B]``: the decoder's cross-entropy of given captions, in nats per
    token; 0 for an empty caption."""
    attention: Callable[..., Array]
    """``attention(params, tokens, ids) -> [B, length, N]``: the decoder's cross-attention when it predicts each token
    of a caption. The first token is given and not predicted: its row is uniform."""


def make_captioner(config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int) -> Captioner:
    """The functions of a trained captioner that serve as a loss of an image generator: how well its images fit their
    captions.

    ``pixels`` are floats in [-1, 1]; ``ids`` are the captions, int32 ``[B, length]`` from the begin to the end token,
    and ``mask`` is True on valid tokens. Captioning a generated image: MirrorGAN, Qiao et al. 2019, arXiv:1903.05854,
    eq. 14.

    Raises:
      ValueError: the configuration has no decoder, or its source is audio.
    """
    model = _Model(config, source, vocab_size, length)
    if source == "audio" or not config.decodes:
        raise ValueError("pictures are described by a captioner with a decoder (the objective attention)")

    def encode(params: Params, pixels) -> Float[Array, "batch length dim"]:
        """The image encoder's tokens of ``pixels``, without dropout."""
        encoder = model.encoder({source: pixels})
        return encoder.apply({"params": params[source]}, pixels, None, keys=None).values

    def cross_entropy(params: Params, tokens, ids, mask) -> Float[Array, "batch"]:
        """The decoder's cross-entropy of the captions ``ids``, in nats per token, given the image's ``tokens``."""
        logits, _ = model.decode(params, ids[:, :-1], Tokens(tokens, mask=None))
        return sequence.token_cross_entropy(logits, ids[:, 1:], mask[:, 1:])

    def attention(params: Params, tokens, ids) -> Float[Array, "batch length places"]:
        """The attention ``[B, length, N]`` to the image's N tokens by which each token of a caption is predicted."""
        weights = model.cross_attention(params, ids[:, :-1], Tokens(tokens, mask=None))
        # The weights at token t predict token t + 1: shift by one. The first token, which is given, gets uniform ones.
        return jnp.pad(weights, [(0, 0), (1, 0), (0, 0)], constant_values=1.0 / tokens.shape[1])

    return Captioner(encode, cross_entropy, attention)


class TextNetwork(NamedTuple):
    """The parts of a trained model that writes texts, as functions; see `make_text_network`."""

    encode: Callable[..., Tokens]
    """``encode(params, batch)``: the source's tokens, ``values [B, N, width]`` and ``mask [B, N]``."""
    next_logits: Callable[..., Array] | None
    """``next_logits(params, ids, tokens) -> [B, L, vocab]``: of the token after each of ``ids [B, L]``, given those
    before it and the source's ``tokens``; None: there is no decoder."""
    frame_logits: Callable[..., Array] | None
    """``frame_logits(params, tokens) -> [B, N, vocab]``: of the label at each of the source's tokens, for CTC, whose
    blank is 0; None: the objective has no CTC."""


def make_text_network(config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int) -> TextNetwork:
    """The encoder, the decoder and the CTC head of a trained model as functions, without dropout.

    The arguments are those of `make_seq2seq`.
    """
    model = _Model(config, source, vocab_size, length)

    def next_logits(params: Params, ids: Array, tokens: Tokens) -> Float[Array, "batch length vocab"]:
        """The decoder's logits alone."""
        return model.decode(params, ids, tokens)[0]

    return TextNetwork(
        model.encode,
        next_logits if config.decodes else None,
        model.ctc_logits if config.aligns else None,
    )


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """A way to generate text: the base of its parts."""

    name: ClassVar[str]
    """Name by which the command line chooses the part."""
    uses_ctc: ClassVar[bool] = False
    """Whether text is generated by the CTC head, without the decoder."""

    def generate(self, decoding: _Decoding, keys: ExampleKeys | None) -> GeneratedTokens:
        """One sequence per example."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class BeamSearchConfig(GenerationConfig):
    """Beam search."""

    name: ClassVar[str] = "beam"

    beams: int = 4
    """Number of candidate texts that the beam search keeps at each step."""
    length_penalty: float = 0.6
    """Exponent p of the beam search's length normalisation: a text of n tokens is scored by its log-probability divided
    by ((5 + n) / 6)^p. 0: not normalised, which favours short texts; larger values favour longer ones."""

    def __post_init__(self):
        """Checks the numbers."""
        check_at_least(self, 1, "beams")
        check_at_least(self, 0, "length_penalty")

    def generate(self, decoding, keys):
        """The best text of the beam search for each source, as ids ``[B, length]``; ``keys`` are not used.

        ``decoding``: the model, its parameters and the sources' tokens. ``decoding.start()`` is ``(step, logits,
        state)``, see `start_decoding`.
        """
        sequences = beam_search(
            *decoding.start(),
            beams=self.beams,
            penalty=self.length_penalty,
            length=decoding.length,
            end=decoding.end,
            normalize=decoding.language is None,
        )
        # Arrays are [B, beams, ...], the best beam first.
        return jax.tree.map(lambda x: x[:, 0], sequences)


@dataclasses.dataclass(frozen=True)
class GreedySearchConfig(GenerationConfig):
    """The most probable token at each step."""

    name: ClassVar[str] = "greedy"

    def generate(self, decoding, keys):
        return sample(*decoding.start(), length=decoding.length, end=decoding.end)


@dataclasses.dataclass(frozen=True)
class SamplingConfig(GenerationConfig):
    """Random tokens by their probabilities."""

    name: ClassVar[str] = "sample"

    temperature: float = 1.0
    """Divisor of the logits before sampling; below 1 prefers probable tokens."""
    top_k: int | None = None
    """Number of most probable tokens that are sampled from at each step; None: all tokens."""
    top_p: float | None = None
    """Total probability of the most probable tokens that are sampled from at each step (nucleus sampling), above 0 and
    at most 1; None: all tokens."""

    def __post_init__(self):
        """Checks the numbers."""
        check_sampling(self.temperature, self.top_k, self.top_p)

    def generate(self, decoding, keys):
        """One sampled text for each source; ``keys`` (one for each source) are required.

        ``decoding.start()`` is ``(step, logits, state)``, see `start_decoding`.
        """
        if keys is None:
            raise ValueError("sampling needs a key")
        return sample(
            *decoding.start(),
            keys=keys,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            length=decoding.length,
            end=decoding.end,
        )


@dataclasses.dataclass(frozen=True)
class CTCBestPathConfig(GenerationConfig):
    """The most probable alignment of CTC."""

    name: ClassVar[str] = "ctc"
    uses_ctc: ClassVar[bool] = True

    def generate(self, decoding, keys):
        logits = decoding.model.ctc_logits(decoding.params, decoding.memory)
        return ctc_greedy(logits, decoding.memory.mask)


Generation = BeamSearchConfig | GreedySearchConfig | SamplingConfig | CTCBestPathConfig
"""The ways to generate text, by name."""


def start_decoding(
    decoder: TextDecoder, params: Params, memory: Tokens, begin: Int[Array, "rows"]
) -> tuple[Step, Array, Any]:
    """``(step, logits, state)``: the start of token-by-token decoding, as the functions of `core.decoding` take it.

    ``logits [N, vocab]`` predict the token after the ``begin`` token of each of ``N`` sequences, ``state`` is the
    key-value cache, and ``step(tokens, position, state)`` gives the next logits and state for ``tokens [N]`` at the
    place ``position`` in their sequences. Several sequences (such as beams) may share an entry of ``memory``, the
    tokens of one source, at the start or only in ``step``.
    """
    # The cache of scanned layers is [layers, N, ...]; core.decoding selects rows along the first axis.
    rows_first = (lambda x: jnp.swapaxes(x, 0, 1)) if decoder.scan_layers else (lambda x: x)

    def apply(variables, token, position, mutable):
        """The logits ``[N, vocab]`` after ``token [N]``, and the updated Flax collections named in ``mutable``.

        ``variables``: the collections of earlier calls (cache and memory). ``position``: of the token, from 0.
        """
        logits, updated = decoder.apply(
            {"params": params, **variables}, token[:, None], memory, position=position, mutable=mutable
        )
        return logits[:, 0], updated  # [N, 1 token, vocab] -> [N, vocab]

    # The first call creates the cache, and the collection "memory": keys and values of the source, which stay the same.
    logits, caches = apply({}, begin, position=0, mutable=["cache", "memory"])
    shared = {"memory": caches["memory"]}

    def step(tokens, position, state):
        """One step of decoding: the next logits ``[N, vocab]`` and the updated cache."""
        cache = jax.tree.map(rows_first, state)  # its own inverse
        logits, updated = apply({**shared, "cache": cache}, tokens, position, ["cache"])
        return logits, jax.tree.map(rows_first, updated["cache"])

    return step, logits, jax.tree.map(rows_first, caches["cache"])


class _Decoding(NamedTuple):
    """What a `GenerationConfig` generates from."""

    model: _Model
    params: Params
    memory: Tokens
    """The source's tokens."""
    begin: int
    end: int
    language: LanguageModelFusion | None
    """A language model beside the decoder; None: there is none."""

    @property
    def length(self) -> int:
        """The largest number of tokens after the begin token."""
        return self.model.length - 1

    def start(self) -> tuple[Step, Array, Any]:
        """The decoder after the begin token of each example, as `start_decoding` returns it, with the language model if
        there is one."""
        begin = jnp.full(self.memory.values.shape[0], self.begin, jnp.int32)
        start = start_decoding(self.model.decoder, self.params["decoder"], self.memory, begin)
        return start if self.language is None else self.language.start(*start)


def make_text_generator(
    config: Seq2SeqConfig,
    source: str,
    *,
    vocab_size: int,
    length: int,
    begin: int,
    end: int,
    generation: GenerationConfig | None = None,
    language: LanguageModelFusion | None = None,
) -> Callable[..., GeneratedTokens]:
    """``generate(params, batch, key=None)``: the tokens of one text per example, without begin and end.

    Args:
      config, source, vocab_size, length: as for `make_seq2seq`.
      begin, end: ids of the tokens that every text begins and ends with.
      generation: how text is generated; None: beam search, or CTC where there is no decoder. Sampling needs the
        ``key``; the text of an example depends on the key and on the example's ``index``.
      language: a language model that the decoder's search uses too; CTC does not use it.

    Raises:
      ValueError: an unknown source, or a ``generation`` that ``config``'s objective does not train.

    Example::

        generate = jax.jit(make_text_generator(config, "image", vocab_size=1000, length=20, begin=1, end=2))
        generated = generate(params, batch)
        tokenizer.decode_batch(generated.tokens, generated.mask)
    """
    model = _Model(config, source, vocab_size, length)
    generation = config.decodings[0] if generation is None else generation
    is_trained = config.aligns if generation.uses_ctc else config.decodes
    if not is_trained:
        part = "CTC head" if generation.uses_ctc else "decoder"
        raise ValueError(
            f"the objective {config.objective.name!r} trains no {part}, which {generation.name!r} needs"
        )

    def generate(params: Params, batch: Batch, key: Key | None = None) -> GeneratedTokens:
        """The generated tokens of one text per example; ``key``: for sampling."""
        memory = model.encode(params, batch)
        keys = None if key is None else batch_keys(key, batch)
        return generation.generate(_Decoding(model, params, memory, begin, end, language), keys)

    return generate


def make_cross_attention(
    config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int
) -> Callable[[Params, Batch], Float[Array, "batch length tokens"]]:
    """``attention(params, batch) -> [B, length, N]``: the decoder's cross-attention to the source's ``N`` tokens.

    Row ``t`` holds the attention from token ``t`` of ``text``, by which token ``t + 1`` is predicted. The mean over
    layers and heads; rows sum to 1.
    """
    model = _Model(config, source, vocab_size, length)

    def attention(params: Params, batch: Batch):
        return model.cross_attention(params, batch["text"], model.encode(params, batch))

    return attention
