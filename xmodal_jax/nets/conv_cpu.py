"""The three bilinear maps of a convolution in the forms that are fast on a CPU.

XLA's CPU convolution is fast in its standard layout (channels last, kernel ``HWIO``) only, and for inputs at least
as large as the kernel. So the axes are permuted *before* a standard convolution, which keeps its speed inside
``lax.scan`` also, and small inputs are padded beforehand. Where there are channels enough, kernels of 2x2 and 3x3
run as matrix products by Winograd's algorithm F(2, r) (Lavin & Gray 2016, arXiv:1509.09308, section 4.1), with
(2/3)^2 and (9/16) of the multiplications.

A convolution of stride ``s`` is one of stride 1 over blocks of ``s`` pixels, whose pixels count as channels, with a
kernel of ``ceil(k / s)`` blocks: 4x4 of stride 2 is 2x2 over four times as many channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from xmodal_jax.nets import conv_forms
from xmodal_jax.nets.conv_forms import Geometry

# The matrices of F(2, r): for r taps g and r + 1 inputs d, output = A ((G g) * (B d)).
WINOGRAD_INPUT = {
    2: np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1]]),
    3: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
}
WINOGRAD_KERNEL = {
    2: np.array([[1, 0], [1, 1], [0, 1]]),
    3: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
}
WINOGRAD_OUTPUT = {2: np.array([[1, 1, 0], [0, 1, 1]]), 3: np.array([[1, 1, 1, 0], [0, 1, -1, -1]])}

# Up to so many rows XLA's convolution of one pixel takes up to twice as long as the product (measured on two cores).
SMALL_ROWS = 1024

# With fewer channels of either array, or less work, the transforms and the many small products cost more than they save
# (measured on two cores): by the kernel's size in blocks for the two maps whose sums run over channels, and for the
# gradient of the kernel, whose sums run over all tiles at once, for which small products are slower.
WINOGRAD_CHANNELS = {2: 256, 3: 64}
WINOGRAD_KERNEL_CHANNELS = {2: 256, 3: 128}
WINOGRAD_WORK = 5e8  # floating-point operations of the plain convolution

# A loop copies each member in and out and fills its result with zeros first; beyond these the program grows too long.
UNROLLED_MEMBERS = 8


def correlate(x: Array, kernel: Array, *, geometry: Geometry) -> Array:
    """``x [N, *input_size, C]`` with ``kernel [*kernel_size, C, O]``: ``[N, *output_size, O]``."""
    if _winograd_pays(x, *kernel.shape[-2:], geometry):
        kernel = _kernel_to_blocks(kernel, geometry)
        return _winograd(_to_blocks(x, geometry), kernel, geometry.output_size)
    if _is_small_product(x, geometry):
        x = x[:, *(slice(None, None, s) for s in geometry.strides)]
        return x @ kernel.reshape(kernel.shape[-2:])
    if any(n < k for n, k in zip(geometry.input_size, geometry.kernel_size, strict=True)):
        # The barrier keeps XLA from folding the padding into the convolution again.
        x = lax.optimization_barrier(_pad(x, geometry.padding))
        geometry = geometry._replace(input_size=x.shape[1:-1], padding=((0, 0),) * len(geometry.padding))
    return conv_forms.correlate(x, kernel, geometry=geometry)


def _is_small_product(x: Array, geometry: Geometry) -> bool:
    """Whether it is a convolution of one pixel each, of few rows."""
    rows = len(x) * math.prod(geometry.output_size)
    same = all(
        k == 1 and tuple(p) == (0, 0) for k, p in zip(geometry.kernel_size, geometry.padding, strict=True)
    )
    return same and rows <= SMALL_ROWS


def input_gradient(dy: Array, kernel: Array, *, geometry: Geometry) -> Array:
    """The transpose of :func:`correlate` in ``x``: ``dy [N, *output_size, O]`` to ``[N, *input_size, C]``."""
    taps = _blocks(geometry)
    if max(geometry.strides) == 1:
        # The correlation of dy with the kernel flipped and from O to C channels.
        padding = tuple(
            (k - 1 - lo, k - 1 - hi)
            for k, (lo, hi) in zip(geometry.kernel_size, geometry.padding, strict=True)
        )
        if _winograd_pays(dy, *kernel.shape[-2:], geometry):
            return _winograd(_pad(dy, padding), kernel, geometry.input_size, turned=True)
        kernel = jnp.swapaxes(jnp.flip(kernel, range(len(taps))), -1, -2)
        geometry = geometry._replace(input_size=geometry.output_size, padding=padding)
        return correlate(dy, kernel, geometry=geometry)
    small = any(m < k for m, k in zip(geometry.output_size, geometry.kernel_size, strict=True))
    if not (small or _fills_blocks(geometry)):
        return conv_forms.input_gradient(dy, kernel, geometry=geometry, permute=True)
    # One matrix product gives the part of each tap; their shifted sum is x.
    blocks = _kernel_to_blocks(kernel, geometry)
    channels, features = blocks.shape[-2:]
    parts = dy.reshape(-1, features) @ blocks.reshape(-1, features).T
    parts = parts.reshape(*dy.shape[:-1], math.prod(taps), channels)
    x = jnp.zeros((), dy.dtype)
    for part, tap in enumerate(itertools.product(*map(range, taps))):
        x += _pad(parts[..., part, :], [(t, j - 1 - t) for t, j in zip(tap, taps, strict=True)])
    return _from_blocks(x, geometry)


def kernel_gradient(x: Array, dy: Array, *, geometry: Geometry) -> Array:
    """The transpose of :func:`correlate` in ``kernel``: ``[*kernel_size, C, O]``."""
    if _winograd_pays(x, x.shape[-1], dy.shape[-1], geometry, WINOGRAD_KERNEL_CHANNELS):
        blocks = _winograd_kernel_gradient(_to_blocks(x, geometry), dy, _blocks(geometry))
        return _kernel_from_blocks(blocks, geometry)
    return conv_forms.kernel_gradient(x, dy, geometry=geometry, permute=True)


def one_by_one(bilinear: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """A bilinear map of each member's two arrays, ``[M, ...]`` and ``[M, ...]`` to ``[M, ...]``."""
    if len(a) > UNROLLED_MEMBERS:
        return lax.map(lambda ab: bilinear(*ab), (a, b))
    return jnp.stack([bilinear(a[m], b[m]) for m in range(len(a))])


# ------------------------------------------------------------------------------------------------------- blocks


def _blocks(geometry: Geometry) -> tuple[int, ...]:
    """The kernel's size in blocks."""
    return tuple(-(-k // s) for k, s in zip(geometry.kernel_size, geometry.strides, strict=True))


def _fills_blocks(geometry: Geometry) -> bool:
    """Whether few of the multiplications in blocks are with zeros."""
    filled = math.prod(j * s for j, s in zip(_blocks(geometry), geometry.strides, strict=True))
    return filled <= 1.5 * math.prod(geometry.kernel_size)


def _pad(x: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Pads (or, where negative, crops) the spatial axes of ``[N, ..., C]``."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)])


def _padded_size(geometry: Geometry) -> list[int]:
    """Pixels that the kernel's blocks meet, per axis."""
    return [
        (m + j - 1) * s
        for m, j, s in zip(geometry.output_size, _blocks(geometry), geometry.strides, strict=True)
    ]


def _to_blocks(x: Array, geometry: Geometry) -> Array:
    """``[N, *input_size, C]`` to ``[N, *(m + j - 1), prod(s) C]``, padded."""
    size = _padded_size(geometry)
    x = _pad(
        x,
        [
            (lo, have - n - lo)
            for (lo, _), have, n in zip(geometry.padding, size, geometry.input_size, strict=True)
        ],
    )
    if max(geometry.strides) == 1:
        return x
    spatial = len(size)
    split = [n for q, s in zip(size, geometry.strides, strict=True) for n in (q // s, s)]
    order = [0, *range(1, 2 * spatial, 2), *range(2, 2 * spatial + 1, 2), 2 * spatial + 1]
    x = x.reshape(len(x), *split, x.shape[-1]).transpose(order)
    # Several products read the blocks: lay them out once.
    return lax.optimization_barrier(x.reshape(*x.shape[: spatial + 1], -1))


def _from_blocks(x: Array, geometry: Geometry) -> Array:
    """The transpose of :func:`_to_blocks`."""
    size, strides = _padded_size(geometry), geometry.strides
    spatial = len(size)
    x = lax.optimization_barrier(x).reshape(*x.shape[: spatial + 1], *strides, -1)
    order = [0, *(axis for a in range(spatial) for axis in (1 + a, 1 + spatial + a)), 1 + 2 * spatial]
    x = x.transpose(order).reshape(len(x), *size, -1)
    return _pad(
        x,
        [
            (-lo, n + lo - have)
            for (lo, _), have, n in zip(geometry.padding, size, geometry.input_size, strict=True)
        ],
    )


def _kernel_to_blocks(kernel: Array, geometry: Geometry) -> Array:
    """``[*kernel_size, C, O]`` to ``[*j, prod(s) C, O]``, filled with zeros."""
    taps, strides = _blocks(geometry), geometry.strides
    if max(strides) == 1:
        return kernel
    spatial = len(taps)
    filling = [(0, j * s - k, 0) for j, s, k in zip(taps, strides, geometry.kernel_size, strict=True)]
    kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*filling, (0, 0, 0), (0, 0, 0)])
    split = [n for pair in zip(taps, strides, strict=True) for n in pair]
    order = [*range(0, 2 * spatial, 2), *range(1, 2 * spatial, 2), 2 * spatial, 2 * spatial + 1]
    kernel = kernel.reshape(*split, *kernel.shape[-2:]).transpose(order)
    return kernel.reshape(*taps, -1, kernel.shape[-1])


def _kernel_from_blocks(blocks: Array, geometry: Geometry) -> Array:
    """The transpose of :func:`_kernel_to_blocks`."""
    taps, strides = _blocks(geometry), geometry.strides
    if max(strides) == 1:
        return blocks
    spatial, features = len(taps), blocks.shape[-1]
    kernel = blocks.reshape(*taps, *strides, -1, features)
    order = [axis for a in range(spatial) for axis in (a, spatial + a)]
    kernel = kernel.transpose(*order, 2 * spatial, 2 * spatial + 1)
    kernel = kernel.reshape(*(j * s for j, s in zip(taps, strides, strict=True)), -1, features)
    return kernel[tuple(slice(k) for k in geometry.kernel_size)]


# ----------------------------------------------------------------------------------------------------- Winograd

Parts = dict[tuple[int, ...], Array]
"""The arrays of one tile's places: one array per place, which holds that place of every tile."""


def _winograd_pays(
    a: Array,
    channels: int,
    features: int,
    geometry: Geometry,
    least: Mapping[int, int] = WINOGRAD_CHANNELS,
) -> bool:
    taps, batch = _blocks(geometry), len(a)
    if len(taps) != 2 or any(j not in WINOGRAD_INPUT for j in taps) or not _fills_blocks(geometry):
        return False
    if a.dtype.itemsize < 4:  # its sums and differences would lose half of bfloat16's digits
        return False
    channels *= math.prod(geometry.strides)
    work = 2 * math.prod(taps) * channels * features * batch * math.prod(geometry.output_size)
    return min(channels, features) >= max(least[j] for j in taps) and work >= WINOGRAD_WORK


def _winograd(x: Array, kernel: Array, size: Sequence[int], *, turned: bool = False) -> Array:
    """The correlation of stride 1 of ``x``, padded, with ``kernel [*j, C, O]``: ``[N, *size, O]``.

    ``turned``: with the kernel flipped and from ``O`` to ``C`` channels.
    """
    taps = kernel.shape[:-2]
    count = [-(-m // 2) for m in size]
    inputs = _transform([WINOGRAD_INPUT[j] for j in taps], _tiles(x, count, taps))
    places = itertools.product(*map(range, taps))
    flip = lambda place: tuple(j - 1 - p for p, j in zip(place, taps, strict=True))
    # No transposed copy of the kernel is made: the product contracts its last axis.
    places = {place: kernel[flip(place) if turned else place] for place in places}
    kernels = _transform([WINOGRAD_KERNEL[j] for j in taps], places)
    products = {}
    for place, part in inputs.items():
        rows = lax.optimization_barrier(part).reshape(-1, part.shape[-1])
        product = lax.dot_general(rows, kernels[place], (((1,), (1 if turned else 0,)), ((), ())))
        products[place] = product.reshape(*part.shape[:-1], -1)
    tiles = _transform([WINOGRAD_OUTPUT[j] for j in taps], lax.optimization_barrier(products))
    # Places 0 and 1 of each tile, side by side.
    rows = [jnp.stack([tiles[a, b] for b in range(2)], axis=3) for a in range(2)]
    y = jnp.stack(rows, axis=2).reshape(len(x), *(2 * n for n in count), -1)
    return y[:, : size[0], : size[1]]


def _winograd_kernel_gradient(x: Array, dy: Array, taps: tuple[int, ...]) -> Array:
    """The transpose of :func:`_winograd` in the kernel: each matrix transposed, in the reverse order."""
    size = dy.shape[1:-1]
    count = [-(-m // 2) for m in size]
    inputs = _transform([WINOGRAD_INPUT[j] for j in taps], _tiles(x, count, taps))
    dy = _pad(dy, [(0, 2 * n - m) for n, m in zip(count, size, strict=True)])
    places = {(a, b): dy[:, a::2, b::2] for a, b in itertools.product(range(2), repeat=2)}
    outputs = _transform([WINOGRAD_OUTPUT[j].T for j in taps], places)
    products = {}
    for place in inputs:
        a, b = lax.optimization_barrier((inputs[place], outputs[place]))
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        products[place] = lax.dot_general(a, b, (((0,), (0,)), ((), ())))
    kernel = _transform([WINOGRAD_KERNEL[j].T for j in taps], lax.optimization_barrier(products))
    return jnp.stack([jnp.stack([kernel[a, b] for b in range(taps[1])]) for a in range(taps[0])])


def _tiles(x: Array, count: Sequence[int], taps: Sequence[int]) -> Parts:
    """The ``j + 1`` places per axis of all overlapping tiles, two pixels apart; ``x`` is padded to fit."""
    x = _pad(x, [(0, 2 * n + j - 1 - have) for n, j, have in zip(count, taps, x.shape[1:-1], strict=True)])
    return {
        place: x[:, *(slice(p, p + 2 * n - 1, 2) for p, n in zip(place, count, strict=True))]
        for place in itertools.product(*(range(j + 1) for j in taps))
    }


def _transform(matrices: Sequence[np.ndarray], parts: Parts) -> Parts:
    """One matrix along each axis of the places."""
    for axis, matrix in enumerate(matrices):
        rest = dict.fromkeys((place[:axis], place[axis + 1 :]) for place in parts)
        parts = {
            (*before, row, *after): _combine(
                matrix[row], [parts[*before, i, *after] for i in range(matrix.shape[1])]
            )
            for before, after in rest
            for row in range(len(matrix))
        }
    return parts


def _combine(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    total = None
    for weight, array in zip(weights, arrays, strict=True):
        if weight == 0:
            continue
        term = array if abs(weight) == 1 else array * float(abs(weight))
        if total is None:
            total = term if weight > 0 else -term
        else:
            total = total + term if weight > 0 else total - term
    return total
