"""What a layout of a folder is: how it is recognised, and which records each of its splits has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xmodal_jax.core.text_files import split_lines, surrogate_in
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.metadata import Record, parse_captions, parse_file_name
from xmodal_jax.data.read_once import read_once


class ReadOptions(NamedTuple):
    """What a user says about how annotations are read; see `metadata.read_metadata`."""

    columns: Mapping[str, str] | None = None
    allow_outside: bool = False
    modalities: Collection[str] | None = None

    @property
    def key(self) -> tuple:
        """Equal for equal options."""
        columns = tuple(sorted((self.columns or {}).items()))
        return columns, self.allow_outside, tuple(sorted(self.modalities or ()))


class SplitFiles(NamedTuple):
    """Where a split of a data set is written down."""

    path: Path
    """The file, or the folder, that stands for the split in messages."""
    folder: Path
    """The folder in which the names of files are."""
    read: Callable[[ReadOptions, BadExamples], list[Record]]
    """Reads the records; it reports lines that cannot be used."""
    files: tuple[Path, ...] = ()
    """All files that ``read`` opens; empty: it lists folders."""

    def records(self, options: ReadOptions, bad_examples: BadExamples) -> list[Record]:
        """The records of the split, read once as long as the files do not change."""
        read = lambda bad_examples: self.read(options, bad_examples)
        if not self.files:
            return read(bad_examples)
        return read_once(
            read,
            bad_examples,
            files=self.files,
            key=("records", str(self.path), str(self.folder), options.key),
        )


class Layout(NamedTuple):
    """One way in which data sets lie in a folder."""

    name: str
    """What people call it, such as ``COCO captions``."""
    files: str
    """The files that it is recognised by, for messages."""
    find: Callable[[Path], dict[str, SplitFiles]]
    """``find(root)``: the splits of the data set in the folder ``root`` by name, ``all`` alone for a data set without
    splits; empty: the folder does not have this layout."""
    has_columns: bool = False
    """Whether its annotations have columns that ``--columns`` can name."""


def first_folder(candidates: Sequence[Path]) -> Path:
    """The first of the candidates that is a folder; if none is, the first, so that messages name it."""
    return next((folder for folder in candidates if folder.is_dir()), candidates[0])


SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that operating systems and archive programs add."""


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and those in `SYSTEM_FOLDERS`."""
    return sorted(
        d
        for d in folder.iterdir()
        if d.is_dir() and not d.name.startswith(".") and d.name not in SYSTEM_FOLDERS
    )


class Caption(NamedTuple):
    """A caption of a file, and the line that holds it."""

    line: int
    file: str
    text: str


def group_captions(captions: Sequence[Caption], modality: str) -> list[Record]:
    """One record for each file with all of its captions, in the order in which files come first."""
    by_file: dict[str, tuple[int, list[str]]] = {}
    for caption in captions:
        by_file.setdefault(caption.file, (caption.line, []))[1].append(caption.text)
    return [Record(line, {modality: file}, {"text": texts}, None) for file, (line, texts) in by_file.items()]


def read_captions(
    text: str,
    parse: Callable[[str], tuple[str, str]],
    path: Path,
    options: ReadOptions,
    bad_examples: BadExamples,
    *,
    first: int = 0,
) -> list[Caption]:
    """The captions in a file that has one on each line.

    Args:
      text: the file, see `read_damaged`.
      parse: takes a line, returns the name of its file and its caption; raises ValueError with the reason if it has
        none.
      path: that of the file, for messages.
      options: see `ReadOptions`.
      bad_examples: collects the lines that cannot be used.
      first: number of lines to skip at the beginning, such as a header.
    """
    captions = []
    for number, line in enumerate(split_lines(text)[first:], first + 1):
        if not line.strip():
            continue
        try:
            if damage := surrogate_in(line):
                raise ValueError(damage)
            name, caption = parse(line)
            name = parse_file_name("the line", name, options.allow_outside)
            (caption,) = parse_captions(caption)
        except ValueError as error:
            bad_examples.add(path, number, str(error))
            continue
        captions.append(Caption(number, name, caption))
    return captions
