"""Whether each code tells of one factor and each factor is told by one code.

Factors are known categories: any integers, whose order means nothing. A rotation of the codes changes the
values: it is the axes that are judged. Factors that go together in the data cannot be told apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xmodal_jax.metrics.neighbours import validate_features


class DCI(NamedTuple):
    """1 is perfect for all three."""

    disentanglement: float  # each code tells of one factor, 0 to 1
    completeness: float  # each factor is told by one code, 0 to 1
    informativeness: float  # factors can be told from all codes; 0 is as good as without, below is worse


def mutual_information_gap(codes, factors, *, bins: int = 20) -> float:
    r"""MIG, 0 to 1 (Chen et al. 2018, arXiv:1802.04942, eq. 6).

    .. math:: \frac{1}{F} \sum_f \frac{1}{H(v_f)}
              \Big( I(z_{j(f)}; v_f) - \max_{j \ne j(f)} I(z_j; v_f) \Big), \qquad
              j(f) = \arg\max_j I(z_j; v_f)

    with the information of histograms: each code in ``bins`` bins of equal width between its smallest and
    largest value (as Locatello et al. 2019; the paper integrates the posterior instead). A far outlier widens
    the bins of its code. Histograms overestimate information by about (bins - 1)(values - 1) / 2N nats: use
    many more examples than cells.

    Args:
      codes: ``[N, D]``, two codes at least; such as the means of the posteriors.
      factors: int ``[N, F]``.
      bins: for each code, at least 2, and more than a factor has values.
    Raises:
      ValueError: if the shapes or types do not fit, a code is not finite, a factor has one value only, or
        there are fewer than two bins or codes.
    """
    codes, factors = _checked(codes, factors)
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    gaps = []
    binned = [_bin(code, bins) for code in codes.T]
    for factor in factors:
        size = factor.max() + 1
        information = []
        for code in binned:
            joint = np.bincount(code * size + factor, minlength=bins * size).reshape(bins, size) / len(factor)
            information.append(
                _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0)) - _entropy(joint.ravel())
            )
        second, first = np.sort(information)[-2:]
        gaps.append((first - second) / _entropy(np.bincount(factor) / len(factor)))
    return float(np.mean(gaps))


def dci(codes, factors, *, seed: int, rounds: int = 100, test_share: float = 0.25) -> DCI:
    r"""Disentanglement, completeness and informativeness (Eastwood and Williams 2018, section 2).

    Gradient-boosted trees (scikit-learn's, of depth 3) tell each factor from all codes. With :math:`R_{df}`
    the importance of code d for factor f (decrease of impurity, sums over d to 1),

    .. math:: D = \sum_d \rho_d \, \big(1 - H_F(R_{d \cdot} / \textstyle\sum_f R_{df})\big), \qquad
              \rho_d = \textstyle\sum_f R_{df} / F, \qquad
              C = \frac{1}{F} \sum_f \big(1 - H_D(R_{\cdot f})\big)

    where the entropy H has the number of factors or of codes as the base of its logarithm. The trees are
    those of Locatello et al. 2019; other learners give other values. Informativeness is
    ``1 - error / error of always answering the most frequent value``, a mean over factors on examples held
    out, so that factors of few and of many values compare; others report accuracy or error alone.

    Args:
      codes: ``[N, D]``, two at least. Their order does not matter.
      factors: int ``[N, F]``, two at least.
      seed: of the split into training and test examples.
      rounds: trees for each value of each factor (for a factor of two values, trees in all). Time grows
        as N x D x rounds x values: minutes for 10,000 examples, 10 codes and a hundred values in all.
      test_share: share of the examples held out, between 0 and 1.
    Raises:
      ValueError: as :func:`mutual_information_gap`, with fewer than two factors, or if a factor has one value
        only among the examples of either part.
    """
    from sklearn.ensemble import GradientBoostingClassifier  # here: it takes a second to import

    codes, factors = _checked(codes, factors)
    if len(factors) < 2:
        raise ValueError("disentanglement compares factors: two at least are needed, got 1")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    train, test = _split(factors, seed, test_share)
    # Trees take the first of equal splits: in an order of the codes' own, that of the caller does not matter.
    codes = codes[:, np.lexsort(codes[::-1])]
    importance, informativeness = [], []
    for factor in factors:
        trees = GradientBoostingClassifier(n_estimators=rounds, random_state=seed).fit(
            codes[train], factor[train]
        )
        weights = trees.feature_importances_
        # Trees that never split found nothing in any code.
        importance.append(weights if weights.sum() > 0 else np.full(codes.shape[1], 1 / codes.shape[1]))
        right = factor[test] == trees.predict(codes[test])
        usual = factor[test] == np.argmax(np.bincount(factor[train]))
        informativeness.append(1 - np.mean(~right) / np.mean(~usual))
    disentanglement, completeness = _dc(np.stack(importance, axis=1))
    return DCI(disentanglement, completeness, float(np.mean(informativeness)))


def _dc(importance):
    """Disentanglement and completeness of importances [D, F]."""
    of_code = importance.sum(axis=1)
    used = of_code > 0  # a code without importance has no weight, and no entropy either
    spread = [_entropy(row / row.sum()) / np.log(importance.shape[1]) for row in importance[used]]
    shared = [_entropy(column) / np.log(importance.shape[0]) for column in importance.T]
    disentanglement = np.sum(of_code[used] * (1 - np.array(spread))) / of_code.sum()
    return float(disentanglement), float(np.mean(1 - np.array(shared)))


def sap(codes, factors, *, seed: int, test_share: float = 0.25) -> float:
    r"""SAP, separated attribute predictability (Kumar et al. 2018, arXiv:1711.00848, section 3).

    .. math:: \frac{1}{F} \sum_f \frac{S_{(1) f} - S_{(2) f}}{1 - 1 / K_f}

    where :math:`S_{(1) f}` and :math:`S_{(2) f}` are the two best codes' balanced accuracies (mean over
    values) of factor f, told from one code alone by at most :math:`K_f - 1` thresholds for :math:`K_f`
    values, on examples held out. A decision tree with :math:`K_f` leaves, chosen by balanced Gini impurity,
    sets the thresholds; with a linear classifier in its place, values in the middle of a code would be lost.
    The paper does not divide by :math:`1 - 1/K_f`, so that a perfect code of a binary factor has 0.5 there
    and 1 here. The value is 0 to 1, up to what chance adds on few examples.

    Args:
      codes: ``[N, D]``, two at least. Their order does not matter.
      factors: int ``[N, F]``.
      seed: of the split into training and test examples.
      test_share: share of the examples held out, between 0 and 1.
    Raises:
      ValueError: as :func:`mutual_information_gap`, or if a factor has one value only among the examples of
        either part.
    """
    from sklearn.tree import DecisionTreeClassifier  # here: it takes a second to import

    codes, factors = _checked(codes, factors)
    train, test = _split(factors, seed, test_share)
    gaps = []
    for factor in factors:
        values = factor.max() + 1
        _, label, count = np.unique(factor[test], return_inverse=True, return_counts=True)
        scores = []
        for code in codes.T:
            tree = DecisionTreeClassifier(max_leaf_nodes=int(values), class_weight="balanced", random_state=0)
            answers = tree.fit(code[train, None], factor[train]).predict(code[test, None])
            scores.append(np.mean(np.bincount(label, weights=answers == factor[test]) / count))
        second, first = np.sort(scores)[-2:]
        gaps.append((first - second) / (1 - 1 / values))
    return float(np.mean(gaps))


def _checked(codes, factors):
    """Codes [N, D] in float64 and factors [F, N], their values numbered from 0."""
    codes, factors = validate_features("codes", codes, np.float64), np.asarray(factors)
    if codes.shape[1] < 2:
        raise ValueError("two codes at least are needed, got 1")
    if factors.ndim != 2 or len(factors) != len(codes) or not factors.shape[1]:
        raise ValueError(f"factors must be [{len(codes)}, factors], got {list(factors.shape)}")
    if factors.dtype != bool and not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors must be integers, got {factors.dtype}: bin continuous ones first")
    factors = [np.unique(factor, return_inverse=True)[1] for factor in factors.T]
    for f, factor in enumerate(factors):
        if not factor.any():
            raise ValueError(f"factor {f} has one value only: there is nothing to tell, leave it out")
    return codes, factors


def _split(factors, seed, test_share):
    """Places of training and test examples, drawn without replacement."""
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    count = len(factors[0])
    held_out = round(count * test_share)
    order = np.random.default_rng(seed).permutation(count)
    train, test = order[held_out:], order[:held_out]
    for part in (train, test):
        for f, factor in enumerate(factors):
            if len(np.unique(factor[part])) < 2:
                raise ValueError(
                    f"factor {f} has fewer than two values among {len(part)} of {count} examples with "
                    f"test_share={test_share}: give more examples or another share"
                )
    return train, test


def _bin(code, bins):
    """Which of ``bins`` bins of equal width each value lies in."""
    edges = np.linspace(code.min(), code.max(), bins + 1)
    return np.searchsorted(edges[1:-1], code, side="right")


def _entropy(p):
    """In nats."""
    p = p[p > 0]
    return -np.sum(p * np.log(p))
