"""Report sections on classification by several modalities: accuracies, confusion matrices and attention maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xmodal_jax.core.runtime import jit_once
from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.evaluation.attention import AttentionInputs
from xmodal_jax.evaluation.classification import Classifier, LabelledSplit
from xmodal_jax.metrics.classification import confusion_matrix
from xmodal_jax.models.fusion import FusionConfig
from xmodal_jax.report import figures
from xmodal_jax.report.classification_figures import AttentionExample, accuracy_bars, attention
from xmodal_jax.report.page import Report

EXAMPLES = 6
"""Examples in each figure of attention maps."""
ATTENTION_NOTE = (
    "Bright or high is what gets much attention: parts of the second copy of an image, the cells above words, the "
    "steps above sound and measured quantities (none where these are a single token)."
)
"""How the figures of attention maps are read."""


def add_scores(report: Report, metrics: Mapping[str, Any], *, majority_accuracy: float) -> list[str]:
    """Cards of the headline metrics, bars of accuracies, and a table of all metrics (by name, a number or one per
    seed).

    The bars compare the multimodal model, the same model with some modalities missing, and the unimodal baselines.
    ``majority_accuracy`` is the accuracy of always predicting the most frequent class. Returns the names of the metrics
    on the cards.
    """
    on_cards = headline(metrics)
    in_table = {
        k: v for k, v in metrics.items() if not k.startswith("adds_")
    }  # those have a figure of their own
    report.add_metrics(
        in_table, headline=on_cards, chance={on_cards[0]: majority_accuracy}, title="All scores"
    )
    bars = {"all modalities": metrics["test/accuracy"]}
    for name, value in metrics.items():  # such as given_image_text/accuracy and trained_on_image/accuracy
        group, _, metric = name.partition("/")
        if metric == "accuracy" and group.startswith("given_"):
            bars[f"given only {' + '.join(group.removeprefix('given_').split('_'))}"] = value
        elif metric == "accuracy" and group.startswith("trained_on_"):
            bars[f"trained on {group.removeprefix('trained_on_')}"] = value
    report.add_figure(
        "Missing modalities",
        accuracy_bars(bars, chance=majority_accuracy, title="test accuracy"),
        "Given only: the multimodal model, where the other modalities are missing in the test. Trained on: a unimodal "
        "baseline.",
    )
    add_gains(report, metrics)
    by_kind = {  # of questions, such as test/count_accuracy
        name.removeprefix("test/").removesuffix("_accuracy"): value
        for name, value in metrics.items()
        if name.startswith("test/") and name.endswith("_accuracy")
    }
    if by_kind:
        report.add_figure("Accuracy by kind", accuracy_bars(by_kind, title="test accuracy"))
    return on_cards


def add_gains(report: Report, metrics: Mapping[str, Any]) -> None:
    """Heat maps of what each modality adds to each set of others (`evaluation.gains_of_modalities`), means over seeds;
    nothing with one modality."""
    cells: dict[
        str, dict[tuple[str, str], float]
    ] = {}  # by metric, then by the others and the one that is added
    for name, value in metrics.items():
        group, _, metric = name.partition("/")
        if group.startswith("adds_"):
            added, _, others = group.removeprefix("adds_").partition("_to_")
            cells.setdefault(metric, {})[others, added] = float(np.nanmean(value))
    for metric, values in cells.items():
        rows, columns = (list(dict.fromkeys(key[k] for key in values)) for k in (0, 1))
        rows.sort(key=lambda others: others.count("_"))
        matrix = np.array([[values.get((row, column), np.nan) for column in columns] for row in rows])
        title = metric.replace("_", " ")
        report.add_figure(
            "What each modality adds",
            figures.gain_matrix(matrix, rows, columns, column_name="added", title=title),
            "In nats, a mean over test examples. Log-likelihood: by how much the prediction of the true class gets "
            "better. Entropy reduction: by how much the model is surer; surer and not better is overconfident.",
        )


def headline(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the metrics on the cards: each test split's accuracy, then those of the unimodal baselines, at most
    six."""
    accuracies = [name for name in metrics if name.endswith("/accuracy") and not name.startswith("given_")]
    baselines = [name for name in accuracies if name.startswith("trained_on_")]
    splits = [name for name in accuracies if name not in baselines and name != "test/accuracy"]
    return ["test/accuracy", *splits, *baselines][:6]


def add_confusions(
    report: Report,
    split: LabelledSplit,
    predicted: Mapping[str, np.ndarray],
    class_names: Mapping[str, Sequence[str]],
) -> None:
    """A confusion matrix of each target, with the classes that are true or predicted for some example.

    ``predicted``: the predicted class of each example, by target. ``class_names``: by target.
    """
    for target, labels in split.labels.items():
        names, known = class_names[target], labels >= 0  # -1: no label
        matrix = confusion_matrix(labels[known], predicted[target][known], len(names))
        occurring = np.flatnonzero(
            matrix.sum(axis=0) + matrix.sum(axis=1)
        )  # classes with a count in row or column
        fig = figures.confusion_matrix(
            matrix[np.ix_(occurring, occurring)], [names[k] for k in occurring], title=target
        )
        report.add_figure("Confusion matrices", fig)


def add_attention(
    report: Report,
    attend: Callable,
    params: Any,
    classify: Classifier,
    split: LabelledSplit,
    predicted: Mapping[str, np.ndarray],
    class_names: Mapping[str, Sequence[str]],
    model: FusionConfig,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Attention maps of random examples, some predicted correctly and some not.

    Args:
      report: gets the figures.
      attend: ``attend(params, batch)`` from `models.fusion.make_token_attention`: the attention to the tokens of each
        modality, ``[B, tokens]`` by modality; empty where the model has no attention.
      params: of the classifier.
      classify: the classifier, which prepares the inputs.
      split: the test split.
      predicted: the predicted class of each example of the split, by target.
      class_names: names of the classes, by target.
      model: configuration of the classifier.
      tokenizer: of the classifier; None: there is no text.
    """
    correct, known = split.correct(predicted), split.known  # bool [N]
    rng = np.random.default_rng(0)
    groups = {
        title: rng.permutation(np.flatnonzero(is_member))[:EXAMPLES]
        for title, is_member in (("Correct predictions", correct & known), ("Errors", ~correct & known))
    }
    indices = np.concatenate(list(groups.values()))
    if not indices.size:
        return
    raw = split.source.batch(indices)
    batch = numeric_fields(classify.inputs(raw))
    weights = jax.tree.map(np.asarray, jit_once(attend)(params, batch))  # [B, tokens] by modality
    if not weights:
        report.add_text("Attention maps", f"The fusion {model.fusion.name!r} has no attention.")
        return
    inputs = AttentionInputs(batch, raw, model, tokenizer)
    # k: position in the batch; index: position in the split.
    examples = [
        AttentionExample(
            _title(raw, k, index, split, predicted, class_names, correct[index]),
            # The content of the panel of each modality that the example has, and the attention to its parts.
            {m: inputs.attended(m, k, w[k]) for m, w in weights.items() if batch["present"][m][k]},
        )
        for k, index in enumerate(indices.tolist())
    ]
    for title, members in groups.items():  # the examples are in the order of the groups
        if members.size:
            of_group, examples = examples[: len(members)], examples[len(members) :]
            note = f"{title}, random examples. {ATTENTION_NOTE}"
            report.add_figure("Attention maps", attention(of_group), note)


def _title(raw, k, index, split, predicted, class_names, is_correct) -> str:
    """The caption, the predicted classes, and the true ones where they differ, for the example at ``k`` in the batch
    ``raw`` and at ``index`` in the split.

    ``predicted``: classes ``[N]`` of the split's examples, by target. ``class_names``: by target. ``is_correct``:
    whether all of the example's predictions are correct.
    """
    prediction = " · ".join(class_names[t][predicted[t][index]] for t in split.labels)
    truth = " · ".join(class_names[t][split.labels[t][index]] for t in split.labels)
    caption = f"{raw['caption'][k]}: " if "caption" in raw else ""
    return caption + (prediction if is_correct else f"{prediction} (true: {truth})")
