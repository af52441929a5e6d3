"""Encoders of images: pixels ``[B, H, W, C]`` in [-1, 1] to tokens, the positions of a smaller grid row by row."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.conv import Conv
from xmodal_jax.nets.dropout import Dropout, DropPath
from xmodal_jax.nets.norm import GroupNorm
from xmodal_jax.nets.pooling import max_pool
from xmodal_jax.nets.transformer import PositionEmbedding, TransformerEncoder
from xmodal_jax.types import Condition, ExampleKeys, Tokens

RESNET_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks of the four stages, by the number of layers."""
NORMS = ("group", "none")
"""What `ConvNet` and `PlainConvNet` normalize with."""


def check_no_mask(mask) -> None:
    """Raises a `ValueError` if there is a mask: images have no padding."""
    if mask is not None:
        raise ValueError("an image has no padding mask; mark missing images in batch['present']")


def _check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm must be 'group' or 'none', got {norm!r}")


def _group_norm(channels: int, *, groups: int, dtype, name: str) -> nn.Module:
    return GroupNorm(math.gcd(groups, channels), dtype=dtype, name=name)


class ConvNet(nn.Module):
    """A small residual network, ``[B, H, W, C] -> [B, ceil(H/8) * ceil(W/8), width]``.

    A 4x4 stem of stride 2, then three stages of ``width / 4``, ``width / 2`` and ``width`` channels with one, one and
    ``depth`` residual convolutions, pre-activation (norm, GELU, 3x3). 25 MFLOP forward at 32 x 32 pixels, width 128,
    depth 2. ``norm`` is "group" (8 groups) or "none". ``coordinates`` adds the row and the column of each pixel as two
    input channels (CoordConv, Liu et al. 2018, arXiv:1807.03247); without them mean-pooled tokens hardly tell left from
    right. ``token_positions`` adds sine-cosine embeddings of the grid's positions to the tokens, for models that attend
    to them (DETR, Carion et al. 2020, arXiv:2005.12872, section 3.2).

    Raises:
      ValueError: 4 does not divide ``width``, ``norm`` is unknown, or a mask is given.
    """

    width: int = 128
    depth: int = 2
    norm: str = "group"
    coordinates: bool = True
    token_positions: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens ``[B, ceil(H/8) * ceil(W/8), width]`` of images: a stem, and three stages of residual
        convolutions.

        ``mask`` must be None, as images have no padding. ``keys``: one per example, for dropout in training.
        """
        check_no_mask(mask)
        if self.width % 4:
            raise ValueError(f"4 must divide the width, got {self.width}")
        _check_norm(self.norm)
        PreActConv = nn.remat(_PreActConv) if self.remat else _PreActConv  # norm, activation, 3x3 convolution
        options = dict(norm=self.norm, dtype=self.dtype)
        if self.coordinates:
            inputs = jnp.concatenate([inputs, coordinate_channels(inputs)], axis=-1)
        x = Conv(self.width // 4, (4, 4), strides=2, dtype=self.dtype, name="stem")(inputs)
        for stage, depth in enumerate((1, 1, self.depth)):  # residual convolutions of each stage
            features = self.width // 4 * 2**stage
            if stage:  # halve the sides
                x = PreActConv(features, stride=2, **options, name=f"down_{stage}")(x)
            for block in range(depth):
                branch = PreActConv(features, **options, name=f"conv_{stage}_{block}")(x)
                x = x + DropPath(self.drop_path, name=f"drop_path_{stage}_{block}")(branch, keys)
        if self.norm == "group":
            x = _group_norm(self.width, groups=8, dtype=self.dtype, name="norm")(x)
        grid = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, self.width)
        if self.token_positions:
            x = PositionEmbedding(grid, kind="sincos", name="positions")(x)
        return Tokens(Dropout(self.dropout, name="dropout")(x, keys), mask=None)


class PlainConvNet(nn.Module):
    """The convolutions of DCGAN's discriminator, ``[B, H, W, C] -> [B, h * w, width]``.

    4x4 convolutions of stride 2 with leaky ReLU of slope 0.2, at least one and until the shorter side is below 8. The
    last has ``width`` channels, each earlier one half as many as the next. ``norm`` is "group" (8 groups, after all but
    the first convolution) or "none". Radford et al. 2016, arXiv:1511.06434, section 3.

    Raises:
      ValueError: ``norm`` is unknown, or a mask is given.
    """

    width: int = 256
    norm: str = "none"
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
        """The tokens ``[B, h * w, width]`` of images, one for each position of the last feature map.

        ``mask`` must be None, as images have no padding. ``keys``: one per example, for dropout in training.
        """
        check_no_mask(mask)
        _check_norm(self.norm)
        # Convolutions of stride 2 until the shorter side is below 8 pixels.
        layers, side = 1, -(-min(inputs.shape[1:3]) // 2)
        while side >= 8:
            layers, side = layers + 1, -(-side // 2)
        x = inputs
        for k in range(layers):
            features = max(self.width // 2 ** (layers - 1 - k), 1)
            x = shard_examples(Conv(features, (4, 4), strides=2, dtype=self.dtype, name=f"conv_{k}")(x))
            if self.norm == "group" and k:
                x = _group_norm(features, groups=8, dtype=self.dtype, name=f"norm_{k}")(x)
            x = nn.leaky_relu(x, 0.2)
        return Tokens(
            Dropout(self.dropout, name="dropout")(x.reshape(x.shape[0], -1, self.width), keys), mask=None
        )


class FlatMLP(nn.Module):
    """An MLP over all pixels, of ``depth`` layers with leaky ReLU of slope 0.2: ``[B, H, W, C] -> [B, 1, width]``.

    Raises:
      ValueError: a mask is given.
    """

    width: int = 512
    depth: int = 2
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
        """The single token ``[B, 1, width]`` of each image; ``mask`` must be None, as images have no padding."""
        check_no_mask(mask)
        x = inputs.reshape(inputs.shape[0], -1)
        for k in range(self.depth):
            x = nn.leaky_relu(
                shard_examples(nn.Dense(self.width, dtype=self.dtype, name=f"layer_{k}")(x)), 0.2
            )
        return Tokens(Dropout(self.dropout, name="dropout")(x, keys)[:, None], mask=None)


def halvings(size: tuple[int, int], smallest: int = 4) -> int:
    """How many times both sides of an image can be halved so that neither gets shorter than ``smallest`` pixels."""
    count = 0
    while all(side % 2 == 0 and side // 2 >= smallest for side in size):
        size, count = (size[0] // 2, size[1] // 2), count + 1
    return count


def upsample_nearest(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height2 width2 channels"]:
    """Doubles both sides of images by repeating each pixel.

    It is computed by a broadcast, whose gradient is a sum, which is faster than the scatter of indexing.
    """
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def upsampling_stages(shape: tuple[int, int, int], part: str) -> int:
    """How many stages that double the size a network needs to produce images of ``shape`` (height, width, channels).

    ``part``: "generator" or "decoder", for the error message.

    Raises:
      ValueError: the sides cannot be halved.
    """
    stages = halvings(shape[:2])
    if not stages:
        raise ValueError(
            f"a picture of {shape[0]} x {shape[1]} pixels cannot be halved: choose the {part} 'mlp'"
        )
    return stages


def concatenate_condition(
    noise: Float[Array, "batch noise"], condition: Condition
) -> Float[Array, "batch input"]:
    """The input of a generator: the noise, followed by the condition's vector if there is one."""
    return noise if condition.vector is None else jnp.concatenate([noise, condition.vector], axis=-1)


def coordinate_channels(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width 2"]:
    """Two channels with the row and the column of each pixel, from -1 to 1, for each of the images."""
    height, width = images.shape[1:3]
    grid = jnp.meshgrid(jnp.linspace(-1.0, 1.0, height), jnp.linspace(-1.0, 1.0, width), indexing="ij")
    channels = jnp.stack(grid, axis=-1).astype(images.dtype)
    return jnp.broadcast_to(channels[None], (*images.shape[:3], 2))


class _PreActConv(nn.Module):
    """A 3x3 convolution with its norm and activation before it (He et al. 2016, arXiv:1603.05027)."""

    features: int
    stride: int = 1
    norm: str = "group"
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """``conv(gelu(norm(x)))``."""
        if self.norm == "group":
            x = _group_norm(x.shape[-1], groups=8, dtype=self.dtype, name="norm")(x)
        return shard_examples(
            Conv(self.features, (3, 3), self.stride, dtype=self.dtype, name="conv")(nn.gelu(x))
        )


class ResNet(nn.Module):
    """ResNet-18, -34 or -50 with group norm (32 groups): ``[B, H, W, C] -> [B, h * w, width]``.

    ``width`` is the number of output channels (in the paper 512 for 18 and 34 layers, 2048 for 50). The ``stem``
    "small" is a 3x3 convolution of stride 1, for images up to 64 pixels; the sides are reduced by 8. "imagenet" is a
    7x7 convolution of stride 2 and a max pool; the sides are reduced by 32. He et al. 2016, arXiv:1512.03385; group
    norm as in Wu and He 2018, arXiv:1803.08494.

    Raises:
      ValueError: unknown number of layers or stem, a width that cannot be divided, or a mask.
    """

    layers: int = 18
    width: int = 512
    stem: str = "small"
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens ``[B, h * w, width]`` of images, one for each position of the last stage.

        ``mask`` must be None, as images have no padding. ``keys``: one per example, for dropout in training.
        """
        check_no_mask(mask)
        if self.layers not in RESNET_DEPTHS:
            raise ValueError(f"layers must be one of {sorted(RESNET_DEPTHS)}, got {self.layers}")
        expansion = 4 if self.layers == 50 else 1  # a bottleneck block has four times as many output channels
        if self.width % (8 * expansion):
            raise ValueError(
                f"{8 * expansion} must divide the width of ResNet-{self.layers}, got {self.width}"
            )
        base = self.width // (8 * expansion)  # channels of the first of four stages; each doubles them
        if self.stem == "small":
            x = Conv(base, (3, 3), use_bias=False, dtype=self.dtype, name="stem")(inputs)
        elif self.stem == "imagenet":
            x = Conv(base, (7, 7), strides=2, padding=3, use_bias=False, dtype=self.dtype, name="stem")(
                inputs
            )
        else:
            raise ValueError(f"stem must be 'small' or 'imagenet', got {self.stem!r}")
        x = nn.relu(_group_norm(base, groups=32, dtype=self.dtype, name="stem_norm")(x))
        if self.stem == "imagenet":
            x = max_pool(x, window=3, stride=2, padding=1)
        Block = nn.remat(_ResidualBlock) if self.remat else _ResidualBlock
        for stage, depth in enumerate(RESNET_DEPTHS[self.layers]):
            for block in range(depth):
                x = Block(
                    features=base * 2**stage,
                    stride=2 if stage and not block else 1,
                    bottleneck=self.layers == 50,
                    drop_path=self.drop_path,
                    dtype=self.dtype,
                    name=f"block_{stage}_{block}",
                )(x, keys)
        x = x.reshape(x.shape[0], -1, self.width)
        return Tokens(Dropout(self.dropout, name="dropout")(x, keys), mask=None)


class _ResidualBlock(nn.Module):
    """A block of `ResNet`: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, added to the input."""

    features: int
    stride: int
    bottleneck: bool
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x, keys):
        """The block's output, ``[B, h, w, features]`` (four times as many features with a bottleneck).

        ``x`` is the feature map ``[B, H, W, C]``. ``keys``: one per example, for drop path; None in evaluation.
        """

        def conv_norm(x, features, size, stride, name):
            """A convolution with a kernel of ``size x size``, and group norm."""
            x = Conv(features, (size, size), stride, use_bias=False, dtype=self.dtype, name=f"{name}_conv")(x)
            return _group_norm(features, groups=32, dtype=self.dtype, name=f"{name}_norm")(x)

        out = self.features * (4 if self.bottleneck else 1)
        # (features, kernel size, stride) of each convolution.
        if self.bottleneck:
            layers = [(self.features, 1, 1), (self.features, 3, self.stride), (out, 1, 1)]
        else:
            layers = [(self.features, 3, self.stride), (out, 3, 1)]
        y = x
        for i, (features, size, stride) in enumerate(layers):
            y = conv_norm(y if i == 0 else nn.relu(y), features, size, stride, f"layer_{i}")
        if x.shape != y.shape:  # project the input, to add it to the branch
            x = conv_norm(x, out, size=1, stride=self.stride, name="shortcut")
        return shard_examples(nn.relu(x + DropPath(self.drop_path, name="drop_path")(y, keys)))


def cut_patches(
    pixels: Float[Array, "batch height width channels"], patch: int
) -> Float[Array, "batch patches values"]:
    """The square patches of images, row by row: ``[B, rows * columns, patch * patch * C]``.

    ``patch`` must divide the images' sides. A matrix product with the patches is a convolution with this size and
    stride, but faster.
    """
    batch, height, width, channels = pixels.shape
    x = pixels.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


class ViT(TransformerEncoder):
    """Vision transformer: ``[B, H, W, C] -> [B, (1 +) H/patch * W/patch, width]``.

    The image size is fixed at initialization. ``positions`` is "learned" or "sincos"; with ``class_token`` a learned
    token without position is prepended. Dosovitskiy et al. 2021, arXiv:2010.11929.

    Raises:
      ValueError: ``patch`` does not divide the image's sides, or a mask is given.
    """

    patch: int = 8

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of images, one for each square patch, after a class token if there is one.

        ``mask`` must be None, as images have no padding. ``keys``: one per example, for dropout in training.
        """
        check_no_mask(mask)
        (height, width), p = inputs.shape[1:3], self.patch
        if height % p or width % p:
            raise ValueError(f"patch={p} must divide the image's sides, got {height} x {width}")
        x = nn.Dense(self.width, dtype=self.dtype, name="patches")(cut_patches(inputs, p))
        return self.encode(x, mask=None, grid=(height // p, width // p), keys=keys)
