"""Three images as the colour channels of one."""

import subprocess
import sys

import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.sources.digits import load_digits
from xmodal_jax.data.sources.stacked import StackedSource
from xmodal_jax.data.splits import open_splits

COUNT, CLASSES = 40, 4


def labelled(count=COUNT, seed=0):
    """Gray images, each of one value: its number."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 6, 1)).copy()
    return {
        "image": images,
        "label": np.random.default_rng(seed).integers(0, CLASSES, count).astype(np.int32),
    }


def stacked(split="train", **options):
    return StackedSource(ArraySource(labelled(), tuple("abcd")), split, **{"progress": False, **options})


def test_channels_show_the_images_that_are_drawn_and_the_label_is_their_mode():
    source, index = stacked(size=300), np.arange(300)
    assert isinstance(source, Source) and len(source) == 300 and source.modalities == ("image",)
    batch, shown = source.batch(index), source.source_images(index)
    assert batch["image"].shape == (300, 4, 6, 3) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"], np.broadcast_to(shown[:, None, None, :], (300, 4, 6, 3)))
    classes = labelled()["label"][shown]
    np.testing.assert_array_equal(batch["label"], classes @ [CLASSES**2, CLASSES, 1])
    np.testing.assert_array_equal(source.class_labels(index), batch["label"])
    names = [", ".join("abcd"[k] for k in triple) for triple in classes]
    assert [source.class_names[label] for label in batch["label"]] == names
    assert len(source.class_names) == CLASSES**3


def test_images_are_drawn_uniformly_and_independently():
    """Chi-square statistics of 40 images in each channel and of 16 pairs of classes, at 5 standard deviations."""
    count = 8000
    source = stacked(size=count)
    shown = source.source_images(np.arange(count))
    for channel in shown.T:
        observed = np.bincount(channel, minlength=COUNT)
        statistic = ((observed - count / COUNT) ** 2 / (count / COUNT)).sum()
        assert abs(statistic - (COUNT - 1)) < 5 * np.sqrt(2 * (COUNT - 1))
    modes = np.bincount(source.class_labels(), minlength=CLASSES**3)
    expected = count * source.mode_probabilities()
    assert abs(((modes - expected) ** 2 / expected).sum() - 63) < 5 * np.sqrt(2 * 63)


def test_mode_probabilities_by_hand():
    labels = labelled()["label"].tolist()
    frequency = [labels.count(k) / COUNT for k in range(CLASSES)]
    products = [a * b * c for a in frequency for b in frequency for c in frequency]
    np.testing.assert_allclose(stacked(size=1).mode_probabilities(), products)


def test_an_example_is_the_same_alone_and_in_a_batch():
    source = stacked(size=50)
    whole = source.batch(np.arange(50))
    np.testing.assert_array_equal(stacked(size=9).batch([7])["image"][0], whole["image"][7])


def test_seed_and_split_change_the_draws():
    draws = [
        stacked(split, size=50, seed=seed).source_images(np.arange(50))
        for split in ("train", "test") for seed in (0, 1)
    ]  # fmt: skip
    assert all((a != b).mean() > 0.8 for k, a in enumerate(draws) for b in draws[:k])


def test_without_names_the_classes_are_those_of_the_labels():
    source = StackedSource(ArraySource(labelled()), size=5, progress=False)
    assert source.class_names is None and source.classes == CLASSES


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(size=0), "size must be at least 1"),
        (dict(seed=-1), "seed must be at least 0 .--data-seed"),
        (dict(modalities=("text", "image")), "--modalities image"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        stacked(**options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": np.where(np.arange(COUNT) == 3, -1, 0).astype(np.int32)}, r"stacks.* 1 of 40 .*number 3"),
        ({"label": None}, "stacks need labels.*add a field label"),
        ({"image": None, "audio": np.zeros((COUNT, 2), np.int16)}, "stacks.* has audio"),
        ({"present": {"image": np.arange(COUNT) != 5}}, "stacks.* 1 have none, the first is number 5"),
    ],
)
def test_what_the_source_lacks_is_explained(change, message):
    arrays = {k: v for k, v in {**labelled(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        StackedSource(ArraySource(arrays), progress=False)


def test_indices_outside_are_refused():
    with pytest.raises(IndexError, match=r"0\.\.8"):
        stacked(size=9).batch([9])


def test_splits_of_stacked_digits():
    """The training size is that of the stacks, not of the digits; no digit is in two parts."""
    splits = open_splits("stacked:digits", DataOptions(train_size=700, progress=False), BadExamples())
    assert [len(x) for x in (splits.train, splits.validation, splits.tests["test"])] == [700, 600, 600]
    digits = [
        x.images.reshape(len(x.images), -1) for x in (splits.train, splits.validation, splits.tests["test"])
    ]
    assert sum(map(len, digits)) == 1797
    rows = [{tuple(row) for row in x.tolist()} for x in digits]
    assert not rows[0] & rows[1] and not rows[0] & rows[2]
    assert splits.train.class_names[123] == "one, two, three"


def test_digits():
    train, test = load_digits("train"), load_digits("test")
    assert (len(train), len(test), len(load_digits("all"))) == (1500, 297, 1797)
    batch = test.batch(np.arange(297))
    assert batch["image"].shape == (297, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["image"].max() == 255 and (np.bincount(batch["label"]) > 15).all()
    assert test.class_names[int(batch["label"][0])] in ("zero", "one", "two", "three", "four", "five", "six",
                                                         "seven", "eight", "nine")  # fmt: skip
    # A digit is like the others of its class: the nearest training image has its label.
    vectors, others = (x.arrays["image"][..., 0].reshape(len(x), -1).astype(float) for x in (test, train))
    nearest = ((vectors[:, None] - others[None]) ** 2).sum(axis=-1).argmin(axis=1)
    assert (train.arrays["label"][nearest] == batch["label"]).mean() > 0.95


def test_digits_in_other_sizes():
    options = DataOptions(image_size=16, channels=1)
    assert open_source("digits", "test", options).batch(np.array([0]))["image"].shape == (1, 16, 16, 1)
    with pytest.raises(ValueError, match="splits train, test, all"):
        open_source("digits", "validation")
    with pytest.raises(ValueError, match="--modalities image"):
        open_source("digits", "train", DataOptions(modalities=("text", "image")))


@pytest.mark.parametrize("spec", ["stacked:", "stacked:poly:npz:x", "stacked:spoken:x.txt"])
def test_stacks_of_what_has_no_images(spec):
    with pytest.raises(ValueError, match="stacked:"):
        open_source(spec)


def test_stacks_in_gray_are_refused():
    with pytest.raises(ValueError, match="3 colour channels"):
        open_source("stacked:digits", "train", DataOptions(channels=1))


def test_does_not_load_jax():
    code = "import sys, xmodal_jax.data.sources.stacked; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_more_modes_than_memory_can_hold_are_refused():
    source = ArraySource(labelled() | {"label": np.arange(COUNT, dtype=np.int32) * 10})
    with pytest.raises(ValueError, match="stacks of 391 classes have 59,776,471 modes, more than 10,000,000"):
        StackedSource(source, progress=False)
