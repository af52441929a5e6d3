"""Pictures of what a caption or a class asks for, by a conditional GAN.

    python experiments/text_to_image_gan.py --judge runs/captioning-...
    python experiments/text_to_image_gan.py --judge RUN --redescribe OTHER_RUN
    python experiments/text_to_image_gan.py --data folder:PATH --modalities text image --model.condition class

``--judge``: a run of captioning.py on the same data that looks at the pictures and that no generator has met: what does
it read off them? ``--redescribe``: another one that the generator is trained with.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.problems import Problems
from xmodal_jax.data.source import labels_of
from xmodal_jax.data.splits import learn_text, open_splits, prepare
from xmodal_jax.models.gan import GANConfig, make_gan
from xmodal_jax.train import drawing, evaluate, figures
from xmodal_jax.train import drawing_report as panels
from xmodal_jax.train.config import RunConfig, shrink
from xmodal_jax.train.finish import finish
from xmodal_jax.train.loop import RESIDENT_LIMIT, fit
from xmodal_jax.train.players import Players
from xmodal_jax.train.report import Report
from xmodal_jax.train.restore import load_captioner
from xmodal_jax.train.run import Run
from xmodal_jax.train.writing import Script
from xmodal_jax.train.writing_report import add_scores

CURVES = (
    "train/d_loss",
    "train/g_loss",
    "train/d_read",
    "train/g_read",
    "validation/kid",
    "validation/factor_accuracy",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Pictures from captions or classes."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(
        train_size=20_000, modalities=("text", "image")
    )
    """How the data set is read."""
    steps: int = 2000
    """Rounds: each player's step, the discriminator's ``model.d_steps`` times."""
    batch_size: int = 64
    """Examples of each player's step, over all devices together."""
    eval_every: int = 500
    """Rounds between evaluations on validation data; 0: only at the end."""
    judge: pathlib.Path | None = None
    """A run of captioning.py that judges the pictures; None: they are only shown."""
    redescribe: pathlib.Path | None = None
    """Another run of captioning.py: the generator is trained to draw what it describes as asked. Its tokenizer is
    used."""
    model: GANConfig = GANConfig()
    """Both players and their objective."""
    optimizer: Players = Players()
    """Optimizers and schedules."""


def main(config: Config) -> None:
    runtime.configure()
    watch = runtime.Stopwatch()
    if config.smoke:
        config = shrink(config)
    run = Run.create(config.run_dir, config, resume=config.resume)
    model = config.model

    # Data: captions or labels, and their pictures.
    problems = Problems(config.input.on_bad_example)
    with watch("data"):
        splits = open_splits(config.data, config.input, problems)
        described = load_captioner(config.redescribe) if config.redescribe else None
        tokenize = described.tokenize if described else None
        if tokenize is None and "text" in splits.train.modalities:
            tokenize, _ = learn_text(splits.train, problems, **config.reading)
        source, transform = prepare(splits.train, tokenize, limit=RESIDENT_LIMIT)
        shape = splits.train.batch([0])["image"].shape[1:]
        scripts = {name: Script(split) for name, split in splits.tests.items()}
        judge = drawing.Judge(config.judge) if config.judge else None
    loader = Loader(
        source, batch_size=config.batch_size * model.d_steps, seed=config.seed, transform=transform
    )

    # The method: two players.
    sizes = dict(shape=shape, classes=len(splits.train.class_names or ()))
    if tokenize is not None:
        sizes |= dict(vocab_size=tokenize.tokenizer.vocab_size, length=tokenize.max_length)
    gan = make_gan(model, captioner=described.captioner if described else None, **sizes)
    artist = drawing.Artist(gan, tokenize, noise=model.generator.noise)
    script = scripts["test"]
    asked = {name: artist.asked(each.source) for name, each in scripts.items()}
    few = {k: v[:64] for k, v in asked["test"].items()}
    diary = panels.Diary(run.path / "samples", artist, few, seed=config.seed)
    shown = {}
    if judge is not None:
        with watch("evaluation"):
            shown = {name: drawing.exhibit(each, judge) for name, each in scripts.items()}
            trained = judge.features(labels_of(splits.train, ("image",))["image"][:5000])
            held = drawing.exhibit(Script(splits.validation), judge)
            wanted = artist.asked(splits.validation)

    def validate(params):
        diary.add(params)
        if judge is None:
            return {}
        drawn = artist(params, wanted, artist.draw_noise(len(held.images), 1))
        return drawing.scores(judge, drawn, held, trained, "validation/")

    facts = {"source": "text", "target": "image", "classes": splits.train.class_names, **sizes}
    facts |= {"tokenizer": tokenize.tokenizer.files()} if tokenize else {}
    fitted = fit(method=gan, loader=loader, config=config, optimizer=config.optimizer, run=run, watch=watch,
                 evaluate=validate, meta=facts)  # fmt: skip

    # Test: a picture for every caption of every split.
    def test(params):
        metrics, drawn = {}, {}
        for name in scripts:
            noise = artist.draw_noise(len(scripts[name].texts), config.seed)
            drawn[name] = artist(params, asked[name], noise)
            if judge is not None:
                metrics |= drawing.scores(judge, drawn[name], shown[name], trained, f"{name}/")
        return metrics, drawn

    with watch("evaluation"):
        tested = [test(params) for params in fitted.params]
        metrics = evaluate.stack_scores([scores for scores, _ in tested])
    if not run.writes:
        return

    with watch("report"):
        report = Report("Pictures from captions", f"{config.data} · {fitted.steps} rounds")
        headline = [
            k for k in metrics if k.endswith(("/factor_accuracy", "/r_precision", "/kid", "/kid_real"))
        ][:6]
        add_scores(report, metrics, headline)
        more = [
            artist(fitted.params[0], asked["test"], artist.draw_noise(len(script.texts), 10 + k))
            for k in range(3)
        ]
        real = labels_of(script.source, ("image",))["image"]
        said = judge.captions(tested[0][1]["test"]) if judge else None
        panels.add_pairs(report, "Drawn", script.texts, real, [tested[0][1]["test"], *more], said, range(24))
        panels.add_progress(report, diary, script.texts)
        panels.add_interpolations(
            report, artist, fitted.params[0], asked["test"], script.texts, seed=config.seed
        )
        report.add_figure("Curves", figures.curves(run.read_metrics(), CURVES))
    finish(
        run, report, metrics, headline=headline[:4], problems=problems, watch=watch,
        seeds=config.all_seeds, steps=fitted.steps, parameters=trees.count(fitted.params[0]),
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
