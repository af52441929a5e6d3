from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.pretrained import peers
from xmodal_jax.preprocess.image import to_float
from xmodal_jax.pretrained import images

GRIDS = [((7, 7), (11, 13)), ((7, 7), (3, 5)), ((5, 11), (13, 3)), ((13, 2), (1, 17)), ((3, 3), (3, 7))]


def run(found, *inputs, method=None):
    """What an encoder makes of inputs, compiled."""
    apply = jax.jit(lambda params, *inputs: found.module.apply({"params": params}, *inputs, method=method))
    return apply(found.params, *inputs)


def pictures(*shape, seed=0):
    """Random pixels of 0..255, as the encoders here take them, and what gives ``transformers`` the same, of a scale."""
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)

    def theirs(scale):
        mean, std = np.asarray(scale, np.float32)
        return peers.to_torch(np.moveaxis((pixels.astype(np.float32) / 255 - mean) / std, -1, -3))

    return to_float(jnp.asarray(pixels)), theirs


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("old, new", GRIDS)
def test_tables_are_resampled_as_by_pytorch(old, new, antialias):
    torch, _ = peers.import_transformers()
    table = np.random.default_rng(0).normal(size=(1, 2 + old[0] * old[1], 5)).astype(np.float32)
    found = images.make_resampler(old, new, before=2, antialias=antialias)(table)
    assert found.shape == (1, 2 + new[0] * new[1], 5)
    np.testing.assert_array_equal(found[:, :2], table[:, :2])
    grid = torch.from_numpy(table[:, 2:].reshape(1, *old, 5)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        grid, size=new, mode="bicubic", align_corners=False, antialias=antialias
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 5).numpy()
    np.testing.assert_allclose(found[:, 2:], expected, atol=1e-5)  # its weights are float32
    flat = images.make_resampler(old, new, before=2, antialias=antialias)(table[0])
    np.testing.assert_array_equal(flat, found[0])


def test_an_equal_grid_is_left_and_half_precision_is_not_rounded_again():
    assert images.make_resampler((5, 3), (5, 3)) is None
    table = np.random.default_rng(0).normal(size=(35, 2)).astype(ml_dtypes.bfloat16)
    change = images.make_resampler((5, 7), (3, 11))
    np.testing.assert_array_equal(change(table), change(table.astype(np.float32)))


@pytest.mark.parametrize("antialias", [False, True])
def test_weights_keep_constants_and_the_same_number_is_the_identity(antialias):
    for old, new in [(2, 31), (31, 2), (1, 3), (7, 11)]:
        weights = images.cubic_weights(old, new, antialias=antialias)
        np.testing.assert_allclose(weights.sum(axis=1), np.ones(new), atol=1e-6)
        np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)
    np.testing.assert_allclose(images.cubic_weights(11, 11, antialias=antialias), np.eye(11), atol=1e-6)


def test_the_processor_names_the_scale_of_pixels():
    def scale(**processor):
        return images.pixel_scale(SimpleNamespace(processor=SimpleNamespace(**processor)), images.HALF)

    assert images.pixel_scale(SimpleNamespace(), images.IMAGENET) == images.IMAGENET
    assert scale() == images.HALF
    assert scale(image_mean=[0.1] * 3) == ((0.1,) * 3, images.HALF[1])  # each of the two by itself
    assert scale(image_mean=[0, 0.25, 1], image_std=[1, 2, 3]) == ((0.0, 0.25, 1.0), (1.0, 2.0, 3.0))
    assert scale(do_normalize=False, image_mean=[0.1] * 3, image_std=[2.0] * 3) == ((0.0,) * 3, (1.0,) * 3)


def test_sizes():
    assert images.patch_grid(15, 5) == (3, 3) and images.patch_grid((15, 35), 5) == (3, 7)
    with pytest.raises(ValueError, match="--image-size, such as 15"):
        images.patch_grid((16, 15), 5)
    assert images.image_and_patch_size(SimpleNamespace(image_size=[15, 35], patch_size=[5, 5])) == (
        (15, 35),
        5,
    )
    assert images.image_and_patch_size(SimpleNamespace(image_size=15, patch_size=5)) == ((15, 15), 5)
    with pytest.raises(ValueError, match="only square patches"):
        images.image_and_patch_size(SimpleNamespace(image_size=15, patch_size=[5, 3]))
