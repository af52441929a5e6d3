"""Objectives of autoencoders in NumPy, example by example, in float64."""

import numpy as np


def normal_log_prob(x, mean, scale):
    return -0.5 * ((x - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def normal_kl(mean, scale, prior_mean=0.0, prior_scale=1.0):
    """Of each element."""
    ratio = scale**2 / prior_scale**2
    return 0.5 * (ratio + (mean - prior_mean) ** 2 / prior_scale**2 - 1 - np.log(ratio))


def free_kl(divergences, least, present):
    """Of rows [B, D] the term of each that is present."""
    mean = divergences[present].mean(axis=0)
    return np.array(
        [sum(k if m > least else least for k, m in zip(row, mean, strict=True)) for row in divergences]
    )


def linear_log_likelihood(z, x, w, b, scale):
    """log N(x; w z + b, scale^2) of one code and example."""
    return normal_log_prob(x, w @ z + b, scale).sum()


def linear_evidence(x, w, b, scale):
    """log p(x) of z ~ N(0, 1), x ~ N(w z + b, scale^2)."""
    cov = w @ w.T + scale**2 * np.eye(len(b))
    return -0.5 * ((x - b) @ np.linalg.solve(cov, x - b) + np.linalg.slogdet(2 * np.pi * cov)[1])


def linear_posterior(x, w, b, scale):
    """Mean and covariance of p(z | x)."""
    cov = np.linalg.inv(np.eye(w.shape[1]) + w.T @ w / scale**2)
    return cov @ w.T @ (x - b) / scale**2, cov


def importance_bound(log_weights):
    """log of the mean weight, of a list."""
    top = max(log_weights)
    return top + np.log(np.mean([np.exp(w - top) for w in log_weights]))


def imq(x, y, scales=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)):
    c, square = 2 * len(x), ((x - y) ** 2).sum()
    return sum(c * s / (c * s + square) for s in scales)


def rbf(x, y):
    d, square = len(x), ((x - y) ** 2).sum()
    return sum(np.exp(-square / (2 * d * s**2)) for s in (0.25, 0.5, 1.0, 2.0))


def rq(x, y):
    square = ((x - y) ** 2).sum() / len(x)
    return sum((1 + square / (2 * a)) ** -a for a in (0.2, 0.5, 1.0, 2.0, 5.0))


def distance(x, y):
    norm = np.linalg.norm
    return norm(x) + norm(y) - norm(x - y)


def mmd(x, y, kernel):
    """Unbiased, pair by pair."""
    within = lambda a: np.mean([kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j])
    return within(x) + within(y) - 2 * np.mean([kernel(p, q) for p in x for q in y])


def softplus(x):
    return np.log1p(np.exp(x))


def critic(params, codes):
    """Logits of layers ``hidden_k`` with ReLU and ``out``."""
    x = np.float64(codes)
    for name in sorted(params):
        x = x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])
        x = np.maximum(x, 0) if name.startswith("hidden") else x
    return x[:, 0]


def bernoulli_nats(x, mean):
    """-log p(x) of each example, from means strictly between 0 and 1."""
    terms = x * np.log(mean) + (1 - x) * np.log1p(-mean)
    return -terms.reshape(len(x), -1).sum(axis=1)
