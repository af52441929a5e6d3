"""Scores of several runs on several data sets in the report: tables, and intervals as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from xmodal_jax.metrics.intervals import Interval
from xmodal_jax.report import figures
from xmodal_jax.report.page import Report

HEADLINE = (
    "image_to_text/recall@1",
    "text_to_image/recall@1",
    "image_zero_shot/accuracy",
    "image_zero_shot/calibration_error",
    "image_linear_probe/accuracy",
    "image_few_shot/accuracy",
)
"""The scores that are printed, where there are any of them; otherwise all are."""
Scores = Mapping[str, Mapping[str, Interval]]
"""The scores of each run on one data set, by the name of the run."""


def add_scores(report: Report, scores_by_data: Mapping[str, Scores]) -> None:
    """For each data set a picture of the recalls and accuracies with their intervals, and a table of all scores."""
    for data, scores in scores_by_data.items():
        report.add_figure(f"{data}: scores with 95% intervals", draw_intervals(scores))
        names = list(dict.fromkeys(name for of_run in scores.values() for name in of_run))
        rows = [[name, *(format_interval(of_run.get(name)) for of_run in scores.values())] for name in names]
        report.add_table(f"{data}: all scores", ["score", *scores], rows)


def flatten_scores(scores_by_data: Mapping[str, Scores]) -> dict[str, float]:
    """The scores without their intervals, as ``data/run/score``."""
    return {
        f"{data}/{run}/{name}": interval.value
        for data, scores in scores_by_data.items()
        for run, of_run in scores.items()
        for name, interval in of_run.items()
    }


def format_interval(interval: Interval | None) -> str:
    """An interval as a cell of a table: ``0.532 (0.501 to 0.560)``; a score without an interval as a number."""
    if interval is None:
        return ""
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def format_scores(scores_by_data: Mapping[str, Scores], shown: Sequence[str]) -> str:
    """The scores in ``shown`` as a table of text: one line for each run, data set and score that there is."""
    lines = []
    for data, scores in scores_by_data.items():
        for run, of_run in scores.items():
            names = [name for name in shown if name in of_run] or list(of_run)
            lines += [f"{data}  {run}  {name}  {format_interval(of_run[name])}" for name in names]
    return "\n".join(lines)


def draw_intervals(scores: Scores) -> Figure:
    """Recall@1 and accuracies as points with their intervals, one row for each, one colour for each run."""
    drawn = {
        run: {name: tuple(x) for name, x in of_run.items() if name.endswith(("recall@1", "accuracy"))}
        for run, of_run in scores.items()
    }
    return figures.score_intervals(drawn)
