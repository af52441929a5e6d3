"""The base of all pretrained encoders: sizes, options, the transformer within, and hidden states.

A pretrained encoder is a Flax module with up to three methods:

* ``encoder(inputs, mask, keys=keys) -> Tokens``, as every encoder of the library;
* ``pool(tokens) -> [B, D]``, the representation of the whole input that its authors use;
* ``project(pooled) -> [B, E]``, for encoders that were trained in a shared embedding space (not normalized).

`EncoderOptions.head` decides which of them have parameters.
"""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import flax.linen as nn
from jaxtyping import Array

from xmodal_jax.nets.transformer import Transformer, TransformerStyle
from xmodal_jax.types import ExampleKeys, Params, Tokens

Head = Literal["none", "pool", "project"]
"""The last of the methods that an encoder has parameters for: the encoder alone, ``pool``, or ``project`` too."""

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
"""Activations in a ``config.json``, and the keys of `nets.transformer.ACTIVATIONS` that they are."""


def activation(name: str) -> str:
    """The key of `nets.transformer.ACTIVATIONS` for an activation's name in a ``config.json``.

    Raises:
      ValueError: the activation is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json asks for the activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """The options of a pretrained encoder that its ``config.json`` does not decide."""

    head: Head = "none"
    """Which methods the encoder has parameters for: encoding alone ("none"), also ``pool`` ("pool"), or also ``pool``
    and ``project`` ("project")."""
    dropout: float = 0.0
    """Dropout rate of the transformer's input and of each residual branch."""
    drop_path: float = 0.0
    """Probability of dropping a whole residual branch of an example (stochastic depth)."""
    dtype: Any = None
    """Type of the activations; None: float32."""
    remat: bool = False
    """Whether to recompute each layer in the backward pass, which saves memory."""
    scan_layers: bool = False
    """Whether to stack the layers' parameters and loop over them, which compiles faster."""
    implementation: str | None = None
    """Implementation of attention, see `nets.attention.attention`; None: the default of JAX."""

    @property
    def transformer_options(self) -> dict[str, Any]:
        """The options that are fields of `nets.transformer.Transformer`: all but the head."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "head"}


DEFAULT_OPTIONS = EncoderOptions()
"""The encoder without pool or projection, in float32, without dropout."""


@dataclasses.dataclass(frozen=True)
class TransformerSizes:
    """The sizes, the style and the options of an encoder's transformer."""

    width: int
    """Dimensions of a token."""
    depth: int
    """Number of transformer blocks."""
    heads: int
    """Number of attention heads."""
    hidden: int
    """Width of the MLP's hidden layer."""
    style: TransformerStyle = TransformerStyle()
    """Choices in which the transformer differs from other published ones."""
    options: EncoderOptions = DEFAULT_OPTIONS
    """Options that the user of the encoder chose."""

    def transformer(self, *, causal: bool = False) -> Transformer:
        """A transformer of these sizes; ``causal``: whether a token attends to earlier tokens only."""
        return Transformer(
            self.depth,
            self.heads,
            mlp_ratio=self.hidden / self.width,
            causal=causal,
            style=self.style,
            **self.options.transformer_options,
        )

    def norm(self) -> nn.LayerNorm:
        """A layer norm like those within the transformer."""
        return nn.LayerNorm(epsilon=self.style.epsilon, dtype=self.options.dtype)


def check_processor(config: SimpleNamespace, **required: int) -> None:
    """Checks settings of the processor of audio in a parsed configuration; those that it lacks have the right value.

    Raises:
      ValueError: a setting has another value than the ``required`` one, for which the library computes its inputs.
    """
    processor = getattr(config, "processor", SimpleNamespace())
    for name, value in required.items():
        stated = getattr(processor, name, None)
        if stated is not None and stated != value:
            raise ValueError(
                f"the checkpoint's processor says {name} {stated!r}; only a {config.model_type} with {value!r} can be "
                "loaded"
            )


def read_sizes(config: SimpleNamespace, options: EncoderOptions, **style: Any) -> TransformerSizes:
    """The sizes of a transformer from a parsed ``config.json`` with BERT's field names; ``style``: further fields of
    `TransformerStyle`."""
    return TransformerSizes(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        hidden=config.intermediate_size,
        style=TransformerStyle(
            activation=activation(config.hidden_act), epsilon=config.layer_norm_eps, **style
        ),
        options=options,
    )


class PretrainedEncoder(nn.Module):
    """Base class. A subclass has the field ``sizes`` and defines ``setup``, ``__call__``, ``pool``, ``example_inputs``
    and, if it has a projection, ``project``."""

    has_projection: ClassVar[bool] = False
    """Whether the encoder has the method ``project``."""

    def embed(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Tokens | Array:
        """The tokens, their pooled representation ``[B, D]``, or its projection ``[B, E]``, depending on
        ``options.head``: "none", "pool" or "project".

        ``inputs [B, ...]``, ``mask`` (True on valid positions) and ``keys`` (for dropout) are those of the encoder.
        """
        tokens = self(inputs, mask, keys=keys)
        head = self.sizes.options.head
        if head == "none":
            return tokens
        pooled = self.pool(tokens)
        return pooled if head == "pool" else self.project(pooled)

    @property
    def prefix_tokens(self) -> int:
        """The number of tokens before those of the input: class tokens and registers."""
        return 0

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a text that it can read; None: any number, or it reads no text."""
        return None

    def example_inputs(self) -> tuple[Array, ...]:
        """The smallest valid arguments of the encoder, with a batch of one, to initialise the parameters."""
        raise NotImplementedError

    def record_hidden_state(self, embedded: Array) -> None:
        """Records ``embedded``, the input of the first layer, for `hidden_states`. A ResNet, which has no transformer
        to record the others, calls this for the output of each stage as well."""
        if not self.is_initializing():
            self.sow("hidden_states", "embedded", embedded)


def hidden_states(module: nn.Module, params: Params, inputs, mask=None) -> list[Array]:
    """The hidden states of an encoder, ``[B, N, D]`` each: the input of its first layer, then the output of every
    layer."""
    _, recorded = module.apply({"params": params}, inputs, mask, mutable=["hidden_states"])
    recorded = recorded["hidden_states"]
    states = list(recorded["embedded"])
    transformer = recorded.get("transformer", {})
    # Scanned layers: one array [depth, B, N, D], which Flax records in a tuple of one.
    if "layers" in transformer:
        states += list(transformer["layers"]["output"][0])
    # Otherwise one entry per layer, layers_0, layers_1, ...
    names = [name for name in transformer if re.fullmatch(r"layers_\d+", name)]
    for name in sorted(names, key=lambda name: int(name.removeprefix("layers_"))):
        states += list(transformer[name]["output"])
    return states
