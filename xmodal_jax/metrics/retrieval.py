"""Scores of retrieval: recall at k, ranks and mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.checks import check_dimensions
from xmodal_jax.core.similarity import l2_normalize

CHUNK_ELEMENTS = 2**25
"""Number of similarities computed at a time when no ``chunk`` is given (128 MiB)."""


def retrieval(
    queries,
    gallery,
    *,
    targets=None,
    query_ids=None,
    gallery_ids=None,
    ks: Sequence[int] = (1, 5, 10),
    normalize: bool = True,
    chunk: int | None = None,
) -> dict[str, float]:
    """Scores of retrieving, for each query ``[Q, d]``, its correct items from the gallery ``[G, d]`` by similarity.

    Args:
      queries, gallery, targets, query_ids, gallery_ids, normalize, chunk: as for `ranks`, which also raises the errors.
      ks: the cut-offs of the recall.

    Returns:
      ``recall@k``, the fraction of queries with a correct item among the first k; ``median_rank`` and ``mean_rank``
      (from 1) of the first correct item; ``mrr``, the mean of ``1 / rank``.

    Example, images with five captions each (as in COCO)::

        retrieval(images, captions, query_ids=image_id, gallery_ids=caption_image_id)   # image to text
        retrieval(captions, images, query_ids=caption_image_id, gallery_ids=image_id)   # text to image
    """
    rank = ranks(
        queries,
        gallery,
        targets=targets,
        query_ids=query_ids,
        gallery_ids=gallery_ids,
        normalize=normalize,
        chunk=chunk,
    )
    return {f"recall@{k}": float(np.mean(rank <= k)) for k in ks} | {
        "median_rank": float(np.median(rank)),
        "mean_rank": float(np.mean(rank)),
        "mrr": float(np.mean(1.0 / rank)),
    }


def ranks(
    queries,
    gallery,
    *,
    targets=None,
    query_ids=None,
    gallery_ids=None,
    normalize: bool = True,
    chunk: int | None = None,
) -> np.ndarray:
    """The rank of each query's most similar correct item: 1 + the number of incorrect items at least as similar.

    A tie thus counts against the query, so that embeddings that are all equal have the worst score and not the best. So
    does a similarity that is not a number. Correct items do not compete with each other.

    Args:
      queries: ``[Q, d]``.
      gallery: ``[G, d]``.
      targets: the correct items of each query: ``int [Q]``, an index into the gallery, or ``bool [Q, G]``, True where
        an item is correct. By default item i is correct for query i.
      query_ids, gallery_ids: in place of ``targets``, ids ``int [Q]`` and ``int [G]``: the items with the same id as a
        query are correct.
      normalize: True ranks by cosine similarity, False by inner product.
      chunk: number of queries whose similarities are computed at a time; None: as many as give 2^25 similarities.
    Returns:
      ``int [Q]``.
    Raises:
      ValueError: shapes or targets do not fit, or a query has no correct item.
    """
    queries, gallery = jnp.asarray(queries), jnp.asarray(gallery)
    check_dimensions("ranks", queries=(queries, "queries dim"), gallery=(gallery, "items dim"))
    count, size = queries.shape[0], gallery.shape[0]
    if count == 0 or size == 0:
        raise ValueError(f"nothing to rank: {count} queries, {size} items in the gallery")
    # Query i has the correct items correct[i] (a row of booleans), or those j with item_ids[j] == correct[i].
    correct, item_ids, kind = _correct_items(count, size, targets, query_ids, gallery_ids)
    chunk = min(count, chunk or max(1, CHUNK_ELEMENTS // size))
    if normalize:
        gallery = l2_normalize(gallery)
    chunk_ranks = []
    for start in range(0, count, chunk):
        chunk_size = min(chunk, count - start)
        # The last chunk is padded, so that all chunks share a compiled program.
        rank, any_correct = _chunk_ranks(
            _repeat_last(queries[start : start + chunk], chunk - chunk_size),
            gallery,
            _repeat_last(correct[start : start + chunk], chunk - chunk_size),
            item_ids,
            matrix=kind == "matrix",
            normalize=normalize,
        )
        any_correct = np.asarray(any_correct)[:chunk_size]
        if not any_correct.all():
            raise ValueError(
                f"query {start + int(np.argmin(any_correct))} has no correct item in the gallery"
            )
        chunk_ranks.append(np.asarray(rank)[:chunk_size])
    return np.concatenate(chunk_ranks)


def mixed_retrieval(
    vectors, modalities, ids, *, ks: Sequence[int] = (1, 5), chunk: int | None = None
) -> dict[str, float]:
    """Scores of a search among the vectors of several modalities at once, by cosine similarity.

    Every vector is a query, and all others are its gallery: those of its own modality and those of the others. A
    modality gap costs recall here, because vectors of the query's own modality come first, whatever they mean.

    Args:
      vectors: ``[N, d]``, of all modalities one after the other.
      modalities: ``int [N]``, the modality of each vector.
      ids: ``int [N]``; the vectors with the same id as a query are correct. A query that has none is left out.
      ks: the cut-offs.
      chunk: number of queries whose similarities are computed at a time; None: as many as give 2^25 similarities.

    Returns:
      ``recall@k``, the fraction of queries with a correct vector among the first k (a tie counts against the query, as
      in `ranks`), and ``other_modality@k``, the fraction of the first k vectors that are not of the query's modality.

    Raises:
      ValueError: the numbers of vectors, modalities and ids differ, a cut-off exceeds the gallery, or no query has a
        correct vector.

    Example::

        vectors = np.concatenate([images, texts])  # a pair has the same id
        mixed_retrieval(vectors, np.repeat([0, 1], len(images)), np.tile(np.arange(len(images)), 2))["recall@1"]
    """
    modalities, ids = np.asarray(modalities), np.asarray(ids)
    check_dimensions(
        "mixed_retrieval", vectors=(vectors, "n dim"), modalities=(modalities, "n"), ids=(ids, "n")
    )
    if not 0 < min(ks) <= max(ks) < len(ids):
        raise ValueError(
            f"the cut-offs must lie in 1..{len(ids) - 1}, the size of the gallery, got {tuple(ks)}"
        )
    vectors = np.asarray(l2_normalize(jnp.asarray(vectors, jnp.float32)))
    query_ranks, others = (
        [],
        [],
    )  # of each query: its rank, and which of its first results are of another modality
    chunk = chunk or max(1, CHUNK_ELEMENTS // len(ids))
    for start in range(0, len(ids), chunk):
        rows = np.arange(start, min(start + chunk, len(ids)))
        itself = rows - start, rows  # the places of the queries themselves in the matrices [rows, N]
        similarity, correct = vectors[rows] @ vectors.T, ids[rows, None] == ids[None, :]
        correct[itself] = False
        # A similarity that is not a number counts against the query.
        similarity = np.where(np.isnan(similarity), np.where(correct, -np.inf, np.inf), similarity)
        similarity[itself] = -np.inf
        best = np.where(correct, similarity, -np.inf).max(axis=1, keepdims=True)
        at_least_as_similar = ~correct & (similarity >= best)
        at_least_as_similar[itself] = False
        rank = 1 + at_least_as_similar.sum(axis=1)
        query_ranks.append(rank[correct.any(axis=1)])
        first = np.argsort(-similarity, axis=1, kind="stable")[:, : max(ks)]
        others.append(modalities[first] != modalities[rows, None])
    rank, other = np.concatenate(query_ranks), np.concatenate(others)
    if not len(rank):
        raise ValueError("no two vectors have the same id, so that nothing is correct")
    recalls = {f"recall@{k}": float(np.mean(rank <= k)) for k in ks}
    return recalls | {f"other_modality@{k}": float(other[:, :k].mean()) for k in ks}


def _repeat_last(x, count):
    """``x [n, ...]`` with its last entry repeated ``count`` more times, ``[n + count, ...]``."""
    return np.pad(x, [(0, count)] + [(0, 0)] * (x.ndim - 1), mode="edge")


def _correct_items(count, size, targets, query_ids, gallery_ids):
    """``(targets, item_ids, kind)`` of ``count`` queries and ``size`` gallery items, checked; see `ranks`.

    kind "matrix": targets is bool ``[count, size]``, True for correct items. kinds "ids" and "index": targets is int
    ``[count]``, and the items whose entry of ``item_ids [size]`` equals the query's target are correct.
    """
    if (query_ids is None) != (gallery_ids is None):
        raise ValueError("query_ids and gallery_ids go together")
    if targets is not None and query_ids is not None:
        raise ValueError("give targets or ids, not both")
    if query_ids is not None:
        query_ids, gallery_ids = np.asarray(query_ids), np.asarray(gallery_ids)
        if query_ids.shape != (count,) or gallery_ids.shape != (size,):
            raise ValueError(
                f"ids {query_ids.shape} and {gallery_ids.shape} for {count} queries and {size} items"
            )
        return query_ids, gallery_ids, "ids"
    if targets is None:
        if count != size:
            raise ValueError(
                f"{count} queries and {size} items do not pair up one to one: give targets or ids"
            )
        targets = np.arange(count)
    targets, items = np.asarray(targets), np.arange(size)
    if targets.dtype == bool and targets.shape == (count, size):
        return targets, items, "matrix"
    if np.issubdtype(targets.dtype, np.integer) and targets.shape == (count,):
        if targets.min() < 0 or targets.max() >= size:
            raise ValueError(f"targets must index the {size} items of the gallery")
        return targets, items, "index"
    raise ValueError(
        f"targets must be int [{count}] or bool [{count}, {size}], got {targets.dtype} {list(targets.shape)}"
    )


@partial(jax.jit, static_argnames=("matrix", "normalize"))
def _chunk_ranks(queries, gallery, targets, item_ids, *, matrix, normalize):
    """``(rank, any_correct)`` of each query of a chunk: its rank, and whether it has a correct item at all.

    ``matrix``: whether ``targets`` is bool ``[queries, items]``. Otherwise it is int ``[queries]``, the id of the
    correct items among ``item_ids``.
    """
    if normalize:
        queries = l2_normalize(queries)
    # In full float32: at a device's lower default precision close similarities tie, and a tie counts against the query.
    similarity = jnp.matmul(queries, gallery.T, precision="highest", preferred_element_type=jnp.float32)
    correct = targets if matrix else targets[:, None] == item_ids[None, :]
    best = jnp.where(correct, similarity, -jnp.inf).max(axis=1, keepdims=True)
    # Not "similarity >= best": a similarity that is NaN must count against the query too.
    at_least_as_similar = ~correct & ~(similarity < best)
    return 1 + at_least_as_similar.sum(axis=1), correct.any(axis=1)
