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
    """The attention maps in the collection "intermediates" that a call has recorded.

    Example::

        output, state = module.apply(variables, tokens, mutable=["intermediates"])
        maps = attention_maps(state["intermediates"])
    """
    maps = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates):
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

    The mean over the recorded maps and their heads, summed over the valid queries of all other modalities and the
    learned queries. Where a modality is attended to by its own queries only, these count instead. A modality that is
    never attended to is left out, as are all in a fusion without attention.

    Args:
      fusion: the module whose call recorded ``intermediates``.
      tokens, present: the arguments of that call.
    """
    order = fusion.modalities or tuple(sorted(tokens))
    masks = _masks(order, tokens, present)
    within: dict[str, Array] = {}  # attention of a modality's own queries
    across: dict[str, Array] = {}  # attention of all other queries
    for path, weights in attention_maps(intermediates).items():
        weights = weights.mean(axis=1)
        queries, keys = fusion.map_axes(path, order)
        for key, columns in _segments(keys, weights.shape[2], masks):
            for query, rows in _segments(queries, weights.shape[1], masks):
                if key not in tokens:
                    continue
                part = jnp.where(masks[key][:, None, :], weights[:, rows, columns], 0.0)
                valid = masks[query] if query else jnp.ones(part.shape[:2], bool)
                received = jnp.where(valid[:, :, None], part, 0.0).sum(axis=1)
                total = across if query != key else within
                total[key] = total.get(key, 0.0) + received
    return {
        m: a / jnp.maximum(a.sum(axis=1, keepdims=True), jnp.finfo(a.dtype).tiny)
        for m, a in {**within, **across}.items()
    }


def _masks(order, tokens, present) -> dict[str, Bool[Array, "batch length"]]:
    """The valid tokens of each modality, one row per example."""
    masks, batch = {}, batch_size_of(tokens, present)
    for name in order:
        stream = tokens.get(name, Tokens(jnp.zeros((batch, 0, 1)), None))
        valid = repeat_rows(content_mask(stream), batch // len(stream.values))
        masks[name] = valid & (present or {}).get(name, jnp.ones(batch, bool))[:, None]
    return masks


def _segments(names: Sequence[str], length: int, masks: Mapping[str, Array]) -> list[tuple[str, slice]]:
    """Where each modality lies along an axis of this length; learned tokens ("") take what the others leave."""
    sizes = {m: mask.shape[1] for m, mask in masks.items()}
    sizes[""] = length - sum(sizes[m] for m in names if m)
    ends = np.cumsum([sizes[m] for m in names])
    return [(m, slice(int(e) - sizes[m], int(e))) for m, e in zip(names, ends, strict=True)]
