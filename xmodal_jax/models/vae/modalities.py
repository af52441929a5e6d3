"""The kinds of data that VAEs take, as one table: a class for each kind, and a field of `ModalityConfigs`.

The class of a kind holds its options and defines all that differs between kinds: the size of an example, the inputs of
encoder and decoder, the likelihood, how data are generated, compared and shown. A new kind is a class and a field here,
and its decoders in `nets.decoders`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import parts
from xmodal_jax.core.random import batch_index, fold_in_name
from xmodal_jax.metrics.reconstruction import mse, ssim
from xmodal_jax.models.towers import (
    AudioFeatures,
    Encoders,
    as_encoder_config,
    check_encoders,
    compute_log_mel,
    encoder_mask,
    make_encoder,
    measured_inputs,
)
from xmodal_jax.nets.decoders import (
    AudioDecoders,
    FrameDecoderConfig,
    ImageDecoders,
    LabelDecoders,
    MeasuredDecoders,
    MLPDecoderConfig,
    ParallelDecoderConfig,
    ResidualDecoderConfig,
    Size,
    TextDecoders,
    WithScale,
)
from xmodal_jax.nets.encoders import (
    DEFAULTS,
    AudioEncoder,
    AudioTransformerConfig,
    ConvNetConfig,
    DCGANEncoderConfig,
    EncoderConfig,
    ImageEncoder,
    PretrainedEncoderConfig,
    SeriesEncoder,
    SeriesTransformerConfig,
    TextEncoder,
    TextTransformerConfig,
    VectorEncoder,
    VectorMLPConfig,
    build_encoder,
    build_pool,
)
from xmodal_jax.nets.vae import EncoderFeatures, LabelFeatures, PretrainedFeatures
from xmodal_jax.preprocess.image import AugmentConfig, augment, to_float
from xmodal_jax.preprocess.measured import MeasuredAugmentConfig, augment_measured
from xmodal_jax.preprocess.vocoder import log_mel_to_waveform
from xmodal_jax.probability.likelihoods import (
    DENSITIES,
    MEASURED_LIKELIHOODS,
    dense_log_likelihood,
    label_log_likelihood,
    measured_log_likelihood,
    sample_measured,
    token_log_likelihood,
)
from xmodal_jax.types import KINDS as ALL_KINDS
from xmodal_jax.types import Batch, ExampleKeys, Key, is_measured, kind_of

NO_AUGMENT = AugmentConfig(translate=0)
"""The augmentation that leaves images unchanged."""

SILENCE = 5.5
"""A frame of speech is silent if all of its bands lie at most this much above the smallest log-mel value, in nats: what
decoders make of silence lies below, and the last frames of spoken words, about 8 in their loudest band, lie above."""

Masked = tuple[Array, Array | None]
"""An array and the mask of its content (None: everything is content)."""
Decode = Callable[[Array | None], Array]
"""``decode(tokens)``: the outputs of a decoder; ``tokens`` are the ids that an autoregressive one continues, None for
all other decoders."""


class Vocabulary(NamedTuple):
    """How tokens and classes are written for people."""

    decode_text: Callable[[np.ndarray], str] | None = None
    """From the ids ``[L]`` of a text to words; None: the ids are shown."""
    class_names: Sequence[str] | None = None
    """The name of each class; None: its number is shown."""


@dataclasses.dataclass(frozen=True)
class ModalityConfig(abc.ABC):
    """How the modalities of one kind are encoded, decoded, compared and shown. Subclasses are the kinds of data.

    Arrays: B examples, R latent samples of each example.
    """

    kind: ClassVar[str]
    """Name of the kind of data: one of `types.MODALITIES`, or "label"."""
    decoders: ClassVar[Any]
    """Union of the decoders that can be chosen for this kind of data."""
    judge_encoder: ClassVar[EncoderConfig | None]
    """Encoder of the classifiers that evaluate generated data; it is independent of the model's encoder. None: none is
    needed."""
    mask_value: ClassVar[int] = 0
    """Value of an input element that is masked out."""
    real_valued: ClassVar[bool] = False
    """Whether the data are real numbers (images, spectrograms), not tokens or classes; only then can Gaussian noise be
    added."""
    is_image: ClassVar[bool] = False
    """Whether examples are pictures: generated ones are compared with real ones by the distances of features, and shown
    on sheets."""
    is_sound: ClassVar[bool] = False
    """Whether examples can be heard; the class then has ``waveforms(x [B, ...]) -> [B, T]`` and ``sample_rate``."""

    def __post_init__(self):
        table = parts.parts_of(self.decoders)
        if not isinstance(self.decoder, tuple(table.values())):
            raise ValueError(f"decoders of {self.kind} are {sorted(table)}, got {self.decoder.name!r}")

    @abc.abstractmethod
    def size(self, name: str, batch: Batch, *, vocab_size: int, classes: int) -> Size:
        """The size of an example of the modality ``name``, from a batch of arrays or shapes."""

    @abc.abstractmethod
    def preprocess(
        self, name: str, x: Array, mask: Array | None, keys: ExampleKeys | None
    ) -> tuple[Masked, Masked]:
        """The encoder's input and the decoder's target, each with its mask (None: nothing is padding).

        ``x``: the batch's field ``name``; ``mask``: its field ``name_mask`` or None. With ``keys``, data are augmented
        as in training.
        """

    def where_present(self, x: Array, present: Bool[Array, "batch"]) -> Bool[Array, "batch"]:
        """Which examples have the modality, where ``present`` are those not marked as missing."""
        return present

    @abc.abstractmethod
    def features(self, size: Size, hidden: int, name: str | None = None) -> nn.Module:
        """The network ``module(inputs, mask, keys) -> [B, hidden]`` between data and posterior; ``name``: its name
        among the parameters; None: that of the attribute that it is assigned to."""

    def token_encoder(self, size: Size) -> nn.Module | None:
        """The encoder ``module(inputs, mask, keys=keys) -> Tokens`` of a kind whose examples are sequences, before any
        pooling; None: examples of this kind are no sequences."""
        return None

    def build_decoder(self, size: Size) -> nn.Module:
        """The decoder ``module(z [N, D], tokens, keys=keys)``, whose outputs `log_likelihood` and `generate` take."""
        return self.decoder.build(size)

    @abc.abstractmethod
    def log_likelihood(self, outputs: Array, x: Array, mask: Array | None) -> Float[Array, "samples batch"]:
        """``log p(x | outputs)`` of the decoder's outputs ``[R, B, ...]``, in nats."""

    def decoder_tokens(self, x: Array, samples: int) -> Array | None:
        """The tokens ``[R, B, L]`` that a decoder gets beside the latent while it is trained; None: none."""
        return None

    @abc.abstractmethod
    def generate(self, decode: Decode, latents: Array, size: Size, key: Key | None) -> Array:
        """Data ``[..., *size.shape]``, decoded from latents ``[..., D]``.

        ``decode(tokens)`` returns the decoder's outputs for these latents. Images lie in [0, 1]; texts and classes are
        drawn from ``key``, or are the likeliest ones without a key.
        """

    def sample(self, decode: Decode, latents: Array, size: Size, key: Key) -> Array:
        """Data as those of `generate`, drawn from the likelihood ``p(x | z)`` from ``key``. By default those that
        `generate` draws: texts and classes."""
        return self.generate(decode, latents, size, key)

    @abc.abstractmethod
    def as_fields(self, generated: Array, end_id: int, pad_id: int) -> dict[str, Array]:
        """Generated data ``[B, ...]`` as fields of a batch, by the suffix of the field's name.

        The suffix ``""`` has the data themselves, ``"_mask"`` their mask, if the kind has one. ``end_id``: the token
        that ends a text, ``pad_id``: the token that is no content; -1: there is none.
        """

    def reconstruction_metrics(self, generated: Array, x: Array, mask: Array | None) -> dict[str, Array]:
        """How close generated data are to a batch's field x (and its mask): values ``[B]`` by name."""
        return {}

    @abc.abstractmethod
    def show(self, x: np.ndarray, mask: np.ndarray | None, vocabulary: Vocabulary) -> np.ndarray | str:
        """One example of a batch as text, a uint8 image ``[H, W, C]`` or an image of intensities ``[H, W]`` in
        [0, 1]."""


def pretrained_encoder(kind: str, encoder: EncoderConfig, size: Size) -> nn.Module:
    """A pretrained encoder of modalities of this kind and size, with its own pool if the configuration chooses it.

    ``encoder``: its configuration. ``size``: of an example.
    """
    example = {kind: jax.ShapeDtypeStruct((1, *size.shape), jnp.float32)}  # only the shape matters
    head = "pool" if encoder.pool == "own" else "none"
    return make_encoder(kind, encoder, example, vocab_size=size.values, head=head)


def token_encoder(kind: str, encoder: EncoderConfig, size: Size, **shape_info: int) -> nn.Module:
    """The encoder from a modality to its tokens: a pretrained one, or one trained from scratch.

    The arguments are those of `encoder_features`.
    """
    if isinstance(encoder, PretrainedEncoderConfig):
        return pretrained_encoder(kind, encoder, size)
    return build_encoder(kind, encoder, **shape_info)


def encoder_features(
    kind: str,
    encoder: EncoderConfig,
    size: Size,
    hidden: int,
    name: str | None,
    *,
    flatten: bool = False,
    **shape_info: int,
) -> nn.Module:
    """The module that maps a modality to features ``[B, hidden]``: a pretrained encoder, or one trained from scratch.

    Args:
      kind: of data, such as "image".
      encoder: its configuration.
      size: of an example of the modality.
      hidden: number of features.
      name: of the module, in parameter paths; None: the attribute that it is assigned to.
      flatten: whether the encoder's tokens are flattened rather than pooled (for an encoder trained from scratch).
      **shape_info: sizes that the encoder needs, such as ``vocab_size``.
    """
    if isinstance(encoder, PretrainedEncoderConfig):
        # With the pool "own" the pretrained encoder pools its tokens itself.
        pool = None if encoder.pool == "own" else build_pool(encoder)
        return PretrainedFeatures(pretrained_encoder(kind, encoder, size), hidden, pool, name=name)
    return EncoderFeatures(kind, encoder, hidden, flatten, shape_info, name=name)


def _check_likelihood(config: ModalityConfig, names: tuple[str, ...]) -> None:
    """Raises ValueError if the likelihood is none of ``names``."""
    if config.likelihood not in names:
        raise ValueError(f"{config.kind}.likelihood must be {', '.join(names)}, got {config.likelihood!r}")


@dataclasses.dataclass(frozen=True)
class ImageConfig(ModalityConfig):
    """Images, with values in [0, 1] for the decoder."""

    kind: ClassVar[str] = "image"
    decoders: ClassVar[Any] = ImageDecoders
    judge_encoder: ClassVar[EncoderConfig] = ConvNetConfig(width=64, norm="none")
    real_valued: ClassVar[bool] = True
    is_image: ClassVar[bool] = True

    encoder: ImageEncoder = DCGANEncoderConfig(width=64, norm="none")
    """Image encoder."""
    decoder: ImageDecoders = ResidualDecoderConfig(width=64)
    """Image decoder."""
    likelihood: str = "normal"
    """Distribution of a pixel given the latent: "normal", "laplace" or "bernoulli". With "laplace", small objects on a
    plain background are learned much later, because it estimates the median of a pixel: the background."""
    scale: float = 0.1
    """Scale of the distribution of a pixel, with values in [0, 1]: the standard deviation of a normal, b of a Laplace
    distribution; unused for bernoulli."""
    weight: float = 1.0
    """Weight of the images' log-likelihood in the loss."""
    augment: AugmentConfig = NO_AUGMENT
    """Random changes of images in training, before the images are encoded and compared with reconstructions."""

    def __post_init__(self):
        super().__post_init__()
        _check_likelihood(self, tuple(DENSITIES))

    def size(self, name, batch, *, vocab_size, classes) -> Size:
        return Size(tuple(batch[name].shape[1:]))

    def preprocess(self, name, x, mask, keys) -> tuple[Masked, Masked]:
        """``((pixels in [-1, 1], None), (pixels in [0, 1], None))``: the encoder's input and the decoder's target, both
        of the same augmented images; None: no mask, every pixel counts."""
        x = to_float(x)
        if self.augment != NO_AUGMENT and keys is not None:
            x = augment(x, fold_in_name(keys, f"augment/{name}"), self.augment)
        return (x, None), ((x + 1.0) / 2.0, None)

    def features(self, size: Size, hidden: int, name: str | None = None) -> nn.Module:
        return encoder_features(self.kind, self.encoder, size, hidden, name, flatten=True)

    def log_likelihood(self, outputs, x, mask) -> Float[Array, "samples batch"]:
        return dense_log_likelihood(self.likelihood, outputs, x, scale=self.scale)

    def generate(self, decode: Decode, latents, size: Size, key) -> Array:
        return jnp.clip(DENSITIES[self.likelihood].mean(decode(tokens=None)), 0.0, 1.0)

    def sample(self, decode: Decode, latents, size: Size, key) -> Array:
        drawn = DENSITIES[self.likelihood].sample(key, decode(tokens=None), self.scale)
        return jnp.clip(drawn, 0.0, 1.0)

    def as_fields(self, generated, end_id: int, pad_id: int) -> dict[str, Array]:
        return {"": jnp.round(generated * 255.0).astype(jnp.uint8)}

    def reconstruction_metrics(self, generated, x, mask) -> dict[str, Array]:
        """``mse`` and ``ssim`` ``[B]`` of pixels in [0, 1]; no ``ssim`` of images smaller than its 11x11 window."""
        real = jnp.asarray(x).astype(jnp.float32) / 255.0
        metrics = {"mse": mse(generated, real)}
        if min(real.shape[1:3]) >= 11:
            metrics["ssim"] = ssim(generated, real)
        return metrics

    def show(self, x: np.ndarray, mask, vocabulary: Vocabulary) -> np.ndarray:
        return np.broadcast_to(x, (*x.shape[:2], 3)) if x.shape[-1] == 1 else x


@dataclasses.dataclass(frozen=True)
class TextConfig(ModalityConfig):
    """Texts as token ids, with a categorical distribution for each token."""

    kind: ClassVar[str] = "text"
    decoders: ClassVar[Any] = TextDecoders
    judge_encoder: ClassVar[EncoderConfig] = TextTransformerConfig(width=64)

    encoder: TextEncoder = TextTransformerConfig(width=64)
    """Text encoder."""
    decoder: TextDecoders = ParallelDecoderConfig(width=64)
    """Text decoder."""
    weight: float = 1.0
    """Weight of the texts' log-likelihood (a sum over tokens) in the loss."""

    def size(self, name, batch, *, vocab_size, classes) -> Size:
        return Size(tuple(batch[name].shape[1:]), vocab_size)

    def preprocess(self, name, x, mask, keys) -> tuple[Masked, Masked]:
        mask = x != 0 if mask is None else mask
        return (x, mask), (x, mask)

    def features(self, size: Size, hidden: int, name: str | None = None) -> nn.Module:
        (length,) = size.shape  # tokens of a text; size.values is the size of the vocabulary
        return encoder_features(
            self.kind, self.encoder, size, hidden, name, vocab_size=size.values, max_length=length
        )

    def token_encoder(self, size: Size) -> nn.Module:
        (length,) = size.shape
        return token_encoder(self.kind, self.encoder, size, vocab_size=size.values, max_length=length)

    def log_likelihood(self, outputs, x, mask) -> Float[Array, "samples batch"]:
        return token_log_likelihood(outputs, x, mask)

    def decoder_tokens(self, x, samples: int) -> Array:
        return jnp.broadcast_to(x[None], (samples, *x.shape))

    def generate(self, decode: Decode, latents, size: Size, key) -> Array:
        """Token ids ``[..., length]`` from ``latents [..., D]``: samples, or the likeliest ones without a key.

        ``decode(tokens)`` returns logits ``[..., length, vocab]``. An autoregressive decoder generates one token after
        the other, given those before.
        """
        (length,) = size.shape  # tokens of a text
        if not self.decoder.autoregressive:
            return _choose(decode(tokens=None), None if key is None else jax.random.fold_in(key, 0))

        def set_token(t, ids):
            """Sets token t of all texts ``ids [..., length]``, given the tokens before it. Closes over ``decode`` and
            ``key``."""
            logits = decode(ids)
            token_key = None if key is None else jax.random.fold_in(key, t)
            return ids.at[..., t].set(_choose(logits[..., t, :], token_key))

        return jax.lax.fori_loop(0, length, set_token, jnp.zeros((*latents.shape[:-1], length), jnp.int32))

    def as_fields(self, generated, end_id: int, pad_id: int) -> dict[str, Array]:
        """The token ids, and a mask of the tokens up to and including the first ``end_id``, without ``pad_id``."""
        # How many tokens before this one are `end_id`.
        after_end = jnp.cumsum(generated == end_id, axis=-1) - (generated == end_id)
        return {"": generated, "_mask": (after_end == 0) & (generated != pad_id)}

    def reconstruction_metrics(self, generated, x, mask) -> dict[str, Array]:
        correct = ((generated == x) & mask).sum(axis=1)
        return {"token_accuracy": correct / jnp.maximum(mask.sum(axis=1), 1)}

    def show(self, x: np.ndarray, mask: np.ndarray, vocabulary: Vocabulary) -> str:
        # Without the padding, whose id 0 may be a word of the vocabulary.
        if vocabulary.decode_text:
            return vocabulary.decode_text(x[mask])
        return " ".join(map(str, np.where(mask, x, 0)))


def _choose(logits: Array, key: Key | None) -> Array:
    """The likeliest value, or with a key a random one."""
    return logits.argmax(axis=-1) if key is None else jax.random.categorical(key, logits)


@dataclasses.dataclass(frozen=True)
class AudioConfig(ModalityConfig):
    """Speech as log-mel frames, shifted and scaled; the silence up to the longest length belongs to them."""

    kind: ClassVar[str] = "audio"
    decoders: ClassVar[Any] = AudioDecoders
    judge_encoder: ClassVar[EncoderConfig] = AudioTransformerConfig(width=64, downsample=16)
    real_valued: ClassVar[bool] = True
    is_sound: ClassVar[bool] = True

    encoder: AudioEncoder = AudioTransformerConfig(width=64, downsample=16)
    """Audio encoder."""
    decoder: AudioDecoders = FrameDecoderConfig(width=64)
    """Decoder of log-mel frames."""
    likelihood: str = "laplace"
    """Distribution of each value of a log-mel frame given the latent: "normal" or "laplace"."""
    scale: float = 0.75
    """Scale of the distribution of each log-mel value: the standard deviation of a normal, b of a Laplace
    distribution."""
    weight: float = 1.0
    """Weight of the log-mel frames' log-likelihood in the loss."""
    spectrogram: AudioFeatures = AudioFeatures(mels=40, window=1024, hop=200)
    """Spectrogram whose frames are encoded and decoded."""
    floor: float = 1e-5
    """Smallest power of a mel band; smaller powers are raised to this value and count as silence."""
    mel_mean: float = -5.0
    """Offset of log-mel frames, in natural-logarithm units: the model sees ``(log_mel - mel_mean) / mel_scale``."""
    mel_scale: float = 4.0
    """Divisor of log-mel frames, in natural-logarithm units: the model sees ``(log_mel - mel_mean) / mel_scale``."""

    def __post_init__(self):
        """Checks the likelihood."""
        super().__post_init__()
        if self.likelihood == "bernoulli":
            raise ValueError(
                "audio.likelihood: log-mel frames are no probabilities; choose laplace or normal"
            )
        _check_likelihood(self, ("normal", "laplace"))

    def size(self, name, batch, *, vocab_size, classes) -> Size:
        frames = jax.eval_shape(self.to_frames, batch[name], batch[f"{name}_mask"])
        return Size(tuple(frames.shape[1:]))

    def to_frames(self, x: Array, mask: Array) -> Float[Array, "batch frames mels"]:
        """Standardised log-mel frames ``(log_mel - mel_mean) / mel_scale``, silent where the mask is False.

        ``x``: waveforms ``[B, T]``, or log-mel frames ``[B, F, mels]`` that `models.speech.log_mel_transform` computed.
        ``mask``: ``[B, T]`` or ``[B, F]``.
        """
        if x.ndim == mask.ndim:  # waveforms
            x, mask = compute_log_mel(x, mask, self.spectrogram, floor=self.floor)
        x = jnp.where(mask[:, :, None], x, jnp.log(self.floor))
        return (x - self.mel_mean) / self.mel_scale

    def to_log_mel(self, frames: Float[Array, "*batch frames mels"]) -> Array:
        """Log-mel frames from the standardised ones of a decoder: the inverse of `to_frames`."""
        return frames * self.mel_scale + self.mel_mean

    def preprocess(self, name, x, mask, keys) -> tuple[Masked, Masked]:
        frames = self.to_frames(x, mask)
        return (frames, None), (frames, None)

    def features(self, size: Size, hidden: int, name: str | None = None) -> nn.Module:
        return encoder_features(self.kind, self.encoder, size, hidden, name)

    def token_encoder(self, size: Size) -> nn.Module:
        return token_encoder(self.kind, self.encoder, size)

    def log_likelihood(self, outputs, x, mask) -> Float[Array, "samples batch"]:
        return dense_log_likelihood(self.likelihood, outputs, x, scale=self.scale)

    def generate(self, decode: Decode, latents, size: Size, key) -> Array:
        return DENSITIES[self.likelihood].mean(decode(tokens=None))

    def sample(self, decode: Decode, latents, size: Size, key) -> Array:
        return DENSITIES[self.likelihood].sample(key, decode(tokens=None), self.scale)

    def as_fields(self, generated, end_id: int, pad_id: int) -> dict[str, Array]:
        """The log-mel frames, and the mask of those before the silence at the end (`speech_mask`)."""
        log_mel = self.to_log_mel(generated)
        return {"": log_mel, "_mask": self.speech_mask(log_mel)}

    def speech_mask(self, log_mel: Float[Array, "batch frames mels"]) -> Bool[Array, "batch frames"]:
        """True up to the last frame that is not silent (`SILENCE`), at least in the first. A model generates the
        silence as a part of its fixed number of frames, and a recogniser hears words in it."""
        is_loud = (log_mel.max(axis=-1) > jnp.log(self.floor) + SILENCE).at[:, 0].set(True)
        loud_from_here = jnp.cumsum(is_loud[:, ::-1], axis=1)[:, ::-1]
        return loud_from_here > 0

    def cut_waveforms(
        self, waves: Float[np.ndarray, "batch time"], mask: Bool[np.ndarray, "batch frames"]
    ) -> list[np.ndarray]:
        """Each waveform ``[T]`` of `waveforms` without the silence behind the last frame under ``mask``."""
        lengths = mask.sum(axis=1) * self.spectrogram.hop
        return [wave[:length] for wave, length in zip(waves, lengths, strict=True)]

    def show(self, x: np.ndarray, mask, vocabulary: Vocabulary) -> np.ndarray:
        # Time goes to the right, low bands are at the bottom. Silence is black, and a log-mel value of 3 is white.
        low, high = np.log(self.floor), 3.0
        return np.clip((x.T[::-1] - low) / (high - low), 0.0, 1.0)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms, in Hz."""
        return self.spectrogram.sample_rate

    def waveforms(self, x: Float[Array, "batch frames mels"]) -> Float[Array, "batch time"]:
        """Log-mel frames as sound, by 30 iterations of Griffin-Lim."""
        f = self.spectrogram
        return log_mel_to_waveform(
            x, sample_rate=f.sample_rate, n_fft=f.window, hop=f.hop, f_max=f.max_hz, iterations=30
        )


@dataclasses.dataclass(frozen=True)
class LabelConfig(ModalityConfig):
    """The class of an example as a modality; a label of -1 is missing."""

    kind: ClassVar[str] = "label"
    decoders: ClassVar[Any] = LabelDecoders
    judge_encoder: ClassVar[None] = None
    mask_value: ClassVar[int] = -1

    decoder: LabelDecoders = MLPDecoderConfig(width=64, depth=1)
    """Decoder of classes."""
    weight: float = 1.0
    """Weight of the labels' log-likelihood in the loss."""

    def size(self, name, batch, *, vocab_size, classes) -> Size:
        return Size((), classes)

    def preprocess(self, name, x, mask, keys) -> tuple[Masked, Masked]:
        return (x, None), (x, None)

    def where_present(self, x, present) -> Bool[Array, "batch"]:
        return present & (x >= 0)

    def features(self, size: Size, hidden: int, name: str | None = None) -> nn.Module:
        return LabelFeatures(size.values, hidden, name=name)

    def log_likelihood(self, outputs, x, mask) -> Float[Array, "samples batch"]:
        return label_log_likelihood(outputs, x)

    def generate(self, decode: Decode, latents, size: Size, key) -> Array:
        return _choose(decode(tokens=None), key)

    def as_fields(self, generated, end_id: int, pad_id: int) -> dict[str, Array]:
        return {"": generated.astype(jnp.int32)}

    def show(self, x: np.ndarray, mask, vocabulary: Vocabulary) -> str:
        label = int(x)
        return vocabulary.class_names[label] if vocabulary.class_names and label >= 0 else str(label)


@dataclasses.dataclass(frozen=True)
class MeasuredConfig(ModalityConfig):
    """Measured quantities, standardised by feature, each value with a distribution whose scale is learned by feature.

    A kind of `types.KINDS` that is measured and has no class of its own here is an instance of a subclass of this one
    (`measured_config`): its encoder is the default one, its decoder dense layers.
    """

    decoders: ClassVar[Any] = MeasuredDecoders
    judge_encoder: ClassVar[EncoderConfig | None] = None
    real_valued: ClassVar[bool] = True

    encoder: Any = None
    """Encoder of the values."""
    decoder: MeasuredDecoders = MLPDecoderConfig(width=64)
    """Decoder of the means of the values."""
    likelihood: str = "normal"
    """Distribution of a value given the latent: "normal", or "student_t", whose heavier tails make outliers matter
    less."""
    degrees: float = 4.0
    """Degrees of freedom of the distribution "student_t"; unused by "normal"."""
    least_scale: float = 0.05
    """Smallest scale of a value's distribution that can be learned, in standard deviations of its feature: the limit
    of precision. Without one, a feature that can be predicted exactly would have an infinite likelihood."""
    weight: float = 1.0
    """Weight of the values' log-likelihood in the loss."""
    augment: MeasuredAugmentConfig = MeasuredAugmentConfig()
    """Random changes of the encoder's input in training. What is reconstructed stays unchanged."""

    def __post_init__(self):
        """Checks the likelihood and its options."""
        super().__post_init__()
        _check_likelihood(self, MEASURED_LIKELIHOODS)
        for name in ("degrees", "least_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{self.kind}.{name} must be above 0, got {getattr(self, name)}")

    def size(self, name, batch, *, vocab_size, classes) -> Size:
        return Size(tuple(batch[name].shape[1:]))

    def preprocess(self, name, x, mask, keys) -> tuple[Masked, Masked]:
        """The encoder's input with the mask of its kind, and the decoder's target with the mask of single values."""
        fields = {name: x} if mask is None else {name: x, f"{name}_mask": mask}
        x, mask = measured_inputs(name, fields)
        augmented = (x, mask)
        if keys is not None and self.augment != MeasuredAugmentConfig():
            augmented = augment_measured(x, mask, fold_in_name(keys, f"augment/{name}"), self.augment)
        return (augmented[0], encoder_mask(name, augmented[1])), (x, mask)

    def features(self, size: Size, hidden: int, name: str | None = None) -> nn.Module:
        return encoder_features(self.kind, self.encoder, size, hidden, name)

    def build_decoder(self, size: Size) -> nn.Module:
        return WithScale(self.decoder.build(size), self.least_scale)

    def log_likelihood(self, outputs, x, mask) -> Float[Array, "samples batch"]:
        mean, log_scale = outputs[..., 0], outputs[..., 1]
        return measured_log_likelihood(self.likelihood, mean, log_scale, x, mask, degrees=self.degrees)

    def generate(self, decode: Decode, latents, size: Size, key) -> Array:
        return decode(tokens=None)[..., 0]

    def sample(self, decode: Decode, latents, size: Size, key) -> Array:
        outputs = decode(tokens=None)
        return sample_measured(key, self.likelihood, outputs[..., 0], outputs[..., 1], degrees=self.degrees)

    def as_fields(self, generated, end_id: int, pad_id: int) -> dict[str, Array]:
        axes = min(ALL_KINDS[self.kind].mask_axes)
        return {"": generated, "_mask": jnp.ones(generated.shape[:axes], bool)}

    def reconstruction_metrics(self, generated, x, mask) -> dict[str, Array]:
        """``mse`` ``[B]``: the mean squared error of the values that are there, in squared standard deviations."""
        fields = {self.kind: x} if mask is None else {self.kind: x, f"{self.kind}_mask": mask}
        x, mask = measured_inputs(self.kind, fields)
        axes = tuple(range(1, x.ndim))
        squares = jnp.where(mask, jnp.square(generated - x), 0.0).sum(axis=axes)
        return {"mse": squares / jnp.maximum(mask.sum(axis=axes), 1)}

    def show(self, x: np.ndarray, mask, vocabulary: Vocabulary) -> str:
        return " ".join(f"{value:.3g}" for value in np.ravel(x))


@dataclasses.dataclass(frozen=True)
class VectorConfig(MeasuredConfig):
    """Vectors of measured quantities."""

    kind: ClassVar[str] = "vector"
    decoders: ClassVar[Any] = MLPDecoderConfig
    judge_encoder: ClassVar[EncoderConfig] = VectorMLPConfig(width=64, dropout=0.0)

    encoder: VectorEncoder = VectorMLPConfig(width=64, dropout=0.0)
    """Encoder of vectors."""
    decoder: MLPDecoderConfig = MLPDecoderConfig(width=64)
    """Decoder of the means of the values."""


@dataclasses.dataclass(frozen=True)
class SeriesConfig(MeasuredConfig):
    """Series of measured quantities; of padding and missing values neither the likelihood nor its gradient exists."""

    kind: ClassVar[str] = "series"
    judge_encoder: ClassVar[EncoderConfig] = SeriesTransformerConfig(width=64)

    encoder: SeriesEncoder = SeriesTransformerConfig(width=64)
    """Encoder of series."""
    decoder: MeasuredDecoders = FrameDecoderConfig(width=64)
    """Decoder of the means of the values: transposed convolutions over the steps (conv), or dense layers (mlp)."""

    def token_encoder(self, size: Size) -> nn.Module:
        return token_encoder(self.kind, self.encoder, size)


@functools.cache
def measured_config(kind: str) -> MeasuredConfig:
    """The configuration of a kind of measured quantities that has no class here: default encoder, and dense layers as
    its decoder.

    Raises:
      ValueError: the kind is not measured, or has no default encoder.
    """
    if not is_measured(kind):
        raise ValueError(
            f"{kind!r}: a VAE takes {', '.join(KINDS)}, and further kinds of measured quantities; of another kind it "
            "needs the likelihood: a subclass of ModalityConfig and a field of ModalityConfigs (docs/modality.md)"
        )
    encoder = DEFAULTS.get(kind)
    options = {"kind": kind, "judge_encoder": encoder, "__doc__": f"Measured quantities of the kind {kind}."}
    return type(f"{kind.title()}Config", (MeasuredConfig,), options)(encoder=encoder)


@dataclasses.dataclass(frozen=True)
class ModalityConfigs:
    """One `ModalityConfig` for each kind of data: the table of kinds."""

    image: ImageConfig = ImageConfig()
    """Encoder, decoder and likelihood of images."""
    text: TextConfig = TextConfig()
    """Encoder, decoder and likelihood of texts."""
    audio: AudioConfig = AudioConfig()
    """Encoder, decoder and likelihood of speech."""
    vector: VectorConfig = VectorConfig()
    """Encoder, decoder and likelihood of vectors of measured quantities."""
    series: SeriesConfig = SeriesConfig()
    """Encoder, decoder and likelihood of series of measured quantities."""
    label: LabelConfig = LabelConfig()
    """Decoder and likelihood of the class, where it is a modality."""

    def for_modality(self, modality: str) -> ModalityConfig:
        """The configuration of the kind of data that a modality (such as "image_1") has.

        Raises:
          ValueError: if VAEs do not take this kind of data.
        """
        kind = kind_of(modality)
        return getattr(self, kind) if kind in KINDS else measured_config(kind)


KINDS = tuple(field.name for field in dataclasses.fields(ModalityConfigs))
"""The kinds of data that VAEs take."""


class NetworkInputs(NamedTuple):
    """A batch as the network takes it: of each modality, by name, its encoder's input and the target of its decoder,
    each with its mask."""

    inputs: dict[str, Masked]
    targets: dict[str, Masked]
    present: Bool[Array, "m batch"]
    """Which example has which modality."""


def preprocess(
    configs: ModalityConfigs, modalities: Sequence[str], batch: Batch, keys: ExampleKeys | None = None
) -> NetworkInputs:
    """A batch as the network takes it: each modality's encoder input and decoder target, and the mask ``[M, B]`` of
    modalities that are present.

    ``keys``: one random key for each example, for augmentation as in training; None: no augmentation.
    """
    all_present = jnp.ones(batch_index(batch).shape[0], bool)
    inputs, targets, present = {}, {}, []
    for name in modalities:
        config, x = configs.for_modality(name), jnp.asarray(batch[name])
        mask = batch.get(f"{name}_mask")
        mask = None if mask is None else jnp.asarray(mask)
        # Without the field "present" no modality is missing.
        is_present = jnp.asarray(batch.get("present", {}).get(name, all_present))
        inputs[name], targets[name] = config.preprocess(name, x, mask, keys)
        present.append(config.where_present(x, is_present))
    return NetworkInputs(inputs, targets, jnp.stack(present))


def sizes_of(
    batch: Batch,
    modalities: Sequence[str],
    configs: ModalityConfigs,
    *,
    vocab_size: int = 0,
    classes: int = 0,
) -> dict[str, Size]:
    """The size of an example of each modality, from a batch of arrays or shapes.

    ``vocab_size``, ``classes``: number of values of a token and of a label; 0: there are no texts or labels.

    Raises:
      ValueError: if VAEs do not take a modality's kind of data.
    """
    counts = dict(vocab_size=vocab_size, classes=classes)  # number of values of a token, and of a label
    return {name: configs.for_modality(name).size(name, batch, **counts) for name in modalities}


def as_batch(
    configs: ModalityConfigs, generated: Mapping[str, Array], *, end_id: int = -1, pad_id: int = 0
) -> dict[str, Array]:
    """Generated data ``[B, ...]`` by modality (as the VAE's decoders return them) as a batch: uint8 images, texts
    masked up to their first ``end_id`` and where they hold ``pad_id`` (-1: the vocabulary has no padding), log-mel
    frames, labels; ``index`` numbers the examples."""
    batch: dict[str, Array] = {}
    for name, x in generated.items():
        fields = configs.for_modality(name).as_fields(x, end_id, pad_id)
        batch |= {f"{name}{suffix}": field for suffix, field in fields.items()}
    batch["index"] = jnp.arange(x.shape[0], dtype=jnp.int32)  # every modality has B examples
    return batch


def used_configs(
    configs: ModalityConfigs,
    sizes: Mapping[str, Size],
    *,
    rescale: bool = False,
    encoders: Encoders | None = None,
) -> dict[str, ModalityConfig]:
    """The configurations of the kinds of data among the modalities in ``sizes``, by kind.

    ``encoders``: encoders of your own by kind (see `models.towers.Encoders`), in place of those of ``configs``.
    ``rescale``: the log-likelihood weight of a kind is multiplied by ``D / d``, where d is the number of elements (such
    as pixels times channels) in an example of this kind, and D that of the largest modality.
    """
    kinds = sorted({kind_of(name) for name in sizes})
    check_encoders(encoders, kinds)
    configs_by_kind, largest = {}, max(size.elements for size in sizes.values())
    for kind in kinds:
        config: ModalityConfig = configs.for_modality(kind)
        if encoders and kind in encoders:
            config = dataclasses.replace(config, encoder=as_encoder_config(encoders[kind]))
        if rescale:
            elements = max(size.elements for name, size in sizes.items() if kind_of(name) == kind)
            config = dataclasses.replace(config, weight=config.weight * largest / elements)
        configs_by_kind[kind] = config
    return configs_by_kind
