"""Classification by embeddings: zero-shot with prompts, linear probes and nearest neighbours; and its calibration."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.checks import check_dimensions
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.metrics.neighbours import nearest_neighbours
from xmodal_jax.metrics.retrieval import ranks


def class_embeddings(prompts, mask=None):
    """One embedding per class: the normalised mean of its prompts' embeddings ("a photo of a dog", ...).

    Radford et al. 2021, section 3.1.4.

    Args:
      prompts: ``[classes, prompts, d]``.
      mask: bool ``[classes, prompts]``, False where a class has fewer prompts.
    Returns:
      ``[classes, d]``, unit vectors.
    """
    prompts, mask = l2_normalize(jnp.asarray(prompts)), None if mask is None else jnp.asarray(mask)
    names = dict(prompts=(prompts, "classes prompts dim"), mask=(mask, "classes prompts"))
    check_dimensions("class_embeddings", **names)
    # The sum over prompts serves as the mean: the normalisation removes the factor.
    weights = jnp.ones(prompts.shape[:2], prompts.dtype) if mask is None else mask.astype(prompts.dtype)
    return l2_normalize(jnp.einsum("cpd,cp->cd", prompts, weights))


def zero_shot(embeddings, classes, labels, *, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Accuracy of zero-shot classification, ``accuracy@k``: the label is among the k classes of highest cosine
    similarity.

    Ties count as errors, as in `metrics.retrieval.ranks`.

    Args:
      embeddings: ``[N, d]``, of the examples to classify.
      classes: ``[C, d]``, an embedding of each class, for example from `class_embeddings`.
      labels: int ``[N]``, the true classes, in 0..C-1.
      ks: the values of k; those above C are left out.
    Raises:
      ValueError: there is not one label in 0..C-1 for each example.
    """
    # Retrieval of the classes by the examples: the rank of the true class, from 1.
    rank = ranks(embeddings, classes, targets=np.asarray(labels))
    return {f"accuracy@{k}": float(np.mean(rank <= k)) for k in ks if k <= len(classes)}


def predict_classes(embeddings, classes) -> np.ndarray:
    """The class of highest cosine similarity, int ``[N]``, for ``embeddings [N, d]`` and ``classes [C, d]``."""
    embeddings, classes = jnp.asarray(embeddings), jnp.asarray(classes)
    names = dict(embeddings=(embeddings, "examples dim"), classes=(classes, "classes dim"))
    check_dimensions("predict_classes", **names)
    similarity = jnp.matmul(l2_normalize(embeddings), l2_normalize(classes).T, precision="highest")
    return np.asarray(similarity.argmax(axis=1))


def confusion_matrix(labels, predictions, classes: int) -> np.ndarray:
    """Counts ``[classes, classes]`` with the label as row and the prediction as column.

    Raises:
      ValueError: a label or prediction is not in 0..classes-1, or there is not one prediction for each label.

    Example::

        confusion_matrix([0, 1, 1], [0, 0, 1], classes=2)  # [[1, 0], [1, 1]]
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    check_dimensions("confusion_matrix", labels=(labels, "examples"), predictions=(predictions, "examples"))
    for name, x in (("labels", labels), ("predictions", predictions)):
        if x.size and (x.min() < 0 or x.max() >= classes):
            raise ValueError(f"{name} must lie in 0..{classes - 1}, found {x.min()}..{x.max()}")
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def expected_calibration_error(probabilities, labels, *, bins: int = 15) -> float:
    """How far confidence is from accuracy, in [0, 1] (Guo et al. 2017, equation 3).

    The confidence of an example is the probability of its most probable class. Examples are put into ``bins`` intervals
    ``(k / bins, (k + 1) / bins]`` of equal width by their confidence; the error is the mean over examples of the
    distance between the accuracy and the mean confidence of their bin.

    Args:
      probabilities: ``[N, C]``, whose rows sum to 1.
      labels: int ``[N]``, in 0..C-1.
      bins: number of intervals.

    Raises:
      ValueError: the shapes do not fit, or there are no examples.

    Example::

        expected_calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1])  # 0.3: half are right, with confidence 0.8
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    names = dict(probabilities=(probabilities, "examples classes"), labels=(labels, "examples"))
    check_dimensions("expected_calibration_error", **names)
    if not len(labels) or bins < 1:
        raise ValueError(f"examples and bins are needed, got {len(labels)} examples and {bins} bins")
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    bin_of_example = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    # The sum over bins of |number correct - sum of confidences| is the sum over examples of |accuracy - confidence|.
    gaps = np.bincount(bin_of_example, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def classify_by_neighbours(train_embeddings, train_labels, test_embeddings, *, k: int = 5) -> np.ndarray:
    """The most frequent class among the k training examples of highest cosine similarity, int ``[N]``; of several the
    smallest one.

    Args:
      train_embeddings: ``[M, d]``.
      train_labels: int ``[M]``, at least 0.
      test_embeddings: ``[N, d]``.
      k: number of neighbours.

    Raises:
      ValueError: the shapes do not fit, or there are fewer than k training examples.
    """
    train_labels = np.asarray(train_labels)
    unit = [np.asarray(l2_normalize(jnp.asarray(x))) for x in (test_embeddings, train_embeddings)]
    # Of unit vectors the nearest by Euclidean distance are those of highest cosine similarity.
    neighbours = nearest_neighbours(*unit, k=k).indices  # [N, k]
    if len(train_labels) != len(unit[1]):
        raise ValueError(f"there are {len(unit[1])} training examples and {len(train_labels)} labels")
    votes = np.stack([np.bincount(row, minlength=train_labels.max() + 1) for row in train_labels[neighbours]])
    return votes.argmax(axis=1)


def linear_probe(
    train_embeddings,
    train_labels,
    test_embeddings,
    test_labels,
    *,
    inverse_l2: float = 1.0,
    max_iter: int = 1000,
) -> float:
    """Test accuracy of a logistic regression on frozen embeddings (Radford et al. 2021, appendix A.3): the fraction of
    `classify_by_probe`'s classes that are right.

    Args:
      train_embeddings, train_labels, test_embeddings: see `classify_by_probe`, which also raises the errors.
      test_labels: int ``[N]``.
      inverse_l2, max_iter: see `classify_by_probe`.
    """
    test_embeddings, test_labels = np.asarray(test_embeddings), np.asarray(test_labels)
    names = dict(test_embeddings=(test_embeddings, "test dim"), test_labels=(test_labels, "test"))
    check_dimensions("linear_probe", **names)
    predictions = classify_by_probe(
        train_embeddings, train_labels, test_embeddings, inverse_l2=inverse_l2, max_iter=max_iter
    )
    return float(np.mean(predictions == test_labels))


def classify_by_probe(
    train_embeddings,
    train_labels,
    test_embeddings,
    *,
    inverse_l2: float = 1.0,
    max_iter: int = 1000,
) -> np.ndarray:
    """The classes of ``test_embeddings`` by a logistic regression on frozen embeddings, int ``[N]``.

    It is fitted by scikit-learn's L-BFGS, which warns (ConvergenceWarning) where ``max_iter`` is too small.

    Args:
      train_embeddings, test_embeddings: ``[N, d]``; features of very different scales should be standardised
        first.
      train_labels: int ``[N]``.
      inverse_l2: scikit-learn's C, the inverse weight of the squared norm; choose it on a validation split.
      max_iter: L-BFGS steps.
    Raises:
      ImportError: without scikit-learn.
      ValueError: the shapes do not fit.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError("a linear probe needs scikit-learn: pip install scikit-learn") from error
    train_embeddings, train_labels, test_embeddings = map(
        np.asarray, (train_embeddings, train_labels, test_embeddings)
    )
    check_dimensions(
        "classify_by_probe",
        train_embeddings=(train_embeddings, "train dim"),
        train_labels=(train_labels, "train"),
        test_embeddings=(test_embeddings, "test dim"),
    )
    probe = LogisticRegression(C=inverse_l2, max_iter=max_iter)
    return probe.fit(train_embeddings, train_labels).predict(test_embeddings)
