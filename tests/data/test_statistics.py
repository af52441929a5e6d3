"""What is counted in a split, and what counts as conspicuous."""

import numpy as np

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.statistics import describe, shared_contents


def source_of(values, captions, labels=(0, 1, 1, -1), group=None):
    """Images of one colour except for the first pixel, and recordings of ``values`` samples."""
    n = len(values)
    image = np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (n, 3, 3, 1)).copy()
    image[:, 0, 0] += 1
    audio, mask = np.full((n, 40), 500, np.int16), np.arange(40) < np.array(values)[:, None]
    arrays = {"image": image, "audio": audio, "audio_mask": mask, "caption": np.array(captions, object)}
    arrays["label"] = np.array(labels, np.int32)
    if group is not None:
        arrays["group"] = np.array(group)
    return ArraySource(arrays, class_names=("cat", "dog"))


def test_counts_lengths_and_classes():
    source = source_of([3, 5, 5, 7], ["one", "two words", "and three words", "x"], group=[0, 1, 1, -1])
    found = describe(source, sample_rate=10, progress=False)
    assert (found.examples, found.pictures) == (4, 3)
    assert found.counts == {"text": 4, "image": 4, "audio": 4}
    assert found.classes == {"dog": 2, "cat": 1, "unknown": 1}
    assert found.words["text"].tolist() == [1, 2, 3, 1]
    assert found.seconds["audio"].tolist() == [0.3, 0.5, 0.5, 0.7]
    assert found.conspicuous == []


def test_a_part_is_read_and_all_is_counted():
    source = source_of(range(1, 21), [f"text {k}" for k in range(20)], labels=[0] * 20)
    found = describe(source, limit=5, progress=False)
    assert found.read.tolist() == [0, 4, 9, 14, 19] and len(found.words["text"]) == 5
    assert found.examples == 20 and found.classes == {"cat": 20}


def test_equal_contents_within_and_between_splits():
    train = describe(source_of([3, 5, 5, 7], ["a", "b", "b", "c"]), progress=False)
    test = describe(source_of([7, 9, 11, 3], ["d", "c", "e", "f"]), progress=False)
    shared = shared_contents({"train": train, "test": test})
    assert shared["text"] == {"train": 1, "train and test": 1}
    assert shared["image"] == {"train": 1, "train and test": 2}


def test_a_picture_with_several_captions_counts_once():
    source = source_of([3, 3, 7, 3], ["a", "a", "b", "c"], group=[0, 0, 1, 2])
    source.arrays["image"][:2] = 9
    source.arrays["image"][3] = 9
    found = describe(source, progress=False)
    # Pictures 0 and 2 are equal; the two captions of picture 0 are equal, and are two.
    assert shared_contents({"train": found}) == {
        "text": {"train": 1}, "image": {"train": 1}, "audio": {"train": 1},
    }  # fmt: skip
    assert sorted(found.digests["image"].values()) == [1, 2]
    assert [(item.index, item.modality) for item in found.conspicuous] == [(0, "image"), (3, "image")]


def test_what_is_conspicuous():
    source = source_of([3, 5, 5, 7], ["fine", "!?", "fine too", "fine three"])
    source.arrays["image"][2] = 9
    source.arrays["audio"][3] = 1
    source.arrays["audio_mask"][0] = False
    found = {
        (item.index, item.modality): item.reason for item in describe(source, progress=False).conspicuous
    }
    assert found == {
        (0, "audio"): "the recording is empty",
        (1, "text"): "the caption '!?' has no letter and no digit",
        (2, "image"): "all pixels are 9",
        (3, "audio"): "the recording is silent",
    }
