"""Figures of what a model looks at while it writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from xmodal_jax.report.classification_figures import HEAT, overlay
from xmodal_jax.report.figures import INK, WIDTH

COLUMNS = 10
"""Words in a row of pictures."""


def over_pictures(picture: np.ndarray, words: Sequence[str], weights: np.ndarray) -> Figure:
    """The picture ``[H, W, C]`` once for each word, dark where the weights ``[words, tokens]`` (of a square grid) are
    low; of a video ``[F, H, W, C]`` the moment that is looked at most."""
    rows = -(-max(1, len(words)) // COLUMNS)
    fig = Figure((WIDTH, 1.25 * rows), layout="constrained")
    axes = fig.subplots(rows, COLUMNS, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, word, looked in zip(axes, words, weights, strict=False):
        frame = picture
        if picture.ndim == 4:
            times = _times(len(picture), looked.size)
            looked = looked.reshape(times, -1)
            moment = int(looked.sum(axis=1).argmax())
            frame, looked = picture[moment * len(picture) // times], looked[moment]
        side = round(looked.size**0.5)
        ax.imshow(overlay(frame, looked[: side * side].reshape(side, side)), interpolation="nearest")
        ax.set_title(word, fontsize=8, color=INK, parse_math=False)
    return fig


def _times(frames: int, tokens: int) -> int:
    """How many moments the tokens of a video are: the most frames (or groups of them) that leave a square each."""
    for times in range(frames, 0, -1):
        if tokens % times == 0 and round((tokens // times) ** 0.5) ** 2 == tokens // times:
            return times
    return 1


def along_sound(
    log_mel: np.ndarray, words: Sequence[str], weights: np.ndarray, seconds_per_frame: float
) -> Figure:
    """The spectrogram ``[frames, mels]`` above the weights ``[words, tokens]``, a line for each word."""
    fig = Figure((WIDTH, 1.2 + 0.19 * max(3, len(words))), layout="constrained")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[1, max(1.0, 0.19 * len(words))])
    length = len(log_mel) * seconds_per_frame
    top.imshow(log_mel.T, origin="lower", aspect="auto", cmap="magma", extent=(0, length, 0, 1))
    top.set_yticks([])
    top.tick_params(bottom=False)
    bottom.imshow(
        weights, aspect="auto", cmap=HEAT, extent=(0, length, len(words), 0), interpolation="nearest"
    )
    bottom.set_yticks(np.arange(len(words)) + 0.5, words, fontsize=7.5, color=INK, parse_math=False)
    bottom.set_xlabel("seconds", fontsize=8, color=INK)
    bottom.tick_params(length=0, labelsize=7.5, colors=INK)
    for ax in (top, bottom):
        ax.spines[:].set_visible(False)
    return fig
