"""Views of a class on backgrounds of their own."""

import subprocess
import sys

import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.shapes.textures import texture
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.sources.poly import PolySource, overlay
from xmodal_jax.data.splits import open_splits, prepare_source

N = 211


def digits(n=N, classes=7, side=(11, 13), seed=0):
    """Each image has its number in its top left corner, in eight black or white pixels."""
    r = np.random.default_rng(seed)
    images = r.integers(0, 256, (n, *side, 1), dtype=np.uint8)
    images[:, 0, :8, 0] = 255 * (np.arange(n)[:, None] >> np.arange(8) & 1)
    return {"image": images, "label": r.integers(0, classes, n).astype(np.int32)}


def poly(n=N, **options):
    names = tuple("abcdefg")
    return PolySource(ArraySource(digits(n), names), **{"progress": False, **options})


def numbers(images, backgrounds):
    """The number in each corner: a white pixel is the background's inverse, a black one is the background."""
    seen, under = (x[:, 0, :8].astype(int) for x in (images, backgrounds))
    white, black = (seen == 255 - under).all(axis=-1), (seen == under).all(axis=-1)
    assert (white != black).all()
    return white @ (1 << np.arange(8))


def test_overlay_by_hand():
    background = np.array([[[10, 200, 128]], [[255, 0, 77]]], np.uint8)
    gray = np.array([[0], [255]], np.uint8)
    np.testing.assert_array_equal(overlay(gray, background), [[[10, 200, 128]], [[0, 255, 178]]])
    # 51 / 255 = 0.2: 0.2 * 245 + 0.8 * 10 = 57; 0.2 * 55 + 0.8 * 200 = 171; 0.2 * 127 + 0.8 * 128 = 127.8.
    np.testing.assert_array_equal(overlay(np.full((1, 1), 51, np.uint8), background[:1]), [[[57, 171, 128]]])


def test_overlay_is_the_formula_for_all_values():
    gray = np.arange(256, dtype=np.uint8)[:, None]
    under = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1)
    got = overlay(np.broadcast_to(gray, (256, 256)), np.broadcast_to(under, (256, 256, 3)))
    d, bg = gray[..., None] / 255, under.astype(float)
    np.testing.assert_array_equal(got, np.rint(d * (255 - bg) + (1 - d) * bg))


def test_is_a_source_of_named_images():
    source = poly(views=3)
    assert isinstance(source, Source) and len(source) == N and source.class_names == tuple("abcdefg")
    assert source.modalities == ("image_0", "image_1", "image_2")
    batch = source.batch(np.array([5, 2, 5]))
    assert set(batch) == {*source.modalities, "label"} and batch["label"].dtype == np.int32
    assert all(batch[m].shape == (3, 11, 13, 3) and batch[m].dtype == np.uint8 for m in source.modalities)
    with pytest.raises(IndexError, match=r"0\.\.210"):
        source.batch([N])


def test_an_example_is_the_same_alone_in_a_batch_and_among_fewer_views():
    whole = poly(views=5).batch(np.arange(N))
    for i in (0, 97, N - 1):
        for m, image in poly(views=3, modalities=("image_2", "image_0")).batch([i]).items():
            np.testing.assert_array_equal(image[0], whole[m][i])


def test_all_views_show_the_class_and_different_examples_of_it():
    source, labels = poly(views=4), digits()["label"]
    batch = source.batch(np.arange(N))
    np.testing.assert_array_equal(batch["label"], labels)
    seen = {}
    for m in source.modalities:
        seen[m] = numbers(batch[m], source.backgrounds(m, np.arange(N)))
        np.testing.assert_array_equal(seen[m], source.source_examples(m, np.arange(N)))
        np.testing.assert_array_equal(labels[seen[m]], labels)
    np.testing.assert_array_equal(seen["image_0"], np.arange(N))
    for m in ("image_1", "image_2", "image_3"):
        assert (seen[m] != np.arange(N)).all()
    # Drawn apart: two modalities agree as often as two random members of a class of about 30 do.
    agree = np.mean(seen["image_1"] == seen["image_2"])
    assert agree < 0.1


def test_every_other_member_of_the_class_is_drawn_alike():
    n = 4000
    arrays = {"image": np.zeros((n, 2, 2, 1), np.uint8), "label": (np.arange(n) % (n // 4)).astype(np.int32)}
    source = PolySource(ArraySource(arrays), views=2, progress=False)
    shown = source.source_examples("image_1", np.arange(n))
    away = (shown - np.arange(n)) % n // (n // 4)  # classes of four: 1, 2 or 3 members further on
    count = np.bincount(away, minlength=4)
    assert count[0] == 0 and np.abs(count[1:] - n / 3).max() < 5 * np.sqrt(n * 2 / 9)


def test_a_class_of_one_shows_itself():
    arrays = {"image": digits(3)["image"], "label": np.array([4, 9, 4], np.int32)}
    source = PolySource(ArraySource(arrays), views=2, progress=False)
    assert source.source_examples("image_1", [0, 1, 2]).tolist() == [2, 1, 0]


def test_backgrounds_are_crops_from_all_over_the_modality_s_texture():
    source = poly(views=2)
    crops = source.backgrounds("image_1", np.arange(N))
    whole = texture(1, 160)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (11, 13), axis=(0, 1))
    places = []
    for crop in crops[:20]:
        found = np.argwhere((windows == np.moveaxis(crop, -1, 0)).all(axis=(2, 3, 4)))
        assert len(found) == 1
        places.append(found[0])
    assert np.std(places, axis=0).min() > 25  # uniform over 0..150: 43
    assert not np.array_equal(crops, source.backgrounds("image_0", np.arange(N)))


def test_large_images_have_larger_textures():
    arrays = {"image": np.zeros((3, 100, 90, 3), np.uint8), "label": np.zeros(3, np.int32)}
    batch = PolySource(ArraySource(arrays), views=1, progress=False).batch(np.arange(3))
    assert batch["image_0"].shape == (3, 100, 90, 3)
    # Black images are their backgrounds, which are as varied as those of small ones.
    assert len(np.unique(batch["image_0"][0].reshape(-1, 3), axis=0)) > 3


def test_colours_are_averaged_to_gray():
    image = np.array([[[[0, 1, 1], [255, 255, 254]]]], np.uint8)
    source = PolySource(
        ArraySource({"image": image, "label": np.zeros(1, np.int32)}), views=1, progress=False
    )
    expected = overlay(np.array([[[1, 255]]], np.uint8), source.backgrounds("image_0", [0]))
    np.testing.assert_array_equal(source.batch([0])["image_0"], expected)


def test_seed_and_split_change_the_draws_but_not_the_textures():
    one = poly(views=2)
    for other in (poly(views=2, seed=1), poly(views=2, split="test")):
        assert not np.array_equal(
            one.source_examples("image_1", np.arange(N)), other.source_examples("image_1", np.arange(N))
        )
        first, second = (
            np.unique(s.backgrounds("image_1", np.arange(N)).reshape(-1, 3), axis=0) for s in (one, other)
        )
        common = len(set(map(tuple, first)) & set(map(tuple, second)))
        assert common > 0.8 * len(first)


@pytest.mark.parametrize(
    "change,message",
    [
        (
            {"label": np.where(np.arange(N) == 3, -1, 0).astype(np.int32)},
            r"1 of 211 have none \(-1\).*number 3",
        ),
        ({"label": None}, "add a field label"),
        ({"image": None, "audio": np.zeros((N, 2), np.int16)}, "has audio"),
        ({"present": {"image": np.arange(N) != 5}}, "1 have none, the first is number 5"),
    ],
)
def test_what_the_source_lacks_is_explained(change, message):
    arrays = {k: v for k, v in {**digits(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        PolySource(ArraySource(arrays), progress=False)


@pytest.mark.parametrize(
    "options", [{"views": 0}, {"seed": -1}, {"modalities": ("image_5",)}, {"modalities": ()}]
)
def test_errors_name_the_argument(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        poly(**options)


def store(folder, train=N, test=37):
    names = np.array([f"class {k}" for k in range(7)])
    for split, n, seed in (("train", train, 0), ("test", test, 1)):
        np.savez(folder / f"{split}.npz", class_names=names, **digits(n, seed=seed))
    return f"poly:npz:{folder}"


def test_splits_of_poly_from_arrays(tmp_path):
    spec = store(tmp_path)
    options = DataOptions(views=3, progress=False)
    assert len(open_source(spec, "test", options)) == 37
    splits = open_splits(spec, options, BadExamples())
    assert list(splits.tests) == ["test"] and (len(splits.train), len(splits.validation)) == (190, 21)
    assert all(s.modalities == ("image_0", "image_1", "image_2") for s in (*splits[:2], splits.tests["test"]))
    assert splits.train.class_names[6] == "class 6"
    # What validation shows, training never does, in any view.
    shown = []
    for part in splits[:2]:
        batch, every = part.batch(np.arange(len(part))), np.arange(len(part))
        found = [numbers(batch[m], part.backgrounds(m, every)) for m in part.modalities]
        shown.append(set(np.concatenate(found)))
    assert not shown[0] & shown[1] and len(shown[0]) == 190
    kept, _ = prepare_source(splits.train, None, limit=2**30)
    assert kept.modalities == splits.train.modalities
    some = np.array([3, 1])
    np.testing.assert_array_equal(kept.batch(some)["image_2"], splits.train.batch(some)["image_2"])


def test_train_size_takes_some_training_examples_at_random(tmp_path):
    spec = store(tmp_path)
    source = open_source(spec, "train", DataOptions(train_size=50, views=2, progress=False))
    assert len(source) == 50
    every = np.arange(50)
    batch = source.batch(every)
    first, second = (numbers(batch[m], source.backgrounds(m, every)) for m in ("image_0", "image_1"))
    assert len(set(first)) == 50 and first.max() > 150 and set(second) <= set(first)
    assert len(open_source(spec, "test", DataOptions(train_size=20, progress=False))) == 37
    assert len(open_source(spec, "train", DataOptions(train_size=212, progress=False))) == N


def test_modalities_of_poly_can_be_chosen(tmp_path):
    options = DataOptions(views=4, modalities=("image_3", "image_1"), progress=False)
    assert open_source(store(tmp_path), "train", options).modalities == ("image_1", "image_3")
    with pytest.raises(ValueError, match="image_0, image_1; got"):
        open_source(store(tmp_path), "train", DataOptions(views=2, modalities=("image_2",), progress=False))


def test_scenes_of_several_objects_have_no_class():
    with pytest.raises(ValueError, match="label them or leave them out"):
        open_source("poly:shapes", "test", DataOptions(progress=False))


@pytest.mark.parametrize("spec", ["poly:", "poly:poly:npz:x", "poly:spoken:x.txt"])
def test_poly_of_what_has_no_images(spec):
    with pytest.raises(ValueError, match="poly:tfds:mnist"):
        open_source(spec)


def test_poly_in_gray_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 colour channels"):
        open_source(store(tmp_path), "train", DataOptions(channels=1))


def test_does_not_load_jax():
    code = "import sys, xmodal_jax.data.sources.poly; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
