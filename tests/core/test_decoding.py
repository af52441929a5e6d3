"""Decoding of a model small enough that every sequence can be listed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.decoding import beam_search, ctc_greedy, filter_logits, sample

VOCAB, END, LENGTH, ROWS = 5, 2, 4, 3
RNG = np.random.default_rng(0)
TABLE = 2.0 * RNG.normal(size=(ROWS, LENGTH + 1, VOCAB, VOCAB))
START = RNG.normal(size=(ROWS, VOCAB))


def logs(x):
    return x - np.log(np.exp(x).sum())


def sequences(row):
    """Every sequence with its log-probability and length (the end token counts), by plain enumeration."""
    found = {}
    content = [v for v in range(VOCAB) if v != END]
    for n in range(LENGTH + 1):
        for tokens in itertools.product(content, repeat=n):
            total, last = 0.0, None
            for t, token in enumerate([*tokens, END][:LENGTH]):
                total += logs(START[row] if last is None else TABLE[row, t, last])[token]
                last = token
            found[tokens] = total, min(n + 1, LENGTH), n < LENGTH
    return found


def model(beams=1):
    """``(step, logits, state)``: the next token depends on the last one, on the row and on the position. The state
    holds the tokens so far, so that a state that goes with the wrong beam is noticed."""

    def step(tokens, position, state):
        row, seen = state
        seen = jax.lax.dynamic_update_slice(seen, tokens[:, None], (0, position - 1))
        last = jnp.take_along_axis(seen, jnp.broadcast_to(position - 1, (len(seen), 1)), axis=1)[:, 0]
        return jnp.asarray(TABLE, jnp.float32)[row, position, last], (row, seen)

    rows = np.repeat(np.arange(ROWS), beams)
    state = jnp.asarray(rows), jnp.zeros((len(rows), LENGTH + 1), jnp.int32)
    return step, jnp.asarray(START[rows], jnp.float32), state


def test_greedy_takes_the_most_probable_token_and_counts_it():
    found = jax.jit(lambda logits, state: sample(model()[0], logits, state, length=LENGTH, end=END))(
        *model()[1:]
    )
    for row in range(ROWS):
        tokens, total = [], 0.0
        for t in range(LENGTH):
            p = logs(START[row] if not tokens else TABLE[row, t, tokens[-1]])
            total += p.max()
            if p.argmax() == END:
                break
            tokens.append(int(p.argmax()))
        np.testing.assert_array_equal(found.tokens[row], tokens + [0] * (LENGTH - len(tokens)))
        assert found.mask[row].sum() == len(tokens) and found.mask[row, : len(tokens)].all()
        np.testing.assert_allclose(found.log_probability[row], total, rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_two_beams_are_those_of_a_plain_search_and_never_worse_than_greedy(penalty):
    step, logits, state = model(2)
    found = jax.jit(lambda x, s: beam_search(step, x, s, beams=2, length=LENGTH, end=END, penalty=penalty))(
        logits, state
    )
    greedy = sample(*model(), length=LENGTH, end=END)
    norm = lambda n: ((5 + n) / 6) ** penalty
    for row in range(ROWS):
        alive, ended = [((), 0.0)], []
        for t in range(LENGTH):
            grown = []
            for tokens, total in alive:
                p = logs(START[row] if not tokens else TABLE[row, t, tokens[-1]])
                ended.append((tokens, (total + p[END]) / norm(t + 1), total + p[END]))
                grown += [((*tokens, v), total + p[v]) for v in range(VOCAB) if v != END]
            alive = sorted(grown, key=lambda x: -x[1])[:2]
        ended = sorted(ended, key=lambda x: -x[1])[:2]
        for k, (tokens, _, total) in enumerate(ended):
            assert tuple(np.asarray(found.tokens[row, k])[np.asarray(found.mask[row, k])]) == tokens
            np.testing.assert_allclose(found.log_probability[row, k], total, rtol=1e-5)
        if penalty == 0 and greedy.mask[row].sum() < LENGTH:
            assert found.log_probability[row, 0] >= greedy.log_probability[row] - 1e-5


def test_the_log_probability_is_that_of_the_sequence():
    keys = jax.random.split(jax.random.key(0), ROWS)
    found = sample(*model(), length=LENGTH, end=END, keys=keys, temperature=1.7)
    for row in range(ROWS):
        tokens = tuple(np.asarray(found.tokens[row])[np.asarray(found.mask[row])].tolist())
        np.testing.assert_allclose(found.log_probability[row], sequences(row)[tokens][0], rtol=1e-5)


def test_samples_have_the_models_frequencies():
    n = 20_000
    step, logits, _ = model()
    state = jnp.zeros(n, jnp.int32), jnp.zeros((n, LENGTH + 1), jnp.int32)
    keys = jax.random.split(jax.random.key(1), n)
    draw = jax.jit(
        lambda keys: sample(
            step, jnp.broadcast_to(logits[:1], (n, VOCAB)), state, length=LENGTH, end=END, keys=keys
        )
    )
    found = draw(keys)
    seen = {}
    for tokens, mask in zip(np.asarray(found.tokens), np.asarray(found.mask), strict=True):
        key = tuple(tokens[mask].tolist())
        seen[key] = seen.get(key, 0) + 1
    exact = {k: np.exp(v[0]) for k, v in sequences(0).items()}
    assert abs(sum(exact.values()) - 1) < 1e-9
    for key, p in exact.items():  # five standard deviations of a binomial share
        assert abs(seen.get(key, 0) / n - p) < 5 * np.sqrt(p * (1 - p) / n) + 1e-9, key
    # A row's tokens depend on its key alone.
    some = sample(
        step, logits[:1], jax.tree.map(lambda x: x[:1], state), length=LENGTH, end=END, keys=keys[7:8]
    )
    np.testing.assert_array_equal(some.tokens[0], found.tokens[7])


def test_filters():
    p = np.array([[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]])
    kept = lambda **how: np.isfinite(np.asarray(filter_logits(jnp.log(jnp.asarray(p, jnp.float32)), **how)))
    assert kept(top_k=2).tolist() == [[True, False, True, False], [False, False, True, True]]
    assert kept(top_k=9).all() and kept(top_p=1.0).all()
    assert kept(top_p=0.6).tolist() == [[True, False, True, False], [False, False, True, True]]
    assert kept(top_p=0.35).tolist() == [[True, False, False, False], [False, False, False, True]]
    # The nucleus is of what top_k leaves: 0.5 / 0.8 reaches 0.6.
    assert kept(top_k=2, top_p=0.6).tolist() == [[True, False, False, False], [False, False, True, True]]


def test_ctc_greedy_merges_repetitions_and_drops_blanks():
    paths = [[0, 1, 1, 0, 1, 2], [3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0], [2, 0, 2, 2, 1, 0]]
    frames = [6, 4, 6, 3]
    logits = 5.0 * np.eye(4)[np.array(paths)] + 0.1 * RNG.normal(size=(4, 6, 4))
    mask = np.arange(6)[None] < np.array(frames)[:, None]
    found = jax.jit(ctc_greedy)(jnp.asarray(logits, jnp.float32), jnp.asarray(mask))
    for b, (path, n) in enumerate(zip(paths, frames, strict=True)):
        expected = [token for token, _ in itertools.groupby(path[:n]) if token]
        assert np.asarray(found.tokens[b])[np.asarray(found.mask[b])].tolist() == expected
        assert not np.asarray(found.tokens[b])[len(expected) :].any()
        total = sum(logs(logits[b, t])[path[t]] for t in range(n))
        np.testing.assert_allclose(found.log_probability[b], total, rtol=1e-4)


def test_a_model_that_never_ends_is_cut_at_the_length():
    step = lambda tokens, position, state: (jnp.zeros((len(tokens), VOCAB)).at[:, END].set(-1e9), state)
    logits, _ = step(jnp.zeros(2, jnp.int32), 0, None)
    assert sample(step, logits, (), length=LENGTH, end=END).mask.all()
    found = beam_search(step, logits, (), beams=2, length=LENGTH, end=END)
    assert found.mask.all() and found.tokens.shape == (1, 2, LENGTH)


def test_errors_say_what_to_change():
    step, logits, state = model(2)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        sample(step, logits, state, length=LENGTH, end=END, temperature=0.0)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\]"):
        sample(step, logits, state, length=LENGTH, end=END, top_p=1.5)
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        sample(step, logits, state, length=LENGTH, end=END, top_k=0)
    with pytest.raises(ValueError, match="divide the 6 rows"):
        beam_search(step, logits, state, beams=4, length=LENGTH, end=END)
    with pytest.raises(ValueError, match="3 beams need a vocabulary of 6"):
        beam_search(step, logits, state, beams=3, length=LENGTH, end=END)
    with pytest.raises(ValueError, match="must not be negative"):
        beam_search(step, logits, state, beams=2, length=LENGTH, end=END, penalty=-1.0)
