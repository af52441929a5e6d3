"""Starts `tests.train.worker` in processes of its own, which share this one's settings and compilation cache."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from unittest import mock

from tests.train import worker

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(run_dir, *, processes=1, devices=4, **settings) -> list[subprocess.Popen]:
    """The same run in ``processes`` processes with ``devices`` fake devices in all."""
    flags = re.sub(r"(?<=device_count=)\d+", str(devices // processes), os.environ["XLA_FLAGS"])
    shared = {**os.environ, "XLA_FLAGS": flags, "XMODAL_CONFIGURE": "0", "PYTHONWARNINGS": "ignore"}
    address = f"localhost:{free_port()}"
    started = []
    for process in range(processes):
        place = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.train.worker", str(run_dir), json.dumps(settings)],
                cwd=ROOT,
                env={**shared, **(place if processes > 1 else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started, *, timeout=120) -> list[tuple[int, str, str]]:
    """Exit status, standard output and standard error of each; all are killed if they take longer."""
    try:
        out = [p.communicate(timeout=timeout) for p in started]
    except subprocess.TimeoutExpired:
        for p in started:
            p.kill()
        raise AssertionError("\n".join(p.communicate()[1][-2000:] for p in started)) from None
    return [(p.returncode, *texts) for p, texts in zip(started, out, strict=True)]


def train(run_dir, **options) -> None:
    """A whole run; fails if a process does."""
    for status, _, errors in finish(start(run_dir, **options)):
        assert status == 0, errors[-3000:]


def train_here(run_dir, **settings) -> None:
    """A whole run in this process."""
    with mock.patch.dict(os.environ, {"XMODAL_CONFIGURE": "0"}):
        worker.main(str(run_dir), settings)


def metrics(run_dir) -> list[dict]:
    return [json.loads(line) for line in (pathlib.Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
