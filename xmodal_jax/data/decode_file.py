"""Decodes a file of any kind by the options of a data set. Worker processes import it, so it must not import JAX."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmodal_jax.data import media


class MediaOptions(NamedTuple):
    """The format that files are converted to."""

    image_size: int
    """Side of images and frames, pixels."""
    channels: int = 3
    """Colour channels, 1 or 3."""
    sample_rate: int = 16000
    """Sample rate of audio in Hz."""
    max_seconds: float = 4.0
    """Longest recording in seconds; longer ones are cut."""
    frames: int = 8
    """Number of frames of a video."""
    resize: media.Resize = media.DEFAULT_RESIZE
    """How images and frames become squares."""


def decode_file(kind: str, content: Path | bytes, options: MediaOptions) -> tuple[np.ndarray, bool]:
    """Decodes a file; returns the array, and whether it is a recording that was cut to ``options.max_seconds``.

    Args:
      kind: ``image``, ``audio`` or ``video``.
      content: the path of the file, or its bytes.
      options: the format to convert it to.

    Returns:
      An image uint8 ``[S, S, C]``, a recording int16 ``[t]`` or a video uint8 ``[F, S, S, C]``; and the flag.

    Raises:
      Exception: the file cannot be decoded; decoders raise many types.
    """
    if kind == "audio":
        return media.decode_audio(content, options.sample_rate, options.max_seconds)
    image = (options.image_size, options.channels, options.resize)
    if kind == "image":
        return media.decode_image(content, *image), False
    return media.decode_video(content, options.frames, *image), False
