"""Which columns of an Arrow schema are files, captions, labels and groups: by their types, their names, and what
``datasets`` writes about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from xmodal_jax.core.text_files import parse_json, shorten
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.columns import FILE_MODALITIES, TEXT_FIELDS
from xmodal_jax.data.media import modality_of_file
from xmodal_jax.data.sources.arrow_files import (
    ArrowFile,
    ColumnPath,
    is_bytes,
    is_list,
    is_text,
    read_type,
)
from xmodal_jax.types import MODALITIES

BARE_NAMES = {
    "image": ("image", "img", "picture", "photo", "pixel_values", "png", "jpg", "jpeg", "webp"),
    "audio": ("audio", "sound", "speech", "recording", "wav", "mp3", "flac"),
    "video": ("video", "clip", "mp4", "gif"),
    "text": (*TEXT_FIELDS, "sentence", "sentences", "transcript", "description"),
}
"""Names of columns by kind of modality. Of columns with files, others with such a first word are taken as well."""
LABEL_NAMES = ("label", "labels", "category", "class")
"""Names of columns with labels."""


class FileColumn(NamedTuple):
    """A column of files: their contents, or where they are if there is none."""

    content: ColumnPath | None
    path: ColumnPath | None


class ColumnRoles(NamedTuple):
    """What the columns of a table are."""

    files: dict[str, FileColumn]
    """By image, audio and video modality."""
    texts: dict[str, ColumnPath]
    """By text modality."""
    label: ColumnPath | None
    class_names: tuple[str, ...] | None
    """The names of the classes, where the schema has them."""
    group: ColumnPath | None

    def paths(self) -> list[ColumnPath]:
        """All columns and fields that are read."""
        of_files = [path for column in self.files.values() for path in column]
        return [path for path in (*of_files, *self.texts.values(), self.label, self.group) if path]


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


def _file_column(field: pa.Field) -> FileColumn | None:
    """How a column holds files; None if it cannot. Strings are names of files."""
    if is_bytes(field.type):
        return FileColumn((field.name,), None)
    if is_text(field.type):
        return FileColumn(None, (field.name,))
    if not pa.types.is_struct(field.type):
        return None
    types = {child.name: child.type for child in field.type}
    content = (field.name, "bytes") if is_bytes(types.get("bytes", pa.int8())) else None
    path = (field.name, "path") if is_text(types.get("path", pa.int8())) else None
    return FileColumn(content, path) if content or path else None


def _holds_captions(kind: pa.DataType) -> bool:
    return is_text(kind) or (is_list(kind) and is_text(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


class _Schema:
    """The columns of a table, and what is known of them."""

    def __init__(self, file: ArrowFile):
        self._file = file
        self.fields = {field.name: field for field in file.schema}
        self.features = read_features(file.schema, file.path)

    def _first_file(self, column: FileColumn) -> tuple[bytes | None, str]:
        """How the first file in a column begins, and its name."""
        values = []
        for path in column:
            part = next(iter(self._file.scan(path, most=8)), ()) if path else ()
            values.append(next((value.as_py() for value in part if value.is_valid), None))
        return values[0], values[1] or ""

    def file_kind(self, name: str) -> str | None:
        """The kind of files that a column has, if it is certain: from ``datasets``, from its name, or as its first file
        begins. Strings are names of files only where the column is called so."""
        field, tag = self.fields[name], _tag(self.features.get(name))
        column = _file_column(field)
        if column is None:
            return None
        if tag in ("Image", "Audio", "Video"):
            return tag.lower()
        if is_text(field.type):
            stem = name.removesuffix("_file_name")
            if name == "file_name":
                return modality_of_file(self._first_file(column)[1])
            return stem if stem in FILE_MODALITIES and stem != name else None
        words = re.split(r"[^a-z0-9]+", name.lower())
        for kind in FILE_MODALITIES:
            if name.lower() in BARE_NAMES[kind] or words[0] in BARE_NAMES[kind]:
                return kind
        content, path = self._first_file(column)
        return modality_of_content(content or b"") or modality_of_file(path)

    def file_columns(self, kind: str) -> list[str]:
        """The columns with files of a kind, in the order of the table."""
        return [name for name in self.fields if self.file_kind(name) == kind]

    def text_columns(self) -> dict[str, ColumnPath]:
        """The columns with captions by name, and the fields of translations: ``text_es`` in ``translation``."""
        found = {}
        for name, field in self.fields.items():
            if _tag(self.features.get(name)) == "Translation" and pa.types.is_struct(field.type):
                found |= {f"text_{child.name}": (name, child.name) for child in field.type}
            named = name.lower() in BARE_NAMES["text"] or re.fullmatch(r"(text|caption)_\w+", name.lower())
            if named and _holds_captions(field.type):
                found[name] = (name,)
        return found

    def label_column(self) -> str | None:
        """The column with labels; None if there is none, or none that is certain."""
        usable = [n for n, f in self.fields.items() if _is_number(f.type) or is_text(f.type)]
        named = [name for name in usable if name.lower() in LABEL_NAMES]
        tagged = [name for name in usable if _tag(self.features.get(name)) == "ClassLabel"]
        if "label" in named:
            return "label"
        return next((names[0] for names in (named, tagged) if len(names) == 1), None)

    def class_names(self, column: ColumnPath | None) -> tuple[str, ...] | None:
        """The names of the classes of a column of type ``ClassLabel``."""
        feature = self.features.get(column[0]) if column and len(column) == 1 else None
        names = feature.get("names") if _tag(feature) == "ClassLabel" else None
        names = [*names.values()] if isinstance(names, dict) else names
        usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        return tuple(names) if usable and not is_text(self.fields[column[0]].type) else None

    def list_types(self) -> str:
        """The columns with their types, for messages."""
        return ", ".join(
            f"{shorten(field.name)} ({shorten(str(field.type))})" for field in self.fields.values()
        )


def _modality_name(kind: str, column: str) -> str:
    """The name of a further modality, made of a column's: ``image_left`` of ``image_left`` or ``left``."""
    name = re.sub(r"\W+", "_", column.lower()).strip("_")
    name = re.sub(r"^caption(?=_)", "text", name)
    return name if name.startswith(f"{kind}_") else f"{kind}_{name}"


def _name_columns(
    kind: str, columns: Sequence[str], data_set: str, bad_examples: BadExamples
) -> dict[str, str]:
    """The modality of each of several columns of one kind: ``{"image": "image", "image_left": "left"}``.

    Raises:
      ValueError: it cannot be told which of them is the main one.
    """
    if len(columns) == 1:
        only = columns[0].lower()
        is_named = kind == "text" and only not in BARE_NAMES["text"]  # as text_es
        return {_modality_name(kind, only) if is_named else kind: columns[0]}
    named = [
        c
        for c in columns
        if c.lower().startswith((f"{kind}_", "caption_")) and c.lower() not in BARE_NAMES[kind]
    ]
    others = [column for column in columns if column not in named]
    main = [c for c in others if c.lower() == kind] or [c for c in others if c.lower() in BARE_NAMES[kind]]
    main = main or others
    if len(main) > 1:
        rest = " ".join(f"{_modality_name(kind, column)}={column}" for column in main[1:])
        raise ValueError(
            f"{data_set}: the columns {', '.join(main)} are all {kind}: say which to read by --columns "
            f"{kind}={main[0]}, or name several: --columns {kind}={main[0]} {rest}."
        )
    found = {kind: main[0]} if main else {}
    if kind != "text":  # a second caption column may say the same again: it is noted, and not read
        named += [column for column in others if column not in main]
    for column in named:
        modality = _modality_name(kind, column)
        if modality.endswith(("_mask", "_present")) or modality in found:
            continue  # such a name has another meaning in a batch
        found[modality] = column
        if modality != column:
            bad_examples.remark(f"{data_set}: the column {column} is the modality {modality}")
    return found


class _Roles:
    """Chooses the columns of a table; see `choose_columns`."""

    def __init__(self, schema: _Schema, data_set: str, path: Path):
        self._schema, self._data_set, self._path = schema, data_set, path
        self.files: dict[str, FileColumn] = {}
        self.texts: dict[str, ColumnPath] = {}
        self.label: ColumnPath | None = None
        self.group: ColumnPath | None = None

    def assign(self, name: str, column: str) -> None:
        """Gives a column the role ``name``: a modality, ``label`` or ``group``.

        Raises:
          ValueError: there is no such column, or its type does not fit.
        """
        schema, path = self._schema, (column,)
        if column not in schema.fields and "." in column:
            path = tuple(column.split("."))
        try:
            kind = read_type(self._file_schema, path, self._path)
        except ValueError as error:
            raise ValueError(f"{str(error).rstrip('.')} (--columns {name}={column}).") from error
        field, role = pa.field(path[-1], kind), name.partition("_")[0]
        prefix = path[:-1]
        files = _file_column(field)
        if role == "file" and files:
            role = name = schema.file_kind(column) if len(path) == 1 else None
        if role in FILE_MODALITIES and files:
            name = name.removesuffix("_file_name")
            self.files[name] = FileColumn(*(part and (*prefix, *part) for part in files))
        elif role == "text" and _holds_captions(kind):
            self.texts[name] = path
        elif name == "label" and (_is_number(kind) or is_text(kind)):
            self.label = path
        elif name == "group" and (pa.types.is_integer(kind) or is_text(kind)):
            self.group = path
        else:
            expected = {
                "text": "text: strings or lists of strings",
                "label": "labels: whole numbers or strings",
                "group": "groups: whole numbers or strings",
            }.get(role, "files: bytes, structs of bytes and path, or names of files")
            raise ValueError(
                f"{self._path}: the column {column} is {kind}; expected {expected} (--columns {name}={column})."
            )

    @property
    def _file_schema(self) -> pa.Schema:
        return pa.schema(list(self._schema.fields.values()))

    def add_files(self, bad_examples: BadExamples) -> None:
        """Adds the columns with files that are certain, of the kinds that have none yet."""
        for kind in FILE_MODALITIES:
            columns = self._schema.file_columns(kind) if kind not in self.files else []
            taken = {path[0] for column in self.files.values() for path in column if path}
            columns = [column for column in columns if column not in taken]
            if columns:
                named = _name_columns(kind, columns, self._data_set, bad_examples)
                for modality, column in named.items():
                    self.files.setdefault(modality, _file_column(self._schema.fields[column]))

    def add_texts(self, bad_examples: BadExamples) -> None:
        """Adds the columns with captions that are certain."""
        taken = {*self.texts.values()}
        columns = {name: path for name, path in self._schema.text_columns().items() if path not in taken}
        if "text" in self.texts:
            columns = {n: path for n, path in columns.items() if n.lower() not in BARE_NAMES["text"]}
        if columns:
            named = _name_columns("text", [*columns], self._data_set, bad_examples)
            self.texts |= {m: columns[name] for m, name in named.items() if m not in self.texts}

    def finish(self) -> ColumnRoles:
        """The roles, with those of labels and groups that were not assigned."""
        schema = self._schema
        used = {path[0] for path in self.texts.values()} | {
            path[0] for column in self.files.values() for path in column if path
        }
        if self.label is None and (name := schema.label_column()) and name not in used:
            self.label = (name,)
        group = schema.fields.get("group")
        if (
            self.group is None
            and group is not None
            and (pa.types.is_integer(group.type) or is_text(group.type))
        ):
            self.group = ("group",)
        return ColumnRoles(self.files, self.texts, self.label, schema.class_names(self.label), self.group)


def choose_columns(
    files: Sequence[ArrowFile], columns: Mapping[str, str], data_set: str, bad_examples: BadExamples
) -> ColumnRoles:
    """What the columns of files with one schema are. Columns that are not read are noted in ``bad_examples``.

    - Files: columns of the types ``Image``, ``Audio`` and ``Video``, and columns of bytes (or structs of bytes and
      path) that are named after a kind of files, or whose first file begins as one does. Of several images, the one
      called ``image`` is this modality, and ``left`` is ``image_left``.
    - Captions: strings or lists of strings in a column of a usual name such as ``caption``; ``text_es`` and
      ``caption_es`` are further modalities, and so is each language of the type ``Translation``.
    - ``label``, ``labels``, ``category``, ``class``, or the only column of type ``ClassLabel``; ``group``.

    Args:
      files: the files.
      columns: the columns of modalities, ``label`` and ``group`` that are to be read; others by the rules above.
      data_set: its name in messages.
      bad_examples: see above.

    Raises:
      ValueError: a column in ``columns`` that does not fit, several that are equally good, or none with files or text;
        or files that do not have the same columns.
    """
    schema = _Schema(files[0])
    roles = _Roles(schema, data_set, files[0].path)
    for name, column in columns.items():
        roles.assign(name, column)
    roles.add_files(bad_examples)
    roles.add_texts(bad_examples)
    chosen = roles.finish()
    if not chosen.files and not chosen.texts:
        raise ValueError(
            f"{data_set}: no column with images, audio, video or captions is known by its name or type; found "
            f"{schema.list_types()}. Say which they are: --columns image=COLUMN text=COLUMN label=COLUMN."
        )
    for file in files[1:]:
        _check_same(chosen.paths(), file, files[0])
    used = {path[0] for path in chosen.paths()}
    rows = sum(file.rows for file in files)
    for name in sorted(set(schema.fields) - used):
        bad_examples.note(f"the column {shorten(name)} of {data_set} is not read", rows, once=True)
    return chosen


def _check_same(paths: Iterable[ColumnPath], file: ArrowFile, first: ArrowFile) -> None:
    """Raises ValueError if a file has other columns than the first one."""

    def family(kind: pa.DataType) -> str:
        """What values of a type are read as."""
        checks = {"text": is_text, "bytes": is_bytes, "a list": is_list, "a number": _is_number}
        return next((name for name, check in checks.items() if check(kind)), str(kind))

    for path in paths:
        kind = read_type(file.schema, path, file.path)
        expected = read_type(first.schema, path, first.path)
        if family(kind) != family(expected) and not pa.types.is_null(kind) and not pa.types.is_null(expected):
            raise ValueError(
                f"{file.path}: the column {'.'.join(path)} is {kind}, but {expected} in {first.path}."
            )


assert {*BARE_NAMES} == {*MODALITIES}
