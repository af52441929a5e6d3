"""A trained shared embedding space on new data: embeddings, similarities, zero-shot classification, search."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.source import Source
from xmodal_jax.evaluation.embeddings import check_prompts, fill_prompts, predict_batches, take_evenly
from xmodal_jax.evaluation.gap import CorrectedPredict, CorrectionKind, GapCorrection, fit_gap_correction
from xmodal_jax.evaluation.protocol import EmbeddingFunctions
from xmodal_jax.inference.index import Index
from xmodal_jax.inference.inputs import check_count, collect_inputs
from xmodal_jax.inference.model import BATCH_SIZE, Classification, RestoredRun, TrainedModel
from xmodal_jax.metrics.classification import class_embeddings
from xmodal_jax.models.contrastive import MAX_SCALE, ContrastiveConfig, make_contrastive
from xmodal_jax.train.checkpoint import params_digest
from xmodal_jax.train.run import from_json
from xmodal_jax.types import KINDS, kind_of

PROMPTS = ("{}",)
"""The default prompt of a class: its name alone."""


class SearchResult(NamedTuple):
    """The k nearest examples of each of Q queries, nearest first."""

    names: list[list[str]]
    """The names of the examples: Q lists of k."""
    scores: np.ndarray
    """float32 ``[Q, k]``: cosine similarities."""
    indices: np.ndarray
    """int64 ``[Q, k]``: the positions of the examples in `Index.names`."""


class ContrastiveModel(TrainedModel):
    """A trained shared embedding space.

    ::

        model = load("runs/contrastive")
        photos = model.embed(images=["a.png", "b.png"])  # [2, dim], unit vectors
        model.similarity(photos, model.embed(texts=["a red star"]))  # [2, 1]
    """

    kind = "contrastive"
    actions = ("embed", "similarity", "classify", "index", "search", "correct_gap")

    gap_correction: GapCorrection | None = None
    """What reduces the modality gap of the embeddings, see `correct_gap`; None: they are those that were trained."""

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        super().__init__(run, tuple(run.checkpoint.metadata["modalities"]))
        config = from_json(ContrastiveConfig, self.metadata["config"]["model"])
        vocab_size = self.format.transform.vocab_size
        self.method = make_contrastive(config, self.format.modalities, vocab_size=vocab_size)
        """The method that was trained, whose ``predict`` embeds."""
        self._predict = self.method.predict

    def correct_gap(
        self, source: Source, *, kind: CorrectionKind = "shift", strength: float = 1.0, examples: int = 2000
    ) -> ContrastiveModel:
        """Reduces the modality gap: returns the model with the mean embeddings of its modalities moved together.

        All that the returned model does, such as `classify` and `search`, uses the corrected embeddings; it does not
        search in indices of other embeddings. This model stays as it is.

        ::

            splits = open_splits_for_model(model, "folder:photos", DataOptions(), BadExamples())
            corrected = model.correct_gap(splits.train)

        Args:
          source: training or validation examples of all modalities, in the run's format. They give the means.
          kind: moves the means to the mean of all modalities (shift) or to 0 (center); see
            `evaluation.fit_gap_correction`.
          strength: how far, from 0 to 1.
          examples: largest number of examples that are embedded, evenly spread.

        Raises:
          ValueError: no example has one of the modalities.
        """
        check_count("examples", examples, least=1)
        source = take_evenly(source, examples)
        embeddings = self.predict(self.method.predict, source)
        correction = fit_gap_correction(embeddings, source.presence(), kind=kind, strength=strength)
        corrected = copy.copy(self)
        corrected.gap_correction = correction
        corrected._predict = CorrectedPredict(self.method.predict, correction)
        corrected.__dict__.pop("digest", None)  # cached
        return corrected

    @functools.cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that identify the embeddings: no other checkpoint or correction has the same."""
        if self.gap_correction is None:
            return params_digest(self.params)
        return params_digest({"params": self.params, "gap": dict(self.gap_correction.offsets)})

    @property
    def dim(self) -> int:
        """Number of dimensions of the embeddings."""
        modality = self.format.modalities[0]
        dtype = {"u": np.uint8, "i": np.int32}.get(KINDS[kind_of(modality)].dtypes[0], np.float32)
        shape = (1, *self.format.shapes[modality])
        batch = {modality: jax.ShapeDtypeStruct(shape, dtype), "index": jax.ShapeDtypeStruct((1,), np.int32)}
        if (mask := f"{modality}_mask") in self.format.shapes:
            batch[mask] = jax.ShapeDtypeStruct((1, *self.format.shapes[mask]), bool)
        return jax.eval_shape(self.method.predict, self.params, batch)[modality].shape[-1]

    @property
    def scale(self) -> float | None:
        """The trained inverse temperature, by which similarities are logits; None: the objective has none."""
        log_scale = self.params.get("loss", {}).get("log_scale")
        return None if log_scale is None else min(float(np.exp(log_scale)), MAX_SCALE)

    def embed(self, *, batch_size: int = BATCH_SIZE, **inputs: Any) -> np.ndarray:
        """Embeds inputs of one modality: unit vectors, float32 ``[N, dim]``.

        Args:
          batch_size: number of inputs that are computed at a time.
          inputs: one keyword with a list of inputs: ``images=…``, ``texts=…``, ``audio=…``, or any modality's name.

        Raises:
          ValueError: there are inputs of no or of several modalities, or one cannot be used.
        """
        by_modality = collect_inputs(self.format, inputs)
        if len(by_modality) != 1:
            raise ValueError(
                f"embed takes inputs of one modality ({', '.join(self.format.modalities)}), got "
                f"{', '.join(by_modality) or 'none'}"
            )
        (modality,) = by_modality
        if not len(by_modality[modality]):
            return np.zeros((0, self.dim), np.float32)
        return self.embed_source(self.read(by_modality), batch_size=batch_size)[modality]

    def embed_source(self, source: Source, *, batch_size: int = BATCH_SIZE) -> dict[str, np.ndarray]:
        """Embeds a data set: unit vectors float32 ``[N, dim]`` by modality. ``source``: in the run's format, such as
        one that `embed_data.open_for_model` opened."""
        return self.predict(self._predict, source, batch_size=batch_size)

    def embed_batches(
        self, source: Source, *, batch_size: int = BATCH_SIZE
    ) -> Iterator[dict[str, jax.Array]]:
        """Yields what `embed_source` computes batch by batch, as JAX arrays that may not be computed yet. The last
        batch is padded to ``batch_size``."""
        return predict_batches(
            self._predict, self.params, source, batch_size=batch_size, transform=self.prepare
        )

    @property
    def embedding_functions(self) -> EmbeddingFunctions:
        """The functions that `evaluation.protocol.evaluate_space` evaluates."""
        text = self._text_modality
        embed_texts = None if text is None else lambda texts: self.embed(**{text: list(texts)})
        return EmbeddingFunctions(self.embed_source, embed_texts, self.scale)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine similarities float32 ``[N, M]`` of embeddings ``a [N, dim]`` and ``b [M, dim]``.

        Raises:
          ValueError: the embeddings have other shapes.
        """
        if np.ndim(a) != 2 or np.ndim(b) != 2 or np.shape(a)[1] != np.shape(b)[1]:
            raise ValueError(
                f"embeddings have the shapes [N, dim] and [M, dim], got {np.shape(a)} and {np.shape(b)}"
            )
        return np.asarray(_products(jnp.asarray(a), jnp.asarray(b)))

    def classify(
        self, classes: Iterable[str], prompts: Iterable[str] = PROMPTS, **inputs: Any
    ) -> Classification:
        """Classifies inputs without training on the classes (zero-shot): by the class whose prompts are the most
        similar.

        ::

            model.classify(["cat", "dog"], ["a photo of a {}", "a {} outdoors"], images=["a.png"]).names  # ["cat"]

        Args:
          classes: the names of the classes.
          prompts: templates with ``{}`` where the name goes; the embeddings of a class's prompts are averaged.
          inputs: inputs of one modality, as in `embed`.

        Returns:
          The most similar class of each input, and scores ``[N, C]``: probabilities if the run has a temperature,
          otherwise cosine similarities.

        Raises:
          ValueError: there are no classes, one is named twice, a prompt has no ``{}``, or the run has no texts.
        """
        classes, prompts = _check_classes(classes), _check_prompts(prompts)
        if self._text_modality is None:
            raise ValueError(
                f"classes are described by texts, and the run has none, only {self.format.modalities}"
            )
        texts = [text for name in classes for text in fill_prompts(prompts, name)]
        text_embeddings = self.embed(**{self._text_modality: texts}).reshape(len(classes), len(prompts), -1)
        scores = self.similarity(self.embed(**inputs), np.asarray(class_embeddings(text_embeddings)))
        if self.scale is not None:
            scores = np.asarray(jax.nn.softmax(self.scale * scores, axis=1))
        return Classification.from_scores(classes, scores)

    def index(self, names: Sequence[str] | None = None, **inputs: Any) -> Index:
        """Embeds a collection as an `Index` to search in. Several modalities describe the same examples.

        ::

            index = model.index(images=sorted(Path("photos").glob("*.jpg")))
            model.search(index, texts=["a red star"]).names[0]  # the ten most similar ones

        Args:
          names: a name for each example; None: the path of its first modality's file, or its number.
          inputs: inputs as in `embed`, of one or several modalities.

        Raises:
          ValueError: an input cannot be used, or there are none.
        """
        by_modality = collect_inputs(self.format, inputs)
        source = self.read(by_modality)
        if names is None:
            first = next(iter(by_modality.values()))
            names = [str(x) if isinstance(x, (str, Path)) else str(k) for k, x in enumerate(first)]
        embeddings, present = self.embed_source(source), source.presence()
        for modality, vectors in embeddings.items():
            vectors[~present[modality]] = 0
        return Index(embeddings, list(names), self.digest, present, run=str(self.path))

    def search(
        self,
        index: Index,
        k: int = 10,
        modality: str | None = None,
        *,
        approximate: bool = False,
        **inputs: Any,
    ) -> SearchResult:
        """Finds the k examples of an index that are the most similar to each input.

        ::

            index = Index.load("embeddings")  # what experiments/embed.py wrote
            model.search(index, texts=["a red star"], modality="image").names[0]

        Args:
          index: made by this model.
          k: number of results for each input; if the index has fewer examples, all of them.
          modality: the modality of the index to search in; None: its only one.
          approximate: whether to search in a graph, see `Index.nearest`.
          inputs: inputs of one modality, as in `embed`.

        Raises:
          ValueError: the index was made by another model, or lacks the modality, or an input cannot be used.
        """
        self.check_index(index)
        scores, indices = index.nearest(self.embed(**inputs), k, modality=modality, approximate=approximate)
        return SearchResult([[index.names[i] for i in row] for row in indices.tolist()], scores, indices)

    def check_index(self, index: Index) -> None:
        """Raises ValueError unless this model made the index."""
        if index.model != self.digest:
            made_by = f" ({index.run})" if index.run else ""
            if self.gap_correction is not None:
                made_by += ", or without this correction of the modality gap,"
            raise ValueError(
                f"the index was made by another checkpoint{made_by} than {self.path}, step {self.step}: their "
                "embeddings cannot be compared. Use that one, or embed the data again"
            )

    @property
    def _text_modality(self) -> str | None:
        """The first modality of texts; None: there is none."""
        return next((m for m in self.format.modalities if kind_of(m) == "text"), None)


def _check_classes(classes: Iterable[str]) -> list[str]:
    """The names of the classes as strings.

    Raises:
      ValueError: they are no list of names, or one is there twice: it would share its probability with itself.
    """
    names = [] if isinstance(classes, str) else list(classes)
    if not names:
        raise ValueError(f"classes is a list of names, got {classes!r}")
    names = [str(name) for name in names]
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise ValueError(f"the class {repeated[0]!r} is named twice: name each once")
    return names


def _check_prompts(prompts: Iterable[str]) -> list[str]:
    """The prompts as a list.

    Raises:
      ValueError: there are none, or one has no place for the name of the class.
    """
    templates = [] if isinstance(prompts, str) else list(prompts)
    if not templates:
        raise ValueError(
            f"prompts is a list of texts with {{}} where the name of the class goes, got {prompts!r}"
        )
    check_prompts(templates)
    return templates


@jax.jit
def _products(a, b):
    """Inner products ``[N, M]`` in full float32 precision."""
    return jnp.matmul(a, b.T, precision="highest")
