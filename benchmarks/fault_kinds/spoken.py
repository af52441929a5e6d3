"""Text files whose lines are spoken, as editors and programs write them."""

from __future__ import annotations

import os
import pathlib
import unicodedata

import numpy as np

from benchmarks.fault_kinds import ANYTHING, REFUSED, Case, Kind, choose
from xmodal_jax.data.sources.spoken import SpokenLines

WORDS = ("one", "naïve", "cafe\u0301", "日本", "שלום", "🙂", "a\u2028b", "x" * 300, "=1+1", "$^$", "<b>", "1e9", "...",
         "a\tb", "\x0b\x0c", "\u200b", "a\x00b")  # fmt: skip


def _read(path: pathlib.Path) -> list[str]:
    """The lines of both splits, by the code under test."""
    lines: list[str] = []
    for split in ("train", "test"):
        try:
            lines += SpokenLines(path, split).lines
        except ValueError as error:
            if split == "train" or "(one in ten is for test)" not in str(error):
                raise
    return sorted(lines)


def _speak(path: pathlib.Path, folder: pathlib.Path) -> tuple[str, tuple[int, ...]]:
    """Type and shape of the speech of all training lines."""
    source = SpokenLines(path, audio_cache=folder / "cache", workers=1, max_seconds=0.5)
    audio = source.batch(np.arange(min(3, len(source))))["audio"]
    return str(audio.dtype), audio.shape[1:]


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    lines = [f"{choose(rng, WORDS)} {choose(rng, WORDS)} {k}" for k in range(int(rng.integers(20, 50)))]
    content = "\n".join([*lines, ""]).encode()
    path = folder / "lines.txt"
    good = {
        "good": content,
        "byte-order mark": b"\xef\xbb\xbf" + content,
        "lines end as on Windows": content.replace(b"\n", b"\r\n"),
        "blank lines": content.replace(b"\n", b"\n \n"),
        "repeated lines": content + content,
        "another Unicode form": unicodedata.normalize("NFD", content.decode()).encode(),
        "no end of the last line": content.rstrip(b"\n"),
    }
    row = int(rng.integers(len(lines)))
    before = "\n".join(lines[:row]).encode() + (b"\n" if row else b"")
    bad = {
        "not UTF-8": before + choose(rng, [b"caf\xe9\n", b"\xff\xfe\n", b"\xed\xa0\x80\n"]) + content,
        "UTF-16": content.decode().encode("utf-16"),
        "empty": b"",
        "blank": b"\n \n\t\n",
    }
    fault = choose(rng, [*good, *bad, "pipe", "folder", "missing", "spoken"])
    if fault == "spoken":
        odd = [choose(rng, WORDS) for _ in range(2)] + ["plain words"]
        path.write_text("\n".join(odd * 1 + [f"line {k}" for k in range(9)]), encoding="utf-8")
        return Case(fault, lambda: _speak(path, folder), ANYTHING, may_refuse=True)
    if fault in ("pipe", "folder", "missing"):
        {"pipe": os.mkfifo, "folder": os.mkdir, "missing": lambda path: None}[fault](path)
        return Case(fault, lambda: _read(path), REFUSED, (str(path),))
    path.write_bytes({**good, **bad}[fault])
    if fault in bad:
        line = f":{row + 1}" if fault == "not UTF-8" and row else ""
        return Case(fault, lambda: _read(path), REFUSED, (f"{path}{line}",))
    expected = sorted({unicodedata.normalize("NFC", line.strip()) for line in lines} - {""})
    return Case(fault, lambda: _read(path), expected)


KIND = Kind("spoken", _draw, 700, seconds=30.0)
