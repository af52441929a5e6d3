"""Nearest neighbours among many embeddings: exact, beside NumPy's matrix product and argpartition, and approximate.

    python -m benchmarks.neighbours
    python -m benchmarks.neighbours --count 200000 --queries 1 100
    python -m benchmarks.neighbours --approximate --gallery embeddings.npy --held-out 1000

Random unit vectors, the 10 nearest of each query. Both return the same indices, nearest first. Medians of rounds in
which both take turns, after warming up. Memory is the most that the process takes beyond the gallery while each runs,
in a process of its own.

--approximate compares the search in a graph (`NeighbourGraph`) with the exact one: seconds, and recall, the share of
the k nearest that it finds. The gallery is the file of --gallery, of which --held-out rows are the queries; without a
file it is unit vectors around centres, because random directions have no neighbourhoods that a graph could follow.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
import tyro

from benchmarks.turns import in_turn
from xmodal_jax.inference.approximate import NeighbourGraph
from xmodal_jax.inference.neighbours import nearest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Sizes."""

    count: int = 1_000_000
    """Embeddings in the gallery."""
    dim: int = 512
    """Dimensions of the embeddings."""
    queries: tuple[int, ...] = (1, 10, 100)
    """Numbers of queries at a time."""
    k: int = 10
    """Neighbours of each query."""
    rounds: int = 7
    """Timings of each."""
    memory_of: str | None = None
    """For the process that measures memory: "ours", "numpy" or "none", with the gallery in the file of --gallery."""
    gallery: pathlib.Path | None = None
    """A .npy file; None: random unit vectors."""
    approximate: bool = False
    """Whether to compare the approximate search with the exact one."""
    held_out: int = 1000
    """With --approximate: rows of the gallery that are the queries and are not searched."""
    centres: int = 1000
    """With --approximate and no file: number of centres that the vectors lie around."""


def with_numpy(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and indices of the k nearest, by all products at once."""
    products = queries @ gallery.T
    indices = np.argpartition(products, -k, axis=1)[:, -k:]
    scores = np.take_along_axis(products, indices, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)


def ours(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return nearest(queries, gallery, k, max_norm=1.001)


SEARCHES = {"ours": ours, "numpy": with_numpy}


def unit_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    """Random directions, float32 ``[count, dim]``."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dim), np.float32)
    for part in np.array_split(vectors, max(1, count // 10_000)):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def clustered_vectors(count: int, dim: int, centres: int) -> np.ndarray:
    """Unit vectors around random centres, float32 ``[count, dim]``: the cosine of two of one centre is about 0.5."""
    centre = unit_vectors(centres, dim, seed=2)
    vectors = unit_vectors(count, dim, seed=3)
    chosen = np.random.default_rng(4).integers(0, centres, count)
    for rows in np.array_split(np.arange(count), max(1, count // 10_000)):
        part = vectors[rows] + centre[chosen[rows]]
        vectors[rows] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def compare_with_graph(arguments: Arguments) -> None:
    """Prints the times of exact and approximate search, the share of neighbours that the latter finds, and what the
    graph costs."""
    vectors = (
        clustered_vectors(arguments.count + arguments.held_out, arguments.dim, arguments.centres)
        if arguments.gallery is None
        else np.load(arguments.gallery)
    )
    order = np.random.default_rng(5).permutation(len(vectors))
    held_out, gallery = vectors[order[: arguments.held_out]], vectors[order[arguments.held_out :]]
    start = time.perf_counter()
    graph = NeighbourGraph.build(gallery)
    built = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        graph.save(pathlib.Path(folder) / "graph.faiss")
        size = (pathlib.Path(folder) / "graph.faiss").stat().st_size
    print(
        f"{gallery.shape[0]:,} x {gallery.shape[1]} float32 ({gallery.nbytes / GIB:.2f} GiB), k {arguments.k}; "
        f"the graph: {built:.0f} s, {size / GIB:.2f} GiB\n"
    )
    exact = ours(held_out, gallery, arguments.k)[1]
    print("| queries | exact, s | approximate, s | ratio | recall of all held-out queries |")
    print("|---|---|---|---|---|")
    found = graph.nearest(held_out, arguments.k).indices
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
    for count in arguments.queries:
        queries = held_out[:count]

        def search_exactly(queries=queries) -> float:
            start = time.perf_counter()
            ours(queries, gallery, arguments.k)
            return time.perf_counter() - start

        def search_graph(queries=queries) -> float:
            start = time.perf_counter()
            graph.nearest(queries, arguments.k)
            return time.perf_counter() - start

        search_exactly(), search_graph()  # warms up
        seconds = in_turn({"exact": search_exactly, "graph": search_graph}, arguments.rounds)
        ratio = seconds["graph"] / seconds["exact"]
        print(f"| {count} | {seconds['exact']:.4f} | {seconds['graph']:.4f} | {ratio:.3f} | {recall:.2%} |")


def peak_memory(arguments: Arguments, path: pathlib.Path, name: str, queries: int) -> int:
    """The most bytes that a new process takes which reads the gallery and searches it once by ``name``."""
    command = [sys.executable, "-m", "benchmarks.neighbours", "--gallery", str(path), "--memory-of", name]
    command += ["--queries", str(queries), "--k", str(arguments.k)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure_memory(arguments: Arguments) -> None:
    """Prints the most bytes that this process has taken, after a search."""
    gallery = np.load(arguments.gallery)
    queries = unit_vectors(arguments.queries[0], gallery.shape[1], seed=1)
    if arguments.memory_of in SEARCHES:
        SEARCHES[arguments.memory_of](queries, gallery, arguments.k)
    status = pathlib.Path("/proc/self/status").read_text()
    # Not `getrusage`, which counts what the process that started this one takes.
    print(1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1]))


def timed(name: str, queries: np.ndarray, gallery: np.ndarray, k: int):
    """A function that searches once and returns the seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        SEARCHES[name](queries, gallery, k)
        return time.perf_counter() - start

    return run


def main(arguments: Arguments) -> None:
    gallery = (
        unit_vectors(arguments.count, arguments.dim, seed=0)
        if arguments.gallery is None
        else np.load(arguments.gallery)
    )
    print(
        f"{gallery.shape[0]:,} x {gallery.shape[1]} float32 ({gallery.nbytes / GIB:.2f} GiB), k {arguments.k}\n"
    )
    print("| queries | ours, s | NumPy, s | ratio | equal indices | memory, ours | memory, NumPy |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "gallery.npy"
        np.save(path, gallery)
        for count in arguments.queries:
            queries = unit_vectors(count, gallery.shape[1], seed=1)
            runs = {name: timed(name, queries, gallery, arguments.k) for name in SEARCHES}
            (_, a), (_, b) = (SEARCHES[name](queries, gallery, arguments.k) for name in SEARCHES)  # warms up
            seconds = in_turn(runs, arguments.rounds)
            nothing = peak_memory(arguments, path, "none", count)
            extra = [(peak_memory(arguments, path, name, count) - nothing) / GIB for name in SEARCHES]
            ratio = seconds["ours"] / seconds["numpy"]
            print(
                f"| {count} | {seconds['ours']:.3f} | {seconds['numpy']:.3f} | {ratio:.2f} | {(a == b).mean():.1%} "
                f"| {extra[0]:.2f} GiB | {extra[1]:.2f} GiB |"
            )


if __name__ == "__main__":
    chosen = tyro.cli(Arguments, description=__doc__)
    if chosen.approximate:
        compare_with_graph(chosen)
    else:
        measure_memory(chosen) if chosen.memory_of else main(chosen)
