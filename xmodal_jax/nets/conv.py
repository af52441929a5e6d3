"""Convolutions with the parameters and results of ``nn.Conv``, and gradients that are fast on every platform.

The gradients that ``lax`` derives are convolutions with permuted axes and a reversed kernel. The compilers for GPUs and
TPUs recognize these, so that they are used there (`nets.conv_lax`). On a CPU they take up to 150 times as long as
necessary; there the gradients of `nets.conv_cpu` are used.

A convolution ``y = x * k`` is linear in ``x`` and in ``k``. The three bilinear maps

    ``correlate(x, k) -> y``,   ``input_gradient(y, k) -> x``,   ``kernel_gradient(x, y) -> k``

are each other's derivatives, so that gradients of any order are compositions of the three (a gradient penalty is as
fast as a gradient). Reverse mode only: ``jax.jvp`` and ``jax.jacfwd`` do not work with ``jax.custom_vjp``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from xmodal_jax.nets import conv_cpu, conv_lax
from xmodal_jax.nets.conv_lax import Geometry

Padding = str | int | Sequence[int | tuple[int, int]]
"""As of ``nn.Conv``: "SAME", "VALID", one number for all borders, or one or two numbers per spatial axis."""


def apply_mask(x: Array, mask: Array | None) -> Array:
    """Sets ``x [B, L, ...]`` to zero where the mask ``[B, L]`` is False; with None returns ``x``."""
    if mask is None:
        return x
    return jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x, jnp.zeros_like(x))


def _by_platform(a, b, cpu: Callable, default: Callable):
    """``cpu(a, b)`` on a CPU and ``default(a, b)`` elsewhere; both compute the same bilinear map of ``a`` and ``b``.

    The platform is that for which the program is compiled, even if it is compiled on a machine without that platform.
    What is fast on a CPU depends on the sizes: where one is only a symbol, as in an exported program of any batch size,
    ``default`` is computed everywhere.
    """
    if not all(isinstance(n, int) for n in (*a.shape, *b.shape)):
        return default(a, b)

    @jax.custom_batching.custom_vmap
    def bilinear(a, b):
        return lax.platform_dependent(a, b, cpu=cpu, default=default)

    @bilinear.def_vmap
    def batched(axis_size, in_batched, a, b):
        """The rule for ``bilinear`` under ``vmap``: the result, and True as it has the mapped axis first.

        ``in_batched``: two booleans, whether ``a`` and whether ``b`` has the mapped axis, of size ``axis_size``.
        """
        # Under vmap over input and kernel (several seeds or modalities at once) XLA makes a grouped convolution, which
        # on a CPU is three times slower than one convolution after the other.
        if all(in_batched):
            one_by_one = functools.partial(conv_cpu.one_by_one, bilinear)
            return lax.platform_dependent(a, b, cpu=one_by_one, default=jax.vmap(default)), True
        axes = tuple(0 if is_batched else None for is_batched in in_batched)
        return lax.platform_dependent(a, b, cpu=jax.vmap(cpu, axes), default=jax.vmap(default, axes)), True

    return bilinear(a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution of neural networks: ``y[n, i, o] = sum_{t, c} x[n, s i + t - p, c] k[t, c, o]``.

    ``s`` is the stride and ``p`` the padding. ``x [N, *input_size, C]`` and ``kernel [*kernel_size, C, O]`` have the
    same dtype; the result is ``[N, *output_size, O]``. ``geometry`` has the sizes, the stride and the padding.
    """
    cpu = functools.partial(conv_cpu.correlate, geometry=geometry)
    return _by_platform(x, kernel, cpu, functools.partial(conv_lax.correlate, geometry=geometry))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def input_gradient(dy: Array, kernel: Array, geometry: Geometry) -> Array:
    """The gradient of :func:`correlate` with respect to ``x [N, *input_size, C]``, given that of its result.

    ``dy [N, *output_size, O]``, ``kernel [*kernel_size, C, O]``. Also known as the transposed convolution.

    ``geometry`` has the sizes, the stride and the padding of the convolution. The function has a derivative rule of its
    own (``custom_vjp``), made of the three maps of this module: gradients of this gradient are then as fast.
    """
    # On a CPU, XLA's program for this gradient takes up to 150 times as long as `conv_cpu`. The compilers for GPUs and
    # TPUs recognize the gradient where only the names of the axes are swapped: permute=False, no array is transposed.
    cpu = functools.partial(conv_cpu.input_gradient, geometry=geometry)
    default = functools.partial(conv_lax.input_gradient, geometry=geometry, permute=False)
    return _by_platform(dy, kernel, cpu, default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def kernel_gradient(x: Array, dy: Array, geometry: Geometry) -> Array:
    """The gradient of :func:`correlate` with respect to ``kernel [*kernel_size, C, O]``, given that of its result.

    ``x [N, *input_size, C]``, ``dy [N, *output_size, O]``.

    ``geometry`` has the sizes, the stride and the padding of the convolution. The function has a derivative rule of its
    own (``custom_vjp``), made of the three maps of this module: gradients of this gradient are then as fast.
    """
    # On a CPU, XLA's program for this gradient takes up to 150 times as long as `conv_cpu`. The compilers for GPUs and
    # TPUs recognize the gradient where only the names of the axes are swapped: permute=False, no array is transposed.
    cpu = functools.partial(conv_cpu.kernel_gradient, geometry=geometry)
    default = functools.partial(conv_lax.kernel_gradient, geometry=geometry, permute=False)
    return _by_platform(x, dy, cpu, default)


def correlate_groups(x: Array, kernel: Array, groups: int, geometry: Geometry) -> Array:
    """:func:`correlate` of each of ``groups`` groups of channels with its own part of the features.

    ``x [N, *input_size, C]``, ``kernel [*kernel_size, C // groups, O]``; the result is ``[N, *output_size, O]``. Group
    g takes the g-th of ``groups`` equal pieces of the channels, and makes the g-th piece of the features. On a CPU this
    is many times faster than a grouped convolution of ``lax``, whose gradients XLA computes without a matrix product.
    """
    # [..., C] to [..., groups, C / groups]; a batch of convolutions over the axis of the groups.
    x = x.reshape(*x.shape[:-1], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
    group_axis = x.ndim - 2
    one_group = lambda x, kernel: correlate(x, kernel, geometry)
    y = jax.vmap(one_group, in_axes=(group_axis, kernel.ndim - 2), out_axes=group_axis)(x, kernel)
    return y.reshape(*y.shape[:-2], -1)


def _save_operands(function: Callable) -> Callable:
    """The forward pass of a ``custom_vjp``: the result, and the operands for the backward pass."""
    return lambda a, b, geometry: (function(a, b, geometry), (a, b))


def _correlate_backward(geometry, operands, dy):
    """The gradients of ``correlate(x, kernel) -> y`` with respect to ``x`` and ``kernel``."""
    x, kernel = operands
    return input_gradient(dy, kernel, geometry), kernel_gradient(x, dy, geometry)


def _input_gradient_backward(geometry, operands, dx):
    """The gradients of ``input_gradient(y, kernel) -> x`` with respect to ``y`` and ``kernel``."""
    y, kernel = operands
    return correlate(dx, kernel, geometry), kernel_gradient(dx, y, geometry)


def _kernel_gradient_backward(geometry, operands, dk):
    """The gradients of ``kernel_gradient(x, y) -> k`` with respect to ``x`` and ``y``."""
    x, y = operands
    return input_gradient(y, dk, geometry), correlate(x, dk, geometry)


correlate.defvjp(_save_operands(correlate), _correlate_backward)
input_gradient.defvjp(_save_operands(input_gradient), _input_gradient_backward)
kernel_gradient.defvjp(_save_operands(kernel_gradient), _kernel_gradient_backward)


def _match_varying_axes(*arrays):
    """The arrays, marked as varying over all mesh axes over which any of them varies (no effect outside ``shard_map``).

    ``jax.custom_vjp`` does not do this by itself. The gradient of an array that did not vary over an axis, such as a
    kernel, is thereby summed over the devices of that axis.
    """
    # For each array the set of mesh axes that it varies over: empty outside of shard_map.
    varying = [
        getattr(getattr(jax.typeof(a), "manual_axis_type", None), "varying", frozenset()) for a in arrays
    ]
    union = frozenset().union(*varying)
    return tuple(
        lax.pcast(a, tuple(sorted(union - axes)), to="varying") if union - axes else a
        for a, axes in zip(arrays, varying, strict=True)
    )


def _per_axis(value: int | Sequence[int] | None, spatial: int) -> tuple[int, ...]:
    """One value for each of the ``spatial`` axes: a single number counts for all axes, and None means 1."""
    if value is None:
        value = 1
    values = (value,) * spatial if isinstance(value, int) else tuple(value)
    if len(values) != spatial:
        raise ValueError(f"expected {spatial} values, one per spatial axis, got {values}")
    return values


def _explicit_padding(padding: Padding, spatial: int) -> tuple[tuple[int, int], ...]:
    """Padding as ``(before, after)`` for each of the ``spatial`` axes, from one number, or a number or pair per
    axis."""
    pairs = (padding,) * spatial if isinstance(padding, int) else tuple(padding)
    if len(pairs) != spatial:
        raise ValueError(f"padding needs one entry for each of {spatial} spatial axes, got {padding!r}")
    return tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in pairs)


def conv_geometry(
    input_size: Sequence[int], kernel_size: Sequence[int], strides: Sequence[int], padding: Padding
) -> Geometry:
    """The `Geometry` of a convolution with these sizes, one entry per spatial axis; the padding is made explicit.

    Raises:
      ValueError: the padding is unknown, or has not one entry per spatial axis.
    """
    input_size, kernel_size, strides = tuple(input_size), tuple(kernel_size), tuple(strides)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"padding must be 'SAME', 'VALID' or explicit numbers, got {padding!r}")
        pads = lax.padtype_to_pads(input_size, kernel_size, strides, padding)
        pairs = tuple((int(before), int(after)) for before, after in pads)
    else:
        pairs = _explicit_padding(padding, len(kernel_size))
    return Geometry(input_size, kernel_size, strides, pairs)


def conv_transpose_geometry(
    input_size: Sequence[int], kernel_size: Sequence[int], strides: Sequence[int], padding: Padding
) -> Geometry:
    """The geometry of the convolution whose input gradient is ``lax.conv_transpose`` with these arguments.

    Along an axis with input size n, kernel size k and stride s, ``lax.conv_transpose`` pads the dilated input by ``(a,
    b)``; the convolution that it transposes then has the padding ``(k - 1 - a, k - 1 - b)``, which may be negative.

    Raises:
      ValueError: the padding is unknown, or has not one entry per spatial axis.
    """
    if isinstance(padding, str):
        padding = [_transpose_padding(padding, k, s) for k, s in zip(kernel_size, strides, strict=True)]
    pairs = _explicit_padding(padding, len(tuple(kernel_size)))
    output_size, conv_padding = [], []
    for n, k, s, (a, b) in zip(input_size, kernel_size, strides, pairs, strict=True):
        # The dilated input has (n - 1) s + 1 pixels.
        output_size.append((n - 1) * s + 1 + a + b - k + 1)
        conv_padding.append((k - 1 - a, k - 1 - b))
    # The output of the transposed convolution is the input of the convolution.
    return Geometry(tuple(output_size), tuple(kernel_size), tuple(strides), tuple(conv_padding))


def _transpose_padding(padding: str, k: int, s: int) -> tuple[int, int]:
    """``(before, after)``: how many pixels ``lax.conv_transpose`` pads an axis of its dilated input by.

    ``padding`` is "SAME" or "VALID", ``k`` the size of the kernel and ``s`` the stride. The formulas are those of
    ``lax.conv_transpose``: the output then has ``n s`` ("SAME") or ``n s + max(k - s, 0)`` ("VALID") pixels for ``n``
    of the input.
    """
    if padding == "SAME":
        total = k + s - 2
        before = k - 1 if s > k - 1 else -(-total // 2)
    elif padding == "VALID":
        total = k + s - 2 + max(k - s, 0)
        before = k - 1
    else:
        raise ValueError(f"padding must be 'SAME', 'VALID' or explicit numbers, got {padding!r}")
    return before, total - before


class Conv(nn.Module):
    """``nn.Conv`` with a fast gradient: ``[B, *spatial, C] -> [B, *spatial', features]``.

    It has the same parameters (``kernel [*kernel_size, C // feature_group_count, features]``, ``bias [features]``),
    defaults and results. With ``feature_group_count > 1`` it is a convolution of each group of channels.

    Raises:
      ValueError: the input does not have ``len(kernel_size) + 2`` axes, or the padding is unknown.
    """

    features: int
    kernel_size: Sequence[int]
    strides: int | Sequence[int] | None = None
    padding: Padding = "SAME"
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial2 features"]:
        """The convolution of ``x [B, *spatial, C]`` with a learned kernel, plus a bias: ``[B, *spatial',
        features]``."""
        size = tuple(self.kernel_size)
        _check_rank(x, size)
        shape = (*size, x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        strides = _per_axis(self.strides, len(size))  # one for each spatial axis
        geometry = conv_geometry(x.shape[1:-1], size, strides, self.padding)
        # Input and kernel must vary over the same mesh axes, so that the kernel's gradient is summed over devices.
        x, kernel = _match_varying_axes(x, kernel)
        if self.feature_group_count == 1:
            y = correlate(x, kernel, geometry)
        else:
            y = correlate_groups(x, kernel, self.feature_group_count, geometry)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


class ConvTranspose(nn.Module):
    """``nn.ConvTranspose`` with a fast gradient: ``[B, *spatial, C] -> [B, *spatial', features]``.

    It has the same parameters (``kernel [*kernel_size, C, features]``, ``bias [features]``), defaults and results.
    ``padding="SAME"`` multiplies the size by the stride.

    Raises:
      ValueError: the input does not have ``len(kernel_size) + 2`` axes, or the padding is unknown.
    """

    features: int
    kernel_size: Sequence[int]
    strides: int | Sequence[int] | None = None
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial2 features"]:
        """The transposed convolution of ``x [B, *spatial, C]``, plus a bias: ``[B, *spatial', features]``."""
        size = tuple(self.kernel_size)
        _check_rank(x, size)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        geometry = conv_transpose_geometry(
            x.shape[1:-1], size, _per_axis(self.strides, len(size)), self.padding
        )
        # A transposed convolution is the gradient of a convolution with respect to its input. That gradient flips the
        # kernel, which lax.conv_transpose (and Flax) does not; so flip it first.
        flipped = jnp.swapaxes(jnp.flip(kernel, range(len(size))), -1, -2)
        # Input and kernel must vary over the same mesh axes, so that the kernel's gradient is summed over devices.
        y = input_gradient(*_match_varying_axes(x, flipped), geometry)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _check_rank(x, kernel_size: tuple[int, ...]) -> None:
    """Raises ValueError if ``x`` is not ``[batch, *spatial, channels]`` with the kernel's number of spatial axes."""
    if x.ndim != len(kernel_size) + 2:
        raise ValueError(
            f"a kernel of size {kernel_size} needs an input with {len(kernel_size) + 2} axes "
            f"[batch, {', '.join('HWD'[: len(kernel_size)])}, channels], got shape {x.shape}"
        )
