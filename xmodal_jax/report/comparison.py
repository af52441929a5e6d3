"""Several runs compared in one table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from xmodal_jax.core.cluster import agree
from xmodal_jax.report.page import Report
from xmodal_jax.train.restarts import Choice
from xmodal_jax.train.run import format_value, read_config_file

COSTS = {"steps": "steps", "step_ms": "ms per step, all seeds", "train_seconds": "training in s, all seeds"}
"""The headings of the columns about a run's training, by the name of a value of `ComparedRun`."""


JUDGE_SCORES = {
    "judge_kernel_distance": "kernel distance", "judge_frechet_distance": "Fréchet distance",
    "factor_accuracy": "factors right", "exact_accuracy": "captions right",
    "precision": "precision", "recall": "recall", "coverage": "coverage",
}  # fmt: skip
"""The headings of columns of scores of generated images, by the name of a score (`evaluation.image_judge`)."""
LEARNING_SCORES = {
    "generated_accuracy": "accuracy learned from it", "real_accuracy": "learned from real images",
}  # fmt: skip
"""The headings of columns of what classifiers learn from generated images (`evaluation.learning`)."""
IMAGE_SCORES = JUDGE_SCORES | LEARNING_SCORES
"""The headings of all columns of scores of generated images."""


class ComparedRun(NamedTuple):
    """The results of one run, by the names that they have in a comparison."""

    name: str
    values: dict[str, Any]
    """Test scores, each a number or one per seed, ``diverged`` (number of seeds), ``steps`` (with those of a first
    stage), ``step_ms`` (milliseconds per step of all seeds) and ``train_seconds`` (of all steps and seeds, without
    compilation)."""

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


def read_run(folder: Path, scores: Collection[str] = tuple(IMAGE_SCORES)) -> ComparedRun:
    """The results of a finished run, named after its folder. ``scores``: names of metrics of its test split, or of what
    is learned from its images."""
    result = read_result(folder)
    # ``timing``: seconds by part of the run, None if not measured; ``resumed``: the step that training went on from.
    metrics = result["metrics"] | result.get("per_seed", {})  # the values of the seeds in place of their mean
    prefixes = {name: "learning/" if name in LEARNING_SCORES else "test/" for name in scores}
    values = {name: metrics[prefix + name] for name, prefix in prefixes.items() if prefix + name in metrics}
    steps = result["steps"] + _first_stage_steps(folder)
    # Steps of the initialisations that were not chosen take time as well.
    restarts = result.get("restarts")  # not in results of earlier versions
    extra = Choice(**restarts).dropped_steps if restarts else 0
    timed_steps = steps - result["resumed"] if result["resumed"] else steps + extra
    seconds = (result["timing"]["train"] or math.nan) / max(timed_steps, 1)
    values |= {"diverged": float(len(result["diverged"])), "steps": steps, "step_ms": 1e3 * seconds}
    return ComparedRun(folder.name, values | {"train_seconds": (steps + extra) * seconds})


def _first_stage_steps(folder: Path) -> int:
    """Steps of the first stage that was trained within the run in ``folder``; 0: it has none."""
    first_stage = folder / "first_stage"
    return read_config_file(first_stage)["steps"] if first_stage.is_dir() else 0


def check_names(flag: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError if there are no ``names``, or one of them is not ``known`` or given twice; ``flag`` gives
    them."""
    wrong = sorted({name for name in names if name not in known or names.count(name) > 1})
    if wrong or not names:
        raise ValueError(f"{flag}: {wrong or 'none'} given, choose of {', '.join(known)}, each once")


def timed_runs(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The runs whose training time is known: of those that diverged, and of those that were resumed after their last
    step, it is not."""
    return [run for run in runs if math.isfinite(run.values.get("train_seconds", math.nan))]


def steps_of_equal_time(runs: Sequence[ComparedRun], timing: Path, *, default: int) -> int:
    """The number of steps that take the median training time of ``runs``, by the time of a step of the short run in the
    folder ``timing``; the same in all processes.

    ``default``: the number of steps if no time is known, because ``runs`` is empty or all have diverged.
    """
    times = [run.values["train_seconds"] for run in timed_runs(runs)]
    steps = default
    if times:
        steps = max(1, round(1e3 * statistics.median(times) / read_run(timing, ()).values["step_ms"]))
    return int(agree(str(steps)))


def read_samples(folder: Path, count: int = 12) -> list[np.ndarray]:
    """The first ``count`` images that the run in ``folder`` has generated for test captions, uint8 ``[H, W, C]``."""
    files = sorted((folder / "generated").glob("*.png"))[:count]
    return [np.asarray(Image.open(file)) for file in files]


def add_samples(report: Report, samples: Mapping[str, Sequence[np.ndarray]]) -> None:
    """A table with the name of each run and its images ``[H, W, C]`` in a row; nothing if there are no images."""
    columns = max(map(len, samples.values()), default=0)
    if not columns:
        return
    rows = [[name, *images, *[""] * (columns - len(images))] for name, images in samples.items()]
    report.add_table(
        "Samples",
        ["run", *[""] * columns],
        rows,
        note="The images of a column are of the same caption or class.",
    )


def add_comparison(
    report: Report,
    title: str,
    runs: Sequence[ComparedRun],
    scores: Mapping[str, str] | None = None,
    *,
    seeds: int,
) -> None:
    """Adds a table with a row for each run and a column for each score that some run has.

    ``scores``: the heading of each score's column, by the score's name; None: `IMAGE_SCORES`. ``seeds``: number of
    seeds of each run. Of the other values see `ComparedRun`.
    """
    rows, scores = [], IMAGE_SCORES if scores is None else scores
    for name, values in runs:
        cells = [format_value(values[key]) if key in values else "" for key in scores]
        costs = [f"{values[key]:.0f}" if key in values else "" for key in COSTS]
        rows.append([name, *cells, f"{values['diverged']:.0f} of {seeds}", *costs])
    headings = ["run", *scores.values(), "diverged", *COSTS.values()]
    # Transposed, to drop the columns that are empty below the heading, and back.
    columns = [column for column in zip(headings, *rows, strict=True) if any(column[1:])]
    headings, *rows = zip(*columns, strict=True)
    report.add_table(
        title, headings, rows, note="Mean and standard deviation over the seeds that did not diverge."
    )
