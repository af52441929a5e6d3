"""GPT-2 (Radford et al. 2019) as the library's text decoder, the start of a captioner or a translator.

A language model has no cross-attention; that of the decoder keeps its random initialization.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from xmodal_jax.nets.text import TextDecoder
from xmodal_jax.nets.transformer import TransformerStyle
from xmodal_jax.pretrained.encoder import EncoderOptions, activation
from xmodal_jax.pretrained.rules import FLAT, Rule, layers, linear, norm

PREFIXES = ("transformer.", "")
IGNORED = (
    r"^lm_head\.",
    r"\.attn\.(bias|masked_bias)$",
    r"^(score|classifier)\.",
    r"crossattention",
    r"ln_cross_attn",
)
"""The tied head and heads of other tasks, buffers, and cross-attention if the decoder has none."""


class GPT2(TextDecoder):
    """A language model: `nets.text.TextDecoder` without cross-attention."""

    def example_inputs(self) -> tuple[Array, ...]:
        return (jnp.ones((1, 1), jnp.int32),)


def sizes(config: SimpleNamespace) -> dict[str, Any]:
    """The sizes in a parsed ``config.json``, as keyword arguments of `nets.encoders.TextDecoderConfig`.

    Raises:
      ValueError: the model differs from the library's decoder in more than sizes.
    """
    unusual_scale = not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx
    if activation(config.activation_function) != "gelu_tanh" or unusual_scale:
        raise ValueError("only the published GPT-2 can be loaded: gelu_new, and attention scaled as usual")
    return dict(
        width=config.n_embd,
        depth=config.n_layer,
        heads=config.n_head,
        mlp_ratio=(config.n_inner or 4 * config.n_embd) / config.n_embd,
        epsilon=config.layer_norm_epsilon,
    )


def make(config: SimpleNamespace, options: EncoderOptions) -> GPT2:
    """The language model that a parsed ``config.json`` describes, without parameters. ``options``: dropout, dtype and
    the like."""
    fields = sizes(config)
    return GPT2(
        vocab_size=config.vocab_size,
        max_length=config.n_positions,
        cross=False,
        style=TransformerStyle(epsilon=fields.pop("epsilon")),
        **options.transformer_options,
        **fields,
    )


def _first_rows(count: int):
    """A function that cuts an embedding table ``[N, D]`` to its first ``count`` tokens or positions."""

    def take(table: np.ndarray) -> np.ndarray:
        """The first ``count`` rows; ValueError if there are fewer."""
        if len(table) < count:
            raise ValueError(
                f"the pretrained decoder has {len(table)} tokens or positions, {count} are needed"
            )
        return table[:count]

    return take


def rules(module: TextDecoder) -> list[Rule]:
    """The rules that map the arrays of a GPT-2 checkpoint to the decoder's parameters.

    Each rule names first an array (or layer) of the checkpoint, then the path of the parameter. Cross-attention, which
    published checkpoints lack, has the names that ``transformers`` gives it.

    Raises:
      ValueError: the decoder has a separate stack of layers for the text alone, which GPT-2 lacks.
    """
    if module.text_depth:
        raise ValueError("a pretrained decoder has one stack of layers: leave --model.contrastive out")
    scan = module.scan_layers

    def layer(k: int, path: str) -> list[Rule]:
        """The rules of layer ``k`` at ``path``, with those of its cross-attention if the decoder has it."""
        plain = linear(transposed=False)  # GPT-2 stores its matrices as [in, out]
        rules = [
            *norm(f"h.{k}.ln_1", f"{path}/attention_norm"),
            Rule(f"h.{k}.attn.c_attn.weight", f"{path}/attention/qkv/kernel", plain),
            Rule(f"h.{k}.attn.c_attn.bias", f"{path}/attention/qkv/bias", FLAT),
            *_out(f"h.{k}.attn.c_proj", f"{path}/attention/out"),
            *norm(f"h.{k}.ln_2", f"{path}/mlp_norm"),
        ]
        for name, part in (("c_fc", "up"), ("c_proj", "down")):
            rules += [
                Rule(f"h.{k}.mlp.{name}.weight", f"{path}/mlp/{part}/kernel", plain),
                Rule(f"h.{k}.mlp.{name}.bias", f"{path}/mlp/{part}/bias"),
            ]
        if not module.cross:
            return rules
        cross = f"h.{k}.crossattention"
        return [
            *rules,
            *norm(f"h.{k}.ln_cross_attn", f"{path}/cross_norm"),
            Rule(f"{cross}.q_attn.weight", f"{path}/cross_attention/query/kernel", plain),
            Rule(f"{cross}.q_attn.bias", f"{path}/cross_attention/query/bias", FLAT),
            Rule(f"{cross}.c_attn.weight", f"{path}/cross_attention/key_value/kernel", plain),
            Rule(f"{cross}.c_attn.bias", f"{path}/cross_attention/key_value/bias", FLAT),
            *_out(f"{cross}.c_proj", f"{path}/cross_attention/out"),
        ]

    return [
        Rule("wte.weight", "embed/embedding", transform=_first_rows(module.vocab_size)),
        Rule("wpe.weight", "positions/embedding", transform=_first_rows(module.max_length)),
        *layers(layer, module.depth, scan),
        *norm("ln_f", "transformer/norm"),
    ]


def _out(name: str, path: str) -> list[Rule]:
    """The rules of an attention's output layer; the kernel is ``[heads, dim, out]``."""
    kernel = Rule(f"{name}.weight", f"{path}/kernel", linear(inputs=2, transposed=False))
    return [kernel, Rule(f"{name}.bias", f"{path}/bias")]
