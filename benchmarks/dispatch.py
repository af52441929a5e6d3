"""The gain from keeping the data on the device and from running many steps in one program.

    python -m benchmarks.dispatch

Trains with `fit`, as every experiment does, including its logging, and reports the median wall time per step without
compilation: with batches from the host one step at a time (the plain loop), with the data on the device, with K steps
in one program, and with the whole run in one program. Timed in turn.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
import time

import tyro

from benchmarks.methods import BATCH, METHODS
from benchmarks.turns import in_turn
from xmodal_jax.core import runtime
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run

STEPS = {"mlp": 2000, "default": 20}


@dataclasses.dataclass(frozen=True)
class Config:
    """How often to time."""

    rounds: int = 5
    """Runs of each variant; the table has the median."""


def variants(steps: int) -> dict[str, dict]:
    return {
        "from the host, 1 step per program": dict(resident=False),
        "on the device, 1 step per program": {},
        f"on the device, {steps // 10} steps per program": dict(dispatch=steps // 10),
        f"on the device, all {steps} steps in one program": dict(dispatch=steps),
    }


def seconds_per_step(name: str, options: dict) -> float:
    make, arrays = METHODS[name]
    data, method = arrays(), make()
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(run_dir=pathlib.Path(folder), steps=STEPS[name], batch_size=BATCH, **options)
        run = Run.create(config.run_dir, config, tensorboard=False)
        loader = Loader(ArraySource(data), batch_size=BATCH, seed=0)
        timer = runtime.Timer()
        fit(method, loader, config, Optimizer(), run, timer)
        run.close()
        timer.clock.close()
        # Without the final checkpoint and the compilation, which the timer counts separately.
        return (timer.seconds["train"] + timer.seconds["data_wait"]) / config.steps


def main(config: Config) -> None:
    runtime.configure()
    for name, steps in STEPS.items():
        runs = {
            f: functools.partial(seconds_per_step, name, options) for f, options in variants(steps).items()
        }
        times = in_turn(runs, config.rounds)
        plain = next(iter(times.values()))
        print(f"\n| {name} | ms per step | against the plain loop |\n|---|---|---|")
        for variant, median in times.items():
            print(f"| {variant} | {1e3 * median:.3g} | {plain / median:.2f} |", flush=True)


if __name__ == "__main__":
    start = time.perf_counter()
    main(tyro.cli(Config, description=__doc__))
    print(f"\n{time.perf_counter() - start:.0f} s in all")
