"""What a judge, a trained captioner, makes of drawn pictures."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerator
from xmodal_jax.metrics.generative import frechet_distance, kernel_distance, moments, r_precision
from xmodal_jax.metrics.neighbours import density_coverage, nearest_neighbours, precision_recall
from xmodal_jax.models.seq2seq import GreedySearchConfig, make_feature_extractor, make_seq2seq
from xmodal_jax.transfer.frozen import load_captioning_run

TRAINING_PICTURES = 5000
"""Training pictures that drawn ones are compared with, to see whether these are from memory."""

R_PRECISION_CAPTIONS = 100
"""Captions that R-precision chooses among."""

KID_SUBSETS = 100
"""Random subsets of the pictures that KID is averaged over, of half of them each (at most 1000)."""


class Judge:
    """A run of captioning that looks at pictures: one that no generator was trained with. ``seed``: which of the run's
    seeds, if it has several.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run captions no pictures; here and later, it is shown some that are larger or smaller than those
        it has learned from.
    """

    def __init__(self, run: pathlib.Path, seed: int | None = None):
        trained = load_captioning_run(run, seed=seed)
        config, tokenizer, length = trained.config, trained.tokenizer, trained.length
        self.params, self.shape, self.compares = trained.params, trained.shape, config.contrasts
        self._writer = TextGenerator(
            config, "image", tokenizer, decodings={"greedy": GreedySearchConfig()}, length=length
        )
        sizes = dict(vocab_size=tokenizer.vocab_size, length=length)
        self._look = make_feature_extractor(config, "image", **sizes)
        self._compare = make_seq2seq(config, "image", **sizes).predict
        self._tokenize = TokenizeTransform(tokenizer, length)

    def _source(self, images: np.ndarray, **more) -> ArraySource:
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"the judge has learned from pictures of {self.shape} (height, width, channels), these are "
                f"{images.shape[1:]}: give a captioning run on the same data"
            )
        return ArraySource({"image": images, **more})

    def captions(self, images: np.ndarray) -> list[str]:
        """What the judge reads off pictures uint8 ``[N, H, W, C]``."""
        return self._writer(self.params, self._source(images), "greedy")

    def features(self, images: np.ndarray) -> np.ndarray:
        """``[N, D]``: the mean of its encoder's tokens."""
        return predict_all(self._look, self.params, self._source(images), transform=self._writer.inputs)

    def embeddings(self, images: np.ndarray, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors ``[N, E]`` of pictures and captions; only if it ``compares``."""

        def inputs(batch):
            batch = self._tokenize(batch)
            return {**batch, "index": np.arange(len(batch["image"]), dtype=np.int32)}

        source = self._source(images, caption=np.asarray(captions, object))
        found = predict_all(self._compare, self.params, source, transform=inputs).embeddings
        return found["image"], found["text"]


@dataclasses.dataclass(frozen=True)
class Exhibition:
    """A split's own pictures beside which drawn ones are judged."""

    script: ReferenceTexts
    images: np.ndarray
    features: np.ndarray
    """Of the split's own pictures, by the judge."""


def exhibit(script: ReferenceTexts, judge: Judge) -> Exhibition:
    """A split as `scores` takes it."""
    images = read_fields(script.source, ("image",))["image"]
    return Exhibition(script, images, judge.features(images))


def scores(
    judge: Judge, drawn: np.ndarray, shown: Exhibition, train: np.ndarray, prefix: str, *, seed: int = 0
) -> dict[str, float]:
    """What the judge makes of pictures ``drawn`` for the captions of a split.

    The captions that it generates for them, by `ReferenceTexts.caption_scores` (on the embedded data set: which factors
    are those of the caption); ``r_precision`` among 100 captions (of a small split ``r_precision_of_N`` among fewer),
    if it compares; ``kid`` and ``fid`` of its features against the split's own pictures, with ``kid_real`` of as many
    training pictures (features ``train``) for comparison; precision, recall, density and coverage; ``nearest_train``,
    the mean distance of the features to the nearest training picture over the same of the split's own pictures (well
    below 1: it draws from memory).
    """
    found = shown.script.caption_scores(judge.captions(drawn), "")
    kept = ("factor_accuracy", "exact_accuracy", "sentence_share")
    found = {k: v for k, v in found.items() if k in kept or k.endswith("_accuracy")}
    if judge.compares:
        pictures, texts = judge.embeddings(drawn, shown.script.texts)
        # Captions that say the same are no wrong answers to each other.
        _, groups = np.unique(
            [str(m) for m in shown.script.meanings or shown.script.texts], return_inverse=True
        )
        least = len(groups) - int(np.bincount(groups).max())  # mismatched captions that every picture has
        if least:
            among = min(R_PRECISION_CAPTIONS, least + 1)
            name = "r_precision" if among == R_PRECISION_CAPTIONS else f"r_precision_of_{among}"
            found[name] = r_precision(pictures, texts, seed=seed, groups=groups, candidates=among)
    made, real = judge.features(drawn), shown.features
    size = min(1000, len(made) // 2, len(real) // 2)
    kid = lambda a, b: kernel_distance(a, b, seed=seed, subsets=KID_SUBSETS, subset_size=size).mean
    found |= {"kid": kid(real, made), "kid_real": kid(real, train[: len(made)])}
    found["fid"] = frechet_distance(moments(real), moments(made))
    found |= precision_recall(real, made)._asdict() | density_coverage(real, made)._asdict()
    near = lambda x: float(nearest_neighbours(x, train).distances.mean())
    found["nearest_train"] = near(made) / near(real)
    return {f"{prefix}{name}": float(value) for name, value in found.items()}


class Panel:
    """A judge with what it compares: the pictures of splits and of the training data. Without a run it says nothing."""

    def __init__(self, run: pathlib.Path | None, train: Source, scripts: Mapping[str, ReferenceTexts]):
        self.judge = None if run is None else Judge(run)
        if self.judge is not None:
            rows = np.arange(min(len(train), TRAINING_PICTURES))
            self._train = self.judge.features(read_fields(Subset(train, rows), ("image",))["image"])
            self._shown = {name: exhibit(script, self.judge) for name, script in scripts.items()}

    def all_scores(self, drawn: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`scores` by split of pictures, one for each of its captions."""
        found = {}
        for split, images in drawn.items() if self.judge is not None else ():
            found |= scores(self.judge, images, self._shown[split], self._train, f"{split}/")
        return found

    def captions(self, drawn: np.ndarray) -> list[str] | None:
        """What the judge reads off pictures."""
        return None if self.judge is None else self.judge.captions(drawn)
