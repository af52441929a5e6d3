"""BERT (Devlin et al. 2018, arXiv:1810.04805) and RoBERTa (Liu et al. 2019, arXiv:1907.11692)."""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.pooling import Pool
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
    at ``first_position``. ``pool`` is a linear layer and ``tanh`` on the first token; the first token alone where the
    checkpoint has no such layer (``has_pooler``); or that of sentence-transformers (``sentence_pools``, ``normalize``).

    Raises:
      ValueError: there are more tokens than positions.
    """

    sizes: TransformerSizes
    vocab_size: int
    positions: int
    segments: int
    first_position: int | None = None
    has_pooler: bool = True
    """Whether the checkpoint has the linear layer of ``pool``. Those of classifiers and masked-language models have
    none."""
    sentence_pools: tuple[str, ...] = ()
    """For sentence encoders: kinds of `nets.pooling.Pool`, whose vectors ``pool`` concatenates."""
    normalize: bool = False
    """For sentence encoders: whether ``pool`` gives unit vectors."""

    def setup(self):
        """Embeddings, transformer and pools; the pooler's dense layer only if ``options.head`` asks for pooling."""
        width = self.sizes.width
        # "words" and "places" name parameters: the embeddings of tokens and of positions.
        self.words = nn.Embed(self.vocab_size, width)
        self.places = nn.Embed(self.positions, width)
        self.types = nn.Embed(self.segments, width)  # of segments, BERT's "token types"
        self.norm = self.sizes.norm()
        self.dropout = Dropout(self.sizes.options.dropout)
        self.transformer = self.sizes.transformer()
        self.pools = [Pool(kind) for kind in self.sentence_pools]
        if self.sizes.options.head == "pool" and self.has_pooler and not self.pools:
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
        # ``first_position`` is RoBERTa's position of the first token; None: positions count from 0, as in BERT.
        length, first = inputs.shape[1], self.first_position or 0
        if length > self.max_tokens:
            raise ValueError(f"{length} tokens given, the pretrained model has {self.max_tokens} positions")
        if self.first_position is None:
            position = self.places(jnp.arange(length))[None]
        else:
            valid = jnp.ones(inputs.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
            # The n-th valid token has position first + n - 1; padding has position first - 1, as in RoBERTa.
            position = self.places(jnp.cumsum(valid, axis=1) * valid + first - 1)
        words = self.words(jnp.clip(inputs, 0, self.vocab_size - 1))
        # All tokens are of segment 0: the text is a single sentence.
        x = self.norm(words + self.types(jnp.zeros((1, 1), jnp.int32)) + position)
        self.record_hidden_state(x)
        x = self.dropout(x, keys)
        return Tokens(self.transformer(x, mask, keys=keys), mask)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The vector ``[B, D]`` of each text, as the class says; ``[B, K D]`` with K ``sentence_pools``."""
        if self.pools:
            pooled = jnp.concatenate([pool(tokens) for pool in self.pools], axis=-1)
            return l2_normalize(pooled) if self.normalize else pooled
        first = tokens.values[:, 0]
        return jnp.tanh(self.pooler(first)) if self.has_pooler else first

    @property
    def max_tokens(self) -> int:
        return self.positions - (self.first_position or 0)


def make(config: SimpleNamespace, options: EncoderOptions) -> Bert:
    """The encoder that a parsed ``config.json`` describes, without parameters. ``options``: head, dropout, dtype.

    Raises:
      ValueError: it has no absolute positions or is causal; or it is a sentence encoder with modules after the pooling
        that this library does not have, and ``options.head`` asks for them.
    """
    # The settings of sentence-transformers, if it has saved the encoder.
    sentence = getattr(config, "sentence", SimpleNamespace(pooling=[], normalize=False, unread=[]))
    if sentence.unread and options.head != "none":
        raise ValueError(
            f"modules.json lists {', '.join(sentence.unread)}, which this library does not have: the sentence "
            "encoder's own pool cannot be loaded. Choose another, such as --model.text.pool mean"
        )
    is_decoder = getattr(config, "is_decoder", False)
    if is_decoder or getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ValueError("only bidirectional BERT with absolute positions can be loaded")
    return Bert(
        sizes=read_sizes(config, options, norm="post"),
        vocab_size=config.vocab_size,
        positions=config.max_position_embeddings,
        segments=config.type_vocab_size,
        first_position=config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else None,
        has_pooler=getattr(config, "has_pooler", True),
        sentence_pools=tuple(sentence.pooling),
        normalize=sentence.normalize,
    )


def rules(module: Bert) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
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
