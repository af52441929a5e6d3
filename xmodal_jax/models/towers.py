"""A tower for each modality: preprocess on the device, encode, pool, project.

A modality is named after its kind (text, image, audio or video) or ``KIND_NAME``, such as ``image_sketch``
(`types.kind_of`). What differs between kinds is in tables by kind.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.random import batch_index, fold_in_name
from xmodal_jax.nets.encoders import (
    DEFAULTS,
    CustomEncoderConfig,
    EncoderConfig,
    PretrainedEncoderConfig,
    TextDecoderConfig,
    build_encoder,
    build_pool,
)
from xmodal_jax.nets.heads import HeadConfig, as_head
from xmodal_jax.preprocess import audio as audio_features
from xmodal_jax.preprocess.image import AugmentConfig, to_float
from xmodal_jax.preprocess.image import augment as augment_image
from xmodal_jax.preprocess.measured import MeasuredAugmentConfig, augment_measured
from xmodal_jax.preprocess.waveform import WaveformAugmentConfig, augment_waveform
from xmodal_jax.pretrained import gpt2, whisper
from xmodal_jax.pretrained.encoder import EncoderOptions, Head
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import make_module, parse_config, read_complete_config
from xmodal_jax.types import KINDS, MODALITIES, Batch, ExampleKeys, Tokens, kind_of


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of the inputs, in training only."""

    image: AugmentConfig = AugmentConfig(translate=2)
    """Augmentation of images and video frames. By default they are not mirrored, because captions say left and
    right."""
    time_masks: int = 0
    """Number of time spans of a spectrogram that SpecAugment masks in training; 0: none."""
    frequency_masks: int = 0
    """Number of frequency bands of a spectrogram that SpecAugment masks in training; 0: none."""
    waveform: WaveformAugmentConfig = WaveformAugmentConfig()
    """Augmentation of waveforms: speed, rooms, noise, telephone. By default there is none, so that spectrograms can be
    computed once, before training."""
    measured: MeasuredAugmentConfig = MeasuredAugmentConfig(jitter=0.3)
    """Augmentation of vectors and series: noise, and values that are hidden. By default noise of 0.3 standard
    deviations, without which networks fit the rows of a small table exactly."""


@dataclasses.dataclass(frozen=True)
class AudioFeatures:
    """The inputs of an audio encoder: a spectrogram, or the waveform itself.

    Raises:
      ValueError: the kind is unknown, or is not made for this sample rate.
    """

    sample_rate: int = 16_000
    """Sample rate of the audio, in Hz."""
    mels: int = 40
    """Number of mel bands of the spectrogram."""
    window: int = 400
    """Samples in each frame of the spectrogram (400 are 25 ms at 16 kHz)."""
    hop: int = 200
    """Samples from one frame of the spectrogram to the next (200 are 12.5 ms at 16 kHz)."""
    max_hz: float | None = None
    """Upper end of the highest mel band, in Hz; None: half the sample rate. Telephone speech ends at 4000 Hz."""
    kind: Literal["log_mel", "whisper", "waveform"] = "log_mel"
    """Input of the audio encoder: normalised log-mel frames (log_mel), or, for pretrained encoders and at 16 kHz only,
    the log-mel frames of Whisper (whisper), where only the number of mel bands can be chosen, or the waveform itself
    (waveform)."""

    def __post_init__(self):
        """Checks the kind, and the sample rate that it requires."""
        if self.kind not in ("log_mel", "whisper", "waveform"):
            raise ValueError(f"kind must be 'log_mel', 'whisper' or 'waveform', got {self.kind!r}")
        if self.kind != "log_mel" and self.sample_rate != 16_000:
            raise ValueError(
                f"features of the kind {self.kind!r} are made for models of audio of 16000 Hz, the data has "
                f"{self.sample_rate} Hz: resample it, or choose the kind 'log_mel'"
            )


# Batches


def axes_of(modality: str, batch: Batch) -> int:
    """Number of axes of the array of ``modality`` (a name such as "image" or "audio_left") in a batch, such as 4 for
    images ``[B, H, W, C]``.

    Audio has two as waveforms ``[B, T]``, three as the frames of `precompute_spectrograms`. An axis for several
    examples that share an input (`models.fusion`) is not counted.
    """
    kind = kind_of(modality)
    return KINDS[kind].axes + (kind == "audio" and _holds_frames(modality, batch))  # True adds 1


def _holds_frames(modality: str, batch: Batch) -> bool:
    """Whether an audio field holds frames of a spectrogram ``[B, F, mels]`` instead of waveforms ``[B, T]``.

    A waveform has as many axes as its mask, frames have one more.
    """
    return f"{modality}_mask" in batch and batch[modality].ndim > batch[f"{modality}_mask"].ndim


def first_example(batch: Batch):
    """A batch of the first example alone, to initialise parameters from its shapes at little cost."""
    return jax.tree.map(lambda x: x[:1], batch)


def presence_masks(batch: Batch, modalities: tuple[str, ...]) -> dict[str, Bool[Array, "batch"]]:
    """For each modality, which examples have it; all examples where ``batch["present"]`` does not name the modality."""
    all_present = jnp.ones(batch_index(batch).shape[0], bool)
    return {m: batch.get("present", {}).get(m, all_present) for m in modalities}


def precompute_spectrograms(
    features: AudioFeatures, augmentation: Augmentation | None = None
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A transform of raw batches that computes spectrograms once, so that training steps need not.

    Waveforms ``[..., T]`` become the frames ``[..., F, mels]`` of `preprocess_modality`, with their mask ``[..., F]``.
    Waveforms stay where the encoder takes waveforms, or the ``augmentation`` changes them.
    """
    if features.kind == "waveform" or (augmentation and not augmentation.waveform.is_identity):
        return dict  # the transform that only copies the batch
    return transform_audio(lambda x, mask: _to_frames(x, mask, features))


def transform_audio(compute: Callable) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A transform of raw batches that replaces waveforms ``[..., T]`` and their masks.

    ``compute(waveforms [B, T], mask [B, T])`` returns the new values and their mask; leading axes are flattened into
    ``B`` for it.
    """
    compute = jax.jit(compute)  # compiled once for all batches

    def transform(batch):
        """The batch with each field of audio, and its mask, replaced by the results of ``compute``."""
        replaced = {}
        audio_fields = [n for n in batch if n.partition("_")[0] == "audio" and not n.endswith("_mask")]
        for name in audio_fields:
            waveforms = batch[name]
            *leading_axes, length = waveforms.shape
            # Without a mask no sample is padding.
            mask = batch.get(f"{name}_mask", np.ones(waveforms.shape, bool))
            results = compute(waveforms.reshape(-1, length), mask.reshape(-1, length))
            for field, result in zip((name, f"{name}_mask"), results, strict=True):
                replaced[field] = np.asarray(result).reshape(*leading_axes, *result.shape[1:])
        return {**batch, **replaced}

    return transform


# Preprocessing


def preprocess_modality(
    modality: str,
    batch: Batch,
    features: AudioFeatures,
    augmentation: Augmentation | None = None,
    keys: ExampleKeys | None = None,
):
    """``(inputs, mask)`` of the batch's ``modality``, as its encoder takes them; a mask of None: nothing is padding.

    Images and video become floating-point pixels in [-1, 1]. Audio becomes a waveform or log-mel frames, by
    ``features.kind``; frames of `precompute_spectrograms` are taken as they are. Measured quantities are 0 where they
    are missing. Inputs are augmented where both ``augmentation`` and ``keys`` (one random key for each example) are
    given, as in training.
    """
    if augmentation is None or keys is None:
        augmentation = keys = None  # no augmentation
    else:
        keys = fold_in_name(keys, f"augment/{modality}")
    kind = kind_of(modality)
    preprocess = _preprocess_measured if KINDS[kind].measured else _PREPROCESS.get(kind, _take_as_is)
    return preprocess(modality, batch, features, augmentation, keys)


def _take_as_is(modality, batch, features, augmentation, keys):
    return batch[modality], batch.get(f"{modality}_mask")


def _preprocess_image(modality, batch, features, augmentation, keys):
    """``(pixels, mask)``: images ``[B, H, W, C]`` as floats in [-1, 1], augmented if there are ``keys``."""
    x = to_float(batch[modality])
    x = x if keys is None else augment_image(x, keys, augmentation.image)
    return x, batch.get(f"{modality}_mask")


def _preprocess_video(modality, batch, features, augmentation, keys):
    """``(frames, mask)``: video frames ``[B, F, H, W, C]`` as floats in [-1, 1], augmented if there are ``keys``."""
    x = to_float(batch[modality])
    if keys is not None:
        # One key per example, so that all frames of a video are augmented alike.
        augment_frame = lambda frame: augment_image(frame, keys, augmentation.image)
        x = jax.vmap(augment_frame, in_axes=1, out_axes=1)(x)
    return x, batch.get(f"{modality}_mask")


def _preprocess_audio(modality, batch, features, augmentation, keys):
    """``(inputs, mask)`` of an audio encoder: waveforms or log-mel frames, by ``features.kind``.

    If there are ``keys`` (in training), waveforms are augmented, and log-mel frames are masked by SpecAugment: spans of
    time and frequency bands are hidden.

    Raises:
      ValueError: the batch's audio, the augmentation and the kind of features do not fit each other.
    """
    x, mask = batch[modality], batch.get(f"{modality}_mask")
    has_frames = _holds_frames(modality, batch)
    if keys is not None and not augmentation.waveform.is_identity:
        if has_frames:
            raise ValueError("the batch holds frames of audio: augment.waveform changes waveforms")
        x = audio_features.to_float_waveform(x)
        valid = jnp.ones(x.shape, bool) if mask is None else mask
        options = dict(sample_rate=features.sample_rate)
        x, mask = augment_waveform(x, valid, keys, augmentation.waveform, **options)
    if features.kind == "waveform":
        if has_frames:
            raise ValueError("the batch holds frames of audio, features.kind is 'waveform'")
        if augmentation is not None and (augmentation.time_masks or augmentation.frequency_masks):
            raise ValueError(
                "SpecAugment masks spectrograms: with features.kind 'waveform' set its masks to 0"
            )
        return audio_features.to_float_waveform(x), mask
    if not has_frames:
        x, mask = _to_frames(x, mask, features)
    elif x.shape[-1] != features.mels:
        raise ValueError(f"the audio's frames have {x.shape[-1]} bands, features.mels is {features.mels}")
    if keys is not None:
        masks = dict(time_masks=augmentation.time_masks, freq_masks=augmentation.frequency_masks)
        x = audio_features.spec_augment(x, keys, mask, **masks)
    return x, mask


def _preprocess_measured(modality, batch, features, augmentation, keys):
    """``(values, mask)`` of measured quantities: 0 where they are missing, augmented if there are ``keys``."""
    x, mask = measured_inputs(modality, batch)
    if keys is not None and augmentation.measured != MeasuredAugmentConfig():
        x, mask = augment_measured(x, mask, keys, augmentation.measured)
    return x, encoder_mask(modality, mask)


def measured_inputs(modality: str, batch: Batch) -> tuple[Array, Array]:
    """``(values, mask)`` of a batch's measured quantities: float32, 0 where they are missing, and which are there, of
    the same shape. A value that is missing has no gradient, even if it is NaN."""
    x = jnp.asarray(batch[modality], jnp.float32)
    mask = batch.get(f"{modality}_mask")
    mask = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask)
    mask = jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x.shape)
    return jnp.where(mask, x, 0.0), mask


def encoder_mask(modality: str, mask: Bool[Array, "batch ..."]) -> Bool[Array, "batch ..."]:
    """The mask that the encoder of a kind gets, from that of single values: the same, or where the kind's mask can be
    shorter (a series' can be of steps), which of its elements have any value."""
    axes = min(KINDS[kind_of(modality)].mask_axes)
    return mask.any(axis=tuple(range(axes, mask.ndim))) if axes < mask.ndim else mask


_PREPROCESS = {
    "image": _preprocess_image,
    "audio": _preprocess_audio,
    "video": _preprocess_video,
}
"""The preprocessing of the kinds that are not measured; those that are not listed are taken as they are."""


def compute_log_mel(waveform, mask, features: AudioFeatures, **options):
    """`preprocess.audio.log_mel` with the sizes of ``features``: frames ``[B, F, mels]`` of waveforms ``[B, T]``, and
    their mask ``[B, F]``.

    ``mask [B, T]``: which samples are no padding. ``options``: further arguments of `log_mel`, such as ``floor``.
    """
    return audio_features.log_mel(
        waveform,
        mask,
        sample_rate=features.sample_rate,
        n_fft=features.window,
        hop=features.hop,
        n_mels=features.mels,
        f_max=features.max_hz,
        **options,
    )


def _to_frames(waveform, mask, features: AudioFeatures):
    """The frames ``[B, F, mels]`` that an encoder of spectrograms takes, and their mask, from waveforms ``[B, T]``."""
    if features.kind == "whisper":
        return audio_features.whisper_log_mel(waveform, mask, mels=features.mels)
    frames, mask = compute_log_mel(waveform, mask, features)
    return audio_features.normalize_frames(frames, mask), mask


# Towers


class Tower(nn.Module):
    """An encoder, a pool and a projection head: one embedding per example, not normalised.

    Without a ``pool`` the encoder pools its tokens itself (see `pretrained.encoder`). With the head "own" the embedding
    is that of a pretrained encoder, which has a projection.
    """

    encoder: nn.Module
    pool: nn.Module | None
    head: HeadConfig
    embed_dim: int

    def setup(self):
        """The head, whose parameters are beside the encoder's (``norm``, ``project``)."""
        self.projection = self.head.build(self.embed_dim)
        nn.share_scope(self, self.projection)

    def encode(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Tokens:
        """The encoder's tokens."""
        return self.encoder(inputs, mask, keys=keys)

    def __call__(
        self, inputs, mask=None, *, keys: ExampleKeys | None = None, head_keys: ExampleKeys | None = None
    ) -> Float[Array, "batch dim"]:
        """The embedding ``[B, embed_dim]`` of each example, float32, not normalised.

        ``keys`` and ``head_keys``: for the dropout of the encoder and of the head; None: there is none.
        """
        return self.project_pooled(self.pooled(inputs, mask, keys=keys), head_keys)

    def pooled(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Float[Array, "batch width"]:
        """The encoder's pooled features ``[B, width]`` of each example, float32."""
        if self.pool is None:  # a pretrained encoder pools its tokens itself
            return self.encoder.embed(inputs, mask, keys=keys).astype(jnp.float32)
        return self.pool(self.encode(inputs, mask, keys=keys)).astype(jnp.float32)

    def project_pooled(
        self, pooled: Float[Array, "batch width"], keys: ExampleKeys | None = None
    ) -> Float[Array, "batch dim"]:
        """The embedding ``[B, embed_dim]`` of the encoder's pooled features, by the head; ``keys``: for its dropout."""
        return self.projection(pooled, keys)


def features_field(modality: str) -> str:
    """The field of a batch with precomputed features of a frozen tower: the pooled output of its encoder, float32
    ``[B, width]``."""
    return f"{modality}_features"


def unused_fields(model: Any, fields: Collection[str]) -> list[str]:
    """The fields of a model's configuration that have no effect for data with these ``fields``.

    They are the encoders of modalities that the data lacks, and ``features``, the input of the audio encoder, without
    audio. ``model``: any model configuration; its encoders are fields named after kinds of modalities.
    """
    kinds = {field.partition("_")[0] for field in fields}
    unused = [kind for kind in MODALITIES if kind not in kinds and hasattr(model, kind)]
    reads_audio = isinstance(getattr(model, "features", None), AudioFeatures)
    return [*unused, "features"] if reads_audio and "audio" not in kinds else unused


def tower_head(config: EncoderConfig, head: HeadConfig) -> Head:
    """The part of a pretrained encoder's head that a tower uses: none, its pool, or its pool and projection."""
    if config.pool != "own":
        return "none"
    return "project" if head.is_own else "pool"


def make_tower(
    modality: str,
    config: EncoderConfig,
    batch: Batch,
    *,
    vocab_size: int,
    head: HeadConfig | str,
    embed_dim: int,
) -> Tower:
    """A tower for the inputs of a modality.

    Args:
      modality: its name.
      config: configuration of its encoder.
      batch: arrays or shapes of the inputs.
      vocab_size: number of tokens of the tokenizer (text).
      head: projection of the pooled features, a configuration or a name of `nets.heads`.
      embed_dim: dimensions of the embedding.

    Raises:
      ValueError: the head is "own", but the encoder's pool is not "own".
    """
    head = as_head(head)
    if head.is_own and config.pool != "own":
        raise ValueError(
            f"head 'own' is the projection of a pretrained {modality} encoder with its own pool, such as CLIP's: give "
            f"one by --{kind_of(modality)}-encoder hf:PATH"
        )
    encoder = make_encoder(modality, config, batch, vocab_size=vocab_size, head=tower_head(config, head))
    return Tower(encoder, None if config.pool == "own" else build_pool(config), head, embed_dim)


def make_encoder(
    modality: str, config: EncoderConfig, batch: Batch, *, vocab_size: int, head: Head = "none"
) -> nn.Module:
    """An encoder for the inputs of a modality.

    Args:
      modality: its name.
      config: configuration of the encoder.
      batch: arrays or shapes of the inputs.
      vocab_size: number of tokens of the tokenizer (text).
      head: the part of a pretrained encoder's head that the module includes: none, its pool, or its projection too.

    Raises:
      ValueError: a pretrained text encoder has fewer tokens than the tokenizer, or no checkpoint was read for a
        pretrained encoder.
    """
    kind = kind_of(modality)
    if isinstance(config, PretrainedEncoderConfig):
        if config.architecture is None:
            raise ValueError(f"no checkpoint was read for the pretrained encoder: give {config.chosen_by}")
        if kind == "text":
            _check_vocabulary(config.architecture, vocab_size)
        # A batch without the modality, as for an encoder of texts alone, tells no shape.
        return _make_pretrained_encoder(
            kind, config, shape=batch[modality].shape if modality in batch else (), head=head
        )
    sizes = {"vocab_size": vocab_size, "max_length": batch[modality].shape[1]} if kind == "text" else {}
    if isinstance(config, CustomEncoderConfig):
        if config.module is None:
            raise ValueError(f"there is no module for the {kind} encoder: give {config.chosen_by}")
        return config.build(**sizes)
    return build_encoder(kind, config, **sizes)


Encoders = Mapping[str, Any]
"""Encoders of your own by the name of a modality or of a kind: Flax modules, pairs of functions ``(init, apply)`` (see
`nets.custom`), or configurations of encoders."""


def encoder_of(model: Any, modality: str, encoders: Encoders | None = None) -> EncoderConfig:
    """The encoder configuration of a modality.

    It is the field of the model's configuration named after the modality's kind; a kind without such a field has the
    default encoder. ``encoders`` come before both. All modalities of a kind (``image`` and ``image_sketch``) share the
    configuration, each with parameters of its own.
    """
    kind = kind_of(modality)
    for name in (modality, kind):
        if encoders and name in encoders:
            return as_encoder_config(encoders[name])
    if not hasattr(model, kind) and kind not in DEFAULTS:
        raise ValueError(
            f"there is no encoder of {modality!r}: give one, as encoders={{{kind!r}: MyModule()}}, or a default in "
            "nets.encoders.DEFAULTS"
        )
    return getattr(model, kind) if hasattr(model, kind) else DEFAULTS[kind]


def as_encoder_config(encoder: Any) -> EncoderConfig:
    """An encoder of your own as a configuration; a configuration stays as it is."""
    return encoder if isinstance(encoder, EncoderConfig) else CustomEncoderConfig(module=encoder)


def check_encoders(encoders: Encoders | None, modalities: Collection[str]) -> None:
    """Raises ValueError if ``encoders`` name something that is neither one of the ``modalities`` nor the kind of
    one."""
    names = {*modalities, *map(kind_of, modalities)}
    if unknown := [name for name in encoders or () if name not in names]:
        raise ValueError(f"encoders: there is no modality {unknown[0]!r}; there are {', '.join(modalities)}")


def _check_vocabulary(architecture: str, vocab_size: int) -> None:
    """Raises ValueError if the tokenizer has more tokens than the pretrained text encoder has embeddings for.

    ``architecture``: the checkpoint's config.json as text.
    """
    config = parse_config(architecture)
    limit = getattr(
        config, "text_config", config
    ).vocab_size  # models of image and text nest the text encoder's
    if vocab_size > limit:
        raise ValueError(
            f"the tokenizer has {vocab_size} tokens, the pretrained text encoder knows {limit}: leave --tokenizer out, "
            "so that its own is taken"
        )


def _make_pretrained_encoder(
    kind: str, config: PretrainedEncoderConfig, shape: tuple[int, ...], head: Head
) -> nn.Module:
    """The Flax module of a pretrained architecture, for inputs of this shape (such as ``[B, H, W, C]`` for images).

    ``head``: the part of the encoder's head that the module includes, see `make_encoder`.
    """
    options = EncoderOptions(
        head=head,
        dtype=config.compute_dtype,
        implementation=config.attention,
        dropout=config.dropout,
        drop_path=config.drop_path,
        remat=config.remat,
        scan_layers=config.scan_layers,
    )
    sizes: dict[str, Any] = {}
    if kind in ("image", "video"):
        sizes["image_size"] = tuple(shape[-3:-1])  # height and width
    if kind == "video":
        sizes["frames"] = shape[-4]  # of [B, F, H, W, C]
    return make_module(kind, config.architecture, options, **sizes)


def read_pretrained_config(
    kind: str, folder: str | os.PathLike
) -> PretrainedEncoderConfig | TextDecoderConfig:
    """The configuration of the pretrained encoder in a checkpoint's folder; with ``kind`` "decoder" of a text decoder.

    ``kind`` is otherwise the modality: text, image, audio or video.
    """
    config = read_complete_config(open_checkpoint(folder), kind)  # config.json as text
    module = make_module(kind, config)
    parsed = parse_config(config)  # the same as an object
    if kind == "decoder":
        return TextDecoderConfig(max_tokens=parsed.n_positions, **gpt2.sizes(parsed))
    sizes = {
        name: getattr(module.sizes, name)
        for name in ("width", "depth", "heads")
        if hasattr(module.sizes, name)
    }
    if kind == "text":
        # A sentence encoder may have a limit of its own besides that of the position embeddings.
        limits = (module.max_tokens, getattr(getattr(parsed, "sentence", None), "max_tokens", None))
        sizes["max_tokens"] = min(limit for limit in limits if limit is not None)
    if kind == "video":
        sizes["frames_per_token"] = module.tubelet
    if kind == "audio":
        # Every audio encoder that can be read has tokens of 20 ms, and frames of 10 ms.
        sizes["frames_per_token"] = 2
    return PretrainedEncoderConfig(architecture=config, **sizes)


def prefix_tokens(modality: str, config: EncoderConfig) -> int:
    """Number of tokens that an encoder puts before the tokens of the input, such as 1 for a class token."""
    if not isinstance(config, PretrainedEncoderConfig):
        return config.prefix_tokens
    return make_module(kind_of(modality), config.architecture).prefix_tokens


def pretrained_audio_features(config: PretrainedEncoderConfig) -> AudioFeatures:
    """The inputs of a pretrained audio encoder: Whisper takes log-mel frames of its own, the others the waveform."""
    architecture = parse_config(config.architecture)
    if architecture.model_type == "whisper":
        return AudioFeatures(kind="whisper", mels=architecture.num_mel_bins, window=400, hop=160)
    # The encoder takes no spectrogram; window and hop are for the spectrograms that reports show.
    return AudioFeatures(kind="waveform", window=400, hop=160)


def max_audio_seconds(config: EncoderConfig) -> float | None:
    """The longest recording in seconds that an audio encoder has positions for; None: any length."""
    if not isinstance(config, PretrainedEncoderConfig):
        return None
    architecture = parse_config(config.architecture)
    if architecture.model_type != "whisper":
        return None
    return 2 * architecture.max_source_positions / whisper.FRAMES_PER_SECOND  # a token for two frames
