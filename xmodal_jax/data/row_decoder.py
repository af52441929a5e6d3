"""Decodes the rows of a table: one by one, in threads, or in processes, whichever is fast for its files."""

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

PROBED_ROWS = 16
"""Number of rows that are decoded first, to measure how long a row takes and how much memory it needs."""
FAST_SECONDS = 1e-3
"""Files that take fewer seconds are not decoded in threads. Most of their time is spent in the Python interpreter, for
whose lock threads would only wait (2,000 PNG files of 32 pixels: 0.26 s one by one, 0.5 to 0.7 s in threads)."""
PROCESSES_PAY_AFTER = 0.5
"""Seconds of decoding small files one by one after which processes are started for the rest, if the rest is expected to
take as long or its length is unknown. A process takes 0.2 s to start, and 35 MB."""
ROWS_PER_REQUEST = 32
"""Largest number of rows in a request to a process, so that the cost of a request (0.2 ms) is small beside its work (6
ms for JPEG images of 96 pixels)."""


class DecodedRow(NamedTuple):
    """A row of a table whose files are decoded."""

    arrays: dict[str, np.ndarray]
    """By modality: an image uint8 ``[S, S, C]``, a video uint8 ``[F, S, S, C]``, a recording int16 ``[t]``."""
    captions: dict[str, list[str]]
    """By text modality."""
    was_cut: bool
    """Whether a recording was longer than ``max_seconds``."""


Outcome = DecodedRow | str
"""A decoded row, or the reason why the row cannot be decoded."""


def path_or_bytes(file: Content) -> Path | bytes:
    """The path of a file in a folder, or the bytes of a file in a container, as decoders take them."""
    return find_file(*file) if isinstance(file, FolderFile) else file


def decode_row(row: Row | str, options: MediaOptions) -> Outcome:
    """Decodes the files of a row. ``row``: a str is the reason why the row cannot be read, which is returned as it
    is."""
    if isinstance(row, str):
        return row
    arrays, was_cut = {}, False
    for modality, file in row.files.items():
        # A file in a container has no name; its modality says which of the row's files it is.
        name = f"the file {shorten(file.name)}" if isinstance(file, FolderFile) else f"the {modality}"
        try:
            arrays[modality], cut = decode_file(kind_of(modality), path_or_bytes(file), options)
        except FileNotFoundError:
            if isinstance(file, FolderFile) and "://" in file.name:
                return f"{name} is an address: download the file, and name it by its path"
            return f"{name} does not exist" + (f" in {file.folder}" if isinstance(file, FolderFile) else "")
        except Exception as error:  # decoders raise many types of exceptions on damaged files
            return f"{name} cannot be decoded: {error or type(error).__name__}"
        was_cut |= cut
    return DecodedRow(arrays, row.captions, was_cut)


def _files_of(row: Row | str) -> list[decode_processes.File]:
    """The files of a row as workers take them; empty if the row cannot be read or the path of a file is impossible."""
    if isinstance(row, str):
        return []
    try:
        return [decode_processes.File(kind_of(m), path_or_bytes(file)) for m, file in row.files.items()]
    except (OSError, ValueError):  # such as a name that is too long, which `decode_row` then reports
        return []


def decode_in_process(
    processes: decode_processes.DecodeProcesses, rows: Sequence[Row | str], options: MediaOptions
) -> list[Outcome]:
    """Decodes rows as `decode_row` does, with the files sent to a worker process in one request.

    Raises:
      decode_processes.CrashError: a file crashes its worker; ``index`` is that of the row.
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
            outcomes.append(decode_row(row, options))  # decoded here once more, for the reason of the failure
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
    """Decodes the rows of one table, in the way that is fastest for its files; the results do not depend on the way.

    Files that take more than `FAST_SECONDS` (the median of the first rows) are decoded in threads. Faster ones are
    decoded one by one for `PROCESSES_PAY_AFTER` seconds, and the rest in processes.

    Args:
      options: what files are converted to.
      workers: number of threads or processes; of processes at most one per core.
      location: ``location(number)``: the file and line of a row, for messages.
    """

    def __init__(
        self, options: MediaOptions, workers: int, location: Callable[[int], tuple[str | Path, int]]
    ):
        self.options, self._workers, self._location = options, workers, location
        self._processes = min(workers, _available_cores())
        self._pool = ThreadPoolExecutor(workers)  # its threads start when they are needed
        self._uses_threads = False
        self._seconds_one_by_one = 0.0  # of small files

    def decode_ahead(self, numbers: Sequence[int], rows: Iterator[Row | str]) -> Iterator[Outcome]:
        """Yields the outcome of each of ``rows`` in order, decoding later rows meanwhile. ``numbers``: of the rows in
        the table, one for each."""
        probed, seconds = [], []
        for row in itertools.islice(rows, PROBED_ROWS):
            start = time.perf_counter()
            probed.append(decode_row(row, self.options))
            seconds.append(time.perf_counter() - start)
        # The median: the first file of a format also loads its decoder.
        median = float(np.median(seconds)) if seconds else 0.0
        self._uses_threads = median > FAST_SECONDS
        done = len(probed)
        while probed:
            yield probed.pop(0)  # removed from the list, so that its memory is freed
        if self._uses_threads:
            decode = lambda row: decode_row(row, self.options)
            yield from _map_ahead(self._pool, decode, rows, ahead=4 * self._workers)
            return
        while (processes := self._ready_processes()) is None:
            if (row := next(rows, None)) is None:
                return
            yield from self._decode_one_by_one([row], seconds_left=median * (len(numbers) - done))
            done += 1
        chunks = (
            (numbers[start : start + ROWS_PER_REQUEST], list(itertools.islice(rows, ROWS_PER_REQUEST)))
            for start in range(done, len(numbers), ROWS_PER_REQUEST)
        )
        decode = functools.partial(self._decode_chunk, processes)
        for outcomes in _map_ahead(self._pool, decode, chunks, ahead=self._processes + 2):
            yield from outcomes

    def decode(self, numbers: Sequence[int], rows: Sequence[Row | str]) -> list[Outcome]:
        """The outcome of each of ``rows``. ``numbers``: of the rows in the table, one for each."""
        if self._uses_threads:
            return list(self._pool.map(lambda row: decode_row(row, self.options), rows))
        if (processes := self._ready_processes()) is None:
            return self._decode_one_by_one(rows)
        size = max(1, min(ROWS_PER_REQUEST, -(-len(rows) // self._processes)))
        starts = range(0, len(rows), size)
        chunks = [(numbers[start : start + size], rows[start : start + size]) for start in starts]
        decode = functools.partial(self._decode_chunk, processes)
        return [*itertools.chain.from_iterable(self._pool.map(decode, chunks))]

    def _ready_processes(self) -> decode_processes.DecodeProcesses | None:
        """The processes that decode small files; None: there are none, or they are still starting."""
        processes = decode_processes.processes
        return processes if self._processes > 1 and processes.ready else None

    def _decode_one_by_one(self, rows: Sequence[Row | str], seconds_left: float = np.inf) -> list[Outcome]:
        """Decodes rows with small files in this thread, and starts processes for later ones once that has taken long.

        ``seconds_left``: estimated time of all rows that are not decoded yet.
        """
        start = time.perf_counter()
        outcomes = [decode_row(row, self.options) for row in rows]
        self._seconds_one_by_one += time.perf_counter() - start
        if self._processes > 1 and min(self._seconds_one_by_one, seconds_left) > PROCESSES_PAY_AFTER:
            decode_processes.processes.start(self._processes)
        return outcomes

    def _decode_chunk(
        self,
        processes: decode_processes.DecodeProcesses,
        numbered: tuple[Sequence[int], Sequence[Row | str]],
    ) -> list[Outcome]:
        """Decodes ``(numbers, rows)`` in a process."""
        numbers, rows = numbered
        try:
            return decode_in_process(processes, rows, self.options)
        except decode_processes.CrashError as error:
            file, line = self._location(int(numbers[error.index]))
            raise OSError(
                f"{file}:{line}: the process that decoded this line's files {error.ending}, twice. Correct or remove "
                "the line, or, if memory ran out, lower the number of workers (--workers)."
            ) from error
