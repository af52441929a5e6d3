"""Group normalization of channels."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class GroupNorm(nn.Module):
    """``nn.GroupNorm`` over ``[B, *spatial, C]``, faster on a CPU: the same parameters, defaults and results.

    ``y = (x - mean) / sqrt(variance + epsilon) * scale + bias``, where mean and variance are those of each example over
    the pixels and the channels of a group (Wu and He 2018, arXiv:1803.08494, eq. 1-4). Here pixels are summed per
    channel first, which every platform does at the speed of its memory, and these sums then per group. XLA's sums over
    pixels and part of the channels at once take several times as long on a CPU.

    Unlike batch norm, an example's result depends neither on the rest of the batch nor on the number of devices.

    Raises:
      ValueError: ``num_groups`` does not divide the channels.
    """

    num_groups: int = 32
    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch *spatial channels"]:
        """``x``, normalized per example and group, then scaled and shifted per channel."""
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f"{self.num_groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        dtype = nn.dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)

        precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        pixels = tuple(range(1, x.ndim - 1))
        mean_per_group = lambda per_channel: per_channel.reshape(len(x), self.num_groups, -1).mean(
            axis=2, keepdims=True
        )
        mean = mean_per_group(precise.mean(pixels))
        variance = jnp.maximum(mean_per_group(jnp.square(precise).mean(pixels)) - jnp.square(mean), 0.0)
        factor = lax.rsqrt(variance + self.epsilon) * scale.reshape(1, self.num_groups, -1)
        to_channels = lambda a: jnp.broadcast_to(a, factor.shape).reshape(
            len(x), *(1 for _ in pixels), channels
        )
        # Subtract before multiplying: mean * factor would be large where an image is nearly constant.
        y = (precise - to_channels(mean)) * to_channels(factor)
        return (y + bias.reshape((1,) * (x.ndim - 1) + (-1,))).astype(dtype)
