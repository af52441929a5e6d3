"""Folders of images with metadata as people and programs write them, stopping at a bad line or leaving it out."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import struct
import unicodedata
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.fault_kinds import REFUSED, Case, Kind, choose
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.sources.folder import FolderSource

SIDE = 4
WORDS = (
    "a red bicycle",
    "日本の猫",
    "שלום עולם",
    "x" * 200,
    "=1+1",
    "$^$",
    "naïve café",
    'it\'s, "quoted"',
    "🙂 👩‍👩‍👧",
    "<b>",
)
LABELS = ("a", "b", "$^$", "ü")


class _Row(NamedTuple):
    """A good line and the colour of its image."""

    fields: dict[str, Any]
    colour: tuple[int, int, int]


def _rows(rng: np.random.Generator, folder: pathlib.Path) -> list[_Row]:
    """Five to twelve good lines with their images, each of one colour."""
    rows = []
    for k in range(int(rng.integers(5, 13))):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{k}.png")
        fields = {"file_name": f"{k}.png", "text": f"{choose(rng, WORDS)} {k}", "label": choose(rng, LABELS)}
        rows.append(_Row(fields, colour))
    return rows


def _file(make: Callable[[np.random.Generator, pathlib.Path], None]):
    """A damage of the image that a line names."""

    def damage(rng, fields, folder):
        path = folder / fields["file_name"]
        path.unlink()
        make(rng, path)
        return fields

    return damage


def _png(width: int, height: int) -> bytes:
    """A PNG file that says it has this size, and has no pixels."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def _write(*contents: bytes):
    return lambda rng, path: path.write_bytes(choose(rng, contents))


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k != name}


def _set(name: str, *values: Any):
    return lambda rng, fields, folder: {**fields, name: choose(rng, values)}


FILE_FAULTS = {
    "image missing": _file(lambda rng, path: None),
    "image empty": _file(_write(b"")),
    "image is text": _file(_write(b"<html></html>", b"\0" * 99, b"\x89PNG")),
    "image of 10^9 pixels": _file(_write(_png(10**5, 10**4), _png(2**31 - 1, 9))),
    "image is a pipe": _file(lambda rng, path: os.mkfifo(path)),
    "image is a folder": _file(lambda rng, path: path.mkdir()),
    "image is a link to nothing": _file(lambda rng, path: path.symlink_to("nowhere.png")),
    "image is a link to itself": _file(lambda rng, path: path.symlink_to(path.name)),
    "name outside": _set("file_name", "../0.png", "/etc/hostname.png", "a/../../0.png", "..\\0.png"),
    "name too long": _set("file_name", "x" * 300 + ".png", "/".join(["y" * 200] * 30) + ".png"),
    "name without suffix": _set("file_name", "0", "0.txt", "0.png.exe", ".", "..png/"),
}  # fmt: skip
"""Damages of one line in both formats: ``damage(rng, fields, folder)`` returns the line's fields."""
JSON_FAULTS = {
    "name of another type": _set("file_name", 3, True, ["0.png"], {"a": 1}, "", 1e400),
    "name with NUL": _set("file_name", "0\0.png", "\0"),
    "name of half a surrogate pair": _set("file_name", "\ud83d.png"),
    "caption of another type": _set("text", 3, False, [], {"a": "b"}, [3], [["a"]], ["a", None]),
    "caption empty": _set("text", "", "   ", "\n\t", [""], ["a", " "]),
    "caption of half a surrogate pair": _set("text", "a \ud83d", "\udc00"),
    "label of another type": _set("label", 2.5, True, [], ["a"], {"a": 1}, float("inf"), 1e400),
    "label is a number among names": _set("label", 0, 3, -1, 2**31, 2**70, 2.0),
    "field missing": lambda rng, fields, folder: _without(
        fields, choose(rng, ["file_name", "text", "label"])
    ),
    "further field": lambda rng, fields, folder: {
        **fields,
        choose(rng, ["audio_file_name", "caption"]): "x.wav",
    },
}
TEXT_FAULTS = {
    "cut": lambda rng, line: line[: int(rng.integers(1, len(line) - 1))],
    "not an object": lambda rng, line: choose(rng, [b"3", b"null", b'"x"', b"[]", b"[" + line + b"]", b"true"]),
    "text behind": lambda rng, line: line + choose(rng, [b",", b"}", b" x", b"\0"]),
    "not UTF-8": lambda rng, line: line.replace(b': "', b': "' + choose(rng, [b"\xe9", b"\xff", b"\xed\xa0\x80"])),
    "nested": lambda rng, line: b'{"file_name": ' + b"[" * choose(rng, [500, 10**5]),
    "number of 5,000 digits": lambda rng, line: line[:-1] + b', "label": ' + b"9" * 5000 + b"}",
    "field twice": lambda rng, line: line[:-1] + b', "text": "another"}',
}  # fmt: skip
"""Damages of the bytes of one JSON line."""
CSV_FAULTS = {
    "cells too many": lambda rng, line: line + b"," * int(rng.integers(1, 3)) + b"x",
    "cells too few": lambda rng, line: line.split(b",", 1)[0],
    "quote open": lambda rng, line: line.rsplit(b",", 1)[0] + b',"b',
    "not UTF-8": lambda rng, line: line.rsplit(b",", 1)[0] + b",\xe9",
    "quote within": lambda rng, line: line.rsplit(b",", 1)[0] + b',"a"b',
    "cell of 200,000 characters": lambda rng, line: line.rsplit(b",", 1)[0] + b"," + b"z" * 200_000,
}
"""Damages of the bytes of one CSV line."""
HARMLESS = {
    "none": lambda content: content,
    "byte-order mark": lambda content: b"\xef\xbb\xbf" + content,
    "lines end as on Windows": lambda content: content.replace(b"\n", b"\r\n"),
    "blank lines": lambda content: content.replace(b"\n", b"\n\n") + b"\n  \n",
    "no end of the last line": lambda content: content.rstrip(b"\n"),
}
"""Changes of a file that harm nothing."""
REFUSED_FILES = {
    "empty": lambda content: b"",
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "other columns": lambda content: content.replace(b"file_name", b"where"),
    "zeros": lambda content: bytes(len(content)),
    "compressed": zlib.compress,
}
"""Changes of a file that cannot be understood."""


def _csv_line(values: list[Any]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(["" if value is None else value for value in values])
    return out.getvalue().encode()


def _read(folder: pathlib.Path, skip: bool) -> tuple[list[Any], list[int]]:
    """What the code under test reads: the examples as ``[caption, colour, class]``, and the lines left out."""
    bad = BadExamples("skip" if skip else "stop")
    source = FolderSource(folder, "all", bad_examples=bad, image_size=SIDE, progress=False, workers=2)
    batch = source.batch(np.arange(len(source)))
    names = source.class_names
    examples = [
        [caption, tuple(image[0, 0].tolist()), names[label] if label >= 0 else None]
        for caption, image, label in zip(batch["caption"], batch["image"], batch["label"], strict=True)
    ]
    return examples, sorted(example.line for example in bad.items)


def _expected(rows: list[_Row], bad: set[int]) -> list[Any]:
    normal = lambda text: " ".join(unicodedata.normalize("NFC", text).split())
    return [
        [normal(row.fields["text"]), row.colour, unicodedata.normalize("NFC", row.fields["label"])]
        for k, row in enumerate(rows)
        if k not in bad
    ]


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    rows, is_csv = _rows(rng, folder), bool(rng.integers(2))
    skip = rng.random() < 0.7
    path = folder / ("metadata.csv" if is_csv else "metadata.jsonl")
    by_bytes, by_fields = (
        (CSV_FAULTS, FILE_FAULTS) if is_csv else (TEXT_FAULTS, {**FILE_FAULTS, **JSON_FAULTS})
    )
    number_of_faults = 1 if not skip else int(rng.integers(1, 3))
    fault = choose(rng, [*by_bytes, *by_fields] * 2 + [*HARMLESS, *REFUSED_FILES])
    names = ["file_name", "text", "label"]
    bad: set[int] = set()
    if fault in HARMLESS or fault in REFUSED_FILES:
        number_of_faults = 0
    damaged = rng.permutation(len(rows))[:number_of_faults].tolist()
    lines = []
    for k, row in enumerate(rows):
        fields = row.fields
        if k in damaged and fault in by_fields:
            fields = by_fields[fault](rng, fields, folder)
        line = _csv_line([fields[name] for name in names]) if is_csv else json.dumps(fields).encode()
        if not is_csv and rng.integers(2) and "\\ud" not in line.decode():
            line = json.dumps(fields, ensure_ascii=False).encode()
        if k in damaged and fault in by_bytes:
            line = by_bytes[fault](rng, line)
        lines.append(line)
        bad |= {k} & set(damaged)
    first_line = 2 if is_csv else 1
    content = b"\n".join([*([_csv_line(names)] if is_csv else []), *lines, b""])
    content = {**HARMLESS, **REFUSED_FILES}.get(fault, lambda content: content)(content)
    path.write_bytes(content)
    expected: Any = (_expected(rows, bad), sorted(k + first_line for k in bad))
    mentions: tuple[str, ...] = ()
    if fault in REFUSED_FILES or (bad and not skip):
        expected, mentions = REFUSED, (str(path),)
    if bad and not skip:
        mentions = (f"{path}:{min(bad) + first_line}",)
    suffix, mode = path.suffix[1:], "skip" if skip else "stop"
    return Case(f"{suffix}, {mode}: {fault}", lambda: _read(folder, skip), expected, mentions)


KIND = Kind("metadata", _draw, 3000)
