"""What the gallery says about a run: the command that trained it, its time and its scores; and its samples."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.gallery.cells import Cell
from benchmarks.gallery.examples import read_test_examples
from benchmarks.gallery.kinds import KINDS, OTHER_RUNS, OTHER_SPLITS, Sample
from xmodal_jax.core.nesting import dotted
from xmodal_jax.data.open import is_generated
from xmodal_jax.report.run_comparison import StoredRun, read_stored_run
from xmodal_jax.train.run import format_value, to_json

ROOT = Path(__file__).parents[2]
SHOWN = "runs/{}"
"""How the page writes the directory of a run."""
NAMES = {"load": "xmodal_jax.inference", "overlay": "xmodal_jax.inference"}
NAMES |= {"read_test_examples": "benchmarks.gallery", "load_each": "benchmarks.gallery.kinds"}
"""The modules of the names that code on the page may use, besides NumPy."""


def open_runs(paths: Sequence[Path]) -> dict[str, StoredRun]:
    """The runs by the name of the script that trained them, in the order of `KINDS`.

    Raises:
      ValueError: a run has not ended or is of no kind that the gallery shows, or two are of the same kind.
    """
    runs: dict[str, StoredRun] = {}
    for path in paths:
        run = read_stored_run(path)
        kind = run.result.get("experiment")
        if kind is None:
            raise ValueError(f"{path} has no result.json: give runs that have ended")
        if kind not in KINDS:
            raise ValueError(f"{path} is a run of {kind}.py; the gallery shows those of {', '.join(KINDS)}")
        if kind in runs:
            raise ValueError(f"{runs[kind].path} and {path} are both of {kind}.py: give one run of each kind")
        runs[kind] = run
    return {kind: runs[kind] for kind in KINDS if kind in runs}


def describe_run(kind: str, run: StoredRun, hardware: str) -> dict[str, Any]:
    """The facts of a run's section, as plain values: command, times, scores."""
    timing, metrics = run.result["timing"], run.metrics
    facts = [f"{run.last_step:,} steps"] if run.last_step else []
    facts += [f"training {timing['train']:.0f} s"] if timing.get("train") else []
    facts += [f"in all {timing['total']:.0f} s" + (f" ({hardware})" if hardware else "")]
    return {
        "title": KINDS[kind].title,
        "summary": KINDS[kind].summary,
        "command": command_of(kind, run),
        "facts": ", ".join(facts),
        "scores": [
            [name, format_score(values), meaning]
            for pattern, meaning in KINDS[kind].scores.items()
            for name, values in metrics.items()
            if fnmatch.fnmatchcase(name, pattern)
        ],
    }


def format_score(values: Sequence[float | None]) -> str:
    """A score as reports show it, one near 0 with three decimals; ``values``: of all seeds."""
    if len(values) == 1 and values[0] is not None and abs(values[0]) < 1:
        return f"{values[0]:.3f}"
    return format_value(values if len(values) > 1 else values[0])


def command_of(kind: str, run: StoredRun) -> str:
    """The command that trained a run: the script, and the options that differ from its defaults."""
    words = ["python", f"experiments/{kind}.py"]
    if run.config.get("smoke"):  # whose configuration is a smaller one
        return shlex.join([*words, "--smoke"])
    defaults, implied = dict(dotted(to_json(_default_config(kind, run.config)))), KINDS[kind].implied
    for name, value in run.options.items():
        if value == defaults.get(name) or (name in implied and value == implied[name]):
            continue
        # `fixed_flags` is no flag: it says which flags were given. Without a flag generated data have no recipe.
        if name == "fixed_flags" or (name == "recipe" and value == "none" and _is_generated(run.config)):
            continue
        flag = "--" + name.removeprefix("input.").removesuffix(".name").replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *map(_shown, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _is_generated(config: Mapping[str, Any]) -> bool:
    """Whether the data set of a run, or all parts of a mixture, are generated."""
    data = config["data"]
    return all(map(is_generated, [data] if isinstance(data, str) else data))


def _default_config(kind: str, config: Mapping[str, Any]) -> Any:
    """The configuration of a script without flags; that of fusion.py depends on the task."""
    module = load_script(kind)
    return module.CommandConfig() if config.get("task") == "commands" else module.Config()


def load_script(name: str) -> ModuleType:
    """A script of experiments/ as a module."""
    folder = str(ROOT / "experiments")
    sys.path.insert(0, folder)  # scripts import each other by name
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def _shown(value: Any) -> str:
    """A value of a flag; of the directory of another run its name."""
    text = str(value)
    return SHOWN.format(Path(text).name) if "/" in text and not text.startswith("hf:") else text


def make_samples(
    kind: str, run: StoredRun, load_other: Callable[[str], Any], store: Callable[[Cell], Any]
) -> dict[str, Any]:
    """The samples of a run and its picture of the strip, as plain values.

    Args:
      kind: of the run.
      run: the run.
      load_other: ``load_other(kind)``: another trained run; None where none was given.
      store: ``store(cell)``: what stands for a cell in the values.
    """
    entry = KINDS[kind]
    model, test = entry.load(run.path), read_test_examples(run.path, entry.examples)
    samples, tables = [], []
    for sample in entry.samples:
        if not set(sample.needs) <= set(test):
            continue
        others = {
            name: load_other(OTHER_RUNS[name])
            if name in OTHER_RUNS
            else read_test_examples(run.path, OTHER_SPLITS[name], name)
            for name in _other_arguments(sample)
        }
        if None in others.values():
            continue
        shown = next((others[name] for name in others if name in OTHER_SPLITS), test)
        rows = sample.rows(sample.use(model, test, **others), shown)
        tables.append(rows)
        code = code_of(sample, kind, entry.examples, complete=not samples)
        facts = {"title": sample.title, "note": sample.note, "columns": list(sample.columns), "code": code}
        samples.append(facts | {"rows": [[store(cell) for cell in row] for row in rows]})
    if not samples:
        raise ValueError(f"{run.path}: the gallery shows no samples of {kind}.py on {', '.join(test)} alone")
    picture, text = entry.panel(tables)
    return {"samples": samples, "panel": {"picture": store(picture), "text": text}}


def _other_arguments(sample: Sample) -> list[str]:
    """The names of the other runs and splits that a sample takes."""
    return list(inspect.signature(sample.use).parameters)[2:]


def code_of(sample: Sample, kind: str, examples: int, *, complete: bool) -> str:
    """What a user types for a sample. ``complete``: with the lines that load the run and its test examples."""
    definition = inspect.getsource(sample.use).partition("\n")[2]
    body = textwrap.dedent(definition).replace("return ", "", 1)
    lines, path = [], SHOWN.format(kind)
    if complete:
        loader = "load_each" if KINDS[kind].load.__name__ == "load_each" else "load"
        lines += [f'model = {loader}("{path}")', f'test = read_test_examples("{path}", {examples})']
    lines += [
        f'{name} = load("{SHOWN.format(OTHER_RUNS[name])}")'
        if name in OTHER_RUNS
        else f'{name} = read_test_examples("{path}", {OTHER_SPLITS[name]}, "{name}")'
        for name in _other_arguments(sample)
    ]
    code = "\n".join([*lines, body.rstrip()])
    known = set() if complete else {"load", "read_test_examples"}  # which the first lines have imported
    return "\n".join([*_imports(code, known), code])


def _imports(code: str, known: set[str]) -> list[str]:
    """The lines that import what code uses, and an empty line; ``known``: the names that are imported already."""
    by_module: dict[str, list[str]] = {}
    for name, module in sorted(NAMES.items()):
        if name not in known and re.search(rf"\b{name}\(", code):
            by_module.setdefault(module, []).append(name)
    lines = ["import numpy as np", ""] if "np." in code else []
    lines += [f"from {module} import {', '.join(names)}" for module, names in sorted(by_module.items())]
    return [*lines, ""] if by_module else lines
