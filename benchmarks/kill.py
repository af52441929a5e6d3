"""Runs that are interrupted at random moments and resumed, compared with a run that is not.

    python -m benchmarks.kill
    python -m benchmarks.kill --setups pmap gan --kills 5

Every process runs a small experiment with a checkpoint every other step: ``experiments/contrastive.py`` on four fake
devices (with dropout, augmentation, an average of the parameters and data from the host) in each mode, with two seeds
and with two processes, the same on tar shards, and the smoke runs of a GAN and of a VAE. It gets SIGKILL, SIGTERM,
SIGINT, or SIGSTOP and then SIGCONT. A quarter of the signals come at a uniformly random moment of the process's life;
the others are aimed at the compilation, at the writing of a checkpoint, at the evaluation, and at what follows the last
step. A run may be interrupted again after it was resumed, until it ends by itself. Then its parameters, optimizer
state, average, random keys, metrics and results must be equal, bit for bit, to those of the undisturbed run; any
difference is an error. About two minutes for each kill and resumption of all setups on two cores.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import tyro
from PIL import Image

from xmodal_jax.core.trees import leaf_names
from xmodal_jax.data import DataOptions, open_source
from xmodal_jax.train.checkpoint import newest_checkpoint, read_state

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHAPES = "--data shapes --train-size 200".split()
SHARDS = "--data tar:{folder}/shards --image-size 32 --memory-limit-gib 1e-6".split()
"""The same examples in tar shards, read again for each batch; ``{folder}`` is that of all runs."""
RUN = """--modalities text image --gallery 20 --steps 16 --batch-size 16 --no-resident
    --checkpoint-every 2 --eval-every 4 --optimizer.ema 0.9 --model.text.width 16 --model.text.depth 1
    --model.text.heads 2 --model.text.dropout 0.1 --model.image.width 8 --model.image.depth 1
    --model.image.dropout 0.1""".split()
WRITING = "*.orbax-checkpoint-tmp*"
SMOKE = ["--smoke", "--checkpoint-every", "2"]


def write_shards(folder: pathlib.Path, shards: int = 4) -> None:
    """Writes examples of the embedded data set as tar shards in WebDataset's layout, for training and test."""
    options = DataOptions(train_size=200, modalities=("text", "image"))
    folder.mkdir()
    for split in ("train", "test"):
        source = open_source("shapes", split, options)
        for number, indices in enumerate(np.array_split(np.arange(len(source)), shards)):
            batch = source.batch(indices)
            with tarfile.open(folder / f"{split}-{number:03d}.tar", "w") as file:
                for index, image, caption in zip(indices, batch["image"], batch["caption"], strict=True):
                    png = io.BytesIO()
                    Image.fromarray(image).save(png, "png")
                    for field, content in (("png", png.getvalue()), ("txt", caption.encode())):
                        member = tarfile.TarInfo(f"{index:06d}.{field}")
                        member.size = len(content)
                        file.addfile(member, io.BytesIO(content))


class Setup(NamedTuple):
    """What is run."""

    flags: Sequence[str]
    script: str = "contrastive"
    processes: int = 1


SETUPS = {
    "jit": Setup([*SHAPES, *RUN, "--parallel", "jit"]),
    "pmap": Setup([*SHAPES, *RUN, "--parallel", "pmap"]),
    "sharded": Setup([*SHAPES, *RUN, "--parallel", "sharded", "--fsdp", "2"]),
    "seeds": Setup([*SHAPES, *RUN, "--seeds", "2"]),
    "processes": Setup([*SHAPES, *RUN, "--parallel", "pmap"], processes=2),
    "tar": Setup([*SHARDS, *RUN, "--parallel", "jit"]),
    "tar_processes": Setup([*SHARDS, *RUN, "--parallel", "pmap"], processes=2),
    "gan": Setup(SMOKE, "text_to_image_gan"),
    "vae": Setup(SMOKE, "vae"),
}
DEVICES = 4
GRACE = 60.0
"""Seconds in which processes must end after a signal that ends them."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
AIMS = ("any moment", "compilation", "checkpoint", "evaluation", "report")


@dataclasses.dataclass(frozen=True)
class Config:
    """How many kills, in which setups."""

    setups: tuple[str, ...] = tuple(SETUPS)
    """What is run, see `SETUPS`."""
    kills: int = 16
    """Signals in each setup; each of the four signals comes as often."""
    seed: int = 0
    """Seed of the moments of the signals."""


class Kill(NamedTuple):
    """One interruption, and the state that it left."""

    setup: str
    run: int
    signal: signal.Signals
    aim: str
    """One of `AIMS`."""
    seconds: float
    """Time after the start of the process."""
    step: int
    """The last step in metrics.jsonl."""
    writing: bool
    """Whether a checkpoint was half written."""
    hung: bool
    """Whether the processes had not ended `GRACE` seconds after the signal, so that they had to be killed."""


class Processes:
    """The processes of one run, which get signals together."""

    def __init__(self, directory: pathlib.Path, setup: Setup):
        command = [
            sys.executable,
            f"experiments/{setup.script}.py",
            *(flag.format(folder=directory.parent) for flag in setup.flags),
            "--run-dir",
            directory,
            "--resume",
        ]
        with socket.socket() as s:
            s.bind(("localhost", 0))
            address = f"localhost:{s.getsockname()[1]}"
        self.running = []
        for number in range(setup.processes):
            count = DEVICES // setup.processes
            env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"}
            env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
            if setup.processes > 1:
                env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(setup.processes)}
                env["JAX_PROCESS_ID"] = str(number)
            with open(f"{directory}-{number}.log", "a") as log:
                self.running.append(
                    subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, stdout=log, stderr=log)
                )

    def poll(self) -> int | None:
        """The status of the first process that failed, 0 if all have ended, None while they run."""
        statuses = [process.poll() for process in self.running]
        failed = [status for status in statuses if status]
        return failed[0] if failed else None if None in statuses else 0

    def send(self, number: signal.Signals) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, seconds: float = 900.0) -> int:
        """The status when all have ended; those that outlive the first one that failed are ended.

        Raises:
          TimeoutError: they did not end in time. Their logs then tell where their threads stood.
        """
        deadline = time.perf_counter() + seconds
        while (status := self.poll()) is None:
            if time.perf_counter() > deadline:
                self.send(signal.SIGABRT)  # on which the fault handler writes all threads' tracebacks
                time.sleep(2.0)
                self.send(signal.SIGKILL)
                for process in self.running:
                    process.wait()
                raise TimeoutError(f"a run hung for {seconds} s")
            time.sleep(0.02)
        if status:
            time.sleep(2.0)
            self.send(signal.SIGKILL)
        for process in self.running:
            process.wait()
        return status


def half_written(directory: pathlib.Path) -> set[pathlib.Path]:
    return set((directory / "checkpoints").glob(f"*/{WRITING}"))


def is_reached(aim: str, directory: pathlib.Path, before: int, written: set[pathlib.Path]) -> bool:
    """Whether a process has come to what a signal is aimed at.

    Args:
      aim: one of `AIMS`.
      directory: the run's.
      before: the last step that had been logged when the process began.
      written: the checkpoints that were half written then.
    """
    if aim == "compilation":
        return (directory / "config.json").exists()
    if aim == "checkpoint":
        return bool(half_written(directory) - written)
    if aim == "evaluation":
        return last_step(directory) > before and last_step(directory) % 4 in (0, 3)
    if aim == "report":
        return (directory / "result.json").exists()
    return True


def interrupt(
    processes: Processes, directory: pathlib.Path, number: signal.Signals, aim: str, moment: float
) -> bool:
    """Sends a signal some time (``moment``, in seconds) after the processes have come to what it is aimed at, and
    waits for their end; False if they ended by themselves before."""
    before, written = last_step(directory), half_written(directory)
    reached = None
    while processes.poll() is None:
        if reached is None and is_reached(aim, directory, before, written):
            reached = time.perf_counter()
        if reached is not None and time.perf_counter() - reached >= moment:
            processes.send(number)
            if number == signal.SIGSTOP:
                time.sleep(1.0)
                processes.send(signal.SIGCONT)
            return True
        time.sleep(0.001)
    if processes.wait():
        raise SystemExit(f"a run failed by itself; see {directory}-0.log")
    return False


def last_step(directory: pathlib.Path) -> int:
    file = directory / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
    """The names of what differs between two finished runs, compared bit for bit."""
    unequal = []
    for best in (False, True):
        if best and not any(list((run / "checkpoints" / "best").glob("*")) for run in (a, b)):
            continue  # an experiment without a score to choose by
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


class SetupResult(NamedTuple):
    """The signals in one setup, and how the runs ended."""

    kills: list[Kill]
    ended: int
    """Runs that ended by themselves."""
    unequal: int
    """Runs among them that differ from the undisturbed one."""


def run_undisturbed(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, float]:
    """The directory of an undisturbed run, and the seconds that a run takes when its programs are in the cache."""
    undisturbed, second = folder / f"{name}-undisturbed", folder / f"{name}-again"
    Processes(undisturbed, SETUPS[name]).wait()  # fills the compilation cache
    started = time.perf_counter()
    if Processes(second, SETUPS[name]).wait():
        raise SystemExit(
            f"{name}: the run fails by itself: {(folder / f'{second.name}-0.log').read_text()[-2000:]}"
        )
    life = time.perf_counter() - started
    if unequal := differences(undisturbed, second):
        raise SystemExit(f"{name}: two undisturbed runs differ in {', '.join(unequal)}")
    return undisturbed, life


def run_with_kills(
    directory: pathlib.Path, name: str, number: int, rng: random.Random, *, life: float, done: int, limit: int
) -> list[Kill]:
    """Interrupts and resumes one run until it ends by itself, or has been interrupted ``limit`` times and may end.

    ``done``: how many signals this setup has had, so that signals and aims come in turn.
    """
    kills: list[Kill] = []
    while True:
        started, left_over = time.perf_counter(), half_written(directory)
        processes = Processes(directory, SETUPS[name])
        if len(kills) >= limit:
            if processes.wait():
                raise SystemExit(f"a run failed by itself; see {directory}-0.log")
            return kills
        sent, aim = SIGNALS[(done + len(kills)) % len(SIGNALS)], rng.choice(AIMS)
        moment = rng.uniform(0, life) if aim == "any moment" else rng.uniform(0, 0.5)
        if not interrupt(processes, directory, sent, aim, moment):
            return kills
        seconds, writing = time.perf_counter() - started, bool(half_written(directory) - left_over)
        step, status, hung = last_step(directory), None, False
        try:
            # A run that was only stopped may go on to its end.
            status = processes.wait(GRACE + 10 * life if sent == signal.SIGSTOP else GRACE)
        except TimeoutError:
            hung = True
        kills.append(Kill(name, number, sent, aim, seconds, step, writing, hung))
        after = f"; not ended {GRACE:.0f} s later" if hung else ""
        print(
            f"{name:10} run {number}: {sent.name} after {seconds:5.1f} s, {aim}, step {step:2}{after}",
            flush=True,
        )
        if status == 0:  # it was only stopped, or was at its end
            return kills


def run_setup(folder: pathlib.Path, name: str, count: int, rng: random.Random) -> SetupResult:
    """Runs in one setup until there have been ``count`` signals."""
    undisturbed, life = run_undisturbed(folder, name)
    result = SetupResult([], 0, 0)
    for number in itertools.count():
        if len(result.kills) >= count:
            return result
        directory, done = folder / f"{name}-{number}", len(result.kills)
        kills = run_with_kills(directory, name, number, rng, life=life, done=done, limit=count - done)
        unequal = differences(undisturbed, directory)
        result = SetupResult(result.kills + kills, result.ended + 1, result.unequal + bool(unequal))
        how = f"with differences in {unequal}" if unequal else "bit-identical"
        print(f"{name:10} run {number}: ended {how}", flush=True)
    raise AssertionError("unreachable")


def main(config: Config) -> None:
    rng = random.Random(config.seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kill-"))
    write_shards(folder / "shards")
    print(f"runs and logs: {folder} (kept if a run fails, differs or hangs)", flush=True)
    results = {name: run_setup(folder, name, config.kills, rng) for name in config.setups}
    heads = " | ".join(
        [
            "setup",
            *(s.name for s in SIGNALS),
            *AIMS,
            "half-written checkpoint",
            "hung",
            "runs",
            "bit-identical",
        ]
    )
    print(f"\n| {heads} |\n|{'---|' * (heads.count('|') + 1)}")
    for name, (kills, ended, unequal) in results.items():
        cells = [sum(k.signal == s for k in kills) for s in SIGNALS] + [
            sum(k.aim == aim for k in kills) for aim in AIMS
        ]
        cells += [sum(k.writing for k in kills), sum(k.hung for k in kills), ended, ended - unequal]
        print(f"| {name} | {' | '.join(map(str, cells))} |")
    wrong = sum(result.unequal for result in results.values())
    hung = sum(kill.hung for result in results.values() for kill in result.kills)
    if wrong or hung:
        raise SystemExit(
            f"{wrong} runs ended differently from the undisturbed one; {hung} hung after a signal; see {folder}"
        )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
