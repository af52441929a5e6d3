"""The geometry of a convolution, and its three bilinear maps (see `nets.conv`) as ``lax`` convolutions."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Geometry(NamedTuple):
    """The static part of a convolution: sizes, strides and padding, one entry per spatial axis."""

    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def output_size(self) -> tuple[int, ...]:
        """Size of the convolution's result: ``(n + padding - k) // s + 1`` for an input of size ``n``, a kernel of size
        ``k`` and the stride ``s``."""
        return tuple(
            (n + sum(p) - k) // s + 1
            for n, k, s, p in zip(self.input_size, self.kernel_size, self.strides, self.padding, strict=True)
        )


def _dimension_numbers(spatial: int) -> tuple[str, str, str]:
    """The axes of input, kernel and output for ``lax``, such as ``("NHWC", "HWIO", "NHWC")``."""
    axes = "HWD"[:spatial]
    return (f"N{axes}C", f"{axes}IO", f"N{axes}C")


def correlate(x: Array, kernel: Array, *, geometry: Geometry) -> Array:
    """The convolution of ``x [N, *input_size, C]`` with ``kernel [*kernel_size, C, O]``.

    Returns:
      ``[N, *output_size, O]``.

    ``geometry`` has the sizes, the strides and the padding.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        dimension_numbers=_dimension_numbers(len(geometry.strides)),
    )


def input_gradient(dy: Array, kernel: Array, *, geometry: Geometry, permute: bool) -> Array:
    """The gradient with respect to ``x [N, *input_size, C]``: ``dy``, dilated by the strides, convolved with the
    flipped kernel ``[*kernel_size, C, O]``.

    With ``permute`` the kernel's channel axes are swapped in memory first, which makes it fast on a CPU; without it
    only the names of the axes are swapped, which other platforms recognize.

    ``geometry`` has the sizes, the strides and the padding of the convolution.
    """
    spatial = len(geometry.strides)
    kernel = jnp.flip(kernel, range(spatial))
    image, hwio, _ = _dimension_numbers(spatial)
    # Per axis: input size n, output size m (dilated: (m - 1) s + 1), kernel size k, stride s, padding before the input.
    padding = [
        (k - 1 - before, n + before - (m - 1) * s - 1)
        for n, m, k, s, (before, _) in zip(
            geometry.input_size,
            geometry.output_size,
            geometry.kernel_size,
            geometry.strides,
            geometry.padding,
            strict=True,
        )
    ]
    return lax.conv_general_dilated(
        dy,
        jnp.swapaxes(kernel, -1, -2) if permute else kernel,
        (1,) * spatial,
        padding,
        lhs_dilation=geometry.strides,
        dimension_numbers=(image, hwio if permute else hwio[:-2] + "OI", image),
    )


def kernel_gradient(x: Array, dy: Array, *, geometry: Geometry, permute: bool) -> Array:
    """The gradient with respect to the kernel ``[*kernel_size, C, O]``: ``x`` convolved with ``dy``, which is dilated
    by the strides and takes the place of a kernel; the convolution sums over the batch instead of channels.

    With ``permute`` the arrays' axes are transposed in memory first, which makes it fast on a CPU; without it only the
    names of the axes are swapped, which other platforms recognize.

    ``geometry`` has the sizes, the strides and the padding of the convolution.
    """
    spatial = len(geometry.strides)
    image, hwio, _ = _dimension_numbers(spatial)
    axes = hwio[:-2]  # the names of the spatial axes, such as "HW"
    # Per axis: input size n, output size m (dilated: (m - 1) s + 1), kernel size k, stride s, padding before the input.
    padding = [
        (before, k + (m - 1) * s - n - before)
        for n, m, k, s, (before, _) in zip(
            geometry.input_size,
            geometry.output_size,
            geometry.kernel_size,
            geometry.strides,
            geometry.padding,
            strict=True,
        )
    ]
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1,) * spatial,
        padding=padding,
        rhs_dilation=geometry.strides,
    )
    if not permute:
        # The channels of x play the part of the batch, the batch that of the channels.
        return convolve(x, dy, dimension_numbers=(f"C{axes}N", f"I{axes}O", f"{axes}NC"))
    dk = convolve(jnp.swapaxes(x, 0, -1), jnp.moveaxis(dy, 0, -2), dimension_numbers=(image, hwio, image))
    return jnp.moveaxis(dk, 0, -2)
