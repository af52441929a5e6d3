"""Safetensors files, in one or in shards: the arrays in them, without reading what is not needed.

A file consists of the length of its header (8 bytes, little endian), the header (JSON with ``dtype``, ``shape`` and
``data_offsets`` of every array) and the bytes of the arrays, without gaps. Arrays are read one at a time and not mapped
into memory: mapped pages would count as this process's memory until everything is read.

A header is checked completely before anything it describes is used: files come from other people.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import stat
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from xmodal_jax.core.paths import leaves_folder
from xmodal_jax.core.text_files import distinct_fields, printable

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOATING = ("F64", "F32", "F16", "BF16")
HEADER_LIMIT = 100_000_000
"""Most bytes of a header, as in the reference implementation of the format."""
MAX_AXES = 32
"""Most axes of an array: those of NumPy 1."""


class Entry(NamedTuple):
    """The place of an array in a safetensors file."""

    path: pathlib.Path
    """The safetensors file."""
    dtype: str
    """One of `DTYPES`."""
    shape: tuple[int, ...]
    start: int
    """Offset from the beginning of the file, in bytes."""

    @property
    def size(self) -> int:
        """Size of the array, in bytes."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def read(self) -> np.ndarray:
        """Reads the array from the file."""
        count = math.prod(self.shape)
        with self.path.open("rb") as file:
            file.seek(self.start)
            array = np.fromfile(file, DTYPES[self.dtype], count)
        if len(array) != count:
            raise ValueError(f"{self.path} became shorter while it was read: fetch it again")
        return array.reshape(self.shape)


def read_shards(index: pathlib.Path) -> dict[str, Entry]:
    """The arrays that an index of shards (``model.safetensors.index.json``) lists, by name.

    Raises:
      FileNotFoundError: a shard is missing.
      ValueError: the index is damaged or names a file outside of its folder, or a shard lacks an array that the index
        lists.
    """
    try:
        shard_of_array = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=distinct_fields)[
            "weight_map"
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} has no 'weight_map' ({error}): fetch it again") from error
    if not isinstance(shard_of_array, dict) or not all(isinstance(v, str) for v in shard_of_array.values()):
        raise ValueError(
            f"{index}: its 'weight_map' does not give a file name for each array: fetch it again"
        )
    shards = sorted(set(shard_of_array.values()))
    if outside := [shard for shard in shards if not shard or leaves_folder(shard)]:
        raise ValueError(
            f"{index}: 'weight_map' names {outside[0]!r}, which is outside of its folder: only files in "
            f"{index.parent} are read"
        )
    absent = ", ".join(shard for shard in shards if not _exists(index.parent / shard))
    if absent:
        # JSON can hold half a surrogate pair.
        raise FileNotFoundError(f"{index.parent} lacks {printable(absent)}, which {index.name} names")
    entries = {shard: read_header(index.parent / shard) for shard in shards}
    missing = [name for name, shard in shard_of_array.items() if name not in entries[shard]]
    if missing:
        shard = shard_of_array[missing[0]]
        raise ValueError(f"{index.parent / shard} lacks {missing[0]!r}, which {index.name} says is there")
    return {name: entries[shard][name] for name, shard in shard_of_array.items()}


def _exists(path: pathlib.Path) -> bool:
    """Whether there is such a file; also of a name that no file system can hold, for which `pathlib` may raise."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_header(path: pathlib.Path) -> dict[str, Entry]:
    """The arrays of a safetensors file by name, without reading them.

    Everything that the header says is checked: dtypes, shapes, that the arrays fill the rest of the file without gaps
    or overlaps, and that each has as many bytes as its shape and dtype take.

    Raises:
      ValueError: it is not a safetensors file, is cut short, or its header is wrong.
    """
    # Opening a pipe would wait for a writer, and reading a device could go on for ever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(
            f"{path} is not an ordinary file (a pipe, a device or a folder): give the file itself"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)  # the length of the header, little endian
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            is_pointer = head == b"version "
            reason = "a pointer of Git LFS" if is_pointer else "no safetensors file, or cut short"
            raise ValueError(f"{path} is {reason} ({size:,} bytes): fetch it again")
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=distinct_fields)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is not JSON ({error}): fetch it again") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: its header is not a JSON object: fetch it again")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ValueError(f"{path}: '__metadata__' is not a JSON object of strings: it is damaged")
    ranges = {key: _parse_entry(path, key, value) for key, value in header.items()}
    _check_contiguous(
        path, {key: (start, stop) for key, (_, _, start, stop) in ranges.items()}, size - 8 - length
    )
    return {
        key: Entry(path, dtype, shape, 8 + length + start) for key, (dtype, shape, start, _) in ranges.items()
    }


def _parse_entry(path: pathlib.Path, key: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    """``(dtype, shape, start, stop)`` of the array ``key``, from its description ``value`` in a safetensors header;
    the offsets are from the first array's, in bytes. ValueError if the description is not valid."""
    try:
        dtype, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {key!r} has no dtype, shape and data_offsets: it is damaged") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{path}: {key!r} has dtype {dtype}; one of {', '.join(DTYPES)} can be read")
    # The product without zeros: NumPy refuses the shape [0, 2**62] although its size is 0.
    if (
        not isinstance(value["shape"], list)
        or len(shape) > MAX_AXES
        or not all(map(_is_size, shape))
        or math.prod(size for size in shape if size) >= 2**60
    ):
        raise ValueError(
            f"{path}: {key!r} has shape {str(value['shape'])[:80]}, expected at most {MAX_AXES} whole numbers from 0 "
            "up: it is damaged"
        )
    if not (_is_size(start) and _is_size(stop)) or start > stop:
        raise ValueError(
            f"{path}: {key!r} has data_offsets {str(value['data_offsets'])[:80]}, expected two whole numbers from 0 "
            "up, the second at least the first: it is damaged"
        )
    entry = Entry(path, dtype, shape, start)
    if entry.size != stop - start:
        raise ValueError(
            f"{path}: {key!r} of {dtype} {list(shape)} takes {entry.size:,} bytes, the header gives it "
            f"{stop - start:,}: it is damaged"
        )
    return dtype, shape, start, stop


def _is_size(value: Any) -> bool:
    """Whether a value in a header is a size or an offset: a whole number that a 64-bit file can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _check_contiguous(path: pathlib.Path, ranges: dict[str, tuple[int, int]], data_size: int) -> None:
    """Raises ValueError unless arrays fill the part of a safetensors file behind the header, each byte once.

    ``ranges``: ``(start, stop)`` of each array in this part, in bytes. ``data_size``: bytes of the part.
    """
    end = 0
    for key, (start, stop) in sorted(ranges.items(), key=lambda item: item[1]):
        if start != end:
            where = "overlaps another array" if start < end else "leaves a gap before it"
            raise ValueError(
                f"{path}: {key!r} has data_offsets [{start}, {stop}] and {where} (expected {end}): it is damaged"
            )
        end = stop
    if data_size != end:
        start = path.stat().st_size - data_size
        raise ValueError(
            f"{path} has {start + data_size:,} bytes and its header speaks of {start + end:,}: it is "
            f"{'cut short' if data_size < end else 'damaged'}; fetch it again"
        )


def write_safetensors(path: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes arrays to a safetensors file.

    The arrays are first written to ``<path>.part``, which is then renamed, so that ``path`` never holds a partial file.
    """
    from safetensors.numpy import save_file

    # `ascontiguousarray` alone would make a vector of a scalar.
    contiguous = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays}
    part = path.with_name(path.name + ".part")
    save_file(contiguous, str(part), metadata={"format": "pt"})
    os.chmod(part, 0o644)  # safetensors sets 0600, with which a colleague could not read it
    os.replace(part, path)
