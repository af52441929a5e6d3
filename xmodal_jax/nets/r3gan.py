"""The networks of R3GAN: residual blocks without normalisation, for a generator and for a discriminator.

Huang et al. 2024, arXiv:2501.05441, section 4 (config E). Both networks have the same stages, one for each resolution
from the smallest (4x4 pixels, see `halvings`) to that of the image. A stage is a number of residual blocks `x + f(x)`;
between two stages the feature map is resampled with the filter [1, 2, 1], and a linear map changes its channels. There
are no biases but those before activations, and no normalisation: the initialisation keeps the scale of the activations,
as each block starts as the identity.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.conv import Conv
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.image import check_no_mask, concatenate_condition, halvings, upsampling_stages
from xmodal_jax.types import Condition, ExampleKeys, Tokens

SLOPE = 0.2
"""Slope of the leaky ReLU for negative inputs."""
EXPANSION = 2
"""Channels within a residual block, as a multiple of those outside."""


def fan_in_normal(gain: float = 1.0) -> nn.initializers.Initializer:
    """Normal weights with the standard deviation ``gain / sqrt(fan in)``."""
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


def block_gain(blocks: int) -> float:
    """The gain of the first two layers of each of a network's ``blocks`` residual blocks.

    That of He et al. 2015 for leaky ReLU, times ``blocks ** (-1/4)`` (Fixup, Zhang et al. 2019, arXiv:1901.09321, for
    branches of three layers, the last of which starts at 0).
    """
    return math.sqrt(2.0 / (1.0 + SLOPE**2)) * blocks**-0.25


def _shift(x: Array, axis: int) -> Array:
    """``x`` moved by one position along an axis: ``shifted[n] = x[n - 1]``, and 0 at the first one."""
    padding = [(1, 0) if a == axis else (0, 0) for a in range(x.ndim)]
    return jnp.pad(x, padding)[tuple(slice(0, n) for n in x.shape)]


def upsample_smooth(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height2 width2 channels"]:
    """Doubles both sides of images: zeros between the pixels, then the filter [1, 2, 1] / 2 along each axis.

    Along an axis the pixels ``x[n]`` become ``y[2 n + 1] = x[n]``, with their means ``y[2 n] = (x[n - 1] + x[n]) / 2``
    in between; pixels outside of the image are 0.
    """
    for axis in (1, 2):
        between = 0.5 * (_shift(x, axis) + x)
        size = [2 * n if a == axis else n for a, n in enumerate(x.shape)]
        x = jnp.stack([between, x], axis=axis + 1).reshape(size)
    return x


def downsample_smooth(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height2 width2 channels"]:
    """Halves both sides of images: the filter [1, 2, 1] / 4 along each axis, then every second pixel.

    Along an axis ``y[n] = (x[2 n - 1] + 2 x[2 n] + x[2 n + 1]) / 4``; pixels outside of the image are 0.
    """
    for axis in (1, 2):
        size = [n for a, m in enumerate(x.shape) for n in ((m // 2, 2) if a == axis else (m,))]
        even, odd = jnp.split(x.reshape(size), 2, axis=axis + 1)
        even, odd = even.squeeze(axis + 1), odd.squeeze(axis + 1)
        x = 0.25 * (_shift(odd, axis) + 2.0 * even + odd)
    return x


def stage_features(width: int, wide_stages: int, stage: int, group_size: int) -> int:
    """Channels of a stage, 0 being the smallest resolution: ``width`` in the first ``wide_stages`` stages, half as many
    in each further one, but enough for one group of a block's convolution where ``width`` is."""
    halved = width // 2 ** max(stage - wide_stages + 1, 0)
    return max(halved, min(width, group_size // EXPANSION), 1)


class BiasedActivation(nn.Module):
    """``leaky_relu(x + bias)``, with one bias for each channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch *spatial channels"]:
        """The activations of ``x``, in its dtype."""
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        return nn.leaky_relu(x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)), SLOPE)


class ResidualBlock(nn.Module):
    """``x + f(x)``: a linear map to twice the channels, a grouped 3x3 convolution and a linear map back.

    An activation comes before the second and before the third layer. The third starts at 0.
    """

    blocks: int
    """Residual blocks of the whole network, on which the initialisation depends."""
    group_size: int
    """Channels of each group of the convolution."""
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """The block's output, of the shape of ``x``."""
        features = x.shape[-1]
        hidden = EXPANSION * features
        options = dict(use_bias=False, dtype=self.dtype)
        init = fan_in_normal(block_gain(self.blocks))
        groups = hidden // math.gcd(self.group_size, hidden)
        y = nn.Dense(hidden, kernel_init=init, name="expand", **options)(x)
        y = BiasedActivation(name="activation_0")(y)
        conv = Conv(hidden, (3, 3), feature_group_count=groups, kernel_init=init, name="conv", **options)
        y = BiasedActivation(name="activation_1")(conv(y))
        zeros = nn.initializers.zeros_init()
        y = nn.Dense(features, kernel_init=zeros, name="reduce", **options)(y)
        return shard_examples(x + y)


def _linear(features: int, name: str, dtype: Any) -> nn.Dense:
    """A linear map of the channels, without bias."""
    return nn.Dense(features, use_bias=False, kernel_init=fan_in_normal(), dtype=dtype, name=name)


class R3GANGenerator(nn.Module):
    """The generator of R3GAN: a learned feature map of the smallest size, scaled by noise and condition, then stages of
    growing size.

    The pixels are a linear map of the last feature map, and unbounded in training; in evaluation they are clipped. All
    but the smallest stage compute in ``dtype``.

    Raises:
      ValueError: the sides cannot be halved.
    """

    shape: tuple[int, int, int]
    width: int = 64
    depth: int = 1
    group_size: int = 16
    wide_stages: int = 2
    dtype: Any = None
    basis_features: int = 256
    """Channels of the learned feature map. Where they are fewer than the noise has dimensions, or hardly more, images
    of a class hardly differ."""

    @nn.compact
    def __call__(
        self,
        noise: Float[Array, "batch noise"],
        condition: Condition,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Images from the noise, joined with the condition's vector.

        ``keys`` is None in evaluation, where pixels are clipped to [-1, 1].
        """
        height, width, channels = self.shape
        doublings = upsampling_stages(self.shape, "generator")
        blocks = (doublings + 1) * self.depth
        start = (height // 2**doublings, width // 2**doublings, max(self.basis_features, self.width))
        basis = self.param("basis", nn.initializers.normal(1.0), start, jnp.float32)
        scales = _linear(start[-1], "start", None)(concatenate_condition(noise, condition))
        x = basis[None] * scales[:, None, None, :]
        for stage in range(doublings + 1):
            dtype = self.dtype if stage else None
            features = stage_features(self.width, self.wide_stages, stage, self.group_size)
            if x.shape[-1] != features:
                # Before the resampling, with which a linear map of the channels commutes: a quarter of the pixels.
                x = _linear(features, f"channels_{stage}", dtype)(x)
            if stage:
                x = upsample_smooth(x if dtype is None else x.astype(dtype))
            for block in range(self.depth):
                x = ResidualBlock(blocks, self.group_size, dtype, name=f"block_{stage}_{block}")(x)
        x = _linear(channels, "pixels", self.dtype)(x).astype(jnp.float32)
        return x if keys is not None else jnp.clip(x, -1.0, 1.0)


class R3GANEncoder(nn.Module):
    """The discriminator of R3GAN without its head: ``[B, H, W, C] -> [B, 1, width]``.

    Stages of shrinking size, and a weighted sum over the positions of the last feature map with weights for each
    channel (a depthwise convolution of its size). All but the smallest stage compute in ``dtype``.

    Raises:
      ValueError: a mask is given.
    """

    width: int = 64
    depth: int = 1
    group_size: int = 16
    wide_stages: int = 2
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The single token ``[B, 1, width]`` of each image; ``mask`` must be None, as images have no padding.

        ``keys``: one per example, for dropout in training.
        """
        check_no_mask(mask)
        doublings = halvings(inputs.shape[1:3])
        blocks = (doublings + 1) * self.depth
        sizes = [
            stage_features(self.width, self.wide_stages, stage, self.group_size)
            for stage in range(doublings + 1)
        ]
        x = _linear(sizes[-1], "pixels", self.dtype if doublings else None)(inputs)
        for stage in reversed(range(doublings + 1)):
            dtype = self.dtype if stage else None
            x = x if stage or self.dtype is None else x.astype(jnp.float32)
            if x.shape[-1] != sizes[stage]:
                x = _linear(sizes[stage], f"channels_{stage}", dtype)(x)
            for block in range(self.depth):
                x = ResidualBlock(blocks, self.group_size, dtype, name=f"block_{stage}_{block}")(x)
            if stage:
                x = downsample_smooth(x)
        positions = x.shape[1] * x.shape[2]
        basis = self.param("basis", nn.initializers.normal(positions**-0.5), x.shape[1:], jnp.float32)
        token = jnp.einsum("bhwc,hwc->bc", x, basis)
        return Tokens(Dropout(self.dropout, name="dropout")(token, keys)[:, None], mask=None)
