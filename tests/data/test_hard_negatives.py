"""Batches of similar examples, and captions with one fact changed."""

import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.hard_negatives import HardNegatives, find_similar_groups, with_changed_captions
from xmodal_jax.data.mixture import MixtureSource
from xmodal_jax.data.order import ExampleOrder, GroupedOrder, SimilarGroups, make_order, word_count_vectors
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.shapes.caption_changes import AddChangedCaptions
from xmodal_jax.data.shapes.grammar import parse
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import IncompleteSource


def scenes(size=211, modalities=("text", "image")):
    return SpokenShapes(size=size, modalities=modalities, image_size=16)


def captions_of(values):
    return ArraySource(
        {"caption": np.array(values, object), "image": np.zeros((len(values), 4, 4, 3), np.uint8)}
    )


def shared_words(captions, indices, size):
    """The mean number of words that two captions of a group share."""
    words = [set(str(captions[i]).split()) for i in indices]
    groups = [words[start : start + size] for start in range(0, len(words) - size + 1, size)]
    return np.mean([len(a & b) for group in groups for a in group for b in group if a is not b])


@pytest.mark.parametrize(
    "n,size,batch_size", [(211, 8, 16), (7, 3, 2), (64, 16, 64), (13, 20, 4), (97, 5, 97)]
)
def test_each_epoch_holds_each_example_once_and_no_batch_one_twice(n, size, batch_size):
    vectors = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    order = GroupedOrder(SimilarGroups(vectors, size), seed=3, batch_size=batch_size)
    stream = order(np.arange(4 * n))
    for epoch in stream.reshape(4, n):
        assert sorted(epoch) == list(range(n))
    for start in range(0, 4 * n - batch_size + 1, batch_size):
        assert len(set(stream[start : start + batch_size])) == batch_size


def test_equal_examples_can_be_divided_too():
    order = GroupedOrder(SimilarGroups(np.zeros((50, 2), np.float32), 4), seed=0, batch_size=10)
    assert sorted(order(np.arange(50))) == list(range(50))


def test_the_order_of_additions_does_not_change_the_groups():
    """Hosts whose processors add up an inner product in different orders draw the same groups."""
    vectors = np.random.default_rng(0).normal(size=(2_000, 64)).astype(np.float32)
    shuffled = np.ascontiguousarray(vectors[:, np.random.default_rng(1).permutation(64)])
    order, shuffled_order = (
        GroupedOrder(SimilarGroups(each, 16), seed=0, batch_size=128) for each in (vectors, shuffled)
    )
    np.testing.assert_array_equal(order(np.arange(2_000)), shuffled_order(np.arange(2_000)))


def test_similar_captions_stand_together():
    source = scenes(400)
    captions, groups = source.captions(), find_similar_groups(source, 8)
    together = shared_words(captions, GroupedOrder(groups, seed=0, batch_size=32)(np.arange(400)), 8)
    apart = shared_words(captions, ExampleOrder(400, 0, True)(np.arange(400)), 8)
    assert together > apart + 0.9


def test_cosines_of_word_count_vectors_are_about_those_of_counts_of_words():
    captions = ["red star", "Red ring", "a blue ring", "a star and a cross", "nothing alike here", ""]
    words = [caption.lower().split() for caption in captions]
    vocabulary = sorted({word for each in words for word in each})
    expected = np.array([[each.count(word) for word in vocabulary] for each in words], np.float64)
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    vectors = word_count_vectors(captions, dimensions=4096)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=0.08)
    assert not word_count_vectors(["", "-"], 8).any()


def test_a_stream_of_groups_is_resumed_and_shared_by_hosts():
    source = scenes(50)
    groups = find_similar_groups(source, 4)
    make = lambda **options: Loader(source, batch_size=8, seed=1, workers=0, similar_groups=groups, **options)
    loader = make()
    expected = [next(loader)["caption"].tolist() for _ in range(9)]
    halves = [make(shard=(host, 2)) for host in range(2)]
    joined = [sum((next(half)["caption"].tolist() for half in halves), []) for _ in range(9)]
    assert joined == expected
    resumed = make()
    resumed.restore({**loader.position(), "step": 5})
    assert next(resumed)["caption"].tolist() == expected[5]
    other_groups = find_similar_groups(source, 5)
    for groups, message in ((other_groups, "group was 4, is 5"), (None, "group was 4, is None")):
        with pytest.raises(ValueError, match=f"{message}.*--negatives.group-size; 1"):
            Loader(source, batch_size=8, seed=1, similar_groups=groups).restore(loader.position())


def test_where_groups_make_no_sense_batches_are_random():
    assert find_similar_groups(scenes(20), 1) is None
    assert find_similar_groups(scenes(20, ("image",)), 4) is None
    few = captions_of(["a photo of a shoe", "a photo of a shirt"] * 5)
    assert find_similar_groups(few, 4) is None and find_similar_groups(
        captions_of([f"a {k}" for k in range(9)]), 4
    )
    mixture = MixtureSource({"a": scenes(20), "b": scenes(20)})
    assert find_similar_groups(mixture, 4) is None
    with pytest.raises(ValueError, match="shuffled and no mixture"):
        make_order(scenes(20), 0, False, 4, SimilarGroups(np.zeros((20, 2), np.float32), 4))
    with pytest.raises(ValueError, match="at least two"):
        SimilarGroups(np.zeros((20, 2), np.float32), 1)
    for options in ({"group_size": 0}, {"changed_captions": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            HardNegatives(**options)


def test_a_line_says_why_there_are_no_hard_negatives():
    few, mixture = captions_of(["a shoe", "a shirt"] * 5), MixtureSource({"a": scenes(20), "b": scenes(20)})
    prepare = lambda batch: batch
    for source, count, expected in (
        (few, 3, ["2 of the 10 captions are distinct", "--negatives.changed-captions"]),
        (few, 0, ["--negatives.group-size"]),
        (mixture, 3, ["the parts of a mixture take turns"]),
        (scenes(20), 3, []),
        (scenes(20, ("image", "video")), 0, []),
    ):
        bad_examples = BadExamples()
        HardNegatives(4, count).prepare(source, prepare, bad_examples)
        assert len(bad_examples.remarks) == len(expected)
        said = " ".join(bad_examples.remarks)
        assert all(words in said for words in expected), said


def test_missing_texts_do_not_count_as_equal_captions():
    captions = np.array([f"a {k}" for k in range(4)] + [""] * 16, object)
    assert find_similar_groups(captions_of(captions), 4) is not None
    assert find_similar_groups(captions_of([""] * 4), 2) is None


@pytest.mark.parametrize("modalities", [("text", "image"), ("image", "video")])
def test_captions_are_read_without_drawing_scenes(modalities, monkeypatch):
    """Of whole scenes, and of those that lack modalities: the same as in the batches."""
    source, indices = scenes(40, modalities), np.array([3, 0, 39])
    expected = [source, IncompleteSource(source, fraction=0.5, seed=0)]
    of_batches = [[view.batch(rows).get("caption") for rows in (indices, np.arange(40))] for view in expected]
    batch = SpokenShapes.batch

    def batch_of_one(self, indices):
        assert len(indices) == 1, "scenes are drawn"  # one, whose fields tell that no modality is missing
        return batch(self, indices)

    monkeypatch.setattr(SpokenShapes, "batch", batch_of_one)
    for view, (some, every) in zip(expected, of_batches, strict=True):
        if some is None:
            assert view.caption_batch(indices) == {}
            continue
        assert view.caption_batch(indices)["caption"].tolist() == some.tolist()
        assert view.caption_batch(np.arange(40))["caption"].tolist() == every.tolist()


@pytest.mark.parametrize("motion", [False, True])
def test_a_changed_caption_is_wrong_and_could_be_right_elsewhere(motion):
    source = scenes(120, ("text", "video") if motion else ("text", "image"))
    captions = source.captions()
    add = AddChangedCaptions(3, motion=motion)
    changed = add({"caption": captions})["caption_changed"]
    assert changed.shape == (120, 3)
    vocabulary = {word for caption in scenes(4000, source.modalities).captions() for word in caption.split()}
    same_words = 0
    for caption, others in zip(captions, changed, strict=True):
        meaning = parse(caption)
        for other in others:
            assert parse(other) != meaning, (caption, other)
            assert set(other.split()) <= vocabulary, other
        same_words += sorted(others[1].split()) == sorted(caption.split())
    assert same_words > 20  # only their order tells them apart
    again = add({"caption": captions[50:60]})["caption_changed"]
    assert again.tolist() == changed[50:60].tolist()  # whatever the batch


def test_other_captions_are_not_changed():
    other = "a photo of a cat"
    assert AddChangedCaptions(2)({"caption": np.array([other, ""], object)})["caption_changed"].tolist() == [
        [other, other],
        ["", ""],
    ]
    source, prepare = captions_of([other]), lambda batch: batch
    assert with_changed_captions(source, prepare, 2) is prepare
    assert with_changed_captions(scenes(), prepare, 0) is prepare
    assert with_changed_captions(scenes(5, ("image",)), prepare, 2) is prepare
    with_changed = with_changed_captions(scenes(), prepare, 2)(scenes().batch(np.arange(3)))
    assert with_changed["caption_changed"].shape == (3, 2)
