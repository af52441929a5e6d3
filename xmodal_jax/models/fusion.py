"""Understanding what several modalities say together: encode each, fuse, classify.

`make_fusion` is the method; the ways to fuse are in `nets.fusion`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float
from jaxtyping import Key as KeyArray

from xmodal_jax.core import collectives
from xmodal_jax.core.random import example_keys, fold_in_name, named_keys
from xmodal_jax.models.towers import (
    AudioFeatures,
    Augment,
    init_inputs,
    make_encoder,
    prepare,
    presence,
    rank,
)
from xmodal_jax.nets.attention_maps import token_attention
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.encoders import (
    AudioEncoder,
    AudioTransformerConfig,
    ConvNetConfig,
    ImageEncoder,
    TextEncoder,
    TextTransformerConfig,
    TubeletViTConfig,
    VideoEncoder,
)
from xmodal_jax.nets.fusion import Fusion, build_fusion, repeat_rows
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.types import Batch, ExampleKeys, Key, Method, Params, Tokens

Kind = Literal[
    "co_attention", "merged", "bottleneck", "gated", "perceiver", "concat", "additive", "bilinear", "film"
]


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """Encoders, fusion and head."""

    fusion: Kind = "gated"
    """How the modalities meet: two streams that attend to each other (co_attention), one stream (merged), bottleneck
    tokens, gated cross-attention, a Perceiver resampler, concatenation and MLP (concat), additive attention, low-rank
    bilinear products, FiLM."""
    width: int = 64
    """Width of the fusion."""
    depth: int = 2
    """Its layers."""
    heads: int = 4
    """Its attention heads."""
    mlp_ratio: float = 2.0
    """Hidden size of its MLPs over the width."""
    dropout: float = 0.0
    """In the fusion and before the head."""
    modality_dropout: float = 0.0
    """Probability with which training hides each modality of an example; one at least stays."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    text: TextEncoder = TextTransformerConfig(width=64, depth=1)
    """Text encoder."""
    image: ImageEncoder = ConvNetConfig(token_positions=True)
    """Image encoder; what attends to its tokens must know where it looks."""
    audio: AudioEncoder = AudioTransformerConfig(width=64, downsample=16)
    """Audio encoder."""
    video: VideoEncoder = TubeletViTConfig()
    """Video encoder."""
    features: AudioFeatures = AudioFeatures()
    """Spectrogram that the audio encoder sees."""
    augment: Augment = Augment(image=AugmentConfig(translate=0))
    """Random changes in training; none by default, since questions ask for places and commands name them."""

    def __post_init__(self):
        for name in ("dropout", "modality_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


class Head(nn.Module):
    """Fused vector to the logits of each target, float32."""

    classes: Mapping[str, int]
    dropout: float

    @nn.compact
    def __call__(self, pooled: Float[Array, "batch width"], keys: ExampleKeys | None) -> dict[str, Array]:
        x = Dropout(self.dropout, name="dropout")(nn.LayerNorm(name="norm")(pooled), keys)
        return {target: nn.Dense(count, name=target)(x) for target, count in self.classes.items()}


class ClassifierOutput(NamedTuple):
    """What `make_fusion`'s ``predict`` gives."""

    logits: dict[str, Float[Array, "batch classes"]]
    pooled: Float[Array, "batch width"]


class _Examples(NamedTuple):
    """A batch in which several examples may share inputs, flattened (see `make_fusion`)."""

    batch: Batch
    """Own inputs and targets ``[B * Q, ...]``, shared inputs and the rest ``[B, ...]``."""
    own: tuple[str, ...]
    """The modalities that each example has of its own (all, where nothing is shared)."""
    inputs: int = 1
    """How many examples of different inputs stand side by side: Q, or 1 where all share all."""
    targets: int = 1
    """How many targets of the same inputs stand side by side: Q where all share all."""

    def present(self, modalities: tuple[str, ...]) -> dict[str, Bool[Array, "batch"]]:
        """Which examples have which modality."""
        return {m: repeat_rows(there, self.inputs) for m, there in presence(self.batch, modalities).items()}

    def keys(self, keys: KeyArray[Array, "rows"]) -> ExampleKeys:
        """A key for each example from one for each row; the first of a row's has the row's own."""
        if self.inputs == 1:
            return keys
        split = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
        own = split(keys, jnp.arange(1, self.inputs))
        return jnp.concatenate([keys[:, None], own], axis=1).reshape(-1)


def _flatten(batch: Batch, modalities: tuple[str, ...], targets: Mapping[str, int]) -> _Examples:
    deeper = {m: batch[m].ndim > rank(m, batch) for m in modalities if m in batch}
    deeper |= {t: batch[t].ndim > 1 for t in targets if t in batch}
    sizes = {name: batch[name].shape[1] for name, deep in deeper.items() if deep}
    if not sizes:
        return _Examples(batch, modalities)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the second axis, of examples that share inputs, must be the same in all: {sizes}")
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in batch.items() if k.removesuffix("_mask") in sizes}
    own, count = tuple(m for m in modalities if m in sizes), next(iter(sizes.values()))
    flat = {**batch, **flat}
    return _Examples(flat, own, inputs=count) if own else _Examples(flat, modalities, targets=count)


@dataclasses.dataclass(frozen=True)
class _Network:
    """Encoders, fusion and head of one configuration."""

    config: FusionConfig
    modalities: tuple[str, ...]
    classes: Mapping[str, int]
    vocab_size: int

    def __post_init__(self):
        if not self.modalities or not self.classes:
            raise ValueError(
                f"needs at least one modality and one target, got {self.modalities} and {dict(self.classes)}"
            )

    @property
    def fusion(self) -> Fusion:
        c = self.config
        shared = dict(width=c.width, depth=c.depth, heads=c.heads, mlp_ratio=c.mlp_ratio, dropout=c.dropout)
        return build_fusion(c.fusion, modalities=tuple(self.modalities), **shared)

    @property
    def head(self) -> Head:
        return Head(dict(self.classes), self.config.dropout)

    def encoders(self, batch: Batch) -> dict[str, nn.Module]:
        make = lambda m: make_encoder(m, getattr(self.config, m), batch, vocab_size=self.vocab_size)
        return {m: make(m) for m in self.modalities if m in batch}

    def init(self, key: Key, batch: Batch) -> Params:
        row, params, tokens = _flatten(init_inputs(batch), self.modalities, self.classes).batch, {}, {}
        for name, encoder in self.encoders(row).items():
            inputs, mask = prepare(name, init_inputs(row), self.config.features)
            tokens[name], variables = encoder.init_with_output(fold_in_name(key, name), inputs, mask)
            params[name] = variables["params"]
        fused, variables = self.fusion.init_with_output(fold_in_name(key, "fusion"), tokens)
        params["fusion"] = variables["params"]
        params["head"] = self.head.init(fold_in_name(key, "head"), fused.pooled, None)["params"]
        return params

    def encode(
        self, params: Params, examples: _Examples, keys: ExampleKeys | None = None
    ) -> dict[str, Tokens]:
        """The tokens of each modality; of an input that several examples share once for them all."""
        tokens = {}
        for name, encoder in self.encoders(examples.batch).items():
            own = keys if keys is None or name in examples.own else keys[:: examples.inputs]
            inputs, mask = prepare(name, examples.batch, self.config.features, self.config.augment, own)
            tokens[name] = encoder.apply({"params": params[name]}, inputs, mask, keys=own)
        return tokens

    def answer(
        self, params: Params, examples: _Examples, present, keys: ExampleKeys | None = None
    ) -> ClassifierOutput:
        tokens = self.encode(params, examples, keys)
        there = {m: present[m] for m in tokens}
        fused = self.fusion.apply({"params": params["fusion"]}, tokens, there, keys=keys)
        return ClassifierOutput(self.head.apply({"params": params["head"]}, fused.pooled, keys), fused.pooled)


def make_fusion(
    config: FusionConfig, modalities: tuple[str, ...], classes: Mapping[str, int], *, vocab_size: int
) -> Method:
    """Classification of what ``modalities`` say together.

    ``classes``: number of classes of each target; the batch holds its class as ``batch[target]`` int32 ``[B]``, -1
    where unknown. Several examples may share inputs: own inputs and targets then have a second axis (text ``[B, Q,
    L]``, targets ``[B, Q]``, an image ``[B, H, W, C]``), and the image is encoded once for its Q texts. The loss is the
    sum over targets of the mean cross-entropy over the global batch's examples whose class is known. aux: each target's
    ``<target>_loss`` and ``<target>_accuracy``. ``predict(params, batch)`` gives an `ClassifierOutput` of ``B * Q``
    rows (of ``B`` where all inputs are shared). The fusions "gated" and "film" build on the first of ``modalities``.

    Raises:
      ValueError: no modality, or no target.
    """
    net = _Network(config, modalities, classes, vocab_size)

    def loss(params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        (key,) = named_keys(key, "fusion")
        examples = _flatten(batch, modalities, classes)
        keys = examples.keys(example_keys(key, batch["index"]))
        present = examples.present(modalities)
        if config.modality_dropout:
            present = drop_modalities(present, fold_in_name(keys, "modalities"), config.modality_dropout)
        total, aux = jnp.float32(0), {}
        for target, logits in net.answer(params, examples, present, keys).logits.items():
            label, logits = examples.batch[target], repeat_rows(logits, examples.targets)
            known = (label >= 0).astype(jnp.float32)
            goal = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[1]), config.label_smoothing)
            terms = optax.softmax_cross_entropy(logits, goal)
            right = (logits.argmax(axis=1) == label).astype(jnp.float32)
            for name, value in (("loss", terms), ("accuracy", right)):
                aux[f"{target}_{name}"] = collectives.batch_mean(value, known, axis_name=axis_name)
            total += aux[f"{target}_loss"]
        return total, jax.lax.stop_gradient(aux)

    def predict(params: Params, batch: Batch) -> ClassifierOutput:
        examples = _flatten(batch, modalities, {})
        return net.answer(params, examples, examples.present(modalities))

    return Method(net.init, loss, predict)


def make_token_attention(
    config: FusionConfig, modalities: tuple[str, ...], classes: Mapping[str, int], *, vocab_size: int
) -> Callable[[Params, Batch], dict[str, Float[Array, "batch tokens"]]]:
    """``attend(params, batch)``: what `make_fusion`'s method, of the same arguments, looks at.

    How much the rest attends to each token of a modality, summing to 1 (see `nets.attention_maps.token_attention`).
    """
    net = _Network(config, modalities, classes, vocab_size)

    def attend(params: Params, batch: Batch):
        examples = _flatten(batch, modalities, {})
        tokens = net.encode(params, examples)
        present = examples.present(modalities)
        there = {m: present[m] for m in tokens}
        _, state = net.fusion.apply({"params": params["fusion"]}, tokens, there, mutable=["intermediates"])
        return token_attention(net.fusion, state.get("intermediates", {}), tokens, there)

    return attend


def drop_modalities(
    present: Mapping[str, Bool[Array, "batch"]], keys: ExampleKeys, rate: float
) -> dict[str, Bool[Array, "batch"]]:
    """Hides each modality with probability ``rate``, but never the last that an example has.

    Where all would be hidden, one of those present stays, each with the same probability.
    """
    names = list(present)
    there = jnp.stack([present[m] for m in names], axis=1)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (len(names),)))(keys)
    drawn = jnp.where(there, drawn, -1.0)
    kept = there & ((drawn >= rate) | (drawn == drawn.max(axis=1, keepdims=True)))
    return {m: kept[:, i] for i, m in enumerate(names)}
