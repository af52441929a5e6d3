"""The rows of a table decoded: one by one, in threads, or in processes, whichever is fast for its files."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.core.text_files import shorten
from xmodal_jax.data import decode_processes
from xmodal_jax.data.decode_file import MediaOptions, decode_file
from xmodal_jax.data.metadata import find_file
from xmodal_jax.data.table import Content, FolderFile, Row
from xmodal_jax.types import kind_of

PROBED = 16
"""Number of rows that are decoded first, to measure how long one takes and how much memory it needs."""
SMALL = 1e-3
"""Seconds: files that decode faster are not decoded in threads. Most of their time is spent in the Python interpreter,
for which threads would only queue (2,000 PNG files of 32 pixels: 0.26 s one by one, 0.5 to 0.7 s in threads)."""
PAYS_AFTER = 0.5
"""Seconds that the decoding of small files has to take here before processes are started for the rest of them, and that
the rest has to take if its length is known. They take 0.2 s to start, and 35 MB each."""
TOGETHER = 32
"""Rows that a process decodes at once, at most: 6 ms for JPEG images of 96 pixels, while a request takes 0.2 ms."""


class DecodedRow(NamedTuple):
    """A row of a table whose files are decoded."""

    arrays: dict[str, np.ndarray]
    """By modality: an image uint8 ``[S, S, C]``, a video uint8 ``[F, S, S, C]``, a recording int16 ``[t]``."""
    captions: dict[str, list[str]]
    """By text modality."""
    was_cut: bool
    """Whether a recording was longer than ``max_seconds``."""


Outcome = DecodedRow | str
"""A row that is decoded, or the reason why it cannot be."""


def content_of(file: Content) -> Path | bytes:
    """A file as decoders take it."""
    return find_file(*file) if isinstance(file, FolderFile) else file


def decode_row(row: Row | str, options: MediaOptions) -> Outcome:
    """A row with its files decoded. If it cannot be read, or one of its files not be decoded, the reason instead."""
    if isinstance(row, str):
        return row
    arrays, was_cut = {}, False
    for modality, file in row.files.items():
        # A file in a container has no name; its modality says which of the row's files it is.
        name = f"the file {shorten(file.name)}" if isinstance(file, FolderFile) else f"the {modality}"
        try:
            arrays[modality], cut = decode_file(kind_of(modality), content_of(file), options)
        except FileNotFoundError:
            if isinstance(file, FolderFile) and "://" in file.name:
                return f"{name} is an address: download the file, and name it by its path"
            return f"{name} does not exist" + (f" in {file.folder}" if isinstance(file, FolderFile) else "")
        except Exception as error:  # decoders raise many types of exceptions on damaged files
            return f"{name} cannot be decoded: {error or type(error).__name__}"
        was_cut |= cut
    return DecodedRow(arrays, row.captions, was_cut)


def _files_of(row: Row | str) -> list[decode_processes.File]:
    """The files of a row as workers take them; none if one of them cannot be looked for."""
    if isinstance(row, str):
        return []
    try:
        return [decode_processes.File(kind_of(m), content_of(file)) for m, file in row.files.items()]
    except (OSError, ValueError):  # such as a name that is too long: `decode_row` says so
        return []


def decode_in_process(
    processes: decode_processes.DecodeProcesses, rows: Sequence[Row | str], options: MediaOptions
) -> list[Outcome]:
    """What `decode_row` returns for each of ``rows``, whose files a worker decodes.

    Raises:
      decode_processes.CrashError: a file ends its worker; ``index`` is that of the row.
    """
    files = [_files_of(row) for row in rows]
    try:
        decoded = iter(processes.decode([*itertools.chain(*files)], options))
    except decode_processes.CrashError as error:
        row_of_file = np.repeat(np.arange(len(rows)), [len(of_row) for of_row in files])
        raise decode_processes.CrashError(int(row_of_file[error.index]), error.ending) from error
    outcomes: list[Outcome] = []
    for row, of_row in zip(rows, files, strict=True):
        results = list(itertools.islice(decoded, len(of_row)))
        if isinstance(row, str) or len(of_row) < len(row.files) or None in results:
            outcomes.append(decode_row(row, options))  # whatever is wrong with it, this process says it
            continue
        arrays = {m: array for m, (array, _) in zip(row.files, results, strict=True)}
        outcomes.append(DecodedRow(arrays, row.captions, any(cut for _, cut in results)))
    return outcomes


def _map_ahead(
    pool: ThreadPoolExecutor, fn: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """Yields ``fn(item)`` of each item in order, as ``pool.map`` does, but computes at most ``ahead`` results in
    advance."""
    items = iter(items)
    pending = [pool.submit(fn, item) for item in itertools.islice(items, ahead)]
    while pending:
        oldest = pending.pop(0)
        pending += [pool.submit(fn, item) for item in itertools.islice(items, 1)]
        yield oldest.result()


def _available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RowDecoder:
    """Decodes the rows of one table. The result is the same however it does.

    Files that take more than a millisecond (the median of the first ones) are decoded in threads. Smaller ones are
    decoded one by one until that has taken `PAYS_AFTER` seconds, and then in processes.

    Args:
      options: what files are converted to.
      workers: threads or processes, of the latter at most one per core.
      location: the file and line of a row, by its number, for messages.
    """

    def __init__(
        self, options: MediaOptions, workers: int, location: Callable[[int], tuple[str | Path, int]]
    ):
        self.options, self._workers, self._location = options, workers, location
        self._processes = min(workers, _available_cores())
        self._pool = ThreadPoolExecutor(workers)  # its threads start when they are needed
        self._threaded = False
        self._spent = 0.0  # seconds in which small files were decoded one by one

    def decode_ahead(self, numbers: Sequence[int], rows: Iterator[Row | str]) -> Iterator[Outcome]:
        """Yields what `decode_row` returns for each of ``rows``, whose ``numbers`` are those of the table."""
        probed, seconds = [], []
        for row in itertools.islice(rows, PROBED):
            start = time.perf_counter()
            probed.append(decode_row(row, self.options))
            seconds.append(time.perf_counter() - start)
        # The median: the first file of a format also loads its decoder.
        median = float(np.median(seconds)) if seconds else 0.0
        self._threaded = median > SMALL
        done = len(probed)
        while probed:
            yield probed.pop(0)  # and keep none of them
        if self._threaded:
            decode = lambda row: decode_row(row, self.options)
            yield from _map_ahead(self._pool, decode, rows, ahead=4 * self._workers)
            return
        while (processes := self._ready_processes()) is None:
            if (row := next(rows, None)) is None:
                return
            yield from self._decode_here([row], rest=median * (len(numbers) - done))
            done += 1
        chunks = (
            (numbers[start : start + TOGETHER], list(itertools.islice(rows, TOGETHER)))
            for start in range(done, len(numbers), TOGETHER)
        )
        decode = functools.partial(self._decode_there, processes)
        for outcomes in _map_ahead(self._pool, decode, chunks, ahead=self._processes + 2):
            yield from outcomes

    def decode(self, numbers: Sequence[int], rows: Sequence[Row | str]) -> list[Outcome]:
        """What `decode_row` returns for each of ``rows``, whose ``numbers`` are those of the table."""
        if self._threaded:
            return list(self._pool.map(lambda row: decode_row(row, self.options), rows))
        if (processes := self._ready_processes()) is None:
            return self._decode_here(rows)
        size = max(1, min(TOGETHER, -(-len(rows) // self._processes)))
        starts = range(0, len(rows), size)
        chunks = [(numbers[start : start + size], rows[start : start + size]) for start in starts]
        decode = functools.partial(self._decode_there, processes)
        return [*itertools.chain.from_iterable(self._pool.map(decode, chunks))]

    def _ready_processes(self) -> decode_processes.DecodeProcesses | None:
        """The processes that decode small files; None: there are none, or they are still starting."""
        processes = decode_processes.processes
        return processes if self._processes > 1 and processes.ready else None

    def _decode_here(self, rows: Sequence[Row | str], rest: float = np.inf) -> list[Outcome]:
        """Decodes small files one by one, and starts processes once that has taken long enough. ``rest``: seconds that
        it will take."""
        start = time.perf_counter()
        outcomes = [decode_row(row, self.options) for row in rows]
        self._spent += time.perf_counter() - start
        if self._processes > 1 and min(self._spent, rest) > PAYS_AFTER:
            decode_processes.processes.start(self._processes)
        return outcomes

    def _decode_there(
        self,
        processes: decode_processes.DecodeProcesses,
        numbered: tuple[Sequence[int], Sequence[Row | str]],
    ) -> list[Outcome]:
        """Decodes rows with their numbers in a process."""
        numbers, rows = numbered
        try:
            return decode_in_process(processes, rows, self.options)
        except decode_processes.CrashError as error:
            file, line = self._location(int(numbers[error.index]))
            raise OSError(
                f"{file}:{line}: the process that decoded this line's files {error.ending}, twice. Correct or remove "
                "the line, or, if memory ran out, lower the number of workers (--workers)."
            ) from error
