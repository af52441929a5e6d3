"""A folder of real small files: what is read, and what happens to bad examples."""

import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.metadata import in_test_split
from xmodal_jax.data.sources.folder import FolderSource


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
    assert f"{len(lines)} bad examples left out" in bad_examples.summary()


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
    write(tmp_path, [{"filename": "a.png", "prompt": "x"}])
    with pytest.raises(ValueError, match="expected file_name and text, found filename, prompt"):
        open_folder(tmp_path)


def test_a_file_that_changes_later_is_named(tmp_path):
    save_png(tmp_path / "train" / "a.png", 1)
    write(tmp_path / "train", [{"file_name": "a.png", "text": "x"}])
    source = open_folder(tmp_path, memory_limit=1)
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(OSError, match="a.png.*has changed since"):
        source.batch(np.array([0]))
