"""Values of Arrow arrays that are read one by one, without an object of Arrow for each: strings, bytes, and lists of
strings.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def first_line(error: Exception) -> str:
    """The message of an error in a line without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class MappedFile:
    """A file in virtual memory. Its pages take no memory of the process until they are looked at."""

    def __init__(self, path: Path):
        self.path = path
        file = pa.memory_map(str(path))
        self.buffer = file.read_buffer()
        file.close()  # the buffer stays valid

    def position(self, buffer: pa.Buffer) -> int | None:
        """Where a part of the file begins in it; None: ``buffer`` is not in the file (but decompressed)."""
        position = buffer.address - self.buffer.address
        return position if 0 <= position <= self.buffer.size - buffer.size else None


def _offsets(array: pa.Array, buffer: pa.Buffer | None) -> np.ndarray:
    """The offsets of an array of strings, bytes or lists, ``[N + 1]``.

    Raises:
      ValueError: the array is damaged.
    """
    if not len(array) or buffer is None:
        return np.zeros(len(array) + 1, np.int32)
    is_large = any(
        f(array.type) for f in (pa.types.is_large_binary, pa.types.is_large_string, pa.types.is_large_list)
    )
    dtype = np.dtype(np.int64 if is_large else np.int32)
    stop = array.offset + len(array) + 1
    if stop * dtype.itemsize > buffer.size:
        raise ValueError("offsets are missing")
    offsets = np.frombuffer(buffer, dtype, stop)[array.offset :]
    if offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any():
        raise ValueError("offsets are not in order")
    return offsets


def _is_valid(array: pa.Array) -> np.ndarray | None:
    """Which values are not null, bool ``[N]``; None: all."""
    return array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None


class _Values:
    """Strings or bytes of consecutive rows. Nothing is trusted: a damaged offset reads no byte outside of the data."""

    def __init__(self, array: pa.Array, mapping: MappedFile | None):
        _, offsets, data = array.buffers()
        self.valid, self._values = _is_valid(array), _offsets(array, offsets)
        self._data = memoryview(b"" if data is None else data)
        if self._values[-1] > len(self._data):
            raise ValueError("values are missing")
        # Values of a file on disk are read and not looked at in memory, where its pages would stay.
        self._position = None if mapping is None or data is None else mapping.position(data)

    def get(self, row: int, file: int | None) -> bytes | None:
        """The value of a row, None if it is null. ``file``: descriptor of the mapped file."""
        if self.valid is not None and not self.valid[row]:
            return None
        return self._read(int(self._values[row]), int(self._values[row + 1]), file)

    def get_all(self, start: int, stop: int, file: int | None) -> list[bytes | None]:
        """The values of the rows from ``start`` to ``stop``, which are read together."""
        ends = self._values[start : stop + 1].tolist()
        data = self._read(ends[0], ends[-1], file)
        valid = itertools.repeat(True) if self.valid is None else self.valid[start:stop]
        parts = ((a - ends[0], b - ends[0]) for a, b in itertools.pairwise(ends))
        return [data[a:b] if is_valid else None for (a, b), is_valid in zip(parts, valid, strict=False)]

    def _read(self, start: int, stop: int, file: int | None) -> bytes:
        if self._position is None:
            return bytes(self._data[start:stop])
        return os.pread(file, stop - start, self._position + start)


class _Lists:
    """Lists of strings of consecutive rows."""

    def __init__(self, array: pa.Array, mapping: MappedFile | None):
        self.valid, self.offsets = _is_valid(array), _offsets(array, array.buffers()[1])
        self._values = _Values(array.values, mapping)
        if self.offsets[-1] > len(array.values):
            raise ValueError("values are missing")

    def get(self, row: int, file: int | None) -> list[bytes | None] | None:
        """The strings of a row, None if it has no list."""
        if self.valid is not None and not self.valid[row]:
            return None
        return self._values.get_all(int(self.offsets[row]), int(self.offsets[row + 1]), file)


def simplify(array: pa.Array) -> pa.Array:
    """The array as one of strings, bytes or lists of them, if it is of a type that stands for these."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return simplify(array.storage)
    if pa.types.is_dictionary(kind):
        return simplify(array.dictionary_decode())
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.string())
    if pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    if pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return array.cast(pa.large_binary())
    if pa.types.is_fixed_size_list(kind):
        array = array.cast(pa.large_list(kind.value_type))
    elif pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        # A cast would set the last offset to 0 (pyarrow 26).
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.cumsum([0, *lengths]), pa.int64())
        nulls = array.is_null() if array.null_count else None
        array = pa.LargeListArray.from_arrays(offsets, array.flatten(), mask=nulls)
    if is_list(array.type) and not is_text(array.type.value_type, plain=True):
        values = simplify(array.values)
        lists = pa.LargeListArray if pa.types.is_large_list(array.type) else pa.ListArray
        return lists.from_arrays(array.offsets, values, mask=array.is_null() if array.null_count else None)
    return array


def is_text(kind: pa.DataType, plain: bool = False) -> bool:
    """Whether a type is that of strings, also as views or encoded by a dictionary; ``plain``: neither of these two."""
    if pa.types.is_dictionary(kind) and not plain:
        return is_text(kind.value_type)
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or (not plain and pa.types.is_string_view(kind))
    )


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type is that of bytes."""
    checks = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(check(kind) for check in checks)


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is that of lists."""
    checks = (
        pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list,
        pa.types.is_list_view, pa.types.is_large_list_view,
    )  # fmt: skip
    return any(check(kind) for check in checks)


def check_array(array: pa.Array) -> None:
    """Raises ValueError if an array is damaged. Arrow itself trusts offsets and indices, which a file of strangers can
    have anywhere in memory."""
    array.validate()  # that the buffers are there and long enough
    kind = array.type
    plain = is_bytes(kind) or is_text(kind, plain=True)
    if plain and not pa.types.is_fixed_size_binary(kind) and not pa.types.is_binary_view(kind):
        _Values(array, None)
    elif is_plain_list(kind):
        _Lists(array, None)
    elif not pa.types.is_primitive(kind):
        array.validate(full=True)


def is_plain_list(kind: pa.DataType) -> bool:
    """Whether a type is that of lists of strings as `_Lists` reads them."""
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and is_text(kind.value_type, plain=True)


class Block:
    """A column of consecutive rows, in arrays one after the other. ``mapping``: the file that they lie in; None: they
    are in memory."""

    def __init__(self, arrays: Sequence[pa.Array], mapping: MappedFile | None = None):
        self._arrays, self._mapping = list(arrays), mapping
        self._starts = np.cumsum([0, *map(len, arrays)])
        self._values: list[_Values | _Lists | None] = [None] * len(self._arrays)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _array(self, number: int) -> _Values | _Lists:
        """The values of one of the arrays.

        Raises:
          ValueError: it is damaged.
        """
        if self._values[number] is None:
            try:
                array = simplify(self._arrays[number])
                array.validate()
                self._values[number] = (_Lists if is_list(array.type) else _Values)(array, self._mapping)
            except ValueError as error:
                where = "a column" if self._mapping is None else f"{self._mapping.path}: a column"
                raise ValueError(
                    f"{where} cannot be read, the file is damaged: {first_line(error)}."
                ) from error
            self._arrays[number] = None
        return self._values[number]

    def get(self, rows: np.ndarray) -> list[bytes | list[bytes | None] | None]:
        """The values of ``rows``, int64 ``[B]``."""
        numbers = np.searchsorted(self._starts, rows, "right") - 1
        inside = (rows - self._starts[numbers]).tolist()
        file = None if self._mapping is None else os.open(self._mapping.path, os.O_RDONLY)
        try:
            return [self._array(n).get(i, file) for n, i in zip(numbers.tolist(), inside, strict=True)]
        finally:
            if file is not None:
                os.close(file)

    def valid(self) -> np.ndarray:
        """Which rows are not null, bool ``[R]``."""
        arrays = map(self._array, range(len(self._arrays)))
        sizes = np.diff(self._starts)
        parts = [np.ones(n, bool) if a.valid is None else a.valid for a, n in zip(arrays, sizes, strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def counts(self) -> np.ndarray:
        """The number of strings of each row, int32 ``[R]``: 0 for null; an empty list, which is a mistake, counts 1."""
        arrays = [self._array(n) for n in range(len(self._arrays))]
        parts = [
            np.maximum(np.diff(a.offsets), 1) if isinstance(a, _Lists) else np.ones(n, np.int32)
            for a, n in zip(arrays, np.diff(self._starts), strict=True)
        ]
        return (np.concatenate(parts) if parts else np.zeros(0)).astype(np.int32) * self.valid()
