"""Group normalization of channels, and batch normalization over devices."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import AxisName


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
        """``(x - mean) / sqrt(variance + epsilon) * scale + bias``, with the mean and the variance of each example's
        groups of channels."""
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f"{self.num_groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        dtype = nn.dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)

        def mean_per_group(channel_means):
            """Means per channel ``[B, C]`` to means per group ``[B, groups, 1]``."""
            return channel_means.reshape(x.shape[0], self.num_groups, -1).mean(axis=2, keepdims=True)

        precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # float32 at least
        spatial_axes = tuple(range(1, x.ndim - 1))
        mean = mean_per_group(precise.mean(spatial_axes))
        mean_square = mean_per_group(jnp.square(precise).mean(spatial_axes))
        variance = jnp.maximum(mean_square - jnp.square(mean), 0.0)
        # [B, groups, C / groups]
        factor = lax.rsqrt(variance + self.epsilon) * scale.reshape(1, self.num_groups, -1)

        def to_channels(a):
            """``[B, groups, 1 or C / groups]`` to the shape ``[B, 1, ..., 1, C]``, which broadcasts against ``x``."""
            return jnp.broadcast_to(a, factor.shape).reshape(x.shape[0], *(1 for _ in spatial_axes), channels)

        # Subtract before multiplying: mean * factor would be large where an image is nearly constant.
        y = (precise - to_channels(mean)) * to_channels(factor)
        return (y + bias.reshape((1,) * (x.ndim - 1) + (-1,))).astype(dtype)


def batch_norm(keys, axis_name: AxisName, *, dtype=None, affine: bool = True, name: str) -> nn.BatchNorm:
    """Batch norm with statistics of the global batch, the same on any number of devices.

    In evaluation (``keys`` is None) it uses the running statistics. ``axis_name``: the named axis that splits the batch
    over devices, if any. ``affine``: whether it has a learned scale and bias.
    """
    return nn.BatchNorm(
        use_running_average=keys is None, momentum=0.9, epsilon=1e-5, axis_name=axis_name, dtype=dtype,
        use_scale=affine, use_bias=affine, name=name,
    )  # fmt: skip
