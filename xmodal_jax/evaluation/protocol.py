"""Evaluates a shared embedding space on a data set by the standard protocols, with confidence intervals.

Retrieval in all directions (recall@k; of pictures with several captions as in COCO and Flickr30k), zero-shot
classification by prompts and its calibration, a linear probe, and few-shot classification by nearest neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from xmodal_jax.data.source import Source
from xmodal_jax.data.views import Subset, one_per_picture
from xmodal_jax.evaluation.embeddings import (
    Gallery,
    check_prompts,
    class_prompts,
    directions,
    embed_prompts,
    items_of_pair,
    labelled_examples,
    ordered,
    take_evenly,
)
from xmodal_jax.metrics.classification import (
    classify_by_neighbours,
    classify_by_probe,
    expected_calibration_error,
)
from xmodal_jax.metrics.intervals import Interval, bootstrap_interval
from xmodal_jax.metrics.retrieval import ranks
from xmodal_jax.types import kind_of

INVERSE_L2 = (0.1, 1.0, 10.0, 100.0)
"""Candidates for the linear probe's inverse regularisation strength (scikit-learn's C), chosen by validation
accuracy."""


class EmbeddingFunctions(NamedTuple):
    """The functions of a trained embedding space."""

    embed_source: Callable[[Source], dict[str, np.ndarray]]
    """The unit embeddings ``[N, dim]`` of each modality of a data set."""
    embed_texts: Callable[[Sequence[str]], np.ndarray] | None
    """The unit embeddings of texts; None: the space has no texts."""
    scale: float | None
    """The inverse temperature, which turns similarities into logits; None: the space has none."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is measured, and on how many examples."""

    gallery: int | None = None
    """Largest number of test examples (or of pictures with several captions) among which retrieval searches; None:
    all."""
    prompts: tuple[str, ...] = ()
    """Templates for zero-shot classification, such as "a photo of a {}", whose embeddings are averaged. Empty: the data
    set's own, or captions of its training examples."""
    probe_examples: int = 5000
    """Largest number of training examples that the linear probe is fitted on; they are evenly spread."""
    shots: int = 16
    """Number of training examples of each class in few-shot classification, drawn at random."""
    neighbours: int = 5
    """Number of neighbours that vote in few-shot classification."""
    resamples: int = 1000
    """Number of resampled test sets for each confidence interval."""
    seed: int = 0
    """Seed of the shots and of the resampled test sets."""

    def __post_init__(self):
        check_prompts(self.prompts)
        for name in ("probe_examples", "shots", "neighbours", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--protocol.{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )


def evaluate_space(
    space: EmbeddingFunctions,
    train: Source,
    validation: Source,
    test: Source,
    protocol: Protocol = Protocol(),
) -> dict[str, Interval]:
    """Evaluates a space on a data set: all scores, each with its 95% interval over test examples.

    Args:
      space: the embedding functions.
      train: gives the classes' captions, the probe's examples and the shots.
      validation: chooses the probe's regularisation.
      test: what is scored. Retrieval counts every caption of a picture, classification each picture once.
      protocol: what is measured.

    Returns:
      ``<query>_to_<target>/recall@k`` of all pairs of modalities, k = 1, 5, 10; and of each modality but texts, where
      the data set has classes, ``<modality>_zero_shot/accuracy``, ``<modality>_zero_shot/calibration_error`` (without
      an interval), ``<modality>_linear_probe/accuracy`` and ``<modality>_few_shot/accuracy``.
    """
    gallery = Gallery(test, protocol.gallery)
    embeddings = space.embed_source(gallery)
    scores = retrieval_intervals(gallery, embeddings, protocol)
    pictures = one_per_picture(test)
    labelled = labelled_examples(pictures)
    if labelled is None:
        return scores
    rows = labelled[0].indices if pictures is test else pictures.indices[labelled[0].indices]
    embeddings = _embed_more(space, test, gallery.indices, embeddings, rows)
    tested = {name: (x, labels) for name, x, labels in _by_modality(embeddings, labelled)}
    return (
        scores
        | _zero_shot(space, train, tested, protocol)
        | _probes(space, train, validation, tested, protocol)
    )


def retrieval_intervals(
    gallery: Gallery, embeddings: Mapping[str, np.ndarray], protocol: Protocol
) -> dict[str, Interval]:
    """Recall@k between all pairs of modalities, as in `evaluate_space`, from the ``embeddings`` of a gallery. The
    captions of one picture are resampled together."""
    scores = {}
    for query, target in directions(tuple(embeddings)):
        queries, candidates = items_of_pair(
            query, target, gallery.ids, present=gallery.present, items=gallery.items
        )
        if not len(queries):
            continue
        rank = ranks(
            embeddings[query][queries],
            embeddings[target][candidates],
            query_ids=gallery.ids[queries],
            gallery_ids=gallery.ids[candidates],
        )
        # Queries that share a picture are correlated, so they are resampled together.
        units = gallery.ids[queries] if gallery.items is not None else None
        scores |= {
            f"{query}_to_{target}/recall@{k}": _interval(rank <= k, protocol, units) for k in (1, 5, 10)
        }
    return scores


def _interval(values: np.ndarray, protocol: Protocol, units: np.ndarray | None = None) -> Interval:
    return bootstrap_interval(values, units=units, resamples=protocol.resamples, seed=protocol.seed)


Labelled = tuple[Source, np.ndarray]
"""Examples that have a label, and their labels int ``[N]``."""
Tested = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By modality the embeddings ``[N, dim]`` and labels ``[N]`` of the test examples that have it."""


def _embed_more(
    space: EmbeddingFunctions,
    source: Source,
    known: np.ndarray,
    embeddings: Mapping[str, np.ndarray],
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """The embeddings of the examples ``rows`` of a source by modality, of which those of the examples ``known`` (int
    ``[N]``, each once) are there already: ``embeddings``."""
    missing = np.setdiff1d(rows, known)
    if len(missing):
        others = space.embed_source(Subset(source, missing))
        embeddings = {m: np.concatenate([x, others[m]]) for m, x in embeddings.items()}
    order = np.argsort(indices := np.concatenate([known, missing]))
    places = order[np.searchsorted(indices, rows, sorter=order)]
    return {m: x[places] for m, x in embeddings.items()}


def _by_modality(
    embeddings: Mapping[str, np.ndarray], labelled: Labelled
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields ``(modality, embeddings [n, dim], labels [n])`` for each modality but texts, of the labelled examples that
    have it. ``embeddings``: of all of them, by modality."""
    source, labels = labelled
    present = source.presence()
    for modality in ordered(tuple(embeddings)):
        if kind_of(modality) != "text" and present[modality].any():
            yield modality, embeddings[modality][present[modality]], labels[present[modality]]


def _embedded(space: EmbeddingFunctions, labelled: Labelled) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Embeds labelled examples, and yields what `_by_modality` does."""
    yield from _by_modality(space.embed_source(labelled[0]), labelled)


def _zero_shot(
    space: EmbeddingFunctions, train: Source, tested: Tested, protocol: Protocol
) -> dict[str, Interval]:
    """Accuracy and calibration error of zero-shot classification by prompts, for each modality but texts."""
    has_texts = space.embed_texts is not None and ("text" in train.modalities or protocol.prompts)
    prompts = class_prompts(train, protocol.prompts) if has_texts else None
    if prompts is None:
        return {}
    classes, scores = embed_prompts(space.embed_texts, prompts), {}
    for modality, (embeddings, labels) in tested.items():
        similarity = np.asarray(embeddings, np.float32) @ np.asarray(classes, np.float32).T
        correct = similarity.argmax(axis=1) == labels
        scores[f"{modality}_zero_shot/accuracy"] = _interval(correct, protocol)
        if space.scale is not None:
            probabilities = np.asarray(jax.nn.softmax(space.scale * similarity, axis=1))
            error = expected_calibration_error(probabilities, labels)
            scores[f"{modality}_zero_shot/calibration_error"] = Interval(error, float("nan"), float("nan"))
    return scores


def _probes(
    space: EmbeddingFunctions, train: Source, validation: Source, tested: Tested, protocol: Protocol
) -> dict[str, Interval]:
    """Accuracy of a linear probe and of few-shot nearest neighbours, for each modality but texts."""
    labelled_train = labelled_examples(one_per_picture(train))
    if labelled_train is None:
        return {}
    scores = {}
    fitted = _take_spread(labelled_train, protocol.probe_examples)
    labelled_validation = labelled_examples(one_per_picture(validation))
    held_out = (
        {}
        if labelled_validation is None
        else {m: (x, y) for m, x, y in _embedded(space, labelled_validation)}
    )
    for modality, embeddings, labels in _embedded(space, fitted):
        if modality in tested and len(set(labels.tolist())) > 1:
            inverse_l2 = choose_inverse_l2(embeddings, labels, *held_out.get(modality, (None, None)))
            predictions = classify_by_probe(embeddings, labels, tested[modality][0], inverse_l2=inverse_l2)
            scores[f"{modality}_linear_probe/accuracy"] = _interval(
                predictions == tested[modality][1], protocol
            )
    shots = _draw_shots(labelled_train, protocol.shots, protocol.seed)
    for modality, embeddings, labels in _embedded(space, shots):
        if modality in tested:
            k = min(protocol.neighbours, len(labels))
            predictions = classify_by_neighbours(embeddings, labels, tested[modality][0], k=k)
            scores[f"{modality}_few_shot/accuracy"] = _interval(predictions == tested[modality][1], protocol)
    return scores


def choose_inverse_l2(train, train_labels, held_out, held_out_labels) -> float:
    """Chooses the value of `INVERSE_L2` whose linear probe classifies the held-out examples best; of equals the
    smallest.

    Args:
      train, train_labels: embeddings ``[M, d]`` and labels ``[M]`` that the probe is fitted on.
      held_out, held_out_labels: embeddings ``[N, d]`` and labels ``[N]``; None: the result is 10.
    """
    if held_out is None:
        return 10.0
    accuracies = [
        np.mean(classify_by_probe(train, train_labels, held_out, inverse_l2=x) == held_out_labels)
        for x in INVERSE_L2
    ]
    return INVERSE_L2[int(np.argmax(accuracies))]


def _take_spread(labelled: Labelled, limit: int) -> Labelled:
    """Takes at most ``limit`` of the examples, evenly spread."""
    view = take_evenly(labelled[0], limit)
    return view, labelled[1][view.indices]


def _draw_shots(labelled: Labelled, shots: int, seed: int) -> Labelled:
    """Draws up to ``shots`` examples of each class at random; they stay in the order of the data set."""
    source, labels = labelled
    rng = np.random.default_rng(seed)
    by_class = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    chosen = np.sort(np.concatenate([rng.permutation(rows)[:shots] for rows in by_class]))
    return Subset(source, chosen), labels[chosen]
