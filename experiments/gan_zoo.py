"""The objectives of the conditional GAN on one data set and one budget, in one table.

    python experiments/gan_zoo.py --judge runs/captioning-...
    python experiments/gan_zoo.py --data folder:PATH --judge RUN --objectives hinge wgan_gp mmd_rq

Each is a run of text_to_image_gan.py, in a folder of its own, with networks and optimizers the same for all. Only the
objective and what its authors add to it differ (`ENTRANTS`). The adversarial loss is alone: nothing is reconstructed,
described again or read. A round is one step of each player.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal

import numpy as np
from PIL import Image
from text_to_image_gan import Config as Drawing
from text_to_image_gan import main as draw

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.experiment import finish
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.nets.encoders import DCGANEncoderConfig, TextTransformerConfig
from xmodal_jax.nets.gan import GeneratorConfig
from xmodal_jax.report.page import Report
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import shrink
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import NonFiniteError
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, format_value

ENTRANTS: dict[str, dict[str, Any]] = {
    "minimax": dict(objective="minimax"),
    "non_saturating": dict(objective="non_saturating"),
    "non_saturating_r1": dict(objective="non_saturating", penalty="r1", penalty_weight=1.0),
    "non_saturating_dragan": dict(objective="non_saturating", penalty="dragan"),
    "lsgan": dict(objective="lsgan"),
    "hinge": dict(objective="hinge"),
    "hinge_spectral": dict(objective="hinge", spectral=True),
    "hinge_lecam": dict(objective="hinge", lecam=0.3),
    "wgan_clip": dict(objective="wgan", clip=0.01),
    "wgan_gp": dict(objective="wgan", penalty="gp"),
    "relativistic_average": dict(objective="relativistic_average"),
    "jsd": dict(objective="jsd"),
    "mmd_rbf": dict(objective="mmd_rbf", penalty="gp", penalty_weight=1.0),
    "mmd_rq": dict(objective="mmd_rq", penalty="gp", penalty_weight=1.0),
}
"""What each changes of the configuration of the model."""

COLUMNS = {
    "kid": "KID", "fid": "FID", "factor_accuracy": "factors right", "exact_accuracy": "captions right",
    "precision": "precision", "recall": "recall", "coverage": "coverage",
}  # fmt: skip
ADAM = Optimizer("adam", learning_rate=4e-4, b1=0.5, b2=0.9, schedule="constant", clip_norm=None, warmup=0.0)
SHOWN = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Drawing):
    """Objectives against each other."""

    objectives: tuple[str, ...] = tuple(ENTRANTS)
    """Which: names of ``ENTRANTS``."""
    steps: int = 400
    """Rounds."""
    batch_size: int = 64
    """Examples of each player's step, over all devices together."""
    eval_every: int = 0
    """Rounds between evaluations on validation data; 0: only at the end."""
    seeds: int = 3
    """Runs of each objective, at once."""
    on_divergence: Literal["stop", "drop"] = "drop"
    """What happens when a loss or a gradient is no longer finite: everything stops, or that seed is dropped."""
    model: GANConfig = GANConfig(
        condition="sentence", generator=GeneratorConfig("dcgan", width=32),
        discriminator=DCGANEncoderConfig(width=128, norm="none"),
        text=TextTransformerConfig(width=64, depth=1), auxiliary_weight=0.0,
    )  # fmt: skip
    """Both players; the objective is each entrant's own."""
    optimizer: GANOptimizer = GANOptimizer(
        discriminator=ADAM, generator=dataclasses.replace(ADAM, learning_rate=2e-4, ema=0.99)
    )
    """Optimizers and schedules."""

    def __post_init__(self):
        super().__post_init__()
        unknown = sorted(set(self.objectives) - set(ENTRANTS))
        if unknown or not self.objectives:
            raise ValueError(f"--objectives: {unknown or 'none'} given, choose of {', '.join(ENTRANTS)}")


def _result(config: Drawing) -> dict[str, Any]:
    file = config.run_dir / "result.json"
    return json.loads(file.read_text()) if file.exists() else {}


def main(config: Config) -> None:
    runtime.configure()
    timer, bad_examples = runtime.Timer(), BadExamples(config.input.on_bad_example)
    if config.smoke:
        config = shrink(dataclasses.replace(config, objectives=config.objectives[:2]))
    run = Run.create(config.run_dir, config, resume=config.resume)
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Drawing)}
    metrics, rows, pictures = {}, [], []
    run.truncate_metrics(0)
    for number, name in enumerate(config.objectives, start=1):
        model = dataclasses.replace(config.model, **ENTRANTS[name])
        own = Drawing(**shared | dict(model=model, run_dir=run.path / name))
        with timer(name):
            try:
                if not (config.resume and _result(own).get("steps", 0) >= config.steps):
                    draw(own)
            except NonFiniteError as error:
                if config.on_divergence == "stop":
                    raise
                run.print(f"{name}: {error}")
                metrics[f"{name}/diverged"] = float(config.seeds)
                rows.append([name, *[""] * len(COLUMNS), f"{config.seeds} of {config.seeds}", ""])
                continue
        if not run.writes:
            continue
        result = _result(own)
        found = result["metrics"] | result.get("per_seed", {})
        values = {k: found[f"test/{k}"] for k in COLUMNS if f"test/{k}" in found}
        seconds = (result["timing"]["train"] or math.nan) / max(result["steps"] - result["resumed"], 1)
        values |= {"diverged": float(len(result["diverged"])), "step_ms": 1e3 * seconds}
        run.log(number, {f"{name}/{k}": value for k, value in values.items()})
        metrics |= {f"{name}/{k}": value for k, value in values.items()}
        scores = [format_value(values[k]) if k in values else "" for k in COLUMNS]
        rows.append([name, *scores, f"{len(result['diverged'])} of {config.seeds}", f"{1e3 * seconds:.0f}"])
        drawn = sorted((own.run_dir / "drawn").glob("*.png"))[:SHOWN]
        pictures += [np.asarray(Image.open(path)) for path in drawn]
    if not run.writes:
        return
    report = Report("Objectives of the conditional GAN", f"{config.data} · {config.steps} rounds")
    head = ["objective", *COLUMNS.values(), "diverged", "ms per round, all seeds"]
    table = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    head, *rows = zip(*table, strict=True)
    note = "Mean and standard deviation over the seeds that did not diverge."
    report.add_table("Scores on unseen captions", head, rows, note=note)
    if pictures:
        report.add_images("The first captions, an objective a row", np.stack(pictures), columns=len(drawn))
    headline = [f"{name}/kid" for name in config.objectives if f"{name}/kid" in metrics][:4]
    finish(
        run,
        report,
        metrics,
        headline=headline,
        bad_examples=bad_examples,
        timer=timer,
        seeds=config.all_seeds,
    )


if __name__ == "__main__":
    main(parse(Config, __doc__))
