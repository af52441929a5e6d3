"""Several image modalities made of one data set of labelled images: images of one class on different backgrounds.

After PolyMNIST (Sutter, Daunhawer and Vogt 2021, arXiv:2105.02470, section 4).
"""

from __future__ import annotations

import numpy as np

from xmodal_jax.data.shapes.scenes import uniform
from xmodal_jax.data.shapes.textures import texture
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.sources.gray_images import read_gray_images

TEXTURE_SIDE = 160
"""Smallest side of the textures that backgrounds are cropped from, pixels."""


def overlay(gray: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The background, inverted where ``gray`` is light: ``d (255 - bg) + (1 - d) bg`` with ``d = gray / 255``.

    ``gray`` uint8 ``[..., H, W]``, ``background`` uint8 ``[..., H, W, 3]``; returns uint8 of the background's shape,
    rounded to the nearest.
    """
    light = gray[..., None].astype(np.uint16)
    under = background.astype(np.uint16)
    # Adding 127 before the division by 255 rounds to the nearest; the sum is at most 255 * 255 + 127 < 2^16.
    return ((light * (255 - under) + (255 - light) * under + 127) // 255).astype(np.uint8)


class PolySource(Source):
    """``views`` image modalities ``image_0``, ``image_1``, ... that show the same class, from one labelled data set.

    Example ``i`` has the label of the source's example ``i``. ``image_0`` shows that example; every other modality
    shows another example of the same class (or that one, if the class has no other). The gray levels of the shown image
    are laid over a crop of the modality's texture (`overlay`, `textures.texture`). The shown example and the crop are
    drawn from (seed, split, modality, ``i``), so that the modalities share the class and nothing else. Textures depend
    on the modality alone: training and test sets have the same.

    The source's images are read once and kept in gray levels (the mean over colours), ``H * W`` bytes an example.

    Args:
      source: images with labels.
      split: name of the split; splits draw different examples and crops.
      views: number of modalities.
      seed: random seed, 0 or more.
      modalities: which of the modalities to draw; None: all.
      progress: whether to show a progress bar while the images are read.

    Raises:
      ValueError: the source has no images or labels, a label is unknown (-1), or an example has no image.
    """

    def __init__(
        self,
        source: Source,
        split: str = "train",
        *,
        views: int = 5,
        seed: int = 0,
        modalities: tuple[str, ...] | None = None,
        progress: bool = True,
    ):
        if views < 1 or seed < 0:
            raise ValueError(f"views must be at least 1 and seed at least 0, got {views} and {seed}")
        available = tuple(f"image_{m}" for m in range(views))
        unknown = [m for m in modalities or () if m not in available]
        if unknown or modalities == ():
            raise ValueError(f"modalities must be some of {', '.join(available)}; got {modalities!r}")
        self.modalities = tuple(m for m in available if modalities is None or m in modalities)
        self.class_names, self.seed, self.split = source.class_names, seed, split
        self._gray, self.labels = read_gray_images(source, "views", progress)
        _, class_index, counts = np.unique(self.labels, return_inverse=True, return_counts=True)
        self._sorted = np.argsort(class_index, kind="stable")  # the examples sorted by class
        class_start = np.cumsum(counts) - counts
        position = np.empty_like(self._sorted)
        position[self._sorted] = np.arange(len(self._sorted))
        # For each example: where its class begins in `_sorted`, the size of the class, and the example's rank in it.
        self._first, self._count = class_start[class_index], counts[class_index]
        self._rank = position - self._first
        # Textures are at least twice as wide as the images, with patterns that scale with the image size.
        side = max(self._gray.shape[1:])
        self._side, self._scale = max(TEXTURE_SIDE, 2 * side), max(1.0, side / 32)

    def __len__(self) -> int:
        return len(self.labels)

    def _index(self, indices) -> np.ndarray:
        indices = np.atleast_1d(np.asarray(indices, np.int64))
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}, got {indices.min()}..{indices.max()}")
        return indices

    def _draw(self, modality: str, index: np.ndarray, purpose: str, high) -> np.ndarray:
        """Random integers ``[B]`` in 0..high-1."""
        drawn = uniform(self.seed, f"poly/{self.split}", index, f"{modality}/{purpose}")
        return np.floor(drawn * high).astype(np.int64)

    def source_examples(self, modality: str, indices) -> np.ndarray:
        """The source examples that the modality shows, int64 ``[B]``: for ``image_0`` the examples themselves,
        otherwise random other ones of the same class."""
        index = self._index(indices)
        if modality == "image_0":
            return index
        count, rank = self._count[index], self._rank[index]
        # A rank within the class among all but the example's own; the example itself if its class has no other.
        other_rank = self._draw(modality, index, "example", np.maximum(count - 1, 1))
        other_rank += (other_rank >= rank) & (count > 1)
        return self._sorted[self._first[index] + other_rank]

    def backgrounds(self, modality: str, indices) -> np.ndarray:
        """The crops of the modality's texture that lie behind its images, uint8 ``[B, H, W, 3]``."""
        index = self._index(indices)
        whole = texture(int(modality.removeprefix("image_")), self._side, self._scale)
        height, width = self._gray.shape[1:]
        top = self._draw(modality, index, "top", self._side - height + 1)
        left = self._draw(modality, index, "left", self._side - width + 1)
        # All crops as a view, [tops, lefts, 3, H, W].
        crops = np.lib.stride_tricks.sliding_window_view(whole, (height, width), axis=(0, 1))
        return np.moveaxis(crops[top, left], 1, -1)

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        return self.labels[self._resolve_indices(indices)]

    def batch(self, indices) -> RawBatch:
        """``image_m`` uint8 ``[B, H, W, 3]`` of each modality, and ``label`` int32 ``[B]``.

        Raises:
          IndexError: outside 0..len-1.
        """
        index = self._index(indices)
        batch: RawBatch = {"label": self.labels[index]}
        for m in self.modalities:
            batch[m] = overlay(self._gray[self.source_examples(m, index)], self.backgrounds(m, index))
        return batch
