"""Whether the clusters of a representation are the classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xmodal_jax.metrics.neighbours import validate_features


class Clustering(NamedTuple):
    """How clusters agree with classes; 1 is perfect for all three."""

    accuracy: float  # share of examples of their cluster's commonest class; grows with the clusters
    adjusted_rand: float  # 0 on average by chance, may be negative (Hubert and Arabie 1985)
    normalized_mutual_information: float  # I / mean(H, H), 0 to 1; not corrected for chance


def clustering_accuracy(codes, labels, *, clusters: int | None = None, seed: int) -> Clustering:
    """K-means on the codes, where each cluster votes for its most frequent class (the smallest of equals).

    K-means++ with ten starts, of scikit-learn. The vote uses the labels it is judged by (the accuracy is the
    clusters' purity), so compare only at equal ``clusters``. No scaling: standardise codes of very different
    scales first.

    Args:
      codes: ``[N, D]``.
      labels: int ``[N]``, from 0; leave examples out whose class is unknown.
      clusters: how many, 1..N; by default as many as there are classes among the labels.
      seed: of the starts.
    Raises:
      ValueError: if the shapes do not fit, a code is not finite, a label is negative or no integer, or
        ``clusters`` is not in 1..N.
    """
    from sklearn.cluster import KMeans  # here: it takes a second to import
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    codes, labels = validate_features("codes", codes, np.float64), np.asarray(labels)
    if labels.shape != codes.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers [{len(codes)}], got {labels.dtype} {list(labels.shape)}")
    if labels.min() < 0:
        raise ValueError(f"{np.sum(labels < 0)} labels are negative (unknown): leave those examples out")
    classes, label = np.unique(labels, return_inverse=True)
    clusters = len(classes) if clusters is None else clusters
    if not 1 <= clusters <= len(codes):
        raise ValueError(f"clusters must lie in 1..{len(codes)}, the number of examples, got {clusters}")
    cluster = KMeans(clusters, n_init=10, random_state=seed).fit_predict(codes)
    counts = np.bincount(cluster * len(classes) + label, minlength=clusters * len(classes))
    return Clustering(
        float(counts.reshape(clusters, -1).max(axis=1).sum() / len(codes)),
        float(adjusted_rand_score(label, cluster)),
        float(normalized_mutual_info_score(label, cluster)),
    )
