"""The lines of tables that people and programs write: JSON lines, JSON arrays, CSV and TSV, each with its number."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xmodal_jax.core.json_items import read_json_items
from xmodal_jax.core.text_files import (
    distinct_fields,
    first_duplicate,
    parse_json,
    read_damaged,
    shorten,
    split_lines,
    surrogate_in,
)
from xmodal_jax.data.bad_examples import BadExamples


class Line(NamedTuple):
    """A line of a table that could be parsed."""

    number: int
    """From 1; of an object or a row of several lines, the first."""
    fields: dict[str, Any]


def read_lines_of_table(path: Path, bad_examples: BadExamples) -> list[Line]:
    """The lines of a table in the format that its suffix names: .jsonl, .json, .tsv, and .csv for any other.

    Raises:
      ValueError: the header of a CSV or TSV file has a column twice, or is not UTF-8.
    """
    if path.suffix == ".jsonl":
        return list(read_jsonl(path, bad_examples))
    if path.suffix == ".json":
        return list(read_json(path, bad_examples))
    return list(read_csv(path, bad_examples, separator="\t" if path.suffix == ".tsv" else ","))


_NO_OBJECT = 'is not a JSON object such as {"file_name": ..., "text": ...}'


def read_json(path: Path, bad_examples: BadExamples) -> Iterator[Line]:
    """The objects in a JSON file that is an array; what is damaged, or no object, is added to ``bad_examples``."""
    for item in read_json_items(read_damaged(path)):
        if item.error is not None:
            bad_examples.add(path, item.line, f"the object that begins here cannot be read: {item.error}")
        elif not isinstance(item.value, dict):
            bad_examples.add(path, item.line, f"{shorten(item.value)} {_NO_OBJECT}")
        else:
            yield Line(item.line, item.value)


def read_jsonl(path: Path, bad_examples: BadExamples) -> Iterator[Line]:
    """The lines of a JSON lines file that are JSON objects; other lines that are not blank are added to
    ``bad_examples``."""
    for number, line in enumerate(split_lines(read_damaged(path)), 1):
        if not line.strip():
            continue
        try:
            # `read_damaged` puts a lone surrogate in place of a byte that is not UTF-8; ``damage`` describes it.
            if damage := surrogate_in(line):
                raise ValueError(damage)
            # `distinct_fields` raises ValueError where a key occurs twice; ``json`` alone would keep the last.
            fields = parse_json(line, pairs=distinct_fields)
        except ValueError as error:
            bad_examples.add(path, number, f"the line cannot be read: {error}")
            continue
        if not isinstance(fields, dict):
            bad_examples.add(path, number, f"the line {_NO_OBJECT}")
            continue
        yield Line(number, fields)


def _csv_rows(
    lines: list[str], path: Path, bad_examples: BadExamples, separator: str
) -> Iterator[tuple[int, int, list[str]]]:
    """``(start, stop, cells)`` of each row of a CSV file, which is in the ``lines[start:stop]``; rows that are not CSV
    are added to ``bad_examples``. ``separator``: what stands between cells.

    A quote that is not closed makes one row of all that follows. Such a row is bad, and the next one begins at the line
    after its first, so that it costs no other row.
    """
    first = 0  # the line at which the reader begins
    while first < len(lines):
        reader = csv.reader((lines[k] for k in range(first, len(lines))), strict=True, delimiter=separator)  # noqa: B023
        start = first
        try:
            for cells in reader:  # line_num: how many lines the reader has read so far
                yield start, first + reader.line_num, cells
                start = first + reader.line_num
            return
        except csv.Error as error:
            bad_examples.add(path, start + 1, f"the line is not CSV ({error})")
            first = start + 1


def read_csv(
    path: Path, bad_examples: BadExamples, *, separator: str = ",", quoted: bool = True
) -> Iterator[Line]:
    """The lines of a CSV file whose cells fit the header; the others are added to ``bad_examples``.

    Args:
      path: the file.
      bad_examples: see above.
      separator: what stands between cells.
      quoted: whether a cell can be quoted, and hold separators and line breaks then; otherwise quotes are a part of it.

    Raises:
      ValueError: the header has a column twice, or is not UTF-8.
    """
    lines = split_lines(read_damaged(path), keep_ends=True)
    header: list[str] | None = None
    unquoted = ((k, k + 1, line.rstrip("\n").split(separator)) for k, line in enumerate(lines))
    rows = _csv_rows(lines, path, bad_examples, separator) if quoted else unquoted
    for start, stop, cells in rows:
        if stop == start + 1 and not lines[start].strip():
            continue
        # The first line of the row that is damaged, and how; a row may have line breaks in its cells.
        damages = ((k, surrogate_in(lines[k])) for k in range(start, stop))
        line, damage = next(((k, damage) for k, damage in damages if damage), (start, None))
        if header is None:
            header = [name.strip() for name in cells]
            twice = first_duplicate(header)
            if damage or twice is not None:
                reason = damage or f"the column {shorten(twice)} is there twice: rename one"
                raise ValueError(f"{path}:{line + 1}: {reason}.")
            continue
        if damage is None and len(cells) > len(header):
            damage = f"more cells than the header has ({', '.join(header)})"
        if damage is None and len(cells) < len(header):
            damage = f"fewer cells than the header has: no {shorten(header[len(cells)])}"
        if damage:
            bad_examples.add(path, line + 1, damage)
            continue
        yield Line(start + 1, dict(zip(header, cells, strict=True)))
