"""Read ``metadata.jsonl`` or ``metadata.csv``: one line per example, naming its files, captions and label."""

from __future__ import annotations

import csv
import hashlib
import json
import posixpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import modality_of_file

FILE_MODALITIES = ("image", "audio", "video")
TEXT_FIELDS = ("text", "texts", "caption", "captions", "transcription")
"""Names of the fields that hold captions."""


class Record(NamedTuple):
    """One line of a metadata file."""

    line: int
    """Number of the line in the metadata file, from 1."""
    files: dict[str, str]
    """The file name of each modality that the example has: image, audio, video."""
    captions: list[str] | None
    """The captions; None: the example has no text."""
    label: str | int | None
    """The name or the index of the class; None: it is unknown."""

    @property
    def picture(self) -> str | None:
        """The file name that tells whether two records show the same picture: that of the image, else of the video,
        else of the recording; None: there is no file. It has one spelling: ``./a.png`` is ``a.png``, and letters with
        accents are composed (NFC)."""
        name = next((self.files[m] for m in ("image", "video", "audio") if m in self.files), None)
        return None if name is None else unicodedata.normalize("NFC", posixpath.normpath(name))


def in_test_split(name: str) -> bool:
    """Whether an example belongs to the test tenth of a data set without splits: SHA-1 of its name modulo 10 is 0."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 == 0


def find_metadata(folder: Path) -> Path | None:
    """The metadata file in a folder; None if there is none.

    Raises:
      ValueError: there are two.
    """
    files = [folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()]
    if len(files) == 2:
        raise ValueError(f"{folder} has both metadata.jsonl and metadata.csv: keep one of them.")
    return files[0] if files else None


def _jsonl_lines(path: Path, bad_examples: BadExamples) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(line number from 1, fields)`` of each line of a JSON lines file that can be parsed; the other lines are added
    to ``bad_examples``."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                bad_examples.add(path, number, f"the line is not JSON ({error.msg} at column {error.colno})")
                continue
            if not isinstance(fields, dict):
                bad_examples.add(
                    path, number, 'the line is not a JSON object such as {"file_name": ..., "text": ...}'
                )
                continue
            yield number, fields


def _csv_lines(path: Path, bad_examples: BadExamples) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(line number from 1, fields)`` of each line of a CSV file whose cells fit the header; the other lines are added
    to ``bad_examples``."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        for fields in reader:
            # DictReader puts surplus cells under the key None, and gives absent cells the value None.
            if None in fields:
                bad_examples.add(
                    path, reader.line_num, f"more cells than the header has ({reader.fieldnames})"
                )
                continue
            missing = [name for name, value in fields.items() if value is None]
            if missing:
                bad_examples.add(path, reader.line_num, f"fewer cells than the header has: no {missing[0]!r}")
                continue
            # CSV has no null: an empty cell stands for a missing file or label (None). An empty caption stays "", which
            # `_captions` rejects.
            for name, value in fields.items():
                if value == "" and name not in TEXT_FIELDS:
                    fields[name] = None
            yield reader.line_num, fields


def _file_column(column: str) -> str | None:
    """The modality whose file a column names; ``any`` for ``file_name``; None if it names no file."""
    if column == "file_name":
        return "any"
    stem = column.removesuffix("_file_name")
    return stem if stem in FILE_MODALITIES else None


def _captions(value: Any) -> list[str]:
    """The captions in a field, a string or a list of strings, with single spaces; ValueError if one is empty."""
    captions = value if isinstance(value, list) else [value]
    if not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ValueError('the caption is empty or not text (a line without a caption says "text": null)')
    return [" ".join(c.split()) for c in captions]


def _record(number: int, fields: dict[str, Any], columns: set[str]) -> Record:
    """The record of line ``number``; raises ValueError with the reason if its fields are not valid.

    ``columns``: the fields of files, captions and labels that occur in the metadata file; the line must have them all.
    """
    absent = sorted(columns - set(fields))
    if absent:
        raise ValueError(
            f"the field {absent[0]!r} is missing, which other lines have (write null if there is none)"
        )
    files, captions, label = {}, None, None
    for column, value in fields.items():
        modality = _file_column(column)
        if value is None:  # the line states that the example has no such file, caption or label
            continue
        if modality:
            if not isinstance(value, str) or not value:
                raise ValueError(f"{column!r} is not a file name: {value!r}")
            modality = modality_of_file(value) if modality == "any" else modality
            if modality is None:
                raise ValueError(f"the file type of {value!r} is not known")
            files[modality] = value
        elif column in TEXT_FIELDS:
            captions = (captions or []) + _captions(value)
        elif column == "label":
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise ValueError(f"the label must be a whole number or a name, not {value!r}")
            label = value
    if not files and captions is None:
        raise ValueError("the line names no file and no caption")
    return Record(number, files, captions, label)


def read_metadata(path: Path, bad_examples: BadExamples) -> list[Record]:
    """The records of a metadata file; ``bad_examples`` collects the lines that cannot be read.

    Columns: ``file_name`` (its modality by the suffix), or ``image``, ``audio``, ``video`` or ``image_file_name`` and
    so on; ``text`` (also ``texts``, ``caption``, ``captions``, ``transcription``), a string or a list of strings;
    ``label``, a whole number or a name. Other columns are ignored. A JSON null (in CSV, an empty file or label cell)
    states that the example has none; a line must not leave out a field that other lines have.

    Raises:
      ValueError: no column names a file or a caption.
      BadExampleError: a line that cannot be read, under ``on_bad_example="stop"``.
    """
    lines = list((_csv_lines if path.suffix == ".csv" else _jsonl_lines)(path, bad_examples))
    columns = {
        c for _, fields in lines for c in fields if _file_column(c) or c in TEXT_FIELDS or c == "label"
    }
    if lines and not any(_file_column(c) or c in TEXT_FIELDS for c in columns):
        names = ", ".join(sorted(lines[0][1]))
        raise ValueError(
            f"{path}: no field names a file or a caption; expected file_name and text, found {names}."
        )
    records = []
    for number, fields in lines:
        try:
            records.append(_record(number, fields, columns))
        except ValueError as error:
            bad_examples.add(path, number, str(error))
    # CSV cells are strings: labels become class indices if all of them are whole numbers.
    if path.suffix == ".csv" and all(r.label is None or str(r.label).lstrip("-").isdigit() for r in records):
        records = [r._replace(label=None if r.label is None else int(r.label)) for r in records]
    return records
