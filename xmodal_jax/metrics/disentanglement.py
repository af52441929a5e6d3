"""Whether each latent dimension captures one generative factor, and each factor is captured by one dimension.

Factors are known categories: any integers, whose order means nothing. The metrics judge the axes, so a rotation of the
latent space changes them. Factors that are correlated in the data cannot be told apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xmodal_jax.metrics.neighbours import validate_features


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness; 1 is perfect for all three."""

    disentanglement: float
    """Whether each dimension captures one factor, 0 to 1."""
    completeness: float
    """Whether each factor is captured by one dimension, 0 to 1."""
    informativeness: float
    """Accuracy of predicting the factors from all dimensions, 0 to 1; above 0 also without any information."""


def mutual_information_gap(latents, factors, *, bins: int = 20) -> float:
    r"""Mutual information gap, MIG, 0 to 1 (Chen et al. 2018, arXiv:1802.04942, eq. 6).

    .. math:: \frac{1}{F} \sum_f \frac{1}{H(v_f)}
              \Big( I(z_{j(f)}; v_f) - \max_{j \ne j(f)} I(z_j; v_f) \Big), \qquad
              j(f) = \arg\max_j I(z_j; v_f)

    For latent dimensions z_j and factors v_f; I is the mutual information and H the entropy. They are computed from
    histograms, with ``bins`` bins of equal width between the smallest and the largest value of a dimension (as in
    Locatello et al. 2019; the paper integrates the posterior instead). A far outlier widens the bins of its dimension.
    Histograms overestimate information by about (bins - 1)(values - 1) / 2N nats: use many more examples than cells.

    Args:
      latents: ``[N, D]`` with D at least 2, such as the means of the posteriors.
      factors: int ``[N, F]``, one column for each factor.
      bins: number of bins for each dimension: at least 2, and more than a factor has values.
    Raises:
      ValueError: if the shapes or types do not fit, a latent is not finite, a factor has one value only, or there are
        fewer than two bins or dimensions.
    """
    latents, factors = _columns(latents, factors)
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    gaps = []
    binned = [_bin(dimension, bins) for dimension in latents.T]
    for factor in factors:
        value_count = factor.max() + 1
        information = []
        for dimension in binned:
            # The joint distribution of bin and factor value, [bins, values].
            counts = np.bincount(dimension * value_count + factor, minlength=bins * value_count)
            joint = counts.reshape(bins, value_count) / len(factor)
            # I(z; v) = H(z) + H(v) - H(z, v)
            information.append(
                _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0)) - _entropy(joint.ravel())
            )
        second_largest, largest = np.sort(information)[-2:]
        gaps.append((largest - second_largest) / _entropy(np.bincount(factor) / len(factor)))
    return float(np.mean(gaps))


def dci(latents, factors, *, seed: int, rounds: int = 100, test_fraction: float = 0.25) -> DCI:
    r"""Disentanglement, completeness and informativeness (Eastwood and Williams 2018, section 2).

    Gradient-boosted trees (scikit-learn's, of depth 3) predict each factor from all latent dimensions. With
    :math:`R_{df}` the importance of dimension d for factor f (decrease of impurity; it sums to 1 over d),

    .. math:: D = \sum_d \rho_d \, \big(1 - H_F(R_{d \cdot} / \textstyle\sum_f R_{df})\big), \qquad
              \rho_d = \textstyle\sum_f R_{df} / F, \qquad
              C = \frac{1}{F} \sum_f \big(1 - H_D(R_{\cdot f})\big)

    where ``R_d.`` and ``R_.f`` are a row and a column of R, and the entropies :math:`H_F` and :math:`H_D` have the
    number of factors and of dimensions as the base of their logarithms. Informativeness is the trees' accuracy on
    examples held out, the mean over factors: the paper's prediction error for categories, as 1 - error. By chance it is
    the frequency of a factor's most frequent value. Trees and accuracy are those of Locatello et al. 2019
    (disentanglement_lib), which has 100 ``rounds``; other predictors give other values.

    Args:
      latents: ``[N, D]`` with D at least 2. The order of the dimensions does not matter.
      factors: int ``[N, F]`` with F at least 2, one column for each factor.
      seed: of the split into training and test examples, and of the trees.
      rounds: trees for each value of each factor (for a factor with two values, trees in all). Time grows as N x D x
        rounds x values: minutes for 10,000 examples, 10 dimensions and a hundred values in all.
      test_fraction: fraction of the examples held out, between 0 and 1.
    Raises:
      ValueError: if the shapes or types do not fit; a latent is not finite; there are fewer than two dimensions or
        factors; ``rounds`` is below 1; ``test_fraction`` is not between 0 and 1; or a factor has one value only among
        the training or the test examples.
    """
    from sklearn.ensemble import GradientBoostingClassifier  # here: it takes a second to import

    latents, factors = _columns(latents, factors)
    if len(factors) < 2:
        raise ValueError("disentanglement compares factors: two at least are needed, got 1")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    train, test = _split(factors, seed, test_fraction)
    # Trees take the first of equal splits: sorted dimensions make the result independent of the caller's order.
    latents = latents[:, np.lexsort(latents[::-1])]
    importance, accuracies = [], []
    for factor in factors:
        trees = GradientBoostingClassifier(n_estimators=rounds, random_state=seed).fit(
            latents[train], factor[train]
        )
        weights = trees.feature_importances_
        # Trees that never split found no information in any dimension.
        uniform = np.full(latents.shape[1], 1 / latents.shape[1])
        importance.append(weights if weights.sum() > 0 else uniform)
        accuracies.append(np.mean(trees.predict(latents[test]) == factor[test]))
    disentanglement, completeness = _dc(np.stack(importance, axis=1))  # importance [D, F]
    return DCI(disentanglement, completeness, float(np.mean(accuracies)))


def _dc(importance):
    """``(disentanglement, completeness)`` from the importances R ``[D, F]`` of dimensions for factors; see `dci`."""
    total = importance.sum(axis=1)  # of each dimension
    used = total > 0  # a dimension without importance has the weight 0, and no defined entropy
    # Entropies of rows and columns, relative to those of uniform distributions.
    row_entropies = [_entropy(row / row.sum()) / np.log(importance.shape[1]) for row in importance[used]]
    column_entropies = [_entropy(column) / np.log(importance.shape[0]) for column in importance.T]
    disentanglement = np.sum(total[used] * (1 - np.array(row_entropies))) / total.sum()
    completeness = np.mean(1 - np.array(column_entropies))
    return float(disentanglement), float(completeness)


def sap(latents, factors, *, seed: int, test_fraction: float = 0.25) -> float:
    r"""SAP, separated attribute predictability, 0 to 1 (Kumar et al. 2018, arXiv:1711.00848, section 3).

    .. math:: \frac{1}{F} \sum_f \big( S_{(1) f} - S_{(2) f} \big)

    Factor f is predicted from one latent dimension at a time. :math:`S_{(1) f}` and :math:`S_{(2) f}` are the
    accuracies with the best and the second best dimension, on examples held out. The classifier is a linear support
    vector machine with the regularisation and the class weights of Locatello et al. 2019 (disentanglement_lib):
    C = 0.01, balanced. A perfect dimension beside dimensions of noise has at most 1 minus the accuracy of noise, 0.5
    for a binary factor. A linear classifier misses values in the middle of a dimension, and with this regularisation
    the score depends on the scale of the latents.

    Args:
      latents: ``[N, D]`` with D at least 2. The order of the dimensions does not matter.
      factors: int ``[N, F]``, one column for each factor.
      seed: of the split into training and test examples.
      test_fraction: fraction of the examples held out, between 0 and 1.
    Raises:
      ValueError: if the shapes or types do not fit; a latent is not finite; there are fewer than two dimensions;
        ``test_fraction`` is not between 0 and 1; or a factor has one value only among the training or the test
        examples.
    """
    from sklearn.svm import LinearSVC  # here: it takes a second to import

    latents, factors = _columns(latents, factors)
    train, test = _split(factors, seed, test_fraction)
    gaps = []
    for factor in factors:
        accuracies = []
        for dimension in latents.T:
            # The primal problem has the same solution as the dual one, and its solver needs no random numbers.
            classifier = LinearSVC(C=0.01, class_weight="balanced", dual=False)
            predictions = classifier.fit(dimension[train, None], factor[train]).predict(dimension[test, None])
            accuracies.append(np.mean(predictions == factor[test]))
        second_best, best = np.sort(accuracies)[-2:]
        gaps.append(best - second_best)
    return float(np.mean(gaps))


def _columns(latents, factors):
    """``(latents, factors)``, checked: latents ``[N, D]`` in float64, factors a list of F columns ``[N]``.

    The values of each factor are numbered from 0 without gaps.
    """
    latents, factors = validate_features("latents", latents, np.float64), np.asarray(factors)
    if latents.shape[1] < 2:
        raise ValueError("two latent dimensions at least are needed, got 1")
    if factors.ndim != 2 or len(factors) != len(latents) or not factors.shape[1]:
        raise ValueError(f"factors must be [{len(latents)}, factors], got {list(factors.shape)}")
    if factors.dtype != bool and not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors must be integers, got {factors.dtype}: bin continuous ones first")
    factors = [np.unique(factor, return_inverse=True)[1] for factor in factors.T]
    for f, factor in enumerate(factors):
        if not factor.any():
            raise ValueError(f"factor {f} has one value only: there is nothing to tell, leave it out")
    return latents, factors


def _split(factors, seed, test_fraction):
    """``(train, test)``: indices of the examples of a random split; both parts have two values of each factor."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
    count = len(factors[0])
    held_out = round(count * test_fraction)
    order = np.random.default_rng(seed).permutation(count)
    train, test = order[held_out:], order[:held_out]
    for part in (train, test):
        for f, factor in enumerate(factors):
            if len(np.unique(factor[part])) < 2:
                raise ValueError(
                    f"factor {f} has fewer than two values among {len(part)} of {count} examples with "
                    f"test_fraction={test_fraction}: give more examples or another fraction"
                )
    return train, test


def _bin(values, bins):
    """The number of each value's bin, 0 to ``bins - 1``, where bins of equal width span the range of the values."""
    edges = np.linspace(values.min(), values.max(), bins + 1)
    return np.searchsorted(edges[1:-1], values, side="right")


def _entropy(p):
    """The entropy of probabilities, in nats."""
    p = p[p > 0]
    return -np.sum(p * np.log(p))
