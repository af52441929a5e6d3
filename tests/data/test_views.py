import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import (
    choose_text_length,
    make_tokenizer,
    open_splits,
    prepare_source,
    read_captions,
)
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.data.views import Subset, TransformedSource, hold_out, keep_labelled, read_into_memory


def source(n=23):
    captions = np.array([f"number {k}" for k in range(n)], object)
    return ArraySource({"caption": captions, "label": np.arange(n, dtype=np.int32)}, tuple("abc"))


def test_a_subset_keeps_its_order():
    part = Subset(source(), np.array([7, 2, 19]))
    assert len(part) == 3 and part.modalities == ("text",) and part.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(part.batch(np.array([2, 0]))["label"], [19, 7])
    with pytest.raises(ValueError, match="at least one"):
        Subset(source(), np.array([], int))


def test_held_out_examples_are_apart_and_complete():
    rest, held = hold_out(source(), 5, seed=3)
    every = [part.batch(np.arange(len(part)))["label"] for part in (rest, held)]
    assert len(every[1]) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate(every)), np.arange(23))
    again = hold_out(source(), 5, seed=3)[1].batch(np.arange(5))["label"]
    np.testing.assert_array_equal(every[1], again)
    with pytest.raises(ValueError, match="hold out 23 of 23"):
        hold_out(source(), 23)


def with_labels(labels):
    rows = np.arange(len(labels), dtype=np.int32)
    return ArraySource({"row": rows, "label": np.asarray(labels, np.int32)}, ("a", "b"))


def test_labelled_keeps_the_examples_whose_class_is_known_in_their_order():
    part = keep_labelled(with_labels([1, -1, 0, 0, -1, 1, -7]))
    every = part.batch(np.arange(len(part)))
    np.testing.assert_array_equal(every["row"], [0, 2, 3, 5])
    np.testing.assert_array_equal(every["label"], [1, 0, 0, 1])
    assert part.class_names == ("a", "b") and keep_labelled(part) is part
    whole = with_labels([1, 0, 1])
    assert keep_labelled(whole) is whole


def test_labelled_needs_a_label():
    with pytest.raises(ValueError, match="needs the field 'label'"):
        keep_labelled(with_labels([-1, -1]))
    with pytest.raises(ValueError, match="needs the field 'label'"):
        keep_labelled(ArraySource({"row": np.arange(3)}))


class KnownClasses(Source):
    """A source that knows its classes without reading anything, and does not want to be read."""

    modalities, class_names = ("image",), None

    def __len__(self):
        return 6

    def batch(self, indices):
        raise AssertionError("no need to read an example to know its class")

    def class_labels(self, indices=None):
        return np.array([-1, 4, -1, 2, 3, -1])[self._resolve_indices(indices)]


def test_classes_are_not_read_where_the_source_can_tell_them():
    part = keep_labelled(KnownClasses())
    np.testing.assert_array_equal(part.indices, [1, 3, 4])
    # Also through views, at any depth.
    deep = keep_labelled(Subset(Subset(KnownClasses(), np.array([5, 4, 3, 2, 1])), np.array([4, 0, 1])))
    np.testing.assert_array_equal(deep.class_labels(np.arange(len(deep))), [4, 3])


def test_a_subset_tells_of_its_examples_what_its_source_does():
    scenes = SpokenShapes("test", size=50, modalities=("text",), seed=2)
    indices = np.array([31, 4, 18, 49, 0])
    part, rows = Subset(scenes, indices), np.array([3, 1, 1])
    asked = indices[rows]
    assert part.meanings(rows) == scenes.meanings(asked)
    np.testing.assert_array_equal(part.class_labels(rows), scenes.class_labels(asked))
    np.testing.assert_array_equal(part.captions(rows, 2), scenes.captions(asked, 2))
    found, expected = part.factors(rows), scenes.factors(asked)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert part.location(0) is None
    plain = Subset(source(), indices[:1] % 23)
    for name in ("meanings", "captions", "factors", "groups"):
        assert getattr(plain, name)() is None and getattr(plain, name)(np.array([0])) is None
    np.testing.assert_array_equal(plain.class_labels(), indices[:1] % 23)
    assert Subset(ArraySource({"image": np.zeros((3, 1, 1, 1), np.uint8)}), rows).class_labels() is None
    assert not hasattr(plain, "anything")


def test_scenes_of_one_object_have_its_shape_as_class():
    """KnownClasses without drawing, as batches hold it."""
    for split, size in (("train", 97), ("test", 61)):
        scenes = SpokenShapes(split, size=size, modalities=("image",), image_size=16, seed=5)
        labels = scenes.class_labels(np.arange(size))
        assert labels.dtype == np.int32 and (labels < 0).any()
        np.testing.assert_array_equal(labels, read_fields(scenes, ("label",))["label"])
        factors, part = scenes.factors(np.arange(size)), keep_labelled(scenes)
        alone = factors["num_objects"] == 1
        np.testing.assert_array_equal(part.indices, np.flatnonzero(alone))
        np.testing.assert_array_equal(labels[alone], factors["shape"][alone, 0])
        # A view that hides what the source can tell is read.
        np.testing.assert_array_equal(keep_labelled(TransformedSource(scenes, dict)).indices, part.indices)


def test_in_memory_transforms_once_or_refuses_by_size():
    calls = []

    def transform(batch):
        calls.append(1)
        return {**batch, "twice": 2 * batch["label"]}

    kept = read_into_memory(source(), transform, limit=10_000, drop=("caption",), progress=False)
    np.testing.assert_array_equal(kept.batch(np.array([3, 4]))["twice"], [6, 8])
    assert "caption" not in kept.arrays and calls == [1]
    assert read_into_memory(source(), transform, limit=100, progress=False) is None


def test_what_a_model_would_do_every_time_is_done_once_where_the_result_fits():
    once = lambda batch: {**batch, "label": 2 * batch["label"]}
    kept, transform = prepare_source(source(), None, limit=10_000, once=once)
    assert transform is None and kept.modalities == ("text",) and kept.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(kept.batch(np.array([3, 4]))["label"], [6, 8])
    plain = source()
    assert prepare_source(plain, None, limit=10, once=once) == (plain, None)


def test_splits_of_the_embedded_data_set():
    options = DataOptions(train_size=40, modalities=("text", "image"), progress=False)
    splits = open_splits("shapes", options, BadExamples(), validation=300)
    assert len(splits.validation) == 4 and len(splits.train) == 36
    assert set(splits.tests) == {"test", "compositions"}  # no speech, so no unseen voices
    captions = read_captions(splits.train)
    tokenizer = make_tokenizer("word", captions)
    tokenize = TokenizeTransform(tokenizer, choose_text_length(tokenizer, captions))
    loaded, transform = prepare_source(splits.train, tokenize, limit=2**30)
    assert transform is None and loaded.arrays["text"].shape == (36, tokenize.max_length)
    streamed, transform = prepare_source(splits.train, tokenize, limit=10)
    assert transform is tokenize and streamed is splits.train
