"""Which columns of an Arrow schema are files, captions, labels and groups: by their types, their names, and what
``datasets`` writes about them."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from xmodal_jax.core.text_files import first_duplicate, parse_json, shorten
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.columns import FILE_MODALITIES, assign_columns
from xmodal_jax.data.media import modality_of_file
from xmodal_jax.data.sources.arrow_files import ArrowFile, ColumnPath, read_type
from xmodal_jax.data.sources.arrow_values import Block, is_bytes, is_list, is_text, simplify
from xmodal_jax.types import kind_of

SAMPLED_ROWS = 16
"""Rows whose values tell what a column holds, where its type does not."""


class FileColumn(NamedTuple):
    """A column of files: their contents, or where they are if there is none."""

    content: ColumnPath | None
    path: ColumnPath | None


class TableColumns(NamedTuple):
    """The columns of a table that are read."""

    files: dict[str, FileColumn]
    """By image, audio and video modality."""
    texts: dict[str, list[ColumnPath]]
    """By text modality; a row has the captions of all columns."""
    label: ColumnPath | None
    class_names: tuple[str, ...] | None
    """The names of the classes, where the schema has them."""
    group: ColumnPath | None
    measured: Mapping[str, tuple[ColumnPath, ...]] = MappingProxyType({})
    """By modality of measured quantities, the columns that are joined."""

    def paths(self) -> list[ColumnPath]:
        """All columns and fields."""
        of_files = [path for column in self.files.values() for path in column]
        of_texts = [path for paths in self.texts.values() for path in paths]
        of_numbers = [path for paths in self.measured.values() for path in paths]
        every = (*of_files, *of_texts, self.label, self.group, *of_numbers)
        return [*dict.fromkeys(path for path in every if path)]


def read_features(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """What ``datasets`` says of each column, by name: ``{"label": {"_type": "ClassLabel", "names": [...]}}``.

    Raises:
      ValueError: it cannot be read.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        value = parse_json(text.decode())
    except ValueError as error:
        raise ValueError(f"{path}: the metadata 'huggingface' of the schema: {error}.") from error
    info = value.get("info") if isinstance(value, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


_MAGIC = {
    b"\x89PNG": "image", b"\xff\xd8\xff": "image", b"BM": "image", b"GIF8": "video",
    b"fLaC": "audio", b"OggS": "audio", b"ID3": "audio", b"\xff\xfb": "audio",
}  # fmt: skip
"""How files begin, by the modality that they are read as."""


def modality_of_content(content: bytes) -> str | None:
    """``image``, ``audio`` or ``video`` by how a file begins; None if that is not known."""
    if content[:4] == b"RIFF":
        return {b"WAVE": "audio", b"WEBP": "image"}.get(content[8:12])
    if content[4:8] == b"ftyp":
        return "video"
    return next((kind for magic, kind in _MAGIC.items() if content.startswith(magic)), None)


def _tag(feature: Any) -> str | None:
    """The type that ``datasets`` gives a column, such as ``Image``."""
    tag = feature.get("_type") if isinstance(feature, dict) else None
    return tag if isinstance(tag, str) else None


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a feature of the type ``ClassLabel``; None: it is none, or has no names."""
    names = feature.get("names") if _tag(feature) == "ClassLabel" else None
    names = [*names.values()] if isinstance(names, dict) else names
    usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if usable else None


def _file_column(path: ColumnPath, kind: pa.DataType) -> FileColumn | None:
    """How a column of a type holds files; None if it cannot. Strings are names of files."""
    if is_bytes(kind):
        return FileColumn(path, None)
    if is_text(kind):
        return FileColumn(None, path)
    if not pa.types.is_struct(kind):
        return None
    types = {child.name: child.type for child in kind}
    content = (*path, "bytes") if is_bytes(types.get("bytes", pa.int8())) else None
    name = (*path, "path") if is_text(types.get("path", pa.int8())) else None
    return FileColumn(content, name) if content or name else None


def _holds_captions(kind: pa.DataType) -> bool:
    return is_text(kind) or (is_list(kind) and is_text(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def holds_numbers(kind: pa.DataType) -> bool:
    """Whether a type is that of numbers, of lists of numbers, or of lists of such lists."""
    depth = 0
    while is_list(kind) and depth < 2:
        kind, depth = kind.value_type, depth + 1
    return _is_number(kind) or pa.types.is_boolean(kind)


class _Schema:
    """The columns of a table by name, and what is known of them.

    Args:
      files: the table's files. A column is what the first file says in which it has values: pandas writes one without
        any as of the type null. Its first rows are read where the types do not tell enough.
      chosen: further columns that are asked for: fields of structs, as ``translation.es``.

    Raises:
      ValueError: what ``datasets`` says of the columns cannot be read, or a column that is asked for has no values.
    """

    def __init__(self, files: Sequence[ArrowFile], chosen: Iterable[str]):
        self.file_of: dict[str, ArrowFile] = {}
        self.types: dict[str, pa.DataType] = {}
        names = dict.fromkeys(field.name for file in files for field in file.schema)
        for file in files:
            for field in file.schema:
                if field.name not in self.types and not pa.types.is_null(field.type):
                    self.types[field.name], self.file_of[field.name] = field.type, file
        self.types = {name: self.types[name] for name in names if name in self.types}
        self.empty = tuple(name for name in names if name not in self.types)
        """The columns without any value."""
        self.paths: dict[str, ColumnPath] = {name: (name,) for name in self.types}
        self._features_of = [(file, read_features(file.schema, file.path)) for file in files]
        self.features = {
            name: feature for _, features in reversed(self._features_of) for name, feature in features.items()
        }
        for column in chosen:
            path = tuple(column.split("."))
            if column in self.empty:
                raise ValueError(f"{files[0].path}: the column {column} (--columns) has no value in any row.")
            if column not in self.paths and path[0] in self.paths:
                file = self.file_of[path[0]]
                self.types[column] = read_type(file.schema, path, file.path)
                self.paths[column] = path
        for name, feature in self.features.items():
            kind = self.types.get(name)
            if _tag(feature) == "Translation" and kind is not None and pa.types.is_struct(kind):
                for child in kind:
                    self.paths[f"text_{child.name}"] = (name, child.name)
                    self.types[f"text_{child.name}"] = child.type

    def tag(self, column: str) -> str | None:
        """The type that ``datasets`` gives a column."""
        return _tag(self.features.get(column))

    def file_column(self, column: str) -> FileColumn | None:
        """How a column holds files; None if it cannot."""
        return _file_column(self.paths[column], self.types[column])

    def _first_values(self, path: ColumnPath | None) -> list[str] | list[bytes]:
        """The strings (text that is not UTF-8 has lone surrogates) or bytes in the first rows of a column that are not
        null."""
        part = next(iter(self.file_of[path[0]].scan(path, most=SAMPLED_ROWS)), None) if path else None
        if part is None:
            return []
        values = Block([simplify(part)]).get(np.arange(len(part)))
        values = [value for value in values if value]
        is_string = is_text(part.type)
        return [value.decode("utf-8", "surrogateescape") for value in values] if is_string else values

    def contents(self, column: str) -> set[str]:
        """What kinds of values a column has, see `assign_columns`: by its type, or by how its first files begin."""
        kind, files = self.types[column], self.file_column(column)
        if self.tag(column) in ("Image", "Audio", "Video") and files:
            return {self.tag(column).lower()}
        if is_text(kind):
            names = [name for name in self._first_values(self.paths[column]) if "://" not in name]
            return {"text"} | ({modality_of_file(name) for name in names} - {None})
        if _holds_captions(kind):
            return {"text"}
        if files:
            kinds = {modality_of_content(content) for content in self._first_values(files.content)} - {None}
            return kinds or {modality_of_file(name) for name in self._first_values(files.path)} - {None}
        if _is_number(kind):
            return {"number"}
        return {"numbers"} if is_list(kind) and holds_numbers(kind) else set()

    def class_names(self, column: ColumnPath | None) -> tuple[str, ...] | None:
        """The names of the classes of a column of type ``ClassLabel``."""
        if column is None or len(column) != 1 or not _is_number(self.types[column[0]]):
            return None
        names, first = None, None
        for file, features in self._features_of:
            of_file = _class_names(features.get(column[0]))
            if of_file and names and of_file != names:
                raise ValueError(
                    f"{file.path}: the classes of the column {column[0]} are {shorten(', '.join(of_file))}, but "
                    f"{shorten(', '.join(names))} in {first}: a number must mean the same class in all files."
                )
            if of_file and not names:
                names, first = of_file, file.path
        if names and (len({*names}) < len(names) or not all(name.strip() for name in names)):
            raise ValueError(
                f"{first}: the classes of the column {column[0]} are {shorten(', '.join(map(repr, names)))}: each must "
                "have a name of its own."
            )
        return names

    def list_types(self) -> str:
        """The columns with their types, for messages."""
        types = {**{name: "null" for name in self.empty}, **self.types}
        return ", ".join(f"{shorten(name)} ({shorten(str(kind))})" for name, kind in types.items())


def _fields_by_type(
    schema: _Schema, fields: Mapping[str, Sequence[str]], data_set: str
) -> dict[str, tuple[str, ...]]:
    """The fields of the columns that have none by their names: the only column with images, recordings or videos, where
    no column has those, and the only one of type ``ClassLabel``, where no column has labels.

    Raises:
      ValueError: several columns have images, and none is called so.
    """
    names = {name for of_column in fields.values() for name in of_column}
    candidates: dict[str, list[str]] = defaultdict(list)
    for column in schema.types:
        if column in fields:
            continue
        for kind in schema.contents(column) & set(FILE_MODALITIES):
            if not is_text(schema.types[column]):
                candidates[kind].append(column)
        if schema.tag(column) == "ClassLabel":
            candidates["label"].append(column)
    fields_of: dict[str, tuple[str, ...]] = {}
    for field, columns in candidates.items():
        if field in names or (field == "label" and len(columns) > 1):
            continue
        if len(columns) > 1:
            several = " ".join([f"{field}={columns[0]}", *(f"{field}_{c}={c}" for c in columns[1:])])
            raise ValueError(
                f"{data_set}: the columns {', '.join(columns)} can each be the {field}: choose by --columns "
                f"{field}={columns[0]}, or read several by --columns {several}."
            )
        fields_of[columns[0]] = (field,)
    return fields_of


_EXPECTED = {
    "text": "strings, or lists of strings",
    "label": "whole numbers or strings",
    "group": "whole numbers or strings",
}
"""What columns must hold, by role; the others files."""


def _file_kind(schema: _Schema, column: str) -> str:
    """The modality of a column with names of files of any; ValueError if they are of several."""
    kinds = sorted(schema.contents(column) & set(FILE_MODALITIES)) or ["image"]
    if len(kinds) > 1:
        raise ValueError(
            f"{schema.file_of[column].path}: the column {column} names files of {' and '.join(kinds)}: write a column "
            "for each, and null where a row has none."
        )
    return kinds[0]


def _assemble_columns(
    schema: _Schema,
    fields: Mapping[str, Sequence[str]],
    modalities: Collection[str] | None,
    measured: Mapping[str, Sequence[str]],
    columns: Collection[str],
    bad_examples: BadExamples,
) -> TableColumns:
    """The columns of each modality, the label and the group, from the ``fields`` that each column holds; ``measured``:
    the columns of each modality of measured quantities, in order.

    Args:
      schema: the columns.
      fields: by column what it holds.
      modalities: those that are asked for; None: all.
      columns: those that ``--columns`` names.
      bad_examples: is told of labels that cannot be read and were not asked for.

    Raises:
      ValueError: the type of a column does not fit, and ``modalities`` ask for it.
    """
    files: dict[str, FileColumn] = {}
    texts: dict[str, list[ColumnPath]] = defaultdict(list)
    single: dict[str, ColumnPath] = {}
    for column, of_column in fields.items():
        kind, place = schema.types[column], schema.paths[column]
        for field in of_column:
            if field == "file_name":
                field = _file_kind(schema, column)
            role = field if field in ("label", "group") else kind_of(field)
            is_key = is_text(kind) or (_is_number(kind) and (role == "label" or pa.types.is_integer(kind)))
            if field in measured and holds_numbers(kind):
                continue
            if role in FILE_MODALITIES and (file_column := schema.file_column(column)):
                files[field] = file_column
            elif role == "text" and _holds_captions(kind):
                texts[field].append(place)
            elif role in ("label", "group") and is_key:
                single[role] = place
            elif role == "label" and column not in columns:
                bad_examples.remark(
                    f"{schema.file_of[place[0]].path}: the column {column} is not read: labels are {_EXPECTED[role]}, "
                    f"and it is {shorten(str(kind))} (--columns label=COLUMN chooses another)"
                )
            elif modalities is None or field in (*modalities, "label", "group"):
                expected = _EXPECTED.get(role, "files: bytes, structs of bytes and path, or names of files")
                expected = "numbers, or lists of numbers" if field in measured else expected
                advice = "or write it so" if role in ("label", "group") else "or leave it out by --modalities"
                raise ValueError(
                    f"{schema.file_of[place[0]].path}: the column {column}, which is to be the {field}, is {kind}; "
                    f"expected {expected}. Choose another by --columns {field}=COLUMN, {advice}."
                )
    label = single.get("label")
    numbers = {
        m: tuple(schema.paths[column] for column in columns)
        for m, columns in measured.items()
        if modalities is None or m in modalities
    }
    return TableColumns(files, dict(texts), label, schema.class_names(label), single.get("group"), numbers)


def choose_columns(
    files: Sequence[ArrowFile],
    columns: Mapping[str, str],
    modalities: Collection[str] | None,
    data_set: str,
    bad_examples: BadExamples,
) -> TableColumns:
    """Which columns of files with one schema are read: see `assign_columns`, which goes by names. What has no such name
    is found by its type:

    - the only column of the type ``Image``, ``Audio`` or ``Video``, or of bytes that begin as such files do;
    - the only column of the type ``ClassLabel``;
    - ``text_es`` of a column of the type ``Translation``, if ``modalities`` or ``columns`` name it.

    Args:
      files: the files.
      columns: ``--columns``; a column may be a field of a struct, as ``translation.es``.
      modalities: those that are asked for; None: all.
      data_set: its name in messages.
      bad_examples: remarks how columns were found, and which are not read.

    Raises:
      ValueError: a column in ``columns`` has the wrong type; several columns could be one field; no column has files,
        text or numbers; or the files do not have the same columns.
    """
    for file in files:
        if (twice := first_duplicate(file.schema.names)) is not None:
            raise ValueError(f"{file.path}: the column {shorten(twice)} is there twice: rename one.")
    schema = _Schema(files, [c for spec in columns.values() for c in (spec, *spec.split(","))])
    contents = functools.cache(schema.contents)
    roles = assign_columns(data_set, [*schema.types], contents, chosen=columns, modalities=modalities)
    by_type = _fields_by_type(schema, roles.fields, data_set)
    fields = roles.fields | by_type
    chosen = _assemble_columns(schema, fields, modalities, roles.measured, columns.values(), bad_examples)
    if not chosen.files and not chosen.texts and not chosen.measured:
        raise ValueError(
            f"{data_set}: no column with images, audio, video or captions is known by its name or type; found "
            f"{schema.list_types()}. Say which they are: --columns image=COLUMN text=COLUMN label=COLUMN."
        )
    for file in files:
        for path in chosen.paths():
            _check_same(path, file, schema.file_of[path[0]])
    if schema.empty:
        names = ", ".join(map(shorten, schema.empty))
        bad_examples.remark(f"{data_set}: columns without any value: {names}")
    fields_of_structs = {name for name, path in schema.paths.items() if len(path) > 1}
    used = {path[0] for path in chosen.paths()}
    guessed = roles.guessed | {column: of_column[0] for column, of_column in by_type.items()}
    unread = tuple(name for name in roles.unread if name not in used and name not in fields_of_structs)
    roles._replace(guessed=guessed, unread=unread).remark(data_set, bad_examples)
    return chosen


def _check_same(path: ColumnPath, file: ArrowFile, first: ArrowFile) -> None:
    """Raises ValueError if a file has a column of another type than the file ``first``, or does not have it."""

    def family(kind: pa.DataType) -> str:
        """What values of a type are read as."""
        checks = {"text": is_text, "bytes": is_bytes, "a list": is_list, "a number": _is_number}
        return next((name for name, check in checks.items() if check(kind)), str(kind))

    try:
        kind = read_type(file.schema, path, file.path)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}, while {first.path} has it.") from error
    expected = read_type(first.schema, path, first.path)
    if family(kind) != family(expected) and not pa.types.is_null(kind) and not pa.types.is_null(expected):
        raise ValueError(
            f"{file.path}: the column {'.'.join(path)} is {kind}, but {expected} in {first.path}."
        )
