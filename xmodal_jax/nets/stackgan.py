"""The second stage of StackGAN: a generator that refines the images of another one.

Zhang et al. 2017, arXiv:1612.03242, section 3.3.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import AxisName, shard_examples
from xmodal_jax.nets.conv import Conv
from xmodal_jax.nets.image import halvings, upsample_nearest
from xmodal_jax.nets.norm import batch_norm
from xmodal_jax.types import Condition, ExampleKeys

MAX_HALVINGS = 2
"""How often the first stage's images are halved, as in the paper; less often if a side would get shorter than 4
pixels."""
LARGEST_PIXEL = 0.99
"""Largest absolute value of an upsampled pixel whose ``arctanh`` is taken, which is infinite at 1."""


class StackGANGenerator(nn.Module):
    """Images of more pixels from the images of a first stage and a condition; there is no further noise.

    A 3x3 convolution and 4x4 convolutions of stride 2 encode the first stage's image. The condition's vector is joined
    to each position of this feature map, a 3x3 convolution and ``blocks`` residual blocks follow, and nearest-neighbour
    upsampling with 3x3 convolutions up to the size of the image. All but the first and the last convolution have batch
    norm; activations are ReLU. ``width`` channels encode the first stage's image at its own size, each halving doubles
    and each upsampling halves the channels.

    The image is ``tanh(z)`` of the last convolution's output ``z``. With ``skip`` it is ``tanh(z + arctanh(u))``, where
    ``u`` is the first stage's image, bilinearly upsampled, and the last convolution is zero at initialization: training
    begins at ``u``. The paper has no such skip connection.

    Raises:
      ValueError: the sides of the images are not those of the first stage's times one power of 2.
    """

    shape: tuple[int, int, int]
    width: int = 32
    blocks: int = 2
    axis_name: AxisName = None
    dtype: Any = None
    skip: bool = False

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        condition: Condition,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height2 width2 channels"]:
        """Images in (-1, 1) from the first stage's ``images`` and the condition's vector.

        ``keys`` is None in evaluation, where batch norm uses its running statistics.
        """
        scale = _scale(images.shape[1:3], self.shape[:2])
        shrinkings = min(halvings(images.shape[1:3]), MAX_HALVINGS)
        x = nn.relu(Conv(self.width, (3, 3), dtype=self.dtype, name="encode")(images))
        for k in range(shrinkings):
            x = nn.relu(self._normed(x, 2 * x.shape[-1], (4, 4), f"down_{k}", keys, strides=2))
        features = x.shape[-1]
        if condition.vector is not None:
            vector = condition.vector[:, None, None].astype(x.dtype)
            tiled = jnp.broadcast_to(vector, (*x.shape[:3], vector.shape[-1]))
            x = nn.relu(
                self._normed(jnp.concatenate([x, tiled], axis=-1), features, (3, 3), "condition", keys)
            )
        for k in range(self.blocks):
            branch = nn.relu(self._normed(x, features, (3, 3), f"block_{k}_0", keys))
            x = nn.relu(x + self._normed(branch, features, (3, 3), f"block_{k}_1", keys))
        for k in range(shrinkings + int(math.log2(scale))):
            features = max(features // 2, 1)
            x = nn.relu(self._normed(upsample_nearest(x), features, (3, 3), f"up_{k}", keys))
        if not self.skip:
            pixels = Conv(self.shape[2], (3, 3), dtype=self.dtype, name="pixels")(x)
            return jnp.tanh(pixels.astype(jnp.float32))
        zeros = nn.initializers.zeros_init()
        detail = Conv(self.shape[2], (3, 3), dtype=self.dtype, kernel_init=zeros, name="detail")(x)
        upsampled = jax.image.resize(images.astype(jnp.float32), detail.shape, "bilinear")
        start = jnp.arctanh(jnp.clip(upsampled, -LARGEST_PIXEL, LARGEST_PIXEL))
        return jnp.tanh(start + detail.astype(jnp.float32))

    def _normed(self, x, features: int, size: tuple[int, int], name: str, keys, strides: int = 1):
        """A convolution of ``x`` with a kernel of ``size``, and batch norm."""
        conv = Conv(features, size, strides=strides, use_bias=False, dtype=self.dtype, name=f"{name}_conv")
        norm = batch_norm(keys, self.axis_name, dtype=self.dtype, name=f"{name}_norm")
        return shard_examples(norm(conv(x)))


def _scale(small: tuple[int, ...], large: tuple[int, ...]) -> int:
    """How many times as long the sides of the size ``large`` are; raises ValueError if it is no power of 2."""
    scale = large[0] // small[0]
    if scale < 1 or scale & (scale - 1) or tuple(scale * side for side in small) != tuple(large):
        raise ValueError(
            f"the first stage has images of {small[0]} x {small[1]} pixels, these have {large[0]} x {large[1]}: their "
            "sides must be the same power of 2 times longer"
        )
    return scale
