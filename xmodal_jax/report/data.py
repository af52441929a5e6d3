"""Report sections on a data set: counts, a contact sheet, histograms, what splits share, and conspicuous examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from xmodal_jax.data.source import Source
from xmodal_jax.data.standardise import StandardiseTransform
from xmodal_jax.data.statistics import SplitStatistics, shared_contents
from xmodal_jax.report.alignment import content
from xmodal_jax.report.figures import INK, MUTED, PALETTE, WIDTH, shorten
from xmodal_jax.report.page import Report

CLASSES_SHOWN = 40
"""Classes in the figure of their frequencies, at most."""
FEATURES_SHOWN = 60
"""Features of a modality in the table of their statistics, at most."""
CONSPICUOUS_SHOWN = 24
"""Conspicuous examples of each split in the page, at most."""


def count_table(splits: Mapping[str, SplitStatistics]) -> tuple[list[str], list[list[str]]]:
    """``(columns, rows)``: a row for each split with the numbers of its examples, pictures, classes and modalities."""
    modalities = list(dict.fromkeys(m for split in splits.values() for m in split.counts))
    columns = ["split", "examples", "pictures", "classes", *modalities]
    rows = []
    for name, split in splits.items():
        cells = [split.examples, split.pictures, len(split.classes.keys() - {"unknown"})]
        cells += [split.counts.get(m, 0) for m in modalities]
        rows.append([name, *(f"{cell:,}" for cell in cells)])
    return columns, rows


def length_table(splits: Mapping[str, SplitStatistics]) -> tuple[list[str], list[list[str]]]:
    """``(columns, rows)``: the quantiles of the lengths of captions and recordings, and of the sizes of images."""
    rows = []
    for title, of_splits in _lengths_by_title(splits).items():
        for name, values in of_splits.items():
            quantiles = np.quantile(values, [0, 0.5, 0.9, 0.99, 1])
            rows.append([title, name, *(f"{q:.4g}" for q in quantiles)])
    return ["what", "split", "smallest", "median", "90%", "99%", "largest"], rows


def _lengths(split: SplitStatistics) -> dict[str, np.ndarray]:
    """Words of captions, seconds of recordings and pixels of images, by a title with the unit."""
    lengths = {f"{m}, words": words for m, words in split.words.items()}
    lengths |= {f"{m}, seconds": seconds for m, seconds in split.seconds.items()}
    for m, sizes in split.sizes.items():
        lengths |= {f"{m}, width in pixels": sizes[:, 0], f"{m}, height in pixels": sizes[:, 1]}
    return {title: values for title, values in lengths.items() if len(values)}


def _lengths_by_title(splits: Mapping[str, SplitStatistics]) -> dict[str, dict[str, np.ndarray]]:
    """The lengths of all splits: ``{"text, words": {"train": [N], "test": [N]}}``."""
    by_title: dict[str, dict[str, np.ndarray]] = {}
    for name, split in splits.items():
        for title, values in _lengths(split).items():
            by_title.setdefault(title, {})[name] = values
    return by_title


def shared_table(splits: Mapping[str, SplitStatistics]) -> tuple[list[str], list[list[str]]]:
    """``(columns, rows)``: how many different contents occur more than once, see `shared_contents`."""
    rows = [
        [modality, where, f"{count:,}"]
        for modality, repeated in shared_contents(splits).items()
        for where, count in repeated.items()
    ]
    return ["modality", "split", "contents that occur more than once"], rows


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text with aligned columns; empty without rows."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [columns, *rows]
    return (
        "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
        + "\n"
    )


def add_counts(report: Report, splits: Mapping[str, SplitStatistics]) -> None:
    """The table of `count_table`, and how many examples were read."""
    read = {name: len(split.read) for name, split in splits.items() if len(split.read) < split.examples}
    note = "".join(
        f"Of {name}, {count:,} examples were read, evenly spaced. " for name, count in read.items()
    )
    report.add_table("Counts", *count_table(splits), note=note)


def add_statistics(report: Report, splits: Mapping[str, SplitStatistics]) -> None:
    """Tables of lengths and shared contents, and the histograms of lengths and classes."""
    columns, rows = length_table(splits)
    if rows:
        report.add_table("Lengths and sizes", columns, rows)
        report.add_figure("Lengths and sizes", _length_histograms(splits))
    if any(split.classes for split in splits.values()):
        report.add_figure("Classes", _class_bars(splits))
    columns, rows = shared_table(splits)
    if rows:
        report.add_table("Equal contents", columns, rows, note="Equal to the last bit after decoding.")
    else:
        report.add_text("Equal contents", "No two examples have equal contents.")


def add_features(report: Report, standardise: StandardiseTransform | None) -> None:
    """A table of the mean and the standard deviation of each feature of measured quantities over the training split.

    ``standardise``: fitted to that split; None: there are no measured quantities, and no table.
    """
    rows, note = [], ""
    for modality, statistics in ({} if standardise is None else standardise.statistics).items():
        names = statistics.names or [str(k) for k in range(len(statistics.mean))]
        features = list(zip(names, statistics.mean, statistics.std, strict=True))
        rows += [
            [modality, name, f"{mean:.4g}", f"{std:.4g}"] for name, mean, std in features[:FEATURES_SHOWN]
        ]
        if len(features) > FEATURES_SHOWN:
            note += f"Of {modality}, {FEATURES_SHOWN} of {len(features):,} are shown. "
    if rows:
        report.add_table("Features", ["modality", "feature", "mean", "standard deviation"], rows, note=note)


def add_contact_sheet(
    report: Report,
    source: Source,
    *,
    count: int,
    seed: int = 0,
    sample_rate: int = 16_000,
    standardise: StandardiseTransform | None = None,
) -> None:
    """A table of ``count`` random examples with all their modalities as training sees them, and their class.

    ``standardise``: of measured quantities, which are shown in standard deviations; None: there are none.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:count])
    report.add_table(
        "Examples",
        [*source.modalities, *(["class"] if source.class_labels(chosen[:1]) is not None else []), "where"],
        [
            [*_example(source, int(index), sample_rate, standardise), _where(source, "train", int(index))]
            for index in chosen
        ],
        note="Random examples of the training split, as a batch holds them: resized, cut, resampled.",
    )


def _where(source: Source, split: str, index: int) -> str:
    """Where an example is defined: ``train/metadata.jsonl: 18`` (file, and line or row), or its number in the split."""
    location = source.location(index)
    if location is None:
        return f"{split}, number {index}"
    path = Path(location[0])
    return f"{path.parent.name}/{path.name}: {location[1]}"


def add_conspicuous(
    report: Report,
    sources: Mapping[str, Source],
    splits: Mapping[str, SplitStatistics],
    *,
    sample_rate: int = 16_000,
    standardise: StandardiseTransform | None = None,
) -> None:
    """Examples that may be mistakes, such as images of one colour and silent recordings; and those with the longest
    captions. ``standardise``: see `add_contact_sheet`."""
    modalities = list(dict.fromkeys(m for source in sources.values() for m in source.modalities))
    rows, note = [], ""
    for name, split in splits.items():
        reasons = [(item.index, f"{item.modality}: {item.reason}") for item in split.conspicuous]
        for modality, words in split.words.items():
            if len(words) == len(split.read):  # each example that was read has a caption
                index = int(split.read[np.argmax(words)])
                reasons.append((index, f"{modality}: the longest, {words.max()} words"))
        if len(reasons) > CONSPICUOUS_SHOWN:
            note += f"Of {name}, {CONSPICUOUS_SHOWN} of {len(reasons):,} are shown. "
        source = sources[name]
        for index, reason in reasons[:CONSPICUOUS_SHOWN]:
            contents = dict(
                zip(source.modalities, _example(source, index, sample_rate, standardise), strict=False)
            )
            cells = [contents.get(m, "") for m in modalities]
            rows.append([name, reason, *cells, _where(source, name, index)])
    if rows:
        report.add_table("Look at these", ["split", "why", *modalities, "where"], rows, note=note)


def _example(
    source: Source, index: int, sample_rate: int, standardise: StandardiseTransform | None
) -> list[object]:
    """The cells of one example: the content of each modality (empty where it is missing), and its class.

    ``sample_rate``: of audio, Hz. ``standardise``: of measured quantities.
    """
    batch = source.batch(np.array([index]))
    present = batch.get("present", {})
    cells: list[object] = []
    for modality in source.modalities:
        is_present = bool(present.get(modality, [True])[0])
        cells.append(content(batch, modality, 0, sample_rate, standardise) if is_present else "")
    labels = source.class_labels(np.array([index]))
    if labels is not None:
        label = int(labels[0])
        named = source.class_names is not None and label >= 0
        cells.append(source.class_names[label] if named else "unknown" if label < 0 else str(label))
    return cells


def _length_histograms(splits: Mapping[str, SplitStatistics]) -> Figure:
    """A histogram of each length or size, a line for each split."""
    panels = _lengths_by_title(splits)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig = Figure((WIDTH, 2.3 * rows + 0.3), layout="constrained")
    for k, (title, by_split) in enumerate(panels.items()):
        ax = fig.add_subplot(rows, columns, k + 1)
        longest = max(values.max() for values in by_split.values())
        whole = title.endswith("words")
        bins = (
            np.arange(0, longest + 2) - 0.5 if whole and longest < 40 else np.linspace(0, longest + 1e-9, 30)
        )
        for colour, (name, values) in zip(PALETTE, by_split.items(), strict=False):
            weights = np.full(len(values), 1 / len(values))
            ax.hist(values, bins, weights=weights, histtype="step", color=colour, linewidth=1.4, label=name)
        ax.set_title(title, loc="left", color=INK, fontsize=10, parse_math=False)
        ax.set_ylabel("share of examples", color=MUTED, fontsize=8.5)
        ax.tick_params(colors=MUTED, labelsize=8.5, length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return fig


def _class_bars(splits: Mapping[str, SplitStatistics]) -> Figure:
    """The share of each class in each split, the most frequent classes of the first split first."""
    names = list(dict.fromkeys(name for split in splits.values() for name in split.classes))[:CLASSES_SHOWN]
    fig = Figure((WIDTH, 0.24 * len(names) * max(1, len(splits) / 2) + 0.9), layout="constrained")
    ax = fig.add_subplot()
    height = 0.8 / len(splits)
    for k, (colour, (name, split)) in enumerate(zip(PALETTE, splits.items(), strict=False)):
        total = max(1, sum(split.classes.values()))
        positions = np.arange(len(names))[::-1] - k * height
        ax.barh(positions, [split.classes.get(c, 0) / total for c in names], height, color=colour, label=name)
    ax.set_yticks(
        np.arange(len(names))[::-1] - 0.4,
        [shorten(name, 32) for name in names],
        fontsize=8.5,
        parse_math=False,
    )
    ax.set_xlabel("share of the split's examples", color=MUTED, fontsize=8.5)
    ax.tick_params(colors=MUTED, length=0, labelsize=8.5)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return fig
