"""Which column of a table holds what: files, captions, the class, or the picture that rows share.

A column is found by ``--columns``, else by its usual name, else by a common one (`COMMON_NAMES`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from xmodal_jax.core.text_files import normalise, shorten
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.measured_columns import expand_columns
from xmodal_jax.types import MODALITIES, is_measured, kind_of

FILE_MODALITIES = ("image", "audio", "video")
TEXT_FIELDS = ("text", "texts", "caption", "captions", "transcription")
"""Usual names of columns of captions; where there are several, a row has the captions of all."""
COLUMN_NAMES = ("file_name", "label", "group", *MODALITIES)
"""What a column can hold, as ``--columns`` calls it: ``file_name`` is a file of any modality, ``group`` what is equal
for rows that show the same picture. Besides a modality's name also KIND_NAME (``image_2``), and KIND_file_name."""

COMMON_NAMES: Mapping[str, tuple[str, ...]] = {
    "file_name": (
        "file_name", "filename", "file", "filepath", "file_path", "filenames", "path", "relative_path", "media",
        "media_path",
    ),
    "image": (
        "image_path", "image_file", "image_filename", "image_filepath", "image_name", "images", "img", "img_path",
        "img_name", "img_file", "image_bytes", "img_bytes", "photo", "picture", "pixel_values", "jpg", "png",
    ),
    "audio": (
        "audio_path", "audio_file", "audio_filename", "audio_filepath", "audio_bytes", "wav", "wav_path", "wav_file",
        "wav_filename", "sound", "recording", "speech", "mp3", "flac",
    ),
    "video": (
        "video_path", "video_file", "video_filename", "video_name", "video_bytes", "clip", "clip_path", "mp4", "gif",
    ),
    "text": (
        "sentence", "sentences", "transcript", "transcripts", "description", "descriptions", "utterance", "alt_text",
        "txt", "comment", *TEXT_FIELDS,
    ),
    "label": ("label", "labels", "category", "class", "classname", "class_name", "class_id", "label_name", "cls"),
}  # fmt: skip
"""By field the names that columns often have, in lower case and with ``_`` for spaces and hyphens. One of them is taken
where the usual column is not there."""


_NO_MODALITIES = ("file_name", "label", "group")
"""The fields that are no modality."""


def names_modality(name: str) -> bool:
    """Whether ``name`` is a kind of modality, or a kind with a name such as ``image_2``."""
    return not name.endswith(("_mask", "_present", "_")) and name.partition("_")[0] in MODALITIES


def field_of(name: str) -> str | None:
    """The field that a name of ``--columns`` stands for: ``file_name``, ``label``, ``group`` or a modality
    (``image_2_file_name`` is ``image_2``); None: it is no such name."""
    if name in _NO_MODALITIES:
        return name
    stem = name.removesuffix("_file_name")
    if not names_modality(stem) or (stem != name and kind_of(stem) not in FILE_MODALITIES):
        return None
    return stem


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
    """``--columns`` as a dict from fields (see `field_of`) to columns: ``("file_name=path",)`` gives ``{"file_name":
    "path"}``. Measured quantities may have several columns: ``vector=age,weight,lab_*``.

    Raises:
      ValueError: one is not NAME=COLUMN, or two say the same field.
    """
    column_of: dict[str, str] = {}
    for mapping in columns:
        name, _, column = mapping.partition("=")
        field = field_of(name)
        if field is None or not column:
            raise ValueError(
                f"columns: {mapping!r} is not NAME=COLUMN, as file_name=path; NAME is one of "
                f"{', '.join(COLUMN_NAMES)}, or a modality with a name of its own, as image_2 or text_es."
            )
        if field in column_of:
            raise ValueError(
                f"columns: {field} is given twice, as {column_of[field]} and as {column}: give one of them."
            )
        column_of[field] = column
    return column_of


def common_field(column: str) -> str | None:
    """The field that a column's name is a common name of, see `COMMON_NAMES`; None: of none."""
    name = normalise(column).strip().lower().replace(" ", "_").replace("-", "_")
    return next((field for field, names in COMMON_NAMES.items() if name in names), None)


class ColumnRoles(NamedTuple):
    """What the columns of a table hold."""

    fields: dict[str, tuple[str, ...]]
    """By column the fields that it holds, see `field_of`: one, unless ``--columns`` says more."""
    guessed: dict[str, str]
    """The columns that were found by a common name, with their fields."""
    unread: tuple[str, ...]
    """The columns that hold nothing that is read."""
    measured: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """The columns of each modality of measured quantities, in the order in which they are joined."""

    def remark(self, path: str | Path, bad_examples: BadExamples) -> None:
        """Says which columns were taken for what, and which are not read; ``path`` is the table's."""
        if self.guessed:
            pairs = ", ".join(f"{field} from {shorten(column)}" for column, field in self.guessed.items())
            bad_examples.remark(f"{Path(path).name}: {pairs} (--columns NAME=COLUMN chooses others)")
        if any("group" in fields for fields in self.fields.values()):
            bad_examples.remark(
                f"{Path(path).name}: rows with the same group are taken to show the same picture"
            )
        if self.unread:
            texts = [c for c in self.unread if names_modality(c) and kind_of(c) == "text"]
            advice = "--columns NAME=COLUMN reads one"
            advice += f", --modalities ... {texts[0]} a text of its own" if texts else ""
            names = ", ".join(map(shorten, self.unread))
            # By its name, as the tables of all splits have one: what is the same in each is said once.
            bad_examples.remark(f"{Path(path).name}: columns that are not read: {names} ({advice})")


def assign_columns(
    path: str | Path,
    columns: Sequence[str],
    contents: Callable[[str], Collection[str]],
    *,
    chosen: Mapping[str, str] | None = None,
    modalities: Collection[str] | None = None,
    frequent: Collection[str] | None = None,
) -> ColumnRoles:
    """Decides what each column of a table holds.

    Args:
      path: the table, for messages.
      columns: the names of its columns, in order.
      contents: ``contents(column)``: what kinds of values a column has, a set of ``image``, ``audio`` and ``video``
        (files, or names of files), ``text``, ``number`` and ``numbers`` (lists of them).
      chosen: ``--columns`` as `parse_columns` returns it; keys such as ``image_file_name`` are taken too.
      modalities: those that are asked for; a column of one of these names is read, also where it holds another text.
      frequent: the columns that most rows have, which alone are found by common names; None: all.

    Raises:
      ValueError: a column of ``chosen`` is not there, or two columns could be the same field.
    """
    frequent = columns if frequent is None else frequent
    fields: dict[str, list[str]] = defaultdict(list)
    chosen = {field_of(name) or name: column for name, column in (chosen or {}).items()}
    measured: dict[str, tuple[str, ...]] = {}
    for field, column in chosen.items():
        if field not in _NO_MODALITIES and is_measured(field):
            measured[field] = expand_columns(path, field, column, columns)
            for name in measured[field]:
                fields[name].append(field)
            continue
        if column not in columns:
            raise ValueError(f"{path}: no column {column} (--columns); found {', '.join(columns)}.")
        fields[column].append(field)
    usual: dict[str, str] = {}
    for column in columns:
        field = None if column in fields else _usual_field(column, modalities or ())
        if field is None and column in frequent and column not in fields:
            field = _named_files(column, contents)
        if field is None or field in chosen:
            continue
        if field not in _NO_MODALITIES and is_measured(field):
            if not set(contents(column)) & {"number", "numbers"}:
                continue  # "series" may well be the name of one
            measured[field] = (column,)
        if field == "file_name" and (kinds := set(contents(column))) and kinds <= set(chosen) | {"text"}:
            continue  # --columns names the files of these modalities
        if column in frequent:
            if field != "text" and field in usual:
                raise _ambiguous(path, field, [usual[field], column])
            usual[field] = column
        fields[column].append(field)
    guessed = _find_common(path, frequent, contents, fields)
    for column, field in guessed.items():
        fields[column].append(field)
    unread = tuple(column for column in columns if column not in fields)
    of_columns = {column: tuple(names) for column, names in fields.items()}
    return ColumnRoles(of_columns, guessed, unread, measured)


def _usual_field(column: str, modalities: Collection[str]) -> str | None:
    """The field that a column has by its own name; None: by none. ``text_es`` is one only if it is asked for."""
    if column in TEXT_FIELDS:
        return "text"
    field = field_of(column)
    return field if field != column or field in COLUMN_NAMES or field in modalities else None


def _named_files(column: str, contents: Callable[[str], Collection[str]]) -> str | None:
    """The modality with a name that a column holds files of, such as ``image_2``; None: none, as ``image_id``."""
    if not names_modality(column) or common_field(column) is not None:
        return None
    return column if kind_of(column) in set(FILE_MODALITIES) & set(contents(column)) else None


def _find_common(
    path: str | Path,
    columns: Collection[str],
    contents: Callable[[str], Collection[str]],
    fields: Mapping[str, Collection[str]],
) -> dict[str, str]:
    """The fields that columns hold by their common names: a dict from columns to fields, without the fields that a
    column of ``fields`` holds already. The arguments are those of `assign_columns`.

    Raises:
      ValueError: two columns have a common name of one field.
    """
    taken: set[str] = set()  # text, label, and the modalities of which there are files
    for column, of_column in fields.items():
        for field in of_column:
            taken |= set(contents(column)) & set(FILE_MODALITIES) if field == "file_name" else {field}
    candidates: dict[str, list[str]] = defaultdict(list)  # columns by what they hold
    field_of_column: dict[str, str] = {}
    for column in columns:
        field = None if column in fields else common_field(column)
        held = set() if field is None else _held_by(field, set(contents(column)))
        if held and not held & taken:
            field_of_column[column] = field
            for name in held:
                candidates[name].append(column)
    for name, names in candidates.items():
        if len(names) > 1:
            raise _ambiguous(path, name, names)
    return field_of_column


def _held_by(field: str, kinds: set[str]) -> set[str]:
    """What a column with a common name of ``field`` and values of these ``kinds`` holds: ``text``, ``label``, or
    modalities of files. Empty: its values do not fit its name."""
    files = kinds & set(FILE_MODALITIES)
    if field == "file_name":
        return files
    if field in FILE_MODALITIES:
        return {field} if files else set()
    return {field} if "text" in kinds or (field == "label" and "number" in kinds) else set()


def _ambiguous(path: str | Path, field: str, columns: Sequence[str]) -> ValueError:
    names = ", ".join(columns[:-1]) + f" and {columns[-1]}"
    return ValueError(
        f"{path}: the columns {names} can each be the {field}: choose by --columns {field}={columns[0]}."
    )
