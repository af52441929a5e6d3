"""Figures of a run: NumPy arrays to matplotlib ``Figure`` objects.

They are made without pyplot and its global state, so any thread may draw. `to_png` renders a figure for a light or a
dark page.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import threading
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Integer, Num, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a68c4", "#8c8c6a")
"""Okabe and Ito's colour-blind safe colours, without black and yellow, which are hard to see on a page."""

MARKERS = ("o", "^", "s", "D", "P", "X")
INK, MUTED, GRID, PAPER = "#1f2937", "#6b7280", "#e5e7eb", "#ffffff"
_DARK = {INK: "#e6e9ef", MUTED: "#9aa4b2", GRID: "#2c3440", PAPER: "#171b22"}
_DARK |= {"#000000": _DARK[INK]}  # of figures in matplotlib's default colours
_DARK |= {PALETTE[0]: "#4aa3df"}  # the one colour of the palette that a dark page swallows
WIDTH = 9.4
"""Inches: the width of the report's column at 96 pixels per inch."""


_UNPRINTABLE = re.compile("[\\ud800-\\udfff\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f]")
_warnings_lock = threading.Lock()
"""Python's filters of warnings are global to the process."""


def printable(text: str) -> str:
    """The text with U+FFFD in place of characters that neither a page nor a font can hold: lone surrogates (in names of
    files that are not UTF-8) and control characters."""
    return _UNPRINTABLE.sub("\ufffd", text)


def shorten(name: str, limit: int = 32) -> str:
    """A printable name of at most ``limit`` characters in one line, for the labels of a figure."""
    name = " ".join(printable(name).split())
    return name if len(name) <= limit else name[: limit - 1] + "…"


def to_png(fig: Figure, *, dark: bool = False, dpi: int = 160) -> bytes:
    """The figure as the bytes of a PNG file, for a light or a ``dark`` page.

    Figures without images are reduced to 256 colours, which takes a third of the size without a visible difference.
    """
    _show_literally(fig)  # "$" in names begins no formula
    undo = _recolour(fig, _DARK) if dark else []
    buffer, dpi_before = io.BytesIO(), fig.dpi
    try:
        canvas = FigureCanvasAgg(fig)
        fig.dpi = dpi
        size = canvas.get_width_height()
        # Plain pixels: encoding PNG twice would take as long as the drawing.
        with _warnings_lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it is drawn as an empty box
            fig.savefig(buffer, format="rgba", dpi=dpi)
    finally:  # leave the figure as it was
        fig.dpi = dpi_before
        for set_colour, colour in undo:
            set_colour(colour)
    image = Image.frombytes("RGBA", size, buffer.getvalue()).convert("RGB")
    if not any(ax.images for ax in fig.axes):
        image = image.quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _show_literally(fig: Figure) -> None:
    """Makes all texts of a figure printable and shows them as they are: names of classes and captions may hold "$",
    between two of which matplotlib would read a formula. The formulas of its own tick labels stay."""
    for artist in fig.findobj(Text):
        text = artist.get_text()
        if text and "\\mathdefault" not in text:
            artist.set_parse_math(False)
            artist.set_text(printable(text))


def curves(
    records: Sequence[Mapping[str, Any]],
    names: Sequence[str | Sequence[str]] | None = None,
    *,
    logy: bool | Collection[str] = False,
    smoothing: float = 0.0,
    columns: int | None = None,
) -> Figure:
    """Metrics over training steps, one panel for each metric or group of metrics.

    Args:
      records: of ``metrics.jsonl``: dictionaries with ``step`` and metrics, each a number or one number per seed.
        Several seeds are drawn as their mean with a band of one standard deviation.
      names: a metric, or several metrics, for each panel; None: metrics whose names end alike share a panel
        (``train/loss`` and ``validation/loss``).
      logy: logarithmic axes, for all panels or for the metrics named.
      smoothing: in [0, 1), the weight of the past in an exponential average of ``train/...``, drawn over the pale raw
        curve. Evaluations are not smoothed, since an average would lag behind their last value, the result.
      columns: panels per row; None: two or three.
    """
    # A panel is a list of metrics. Metrics that were not logged, and panels without any, are left out.
    panels = _panels(records) if names is None else [[n] if isinstance(n, str) else list(n) for n in names]
    logged = {name for record in records for name in record}
    panels = [[name for name in panel if name in logged] for panel in panels]
    panels = [panel for panel in panels if panel]
    columns = columns or (2 if len(panels) in (2, 4) else 3)
    fig, axes = _grid(max(1, len(panels)), columns, height=2.35)
    if not panels:
        return _empty(fig, axes[0], "no metrics were logged")
    for ax, panel in zip(axes, panels, strict=False):
        title, labels = _panel_labels(panel)
        for name, colour in zip(panel, _cycle(len(panel)), strict=True):
            weight = smoothing if name.startswith("train/") else 0.0
            _draw_curve(ax, *_series(records, name), colour=colour, label=labels[name], smoothing=weight)
        _style(ax, title=title)
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        if logy is True or (not isinstance(logy, bool) and any(name in logy for name in panel)):
            ax.set_yscale("log")
        if len(panel) > 1:
            _legend_above(ax, [labels[name] for name in panel])
    for ax in axes[max(0, len(panels) - columns) : len(panels)]:  # the lowest panel of each column
        ax.set_xlabel("step", color=MUTED, fontsize=9)
    return fig


def overlaid_curves(records_by_run: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> Figure:
    """One metric of several runs over training steps, a colour for each run. ``records_by_run``: of their
    ``metrics.jsonl``, by the name of the run; several seeds are drawn as in `curves`."""
    fig, (ax,) = _grid(1, 1, height=2.9)
    for (run, records), colour in zip(records_by_run.items(), _cycle(len(records_by_run)), strict=True):
        if any(name in record for record in records):
            _draw_curve(ax, *_series(records, name), colour=colour, label=shorten(run, 48), smoothing=0.0)
    _style(ax, title=name)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlabel("step", color=MUTED, fontsize=9)
    _legend(ax)
    return fig


def _draw_curve(
    ax: Axes,
    steps: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    *,
    colour: str,
    label: str,
    smoothing: float,
) -> None:
    """Draws one metric over training steps, with a band of ``spread`` to both sides; see `curves` for ``smoothing``.

    ``steps``, ``mean`` (over seeds) and ``spread`` are arrays of equal length. Short curves also get dots.
    """
    curve = mean
    if smoothing > 0:
        ax.plot(steps, mean, color=colour, alpha=0.25, linewidth=1)  # the raw curve, pale
        curve = _smooth(mean, smoothing)
    if np.any(spread > 0):
        ax.fill_between(steps, curve - spread, curve + spread, color=colour, alpha=0.18, linewidth=0)
    marker = "o" if len(steps) < 13 else None
    ax.plot(steps, curve, color=colour, linewidth=1.8, label=label, marker=marker, ms=4)


def similarity_matrix(
    matrix: Num[np.ndarray, "rows columns"],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    *,
    row_name: str = "query",
    column_name: str = "candidate",
    title: str = "",
    measure: str = "similarity",
    numbers: bool = False,
) -> Figure:
    """A heat map of similarities. Where row k belongs to column k, a good model has a bright diagonal.

    Args:
      matrix: similarities.
      row_labels: names of the rows; numbers are shown where there are none or more than 40.
      column_labels: of the columns.
      row_name: label of the vertical axis.
      column_name: label of the horizontal axis.
      title: above the figure.
      measure: label of the colour bar.
      numbers: whether each cell also shows its value, for at most 10 columns.
    """
    n_rows, n_columns = matrix.shape
    # In inches. The longer side has the full length, the other is in proportion down to a minimum.
    width = 2.0 + 5.2 * max(0.4, min(1.0, n_columns / n_rows))
    height = max(2.2, 5.6 * max(0.3, min(1.0, n_rows / n_columns)))
    fig = _figure(width, height)
    ax = fig.add_subplot()
    image = ax.imshow(matrix, cmap="viridis", aspect="equal", interpolation="nearest")
    _style(ax, title=title, frame=False)
    _labels(ax, row_labels, column_labels)
    if numbers and n_columns <= 10:
        middle = (np.nanmin(matrix) + np.nanmax(matrix)) / 2
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):  # dark on the bright half of the colour map
                colour = "#101010" if value > middle else "#fdfdfd"
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    ax.set_xlabel(column_name, color=MUTED, fontsize=9)
    ax.set_ylabel(row_name, color=MUTED, fontsize=9)
    _colourbar(fig, image, ax, measure)
    return fig


def gain_matrix(
    matrix: Num[np.ndarray, "rows columns"],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    row_name: str = "observed",
    column_name: str = "acquired next",
    title: str = "",
    measure: str = "nats",
) -> Figure:
    """A heat map with its numbers: what each column adds to each row. A cell without a number (NaN) is blank."""
    n_rows, n_columns = matrix.shape
    fig = _figure(2.6 + 0.75 * n_columns, 1.4 + 0.34 * n_rows)
    ax = fig.add_subplot()
    image = ax.imshow(np.ma.masked_invalid(matrix), cmap="viridis", aspect="auto", interpolation="nearest")
    finite = matrix[np.isfinite(matrix)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "#101010" if value - low > 0.6 * (high - low) else "#fdfdfd"  # legible on the cell
            ax.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8.5, color=colour)
    _style(ax, title=title, frame=False)
    _labels(ax, row_labels, column_labels)
    ax.set_xlabel(column_name, color=MUTED, fontsize=9)
    ax.set_ylabel(row_name, color=MUTED, fontsize=9)
    _colourbar(fig, image, ax, measure)
    return fig


def project_2d(
    embeddings: Num[np.ndarray, "points dim"], *, method: str = "tsne", seed: int = 0
) -> Num[np.ndarray, "points 2"]:
    """Projects embeddings to two dimensions, by "tsne" (of unit vectors; needs scikit-learn) or "pca".

    More than 2,000 points, or fewer than 5, are projected by PCA in any case: t-SNE would take minutes, or have no
    neighbours to keep.

    Raises:
      ValueError: an unknown ``method``.
    """
    if method not in ("tsne", "pca"):
        raise ValueError(f"method must be 'tsne' or 'pca', got {method!r}")
    points = np.asarray(embeddings, np.float64)
    if method == "tsne" and 5 <= len(points) <= 2000:
        from sklearn.manifold import TSNE  # here: it takes a second to import
        from threadpoolctl import threadpool_limits

        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
        perplexity = min(30.0, (len(points) - 1) / 3)
        # A random start where PCA finds no two directions.
        init = "pca" if min(points.shape) > 1 and np.ptp(points, axis=0).max() > 1e-9 else "random"
        tsne = TSNE(perplexity=perplexity, init=init, max_iter=500, random_state=seed)
        # With one thread: on a busy machine several wait for each other, which takes ten times as long.
        with threadpool_limits(1):
            return tsne.fit_transform(points)
    # PCA: the projection on the first two right singular vectors of the centred points.
    points = points - points.mean(axis=0, keepdims=True)
    # The rows of the third factor are the right singular vectors.
    _, _, directions = np.linalg.svd(points, full_matrices=False)
    projected = points @ directions[:2].T
    # Fewer than two directions: the missing coordinates are 0.
    return np.pad(projected, ((0, 0), (0, 2 - projected.shape[1])))


def embedding_map(
    points: Num[np.ndarray, "points 2"],
    groups: Sequence[Any],
    modalities: Sequence[str] | None = None,
    *,
    palette: Mapping[str, str] | None = None,
    pairs: Integer[np.ndarray, "pairs 2"] | None = None,
    title: str = "",
) -> Figure:
    """A scatter plot of embeddings.

    Args:
      points: from `project_2d`.
      groups: the group of each point, such as its class; points of a group have one colour.
      modalities: the modality of each point; points of a modality have one marker. None: all have the same.
      palette: colours of groups by name; groups that it lacks (None: all) take those of `PALETTE`.
      pairs: indices of points to join by a line, such as an image and its caption; None: there are no lines.
      title: above the figure.

    Raises:
      ValueError: not as many groups or modalities as points.
    """
    if len(groups) != len(points) or (modalities is not None and len(modalities) != len(points)):
        raise ValueError(f"{len(points)} points need as many groups and modalities")
    fig = _figure(WIDTH, height=5.2)
    ax = fig.add_subplot()
    if pairs is not None:
        for a, b in pairs:
            # x and y coordinates of both points.
            ax.plot(*points[[a, b]].T, color=MUTED, alpha=0.25, linewidth=0.6, zorder=1)
    point_groups = np.asarray([str(group) for group in groups])
    point_modalities = np.asarray([""] * len(points) if modalities is None else [str(m) for m in modalities])
    group_names, modality_names = (list(dict.fromkeys(x)) for x in (point_groups, point_modalities))
    group_names = sorted(group_names)
    default_colours = dict(zip(group_names, _cycle(len(group_names)), strict=True))
    colours = {name: (palette or {}).get(name, colour) for name, colour in default_colours.items()}
    markers = dict(zip(modality_names, _repeat(MARKERS, len(modality_names)), strict=True))
    size = float(np.clip(16000 / max(1, len(points)), 14, 70))  # the more points, the smaller
    for modality, marker in markers.items():
        is_shown = point_modalities == modality
        ax.scatter(
            *points[is_shown].T, s=size, c=[colours[group] for group in point_groups[is_shown]], marker=marker,
            linewidths=0.4, edgecolors=PAPER, alpha=0.9, zorder=2,
        )  # fmt: skip
    _style(ax, title=title, frame=False)
    ax.set(xticks=[], yticks=[])
    # The legend: at most 24 groups, an empty line, and the modalities.
    dot = {"linestyle": "", "markersize": 7}
    handles = [
        Line2D([], [], marker="o", color=colours[name], label=shorten(name), **dot)
        for name in group_names[:24]
    ]
    if len(markers) > 1:
        handles.append(Line2D([], [], linestyle="", label=" "))
        handles += [
            Line2D([], [], marker=m, color=MUTED, label=shorten(name), **dot) for name, m in markers.items()
        ]
    _legend(ax, handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def rank_histogram(ranks: Mapping[str, np.ndarray], candidates: int) -> Figure:
    """Histograms of retrieval ranks, a panel per direction: the fraction of queries whose first correct result has rank
    1, 2 to 5, 6 to 10, …

    A dotted line shows the fraction for a random order of the results, if each query has one correct result.

    Args:
      ranks: the rank (from 1) of the first correct result of each query, by direction.
      candidates: number of candidates that are ranked for each query.

    Raises:
      ValueError: a rank is not in 1..candidates.
    """
    # A bin has the ranks from its edge to below the next edge.
    edges = [1, 2, 6, 11, 51, 101, 501, 1001, 10001]
    # No bin begins close to the number of candidates: the last one would be narrow.
    edges = [edge for edge in edges if edge * 1.5 <= candidates or edge == 1] + [candidates + 1]
    names = [str(a) if b == a + 1 else f"{a}–{b - 1}" for a, b in zip(edges, edges[1:], strict=False)]
    fig, axes = _grid(len(ranks), min(2, len(ranks)), height=2.6)
    for ax, (direction, values), colour in zip(axes, ranks.items(), _cycle(len(ranks)), strict=False):
        if values.size and (values.min() < 1 or values.max() > candidates):
            bad = f"{values.min()}..{values.max()}"
            raise ValueError(f"{direction}: ranks must lie in 1..{candidates}, got {bad}")
        counts, _ = np.histogram(values, bins=edges)
        fractions = counts / max(1, values.size)
        chance = np.diff(edges) / candidates  # the ranks in a bin, of all ranks
        ax.bar(names, fractions, color=colour, width=0.72)
        left = (
            np.arange(len(names)) - 0.42
        )  # the line of chance is a little wider than the bar around 0, 1, ...
        ax.hlines(chance, left, left + 0.84, color=MUTED, linestyle=":", linewidth=1.4)
        for x, y in enumerate(fractions):
            if y >= 0.005:  # smaller ones would be shown as 0%
                ax.text(x, y + 0.015, f"{y:.0%}", ha="center", va="bottom", fontsize=8.5, color=INK)
        _style(ax, title=direction)
        ax.set_ylim(0, min(1.2, max(fractions.max(), chance.max()) * 1.15 + 0.05))
        ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        ax.set_xlabel("rank of the first correct result", color=MUTED, fontsize=9)
        _legend(ax, handles=[Line2D([], [], color=MUTED, linestyle=":", label="chance")], loc="upper center")
    return fig


def score_intervals(scores: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """Scores in 0..1 as points with their intervals: a row for each score, a colour for each of those compared.

    ``scores``: by the name of what is compared and the name of a score, ``(value, low, high)``.
    """
    names = list(dict.fromkeys(name for of_one in scores.values() for name in of_one))
    rows_per_inch = 3.2 / max(1.0, 0.5 + 0.5 * len(scores))
    fig = _figure(WIDTH, 0.9 + max(1, len(names)) / rows_per_inch)
    ax = fig.add_subplot()
    if not names:
        return _empty(fig, ax, "no score with an interval")
    _style(ax)
    for number, (label, colour) in enumerate(zip(scores, _cycle(len(scores)), strict=True)):
        # The intervals of one row stand below one another, those of the first above.
        shift = (number - (len(scores) - 1) / 2) * 0.6 / len(scores)
        drawn = [(row, scores[label][name]) for row, name in enumerate(names) if name in scores[label]]
        if not drawn:
            continue
        rows, values = np.array([row for row, _ in drawn]), np.array([value for _, value in drawn])
        spread = np.abs(values[:, 1:].T - values[:, 0])
        style = dict(fmt="o", markersize=4, linewidth=1.4, color=colour, label=shorten(label))
        ax.errorbar(values[:, 0], rows + shift, xerr=spread, **style)
    ax.set_yticks(range(len(names)), [shorten(name.replace("_", " ").replace("/", " · ")) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(-0.02, 1.02)
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    if len(scores) > 1:
        _legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(scores)))
    return fig


def grouped_bars(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]], chances: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Bars of accuracies in 0..1, a panel below the other: a group of bars for each score, a colour for each of those
    compared, and a dotted line at the accuracy of a random choice.

    ``panels``: by the title of a panel, the name of what is compared and the name of a score. ``chances``: by the title
    and the name of a score.
    """
    fig, axes = _grid(len(panels), 1, height=2.1)
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        names = list(dict.fromkeys(name for of_one in values.values() for name in of_one))
        width = 0.8 / max(1, len(values))
        for number, (label, colour) in enumerate(zip(values, _cycle(len(values)), strict=True)):
            drawn = [k for k, name in enumerate(names) if name in values[label]]
            heights = np.array([values[label][names[k]] for k in drawn])
            x = np.array(drawn) + (number - (len(values) - 1) / 2) * width
            ax.bar(x, heights, width=0.94 * width, color=colour, label=shorten(label))
            for k, place, height in zip(drawn, x, heights, strict=True):
                chance = chances[title][names[k]]
                top = (
                    chance if chance - 0.12 < height < chance else height
                )  # the line does not cross the number
                ax.text(place, top + 0.02, f"{height:.0%}", ha="center", va="bottom", fontsize=7.5, color=INK)
        for k, name in enumerate(names):
            ax.hlines(chances[title][name], k - 0.46, k + 0.46, color=MUTED, linestyle=":", linewidth=1.4)
        _style(ax, title=title)
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.6, max(len(names), 7) - 0.4)
        ax.set_ylim(0, 1.16)
        ax.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        handles = [
            *ax.get_legend_handles_labels()[0],
            Line2D([], [], color=MUTED, linestyle=":", label="chance"),
        ]
        _legend(ax, handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles))
    return fig


def confusion_matrix(
    matrix: Num[np.ndarray, "true predicted"], names: Sequence[str], *, title: str = ""
) -> Figure:
    """A heat map of a confusion matrix, with a row per true class: numbers are counts, colours fractions of the row.

    Raises:
      ValueError: the matrix is not square, or not as large as there are names.
    """
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"{len(names)} names need a square matrix of that size, got shape {matrix.shape}")
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # an empty row stays 0
    side = float(np.clip(0.55 * len(names) + 1.4, 3.2, 7.0))
    fig = _figure(side + 1.2, side)
    ax = fig.add_subplot()
    image = ax.imshow(fractions, cmap="viridis", vmin=0, vmax=1)
    if len(names) <= 12:
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                colour = "#101010" if fractions[i, j] > 0.6 else "#fdfdfd"  # legible on the cell
                ax.text(j, i, f"{count:g}", ha="center", va="center", fontsize=8.5, color=colour)
    _style(ax, title=title, frame=False)
    _labels(ax, names, names)
    ax.set_xlabel("predicted", color=MUTED, fontsize=9)
    ax.set_ylabel("true", color=MUTED, fontsize=9)
    _colourbar(fig, image, ax, "fraction of the row")
    return fig


def spectrogram(
    log_mel: Num[np.ndarray, "frames mels"] | Mapping[str, np.ndarray],
    *,
    frames_per_second: float | None = None,
    title: str = "",
) -> Figure:
    """One log-mel spectrogram, or several by title, which share a colour scale. Low frequencies are at the bottom.

    ``frames_per_second``: for a time axis in seconds; None: the axis counts frames.
    """
    by_title = log_mel if isinstance(log_mel, Mapping) else {title: log_mel}
    fig, axes = _grid(len(by_title), columns=1, height=2.1)
    low, high = min(m.min() for m in by_title.values()), max(m.max() for m in by_title.values())
    for ax, (name, mel) in zip(axes, by_title.items(), strict=True):
        end = len(mel) / (frames_per_second or 1.0)  # in seconds, or in frames
        extent = (0.0, end, 0.0, float(mel.shape[1]))
        image = ax.imshow(
            mel.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=extent,
            interpolation="nearest",
        )  # fmt: skip
        _style(ax, title=name, frame=False)
        ax.set_ylabel("mel band", color=MUTED, fontsize=9)
    axes[-1].set_xlabel("seconds" if frames_per_second else "frame", color=MUTED, fontsize=9)
    _colourbar(fig, image, list(axes), "log energy")
    return fig


def image_grid(
    images: UInt8[np.ndarray, "images height width channels"],
    *,
    columns: int = 8,
    captions: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Images in rows of ``columns``, with small pixels enlarged to sharp squares; captions are shown above them.

    ``captions``: of the first images; ``title``: above the figure.
    """
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    # In inches.
    cell = min(1.6, WIDTH / columns)
    row_height = cell * images.shape[1] / images.shape[2] + (0.4 if captions else 0.05)
    fig = _figure(cell * columns, row_height * rows + (0.35 if title else 0.0))
    for k, image in enumerate(images):
        ax = fig.add_subplot(rows, columns, k + 1)
        ax.imshow(_rgb(image), interpolation="nearest")
        ax.set_axis_off()
        if k < len(captions):
            lines = textwrap.wrap(captions[k], max(8, int(cell * 14)), max_lines=2, placeholder=" …")
            text = "\n".join(lines)
            ax.set_title(text, fontsize=7.5, color=INK, pad=3, parse_math=False)
    if title:
        fig.suptitle(title, color=INK, fontsize=11, parse_math=False)
    return fig


def video_strip(
    videos: UInt8[np.ndarray, "videos frames height width channels"],
    *,
    captions: Sequence[str] = (),
    max_frames: int = 10,
) -> Figure:
    """A row per video with its frames from left to right: all of them, or ``max_frames`` evenly spaced ones.
    ``captions``: above the first videos."""
    n, frames, height, width, channels = videos.shape
    chosen = np.unique(np.linspace(0, frames - 1, min(frames, max_frames)).round().astype(int))
    gap = max(1, width // 16)  # between frames, in pixels
    # RGBA: the gaps between the frames are transparent.
    strips = np.full((n, height, (width + gap) * len(chosen) - gap, 4), 0, np.uint8)
    for position, frame in enumerate(chosen):
        left = position * (width + gap)
        for strip, video in zip(strips, videos, strict=True):
            strip[:, left : left + width, :3] = _rgb(video[frame])
            strip[:, left : left + width, 3] = 255
    row_height = WIDTH * height / strips.shape[2] + (0.3 if captions else 0.06)
    fig = _figure(WIDTH, max(0.5, row_height * max(1, n)))
    for k, strip in enumerate(strips):
        ax = fig.add_subplot(n, 1, k + 1)
        ax.imshow(strip, interpolation="nearest")
        ax.set_axis_off()
        if k < len(captions):
            ax.set_title(captions[k], fontsize=9, color=INK, loc="left", pad=3, parse_math=False)
    return fig


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def _grid(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """``(figure, axes)``: a figure with ``count`` panels, in rows of ``columns``; ``height``: of a row, in inches."""
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    fig = _figure(WIDTH, height * rows + 0.2)
    return fig, [fig.add_subplot(rows, columns, k + 1) for k in range(count)]


def _style(ax: Axes, *, title: str = "", frame: bool = True) -> None:
    """Gives axes the common look of all figures: no top and right spine, muted ticks, a bold title at the left.

    ``frame``: whether to draw the line of the horizontal axis.
    """
    ax.set_facecolor("none")
    ax.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set(visible=frame and side == "bottom", color=GRID)
    ax.tick_params(which="both", colors=MUTED, labelsize=8.5, length=0)
    if title:
        ax.set_title(title, loc="left", color=INK, fontsize=10.5, fontweight="bold", pad=8, parse_math=False)
    ax.set_axisbelow(True)


def _legend_above(ax: Axes, labels: Sequence[str]) -> None:
    """The legend of the curves of a panel. One of more than four entries would hide some: it gets room above them."""
    entries = len(labels)
    if entries <= 4:
        return _legend(ax)
    columns = 2 if entries <= 8 or max(map(len, labels)) > 13 else 3  # longer labels do not fit three times
    share = min(0.08 * -(-entries // columns) + 0.03, 0.6)  # of the height of the panel
    to_axis, to_value = ax.yaxis.get_transform(), ax.yaxis.get_transform().inverted()
    low, high = to_axis.transform(np.array(ax.get_ylim()))
    ax.set_ylim(*to_value.transform(np.array([low, low + (high - low) / (1 - share)])))
    _legend(ax, loc="upper center", ncols=columns, fontsize=7, columnspacing=0.8)


def _legend(ax: Axes, **kwargs: Any) -> None:
    ax.legend(**{"frameon": False, "fontsize": 8.5, "labelcolor": INK, "handlelength": 1.4} | kwargs)


def _labels(ax: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None) -> None:
    """Labels the ticks of a matrix with the names of its rows and columns (cut to 32 characters); with numbers where
    there are no names or more than 40."""
    for axis, names in ((ax.yaxis, rows), (ax.xaxis, columns)):
        if names is not None and len(names) <= 40:
            axis.set_ticks(range(len(names)), [shorten(name) for name in names])
            for label in axis.get_ticklabels():
                label.set_parse_math(False)
        else:
            axis.set_major_locator(MaxNLocator(6, integer=True))
    if columns is not None and len(columns) <= 40 and max(map(len, columns), default=0) > 3:
        ax.tick_params(axis="x", rotation=40)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _colourbar(fig: Figure, image: Any, axes: Any, name: str) -> None:
    """Adds the colour bar of ``image``, with the label ``name``, beside ``axes`` (one or several)."""
    bar = fig.colorbar(image, ax=axes, shrink=0.85, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", colors=MUTED, labelsize=8.5, length=0)
    bar.set_label(name, color=MUTED, fontsize=9)


def _empty(fig: Figure, ax: Axes, message: str) -> Figure:
    ax.set_axis_off()
    ax.text(0.5, 0.5, message, ha="center", va="center", color=MUTED, transform=ax.transAxes)
    return fig


def _repeat(items: Sequence[str], count: int) -> list[str]:
    """``count`` items: all of them, then again from the first."""
    return [items[k % len(items)] for k in range(count)]


def _cycle(count: int) -> list[str]:
    """``count`` different colours: those of `PALETTE`, or where it has too few, hues of a colour map, which are not
    colour-blind safe."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [to_hex(c) for c in matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))]


def _split(name: str) -> tuple[str, str]:
    """Prefix and metric of a name: ("test/image", "accuracy") for "test/image/accuracy"."""
    prefix, _, metric = name.rpartition("/")
    return prefix, metric


def _panel_labels(panel: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A panel's title (what the names of its metrics share) and the label of each curve (what they do not share).

    For "train/loss" and "test/loss" the title is "loss" and the labels are "train" and "test"; for "test/loss" and
    "test/accuracy" the title is "test" and the labels are "loss" and "accuracy".
    """
    # The different prefixes, and the different metrics, each in the order of the panel.
    prefixes, metrics = (list(dict.fromkeys(parts)) for parts in zip(*map(_split, panel), strict=True))
    if len(panel) == 1:
        return panel[0], {panel[0]: prefixes[0] or panel[0]}
    if len(prefixes) == 1:
        return prefixes[0], {name: _split(name)[1] for name in panel}
    # Several prefixes may begin alike, such as test/image and test/text.
    beginnings = {prefix.partition("/")[0] for prefix in prefixes}
    all_nested = all("/" in prefix for prefix in prefixes)
    common = f"{beginnings.pop()}/" if len(beginnings) == 1 and all_nested else ""
    return common + ", ".join(metrics), {name: _split(name)[0].removeprefix(common) for name in panel}


def _panels(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The metrics of each panel, one panel for each ending of names: ``train/loss`` with ``validation/loss``."""
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for r in records for name in r if name not in ("step", "note")):
        panels.setdefault(_split(name)[1], []).append(name)
    return list(panels.values())


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A metric over training: ``(steps, means over seeds, standard deviations over seeds)``, arrays of equal length."""
    records = [record for record in records if name in record]
    steps = np.asarray([record["step"] for record in records])
    # None (not finite) becomes NaN, which leaves a gap in the curve.
    values = [np.atleast_1d(np.asarray(record[name], np.float64)) for record in records]
    means = np.asarray([v.mean() for v in values])
    return steps, means, np.asarray([v.std(ddof=1) if v.size > 1 else 0.0 for v in values])


def _smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """The exponential moving average of a curve; ``weight``: of the past, in [0, 1). Gaps (NaN) stay gaps.

    The sum of the weights so far divides it, so that it does not start near 0.
    """
    smoothed, weighted_sum, weight_sum = np.full_like(values, np.nan), 0.0, 0.0
    for k, value in enumerate(values):
        if np.isfinite(value):
            weighted_sum = weight * weighted_sum + (1 - weight) * value
            weight_sum = weight * weight_sum + (1 - weight)
            smoothed[k] = weighted_sum / weight_sum
    return smoothed


def _rgb(image: Shaped[np.ndarray, "height width channels"]) -> np.ndarray:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def _recolour(fig: Figure, colours: Mapping[str, str]) -> list[tuple[Any, Any]]:
    """Replaces colours everywhere in a figure. ``colours``: new ones by old ones, as hexadecimal codes.

    Returns:
      Pairs of a function and its argument: the calls that restore the old colours.
    """
    undo = []

    def swap(setter: Any, old: Any) -> None:
        """Replaces the colour ``old`` of one artist by ``setter``, a method of the artist, if ``colours`` has a new one
        for it. "none" is no colour."""
        new = colours.get(to_hex(old)) if not (isinstance(old, str) and old == "none") else None
        if new is not None:
            undo.append((setter, old))
            setter(new)

    for artist in [fig.patch, *fig.findobj(lambda _: True)]:  # everything that is drawn
        if isinstance(artist, Text | Line2D):
            swap(artist.set_color, artist.get_color())
        elif isinstance(artist, Patch):
            if artist.get_facecolor()[3] > 0:  # RGBA: transparent ones stay
                swap(artist.set_facecolor, artist.get_facecolor())
            if artist.get_edgecolor()[3] > 0:
                swap(artist.set_edgecolor, artist.get_edgecolor())
        elif isinstance(artist, PathCollection) and len(artist.get_edgecolor()):
            swap(artist.set_edgecolor, artist.get_edgecolor()[0])
    return undo
