"""Tar shards as people and programs write them, and damaged ones."""

from __future__ import annotations

import gzip
import io
import json
import os
import pathlib
import tarfile
from typing import Any

import numpy as np

from benchmarks.fault_kinds import ANYTHING, REFUSED, Case, Kind, choose, cut, flip_bits
from benchmarks.fault_kinds.parquet import SIDE, draw_rows, encode_png, expected_values, read_source
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.sources.tar import TarSource

Members = list[tuple[str, "bytes | tarfile.TarInfo"]]


def _members(key: str, row: dict[str, Any], upper: bool, in_json: bool) -> Members:
    """The members of a sample; what the row lacks has none."""
    members: Members = []
    if row["image"] is not None:
        members.append(("png", encode_png(row["image"])))
    if in_json:
        members.append(("json", json.dumps({"caption": row["text"], "label": row["label"]}).encode()))
    else:
        members += [("txt", row["text"].encode())] * (row["text"] is not None)
        members += [("cls", f"{row['label']}\n".encode())] * (row["label"] is not None)
    return [(f"{key}.{field.upper() if upper else field}", content) for field, content in members]


def _link(key: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"{key}.png")
    info.type, info.linkname = kind, "0.png"
    return info


SAMPLE_FAULTS = {
    "image: junk": lambda key: [(f"{key}.png", b"junk"), (f"{key}.txt", b"x")],
    "image: empty": lambda key: [(f"{key}.png", b""), (f"{key}.txt", b"x")],
    "txt: empty": lambda key: [(f"{key}.txt", b" \n")],
    "txt: not UTF-8": lambda key: [(f"{key}.txt", b"gr\xfcn")],
    "cls: a name": lambda key: [(f"{key}.txt", b"x"), (f"{key}.cls", b"cat")],
    "cls: negative": lambda key: [(f"{key}.txt", b"x"), (f"{key}.cls", b"-3")],
    "json: broken": lambda key: [(f"{key}.json", b'{"caption": ')],
    "json: a list": lambda key: [(f"{key}.json", b'["x"]')],
    "json: an empty list of captions": lambda key: [(f"{key}.json", b'{"captions": []}')],
    "two captions": lambda key: [(f"{key}.txt", b"x"), (f"{key}.caption", b"y")],
    "a member twice": lambda key: [(f"{key}.txt", b"x"), (f"{key}.TXT", b"y")],
    "nothing that is read": lambda key: [(f"{key}.npy", b"x")],
    "a symbolic link": lambda key: [(f"{key}.png", _link(key, tarfile.SYMTYPE)), (f"{key}.txt", b"x")],
    "a hard link": lambda key: [(f"{key}.png", _link(key, tarfile.LNKTYPE)), (f"{key}.txt", b"x")],
    "a pipe": lambda key: [(f"{key}.png", _link(key, tarfile.FIFOTYPE)), (f"{key}.txt", b"x")],
}
"""Members of one sample that make it a bad example."""
FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
PREFIXES = ("", "./", "a/b.c/", "日本 ü ", "x" * 90 + "/" + "y" * 60 + "/")
"""What keys begin with."""
NO_SAMPLES: Members = [("README", b"x"), (".DS_Store", b"x"), ("._0.png", b"junk"), ("__index__/0", b"x")]
"""Members that belong to no sample."""


def _gzipped(path: pathlib.Path) -> pathlib.Path:
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def _replaced(path: pathlib.Path, make: Any) -> pathlib.Path:
    path.unlink()
    make(path)
    return path


SHARD_FAULTS = {
    "compressed": _gzipped,
    "compressed, by name": lambda path: path.rename(path.with_name("1.tar.gz")),
    "a pipe for a shard": lambda path: _replaced(path, os.mkfifo),
    "a folder for a shard": lambda path: _replaced(path, pathlib.Path.mkdir),
    "a link to nothing": lambda path: _replaced(path, lambda p: p.symlink_to("nowhere")),
}
"""What must be refused, with the name of the shard."""


def _write(path: pathlib.Path, members: Members, form: int) -> None:
    with tarfile.open(path, "w", format=form, encoding="utf-8") as file:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def _read(folder: pathlib.Path, skip: bool) -> Any:
    """What the code under test reads: with a new index, and with the one that was saved, which must be the same."""
    results = []
    for _ in range(2):
        bad = BadExamples("skip" if skip else "stop")
        source = TarSource(str(folder), "all", bad_examples=bad, image_size=SIDE, workers=1, progress=False)
        results.append(read_source(source, bad))
    if results[0] != results[1]:
        raise AssertionError("the index that was saved says something else")
    return results[0]


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    rows, skip, form = draw_rows(rng), bool(rng.integers(2)), choose(rng, FORMATS)
    for row in rows:  # a sample without a file and a caption is a bad one
        row["text"] = row["text"] or "x"
    faults = [*SAMPLE_FAULTS, *SHARD_FAULTS, "none", "none", "members of no sample", "an empty shard", "cut",
              "zero bytes", "bits flipped", "the index is damaged"]  # fmt: skip
    fault, prefix = choose(rng, faults), choose(rng, PREFIXES)
    options = (bool(rng.integers(2)), bool(rng.integers(2)))
    samples = [_members(f"{prefix}{k}", row, *options) for k, row in enumerate(rows)]
    bad_sample = int(rng.integers(1, 4)) if fault in SAMPLE_FAULTS else None
    if bad_sample is not None:
        samples[bad_sample] = SAMPLE_FAULTS[fault](f"{prefix}{bad_sample}")
    if fault == "members of no sample":
        samples.insert(int(rng.integers(len(samples))), NO_SAMPLES)
    data = folder / "data"
    data.mkdir()
    paths = [data / "0.tar", data / "1.tar"]
    for path, part in zip(paths, (samples[:5], samples[5:]), strict=True):
        _write(path, [member for sample in part for member in sample], form)
    expected: Any = (expected_values([r for k, r in enumerate(rows) if k != bad_sample]), [])
    mentions: tuple[str, ...] = (str(paths[1]),)
    if fault in SHARD_FAULTS:
        path = SHARD_FAULTS[fault](paths[1])
        expected, mentions = REFUSED, (str(path or data / "1.tar.gz"),)
    elif fault == "an empty shard":
        _write(data / "2.tar", [], form)
    elif fault in ("cut", "bits flipped"):
        content = paths[1].read_bytes()
        content = cut(rng, content) if fault == "cut" else flip_bits(rng, content, int(rng.integers(1, 4)))
        paths[1].write_bytes(content)
        expected = ANYTHING
    elif fault == "zero bytes":
        paths[1].write_bytes(b"")
        good = expected_values(rows[:5])
        expected = (good, [("1.tar", 1)]) if skip else REFUSED
    elif fault == "the index is damaged":
        (data / "0.tar.index.npz").write_bytes(choose(rng, [b"", b"junk", b"PK\x03\x04" + bytes(30)]))
    elif bad_sample is not None:
        expected = (expected[0], [("0.tar", bad_sample + 1)]) if skip else REFUSED
        mentions = (f"{paths[0]}:{bad_sample + 1}",)
    return Case(f"{'skip' if skip else 'stop'}: {fault}", lambda: _read(data, skip), expected, mentions)


KIND = Kind("tar", _draw, 600)
