"""Memory, file descriptors and shared memory of a long run: what a step, an evaluation or a checkpoint leaves behind.

    python -m benchmarks.memory
    python -m benchmarks.memory --steps 1000

Runs ``experiments/contrastive.py`` with small networks, data from the host, and an evaluation and a checkpoint every
``--every`` steps, and looks at its processes twice a second. The table has the medians over the first and the last
tenth of the steps after a warm-up of a tenth; it fails where the memory grows by more than ``--limit``, or where the
number of open files or the shared memory grows at all.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import tyro

from benchmarks.kill import RUN, last_step

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclasses.dataclass(frozen=True)
class Config:
    """Length of the run, and what counts as growth."""

    steps: int = 5000
    """Steps of training."""
    every: int = 250
    """Steps between evaluations, and between checkpoints."""
    limit: float = 0.02
    """Largest growth of the resident memory, as a fraction."""
    parallel: str = "jit"
    """Mode of the run: jit, pmap or sharded."""


class Sample(NamedTuple):
    """What the run's processes hold at one moment."""

    step: int
    """The last step that the run has logged."""
    memory: float
    """Resident memory of all processes of the run, in MiB."""
    descriptors: int
    """Open files of all processes of the run."""
    shared: float
    """Size of the files in /dev/shm, in MiB."""


def descendants(pid: int) -> list[int]:
    """A process and all processes that it has started."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in descendants(int(child)))]


def take_sample(pid: int, run_dir: pathlib.Path) -> Sample | None:
    """A look at the run; None if one of its processes ended meanwhile."""
    try:
        pids = descendants(pid)
        pages = [int(pathlib.Path(f"/proc/{p}/statm").read_text().split()[1]) for p in pids]
        descriptors = sum(len(os.listdir(f"/proc/{p}/fd")) for p in pids)
    except (FileNotFoundError, ProcessLookupError):
        return None
    shared = sum(entry.stat().st_size for entry in os.scandir("/dev/shm") if entry.is_file())
    return Sample(last_step(run_dir), PAGE_MIB * sum(pages), descriptors, shared / 2**20)


def watch_run(config: Config, run_dir: pathlib.Path) -> list[Sample]:
    """Runs the experiment and returns what it held, twice a second.

    Raises:
      RuntimeError: the run failed; its output is in the message.
    """
    flags = [*RUN, "--steps", config.steps, "--checkpoint-every", config.every, "--eval-every", config.every]
    flags += ["--parallel", config.parallel, "--run-dir", run_dir]
    command = [sys.executable, ROOT / "experiments" / "contrastive.py", *map(str, flags)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        samples = []
        while process.poll() is None:
            samples.append(take_sample(process.pid, run_dir))
            time.sleep(0.5)
        output.seek(0)
        if process.returncode:
            raise RuntimeError(f"the run ended with code {process.returncode}:\n{output.read()[-3000:]}")
    return [sample for sample in samples if sample is not None]


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        samples = watch_run(config, pathlib.Path(folder) / "run")
    tenth = config.steps / 10
    first = [s for s in samples if tenth <= s.step < 2 * tenth]
    last = [s for s in samples if 9 * tenth <= s.step < config.steps]
    if not first or not last:
        raise SystemExit(f"{len(samples)} samples are too few: choose more --steps")
    grown = []
    print(f"| | steps {tenth:.0f} to {2 * tenth:.0f} | steps {9 * tenth:.0f} to {config.steps} | change |")
    print("|---|---|---|---|")
    for name, unit, limit in (
        ("memory", " MiB", config.limit),
        ("descriptors", "", 0.0),
        ("shared", " MiB", 0.0),
    ):
        before, after = (statistics.median(getattr(s, name) for s in part) for part in (first, last))
        change = after / before - 1 if before else float(after > 0)
        print(f"| {name} | {before:.1f}{unit} | {after:.1f}{unit} | {change:+.2%} |")
        if change > limit:
            grown.append(name)
    if grown:
        raise SystemExit(f"grew: {', '.join(grown)}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
