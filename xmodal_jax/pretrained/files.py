"""The folder of a Hugging Face checkpoint: ``config.json`` and safetensors, in one file or in shards.

A safetensors file consists of the length of its header (8 bytes, little endian), the header (JSON with ``dtype``,
``shape`` and ``data_offsets`` of every array) and the bytes of the arrays. Arrays are read one at a time and not mapped
into memory: mapped pages would count as this process's memory until everything is read.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

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
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""The files that are fetched from the hub: configurations, arrays and tokenizers, but no pickles."""
OLD_NAMES = (
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
"""Endings of names that older versions of PyTorch and ``transformers`` wrote, and their current ones."""
HEADER_LIMIT = 100_000_000
"""Most bytes of a header, as in the reference implementation of the format."""


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


class Checkpoint(NamedTuple):
    """The configuration and the arrays in a folder; only headers are in memory."""

    folder: pathlib.Path
    config: dict[str, Any]
    """The content of ``config.json``."""
    arrays: Mapping[str, Entry]
    """By name, in its current spelling (see `current_name`)."""
    processor: dict[str, Any]
    """The content of ``preprocessor_config.json``; empty if there is none."""

    @property
    def size(self) -> int:
        """Size of all arrays, in bytes."""
        return sum(entry.size for entry in self.arrays.values())


def find_folder(name: str | os.PathLike, *, revision: str | None = None) -> pathlib.Path:
    """The folder of a pretrained model: a local one, or else a model of the hub, fetched to the hub's cache.

    Args:
      name: path of a local folder, or the name of a model of the hub (``owner/model``).
      revision: of the hub's model: a branch, a tag or a commit.
    Raises:
      FileNotFoundError: it is neither a folder nor a model that can be fetched.
    """
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    text = str(name)
    # A path, rather than a model of the hub, which has at most one slash (owner/model).
    if folder.is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1 or folder.exists():
        raise FileNotFoundError(f"{text} is not a folder: give one with config.json and *.safetensors")
    import huggingface_hub  # takes a while to import
    from huggingface_hub import errors

    try:
        snapshot = huggingface_hub.snapshot_download(text, revision=revision, allow_patterns=list(HUB_FILES))
    except (
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        OSError,
    ) as error:
        raise FileNotFoundError(
            f"{text} is neither a local folder nor a model that could be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). Without a network give the "
            "path of a folder with config.json and *.safetensors"
        ) from error
    return pathlib.Path(snapshot)


def open_checkpoint(name: str | os.PathLike) -> Checkpoint:
    """Opens the checkpoint in a folder, or of a model of the hub (see `find_folder`); reads only the headers.

    Raises:
      FileNotFoundError: there is no such folder, or it has no ``config.json`` or no safetensors.
      ValueError: a file is damaged; the message says which and how.
    """
    folder = find_folder(name)
    config = read_config(folder)  # first, as a folder without one is no pretrained model at all
    arrays = {current_name(name): entry for name, entry in _find_arrays(folder).items()}
    return Checkpoint(folder, config, arrays, read_processor(folder))


def current_name(name: str) -> str:
    """An array's name in the spelling that PyTorch and ``transformers`` write today, by `OLD_NAMES`."""
    for old, new in OLD_NAMES:
        name = re.sub(old, new, name)
    return name


def read_processor(folder: pathlib.Path) -> dict[str, Any]:
    """The content of a folder's ``preprocessor_config.json``; empty if there is none."""
    path = folder / "preprocessor_config.json"
    return _read_json(path) if path.is_file() else {}


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The content of a folder's ``config.json``.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or has no ``model_type``.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is not the folder of a pretrained model")
    config = _read_json(path)
    if "model_type" not in config:
        raise ValueError(f"{path} has no 'model_type': it does not say what it configures")
    return config


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; raises ValueError if the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: fetch it again")
    return content


def _find_arrays(folder: pathlib.Path) -> dict[str, Entry]:
    """The arrays of a folder by name, from one safetensors file or from shards with an index.

    Raises:
      FileNotFoundError: there is no safetensors file, or a shard is missing.
      ValueError: a file is damaged, or there are several files without an index.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _read_shards(index)
    single = folder / "model.safetensors"
    paths = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if len(paths) == 1:
        return read_header(paths[0])
    if paths:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"{folder} has {names} and no {index.name} that says what is where")
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    hint = (
        f"; {', '.join(pickled)} is no safetensors file and is not read, as it may run code: convert it with "
        "`model.save_pretrained(folder)` of transformers"
        if pickled
        else ""
    )
    raise FileNotFoundError(f"{folder} has no *.safetensors{hint}")


def _read_shards(index: pathlib.Path) -> dict[str, Entry]:
    """The arrays that an index of shards (``model.safetensors.index.json``) lists, by name.

    Raises:
      FileNotFoundError: a shard is missing.
      ValueError: the index is damaged, or a shard lacks an array that the index lists.
    """
    try:
        shard_of_array = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} has no 'weight_map' ({error}): fetch it again") from error
    absent = sorted({shard for shard in shard_of_array.values() if not (index.parent / shard).is_file()})
    if absent:
        raise FileNotFoundError(f"{index.parent} lacks {', '.join(absent)}, which {index.name} names")
    entries = {shard: read_header(index.parent / shard) for shard in sorted(set(shard_of_array.values()))}
    missing = [name for name, shard in shard_of_array.items() if name not in entries[shard]]
    if missing:
        shard = shard_of_array[missing[0]]
        raise ValueError(f"{index.parent / shard} lacks {missing[0]!r}, which {index.name} says is there")
    return {name: entries[shard][name] for name, shard in shard_of_array.items()}


def read_header(path: pathlib.Path) -> dict[str, Entry]:
    """The arrays of a safetensors file by name, without reading them; the header is checked against the file's size.

    Raises:
      ValueError: it is not a safetensors file, is cut short, or its header is wrong.
    """
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
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: its header is not JSON ({error}): fetch it again") from error
    header.pop("__metadata__", None)
    entries = {key: _entry(path, key, value, 8 + length) for key, value in header.items()}
    end = 8 + length + max((value["data_offsets"][1] for value in header.values()), default=0)
    if size != end:
        raise ValueError(
            f"{path} has {size:,} bytes and its header speaks of {end:,}: it is "
            f"{'cut short' if size < end else 'damaged'}; fetch it again"
        )
    return entries


def _entry(path: pathlib.Path, key: str, value: Any, base: int) -> Entry:
    """The entry of the array ``key``, from its description ``value`` in a safetensors header; ``base``: offset of the
    first array in the file, in bytes. ValueError if the description is not valid."""
    try:
        dtype, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {key!r} has no dtype, shape and data_offsets: it is damaged") from error
    if dtype not in DTYPES:
        raise ValueError(f"{path}: {key!r} has dtype {dtype}; one of {', '.join(DTYPES)} can be read")
    entry = Entry(path, dtype, shape, base + start)
    if entry.size != stop - start:
        raise ValueError(
            f"{path}: {key!r} of {dtype} {list(shape)} takes {entry.size:,} bytes, the header gives it "
            f"{stop - start:,}: it is damaged"
        )
    return entry


def write_safetensors(path: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes arrays to a safetensors file.

    The arrays are first written to ``<path>.part``, which is then renamed, so that ``path`` never holds a partial file.
    """
    from safetensors.numpy import save_file

    # `ascontiguousarray` alone would make a vector of a scalar.
    contiguous = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays}
    part = path.with_name(path.name + ".part")
    save_file(contiguous, str(part), metadata={"format": "pt"})
    os.replace(part, path)
