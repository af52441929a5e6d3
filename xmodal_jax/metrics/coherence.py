"""Whether what is generated across modalities is of the class it should be, by the answers of classifiers.

The classifiers are the caller's, one for each modality. A value is bounded by their accuracy on real
examples, so report that beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float


def subsets(modalities: int, sizes: Iterable[int] | None = None) -> Bool[np.ndarray, "subsets modalities"]:
    """All non-empty subsets of the modalities, by size and then in lexicographic order of their members.

    Args:
      modalities: M, how many there are.
      sizes: the sizes wanted, in 1..M; by default all.
    Returns:
      bool ``[S, M]``, True for the members: three modalities give 0, 1, 2, 01, 02, 12, 012.
    Raises:
      ValueError: without modalities, or if a size is not in 1..M.
    """
    if modalities < 1:
        raise ValueError(f"at least one modality is needed, got {modalities}")
    sizes = range(1, modalities + 1) if sizes is None else sorted(set(sizes))
    for size in sizes:
        if not 1 <= size <= modalities:
            raise ValueError(f"sizes must lie in 1..{modalities}, got {size}")
    members = [chosen for size in sizes for chosen in combinations(range(modalities), size)]
    out = np.zeros((len(members), modalities), bool)
    for row, chosen in zip(out, members, strict=True):
        row[list(chosen)] = True
    return out


def cross_coherence(predictions, labels, given, present=None) -> dict[str, float]:
    """How often modalities that were generated from others have the class of their example.

    The macro accuracy (the mean over classes of the share that is right, so that frequent classes do not
    count more) of each pair of a subset and a target that is not in it, averaged over the pairs of each size
    of subset. After the cross-coherence of Shi et al. 2019 (MMVAE) and its values by subset of Sutter et al.
    2021 (MoPoE-VAE); both take the plain accuracy, which is the same where classes are equally frequent.

    Args:
      predictions: int ``[S, M, N]``, the class that modality m generated for example n from subset s is
        taken for.
      labels: int ``[N]``, classes; negative is unknown, and those examples are left out.
      given: bool ``[S, M]``, the members of each subset, at least one; see :func:`subsets`.
      present: bool ``[S, N]``, False where an example lacks a modality of the subset and is left out; by
        default all are there.
    Returns:
      For each number k of given modalities ``coherence@k`` (targets not among the given) and
      ``self_coherence@k`` (targets among the given: reconstructions), where there is anything to count;
      ``coherence``, the mean over k of ``coherence@k``. Chance is 1 / classes.
    Raises:
      ValueError: if the shapes or types do not fit, a subset is empty, a prediction that counts is negative,
        or there is nothing to count.
    """
    matrix = coherence_matrix(predictions, labels, present)
    given = np.asarray(given)
    if given.dtype != bool or given.shape != matrix.shape:
        raise ValueError(f"given must be bool {list(matrix.shape)}, got {given.dtype} {list(given.shape)}")
    size = given.sum(axis=1)
    if not size.all():
        raise ValueError(
            f"subset {int(np.argmin(size))} is empty: nothing was given that it should agree with"
        )
    counted = np.isfinite(matrix)
    if not counted.any():
        raise ValueError("nothing to count: every example is of unknown class or lacks what was given")
    out: dict[str, float] = {}
    for name, chosen in (("coherence", ~given), ("self_coherence", given)):
        for k in np.unique(size):
            cells = counted & chosen & (size == k)[:, None]
            if cells.any():
                out[f"{name}@{k}"] = float(matrix[cells].mean())
    across = [value for name, value in out.items() if name.startswith("coherence@")]
    if across:
        out["coherence"] = float(np.mean(across))
    return out


def coherence_matrix(predictions, labels, present=None) -> Float[np.ndarray, "subsets modalities"]:
    """The macro accuracy of every modality generated from every subset, ``[S, M]``, the given ones included.

    The mean is over the classes that occur among the examples that count for the subset; NaN where none does.
    For the generation across modalities alone, ``np.where(given, np.nan, matrix)``.

    Args and errors: as for :func:`cross_coherence`.
    """
    predictions, labels = _classes("predictions", predictions, 3), _classes("labels", labels, 1)
    count = predictions.shape[2]
    if labels.shape != (count,):
        raise ValueError(f"predictions are of {count} examples and labels of {len(labels)}")
    present = np.ones((len(predictions), count), bool) if present is None else np.asarray(present)
    if present.dtype != bool or present.shape != (len(predictions), count):
        raise ValueError(
            f"present must be bool {[len(predictions), count]}, got {present.dtype} {list(present.shape)}"
        )
    out = np.full(predictions.shape[:2], np.nan)
    for s, (answers, here) in enumerate(zip(predictions, present & (labels >= 0)[None, :], strict=True)):
        if not here.any():
            continue
        answers = answers[:, here]
        _no_negative(answers, f"subset {s}: ")
        _, label, size = np.unique(labels[here], return_inverse=True, return_counts=True)
        for m, right in enumerate(answers == labels[here][None, :]):
            out[s, m] = np.mean(np.bincount(label, weights=right) / size)
    return out


def joint_coherence(predictions) -> float:
    """Share of draws from the prior whose modalities are all taken for one class (Shi et al. 2019, MMVAE).

    A model that always draws the same class scores 1: look at the classes it draws, too.

    Args:
      predictions: int ``[M, N]``, the class of modality m of draw n; two modalities at least.
    Raises:
      ValueError: if they are not such, empty or negative.
    """
    predictions = _classes("predictions", predictions, 2)
    if len(predictions) < 2 or not predictions.size:
        raise ValueError(f"two modalities and one draw at least are needed, got {list(predictions.shape)}")
    _no_negative(predictions)
    return float(np.mean((predictions == predictions[:1]).all(axis=0)))


def _classes(name, x, ndim):
    x = np.asarray(x)
    if x.ndim != ndim or not np.issubdtype(x.dtype, np.integer):
        shape = {1: "[examples]", 2: "[modalities, draws]", 3: "[subsets, modalities, examples]"}[ndim]
        raise ValueError(f"{name} must be integers {shape}, got {x.dtype} {list(x.shape)}")
    return x


def _no_negative(predictions, where=""):
    if predictions.min(initial=0) < 0:
        m = int(np.argmax((predictions < 0).any(axis=1)))
        raise ValueError(
            f"{where}modality {m} has negative predictions: a classifier has to answer for every example"
        )
