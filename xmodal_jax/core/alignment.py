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


class CTCAlignment(NamedTuple):
    """The label of each frame in the most probable path of CTC for known labels."""

    label: Int[Array, "batch frames"]
    """Index of the label that the frame emits, into ``labels``; -1 for a blank, and in invalid frames."""
    log_prob: Float[Array, "batch"]
    """Log-probability of the path, in nats; minus infinity where the labels have no path."""


@check_shapes
def ctc_alignment(
    log_probs: Float[Array, "batch frames vocab"],
    frame_mask: Bool[Array, "batch frames"],
    labels: Int[Array, "batch labels"],
    label_mask: Bool[Array, "batch labels"],
    *,
    blank: int = 0,
) -> CTCAlignment:
    """The most probable path of CTC among those that collapse to known labels (forced alignment).

    A path has a label or the blank at each frame t; it collapses to a sequence of labels by merging repetitions and
    removing blanks. Its log-probability is ``sum_t log_probs[t, path(t)]``. The paths of L labels are those through
    the states blank, l_1, blank, l_2, ..., l_L, blank, which begin in one of the first two states, end in one of the
    last two, and stay or advance by one state from frame to frame, or by two from a label to a different one: Graves
    et al. 2006, section 4.1, with the maximum in place of the sum (Viterbi). The path is that of
    ``torchaudio.functional.forced_align``.

    Args:
      log_probs: log-probability of each label at each frame, in nats.
      frame_mask, label_mask: True on valid frames and labels, which come first.
      labels: ids of the labels, into the vocabulary, without blanks.
      blank: id of the blank.

    Returns:
      The alignment. Labels without a path, as there are fewer frames than labels and blanks between equal ones, have
      -1 at every frame.

    Example::

        log_probs = jnp.log(jnp.array([[[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]]))  # blank, "a"
        mask = jnp.ones((1, 3), bool)
        ctc_alignment(log_probs, mask, jnp.array([[1]]), jnp.ones((1, 1), bool)).label  # [[-1, 0, 0]]
    """
    batch, frames, _ = log_probs.shape
    frame_counts, label_counts = frame_mask.sum(axis=1), label_mask.sum(axis=1)
    low = jnp.finfo(log_probs.dtype).min / 4  # instead of minus infinity: sums of it stay finite
    repeats = (labels[:, 1:] == labels[:, :-1]) & label_mask[:, 1:]
    has_path = label_counts + repeats.sum(axis=1) <= frame_counts
    # The token of each state: blanks with the labels between them.
    tokens = jnp.full((batch, 2 * labels.shape[1] + 1), blank, labels.dtype).at[:, 1::2].set(labels)
    state = jnp.arange(tokens.shape[1])[None, :]
    differs = jnp.pad(tokens[:, 2:] != tokens[:, :-2], ((0, 0), (2, 0)))
    may_skip = (state % 2 == 1) & differs  # the blank before a label

    def forward(best, frame):
        """Extends the best paths by one frame.

        ``best [B, states]``: the log-probability of the best path of the frames so far that ends in each state. Returns
        it for one more frame, and by how many states these paths have advanced; an invalid frame changes nothing.
        """
        log_probs, valid = frame
        emitted = jnp.maximum(jnp.take_along_axis(log_probs, tokens, axis=1), low)
        padded = jnp.pad(best, ((0, 0), (2, 0)), constant_values=low)
        before = jnp.stack([best, padded[:, 1:-1], jnp.where(may_skip, padded[:, :-2], low)])
        advance = jnp.where(valid[:, None], before.argmax(axis=0), 0).astype(jnp.int8)
        extended = jnp.maximum(before.max(axis=0) + emitted, low)
        return jnp.where(valid[:, None], extended, best), advance

    # Before the first frame the path is in state -1: it enters state 0 or 1.
    first = jnp.maximum(jnp.take_along_axis(log_probs[:, 0], tokens, axis=1), low)
    start = jnp.where((state < 2) & frame_mask[:, :1], first, low)
    following = log_probs[:, 1:].transpose(1, 0, 2), frame_mask[:, 1:].T
    best, advances = jax.lax.scan(forward, start, following)

    def backward(state, frame):
        """Records the state of a frame, and goes back to that of the frame before."""
        valid, advance = frame
        label = jnp.where(valid & (state % 2 == 1), state // 2, -1)
        return state - jnp.take_along_axis(advance, state[:, None], axis=1)[:, 0], label

    # The last state is the blank after the last label, or this label.
    final = 2 * label_counts
    scores = jnp.take_along_axis(best, jnp.stack([final, jnp.maximum(final - 1, 0)], axis=1), axis=1)
    last = jnp.where(scores[:, 1] > scores[:, 0], jnp.maximum(final - 1, 0), final)
    advances = jnp.concatenate([jnp.zeros((1, *start.shape), jnp.int8), advances])
    _, label = jax.lax.scan(backward, last, (frame_mask.T, advances), reverse=True)
    return CTCAlignment(
        jnp.where(has_path[:, None], label.T, -1), jnp.where(has_path, scores.max(axis=1), -jnp.inf)
    )
