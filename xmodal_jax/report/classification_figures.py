"""Figures of what several modalities say together: accuracies side by side, and attention over the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from xmodal_jax.report.figures import INK, MUTED, PALETTE, WIDTH

HEAT = "inferno"
COLUMNS = {"image": 1.0, "text": 3.2, "audio": 3.2, "video": 3.6}
"""Widths of the panels."""
ROW = 1.35
"""Inches."""


class AttentionExample(NamedTuple):
    """One example and what the model attends to in it."""

    title: str
    panels: Mapping[str, tuple[Any, np.ndarray]]
    """By modality the content and its weights: a picture ``[H, W, C]`` with ``[h, w]``, a list of tokens with ``[n]``,
    a log-mel spectrogram ``[frames, mels]`` with ``[n]``, a video ``[F, H, W, C]`` with ``[t, h, w]``."""


def accuracy_bars(
    bars: Mapping[str, float | Sequence[float]], *, chance: float | None = None, title: str = ""
) -> Figure:
    """A bar per name; several values (seeds) give their mean and a line from the lowest to the highest."""
    fig = Figure((WIDTH, 0.34 * len(bars) + 1.0), layout="constrained")
    ax = fig.add_subplot()
    values = [np.atleast_1d(np.asarray(v, np.float64)) for v in bars.values()]
    means = np.array([v.mean() for v in values])
    places = np.arange(len(bars))[::-1]
    ax.barh(places, means, color=PALETTE[0], height=0.66)
    for y, v, mean in zip(places, values, means, strict=True):
        if len(v) > 1:
            ax.plot([v.min(), v.max()], [y, y], color=INK, linewidth=1.2)
        ax.text(max(v.max(), 0.0) + 0.01, y, f"{mean:.1%}", va="center", fontsize=8.5, color=INK)
    if chance is not None:
        ax.axvline(chance, color=MUTED, linestyle=":", linewidth=1.4)
        ax.text(chance + 0.005, -0.62, "most frequent answer", fontsize=8, color=MUTED, va="center")
        ax.set_ylim(-0.85, len(bars) - 0.5)
    ax.set_yticks(places, list(bars), fontsize=9, color=INK)
    ax.set_xlim(0, 1.08)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"], color=MUTED, fontsize=8.5)
    ax.tick_params(length=0)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    if title:
        ax.set_title(title, color=INK, fontsize=10, loc="left")
    return fig


def attention(examples: Sequence[AttentionExample]) -> Figure:
    """A row per example, a panel per modality; bright is what the rest of the input attends to."""
    kinds = [m for m in COLUMNS if any(m in e.panels for e in examples)]
    fig = Figure((WIDTH, ROW * max(1, len(examples))), layout="constrained")
    if not examples or not kinds:
        fig.text(0.5, 0.5, "nothing to show", color=MUTED, ha="center", va="center")
        return fig
    axes = fig.subplots(len(examples), len(kinds), squeeze=False, width_ratios=[COLUMNS[m] for m in kinds])
    draw = {"image": _image, "text": _words, "audio": _spectrogram, "video": _video}
    for row, example in zip(axes, examples, strict=True):
        for ax, kind in zip(row, kinds, strict=True):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.patch.set_visible(False)  # a long title of the first panel runs on over the others
            if kind in example.panels:
                draw[kind](ax, *example.panels[kind])
        for ax in row:  # keeps the room above every panel, while a long title widens none
            ax.set_title(" ", fontsize=8.5, loc="right")
        title = row[0].set_title(example.title, fontsize=8.5, color=INK, loc="left", parse_math=False)
        title.set_in_layout(False)
    return fig


def overlay(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The picture (uint8 ``[H, W, C]``) darkened where the weights ``[h, w]`` are low, float RGB ``[H, W, 3]``."""
    height, width = picture.shape[:2]
    rows = (np.arange(height) * weights.shape[0]) // height
    columns = (np.arange(width) * weights.shape[1]) // width
    share = weights[rows][:, columns] / max(float(weights.max()), 1e-12)
    rgb = np.broadcast_to(picture[:, :, :3], (height, width, 3)) / 255.0
    return rgb * (0.15 + 0.85 * share[:, :, None])


def _image(ax: Axes, picture: np.ndarray, weights: np.ndarray) -> None:
    gap = np.ones((picture.shape[0], max(1, picture.shape[1] // 12), 3))
    rgb = np.broadcast_to(picture[:, :, :3], (*picture.shape[:2], 3)) / 255.0
    ax.imshow(np.concatenate([rgb, gap, overlay(picture, weights)], axis=1), interpolation="nearest")


def _video(ax: Axes, video: np.ndarray, weights: np.ndarray) -> None:
    frames = np.arange(len(weights)) * len(video) // len(weights)
    # One scale for all frames: which moment matters shows as well.
    largest = max(float(weights.max()), 1e-12)
    gap = np.ones((video.shape[1], max(1, video.shape[2] // 12), 3))
    parts = []
    for t, frame in enumerate(frames):
        bright = (
            overlay(video[frame], weights[t])
            if weights[t].max() > 0
            else video[frame, :, :, :3] / 255.0 * 0.15
        )
        parts += [bright * (0.3 + 0.7 * float(weights[t].max()) / largest), gap]
    ax.imshow(np.concatenate(parts[:-1], axis=1), interpolation="nearest")


def _words(ax: Axes, words: Sequence[str], weights: np.ndarray) -> None:
    weights = np.asarray(weights)[: len(words)]
    scale = Normalize(0, max(float(weights.max()), 1e-12) if weights.size else 1)
    ax.imshow(weights[None], aspect="auto", cmap=HEAT, norm=scale, extent=(0, len(words), 0, 1))
    ax.set_ylim(-1.2, 1.6)
    for k, word in enumerate(words):
        ax.text(k + 0.5, -0.15, word, fontsize=7.5, color=INK, ha="right" if len(words) > 6 else "center",
                va="top", rotation=25 if len(words) > 6 else 0, parse_math=False)  # fmt: skip


def _spectrogram(ax: Axes, log_mel: np.ndarray, weights: np.ndarray) -> None:
    frames = len(log_mel)
    ax.imshow(log_mel.T, origin="lower", aspect="auto", cmap="magma", extent=(0, frames, 0, 1))
    edges = np.linspace(0, frames, len(weights) + 1)
    height = weights / max(float(weights.max()), 1e-12)
    ax.stairs(1.05 + 0.6 * height, edges, baseline=1.05, fill=True, color=PALETTE[1])
    ax.set(xlim=(0, frames), ylim=(0, 1.7))
