"""Augmentation of the inputs of a GAN's discriminator, both real and generated: DiffAugment, and adaptive ADA.

Images are floats in [-1, 1], ``[B, H, W, C]`` with 1 or 3 channels. Values outside are not clipped, so that the
generator gets a gradient from them. The functions are differentiable in the images. Each example has one random key,
which gives the same transformation in any batch; ``keys=None`` is the identity.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import ExampleKeys

Images = Float[Array, "batch height width channels"]


def diff_augment(
    images: Images,
    keys: ExampleKeys | None,
    *,
    color: bool = True,
    translation: float = 0.125,
    cutout: float = 0.5,
) -> Images:
    """Differentiable augmentation (Zhao et al. 2020, arXiv:2006.10738) of the discriminator's inputs.

    Each image is transformed in this order:

    - ``color``: a brightness b ~ U(-0.5, 0.5) is added; each pixel's distance from its mean over channels is scaled by
      a saturation s ~ U(0, 2) (without effect on grey images), and its distance from the image's mean by a contrast
      c ~ U(0.5, 1.5).
    - ``translation``: the image is shifted by whole pixels, uniformly up to this fraction of each side; the border that
      this exposes is 0.
    - ``cutout``: a rectangle is set to 0, with sides of this fraction of the image's sides and its centre anywhere in
      the image.

    A fraction of 0 turns a transformation off; ``keys`` None turns off all.

    Raises:
      ValueError: a fraction outside [0, 1], or neither 1 nor 3 channels.
    """
    _check_channels(images)
    for name, fraction in (("translation", translation), ("cutout", cutout)):
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"{name} is a fraction of the side, 0 to 1, got {fraction}")
    if keys is None:
        return images
    if color:
        images = jax.vmap(_jitter)(fold_in_name(keys, "diff_color"), images)
    if translation:
        images = jax.vmap(_shift, in_axes=(0, 0, None))(
            fold_in_name(keys, "diff_translation"), images, translation
        )
    if cutout:
        box_sides = [int(cutout * side + 0.5) for side in images.shape[1:3]]  # rounded to whole pixels
        # The centre lies on a pixel of the image if the box has an odd side, else on one of side + 1 pixel edges.
        centre_counts = [
            side + 1 - box_side % 2 for side, box_side in zip(images.shape[1:3], box_sides, strict=True)
        ]
        size = jnp.array(box_sides)
        draw_centre = lambda key: jax.random.randint(key, (2,), 0, jnp.array(centre_counts))
        start = jax.vmap(draw_centre)(fold_in_name(keys, "diff_cutout")) - size[None] // 2
        images = _blank(images, start.astype(jnp.float32), (start + size[None]).astype(jnp.float32))
    return images


def _jitter(key, image):
    """An image ``[H, W, C]`` with random brightness, saturation and contrast, as `diff_augment` describes.

    ``key``: the image's random key.
    """
    low, high = jnp.array([-0.5, 0.0, 0.5]), jnp.array([0.5, 2.0, 1.5])
    draws = jax.random.uniform(key, (3,), minval=low, maxval=high)
    brightness, saturation, contrast = draws.astype(image.dtype)
    grey = image.mean(axis=2, keepdims=True)
    # c (s (x - grey) + grey - mean) + mean + b: all three in one step, as saturation does not change the grey image,
    # whose mean is the image's.
    flat = contrast * (1.0 - saturation) * grey + ((1.0 - contrast) * grey.mean() + brightness)
    return contrast * saturation * image + flat


def _shift(key, image, fraction):
    """An image ``[H, W, C]`` shifted by a random number of pixels, up to ``fraction`` of each side; padded with 0.

    ``key``: the image's random key.
    """
    largest = [int(fraction * side + 0.5) for side in image.shape[:2]]  # rounded to whole pixels
    padded = jnp.pad(image, [(largest[0], largest[0]), (largest[1], largest[1]), (0, 0)])
    start = jax.random.randint(key, (2,), 0, 2 * jnp.array(largest) + 1)
    # A slice of the padded image: on a CPU faster than index arithmetic, rolls or one-hot matrices.
    return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)


def _blank(images: Images, start: Float[Array, "batch 2"], end: Float[Array, "batch 2"]) -> Images:
    """Sets pixels to 0 whose centre lies in their image's box, which goes from ``start`` to ``end`` (y, x) in pixels.

    Those pixels have no gradient. An empty box changes nothing.
    """
    # Which rows of pixels [B, H], and which columns [B, W], cross the box.
    rows_inside, columns_inside = [
        (start[:, axis, None] < centres[None]) & (centres[None] < end[:, axis, None])
        for axis, centres in enumerate(jnp.arange(side) + 0.5 for side in images.shape[1:3])
    ]
    return jnp.where((rows_inside[:, :, None] & columns_inside[:, None, :])[..., None], 0.0, images)


@dataclasses.dataclass(frozen=True)
class AdaConfig:
    """The transformations of :func:`ada_augment` and their strengths; 0 or False turns a transformation off.

    The defaults are those of the paper, except where a caption that says left and right or names a colour would become
    wrong: no mirroring, and small rotations and hues. `PAPER` has the ranges of the paper.
    """

    flip: bool = False
    """Whether images are mirrored left to right, with probability 1/2."""
    quarter_turns: bool = False
    """Whether images are rotated by a random multiple of 90 degrees."""
    translate: float = 0.125
    """Largest random shift of an image by whole pixels, as a fraction of each side; 0 turns it off."""
    scale: float = 0.2
    """Strength of random zooming: standard deviation of log2 of the image's scale; 0 turns it off."""
    rotate: float = 15.0
    """Largest angle in degrees of each of two random rotations, before and after ``stretch``; 0 turns them off."""
    stretch: float = 0.2
    """Strength of random stretching: standard deviation of log2 of the factor by which the width grows and the height
    shrinks; 0 turns it off."""
    shift: float = 0.125
    """Standard deviation of a random shift by fractions of a pixel, as a fraction of each side; 0 turns it off."""
    brightness: float = 0.2
    """Standard deviation of the random number added to all pixels, which range over [-1, 1]; 0 turns it off."""
    contrast: float = 0.5
    """Standard deviation of log2 of the random factor that scales contrast about mid-grey; 0 turns it off."""
    luma_flip: bool = False
    """Whether light and dark are exchanged, with the hue unchanged, with probability 1/2."""
    hue: float = 15.0
    """Largest random change of hue, as a rotation of colours about the grey axis, in degrees; 0 turns it off."""
    saturation: float = 1.0
    """Standard deviation of log2 of the random factor that scales colour saturation; 0 turns it off."""
    cutout: float = 0.5
    """Sides of a randomly placed rectangle that is set to 0, as a fraction of the image's sides; 0 turns it off."""

    def __post_init__(self):
        """Raises ValueError where a strength is out of range."""
        for name in ("translate", "cutout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a fraction of the side, 0 to 1, got {getattr(self, name)}")
        for name in ("rotate", "hue"):
            if not 0.0 <= getattr(self, name) <= 180.0:
                raise ValueError(f"{name} is an angle, 0 to 180 degrees, got {getattr(self, name)}")
        for name in ("scale", "stretch", "shift", "brightness", "contrast", "saturation"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    @property
    def geometric(self) -> bool:
        """Whether any transformation moves pixels."""
        return any(
            (self.flip, self.quarter_turns, self.translate, self.scale, self.rotate, self.stretch, self.shift)
        )

    @property
    def colored(self) -> bool:
        """Whether any transformation changes colours."""
        return any((self.brightness, self.contrast, self.luma_flip, self.hue, self.saturation))


CAPTIONED = AdaConfig()
"""The transformations for captioned images."""
PAPER = AdaConfig(flip=True, quarter_turns=True, rotate=180.0, luma_flip=True, hue=180.0, cutout=0.0)
"""The blit, geometric and colour groups with the ranges of the paper (Karras et al. 2020, appendix B)."""


def ada_augment(
    images: Images,
    keys: ExampleKeys | None,
    probability: Float[Array, ""] | float,
    *,
    config: AdaConfig = CAPTIONED,
) -> Images:
    """The augmentations of ADA (Karras et al. 2020, arXiv:2006.06676, appendix B), each with this ``probability``.

    For each example, each transformation of ``config`` is applied with this probability, independently of the others.
    The geometric ones are composed to one affine map, by which the image is resampled bilinearly with mirrored borders
    (the paper upsamples first); the colour ones are composed to one matrix; then comes the cutout. Up to a probability
    of about 0.8 the generator does not learn to generate augmented images (section 2). A grey image is transformed as
    three equal channels, and the result is their mean.

    Raises:
      ValueError: neither 1 nor 3 channels, or a side of one pixel.
    """
    _check_channels(images)
    if min(images.shape[1:3]) < 2:
        raise ValueError(f"images need two pixels or more on each side, got {images.shape}")
    if keys is None:
        return images
    height, width = images.shape[1:3]
    draws = ada_draws(keys)
    if config.geometric:
        images = warp(images, ada_geometry(draws, probability, config, height=height, width=width))
    if config.colored:
        images = transform_colors(images, ada_colors(draws, probability, config))
    if config.cutout:
        # The first number decides whether the image is cut, the other two are the centre (y, x) relative to the sides.
        gate, centre = draws["cutout"][:, :1], draws["cutout"][:, 1:]
        sides = jnp.array([[height, width]], jnp.float32)
        half = jnp.where(gate < probability, config.cutout / 2.0, 0.0)
        images = _blank(images, (centre - half) * sides, (centre + half) * sides)
    return images


def ada_update(
    probability: Float[Array, ""],
    sign_mean: Float[Array, ""],
    *,
    examples: int,
    target: float = 0.6,
    ramp: int = 500_000,
) -> Float[Array, ""]:
    """ADA's next probability of augmentation: ``clip(p + sign(E[sign(D(real))] - target) examples / ramp, 0, 1)``.

    It rises while the discriminator overfits, and falls while it does not.

    Args:
      probability: p, the probability so far.
      sign_mean: mean over real images of the sign (-1, 0 or 1) of the discriminator's logit, so a number in [-1, 1],
        which nears 1 as the discriminator overfits (Karras et al. 2020, eq. 1). It is the mean over the *global*
        batches since the last update: the sum of the devices' shares.
      examples: number of real images in these batches.
      target: the mean sign to keep.
      ramp: number of images in which the probability can go from 0 to 1.
    """
    return jnp.clip(probability + jnp.sign(sign_mean - target) * (examples / ramp), 0.0, 1.0)


TRANSFORMATIONS = (
    *("flip", "quarter_turns", "translate", "scale", "rotate_before", "stretch", "rotate_after", "shift"),
    *("brightness", "contrast", "luma_flip", "hue", "saturation", "cutout"),
)
AdaDraws = dict[str, Float[Array, "batch 3"]]
"""For each transformation three numbers in (0, 1). It is applied where the first is below the probability; the second,
and the third where there are two parameters, choose its strength."""


def ada_draws(keys: ExampleKeys) -> AdaDraws:
    """Three uniform random numbers for each transformation and example; see `AdaDraws` for their use.

    Numbers are drawn for all transformations, used or not, so that turning one off does not change the others.
    """
    # Not 0, which the normal distribution's quantile function maps to -infinity.
    tiny = jnp.finfo(jnp.float32).tiny
    draw = lambda key: jax.random.uniform(key, (len(TRANSFORMATIONS), 3), minval=tiny)
    draws = jax.vmap(draw)(fold_in_name(keys, "ada"))  # [B, transformations, 3]
    return {name: draws[:, k] for k, name in enumerate(TRANSFORMATIONS)}


def _signed(uniform):
    """U(0, 1) to U(-1, 1)."""
    return 2.0 * uniform - 1.0


def _normal(uniform):
    """U(0, 1) to N(0, 1)."""
    return jax.scipy.special.ndtri(uniform)


def ada_geometry(
    draws: AdaDraws,
    probability: Float[Array, ""] | float,
    config: AdaConfig,
    *,
    height: int,
    width: int,
) -> Float[Array, "batch 2 3"]:
    """Random affine maps of pixel positions (y, x) for :func:`warp`, which resamples images by them.

    Each is the inverse of these transformations in order: flip, quarter turns, shift by whole pixels, scale, rotation,
    stretch, rotation and shift. Each is applied with this ``probability`` p; each of the two rotations has the
    probability ``1 - sqrt(1 - p)``, so that there is at least one with probability p.

    ``draws``: three random numbers for each transformation and example, from `ada_draws`. ``config``: which
    transformations there are, and their strengths. ``height``, ``width``: of the images, in pixels.
    """
    sides = jnp.array([height, width], jnp.float32)
    rotation_probability = 1.0 - jnp.sqrt(1.0 - probability)

    def example_map(draws):
        """The map ``[2, 3]`` of one example, from three random numbers for each transformation."""
        gate = {name: numbers[0] for name, numbers in draws.items()}
        strength = {name: numbers[1] for name, numbers in draws.items()}
        # A transformation's parameter, or 0 (no effect) where it is not applied. From a uniform number in [0, 1],
        # `_signed` makes a uniform one in [-1, 1], `_normal` a standard normal one.
        on = lambda name, value, p=probability: jnp.where(gate[name] < p, value, 0.0)
        random_turn = lambda name: _turn(
            on(name, math.radians(config.rotate) * _signed(strength[name]), rotation_probability)
        )

        # Resampling needs the inverse of each transformation: where a pixel's value comes from.
        inverse = jnp.eye(3)
        if config.flip:
            inverse = _dot(inverse, _stretch(1.0, 1.0 - 2.0 * on("flip", strength["flip"] > 0.5)))
        if config.quarter_turns:
            quarters = jnp.floor(4.0 * strength["quarter_turns"])
            inverse = _dot(inverse, _turn(on("quarter_turns", quarters * (math.pi / 2.0))))
        if config.translate:
            pixels = jnp.round(config.translate * sides * _signed(draws["translate"][1:]))
            inverse = _dot(inverse, _move(on("translate", -pixels)))
        if config.scale:
            factor = jnp.exp2(on("scale", -config.scale * _normal(strength["scale"])))
            inverse = _dot(inverse, _stretch(factor, factor))
        if config.rotate:
            inverse = _dot(inverse, random_turn("rotate_before"))
        if config.stretch:
            log2 = on("stretch", config.stretch * _normal(strength["stretch"]))
            inverse = _dot(inverse, _stretch(jnp.exp2(log2), jnp.exp2(-log2)))
        if config.rotate:
            inverse = _dot(inverse, random_turn("rotate_after"))
        if config.shift:
            distance = config.shift * sides * _normal(draws["shift"][1:])
            inverse = _dot(inverse, _move(on("shift", -distance)))
        return inverse[:2]  # the last row is (0, 0, 1)

    return jax.vmap(example_map)(draws)


def ada_colors(
    draws: AdaDraws, probability: Float[Array, ""] | float, config: AdaConfig
) -> Float[Array, "batch 3 4"]:
    """Random affine maps of (red, green, blue) for :func:`transform_colors`, which applies them to every pixel.

    Each is composed of brightness, contrast, luma flip, hue and saturation, in this order, each applied with this
    ``probability``. The last three mirror, rotate or scale about the grey axis v = (1, 1, 1) / sqrt 3, as in the paper.

    ``draws``: three random numbers for each transformation and example, from `ada_draws`. ``config``: which
    transformations there are, and their strengths.
    """
    grey = jnp.full((3, 3), 1.0 / 3.0)  # v v^T: the projection on the grey axis
    # The matrix of the cross product with v.
    cross = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    colorful = jnp.eye(3) - grey  # the projection on the complement of the grey axis

    def example_map(draws):
        """The map ``[3, 4]`` of one example, from three random numbers for each transformation."""
        gate = {name: numbers[0] for name, numbers in draws.items()}
        strength = {name: numbers[1] for name, numbers in draws.items()}
        # A transformation's parameter, or 0 (no effect) where it is not applied. From a uniform number in [0, 1],
        # `_signed` makes a uniform one in [-1, 1], `_normal` a standard normal one.
        on = lambda name, value: jnp.where(gate[name] < probability, value, 0.0)

        matrix, offset = jnp.eye(3), jnp.zeros(3)
        if config.brightness:
            offset = offset + on("brightness", config.brightness * _normal(strength["brightness"]))
        if config.contrast:
            factor = jnp.exp2(on("contrast", config.contrast * _normal(strength["contrast"])))
            matrix, offset = matrix * factor, offset * factor
        linear = []
        if config.luma_flip:
            linear.append(jnp.eye(3) - 2.0 * on("luma_flip", strength["luma_flip"] > 0.5) * grey)
        if config.hue:
            angle = on("hue", math.radians(config.hue) * _signed(strength["hue"]))
            # A rotation about v by Rodrigues' formula.
            linear.append(grey + jnp.cos(angle) * colorful + jnp.sin(angle) * cross)
        if config.saturation:
            factor = jnp.exp2(on("saturation", config.saturation * _normal(strength["saturation"])))
            linear.append(grey + factor * colorful)
        for step in linear:
            matrix, offset = _dot(step, matrix), _dot(step, offset)
        return jnp.concatenate([matrix, offset[:, None]], axis=1)

    return jax.vmap(example_map)(draws)


def warp(images: Images, maps: Float[Array, "batch 2 3"]) -> Images:
    """Bilinear resampling: the pixel (y, x), counted from the image's centre, takes the value at ``maps @ (y, x, 1)``.

    The image is continued by mirror images without a doubled edge (NumPy's ``reflect``). Sides must have two pixels or
    more. ``maps`` has no gradient.
    """
    maps = jax.lax.stop_gradient(maps)
    height, width, channels = images.shape[1:]
    # Positions of rows and columns of pixels, counted from the image's centre.
    y, x = jnp.arange(height) - (height - 1) / 2.0, jnp.arange(width) - (width - 1) / 2.0

    def warp_image(image, matrix):
        """One image ``[H, W, C]`` resampled by its map ``[2, 3]``."""

        def source(axis, side):
            """``(corner, weight)``: the first of the two pixels around each source position, and the second's weight.

            ``axis`` 0: rows, 1: columns; both results are for every pixel, ``[H, W]`` and ``[H, W, 1]``.
            """
            position = matrix[axis, 0] * y[:, None] + matrix[axis, 1] * x[None, :] + matrix[axis, 2]
            position = position + (side - 1) / 2.0  # counted from the first pixel
            # Reflect positions beyond the image into it.
            position = (side - 1.0) - jnp.abs(jnp.mod(position, 2.0 * (side - 1)) - (side - 1.0))
            corner = jnp.clip(jnp.floor(position), 0.0, side - 2.0)
            return corner.astype(jnp.int32), (position - corner)[..., None]

        (i, down), (j, right) = source(0, height), source(1, width)
        # Gather a window of 2 x 2 per pixel: on a CPU faster than a product with the weights of all pixels.
        window = lambda i, j: jax.lax.dynamic_slice(image, (i, j, 0), (2, 2, channels))
        four = jax.vmap(jax.vmap(window))(i, j)  # [H, W, 2, 2, C]
        upper = four[:, :, 0, 0] * (1.0 - right) + four[:, :, 0, 1] * right
        lower = four[:, :, 1, 0] * (1.0 - right) + four[:, :, 1, 1] * right
        return (upper * (1.0 - down) + lower * down).astype(image.dtype)

    return jax.vmap(warp_image)(images, maps)


def transform_colors(images: Images, maps: Float[Array, "batch 3 4"]) -> Images:
    """Applies ``maps @ (r, g, b, 1)`` to every pixel; a grey x becomes the mean of the transformed (x, x, x)."""
    maps = maps.astype(images.dtype)[:, None, None]  # [B, 1, 1, 3, 4], the same for all pixels
    linear, offset = maps[..., :3], maps[..., 3]
    if images.shape[-1] == 1:
        return images * (linear.sum(axis=(-2, -1))[..., None] / 3.0) + offset.mean(axis=-1, keepdims=True)
    # Three products of arrays are faster than many matrix products with three columns.
    return sum(images[..., k : k + 1] * linear[..., k] for k in range(3)) + offset


def _turn(angle):
    """The 3 x 3 matrix of a rotation of (y, x) by an angle in radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _affine([cos, sin, 0.0, -sin, cos, 0.0])


def _stretch(y, x):
    """The 3 x 3 matrix that scales y and x by these factors."""
    return _affine([y, 0.0, 0.0, 0.0, x, 0.0])


def _move(shift):
    """The 3 x 3 matrix of a shift (y, x)."""
    return _affine([1.0, 0.0, shift[0], 0.0, 1.0, shift[1]])


def _affine(entries):
    """The 3 x 3 matrix of an affine map, from the six entries of its first two rows."""
    return jnp.stack([jnp.float32(x) for x in (*entries, 0.0, 0.0, 1.0)]).reshape(3, 3)


def _dot(a, b):
    return jnp.dot(a, b, precision="highest")  # a TPU's default would move points by whole pixels


def _check_channels(images):
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"expected images with 1 or 3 channels, got {images.shape[-1]}")
