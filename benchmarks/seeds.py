"""Several seeds in one program against as many programs in turn.

    python -m benchmarks.seeds
    python -m benchmarks.seeds --commands --steps 160

The first prints the median time in which all seeds make one training step each, timed in turn after warming up. The
second times whole commands, from start to report: what single runs repeat (start-up, reading data, loading compiled
programs) a run of several seeds does once.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import tyro

from benchmarks.methods import BATCH, METHODS
from benchmarks.turns import in_turn
from xmodal_jax.core import runtime
from xmodal_jax.train.optim import Optimizer, make_optimizer
from xmodal_jax.train.parallel import DeviceData, make_engine
from xmodal_jax.train.step import make_init, make_step

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = {"mlp": 200, "default": 1}
"""Steps in each program."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    seeds: int = 4
    """Number of seeds in one program."""
    rounds: int = 9
    """Timings of each variant; the table has the median."""
    commands: bool = False
    """Whether to time whole commands of experiments/contrastive.py instead of steps."""
    steps: int = 640
    """Training steps of those commands."""


def prepare(name: str, seeds: int | None, variant: str):
    """A function that runs one program, waits for it, and returns the seconds per step."""
    make, arrays = METHODS[name]
    optimizer = Optimizer()
    tx, method, k = make_optimizer(optimizer, 10**6), make(), STEPS[name]
    engine = make_engine(
        "jit",
        make_init(method, tx, optimizer),
        lambda axis: make_step(method, tx, optimizer, axis_name=axis),
        seeds=seeds,
        seeds_form=variant,
    )
    data = arrays()
    keys = jax.random.key(0) if seeds is None else jax.random.split(jax.random.key(0), seeds)
    state = engine.init(keys, jax.tree.map(lambda x: x[:1], data))
    data, rng = engine.put_resident(data), np.random.default_rng(0)

    def run():
        nonlocal state
        shape = (k, *(() if seeds is None else (seeds,)), BATCH)
        examples = rng.integers(0, len(next(iter(data.values()))), shape).astype(np.int32)
        xs = engine.put({"row": examples, "index": examples})
        started = time.perf_counter()
        state, metrics = engine.run(state, DeviceData(data), xs)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - started) / k

    run()
    return run


def steps(config: Config) -> None:
    n = config.seeds
    print(f"| model | {n} x one seed | {n} seeds, vmap | {n} seeds, map | best against {n} in turn |")
    print("|---|---|---|---|---|")
    for name in METHODS:
        variants = {"one": prepare(name, None, "auto")}
        variants |= {variant: prepare(name, n, variant) for variant in ("vmap", "map")}
        times = in_turn(variants, config.rounds)
        one, vmap, mapped = (1e3 * times[variant] for variant in ("one", "vmap", "map"))
        best = n * one / min(vmap, mapped)
        print(
            f"| {name} | {n * one:.3g} ms | {vmap:.3g} ms | {mapped:.3g} ms | {best:.2f} times as fast |",
            flush=True,
        )


def commands(config: Config) -> None:
    def timed(*flags: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "experiments/contrastive.py", "--steps", str(config.steps), *flags]
            started = time.perf_counter()
            subprocess.run(
                [*command, "--run-dir", f"{folder}/run"], cwd=ROOT, check=True, capture_output=True
            )
            return time.perf_counter() - started

    for flags in ([], ["--seeds", str(config.seeds)]):  # to fill the compilation cache
        timed("--steps", "2", "--eval-every", "2", *flags)
    in_turn = sum(timed("--seed", str(seed)) for seed in range(config.seeds))
    at_once = timed("--seeds", str(config.seeds))
    print(f"{config.seeds} runs of {config.steps} steps in turn: {in_turn:.0f} s; at once: {at_once:.0f} s")
    print(f"at once is {in_turn / at_once:.2f} times as fast")


if __name__ == "__main__":
    chosen = tyro.cli(Config, description=__doc__)
    runtime.configure()
    commands(chosen) if chosen.commands else steps(chosen)
