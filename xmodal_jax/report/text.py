"""Report sections on generated text: examples with wrong words marked, cross-attention, and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from xmodal_jax.core.runtime import jit_once
from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.shapes.grammar import mark_wrong_words, match_factors, parse
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerator
from xmodal_jax.metrics.text import align_words, cider, error_rates
from xmodal_jax.models.seq2seq import Seq2SeqConfig, make_cross_attention
from xmodal_jax.models.towers import compute_log_mel, prefix_tokens
from xmodal_jax.report import text_figures
from xmodal_jax.report.alignment import content
from xmodal_jax.report.classification_figures import accuracy_bars
from xmodal_jax.report.page import MarkedText, Report
from xmodal_jax.types import kind_of

TABLE_ROWS = 10
"""Rows of each table of examples."""


def caption_quality(
    references: ReferenceTexts, captions: Sequence[str]
) -> tuple[np.ndarray, list[MarkedText]]:
    """The quality of each caption ``[N]``, and the captions with wrong words marked.

    On the embedded data set, where the meanings of the references are known, the quality is the fraction of the scene's
    factors that the caption has right. Elsewhere it is CIDEr-D, and words are marked by the most similar reference.
    """
    if references.meanings is None:
        nearest = [
            min(texts, key=lambda reference: _word_error_rate(caption, reference))
            for caption, texts in zip(captions, references.references, strict=True)
        ]
        marks = [align_words(caption, text) for caption, text in zip(captions, nearest, strict=True)]
        return cider(captions, references.references), [MarkedText(m) for m in marks]
    quality, marks = [], []
    for caption, meaning in zip(captions, references.meanings, strict=True):
        # (number correct, number in all) of each factor.
        counts = match_factors(parse(caption), meaning).values()
        quality.append(sum(correct for correct, _ in counts) / sum(count for _, count in counts))
        words = mark_wrong_words(caption, meaning)  # pairs of some words and whether they are wrong
        marks.append(MarkedText([(text, "wrong" if wrong else "right") for text, wrong in words]))
    return np.array(quality), marks


def transcript_quality(
    references: ReferenceTexts, transcripts: Sequence[str]
) -> tuple[np.ndarray, list[MarkedText]]:
    """One minus the word error rate of each transcript ``[N]``, and the transcripts with wrong and missing words
    marked."""
    pairs = list(zip(transcripts, references.texts, strict=True))  # (transcript, true text)
    rates = np.array([_word_error_rate(*pair) for pair in pairs])
    return 1 - rates, [MarkedText(align_words(*pair)) for pair in pairs]


def _word_error_rate(text: str, reference: str) -> float:
    """The word error rate of one text; 1 for any words if the reference is empty."""
    return error_rates([text], [reference])["wer"] if reference.split() else float(bool(text.split()))


def add_generated_texts(
    report: Report,
    references: ReferenceTexts,
    modality: str,
    quality: np.ndarray,
    marks: Sequence[MarkedText],
    *,
    measure: str,
    sample_rate: int = 16_000,
    title: str = "Generated text",
) -> None:
    """Tables of random examples and of those with the lowest quality.

    Args:
      report: gets the tables.
      references: the split, with its reference texts.
      modality: the source modality, shown in the first column.
      quality: of each text, from `caption_quality` or `transcript_quality`.
      marks: the generated texts with wrong words marked, from the same function.
      measure: name of the quality, such as "factor accuracy".
      sample_rate: of audio, Hz.
      title: of the section.
    """
    sampled = np.random.default_rng(0).permutation(len(quality))[:TABLE_ROWS]
    lowest = np.argsort(quality, kind="stable")[:TABLE_ROWS]
    excluded = f"; {references.excluded} that occur in training are left out" if references.excluded else ""
    for indices, note in ((sampled, f"Random examples{excluded}."), (lowest, f"Lowest {measure}.")):
        batch = references.source.batch(indices)
        cells = [
            (content(batch, modality, k, sample_rate), marks[i], references.texts[i], f"{quality[i]:.2f}")
            for k, i in enumerate(indices.tolist())
        ]
        report.add_table(title, (modality, "generated", "reference", measure), cells, note)


def add_attention(
    report: Report,
    generator: TextGenerator,
    params: Any,
    references: ReferenceTexts,
    texts: Sequence[str],
    *,
    examples: int = 4,
) -> None:
    """Figures of the decoder's cross-attention to the source at each word of the first ``examples`` generated texts.

    Adds nothing where the model has no decoder. ``texts``: generated for all examples of ``references`` by
    ``generator`` with the parameters ``params``.
    """
    model, modality, indices = generator.config, generator.modality, range(min(examples, len(texts)))
    if not model.decodes:
        return
    raw = references.source.batch(np.asarray(indices))
    ids, mask = generator.tokenizer.encode_batch([texts[k] for k in indices], generator.length)
    batch = numeric_fields({**generator.inputs(raw), "text": ids, "text_mask": mask})
    sizes = dict(vocab_size=generator.tokenizer.vocab_size, length=generator.length)
    # [B, words, source tokens], without leading source tokens such as [CLS].
    weights = np.asarray(jit_once(make_cross_attention(model, modality, **sizes))(params, batch))
    weights = weights[:, :, prefix_tokens(modality, getattr(model, modality)) :]
    for k, index in enumerate(indices):
        # Without the begin and the end of the sentence.
        words = generator.tokenizer.tokens(texts[index])[1:-1]
        # At each position the decoder predicts the next token: at the begin of the sentence, the first word.
        fig = ATTENTION_FIGURES[kind_of(modality)](raw, modality, k, words, weights[k, : len(words)], model)
        report.add_figure("Cross-attention", fig, texts[index])


def _spectrogram_attention(raw, modality, k, words, weights, model: Seq2SeqConfig) -> Figure:
    """The figure of the attention ``weights [words, tokens]`` to the speech of example k of the batch ``raw``, with its
    log-mel spectrogram. A token stands for several frames."""
    features = model.features
    log_mel, mask = compute_log_mel(
        jnp.asarray(raw[modality][k : k + 1]), jnp.asarray(raw[f"{modality}_mask"][k : k + 1]), features
    )
    frames = np.asarray(log_mel[0])[np.asarray(mask[0])]  # of the only example, without padding
    tokens = -(-len(frames) // getattr(model, modality).frames_per_token)  # rounded up
    return text_figures.spectrogram_attention(
        frames, words, weights[:, :tokens], features.hop / features.sample_rate
    )


def _image_attention(raw, modality, k, words, weights, model: Seq2SeqConfig) -> Figure:
    return text_figures.image_attention(raw[modality][k], words, weights)


ATTENTION_FIGURES: dict[str, Callable[..., Figure]] = {
    "image": _image_attention,
    "video": _image_attention,
    "audio": _spectrogram_attention,
}
"""The figure of the cross-attention to each kind of modality."""


def add_scores(
    report: Report,
    metrics: Mapping[str, Any],
    headline: Sequence[str],
    *,
    prefix: str = "test/",
    chance: Mapping[str, float] | None = None,
) -> None:
    """Cards of the ``headline`` metrics, a table of all metrics, and bars of the accuracy of each factor of a scene
    (metrics ``<prefix><factor>_accuracy``). ``chance``: values of a random prediction, by name, shown on the cards."""
    report.add_metrics(metrics, headline=headline, chance=chance, title="All scores")
    factors = {
        name.removeprefix(prefix).removesuffix("_accuracy"): value
        for name, value in metrics.items()
        if name.startswith(prefix) and name.endswith("_accuracy")
    }
    if len(factors) > 1:
        report.add_figure("Accuracy by factor", accuracy_bars(factors, title=f"{prefix}accuracy"))
