"""What the reports of generators show of the classifiers that were trained on generated images."""

from __future__ import annotations

import numpy as np

from xmodal_jax.evaluation.learning import Augmentation, LearningScores, best_ratio
from xmodal_jax.report.page import Report
from xmodal_jax.train.run import format_value

TITLE = "What can be learned from generated images"


def add_learning(report: Report, learned: LearningScores) -> None:
    """Tables of the accuracies of classifiers, trained on generated and on real images: of all, of each class, and of
    some real images with generated ones. Without classes a sentence that says why there are none."""
    if learned.reason:
        report.add_text(TITLE, learned.reason)
        return
    options, accuracies = learned.options, learned.metrics
    score = lambda name: format_value(accuracies[f"learning/{name}"])
    several = len(learned.targets) > 1
    rows = [
        [
            "all" if several else next(iter(learned.targets)),
            score("real_accuracy"),
            score("generated_accuracy"),
        ]
    ]
    if several:
        rows += [[t, score(f"real_accuracy_{t}"), score(f"generated_accuracy_{t}")] for t in learned.targets]
    report.add_table(
        TITLE, ("predicted", "trained on real images", "trained on generated images"), rows,
        note=f"Accuracy on real test images of classifiers trained on {learned.examples:,} images each, for "
        f"{options.steps:,} updates; the last column is the classification accuracy score. Means over {options.seeds} "
        "classifiers.",
    )  # fmt: skip
    for target, by_training in learned.class_accuracies.items():
        columns = (by_training["real"], by_training["generated"])
        rows = [
            [name, *("" if np.isnan(x) else format_value(float(x)) for x in values)]
            for name, *values in zip(learned.targets[target], *columns, strict=True)
        ]
        report.add_table(f"Accuracy by {target}", (target, "trained on real", "trained on generated"), rows)
    if learned.augmentations:
        report.add_table(
            "Real images with generated ones",
            ("real images", "generated for each", "validation accuracy", "test accuracy", ""),
            augmentation_rows(learned.augmentations),
            note="The number of generated images is chosen on validation images. Each classifier is trained for "
            f"{options.steps:,} updates.",
        )


def augmentation_rows(augmentations: tuple[Augmentation, ...]) -> list[list[str]]:
    """A row of cells for each training. The last cell marks the ratio that is best on validation images."""
    rows = []
    for size in sorted({row.real for row in augmentations}):
        of_size = [row for row in augmentations if row.real == size]
        best = best_ratio(of_size)
        rows += [
            [f"{row.real:,}", f"{row.ratio:g}", format_value(list(row.validation)), format_value(list(row.test)),
             "chosen" if row is best else ""]
            for row in of_size
        ]  # fmt: skip
    return rows
