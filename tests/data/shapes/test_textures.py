"""Textures: fixed, apart from each other, and never so gray that their inverse would not show."""

import numpy as np
import pytest

from xmodal_jax.data.shapes.textures import FAMILIES, texture


def test_a_texture_is_fixed_and_cannot_be_written_to():
    first = texture(3, 97).copy()
    texture.cache_clear()
    np.testing.assert_array_equal(texture(3, 97), first)
    assert first.shape == (97, 97, 3) and first.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        texture(3, 97)[0, 0] = 1
    with pytest.raises(ValueError, match="number >= 0"):
        texture(-1)


@pytest.mark.parametrize("number", range(2 * len(FAMILIES)))
def test_inverting_shows_everywhere_and_the_pattern_varies(number):
    drawn = texture(number).astype(int)
    change = np.abs(255 - 2 * drawn)
    # Two channels stay at least 53 from the middle of 0..255.
    assert (np.sort(change, axis=-1)[..., 1] >= 2 * (180 - 127.5) - 1).all()
    assert drawn.std(axis=(0, 1)).max() > 15
    # A crop tells where it is from: neither a flat colour nor the same in every place.
    corners = [drawn[a : a + 28, b : b + 28] for a, b in ((0, 0), (61, 17), (130, 101))]
    assert min(c.std(axis=(0, 1)).max() for c in corners) > 8
    assert np.abs(corners[0] - corners[1]).mean() > 3 and np.abs(corners[1] - corners[2]).mean() > 3


def test_textures_differ_in_colour_or_in_scale():
    colours = np.stack([texture(k).reshape(-1, 3).mean(axis=0) for k in range(2 * len(FAMILIES))])
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(len(colours))
    assert distance[: len(FAMILIES), : len(FAMILIES)].min() > 40  # families, at first sight
    again = np.diagonal(distance[: len(FAMILIES), len(FAMILIES) :])
    assert again.min() > 40  # a family, when it comes again


def test_scale_enlarges_the_pattern():
    # The mean of 2 x 2 pixels of a pattern at twice the scale is the pattern, where it does not change within them.
    small, large = texture(7, 80).astype(int), texture(7, 160, 2.0).astype(float)
    shrunk = large.reshape(80, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 2
