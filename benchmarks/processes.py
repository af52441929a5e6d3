"""Whether the default experiment has the same loss curve with one process and with several.

    python -m benchmarks.processes

Every run has four CPU devices in total, divided among the processes, which communicate over this machine's network. The
model is the default of ``experiments/contrastive.py`` (text, images, speech; with its dropout and augmentation), with
fewer steps. About five minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy as np
import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEVICES = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    steps: int = 20
    """Steps of each run."""
    modes: tuple[str, ...] = ("pmap", "sharded")
    """Modes of ``--parallel``."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes, each a divisor of four; all are compared with the first."""


def train(directory: pathlib.Path, mode: str, processes: int, steps: int) -> list[dict]:
    """Runs the experiment and returns the lines of its metrics.jsonl."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    command = (
        f"experiments/contrastive.py --train-size 600 --gallery 50 --steps {steps} --eval-every {steps // 2}"
    )
    command += f" --optimizer.warmup 0.5 --parallel {mode} --run-dir {directory}"
    started = []
    for process in range(processes):
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES // processes}"
        if processes > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
            env["JAX_PROCESS_ID"] = str(process)
        with open(f"{directory}-{process}.log", "w") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, *command.split()], cwd=ROOT, env=env, stdout=log, stderr=log
                )
            )
    for process, running in enumerate(started):
        if running.wait():
            raise SystemExit(pathlib.Path(f"{directory}-{process}.log").read_text()[-3000:])
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def main(config: Config) -> None:
    print("| mode | processes x devices | first loss | last loss | largest relative difference of the loss |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for mode in config.modes:
            reference = None
            for processes in config.processes:
                lines = train(pathlib.Path(folder) / f"{mode}-{processes}", mode, processes, config.steps)
                loss = np.array([row["train/loss"] for row in lines if "train/loss" in row])
                reference = loss if reference is None else reference
                difference = np.abs(loss - reference).max() / np.abs(reference).min()
                shown = f"{difference:.1e}" if loss is not reference else ""
                where = f"{processes} x {DEVICES // processes}"
                print(f"| {mode} | {where} | {loss[0]:.6f} | {loss[-1]:.6f} | {shown} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
