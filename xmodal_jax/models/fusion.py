"""Understanding what several modalities say together: encode each, fuse, classify.

`make_fusion` is the method; the ways to fuse are in `nets.fusion`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.random import example_keys, fold_in_name, named_keys
from xmodal_jax.models.towers import AudioFeatures, Augment, init_inputs, make_encoder, prepare, presence
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.encoders import DEFAULTS, EncoderConfig
from xmodal_jax.nets.fusion import build_fusion
from xmodal_jax.types import Batch, ExampleKeys, Key, Method, Params

Kind = Literal[
    "co_attention", "merged", "bottleneck", "gated", "perceiver", "concat", "additive", "bilinear", "film"
]


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """Encoders, fusion and head."""

    fusion: Kind = "merged"
    """How the modalities meet: two streams that attend to each other (co_attention), one stream (merged), bottleneck
    tokens, gated cross-attention, a Perceiver resampler, concatenation and MLP (concat), additive attention, low-rank
    bilinear products, FiLM."""
    width: int = 128
    """Width of the fusion."""
    depth: int = 2
    """Its layers."""
    heads: int = 4
    """Its attention heads."""
    dropout: float = 0.1
    """In the fusion and before the head."""
    modality_dropout: float = 0.0
    """Probability with which training hides each modality of an example; one at least stays."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    text: EncoderConfig = DEFAULTS["text"]
    """Text encoder."""
    image: EncoderConfig = DEFAULTS["image"]
    """Image encoder."""
    audio: EncoderConfig = DEFAULTS["audio"]
    """Audio encoder."""
    video: EncoderConfig = DEFAULTS["video"]
    """Video encoder."""
    features: AudioFeatures = AudioFeatures()
    """Spectrogram that the audio encoder sees."""
    augment: Augment = Augment()
    """Random changes in training."""

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


class Answer(NamedTuple):
    """What `make_fusion`'s ``predict`` gives."""

    logits: dict[str, Float[Array, "batch classes"]]
    pooled: Float[Array, "batch width"]


def make_fusion(
    config: FusionConfig, modalities: tuple[str, ...], classes: Mapping[str, int], *, vocab_size: int
) -> Method:
    """Classification of what ``modalities`` say together.

    ``classes``: number of classes of each target; the batch holds its class as ``batch[target]`` int32 ``[B]``, -1
    where unknown. The loss is the sum over targets of the mean cross-entropy over the global batch's examples whose
    class is known. aux: each target's ``<target>_loss`` and ``<target>_accuracy``. ``predict(params, batch)`` gives an
    `Answer`. The first of ``modalities`` is the one that gated and film fusion build on.

    Raises:
      ValueError: no modality, or no target.
    """
    if not modalities or not classes:
        raise ValueError(f"needs at least one modality and one target, got {modalities} and {dict(classes)}")

    def encoders(batch):
        return {
            m: make_encoder(m, getattr(config, m), batch, vocab_size=vocab_size)
            for m in modalities
            if m in batch
        }

    fusion = build_fusion(
        config.fusion,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        dropout=config.dropout,
        modalities=tuple(modalities),
    )
    head = Head(dict(classes), config.dropout)

    def init(key: Key, batch: Batch) -> Params:
        row, params, tokens = init_inputs(batch), {}, {}
        for name, encoder in encoders(batch).items():
            inputs, mask = prepare(name, row, config.features)
            tokens[name], variables = encoder.init_with_output(fold_in_name(key, name), inputs, mask)
            params[name] = variables["params"]
        fused, variables = fusion.init_with_output(fold_in_name(key, "fusion"), tokens)
        params["fusion"] = variables["params"]
        params["head"] = head.init(fold_in_name(key, "head"), fused.pooled, None)["params"]
        return params

    def apply(params, batch, present, keys=None, *, maps: bool = False):
        tokens = {}
        for name, encoder in encoders(batch).items():
            inputs, mask = prepare(name, batch, config.features, config.augment, keys)
            tokens[name] = encoder.apply({"params": params[name]}, inputs, mask, keys=keys)
        there = {m: present[m] for m in tokens}
        collections = {"mutable": ["intermediates"]} if maps else {}
        out = fusion.apply({"params": params["fusion"]}, tokens, there, keys=keys, **collections)
        fused, state = out if maps else (out, {})
        logits = head.apply({"params": params["head"]}, fused.pooled, keys)
        return Answer(logits, fused.pooled), state

    def loss(params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        (key,) = named_keys(key, "fusion")
        keys = example_keys(key, batch["index"])
        present = presence(batch, modalities)
        if config.modality_dropout:
            present = drop_modalities(present, fold_in_name(keys, "modalities"), config.modality_dropout)
        answer, _ = apply(params, batch, present, keys)
        total, aux = jnp.float32(0), {}
        for target, logits in answer.logits.items():
            label = batch[target]
            known = (label >= 0).astype(jnp.float32)
            goal = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[1]), config.label_smoothing)
            terms = optax.softmax_cross_entropy(logits, goal)
            right = (logits.argmax(axis=1) == label).astype(jnp.float32)
            for name, value in (("loss", terms), ("accuracy", right)):
                aux[f"{target}_{name}"] = collectives.batch_mean(value, known, axis_name=axis_name)
            total += aux[f"{target}_loss"]
        return total, jax.lax.stop_gradient(aux)

    def predict(params: Params, batch: Batch) -> Answer:
        return apply(params, batch, presence(batch, modalities))[0]

    return Method(init, loss, predict)


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
