"""Metrics of generated samples, computed on features: Fréchet and kernel distance, inception score, R-precision.

The caller extracts the features, with any network. Two scores are comparable only if the extractor, the preprocessing
(resizing), the number of examples and the real examples are the same. See also :mod:`xmodal_jax.metrics.neighbours`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.metrics.neighbours import validate_feature_pair, validate_features


class Moments(NamedTuple):
    """Count, mean and scatter of features, in float64 on the host.

    Published statistics, a mean ``mu`` and a covariance ``sigma`` of N examples, are
    ``Moments(N, mu, (N - 1) * sigma)``.
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
    """The mean of a score over parts of the data, and its standard deviation over the parts (ddof 0)."""

    mean: float
    std: float


def moments(features) -> Moments:
    """Count, mean and scatter of features ``[N, D]``.

    Holds a float64 copy of the features on the host; for large sets call :func:`add_moments` batch by batch.

    Raises:
      ValueError: if the features are not ``[N, D]`` or not finite.
    """
    x = validate_features("features", features, np.float64)
    mean = x.mean(axis=0)
    x = x - mean[None, :]
    return Moments(len(x), mean, x.T @ x)


def add_moments(total: Moments | None, features) -> Moments:
    """The moments of all features so far: those of ``total`` (None at the start) and of one more batch ``[N, D]``.

    The result is as exact as :func:`moments` of all features at once, however they are split into batches.

    Example:
      >>> import numpy as np
      >>> from xmodal_jax.metrics import add_moments
      >>> total = None
      >>> for batch in np.random.default_rng(0).normal(size=(3, 8, 2)):
      ...     total = add_moments(total, batch)
      >>> total.count, total.covariance.shape
      (24, (2, 2))

    Raises:
      ValueError: if the features are not ``[N, D]``, not finite, or not as many per example as those before.
    """
    batch = moments(features)
    return batch if total is None else merge_moments(total, batch)


def merge_moments(a, b) -> Moments:
    """The `Moments` of the union of two sets with these, by the update of Chan, Golub and LeVeque 1983.

    No large sums of squares are subtracted, so that no digits are lost where means exceed deviations.

    Raises:
      ValueError: if the two have different numbers of features.
    """
    _check_same_dim(a, b)
    count = a.count + b.count
    # mean = mean_a + shift n_b / n;  scatter = S_a + S_b + shift shift^T n_a n_b / n
    shift = b.mean - a.mean
    return Moments(
        count,
        a.mean + shift * (b.count / count),
        a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count),
    )


def frechet_distance(a, b) -> float:
    r"""The Fréchet distance between two Gaussians with these moments; FID if the features are Inception's.

    .. math:: \|\mu_a - \mu_b\|^2 + \mathrm{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2})

    This is the squared 2-Wasserstein distance of the Gaussians, in squared units of the features. Covariances have ddof
    1; everything is computed in float64.

    The estimate is biased upwards. The bias falls with the number of examples (about as 1/N) and depends on the model,
    so compare scores only at equal counts (by custom 50,000), and with few examples prefer :func:`kernel_distance`.
    Covariances of fewer than D examples are singular: the distance is still defined, but its bias is large.

    Args:
      a, b: `Moments` of the real and of the generated features, in either order; see :func:`moments`.
    Returns:
      The distance, at least 0.
    Raises:
      ValueError: if the two have different numbers of features, or one has fewer than two examples.
      TypeError: if one is no `Moments`, such as the features themselves.

    Example:
      >>> import numpy as np
      >>> from xmodal_jax.metrics import frechet_distance, moments
      >>> x = np.random.default_rng(0).normal(size=(100, 3))
      >>> round(frechet_distance(moments(x), moments(x + 2.0)), 6)  # a shift by 2 in three dimensions
      12.0

    References:
      Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500, eq. 6.
    """
    _check_same_dim(a, b)
    cov_a, cov_b = a.covariance, b.covariance
    # tr (A B)^1/2 is the nuclear norm of A^1/2 B^1/2, and so of P^T Q for any A = P P^T and B = Q Q^T. Symmetric
    # eigenvalues and singular values are real and exact to rounding, also where A and B are singular; those of the
    # product A B are neither.
    product = _factorize(cov_a).T @ _factorize(cov_b)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.linalg.svd(product, compute_uv=False).sum()
    # For equal moments rounding may give a small negative number.
    return float(max(np.sum((a.mean - b.mean) ** 2) + trace, 0.0))


def _factorize(covariance):
    """A matrix P ``[D, D]`` with ``P P^T = covariance``; the covariance may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[None, :]


def _check_same_dim(a, b):
    """Raises an error if a or b is no `Moments`, or they have different numbers of features."""
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, Moments):
            got = f"an array {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
            raise TypeError(f"{name} must be Moments, got {got}: give moments(features) of features [N, D]")
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {a.mean.shape[0]} and of {b.mean.shape[0]} features")


def inception_score(logits, *, splits: int = 10, seed: int | None = None) -> MeanStd:
    r"""The inception score ``exp(mean_x KL(p(y | x) || p(y)))`` of a classifier's predictions, from 1 to K.

    p(y) is the mean prediction within a split; mean and standard deviation are over the splits. Softmax and logarithm
    are computed in float64. The score involves no real examples, and only the classes of the classifier. It grows with
    the number of examples in a split, so compare at equal N and ``splits``.

    Args:
      logits: ``[N, K]``. Logarithms of probabilities are logits too; -inf is a probability of 0.
      splits: number of contiguous parts, whose sizes differ by at most one example. If the samples are sorted by class,
        set a ``seed``: a part with few classes has a low score.
      seed: if given, shuffles the examples first, as torch-fidelity does (there the seed is 2020).
    Raises:
      ValueError: if the logits are not ``[N, K]``, an example's logits hold NaN or +inf or only -inf, or N is below
        ``splits``.

    Example:
      >>> import numpy as np
      >>> from xmodal_jax.metrics import inception_score
      >>> confident = 100.0 * np.eye(5)[np.arange(50) % 5]  # all five classes, with certainty
      >>> round(inception_score(confident).mean, 4)
      5.0

    References:
      Salimans et al. 2016, Improved Techniques for Training GANs, arXiv:1606.03498, section 4.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be [examples, classes] and not empty, got {list(logits.shape)}")
    count = len(logits)
    # An example's largest logit is not finite if one is NaN or +inf, or all are -inf.
    maximum = logits.max(axis=1, keepdims=True)
    if not np.isfinite(maximum).all():
        raise ValueError(f"logits: example {int(np.argmin(np.isfinite(maximum)))} has no probabilities")
    if not 1 <= splits <= count:
        raise ValueError(f"{count} examples do not make {splits} splits")
    if seed is not None:
        order = np.random.RandomState(seed).permutation(count)
        logits, maximum = logits[order], maximum[order]
    # p(y | x) by a softmax of the logits, and its logarithm.
    logits = logits - maximum
    p = np.exp(logits)
    total = p.sum(axis=1, keepdims=True)
    p, log_p = p / total, logits - np.log(total)
    scores = []
    for i in range(splits):
        split = slice(i * count // splits, (i + 1) * count // splits)
        q = p[split].mean(axis=0, keepdims=True)  # p(y)
        log_q = np.log(np.where(q > 0, q, 1.0))
        # Where p is 0 its logarithm is -inf; 0 log 0 counts as 0.
        log_ratio = np.where(p[split] > 0, log_p[split], log_q) - log_q
        scores.append(np.exp((p[split] * log_ratio).sum(axis=1).mean()))
    return MeanStd(float(np.mean(scores)), float(np.std(scores)))


def kernel_distance(a, b, *, seed: int, subsets: int = 100, subset_size: int = 1000) -> MeanStd:
    r"""Unbiased squared maximum mean discrepancy with a cubic kernel; KID if the features are Inception's.

    .. math:: \langle k(x_i, x_{i'}) \rangle_{i \ne i'} + \langle k(y_j, y_{j'}) \rangle_{j \ne j'}
              - 2 \langle k(x_i, y_j) \rangle, \qquad k(x, y) = (\langle x, y \rangle / D + 1)^3

    over ``subsets`` random subsets of both, each drawn without replacement; mean and standard deviation are over the
    subsets. The mean is unbiased at any size (so it may be negative), which makes this the distance for few examples.
    The standard deviation is that of one subset of ``subset_size``, not the standard error of the mean; it shrinks to 0
    as the subsets become the whole set. The distance depends on the scale of the features.

    Args:
      a: ``[N, D]``, features of real examples (or generated ones; the distance is symmetric up to the draw).
      b: ``[M, D]``, features of generated examples.
      seed: seed of the subsets. They are drawn as in torch-fidelity: the same seed (there 2020) gives the same subsets.
      subsets: number of subsets.
      subset_size: examples of each side in a subset, at most N and M.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or a set is smaller than ``subset_size``.

    Example:
      >>> import numpy as np
      >>> from xmodal_jax.metrics import kernel_distance
      >>> real, generated = np.random.default_rng(0).normal(size=(2, 200, 4))
      >>> same = kernel_distance(real, generated, seed=0, subsets=10, subset_size=50)
      >>> other = kernel_distance(real, generated + 1.0, seed=0, subsets=10, subset_size=50)
      >>> same.mean < 0.1 < other.mean
      True

    References:
      Bińkowski et al. 2018, Demystifying MMD GANs, arXiv:1801.01401, section 4.
    """
    a, b = validate_feature_pair(("a", a), ("b", b))
    largest = min(len(a), len(b))
    if not 2 <= subset_size <= largest:
        raise ValueError(
            f"subset_size={subset_size} with {len(a)} and {len(b)} examples: it must lie in 2..{largest}, "
            "and well below the largest for a standard deviation that means something"
        )
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}")
    choice = np.random.RandomState(seed).choice
    # [subsets, 2, size]: indices into a and into b.
    indices = [[choice(len(x), subset_size, replace=False) for x in (a, b)] for _ in range(subsets)]
    # Sums over rows in float32 on the device; their means in float64 on the host.
    sums = np.asarray(_kernel_row_sums(a, b, np.asarray(indices, np.int32)), np.float64)
    # Mean row sums, [subsets]: within a set (the mean for both sets, hence the factor 2 below) and between the sets.
    # A row within a set has size - 1 entries, as the diagonal is left out, and a row between the sets has size.
    within, between = sums[:, :2].mean(axis=(1, 2)), sums[:, 2].mean(axis=1)
    distances = 2 * within / (subset_size - 1) - 2 * between / subset_size
    return MeanStd(float(np.mean(distances)), float(np.std(distances)))


@jax.jit
def _kernel_row_sums(a, b, indices):
    """The row sums of three kernel matrices for each subset: x with x, y with y and x with y, ``[subsets, 3, size]``.

    ``indices [subsets, 2, size]`` selects x from ``a`` and y from ``b``. The kernel is that of `kernel_distance`
    minus 1. The diagonals of the first two matrices are left out.
    """
    off_diagonal = ~jnp.eye(indices.shape[2], dtype=bool)

    def kernel(x, y):
        # (1 + t)^3 - 1: the 1 cancels between the three means, and would round away a small t.
        t = jnp.matmul(x, y.T, precision="highest") / x.shape[1]
        return t * (3.0 + t * (3.0 + t))

    def subset_row_sums(index):
        x, y = a[index[0]], b[index[1]]
        within = [jnp.where(off_diagonal, kernel(z, z), 0.0).sum(axis=1) for z in (x, y)]
        return jnp.stack([*within, kernel(x, y).sum(axis=1)])

    return jax.lax.map(subset_row_sums, indices)


def r_precision(image_embeddings, text_embeddings, *, seed: int, candidates: int = 100, groups=None) -> float:
    """R-precision with R = 1: the fraction of generated images whose own text ranks first among ``candidates`` texts.

    The candidates of an image are its text and one text each of ``candidates - 1`` other groups, drawn without
    replacement; they are ranked by cosine similarity. As all candidates are distinct, chance is ``1 / candidates``,
    also where captions repeat. A tie counts as wrong, so that a collapsed encoder, whose embeddings are all equal,
    scores 0. The value is unbiased at any N, but a small N has fewer texts that could be confused. Use an encoder that
    the generator was not trained with: the generator could have learned to exploit it.

    Args:
      image_embeddings: ``[N, D]``, embeddings of generated images.
      text_embeddings: ``[N, D]``; row i embeds the text that image i was generated from.
      seed: seed of the mismatched texts.
      candidates: number of texts to rank, including the image's own: 2 to the number of groups.
      groups: int ``[N]``; texts with equal ids (captions of one picture, equal sentences) count as one text: they are
        never candidates of each other's images, and at most one of them is a candidate of an image. By default every
        text has a group to itself: give ids where texts repeat, since a repeated text ties with itself.
    Returns:
      A fraction, 0 to 1.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or there are fewer groups than ``candidates``.

    Example:
      >>> import numpy as np
      >>> from xmodal_jax.metrics import r_precision
      >>> embeddings = np.random.default_rng(0).normal(size=(20, 8))
      >>> r_precision(embeddings, embeddings, seed=0, candidates=10)
      1.0

    References:
      Xu et al. 2018, AttnGAN, arXiv:1711.10485, section 4.
    """
    images, texts = validate_feature_pair(
        ("image_embeddings", image_embeddings), ("text_embeddings", text_embeddings)
    )
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts do not pair up")
    groups = np.arange(len(texts)) if groups is None else np.asarray(groups)
    if groups.shape != (len(texts),):
        raise ValueError(f"groups must be [{len(texts)}], one id for each text, got {list(groups.shape)}")
    if candidates < 2:
        raise ValueError(f"candidates must be at least 2, got {candidates}")
    mismatched = _draw_mismatched(groups, candidates - 1, np.random.default_rng(seed))
    return float(np.mean(np.asarray(_own_text_ranks_first(images, texts, mismatched))))


def _draw_mismatched(groups, count, rng):
    """For each text the indices of texts of ``count`` different other groups, one of each, int32 ``[N, count]``.

    ``groups`` int ``[N]``: the id of each text's group; ``rng``: a NumPy generator.

    Raises:
      ValueError: if there are not ``count`` other groups.
    """
    order = np.argsort(groups, kind="stable")  # the texts sorted by group
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    start = np.cumsum(size) - size  # where each group begins in that order
    if len(size) <= count:
        raise ValueError(
            f"{len(groups)} texts in {len(size)} groups are too few for candidates={count + 1}, one of each group: "
            "give more examples or fewer candidates"
        )
    # A generator of its own for the members of the groups: what it draws does not change which groups are drawn.
    member_rng = rng.spawn(1)[0]
    mismatched = np.empty((len(groups), count), np.int32)
    for i, g in enumerate(group):
        drawn = rng.choice(len(size) - 1, count, replace=False, shuffle=False)
        drawn += drawn >= g  # numbers of groups without g
        mismatched[i] = order[start[drawn] + member_rng.integers(size[drawn])]
    return mismatched


@jax.jit
def _own_text_ranks_first(images, texts, mismatched):
    """Whether each image's own text is strictly more similar to it than all mismatched texts, bool ``[N]``.

    ``images [N, D]`` and ``texts [N, D]`` are embeddings, a row for each pair; ``mismatched`` int ``[N, K]`` holds the
    indices of the K texts that each image's own text competes with.
    """
    images, texts = l2_normalize(images), l2_normalize(texts)

    def ranks_first(x):
        """Whether one image's own text is more similar to it than its mismatched texts."""
        image, own_index, mismatched_indices = x
        candidates = texts[jnp.append(own_index, mismatched_indices)]
        # Not a matrix product, which may sum in a different order for each candidate: equal texts must tie exactly.
        cosine = jnp.sum(candidates * image[None, :], axis=1)
        return (cosine[1:] < cosine[0]).all()

    return jax.lax.map(ranks_first, (images, jnp.arange(len(texts), dtype=mismatched.dtype), mismatched))
