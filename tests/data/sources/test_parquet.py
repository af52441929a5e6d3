"""Parquet files, Arrow folders and data sets of the hub: the same examples as a folder of files, at any size."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.sources import arrow_files
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.sources.parquet import ParquetSource, SavedSource, split_of_file

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parquet"


@pytest.fixture
def on_disk(monkeypatch):
    """Columns are never kept in memory, and chunks are small, as those of a large data set."""
    monkeypatch.setattr(arrow_files, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(arrow_files, "CHUNK_BYTES", 1)
    monkeypatch.setattr(arrow_files, "HEAD_BYTES", 0)


def picture(seed, size=13):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def write_examples(folder, count, first=0):
    """A folder with pictures, some sounds, one to three captions, and labels; returns its lines."""
    folder.mkdir(parents=True)
    lines = []
    for k in range(first, first + count):
        name = f"{k:03d}.png"
        Image.fromarray(picture(k)).save(folder / name)
        line = {"image": name, "audio_file_name": None, "text": f"picture {k}", "label": "cab"[k % 3]}
        if k % 3 == 0:
            line["audio_file_name"] = f"{k:03d}.wav"
            soundfile.write(folder / f"{k:03d}.wav", np.arange(40 + k, dtype=np.int16) * 99, 16000)
        line["text"] = [f"picture {k} caption {c}" for c in range(1 + k % 3)] if k % 7 else None
        lines.append(line)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def embed(folder, name):
    return None if name is None else {"bytes": (folder / name).read_bytes(), "path": name}


def table_of(folder, lines, label=None):
    """The examples of a folder as a table with the files in it. ``label``: a function of the name of a class."""
    columns = {
        "image": pa.array([embed(folder, line["image"]) for line in lines], FILE),
        "audio": pa.array([embed(folder, line["audio_file_name"]) for line in lines], FILE),
        "caption": pa.array([line["text"] for line in lines], pa.list_(pa.string())),
        "label": pa.array([line["label"] if label is None else label(line["label"]) for line in lines]),
    }
    return pa.table(columns)


def with_features(table, **features):
    text = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": text})


def assert_same(source, expected):
    """Two data sets have the same examples, batch by batch, in another order as well."""
    assert (len(source), source.modalities) == (len(expected), expected.modalities)
    assert source.class_names == expected.class_names
    shuffled = np.random.default_rng(0).permutation(len(source))
    for indices in (np.arange(len(source)), shuffled, shuffled[:5], shuffled[::-7]):
        batch, other = source.batch(indices), expected.batch(indices)
        assert {*batch} == {*other}
        for name, value in other.items():
            if name == "present":
                assert {*value} == {*batch["present"]}
                for m in value:
                    np.testing.assert_array_equal(batch["present"][m], value[m], err_msg=m)
            else:
                np.testing.assert_array_equal(batch[name], value, err_msg=name)
        for name, value in source.caption_batch(indices).items():
            np.testing.assert_array_equal(value, other[name])


def open_parquet(path, split="train", **options):
    return ParquetSource(path, split, progress=False, workers=2, **options)


def open_folder(path, split="train", **options):
    return FolderSource(path, split, progress=False, workers=2, **options)


@pytest.mark.parametrize("memory_limit", [1 << 30, 1])
@pytest.mark.parametrize("group_rows", [3, 1000])
def test_the_same_examples_as_a_folder(tmp_path, memory_limit, group_rows):
    for split, count, first in (("train", 40, 0), ("test", 9, 40)):
        lines = write_examples(tmp_path / "folder" / split, count, first)
        (tmp_path / "tables").mkdir(exist_ok=True)
        table = table_of(tmp_path / "folder" / split, lines)
        pq.write_table(table, tmp_path / "tables" / f"{split}.parquet", row_group_size=group_rows)
    for split in ("train", "test"):
        for modalities in (None, ("text", "audio"), ("image",)):
            options = {"memory_limit": memory_limit, "modalities": modalities}
            source = open_parquet(tmp_path / "tables", split, **options)
            assert source.in_memory == (memory_limit > 1)
            assert_same(source, open_folder(tmp_path / "folder", split, modalities=modalities))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_a_tenth_by_the_names_of_files(tmp_path, split):
    lines = write_examples(tmp_path / "folder", 60)
    pq.write_table(table_of(tmp_path / "folder", lines), tmp_path / "stamps.parquet")
    assert_same(open_parquet(tmp_path / "stamps.parquet", split), open_folder(tmp_path / "folder", split))


def test_rows_of_row_groups_are_read_from_copies(tmp_path, on_disk, cache):
    lines = write_examples(tmp_path / "folder" / "train", 40)
    table = table_of(tmp_path / "folder" / "train", lines)
    file = tmp_path / "train" / "0.parquet"
    file.parent.mkdir()
    pq.write_table(table, file, row_group_size=7, compression="zstd")
    (tmp_path / "test").mkdir()
    pq.write_table(table, tmp_path / "test" / "0.parquet")
    path = str(tmp_path / "t*" / "*.parquet")
    bad_examples = BadExamples()
    source = open_parquet(path, memory_limit=1, check_files=False, bad_examples=bad_examples)
    assert "are copied to" in bad_examples.summary()
    assert_same(source, open_folder(tmp_path / "folder"))
    copies = {p: p.stat().st_mtime_ns for p in cache.rglob("*.arrow")}
    assert len(copies) >= 3 * 6  # six row groups
    # A second opening uses them, and says nothing of copies.
    bad_examples = BadExamples()
    source = open_parquet(path, memory_limit=1, check_files=False, bad_examples=bad_examples)
    assert_same(source, open_folder(tmp_path / "folder"))
    assert "copied" not in bad_examples.summary()
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.arrow")} == copies
    # The file changes: its old copies go, those of the other file stay.
    pq.write_table(table.slice(20), file, row_group_size=7)
    changed = open_parquet(path, memory_limit=1, check_files=False)
    assert changed.batch(np.arange(3))["caption"][0].startswith("picture 20 ")
    assert all(len([*folder.iterdir()]) == 1 for folder in cache.iterdir())
    assert 0 < len({*cache.rglob("*.arrow")} & {*copies}) < len(copies)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = write_rows(tmp_path / "a.parquet", text=["a"] * 9)
    file = arrow_files.ParquetFile(path)
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match="a.parquet: the file has changed since it was opened"):
        file.load(("text",), 0)


def test_processes_that_need_a_copy_at_once_make_one(tmp_path, monkeypatch, cache):
    path = write_rows(tmp_path / "a.parquet", text=[f"text {k}" for k in range(3000)])
    written, write = [], arrow_files._write_copy

    def write_slowly(*arguments):
        written.append(arguments)
        time.sleep(0.05)
        write(*arguments)

    monkeypatch.setattr(arrow_files, "_write_copy", write_slowly)

    def read(_):  # each with a lock of its own, as processes have
        return arrow_files.ParquetFile(path).load(("text",), 0).get(np.array([2999, 0]))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [[b"text 2999", b"text 0"]] * 4
    assert len(written) == 1 and not [*cache.rglob("*.partial")]

    def fail(*_):
        raise OSError("No space left on device")

    shutil.rmtree(cache)
    monkeypatch.setattr(pa.ipc, "new_file", fail)
    with pytest.raises(OSError, match="cannot be written: No space left on device. XMODAL_CACHE chooses"):
        read(0)
    assert not [*cache.rglob("*.partial")] and not [*cache.rglob("*.arrow")]


def test_the_head_of_a_row_group_is_read_without_a_copy(tmp_path, on_disk, monkeypatch, cache):
    monkeypatch.setattr(arrow_files, "HEAD_BYTES", 60_000)
    monkeypatch.setattr(arrow_files, "HEAD_ROWS", 70)
    lines = write_examples(tmp_path / "folder", 90)
    table = table_of(tmp_path / "folder", lines).select(["image", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_parquet(tmp_path / "a.parquet", "all", memory_limit=1, check_files=False)
    assert source.options.image_size == 13
    np.testing.assert_array_equal(source.batch(np.array([5]))["image"][0], picture(5))
    assert not [*cache.rglob("*.arrow")]
    np.testing.assert_array_equal(source.batch(np.array([5, 80]))["image"][1], picture(80))
    assert len([*cache.rglob("*.arrow")]) == 1


def test_what_is_repeated_does_not_fill_the_memory(tmp_path, monkeypatch):
    table = pa.table({"text": ["a long caption " * 40] * 2000, "label": [*range(2000)]})
    pq.write_table(table, tmp_path / "a.parquet")  # 1 kB, which are 1.2 MB in memory
    monkeypatch.setattr(arrow_files, "MEMORY_LIMIT", 100_000)
    source = open_parquet(tmp_path / "a.parquet", "all", modalities=("text",))
    assert source.batch(np.array([1999]))["caption"][0] == ("a long caption " * 40).strip()
    assert [*(tmp_path / "cache").rglob("*.arrow")]


def test_saved_data_sets_and_types_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path / "folder"
    names = ["a", "b", "c"]
    features = datasets.Features(
        image=datasets.Image(),
        audio=datasets.Audio(),
        caption=datasets.List(datasets.Value("string")),
        label=datasets.ClassLabel(names=names),
    )
    saved = {}
    for split, count, first in (("train", 20, 0), ("test", 7, 20)):
        lines = write_examples(folder / split, count, first)
        table = table_of(folder / split, lines, label=names.index)
        saved[split] = datasets.Dataset(table.cast(features.arrow_schema))
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for split, part in saved.items():
        part.to_parquet(tmp_path / "parquet" / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "classes.txt").write_text("\n".join(names))
    for split in ("train", "test"):
        expected = open_folder(folder, split)
        assert_same(SavedSource(tmp_path / "saved", split, progress=False), expected)
        assert_same(SavedSource(tmp_path / "saved", split, progress=False, memory_limit=1), expected)
        assert_same(open_parquet(tmp_path / "parquet", split), expected)
    source = SavedSource(tmp_path / "saved" / "train", "all", progress=False)
    np.testing.assert_array_equal(source.batch(np.arange(2))["image"][1], picture(1))
    with pytest.raises(ValueError, match="has no split 'voices'; it has: test, train"):
        SavedSource(tmp_path / "saved", "voices")
    with pytest.raises(FileNotFoundError, match="no state.json or dataset_dict.json in it"):
        SavedSource(tmp_path / "folder")


def test_data_sets_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    lines = write_examples(tmp_path / "folder", 20)
    part = datasets.Dataset(table_of(tmp_path / "folder", lines))
    part.save_to_disk(tmp_path / "cached")
    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        if name == "o/absent":
            raise ConnectionError("Couldn't reach 'o/absent' on the Hub\nmore")
        return datasets.DatasetDict(train=datasets.load_from_disk(str(tmp_path / "cached")))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    bad_examples = BadExamples()
    source = open_source("hub:o/name:small", options=DataOptions(progress=False), bad_examples=bad_examples)
    assert_same(source, open_folder(tmp_path / "folder"))
    assert "has the split train alone: a tenth of it is the test split" in bad_examples.summary()
    assert asked == [("o/name", "small")]
    with pytest.raises(
        ValueError, match="hub:o/absent cannot be fetched, nor is it in the cache: Couldn't reach"
    ):
        open_source("hub:o/absent")
    with pytest.raises(ValueError, match="expected OWNER/NAME"):
        open_source("hub:../a/b")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        open_source("hub:o/name")


@pytest.mark.parametrize(
    "name,split",
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/test-00000-of-00001-abcdef0123456789.parquet", "test"),
        ("data/test_clean-00000-of-00001.parquet", "test_clean"),
        ("data/my-test-00000-of-00001.parquet", "test"),
        ("voices-00000-of-00001.parquet", "voices"),
        ("train/0000.parquet", "train"),
        ("val/part-0.parquet", "validation"),
        ("my_dev.parquet", "validation"),
        ("training.parquet", "train"),
        ("contest.parquet", None),
        ("0001.parquet", None),
    ],
)
def test_splits_by_names(name, split):
    assert split_of_file(name) == split


def test_which_files_are_read(tmp_path):
    table = pa.table({"text": [f"t{k}" for k in range(20)]})
    for name in (
        "data/train-00000-of-00002",
        "data/train-00001-of-00002",
        "data/dev-00000-of-00001",
        "extra",
        "_x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    bad_examples = BadExamples()
    assert len(open_parquet(tmp_path, bad_examples=bad_examples)) == 40
    assert f"{tmp_path}/extra.parquet is not read" in bad_examples.summary()
    source = open_parquet(tmp_path, "validation")
    assert len(source) == len(open_parquet(tmp_path, "dev")) == 20
    assert (source.test_splits, source.validation_split) == ((), "validation")
    with pytest.raises(ValueError, match="no split 'test'; it has: dev, train"):
        open_parquet(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_parquet(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no .parquet file in it"):
        open_parquet(os.path.dirname(__file__))
    both = [len(open_parquet(tmp_path / "extra.parquet", split)) for split in ("train", "test", "all")]
    assert both[0] + both[1] == both[2] == 20 and both[1] >= 1


def write_rows(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def png(seed, size=13):
    stream = io.BytesIO()
    Image.fromarray(picture(seed, size)).save(stream, "PNG")
    return stream.getvalue()


def test_columns_by_name_type_and_content(tmp_path):
    images = [png(k) for k in range(4)]
    bare = {
        "image": images,
        "image_2": images,
        "x": images,
        "category": ["b", "a", "b", None],
        "note": [1, 2, 3, 4],
    }
    path = write_rows(
        tmp_path / "a.parquet", **bare, caption_es=["uno", "dos", "tres", "4"], sentence=["1"] * 4
    )
    bad_examples = BadExamples()
    source = open_parquet(path, "all", bad_examples=bad_examples)
    assert source.modalities == ("text", "image", "image_2")
    assert source.class_names == ("a", "b")
    batch = source.batch(np.arange(4))
    np.testing.assert_array_equal(batch["label"], [1, 0, 1, -1])
    np.testing.assert_array_equal(batch["image"], np.stack([picture(k) for k in range(4)]))
    summary = bad_examples.summary()
    assert "label from 'category', text from 'sentence'" in summary
    assert "columns that are not read: 'x', 'note', 'caption_es'" in summary
    # A further text is read where it is asked for; two columns of captions are those of one row.
    table = {
        "image": images,
        "text": ["a"] * 4,
        "caption": [["b", "c"], None, [], ["d"]],
        "text_es": ["e"] * 4,
    }
    path_of_texts = write_rows(tmp_path / "t.parquet", **table)
    modalities = ("text", "text_es", "image")
    bad_examples = BadExamples("skip")
    source = open_parquet(path_of_texts, "all", modalities=modalities, bad_examples=bad_examples)
    assert source.modalities == modalities and [item.line for item in bad_examples.items] == [3]
    batch = source.batch(np.arange(6))
    assert list(batch["caption"]) == ["a", "b", "c", "a", "a", "d"] and list(batch["caption_es"]) == ["e"] * 6
    source = open_parquet(
        path, "all", columns={"image": "x", "text": "caption_es", "label": "note", "group": "category"}
    )
    assert source.modalities == ("text", "image", "image_2") and source.class_names is None
    batch = source.batch(np.arange(4))
    np.testing.assert_array_equal(batch["label"], [1, 2, 3, 4])
    np.testing.assert_array_equal(batch["group"], [0, 1, 0, 3])
    with pytest.raises(ValueError, match=r"no column left \(--columns\); found image, image_2, x, "):
        open_parquet(path, columns={"image": "left"})
    with pytest.raises(
        ValueError, match=r"the column note, which is to be the text, is int64; expected strings"
    ):
        open_parquet(path, columns={"text": "note"})
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.table([["a"], ["b"]], ["text", "text"]), path)
    with pytest.raises(ValueError, match="the column 'text' is there twice"):
        open_parquet(path)
    path = write_rows(tmp_path / "b.parquet", left=images, right=images, fine=["a"] * 4)
    with pytest.raises(
        ValueError, match="left, right can each be the image: .* image=left image_right=right"
    ):
        open_parquet(path)
    source = open_parquet(path, "all", columns={"image": "left", "image_right": "right"})
    assert source.modalities == ("image", "image_right")
    bad_examples = BadExamples()
    path = write_rows(tmp_path / "d.parquet", left=images, label=[0, 1, 0, 2])
    assert open_parquet(path, "all", bad_examples=bad_examples).modalities == ("image",)
    assert "image from 'left'" in bad_examples.summary()
    with pytest.raises(ValueError, match=r"no column with images.*found 'a' \('int64'\)"):
        open_parquet(write_rows(tmp_path / "c.parquet", a=[1]))


def test_translations_dictionaries_and_large_types(tmp_path):
    pairs = pa.array([{"en": "dog", "es": "perro"}, {"en": "cat", "es": "gato"}])
    strings = pa.array(["a", "b"])
    table = pa.table(
        {
            "translation": pairs,
            "image": pa.array([png(0), png(1)], pa.large_binary()),
            "text": strings.dictionary_encode(),
            "label": strings.dictionary_encode(),
        }
    )
    table = with_features(table, translation={"_type": "Translation", "languages": ["en", "es"]})
    pq.write_table(table, tmp_path / "a.parquet")
    modalities = ("text", "text_es", "image")
    source = open_parquet(tmp_path / "a.parquet", "all", modalities=modalities)
    assert source.modalities == modalities and source.class_names == ("a", "b")
    assert list(source.batch(np.array([1]))["caption_es"]) == ["gato"]
    source = open_parquet(tmp_path / "a.parquet", "all", columns={"text": "translation.es"})
    assert list(source.batch(np.arange(2))["caption"]) == ["perro", "gato"]
    for kind in (
        pa.large_string(),
        pa.string_view(),
        pa.large_list(pa.string()),
        pa.list_(pa.large_string(), 1),
    ):
        values = ["one", "two"] if "list" not in str(kind) else [["one"], ["two"]]
        with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([("text", kind)])) as writer:
            writer.write(pa.record_batch([pa.array(values, kind)], ["text"]))
        source = SavedSource(tmp_path / "a.arrow", "all", progress=False)
        assert list(source.batch(np.arange(2))["caption"]) == ["one", "two"], kind


def test_files_beside_the_table(tmp_path):
    lines = write_examples(tmp_path / "set", 4)
    (tmp_path / "outside.png").write_bytes(png(9))
    names = [line["image"] for line in lines] + ["000.png", "../outside.png"]
    table = pa.table({"image": pa.array([{"bytes": None, "path": n} for n in names], FILE), "text": names})
    path = tmp_path / "set" / "a.parquet"
    pq.write_table(table, path)
    with pytest.raises(
        BadExampleError, match=r"a.parquet:6: the file '../outside.png' is outside .*--allow-outside"
    ):
        open_parquet(path, "all")
    source = open_parquet(path, "all", allow_outside=True)
    batch = source.batch(np.arange(6))
    np.testing.assert_array_equal(batch["image"], np.stack([picture(k) for k in (0, 1, 2, 3, 0, 9)]))
    np.testing.assert_array_equal(batch["group"], [0, 1, 2, 3, 0, 5])
    pq.write_table(pa.table({"image_file_name": names[:2]}), path)
    np.testing.assert_array_equal(open_parquet(path, "all").batch(np.array([1]))["image"][0], picture(1))


def test_equal_names_of_embedded_files_are_remarked(tmp_path):
    files = pa.array([{"bytes": png(k), "path": "ab"[k % 2] + ".png"} for k in range(6)], FILE)
    pq.write_table(pa.table({"image": files}), tmp_path / "a.parquet")
    bad_examples = BadExamples()
    assert open_parquet(tmp_path / "a.parquet", "all", bad_examples=bad_examples).groups() is None
    assert "4 rows have image.path as an earlier row has" in bad_examples.summary()
    source = open_parquet(tmp_path / "a.parquet", "all", columns={"group": "image.path"})
    np.testing.assert_array_equal(source.groups(), [0, 1, 0, 1, 0, 1])


BAD = [
    ({"image": png(1)[:-90]}, "the image cannot be decoded"),
    ({"text": ["a", ""]}, "caption is empty"),
    ({"text": []}, "caption is empty"),
    ({"text": ["a", None]}, "caption is empty"),
    ({"text": [b"\xff\xfe"]}, "the text is not UTF-8: byte 1 is 0xff"),
    ({"label": 7}, "the label 7 is not in 0..1, the classes of the schema"),
    ({"label": -2}, "the label -2 is not in 0..1"),
    ({"image": None, "text": None}, "the row has no file and no caption"),
]


def write_bad(path, rows):
    good = {"image": png(0), "text": ["fine"], "label": 0}
    rows = [good | row for row in rows]
    texts = pa.array([row["text"] for row in rows], pa.list_(pa.binary()))
    valid, *buffers = texts.values.buffers()
    strings = pa.StringArray.from_buffers(len(texts.values), *buffers, valid)
    texts = pa.ListArray.from_arrays(texts.offsets, strings, mask=texts.is_null())
    columns = {"image": [r["image"] for r in rows], "text": texts, "label": [r["label"] for r in rows]}
    label = {"_type": "ClassLabel", "names": ["no", "yes"]}
    pq.write_table(with_features(pa.table(columns), label=label), path, row_group_size=2)


@pytest.mark.parametrize("row,reason", BAD)
def test_each_bad_row_stops_with_file_and_row(tmp_path, row, reason):
    write_bad(tmp_path / "a.parquet", [{}, {}, row, {}])
    with pytest.raises(BadExampleError, match=reason) as caught:
        open_parquet(tmp_path / "a.parquet", "all")
    assert f"{tmp_path}/a.parquet:3: " in str(caught.value)


@pytest.mark.parametrize("check_files", [True, False])
def test_bad_rows_are_skipped_and_listed(tmp_path, check_files, on_disk):
    write_bad(
        tmp_path / "a.parquet", [{"label": -1}, *(row for row, _ in BAD), {"label": None}, {"label": 1}]
    )
    bad_examples = BadExamples("skip")
    source = open_parquet(
        tmp_path / "a.parquet", "all", memory_limit=1, check_files=check_files, bad_examples=bad_examples
    )
    batch = source.batch(np.arange(len(source)))
    assert {item.line for item in bad_examples.items} == {*range(2, 2 + len(BAD))}
    assert {*batch["caption"]} == {"fine"}
    if check_files:
        np.testing.assert_array_equal(batch["label"], [-1, -1, 1])


def test_damaged_files_are_named(tmp_path):
    path = write_rows(tmp_path / "a.parquet", text=[f"text {k}" for k in range(2000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=f"{path}: not a Parquet file, or a truncated one"):
        open_parquet(path)
    path.write_bytes(whole[:40] + b"\xff" * 400 + whole[440:])
    with pytest.raises(ValueError, match=f"{path}: the column text cannot be read, the file is damaged"):
        open_parquet(path)
    with pa.ipc.new_stream(tmp_path / "a.arrow", pa.schema([("text", pa.string())])) as writer:
        writer.write(pa.record_batch([pa.array(["a", "b"])], ["text"]))
    whole = (tmp_path / "a.arrow").read_bytes()
    for stop in range(0, len(whole), 8):
        (tmp_path / "a.arrow").write_bytes(whole[:stop])
        with pytest.raises(ValueError, match="a.arrow: not an Arrow file, or a truncated one"):
            SavedSource(tmp_path / "a.arrow")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match="00001-of-00002.parquet: the column text is int64, but string in"):
        open_parquet(tmp_path / "train-*.parquet")


@pytest.mark.parametrize("offsets", [[0, 3, 2**30], [0, 5, 3], [-9, 3, 6]])
@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string())])
def test_damaged_offsets_read_nothing_else(tmp_path, offsets, kind):
    values = ["abc", "def"] if kind == pa.string() else [["a"] * 3, ["b"] * 3]
    path = tmp_path / "a.arrow"
    with pa.ipc.new_stream(path, pa.schema([("text", kind)])) as writer:
        writer.write(pa.record_batch([pa.array(values, kind)], ["text"]))
    written = np.array([0, 3, 6], np.int32).tobytes()
    path.write_bytes(path.read_bytes().replace(written, np.array(offsets, np.int32).tobytes()))
    with pytest.raises(ValueError, match="a.arrow: the column text cannot be read, the file is damaged"):
        SavedSource(path, "all", progress=False)


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_damaged_bytes_are_named_or_read(tmp_path, kind):
    """A byte that has changed never ends the process, nor makes an error that does not name the file."""
    path = tmp_path / "a"
    captions = [[f"a {k}", f"b {k}"] for k in range(12)]
    table = pa.table(
        {"text": captions, "label": ["x", "y"] * 6, "note": pa.array(["z"] * 12).dictionary_encode()}
    )
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=5)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(path, table.schema) as writer:
            writer.write_table(table)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + rng.bytes(1) + whole[place + 1 :])
        source = ParquetSource if kind == "parquet" else SavedSource
        try:
            opened = source(
                path, "all", columns={"label": "note"}, progress=False, bad_examples=BadExamples("skip")
            )
            opened.batch(np.arange(len(opened)))
        except ValueError as error:
            assert str(path) in str(error)


def test_a_full_disk_is_an_error(tmp_path, on_disk, monkeypatch):
    path = write_rows(tmp_path / "a.parquet", image=[png(k) for k in range(9)])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(ValueError, match="would be copied to .* XMODAL_CACHE"):
        open_parquet(path, "all")


MEASURE = """
import resource, sys, time
import numpy as np
from xmodal_jax.data.open import DataOptions, open_source
import PIL.Image, pyarrow.parquet
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.process_time()
source = open_source("parquet:" + sys.argv[1], "train", DataOptions(progress=False))
seconds = time.process_time() - start
for _ in range(20):
    source.batch(np.random.default_rng(0).integers(0, len(source), 256))
print(len(source), seconds, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("group_rows", [5000, 1_000_000])
def test_a_million_rows(tmp_path, group_rows):
    """They are opened in seconds, and batches drawn from all of them take less than a GB of memory."""
    pngs = [png(k, 48) for k in range(200)]
    schema = pa.schema({"image": FILE, "caption": pa.string(), "label": pa.int64()})
    numbers = np.arange(1_000_000)
    images = [{"bytes": pngs[k % 200], "path": f"{k}.png"} for k in range(5000)]
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, use_dictionary=False) as writer:
        columns = [
            pa.chunked_array([pa.array(images, FILE)] * 200),
            pa.array([f"picture {k} of many" for k in numbers]),
            pa.array(numbers % 7),
        ]
        writer.write_table(pa.table(columns, schema=schema), row_group_size=group_rows)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.parquet")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    examples, seconds, megabytes = map(float, result.stdout.split())
    assert examples > 890_000 and seconds < 5 and megabytes < 1000
