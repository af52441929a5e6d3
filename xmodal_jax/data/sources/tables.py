"""A data set of any `Table`: its files are decoded, its captions and labels put into batches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from xmodal_jax.data import media
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.decode_file import MediaOptions
from xmodal_jax.data.measured_columns import mask_missing, stack_measured
from xmodal_jax.data.row_decoder import PROBED_ROWS, DecodedRow, RowDecoder, path_or_bytes
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.sources.arrays import sort_modalities
from xmodal_jax.data.table import Content, Table
from xmodal_jax.types import kind_of

LARGEST_SIDE = 64
"""Largest side in pixels that images get where no size is asked for: what the default networks are made for."""
SAMPLED_SIDES = 64
"""Number of images that are measured, at most, to choose a size for all."""


def _typical_side(files: Sequence[Content]) -> int:
    """The median of the shorter sides, in pixels, of images or animations; 64 if none can be opened. No single file
    decides."""

    def measure(file: Content) -> int | None:
        """The shorter side of a file; None if it cannot be opened, which will be reported when it is decoded."""
        try:
            return min(media.image_size(path_or_bytes(file)))
        except Exception:  # decoders raise many types of exceptions on damaged files
            return None

    sides = sorted(side for side in map(measure, files) if side is not None)
    return sides[(len(sides) - 1) // 2] if sides else 64


READ_TOGETHER = 64
"""Rows that are read from the table at once while all of them are decoded."""
CHECKED_ROWS = 20_000
"""A data set of more rows that does not fit into memory is not decoded when it is opened, unless that is asked for."""


def _number_pictures(pictures: np.ndarray | None, count: int) -> np.ndarray:
    """For each of ``count`` rows the index of the first row that shows the same picture, int32 ``[R]``; see
    `Table.pictures`."""
    rows = np.arange(count, dtype=np.int32)
    if pictures is None:
        return rows
    _, first, inverse = np.unique(pictures, return_index=True, return_inverse=True)
    return np.where(pictures < 0, rows, first[inverse]).astype(np.int32)


class TableSource(Source):
    """A data set made of the rows of a table.

    A row with several captions gives one example per caption. Where several examples show the same picture (the
    captions of one row, or rows that the table says to show the same), ``group`` int32 ``[B]`` in each batch is equal
    for those. If no row has a caption, rows with a class get the caption ``prompt.format(class name)``.

    Where the decoded files take at most ``memory_limit`` bytes (estimated from the first rows), every file is decoded
    once when the data set is opened, and kept. Otherwise each batch decodes its files. Rows that cannot be used are
    known before training if all files are decoded at opening, which ``check_files`` decides; they are then no examples.
    A row that is found to be damaged later stops the run, or, where bad examples are skipped, the next row that can be
    decoded takes its place: the same in every epoch and on every machine, so that indices never shift.

    Args:
      table: where the rows are.
      image_size: side of images and frames in pixels; None: the median of the images' shorter sides, over all splits
        (of 64 images, if there are more), but not more than ``largest_side``, which ``bad_examples`` then remarks.
      largest_side: see ``image_size``.
      image_fit, resample, image_centre: how images become squares, see `media.Resize`.
      channels, sample_rate, max_seconds, frames: see `MediaOptions`.
      modalities: which to read; None: all that the table has.
      prompt: template of a caption with {} for the class name.
      bad_examples: collects bad examples, and decides whether they stop the run (the default).
      memory_limit: bytes.
      check_files: whether every file is decoded at opening, to find those that cannot be; None: if the decoded files
        are kept in memory, or if there are at most `CHECKED_ROWS` rows.
      workers: threads that decode files, or processes for files that take less than a millisecond: see `RowDecoder`.
      progress: whether to show a progress bar.

    Raises:
      ValueError: no such modality, or no example that can be used.
      BadExampleError: a bad example, if those stop the run.
    """

    def __init__(
        self,
        table: Table,
        *,
        image_size: int | None = None,
        largest_side: int = LARGEST_SIDE,
        image_fit: media.Fit = "crop",
        resample: media.Resample = "bicubic",
        image_centre: float = 1.0,
        channels: int = 3,
        sample_rate: int = 16000,
        max_seconds: float = 4.0,
        frames: int = 8,
        modalities: tuple[str, ...] | None = None,
        prompt: str = "a photo of a {}",
        bad_examples: BadExamples | None = None,
        memory_limit: int = 4 << 30,
        check_files: bool | None = None,
        workers: int = 8,
        progress: bool = True,
    ):
        self.bad_examples = BadExamples() if bad_examples is None else bad_examples
        self._table, self._prompt = table, prompt
        self.class_names, self.test_splits = table.class_names, table.test_splits
        self.validation_split = table.validation_split
        available = sort_modalities([*table.has_file, *table.caption_counts, *table.measured])
        wanted = tuple(m for m in available if modalities is None or m in modalities)
        self._files = tuple(m for m in wanted if m in table.has_file)
        self._caption_counts = {m: table.caption_counts[m] for m in wanted if m in table.caption_counts}
        self._measured = {m: mask_missing(m, table.measured[m]) for m in wanted if m in table.measured}
        self.feature_names = {m: names for m, names in table.feature_names.items() if m in self._measured}
        self._caption_by_class(modalities)
        if image_size is None:
            image_size = self._choose_side(largest_side)
        resize = media.Resize(image_fit, resample, image_centre)
        self.options = MediaOptions(image_size, channels, sample_rate, max_seconds, frames, resize)
        self._decoder = RowDecoder(self.options, workers, table.location)
        self._cut_rows: set[int] = set()
        rows, self._decoded = self._decode_all(memory_limit, check_files, progress)
        if not len(rows):
            raise ValueError(
                f"{table.name}: no usable example ({self.bad_examples.count_left_out()}). Correct those, or add "
                "examples."
            )
        self._number_examples(rows)
        self.modalities = tuple(
            m
            for m in sort_modalities([*self._files, *self._caption_counts, *self._measured])
            if self._has(m, rows).any()
        )
        absent = [m for m in modalities or () if m not in self.modalities]
        if absent:
            others = sort_modalities({*available, *self.modalities} - {*absent})
            raise ValueError(f"{table.name} has no {absent[0]}; it has: {', '.join(others) or 'nothing'}.")
        self._complete = all(self._has(m, rows).all() for m in self.modalities)

    def _caption_by_class(self, modalities: tuple[str, ...] | None) -> None:
        """Decides whether captions are made of class names: where text is asked for and no row has a caption."""
        has_captions = any(counts.any() for counts in self._caption_counts.values())
        wants_text = modalities is None or "text" in modalities
        self._prompted = bool(self.class_names) and wants_text and not has_captions
        if self._prompted:
            self._caption_counts = {"text": (self._table.labels >= 0).astype(np.int32)}

    def _choose_side(self, largest_side: int) -> int:
        """The side of images and frames in pixels, where none is asked for: see the class. The same for all splits."""
        side = _typical_side(self._table.sample_images(SAMPLED_SIDES, self._files))
        if side > largest_side:
            self.bad_examples.remark(
                f"{self._table.data_set}: images and frames, whose shorter sides are typically {side} pixels, are "
                f"resized to {largest_side} x {largest_side}: --image-size chooses another size, --image-fit how they "
                "become square"
            )
        return min(side, largest_side)

    def _has(self, modality: str, rows: np.ndarray) -> np.ndarray:
        """Which of the table's ``rows`` have a modality, bool ``[R]``."""
        if modality in self._caption_counts:
            return self._caption_counts[modality][rows] > 0
        if modality in self._measured:
            return self._measured[modality].present[rows]
        return self._table.has_file[modality][rows]

    def _number_examples(self, rows: np.ndarray) -> None:
        """Sets what is known of each example: one per caption of the usable ``rows`` int64 ``[R]`` of the table."""
        counts = np.ones(len(rows), np.int64)
        for of_modality in self._caption_counts.values():
            counts = np.maximum(counts, of_modality[rows])
        self._rows = rows
        # For each example the position of its row in `_rows`, and the number of its caption within the row.
        self._row_of = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        self._caption_of = (np.arange(len(self._row_of)) - starts).astype(np.int32)
        pictures = None if self._table.pictures is None else self._table.pictures[rows]
        pictures = _number_pictures(pictures, len(rows))[self._row_of]
        # The number of each example's picture; None if no two examples show the same one.
        self._groups = pictures if len(pictures) and np.bincount(pictures).max() > 1 else None
        labels = self._table.labels
        self._labels = None if labels is None or not (labels[rows] >= 0).any() else labels[rows]

    @property
    def _texts(self) -> tuple[str, ...]:
        """The text modalities that are read from the table."""
        return () if self._prompted else tuple(self._caption_counts)

    def _decode_all(
        self, memory_limit: int, check: bool | None, progress: bool
    ) -> tuple[np.ndarray, list[DecodedRow] | None]:
        """``(rows, decoded)``: the rows that can be used, and what is in each; ``decoded`` is None if the arrays would
        take more than ``memory_limit`` bytes. Files that several rows have are decoded once, and their arrays
        shared."""
        keys = [self._table.contents_key(row, self._files) for row in range(len(self._table))]
        first_row: dict[Hashable, int] = {}  # the first row that has these files
        for row, key in enumerate(keys):
            first_row.setdefault(key, row)
        check = len(first_row) <= CHECKED_ROWS if check is None else check
        self._checked = True
        # By files what `decode_row` returns; without the arrays once these would take too much memory.
        outcomes: dict[Hashable, DecodedRow | str] = {}
        count, nbytes, keep = 0, 0, True
        for (key, row), result in zip(
            first_row.items(), self._decode_each([*first_row.values()], progress), strict=True
        ):
            outcomes[key] = result
            if isinstance(result, str):  # the reason why it cannot be decoded
                self.bad_examples.add(*self._table.location(row), result)
                continue
            count, nbytes = count + 1, nbytes + sum(a.nbytes for a in result.arrays.values())
            # Some rows tell about the total: if that is too large, keep no arrays at all.
            estimate = nbytes / count * len(first_row) if count >= PROBED_ROWS else nbytes
            if keep and max(nbytes, estimate) > memory_limit:
                keep = False
                if not check:
                    self._checked = False
                    return np.arange(len(self._table)), None
                outcomes = {
                    k: v if isinstance(v, str) else v._replace(arrays={}) for k, v in outcomes.items()
                }
            elif not keep:
                outcomes[key] = result._replace(arrays={})
        return self._usable_rows([outcomes[key] for key in keys], keep)

    def _usable_rows(
        self, outcomes: list[DecodedRow | str], keep: bool
    ) -> tuple[np.ndarray, list[DecodedRow] | None]:
        """``(rows, decoded)`` as `_decode_all`, from what `decode_row` returned for the files of each row. ``decoded``
        is None unless ``keep``."""
        rows, decoded = [], []
        for start in range(0, len(outcomes), READ_TOGETHER):
            chunk = range(start, min(start + READ_TOGETHER, len(outcomes)))
            for number, row in zip(chunk, self._table.read(chunk, self._texts), strict=True):
                result = outcomes[number]
                if isinstance(result, str) or isinstance(row, str):
                    reason = result if isinstance(result, str) else row
                    self.bad_examples.add(*self._table.location(number), reason)
                    continue
                rows.append(number)
                decoded.append(result._replace(captions=row.captions))
                self._note_cut(number, result)
        return np.array(rows, np.int64), decoded if keep else None

    def _note_cut(self, row: int, result: DecodedRow) -> None:
        """Counts a recording that was cut, once however often it is decoded."""
        if not result.was_cut or row in self._cut_rows:
            return
        self._cut_rows.add(row)
        seconds = self.options.max_seconds
        self.bad_examples.note(
            f"Recordings of {self._table.name} are cut to {seconds:g} s, which shortens {{recordings}} (raise "
            "max_seconds, --max-seconds, to keep them whole)."
        )

    def _decode_each(self, rows: list[int], progress: bool) -> Iterator[DecodedRow | str]:
        """Yields what `decode_row` returns for the files of each of ``rows``, with a progress bar."""
        starts = range(0, len(rows), READ_TOGETHER)
        chunks = (self._table.read(rows[start : start + READ_TOGETHER], self._files) for start in starts)
        results = self._decoder.decode_ahead(rows, itertools.chain.from_iterable(chunks))
        yield from tqdm(
            results,
            total=len(rows),
            desc=f"reading {self._table.name}",
            unit="file",
            disable=not progress,
        )

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def in_memory(self) -> bool:
        """Whether the decoded files are kept in memory."""
        return self._decoded is not None

    def _contents(self, positions: np.ndarray) -> tuple[list[DecodedRow], np.ndarray]:
        """The decoded rows at these ``positions`` [B] of `_rows`, and the positions of the rows that they come from:
        others where the next row takes the place of one that cannot be used (see the class)."""
        if self._decoded is not None:
            return [self._decoded[i] for i in positions], positions
        results, used = self._decode_rows(positions), np.array(positions)
        for k, result in enumerate(results):
            while isinstance(result, str):
                if self._checked:
                    raise OSError(
                        f"{result}; it could be decoded when the data set was opened, so it has changed since."
                    )
                # Stops the run unless bad examples are skipped.
                self.bad_examples.add(*self._table.location(int(self._rows[used[k]])), result)
                used[k] = (used[k] + 1) % len(self._rows)
                if used[k] == positions[k]:
                    raise ValueError(f"{self._table.name}: no row can be decoded.")
                (result,) = self._decode_rows(used[k : k + 1])
            results[k] = result
            self._note_cut(int(self._rows[used[k]]), result)
        return results, used

    def _decode_rows(self, positions: np.ndarray) -> list[DecodedRow | str]:
        """What `decode_row` returns for the rows at ``positions`` [B] of `_rows`."""
        numbers = self._rows[positions].tolist()
        return self._decoder.decode(numbers, self._table.read(numbers, (*self._files, *self._texts)))

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        """A number for each example's picture, int32 ``[B]``; None if no two examples show the same picture. See the
        class."""
        return None if self._groups is None else self._groups[self._resolve_indices(indices)]

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        return None if self._labels is None else self._labels[self._row_of[self._resolve_indices(indices)]]

    def location(self, index: int) -> tuple[str | Path, int]:
        """As `Table.location`, by the index of an example."""
        return self._table.location(int(self._rows[self._row_of[index]]))

    def example_names(self, indices: np.ndarray | None = None) -> list[str]:
        """As `Source.example_names`; no file is read."""
        indices = self._resolve_indices(indices)
        files = [self._table.file_name(row) for row in self._rows[self._row_of[indices]].tolist()]
        if None not in files:
            return files
        return [
            located if name is None else name
            for name, located in zip(files, super().example_names(indices), strict=True)
        ]

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """As `Source.presence`; no file is read."""
        rows = self._rows[self._row_of[self._resolve_indices(indices)]]
        return {m: self._has(m, rows) for m in self.modalities}

    def image_sizes(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """As `Source.image_sizes`, from the headers of the files; 0 also where a header cannot be read."""
        rows = self._rows[self._row_of[self._resolve_indices(indices)]]
        names = [m for m in self.modalities if kind_of(m) == "image"]
        sizes = {m: np.zeros((len(rows), 2), np.int32) for m in names}
        for start in range(0, len(rows), READ_TOGETHER):
            for k, row in enumerate(
                self._table.read(rows[start : start + READ_TOGETHER].tolist(), names), start
            ):
                for modality, file in {} if isinstance(row, str) else row.files.items():
                    with contextlib.suppress(ValueError, OSError):
                        sizes[modality][k] = media.image_size(path_or_bytes(file))
        return sizes

    def _stack(self, modality: str, examples: list[DecodedRow]) -> RawBatch:
        """The batch fields of an image, video or audio modality, zeros where an example lacks it."""
        options, n = self.options, len(examples)
        kind = kind_of(modality)
        if kind == "audio":
            length = int(round(options.max_seconds * options.sample_rate))
            audio, mask = np.zeros((n, length), np.int16), np.zeros((n, length), bool)
            for i, example in enumerate(examples):
                if modality in example.arrays:
                    samples = example.arrays[modality]
                    audio[i, : len(samples)], mask[i, : len(samples)] = samples, True
            return {modality: audio, f"{modality}_mask": mask}
        image_shape = (options.image_size, options.image_size, options.channels)
        shape = image_shape if kind == "image" else (options.frames, *image_shape)
        stacked = np.zeros((n, *shape), np.uint8)
        for out, example in zip(stacked, examples, strict=True):
            if modality in example.arrays:
                out[:] = example.arrays[modality]
        return {modality: stacked}

    def _caption_fields(
        self, positions: np.ndarray, caption_numbers: np.ndarray, captions: Sequence[Mapping[str, list[str]]]
    ) -> RawBatch:
        """``caption`` and ``caption_NAME``, object ``[B]`` of str: ``""`` where the text is missing.

        Args:
          positions: those of the rows in `_rows`, ``[B]``.
          caption_numbers: the number of each example's caption within its row (modulo the row's captions).
          captions: the captions of each row by text modality.
        """
        fields: RawBatch = {}
        for modality in self.modalities:
            if kind_of(modality) != "text":
                continue
            field = np.empty(len(positions), object)
            if self._prompted:
                labels = self._labels[positions]
                names = ["" if label < 0 else self.class_names[label] for label in labels]
                field[:] = [self._prompt.format(name) if name else "" for name in names]
            else:
                of_row = [row.get(modality) for row in captions]
                field[:] = [c[k % len(c)] if c else "" for c, k in zip(of_row, caption_numbers, strict=True)]
            fields[modality.replace("text", "caption", 1)] = field
        return fields

    def caption_batch(self, indices: np.ndarray) -> RawBatch:
        """As `Source.caption_batch`; no file is decoded."""
        positions = self._row_of[self._resolve_indices(indices)]
        if self._decoded is not None:
            captions = [self._decoded[i].captions for i in positions]
        else:
            rows = self._table.read(self._rows[positions].tolist(), self._texts)
            captions = [{} if isinstance(row, str) else row.captions for row in rows]
        return self._caption_fields(positions, self._caption_of[indices], captions)

    def _measured_fields(self, rows: np.ndarray) -> RawBatch:
        """The fields of measured quantities of the table's ``rows``."""
        used = {m: data for m, data in self._measured.items() if m in self.modalities}
        return stack_measured(used, rows)

    def measured_batch(self, indices: np.ndarray) -> RawBatch:
        """As `Source.measured_batch`; no file is decoded."""
        fields = self._measured_fields(self._rows[self._row_of[indices]])
        return fields if self._complete else {**fields, "present": self.presence(indices)}

    def batch(self, indices: np.ndarray) -> RawBatch:
        """The examples ``indices``. Recordings are padded to ``max_seconds``; a missing modality is zeros or ``""``."""
        examples, positions = self._contents(self._row_of[indices])
        batch: RawBatch = {} if self._groups is None else {"group": self.groups(indices)}
        for modality in self.modalities:
            if modality in self._files:
                batch |= self._stack(modality, examples)
        batch |= self._caption_fields(positions, self._caption_of[indices], [e.captions for e in examples])
        rows = self._rows[positions]
        batch |= self._measured_fields(rows)
        if self._labels is not None:
            batch["label"] = self._labels[positions]
        if not self._complete:
            batch["present"] = {m: self._has(m, rows) for m in self.modalities}
        return batch
