"""Four ways to reduce the modality gap of a shared embedding space of images and texts, and what each of them changes.

    python -m benchmarks.modality_gap
    python -m benchmarks.modality_gap --data folder:PATH --seeds 0 1 2 --out gap

Two correct the embeddings after training, by the mean embeddings of training examples: all modalities get the same
mean, that of all means (shift) or 0 (center). Two add a loss: the distance of pairs (pair_distance), or this and the
uniformity of their centroids (uniform_centroids). "none" is the space of the contrastive loss alone. The table has, of
test examples: the gap; recall from one modality to the other; recall in a mixed gallery, which has the images and the
texts of all examples but the query itself ("other@5": the share of the other modality among the first five); the purity
of k-means clusters of all images and texts together, by classes and by modalities (0.5 where each cluster has as many
images as texts); and the scores of captions by a decoder that was trained on the embeddings of texts alone, from the
embeddings of images and from those of texts.

Finished rows are kept in OUT.jsonl and not run again; OUT.md is the table.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.rows import markdown_table, mean_cells, read_rows, write_rows
from xmodal_jax.core import runtime
from xmodal_jax.core.checks import check_at_least
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.splits import fit_tokenizer, open_splits
from xmodal_jax.evaluation.embeddings import Embedder, Gallery, labelled_examples, take_evenly
from xmodal_jax.evaluation.gap import CorrectionKind, fit_gap_correction
from xmodal_jax.evaluation.learned_captions import SCORES
from xmodal_jax.evaluation.learning import Trainer
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.evaluation.text_only_captions import DECODER, TextOnlyCaptioner
from xmodal_jax.metrics.clustering import kmeans_clustering
from xmodal_jax.metrics.latent import modality_gap
from xmodal_jax.metrics.retrieval import mixed_retrieval
from xmodal_jax.models.contrastive import (
    ContrastiveConfig,
    GapLoss,
    PairDistance,
    UniformCentroids,
    make_contrastive,
)
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.optim import Optimizer

MODALITIES = ("image", "text")
MODEL = ContrastiveConfig()
"""Towers and objective of all rows."""
COLUMNS = {
    "gap": "gap",
    "image_to_text/recall@1": "image to text @1",
    "image_to_text/recall@5": "@5",
    "text_to_image/recall@1": "text to image @1",
    "text_to_image/recall@5": "@5",
    "mixed/recall@1": "mixed @1",
    "mixed/recall@5": "@5",
    "mixed/other_modality@5": "other@5",
    "class_purity": "purity: classes",
    "modality_purity": "modalities",
    "nmi": "NMI: classes",
    "image_captions": "captions of images",
    "text_captions": "of texts",
    "train_s": "training (s)",
}
"""Columns of the table, and their heads. "NMI" is the normalized mutual information of clusters and classes; captions
are scored by the fraction of a scene's factors that they tell, or of captions that are right."""
DIGITS = {"train_s": 0}
"""Decimal places of a column; 3 of the others."""


class Way(NamedTuple):
    """A way to reduce the gap."""

    gap_loss: GapLoss | None = None
    """Additional loss in training; None: no such loss."""
    correction: CorrectionKind | None = None
    """Correction of the embeddings after training; None: they stay as they are."""


NAMES = ("none", "shift", "center", "pair_distance", "uniform_centroids")
"""The names of the ways, see `Config.way`."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    data: str = "shapes"
    """Data set with images and captions, in one of the forms of ``--data`` of the scripts."""
    out: pathlib.Path = pathlib.Path("docs/benchmarks/modality_gap")
    """Path of the results without suffix."""
    ways: tuple[str, ...] = NAMES
    """Rows of the table: none, shift, center, pair_distance, uniform_centroids."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the parameters and of the order of the data."""
    image_size: int | None = None
    """Side of the images in pixels; None: that of the data set."""
    train_size: int = 6000
    """Largest number of training examples."""
    test_examples: int = 2000
    """Largest number of test examples, whose gallery, classes and captions are evaluated."""
    gallery: int = 500
    """Largest number of test examples that retrieval searches, and whose captions are scored."""
    steps: int = 640
    """Updates of the space."""
    batch_size: int = 64
    """Examples per update, of the space and of the decoder."""
    learning_rate: float = 2e-3
    """Peak learning rate of the space, by AdamW."""
    distance_weight: float = 1.0
    """Weight of the distance of pairs (pair_distance, uniform_centroids)."""
    uniformity_weight: float = 1.0
    """Weight of the uniformity of centroids (uniform_centroids)."""
    caption_steps: int = 2000
    """Updates of each decoder of captions."""
    noise: float = 0.3
    """Norm of the Gaussian noise that is added to embeddings of texts to train the decoder, relative to their norm."""

    def __post_init__(self):
        for name in self.ways:
            if name not in NAMES:
                raise ValueError(f"--ways: {name!r} is none of {', '.join(NAMES)}")
        sizes = ("train_size", "test_examples", "gallery", "steps", "batch_size", "caption_steps")
        check_at_least(self, 1, *sizes)
        check_at_least(self, 0, "distance_weight", "uniformity_weight", "noise")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError(f"--seeds are 0 or more, got {self.seeds}")

    def way(self, name: str) -> Way:
        """The way of this name, with the weights of this configuration."""
        return {
            "none": Way(),
            "shift": Way(correction="shift"),
            "center": Way(correction="center"),
            "pair_distance": Way(PairDistance(self.distance_weight)),
            "uniform_centroids": Way(UniformCentroids(self.distance_weight, self.uniformity_weight)),
        }[name]


Embeddings = dict[str, np.ndarray]
"""Unit vectors ``[N, dim]`` by modality."""


class TrainedSpace(NamedTuple):
    """The embeddings of a trained space, and the seconds of its training."""

    train: Embeddings
    gallery: Embeddings
    labelled: Embeddings | None
    """Of the test examples that have a class; None: there are no classes."""
    captioned: Embeddings
    """Of the test examples whose captions are scored."""
    seconds: float


class Bench:
    """The data, and what the trainings of all rows share."""

    def __init__(self, config: Config):
        self.config, bad_examples = config, BadExamples("skip")
        options = DataOptions(
            train_size=config.train_size, image_size=config.image_size, modalities=("text", "image")
        )
        splits = open_splits(config.data, options, bad_examples)
        self.train = take_evenly(splits.train, config.train_size)
        test = take_evenly(splits.tests["test"], config.test_examples)
        cleaning = dict(tokenizer="word", vocab_size=None, cleanup="none")
        self.tokenize, self.captions = fit_tokenizer(self.train, bad_examples, **cleaning)
        fields = numeric_fields(self.tokenize(self.train.batch(np.arange(len(self.train)))))
        if "present" in fields:
            raise ValueError(f"--data {config.data}: all examples need an image and a caption")
        self.fields = {
            name: fields[name] for name in ("image", "text", "text_mask", "group") if name in fields
        }
        self.gallery = Gallery(test, config.gallery)
        self.labelled = labelled_examples(test)
        self.references = ReferenceTexts(
            test, self.tokenize.clean, limit=config.gallery, one_per_picture=True
        )
        self.space = functools.lru_cache(maxsize=1)(self._train_space)
        """Trains a space, once for the ways that differ only in what is done after training."""
        plain = self.make_method(None)
        self.embed = Embedder(plain, self.tokenize, batch_size=250)
        self.captioner = TextOnlyCaptioner(
            self.tokenize, config.caption_steps, noise=config.noise, decoder=DECODER, batch_size=config.batch_size
        )  # fmt: skip

    def make_method(self, gap_loss: GapLoss | None):
        """The contrastive method with an additional loss."""
        config = dataclasses.replace(MODEL, gap_loss=gap_loss)
        return make_contrastive(config, MODALITIES, vocab_size=self.tokenize.tokenizer.vocab_size)

    def _train_space(self, gap_loss: GapLoss | None, seed: int) -> TrainedSpace:
        """Trains a space."""
        c, method = self.config, self.make_method(gap_loss)
        loss = lambda params, batch, key: method.loss(params, batch, key)[0]
        optimizer = Optimizer(learning_rate=c.learning_rate)
        trainer = Trainer(method.init, loss, optimizer, steps=c.steps, batch_size=c.batch_size)
        start = time.monotonic()
        params = jax.block_until_ready(trainer.fit(self.fields, np.arange(len(self.train)), seed=seed))
        seconds = time.monotonic() - start
        embed = lambda source: self.embed(params, source)
        labelled = None if self.labelled is None else embed(self.labelled[0])
        return TrainedSpace(
            embed(self.train), embed(self.gallery), labelled, embed(self.references.source), seconds
        )

    def scores(self, way: Way, seed: int) -> dict[str, float]:
        """A row of the table."""
        space = self.space(way.gap_loss, seed)
        correct = lambda embeddings: embeddings
        if way.correction is not None:
            correction = fit_gap_correction(space.train, kind=way.correction)
            correct = lambda embeddings: {m: np.asarray(x) for m, x in correction(embeddings).items()}
        scores = self.retrieval_scores(correct(space.gallery))
        if space.labelled is not None:
            scores |= cluster_scores(correct(space.labelled), self.labelled[1], seed)
        scores |= self.caption_scores(correct(space.train)["text"], correct(space.captioned), seed)
        return scores | {"train_s": space.seconds}

    def retrieval_scores(self, embeddings: Embeddings) -> dict[str, float]:
        """The gap, and the recall from one modality to the other and among both."""
        both = [embeddings[m] for m in MODALITIES]
        modalities, ids = np.repeat([0, 1], len(self.gallery)), np.tile(self.gallery.ids, 2)
        mixed = mixed_retrieval(np.concatenate(both), modalities, ids)
        scores = {"gap": float(modality_gap(*map(jax.numpy.asarray, both)))}
        scores |= self.gallery.scores(embeddings)
        return scores | {f"mixed/{name}": value for name, value in mixed.items()}

    def caption_scores(self, texts: np.ndarray, embeddings: Embeddings, seed: int) -> dict[str, float]:
        """The scores of captions by a decoder that is trained on the embeddings ``texts`` of the training captions."""
        params, scores = self.captioner.fit(self.captions, texts, seed=seed), {}
        for modality, vectors in embeddings.items():
            every = self.references.caption_scores(self.captioner.caption(params, vectors), prefix="")
            scores[f"{modality}_captions"] = next(every[name] for name in SCORES if name in every)
        return scores


def cluster_scores(embeddings: Embeddings, labels: np.ndarray, seed: int) -> dict[str, float]:
    """The agreement of k-means clusters, of images and texts together, with the classes and with the modalities.

    There are as many clusters as classes. ``labels [N]``: the classes of the examples.
    """
    vectors = np.concatenate([embeddings[m] for m in MODALITIES])
    options = dict(clusters=len(np.unique(labels)), seed=seed)
    classes = kmeans_clustering(vectors, np.tile(labels, 2), **options)
    modalities = kmeans_clustering(vectors, np.repeat([0, 1], len(labels)), **options)
    return {
        "class_purity": classes.purity, "modality_purity": modalities.purity,
        "nmi": classes.normalized_mutual_information,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The table: means over seeds, with the standard deviation if there are several."""
    cells = []
    for name in dict.fromkeys(row["way"] for row in rows):
        scores = [row["scores"] for row in rows if row["way"] == name]
        cells.append([name, str(len(scores)), *mean_cells(scores, tuple(COLUMNS), DIGITS)])
    return markdown_table(["way", "seeds", *COLUMNS.values()], cells)


def main(config: Config) -> None:
    runtime.configure()
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "ways", "seeds")}
    rows = read_rows(config.out, settings)
    done = {(row["way"], row["seed"]) for row in rows}
    missing = [(name, seed) for seed in config.seeds for name in dict.fromkeys(config.ways)]
    missing = [key for key in missing if key not in done]
    bench = Bench(config) if missing else None
    for name, seed in missing:
        scores = bench.scores(config.way(name), seed)
        rows.append(dict(way=name, seed=seed, scores=scores, config=settings))
        write_rows(config.out, rows, table(rows))
        print(name, seed, {k: round(scores[k], 3) for k in COLUMNS if k in scores}, flush=True)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
