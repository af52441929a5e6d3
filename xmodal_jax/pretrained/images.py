"""Pixel scaling, grids of patches, and resampling of position embeddings, for pretrained encoders of images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation of each channel; with this one pixels of [0, 1] become [-1, 1]."""

Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""
Size = tuple[int, int]
"""Height and width in pixels, or rows and columns of patches."""


def pixel_scale(config: SimpleNamespace, default: Scale) -> Scale:
    """``(mean, std)`` of each channel, for pixels in [0, 1], from the settings of a checkpoint's image processor;
    ``default`` where it has none.

    The processor multiplies pixels of 0..255 by its ``rescale_factor`` (1 / 255 unless it says otherwise; 1 with
    ``do_rescale`` false), then subtracts its mean and divides by its deviation (not with ``do_normalize`` false).

    Raises:
      ValueError: mean, deviation or factor are not such numbers.
    """
    processor = getattr(config, "processor", SimpleNamespace())
    scale = [
        _three(value, getattr(processor, name, None), name)
        for name, value in zip(("image_mean", "image_std"), default, strict=True)
    ]
    if getattr(processor, "do_normalize", True) is False:
        scale = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
    factor = getattr(processor, "rescale_factor", None)
    factor = 1 / 255 if factor is None else factor
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f"the image processor's rescale_factor must be a positive number, got {factor!r}")
    largest = 255.0 if getattr(processor, "do_rescale", True) is False else 255 * factor  # of a pixel of 255
    if abs(largest - 1) > 1e-5:
        scale = [tuple(value / largest for value in values) for values in scale]
    return scale[0], scale[1]


def _three(default: tuple[float, ...], value: Any, name: str) -> tuple[float, ...]:
    """The values of three channels, from one number or three; ``default`` if ``value`` is None.

    Raises:
      ValueError: they are neither, or a deviation is not positive. ``name``: of the setting.
    """
    if value is None:
        return default
    values = value if isinstance(value, list) else [value]
    values = list(values) * 3 if len(values) == 1 else values
    is_number = [isinstance(x, int | float) and math.isfinite(x) for x in values]
    if len(values) != 3 or not all(is_number) or (name == "image_std" and min(values) <= 0):
        raise ValueError(
            f"the image processor's {name} must be a number for each of 3 colours, got {value!r}"
        )
    return tuple(map(float, values))


RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Filters by which images are resized, by their numbers in Pillow, which an image processor's ``resample`` holds."""


class ResizeSettings(NamedTuple):
    """How a checkpoint's processor resizes images; None: it does not say."""

    fit: str | None = None
    """"crop" (the shorter side is resized and the centre cropped) or "stretch" (each side is resized)."""
    resample: str | None = None
    """A value of `RESAMPLING`."""
    centre: float | None = None
    """Fraction of the resized side that the crop keeps, such as 224 / 256."""


def resize_settings(config: SimpleNamespace) -> ResizeSettings:
    """How the processor of a checkpoint resizes images, from its settings.

    Raises:
      ValueError: the number of the filter is unknown, or the crop is no square within the resized image.
    """
    processor = getattr(config, "processor", SimpleNamespace())
    number, size = getattr(processor, "resample", None), getattr(processor, "size", None)
    if number is not None and (type(number) is not int or number not in RESAMPLING):
        raise ValueError(f"the image processor's resample is {number!r}; known are {RESAMPLING}")
    if getattr(processor, "do_resize", True) is False:
        return ResizeSettings()
    resample, shortest = RESAMPLING.get(number), getattr(size, "shortest_edge", None)
    kind = str(
        getattr(processor, "image_processor_type", None) or getattr(processor, "feature_extractor_type", "")
    )
    fraction = getattr(processor, "crop_pct", None)
    if fraction is not None or (kind.startswith("ConvNext") and size is not None):
        side = size if isinstance(size, int) else shortest
        if isinstance(side, int) and side >= UNCROPPED_SIDE:
            return ResizeSettings("stretch", resample)
        fraction = 224 / 256 if fraction is None else fraction  # the processor's default
        return ResizeSettings("crop", resample, _fraction(fraction, "crop_pct"))
    if getattr(processor, "do_center_crop", None):
        side = size if isinstance(size, int) else getattr(size, "height", shortest)
        # Older files have one number for both kinds of resizing, which only the processor's type tells apart.
        stretches = hasattr(size, "height") or kind.startswith("DeiT")
        return ResizeSettings("stretch" if stretches else "crop", resample, _kept(processor, side))
    if hasattr(size, "shortest_edge"):
        return ResizeSettings("crop", resample)
    return ResizeSettings("stretch" if isinstance(size, int) or hasattr(size, "height") else None, resample)


UNCROPPED_SIDE = 384
"""Side in pixels from which processors of ConvNeXT's kind, which ResNets have, stretch images instead of cropping."""


def _kept(processor: SimpleNamespace, side: Any) -> float | None:
    """The fraction of the resized ``side`` that the centre crop of a processor keeps; None: it does not say.

    Raises:
      ValueError: the crop is not a square, or larger than the image.
    """
    crop = getattr(processor, "crop_size", None)
    sides = list(vars(crop).values()) if isinstance(crop, SimpleNamespace) else [crop]
    if crop is None or not isinstance(side, int):
        return None
    if len(set(map(str, sides))) != 1 or type(sides[0]) is not int or side < 1:
        raise ValueError(f"the image processor's crop_size must be the side of a square, got {sides}")
    return _fraction(sides[0] / side, "crop_size")


def _fraction(value: Any, name: str) -> float:
    """``value`` as a number; raises ValueError unless it is above 0 and at most 1. ``name``: of the setting."""
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise ValueError(
            f"the image processor's {name} must crop to a part of the resized image, got the fraction {value!r}"
        )
    return float(value)


def largest_image_side(config: SimpleNamespace) -> int | None:
    """The longer side in pixels of the images that a checkpoint was trained on, from its configuration or that of its
    processor; None: they do not say."""
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None)
    if size is None and hasattr(vision, "num_patches"):  # for any aspect ratio: a square of as many patches
        size = math.isqrt(vision.num_patches) * vision.patch_size
    if size is None:  # a ResNet takes images of any size
        stated = getattr(getattr(config, "processor", None), "size", None)
        size = list(vars(stated).values()) if isinstance(stated, SimpleNamespace) else stated
    sides = size if isinstance(size, list) else [size]
    return max((side for side in sides if isinstance(side, int)), default=None)


def example_image(grid: Size, patch: int) -> Float[Array, "1 height width 3"]:
    """A black image of the size of this grid of patches."""
    return jnp.zeros((1, grid[0] * patch, grid[1] * patch, 3), jnp.float32)


def image_and_patch_size(config: SimpleNamespace) -> tuple[Size, int]:
    """``((height, width), patch)``: the size of the checkpoint's images and the side of a patch, in pixels.

    Raises:
      ValueError: a patch is not a square.
    """
    size, patch = config.image_size, config.patch_size
    sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
    if len(set(sides)) != 1:
        raise ValueError(f"config.json has patches of {sides} pixels: only square patches can be loaded")
    return ((size, size) if isinstance(size, int) else (size[0], size[1])), sides[0]


def patch_grid(size: int | Size, patch: int) -> Size:
    """``(rows, columns)`` of patches in an image of ``size`` (height, width), or of a square with the side ``size``.

    Raises:
      ValueError: the patch does not divide the image's sides.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height % patch or width % patch:
        raise ValueError(
            f"the encoder's patches of {patch} pixels must divide the image's sides, got {height} x {width}: choose "
            f"another --image-size, such as {max(patch, round(height / patch) * patch)}"
        )
    return height // patch, width // patch


def make_resampler(
    old: Size,
    new: Size,
    *,
    before: int = 0,
    antialias: bool = False,
    weights: Callable[[int, int], np.ndarray] | None = None,
) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function that resamples a table of position embeddings from one grid to another, in float32.

    The table is ``[before + rows * columns, D]``, with or without a leading axis of size 1. Its first ``before`` rows,
    those of class tokens, stay unchanged.

    Args:
      old, new: rows and columns of the two grids.
      before: rows of the table before those of the grid.
      antialias: see `cubic_weights`.
      weights: from the old and the new size of an axis to the weights ``[new, old]``. The default is `cubic_weights`:
        bicubic, like PyTorch's ``interpolate``, which most encoders of ``transformers`` use.
    Returns:
      The function; None if the grids are equal.
    """
    if old == new:
        return None
    weights = weights or functools.partial(cubic_weights, antialias=antialias)
    row_weights, column_weights = (weights(a, b) for a, b in zip(old, new, strict=True))

    def resample(table: np.ndarray) -> np.ndarray:
        """The table for the new grid, of the same rank."""
        flat = table.reshape(-1, table.shape[-1]).astype(np.float32)
        prefix, grid = flat[:before], flat[before:].reshape(*old, -1)
        grid = np.einsum("ar,bc,rcd->abd", row_weights, column_weights, grid, optimize=True)
        resampled = np.concatenate([prefix, grid.reshape(-1, grid.shape[-1])])
        return resampled.reshape(*table.shape[:-2], *resampled.shape)

    return resample


def cubic_weights(old: int, new: int, *, antialias: bool = False) -> np.ndarray:
    """The weights ``[new, old]`` that resample ``old`` values of one axis to ``new`` by cubic convolution (Keys 1981,
    eq. 4), as in PyTorch's ``interpolate``.

    Samples lie at half-pixel centres. Without ``antialias`` Keys's a is -0.75, and values at the ends are repeated
    beyond them. With ``antialias`` a is -0.5, the kernel is widened where the axis shrinks, and weights beyond the ends
    are dropped.
    """
    # The positions of the new samples on the old axis, [new, 1].
    positions = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    if antialias:
        weights = _cubic((positions - np.arange(old)) / max(old / new, 1.0), a=-0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    # Each new sample depends on the four old ones around it, [new, 4].
    weights = np.zeros((new, old))
    old_samples = np.floor(positions).astype(int) + np.arange(-1, 3)
    new_samples = np.broadcast_to(np.arange(new)[:, None], old_samples.shape)
    np.add.at(weights, (new_samples, old_samples.clip(0, old - 1)), _cubic(positions - old_samples, a=-0.75))
    return weights.astype(np.float32)


def _cubic(x: np.ndarray, *, a: float) -> np.ndarray:
    """Keys's cubic kernel: (a+2)|x|^3 - (a+3)|x|^2 + 1 for |x| <= 1, a|x|^3 - 5a|x|^2 + 8a|x| - 4a for |x| < 2, else
    0."""
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))
