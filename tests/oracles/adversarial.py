"""Adversarial objectives, penalties and word-region matching from their papers' equations, in float64."""

import math

import numpy as np

from tests.oracles.alignment import kernel


def _sigmoid(v):
    return 1 / (1 + math.exp(-v))


def _jsd_conjugate(t):
    """f* of the Jensen-Shannon divergence (f-GAN)."""
    return -math.log(2 - math.exp(t))


def _jsd_activation(v):
    return math.log(2) - math.log(1 + math.exp(-v))


def _jsd(r, f):
    """What the discriminator maximises: E_P T - E_Q f*(T)."""
    return _jsd_activation(r) - _jsd_conjugate(_jsd_activation(f))


PAIRS = {
    "minimax": (
        lambda r, f: -math.log(_sigmoid(r)) - math.log(1 - _sigmoid(f)),
        lambda f, r: math.log(1 - _sigmoid(f)),
    ),
    "non_saturating": (
        lambda r, f: -math.log(_sigmoid(r)) - math.log(1 - _sigmoid(f)),
        lambda f, r: -math.log(_sigmoid(f)),
    ),
    "lsgan": (lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda f, r: (f - 1) ** 2 / 2),
    "wgan": (lambda r, f: f - r, lambda f, r: -f),
    "hinge": (lambda r, f: -min(0, r - 1) - min(0, -1 - f), lambda f, r: -f),
    "jsd": (lambda r, f: -_jsd(r, f), lambda f, r: _jsd(r, f)),
    "relativistic": (
        lambda r, f: -math.log(_sigmoid(r - f)),
        lambda f, r: -math.log(_sigmoid(f - r)),
    ),
}


def _relativistic_average(real, fake):
    r_mean, f_mean = sum(real) / len(real), sum(fake) / len(fake)
    return np.array(
        [
            -math.log(_sigmoid(r - f_mean)) - math.log(1 - _sigmoid(f - r_mean))
            for r, f in zip(real, fake, strict=True)
        ]
    )


def discriminator(name, real, fake):
    real, fake = np.float64(real), np.float64(fake)
    if name == "relativistic_average":
        return _relativistic_average(real, fake)
    return np.array([PAIRS[name][0](r, f) for r, f in zip(real, fake, strict=True)])


def generator(name, fake, real):
    real, fake = np.float64(real), np.float64(fake)
    if name == "relativistic_average":
        return _relativistic_average(fake, real)
    return np.array([PAIRS[name][1](f, r) for f, r in zip(fake, real, strict=True)])


def gan_cls(real, fake, mismatched):
    """Reed et al. 2016, algorithm 1: what the discriminator ascends, with its sign changed."""
    rows = zip(np.float64(real), np.float64(fake), np.float64(mismatched), strict=True)
    return np.array(
        [
            -(math.log(_sigmoid(r)) + (math.log(1 - _sigmoid(w)) + math.log(1 - _sigmoid(f))) / 2)
            for r, f, w in rows
        ]
    )


def witness(name, x, real, fake):
    x, real, fake = np.float64(x), np.float64(real), np.float64(fake)
    mean = lambda point, sample: sum(kernel(name, point, s) for s in sample) / len(sample)
    return np.array([mean(point, real) - mean(point, fake) for point in x])


def two_layer_penalty(w, v, x, target):
    """(||grad of v . tanh(w x)|| - target)^2 for every x, the gradient by the chain rule."""
    slope = v * (1 - np.tanh(x @ w.T) ** 2)
    return (np.linalg.norm(slope @ w, axis=1) - target) ** 2


def finite_difference(fn, x, step=1e-5):
    """Central differences of a scalar function of one array."""
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[i] = step
        out[i] = (fn(x + e) - fn(x - e)) / (2 * step)
    return out


def _cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def word_region_score(words, regions, gamma1, gamma2, attention):
    """One caption without padding, one image; words [L, D], regions [R, D]."""
    if attention == "cosine":
        regions = np.array([v / np.linalg.norm(v) for v in regions])
        affinity = np.array([[_cosine(w, v) for v in regions] for w in words])
    else:
        affinity = np.exp(np.array([[w @ v for v in regions] for w in words]))
        affinity = affinity / affinity.sum(axis=0)  # over the words
    total = 0.0
    for w, row in zip(words, affinity, strict=True):
        alpha = np.exp(gamma1 * row) / np.exp(gamma1 * row).sum()
        total += math.exp(gamma2 * _cosine(alpha @ regions, w))
    return math.log(total) / gamma2


def word_region_scores(words, mask, regions, gamma1, gamma2, attention):
    """[images, captions]."""
    words, regions = np.float64(words), np.float64(regions)
    score = lambda i, j: word_region_score(words[j][mask[j]], regions[i], gamma1, gamma2, attention)
    return np.array([[score(i, j) for j in range(len(words))] for i in range(len(regions))])
