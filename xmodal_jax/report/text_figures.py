"""Figures of a decoder's cross-attention: each generated word over an image or along a spectrogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from xmodal_jax.report.classification_figures import HEAT, darken
from xmodal_jax.report.figures import INK, WIDTH, shorten

COLUMNS = 10
"""Images per row."""


def image_attention(picture: np.ndarray, words: Sequence[str], weights: np.ndarray) -> Figure:
    """The image once for each word, dark where the word's attention is low.

    Args:
      picture: uint8 ``[H, W, C]``, or a video ``[F, H, W, C]``, whose frame with the most attention is shown.
      words: the generated words.
      weights: attention ``[words, tokens]``. The tokens of an image, or of each time step of a video, form a square
        grid.
    """
    rows = -(-max(1, len(words)) // COLUMNS)  # rounded up
    fig = Figure((WIDTH, 1.25 * rows), layout="constrained")
    axes = fig.subplots(rows, COLUMNS, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, word, attention in zip(axes, words, weights, strict=False):
        frame = picture
        if picture.ndim == 4:  # a video: the attention to the tokens of the time step with the most
            time_steps = _time_steps(len(picture), attention.size)
            attention = attention.reshape(time_steps, -1)
            step = int(attention.sum(axis=1).argmax())
            frame, attention = picture[step * len(picture) // time_steps], attention[step]
        side = round(attention.size**0.5)  # of the square grid of tokens
        grid = attention[: side * side].reshape(side, side)
        ax.imshow(darken(frame, grid), interpolation="nearest")
        ax.set_title(word, fontsize=8, color=INK, parse_math=False)
    return fig


def _time_steps(frames: int, tokens: int) -> int:
    """The number of time steps that a video's tokens are of: the largest number, up to the number of ``frames``, such
    that each step has a square number of tokens."""
    for steps in range(frames, 0, -1):
        if tokens % steps == 0 and round((tokens // steps) ** 0.5) ** 2 == tokens // steps:
            return steps
    return 1


def spectrogram_attention(
    log_mel: np.ndarray, words: Sequence[str], weights: np.ndarray, seconds_per_frame: float
) -> Figure:
    """The spectrogram ``log_mel [frames, mels]``, and below it the attention ``weights [words, tokens]`` with one line
    per word. The tokens share the time of the frames equally."""
    fig = Figure((WIDTH, 1.2 + 0.19 * max(3, len(words))), layout="constrained")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[1, max(1.0, 0.19 * len(words))])
    length = len(log_mel) * seconds_per_frame
    top.imshow(log_mel.T, origin="lower", aspect="auto", cmap="magma", extent=(0, length, 0, 1))
    top.set_yticks([])
    top.tick_params(bottom=False)
    bottom.imshow(
        weights, aspect="auto", cmap=HEAT, extent=(0, length, max(1, len(words)), 0), interpolation="nearest"
    )
    bottom.set_yticks(
        np.arange(len(words)) + 0.5,
        [shorten(word) for word in words],
        fontsize=7.5,
        color=INK,
        parse_math=False,
    )
    bottom.set_xlabel("seconds", fontsize=8, color=INK)
    bottom.tick_params(length=0, labelsize=7.5, colors=INK)
    for ax in (top, bottom):
        ax.spines[:].set_visible(False)
    return fig
