"""Embed, fuse and attend over two encoded inputs, as one function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.attention_maps import attention_maps, token_attention
from xmodal_jax.nets.fusion import Fusion, build_fusion, content_mask
from xmodal_jax.types import ExampleKeys, Key, Params, Tokens

Encoded = Float[Array, "..."]
"""Tokens ``[B, N, D]`` or vectors ``[B, D]``."""


class CrossModal(NamedTuple):
    """What `cross_modal_transform` gives."""

    tokens: Tokens
    """The fused sequence ``[B, N, width]`` with its mask."""
    pooled: Float[Array, "batch width"]
    """One vector per example."""
    attention: dict[str, Float[Array, "batch length"]]
    """``a`` and ``b``: how much each token of it is attended to from the other side, summing to 1 (nothing for
    fusions without attention)."""
    maps: dict[str, Float[Array, "batch heads queries keys"]]
    """Every attention map, by layer."""


def _fusion(kind: str, options: Mapping[str, Any]) -> Fusion:
    return build_fusion(kind, modalities=("a", "b"), **options)


def _tokens(a: Encoded, b: Encoded, mask_a, mask_b) -> dict[str, Tokens]:
    found = {}
    for name, x, mask in (("a", a, mask_a), ("b", b, mask_b)):
        if x.ndim == 2:
            x, mask = x[:, None, :], None if mask is None else mask[:, None]
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"mask_{name} has shape {mask.shape}; {name} has tokens {x.shape[:2]}")
        found[name] = Tokens(x, mask)
    if len(a) != len(b):
        raise ValueError(f"a and b are of the same examples: got {len(a)} and {len(b)} of them")
    return found


def init_cross_modal(
    key: Key, a: Encoded, b: Encoded, *, kind: str = "co_attention", **options: Any
) -> Params:
    """Parameters for `cross_modal_transform` of inputs of these widths, with the same ``kind`` and options."""
    return _fusion(kind, options).init(key, _tokens(a, b, None, None))["params"]


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
) -> CrossModal:
    """Projects two encoded inputs to one width, lets them attend to each other and fuses them.

    Args:
      params: from `init_cross_modal`.
      a, b: ``[B, N, D]`` tokens or ``[B, D]`` vectors, of any lengths and widths (the output of any encoder).
      mask_a, mask_b: ``[B, N]`` (``[B]`` of vectors), True where there is content; what they hide has no influence and
        gets a gradient of exactly zero. All False is a missing input.
      kind: a key of `nets.fusion.FUSIONS`: how they are fused.
      keys: one per example, in training with dropout; None is evaluation.
      options: fields of the fusion, such as ``width``, ``depth``, ``heads``, ``dropout``.

    Raises:
      ValueError: unknown ``kind``, inputs of different numbers of examples, a mask that does not fit.

    Example::

        words, patches = jnp.ones((8, 12, 300)), jnp.ones((8, 49, 768))
        params = init_cross_modal(jax.random.key(0), words, patches, width=256)
        out = cross_modal_transform(params, words, patches, mask_a=lengths_mask, width=256)
        out.pooled                # [8, 256], to a classifier
        out.attention["b"]        # [8, 49], what the words look at in the picture
    """
    fusion, tokens = _fusion(kind, options), _tokens(a, b, mask_a, mask_b)
    fused, state = fusion.apply({"params": params}, tokens, keys=keys, mutable=["intermediates"])
    recorded = state.get("intermediates", {})
    return CrossModal(
        Tokens(fused.tokens.values, content_mask(fused.tokens)),
        fused.pooled,
        token_attention(fusion, recorded, tokens),
        attention_maps(recorded),
    )
