"""Fusion of the tokens of several modalities into one sequence and one vector: nine modules with one signature.

    ``module(tokens, present, keys=keys) -> FusionOutput(tokens, pooled)``

``tokens`` is ``{modality: Tokens [B, N_m, D_m]}``: any number of modalities, of any widths and lengths. ``present`` is
``{modality: [B] bool}``: False where an example lacks the modality; a modality that ``present`` does not name is
present in every example, and one without tokens in none. What a mask or ``present`` hides does not influence the result
and gets a gradient of exactly zero.

Several examples may share the tokens of a modality, such as questions about one image: row ``i`` of ``[B / n, N_m,
D_m]`` then belongs to the examples ``n i`` to ``n i + n - 1``. The result equals that of repeated tokens, at less cost.

The field ``modalities`` is the order of the fused tokens; by default the modalities are sorted by name. The fusions
"gated" and "film" update the tokens of the first modality with the others.

Attention maps are recorded on request: ``module.apply(..., mutable=["intermediates"])`` returns them beside the result,
and `nets.attention_maps` reads them.

To add a fusion, write a subclass of `Fusion` with a ``fuse`` method and its configuration, a member of `FusionKind`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import parts
from xmodal_jax.core.checks import check_rates, check_sizes
from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.nets.dropout import Dropout, DropPath, fold_in_layer
from xmodal_jax.nets.pooling import Pool, prepend_class_token
from xmodal_jax.nets.transformer import MLP, TransformerBlock
from xmodal_jax.types import ExampleKeys, Tokens


class FusionOutput(NamedTuple):
    """What every fusion returns."""

    tokens: Tokens
    """The fused sequence ``[B, N, width]`` with its mask."""
    pooled: Float[Array, "batch width"]
    """One vector per example, float32."""


BRANCH_SCALE = 0.1
"""Initial size of the residual branches' output weights, relative to the usual initialisation; see `Fusion.block`."""

Streams = dict[str, Tokens]
"""Tokens by modality, all of the same width and with a mask."""


class SharedTokens(NamedTuple):
    """Tokens of a modality that several examples may share: each of the B rows of an array ``[B, N, D]`` belongs to
    ``count`` consecutive examples."""

    tokens: Tokens
    """Arrays ``[B / count, ...]``."""
    present: Bool[Array, "batch"]
    """Which examples have the modality."""

    @property
    def count(self) -> int:
        """Number of examples that share one row of the tokens."""
        return self.present.shape[0] // self.tokens.values.shape[0]

    @property
    def has_content(self) -> Bool[Array, "batch"]:
        """Which examples have at least one valid token."""
        return self.present & repeat_rows(self.tokens.mask.any(axis=1), self.count)

    def repeated(self) -> Tokens:
        """One row of tokens per example."""
        values, mask = (repeat_rows(x, self.count) for x in self.tokens)
        return Tokens(values, mask & self.present[:, None])


def repeat_rows(x: Array, count: int) -> Array:
    """Repeats every entry of the first axis ``count`` times: ``[B / count, ...]`` to ``[B, ...]``."""
    return x if count == 1 else jnp.repeat(x, count, axis=0)


def content_mask(tokens: Tokens, present: Bool[Array, "batch"] | None = None) -> Bool[Array, "batch length"]:
    """The mask of the valid tokens, all False in examples that are not ``present`` (None: all are)."""
    values, mask = tokens
    mask = jnp.ones(values.shape[:2], bool) if mask is None else mask
    return mask if present is None else mask & present[:, None]


class Fusion(nn.Module):
    """Base class: projects the tokens of each modality to ``width``, adds an embedding of the modality and calls
    `fuse`.

    Raises:
      ValueError: there are no tokens; ``tokens`` or ``present`` name an unexpected modality; or the number of examples
        is not a multiple of a modality's rows.
    """

    width: int = 128
    """Width of the fused tokens."""
    depth: int = 2
    """Number of layers."""
    heads: int = 4
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden size of the MLPs, as a multiple of ``width``."""
    dropout: float = 0.0
    """Dropout rate."""
    drop_path: float = 0.0
    """Probability with which training skips a residual branch of an example."""
    dtype: Any = None
    """Type of the computation; None: that of the inputs. Parameters are float32."""
    modalities: tuple[str, ...] | None = None
    """The order of the fused modalities; None: sorted by name."""

    @nn.compact
    def __call__(
        self,
        tokens: Mapping[str, Tokens],
        present: Mapping[str, Bool[Array, "batch"]] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> FusionOutput:
        """Projects the tokens of each modality to ``width`` and fuses them into one sequence and one vector.

        Args:
          tokens: the tokens of each modality, ``[B, N_m, D_m]``, or ``[B / n, N_m, D_m]`` if ``n`` consecutive examples
            share a row.
          present: which of the ``B`` examples have the modality; those that are not named are present.
          keys: one key per example, for dropout in training; None in evaluation.
        """
        if not tokens:
            raise ValueError("fusion needs the tokens of at least one modality")
        unknown = set(present or {}) - set(tokens)
        if unknown:
            raise ValueError(
                f"present names {sorted(unknown)[0]!r}, but there are tokens of {', '.join(tokens)} only"
            )
        order = self.modalities or tuple(
            sorted(tokens)
        )  # of the modalities; () stands for those given, by name
        unknown = set(tokens) - set(order)
        if unknown:
            raise ValueError(
                f"there are tokens of {sorted(unknown)[0]!r}; this fusion is of {', '.join(order)}"
            )
        batch = batch_size_of(tokens, present)
        streams = {}  # the tokens of each modality, `SharedTokens`: a row may belong to several examples
        for name in order:
            is_present = (present or {}).get(name, jnp.full(batch, name in tokens))
            if name in tokens:
                streams[name] = SharedTokens(self.project(name, tokens[name], is_present), is_present)
            else:  # no example has the modality: a sequence of length 0
                empty = jnp.zeros((batch, 0, self.width), self.dtype or jnp.float32)
                streams[name] = SharedTokens(Tokens(empty, jnp.zeros((batch, 0), bool)), is_present)
        return self.fuse_shared(streams, keys)

    def project(self, name: str, tokens: Tokens, present: Bool[Array, "batch"]) -> Tokens:
        """The tokens of one modality, projected to ``width`` and with the embedding of the modality added.

        ``present [B]`` says which examples have the modality; several may share a row of ``tokens``.
        """
        values = tokens.values
        # A row of tokens is valid if any of the examples that share it has the modality.
        mask = content_mask(tokens, present.reshape(values.shape[0], -1).any(axis=1))
        # Zeroed before anything else, so that not even an infinity behind a mask matters.
        values = jnp.where(mask[:, :, None], values, jnp.zeros_like(values))
        values = nn.Dense(self.width, dtype=self.dtype, name=f"project_{name}")(values)
        values = nn.LayerNorm(dtype=self.dtype, name=f"norm_{name}")(values)
        modality = self.param(f"modality_{name}", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        return Tokens(shard_examples(values + modality.astype(values.dtype)[None, None, :]), mask)

    def fuse_shared(self, streams: dict[str, SharedTokens], keys: ExampleKeys | None) -> FusionOutput:
        """`fuse` for tokens that several examples may share. They are repeated, so that each example has a row; a
        fusion that works without the copies overrides this."""
        return self.fuse({name: stream.repeated() for name, stream in streams.items()}, keys)

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        """Fuses the projected tokens: what a subclass defines."""
        raise NotImplementedError

    @nn.nowrap
    def map_axes(self, path: str, order: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """``(queries, keys)``: the modalities along the two axes of the attention map that was recorded at ``path``.

        "" stands for learned tokens. ``order``: the modalities of the fusion. By default all modalities are on both
        axes, in this order; fusions whose maps differ override the method.
        """
        return order, order

    def block(self, layer: int, name: str, **options) -> TransformerBlock:
        """The transformer block of one layer, with parameters under ``{name}_{layer}``, that starts near the identity.

        ``options``: further fields of `TransformerBlock`, such as ``cross``.
        Blocks that at first mix the tokens at random keep the gradient from the encoders below, which then hardly learn
        (a convolutional network not at all in 600 steps).
        """
        shared = dict(
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            drop_path=self.drop_path,
            dtype=self.dtype,
            out_scale=BRANCH_SCALE,
        )
        return TransformerBlock(self.heads, **shared, **options, name=f"{name}_{layer}")

    def normalize_and_pool(self, tokens: Tokens) -> FusionOutput:
        """Layer norm, and the mean over the valid tokens."""
        values = nn.LayerNorm(dtype=self.dtype, name="norm")(tokens.values)
        tokens = Tokens(values, tokens.mask)
        return FusionOutput(tokens, Pool("mean", name="pool")(tokens))


def concatenate(streams: Streams, without: str | None = None) -> Tokens:
    """One sequence of the tokens of all modalities, in order, except those of ``without``.

    ``streams`` maps each modality to its tokens ``[B, N_m, width]`` and their mask. ``without`` None: all of them.
    """
    included = [stream for name, stream in streams.items() if name != without]
    return Tokens(
        jnp.concatenate([stream.values for stream in included], axis=1),
        jnp.concatenate([stream.mask for stream in included], axis=1),
    )


def batch_size_of(tokens: Mapping[str, Tokens], present: Mapping[str, Array] | None = None) -> int:
    """The number of examples: the largest batch axis of any modality, which is a multiple of all others."""
    row_counts = {name: t.values.shape[0] for name, t in tokens.items()}
    batch = max([*row_counts.values(), *(is_present.shape[0] for is_present in (present or {}).values())])
    for name, count in row_counts.items():
        if batch % count:
            raise ValueError(
                f"{count} rows of {name} cannot be shared by {batch} examples: no whole number for each"
            )
    return batch


def learned_tokens(module: nn.Module, name: str, count: int, batch: int) -> Array:
    """``count`` learned tokens ``[B, count, width]``, equal in all examples."""
    table = module.param(name, nn.initializers.normal(0.02), (count, module.width), jnp.float32)
    return jnp.broadcast_to(table[None], (batch, *table.shape)).astype(module.dtype or jnp.float32)


class CoAttention(Fusion):
    """One stream per modality: in each layer its tokens attend to themselves, then to the tokens of all other
    modalities, then an MLP follows. ViLBERT: Lu et al. 2019, arXiv:1908.02265, sec. 2.1, with any number of streams.

    Where only one modality is present, the attention to the others adds the bias of its output.
    """

    @nn.nowrap
    def map_axes(self, path, order):
        """Queries are one modality's tokens; keys are the same tokens, or in cross-attention those of all others."""
        modality = re.search(r"layers_(\w+)_\d+", path)[1]
        others = tuple(m for m in order if m != modality)
        return (modality,), others if "cross" in path else (modality,)

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        """Updates each modality's tokens by attention to themselves and to all other modalities', ``depth`` times.

        All modalities of a layer attend to the tokens as they were before the layer.

        ``streams`` maps each modality to its tokens ``[B, N_m, width]`` and their mask. ``keys``: for dropout.
        """
        for layer in range(self.depth):
            updated = {}
            for name, (values, mask) in streams.items():
                block = self.block(layer, f"layers_{name}", cross=len(streams) > 1)
                # (values, mask) of the other modalities' tokens; none if there is one modality only.
                others = concatenate(streams, without=name) if len(streams) > 1 else (None, None)
                updated[name] = Tokens(block(values, mask, *others, fold_in_layer(keys, layer)), mask)
            streams = updated
        return self.normalize_and_pool(concatenate(streams))


class MergedAttention(Fusion):
    """One stream: a transformer over the tokens of all modalities. UNITER and others: Chen et al. 2020,
    arXiv:1909.11740, sec. 3.1."""

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        values, mask = concatenate(streams)
        for layer in range(self.depth):
            values = self.block(layer, "layers")(values, mask, keys=fold_in_layer(keys, layer))
        return self.normalize_and_pool(Tokens(values, mask))


class BottleneckAttention(Fusion):
    """Each modality attends to itself and to a few bottleneck tokens, the only path between modalities:

    ``[z_m ; b_m] = block_m([z_m ; b])``, then ``b`` is the mean of ``b_m`` over the modalities that are present.
    MBT: Nagrani et al. 2021, arXiv:2107.00135, eq. 8-9 (there the mean over all modalities).
    """

    bottlenecks: int = 4
    """Bottleneck tokens."""

    @nn.nowrap
    def map_axes(self, path, order):
        axis = (re.search(r"layers_(\w+)_\d+", path)[1], "")
        return axis, axis

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        """Updates each modality's tokens together with the bottleneck tokens ``b``, ``depth`` times.

        In each layer every modality ``m`` gets a copy ``b_m``; the next ``b`` is the mean of these copies over the
        modalities that are present.

        ``streams`` maps each modality to its tokens ``[B, N_m, width]`` and their mask. ``keys``: for dropout.
        """
        batch = next(iter(streams.values())).values.shape[0]
        bottleneck = learned_tokens(self, "bottleneck", self.bottlenecks, batch)  # b
        all_valid = jnp.ones((batch, self.bottlenecks), bool)
        present = {name: stream.mask.any(axis=1)[:, None, None] for name, stream in streams.items()}
        present_count = jnp.maximum(sum(p.astype(jnp.float32) for p in present.values()), 1.0)
        for layer in range(self.depth):
            updated, bottleneck_sum = {}, jnp.zeros_like(bottleneck, jnp.float32)
            for name, (values, mask) in streams.items():
                # [z_m ; b_m] = block_m([z_m ; b])
                extended = jnp.concatenate([values, bottleneck], axis=1)
                extended_mask = jnp.concatenate([mask, all_valid], axis=1)
                block = self.block(layer, f"layers_{name}")
                out = block(extended, extended_mask, keys=fold_in_layer(keys, layer))
                updated[name] = Tokens(out[:, : -self.bottlenecks], mask)
                bottleneck_sum += jnp.where(present[name], out[:, -self.bottlenecks :], 0.0)
            streams = updated
            # An example without any modality keeps its bottleneck tokens.
            none_present = ~jnp.stack(list(present.values())).any(axis=0)
            bottleneck_mean = (bottleneck_sum / present_count).astype(bottleneck.dtype)
            bottleneck = jnp.where(none_present, bottleneck, bottleneck_mean)
        values, mask = concatenate(streams)
        fused = jnp.concatenate([bottleneck, values], axis=1)
        return self.normalize_and_pool(Tokens(fused, jnp.concatenate([all_valid, mask], axis=1)))


class GatedCrossAttention(Fusion):
    """The tokens of the first modality, and a learned token, attend to all others through gates that start closed:

    ``x += tanh(a) attention(LN x, others)``, ``x += tanh(c) MLP(LN x)``, then a block of self-attention; ``a`` and
    ``c`` start at 0. Flamingo: Alayrac et al. 2022, arXiv:2204.14198, fig. 4 and sec. 2.2.

    The learned token is always valid, so that the other modalities count where the first one is missing.
    """

    @nn.nowrap
    def map_axes(self, path, order):
        queries = ("", order[0])
        return queries, order[1:] if path.startswith("cross") else queries

    def fuse_shared(self, streams: dict[str, SharedTokens], keys: ExampleKeys | None) -> FusionOutput:
        """Updates the tokens of the first modality by gated attention to those of all others, ``depth`` times.

        Where there is one other modality, tokens that examples share are not repeated: attention computes their keys
        and values once.

        ``streams``: the tokens of each modality by name, in order; a row of them may belong to several examples.
        """
        (_, first), *other_streams = streams.items()
        values, mask = prepend_class_token(self, *first.repeated())
        others = other_streams[0][1] if other_streams else None
        if len(other_streams) > 1:
            # One sequence of all others. Different numbers of examples may share their tokens, so these are repeated.
            tokens = concatenate({name: stream.repeated() for name, stream in other_streams})
            others = SharedTokens(tokens, tokens.mask.any(axis=1))
        for layer in range(self.depth):
            layer_keys = fold_in_layer(keys, layer)
            if others is not None:
                values = self.gated_cross_attention(values, others, layer, layer_keys)
            values = self.block(layer, "layers")(values, mask, keys=layer_keys)
        return self.normalize_and_pool(Tokens(values, mask))

    def gated_cross_attention(self, x, others: SharedTokens, layer: int, keys):
        """The two gated residual branches of one layer, for the tokens ``x [B, N, width]`` of the first modality:

        ``x += tanh(a) attention(LN x, others)``, then ``x += tanh(c) MLP(LN x)``.

        ``others``: the tokens of the other modalities. ``keys``: one per example, for dropout; None in evaluation.
        """

        def gate(name):
            """The factor ``tanh(weight)`` of a branch; the learned weight starts at 0, so that the gate is closed."""
            weight = self.param(f"{name}_gate_{layer}", nn.initializers.zeros, (), jnp.float32)
            return jnp.tanh(weight).astype(x.dtype)

        y = nn.LayerNorm(dtype=self.dtype, name=f"cross_norm_{layer}")(x)
        attend = MultiHeadAttention(self.heads, dtype=self.dtype, name=f"cross_attention_{layer}")
        y = Dropout(self.dropout, name=f"cross_dropout_{layer}")(attend(y, *others.tokens), keys)
        # Without valid tokens to attend to, the attention is the bias of its output alone: leave it out.
        x = x + gate("attention") * jnp.where(others.has_content[:, None, None], y, jnp.zeros_like(y))
        y = nn.LayerNorm(dtype=self.dtype, name=f"cross_mlp_norm_{layer}")(x)
        y = Dropout(self.dropout, name=f"mlp_dropout_{layer}")(
            MLP(self.mlp_ratio, self.dtype, name=f"cross_mlp_{layer}")(y), keys
        )
        return shard_examples(x + gate("mlp") * y)


class PerceiverResampler(Fusion):
    """A fixed number of learned queries attend to all tokens and to themselves; the result is ``[B, queries, width]``.

    ``x += attention(LN x, [LN tokens ; LN x])``, ``x += MLP(LN x)``. Flamingo: arXiv:2204.14198, app. A.1.1, fig. 5;
    after Perceiver, Jaegle et al. 2021, arXiv:2103.03206.
    """

    queries: int = 16
    """Learned queries."""

    @nn.nowrap
    def map_axes(self, path, order):
        return ("",), (*order, "")

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        """Updates the learned queries ``x`` by attention to all tokens and to themselves, ``depth`` times.

        ``x += attention(LN x, [LN tokens ; LN x])``, then ``x += MLP(LN x)``.

        ``streams`` maps each modality to its tokens ``[B, N_m, width]`` and their mask. ``keys``: for dropout.
        """
        values, mask = concatenate(streams)
        x = learned_tokens(self, "query", self.queries, values.shape[0])
        all_valid = jnp.ones(x.shape[:2], bool)
        for layer in range(self.depth):
            layer_keys = fold_in_layer(keys, layer)
            queries = nn.LayerNorm(dtype=self.dtype, name=f"query_norm_{layer}")(x)
            tokens = nn.LayerNorm(dtype=self.dtype, name=f"token_norm_{layer}")(values)
            attended = jnp.concatenate([tokens, queries], axis=1)
            attended_mask = jnp.concatenate([mask, all_valid], axis=1)
            attend = MultiHeadAttention(self.heads, dtype=self.dtype, name=f"attention_{layer}")
            x = x + self.drop(attend(queries, attended, attended_mask), "attention", layer, layer_keys)
            mlp = MLP(self.mlp_ratio, self.dtype, BRANCH_SCALE, name=f"mlp_{layer}")
            y = mlp(nn.LayerNorm(dtype=self.dtype, name=f"mlp_norm_{layer}")(x))
            x = shard_examples(x + self.drop(y, "mlp", layer, layer_keys))
        return self.normalize_and_pool(Tokens(x, all_valid))

    def drop(self, branch, name, layer, keys):
        """Dropout and drop path of a residual branch."""
        branch = Dropout(self.dropout, name=f"{name}_dropout_{layer}")(branch, keys)
        return DropPath(self.drop_path, name=f"{name}_drop_path_{layer}")(branch, keys)


def mean_tokens(streams: Streams) -> dict[str, Array]:
    """The mean of each modality's tokens, float32 ``[B, width]``; zeros where it is missing."""
    return {name: Pool("mean", parent=None).apply({}, stream) for name, stream in streams.items()}


def output_of_vector(x: Array) -> FusionOutput:
    """The result of a fusion that gives one vector ``[B, width]``: the vector is also its only token."""
    return FusionOutput(Tokens(x[:, None, :], mask=None), x)


class Concatenation(Fusion):
    """An MLP of ``depth`` hidden layers over the concatenated mean tokens of the modalities (zeros if missing)."""

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        """The output of the MLP over the concatenated mean tokens, one vector per example.

        ``streams`` maps each modality to its tokens ``[B, N_m, width]`` and their mask; a missing modality's mean is 0.
        """
        x = jnp.concatenate(list(mean_tokens(streams).values()), axis=-1)
        hidden_size = int(self.mlp_ratio * self.width)
        for layer in range(self.depth):
            x = nn.gelu(nn.Dense(hidden_size, dtype=self.dtype, name=f"hidden_{layer}")(x))
            x = Dropout(self.dropout, name=f"dropout_{layer}")(x, keys)
        return output_of_vector(nn.Dense(self.width, dtype=self.dtype, name="out")(x).astype(jnp.float32))


class AdditiveAttention(Fusion):
    """The mean of all tokens weighted by ``softmax(v . tanh(W x))``, then an MLP.

    Bahdanau et al. 2015, arXiv:1409.0473, app. A.1.2, with a learned query.
    """

    @nn.nowrap
    def map_axes(self, path, order):
        return ("",), order

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        """The mean of all tokens weighted by ``softmax(v . tanh(W x))``, then an MLP; one vector per example.

        The weights are recorded as an attention map.

        ``streams`` maps each modality to its tokens ``[B, N_m, width]`` and their mask.
        """
        values, mask = concatenate(streams)
        hidden = jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name="hidden")(values))
        scores = nn.Dense(1, use_bias=False, dtype=self.dtype, name="score")(hidden)[
            :, :, 0
        ]  # v . tanh(W x), [B, N]
        scores = scores.astype(jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=1)
        weights = jnp.where(mask.any(axis=1, keepdims=True), weights, 0.0)
        self.sow("intermediates", "weights", weights[:, None, None, :])  # [B, 1 head, 1 query, N]
        x = jnp.einsum("bn,bnd->bd", weights, values.astype(jnp.float32))
        x = Dropout(self.dropout, name="dropout")(x, keys)
        # The MLP takes sequences: here of one token, [B, 1, width].
        mlp = MLP(self.mlp_ratio, self.dtype, name="mlp")(nn.LayerNorm(name="mlp_norm")(x)[:, None, :])
        return output_of_vector(x + mlp[:, 0].astype(jnp.float32))


class LowRankBilinear(Fusion):
    """All products of the modalities' features, by a low-rank factorisation of their weight tensor:

    ``h = sum_r prod_m W_m^r [z_m ; 1] / rank``, with ``z_m`` the mean token. A missing modality has ``z_m = 0``, which
    leaves the products of the others. LMF: Liu et al. 2018, arXiv:1806.00064, eq. 7 (there without the division).
    """

    rank: int = 8
    """Rank of the factorisation."""

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        """The mean over ranks ``r`` of the product over modalities ``m`` of ``W_m^r [z_m ; 1]``, then an MLP.

        ``z_m`` is the mean token of a modality.

        ``streams`` maps each modality to its tokens ``[B, N_m, width]`` and their mask.
        """
        product = jnp.ones((), jnp.float32)
        for name, z in mean_tokens(streams).items():
            shape = (self.rank, self.width)
            # The bias is the weight of the constant 1. It starts at 1, so that a missing modality, whose z is 0, does
            # not change the product of the others.
            factor = nn.DenseGeneral(
                shape, dtype=self.dtype, bias_init=nn.initializers.ones, name=f"factor_{name}"
            )
            product = product * factor(z).astype(jnp.float32)  # [B, rank, width]
        x = product.mean(axis=1)
        x = Dropout(self.dropout, name="dropout")(nn.LayerNorm(name="mlp_norm")(x), keys)
        mlp = MLP(self.mlp_ratio, self.dtype, name="mlp")
        # The MLP takes sequences: here of one token, [B, 1, width].
        return output_of_vector(x + mlp(x[:, None, :])[:, 0].astype(jnp.float32))


class FiLM(Fusion):
    """The other modalities scale and shift the features of the first: ``x = x (1 + gamma) + beta`` before every block.

    ``gamma`` and ``beta`` are linear in the mean tokens of the others, one pair per layer, and start at 0. A learned
    token lets them count where the first modality is missing. Perez et al. 2018, arXiv:1709.07871, eq. 2.
    """

    @nn.nowrap
    def map_axes(self, path, order):
        return ("", order[0]), ("", order[0])

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> FusionOutput:
        """Transforms the tokens ``x`` of the first modality, with ``x = x (1 + gamma) + beta`` before each block.

        ``gamma`` and ``beta`` are linear in the mean tokens of the other modalities. ``streams`` maps each modality to
        its tokens ``[B, N_m, width]`` and their mask.
        """
        first = next(iter(streams))
        values, mask = prepend_class_token(self, *streams[first])
        other_means = [z for name, z in mean_tokens(streams).items() if name != first]
        for layer in range(self.depth):
            if other_means:
                zeros = nn.initializers.zeros  # gamma and beta start at 0, so that x is unchanged at first
                dense = nn.Dense(2 * self.width, kernel_init=zeros, dtype=self.dtype, name=f"film_{layer}")
                film = dense(jnp.concatenate(other_means, axis=-1))
                gamma, beta = jnp.split(film[:, None, :].astype(values.dtype), 2, axis=-1)
                values = values * (1 + gamma) + beta
            values = self.block(layer, "layers")(values, mask, keys=fold_in_layer(keys, layer))
        return self.normalize_and_pool(Tokens(values, mask))


# Configurations: the parts (`core.parts`) that choose a fusion by name, each with the options that it has.


@dataclasses.dataclass(frozen=True)
class FusionPart:
    """The options that all fusions share."""

    name: ClassVar[str]
    """Name by which the command line chooses the part."""
    module: ClassVar[type[Fusion]]
    """Flax module that fuses the tokens."""
    has_attention: ClassVar[bool] = True
    """Whether tokens are weighted by attention, which can be shown (`nets.attention_maps`)."""

    width: int = 64
    """Dimensions of a fused token."""
    mlp_ratio: float = 2.0
    """Hidden size of the MLPs of the fusion, as a multiple of the width."""
    dropout: float = 0.0
    """Dropout rate within the fusion."""

    def __post_init__(self):
        """Checks that sizes are at least 1, and the range of the dropout rate."""
        check_sizes(self)
        check_rates(self, "dropout")

    def build(self, modalities: tuple[str, ...]) -> Fusion:
        """The module, for these modalities in this order."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self.module(**options, modalities=modalities)


@dataclasses.dataclass(frozen=True)
class TransformerFusionPart(FusionPart):
    """The options of the fusions by transformer layers."""

    depth: int = 2
    """Number of transformer layers of the fusion."""
    heads: int = 4
    """Number of attention heads; must divide the width."""


@dataclasses.dataclass(frozen=True)
class CoAttentionConfig(TransformerFusionPart):
    """One stream per modality, each of which attends to all others."""

    name: ClassVar[str] = "co_attention"
    module: ClassVar = CoAttention


@dataclasses.dataclass(frozen=True)
class MergedAttentionConfig(TransformerFusionPart):
    """One transformer over the tokens of all modalities."""

    name: ClassVar[str] = "merged"
    module: ClassVar = MergedAttention


@dataclasses.dataclass(frozen=True)
class BottleneckAttentionConfig(TransformerFusionPart):
    """One stream per modality, with a few tokens between them."""

    name: ClassVar[str] = "bottleneck"
    module: ClassVar = BottleneckAttention

    bottlenecks: int = 4
    """Number of bottleneck tokens, through which the modalities exchange information."""


@dataclasses.dataclass(frozen=True)
class GatedCrossAttentionConfig(TransformerFusionPart):
    """Gated cross-attention of the first modality to the others."""

    name: ClassVar[str] = "gated"
    module: ClassVar = GatedCrossAttention


@dataclasses.dataclass(frozen=True)
class PerceiverResamplerConfig(TransformerFusionPart):
    """Learned queries that attend to the tokens of all modalities."""

    name: ClassVar[str] = "perceiver"
    module: ClassVar = PerceiverResampler

    queries: int = 16
    """Number of learned queries that attend to the tokens of all modalities."""


@dataclasses.dataclass(frozen=True)
class ConcatenationConfig(FusionPart):
    """An MLP over the concatenated mean tokens."""

    name: ClassVar[str] = "concat"
    module: ClassVar = Concatenation
    has_attention: ClassVar[bool] = False

    depth: int = 2
    """Number of hidden layers of the MLP over the concatenated features."""


@dataclasses.dataclass(frozen=True)
class AdditiveAttentionConfig(FusionPart):
    """A weighted mean of all tokens, and an MLP."""

    name: ClassVar[str] = "additive"
    module: ClassVar = AdditiveAttention


@dataclasses.dataclass(frozen=True)
class LowRankBilinearConfig(FusionPart):
    """Products of the modalities' features, by factors of low rank."""

    name: ClassVar[str] = "bilinear"
    module: ClassVar = LowRankBilinear
    has_attention: ClassVar[bool] = False

    rank: int = 8
    """Rank of the factors of the bilinear product."""


@dataclasses.dataclass(frozen=True)
class FiLMConfig(TransformerFusionPart):
    """A transformer over the first modality, whose features the others scale and shift."""

    name: ClassVar[str] = "film"
    module: ClassVar = FiLM


FusionKind = (
    CoAttentionConfig
    | MergedAttentionConfig
    | BottleneckAttentionConfig
    | GatedCrossAttentionConfig
    | PerceiverResamplerConfig
    | ConcatenationConfig
    | AdditiveAttentionConfig
    | LowRankBilinearConfig
    | FiLMConfig
)
"""The fusions, by name."""

FUSIONS: dict[str, type[Fusion]] = {name: part.module for name, part in parts.parts_of(FusionKind).items()}
"""The modules by name."""


def build_fusion(kind: str, **options) -> Fusion:
    """The fusion module named ``kind`` (a key of `FUSIONS`), with ``options`` as its fields.

    Raises:
      ValueError: no fusion has that name.
    """
    if kind not in FUSIONS:
        raise ValueError(f"unknown fusion {kind!r}: choose from {', '.join(FUSIONS)}")
    return FUSIONS[kind](**options)
