import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import latent as oracle
from xmodal_jax.metrics.reconstruction import mse, psnr, ssim


def make(shape=(3, 23, 19, 2), noise=0.1, seed=0):
    """Smooth images and noisy ones of them, in [0, 1]."""
    rng = np.random.default_rng(seed)
    b, h, w, c = shape
    phase = rng.uniform(0, 6, (b, 1, 1, c))
    y, x = np.arange(h)[None, :, None, None] / 5, np.arange(w)[None, None, :, None] / 3
    a = 0.5 + 0.4 * np.sin(x + phase) * np.cos(y - phase)
    return np.float32(a), np.float32(np.clip(a + noise * rng.normal(size=shape), 0, 1))


def test_mse_and_psnr_are_the_definitions():
    a, b = make()
    square = ((np.float64(a) - np.float64(b)) ** 2).reshape(3, -1).mean(1)
    np.testing.assert_allclose(mse(a, b), square, rtol=1e-5)
    np.testing.assert_allclose(psnr(a, b), 10 * np.log10(1 / square), rtol=1e-5)
    np.testing.assert_allclose(psnr(255 * a, 255 * b, data_range=255.0), psnr(a, b), rtol=1e-5)
    assert np.all(np.asarray(mse(a, a)) == 0) and np.all(np.isposinf(psnr(a, a)))
    np.testing.assert_allclose(mse(a[:, 0, 0], b[:, 0, 0]), ((a - b)[:, 0, 0] ** 2).mean(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "window", "sigma"),
    [((3, 23, 19, 2), 11, 1.5), ((2, 11, 13, 3), 11, 1.5), ((2, 17, 7, 1), 7, 2.3), ((1, 9, 8, 1), 4, 0.7)],
)
@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_ssim_is_the_oracles(shape, window, sigma, noise):
    a, b = make(shape, noise)
    expected = [oracle.ssim(x, y, window, sigma) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b, window=window, sigma=sigma), expected, atol=1e-5)
    patches = [oracle.ssim_from_patches(x, y, window, sigma) for x, y in zip(a[:1], b[:1], strict=True)]
    np.testing.assert_allclose(expected[:1], patches, rtol=1e-9)


def test_ssim_of_other_ranges():
    a, b = make()
    np.testing.assert_allclose(ssim(255 * a, 255 * b, data_range=255.0), ssim(a, b), rtol=1e-5)
    expected = [oracle.ssim(x, y, data_range=2.0) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b, data_range=2.0), expected, atol=1e-5)
    assert np.max(np.abs(np.asarray(ssim(a, b)) - expected)) > 1e-3


def test_ssim_of_flat_images_is_their_luminance():
    """Nothing is left of the variances by rounding, where these are 0 exactly."""
    a, b = jnp.full((1, 13, 11, 1), 0.7), jnp.full((1, 13, 11, 1), 0.2)
    np.testing.assert_allclose(ssim(a, b), (2 * 0.14 + 1e-4) / (0.49 + 0.04 + 1e-4), rtol=1e-5)


@given(st.integers(0, 99), st.floats(0.0, 1.0))
def test_ssim_properties(seed, noise):
    """Symmetric, 1 for copies, bounded, alike for mirrored images, and each example on its own."""
    a, b = make((3, 13, 11, 2), noise, seed)
    value = np.asarray(ssim(a, b))
    np.testing.assert_array_equal(value, ssim(b, a))
    np.testing.assert_allclose(ssim(b, b), 1.0, atol=1e-6)
    assert np.all(value <= 1 + 1e-6) and np.all(value >= -1 - 1e-6)
    np.testing.assert_allclose(ssim(a[:, ::-1], b[:, ::-1]), value, atol=1e-5)
    np.testing.assert_allclose(ssim(a[::-1], b[::-1]), value[::-1], atol=1e-6)


def test_ssim_falls_with_noise():
    values = [float(ssim(*make(noise=noise)).mean()) for noise in (0.0, 0.02, 0.1, 0.5)]
    assert values == sorted(values, reverse=True) and values[0] > 0.999 and values[-1] < 0.3


def test_all_are_under_jit_and_have_gradients():
    a, b = map(jnp.asarray, make())
    for metric in (mse, psnr, ssim):
        compiled = jax.jit(metric)
        np.testing.assert_allclose(compiled(a, b), metric(a, b), rtol=1e-4)
        gradient = np.asarray(jax.jit(jax.grad(lambda x, metric=metric: metric(a, x).sum()))(b))
        length = np.linalg.norm(gradient)
        near = [np.asarray(compiled(a, jnp.asarray(b + s * gradient / length))) for s in (1e-3, -1e-3)]
        np.testing.assert_allclose((near[0] - near[1]).sum() / 2e-3, length, rtol=0.02)


def test_half_precision_is_computed_in_single():
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in make())
    for metric in (mse, psnr, ssim):
        value = metric(a, b)
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, metric(a.astype(jnp.float32), b.astype(jnp.float32)))


def test_refusals():
    a, b = make()
    with pytest.raises(ValueError, match="images of 23x10 pixels do not hold a window of 11"):
        ssim(a[:, :, :10], b[:, :, :10])
    with pytest.raises(ValueError, match=r"must be \[batch, height, width, channels\]"):
        ssim(a[0], b[0])
    for metric in (mse, psnr, ssim):
        with pytest.raises(ValueError, match="of one shape"):
            metric(a, b[..., :1])
        with pytest.raises(ValueError, match="divide uint8 images by 255"):
            metric(np.uint8(255 * a), np.uint8(255 * b))
    with pytest.raises(ValueError, match="of one shape"):
        mse(a[:, 0, 0, 0], b[:, 0, 0, 0])
    for setting, value in (("window", 0), ("sigma", 0.0), ("data_range", -1.0)):
        with pytest.raises(ValueError, match=f"{setting} must be positive, got {value}"):
            ssim(a, b, **{setting: value})
    with pytest.raises(ValueError, match="data_range must be positive"):
        psnr(a, b, data_range=0.0)


@pytest.fixture(scope="module")
def peer():
    """torchmetrics' ssim.py alone: the package imports torchvision, which this metric does not need."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None:
        pytest.skip("needs torchmetrics")
    (root,) = spec.submodule_search_locations
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("", ".functional", ".functional.image"):
            package = types.ModuleType("torchmetrics" + folder)
            package.__path__ = [root + folder.replace(".", "/")]
            patch.setitem(sys.modules, package.__name__, package)
        for name in ("", ".checks", ".distributed"):
            module = types.ModuleType("torchmetrics.utilities" + name)
            module.__getattr__ = lambda name: lambda *args: None  # checks of shapes, and means over processes
            patch.setitem(sys.modules, module.__name__, module)
        yield importlib.import_module("torchmetrics.functional.image.ssim")
        for name in ("ssim", "utils"):
            sys.modules.pop(f"torchmetrics.functional.image.{name}", None)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_is_torchmetrics_within_the_border(peer, noise):
    """It mirrors the image at the border and takes the mean over all places; the map within is the same."""
    import torch

    a, b = make((3, 29, 23, 3), noise)
    mean, places = peer._ssim_update(
        *(torch.tensor(np.float64(x)).permute(0, 3, 1, 2) for x in (a, b)),
        data_range=1.0,
        return_full_image=True,
    )
    inner = places[:, :, 5:-5, 5:-5].mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(ssim(a, b), inner, atol=1e-5)
    assert np.max(np.abs(mean.numpy() - inner)) > 1e-4  # what the border does
