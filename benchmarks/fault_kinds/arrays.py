"""Data sets of arrays, as ``.npz`` files and as folders of ``.npy`` files."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np

from benchmarks.fault_kinds import ANYTHING, REFUSED, Case, Kind, choose, cut, flip_bits
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.sources.arrays import load_npz


def _fields(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Right fields of five to nine examples."""
    n = int(rng.integers(5, 10))
    words = ["a red circle", "日本", "ü", "x" * 50]
    return {
        "image": rng.integers(0, 256, (n, 3, 3, 3), np.uint8),
        "caption": np.array([f"{choose(rng, words)} {k}" for k in range(n)]),
        "label": rng.integers(0, 3, n).astype(choose(rng, [np.int32, np.int64, np.uint8])),
        "audio": rng.uniform(-1, 1, (n, 8)).astype(choose(rng, [np.float32, np.float64])),
    }


def _field(name: str, *changes):
    """A fault of one field, which must be refused with its name."""

    def damage(rng, fields):
        fields[name] = choose(rng, changes)(fields[name])
        return name

    return damage


FIELD_FAULTS = {
    "image in floating point": _field("image", lambda x: x / 255.0, lambda x: x.astype(np.float16)),
    "image of another type": _field("image", lambda x: x.astype(np.int32), lambda x: x > 9, lambda x: x.astype("U3")),
    "image of another rank": _field("image", lambda x: x[:, 0, 0], lambda x: x[None, None]),
    "label in floating point": _field("label", lambda x: x + 0.5, lambda x: x.astype(str)),
    "label of another rank": _field("label", lambda x: x[:, None], lambda x: x[0]),
    "audio of another type": _field("audio", lambda x: x.astype(np.int32), lambda x: (x > 0), lambda x: x + 0j),
    "audio of another scale": _field("audio", lambda x: 32768 * x + 2, lambda x: np.nan * x),
    "caption of another type": _field("caption", lambda x: np.arange(len(x)), lambda x: np.zeros(len(x), "S3")),
    "caption of another rank": _field("caption", lambda x: np.stack([x, x], 1), lambda x: x[0]),
    "another length": lambda rng, fields: (
        lambda name: (fields.update({name: fields[name][:-1]}), name)[1]
    )(choose(rng, sorted(fields))),
    "misspelt": lambda rng, fields: (
        lambda name: (fields.update({name[0] + name: fields.pop(name)}), name)[1]
    )(choose(rng, ["image", "caption", "label", "audio"])),
    "mask of another type": lambda rng, fields: (fields.update(audio_mask=fields["audio"]), "audio_mask")[1],
    "presence of what is not there": lambda rng, fields: (
        fields.update(video_present=np.ones(len(fields["label"]), bool)), "video_present"
    )[1],
    "objects": lambda rng, fields: (fields.update(caption=fields["caption"].astype(object)), "objects")[1],
}  # fmt: skip


def _row(name: str, value: Any):
    """A fault of one example, which is a bad example."""

    def damage(rng, fields):
        row = int(rng.integers(len(fields["label"])))
        array = fields[name] = fields[name].copy() if name != "label" else fields[name].astype(np.int64)
        array[row] = value
        return row

    return damage


ROW_FAULTS = {
    "label negative": _row("label", -5),
    "label huge": _row("label", 2**40),
    "audio not finite": _row("audio", np.nan),
    "audio of another scale": _row("audio", 7.0),
    "caption of half a surrogate pair": _row("caption", "a \ud83d"),
}


def _save(fields: dict[str, np.ndarray], folder: pathlib.Path, as_npz: bool) -> pathlib.Path:
    if as_npz:
        np.savez(folder / "data.npz", **fields)
        return folder / "data.npz"
    (folder / "data").mkdir()
    for name, array in fields.items():
        np.save(folder / "data" / f"{name}.npy", array)
    return folder / "data"


def _read(path: pathlib.Path, skip: bool) -> tuple[dict[str, Any], list[int]]:
    """What the code under test reads, and the rows that are left out."""
    bad = BadExamples("skip" if skip else "stop")
    source = load_npz(path, "all", bad_examples=bad)
    batch = source.batch(np.arange(len(source)))
    return {name: batch[name] for name in ("image", "caption", "label", "audio")}, [
        e.line - 1 for e in bad.items
    ]


def _expected(fields: dict[str, np.ndarray], bad: list[int]) -> tuple[dict[str, Any], list[int]]:
    good = np.setdiff1d(np.arange(len(fields["image"])), bad)
    types = {"image": np.uint8, "caption": object, "label": np.int32, "audio": np.float32}
    return {name: fields[name][good].astype(types[name]) for name in types}, bad


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    fields, as_npz, skip = _fields(rng), bool(rng.integers(2)), bool(rng.integers(2))
    fault = choose(rng, [*FIELD_FAULTS, *ROW_FAULTS, *ROW_FAULTS, "none", "Fortran order", "cut", "bits flipped",
                         "no arrays", "pipe", "captions.json"])  # fmt: skip
    expected: Any = None
    if fault in FIELD_FAULTS:
        name = FIELD_FAULTS[fault](rng, fields)
        path = _save(fields, folder, as_npz)
        mention = "data" if fault in ("another length", "objects") else name
        return Case(fault, lambda: _read(path, skip), REFUSED, (str(path), mention))
    if fault in ROW_FAULTS:
        row = ROW_FAULTS[fault](rng, fields)
        path = _save(fields, folder, as_npz)
        if not skip:
            return Case(f"row, stop: {fault}", lambda: _read(path, skip), REFUSED, (f"{path}:{row + 1}",))
        fields[fault.split()[0]][row] = fields[fault.split()[0]][
            row - 1
        ]  # what is left out need not be comparable
        return Case(f"row, skip: {fault}", lambda: _read(path, skip), _expected(fields, [row]))
    expected = _expected(fields, [])
    if fault == "Fortran order":
        fields = {name: np.asfortranarray(array) for name, array in fields.items()}
    if fault == "captions.json":
        return _draw_captions(rng, folder, fields)
    path = _save(fields, folder, as_npz)
    if fault == "pipe":
        pipe = path if as_npz else path / "image.npy"
        pipe.unlink()
        os.mkfifo(pipe)
        return Case(fault, lambda: _read(path, skip), REFUSED, (str(path),))
    if fault == "no arrays":
        file = path if as_npz else path / "image.npy"
        file.write_bytes(choose(rng, [b"", b"text", b"\x93NUMPY", bytes(99), b"PK\x03\x04" + bytes(30)]))
        return Case(fault, lambda: _read(path, skip), REFUSED, (str(path),))
    if fault in ("cut", "bits flipped"):
        file = path if as_npz else path / f"{choose(rng, sorted(fields))}.npy"
        content = file.read_bytes()
        content = cut(rng, content) if fault == "cut" else flip_bits(rng, content, 1)
        file.write_bytes(content)
        if fault == "bits flipped" and not as_npz:
            expected = ANYTHING  # a .npy file has no checksum
        return Case(
            f"{file.suffix}: {fault}", lambda: _read(path, skip), expected, (str(path),), may_refuse=True
        )
    return Case(fault, lambda: _read(path, skip), expected)


def _draw_captions(rng: np.random.Generator, folder: pathlib.Path, fields: dict[str, np.ndarray]) -> Case:
    """Captions in a file ``captions.json`` beside the arrays."""
    captions = [str(text) for text in fields["caption"]]
    path = _save({k: v for k, v in fields.items() if k != "caption"}, folder, as_npz=False)
    good = json.dumps(captions, ensure_ascii=False).encode()
    changes: dict[str, Any] = {
        "good": good,
        "byte-order mark": b"\xef\xbb\xbf" + good,
        "cut": good[:-3],
        "not UTF-8": good[:-2] + b'\xff"]',
        "not a list": json.dumps({"caption": captions}).encode(),
        "a number": json.dumps([*captions[:-1], 3]).encode(),
        "too few": json.dumps(captions[:-1]).encode(),
        "nested": b"[" * 10**5,
    }
    fault = choose(rng, sorted(changes))
    (path / "captions.json").write_bytes(changes[fault])
    is_good = fault in ("good", "byte-order mark")
    expected = _expected(fields, []) if is_good else REFUSED
    mention = str(path) if fault == "too few" else str(path / "captions.json")
    return Case(
        f"captions.json: {fault}", lambda: _read(path, False), expected, () if is_good else (mention,)
    )


KIND = Kind("arrays", _draw, 1500)
