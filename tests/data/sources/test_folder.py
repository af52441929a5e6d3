"""A folder of real small files: what is read, and what happens to bad examples."""

import json
import os
import re
import struct
import weakref
import zlib

import numpy as np
import pytest
import soundfile
from jaxtyping import TypeCheckError
from PIL import Image

from xmodal_jax.data import media
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.metadata import in_test_split
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.tasks import read_target_classes


def save_png(path, seed, size=13):
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def save_wav(path, n, rate=16000):
    samples = np.random.default_rng(n).integers(-3000, 3000, n).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return samples


def write(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)


def open_folder(path, split="train", **options):
    return FolderSource(path, split, progress=False, workers=2, **options)


@pytest.mark.parametrize("memory_limit", [1 << 30, 1])
def test_images_captions_and_labels(tmp_path, memory_limit):
    images = [save_png(tmp_path / "train" / f"{i}.png", i) for i in range(7)]
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}", "label": "zb"[i % 2]} for i in range(7)]
    write(tmp_path / "train", rows)
    save_png(tmp_path / "test" / "0.png", 50)
    write(tmp_path / "test", [{"file_name": "0.png", "text": "x", "label": "m"}])
    source = open_folder(tmp_path, memory_limit=memory_limit)
    assert source.in_memory == (memory_limit > 1)
    assert (len(source), source.modalities, source.class_names) == (7, ("text", "image"), ("b", "m", "z"))
    batch = source.batch(np.array([5, 2, 2]))
    np.testing.assert_array_equal(batch["image"], np.stack([images[5], images[2], images[2]]))
    assert list(batch["caption"]) == ["picture 5", "picture 2", "picture 2"]
    np.testing.assert_array_equal(batch["label"], [0, 2, 2])
    assert "present" not in batch
    np.testing.assert_array_equal(open_folder(tmp_path, "test").batch(np.array([0]))["label"], [1])
    with pytest.raises(ValueError, match="no split 'dev'; .*test, train"):
        open_folder(tmp_path, "dev")


BAD = [
    ({"file_name": "cut.png", "text": "a"}, "cannot be decoded"),
    ({"file_name": "none.png", "text": "a"}, "does not exist"),
    ({"file_name": "good.png", "text": "  "}, "caption is empty"),
    ({"file_name": "zero.wav", "text": "a"}, "no samples"),
    ('{"file_name": "good.png", "text"', "not JSON"),
    ({"file_name": "good.png"}, "'text' is missing"),
    ({"file_name": "good.xyz", "text": "a"}, "file type of 'good.xyz' is not known"),
    ({"file_name": "good.png", "text": "a", "label": 1.5}, "whole number"),
    ({"file_name": "good.png", "text": ["a", ""]}, "caption is empty"),
]


def bad_folder(tmp_path, lines):
    train = tmp_path / "train"
    save_png(train / "good.png", 1)
    save_png(train / "cut.png", 2, 31)
    (train / "cut.png").write_bytes((train / "cut.png").read_bytes()[:-900])
    soundfile.write(train / "zero.wav", np.zeros(0), 16000)
    write(train, lines)


@pytest.mark.parametrize("line,reason", BAD)
def test_each_bad_example_stops_with_file_and_line(tmp_path, line, reason):
    label = {"label": 0} if isinstance(line, dict) and "label" in line else {}
    bad_folder(tmp_path, [{"file_name": "good.png", "text": "fine", **label}, line])
    with pytest.raises(BadExampleError, match=reason) as caught:
        open_folder(tmp_path)
    assert f"{tmp_path}/train/metadata.jsonl:2: " in str(caught.value)
    assert "skip" in str(caught.value)


def test_bad_examples_are_skipped_counted_and_listed(tmp_path):
    good = {"file_name": "good.png", "text": "fine"}
    lines = [line for line, _ in BAD if "label" not in line or isinstance(line, str)]
    bad_folder(tmp_path, [good, *lines, "", good])
    bad_examples = BadExamples("skip")
    source = open_folder(tmp_path, bad_examples=bad_examples)
    assert len(source) == 2 and source.modalities == ("text", "image")
    assert sorted(p.line for p in bad_examples.items) == list(range(2, 2 + len(lines)))
    bad_examples.write(tmp_path / "bad_examples.jsonl")
    listed = [json.loads(x) for x in (tmp_path / "bad_examples.jsonl").read_text().splitlines()]
    assert len(listed) == len(lines) and {"file", "line", "reason"} == set(listed[0])
    assert (
        f"{len(lines)} bad example{'s were' if len(lines) > 1 else ' was'} left out" in bad_examples.summary()
    )


def test_nothing_usable_is_an_error(tmp_path):
    bad_folder(tmp_path, [BAD[0][0]])
    with pytest.raises(ValueError, match="no usable example"):
        open_folder(tmp_path, bad_examples=BadExamples("skip"))


def test_audio_is_padded_resampled_and_cut(tmp_path):
    short = save_wav(tmp_path / "train" / "a.wav", 503)
    long = save_wav(tmp_path / "train" / "b.flac", 5003)
    save_wav(tmp_path / "train" / "c.wav", 200, rate=8000)
    write(tmp_path / "train", [{"file_name": n, "text": n} for n in ("a.wav", "b.flac", "c.wav")])
    bad_examples = BadExamples()
    source = open_folder(tmp_path, max_seconds=0.1, bad_examples=bad_examples)
    batch = source.batch(np.arange(3))
    assert batch["audio"].shape == (3, 1600) and batch["audio"].dtype == np.int16
    np.testing.assert_array_equal(batch["audio_mask"].sum(1), [503, 1600, 400])
    np.testing.assert_array_equal(batch["audio"][0, :503], short)
    np.testing.assert_array_equal(batch["audio"][1], long[:1600])
    assert not batch["audio"][0, 503:].any()
    assert list(bad_examples.notes.values()) == [1] and "max_seconds" in bad_examples.summary()


def test_null_declares_a_missing_modality(tmp_path):
    train = tmp_path / "train"
    save_png(train / "a.png", 1)
    save_wav(train / "a.wav", 50)
    write(
        train,
        [
            {"image": "a.png", "audio_file_name": "a.wav", "text": "both"},
            {"image": "a.png", "audio_file_name": None, "text": None},
            {"image": None, "audio_file_name": "a.wav", "text": "sound"},
        ],
    )
    source = open_folder(tmp_path)
    assert source.modalities == ("text", "image", "audio")
    batch = source.batch(np.array([2, 1, 0]))
    assert {m: list(v) for m, v in batch["present"].items()} == {
        "text": [True, False, True],
        "image": [False, True, True],
        "audio": [True, False, True],
    }
    assert batch["caption"][1] == "" and not batch["image"][0].any() and not batch["audio_mask"][1].any()
    only = open_folder(tmp_path, modalities=("image", "text"))
    assert only.modalities == ("text", "image") and "audio" not in only.batch(np.array([0]))
    with pytest.raises(ValueError, match="has no video"):
        open_folder(tmp_path, modalities=("video",), bad_examples=BadExamples("skip"))


def test_each_caption_is_an_example(tmp_path):
    save_png(tmp_path / "train" / "a.png", 1)
    save_png(tmp_path / "train" / "b.png", 2)
    write(
        tmp_path / "train",
        [{"file_name": "a.png", "text": ["x", "y  z"]}, {"file_name": "b.png", "text": ["w"]}],
    )
    source = open_folder(tmp_path)
    batch = source.batch(np.arange(3))
    assert list(batch["caption"]) == ["x", "y z", "w"]
    np.testing.assert_array_equal(batch["group"], [0, 0, 1])
    np.testing.assert_array_equal(source.groups(), [0, 0, 1])
    np.testing.assert_array_equal(batch["image"][0], batch["image"][1])


def test_csv_class_prompts_and_video(tmp_path):
    frames = [Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8)) for i in range(5)]
    (tmp_path / "train").mkdir()
    frames[0].save(tmp_path / "train" / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\na.gif,1\na.gif,0\n")
    (tmp_path / "classes.txt").write_text("falling\nrising\n")
    source = open_folder(tmp_path, frames=3, prompt="a clip of something {}")
    assert source.class_names == ("falling", "rising") and source.modalities == ("text", "video")
    batch = source.batch(np.arange(2))
    assert batch["video"].shape == (2, 3, 9, 9, 3)
    assert list(batch["caption"]) == ["a clip of something rising", "a clip of something falling"]


def test_csv_bad_lines(tmp_path):
    save_png(tmp_path / "train" / "a.png", 1)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\na.png,ok\na.png\na.png,\na.png,b,c\n")
    bad_examples = BadExamples("skip")
    assert len(open_folder(tmp_path, bad_examples=bad_examples)) == 1
    assert sorted(p.line for p in bad_examples.items) == [3, 4, 5]


def test_hash_split_is_a_partition(tmp_path):
    names = [f"{i}.png" for i in range(41)]
    for i, name in enumerate(names):
        save_png(tmp_path / name, i, 3)
    write(tmp_path, [{"file_name": n, "text": n} for n in names])
    captions = {
        s: list(open_folder(tmp_path, s).batch(np.arange(0))["caption"]) for s in ("train", "test", "all")
    }
    captions = {
        s: list((f := open_folder(tmp_path, s)).batch(np.arange(len(f)))["caption"]) for s in captions
    }
    assert sorted(captions["train"] + captions["test"]) == sorted(names) == sorted(captions["all"])
    assert captions["test"] == [n for n in names if in_test_split(n)]


def test_mistakes_in_the_folder_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_folder(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="metadata.jsonl or metadata.csv"):
        open_folder(tmp_path)
    write(tmp_path, [{"my_file": "a.png", "prompt": "x"}])
    with pytest.raises(
        ValueError,
        match="no column file_name or text; found my_file, prompt: give --columns file_name=my_file",
    ):
        open_folder(tmp_path)


def test_a_file_that_changes_later_is_named(tmp_path):
    save_png(tmp_path / "train" / "a.png", 1)
    write(tmp_path / "train", [{"file_name": "a.png", "text": "x"}])
    source = open_folder(tmp_path, memory_limit=1)
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(OSError, match="a.png.*has changed since"):
        source.batch(np.array([0]))


def many(folder, odd, n=40, size=13):
    """A folder of ``n`` images in two classes, of ``size`` pixels, and the line ``odd`` first."""
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    rows = [{"file_name": f"{k}.png", "text": f"red {k}", "label": "ab"[k % 2]} for k in range(n)]
    for row in rows:
        Image.fromarray(image).save(folder / row["file_name"])
    write(folder, [*odd, *rows])


def save_header(path, width, height):
    """A PNG file whose header states a size that it does not have."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"x"))


LINE = {"file_name": "0.png", "text": "x", "label": "a"}
ODD = {
    "an integer label": ({**LINE, "label": 3}, "the label 3 is a number, while 40 of 41 labels are names"),
    "a field that no other line has": ({**LINE, "audio": "x.wav"}, "'audio' is in 1 of 41 lines only"),
    "a header of a billion pixels": ({**LINE, "file_name": "bomb.png"}, "cannot be decoded.*exceeds limit"),
    "a large picture": ({**LINE, "file_name": "large.png"}, None),
    "a broken picture": ({**LINE, "file_name": "broken.png"}, "cannot be decoded"),
    "an empty picture": ({**LINE, "file_name": "empty.png"}, "cannot be decoded"),
    "a long name": ({**LINE, "file_name": "x" * 300 + ".png"}, "cannot be decoded: .*File name too long"),
    "a long path": ({**LINE, "file_name": "x/" * 3000 + "a.png"}, "File name too long"),
    "a name with a zero byte": ({**LINE, "file_name": "a\0.png"}, "null byte"),
    "a pipe": ({**LINE, "file_name": "pipe.png"}, "not a regular file"),
    "a piped video": ({"file_name": "pipe.gif", "text": "x", "label": "a"}, "not a regular file"),
    "a piped film": ({"file_name": "pipe.mp4", "text": "x", "label": "a"}, "not a regular file"),
    "a piped recording": ({"file_name": "pipe.wav", "text": "x", "label": "a"}, "not a regular file"),
    "a device": ({**LINE, "file_name": "zero.png"}, "not a regular file"),
    "a folder": ({**LINE, "file_name": "folder.png"}, "not a regular file"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_first_example_costs_no_other_and_decides_nothing(tmp_path, name):
    """Whatever it is, the other 40 are read at their size, and it is one bad example with its line."""
    odd, reason = ODD[name]
    train = tmp_path / "train"
    many(train, [odd])
    save_header(train / "bomb.png", 31_623, 31_623)
    save_png(train / "large.png", 1, size=500)
    (train / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")
    (train / "empty.png").touch()
    for suffix in ("png", "gif", "mp4", "wav"):
        os.mkfifo(train / f"pipe.{suffix}")
    (train / "zero.png").symlink_to("/dev/zero")
    (train / "folder.png").mkdir()
    bad_examples = BadExamples("skip")
    source = open_folder(tmp_path, bad_examples=bad_examples)
    assert source.options.image_size == 13
    assert len(source) == 40 + (reason is None) and source.modalities == ("text", "image")
    assert source.class_names == ("a", "b")
    if reason is None:
        assert not bad_examples.items
        return
    assert [b.line for b in bad_examples.items] == [1]
    assert re.search(reason, bad_examples.items[0].reason), bad_examples.items
    with pytest.raises(BadExampleError, match="metadata.jsonl:1: "):
        open_folder(tmp_path)


def test_an_open_folder_counts_a_bad_line_once_for_both_splits(tmp_path):
    many(tmp_path, ["{"])
    bad_examples = BadExamples("skip")
    sizes = [len(open_folder(tmp_path, split, bad_examples=bad_examples)) for split in ("train", "test")]
    assert sum(sizes) == 40 and len(bad_examples) == 1


def test_both_splits_have_images_of_one_size(tmp_path):
    for split, size in (("train", 20), ("test", 30)):
        many(tmp_path / split, [], n=5 if split == "test" else 11, size=size)
    assert {open_folder(tmp_path, split).options.image_size for split in ("train", "test")} == {20}


def test_five_files_without_splits_are_a_training_and_a_test_set(tmp_path):
    for k in range(5):
        save_png(tmp_path / f"{k}.png", k)
    write(tmp_path, [{"file_name": f"{k}.png", "text": f"t{k}"} for k in range(5)])
    captions = [
        list((f := open_folder(tmp_path, split)).batch(np.arange(len(f)))["caption"])
        for split in ("train", "test")
    ]
    assert all(captions) and sorted(sum(captions, [])) == [f"t{k}" for k in range(5)]
    write(tmp_path, [{"file_name": "0.png", "text": "t0"}])
    with pytest.raises(
        ValueError, match="one example is not enough for a training and a test split. Add some"
    ):
        open_folder(tmp_path)


def labelled(folder, labels, suffix="jsonl"):
    """Opens a folder of one image with these ``labels``, in CSV as text; returns the source, and the bad examples."""
    save_png(folder / "all" / "0.png", 0)
    for file in (folder / "all").glob("metadata.*"):
        file.unlink()
    if suffix == "csv":
        lines = ["file_name,text,label", *(f"0.png,x,{label}" for label in labels)]
        (folder / "all" / "metadata.csv").write_text("\n".join(lines))
    else:
        write(folder / "all", [{"file_name": "0.png", "text": "x", "label": label} for label in labels])
    bad_examples = BadExamples("skip")
    return open_folder(folder, "all", bad_examples=bad_examples), bad_examples


def test_labels_by_pandas_are_the_numbers_of_classes(tmp_path):
    for labels, suffix in ((["2.0", "10.0", ""], "csv"), ([2.0, 10.0, None], "jsonl")):
        source, bad_examples = labelled(tmp_path, labels, suffix)
        np.testing.assert_array_equal(source.class_labels(), [2, 10, -1])
        assert source.class_names is None and not bad_examples.items


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_one_name_among_numbers_is_bad(tmp_path, suffix):
    source, bad_examples = labelled(tmp_path, [*range(5), "cat", *range(3)], suffix)
    np.testing.assert_array_equal(source.class_labels(), [0, 1, 2, 3, 4, 0, 1, 2])
    [bad] = bad_examples.items
    assert "'cat' is a name, while 8 of 9 labels are numbers" in bad.reason


def test_numbers_among_names_are_names_in_csv(tmp_path):
    """A CSV file cannot say which is meant; JSON can."""
    source, bad_examples = labelled(tmp_path, ["boxster", "911", "cayenne", "911"], "csv")
    assert source.class_names == ("911", "boxster", "cayenne") and not bad_examples.items
    np.testing.assert_array_equal(source.class_labels(), [1, 0, 2, 0])
    source, bad_examples = labelled(tmp_path, ["boxster", "911", "cayenne"])
    assert source.class_names == ("911", "boxster", "cayenne") and not bad_examples.items


@pytest.mark.parametrize("label", [2**30, 2**31, 10**30, -1])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_label_that_is_no_class_is_a_bad_example(tmp_path, label, suffix):
    source, bad_examples = labelled(tmp_path, [0, 1, label, 2, 1], suffix)
    np.testing.assert_array_equal(source.class_labels(), [0, 1, 2, 1])
    [bad] = bad_examples.items
    assert re.search("is not in 0..65535 .number the classes from 0|too large to be", bad.reason)
    classes = read_target_classes(source)
    assert classes == {"label": ("0", "1", "2")}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n", "\n  \n"])
def test_a_list_of_classes_is_read_with_marks_and_blank_lines(tmp_path, mark, end):
    (tmp_path / "classes.txt").write_bytes((mark + "cat\ncafé" + end).encode())
    source, bad_examples = labelled(tmp_path, ["cafe\u0301", "cat", 1, " cat "])
    assert source.class_names == ("cat", "café") and not bad_examples.items
    np.testing.assert_array_equal(source.class_labels(), [1, 0, 1, 0])
    assert [b.reason for b in labelled(tmp_path, ["cat", "dog", 2])[1].items] == [
        "the label 'dog' is not in classes.txt", "the label 2 is not in 0..1 (is not in classes.txt)"
    ]  # fmt: skip


def test_a_list_of_classes_with_mistakes_is_refused(tmp_path):
    for content, reason in (
        (b"cat\n\ndog\n", "classes.txt:2: the line is blank"),
        (b"cat\ndog\ncat\n", "classes.txt:3: the class 'cat' is in line 1 already"),
        (b"cat\ncaf\xe9\n", r"classes.txt:2: byte 4 of the line .0xe9. is not UTF-8"),
    ):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            labelled(tmp_path, ["cat"])


def test_files_in_another_spelling_are_read(tmp_path):
    save_png(tmp_path / "all" / "sub" / "cafe\u0301.png", 1)
    write(
        tmp_path / "all",
        [{"file_name": name, "text": "x"} for name in ("sub/caf\u00e9.png", "sub\\cafe\u0301.png")],
    )
    assert len(open_folder(tmp_path, "all")) == 2


def test_too_many_arrays_are_let_go_early_and_a_bad_example_does_not_hide_it(tmp_path, monkeypatch):
    many(tmp_path / "train", [], n=100)
    rows = [{"file_name": f"{k}.png", "text": "x", "label": "a"} for k in range(100)]
    rows[63]["file_name"] = "none.png"
    write(tmp_path / "train", rows)
    arrays, most = [], 0

    def decode(file, size, channels, resize):
        nonlocal most
        arrays.append(weakref.ref(array := np.zeros((size, size, channels), np.uint8)))
        most = max(most, sum(a() is not None for a in arrays))
        return array

    monkeypatch.setattr(media, "decode_image", decode)
    limit = 70 * 13 * 13 * 3
    assert not open_folder(tmp_path, memory_limit=limit, bad_examples=BadExamples("skip")).in_memory
    assert most < 40


def test_large_photos_get_a_size_for_the_default_networks(tmp_path):
    """Which is said when the data are opened; small images keep their size."""
    rng = np.random.default_rng(0)
    for k in range(6):
        pixels = rng.integers(0, 256, (300 + k, 400, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.jpg")
    lines = [json.dumps({"file_name": f"{k}.jpg", "text": "a photo"}) for k in range(6)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    shown = []
    bad_examples = BadExamples(announce=shown.append)
    source = open_source(f"folder:{tmp_path}", "all", bad_examples=bad_examples)
    assert source.batch(np.arange(2))["image"].shape == (2, 64, 64, 3)
    (sentence,) = shown
    assert "typically 302 pixels, are resized to 64 x 64: --image-size chooses" in sentence
    assert bad_examples.summary() == sentence
    for options, side in (({"largest_side": 1000}, 302), ({"image_size": 96}, 96)):
        shown.clear()
        other = open_source(
            f"folder:{tmp_path}",
            "all",
            DataOptions(**options),
            bad_examples=BadExamples(announce=shown.append),
        )
        assert other.batch(np.arange(1))["image"].shape == (1, side, side, 3) and not shown
    padded = open_source(f"folder:{tmp_path}", "all", DataOptions(image_size=40, image_fit="pad"))
    image = padded.batch(np.arange(1))["image"][0]
    assert not image[:5].any() and not image[-5:].any() and image[5:-5].any()
    with pytest.raises((ValueError, TypeCheckError), match="image_fit"):
        DataOptions(image_fit="fill")
