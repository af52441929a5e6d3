"""Accuracy of classification by several modalities, with all of them and with some missing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.core.runtime import Timer, announce_evaluation
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.models.fusion import FusionConfig
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, stack_scores
from xmodal_jax.types import Method

Classes = Mapping[str, np.ndarray]
"""The class of each example, int ``[N]``, by target; -1 where it is unknown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig(StartConfig):
    """Options of the experiments that classify by several modalities."""

    steps: int = 1200
    """Optimizer steps."""
    batch_size: int = 32
    """Examples per step, over all devices together. An example of the embedded data set is a scene with all questions
    (or commands) about it."""
    eval_every: int = 200
    """Steps between evaluations on validation data; 0: only at the end."""
    unimodal_steps: int = 200
    """Training steps of each baseline, a model of one modality alone (at most --steps); 0: no baselines."""
    model: FusionConfig = FusionConfig()
    """Encoders, fusion and head of the classifier."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=1e-2)
    """Update rule and learning-rate schedule."""


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All nonempty subsets of the modalities, the largest first.

    Example::

        subsets(("image", "text"))  # [("image", "text"), ("image",), ("text",)]
    """
    sizes = range(len(modalities), 0, -1)
    return [subset for size in sizes for subset in itertools.combinations(modalities, size)]


class Classifier:
    """Predicted classes of whole data sets by a fusion method, compiled once for all subsets of modalities.

    Args:
      method: from `models.fusion.make_fusion`.
      modalities: those that the method was made for.
      transform: of raw batches, such as tokenization; None: there is none.
      batch_size: examples at a time.
    """

    def __init__(
        self,
        method: Method,
        modalities: Sequence[str],
        transform: Callable[[Any], Any] | None = None,
        *,
        batch_size: int = 250,
    ):
        """Keeps the arguments; nothing is compiled before the first call."""
        self.modalities = tuple(modalities)
        self._predict, self._transform, self._batch_size = method.predict, transform, batch_size

    def with_method(self, method: Method, modalities: Sequence[str]) -> Classifier:
        """A classifier with the same transform and batch size for another method."""
        return Classifier(method, modalities, self._transform, batch_size=self._batch_size)

    def inputs(self, batch: Mapping[str, Any], only: Sequence[str] | None = None) -> dict[str, Any]:
        """The model's inputs from a raw batch: the modalities with their masks, ``present`` (which examples have which
        modality) and ``index``. With ``only``, the modalities that it does not name count as missing."""
        batch = batch if self._transform is None else self._transform(batch)
        # Number of examples: the length of any array (some fields are dicts of arrays, such as "present").
        size = len(next(iter(v for v in batch.values() if not isinstance(v, Mapping))))
        used = self.modalities if only is None else only
        # Without the field "present" no modality is missing.
        in_data = {m: batch.get("present", {}).get(m, np.ones(size, bool)) for m in self.modalities}
        present = {m: in_data[m] & (m in used) for m in self.modalities}
        fields = {k: v for k, v in batch.items() if k.removesuffix("_mask") in self.modalities}
        return {**fields, "present": present, "index": np.arange(size, dtype=np.int32)}

    def __call__(
        self, params: Any, source: Source, only: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The predicted class (highest logit) of each example of ``source``, int ``[N]`` by target.

        With ``only``, the modalities that it does not name count as missing.
        """
        return most_likely(self.logits(params, source, only))

    def logits(self, params: Any, source: Source, only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The logits ``[N, classes]`` of each example of ``source``, by target.

        With ``only``, the modalities that it does not name count as missing.
        """
        output = predict_all(
            self._predict,
            params,
            source,
            batch_size=self._batch_size,
            transform=lambda b: self.inputs(b, only),
        )
        return dict(output.logits)


def most_likely(logits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The class with the highest logit, int ``[N]``, by target."""
    return {target: x.argmax(axis=1) for target, x in logits.items()}


def gains_of_modalities(
    logits: Mapping[tuple[str, ...], Mapping[str, np.ndarray]],
    labels: Classes,
    presence: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """What each modality adds to each set of others: ``adds_<modality>_to_<others>/log_likelihood`` and
    ``/entropy_reduction``, in nats, means over the examples that have all of them and known classes; no metric where
    there is no such example.

    The first is the gain of the log-likelihood of the true classes, by how much the prediction gets better; the second
    the loss of the prediction's entropy, by how much the model is surer. Surer and not better is overconfident. Targets
    are added up.

    Args:
      logits: ``[N, classes]`` by target, by the modalities that are observed, in one order.
      labels: the true classes.
      presence: which examples have which modality, bool ``[N]``; a modality that it does not name is in all.
    """
    log_p = {observed: _log_softmax(of_targets) for observed, of_targets in logits.items()}
    known = np.logical_and.reduce([classes >= 0 for classes in labels.values()])

    def evidence(observed: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood of the true classes, and the prediction's entropy, both ``[N]``."""
        true = [
            np.take_along_axis(x, np.maximum(labels[t], 0)[:, None], axis=1)[:, 0]
            for t, x in log_p[observed].items()
        ]
        entropy = [-(np.exp(x) * x).sum(axis=1) for x in log_p[observed].values()]
        return sum(true), sum(entropy)

    evidence_of, metrics = {observed: evidence(observed) for observed in logits}, {}
    for larger in logits:
        for added in larger:
            others = tuple(m for m in larger if m != added)
            counted = known & np.logical_and.reduce([presence.get(m, np.ones_like(known)) for m in larger])
            if others in logits and counted.any():
                (after, surer), (before, unsure) = evidence_of[larger], evidence_of[others]
                name = f"adds_{added}_to_{'_'.join(others)}"
                metrics[f"{name}/log_likelihood"] = float((after - before)[counted].mean())
                metrics[f"{name}/entropy_reduction"] = float((unsure - surer)[counted].mean())
    return metrics


def _log_softmax(logits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Log-probabilities ``[N, classes]`` by target, in float64."""
    from scipy.special import log_softmax  # here: it takes a while to import

    return {t: log_softmax(np.float64(x), axis=1) for t, x in logits.items()}


def accuracies(predicted: Classes, labels: Classes, prefix: str) -> dict[str, float]:
    """Accuracies of ``predicted`` classes against ``labels``, both int ``[N]`` by target.

    ``<prefix>accuracy``: the fraction of examples whose classes are correct for every target; with several targets
    also ``<prefix><target>_accuracy`` of each target. Examples with an unknown class do not count; NaN if none does.
    """
    correct = {t: predicted[t] == labels[t] for t in labels}  # bool [N] by target; -1 is never predicted
    known = {t: labels[t] >= 0 for t in labels}

    def fraction(is_correct: np.ndarray, counted: np.ndarray) -> float:
        """The fraction of correct ones among the counted examples, both bool ``[N]``; NaN if none counts."""
        return float(is_correct[counted].mean()) if counted.any() else float("nan")

    all_correct = np.logical_and.reduce(list(correct.values()))
    all_known = np.logical_and.reduce(list(known.values()))
    scores = {f"{prefix}accuracy": fraction(all_correct, all_known)}
    if len(labels) > 1:
        scores |= {f"{prefix}{t}_accuracy": fraction(correct[t], known[t]) for t in labels}
    return scores


class LabelledSplit:
    """A split of a data set with its classes, read once, and groups of examples that are also scored separately.

    Args:
      source: the examples.
      targets: names of the fields that hold classes.
      groups: the name of an integer field, and the names of its values 0, 1, ..., such as the kinds of questions; None:
        no groups.
    """

    source: Source
    labels: Classes
    groups: dict[str, np.ndarray]
    """Which examples are in a group, bool ``[N]`` by its name; only groups that have examples."""

    def __init__(
        self,
        source: Source,
        targets: Iterable[str],
        groups: tuple[str, Sequence[str]] | None = None,
    ):
        """Reads the classes and the groups of all examples."""
        targets = tuple(targets)
        group_field, group_names = groups or (None, ())
        fields = read_fields(source, targets if group_field is None else (*targets, group_field))
        self.source, self.labels = source, {t: fields[t] for t in targets}
        self.groups = {}
        if group_field in fields:
            # Which examples [N] are in each group.
            members = {name: fields[group_field] == k for k, name in enumerate(group_names)}
            self.groups = {name: is_member for name, is_member in members.items() if is_member.any()}

    @property
    def known(self) -> np.ndarray:
        """Which examples have a known class for every target, bool ``[N]``."""
        return np.logical_and.reduce([v >= 0 for v in self.labels.values()])

    def correct(self, predicted: Classes) -> np.ndarray:
        """Which examples have the correct class for every target, bool ``[N]``."""
        return np.logical_and.reduce([predicted[t] == v for t, v in self.labels.items()])

    @property
    def majority_accuracy(self) -> float:
        """The accuracy of always predicting the most frequent combination of classes; NaN if no class is known."""
        known = self.known
        if not known.any():
            return float("nan")
        combinations = np.stack([v[known] for v in self.labels.values()], axis=1)  # [N, targets]
        _, counts = np.unique(combinations, axis=0, return_counts=True)  # how often each combination occurs
        return float(counts.max() / len(combinations))

    def scores(self, predicted: Classes, prefix: str) -> dict[str, float]:
        """`accuracies` of the ``predicted`` classes (``[N]`` by target), and ``<prefix><group>_accuracy`` of each
        group."""
        scores = accuracies(predicted, self.labels, prefix)
        for name, is_member in self.groups.items():
            group_predicted = {t: classes[is_member] for t, classes in predicted.items()}
            group_labels = {t: classes[is_member] for t, classes in self.labels.items()}
            accuracy = accuracies(group_predicted, group_labels, prefix="")["accuracy"]
            scores[f"{prefix}{name}_accuracy"] = accuracy
        return scores


def fit_unimodal(
    make_method_and_optimizer: Callable[[tuple[str, ...]], tuple[Method, Optimizer]],
    modalities: Sequence[str],
    loader: Loader,
    config: ClassificationConfig,
    run: Run,
    timer: Timer,
) -> dict[str, tuple[Method, list[Any]]]:
    """Trains a unimodal baseline for each modality, for ``config.unimodal_steps`` steps.

    Args:
      make_method_and_optimizer: makes the method and the optimizer for a tuple of modalities.
      modalities: a baseline is trained for each of these.
      loader, config, timer: the same as for the multimodal model.
      run: the multimodal model's run; each baseline is written to its subdirectory ``unimodal/<modality>``.

    Returns:
      By modality, the baseline's method and its parameters for each seed; empty if ``unimodal_steps`` is 0.
    """
    if not config.unimodal_steps:
        return {}
    # Baselines are evaluated at the end only, and not stopped early.
    steps = min(config.unimodal_steps, config.steps)
    config = dataclasses.replace(config, steps=steps, eval_every=0, checkpoint_every=0, patience=0)
    trained = {}
    for name in modalities:
        method, optimizer = make_method_and_optimizer((name,))
        with Run.create(
            run.path / "unimodal" / name, config, resume=config.resume, writer=run.writes, tensorboard=False
        ) as unimodal_run:
            run.print(f"training on {name} alone")
            options = dict(steps_flag="--unimodal-steps")
            trained[name] = (
                method,
                fit(method, loader, config, optimizer, unimodal_run, timer, **options).params,
            )
    return trained


def evaluate_splits(
    classify: Classifier,
    params: Sequence[Any],
    splits: Mapping[str, LabelledSplit],
    unimodal: Mapping[str, tuple[Method, Sequence[Any]]],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores every test split, and the split "test" with some modalities missing and by the baselines.

    Args:
      classify: the multimodal model.
      params: its parameters for each seed.
      splits: test splits by name.
      unimodal: the unimodal baselines, from `fit_unimodal`.

    Returns:
      The metrics, and the classes that the first seed predicts for the split "test". The metrics are, by prefix (see
      `LabelledSplit.scores`): ``<split>/`` of every split; ``given_<modalities>/`` of "test" where the other modalities
      are missing; ``adds_<modality>_to_<modalities>/`` what one more is worth (see `gains_of_modalities`);
      ``trained_on_<modality>/`` of "test" by the baselines.
    """
    announce_evaluation()
    # For each seed, the logits of each split.
    logits = [{name: classify.logits(p, split.source) for name, split in splits.items()} for p in params]
    scores = [
        _seed_scores(classify, params[seed], logits[seed], splits, unimodal, seed)
        for seed in range(len(params))
    ]
    return stack_scores(scores), most_likely(logits[0]["test"])


def _seed_scores(classify, params, logits, splits, unimodal, seed: int) -> dict[str, float]:
    """The metrics of `evaluate_splits` for one seed, whose ``logits`` are by split and target.

    ``classify``: the multimodal model; ``params``: its parameters of this seed. ``unimodal``: by modality the
    baseline's method and its parameters for every seed. ``seed``: the position of this seed among them.
    """
    test, scores = splits["test"], {}
    for name, split in splits.items():
        scores |= split.scores(most_likely(logits[name]), prefix=f"{name}/")
    by_observed = {classify.modalities: logits["test"]}
    for observed in subsets(classify.modalities)[1:]:  # the first subset has all modalities
        by_observed[observed] = classify.logits(params, test.source, only=observed)
        scores |= test.scores(most_likely(by_observed[observed]), prefix=f"given_{'_'.join(observed)}/")
    scores |= gains_of_modalities(by_observed, test.labels, test.source.presence())
    for name, (method, baseline_params) in unimodal.items():
        classify_alone = classify.with_method(method, (name,))
        classes = classify_alone(baseline_params[seed], test.source)
        scores |= test.scores(classes, prefix=f"trained_on_{name}/")
    return scores
