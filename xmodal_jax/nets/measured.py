"""Encoders of measured quantities: vectors and series in standard units."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.audio import AudioTransformer
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.transformer import TransformerEncoder
from xmodal_jax.types import ExampleKeys, Tokens


def known_values(
    inputs: Float[Array, "batch *shape"], mask: Bool[Array, "batch ..."] | None
) -> Float[Array, "batch *shape"]:
    """The inputs with 0 where the mask, which may lack their last axes, is False."""
    if mask is None:
        return inputs
    mask = mask.reshape(*mask.shape, *(1,) * (inputs.ndim - mask.ndim))
    return jnp.where(mask, inputs, 0.0)


class VectorMLP(nn.Module):
    """An MLP over all features of a vector: ``[B, D] -> [B, 1, width]``, of ``depth`` layers with GELU.

    A missing value counts as 0, the mean of its feature. With ``indicators`` the network also gets which values are
    there.
    """

    width: int = 128
    depth: int = 2
    norm: bool = True
    """Whether each layer but the first begins with a layer norm."""
    indicators: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch features"],
        mask: Bool[Array, "batch features"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The single token ``[B, 1, width]`` of each vector. ``mask`` is False where a value is missing; None: none
        is."""
        x = known_values(inputs, mask)
        if self.indicators:
            is_known = jnp.ones(x.shape, x.dtype) if mask is None else mask.astype(x.dtype)
            x = jnp.concatenate([x, is_known], axis=-1)
        for k in range(self.depth):
            if k and self.norm:
                x = nn.LayerNorm(dtype=self.dtype, name=f"norm_{k}")(x)
            x = nn.gelu(shard_examples(nn.Dense(self.width, dtype=self.dtype, name=f"layer_{k}")(x)))
            x = Dropout(self.dropout, name=f"dropout_{k}")(x, keys)
        return Tokens(x[:, None], mask=None)


class FeatureTransformer(TransformerEncoder):
    """A transformer whose tokens are the features of a vector (Gorishniy et al. 2021, arXiv:2106.11959):
    ``[B, D] -> [B, (1 +) D, width]``.

    The token of feature j with value x is ``x w_j + p_j``, with a learned ``w_j`` and a position embedding ``p_j`` for
    each feature. Missing values are masked tokens, which nothing attends to.
    """

    positions: str = "sincos"

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch features"],
        mask: Bool[Array, "batch features"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """A token for each feature, with the mask of those that are there."""
        weight = self.param("weight", nn.initializers.normal(1.0), (inputs.shape[1], self.width))
        x = known_values(inputs, mask)[:, :, None] * weight[None]
        return self.encode(x, mask, grid=(inputs.shape[1],), keys=keys)


class SeriesTransformer(AudioTransformer):
    """Convolutions over the steps of a series, then a transformer: ``[B, T, C] -> [B, (1 +) ceil(T / downsample),
    width]``.

    The network of `nets.audio.AudioTransformer`, on channels in place of mel bands. ``mask`` is that of the steps, or
    ``[B, T, C]`` of single values: a step counts if it has one; its missing values are 0, the mean of their channel.
    """

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch steps channels"],
        mask: Bool[Array, "batch ..."] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens with their mask; a class token, if any, comes first."""
        steps = mask.any(axis=-1) if mask is not None and mask.ndim == inputs.ndim else mask
        return super().__call__(known_values(inputs, mask), steps, keys=keys)
