"""What one can learn from a generator: how well a classifier of real images does that was trained on generated ones.

The *classification accuracy score* (Ravuri and Vinyals 2019, arXiv:1905.10887) is the accuracy on real test images of a
fresh classifier that was trained on generated images alone, as many as there are real ones, with the classes of the
real ones. Beside it stands the same classifier trained on the real images, by as many updates and with the same
augmentation. A generator whose images do not show their classes, or lack what varies within them, has a lower score.

The *augmented accuracy* is that of a classifier trained on some real images and generated ones together, beside that
of one trained on the same real images alone, again by as many updates. How many generated images come to each real one
is chosen on real validation images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.random import batch_keys, named_keys
from xmodal_jax.data.shapes.scenes import COLOURS, PLACES, SHAPES, SIZES, TEXTURES
from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import Splits
from xmodal_jax.data.views import Subset, keep_labelled, one_per_picture
from xmodal_jax.evaluation.embeddings import predict_all, take_evenly
from xmodal_jax.evaluation.images import ImageGenerator
from xmodal_jax.evaluation.latent_data import count_classes
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import ModalityConfigs
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.encoders import DCGANEncoderConfig
from xmodal_jax.preprocess.image import AugmentConfig, augment, to_float, to_pixels
from xmodal_jax.train.optim import Optimizer, make_optimizer
from xmodal_jax.types import Batch, Key

ENCODER = DCGANEncoderConfig(width=32, norm="none")
"""Encoder of the classifiers."""
OPTIMIZER = Optimizer("muon", learning_rate=5e-3)
"""Update rule and learning-rate schedule of the classifiers."""
SCENE_TARGETS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES, "place": PLACES}
"""What is predicted of a scene with one object: factors, and the names of their values."""
NO_CLASSES = (
    "The training, the validation or the test split has no images with known classes (the field 'label'), at least two "
    "of them in training, so that no classifier can be trained and tested."
)
"""Why nothing is measured on data without classes."""

Targets = Mapping[str, tuple[str, ...]]
"""What a classifier predicts: the names of the classes of each target, by the target's name."""


@dataclasses.dataclass(frozen=True)
class LearningEvaluation:
    """What classifiers that are trained on generated images are compared with, and their size."""

    steps: int = 400
    """Updates of each classifier, whatever it is trained on; 0: nothing is measured."""
    examples: int = 1000
    """Largest number of real training images, and of generated ones, that a classifier is trained on alone."""
    test_examples: int = 2000
    """Largest number of real test images."""
    real_sizes: tuple[int, ...] = (500,)
    """Numbers of real images that generated ones are added to; empty: none are added."""
    ratios: tuple[float, ...] = (1.0, 2.0)
    """Numbers of generated images for each real one that are tried; the best one on validation images is taken."""
    seeds: int = 2
    """Number of classifiers of each kind; accuracies are means over them."""
    batch_size: int = 64
    """Images per update."""
    translate: int = 2
    """Augmentation of all training images, real and generated: largest random shift along each axis, in pixels."""

    def __post_init__(self):
        check_at_least(self, 0, "steps", "translate")
        check_at_least(self, 1, "examples", "test_examples", "seeds", "batch_size")
        if any(size < 1 for size in self.real_sizes):
            raise ValueError(f"real_sizes are numbers of images, got {self.real_sizes}")
        if not all(0 < ratio < math.inf for ratio in self.ratios):  # NaN neither
            raise ValueError(f"ratios must be positive and finite, got {self.ratios}")

    def shrink(self) -> LearningEvaluation:
        """The options of a ``--smoke`` run: just enough to run every part."""
        if not self.steps:
            return self
        return dataclasses.replace(
            self, steps=2, examples=16, test_examples=16, real_sizes=(8,), batch_size=8, seeds=1
        )

    @property
    def generated(self) -> int:
        """Number of images to generate: for the classifiers of generated images alone, and of the largest mixture."""
        largest = max(self.ratios, default=0.0) * max(self.real_sizes, default=0)
        return max(self.examples, round(largest))


class LabelledImages(NamedTuple):
    """Images and their classes."""

    images: np.ndarray
    """uint8 ``[N, H, W, C]``."""
    labels: np.ndarray
    """int32 ``[N, T]``: the class of each target."""


Generate = Callable[[Any, np.ndarray], np.ndarray]
"""``generate(params, indices [N])``: a generated image, uint8 ``[N, H, W, C]``, for the condition (such as the caption)
of each of these training examples; one that occurs twice gets two images."""


def find_targets(source: Source, *others: Source) -> dict[str, tuple[str, ...]]:
    """What can be predicted of the labelled examples of ``source``: the factors of scenes with one object, else the
    class.

    Empty: the examples do not have two classes. ``others``: other splits of the data set, whose classes count as well
    where classes have no names.
    """
    if not count_classes(source) or len(np.unique(source.class_labels())) < 2:
        return {}
    count = max(map(count_classes, (source, *others)))
    factors = source.factors()
    if factors is not None and factors.keys() >= SCENE_TARGETS.keys():
        return dict(SCENE_TARGETS)
    names = source.class_names or range(count)
    return {"class": tuple(map(str, names))}


def read_labels(source: Source, targets: Targets) -> np.ndarray:
    """The classes int32 ``[N, T]`` of labelled examples, for the ``targets`` of `find_targets`."""
    if "class" in targets:
        return np.asarray(source.class_labels(), np.int32)[:, None]
    factors = source.factors()
    first_object = {name: x if x.ndim == 1 else x[:, 0] for name, x in factors.items() if name in targets}
    return np.stack([first_object[name] for name in targets], axis=1).astype(np.int32)


def labelled_examples(source: Source, count: int, needed: Sequence[str]) -> Source | None:
    """At most ``count`` examples, evenly spread over those whose class is known, one of each picture, without those
    that lack one of the modalities ``needed``; None: there are none."""
    if not count_classes(source):
        return None
    source = one_per_picture(keep_labelled(source))
    present = source.presence()
    complete = np.logical_and.reduce([present[m] for m in needed if m in present])
    if not np.any(complete):
        return None
    return take_evenly(Subset(source, np.flatnonzero(np.broadcast_to(complete, len(source)))), count)


def read_labelled(source: Source, targets: Targets, modality: str = "image") -> LabelledImages:
    """The images of a source whose classes are known."""
    return LabelledImages(read_fields(source, (modality,))[modality], read_labels(source, targets))


class Trainer:
    """Trains a method of one network on examples in memory, by a number of updates that does not depend on theirs. Its
    program is compiled once.

    Args:
      init: ``init(key, batch) -> params``.
      loss: ``loss(params, batch, key) -> scalar``.
      optimizer: update rule and learning-rate schedule.
      steps: number of updates.
      batch_size: examples per update.
    """

    def __init__(
        self,
        init: Callable[..., Any],
        loss: Callable[..., jax.Array],
        optimizer: Optimizer,
        *,
        steps: int,
        batch_size: int,
    ):
        """Keeps the arguments; nothing is compiled before the first training."""
        self.steps, self.batch_size = steps, batch_size
        self._init, self._loss = jax.jit(init), loss
        self._optimizer = make_optimizer(optimizer, steps)
        self.update = jax.jit(self._update)

    def _update(self, state: tuple[Any, Any], batch: Batch, key: Key) -> tuple[Any, Any]:
        """One update on a batch; ``state``: parameters, and state of the optimizer."""
        params, optimizer_state = state
        gradient = jax.grad(self._loss)(params, batch, key)
        updates, optimizer_state = self._optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    def fit(self, fields: Mapping[str, np.ndarray], indices: np.ndarray, *, seed: int) -> Any:
        """The parameters after all updates on the examples ``indices`` of ``fields``, arrays ``[N, ...]`` by name.

        The same ``seed`` gives the same parameters.
        """
        params_key, loss_key = named_keys(jax.random.key(seed), "params", "loss")
        index = np.arange(self.batch_size, dtype=np.int32)
        params = self._init(params_key, {name: x[:1] for name, x in fields.items()} | {"index": index[:1]})
        state = params, self._optimizer.init(params)
        for step, chosen in enumerate(shuffled_batches(indices, self.steps, self.batch_size, seed)):
            numbers = index + np.int32(step * self.batch_size)
            batch = {name: x[chosen] for name, x in fields.items()} | {"index": numbers}
            state = self.update(state, batch, loss_key)
        return state[0]


class ImageClassifier:
    """A small classifier of images for several targets at once.

    Example::

        classifier = ImageClassifier((28, 28, 1), (10,), steps=400)
        params = classifier.fit(images, np.arange(500), seed=0)  # of the first 500
        classifier.correct(params, test).mean(axis=0)  # [1]: the accuracy of each target
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: tuple[int, ...],
        *,
        steps: int,
        batch_size: int = 64,
        translate: int = 2,
    ):
        """``shape``: of an image. ``classes``: number of classes of each target. The others: see
        `LearningEvaluation`."""
        self.classes, self._augment = classes, AugmentConfig(translate=translate)
        self._network = make_judges(
            ModalityConfigs(), {"image": Size(tuple(shape))}, sum(classes), encoders={"image": ENCODER}
        ).method
        self.trainer = Trainer(self._network.init, self._loss, OPTIMIZER, steps=steps, batch_size=batch_size)
        # One function object, which `predict_all` compiles once.
        self._predict = self._predict_classes

    def _logits(self, params: Any, batch: Batch) -> list[jax.Array]:
        """The logits ``[B, classes]`` of each target."""
        logits = self._network.predict(params, batch).logits[:, 0]  # of the only modality
        return jnp.split(logits, np.cumsum(self.classes)[:-1], axis=-1)

    def augment(self, batch: Batch, key: Key) -> jax.Array:
        """The images of a batch as they are trained on, uint8: randomly shifted."""
        return to_pixels(augment(to_float(batch["image"]), batch_keys(key, batch), self._augment))

    def _loss(self, params: Any, batch: Batch, key: Key) -> jax.Array:
        """The mean cross-entropy over targets and augmented examples."""
        logits = self._logits(params, {**batch, "image": self.augment(batch, key)})
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        by_target = zip(logits, batch["labels"].T, strict=True)
        return jnp.stack([cross_entropy(x, labels) for x, labels in by_target]).mean()

    def fit(self, images: LabelledImages, indices: np.ndarray, *, seed: int) -> Any:
        """The parameters after training on the images ``indices``, see `Trainer.fit`."""
        return self.trainer.fit({"image": images.images, "labels": images.labels}, indices, seed=seed)

    def _predict_classes(self, params: Any, batch: Batch) -> jax.Array:
        """The class with the highest logit, ``[B, T]``."""
        return jnp.stack([logits.argmax(axis=-1) for logits in self._logits(params, batch)], axis=1)

    def correct(self, params: Any, images: LabelledImages) -> np.ndarray:
        """Which classes are predicted rightly, bool ``[N, T]``."""
        return predict_all(self._predict, params, ArraySource({"image": images.images})) == images.labels


@functools.lru_cache(maxsize=8)
def compiled_classifier(*shape_and_classes: tuple[int, ...], **sizes: int) -> ImageClassifier:
    """The `ImageClassifier` with these arguments: one for all generators of images of one shape, compiled once."""
    return ImageClassifier(*shape_and_classes, **sizes)


def shuffled_batches(indices: np.ndarray, steps: int, batch_size: int, seed: int) -> np.ndarray:
    """``steps`` batches int32 ``[steps, batch_size]`` of ``indices``, epoch after epoch in random order."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // len(indices))  # rounded up
    order = np.concatenate([rng.permutation(indices) for _ in range(epochs)])
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def match_labels(labels: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices int ``[M]`` of examples that have the classes ``wanted [M, T]``, drawn from those with ``labels [N, T]``:
    each as seldom as possible. All of the classes must occur in ``labels``."""
    _, number = np.unique(np.concatenate([labels, wanted]), axis=0, return_inverse=True)
    number = np.ravel(number)
    available, required = number[: len(labels)], number[len(labels) :]
    chosen = np.empty(len(wanted), np.int64)
    for value in np.unique(required):
        positions = np.flatnonzero(required == value)
        candidates = rng.permutation(np.flatnonzero(available == value))
        chosen[positions] = np.resize(candidates, len(positions))
    return chosen


class Augmentation(NamedTuple):
    """The accuracies of classifiers trained on some real images with generated ones; S seeds."""

    real: int
    """Number of real images."""
    ratio: float
    """Generated images for each real one; 0: real images alone."""
    validation: tuple[float, ...]
    """Accuracy on real validation images, of each seed."""
    test: tuple[float, ...]
    """Accuracy on real test images, of each seed."""


class LearningScores(NamedTuple):
    """What was learned from generated images."""

    metrics: dict[str, float]
    """Accuracies on real test images, see `LearningEvaluator`; empty: nothing was measured."""
    reason: str = ""
    """Why nothing was measured."""
    class_accuracies: dict[str, dict[str, np.ndarray]] = {}  # noqa: RUF012
    """By target, then by what the classifier was trained on ("real", "generated"): the accuracy of each class."""
    augmentations: tuple[Augmentation, ...] = ()
    """For each number of real images: these alone, then with generated ones at each ratio."""
    targets: Targets = {}  # noqa: RUF012
    """What the classifiers predict."""
    examples: int = 0
    """Number of images that a classifier is trained on alone, real or generated."""
    options: LearningEvaluation = LearningEvaluation()
    """What was measured."""


class _Training(NamedTuple):
    """What a classifier is trained on: numbers of real and of generated images, and a seed."""

    real: int
    generated: int
    seed: int


class LearningEvaluator:
    """Trains classifiers on generated and on real images, and tests them on real ones.

    Those of real images alone are trained once, and serve all generators. An accuracy is the mean over the targets, and
    over the options' seeds.

    The metrics are, where ``_of_<n>`` and ``_sd`` are there for several sizes and seeds alone:

    - ``learning/generated_accuracy``: the classification accuracy score; ``learning/real_accuracy``: the same of real
      images; for several targets each also as ``_<target>``, and for several seeds the standard deviation, ``_sd``;
    - ``learning/augmented_accuracy_of_<n>``: of n real images and generated ones at the ratio
      ``learning/ratio_of_<n>``, which is the best one on validation images; ``learning/real_accuracy_of_<n>``: of the n
      real images alone; ``learning/gain_of_<n>``: the difference.

    Example::

        evaluate = LearningEvaluator(generate, train, validation, test, {"class": names}, LearningEvaluation())
        evaluate(params).metrics["learning/generated_accuracy"]
    """

    def __init__(
        self,
        generate: Generate | None,
        train: LabelledImages | None,
        validation: LabelledImages | None,
        test: LabelledImages | None,
        targets: Targets,
        options: LearningEvaluation,
        *,
        reason: str = "",
    ):
        """``generate``: see `Generate`; its indices are those of ``train``. ``train``, ``validation``, ``test``: real
        images. ``reason``: why nothing can be measured; empty: it can."""
        self.generate, self.train, self.validation, self.test = generate, train, validation, test
        self.targets, self.options, self.reason = targets, options, reason
        self._real: dict[_Training, tuple[np.ndarray, np.ndarray]] = {}
        """The results of the classifiers of real images alone."""
        if not reason:
            classes = tuple(len(names) for names in targets.values())
            sizes = {name: getattr(options, name) for name in ("steps", "batch_size", "translate")}
            self.classifier = compiled_classifier(train.images.shape[1:], classes, **sizes)

    def __call__(self, params: Any) -> LearningScores:
        """What is learned from the images of the generator with the parameters ``params``."""
        if self.reason:
            return LearningScores({}, self.reason)
        # The conditions of the training examples in turn.
        indices = np.arange(self.options.generated) % len(self.train.labels)
        generated = LabelledImages(self.generate(params, indices), self.train.labels[indices])
        return self.score(generated)

    def score(self, generated: LabelledImages, *, progress: bool = False) -> LearningScores:
        """What is learned from these generated images. At least as many as training images are needed, and their
        classes must be those of the training images in turn. ``progress``: whether to show how many classifiers are
        trained."""
        if len(generated.labels) < len(self.train.labels):
            raise ValueError(
                f"generated: {len(generated.labels)} images are too few, needed are as many as there are real ones, "
                f"{len(self.train.labels)}"
            )
        images = LabelledImages(*map(np.concatenate, zip(self.train, generated, strict=True)))
        count, seeds, ratios = len(self.train.labels), range(self.options.seeds), self.options.ratios
        sizes = sorted({min(size, count) for size in self.options.real_sizes}) if ratios else []
        separate = {"generated": (0, count), "real": (count, 0)}
        mixtures = {(size, ratio): (size, round(ratio * size)) for size in sizes for ratio in (0.0, *ratios)}
        numbers = dict.fromkeys([*separate.values(), *mixtures.values()])  # each once
        trainings = [_Training(*pair, seed) for pair in numbers for seed in seeds]
        bar = tqdm(trainings, desc="classifiers", disable=not progress)
        results = {training: self._result(training, images) for training in bar}
        of_seeds = lambda pair: list(zip(*(results[_Training(*pair, seed)] for seed in seeds), strict=True))
        metrics: dict[str, float] = {}
        correct = {name: np.stack(of_seeds(pair)[1]) for name, pair in separate.items()}
        for name, values in correct.items():
            metrics |= self._accuracies(f"learning/{name}_accuracy", values)
        augmentations = [
            Augmentation(size, ratio, *(tuple(float(x.mean()) for x in split) for split in of_seeds(pair)))
            for (size, ratio), pair in mixtures.items()
        ]
        for size in sizes:
            metrics |= augmentation_metrics([row for row in augmentations if row.real == size])
        return LearningScores(
            metrics,
            "",
            self._class_accuracies(correct),
            tuple(augmentations),
            self.targets,
            count,
            self.options,
        )

    def _result(self, training: _Training, images: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
        """Which classes of validation and of test images the classifier predicts rightly, bool ``[N, T]`` each.
        ``images``: the real training images, followed by the generated ones."""
        if training in self._real:
            return self._real[training]
        params = self.classifier.fit(images, self._indices(training, images.labels), seed=training.seed)
        validation, test = (self.classifier.correct(params, split) for split in (self.validation, self.test))
        if not training.generated:
            self._real[training] = validation, test
        return validation, test

    def _indices(self, training: _Training, labels: np.ndarray) -> np.ndarray:
        """The training images, among all of the classes ``labels``: random real ones, others for each seed; and
        generated ones with their classes, each class as often in proportion."""
        count = len(self.train.labels)
        if not training.real:
            return count + np.arange(training.generated)
        real = np.arange(count)
        if training.real < count:
            real = np.random.default_rng(training.seed).permutation(count)[: training.real]
        wanted = np.resize(labels[real], (training.generated, labels.shape[1]))
        added = match_labels(labels[count:], wanted, np.random.default_rng(training.seed))
        return np.concatenate([real, count + added])

    def _accuracies(self, name: str, correct: np.ndarray) -> dict[str, float]:
        """The accuracy, its standard deviation over seeds, and that of each target, from bool ``[S, N, T]``."""
        scores = {name: float(correct.mean())}
        if len(correct) > 1:
            scores[f"{name}_sd"] = float(correct.mean(axis=(1, 2)).std(ddof=1))
        if len(self.targets) > 1:
            by_target = correct.mean(axis=(0, 1)).tolist()
            scores |= {f"{name}_{target}": x for target, x in zip(self.targets, by_target, strict=True)}
        return scores

    def _class_accuracies(self, correct: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """See `LearningScores`, from bool ``[S, N, T]``; NaN where no test image is of a class."""
        accuracies: dict[str, dict[str, np.ndarray]] = {}
        for k, (target, names) in enumerate(self.targets.items()):
            labels = self.test.labels[:, k]
            counts = np.bincount(labels, minlength=len(names)).astype(float)
            counts[counts == 0] = np.nan
            accuracies[target] = {
                name: np.bincount(labels, x[:, :, k].mean(axis=0), minlength=len(names)) / counts
                for name, x in correct.items()
            }
        return accuracies


def best_ratio(rows: Sequence[Augmentation]) -> Augmentation:
    """The row with generated images that has the best mean accuracy on validation images; the first of equal ones."""
    return max((row for row in rows if row.ratio), key=lambda row: np.mean(row.validation))


def augmentation_metrics(rows: Sequence[Augmentation]) -> dict[str, float]:
    """The metrics of one number of real images, see `LearningEvaluator`. ``rows``: without generated images first."""
    unmixed, best = rows[0], best_ratio(rows)
    gains = np.subtract(best.test, unmixed.test)
    metrics = {
        f"learning/real_accuracy_of_{unmixed.real}": float(np.mean(unmixed.test)),
        f"learning/augmented_accuracy_of_{unmixed.real}": float(np.mean(best.test)),
        f"learning/gain_of_{unmixed.real}": float(gains.mean()),
        f"learning/ratio_of_{unmixed.real}": best.ratio,
    }
    if len(gains) > 1:
        metrics[f"learning/gain_of_{unmixed.real}_sd"] = float(gains.std(ddof=1))
    return metrics


def nothing_to_learn(reason: str, options: LearningEvaluation = LearningEvaluation()) -> LearningEvaluator:
    """An evaluator that measures nothing, and says why."""
    return LearningEvaluator(None, None, None, None, {}, options, reason=reason)


def make_learning_evaluator(
    options: LearningEvaluation,
    splits: Sequence[Source],
    make_generate: Callable[[Source], Generate],
    *,
    modality: str = "image",
    needed: Sequence[str] = (),
) -> LearningEvaluator:
    """The evaluator of a generator of images, on the labelled examples of a data set.

    Args:
      options: what is measured.
      splits: training, validation and test examples.
      make_generate: makes the generator from the training examples whose conditions it takes.
      modality: the modality of the images.
      needed: the modalities that a condition is made of.
    """
    if not options.steps:
        return nothing_to_learn("It was turned off.", options)
    counts = (options.examples, options.test_examples, options.test_examples)
    labelled = [
        labelled_examples(split, count, (modality, *needed))
        for split, count in zip(splits, counts, strict=True)
    ]
    if any(split is None for split in labelled):
        return nothing_to_learn(NO_CLASSES, options)
    targets = find_targets(*labelled)
    if not targets:
        return nothing_to_learn(NO_CLASSES, options)
    images = [read_labelled(split, targets, modality) for split in labelled]
    return LearningEvaluator(make_generate(labelled[0]), *images, targets, options)


def image_learning(
    options: LearningEvaluation, splits: Splits, generator: ImageGenerator, condition: Any, *, seed: int
) -> LearningEvaluator:
    """What classifiers learn from the images that a GAN or a flow generates for the captions, or classes, of training
    examples.

    ``condition``: its configuration; one with the name "none" stands for no condition. ``seed``: of the noise.
    """
    if condition.name == "none":
        return nothing_to_learn(
            "Images are generated from noise alone, so that their classes are not known.", options
        )

    def make_generate(train: Source) -> Generate:
        conditions = generator.conditions(train)

        def generate(params: Any, indices: np.ndarray) -> np.ndarray:
            """Images for the conditions of the training examples ``indices``, each from other noise."""
            of_indices = {name: values[indices] for name, values in conditions.items()}
            return generator(params, of_indices, generator.sample_noise(len(indices), seed))

        return generate

    needed = () if generator.tokenize is None else ("text",)
    examples = (splits.train, splits.validation, splits.tests["test"])
    return make_learning_evaluator(options, examples, make_generate, needed=needed)
