"""Images with captions as they are published: COCO, Karpathy's splits, Flickr8k and Flickr30k."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xmodal_jax.core.json_items import JsonItem, read_json_items
from xmodal_jax.core.text_files import read_damaged, shorten, split_lines
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.layouts.layout import (
    ReadOptions,
    SplitFiles,
    first_folder,
    group_captions,
    read_captions,
)
from xmodal_jax.data.media import modality_of_file
from xmodal_jax.data.metadata import Record, parse_captions, parse_file_name
from xmodal_jax.data.read_once import read_once

IMAGE_FOLDERS = (
    "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flicker8k_Images", "flickr8k_images",
    "flickr8k-images", "flickr30k_images", "flickr30k-images", "flickr30k_images/flickr30k_images",
)  # fmt: skip
"""Names of the folder of images where annotations do not say it."""


# COCO: annotations/captions_NAME.json, and the images in NAME/.


def find_coco(root: Path) -> dict[str, SplitFiles]:
    """The splits of COCO captions, such as ``train2017``; see `Layout.find`."""
    splits = {}
    for folder in (root / "annotations", root):
        for path in sorted(folder.glob("captions_*.json")):
            name = path.stem.removeprefix("captions_")
            images = first_folder([root / name, root / "images" / name, root / "images"])
            splits.setdefault(name, SplitFiles(path, images, functools.partial(_read_coco, path), (path,)))
    return splits


def _field(item: Any, name: str, kinds: type | tuple[type, ...], what: str) -> Any:
    """The value of a field of a JSON object; ValueError if ``item`` is none, or has another kind of value there."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        unusable = shorten(value if isinstance(item, dict) else item)
        raise ValueError(f"the {what} has no {name!r} that can be used: {unusable}")
    return value


def _items(
    path: Path, arrays: tuple[str, ...], what: str, bad_examples: BadExamples
) -> Iterator[tuple[JsonItem, Callable[[str], None]]]:
    """The items of ``arrays`` in a JSON file that can be read, each with a function that reports it as bad."""
    for item in read_json_items(read_damaged(path), arrays):
        report = functools.partial(bad_examples.add, path, item.line)
        if item.error is not None:
            report(f"the {what} that begins here cannot be read: {item.error}")
        else:
            yield item, report


def _read_coco(path: Path, options: ReadOptions, bad_examples: BadExamples) -> list[Record]:
    """One record for each image, at the line of the image, with all of its captions."""
    line_and_file: dict[int | str, tuple[int, str]] = {}
    annotations = []
    for item, report in _items(path, ("images", "annotations"), "object", bad_examples):
        try:
            if item.array == "annotations":
                image = _field(item.value, "image_id", (int, str), "annotation")
                annotations.append((item.line, image, item.value.get("caption")))
                continue
            number = _field(item.value, "id", (int, str), "image")
            name = _field(item.value, "file_name", str, "image")
            name = parse_file_name("file_name", name, options.allow_outside)
            if number in line_and_file:
                raise ValueError(
                    f"the image id {shorten(number)} is in line {line_and_file[number][0]} already"
                )
            line_and_file[number] = (item.line, name)
        except ValueError as error:
            report(str(error))
    captions: dict[int | str, list[str]] = {}
    bad = set()
    for line, image, caption in annotations:
        try:
            if image not in line_and_file:
                raise ValueError(f"the image_id {shorten(image)} is not among the images")
            captions.setdefault(image, []).extend(parse_captions(caption))
        except ValueError as error:
            bad.add(image)
            bad_examples.add(path, line, str(error))
    records = []
    for number, (line, name) in line_and_file.items():
        if captions.get(number):
            records.append(Record(line, {"image": name}, {"text": captions[number]}, None))
        elif number not in bad:
            bad_examples.add(path, line, f"the image {shorten(name)} has no caption")
    return records


# Karpathy's splits of COCO and Flickr: one JSON file with the split of each image.

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
"""The split of a data set by that of an image in its file; ``restval`` belongs to the training split."""


def find_karpathy(root: Path) -> dict[str, SplitFiles]:
    """The splits ``train`` (with ``restval``), ``val`` and ``test`` of ``dataset_*.json``; see `Layout.find`.

    Raises:
      ValueError: there are two such files.
    """
    files = [*sorted(root.glob("dataset_*.json")), *root.glob("dataset.json")]
    if len(files) > 1:
        raise ValueError(f"{root} has both {files[0].name} and {files[1].name}: keep one of them.")
    if not files:
        return {}
    (path,) = files
    # Entries of COCO have "filepath": train2014 or val2014.
    folder = first_folder([root / name for name in IMAGE_FOLDERS])
    folder = folder if folder.is_dir() else root
    return {
        split: SplitFiles(path, folder, functools.partial(_read_karpathy, path, split), (path,))
        for split in ("train", "val", "test")
    }


def _read_karpathy(path: Path, split: str, options: ReadOptions, bad_examples: BadExamples) -> list[Record]:
    parse = functools.partial(_parse_karpathy, path, options)
    records = read_once(parse, bad_examples, files=(path,), key=("karpathy", options.key))
    return records[split]


def _parse_karpathy(path: Path, options: ReadOptions, bad_examples: BadExamples) -> dict[str, list[Record]]:
    """The records of all splits."""
    records: dict[str, list[Record]] = {split: [] for split in KARPATHY_SPLITS.values()}
    for item, report in _items(path, ("images",), "image", bad_examples):
        try:
            name = _field(item.value, "filename", str, "image")
            folder = item.value.get("filepath")
            name = f"{folder}/{name}" if isinstance(folder, str) and folder else name
            name = parse_file_name("filename", name, options.allow_outside)
            split = _field(item.value, "split", str, "image")
            if split not in KARPATHY_SPLITS:
                raise ValueError(
                    f"the split {shorten(split)} is not known; expected {', '.join(KARPATHY_SPLITS)}"
                )
            sentences = _field(item.value, "sentences", list, "image")
            captions = parse_captions([_field(s, "raw", str, "sentence") for s in sentences])
        except ValueError as error:
            report(str(error))
            continue
        records[KARPATHY_SPLITS[split]].append(Record(item.line, {"image": name}, {"text": captions}, None))
    return records


# Flickr8k and Flickr30k: one caption on each line, and lists of the images of each split.

_ABSENT_IMAGE = "2258277193_586949ec62.jpg.1"
"""The file that Flickr8k's captions name, and its images lack."""


def _parse_token(line: str) -> tuple[str, str]:
    """``image.jpg#0<TAB>caption``."""
    name, tab, caption = line.partition("\t")
    if not tab:
        raise ValueError(f"no tab stands between the image and the caption: {shorten(line)}")
    name, number_sign, number = name.rpartition("#")
    if not number_sign or not number.strip().isdecimal():
        raise ValueError(
            f"the image {shorten(line.partition(chr(9))[0])} has no number of a caption, as in a.jpg#0"
        )
    return name.strip(), caption


def _parse_comma(line: str) -> tuple[str, str]:
    """``image.jpg,caption``, in which the caption may have further commas, and be quoted."""
    name, comma, caption = line.partition(",")
    if not comma:
        raise ValueError(f"no comma stands between the image and the caption: {shorten(line)}")
    caption = caption.strip()
    if len(caption) > 1 and caption[0] == caption[-1] == '"':
        caption = caption[1:-1].replace('""', '"')
    return name.strip(), caption


def _parse_bars(line: str) -> tuple[str, str]:
    """``image.jpg| 0| caption``."""
    cells = line.split("|", 2)
    if len(cells) < 3:
        raise ValueError(f"{len(cells)} cells instead of 3, image| number| caption: {shorten(line)}")
    return cells[0].strip(), cells[2]


def _header(path: Path) -> str:
    """The first line of a file, in lower case and without spaces."""
    with open(path, "rb") as file:
        line = file.readline(200).decode("utf-8", "replace").removeprefix("\ufeff")
    return line.strip().lower().replace(" ", "")


def _caption_file(root: Path) -> tuple[Path, Callable[[str], tuple[str, str]], int] | None:
    """The file of captions in a folder, the function that parses its lines, and the number of lines to skip; None:
    there is none."""
    for folder in (root, root / "Flickr8k_text", root / "annotations"):
        for pattern in ("*[!a].token.txt", "*.token"):  # not Flickr8k.lemma.token.txt, the captions as lemmas
            for path in sorted(folder.glob(pattern)):
                return path, _parse_token, 0
        if (path := folder / "captions.txt").is_file() and _header(path) == "image,caption":
            return path, _parse_comma, 1
        if (path := folder / "results.csv").is_file() and _header(path).startswith(
            "image_name|comment_number|"
        ):
            return path, _parse_bars, 1
    return None


def _split_lists(folder: Path) -> dict[str, Path]:
    """The lists of images by split: ``Flickr_8k.trainImages.txt``, or ``flickr30k_train.txt``, ``train.txt``."""
    lists = {}
    for split, words in (("train", ("train",)), ("dev", ("dev", "val")), ("test", ("test",))):
        for word in words:
            for pattern in (f"*.{word}Images.txt", f"*_{word}.txt", f"{word}.txt"):
                for path in sorted(folder.glob(pattern)):
                    lists.setdefault(split, path)
    return lists


def find_flickr(root: Path) -> dict[str, SplitFiles]:
    """The splits ``train``, ``dev`` and ``test`` if there are lists of their images, else ``all``; see
    `Layout.find`."""
    caption_file = _caption_file(root)
    if caption_file is None:
        return {}
    path, parse, skipped = caption_file
    images = first_folder([root / name for name in IMAGE_FOLDERS])
    images = images if images.is_dir() else root
    read = functools.partial(_read_flickr, path, parse, skipped)
    lists = _split_lists(path.parent)
    if not lists:
        return {"all": SplitFiles(path, images, functools.partial(read, None), (path,))}
    return {
        split: SplitFiles(path, images, functools.partial(read, split_list), (path, split_list))
        for split, split_list in lists.items()
    }


def _read_flickr(
    path: Path,
    parse: Callable[[str], tuple[str, str]],
    skipped: int,
    split_list: Path | None,
    options: ReadOptions,
    bad_examples: BadExamples,
) -> list[Record]:
    """The records of the images in ``split_list``; None: of all images."""

    def read(bad_examples: BadExamples) -> list[Record]:
        captions = read_captions(read_damaged(path), parse, path, options, bad_examples, first=skipped)
        return group_captions(captions, "image")

    records = read_once(read, bad_examples, files=(path,), key=("flickr", options.key))
    absent = sum(len(r.captions["text"]) for r in records if r.files["image"] == _ABSENT_IMAGE)
    bad_examples.note(
        f"Not read: {{captions}} in {path} of {_ABSENT_IMAGE}, which Flickr8k lacks.", absent, once=True
    )
    records = [r for r in records if r.files["image"] != _ABSENT_IMAGE]
    if split_list is None:
        for record in records:
            if modality_of_file(record.files["image"]) != "image":
                bad_examples.add(path, record.line, f"{shorten(record.files['image'])} is no image file")
        return [r for r in records if modality_of_file(r.files["image"]) == "image"]
    by_name = {r.files["image"]: r for r in records}
    chosen = {}
    for number, line in enumerate(split_lines(read_damaged(split_list)), 1):
        name = line.strip().partition("#")[0]
        name = name if "." in name or f"{name}.jpg" not in by_name else f"{name}.jpg"
        if name and name in chosen:
            bad_examples.add(split_list, number, f"the image {shorten(name)} is in an earlier line already")
        elif name and name not in by_name:
            bad_examples.add(split_list, number, f"the image {shorten(name)} has no caption in {path.name}")
        elif name:
            chosen[name] = by_name[name]
    return list(chosen.values())
