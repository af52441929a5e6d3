import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.random import example_keys
from xmodal_jax.preprocess import image as I

B, H, W = 7, 11, 13
IMAGES = jax.random.uniform(jax.random.key(1), (B, H, W, 3), minval=-1.0)
KEYS = example_keys(jax.random.key(0), jnp.arange(B))
ALL = I.AugmentConfig(2, 0.5, 0.5, 0.1, 0.2, 0.3, 0.5)
EACH = {
    "translate": lambda x, k: I.random_translate(x, k, pixels=3),
    "crop": lambda x, k: I.random_resized_crop(x, k, min_scale=0.3),
    "flip": I.random_flip,
    "jitter": lambda x, k: I.color_jitter(x, k, brightness=0.2, contrast=0.3, saturation=0.4),
    "grayscale": lambda x, k: I.random_grayscale(x, k, probability=0.5),
    "all": lambda x, k: I.augment(x, k, ALL),
}


@pytest.mark.parametrize("name", EACH)
def test_randomness_belongs_to_the_example(name):
    run = jax.jit(EACH[name])
    out = run(IMAGES, KEYS)
    assert out.shape == IMAGES.shape and float(jnp.abs(out).max()) <= 1.0 + 1e-5
    assert bool((out != IMAGES).any())
    order = jnp.array([3, 1, 6, 0, 2, 5, 4])
    np.testing.assert_allclose(run(IMAGES[order], KEYS[order]), out[order], atol=1e-6)
    np.testing.assert_array_equal(EACH[name](IMAGES, None), IMAGES)


def test_to_float():
    pixels = jnp.array([0, 255, 51], jnp.uint8)
    np.testing.assert_allclose(I.to_float(pixels), [-1.0, 1.0, -0.6], atol=1e-7)
    with pytest.raises(TypeError, match="uint8"):
        I.to_float(jnp.ones(3))


def test_resize_keeps_a_linear_ramp():
    ramp = jnp.broadcast_to(jnp.arange(12.0)[None, None, :, None], (2, 6, 12, 1))
    np.testing.assert_allclose(I.resize(ramp, 3, 6)[0, 0, 1:-1, 0], 2 * np.arange(6)[1:-1] + 0.5, atol=1e-5)
    assert I.resize(ramp[None], 5, 7).shape == (1, 2, 5, 7, 1)


def test_translate_is_a_shift():
    out = np.array(I.random_translate(IMAGES, KEYS, pixels=2))
    padded = np.pad(np.array(IMAGES), [(0, 0), (2, 2), (2, 2), (0, 0)], mode="edge")
    shifts = set()
    for image, source in zip(out, padded, strict=True):
        places = [
            (i, j) for i in range(5) for j in range(5) if np.array_equal(source[i : i + H, j : j + W], image)
        ]
        assert len(places) == 1
        shifts.update(places)
    assert len(shifts) > 3


def test_crop_of_a_ramp_is_a_part_of_the_ramp():
    """On ``x -> x`` a box of side s from corner c is ``c + s x``, with s in [sqrt(min_scale), 1]."""
    ramp = jnp.broadcast_to((jnp.arange(W) + 0.5)[None, None, :, None], (B, H, W, 1))
    out = np.array(I.random_resized_crop(ramp, KEYS, min_scale=0.25))[:, 0, 3:-3, 0]
    slopes = np.diff(out, axis=1)
    np.testing.assert_allclose(slopes, np.broadcast_to(slopes[:, :1], slopes.shape), atol=1e-4)
    assert slopes.min() >= 0.5 - 1e-4 and slopes.max() <= 1.0 + 1e-4 and np.ptp(slopes[:, 0]) > 0.1
    start = out[:, 0] - slopes[:, 0] * 3.5  # the corner of the box: inside the image, with its other end
    assert (start > -1e-3).all() and (start + W * slopes[:, 0] < W + 1e-3).all()


def test_flip_and_grayscale_happen_or_not():
    flipped = np.array(I.random_flip(IMAGES, KEYS))
    grey = np.array(I.random_grayscale(IMAGES, KEYS, probability=0.5))
    kinds = set()
    for image, f, g in zip(np.array(IMAGES), flipped, grey, strict=True):
        assert np.array_equal(f, image) or np.array_equal(f, image[:, ::-1])
        luma = [[colorsys.rgb_to_yiq(*pixel)[0] for pixel in row] for row in image]
        if not np.array_equal(g, image):
            # colorsys rounds BT.601's weights to two digits
            np.testing.assert_allclose(g, np.array(luma)[:, :, None] * np.ones(3), atol=1e-2)
        kinds.add((np.array_equal(f, image), np.array_equal(g, image)))
    assert len(kinds) >= 3


def test_jitter_ranges():
    flat = jnp.full((B, H, W, 3), 0.25)
    out = I.color_jitter(flat, KEYS, brightness=0.5, contrast=0.9)
    change = np.array(out - flat)[:, 0, 0, 0]  # a flat image has no contrast: only the brightness moves
    assert np.abs(change).max() <= 0.5 and len(np.unique(change)) == B
    out = I.color_jitter(IMAGES * 0.5, KEYS, contrast=0.4)
    ratio = np.array(out.std((1, 2)) / (IMAGES * 0.5).std((1, 2)))
    assert (np.abs(ratio - 1) <= 0.4 + 1e-5).all() and np.ptp(ratio) > 0.1


def test_config_errors():
    for field, value in dict(
        translate=-1, min_crop_scale=0.0, flip=1.5, grayscale=-0.1, contrast=-1.0
    ).items():
        with pytest.raises(ValueError, match=field):
            I.AugmentConfig(**{field: value})
    with pytest.raises(ValueError, match="three colour"):
        I.random_grayscale(IMAGES[..., :1], KEYS, probability=0.5)
