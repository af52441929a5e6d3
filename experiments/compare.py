"""Runs side by side on one page: options that differ, scores, curves, times, samples.

    python experiments/compare.py runs/captioning-1 runs/captioning-2
    python experiments/compare.py runs/seed-0 runs/seed-1 runs/seed-2 runs/other-0 runs/other-1 runs/other-2

The runs may be of any experiment, and unfinished. Runs that differ only in their seeds are one column, with mean and
standard deviation. RUN_DIR/compare.html is the page, RUN_DIR/result.json has the same as plain values.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.experiment import write_report
from xmodal_jax.report import run_comparison as panels
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Runs side by side."""

    runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Directories of the runs, at least two."""
    samples: bool = True
    """Whether to show the pictures and sounds of the runs' reports side by side."""
    run_dir: pathlib.Path | None = None
    """Directory to write the page to; None: ``runs/compare-<time>``."""

    def __post_init__(self):
        if len(self.runs) < 2:
            raise ValueError(f"name at least two runs to compare, got {len(self.runs)}")


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    with timer("data"):
        groups = panels.group_runs([panels.read_stored_run(folder) for folder in config.runs])
    run = Run.create(config.run_dir, config, tensorboard=False)

    metrics = {f"{g.name}/{name}": values for g in groups for name, values in g.metrics.items()}
    metrics = {name: values if len(values) > 1 else values[0] for name, values in metrics.items()}
    details = " · ".join(group.name for group in groups)
    entries = panels.summary(groups)
    with write_report(
        run, "Runs side by side", details, metrics, timer, BadExamples(), page="compare.html", **entries
    ) as report:
        report.add_cards(metrics, panels.headline(groups))
        panels.add_options(report, groups)
        panels.add_scores(report, groups)
        panels.add_curves(report, groups)
        panels.add_facts(report, groups)
        if config.samples:
            panels.add_samples(report, groups)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
