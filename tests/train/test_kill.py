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
    for _ in range(6000):
        if ready() or process.poll() is not None:
            break
        time.sleep(0.01)
    time.sleep(pause)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("mode,fsdp", [("pmap", 1), pytest.param("sharded", 2, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_bit_identical(tmp_path, mode, fsdp):
    options = dict(parallel=mode, fsdp=fsdp, steps=24, batch_size=16, eval_every=3, checkpoint_every=3)
    options |= dict(resident=False, pause=0.05)
    processes.train(tmp_path / "whole", **options)
    draw, folder, killed = random.Random(mode), tmp_path / "killed", 0
    for attempt in range(2):
        [process] = processes.start(folder, **options)
        done = lambda: len(processes.metrics(folder)) if (folder / "metrics.jsonl").exists() else 0
        before = done()
        if attempt == 0:  # once at a moment of training, once while a checkpoint is half written
            kill_when(lambda: done() >= before + 5, process, draw.uniform(0, 0.1))  # noqa: B023
        else:
            kill_when(lambda: done() > before and half_written(folder), process, draw.uniform(0, 0.02))  # noqa: B023
        killed += process.returncode == -9
    assert killed >= 1  # one may have ended before it was killed
    processes.train(folder, **options)
    states = [read_state(newest_checkpoint(tmp_path / name)) for name in ("whole", "killed")]
    for name, a, b in zip(leaf_names(states[0]), *map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)
    assert processes.metrics(tmp_path / "whole") == processes.metrics(folder)
