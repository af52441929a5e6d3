"""A small U-Net for flows of images: residual convolutions at several resolutions, modulated by time and condition.

After Ho et al. 2020, arXiv:2006.11239, app. B, with adaptive group norms (Dhariwal and Nichol 2021, arXiv:2105.05233,
sec. 3.1) and attention to the words of a caption at the lowest resolution.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.core.parts import Basic
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.nets.dit import NO_CONDITION, ConditionVector, FlowNetworkConfig, Modulation
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.types import Condition, ExampleKeys

_ZEROS = nn.initializers.zeros_init()


def _groups(channels: int) -> int:
    """The largest number of groups up to 8 that divides the channels."""
    return max(n for n in range(1, 9) if channels % n == 0)


class UNetBlock(nn.Module):
    """A residual block: two convolutions of 3 x 3, of which the second is modulated by the condition and 0 at first."""

    channels: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], c: Float[Array, "batch dim"], keys: ExampleKeys | None
    ) -> Float[Array, "batch height width channels"]:
        """``x`` (projected, if the number of channels changes) plus the branch. ``c``: the condition. ``keys``: of
        dropout, one per example; None in evaluation."""
        # Flax's convolution, because flows also need forward-mode derivatives, which `nets.conv` does not have.
        conv = lambda name, **options: nn.Conv(self.channels, (3, 3), dtype=self.dtype, name=name, **options)
        norm = lambda x, name: nn.GroupNorm(_groups(x.shape[-1]), dtype=self.dtype, name=name)(x)
        y = conv("conv_1")(nn.silu(norm(x, "norm_1")))
        shift, scale = Modulation(2, self.channels, self.dtype, name="modulation")(c)
        y = norm(y, "norm_2") * (1.0 + scale[:, :, None]) + shift[:, :, None]
        y = Dropout(self.dropout, name="dropout")(nn.silu(y), keys)
        y = conv("conv_2", kernel_init=_ZEROS)(y)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="project")(x)
        return x + y


class UNetAttention(nn.Module):
    """Self-attention over the positions of an image and, with ``words``, attention to the words of a caption; both are
    0 at first."""

    heads: int
    words: bool
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], condition: Condition
    ) -> Float[Array, "batch height width channels"]:
        """``x`` plus the output of each attention."""
        batch, height, width, channels = x.shape
        tokens = x.reshape(batch, height * width, channels)
        contexts = {"attention": None} | ({"cross_attention": condition.words} if self.words else {})
        for name, context in contexts.items():
            norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"{name}_norm")
            attention = MultiHeadAttention(self.heads, dtype=self.dtype, name=name)
            y = norm(tokens)
            y = attention(y) if context is None else attention(y, context.values, context.mask)
            gate = self.param(f"{name}_gate", _ZEROS, (1, 1, channels), jnp.float32)
            tokens = tokens + gate.astype(y.dtype) * y
        return tokens.reshape(x.shape)


class UNet(nn.Module):
    """A U-Net over images ``[B, H, W, C]``; the sides must be multiples of ``2^(levels - 1)``."""

    width: int
    multipliers: tuple[int, ...]
    """Channels of each resolution, the highest first, relative to ``width``."""
    blocks: int
    heads: int
    dropout: float = 0.0
    words: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch height width channels"],
        t: Float[Array, "batch"],
        r: Float[Array, "batch"] | None = None,
        condition: Condition = NO_CONDITION,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """An array of the shape of ``z``, 0 at first; arguments as those of `nets.dit.DiT`."""
        z = shard_examples(z)
        c = ConditionVector(4 * self.width, name="embedding")(t, r, condition)

        def block(x, channels: int, name: str) -> Array:
            """One residual block, with dropout keys of its own."""
            block_keys = None if keys is None else fold_in_name(keys, name)
            return UNetBlock(channels, self.dropout, self.dtype, name=name)(x, c, block_keys)

        x = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="input")(z)
        skips, last = [x], len(self.multipliers) - 1
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                x = block(x, multiplier * self.width, f"down_{level}_{i}")
                skips.append(x)
            if level < last:
                x = nn.Conv(x.shape[-1], (3, 3), strides=2, dtype=self.dtype, name=f"down_{level}")(x)
                skips.append(x)
        x = block(x, x.shape[-1], "middle_0")
        x = UNetAttention(self.heads, self.words, self.dtype, name="attention")(x, condition)
        x = block(x, x.shape[-1], "middle_1")
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(x, multiplier * self.width, f"up_{level}_{i}")
            if level:
                x = jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "nearest")
                x = nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, name=f"up_{level}")(x)
        x = nn.silu(nn.GroupNorm(_groups(x.shape[-1]), dtype=self.dtype, name="output_norm")(x))
        x = nn.Conv(z.shape[-1], (3, 3), kernel_init=_ZEROS, dtype=self.dtype, name="output")(x)
        return shard_examples(x.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class UNetConfig(FlowNetworkConfig):
    """A small U-Net: convolutions at several resolutions, and attention at the lowest one."""

    name: ClassVar[str] = "unet"
    width: Basic[int] = 32
    """Channels at the highest resolution."""
    multipliers: tuple[int, ...] = (1, 2, 3)
    """Channels at each resolution, relative to width; each resolution is half of the one before."""
    blocks: int = 1
    """Residual blocks at each resolution on the way down; there is one more on the way up."""
    heads: int = 4
    """Number of attention heads."""

    def __post_init__(self):
        """Checks the sizes."""
        super().__post_init__()
        check_at_least(self, 1, "width", "blocks", "heads")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"multipliers must be at least one number, each 1 or more, got {self.multipliers}"
            )
        if (self.multipliers[-1] * self.width) % self.heads:
            raise ValueError(
                f"heads ({self.heads}) must divide the channels of the lowest resolution "
                f"({self.multipliers[-1] * self.width})"
            )

    def build(self, shape, *, words: bool) -> UNet:
        factor = 2 ** (len(self.multipliers) - 1)
        if len(shape) != 3:
            raise ValueError(
                f"the network unet is for images, the data have the shape {shape}: choose mlp for vectors"
            )
        if shape[0] % factor or shape[1] % factor:
            raise ValueError(
                f"a U-Net of {len(self.multipliers)} resolutions is for images whose sides are multiples of {factor}, "
                f"the data have the shape {shape}: choose fewer multipliers"
            )
        return UNet(
            self.width,
            tuple(self.multipliers),
            self.blocks,
            self.heads,
            self.dropout,
            words,
            self.compute_dtype,
        )
