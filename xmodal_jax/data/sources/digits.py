"""Handwritten digits that come with scikit-learn: nothing to download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from xmodal_jax.data.media import Resample, Resize, to_square
from xmodal_jax.data.sources.arrays import ArraySource

TEST_DIGITS = 297
"""Digits of the test split, of 1,797."""
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEVELS = 16
"""The largest value of a pixel in scikit-learn's arrays, which count the black ones of 4x4 pixels."""


def load_digits(
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int = 3,
    resample: Resample = "bicubic",
    modalities: tuple[str, ...] | None = None,
) -> ArraySource:
    """One split of scikit-learn's 1,797 handwritten digits of 8x8 pixels, light on dark: ``image`` and ``label``.

    These are the test digits of Alpaydin and Kaynak 1998 (UCI, optical recognition of handwritten digits). A random 297
    of them, always the same, are the split ``test``, the other 1,500 ``train``; ``all`` is everything.

    ::

        load_digits("test", image_size=16).batch(np.arange(2))["image"]  # uint8 [2, 16, 16, 3]

    Args:
      split: train, test or all.
      image_size: side in pixels that the images are resized to; None: 8.
      channels: equal colour channels, 1 or 3.
      resample: filter of the resizing.
      modalities: None or ``("image",)``, all that there is.

    Raises:
      ValueError: another split or other modalities.
    """
    if modalities not in (None, ("image",)):
        raise ValueError(f"digits have the modality image alone (--modalities image); got {modalities!r}")
    order = {"train": slice(TEST_DIGITS, None), "test": slice(TEST_DIGITS), "all": slice(None)}
    if split not in order:
        raise ValueError(f"digits have the splits {', '.join(order)}; got {split!r}")
    from sklearn.datasets import load_digits as read_digits  # here: it takes a second to import

    data = read_digits()
    chosen = np.sort(np.random.default_rng(0).permutation(len(data.images))[order[split]])
    pixels = np.round(data.images[chosen] * (255 / LEVELS)).astype(np.uint8)
    size, resize = image_size or pixels.shape[1], Resize(resample=resample)
    images = np.stack([to_square(Image.fromarray(x), size, channels, resize) for x in pixels])
    return ArraySource({"image": images, "label": data.target[chosen].astype(np.int32)}, NAMES)
