"""One tower per modality: preprocess on the device, encode, pool, project."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.nets.encoders import (
    EncoderConfig,
    PretrainedEncoderConfig,
    TextDecoderConfig,
    build_encoder,
    build_pool,
)
from xmodal_jax.preprocess import audio as audio_features
from xmodal_jax.preprocess.image import AugmentConfig, to_float
from xmodal_jax.preprocess.image import augment as augment_image
from xmodal_jax.pretrained import gpt2
from xmodal_jax.pretrained.encoder import EncoderOptions, Head
from xmodal_jax.pretrained.files import read_config, read_processor
from xmodal_jax.pretrained.load import complete_config, make_module, parse_config
from xmodal_jax.types import Batch, ExampleKeys, Tokens

_RANKS = {"text": 2, "image": 4, "audio": 2, "video": 5}


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of the inputs, in training only."""

    image: AugmentConfig = AugmentConfig(translate=2)
    """Images and video. Mirroring is off: captions speak of left and right."""
    time_masks: int = 0
    """Audio: SpecAugment's number of masked stretches of time."""
    frequency_masks: int = 0
    """Audio: SpecAugment's number of masked bands."""


@dataclasses.dataclass(frozen=True)
class AudioFeatures:
    """What an encoder of audio takes of a waveform: a spectrogram, or the waveform itself.

    Raises:
      ValueError: the kind is unknown, or is not made for this sample rate.
    """

    sample_rate: int = 16_000
    """Hz."""
    mels: int = 40
    """Mel bands."""
    window: int = 400
    """Samples per frame (25 ms at 16 kHz)."""
    hop: int = 200
    """Samples between frames (12.5 ms at 16 kHz)."""
    max_hz: float | None = None
    """Upper end of the highest band; None: half the sample rate. Telephone speech has nothing above 4000."""
    kind: Literal["log_mel", "whisper", "waveform"] = "log_mel"
    """Normalised log-mel frames of the above; or, for pretrained encoders and at 16 kHz alone: the frames of
    `preprocess.audio.whisper_log_mel` with ``mels`` bands (``window``, ``hop`` and ``max_hz`` have no say), or the
    floating waveform as it is."""

    def __post_init__(self):
        if self.kind not in ("log_mel", "whisper", "waveform"):
            raise ValueError(f"kind must be 'log_mel', 'whisper' or 'waveform', got {self.kind!r}")
        if self.kind != "log_mel" and self.sample_rate != 16_000:
            raise ValueError(
                f"features of the kind {self.kind!r} are made for models of audio of 16000 Hz, the data has "
                f"{self.sample_rate} Hz: resample it, or choose the kind 'log_mel'"
            )


def rank(modality: str, batch: Batch) -> int:
    """Axes of a batch of a modality: of audio one more where it holds frames (see `spectrograms`) and no waveforms."""
    return _RANKS[modality] + (modality == "audio" and _holds_frames(batch))


def _holds_frames(batch: Batch) -> bool:
    return "audio_mask" in batch and batch["audio"].ndim > batch["audio_mask"].ndim


def spectrograms(features: AudioFeatures) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A change of raw batches: waveforms ``[..., T]`` to the frames ``[..., F, mels]`` that `prepare` would make of
    them, with their mask ``[..., F]``, computed once and not again at every step that reads them. Where an encoder
    takes waveforms they stay."""
    if features.kind == "waveform":
        return dict
    return once_per_batch(lambda x, mask: _spectrogram(x, mask, features))


def once_per_batch(compute: Callable) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A change of raw batches: ``audio`` ``[..., T]`` and its mask by ``compute(waveform [B, T], mask)``."""
    compute = jax.jit(compute)

    def change(batch):
        x = batch["audio"]
        mask = batch.get("audio_mask", np.ones(x.shape, bool))
        frames, mask = compute(x.reshape(-1, x.shape[-1]), mask.reshape(-1, x.shape[-1]))
        of_each = lambda y: np.asarray(y).reshape(*x.shape[:-1], *y.shape[1:])
        return {**batch, "audio": of_each(frames), "audio_mask": of_each(mask)}

    return change


def log_mel_of(waveform, mask, features: AudioFeatures, **options):
    """`preprocess.audio.log_mel` of these features."""
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


def _spectrogram(waveform, mask, features: AudioFeatures):
    if features.kind == "whisper":
        return audio_features.whisper_log_mel(waveform, mask, mels=features.mels)
    frames, mask = log_mel_of(waveform, mask, features)
    return audio_features.normalize_frames(frames, mask), mask


Projection = Literal["linear", "mlp", "own"]


class Tower(nn.Module):
    """Features of one modality to one embedding per example (not normalised).

    Without a ``pool`` the encoder's own pools its tokens (see `pretrained.encoder`); the head "own" is the projection
    of a pretrained encoder that has one, alone.
    """

    encoder: nn.Module
    pool: nn.Module | None
    head: Projection
    embed_dim: int

    def setup(self):
        if self.head == "own":
            return
        self.norm = nn.LayerNorm()
        if self.head == "mlp":
            self.hidden = nn.Dense(2 * self.embed_dim)
        self.project = nn.Dense(self.embed_dim, use_bias=self.head == "mlp")

    def encode(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Tokens:
        """The encoder's tokens."""
        return self.encoder(inputs, mask, keys=keys)

    def __call__(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Float[Array, "batch dim"]:
        """``[B, embed_dim]`` in float32."""
        if self.pool is None:
            x = self.encoder.embed(inputs, mask, keys=keys).astype(jnp.float32)
        else:
            x = self.pool(self.encode(inputs, mask, keys=keys)).astype(jnp.float32)
        return self.place(x)

    def place(self, pooled: Float[Array, "batch width"]) -> Float[Array, "batch dim"]:
        """``[B, embed_dim]`` of what the encoder and its pool make of the inputs."""
        if self.head == "own":
            return pooled
        x = self.norm(pooled)
        if self.head == "mlp":
            x = nn.gelu(self.hidden(x))
        return self.project(x)


def features_field(modality: str) -> str:
    """The field of a batch that holds what a frozen tower's encoder and pool made of it, float32 ``[B, width]``."""
    return f"{modality}_features"


def tower_head(config: EncoderConfig, projection: Projection) -> Head:
    """How much of a pretrained encoder's head a tower with this projection uses."""
    if config.pool != "own":
        return "none"
    return "project" if projection == "own" else "pool"


def make_tower(
    modality: str, config: EncoderConfig, batch: Batch, *, vocab_size: int, head, embed_dim: int
) -> Tower:
    """A tower sized for the inputs of ``batch`` (arrays or shapes).

    Raises:
      ValueError: the head "own" of an encoder without one, or with another pool.
    """
    if head == "own" and config.pool != "own":
        raise ValueError(
            f"head 'own' is the projection of a pretrained {modality} encoder with its own pool, such as CLIP's: give "
            f"one by --{modality}-encoder hf:PATH"
        )
    encoder = make_encoder(modality, config, batch, vocab_size=vocab_size, far=tower_head(config, head))
    return Tower(encoder, None if config.pool == "own" else build_pool(config), head, embed_dim)


def make_encoder(
    modality: str, config: EncoderConfig, batch: Batch, *, vocab_size: int, far: Head = "none"
) -> nn.Module:
    """An encoder sized for the inputs of ``batch`` (arrays or shapes); ``far``: how much of a pretrained one's head
    belongs to it.

    Raises:
      ValueError: a tokenizer of ``vocab_size`` tokens, of which a pretrained encoder of text knows fewer.
    """
    if isinstance(config, PretrainedEncoderConfig):
        if modality == "text":
            _check_vocabulary(config.architecture, vocab_size)
        return _pretrained(modality, config, batch, far)
    sizes = {"vocab_size": vocab_size, "max_length": batch["text"].shape[1]} if modality == "text" else {}
    return build_encoder(modality, config, **sizes)


def _check_vocabulary(architecture: str, vocab_size: int) -> None:
    known = parse_config(architecture)
    known = getattr(known, "text_config", known).vocab_size
    if vocab_size > known:
        raise ValueError(
            f"the tokenizer has {vocab_size} tokens, the pretrained text encoder knows {known}: leave --tokenizer out, "
            "so that its own is taken"
        )


def _pretrained(modality: str, config: PretrainedEncoderConfig, batch: Batch, far: Head) -> nn.Module:
    same = ("dropout", "drop_path", "remat", "scan_layers")
    options = EncoderOptions(
        head=far,
        dtype=config.compute_dtype,
        implementation=config.attention,
        **{name: getattr(config, name) for name in same},
    )
    sizes: dict[str, Any] = {}
    if modality in ("image", "video"):
        sizes["image_size"] = tuple(batch[modality].shape[-3:-1])
    if modality == "video":
        sizes["frames"] = batch[modality].shape[-4]
    return make_module(modality, config.architecture, options, **sizes)


def pretrained_config(
    modality: str, folder: str | os.PathLike
) -> PretrainedEncoderConfig | TextDecoderConfig:
    """The encoder (or, of the modality "decoder", the decoder of text) of a checkpoint's folder, as configured."""
    folder = pathlib.Path(folder)
    config = complete_config(read_config(folder), read_processor(folder))
    module = make_module(modality, config)
    if modality == "decoder":
        return TextDecoderConfig(**gpt2.sizes(parse_config(config)))
    sizes = {
        name: getattr(module.sizes, name)
        for name in ("width", "depth", "heads")
        if hasattr(module.sizes, name)
    }
    if modality == "video":
        sizes["frames_per_token"] = module.tubelet
    if modality == "audio":
        sizes["frames_per_token"] = 2  # tokens each 20 ms, of all that can be loaded, and frames each 10
    return PretrainedEncoderConfig(architecture=config, **sizes)


def leading_tokens(modality: str, config: EncoderConfig) -> int:
    """How many of an encoder's tokens come before those that stand for places."""
    if not isinstance(config, PretrainedEncoderConfig):
        return config.leading_tokens
    return make_module(modality, config.architecture).prefix_tokens


def pretrained_features(config: PretrainedEncoderConfig) -> AudioFeatures:
    """What a pretrained encoder of audio takes: Whisper its own log-mel, the others the waveform."""
    described = parse_config(config.architecture)
    if described.model_type == "whisper":
        return AudioFeatures(kind="whisper", mels=described.num_mel_bins, window=400, hop=160)
    return AudioFeatures(kind="waveform", window=400, hop=160)  # of the pictures in reports


def presence(batch: Batch, modalities: tuple[str, ...]) -> dict[str, Bool[Array, "batch"]]:
    """Which examples have which modality; where the batch does not say, all."""
    everyone = jnp.ones(batch["index"].shape[0], bool)
    return {m: batch.get("present", {}).get(m, everyone) for m in modalities}


def prepare(
    modality: str,
    batch: Batch,
    features: AudioFeatures,
    augment: Augment | None = None,
    keys: ExampleKeys | None = None,
):
    """``(inputs, mask)`` of one modality, what its encoder takes; augmented if ``augment`` and ``keys`` are given.

    Audio is a waveform, or what `spectrograms` made of it, and becomes what ``features.kind`` says.
    """
    x, mask = batch[modality], batch.get(f"{modality}_mask")
    keys = None if augment is None or keys is None else fold_in_name(keys, f"augment/{modality}")
    if modality == "text":
        return x, mask
    if modality in ("image", "video"):
        x = to_float(x)
        if keys is not None:
            change = lambda pictures: augment_image(pictures, keys, augment.image)
            # One draw per example, so that all frames of a video change alike.
            x = change(x) if modality == "image" else jax.vmap(change, in_axes=1, out_axes=1)(x)
        return x, mask
    if modality == "audio":
        if features.kind == "waveform":
            return _waveform(batch, augment if keys is not None else None)
        if not _holds_frames(batch):
            x, mask = _spectrogram(x, mask, features)
        elif x.shape[-1] != features.mels:
            raise ValueError(f"the audio's frames have {x.shape[-1]} bands, features.mels is {features.mels}")
        if keys is not None:
            x = audio_features.spec_augment(
                x, keys, mask, time_masks=augment.time_masks, freq_masks=augment.frequency_masks
            )
        return x, mask
    raise ValueError(f"unknown modality {modality!r}; one of text, image, audio, video")


def _waveform(batch: Batch, augment: Augment | None):
    if _holds_frames(batch):
        raise ValueError("the batch holds frames of audio, features.kind is 'waveform'")
    if augment is not None and (augment.time_masks or augment.frequency_masks):
        raise ValueError("SpecAugment masks spectrograms: with features.kind 'waveform' set its masks to 0")
    return audio_features.to_float_waveform(batch["audio"]), batch.get("audio_mask")


def init_inputs(batch: Batch):
    """One row of a batch: enough to initialise from, without computing on all of it."""
    return jax.tree.map(lambda x: x[:1], batch)
