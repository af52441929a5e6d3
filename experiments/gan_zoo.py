"""A comparison of objectives of the conditional GAN, on one data set with equal numbers of steps.

    python experiments/gan_zoo.py --judge runs/captioning-...
    python experiments/gan_zoo.py --data folder:PATH --judge RUN --objectives hinge wgan_gp mmd_rq

Each objective is trained by text_to_image_gan.py in its own folder, with the same networks and optimizers. Runs differ
only in the objective and the regularisation that its authors add to it (`models.gan.presets`). There are no other
losses.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

import numpy as np
import text_to_image_gan
from PIL import Image

from xmodal_jax.core import runtime
from xmodal_jax.core.parts import Advanced
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.experiment import describe_spec, write_report
from xmodal_jax.models import gan as gans
from xmodal_jax.nets.encoders import DCGANEncoderConfig, TextTransformerConfig
from xmodal_jax.nets.gan import DCGANGeneratorConfig
from xmodal_jax.report.comparison import ComparedRun, add_comparison, read_result, read_run
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import shrink
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import NonFiniteError
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run

COLUMNS = {"judge_kernel_distance": "kernel distance", "judge_frechet_distance": "Fréchet distance"}
COLUMNS |= {"factor_accuracy": "factors right", "exact_accuracy": "captions right"}
COLUMNS |= {name: name for name in ("precision", "recall", "coverage")}
ADAM = Optimizer("adam", learning_rate=4e-4, b1=0.5, b2=0.9, schedule="constant", clip_norm=None, warmup=0.0)
SAMPLES = 12  # images of each objective in the report
TITLE = "Objectives of the conditional GAN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(text_to_image_gan.Config):
    """A comparison of GAN objectives."""

    objectives: tuple[str, ...] = tuple(gans.OBJECTIVE_PRESETS)
    """Names of the objectives to compare, such as hinge or wgan_gp; by default all that the GAN offers."""
    steps: int = 400
    batch_size: int = 64
    eval_every: int = 0
    seeds: int = 3
    on_divergence: Advanced[Literal["stop", "drop"]] = "drop"
    model: gans.GANConfig = gans.GANConfig(
        condition=gans.SentenceCondition(auxiliary_weight=0.0, text=TextTransformerConfig(width=64, depth=1)),
        generator=DCGANGeneratorConfig(width=32),
        discriminator=DCGANEncoderConfig(width=128, norm="none"),
    )
    """Networks of the GAN. Its objective and regularisation are replaced by those of each compared objective."""
    optimizer: GANOptimizer = GANOptimizer(
        discriminator=ADAM, generator=dataclasses.replace(ADAM, learning_rate=2e-4, ema=0.99)
    )

    def __post_init__(self):
        super().__post_init__()
        unknown = sorted(set(self.objectives) - set(gans.OBJECTIVE_PRESETS))
        if unknown or not self.objectives:
            raise ValueError(
                f"--objectives: {unknown or 'none'} given, choose of {', '.join(gans.OBJECTIVE_PRESETS)}"
            )


def train(config: Config, name: str, folder: pathlib.Path) -> None:
    """Trains a GAN with the objective ``name`` in ``folder``, unless a run is resumed and finished."""
    if config.resume and read_result(folder).get("steps", 0) == config.steps:
        return
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(text_to_image_gan.Config)}
    fields |= dict(model=dataclasses.replace(config.model, **gans.OBJECTIVE_PRESETS[name]), run_dir=folder)
    text_to_image_gan.main(text_to_image_gan.Config(**fields))


def main(config: Config) -> None:
    runtime.configure()
    timer, bad_examples = runtime.Timer(), BadExamples(config.input.on_bad_example)
    if config.smoke:
        config = shrink(dataclasses.replace(config, objectives=config.objectives[:2]))
    run = Run.create(config.run_dir, config, resume=config.resume)
    runs, images = [], []
    for number, name in enumerate(config.objectives, start=1):
        try:
            with timer(name):
                train(config, name, run.path / name)
        except NonFiniteError as error:
            if config.on_divergence == "stop":
                raise
            run.print(f"{name}: {error}")
            runs.append(ComparedRun(name, {"diverged": float(config.seeds)}))
            continue
        if run.writes:
            runs.append(read_run(run.path / name, tuple(COLUMNS)))
            run.truncate_metrics(number - 1)  # not before: a run that is resumed may be refused
            run.log(number, runs[-1].metrics)
            files = sorted((run.path / name / "generated").glob("*.png"))[:SAMPLES]
            images += [np.asarray(Image.open(file)) for file in files]
    if not run.writes:
        return
    metrics = {key: value for each in runs for key, value in each.metrics.items()}
    details = f"{describe_spec(config.data)} · {config.steps} steps"
    totals = dict(seeds=config.all_seeds, steps=config.steps)
    with write_report(run, TITLE, details, metrics, timer, bad_examples, **totals) as report:
        report.headline = [key for key in metrics if key.endswith("/judge_kernel_distance")][:4]
        add_comparison(report, "The judge's scores on unseen captions", runs, COLUMNS, seeds=config.seeds)
        if images:
            report.add_images("Samples, one row per objective", np.stack(images), columns=len(files))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
