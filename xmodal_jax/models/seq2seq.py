"""Anything to text: captions of pictures and videos, recognition of speech. Encode, then write a token at a time.

`make_seq2seq` is the method, `make_writer` what generates with its parameters, in one compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.decoding import Generated, beam_search, ctc_greedy, sample
from xmodal_jax.core.random import example_keys, fold_in_name, named_keys
from xmodal_jax.losses import sequence
from xmodal_jax.models.towers import AudioFeatures, Augment, init_inputs, make_encoder, prepare, presence
from xmodal_jax.nets.encoders import DEFAULTS, EncoderConfig, build_decoder
from xmodal_jax.nets.fusion import content_mask
from xmodal_jax.nets.text import TextDecoder
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.types import Batch, ExampleKeys, Key, Method, Params, Tokens


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """Encoder, decoder and objective."""

    objective: Literal["attention", "ctc", "joint"] = "attention"
    """The decoder's cross-entropy (attention), CTC over the encoder's tokens, or both (joint)."""
    ctc_weight: float = 0.3
    """Weight of CTC in "joint", of 1 together."""
    label_smoothing: float = 0.1
    """Share of the target spread over the vocabulary, in the decoder's cross-entropy."""
    decoder: EncoderConfig = EncoderConfig("transformer")
    """Text decoder."""
    image: EncoderConfig = dataclasses.replace(DEFAULTS["image"], norm="group", token_positions=True)
    """Image encoder."""
    audio: EncoderConfig = dataclasses.replace(DEFAULTS["audio"], downsample=4)
    """Audio encoder."""
    video: EncoderConfig = DEFAULTS["video"]
    """Video encoder."""
    features: AudioFeatures = AudioFeatures()
    """Spectrogram that the audio encoder sees."""
    augment: Augment = Augment(image=AugmentConfig(translate=0))
    """Random changes in training."""

    def __post_init__(self):
        for name in ("ctc_weight", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder."""
        return self.objective != "ctc"

    @property
    def aligns(self) -> bool:
        """Whether there is a CTC head."""
        return self.objective != "attention"

    @property
    def ways(self) -> tuple[str, ...]:
        """How text can be generated (see `Writing`), without chance."""
        return ("beam", "greedy") * self.decodes + ("ctc",) * self.aligns


class CTCHead(nn.Module):
    """Tokens to logits over the vocabulary, of which 0 (padding) is the blank."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch frames dim"]) -> Float[Array, "batch frames vocab"]:
        return nn.Dense(self.vocab_size, name="logits")(nn.LayerNorm(name="norm")(tokens).astype(jnp.float32))


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
        return build_decoder(self.config.decoder, vocab_size=self.vocab_size, max_length=self.length)

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
        if self.config.aligns:
            params["ctc"] = self.head.init(fold_in_name(key, "ctc"), tokens.values)["params"]
        return params

    def decode(self, params: Params, ids: Array, memory: Tokens, keys: ExampleKeys | None = None) -> Array:
        keys = None if keys is None else fold_in_name(keys, "decoder")  # not the encoder's own draws again
        return self.decoder.apply({"params": params["decoder"]}, ids, memory, keys=keys)

    def align(self, params: Params, memory: Tokens) -> Array:
        return self.head.apply({"params": params["ctc"]}, memory.values)


class Written(NamedTuple):
    """What `make_seq2seq`'s ``predict`` gives: how well the batch's own texts are expected."""

    cross_entropy: Float[Array, "batch"]
    """Nats per token of the decoder, given the true tokens before; zeros without a decoder."""
    ctc: Float[Array, "batch"]
    """Nats per text; zeros without a CTC head."""


def make_seq2seq(config: Seq2SeqConfig, source: str, *, vocab_size: int, length: int) -> Method:
    """Text about ``source`` (image, audio or video), learned by teacher forcing, CTC or both.

    The batch holds the source, ``text`` int32 ``[B, length]`` from the begin to the end token, and its mask. The
    decoder is given the tokens up to ``t`` and the source, and its loss is the mean over the global batch's tokens of
    the smoothed cross-entropy of token ``t + 1``; CTC's is the mean over its texts of ``-log p(text) / tokens``, of the
    tokens between begin and end. An example without the source or without text has no influence.

    aux: ``cross_entropy`` and ``accuracy`` (of tokens, teacher forced), ``ctc`` and ``ctc_unaligned``, the share of
    texts that are longer than the source's tokens can spell.

    Raises:
      ValueError: an unknown source.
    """
    net = _Network(config, source, vocab_size, length)

    def terms(params: Params, batch: Batch, keys: ExampleKeys | None):
        """Per example, each loss with its weight."""
        memory = net.encode(params, batch, keys)
        ids = batch["text"]
        mask = batch.get("text_mask", ids != 0) & presence(batch, ("text",))["text"][:, None]
        mask &= presence(batch, (source,))[source][:, None]
        targets, wanted, found = ids[:, 1:], mask[:, 1:], {}
        if config.decodes:
            logits = net.decode(params, ids[:, :-1], memory, keys)
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
        return found

    def loss(params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        (key,) = named_keys(key, "seq2seq")
        found = terms(params, batch, example_keys(key, batch["index"]))
        aux = {n: collectives.batch_mean(*pair, axis_name=axis_name) for n, pair in found.items()}
        weight = {"attention": 0.0, "ctc": 1.0, "joint": config.ctc_weight}[config.objective]
        total = (1 - weight) * aux.pop("loss", 0.0) + weight * aux.get("ctc", 0.0)
        return total, jax.lax.stop_gradient(aux)

    def predict(params: Params, batch: Batch) -> Written:
        found, nothing = terms(params, batch, None), jnp.zeros(len(batch["index"]))
        value = lambda name: found[name][0] if name in found else nothing
        return Written(value("cross_entropy"), value("ctc"))

    return Method(net.init, loss, predict)


@dataclasses.dataclass(frozen=True)
class Writing:
    """How text is generated."""

    how: Literal["greedy", "beam", "sample", "ctc"] = "beam"
    """The most probable token each time (greedy), beam search, sampling, or CTC's most probable alignment."""
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


def make_writer(
    config: Seq2SeqConfig,
    source: str,
    *,
    vocab_size: int,
    length: int,
    begin: int,
    end: int,
    writing: Writing = Writing(),
) -> Callable[..., Generated]:
    """``write(params, batch, key=None) -> Generated``: one text per example, its tokens without begin and end.

    ``begin``, ``end``: ids of the tokens that every text starts and ends with. ``key`` is for sampling; each example's
    text depends on the key and its ``index``.

    Raises:
      ValueError: an unknown source, or a way of writing that ``config``'s objective does not train.
    """
    net = _Network(config, source, vocab_size, length)
    if not (config.aligns if writing.how == "ctc" else config.decodes):
        raise ValueError(
            f"writing by {writing.how!r} needs what the objective {config.objective!r} does not train"
        )

    def start(params: Params, memory: Tokens, each: int):
        """What follows the begin token: ``(step, logits, state)``, of ``each`` rows per example."""
        rows = each * len(memory.values)

        def apply(variables, token, position, kept):
            logits, left = net.decoder.apply(
                {"params": params["decoder"], **variables},
                token[:, None],
                memory,
                position=position,
                mutable=kept,
            )
            return logits[:, 0], left

        logits, made = apply({}, jnp.full(rows, begin, jnp.int32), 0, ["cache", "memory"])
        shared = {"memory": made["memory"]}

        def step(tokens, position, state):
            logits, left = apply({**shared, "cache": state}, tokens, position, ["cache"])
            return logits, left["cache"]

        return step, logits, made["cache"]

    def write(params: Params, batch: Batch, key: Key | None = None) -> Generated:
        memory = net.encode(params, batch)
        room = dict(length=length - 1, end=end)
        if writing.how == "ctc":
            return ctc_greedy(net.align(params, memory), memory.mask)
        if writing.how == "beam":
            found = beam_search(
                *start(params, memory, writing.beams),
                beams=writing.beams,
                penalty=writing.length_penalty,
                **room,
            )
            return jax.tree.map(lambda x: x[:, 0], found)
        if writing.how == "greedy":
            return sample(*start(params, memory, 1), **room)
        if key is None:
            raise ValueError("sampling needs a key")
        chosen = dict(temperature=writing.temperature, top_k=writing.top_k, top_p=writing.top_p)
        return sample(*start(params, memory, 1), keys=example_keys(key, batch["index"]), **chosen, **room)

    return write
