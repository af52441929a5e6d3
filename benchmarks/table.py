"""A table of the metrics of runs that differ in their seed, as mean ± standard deviation.

python -m benchmarks.table runs/a0 runs/a1 runs/a2 --metrics image_to_text/recall@1 text_to_image/recall@1
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import tyro


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs to summarize."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Run directories of the same command with different seeds, each with one seed or several (``--seeds``)."""
    metrics: tuple[str, ...] = ()
    """Metrics to show; by default all."""


def values_of(results: list[dict], metric: str) -> np.ndarray:
    """A metric's value for each seed in several ``result.json``."""
    return np.concatenate([r.get("per_seed", {}).get(metric, [r["metrics"][metric]]) for r in results])


def table(results: list[dict], metrics: tuple[str, ...] = ()) -> str:
    """A Markdown table over the ``result.json`` of several runs."""
    names = metrics or tuple(results[0]["metrics"])
    seeds = [seed for result in results for seed in result["seeds"]]
    rows = [f"| metric | mean ± standard deviation over seeds {', '.join(map(str, seeds))} |", "|---|---|"]
    for name in names:
        values = values_of(results, name)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        rows.append(f"| {name} | {values.mean():.3f} ± {spread:.3f} |")
    for name in ("total", "train", "compile"):
        seconds = [result["timing"][name] for result in results]
        rows.append(f"| {name} time | {min(seconds):.0f} to {max(seconds):.0f} s |")
    return "\n".join(rows)


if __name__ == "__main__":
    arguments = tyro.cli(Arguments, description=__doc__)
    loaded = [json.loads((run / "result.json").read_text()) for run in arguments.runs]
    print(table(loaded, arguments.metrics))
