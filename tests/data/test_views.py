import numpy as np
import pytest

from xmodal_jax.data.arrays import ArraySource
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.problems import Problems
from xmodal_jax.data.splits import captions_of, make_tokenizer, open_splits, prepare, text_length
from xmodal_jax.data.text import Tokenize
from xmodal_jax.data.views import Subset, hold_out, in_memory


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


def test_in_memory_transforms_once_or_refuses_by_size():
    calls = []

    def transform(batch):
        calls.append(1)
        return {**batch, "twice": 2 * batch["label"]}

    kept = in_memory(source(), transform, limit=10_000, drop=("caption",), progress=False)
    np.testing.assert_array_equal(kept.batch(np.array([3, 4]))["twice"], [6, 8])
    assert "caption" not in kept.arrays and calls == [1]
    assert in_memory(source(), transform, limit=100, progress=False) is None


def test_what_a_model_would_do_every_time_is_done_once_where_the_result_fits():
    once = lambda batch: {**batch, "label": 2 * batch["label"]}
    kept, transform = prepare(source(), None, limit=10_000, once=once)
    assert transform is None and kept.modalities == ("text",) and kept.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(kept.batch(np.array([3, 4]))["label"], [6, 8])
    plain = source()
    assert prepare(plain, None, limit=10, once=once) == (plain, None)


def test_splits_of_the_embedded_data_set():
    options = DataOptions(train_size=40, modalities=("text", "image"), progress=False)
    splits = open_splits("shapes", options, Problems(), validation=300)
    assert len(splits.validation) == 4 and len(splits.train) == 36
    assert set(splits.tests) == {"test", "compositions"}  # no speech, so no unseen voices
    captions = captions_of(splits.train)
    tokenizer = make_tokenizer("word", captions)
    tokenize = Tokenize(tokenizer, text_length(tokenizer, captions))
    loaded, transform = prepare(splits.train, tokenize, limit=2**30)
    assert transform is None and loaded.arrays["text"].shape == (36, tokenize.max_length)
    streamed, transform = prepare(splits.train, tokenize, limit=10)
    assert transform is tokenize and streamed is splits.train
