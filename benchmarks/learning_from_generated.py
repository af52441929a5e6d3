"""What one can learn from trained generators: classifiers of real images that are trained on generated ones.

    python -m benchmarks.learning_from_generated runs/text_to_image_gan runs/text_to_image_flow runs/multimodal_vae
    python -m benchmarks.learning_from_generated runs/flow --data folder:fashion --real-sizes 500 5000 --ratios 1 4
    python -m benchmarks.learning_from_generated runs/text_to_image_gan --caption-steps 600

Each run generates images for the captions or classes of training examples; classifiers are trained on these, on real
images, and on both, and tested on real test images (`xmodal_jax.evaluation.learning` says what is measured). The table
has a row for the real images and one for each run: the accuracy of what was trained on them alone; with some real
images (in the first row these alone, in the others with generated ones); what the generated ones gain, and how many of
them for each real one are best on validation images. With ``--caption-steps`` there is also the score on real images of
captioners that were trained on generated ones, for captions of all training scenes, also of those without a class.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from xmodal_jax.core import runtime
from xmodal_jax.core.checks import check_at_least
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.splits import Splits, open_splits
from xmodal_jax.evaluation.embeddings import take_evenly
from xmodal_jax.evaluation.learned_captions import CaptionLearning
from xmodal_jax.evaluation.learning import (
    LabelledImages,
    LearningEvaluation,
    LearningEvaluator,
    make_learning_evaluator,
)
from xmodal_jax.inference.autoencoders import Autoencoder, MultimodalAutoencoder
from xmodal_jax.inference.images import ImageSynthesizer
from xmodal_jax.inference.loading import load
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.run import from_json, read_config_file, write_atomic

CHUNK = 500
"""Images that are generated at a time."""
TRIED = 64
"""The largest number of classes of which each run generates an image before anything is trained."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs to compare, and what classifiers are trained on."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Directories of runs of text_to_image_gan.py, text_to_image_flow.py, vae.py (cvae) or multimodal_vae.py."""
    data: str | None = None
    """The data set, as ``--data`` of the scripts; None: that of the first run."""
    train_size: int | None = None
    """Number of training examples of the data set; None: that of the first run."""
    examples: int = 5000
    """Largest number of real training images, and of generated ones, that a classifier or a captioner is trained on
    alone."""
    test_examples: int = 10_000
    """Largest number of real test images."""
    steps: int = 800
    """Updates of each classifier."""
    real_sizes: tuple[int, ...] = (500,)
    """Numbers of real images that generated ones are added to."""
    ratios: tuple[float, ...] = (1.0, 4.0)
    """Numbers of generated images for each real one; the best one on validation images is taken."""
    seeds: int = 2
    """Number of classifiers of each kind."""
    caption_steps: int = 0
    """Updates of each captioner; 0: none is trained."""
    seed: int = 0
    """Seed of the generated images."""
    run_seed: int | None = None
    """Which model of runs that trained several seeds, as those of gan_zoo.py do. Beside these, a run of one seed has
    its only one. None: all runs have one."""
    out: pathlib.Path | None = None
    """JSON file for all scores, with the accuracy of each class; None: none is written."""

    def __post_init__(self):
        check_at_least(self, 0, "caption_steps", "seed")
        check_at_least(self, 1, "steps")
        _ = self.learning  # checks the options of the classifiers

    @property
    def learning(self) -> LearningEvaluation:
        """The options of the classifiers."""
        names = {field.name for field in dataclasses.fields(LearningEvaluation)}
        return LearningEvaluation(**{name: value for name, value in vars(self).items() if name in names})


class Conditions:
    """What images are generated from: the captions and the names of the classes of training examples."""

    def __init__(self, source: Source):
        fields = read_fields(source, ("caption",))
        self.captions = list(map(str, fields["caption"])) if "caption" in fields else None
        labels = source.class_labels()
        names = source.class_names or tuple(map(str, range(int(labels.max()) + 1)))
        self.classes = [str(names[k]) for k in labels]
        self.are_classes_known = bool((labels >= 0).all())

    def of(self, indices: np.ndarray, *, texts: bool) -> list[str]:
        """The captions (or the classes, if not ``texts``) of the examples ``indices``."""
        if texts and self.captions is None:
            raise ValueError("the data set has no captions to generate images from")
        values = self.captions if texts else self.classes
        return [values[k] for k in indices]


def synthesize(
    model: ImageSynthesizer, conditions: Conditions, indices: np.ndarray, seed: int
) -> Sequence[Any]:
    """Images of a GAN or a flow."""
    if not model.reads_text and not model.class_names:
        raise ValueError(
            f"{model.path} generates images from noise alone, so that their classes are not known"
        )
    return model.synthesize(conditions.of(indices, texts=model.reads_text), seed=seed)


def sample_classes(
    model: Autoencoder, conditions: Conditions, indices: np.ndarray, seed: int
) -> Sequence[Any]:
    """Images of a conditional VAE."""
    if not model.class_names:
        raise ValueError(
            f"{model.path} generates images from noise alone: give a run of a conditional model (--model cvae)"
        )
    return model.sample(classes=conditions.of(indices, texts=False), seed=seed)["image"]


def translate(
    model: MultimodalAutoencoder, conditions: Conditions, indices: np.ndarray, seed: int
) -> Sequence[Any]:
    """Images of a multimodal model from captions, one sample of each."""
    translations = model.translate("image", text=conditions.of(indices, texts=True), count=1, seed=seed)
    return [images[0] for images in translations]


GENERATORS: dict[str, Callable[..., Sequence[Any]]] = {
    "text_to_image_gan": synthesize,
    "text_to_image_flow": synthesize,
    "vae": sample_classes,
    "multimodal_vae": translate,
    "multimodal_flow": translate,
}
"""How a kind of run generates images."""


def generate(model: TrainedModel, conditions: Conditions, indices: np.ndarray, seed: int) -> np.ndarray:
    """Images uint8 ``[N, H, W, C]`` for the conditions of the examples ``indices``, each from other noise."""
    if model.kind not in GENERATORS:
        raise ValueError(f"{model.path} is a run of {model.kind}.py; needed are {', '.join(GENERATORS)}")
    images: list[np.ndarray] = []
    starts = range(0, len(indices), CHUNK)
    for number, start in enumerate(tqdm(starts, desc=f"images of {model.path.name}", unit=f"{CHUNK} images")):
        chunk = indices[start : start + CHUNK]
        # Other noise for each chunk.
        images += map(np.asarray, GENERATORS[model.kind](model, conditions, chunk, seed + 10_000 * number))
    array = np.stack(images)
    return array if array.ndim == 4 else array[..., None]


def load_models(runs: Sequence[pathlib.Path], seed: int | None) -> list[TrainedModel]:
    """The models of all runs; ``seed``: ``--run-seed``.

    Raises:
      ValueError: a run has several seeds, and ``seed`` is none of them.
    """
    configs = [read_config_file(run) if (run / "config.json").is_file() else {} for run in runs]
    seeds = [range(c.get("seed", 0), c.get("seed", 0) + c.get("seeds", 1)) for c in configs]
    for run, of_run in zip(runs, seeds, strict=True):
        if len(of_run) > 1 and seed not in of_run:
            names, got = ", ".join(map(str, of_run)), "" if seed is None else f", got {seed}"
            raise ValueError(f"--run-seed: {run} has the seeds {names}: name one of them{got}")
    mixed = any(len(of_run) > 1 for of_run in seeds)
    return [
        load(run, seed=None if mixed and len(of_run) == 1 else seed)
        for run, of_run in zip(runs, seeds, strict=True)
    ]


def open_data(arguments: Arguments, models: Sequence[TrainedModel]) -> Splits:
    """The data set, images and captions: that of the first run, unless the arguments say another one. Captions are read
    for captioners, and where one of the runs was trained with texts."""
    config = models[0].metadata["config"]
    trained_with = [model.metadata["config"]["input"].get("modalities") for model in models]
    reads_text = arguments.caption_steps or any(names is None or "text" in names for names in trained_with)
    options = from_json(DataOptions, config["input"])
    modalities = ("text", "image") if reads_text else ("image",)
    options = dataclasses.replace(options, modalities=modalities, missing=0.0)
    if arguments.train_size is not None:
        options = dataclasses.replace(options, train_size=arguments.train_size)
    return open_splits(arguments.data or config["data"], options, BadExamples("skip"))


def matches(images: np.ndarray, real: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """The images, if they have the shape of real ones: with one channel or three of equal values."""
    if images.shape[-1] == 1 and real.shape[-1] == 3:
        images = np.repeat(images, 3, axis=-1)
    if images.shape[1:] != real.shape[1:]:
        raise ValueError(f"{path} generates images of {images.shape[1:]}, the data set has {real.shape[1:]}")
    return images


def table(rows: Sequence[tuple[str, dict[str, Any]]], sizes: Sequence[int]) -> str:
    """A Markdown table of the scores of the real data and of each run."""
    heads = ["trained on", "accuracy"]
    for size in sizes:
        heads += [f"with {size} real images", "gain", "ratio"]
    captions = any("caption_score" in scores for _, scores in rows)
    heads += ["captions"] if captions else []
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for name, scores in rows:
        show = lambda key, scores=scores: _with_deviation(scores, key)
        cells = [name, show("accuracy")]
        for size in sizes:
            cells += [show(f"accuracy_of_{size}"), show(f"gain_of_{size}"), show(f"ratio_of_{size}")]
        cells += [show("caption_score")] if captions else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_deviation(scores: dict[str, Any], key: str) -> str:
    """A score and its standard deviation, as far as they exist."""
    if key not in scores:
        return ""
    spread = f" ± {scores[f'{key}_sd']:.3f}" if f"{key}_sd" in scores else ""
    return f"{scores[key]:g}" if key.startswith("ratio") else f"{scores[key]:.3f}{spread}"


def accuracies_to_json(
    accuracies: dict[str, dict[str, np.ndarray]],
) -> dict[str, dict[str, list[float | None]]]:
    """`LearningScores.class_accuracies` as JSON can hold them: null where no test image is of a class."""
    to_list = lambda values: [None if np.isnan(x) else float(x) for x in values]
    return {
        target: {name: to_list(values) for name, values in by_training.items()}
        for target, by_training in accuracies.items()
    }


def rows_of(metrics: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of `LearningEvaluator` as the scores of real images and those of generated ones."""
    real, generated = {}, {}
    for name, value in metrics.items():
        name = name.removeprefix("learning/")
        if name.startswith("real_"):
            real[name.removeprefix("real_")] = value
        else:
            generated[name.removeprefix("generated_").removeprefix("augmented_")] = value
    return real, generated


def check_models(models: Sequence[TrainedModel], conditions: Conditions, real: np.ndarray) -> None:
    """Generates an image of each class by each of the ``models``, to find those that cannot before long work.

    Raises:
      ValueError: a run is of another kind, lacks a class, or has images of another shape than ``real`` ones.
    """
    _, first_of_class = np.unique(conditions.classes, return_index=True)
    for model in models:
        matches(generate(model, conditions, first_of_class[:TRIED], seed=0), real, model.path)


def reads_text(model: TrainedModel) -> bool:
    """Whether a run generates images from captions and not from classes."""
    return GENERATORS[model.kind] is translate or getattr(model, "reads_text", False)


class CaptionBenchmark:
    """Captioners that learn from generated images, of the captions of at most ``examples`` training examples.

    Raises:
      ValueError: the data set has no captions, or some of these examples have no class, and one of the ``models``
        generates images of classes.
    """

    def __init__(self, splits: Splits, models: Sequence[TrainedModel], *, steps: int, examples: int):
        source = take_evenly(splits.train, examples)
        self.conditions = Conditions(source)
        if self.conditions.captions is None:
            raise ValueError("--caption-steps: the data set has no captions that captioners could learn")
        for model in models:
            if not reads_text(model) and not self.conditions.are_classes_known:
                raise ValueError(
                    f"--caption-steps: {model.path} generates images of classes, and some examples have none"
                )
        self.real_images = read_fields(source, ("image",))["image"]
        self._learning = CaptionLearning(splits, steps)

    def score_real(self) -> float:
        """The score of a captioner that was trained on the real images."""
        return self._learning.score(self.real_images, self.conditions.captions)

    def score(self, model: TrainedModel, seed: int) -> float:
        """The score of a captioner that was trained on images that ``model`` generates."""
        images = generate(model, self.conditions, np.arange(len(self.real_images)), seed)
        return self._learning.score(matches(images, self.real_images, model.path), self.conditions.captions)


def note_limit(real_sizes: Sequence[int], count: int) -> None:
    """Prints which of the numbers of real images are more than there are, ``count``, which is taken instead."""
    if larger := [size for size in real_sizes if size > count]:
        print(
            f"--real-sizes {' '.join(map(str, larger))}: there are {count} training images (--examples), all of "
            "which are taken instead",
            flush=True,
        )


def main(arguments: Arguments) -> None:
    if not arguments.runs:
        raise ValueError("RUNS: name the directory of at least one trained run")
    if arguments.out is not None and arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a directory: name a file")
    runtime.configure()
    models = load_models(arguments.runs, arguments.run_seed)
    splits = open_data(arguments, models)
    conditions: list[Conditions] = []

    def keep_conditions(train: Source):
        """Reads the conditions of the training examples that are chosen; images are generated below."""
        conditions.append(Conditions(train))

    sources = (splits.train, splits.validation, splits.tests["test"])
    needed = ("text",) if "text" in splits.train.modalities else ()
    evaluate: LearningEvaluator = make_learning_evaluator(
        arguments.learning, sources, keep_conditions, needed=needed
    )
    if evaluate.reason:
        raise ValueError(f"--data: {evaluate.reason}")
    note_limit(arguments.real_sizes, len(evaluate.train.labels))
    check_models(models, conditions[0], evaluate.train.images)
    captions = None
    if arguments.caption_steps:
        captions = CaptionBenchmark(
            splits, models, steps=arguments.caption_steps, examples=arguments.examples
        )
    indices = np.arange(arguments.learning.generated) % len(evaluate.train.labels)
    rows: list[tuple[str, dict[str, Any]]] = []
    details: dict[str, Any] = {}
    for model in models:
        start = time.monotonic()
        images = generate(model, conditions[0], indices, arguments.seed)
        images = matches(images, evaluate.train.images, model.path)
        seconds = time.monotonic() - start
        learned = evaluate.score(LabelledImages(images, evaluate.train.labels[indices]), progress=True)
        real, generated = rows_of(learned.metrics)
        if not rows:
            rows.append(("real images", real))
            if captions is not None:
                real["caption_score"] = captions.score_real()
        if captions is not None:
            generated["caption_score"] = captions.score(model, arguments.seed)
        rows.append((str(model.path), generated))
        details[str(model.path)] = {
            "metrics": learned.metrics, "class_accuracies": accuracies_to_json(learned.class_accuracies),
            "targets": dict(learned.targets),
            "augmentations": [row._asdict() for row in learned.augmentations], "seconds_to_generate": seconds,
        }  # fmt: skip
        print(table(rows, sorted({row.real for row in learned.augmentations})), flush=True)
        if arguments.out is not None:
            write_atomic(arguments.out, json.dumps({"rows": rows, "runs": details}, indent=1))


if __name__ == "__main__":
    run_script(main, Arguments, __doc__)
