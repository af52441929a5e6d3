"""``--data folder:PATH``: image, audio and video files listed in a metadata file (see `read_metadata`)."""

from __future__ import annotations

import itertools
import posixpath
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from xmodal_jax.core.text_files import normalise, read_lines, shorten
from xmodal_jax.data import media
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.metadata import (
    FILE_MODALITIES,
    MIN_CLASS_LIMIT,
    Record,
    choose_test,
    find_file,
    find_metadata,
    read_metadata,
)
from xmodal_jax.data.source import RawBatch, Source


class MediaOptions(NamedTuple):
    """What files are converted to."""

    image_size: int
    """Side of images and frames, pixels."""
    channels: int = 3
    """Colour channels, 1 or 3."""
    sample_rate: int = 16000
    """Sample rate of audio in Hz."""
    max_seconds: float = 4.0
    """Longest recording in seconds; longer ones are cut."""
    frames: int = 8
    """Number of frames of a video."""
    resize: media.Resize = media.DEFAULT_RESIZE
    """How images and frames become squares."""


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
) -> _Listing:
    """The metadata records of one split of the folder ``root``; see `FolderSource` for where splits are found, and
    `read_metadata` for ``columns`` and ``allow_outside``.

    Raises:
      FileNotFoundError: no such folder, or no metadata file in it.
      ValueError: no such split.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root}: there is no such folder.")
    splits = sorted(d.name for d in root.iterdir() if d.is_dir() and find_metadata(d))
    if splits and split in splits:
        path = find_metadata(root / split)
        records = read_metadata(path, bad_examples, columns, allow_outside)
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
        records = read_metadata(path, bad_examples, columns, allow_outside)
    all_records = [(path.parent, records)]
    pictures_of_others = set()
    for other in other_splits:  # a split's bad examples are reported when that split is opened
        records_of_other = read_metadata(other, BadExamples("skip"), columns, allow_outside)
        all_records.append((other.parent, records_of_other))
        pictures_of_others |= {_location(other.parent, r) for r in records_of_other}
    if split != "train":
        bad_examples.note(
            f"in {path} show a picture that another split has too (its scores are not those of unseen pictures)",
            sum(r.picture is not None and _location(path.parent, r) in pictures_of_others for r in records),
        )
    if not splits and split != "all":
        in_test = choose_test(_names_for_split(records), path)
        records = [r for r, test in zip(records, in_test, strict=True) if test == (split == "test")]
    return _Listing(path, records, sorted(all_records, key=lambda folder_and_records: folder_and_records[0]))


def _location(folder: Path, record: Record) -> str | None:
    """The path of a record's picture; its metadata file lies in ``folder``."""
    return None if record.picture is None else posixpath.normpath(f"{folder}/{record.picture}")


def _names_for_split(records: list[Record]) -> list[str]:
    """For each record the name whose hash decides its split: those of its files, or its captions if it has no files.

    Records that show the same picture and differ in other files (such as spoken captions) have the picture's name, so
    that they are in one split.
    """
    names = ["/".join([*r.files.values()] or r.captions) for r in records]
    names_of_picture = defaultdict(set)
    for record, name in zip(records, names, strict=True):
        names_of_picture[record.picture].add(name)
    # Records without a file have the picture None, and share none.
    return [
        name if r.picture is None or len(names_of_picture[r.picture]) == 1 else r.picture
        for r, name in zip(records, names, strict=True)
    ]


def _number_pictures(records: list[Record]) -> np.ndarray:
    """For each record the number of the first record that shows the same picture, int32 ``[R]``; a record without a
    file has its own number."""
    first: dict[str, int] = {}
    numbers = [i if r.picture is None else first.setdefault(r.picture, i) for i, r in enumerate(records)]
    return np.array(numbers, np.int32)


def _read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in ``classes.txt``, one on each line.

    Raises:
      ValueError: a line is blank, or a name is there twice.
    """
    names = [normalise(line.strip()) for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    line_of: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}:{number}: the line is blank; expected the name of class {number - 1}.")
        if name in line_of:
            raise ValueError(f"{path}:{number}: the class {name!r} is in line {line_of[name]} already.")
        line_of[name] = number
    return tuple(names)


class _Labels:
    """What the labels of a folder are: names, or numbers of classes.

    Without ``classes.txt`` they are what most labels of all splits are; the others are bad examples. A whole number in
    a CSV file is a name if most labels are names, because CSV cannot tell one from the other.
    """

    def __init__(self, all_records: list[tuple[Path, list[Record]]], root: Path):
        labels = [
            (r.label, r.label_text) for _, records in all_records for r in records if r.label is not None
        ]
        self._count = len(labels)
        self._numbers = sum(isinstance(label, int) for label, _ in labels)
        self._numbered = 2 * self._numbers > self._count  # most are numbers
        self._listed = (root / "classes.txt").is_file()
        self.names: tuple[str, ...] | None = None
        if self._listed:
            self.names = _read_class_names(root / "classes.txt")
        elif labels and not self._numbered:
            names = {label if isinstance(label, str) else text for label, text in labels}
            self.names = tuple(sorted(names - {None}))
        self._index_of = {name: i for i, name in enumerate(self.names or ())}

    def index(self, record: Record) -> int | None:
        """The index of a record's class, None if it is unknown; ValueError with the reason if it cannot be used."""
        label = record.label
        if label is None:
            return None
        if not self._numbered and record.label_text in self._index_of:
            label = record.label_text
        if isinstance(label, str):
            if label in self._index_of:
                return self._index_of[label]
            if self._listed:
                raise ValueError(f"the label {shorten(label)} is not in classes.txt")
            raise ValueError(
                f"the label {shorten(label)} is a name, while {self._numbers} of {self._count} labels are numbers"
            )
        if self.names is not None and not self._listed:
            raise ValueError(
                f"the label {shorten(label)} is a number, while {self._count - self._numbers} of {self._count} labels "
                "are names (write it in quotes if it is a name)"
            )
        limit = len(self._index_of) if self._listed else max(MIN_CLASS_LIMIT, self._count)
        if not 0 <= label < limit:
            advice = "is not in classes.txt" if self._listed else "number the classes from 0 without gaps"
            raise ValueError(f"the label {shorten(label)} is not in 0..{limit - 1} ({advice})")
        return label


def _select_modalities(records: list[Record], modalities: tuple[str, ...] | None) -> list[Record]:
    """The records with only the files and captions of ``modalities`` (None: all)."""
    if modalities is None:
        return records
    records = [r._replace(files={m: f for m, f in r.files.items() if m in modalities}) for r in records]
    return records if "text" in modalities else [r._replace(captions=None) for r in records]


def _decode(record: Record, folder: Path, options: MediaOptions) -> tuple[dict[str, np.ndarray], bool] | str:
    """``(arrays, was_cut)``: the decoded files of a record by modality, and whether its recording was cut to
    ``options.max_seconds``. If a file cannot be decoded, the reason as a str instead."""
    arrays, was_cut = {}, False
    for modality, name in record.files.items():
        try:
            file = find_file(folder, name)
            if modality == "image":
                arrays["image"] = media.decode_image(
                    file, options.image_size, options.channels, options.resize
                )
            elif modality == "video":
                arrays["video"] = media.decode_video(
                    file, options.frames, options.image_size, options.channels, options.resize
                )
            else:
                arrays["audio"], was_cut = media.decode_audio(file, options.sample_rate, options.max_seconds)
        except FileNotFoundError:
            return f"the file {shorten(name)} does not exist in {folder}"
        except Exception as error:  # decoders raise many types of exceptions on damaged files
            return f"the file {shorten(name)} cannot be decoded: {error or type(error).__name__}"
    return arrays, was_cut


SAMPLED_SIDES = 64
"""Number of images that are measured, at most, to choose a size for all."""


def _typical_side(files: Sequence[tuple[Path, str]]) -> int:
    """The median of the shorter sides, in pixels, of up to `SAMPLED_SIDES` images or animations, evenly spaced; 64 if
    none of ``files``, pairs of folder and name, can be opened. No single file decides."""
    files = [(folder, name) for folder, name in files if not name.lower().endswith(".mp4")]
    spaced = np.unique(
        np.linspace(0, len(files) - 1, min(SAMPLED_SIDES, len(files))).astype(np.int64)
    ).tolist()

    def measure(file: tuple[Path, str]) -> int | None:
        """The shorter side of a file; None if it cannot be opened, which `FolderSource` will report."""
        try:
            return media.shorter_side(find_file(*file))
        except Exception:  # decoders raise many types of exceptions on damaged files
            return None

    sides = [side for k in spaced if (side := measure(files[k])) is not None]
    if not sides:  # all of these are damaged
        sides = [side for side in map(measure, files) if side is not None][:1]
    return sorted(sides)[(len(sides) - 1) // 2] if sides else 64


LARGEST_SIDE = 64
"""Largest side in pixels that images get where no size is asked for: what the default networks are made for."""


PROBED = 16
"""Number of examples that are decoded first, to measure how long one takes."""
SMALL = 1e-3
"""Seconds: files that decode faster are decoded one by one. Most of their time is spent in the Python interpreter, for
which threads would only queue (2,000 PNG files of 32 pixels: 0.26 s one by one, 0.5 to 0.7 s in threads)."""


def _map_ahead(pool: ThreadPoolExecutor, fn, items: Sequence[Any], ahead: int) -> Iterator[Any]:
    """Yields ``fn(item)`` of each item in order, as ``pool.map`` does, but computes at most ``ahead`` results in
    advance."""
    items = iter(items)
    pending = [pool.submit(fn, item) for item in itertools.islice(items, ahead)]
    while pending:
        oldest = pending.pop(0)
        pending += [pool.submit(fn, item) for item in itertools.islice(items, 1)]
        yield oldest.result()


class FolderSource(Source):
    """A folder of image, audio and video files.

    ``path`` holds ``train/`` and ``test/`` (or other splits), each with a metadata file. Or it holds one metadata file;
    then a tenth of its lines, chosen by the SHA-1 of their file names, is the test split. A line with several captions
    gives one example per caption. Where several examples show the same picture (such a line, or lines with the same
    file name), ``group`` int32 ``[B]`` in each batch is equal for those. If no line has a caption,
    examples with a label get the caption ``prompt.format(class name)``. Class names are the lines of ``classes.txt``,
    or else the sorted label names of all splits.

    Every file is decoded once when the data set is opened, so that bad examples are known before training and indices
    never shift; in ``workers`` threads, unless the first files take less than a millisecond each. The decoded arrays
    are kept in memory up to ``memory_limit`` bytes (estimated from the first examples); beyond it each batch decodes
    its files again.

    Args:
      path: the folder.
      split: ``train``, ``test``, or the name of another folder with metadata; ``all`` where there are no such folders.
      image_size: side of images and frames in pixels; None: the median of the images' shorter sides, over all splits
        (of 64 images, if there are more), but not more than ``largest_side``, which ``bad_examples`` then remarks.
      largest_side: see ``image_size``.
      image_fit, resample: how images become squares, see `media.Resize`.
      channels, sample_rate, max_seconds, frames: see `MediaOptions`.
      modalities: which to read; None: all that the metadata names.
      prompt: template of a caption with {} for the class name.
      columns: the columns of the metadata that have other names than those of `read_metadata`, such as
        ``{"file_name": "filename"}``.
      allow_outside: whether the metadata may name files outside of their folder.
      bad_examples: collects bad examples, and decides whether they stop the run (the default).
      memory_limit: bytes.
      workers: threads that decode files.
      progress: whether to show a progress bar.

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
        image_size: int | None = None,
        largest_side: int = LARGEST_SIDE,
        image_fit: media.Fit = "crop",
        resample: media.Resample = "bicubic",
        channels: int = 3,
        sample_rate: int = 16000,
        max_seconds: float = 4.0,
        frames: int = 8,
        modalities: tuple[str, ...] | None = None,
        prompt: str = "a photo of a {}",
        columns: Mapping[str, str] | None = None,
        allow_outside: bool = False,
        bad_examples: BadExamples | None = None,
        memory_limit: int = 4 << 30,
        workers: int = 8,
        progress: bool = True,
    ):
        self.bad_examples = BadExamples() if bad_examples is None else bad_examples
        root = Path(path).expanduser()
        listing = _list_split(root, split, self.bad_examples, columns, allow_outside)
        self._folder, self._workers = listing.path.parent, workers
        labels = _Labels(listing.all_records, root)
        self.class_names = labels.names
        records = _select_modalities(listing.records, modalities)
        records = self._labels_to_class_indices(records, labels, listing.path)
        if "text" in (modalities or ("text",)):
            records = self._caption_by_class(records, prompt)
        if image_size is None:
            image_size = self._choose_side(listing, modalities, largest_side, root)
        resize = media.Resize(image_fit, resample)
        self.options = MediaOptions(image_size, channels, sample_rate, max_seconds, frames, resize)
        self._records, self._decoded = self._decode_all(records, listing.path, memory_limit, progress)
        if not self._records:
            raise ValueError(
                f"{listing.path}: no usable example in the split {split!r} ({len(self.bad_examples)} bad ones left "
                "out). Correct those, or add examples."
            )
        available = {m: any(m in r.files for r in self._records) for m in FILE_MODALITIES}
        available["text"] = any(r.captions for r in self._records)
        self.modalities = tuple(m for m in ("text", "image", "audio", "video") if available[m])
        absent = [m for m in modalities or () if m not in self.modalities]
        if absent:
            raise ValueError(
                f"{listing.path} has no {absent[0]}; of the modalities asked for it has: {', '.join(self.modalities)}."
            )
        # One example per caption: the number of its record, and of its caption within the record.
        counts = [max(1, len(r.captions or ())) for r in self._records]
        self._record_of = np.repeat(np.arange(len(self._records), dtype=np.int32), counts)
        self._caption_of = np.concatenate([np.arange(c, dtype=np.int32) for c in counts])
        # For each example the number of its picture; None if no two examples show the same one.
        pictures = _number_pictures(self._records)[self._record_of]
        self._groups = pictures if len(np.unique(pictures)) < len(pictures) else None
        self._labelled = any(r.label is not None for r in self._records)
        self._complete = {
            m: all(r.captions if m == "text" else m in r.files for r in self._records)
            for m in self.modalities
        }

    def _choose_side(
        self, listing: _Listing, modalities: tuple[str, ...] | None, largest_side: int, root: Path
    ) -> int:
        """The side of images and frames in pixels, where none is asked for: see the class. The same for all splits."""
        named = (
            (folder, r.files.get("image") or r.files.get("video"))
            for folder, records_of_folder in listing.all_records
            for r in _select_modalities(records_of_folder, modalities)
        )
        side = _typical_side([(folder, name) for folder, name in named if name])
        if side > largest_side:
            self.bad_examples.remark(
                f"{root}: images and frames, whose shorter sides are typically {side} pixels, are resized to "
                f"{largest_side} x {largest_side}: --image-size chooses another size, --image-fit how they become "
                "square"
            )
        return min(side, largest_side)

    def _labels_to_class_indices(self, records: list[Record], labels: _Labels, path: Path) -> list[Record]:
        """The records with class indices as labels. Records with an invalid label are left out and reported as bad
        examples of the metadata file ``path``."""
        converted = []
        for record in records:
            try:
                converted.append(record._replace(label=labels.index(record)))
            except ValueError as error:
                self.bad_examples.add(path, record.line, str(error))
        return converted

    def _caption_by_class(self, records: list[Record], prompt: str) -> list[Record]:
        """The records with captions made from their class names; unchanged if any record has a caption."""
        if not self.class_names or any(r.captions is not None for r in records):
            return records
        captions_of_label = {i: [prompt.format(name)] for i, name in enumerate(self.class_names)}
        return [r._replace(captions=captions_of_label.get(r.label)) for r in records]

    def _decode_all(self, records: list[Record], metadata: Path, memory_limit: int, progress: bool):
        """``(records, decoded)``: the records that can be decoded, and the arrays of each; ``decoded`` is None if the
        arrays would take more than ``memory_limit`` bytes. The files that several records name are decoded once, and
        their arrays shared."""
        files_of = [tuple(record.files.items()) for record in records]
        distinct: dict[tuple, Record] = {}  # the first record that names these files
        for files, record in zip(files_of, records, strict=True):
            distinct.setdefault(files, record)
        # By files what `_decode` returns; without the arrays once these would take too much memory.
        outcomes: dict[tuple, Any] = {}
        count, nbytes, keep = 0, 0, True
        for (files, record), result in zip(
            distinct.items(), self._decode_each([*distinct.values()], metadata, progress), strict=True
        ):
            outcomes[files] = result
            if isinstance(result, str):  # the reason why it cannot be decoded
                self.bad_examples.add(metadata, record.line, result)
                continue
            count, nbytes = count + 1, nbytes + sum(a.nbytes for a in result[0].values())
            # Some records tell about the total: if that is too large, keep no arrays at all.
            estimate = nbytes / count * len(distinct) if count >= PROBED else nbytes
            if keep and max(nbytes, estimate) > memory_limit:
                keep = False
                outcomes = {k: v if isinstance(v, str) else ({}, v[1]) for k, v in outcomes.items()}
            elif not keep:
                outcomes[files] = {}, result[1]
        good, decoded, cuts = [], [], 0
        for files, record in zip(files_of, records, strict=True):
            result = outcomes[files]
            if isinstance(result, str):
                if record is not distinct[files]:  # the others that name the damaged file
                    self.bad_examples.add(metadata, record.line, result)
                continue
            good.append(record)
            decoded.append(result[0])
            cuts += result[1]
        self.bad_examples.note(
            f"recordings of {metadata} cut to {self.options.max_seconds} s (raise max_seconds to keep them whole)",
            cuts,
        )
        return good, decoded if keep else None

    def _decode_each(self, records: list[Record], metadata: Path, progress: bool) -> Iterator[Any]:
        """Yields what `_decode` returns for each record, with a progress bar; in threads unless the first files are
        decoded fast."""
        decode = lambda record: _decode(record, self._folder, self.options)
        with ThreadPoolExecutor(self._workers) as pool:
            start = time.perf_counter()
            probed = [decode(record) for record in records[:PROBED]]
            self._threaded = time.perf_counter() - start > PROBED * SMALL
            others = records[PROBED:]
            if self._threaded:
                other_results = _map_ahead(pool, decode, others, ahead=4 * self._workers)
            else:
                other_results = map(decode, others)
            results = itertools.chain(probed, other_results)
            yield from tqdm(
                results, total=len(records), desc=f"reading {metadata}", unit="file", disable=not progress
            )

    def __len__(self) -> int:
        return len(self._record_of)

    @property
    def in_memory(self) -> bool:
        """Whether the decoded files are kept in memory."""
        return self._decoded is not None

    def _arrays(self, numbers: np.ndarray) -> list[dict[str, np.ndarray]]:
        """The decoded files of the records with these numbers."""
        if self._decoded is not None:
            return [self._decoded[i] for i in numbers]

        def decode(i):
            """The arrays of record ``i``, decoded again from its files."""
            result = _decode(self._records[i], self._folder, self.options)
            if isinstance(result, str):
                raise OSError(
                    f"{result}; it could be decoded when the data set was opened, so it has changed since."
                )
            return result[0]

        if not self._threaded:
            return [decode(i) for i in numbers]
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(decode, numbers))

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        """A number for each example's picture, int32 ``[B]``: equal for the captions of one metadata line, and of lines
        with the same file name; None if no two examples show the same picture."""
        return None if self._groups is None else self._groups[self._resolve_indices(indices)]

    def _record_numbers(self, indices: np.ndarray | None) -> np.ndarray:
        """The number of each example's record (metadata line), int32 ``[B]``."""
        return self._record_of[self._resolve_indices(indices)]

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        if not self._labelled:
            return None
        records = [self._records[i] for i in self._record_numbers(indices)]
        return np.array([-1 if r.label is None else r.label for r in records], np.int32)

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """As `Source.presence`; no file is read."""
        records = [self._records[i] for i in self._record_numbers(indices)]
        return {
            m: np.array([bool(r.captions) if m == "text" else m in r.files for r in records], bool)
            for m in self.modalities
        }

    def _stack(self, modality: str, examples: list[dict[str, np.ndarray]]) -> RawBatch:
        """The batch fields of an image, video or audio modality, zeros where an example lacks it; ``examples`` holds
        the decoded arrays of each by modality."""
        options, n = self.options, len(examples)
        if modality == "audio":
            length = int(round(options.max_seconds * options.sample_rate))
            audio, mask = np.zeros((n, length), np.int16), np.zeros((n, length), bool)
            for i, example in enumerate(examples):
                if "audio" in example:
                    samples = example["audio"]
                    audio[i, : len(samples)], mask[i, : len(samples)] = samples, True
            return {"audio": audio, "audio_mask": mask}
        image_shape = (options.image_size, options.image_size, options.channels)
        shape = image_shape if modality == "image" else (options.frames, *image_shape)
        stacked = np.zeros((n, *shape), np.uint8)
        for out, example in zip(stacked, examples, strict=True):
            if modality in example:
                out[:] = example[modality]
        return {modality: stacked}

    def batch(self, indices: np.ndarray) -> RawBatch:
        """The examples ``indices``. Recordings are padded to ``max_seconds``; a missing modality is zeros or ``""``."""
        numbers = self._record_numbers(indices)
        examples = self._arrays(numbers)
        batch: RawBatch = {} if self._groups is None else {"group": self.groups(indices)}
        for modality in ("image", "video", "audio"):
            if modality in self.modalities:
                batch |= self._stack(modality, examples)
        if "text" in self.modalities:
            captions = [self._records[i].captions for i in numbers]
            batch["caption"] = np.empty(len(numbers), object)
            batch["caption"][:] = [
                c[k] if c else "" for c, k in zip(captions, self._caption_of[indices], strict=True)
            ]
        if self._labelled:
            batch["label"] = self.class_labels(indices)
        if not all(self._complete.values()):
            batch["present"] = self.presence(indices)
        return batch
