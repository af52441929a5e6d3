"""Rows of a benchmark's table, which are kept in a file: a row that is finished is not computed again.

``OUT.jsonl`` has a line of JSON for each row, with its ``scores`` and the ``config`` of the benchmark; ``OUT.md`` is
the table.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.train.run import write_atomic


def read_rows(out: pathlib.Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that are finished. ``out``: path of the results without suffix; ``settings``: the benchmark's
    configuration, without what chooses rows.

    Raises:
      ValueError: the file has rows of another configuration.
    """
    file = out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    other = [row for row in rows if row["config"] != settings]
    if other:
        raise ValueError(
            f"{file} holds rows of another configuration, {other[0]['config']}: choose another --out"
        )
    return rows


def write_rows(out: pathlib.Path, rows: Sequence[Mapping[str, Any]], table: str) -> None:
    """Writes the rows, and the Markdown ``table`` of them."""
    write_atomic(out.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    write_atomic(out.with_suffix(".md"), table)


def mean_cells(
    scores: Sequence[Mapping[str, float | None]], columns: Sequence[str], digits: Mapping[str, int]
) -> list[str]:
    """A cell for each column: the mean over the seeds that have the score, with the standard deviation of several.

    ``scores``: those of each seed. ``digits``: decimal places by column, 3 by default.
    """
    cells = []
    for column in columns:
        values = [s[column] for s in scores if s.get(column) is not None]
        places = digits.get(column, 3)
        spread = f" ± {np.std(values, ddof=1):.{places}f}" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.{places}f}{spread}" if values else "")
    return cells


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with a line end."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n"
