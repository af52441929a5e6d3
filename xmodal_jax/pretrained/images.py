"""What pretrained encoders of images share: how pixels are scaled, patches, and positions at another image size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
    if getattr(processor, "do_normalize", True) is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return default if mean is None or std is None else (tuple(map(float, mean)), tuple(map(float, std)))


def example_image(grid: Size, patch: int) -> Float[Array, "1 height width 3"]:
    """An image of a grid of patches."""
    return jnp.zeros((1, grid[0] * patch, grid[1] * patch, 3), jnp.float32)


def own_size(config: SimpleNamespace) -> tuple[Size, int]:
    """The image size (height, width) and the side of a patch in a ``config.json``.

    Raises:
      ValueError: a patch is not a square.
    """
    size, patch = config.image_size, config.patch_size
    sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
    if len(set(sides)) != 1:
        raise ValueError(f"config.json has patches of {sides} pixels: squares can be loaded")
    return ((size, size) if isinstance(size, int) else (size[0], size[1])), sides[0]


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


def resample(
    old: Size,
    new: Size,
    *,
    before: int = 0,
    antialias: bool = False,
    weights: Callable[[int, int], np.ndarray] | None = None,
) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes a table of positions ``[(1,) before + rows * columns, D]`` of a grid one of another grid, in float32;
    the first ``before`` (class tokens) stay. None where the grids are equal.

    Bicubic, as PyTorch's ``interpolate``, by which most encoders of ``transformers`` do it (see `cubic_weights`), or by
    the ``weights [new, old]`` of each axis that a function of the two sizes gives.
    """
    if old == new:
        return None
    weights = weights or functools.partial(cubic_weights, antialias=antialias)
    rows, columns = (weights(a, b) for a, b in zip(old, new, strict=True))

    def change(table: np.ndarray) -> np.ndarray:
        flat = table.reshape(-1, table.shape[-1]).astype(np.float32)
        kept, grid = flat[:before], flat[before:].reshape(*old, -1)
        grid = np.einsum("ar,bc,rcd->abd", rows, columns, grid, optimize=True)
        whole = np.concatenate([kept, grid.reshape(-1, grid.shape[-1])])
        return whole.reshape(*table.shape[:-2], *whole.shape)

    return change


def cubic_weights(old: int, new: int, *, antialias: bool = False) -> np.ndarray:
    """``[new, old]``: the weight of each old sample in each new one, with half-pixel centres (Keys 1981, eq. 4).

    Keys's a is -0.75 and samples beyond an end are that at the end; with ``antialias`` a is -0.5, where there are fewer
    new samples the cubic is as much wider, and what lies beyond an end is left out.
    """
    places = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    if antialias:
        weights = _cubic((places - np.arange(old)) / max(old / new, 1.0), -0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights = np.zeros((new, old))
    samples = np.floor(places).astype(int) + np.arange(-1, 3)
    rows = np.broadcast_to(np.arange(new)[:, None], samples.shape)
    np.add.at(weights, (rows, samples.clip(0, old - 1)), _cubic(places - samples, -0.75))
    return weights.astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
