"""Losses of sequences against plain NumPy, and CTC against the sum over all alignments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.losses.sequence import ctc, ctc_fits, token_cross_entropy

RNG = np.random.default_rng(0)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_token_cross_entropy(smoothing):
    logits = RNG.normal(size=(3, 5, 7)).astype(np.float32)
    targets, counts = RNG.integers(0, 7, (3, 5)), [5, 2, 0]
    mask = np.arange(5)[None] < np.array(counts)[:, None]
    loss = jax.jit(
        lambda x: token_cross_entropy(x, jnp.asarray(targets), jnp.asarray(mask), smoothing=smoothing)
    )
    found, log_p = loss(jnp.asarray(logits)), log_softmax(logits)
    for b, n in enumerate(counts):
        goal = (1 - smoothing) * np.eye(7)[targets[b]] + smoothing / 7
        expected = -(goal * log_p[b]).sum(axis=-1)[:n].mean() if n else 0.0
        np.testing.assert_allclose(found[b], expected, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: loss(x).sum()))(jnp.asarray(logits))
    assert ((np.abs(np.asarray(gradient)).max(axis=-1) > 0) == mask).all()
    far = loss(
        jnp.asarray(logits + 1e4 * np.arange(3)[:, None, None])
    )  # a shift of all logits changes nothing
    np.testing.assert_allclose(far, found, atol=5e-3)


def collapse(path):
    merged = [token for token, _ in itertools.groupby(path)]
    return [t for t in merged if t != 0]


def test_ctc_is_the_sum_over_all_alignments():
    frames, vocab, texts = [4, 3, 4, 1], 3, [[1, 2], [2], [1, 1], []]
    logits = RNG.normal(size=(4, 4, vocab)).astype(np.float32)
    targets = np.zeros((4, 3), np.int32)
    for row, text in zip(targets, texts, strict=True):
        row[: len(text)] = text
    mask = np.arange(3)[None] < np.array([len(t) for t in texts])[:, None]
    logit_mask = np.arange(4)[None] < np.array(frames)[:, None]
    found = jax.jit(ctc)(*(jnp.asarray(x) for x in (logits, logit_mask, targets, mask)))
    for b, (n, text) in enumerate(zip(frames, texts, strict=True)):
        log_p = log_softmax(logits[b])
        paths = [p for p in itertools.product(range(vocab), repeat=n) if collapse(p) == text]
        total = sum(np.exp(sum(log_p[t, v] for t, v in enumerate(path))) for path in paths)
        np.testing.assert_allclose(found[b], -np.log(total), rtol=1e-4)


@pytest.mark.parametrize("frames", [40, 2000])
def test_ctc_of_confident_frames_is_not_negative(frames):
    """Against the forward recursion in float64; one token, which every frame gives with all but certainty."""
    logits = np.zeros((1, frames, 3), np.float32)
    logits[..., 1] = 17.0
    log_p = log_softmax(np.float64(logits[0]))
    # Paths with one token: blanks, the token once or more, blanks.
    blank, token = log_p[:, 0], log_p[:, 1]
    before, within, after = blank[0], token[0], -np.inf
    for t in range(1, frames):
        after = np.logaddexp(after, within) + blank[t]
        within = np.logaddexp(within, before) + token[t]
        before = before + blank[t]
    exact = max(-np.logaddexp(within, after), 0.0)
    value, gradient = jax.value_and_grad(lambda x: ctc(x, jnp.ones((1, frames), bool), *one_token).sum())(
        jnp.asarray(logits)
    )
    assert value >= 0 and abs(value - exact) < 2e-3
    assert np.isfinite(gradient).all() and np.any(gradient)


one_token = jnp.ones((1, 1), jnp.int32), jnp.ones((1, 1), bool)


def test_a_text_that_no_alignment_spells_has_no_influence():
    logits = jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32)
    targets = jnp.asarray(np.array([[1, 1, 2], [1, 2, 3], [3, 3, 3]], np.int32))
    mask = jnp.asarray(np.ones((3, 3), bool))
    logit_mask = jnp.asarray(np.arange(4)[None] < np.array([4, 2, 4])[:, None])
    assert jax.jit(ctc_fits)(logit_mask, targets, mask).tolist() == [
        True,
        False,
        False,
    ]  # three equal ones need five frames
    loss = jax.jit(jax.value_and_grad(lambda x: ctc(x, logit_mask, targets, mask).sum()))
    value, gradient = map(np.asarray, loss(logits))
    assert np.isfinite(value) and np.abs(gradient[0]).max() > 0
    assert not gradient[1:].any()


def test_ctc_equals_torchs():
    torch = pytest.importorskip("torch")
    logits, lengths = RNG.normal(size=(5, 11, 6)).astype(np.float32), np.array([11, 7, 9, 11, 5])
    targets, counts = RNG.integers(1, 6, (5, 4)), np.array([4, 3, 1, 2, 2])
    theirs = torch.nn.functional.ctc_loss(
        torch.log_softmax(torch.tensor(logits), dim=-1).transpose(0, 1),
        torch.tensor(targets), torch.tensor(lengths), torch.tensor(counts), reduction="none",
    )  # fmt: skip
    ours = jax.jit(ctc)(
        logits,
        np.arange(11)[None] < lengths[:, None],
        targets.astype(np.int32),
        np.arange(4)[None] < counts[:, None],
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4)
