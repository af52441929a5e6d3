"""Damaged safetensors files and indexes of shards. The oracle is the format's reference implementation."""

from __future__ import annotations

import json
import os
import pathlib
import struct
from typing import Any

import numpy as np
import safetensors

from benchmarks.fault_kinds import REFUSED, Case, Kind, choose, cut, flip_bits
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.safetensors_files import DTYPES, read_header

SIZES = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}


def _layout(rng: np.random.Generator) -> tuple[dict[str, Any], bytes]:
    """``(header, data)`` of a right file with one to five arrays."""
    header, data = {}, b""
    for k in range(int(rng.integers(1, 6))):
        dtype = choose(rng, sorted(DTYPES))
        shape = [int(n) for n in rng.integers(0 if k else 1, 5, int(rng.integers(0, 4)))]
        size = SIZES[dtype] * int(np.prod(shape))
        content = rng.integers(0, 2 if dtype == "BOOL" else 256, size, np.uint8).tobytes()
        header[f"layer.{k}"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += content
    return header, data


def _pack(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _shift_one(rng, header):
    """Moves both offsets of one array of at least one byte, so that arrays overlap, leave a gap or the file."""
    name = choose(rng, [n for n, e in header.items() if e["data_offsets"][0] < e["data_offsets"][1]])
    by = int(choose(rng, [-3, -1, 1, 2, 10**6, -(10**6), 2**62]))
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]


def _set(field: str, *values: Any):
    """A damage that gives one array another value in a field."""

    def damage(rng, header):
        name = choose(rng, sorted(header))
        header[name][field] = choose(rng, values)

    return damage


def _without_field(rng, header):
    del header[choose(rng, sorted(header))][choose(rng, ("dtype", "shape", "data_offsets"))]


def _grow_shape(rng, header):
    entry = header[choose(rng, sorted(header))]
    # One more axis of size 7 in front: seven times as many bytes; nothing changes for an array of none.
    entry["shape"] = [7, *[max(1, n) for n in entry["shape"]]]


HEADER_FAULTS = {
    "offsets moved": _shift_one,
    "offsets of another type": _set(
        "data_offsets", [0], [0, "8"], None, "0,8", [0.0, 8.0], [True, False], [[0], [1]]
    ),
    "offsets in reverse": _set("data_offsets", [8, 0], [-1, -9], [2**63, 2**63]),
    "shape of another type": _set("shape", "8", None, [2.0], ["2"], [[2]], {"0": 2}, [True], [-1], [-2, -2]),
    "shape of huge size": _set("shape", [2**31, 2**33], [2**63], [2**64], [10**30], [1] * 70),
    "shape of more bytes": _grow_shape,
    "dtype unknown": _set("dtype", "F8", "", "f32", None, 3, ["F32"], {"F32": 1}),
    "field missing": _without_field,
    "entry not an object": lambda rng, header: header.update(extra=choose(rng, [3, None, [], "x", {}])),
    "metadata of another type": lambda rng, header: header.update(
        __metadata__=choose(rng, [3, [], "pt", {"format": 3}, {"format": None}, {"a": {"b": "c"}}])
    ),
}


def _whole(header: Any, data: bytes) -> dict[str, bytes]:
    return {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


def _read(path: pathlib.Path) -> dict[str, Any]:
    """``{name: (dtype, shape, bytes)}`` of a file, by the code under test."""
    return {
        name: (entry.dtype, list(entry.shape), entry.read().tobytes())
        for name, entry in read_header(path).items()
    }


def _reference(content: bytes) -> Any:
    """The same by the reference implementation; `REFUSED` if it refuses the file, or has a dtype that is not read."""
    try:
        arrays = safetensors.deserialize(content)
    except (safetensors.SafetensorError, ValueError, OverflowError):
        return REFUSED
    if any(entry["dtype"] not in DTYPES for _, entry in arrays):
        return REFUSED
    return {name: (entry["dtype"], list(entry["shape"]), bytes(entry["data"])) for name, entry in arrays}


def _draw_file(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """A file with a fault in its header, or damaged anywhere."""
    header, data = _layout(rng)
    path = folder / "model.safetensors"
    fault = choose(rng, ["none", "bits flipped", "bits of the header flipped", "cut", "bytes appended", "length wrong",
                         "text", "twice", *HEADER_FAULTS, *HEADER_FAULTS])  # fmt: skip
    content = _pack(header, data)
    if fault == "bits flipped":
        content = flip_bits(rng, content, int(rng.integers(1, 9)))
    elif fault == "bits of the header flipped":
        content = flip_bits(rng, content, int(rng.integers(1, 4)), 0, len(content) - len(data))
    elif fault == "cut":
        content = cut(rng, content)
    elif fault == "bytes appended":
        content += bytes(int(rng.integers(1, 20)))
    elif fault == "length wrong":
        content = struct.pack("<Q", int(choose(rng, [0, 1, 2**62, 2**64 - 1, 10**8, 10**9]))) + content[8:]
    elif fault == "text":
        content = choose(rng, [b"", b"{}", b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\x80\x04" * 9,
                               _pack(b"[" * 10**5, b""), _pack(b"null", b""), _pack(b"9" * 5000, b"")])  # fmt: skip
    elif fault == "twice":
        text = json.dumps(header)[:-1] + ', "layer.0": ' + json.dumps(header["layer.0"]) + "}"
        content = _pack(text.encode(), data)
    elif fault != "none":
        HEADER_FAULTS[fault](rng, header)
        content = _pack(header, data)
    path.write_bytes(content)
    expected = REFUSED if fault == "twice" else _reference(content)
    if fault == "shape of huge size":
        expected = REFUSED  # the reference takes [0, 2**62]-like shapes, of which NumPy has no array
    return Case(f"file: {fault}", lambda: _read(path), expected, (str(path),))


def _draw_shards(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """Two shards with an index that has a fault."""
    (folder / "inside").mkdir()
    (folder / "inside" / "config.json").write_text('{"model_type": "bert"}')
    header, data = _layout(rng)
    names = sorted(header)
    weight_map: Any = {}
    for shard, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        entries, content = {}, b""
        for name in part:
            piece = data[slice(*header[name]["data_offsets"])]
            entries[name] = {**header[name], "data_offsets": [len(content), len(content) + len(piece)]}
            content += piece
            weight_map[name] = shard
        (folder / "inside" / shard).write_bytes(_pack(entries, content))
    (folder / "a.safetensors").write_bytes((folder / "inside" / "a.safetensors").read_bytes())
    index: Any = {"metadata": {}, "weight_map": weight_map}
    mention = "index.json"
    name = choose(rng, [n for n, shard in weight_map.items() if shard == "a.safetensors"])
    fault = choose(
        rng, ["none", "outside", "missing shard", "array elsewhere", "another type", "not JSON", "pipe"]
    )
    if fault == "outside":
        weight_map[name] = choose(rng, ["../a.safetensors", str(folder / "a.safetensors"), "x/../../a.safetensors",
                                        "..\\a.safetensors"])  # fmt: skip
    elif fault == "missing shard":
        weight_map[name] = choose(rng, ["c.safetensors", "a" * 300, "a\0", "", "\ud800"])
    elif fault == "array elsewhere":
        weight_map["layer.9"] = "a.safetensors"
    elif fault == "another type":
        index = choose(
            rng, [[], {}, {"weight_map": []}, {"weight_map": {name: 3}}, {"weight_map": {name: None}}, 3]
        )
    elif fault == "pipe":
        (folder / "inside" / "a.safetensors").unlink()
        os.mkfifo(folder / "inside" / "a.safetensors")
        mention = "a.safetensors"
    text = json.dumps(index)
    if fault == "not JSON":
        text = choose(rng, ["", text[:-2], "[" * 10**5, text + "x"])
    (folder / "inside" / "model.safetensors.index.json").write_text(text)

    def attempt() -> dict[str, bytes]:
        arrays = open_checkpoint(folder / "inside").arrays
        return {name: entry.read().tobytes() for name, entry in arrays.items()}

    expected = _whole(header, data) if fault == "none" else REFUSED
    return Case(f"index: {fault}", attempt, expected, (mention,))


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    return (_draw_shards if rng.random() < 0.25 else _draw_file)(rng, folder)


KIND = Kind("safetensors", _draw, 2000)
