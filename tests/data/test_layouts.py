"""Published data sets as they come: what is read of each layout, and that a fault costs its example alone."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.folders import TREES, image, text
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.layouts.find import CLASS_FOLDERS, LAYOUTS
from xmodal_jax.data.media import decode_audio, decode_image
from xmodal_jax.data.metadata import read_metadata
from xmodal_jax.data.read_once import read_once
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.split_names import find_splits

A, THE = "a thing {}", "the thing {}"
# By layout and split: the numbers of the files, and the captions that each has.
EXPECTED = {
    "tsv": {"train": (range(4), [A]), "test": (range(2), [A])},
    "json": {"train": (range(4), [A, THE]), "test": (range(2), [A, THE])},
    "coco": {"train": (range(4), [A, THE]), "validation": (range(2), [A, THE]), "val2017": (range(2), [A, THE])},
    "karpathy": {"train": ([0, 2, 4, 6], [A, THE]), "val": ([1, 7], [A, THE]), "test": ([3, 5], [A, THE])},
    "flickr8k": {"train": ([0, 2, 3, 6], [A, THE]), "dev": ([1, 7], [A, THE]), "test": ([4, 5], [A, THE])},
    "flickr30k": {"all": (range(8), [A, THE])},
    "kaggle": {"all": (range(8), [A, THE])},
    "kaggle30k": {"all": (range(8), [A + " .", THE + " ."])},
    "common voice": {s: (range(n), ['"a" thing {}']) for s, n in (("train", 4), ("validation", 2), ("test", 2))},
    "ljspeech": {"all": (range(8), [A])},
    "librispeech": {
        "train": ([0, 1] * 3, ["A THING {}"]), "train-other-500": ([0, 1], ["A THING {}"]),
        "validation": ([0, 1], ["A THING {}"]), "test": ([0, 1], ["A THING {}"]),
    },
    "class folders": {"train": ([0, 1, 0, 1], []), "test": ([0, 0], [])},
    "classes without splits": {"all": ([*range(8)] * 2, [])},
}  # fmt: skip


def open_folder(root, split="train", **options):
    return FolderSource(root, split, progress=False, workers=1, max_seconds=0.1, **options)


def numbers_of(source):
    """The number of the file of each example, from its contents."""
    batch = source.batch(np.arange(len(source)))
    if "image" in batch:
        return ((batch["image"][:, 0, 0, 0].astype(int) - 5) // 10).tolist()
    return (batch["audio_mask"].sum(1) - 100).tolist()


@pytest.mark.parametrize(
    "layout,split", [(name, split) for name, splits in EXPECTED.items() for split in splits]
)
def test_each_layout_is_read(tmp_path, layout, split):
    TREES[layout](tmp_path)
    bad_examples = BadExamples()
    source = open_folder(tmp_path, split, bad_examples=bad_examples)
    numbers, forms = EXPECTED[layout][split]
    count = max(1, len(forms))
    assert numbers_of(source) == [k for k in numbers for _ in range(count)]
    if forms:
        captions = [form.format(k) for k in numbers for form in forms]
        assert list(source.batch(np.arange(len(source)))["caption"]) == captions
        assert (source.groups() is None) == (count == 1)
    else:
        names = {"class folders": ("cat", "dog"), "classes without splits": ("no", "yes")}[layout]
        assert source.class_names == names
        np.testing.assert_array_equal(source.class_labels(), np.repeat([0, 1], len(source) // 2))
    assert not bad_examples.items


def test_the_documentation_shows_every_layout():
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for layout in (*LAYOUTS, CLASS_FOLDERS):
        assert f"**{layout.name}**" in guide


def replace(root, name, old, new):
    path = root / name
    content = path.read_bytes()
    old, new = (part.encode() if isinstance(part, str) else part for part in (old, new))
    assert content.count(old) == 1, (old, content)
    path.write_bytes(content.replace(old, new))


# By layout and fault: a file, what is replaced in it, and by what (None: the file is removed, or cut to 20 bytes);
# then the file and the line of the bad example (None: of the same file), its reason, and the number of examples lost.
COCO, KARPATHY, FLICKR = "annotations/captions_train2017.json", "dataset_coco.json", "Flickr8k.token.txt"
CHAPTER = "train-clean-100/19/198/19-198"
UTF8 = "0xe9. is not UTF-8"
FAULTS = {
    ("tsv", "no file"): ("train/1.png", None, "gone", "train/metadata.tsv", 3, "does not exist", 1),
    ("tsv", "damaged file"): ("train/1.png", None, "cut", "train/metadata.tsv", 3, "cannot be decoded", 1),
    ("tsv", "too few cells"): ("train/metadata.tsv", "1.png\ta thing 1", "1.png", None, 3, "fewer cells", 1),
    ("tsv", "too many cells"): ("train/metadata.tsv", "thing 1", "thing\t1", None, 3, "more cells", 1),
    ("tsv", "empty caption"): ("train/metadata.tsv", "a thing 2", " ", None, 4, "caption is empty", 1),
    ("tsv", "encoding"): ("train/metadata.tsv", "thing 1", b"caf\xe9", None, 3, UTF8, 1),
    ("json", "no file"): ("train/1.png", None, "gone", "train/metadata.json", 3, "does not exist", 2),
    ("json", "not JSON"): ("train/metadata.json", '"text": ["a thing 1"', '"text": [a thing', None, 3, "not JSON", 2),
    ("json", "open quote"): ("train/metadata.json", 'the thing 1"', "the thing 1", None, 3, "not JSON", 2),
    ("json", "no object"): ("train/metadata.json", '{"file_name": "1.png", "text": ["a thing 1", "the thing 1"]}',
                            "3", None, 3, "3 is not a JSON object", 2),
    ("json", "twice"): ("train/metadata.json", '"1.png",', '"1.png", "file_name": "2.png",', None, 3, "twice", 2),
    ("json", "empty caption"): ("train/metadata.json", '"a thing 2"', '""', None, 4, "caption is empty", 2),
    ("json", "encoding"): ("train/metadata.json", "the thing 1", b"caf\xe9", None, 3, UTF8, 2),
    ("json", "truncated"): ("train/metadata.json", "\n]", "", None, 5, "ends here without ]", 0),
    ("coco", "no file"): ("train2017/001.png", None, "gone", COCO, 2, "does not exist", 2),
    ("coco", "damaged file"): ("train2017/001.png", None, "cut", COCO, 2, "cannot be decoded", 2),
    ("coco", "not JSON"): (COCO, '"caption": "a thing 1"', '"caption": a thing 1', None, 6, "not JSON", 1),
    ("coco", "image not listed"): (COCO, '"image_id": 71, "id": 2', '"image_id": 99, "id": 2', None, 6,
                                   "image_id 99 is not among the images", 1),
    ("coco", "no image id"): (COCO, '"image_id": 71, "id": 2', '"id": 2', None, 6, "no 'image_id'", 1),
    ("coco", "image twice"): (COCO, '"id": 72, "file_name": "002.png"', '"id": 70, "file_name": "002.png"', None, 3,
                              "image id 70 is in line 1 already", None),
    ("coco", "empty caption"): (COCO, '"a thing 1"', '""', None, 6, "caption is empty", 1),
    ("coco", "no caption"): (COCO, '"id": 2, "caption": "a thing 1"', '"id": 2', None, 6, "caption is empty", 1),
    ("coco", "encoding"): (COCO, "a thing 1", b"caf\xe9", None, 6, UTF8, 1),
    ("coco", "outside"): (COCO, '"001.png"', '"../001.png"', None, 2, "outside of the folder", None),
    ("karpathy", "no file"): ("val2014/2.png", None, "gone", KARPATHY, 4, "does not exist", 2),
    ("karpathy", "unknown split"): (KARPATHY, '"filename": "2.png", "split": "train"',
                                    '"filename": "2.png", "split": "extra"', None, 4, "split 'extra' is not known", 2),
    ("karpathy", "no sentences"): (KARPATHY, '"raw": "a thing 2"', '"text": "a thing 2"', None, 4, "no 'raw'", 2),
    ("karpathy", "empty caption"): (KARPATHY, '"raw": "a thing 2"', '"raw": " "', None, 4, "caption is empty", 2),
    ("karpathy", "not JSON"): (KARPATHY, '"raw": "a thing 2"', '"raw": nothing', None, 4, "not JSON", 2),
    ("karpathy", "encoding"): (KARPATHY, '"raw": "a thing 2"', b'"raw": "caf\xe9"', None, 4, UTF8, 2),
    ("flickr8k", "no file"): ("Flicker8k_Dataset/2.png", None, "gone", FLICKR, 5, "does not exist", 2),
    ("flickr8k", "damaged file"): ("Flicker8k_Dataset/2.png", None, "cut", FLICKR, 5, "cannot be decoded", 2),
    ("flickr8k", "no number"): (FLICKR, "2.png#1", "2.png", None, 6, "no number of a caption, as in a.jpg#0", 1),
    ("flickr8k", "no tab"): (FLICKR, "2.png#1\t", "2.png#1 ", None, 6, "no tab", 1),
    ("flickr8k", "empty caption"): (FLICKR, "the thing 2", "", None, 6, "caption is empty", 1),
    ("flickr8k", "encoding"): (FLICKR, "the thing 2", b"caf\xe9", None, 6, UTF8, 1),
    ("flickr8k", "image not listed"): ("Flickr_8k.trainImages.txt", "2.png", "x.png", None, 2,
                                       "image 'x.png' has no caption in Flickr8k.token.txt", 2),
    ("flickr8k", "listed twice"): ("Flickr_8k.trainImages.txt", "2.png", "0.png", None, 2, "earlier line", 2),
    ("flickr30k", "no file"): ("flickr30k_images/2.png", None, "gone", "results_20130124.token", 5, "not exist", 2),
    ("flickr30k", "file type"): ("results_20130124.token", "2.png#1", "2.xyz#1", None, 6, "is no image file", 1),
    ("kaggle", "no comma"): ("captions.txt", "2.png,the", "2.png the", None, 7, "no comma", 1),
    ("kaggle", "empty caption"): ("captions.txt", "the thing 2", "", None, 7, "caption is empty", 1),
    ("kaggle30k", "too few cells"): ("results.csv", "2.png| 1| ", "2.png| 1 ", None, 7, "2 cells instead of 3", 1),
    ("common voice", "no file"): ("clips/c1.wav", None, "gone", "train.tsv", 3, "does not exist", 1),
    ("common voice", "damaged file"): ("clips/c1.wav", None, "cut", "train.tsv", 3, "cannot be decoded", 1),
    ("common voice", "too few cells"): ("train.tsv", "thing 1\t2", "thing 1", None, 3, "fewer cells", 1),
    ("common voice", "empty caption"): ("train.tsv", '"a" thing 1', "", None, 3, "caption is empty", 1),
    ("common voice", "encoding"): ("train.tsv", "thing 1", b"caf\xe9", None, 3, UTF8, 1),
    ("ljspeech", "no file"): ("wavs/LJ-1.wav", None, "gone", "metadata.csv", 2, "does not exist", 1),
    ("ljspeech", "damaged file"): ("wavs/LJ-1.wav", None, "cut", "metadata.csv", 2, "truncated", 1),
    ("ljspeech", "too few cells"): ("metadata.csv", "|a thing 1", "", None, 2, "2 cells instead of 3", 1),
    ("ljspeech", "too many cells"): ("metadata.csv", "a thing 1", "a|thing 1", None, 2, "4 cells instead of 3", 1),
    ("ljspeech", "empty caption"): ("metadata.csv", "a thing 1", "", None, 2, "caption is empty", 1),
    ("ljspeech", "no name"): ("metadata.csv", "LJ-1|", " |", None, 2, "names no recording", 1),
    ("ljspeech", "outside"): ("metadata.csv", "LJ-1|", "../LJ-1|", None, 2, "outside of the folder", 1),
    ("ljspeech", "encoding"): ("metadata.csv", "a thing 1", b"caf\xe9", None, 2, UTF8, 1),
    ("librispeech", "no file"): (f"{CHAPTER}-0001.flac", None, "gone", f"{CHAPTER}.trans.txt", 2, "not exist", 1),
    ("librispeech", "damaged file"): (f"{CHAPTER}-0001.flac", None, "cut", f"{CHAPTER}.trans.txt", 2, "decoded", 1),
    ("librispeech", "no number"): (f"{CHAPTER}.trans.txt", "19-198-0001 A", "0001 A", None, 2, "as 19-198-0000", 1),
    ("librispeech", "empty caption"): (f"{CHAPTER}.trans.txt", " A THING 1", "", None, 2, "caption is empty", 1),
    ("librispeech", "encoding"): (f"{CHAPTER}.trans.txt", "THING 1", b"CAF\xe9", None, 2, UTF8, 1),
    ("class folders", "damaged file"): ("train/dog/1.png", None, "cut", "train/dog/1.png", 1, "cannot be decoded", 1),
    ("classes without splits", "empty file"): ("no/3.wav", None, "empty", "no/3.wav", 1, "cannot be decoded", 1),
}  # fmt: skip


@pytest.mark.parametrize("layout,fault", FAULTS)
def test_a_fault_is_one_bad_example_with_file_and_line(tmp_path, layout, fault):
    file, old, new, bad_file, line, reason, lost = FAULTS[layout, fault]
    TREES[layout](tmp_path)
    split = "train" if "train" in EXPECTED[layout] else "all"
    numbers, forms = EXPECTED[layout][split]
    whole = len(numbers) * max(1, len(forms))
    if old is not None:
        replace(tmp_path, file, old, new)
    elif new == "gone":
        (tmp_path / file).unlink()
    else:
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(b"" if new == "empty" else content[: len(content) * 2 // 3])
    where = re.escape(f"{tmp_path / (bad_file or file)}:{line}: ")
    with pytest.raises(BadExampleError, match=f"{where}.*{reason}"):
        open_folder(tmp_path, split)
    bad_examples = BadExamples("skip")
    source = open_folder(tmp_path, split, bad_examples=bad_examples)
    if lost is None:  # of COCO, the captions of an image that cannot be used cannot be used either
        assert len(source) < whole and bad_examples.items[0].line == line
        return
    assert [(b.file, b.line) for b in bad_examples.items] == [(str(tmp_path / (bad_file or file)), line)]
    assert len(source) == whole - lost


def test_coco_in_a_single_line(tmp_path):
    TREES["coco"](tmp_path)
    for path in (tmp_path / "annotations").iterdir():
        path.write_text(path.read_text().replace("\n", ""))
    assert len(open_folder(tmp_path)) == 8
    replace(tmp_path, COCO, '"caption": "a thing 3"', '"caption": ""')
    with pytest.raises(BadExampleError, match="captions_train2017.json:1: the caption is empty"):
        open_folder(tmp_path)


def test_a_file_that_is_no_annotation_is_refused(tmp_path):
    TREES["coco"](tmp_path)
    (tmp_path / COCO).write_text("[1, 2]")
    with pytest.raises(BadExampleError, match="captions_train2017.json:1: .* the file is not a JSON object"):
        open_folder(tmp_path)
    (tmp_path / COCO).write_bytes('{"images": []}'.encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-16"):
        open_folder(tmp_path)


@pytest.mark.parametrize("column,expected", [("label=client_id", ("abc",)), ("text=client_id", None)])
def test_columns_of_common_voice_can_be_chosen(tmp_path, column, expected):
    TREES["common voice"](tmp_path)
    bad_examples = BadExamples()
    name, _, value = column.partition("=")
    source = open_folder(tmp_path, columns={name: value}, bad_examples=bad_examples)
    assert source.class_names == expected
    assert ("'sentence'" in bad_examples.remarks[0]) == (
        name == "text"
    ) and "'up_votes'" in bad_examples.remarks[0]
    assert source.batch(np.array([1]))["caption"][0] == ("abc" if name == "text" else '"a" thing 1')


@pytest.mark.parametrize("layout", ["coco", "flickr8k", "ljspeech", "librispeech", "class folders"])
def test_columns_that_a_layout_does_not_have_are_refused(tmp_path, layout):
    TREES[layout](tmp_path)
    with pytest.raises(ValueError, match="has no columns that can be chosen: leave --columns"):
        open_folder(tmp_path, columns={"text": "comment"})


def test_joined_splits_are_said(tmp_path):
    TREES["librispeech"](tmp_path)
    bad_examples = BadExamples()
    open_folder(tmp_path, bad_examples=bad_examples)
    assert bad_examples.remarks == [f"{tmp_path}: the split 'train' is train-clean-100 and train-other-500"]
    with pytest.raises(
        ValueError, match=".LibriSpeech. has no split 'voices'; it has: dev-clean, test-clean, train"
    ):
        open_folder(tmp_path, "voices")


def test_a_folder_of_two_layouts_or_none_is_refused(tmp_path):
    TREES["coco"](tmp_path)
    TREES["karpathy"](tmp_path)
    with pytest.raises(
        ValueError, match="COCO captions .*captions_train2017.json.* and Karpathy's splits .*coco.json"
    ):
        open_folder(tmp_path)
    rows = [{"file_name": f"train2017/{k:03}.png", "text": "mine"} for k in range(4)]
    text(tmp_path / "metadata.jsonl", map(json.dumps, rows))
    bad_examples = BadExamples()
    source = open_folder(tmp_path, "all", bad_examples=bad_examples)
    assert list(source.batch(np.arange(4))["caption"]) == ["mine"] * 4
    assert "is read by its metadata, and not as COCO captions" in bad_examples.remarks[0]
    (tmp_path / "empty").mkdir()
    image(tmp_path / "empty" / "only" / "0.png", 1)
    with pytest.raises(FileNotFoundError) as caught:
        open_folder(tmp_path / "empty")
    assert all(layout.files in str(caught.value) for layout in (*LAYOUTS[1:], CLASS_FOLDERS))


def test_files_outside_of_classes_are_noted(tmp_path):
    TREES["class folders"](tmp_path)
    image(tmp_path / "train" / "loose.png", 1)
    text(tmp_path / "train" / "cat" / "list.txt", ["x"])
    image(tmp_path / "train" / "cat" / "deeper" / "9.png", 1)
    bad_examples = BadExamples()
    source = open_folder(tmp_path, bad_examples=bad_examples)
    assert len(source) == 5
    notes = bad_examples.summary()
    assert ".txt is not known: 1 file in" in notes and "in no folder of a class: 1 file in" in notes


@pytest.mark.parametrize(
    "split,names,found",
    [
        ("train", ["test", "train"], ["train"]),
        ("validation", ["dev", "train"], ["dev"]),
        ("validation", ["train2017", "val2017"], ["val2017"]),
        ("validation", ["validation", "dev"], ["validation"]),
        ("test", ["test-clean", "test-other", "latest"], ["test-clean", "test-other"]),
        ("dev", ["validation"], []),
        ("test", ["contest", "protest_1"], []),
        ("voices", ["voices"], ["voices"]),
    ],
)
def test_splits_are_found_by_what_they_mean(split, names, found):
    assert find_splits(split, names) == found


def test_annotations_are_read_once_and_reported_each_time(tmp_path, monkeypatch):
    for split in ("train", "test", "dev"):
        rows = [{"file_name": "a.png", "text": split}, {"file_name": "a.png", "text": ""}]
        image(tmp_path / split / "a.png", 1)
        text(tmp_path / split / "metadata.jsonl", map(json.dumps, rows))
        os.utime(tmp_path / split / "metadata.jsonl", (1e9, 1e9))
    read, opened = read_metadata, []
    monkeypatch.setattr(
        "xmodal_jax.data.layouts.find.read_metadata", lambda path, *a: opened.append(path) or read(path, *a)
    )
    bad_examples = BadExamples("skip")
    for split in ("train", "dev", "test", "train"):
        (caption,) = open_folder(tmp_path, split, bad_examples=bad_examples).batch(np.array([0]))["caption"]
        assert caption == split
    assert len(opened) == 3 and len(bad_examples) == 3
    with pytest.raises(BadExampleError, match="dev/metadata.jsonl:2"):
        open_folder(tmp_path, "dev")
    assert len(opened) == 3
    text(tmp_path / "dev" / "metadata.jsonl", [json.dumps({"file_name": "a.png", "text": "new"})])
    assert open_folder(tmp_path, "dev").batch(np.array([0]))["caption"][0] == "new" and len(opened) == 4


def test_a_file_that_was_just_written_is_read_again(tmp_path):
    """Its time may stay the same when it changes again."""
    path = tmp_path / "a"
    for content in ("1", "2"):
        path.write_text(content)
        read = read_once(lambda _: path.read_text(), BadExamples(), files=[path], key="test")
        assert read == content


def test_a_gray_level_and_a_length_tell_the_file(tmp_path):
    """What the other tests rely on."""
    TREES["coco"](tmp_path)
    assert decode_image(tmp_path / "train2017" / "003.png", 4)[0, 0, 0] == 35
    TREES["ljspeech"](tmp_path)
    assert len(decode_audio(tmp_path / "wavs" / "LJ-3.wav", 16000)[0]) == 103


def test_a_table_of_another_name_and_a_file_for_a_folder_are_named(tmp_path):
    table = tmp_path / "my_data.csv"
    table.write_text("file_name,text\na.png,x\n")
    with pytest.raises(FileNotFoundError, match=r"Rename my_data.csv to metadata.csv"):
        FolderSource(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"my_data.csv is a file. Give the folder .* metadata.csv"):
        FolderSource(table)
    table.rename(tmp_path / "metadata.csv")
    with pytest.raises(
        ValueError, match=r"1 bad ones left out, the first: .*metadata.csv:2: .*a.png. does not exist"
    ):
        FolderSource(tmp_path, "all", bad_examples=BadExamples("skip"))


def test_folders_of_systems_are_no_classes(tmp_path):
    TREES["class folders"](tmp_path)
    expected = open_folder(tmp_path).class_names
    for path in [path for path in tmp_path.rglob("*") if path.is_dir()] + [tmp_path]:
        (path / "__MACOSX").mkdir()
        (path / "__MACOSX" / "a.png").write_bytes(b"junk")
    assert open_folder(tmp_path).class_names == expected
