"""GPT-2 (Radford et al. 2019) as the library's own text decoder, to begin captioning or translation with.

What a language model lacks, the cross-attention to what the text is about, keeps its random start.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from xmodal_jax.nets.text import TextDecoder
from xmodal_jax.nets.transformer import Style
from xmodal_jax.pretrained.encoder import Options, activation
from xmodal_jax.pretrained.rules import FLAT, Rule, layers, linear, norm

PREFIXES = ("transformer.", "")
IGNORED = (
    r"^lm_head\.",
    r"\.attn\.(bias|masked_bias)$",
    r"^(score|classifier)\.",
    r"crossattention",
    r"ln_cross_attn",
)
"""Tied or other heads, buffers; cross-attention where the decoder has none."""


class GPT2(TextDecoder):
    """`nets.text.TextDecoder` as a language model: without cross-attention."""

    def example(self) -> tuple[Array, ...]:
        return (jnp.ones((1, 1), jnp.int32),)


def sizes(config: SimpleNamespace) -> dict[str, Any]:
    """What a ``config.json`` says, as fields of `nets.encoders.EncoderConfig`.

    Raises:
      ValueError: it differs from the decoder in more than sizes.
    """
    scaled = not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx
    if activation(config.activation_function) != "gelu_tanh" or scaled:
        raise ValueError("of GPT-2 the published form can be loaded: gelu_new, and attention scaled as usual")
    return dict(
        width=config.n_embd,
        depth=config.n_layer,
        heads=config.n_head,
        mlp_ratio=(config.n_inner or 4 * config.n_embd) / config.n_embd,
        epsilon=config.layer_norm_epsilon,
    )


def make(config: SimpleNamespace, options: Options) -> GPT2:
    """The language model of a ``config.json``."""
    own = sizes(config)
    return GPT2(
        vocab_size=config.vocab_size,
        max_length=config.n_positions,
        cross=False,
        style=Style(epsilon=own.pop("epsilon")),
        **options.of_transformer,
        **own,
    )


def _rows(count: int):
    """The first rows of a table that may have more: tokens that the tokenizer has not, positions beyond the length."""

    def change(table: np.ndarray) -> np.ndarray:
        if len(table) < count:
            raise ValueError(
                f"the pretrained decoder has {len(table)} tokens or positions, {count} are needed"
            )
        return table[:count]

    return change


def rules(module: TextDecoder) -> list[Rule]:
    """Its parameters in a checkpoint, those of the cross-attention as ``transformers`` names them.

    Raises:
      ValueError: the first layers read the text alone and end in a norm of their own, which GPT-2 has not.
    """
    if module.text_depth:
        raise ValueError(
            "a pretrained decoder has one stack of layers: leave --model.contrastive-weight at 0"
        )
    scan = module.scan_layers

    def layer(k: int, ours: str) -> list[Rule]:
        plain = linear(turned=False)
        found = [
            *norm(f"h.{k}.ln_1", f"{ours}/attention_norm"),
            Rule(f"h.{k}.attn.c_attn.weight", f"{ours}/attention/qkv/kernel", plain),
            Rule(f"h.{k}.attn.c_attn.bias", f"{ours}/attention/qkv/bias", FLAT),
            *_out(f"h.{k}.attn.c_proj", f"{ours}/attention/out"),
            *norm(f"h.{k}.ln_2", f"{ours}/mlp_norm"),
        ]
        for theirs, part in (("c_fc", "up"), ("c_proj", "down")):
            found += [
                Rule(f"h.{k}.mlp.{theirs}.weight", f"{ours}/mlp/{part}/kernel", plain),
                Rule(f"h.{k}.mlp.{theirs}.bias", f"{ours}/mlp/{part}/bias"),
            ]
        if not module.cross:
            return found
        cross = f"h.{k}.crossattention"
        return [
            *found,
            *norm(f"h.{k}.ln_cross_attn", f"{ours}/cross_norm"),
            Rule(f"{cross}.q_attn.weight", f"{ours}/cross_attention/query/kernel", plain),
            Rule(f"{cross}.q_attn.bias", f"{ours}/cross_attention/query/bias", FLAT),
            Rule(f"{cross}.c_attn.weight", f"{ours}/cross_attention/key_value/kernel", plain),
            Rule(f"{cross}.c_attn.bias", f"{ours}/cross_attention/key_value/bias", FLAT),
            *_out(f"{cross}.c_proj", f"{ours}/cross_attention/out"),
        ]

    return [
        Rule("wte.weight", "embed/embedding", change=_rows(module.vocab_size)),
        Rule("wpe.weight", "positions/embedding", change=_rows(module.max_length)),
        *layers(layer, module.depth, scan),
        *norm("ln_f", "transformer/norm"),
    ]


def _out(theirs: str, ours: str) -> list[Rule]:
    kernel = Rule(f"{theirs}.weight", f"{ours}/kernel", linear(inputs=2, turned=False))
    return [kernel, Rule(f"{theirs}.bias", f"{ours}/bias")]
