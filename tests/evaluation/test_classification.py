"""Scores of classification by several modalities, on answers that are known beforehand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.tasks import read_target_classes
from xmodal_jax.evaluation.classification import (
    Classifier,
    LabelledSplit,
    accuracies,
    evaluate_splits,
    gains_of_modalities,
    subsets,
)
from xmodal_jax.models.fusion import ClassifierOutput
from xmodal_jax.report import classification as panels
from xmodal_jax.report import classification_figures
from xmodal_jax.report.figures import to_png
from xmodal_jax.report.page import Report
from xmodal_jax.types import Method

NAMES = {"hour": ("one", "two", "three"), "side": ("left", "right")}


def source(n=23, seed=0):
    """The hour is in the picture, the side in the sound; every fifth example has no sound."""
    rng = np.random.default_rng(seed)
    hour, side = rng.integers(0, 3, n).astype(np.int32), rng.integers(0, 2, n).astype(np.int32)
    image = np.zeros((n, 4, 4, 3), np.uint8)
    image[np.arange(n), :, :, hour] = 100
    audio = np.repeat((1 - 2 * side)[:, None] * 1000, 50, axis=1).astype(np.int16)
    heard = np.arange(n) % 5 != 0
    arrays = {
        "image": image,
        "audio": audio,
        "audio_mask": np.ones((n, 50), bool),
        "hour": hour,
        "side": side,
    }
    return ArraySource({**arrays, "kind": (np.arange(n) % 2).astype(np.int32), "present": {"audio": heard}})


def predict(params, batch):
    """Right where the modality that tells is there; else it says 0."""
    there, n = batch["present"], len(batch["index"])
    hour, side = jnp.zeros((n, 3)), jnp.zeros((n, 2))
    if "image" in batch:
        hour = jax.nn.one_hot(batch["image"].mean(axis=(1, 2)).argmax(axis=1), 3) * there["image"][:, None]
    if "audio" in batch:
        side = jax.nn.one_hot((batch["audio"][:, 0] < 0).astype(jnp.int32), 2) * there["audio"][:, None]
    return ClassifierOutput({"hour": hour, "side": side}, hour)


METHOD = Method(None, None, predict)


def test_each_choice_of_modalities_is_scored_by_what_is_left():
    data = source()
    exam = LabelledSplit(data, NAMES, ("kind", ("even", "odd", "never")))
    hour, side, heard = data.arrays["hour"], data.arrays["side"], data.arrays["present"]["audio"]
    classify = Classifier(METHOD, ("image", "audio"), batch_size=7)
    metrics, answers = evaluate_splits(classify, [None], {"test": exam}, {"audio": (METHOD, [None])})
    said = np.where(heard, side, 0)
    np.testing.assert_array_equal(answers["side"], said)
    np.testing.assert_array_equal(answers["hour"], hour)
    mean = lambda x: float(np.mean(x))
    assert metrics["test/accuracy"] == mean(said == side)
    assert metrics["test/hour_accuracy"] == 1.0
    assert metrics["test/odd_accuracy"] == mean((said == side)[1::2])
    assert "test/never_accuracy" not in metrics
    assert metrics["given_image/side_accuracy"] == mean(side == 0)
    assert metrics["given_audio/accuracy"] == mean((hour == 0) & (said == side))
    assert metrics["trained_on_audio/hour_accuracy"] == metrics["given_audio/hour_accuracy"]
    assert classify.modalities == ("image", "audio") and subsets(("image", "audio"))[0] == ("image", "audio")


def test_what_a_modality_adds_is_measured_where_it_is_there():
    """In nats, by hand: of the examples that have both, what the sound adds to the picture."""
    data = source()
    exam = LabelledSplit(data, NAMES)
    metrics, _ = evaluate_splits(Classifier(METHOD, ("image", "audio")), [None], {"test": exam}, {})
    log_p = lambda right, classes: (
        right - np.log(np.e + classes - 1)
    )  # a logit of 1 for one class, 0 for the others
    side, heard = data.arrays["side"], data.arrays["present"]["audio"]
    # Of the hour nothing changes. Without the sound all logits are 0.
    assert metrics["adds_audio_to_image/log_likelihood"] == pytest.approx(log_p(1, 2) + np.log(2), rel=1e-5)
    entropy = lambda p: -(p * np.log(p)).sum()
    sure = np.array([np.e, 1]) / (np.e + 1)
    assert metrics["adds_audio_to_image/entropy_reduction"] == pytest.approx(
        np.log(2) - entropy(sure), rel=1e-5
    )
    # The hour is in the picture.
    assert metrics["adds_image_to_audio/log_likelihood"] == pytest.approx(log_p(1, 3) + np.log(3), rel=1e-5)
    assert not any(name.endswith("_to_/log_likelihood") for name in metrics)
    assert 0 < heard.sum() < len(side)


def test_gains_count_known_classes_and_present_modalities_and_three_modalities_have_nine():
    rng = np.random.default_rng(0)
    names, labels = ("a", "b", "c"), np.array([0, 1, -1, 2, 1])
    logits = {observed: {"t": rng.normal(size=(5, 3))} for observed in subsets(names)}
    here = {"b": np.array([True, False, True, True, True])}
    gains = gains_of_modalities(logits, {"t": labels}, here)
    assert len(gains) == 2 * 9
    log_p = {k: np.log(np.exp(v["t"]) / np.exp(v["t"]).sum(1, keepdims=True)) for k, v in logits.items()}
    rows = [0, 3, 4]  # the second has no b, the third no label
    difference = (log_p["a", "b"] - log_p["a",])[rows, labels[rows]]
    assert gains["adds_b_to_a/log_likelihood"] == pytest.approx(difference.mean())
    rows = [0, 1, 3, 4]
    assert gains["adds_c_to_a/log_likelihood"] == pytest.approx(
        (log_p["a", "c"] - log_p["a",])[rows, labels[rows]].mean()
    )
    nowhere = gains_of_modalities(logits, {"t": labels}, {"b": np.zeros(5, bool)})
    assert {name.split("/")[0] for name in nowhere} == {"adds_a_to_c", "adds_c_to_a"}


def test_what_a_modality_adds_is_shown_as_a_matrix_and_not_in_the_table():
    metrics = {"test/accuracy": [0.5, 0.6]} | {
        f"adds_{m}_to_{others}/{what}": [0.25, 0.75]
        for m, others in (("audio", "image"), ("image", "audio"), ("text", "audio_image"))
        for what in ("log_likelihood", "entropy_reduction")
    }
    report = Report("t")
    panels.add_scores(report, metrics, majority_accuracy=0.1)
    html = report.html()
    assert html.count("What each modality adds") and "adds_audio_to_image" not in html
    assert "overconfident" in html


def test_several_seeds_give_a_value_each():
    exam = LabelledSplit(source(), NAMES)
    metrics, _ = evaluate_splits(Classifier(METHOD, ("image", "audio")), [None, None], {"test": exam}, {})
    assert len(metrics["test/accuracy"]) == 2


def test_unknown_classes_do_not_count():
    labels = {"a": np.array([0, 1, -1, 1]), "b": np.array([2, -1, 2, 2])}
    predicted = {"a": np.array([0, 1, 0, 0]), "b": np.array([2, 0, 2, 2])}
    scores = accuracies(predicted, labels, "x/")
    assert scores == {"x/accuracy": 0.5, "x/a_accuracy": 2 / 3, "x/b_accuracy": 1.0}
    assert np.isnan(accuracies({"a": np.array([0])}, {"a": np.array([-1])}, "x/")["x/accuracy"])


def test_guessing_is_the_most_frequent_pair_of_classes():
    arrays = {"hour": np.array([0, 0, 0, 1, 1, 2]), "side": np.array([0, 1, 0, 1, 1, -1])}
    data = ArraySource({**arrays, "image": np.zeros((6, 2, 2, 3), np.uint8)})
    assert LabelledSplit(data, NAMES).majority_accuracy == 2 / 5


def test_what_can_be_predicted():
    images = np.zeros((3, 2, 2, 3), np.uint8)
    labelled = {"image": images, "label": np.array([1, -1, 4], np.int32)}
    assert read_target_classes(ArraySource(labelled)) == {"label": ("0", "1", "2", "3", "4")}
    assert read_target_classes(ArraySource(labelled, tuple("abcde"))) == {"label": tuple("abcde")}
    with pytest.raises(ValueError, match="has no labels"):
        read_target_classes(ArraySource({"image": images}))


def test_the_image_is_bright_where_the_weight_is():
    picture = np.full((8, 8, 3), 200, np.uint8)
    weights = np.zeros((2, 2))
    weights[0, 1] = 0.5
    shown = classification_figures.darken(picture, weights)
    np.testing.assert_allclose(shown[:4, 4:], 200 / 255)
    np.testing.assert_allclose(shown[4:], 0.15 * 200 / 255)
    np.testing.assert_allclose(shown[:4, :4], 0.15 * 200 / 255)


def test_figures_are_drawn_for_every_modality():
    rng = np.random.default_rng(0)
    panels = {
        "image": (rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), rng.random((2, 2))),
        "text": (["what", "is", "$x$"], rng.random(3)),
        "audio": (rng.random((30, 5)), rng.random(4)),
        "video": (rng.integers(0, 256, (6, 8, 8, 1)).astype(np.uint8), rng.random((3, 2, 2))),
    }
    fig = classification_figures.attention(
        [
            classification_figures.AttentionExample("a $title", panels),
            classification_figures.AttentionExample("b", {}),
        ]
    )
    assert len(fig.axes) == 8 and [len(ax.images) for ax in fig.axes[:4]] == [1, 1, 1, 1]
    assert [t.get_text() for t in fig.axes[1].texts] == ["what", "is", "$x$"]
    bars = classification_figures.accuracy_bars({"all": [0.5, 0.7], "image alone": 0.25}, chance=0.2)
    widths = [patch.get_width() for patch in bars.axes[0].patches]
    np.testing.assert_allclose(widths, [0.6, 0.25])
    for figure in (fig, bars, classification_figures.attention([])):
        assert to_png(figure, dpi=40).startswith(b"\x89PNG") and to_png(figure, dark=True, dpi=40)
    assert json.dumps(subsets(("a", "b", "c"))).count("[") == 8
