"""Transformers over text: an encoder of token ids, and a decoder that predicts the next token."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.nets.dropout import Dropout, TokenDropout
from xmodal_jax.nets.transformer import PositionEmbedding, SizedTransformer, TransformerEncoder
from xmodal_jax.types import ExampleKeys, Tokens


class TextTransformer(TransformerEncoder):
    """Text encoder: token ids ``[B, L]`` to tokens ``[B, (1 +) L, width]``, by embedding, positions and transformer.

    ``mask [B, L]`` is True on valid ids; None means ``ids != 0`` (0 is padding). An id outside ``[0, vocab_size)``
    takes the embedding of the nearest valid id. With ``class_token`` a learned token comes first.

    Raises:
      ValueError: ``L > max_length``, or ``causal`` with ``class_token`` (the first token would attend to nothing else).
    """

    vocab_size: int
    """Size of the vocabulary."""
    max_length: int
    """The largest number of ids."""
    causal: bool = False
    """Whether a token attends to itself and earlier ones only."""
    embedding_std: float = 0.02
    """Standard deviation of the initial embeddings."""
    token_dropout: float = 0.0
    """Probability that a token is replaced by the unknown token in training."""

    @nn.compact
    def __call__(
        self,
        inputs: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens ``[B, L, width]`` of the token ids ``inputs``, with their mask; a class token, if any, comes
        first.

        ``mask`` is True on valid ids; None: all ids but 0, which is padding.
        """
        if self.causal and self.class_token:
            raise ValueError("a causal transformer's first token sees nothing: class_token must be False")
        mask = inputs != 0 if mask is None else mask
        inputs = TokenDropout(self.token_dropout, name="token_dropout")(inputs, keys)
        x = nn.Embed(
            self.vocab_size,
            self.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(self.embedding_std),
            name="embed",
        )(jnp.clip(inputs, 0, self.vocab_size - 1))
        # Adds positions (and the class token), then runs the transformer.
        return self.encode(x, mask, grid=(self.max_length,), keys=keys, causal=self.causal)


class TextDecoder(SizedTransformer):
    """Text decoder: logits of the next token, float32 ``[B, L, vocab]``, from ids ``[B, L]`` and tokens of the source.

    A causal transformer with cross-attention to ``memory``, the source's tokens ``[B, M, D]``. Logits after position
    ``t`` depend on the ids up to ``t``. The output layer is the transposed embedding (Press and Wolf 2017,
    arXiv:1608.05859). The first ``text_depth`` layers have no cross-attention and end in a norm of their own, so that
    their output can be compared with other modalities (CoCa, Yu et al. 2022, arXiv:2205.01917, sec. 3.2); with
    ``states`` it is returned as well, ``[B, L, width]``.

    To decode one token at a time, give its ``position`` and make the collections "cache" (keys and values of earlier
    tokens) and "memory" (those of the source) mutable; see `nets.attention.MultiHeadAttention`. Several rows of
    ``inputs`` may share a row of ``memory``. The result equals that of all tokens at once.

    Raises:
      ValueError: ``L > max_length``, or a memory without ``cross`` or the reverse.
    """

    vocab_size: int
    """Size of the vocabulary."""
    max_length: int
    """The largest number of ids."""
    cross: bool = True
    """Whether there is cross-attention; without it the decoder is a language model."""
    text_depth: int = 0
    """How many of the ``depth`` layers, the first ones, have no cross-attention."""

    @nn.compact
    def __call__(
        self,
        inputs: Int[Array, "batch length"],
        memory: Tokens | None = None,
        *,
        keys: ExampleKeys | None = None,
        position: Int[Array, ""] | int | None = None,
        states: bool = False,
    ) -> Float[Array, "batch length vocab"] | tuple[Float[Array, "batch length vocab"], Array]:
        """Logits of the next token ``[B, L, vocab]`` after each of the token ids ``inputs``.

        Args:
          inputs: token ids.
          memory: the source's tokens, for cross-attention; None for a language model.
          keys: one key per example, for dropout in training; None in evaluation.
          position: index of the one token in ``inputs`` when decoding token by token with a cache; else None.
          states: whether to return ``(logits, states)``, with the output ``[B, L, width]`` of the first layers, those
            without cross-attention.
        """
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(0.02), name="embed"
        )
        x = embed(jnp.clip(inputs, 0, self.vocab_size - 1))
        offset, mask = 0, None
        if position is not None:  # attend to the cached tokens up to this one
            offset = position
            mask = jnp.broadcast_to(jnp.arange(self.max_length) <= position, (x.shape[0], self.max_length))
        x = PositionEmbedding((self.max_length,), self.positions, name="positions")(x, offset)
        x = Dropout(self.dropout, name="dropout")(x, keys)
        if self.text_depth:
            text_layers = self.transformer(causal=True, depth=self.text_depth, name="text_transformer")
            # Layers are numbered from 0 in both stacks: without keys of their own they would draw the same dropout.
            text_keys = None if keys is None else fold_in_name(keys, "text")
            x = text_layers(x, mask, keys=text_keys, position=position)
        text_states = x
        layers = self.transformer(causal=True, cross=self.cross, depth=self.depth - self.text_depth)
        kv, kv_mask = memory or (None, None)  # the source's tokens and their mask
        x = layers(x, mask, kv, kv_mask, keys=keys, position=position)
        logits = embed.attend(x.astype(jnp.float32))  # by the transposed token embedding
        return (logits, text_states) if states else logits
