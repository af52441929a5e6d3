"""Pictures of what a caption or a class asks for, by a conditional GAN.

    python experiments/text_to_image_gan.py --judge runs/captioning-...
    python experiments/text_to_image_gan.py --judge RUN --redescribe OTHER_RUN
    python experiments/text_to_image_gan.py --data folder:PATH --modalities text image --model.generator.name residual

``--judge``: a run of captioning.py on the same data that no generator has met: what does it read off the pictures?
``--redescribe``: another one that the generator is trained with. ``--read-with``: a run of contrastive.py that reads,
``--text-encoder hf:PATH``: a pretrained encoder that does. ``--image-encoder hf:PATH``: one that the discriminator sees
with. All of these stay as they are.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import read_fields
from xmodal_jax.data.splits import fit_tokenizer, open_splits, prepare_source
from xmodal_jax.evaluation import image_judge as judging
from xmodal_jax.evaluation import images as drawing
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.experiment import finish
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.method import make_gan
from xmodal_jax.nets.encoders import ConvNetConfig
from xmodal_jax.nets.gan import GeneratorConfig
from xmodal_jax.report import figures
from xmodal_jax.report import images as panels
from xmodal_jax.report.page import Report
from xmodal_jax.report.text import add_scores
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import PretrainedConfig, shrink
from xmodal_jax.train.feed import RESIDENT_LIMIT
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, stack_scores
from xmodal_jax.transfer.frozen import image_watcher, load_captioner, load_text_encoder, same_tokens

CURVES = (
    "train/d_loss", "train/g_loss", "train/g_reconstruction", "validation/factor_accuracy", "validation/kid",
)  # fmt: skip
HEADLINE = ("/factor_accuracy", "/r_precision", "/kid", "/kid_real")
KEPT = 200
"""Test pictures that are kept as files, real and drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PretrainedConfig):
    """Pictures from captions or classes."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(
        train_size=20_000, modalities=("text", "image")
    )
    """How the data set is read."""
    steps: int = 2800
    """Training steps; each is one step of the generator after ``model.d_steps`` steps of the discriminator."""
    batch_size: int = 32
    """Examples of each player's step, over all devices together."""
    eval_every: int = 1400
    """Rounds between evaluations on validation data; 0: only at the end."""
    judge: pathlib.Path | None = None
    """A run of captioning.py that judges the pictures; None: they are only shown."""
    redescribe: pathlib.Path | None = None
    """Another run of captioning.py: the generator is trained to draw what it describes as asked. Its tokenizer is
    used."""
    read_with: pathlib.Path | None = None
    """A run of contrastive.py whose text encoder reads the captions and stays as it is; None: both players train their
    own."""
    model: GANConfig = GANConfig(
        generator=GeneratorConfig("objects", noise=12), projected=True, auxiliary_weight=0.0, kl_weight=8.0,
        discriminator=ConvNetConfig(width=32, norm="none"),
        encoder=ConvNetConfig(width=64, norm="none", token_positions=True),
        penalty="r1", penalty_weight=5.0, penalty_every=4,
        reconstruction_weight=30.0, perceptual_weight=10.0, redescription_weight=5.0,
    )  # fmt: skip
    """Both players and their objective."""
    optimizer: GANOptimizer = GANOptimizer(
        pretrain_fraction=0.5, discriminator=Optimizer(name="muon", learning_rate=1e-3, b1=0.5, clip_norm=5.0),
        generator=Optimizer(name="muon", learning_rate=5e-3, final_scale=0.15, b1=0.5, clip_norm=5.0, ema=0.99),
    )  # fmt: skip
    """Optimizers and schedules."""


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    if config.smoke:
        config = shrink(config)
    config, reader = load_text_encoder(config)
    run, model = Run.create(config.run_dir, config, resume=config.resume), config.model

    # Data: captions or labels, and their pictures.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        described = load_captioner(config.redescribe) if config.redescribe else None
        tokenize = same_tokens(described, reader)
        if tokenize is None and "text" in splits.train.modalities:
            tokenize, _ = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        source, transform = prepare_source(splits.train, tokenize, limit=RESIDENT_LIMIT)
        shape = splits.train.batch([0])["image"].shape[1:]
        scripts = {
            k: ReferenceTexts(part) for k, part in (*splits.tests.items(), ("validation", splits.validation))
        }
        panel = judging.Panel(config.judge, splits.train, scripts)
    loader = Loader(
        source, batch_size=config.batch_size * model.d_steps, seed=config.seed, transform=transform
    )

    # The method: two players.
    sizes = dict(shape=shape, classes=len(splits.train.class_names or ()))
    if tokenize is not None:
        sizes |= dict(vocab_size=tokenize.tokenizer.vocab_size, length=tokenize.max_length)
    trained = dict(captioner=described and described.captioner, text=reader and reader.params)
    trained["watcher"] = image_watcher(config, shape)
    gan = make_gan(model, **trained, **sizes)
    artist = drawing.Artist(gan, tokenize, noise=model.generator.noise)
    draw = drawing.Studio(artist, scripts, seed=config.seed)
    diary = panels.Diary(run.path / "samples", artist, draw.asked["test"], seed=config.seed)

    def validate(params):
        diary.add(params)
        return panel.all_scores({"validation": draw(params, "validation")})

    metadata = {"source": "text", "target": "image", "classes": splits.train.class_names, **sizes}
    metadata |= {"tokenizer": tokenize.tokenizer.files()} if tokenize else {}
    result = fit(gan, loader, config, config.optimizer, run, timer, evaluate=validate, metadata=metadata)

    # Test: a picture for every caption of every split.
    with timer("evaluation"):
        drawn = [{name: draw(params, name) for name in splits.tests} for params in result.params]
        metrics = stack_scores([panel.all_scores(images) for images in drawn])
    if not run.writes:
        return

    with timer("report"):
        report = Report("Pictures from captions", f"{config.data} · {result.steps} rounds")
        headline = [k for k in metrics if k.endswith(HEADLINE)][:6]
        add_scores(report, metrics, headline)
        params, texts, images = result.params[0], scripts["test"].texts, drawn[0]["test"]
        real = read_fields(scripts["test"].source, ("image",))["image"]
        several = [images, *(draw(params, "test", k) for k in range(1, 4))]
        panels.add_pairs(report, "Drawn", texts, real, several, panel.captions(images))
        panels.add_progress(report, diary, texts)
        panels.add_interpolations(report, artist, params, draw.asked["test"], texts, seed=config.seed)
        report.add_figure("Training curves", figures.curves(run.read_metrics(), CURVES))
        panels.write_pictures(run.path / "drawn", images[:KEPT], texts[:KEPT])
        panels.write_pictures(run.path / "real", real[:KEPT], texts[:KEPT])
        panels.write_grid(run.path / "grid.png", real, images)
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer, seeds=result.seeds,
        diverged=result.diverged, steps=result.steps, resumed=result.resumed, parameters=trees.count(params),
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
