"""Classification by several modalities together: questions or commands about a picture, or any labelled data.

    python experiments/fusion.py
    python experiments/fusion.py --model.fusion merged --model.modality-dropout 0.3
    python experiments/fusion.py --init-from runs/contrastive-20250131-101500 --encoder-lr-multiplier 0.1
    python experiments/fusion.py --task commands
    python experiments/fusion.py --data folder:PATH --modalities image text

The first command answers questions about scenes of the embedded data set. With ``--task commands`` a voice names an
action and describes an object: which action, on which object of the scene? On other data the classes are the labels.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.shapes.questions import QUESTION_KINDS
from xmodal_jax.data.splits import fit_transforms
from xmodal_jax.data.tasks import Commands, Questions, open_task, read_target_classes
from xmodal_jax.evaluation import classification as evaluate
from xmodal_jax.experiment import choose_recipe, make_loader, start, subtitle, write_report
from xmodal_jax.models.fusion import FusionConfig, make_fusion, make_token_attention
from xmodal_jax.models.towers import Augmentation, precompute_spectrograms
from xmodal_jax.nets.fusion import MergedAttentionConfig
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.report import classification as panels
from xmodal_jax.report import figures
from xmodal_jax.train.command_line import choose_class, run_script
from xmodal_jax.train.config import DataFlags, RecipeFlags
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer

TASKS = {"questions": Questions, "commands": Commands}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(evaluate.ClassificationConfig, RecipeFlags):
    """Classification by several modalities together."""

    task: Literal["questions", "commands"] = "questions"
    """Task on the embedded data set: to answer questions about a scene, or to find action and object of a spoken
    command. It also changes the defaults of other options. Other data sets have labels and ignore it."""
    input: DataFlags = DataOptions(train_size=20_000)
    steps: int = 1400
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=5e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandConfig(Config):
    """Action and target of spoken commands."""

    task: Literal["questions", "commands"] = "commands"
    input: DataFlags = DataOptions(train_size=8000, max_seconds=2.6)
    steps: int = 1200
    model: FusionConfig = FusionConfig(
        fusion=MergedAttentionConfig(), image=dataclasses.replace(FusionConfig.image, token_positions=False),
        augment=Augmentation(image=AugmentConfig(translate=0, flip=0.5)),  # no command says left or right
    )  # fmt: skip
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=1e-2)


def main(config: Config) -> None:
    config, run, timer, bad_examples, pretrained = start(config)

    # Data: questions or commands about scenes, or the labels of another data set.
    with timer("data"):
        splits = open_task(config.data, config.input, bad_examples, TASKS[config.task])
        config = choose_recipe(config, splits, run)
        modalities, class_names = tuple(splits.train.modalities), read_target_classes(splits.train)
        prepare = fit_transforms(splits.train, bad_examples, config.text_options)
        run.write_later(lambda: prepare.save(run.path))
        model = config.model
        to_frames = precompute_spectrograms(model.features, model.augment) if "audio" in modalities else None
        loader = make_loader(config, splits.train, prepare, bad_examples=bad_examples, once=to_frames)
        labelled = lambda split: evaluate.LabelledSplit(split, class_names, ("kind", QUESTION_KINDS))
        tests, validation = {k: labelled(v) for k, v in splits.tests.items()}, labelled(splits.validation)

    # The method: encoders, fusion, classes.
    model, tokenizer, vocab_size = config.model, prepare.tokenizer, prepare.vocab_size
    classes = {target: len(names) for target, names in class_names.items()}

    def make(chosen):
        """The classifier of the ``chosen`` modalities, and its optimizer: of all modalities, or of one (a baseline)."""
        method = pretrained.attach(make_fusion(model, chosen, classes, vocab_size=vocab_size), tokenizer)
        return method, pretrained.set_learning_rates(config.optimizer, method)

    method, optimizer = make(modalities)
    classify = evaluate.Classifier(method, modalities, prepare)
    validate = lambda params: validation.scores(classify(params, validation.source), prefix="validation/")
    result = fit(
        method, loader, config, optimizer, run, timer, evaluate=validate, monitor="validation/accuracy",
        metadata={"kind": "fusion", "modalities": modalities, "classes": class_names, "tokenizer": None}
        | prepare.metadata,
    )  # fmt: skip
    unimodal_modalities = modalities[:1] if config.smoke else modalities
    unimodal = evaluate.fit_unimodal(make, unimodal_modalities, loader, config, run, timer)

    # Test: every split, with each choice of modalities missing, and the models of one modality.
    with timer("evaluation"):
        metrics, predictions = evaluate.evaluate_splits(classify, result.params, tests, unimodal)
    if not run.writes:
        return

    title = "Spoken commands" if config.task == "commands" else "Classification by several modalities"
    details = subtitle(config, result, ", ".join(modalities), model.fusion.name)
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        panels.add_scores(report, metrics, majority_accuracy=tests["test"].majority_accuracy)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))
        attend = make_token_attention(model, modalities, classes, vocab_size=vocab_size)
        evaluated = (classify, tests["test"], predictions, class_names)
        panels.add_attention(report, attend, result.params[0], *evaluated, model, tokenizer)
        panels.add_confusions(report, tests["test"], predictions, class_names)


if __name__ == "__main__":
    run_script(main, choose_class("--task", {"questions": Config, "commands": CommandConfig}), __doc__)
