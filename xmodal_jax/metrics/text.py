"""How good texts are: captions by BLEU, chrF and CIDEr, transcripts by word and character error rate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """``bleu`` and ``chrf`` (0 to 100, over the whole corpus, by sacrebleu) and ``cider`` (see `cider`).

    ``references[i]`` are those of ``candidates[i]``, one at least. BLEU: Papineni et al. 2002; chrF: Popović 2015.

    Raises:
      ValueError: no captions, different numbers of candidates and references, or a candidate without reference.
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
    """CIDEr-D of each caption, 0 to 10: how its n-grams of 1 to ``longest`` words agree with those of its references,

        10 mean_n mean_r exp(-(|c| - |r|)^2 / 2 sigma^2) sum_w min(c_w, r_w) r_w / (|c_n| |r_n|),

    ``c_w`` the count of n-gram ``w`` times ``log(captions / captions whose references have w)``. An n-gram that all
    have counts nothing, so that scores depend on which captions are scored together. Words are what spaces separate:
    lower-case and strip punctuation before. Vedantam et al. 2015, arXiv:1411.5726, eq. 1-3 and sec. 5.1.
    """

    def grams(text: str) -> list[Counter]:
        words = text.split()
        return [
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, longest + 1)
        ]

    known = [[grams(text) for text in texts] for texts in references]
    seen = Counter(
        gram for texts in known for gram in {g for text in texts for counts in text for g in counts}
    )

    def weigh(counts: Counter) -> tuple[dict, float]:
        weights = {g: c * (math.log(len(known)) - math.log(max(1, seen[g]))) for g, c in counts.items()}
        return weights, math.sqrt(sum(w * w for w in weights.values()))

    scores = []
    for text, texts, written in zip(candidates, known, references, strict=True):
        own, total = [weigh(counts) for counts in grams(text)], 0.0
        for ref, ref_text in zip(texts, written, strict=True):
            apart = len(text.split()) - len(ref_text.split())
            alike = 0.0
            for (c, c_norm), (r, r_norm) in zip(own, map(weigh, ref), strict=True):
                if c_norm and r_norm:
                    alike += sum(min(w, r[g]) * r[g] for g, w in c.items() if g in r) / (c_norm * r_norm)
            total += math.exp(-(apart**2) / (2 * sigma**2)) * alike / longest
        scores.append(10.0 * total / len(texts))
    return np.array(scores)


def error_rates(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``wer`` and ``cer``: substitutions, deletions and insertions of words (characters) over the references' words,
    over the whole corpus, by jiwer. Above 1 where more is inserted than was said.

    Raises:
      ValueError: different numbers of texts, or no words in the references.
    """
    import jiwer

    if len(hypotheses) != len(references):
        raise ValueError(f"got {len(hypotheses)} hypotheses and {len(references)} references")
    if not any(text.split() for text in references):
        raise ValueError("the references have no words")
    # jiwer refuses empty references; what is said where nothing should be are insertions.
    kept = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r.split()]
    extra = [h for r, h in zip(references, hypotheses, strict=True) if not r.split()]
    truth, said = (list(texts) for texts in zip(*kept, strict=True))
    found = {}
    for name, process, pieces in (
        ("wer", jiwer.process_words, str.split),
        ("cer", jiwer.process_characters, list),
    ):
        out = process(truth, said)
        wrong = out.substitutions + out.deletions + out.insertions + sum(len(pieces(h)) for h in extra)
        found[name] = wrong / (out.hits + out.substitutions + out.deletions)
    return found


def compare_words(hypothesis: str, reference: str) -> list[tuple[str, str]]:
    """The words of both in order, each "right", "wrong" (in the hypothesis only) or "missing" (in the reference only),
    by jiwer's alignment with the fewest errors."""
    import jiwer

    said, meant = hypothesis.split(), reference.split()
    if not meant:
        return [(word, "wrong") for word in said]
    pieces = []
    for chunk in jiwer.process_words(" ".join(meant), " ".join(said)).alignments[0]:
        own = said[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            pieces += [(word, "right") for word in own]
        else:
            pieces += [(word, "wrong") for word in own]
            pieces += [(word, "missing") for word in meant[chunk.ref_start_idx : chunk.ref_end_idx]]
    return pieces
