"""Scores of a shared embedding space on a data set by the standard protocols, with confidence intervals.

Retrieval in all directions (recall@k; of pictures with several captions as in COCO and Flickr30k), zero-shot
classification by prompts and its calibration, a linear probe, and few-shot classification by nearest neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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
"""The values of the probe's inverse weight of the squared norm, among which the validation examples choose."""


class EmbeddingFunctions(NamedTuple):
    """A trained space as functions."""

    embed_source: Callable[[Source], dict[str, np.ndarray]]
    """The unit embeddings ``[N, dim]`` of each modality of a data set."""
    embed_texts: Callable[[Sequence[str]], np.ndarray] | None
    """The unit embeddings of texts; None: the space has no texts."""
    scale: float | None
    """The inverse temperature, by which similarities are logits; None: there is none."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is measured, and on how many examples."""

    gallery: int | None = None
    """Test examples (or pictures with several captions) that retrieval searches at most; None: all."""
    prompts: tuple[str, ...] = ()
    """Templates for zero-shot classification, such as "a photo of a {}", whose embeddings are averaged. Empty: the data
    set's own, or captions of its training examples."""
    probe_examples: int = 5000
    """Training examples that the linear probe is fitted on at most, evenly spread."""
    shots: int = 16
    """Training examples of each class in few-shot classification, drawn at random."""
    neighbours: int = 5
    """Neighbours that vote in few-shot classification."""
    resamples: int = 1000
    """Resampled test sets of each confidence interval."""
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
    """All scores of a space on a data set, each with its 95% interval over test examples.

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
    scores = retrieval_intervals(space, test, protocol)
    labelled = labelled_examples(one_per_picture(test))
    if labelled is None:
        return scores
    return (
        scores
        | _zero_shot(space, train, labelled, protocol)
        | _probes(space, train, validation, labelled, protocol)
    )


def retrieval_intervals(space: EmbeddingFunctions, test: Source, protocol: Protocol) -> dict[str, Interval]:
    """The recall of retrieval between all pairs of modalities, with intervals over pictures."""
    gallery = Gallery(test, protocol.gallery)
    embeddings, scores = space.embed_source(gallery), {}
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
        # Queries that share a picture are drawn together; without groups of pictures, each is drawn alone.
        units = gallery.ids[queries] if gallery.items is not None else None
        scores |= {
            f"{query}_to_{target}/recall@{k}": _interval(rank <= k, protocol, units) for k in (1, 5, 10)
        }
    return scores


def _interval(values: np.ndarray, protocol: Protocol, units: np.ndarray | None = None) -> Interval:
    return bootstrap_interval(values, units=units, resamples=protocol.resamples, seed=protocol.seed)


Labelled = tuple[Source, np.ndarray]
"""Examples that have a label, and their labels int ``[N]``."""


def _by_modality(
    space: EmbeddingFunctions, labelled: Labelled
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """``(modality, embeddings [n, dim], labels [n])`` of each modality but texts, of the examples that have it."""
    source, labels = labelled
    embeddings, present = space.embed_source(source), source.presence()
    for modality in ordered(tuple(embeddings)):
        if kind_of(modality) != "text" and present[modality].any():
            yield modality, embeddings[modality][present[modality]], labels[present[modality]]


def _zero_shot(
    space: EmbeddingFunctions, train: Source, test: Labelled, protocol: Protocol
) -> dict[str, Interval]:
    """Accuracy and calibration of the class whose prompts are the most similar."""
    has_texts = space.embed_texts is not None and ("text" in train.modalities or protocol.prompts)
    prompts = class_prompts(train, protocol.prompts) if has_texts else None
    if prompts is None:
        return {}
    classes, scores = embed_prompts(space.embed_texts, prompts), {}
    for modality, embeddings, labels in _by_modality(space, test):
        similarity = np.asarray(embeddings, np.float32) @ np.asarray(classes, np.float32).T
        correct = similarity.argmax(axis=1) == labels
        scores[f"{modality}_zero_shot/accuracy"] = _interval(correct, protocol)
        if space.scale is not None:
            probabilities = np.asarray(jax.nn.softmax(space.scale * similarity, axis=1))
            error = expected_calibration_error(probabilities, labels)
            scores[f"{modality}_zero_shot/calibration_error"] = Interval(error, float("nan"), float("nan"))
    return scores


def _probes(
    space: EmbeddingFunctions, train: Source, validation: Source, test: Labelled, protocol: Protocol
) -> dict[str, Interval]:
    """Accuracy of a logistic regression and of nearest neighbours on the embeddings of training examples."""
    known = labelled_examples(one_per_picture(train))
    if known is None:
        return {}
    tested = {name: (x, labels) for name, x, labels in _by_modality(space, test)}
    scores = {}
    fitted = _spread(known, protocol.probe_examples)
    chosen_by = labelled_examples(one_per_picture(validation))
    held_out = {} if chosen_by is None else {m: (x, y) for m, x, y in _by_modality(space, chosen_by)}
    for modality, embeddings, labels in _by_modality(space, fitted):
        if modality in tested and len(set(labels.tolist())) > 1:
            inverse_l2 = choose_inverse_l2(embeddings, labels, *held_out.get(modality, (None, None)))
            predictions = classify_by_probe(embeddings, labels, tested[modality][0], inverse_l2=inverse_l2)
            scores[f"{modality}_linear_probe/accuracy"] = _interval(
                predictions == tested[modality][1], protocol
            )
    shots = _draw_shots(known, protocol.shots, protocol.seed)
    for modality, embeddings, labels in _by_modality(space, shots):
        if modality in tested:
            k = min(protocol.neighbours, len(labels))
            predictions = classify_by_neighbours(embeddings, labels, tested[modality][0], k=k)
            scores[f"{modality}_few_shot/accuracy"] = _interval(predictions == tested[modality][1], protocol)
    return scores


def choose_inverse_l2(train, train_labels, held_out, held_out_labels) -> float:
    """The inverse weight of the squared norm, of `INVERSE_L2`, whose probe classifies the held-out examples best; of
    several the smallest. Without held-out examples (None) it is 10."""
    if held_out is None:
        return 10.0
    accuracies = [
        np.mean(classify_by_probe(train, train_labels, held_out, inverse_l2=x) == held_out_labels)
        for x in INVERSE_L2
    ]
    return INVERSE_L2[int(np.argmax(accuracies))]


def _spread(labelled: Labelled, limit: int) -> Labelled:
    """At most ``limit`` of the examples, evenly spread."""
    view = take_evenly(labelled[0], limit)
    return view, labelled[1][view.indices]


def _draw_shots(labelled: Labelled, shots: int, seed: int) -> Labelled:
    """Up to ``shots`` examples of each class, at random, in the order of the data set."""
    source, labels = labelled
    rng = np.random.default_rng(seed)
    by_class = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    chosen = np.sort(np.concatenate([rng.permutation(rows)[:shots] for rows in by_class]))
    return Subset(source, chosen), labels[chosen]
