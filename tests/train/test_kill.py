"""``kill -9`` in the middle of a run and in the middle of a checkpoint (benchmarks/kill.py does it at length)."""

import random
import time

import jax
import numpy as np
import pytest

from benchmarks.kill import half_written
from tests.train import processes
from xmodal_jax.core.trees import leaf_names
from xmodal_jax.train.checkpoint import newest_checkpoint, read_state


def kill_when(ready, process, pause):
    for _ in range(20_000):
        if ready() or process.poll() is not None:
            break
        time.sleep(0.003)
    time.sleep(pause)
    process.kill()
    process.communicate()


def complete(folder):
    """The checkpoints that are written to the end."""
    return [path for path in (folder / "checkpoints" / "newest").glob("*") if path.name.isdigit()]


@pytest.mark.parametrize(
    "mode,fsdp,moments",
    [
        ("jit", 1, ["writing"]),
        # 19 s each, with two kills
        pytest.param("pmap", 1, ["training", "writing"], marks=pytest.mark.slow),
        pytest.param("sharded", 2, ["training", "writing"], marks=pytest.mark.slow),
    ],
    ids=["jit", "pmap", "sharded"],
)
def test_a_run_killed_again_and_again_ends_bit_identical(tmp_path, capsys, mode, fsdp, moments):
    """Killed at a moment of training, or while a checkpoint is half written, when metrics of later steps are logged."""
    options = dict(parallel=mode, fsdp=fsdp, steps=24, batch_size=16, eval_every=3, checkpoint_every=3)
    options |= dict(resident=False)
    processes.train_here(tmp_path / "whole", **options)
    draw, folder, killed = random.Random(mode), tmp_path / "killed", 0
    for moment in moments:
        [process] = processes.start(folder, devices=8, pause=0.05, **options)
        done = lambda: len(processes.metrics(folder)) if (folder / "metrics.jsonl").exists() else 0
        before = done()
        if moment == "training":
            kill_when(lambda: done() >= before + 5, process, draw.uniform(0, 0.1))  # noqa: B023
        else:
            ready = lambda: done() > before and complete(folder) and half_written(folder)  # noqa: B023
            kill_when(ready, process, draw.uniform(0, 0.02))
        killed += process.returncode == -9
    assert killed >= 1  # one may have ended before it was killed
    processes.train_here(folder, **options)
    assert "resuming after step" in capsys.readouterr().out
    states = [read_state(newest_checkpoint(tmp_path / name)) for name in ("whole", "killed")]
    for name, a, b in zip(leaf_names(states[0]), *map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)
    assert processes.metrics(tmp_path / "whole") == processes.metrics(folder)
