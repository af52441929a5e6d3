"""The fusions compared: the metrics of runs of `experiments/fusion.py` that differ in --model.fusion, and step times.

    python -m benchmarks.fusions runs/merged runs/gated ...

Step times are measured here: medians for one seed, timed in turn after warming up, on a batch with the shapes of the
questions about pictures and random values. Reading data is not included.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.table import values_of
from benchmarks.turns import in_turn
from experiments.fusion import Config
from xmodal_jax.core import runtime
from xmodal_jax.core.parts import choose
from xmodal_jax.data.shapes.questions import ANSWERS
from xmodal_jax.models.fusion import make_fusion
from xmodal_jax.nets.fusion import FusionKind
from xmodal_jax.train.optim import make_optimizer
from xmodal_jax.train.parallel import make_engine
from xmodal_jax.train.step import make_init, make_step

SCENES, QUESTIONS, LENGTH, WORDS = 32, 6, 14, 60


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs to compare."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Run directories of experiments/fusion.py."""
    metrics: tuple[str, ...] = ("test/accuracy", "compositions/accuracy", "given_text/accuracy")
    """Metrics to show."""
    rounds: int = 15
    """Timings of each fusion; the table has the median."""


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (SCENES, QUESTIONS)
    return {
        "image": rng.integers(0, 256, (SCENES, 32, 32, 3)).astype(np.uint8),
        "text": rng.integers(1, WORDS, (*shape, LENGTH)).astype(np.int32),
        "text_mask": np.arange(LENGTH) < rng.integers(5, LENGTH, (*shape, 1)),
        "label": rng.integers(0, len(ANSWERS), shape).astype(np.int32),
        "index": np.arange(SCENES, dtype=np.int32),
    }


def prepare(fusion: str):
    """A function that makes one training step and returns the seconds that it took."""
    config = Config()
    optimizer, model = (
        config.optimizer,
        dataclasses.replace(config.model, fusion=choose(FusionKind, fusion)()),
    )
    method = make_fusion(model, ("text", "image"), {"label": len(ANSWERS)}, vocab_size=WORDS)
    tx = make_optimizer(optimizer, 10**6)
    engine = make_engine(
        "jit",
        make_init(method, tx, optimizer),
        lambda axis: make_step(method, tx, optimizer, axis_name=axis),
    )
    state = engine.init(jax.random.key(0), batch())
    xs = engine.put(jax.tree.map(lambda x: x[None], batch()))

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = engine.run(state, None, xs)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    step()
    return step


def main(arguments: Arguments) -> None:
    results = []
    for run in arguments.runs:
        config = json.loads((run / "config.json").read_text())
        results.append((config["model"], json.loads((run / "result.json").read_text())))
    fusions = dict.fromkeys(model["fusion"]["name"] for model, _ in results)
    steps = {name: prepare(name) for name in tqdm(fusions, desc="compiling", file=sys.stderr)}
    times = in_turn(steps, arguments.rounds)
    print(f"| fusion | modality dropout | {' | '.join(arguments.metrics)} | parameters | step |")
    print("|---" * (len(arguments.metrics) + 4) + "|")
    for model, result in results:
        name = model["fusion"]["name"]
        cells = []
        for metric in arguments.metrics:
            values = values_of([result], metric)
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        step = f"{1e3 * times[name]:.0f} ms"
        print(
            f"| {name} | {model['modality_dropout']} | {' | '.join(cells)} | {result['parameters']:,} | {step} |"
        )


if __name__ == "__main__":
    chosen = tyro.cli(Arguments, description=__doc__)
    runtime.configure()
    main(chosen)
