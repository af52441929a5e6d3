"""Classification by several modalities: an encoder for each, a fusion of their tokens, and a head for each target.

`make_fusion` is the method; the fusions are in `nets.fusion`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float
from jaxtyping import Key as KeyArray

from xmodal_jax.core import collectives
from xmodal_jax.core.parts import Advanced
from xmodal_jax.core.random import batch_keys, fold_in_name
from xmodal_jax.models.towers import (
    AudioFeatures,
    Augmentation,
    Encoders,
    axes_of,
    check_encoders,
    encoder_of,
    first_example,
    make_encoder,
    preprocess_modality,
    presence_masks,
)
from xmodal_jax.nets.attention_maps import token_attention
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.encoders import (
    AudioEncoder,
    AudioTransformerConfig,
    ConvNetConfig,
    ImageEncoder,
    SeriesEncoder,
    SeriesTransformerConfig,
    TextEncoder,
    TextTransformerConfig,
    TubeletViTConfig,
    VectorEncoder,
    VectorMLPConfig,
    VideoEncoder,
)
from xmodal_jax.nets.fusion import Fusion, FusionKind, GatedCrossAttentionConfig, repeat_rows
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.types import Batch, EncoderSlot, ExampleKeys, Key, Method, Params, Tokens, kind_of


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """Encoders, fusion and head of a classifier."""

    fusion: FusionKind = GatedCrossAttentionConfig()
    """Network that fuses the tokens of all modalities into one vector."""
    head_dropout: float = 0.0
    """Dropout rate of the fused features before the classification head."""
    modality_dropout: float = 0.0
    """Probability that a modality of a training example is hidden; at least one modality stays."""
    label_smoothing: float = 0.0
    """Fraction of the target distribution that is spread evenly over all classes."""
    text: TextEncoder = TextTransformerConfig(width=64, depth=1)
    """Text encoder."""
    image: ImageEncoder = ConvNetConfig(token_positions=True)
    """Image encoder. Fusion by attention needs token positions (token_positions for a convnet)."""
    audio: AudioEncoder = AudioTransformerConfig(width=64, downsample=16)
    """Audio encoder."""
    video: VideoEncoder = TubeletViTConfig()
    """Video encoder: a transformer over blocks of frames and pixels (tubelet), a convolutional network on each frame
    and a transformer over the frames (frames), or a convolutional network that gets all frames at once, as its input
    channels (stacked)."""
    vector: Advanced[VectorEncoder] = VectorMLPConfig()
    """Encoder of vectors of measured quantities: dense layers (mlp), or a transformer whose tokens are the features
    (transformer), which fusion by attention can attend to one by one."""
    series: Advanced[SeriesEncoder] = SeriesTransformerConfig(width=64)
    """Encoder of series of measured quantities."""
    features: AudioFeatures = AudioFeatures()
    """Input of the audio encoder: spectrogram or waveform."""
    augment: Augmentation = Augmentation(image=AugmentConfig(translate=0))
    """Random changes of the inputs, in training only. Images are not shifted or flipped by default, since questions ask
    for positions."""

    def __post_init__(self):
        for name in ("head_dropout", "modality_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


class Head(nn.Module):
    """The fused vector to the logits of each target, float32."""

    classes: Mapping[str, int]
    """Number of classes of each target."""
    dropout: float
    """Dropout rate of the input."""

    @nn.compact
    def __call__(self, pooled: Float[Array, "batch width"], keys: ExampleKeys | None) -> dict[str, Array]:
        """The logits ``[B, classes]`` of each target, by its name."""
        x = Dropout(self.dropout, name="dropout")(nn.LayerNorm(name="norm")(pooled), keys)
        return {target: nn.Dense(count, name=target)(x) for target, count in self.classes.items()}


class ClassifierOutput(NamedTuple):
    """The prediction of a `make_fusion` method."""

    logits: dict[str, Float[Array, "batch classes"]]
    """By target."""
    pooled: Float[Array, "batch width"]
    """The fused vector."""


class _FlatBatch(NamedTuple):
    """A batch whose examples may share inputs, with all examples along the first axis; see `make_fusion`.

    ``B`` rows hold ``Q`` examples each. In the flat batch, arrays of the examples are ``[B * Q, ...]``, shared arrays
    ``[B, ...]``.
    """

    batch: Batch
    unshared: tuple[str, ...]
    """Modalities whose inputs the Q examples of a batch row do not share; all modalities if a batch row is one
    example."""
    examples_per_row: int = 1
    """``Q`` where the Q examples of a batch row differ in an input; 1 where they differ in their targets alone."""
    targets_per_example: int = 1
    """``Q`` where the Q examples of a batch row differ in their targets alone; else 1."""

    def present(self, modalities: tuple[str, ...]) -> dict[str, Bool[Array, "batch"]]:
        """For each modality, which examples ``[B * Q]`` have it."""
        row_masks = presence_masks(self.batch, modalities)
        return {m: repeat_rows(is_present, self.examples_per_row) for m, is_present in row_masks.items()}

    def example_keys(self, row_keys: KeyArray[Array, "rows"]) -> ExampleKeys:
        """A random key for each of the ``Q`` examples of each row: ``[B]`` keys of rows to ``[B * Q]`` keys.

        The first example of a row has the key of the row, example ``q > 0`` that key with ``q`` folded in: so all
        examples draw different random numbers, and a row of one example draws the same as without rows.
        """
        if self.examples_per_row == 1:
            return row_keys
        # `fold_in` of every key [B] with every number [Q - 1].
        fold_in = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
        further_keys = fold_in(row_keys, jnp.arange(1, self.examples_per_row))  # [B, Q - 1]
        return jnp.concatenate([row_keys[:, None], further_keys], axis=1).reshape(-1)


def _flatten(batch: Batch, modalities: tuple[str, ...], targets: Mapping[str, int]) -> _FlatBatch:
    """The batch with all examples along the first axis: arrays ``[B, Q, ...]`` become ``[B * Q, ...]``.

    In a row of the batch, ``Q`` examples (such as questions) may share an input (such as an image), which then has no
    axis of size ``Q``. ``targets``: the names of the fields with classes to predict (the values are not used).

    Raises:
      ValueError: arrays with a second axis of examples differ in its size.
    """
    # An array has an axis of examples if it has one axis more than usual: a modality more than `axes_of`, a target more
    # than one.
    has_example_axis = {m: batch[m].ndim > axes_of(m, batch) for m in modalities if m in batch}
    has_example_axis |= {t: batch[t].ndim > 1 for t in targets if t in batch}
    sizes = {name: batch[name].shape[1] for name, has_axis in has_example_axis.items() if has_axis}
    if not sizes:  # one example per row
        return _FlatBatch(batch, unshared=modalities)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the second axis, of examples that share inputs, must be the same in all: {sizes}")
    reshaped = {k: v.reshape(-1, *v.shape[2:]) for k, v in batch.items() if k.removesuffix("_mask") in sizes}
    flat = {**batch, **reshaped}
    examples_per_row = next(iter(sizes.values()))
    unshared = tuple(m for m in modalities if m in sizes)
    if unshared:
        return _FlatBatch(flat, unshared, examples_per_row=examples_per_row)
    # All inputs are shared, the examples of a row differ in their targets alone: run the network once for each row.
    return _FlatBatch(flat, modalities, targets_per_example=examples_per_row)


@dataclasses.dataclass(frozen=True)
class _Model:
    """Encoders, fusion and head for one configuration, and their loss."""

    config: FusionConfig
    modalities: tuple[str, ...]
    classes: Mapping[str, int]
    vocab_size: int
    own_encoders: Encoders | None = None
    """Encoders of the user's own, by the name of a modality or of a kind; None: there are none."""

    def __post_init__(self):
        check_encoders(self.own_encoders, self.modalities)
        if not self.modalities or not self.classes:
            raise ValueError(
                f"needs at least one modality and one target, got {self.modalities} and {dict(self.classes)}"
            )

    @property
    def fusion(self) -> Fusion:
        return self.config.fusion.build(tuple(self.modalities))

    @property
    def head(self) -> Head:
        return Head(dict(self.classes), self.config.head_dropout)

    def encoders(self, batch: Batch) -> dict[str, nn.Module]:
        """The encoder of each modality that is in the batch."""
        return {
            m: make_encoder(
                m, encoder_of(self.config, m, self.own_encoders), batch, vocab_size=self.vocab_size
            )
            for m in self.modalities
            if m in batch
        }

    def init(self, key: Key, batch: Batch) -> Params:
        """Initial parameters of the encoders (by modality), of the fusion and of the head.

        They depend on the shapes of the batch only, so that the network is run on one example. A row of the batch may
        hold several examples that share inputs, see `_flatten`.
        """
        row = _flatten(first_example(batch), self.modalities, self.classes).batch
        example = first_example(row)  # of the row's examples, now along the first axis
        params, tokens = {}, {}
        for name, encoder in self.encoders(row).items():
            inputs, mask = preprocess_modality(name, example, self.config.features)
            tokens[name], variables = encoder.init_with_output(fold_in_name(key, name), inputs, mask)
            params[name] = variables["params"]
        fused, variables = self.fusion.init_with_output(fold_in_name(key, "fusion"), tokens)
        params["fusion"] = variables["params"]
        params["head"] = self.head.init(fold_in_name(key, "head"), fused.pooled, None)["params"]
        return params

    def encode(self, params: Params, flat: _FlatBatch, keys: ExampleKeys | None = None) -> dict[str, Tokens]:
        """The encoder's tokens of each modality; an input that the examples of a batch row share is encoded once.

        ``flat``: the batch with all examples along the first axis (`_flatten`). ``keys``, one for each example, draw
        augmentation and dropout in training; None in evaluation.
        """
        tokens = {}
        for name, encoder in self.encoders(flat.batch).items():
            shared = name not in flat.unshared
            # A shared input takes the key of the first example of its row: every Q-th of the keys [B * Q].
            input_keys = keys[:: flat.examples_per_row] if keys is not None and shared else keys
            inputs, mask = preprocess_modality(
                name, flat.batch, self.config.features, self.config.augment, input_keys
            )
            tokens[name] = encoder.apply({"params": params[name]}, inputs, mask, keys=input_keys)
        return tokens

    def classify(
        self, params: Params, flat: _FlatBatch, present, keys: ExampleKeys | None = None
    ) -> ClassifierOutput:
        """Encodes and fuses the modalities: the logits of every target, and the fused vector that they come from.

        ``flat``: the batch with all examples along the first axis. ``present``: by modality, which examples have it.
        ``keys`` draw dropout and augmentation in training; None in evaluation.
        """
        tokens = self.encode(params, flat, keys)
        present = {m: present[m] for m in tokens}  # without modalities that the whole batch lacks
        fused = self.fusion.apply({"params": params["fusion"]}, tokens, present, keys=keys)
        return ClassifierOutput(self.head.apply({"params": params["head"]}, fused.pooled, keys), fused.pooled)

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        """``(loss, aux)``: the sum over targets of their mean cross-entropy, as this device's share.

        ``batch`` may hold several examples in a row, such as questions about one image; they are flattened first. Each
        mean is over the examples of the global batch whose class is known. aux: ``<target>_loss`` and
        ``<target>_accuracy``.
        """
        key = fold_in_name(key, "fusion")
        flat = _flatten(batch, self.modalities, self.classes)
        keys = flat.example_keys(batch_keys(key, batch))
        present = flat.present(self.modalities)
        if self.config.modality_dropout:
            present = drop_modalities(present, fold_in_name(keys, "modalities"), self.config.modality_dropout)
        total, aux = jnp.float32(0), {}
        for target, logits in self.classify(params, flat, present, keys).logits.items():
            label = flat.batch[target]
            # Logits of a row whose examples differ in their targets alone: repeated for each of these.
            logits = repeat_rows(logits, flat.targets_per_example)
            known = (label >= 0).astype(jnp.float32)  # the label is -1 where the class is unknown
            one_hot = jax.nn.one_hot(label, logits.shape[1])
            smoothed = optax.smooth_labels(one_hot, self.config.label_smoothing)
            cross_entropy = optax.softmax_cross_entropy(logits, smoothed)
            correct = (logits.argmax(axis=1) == label).astype(jnp.float32)
            for name, value in (("loss", cross_entropy), ("accuracy", correct)):
                aux[f"{target}_{name}"] = collectives.batch_mean(value, known, axis_name=axis_name)
            total += aux[f"{target}_loss"]
        return total, jax.lax.stop_gradient(aux)

    def predict(self, params: Params, batch: Batch) -> ClassifierOutput:
        """The logits of every target, without dropout and augmentation."""
        flat = _flatten(batch, self.modalities, targets={})
        return self.classify(params, flat, flat.present(self.modalities))

    def attention(self, params: Params, batch: Batch) -> dict[str, Float[Array, "batch tokens"]]:
        """Attention of the fused vector to each token ``[B, tokens]``, by modality; without dropout and
        augmentation."""
        flat = _flatten(batch, self.modalities, targets={})
        tokens = self.encode(params, flat)
        is_present = flat.present(self.modalities)
        present = {m: is_present[m] for m in tokens}  # without modalities that the whole batch lacks
        # The fusion's attention layers store their weights in the collection "intermediates"; the fused vector is not
        # needed.
        variables = {"params": params["fusion"]}
        _, state = self.fusion.apply(variables, tokens, present, mutable=["intermediates"])
        return token_attention(self.fusion, state.get("intermediates", {}), tokens, present)


def make_fusion(
    config: FusionConfig,
    modalities: tuple[str, ...],
    classes: Mapping[str, int],
    *,
    vocab_size: int,
    encoders: Encoders | None = None,
) -> Method:
    """The method of classification by several modalities.

    The batch holds the inputs, and the class of each target as ``batch[target]`` int32 ``[B]``, -1 where it is unknown.
    The loss is the sum over targets of the mean cross-entropy over the examples of the global batch with a known class.

    Several examples may share inputs, such as ``Q`` questions about an image, which is then encoded once: unshared
    inputs and targets have a second axis (text ``[B, Q, L]``, targets ``[B, Q]``), shared inputs have none (an image
    ``[B, H, W, C]``). The result equals that of ``B * Q`` separate examples.

    aux: ``<target>_loss`` and ``<target>_accuracy`` of each target.

    Args:
      config: encoders, fusion and head.
      modalities: the inputs; the fusions "gated" and "film" update the tokens of the first one with the others.
      classes: number of classes of each target.
      vocab_size: of the text encoder.
      encoders: encoders of your own by the name of a modality or of a kind, such as ``{"vector": MyModule()}`` (see
        `models.towers.Encoders`); the others are those of ``config``.

    Returns:
      The method; ``predict(params, batch)`` gives a `ClassifierOutput` of ``B * Q`` examples (of ``B`` where the
      examples of a row share all inputs).

    Raises:
      ValueError: no modality, or no target, or ``encoders`` name no modality.

    Example::

        method = make_fusion(FusionConfig(), ("image", "text"), {"answer": 20}, vocab_size=1000)
        params = method.init(jax.random.key(0), batch)
        method.predict(params, batch).logits["answer"]  # [B, 20]
    """
    model = _Model(config, modalities, classes, vocab_size, encoders)
    slots = tuple(EncoderSlot(name=kind_of(m), path=m, fields=(m,)) for m in modalities)
    return Method(model.init, model.loss, model.predict, encoders=slots)


def make_token_attention(
    config: FusionConfig,
    modalities: tuple[str, ...],
    classes: Mapping[str, int],
    *,
    vocab_size: int,
    encoders: Encoders | None = None,
) -> Callable[[Params, Batch], dict[str, Float[Array, "batch tokens"]]]:
    """``attention(params, batch)``: the attention that each token of each modality receives, summing to 1.

    Takes the arguments of `make_fusion`; see `nets.attention_maps.token_attention`.
    """
    return _Model(config, modalities, classes, vocab_size, encoders).attention


def drop_modalities(
    present: Mapping[str, Bool[Array, "batch"]], keys: ExampleKeys, rate: float
) -> dict[str, Bool[Array, "batch"]]:
    """Modality dropout: hides each modality of an example with probability ``rate``, but never all of them.

    Where all would be hidden, one of the present modalities stays, each with the same probability. The result says, as
    ``present`` does, which examples have each modality. ``keys``: one random key for each example.
    """
    names = list(present)
    is_present = jnp.stack([present[m] for m in names], axis=1)  # [B, modalities]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (len(names),)))(keys)
    # A missing modality gets -1, below all others, so that the largest number belongs to a present one: that one stays.
    uniform = jnp.where(is_present, uniform, -1.0)
    above_rate = uniform >= rate
    is_largest = uniform == uniform.max(axis=1, keepdims=True)
    stays = is_present & (above_rate | is_largest)
    return {m: stays[:, i] for i, m in enumerate(names)}
