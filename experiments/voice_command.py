"""Spoken commands about a scene: which action, on which object? Neither ear nor eye alone can tell.

    python experiments/voice_command.py
    python experiments/voice_command.py --model.fusion co_attention
    python experiments/voice_command.py --init-from runs/contrastive-20250131-101500 --encoder-lr-multiplier 0.1

The report has every test split, also one of voices never heard in training, and models of one modality beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.splits import prepare_source
from xmodal_jax.data.tasks import Commands, open_task
from xmodal_jax.evaluation.classification import (
    ClassificationConfig,
    Classifier,
    LabelledSplit,
    evaluate_splits,
    fit_unimodal,
)
from xmodal_jax.models.fusion import FusionConfig, make_fusion, make_token_attention
from xmodal_jax.models.towers import Augment, spectrograms
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.report import classification as panels
from xmodal_jax.report import figures
from xmodal_jax.report.finish import finish
from xmodal_jax.report.page import Report
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import shrink
from xmodal_jax.train.loop import RESIDENT_LIMIT, fit
from xmodal_jax.train.run import Run
from xmodal_jax.transfer.encoders import starting_point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ClassificationConfig):
    """Action and target of spoken commands."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=8000, max_seconds=2.6)
    """How the data set is read."""
    model: FusionConfig = FusionConfig(
        fusion="merged",
        image=dataclasses.replace(FusionConfig.image, token_positions=False),
        augment=Augment(image=AugmentConfig(translate=0, flip=0.5)),
    )
    """Encoders and fusion. No command says where its target is, so that scenes may be mirrored."""


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    if config.smoke:
        config = shrink(config)
    config, encoders = starting_point(config)
    model = config.model
    run = Run.create(config.run_dir, config, resume=config.resume)

    # Data: every object of every scene, and a command about it in one of many voices.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        splits = open_task(config.data, config.input, bad_examples, Commands)
        modalities, names = tuple(splits.train.modalities), splits.train.target_classes
        source, transform = prepare_source(
            splits.train, None, limit=RESIDENT_LIMIT, once=spectrograms(model.features)
        )
        exams = {name: LabelledSplit(split, names) for name, split in splits.tests.items()}
        validation = LabelledSplit(splits.validation, names)
    loader = Loader(source, batch_size=config.batch_size, seed=config.seed, transform=transform)

    # The method: encoders, fusion, classes.
    classes = {target: len(of) for target, of in names.items()}

    def make(chosen):
        method = make_fusion(model, chosen, classes, vocab_size=0)
        return encoders.start(method, None, config.lora), encoders.optimize(config.optimizer, chosen, config)

    method, optimizer = make(modalities)
    classify = Classifier(method, modalities)

    def validate(params):
        return validation.scores(classify(params, validation.source), "validation/")

    metadata = {"modalities": modalities, "classes": names}
    result = fit(
        method, loader, config, optimizer, run, timer,
        evaluate=validate, monitor="validation/accuracy", metadata=metadata,
    )  # fmt: skip
    lonely = modalities[: 1 if config.smoke else None]
    alone = fit_unimodal(make, lonely, loader, config, run, timer)

    # Test: every split, with each choice of modalities missing, and the models of one modality.
    with timer("evaluation"):
        metrics, answers = evaluate_splits(classify, result.params, exams, alone)
    if not run.writes:
        return

    with timer("report"):
        params = result.params[0]
        seeds = f" · {config.seeds} seeds, pictures of the first" if config.seeds > 1 else ""
        report = Report(
            "Spoken commands",
            f"{', '.join(modalities)} · {model.fusion} · {result.steps} steps{seeds}",
        )
        headline = panels.add_scores(report, metrics, chance=exams["test"].guessing)
        report.add_figure("Curves", figures.curves(run.read_metrics()))
        attend = make_token_attention(model, modalities, classes, vocab_size=0)
        panels.add_attention(report, attend, params, classify, exams["test"], answers, names, model)
        panels.add_confusions(report, exams["test"], answers, names)
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer,
        seeds=result.seeds, diverged=result.diverged, steps=result.steps, parameters=trees.count(params),
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
