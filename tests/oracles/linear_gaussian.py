"""Linear-Gaussian models of several modalities, exactly, in float64.

``x_m ~ N(w_m z + v_m u_m + b_m, s^2)`` with ``z ~ N(mean, 1)`` shared and ``u_m ~ N(0, p^2)`` of each modality alone.
"""

from typing import NamedTuple

import numpy as np


class Modality(NamedTuple):
    w: np.ndarray
    """``[d, D]``."""
    b: np.ndarray
    """``[d]``."""
    scale: float
    v: np.ndarray | None = None
    """``[d, P]``."""
    private: float = 1.0
    """Standard deviation of ``u_m``."""


def log_normal(x, mean, cov):
    """log N(x; mean, cov) of one vector."""
    gap = x - mean
    return -0.5 * (gap @ np.linalg.solve(cov, gap) + np.linalg.slogdet(2 * np.pi * cov)[1])


def noise_cov(m):
    """Of x_m given z."""
    own = m.scale**2 * np.eye(len(m.b))
    return own if m.v is None else own + m.private**2 * m.v @ m.v.T


def stack(modalities):
    """One modality for all: their noise is independent given z."""
    w, b = np.concatenate([m.w for m in modalities]), np.concatenate([m.b for m in modalities])
    cov, start = np.zeros((len(b), len(b))), 0
    for m in modalities:
        part = slice(start, start := start + len(m.b))
        cov[part, part] = noise_cov(m)
    return w, b, cov


def evidence(xs, modalities, mean=None):
    """log p(x_1, ..., x_n) of lists of data and their modalities."""
    w, b, cov = stack(modalities)
    centre = b if mean is None else b + w @ mean
    return log_normal(np.concatenate(xs), centre, cov + w @ w.T)


def posterior(xs, modalities):
    """Mean and covariance of p(z | x_1, ..., x_n)."""
    w, b, noise = stack(modalities)
    cov = np.linalg.inv(np.eye(w.shape[1]) + w.T @ np.linalg.solve(noise, w))
    return cov @ w.T @ np.linalg.solve(noise, np.concatenate(xs) - b), cov


def mixture_evidence(xs, modalities, means, weights):
    """The same where z comes from a mixture of N(mean_c, 1)."""
    terms = [np.log(p) + evidence(xs, modalities, mean) for p, mean in zip(weights, means, strict=True)]
    return np.logaddexp.reduce(terms)


def product(means, scales, prior=0.0):
    """Mean and standard deviation of the normalised product of normals ``[M, D]`` and N(0, 1) ``prior`` times."""
    precision = prior + sum(s**-2.0 for s in scales)
    return sum(m * s**-2.0 for m, s in zip(means, scales, strict=True)) / precision, precision**-0.5
