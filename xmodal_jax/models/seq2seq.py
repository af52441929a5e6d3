"""Anything to text: captions of pictures and videos, recognition of speech. Encode, then write a token at a time.

`make_seq2seq` is the method, `make_text_generator` what generates with its parameters, in one compiled program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core import collectives
from xmodal_jax.core.decoding import GeneratedTokens, beam_search, ctc_greedy, sample
from xmodal_jax.core.random import example_keys, fold_in_name, named_keys
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import info_nce, sequence
from xmodal_jax.models.contrastive import MAX_SCALE, text_ids
from xmodal_jax.models.towers import AudioFeatures, Augment, init_inputs, make_encoder, prepare, presence
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
class Seq2SeqConfig:
    """Encoder, decoder and objective."""

    objective: Literal["attention", "ctc", "joint"] = "attention"
    """The decoder's cross-entropy (attention), CTC over the encoder's tokens, or both (joint)."""
    ctc_weight: float = 0.3
    """Weight of CTC in "joint", of 1 together."""
    label_smoothing: float = 0.1
    """Share of the target spread over the vocabulary, in the decoder's cross-entropy."""
    contrastive_weight: float = 0.0
    """Above 0: the weight of a contrastive loss between the source and its text, as in CoCa. The first half of the
    decoder's layers then reads the text alone; the source's tokens are pooled by attention."""
    embed_dim: int = 128
    """Dimensions of the space in which they are compared."""
    temperature: float = 0.07
    """Initial temperature of the contrastive loss; learned."""
    decoder: TextDecoderConfig = TextDecoderConfig()
    """Text decoder."""
    image: ImageEncoder = ConvNetConfig(token_positions=True)
    """Image encoder."""
    audio: AudioEncoder = AudioTransformerConfig(downsample=4)
    """Audio encoder."""
    video: VideoEncoder = StackedFramesConfig(token_positions=True)
    """Video encoder."""
    features: AudioFeatures = AudioFeatures()
    """Spectrogram that the audio encoder sees."""
    augment: Augment = Augment(image=AugmentConfig(translate=0))
    """Random changes in training."""

    def __post_init__(self):
        for name in ("ctc_weight", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.contrastive_weight < 0 or self.temperature <= 1 / MAX_SCALE:
            raise ValueError(f"contrastive_weight must not be negative, temperature above {1 / MAX_SCALE}")
        if self.contrasts and (not self.decodes or self.decoder.depth < 2):
            raise ValueError(
                "contrastive_weight needs the objective attention or joint and a decoder of at least two layers, of "
                f"which the first half reads the text alone; got {self.objective!r} and {self.decoder.depth}"
            )

    @property
    def contrasts(self) -> bool:
        """Whether source and text are compared."""
        return self.contrastive_weight > 0

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder."""
        return self.objective != "ctc"

    @property
    def aligns(self) -> bool:
        """Whether there is a CTC head."""
        return self.objective != "attention"

    @property
    def generation_methods(self) -> tuple[str, ...]:
        """How text can be generated (see `GenerationConfig`), without chance, the best first."""
        return ("beam", "greedy") * self.decodes + ("ctc",) * self.aligns


class CTCHead(nn.Module):
    """Tokens to logits over the vocabulary, of which 0 (padding) is the blank."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames vocab"]:
        return nn.Dense(self.vocab_size, name="logits")(nn.LayerNorm(name="norm")(tokens).astype(jnp.float32))


class ContrastHead(nn.Module):
    """The source's tokens and the states of its text to unit vectors ``[B, embed_dim]`` each, and the inverse
    temperature. Of the text the state of its last token counts, which has seen all."""

    embed_dim: int
    temperature: float

    @nn.compact
    def __call__(
        self, tokens: Tokens, states: Float[Array, "batch length dim"], mask: Bool[Array, "batch length"]
    ):
        last = jnp.maximum(mask.sum(axis=1) - 1, 0)
        text = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
        seen = nn.LayerNorm(name="norm")(Pool("attention", name="pool")(tokens))
        start = nn.initializers.constant(-math.log(self.temperature))
        scale = jnp.minimum(jnp.exp(self.param("log_scale", start, ())), MAX_SCALE)
        project = lambda name: nn.Dense(self.embed_dim, use_bias=False, name=name)
        return l2_normalize(project("source")(seen)), l2_normalize(project("text")(text)), scale


@dataclasses.dataclass(frozen=True)
class _Network:
    """Encoder, decoder and CTC head of one configuration."""

    config: Seq2SeqConfig
    source: str
    vocab_size: int
    length: int

    def __post_init__(self):
        if self.source not in ("image", "audio", "video"):
            raise ValueError(f"the source must be image, audio or video, got {self.source!r}")

    def encoder(self, batch: Batch) -> nn.Module:
        return make_encoder(self.source, getattr(self.config, self.source), batch, vocab_size=self.vocab_size)

    @property
    def decoder(self) -> TextDecoder:
        half = self.config.decoder.depth // 2 if self.config.contrasts else 0
        sizes = dict(vocab_size=self.vocab_size, max_length=self.length, text_depth=half)
        return build_decoder(self.config.decoder, **sizes)

    @property
    def contrast(self) -> ContrastHead:
        return ContrastHead(self.config.embed_dim, self.config.temperature)

    @property
    def head(self) -> CTCHead:
        return CTCHead(self.vocab_size)

    def encode(self, params: Params, batch: Batch, keys: ExampleKeys | None = None) -> Tokens:
        """The source's tokens; none are content where the source is missing."""
        inputs, mask = prepare(self.source, batch, self.config.features, self.config.augment, keys)
        tokens = self.encoder(batch).apply({"params": params[self.source]}, inputs, mask, keys=keys)
        return Tokens(tokens.values, content_mask(tokens, presence(batch, (self.source,))[self.source]))

    def init(self, key: Key, batch: Batch) -> Params:
        row, params = init_inputs(batch), {}
        inputs, mask = prepare(self.source, row, self.config.features)
        tokens, variables = self.encoder(row).init_with_output(fold_in_name(key, self.source), inputs, mask)
        params[self.source] = variables["params"]
        if self.config.decodes:
            ids = jnp.ones((1, self.length), jnp.int32)
            params["decoder"] = self.decoder.init(fold_in_name(key, "decoder"), ids, tokens)["params"]
        if self.config.contrasts:
            width = self.config.decoder.width
            states, mask = jnp.zeros((1, self.length, width)), jnp.ones((1, self.length), bool)
            made = self.contrast.init(fold_in_name(key, "contrast"), tokens, states, mask)
            params["contrast"] = made["params"]
        if self.config.aligns:
            params["ctc"] = self.head.init(fold_in_name(key, "ctc"), tokens.values)["params"]
        return params

    def decode(self, params: Params, ids: Array, memory: Tokens, keys: ExampleKeys | None = None):
        """Logits after every token, and the states of the text alone."""
        keys = None if keys is None else fold_in_name(keys, "decoder")  # not the encoder's own draws again
        return self.decoder.apply({"params": params["decoder"]}, ids, memory, keys=keys, states=True)

    def align(self, params: Params, memory: Tokens) -> Array:
        return self.head.apply({"params": params["ctc"]}, memory.values)


class Seq2SeqOutput(NamedTuple):
    """What `make_seq2seq`'s ``predict`` gives: how well the batch's own texts are expected."""

    cross_entropy: Float[Array, "batch"]
    """Nats per token of the decoder, given the true tokens before; zeros without a decoder."""
    ctc: Float[Array, "batch"]
    """Nats per text; zeros without a CTC head."""
    embeddings: dict[str, Float[Array, "batch dim"]]
    """Unit vectors of the source and of its text, by modality; empty without the contrastive loss."""


def make_seq2seq(config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int) -> Method:
    """Text about ``source`` (image, audio or video), learned by teacher forcing, CTC or both.

    The batch holds the source, ``text`` int32 ``[B, length]`` from the begin to the end token, and its mask. The
    decoder is given the tokens up to ``t`` and the source, and its loss is the mean over the global batch's tokens of
    the smoothed cross-entropy of token ``t + 1``; CTC's is the mean over its texts of ``-log p(text) / tokens``, of the
    tokens between begin and end. An example without the source or without text has no influence.

    ``contrastive_weight`` times the InfoNCE of source and text over the global batch is added, where it is above 0
    (CoCa, Yu et al. 2022, arXiv:2205.01917, eq. 3); texts that are equal are all positives.

    aux: ``cross_entropy`` and ``accuracy`` (of tokens, teacher forced), ``contrastive``, ``ctc`` and ``ctc_unaligned``,
    the share of texts that are longer than the source's tokens can spell.

    Raises:
      ValueError: an unknown source.
    """
    net = _Network(config, source, vocab_size, length)

    def terms(params: Params, batch: Batch, keys: ExampleKeys | None):
        """Per example each loss with its weight, and what the contrastive loss compares."""
        memory = net.encode(params, batch, keys)
        ids = batch["text"]
        mask = batch.get("text_mask", ids != 0) & presence(batch, ("text",))["text"][:, None]
        mask &= presence(batch, (source,))[source][:, None]
        targets, wanted, found, compared = ids[:, 1:], mask[:, 1:], {}, None
        if config.decodes:
            logits, states = net.decode(params, ids if config.contrasts else ids[:, :-1], memory, keys)
            logits = logits[:, : targets.shape[1]]
            if config.contrasts:
                compared = net.contrast.apply({"params": params["contrast"]}, memory, states, mask)
            count = wanted.sum(axis=1).astype(jnp.float32)
            smoothed = sequence.token_cross_entropy(logits, targets, wanted, smoothing=config.label_smoothing)
            plain = sequence.token_cross_entropy(logits, targets, wanted)
            right = ((logits.argmax(axis=-1) == targets) & wanted).sum(axis=1) / jnp.maximum(count, 1)
            found |= {"loss": (smoothed, count), "cross_entropy": (plain, count), "accuracy": (right, count)}
        if config.aligns:
            inner = wanted & jnp.pad(wanted[:, 1:], ((0, 0), (0, 1)))  # without the end token
            tokens = inner.sum(axis=1)
            fits = sequence.ctc_fits(memory.mask, targets, inner)
            there = (tokens > 0).astype(jnp.float32)
            loss = sequence.ctc(net.align(params, memory), memory.mask, targets, inner) / jnp.maximum(
                tokens, 1
            )
            found |= {"ctc": (loss, there * fits), "ctc_unaligned": (1.0 - fits, there)}
        return found, compared, mask.any(axis=1)

    def loss(params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        (key,) = named_keys(key, "seq2seq")
        found, compared, there = terms(params, batch, example_keys(key, batch["index"]))
        if compared is not None:
            a, b, scale = compared
            one = info_nce(
                a, b, temperature=1.0 / scale, present=there, match=text_ids(batch["text"]),
                duplicates="positive", axis_name=axis_name,
            )  # fmt: skip
            found["contrastive"] = (one, there.astype(jnp.float32))
        aux = {n: collectives.batch_mean(*pair, axis_name=axis_name) for n, pair in found.items()}
        weight = {"attention": 0.0, "ctc": 1.0, "joint": config.ctc_weight}[config.objective]
        total = (1 - weight) * aux.pop("loss", 0.0) + weight * aux.get("ctc", 0.0)
        total += config.contrastive_weight * aux.get("contrastive", 0.0)
        return total, jax.lax.stop_gradient(aux)

    def predict(params: Params, batch: Batch) -> Seq2SeqOutput:
        (found, compared, _), nothing = terms(params, batch, None), jnp.zeros(len(batch["index"]))
        value = lambda name: found[name][0] if name in found else nothing
        embeddings = {} if compared is None else {source: compared[0], "text": compared[1]}
        return Seq2SeqOutput(value("cross_entropy"), value("ctc"), embeddings)

    slots = [EncoderSlot(source, source, (source,))]
    if config.decodes:
        slots.append(EncoderSlot("decoder", "decoder", ("text",), new_parts="/cross_"))
    if config.aligns:
        slots.append(EncoderSlot("ctc", "ctc"))
    return Method(net.init, loss, predict, encoders=tuple(slots))


def make_feature_extractor(
    config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int
) -> Callable[[Params, Batch], Float[Array, "batch dim"]]:
    """``features(params, batch) -> [B, width]``: the mean of the source encoder's tokens."""
    net = _Network(config, source, vocab_size, length)

    def features(params: Params, batch: Batch) -> Float[Array, "batch dim"]:
        return Pool("mean").apply({}, net.encode(params, batch))

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
    """The functions of a captioner that judge given captions, to train a generator of images with.

    ``pixels`` are floats in [-1, 1], ``ids`` int32 ``[B, length]`` from the begin to the end token, valid under
    ``mask``. Redescription: MirrorGAN, Qiao et al. 2019, arXiv:1903.05854, eq. 14.

    Raises:
      ValueError: the configuration has no decoder, or its source is audio.
    """
    net = _Network(config, source, vocab_size, length)
    if source == "audio" or not config.decodes:
        raise ValueError("pictures are described by a captioner with a decoder (the objective attention)")

    def encode(params: Params, pixels) -> Float[Array, "batch length dim"]:
        return net.encoder({source: pixels}).apply({"params": params[source]}, pixels, None, keys=None).values

    def cross_entropy(params: Params, tokens, ids, mask) -> Float[Array, "batch"]:
        logits, _ = net.decode(params, ids[:, :-1], Tokens(tokens, None))
        return sequence.token_cross_entropy(logits, ids[:, 1:], mask[:, 1:])

    def attention(params: Params, tokens, ids) -> Float[Array, "batch length places"]:
        weights = _cross_attention(net, params, ids[:, :-1], Tokens(tokens, None))
        return jnp.pad(weights, [(0, 0), (1, 0), (0, 0)], constant_values=1.0 / tokens.shape[1])

    return Captioner(encode, cross_entropy, attention)


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How text is generated."""

    how: Literal["greedy", "beam", "sample", "ctc"] | None = None
    """The most probable token each time (greedy), beam search, sampling, or CTC's most probable alignment; None: beam
    search, or CTC where there is no decoder."""
    beams: int = 4
    """Beam search: sequences kept."""
    length_penalty: float = 0.6
    """Beam search: 0 prefers short texts, larger values longer ones."""
    temperature: float = 1.0
    """Sampling: below 1 prefers what is probable."""
    top_k: int | None = None
    """Sampling: among this many most probable tokens."""
    top_p: float | None = None
    """Sampling: among the most probable tokens that together have this probability."""


def start_decoding(decoder: TextDecoder, params: Params, memory: Tokens, begin: Int[Array, "rows"]):
    """What `core.decoding` goes on from, with a key-value cache: ``(step, logits, state)`` after the ``begin`` tokens,
    of which several rows may share one of ``memory``."""

    def apply(variables, token, position, kept):
        logits, left = decoder.apply(
            {"params": params, **variables}, token[:, None], memory, position=position, mutable=kept
        )
        return logits[:, 0], left

    logits, made = apply({}, begin, 0, ["cache", "memory"])
    shared = {"memory": made["memory"]}

    def step(tokens, position, state):
        logits, left = apply({**shared, "cache": state}, tokens, position, ["cache"])
        return logits, left["cache"]

    return step, logits, made["cache"]


def make_text_generator(
    config: Seq2SeqConfig,
    source: str,
    *,
    vocab_size: int,
    length: int,
    begin: int,
    end: int,
    generation: GenerationConfig = GenerationConfig(),
) -> Callable[..., GeneratedTokens]:
    """``write(params, batch, key=None) -> GeneratedTokens``: one text per example, its tokens without begin and end.

    ``begin``, ``end``: ids of the tokens that every text starts and ends with. ``key`` is for sampling; each example's
    text depends on the key and its ``index``.

    Raises:
      ValueError: an unknown source, or a way of generation that ``config``'s objective does not train.
    """
    net, how = _Network(config, source, vocab_size, length), generation.how or config.generation_methods[0]
    if not (config.aligns if how == "ctc" else config.decodes):
        raise ValueError(f"the objective {config.objective!r} trains nothing that writes by {how!r}")

    def start(params: Params, memory: Tokens, each: int):
        """Of ``each`` rows per example."""
        tokens = jnp.full(each * len(memory.values), begin, jnp.int32)
        return start_decoding(net.decoder, params["decoder"], memory, tokens)

    def write(params: Params, batch: Batch, key: Key | None = None) -> GeneratedTokens:
        memory = net.encode(params, batch)
        room = dict(length=length - 1, end=end)
        if how == "ctc":
            return ctc_greedy(net.align(params, memory), memory.mask)
        if how == "beam":
            found = beam_search(
                *start(params, memory, generation.beams),
                beams=generation.beams,
                penalty=generation.length_penalty,
                **room,
            )
            return jax.tree.map(lambda x: x[:, 0], found)
        if how == "greedy":
            return sample(*start(params, memory, 1), **room)
        if key is None:
            raise ValueError("sampling needs a key")
        chosen = dict(temperature=generation.temperature, top_k=generation.top_k, top_p=generation.top_p)
        return sample(*start(params, memory, 1), keys=example_keys(key, batch["index"]), **chosen, **room)

    return write


def make_cross_attention(
    config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int
) -> Callable[[Params, Batch], Float[Array, "batch length tokens"]]:
    """``attention(params, batch) -> [B, length, N]``: the decoder's cross-attention to the source's ``N`` tokens after
    each token of ``text``, when it predicts the next one. The mean over layers and heads; rows sum to 1."""
    net = _Network(config, source, vocab_size, length)

    def attention(params: Params, batch: Batch):
        return _cross_attention(net, params, batch["text"], net.encode(params, batch))

    return attention


def _cross_attention(
    net: _Network, params: Params, ids: Array, memory: Tokens
) -> Float[Array, "batch length tokens"]:
    _, state = net.decoder.apply({"params": params["decoder"]}, ids, memory, mutable=["intermediates"])
    maps = attention_maps(state.get("intermediates", {}))
    of_layers = [w.mean(axis=1) for path, w in maps.items() if path.endswith("cross_attention")]
    if not of_layers:
        raise ValueError("a decoder with scan_layers records no attention: leave it out")
    return sum(of_layers) / len(of_layers)
