"""The GPU's benchmark without a GPU: what it refuses, what it computes, what its tables say."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import gpu


def test_without_a_gpu_it_reports_an_error():
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], env=env, capture_output=True, text=True, cwd=gpu.ROOT
    )
    assert done.returncode != 0 and "JAX sees no GPU here" in done.stderr and "benchmarks.cpu" in done.stderr


def test_unknown_parts_are_named():
    with pytest.raises(ValueError, match="unknown part 'gan': choose from train, loss, steps, seeds"):
        gpu.Config(parts=("gan",))


def test_the_rate_counts_the_products(monkeypatch):
    monkeypatch.setattr(gpu, "median_seconds", lambda run, repeats: (run(), 2.0)[1])
    assert gpu.matmul_rate(8, 1) == 16 * 2 * 8**3 / 2.0


def test_the_loss_is_measured_with_its_gradients():
    found = gpu.measure_loss(256, 8, 1)
    assert found["seconds"] > 0 and found["useful_flops"] == 6 * 256**2 * 8
    assert found["program_bytes"] >= 4 * 256 * 8 * 4  # both sides and their gradients


def test_tables(monkeypatch):
    answers = {
        "measure_loss(64": {"seconds": 0.5, "program_bytes": 2**30, "peak_bytes": None, "useful_flops": 2e9}
    }
    answers["measure_loss(128"] = {"failed": "RESOURCE_EXHAUSTED: out of memory"}
    answers["measure_seeds"] = {"seconds": 0.004}
    monkeypatch.setattr(
        gpu, "call_in_process", lambda call: next(v for k, v in answers.items() if call.startswith(k))
    )
    text, found = gpu.loss(gpu.Config(sizes=(64, 128)), rate=4e10)
    assert "| 64 | 0.5 | 1.00 | – | 10.0% |" in text and "| 128 | failed: RESOURCE_EXHAUSTED" in text
    assert [row["pairs"] for row in found] == [64, 128]
    text, _ = gpu.seeds(gpu.Config(seeds=(1, 4)), rate=1.0)
    assert "| mlp | 1 | 4 | 4 |" in text and "| default | 4 | 4 | 1 |" in text


def test_mfu_is_a_share_of_the_measured_rate(monkeypatch):
    timed = {
        "seconds": {"jax": {"loop": [0.1], "scan": [0.2]}, "torch": {"eager": [0.4]}},
        "failed": {"torch compile": "no compiler"},
        "parameters": {"jax": 1, "torch": 1},
        "flops": {"jax": 5e12, "torch": None},
    }
    monkeypatch.setattr(gpu.cpu, "run_case", lambda case, config: timed)
    text, result = gpu.train(gpu.Config(), rate=1e14)
    assert (
        "| jax | loop | 100.0 | 2,560 | 50.0% |" in text and "| torch | eager | 400.0 | 640 | 12.5% |" in text
    )
    assert "left out: torch compile: no compiler" in text
    np.testing.assert_allclose(result["ratio"], 0.25)
