"""Parquet and Arrow files whose rows are read by number: strings, lists of strings and the contents of files.

Rows of a Parquet file cannot be read one by one: its columns are compressed in row groups. A row group that is needed
is therefore copied, uncompressed, to an Arrow file in the cache folder, from which single values are read.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_jax.core.text_files import shorten
from xmodal_jax.data.shapes.speech import default_cache_dir
from xmodal_jax.data.sources.arrow_values import Block, MappedFile, check_array, first_line, simplify
from xmodal_jax.data.table import evenly_spaced

ColumnPath = tuple[str, ...]
"""A column, or a field of a struct column: ``("image", "bytes")``."""

MEMORY_LIMIT = 256 << 20
"""Bytes of columns that a table keeps in memory, the smallest columns first; values of others are read from disk."""
CHUNK_BYTES = 128 << 20
"""Uncompressed bytes of consecutive row groups, about, that are copied together."""
BATCH_BYTES = 4 << 20
"""Bytes, about, that are decompressed at once."""
BATCH_ROWS = 1024
"""Rows that are decompressed at once, at most."""
HEAD_ROWS = 1024
"""Rows at the beginning of a chunk, at most, that are read without copying all of it."""
HEAD_BYTES = 32 << 20
"""Bytes of a column, about, that are read so. Opening a data set then copies nothing, and training copies all."""


class ArrowFile(abc.ABC):
    """A file of rows in chunks, whose columns are read one chunk at a time."""

    path: Path
    schema: pa.Schema
    chunk_rows: list[int]
    """The number of rows of each chunk."""

    @property
    def rows(self) -> int:
        return sum(self.chunk_rows)

    @abc.abstractmethod
    def nbytes(self, column: ColumnPath) -> int:
        """The size of a column that would be copied if it is not kept in memory; 0: it is never copied."""

    @abc.abstractmethod
    def scan(
        self, column: ColumnPath, chunk: int | None = None, most: int | None = None
    ) -> Iterator[pa.Array]:
        """Yields the values of a column in parts: those of all chunks, or of one; at most ``most`` rows at once."""

    @abc.abstractmethod
    def null_count(self, column: ColumnPath, chunk: int) -> int | None:
        """The number of rows of a chunk that are null, if that is known without reading the column."""

    def needs_copy(self, column: ColumnPath, chunk: int) -> bool:
        """Whether a column of a chunk has to be copied before single values can be read from disk."""
        return False

    @abc.abstractmethod
    def load(self, column: ColumnPath, chunk: int) -> Block:
        """A column of a chunk, on disk."""


def _field(array: pa.Array, names: Sequence[str]) -> pa.Array:
    """The field ``names`` of the structs in an array; null where the struct is."""
    for name in names:
        array = array.flatten()[array.type.get_field_index(name)]
    return array


def _check_names(fields: Iterable[pa.Field]) -> None:
    """Raises ValueError if a name of a column, or of a field of a struct, is not UTF-8."""
    for field in fields:
        field.name  # noqa: B018  (it is decoded here)
        _check_names(field.type.field(i) for i in range(field.type.num_fields))


class ParquetFile(ArrowFile):
    """A Parquet file.

    Raises:
      ValueError: it is none, or is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                self._metadata, self.schema = file.metadata, file.schema_arrow
            _check_names(self.schema)
            columns = range(self._metadata.num_columns)
            self._paths = [self._metadata.schema.column(i).path for i in columns]
        except FileNotFoundError as error:
            raise _not_there(path) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(
                f"{path}: not a Parquet file, or a truncated one: {first_line(error)}."
            ) from error
        self._stat = _identity(path)
        self._groups: list[list[int]] = []  # the row groups of each chunk
        size = CHUNK_BYTES
        for group in range(self._metadata.num_row_groups):
            if size >= CHUNK_BYTES:
                self._groups.append([])
                size = 0
            self._groups[-1].append(group)
            size += self._metadata.row_group(group).total_byte_size
        self.chunk_rows = [
            sum(self._metadata.row_group(group).num_rows for group in groups) for groups in self._groups
        ]

    def _column_numbers(self, column: ColumnPath) -> list[int]:
        """The numbers of the columns in the file that hold the fields of ``column``."""
        name = ".".join(column)
        return [i for i, path in enumerate(self._paths) if path == name or path.startswith(f"{name}.")]

    def _column_chunks(self, column: ColumnPath, groups: Sequence[int]) -> Iterator[pq.ColumnChunkMetaData]:
        numbers = self._column_numbers(column)
        return (self._metadata.row_group(group).column(number) for group in groups for number in numbers)

    def nbytes(self, column: ColumnPath) -> int:
        groups = range(self._metadata.num_row_groups)
        return sum(chunk.total_uncompressed_size for chunk in self._column_chunks(column, groups))

    def null_count(self, column: ColumnPath, chunk: int) -> int | None:
        total = 0
        for metadata in self._column_chunks(column, self._groups[chunk]):
            statistics = metadata.statistics
            # Of the strings of a list it would be the number of those that are null.
            is_whole = ".".join(column) in self._paths
            if statistics is None or not statistics.has_null_count or not is_whole:
                return None
            total += statistics.null_count
        return total

    def scan(
        self, column: ColumnPath, chunk: int | None = None, most: int | None = None
    ) -> Iterator[pa.Array]:
        groups = [*range(self._metadata.num_row_groups)] if chunk is None else self._groups[chunk]
        if _identity(self.path) != self._stat:
            raise ValueError(f"{self.path}: the file has changed since it was opened: start again.")
        rows = sum(self._metadata.row_group(group).num_rows for group in groups)
        nbytes = sum(c.total_uncompressed_size for c in self._column_chunks(column, groups))
        size = min(most or BATCH_ROWS, max(1, BATCH_BYTES * rows // max(nbytes, 1)))
        try:
            # With a buffer, a row group is not read at once: it can be larger than memory.
            options = {"buffer_size": 1 << 20, "pre_buffer": False}
            with pq.ParquetFile(self.path, metadata=self._metadata, **options) as file:
                for batch in file.iter_batches(size, groups, [".".join(column)], use_threads=False):
                    rows -= batch.num_rows
                    yield _field(batch.column(0), column[1:])
            if rows > 0:
                raise OSError(f"{rows} rows are missing")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a name is not UTF-8
            raise _damaged(self.path, column, error) from error

    def _cached(self, column: ColumnPath, chunk: int) -> Path:
        """Where the copy of a column of a chunk is, or will be."""
        groups = self._groups[chunk]
        name = hashlib.sha256("\0".join(column).encode()).hexdigest()[:16]
        return _cache_of(self.path) / self._stat / f"{name}-{groups[0]}-{groups[-1]}.arrow"

    def needs_copy(self, column: ColumnPath, chunk: int) -> bool:
        return not self._cached(column, chunk).is_file()

    def load(self, column: ColumnPath, chunk: int) -> Block:
        path = self._cached(column, chunk)
        if not path.is_file():
            _forget_old(path.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")):
                if not path.is_file():  # another process may have made it
                    _write_copy(path, (simplify(array) for array in self.scan(column, chunk)))
            pa.default_memory_pool().release_unused()
        mapping = MappedFile(path)
        with pa.ipc.open_file(pa.BufferReader(mapping.buffer)) as reader:
            arrays = [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]
        return Block(arrays, mapping)


def _damaged(path: Path, column: ColumnPath, error: Exception) -> ValueError:
    """The error that a column cannot be read."""
    name = ".".join(column)
    return ValueError(f"{path}: the column {name} cannot be read, the file is damaged: {first_line(error)}.")


def _not_there(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path} does not exist, which other files of the data set name: copy it too.")


def _identity(path: Path) -> str:
    """Size and time of a file: another one if it has changed."""
    stat = os.stat(path)
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _cache_of(path: Path) -> Path:
    """The folder of all copies of a file."""
    name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:24]
    return default_cache_dir() / "parquet" / name


def _forget_old(folder: Path) -> None:
    """Removes the copies of what the file was before it changed; ``folder`` has those of now."""
    if folder.parent.is_dir():
        for other in folder.parent.iterdir():
            if other.name != folder.name:
                shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time is within. The lock ends with the process that holds it."""
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_copy(path: Path, arrays: Iterator[pa.Array]) -> None:
    """Writes arrays to an Arrow file, which is there only once it is complete.

    Raises:
      OSError: it cannot be written, for example because the disk is full.
    """
    descriptor, temporary = tempfile.mkstemp(".partial", path.stem, path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            writer = None
            for array in arrays:
                batch = pa.record_batch([array], ["values"])
                writer = pa.ipc.new_file(file, batch.schema) if writer is None else writer
                writer.write_batch(batch)
            if writer is None:
                writer = pa.ipc.new_file(file, pa.schema([("values", pa.string())]))
            writer.close()
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"{path}: the copy of a Parquet file cannot be written: {error}. XMODAL_CACHE chooses another folder."
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


class IPCFile(ArrowFile):
    """An Arrow file, as a stream (what ``datasets`` writes) or a file, which is mapped into virtual memory.

    Raises:
      ValueError: it is none, or is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._mapping = MappedFile(path)
            self.schema, self._batches = _read_batches(self._mapping.buffer)
            _check_names(self.schema)
        except FileNotFoundError as error:
            raise _not_there(path) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(
                f"{path}: not an Arrow file, or a truncated one: {first_line(error)}."
            ) from error
        self.chunk_rows = [sum(batch.num_rows for batch in self._batches)]

    def nbytes(self, column: ColumnPath) -> int:
        return 0

    def null_count(self, column: ColumnPath, chunk: int) -> int | None:
        return None

    def scan(
        self, column: ColumnPath, chunk: int | None = None, most: int | None = None
    ) -> Iterator[pa.Array]:
        number = self.schema.get_field_index(column[0])
        for batch in self._batches:
            try:
                batch.column(number).validate()
                array = _field(batch.column(number), column[1:])
                check_array(array)
            except (pa.ArrowException, ValueError) as error:
                raise _damaged(self.path, column, error) from error
            for start in range(0, len(array), most or max(len(array), 1)):
                yield array.slice(start, most)

    def load(self, column: ColumnPath, chunk: int) -> Block:
        return Block([*self.scan(column)], self._mapping)


def _read_batches(buffer: pa.Buffer) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """The schema and the record batches of a stream or a file; their values stay in ``buffer``."""
    if buffer.slice(0, 6).to_pybytes() == b"ARROW1":
        with pa.ipc.open_file(pa.BufferReader(buffer)) as reader:
            return reader.schema, [reader.get_batch(i) for i in range(reader.num_record_batches)]
    with pa.ipc.open_stream(pa.BufferReader(buffer)) as reader:
        batches = [*reader]
    # A stream ends with a marker of 8 bytes: a continuation, and the length 0 of the message.
    if buffer.slice(max(0, buffer.size - 8)).to_pybytes() != b"\xff\xff\xff\xff\0\0\0\0":
        raise ValueError("the mark of its end is missing")
    return reader.schema, batches


class Files:
    """Several files whose rows are numbered through, in order."""

    def __init__(self, files: Sequence[ArrowFile]):
        self.files = list(files)
        self.starts = np.cumsum([0, *(file.rows for file in files)])
        """The number of the first row of each file, and the number of all rows, int64 ``[F + 1]``."""
        self.chunks = [(file, chunk) for file in files for chunk in range(len(file.chunk_rows))]
        self.chunk_starts = np.cumsum([0, *(file.chunk_rows[chunk] for file, chunk in self.chunks)])
        self.memory = MEMORY_LIMIT
        """Bytes of columns that can still be put into memory."""

    def locate(self, row: int) -> tuple[ArrowFile, int]:
        """The file of a row, and its number there, from 0."""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        return self.files[number], row - int(self.starts[number])

    def sort_rows(self, rows: np.ndarray) -> np.ndarray:
        """``rows``, int64 ``[B]``, in the order of the files' paths, which is the same whatever split comes first."""
        rank = np.argsort(np.argsort([str(file.path) for file in self.files]))
        numbers = np.searchsorted(self.starts, rows, "right") - 1
        return rows[np.lexsort((rows, rank[numbers]))]

    def head_rows(self, count: int) -> np.ndarray:
        """Up to ``count`` rows that can be read without copying: the first of some chunks, int64."""
        sizes = np.diff(self.chunk_starts)
        starts = self.sort_rows(self.chunk_starts[:-1][sizes > 0])
        starts = starts[evenly_spaced(len(starts), 16)]
        size_of = dict(zip(self.chunk_starts[:-1].tolist(), sizes.tolist(), strict=True))
        each = -(-count // len(starts))
        return np.concatenate([start + np.arange(min(each, size_of[start])) for start in starts.tolist()])[
            :count
        ]

    def _size(self, path: ColumnPath) -> int:
        """Bytes of a column, about; 0: it is never copied. Parquet states the size in which values that are repeated
        are written once, so that the first rows tell as well."""
        stated = sum(file.nbytes(path) for file in self.files)
        number = next((n for n, (file, chunk) in enumerate(self.chunks) if file.chunk_rows[chunk]), None)
        if not stated or number is None:
            return stated
        file, chunk = self.chunks[number]
        parts = file.scan(path, chunk, 64)
        first = simplify(next(parts))
        parts.close()
        return max(stated, first.nbytes * int(self.starts[-1]) // len(first))

    def columns(self, paths: Sequence[ColumnPath]) -> dict[ColumnPath, Column]:
        """The columns ``paths``; the smallest are read into memory when they are needed, as many as fit."""
        sizes = {path: self._size(path) for path in paths}
        columns, total = {}, 0
        for path in sorted(sizes, key=sizes.__getitem__):
            total += sizes[path]
            columns[path] = Column(self, path, sizes[path], 0 < sizes[path] and total <= MEMORY_LIMIT)
        return columns


class Column:
    """A column of several files, whose values are read by the numbers of their rows.

    Args:
      files: the files.
      path: its name.
      nbytes: its size, about; 0: it is read from where it is.
      in_memory: whether to keep it in memory, if there is enough.
    """

    def __init__(self, files: Files, path: ColumnPath, nbytes: int, in_memory: bool):
        self.path, self.in_memory, self._files = path, in_memory, files
        self._row_bytes = nbytes / max(1, int(files.starts[-1]))
        self.is_copied = not in_memory and nbytes > 0
        """Whether its chunks are copied to the cache."""
        self._blocks: list[Block | None] = [None] * len(files.chunks)
        self._heads: dict[int, Block] = {}  # by chunk its first values, see `_head`
        self._head_bytes = 0  # of all `_heads`

    def _block(self, number: int) -> Block:
        """The values of chunk ``number``, which are read, copied or mapped when they are first needed."""
        if self._blocks[number] is None:
            file, chunk = self._files.chunks[number]
            block = self._read_into_memory(file, chunk) if self.in_memory else None
            self._blocks[number] = file.load(self.path, chunk) if block is None else block
            self._heads.pop(number, None)
        return self._blocks[number]

    def _read_into_memory(self, file: ArrowFile, chunk: int) -> Block | None:
        """The values of a chunk in memory; None if they are too large (files tell their size before what is repeated is
        written out)."""
        arrays, used = [], 0
        for array in file.scan(self.path, chunk):
            arrays.append(simplify(array))
            used += arrays[-1].nbytes
            if used > self._files.memory:
                self.in_memory = False
                return None
        self._files.memory -= used
        return Block(arrays)

    def _head(self, number: int, last: int) -> Block | None:
        """The values of a chunk from its first row to ``last`` at least, read without copying the chunk: the size of
        images is chosen from few rows. None: the chunk needs no copy, or so many values are wanted that it is
        copied."""
        file, chunk = self._files.chunks[number]
        if last >= HEAD_ROWS or self._head_bytes >= HEAD_BYTES or self._blocks[number] is not None:
            return None
        if self.in_memory or not file.needs_copy(self.path, chunk):
            return None
        if number not in self._heads or last >= len(self._heads[number]):
            arrays, rows = [], 0
            parts = file.scan(self.path, chunk, 64)
            for part in parts:
                arrays.append(simplify(part))
                rows, self._head_bytes = rows + len(part), self._head_bytes + arrays[-1].nbytes
                if rows > last:
                    break
                if self._head_bytes >= HEAD_BYTES:
                    return None
            parts.close()
            self._heads[number] = Block(arrays)
        return self._heads[number]

    def _copy(self, numbers: Collection[int]) -> None:
        """Copies the chunks ``numbers`` that have no copy yet, several at once."""
        missing = [n for n in numbers if self._blocks[n] is None and self.uncopied(range(n, n + 1))]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                list(pool.map(self._block, missing))

    def get(self, rows: np.ndarray) -> list[bytes | list[bytes | None] | None]:
        """The values of ``rows``, int64 ``[B]``, in that order: bytes (of a string in UTF-8), a list of these, or None
        for null."""
        values: list = [None] * len(rows)
        numbers = np.searchsorted(self._files.chunk_starts, rows, "right") - 1
        self._copy(
            {int(n) for n in np.unique(numbers[rows - self._files.chunk_starts[numbers] >= HEAD_ROWS])}
        )
        order = np.lexsort((rows, numbers))  # in the order of the files
        for part in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(rows) else ():
            number = int(numbers[part[0]])
            inside = rows[part] - self._files.chunk_starts[number]
            block = self._head(number, int(inside[-1])) or self._block(number)
            for place, value in zip(part.tolist(), block.get(inside), strict=True):
                values[place] = value
        return values

    def _by_chunk(self, of_block: Callable[[Block], np.ndarray], chunks: range | None) -> np.ndarray:
        """``of_block(block)`` of ``chunks``; ones or zeros where the file says that no or every row is null."""
        parts = []
        for number in range(len(self._blocks)) if chunks is None else chunks:
            file, chunk = self._files.chunks[number]
            rows, nulls = file.chunk_rows[chunk], file.null_count(self.path, chunk)
            if nulls in (0, rows):
                parts.append(np.full(rows, nulls == 0))
            else:
                parts.append(of_block(self._block(number)))
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def valid(self, chunks: range | None = None) -> np.ndarray:
        """Which rows of ``chunks`` (None: of all) are not null, bool ``[R]``."""
        return self._by_chunk(Block.valid, chunks).astype(bool)

    def counts(self, chunks: range | None = None) -> np.ndarray:
        """The number of strings in each row of ``chunks``, int32 ``[R]``, see `Block.counts`."""
        return self._by_chunk(Block.counts, chunks).astype(np.int32)

    def scan(self, chunks: range | None = None) -> Iterator[pa.Array]:
        """Yields the values of ``chunks`` in parts."""
        for number in range(len(self._blocks)) if chunks is None else chunks:
            file, chunk = self._files.chunks[number]
            yield from file.scan(self.path, chunk)

    def uncopied(self, chunks: range | None = None) -> int:
        """Bytes of ``chunks``, about, that will be copied to the cache."""
        numbers = range(len(self._blocks)) if chunks is None else chunks
        parts = [self._files.chunks[number] for number in numbers]
        missing = [file.chunk_rows[c] for file, c in parts if file.needs_copy(self.path, c)]
        return 0 if self.in_memory else int(sum(missing) * self._row_bytes)


def read_type(schema: pa.Schema, column: ColumnPath, path: Path) -> pa.DataType:
    """The type of a column.

    Raises:
      ValueError: there is no such column; the message names those that there are.
    """
    fields: Sequence[pa.Field] = list(schema)
    for depth, name in enumerate(column):
        field = next((field for field in fields if field.name == name), None)
        if field is None:
            names = ", ".join(shorten(field.name) for field in fields)
            raise ValueError(f"{path}: no column {'.'.join(column[: depth + 1])}; found {names}.")
        fields = list(field.type) if pa.types.is_struct(field.type) else []
    return field.type
