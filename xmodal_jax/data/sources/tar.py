"""``--data tar:SHARDS``: tar shards in WebDataset's layout, read in any order (see `tar_index`)."""

from __future__ import annotations

import functools
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from xmodal_jax.core.text_files import first_duplicate
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.labels import Labels
from xmodal_jax.data.sources.tables import TableSource
from xmodal_jax.data.split_names import (
    TRAIN_ALONE,
    find_splits,
    require_undivided_split,
    split_of,
    test_and_validation,
)
from xmodal_jax.data.table import Content, Row, Table, evenly_spaced
from xmodal_jax.data.tar_index import (
    NO_NUMBER,
    FieldRoles,
    ShardIndex,
    build_index,
    load_index,
    refuse_compressed,
    save_index,
)
from xmodal_jax.types import kind_of

MAX_SHARDS = 1_000_000
"""Shards that a range in braces can name."""
OPEN_SHARDS = 64
"""Shards that are open at once."""
NOTED_FIELDS = 20
"""Fields that are not read which are noted by name."""


class Shard(NamedTuple):
    """A tar file of a data set."""

    path: Path
    split: str | None
    """The split that its name says; None: it says none."""


def expand_braces(pattern: str) -> list[str]:
    """The texts that a pattern with braces stands for, as in a shell: ``a-{00..02}.tar`` and ``{train,test}.tar``.

    A range has leading zeros if one of its ends has. What is neither a range nor a list stays as it is.

    Raises:
      ValueError: a range of more than a million.
    """
    depth, start, commas = 0, 0, []
    for k, character in enumerate(pattern):
        if character == "{":
            depth += 1
            if depth == 1:
                start, commas = k, []
        elif character == "," and depth == 1:
            commas.append(k)
        elif character == "}" and depth:
            depth -= 1
            alternatives = _brace_alternatives(pattern, start, commas, k) if depth == 0 else []
            if alternatives:
                rests = expand_braces(pattern[k + 1 :])
                inner = [text for alternative in alternatives for text in expand_braces(alternative)]
                return [pattern[:start] + text + rest for text in inner for rest in rests]
    return [pattern]


def _brace_alternatives(pattern: str, start: int, commas: list[int], stop: int) -> list[str]:
    """What the braces of ``pattern`` at ``start`` and ``stop`` stand for: the texts between ``commas``, or the numbers
    of a range. Empty: they hold neither, and are part of the name."""
    if commas:
        ends = [start, *commas, stop]
        return [pattern[a + 1 : b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    bounds = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?", pattern[start + 1 : stop])
    if bounds is None:
        return []
    first, last, step = int(bounds[1]), int(bounds[2]), abs(int(bounds[3] or 1)) or 1
    if abs(last - first) // step >= MAX_SHARDS:
        raise ValueError(f"the range {{{bounds[0]}}} has more than {MAX_SHARDS:,} numbers.")
    width = max(len(bounds[1]), len(bounds[2])) if re.match(r"-?0\d|.*\.\.-?0\d", bounds[0]) else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]


def find_shards(argument: str) -> list[Shard]:
    """The shards that ``argument`` names, in its order.

    ``argument``: paths joined by ``::``, each a tar file, a pattern with braces (see `expand_braces`) or ``*``, or a
    folder, whose ``.tar`` files it stands for and those of its folders ``train``, ``test`` and so on. ``{split}`` in a
    pattern stands for any text, which is the name of the split. Otherwise the split is what a word in
    the name of the shard means (see `split_names.split_of`), or else the name of its folder.

    Raises:
      FileNotFoundError: no such shard.
      ValueError: a shard that is compressed, on another machine, or named twice.
    """
    shards: list[Shard] = []
    for part in argument.split("::"):
        if not part:
            raise ValueError(f"tar:{argument} has an empty path before or after '::'.")
        if re.match(r"[a-z][a-z0-9+.-]*:/|pipe:", part):
            raise ValueError(f"tar:{part} is no file on this machine: download the shards first.")
        shards += [shard for text in expand_braces(os.path.expanduser(part)) for shard in _shards_of(text)]
    for shard in shards:
        refuse_compressed(shard.path)
        if not shard.path.is_file():  # reading a pipe could wait for ever
            kind = "is no regular file" if shard.path.exists() else "is a link to a file that is not there"
            raise ValueError(f"tar: the shard {shard.path} {kind}.")
    twice = first_duplicate(os.path.normpath(shard.path) for shard in shards)
    if twice is not None:
        raise ValueError(f"tar:{argument} names the shard {twice} twice.")
    return shards


def _shards_of(text: str) -> Iterator[Shard]:
    """The shards of one path, folder or pattern without braces but ``{split}``."""
    if "{split}" in text:
        return itertools.starmap(Shard, _match_splits(text))
    path = Path(text)
    if path.is_dir():
        paths = _shards_in_folder(path)
    elif path.exists():
        paths = [path]
    elif glob.has_magic(text):
        paths = sorted(map(Path, glob.glob(text, recursive=True)))
    else:
        raise FileNotFoundError(f"tar: there is no file {text}.")
    if not paths:
        raise FileNotFoundError(f"tar: no file matches {text}.")
    return (Shard(path, _split_of_path(path)) for path in paths)


def _match_splits(pattern: str) -> list[tuple[Path, str]]:
    """The files that match a pattern with ``{split}``, each with the text that this stands for."""
    wild = sorted(glob.glob(pattern.replace("{split}", "*"), recursive=True))
    parts = [re.escape(part) for part in re.split(r"(\*\*/|\*|\?|\{split\})", pattern)]
    marks = {r"\*\*/": "(?:.*/)?", r"\*": "[^/]*", r"\?": "[^/]", r"\{split\}": "([^/]+?)"}
    expression = "".join(marks.get(part, part) for part in parts)
    # A split that is named twice, as in {split}/{split}-0.tar, has one name.
    matches = ((Path(name), re.fullmatch(expression, name)) for name in wild)
    files = [(path, match[1]) for path, match in matches if match and len(set(match.groups())) == 1]
    if not files:
        raise FileNotFoundError(f"tar: no file matches {pattern}.")
    return files


def _shards_in_folder(folder: Path) -> list[Path]:
    """The tar files of a folder and of those of its folders that are splits."""
    folders = [folder, *(d for d in sorted(folder.iterdir()) if d.is_dir() and split_of(d.name))]
    shards = [path for d in folders for path in sorted(d.glob("*.tar")) if not path.name.startswith(".")]
    for path in (path for d in folders for path in sorted(d.glob("*.t*"))):
        if path.name.partition(".tar")[0] not in {
            shard.stem for shard in shards if shard.parent == path.parent
        }:
            refuse_compressed(path)  # it would not be read
    if shards:
        return shards
    raise FileNotFoundError(
        f"tar: {folder} has no .tar files, nor have folders train/ and test/ in it. Name the shards, such as "
        f"tar:{folder}/{{000..099}}.tar."
    )


def _split_of_path(path: Path) -> str | None:
    """The split that the name of a shard, or else of its folder, says; None if they say none. In the name any word may
    say it (``cc-train-000``); the folder's name must be one word."""
    folder = path.parent.name
    return split_of(path.stem) or (split_of(folder) if folder.isalpha() else None)


class _Descriptor:
    """An open file, closed when nobody refers to it any more: not while another thread reads it."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


class ShardReader:
    """Reads parts of shards, from any number of threads; at most `OPEN_SHARDS` are open.

    ``states``: of each shard the size and the time of modification (in nanoseconds) when its index was made.
    """

    def __init__(self, paths: Sequence[Path], states: Sequence[tuple[int, int]]):
        self._paths, self._states = paths, states
        self._open = functools.lru_cache(OPEN_SHARDS)(lambda shard: _Descriptor(paths[shard]))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` of a shard.

        Raises:
          OSError: the shard has changed since its index was made.
        """
        descriptor = self._open(shard)
        status = os.fstat(descriptor.number)
        parts, rest = [], size
        while rest and (part := os.pread(descriptor.number, rest, offset + size - rest)):
            parts.append(part)
            rest -= len(part)
        if rest or (status.st_size, status.st_mtime_ns) != self._states[shard]:
            was, now = self._states[shard][0], status.st_size
            raise OSError(
                f"the shard {self._paths[shard]} has changed since its index was made ({was:,} bytes then, {now:,} "
                "now). Shards must stay as they are while they are read; start again to read it as it is now."
            )
        return parts[0] if len(parts) == 1 else b"".join(parts)


def load_indexes(
    paths: Sequence[Path], roles: FieldRoles, workers: int = 8, progress: bool = True
) -> list[ShardIndex]:
    """The indexes of shards; those that were not saved before are made, in threads, and saved.

    Several processes that start at once begin with different shards, and take the indexes that others have saved.
    """
    with ThreadPoolExecutor(workers) as pool:
        indexes = dict(enumerate(pool.map(lambda path: load_index(path, roles), paths)))
        missing = [k for k, index in indexes.items() if index is None]
        nbytes = sum(paths[k].stat().st_size for k in missing)
        start = os.getpid() * 7919 % max(1, len(missing))
        bar = tqdm(
            total=nbytes, desc=f"indexing {len(missing)} shards", unit="B", unit_scale=True,
            disable=not (progress and missing),
        )  # fmt: skip

        def make(k: int) -> None:
            """Makes and saves the index of shard ``k``, unless another process has saved it meanwhile."""
            index = load_index(paths[k], roles)
            if index is None:
                index = build_index(paths[k], roles, bar.update)
                save_index(paths[k], roles, index)
            else:
                bar.update(index.size)
            indexes[k] = index

        with bar:
            list(pool.map(make, missing[start:] + missing[:start]))
    return [indexes[k] for k in range(len(paths))]


class TarTable(Table):
    """A split of tar shards in WebDataset's layout.

    Args:
      shards: see `find_shards`.
      split: see `TarSource`.
      bad_examples: collects the samples that cannot be used.
      columns: see `FieldRoles`.
      workers, progress: see `TableSource`.

    Raises:
      FileNotFoundError: no such shard.
      ValueError: no such split, no such column, or most samples have two members of one kind.
      BadExampleError: a sample that cannot be used, if those stop the run.
    """

    def __init__(
        self,
        shards: str,
        split: str,
        bad_examples: BadExamples,
        columns: Mapping[str, str] | None = None,
        workers: int = 8,
        progress: bool = True,
    ):
        all_shards = find_shards(shards)
        self._paths = [shard.path for shard in all_shards]
        self.data_set = f"tar:{shards}"
        self._roles = FieldRoles(columns or {})
        self._indexes = load_indexes(self._paths, self._roles, workers, progress)
        self._reader = ShardReader(self._paths, [(index.size, index.modified) for index in self._indexes])
        self._check_columns()
        in_split, by_shard = self._choose_split([shard.split for shard in all_shards], split, bad_examples)
        self.name = f"{self.data_set} ({split})"
        self._report(by_shard, bad_examples)
        counts = [len(index.numbers) for index in self._indexes]
        self._shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._numbers = np.concatenate([index.numbers for index in self._indexes])
        self._offsets = self._join("roles", "offsets", -1)
        self._sizes = self._join("roles", "sizes", -1)
        labels = self._read_labels(in_split, bad_examples)
        in_split &= labels > -2  # -2: the label cannot be used
        self._samples = np.flatnonzero(in_split)
        groups = np.concatenate([index.groups for index in self._indexes])[in_split]
        if groups.any():
            _, numbers = np.unique(groups, return_inverse=True)
            self.pictures = np.where(groups == 0, -1, numbers).astype(np.int32)
            bad_examples.remark(
                f"{self.data_set}: samples with the same group are taken to show the same picture"
            )
        self.labels = labels[in_split] if (labels >= 0).any() else None
        files = [role for role in self._offsets if role != "json" and kind_of(role) != "text"]
        self.has_file = {role: self._offsets[role][in_split] >= 0 for role in files}
        self.caption_counts = {m: c[in_split] for m, c in self._join("texts", "caption_counts", 0).items()}
        # `_offsets` and `_sizes` have these of all shards.
        empty = np.zeros((0, 0), np.int64)
        self._indexes = [index._replace(offsets=empty, sizes=empty) for index in self._indexes]

    def _join(self, names: str, field: str, missing: int) -> dict[str, np.ndarray]:
        """A field of all indexes with one row for each of ``names``, by name: ``[N]``, of all samples.

        ``missing``: the value where a shard does not have the name.
        """
        joined = {}
        for name in sorted({name for index in self._indexes for name in getattr(index, names)}):
            joined[name] = np.concatenate(
                [
                    getattr(index, field)[getattr(index, names).index(name)]
                    if name in getattr(index, names)
                    else np.full(len(index.numbers), missing, getattr(index, field).dtype)
                    for index in self._indexes
                ]
            )
        return joined

    def _check_columns(self) -> None:
        """Raises ValueError if a column is nowhere, or if most samples have two members of one kind."""
        indexes = self._indexes
        ambiguous = [reason for index in indexes for _, reason, is_ambiguous in index.bad if is_ambiguous]
        if ambiguous and 2 * len(ambiguous) >= sum(index.samples for index in indexes):
            first = next(
                (self._paths[k], number)
                for k, index in enumerate(indexes)
                for number, _, is_ambiguous in index.bad
                if is_ambiguous
            )
            raise ValueError(
                f"{self.data_set}: most samples have two members of one kind; sample {first[1]} of {first[0]}: "
                f"{ambiguous[0]}, and a name such as image_2 or text_es keeps both. If they belong to different "
                "samples, rename the files: the key of a sample ends at the first dot of the file name."
            )
        present = {name for index in indexes for name in (*index.roles, *index.texts)}
        if any(index.names or (index.label_numbers != NO_NUMBER).any() for index in indexes):
            present.add("label")
        if any(index.groups.any() for index in indexes):
            present.add("group")
        absent = [field for name, field in self._roles.columns.items() if name not in present]
        if absent and any(len(index.numbers) for index in indexes):
            names = sorted(
                {name for index in indexes for name in (*index.roles, *index.texts, *index.unread)}
            )
            raise ValueError(
                f"{self.data_set}: no sample has the field {absent[0]} (--columns); found {', '.join(names[:50])}."
            )

    def _choose_split(
        self, splits: list[str | None], split: str, bad_examples: BadExamples
    ) -> tuple[np.ndarray, list[bool]]:
        """``(samples, shards)``: which samples are in ``split``, bool ``[N]``, and which shards have some.

        ``splits``: that of each shard, None if its name says none.

        Raises:
          ValueError: no such split, or one sample that should make two splits.
        """
        lengths = [len(index.numbers) for index in self._indexes]
        if set(splits) <= {None, "train"}:
            require_undivided_split(split, self.data_set)
            if split == "all":
                return np.ones(sum(lengths), bool), [True] * len(lengths)
            if "train" in splits:
                bad_examples.remark(TRAIN_ALONE.format(self.data_set))
            in_test = _choose_test(np.concatenate([index.hashes for index in self._indexes]), self.data_set)
            return in_test == (split == "test"), [True] * len(lengths)
        names = [name or "train" for name in splits]
        self.test_splits, self.validation_split = test_and_validation(sorted(set(names)))
        chosen = find_splits(split, set(names)) or find_splits(split_of(split) or split, set(names))
        if not chosen:
            raise ValueError(
                f"{self.data_set} has no split {split!r}; the names of its shards, or of their folders, say: "
                f"{', '.join(sorted(set(names)))}."
            )
        by_shard = [name in chosen for name in names]
        return np.repeat(by_shard, lengths), by_shard

    def _report(self, by_shard: list[bool], bad_examples: BadExamples) -> None:
        """Reports what is wrong with the shards of a split, and which of their fields are read and not read."""
        for path, index, chosen in zip(self._paths, self._indexes, by_shard, strict=True):
            for number, reason, _ in index.bad if chosen else ():
                bad_examples.add(path, number, reason)
        guessed = sorted({pair for index in self._indexes for pair in index.guessed.items()})
        if guessed:
            pairs = ", ".join(f"{name} from {field}" for name, field in guessed)
            bad_examples.remark(f"{self.data_set}: {pairs} (--columns NAME=FIELD chooses others)")
        unread: Counter[str] = Counter()
        for index in self._indexes:
            unread.update(index.unread)
        if unread:
            most_common = sorted(unread, key=lambda name: (-unread[name], name))
            names = ", ".join(most_common[:NOTED_FIELDS])
            others = f" and {len(unread) - NOTED_FIELDS:,} others" if len(unread) > NOTED_FIELDS else ""
            bad_examples.remark(
                f"{self.data_set}: fields that are not read: {names}{others} (--columns NAME=FIELD reads one)"
            )

    def _read_labels(self, in_split: np.ndarray, bad_examples: BadExamples) -> np.ndarray:
        """The class of each sample, int32 ``[N]``: -1 where it is unknown, -2 where it cannot be used. Sets
        ``class_names``."""
        numbers = np.concatenate([index.label_numbers for index in self._indexes])
        values, value_of, value_counts = np.unique(numbers, return_inverse=True, return_counts=True)
        # The labels by name, of all shards; each shard has numbers of its own for them.
        number_of: dict[str, int] = {}
        by_shard = []
        for index in self._indexes:
            of_shard = [number_of.setdefault(name, len(number_of)) for name in index.names]
            by_shard.append(np.array([*of_shard, -1], np.int32)[index.label_names])  # -1: the last
        names = np.concatenate(by_shard)
        name_counts = np.bincount(names[names >= 0], minlength=len(number_of))
        # One list of all labels: the numbers, then the names, None for no number, and None for no name (-1).
        all_labels = [None if value == NO_NUMBER else int(value) for value in values] + [*number_of, None]
        counts = {
            (label, None): int(count)
            for label, count in zip(all_labels, [*value_counts, *name_counts, 0], strict=True)
        }
        labels = Labels(counts, Path(os.path.commonpath([path.resolve().parent for path in self._paths])))
        self.class_names = labels.names
        classes, reasons = np.full(len(all_labels), -1, np.int32), {}
        for k, label in enumerate(all_labels):
            try:
                classes[k] = -1 if label is None else labels.index(label)
            except ValueError as error:
                classes[k], reasons[k] = -2, str(error)
        number_at = np.where(names >= 0, len(values) + names, value_of)
        result = classes[number_at]
        for sample in np.flatnonzero((result == -2) & in_split):
            path = self._paths[self._shard_of[sample]]
            bad_examples.add(path, int(self._numbers[sample]), reasons[int(number_at[sample])])
        return result

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, rows: Sequence[int], modalities: Collection[str]) -> list[Row | str]:
        """As `Table.read`; members are read in the order in which they lie in the shards."""
        return self._read_samples(self._samples[np.asarray(rows, np.int64)], modalities)

    def _read_samples(self, samples: np.ndarray, modalities: Collection[str]) -> list[Row | str]:
        """As `read`, for ``samples`` of all splits."""
        texts = [m for m in modalities if kind_of(m) == "text"]
        files = [m for m in modalities if m not in texts and m in self._offsets]
        text_roles = [r for r in self._offsets if texts and (r == "json" or kind_of(r) == "text")]
        contents: list[dict[str, bytes]] = [{} for _ in samples]
        for k in np.argsort(samples):  # as they lie in the shards
            sample, shard = samples[k], int(self._shard_of[samples[k]])
            for role in (*files, *text_roles):
                offset = int(self._offsets[role][sample])
                if offset >= 0:
                    contents[k][role] = self._reader.read(shard, offset, int(self._sizes[role][sample]))
        return [self._row(content, files, texts) for content in contents]

    def _row(self, content: dict[str, bytes], files: list[str], texts: list[str]) -> Row | str:
        """A row from the members of a sample by role."""
        members = {role: (role, data) for role, data in content.items() if role not in files}
        try:
            captions = self._roles.facts(members, skip=("label", "group")).captions
        except ValueError as error:  # it was usable when the index was made
            return str(error)
        return Row(
            {m: content[m] for m in files if m in content},
            {m: captions[m] for m in texts if m in captions},
        )

    def location(self, row: int) -> tuple[str | Path, int]:
        """The shard, and the number of the sample in it."""
        sample = self._samples[row]
        return self._paths[self._shard_of[sample]], int(self._numbers[sample])

    def key(self, row: int) -> str:
        """The key of a row's sample, such as ``0001``."""
        sample = int(self._samples[row])
        shard = int(self._shard_of[sample])
        return self._indexes[shard].key(sample - int(np.searchsorted(self._shard_of, shard)))

    def sample_images(self, count: int, modalities: Collection[str]) -> list[Content]:
        """As `Table.sample_images`; of a sample with an image and a video one of them."""
        names = [m for m in self._offsets if m in modalities and kind_of(m) in ("image", "video")]
        if not names:
            return []
        samples = np.flatnonzero(np.any([self._offsets[m] >= 0 for m in names], axis=0))
        rows = self._read_samples(samples[evenly_spaced(len(samples), count)], names)
        return [next(iter(row.files.values())) for row in rows if not isinstance(row, str)]


def _choose_test(hashes: np.ndarray, data_set: str) -> np.ndarray:
    """Which samples are the test split, bool ``[N]``: as `choose_test`, from the ``hashes`` uint64 ``[N, 2]`` of their
    keys (see `ShardIndex`)."""
    in_test = hashes[:, 0] == 0
    if len(hashes) and (in_test.all() or not in_test.any()):
        first = hashes[:, 1]
        in_test = first == first.min()
        if in_test.all():
            raise ValueError(
                f"{data_set}: one example is not enough for a training and a test split. Add some, or name the shards "
                "of each split after it, train-000.tar and test-000.tar."
            )
    return in_test


class TarSource(TableSource):
    """Tar shards in WebDataset's layout, with random access to their samples.

    ``shards`` names the files, see `find_shards`; their names say to which split they belong. If all are of the
    training split, or none says a split, a tenth of the samples, chosen by the SHA-1 of their keys, is the test split.
    Class names are the lines of ``classes.txt`` in the folder that holds all shards, or else the sorted label names of
    all splits.

    ::

        source = TarSource("shards/{000..099}.tar", "train")

    Args:
      shards: paths, folders and patterns, see `find_shards`.
      split: ``train``, ``test``, ``validation``, or what ``{split}`` stands for; ``all`` if shards have no splits.
      columns: what the fields are, where their suffixes do not say it, see `FieldRoles`.
      bad_examples: collects bad examples, and decides whether they stop the run (the default).
      workers: threads that make the indexes and decode files.
      progress: whether to show progress bars.
      options: those of `TableSource`.

    Raises:
      FileNotFoundError: no such shard.
      ValueError: no such split, column or modality, or no example that can be used.
      BadExampleError: a bad example, if those stop the run.
    """

    def __init__(
        self,
        shards: str,
        split: str = "train",
        *,
        columns: Mapping[str, str] | None = None,
        bad_examples: BadExamples | None = None,
        workers: int = 8,
        progress: bool = True,
        **options: Any,
    ):
        bad_examples = BadExamples() if bad_examples is None else bad_examples
        table = TarTable(shards, split, bad_examples, columns, workers, progress)
        super().__init__(table, bad_examples=bad_examples, workers=workers, progress=progress, **options)
