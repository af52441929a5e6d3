"""Exact search for the nearest neighbours of embeddings among millions of others, in tiles that take little memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TILE_BYTES = 128 << 20
"""Largest size of the scores of a tile, and of a tile that is copied."""
QUERIES_AT_A_TIME = 256
"""Number of queries that are compared with a tile at a time."""
MARGIN = 32
"""Number of candidates beyond the k best that an accelerator returns, to be ordered in float64."""
MOST_TIES = 1024
"""Candidates beyond k per query, tied as far as float32 can tell, at which they are compared in float64 before the
search goes on."""
BLOCKS = 4
"""Blocks of scores per result, at least. The k-th largest of the blocks' maxima is a lower bound of the k best scores:
the more blocks, the tighter."""
_EPSILON = 2.0**-24  # the rounding error of one float32 operation


class Nearest(NamedTuple):
    """The k nearest candidates of each of Q queries, nearest first."""

    scores: np.ndarray
    """float32 ``[Q, k]``: inner products."""
    indices: np.ndarray
    """int64 ``[Q, k]``: rows of the gallery."""


def nearest(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    max_norm: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Nearest:
    """Finds for each query the k rows of the gallery with the largest inner products, exactly.

    ::

        vectors = np.load("embeddings.npy", mmap_mode="r")  # [1_000_000, 512], read in tiles
        scores, indices = nearest(queries, vectors, 10, max_norm=1.0)

    The gallery is read once, in tiles, for any number of queries; besides it the search takes some hundred megabytes.
    Candidates that float32 cannot tell apart are compared in float64, so that the result depends neither on the tiles
    nor on the machine, and of candidates with equal scores the one with the lower index comes first. (On an
    accelerator this holds for up to `MARGIN` candidates that float32 cannot tell apart.)

    Args:
      queries: ``[Q, D]``.
      gallery: ``[N, D]`` floats of any precision: a NumPy array, one that is mapped from a file, or a JAX array.
      k: number of candidates per query, at most N.
      max_norm: an upper bound of the Euclidean norms of the gallery's rows, such as 1 for unit vectors, which must
        then be finite; None: the norms are computed, which takes about as long as the products of one query.
      devices: where to compute. Each takes a part of every tile. None: NumPy on a CPU, otherwise all devices of this
        process.

    Raises:
      ValueError: the shapes do not fit or are empty, k is not in 1..N, or a value is not finite.
    """
    queries, gallery = check_search(queries, gallery, k)
    if devices is None and jax.default_backend() != "cpu":
        devices = jax.local_devices()
    if devices is None:
        candidates = _search_with_numpy(queries, gallery, k, max_norm)
    else:
        candidates = _search_on_devices(queries, gallery, k, max_norm, devices)
    return candidates.best(queries, gallery, k)


def check_search(queries: Any, gallery: Any, k: int) -> tuple[np.ndarray, Any]:
    """Checks the first arguments of `nearest`, and returns the queries as an array and the gallery as one or as it is.

    Raises:
      ValueError: the shapes do not fit or are empty, k is not in 1..N, or a query is not finite.
    """
    queries, gallery = np.asarray(queries), gallery if hasattr(gallery, "shape") else np.asarray(gallery)
    if queries.ndim != 2 or np.ndim(gallery) != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries [Q, D] and gallery [N, D] need the same D, got {queries.shape} and {np.shape(gallery)}"
        )
    if not gallery.shape[0] or not gallery.shape[1]:
        raise ValueError(f"the gallery [N, D] is empty: its shape is {np.shape(gallery)}")
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= len(gallery):
        raise ValueError(f"k must lie in 1..{len(gallery)}, the number of candidates, got {k}")
    if not np.isfinite(queries).all():
        raise ValueError("the queries hold NaN or infinity")
    return queries, gallery


def rank_candidates(queries: np.ndarray, gallery: Any, candidates: np.ndarray, k: int) -> Nearest:
    """Of the candidates of each query the k nearest, with the scores and in the order of `nearest`.

    Args:
      queries: ``[Q, D]``.
      gallery: ``[N, D]``.
      candidates: int ``[Q, M]``: different rows of the gallery; below 0: there is none. Each query has k at least.
      k: number of results.
    """
    rows, columns = np.nonzero(candidates >= 0)
    chosen = _Candidates(rows, candidates[rows, columns].astype(np.int64), np.zeros(len(rows)))
    return chosen.best(queries, gallery, k)


class _Candidates(NamedTuple):
    """Candidates of several queries, sorted by query, score (largest first) and index."""

    rows: np.ndarray  # int64 [n], of the queries
    indices: np.ndarray  # int64 [n], of the gallery
    scores: np.ndarray  # float64 [n]

    @classmethod
    def empty(cls) -> _Candidates:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    def sort(self) -> _Candidates:
        return self.take(np.lexsort((self.indices, -self.scores, self.rows)))

    def take(self, which: np.ndarray) -> _Candidates:
        return _Candidates(*(x[which] for x in self))

    def join(self, *others: _Candidates) -> _Candidates:
        return _Candidates(*(np.concatenate(parts) for parts in zip(self, *others, strict=True))).sort()

    def rank(self) -> np.ndarray:
        """The rank of each among those of its query, from 0."""
        first = np.searchsorted(self.rows, self.rows)
        return np.arange(len(self.rows)) - first

    def kth_scores(self, count: int, k: int) -> np.ndarray:
        """The k-th largest score of each of ``count`` queries, -inf where there are fewer: ``[count]``."""
        scores = np.full(count, -np.inf)
        kth = self.rank() == k - 1
        scores[self.rows[kth]] = self.scores[kth]
        return scores

    def best(self, queries: np.ndarray, gallery: Any, k: int) -> Nearest:
        """The k candidates of each query with the largest scores, which are computed in float64. Each query has k at
        least."""
        ranked = self.rescore(queries, gallery)
        ranked = ranked.take(ranked.rank() < k)
        shape = (len(queries), k)
        return Nearest(ranked.scores.astype(np.float32).reshape(shape), ranked.indices.reshape(shape))

    def rescore(self, queries: np.ndarray, gallery: Any) -> _Candidates:
        """Computes the scores again in float64, in a way that does not depend on the other rows of a tile."""
        scores = np.empty(len(self.rows))
        step = max(1, (16 << 20) // (8 * queries.shape[1]))
        for start in range(0, len(scores), step):
            part = slice(start, start + step)
            # Rows are read in ascending order, because the gallery may be mapped from a file.
            wanted, places = np.unique(self.indices[part], return_inverse=True)
            vectors = np.asarray(gallery[wanted], np.float64)[places]
            # A sum over the last axis computes each row by itself, whereas a matrix product may round it by its other
            # rows.
            scores[part] = (queries[self.rows[part]].astype(np.float64) * vectors).sum(axis=1)
        return _Candidates(self.rows, self.indices, scores).sort()


def _tiles(gallery: Any, max_norm: float | None, rows: int) -> Iterator[tuple[int, Any, float]]:
    """Yields ``(start, tile, norm)``: parts of the gallery, float32 ``[rows, D]``, their first row, and an upper bound
    of their norms.

    Raises:
      ValueError: a value is not finite.
    """
    for start in range(0, len(gallery), rows):
        tile = np.asarray(gallery[start : start + rows], np.float32)
        norm = max_norm
        if norm is None:
            squares = np.einsum("nd,nd->n", tile, tile)
            norm = float(np.sqrt(squares.max())) * 1.001  # as far as float32 computes it
            if not np.isfinite(norm):
                index = start + int(np.argmin(np.isfinite(squares)))
                raise ValueError(f"row {index} of the gallery holds NaN, infinity or numbers too large")
        yield start, tile, norm


def _rows_of_tile(gallery: Any, queries: int, *, copied: bool) -> int:
    """Number of gallery rows in a tile: as many as `TILE_BYTES` allows for their scores, and for the copy if there is
    one."""
    row_bytes = 4 * min(max(queries, 1), QUERIES_AT_A_TIME)
    if copied or gallery.dtype != np.float32:
        row_bytes = max(row_bytes, 4 * gallery.shape[1])
    return max(1, TILE_BYTES // row_bytes)


def _search_with_numpy(queries: np.ndarray, gallery: Any, k: int, max_norm: float | None) -> _Candidates:
    """All candidates that float32 cannot exclude from the k nearest."""
    single, count = queries.astype(np.float32), len(queries)
    errors = _rounding_errors(queries)
    chosen, largest, limits = _Candidates.empty(), 0.0, np.full(count, -np.inf)
    rows = _rows_of_tile(gallery, count, copied=False)
    for start, tile, norm in _tiles(gallery, max_norm, rows):
        largest = max(largest, norm)
        for first in range(0, count, QUERIES_AT_A_TIME):
            part = slice(first, first + QUERIES_AT_A_TIME)
            scores = single[part] @ tile.T
            lowest = np.maximum(limits[part], _lower_bound_of_best(scores, k) - errors[part] * largest)
            chosen = chosen.join(_reaching(scores, lowest, first, start))
        limits = chosen.kth_scores(count, k) - errors * largest
        chosen = chosen.take(chosen.scores >= limits[chosen.rows])
        if len(chosen.rows) > count * k + MOST_TIES:
            chosen = chosen.rescore(queries, gallery)
            chosen = chosen.take(chosen.rank() < k)
    return chosen


def _rounding_errors(queries: np.ndarray) -> np.ndarray:
    """Largest difference in float32 between two equal scores of a query, for gallery rows of norm 1: ``[Q]``."""
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    return 2 * (queries.shape[1] + 4) * _EPSILON * norms


def _lower_bound_of_best(scores: np.ndarray, k: int) -> np.ndarray:
    """A lower bound ``[Q]`` of the k largest of the scores ``[Q, T]``; -inf if there are fewer than k."""
    blocks = max(BLOCKS * k, 1024)
    size = scores.shape[1] // blocks
    if size < 1:
        if scores.shape[1] < k:
            return np.full(len(scores), -np.inf)
        return np.partition(scores, -k, axis=1)[:, -k].astype(np.float64)
    # Blocks with strides, so that the maxima of all are computed at once.
    maxima = scores[:, : size * blocks].reshape(len(scores), size, blocks).max(axis=1)
    return np.partition(maxima, -k, axis=1)[:, -k].astype(np.float64)


def _reaching(scores: np.ndarray, limits: np.ndarray, first: int, start: int) -> _Candidates:
    """The candidates whose scores ``[Q, T]`` reach the limit of their query. ``first``: the index of the first query;
    ``start``: that of the first candidate."""
    rounded = np.nextafter(limits.astype(np.float32), np.float32(-np.inf))  # lower, if rounding changes it
    places = np.flatnonzero(scores >= rounded[:, None])
    rows, columns = np.divmod(places, scores.shape[1])
    return _Candidates(rows + first, columns + start, scores.reshape(-1)[places].astype(np.float64))


def _search_on_devices(
    queries: np.ndarray, gallery: Any, k: int, max_norm: float | None, devices: Sequence[jax.Device]
) -> _Candidates:
    """The candidates with the ``k + MARGIN`` largest scores in float32."""
    mesh = Mesh(np.asarray(devices), ("devices",))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("devices",), ()))
    rows = _rows_of_tile(gallery, len(queries), copied=True)
    rows = -(-min(rows, len(gallery)) // len(devices)) * len(devices)
    wanted = min(k + MARGIN, len(gallery))
    chosen = _Candidates.empty()
    parts = range(0, len(queries), QUERIES_AT_A_TIME)
    single = [
        jax.device_put(np.asarray(queries[f : f + QUERIES_AT_A_TIME], np.float32), everywhere) for f in parts
    ]
    for start, tile, _ in _tiles(gallery, max_norm, rows):
        # The last tile is padded, so that one program serves all.
        on_devices = jax.device_put(np.pad(tile, ((0, rows - len(tile)), (0, 0))), split)
        for first, part in zip(parts, single, strict=True):
            best = _top_of_tile(part, on_devices, len(tile), k=min(wanted, rows), parts=len(devices))
            scores, indices = (np.asarray(x) for x in best)
            places = np.broadcast_to(np.arange(first, first + len(scores))[:, None], scores.shape)
            best = _Candidates(places.ravel(), indices.ravel() + start, scores.ravel().astype(np.float64))
            chosen = chosen.join(best.take(np.isfinite(best.scores)))
        chosen = chosen.take(chosen.rank() < wanted)
    return chosen


@functools.partial(jax.jit, static_argnames=("k", "parts"))
def _top_of_tile(queries, tile, count, *, k, parts):
    """``(scores, indices)`` ``[Q, k]`` of the largest products with the first ``count`` rows of a ``tile [T, D]``
    that is split over ``parts`` devices. Each device chooses from its own part; then the chosen are merged."""
    products = jnp.matmul(queries, tile.T, precision="highest")
    products = jnp.where((jnp.arange(len(tile)) < count)[None], products, -jnp.inf)
    products = products.reshape(len(queries), parts, -1)  # the parts of the devices
    scores, places = jax.lax.top_k(products, min(k, products.shape[-1]))
    indices = places + products.shape[-1] * jnp.arange(parts)[None, :, None]
    # In the order of devices and thus of indices: of equal scores the first is taken.
    scores, order = jax.lax.top_k(scores.reshape(len(queries), -1), k)
    return scores, jnp.take_along_axis(indices.reshape(len(queries), -1), order, axis=1)
