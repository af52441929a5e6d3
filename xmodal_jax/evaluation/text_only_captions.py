"""Captioners that are trained on texts alone: what a shared embedding space allows where its modalities meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import batch_mean
from xmodal_jax.core.decoding import GeneratedTokens, sample
from xmodal_jax.core.random import batch_keys
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.evaluation.learning import Trainer
from xmodal_jax.losses.sequence import token_cross_entropy
from xmodal_jax.models.seq2seq import start_decoding
from xmodal_jax.nets.encoders import TextDecoderConfig, build_decoder
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.types import Batch, Key, Params, Tokens

OPTIMIZER = Optimizer("muon", learning_rate=5e-3)
"""Update rule and learning-rate schedule of the captioners."""
DECODER = TextDecoderConfig(width=64, depth=2, heads=4)
"""The captioners' decoder."""
BATCH = 250
"""Number of captions that are generated at a time."""


class TextOnlyCaptioner:
    """Trains decoders that reconstruct texts from their embeddings, and write captions of other modalities from theirs.

    In training each embedding gets Gaussian noise, so that the decoder also reads embeddings that lie near those of
    texts. What remains of the modality gap costs the accuracy of captions.

    Args:
      tokenize: of the texts; its tokenizer has a begin and an end token.
      steps: updates of each decoder.
      noise: norm of the noise, relative to that of an embedding: its standard deviation is noise / sqrt(dim).
      decoder: of the captions.
      batch_size: texts per update.

    Raises:
      ValueError: the tokenizer has no begin or no end token.

    Example::

        captioner = TextOnlyCaptioner(tokenize, steps=1000)
        params = captioner.fit(captions, embeddings["text"])
        captioner.caption(params, embeddings["image"])  # ["a red circle", ...]

    References:
      Nukrai et al. 2022, Text-Only Training for Image Captioning using Noise-Injected CLIP (CapDec), arXiv:2211.00575.
    """

    def __init__(
        self,
        tokenize: TokenizeTransform,
        steps: int,
        *,
        noise: float = 0.3,
        decoder: TextDecoderConfig = DECODER,
        batch_size: int = 64,
    ):
        tokenizer = tokenize.tokenizer
        if min(tokenizer.bos_id, tokenizer.eos_id) < 0:
            raise ValueError(
                "the tokenizer has no begin or no end token, without which no text can be generated"
            )
        self.tokenize, self.noise, self._length = tokenize, noise, tokenize.max_length
        self._decoder = build_decoder(decoder, vocab_size=tokenizer.vocab_size, max_length=self._length)
        self._trainer = Trainer(self._init, self._loss, OPTIMIZER, steps=steps, batch_size=batch_size)
        self._generate = jax.jit(self._generate_tokens)

    def fit(self, texts: Sequence[str], embeddings: np.ndarray, *, seed: int = 0) -> Params:
        """The parameters of a decoder that was trained on ``texts`` and their unit embeddings ``[N, dim]``."""
        tokens = self.tokenize({"caption": np.asarray(texts, object)})
        fields = {name: tokens[name] for name in ("text", "text_mask")}
        return self._trainer.fit(
            fields | {"embedding": np.float32(embeddings)}, np.arange(len(texts)), seed=seed
        )

    def caption(self, params: Params, embeddings: np.ndarray) -> list[str]:
        """The most probable captions, token by token, of unit embeddings ``[N, dim]`` of any modality."""
        texts: list[str] = []
        for start in range(0, len(embeddings), BATCH):
            chunk = np.float32(embeddings[start : start + BATCH])
            padded = np.pad(chunk, [(0, BATCH - len(chunk)), (0, 0)], mode="edge")  # one shape for all
            generated = jax.device_get(self._generate(params, padded))
            texts += self.tokenize.tokenizer.decode_batch(generated.tokens, generated.mask)[: len(chunk)]
        return texts

    def _init(self, key: Key, batch: Batch) -> Params:
        memory = _to_memory(jnp.asarray(batch["embedding"]))
        return self._decoder.init(key, jnp.ones((1, self._length), jnp.int32), memory)["params"]

    def _loss(self, params: Params, batch: Batch, key: Key) -> Float[Array, ""]:
        """The cross-entropy of the texts' tokens, given their embeddings with noise, in nats per token."""
        embeddings, ids, mask = batch["embedding"], batch["text"], batch["text_mask"]
        dim = embeddings.shape[1]
        draw = jax.vmap(lambda key: jax.random.normal(key, (dim,)))
        noisy = l2_normalize(embeddings + self.noise / dim**0.5 * draw(batch_keys(key, batch)))
        logits = self._decoder.apply({"params": params}, ids[:, :-1], _to_memory(noisy))
        losses = token_cross_entropy(logits, ids[:, 1:], mask[:, 1:])  # the mean over the tokens of a text
        return batch_mean(losses, mask[:, 1:].sum(axis=1).astype(jnp.float32))

    def _generate_tokens(self, params: Params, embeddings: Any) -> GeneratedTokens:
        """The tokens of one text for each embedding."""
        begin = jnp.full(len(embeddings), self.tokenize.tokenizer.bos_id, jnp.int32)
        start = start_decoding(self._decoder, params, _to_memory(embeddings), begin)
        return sample(*start, length=self._length - 1, end=self.tokenize.tokenizer.eos_id)


def _to_memory(embeddings: Float[Array, "batch dim"]) -> Tokens:
    """Each embedding as the only token of a source, scaled so that its values have a mean square of 1."""
    return Tokens(embeddings[:, None, :] * embeddings.shape[1] ** 0.5, None)
