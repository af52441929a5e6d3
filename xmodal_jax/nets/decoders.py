"""Decoders: from a latent ``[N, D]`` to the parameters of a distribution of the data.

A decoder returns means or logits and has no output activation: the likelihood decides what they mean. Each has a
configuration class with only its own options; the unions at the end of the file are the tables of decoders that each
kind of data can have. A new decoder touches this file alone.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xmodal_jax.core.checks import check_at_least, check_rates
from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.nets.conv import ConvTranspose
from xmodal_jax.nets.encoders import TextDecoderConfig, build_decoder
from xmodal_jax.nets.gan import ResidualPixels
from xmodal_jax.nets.image import upsampling_stages
from xmodal_jax.nets.transformer import TransformerEncoder
from xmodal_jax.types import ExampleKeys, Tokens


class Size(NamedTuple):
    """The size of one example: its shape and, for discrete data, how many values an element can take."""

    shape: tuple[int, ...]
    """Height, width and channels of an image, frames and mel bands of audio, tokens of a text, () of a label."""
    values: int = 0
    """Size of the vocabulary, number of classes; 0 for real-valued data."""

    @property
    def elements(self) -> int:
        """How many elements an example has."""
        return math.prod(self.shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of a decoder's output: a mean for each element, or a logit for each of its values."""
        return (*self.shape, self.values) if self.values else self.shape


class MLPDecoder(nn.Module):
    """``depth`` hidden layers of ``width`` units with ReLU, then all outputs at once, ``[N, *shape]``."""

    shape: tuple[int, ...]
    width: int = 512
    depth: int = 2

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], tokens=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows *shape"]:
        """The outputs ``[N, *shape]`` for the latents ``z``. ``tokens`` and ``keys``, which all decoders take, are
        unused."""
        for k in range(self.depth):
            z = nn.relu(shard_examples(nn.Dense(self.width, name=f"hidden_{k}")(z)))
        return nn.Dense(math.prod(self.shape), name="out")(z).reshape(z.shape[0], *self.shape)


class ConvDecoder(nn.Module):
    """Images by the mirror of `nets.image.PlainConvNet`: a dense layer to the smallest feature map with ``width``
    channels, then transposed 4x4 convolutions of stride 2 with ReLU between them, each with half the channels.

    With a ``grid`` of G the latent consists of G x G equal parts, row by row, each of which gives its own part of the
    smallest feature map, by the same dense layer.

    Raises:
      ValueError: if the sides of the image cannot be halved, or the latent does not divide into G x G parts.
    """

    shape: tuple[int, int, int]
    width: int = 64
    grid: int = 1

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], tokens=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows height width channels"]:
        """The images for the latents ``z``: a small feature map, doubled in size by each transposed convolution.

        ``tokens`` and ``keys``, which all decoders take, are unused.
        """
        height, width, channels = self.shape
        stages = upsampling_stages(self.shape, "decoder")
        x = self.smallest_map(z, height // 2**stages, width // 2**stages)
        for k in range(stages):
            out = channels if k == stages - 1 else max(self.width // 2 ** (k + 1), 1)
            x = shard_examples(ConvTranspose(out, (4, 4), strides=2, name=f"up_{k}")(nn.relu(x)))
        return x

    def smallest_map(
        self, z: Float[Array, "rows latent"], height: int, width: int
    ) -> Float[Array, "rows height width channels"]:
        """The smallest feature map; where the grid does not divide its sides, the last parts are cut."""
        g = self.grid
        if z.shape[1] % g**2:
            raise ValueError(
                f"a latent of {z.shape[1]} dimensions does not divide into {g} x {g} parts: choose another grid of the "
                "decoder"
            )
        rows, columns = -(-height // g), -(-width // g)  # of each part
        x = nn.Dense(rows * columns * self.width, name="start")(z.reshape(z.shape[0], g, g, -1))
        x = x.reshape(-1, g, g, rows, columns, self.width).swapaxes(2, 3)
        return x.reshape(-1, g * rows, g * columns, self.width)[:, :height, :width]


class ResidualDecoder(ResidualPixels):
    """Images by the residual blocks of `nets.gan.ResidualPixels`, modulated by the latent at every resolution.

    It learns in fewer steps than `ConvDecoder`, though each step takes longer.

    Raises:
      ValueError: if the sides of the image cannot be halved.
    """

    part: ClassVar[str] = "decoder"

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], tokens=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows height width channels"]:
        """The images for the latents ``z``. ``tokens``, which all decoders take, is unused."""
        return self.to_pixels(z, words=None, keys=keys)


class FrameDecoder(nn.Module):
    """Log-mel frames ``[N, frames, mels]``: a dense layer to a sixteenth of the frames, then transposed convolutions of
    stride 2 over time, cut to the number of frames."""

    shape: tuple[int, int]
    width: int = 64
    halvings: int = 4

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], tokens=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows frames mels"]:
        """The log-mel frames for the latents ``z``: a few coarse frames, doubled in number by each transposed
        convolution.

        ``tokens`` and ``keys``, which all decoders take, are unused.
        """
        frames, mels = self.shape
        coarse_frames = -(-frames // 2**self.halvings)
        x = nn.Dense(coarse_frames * self.width, name="start")(z).reshape(
            z.shape[0], coarse_frames, self.width
        )
        for k in range(self.halvings):
            last = k == self.halvings - 1
            x = shard_examples(
                ConvTranspose(mels if last else self.width, (4,), strides=2, name=f"up_{k}")(nn.relu(x))
            )
        return x[:, :frames]


class WithScale(nn.Module):
    """A decoder of measured quantities with a learned scale for each feature (the last axis): ``[N, *shape, 2]``, the
    mean of each value and the logarithm of its scale.

    The scale ``least_scale + exp(s)`` starts near 1, the standard deviation of standardised data; ``s`` is a parameter
    of each feature, the same for all latents.
    """

    decoder: nn.Module
    least_scale: float = 0.01

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], tokens=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows *shape 2"]:
        """Means and log-scales of the values for the latents ``z``; the decoder gets ``tokens`` and ``keys``."""
        mean = self.decoder(z, tokens, keys=keys)
        raw = self.param("log_scale", nn.initializers.zeros_init(), mean.shape[-1:])
        log_scale = jnp.log(self.least_scale + jnp.exp(raw))
        return jnp.stack([mean, jnp.broadcast_to(log_scale, mean.shape)], axis=-1)


class _PositionTokens(TransformerEncoder):
    """A transformer over ``length`` copies of a vector, which differ by their position embeddings alone."""

    length: int = 0

    @nn.compact
    def __call__(self, vector, keys):
        """``vector [N, width]`` to tokens ``[N, length, width]``."""
        x = jnp.broadcast_to(vector[:, None], (vector.shape[0], self.length, self.width))
        return self.encode(x, mask=None, grid=(self.length,), keys=keys).values


class ParallelTextDecoder(nn.Module):
    """Logits of all tokens at once, ``[N, length, vocab]``: given the latent, the tokens are independent.

    The first token is the one that begins every text.
    """

    length: int
    vocab_size: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, z: Float[Array, "rows latent"], tokens=None, *, keys: ExampleKeys | None = None
    ) -> Float[Array, "rows length vocab"]:
        """Logits of all tokens of the texts at once, given the latents ``z``.

        ``tokens``, which all decoders take, is unused. ``keys``: one per latent, for dropout; None in evaluation.
        """
        vector = nn.Dense(self.width, name="code")(z)
        transformer = _PositionTokens(
            width=self.width, depth=self.depth, heads=self.heads, dropout=self.dropout, length=self.length,
            name="places",
        )  # fmt: skip
        return nn.Dense(self.vocab_size, name="out")(transformer(vector, keys)).astype(jnp.float32)


class AutoregressiveTextDecoder(nn.Module):
    """Logits of each token given the latent and the tokens before it, ``[N, length, vocab]``.

    A `nets.text.TextDecoder` that attends to the latent, as four vectors. ``tokens`` are the ids ``[N, length]`` of the
    text; the logits at position t depend on those before t.
    """

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
        tokens: Int[Array, "rows length"],
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "rows length vocab"]:
        """Logits of each token, given the latent ``z`` and the ``tokens`` before it.

        ``keys``: one for each of the latents, for dropout and word dropout in training; None in evaluation.
        """
        config = TextDecoderConfig(width=self.width, depth=self.depth, heads=self.heads, dropout=self.dropout)
        decoder = build_decoder(config, vocab_size=self.vocab_size, max_length=self.length)
        # The latent becomes four tokens, which the decoder attends to.
        memory = nn.Dense(4 * self.width, name="code")(z).reshape(z.shape[0], 4, self.width)
        if keys is not None and self.word_dropout:
            tokens = drop_words(tokens, keys, self.word_dropout)
        # Shifted by one: the first position gets padding (0), which stands for the start of the text.
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
        return decoder(before, Tokens(memory, mask=None), keys=keys)


def drop_words(ids: Int[Array, "rows length"], keys: ExampleKeys, rate: float) -> Int[Array, "rows length"]:
    """Replaces each token by padding (0) with probability ``rate`` (Bowman et al. 2016, arXiv:1511.06349, sec. 3.2)."""
    draw_uniform = lambda key: jax.random.uniform(key, ids.shape[1:])
    uniform = jax.vmap(draw_uniform)(fold_in_name(keys, "word_dropout"))
    return jnp.where(uniform < rate, 0, ids)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(abc.ABC):
    """The options of one decoder. Each decoder is a subclass with a ``name`` and only the options that it has."""

    name: ClassVar[str]
    """Name by which the command line chooses the part."""
    autoregressive: ClassVar[bool] = False
    """Whether the outputs depend on the tokens before them, so that a text is generated token by token."""

    width: int = 64
    """Size of the hidden layers."""

    def __post_init__(self):
        """Checks the range of those options that the decoder has."""
        check_at_least(self, 1, *(name for name in ("width", "depth", "heads") if hasattr(self, name)))
        check_rates(self, *(name for name in ("dropout", "word_dropout") if hasattr(self, name)))

    @abc.abstractmethod
    def build(self, size: Size) -> nn.Module:
        """The decoder ``module(z [N, D], tokens, *, keys=None) -> [N, *size.output_shape]``.

        ``tokens``: the ids ``[N, length]`` of texts, which autoregressive decoders need; None for other data.
        """


@dataclasses.dataclass(frozen=True)
class MLPDecoderConfig(DecoderConfig):
    """Dense layers, for any shape (`MLPDecoder`)."""

    name: ClassVar[str] = "mlp"
    width: int = 64
    """Units of each hidden layer."""
    depth: int = 2
    """Number of hidden layers of the decoder."""

    def build(self, size: Size) -> MLPDecoder:
        return MLPDecoder(size.output_shape, self.width, self.depth)


@dataclasses.dataclass(frozen=True)
class ConvDecoderConfig(DecoderConfig):
    """Transposed convolutions, for images (`ConvDecoder`); as many as the image size needs."""

    name: ClassVar[str] = "conv"
    width: int = 64
    """Channels at the smallest resolution; they halve with every doubling of the resolution."""
    grid: int = 1
    """The latent is divided into grid x grid equal parts, each of which is decoded to its own part of the image."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "grid")

    def build(self, size: Size) -> ConvDecoder:
        return ConvDecoder(size.output_shape, self.width, self.grid)


@dataclasses.dataclass(frozen=True)
class ResidualDecoderConfig(DecoderConfig):
    """Residual blocks modulated by the latent, for images (`ResidualDecoder`); as many as the image size needs."""

    name: ClassVar[str] = "residual"
    width: int = 64
    """Channels at the two smallest resolutions; halved at each higher one, to no fewer than 8."""

    def build(self, size: Size) -> ResidualDecoder:
        return ResidualDecoder(size.output_shape, self.width)


@dataclasses.dataclass(frozen=True)
class FrameDecoderConfig(DecoderConfig):
    """Transposed convolutions over time, for log-mel frames (`FrameDecoder`)."""

    name: ClassVar[str] = "conv"
    width: int = 64
    """Channels of every layer."""

    def build(self, size: Size) -> FrameDecoder:
        return FrameDecoder(size.output_shape, self.width)


@dataclasses.dataclass(frozen=True)
class ParallelDecoderConfig(DecoderConfig):
    """A transformer that predicts all tokens at once (`ParallelTextDecoder`)."""

    name: ClassVar[str] = "parallel"
    width: int = 64
    """Dimensions of a token of the transformer."""
    depth: int = 2
    """Number of transformer blocks."""
    heads: int = 4
    """Number of attention heads; must divide the width."""
    dropout: float = 0.0
    """Dropout rate of each residual branch of the transformer."""

    def build(self, size: Size) -> ParallelTextDecoder:
        (length,) = size.shape
        return ParallelTextDecoder(length, size.values, self.width, self.depth, self.heads, self.dropout)


@dataclasses.dataclass(frozen=True)
class AutoregressiveDecoderConfig(ParallelDecoderConfig):
    """A transformer that predicts each token from those before it (`AutoregressiveTextDecoder`)."""

    name: ClassVar[str] = "autoregressive"
    autoregressive: ClassVar[bool] = True
    word_dropout: float = 0.0
    """Probability that a preceding token is replaced by padding in training, so that the decoder relies on the
    latent."""

    def build(self, size: Size) -> AutoregressiveTextDecoder:
        (length,) = size.shape
        return AutoregressiveTextDecoder(
            length, size.values, self.width, self.depth, self.heads, self.dropout, self.word_dropout
        )


ImageDecoders = ConvDecoderConfig | ResidualDecoderConfig | MLPDecoderConfig
"""Decoders of images."""
TextDecoders = ParallelDecoderConfig | AutoregressiveDecoderConfig
"""Decoders of texts."""
AudioDecoders = FrameDecoderConfig | MLPDecoderConfig
"""Decoders of log-mel frames."""
MeasuredDecoders = MLPDecoderConfig | FrameDecoderConfig
"""Decoders of series of measured quantities; vectors have the first one only."""
LabelDecoders = MLPDecoderConfig
"""Decoders of classes."""
