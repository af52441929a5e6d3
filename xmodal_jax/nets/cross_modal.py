"""Fusion of two encoded inputs as one function: project, attend to each other, fuse and pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.attention_maps import Maps, attention_maps, token_attention
from xmodal_jax.nets.fusion import Fusion, build_fusion, content_mask
from xmodal_jax.types import ExampleKeys, Key, Params, Tokens

Encoded = Float[Array, "..."]
"""Tokens ``[B, N, D]`` or vectors ``[B, D]``."""


class CrossModalOutput(NamedTuple):
    """The result of `cross_modal_transform`."""

    tokens: Tokens
    """The fused sequence ``[B, N, width]`` with its mask."""
    pooled: Float[Array, "batch width"]
    """One vector per example."""
    attention: dict[str, Float[Array, "batch length"]]
    """Under "a" and "b": the attention that each token receives from the other input, summing to 1; empty for a fusion
    without attention."""
    maps: Maps
    """Every attention map, by layer."""


def _fusion(kind: str, options: Mapping[str, Any]) -> Fusion:
    return build_fusion(kind, modalities=("a", "b"), **options)


def _tokens(a: Encoded, b: Encoded, mask_a, mask_b) -> dict[str, Tokens]:
    """``{"a": Tokens, "b": Tokens}`` of the two inputs; a vector ``[B, D]`` becomes one token ``[B, 1, D]``.

    ``mask_a`` and ``mask_b`` are True on valid tokens, ``[B, N]`` (``[B]`` for vectors); None: all.
    """
    tokens = {}
    for name, x, mask in (("a", a, mask_a), ("b", b, mask_b)):
        if x.ndim == 2:
            x, mask = x[:, None, :], None if mask is None else mask[:, None]
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"mask_{name} has shape {mask.shape}; {name} has tokens {x.shape[:2]}")
        tokens[name] = Tokens(x, mask)
    if len(a) != len(b):
        raise ValueError(f"a and b must hold the same examples: got {len(a)} and {len(b)} of them")
    return tokens


def init_cross_modal(
    key: Key, a: Encoded, b: Encoded, *, kind: str = "co_attention", **options: Any
) -> Params:
    """Initial parameters of `cross_modal_transform` with the same ``kind`` and options, for inputs of these widths."""
    return _fusion(kind, options).init(key, _tokens(a, b, mask_a=None, mask_b=None))["params"]


def cross_modal_transform(
    params: Params,
    a: Encoded,
    b: Encoded,
    *,
    mask_a: Bool[Array, "..."] | None = None,
    mask_b: Bool[Array, "..."] | None = None,
    kind: str = "co_attention",
    keys: ExampleKeys | None = None,
    **options: Any,
) -> CrossModalOutput:
    """Projects two encoded inputs to one width, lets them attend to each other and fuses them.

    Args:
      params: from `init_cross_modal`.
      a, b: the outputs of any encoders: tokens ``[B, N, D]`` or vectors ``[B, D]``, of any lengths and widths.
      mask_a, mask_b: ``[B, N]`` (``[B]`` for vectors), True where tokens are valid. What they hide has no influence and
        gets a gradient of exactly zero. A row of False is a missing input.
      kind: a key of `nets.fusion.FUSIONS`.
      keys: one random key per example, for dropout in training; None in evaluation.
      options: fields of the fusion, such as ``width``, ``depth``, ``heads``, ``dropout``.

    Raises:
      ValueError: unknown ``kind``, inputs of different numbers of examples, a mask that does not fit.

    Example::

        words, patches = jnp.ones((8, 12, 300)), jnp.ones((8, 49, 768))
        params = init_cross_modal(jax.random.key(0), words, patches, width=256)
        out = cross_modal_transform(params, words, patches, mask_a=lengths_mask, width=256)
        out.pooled                # [8, 256], the input of a classifier
        out.attention["b"]        # [8, 49], the attention of the words to the patches
    """
    fusion, tokens = _fusion(kind, options), _tokens(a, b, mask_a, mask_b)
    fused, state = fusion.apply({"params": params}, tokens, keys=keys, mutable=["intermediates"])
    recorded = state.get("intermediates", {})
    return CrossModalOutput(
        Tokens(fused.tokens.values, content_mask(fused.tokens)),
        fused.pooled,
        token_attention(fusion, recorded, tokens),
        attention_maps(recorded),
    )
