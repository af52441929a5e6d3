"""Images of many modes, made of a data set of labelled images: three of its images are the colour channels of one.

A mode is a triple of classes. After stacked MNIST, whose 1,000 modes are all triples of digits (Metz et al. 2017,
arXiv:1611.02163, section 3.3.1): the modes that a generative model never generates can be counted (`metrics.modes`).
"""

from __future__ import annotations

import itertools

import numpy as np

from xmodal_jax.data.shapes.scenes import uniform
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.sources.gray_images import read_gray_images

STACKS = 50_000
"""Examples of a split, by default."""
CHANNELS = 3
MAX_MODES = 10_000_000
"""The largest number of modes: each has a name and a probability, in memory."""


class StackedSource(Source):
    """Images whose three channels show gray images of the ``source``, drawn at random and independently.

    The channels of example ``i`` are drawn from (seed, split, channel, ``i``), each image of the source with the same
    probability. With K classes there are K^3 modes: the label of an example is ``a K^2 + b K + c``, where a, b and c
    are the classes of its channels; its name is "a, b, c". K is the number of class names, or without names the
    largest label plus 1.

    The source's images are read once and kept in gray levels (the mean over colours), ``H * W`` bytes an image.

    Args:
      source: images with labels.
      split: name of the split; splits draw different images.
      size: number of examples; None: `STACKS`.
      seed: random seed, 0 or more.
      modalities: None or ``("image",)``, all that there is.
      progress: whether to show a progress bar while the images are read.

    Raises:
      ValueError: the source has no images or labels, a label is unknown (-1), an example has no image, there are more
        than `MAX_MODES` modes, or other modalities are asked for.
    """

    modalities = ("image",)

    def __init__(
        self,
        source: Source,
        split: str = "train",
        *,
        size: int | None = None,
        seed: int = 0,
        modalities: tuple[str, ...] | None = None,
        progress: bool = True,
    ):
        size = STACKS if size is None else size
        if size < 1:
            raise ValueError(f"size must be at least 1 (--train-size), got {size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0 (--data-seed), got {seed}")
        if modalities not in (None, self.modalities):
            raise ValueError(f"stacks have the modality image alone (--modalities image); got {modalities!r}")
        self.split, self.size, self.seed = split, size, seed
        self.images, self.image_labels = read_gray_images(source, "stacks", progress)
        """The images that channels show, uint8 ``[n, H, W]``, and their classes, int32 ``[n]``."""
        names = source.class_names
        self.classes = int(self.image_labels.max()) + 1 if names is None else len(names)
        """Number K of classes of a channel."""
        if self.classes**CHANNELS > MAX_MODES:
            raise ValueError(
                f"stacks of {self.classes:,} classes have {self.classes**CHANNELS:,} modes, more than {MAX_MODES:,}: "
                "make them of a data set with fewer classes"
            )
        if names is not None:
            self.class_names = tuple(map(", ".join, itertools.product(names, repeat=CHANNELS)))

    def __len__(self) -> int:
        return self.size

    def source_images(self, indices) -> np.ndarray:
        """The images of the source that the channels show, int64 ``[B, 3]``."""
        index = np.atleast_1d(np.asarray(indices, np.int64))
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}, got {index.min()}..{index.max()}")
        draws = [uniform(self.seed, f"stacked/{self.split}", index, f"{c}/image") for c in range(CHANNELS)]
        return np.floor(np.stack(draws, axis=1) * len(self.images)).astype(np.int64)

    def modes(self, classes: np.ndarray) -> np.ndarray:
        """The mode, int32 ``[B]``, of the classes ``[B, 3]`` of the channels."""
        return np.ravel_multi_index(tuple(np.asarray(classes).T), (self.classes,) * CHANNELS).astype(np.int32)

    def mode_probabilities(self) -> np.ndarray:
        """The probability of each mode, float64 ``[K^3]``: the product of the frequencies of its classes."""
        p = np.bincount(self.image_labels, minlength=self.classes) / len(self.image_labels)
        return np.einsum("a,b,c->abc", p, p, p).reshape(-1)

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        return self.modes(self.image_labels[self.source_images(self._resolve_indices(indices))])

    def batch(self, indices) -> RawBatch:
        """``image`` uint8 ``[B, H, W, 3]``, and ``label`` int32 ``[B]``, the mode.

        Raises:
          IndexError: outside 0..len-1.
        """
        shown = self.source_images(indices)
        label = self.modes(self.image_labels[shown])
        return {"image": np.moveaxis(self.images[shown], 1, -1), "label": label}
