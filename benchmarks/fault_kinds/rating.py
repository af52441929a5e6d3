"""Answers and keys of blind ratings: files that raters, spreadsheets and mail programs have changed."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np

from benchmarks.fault_kinds import REFUSED, Case, Kind, choose
from xmodal_jax import rating
from xmodal_jax.data.bad_examples import BadExamples

HEADER = b"trial,left,right,choice,seconds,rater"
ITEMS = 4


def _page(folder: pathlib.Path, mode: str, seed: int) -> tuple[pathlib.Path, dict[str, Any]]:
    """A page of two sources with its key: the key's path and content."""
    samples = {name: np.full((1, 1, 1), k, np.uint8) for k, name in enumerate(("a", "b"))}
    items = [rating.RatingItem(f"caption {k}", samples) for k in range(ITEMS)]
    _, path = rating.write_rating_page(
        folder / "page.html", items, mode=mode, title="title", question="question", seed=seed
    )
    return path, json.loads(path.read_text(encoding="utf-8"))


def _line(key: dict[str, Any], trial: str, choice: str, rater: str, seconds: str = "1.50") -> list[str]:
    shown = key["trials"][trial]
    return [trial, shown["left"], shown["right"], choice, seconds, f'"{rater}"']


def _replace(position: int, *values: str):
    """A damage of a line of cells: another value in one of them."""
    return lambda rng, cells: b",".join(
        (choose(rng, values) if k == position else cell).encode() for k, cell in enumerate(cells)
    )


def _bytes(change):
    return lambda rng, cells: change(rng, ",".join(cells).encode())


LINE_FAULTS = {
    "trial unknown": _replace(0, "zzzzzzzz", "", "0", "=1+1", "trial"),
    "sample unknown": _replace(1, "zzzzzzzz", "", "-1"),
    "choice unknown": _replace(3, "both", "", "Left ", "q9a9", "q4", "a4q4", "1", "=left"),
    "seconds not a number": _replace(4, "soon", "", "nan", "inf", "-1", "1,5", '"1,5"', "1e999", "12:30"),
    "rater empty": _replace(5, '""', '"  "', ""),
    "cells too few": _bytes(lambda rng, line: line.rsplit(b",", int(rng.integers(1, 6)))[0]),
    "cells too many": _bytes(lambda rng, line: line + b"," * int(rng.integers(1, 4)) + b"x"),
    "quote open": _bytes(lambda rng, line: line[:-1]),
    "quote within": _bytes(lambda rng, line: line[:-1] + b'"x"'),
    "semicolons": _bytes(lambda rng, line: line.replace(b",", b";")),
    "not UTF-8": _bytes(
        lambda rng, line: line[:-1] + choose(rng, [b"\xfc", b"\xff\xfe", b"\xed\xa0\x80"]) + b'"'
    ),
    "zeros": _bytes(lambda rng, line: choose(rng, [b"\0" * 9, b"\0" + line])),
    "very long": _bytes(lambda rng, line: line[:-1] + b"x" * 200_000 + b'"x'),
}
"""Damages of one line, which must be refused, or left out."""
HARMLESS = {
    "none": lambda rng, content: content,
    "byte-order mark": lambda rng, content: b"\xef\xbb\xbf" + content,
    "blank lines": lambda rng, content: content.replace(b"\n", b"\n\r\n"),
    "lines end as on Unix": lambda rng, content: content.replace(b"\r\n", b"\n"),
    "no end of the last line": lambda rng, content: content.rstrip(),
    "spaces": lambda rng, content: content.replace(b",1.50,", b" , 1.50 ,"),
}
"""Changes of a file that harm nothing."""


def _count(folder: pathlib.Path, paths: list[pathlib.Path], key: pathlib.Path, mode: str, skip: bool) -> Any:
    """What the code under test makes of the answers: ``(answers, raters, replaced, bad lines)``."""
    bad = BadExamples("skip" if skip else "stop")
    if mode == "preference":
        found = rating.preference_rates(paths, key, bad_examples=bad)
    else:
        found = rating.mean_ratings(paths, key, seed=0, resamples=10, bad_examples=bad)
    lines = [(pathlib.Path(example.file).name, example.line) for example in bad.items]
    return found.answers, found.raters, found.replaced, lines


def _draw_answers(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """Two files of answers, one of them with a fault."""
    mode, skip = choose(rng, ["preference", "rating"]), bool(rng.integers(2))
    key_path, key = _page(folder, mode, int(rng.integers(1000)))
    good_choices = ("left", "right", "tie") if mode == "preference" else ("q1a1", "q5a2", "q3a4")
    name = choose(rng, ["Ada", "日本 ü", "=1+1'", "'", '""', "a,b", "שלום", "x" * 60])
    trials = list(key["trials"])
    cells = [_line(key, trial, choose(rng, good_choices), name) for trial in trials]
    rows = [",".join(row).encode() for row in cells]
    other = folder / "other.csv"
    others = (",".join(_line(key, trial, good_choices[0], "Bo")).encode() for trial in trials)
    other.write_bytes(b"\r\n".join([HEADER, *others]))
    path, whole, row = folder / "answers.csv", len(trials), int(rng.integers(len(rows)))
    answers, raters, bad = 2 * whole, 2, []
    mentions: tuple[str, ...] = ()
    fault = choose(rng, [*LINE_FAULTS, *LINE_FAULTS, *HARMLESS, "header", "answered twice", "missing file"])
    content = b"\r\n".join([HEADER, *rows]) + b"\r\n"
    if fault in LINE_FAULTS:
        rows[row] = LINE_FAULTS[fault](rng, cells[row])
        content = b"\r\n".join([HEADER, *rows]) + b"\r\n"
        bad, answers, mentions = [(path.name, row + 2)], answers - 1, (f"{path}:{row + 2}",)
    elif fault in HARMLESS:
        content = HARMLESS[fault](rng, content)
    elif fault == "header":
        wrong = choose(rng, [b"", HEADER.replace(b",", b";"), HEADER + b",x", b"name,age", rows[0], b"\xff"])
        content = b"\r\n".join([wrong, *rows]) + b"\r\n"
        bad, answers, raters, mentions = [(path.name, 1)], whole, 1, (f"{path}:1",)
    elif fault == "answered twice":
        content += rows[row] + b"\r\n"
    if fault == "missing file":
        (choose(rng, [os.mkfifo, os.mkdir, lambda path: None]))(path)
        return Case(f"answers: {fault}", lambda: _count(folder, [other, path], key_path, mode, skip),
                    REFUSED, (str(path),))  # fmt: skip
    path.write_bytes(content)
    expected = (answers, raters, int(fault == "answered twice"), bad)
    if bad and not skip:
        expected = REFUSED
    return Case(
        f"answers: {fault}", lambda: _count(folder, [other, path], key_path, mode, skip), expected, mentions
    )


def _draw_key(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """A key with a fault."""
    mode = choose(rng, ["preference", "rating"])
    path, key = _page(folder, mode, int(rng.integers(1000)))
    trial, sample = choose(rng, sorted(key["trials"])), choose(rng, sorted(key["samples"]))
    changes = {
        "mode": lambda: key.update(mode=choose(rng, ["both", None, 3, []])),
        "field missing": lambda: key.pop(choose(rng, ["mode", "samples", "trials"])),
        "samples": lambda: key.update(samples=choose(rng, [[], None, {"x": 3}, "x", {}])),
        "trials": lambda: key.update(trials=choose(rng, [[], None, {"x": 3}, "x", {"x": {}}])),
        "source": lambda: key["samples"][sample].update(source=choose(rng, [None, 3, []])),
        "side": lambda: key["trials"][trial].update(left=choose(rng, ["zzzz", None, 3, []])),
    }
    fault = choose(rng, [*changes, "not JSON", "pipe"])
    if fault in changes:
        changes[fault]()
    content = json.dumps(key).encode()
    if fault == "not JSON":
        content = choose(rng, [b"", content[:-9], b"\xff", b"[" * 10**5, b"null", b"3", b"9" * 5000])
    path.write_bytes(content)
    if fault == "pipe":
        path.unlink()
        os.mkfifo(path)
    return Case(f"key: {fault}", lambda: rating.read_key(path), REFUSED, (str(path),))


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    return (_draw_key if rng.random() < 0.25 else _draw_answers)(rng, folder)


KIND = Kind("rating", _draw, 1000)
