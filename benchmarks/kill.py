"""Runs that are killed with ``kill -9`` at random moments and resumed, compared with a run that is not killed.

    python -m benchmarks.kill
    python -m benchmarks.kill --modes pmap --kills 5

Every process runs a small ``experiments/contrastive.py`` on four fake devices, with dropout, augmentation, an average
of the parameters, data from the host and a checkpoint every other step. Half of the kills come at a uniformly random
moment of the process's life, the other half at a random moment after the start of a checkpoint write. A run may be
killed again after it was resumed, until it ends by itself. Then its parameters, optimizer state, average, random keys,
metrics and results must be equal, bit for bit, to those of the undisturbed run; any difference is an error. About 30
minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np
import tyro

from xmodal_jax.core.trees import leaf_names
from xmodal_jax.train.checkpoint import newest_checkpoint, read_state

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODES = {
    "jit": ["--parallel", "jit"],
    "pmap": ["--parallel", "pmap"],
    "sharded": ["--parallel", "sharded", "--fsdp", "2"],
}
RUN = """--data shapes --modalities text image --train-size 200 --gallery 20 --steps 16 --batch-size 16 --no-resident
    --checkpoint-every 2 --eval-every 4 --optimizer.ema 0.9 --model.text.width 16 --model.text.depth 1
    --model.text.heads 2 --model.text.dropout 0.1 --model.image.width 8 --model.image.depth 1
    --model.image.dropout 0.1""".split()
WRITING = "*.orbax-checkpoint-tmp*"


@dataclasses.dataclass(frozen=True)
class Config:
    """How many kills, in which modes."""

    modes: tuple[str, ...] = tuple(MODES)
    """Modes of ``--parallel``: jit, pmap, sharded."""
    kills: int = 20
    """Kills in each mode."""
    seed: int = 0
    """Seed of the moments of the kills."""


class Kill(NamedTuple):
    """One kill, and the state that it left."""

    mode: str
    run: int
    seconds: float
    """Time after the start of the process."""
    step: int
    """The last step in metrics.jsonl."""
    writing: bool
    """Whether a checkpoint was half written."""


def start(directory: pathlib.Path, mode: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "experiments/contrastive.py",
        *RUN,
        *MODES[mode],
        "--run-dir",
        directory,
        "--resume",
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    with open(f"{directory}.log", "a") as log:
        return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, stdout=log, stderr=log)


def half_written(directory: pathlib.Path) -> set[pathlib.Path]:
    return set((directory / "checkpoints").glob(f"*/{WRITING}"))


def wait_until_killed(
    process: subprocess.Popen, directory: pathlib.Path, rng: random.Random, *, life: float
) -> bool:
    """Kills the process at a random moment; False if it ends by itself before."""
    started = time.perf_counter()
    if rng.random() < 0.5:
        moment, write = rng.uniform(0, life), None
    else:
        moment, write = rng.uniform(0, 0.15), rng.randrange(1, 8)
    old, seen, since = half_written(directory), set(), started if write is None else None
    while process.poll() is None:
        if write is not None and since is None:
            seen |= half_written(directory) - old
            since = time.perf_counter() if len(seen) >= write else None
        if since is not None and time.perf_counter() - since >= moment:
            process.kill()
            process.wait()
            return process.returncode != 0
        time.sleep(0.001)
    if process.returncode != 0:
        raise SystemExit(f"a run failed by itself; see {directory}.log")
    return False


def last_step(directory: pathlib.Path) -> int:
    file = directory / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
    """The names of what differs between two finished runs, compared bit for bit."""
    unequal = []
    for best in (False, True):
        folders = [newest_checkpoint(run, best=best) for run in (a, b)]
        if folders[0].name != folders[1].name:
            unequal.append(f"step of the {'best' if best else 'newest'} checkpoint")
            continue
        one, other = (jax.tree.map(np.asarray, read_state(folder)) for folder in folders)
        for name, x, y in zip(leaf_names(one), jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            if x.dtype != y.dtype or x.tobytes() != y.tobytes():
                unequal.append(name)
    if (a / "metrics.jsonl").read_bytes() != (b / "metrics.jsonl").read_bytes():
        unequal.append("metrics.jsonl")
    results = [json.loads((run / "result.json").read_text())["metrics"] for run in (a, b)]
    return unequal + ([] if results[0] == results[1] else ["result.json"])


class ModeResult(NamedTuple):
    """The kills in one mode, and how the runs ended."""

    kills: list[Kill]
    ended: int
    """Runs that ended by themselves."""
    unequal: int
    """Runs among them that differ from the undisturbed one."""


def run_undisturbed(folder: pathlib.Path, mode: str) -> tuple[pathlib.Path, float]:
    """The directory of an undisturbed run, and the seconds that a run takes when its programs are in the cache."""
    undisturbed, second = folder / f"{mode}-undisturbed", folder / f"{mode}-again"
    start(undisturbed, mode).wait()  # fills the compilation cache
    started = time.perf_counter()
    start(second, mode).wait()
    life = time.perf_counter() - started
    if unequal := differences(undisturbed, second):
        raise SystemExit(f"{mode}: two undisturbed runs differ in {', '.join(unequal)}")
    return undisturbed, life


def run_with_kills(
    directory: pathlib.Path, mode: str, number: int, rng: random.Random, *, life: float, limit: int
) -> list[Kill]:
    """Kills and resumes one run until it ends by itself, or has been killed ``limit`` times and may end."""
    kills: list[Kill] = []
    while True:
        started, left_over = time.perf_counter(), half_written(directory)
        process = start(directory, mode)
        if len(kills) >= limit:
            process.wait()
            return kills
        if not wait_until_killed(process, directory, rng, life=life):
            return kills
        seconds, writing = time.perf_counter() - started, bool(half_written(directory) - left_over)
        kills.append(Kill(mode, number, seconds, last_step(directory), writing))
        where = "while writing a checkpoint" if writing else ""
        print(f"{mode:8} run {number}: killed after {seconds:5.1f} s, step {kills[-1].step:2} {where}")


def run_mode(folder: pathlib.Path, mode: str, count: int, rng: random.Random) -> ModeResult:
    """Runs in one mode until there have been ``count`` kills."""
    undisturbed, life = run_undisturbed(folder, mode)
    result = ModeResult([], 0, 0)
    for number in itertools.count():
        if len(result.kills) >= count:
            return result
        directory = folder / f"{mode}-{number}"
        limit = count - len(result.kills)
        kills = run_with_kills(directory, mode, number, rng, life=life, limit=limit)
        unequal = differences(undisturbed, directory)
        result = ModeResult(result.kills + kills, result.ended + 1, result.unequal + bool(unequal))
        how = f"with differences in {unequal}" if unequal else "bit-identical"
        print(f"{mode:8} run {number}: ended {how}", flush=True)
    raise AssertionError("unreachable")


def main(config: Config) -> None:
    rng = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        results = {mode: run_mode(pathlib.Path(folder), mode, config.kills, rng) for mode in config.modes}
    heads = "mode | kills | while writing a checkpoint | before the first step | runs ended | bit-identical"
    print(f"\n| {heads} |\n|---|---|---|---|---|---|")
    for mode, (kills, ended, unequal) in results.items():
        writing, early = sum(k.writing for k in kills), sum(k.step == 0 for k in kills)
        print(f"| {mode} | {len(kills)} | {writing} | {early} | {ended} | {ended - unequal} |")
    if wrong := sum(result.unequal for result in results.values()):
        raise SystemExit(f"{wrong} runs ended differently from the undisturbed one")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
