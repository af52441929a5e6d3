"""Pooling: of tokens to one vector per example, and max pooling of images."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.types import Tokens

POOLS = ("mean", "cls", "attention")
"""The kinds of `Pool`."""


class Pool(nn.Module):
    """Pools tokens to one vector, ``[B, N, D] -> [B, D]`` in float32.

    ``kind`` is "mean" (of the valid tokens), "cls" (the first token) or "attention": multi-head attention of one
    learned query over the tokens (Zhai et al. 2022, arXiv:2106.04560, section 2.2, without the MLP). Masked tokens have
    no influence. An example without valid tokens gives zeros (with "attention" the bias of the output projection), and
    a zero gradient to the tokens.

    Raises:
      ValueError: ``kind`` is unknown.
    """

    kind: str = "mean"
    heads: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The pooled tokens; see the class."""
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
                values = jnp.where(mask[:, :, None], values, jnp.zeros_like(values))
            pooled = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(query, values, mask)
            return pooled[:, 0].astype(jnp.float32)
        raise ValueError(f"pool must be one of {POOLS}, got {self.kind!r}")


def prepend_class_token(module: nn.Module, x, mask):
    """The tokens with a learned one in front, ``[B, N, D] -> [B, 1 + N, D]``, and their mask; for compact methods."""
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
    y = max_pool(x, window, stride, padding)
    return y, (x, y)


def _max_pool_backward(window, stride, padding, saved, dy):
    """The gradient of `max_pool` by its input: `_max_pool_gradient_on_cpu` on a CPU, that of ``lax`` elsewhere."""
    x, y = saved

    def default(x, y, dy):
        plain = lambda x: nn.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)
        return jax.vjp(plain, x)[1](dy)[0]

    cpu = functools.partial(_max_pool_gradient_on_cpu, window=window, stride=stride, padding=padding)
    return (lax.platform_dependent(x, y, dy, cpu=cpu, default=default),)


def _max_pool_gradient_on_cpu(
    x: Array, y: Array, dy: Array, *, window: int, stride: int, padding: int
) -> Array:
    """The gradient of `max_pool` with slices, comparisons and sums only, without a scatter.

    The (padded) image is seen as blocks of ``stride x stride`` pixels. For every position (a, b) in the window, a slice
    with this stride holds that pixel of all windows. Where it is a window's first maximum, it gets the window's ``dy``.
    This is pixel (a % stride, b % stride) of the block that lies (a // stride, b // stride) further on. So ``dx`` has
    one array per pixel of a block, in which contributions are summed; these arrays are interleaved at the end.
    """
    height, width = y.shape[1:3]
    reach = -(-window // stride)  # blocks that a window extends over
    rows, columns = height + reach - 1, width + reach - 1
    fill = [
        (0, 0, 0),
        (padding, rows * stride - padding - x.shape[1], 0),
        (padding, columns * stride - padding - x.shape[2], 0),
        (0, 0, 0),
    ]
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), fill)
    assigned = jnp.zeros(y.shape, bool)  # windows whose maximum has been found
    zeros = jnp.zeros((len(x), rows, columns, x.shape[-1]), dy.dtype)
    dx = dict.fromkeys(itertools.product(range(stride), repeat=2), zeros)
    for a, b in itertools.product(range(window), repeat=2):
        pixels = padded[
            :, a : a + (height - 1) * stride + 1 : stride, b : b + (width - 1) * stride + 1 : stride
        ]
        is_maximum = (pixels == y) & ~assigned
        assigned |= is_maximum
        i, j = a // stride, b // stride
        shift = [(0, 0, 0), (i, reach - 1 - i, 0), (j, reach - 1 - j, 0), (0, 0, 0)]
        part = lax.pad(jnp.where(is_maximum, dy, 0.0), jnp.zeros((), dy.dtype), shift)
        dx[a % stride, b % stride] += part
    interleaved = [jnp.stack([dx[a, b] for b in range(stride)], axis=3) for a in range(stride)]
    interleaved = jnp.stack(interleaved, axis=2).reshape(len(x), rows * stride, columns * stride, -1)
    return lax.pad(interleaved, jnp.zeros((), dy.dtype), [(-lo, -hi, 0) for lo, hi, _ in fill])


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
