"""How near reconstructions are to the data, example by example; computed on the device and under jit."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def mse(a, b) -> Float[Array, "batch"]:
    """Mean of ``(a - b)^2`` over everything but the first axis, ``[B]``, in squared units of the values.

    Args:
      a, b: floats ``[B, ...]`` of one shape, such as images ``[B, H, W, C]`` in [0, 1]; computed in
        float32 at least.
    Raises:
      ValueError: if the shapes differ, there is no axis after the first, or the values are not floats.
    """
    a, b = _check_pair(a, b)
    return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def psnr(a, b, *, data_range: float = 1.0) -> Float[Array, "batch"]:
    """``10 log10(data_range^2 / mse)``, the peak signal-to-noise ratio in dB, ``[B]``; infinite for copies.

    The mean of these values over examples differs from the PSNR of the mean error, and is infinite if one example is a
    perfect copy: state which of the two you report.

    Args:
      a, b: as for :func:`mse`.
      data_range: largest minus smallest value that an image can have.
    Raises:
      ValueError: as :func:`mse`, or if ``data_range`` is not positive.
    """
    _check_positive(data_range=data_range)
    return 10.0 * (2.0 * math.log10(data_range) - jnp.log10(mse(a, b)))


def ssim(a, b, *, window: int = 11, sigma: float = 1.5, data_range: float = 1.0) -> Float[Array, "batch"]:
    r"""Structural similarity, ``[B]``: 1 for copies, at least -1 (Wang et al. 2004, eq. 13 to 17).

    .. math:: \frac{(2 \mu_a \mu_b + C_1)(2 \sigma_{ab} + C_2)}
              {(\mu_a^2 + \mu_b^2 + C_1)(\sigma_a^2 + \sigma_b^2 + C_2)}, \qquad
              C_1 = (0.01\, r)^2, \quad C_2 = (0.03\, r)^2

    with the means and (biased) variances under a Gaussian window of standard deviation ``sigma`` pixels, and the mean
    over channels and over the positions at which the window lies within the image. There is no padding and no
    downscaling of large images, as in scikit-image's ``gaussian_weights=True, use_sample_covariance=False``. Other
    implementations pad the border or convert to grey, so compare only values of the same one.

    Args:
      a, b: float images ``[B, H, W, C]`` of one shape; computed in float32 at least.
      window: pixels along each side of the window.
      sigma: standard deviation of the window, in pixels.
      data_range: r, the largest minus the smallest value that an image can have.
    Raises:
      ValueError: if the shapes differ or are not ``[B, H, W, C]``, the values are not floats, an image is
        smaller than the window, or a setting is not positive.
    """
    _check_positive(window=window, sigma=sigma, data_range=data_range)
    a, b = _check_pair(a, b)
    if a.ndim != 4:
        raise ValueError(f"images must be [batch, height, width, channels], got {list(a.shape)}")
    if min(a.shape[1:3]) < window:
        raise ValueError(
            f"images of {a.shape[1]}x{a.shape[2]} pixels do not hold a window of {window}: "
            "give a smaller window"
        )
    return _ssim(a, b, window, float(sigma), float(data_range))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _ssim(a, b, window, sigma, data_range):
    """The structural similarity of images ``[B, H, W, C]``, ``[B]``; see `ssim` for the equation and the arguments."""
    # A variance E x^2 - (E x)^2 loses digits where the mean is large: subtract the mean colour of both images first.
    centre = 0.5 * (a.mean(axis=(1, 2), keepdims=True) + b.mean(axis=(1, 2), keepdims=True))
    a, b = a - centre, b - centre
    # Under the window: E a, E b, E a^2 + E b^2 and E ab.
    mean_a, mean_b, square, product = (_window_mean(x, window, sigma) for x in (a, b, a * a + b * b, a * b))
    variance_sum = square - (mean_a * mean_a + mean_b * mean_b)
    covariance = product - mean_a * mean_b
    mean_a, mean_b = mean_a + centre, mean_b + centre
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2.0 * mean_a * mean_b + c1) * (2.0 * covariance + c2)
    denominator = (mean_a * mean_a + mean_b * mean_b + c1) * (variance_sum + c2)
    return jnp.mean(numerator / denominator, axis=(1, 2, 3))


def _window_mean(x, window, sigma):
    """Gaussian means of x ``[B, H, W, C]`` wherever the window fits: ``[B, H - window + 1, W - window + 1, C]``."""
    weights = np.exp(-0.5 * ((np.arange(window) - (window - 1) / 2) / sigma) ** 2)
    weights = [float(w) for w in weights / weights.sum()]
    # The 2-D Gaussian is a product of two 1-D ones: a weighted sum of shifted images along each axis. (A convolution
    # would be less precise on accelerators and slower on a CPU.)
    for axis in (1, 2):
        size = x.shape[axis] - window + 1
        x = sum(w * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i, w in enumerate(weights))
    return x


def _check_pair(a, b):
    """Both arrays in float32 at least, checked to be floats ``[B, ...]`` of one shape."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(
            f"two arrays [batch, ...] of one shape are needed, got {list(a.shape)} and {list(b.shape)}"
        )
    for x in (a, b):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"values must be floats, got {x.dtype}: divide uint8 images by 255 first")
    dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    return a.astype(dtype), b.astype(dtype)


def _check_positive(**settings):
    """Raises ValueError if one of the named settings is not positive."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
