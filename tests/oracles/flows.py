"""Known densities and autoregression by definition, in float64; nothing of xmodal_jax is imported."""

import numpy as np
import scipy.special
import scipy.stats


class Mixture:
    """Two Gaussians of full covariance in ``dim`` dimensions, of weights 0.3 and 0.7."""

    weights = (0.3, 0.7)

    def __init__(self, dim, seed=0):
        rng = np.random.default_rng(seed)
        roots = rng.normal(scale=0.4, size=(2, dim, dim))
        self.means = np.stack([np.full(dim, -2.0), np.full(dim, 2.0)])
        self.covariances = [root @ root.T + 0.2 * np.eye(dim) for root in roots]

    def log_prob(self, x):
        parts = zip(self.weights, self.means, self.covariances, strict=True)
        terms = [np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x) for w, m, c in parts]
        return scipy.special.logsumexp(terms, axis=0)

    def sample(self, count, seed):
        rng = np.random.default_rng(seed)
        parts = zip(self.means, self.covariances, strict=True)
        both = np.stack([rng.multivariate_normal(m, c, count) for m, c in parts])
        return both[(rng.random(count) < self.weights[1]).astype(int), np.arange(count)]

    def moments(self):
        mean = np.einsum("k,kd->d", self.weights, self.means)
        spread = self.means - mean
        within = np.einsum("k,kij->ij", self.weights, np.stack(self.covariances))
        return mean, within + np.einsum("k,ki,kj->ij", self.weights, spread, spread)


def gaussian_log_prob(train, test):
    """Of one Gaussian with the moments of ``train``."""
    return scipy.stats.multivariate_normal(train.mean(0), np.cov(train, rowvar=False)).logpdf(test)


def autoregression(shift_and_scale, noise, order):
    """``x_i = u_i exp(a_i) + m_i`` of one example, one dimension after another.

    ``shift_and_scale(x)`` is asked with zeros in place of what is not yet known.
    """
    x = np.zeros_like(noise)
    for i in order:
        shift, log_scale = shift_and_scale(x)
        x[i] = noise[i] * np.exp(log_scale[i]) + shift[i]
    return x
