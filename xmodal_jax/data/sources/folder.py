"""``--data folder:PATH``: image, audio and video files listed in a metadata file (see `read_metadata`), or in another
layout that is known (see `layouts`)."""

from __future__ import annotations

import itertools
import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.labels import Labels
from xmodal_jax.data.layouts.find import find_layout
from xmodal_jax.data.layouts.layout import Layout, ReadOptions, SplitFiles
from xmodal_jax.data.measured_columns import Cell, ColumnSizes, join_rows, measure_cells
from xmodal_jax.data.metadata import Record, choose_test
from xmodal_jax.data.sources.arrays import sort_modalities
from xmodal_jax.data.sources.tables import TableSource
from xmodal_jax.data.split_names import find_splits, require_undivided_split, test_and_validation
from xmodal_jax.data.table import Content, FolderFile, Row, Table, evenly_spaced
from xmodal_jax.types import kind_of


class _Listing(NamedTuple):
    """A split of a folder."""

    name: str
    """The split in messages: its metadata file, or its folder."""
    parts: list[tuple[SplitFiles, list[Record]]]
    """Where the split is written down, with its records: several, such as ``train-clean-100`` and
    ``train-clean-360``."""
    all_parts: list[tuple[SplitFiles, list[Record]]]
    """Those of all splits, so that a class has the same index and an image the same size in each split."""
    splits: tuple[str, ...]
    """The names of all splits; empty: the folder has none."""


def _list_split(root: Path, split: str, bad_examples: BadExamples, options: ReadOptions) -> _Listing:
    """The records of one split of the folder ``root``; see `FolderSource` for where splits are found.

    Raises:
      FileNotFoundError: no such folder, or none of the layouts that are known.
      ValueError: no such split, or two layouts.
    """
    if root.is_file():
        raise FileNotFoundError(
            f"folder:{root} is a file. Give the folder that it is in; a table there is called metadata.csv (or .tsv, "
            ".jsonl, .json)."
        )
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root}: there is no such folder.")
    layout, splits = find_layout(root, bad_examples)
    if options.columns and not layout.has_columns:
        raise ValueError(f"{root} ({layout.name}) has no columns that can be chosen: leave --columns.")
    if [*splits] == ["all"]:
        return _list_part(root, splits["all"], split, bad_examples, options)
    chosen = find_splits(split, splits)
    if not chosen:
        raise _no_split(root, split, layout, splits)
    if len(chosen) > 1:
        bad_examples.remark(f"{root}: the split {split!r} is {' and '.join(chosen)}")
    parts = [(splits[name], splits[name].records(options, bad_examples)) for name in chosen]
    # A split's bad examples are reported when that split is opened.
    others = [
        (files, files.records(options, BadExamples("skip")))
        for name, files in splits.items()
        if name not in chosen
    ]
    name = str(parts[0][0].path) if len(parts) == 1 else f"{root} ({split})"
    if split != "train":
        pictures_of_others = {_location(files.folder, r) for files, records in others for r in records}
        locations = [_location(files.folder, r) for files, records in parts for r in records]
        bad_examples.note(
            f"The pictures of {{examples}} in {name} are in another split too: the scores are not those of unseen "
            "pictures alone.",
            sum(location is not None and location in pictures_of_others for location in locations),
        )
    all_parts = sorted([*parts, *others], key=lambda part: (part[0].folder, part[0].path))
    return _Listing(name, parts, all_parts, tuple(splits))


def _list_part(
    root: Path, files: SplitFiles, split: str, bad_examples: BadExamples, options: ReadOptions
) -> _Listing:
    """The split ``train`` or ``test`` of a folder without splits, a tenth of which is the test split; or ``all``."""
    require_undivided_split(split, root)
    records = files.records(options, bad_examples)
    all_parts = [(files, records)]
    if split != "all":
        in_test = choose_test(_names_for_split(records), files.path)
        records = [r for r, test in zip(records, in_test, strict=True) if test == (split == "test")]
    return _Listing(str(files.path), [(files, records)], all_parts, ())


def _no_split(root: Path, split: str, layout: Layout, splits: Collection[str]) -> ValueError:
    """The error for a split that is not there."""
    names = ", ".join(sorted(splits))
    if layout.name != "metadata":
        return ValueError(f"{root} ({layout.name}) has no split {split!r}; it has: {names}.")
    return ValueError(
        f"{root} has no split {split!r}; its folders with a metadata file are: {names}. Add the folder {split}/; or "
        f"move the files of one folder to {root}, of which a tenth is then the test split."
    )


def _location(folder: Path, record: Record) -> str | None:
    """The path of a record's picture; the names of its files are in ``folder``."""
    name = record.picture_file
    return None if name is None else posixpath.normpath(f"{folder}/{name}")


def _names_for_split(records: list[Record]) -> list[str]:
    """For each record the name whose hash decides its split: those of its files, or its captions if it has no files.

    Records that show the same picture and differ in other files (such as spoken captions) have the picture's name, so
    that they are in one split.
    """
    names = ["/".join([*r.files.values()] or _words(r)) for r in records]
    names_of_picture = defaultdict(set)
    for record, name in zip(records, names, strict=True):
        names_of_picture[record.picture].add(name)
    # Records without a file have the picture None, and share none.
    return [
        name if r.picture is None or len(names_of_picture[r.picture]) == 1 else r.picture
        for r, name in zip(records, names, strict=True)
    ]


def _words(record: Record) -> list[str]:
    """What tells a record without files from others: its captions and its numbers."""
    numbers = [repr(cell.tolist()) for cells in record.cells.values() for cell in cells if cell is not None]
    return [*itertools.chain(*record.captions.values()), *numbers]


class FolderTable(Table):
    """A split of a folder, whose files are listed in metadata or lie in one of the other known `layouts`.

    Args:
      path: see `FolderSource`.
      split: see `FolderSource`.
      bad_examples: collects the lines that cannot be used.
      columns, allow_outside, modalities: see `read_metadata`.

    Raises:
      FileNotFoundError: no such folder, or no layout that is known.
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
        listing = _list_split(root, split, bad_examples, ReadOptions(columns, allow_outside, modalities))
        self.name, self.data_set, self._all_parts = listing.name, str(root), listing.all_parts
        if listing.splits:
            self.test_splits, self.validation_split = test_and_validation(listing.splits)
        counts = Counter((r.label, r.label_text) for _, records in listing.all_parts for r in records)
        labels = Labels(counts, root)
        self.class_names = labels.names
        # The usable records, with the index of their class as label, and where each is from.
        sizes = _measure(r for _, records in listing.all_parts for r in records)
        self._records: list[Record] = []
        self._files_of: list[SplitFiles] = []
        for files, records in listing.parts:
            for record in records:
                try:
                    label = labels.index(record.label, record.label_text)
                    for m, cells in record.cells.items():
                        sizes[m].join(record.columns[m], cells)
                except ValueError as error:
                    bad_examples.add(record.path or files.path, record.line, str(error))
                    continue
                self._records.append(record._replace(label=label))
                self._files_of.append(files)
        records = self._records
        self.labels = np.array([-1 if r.label is None else r.label for r in records], np.int32)
        names = {m for r in records for m in r.files}
        self.has_file = {m: np.array([m in r.files for r in records], bool) for m in names}
        names = {m for r in records for m in r.captions}
        self.caption_counts = {
            m: np.array([len(r.captions.get(m, ())) for r in records], np.int32) for m in names
        }
        self.measured, self.feature_names = _join_measured(records, sizes)
        self.pictures = self._number_pictures()

    def _number_pictures(self) -> np.ndarray:
        """See `Table.pictures`."""
        numbers: dict[tuple[Path, str], int] = {}
        pictures = np.full(len(self._records), -1, np.int32)
        for row, (record, files) in enumerate(zip(self._records, self._files_of, strict=True)):
            if (picture := record.picture) is not None:
                pictures[row] = numbers.setdefault((files.folder, picture), len(numbers))
        return pictures

    def __len__(self) -> int:
        return len(self._records)

    def read(self, rows: Sequence[int], modalities: Collection[str]) -> list[Row | str]:
        """As `Table.read`; nothing is opened."""
        result: list[Row | str] = []
        for row in rows:
            folder, record = self._files_of[row].folder, self._records[row]
            files = {m: FolderFile(folder, name) for m, name in record.files.items() if m in modalities}
            captions = {m: captions for m, captions in record.captions.items() if m in modalities}
            result.append(Row(files, captions))
        return result

    def location(self, row: int) -> tuple[str | Path, int]:
        record = self._records[row]
        return record.path or self._files_of[row].path, record.line

    def file_name(self, row: int) -> str | None:
        names, folder, root = self._records[row].files, self._files_of[row].folder, Path(self.data_set)
        if not names:
            return None
        path = folder / names[sort_modalities(names)[0]]
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    def contents_key(self, row: int, modalities: Collection[str]) -> Hashable:
        """The folder and the names of the row's files."""
        names = tuple((m, name) for m, name in self._records[row].files.items() if m in modalities)
        return self._files_of[row].folder, names

    def sample_images(self, count: int, modalities: Collection[str]) -> list[Content]:
        """As `Table.sample_images`; of a row with an image and a video the first. MP4 files, whose size is not known
        before they are decoded, are left out."""
        files = []
        for split_files, records in self._all_parts:
            for record in records:
                names = (record.files[m] for m in record.files if m in modalities and kind_of(m) != "audio")
                name = next(names, None)
                if name is not None and not name.lower().endswith(".mp4"):
                    files.append(FolderFile(split_files.folder, name))
        return [files[k] for k in evenly_spaced(len(files), count)]


def _measure(records: Iterable[Record]) -> dict[str, ColumnSizes]:
    """The sizes of the columns of each modality of measured quantities, over the records of all splits."""
    cells: dict[str, list[tuple[Cell, ...]]] = defaultdict(list)
    for record in records:
        for modality, of_record in record.cells.items():
            cells[modality].append(of_record)
    return {m: measure_cells(m, rows, len(rows[0])) for m, rows in cells.items()}


def _join_measured(
    records: Sequence[Record], sizes: Mapping[str, ColumnSizes]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """The values of each modality of measured quantities, see `Table.measured`, and the names of its features."""
    columns = {m: names for r in records[:1] for m, names in r.columns.items() if m in sizes}
    values = {}
    for modality, names in columns.items():
        missing = (None,) * len(names)
        rows = [r.cells.get(modality, missing) for r in records]
        values[modality], _ = join_rows(modality, names, rows, sizes[modality])
    return values, {m: sizes[m].names(names) for m, names in columns.items()}


class FolderSource(TableSource):
    """A folder of image, audio and video files.

    ``path`` holds ``train/`` and ``test/`` (or other splits), each with a metadata file. Or it holds one metadata file;
    then a tenth of its lines, chosen by the SHA-1 of their file names, is the test split. Or it has one of the other
    known `layouts`, such as COCO's. Lines with the same file name, or the same ``group``, show the same picture. Class
    names are the lines of ``classes.txt``, or else the sorted label names of all splits.

    Args:
      path: the folder.
      split: the name of a split; ``train``, ``validation`` and ``test`` also mean the splits that are called so in
        other words, such as ``val2017`` (see `split_names.find_splits`). ``all`` where there are no splits.
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
