"""A training run, in a process of its own to be killed or to be one of several.

    python -m tests.train.worker RUN_DIR '{"parallel": "pmap", "steps": 8}'

The settings are `RunConfig`'s, and ``pause``: seconds that every evaluation takes.
"""

import dataclasses
import json
import pathlib
import sys
import time

from xmodal_jax.core import runtime


def main(path: str, settings: dict, pause: float = 0.0) -> None:
    runtime.configure(compilation_cache=False)
    from tests.train.toy import make_toy, toy_arrays
    from xmodal_jax.data.pipeline import Loader
    from xmodal_jax.data.sources.arrays import ArraySource
    from xmodal_jax.train.config import RunConfig
    from xmodal_jax.train.loop import fit
    from xmodal_jax.train.optim import Optimizer
    from xmodal_jax.train.run import Run

    config = RunConfig(run_dir=pathlib.Path(path), resume=True, **settings)
    run = Run.create(config.run_dir, config, resume=True, tensorboard=False)
    loader = Loader(ArraySource(toy_arrays()), batch_size=config.batch_size, seed=config.seed)
    optimizer = Optimizer(learning_rate=1e-2, ema=0.9)

    def evaluate(params):
        time.sleep(pause)
        return {"test/bias": float(params["layer"]["bias"].sum())}

    timer = runtime.Timer()
    fit(make_toy(), loader, config, optimizer, run, timer, evaluate=evaluate, monitor="test/bias")
    run.close()
    loader.close()
    timer.clock.close()


@dataclasses.dataclass(frozen=True)
class NoFlags:
    """The command line has none."""


if __name__ == "__main__":
    from xmodal_jax.train.command_line import run_script

    settings = json.loads(sys.argv[2])
    pause = settings.pop("pause", 0.0)
    run_script(lambda _: main(sys.argv[1], settings, pause), NoFlags, None, [])
