"""An encoder of audio: log-mel frames to tokens."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.conv import Conv, apply_mask
from xmodal_jax.nets.transformer import TransformerEncoder
from xmodal_jax.types import ExampleKeys, Tokens


class AudioTransformer(TransformerEncoder):
    """Log-mel frames ``[B, F, n_mels]`` to ``[B, (1 +) ceil(F / downsample), width]``.

    ``log2(downsample)`` convolutions over time (size 3, stride 2, GELU), then a transformer. Token i is centred on
    frame ``i * downsample``, and valid if that frame is. Masked frames are set to zero before every convolution, so
    that an utterance and a padded copy of it give the same tokens. Positions are sine-cosine by default (any length).

    Raises:
      ValueError: ``downsample`` is not a power of 2.
    """

    positions: str = "sincos"
    downsample: int = 8

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames n_mels"],
        mask: Bool[Array, "batch frames"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """Tokens ``[B, ceil(F / downsample), width]`` of log-mel frames, with their mask; a class token, if any, comes
        first. ``mask`` is True on valid frames."""
        if self.downsample < 1 or self.downsample & (self.downsample - 1):
            raise ValueError(f"downsample must be a power of 2, got {self.downsample}")
        x = apply_mask(inputs, mask)
        halvings = self.downsample.bit_length() - 1  # log2(downsample)
        for i in range(halvings):  # convolutions of stride 2
            x = nn.gelu(Conv(self.width, (3,), strides=2, padding=1, dtype=self.dtype, name=f"conv_{i}")(x))
            mask = None if mask is None else mask[:, ::2]
            x = apply_mask(x, mask)
        x = nn.Dense(self.width, dtype=self.dtype, name="project")(x)
        return self.encode(x, mask, grid=(x.shape[1],), keys=keys)  # positions, class token, transformer
