"""Read ``metadata.jsonl`` or ``metadata.csv``: one line per example, naming its files, captions and label. Also as
``metadata.tsv``, or ``metadata.json``."""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.core.paths import leaves_folder
from xmodal_jax.core.text_files import normalise, shorten, surrogate_in
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.columns import FILE_MODALITIES, ColumnRoles, assign_columns
from xmodal_jax.data.lines import Line, read_lines_of_table
from xmodal_jax.data.measured_columns import Cell, parse_cell
from xmodal_jax.data.media import modality_of_file
from xmodal_jax.types import kind_of

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
    group: str | None = None
    """What is equal for the records of a split that show the same picture; None: the names of their files tell."""
    path: Path | None = None
    """The file of ``line``; None: the metadata file of the split, as for all its records."""
    cells: Mapping[str, tuple[Cell, ...]] = MappingProxyType({})
    """The cells of each modality of measured quantities that the example has, one for each of its columns."""
    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """The columns of these modalities, the same for all records of a file."""

    @property
    def picture(self) -> str | None:
        """What tells whether two records of a split show the same picture: their group, else `picture_file`; None:
        there is neither."""
        # A zero byte, which no name of a file has, tells one from the other.
        return self.picture_file if self.group is None else f"\0group {self.group}"

    @property
    def picture_file(self) -> str | None:
        """The file name of the picture that a record shows: that of the first image, else of the video, else of the
        recording; None: there is no file. It has one spelling: ``./a.png`` is ``a.png``; see also
        `normalise_name`."""
        by_kind = {kind_of(m): name for m, name in reversed(sorted(self.files.items()))}
        name = next((by_kind[kind] for kind in ("image", "video", "audio") if kind in by_kind), None)
        return None if name is None else posixpath.normpath(normalise_name(name))


def in_test_split(name: str) -> bool:
    """Whether an example belongs to the test tenth of a data set without splits: SHA-1 of its name modulo 10 is 0."""
    return hash_name(name) % 10 == 0


def hash_name(name: str) -> int:
    """The SHA-1 of a name in its one spelling, as a number of 160 bits."""
    return int.from_bytes(hashlib.sha1(normalise_name(name).encode()).digest(), "big")


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
    chosen = np.fromiter((in_test_split(name) for name in names), bool, len(names))
    if chosen.all() or not chosen.any():
        hashes = {name: hash_name(name) for name in names}
        if len(hashes) < 2:
            raise ValueError(
                f"{path}: one example is not enough for a training and a test split. Add some, or put those of each "
                "split into a folder of its own, train and test."
            )
        first = min(hashes, key=hashes.__getitem__)
        chosen = np.array([name == first for name in names], bool)
    return chosen


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
    # Beside metadata.jsonl or metadata.csv the other names are likely to be of something else.
    for names in (("metadata.jsonl", "metadata.csv"), ("metadata.tsv", "metadata.json")):
        files = [folder / name for name in names if (folder / name).is_file()]
        if len(files) == 2:
            raise ValueError(f"{folder} has both {names[0]} and {names[1]}: keep one of them.")
        if files:
            return files[0]
    return None


def _drop_empty(lines: list[Line], fields: Mapping[str, Collection[str]]) -> list[Line]:
    """The lines of a CSV file with None for each empty cell, which stands for a missing file or label because CSV has
    no null. An empty cell of the field ``text`` stays, so that `parse_captions` rejects it."""

    def is_missing(column: str, value: str) -> bool:
        return not value.strip() and "text" not in fields.get(column, ())

    return [
        line._replace(fields={k: None if is_missing(k, v) else v for k, v in line.fields.items()})
        for line in lines
    ]


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


def parse_group(value: Any) -> str:
    """What stands in a field ``group``, an integer or a string; ValueError if it is neither."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"the group must be a whole number or a name, not {shorten(value)}")
    return _text(str(value).strip())


def parse_file_name(column: str, value: Any, allow_outside: bool) -> str:
    """The file name in a field; ValueError if it is none, or leads out of the folder without ``allow_outside``."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{column!r} is not a file name: {shorten(value)}")
    if damage := surrogate_in(value):
        raise ValueError(f"{column!r} is not a file name: {damage}")
    if leaves_folder(value) and not allow_outside:
        raise ValueError(
            f"{column!r} names {shorten(value)}, which is outside of the folder of the metadata (--allow-outside "
            "permits it)"
        )
    return value


class _Format(NamedTuple):
    """What the lines of a metadata file have in common."""

    fields: Mapping[str, Collection[str]]
    """By column the fields that it holds, see `columns.ColumnRoles`."""
    measured: Mapping[str, tuple[str, ...]]
    """The columns of each modality of measured quantities."""
    required: Collection[str]
    """The columns of files, captions and labels that most lines have; each must have them."""
    rare: Mapping[str, str]
    """Those that few lines have; none must have them, for the reason given."""
    typed: bool
    """Whether values have types, as in JSON; in CSV a label can be a number or a name."""
    allow_outside: bool
    """Whether files may lie outside of the folder of the metadata."""


def _record(line: Line, form: _Format) -> Record:
    """The record of a line; raises ValueError with the reason if its fields are not valid."""
    absent = sorted(set(form.required) - set(line.fields))
    if absent:
        raise ValueError(
            f"the field {absent[0]!r} is missing, which other lines have (write null if there is none)"
        )
    surplus = sorted(set(form.rare) & set(line.fields))
    if surplus:
        raise ValueError(form.rare[surplus[0]])
    files: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    label, label_text, group = None, None, None
    for column, value in line.fields.items():
        if value is None:  # the line states that the example has no such file, caption or label
            continue
        for field in form.fields.get(column, ()):
            if field == "label":
                label = parse_label(value)
                if not form.typed and (number := parse_label_cell(label)) is not None:
                    label, label_text = number, label
            elif field == "group":
                group = parse_group(value)
            elif field in form.measured:
                continue  # `_cells`
            elif field != "file_name" and kind_of(field) == "text":
                captions[field] = captions.get(field, []) + parse_captions(value)
            else:
                name = parse_file_name(column, value, form.allow_outside)
                modality = modality_of_file(name) if field == "file_name" else field
                if modality is None:
                    raise ValueError(f"the file type of {shorten(name)} is not known")
                if files.setdefault(modality, name) != name:
                    raise ValueError(
                        f"{column!r} names {shorten(name)}, but the {modality} is {shorten(files[modality])}"
                    )
    cells = _cells(line, form.measured)
    if not files and not captions and not cells:
        raise ValueError(
            "the line names no file and no caption" + (", and has no number" if form.measured else "")
        )
    return Record(line.number, files, captions, label, label_text, group, None, cells, form.measured)


def _cells(line: Line, measured: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[Cell, ...]]:
    """The cells of each modality of measured quantities (see `_Format.measured`), of those that the line has."""
    cells = {}
    for modality, columns in measured.items():
        of_line = tuple(parse_cell(column, line.fields.get(column)) for column in columns)
        if any(cell is not None and not np.isnan(cell).all() for cell in of_line):
            cells[modality] = of_line
    return cells


SAMPLED_LINES = 100
"""Lines whose values tell what a column holds."""


def _contents(lines: list[Line], column: str) -> set[str]:
    """What kinds of values a column has: ``text``, ``number``, and ``image``, ``audio`` or ``video`` for file names."""
    kinds: set[str] = set()
    for line in lines[:SAMPLED_LINES]:
        value = line.fields.get(column)
        if isinstance(value, list) and value:
            value = value[0]
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, int | float) and not isinstance(first, bool):
                kinds.add("numbers")
                continue
        if isinstance(value, str) and value.strip():
            modality = None if "://" in value else modality_of_file(value)
            kinds |= {"text"} if modality is None else {"text", modality}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            kinds.add("number")
    return kinds


def _check_columns(path: Path, lines: list[Line], names: Collection[str], roles: ColumnRoles) -> None:
    """Raises ValueError if no column names a file or a caption, or if one names files that would not be read.

    ``names``: the columns of all lines.
    """
    fields = {field for of_column in roles.fields.values() for field in of_column}
    if roles.measured or any(
        field == "file_name" or kind_of(field) in FILE_MODALITIES for field in fields - {"group"}
    ):
        return
    columns_of_files = [c for c in roles.unread if _contents(lines, c) & set(FILE_MODALITIES)]
    has_captions = any(kind_of(field) == "text" for field in fields - {"group"})
    if has_captions and not columns_of_files:
        return
    advice = f"give --columns file_name={(columns_of_files or ['COLUMN'])[0]} (and text=COLUMN, label=COLUMN)"
    if len(names) == 1 and any(mark in next(iter(names)) for mark in ";\t|"):
        advice = f"separate the columns by {'tabs' if path.suffix == '.tsv' else 'commas'}"
    raise ValueError(
        f"{path}: no column file_name{'' if has_captions else ' or text'}; found {', '.join(names)}: {advice}, or "
        "rename the columns."
    )


def read_metadata(
    path: Path,
    bad_examples: BadExamples,
    columns: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    modalities: Collection[str] | None = None,
) -> list[Record]:
    """The records of a metadata file; ``bad_examples`` collects the lines that cannot be read.

    Columns: ``file_name`` (its modality by the suffix), or ``image``, ``audio``, ``video`` or ``image_file_name`` and
    so on, also with names (``image_2``); ``text`` (also ``texts``, ``caption``, ``captions``, ``transcription``), a
    string or a list of strings; ``label``, a whole number or a name; ``group``, a whole number or a name that is equal
    for lines that show the same picture; ``vector`` and ``series``, numbers or lists of numbers (several columns, if
    ``columns`` says so). Where one of these is not there, a column with a common name is taken (see
    `columns.COMMON_NAMES`), which ``bad_examples`` remarks, as it does which columns are not read. A JSON null (in CSV,
    an empty cell, unless it is that of ``text``) states that the example has none. A field that half of the lines have
    must be in every line; of a field that fewer have, these lines are the bad ones.

    Args:
      path: the file.
      bad_examples: see above.
      columns: the columns that have other names: ``{"file_name": "photo", "text_es": "spanish"}``.
      allow_outside: whether a file name may lead out of the folder, by an absolute path or with ``..``; otherwise such
        a line is a bad example.
      modalities: those that are asked for; a column such as ``text_es`` is read if it is among them.

    Raises:
      ValueError: no column names a file or a caption, two columns could be the same one, or ``columns`` names one that
        the file does not have.
      BadExampleError: a line that cannot be read, under ``on_bad_example="stop"``.
    """
    return read_records(
        path,
        read_lines_of_table(path, bad_examples),
        bad_examples,
        typed=path.suffix in (".jsonl", ".json"),
        columns=columns,
        allow_outside=allow_outside,
        modalities=modalities,
    )


def read_records(
    path: Path,
    lines: list[Line],
    bad_examples: BadExamples,
    *,
    typed: bool,
    columns: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    modalities: Collection[str] | None = None,
) -> list[Record]:
    """The records of ``lines``, which were read from a table in any format; see `read_metadata`. ``typed``: whether
    values have types, as in JSON."""
    if not lines:
        return []
    counts = Counter(column for line in lines for column in line.fields)
    contents = functools.cache(functools.partial(_contents, lines))
    # One or a few odd lines must not decide what the columns are.
    frequent = [column for column in counts if 2 * counts[column] >= len(lines)]
    roles = assign_columns(
        path, [*counts], contents, chosen=columns, modalities=modalities, frequent=frequent
    )
    _check_columns(path, lines, counts, roles)
    rare = {
        column: f"the field {column!r} is in {counts[column]} of {len(lines)} lines only: the others must state it too "
        "(null if there is none)"
        for column in roles.fields
        if column not in frequent
    }
    form = _Format(roles.fields, roles.measured, set(roles.fields) - set(rare), rare, typed, allow_outside)
    records = []
    for line in lines if typed else _drop_empty(lines, roles.fields):
        try:
            records.append(_record(line, form))
        except ValueError as error:
            bad_examples.add(path, line.number, str(error))
    roles.remark(path, bad_examples)
    return records
