"""Scores of texts: hand-made cases, closed forms, and CIDEr's definition with dense vectors."""

import itertools

import numpy as np
import pytest

from xmodal_jax.metrics.text import caption_scores, cider, error_rates

REFERENCES = [
    ["a red circle left of a blue square", "a red disc to the left of a blue box"],
    ["two green stars"],
    ["a big yellow ring above a small red heart"],
]
CANDIDATES = ["a red circle left of a blue box", "three green stars", "a yellow heart"]


def dense_cider(candidates, references):
    """Vectors over every n-gram that there is."""
    scores = np.zeros(len(candidates))
    for n in range(1, 5):
        count = lambda text, n=n: [tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)]
        every = sorted({g for text in [*candidates, *itertools.chain(*references)] for g in count(text)})
        vector = lambda text, every=every, count=count: np.array([count(text).count(g) for g in every], float)
        frequency = np.array([sum(any(g in count(t) for t in texts) for texts in references) for g in every])
        idf = np.log(len(references) / np.maximum(frequency, 1))
        for i, (text, texts) in enumerate(zip(candidates, references, strict=True)):
            for ref in texts:
                c, r = vector(text) * idf, vector(ref) * idf
                if c.any() and r.any():
                    penalty = np.exp(-((len(text.split()) - len(ref.split())) ** 2) / 72)
                    cosine = np.minimum(c, r) @ r / np.linalg.norm(c) / np.linalg.norm(r)
                    scores[i] += 10 / 4 / len(texts) * penalty * cosine
    return scores


def test_cider_is_its_definition():
    found = cider(CANDIDATES, REFERENCES)
    np.testing.assert_allclose(found, dense_cider(CANDIDATES, REFERENCES), rtol=1e-12)
    assert found[0] > found[2] > 0
    same = [texts[0] for texts in REFERENCES]
    assert cider(same, [[text] for text in same]) == pytest.approx(
        [10, 7.5, 10]
    )  # three words have no four in a row


def test_caption_scores():
    perfect = caption_scores([texts[0] for texts in REFERENCES], REFERENCES)
    worse = caption_scores(CANDIDATES, REFERENCES)
    assert perfect["bleu"] == pytest.approx(100) and perfect["chrf"] == pytest.approx(100)
    assert all(0 < worse[name] < perfect[name] for name in ("bleu", "chrf", "cider"))
    # One caption of four words, all right but the last: unigrams 3/4, bigrams 2/3, trigrams 1/2, one 4-gram smoothed
    # to 1/2 (sacrebleu's "exp"): the geometric mean.
    bleu = caption_scores(["a b c x"], [["a b c d"]])["bleu"]
    assert bleu == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    with pytest.raises(ValueError, match=r"caption 1 \('b'\) has no reference"):
        caption_scores(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="got 1 and 2"):
        caption_scores(["a"], [["a"], ["b"]])


def test_error_rates():
    found = error_rates(["the cat sat", "hello", "so"], ["the cat sat on", "hullo you", ""])
    assert found["wer"] == pytest.approx(
        (1 + 2 + 1) / 6
    )  # one deleted; one wrong and one deleted; one inserted
    assert found["cer"] == pytest.approx((3 + (1 + 4) + 2) / (14 + 9))
    assert error_rates(["x y"], ["x y"]) == {"wer": 0.0, "cer": 0.0}
    assert error_rates(["", "b"], ["a", "b"])["wer"] == 0.5
    with pytest.raises(ValueError, match="got 1 hypotheses and 2 references"):
        error_rates(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="no words"):
        error_rates(["a"], [""])
