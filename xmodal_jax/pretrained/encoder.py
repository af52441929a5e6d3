"""What the pretrained encoders share: their sizes, the transformer in them, and their hidden states.

An encoder is a module with three methods: ``encoder(inputs, mask, keys=keys) -> Tokens`` as every encoder of the
library; ``pool(tokens) -> [B, D]``, what its makers take as the representation of the whole; and, where it was trained
to be compared with another, ``project(pooled) -> [B, E]``, its place in the shared space (not normalised). ``head``
says how far its parameters go.
"""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array

from xmodal_jax.nets.transformer import Style, Transformer
from xmodal_jax.types import ExampleKeys, Params, Tokens

Head = Literal["none", "pool", "project"]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Their names of activations, and ours."""


def activation(name: str) -> str:
    """Our name of an activation of theirs."""
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json asks for the activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user of a pretrained encoder may choose."""

    head: Head = "none"
    """The encoder alone, with what pools its tokens, or with the projection to the shared space too."""
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False
    implementation: str | None = None

    @property
    def of_transformer(self) -> dict[str, Any]:
        """Those that are fields of `nets.transformer.Transformer`: all but the head."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "head"}


PLAIN = Options()
"""The encoder alone, for evaluation in float32."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A transformer."""

    width: int
    depth: int
    heads: int
    hidden: int
    """Of the MLP."""
    style: Style = Style()
    options: Options = PLAIN

    def transformer(self, *, causal: bool = False) -> Transformer:
        """The transformer of these sizes."""
        return Transformer(
            self.depth,
            self.heads,
            self.hidden / self.width,
            causal=causal,
            style=self.style,
            **self.options.of_transformer,
        )

    def norm(self) -> nn.LayerNorm:
        """A layer norm as those within."""
        return nn.LayerNorm(epsilon=self.style.epsilon, dtype=self.options.dtype)


def sizes_of(config: SimpleNamespace, options: Options, **style: Any) -> Sizes:
    """The sizes in a ``config.json`` that uses the common names."""
    return Sizes(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        hidden=config.intermediate_size,
        style=Style(activation=activation(config.hidden_act), epsilon=config.layer_norm_eps, **style),
        options=options,
    )


class PretrainedEncoder(nn.Module):
    """The base of the encoders; a subclass defines ``setup``, ``__call__``, ``pool`` and, if it has one, ``project``,
    ``example``, and has the field ``sizes``."""

    def embed(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Tokens | Array:
        """As far as the encoder's parameters go: tokens, their pool, or its place in the shared space."""
        tokens = self(inputs, mask, keys=keys)
        head = self.sizes.options.head
        if head == "none":
            return tokens
        pooled = self.pool(tokens)
        return pooled if head == "pool" else self.project(pooled)

    @property
    def leading(self) -> int:
        """How many of the tokens come before those of places: class tokens and registers."""
        return 0

    def example(self) -> tuple[Array, ...]:
        """Inputs of one example, as small as they may be: what `init` needs to know shapes."""
        raise NotImplementedError

    def record(self, embedded: Array) -> None:
        """Keeps the first hidden state where `hidden_states` asks for it."""
        if not self.is_initializing():
            self.sow("hidden_states", "embedded", embedded)


def hidden_states(module: nn.Module, params: Params, inputs, mask=None) -> list[Array]:
    """``[B, N, D]``: what enters the first layer of an encoder, and what leaves each."""
    _, found = module.apply({"params": params}, inputs, mask, mutable=["hidden_states"])
    found = found["hidden_states"]
    states = list(found["embedded"])
    within = found.get("transformer", {})
    if "layers" in within:
        states += list(within["layers"]["output"][0])
    for name in sorted((n for n in within if re.fullmatch(r"layers_\d+", n)), key=lambda n: int(n[7:])):
        states += list(within[name]["output"])
    return states
