"""Several data sets as one."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.mixture import MixtureSource
from xmodal_jax.data.mixture_splits import part_names, split_options
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.order import MixtureOrder, share_out, take_turns
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import Source, first_of_group
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import choose_batch_size, open_splits, prepare_source
from xmodal_jax.data.views import Subset, keep_labelled

SIDE = 4


def words(start, n):
    return np.array([f"caption {start + k}" for k in range(n)], object)


def pictures(n=20, **more):
    """Images with captions; the first pixel is the number of the example."""
    image = np.ones((n, SIDE, SIDE, 3), np.uint8)
    image[:, 0, 0, 0] = np.arange(n)
    return ArraySource(
        {"image": image, "caption": words(0, n), **more}, ("cat", "dog") if "label" in more else None
    )


def sounds(n=10, class_names=("dog", "owl"), **more):
    """Recordings with captions; the first sample is the number of the example."""
    audio = np.ones((n, 50), np.int16)
    audio[:, 0] = np.arange(n)
    fields = {"audio": audio, "audio_mask": np.ones((n, 50), bool), "caption": words(1000, n), **more}
    return ArraySource(fields, class_names if "label" in more else None)


def mix(*parts, **options):
    return MixtureSource({f"part{k}": part for k, part in enumerate(parts)}, **options)


class Unread(Source):
    """A source whose examples must not be read beyond the first."""

    modalities, class_names = ("image",), ("owl", "bee")

    def __len__(self):
        return 7

    def batch(self, indices):
        assert list(indices) == [0]
        return {
            "image": np.zeros((1, SIDE, SIDE, 3), np.uint8),
            "label": np.zeros(1, np.int32),
            "present": {},
        }

    def presence(self, indices=None):
        return {"image": self._resolve_indices(indices) != 2}

    def class_labels(self, indices=None):
        return (self._resolve_indices(indices) % 2).astype(np.int32)

    def caption_batch(self, indices):
        raise AssertionError("a part without text has no captions to read")


def test_batches_hold_all_fields_of_all_parts():
    """In any order, with blanks where a part has no such modality."""
    mixture = mix(pictures(), sounds())
    assert len(mixture) == 30 and mixture.modalities == ("text", "image", "audio")
    batch = mixture.batch(np.array([25, 3, 20, 0]))
    assert set(batch) == {"image", "audio", "audio_mask", "caption", "present"}
    assert batch["caption"].tolist() == ["caption 1005", "caption 3", "caption 1000", "caption 0"]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 3, 0, 0] and batch["audio"][:, 0].tolist() == [
        5,
        0,
        0,
        0,
    ]
    assert batch["image"].any(axis=(1, 2, 3)).tolist() == [False, True, False, True]
    assert batch["audio_mask"].any(axis=1).tolist() == [True, False, True, False]
    assert batch["image"].dtype == np.uint8 and batch["audio"].dtype == np.int16
    present = {"text": [True] * 4, "image": [False, True, False, True], "audio": [True, False, True, False]}
    assert {m: mask.tolist() for m, mask in batch["present"].items()} == present
    one = mixture.batch(np.array([3]))  # also where only one part is read
    assert {k: v.shape[1:] for k, v in one.items() if k != "present"} == {
        k: v.shape[1:] for k, v in batch.items() if k != "present"
    }


def test_facts_are_known_without_reading_the_parts():
    labels = np.array([1, 0] * 5, np.int32)
    mixture = mix(sounds(label=labels), Unread())
    present = mixture.presence(np.array([0, 12, 11]))
    assert {m: mask.tolist() for m, mask in present.items()} == {
        "text": [True, False, False], "image": [False, False, True], "audio": [True, False, False]
    }  # fmt: skip
    assert mixture.class_names == ("dog", "owl", "bee")
    assert mixture.class_labels(np.array([0, 1, 10, 11])).tolist() == [1, 0, 1, 2]  # "owl" is one class
    assert mixture.caption_batch(np.array([10, 0]))["caption"].tolist() == ["", "caption 1000"]
    assert mixture.parts(np.array([9, 10])).tolist() == [0, 1] and mixture.part_weights == (10, 7)


def test_classes_of_one_name_are_one_class():
    own = np.array([0, 1, -1, 0], np.int32)
    mixture = mix(pictures(4, label=own), sounds(4, label=own), pictures(4))
    assert mixture.class_names == ("cat", "dog", "owl")
    expected = [0, 1, -1, 0, 1, 2, -1, 1, -1, -1, -1, -1]
    assert mixture.class_labels().tolist() == expected
    assert mixture.batch(np.arange(12))["label"].tolist() == expected
    assert len(keep_labelled(mixture)) == 6
    unnamed = ArraySource({"image": pictures(3).arrays["image"], "label": np.array([4, 2, 0], np.int32)})
    numbered = mix(unnamed, sounds(2, ("2", "x"), label=np.array([0, 1], np.int32)))
    assert numbered.class_names == ("0", "1", "2", "3", "4", "x")
    assert numbered.class_labels().tolist() == [4, 2, 0, 2, 5]
    assert mix(unnamed, sounds(2)).class_names is None


def test_another_split_has_the_classes_and_fields_of_the_training_split():
    train = mix(pictures(4, label=np.zeros(4, np.int32)), sounds(4))
    test = MixtureSource({"birds": sounds(3, label=np.array([0, 1, -1], np.int32))}, fields=train.fields)
    assert test.class_labels().tolist() == [1, -1, -1]  # "owl" is no class in training
    batch = test.batch(np.arange(3))
    assert set(batch) == set(train.batch(np.arange(2))) and not batch["present"]["image"].any()


def test_examples_of_different_parts_show_different_pictures():
    group = np.array([0, 0, 7, 7, -1], np.int32)
    mixture = mix(pictures(5, group=group), sounds(2), pictures(5, group=group))
    groups = mixture.groups()
    assert groups.tolist() == mixture.batch(np.arange(12))["group"].tolist()
    assert first_of_group(mixture).tolist() == [0, 0, 2, 2, 4, 5, 6, 7, 7, 9, 9, 11]
    assert (groups[[4, 5, 6, 11]] == -1).all() and len(set(groups[groups >= 0])) == 4
    assert mix(pictures(5), sounds(2)).groups() is None


def test_sizes_that_differ_are_refused_with_both_names():
    small = ArraySource({"image": np.ones((3, 2, 2, 3), np.uint8)})
    with pytest.raises(
        ValueError, match=r"'image'.* uint8 \[4, 4, 3\] in part0 and uint8 \[2, 2, 3\] in part1.*--image"
    ):
        mix(pictures(), small)
    floats = ArraySource({"audio": np.zeros((3, 50), np.float32), "audio_mask": np.ones((3, 50), bool)})
    with pytest.raises(ValueError, match=r"'audio'.* int16 \[50\] in part0 and float32 \[50\] in part1"):
        mix(sounds(), floats)
    tokens = ArraySource({"text": np.ones((3, 5), np.int32), "text_mask": np.ones((3, 5), bool)})
    with pytest.raises(ValueError, match="in part0 and .* in part1"):
        mix(sounds(), tokens)
    with pytest.raises(ValueError, match="the training examples and .* in test"):
        MixtureSource({"test": small}, fields=mix(pictures(), sounds()).fields)
    with pytest.raises(ValueError, match="above 0 for each of the 2 data sets, part0, part1; got 1, 0"):
        mix(pictures(), sounds(), weights=(1, 0))
    with pytest.raises(ValueError, match="got 1$"):
        mix(pictures(), sounds(), weights=(1,))


def test_measured_quantities_are_numbers_of_any_type():
    """A mask is that of the parts which have one: all values of the others are there."""
    whole = ArraySource({"vector": np.arange(6).reshape(2, 3), "caption": words(0, 2)})
    masked = ArraySource({"vector": np.ones((2, 3), np.float32), "vector_mask": np.eye(3, dtype=bool)[:2]})
    mixture = mix(whole, masked, pictures(1))
    for batch in (mixture.batch(np.arange(5)), mixture.measured_batch(np.arange(5))):
        assert batch["vector"].tolist() == [[0, 1, 2], [3, 4, 5], [1, 1, 1], [1, 1, 1], [0, 0, 0]]
        assert batch["vector_mask"].astype(int).tolist() == [[1] * 3, [1] * 3, [1, 0, 0], [0, 1, 0], [0] * 3]
        assert batch["present"]["vector"].tolist() == [True] * 4 + [False]
    whole.feature_names, masked.feature_names = {"vector": ("a", "b", "c")}, {"vector": ("b", "a", "c")}
    with pytest.raises(ValueError, match="'vector' is a, b, c in part0 and b, a, c in part1"):
        mix(whole, masked)
    with pytest.raises(ValueError, match="the training examples and b, a, c in test"):
        MixtureSource({"test": masked}, fields=mix(whole, pictures()).fields)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 9), min_size=4, max_size=4),
    seed=st.integers(0, 2**64 - 1),
)
def test_an_epoch_holds_of_each_part_its_share(sizes, weights, seed):
    """And each part goes through all of its examples before one comes again."""
    parts = np.repeat(np.arange(len(sizes)), sizes)
    order = MixtureOrder(parts, weights[: len(sizes)], seed)
    counts = order.settings["shares"]
    exact = sum(sizes) * np.array(weights[: len(sizes)]) / sum(weights[: len(sizes)])
    assert (np.abs(counts - exact) < 1 + (exact < 1)).all()
    stream = order(np.arange(5 * sum(counts)))
    for epoch in stream.reshape(5, -1):
        assert np.bincount(parts[epoch], minlength=len(sizes)).tolist() == counts
    for part, size in enumerate(sizes):
        own = stream[parts[stream] == part]
        whole = own[: len(own) // size * size].reshape(-1, size)
        assert (np.sort(whole, axis=1) == np.flatnonzero(parts == part)).all()


@given(
    sizes=st.lists(st.integers(30, 80), min_size=2, max_size=3),
    weights=st.lists(st.floats(1, 3), min_size=3, max_size=3),
    batch_size=st.integers(1, 12),
)
def test_every_batch_is_mixed_and_holds_no_example_twice(sizes, weights, batch_size):
    parts, weights = np.repeat(np.arange(len(sizes)), sizes), np.array(weights[: len(sizes)])
    order = MixtureOrder(parts, weights, 3, batch_size)
    batches = order(np.arange(60 * batch_size)).reshape(-1, batch_size)
    assert all(len(set(batch.tolist())) == batch_size for batch in batches)
    for part, weight in enumerate(weights / weights.sum()):
        assert (np.abs((parts[batches] == part).sum(axis=1) - weight * batch_size) < 3).all()


def test_turns_and_shares():
    assert take_turns([4, 2]).tolist() == [0, 1, 0, 0, 1, 0] and take_turns([0, 2]).tolist() == [1, 1]
    assert share_out(10, [2, 1]).tolist() == [7, 3] and share_out(30, [0.1, 0.2]).tolist() == [10, 20]
    assert share_out(5, [1000, 1, 0]).tolist() == [5, 1, 0]


def test_parts_are_shuffled_differently_and_in_each_epoch():
    order = MixtureOrder(np.repeat([0, 1], 50), (1, 1), 0)
    stream = order(np.arange(300))
    streams = [stream[stream < 50], stream[stream >= 50] - 50]
    epochs = {tuple(epoch) for own in streams for epoch in own.reshape(3, 50)}
    assert len(epochs) == 6
    np.testing.assert_array_equal(MixtureOrder(np.repeat([0, 1], 50), (1, 1), 0)(np.arange(300)), stream)
    assert (MixtureOrder(np.repeat([0, 1], 50), (1, 1), 1)(np.arange(300)) != stream).any()


def loader(source, **options):
    return Loader(source, **{"batch_size": 6, "seed": 5, "workers": 0, **options})


def test_any_number_of_hosts_reads_the_same_stream():
    mixture = mix(pictures(), sounds(), weights=(2, 1))
    for step in (0, 7):
        whole = loader(mixture).fetch(step)
        halves = [loader(mixture, shard=(host, 2)).fetch(step) for host in (0, 1)]
        for name in ("image", "audio", "caption", "index"):
            np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole[name])
        assert whole["present"]["image"].sum() == 4


def test_it_resumes_at_the_saved_position():
    mixture = mix(pictures(), sounds(), weights=(2, 1))
    straight, stopped = loader(mixture), loader(mixture)
    expected = [next(straight)["caption"].tolist() for _ in range(9)]
    [next(stopped) for _ in range(4)]
    position = json.loads(json.dumps(stopped.position()))
    resumed = loader(mixture)
    resumed.restore(position)
    assert [next(resumed)["caption"].tolist() for _ in range(5)] == expected[4:]
    with pytest.raises(ValueError, match=r"shares was \[20, 10\], is \[15, 15\]"):
        loader(mix(pictures(), sounds(), weights=(1, 1))).restore(position)
    with pytest.raises(ValueError, match="parts was None"):
        loader(mixture).restore(loader(Subset(pictures(30), np.arange(30))).position())


@pytest.mark.parametrize(
    "view", [lambda m: m, lambda m: Subset(m, np.arange(30)[::-1])], ids=["whole", "subset"]
)
def test_the_stream_is_the_same_in_memory(view):
    """Where batches are drawn on the device by the numbers of the examples."""
    mixture = view(mix(pictures(), sounds(), weights=(1, 3)))
    read, transform = prepare_source(mixture, None, limit=2**20)
    assert read is not mixture and transform is None
    for step in range(6):
        batch, expected = loader(read).fetch(step), loader(mixture).fetch(step)
        np.testing.assert_array_equal(batch["caption"], expected["caption"])
    rows = loader(read).index_batches(0, 6)
    np.testing.assert_array_equal(read.arrays["caption"][rows][5], expected["caption"])


def test_the_batch_is_reduced_to_what_the_parts_have():
    notes = BadExamples()
    assert choose_batch_size(30, mix(pictures(), sounds()), notes) == 30
    assert (
        choose_batch_size(30, mix(pictures(), sounds(), weights=(1, 1)), notes) == 16
    )  # 10 sounds for half of it
    assert "part of the mixture" in notes.summary()


PARTS = ("shapes?modalities=text,image", "shapes?modalities=text,image_sketch&data_seed=1")


def test_splits_of_a_mixture():
    splits = open_splits(PARTS, DataOptions(train_size=120), BadExamples())
    assert splits.train.modalities == ("text", "image", "image_sketch") and len(splits.train) == 216
    assert set(splits.tests) == {
        "test",
        "shapes_1",
        "shapes_1_compositions",
        "shapes_2",
        "shapes_2_compositions",
    }
    assert not splits.tests["shapes_1"].presence()["image_sketch"].any()
    for joint in (splits.validation, splits.tests["test"]):
        presence = joint.presence(np.arange(10))  # the first examples are of both parts
        assert presence["text"].all() and presence["image"].sum() == presence["image_sketch"].sum() == 5
    captions = [set(splits.train.caption_batch(np.arange(108) + k)["caption"]) for k in (0, 108)]
    assert len(captions[0] & captions[1]) < 30  # other scenes
    assert splits.train.factors(np.array([0, 200]))["shape"].shape == (2, 3)
    assert splits.train.class_prompts[0][0] == "a red circle" and splits.train.meanings(np.array([200]))[0]


def test_tests_of_another_data_set():
    """It has pairs of modalities that no part has."""
    options = DataOptions(train_size=60, test_data="shapes?modalities=image,image_sketch")
    for spec in (PARTS, PARTS[0]):
        splits = open_splits(spec, options, BadExamples())
        assert set(splits.tests) == {"test", "compositions"}
        presence = splits.tests["test"].presence()
        assert presence["image"].all() and not presence["text"].any()
    assert splits.train.modalities == ("text", "image") and splits.train.parts() is None
    with pytest.raises(ValueError, match=r"shapes has image_sketch, none of .* \(text, image\)"):
        open_splits(PARTS[0], DataOptions(test_data="shapes?modalities=image_sketch"), BadExamples())


def test_options_of_one_data_set():
    spec, options = split_options(
        "folder:a?b.d/c?modalities=text,image&train_size=7&check_files=true", DataOptions()
    )
    assert spec == "folder:a?b.d/c" and options.modalities == ("text", "image")
    assert options.train_size == 7 and options.check_files is True
    plain = "parquet:crawl/part-?.parquet"
    assert split_options(plain, DataOptions()) == (plain, DataOptions())
    for text, message in {
        "shapes?colour=red": "'colour' is no option", "shapes?progress=true": "no option of one data set",
        "shapes?train_size=x": "a whole number is expected, got 'x'", "shapes?missing=7": "missing must lie in 0..1",
        "shapes?max_seconds=x": "a number is expected", "shapes?check_files=1": "True or False",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            split_options(text, DataOptions())


def test_names_of_parts():
    specs = ("folder:sets/flickr.v2/", "shapes?data_seed=1", "shapes", "npz:a/train.npz", "poly:tfds:mnist")
    assert part_names(specs) == ["flickr", "shapes_1", "shapes_2", "npz", "tfds_mnist"]


def test_sample_rates_that_differ_are_refused(tmp_path):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", audio=np.zeros((40, 50), np.int16), label=np.arange(40) % 2)
    specs = (f"npz:{tmp_path}/a.npz?sample_rate=8000", f"npz:{tmp_path}/b.npz")
    with pytest.raises(ValueError, match="sample-rate.*8000 Hz in a, 16000 Hz in b"):
        open_splits(specs, DataOptions(), BadExamples())
