"""Pixels to floats, resizing, and augmentation with one random key per example; for use inside a jitted training step.

Every augmentation takes and returns floats in [-1, 1], ``[B, H, W, C]``, keeps the shape, and does nothing with
``keys=None``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import ExampleKeys

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a gray level (ITU-R BT.601)."""


def to_float(pixels: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels in uint8, 0 to 255, as float32 in [-1, 1]: ``pixels / 127.5 - 1``.

    Raises:
      TypeError: not uint8 (floats would be scaled twice).
    """
    if pixels.dtype != jnp.uint8:
        raise TypeError(f"pixels are uint8 0..255, got {pixels.dtype}")
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(x: Float[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Images in [-1, 1] as uint8, the inverse of `to_float`: ``round((x + 1) 127.5)``, clipped to 0..255."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


@check_shapes
def standardize(
    images: Float[Array, "*batch height width channels"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*batch height width channels"]:
    """Images in [-1, 1] as ``(p - mean) / std``, where ``p = (images + 1) / 2`` are the pixels in [0, 1].

    ``mean`` and ``std`` have one value for each channel, in units of p.

    Raises:
      ValueError: the numbers of channels and means differ.
    """
    if images.shape[-1] != len(mean):
        raise ValueError(
            f"a mean for each of {len(mean)} channels is known, got images of shape {images.shape}"
        )
    # (p - mean) / std = images * scale + shift
    scale = 0.5 / np.asarray(std)
    shift = (0.5 - np.asarray(mean)) / np.asarray(std)
    shape = (1,) * (images.ndim - 1) + (-1,)
    return images * scale.astype(images.dtype).reshape(shape) + shift.astype(images.dtype).reshape(shape)


@check_shapes
def resize(
    images: Float[Array, "*batch height width channels"], height: int, width: int, *, method: str = "linear"
) -> Float[Array, "*batch height2 width2 channels"]:
    """Images resized to ``height`` x ``width`` pixels, antialiased when shrinking; see ``jax.image.resize``."""
    shape = (*images.shape[:-3], height, width, images.shape[-1])
    return jax.image.resize(images, shape, method=method, antialias=True)


@check_shapes
def random_translate(
    images: Float[Array, "batch height width channels"], keys: ExampleKeys | None, *, pixels: int
) -> Float[Array, "batch height width channels"]:
    """Shifts each image by a random whole number of pixels along each axis, up to ``pixels`` either way.

    Beyond its border an image is continued by the pixels of its edge. ``keys`` None: no shift.
    """
    if keys is None or pixels == 0:
        return images

    def shift(key, image):
        """One image ``[H, W, C]`` shifted: a random window of the padded image."""
        padded = jnp.pad(image, [(pixels, pixels), (pixels, pixels), (0, 0)], mode="edge")
        start = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)

    return jax.vmap(shift)(fold_in_name(keys, "translate"), images)


@check_shapes
def random_resized_crop(
    images: Float[Array, "batch height width channels"], keys: ExampleKeys | None, *, min_scale: float
) -> Float[Array, "batch height width channels"]:
    """Crops a random box of each image and resizes it to the image's size; ``keys`` None: no crop.

    The box has the image's aspect ratio and a fraction of its area that is uniform between ``min_scale`` and 1.
    """
    if keys is None or min_scale == 1.0:
        return images

    def crop(key, image):
        """A random crop of one image ``[H, W, C]``, resized to its size."""
        draws = jax.random.uniform(key, (3,))
        # The box's side as a fraction of the image's: the square root of its share of the area.
        side = jnp.sqrt(min_scale + draws[0] * (1.0 - min_scale))
        size = jnp.array(image.shape[:2], jnp.float32)
        corner = draws[1:] * (1.0 - side) * size  # top left, in pixels
        scale = jnp.broadcast_to(1.0 / side, (2,))
        # Enlarges the image so that the box fills it, and moves the box's corner to the origin.
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), scale, -corner * scale, method="linear"
        )

    return jax.vmap(crop)(fold_in_name(keys, "resized_crop"), images)


@check_shapes
def random_flip(
    images: Float[Array, "batch height width channels"], keys: ExampleKeys | None, *, probability: float = 0.5
) -> Float[Array, "batch height width channels"]:
    """Mirrors each image left to right with this ``probability``; ``keys`` None: never.

    Not for images whose captions say "left" or "right".
    """
    if keys is None or probability == 0.0:
        return images
    flip = jax.vmap(lambda key: jax.random.uniform(key) < probability)(fold_in_name(keys, "flip"))
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


@check_shapes
def color_jitter(
    images: Float[Array, "batch height width channels"],
    keys: ExampleKeys | None,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
) -> Float[Array, "batch height width channels"]:
    """Changes brightness, contrast and saturation of each image at random and clips it to [-1, 1].

    A number in [-brightness, brightness] is added to the image. The distance of pixels from the image's mean colour is
    scaled by a factor in [1 - contrast, 1 + contrast], and their distance from the gray image, which needs three
    channels, by one in [1 - saturation, 1 + saturation]. All are drawn uniformly. ``keys`` None: no change.
    """
    if keys is None or brightness == contrast == saturation == 0.0:
        return images

    def jitter(key, image):
        """One image ``[H, W, C]``, changed; the draws are for brightness, contrast and saturation."""
        draws = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
        mean = image.mean(axis=(0, 1), keepdims=True)
        image = mean + (image - mean) * (1.0 + contrast * draws[1]) + brightness * draws[0]
        if saturation:
            gray = _gray(image)
            image = gray + (image - gray) * (1.0 + saturation * draws[2])
        return jnp.clip(image, -1.0, 1.0)

    return jax.vmap(jitter)(fold_in_name(keys, "color_jitter"), images)


@check_shapes
def random_grayscale(
    images: Float[Array, "batch height width channels"], keys: ExampleKeys | None, *, probability: float
) -> Float[Array, "batch height width channels"]:
    """Makes each image gray with this ``probability``: all channels are set to the gray level (`LUMA`)."""
    if keys is None or probability == 0.0:
        return images
    is_gray = jax.vmap(lambda key: jax.random.uniform(key) < probability)(fold_in_name(keys, "grayscale"))
    return jnp.where(is_gray[:, None, None, None], _gray(images), images)


def _gray(images):
    """Images ``[..., 3]`` with all channels set to the gray level, the mean of the channels weighted by `LUMA`."""
    if images.shape[-1] != 3:
        raise ValueError(f"gray is made of three colour channels, got {images.shape[-1]}")
    weights = jnp.array(LUMA, images.dtype).reshape((1,) * (images.ndim - 1) + (3,))
    return jnp.broadcast_to((images * weights).sum(axis=-1, keepdims=True), images.shape)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The augmentations of `augment`, in their order. The defaults shift the image by up to 2 pixels and do no more.

    Raises:
      ValueError: a value outside its range.
    """

    translate: int = 2
    """Largest shift of an image along each axis, in pixels; 0 turns it off."""
    min_crop_scale: float = 1.0
    """Smallest area of a random crop as a fraction of the image; the crop is resized to the full size. 1 turns cropping
    off."""
    flip: float = 0.0
    """Probability that an image is mirrored left to right. 0 by default, because captions may say left and right."""
    brightness: float = 0.0
    """Largest number that is added to or subtracted from all pixels, which range over [-1, 1]; 0 turns it off."""
    contrast: float = 0.0
    """Largest relative change of an image's contrast: 0.4 scales it by 0.6 to 1.4; 0 turns it off."""
    saturation: float = 0.0
    """Largest relative change of an image's colour saturation: 0.4 scales it by 0.6 to 1.4; 0 turns it off."""
    grayscale: float = 0.0
    """Probability that an image is made gray; 0 turns it off."""

    def __post_init__(self):
        """Checks the ranges of the options."""
        if self.translate < 0:
            raise ValueError(f"translate must be 0 or more pixels, got {self.translate}")
        if not 0.0 < self.min_crop_scale <= 1.0:
            raise ValueError(f"min_crop_scale must lie in (0, 1], got {self.min_crop_scale}")
        for name in ("flip", "grayscale"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


@check_shapes
def augment(
    images: Float[Array, "batch height width channels"], keys: ExampleKeys | None, config: AugmentConfig
) -> Float[Array, "batch height width channels"]:
    """Applies the augmentations of ``config`` one after the other; ``keys=None``: none of them.

    ::

        images = augment(to_float(batch["image"]), keys, AugmentConfig(translate=4, flip=0.5))
    """
    images = random_translate(images, keys, pixels=config.translate)
    images = random_resized_crop(images, keys, min_scale=config.min_crop_scale)
    images = random_flip(images, keys, probability=config.flip)
    images = color_jitter(
        images, keys, brightness=config.brightness, contrast=config.contrast, saturation=config.saturation
    )
    return random_grayscale(images, keys, probability=config.grayscale)
