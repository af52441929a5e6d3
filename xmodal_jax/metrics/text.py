"""Quality of generated text: BLEU, chrF and CIDEr of captions, word and character error rates of transcripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of a corpus of captions.

    Args:
      candidates: generated captions.
      references: one or more reference captions of each candidate.

    Returns:
      ``bleu`` and ``chrf``, 0 to 100, of the whole corpus by sacrebleu (Papineni et al. 2002; Popović 2015), and
      ``cider``, the mean of `cider`.

    Raises:
      ValueError: no captions, different numbers of candidates and references, or a candidate without reference.

    Example::

        caption_scores(["a red circle"], [["a red circle", "there is a red circle"]])
    """
    import sacrebleu  # here: it takes a second to import

    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"as many candidates as lists of references are needed, got {len(candidates)} and {len(references)}"
        )
    without_reference = [i for i, texts in enumerate(references) if not texts]
    if without_reference:
        i = without_reference[0]
        raise ValueError(f"caption {i} ({candidates[i]!r}) has no reference")
    # sacrebleu takes a list of the first references of all captions, one of the second ones and so on, with None where
    # a caption has fewer references.
    most = max(map(len, references))
    columns = [[texts[k] if k < len(texts) else None for texts in references] for k in range(most)]
    return {
        "bleu": sacrebleu.corpus_bleu(list(candidates), columns).score,
        "chrf": sacrebleu.corpus_chrf(list(candidates), columns).score,
        "cider": float(cider(candidates, references).mean()),
    }


def cider(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, longest: int = 4, sigma: float = 6.0
) -> np.ndarray:
    """CIDEr-D of each caption, 0 to 10: how well its n-grams of 1 to ``longest`` words agree with its references',

        10 mean_n mean_r exp(-(|c| - |r|)^2 / 2 sigma^2) sum_w min(c_w, r_w) r_w / (|c_n| |r_n|),

    for a candidate c of |c| words, its references r and the n-grams w of n words. ``c_w`` is the TF-IDF weight of w in
    c: its count times ``log(captions / captions whose references contain w)``; ``|c_n|`` is the norm of these weights.
    An n-gram in the references of all captions has the weight 0, so the scores depend on which captions are scored
    together. Words are separated by spaces: lower-case and strip punctuation before. Vedantam et al. 2015,
    arXiv:1411.5726, eq. 1-3 and sec. 5.1.
    """
    # For each caption, and each of its references: counts of n-grams by n.
    reference_counts = [[_ngram_counts(text, longest) for text in texts] for texts in references]
    # The number of captions whose references contain an n-gram.
    document_counts = Counter()
    for texts in reference_counts:
        document_counts.update({ngram for text in texts for counts in text for ngram in counts})

    def weigh(counts: Counter) -> tuple[dict, float]:
        """``(weights, norm)``: the TF-IDF weight of each n-gram, and the Euclidean norm of the weights."""
        log_captions = math.log(len(reference_counts))
        weights = {
            ngram: count * (log_captions - math.log(max(1, document_counts[ngram])))
            for ngram, count in counts.items()
        }
        return weights, math.sqrt(sum(weight * weight for weight in weights.values()))

    scores = []
    for candidate, texts, texts_counts in zip(candidates, references, reference_counts, strict=True):
        candidate_weights = [weigh(counts) for counts in _ngram_counts(candidate, longest)]
        score = 0.0
        for text, text_counts in zip(texts, texts_counts, strict=True):
            length_difference = len(candidate.split()) - len(text.split())
            cosine = 0.0  # summed over the lengths n of the n-grams
            for (c, c_norm), (r, r_norm) in zip(candidate_weights, map(weigh, text_counts), strict=True):
                if c_norm and r_norm:
                    product = sum(min(c[ngram], r[ngram]) * r[ngram] for ngram in c if ngram in r)
                    cosine += product / (c_norm * r_norm)
            score += math.exp(-(length_difference**2) / (2 * sigma**2)) * cosine / longest
        scores.append(10.0 * score / len(texts))
    return np.array(scores)


def _ngram_counts(text: str, longest: int) -> list[Counter]:
    """The counts of the text's n-grams, tuples of n words, for each n from 1 to ``longest``."""
    words = text.split()
    return [
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, longest + 1)
    ]


def error_rates(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Word and character error rates ``wer`` and ``cer`` of a corpus of transcripts, by jiwer.

    A rate is the number of substitutions, deletions and insertions of words (characters) divided by the number of words
    (characters) in the references. It exceeds 1 where there are more errors than words in the references.

    Raises:
      ValueError: different numbers of texts, or references without any word.

    Example::

        error_rates(["a red square"], ["a red circle"])["wer"]  # 1 / 3
    """
    import jiwer

    if len(hypotheses) != len(references):
        raise ValueError(f"got {len(hypotheses)} hypotheses and {len(references)} references")
    if not any(text.split() for text in references):
        raise ValueError("the references have no words")
    # jiwer refuses empty references: all words of the hypotheses for these count as insertions.
    pairs = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r.split()]
    inserted = [h for r, h in zip(references, hypotheses, strict=True) if not r.split()]
    truth, transcripts = (list(texts) for texts in zip(*pairs, strict=True))
    rates = {}
    for name, process, tokenize in (
        ("wer", jiwer.process_words, str.split),
        ("cer", jiwer.process_characters, list),
    ):
        out = process(truth, transcripts)
        errors = out.substitutions + out.deletions + out.insertions
        errors += sum(len(tokenize(h)) for h in inserted)
        rates[name] = errors / (out.hits + out.substitutions + out.deletions)
    return rates


def align_words(hypothesis: str, reference: str) -> list[tuple[str, str]]:
    """``(word, mark)`` for the words of both texts in order, each marked "right", "wrong" or "missing".

    By jiwer's alignment, which has the fewest errors, "right" words are in both texts, "wrong" words in the hypothesis
    only and "missing" words in the reference only.

    Example::

        align_words("a blue", "a red")  # [("a", "right"), ("blue", "wrong"), ("red", "missing")]
    """
    import jiwer

    words, reference_words = hypothesis.split(), reference.split()
    if not reference_words:
        return [(word, "wrong") for word in words]
    marked = []
    # The alignment is a list of chunks: runs of words that are equal, substituted, inserted or deleted.
    for chunk in jiwer.process_words(" ".join(reference_words), " ".join(words)).alignments[0]:
        in_hypothesis = words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            marked += [(word, "right") for word in in_hypothesis]
        else:
            marked += [(word, "wrong") for word in in_hypothesis]
            marked += [(word, "missing") for word in reference_words[chunk.ref_start_idx : chunk.ref_end_idx]]
    return marked
