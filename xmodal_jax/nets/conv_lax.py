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
        """Size of the result."""
        return tuple(
            (n + sum(p) - k) // s + 1
            for n, k, s, p in zip(self.input_size, self.kernel_size, self.strides, self.padding, strict=True)
        )


def _dimension_numbers(spatial: int) -> tuple[str, str, str]:
    axes = "HWD"[:spatial]
    return (f"N{axes}C", f"{axes}IO", f"N{axes}C")


def correlate(x: Array, kernel: Array, *, geometry: Geometry, groups: int = 1) -> Array:
    """The convolution of ``x [N, *input_size, C]`` with ``kernel [*kernel_size, C // groups, O]``.

    Returns:
      ``[N, *output_size, O]``.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        dimension_numbers=_dimension_numbers(len(geometry.strides)),
        feature_group_count=groups,
    )


def input_gradient(dy: Array, kernel: Array, *, geometry: Geometry, permute: bool) -> Array:
    """The gradient in ``x``: ``dy``, dilated by the strides, convolved with the flipped kernel.

    With ``permute`` the kernel's axes are transposed first, which the CPU needs; without, only their names are swapped.
    """
    spatial = len(geometry.strides)
    kernel = jnp.flip(kernel, range(spatial))
    image, hwio, _ = _dimension_numbers(spatial)
    padding = [
        (k - 1 - lo, n + lo - (m - 1) * s - 1)
        for n, m, k, s, (lo, _) in zip(
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
    """The gradient in ``kernel``: ``x`` convolved with ``dy`` dilated by the strides; the sum is over the batch.

    With ``permute`` the arrays' axes are transposed first, which the CPU needs; without, only their names are swapped.
    """
    spatial = len(geometry.strides)
    image, hwio, _ = _dimension_numbers(spatial)
    axes = hwio[:-2]
    padding = [
        (lo, k + (m - 1) * s - n - lo)
        for n, m, k, s, (lo, _) in zip(
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
        return convolve(x, dy, dimension_numbers=(f"C{axes}N", f"I{axes}O", f"{axes}NC"))
    dk = convolve(jnp.swapaxes(x, 0, -1), jnp.moveaxis(dy, 0, -2), dimension_numbers=(image, hwio, image))
    return jnp.moveaxis(dk, 0, -2)
