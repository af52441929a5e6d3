"""``--data folder:PATH``: image, audio and video files listed in a metadata file (see `read_metadata`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from xmodal_jax.data import media
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.metadata import FILE_MODALITIES, Row, in_test_split, metadata_file, read_metadata
from xmodal_jax.data.source import RawBatch, Source


class MediaOptions(NamedTuple):
    """How files become arrays: pixels of a side, colour channels (1 or 3), Hz, seconds, frames per clip."""

    image_size: int
    channels: int = 3
    sample_rate: int = 16000
    max_seconds: float = 4.0
    frames: int = 8


class _Listing(NamedTuple):
    path: Path  # the metadata file
    rows: list[Row]
    labels: list[str | int]  # of all splits, so that a class has the same number in each


def _list_split(root: Path, split: str, bad_examples: BadExamples) -> _Listing:
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root}: there is no such folder.")
    splits = sorted(d.name for d in root.iterdir() if d.is_dir() and metadata_file(d))
    if splits and split in splits:
        path = metadata_file(root / split)
        rows = read_metadata(path, bad_examples)
        others = [metadata_file(root / name) for name in splits if name != split]
    elif splits:
        raise ValueError(
            f"{root} has no split {split!r}; its folders with a metadata file are: {', '.join(splits)}."
        )
    else:
        path, others = metadata_file(root), []
        if path is None:
            raise FileNotFoundError(
                f"{root} has no metadata.jsonl or metadata.csv, nor have its folders train/ and "
                "test/. Write one line "
                'per example, such as {"file_name": "0001.png", "text": "a red circle", "label": "circle"}.'
            )
        if split not in ("train", "test", "all"):
            raise ValueError(
                f"{root} has no split folders, so that the split must be train, test or all: {split!r}."
            )
        rows = read_metadata(path, bad_examples)
    labels = [r.label for r in rows]
    for other in others:  # their own mistakes are reported when they are opened
        labels += [r.label for r in read_metadata(other, BadExamples("skip"))]
    if not splits and split != "all":
        rows = [
            r for r in rows if in_test_split("/".join([*r.files.values()] or r.captions)) == (split == "test")
        ]
    return _Listing(path, rows, [label for label in labels if label is not None])


def _class_names(labels: Sequence[str | int], root: Path) -> tuple[str, ...] | None:
    listed = root / "classes.txt"
    if listed.is_file():
        return tuple(listed.read_text(encoding="utf-8").splitlines())
    if labels and all(isinstance(label, str) for label in labels):
        return tuple(sorted(set(labels)))
    return None


def _decode_row(row: Row, folder: Path, options: MediaOptions) -> tuple[dict[str, np.ndarray], bool] | str:
    """The arrays of one row and whether its recording was cut; or the reason why it cannot be decoded."""
    arrays, cut = {}, False
    for modality, name in row.files.items():
        file = folder / name
        if not file.is_file():
            return f"the file {name!r} does not exist in {folder}"
        try:
            if modality == "image":
                arrays["image"] = media.decode_image(file, options.image_size, options.channels)
            elif modality == "video":
                arrays["video"] = media.decode_video(
                    file, options.frames, options.image_size, options.channels
                )
            else:
                arrays["audio"], cut = media.decode_audio(file, options.sample_rate, options.max_seconds)
        except Exception as error:  # decoders raise many kinds on damaged files: all mean the same here
            return f"the file {name!r} cannot be decoded: {error}"
    return arrays, cut


PROBED = 16
SMALL = 1e-3
"""Seconds: files that decode faster are decoded one by one. Most of their time is the interpreter's, for which threads
would only queue (2,000 PNG files of 32 pixels: 0.26 s one by one, 0.5 to 0.7 s in threads)."""


def _map_ahead(pool: ThreadPoolExecutor, fn, items: Sequence[Any], ahead: int) -> Iterator[Any]:
    """As ``pool.map``, in order, but holding at most ``ahead`` results that nobody has taken yet."""
    items = iter(items)
    pending = [pool.submit(fn, item) for item in itertools.islice(items, ahead)]
    while pending:
        done = pending.pop(0)
        pending += [pool.submit(fn, item) for item in itertools.islice(items, 1)]
        yield done.result()


class FolderSource(Source):
    """A folder of files as a `Source`.

    ``path`` holds ``train/`` and ``test/`` (or other splits), each with its metadata file, or one metadata
    file, of which a tenth chosen by the file names' SHA-1 is the test split. A row with several captions
    gives one example per caption; ``group`` int32 ``[B]`` in each batch is equal for those. Rows with labels
    but no captions get ``prompt.format(class name)``. Class names are the label names sorted over all splits,
    or the lines of ``classes.txt``.

    Every file is decoded once when the data set is opened, so that bad examples are known before training and
    indices never shift; in ``workers`` threads, unless the first files take less than a millisecond. Up to
    ``memory_limit`` bytes (estimated from the first rows) the decoded arrays are kept; beyond it each batch
    decodes its files again.

    ``image_size`` None takes the shorter side of the first image. ``modalities`` restricts what is read.
    ``bad_examples`` collects bad examples; its ``on_bad_example`` decides whether they stop the run.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        image_size: int | None = None,
        channels: int = 3,
        sample_rate: int = 16000,
        max_seconds: float = 4.0,
        frames: int = 8,
        modalities: tuple[str, ...] | None = None,
        prompt: str = "a photo of a {}",
        bad_examples: BadExamples | None = None,
        memory_limit: int = 4 << 30,
        workers: int = 8,
        progress: bool = True,
    ):
        self.bad_examples = BadExamples() if bad_examples is None else bad_examples
        root = Path(path).expanduser()
        listing = _list_split(root, split, self.bad_examples)
        self._folder, self._workers = listing.path.parent, workers
        rows = listing.rows
        if modalities is not None:
            rows = [r._replace(files={m: f for m, f in r.files.items() if m in modalities}) for r in rows]
            if "text" not in modalities:
                rows = [r._replace(captions=None) for r in rows]
        self.class_names = _class_names(listing.labels, root)
        rows = self._number_labels(rows, listing)
        if self.class_names and all(r.captions is None for r in rows) and "text" in (modalities or ("text",)):
            named = lambda r: None if r.label is None else [prompt.format(self.class_names[r.label])]
            rows = [r._replace(captions=named(r)) for r in rows]
        self.options = MediaOptions(
            image_size or self._first_side(rows), channels, sample_rate, max_seconds, frames
        )
        self._rows, self._kept = self._decode_all(rows, listing.path, memory_limit, progress)
        if not self._rows:
            raise ValueError(
                f"{listing.path}: no usable example in the split {split!r} ({len(self.bad_examples)} bad "
                "ones left out)."
            )
        has = {m: any(m in r.files for r in self._rows) for m in FILE_MODALITIES}
        has["text"] = any(r.captions for r in self._rows)
        self.modalities = tuple(m for m in ("text", "image", "audio", "video") if has[m])
        absent = [m for m in modalities or () if m not in self.modalities]
        if absent:
            raise ValueError(f"{listing.path} has no {absent[0]}; it has: {', '.join(self.modalities)}.")
        counts = [max(1, len(r.captions or ())) for r in self._rows]
        self._row_of = np.repeat(np.arange(len(self._rows), dtype=np.int32), counts)
        self._caption_of = np.concatenate([np.arange(c, dtype=np.int32) for c in counts])
        self._labelled = any(r.label is not None for r in self._rows)
        self._complete = {
            m: all(r.captions if m == "text" else m in r.files for r in self._rows) for m in self.modalities
        }

    def _number_labels(self, rows: list[Row], listing: _Listing) -> list[Row]:
        numbers = {name: i for i, name in enumerate(self.class_names or ())}
        numbered = []
        for row in rows:
            label = row.label
            if isinstance(label, str) and label not in numbers:
                self.bad_examples.add(
                    listing.path,
                    row.line,
                    f"the label {label!r} is a name, where others are numbers "
                    "or classes.txt does not list it",
                )
            elif isinstance(label, int) and not 0 <= label < (len(numbers) or 2**31):
                self.bad_examples.add(
                    listing.path,
                    row.line,
                    f"the label {label} is not in 0..{len(numbers) - 1}"
                    if numbers
                    else f"the label {label} is negative",
                )
            else:
                numbered.append(row._replace(label=numbers[label] if isinstance(label, str) else label))
        return numbered

    def _first_side(self, rows: list[Row]) -> int:
        for row in rows:
            name = row.files.get("image") or row.files.get("video")
            if name and not name.lower().endswith(".mp4"):
                try:
                    return media.shorter_side(self._folder / name)
                except OSError:
                    continue  # reported when it is decoded
        return 64

    def _decode_all(self, rows: list[Row], metadata: Path, memory_limit: int, progress: bool):
        """The rows that decode, and their arrays (None if they would exceed the memory limit)."""
        good, kept, size, cut = [], [], 0, 0
        decode = lambda row: _decode_row(row, self._folder, self.options)
        with ThreadPoolExecutor(self._workers) as pool:
            begun = time.perf_counter()
            first = [decode(row) for row in rows[:PROBED]]
            self._threaded = time.perf_counter() - begun > PROBED * SMALL
            rest = rows[PROBED:]
            later = _map_ahead(pool, decode, rest, 4 * self._workers) if self._threaded else map(decode, rest)
            results = itertools.chain(first, later)
            bar = tqdm(
                results, total=len(rows), desc=f"reading {metadata}", unit="file", disable=not progress
            )
            for done, (row, result) in enumerate(zip(rows, bar, strict=True), 1):
                if isinstance(result, str):
                    self.bad_examples.add(metadata, row.line, result)
                    continue
                good.append(row)
                cut += result[1]
                if kept is not None:
                    kept.append(result[0])
                    size += sum(a.nbytes for a in result[0].values())
                    if size > memory_limit or (done == 64 and size / done * len(rows) > memory_limit):
                        kept = None
        self.bad_examples.note(
            f"recordings of {metadata} cut to {self.options.max_seconds} s (raise max_seconds to keep "
            "them whole)",
            cut,
        )
        return good, kept

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def in_memory(self) -> bool:
        """Whether the decoded files are kept."""
        return self._kept is not None

    def _fields(self, row_numbers: np.ndarray) -> list[dict[str, np.ndarray]]:
        if self._kept is not None:
            return [self._kept[i] for i in row_numbers]

        def decode(i):
            result = _decode_row(self._rows[i], self._folder, self.options)
            if isinstance(result, str):
                raise OSError(
                    f"{result}; it could be decoded when the data set was opened, so it has changed since."
                )
            return result[0]

        if not self._threaded:
            return [decode(i) for i in row_numbers]
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(decode, row_numbers))

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray:
        """The number of each example's line among those used, int32 ``[B]``."""
        return self._row_of[self._all_or(indices)]

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        if not self._labelled:
            return None
        rows = [self._rows[i] for i in self._row_of[self._all_or(indices)]]
        return np.array([-1 if r.label is None else r.label for r in rows], np.int32)

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """As `Source.presence`; no file is read."""
        rows = [self._rows[i] for i in self._row_of[self._all_or(indices)]]
        return {
            m: np.array([bool(r.captions) if m == "text" else m in r.files for r in rows], bool)
            for m in self.modalities
        }

    def batch(self, indices: np.ndarray) -> RawBatch:
        """The examples at ``indices``; audio is padded to ``max_seconds``, a missing modality is zeros or
        ""."""
        numbers = self._row_of[indices]
        fields = self._fields(numbers)
        rows = [self._rows[i] for i in numbers]
        o, n = self.options, len(rows)
        side = (o.image_size, o.image_size, o.channels)
        batch: RawBatch = {"group": numbers}
        for modality, shape in (("image", side), ("video", (o.frames, *side))):
            if modality in self.modalities:
                batch[modality] = np.zeros((n, *shape), np.uint8)
                for out, example in zip(batch[modality], fields, strict=True):
                    if modality in example:
                        out[:] = example[modality]
        if "audio" in self.modalities:
            length = int(round(o.max_seconds * o.sample_rate))
            batch["audio"], batch["audio_mask"] = np.zeros((n, length), np.int16), np.zeros((n, length), bool)
            for i, example in enumerate(fields):
                if "audio" in example:
                    samples = example["audio"]
                    batch["audio"][i, : len(samples)] = samples
                    batch["audio_mask"][i, : len(samples)] = True
        if "text" in self.modalities:
            batch["caption"] = np.empty(n, object)
            batch["caption"][:] = [
                r.captions[c] if r.captions else ""
                for r, c in zip(rows, self._caption_of[indices], strict=True)
            ]
        if self._labelled:
            batch["label"] = self.class_labels(indices)
        if not all(self._complete.values()):
            batch["present"] = self.presence(indices)
        return batch
