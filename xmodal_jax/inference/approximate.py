"""Approximate search for nearest neighbours by a graph (HNSW), which is kept in the folder of an index.

The exact search (`neighbours.nearest`) reads every embedding. In the graph each embedding has links to near ones, which
a query follows: the time grows with the logarithm of the number of embeddings, and some neighbours may be missed. Those
that are found have the scores and the order of the exact search. The graph is that of Faiss (Malkov and Yashunin 2018,
"Efficient and robust approximate nearest neighbor search using hierarchical navigable small world graphs"), which is an
extra: ``pip install -r requirements-search.txt``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from xmodal_jax.inference.index_files import DamagedIndex, file_digest, read_sealed
from xmodal_jax.inference.neighbours import (
    MARGIN,
    Nearest,
    check_search,
    nearest,
    rank_candidates,
)
from xmodal_jax.train.checkpoint import seal
from xmodal_jax.train.run import write_atomic

VERSION = 1
LINKS = 32
"""Links of an embedding in the upper layers of the graph; in the lowest one it has twice as many."""
BUILD_BREADTH = 128
"""Candidates for the links of an embedding (efConstruction): more make a better graph, and its construction slower."""
SEARCH_BREADTH = 256
"""Candidates that a query keeps while it follows links (efSearch), at least: more find more of the neighbours, and take
longer."""
_ADDED_TOGETHER = 16_384


class NeighbourGraph:
    """A graph of embeddings ``[N, D]``, in which the nearest ones of a query are found without looking at all.

    ::

        graph = NeighbourGraph.build(vectors)  # takes minutes for a million
        graph.nearest(queries, 10)
    """

    def __init__(self, graph: Any, vectors: np.ndarray):
        """``graph``: an HNSW index of Faiss; ``vectors``: the embeddings that it was built of, float32 ``[N, D]``."""
        self._graph, self._vectors = graph, vectors

    @classmethod
    def build(cls, vectors: np.ndarray, *, progress: bool = False) -> NeighbourGraph:
        """Builds the graph of unit vectors float32 ``[N, D]``. Several threads build it, whose turns differ from run to
        run, so that two graphs of the same vectors are not equal.

        ``progress``: whether to show a progress bar.

        Raises:
          ValueError: Faiss is not installed.
        """
        faiss = _import_faiss()
        # In half precision, because candidates alone come from the graph: scores are computed from the vectors.
        graph = faiss.IndexHNSWSQ(
            vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT
        )
        graph.hnsw.efConstruction = BUILD_BREADTH
        graph.train(vectors[:1])  # half precision has nothing to learn, but Faiss asks for it
        with tqdm(total=len(vectors), desc="graph", unit="embedding", disable=not progress) as bar:
            for start in range(0, len(vectors), _ADDED_TOGETHER):
                part = np.ascontiguousarray(vectors[start : start + _ADDED_TOGETHER], np.float32)
                graph.add(part)
                bar.update(len(part))
        return cls(graph, vectors)

    def nearest(self, queries: Any, k: int, *, breadth: int = SEARCH_BREADTH) -> Nearest:
        """Finds for each query ``[Q, D]`` most of the k embeddings with the largest inner products.

        Args:
          queries: unit vectors.
          k: number of results of each query, at most N.
          breadth: number of candidates that a query keeps, see `SEARCH_BREADTH`; at least twice the number of results.

        Returns:
          As `neighbours.nearest`: what is found has its exact scores and order.

        Raises:
          ValueError: as `neighbours.nearest`.
        """
        queries, vectors = check_search(queries, self._vectors, k)
        faiss, wanted = _import_faiss(), min(k + MARGIN, len(vectors))
        options = faiss.SearchParametersHNSW(efSearch=max(breadth, 2 * wanted))
        single = np.ascontiguousarray(queries, np.float32)
        candidates = np.full((len(queries), wanted), -1, np.int64)
        if len(queries):
            _, candidates = self._graph.search(single, wanted, params=options)
        # No way through the graph leads to embeddings that are far from all others, such as copies of one another.
        is_complete = (candidates >= 0).sum(axis=1) >= k
        scores, indices = np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
        if is_complete.any():
            ranked = rank_candidates(queries[is_complete], vectors, candidates[is_complete], k)
            scores[is_complete], indices[is_complete] = ranked
        if not is_complete.all():
            scores[~is_complete], indices[~is_complete] = nearest(queries[~is_complete], vectors, k)
        return Nearest(scores, indices)

    def save(self, path: Path) -> None:
        """Writes the graph to a file, whole or not at all, and its digest and that of the embeddings beside it."""
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            _import_faiss().write_index(self._graph, str(part))
            content = {**_description(self._vectors), "sha256": file_digest(part)}
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        write_atomic(path.with_suffix(".json"), json.dumps(seal(content), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, vectors: np.ndarray) -> NeighbourGraph:
        """Reads the graph of ``vectors`` that `save` wrote.

        Raises:
          FileNotFoundError: there is none.
          DamagedIndex: the file differs from what was written, or is of other embeddings or of another version.
        """
        description = path.with_suffix(".json")
        if not (path.is_file() and description.is_file()):
            raise FileNotFoundError(f"there is no graph {path}")
        try:
            content = read_sealed(description)
        except DamagedIndex as error:
            raise DamagedIndex(f"{description} holds other content than was written") from error
        if content.pop("sha256", None) != file_digest(path):
            raise DamagedIndex(f"{path} holds other content than was written")
        if content != _description(vectors):
            raise DamagedIndex(f"{path} is of other embeddings than the index has now")
        try:
            return cls(_import_faiss().read_index(str(path)), vectors)
        except RuntimeError as error:  # of another version of Faiss
            raise DamagedIndex(f"{path} cannot be read: {error}") from error


def load_or_build_graph(
    vectors: np.ndarray, folder: Path | None, name: str, announce: Callable[[str], None] | None = None
) -> NeighbourGraph:
    """The graph of ``vectors`` in a folder, where it is built and kept if it is missing, damaged, or of other vectors.

    Args:
      vectors: unit vectors float32 ``[N, D]``.
      folder: of the index; None: the graph is not kept.
      name: tells the graphs of an index apart: the modality.
      announce: called with messages for the user, who then also sees a progress bar; None: there are none.

    Raises:
      ValueError: Faiss is not installed.
    """
    _import_faiss()  # before anything that takes time
    say, path = announce or (lambda text: None), None
    if folder is not None:
        path = folder / f"graph-{name}.faiss"
        try:
            return NeighbourGraph.load(path, vectors)
        except FileNotFoundError:
            pass
        except DamagedIndex as error:
            say(f"note: {error}; it is built again")
    say(f"building the graph of {len(vectors):,} embeddings of {name}, once")
    graph = NeighbourGraph.build(vectors, progress=announce is not None)
    if path is not None:
        try:
            graph.save(path)
        except (OSError, RuntimeError) as error:  # the latter from Faiss; the folder may be read-only
            say(f"note: the graph is not kept, as {path} cannot be written: {error}")
    return graph


def _description(vectors: np.ndarray) -> dict[str, Any]:
    """What a graph was built of and how, by which a file is recognised."""
    content = np.ascontiguousarray(vectors, np.float32).reshape(-1).view(np.uint8)
    return {
        "version": VERSION,
        "links": LINKS,
        "build_breadth": BUILD_BREADTH,
        "shape": list(vectors.shape),
        "embeddings": hashlib.sha256(content).hexdigest(),
    }


def _import_faiss() -> Any:
    """The package of the graph.

    Raises:
      ValueError: it is not installed.
    """
    if importlib.util.find_spec("faiss") is None:
        raise ValueError(
            "approximate search needs the package faiss-cpu: pip install -r requirements-search.txt (without it the "
            "search is exact)"
        )
    import faiss

    return faiss
