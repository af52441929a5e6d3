"""Exact nearest neighbours of features, and the metrics of generated samples built on them.

Distances are computed from differences (N M D operations, without a matrix product). The expansion
``|x|^2 + |y|^2 - 2 <x, y>`` would be faster but loses digits: here a copy has exactly the distance 0, and the distances
from x to y and from y to x are equal to the last bit, so that ties are ties. Only the distances of a few queries are in
memory at a time, never all N x M.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

QUERIES_AT_A_TIME, REFERENCES_AT_A_TIME = 64, 256
"""Sizes of a block of distances: small enough that its references stay in a processor's cache."""


class Neighbours(NamedTuple):
    """The k nearest references of each query, nearest first."""

    indices: np.ndarray  # int [Q, k]
    distances: np.ndarray  # float32 [Q, k]


class PrecisionRecall(NamedTuple):
    """Two fractions, 0 to 1."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density, at least 0 and not bounded by 1; coverage, a fraction."""

    density: float
    coverage: float


def nearest_neighbours(queries, references, *, k: int = 1) -> Neighbours:
    """The exact k nearest references of every query by Euclidean distance.

    Can detect memorization: take generated samples as queries and the training set as references, in pixels or in
    features. A copy has exactly the distance 0. To judge other small distances, compute the same for held-out real
    examples: a model that does not copy is no nearer to the training set than they are.

    Args:
      queries: ``[Q, D]``, converted to float32.
      references: ``[M, D]``, converted to float32.
      k: number of neighbours per query. Of equally near references the one with the lower index comes first. A query
        that is also a reference finds itself.
    Returns:
      Indices and distances ``[Q, k]``, the distances in units of the features.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or there are fewer than k references.

    Example:
      >>> import numpy as np
      >>> from xmodal_jax.metrics import nearest_neighbours
      >>> found = nearest_neighbours(np.array([[1.0]]), np.array([[5.0], [0.0], [1.5]]), k=2)
      >>> found.indices.tolist(), found.distances.tolist()
      ([[2, 1]], [[0.5, 1.0]])
    """
    queries, references = validate_feature_pair(("queries", queries), ("references", references))
    if not 1 <= k <= len(references):
        raise ValueError(f"k must lie in 1..{len(references)}, the number of references, got {k}")
    index, square = _nearest(queries, references, k=k)
    return Neighbours(np.asarray(index), np.sqrt(np.asarray(square)))


def precision_recall(real, fake, *, k: int = 3) -> PrecisionRecall:
    r"""Improved precision and recall of generated examples.

    Precision is the fraction of fakes that lie in the ball of some real example, recall the fraction of real examples
    that lie in the ball of some fake:

    .. math:: \frac1M \sum_j 1[\exists i: \|y_j - x_i\| \le r_i], \qquad
              \frac1N \sum_i 1[\exists j: \|x_i - y_j\| \le s_j]

    where the radii r and s are the distances from each point to its k-th nearest neighbour in its own set, not counting
    itself.

    Both grow with k and with the number of balls, and a single outlier has a ball that covers much: compare at the same
    N, M (in the paper 50,000 each) and k.

    Args:
      real: ``[N, D]``, features of real examples.
      fake: ``[M, D]``, features of generated examples.
      k: the neighbour whose distance is the radius.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or a set has no k-th neighbour.

    Example:
      >>> import numpy as np
      >>> from xmodal_jax.metrics import precision_recall
      >>> real = np.random.default_rng(0).normal(size=(50, 2))
      >>> precision_recall(real, np.repeat(real[:1], 50, axis=0))  # collapsed to one real example
      PrecisionRecall(precision=1.0, recall=0.02)

    References:
      Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2.
    """
    real, fake = validate_feature_pair(("real", real), ("fake", fake))
    # Whether each fake lies in any ball around a real example, and the reverse.
    precision = _count_balls(fake, real, _squared_radii("real", real, k), strict=False) > 0
    recall = _count_balls(real, fake, _squared_radii("fake", fake, k), strict=False) > 0
    return PrecisionRecall(_mean(precision), _mean(recall))


def density_coverage(real, fake, *, k: int = 5) -> DensityCoverage:
    r"""Density and coverage of generated examples, with balls around real examples only.

    .. math:: \frac1{kM} \sum_{i,j} 1[\|y_j - x_i\| < r_i], \qquad
              \frac1N \sum_i 1[\min_j \|y_j - x_i\| < r_i]

    where the radius :math:`r_i` is the distance from :math:`x_i` to its k-th nearest real neighbour, not counting
    itself. The inequalities are strict, as in the authors' ``prdc``: a set without ties has density and coverage 1
    against itself. For two samples of one distribution the expected density is 1, and the expected coverage is

    .. math:: 1 - \prod_{i=1}^{k} \frac{N - i}{N + M - i}

    in any number of dimensions (the probability that at least one of the k nearest others is a fake), so compare
    coverage at the same N, M and k. In many dimensions a few central examples lie in very many balls, and the density
    varies widely around 1.

    Args:
      real: ``[N, D]``, features of real examples.
      fake: ``[M, D]``, features of generated examples.
      k: the neighbour whose distance is the radius.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or real has no k-th neighbour.

    Example:
      >>> import numpy as np
      >>> from xmodal_jax.metrics import density_coverage
      >>> real = np.random.default_rng(0).normal(size=(50, 2))
      >>> density_coverage(real, real[::-1])
      DensityCoverage(density=1.0, coverage=1.0)

    References:
      Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative Models, arXiv:2002.09797, section 3.
    """
    real, fake = validate_feature_pair(("real", real), ("fake", fake))
    squared_radii = _squared_radii("real", real, k)
    density = _mean(_count_balls(fake, real, squared_radii, strict=True)) / k
    _, squared_to_fake = _nearest(real, fake, k=1)
    return DensityCoverage(density, _mean(squared_to_fake[:, 0] < squared_radii))


def validate_features(name: str, features, dtype=np.float32) -> np.ndarray:
    """The features as a host array ``[N, D]`` of this dtype.

    Raises:
      ValueError: if they are not ``[N, D]``, empty or not finite; the message calls them ``name``.
    """
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name} must be [examples, dim] and not empty, got {list(features.shape)}")
    features = features.astype(dtype)
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name}: {np.sum(~finite)} of {len(finite)} examples hold NaN or infinity, "
            f"the first is example {int(np.argmin(finite))}"
        )
    return features


def validate_feature_pair(*named) -> list[np.ndarray]:
    """Checks two sets of features of the same dimension; returns both as float32 arrays.

    Each argument is ``(name, features)``, with the name for the errors' messages.

    Raises:
      ValueError: as :func:`validate_features`, or if the sets have different numbers of features.
    """
    (a_name, b_name), (a, b) = zip(*named, strict=True)
    a, b = validate_features(a_name, a), validate_features(b_name, b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a_name} and {b_name} have {a.shape[1]} and {b.shape[1]} features each")
    return [a, b]


def _squared_radii(name, x, k):
    """The squared distance from every example of x ``[N, D]`` to its k-th nearest other example, ``[N]``.

    Raises:
      ValueError: if an example has fewer than k others; ``name`` is what the message calls x.
    """
    if not 1 <= k < len(x):
        raise ValueError(f"k={k}: each of the {len(x)} {name} examples needs k others")
    # Nothing is nearer to an example than itself, so its k-th other neighbour is the (k+1)-th of all, even with copies.
    _, squared_distances = _nearest(x, x, k=k + 1)
    return squared_distances[:, k]


def _mean(x):
    """The mean in float64 on the host: sums over many examples exceed the precision of float32."""
    return float(np.mean(np.asarray(x), dtype=np.float64))


def _squared_distances(query, references):
    """The squared distances from one query to all references, ``[M]``."""
    count, dim = references.shape
    # In tiles of references that fit a processor's cache, the last one padded.
    padded = jnp.pad(references, ((0, -count % REFERENCES_AT_A_TIME), (0, 0)))
    tiles = padded.reshape(-1, REFERENCES_AT_A_TIME, dim)
    square = jax.lax.map(lambda tile: jnp.sum(jnp.square(query[None, :] - tile), axis=1), tiles)
    # The barrier keeps XLA from fusing the sum with its consumers, after which two programs could round it differently.
    return jax.lax.optimization_barrier(square.reshape(-1)[:count])


@partial(jax.jit, static_argnames="k")
def _nearest(queries, references, *, k):
    """Indices and squared distances of the k nearest references, ``[Q, k]`` each."""

    def nearest_to(query):
        # The k largest of the negative distances.
        negative_distances, indices = jax.lax.top_k(-_squared_distances(query, references), k)
        return indices, -negative_distances

    return jax.lax.map(nearest_to, queries, batch_size=QUERIES_AT_A_TIME)


@partial(jax.jit, static_argnames="strict")
def _count_balls(points, centers, squared_radii, *, strict):
    """The number of balls that contain each point, int ``[points]``; ``strict``: a ball's surface is not part of it."""
    inside = jnp.less if strict else jnp.less_equal
    count = lambda point: inside(_squared_distances(point, centers), squared_radii).sum()
    return jax.lax.map(count, points, batch_size=QUERIES_AT_A_TIME)
