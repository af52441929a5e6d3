"""``--data folder:PATH``: image, audio and video files listed in a metadata file (see `read_metadata`)."""

from __future__ import annotations

import itertools
import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.labels import Labels
from xmodal_jax.data.metadata import (
    Record,
    choose_test,
    find_metadata,
    read_metadata,
)
from xmodal_jax.data.sources.tables import TableSource
from xmodal_jax.data.table import Content, FolderFile, Row, Table
from xmodal_jax.types import kind_of


class _Listing(NamedTuple):
    path: Path
    """The metadata file of the split."""
    records: list[Record]
    all_records: list[tuple[Path, list[Record]]]
    """The records of all splits with the folders that their files are in, so that a class has the same index and an
    image the same size in each split."""


def _list_split(
    root: Path,
    split: str,
    bad_examples: BadExamples,
    columns: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    modalities: Collection[str] | None = None,
) -> _Listing:
    """The metadata records of one split of the folder ``root``; see `FolderSource` for where splits are found, and
    `read_metadata` for the last three.

    Raises:
      FileNotFoundError: no such folder, or no metadata file in it.
      ValueError: no such split.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root}: there is no such folder.")
    splits = sorted(d.name for d in root.iterdir() if d.is_dir() and find_metadata(d))
    if splits and split in splits:
        path = find_metadata(root / split)
        records = read_metadata(path, bad_examples, columns, allow_outside, modalities)
        other_splits = [find_metadata(root / name) for name in splits if name != split]
    elif splits:
        raise ValueError(
            f"{root} has no split {split!r}; its folders with a metadata file are: {', '.join(splits)}. Add the folder "
            f"{split}/; or move the files of one folder to {root}, of which a tenth is then the test split."
        )
    else:
        path, other_splits = find_metadata(root), []
        if path is None:
            raise FileNotFoundError(
                f"{root} has no metadata.jsonl or metadata.csv, nor have its folders train/ and test/. Write one line "
                'per example, such as {"file_name": "0001.png", "text": "a red circle", "label": "circle"}.'
            )
        if split not in ("train", "test", "all"):
            raise ValueError(
                f"{root} has no split folders, so that the split must be train, test or all: {split!r}."
            )
        records = read_metadata(path, bad_examples, columns, allow_outside, modalities)
    all_records = [(path.parent, records)]
    pictures_of_others = set()
    for other in other_splits:  # a split's bad examples are reported when that split is opened
        records_of_other = read_metadata(other, BadExamples("skip"), columns, allow_outside, modalities)
        all_records.append((other.parent, records_of_other))
        pictures_of_others |= {_location(other.parent, r) for r in records_of_other}
    if split != "train":
        bad_examples.note(
            f"The pictures of {{examples}} in {path} are in another split too: the scores are not those of unseen "
            "pictures alone.",
            sum(
                r.picture_file is not None and _location(path.parent, r) in pictures_of_others
                for r in records
            ),
        )
    if not splits and split != "all":
        in_test = choose_test(_names_for_split(records), path)
        records = [r for r, test in zip(records, in_test, strict=True) if test == (split == "test")]
    return _Listing(path, records, sorted(all_records, key=lambda folder_and_records: folder_and_records[0]))


def _location(folder: Path, record: Record) -> str | None:
    """The path of a record's picture; its metadata file lies in ``folder``."""
    name = record.picture_file
    return None if name is None else posixpath.normpath(f"{folder}/{name}")


def _names_for_split(records: list[Record]) -> list[str]:
    """For each record the name whose hash decides its split: those of its files, or its captions if it has no files.

    Records that show the same picture and differ in other files (such as spoken captions) have the picture's name, so
    that they are in one split.
    """
    names = ["/".join([*r.files.values()] or itertools.chain(*r.captions.values())) for r in records]
    names_of_picture = defaultdict(set)
    for record, name in zip(records, names, strict=True):
        names_of_picture[record.picture].add(name)
    # Records without a file have the picture None, and share none.
    return [
        name if r.picture is None or len(names_of_picture[r.picture]) == 1 else r.picture
        for r, name in zip(records, names, strict=True)
    ]


class FolderTable(Table):
    """A split of a folder, whose files are listed in a metadata file.

    Args:
      path: see `FolderSource`.
      split: see `FolderSource`.
      bad_examples: collects the lines that cannot be used.
      columns, allow_outside, modalities: see `read_metadata`.

    Raises:
      FileNotFoundError: no such folder, or no metadata file.
      ValueError: no such split.
      BadExampleError: a line that cannot be used, if those stop the run.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        bad_examples: BadExamples,
        columns: Mapping[str, str] | None = None,
        allow_outside: bool = False,
        modalities: Collection[str] | None = None,
    ):
        root = Path(path).expanduser()
        listing = _list_split(root, split, bad_examples, columns, allow_outside, modalities)
        self.name, self.data_set = str(listing.path), str(root)
        self._path, self._all_records = listing.path, listing.all_records
        counts = Counter((r.label, r.label_text) for _, records in listing.all_records for r in records)
        labels = Labels(counts, root)
        self.class_names = labels.names
        # The usable records, with the index of their class as label; the others are bad examples.
        self._records: list[Record] = []
        for record in listing.records:
            try:
                self._records.append(record._replace(label=labels.index(record.label, record.label_text)))
            except ValueError as error:
                bad_examples.add(listing.path, record.line, str(error))
        records = self._records
        self.labels = np.array([-1 if r.label is None else r.label for r in records], np.int32)
        names = {m for r in records for m in r.files}
        self.has_file = {m: np.array([m in r.files for r in records], bool) for m in names}
        names = {m for r in records for m in r.captions}
        self.caption_counts = {
            m: np.array([len(r.captions.get(m, ())) for r in records], np.int32) for m in names
        }
        numbers: dict[str | None, int] = {None: -1}
        self.pictures = np.array([numbers.setdefault(r.picture, len(numbers)) for r in records], np.int32)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, rows: Sequence[int], modalities: Collection[str]) -> list[Row | str]:
        """As `Table.read`; nothing is opened."""
        folder, records = self._path.parent, [self._records[row] for row in rows]
        return [
            Row(
                {m: FolderFile(folder, name) for m, name in record.files.items() if m in modalities},
                {m: captions for m, captions in record.captions.items() if m in modalities},
            )
            for record in records
        ]

    def location(self, row: int) -> tuple[str | Path, int]:
        return self._path, self._records[row].line

    def contents_key(self, row: int, modalities: Collection[str]) -> Hashable:
        """The names of the row's files."""
        return tuple((m, name) for m, name in self._records[row].files.items() if m in modalities)

    def sample_images(self, count: int, modalities: Collection[str]) -> list[Content]:
        """As `Table.sample_images`; of a row with an image and a video the first. MP4 files, whose size is not known
        before they are decoded, are left out."""
        files = []
        for folder, records in self._all_records:
            for record in records:
                names = (record.files[m] for m in record.files if m in modalities and kind_of(m) != "audio")
                name = next(names, None)
                if name is not None and not name.lower().endswith(".mp4"):
                    files.append(FolderFile(folder, name))
        spaced = np.linspace(0, len(files) - 1, min(count, len(files))).astype(np.int64)
        return [files[k] for k in np.unique(spaced)]


class FolderSource(TableSource):
    """A folder of image, audio and video files.

    ``path`` holds ``train/`` and ``test/`` (or other splits), each with a metadata file. Or it holds one metadata file;
    then a tenth of its lines, chosen by the SHA-1 of their file names, is the test split. Lines with the same file name
    show the same picture. Class names are the lines of ``classes.txt``, or else the sorted label names of all splits.

    Args:
      path: the folder.
      split: ``train``, ``test``, or the name of another folder with metadata; ``all`` where there are no such folders.
      columns: the columns of the metadata that have other names than those of `read_metadata`, such as
        ``{"file_name": "filename"}``.
      allow_outside: whether the metadata may name files outside of their folder.
      bad_examples: collects bad examples, and decides whether they stop the run (the default).
      options: those of `TableSource`.

    Raises:
      FileNotFoundError: no such folder, or no metadata file.
      ValueError: no such split or modality, or no example that can be used.
      BadExampleError: a bad example, if those stop the run.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        columns: Mapping[str, str] | None = None,
        allow_outside: bool = False,
        bad_examples: BadExamples | None = None,
        **options: Any,
    ):
        bad_examples = BadExamples() if bad_examples is None else bad_examples
        table = FolderTable(path, split, bad_examples, columns, allow_outside, options.get("modalities"))
        super().__init__(table, bad_examples=bad_examples, **options)
