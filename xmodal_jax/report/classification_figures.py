"""Figures of classification by several modalities: bars of accuracies, and attention over the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from xmodal_jax.report.figures import GRID, INK, MUTED, PALETTE, WIDTH, shorten
from xmodal_jax.types import KINDS, kind_of

HEAT = "inferno"
"""Colour map of attention."""
ROW_HEIGHT = 1.35
"""Height of an example, in inches."""


class AttentionExample(NamedTuple):
    """One example with the attention to its modalities."""

    title: str
    """Shown above the example."""
    panels: Mapping[str, tuple[Any, np.ndarray]]
    """By modality the content and its attention: an image ``[H, W, C]`` with ``[h, w]``, a list of tokens with ``[n]``,
    a log-mel spectrogram ``[frames, mels]`` with ``[n]``, a video ``[F, H, W, C]`` with ``[t, h, w]``, measured
    quantities ``[D]`` or ``[T, C]`` in standard deviations with ``[n]``."""


def accuracy_bars(
    bars: Mapping[str, float | Sequence[float]], *, chance: float | None = None, title: str = ""
) -> Figure:
    """Horizontal bars of accuracies, by name. Where there is one value per seed, the bar is their mean, and a line goes
    from the lowest to the highest.

    ``chance``: the accuracy of the majority class, drawn as a dotted line; None: no line. ``title``: above the figure.
    """
    fig = Figure((WIDTH, 0.34 * len(bars) + 1.0), layout="constrained")
    ax = fig.add_subplot()
    seed_values = [np.atleast_1d(np.asarray(value, np.float64)) for value in bars.values()]
    means = np.array([values.mean() for values in seed_values])
    positions = np.arange(len(bars))[::-1]  # the first bar is at the top
    ax.barh(positions, means, color=PALETTE[0], height=0.66)
    for y, values, mean in zip(positions, seed_values, means, strict=True):
        if len(values) > 1:
            ax.plot([values.min(), values.max()], [y, y], color=INK, linewidth=1.2)
        ax.text(max(values.max(), 0.0) + 0.01, y, f"{mean:.1%}", va="center", fontsize=8.5, color=INK)
    if chance is not None:
        ax.axvline(chance, color=MUTED, linestyle=":", linewidth=1.4)
        ax.text(chance + 0.005, -0.62, "majority class", fontsize=8, color=MUTED, va="center")
        ax.set_ylim(-0.85, len(bars) - 0.5)
    ax.set_yticks(positions, [shorten(name, 48) for name in bars], fontsize=9, color=INK, parse_math=False)
    ax.set_xlim(0, 1.08)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"], color=MUTED, fontsize=8.5)
    ax.tick_params(length=0)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    if title:
        ax.set_title(title, color=INK, fontsize=10, loc="left")
    return fig


def attention(examples: Sequence[AttentionExample]) -> Figure:
    """Attention maps with a row for each example and a panel for each modality; the parts of the input that get much
    attention are bright."""
    # The different modalities of all examples, in the order of their kinds in `PANELS`.
    names = list(
        dict.fromkeys(m for kind in PANELS for e in examples for m in e.panels if kind_of(m) == kind)
    )
    fig = Figure((WIDTH, ROW_HEIGHT * max(1, len(examples))), layout="constrained")
    if not examples or not names:
        fig.text(0.5, 0.5, "nothing to show", color=MUTED, ha="center", va="center")
        return fig
    widths = [PANELS[kind_of(name)].width for name in names]
    axes = fig.subplots(len(examples), len(names), squeeze=False, width_ratios=widths)
    for row, example in zip(axes, examples, strict=True):
        for ax, name in zip(row, names, strict=True):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.patch.set_visible(False)  # a long title of the first panel runs on over the others
            if name in example.panels:
                PANELS[kind_of(name)].draw(ax, *example.panels[name])
        for ax in row:  # keeps the room above every panel, without widening one for a long title
            ax.set_title(" ", fontsize=8.5, loc="right")
        title = row[0].set_title(example.title, fontsize=8.5, color=INK, loc="left", parse_math=False)
        title.set_in_layout(False)
    return fig


def darken(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The image (uint8 ``[H, W, C]``) darkened where the weights ``[h, w]`` are low, float RGB ``[H, W, 3]``."""
    height, width = picture.shape[:2]
    # The row and the column of ``weights`` that each pixel belongs to: nearest-neighbour enlargement to [H, W].
    weight_row = (np.arange(height) * weights.shape[0]) // height
    weight_column = (np.arange(width) * weights.shape[1]) // width
    brightness = weights[weight_row][:, weight_column] / max(float(weights.max()), 1e-12)
    rgb = np.broadcast_to(picture[:, :, :3], (height, width, 3)) / 255.0
    return rgb * (0.15 + 0.85 * brightness[:, :, None])  # never quite black


def _draw_image(ax: Axes, picture: np.ndarray, weights: np.ndarray) -> None:
    """The image ``[H, W, C]``, and to the right of it the same image darkened by the weights ``[h, w]``."""
    gap = np.ones((picture.shape[0], max(1, picture.shape[1] // 12), 3))  # white, between both images
    rgb = np.broadcast_to(picture[:, :, :3], (*picture.shape[:2], 3)) / 255.0
    ax.imshow(np.concatenate([rgb, gap, darken(picture, weights)], axis=1), interpolation="nearest")


def _draw_video(ax: Axes, video: np.ndarray, weights: np.ndarray) -> None:
    """A frame of the video ``[F, H, W, C]`` for each time step of the weights ``[t, h, w]``, darkened where they are
    low; the frames of time steps with little attention are darker as a whole."""
    frames = np.arange(len(weights)) * len(video) // len(weights)  # the first frame of each time step
    largest = max(float(weights.max()), 1e-12)  # over all time steps
    gap = np.ones((video.shape[1], max(1, video.shape[2] // 12), 3))
    strip = []  # frames with gaps between them
    for t, frame in enumerate(frames):
        if weights[t].max() > 0:
            darkened = darken(video[frame], weights[t])
        else:
            darkened = (
                video[frame, :, :, :3] / 255.0 * 0.15
            )  # as dark as `darken` makes a pixel without attention
        strip += [darkened * (0.3 + 0.7 * float(weights[t].max()) / largest), gap]
    ax.imshow(np.concatenate(strip[:-1], axis=1), interpolation="nearest")


def _draw_text(ax: Axes, words: Sequence[str], weights: np.ndarray) -> None:
    """A bar with a coloured cell for the weight of each word, and the words below it."""
    weights = np.asarray(weights)[: len(words)]
    scale = Normalize(0, max(float(weights.max()), 1e-12) if weights.size else 1)
    ax.imshow(weights[None], aspect="auto", cmap=HEAT, norm=scale, extent=(0, len(words), 0, 1))
    ax.set_ylim(-1.2, 1.6)  # the bar is from 0 to 1; the words need room below it
    for k, word in enumerate(words):
        ax.text(k + 0.5, -0.15, word, fontsize=7.5, color=INK, ha="right" if len(words) > 6 else "center",
                va="top", rotation=25 if len(words) > 6 else 0, parse_math=False)  # fmt: skip


def _draw_audio(ax: Axes, log_mel: np.ndarray, weights: np.ndarray) -> None:
    """The spectrogram ``[frames, mels]``, and above it the weights of the tokens as a step curve."""
    frames = len(log_mel)
    ax.imshow(log_mel.T, origin="lower", aspect="auto", cmap="magma", extent=(0, frames, 0, 1))
    edges = np.linspace(0, frames, len(weights) + 1)
    height = weights / max(float(weights.max()), 1e-12)
    # The spectrogram is from 0 to 1; the curve begins at 1.05.
    ax.stairs(1.05 + 0.6 * height, edges, baseline=1.05, fill=True, color=PALETTE[1])
    ax.set(xlim=(0, frames), ylim=(0, 1.7))


def _draw_measured(ax: Axes, values: np.ndarray, weights: np.ndarray) -> None:
    """A vector ``[D]`` as bars or a series ``[T, C]`` as lines, in standard deviations, and above it the weights of the
    tokens as a step curve, if there are several tokens. Values that are NaN are left out."""
    count = len(values)
    scaled = np.clip(values / 6.0, -0.5, 0.5) + 0.5  # from 3 standard deviations below the mean to 3 above it
    if values.ndim == 1:
        ax.bar(np.arange(count) + 0.5, scaled - 0.5, bottom=0.5, width=0.8, color=PALETTE[0])
    else:
        ax.plot(np.arange(count) + 0.5, scaled.reshape(count, -1), linewidth=1.0)
    ax.axhline(0.5, color=GRID, linewidth=0.8, zorder=0)
    ax.set_yticks([0, 0.5, 1], ["-3 sd", "mean", "+3 sd"], fontsize=6.5, color=MUTED)
    ax.tick_params(axis="y", length=0, pad=2)
    several = len(weights) > 1
    if several:
        height = weights / max(float(weights.max()), 1e-12)
        edges = np.linspace(0, count, len(weights) + 1)
        ax.stairs(1.05 + 0.6 * height, edges, baseline=1.05, fill=True, color=PALETTE[1])
    ax.set(xlim=(0, count), ylim=(0, 1.7 if several else 1.0))


class PanelStyle(NamedTuple):
    """How a kind of modality is drawn."""

    width: float
    """Relative width of the panel."""
    draw: Callable[[Axes, Any, np.ndarray], None]
    """``draw(axes, content, weights)``."""


PANELS = {
    "image": PanelStyle(1.0, _draw_image),
    "text": PanelStyle(3.2, _draw_text),
    "audio": PanelStyle(3.2, _draw_audio),
    "video": PanelStyle(3.6, _draw_video),
}
PANELS |= {kind: PanelStyle(3.2, _draw_measured) for kind in KINDS if kind not in PANELS}
"""The panel of each kind of modality, in the order of the figure's columns."""
