"""ResNet (He et al. 2016, arXiv:1512.03385) with frozen batch norm."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import keep_rows
from xmodal_jax.nets.conv import Conv
from xmodal_jax.nets.dropout import Dropout, DropPath
from xmodal_jax.nets.image import no_mask
from xmodal_jax.nets.pooling import max_pool
from xmodal_jax.nets.transformer import ACTIVATIONS
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained.encoder import PLAIN, Options, PretrainedEncoder, activation
from xmodal_jax.pretrained.images import IMAGENET, Scale, Size, pixel_scale
from xmodal_jax.pretrained.rules import CONV, Rule, norm
from xmodal_jax.types import ExampleKeys, Tokens

PREFIXES = ("", "resnet.")
IGNORED = (r"^classifier\.", r"\.num_batches_tracked$")
"""The head of classification, and counters."""


@dataclasses.dataclass(frozen=True)
class ResNetSizes:
    """Of a residual network; what `encoder.Sizes` is to a transformer."""

    stem: int
    """Channels after the first convolution."""
    widths: tuple[int, ...]
    """Channels after each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    bottleneck: bool = True
    """Convolutions 1x1, 3x3 and 1x1, the first two with a quarter of the channels, in place of two of 3x3."""
    stride_first: bool = False
    """Whether the first stage halves the sides as the others do."""
    stride_early: bool = False
    """Whether a bottleneck has its stride in the first convolution and not in the second."""
    activation: str = "relu"
    """A key of `nets.transformer.ACTIVATIONS`."""
    options: Options = PLAIN
    """Of which ``scan_layers`` and ``implementation`` mean nothing here."""

    @property
    def width(self) -> int:
        """Channels in the end."""
        return self.widths[-1]

    def blocks(self) -> list[tuple[str, str, int, int, int]]:
        """Their name, ours, channels before and after, and the stride of each block."""
        found, before = [], self.stem
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for k in range(depth):
                stride = 2 if k == 0 and (stage or self.stride_first) else 1
                theirs = f"encoder.stages.{stage}.layers.{k}"
                found.append((theirs, f"block_{stage}_{k}", before, width, stride))
                before = width
        return found

    def convolutions(self, width: int, stride: int) -> list[tuple[int, int, int]]:
        """Channels, size and stride of the convolutions of a block."""
        if not self.bottleneck:
            return [(width, 3, stride), (width, 3, 1)]
        first, second = (stride, 1) if self.stride_early else (1, stride)
        return [(width // 4, 1, first), (width // 4, 3, second), (width, 1, 1)]


class ConvNorm(nn.Module):
    """A convolution without bias, padded by half its size, and frozen batch norm: ``[B, H, W, C]`` to
    ``[B, ceil(H / stride), ceil(W / stride), features]``."""

    features: int
    size: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height2 width2 features"]:
        size, pad = (self.size, self.size), self.size // 2
        conv = Conv(self.features, size, self.stride, pad, use_bias=False, dtype=self.dtype, name="conv")
        return FrozenBatchNorm(name="norm")(conv(x))


class FrozenBatchNorm(nn.Module):
    """Batch norm with the means and variances of pretraining, ``[..., C] -> [..., C]``.

    ``mean`` and ``var`` are parameters without a gradient, ``scale`` and ``bias`` train. Ioffe & Szegedy 2015,
    arXiv:1502.03167; frozen, as is usual in fine-tuning, since the statistics of a small batch are worse.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        start = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        p = {name: self.param(name, of, (x.shape[-1],), jnp.float32) for name, of in start.items()}
        mean, var = jax.lax.stop_gradient((p["mean"], p["var"]))
        factor = p["scale"] * jax.lax.rsqrt(var + self.epsilon)
        shift = p["bias"] - mean * factor
        shape = (1,) * (x.ndim - 1) + (-1,)
        return x * factor.astype(x.dtype).reshape(shape) + shift.astype(x.dtype).reshape(shape)


class ResidualBlock(nn.Module):
    """Convolutions, each normed, over ``[B, H, W, C]``, and the input, convolved where the shape changes."""

    sizes: ResNetSizes
    width: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], keys: ExampleKeys | None
    ) -> Float[Array, "batch height2 width2 channels2"]:
        act, options, y = ACTIVATIONS[self.sizes.activation], self.sizes.options, x
        for i, (features, size, stride) in enumerate(self.sizes.convolutions(self.width, self.stride)):
            y = act(y) if i else y
            y = ConvNorm(features, size, stride, options.dtype, name=f"layer_{i}")(y)
        if x.shape[-1] != self.width or self.stride != 1:
            x = ConvNorm(self.width, 1, self.stride, options.dtype, name="shortcut")(x)
        return keep_rows(act(x + DropPath(options.drop_path, name="drop_path")(y, keys)))


class ResNet(PretrainedEncoder):
    """Pixels ``[B, H, W, 3]`` in [-1, 1] of any size to ``[B, h * w, D]``: the last stage, row by row, of sides 32
    times smaller (64 with ``stride_first``), rounded up.

    ``pool``: the mean. Hidden states are what leaves the stem and each stage, ``[B, N, channels]``.

    Raises:
      ValueError: a mask is given.
    """

    sizes: ResNetSizes
    scale: Scale

    def example(self) -> tuple[Array, ...]:
        return (jnp.zeros((1, 32, 32, 3)),)

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        no_mask(mask)
        sizes, options = self.sizes, self.sizes.options
        x = ConvNorm(sizes.stem, 7, 2, options.dtype, name="stem")(standardize(inputs, *self.scale))
        x = max_pool(ACTIVATIONS[sizes.activation](x), window=3, stride=2, padding=1)
        Block = nn.remat(ResidualBlock) if options.remat else ResidualBlock
        for theirs, ours, _, width, stride in sizes.blocks():
            if theirs.endswith(".0"):  # a stage begins
                self.record(_tokens(x))
            x = Block(sizes, width, stride, name=ours)(x, keys)
        x = _tokens(x)
        self.record(x)
        return Tokens(Dropout(options.dropout, name="dropout")(x, keys), None)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """``[B, D]``."""
        return tokens.values.mean(axis=1)


def _tokens(x: Array) -> Array:
    return x.reshape(len(x), -1, x.shape[-1])


def make(config: SimpleNamespace, options: Options, *, image_size: Size | None = None) -> ResNet:
    """The encoder of a ``config.json``; images may have any size."""
    sizes = ResNetSizes(
        stem=config.embedding_size,
        widths=tuple(config.hidden_sizes),
        depths=tuple(config.depths),
        bottleneck=config.layer_type == "bottleneck",
        stride_first=config.downsample_in_first_stage,
        stride_early=config.downsample_in_bottleneck,
        activation=activation(config.hidden_act),
        options=options,
    )
    return ResNet(sizes, pixel_scale(config, IMAGENET))


def rules(module: ResNet) -> list[Rule]:
    """Its parameters in a checkpoint."""
    sizes = module.sizes
    found = _conv_norm("embedder.embedder", "stem")
    for theirs, ours, before, width, stride in sizes.blocks():
        for i in range(len(sizes.convolutions(width, stride))):
            found += _conv_norm(f"{theirs}.layer.{i}", f"{ours}/layer_{i}")
        if before != width or stride != 1:
            found += _conv_norm(f"{theirs}.shortcut", f"{ours}/shortcut")
    return found


def _conv_norm(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.convolution.weight", f"{ours}/conv/kernel", CONV),
        *norm(f"{theirs}.normalization", f"{ours}/norm"),
        Rule(f"{theirs}.normalization.running_mean", f"{ours}/norm/mean"),
        Rule(f"{theirs}.normalization.running_var", f"{ours}/norm/var"),
    ]
