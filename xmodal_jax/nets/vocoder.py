"""The network of a vocoder: log-mel frames to the filters, the pitch and the voicing of a source-filter model."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.conv import Conv, apply_mask


class DepthwiseConv(nn.Module):
    """A convolution over time of each channel by itself, ``[B, T, D]`` to ``[B, T, D]``; zeros beyond the ends.

    ``y[t, d] = bias[d] + sum_j kernel[j, d] x[t + j - kernel // 2, d]``. It is a sum of shifted arrays, which a
    compiler makes one loop of, and whose gradients are as fast on every platform.
    """

    kernel: int
    """Width in positions; odd."""
    dtype: Any = None
    """Type of the computation; None: that of the inputs."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch length dim"]) -> Float[Array, "batch length dim"]:
        """The convolution of ``x`` with a learned kernel ``[kernel, D]``, plus a bias ``[D]``."""
        init = nn.initializers.normal(self.kernel**-0.5)
        kernel = self.param("kernel", init, (self.kernel, x.shape[-1]), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        half, length = self.kernel // 2, x.shape[1]
        padded = jnp.pad(x, [(0, 0), (half, self.kernel - 1 - half), (0, 0)])
        return bias[None, None] + sum(
            kernel[j][None, None] * padded[:, j : j + length] for j in range(self.kernel)
        )


class ConvNeXtStack(nn.Module):
    """ConvNeXt blocks over time, ``[B, T, D]`` to ``[B, T, D]``, and a final layer norm.

    A block adds to x the result of: convolution of each channel, layer norm, dense layer to ``expansion * D``, GELU,
    dense layer to D, times a learned scale of each channel. Liu et al. 2022, arXiv:2201.03545, fig. 4; over the frames
    of speech Siuzdak 2023, arXiv:2306.00814, sec. 3.2. Masked positions are zero before each convolution, like those
    beyond the ends.
    """

    depth: int
    """Number of blocks."""
    kernel: int = 7
    """Width of the convolutions, in positions; odd."""
    expansion: int = 2
    """Width of the hidden layer of a block, relative to the inputs."""
    dtype: Any = None
    """Type of the computation; None: that of the inputs."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length dim"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length dim"]:
        """The blocks' result; ``mask`` is True on valid positions, None: all are."""
        width = x.shape[-1]
        for i in range(self.depth):
            y = DepthwiseConv(self.kernel, dtype=self.dtype, name=f"conv_{i}")(apply_mask(x, mask))
            y = nn.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(y)
            y = nn.gelu(nn.Dense(self.expansion * width, dtype=self.dtype, name=f"expand_{i}")(y))
            y = nn.Dense(width, dtype=self.dtype, name=f"reduce_{i}")(y)
            scale = self.param(
                f"scale_{i}", nn.initializers.constant(1.0 / self.depth), (width,), jnp.float32
            )
            x = x + y * scale.astype(y.dtype)[None, None]
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


class VocoderFrames(NamedTuple):
    """What a `VocoderNet` predicts of each frame, all float32."""

    harmonic: Float[Array, "batch frames bins"]
    """Logarithm of the filter's magnitude for the harmonic source."""
    phase: Float[Array, "batch frames bins"]
    """Phase of that filter in radians; any real number."""
    noise: Float[Array, "batch frames bins"]
    """Logarithm of the filter's magnitude for the noise source."""
    pitch_logits: Float[Array, "batch frames pitches"]
    """Logits of the classes of pitch."""
    voicing_logit: Float[Array, "batch frames"]
    """Logit of the probability that the frame has a pitch."""


class VocoderNet(nn.Module):
    """Log-mel frames ``[B, F, mels]`` to `VocoderFrames`: a convolution, `ConvNeXtStack` and a dense layer.

    The dense layer of the filters is initialised to zero. Its logarithms of magnitudes are added to the spectral
    envelope of the frames, so that both filters begin as this envelope.
    """

    bins: int
    """Frequency bins of the filters."""
    pitches: int
    """Number of classes of pitch."""
    width: int = 192
    """Width of the blocks."""
    depth: int = 4
    """Number of blocks."""
    kernel: int = 7
    """Width of the convolutions, in frames; odd."""
    expansion: int = 2
    """Width of the hidden layer of a block, relative to ``width``."""
    dtype: Any = None
    """Type of the computation of the blocks; None: that of the inputs. The results are float32."""

    @nn.compact
    def __call__(
        self, frames: Float[Array, "batch frames mels"], mask: Bool[Array, "batch frames"] | None = None
    ) -> VocoderFrames:
        """The prediction for standardised log-mel frames; ``mask`` is True on valid frames, None: all are."""
        x = Conv(self.width, (self.kernel,), dtype=self.dtype, name="enter")(apply_mask(frames, mask))
        x = nn.LayerNorm(dtype=self.dtype, name="enter_norm")(x)
        x = ConvNeXtStack(self.depth, self.kernel, self.expansion, dtype=self.dtype, name="blocks")(x, mask)
        x = x.astype(jnp.float32)
        pitch = nn.Dense(self.pitches + 1, name="pitch")(x)
        filters = nn.Dense(3 * self.bins, kernel_init=nn.initializers.zeros_init(), name="filters")(x)
        harmonic, phase, noise = jnp.split(filters, 3, axis=-1)
        return VocoderFrames(harmonic, phase, noise, pitch[:, :, :-1], pitch[:, :, -1])
