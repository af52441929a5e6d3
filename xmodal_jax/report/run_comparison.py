"""Runs side by side: the options in which they differ, their scores, curves, facts and samples.

The runs are read from the files that they left (see `train.run`), so that they may be of any experiment, and
unfinished.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from xmodal_jax.core.nesting import dotted
from xmodal_jax.report import figures
from xmodal_jax.report.comparison import read_result
from xmodal_jax.report.page import Highlighted, Report, read_sections
from xmodal_jax.train.run import format_value, read_config_file, read_metrics_file

DIRECTORY_OPTIONS = ("run_dir", "resume", "resume_schedule", "track")
"""Options that concern a run's directory and not its training; they are not compared."""
MAX_CURVES = 24
"""Largest number of figures of curves."""
ABSENT = "–"
"""Stands in a table for a value that does not exist."""
HIGHER = frozenset(
    "accuracy bleu chrf cider coherence coverage density f1 map mrr precision probe psnr purity rand recall "
    "ssim".split()
)
"""Words in the names of metrics that are better if they are higher."""
LOWER = frozenset("cer distance error fid kid loss mse perplexity rank wer".split())
"""Words in the names of metrics that are better if they are lower."""
UNDIRECTED = frozenset(("real", "sd", "d_loss", "g_loss", "step_ms"))
"""Words and names of metrics without a better direction: what concerns real data alone, standard deviations, losses of
adversaries, times."""
WITHOUT_SAMPLES = (
    "Training curves",
    "Configuration",
    "Timing",
    "Note",
    "Notes on the data",
    "Bad examples",
)
"""Sections of reports that hold no samples."""


def direction(name: str) -> Literal["higher", "lower"] | None:
    """Whether higher or lower values of a metric are better, by the last word of its name that tells; None: unknown."""
    leaf = name.rpartition("/")[2].lower()
    words = re.split("[^a-z0-9]+", leaf)
    if leaf in UNDIRECTED or not UNDIRECTED.isdisjoint(words):
        return None
    for word in reversed(words):
        if word in HIGHER or word in LOWER:
            return "higher" if word in HIGHER else "lower"
    return None


class StoredRun(NamedTuple):
    """The files in a run's directory."""

    path: Path
    config: dict[str, Any]
    result: dict[str, Any]
    """``result.json``; empty if the run is not finished."""
    records: list[dict[str, Any]]
    """``metrics.jsonl``."""

    @property
    def options(self) -> dict[str, Any]:
        """The options by dotted names, without those of its directory."""
        return {name: v for name, v in dotted(self.config) if name.partition(".")[0] not in DIRECTORY_OPTIONS}

    @property
    def metrics(self) -> dict[str, list[float | None]]:
        """The final values of each metric, one per seed."""
        values = self.result.get("metrics", {}) | self.result.get("per_seed", {})
        return {name: value if isinstance(value, list) else [value] for name, value in values.items()}

    @property
    def seeds(self) -> list[int]:
        """The seeds that the run trained, or is training."""
        begin, count = self.config.get("seed", 0), self.config.get("seeds", 1)
        return self.result.get("seeds") or [begin + k for k in range(count)]

    @property
    def last_step(self) -> int:
        """The last step that the run has logged."""
        return self.result.get("steps") or max((record["step"] for record in self.records), default=0)


class RunGroup(NamedTuple):
    """A column of the comparison: one run, or several that differ only in their seeds."""

    name: str
    runs: tuple[StoredRun, ...]

    @property
    def metrics(self) -> dict[str, list[float | None]]:
        """The final values of each metric, one per seed of all runs."""
        values: dict[str, list[float | None]] = {}
        for run in self.runs:
            for name, of_run in run.metrics.items():
                values.setdefault(name, []).extend(of_run)
        return values

    @property
    def records(self) -> list[dict[str, Any]]:
        """The logged metrics, with the values of all seeds at each step."""
        by_step: dict[int, dict[str, list]] = {}
        for record in (record for run in self.runs for record in run.records):
            row = by_step.setdefault(record["step"], {})
            for name, value in record.items():
                if name not in ("step", "note"):
                    row.setdefault(name, []).extend(value if isinstance(value, list) else [value])
        return [{"step": step, **row} for step, row in sorted(by_step.items())]

    @property
    def options(self) -> dict[str, Any]:
        """The options of its runs; ``seed`` holds all their seeds."""
        seeds = sorted({seed for run in self.runs for seed in run.seeds})
        return self.runs[0].options | ({"seed": seeds} if len(self.runs) > 1 else {})


def read_stored_run(folder: Path) -> StoredRun:
    """Reads the run in a directory.

    Raises:
      ValueError: there is no run, or one of its files cannot be read.
    """
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "does not exist"
        raise ValueError(f"{folder} {problem}: name the directory of a run")
    return StoredRun(
        folder, read_config_file(folder), read_result(folder), read_metrics_file(folder / "metrics.jsonl")
    )


def group_runs(runs: Sequence[StoredRun]) -> list[RunGroup]:
    """Groups runs into the columns of a comparison, in their order. Runs that differ only in their seeds share a
    column, unless all of them would be in a single one."""
    names = distinct_names([run.path for run in runs])
    groups: dict[str, list[int]] = {}
    for k, run in enumerate(runs):
        key = repr(sorted((n, str(v)) for n, v in run.options.items() if n not in ("seed", "seeds")))
        groups.setdefault(key, []).append(k)
    indices = list(groups.values()) if len(groups) > 1 else [[k] for k in range(len(runs))]
    columns, taken = [], set()
    for members in indices:
        name = names[members[0]]
        if len(members) > 1:
            prefix = _common_prefix([names[k] for k in members])
            name = prefix if len(prefix) > 2 and prefix not in taken and prefix not in names else name
        taken.add(name)
        columns.append(RunGroup(name, tuple(runs[k] for k in members)))
    return columns


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each directory: its last part, with as many parts before it as distinguish it from the others."""
    full = [path.resolve() for path in paths]
    for count in range(1, max(len(path.parts) for path in full) + 1):
        names = ["/".join(path.parts[-count:]) for path in full]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(full, start=1)]


def _common_prefix(names: Sequence[str]) -> str:
    """The longest common prefix of names, without separators at its end."""
    length = next((k for k, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), None)
    return names[0][:length].rstrip("-_ .")


def differing_options(groups: Sequence[RunGroup]) -> dict[str, list[Any]]:
    """The options whose values are not the same in all columns, by name: a value for each column, `ABSENT` where the
    option does not exist, such as one of another encoder. Of different experiments (or versions) only the options that
    all have are compared."""
    options = [group.options for group in groups]
    names = dict.fromkeys(name for o in options for name in o)
    if unshared_options(groups):
        names = {name: None for name in names if all(name in o for o in options)}
    rows = {name: [o.get(name, ABSENT) for o in options] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def unshared_options(groups: Sequence[RunGroup]) -> dict[str, list[str]]:
    """By the name of each column, the options (or groups of options) that it has and some other column lacks."""
    outermost = [{name.partition(".")[0]: None for name in group.options} for group in groups]
    shared = set.intersection(*map(set, outermost))
    unshared = [[name for name in names if name not in shared] for names in outermost]
    return {group.name: options for group, options in zip(groups, unshared, strict=True) if options}


def best_columns(name: str, values: Sequence[Sequence[float | None] | None]) -> list[bool]:
    """Whether each column has the best mean of a metric; never where its direction is unknown or all means are equal.

    Args:
      name: of the metric, which tells the direction.
      values: for each column the values of its seeds; None: it does not have the metric.
    """
    means = [float(np.mean(v)) if v and None not in v and np.all(np.isfinite(v)) else None for v in values]
    present, better = [mean for mean in means if mean is not None], direction(name)
    if better is None or len(set(present)) < 2:
        return [False] * len(means)
    best = max(present) if better == "higher" else min(present)
    return [mean == best for mean in means]


def add_options(report: Report, groups: Sequence[RunGroup]) -> None:
    """Adds a table of the options that differ, and says which options only some of the runs have."""
    rows = [[name, *map(str, values)] for name, values in differing_options(groups).items()]
    if rows:
        report.add_table("Options that differ", ["option", *(group.name for group in groups)], rows)
    else:
        report.add_text("Options that differ", "None of the options that all runs have.")
    lines = [f"Only {name} has: {', '.join(options)}." for name, options in unshared_options(groups).items()]
    if lines:
        lines.insert(0, "The runs are of different experiments or versions.")
        report.add_text("Options that differ", "\n\n".join(lines))


def add_facts(report: Report, groups: Sequence[RunGroup]) -> None:
    """Adds a table with a column for each run: whether it is finished, steps, times, size, device and versions."""
    names = [g.name if len(g.runs) == 1 else f"{g.name}: {run.path.name}" for g in groups for run in g.runs]
    facts = [_facts(run) for group in groups for run in group.runs]
    rows = [[fact, *(of_run[fact] for of_run in facts)] for fact in facts[0]]
    note = "Seconds and examples per second are those of the last process of a run that was resumed."
    report.add_table("Runs", ["", *names], rows, note=note)


def _facts(run: StoredRun) -> dict[str, str]:
    """The facts on a run, by their names."""
    result, timing = run.result, run.result.get("timing", {})
    seconds, device = timing.get("train"), result.get("device")
    steps = result.get("steps", 0) - result.get("resumed", 0)
    examples = steps * run.config.get("batch_size", 0) * len(run.seeds)
    diverged = f", diverged: {' '.join(map(str, result['diverged']))}" if result.get("diverged") else ""
    versions = [f"{library} {version}" for library, version in result.get("versions", {}).items() if version]
    in_seconds = lambda value: ABSENT if value is None else f"{value:,.1f}"
    return {
        "directory": str(run.path),
        "experiment": result.get("experiment", ABSENT),
        "state": "finished" if result else f"unfinished, at step {run.last_step}",
        "seeds": " ".join(map(str, run.seeds)) + diverged,
        "steps": str(run.last_step),
        "seconds": in_seconds(timing.get("total")),
        "seconds of training": in_seconds(seconds),
        "examples per second": f"{examples / seconds:,.0f}" if seconds and examples else ABSENT,
        "parameters": f"{result['parameters']:,}" if "parameters" in result else ABSENT,
        "device": f"{device['count']} × {device['kind']} ({device['platform']})" if device else ABSENT,
        "versions": ", ".join(versions) or ABSENT,
    }


def add_scores(report: Report, groups: Sequence[RunGroup]) -> None:
    """Adds a table of the metrics that several columns have, the best mean highlighted, and names the others."""
    by_column = [group.metrics for group in groups]
    names = list(dict.fromkeys(name for metrics in by_column for name in metrics))
    counts = {name: sum(name in metrics for metrics in by_column) for name in names}
    rows = []
    for name in (name for name in names if counts[name] > 1):
        values = [metrics.get(name) for metrics in by_column]
        cells: list[Any] = [ABSENT if v is None else format_value(v if len(v) > 1 else v[0]) for v in values]
        for k, is_best in enumerate(best_columns(name, values)):
            cells[k] = Highlighted(cells[k]) if is_best else cells[k]
        rows.append([name + {"higher": " ↑", "lower": " ↓", None: ""}[direction(name)], *cells])
    seeds = [max(map(len, metrics.values()), default=0) for metrics in by_column]
    headings = [f"{g.name} ({n} seeds)" if n > 1 else g.name for g, n in zip(groups, seeds, strict=True)]
    if rows:
        note = (
            "Of several seeds mean ± standard deviation. ↑ higher and ↓ lower is better; ★ is the best mean."
        )
        if "data" in differing_options(groups):
            note += (
                " The runs were tested on different data, so that their scores are not comparable: "
                "experiments/evaluate.py measures them on the same."
            )
        report.add_table("Scores", ["metric", *headings], rows, note=note)
    else:
        report.add_text("Scores", "No metric is that of two finished runs.")
    for group, metrics in zip(groups, by_column, strict=True):
        only = [name for name in metrics if counts[name] == 1]
        if only:
            report.add_text("Scores", f"Only {group.name} has: {', '.join(only)}.")


def add_curves(report: Report, groups: Sequence[RunGroup]) -> None:
    """Adds a figure for each metric that several columns have logged, with a curve for each of them: the loss and
    validation first."""
    records = {group.name: group.records for group in groups}
    logged = [{n: None for r in of_group for n in r if n != "step"} for of_group in records.values()]
    names = list(dict.fromkeys(name for of_group in logged for name in of_group))
    shared = [name for name in names if sum(name in of_group for of_group in logged) > 1]
    beginnings = ("train/loss", "validation/", "train/")
    shared.sort(key=lambda name: [not name.startswith(beginning) for beginning in beginnings])
    for name in shared[:MAX_CURVES]:
        report.add_figure("Curves", figures.overlaid_curves(records, name))
    left_out = shared[MAX_CURVES:]
    if left_out:
        report.add_text("Curves", f"Without a figure: {', '.join(left_out)}.")
    if not shared:
        report.add_text("Curves", "No metric was logged by two runs.")


def add_samples(report: Report, groups: Sequence[RunGroup]) -> None:
    """Adds the sections with pictures and sounds that the reports of several columns have under the same title, side by
    side; of several runs in a column those of the first."""
    sections: dict[str, dict[str, str]] = {}
    for group in groups:
        for title, content in read_sections(group.runs[0].path / "report.html").items():
            if title not in WITHOUT_SAMPLES and ("<img" in content or "<audio" in content):
                sections.setdefault(title, {})[group.name] = content
    for title, contents in sections.items():
        if len(contents) > 1:
            report.add_beside(title, contents)


def headline(groups: Sequence[RunGroup]) -> list[str]:
    """The entries that are shown on cards and printed, as ``column/metric``: the first metric that several columns
    have, for the first four of them."""
    by_column = [group.metrics for group in groups]
    names = list(dict.fromkeys(name for metrics in by_column for name in metrics))
    counts = {name: sum(name in metrics for metrics in by_column) for name in names}
    name = next((name for name in names if counts[name] > 1), None)
    return [f"{g.name}/{name}" for g, metrics in zip(groups, by_column, strict=True) if name in metrics][:4]


def summary(groups: Sequence[RunGroup]) -> Mapping[str, Any]:
    """The comparison as plain values: runs, options that differ, and the columns with the best mean of each metric."""
    by_column = [group.metrics for group in groups]
    best = {}
    for name in dict.fromkeys(name for metrics in by_column for name in metrics):
        flags = best_columns(name, [metrics.get(name) for metrics in by_column])
        if any(flags):
            best[name] = [group.name for group, is_best in zip(groups, flags, strict=True) if is_best]
    return {
        "runs": {
            group.name: [
                {
                    "path": str(run.path),
                    "finished": bool(run.result),
                    "step": run.last_step,
                    "seeds": run.seeds,
                }
                for run in group.runs
            ]
            for group in groups
        },
        "options": {
            name: dict(zip((group.name for group in groups), values, strict=True))
            for name, values in differing_options(groups).items()
        },
        "best": best,
    }
