"""How every experiment ends: what was left out, the report, the result, one line on screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.report.page import Report
from xmodal_jax.train.run import Run, summary_line


def add_bad_examples(report: Report, bad_examples: BadExamples, directory: Path) -> None:
    """The examples that were left out, in the report and as ``bad_examples.jsonl``."""
    if len(bad_examples):
        bad_examples.write(directory / "bad_examples.jsonl")
        rows = [(p.file, p.line, p.reason) for p in sorted(bad_examples.items)[:100]]
        report.add_table("Bad examples", ("file", "line", "reason"), rows, note=bad_examples.summary())
    elif bad_examples.summary():
        report.add_text("Notes on the data", bad_examples.summary())


def finish(
    run: Run,
    report: Report,
    metrics: Mapping[str, Any],
    *,
    headline: Sequence[str],
    bad_examples: BadExamples,
    timer: Timer,
    **facts: Any,
) -> None:
    """Adds bad examples, configuration and timing to the report, writes ``report.html`` and ``result.json`` and closes
    the run.

    ``headline``: names of the metrics that the last line on screen shows; ``facts``: further entries of
    ``result.json`` (see `Run.write_result`).
    """
    page = run.path / "report.html"
    with timer("report"):
        add_bad_examples(report, bad_examples, run.path)
        report.add_config(run.read_config())
        report.add_timing(timer.report())
        report.write(page)
    run.write_result(metrics, timing=timer.report(), **facts)
    run.close()
    print(bad_examples.summary() or "no bad examples")
    print(f"{page}\n{summary_line(metrics, headline)}")
