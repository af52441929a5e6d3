"""Approximate search in a graph beside the exact one, and the graph in the folder of an index."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest

from tests.inference.test_index import small_index
from xmodal_jax.inference import Index, NeighbourGraph, approximate
from xmodal_jax.inference.neighbours import nearest

COUNT, DIM = 2000, 24


@pytest.fixture(scope="module")
def faiss():
    return pytest.importorskip("faiss", reason="needs requirements-search.txt")


def clustered(count, seed):
    """Unit vectors around fifty centres, as embeddings of examples of fifty meanings lie."""
    centres = np.random.default_rng(0).standard_normal((50, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 50, count)] + 0.6 * rng.standard_normal((count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = clustered(COUNT, 1), clustered(100, 2)


@pytest.fixture(scope="module")
def graph(faiss):
    return NeighbourGraph.build(VECTORS)


def recall(found, expected):
    """The share of the expected neighbours that were found."""
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])


@pytest.mark.parametrize("k", [1, 10, 100])
def test_it_finds_nearly_all_neighbours(graph, k):
    exact = nearest(QUERIES, VECTORS, k)
    scores, indices = graph.nearest(QUERIES, k)
    assert scores.dtype == np.float32 and indices.dtype == np.int64 and indices.shape == (100, k)
    assert recall(indices, exact.indices) > 0.99
    # What is found has the scores of the exact search, nearest first.
    products = np.take_along_axis(QUERIES.astype(np.float64) @ VECTORS.T.astype(np.float64), indices, axis=1)
    np.testing.assert_allclose(scores, products, rtol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    found_all = (np.sort(indices) == np.sort(exact.indices)).all(axis=1)
    np.testing.assert_array_equal(scores[found_all], exact.scores[found_all])
    np.testing.assert_array_equal(indices[found_all], exact.indices[found_all])


def test_a_narrow_search_finds_fewer(graph, monkeypatch):
    exact = nearest(QUERIES, VECTORS, 1).indices
    monkeypatch.setattr(approximate, "MARGIN", 0)
    assert recall(graph.nearest(QUERIES, 1, breadth=1).indices, exact) <= recall(
        graph.nearest(QUERIES, 1, breadth=64).indices, exact
    )


def test_all_are_found_where_all_are_asked_for(faiss):
    """Also copies, and what no way leads to: there are always k results, each once."""
    vectors = np.concatenate([np.repeat(VECTORS[:1], 300, axis=0), VECTORS[1:40]])
    graph = NeighbourGraph.build(vectors)
    indices = graph.nearest(QUERIES[:7], len(vectors)).indices
    np.testing.assert_array_equal(np.sort(indices), np.tile(np.arange(len(vectors)), (7, 1)))
    np.testing.assert_array_equal(indices, nearest(QUERIES[:7], vectors, len(vectors)).indices)
    assert graph.nearest(QUERIES[:0], 3).indices.shape == (0, 3)


def test_mistakes_are_those_of_the_exact_search(graph):
    for queries, k in ((QUERIES[:, :5], 1), (QUERIES, 0), (QUERIES, COUNT + 1), (QUERIES * np.nan, 1)):
        messages = []
        for search in (lambda q, k: nearest(q, VECTORS, k), graph.nearest):
            with pytest.raises(ValueError) as error:
                search(queries, k)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def test_an_index_keeps_its_graph(faiss, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    small_index().save(folder)
    index = Index.load(folder)
    query = index.embeddings["text"][:3]
    said = []
    index.build_graph("text", announce=said.append)
    assert said == ["building the graph of 9 embeddings of text, once"]
    for k in (2, 20):  # two examples lack the text
        found = index.nearest(query, k, modality="text", approximate=True)
        exact = index.nearest(query, k, modality="text")
        np.testing.assert_array_equal(found.indices, exact.indices)
        np.testing.assert_array_equal(found.scores, exact.scores)
    assert not list(folder.glob("*.part"))
    monkeypatch.setattr(NeighbourGraph, "build", None)  # another program reads what this one has built
    again = Index.load(folder)
    again.build_graph("text", announce=said.append)
    assert len(said) == 1
    np.testing.assert_array_equal(
        again.nearest(query, 2, modality="text", approximate=True).indices, exact.indices[:, :2]
    )


def test_a_graph_of_another_index_or_a_damaged_one_is_built_again(faiss, tmp_path):
    folder = tmp_path / "index"
    index = small_index()
    index.save(folder)
    Index.load(folder).build_graph("image")
    reversed_images = {"image": index.embeddings["image"][::-1].copy()}
    other = dataclasses.replace(index, embeddings=reversed_images, present={})
    graphs = list(folder.glob("graph-*"))
    assert sorted(path.name for path in graphs) == ["graph-image.faiss", "graph-image.json"]
    other.save(tmp_path / "other")
    for path in graphs:
        shutil.copy(path, tmp_path / "other")
    said = []
    moved = Index.load(tmp_path / "other")
    moved.build_graph("image", announce=said.append)
    assert "is of other embeddings than the index has now; it is built again" in said[0]
    query = other.embeddings["image"][:2]
    assert moved.nearest(query, 1, approximate=True).indices.tolist() == [[0], [1]]
    for name in ("graph-image.faiss", "graph-image.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        said.clear()
        Index.load(folder).build_graph("image", announce=said.append)
        assert f"{name} holds other content than was written; it is built again" in said[0], said


def test_a_folder_that_cannot_be_written_keeps_no_graph(faiss, tmp_path, monkeypatch):
    small_index().save(tmp_path / "index")

    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(approximate.os, "replace", refuse)
    said, index = [], Index.load(tmp_path / "index")
    index.build_graph("image", announce=said.append)
    assert "the graph is not kept" in said[-1] and "Permission denied" in said[-1]
    assert not list((tmp_path / "index").glob("graph-*"))
    query = index.embeddings["image"][:2]
    assert index.nearest(query, 1, modality="image", approximate=True).indices.tolist() == [[0], [1]]


def test_an_index_in_memory_has_a_graph_too(faiss):
    index = small_index()
    query = index.embeddings["image"][:2]
    assert index.nearest(query, 1, modality="image", approximate=True).indices.tolist() == [[0], [1]]


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "faiss" else find(name, *a)
    )
    index = small_index()
    with pytest.raises(ValueError, match=r"faiss-cpu: pip install -r requirements-search.txt"):
        index.nearest(index.embeddings["image"], 1, modality="image", approximate=True)
    index.save(tmp_path / "index")
    with pytest.raises(ValueError, match="requirements-search.txt"):
        Index.load(tmp_path / "index").build_graph("image")
    assert json.loads((tmp_path / "index" / "index.json").read_text())  # nothing else was written
    assert not list((tmp_path / "index").glob("graph-*"))
