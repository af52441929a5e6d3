"""What a container of files holds: rows with files, captions and a label, which are read by their numbers.

A folder with metadata, a Parquet file and tar shards are tables. `TableSource` makes a data set of any of them.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Up to ``count`` of the numbers 0..total-1, evenly spaced, with the first and the last one: int64, ascending."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


class FolderFile(NamedTuple):
    """A file in a folder; its spelling there may differ (see `metadata.find_file`)."""

    folder: Path
    name: str


Content = FolderFile | bytes
"""A file: where it is, or what it contains."""


class Row(NamedTuple):
    """The contents of one row."""

    files: dict[str, Content]
    """The file of each image, audio or video modality that the row has."""
    captions: dict[str, list[str]]
    """The captions of each text modality that the row has, one at least."""


class Table(abc.ABC):
    """One split of a data set whose rows are read by number.

    A subclass sets the attributes, which are known without reading a file, and defines `read` and `location`. Arrays
    have one element per row. ::

        table = FolderTable("photos", "train", BadExamples())
        table.read([0, 3], ["image"])[1].files["image"]  # FolderFile(Path("photos/train"), "0003.png")
    """

    name: str
    """The split in messages, such as the path of its metadata file."""
    data_set: str
    """The whole data set in messages, such as its folder."""
    has_file: Mapping[str, np.ndarray]
    """For each image, audio and video modality which rows have a file, bool ``[R]``."""
    caption_counts: Mapping[str, np.ndarray]
    """For each text modality how many captions each row has, int32 ``[R]``."""
    measured: Mapping[str, np.ndarray] = MappingProxyType({})
    """For each modality of measured quantities the values of all rows, ``[R, D]`` or ``[R, T, C]``, NaN where they are
    missing."""
    feature_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """The name of each feature of these modalities."""
    labels: np.ndarray | None = None
    """The class of each row, int32 ``[R]``, -1 where it is unknown; None: there are no labels."""
    class_names: tuple[str, ...] | None = None
    """The name of each class; None: classes have no names."""
    pictures: np.ndarray | None = None
    """A number for each row, int32 ``[R]``, equal for rows that show the same picture; -1: the row shares its picture
    with no other. None: no two rows show the same one."""

    test_splits: tuple[str, ...] = ("test",)
    """The names of the data set's test splits, see `Source.test_splits`."""
    validation_split: str | None = None
    """The name of its validation split, see `Source.validation_split`."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @abc.abstractmethod
    def read(self, rows: Sequence[int], modalities: Collection[str]) -> list[Row | str]:
        """The files and captions of ``rows``, in that order, those of ``modalities`` alone. A row that cannot be used
        is the reason as a str instead."""

    @abc.abstractmethod
    def location(self, row: int) -> tuple[str | Path, int]:
        """The file and line (from 1; or the number of the row in the file) that define a row, for messages."""

    def file_name(self, row: int) -> str | None:
        """The name of the first file of a row in the data set, such as ``train/cats/3.png``; None: it has none."""
        return None

    def contents_key(self, row: int, modalities: Collection[str]) -> Hashable:
        """Equal for rows whose files of ``modalities`` are the same ones, so that they need to be decoded once."""
        return row

    def sample_images(self, count: int, modalities: Collection[str]) -> list[Content]:
        """Up to ``count`` images and animations, evenly spaced over all splits of the data set, from which the size of
        images is chosen. The default takes those of this split."""
        names = [m for m in modalities if m.partition("_")[0] in ("image", "video") and m in self.has_file]
        rows = (
            np.flatnonzero(np.any([self.has_file[m] for m in names], axis=0)) if names else np.zeros(0, int)
        )
        read = self.read(rows[evenly_spaced(len(rows), count)].tolist(), names)
        return [file for row in read if not isinstance(row, str) for file in row.files.values()]
