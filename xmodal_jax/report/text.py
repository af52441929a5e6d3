"""The report's panels on texts that a model has written: beside what they are about, with wrong words marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.runtime import jit_once
from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.shapes.grammar import mark_wrong_words, match_factors, parse
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerator
from xmodal_jax.metrics.text import align_words, cider, error_rates
from xmodal_jax.models.seq2seq import make_cross_attention
from xmodal_jax.models.towers import leading_tokens, log_mel_of
from xmodal_jax.report import classification_figures as classification_figures
from xmodal_jax.report import text_figures as text_figures
from xmodal_jax.report.alignment import content
from xmodal_jax.report.page import MarkedText, Report

SHOWN = 10
"""Rows of each table of examples."""


def caption_quality(script: ReferenceTexts, written: Sequence[str]) -> tuple[np.ndarray, list[MarkedText]]:
    """How good each caption is (the share of its factors that are right, or else its CIDEr-D), and its wrong words."""
    if script.meanings is None:
        nearest = [
            min(known, key=lambda r: _errors(t, r))
            for t, known in zip(written, script.references, strict=True)
        ]
        marks = [align_words(text, ref) for text, ref in zip(written, nearest, strict=True)]
        return cider(written, script.references), [MarkedText(m) for m in marks]
    quality, marks = [], []
    for text, meant in zip(written, script.meanings, strict=True):
        found = match_factors(parse(text), meant).values()
        quality.append(sum(r for r, _ in found) / sum(n for _, n in found))
        marks.append(
            MarkedText([(t, "wrong" if wrong else "right") for t, wrong in mark_wrong_words(text, meant)])
        )
    return np.array(quality), marks


def transcript_quality(script: ReferenceTexts, written: Sequence[str]) -> tuple[np.ndarray, list[MarkedText]]:
    """One minus each transcript's word error rate, and its wrong and missing words."""
    pairs = list(zip(written, script.texts, strict=True))
    return 1 - np.array([_errors(*pair) for pair in pairs]), [
        MarkedText(align_words(*pair)) for pair in pairs
    ]


def _errors(text: str, reference: str) -> float:
    return error_rates([text], [reference])["wer"] if reference.split() else float(bool(text.split()))


def add_generated_texts(
    report: Report,
    script: ReferenceTexts,
    source: str,
    quality: np.ndarray,
    marks: Sequence[MarkedText],
    *,
    measure: str,
    sample_rate: int = 16_000,
    title: str = "Examples",
) -> None:
    """Tables of examples drawn at random and of the worst: the ``source``, what was written, what is right."""
    drawn = np.random.default_rng(0).permutation(len(quality))[:SHOWN]
    worst = np.argsort(quality, kind="stable")[:SHOWN]
    left_out = f" ({script.left_out} are left out, being in the training data)" if script.left_out else ""
    for rows, note in ((drawn, f"drawn at random{left_out}"), (worst, "the worst")):
        batch = script.source.batch(rows)
        cells = [
            (content(batch, source, k, sample_rate), marks[row], script.texts[row], f"{quality[row]:.2f}")
            for k, row in enumerate(rows.tolist())
        ]
        report.add_table(title, (source, "written", "one right text", measure), cells, note)


def add_attention(
    report: Report,
    writer: TextGenerator,
    params: Any,
    script: ReferenceTexts,
    written: Sequence[str],
    *,
    examples: int = 4,
) -> None:
    """Where the model looks while it writes each word of the first ``examples``: over the picture, or along the
    spectrogram. Nothing where it has no decoder."""
    model, rows = writer.config, range(min(examples, len(written)))
    if not model.decodes:
        return
    encoder = getattr(model, writer.source)
    sizes = dict(vocab_size=writer.tokenizer.vocab_size, length=writer.length)
    raw = script.source.batch(np.asarray(rows))
    ids, mask = writer.tokenizer.encode_batch([written[k] for k in rows], writer.length)
    batch = numeric_fields({**writer.inputs(raw), "text": ids, "text_mask": mask})
    weights = np.asarray(jit_once(make_cross_attention(model, writer.source, **sizes))(params, batch))
    weights = weights[:, :, leading_tokens(writer.source, encoder) :]
    for k, row in enumerate(rows):
        words = writer.tokenizer.tokens(written[row])[1:-1]
        looked = weights[k, : len(words)]  # at each place the next token is written
        if writer.source == "audio":
            spectrum, there = log_mel_of(
                jnp.asarray(raw["audio"][k : k + 1]),
                jnp.asarray(raw["audio_mask"][k : k + 1]),
                model.features,
            )
            frames = np.asarray(spectrum[0])[np.asarray(there[0])]
            looked = looked[:, : -(-len(frames) // encoder.downsample)]
            fig = text_figures.along_sound(
                frames, words, looked, model.features.hop / model.features.sample_rate
            )
        else:
            fig = text_figures.over_pictures(raw[writer.source][k], words, looked)
        report.add_figure("Where it looks", fig, written[row])


def add_scores(
    report: Report, metrics: Mapping[str, Any], headline: Sequence[str], *, bars: str = "test/"
) -> None:
    """Cards, a table of all, and the accuracies under ``bars`` side by side."""
    report.add_metrics(metrics, headline=headline, title="All scores")
    kinds = {
        name.removeprefix(bars).removesuffix("_accuracy"): value
        for name, value in metrics.items()
        if name.startswith(bars) and name.endswith("_accuracy")
    }
    if len(kinds) > 1:
        report.add_figure("By factor", classification_figures.accuracy_bars(kinds, title=f"{bars}accuracy"))
