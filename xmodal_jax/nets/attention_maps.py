"""What a fusion looks at: the attention maps recorded in a call, and how much each token is attended to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.fusion import Fusion, batch_of, content_mask, each
from xmodal_jax.types import Tokens


def attention_maps(intermediates: Mapping[str, Any]) -> dict[str, Float[Array, "batch heads queries keys"]]:
    """The maps recorded in a call, by the path of their module (``layers_0/attention``), rows summing to 1."""
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
    """How much each token is looked at, ``[B, N_m]`` for each modality, summing to 1 over its content.

    The mean over the recorded maps, their heads and the content of the queries that are not of the token's own
    modality (learned queries count; where there are no others, its own). What is never attended to, such as everything
    in a fusion without attention, is left out.

    Args:
      fusion: the module whose call recorded ``intermediates``.
      tokens, present: what it was called with.
    """
    order, masks = fusion.modalities or tuple(sorted(tokens)), {}
    batch = batch_of(tokens, present)
    for name in order:
        stream = tokens.get(name, Tokens(jnp.zeros((batch, 0, 1)), None))
        content = each(content_mask(stream), batch // len(stream.values))
        masks[name] = content & (present or {}).get(name, jnp.ones(batch, bool))[:, None]

    def parts(names, length):
        """``(name, its slice)`` along an axis; the learned tokens' length is what the others leave."""
        sizes = {m: masks[m].shape[1] for m in order}
        sizes[""] = length - sum(sizes[m] for m in names if m)
        ends = np.cumsum([sizes[m] for m in names])
        return [(m, slice(int(e) - sizes[m], int(e))) for m, e in zip(names, ends, strict=True)]

    found: dict[bool, dict[str, Array]] = {True: {}, False: {}}
    for path, weights in attention_maps(intermediates).items():
        weights = weights.mean(axis=1)
        queries, keys = fusion.layout(path, order)
        for key, columns in parts(keys, weights.shape[2]):
            for query, rows in parts(queries, weights.shape[1]):
                if key not in tokens:
                    continue
                part = jnp.where(masks[key][:, None, :], weights[:, rows, columns], 0.0)
                there = masks[query] if query else jnp.ones(part.shape[:2], bool)
                looked = jnp.where(there[:, :, None], part, 0.0).sum(axis=1)
                kind = found[query != key]
                kind[key] = kind.get(key, 0.0) + looked
    attention = {**found[False], **found[True]}
    return {
        m: a / jnp.maximum(a.sum(axis=1, keepdims=True), jnp.finfo(a.dtype).tiny)
        for m, a in attention.items()
    }
