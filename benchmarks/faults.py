"""Faulty inputs, thousands of them, and what comes of each.

    python -m benchmarks.faults                              # everything, with seed 0
    python -m benchmarks.faults --only metadata arrays --count 100
    python -m benchmarks.faults --only metadata --index 17   # one input again, with its traceback

Each kind of input (see `benchmarks.fault_kinds`) is drawn from the seed and its number alone, and its generator knows
the right answer, or that the input must be refused. A kind runs in a process of its own with a limit of memory; a
process that does not answer is ended and counts as hung. The table has a row for each kind: how many inputs were
tried, and how many came out right, were refused with file and field, raised a raw exception, hung, or were wrong in
silence. The last three must be 0, otherwise the exit status is 1 and the inputs are listed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator

import tyro

from benchmarks.fault_kinds import OUTCOMES, Kind, Result, draw, judge, time_limit

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS = ("metadata", "media", "arrays", "parquet", "tar", "safetensors", "configs", "tokenizers", "spoken", "rating",
         "flags", "checkpoints")  # fmt: skip
"""Modules of `benchmarks.fault_kinds`."""
BAD = ("raw", "hung", "wrong")
WORDS = {"refused": "refused with file and field", "wrong": "silently wrong"}
"""Heads of the table for outcomes."""
START_SECONDS = 180.0
"""Time limit of the start of a process."""
READY = b"ready"
"""The first line of a process, when it has imported what it tries."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to try."""

    seed: int = 0
    """Seed of all inputs."""
    only: tuple[str, ...] = KINDS
    """Kinds of inputs."""
    count: int | None = None
    """Inputs of each kind; None: as many as the kind has in a full run."""
    index: int | None = None
    """Try this input alone, in this process, and show its traceback."""
    start: int = 0
    """Number of the first input."""
    by_fault: bool = False
    """Whether the table has a row for each fault, not only for each kind."""
    out: pathlib.Path | None = None
    """File for all results, as JSON lines."""
    memory_gib: float = 24.0
    """Limit of the address space of a process, GiB; much of it is reserved and never used."""
    worker: bool = False
    """Try the inputs in this process and print results as JSON lines; the other processes are started so."""

    def __post_init__(self):
        unknown = [name for name in self.only if name not in KINDS]
        if unknown:
            raise SystemExit(f"--only: {unknown[0]!r} is none of {', '.join(KINDS)}")


def load(name: str) -> Kind:
    """The kind of a module of `benchmarks.fault_kinds`."""
    return importlib.import_module(f"benchmarks.fault_kinds.{name}").KIND


def try_here(kind: Kind, seed: int, indices: Iterable[int]) -> Iterator[Result]:
    """The results of inputs of one kind, tried in this process."""
    with tempfile.TemporaryDirectory() as root:
        for index in indices:
            folder = pathlib.Path(root) / str(index)
            folder.mkdir()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                result = judge(kind, seed, index, folder)
            yield result
            shutil.rmtree(folder, ignore_errors=True)


def show(kind: Kind, seed: int, index: int) -> None:
    """Tries one input, and prints its files, the right answer, and what comes of it."""
    folder = pathlib.Path(tempfile.mkdtemp())
    case = draw(kind, seed, index, folder)
    print(f"{case.fault} in {folder}\nexpected: {case.expected!r}, mentions {case.mentions}")
    try:
        with time_limit(kind.seconds):
            print(f"value: {case.attempt()!r}")
    except BaseException:
        traceback.print_exc()


def try_in_process(config: Config, name: str) -> Iterator[Result]:
    """The results of all inputs of one kind, tried in a process that is started anew after it hung or crashed."""
    kind = load(name)
    index, stop = config.start, config.start + (config.count or kind.count)
    while index < stop:
        command = [sys.executable, "-m", "benchmarks.faults", "--worker", "--only", name]
        options = {
            "seed": config.seed,
            "start": index,
            "count": stop - index,
            "memory-gib": config.memory_gib,
        }
        command += [word for flag, value in options.items() for word in (f"--{flag}", str(value))]
        env = {"JAX_PLATFORMS": "cpu", **os.environ}
        with (
            tempfile.TemporaryFile() as log,  # libraries report there what they go on to raise
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=env) as process,
        ):
            for line in _lines(process, START_SECONDS, 2 * kind.seconds + 5):
                if line == READY:
                    continue
                result = Result(*json.loads(line))
                index = result.index + 1
                yield result
            hung = process.poll() is None
            process.kill()
            log.seek(0)
            last = (log.read().decode(errors="replace").strip().splitlines() or [""])[-1]
        if index < stop:
            outcome = "hung" if hung else "raw"
            detail = "no answer" if hung else f"the process ended with status {process.returncode}: {last}"
            yield Result(name, index, "(the process)", outcome, detail)
            index += 1


def _lines(process: subprocess.Popen, first: float, later: float) -> Iterator[bytes]:
    """The lines that a process prints, until it ends, or prints none for some seconds: ``first`` before the first
    line, then ``later``."""
    rest, limit = b"", first
    while True:
        ready, _, _ = select.select([process.stdout], [], [], limit)
        chunk = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        if not chunk:
            if ready:
                process.wait()
            return
        *lines, rest = (rest + chunk).split(b"\n")
        limit = later if lines else limit
        yield from lines


def table(results: Iterable[Result], by_fault: bool = False) -> str:
    """A Markdown table with a row for each kind and one for all; with ``by_fault`` also one for each fault."""
    counts: dict[tuple[str, str], collections.Counter] = {}
    total: collections.Counter = collections.Counter()
    for result in results:
        total[result.outcome] += 1
        for row in (result.fault, "") if by_fault else ("",):
            counts.setdefault((result.kind, row), collections.Counter())[result.outcome] += 1
    rows = [(f"{kind}: {fault}" if fault else kind, count) for (kind, fault), count in sorted(counts.items())]
    heads = ["tried", *(WORDS.get(outcome, outcome) for outcome in OUTCOMES)]
    lines = [f"| kind | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, count in [*rows, ("all", total)]:
        lines.append(f"| {name} | {count.total():,} | {' | '.join(f'{count[o]:,}' for o in OUTCOMES)} |")
    return "\n".join(lines)


def main(config: Config) -> None:
    if config.index is not None:
        show(load(config.only[0]), config.seed, config.index)
        return
    if config.worker:
        limit = int(config.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        results_file = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # libraries that print do not disturb the results
        kind = load(config.only[0])
        stop = config.start + (config.count or kind.count)
        print(READY.decode(), file=results_file, flush=True)
        for result in try_here(kind, config.seed, range(config.start, stop)):
            print(json.dumps(result), file=results_file, flush=True)
        return
    results: list[Result] = []
    for name in config.only:
        started = time.perf_counter()
        for result in try_in_process(config, name):
            results.append(result)
        count = collections.Counter(result.outcome for result in results if result.kind == name)
        print(f"{name}: {dict(count)} in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    if config.out:
        config.out.write_text("".join(json.dumps(result._asdict()) + "\n" for result in results))
    print(table(results, config.by_fault))
    bad = [result for result in results if result.outcome in BAD]
    for result in bad[:100]:
        print(f"{result.outcome}: {result.kind} {result.index} ({result.fault}): {result.detail}")
    if bad:
        raise SystemExit(f"{len(bad)} of {len(results)} inputs came out raw, hung or wrong")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
