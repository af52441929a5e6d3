"""Several runs compared in one table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodal_jax.report.page import Report
from xmodal_jax.train.run import format_value


class ComparedRun(NamedTuple):
    """The results of one run, by the names that they have in a comparison."""

    name: str
    values: dict[str, Any]
    """Test scores, each a number or one per seed, ``diverged`` (number of seeds) and ``step_ms`` (milliseconds per step
    of all seeds)."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The values as ``name/value``."""
        return {f"{self.name}/{key}": value for key, value in self.values.items()}


def read_result(folder: Path) -> dict[str, Any]:
    """``result.json`` of a run; empty if there is none.

    Raises:
      ValueError: the file holds no result.
    """
    file = folder / "result.json"
    if not file.exists():
        return {}
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} holds no result ({error}); delete it, and the run is finished again"
        ) from error
    return result


def read_run(folder: Path, scores: Sequence[str]) -> ComparedRun:
    """The results of a finished run, named after its folder. ``scores``: names of metrics of its test split."""
    result = read_result(folder)
    # ``timing``: seconds by part of the run, None if not measured; ``resumed``: the step that training went on from.
    metrics = result["metrics"] | result.get("per_seed", {})  # the values of the seeds in place of their mean
    values = {name: metrics[f"test/{name}"] for name in scores if f"test/{name}" in metrics}
    seconds = (result["timing"]["train"] or math.nan) / max(result["steps"] - result["resumed"], 1)
    return ComparedRun(
        folder.name, values | {"diverged": float(len(result["diverged"])), "step_ms": 1e3 * seconds}
    )


def add_comparison(
    report: Report, title: str, runs: Sequence[ComparedRun], scores: Mapping[str, str], *, seeds: int
) -> None:
    """Adds a table with a row for each run and a column for each score that some run has.

    ``scores``: the heading of each score's column, by the score's name. ``seeds``: number of seeds of each run. Of
    ``diverged`` and ``step_ms`` in a run's values see `ComparedRun`.
    """
    rows = []
    for name, values in runs:
        step_ms = f"{values['step_ms']:.0f}" if "step_ms" in values else ""
        cells = [format_value(values[key]) if key in values else "" for key in scores]
        rows.append([name, *cells, f"{values['diverged']:.0f} of {seeds}", step_ms])
    headings = ["run", *scores.values(), "diverged", "ms per step, all seeds"]
    # Transposed, to drop the columns that are empty below the heading, and back.
    columns = [column for column in zip(headings, *rows, strict=True) if any(column[1:])]
    headings, *rows = zip(*columns, strict=True)
    report.add_table(
        title, headings, rows, note="Mean and standard deviation over the seeds that did not diverge."
    )
