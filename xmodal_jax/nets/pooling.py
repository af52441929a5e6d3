"""Pooling: of tokens to one vector per example, and max pooling of images."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.types import Tokens

POOLS = ("mean", "cls", "attention", "max", "mean_sqrt", "weighted_mean", "last")
"""The kinds of `Pool`."""


class Pool(nn.Module):
    """Pools tokens to one vector, ``[B, N, D] -> [B, D]`` in float32.

    ``kind`` is "mean" (of the valid tokens), "cls" (the first token) or "attention": multi-head attention of one
    learned query over the tokens (Zhai et al. 2022, arXiv:2106.04560, section 2.2, without the MLP). Sentence encoders
    also have "max" (of each dimension), "mean_sqrt" (the sum, divided by the square root of the number of tokens),
    "weighted_mean" (token n, counted from 1 and with masked ones, has weight n: Muennighoff 2022, arXiv:2202.08904) and
    "last" (the last valid token). Masked tokens have no influence. An example without valid tokens gives zeros (with
    "attention" the bias of the output projection), and a zero gradient to the tokens.

    Raises:
      ValueError: ``kind`` is unknown.
    """

    kind: str = "mean"
    heads: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """One vector ``[B, D]`` per example, float32: by ``kind`` the mean of the valid tokens, the first token (cls),
        or the attention of a learned query to the tokens."""
        values, mask = tokens
        if self.kind == "mean":
            values = values.astype(jnp.float32)
            if mask is None:
                return values.mean(axis=1)
            count = mask.sum(axis=1).astype(jnp.float32)[:, None]
            return jnp.where(mask[:, :, None], values, 0.0).sum(axis=1) / jnp.maximum(count, 1.0)
        if self.kind == "cls":
            first = values[:, 0].astype(jnp.float32)
            return first if mask is None else jnp.where(mask[:, :1], first, 0.0)
        if self.kind == "attention":
            query = self.param("query", nn.initializers.normal(0.02), (values.shape[-1],), jnp.float32)
            query = jnp.broadcast_to(query[None, None, :], (values.shape[0], 1, values.shape[-1]))
            if mask is not None:
                # The attention ignores masked tokens, but 0 times a NaN or an infinity would be NaN.
                values = jnp.where(mask[:, :, None], values, jnp.zeros_like(values))
            pooled = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(query, values, mask)
            return pooled[:, 0].astype(jnp.float32)
        if self.kind in POOLS:
            mask = jnp.ones(values.shape[:2], bool) if mask is None else mask
            return _pool_sentence(self.kind, values.astype(jnp.float32), mask)
        raise ValueError(f"pool must be one of {POOLS}, got {self.kind!r}")


def _pool_sentence(
    kind: str, values: Float[Array, "batch length dim"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch dim"]:
    """The pools "max", "mean_sqrt", "weighted_mean" and "last" of `Pool`; zeros for an example without valid tokens.

    "max": the largest value of each dimension. The others are weighted sums of the tokens, divided by ``total``.
    """
    length = mask.shape[1]
    if kind == "max":
        largest = jnp.where(mask[:, :, None], values, -jnp.inf).max(axis=1)
        return jnp.where(mask.any(axis=1)[:, None], largest, 0.0)
    places = jnp.arange(1, length + 1, dtype=jnp.float32)[
        None
    ]  # 1 for the first token, 2 for the second, ...
    if kind == "last":
        # The last valid token is the first one in reversed order.
        weights = jax.nn.one_hot(length - 1 - jnp.argmax(mask[:, ::-1], axis=1), length) * mask
        total = jnp.float32(1.0)
    elif kind == "weighted_mean":
        weights = places * mask
        total = jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    else:  # "mean_sqrt": the sum divided by the square root of the number of tokens
        weights = mask.astype(jnp.float32)
        total = jnp.sqrt(jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0))
    # What is masked may be a NaN or an infinity, which times 0 would be NaN.
    return (jnp.where(mask[:, :, None], values, 0.0) * weights[:, :, None]).sum(axis=1) / total


def prepend_class_token(module: nn.Module, x, mask):
    """``(tokens, mask)``: the tokens ``x`` with a learned, always valid token in front, ``[B, N, D] -> [B, 1 + N, D]``.

    Call it in a compact method of ``module``, which gets the parameter ``class_token``. A mask of None stays None.
    """
    token = module.param("class_token", nn.initializers.normal(0.02), (x.shape[-1],), jnp.float32)
    token = jnp.broadcast_to(token.astype(x.dtype)[None, None, :], (x.shape[0], 1, x.shape[-1]))
    if mask is not None:
        mask = jnp.concatenate([jnp.ones((x.shape[0], 1), bool), mask], axis=1)
    return jnp.concatenate([token, x], axis=1), mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(
    x: Float[Array, "batch height width channels"], window: int = 3, stride: int = 2, padding: int = 1
) -> Float[Array, "batch height2 width2 channels"]:
    """``nn.max_pool`` with square windows, and with a gradient that is fast on a CPU too.

    The gradient goes to the first of the largest pixels of each window, row by row, as in ``lax``. XLA's own gradient
    on a CPU carries the index of every pixel through the windows and scatters; it takes ten times as long. Reverse mode
    only (``jax.custom_vjp``).

    Args:
      x: images.
      window: side of a window, in pixels.
      stride: distance between windows.
      padding: pixels of padding at every border.
    """
    return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding), (padding, padding)))


def _max_pool_forward(x, window, stride, padding):
    """The pooled images, and what the backward pass needs."""
    y = max_pool(x, window, stride, padding)
    return y, (x, y)


def _max_pool_backward(window, stride, padding, saved, dy):
    """The gradient of `max_pool` with respect to its input ``x``, given that of its output ``y``, as ``(dx,)``.

    ``saved`` is ``(x, y)``. On a CPU by `_max_pool_gradient_on_cpu`, elsewhere by XLA's own gradient. ``window``,
    ``stride`` and ``padding`` are those of the pooling, in pixels.
    """
    x, y = saved

    def default(x, y, dy):
        """``dx`` by XLA's gradient; ``y`` is unused, but both implementations have the same arguments."""
        pool = lambda x: nn.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)
        _, pool_vjp = jax.vjp(pool, x)
        (dx,) = pool_vjp(dy)
        return dx

    cpu = functools.partial(_max_pool_gradient_on_cpu, window=window, stride=stride, padding=padding)
    return (lax.platform_dependent(x, y, dy, cpu=cpu, default=default),)


def _max_pool_gradient_on_cpu(
    x: Array, y: Array, dy: Array, *, window: int, stride: int, padding: int
) -> Array:
    """The gradient ``dx`` of `max_pool` with slices, comparisons and sums only, without a scatter.

    ``x`` and ``y`` are input and output of the pooling, ``dy`` is the gradient of ``y``. A window's ``dy`` goes to the
    first of its largest pixels.

    The padded image is divided into blocks of ``stride x stride`` pixels; every window starts at a block. Pixel (a, b)
    of all windows is a slice of the image with this stride. It is pixel (a % stride, b % stride) of the block that lies
    (a // stride, b // stride) blocks after the window's first one. So contributions are summed in one array for each
    pixel of a block, and these arrays are interleaved at the end.
    """
    height, width = y.shape[1:3]
    window_blocks = -(-window // stride)  # blocks that a window extends over, per axis
    block_rows, block_columns = height + window_blocks - 1, width + window_blocks - 1
    # Padding as (before, after, between pixels), for each axis of [B, H, W, C].
    image_padding = [
        (0, 0, 0),
        (padding, block_rows * stride - padding - x.shape[1], 0),
        (padding, block_columns * stride - padding - x.shape[2], 0),
        (0, 0, 0),
    ]
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), image_padding)
    assigned = jnp.zeros(y.shape, bool)  # windows whose first maximum has been found
    zeros = jnp.zeros((x.shape[0], block_rows, block_columns, x.shape[-1]), dy.dtype)
    block_gradients = dict.fromkeys(itertools.product(range(stride), repeat=2), zeros)  # by pixel of a block
    for a, b in itertools.product(range(window), repeat=2):
        pixels = padded[
            :, a : a + (height - 1) * stride + 1 : stride, b : b + (width - 1) * stride + 1 : stride
        ]
        is_maximum = (pixels == y) & ~assigned
        assigned |= is_maximum
        # Shift from a window's first block to the block with the pixel.
        i, j = a // stride, b // stride
        shift = [(0, 0, 0), (i, window_blocks - 1 - i, 0), (j, window_blocks - 1 - j, 0), (0, 0, 0)]
        contribution = lax.pad(jnp.where(is_maximum, dy, 0.0), jnp.zeros((), dy.dtype), shift)
        block_gradients[a % stride, b % stride] += contribution
    rows = [jnp.stack([block_gradients[a, b] for b in range(stride)], axis=3) for a in range(stride)]
    dx = jnp.stack(rows, axis=2).reshape(x.shape[0], block_rows * stride, block_columns * stride, -1)
    # Crop the padding.
    crop = [(-before, -after, 0) for before, after, _ in image_padding]
    return lax.pad(dx, jnp.zeros((), dy.dtype), crop)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
