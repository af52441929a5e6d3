"""Transformers: position embeddings, blocks, stacks of blocks, and the base of the encoders built on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.nets.dropout import Dropout, DropPath, fold_in_layer
from xmodal_jax.nets.pooling import prepend_class_token
from xmodal_jax.types import ExampleKeys, Tokens


def sincos_positions(length: int, dim: int) -> np.ndarray:
    """Sine-cosine position embeddings ``[length, dim]``: all sines, then all cosines.

    The wavelengths form a geometric progression (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    Raises:
      ValueError: ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"sine-cosine positions need an even width, got {dim}")
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim // 2))  # in radians per position
    angles = np.arange(length)[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def sincos_grid(sizes: tuple[int, ...], dim: int) -> np.ndarray:
    """Sine-cosine position embeddings ``[prod(sizes), dim]`` of the points of a grid with these sizes, in row-major
    order.

    The dimensions are divided equally among the axes of the grid; those left over are 0.
    """
    axis_dim = dim // len(sizes) // 2 * 2  # dimensions for each axis, an even number
    axis_embeddings = []
    for axis, size in enumerate(sizes):
        # [size, axis_dim] along this axis of the grid, the same at all positions along the others.
        shape = [1] * len(sizes) + [axis_dim]
        shape[axis] = size
        embedding = np.broadcast_to(sincos_positions(size, axis_dim).reshape(shape), (*sizes, axis_dim))
        axis_embeddings.append(embedding.reshape(-1, axis_dim))
    table = np.concatenate(axis_embeddings, axis=1)
    return np.pad(table, [(0, 0), (0, dim - table.shape[1])])


class PositionEmbedding(nn.Module):
    """Adds position embeddings to ``[B, N, D]``: "learned" (initial deviation 0.02), or "sincos" over the ``grid``.

    Raises:
      ValueError: the kind is unknown, or ``x`` has more positions than the grid.
    """

    grid: tuple[int, ...]
    kind: str = "learned"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length dim"], offset: Int[Array, ""] | int = 0
    ) -> Float[Array, "batch length dim"]:
        """``x`` with the embedding of each token's position added; ``offset`` is the position of the first token.

        Positions are the points of ``self.grid``, such as rows and columns of patches, numbered row by row.
        """
        length = int(np.prod(self.grid))
        if x.shape[1] > length:
            raise ValueError(f"{x.shape[1]} positions given, the embedding is made for at most {length}")
        if self.kind == "learned":
            table = self.param("embedding", nn.initializers.normal(0.02), (length, x.shape[-1]), jnp.float32)
        elif self.kind == "sincos":
            table = jnp.asarray(sincos_grid(self.grid, x.shape[-1]))
        else:
            raise ValueError(f"positions must be 'learned' or 'sincos', got {self.kind!r}")
        table = jax.lax.dynamic_slice_in_dim(table, offset, x.shape[1])
        return x + table[None].astype(x.dtype)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu_tanh": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
}
"""The activations that a transformer may have, by name."""


@dataclasses.dataclass(frozen=True)
class TransformerStyle:
    """The choices in which published transformers differ; the defaults are those of this library's encoders."""

    norm: Literal["pre", "post"] = "pre"
    """"pre": a layer norm before each branch and one at the end (GPT-2, ViT); "post": one after each sum (BERT)."""
    activation: str = "gelu_tanh"
    """Activation of the MLP, a key of `ACTIVATIONS`."""
    epsilon: float = 1e-6
    """Epsilon of the layer norms."""
    gated: bool = False
    """Whether the MLP is gated: ``down(activation(up x) * gate x)``; SwiGLU if the activation is "silu". Here the
    activation is on the layer called "up"; most papers call that one the gate. The names are those of parameters."""
    layer_scale: float | None = None
    """Initial value of a learned factor for each channel of each branch (LayerScale, Touvron et al. 2021,
    arXiv:2103.17239); None: no such factor."""
    final_norm: bool = True
    """Whether the transformer ends in a layer norm (pre-norm only)."""

    def __post_init__(self):
        """Checks the names of the norm and of the activation."""
        if self.norm not in ("pre", "post") or self.activation not in ACTIVATIONS:
            raise ValueError(
                f"norm must be 'pre' or 'post' and activation one of {', '.join(ACTIVATIONS)}, got {self.norm!r} and "
                f"{self.activation!r}"
            )


class MLP(nn.Module):
    """A layer to ``mlp_ratio * D`` features, an activation, and a layer back to ``D``; or with ``gated`` a gated MLP.

    The last layer is initialized ``out_scale`` times as large as usual.
    """

    mlp_ratio: float = 4.0
    dtype: Any = None
    out_scale: float = 1.0
    activation: str = "gelu_tanh"
    gated: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch length dim"]) -> Float[Array, "batch length dim"]:
        """``down(activation(up x))``, or with a gate ``down(activation(up x) * gate x)``; up, down and gate are dense
        layers. (Most papers put the activation on the layer that they call the gate; that is ``up`` here.)"""
        size = round(self.mlp_ratio * x.shape[-1])
        hidden = ACTIVATIONS[self.activation](nn.Dense(size, dtype=self.dtype, name="up")(x))
        if self.gated:
            hidden = hidden * nn.Dense(size, dtype=self.dtype, name="gate")(x)
        init = nn.initializers.variance_scaling(self.out_scale**2, "fan_in", "truncated_normal")
        return nn.Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="down")(hidden)


class TransformerBlock(nn.Module):
    """A transformer block: ``x += attn(LN(x))``; if ``cross``, ``x += attn(LN(x), kv)``; ``x += MLP(LN(x))``.

    ``x`` is ``[B, N, D]``; ``mask [B, N]`` and ``kv_mask [B, M]`` are True on valid positions. Layer norm statistics
    and the softmax are float32 for any ``dtype``. Pre-norm as in Xiong et al. 2020, arXiv:2002.04745; with
    ``style.norm="post"`` the norms follow the sums, ``x = LN(x + attn(x))``.

    Every branch is initialized ``out_scale`` times as large as usual: well below 1 the block starts near the identity
    (compare ReZero, Bachlechner et al. 2020, arXiv:2003.04887). For ``kv`` with fewer examples than ``x``, and for
    ``position`` in decoding, see `nets.attention.MultiHeadAttention`. Under ``apply(..., mutable=["hidden_states"])``
    the output is recorded there.
    """

    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    causal: bool = False
    cross: bool = False
    dtype: Any = None
    implementation: str | None = None
    out_scale: float = 1.0
    style: TransformerStyle = TransformerStyle()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        mask: Bool[Array, "batch keys"] | None = None,
        kv: Float[Array, "kv_batch kv_length kv_dim"] | None = None,
        kv_mask: Bool[Array, "kv_batch kv_length"] | None = None,
        keys: ExampleKeys | None = None,
        position: Int[Array, ""] | int | None = None,
    ) -> Float[Array, "batch length dim"]:
        """The block's output ``[B, N, D]``: ``x`` after the residual branches self-attention, cross-attention to ``kv``
        (if the block has it) and MLP.

        Args:
          x: the tokens.
          mask: True on valid tokens; None: all.
          kv, kv_mask: the tokens that cross-attention attends to, and which of them are valid.
          keys: one key per example, for dropout in training; None in evaluation.
          position: index of the one token in ``x`` when decoding token by token with a cache; else None.
        """
        if self.cross != (kv is not None):
            raise ValueError("a block with cross=True needs kv, one without takes none")

        def make_attention(name, causal):
            """Multi-head attention with this block's options."""
            return MultiHeadAttention(
                self.heads, causal, self.dtype, self.implementation, self.out_scale, name=name
            )

        def add_branch(x, branch: Callable[[Array], Array], name: str):
            """``x + branch(norm(x))`` (pre-norm) or ``norm(x + branch(x))`` (post-norm).

            The names of its parameters begin with ``name``.

            The branch's output is multiplied by the layer scale, if the style has one, before dropout and drop path.
            """
            norm = layer_norm(self.style, self.dtype, f"{name}_norm")
            y = branch(norm(x) if self.style.norm == "pre" else x)
            if self.style.layer_scale is not None:
                init = nn.initializers.constant(self.style.layer_scale)
                scale = self.param(f"{name}_scale", init, (y.shape[-1],), jnp.float32)
                y = y * scale.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
            y = Dropout(self.dropout, name=f"{name}_dropout")(y, keys)
            x = x + DropPath(self.drop_path, name=f"{name}_drop_path")(y, keys)
            return x if self.style.norm == "pre" else norm(x)

        x = shard_examples(x)
        attention = make_attention("attention", causal=self.causal)
        x = add_branch(x, lambda y: attention(y, mask=mask, position=position), "attention")
        if self.cross:
            cross_attention = make_attention("cross_attention", causal=False)
            x = add_branch(x, lambda y: cross_attention(y, kv, kv_mask, position=position), "cross")
        mlp = MLP(
            self.mlp_ratio, self.dtype, self.out_scale, self.style.activation, self.style.gated, name="mlp"
        )
        x = shard_examples(add_branch(x, mlp, "mlp"))
        if not self.is_initializing():  # `init` would return the recorded output among the parameters
            self.sow("hidden_states", "output", x)
        return x


def layer_norm(style: TransformerStyle, dtype: Any, name: str) -> nn.LayerNorm:
    """The layer norm of a style; call it in a compact method."""
    return nn.LayerNorm(epsilon=style.epsilon, dtype=dtype, name=name)


class Transformer(nn.Module):
    """``depth`` blocks and a final layer norm (see `TransformerStyle`): ``[B, N, D] -> [B, N, D]`` in ``dtype``.

    ``scan_layers`` compiles one block and loops over parameters that are stacked along a first axis (``layers/*``
    instead of ``layers_0/*``, ``layers_1/*``, …): the same function, compiled faster. ``remat`` recomputes each block
    in the backward pass: activations of one block in memory instead of ``depth``.
    """

    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    causal: bool = False
    cross: bool = False
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False
    implementation: str | None = None
    style: TransformerStyle = TransformerStyle()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        mask: Bool[Array, "batch keys"] | None = None,
        kv: Float[Array, "kv_batch kv_length kv_dim"] | None = None,
        kv_mask: Bool[Array, "kv_batch kv_length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
        position: Int[Array, ""] | int | None = None,
    ) -> Float[Array, "batch length dim"]:
        """``x`` after all blocks and the final norm.

        Args:
          x: the tokens.
          mask: True on valid tokens; None: all.
          kv, kv_mask: the tokens that cross-attention attends to, and which of them are valid.
          keys: one key per example, for dropout in training; None in evaluation.
          position: index of the one token in ``x`` when decoding token by token with a cache; else None.
        """
        dtype = self.dtype or jnp.float32
        x = x.astype(dtype)
        kv = None if kv is None else kv.astype(dtype)
        Block = (
            nn.remat(TransformerBlock, prevent_cse=not self.scan_layers) if self.remat else TransformerBlock
        )
        options = dict(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            drop_path=self.drop_path,
            causal=self.causal,
            cross=self.cross,
            dtype=self.dtype,
            implementation=self.implementation,
            style=self.style,
        )
        if self.scan_layers:

            def body(block, x, layer):
                """One step of the scan: the next tokens, and no output per layer."""
                return block(x, mask, kv, kv_mask, fold_in_layer(keys, layer), position), None

            # The variables of all layers are stacked along axis 0.
            stacked = {"params": 0, "cache": 0, "memory": 0, "hidden_states": 0}
            scan = nn.scan(
                body, variable_axes=stacked, split_rngs={"params": True}, length=self.depth, in_axes=0
            )
            x, _ = scan(Block(**options, name="layers"), x, jnp.arange(self.depth))
        else:
            for layer in range(self.depth):
                x = Block(**options, name=f"layers_{layer}")(
                    x, mask, kv, kv_mask, fold_in_layer(keys, layer), position
                )
        if self.style.norm == "post" or not self.style.final_norm:
            return x
        return layer_norm(self.style, self.dtype, "norm")(x)


TRANSFORMER_OPTIONS = (
    "heads",
    "mlp_ratio",
    "dropout",
    "drop_path",
    "dtype",
    "remat",
    "scan_layers",
    "implementation",
    "style",
)
"""The fields that a `SizedTransformer` passes on to its `Transformer`."""


class SizedTransformer(nn.Module, kw_only=True):
    """Base of the encoders and the decoder that contain a `Transformer`: its sizes and those of the embedding.

    ``positions`` is "learned" or "sincos" (see `PositionEmbedding`); ``dropout`` also applies to the embedded input;
    the other fields are those of `Transformer`.
    """

    width: int = 128
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    positions: str = "learned"
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False
    implementation: str | None = None
    style: TransformerStyle = TransformerStyle()

    @nn.nowrap
    def transformer(
        self,
        *,
        causal: bool = False,
        cross: bool = False,
        depth: int | None = None,
        name: str = "transformer",
    ) -> Transformer:
        """The transformer as a submodule with this module's options, for compact methods.

        ``causal``: whether a token may not attend to later ones. ``cross``: whether blocks also attend to other tokens.
        ``depth``: number of blocks; None: the field of that name.
        """
        options = {field: getattr(self, field) for field in TRANSFORMER_OPTIONS}
        depth = self.depth if depth is None else depth
        return Transformer(depth, causal=causal, cross=cross, name=name, **options)


class TransformerEncoder(SizedTransformer, kw_only=True):
    """Base of the encoders that are transformers, of any modality; with ``class_token`` a learned token comes first."""

    class_token: bool = False

    @nn.nowrap
    def encode(
        self, x, mask, grid: tuple[int, ...], keys: ExampleKeys | None, *, causal: bool = False
    ) -> Tokens:
        """Adds positions (and the class token) to the tokens ``x [B, N, width]``, then runs the transformer on them.

        ``mask`` is True on valid tokens; None: all. ``grid``: sizes of the grid that the tokens lie on, such as (rows,
        columns), or (length,) for a sequence. ``keys``: one per example, for dropout in training. For compact methods.
        """
        x = PositionEmbedding(grid, self.positions, name="positions")(x)
        if self.class_token:
            x, mask = prepend_class_token(self, x, mask)
        x = Dropout(self.dropout, name="dropout")(x, keys)
        return Tokens(self.transformer(causal=causal)(x, mask, keys=keys), mask)


def stack_layers(params: dict, depth: int) -> dict:
    """Converts the parameters of a `Transformer` without ``scan_layers`` to those of one with ``scan_layers=True``.

    The parameters ``layers_0``, ``layers_1``, ... are stacked along a new first axis, as ``layers``.

    ``depth``: the number of layers.
    """
    layers = [params[f"layers_{layer}"] for layer in range(depth)]
    other_params = {name: value for name, value in params.items() if not name.startswith("layers_")}
    return {**other_params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
