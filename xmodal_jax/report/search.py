"""The contact sheet of a search: what was found in a data set, to see and to hear."""

from __future__ import annotations

from typing import Any

import numpy as np

from xmodal_jax.data.source import Source
from xmodal_jax.data.standardise import StandardiseTransform
from xmodal_jax.data.statistics import content_of
from xmodal_jax.report.alignment import content
from xmodal_jax.report.figures import shorten
from xmodal_jax.report.page import Item
from xmodal_jax.types import kind_of

READ_TOGETHER = 64
CAPTION_LENGTH = 60
"""Letters of a caption below a picture; a longer one is cut, so that it does not stretch the row."""


def read_items(
    source: Source,
    modality: str,
    indices: np.ndarray,
    names: np.ndarray,
    *,
    sample_rate: int,
    standardise: StandardiseTransform | None = None,
) -> list[list[Item]]:
    """What the examples ``indices [Q, k]`` of a data set show in a modality, with their ``names [Q, k]`` and captions.

    Args:
      source: the data set.
      modality: which is shown.
      indices: of the examples.
      names: what the examples are called.
      sample_rate: of audio, in Hz.
      standardise: of measured quantities, which are shown in standard deviations; None: there are none.
    """
    wanted, places = np.unique(indices, return_inverse=True)
    contents: list[Any] = []
    captions: list[list[str]] = []
    texts = [m for m in source.modalities if kind_of(m) == "text" and m != modality]
    for chunk in np.array_split(wanted, max(1, -(-len(wanted) // READ_TOGETHER))):
        batch = source.batch(chunk)
        contents += [content(batch, modality, k, sample_rate, standardise) for k in range(len(chunk))]
        captions += [
            [shorten(str(content_of(batch, m, k)), CAPTION_LENGTH) for m in texts] for k in range(len(chunk))
        ]
    items = [
        Item(contents[place], "\n".join(filter(None, [*captions[place], str(name)])))
        for place, name in zip(places.ravel(), names.ravel(), strict=True)
    ]
    queries, k = indices.shape
    return [items[q * k : (q + 1) * k] for q in range(queries)]
