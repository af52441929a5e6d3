"""Large coloured textures of eight families, from which images take their backgrounds."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

LOW, HIGH = (0, 75), (180, 255)
"""Ranges of colour channels that are far enough from the middle for an inversion to be visible."""
_OVERSAMPLING = 2
_Field = np.ndarray
"""A number at each pixel, ``[S, S]``."""


def _waves(rng: np.random.Generator, x: _Field, y: _Field, period: float, count: int = 24) -> _Field:
    """Smooth noise ``[S, S]`` of about unit variance: a sum of ``count`` plane waves of random directions, phases and
    periods near ``period``. ``x`` and ``y`` are the positions of the pixels."""
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count))
    frequency = 2 * np.pi / (period * rng.uniform(0.7, 1.6, count))
    waves = zip(angle, phase, frequency, strict=True)
    return sum(np.cos(f * (x * np.cos(a) + y * np.sin(a)) + p) for a, p, f in waves) * np.sqrt(2 / count)


def _centres(rng: np.random.Generator, side: float, spacing: float) -> np.ndarray:
    """Random points ``[K, 2]``, one in each cell of a grid that extends beyond the image by a cell."""
    ticks = np.arange(-spacing, side + spacing, spacing)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    return grid + rng.uniform(0.1, 0.9, grid.shape) * spacing


def _nearest(x: _Field, y: _Field, centres: np.ndarray) -> tuple[np.ndarray, _Field]:
    """``(index, distance)`` ``[S, S]`` of the centre (of ``centres`` ``[K, 2]``) that is nearest to each pixel."""
    smallest, nearest = np.full(x.shape, np.inf), np.zeros(x.shape, np.int64)
    for k, (cx, cy) in enumerate(centres):
        squared_distance = (x - cx) ** 2 + (y - cy) ** 2
        closer = squared_distance < smallest
        smallest[closer], nearest[closer] = squared_distance[closer], k
    return nearest, np.sqrt(smallest)


# The families of textures. Each returns RGB ``[S, S, 3]`` from a random generator, the pixels' coordinates ``x`` and
# ``y`` ``[S, S]`` in units of the pattern, and four ``colours`` ``[4, 3]``.


def _stripes(rng, x, y, colours):
    """Bent stripes in three colours."""
    bend = 1.2 * _waves(rng, x, y, period=45.0, count=8)
    band = np.floor((x * np.cos(0.6) + y * np.sin(0.6) + bend) / 4.5).astype(np.int64)
    return colours[band % 3]


def _checks(rng, x, y, colours):
    """A chessboard: fields of one colour alternate with fields of random other colours."""
    column, line = (np.floor(c / 6).astype(np.int64) for c in (x, y))
    shade = rng.integers(1, len(colours), (64, 64))[column % 64, line % 64]
    return np.where(((column + line) % 2 == 0)[..., None], colours[0], colours[shade])


def _clouds(rng, x, y, colours):
    """RGB ``[S, S, 3]``: three of the ``colours [4, 3]``, mixed in proportions that vary as smooth noise.

    ``x``, ``y``: the positions of the pixels, ``[S, S]`` each. ``rng`` draws the pattern.
    """
    fine, coarse = _waves(rng, x, y, period=14.0), _waves(rng, x, y, period=26.0)
    u, v = (1 / (1 + np.exp(-2 * noise)) for noise in (fine, coarse))  # to 0..1
    return (1 - u)[..., None] * colours[0] + u[..., None] * (
        (1 - v)[..., None] * colours[1] + v[..., None] * colours[2]
    )


def _dots(rng, x, y, colours):
    """RGB ``[S, S, 3]``: discs of random sizes and colours on a plain ground.

    ``x``, ``y``: the positions of the pixels, ``[S, S]`` each. ``colours [4, 3]``: the first is that of the ground.
    ``rng`` draws the pattern.
    """
    centres = _centres(rng, side=x.max(), spacing=8.5)
    nearest, distance = _nearest(x, y, centres)
    size, shade = rng.uniform(1.6, 3.6, len(centres)), rng.integers(1, len(colours), len(centres))
    return np.where((distance < size[nearest])[..., None], colours[shade[nearest]], colours[0])


def _rings(rng, x, y, colours):
    """Concentric rings in three colours around random points."""
    nearest, distance = _nearest(x, y, _centres(rng, side=x.max(), spacing=32.0))
    return colours[(np.floor(distance / 2.6).astype(np.int64) + nearest) % 3]


def _gradients(rng, x, y, colours):
    """RGB ``[S, S, 3]``: colours that change smoothly along one direction, which is bent by noise.

    ``x``, ``y``: the positions of the pixels, ``[S, S]`` each. ``colours``: four, ``[4, 3]``. ``rng`` draws the
    pattern.
    """
    # The position 0..4 on a closed path through the four colours; between two of them colours are interpolated.
    bend = 0.25 * _waves(rng, x, y, period=90.0, count=6)
    along = np.mod((x * np.cos(2.2) + y * np.sin(2.2)) / 30 + bend, 1) * 4
    start = np.floor(along).astype(np.int64) % 4
    fraction = (along - np.floor(along))[..., None]
    return (1 - fraction) * colours[start] + fraction * colours[(start + 1) % 4]


def _bricks(rng, x, y, colours):
    """RGB ``[S, S, 3]``: a wall of bricks in random ones of three colours, with joints in the first of ``colours [4,
    3]``. ``x``, ``y``: the positions of the pixels, ``[S, S]`` each."""
    wide, tall, gap = 11.0, 5.5, 1.2
    line = np.floor(y / tall).astype(np.int64)
    shifted = x + (line % 2) * wide / 2  # every other line of bricks is shifted by half a brick
    column = np.floor(shifted / wide).astype(np.int64)
    # The colour of each brick, random; it repeats after 64 bricks.
    shade = rng.integers(1, len(colours), (64, 64))[column % 64, line % 64]
    joint = (np.mod(shifted, wide) < gap) | (np.mod(y, tall) < gap)
    return np.where(joint[..., None], colours[0], colours[shade])


def _facets(rng, x, y, colours):
    """RGB ``[S, S, 3]``: the Voronoi cells of random points, each with a gradient between two of the ``colours [4, 3]``
    in a random direction. ``x``, ``y``: the positions of the pixels, ``[S, S]`` each."""
    centres = _centres(rng, side=x.max(), spacing=13.0)
    cell, _ = _nearest(x, y, centres)
    direction, shade = rng.uniform(0, 2 * np.pi, len(centres)), rng.integers(0, len(colours), len(centres))
    dx, dy = x - centres[cell, 0], y - centres[cell, 1]
    light = np.clip(0.5 + (dx * np.cos(direction)[cell] + dy * np.sin(direction)[cell]) / 13, 0, 1)[..., None]
    return (1 - light) * colours[shade[cell]] + light * colours[(shade[cell] + 1) % len(colours)]


FAMILIES: tuple[Callable[..., np.ndarray], ...] = (
    _stripes, _clouds, _bricks, _dots, _facets, _rings, _checks, _gradients,
)  # fmt: skip
_ANY = (0, 255)
_SPANS = (
    (_ANY, LOW, HIGH), (HIGH, HIGH, _ANY), (_ANY, LOW, LOW), (LOW, HIGH, _ANY),
    (HIGH, LOW, _ANY), (_ANY, HIGH, HIGH), (LOW, LOW, _ANY), (_ANY, HIGH, LOW),
)  # fmt: skip
"""The ranges of red, green and blue in each texture. One channel is free, for variety, but never green, which
contributes most to how bright a colour looks."""


def _palette(rng: np.random.Generator, number: int) -> np.ndarray:
    """Four RGB colours ``[4, 3]`` of texture ``number``: each channel has one value in each quarter of its range in
    `_SPANS`."""
    spans = np.array(_SPANS[number % len(_SPANS)])
    steps = np.stack([rng.permutation(4) for _ in range(3)], axis=1) + rng.uniform(0.1, 0.9, (4, 3))
    return spans[:, 0] + (spans[:, 1] - spans[:, 0]) * steps / 4


@functools.lru_cache(maxsize=64)
def texture(number: int, side: int = 160, scale: float = 1.0) -> np.ndarray:
    """Texture ``number``, uint8 ``[side, side, 3]``, read-only; the same in every call.

    Its family is ``number % 8``. With every eight numbers, a family gets other colours and its pattern grows by a
    quarter. Two of the three channels stay out of the middle of 0..255 (see `LOW`, `HIGH`), so that inverting a texture
    is visible.

    Args:
      number: 0 or more.
      side: pixels.
      scale: pixels per unit of the pattern, whose parts are 3 to 30 units wide.

    Raises:
      ValueError: a negative number, or a side below 1.
    """
    if number < 0 or side < 1:
        raise ValueError(f"a texture needs number >= 0 and side >= 1, got {number} and {side}")
    family, cycle = number % len(FAMILIES), number // len(FAMILIES)
    # Random numbers that depend on the texture's number alone.
    rng = np.random.Generator(np.random.Philox(key=np.array([0x7E87, number], np.uint64)))
    colours = _palette(rng, family + cycle)
    unit = scale * 1.25**cycle
    # Drawn at twice the resolution and averaged, for smooth edges.
    ticks = (np.arange(side * _OVERSAMPLING) + 0.5) / (_OVERSAMPLING * unit)
    y, x = np.meshgrid(ticks, ticks, indexing="ij")
    fine = FAMILIES[family](rng, x, y, colours)
    drawn = fine.reshape(side, _OVERSAMPLING, side, _OVERSAMPLING, 3).mean(axis=(1, 3))
    out = np.clip(np.rint(drawn), 0, 255).astype(np.uint8)
    out.flags.writeable = False
    return out
