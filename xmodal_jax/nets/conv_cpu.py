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
    """The convolution of ``x [N, *input_size, C]`` with ``kernel [*kernel_size, C, O]``: ``[N, *output_size, O]``.

    ``geometry`` has the sizes, the strides and the padding of the convolution.
    """
    channels, features = kernel.shape[-2:]
    if _winograd_pays(x, channels, features, geometry):
        # In blocks of as many pixels as the stride, whose pixels are channels, the convolution has stride 1.
        kernel = _kernel_to_blocks(kernel, geometry)
        return _winograd(_to_blocks(x, geometry), kernel, geometry.output_size)
    if _is_small_product(x, geometry):  # a 1x1 kernel: a matrix product at every stride-th pixel
        x = x[:, *(slice(None, None, s) for s in geometry.strides)]
        return x @ kernel.reshape(channels, features)
    if any(n < k for n, k in zip(geometry.input_size, geometry.kernel_size, strict=True)):
        # XLA is slow where the input is smaller than the kernel: pad it beforehand. The barrier keeps XLA from folding
        # the padding back into the convolution.
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
    """The gradient of :func:`correlate` with respect to ``x``, given that of its result:

    ``dy [N, *output_size, O]`` and ``kernel [*kernel_size, C, O]`` to ``dx [N, *input_size, C]``.

    ``geometry`` has the sizes, the strides and the padding of the convolution.
    """
    # Per axis: the kernel's size in blocks of as many pixels as the stride.
    kernel_blocks = _kernel_blocks(geometry)
    if max(geometry.strides) == 1:
        # The convolution of dy with the kernel, flipped and with its channels O and C swapped.
        padding = tuple(
            (k - 1 - before, k - 1 - after)
            for k, (before, after) in zip(geometry.kernel_size, geometry.padding, strict=True)
        )
        if _winograd_pays(dy, *kernel.shape[-2:], geometry):
            return _winograd(_pad(dy, padding), kernel, geometry.input_size, transposed=True)
        spatial_axes = range(len(kernel_blocks))
        kernel = jnp.swapaxes(jnp.flip(kernel, spatial_axes), -1, -2)
        geometry = geometry._replace(input_size=geometry.output_size, padding=padding)
        return correlate(dy, kernel, geometry=geometry)
    small = any(m < k for m, k in zip(geometry.output_size, geometry.kernel_size, strict=True))
    # XLA's own gradient, where the blocks would multiply by many zeros and XLA is fast.
    if not (small or _fills_blocks(geometry)):
        return conv_lax.input_gradient(dy, kernel, geometry=geometry, permute=True)
    # One matrix product gives the contributions of all blocks of the kernel, [N, *output_size, kernel blocks,
    # channels]. dx is their sum, each shifted by the position of its block in the kernel.
    blocks = _kernel_to_blocks(kernel, geometry)
    channels, features = blocks.shape[-2:]
    contributions = dy.reshape(-1, features) @ blocks.reshape(-1, features).T
    contributions = contributions.reshape(*dy.shape[:-1], math.prod(kernel_blocks), channels)
    dx = jnp.zeros((), dy.dtype)
    for index, position in enumerate(itertools.product(*map(range, kernel_blocks))):
        shift = [(t, j - 1 - t) for t, j in zip(position, kernel_blocks, strict=True)]
        dx += _pad(contributions[..., index, :], shift)
    return _from_blocks(dx, geometry)


def kernel_gradient(x: Array, dy: Array, *, geometry: Geometry) -> Array:
    """The gradient of :func:`correlate` with respect to ``kernel``, given that of its result:

    ``x [N, *input_size, C]`` and ``dy [N, *output_size, O]`` to ``[*kernel_size, C, O]``.

    ``geometry`` has the sizes, the strides and the padding of the convolution.
    """
    if _winograd_pays(x, x.shape[-1], dy.shape[-1], geometry, least=WINOGRAD_KERNEL_CHANNELS):
        # Computed for the convolution over blocks of pixels, which has stride 1.
        blocks = _winograd_kernel_gradient(_to_blocks(x, geometry), dy, _kernel_blocks(geometry))
        return _kernel_from_blocks(blocks, geometry)
    return conv_lax.kernel_gradient(x, dy, geometry=geometry, permute=True)


def one_by_one(bilinear: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """``bilinear(a[m], b[m])`` for each ``m``, ``[M, ...]`` and ``[M, ...]`` to ``[M, ...]``: a ``vmap`` that computes
    one member after the other."""
    if len(a) > UNROLLED_MEMBERS:  # a loop, as unrolling so many would take long to compile
        return lax.map(lambda ab: bilinear(*ab), (a, b))
    return jnp.stack([bilinear(a[m], b[m]) for m in range(len(a))])


# ------------------------------------------------------------------------------------------------------- blocks


def _kernel_blocks(geometry: Geometry) -> tuple[int, ...]:
    """The kernel's size in blocks of ``stride`` pixels, per axis, rounded up."""
    return tuple(-(-k // s) for k, s in zip(geometry.kernel_size, geometry.strides, strict=True))


def _fills_blocks(geometry: Geometry) -> bool:
    """Whether the kernel nearly fills its blocks, so that at most a third of the multiplications are with zeros."""
    block_pixels = math.prod(j * s for j, s in zip(_kernel_blocks(geometry), geometry.strides, strict=True))
    return block_pixels <= 1.5 * math.prod(geometry.kernel_size)


def _pad(x: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Pads (or, where negative, crops) the spatial axes of ``[N, ..., C]`` by ``(before, after)`` pixels each."""
    spatial = [(before, after, 0) for before, after in padding]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


def _padded_size(geometry: Geometry) -> list[int]:
    """The input pixels per axis that a convolution over blocks reads: ``(m + j - 1) s``.

    ``m`` is the output size, ``j`` the kernel's size in blocks and ``s`` the stride.
    """
    return [
        (m + j - 1) * s
        for m, j, s in zip(geometry.output_size, _kernel_blocks(geometry), geometry.strides, strict=True)
    ]


def _to_blocks(x: Array, geometry: Geometry) -> Array:
    """Pads images and groups their pixels into blocks, whose pixels become channels.

    ``[N, *input_size, C]`` to ``[N, *blocks, prod(s) C]``, with ``s`` the strides: a block has ``s`` pixels per axis.
    """
    padded_size = _padded_size(geometry)
    padding = [
        (before, padded - n - before)
        for (before, _), padded, n in zip(geometry.padding, padded_size, geometry.input_size, strict=True)
    ]
    x = _pad(x, padding)
    if max(geometry.strides) == 1:
        return x
    spatial = len(padded_size)
    # [N, blocks_1, s_1, blocks_2, s_2, C] to [N, blocks_1, blocks_2, s_1, s_2, C] (two spatial axes).
    split = [n for size, s in zip(padded_size, geometry.strides, strict=True) for n in (size // s, s)]
    order = [0, *range(1, 2 * spatial, 2), *range(2, 2 * spatial + 1, 2), 2 * spatial + 1]
    x = x.reshape(len(x), *split, x.shape[-1]).transpose(order)
    # Several products read the blocks; the barrier makes XLA lay them out once.
    return lax.optimization_barrier(x.reshape(*x.shape[: spatial + 1], -1))


def _from_blocks(x: Array, geometry: Geometry) -> Array:
    """The inverse of :func:`_to_blocks`: blocks ``[N, *blocks, prod(s) C]`` to images ``[N, *input_size, C]``.

    The channels of a block become its pixels again, and the padding is cropped.
    """
    padded_size, strides = _padded_size(geometry), geometry.strides
    spatial = len(padded_size)
    x = lax.optimization_barrier(x).reshape(*x.shape[: spatial + 1], *strides, -1)
    # [N, blocks_1, blocks_2, s_1, s_2, C] to [N, blocks_1, s_1, blocks_2, s_2, C] (two spatial axes).
    order = [0, *(axis for a in range(spatial) for axis in (1 + a, 1 + spatial + a)), 1 + 2 * spatial]
    x = x.transpose(order).reshape(len(x), *padded_size, -1)
    crop = [
        (-before, n + before - padded)
        for (before, _), padded, n in zip(geometry.padding, padded_size, geometry.input_size, strict=True)
    ]
    return _pad(x, crop)


def _kernel_to_blocks(kernel: Array, geometry: Geometry) -> Array:
    """Groups a kernel into blocks of ``s`` pixels per axis, whose pixels become channels; it is filled up with zeros.

    ``[*kernel_size, C, O]`` to ``[*j, prod(s) C, O]``, with ``s`` the strides and ``j`` the kernel's size in blocks.
    """
    kernel_blocks, strides = _kernel_blocks(geometry), geometry.strides
    if max(strides) == 1:
        return kernel
    spatial = len(kernel_blocks)
    filling = [
        (0, j * s - k, 0) for j, s, k in zip(kernel_blocks, strides, geometry.kernel_size, strict=True)
    ]
    kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*filling, (0, 0, 0), (0, 0, 0)])
    # [j_1, s_1, j_2, s_2, C, O] to [j_1, j_2, s_1, s_2, C, O] (two spatial axes).
    split = [n for pair in zip(kernel_blocks, strides, strict=True) for n in pair]
    order = [*range(0, 2 * spatial, 2), *range(1, 2 * spatial, 2), 2 * spatial, 2 * spatial + 1]
    kernel = kernel.reshape(*split, *kernel.shape[-2:]).transpose(order)
    return kernel.reshape(*kernel_blocks, -1, kernel.shape[-1])


def _kernel_from_blocks(blocks: Array, geometry: Geometry) -> Array:
    """The inverse of :func:`_kernel_to_blocks`: blocks ``[*j, prod(s) C, O]`` to a kernel ``[*kernel_size, C, O]``.

    The channels of a block become its pixels again, and what lies beyond the kernel's size is cropped.
    """
    kernel_blocks, strides = _kernel_blocks(geometry), geometry.strides
    if max(strides) == 1:
        return blocks
    spatial, features = len(kernel_blocks), blocks.shape[-1]
    kernel = blocks.reshape(*kernel_blocks, *strides, -1, features)
    # [j_1, j_2, s_1, s_2, C, O] to [j_1, s_1, j_2, s_2, C, O] (two spatial axes).
    order = [axis for a in range(spatial) for axis in (a, spatial + a)]
    kernel = kernel.transpose(*order, 2 * spatial, 2 * spatial + 1)
    kernel = kernel.reshape(*(j * s for j, s in zip(kernel_blocks, strides, strict=True)), -1, features)
    return kernel[tuple(slice(k) for k in geometry.kernel_size)]


# ----------------------------------------------------------------------------------------------------- Winograd

Tiles = dict[tuple[int, ...], Array]
"""All tiles of the images: for each position (row, column) within a tile, the pixels there of all tiles, ``[N, tile
rows, tile columns, C]``."""


def _winograd_pays(
    a: Array,
    channels: int,
    features: int,
    geometry: Geometry,
    least: Mapping[int, int] = WINOGRAD_CHANNELS,
) -> bool:
    """Whether Winograd's algorithm applies to a convolution and is faster than a plain one.

    ``a`` is its input or the gradient of its output, ``[N, ...]``; ``channels`` and ``features`` are the kernel's.
    ``least``: the fewest channels and features for which it is faster, by the kernel's size in blocks.
    """
    # Per axis: the kernel's size in blocks of as many pixels as the stride.
    kernel_blocks, batch = _kernel_blocks(geometry), len(a)
    if len(kernel_blocks) != 2 or any(j not in WINOGRAD_INPUT for j in kernel_blocks):
        return False  # there are matrices for images and some kernel sizes only
    if not _fills_blocks(geometry):
        return False  # too many multiplications would be with the zeros that fill up the blocks
    if a.dtype.itemsize < 4:  # the sums and differences would lose half of bfloat16's digits
        return False
    channels *= math.prod(geometry.strides)  # the pixels of a block count as channels
    work = 2 * math.prod(kernel_blocks) * channels * features * batch * math.prod(geometry.output_size)
    return min(channels, features) >= max(least[j] for j in kernel_blocks) and work >= WINOGRAD_WORK


def _winograd(x: Array, kernel: Array, size: Sequence[int], *, transposed: bool = False) -> Array:
    """The convolution of stride 1 of a padded ``x`` with ``kernel [*j, C, O]``, ``[N, *size, O]``, by Winograd's
    algorithm.

    Each output tile of 2x2 pixels is ``A ((G g) * (B d))``: ``d`` are ``j + 1`` input pixels per axis, ``g`` is the
    kernel, and B, G and A are applied along both spatial axes. The elementwise product ``*`` is a matrix product over
    channels at each position in the tile. With ``transposed`` the kernel is flipped and its channels ``O`` and ``C``
    are swapped.

    ``size``: height and width of the output, in pixels.
    """
    kernel_size = kernel.shape[:-2]
    tile_counts = [-(-m // 2) for m in size]  # output tiles of two pixels, per axis
    # B d
    input_tiles = _transform([WINOGRAD_INPUT[j] for j in kernel_size], _tiles(x, tile_counts, kernel_size))
    # G g, without a transposed copy of the kernel: where its channels are swapped, the product contracts its last axis.
    positions = itertools.product(*map(range, kernel_size))
    flip = lambda position: tuple(j - 1 - p for p, j in zip(position, kernel_size, strict=True))
    taps = {position: kernel[flip(position) if transposed else position] for position in positions}
    kernel_tiles = _transform([WINOGRAD_KERNEL[j] for j in kernel_size], taps)
    # (G g) * (B d)
    products = {}
    for position, pixels in input_tiles.items():
        matrix = lax.optimization_barrier(pixels).reshape(-1, pixels.shape[-1])
        # The axes that are summed over, of matrix and kernel; no batch axes.
        contracted = (((1,), (1 if transposed else 0,)), ((), ()))
        product = lax.dot_general(matrix, kernel_tiles[position], contracted)
        products[position] = product.reshape(*pixels.shape[:-1], -1)
    # A (...)
    output_tiles = _transform([WINOGRAD_OUTPUT[j] for j in kernel_size], lax.optimization_barrier(products))
    # Interleave the two rows and the two columns of the tiles, and crop to the size.
    rows = [jnp.stack([output_tiles[a, b] for b in range(2)], axis=3) for a in range(2)]
    y = jnp.stack(rows, axis=2).reshape(len(x), *(2 * n for n in tile_counts), -1)
    return y[:, : size[0], : size[1]]


def _winograd_kernel_gradient(x: Array, dy: Array, kernel_size: tuple[int, ...]) -> Array:
    """The gradient of :func:`_winograd` with respect to its kernel, ``[*kernel_size, C, O]``.

    The forward pass is ``y = A ((G g) * (B d))``, so that the gradient is ``G^T ((A^T dy) * (B d))``, summed over
    tiles.

    ``x`` is the padded input ``[N, H, W, C]``, ``dy [N, *size, O]`` the gradient of the output.
    """
    size = dy.shape[1:-1]
    tile_counts = [-(-m // 2) for m in size]  # output tiles of two pixels, per axis
    # B d
    input_tiles = _transform([WINOGRAD_INPUT[j] for j in kernel_size], _tiles(x, tile_counts, kernel_size))
    # A^T dy
    dy = _pad(dy, [(0, 2 * n - m) for n, m in zip(tile_counts, size, strict=True)])
    dy_pixels = {(a, b): dy[:, a::2, b::2] for a, b in itertools.product(range(2), repeat=2)}
    dy_tiles = _transform([WINOGRAD_OUTPUT[j].T for j in kernel_size], dy_pixels)
    # (A^T dy) * (B d): at each position within the tiles [C, O], summed over all tiles of the batch.
    products = {}
    for position in input_tiles:
        a, b = lax.optimization_barrier((input_tiles[position], dy_tiles[position]))
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        products[position] = lax.dot_general(a, b, (((0,), (0,)), ((), ())))  # a^T b
    # G^T (...)
    kernel = _transform([WINOGRAD_KERNEL[j].T for j in kernel_size], lax.optimization_barrier(products))
    rows, columns = kernel_size
    return jnp.stack([jnp.stack([kernel[a, b] for b in range(columns)]) for a in range(rows)])


def _tiles(x: Array, tile_counts: Sequence[int], kernel_size: Sequence[int]) -> Tiles:
    """The overlapping tiles of ``x [N, ..., C]``, as one array for each position within a tile.

    A tile has ``j + 1`` pixels per axis for a kernel of size ``j``, and tiles are two pixels apart. ``x`` is padded
    with zeros to ``tile_counts`` tiles per axis.
    """
    sizes = zip(tile_counts, kernel_size, x.shape[1:-1], strict=True)
    x = _pad(x, [(0, 2 * n + j - 1 - pixels) for n, j, pixels in sizes])
    return {
        position: x[:, *(slice(p, p + 2 * n - 1, 2) for p, n in zip(position, tile_counts, strict=True))]
        for position in itertools.product(*(range(j + 1) for j in kernel_size))
    }


def _transform(matrices: Sequence[np.ndarray], tiles: Tiles) -> Tiles:
    """Multiplies the tiles by one matrix along each axis: for two axes ``M_1 t M_2^T`` for every tile ``t``.

    ``tiles`` holds one array for each position in a tile, by the position's coordinates.
    """
    for axis, matrix in enumerate(matrices):
        transformed = {}
        # The tiles' columns along this axis, by their positions (before, after) along the other axes.
        columns = dict.fromkeys((position[:axis], position[axis + 1 :]) for position in tiles)
        for before, after in columns:
            column = [tiles[*before, i, *after] for i in range(matrix.shape[1])]
            for row in range(len(matrix)):
                transformed[*before, row, *after] = _weighted_sum(matrix[row], column)
        tiles = transformed
    return tiles


def _weighted_sum(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    """``sum_i weights[i] arrays[i]``, without multiplications by 0, 1 and -1."""
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
