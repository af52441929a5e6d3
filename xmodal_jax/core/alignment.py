"""Monotonic alignment of a short sequence (tokens) with a long one (frames): every frame belongs to one token."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.checks import check_shapes


@check_shapes
def monotonic_alignment(
    scores: Float[Array, "batch frames tokens"],
    frame_mask: Bool[Array, "batch frames"],
    token_mask: Bool[Array, "batch tokens"],
) -> Int[Array, "batch tokens"]:
    """The number of frames of each token in the monotonic alignment that maximises the total score.

    An alignment assigns a token i(t) to each frame t; its score is ``sum_t scores[t, i(t)]``. It begins at the first
    token, ends at the last one and advances by 0 or 1 tokens from frame to frame. This is monotonic alignment search:
    Kim et al. 2020, arXiv:2005.11129, algorithm 1.

    Args:
      scores: score of assigning a token to a frame, such as a log-probability.
      frame_mask, token_mask: True on valid frames and tokens, which come first.

    Returns:
      Frames per token; zeros for an example with fewer frames than tokens, which has no such alignment.

    Example::

        scores = jnp.log(jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]]))
        monotonic_alignment(scores, jnp.ones((1, 3), bool), jnp.ones((1, 2), bool))  # [[2, 1]]
    """
    batch, frames, tokens = scores.shape
    frame_counts, token_counts = frame_mask.sum(axis=1), token_mask.sum(axis=1)
    low = jnp.finfo(scores.dtype).min / 4  # instead of minus infinity: sums of it stay finite
    index = jnp.arange(tokens)[None, :]

    def forward(best, frame_scores):
        """Extends the best alignments by one frame.

        ``best [B, tokens]``: the score of the best alignment of the frames so far that ends at each token. Returns it
        for one more frame, and whether these alignments came from the token before.
        """
        from_token_before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=low)
        extended = jnp.maximum(jnp.maximum(best, from_token_before) + frame_scores, low)
        return extended, from_token_before > best

    start = jnp.where(index == 0, scores[:, 0], low)
    _, advanced = jax.lax.scan(forward, start, scores[:, 1:].transpose(1, 0, 2))

    def backward(carry, frame):
        """Counts frame ``t`` for its token, and goes back to the token of frame ``t - 1``."""
        token, durations = carry
        t, advanced = frame
        valid = t < frame_counts
        durations += jnp.where(valid[:, None] & (index == token[:, None]), 1, 0)
        # Frame t - 1 has the same token as frame t, or the one before it: that is certain if token >= t, as the first t
        # frames must reach back to token 0.
        step_back = jnp.take_along_axis(advanced, token[:, None], axis=1)[:, 0] | (token >= t)
        return (token - jnp.where(valid & step_back & (token > 0), 1, 0), durations), None

    last = jnp.maximum(token_counts - 1, 0)
    advanced = jnp.concatenate([jnp.zeros((1, batch, tokens), bool), advanced])
    zeros = jnp.zeros((batch, tokens), jnp.int32)
    (_, durations), _ = jax.lax.scan(backward, (last, zeros), (jnp.arange(frames), advanced), reverse=True)
    has_alignment = (token_counts > 0) & (token_counts <= frame_counts)
    return jnp.where(has_alignment[:, None], durations, 0)


class FrameTokens(NamedTuple):
    """The token of each frame."""

    token: Int[Array, "batch frames"]
    """Index of the token that the frame belongs to."""
    position: Float[Array, "batch frames"]
    """Position of the frame's middle within the frames of its token, in (0, 1); 0.5 in invalid frames."""
    mask: Bool[Array, "batch frames"]
    """True on the ``sum(durations)`` valid frames."""


@check_shapes
def expand_durations(durations: Int[Array, "batch tokens"], frames: int) -> FrameTokens:
    """The token of each of ``frames`` frames, where the tokens follow each other and last ``durations`` frames each.

    Example::

        expand_durations(jnp.array([[2, 1]]), frames=4).token  # [[0, 0, 1, 1]], the last frame is masked
    """
    ends = jnp.cumsum(durations, axis=1)  # the frame after each token's last one
    t = jnp.arange(frames)[None, :]
    token = (ends[:, None, :] <= t[:, :, None]).sum(axis=2)  # the number of tokens that have ended
    mask = t < ends[:, -1:]
    token = jnp.minimum(token, durations.shape[1] - 1)
    duration = jnp.take_along_axis(durations, token, axis=1)
    begin = jnp.take_along_axis(ends, token, axis=1) - duration
    position = (t - begin + 0.5) / jnp.maximum(duration, 1)
    return FrameTokens(token, jnp.where(mask, position, 0.5), mask)
