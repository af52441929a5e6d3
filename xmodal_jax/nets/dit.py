"""Diffusion transformers: networks from a noisy state, its time and a condition to an array of the state's shape.

The time and the condition modulate every block through adaptive layer norms with gates (adaLN, Peebles and Xie 2023,
arXiv:2212.09748, sec. 3.2). There the weights of the modulation start at zero, here at small random values: at zero
neither a block nor the encoder of the condition gets a gradient before the gates have grown, and it took twice as many
steps until captions counted. The last layer starts at zero, so that the output is 0 at first.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.core.parts import Basic
from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.nets.dropout import Dropout, fold_in_layer
from xmodal_jax.nets.transformer import MLP, sincos_grid
from xmodal_jax.types import Condition, ExampleKeys, Tokens

NO_CONDITION = Condition()
"""The condition of an unconditional model."""
_ZEROS = nn.initializers.zeros_init()
_SMALL = nn.initializers.normal(0.02)
FREQUENCIES = (0.5, 50.0)
"""The lowest and the highest angular frequency of time embeddings, in radians per unit of time. Networks of mean
velocities are differentiated with respect to time: frequencies up to the usual 1000 would make that derivative, and so
their target, large and noisy (compare Lu and Song 2025, arXiv:2410.11081, sec. 4.1)."""


def time_features(t: Float[Array, "*shape"], dim: int) -> Float[Array, "*shape dim"]:
    """Cosines and sines of the times, with ``dim / 2`` frequencies in a geometric progression (`FREQUENCIES`).

    Raises:
      ValueError: ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"time features need an even number of dimensions, got {dim}")
    frequencies = jnp.geomspace(*FREQUENCIES, dim // 2)
    angles = jnp.einsum("...,f->...f", t, frequencies, precision="highest")
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Embeds times ``[...]`` as ``[..., width]``: sines and cosines, and two dense layers."""

    width: int
    features: int = 64
    """Number of sines and cosines."""

    @nn.compact
    def __call__(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape width"]:
        """The embedding of times in [0, 1], or of differences of such times."""
        hidden = nn.Dense(self.width, kernel_init=_SMALL, name="up")(time_features(t, self.features))
        return nn.Dense(self.width, kernel_init=_SMALL, name="down")(nn.silu(hidden))


class Modulation(nn.Module):
    """``count`` vectors of ``width`` dimensions from a condition c: ``Dense(silu(c))``, small at first.

    ``c`` is ``[B, D]``, one for all tokens of an example, or ``[B, N, D]``, one for each token; the vectors are
    ``[B, 1, width]`` or ``[B, N, width]``.
    """

    count: int
    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, c: Float[Array, "batch ..."]) -> list[Float[Array, "batch tokens width"]]:
        """The vectors, as a list."""
        c = c[:, None] if c.ndim == 2 else c
        dense = nn.Dense(self.count * self.width, kernel_init=_SMALL, dtype=self.dtype, name="dense")
        return jnp.split(dense(nn.silu(c)), self.count, axis=-1)


class DiTBlock(nn.Module):
    """A transformer block with adaLN: ``x += g * attention((1 + s) LN(x) + b)`` and the same for the MLP, where gates
    g, scales s and shifts b are computed from the condition.

    With ``cross`` there is a second attention, to the tokens ``context``, between the two (Chen et al. 2024,
    arXiv:2310.00426, sec. 2.3), gated likewise.
    """

    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    cross: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        c: Float[Array, "batch ..."],
        context: Tokens | None = None,
        keys: ExampleKeys | None = None,
        *,
        counts: tuple[int, ...] | None = None,
    ) -> Float[Array, "batch tokens width"]:
        """The block's output.

        Args:
          x: the tokens.
          c: the condition ``[B, D]``, or ``[B, N, D]`` with one vector for each token.
          context: the tokens that cross-attention attends to; None without ``cross``.
          keys: one key per example, for dropout; None in evaluation.
          counts: the number of tokens of each group of neighbouring tokens that share a condition; ``c`` is then ``[B,
            G, D]``, one vector for each of the G groups. None: there are no groups.
        """
        if self.cross != (context is not None):
            raise ValueError("a block with cross=True needs context, one without takes none")
        branches = {"attention": MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")}
        if self.cross:
            cross = MultiHeadAttention(self.heads, dtype=self.dtype, name="cross_attention")
            branches["cross"] = lambda y: cross(y, context.values, context.mask)
        branches["mlp"] = MLP(self.mlp_ratio, self.dtype, name="mlp")
        vectors = Modulation(3 * len(branches), x.shape[-1], self.dtype, name="modulation")(c)
        if counts is not None:
            vectors = [
                jnp.repeat(v, np.asarray(counts), axis=1, total_repeat_length=sum(counts)) for v in vectors
            ]
        for i, (name, branch) in enumerate(branches.items()):
            shift, scale, gate = vectors[3 * i : 3 * i + 3]
            norm = nn.LayerNorm(
                epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype, name=f"{name}_norm"
            )
            y = branch(norm(x) * (1.0 + scale) + shift)
            x = x + gate * Dropout(self.dropout, name=f"{name}_dropout")(y, keys)
        return x


class DiTOutput(nn.Module):
    """The last layer: adaptive layer norm, and a dense layer to ``features`` whose weights are 0 at first."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], c: Float[Array, "batch ..."]
    ) -> Float[Array, "batch tokens features"]:
        """``[B, N, features]`` in float32."""
        shift, scale = Modulation(2, x.shape[-1], self.dtype, name="modulation")(c)
        norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype, name="norm")
        dense = nn.Dense(self.features, kernel_init=_ZEROS, dtype=self.dtype, name="dense")
        return dense(norm(x) * (1.0 + scale) + shift).astype(jnp.float32)


class ConditionVector(nn.Module):
    """The vector ``[B, width]`` that modulates the blocks: the sum of the embeddings of the time, of the length of the
    step to the time r (if there is one), and of the condition's vector (if there is one)."""

    width: int

    @nn.compact
    def __call__(
        self, t: Float[Array, "batch"], r: Float[Array, "batch"] | None, condition: Condition
    ) -> Float[Array, "batch width"]:
        """``t``: the times; ``r``: the ends of the steps, for networks that predict a mean velocity; ``condition``:
        its ``vector`` is projected, words are not used here."""
        c = TimeEmbedding(self.width, name="time")(t)
        if r is not None:
            c = c + TimeEmbedding(self.width, name="step")(r - t)
        if condition.vector is not None:
            c = c + nn.Dense(self.width, name="condition")(condition.vector)
        return c


class DiT(nn.Module):
    """A diffusion transformer over square patches of images ``[B, H, W, C]``.

    With ``words`` each block attends to the words of the condition.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
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
        """An array of the shape of ``z``, 0 at first.

        Args:
          z: the state at the times ``t``.
          t: the times.
          r: for mean velocities, the time at the end of the step; None: the velocity at t.
          condition: what is to be generated.
          keys: one key per example, for dropout; None in evaluation.
        Raises:
          ValueError: the patches do not tile the image, or the heads do not divide the width.
        """
        _, height, width, channels = z.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patches of {self.patch} pixels do not tile images of {height} x {width}")
        grid = (height // self.patch, width // self.patch)
        z = shard_examples(z)
        x = nn.Dense(self.width, dtype=self.dtype, name="patches")(_to_patches(z, self.patch))
        x = x + jnp.asarray(sincos_grid(grid, self.width))[None].astype(x.dtype)
        c = ConditionVector(self.width, name="embedding")(t, r, condition)
        words = condition.words if self.words else None

        def body(block, x, layer):
            """One step of the scan: the tokens after the next block, and no output per layer."""
            return block(x, c, words, fold_in_layer(keys, layer)), None

        # One block is compiled, with the parameters of all blocks stacked along the first axis.
        block = DiTBlock(
            self.heads, self.mlp_ratio, self.dropout, cross=self.words, dtype=self.dtype, name="layers"
        )
        scan = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth, in_axes=0
        )
        x, _ = scan(block, x, jnp.arange(self.depth))
        x = DiTOutput(self.patch * self.patch * channels, self.dtype, name="output")(x, c)
        return shard_examples(_from_patches(x, self.patch, grid))


def _to_patches(x: Array, patch: int) -> Array:
    """Images ``[B, H, W, C]`` as patches ``[B, H W / patch^2, patch^2 C]``, row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def _from_patches(x: Array, patch: int, grid: tuple[int, int]) -> Array:
    """The inverse of `_to_patches`; ``grid``: rows and columns of patches."""
    rows, columns = grid
    x = x.reshape(x.shape[0], rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], rows * patch, columns * patch, -1)


class VectorFlowMLP(nn.Module):
    """A residual network with adaLN over vectors ``[B, D]``: a `DiT` of one token without attention."""

    width: int
    depth: int
    mlp_ratio: float = 2.0
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "batch dim"],
        t: Float[Array, "batch"],
        r: Float[Array, "batch"] | None = None,
        condition: Condition = NO_CONDITION,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch dim"]:
        """An array of the shape of ``z``, 0 at first; arguments as those of `DiT`."""
        x = nn.Dense(self.width, dtype=self.dtype, name="input")(shard_examples(z))[:, None]
        c = ConditionVector(self.width, name="embedding")(t, r, condition)
        for layer in range(self.depth):
            shift, scale, gate = Modulation(3, self.width, self.dtype, name=f"layers_{layer}_modulation")(c)
            norm = nn.LayerNorm(
                epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype, name=f"layers_{layer}_norm"
            )
            y = MLP(self.mlp_ratio, self.dtype, name=f"layers_{layer}_mlp")(norm(x) * (1.0 + scale) + shift)
            y = Dropout(self.dropout, name=f"layers_{layer}_dropout")(y, fold_in_layer(keys, layer))
            x = x + gate * y
        return shard_examples(DiTOutput(z.shape[-1], self.dtype, name="output")(x, c)[:, 0])


# -- configurations --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FlowNetworkConfig:
    """The options that all networks of flows have."""

    dropout: float = 0.0
    """Dropout rate of the branches of each block."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of activations and matrix products. Parameters, states and velocities are always float32."""

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    def build(self, shape: tuple[int, ...], *, words: bool) -> nn.Module:
        """The network ``module(z, t, r, condition, *, keys=None)`` for states of ``shape`` (without the examples);
        ``words``: whether the condition has words.

        Raises:
          ValueError: the network does not fit the shape.
        """
        raise NotImplementedError

    @property
    def compute_dtype(self) -> Any:
        """``dtype`` for modules; None is the dtype of inputs and parameters."""
        return None if self.dtype == "float32" else jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class DiTConfig(FlowNetworkConfig):
    """A diffusion transformer over patches of images; it attends to the words of a caption."""

    name: ClassVar[str] = "dit"
    patch: Basic[int] = 4
    """Side of a square patch in pixels; must divide the sides of the image."""
    width: Basic[int] = 128
    """Dimensions of a token."""
    depth: Basic[int] = 6
    """Number of blocks."""
    heads: int = 4
    """Number of attention heads."""
    mlp_ratio: float = 4.0
    """Width of the hidden layer of each MLP, relative to that of a token."""

    def __post_init__(self):
        """Checks the sizes."""
        super().__post_init__()
        check_at_least(self, 1, "patch", "width", "depth", "heads")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"heads ({self.heads}) and 2 must divide width ({self.width})")

    def build(self, shape, *, words: bool) -> DiT:
        if len(shape) != 3:
            raise ValueError(
                f"the network dit is for images, the data have the shape {shape}: choose mlp for vectors"
            )
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(
                f"patches of {self.patch} pixels do not tile images of {shape[0]} x {shape[1]}: choose a patch that "
                "divides both sides"
            )
        return DiT(
            self.patch,
            self.width,
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.dropout,
            words,
            self.compute_dtype,
        )


@dataclasses.dataclass(frozen=True)
class FlowMLPConfig(FlowNetworkConfig):
    """A residual MLP over vectors."""

    name: ClassVar[str] = "mlp"
    width: Basic[int] = 256
    """Dimensions of the hidden state."""
    depth: Basic[int] = 4
    """Number of blocks."""

    def __post_init__(self):
        """Checks the sizes."""
        super().__post_init__()
        check_at_least(self, 1, "width", "depth")

    def build(self, shape, *, words: bool) -> nn.Module:
        if len(shape) != 1:
            raise ValueError(f"the network mlp is for vectors, the data have the shape {shape}: choose dit")
        return VectorFlowMLP(self.width, self.depth, dropout=self.dropout, dtype=self.compute_dtype)
