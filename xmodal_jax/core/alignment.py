"""Monotonic alignments of a short sequence (tokens) with a long one (frames): each frame belongs to one token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def monotonic_alignment(
    scores: Float[Array, "batch frames tokens"],
    frame_mask: Bool[Array, "batch frames"],
    token_mask: Bool[Array, "batch tokens"],
) -> Int[Array, "batch tokens"]:
    """How many frames each token gets by the alignment with the highest ``sum_t scores[t, i(t)]``.

    ``i`` begins at the first token, ends at the last and rises by 0 or 1 from frame to frame. Content comes first in
    both masks. An example with fewer frames than tokens has no such alignment: it gets none, zeros. Kim et al. 2020,
    arXiv:2005.11129, algorithm 1.
    """
    batch, frames, tokens = scores.shape
    lengths, counts = frame_mask.sum(axis=1), token_mask.sum(axis=1)
    low = jnp.finfo(scores.dtype).min / 4  # sums of it stay finite
    place = jnp.arange(tokens)[None, :]

    def forward(best, now):
        before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=low)
        return jnp.maximum(jnp.maximum(best, before) + now, low), before > best

    start = jnp.where(place == 0, scores[:, 0], low)
    _, advanced = jax.lax.scan(forward, start, scores[:, 1:].transpose(1, 0, 2))

    def backward(carry, now):
        token, total = carry
        t, moved = now
        here = t < lengths
        total += jnp.where(here[:, None] & (place == token[:, None]), 1, 0)
        # Before frame t lies the same token, or the one before it; never more tokens than frames are left.
        step = jnp.take_along_axis(moved, token[:, None], axis=1)[:, 0] | (token >= t)
        return (token - jnp.where(here & step & (token > 0), 1, 0), total), None

    last = jnp.maximum(counts - 1, 0)
    moved = jnp.concatenate([jnp.zeros((1, batch, tokens), bool), advanced])
    zeros = jnp.zeros((batch, tokens), jnp.int32)
    (_, total), _ = jax.lax.scan(backward, (last, zeros), (jnp.arange(frames), moved), reverse=True)
    return jnp.where(((counts > 0) & (counts <= lengths))[:, None], total, 0)


def spread(
    durations: Int[Array, "batch tokens"], frames: int
) -> tuple[Int[Array, "batch frames"], Float[Array, "batch frames"], Bool[Array, "batch frames"]]:
    """``(token, part, mask)`` of each frame: the token that it belongs to, how far into that token's frames its middle
    lies, in (0, 1), and whether it is one of the ``sum(durations)`` frames at all."""
    ends = jnp.cumsum(durations, axis=1)
    t = jnp.arange(frames)[None, :]
    token = (ends[:, None, :] <= t[:, :, None]).sum(axis=2)
    mask = t < ends[:, -1:]
    token = jnp.minimum(token, durations.shape[1] - 1)
    own = jnp.take_along_axis(durations, token, axis=1)
    begin = jnp.take_along_axis(ends, token, axis=1) - own
    part = (t - begin + 0.5) / jnp.maximum(own, 1)
    return token, jnp.where(mask, part, 0.5), mask
