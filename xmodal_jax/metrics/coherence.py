"""Coherence: whether modalities that are generated from others show the right class, as classifiers see it.

The caller brings the classifiers, one for each modality. Their accuracy on real examples bounds coherence, so report it
as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float


def subsets(modalities: int, sizes: Iterable[int] | None = None) -> Bool[np.ndarray, "subsets modalities"]:
    """All non-empty subsets of the modalities, by size and then in lexicographic order of their members.

    Args:
      modalities: their number M.
      sizes: sizes of the subsets, in 1..M; by default all.
    Returns:
      bool ``[S, M]``, True for the members of each subset.
    Raises:
      ValueError: if there are no modalities, or a size is not in 1..M.

    Example::

        subsets(3)  # members 0, 1, 2, 01, 02, 12, 012
    """
    if modalities < 1:
        raise ValueError(f"at least one modality is needed, got {modalities}")
    sizes = range(1, modalities + 1) if sizes is None else sorted(set(sizes))
    for size in sizes:
        if not 1 <= size <= modalities:
            raise ValueError(f"sizes must lie in 1..{modalities}, got {size}")
    members = [subset for size in sizes for subset in combinations(range(modalities), size)]
    matrix = np.zeros((len(members), modalities), bool)
    for row, subset in zip(matrix, members, strict=True):
        row[list(subset)] = True
    return matrix


def cross_coherence(predictions, labels, observed, present=None) -> dict[str, float]:
    """How often modalities that are generated from others show the class of their example.

    For each subset of observed modalities and each target modality outside of it, this is the macro accuracy: the mean
    over classes of the accuracy within a class, so that frequent classes do not count more. The accuracies are averaged
    over all such pairs with subsets of the same size. After the cross-coherence of Shi et al. 2019 (MMVAE) and its
    values by subset of Sutter et al. 2021 (MoPoE-VAE); both take the plain accuracy, which is the same if classes are
    equally frequent.

    Args:
      predictions: int ``[S, M, N]``, the classifier's class of modality m generated for example n from subset s.
      labels: int ``[N]``, classes; examples with a negative label (unknown) are left out.
      observed: bool ``[S, M]``, the members of each subset, at least one; see :func:`subsets`.
      present: bool ``[S, N]``, False where an example lacks a modality of the subset, and is left out; by default all
        are present.
    Returns:
      For each number k of observed modalities ``coherence@k`` (targets outside of the subset) and
      ``self_coherence@k`` (targets within it: reconstructions), where there is anything to count; ``coherence``, the
      mean over k of ``coherence@k``. Chance is 1 / classes.
    Raises:
      ValueError: if the shapes or types do not fit, a subset is empty, a prediction that counts is negative, or there
        is nothing to count.

    Example::

        cross_coherence(predictions, labels, subsets(3, (1, 2)))["coherence@1"]
    """
    matrix = coherence_matrix(predictions, labels, present)
    observed = np.asarray(observed)
    if observed.dtype != bool or observed.shape != matrix.shape:
        raise ValueError(
            f"observed must be bool {list(matrix.shape)}, got {observed.dtype} {list(observed.shape)}"
        )
    size = observed.sum(axis=1)
    if not size.all():
        raise ValueError(f"subset {int(np.argmin(size))} is empty: there is nothing to be coherent with")
    counted = np.isfinite(matrix)
    if not counted.any():
        raise ValueError(
            "nothing to count: every example is of unknown class or lacks a modality of each subset"
        )
    metrics: dict[str, float] = {}
    # Targets outside of the subset are generated from other modalities, those within it reconstructed.
    for name, is_target in (("coherence", ~observed), ("self_coherence", observed)):
        for k in np.unique(size):
            entries = counted & is_target & (size == k)[:, None]  # [S, M]
            if entries.any():
                metrics[f"{name}@{k}"] = float(matrix[entries].mean())
    by_size = [value for name, value in metrics.items() if name.startswith("coherence@")]
    if by_size:
        metrics["coherence"] = float(np.mean(by_size))
    return metrics


def coherence_matrix(predictions, labels, present=None) -> Float[np.ndarray, "subsets modalities"]:
    """The macro accuracy of every modality generated from every subset of modalities, ``[S, M]``.

    The macro accuracy is the mean over classes of the accuracy within a class, over the examples of known class that
    have all modalities of the subset; it is NaN where there is no such example. Modalities within the subset have an
    entry too (self-coherence). For cross-coherence alone, replace these by NaN: ``np.where(subsets(M), np.nan,
    matrix)`` if the rows are all :func:`subsets`.

    Args:
      predictions: int ``[S, M, N]``, the classifier's class of modality m generated for example n from subset s.
      labels: int ``[N]``, classes; examples with a negative label (unknown) are left out.
      present: bool ``[S, N]``, False where an example lacks a modality of the subset, and is left out; by default all
        are present.
    Raises:
      ValueError: if the shapes or types do not fit, or a prediction that counts is negative.
    """
    predictions, labels = _classes("predictions", predictions, ndim=3), _classes("labels", labels, ndim=1)
    count = predictions.shape[2]
    if labels.shape != (count,):
        raise ValueError(f"predictions are of {count} examples and labels of {len(labels)}")
    present = np.ones((len(predictions), count), bool) if present is None else np.asarray(present)
    if present.dtype != bool or present.shape != (len(predictions), count):
        raise ValueError(
            f"present must be bool {[len(predictions), count]}, got {present.dtype} {list(present.shape)}"
        )
    matrix = np.full(predictions.shape[:2], np.nan)
    counted = present & (labels >= 0)[None, :]  # [S, N]
    for s in range(len(predictions)):
        if not counted[s].any():
            continue
        subset_labels = labels[counted[s]]
        subset_predictions = predictions[s][:, counted[s]]  # [M, counted examples]
        _check_not_negative(subset_predictions, f"subset {s}: ")
        _, label, class_size = np.unique(subset_labels, return_inverse=True, return_counts=True)
        for m, correct in enumerate(subset_predictions == subset_labels[None, :]):
            class_accuracy = np.bincount(label, weights=correct) / class_size
            matrix[s, m] = np.mean(class_accuracy)
    return matrix


def joint_coherence(predictions) -> float:
    """Fraction of samples from the prior whose generated modalities all show the same class (Shi et al. 2019, MMVAE).

    A model that generates one class only scores 1, so look at the distribution of classes as well.

    Args:
      predictions: int ``[M, N]``, the classifier's class of modality m in sample n; two modalities at least.
    Raises:
      ValueError: if the shape or type does not fit, or a prediction is negative.
    """
    predictions = _classes("predictions", predictions, ndim=2)
    if len(predictions) < 2 or not predictions.size:
        raise ValueError(f"two modalities and one draw at least are needed, got {list(predictions.shape)}")
    _check_not_negative(predictions)
    return float(np.mean((predictions == predictions[:1]).all(axis=0)))


def _classes(name, x, ndim):
    """Integer classes as an array, checked to have ``ndim`` axes; ``name`` is for the error's message."""
    x = np.asarray(x)
    if x.ndim != ndim or not np.issubdtype(x.dtype, np.integer):
        shape = {1: "[examples]", 2: "[modalities, draws]", 3: "[subsets, modalities, examples]"}[ndim]
        raise ValueError(f"{name} must be integers {shape}, got {x.dtype} {list(x.shape)}")
    return x


def _check_not_negative(predictions, where=""):
    """Raises ValueError where a prediction ``[M, N]`` is negative; the message begins with ``where``."""
    if predictions.min(initial=0) < 0:
        m = int(np.argmax((predictions < 0).any(axis=1)))
        raise ValueError(
            f"{where}modality {m} has negative predictions: a classifier must predict a class for every example"
        )
