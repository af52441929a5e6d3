"""What pretrained encoders of images share: how pixels are scaled, patches, and positions at another image size."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Means and deviations of channels: pixels in [-1, 1]."""

Scale = tuple[tuple[float, ...], tuple[float, ...]]
Size = tuple[int, int]


def pixel_scale(config: SimpleNamespace, default: Scale) -> Scale:
    """Means and deviations that a checkpoint's processor names, else the architecture's."""
    processor = getattr(config, "processor", SimpleNamespace())
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    return default if mean is None or std is None else (tuple(mean), tuple(std))


def grid_of(size: int | Size, patch: int) -> Size:
    """Patches of an image, rows and columns.

    Raises:
      ValueError: the patch does not divide its sides.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height % patch or width % patch:
        raise ValueError(
            f"the encoder's patches of {patch} pixels must divide the image's sides, got {height} x {width}: choose "
            f"another --image-size, such as {max(patch, round(height / patch) * patch)}"
        )
    return height // patch, width // patch


def resample(old: Size, new: Size, *, before: int = 0) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes a table of positions ``[(1,) before + rows * columns, D]`` of a grid one of another grid; the first
    ``before`` (class tokens) stay. None where the grids are equal.

    Bicubic with a = -0.75, half-pixel centres and clamped ends, without antialiasing: as PyTorch's ``interpolate``, by
    which the encoders of ``transformers`` do it.
    """
    if old == new:
        return None
    rows, columns = cubic_weights(old[0], new[0]), cubic_weights(old[1], new[1])

    def change(table: np.ndarray) -> np.ndarray:
        flat = table.reshape(-1, table.shape[-1]).astype(np.float32)
        kept, grid = flat[:before], flat[before:].reshape(*old, -1)
        grid = np.einsum("ar,bc,rcd->abd", rows, columns, grid, optimize=True)
        whole = np.concatenate([kept, grid.reshape(-1, grid.shape[-1])])
        return whole.reshape(*table.shape[:-2], *whole.shape).astype(table.dtype)

    return change


def cubic_weights(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """``[new, old]``: the weight of each old sample in each new one (Keys 1981, eq. 4 with his a)."""
    weights = np.zeros((new, old), np.float32)
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        first = int(np.floor(place)) - 1
        for j in range(first, first + 4):
            x = abs(place - j)
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            weights[i, min(max(j, 0), old - 1)] += near if x <= 1 else far
    return weights
