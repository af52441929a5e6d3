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
    """Smooth noise of about unit variance: plane waves of random directions, phases and periods near ``period``."""
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count))
    speed = 2 * np.pi / (period * rng.uniform(0.7, 1.6, count))
    parts = zip(angle, phase, speed, strict=True)
    return sum(np.cos(s * (x * np.cos(a) + y * np.sin(a)) + p) for a, p, s in parts) * np.sqrt(2 / count)


def _centres(rng: np.random.Generator, side: float, spacing: float) -> np.ndarray:
    """Points ``[K, 2]`` of a grid that extends beyond the image, each moved at random within its cell."""
    at = np.arange(-spacing, side + spacing, spacing)
    grid = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    return grid + rng.uniform(0.1, 0.9, grid.shape) * spacing


def _nearest(x: _Field, y: _Field, centres: np.ndarray) -> tuple[np.ndarray, _Field]:
    """``(index, distance)`` of the centre that is nearest to each pixel."""
    best, which = np.full(x.shape, np.inf), np.zeros(x.shape, np.int64)
    for k, (cx, cy) in enumerate(centres):
        distance = (x - cx) ** 2 + (y - cy) ** 2
        closer = distance < best
        best[closer], which[closer] = distance[closer], k
    return which, np.sqrt(best)


# The families: RGB ``[S, S, 3]`` from random numbers, coordinates in units of the pattern, and four colours ``[4, 3]``.


def _stripes(rng, x, y, colours):
    bend = 1.2 * _waves(rng, x, y, 45.0, 8)
    band = np.floor((x * np.cos(0.6) + y * np.sin(0.6) + bend) / 4.5).astype(np.int64)
    return colours[band % 3]


def _checks(rng, x, y, colours):
    column, line = (np.floor(c / 6).astype(np.int64) for c in (x, y))
    shade = rng.integers(1, len(colours), (64, 64))[column % 64, line % 64]
    return np.where(((column + line) % 2 == 0)[..., None], colours[0], colours[shade])


def _clouds(rng, x, y, colours):
    fine, coarse = _waves(rng, x, y, 14.0), _waves(rng, x, y, 26.0)
    u, v = (1 / (1 + np.exp(-2 * w)) for w in (fine, coarse))
    return (1 - u)[..., None] * colours[0] + u[..., None] * (
        (1 - v)[..., None] * colours[1] + v[..., None] * colours[2]
    )


def _dots(rng, x, y, colours):
    centres = _centres(rng, x.max(), 8.5)
    which, distance = _nearest(x, y, centres)
    size, shade = rng.uniform(1.6, 3.6, len(centres)), rng.integers(1, len(colours), len(centres))
    return np.where((distance < size[which])[..., None], colours[shade[which]], colours[0])


def _rings(rng, x, y, colours):
    which, distance = _nearest(x, y, _centres(rng, x.max(), 32.0))
    return colours[(np.floor(distance / 2.6).astype(np.int64) + which) % 3]


def _gradients(rng, x, y, colours):
    # A position on the closed line through four colours.
    along = np.mod((x * np.cos(2.2) + y * np.sin(2.2)) / 30 + 0.25 * _waves(rng, x, y, 90.0, 6), 1) * 4
    first = np.floor(along).astype(np.int64) % 4
    part = (along - np.floor(along))[..., None]
    return (1 - part) * colours[first] + part * colours[(first + 1) % 4]


def _bricks(rng, x, y, colours):
    wide, tall, gap = 11.0, 5.5, 1.2
    line = np.floor(y / tall).astype(np.int64)
    shifted = x + (line % 2) * wide / 2
    column = np.floor(shifted / wide).astype(np.int64)
    shade = rng.integers(1, len(colours), (64, 64))[column % 64, line % 64]
    joint = (np.mod(shifted, wide) < gap) | (np.mod(y, tall) < gap)
    return np.where(joint[..., None], colours[0], colours[shade])


def _facets(rng, x, y, colours):
    centres = _centres(rng, x.max(), 13.0)
    which, _ = _nearest(x, y, centres)
    turn, shade = rng.uniform(0, 2 * np.pi, len(centres)), rng.integers(0, len(colours), len(centres))
    dx, dy = x - centres[which, 0], y - centres[which, 1]
    light = np.clip(0.5 + (dx * np.cos(turn)[which] + dy * np.sin(turn)[which]) / 13, 0, 1)[..., None]
    return (1 - light) * colours[shade[which]] + light * colours[(shade[which] + 1) % len(colours)]


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
    """Four RGB colours ``[4, 3]``, spread out within the ranges of `_SPANS`."""
    spans = np.array(_SPANS[number % len(_SPANS)])
    steps = np.stack([rng.permutation(4) for _ in range(3)], axis=1) + rng.uniform(0.1, 0.9, (4, 3))
    return spans[:, 0] + (spans[:, 1] - spans[:, 0]) * steps / 4


@functools.lru_cache(maxsize=64)
def texture(number: int, side: int = 160, scale: float = 1.0) -> np.ndarray:
    """Texture ``number``, uint8 ``[side, side, 3]``, read-only; the same in every call.

    It is of the family ``number % 8``; from one eight to the next, a family gets other colours and its pattern grows by
    a quarter. Two of the three channels stay out of the middle of 0..255 (see `LOW`, `HIGH`), so that inverting a
    texture is visible.

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
    rng = np.random.Generator(np.random.Philox(key=np.array([0x7E87, number], np.uint64)))
    colours = _palette(rng, family + cycle)
    unit = scale * 1.25**cycle
    at = (np.arange(side * _OVERSAMPLING) + 0.5) / (_OVERSAMPLING * unit)
    y, x = np.meshgrid(at, at, indexing="ij")
    fine = FAMILIES[family](rng, x, y, colours)
    drawn = fine.reshape(side, _OVERSAMPLING, side, _OVERSAMPLING, 3).mean(axis=(1, 3))
    out = np.clip(np.rint(drawn), 0, 255).astype(np.uint8)
    out.flags.writeable = False
    return out
