"""Normalisation of images' channels."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class GroupNorm(nn.Module):
    """``nn.GroupNorm`` over ``[B, *spatial, C]``: the same parameters, defaults and results, sums over pixels first.

    ``y = (x - mean) / sqrt(variance + epsilon) * scale + bias``, mean and variance of each example over the pixels
    and the channels of a group (Wu & He 2018, arXiv:1803.08494, eq. 1-4). The pixels are summed per channel, which
    every platform does at the speed of its memory, and the few sums then per group; XLA's sums over pixels and some of
    the channels at once take several times as long on a CPU.

    Unlike batch norm it needs no other example, so that the batch and the devices do not matter.

    Raises:
      ValueError: ``num_groups`` does not divide the channels.
    """

    num_groups: int = 32
    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch *spatial channels"]:
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f"{self.num_groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        dtype = nn.dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)

        precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        pixels = tuple(range(1, x.ndim - 1))
        of_group = lambda sums: sums.reshape(len(x), self.num_groups, -1).mean(axis=2, keepdims=True)
        mean = of_group(precise.mean(pixels))
        variance = jnp.maximum(of_group(jnp.square(precise).mean(pixels)) - jnp.square(mean), 0.0)
        factor = lax.rsqrt(variance + self.epsilon) * scale.reshape(1, self.num_groups, -1)
        per_channel = lambda a: jnp.broadcast_to(a, factor.shape).reshape(
            len(x), *(1 for _ in pixels), channels
        )
        # The difference first: mean * factor is large where an image is nearly constant.
        y = (precise - per_channel(mean)) * per_channel(factor)
        return (y + bias.reshape((1,) * (x.ndim - 1) + (-1,))).astype(dtype)
