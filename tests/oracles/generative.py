"""Metrics of generated samples from their definitions, in float64."""

import math

import numpy as np
import scipy.linalg
import scipy.special
import scipy.stats
from scipy.spatial.distance import cdist


def frechet(mu_a, sigma_a, mu_b, sigma_b):
    """With the root of the product itself, so for regular covariances only."""
    root = scipy.linalg.sqrtm(sigma_a @ sigma_b)
    return np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a + sigma_b - 2 * root.real)


def frechet_of_features(a, b):
    a, b = np.float64(a), np.float64(b)
    return frechet(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def inception(logits, splits):
    p = scipy.special.softmax(np.float64(logits), axis=1)
    edges = [i * len(p) // splits for i in range(splits + 1)]
    scores = []
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        part = p[first:last]
        scores.append(math.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part])))
    return np.mean(scores), np.std(scores)


def cubic_mmd(x, y):
    """Unbiased, pair by pair."""
    x, y = np.float64(x), np.float64(y)
    k = lambda u, v: (math.fsum(u * v) / len(u) + 1) ** 3
    n, m = len(x), len(y)
    within = lambda s: math.fsum(k(u, v) for i, u in enumerate(s) for j, v in enumerate(s) if i != j)
    between = math.fsum(k(u, v) for u in x for v in y)
    return within(x) / (n * (n - 1)) + within(y) / (m * (m - 1)) - 2 * between / (n * m)


def subsets(n, m, *, count, size, seed):
    """The indices that torch-fidelity draws."""
    rng = np.random.RandomState(seed)
    for _ in range(count):
        yield rng.permutation(n)[:size], rng.permutation(m)[:size]


def radii(x, k):
    distances = cdist(np.float64(x), np.float64(x))
    return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(distances)])


def precision_recall(real, fake, k):
    d, r, s = cdist(np.float64(real), np.float64(fake)), radii(real, k), radii(fake, k)
    precision = np.mean([any(d[i, j] <= r[i] for i in range(len(real))) for j in range(len(fake))])
    recall = np.mean([any(d[i, j] <= s[j] for j in range(len(fake))) for i in range(len(real))])
    return precision, recall


def density_coverage(real, fake, k):
    d, r = cdist(np.float64(real), np.float64(fake)), radii(real, k)
    inside = [[d[i, j] < r[i] for j in range(len(fake))] for i in range(len(real))]
    return np.sum(inside) / (k * len(fake)), np.mean([any(row) for row in inside])


def r_precision(images, texts, candidates, groups):
    """The expectation over the draws, by enumeration: a text each of other groups, none of them as similar."""
    unit = lambda x: np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True)
    cosine = unit(images) @ unit(texts).T
    chances = []
    for i, row in enumerate(cosine):
        # Of each other group, the fraction of its texts that are less similar.
        worse = [np.mean(row[groups == g] < row[i]) for g in np.unique(groups) if g != groups[i]]
        # The mean over subsets of their products: elementary symmetric polynomial over the number of subsets.
        symmetric = np.abs(np.poly(worse))[candidates - 1]
        chances.append(symmetric / math.comb(len(worse), candidates - 1))
    return np.mean(chances)
