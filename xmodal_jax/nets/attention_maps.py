"""Attention maps recorded in a call of a module, and how much attention each token of a fusion receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.fusion import Fusion, batch_size_of, content_mask, repeat_rows
from xmodal_jax.types import Tokens

Maps = dict[str, Float[Array, "batch heads queries keys"]]
"""Attention maps by the path of the module that recorded them (``layers_0/attention``); rows sum to 1."""


def attention_maps(intermediates: Mapping[str, Any]) -> Maps:
    """The attention maps that a call of a module recorded in its collection "intermediates", by module path.

    Example::

        output, state = module.apply(variables, tokens, mutable=["intermediates"])
        maps = attention_maps(state["intermediates"])
    """
    maps = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates):
        # Flax keeps recorded values in tuples: the path ends in an index, which has no name.
        names = [str(getattr(part, "key", "")) for part in path]
        names = [name for name in names if name]
        if names and names[-1] == "weights":
            maps["/".join(names[:-1]) or "weights"] = leaf
    return maps


def token_attention(
    fusion: Fusion,
    intermediates: Mapping[str, Any],
    tokens: Mapping[str, Tokens],
    present: Mapping[str, Bool[Array, "batch"]] | None = None,
) -> dict[str, Float[Array, "batch length"]]:
    """The attention that each token receives, ``[B, N_m]`` for each modality, summing to 1 over its valid tokens.

    A token's attention is summed over the recorded maps and over their valid queries, those of other modalities and
    learned ones. Only where none of these attend to a modality, the queries of the modality itself count. A modality
    that no query attends to is left out, so that a fusion without attention gives an empty result.

    Args:
      fusion: the module whose call recorded ``intermediates``.
      tokens, present: the arguments of that call.
    """
    order = fusion.modalities or tuple(sorted(tokens))
    masks = _masks(order, tokens, present)
    from_itself: dict[str, Array] = {}  # attention [B, N_m] that a modality receives from its own queries
    from_others: dict[str, Array] = {}  # attention [B, N_m] that it receives from all other queries
    for path, weights in attention_maps(intermediates).items():
        weights = weights.mean(axis=1)  # over heads: [B, queries, keys]
        # The modalities along the map's two axes, and the slice of the axis that each covers; "" for learned tokens.
        query_modalities, key_modalities = fusion.map_axes(path, order)
        query_slices = _segments(query_modalities, weights.shape[1], masks)
        key_slices = _segments(key_modalities, weights.shape[2], masks)
        for key, key_slice in key_slices:
            if key not in tokens:  # learned tokens, or a modality without tokens
                continue
            for query, query_slice in query_slices:
                block = jnp.where(masks[key][:, None, :], weights[:, query_slice, key_slice], 0.0)
                valid_queries = masks[query] if query else jnp.ones(block.shape[:2], bool)
                received = jnp.where(valid_queries[:, :, None], block, 0.0).sum(axis=1)
                total = from_others if query != key else from_itself
                total[key] = total.get(key, 0.0) + received
    # A modality that is in both dictionaries takes the attention from others.
    return {
        m: a / jnp.maximum(a.sum(axis=1, keepdims=True), jnp.finfo(a.dtype).tiny)
        for m, a in {**from_itself, **from_others}.items()
    }


def _masks(order, tokens, present) -> dict[str, Bool[Array, "batch length"]]:
    """For each modality of ``order``, which of its tokens are valid: ``[B, N_m]``, all False in examples without it.

    ``tokens`` and ``present`` are the arguments of `token_attention`.
    """
    masks, batch = {}, batch_size_of(tokens, present)
    for name in order:
        # A modality without tokens: a sequence of length 0.
        modality_tokens = tokens.get(name, Tokens(jnp.zeros((batch, 0, 1)), mask=None))
        # Several examples may share a row of tokens.
        valid = repeat_rows(content_mask(modality_tokens), batch // modality_tokens.values.shape[0])
        masks[name] = valid & (present or {}).get(name, jnp.ones(batch, bool))[:, None]
    return masks


def _segments(names: Sequence[str], length: int, masks: Mapping[str, Array]) -> list[tuple[str, slice]]:
    """``(modality, slice)``: where the tokens of each modality in ``names`` lie along an axis of this length.

    ``masks [B, N_m]`` give the number of tokens of each modality; the rest of the axis are learned tokens ("").
    """
    sizes = {m: mask.shape[1] for m, mask in masks.items()}
    sizes[""] = length - sum(sizes[m] for m in names if m)
    ends = np.cumsum([sizes[m] for m in names])
    return [(m, slice(int(end) - sizes[m], int(end))) for m, end in zip(names, ends, strict=True)]
