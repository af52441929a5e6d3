"""Distances of distributions from their definitions, in float64."""

import math

import numpy as np


def kernel(name, x, y):
    d2 = float(np.sum((x - y) ** 2))
    if name == "rbf":
        return sum(math.exp(-d2 / (2 * s**2)) for s in (2, 5, 10, 20, 40, 80))
    if name == "rational_quadratic":
        return sum((1 + d2 / (2 * a)) ** -a for a in (0.2, 0.5, 1, 2, 5))
    if name == "rational_quadratic_star":
        return kernel("rational_quadratic", x, y) + float(x @ y)
    if name == "distance":
        return math.hypot(*x) + math.hypot(*y) - math.sqrt(d2)
    return (float(x @ y) / len(x) + 1) ** 3


def mmd(name, x, y, unbiased):
    x, y = np.float64(x), np.float64(y)

    def within(s):
        pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if i != j or not unbiased]
        return sum(kernel(name, s[i], s[j]) for i, j in pairs) / len(pairs)

    between = sum(kernel(name, a, b) for a in x for b in y) / (len(x) * len(y))
    return within(x) + within(y) - 2 * between


def coral(x, y):
    difference = np.cov(np.float64(x), rowvar=False) - np.cov(np.float64(y), rowvar=False)
    return np.sum(difference**2) / (4 * x.shape[1] ** 2)


def canonical_correlations(x, y):
    """Without a ridge: cosines of the principal angles between the column spaces of the centred views."""
    x, y = np.float64(x), np.float64(y)
    qx, _ = np.linalg.qr(x - x.mean(0))
    qy, _ = np.linalg.qr(y - y.mean(0))
    return np.linalg.svd(qx.T @ qy, compute_uv=False)


def ridge_cca(x, y, ridge):
    """Andrew et al. 2013, eq. 10, with symmetric inverse roots."""
    x, y = np.float64(x), np.float64(y)
    c = np.cov(np.hstack([x, y]), rowvar=False)
    d = x.shape[1]

    def inverse_root(m):
        w, v = np.linalg.eigh(m + ridge * np.eye(len(m)))
        return v @ np.diag(w**-0.5) @ v.T

    return np.linalg.norm(inverse_root(c[:d, :d]) @ c[:d, d:] @ inverse_root(c[d:, d:]), "nuc")


def pair_distance(x, y):
    """The squared distance of each pair."""
    return np.array([np.sum((a - b) ** 2) for a, b in zip(np.float64(x), np.float64(y), strict=True)])


def centroid_uniformity(x, y, scale):
    """Over unordered pairs of the normalised means of x_i and y_i."""
    centroids = [
        (a + b) / 2 / np.linalg.norm((a + b) / 2) for a, b in zip(np.float64(x), np.float64(y), strict=True)
    ]
    potentials = [
        math.exp(-scale * np.sum((centroids[i] - centroids[j]) ** 2))
        for i in range(len(centroids))
        for j in range(i)
    ]
    return math.log(sum(potentials) / len(potentials))
