import numpy as np
import pytest

from xmodal_jax.metrics.classification import (
    class_embeddings,
    classify_by_neighbours,
    confusion_matrix,
    expected_calibration_error,
    linear_probe,
    predict_classes,
    zero_shot,
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_prompt_ensemble_is_the_mean_direction():
    prompts = np.random.default_rng(0).normal(size=(5, 3, 7)) * np.arange(1, 4)[:, None]
    np.testing.assert_allclose(class_embeddings(np.float32(prompts)), unit(unit(prompts).mean(1)), rtol=1e-5)
    mask = np.arange(3)[None, :] < np.array([1, 2, 3, 2, 1])[:, None]
    got = class_embeddings(np.float32(prompts), mask)
    for c in range(5):
        np.testing.assert_allclose(got[c], unit(unit(prompts[c, mask[c]]).mean(0)), rtol=1e-5)


def test_zero_shot_accuracy_and_confusion():
    """On a circle of classes, 0.6 steps past the label's: the neighbour wins, the label is second."""
    angle = 2 * np.pi * np.arange(7) / 7
    on_circle = lambda a: np.float32(np.stack([np.cos(a), np.sin(a)], -1))
    labels = np.arange(7).repeat(2)
    shift = np.where(np.arange(14) % 2, 0.6, 0.2) * 2 * np.pi / 7
    embeddings = 3 * on_circle(angle[labels] + shift)
    got = zero_shot(embeddings, on_circle(angle), labels, ks=(1, 2, 5, 10))
    assert got == {"accuracy@1": 0.5, "accuracy@2": 1.0, "accuracy@5": 1.0}
    predictions = predict_classes(embeddings, on_circle(angle))
    np.testing.assert_array_equal(
        confusion_matrix(labels, predictions, 7), np.eye(7, dtype=int) + np.roll(np.eye(7, dtype=int), 1, 1)
    )


def test_confusion_matrix_refuses_unknown_labels():
    assert confusion_matrix([0, 0, 1], [0, 1, 1], 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match=r"labels must lie in 0..1, found -1..1"):
        confusion_matrix([-1, 1], [0, 1], 2)


def test_linear_probe_separates_what_is_separable():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    centers = 4 * np.eye(3, 5)
    x = centers[labels] + rng.normal(size=(90, 5))
    assert linear_probe(x[:60], labels[:60], x[60:], labels[60:]) > 0.9
    shuffled = rng.permutation(labels)
    assert linear_probe(x[:60], shuffled[:60], x[60:], shuffled[60:]) < 0.6


def test_calibration_is_the_mean_gap_over_bins():
    """By a loop over the bins of the definition (Guo et al. 2017, equation 3)."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(7) * 0.3, size=211)
    labels = rng.integers(0, 7, 211)
    total = 0.0
    for k in range(15):
        low, high = k / 15, (k + 1) / 15
        inside = [i for i, p in enumerate(probabilities) if low < p.max() <= high]
        if inside:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            total += len(inside) / 211 * abs(accuracy - np.mean([probabilities[i].max() for i in inside]))
    assert expected_calibration_error(probabilities, labels) == pytest.approx(total, abs=1e-12)
    sure = np.eye(7)[labels]
    assert expected_calibration_error(sure, labels) == 0
    assert expected_calibration_error(sure, (labels + 1) % 7) == 1
    with pytest.raises(ValueError, match="examples and bins are needed"):
        expected_calibration_error(np.zeros((0, 3)), np.zeros(0, int))


@pytest.mark.parametrize("k", [1, 5, 7])
def test_neighbours_vote_as_in_scikit_learn(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(1)
    train, labels, test = rng.normal(size=(101, 5)), rng.integers(0, 4, 101), rng.normal(size=(53, 5))
    peer = neighbors.KNeighborsClassifier(k, metric="cosine").fit(train, labels)
    np.testing.assert_array_equal(classify_by_neighbours(train, labels, test, k=k), peer.predict(test))
