"""Understanding what several modalities say together: a question about a picture, or any labelled data set.

    python experiments/fusion.py
    python experiments/fusion.py --modalities text video
    python experiments/fusion.py --model.fusion merged --model.modality-dropout 0.3
    python experiments/fusion.py --init-from runs/contrastive-20250131-101500 --encoder-lr-multiplier 0.1
    python experiments/fusion.py --data folder:PATH --modalities image text

The first answers questions about the embedded data set's scenes. On another data set the classes are its labels.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.shapes.questions import QUESTION_KINDS
from xmodal_jax.data.splits import fit_tokenizer, prepare_source
from xmodal_jax.data.tasks import Questions, open_task, read_target_classes
from xmodal_jax.evaluation.classification import (
    ClassificationConfig,
    Classifier,
    LabelledSplit,
    evaluate_splits,
    fit_unimodal,
)
from xmodal_jax.models.fusion import make_fusion, make_token_attention
from xmodal_jax.models.towers import spectrograms
from xmodal_jax.report import classification as panels
from xmodal_jax.report import figures
from xmodal_jax.report.finish import finish
from xmodal_jax.report.page import Report
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import shrink
from xmodal_jax.train.loop import RESIDENT_LIMIT, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run
from xmodal_jax.transfer.encoders import starting_point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ClassificationConfig):
    """Classification by several modalities together."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=20_000)
    """How the data set is read."""
    steps: int = 1400
    """Optimizer steps."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=5e-3)
    """Optimizer and schedule."""


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    if config.smoke:
        config = shrink(config)
    config, encoders = starting_point(config)
    model = config.model
    run = Run.create(config.run_dir, config, resume=config.resume)

    # Data: questions about scenes, or the labels of another data set.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        splits = open_task(config.data, config.input, bad_examples, Questions)
        modalities, names = tuple(splits.train.modalities), read_target_classes(splits.train)
        tokenizer = tokenize = None
        if "text" in modalities:
            tokenize, _ = fit_tokenizer(splits.train, bad_examples, **config.text_options)
            tokenizer = tokenize.tokenizer
        hear = spectrograms(model.features) if "audio" in modalities else None
        source, transform = prepare_source(splits.train, tokenize, limit=RESIDENT_LIMIT, once=hear)
        groups = ("kind", QUESTION_KINDS)
        exams = {name: LabelledSplit(split, names, groups) for name, split in splits.tests.items()}
        validation = LabelledSplit(splits.validation, names, groups)
    loader = Loader(source, batch_size=config.batch_size, seed=config.seed, transform=transform)

    # The method: encoders, fusion, classes.
    vocab_size = tokenizer.vocab_size if tokenizer else 0
    classes = {target: len(of) for target, of in names.items()}

    def make(chosen):
        method = make_fusion(model, chosen, classes, vocab_size=vocab_size)
        optimizer = encoders.optimize(config.optimizer, chosen, config)
        return encoders.start(method, tokenizer, config.lora), optimizer

    method, optimizer = make(modalities)
    classify = Classifier(method, modalities, tokenize)

    def validate(params):
        return validation.scores(classify(params, validation.source), "validation/")

    metadata = {
        "modalities": modalities,
        "classes": names,
        "tokenizer": tokenizer.files() if tokenizer else None,
    }
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
            "What several modalities say together",
            f"{', '.join(modalities)} · {config.data} · {model.fusion} · {result.steps} steps{seeds}",
        )
        headline = panels.add_scores(report, metrics, chance=exams["test"].guessing)
        report.add_figure("Curves", figures.curves(run.read_metrics()))
        attend = make_token_attention(model, modalities, classes, vocab_size=vocab_size)
        panels.add_attention(
            report, attend, params, classify, exams["test"], answers, names, model, tokenizer
        )
        panels.add_confusions(report, exams["test"], answers, names)
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer,
        seeds=result.seeds, diverged=result.diverged, steps=result.steps, parameters=trees.count(params),
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
