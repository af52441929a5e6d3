"""N-gram language models, and their fusion with a decoder."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from tests.core.test_decoding import END, LENGTH, ROWS, VOCAB, model, sequences
from xmodal_jax.core.decoding import beam_search, sample
from xmodal_jax.core.language_model import LanguageModelFusion, NGramModel, fit_ngrams

TEXTS = [[3, 4, END], [3, 4, 4, END], [1, 3, END], [3, END], [4, 1, 1, END]]


def by_definition(texts, history, token, order, vocab):
    """p(token | history) by counting in the texts; ``"<"`` is the begin of a text."""
    if not len(history):
        after = Counter(w for text in texts for w in text)
        below = 1.0 / vocab
    else:
        padded = ["<", *history] if history[0] != "<" else list(history)
        assert padded
        after = Counter()
        for text in texts:
            marked = ["<", *text]
            for i in range(1, len(marked)):
                if marked[max(0, i - len(history)) : i] == list(history):
                    after[marked[i]] += 1
        below = by_definition(texts, history[1:], token, order, vocab)
    total, kinds = sum(after.values()), len(after)
    return below if not total else (after[token] + kinds * below) / (total + kinds)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_probabilities_are_those_of_the_definition(order):
    fitted = fit_ngrams(TEXTS, order=order, vocab_size=7)
    for text in [*TEXTS, [1, 4, 3, END], [0, 3, 6, END], [4, 4, 4, 4, END]]:
        expected, history = 0.0, ["<"]
        for token in text:
            known = history[max(0, len(history) - order + 1) :] if order > 1 else []
            expected += np.log(by_definition(TEXTS, known, token, order, 7))
            history.append(token)
        assert fitted.score(text) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_each_state_has_a_distribution_over_the_vocabulary(order):
    fitted = fit_ngrams(TEXTS, order=order, vocab_size=9)
    p = np.exp(fitted.log_p)[:, fitted.column]
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-5)


def test_a_file_holds_the_whole_model(tmp_path):
    fitted = fit_ngrams(TEXTS, order=3, vocab_size=7)
    fitted.save(tmp_path / "lm.npz")
    for a, b in zip(fitted, NGramModel.load(tmp_path / "lm.npz"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("texts", "order", "message"),
    [(TEXTS, 0, "at least 1, got 0"), ([], 2, "at least one text"), ([[9]], 2, r"0\.\.6, got 9\.\.9")],
)
def test_mistakes_are_explained(texts, order, message):
    with pytest.raises(ValueError, match=message):
        fit_ngrams(texts, order=order, vocab_size=7)


@pytest.mark.parametrize("weight", [0.0, 0.7, 3.0])
def test_the_search_finds_the_text_of_the_highest_sum(weight):
    """Of all texts, by enumeration; without length normalisation."""
    fitted = fit_ngrams(TEXTS, order=3, vocab_size=VOCAB)
    step, logits, state = LanguageModelFusion(fitted, weight).start(*model())
    search = lambda: beam_search(
        step, logits, state, beams=2, length=LENGTH, end=END, penalty=0.0, normalize=False
    )
    found = jax.jit(search)()
    for row in range(ROWS):
        scores = {}
        for tokens, (total, _, ends) in sequences(row).items():
            scores[tokens] = total + weight * fitted.score([*tokens, *([END] if ends else [])])
        best = max(scores, key=scores.get)
        ranked = [tuple(t[m].tolist()) for t, m in zip(found.tokens[row], found.mask[row], strict=True)]
        # Two beams are no exhaustive search: what they return has the score that it should have, the best first.
        assert scores[ranked[0]] == pytest.approx(float(found.log_probability[row, 0]), abs=1e-4)
        assert ranked[0] == best or scores[ranked[0]] > sorted(scores.values())[-4]


def test_greedy_search_follows_the_language_model():
    """With a large weight it writes the most probable text of the language model."""
    fitted = fit_ngrams([[3, 1, 4, END]] * 20, order=4, vocab_size=VOCAB)
    step, logits, state = LanguageModelFusion(fitted, 100.0).start(*model())
    written = sample(step, logits, state, length=LENGTH, end=END)
    assert written.tokens[:, :3].tolist() == [[3, 1, 4]] * ROWS and (written.mask.sum(axis=1) == 3).all()


def test_every_context_has_a_state():
    """All texts of up to three tokens have as many contexts as there are prefixes of up to two tokens."""
    texts = [[*t, END] for n in range(3) for t in itertools.product([1, 3], repeat=n)]
    fitted = fit_ngrams(texts, order=3, vocab_size=VOCAB)
    # (), begin, 1, 3, and pairs of begin or a token with a token
    assert len(fitted.log_p) == 1 + 1 + 2 + 2 + 4
