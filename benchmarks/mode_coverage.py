"""How many of 1,000 modes unconditional GANs have: three images of ten classes are the colour channels of one.

    python -m benchmarks.mode_coverage
    python -m benchmarks.mode_coverage --data stacked:folder:PATH --objectives r3gan hinge_spectral --seeds 0 1

Stacked digits (Metz et al. 2017), with the protocol of Huang et al. 2024 (R3GAN): a classifier (the judge) says which
classes the channels of 25,600 samples show; the table has the number of triples of classes that occur, and the KL
divergence of their frequencies from those of the data. The row "data" has the same numbers of as many stacks of test
images: what the judge and the finite sample allow. Generators get no classes. Finished rows are kept in
OUT.jsonl and not run again; OUT.md is the table.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.rows import markdown_table, mean_cells, read_rows, write_rows
from xmodal_jax.core import runtime
from xmodal_jax.core.checks import check_at_least, check_rates
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions, read_split
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.sources.arrays import ArraySource, materialise
from xmodal_jax.data.sources.stacked import StackedSource
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.evaluation.images import ImageGenerator
from xmodal_jax.metrics.modes import mode_coverage
from xmodal_jax.metrics.neighbours import density_coverage, precision_recall
from xmodal_jax.models import gan as gans
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import ModalityConfigs
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.encoders import DCGANEncoderConfig
from xmodal_jax.nets.gan import DCGANGeneratorConfig
from xmodal_jax.nets.image import halvings
from xmodal_jax.train import gan_step
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.step import make_training
from xmodal_jax.types import GAN

COLUMNS = ("modes", "kl", "precision", "recall", "density", "coverage", "ms", "train_s")
"""Columns of the table. "ms" is the median time of a training step, "train_s" that of all training steps, in seconds;
precision, recall, density and coverage are those of the judge's features."""

DIGITS = {"modes": 0, "train_s": 0, "ms": 1}
"""Decimal places of a column; 3 of the others."""

OBJECTIVES = tuple(
    name
    for name, preset in gans.OBJECTIVE_PRESETS.items()
    if not getattr(preset.get("generator"), "refines_images", False)
)
"""The objectives that can be compared: their generators take noise, not the images of a trained first stage."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    data: str = "stacked:digits"
    """Data set of labelled images: ``stacked:SPEC``."""
    out: pathlib.Path = pathlib.Path("docs/benchmarks/mode_coverage")
    """Path of the results without suffix."""
    objectives: tuple[str, ...] = ("r3gan", "relativistic_r1_r2", "non_saturating", "minimax")
    """Names of `models.gan.OBJECTIVE_PRESETS` of one stage, such as hinge_spectral and wgan_gp. relativistic_r1_r2 is
    the objective of r3gan with the networks of the others."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the parameters and of the order of the data."""
    image_size: int = 16
    """Side of the images in pixels."""
    train_size: int = 50_000
    """Training examples (stacks)."""
    steps: int = 4000
    """Training steps, each of the discriminator and of the generator."""
    batch_size: int = 64
    """Examples per step."""
    width: int = 32
    """Channels of generator and discriminator at the smallest resolution (4x4 pixels)."""
    noise: int = 64
    """Dimensions of the generator's noise."""
    learning_rate: float = 1e-3
    """Learning rate of Adam in both networks, at first."""
    final_scale: float = 0.1
    """Learning rate at the end of the cosine, as a fraction of ``learning_rate``."""
    penalty_scale: float = 1.0
    """Factor of the weights of the penalties r1 and r2 in the presets."""
    b1: float = 0.0
    """Decay rate of Adam's first moments."""
    ema: float = 0.995
    """Decay rate of the moving average of the generator's parameters, which generates the samples."""
    judge_steps: int = 1500
    """Training steps of the judge."""
    samples: int = 25_600
    """Number of samples whose modes are counted."""
    neighbours: int = 2000
    """Number of samples and of real images for precision, recall, density and coverage."""

    def __post_init__(self):
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise ValueError(f"--objectives: {name!r} is none of {', '.join(OBJECTIVES)}")
        if not self.data.startswith("stacked:"):
            raise ValueError(f"--data is stacked:SPEC, such as stacked:digits; got {self.data!r}")
        check_at_least(self, 1, "train_size", "steps", "batch_size", "width", "noise", "judge_steps")
        check_at_least(self, 6, "neighbours")  # each has a fifth one
        check_at_least(self, 8, "image_size")
        check_at_least(self, self.neighbours, "samples")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError(f"--seeds are 0 or more, got {self.seeds}")
        check_rates(self, "b1")
        _ = self.optimizers  # checks the other options of theirs

    @property
    def optimizers(self) -> gan_step.GANOptimizer:
        """The optimizers of discriminator and generator."""
        adam = Optimizer(
            "adam", learning_rate=self.learning_rate, b1=self.b1, b2=0.99, schedule="cosine",
            final_scale=self.final_scale, clip_norm=None, warmup=0.0,
        )  # fmt: skip
        return gan_step.GANOptimizer(adam, dataclasses.replace(adam, ema=self.ema))


class Bench:
    """Data, the judge and what all objectives share."""

    def __init__(self, config: Config):
        self.config = config
        options, bad_examples = DataOptions(image_size=config.image_size), BadExamples()
        read = lambda split: read_split(config.data, split, options, bad_examples)
        self.train = StackedSource(read("train"), "train", size=config.train_size)
        self.test = StackedSource(read("test"), "test", size=config.samples)
        self.stacks = materialise(self.train)
        for objective in config.objectives:  # finds networks that do not fit before the judge is trained
            jax.eval_shape(self.make_gan(objective).init, jax.random.key(0), {})
        shape = (*self.train.images.shape[1:], 1)
        judges = make_judges(
            ModalityConfigs(), {"image": Size(shape)}, self.train.classes,
            encoders={"image": DCGANEncoderConfig(width=64, norm="none")},
        )  # fmt: skip
        self.judge_params = self._train_judge(judges.method)
        self._predict = lambda params, batch: jax.tree.map(
            lambda x: x[:, 0], judges.method.predict(params, batch)
        )
        classes, _ = self._classify(self.test.images)
        self.judge_accuracy = float((classes == self.test.image_labels).mean())
        self.real_features = self.judge(self.test.batch(np.arange(config.neighbours))["image"])[1]

    def _train_judge(self, method) -> Any:
        """The parameters of the judge, a classifier of single images in gray levels."""
        optimizer = Optimizer("muon", learning_rate=5e-3)
        training = make_training(method, optimizer, self.config.judge_steps)
        images = {"image": self.train.images[..., None], "label": self.train.image_labels}
        state, _ = train(training, ArraySource(images), 64, self.config.judge_steps, seed=0, name="judge")
        return training.eval_params(state)

    def _classify(self, gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The judge's classes ``[N]`` and features ``[N, H]`` of images in gray levels ``[N, H, W]``."""
        source = ArraySource({"image": gray[..., None], "index": np.arange(len(gray), dtype=np.int32)})
        outputs = predict_all(self._predict, self.judge_params, source, batch_size=500)
        return outputs.logits.argmax(axis=-1), outputs.features

    def judge(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The modes ``[N]`` and the features ``[N, 3 H]`` of stacks ``[N, H, W, 3]``: those of their channels."""
        channels = np.moveaxis(images, -1, 1)  # [N, 3, H, W]
        classes, features = self._classify(channels.reshape(-1, *images.shape[1:3]))
        return self.train.modes(classes.reshape(-1, 3)), features.reshape(len(images), -1)

    def scores(self, images: np.ndarray) -> dict[str, float]:
        """A row of the table without the times, of stacks ``[N, H, W, 3]``."""
        modes, features = self.judge(images)
        fake = features[: self.config.neighbours]
        scores = mode_coverage(modes, self.train.mode_probabilities())._asdict()
        scores |= precision_recall(self.real_features, fake)._asdict()
        return scores | density_coverage(self.real_features, fake)._asdict()

    def data_scores(self) -> dict[str, float]:
        """The row of the data: stacks of test images that are not those that the others are compared with."""
        return self.scores(self.test.batch(np.arange(self.config.samples)[::-1])["image"])

    def model(self, objective: str) -> gans.GANConfig:
        """The unconditional GAN of an objective, with all networks of one width at the smallest resolution."""
        c = self.config
        last = c.width // 2 ** max(halvings((c.image_size, c.image_size)) - 1, 0)
        plain = gans.GANConfig(
            condition=gans.NoCondition(), generator=DCGANGeneratorConfig(width=last),
            discriminator=DCGANEncoderConfig(width=c.width, norm="none"),
        )  # fmt: skip
        preset = gans.with_preset(plain, objective)
        # The networks of a preset get the same width.
        generator = preset.generator if preset.generator is plain.generator else dataclasses.replace(
            preset.generator, width=c.width
        )  # fmt: skip
        penalties = {
            k: _scaled(p, c.penalty_scale) for k, p in preset.penalties.items() if p.name in ("r1", "r2")
        }
        return dataclasses.replace(
            preset,
            **penalties,
            generator=dataclasses.replace(generator, noise=c.noise),
            discriminator=dataclasses.replace(preset.discriminator, width=c.width),
        )

    def make_gan(self, objective: str) -> GAN:
        """The `model` of an objective for stacks."""
        return gans.make_gan(self.model(objective), shape=self.stacks.arrays["image"].shape[1:])

    def gan_scores(self, objective: str, seed: int) -> dict[str, float]:
        """The row of an objective; without scores where the training diverged."""
        c, model, gan = self.config, self.model(objective), self.make_gan(objective)
        training = gan_step.make_training(gan, c.optimizers, c.steps)
        source = ArraySource({"image": self.stacks.arrays["image"]})  # without the modes
        state, ms = train(training, source, c.batch_size * model.d_steps, c.steps, seed, objective)
        times = {"ms": ms, "train_s": c.steps * ms / 1e3}
        params = training.eval_params(state)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(params)):
            return times
        generate = ImageGenerator(gan, None, noise=c.noise, batch_size=500)
        examples = {"index": np.arange(c.samples, dtype=np.int32)}
        images = generate(params, examples, generate.sample_noise(c.samples, seed))
        return self.scores(images) | times


def _scaled(penalty: Any, factor: float) -> Any:
    """The penalty with its weight at the start, and at the end if there is one, times ``factor``."""
    last = None if penalty.final_weight is None else factor * penalty.final_weight
    return dataclasses.replace(penalty, weight=factor * penalty.weight, final_weight=last)


def train(training, source: ArraySource, batch_size: int, steps: int, seed: int, name: str):
    """The trained state, and the median milliseconds of a step. ``name``: what the progress bar shows."""
    loader = Loader(source, batch_size=batch_size, seed=seed)
    state = jax.jit(training.init)(jax.random.key(seed), numeric_fields(loader.example()))
    step, seconds = jax.jit(training.make_step(None), donate_argnums=0), []
    for _ in tqdm(range(steps), desc=name, unit="step"):
        batch = numeric_fields(next(loader))
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
        if not jnp.isfinite(metrics["loss"]):
            break
    loader.close()
    return state, 1e3 * float(np.median(seconds))


def table(rows: list[dict[str, Any]]) -> str:
    """The table: means over seeds, with the standard deviation if there are several."""
    cells = []
    for name in dict.fromkeys(row["objective"] for row in rows):
        scores = [row["scores"] for row in rows if row["objective"] == name]
        cells.append([name, str(len(scores)), *mean_cells(scores, COLUMNS, DIGITS)])
    lines = markdown_table(["objective", "seeds", *COLUMNS], cells)
    return f"{lines}\nAccuracy of the judge on test images: {rows[0]['judge_accuracy']:.3f}.\n"


def main(config: Config) -> None:
    runtime.configure()
    settings = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "objectives", "seeds")
    }
    rows = read_rows(config.out, settings)
    done = {(row["objective"], row["seed"]) for row in rows}
    bench = Bench(config)
    print(f"accuracy of the judge on test images: {bench.judge_accuracy:.3f}", flush=True)
    for name, seed in [("data", 0), *((name, seed) for name in config.objectives for seed in config.seeds)]:
        if (name, seed) in done:
            continue
        done.add((name, seed))
        scores = bench.data_scores() if name == "data" else bench.gan_scores(name, seed)
        row = dict(
            objective=name, seed=seed, scores=scores, judge_accuracy=bench.judge_accuracy, config=settings
        )
        rows.append(row)
        write_rows(config.out, rows, table(rows))
        print(name, seed, {k: round(v, 3) for k, v in scores.items()}, flush=True)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
