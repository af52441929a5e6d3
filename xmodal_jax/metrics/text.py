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
    without = [i for i, known in enumerate(references) if not known]
    if without:
        raise ValueError(f"caption {without[0]} ({candidates[without[0]]!r}) has no reference")
    most = max(map(len, references))
    # sacrebleu reads references by column; None says that a caption has fewer.
    columns = [[known[k] if k < len(known) else None for known in references] for k in range(most)]
    return {
        "bleu": sacrebleu.corpus_bleu(list(candidates), columns).score,
        "chrf": sacrebleu.corpus_chrf(list(candidates), columns).score,
        "cider": float(cider(candidates, references).mean()),
    }


def cider(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, longest: int = 4, sigma: float = 6.0
) -> np.ndarray:
    """CIDEr-D of each caption, 0 to 10: the agreement of its n-grams of 1 to ``longest`` words with its references,

        10 mean_n mean_r exp(-(|c| - |r|)^2 / 2 sigma^2) sum_w min(c_w, r_w) r_w / (|c_n| |r_n|),

    where ``c_w`` is the count of the n-gram ``w`` times ``log(captions / captions whose references contain w)``. An
    n-gram in the references of all captions counts nothing, so the scores depend on which captions are scored together.
    Words are separated by spaces: lower-case and strip punctuation before. Vedantam et al. 2015, arXiv:1411.5726,
    eq. 1-3 and sec. 5.1.
    """

    def grams(text: str) -> list[Counter]:
        words = text.split()
        return [
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, longest + 1)
        ]

    reference_grams = [[grams(text) for text in texts] for texts in references]
    document_counts = Counter(
        gram for texts in reference_grams for gram in {g for text in texts for counts in text for g in counts}
    )

    def weigh(counts: Counter) -> tuple[dict, float]:
        """TF-IDF weights and their norm."""
        total = math.log(len(reference_grams))
        weights = {g: c * (total - math.log(max(1, document_counts[g]))) for g, c in counts.items()}
        return weights, math.sqrt(sum(w * w for w in weights.values()))

    scores = []
    for text, texts, reference_texts in zip(candidates, reference_grams, references, strict=True):
        candidate, score = [weigh(counts) for counts in grams(text)], 0.0
        for ref, ref_text in zip(texts, reference_texts, strict=True):
            length_difference = len(text.split()) - len(ref_text.split())
            cosine = 0.0
            for (c, c_norm), (r, r_norm) in zip(candidate, map(weigh, ref), strict=True):
                if c_norm and r_norm:
                    cosine += sum(min(w, r[g]) * r[g] for g, w in c.items() if g in r) / (c_norm * r_norm)
            score += math.exp(-(length_difference**2) / (2 * sigma**2)) * cosine / longest
        scores.append(10.0 * score / len(texts))
    return np.array(scores)


def error_rates(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Word and character error rates ``wer`` and ``cer`` of a corpus of transcripts, by jiwer.

    The substitutions, deletions and insertions of words (characters) divided by the number of words (characters) in the
    references. Above 1 where more is inserted than the references hold.

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
    # jiwer refuses empty references; whatever is transcribed for these counts as insertions.
    pairs = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r.split()]
    inserted = [h for r, h in zip(references, hypotheses, strict=True) if not r.split()]
    truth, transcripts = (list(texts) for texts in zip(*pairs, strict=True))
    rates = {}
    for name, process, pieces in (
        ("wer", jiwer.process_words, str.split),
        ("cer", jiwer.process_characters, list),
    ):
        out = process(truth, transcripts)
        errors = out.substitutions + out.deletions + out.insertions + sum(len(pieces(h)) for h in inserted)
        rates[name] = errors / (out.hits + out.substitutions + out.deletions)
    return rates


def align_words(hypothesis: str, reference: str) -> list[tuple[str, str]]:
    """The words of both texts in order, each marked "right", "wrong" or "missing".

    "wrong" words are in the hypothesis only, "missing" ones in the reference only, by the alignment with the fewest
    errors (jiwer's).

    Example::

        align_words("a blue", "a red")  # [("a", "right"), ("blue", "wrong"), ("red", "missing")]
    """
    import jiwer

    words, reference_words = hypothesis.split(), reference.split()
    if not reference_words:
        return [(word, "wrong") for word in words]
    marked = []
    for chunk in jiwer.process_words(" ".join(reference_words), " ".join(words)).alignments[0]:
        in_hypothesis = words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            marked += [(word, "right") for word in in_hypothesis]
        else:
            marked += [(word, "wrong") for word in in_hypothesis]
            marked += [(word, "missing") for word in reference_words[chunk.ref_start_idx : chunk.ref_end_idx]]
    return marked
