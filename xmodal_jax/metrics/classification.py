"""Classification by embeddings: zero-shot with prompts, and linear probes."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.checks import check_dimensions
from xmodal_jax.core.similarity import l2_normalize
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


def linear_probe(
    train_embeddings,
    train_labels,
    test_embeddings,
    test_labels,
    *,
    inverse_l2: float = 1.0,
    max_iter: int = 1000,
) -> float:
    """Test accuracy of a logistic regression on frozen embeddings (Radford et al. 2021, appendix A.3).

    It is fitted by scikit-learn's L-BFGS, which warns (ConvergenceWarning) where ``max_iter`` is too small.

    Args:
      train_embeddings, test_embeddings: ``[N, d]``; features of very different scales should be standardised
        first.
      train_labels, test_labels: int ``[N]``.
      inverse_l2: scikit-learn's C, the inverse weight of the squared norm; choose it on a validation split.
      max_iter: L-BFGS steps.
    Raises:
      ImportError: without scikit-learn.
      ValueError: the shapes do not fit.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError("linear_probe needs scikit-learn: pip install scikit-learn") from error
    arrays = map(np.asarray, (train_embeddings, train_labels, test_embeddings, test_labels))
    train_embeddings, train_labels, test_embeddings, test_labels = arrays
    check_dimensions(
        "linear_probe",
        train_embeddings=(train_embeddings, "train dim"),
        train_labels=(train_labels, "train"),
        test_embeddings=(test_embeddings, "test dim"),
        test_labels=(test_labels, "test"),
    )
    probe = LogisticRegression(C=inverse_l2, max_iter=max_iter)
    return float(probe.fit(train_embeddings, train_labels).score(test_embeddings, test_labels))
