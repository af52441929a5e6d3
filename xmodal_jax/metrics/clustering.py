"""Whether the clusters of a representation are the classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xmodal_jax.metrics.neighbours import validate_features


class ClusterAgreement(NamedTuple):
    """How clusters agree with classes; 1 is perfect for all four."""

    accuracy: float
    """Clustering accuracy, ACC: fraction of the examples whose cluster is assigned to their class, by the best
    assignment of clusters to classes that gives no class two clusters."""
    purity: float
    """Fraction of the examples that belong to the most frequent class of their cluster; it grows with the number of
    clusters."""
    adjusted_rand: float
    """Adjusted Rand index (Hubert and Arabie 1985): 0 on average by chance, may be negative."""
    normalized_mutual_information: float
    """Mutual information over the mean of both entropies, 0 to 1; not corrected for chance."""


def kmeans_clustering(latents, labels, *, clusters: int | None = None, seed: int) -> ClusterAgreement:
    """How the clusters that k-means finds in latents agree with classes.

    It is scikit-learn's k-means++ with ten starts. Purity grows with the number of clusters, so compare it only at
    equal ``clusters``. Accuracy needs about as many clusters as classes: the examples of a surplus cluster
    count as wrong. Latents are not scaled: standardise dimensions of very different scales first.

    Args:
      latents: ``[N, D]``.
      labels: int ``[N]``, from 0; leave examples out whose class is unknown.
      clusters: number of clusters, 1..N; by default the number of classes among the labels.
      seed: random seed of the ten initialisations.
    Raises:
      ValueError: if the shapes do not fit, a latent is not finite, a label is negative or no integer, or
        ``clusters`` is not in 1..N.

    Example::

        kmeans_clustering(latents, labels, seed=0).adjusted_rand
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans  # here: it takes a second to import
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    latents, labels = validate_features("latents", latents, np.float64), np.asarray(labels)
    if labels.shape != latents.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers [{len(latents)}], got {labels.dtype} {list(labels.shape)}")
    if labels.min() < 0:
        raise ValueError(f"{np.sum(labels < 0)} labels are negative (unknown): leave those examples out")
    classes, label = np.unique(
        labels, return_inverse=True
    )  # label [N]: the labels numbered from 0 without gaps
    clusters = len(classes) if clusters is None else clusters
    if not 1 <= clusters <= len(latents):
        raise ValueError(f"clusters must lie in 1..{len(latents)}, the number of examples, got {clusters}")
    cluster = KMeans(clusters, n_init=10, random_state=seed).fit_predict(latents)
    # The number of examples of each cluster and class, [clusters, classes].
    counts = np.bincount(cluster * len(classes) + label, minlength=clusters * len(classes))
    counts = counts.reshape(clusters, -1)
    return ClusterAgreement(
        accuracy=float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(latents)),
        purity=float(counts.max(axis=1).sum() / len(latents)),
        adjusted_rand=float(adjusted_rand_score(label, cluster)),
        normalized_mutual_information=float(normalized_mutual_info_score(label, cluster)),
    )
