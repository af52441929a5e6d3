"""The data of an experiment that predicts something: a task about scenes, or the labels of a data set."""

from __future__ import annotations

import dataclasses

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.mixture_splits import DataSpec, describe_spec
from xmodal_jax.data.open import DataOptions, apply_missing, open_source
from xmodal_jax.data.shapes.tasks import Commands, GroupedByScene, Questions, SceneTask
from xmodal_jax.data.source import Source
from xmodal_jax.data.splits import Splits, note_few_examples, open_splits

__all__ = ["Commands", "Questions", "SceneTask", "open_task", "read_target_classes"]


def open_task(
    spec: DataSpec, options: DataOptions, bad_examples: BadExamples, task: type[SceneTask] | None = None
) -> Splits:
    """The splits of the data set ``spec``; for the embedded data set, those of a ``task`` about its scenes.

    A task's training set has one example per scene (see `GroupedByScene`), and its validation set has other scenes, so
    that no image in it has been trained on.

    Raises:
      ValueError: ``spec`` is another data set, and the task needs scenes.
    """
    if spec != "shapes" or task is None:
        if task is not None and task.needs_scenes:
            raise ValueError(
                f"spoken commands are about the embedded data set: --data shapes, not {describe_spec(spec)!r}"
            )
        return open_splits(spec, options, bad_examples)
    if options.validation is not None or options.test_split is not None:
        raise ValueError(
            "questions and commands about shapes have scenes of their own for validation and tests: leave --validation "
            "and --test-split"
        )
    # Modalities are removed only at the end, from the examples grouped by scene.
    complete = dataclasses.replace(options, missing=0.0, incomplete="keep")
    train = open_source(spec, "train", complete, bad_examples=bad_examples)
    # The scenes that follow the training scenes in the endless stream of the split.
    validation = dataclasses.replace(train, offset=len(train), size=max(1, min(150, len(train) // 10)))
    tests = {
        name: task(open_source(spec, name, options, bad_examples=bad_examples)) for name in task.test_splits
    }
    grouped = GroupedByScene(task.for_training(train))
    splits = Splits(apply_missing(grouped, options), task(validation), tests)
    note_few_examples(splits, bad_examples)
    return splits


def read_target_classes(source: Source) -> dict[str, tuple[str, ...]]:
    """The fields that can be predicted, each with the names of its classes.

    `Source.target_classes` if the source declares them, else ``label`` with the source's class names, or with the
    numbers up to its largest label.

    Raises:
      ValueError: there is nothing to predict.
    """
    if source.target_classes is not None:
        return dict(source.target_classes)
    if source.class_names is not None:
        return {"label": tuple(source.class_names)}
    labels = source.class_labels()
    if labels is None or labels.max() < 0:
        raise ValueError("the data set has no labels: classification needs a field label")
    return {"label": tuple(str(k) for k in range(int(labels.max()) + 1))}
