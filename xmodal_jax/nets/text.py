"""Text: token ids to tokens, and tokens of anything to the next token id."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.transformer import Positions, SizedTransformer, TransformerEncoder
from xmodal_jax.types import ExampleKeys, Tokens


class TextTransformer(TransformerEncoder):
    """Ids ``[B, L]`` to ``[B, (1 +) L, width]``: embedding, positions, transformer.

    Bidirectional unless ``causal``. ``mask [B, L]`` is True on content; None means ``ids != 0`` (0 is
    padding). An id outside ``[0, vocab_size)`` takes the nearest valid one's embedding (JAX clips indices).
    With ``class_token`` a learned token is prepended.

    Raises:
      ValueError: ``L > max_length``, or ``causal`` with ``class_token`` (a first token that sees nothing).
    """

    vocab_size: int
    max_length: int
    causal: bool = False

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
        return self.encode(x, mask, (self.max_length,), keys, causal=self.causal)


class TextDecoder(SizedTransformer):
    """Logits of the next token: ids ``[B, L]`` and what the text is about, tokens ``[B, M, D]``, to ``[B, L, vocab]``.

    A causal transformer with cross-attention to ``memory``, whose output is compared with the tokens' embeddings (tied:
    Press and Wolf 2017, arXiv:1608.05859). Float32 logits; position ``t`` sees the ids up to ``t``. Without ``cross``
    there is no memory: a language model. The first ``text_depth`` of the ``depth`` layers see the text alone and end in
    a norm of their own, so that what they make of it can be compared with other modalities (CoCa, Yu et al. 2022,
    arXiv:2205.01917, sec. 3.2); ``states`` gives that back as well, ``[B, L, width]``.

    One token at a time, ``position`` is its place and the collection ``cache`` holds what the earlier tokens left,
    ``memory`` the keys and values of the memory (see `nets.attention.MultiHeadAttention`), of which several rows of
    ``inputs`` may share one. The result equals that of all tokens at once.

    Raises:
      ValueError: ``L > max_length``, or a memory without ``cross`` or the reverse.
    """

    vocab_size: int
    max_length: int
    cross: bool = True
    text_depth: int = 0

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
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(0.02), name="embed"
        )
        x = embed(jnp.clip(inputs, 0, self.vocab_size - 1))
        offset, seen = 0, None
        if position is not None:
            offset = position
            seen = jnp.broadcast_to(jnp.arange(self.max_length) <= position, (len(x), self.max_length))
        x = Positions((self.max_length,), self.positions, name="positions")(x, offset)
        x = Dropout(self.dropout, name="dropout")(x, keys)
        if self.text_depth:
            read = self.transformer(causal=True, depth=self.text_depth, name="text_transformer")
            # Other draws than those of the layers that follow, which are counted from 0 again.
            own = None if keys is None else fold_in_name(keys, "text")
            x = read(x, seen, keys=own, position=position)
        text = x
        attend = self.transformer(causal=True, cross=self.cross, depth=self.depth - self.text_depth)
        x = attend(x, seen, *(memory or (None, None)), keys=keys, position=position)
        logits = embed.attend(x.astype(jnp.float32))
        return (logits, text) if states else logits
