"""Scores of generated images by a judge, a trained captioner that no generator was trained with."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from xmodal_jax.data.source import Source, first_of_group, read_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import Subset, one_per_picture
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerator
from xmodal_jax.metrics.generative import frechet_distance, kernel_distance, moments, r_precision
from xmodal_jax.metrics.neighbours import density_coverage, nearest_neighbours, precision_recall
from xmodal_jax.models.seq2seq import GreedySearchConfig, make_feature_extractor, make_seq2seq
from xmodal_jax.transfer.frozen import load_captioning_run

TRAINING_IMAGES = 5000
"""Largest number of training images that generated ones are compared with, to detect memorised images."""

R_PRECISION_CAPTIONS = 100
"""Number of distinct captions that R-precision retrieves from."""

KERNEL_DISTANCE_SUBSETS = 100
"""Number of random subsets that the kernel distance is averaged over; each has half of the images, at most 1000."""

CAPTION_SCORES = ("factor_accuracy", "exact_accuracy", "sentence_share")
"""The caption scores that measure how well an image fits its caption; besides these, all accuracies do."""

REAL = "real_"
"""Start of the names of scores of real images, see `JudgeReport.scores`."""

SMALL_SHARE = 0.8
"""An accuracy of generated images below this share of that of real ones is small, see `small_accuracies`."""


class Judge:
    """A trained captioner that captions images and extracts features from them."""

    def __init__(self, run: pathlib.Path, seed: int | None = None):
        """``run``: a run of captioning.py; ``seed``: which of its seeds, if it has several.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: the run does not caption images.
        """
        trained = load_captioning_run(run, seed=seed)
        config, tokenizer, length = trained.config, trained.tokenizer, trained.length
        self.params, self.shape = trained.params, trained.shape
        self.has_embeddings = config.has_contrastive_loss
        # Three compiled functions: captions of images, features of images, and embeddings of images and captions.
        self._generate_texts = TextGenerator(
            config, "image", tokenizer, decodings={"greedy": GreedySearchConfig()}, length=length
        )
        sizes = dict(vocab_size=tokenizer.vocab_size, length=length)
        self._extract = make_feature_extractor(config, "image", **sizes)
        self._embed = make_seq2seq(config, "image", **sizes).predict
        self._tokenize = trained.tokenize

    def _source(self, images: np.ndarray, **more) -> ArraySource:
        """The images as a `Source`; raises ValueError if the judge (a captioner) was trained on another image size."""
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"the judge was trained on images of {self.shape} (height, width, channels), these have "
                f"{images.shape[1:]}: give a captioning run on the same data"
            )
        return ArraySource({"image": images, **more})

    def captions(self, images: np.ndarray) -> list[str]:
        """The captioner's texts for images uint8 ``[N, H, W, C]``. Raises ValueError: it was trained on another
        size."""
        return self._generate_texts(self.params, self._source(images), decoding="greedy")

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features ``[N, D]`` of images uint8 ``[N, H, W, C]``: the mean of the captioner's image tokens."""
        return predict_all(
            self._extract, self.params, self._source(images), transform=self._generate_texts.inputs
        )

    def embeddings(self, images: np.ndarray, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors ``[N, E]`` of images uint8 ``[N, H, W, C]``, and of N captions, in one space.

        Only a judge (a captioner) with ``has_embeddings`` has them: one that was trained with a contrastive loss.
        """

        def inputs(batch):
            """The batch with captions as tokens."""
            batch = self._tokenize(batch)
            return {**batch, "index": np.arange(len(batch["image"]), dtype=np.int32)}

        source = self._source(images, caption=np.asarray(captions, object))
        embeddings = predict_all(self._embed, self.params, source, transform=inputs).embeddings
        return embeddings["image"], embeddings["text"]


def load_judge(run: pathlib.Path | None) -> Judge | None:
    """The judge that ``--judge RUN`` names; None: there is none. A script loads it before the data, which take longer.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run does not caption images, or has several seeds.
    """
    if run is None:
        return None
    try:
        return Judge(run)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--judge: {error}") from error


@dataclasses.dataclass(frozen=True)
class RealImages:
    """The captions of a split and its real images, which generated ones are compared with; each picture once."""

    texts: ReferenceTexts
    images: np.ndarray
    """The real images, uint8 ``[N, H, W, C]``."""
    features: np.ndarray
    """Features ``[N, D]`` of ``images`` by the network that scores generated images (the judge, a captioner)."""


def load_real_images(texts: ReferenceTexts, judge: Judge) -> RealImages:
    """The real images of a split, each once, with their features."""
    images = read_fields(one_per_picture(texts.source), ("image",))["image"]
    return RealImages(texts, images, judge.features(images))


def judge_scores(
    judge: Judge,
    generated: np.ndarray,
    real: RealImages,
    train_features: np.ndarray,
    prefix: str,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Scores of the images ``generated`` for the captions of a split.

    Args:
      judge: a trained captioner, which captions the images and extracts their features.
      generated: uint8 ``[N, H, W, C]``, one for each caption.
      real: the split.
      train_features: the judge's features of training images.
      prefix: start of the scores' names, such as "test/".
      seed: seed of the random subsets.

    Returns:
      By name, with ``prefix``:

      - the accuracies of `ReferenceTexts.caption_scores`: how well the judge's captions of the images agree with the
        captions that these were generated for;
      - ``r_precision`` among 100 captions of different meaning and pictures, with chance 0.01 (``r_precision_of_N``
        among N, with chance 1/N, if a split has only so many), if the judge has embeddings;
      - ``judge_kernel_distance`` and ``judge_frechet_distance`` between the features of generated and of real images.
        They are computed as KID and FID are, but from the judge's features: do not compare them with those.
        ``judge_kernel_distance_real``: the same between training images and real images, for comparison;
      - ``precision``, ``recall``, ``density`` and ``coverage`` of these features;
      - ``nearest_train``: the mean distance of a generated image to the nearest training image, divided by that of a
        real image. It is well below 1 for memorised images.
    """
    scores = _accuracies(judge, generated, real.texts)
    if judge.has_embeddings:
        scores |= _r_precision(judge, generated, real.texts, seed)
    features, real_features = judge.features(generated), real.features
    # Kernel distances are means over random subsets of at most half of the images.
    subset_size = min(1000, len(features) // 2, len(real_features) // 2)
    subset_options = dict(seed=seed, subsets=KERNEL_DISTANCE_SUBSETS, subset_size=subset_size)
    some_train_features = train_features[: len(features)]  # as many as there are generated images
    scores |= {
        "judge_kernel_distance": kernel_distance(real_features, features, **subset_options).mean,
        "judge_kernel_distance_real": kernel_distance(
            real_features, some_train_features, **subset_options
        ).mean,
    }
    scores["judge_frechet_distance"] = frechet_distance(moments(real_features), moments(features))
    scores |= precision_recall(real_features, features)._asdict()
    scores |= density_coverage(real_features, features)._asdict()
    distance_to_train = lambda x: float(nearest_neighbours(x, train_features).distances.mean())
    # Of generated images relative to real ones that were not trained on.
    scores["nearest_train"] = distance_to_train(features) / distance_to_train(real_features)
    return {f"{prefix}{name}": float(value) for name, value in scores.items()}


def _accuracies(judge: Judge, images: np.ndarray, texts: ReferenceTexts) -> dict[str, float]:
    """The scores of the judge's captions of ``images``, one for each of ``texts``, that an image can show; the other
    scores compare the wording."""
    scores = texts.caption_scores(judge.captions(images), prefix="")
    return {k: v for k, v in scores.items() if k in CAPTION_SCORES or k.endswith("_accuracy")}


def small_accuracies(metrics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """What generated images of the split "test" seldom show of their captions: by the name of an accuracy, such as
    ``relation_accuracy``, that of generated and that of real images. It has those accuracies that are below
    `SMALL_SHARE` of that of real images.

    ``metrics``: of `JudgeReport.scores`, with those of real images, of one seed.

    Example::

        small_accuracies({"test/place_accuracy": 0.5, "real_test/place_accuracy": 0.9})
        # {"place_accuracy": (0.5, 0.9)}
    """
    split = "test/"
    names = [name.removeprefix(REAL + split) for name in metrics if name.startswith(REAL + split)]
    pairs = {
        name: (metrics[split + name], metrics[REAL + split + name])
        for name in names
        if name.endswith("_accuracy") and name != "exact_accuracy" and split + name in metrics
    }
    return {name: (ours, real) for name, (ours, real) in pairs.items() if ours < SMALL_SHARE * real}


def _caption_groups(texts: ReferenceTexts) -> np.ndarray:
    """An id for each caption, int ``[N]``, which captions of equal meaning and captions of one picture share."""
    from scipy.sparse import coo_array  # here: they take a while to import
    from scipy.sparse.csgraph import connected_components

    _, meaning = np.unique([str(m) for m in texts.meanings or texts.texts], return_inverse=True)
    count, picture = len(meaning), first_of_group(texts.source)
    # A graph of pictures (nodes 0 to N - 1) and meanings (nodes from N on). Each caption is a link between its picture
    # and its meaning, so that a connected component holds all captions of equal meaning or picture, also indirectly.
    links = coo_array((np.ones(count), (picture, count + meaning)), shape=(2 * count, 2 * count))
    _, component = connected_components(links, directed=False)  # of each node
    return component[picture]


def _r_precision(judge: Judge, images: np.ndarray, texts: ReferenceTexts, seed: int) -> dict[str, float]:
    """R-precision of the images: how often an image's own caption is the most similar among up to 100 captions, of
    which no two have the same meaning or are of the same picture.

    The key is ``r_precision``, or ``r_precision_of_N`` if the split has only N such captions; no score if it has one.
    Chance is 1 / 100 or 1 / N. ``images``: one generated for each of ``texts``. ``seed``: of the choice of candidates.
    """
    image_embeddings, text_embeddings = judge.embeddings(images, texts.texts)
    groups = _caption_groups(texts)
    distinct = len(np.unique(groups))
    if distinct < 2:
        return {}
    candidates = min(R_PRECISION_CAPTIONS, distinct)
    name = "r_precision" if candidates == R_PRECISION_CAPTIONS else f"r_precision_of_{candidates}"
    options = dict(seed=seed, groups=groups, candidates=candidates)
    return {name: r_precision(image_embeddings, text_embeddings, **options)}


def r_precision_chance(name: str) -> float:
    """The chance level of the R-precision with this name, such as ``test/r_precision_of_10``: one in the captions."""
    _, _, candidates = name.rpartition("r_precision_of_")
    return 1 / (int(candidates) if candidates.isdigit() else R_PRECISION_CAPTIONS)


class JudgeReport:
    """Scores and captions of the images of splits by a judge, a trained captioner; without a judge, none."""

    def __init__(self, judge: Judge | None, train: Source, splits: Mapping[str, ReferenceTexts]):
        """``judge``: see `load_judge`. ``train``: the training data; generated images are compared with at most
        `TRAINING_IMAGES` of them. ``splits``: captions and real images by split."""
        self.judge = judge
        if self.judge is not None:
            train = one_per_picture(train)
            indices = np.arange(min(len(train), TRAINING_IMAGES))
            self._train = self.judge.features(read_fields(Subset(train, indices), ("image",))["image"])
            self._real = {name: load_real_images(texts, self.judge) for name, texts in splits.items()}

    def scores(
        self, generated: Mapping[str, np.ndarray], prefix: str = "", *, real: bool = False
    ) -> dict[str, float]:
        """`judge_scores` of the ``generated`` images of each split: one for each caption, or for the first captions
        alone; their names begin with ``prefix`` and the split. Empty without a judge (a trained captioner).

        ``real``: whether to add what generated images can reach at most: the accuracies of the judge's captions of the
        real images, by names such as ``real_test/factor_accuracy``.
        """
        if self.judge is None:
            return {}
        scores: dict[str, float] = {}
        for split, images in generated.items():
            real_images = self._real[split]
            real_images = dataclasses.replace(real_images, texts=real_images.texts.first(len(images)))
            scores |= judge_scores(self.judge, images, real_images, self._train, prefix=f"{prefix}{split}/")
            if real:
                accuracies = _accuracies(self.judge, real_images.images[: len(images)], real_images.texts)
                scores |= {f"{REAL}{split}/{name}": float(value) for name, value in accuracies.items()}
        return scores

    def captions(self, images: np.ndarray) -> list[str] | None:
        """Captions of images by the judge (a trained captioner); None without a judge."""
        return None if self.judge is None else self.judge.captions(images)
