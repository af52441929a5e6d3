"""How reports show what classifiers learn from generated images."""

import numpy as np

from xmodal_jax.evaluation.learning import Augmentation, LearningEvaluation, LearningScores
from xmodal_jax.report.learning import TITLE, add_learning, augmentation_rows
from xmodal_jax.report.page import Report, read_sections

AUGMENTATIONS = (
    Augmentation(500, 0.0, (0.9,), (0.5,)),
    Augmentation(500, 1.0, (0.3,), (0.9,)),
    Augmentation(500, 2.0, (0.5,), (0.6,)),
)


def sections(tmp_path, learned):
    report = Report("A run")
    add_learning(report, learned)
    report.write(tmp_path / "report.html")
    return read_sections(tmp_path / "report.html")


def test_the_score_stands_beside_that_of_real_images_and_each_class_has_a_row(tmp_path):
    learned = LearningScores(
        {"learning/generated_accuracy": 0.125, "learning/real_accuracy": 0.875},
        class_accuracies={"class": {"real": np.array([0.25, np.nan]), "generated": np.array([0.5, np.nan])}},
        augmentations=AUGMENTATIONS, targets={"class": ("cat", "dog")}, examples=1234,
        options=LearningEvaluation(steps=77, seeds=3),
    )  # fmt: skip
    found = sections(tmp_path, learned)
    for text in ("0.125", "0.875", "1,234 images", "77 updates", "3 classifiers"):
        assert text in found[TITLE], text
    for text in ("cat", "dog", "0.25", "0.5"):
        assert text in found["Accuracy by class"], text
    assert "nan" not in found["Accuracy by class"]
    assert "chosen" in found["Real images with generated ones"]


def test_several_targets_have_a_row_each_below_that_of_all(tmp_path):
    metrics = {
        f"learning/{x}_accuracy{t}": 0.5 for x in ("real", "generated") for t in ("", "_shape", "_size")
    }
    targets = {"shape": ("star",), "size": ("big",)}
    page = sections(tmp_path, LearningScores(metrics, targets=targets))[TITLE]
    assert page.index("all") < page.index("shape") < page.index("size")


def test_the_ratio_that_is_best_on_validation_images_is_marked():
    rows = augmentation_rows(AUGMENTATIONS)
    assert [row[1] for row in rows] == ["0", "1", "2"] and [row[-1] for row in rows] == ["", "", "chosen"]


def test_a_page_says_why_nothing_was_learned(tmp_path):
    found = sections(tmp_path, LearningScores({}, "No image has a known class."))
    assert list(found) == [TITLE] and "No image has a known class." in found[TITLE]
