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


def model():
    """``(step, logits, state)``: the next token depends on the last one, on the row and on the position. The state
    holds the tokens so far, so that a state that goes with the wrong beam is noticed."""

    def step(tokens, position, state):
        row, seen = state
        seen = jax.lax.dynamic_update_slice(seen, tokens[:, None], (0, position - 1))
        last = jnp.take_along_axis(seen, jnp.broadcast_to(position - 1, (len(seen), 1)), axis=1)[:, 0]
        return jnp.asarray(TABLE, jnp.float32)[row, position, last], (row, seen)

    state = jnp.arange(ROWS), jnp.zeros((ROWS, LENGTH + 1), jnp.int32)
    return step, jnp.asarray(START, jnp.float32), state


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
    step, logits, state = model()
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
        # At the full length the unfinished sequences compete with the finished ones.
        ended += [(tokens, total / norm(LENGTH), total) for tokens, total in alive]
        best = sorted(ended, key=lambda x: -x[1])[:2]
        for k, (tokens, _, total) in enumerate(best):
            assert tuple(np.asarray(found.tokens[row, k])[np.asarray(found.mask[row, k])]) == tokens
            np.testing.assert_allclose(found.log_probability[row, k], total, rtol=1e-5)
        if penalty == 0 and greedy.mask[row].sum() < LENGTH:
            assert found.log_probability[row, 0] >= greedy.log_probability[row] - 1e-5


def few_tokens(seed, scale=1.0):
    """``(step, logits, totals)`` of a model of 22 tokens of which only the first four, the end token among them, have a
    probability. ``totals``: the log-probability of every sequence of up to three tokens, by enumeration, and its length
    with the end token."""
    rng = np.random.default_rng(seed)
    table = np.full((4, 4, 22), -1e9)  # by position and by the token before
    table[:, :, :4] = scale * rng.normal(size=(4, 4, 4))
    table[:, :, END] -= 1.0
    p = [[logs(row) for row in rows] for rows in table]
    totals = {}
    for n in range(4):
        for tokens in itertools.product([v for v in range(4) if v != END], repeat=n):
            path = [*tokens, END][:3]
            steps = zip([0, *path], path, strict=False)
            totals[tokens] = sum(p[t][a][b] for t, (a, b) in enumerate(steps)), len(path)
    step = lambda tokens, position, state: (jnp.asarray(table, jnp.float32)[position, tokens], state)
    return step, jnp.asarray(table[:1, 0], jnp.float32), totals


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_search_with_a_beam_for_every_prefix_finds_the_best_of_all_sequences(penalty, seed):
    """There are nine prefixes of two tokens. Sequences without an end token compete by the same score."""
    step, logits, totals = few_tokens(seed)
    found = jax.jit(lambda x: beam_search(step, x, (), beams=10, length=3, end=END, penalty=penalty))(logits)
    score = {tokens: total / ((5 + n) / 6) ** penalty for tokens, (total, n) in totals.items()}
    best = sorted(score, key=score.get, reverse=True)[:10]
    assert any(len(tokens) == 3 for tokens in best) and any(len(tokens) < 3 for tokens in best)
    got = [
        tuple(np.asarray(t)[np.asarray(m)].tolist())
        for t, m in zip(found.tokens[0], found.mask[0], strict=True)
    ]
    assert got == best
    np.testing.assert_allclose(found.log_probability[0], [totals[tokens][0] for tokens in best], rtol=1e-5)


def test_an_improbable_end_does_not_win_over_what_is_cut_and_no_result_is_empty():
    """The end token has the probability 0.02 at every step, two others 0.49 each."""
    p = np.log(np.array([0.49, 0.49, 0.02, 1e-30, 1e-30, 1e-30]))
    step = lambda tokens, position, state: (jnp.asarray(np.tile(p, (len(tokens), 1)), jnp.float32), state)
    search = jax.jit(lambda x: beam_search(step, x, (), beams=3, length=4, end=END, penalty=0.0))
    sequences = search(jnp.asarray(p[None], jnp.float32))
    np.testing.assert_allclose(sequences.log_probability, np.full((1, 3), 4 * np.log(0.49)), rtol=1e-6)
    assert sequences.mask.all()


def test_each_example_has_its_own_beams():
    """As many examples as beams: three searches give what one search of all gives."""
    step, logits, state = model()
    search = jax.jit(lambda x, s: beam_search(step, x, s, beams=2, length=LENGTH, end=END))
    whole = search(logits, state)
    assert whole.tokens.shape == (ROWS, 2, LENGTH)
    for row in range(ROWS):
        alone = search(logits[row : row + 1], tuple(x[row : row + 1] for x in state))
        for a, b in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(a[0], b[row])
    assert len({tuple(np.asarray(x[0]).tolist()) for x in whole.tokens}) > 1


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
    logits, _ = step(jnp.zeros(1, jnp.int32), 0, None)
    assert sample(step, logits, (), length=LENGTH, end=END).mask.all()
    found = beam_search(step, logits, (), beams=2, length=LENGTH, end=END)
    assert found.mask.all() and found.tokens.shape == (1, 2, LENGTH)


def test_errors_say_what_to_change():
    step, logits, state = model()
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        sample(step, logits, state, length=LENGTH, end=END, temperature=0.0)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\]"):
        sample(step, logits, state, length=LENGTH, end=END, top_p=1.5)
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        sample(step, logits, state, length=LENGTH, end=END, top_k=0)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], got 0"):
        filter_logits(logits, top_p=0.0)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        filter_logits(logits, top_k=0)
    with pytest.raises(ValueError, match=r"keys must have 3 rows as the logits have, got an array \[2\]"):
        sample(step, logits, state, length=LENGTH, end=END, keys=jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="beams and length must be at least 1, got 0 and 4"):
        beam_search(step, logits, state, beams=0, length=LENGTH, end=END)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), state)
    with pytest.raises(
        ValueError, match=r"state\[0\] must have 3 rows as the logits have, got an array \[6\]"
    ):
        beam_search(step, logits, repeated, beams=2, length=LENGTH, end=END)
    with pytest.raises(ValueError, match="3 beams need a vocabulary of 6"):
        beam_search(step, logits, state, beams=3, length=LENGTH, end=END)
    with pytest.raises(ValueError, match="must not be negative"):
        beam_search(step, logits, state, beams=2, length=LENGTH, end=END, penalty=-1.0)


def test_the_most_probable_token_is_always_in_the_nucleus():
    """Also where its probability is above a tiny top_p."""
    p = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    assert np.isfinite(filter_logits(p, top_p=1e-6)).tolist() == [[False, True, False]]
