"""Several real processes that meet over the network, against one process."""

import signal
import time

import jax
import numpy as np
import pytest

from tests.train import processes
from xmodal_jax.train.checkpoint import restore_run

LAYOUTS = {
    "sharded": dict(parallel="sharded", fsdp=2),
    "pmap, seeds, from the host": dict(parallel="pmap", seeds=2, resident=False, dispatch=2),
}


def assert_same_curves(a, b):
    assert [sorted(row) for row in a] == [sorted(row) for row in b]
    for x, y in zip(a, b, strict=True):
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=1e-5, atol=1e-7, err_msg=f"{x['step']} {name}")


def assert_same_params(one, several):
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(several.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# 9 s and more; the next test compares the steps and the checkpoint of two processes with those of one as well.
@pytest.mark.slow
@pytest.mark.parametrize("count,layout", [(2, "sharded"), (4, "pmap, seeds, from the host")])
def test_several_processes_train_as_one(tmp_path, count, layout):
    options = dict(steps=6, batch_size=16, eval_every=2, checkpoint_every=2, **LAYOUTS[layout])
    processes.train(tmp_path / "one", **options)
    processes.train(tmp_path / "several", processes=count, **options)
    assert_same_curves(processes.metrics(tmp_path / "one"), processes.metrics(tmp_path / "several"))
    seed = 1 if "seeds" in options else None
    one, several = restore_run(tmp_path / "one", seed=seed), restore_run(tmp_path / "several", seed=seed)
    assert one.step == several.step == 6
    assert_same_params(one, several)


INTERRUPTED_RUNS = {
    "training": (dict(parallel="pmap", steps=100_000, dispatch=20), 100),
    "evaluation": (
        dict(parallel="sharded", steps=100_000, eval_every=20, checkpoint_every=20, pause=1.0),
        20,
    ),
    "sums over devices": (dict(parallel="sharded", fsdp=4, steps=100_000, dispatch=200), 200),
}
"""By what is interrupted: the settings of the run, and the logged step after which it is."""


@pytest.mark.slow  # three times 10 s; the tests of one process are quick
@pytest.mark.parametrize("moment", INTERRUPTED_RUNS)
def test_interrupted_processes_end_at_once(tmp_path, moment):
    settings, step = INTERRUPTED_RUNS[moment]
    running = processes.start(tmp_path / "run", processes=2, batch_size=16, **settings)
    file = tmp_path / "run" / "metrics.jsonl"
    for _ in range(1200):
        if file.exists() and any(row["step"] >= step for row in processes.metrics(tmp_path / "run")):
            break
        time.sleep(0.05)
    for process in running:
        process.send_signal(signal.SIGINT)
    for status, _, errors in processes.finish(running, timeout=60):
        assert status == 130 and "interrupted" in errors and "Traceback" not in errors, errors[-3000:]


def test_a_signal_to_one_process_stops_all_and_one_process_goes_on(tmp_path, capsys):
    """The two processes take the steps, and store the state, that one process does without a stop."""
    options = dict(steps=12, batch_size=16, eval_every=1, checkpoint_every=10)
    sharded = {**options, **LAYOUTS["sharded"]}
    running = processes.start(tmp_path / "run", processes=2, pause=0.5, **sharded)
    for _ in range(1200):
        if (tmp_path / "run" / "metrics.jsonl").exists() and len(processes.metrics(tmp_path / "run")) > 6:
            break
        time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    for status, _, errors in processes.finish(running):
        assert status == 143 and "as asked; go on with:" in errors, errors[-2000:]
    stopped = processes.metrics(tmp_path / "run")[-1]["step"]
    assert 3 < stopped < 12
    processes.train_here(tmp_path / "run", **sharded)
    assert f"resuming after step {stopped}" in capsys.readouterr().out
    processes.train_here(tmp_path / "whole", **options)
    assert_same_curves(processes.metrics(tmp_path / "run"), processes.metrics(tmp_path / "whole"))
    assert_same_params(restore_run(tmp_path / "run"), restore_run(tmp_path / "whole"))
