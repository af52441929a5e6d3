"""Fusion of several modalities' tokens into one sequence and one vector: nine modules with one signature.

    ``module(tokens, present, keys=keys) -> Fused(tokens, pooled)``

``tokens``: ``{modality: Tokens [B, N_m, D_m]}``, any number of modalities, of any widths and lengths; ``present``:
``{modality: [B] bool}``, where False says that the example lacks it (a modality left out of ``present`` is there).
What a mask or ``present`` hides has no influence on the result and gets a gradient of exactly zero.

Several examples may share the tokens of a modality, such as questions about one picture: of ``[B / n, N_m, D_m]``, row
``i`` is that of the ``n`` examples from ``n i`` on. The result is that of the tokens repeated, at less cost.

``modalities`` is the order of the fused tokens (by default that of the names, since a mapping comes out of ``jit``
sorted); its first is the one that "gated" and "film" build on. A modality of which there are no tokens at all counts as
missing in every example.

Attention maps are recorded where they are asked for: ``module.apply(..., mutable=["intermediates"])`` returns them
beside the result; `nets.attention_maps` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import keep_rows
from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.nets.dropout import Dropout, DropPath, fold_in_layer
from xmodal_jax.nets.pooling import Pool, prepend_class_token
from xmodal_jax.nets.transformer import MLP, TransformerBlock
from xmodal_jax.types import ExampleKeys, Tokens


class Fused(NamedTuple):
    """What every fusion returns."""

    tokens: Tokens
    pooled: Float[Array, "batch width"]


BRANCH_SCALE = 0.1
"""Size of the residual branches' weights at the start, against the usual: see `Fusion.block`."""

Streams = dict[str, Tokens]
"""Tokens by modality, all of one width and with a mask."""


class Shared(NamedTuple):
    """Tokens of a modality that ``count`` examples side by side share."""

    tokens: Tokens
    there: Bool[Array, "batch"]
    """Which examples have the modality."""

    @property
    def count(self) -> int:
        return len(self.there) // len(self.tokens.values)

    @property
    def heard(self) -> Bool[Array, "batch"]:
        """Which examples have content."""
        return self.there & each(self.tokens.mask.any(axis=1), self.count)

    def of_each(self) -> Tokens:
        """The tokens of each example."""
        values, mask = (each(x, self.count) for x in self.tokens)
        return Tokens(values, mask & self.there[:, None])


def each(x: Array, count: int) -> Array:
    """``[B / count, ...]`` to ``[B, ...]``."""
    return x if count == 1 else jnp.repeat(x, count, axis=0)


def content_mask(tokens: Tokens, there: Bool[Array, "batch"] | None = None) -> Bool[Array, "batch length"]:
    """Which tokens hold content, of the examples that are ``there`` (None: all are)."""
    values, mask = tokens
    mask = jnp.ones(values.shape[:2], bool) if mask is None else mask
    return mask if there is None else mask & there[:, None]


class Fusion(nn.Module):
    """What the fusions share: each modality's tokens projected to ``width``, with an embedding of the modality.

    Raises:
      ValueError: no tokens at all, tokens or ``present`` of a modality that is not expected, or numbers of rows of
        which one does not divide the other.
    """

    width: int = 128
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = None
    modalities: tuple[str, ...] | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Mapping[str, Tokens],
        present: Mapping[str, Bool[Array, "batch"]] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Fused:
        if not tokens:
            raise ValueError("fusion needs the tokens of at least one modality")
        unknown = set(present or {}) - set(tokens)
        if unknown:
            raise ValueError(
                f"present speaks of {sorted(unknown)[0]!r}; there are tokens of {', '.join(tokens)}"
            )
        order = self.modalities or tuple(sorted(tokens))
        unknown = set(tokens) - set(order)
        if unknown:
            raise ValueError(
                f"there are tokens of {sorted(unknown)[0]!r}; this fusion is of {', '.join(order)}"
            )
        batch = batch_of(tokens, present)
        streams = {}
        for name in order:
            there = (present or {}).get(name, jnp.full(batch, name in tokens))
            if name not in tokens:
                nothing = jnp.zeros((batch, 0, self.width), self.dtype or jnp.float32)
                streams[name] = Shared(Tokens(nothing, jnp.zeros((batch, 0), bool)), there)
                continue
            values = tokens[name].values
            mask = content_mask(tokens[name], there.reshape(len(values), -1).any(axis=1))
            # Zeroed before anything else, so that not even an infinity behind a mask matters.
            values = jnp.where(mask[:, :, None], values, jnp.zeros_like(values))
            values = nn.Dense(self.width, dtype=self.dtype, name=f"project_{name}")(values)
            values = nn.LayerNorm(dtype=self.dtype, name=f"norm_{name}")(values)
            kind = self.param(f"modality_{name}", nn.initializers.normal(0.02), (self.width,), jnp.float32)
            values = keep_rows(values + kind.astype(values.dtype)[None, None, :])
            streams[name] = Shared(Tokens(values, mask), there)
        return self.meet(streams, keys)

    def meet(self, streams: dict[str, Shared], keys: ExampleKeys | None) -> Fused:
        """`fuse`, of streams that examples share: repeated, unless a fusion can do with less."""
        return self.fuse({name: stream.of_each() for name, stream in streams.items()}, keys)

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        raise NotImplementedError

    @nn.nowrap
    def layout(self, path: str, order: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the queries and the keys of the map recorded at ``path`` are: modalities in order; "" is learned
        tokens. ``order``: the modalities of the fusion."""
        return order, order

    def block(self, layer: int, name: str, **options) -> TransformerBlock:
        # Starting near the identity: blocks that start by mixing the tokens at random keep the gradient from the
        # encoders below, which then hardly learn (a convolutional network not at all in 600 steps).
        shared = dict(
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            drop_path=self.drop_path,
            dtype=self.dtype,
            out_scale=BRANCH_SCALE,
        )
        return TransformerBlock(self.heads, **shared, **options, name=f"{name}_{layer}")

    def finish(self, tokens: Tokens) -> Fused:
        """Layer norm, and the mean over the content."""
        values = nn.LayerNorm(dtype=self.dtype, name="norm")(tokens.values)
        tokens = Tokens(values, tokens.mask)
        return Fused(tokens, Pool("mean", name="pool")(tokens))


def concatenate(streams: Streams, without: str | None = None) -> Tokens:
    """One sequence of all modalities, in order, but for ``without``."""
    parts = [stream for name, stream in streams.items() if name != without]
    return Tokens(
        jnp.concatenate([part.values for part in parts], axis=1),
        jnp.concatenate([part.mask for part in parts], axis=1),
    )


def batch_of(tokens: Mapping[str, Tokens], present: Mapping[str, Array] | None = None) -> int:
    """The number of examples: the most rows that there are; each modality's number divides it."""
    rows = {name: len(t.values) for name, t in tokens.items()}
    batch = max([*rows.values(), *(len(there) for there in (present or {}).values())])
    for name, count in rows.items():
        if batch % count:
            raise ValueError(
                f"{count} rows of {name} cannot be shared by {batch} examples: no whole number for each"
            )
    return batch


def learned_tokens(module: nn.Module, name: str, count: int, batch: int) -> Array:
    """``[B, count, width]``, the same for every example."""
    table = module.param(name, nn.initializers.normal(0.02), (count, module.width), jnp.float32)
    return jnp.broadcast_to(table[None], (batch, *table.shape)).astype(module.dtype or jnp.float32)


class CoAttention(Fusion):
    """Two streams that attend to each other (any number here): per layer, each modality's tokens attend to
    themselves, then to those of all the others, then an MLP. ViLBERT: Lu et al. 2019, arXiv:1908.02265, sec. 2.1.

    With one modality alone the other streams are empty, and the attention to them adds its output's bias.
    """

    @nn.nowrap
    def layout(self, path, order):
        own = re.search(r"layers_(\w+)_\d+", path)[1]
        return (own,), tuple(m for m in order if m != own) if "cross" in path else (own,)

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        for layer in range(self.depth):
            new = {}
            for name, (values, mask) in streams.items():
                block = self.block(layer, f"layers_{name}", cross=len(streams) > 1)
                others = concatenate(streams, without=name) if len(streams) > 1 else (None, None)
                new[name] = Tokens(block(values, mask, *others, fold_in_layer(keys, layer)), mask)
            streams = new
        return self.finish(concatenate(streams))


class MergedAttention(Fusion):
    """One stream: all tokens in one transformer. UNITER and others: Chen et al. 2020, arXiv:1909.11740, sec. 3.1."""

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        values, mask = concatenate(streams)
        for layer in range(self.depth):
            values = self.block(layer, "layers")(values, mask, keys=fold_in_layer(keys, layer))
        return self.finish(Tokens(values, mask))


class BottleneckAttention(Fusion):
    """Each modality attends to itself and to a few shared tokens, through which alone modalities meet:

    ``[z_m ; b_m] = block_m([z_m ; b])``, ``b`` = the mean of ``b_m`` over the modalities that are present.
    MBT: Nagrani et al. 2021, arXiv:2107.00135, eq. 8-9 (the mean over all; here over those present).
    """

    bottlenecks: int = 4

    @nn.nowrap
    def layout(self, path, order):
        own = (re.search(r"layers_(\w+)_\d+", path)[1], "")
        return own, own

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        batch = len(next(iter(streams.values())).values)
        shared = learned_tokens(self, "bottleneck", self.bottlenecks, batch)
        always = jnp.ones((batch, self.bottlenecks), bool)
        there = {name: stream.mask.any(axis=1)[:, None, None] for name, stream in streams.items()}
        count = jnp.maximum(sum(t.astype(jnp.float32) for t in there.values()), 1.0)
        for layer in range(self.depth):
            new, total = {}, jnp.zeros_like(shared, jnp.float32)
            for name, (values, mask) in streams.items():
                joined = jnp.concatenate([values, shared], axis=1)
                full = jnp.concatenate([mask, always], axis=1)
                out = self.block(layer, f"layers_{name}")(joined, full, keys=fold_in_layer(keys, layer))
                new[name] = Tokens(out[:, : -self.bottlenecks], mask)
                total += jnp.where(there[name], out[:, -self.bottlenecks :], 0.0)
            streams = new
            nobody = ~jnp.stack(list(there.values())).any(axis=0)
            shared = jnp.where(nobody, shared, (total / count).astype(shared.dtype))
        values, mask = concatenate(streams)
        return self.finish(
            Tokens(jnp.concatenate([shared, values], axis=1), jnp.concatenate([always, mask], axis=1))
        )


class GatedCrossAttention(Fusion):
    """The first modality's tokens, and a learned one, attend to all the others through gates that start closed:

    ``x += tanh(a) attention(LN x, others)``, ``x += tanh(c) MLP(LN x)``, then a block of self-attention; ``a`` and
    ``c`` start at 0. Flamingo: Alayrac et al. 2022, arXiv:2204.14198, fig. 4 and sec. 2.2.

    The learned token is always there, so that the others are heard where the first modality is missing.
    """

    @nn.nowrap
    def layout(self, path, order):
        own = ("", order[0])
        return own, order[1:] if path.startswith("cross") else own

    def meet(self, streams: dict[str, Shared], keys: ExampleKeys | None) -> Fused:
        (_, first), *rest = streams.items()
        values, mask = prepend_class_token(self, *first.of_each())
        if len(rest) > 1:
            others = concatenate({name: stream.of_each() for name, stream in rest})
            rest = [("others", Shared(others, others.mask.any(axis=1)))]
        for layer in range(self.depth):
            now = fold_in_layer(keys, layer)
            for _, others in rest:
                values = self.gated(values, others, layer, now)
            values = self.block(layer, "layers")(values, mask, keys=now)
        return self.finish(Tokens(values, mask))

    def gated(self, x, others: Shared, layer: int, keys):
        def gate(name):
            return jnp.tanh(
                self.param(f"{name}_gate_{layer}", nn.initializers.zeros, (), jnp.float32)
            ).astype(x.dtype)

        y = nn.LayerNorm(dtype=self.dtype, name=f"cross_norm_{layer}")(x)
        attend = MultiHeadAttention(self.heads, dtype=self.dtype, name=f"cross_attention_{layer}")
        y = Dropout(self.dropout, name=f"cross_dropout_{layer}")(attend(y, *others.tokens), keys)
        # Where nobody else is there the attention is its output's bias alone: let it say nothing.
        x = x + gate("attention") * jnp.where(others.heard[:, None, None], y, jnp.zeros_like(y))
        y = nn.LayerNorm(dtype=self.dtype, name=f"cross_mlp_norm_{layer}")(x)
        y = Dropout(self.dropout, name=f"mlp_dropout_{layer}")(
            MLP(self.mlp_ratio, self.dtype, name=f"cross_mlp_{layer}")(y), keys
        )
        return keep_rows(x + gate("mlp") * y)


class PerceiverResampler(Fusion):
    """A fixed number of learned queries attend to all tokens and to themselves: ``[B, queries, width]`` however many
    tokens there are.

    ``x += attention(LN x, [LN tokens ; LN x])``, ``x += MLP(LN x)``. Flamingo: arXiv:2204.14198, app. A.1.1, fig. 5;
    after Perceiver, Jaegle et al. 2021, arXiv:2103.03206.
    """

    queries: int = 16

    @nn.nowrap
    def layout(self, path, order):
        return ("",), (*order, "")

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        values, mask = concatenate(streams)
        x = learned_tokens(self, "query", self.queries, len(values))
        always = jnp.ones(x.shape[:2], bool)
        for layer in range(self.depth):
            norm = lambda what, y, layer=layer: nn.LayerNorm(dtype=self.dtype, name=f"{what}_{layer}")(y)
            now = fold_in_layer(keys, layer)
            y = norm("query_norm", x)
            seen = jnp.concatenate([norm("token_norm", values), y], axis=1)
            attend = MultiHeadAttention(self.heads, dtype=self.dtype, name=f"attention_{layer}")
            x = x + self.drop(
                attend(y, seen, jnp.concatenate([mask, always], axis=1)), "attention", layer, now
            )
            y = MLP(self.mlp_ratio, self.dtype, BRANCH_SCALE, name=f"mlp_{layer}")(norm("mlp_norm", x))
            x = keep_rows(x + self.drop(y, "mlp", layer, now))
        return self.finish(Tokens(x, always))

    def drop(self, branch, name, layer, keys):
        branch = Dropout(self.dropout, name=f"{name}_dropout_{layer}")(branch, keys)
        return DropPath(self.drop_path, name=f"{name}_drop_path_{layer}")(branch, keys)


def pooled_streams(streams: Streams) -> dict[str, Array]:
    """The mean token of each modality in float32; zeros where it is missing."""
    return {name: Pool("mean", parent=None).apply({}, stream) for name, stream in streams.items()}


def as_token(x: Array) -> Fused:
    """A fused vector as the one token that it is."""
    return Fused(Tokens(x[:, None, :], None), x)


class Concatenation(Fusion):
    """The modalities' mean tokens side by side (zeros for one that is missing), and ``depth`` hidden layers."""

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        x = jnp.concatenate(list(pooled_streams(streams).values()), axis=-1)
        for layer in range(self.depth):
            x = nn.gelu(
                nn.Dense(int(self.mlp_ratio * self.width), dtype=self.dtype, name=f"hidden_{layer}")(x)
            )
            x = Dropout(self.dropout, name=f"dropout_{layer}")(x, keys)
        return as_token(nn.Dense(self.width, dtype=self.dtype, name="out")(x).astype(jnp.float32))


class AdditiveAttention(Fusion):
    """One weight per token of all modalities, ``softmax(v . tanh(W x))``, and an MLP of the weighted mean.

    Bahdanau et al. 2015, arXiv:1409.0473, app. A.1.2, with a learned query.
    """

    @nn.nowrap
    def layout(self, path, order):
        return ("",), order

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        values, mask = concatenate(streams)
        hidden = jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name="hidden")(values))
        scores = nn.Dense(1, use_bias=False, dtype=self.dtype, name="score")(hidden)[:, :, 0].astype(
            jnp.float32
        )
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=1)
        weights = jnp.where(mask.any(axis=1, keepdims=True), weights, 0.0)
        self.sow("intermediates", "weights", weights[:, None, None, :])
        x = jnp.einsum("bn,bnd->bd", weights, values.astype(jnp.float32))
        x = Dropout(self.dropout, name="dropout")(x, keys)
        mlp = MLP(self.mlp_ratio, self.dtype, name="mlp")(nn.LayerNorm(name="mlp_norm")(x)[:, None, :])
        return as_token(x + mlp[:, 0].astype(jnp.float32))


class LowRankBilinear(Fusion):
    """Every product of the modalities' features, by factors of low rank, without their tensor:

    ``h = sum_r prod_m W_m^r [z_m ; 1]``, ``z_m`` the mean token (zeros for a missing modality, which leaves the
    products of the others). LMF: Liu et al. 2018, arXiv:1806.00064, eq. 7.
    """

    rank: int = 8

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        product = jnp.ones((), jnp.float32)
        for name, z in pooled_streams(streams).items():
            shape = (self.rank, self.width)
            # The constant's weight starts at 1, so that a modality that says nothing leaves the others as they are.
            factor = nn.DenseGeneral(
                shape, dtype=self.dtype, bias_init=nn.initializers.ones, name=f"factor_{name}"
            )
            product = product * factor(z).astype(jnp.float32)
        x = product.mean(axis=1)
        x = Dropout(self.dropout, name="dropout")(nn.LayerNorm(name="mlp_norm")(x), keys)
        return as_token(
            x + MLP(self.mlp_ratio, self.dtype, name="mlp")(x[:, None, :])[:, 0].astype(jnp.float32)
        )


class FiLM(Fusion):
    """The others scale and shift the first modality's features: ``x = x (1 + gamma) + beta`` in every block.

    ``gamma`` and ``beta`` are linear in the others' mean tokens, one pair per layer, and start at 0. A learned token
    carries what the others say where the first modality is missing. Perez et al. 2018, arXiv:1709.07871, eq. 2.
    """

    @nn.nowrap
    def layout(self, path, order):
        return ("", order[0]), ("", order[0])

    def fuse(self, streams: Streams, keys: ExampleKeys | None) -> Fused:
        first = next(iter(streams))
        values, mask = prepend_class_token(self, *streams[first])
        others = [z for name, z in pooled_streams(streams).items() if name != first]
        for layer in range(self.depth):
            if others:
                film = nn.Dense(
                    2 * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name=f"film_{layer}"
                )(jnp.concatenate(others, axis=-1))
                gamma, beta = jnp.split(film[:, None, :].astype(values.dtype), 2, axis=-1)
                values = values * (1 + gamma) + beta
            values = self.block(layer, "layers")(values, mask, keys=fold_in_layer(keys, layer))
        return self.finish(Tokens(values, mask))


FUSIONS: dict[str, type[Fusion]] = {
    "co_attention": CoAttention,
    "merged": MergedAttention,
    "bottleneck": BottleneckAttention,
    "gated": GatedCrossAttention,
    "perceiver": PerceiverResampler,
    "concat": Concatenation,
    "additive": AdditiveAttention,
    "bilinear": LowRankBilinear,
    "film": FiLM,
}


def build_fusion(kind: str, **options) -> Fusion:
    """The fusion called ``kind``.

    Raises:
      ValueError: there is none of that name.
    """
    if kind not in FUSIONS:
        raise ValueError(f"unknown fusion {kind!r}: choose from {', '.join(FUSIONS)}")
    return FUSIONS[kind](**options)
