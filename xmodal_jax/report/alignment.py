"""Report sections on a shared embedding space: retrieval, similarities, ranks, embedding map and modality gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.shapes.drawing import PALETTE
from xmodal_jax.data.shapes.scenes import COLOURS
from xmodal_jax.data.source import Source
from xmodal_jax.data.standardise import StandardiseTransform
from xmodal_jax.data.statistics import content_of
from xmodal_jax.evaluation.embeddings import Gallery, chance_of, directions, items_of_pair, ordered
from xmodal_jax.evaluation.scene_factors import is_scene_score
from xmodal_jax.metrics.latent import modality_gap
from xmodal_jax.metrics.retrieval import ranks
from xmodal_jax.report import figures
from xmodal_jax.report.measured import show_measured
from xmodal_jax.report.page import Audio, Hit, Item, Report
from xmodal_jax.train.run import format_value
from xmodal_jax.types import KINDS, is_measured, kind_of

QUERIES = 8
"""Queries shown for each direction of retrieval."""
MAP_EXAMPLES = 200
"""Examples in the embedding map."""
MATRIX_EXAMPLES = 40
"""Rows and columns of a similarity matrix."""


def content(
    batch: dict[str, Any],
    modality: str,
    index: int,
    sample_rate: int = 16_000,
    standardise: StandardiseTransform | None = None,
) -> str | np.ndarray | Audio:
    """One modality of the example at ``index`` of a raw batch, as a `Report` shows it: text, audio or pixels.

    ``sample_rate``: of audio, in Hz. ``standardise``: of measured quantities, which are shown in standard deviations;
    None: relative to the largest value of the example, as are all others that are shown as bars or lines.
    """
    kind = kind_of(modality)
    if is_measured(modality):
        return show_measured(batch, modality, index, standardise)
    if kind in KINDS and KINDS[kind].shown_as in ("bars", "lines"):
        return show_measured(batch, modality, index)
    value = content_of(batch, modality, index)
    if isinstance(value, str):
        return value
    if kind in KINDS and KINDS[kind].shown_as == "text":
        return " ".join(f"{number:g}" for number in np.ravel(value))
    return Audio(np.asarray(value), sample_rate) if kind == "audio" else np.asarray(value)


def add_galleries(
    report: Report,
    batch: dict[str, Any],
    embeddings: dict[str, np.ndarray],
    *,
    ids: np.ndarray | None = None,
    present: Mapping[str, np.ndarray] | None = None,
    items: Mapping[str, np.ndarray] | None = None,
    sample_rate: int = 16_000,
    query_count: int = QUERIES,
    standardise: StandardiseTransform | None = None,
) -> None:
    """Queries with their nearest results, for each direction: half of them random, half those with the worst ranks.

    Args:
      report: gets the galleries.
      batch: N raw examples.
      embeddings: of these examples, by modality, ``[N, D]`` of unit length.
      ids: ``[N]``; examples with equal ids are correct results for each other. None: each only for itself.
      present, items: which examples have a modality, and which of them count; see `evaluation.retrieval_scores`.
      sample_rate: of audio, Hz.
      query_count: number of queries for each direction.
      standardise: of measured quantities, see `content`.
    """
    count = len(next(iter(embeddings.values())))
    ids = np.arange(count) if ids is None else ids
    show = lambda modality, index: content(batch, modality, index, sample_rate, standardise)
    for query, target in directions(tuple(embeddings)):
        if target == "audio" and len(embeddings) > 2:
            continue  # a row of audio players adds little to the numbers
        # The examples whose modality ``query`` searches, and those whose modality ``target`` is searched.
        query_indices, candidate_indices = items_of_pair(query, target, ids, present=present, items=items)
        if not len(query_indices):
            continue
        similarity = (
            embeddings[query][query_indices] @ embeddings[target][candidate_indices].T
        )  # [queries, candidates]
        rank = ranks(
            embeddings[query][query_indices], embeddings[target][candidate_indices],
            query_ids=ids[query_indices], gallery_ids=ids[candidate_indices],
        )  # fmt: skip
        # Positions within ``query_indices``: first random queries, then those with the worst ranks.
        chosen = np.random.default_rng(0).permutation(len(query_indices))[: query_count // 2].tolist()
        worst = [i for i in np.argsort(-rank, kind="stable").tolist() if i not in chosen]
        chosen += worst[: query_count - len(chosen)]
        queries, results = [], []
        for i in chosen:
            example = int(query_indices[i])
            caption = "" if query == "text" or "caption" not in batch else str(batch["caption"][example])
            queries.append(Item(show(query, example), caption))
            nearest = np.argsort(-similarity[i], kind="stable")[:5]  # positions within ``candidate_indices``
            results.append(
                [
                    Hit(
                        show(target, int(candidate_indices[k])),
                        correct=bool(ids[candidate_indices[k]] == ids[example]),
                        similarity=float(similarity[i, k]),
                    )
                    for k in nearest
                ]
            )
        report.add_gallery(
            "Retrieval",
            queries,
            results,
            ranks=[int(rank[i]) for i in chosen],
            note=f"{query} to {target} among {len(candidate_indices)} examples: {query_count // 2} random queries, "
            "then the worst.",
        )


def add_similarities(
    report: Report, embeddings: dict[str, np.ndarray], present: Mapping[str, np.ndarray] | None = None
) -> None:
    """A matrix of the cosine similarities of the first examples for each pair of modalities.

    ``embeddings``: of each modality, unit vectors ``[N, D]`` of the same examples. ``present``: which of them have a
    modality, bool ``[N]`` each; None: all.
    """
    for a, b in directions(tuple(embeddings)):
        both, _ = items_of_pair(a, b, np.arange(len(embeddings[a])), present=present)
        if a < b and len(both):  # each pair in one of its two directions
            first = both[:MATRIX_EXAMPLES]
            matrix = embeddings[a][first] @ embeddings[b][first].T
            fig = figures.similarity_matrix(matrix, row_name=a, column_name=b, title=f"{a} and {b}")
            note = "Cosine similarities; the true pairs are on the diagonal." if a == "image" else ""
            report.add_figure("Similarity matrices", fig, note)


def add_ranks(
    report: Report,
    embeddings: dict[str, np.ndarray],
    ids: np.ndarray | None = None,
    *,
    present: Mapping[str, np.ndarray] | None = None,
    items: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Histograms of the rank of the first correct result, for each direction of retrieval between two modalities.

    ``embeddings``: unit vectors ``[N, D]`` by modality. ``ids [N]``: examples with equal ids are correct results for
    each other; None: each only for itself. ``present``, ``items``: which examples have a modality, and which of them
    count; see `evaluation.retrieval_scores`.
    """
    count = len(next(iter(embeddings.values())))
    ids = np.arange(count) if ids is None else ids
    ranks_by_direction = {}  # the rank of each query, from 1
    for a, b in directions(tuple(embeddings)):
        query_indices, candidate_indices = items_of_pair(a, b, ids, present=present, items=items)
        if not len(query_indices):
            continue
        ranks_by_direction[f"{a} to {b}"] = ranks(
            embeddings[a][query_indices],
            embeddings[b][candidate_indices],
            query_ids=ids[query_indices],
            gallery_ids=ids[candidate_indices],
        )
    report.add_figure("Ranks of the correct results", figures.rank_histogram(ranks_by_direction, count))


def add_map(
    report: Report,
    embeddings: dict[str, np.ndarray],
    groups: Sequence[str],
    *,
    factor: str,
    palette: dict[str, str] | None = None,
    present: Mapping[str, np.ndarray] | None = None,
) -> None:
    """A scatter plot of the embeddings of all modalities, projected to two dimensions.

    Args:
      report: gets the figure.
      embeddings: by modality, ``[N, D]``.
      groups: the group of each example, shown by its colour.
      factor: what the groups are, such as the class.
      palette: colours of groups; None: the default palette.
      present: which examples have a modality, bool ``[N]`` each; None: all.
    """
    names = ordered(tuple(embeddings))
    count = min(MAP_EXAMPLES, len(groups))
    has = lambda m: (present or {}).get(m, np.ones(len(groups), bool))[:count]
    rows = {m: np.flatnonzero(has(m)) for m in names}  # the examples that are shown of each modality
    names = [m for m in names if len(rows[m])]
    # Centred for each modality: otherwise the gap between the modalities would dominate the map.
    shown = {m: embeddings[m][rows[m]] for m in names}
    # First all examples of one modality, then of the next.
    points = figures.project_2d(np.concatenate([x - x.mean(axis=0, keepdims=True) for x in shown.values()]))
    # Lines join the points of one example in the first two modalities: the places of these points.
    first, second = (rows[m] for m in (names * 2)[:2])
    both = np.intersect1d(first, second)
    pairs = np.stack([np.searchsorted(first, both), len(first) + np.searchsorted(second, both)], axis=1)
    # Groups and modalities of the points, in the same order.
    fig = figures.embedding_map(
        points,
        groups=[groups[row] for m in names for row in rows[m]],
        modalities=[m for m in names for _ in rows[m]],
        palette=palette,
        pairs=pairs if len(names) > 1 else pairs[:0],
        title=f"coloured by {factor}",
    )
    joined = (
        f"Lines join the {names[0]} and {names[1]} of an example." if len(both) and len(names) > 1 else ""
    )
    report.add_figure(
        "Embedding map", fig, f"t-SNE of {count} test examples, centred for each modality. {joined}"
    )


def gap_scores(
    embeddings: dict[str, np.ndarray],
    prefix: str = "test/",
    present: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """The modality gap of every pair of modalities, named ``<prefix>gap_image_text``.

    ``present``: which examples have a modality, bool ``[N]`` each; None: all. The others do not count.
    """
    pairs = list(directions(tuple(embeddings)))[::2]  # both directions of a pair follow each other
    vectors = {m: x if present is None or m not in present else x[present[m]] for m, x in embeddings.items()}
    return {
        f"{prefix}gap_{a}_{b}": float(modality_gap(vectors[a], vectors[b]))
        for a, b in pairs
        if len(vectors[a]) and len(vectors[b])
    }


def add_embeddings(
    report: Report,
    records: list[dict],
    gallery: Gallery,
    embeddings: dict[str, np.ndarray],
    standardise: StandardiseTransform | None = None,
) -> None:
    """All sections on a shared embedding space.

    Args:
      report: gets the sections.
      records: of ``metrics.jsonl``, for the training curves.
      gallery: the examples.
      embeddings: of these examples, by modality.
      standardise: of measured quantities; None: there are none.
    """
    names = sorted({name for record in records for name in record})
    # The curves of the recall for each direction, such as validation/image_to_text/recall@1, without their mean.
    recalls = [name for name in names if name.startswith("validation/") and name.endswith("recall@1")]
    recalls = [name for name in recalls if name != "validation/recall@1"]
    # The terms of the loss, one for each pair of modalities, such as train/image_text.
    losses = [name for name in names if name.startswith("train/") and "_" in name]
    losses = [name for name in losses if "grad" not in name and "learning_rate" not in name]
    panels = [
        "train/loss",
        tuple(losses),
        *([tuple(recalls)] if recalls else []),
        "train/grad_norm",
        "train/scale",
    ]
    report.add_figure("Training curves", figures.curves(records, panels, smoothing=0.8))
    # Which results are correct, and which examples and items count.
    gallery_options = dict(ids=gallery.ids, present=gallery.present, items=gallery.items)
    add_galleries(report, gallery.examples, embeddings, standardise=standardise, **gallery_options)
    one_each = {
        name: x[gallery.representatives] for name, x in embeddings.items()
    }  # one example of each picture
    present = gallery.present and {m: mask[gallery.representatives] for m, mask in gallery.present.items()}
    add_similarities(report, one_each, present)
    add_ranks(report, embeddings, **gallery_options)
    groups, factor, palette = _groups(gallery)
    groups = [groups[example] for example in gallery.representatives]
    add_map(report, one_each, groups, factor=factor, palette=palette, present=present)


def _groups(gallery: Gallery) -> tuple[list[str], str, dict[str, str] | None]:
    """The groups that colour the embedding map: ``(the group of each example, what the groups are, palette)``.

    They are the colours of the first object in the scenes of the embedded data set, else the classes where there are
    labels, else one group.
    """
    batch = gallery.examples
    if "factors" in batch:
        names = [COLOURS[c] for c in batch["factors"]["colour"][:, 0]]
        # The colours of the drawings, [R, G, B] from 0 to 255, as hexadecimal codes.
        css = {name: "#" + bytes(int(v) for v in PALETTE[k]).hex() for k, name in enumerate(COLOURS)}
        css["white"] = "#b4b4b4"  # white would be invisible on a light page
        return names, "the first object's colour", css
    if "label" in batch:
        class_names = gallery.class_names
        name_of = lambda label: class_names[label] if class_names else f"class {label}"
        return ["unknown" if label < 0 else name_of(label) for label in batch["label"]], "class", None
    return ["example"] * len(gallery), "modality alone", None


def headline(metrics: dict[str, float | list[float]], gallery: Gallery, count: int = 6) -> list[str]:
    """Names of the ``count`` metrics on the cards: recall@1 first, or zero-shot accuracy first if examples share their
    captions, which makes recall less telling."""
    recalls = [name for name in metrics if name.endswith("recall@1")]
    accuracies = [name for name in metrics if name.endswith("zero_shot_accuracy")]
    return (recalls + accuracies if gallery.distinct else accuracies + recalls)[:count]


def add_scores(
    report: Report, metrics: dict[str, float | list[float]], galleries: Mapping[str, Gallery]
) -> list[str]:
    """Cards and tables of all scores; returns the names of the metrics on the cards.

    ``metrics``: by name, a number or one per seed. ``galleries``: by the name of the split, the examples that retrieval
    searches. The metrics of the split "test" have names without it, such as ``image_to_text/recall@1``.
    """
    on_cards = headline(metrics, galleries["test"])

    def chance(name: str) -> float | None:
        """What a random result would reach of a recall such as ``voices/image_to_text/recall@1``."""
        *split, direction, _ = name.split("/")
        return chance_of(galleries[split[0] if split else "test"], *direction.split("_to_"))

    report.add_cards(metrics, on_cards, {k: chance(k) for k in on_cards if "recall" in k})
    retrieval = {k: v for k, v in metrics.items() if not k.startswith("test/")}
    report.add_metrics(retrieval, headline=(), title="Retrieval scores")
    report.add_table("Classification and modality gap", ("metric", "value"), other_scores(metrics))
    return on_cards


def other_scores(metrics: dict[str, float | list[float]]) -> list[tuple[str, str]]:
    """Table rows ``(metric, value)`` for all scores except the retrieval scores and those by factor, which have
    sections of their own."""
    names = [name for name in metrics if name.startswith("test/") and not is_scene_score(name)]
    return [(name, format_value(metrics[name])) for name in names]


def add_confusion(report: Report, confusion: np.ndarray | None, source: Source) -> None:
    """The confusion matrix of zero-shot classification; nothing for None. ``source``: has the names of its classes."""
    if confusion is not None:
        fig = figures.confusion_matrix(confusion, class_labels(source, confusion))
        report.add_figure("Zero-shot confusion matrix", fig)


def class_labels(source: Source, confusion: np.ndarray) -> list[str]:
    """The names of a confusion matrix's classes; numbers where the data set has none."""
    return list(source.class_names or [str(k) for k in range(len(confusion))])
