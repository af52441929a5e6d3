"""``--data parquet:PATH``, ``arrow:PATH`` and ``hub:NAME``: tables of Apache Arrow, as ``datasets`` writes them."""

from __future__ import annotations

import glob
import itertools
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xmodal_jax.core.paths import leaves_folder
from xmodal_jax.core.text_files import parse_json, read_text, shorten, surrogate_in
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.labels import Labels
from xmodal_jax.data.metadata import choose_test, parse_captions, parse_label
from xmodal_jax.data.shapes.speech import default_cache_dir
from xmodal_jax.data.sources.arrow_columns import choose_columns
from xmodal_jax.data.sources.arrow_files import ArrowFile, ColumnPath, Files, IPCFile, ParquetFile
from xmodal_jax.data.sources.arrow_numbers import join_columns, read_numbers
from xmodal_jax.data.sources.arrow_values import first_line, is_text
from xmodal_jax.data.sources.tables import TableSource
from xmodal_jax.data.split_names import (
    TRAIN_ALONE,
    find_splits,
    require_undivided_split,
    split_of,
    test_and_validation,
)
from xmodal_jax.data.table import Content, FolderFile, Row, Table, evenly_spaced
from xmodal_jax.types import kind_of

_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(-[0-9a-f]+)?")


def split_of_file(name: str) -> str | None:
    """The split that a file of a data set belongs to, by its path from the data set's folder; None: it is not known.

    ``train-00000-of-00002.parquet``, ``data/train-*.parquet`` and ``train/0.parquet`` belong to ``train``; ``dev`` and
    ``val`` are ``validation``; ``voices-00000-of-00001.parquet`` belongs to ``voices``.
    """
    folder, _, file = name.rpartition("/")
    stem = file.rpartition(".")[0]
    shard = _SHARD.fullmatch(stem)
    if shard:
        return shard[1] if re.fullmatch(r"\w+", shard[1]) else split_of(shard[1])
    return next((split for part in reversed(folder.split("/")) if (split := split_of(part))), split_of(stem))


def _find_parquet(path: str | Path, bad_examples: BadExamples) -> dict[str | None, list[Path]]:
    """The Parquet files of each split of a file, folder or glob; the split None: the data set has no splits.

    Raises:
      FileNotFoundError: there is no such file.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return {None: [root]}
    if root.is_dir():
        files = [file for file in root.rglob("*") if file.suffix.lower() == ".parquet" and file.is_file()]
    else:
        files = [Path(file) for file in glob.glob(str(root), recursive=True) if os.path.isfile(file)]
        root = Path(os.path.commonpath([file.parent for file in files])) if files else root
    names = {file.relative_to(root).as_posix(): file for file in files}
    names = {name: file for name, file in sorted(names.items()) if not re.search(r"(^|/)[._]", name)}
    if not names:
        kind = "no .parquet file in it" if root.is_dir() else "no such file or folder"
        raise FileNotFoundError(f"parquet:{path}: there is {kind}.")
    _remark_shards(names.values(), bad_examples)
    splits: dict[str | None, list[Path]] = defaultdict(list)
    for name, file in names.items():
        splits[split_of_file(name)].append(file)
    if len(splits) == 1 and not split_of(str(next(iter(splits)))):
        return {None: next(iter(splits.values()))}  # the name of the data set, not of a split
    for file in splits.pop(None, ()):
        bad_examples.remark(f"{file} is not read: its name says no split, as those of other files do")
    return dict(splits)


def _remark_shards(files: Iterable[Path], bad_examples: BadExamples) -> None:
    """Remarks shards that are not there, such as ``train-00001-of-00003``, and those of two divisions of one split."""
    numbers: dict[tuple[Path, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for file in files:
        if shard := _SHARD.fullmatch(file.stem):
            numbers[file.parent, shard[1]][int(shard[3])].add(int(shard[2]))
    for (folder, name), by_total in numbers.items():
        for total, present in by_total.items():
            if missing := sorted({*range(total)} - present):
                bad_examples.remark(
                    f"{folder}: {len(missing)} of {total} shards of {name} are not there, the first "
                    f"{name}-{missing[0]:05d}-of-{total:05d}: what is in them is not read"
                )
        if len(by_total) > 1:
            totals = " and ".join(f"-of-{total:05d}" for total in sorted(by_total))
            bad_examples.remark(
                f"{folder}: {name} is there in two divisions, {totals}: if they have the same rows, these are read "
                "twice, and can be in training and test: remove one"
            )


def _find_arrow(path: str | Path) -> dict[str | None, list[Path]]:
    """The Arrow files of each split of what ``datasets.save_to_disk`` wrote, or of a file; the split None: there are no
    splits.

    Raises:
      FileNotFoundError: there is no such folder, or no data set in it.
      ValueError: the list of the files is damaged.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return {None: [root]}
    if (root / "dataset_dict.json").is_file():
        names = _read_json(root / "dataset_dict.json", "splits")
        return {name: _state_files(root / name) for name in map(str, names)}
    if not (root / "state.json").is_file():
        kind = "no state.json or dataset_dict.json in it" if root.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"arrow:{path}: there is {kind}; expected what datasets' save_to_disk writes."
        )
    return {None: _state_files(root)}


def _read_json(path: Path, key: str) -> list:
    """The list ``key`` of a JSON file; ValueError if there is none."""
    try:
        value = parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise ValueError(f"{path}: no list {key!r}; expected what datasets' save_to_disk writes.")
    return value[key]


def _state_files(folder: Path) -> list[Path]:
    """The files that a data set's ``state.json`` lists."""
    state = folder / "state.json"
    if not state.is_file():
        raise FileNotFoundError(f"{state} does not exist: the split {folder.name!r} is not complete.")
    files = _read_json(state, "_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    for name in names:
        if not isinstance(name, str) or leaves_folder(name):
            raise ValueError(f"{state}: {shorten(name)} is not the name of a file in this folder.")
    return [folder / name for name in names]


def _open_files(
    paths: Mapping[str | None, Sequence[Path]], open_file: Callable[[Path], ArrowFile]
) -> dict[str, list[ArrowFile]]:
    """The opened files of each split; a data set without splits, or with ``train`` alone, has one of the name ``all``.

    Raises:
      ValueError: a file is damaged.
    """
    files = {name: [*map(open_file, of_split)] for name, of_split in sorted(paths.items(), key=str)}
    # A file without rows can have other columns, or such whose type is not known: it decides nothing.
    files = {name: [file for file in of_split if file.rows] for name, of_split in files.items()}
    if [*map(str, files)] in (["None"], ["train"]):
        return {"all": next(iter(files.values()))}
    return {str(name): of_split for name, of_split in files.items()}


def _choose_splits(split: str, names: Collection[str], data_set: str) -> list[str]:
    """Those of the splits ``names`` that ``split`` means; ValueError if there are none."""
    if [*names] == ["all"]:
        require_undivided_split(split, data_set)
        return ["all"]
    chosen = find_splits(split, names)
    if not chosen:
        raise ValueError(
            f"{data_set} has no split {split!r}; it has: {', '.join(names)}. Name the files of a split "
            f"{split}-00000-of-00001 and so on."
        )
    return chosen


class ArrowTable(Table):
    """One split of a table in Parquet or Arrow files, whose rows are read by number.

    Files in a column are structs of bytes and a path, bytes, or names of files beside the file that holds the column.
    Captions are strings or lists of strings. Nulls are what an example does not have.

    Args:
      paths: the files of each split; the split None: the data set has no splits.
      split: ``train``, ``test``, or another one; without splits ``train``, ``test`` (a tenth of the rows, chosen by the
        SHA-1 of their files' names) or ``all``.
      data_set: its name in messages.
      bad_examples: collects the rows that cannot be used.
      open_file: `ParquetFile` or `IPCFile`.
      columns: the columns of modalities, ``label`` and ``group``; None: see `choose_columns`.
      allow_outside: whether names of files may lead out of the folder.
      modalities: those that are asked for; None: all.

    Raises:
      ValueError: no such split, a file that cannot be read, or columns that cannot be used.
      BadExampleError: a row that cannot be used, if those stop the run.
    """

    def __init__(
        self,
        paths: Mapping[str | None, Sequence[Path]],
        split: str,
        data_set: str,
        bad_examples: BadExamples,
        open_file: Callable[[Path], ArrowFile],
        columns: Mapping[str, str] | None = None,
        allow_outside: bool = False,
        modalities: Collection[str] | None = None,
    ):
        self.data_set, self._allow_outside = data_set, allow_outside
        self._folder, self._modalities = Path(data_set), modalities
        by_split = _open_files(paths, open_file)
        chosen = _choose_splits(split, [*by_split], data_set)
        divided = chosen != ["all"]
        self.name = f"{data_set} ({split})"
        if divided:
            self.test_splits, self.validation_split = test_and_validation([*by_split])
        elif "train" in paths:
            bad_examples.remark(TRAIN_ALONE.format(data_set))
        # The files of this split come first, so that its rows are the first of all.
        others = [files for name, files in by_split.items() if name not in chosen]
        files = [file for name in chosen for file in by_split[name]]
        self._files = Files([*files, *itertools.chain(*others)])
        rows = int(self._files.starts[len(files)])
        if not rows:
            raise ValueError(f"{self.name}: there are no rows in it.")
        self._chosen = choose_columns(self._files.files, columns or {}, modalities, data_set, bad_examples)
        self._columns = self._files.columns(self._chosen.paths())
        self._chunks = range(int(np.searchsorted(self._files.chunk_starts, rows)))
        # The rows of this split; until `_select` chooses among them, attributes have one element for each.
        self._rows = np.arange(rows)
        self._codes: dict[ColumnPath, tuple[list, np.ndarray]] = {}  # see `_encoded`
        self._count_contents(bad_examples)
        self._select(self._read_measured(bad_examples))
        self._select(self._find_empty(bad_examples))
        if not divided and split != "all":
            self._select(self._choose_test() == (split == "test"))
        if self._chosen.label is not None:
            self._read_labels(bad_examples)
        self._codes.clear()
        self._remark_copies(bad_examples)

    def _select(self, chosen: np.ndarray) -> None:
        """Keeps the rows that are chosen, bool ``[R]``."""
        if chosen.all():
            return
        self._rows = self._rows[chosen]
        self.has_file = {m: has[chosen] for m, has in self.has_file.items()}
        self.caption_counts = {m: counts[chosen] for m, counts in self.caption_counts.items()}
        self.measured = {m: values[chosen] for m, values in self.measured.items()}
        self.pictures = None if self.pictures is None else self.pictures[chosen]
        self.labels = None if self.labels is None else self.labels[chosen]

    def _valid(self, path: ColumnPath | None) -> np.ndarray:
        """Which rows of the split are not null in a column, bool ``[R]``."""
        return np.zeros(len(self._rows), bool) if path is None else self._columns[path].valid(self._chunks)

    def _is_asked(self, modality: str) -> bool:
        return self._modalities is None or modality in self._modalities

    def _has_file(self, modality: str) -> np.ndarray:
        """Which rows of the split have a file of a modality, bool ``[R]``."""
        column = self._chosen.files[modality]
        has = self._valid(column.content)
        return has if has.all() else has | self._valid(column.path)

    def _count_contents(self, bad_examples: BadExamples) -> None:
        """Sets which rows have which files and how many captions, and which show the same picture."""
        files, texts = self._chosen.files, self._chosen.texts
        self.has_file = {m: self._has_file(m) for m in files if self._is_asked(m)}
        self.caption_counts = {
            m: np.sum([self._columns[path].counts(self._chunks) for path in texts[m]], axis=0, dtype=np.int32)
            for m in texts
            if self._is_asked(m)
        }
        if self._chosen.group is not None:
            self.pictures = self._encoded(self._chosen.group)[1][self._rows]
            return
        # Rows that name one file beside the table show the same picture. Of embedded files, paths are no more than what
        # they were called, and files in two folders can have one name.
        modality = next(
            (m for kind in ("image", "video", "audio") for m in self.has_file if kind_of(m) == kind), None
        )
        path = None if modality is None else files[modality].path
        if path is None:
            return
        numbers, embedded = self._encoded(path)[1][self._rows], self._valid(files[modality].content)
        if not embedded.all():
            self.pictures = np.where(embedded, -1, numbers)
        repeated = np.maximum(np.bincount(numbers[embedded & (numbers >= 0)]) - 1, 0).sum()
        if repeated:
            bad_examples.remark(
                f"{self.name}: {repeated} rows have {'.'.join(path)} as an earlier row has: if such rows show the same "
                f"picture, say so by --columns group={'.'.join(path)}"
            )

    def _read_measured(self, bad_examples: BadExamples) -> np.ndarray:
        """Sets the values of measured quantities, all of which are kept in memory. Returns which rows can be used, bool
        ``[R]``; the others are bad examples."""
        usable, self.measured, self.feature_names = np.ones(len(self._rows), bool), {}, {}
        for modality, paths in self._chosen.measured.items():
            names = [".".join(path) for path in paths]
            columns = [
                read_numbers(name, self._columns[path]) for name, path in zip(names, paths, strict=True)
            ]
            values, reasons, self.feature_names[modality] = join_columns(modality, names, columns, self._rows)
            self.measured[modality] = values
            for k, reason in sorted(reasons.items()):
                if usable[k]:
                    bad_examples.add(*self.location(k), reason)
                usable[k] = False
        return usable

    def _encoded(self, path: ColumnPath) -> tuple[list[bytes | int | float], np.ndarray]:
        """The different values of a column, and the index of that of each row of all files; see `_encode`."""
        if path not in self._codes:
            self._codes[path] = _encode(self._columns[path].scan())
        return self._codes[path]

    def _find_empty(self, bad_examples: BadExamples) -> np.ndarray:
        """Which rows have a file or a caption, bool ``[R]``; the others are bad examples."""
        usable = np.zeros(len(self._rows), bool)
        # Columns of modalities that are not asked for are read only if a row has no others.
        for modality in sorted(self._chosen.files, key=self._is_asked, reverse=True):
            if not usable.all():
                usable |= self.has_file[modality] if self._is_asked(modality) else self._has_file(modality)
        for path in itertools.chain(*self._chosen.texts.values()):
            if not usable.all():
                usable |= self._valid(path)
        for values in self.measured.values():
            usable |= ~np.isnan(values).reshape(len(values), -1).all(axis=1)
        for row in np.flatnonzero(~usable).tolist():
            bad_examples.add(*self.location(row), "the row has no file and no caption")
        return usable

    def _choose_test(self) -> np.ndarray:
        """Which rows are the test split of a data set without splits, bool ``[R]``: the hash of a row's name decides.
        Its name is its group; or else the names of its files; or else its number.

        Rows of one group, or with files of one name, are in one split.
        """
        # The distinct names, and for each row the index of its name, -1: the row has none.
        group, paths = self._chosen.group, [c.path for c in self._chosen.files.values() if c.path]
        names, codes = [], np.full(len(self._rows), -1)
        if group is not None or len(paths) == 1:
            values, codes = self._encoded(paths[0] if group is None else group)
            names, codes = [*map(_to_text, values)], codes[self._rows]
        elif paths:
            columns = [self._columns[path].get(self._rows) for path in paths]
            of_rows = [
                [_to_text(path) for path in of_row if path is not None]
                for of_row in zip(*columns, strict=True)
            ]
            # The first file is the picture: if several rows have it, it is their name.
            rows_with = Counter(of_row[0] for of_row in of_rows if of_row)
            joined = ["/".join(p) if not p or rows_with[p[0]] == 1 else p[0] for p in of_rows]
            number_of: dict[str, int] = {"": -1}
            codes = np.array([number_of.setdefault(name, len(number_of) - 1) for name in joined])
            names = [*number_of][1:]
        # Few names for many rows, such as "image.png" in each, do not tell pictures apart; groups may be few.
        if group is None and len(names) * 10 < len(codes):
            names, codes = [], np.full(len(codes), -1)
        unnamed = np.flatnonzero(codes < 0)
        codes[unnamed] = len(names) + np.arange(len(unnamed))
        return choose_test([*names, *map(str, self._rows[unnamed].tolist())], self.data_set)[codes]

    def _read_labels(self, bad_examples: BadExamples) -> None:
        """Sets the labels and the names of their classes, from the labels of all splits; rows with a wrong label are
        bad examples."""
        values, codes = self._encoded(self._chosen.label)
        times = np.bincount(codes[codes >= 0], minlength=len(values))
        self.class_names = self._chosen.class_names
        labels, reasons = np.full(len(values) + 1, -1, np.int32), {}  # the last is for the code -1, null
        parsed: dict[int, str | int | None] = {}
        for code, value in enumerate(values):
            try:
                parsed[code] = None if value != value else parse_label(_decode_text(value))
            except ValueError as error:
                reasons[code] = str(error)
        if self.class_names is None:
            counts = Counter()
            for code, label in parsed.items():
                counts[label, None] += int(times[code])
            known = Labels(counts, self._folder)
            self.class_names = known.names
        for code, label in parsed.items():
            try:
                index = self._class_label(label) if self._chosen.class_names else known.index(label)
                labels[code] = -1 if index is None else index
            except ValueError as error:
                reasons[code] = str(error)
        codes = codes[self._rows]
        wrong = np.isin(codes, [*reasons])
        for row in np.flatnonzero(wrong).tolist():
            bad_examples.add(*self.location(row), reasons[int(codes[row])])
        self.labels = labels[codes]
        self._select(~wrong)

    def _class_label(self, label: str | int | None) -> int | None:
        """A label of the type ``ClassLabel``, in which -1 is unknown; ValueError if it is no class."""
        if label is None or (isinstance(label, int) and -1 <= label < len(self.class_names)):
            return label
        raise ValueError(
            f"the label {shorten(label)} is not in 0..{len(self.class_names) - 1}, the classes of the schema (-1 or "
            "null if it is unknown)"
        )

    def __len__(self) -> int:
        return len(self._rows)

    def _contents(self, modality: str, numbers: np.ndarray) -> list[Content | str | None]:
        """The files of rows ``numbers`` [B] of all files; a str is the reason why one cannot be used."""
        column = self._chosen.files[modality]
        contents: list = [None] * len(numbers)
        if column.content is not None:
            contents = self._columns[column.content].get(numbers)
        missing = [k for k, content in enumerate(contents) if content is None]
        if column.path is None or not missing:
            return contents
        paths = self._columns[column.path].get(numbers[missing])
        for k, path in zip(missing, paths, strict=True):
            if path is not None:
                contents[k] = self._file_beside(path, int(numbers[k]))
        return contents

    def _file_beside(self, path: bytes, number: int) -> Content | str:
        """The file that a row names, beside the file that has the row; a str is the reason why it cannot be used."""
        name = _to_text(path)
        if surrogate_in(name) or not name:
            return f"{shorten(name)} is not a file name"
        if leaves_folder(name) and not self._allow_outside:
            return (
                f"the file {shorten(name)} is outside of the folder of the table (--allow-outside permits it)"
            )
        return FolderFile(self._files.locate(number)[0].path.parent, name)

    def read(self, rows: Sequence[int], modalities: Collection[str]) -> list[Row | str]:
        """As `Table.read`; of each column only these rows are read."""
        numbers = self._rows[np.asarray(rows, np.int64)]
        result: list[Row | str] = [Row({}, {}) for _ in numbers]
        for modality in self.has_file:
            for k, content in enumerate(self._contents(modality, numbers) if modality in modalities else ()):
                if isinstance(content, str):
                    result[k] = content
                elif content is not None and not isinstance(result[k], str):
                    result[k].files[modality] = content
        for modality in self.caption_counts:
            for path in self._chosen.texts[modality] if modality in modalities else ():
                for k, value in enumerate(self._columns[path].get(numbers)):
                    captions = [] if value is None else _parse_value(value)
                    if isinstance(captions, str):
                        result[k] = captions
                    elif captions and not isinstance(result[k], str):
                        result[k].captions.setdefault(modality, []).extend(captions)
        return result

    def location(self, row: int) -> tuple[str | Path, int]:
        """The file, and the number of the row in it, from 1."""
        file, number = self._files.locate(int(self._rows[row]))
        return file.path, number + 1

    def sample_images(self, count: int, modalities: Collection[str]) -> list[Content]:
        """As `Table.sample_images`; where they would have to be copied, those in the first rows of some chunks. MP4
        files, whose size is not known before they are decoded, are left out."""
        columns = {m: c for m, c in self._chosen.files.items() if m in modalities and kind_of(m) != "audio"}
        if not columns:
            return []
        if any(column.content and self._columns[column.content].is_copied for column in columns.values()):
            numbers = self._files.head_rows(count)
        else:
            valid = [self._columns[path].valid() for column in columns.values() for path in column if path]
            numbers = self._files.sort_rows(np.flatnonzero(np.any(valid, axis=0)))
            numbers = numbers[evenly_spaced(len(numbers), count)]
        contents = zip(*(self._contents(modality, numbers) for modality in columns), strict=True)
        first = (
            next((c for c in of_row if c is not None and not isinstance(c, str)), None) for of_row in contents
        )
        return [c for c in first if c is not None and not _is_mp4(c)]

    def _remark_copies(self, bad_examples: BadExamples) -> None:
        """Says how much of the split will be copied to the cache.

        Raises:
          ValueError: the disk is too full for it.
        """
        paths = {path for m in self.caption_counts for path in self._chosen.texts[m]}
        for column in (self._chosen.files[m] for m in self.has_file):
            if column.content is not None:
                paths.add(column.content)
            if column.path is not None and (column.content is None or self.pictures is not None):
                paths.add(column.path)
        nbytes = sum(self._columns[path].uncopied(self._chunks) for path in paths)
        folder = default_cache_dir()
        if not nbytes:
            return
        free = shutil.disk_usage(next(f for f in (folder, *folder.parents) if f.is_dir())).free
        if free < nbytes:
            raise ValueError(
                f"{self.name}: {nbytes / 1e9:.1f} GB of it would be copied to {folder}, where {free / 1e9:.1f} GB are "
                "free. Make room, or choose another folder by the environment variable XMODAL_CACHE."
            )
        bad_examples.remark(
            f"{self.name}: {nbytes / 1e9:.1f} GB of it are copied to {folder} when they are first needed (the "
            "environment variable XMODAL_CACHE chooses another folder)"
        )


def _is_mp4(file: Content) -> bool:
    return file[4:8] == b"ftyp" if isinstance(file, bytes) else file.name.lower().endswith(".mp4")


def _to_text(value: Any) -> str:
    """A value as a name; a byte that is not UTF-8 becomes a lone surrogate."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _decode_text(value: Any) -> Any:
    """The text of a string, which is read as bytes; other values as they are.

    Raises:
      ValueError: it is not UTF-8; the message is the reason.
    """
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text is not UTF-8: byte {error.start + 1} is 0x{value[error.start]:02x}"
        ) from None


def _parse_value(value: bytes | list[bytes | None]) -> list[str] | str:
    """The captions in a value of a column; a str is the reason why they cannot be used."""
    try:
        return parse_captions([*map(_decode_text, value)] if isinstance(value, list) else _decode_text(value))
    except ValueError as error:
        return str(error)


def _encode(arrays: Iterable[pa.Array]) -> tuple[list[bytes | int | float], np.ndarray]:
    """``(values, codes)``: the different values of a column of numbers or strings, strings as bytes; and for each row
    the index of its value, int32 ``[R]``, -1 for null."""
    arrays = [array.dictionary_decode() if pa.types.is_dictionary(array.type) else array for array in arrays]
    kinds = {array.type for array in arrays}
    if any(is_text(kind) for kind in kinds):
        target = pa.large_binary()
    elif any(pa.types.is_floating(kind) for kind in kinds):
        target = pa.float64()
    else:
        # Large numbers of 64 bits without a sign would become negative ones.
        target = pa.decimal128(20) if any(pa.types.is_uint64(kind) for kind in kinds) else pa.int64()
    plain = pa.chunked_array([array.cast(target, safe=False) for array in arrays], target)
    # One array: the parts of a chunked one would each have a dictionary of their own.
    encoded = plain.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    values = encoded.dictionary.to_pylist()
    return [int(v) if isinstance(v, Decimal) else v for v in values], codes.astype(np.int32)


def _find_on_hub(name: str) -> dict[str | None, list[Path]]:
    """The Arrow files of each split of a data set of the Hugging Face hub, fetched if they are not in its cache.

    Raises:
      ValueError: the package ``datasets`` is missing, or the data set cannot be fetched.
    """
    data_set, _, config = name.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data_set):
        raise ValueError(f"hub:{name}: expected OWNER/NAME, or OWNER/NAME:CONFIG.")
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"hub:{name} needs the package datasets: pip install datasets.") from error
    try:
        splits = datasets.load_dataset(data_set, config or None)
    except Exception as error:  # the package raises many types of exceptions where it cannot reach the hub
        raise ValueError(
            f"hub:{name} cannot be fetched, nor is it in the cache: {first_line(error)}."
        ) from error
    return {split: [Path(file["filename"]) for file in part.cache_files] for split, part in splits.items()}


class ParquetSource(TableSource):
    """Parquet files: one, those in a folder, or those that a glob such as ``data/train-*.parquet`` fits.

    Splits follow from the names of files and folders, see `split_of_file`. Without splits, and where there is ``train``
    alone, a tenth of the rows is the test split.

    Args:
      path: the file, folder or glob.
      split: see `ArrowTable`.
      columns: see `choose_columns`.
      allow_outside: whether names of files may lead out of the folder.
      bad_examples: collects bad examples, and decides whether they stop the run (the default).
      options: those of `TableSource`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no such split, a file that cannot be read, columns that cannot be used, or no example.
      BadExampleError: a bad example, if those stop the run.
    """

    _open_file: type[ArrowFile] = ParquetFile

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
        table = ArrowTable(
            self._find_files(path, bad_examples),
            split,
            self._name(path),
            bad_examples,
            self._open_file,
            columns,
            allow_outside,
            options.get("modalities"),
        )
        super().__init__(table, bad_examples=bad_examples, **options)

    def _name(self, path: str | Path) -> str:
        """The data set's name in messages."""
        return str(path)

    def _find_files(self, path: str | Path, bad_examples: BadExamples) -> dict[str | None, list[Path]]:
        """The files of each split; see `ArrowTable`."""
        return _find_parquet(path, bad_examples)


class SavedSource(ParquetSource):
    """What ``datasets.save_to_disk`` wrote, a ``Dataset`` or a ``DatasetDict``; or a single Arrow file. Otherwise as
    `ParquetSource`."""

    _open_file = IPCFile

    def _find_files(self, path: str | Path, bad_examples: BadExamples) -> dict[str | None, list[Path]]:
        return _find_arrow(path)


class HubSource(ParquetSource):
    """A data set of the Hugging Face hub, ``OWNER/NAME`` or ``OWNER/NAME:CONFIG``, from the cache of the package
    ``datasets``, which fetches it. Otherwise as `ParquetSource`."""

    _open_file = IPCFile

    def _name(self, path: str | Path) -> str:
        return f"hub:{path}"

    def _find_files(self, path: str | Path, bad_examples: BadExamples) -> dict[str | None, list[Path]]:
        return _find_on_hub(str(path))
