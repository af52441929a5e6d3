"""Classification by several modalities: run over whole data sets, with any of them missing, and scored."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.models.fusion import FusionConfig
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, stack_scores
from xmodal_jax.types import Method

Labels = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig(StartConfig):
    """What the experiments of classification by several modalities share."""

    steps: int = 1200
    """Optimizer steps."""
    batch_size: int = 32
    """Examples per step, over all devices together; of the embedded data set scenes, each with all that is asked (or
    said) about it."""
    eval_every: int = 200
    """Steps between evaluations on validation data; 0: only at the end."""
    unimodal_steps: int = 200
    """Steps of a model of each modality alone, to see what they say together (at most ``steps``); 0: none."""
    model: FusionConfig = FusionConfig()
    """Encoders and fusion."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=1e-2)
    """Optimizer and schedule."""


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every choice of at least one modality, all of them first."""
    sizes = range(len(modalities), 0, -1)
    return [chosen for size in sizes for chosen in itertools.combinations(modalities, size)]


def given(modalities: Sequence[str]) -> str:
    """How metrics name a choice of modalities: ``image_text``."""
    return "_".join(modalities)


class Classifier:
    """Answers of a fusion method over whole data sets, compiled once for all choices of modalities."""

    def __init__(
        self,
        method: Method,
        modalities: Sequence[str],
        transform: Callable[[Any], Any] | None = None,
        *,
        batch_size: int = 250,
    ):
        self.modalities = tuple(modalities)
        self._predict, self._transform, self._batch_size = method.predict, transform, batch_size

    def of(self, method: Method, modalities: Sequence[str]) -> Classifier:
        """Another method's, reading the same data."""
        return Classifier(method, modalities, self._transform, batch_size=self._batch_size)

    def inputs(self, batch: Mapping[str, Any], only: Sequence[str] | None = None) -> dict[str, Any]:
        """What the model takes of a raw batch; of ``only`` some modalities, as if the others were missing."""
        batch = batch if self._transform is None else self._transform(batch)
        size = len(next(iter(v for v in batch.values() if not isinstance(v, Mapping))))
        chosen = self.modalities if only is None else only
        there = {m: batch.get("present", {}).get(m, np.ones(size, bool)) for m in self.modalities}
        fields = {k: v for k, v in batch.items() if k.removesuffix("_mask") in self.modalities}
        present = {m: there[m] & (m in chosen) for m in self.modalities}
        return {**fields, "present": present, "index": np.arange(size, dtype=np.int32)}

    def __call__(
        self, params: Any, source: Source, only: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The class with the highest logit of each target, int ``[N]``."""
        answer = predict_all(
            self._predict,
            params,
            source,
            batch_size=self._batch_size,
            transform=lambda b: self.inputs(b, only),
        )
        return {target: logits.argmax(axis=1) for target, logits in answer.logits.items()}


def accuracies(predicted: Labels, labels: Labels, prefix: str) -> dict[str, float]:
    """Share of examples whose classes are all right, ``<prefix>accuracy``, and with several targets of each,
    ``<prefix><target>_accuracy``. A class below 0 is unknown: its examples do not count."""
    right = {t: predicted[t] == labels[t] for t in labels}
    known = {t: labels[t] >= 0 for t in labels}
    mean = lambda hit, there: float(hit[there].mean()) if there.any() else float("nan")
    every = np.logical_and.reduce
    scores = {f"{prefix}accuracy": mean(every(list(right.values())), every(list(known.values())))}
    if len(labels) > 1:
        scores |= {f"{prefix}{t}_accuracy": mean(right[t], known[t]) for t in labels}
    return scores


class LabelledSplit:
    """A test split with its classes, read once, and the groups of examples that are scored apart.

    ``groups``: a field of the batches and the names of its values, such as the kinds of questions.
    """

    def __init__(
        self,
        source: Source,
        targets: Iterable[str],
        groups: tuple[str, Sequence[str]] | None = None,
    ):
        targets = tuple(targets)
        names = (*targets, *([groups[0]] if groups else []))
        fields = read_fields(source, names)
        self.source, self.labels = source, {t: fields[t] for t in targets}
        self.groups: dict[str, np.ndarray] = {}
        if groups and groups[0] in fields:
            kinds = {name: fields[groups[0]] == k for k, name in enumerate(groups[1])}
            self.groups = {name: rows for name, rows in kinds.items() if rows.any()}

    @property
    def known(self) -> np.ndarray:
        """Of which examples every class is known, bool ``[N]``."""
        return np.logical_and.reduce([v >= 0 for v in self.labels.values()])

    def right(self, predicted: Labels) -> np.ndarray:
        """Of which examples every class is right, bool ``[N]``."""
        return np.logical_and.reduce([predicted[t] == v for t, v in self.labels.items()])

    @property
    def guessing(self) -> float:
        """The accuracy of always giving the classes that are most frequent (together)."""
        known = self.known
        if not known.any():
            return float("nan")
        joint = np.stack([v[known] for v in self.labels.values()], axis=1)
        return float(np.unique(joint, axis=0, return_counts=True)[1].max() / len(joint))

    def scores(self, predicted: Labels, prefix: str) -> dict[str, float]:
        """`accuracies`, and ``<prefix><group>_accuracy`` of each group."""
        scores = accuracies(predicted, self.labels, prefix)
        for name, rows in self.groups.items():
            part = lambda labels, rows=rows: {t: v[rows] for t, v in labels.items()}
            scores[f"{prefix}{name}_accuracy"] = accuracies(part(predicted), part(self.labels), "")[
                "accuracy"
            ]
        return scores


def fit_unimodal(
    make: Callable[[tuple[str, ...]], tuple[Method, Optimizer]],
    modalities: Sequence[str],
    loader: Loader,
    config: ClassificationConfig,
    run: Run,
    timer: Timer,
) -> dict[str, tuple[Method, list[Any]]]:
    """Trains one model per modality, for ``config.unimodal_steps``: the baselines of the model of all modalities.

    ``make``: the method and the optimizer for some modalities. Each run is written to ``unimodal/<modality>`` in the
    directory of ``run``. Returns for each modality the method and the parameters of each seed.
    """
    if not config.unimodal_steps:
        return {}
    config = dataclasses.replace(
        config, steps=min(config.unimodal_steps, config.steps), eval_every=0, checkpoint_every=0, patience=0
    )
    found = {}
    for name in modalities:
        method, optimizer = make((name,))
        with Run.create(
            run.path / "unimodal" / name, config, resume=config.resume, writer=run.writes, tensorboard=False
        ) as own:
            run.print(f"training on {name} alone")
            found[name] = method, fit(method, loader, config, optimizer, own, timer).params
    return found


def evaluate_splits(
    classify: Classifier,
    params: Sequence[Any],
    exams: Mapping[str, LabelledSplit],
    alone: Mapping[str, tuple[Method, Sequence[Any]]],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``(metrics, the first seed's answers to the split "test")`` from the parameters of each seed.

    Metrics: ``<split>/accuracy`` and its parts for every split; ``given_<modalities>/…`` on "test" with the others
    missing; ``trained_on_<modality>/…`` on "test" of the models that `fit_unimodal` gave.
    """
    exam, found, first = exams["test"], [], {}
    for seed, own in enumerate(params):
        metrics = {}
        for name, each in exams.items():
            answers = classify(own, each.source)
            metrics |= each.scores(answers, f"{name}/")
            if name == "test" and not first:
                first = answers
        for chosen in subsets(classify.modalities)[1:]:
            metrics |= exam.scores(classify(own, exam.source, chosen), f"given_{given(chosen)}/")
        for name, (method, trained) in alone.items():
            answers = classify.of(method, (name,))(trained[seed], exam.source)
            metrics |= exam.scores(answers, f"trained_on_{name}/")
        found.append(metrics)
    return stack_scores(found), first
