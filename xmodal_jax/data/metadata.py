"""Read ``metadata.jsonl`` or ``metadata.csv``: one line per example, naming its files, captions and label."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.core.paths import leaves_folder
from xmodal_jax.core.text_files import (
    first_duplicate,
    normalise,
    parse_json,
    read_damaged,
    shorten,
    split_lines,
    surrogate_in,
)
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import modality_of_file
from xmodal_jax.types import kind_of

FILE_MODALITIES = ("image", "audio", "video")
TEXT_FIELDS = ("text", "texts", "caption", "captions", "transcription")
"""Names of the fields that hold captions."""
COLUMN_NAMES = ("file_name", "text", "label", *(f"{m}_file_name" for m in FILE_MODALITIES))
"""The fields that a data set may call by other names (``--columns``)."""


MIN_CLASS_LIMIT = 2**16
"""Labels that are numbers must be smaller than this, or than the number of labels if that is more: one wrong number
must not make millions of classes."""


class Record(NamedTuple):
    """One line of a metadata file."""

    line: int
    """Number of the line in the metadata file, from 1."""
    files: dict[str, str]
    """The file name of each modality that the example has: image, audio, video, or further ones of these kinds, such as
    image_2."""
    captions: dict[str, list[str]]
    """The captions of each text modality that the example has: text, or further ones, such as text_es."""
    label: str | int | None
    """The name or the index of the class; None: it is unknown."""
    label_text: str | None = None
    """The text of a CSV cell that is a whole number, ``label``, but can also be meant as a name."""

    @property
    def picture(self) -> str | None:
        """The file name that tells whether two records show the same picture: that of the first image, else of the
        video, else of the recording; None: there is no file. It has one spelling: ``./a.png`` is ``a.png``; see also
        `normalise_name`."""
        by_kind = {kind_of(m): name for m, name in reversed(sorted(self.files.items()))}
        name = next((by_kind[kind] for kind in ("image", "video", "audio") if kind in by_kind), None)
        return None if name is None else posixpath.normpath(normalise_name(name))


class _Line(NamedTuple):
    """A line of a metadata file that could be parsed."""

    number: int
    """From 1; of a CSV row of several lines, the first."""
    fields: dict[str, Any]


def in_test_split(name: str) -> bool:
    """Whether an example belongs to the test tenth of a data set without splits: SHA-1 of its name modulo 10 is 0."""
    return _split_hash(name) % 10 == 0


def _split_hash(name: str) -> int:
    return int(hashlib.sha1(normalise_name(name).encode()).hexdigest(), 16)


def choose_test(names: Sequence[str], path: str | Path) -> np.ndarray:
    """Which of the examples ``names`` of a data set without splits are its test split, bool ``[N]``: see
    `in_test_split`.

    Of few examples, none or all could be. Then the test split is the name with the smallest hash, so that both splits
    have an example.

    Raises:
      ValueError: all examples have one name; the message names the data set ``path``.
    """
    if not names:
        return np.zeros(0, bool)
    hashes = {name: _split_hash(name) for name in names}
    in_test = {name for name in names if hashes[name] % 10 == 0}
    if not 0 < len(in_test) < len(hashes):
        if len(hashes) < 2:
            raise ValueError(
                f"{path}: one example is not enough for a training and a test split. Add some, or put those of each "
                "split into a folder of its own, train and test."
            )
        in_test = {min(hashes, key=hashes.__getitem__)}
    return np.array([name in in_test for name in names], bool)


def normalise_name(name: str) -> str:
    """A file name in one spelling: the Unicode form NFC, and ``/`` between folders."""
    return normalise(name).replace("\\", "/")


def find_file(folder: Path, name: str) -> Path:
    """The file that metadata call ``name``, in ``folder``; if it does not exist, the path where it should be.

    The name's spelling may differ from the file's in the Unicode form (NFC or NFD) and in the character between
    folders (``\\``).
    """
    if (folder / name).exists():
        return folder / name
    path = folder
    for part in PurePosixPath(normalise_name(name)).parts:
        if not (path / part).exists() and path.is_dir():
            part = _spellings(path, path.stat().st_mtime_ns).get(part, part)
        path = path / part
    return path


@functools.lru_cache(maxsize=64)
def _spellings(folder: Path, modified: int) -> dict[str, str]:
    """The names in a folder by their form NFC. ``modified``: when the folder was, since which they are cached."""
    del modified
    return {normalise(name): name for name in os.listdir(folder)}


def find_metadata(folder: Path) -> Path | None:
    """The metadata file in a folder; None if there is none.

    Raises:
      ValueError: there are two.
    """
    files = [folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()]
    if len(files) == 2:
        raise ValueError(f"{folder} has both metadata.jsonl and metadata.csv: keep one of them.")
    return files[0] if files else None


def _jsonl_lines(path: Path, bad_examples: BadExamples) -> Iterator[_Line]:
    """The lines of a JSON lines file that are JSON objects; other lines that are not blank are added to
    ``bad_examples``."""
    for number, line in enumerate(split_lines(read_damaged(path)), 1):
        if not line.strip():
            continue
        try:
            # `read_damaged` puts a lone surrogate in place of a byte that is not UTF-8; ``damage`` describes it.
            if damage := surrogate_in(line):
                raise ValueError(damage)
            # `_distinct` raises ValueError where a key occurs twice; ``json`` alone would keep the last.
            fields = parse_json(line, pairs=_distinct)
        except ValueError as error:
            bad_examples.add(path, number, f"the line cannot be read: {error}")
            continue
        if not isinstance(fields, dict):
            reason = 'the line is not a JSON object such as {"file_name": ..., "text": ...}'
            bad_examples.add(path, number, reason)
            continue
        yield _Line(number, fields)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object; ValueError if two have one name (``json`` would drop the first)."""
    if (twice := first_duplicate(name for name, _ in pairs)) is not None:
        raise ValueError(f"the field {shorten(twice)} is there twice")
    return dict(pairs)


def _csv_rows(
    lines: list[str], path: Path, bad_examples: BadExamples
) -> Iterator[tuple[int, int, list[str]]]:
    """``(start, stop, cells)`` of each row of a CSV file, which is in the ``lines[start:stop]``; rows that are not CSV
    are added to ``bad_examples``.

    A quote that is not closed makes one row of all that follows. Such a row is bad, and the next one begins at the line
    after its first, so that it costs no other row.
    """
    first = 0  # the line at which the reader begins
    while first < len(lines):
        reader = csv.reader((lines[k] for k in range(first, len(lines))), strict=True)  # noqa: B023
        start = first
        try:
            for cells in reader:  # line_num: how many lines the reader has read so far
                yield start, first + reader.line_num, cells
                start = first + reader.line_num
            return
        except csv.Error as error:
            bad_examples.add(path, start + 1, f"the line is not CSV ({error})")
            first = start + 1


def _csv_lines(path: Path, bad_examples: BadExamples) -> Iterator[_Line]:
    """The lines of a CSV file whose cells fit the header; the others are added to ``bad_examples``.

    Raises:
      ValueError: the header has a column twice, or is not UTF-8.
    """
    lines = split_lines(read_damaged(path), keep_ends=True)
    header: list[str] | None = None
    for start, stop, cells in _csv_rows(lines, path, bad_examples):
        if stop == start + 1 and not lines[start].strip():
            continue
        # The first line of the row that is damaged, and how; a row may have line breaks in its cells.
        damages = ((k, surrogate_in(lines[k])) for k in range(start, stop))
        line, damage = next(((k, damage) for k, damage in damages if damage), (start, None))
        if header is None:
            header = [name.strip() for name in cells]
            twice = first_duplicate(header)
            if damage or twice is not None:
                reason = damage or f"the column {shorten(twice)} is there twice: rename one"
                raise ValueError(f"{path}:{line + 1}: {reason}.")
            continue
        if damage is None and len(cells) > len(header):
            damage = f"more cells than the header has ({', '.join(header)})"
        if damage is None and len(cells) < len(header):
            damage = f"fewer cells than the header has: no {shorten(header[len(cells)])}"
        if damage:
            bad_examples.add(path, line + 1, damage)
            continue
        # CSV has no null: an empty cell stands for a missing file or label (None). An empty caption stays "", which
        # `parse_captions` rejects.
        fields = dict(zip(header, cells, strict=True))
        empty = {k for k, value in fields.items() if not value.strip() and k not in TEXT_FIELDS}
        yield _Line(start + 1, fields | dict.fromkeys(empty))


def _file_column(column: str) -> str | None:
    """The modality whose file a column names; ``any`` for ``file_name``; None if it names no file."""
    if column == "file_name":
        return "any"
    stem = column.removesuffix("_file_name")
    return stem if stem in FILE_MODALITIES else None


def parse_captions(value: Any) -> list[str]:
    """The captions in a field, a string or a list of strings, with single spaces; ValueError if one is empty."""
    captions = value if isinstance(value, list) else [value]
    if not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ValueError('the caption is empty or not text (a line without a caption says "text": null)')
    return [" ".join(_text(c).split()) for c in captions]


def _text(value: str) -> str:
    """A text in the Unicode form NFC; ValueError if it cannot be written as UTF-8."""
    if damage := surrogate_in(value):
        raise ValueError(f"the text {shorten(value)} cannot be used: {damage}")
    return normalise(value)


_WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
"""A whole number as text, also as pandas writes it in a column with empty cells: ``2.0``."""


def parse_label(value: Any) -> str | int:
    """A label of JSON: a whole number (2.0 is 2) or a name, in NFC and without spaces around it.

    Raises:
      ValueError: it is neither.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip():
        return _text(value.strip())
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the label must be a whole number or a name, not {shorten(value)}")
    return value


def parse_label_cell(text: str) -> int | None:
    """The whole number that the text of a CSV cell is; None: it is a name.

    Raises:
      ValueError: a number of more digits than any class has.
    """
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        return None
    if len(whole[1]) > 30:
        raise ValueError(f"the label {shorten(text)} is too large to be the number of a class")
    return int(whole[1])


def _record(
    line: _Line, required: Collection[str], rare: Mapping[str, str], typed: bool, allow_outside: bool
) -> Record:
    """The record of a line; raises ValueError with the reason if its fields are not valid.

    Args:
      line: its number and its fields by name.
      required: the fields of files, captions and labels that most lines have; this one must have them too.
      rare: those that few lines have; this one must not, for the reason given.
      typed: whether values have types, as in JSON; in CSV a label can be a number or a name.
      allow_outside: whether files may lie outside of the folder of the metadata.
    """
    absent = sorted(set(required) - set(line.fields))
    if absent:
        raise ValueError(
            f"the field {absent[0]!r} is missing, which other lines have (write null if there is none)"
        )
    surplus = sorted(set(rare) & set(line.fields))
    if surplus:
        raise ValueError(rare[surplus[0]])
    files, captions, label, label_text = {}, {}, None, None
    for column, value in line.fields.items():
        modality = _file_column(column)
        if value is None:  # the line states that the example has no such file, caption or label
            continue
        if modality:
            if not isinstance(value, str) or not value:
                raise ValueError(f"{column!r} is not a file name: {shorten(value)}")
            if damage := surrogate_in(value):
                raise ValueError(f"{column!r} is not a file name: {damage}")
            if leaves_folder(value) and not allow_outside:
                raise ValueError(
                    f"{column!r} names {shorten(value)}, which is outside of the folder of the metadata "
                    "(--allow-outside permits it)"
                )
            modality = modality_of_file(value) if modality == "any" else modality
            if modality is None:
                raise ValueError(f"the file type of {shorten(value)} is not known")
            files[modality] = value
        elif column in TEXT_FIELDS:
            captions["text"] = captions.get("text", []) + parse_captions(value)
        elif column == "label":
            label = parse_label(value)
            if not typed and (number := parse_label_cell(label)) is not None:
                label, label_text = number, label
    if not files and not captions:
        raise ValueError("the line names no file and no caption")
    return Record(line.number, files, captions, label, label_text)


def _is_known(column: str) -> bool:
    return bool(_file_column(column) or column in TEXT_FIELDS or column == "label")


def _check_columns(path: Path, lines: list[_Line], names: Collection[str]) -> None:
    """Raises ValueError if no column names a file or a caption, or if one names files that would not be read.

    ``names``: the columns of all lines.
    """
    if any(_file_column(column) for column in names):
        return

    def holds_files(column: str) -> bool:
        """Whether a column that is not read has names of image, audio or video files."""
        values = [line.fields.get(column) for line in lines[:100]]
        return not _is_known(column) and any(isinstance(v, str) and modality_of_file(v) for v in values)

    columns_of_files = [column for column in names if holds_files(column)]
    has_captions = any(column in TEXT_FIELDS for column in names)
    if has_captions and not columns_of_files:
        return
    advice = f"give --columns file_name={(columns_of_files or ['COLUMN'])[0]} (and text=COLUMN, label=COLUMN)"
    if len(names) == 1 and any(mark in next(iter(names)) for mark in ";\t|"):
        advice = "separate the columns by commas"
    raise ValueError(
        f"{path}: no column file_name{'' if has_captions else ' or text'}; found {', '.join(names)}: {advice}, or "
        "rename the columns."
    )


def read_metadata(
    path: Path,
    bad_examples: BadExamples,
    columns: Mapping[str, str] | None = None,
    allow_outside: bool = False,
) -> list[Record]:
    """The records of a metadata file; ``bad_examples`` collects the lines that cannot be read.

    Columns: ``file_name`` (its modality by the suffix), or ``image``, ``audio``, ``video`` or ``image_file_name`` and
    so on; ``text`` (also ``texts``, ``caption``, ``captions``, ``transcription``), a string or a list of strings;
    ``label``, a whole number or a name. Other columns are noted in ``bad_examples`` and not read. A JSON null (in CSV,
    an empty file or label cell) states that the example has none. A field that half of the lines have must be in every
    line; of a field that fewer have, these lines are the bad ones.

    A file name that leads out of the folder, absolute or with ``..``, makes a line a bad example, unless
    ``allow_outside``. ``columns``: the columns that have other names in the file: ``{"file_name": "filename"}``.

    Raises:
      ValueError: no column names a file or a caption, or ``columns`` names one that the file does not have.
      BadExampleError: a line that cannot be read, under ``on_bad_example="stop"``.
    """
    typed = path.suffix != ".csv"
    lines = list((_jsonl_lines if typed else _csv_lines)(path, bad_examples))
    lines = [_rename(line, columns or {}) for line in lines]
    counts = Counter(column for line in lines for column in line.fields)
    absent = [column for name, column in (columns or {}).items() if lines and name not in counts]
    if absent:
        raise ValueError(f"{path}: no column {absent[0]} (--columns); found {', '.join(counts)}.")
    if lines:
        _check_columns(path, lines, counts)
    known = [column for column in counts if _is_known(column)]
    required = [column for column in known if 2 * counts[column] >= len(lines)]
    rare = {
        column: f"the field {column!r} is in {counts[column]} of {len(lines)} lines only: the others must state it too "
        "(null if there is none)"
        for column in known
        if column not in required
    }
    records = []
    for line in lines:
        try:
            records.append(_record(line, required, rare, typed, allow_outside))
        except ValueError as error:
            bad_examples.add(path, line.number, str(error))
    for column in sorted(set(counts) - set(known)):
        bad_examples.note(f"the column {shorten(column)} of {path} is not read", counts[column], once=True)
    return records


def _rename(line: _Line, columns: Mapping[str, str]) -> _Line:
    """The line with its fields ``columns[name]`` called ``name``."""
    names = {column: name for name, column in columns.items()}
    return line._replace(
        fields={names.get(k, k): v for k, v in line.fields.items() if k not in columns or k in names}
    )
