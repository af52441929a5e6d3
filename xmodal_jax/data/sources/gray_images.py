"""The labelled images that a derived data set (poly:SPEC, stacked:SPEC) is made from, in gray levels."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from xmodal_jax.data.source import Source

_CHUNK = 512


def read_gray_images(source: Source, subject: str, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """All images in gray levels (the mean over colours, rounded), uint8 ``[N, H, W]``, and their labels, int32 ``[N]``.

    Args:
      source: images with labels.
      subject: what is made of the images, for messages: "views", "stacks".
      progress: whether to show a progress bar.

    Raises:
      ValueError: the source has no images or labels, a label is unknown (-1), or an example has no image.
    """
    if "image" not in source.modalities:
        raise ValueError(
            f"{subject} are made of a data set with images; this one has {', '.join(source.modalities)}"
        )
    absent = np.flatnonzero(~source.presence()["image"])
    if absent.size:
        raise ValueError(
            f"{subject} need an image in every example; {absent.size} have none, the first is number {absent[0]}: "
            "leave them out of the data set"
        )
    images, labels = [], []
    starts = range(0, len(source), _CHUNK)
    for start in tqdm(starts, desc="reading the images", unit="chunk", disable=not progress):
        batch = source.batch(np.arange(start, min(start + _CHUNK, len(source))))
        if "label" not in batch:
            raise ValueError(
                f"{subject} need labels, for they are made of images of known classes; this data set has none: add a "
                "field label"
            )
        labels.append(np.asarray(batch["label"], np.int32))
        image = batch["image"]
        # The mean over colours, rounded, without a copy in floating point.
        count = image.shape[-1]
        images.append(((image.sum(axis=-1, dtype=np.uint32) * 2 + count) // (2 * count)).astype(np.uint8))
    labels = np.concatenate(labels)
    unknown = np.flatnonzero(labels < 0)
    if unknown.size:
        raise ValueError(
            f"{subject} need the label of every example; {unknown.size} of {labels.size} have none (-1), the first is "
            f"number {unknown[0]}: label them or leave them out of the data set"
        )
    return np.concatenate(images), labels
