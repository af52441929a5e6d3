"""Exact nearest neighbours in tiles, beside a full sort in float64."""

import jax
import numpy as np
import pytest

from xmodal_jax.inference import neighbours
from xmodal_jax.inference.neighbours import nearest


def full_sort(queries, gallery, k):
    """The k nearest by sorting all float64 products of rows, equal ones by their index."""
    products = (queries[:, None].astype(np.float64) * gallery[None].astype(np.float64)).sum(axis=2)
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, order, axis=1), order


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(queries, gallery, k, **options):
    scores, indices = nearest(queries, gallery, k, **options)
    expected, order = full_sort(queries, np.asarray(gallery), k)
    assert scores.dtype == np.float32 and indices.dtype == np.int64 and scores.shape == (len(queries), k)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(scores, expected.astype(np.float32))


PLACES = {"numpy": lambda: None, "one device": lambda: jax.devices()[:1], "eight devices": jax.devices}


@pytest.mark.parametrize("devices", PLACES.values(), ids=list(PLACES))
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 97, 7), (17, 1009, 13), (1, 4001, 5)])
def test_it_is_the_full_sort(sizes, devices, monkeypatch):
    monkeypatch.setattr(neighbours, "TILE_BYTES", 4 * 13 * 211)  # several tiles, the last one shorter
    monkeypatch.setattr(neighbours, "QUERIES_AT_A_TIME", 5)
    (queries, candidates, dim) = sizes
    for k in {1, min(7, candidates), min(89, candidates), min(candidates, 997)}:
        check(normal((queries, dim)), normal((candidates, dim), 1), k, devices=devices())


@pytest.mark.parametrize("devices", PLACES.values(), ids=list(PLACES))
def test_of_equal_candidates_the_first_comes_first(devices, monkeypatch):
    monkeypatch.setattr(neighbours, "TILE_BYTES", 4 * 64 * 53)
    rng = np.random.default_rng(0)
    few = normal((5, 64))
    check(few[:3] + 0.1, few[rng.integers(0, 5, 131)], 11, devices=devices())
    check(few, np.repeat(few[:1], 31, axis=0), 31, devices=devices())


def test_many_equal_candidates_are_told_apart_in_float64(monkeypatch):
    monkeypatch.setattr(neighbours, "TILE_BYTES", 4 * 64 * 500)
    monkeypatch.setattr(neighbours, "MOST_TIES", 10)
    vector = normal((1, 64))
    gallery = np.repeat(vector, 2003, axis=0)
    gallery[1501, 3] *= np.float32(1 + 2e-7)  # a difference below the rounding of a sum of 64 terms
    check(np.concatenate([vector, -vector, normal((3, 64), 1)]), gallery, 5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_scores_that_differ_by_rounding_are_in_the_right_order(scale):
    vector = normal((1, 256))
    gallery = (vector + 1e-6 * normal((997, 256), 2)) * np.float32(scale)
    check(vector, gallery, 10)


def test_a_norm_that_is_known_gives_the_same(monkeypatch):
    monkeypatch.setattr(neighbours, "TILE_BYTES", 4 * 8 * 101)
    gallery = normal((1009, 8))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    check(gallery[:5], gallery, 10, max_norm=1.0)
    assert nearest(gallery[:5], gallery, 1, max_norm=1.0).indices[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_gallery_may_lie_in_a_file_or_in_half_precision_or_on_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "TILE_BYTES", 4 * 16 * 31)
    queries, gallery = normal((3, 16)), normal((211, 16), 1)
    np.save(tmp_path / "gallery.npy", gallery)
    check(queries, np.load(tmp_path / "gallery.npy", mmap_mode="r"), 9)
    check(queries, gallery.astype(np.float16), 9)
    check(queries.astype(np.float64), gallery.astype(np.float32), 9)
    check(queries, jax.numpy.asarray(gallery), 9, devices=jax.devices()[:2])
    assert nearest(queries[:0], gallery, 2).indices.shape == (0, 2)


def test_mistakes_are_explained():
    gallery = normal((7, 4))
    with pytest.raises(ValueError, match=r"need the same D, got \(2, 3\) and \(7, 4\)"):
        nearest(normal((2, 3)), gallery, 1)
    for k in (0, 8):
        with pytest.raises(ValueError, match=rf"k must lie in 1..7, the number of candidates, got {k}"):
            nearest(gallery, gallery, k)
    for shape in ((0, 4), (7, 0), (0, 0)):
        with pytest.raises(ValueError, match=r"the gallery \[N, D\] is empty: its shape is"):
            nearest(np.zeros((2, shape[1])), np.zeros(shape), 1)
    gallery[5, 1] = np.nan
    with pytest.raises(ValueError, match="row 5 of the gallery holds NaN"):
        nearest(normal((2, 4)), gallery, 1)
    with pytest.raises(ValueError, match="the queries hold NaN"):
        nearest(gallery, normal((2, 4)), 1)
