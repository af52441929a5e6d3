"""Monotonic alignments against all of them, one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.alignment import ctc_alignment, expand_durations, monotonic_alignment


def every_alignment(frames, tokens):
    """Durations of all alignments: the places where the tokens change."""
    for cuts in itertools.combinations(range(1, frames), tokens - 1):
        yield np.diff([0, *cuts, frames])


@pytest.mark.parametrize("frames,tokens", [(7, 3), (5, 5), (6, 1), (11, 4)])
def test_is_the_best_of_all_alignments(frames, tokens):
    rng = np.random.default_rng(frames)
    batch, more_frames, more_tokens = 5, frames + 2, tokens + 1
    scores = rng.normal(size=(batch, more_frames, more_tokens)).astype(np.float32)
    frame_mask = np.arange(more_frames)[None, :] < np.full((batch, 1), frames)
    token_mask = np.arange(more_tokens)[None, :] < np.full((batch, 1), tokens)
    found = np.asarray(jax.jit(monotonic_alignment)(scores, jnp.asarray(frame_mask), jnp.asarray(token_mask)))
    for own, durations in zip(scores, found, strict=True):
        value = lambda d, own=own: sum(own[t, i] for t, i in enumerate(np.repeat(np.arange(tokens), d)))
        best = max(every_alignment(frames, tokens), key=value)
        np.testing.assert_array_equal(durations, [*best, 0])


def test_more_tokens_than_frames_have_no_alignment():
    frame_mask, token_mask = jnp.ones((2, 3), bool), jnp.array([[True] * 4, [True, True, True, False]])
    found = monotonic_alignment(jnp.zeros((2, 3, 4)), frame_mask, token_mask)
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [1, 1, 1, 0]])
    assert (
        monotonic_alignment(jnp.zeros((1, 3, 2)), jnp.ones((1, 3), bool), jnp.zeros((1, 2), bool)).sum() == 0
    )


def test_what_lies_behind_the_masks_has_no_influence():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1, 9, 5)).astype(np.float32)
    frame_mask, token_mask = jnp.arange(9)[None] < 7, jnp.arange(5)[None] < 3
    before = monotonic_alignment(jnp.asarray(scores), frame_mask, token_mask)
    scores[:, 7:], scores[:, :, 3:] = 1e9, 1e9
    np.testing.assert_array_equal(monotonic_alignment(jnp.asarray(scores), frame_mask, token_mask), before)


def test_frames_are_spread_over_their_tokens():
    token, part, mask = expand_durations(jnp.array([[2, 0, 3], [1, 1, 0]]), 6)
    np.testing.assert_array_equal(token[0, :5], [0, 0, 2, 2, 2])
    np.testing.assert_array_equal(token[1, :2], [0, 1])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])
    np.testing.assert_allclose(part[0, :5], [0.25, 0.75, 1 / 6, 0.5, 5 / 6], rtol=1e-6)


def test_spread_is_what_repeat_gives():
    rng = np.random.default_rng(1)
    durations = rng.integers(0, 5, (7, 11))
    token, _, mask = expand_durations(jnp.asarray(durations), int(durations.sum(axis=1).max()))
    for own, row, there in zip(durations, np.asarray(token), np.asarray(mask), strict=True):
        np.testing.assert_array_equal(row[there], np.repeat(np.arange(11), own))


def collapse(path):
    """The labels of a path of CTC: repetitions merged, blanks (0) removed."""
    return [token for token, _ in itertools.groupby(path) if token != 0]


@pytest.mark.parametrize("labels", [[1, 2], [1, 1], [2], [], [2, 1, 2]])
def test_a_ctc_path_is_the_best_of_all_paths(labels):
    """Of all paths of five frames, one by one; behind the masks there is something else."""
    rng = np.random.default_rng(len(labels))
    frames, batch = 5, 4
    log_probs = np.log(rng.dirichlet(np.ones(3), (batch, frames + 2))).astype(np.float32)
    padded = np.array([[*labels, 1, 2]] * batch)
    frame_mask = np.broadcast_to(np.arange(frames + 2) < frames, (batch, frames + 2))
    label_mask = np.broadcast_to(np.arange(padded.shape[1]) < len(labels), padded.shape)
    found = jax.jit(ctc_alignment)(log_probs, frame_mask, padded, label_mask)
    paths = [path for path in itertools.product(range(3), repeat=frames) if collapse(path) == labels]
    for own, label, log_prob in zip(log_probs, np.asarray(found.label), found.log_prob, strict=True):
        value = lambda path, own=own: sum(own[t, token] for t, token in enumerate(path))
        best = max(paths, key=value)
        np.testing.assert_array_equal([0 if k < 0 else labels[k] for k in label[:frames]], best)
        np.testing.assert_array_equal(label[frames:], -1)
        assert (np.diff(label[label >= 0]) >= 0).all()
        np.testing.assert_allclose(log_prob, value(best), rtol=1e-5)


def test_labels_that_need_more_frames_have_no_ctc_path():
    """Equal labels need a blank between them."""
    log_probs, all_frames = jnp.zeros((1, 3, 3)), jnp.ones((1, 3), bool)
    for labels, exists in (([1, 1, 2], False), ([1, 2, 1], True), ([1, 1], True), ([1, 2, 1, 2], False)):
        found = ctc_alignment(log_probs, all_frames, jnp.array([labels]), jnp.ones((1, len(labels)), bool))
        assert bool(jnp.isfinite(found.log_prob[0])) == exists
        assert sorted(set(found.label[0].tolist()) - {-1}) == (list(range(len(labels))) if exists else [])


def test_the_best_ctc_path_of_all_texts_is_that_of_its_own_text():
    """So greedy decoding and a forced alignment of what it decodes agree."""
    log_probs = np.log(np.random.default_rng(3).dirichlet(np.full(5, 0.3), (1, 60))).astype(np.float32)
    best = log_probs[0].argmax(axis=-1)
    labels = collapse(best.tolist())
    masks = jnp.ones((1, 60), bool), jnp.ones((1, len(labels)), bool)
    found = ctc_alignment(jnp.asarray(log_probs), masks[0], jnp.array([labels]), masks[1])
    np.testing.assert_array_equal(np.where(found.label[0] < 0, 0, np.array(labels)[found.label[0]]), best)
