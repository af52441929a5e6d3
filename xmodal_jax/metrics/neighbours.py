"""Exact nearest neighbours of features, and the metrics of generated samples that rest on them.

Distances come from differences (N M D operations without a matrix product), which keeps what the expansion
``|x|^2 + |y|^2 - 2 <x, y>`` loses: copies have the distance 0, and the distance from x to y is, bit for bit, that from
y to x, so that ties are ties. The distances of a few rows are held at a time, never N x M.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROWS, TILE = 64, 256
"""Rows at a time, and the references that are read once for all of them: they stay in a processor's cache."""


class Neighbours(NamedTuple):
    """The k nearest references of each query, nearest first."""

    indices: np.ndarray  # int [Q, k]
    distances: np.ndarray  # float32 [Q, k]


class PrecisionRecall(NamedTuple):
    """Shares, 0 to 1."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density is not bounded by 1; coverage is a share."""

    density: float
    coverage: float


def nearest_neighbours(queries, references, *, k: int = 1) -> Neighbours:
    """The exact k nearest references of every query by Euclidean distance.

    The check for memorisation: generated samples as queries, the training set as references, in the space of pixels or
    of features. A copy has the distance exactly 0. What is small in between is told by the same distances from held-out
    real examples: a model that does not copy is no nearer to the training set than they are.

    Args:
      queries: ``[Q, D]``; computed in float32, so that differences beyond its precision are none.
      references: ``[M, D]``.
      k: neighbours of each; among equals the lower index comes first. A query that is itself among the references
        finds itself.
    Returns:
      Indices and distances, in units of the features.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or there are fewer than k references.
    """
    queries, references = feature_pair(("queries", queries), ("references", references))
    if not 1 <= k <= len(references):
        raise ValueError(f"k must lie in 1..{len(references)}, the number of references, got {k}")
    index, square = _nearest(queries, references, k=k)
    return Neighbours(np.asarray(index), np.sqrt(np.asarray(square)))


def precision_recall(real, fake, *, k: int = 3) -> PrecisionRecall:
    r"""Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1 and 2).

    Precision is the share of fakes that lie in the ball of a real example, recall the share of real examples in the
    ball of a fake:

    .. math:: \frac1M \sum_j 1[\exists i: \|y_j - x_i\| \le r_i], \qquad
              \frac1N \sum_i 1[\exists j: \|x_i - y_j\| \le s_j]

    with the radii r, s from each point to its k-th nearest neighbour in its own set, not counting itself.

    Both grow with the number of samples that make the balls and with k, and one outlier has a ball that holds much:
    compare at the same N, M (the paper: 50,000 each) and k.

    Args:
      real: ``[N, D]``, features of real examples.
      fake: ``[M, D]``, features of generated ones.
      k: which neighbour gives the radius.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or a set has no k-th neighbour.
    """
    real, fake = feature_pair(("real", real), ("fake", fake))
    precision = _balls(fake, real, _radii("real", real, k), strict=False) > 0
    recall = _balls(real, fake, _radii("fake", fake, k), strict=False) > 0
    return PrecisionRecall(_mean(precision), _mean(recall))


def density_coverage(real, fake, *, k: int = 5) -> DensityCoverage:
    r"""Density and coverage (Naeem et al. 2020, section 3), with balls around real examples only.

    .. math:: \frac1{kM} \sum_{i,j} 1[\|y_j - x_i\| < r_i], \qquad
              \frac1N \sum_i 1[\min_j \|y_j - x_i\| < r_i]

    with the radius r from x_i to its k-th nearest real neighbour, not counting itself. Strictly less, as in the
    authors' ``prdc``: a set without ties has density and coverage 1 against itself. Of two samples of one
    distribution the expected density is 1, and the expected coverage

    .. math:: 1 - \prod_{i=1}^{k} \frac{N - i}{N + M - i}

    in any number of dimensions (that of the k nearest others one at least is a fake): compare coverage at the same N,
    M and k. In many dimensions few central examples lie in very many balls, and the density varies widely about 1.

    Args:
      real: ``[N, D]``, features of real examples.
      fake: ``[M, D]``, features of generated ones.
      k: which neighbour gives the radius.
    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or real has no k-th neighbour.
    """
    real, fake = feature_pair(("real", real), ("fake", fake))
    radii = _radii("real", real, k)
    density = _mean(_balls(fake, real, radii, strict=True)) / k
    nearest = _nearest(real, fake, k=1)[1][:, 0]
    return DensityCoverage(density, _mean(nearest < radii))


def feature_rows(name: str, features, dtype=np.float32) -> np.ndarray:
    """The features as an array of rows on the host, or an error that says what is wrong with them."""
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


def feature_pair(*named) -> list[np.ndarray]:
    """Two named sets of features in one space, in float32."""
    (a_name, a), (b_name, b) = pair = [(name, feature_rows(name, x)) for name, x in named]
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a_name} and {b_name} have {a.shape[1]} and {b.shape[1]} features each")
    return [x for _, x in pair]


def _radii(name, x, k):
    """The squared distance from every row to its k-th nearest other row."""
    if not 1 <= k < len(x):
        raise ValueError(f"k={k}: each of the {len(x)} {name} examples needs k others")
    # Nothing is nearer than a row to itself, so the k-th other is the (k+1)-th of all, copies included.
    return _nearest(x, x, k=k + 1)[1][:, k]


def _mean(x):
    """In float64 on the host: counts of many examples exceed float32."""
    return float(np.mean(np.asarray(x), dtype=np.float64))


def _squared_distances(row, references):
    """From one row to all references, ``[M]``."""
    count, dim = references.shape
    tiles = jnp.pad(references, ((0, -count % TILE), (0, 0))).reshape(-1, TILE, dim)
    square = jax.lax.map(lambda tile: jnp.sum(jnp.square(row[None, :] - tile), axis=1), tiles)
    # Not fused with what reads it: the same sum in two programs could be rounded in two ways.
    return jax.lax.optimization_barrier(square.reshape(-1)[:count])


@partial(jax.jit, static_argnames="k")
def _nearest(queries, references, *, k):
    def row(query):
        negative, index = jax.lax.top_k(-_squared_distances(query, references), k)
        return index, -negative

    return jax.lax.map(row, queries, batch_size=ROWS)


@partial(jax.jit, static_argnames="strict")
def _balls(points, centers, radii, *, strict):
    """In how many of the balls every point lies, int ``[points]``; the radii are squared."""
    inside = jnp.less if strict else jnp.less_equal
    return jax.lax.map(lambda x: inside(_squared_distances(x, centers), radii).sum(), points, batch_size=ROWS)
