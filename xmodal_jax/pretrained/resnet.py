"""ResNet (He et al. 2016, arXiv:1512.03385) with frozen batch norm."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.conv import Conv
from xmodal_jax.nets.dropout import Dropout, DropPath
from xmodal_jax.nets.image import check_no_mask
from xmodal_jax.nets.pooling import max_pool
from xmodal_jax.nets.transformer import ACTIVATIONS
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained.encoder import DEFAULT_OPTIONS, EncoderOptions, PretrainedEncoder, activation
from xmodal_jax.pretrained.images import IMAGENET, Scale, Size, pixel_scale
from xmodal_jax.pretrained.rules import CONV, Rule, norm
from xmodal_jax.types import ExampleKeys, Tokens

PREFIXES = ("", "resnet.")
IGNORED = (r"^classifier\.", r"\.num_batches_tracked$")
"""The head of classification, and counters."""


@dataclasses.dataclass(frozen=True)
class ResNetSizes:
    """The sizes and the options of a residual network (a transformer has `encoder.TransformerSizes`)."""

    stem_width: int
    """Channels after the first convolution."""
    widths: tuple[int, ...]
    """Channels after each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    bottleneck: bool = True
    """Whether a block has convolutions of 1x1, 3x3 and 1x1, the first two with a quarter of the channels, rather than
    two of 3x3."""
    downsample_first_stage: bool = False
    """Whether the first stage halves the height and width, as the others do."""
    stride_in_first_conv: bool = False
    """Whether a bottleneck that halves height and width does so in its 1x1 convolution rather than in the 3x3 one."""
    activation: str = "relu"
    """A key of `nets.transformer.ACTIVATIONS`."""
    options: EncoderOptions = DEFAULT_OPTIONS
    """``scan_layers`` and ``implementation`` have no effect on a residual network."""

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.widths[-1]

    def blocks(self) -> list[tuple[str, str, int, int, int]]:
        """For each block ``(name in the checkpoint, parameter path, input channels, output channels, stride)``."""
        blocks, in_channels = [], self.stem_width
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for k in range(depth):
                # The first block of a stage halves height and width, except perhaps in the first stage.
                stride = 2 if k == 0 and (stage > 0 or self.downsample_first_stage) else 1
                name = f"encoder.stages.{stage}.layers.{k}"
                blocks.append((name, f"block_{stage}_{k}", in_channels, width, stride))
                in_channels = width
        return blocks

    def convolutions(self, width: int, stride: int) -> list[tuple[int, int, int]]:
        """``(channels, kernel_size, stride)`` of each convolution of a block with ``width`` output channels."""
        if not self.bottleneck:
            return [(width, 3, stride), (width, 3, 1)]
        stride_1x1, stride_3x3 = (stride, 1) if self.stride_in_first_conv else (1, stride)
        return [(width // 4, 1, stride_1x1), (width // 4, 3, stride_3x3), (width, 1, 1)]


class ConvNorm(nn.Module):
    """A convolution without bias, padded by half its size, and frozen batch norm.

    ``[B, H, W, C]`` to ``[B, ceil(H / stride), ceil(W / stride), features]``.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height2 width2 features"]:
        """The normalized convolution of ``x``."""
        size, pad = (self.size, self.size), self.size // 2
        conv = Conv(self.features, size, self.stride, pad, use_bias=False, dtype=self.dtype, name="conv")
        return FrozenBatchNorm(name="norm")(conv(x))


class FrozenBatchNorm(nn.Module):
    """Batch norm with the means and variances of pretraining, ``[..., C] -> [..., C]``.

    ``scale`` and ``bias`` are trained; ``mean`` and ``var`` are parameters without a gradient. The statistics are
    frozen, as is usual in fine-tuning, because those of a small batch are worse. Ioffe and Szegedy 2015,
    arXiv:1502.03167.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """``x`` normalized over its last axis by the frozen statistics."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        inits = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        p = {name: self.param(name, init, (x.shape[-1],), jnp.float32) for name, init in inits.items()}
        mean, var = jax.lax.stop_gradient((p["mean"], p["var"]))
        # scale (x - mean) / sqrt(var + epsilon) + bias = factor x + shift, in float32 before the cast.
        factor = p["scale"] * jax.lax.rsqrt(var + self.epsilon)
        shift = p["bias"] - mean * factor
        shape = (1,) * (x.ndim - 1) + (-1,)
        return x * factor.astype(x.dtype).reshape(shape) + shift.astype(x.dtype).reshape(shape)


class ResidualBlock(nn.Module):
    """A residual block over ``[B, H, W, C]``: normalized convolutions, added to the input.

    Where the shape changes, a 1x1 convolution adapts the input.
    """

    sizes: ResNetSizes
    width: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], keys: ExampleKeys | None
    ) -> Float[Array, "batch height2 width2 channels2"]:
        """The activated sum of the input and its convolutions; ``keys``: random keys for stochastic depth."""
        activate, options, y = ACTIVATIONS[self.sizes.activation], self.sizes.options, x
        # (channels, kernel size, stride) of each convolution.
        for i, (features, size, stride) in enumerate(self.sizes.convolutions(self.width, self.stride)):
            y = activate(y) if i else y
            y = ConvNorm(features, size, stride, options.dtype, name=f"layer_{i}")(y)
        if x.shape[-1] != self.width or self.stride != 1:
            shortcut = ConvNorm(self.width, size=1, stride=self.stride, dtype=options.dtype, name="shortcut")
            x = shortcut(x)
        return shard_examples(activate(x + DropPath(options.drop_path, name="drop_path")(y, keys)))


class ResNet(PretrainedEncoder):
    """ResNet: pixels ``[B, H, W, 3]`` in [-1, 1], of any size, to ``[B, h * w, D]``.

    The tokens are the positions of the last stage, row by row; its height and width are those of the image divided by
    32 (by 64 with ``downsample_first_stage``), rounded up. ``pool`` is the mean. The hidden states are the outputs of
    the stem and of each stage, ``[B, N, channels]``.

    Raises:
      ValueError: there is a mask.
    """

    sizes: ResNetSizes
    scale: Scale

    def example_inputs(self) -> tuple[Array, ...]:
        return (jnp.zeros((1, 32, 32, 3)),)

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of images, one for each position of the last stage; see the class. ``mask`` must be None."""
        check_no_mask(mask)
        sizes, options = self.sizes, self.sizes.options
        stem = ConvNorm(sizes.stem_width, size=7, stride=2, dtype=options.dtype, name="stem")
        x = stem(standardize(inputs, *self.scale))
        x = max_pool(ACTIVATIONS[sizes.activation](x), window=3, stride=2, padding=1)
        Block = nn.remat(ResidualBlock) if options.remat else ResidualBlock
        for name, path, _, width, stride in sizes.blocks():
            if name.endswith(".0"):  # the first block of a stage: record the output of the previous one
                self.record_hidden_state(_to_tokens(x))
            x = Block(sizes, width, stride, name=path)(x, keys)
        x = _to_tokens(x)
        self.record_hidden_state(x)
        return Tokens(Dropout(options.dropout, name="dropout")(x, keys), mask=None)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The mean of the tokens, ``[B, D]``."""
        return tokens.values.mean(axis=1)


def _to_tokens(x: Array) -> Array:
    """``[B, H, W, C]`` to ``[B, H * W, C]``, row by row."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def make(config: SimpleNamespace, options: EncoderOptions, *, image_size: Size | None = None) -> ResNet:
    """The encoder that a parsed ``config.json`` describes, without parameters.

    ``options``: head, dropout, dtype. ``image_size`` has no effect: images may have any size.
    """
    sizes = ResNetSizes(
        stem_width=config.embedding_size,
        widths=tuple(config.hidden_sizes),
        depths=tuple(config.depths),
        bottleneck=config.layer_type == "bottleneck",
        downsample_first_stage=config.downsample_in_first_stage,
        stride_in_first_conv=config.downsample_in_bottleneck,
        activation=activation(config.hidden_act),
        options=options,
    )
    return ResNet(sizes, pixel_scale(config, IMAGENET))


def rules(module: ResNet) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    sizes = module.sizes
    rules = _conv_norm("embedder.embedder", "stem")
    for name, path, in_channels, width, stride in sizes.blocks():
        for i in range(len(sizes.convolutions(width, stride))):
            rules += _conv_norm(f"{name}.layer.{i}", f"{path}/layer_{i}")
        if in_channels != width or stride != 1:
            rules += _conv_norm(f"{name}.shortcut", f"{path}/shortcut")
    return rules


def _conv_norm(name: str, path: str) -> list[Rule]:
    """The rules of a `ConvNorm`: ``name`` is that of its layer in the checkpoint, ``path`` that of its parameters."""
    return [
        Rule(f"{name}.convolution.weight", f"{path}/conv/kernel", CONV),
        *norm(f"{name}.normalization", f"{path}/norm"),
        Rule(f"{name}.normalization.running_mean", f"{path}/norm/mean"),
        Rule(f"{name}.normalization.running_var", f"{path}/norm/var"),
    ]
