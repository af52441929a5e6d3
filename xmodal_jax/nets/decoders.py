"""The table of decoders: from a latent code ``[N, D]`` to what is said of the data. A new one touches this file alone.

A decoder gives means or logits and no activation of its own: what they mean is the likelihood's choice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xmodal_jax.core.collectives import keep_rows
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.nets.conv import ConvTranspose
from xmodal_jax.nets.encoders import TextDecoderConfig, build_decoder
from xmodal_jax.nets.gan import ResidualPixels, stages_of
from xmodal_jax.nets.transformer import TransformerEncoder
from xmodal_jax.types import ExampleKeys, Tokens


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The size and kind of one decoder; it ignores the fields that are said to belong to others."""

    name: str
    """Which decoder: a key of ``DECODERS[kind]``."""
    width: int = 64
    """Channels of the smallest picture ("residual": of the two smallest), features of a hidden layer, a token or a
    coarse frame."""
    depth: int = 2
    """Hidden layers of "mlp", blocks of a transformer; "conv" and "residual" have as many as the size asks for."""
    heads: int = 4
    """Attention heads (text only); must divide the width."""
    dropout: float = 0.0
    """Of the transformers' residual branches (text only)."""
    word_dropout: float = 0.0
    """Probability that "autoregressive" is not told a token it goes on from, so that it asks the code instead
    (Bowman et al. 2016, arXiv:1511.06349, sec. 3.2)."""

    def __post_init__(self):
        for field in ("width", "depth", "heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"DecoderConfig.{field} must be at least 1, got {getattr(self, field)}")
        for field in ("dropout", "word_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"DecoderConfig.{field} must lie in [0, 1), got {getattr(self, field)}")


class Size(NamedTuple):
    """What a decoder makes: the shape of one example, and how many values an element has (tokens, classes)."""

    shape: tuple[int, ...]
    values: int = 0

    @property
    def elements(self) -> int:
        """Of one example."""
        return math.prod(self.shape)


class MLPDecoder(nn.Module):
    """``depth`` hidden layers of ``width`` with ReLU, then all elements at once, ``[N, *shape]``."""

    shape: tuple[int, ...]
    width: int = 512
    depth: int = 2

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], told=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows *shape"]:
        for k in range(self.depth):
            z = nn.relu(keep_rows(nn.Dense(self.width, name=f"hidden_{k}")(z)))
        return nn.Dense(math.prod(self.shape), name="out")(z).reshape(len(z), *self.shape)


class ConvDecoder(nn.Module):
    """The mirror of `nets.image.PlainConvNet`: dense to the smallest picture of ``width`` channels, then transposed
    convolutions 4x4 of stride 2 with ReLU between them, each of half the channels.

    Raises:
      ValueError: the sides cannot be halved.
    """

    shape: tuple[int, int, int]
    width: int = 64

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], told=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows height width channels"]:
        height, width, channels = self.shape
        stages = stages_of(self.shape, "decoder")
        height, width = height // 2**stages, width // 2**stages
        x = nn.Dense(height * width * self.width, name="start")(z).reshape(len(z), height, width, self.width)
        for k in range(stages):
            out = channels if k == stages - 1 else max(self.width // 2 ** (k + 1), 1)
            x = keep_rows(ConvTranspose(out, (4, 4), 2, name=f"up_{k}")(nn.relu(x)))
        return x


class ResidualDecoder(ResidualPixels):
    """`nets.gan.ResidualPixels` of the code, which thus reaches every size: it learns in fewer steps than `ConvDecoder`
    does, though each takes longer.

    Raises:
      ValueError: the sides cannot be halved.
    """

    part: ClassVar[str] = "decoder"

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], told=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows height width channels"]:
        return self.paint(z, None, keys)


class FrameDecoder(nn.Module):
    """Log-mel frames ``[N, frames, mels]``: dense to a sixteenth of the frames, then transposed convolutions of stride
    2 over time."""

    shape: tuple[int, int]
    width: int = 64
    halvings: int = 4

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], told=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows frames mels"]:
        frames, mels = self.shape
        coarse = -(-frames // 2**self.halvings)
        x = nn.Dense(coarse * self.width, name="start")(z).reshape(len(z), coarse, self.width)
        for k in range(self.halvings):
            last = k == self.halvings - 1
            x = keep_rows(ConvTranspose(mels if last else self.width, (4,), 2, name=f"up_{k}")(nn.relu(x)))
        return x[:, :frames]


class _Places(TransformerEncoder):
    """Tokens that know their places, and a code that each of them is told."""

    length: int = 0

    @nn.compact
    def __call__(self, code, keys):
        x = jnp.broadcast_to(code[:, None], (len(code), self.length, self.width))
        return self.encode(x, None, (self.length,), keys).values


class ParallelTextDecoder(nn.Module):
    """Logits of all tokens at once, ``[N, length, vocab]``: given the code, each token is independent of the
    others. The first token is the one that begins every text."""

    length: int
    vocab_size: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], told=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows length vocab"]:
        code = nn.Dense(self.width, name="code")(z)
        places = _Places(
            width=self.width, depth=self.depth, heads=self.heads, dropout=self.dropout, length=self.length,
            name="places",
        )  # fmt: skip
        return nn.Dense(self.vocab_size, name="out")(places(code, keys)).astype(jnp.float32)


class AutoregressiveTextDecoder(nn.Module):
    """Logits of each token given the code and the tokens before it, ``[N, length, vocab]``; ``told`` are the ids
    ``[N, length]``, of which logits ``t`` have seen those before ``t``. `nets.text.TextDecoder` with the code as its
    memory."""

    length: int
    vocab_size: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0
    word_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "rows latent"],
        told: Int[Array, "rows length"],
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "rows length vocab"]:
        config = TextDecoderConfig(width=self.width, depth=self.depth, heads=self.heads, dropout=self.dropout)
        decoder = build_decoder(config, vocab_size=self.vocab_size, max_length=self.length)
        memory = nn.Dense(4 * self.width, name="code")(z).reshape(len(z), 4, self.width)
        if keys is not None and self.word_dropout:
            told = _unsaid(told, keys, self.word_dropout)
        # Shifted by one: the first logits have seen padding (0), which nothing else is told at the start.
        before = jnp.pad(told[:, :-1], ((0, 0), (1, 0)))
        return decoder(before, Tokens(memory, None), keys=keys)


def _unsaid(ids, keys, rate: float):
    draw = lambda key: jax.random.uniform(key, ids.shape[1:])
    return jnp.where(jax.vmap(draw)(fold_in_name(keys, "word_dropout")) < rate, 0, ids)


def _parallel(config: DecoderConfig, size: Size) -> nn.Module:
    return ParallelTextDecoder(
        size.shape[0], size.values, config.width, config.depth, config.heads, config.dropout
    )


def _mlp(config: DecoderConfig, size: Size) -> nn.Module:
    return MLPDecoder(size.shape, config.width, config.depth)


def _label(config: DecoderConfig, size: Size) -> nn.Module:
    return MLPDecoder((size.values,), config.width, config.depth)


def _autoregressive(config: DecoderConfig, size: Size) -> nn.Module:
    return AutoregressiveTextDecoder(
        size.shape[0],
        size.values,
        config.width,
        config.depth,
        config.heads,
        config.dropout,
        config.word_dropout,
    )


DECODERS: Mapping[str, Mapping[str, Callable[[DecoderConfig, Size], nn.Module]]] = {
    "image": {
        "conv": lambda config, size: ConvDecoder(size.shape, config.width),
        "residual": lambda config, size: ResidualDecoder(size.shape, config.width),
        "mlp": _mlp,
    },
    "text": {"parallel": _parallel, "autoregressive": _autoregressive},
    "audio": {"conv": lambda config, size: FrameDecoder(size.shape, config.width), "mlp": _mlp},
    "label": {"mlp": _label},
}
"""``DECODERS[kind][name](config, size) -> module(z, told, *, keys=None)``."""


def build_latent_decoder(kind: str, config: DecoderConfig, size: Size) -> nn.Module:
    """The decoder ``module(z [N, D], told, *, keys=None)`` of a kind of data.

    Raises:
      ValueError: no such decoder.
    """
    if kind not in DECODERS or config.name not in DECODERS[kind]:
        raise ValueError(f"decoders of {kind} are {sorted(DECODERS.get(kind, ()))}, got {config.name!r}")
    return DECODERS[kind][config.name](config, size)
