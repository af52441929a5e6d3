"""Arrays in memory, materialised sources and .npz / .npy files."""

import hashlib
import json

import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource, estimate_nbytes, load_npz, materialise, nbytes
from xmodal_jax.data.splits import read_captions


class Squares(Source):
    """Image i is filled with i; the caption is i*i."""

    modalities = ("text", "image")
    class_names = None

    def __len__(self):
        return 37

    def batch(self, indices):
        caption = np.empty(len(indices), object)
        caption[:] = [str(i * i) for i in indices]
        return {
            "image": np.broadcast_to(
                indices.astype(np.uint8)[:, None, None, None], (len(indices), 2, 3, 1)
            ).copy(),
            "caption": caption,
            "present": {"text": indices % 2 == 0, "image": np.ones(len(indices), bool)},
        }


@pytest.mark.parametrize("chunk", [1, 5, 37, 100])
def test_materialised_equals_the_source(chunk):
    held = materialise(Squares(), chunk=chunk, workers=3, progress=False)
    indices = np.array([36, 0, 11, 11])
    expected, got = Squares().batch(indices), held.batch(indices)
    assert held.modalities == ("text", "image") and len(held) == 37
    np.testing.assert_array_equal(got["image"], expected["image"])
    assert list(got["caption"]) == list(expected["caption"])
    np.testing.assert_array_equal(got["present"]["text"], expected["present"]["text"])
    assert materialise(held) is held
    characters = sum(len(str(i * i)) for i in range(37))
    assert held.nbytes == nbytes(held.arrays) == 37 * 6 + characters + 2 * 37
    assert abs(estimate_nbytes(Squares()) - held.nbytes) < 50


def test_unequal_lengths():
    with pytest.raises(ValueError, match="same first axis"):
        ArraySource({"image": np.zeros((3, 2, 2, 1), np.uint8), "present": {"image": np.ones(2, bool)}})


def fields(n=23):
    r = np.random.default_rng(n)
    return {
        "image": r.integers(0, 256, (n, 5, 7), np.uint8),
        "caption": np.array([f"c{i}" for i in range(n)]),
        "audio": r.integers(-9, 9, (n, 11)).astype(np.int16),
        "label": np.arange(n) % 3,
        "audio_present": np.arange(n) % 2 == 0,
        "angle": r.normal(size=n),
    }


def test_npz_splits_and_fields(tmp_path):
    data = fields()
    np.savez(tmp_path / "train.npz", class_names=np.array(["a", "b", "c"]), **data)
    np.savez(tmp_path / "validation.npz", image=data["image"][:2])
    source = load_npz(tmp_path, "train")
    assert source.modalities == ("text", "image", "audio") and source.class_names == ("a", "b", "c")
    batch = source.batch(np.array([4, 1]))
    np.testing.assert_array_equal(batch["image"][..., 0], data["image"][[4, 1]])
    assert list(batch["caption"]) == ["c4", "c1"] and batch["caption"].dtype == object
    assert batch["label"].dtype == np.int32 and batch["audio_mask"].all()
    assert {m: list(v) for m, v in batch["present"].items()} == {
        "text": [True, True], "image": [True, True], "audio": [True, False]
    }  # fmt: skip
    np.testing.assert_array_equal(batch["angle"], data["angle"][[4, 1]])
    assert set(load_npz(tmp_path, "train", ("image",)).arrays) == {"image", "label", "angle"}
    with pytest.raises(ValueError, match="has no video"):
        load_npz(tmp_path, "train", ("video",))
    with pytest.raises(FileNotFoundError, match="no test.npz"):
        load_npz(tmp_path, "test")


def test_a_train_file_alone_is_split(tmp_path):
    np.savez(tmp_path / "train.npz", image=fields()["image"])
    images = {split: load_npz(tmp_path, split).arrays["image"] for split in ("train", "test", "all")}
    in_test = [int(hashlib.sha1(str(i).encode()).hexdigest(), 16) % 10 == 0 for i in range(23)]
    assert 0 < len(images["test"]) < 5
    np.testing.assert_array_equal(images["test"], images["all"][np.array(in_test)])
    np.testing.assert_array_equal(images["train"], images["all"][~np.array(in_test)])


def test_few_rows_give_both_splits(tmp_path):
    for n in range(2, 12):
        np.savez(tmp_path / "a.npz", image=np.arange(n, dtype=np.uint8).reshape(n, 1, 1))
        parts = [load_npz(tmp_path / "a.npz", split).arrays["image"].ravel() for split in ("train", "test")]
        assert all(part.size for part in parts)
        assert sorted(np.concatenate(parts)) == list(range(n))
    np.savez(tmp_path / "a.npz", image=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="one example is not enough for a training and a test split"):
        load_npz(tmp_path / "a.npz")


BAD_ROWS = [
    ("label", lambda a: a.astype(np.int64), 2**30, "label 1073741824 is not in 0..65535"),
    ("label", lambda a: a.astype(np.int64), 2**32 + 1, "label 4294967297 is not in 0..65535"),
    ("label", lambda a: a, -2, "label -2 is not in"),
    ("text", lambda a: a, 2**31, "text has an id outside"),
    ("text", lambda a: a, -1, "text has an id outside"),
    ("audio", lambda a: a / 32768, 1.5, "audio has values that are not finite or beyond"),
    ("audio", lambda a: a / 32768, np.nan, "audio has values that are not finite or beyond"),
    ("caption", lambda a: a, "a \ud83d", "caption is no text: character 3 is .ud83d"),
]


@pytest.mark.parametrize("name,prepare,value,reason", BAD_ROWS)
def test_a_bad_row_costs_no_other(tmp_path, name, prepare, value, reason):
    """Also beyond the first 256 recordings."""
    data = fields(300) | {"text": np.ones((300, 3), np.int64)}
    data[name] = prepare(data[name])
    data[name][290] = value
    np.savez(tmp_path / "a.npz", **data)
    with pytest.raises(BadExampleError, match=f"a.npz:291: {reason}"):
        load_npz(tmp_path / "a.npz", "all")
    bad_examples = BadExamples("skip")
    source = load_npz(tmp_path / "a.npz", "all", bad_examples=bad_examples)
    assert len(source) == 299 and len(bad_examples) == 1 and bad_examples.items[0].line == 291
    np.testing.assert_array_equal(source.arrays["image"][..., 0], np.delete(data["image"], 290, axis=0))


def test_the_labels_of_named_classes_are_checked(tmp_path):
    np.savez(tmp_path / "a.npz", **fields(), class_names=np.array(["a", "b"]))
    with pytest.raises(BadExampleError, match="a.npz:3: label 2 is not in 0..1"):
        load_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **fields(), class_names=np.array("abc"))
    with pytest.raises(ValueError, match="'class_names' is <U3"):
        load_npz(tmp_path / "a.npz")


def test_a_field_that_is_no_modality_is_noted(tmp_path):
    np.savez(tmp_path / "a.npz", **fields())
    bad_examples = BadExamples()
    load_npz(tmp_path / "a.npz", "train", bad_examples=bad_examples)
    load_npz(tmp_path / "a.npz", "test", bad_examples=bad_examples)
    [(note, count)] = bad_examples.notes.items()
    assert "'angle'" in note and "a.npz" in note and count == 23


def test_a_damaged_file_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", **fields())
    whole = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "b.npy", np.zeros(3))
    one_array = (tmp_path / "b.npy").read_bytes()
    for damaged in (b"", whole[:-40], whole[:200], b"\x93NUMPY", one_array):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="a.npz cannot be read"):
            load_npz(tmp_path / "a.npz")


def test_a_damaged_header_is_no_raw_error(tmp_path):
    np.save(tmp_path / "image.npy", np.zeros((3, 4, 4), np.uint8))
    whole = (tmp_path / "image.npy").read_bytes()
    for k in range(6, whole.index(b"\n")):
        for bit in (0, 2, 5):
            (tmp_path / "image.npy").write_bytes(whole[:k] + bytes([whole[k] ^ 1 << bit]) + whole[k + 1 :])
            try:
                load_npz(tmp_path, "all")  # such as another number of rows
            except ValueError as error:
                assert str(tmp_path) in str(error)


def test_folder_of_npy_and_hash_split(tmp_path):
    np.save(tmp_path / "text.npy", np.arange(82).reshape(41, 2))
    (tmp_path / "captions.json").write_text(json.dumps([f"é{i}" for i in range(41)]))
    whole = load_npz(tmp_path, "all")
    np.testing.assert_array_equal(whole.arrays["text_mask"][:2], [[False, True], [True, True]])
    parts = [load_npz(tmp_path, s).batch(np.arange(len(load_npz(tmp_path, s)))) for s in ("train", "test")]
    assert sorted([*parts[0]["caption"], *parts[1]["caption"]]) == sorted(f"é{i}" for i in range(41))
    assert all(parts[0]["text"][:, 0] % 2 == 0)
    with pytest.raises(ValueError, match="no split 'dev'"):
        load_npz(tmp_path, "dev")


@pytest.mark.parametrize(
    "change,message",
    [
        ({"image": np.zeros((23, 5, 7), np.float32)}, "'image' is float32.*uint8.*Convert it first"),
        ({"image": np.zeros((23, 5), np.uint8)}, r"'image' is uint8 \[23, 5\]"),
        ({"image": np.zeros((23, 5, 7), np.int64)}, "'image' is int64"),
        ({"audio": np.zeros((23, 11), np.int32)}, "'audio' is int32"),
        ({"audio": np.full((23, 11), 300.0)}, "beyond"),
        ({"label": np.zeros(22, int)}, "differ in length"),
        ({"images": np.zeros((23, 5, 7), np.uint8)}, "'images' is not known; did you mean 'image'"),
        ({"caption": np.arange(23)}, "'caption' is int64"),
        ({"audio_mask": np.ones((23, 12), bool)}, "'audio_mask' is"),
        ({"scale": np.float32(3)}, "'scale' is a single value"),
    ],
)
def test_wrong_fields_are_named(tmp_path, change, message):
    np.savez(tmp_path / "data.npz", **{**fields(), **change})
    with pytest.raises(ValueError, match=message) as caught:
        load_npz(tmp_path / "data.npz")
    assert "data.npz" in str(caught.value)


def test_objects_are_refused_without_unpickling(tmp_path):
    np.savez(tmp_path / "a.npz", caption=np.array(["a", None], object))
    with pytest.raises(ValueError, match="dtype='U'"):
        load_npz(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_npz(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"text": np.ones((40, 3), np.int32)}, "texts as token ids .text. and not as strings"),
        ({}, "no captions, only image"),
    ],
)
def test_data_without_captions_say_what_is_missing(tmp_path, fields, message):
    """Where a tokenizer is fitted to them."""
    np.savez(tmp_path / "a.npz", image=np.zeros((40, 4, 4, 3), np.uint8), **fields)
    with pytest.raises(ValueError, match=message):
        read_captions(load_npz(tmp_path / "a.npz"))
