"""The report's panels on classification by several modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.runtime import jit_once
from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.evaluation.classification import Classifier, LabelledSplit
from xmodal_jax.metrics.classification import confusion_matrix
from xmodal_jax.models.fusion import FusionConfig
from xmodal_jax.models.towers import leading_tokens, log_mel_of
from xmodal_jax.report import classification_figures as classification_figures
from xmodal_jax.report import figures
from xmodal_jax.report.page import Report

SHOWN = 6
"""Examples in each attention figure."""


def add_scores(report: Report, metrics: Mapping[str, Any], *, chance: float) -> list[str]:
    """Cards, accuracies side by side (all modalities, some of them, one-modality models), and a table of all; gives
    back the names of the metrics on the cards."""
    shown = headline(metrics)
    report.add_metrics(metrics, headline=shown, chance={shown[0]: chance}, title="All scores")
    bars = {"all modalities": metrics["test/accuracy"]}
    for name, value in metrics.items():
        group, _, leaf = name.partition("/")
        if leaf == "accuracy" and group.startswith("given_"):
            bars[f"given {' + '.join(group.removeprefix('given_').split('_'))} only"] = value
        elif leaf == "accuracy" and group.startswith("trained_on_"):
            bars[f"a model of {group.removeprefix('trained_on_')} alone"] = value
    report.add_figure(
        "With modalities missing",
        classification_figures.accuracy_bars(bars, chance=chance, title="test accuracy"),
        "Given … only: the model of all modalities, the others missing at the test. A model of … alone: trained on it.",
    )
    kinds = {
        k.removeprefix("test/").removesuffix("_accuracy"): v
        for k, v in metrics.items()
        if k.startswith("test/") and k.endswith("_accuracy")
    }
    if kinds:
        report.add_figure("By kind", classification_figures.accuracy_bars(kinds, title="test accuracy"))
    return shown


def add_confusions(
    report: Report,
    exam: LabelledSplit,
    predicted: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
) -> None:
    """A matrix per target, of the classes that occur as truth or as answer."""
    for target, labels in exam.labels.items():
        known = labels >= 0
        matrix = confusion_matrix(labels[known], predicted[target][known], len(names[target]))
        kept = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
        shown = [names[target][k] for k in kept]
        report.add_figure(
            "Confusion", figures.confusion_matrix(matrix[np.ix_(kept, kept)], shown, title=target)
        )


def add_attention(
    report: Report,
    attend: Callable,
    params: Any,
    classify: Classifier,
    exam: LabelledSplit,
    predicted: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
    model: FusionConfig,
    tokenizer: Tokenizer | None = None,
) -> None:
    """What the model looks at in right and in wrong answers, drawn over picture, words and spectrogram.

    ``attend``: from `models.fusion.make_token_attention`.
    """
    right, known = exam.right(predicted), exam.known
    rng = np.random.default_rng(0)
    drawn = {
        title: rng.permutation(np.flatnonzero(rows))[:SHOWN]
        for title, rows in (("right answers", right & known), ("wrong answers", ~right & known))
    }
    rows = np.concatenate(list(drawn.values()))
    if not rows.size:
        return
    raw = exam.source.batch(rows)
    batch = numeric_fields(classify.inputs(raw))
    weights = jax.tree.map(np.asarray, jit_once(attend)(params, batch))
    if not weights:
        report.add_text("Attention", f"A fusion of kind {model.fusion!r} has no attention to draw.")
        return
    spectra = _spectra(batch, model) if "audio" in weights else None
    examples = []
    for k, row in enumerate(rows.tolist()):
        said = " · ".join(names[t][predicted[t][row]] for t in exam.labels)
        true = " · ".join(names[t][exam.labels[t][row]] for t in exam.labels)
        verdict = f"{said}" if right[row] else f"{said} (right: {true})"
        asked = f"{raw['caption'][k]}: " if "caption" in raw else ""
        panels = {
            m: _panel(m, {n: v[k] for n, v in raw.items() if not isinstance(v, dict)}, w[k], model, tokenizer,
                      None if spectra is None else spectra[k])
            for m, w in weights.items()
        }  # fmt: skip
        examples.append(classification_figures.AttentionExample(asked + verdict, panels))
    for title, shown in drawn.items():
        if shown.size:
            own, examples = examples[: len(shown)], examples[len(shown) :]
            report.add_figure("Attention", classification_figures.attention(own), f"{title}, drawn at random")


def _spectra(batch: Mapping[str, Any], model: FusionConfig) -> list[np.ndarray]:
    spectrum, mask = log_mel_of(jnp.asarray(batch["audio"]), batch.get("audio_mask"), model.features)
    spectrum = np.asarray(spectrum)
    return list(spectrum) if mask is None else [s[m] for s, m in zip(spectrum, np.asarray(mask), strict=True)]


def _panel(modality, raw, weights, model, tokenizer, spectrum):
    """One modality of an example and its weights in the shape of its tokens."""
    encoder = getattr(model, modality)
    weights = weights[leading_tokens(modality, encoder) :]
    if modality == "text":
        words = tokenizer.tokens(str(raw["caption"]))[: len(weights)]
        return words, weights[: len(words)]
    if modality == "audio":
        tokens = -(-len(spectrum) // encoder.downsample)
        return spectrum, weights[:tokens]
    steps = 1
    if modality == "video":
        steps = len(raw["video"]) // (encoder.tubelet if encoder.name in ("tubelet", "hf") else 1)
    side = int(np.sqrt(len(weights) // steps))
    weights = weights[: steps * side * side].reshape(steps, side, side)
    return raw[modality], weights if modality == "video" else weights[0]


def headline(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics on the cards: accuracies of every test split, then of models of one modality."""
    whole = [k for k in metrics if k.endswith("/accuracy") and not k.startswith(("given_", "trained_on_"))]
    alone = [k for k in metrics if k.endswith("/accuracy") and k.startswith("trained_on_")]
    return ["test/accuracy", *(k for k in whole if k != "test/accuracy"), *alone][:6]
