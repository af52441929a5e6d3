"""Objectives of the conditional GAN, and generators of other kinds, compared on one data set.

    python experiments/gan_zoo.py --judge runs/captioning-...
    python experiments/gan_zoo.py --data folder:PATH --objectives hinge r3gan flow_matching

Each objective, with its authors' regularisation, is trained by text_to_image_gan.py for the same steps (or time), with
the same networks (except r3gan and stackgan) and optimizers (except r3gan); flow_matching for their median time.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Literal

import text_to_image_flow
import text_to_image_gan

from xmodal_jax.core import runtime
from xmodal_jax.core.parts import Advanced
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.evaluation.learning import LearningEvaluation
from xmodal_jax.experiment import check_comparison, describe_spec, run_for_equal_time, write_report
from xmodal_jax.models import gan as gans
from xmodal_jax.nets.encoders import DCGANEncoderConfig, TextTransformerConfig
from xmodal_jax.nets.gan import DCGANGeneratorConfig
from xmodal_jax.report import comparison
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import shrink
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import NonFiniteError
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run
from xmodal_jax.transfer.first_stage import check_presets, preset_options

ADAM = Optimizer("adam", learning_rate=4e-4, b1=0.5, b2=0.9, schedule="constant", clip_norm=None, warmup=0.0)
OTHERS = {"flow_matching": (text_to_image_flow, text_to_image_flow.options_like)}
"""Generators of other kinds: a script, and the options in which it differs from a comparison's configuration."""
NAMES = (*gans.OBJECTIVE_PRESETS, *OTHERS)
GENERATOR_ADAM = dataclasses.replace(ADAM, learning_rate=2e-4, ema=0.99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(text_to_image_gan.Config):
    """A comparison of GAN objectives and other generators."""

    objectives: tuple[str, ...] = NAMES
    """Names of the objectives to compare, such as hinge, wgan_gp or flow_matching; by default all that there are."""
    equal: Literal["steps", "time"] = "steps"
    """What all GANs share: the number of steps, or the training time that the first of --objectives takes for them."""
    steps: int = 400
    batch_size: int = 64
    eval_every: int = 0
    seeds: int = 3
    learning: LearningEvaluation = LearningEvaluation(seeds=1, ratios=())
    on_divergence: Advanced[Literal["stop", "drop"]] = "drop"
    model: gans.GANConfig = gans.GANConfig(
        condition=gans.SentenceCondition(auxiliary_weight=0.0, text=TextTransformerConfig(width=64, depth=1)),
        generator=DCGANGeneratorConfig(width=32),
        discriminator=DCGANEncoderConfig(width=128, norm="none"),
    )
    """Networks. Each objective sets its objective and regularisation, r3gan and stackgan also networks."""
    optimizer: GANOptimizer = GANOptimizer(discriminator=ADAM, generator=GENERATOR_ADAM)
    """Optimizers; r3gan has learning rates of its own."""

    def __post_init__(self):
        super().__post_init__()
        comparison.check_names("--objectives", self.objectives, NAMES)
        check_presets(self, self.objectives)


def train(config: Config, name: str, folder: pathlib.Path, runs: list[comparison.ComparedRun]) -> None:
    """Trains the generator ``name`` in ``folder``. ``runs``: those that have ended."""
    script, options = OTHERS.get(name, (text_to_image_gan, functools.partial(preset_options, name=name)))
    gan_runs = comparison.timed_runs([run for run in runs if run.name not in OTHERS])
    equal = gan_runs if name in OTHERS else gan_runs[: config.equal == "time"]
    run_for_equal_time(script, config, folder, equal, options)


def main(config: Config) -> None:
    runtime.configure()
    timer, bad_examples = runtime.Timer(), BadExamples(config.input.on_bad_example)
    check_comparison(config, config.objectives, bad_examples)  # before anything is trained
    if config.smoke:
        first_and_last = config.objectives[:: len(config.objectives) - 1 or 1]
        config = shrink(dataclasses.replace(config, objectives=first_and_last))
    run, runs, samples = Run.create(config.run_dir, config, resume=config.resume), [], {}
    for number, name in enumerate(sorted(config.objectives, key=OTHERS.__contains__), start=1):
        try:
            with timer(name):
                train(config, name, run.path / name, runs)
        except NonFiniteError as error:
            if config.on_divergence == "stop":
                raise
            run.print(f"{name}: {error}")
            runs.append(comparison.ComparedRun(name, {"diverged": float(config.seeds)}))
            continue
        if run.writes:
            runs.append(comparison.read_run(run.path / name))
            run.truncate_metrics(number - 1)  # not before: a run that is resumed may be refused
            run.log(number, runs[-1].metrics)
            samples[name] = comparison.read_samples(run.path / name)
    if not run.writes:
        return
    metrics = {key: value for each in runs for key, value in each.metrics.items()}
    details = f"{describe_spec(config.data)} · {config.steps} steps, the same {config.equal} for each GAN"
    title, totals = "Objectives of the conditional GAN", dict(seeds=config.all_seeds, steps=config.steps)
    with write_report(run, title, details, metrics, timer, bad_examples, **totals) as report:
        report.headline = [key for key in metrics if key.endswith("/judge_kernel_distance")][:4]
        comparison.add_comparison(report, "The judge's scores on unseen captions", runs, seeds=config.seeds)
        comparison.add_samples(report, samples)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
