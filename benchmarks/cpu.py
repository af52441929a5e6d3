"""The library against PyTorch on a CPU: the same work, timed in turn.

    python -m benchmarks.cpu
    python -m benchmarks.cpu --cases dcgan vae --repeats 3

The first runs every case and writes docs/benchmarks/cpu.md and cpu.json; the second only prints the table (unless --out
is given). ``pip install -r requirements-bench.txt`` installs PyTorch and the libraries to compare with; without them
only JAX is timed.

The two sides run in separate processes, so that neither affects the other's threads and memory settings
(`core.runtime.configure` changes the process's malloc). Only one of them works at a time: one runs a variant for
``--seconds`` while the other sleeps, then the next variant follows, for ``--repeats`` rounds. The table has medians.
Everything is warmed up first.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import pathlib
import platform
import shlex
import sys
import time
from typing import Any

import tyro

from benchmarks.cases import CASES
from benchmarks.cases.sides import Row, rows, serve

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEFAULT_OUT = ROOT / "docs" / "benchmarks" / "cpu"
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "multivae",
    "numpy",
    "pillow",
)
SETTLE = 0.05
"""Seconds between two timings, after which the threads of the previous one have stopped waiting for work."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run, and how often."""

    cases: tuple[str, ...] = ()
    """Cases to run, of those in ``benchmarks/cases``; by default all."""
    repeats: int = 7
    """Timings of each variant; the table has the median."""
    seconds: float = 1.0
    """Least duration of a timing, in seconds; the work is repeated until then."""
    threads: int = 2
    """Number of cores and threads of each side."""
    out: pathlib.Path | None = None
    """Path of the report without its suffix: .md and .json are written. By default docs/benchmarks/cpu if all cases
    ran, else nothing is written."""

    def __post_init__(self):
        unknown = [case for case in self.cases if case not in CASES]
        if unknown:
            raise ValueError(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {self.repeats}")
        if self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}")


class Worker:
    """One side of one case in its own process; see `benchmarks.cases.sides.serve`."""

    def __init__(self, case: str, side: str, threads: int):
        context = multiprocessing.get_context("spawn")
        self.connection, child_connection = context.Pipe()
        # OpenMP reads these when it is loaded. They are the defaults of a machine with this number of cores.
        os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = context.Process(target=serve, args=(child_connection, case, side, threads))
        self.process.start()
        child_connection.close()
        ok, answer = self._receive()
        self.error = None if ok else answer
        self.description: dict[str, Any] = (
            answer if ok else {"variants": [], "parameters": None, "flops": None}
        )

    def _receive(self):
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            return False, f"the process ended with code {self.process.exitcode}"

    def ask(self, *request) -> tuple[bool, Any]:
        self.connection.send(request)
        return self._receive()

    def close(self) -> None:
        if self.process.is_alive():
            self.connection.send(None)
        self.process.join()


def run_case(case: str, config: Config) -> dict[str, Any]:
    """Times every variant of both sides: seconds per step by side and variant, and the reasons of those that failed."""
    workers = {"jax": Worker(case, "jax", config.threads)}
    result: dict[str, Any] = {"seconds": {}, "failed": {}, "parameters": {}, "flops": {}}
    try:
        if importlib.util.find_spec("torch") is None:
            result["failed"]["torch"] = "PyTorch is not installed"
        else:
            workers["torch"] = Worker(case, "torch", config.threads)
        turns = []
        for side, worker in workers.items():
            if worker.error:
                result["failed"][side] = worker.error
            result["parameters"][side] = worker.description["parameters"]
            result["flops"][side] = worker.description["flops"]
            for variant in worker.description["variants"]:
                for _ in range(2):
                    ok, answer = worker.ask("warm", variant)
                    if not ok:
                        result["failed"][f"{side} {variant}"] = answer
                        break
                else:
                    turns.append((side, variant))
        # Alternate between the sides: a variant of JAX, one of PyTorch, and so on.
        order = [[turn for turn in turns if turn[0] == side] for side in workers]
        turns = sorted(turns, key=lambda turn: order[list(workers).index(turn[0])].index(turn))
        for _ in range(config.repeats):
            for side, variant in turns:
                time.sleep(SETTLE)
                ok, answer = workers[side].ask("time", variant, config.seconds)
                if ok:
                    result["seconds"].setdefault(side, {}).setdefault(variant, []).append(answer)
                else:
                    result["failed"][f"{side} {variant}"] = answer
    finally:
        for worker in workers.values():
            worker.close()
    return result


def median(values: list[float]) -> float:
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def summarize(row: Row, timed: dict[str, Any]) -> dict[str, Any]:
    """The result of one row, from the times of its case: milliseconds, the ratio, and whether the goal is met."""
    seconds = {
        side: {f: median(v) for f, v in variants.items()} for side, variants in timed["seconds"].items()
    }
    jax_seconds, torch_seconds = seconds.get("jax", {}), seconds.get("torch", {})
    measured = jax_seconds.get(row.jax)
    peers = {variant: torch_seconds[variant] for variant in row.torch if variant in torch_seconds}
    best = min(peers, key=peers.get) if peers else None

    def fastest(compiled: bool):
        values = [v for variant, v in peers.items() if variant.startswith("compile") == compiled]
        return 1e3 * min(values) if values else None

    ratio = measured / peers[best] if measured is not None and best else None
    met = None
    if row.goal is not None and ratio is not None:
        met = ratio <= row.goal
    if row.limit is not None and measured is not None:
        met = measured <= row.limit and met is not False
    shown = {"jax": (row.jax, *row.others), "torch": row.torch}
    return {
        "name": row.name,
        "what": row.what,
        "jax_ms": None if measured is None else 1e3 * measured,
        "jax_variant": row.jax,
        "torch_eager_ms": fastest(False),
        "torch_compile_ms": fastest(True),
        "torch_variant": best,
        "ratio": ratio,
        "goal": row.goal,
        "limit_s": row.limit,
        "met": met,
        "variants_ms": {
            side: {
                variant: 1e3 * seconds[side][variant]
                for variant in variants
                if variant in seconds.get(side, {})
            }
            for side, variants in shown.items()
        },
        "all_ms": {
            side: {
                variant: [1e3 * v for v in timed["seconds"][side][variant]]
                for variant in variants
                if variant in seconds.get(side, {})
            }
            for side, variants in shown.items()
        },
        "failed": {
            name: why
            for name, why in timed["failed"].items()
            if name in ("jax", "torch")
            or any(name == f"{s} {f}" for s, variants in shown.items() for f in variants)
        },
        "parameters": _of_row(row, timed["parameters"]),
        "flops": _of_row(row, timed["flops"]),
    }


def _of_row(row: Row, by_side: dict[str, Any]) -> dict[str, int | None]:
    """A figure of each side for this row; sides give one for all rows of a case, or one per row."""
    return {side: v.get(row.name) if isinstance(v, dict) else v for side, v in by_side.items()}


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(results: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; below a ratio of 1 the library is faster."""
    lines = [
        "| case | JAX, ms | PyTorch eager, ms | torch.compile, ms | JAX / PyTorch | goal | met |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in results:
        goals = [] if row["goal"] is None else [f"≤ {row['goal']:.2f}"]
        goals += [] if row["limit_s"] is None else [f"≤ {row['limit_s']:.0f} s"]
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        met = {True: "yes", False: "no", None: "–"}[row["met"]]
        times = [milliseconds(row[k]) for k in ("jax_ms", "torch_eager_ms", "torch_compile_ms")]
        lines.append(f"| {' | '.join([row['name'], *times, ratio, ', '.join(goals) or '–', met])} |")
    return "\n".join(lines)


def notes(results: list[dict[str, Any]]) -> str:
    """For each row the work, every variant's median and range, the sizes of both sides, and what failed."""
    parts = []
    for row in results:
        lines = [f"**{row['name']}**: {row['what']}."]
        for side, label in (("jax", "JAX"), ("torch", "PyTorch")):
            variants = [
                f"{variant} {milliseconds(value)} ({milliseconds(min(all_))} to {milliseconds(max(all_))})"
                for (variant, value), all_ in zip(
                    row["variants_ms"][side].items(), row["all_ms"][side].values(), strict=True
                )
            ]
            if variants:
                lines.append(f"- {label}, ms: {'; '.join(variants)}")
        sizes = {k: [v for v in row[k].values() if v is not None] for k in ("parameters", "flops")}
        if sizes["parameters"] and sizes["flops"]:
            show = lambda values, unit: " and ".join(dict.fromkeys(unit.format(v) for v in values))
            parameters = show(sizes["parameters"], "{:,}")
            flops = show([v / 1e9 for v in sizes["flops"]], "{:.4g}")
            both = " on both sides" if len(sizes["flops"]) == 2 else ""
            lines.append(
                f"- {parameters} parameters, {flops} GFLOP in matrix products and convolutions{both}"
            )
        lines += [f"- left out: {name}: {why}" for name, why in row["failed"].items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe_run(config: Config) -> dict[str, Any]:
    """The date, the machine and the settings, which a reader needs to judge or repeat the times."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.cpu", *sys.argv[1:]]),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": config.threads,
        "load_before": load_average(),
        "repeats": config.repeats,
        "seconds_per_timing": config.seconds,
        "versions": versions(),
    }


def document(about: dict[str, Any], results: list[dict[str, Any]], left_out: dict[str, str]) -> str:
    used = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    load = "unknown" if about["load_before"] is None else f"{about['load_before']:.1f}"
    skipped = "\n".join(f"- {case}: {why}" for case, why in left_out.items())
    return f"""# On the CPU, against PyTorch

    {about["command"]}

{about["date"]}, {about["cpu"]}, {about["cores"]} cores, {about["threads"]} threads on each side, load average at the
start {load}. float32. Medians of {about["repeats"]} timings of at least {about["seconds_per_timing"]:g} s each, both
sides in turn, in a process each, warmed up; a step holds the forward and backward pass and the optimizer's update.

{table(results)}

JAX / PyTorch: JAX's time over that of the faster variant of PyTorch; below 1 the library is faster. Times are for one
step (one call for attention, one epoch for data, one process for start). Versions: {used}.

## Cases

{notes(results)}

## Left out

{skipped or "Nothing."}
"""


def main(config: Config) -> None:
    about, results, left_out = describe_run(config), [], {}
    chosen = config.cases or CASES
    for case in CASES:
        if case not in chosen:
            left_out[case] = "not chosen"
            continue
        start = time.perf_counter()
        timed = run_case(case, config)
        done = [summarize(row, timed) for row in rows(case)]
        results += done
        print(f"\n{table(done)}\n\n{notes(done)}\n{time.perf_counter() - start:.0f} s", flush=True)
    left_out |= {
        f"{row['name']}, {variant}": why for row in results for variant, why in row["failed"].items()
    }
    out = config.out or (DEFAULT_OUT if set(chosen) == set(CASES) else None)
    print(f"\n{table(results)}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(document(about, results, left_out), encoding="utf-8")
        report = {**about, "rows": results, "left_out": left_out}
        out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"\n{out.with_suffix('.md')}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
