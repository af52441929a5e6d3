"""The report's panels on a shared embedding space: galleries, similarities, ranks, a map and the modality gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.shapes.drawing import PALETTE
from xmodal_jax.data.shapes.scenes import COLOURS
from xmodal_jax.data.source import Source
from xmodal_jax.evaluation.embeddings import Gallery, directions
from xmodal_jax.metrics.latent import modality_gap
from xmodal_jax.metrics.retrieval import ranks
from xmodal_jax.report import figures
from xmodal_jax.report.page import Audio, Hit, Item, Report
from xmodal_jax.train.run import format_value

GALLERY_ROWS = 8
MAP_EXAMPLES = 200
MATRIX_EXAMPLES = 40


def content(
    batch: dict[str, Any], modality: str, row: int, sample_rate: int = 16_000
) -> str | np.ndarray | Audio:
    """One example of a raw batch as the report shows it."""
    if modality == "text":
        return str(batch["caption"][row])
    if modality == "audio":
        mask = batch.get("audio_mask")
        length = batch["audio"].shape[1] if mask is None else int(mask[row].sum())
        return Audio(np.asarray(batch["audio"][row][:length]), sample_rate)
    return np.asarray(batch[modality][row])


def add_galleries(
    report: Report,
    batch: dict[str, Any],
    embeddings: dict[str, np.ndarray],
    *,
    ids: np.ndarray | None = None,
    sample_rate: int = 16_000,
    rows: int = GALLERY_ROWS,
) -> None:
    """For each direction: half of the queries at random, half from those that the model ranks worst.

    ``batch``: the raw examples that ``embeddings`` were made from; ``ids``: equal ids answer each other.
    """
    count = len(next(iter(embeddings.values())))
    ids = np.arange(count) if ids is None else ids
    for query, target in directions(tuple(embeddings)):
        if target == "audio" and len(embeddings) > 2:
            continue  # rows of players say little that the numbers do not
        similarity = embeddings[query] @ embeddings[target].T
        rank = ranks(embeddings[query], embeddings[target], query_ids=ids, gallery_ids=ids)
        picked = np.random.default_rng(0).permutation(count)[: rows // 2].tolist()
        picked += [r for r in np.argsort(-rank, kind="stable").tolist() if r not in picked][
            : rows - len(picked)
        ]
        queries, results = [], []
        for row in picked:
            caption = "" if query == "text" or "caption" not in batch else str(batch["caption"][row])
            queries.append(Item(content(batch, query, row, sample_rate), caption))
            best = np.argsort(-similarity[row], kind="stable")[:5]
            results.append(
                [
                    Hit(
                        content(batch, target, k, sample_rate),
                        bool(ids[k] == ids[row]),
                        float(similarity[row, k]),
                    )
                    for k in best
                ]
            )
        report.add_gallery(
            "Retrieval",
            queries,
            results,
            ranks=[int(rank[row]) for row in picked],
            note=f"{query} to {target}, among {count}: {rows // 2} queries at random, then those ranked worst.",
        )


def add_similarities(report: Report, embeddings: dict[str, np.ndarray]) -> None:
    """Heat maps of the first examples' similarities, a pair of modalities each."""
    for a, b in directions(tuple(embeddings)):
        if a < b:
            matrix = embeddings[a][:MATRIX_EXAMPLES] @ embeddings[b][:MATRIX_EXAMPLES].T
            fig = figures.similarity_matrix(matrix, row_name=a, column_name=b, title=f"{a} and {b}")
            report.add_figure(
                "Similarity", fig, "" if a != "image" else "Cosine; the diagonal holds the true pairs."
            )


def add_ranks(report: Report, embeddings: dict[str, np.ndarray], ids: np.ndarray | None = None) -> None:
    """How far down the true item stands."""
    count = len(next(iter(embeddings.values())))
    ids = np.arange(count) if ids is None else ids
    found = {
        f"{a} to {b}": ranks(embeddings[a], embeddings[b], query_ids=ids, gallery_ids=ids)
        for a, b in directions(tuple(embeddings))
    }
    report.add_figure("Ranks of the true item", figures.rank_histogram(found, count))


def add_map(
    report: Report,
    embeddings: dict[str, np.ndarray],
    groups: Sequence[str],
    *,
    factor: str,
    palette: dict[str, str] | None = None,
) -> None:
    """All modalities' embeddings in two dimensions, coloured by a factor; true pairs of two are joined."""
    names = [m for m in ("image", "text", "audio", "video") if m in embeddings]
    count = min(MAP_EXAMPLES, len(groups))
    # Each modality about its own mean, as the gap between modalities would otherwise be all there is to see.
    centred = [embeddings[m][:count] - embeddings[m][:count].mean(axis=0, keepdims=True) for m in names]
    points = figures.project_2d(np.concatenate(centred))
    pairs = np.stack([np.arange(count), np.arange(count) + count], axis=1)
    fig = figures.embedding_map(
        points,
        list(groups[:count]) * len(names),
        [m for m in names for _ in range(count)],
        palette=palette,
        pairs=pairs,
        title=f"coloured by {factor}",
    )
    note = f"t-SNE of {count} test examples, each modality about its mean; a line joins {names[0]} and {names[1]}."
    report.add_figure("Map of the space", fig, note)


def gap_scores(embeddings: dict[str, np.ndarray], prefix: str = "test/") -> dict[str, float]:
    """The modality gap of every pair: ``<prefix>gap_image_text``."""
    return {
        f"{prefix}gap_{a}_{b}": float(modality_gap(embeddings[a], embeddings[b]))
        for a, b in list(directions(tuple(embeddings)))[::2]
    }


def add_space(report: Report, rows: list[dict], gallery: Gallery, embeddings: dict[str, np.ndarray]) -> None:
    """All panels of a space: training curves, galleries, similarities, ranks and the map."""
    recalls = sorted(
        {k for row in rows for k in row if k.startswith("validation/") and k.endswith("recall@1")}
    )
    pairs = [r for r in recalls if r != "validation/recall@1"]
    losses = sorted(
        {k for row in rows for k in row if k.startswith("train/") and "_" in k and "grad" not in k}
    )
    losses = [k for k in losses if "learning_rate" not in k]
    panels = [
        "train/loss",
        tuple(losses),
        *([tuple(pairs)] if pairs else []),
        "train/grad_norm",
        "train/scale",
    ]
    report.add_figure("Training", figures.curves(rows, panels, smoothing=0.8))
    add_galleries(report, gallery.batch_all, embeddings, ids=gallery.ids)
    add_similarities(report, embeddings)
    add_ranks(report, embeddings, gallery.ids)
    groups, factor, palette = _groups(gallery)
    add_map(report, embeddings, groups, factor=factor, palette=palette)


def _groups(gallery: Gallery) -> tuple[list[str], str, dict[str, str] | None]:
    """What the map is coloured by: the first object's colour, the class, or nothing."""
    batch = gallery.batch_all
    if "factors" in batch:
        names = [COLOURS[c] for c in batch["factors"]["colour"][:, 0]]
        css = {name: "#" + bytes(int(v) for v in PALETTE[k]).hex() for k, name in enumerate(COLOURS)}
        css["white"] = "#b4b4b4"  # on a white page
        return names, "the first object's colour", css
    if "label" in batch:
        names = gallery.class_names
        return (
            [("unknown" if k < 0 else names[k] if names else f"class {k}") for k in batch["label"]],
            "class",
            None,
        )
    return ["example"] * len(gallery), "modality alone", None


def headline(metrics: dict[str, float | list[float]], gallery: Gallery, count: int = 6) -> list[str]:
    """The metrics to show first: recall@1, or where the captions are class names, zero-shot accuracy."""
    recalls = [k for k in metrics if k.endswith("recall@1")]
    accuracies = [k for k in metrics if k.endswith("zero_shot_accuracy")]
    return (recalls + accuracies if gallery.distinct else accuracies + recalls)[:count]


def add_scores(report: Report, metrics: dict[str, float | list[float]], gallery: Gallery) -> list[str]:
    """Cards and tables of all scores; gives back the names of those on the cards."""
    shown = headline(metrics, gallery)
    chance = 1 / len(set(gallery.ids.tolist()))
    report.add_metrics(
        {k: v for k, v in metrics.items() if "recall" in k or "rank" in k or k in shown},
        headline=shown,
        chance={k: chance for k in shown if "recall" in k},
        title="Retrieval scores",
    )
    report.add_table("Classification and modality gap", ("metric", "value"), other_scores(metrics))
    return shown


def other_scores(metrics: dict[str, float | list[float]]) -> list[tuple[str, str]]:
    """The rows of the table beside the retrieval scores."""
    return [(k, format_value(v)) for k, v in metrics.items() if k.startswith("test/")]


def class_labels(source: Source, confusion: np.ndarray) -> list[str]:
    """The names of a confusion matrix's classes; numbers where the data set has none."""
    return list(source.class_names or [str(k) for k in range(len(confusion))])
