"""Metrics of generated samples, from the features of any extractor; see also :mod:`xmodal_jax.metrics.neighbours`.

The extractor is the caller's. A score means something only together with the extractor, the preprocessing (resizing),
the numbers of examples and the split of the real ones, and compares only with scores where all four are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.metrics.neighbours import feature_pair, feature_rows


class Moments(NamedTuple):
    """Count, mean and scatter of features, in float64 on the host.

    Statistics that someone published as mean and covariance of N examples are ``Moments(N, mu, (N - 1) * sigma)``.
    """

    count: int
    mean: np.ndarray  # [D]
    scatter: np.ndarray  # [D, D], the sum of (x - mean)(x - mean)^T

    @property
    def covariance(self) -> np.ndarray:
        """``scatter / (count - 1)``, ``[D, D]``."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two examples, got {self.count}")
        return self.scatter / (self.count - 1)


class MeanStd(NamedTuple):
    """A mean over parts of the data and the standard deviation (ddof 0) between the parts."""

    mean: float
    std: float


def moments(features) -> Moments:
    """Mean and scatter of the features ``[N, D]``.

    The host holds a float64 copy; large sets go through :func:`add_moments` by the batch.

    Raises:
      ValueError: if the features are not ``[N, D]`` or not finite.
    """
    x = feature_rows("features", features, np.float64)
    mean = x.mean(axis=0)
    x = x - mean[None, :]
    return Moments(len(x), mean, x.T @ x)


def add_moments(total: Moments | None, features) -> Moments:
    """``total`` with one more batch of features ``[N, D]``; None is the empty start.

    As exact as :func:`moments` of all at once, and independent of how the examples are split into batches.
    """
    batch = moments(features)
    return batch if total is None else merge_moments(total, batch)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of two sets together (Chan, Golub and LeVeque 1983): no difference of large sums of squares.

    Raises:
      ValueError: if they are of different features.
    """
    _same_dim(a, b)
    count = a.count + b.count
    shift = b.mean - a.mean
    return Moments(
        count,
        a.mean + shift * (b.count / count),
        a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count),
    )


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""The Fréchet distance of two Gaussians; FID where the features are Inception's (Heusel et al. 2017, eq. 6).

    .. math:: \|\mu_a - \mu_b\|^2 + \mathrm{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2})

    It is the squared 2-Wasserstein distance, in squared units of the features; covariances with ddof 1, all in
    float64. It is biased upwards, by an amount that
    falls with the number of examples (about as 1/N) and depends on the model, so compare only at equal counts (50,000
    by custom), and at small ones prefer :func:`kernel_distance`. Covariances of fewer than D examples are singular:
    the distance is still defined, and the bias large.

    Args:
      a, b: moments of real and generated features, in any order.
    Raises:
      ValueError: with different features or fewer than two examples.
    """
    _same_dim(a, b)
    first, second = a.covariance, b.covariance
    # tr (A B)^1/2 is the nuclear norm of A^1/2 B^1/2, and so of P^T Q for any A = P P^T and B = Q Q^T. Symmetric
    # eigenvalues and singular values are real and exact to rounding, also where A and B are singular; those of the
    # product A B are neither.
    product = _factor(first).T @ _factor(second)
    trace = np.trace(first) + np.trace(second) - 2 * np.linalg.svd(product, compute_uv=False).sum()
    # At equality rounding leaves either sign.
    return float(max(np.sum((a.mean - b.mean) ** 2) + trace, 0.0))


def _factor(covariance):
    """P with ``P P^T`` = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[None, :]


def _same_dim(a, b):
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {a.mean.shape[0]} and of {b.mean.shape[0]} features")


def inception_score(logits, *, splits: int = 10, seed: int | None = None) -> MeanStd:
    r"""``exp(mean KL(p(y | x) || p(y)))`` of a classifier's answers, 1 to K (Salimans et al. 2016, section 4).

    p(y) is the mean of the answers in one split; mean and standard deviation are over the splits. Softmax and logarithm
    in float64. The score sees no real examples and knows only the classes of the classifier; it grows with the number
    of examples in a split, so compare at equal N and ``splits``.

    Args:
      logits: ``[N, K]``. Of probabilities give the logarithm; -inf is a probability of 0.
      splits: contiguous parts, as equal as they can be. Samples in the order of their classes need a ``seed``: a part
        with few classes has a low score.
      seed: shuffles the examples first, as torch-fidelity does (there 2020); None keeps their order.
    Raises:
      ValueError: if the logits are not ``[N, K]``, a row holds NaN or +inf or only -inf, or N is below ``splits``.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be [examples, classes] and not empty, got {list(logits.shape)}")
    count = len(logits)
    # The largest logit of a row is not finite where a NaN or +inf is in it, and where all are -inf.
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError(f"logits: example {int(np.argmin(np.isfinite(top)))} has no probabilities")
    if not 1 <= splits <= count:
        raise ValueError(f"{count} examples do not make {splits} splits")
    if seed is not None:
        order = np.random.RandomState(seed).permutation(count)
        logits, top = logits[order], top[order]
    logits = logits - top
    p = np.exp(logits)
    total = p.sum(axis=1, keepdims=True)
    p, log_p = p / total, logits - np.log(total)
    scores = []
    for i in range(splits):
        part = slice(i * count // splits, (i + 1) * count // splits)
        q = p[part].mean(axis=0, keepdims=True)
        log_q = np.log(np.where(q > 0, q, 1.0))
        # 0 log 0 is 0, also where the logarithm is -inf.
        ratio = np.where(p[part] > 0, log_p[part], log_q) - log_q
        scores.append(np.exp((p[part] * ratio).sum(axis=1).mean()))
    return MeanStd(float(np.mean(scores)), float(np.std(scores)))


def kernel_distance(a, b, *, seed: int, subsets: int = 100, subset_size: int = 1000) -> MeanStd:
    r"""Unbiased squared MMD, cubic kernel; KID where the features are Inception's (Bińkowski et al. 2018, section 4).

    .. math:: \langle k(x_i, x_{i'}) \rangle_{i \ne i'} + \langle k(y_j, y_{j'}) \rangle_{j \ne j'}
              - 2 \langle k(x_i, y_j) \rangle, \qquad k(x, y) = (\langle x, y \rangle / D + 1)^3

    over ``subsets`` random subsets of both, each drawn without replacement; mean and standard deviation over the
    subsets. The mean is unbiased at any size (so it may be negative), which makes this the distance for few examples.
    The standard deviation is that of one subset of ``subset_size``, not the error of the mean, and shrinks to 0 as the
    subsets become the whole set. Not invariant to the scale of the features.

    Args:
      a: ``[N, D]``, features of real or generated examples.
      b: ``[M, D]``, those of the others.
      seed: draws the subsets, as torch-fidelity does: the same seed (there 2020) gives the same ones.
      subsets: how many.
      subset_size: examples of each side in a subset, at most N and M.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or a set is smaller than ``subset_size``.
    """
    a, b = feature_pair(("a", a), ("b", b))
    fewest = min(len(a), len(b))
    if not 2 <= subset_size <= fewest:
        raise ValueError(
            f"subset_size={subset_size} with {len(a)} and {len(b)} examples: it must lie in 2..{fewest}, "
            "and well below the largest for a standard deviation that means something"
        )
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}")
    draw = np.random.RandomState(seed).choice
    drawn = [[draw(len(x), subset_size, replace=False) for x in (a, b)] for _ in range(subsets)]
    rows = np.asarray(_kernel_rows(a, b, np.asarray(drawn, np.int32)), np.float64)
    within, between = rows[:, :2].mean(axis=(1, 2)), rows[:, 2].mean(axis=1)
    distances = 2 * within / (subset_size - 1) - 2 * between / subset_size
    return MeanStd(float(np.mean(distances)), float(np.std(distances)))


@jax.jit
def _kernel_rows(a, b, drawn):
    """Sums over each row of the kernel within x, within y and between them, ``[subsets, 3, size]``."""
    off_diagonal = ~jnp.eye(drawn.shape[2], dtype=bool)

    def kernel(x, y):
        # Without the 1 of (1 + t)^3, which cancels between the three means and would round away a small t.
        t = jnp.matmul(x, y.T, precision="highest") / x.shape[1]
        return t * (3.0 + t * (3.0 + t))

    def subset(index):
        x, y = a[index[0]], b[index[1]]
        within = [jnp.where(off_diagonal, kernel(z, z), 0.0).sum(axis=1) for z in (x, y)]
        return jnp.stack([*within, kernel(x, y).sum(axis=1)])

    return jax.lax.map(subset, drawn)


def r_precision(image_embeddings, text_embeddings, *, seed: int, candidates: int = 100, groups=None) -> float:
    """How often an image's own text is the nearest of ``candidates`` (R = 1; Xu et al. 2018, AttnGAN, section 4).

    For every generated image: its text and ``candidates - 1`` mismatched ones, drawn without replacement; the share of
    images whose own text has the largest cosine. A tie counts as wrong, so that embeddings that are all alike score
    0. Chance is ``1 / candidates``. The value is unbiased at any N, but a small N has fewer texts to be mistaken for.
    The encoder should be one that the generator was not trained with, which else learns to please it.

    Args:
      image_embeddings: ``[N, D]``, of generated images.
      text_embeddings: ``[N, D]``, row i of the text that image i was generated from.
      seed: draws the mismatched texts.
      candidates: texts to choose from, the true one included.
      groups: int ``[N]``; texts of one id (captions of one picture, equal sentences) are never drawn against each
        other. By default every text is its own group.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or an image has too few mismatched texts.
    """
    images, texts = feature_pair(("image_embeddings", image_embeddings), ("text_embeddings", text_embeddings))
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts do not pair up")
    groups = np.arange(len(texts)) if groups is None else np.asarray(groups)
    if groups.shape != (len(texts),):
        raise ValueError(f"groups must be [{len(texts)}], one id for each text, got {list(groups.shape)}")
    if candidates < 2:
        raise ValueError(f"candidates must be at least 2, got {candidates}")
    others = _mismatched(groups, candidates - 1, np.random.default_rng(seed))
    return float(np.mean(np.asarray(_own_is_nearest(images, texts, others))))


def _mismatched(groups, count, rng):
    """For each text the places of ``count`` texts of other groups, int32 ``[N, count]``."""
    order = np.argsort(groups, kind="stable")
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    start = np.cumsum(size) - size
    if (most := size.max()) + count > len(groups):
        raise ValueError(
            f"example {int(np.argmax(size[group] == most))} has {len(groups) - most} mismatched texts for the {count} "
            f"that candidates={count + 1} needs: give more examples or fewer candidates"
        )
    out = np.empty((len(groups), count), np.int32)
    for i, g in enumerate(group):
        drawn = rng.choice(len(groups) - size[g], count, replace=False, shuffle=False)
        # In sorted order a group lies in one piece, which the draw leaps over.
        out[i] = order[np.where(drawn < start[g], drawn, drawn + size[g])]
    return out


@jax.jit
def _own_is_nearest(images, texts, others):
    images, texts = l2_normalize(images), l2_normalize(texts)

    def row(x):
        image, own, other = x
        # Products summed in one order for all, which a matrix product does not promise: equal texts tie.
        cosine = jnp.sum(texts[jnp.append(own, other)] * image[None, :], axis=1)
        return (cosine[1:] < cosine[0]).all()

    return jax.lax.map(row, (images, jnp.arange(len(texts), dtype=others.dtype), others))
