"""Networks of speech synthesis: text tokens to durations, pitch and energy, and tokens repeated over their frames to
log-mel frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.alignment import expand_durations
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.nets.conv import Conv, apply_mask
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.transformer import sincos_positions
from xmodal_jax.types import ExampleKeys, Tokens


class ConvStack(nn.Module):
    """Residual blocks of layer norm, convolution over time, GELU and dense layer, and a final norm.

    ``[B, T, D]`` to ``[B, T, D]``. Masked positions are zero before each convolution, like those beyond the ends.
    """

    depth: int
    """Number of blocks."""
    kernel: int = 5
    """Width of the convolutions, in positions."""
    dropout: float = 0.0
    """Dropout rate of the residual branches."""
    dtype: Any = None
    """Type of the computation; None: that of the inputs."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        mask: Bool[Array, "batch length"],
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch length dim"]:
        """Residual blocks ``x += dense(gelu(conv(norm(x))))``, then a layer norm.

        ``mask`` is True on valid positions; ``keys`` are for dropout.
        """
        width = x.shape[-1]
        for i in range(self.depth):
            y = apply_mask(nn.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(x), mask)
            y = nn.gelu(Conv(width, (self.kernel,), dtype=self.dtype, name=f"conv_{i}")(y))
            y = nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(y)
            x = x + Dropout(self.dropout, name=f"dropout_{i}")(y, keys)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


class Aligner(nn.Module):
    """The log-probability of each token given each frame, ``[B, T, N]``.

    A softmax over the valid tokens of ``-|q_t - k_n|^2 / A - (n / N - t / T)^2 / 2 sigma^2``: the distance between
    ``A`` features of the frame and of the token, and a prior that prefers the diagonal. Badlani et al. 2022,
    arXiv:2108.10447, sec. 2.1; the prior is the penalty of Tachibana et al. 2018, arXiv:1710.08969, sec. 4.1.
    """

    vocab_size: int
    """Size of the vocabulary."""
    features: int = 64
    """Features of a frame and of a token."""
    sigma: float = 0.2
    """Standard deviation of the prior, as a fraction of the lengths."""

    @nn.compact
    def __call__(
        self,
        text: Int[Array, "batch length"],
        text_mask: Bool[Array, "batch length"],
        mel: Float[Array, "batch frames mels"],
        mel_mask: Bool[Array, "batch frames"],
    ) -> Float[Array, "batch frames length"]:
        """``log p(token n | frame t)``, ``[B, T, N]``; the masks are True on valid tokens and frames.

        A softmax over tokens of ``-|q_t - k_n|^2 / A - (n / N - t / T)^2 / (2 sigma^2)``, with ``A`` features of tokens
        ``k`` and of frames ``q``. The second term favours the diagonal, as tokens are spoken in order.

        ``text`` are token ids; ``mel`` standardised log-mel frames.
        """
        k = nn.Embed(self.vocab_size, self.features, name="embed")(jnp.clip(text, 0, self.vocab_size - 1))
        k = nn.gelu(Conv(2 * self.features, (3,), name="text_conv")(apply_mask(k, text_mask)))
        k = nn.Dense(self.features, name="text_dense")(k)
        q = nn.gelu(Conv(2 * self.features, (3,), name="mel_conv")(apply_mask(mel, mel_mask)))
        q = nn.gelu(nn.Dense(self.features, name="mel_dense_0")(q))
        q = nn.Dense(self.features, name="mel_dense_1")(q)
        # |q - k|^2 = |q|^2 - 2 q k + |k|^2
        squared_distance = (
            jnp.square(q).sum(-1)[:, :, None] - 2 * q @ k.transpose(0, 2, 1) + jnp.square(k).sum(-1)[:, None]
        )

        def relative_positions(mask):
            """The position of each token or frame, from 0 for the first to 1 for the last valid one."""
            return jnp.arange(mask.shape[1])[None, :] / jnp.maximum(mask.sum(axis=1)[:, None] - 1, 1)

        off_diagonal = relative_positions(mel_mask)[:, :, None] - relative_positions(text_mask)[:, None, :]
        logits = -squared_distance / self.features - jnp.square(off_diagonal) / (2 * self.sigma**2)
        logits = jnp.where(text_mask[:, None, :], logits, jnp.finfo(logits.dtype).min / 2)
        return jax.nn.log_softmax(logits, axis=-1)


class VariancePredictor(nn.Module):
    """One number for each token: a `ConvStack` of two blocks and a dense layer.

    The variance predictor of FastSpeech 2: Ren et al. 2021, arXiv:2006.04558, sec. 2.3.
    """

    dropout: float = 0.0
    """Dropout rate of the residual branches."""

    @nn.compact
    def __call__(self, tokens: Tokens, keys: ExampleKeys | None = None) -> Float[Array, "batch length"]:
        """A number for each token; ``keys`` are for dropout."""
        x = ConvStack(depth=2, kernel=3, dropout=self.dropout, name="stack")(tokens.values, tokens.mask, keys)
        return nn.Dense(1, name="out")(x)[:, :, 0]


class ValueEmbedding(nn.Module):
    """The embedding ``[B, L, width]`` of a standardised number for each token ``[B, L]``, continuous in the number.

    A learned vector for each of ``knots`` values, evenly spaced from ``-limit`` to ``limit``, is interpolated linearly;
    a term that is linear in the number is added, which goes on beyond the limits. FastSpeech 2 quantises the number and
    embeds its bin (Ren et al. 2021, arXiv:2006.04558, sec. 2.3); without the steps between bins, a small change of the
    number is a small change of the speech.
    """

    width: int
    """Width of the embedding."""
    knots: int = 32
    """Number of values that have a vector."""
    limit: float = 4.0
    """Largest value with a vector, in standard deviations."""

    @nn.compact
    def __call__(self, values: Float[Array, "batch length"]) -> Float[Array, "batch length width"]:
        """The embedding of each number."""
        spacing = 2 * self.limit / (self.knots - 1)
        positions = -self.limit + spacing * jnp.arange(self.knots)[None, None, :]
        inside = jnp.clip(values, -self.limit, self.limit)[:, :, None]
        weights = jnp.maximum(
            1.0 - jnp.abs(inside - positions) / spacing, 0.0
        )  # of the two nearest knots, sum 1
        features = jnp.concatenate([values[:, :, None], weights], axis=-1)
        return nn.Dense(self.width, name="vectors")(features)


class SpeechNet(nn.Module):
    """Text encoder, speaker embedding, aligner, predictors of durations, pitch and energy, and decoder of frames.

    FastSpeech 2 (Ren et al. 2021, arXiv:2006.04558), with pitch and energy averaged per token as in FastPitch (Łańcucki
    2021, arXiv:2006.06873).
    """

    text: nn.Module
    """Text encoder."""
    vocab_size: int
    """Size of the vocabulary."""
    speakers: int
    """Number of speakers."""
    mels: int
    """Mel bands of a frame."""
    width: int
    """Width of the tokens and of the decoder."""
    depth: int = 4
    """Convolutional blocks of the decoder."""
    kernel: int = 5
    """Width of the decoder's convolutions, in frames."""
    dropout: float = 0.0
    """Dropout rate of the decoder and of the predictors."""
    prosody: tuple[str, ...] = ()
    """What the decoder takes for each token beside the text, and a predictor learns: of "pitch" and "energy"."""

    def setup(self):
        """Speaker embedding, aligner, predictors and decoder."""
        self.speaker = nn.Embed(self.speakers, self.width)
        self.aligner = Aligner(self.vocab_size)
        self.duration = ConvStack(depth=2, kernel=3, dropout=self.dropout)
        self.duration_out = nn.Dense(1)
        self.predictors = {name: VariancePredictor(self.dropout) for name in self.prosody}
        self.embeddings = {name: ValueEmbedding(self.width) for name in self.prosody}
        self.enter = nn.Dense(self.width)  # projects the decoder's inputs
        self.decoder = ConvStack(self.depth, self.kernel, self.dropout)
        self.leave = nn.Dense(self.mels)  # projects its outputs to mel bands

    def encode(
        self,
        text: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"],
        speaker: Int[Array, "batch"],
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The text encoder's tokens ``[B, L, width]``, with the embedding of the speaker added.

        ``text`` are token ids, ``mask`` is True on valid ones; ``speaker`` is the index of a voice. ``keys``: one per
        example, for dropout in training.
        """
        tokens = self.text(text, mask, keys=keys)
        # An index out of range (a speaker that is not in the training data) takes the embedding of the nearest index.
        voice = self.speaker(jnp.clip(speaker, 0, self.speakers - 1))
        return Tokens(tokens.values + voice[:, None, :], mask)

    def durations(self, tokens: Tokens, keys: ExampleKeys | None = None) -> Float[Array, "batch length"]:
        """The predicted ``log(1 + frames)`` of each token; no gradient flows to the tokens."""
        keys = None if keys is None else fold_in_name(keys, "durations")
        x = self.duration(jax.lax.stop_gradient(tokens.values), tokens.mask, keys)
        return self.duration_out(x)[:, :, 0]

    def predict_prosody(
        self, tokens: Tokens, keys: ExampleKeys | None = None
    ) -> dict[str, Float[Array, "batch length"]]:
        """The predicted pitch and energy of each token, standardised, by name; no gradient flows to the tokens."""
        tokens = Tokens(jax.lax.stop_gradient(tokens.values), tokens.mask)
        fold = lambda name: None if keys is None else fold_in_name(keys, name)
        return {name: predict(tokens, fold(name)) for name, predict in self.predictors.items()}

    def add_prosody(self, tokens: Tokens, values: Mapping[str, Float[Array, "batch length"]]) -> Tokens:
        """The tokens with the embeddings of their standardised pitch and energy added. ``values``: by name."""
        embedded = [embed(values[name]) for name, embed in self.embeddings.items()]
        return Tokens(sum(embedded, tokens.values), tokens.mask)

    def decode(
        self,
        tokens: Tokens,
        durations: Int[Array, "batch length"],
        frames: int,
        keys: ExampleKeys | None = None,
    ) -> tuple[Float[Array, "batch frames mels"], Bool[Array, "batch frames"]]:
        """``(log_mel, mask)``: standardised log-mel frames ``[B, frames, mels]``, and which are valid.

        Each token is repeated for as many frames as its duration; the convolutional decoder then computes the frames.
        ``tokens`` come from `encode` (and `add_prosody`), ``durations`` are frames per token, and speech
        beyond ``frames`` is cut. ``keys``: for dropout in training.
        """
        # For each frame its token, and its position within the token from 0 to 1.
        token, position, mask = expand_durations(durations, frames)
        x = jnp.take_along_axis(tokens.values, token[:, :, None], axis=1)
        # The decoder also sees the position of a frame within its token, from both ends, and the token's duration.
        duration = jnp.take_along_axis(durations, token, axis=1)
        timing = jnp.stack([position, 1 - position, jnp.log1p(duration.astype(jnp.float32))], axis=-1)
        x = self.enter(jnp.concatenate([x, timing], axis=-1))
        x = x + sincos_positions(frames, self.width)[None]  # the same in all examples
        keys = None if keys is None else fold_in_name(keys, "decoder")
        return apply_mask(self.leave(self.decoder(apply_mask(x, mask), mask, keys)), mask), mask

    def align(self, text, text_mask, mel, mel_mask) -> Float[Array, "batch frames length"]:
        """The log-probability of each token given each frame; see `Aligner`."""
        return self.aligner(text, text_mask, mel, mel_mask)

    def __call__(self, text, mask, speaker, mel, mel_mask):
        """Calls all parts, to initialise their parameters."""
        tokens = self.encode(text, mask, speaker)
        self.align(text, mask, mel, mel_mask)
        durations, prosody = self.durations(tokens), self.predict_prosody(tokens)
        tokens = self.add_prosody(tokens, prosody)
        return durations, prosody, self.decode(tokens, jnp.ones(text.shape, jnp.int32), mel.shape[1])
