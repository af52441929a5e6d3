"""The default experiment as one and as several real processes: are the loss curves the same?

    python -m benchmarks.processes

Every run has four CPU devices in all, which the processes share out; they talk over the network of this machine. The
default model of ``experiments/contrastive.py`` (text, images, speech; dropout and augmentation as it has them), fewer
steps. About five minutes on two cores.
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
    """How long."""

    steps: int = 20
    """Steps of each run."""
    modes: tuple[str, ...] = ("pmap", "sharded")
    """Ways to run."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes, each a divisor of four; the others are compared with the first."""


def train(directory: pathlib.Path, mode: str, processes: int, steps: int) -> list[dict]:
    """The rows of metrics.jsonl."""
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
            whole = None
            for processes in config.processes:
                rows = train(pathlib.Path(folder) / f"{mode}-{processes}", mode, processes, config.steps)
                loss = np.array([row["train/loss"] for row in rows if "train/loss" in row])
                whole = loss if whole is None else whole
                apart = np.abs(loss - whole).max() / np.abs(whole).min()
                shown = f"{apart:.1e}" if loss is not whole else ""
                where = f"{processes} x {DEVICES // processes}"
                print(f"| {mode} | {where} | {loss[0]:.6f} | {loss[-1]:.6f} | {shown} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
