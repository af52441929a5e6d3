"""BERT (Devlin et al. 2018, arXiv:1810.04805) and RoBERTa (Liu et al. 2019, arXiv:1907.11692)."""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.pretrained.encoder import EncoderOptions, PretrainedEncoder, TransformerSizes, read_sizes
from xmodal_jax.pretrained.rules import Rule, block, dense, embedding, layers, norm
from xmodal_jax.types import ExampleKeys, Tokens

LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
PREFIXES = ("", "bert.", "roberta.")
IGNORED = (r"^cls\.", r"^lm_head\.", r"^(classifier|qa_outputs)\.", r"\.position_ids$", r"\.token_type_ids$")
"""Heads of other tasks, and buffers."""


class Bert(PretrainedEncoder):
    """BERT or RoBERTa: token ids ``[B, L]`` to ``[B, L, D]``.

    It consists of post-norm blocks over the normalized sum of the embeddings of words, positions and segment 0.
    ``mask [B, L]`` is True on valid tokens; None means all. RoBERTa counts positions over valid tokens only, starting
    at ``first_position``. ``pool`` is a linear layer and ``tanh`` on the first token.

    Raises:
      ValueError: there are more tokens than positions.
    """

    sizes: TransformerSizes
    vocab_size: int
    positions: int
    segments: int
    first_position: int | None = None

    def setup(self):
        width = self.sizes.width
        # "words" and "places" name parameters: the embeddings of tokens and of positions.
        self.words = nn.Embed(self.vocab_size, width)
        self.places = nn.Embed(self.positions, width)
        self.types = nn.Embed(self.segments, width)  # of segments, BERT's "token types"
        self.norm = self.sizes.norm()
        self.dropout = Dropout(self.sizes.options.dropout)
        self.transformer = self.sizes.transformer()
        if self.sizes.options.head == "pool":
            self.pooler = nn.Dense(width, dtype=self.sizes.options.dtype)

    def example_inputs(self) -> tuple[Array, ...]:
        return (jnp.ones((1, 1), jnp.int32),)

    def __call__(
        self,
        inputs: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of texts ``[B, L, D]`` with ``mask``, True on valid tokens."""
        length, first = inputs.shape[1], self.first_position or 0
        if length > self.positions - first:
            raise ValueError(
                f"{length} tokens given, the pretrained model has {self.positions - first} positions"
            )
        if self.first_position is None:
            position = self.places(jnp.arange(length))[None]
        else:
            valid = jnp.ones(inputs.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
            # The n-th valid token has position first + n - 1; padding has position first - 1, as in RoBERTa.
            position = self.places(jnp.cumsum(valid, axis=1) * valid + first - 1)
        words = self.words(jnp.clip(inputs, 0, self.vocab_size - 1))
        x = self.norm(words + self.types(jnp.zeros((1, 1), jnp.int32)) + position)
        self.record_hidden_state(x)
        x = self.dropout(x, keys)
        return Tokens(self.transformer(x, mask, keys=keys), mask)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The first token after a linear layer and tanh, ``[B, D]``."""
        return jnp.tanh(self.pooler(tokens.values[:, 0]))


def make(config: SimpleNamespace, options: EncoderOptions) -> Bert:
    """The encoder that a parsed ``config.json`` describes, without parameters."""
    is_decoder = getattr(config, "is_decoder", False)
    if is_decoder or getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ValueError("only bidirectional BERT with absolute positions can be loaded")
    return Bert(
        sizes=read_sizes(config, options, norm="post"),
        vocab_size=config.vocab_size,
        positions=config.max_position_embeddings,
        segments=config.type_vocab_size,
        first_position=config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else None,
    )


def rules(module: Bert) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters."""
    sizes = module.sizes
    return [
        *embedding("embeddings.word_embeddings", "words"),
        *embedding("embeddings.position_embeddings", "places"),
        *embedding("embeddings.token_type_embeddings", "types"),
        *norm("embeddings.LayerNorm", "norm"),
        *layers(
            lambda k, path: block(f"encoder.layer.{k}", path, LAYER_NAMES),
            sizes.depth,
            sizes.options.scan_layers,
        ),
        *dense("pooler.dense", "pooler"),
    ]
