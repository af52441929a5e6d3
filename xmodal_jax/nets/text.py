"""Text encoder: token ids to tokens."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.pooling import prepend_class_token
from xmodal_jax.nets.transformer import Positions, Transformer
from xmodal_jax.types import ExampleKeys, Tokens


class TextTransformer(nn.Module):
    """Ids ``[B, L]`` to ``[B, (1 +) L, width]``: embedding, positions, transformer.

    Bidirectional unless ``causal``. ``mask [B, L]`` is True on content; None means ``ids != 0`` (0 is
    padding). An id outside ``[0, vocab_size)`` takes the nearest valid one's embedding (JAX clips indices).
    With ``class_token`` a learned token is prepended.

    Raises:
      ValueError: ``L > max_length``, or ``causal`` with ``class_token`` (a first token that sees nothing).
    """

    vocab_size: int
    max_length: int
    width: int = 128
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    positions: str = "learned"
    causal: bool = False
    class_token: bool = False
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        inputs: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        if self.causal and self.class_token:
            raise ValueError("a causal transformer's first token sees nothing: class_token must be False")
        mask = inputs != 0 if mask is None else mask
        x = nn.Embed(
            self.vocab_size,
            self.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embed",
        )(jnp.clip(inputs, 0, self.vocab_size - 1))
        x = Positions((self.max_length,), self.positions, name="positions")(x)
        if self.class_token:
            x, mask = prepend_class_token(self, x, mask)
        x = Dropout(self.dropout, name="dropout")(x, keys)
        x = Transformer(
            self.depth,
            self.heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            drop_path=self.drop_path,
            causal=self.causal,
            dtype=self.dtype,
            remat=self.remat,
            scan_layers=self.scan_layers,
            implementation=self.implementation,
            name="transformer",
        )(x, mask, keys=keys)
        return Tokens(x, mask)
