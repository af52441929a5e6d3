"""The three bilinear maps of a convolution (see `nets.conv`), implemented to be fast on a CPU.

XLA's convolution on a CPU is fast only in its standard layout (channels last, kernel ``HWIO``), and only for inputs at
least as large as the kernel. So the axes are transposed *before* a standard convolution, which makes it fast inside
``lax.scan`` too, and small inputs are padded beforehand.

With enough channels, kernels of 2x2 and 3x3 are computed as matrix products by Winograd's algorithm F(2, r) (Lavin and
Gray 2016, arXiv:1509.09308, section 4.1), with 9/16 and 4/9 of the multiplications.

A convolution of stride ``s`` is one of stride 1 over blocks of ``s`` pixels per axis, whose pixels count as channels,
with a kernel of ``ceil(k / s)`` blocks: 4x4 with stride 2 is 2x2 over four times as many channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from xmodal_jax.nets import conv_lax
from xmodal_jax.nets.conv_lax import Geometry

# The matrices B, G and A of F(2, r): two outputs from a kernel g of r taps and r + 1 inputs d are A ((G g) * (B d)).
WINOGRAD_INPUT = {
    2: np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1]]),
    3: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
}
WINOGRAD_KERNEL = {
    2: np.array([[1, 0], [1, 1], [0, 1]]),
    3: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
}
WINOGRAD_OUTPUT = {2: np.array([[1, 1, 0], [0, 1, 1]]), 3: np.array([[1, 1, 1, 0], [0, 1, -1, -1]])}

# With at most this many pixels in the batch, XLA's 1x1 convolution takes up to twice as long as a matrix product
# (measured on two cores).
SMALL_PRODUCT_PIXELS = 1024

# With fewer channels of either array, or less work, Winograd's transforms and many small products cost more than they
# save (measured on two cores). The limits are by the kernel's size in blocks: for the two maps that sum over channels,
# and for the gradient of the kernel, which sums over all tiles and for which small products are slower.
WINOGRAD_CHANNELS = {2: 256, 3: 64}
WINOGRAD_KERNEL_CHANNELS = {2: 256, 3: 128}
WINOGRAD_WORK = 5e8  # floating-point operations of the plain convolution

# Up to this many convolutions are unrolled, as a loop copies operands and results and fills these with zeros first;
# with more of them the program would grow too long.
UNROLLED_MEMBERS = 8


def correlate(x: Array, kernel: Array, *, geometry: Geometry) -> Array:
    """The convolution of ``x [N, *input_size, C]`` with ``kernel [*kernel_size, C, O]``: ``[N, *output_size, O]``."""
    if _winograd_pays(x, *kernel.shape[-2:], geometry):
        kernel = _kernel_to_blocks(kernel, geometry)
        return _winograd(_to_blocks(x, geometry), kernel, geometry.output_size)
    if _is_small_product(x, geometry):
        x = x[:, *(slice(None, None, s) for s in geometry.strides)]
        return x @ kernel.reshape(kernel.shape[-2:])
    if any(n < k for n, k in zip(geometry.input_size, geometry.kernel_size, strict=True)):
        # The barrier keeps XLA from folding the padding back into the convolution.
        x = lax.optimization_barrier(_pad(x, geometry.padding))
        geometry = geometry._replace(input_size=x.shape[1:-1], padding=((0, 0),) * len(geometry.padding))
    return conv_lax.correlate(x, kernel, geometry=geometry)


def _is_small_product(x: Array, geometry: Geometry) -> bool:
    """Whether it is a 1x1 convolution of few pixels, which a matrix product computes faster."""
    pixels = len(x) * math.prod(geometry.output_size)
    pixelwise = all(
        k == 1 and tuple(p) == (0, 0) for k, p in zip(geometry.kernel_size, geometry.padding, strict=True)
    )
    return pixelwise and pixels <= SMALL_PRODUCT_PIXELS


def input_gradient(dy: Array, kernel: Array, *, geometry: Geometry) -> Array:
    """The transpose of :func:`correlate` in ``x``: ``dy [N, *output_size, O]`` to ``[N, *input_size, C]``."""
    taps = _blocks(geometry)
    if max(geometry.strides) == 1:
        # The convolution of dy with the kernel, flipped and with its channels O and C swapped.
        padding = tuple(
            (k - 1 - lo, k - 1 - hi)
            for k, (lo, hi) in zip(geometry.kernel_size, geometry.padding, strict=True)
        )
        if _winograd_pays(dy, *kernel.shape[-2:], geometry):
            return _winograd(_pad(dy, padding), kernel, geometry.input_size, transposed=True)
        kernel = jnp.swapaxes(jnp.flip(kernel, range(len(taps))), -1, -2)
        geometry = geometry._replace(input_size=geometry.output_size, padding=padding)
        return correlate(dy, kernel, geometry=geometry)
    small = any(m < k for m, k in zip(geometry.output_size, geometry.kernel_size, strict=True))
    if not (small or _fills_blocks(geometry)):
        return conv_lax.input_gradient(dy, kernel, geometry=geometry, permute=True)
    # One matrix product gives the contributions of all taps; x is the sum of these, each shifted by its tap.
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
    return conv_lax.kernel_gradient(x, dy, geometry=geometry, permute=True)


def one_by_one(bilinear: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """A bilinear map under ``vmap`` over both arrays, ``[M, ...]`` and ``[M, ...]`` to ``[M, ...]``, one at a time."""
    if len(a) > UNROLLED_MEMBERS:
        return lax.map(lambda ab: bilinear(*ab), (a, b))
    return jnp.stack([bilinear(a[m], b[m]) for m in range(len(a))])


# ------------------------------------------------------------------------------------------------------- blocks


def _blocks(geometry: Geometry) -> tuple[int, ...]:
    """The kernel's size in blocks."""
    return tuple(-(-k // s) for k, s in zip(geometry.kernel_size, geometry.strides, strict=True))


def _fills_blocks(geometry: Geometry) -> bool:
    """Whether the kernel nearly fills its blocks, so that few multiplications are with zeros."""
    filled = math.prod(j * s for j, s in zip(_blocks(geometry), geometry.strides, strict=True))
    return filled <= 1.5 * math.prod(geometry.kernel_size)


def _pad(x: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Pads (or, where negative, crops) the spatial axes of ``[N, ..., C]``."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)])


def _padded_size(geometry: Geometry) -> list[int]:
    """The number of pixels, per axis, that the blocks of the kernel cover in total."""
    return [
        (m + j - 1) * s
        for m, j, s in zip(geometry.output_size, _blocks(geometry), geometry.strides, strict=True)
    ]


def _to_blocks(x: Array, geometry: Geometry) -> Array:
    """Pads an image and groups it into blocks: ``[N, *input_size, C]`` to ``[N, *(m + j - 1), prod(s) C]``."""
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
    # Several products read the blocks; the barrier makes XLA lay them out once.
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
    """Groups a kernel into blocks, filled up with zeros: ``[*kernel_size, C, O]`` to ``[*j, prod(s) C, O]``."""
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
"""All tiles of an image: one array per position within a tile, which holds the values there of every tile."""


def _winograd_pays(
    a: Array,
    channels: int,
    features: int,
    geometry: Geometry,
    least: Mapping[int, int] = WINOGRAD_CHANNELS,
) -> bool:
    """Whether Winograd's algorithm applies and is faster, for an array ``a`` of the batch."""
    taps, batch = _blocks(geometry), len(a)
    if len(taps) != 2 or any(j not in WINOGRAD_INPUT for j in taps) or not _fills_blocks(geometry):
        return False
    if a.dtype.itemsize < 4:  # the sums and differences would lose half of bfloat16's digits
        return False
    channels *= math.prod(geometry.strides)
    work = 2 * math.prod(taps) * channels * features * batch * math.prod(geometry.output_size)
    return min(channels, features) >= max(least[j] for j in taps) and work >= WINOGRAD_WORK


def _winograd(x: Array, kernel: Array, size: Sequence[int], *, transposed: bool = False) -> Array:
    """The convolution of stride 1 of a padded ``x`` with ``kernel [*j, C, O]``: ``[N, *size, O]``.

    With ``transposed`` the kernel is flipped and its channels ``O`` and ``C`` are swapped.
    """
    taps = kernel.shape[:-2]
    count = [-(-m // 2) for m in size]
    inputs = _transform([WINOGRAD_INPUT[j] for j in taps], _tiles(x, count, taps))
    positions = itertools.product(*map(range, taps))
    flip = lambda position: tuple(j - 1 - p for p, j in zip(position, taps, strict=True))
    # Without a transposed copy of the kernel: where its channels are swapped, the product contracts its last axis.
    parts = {position: kernel[flip(position) if transposed else position] for position in positions}
    kernels = _transform([WINOGRAD_KERNEL[j] for j in taps], parts)
    products = {}
    for position, part in inputs.items():
        matrix = lax.optimization_barrier(part).reshape(-1, part.shape[-1])
        product = lax.dot_general(matrix, kernels[position], (((1,), (1 if transposed else 0,)), ((), ())))
        products[position] = product.reshape(*part.shape[:-1], -1)
    tiles = _transform([WINOGRAD_OUTPUT[j] for j in taps], lax.optimization_barrier(products))
    # Interleave the positions 0 and 1 of the tiles.
    rows = [jnp.stack([tiles[a, b] for b in range(2)], axis=3) for a in range(2)]
    y = jnp.stack(rows, axis=2).reshape(len(x), *(2 * n for n in count), -1)
    return y[:, : size[0], : size[1]]


def _winograd_kernel_gradient(x: Array, dy: Array, taps: tuple[int, ...]) -> Array:
    """The transpose of :func:`_winograd` in the kernel: the transposed matrices, in reverse order."""
    size = dy.shape[1:-1]
    count = [-(-m // 2) for m in size]
    inputs = _transform([WINOGRAD_INPUT[j] for j in taps], _tiles(x, count, taps))
    dy = _pad(dy, [(0, 2 * n - m) for n, m in zip(count, size, strict=True)])
    parts = {(a, b): dy[:, a::2, b::2] for a, b in itertools.product(range(2), repeat=2)}
    outputs = _transform([WINOGRAD_OUTPUT[j].T for j in taps], parts)
    products = {}
    for position in inputs:
        a, b = lax.optimization_barrier((inputs[position], outputs[position]))
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        products[position] = lax.dot_general(a, b, (((0,), (0,)), ((), ())))
    kernel = _transform([WINOGRAD_KERNEL[j].T for j in taps], lax.optimization_barrier(products))
    return jnp.stack([jnp.stack([kernel[a, b] for b in range(taps[1])]) for a in range(taps[0])])


def _tiles(x: Array, count: Sequence[int], taps: Sequence[int]) -> Parts:
    """Overlapping tiles of ``j + 1`` pixels per axis, two pixels apart; ``x`` is padded to a multiple of two."""
    x = _pad(x, [(0, 2 * n + j - 1 - have) for n, j, have in zip(count, taps, x.shape[1:-1], strict=True)])
    return {
        position: x[:, *(slice(p, p + 2 * n - 1, 2) for p, n in zip(position, count, strict=True))]
        for position in itertools.product(*(range(j + 1) for j in taps))
    }


def _transform(matrices: Sequence[np.ndarray], parts: Parts) -> Parts:
    """Multiplies a matrix along each axis of the positions within the tiles."""
    for axis, matrix in enumerate(matrices):
        rest = dict.fromkeys((position[:axis], position[axis + 1 :]) for position in parts)
        parts = {
            (*before, row, *after): _combine(
                matrix[row], [parts[*before, i, *after] for i in range(matrix.shape[1])]
            )
            for before, after in rest
            for row in range(len(matrix))
        }
    return parts


def _combine(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    """The weighted sum of arrays, without multiplications by 0 and 1."""
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
