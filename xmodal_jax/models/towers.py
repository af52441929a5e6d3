"""One tower per modality: preprocess on the device, encode, pool, project."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.nets.encoders import EncoderConfig, build_encoder, build_pool
from xmodal_jax.preprocess import audio as audio_features
from xmodal_jax.preprocess.image import AugmentConfig, to_float
from xmodal_jax.preprocess.image import augment as augment_image
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
    """Log-mel spectrogram of a waveform."""

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


def rank(modality: str, batch: Batch) -> int:
    """Axes of a batch of a modality: of audio one more where it holds frames (see `spectrograms`) and no waveforms."""
    return _RANKS[modality] + (modality == "audio" and _holds_frames(batch))


def _holds_frames(batch: Batch) -> bool:
    return "audio_mask" in batch and batch["audio"].ndim > batch["audio_mask"].ndim


def spectrograms(features: AudioFeatures) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A change of raw batches: waveforms ``[..., T]`` to the frames ``[..., F, mels]`` that `prepare` would make of
    them, with their mask ``[..., F]``, computed once and not again at every step that reads them."""
    return once_per_batch(lambda x, mask: _log_mel(x, mask, features))


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


def _log_mel(waveform, mask, features: AudioFeatures):
    frames, mask = log_mel_of(waveform, mask, features)
    return audio_features.normalize(frames, mask), mask


class Tower(nn.Module):
    """Features of one modality to one embedding per example (not normalised)."""

    encoder: nn.Module
    pool: nn.Module
    head: Literal["linear", "mlp"]
    embed_dim: int

    def setup(self):
        self.norm = nn.LayerNorm()
        if self.head == "mlp":
            self.hidden = nn.Dense(2 * self.embed_dim)
        self.project = nn.Dense(self.embed_dim, use_bias=self.head == "mlp")

    def encode(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Tokens:
        """The encoder's tokens."""
        return self.encoder(inputs, mask, keys=keys)

    def __call__(self, inputs, mask=None, *, keys: ExampleKeys | None = None) -> Float[Array, "batch dim"]:
        """``[B, embed_dim]`` in float32."""
        x = self.norm(self.pool(self.encode(inputs, mask, keys=keys)).astype(jnp.float32))
        if self.head == "mlp":
            x = nn.gelu(self.hidden(x))
        return self.project(x)


def make_tower(
    modality: str, config: EncoderConfig, batch: Batch, *, vocab_size: int, head, embed_dim: int
) -> Tower:
    """A tower sized for the inputs of ``batch`` (arrays or shapes)."""
    encoder = make_encoder(modality, config, batch, vocab_size=vocab_size)
    return Tower(encoder, build_pool(config), head, embed_dim)


def make_encoder(modality: str, config: EncoderConfig, batch: Batch, *, vocab_size: int) -> nn.Module:
    """An encoder sized for the inputs of ``batch`` (arrays or shapes)."""
    sizes = {"vocab_size": vocab_size, "max_length": batch["text"].shape[1]} if modality == "text" else {}
    return build_encoder(modality, config, **sizes)


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

    Audio is a waveform, or what `spectrograms` made of it.
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
        if not _holds_frames(batch):
            x, mask = _log_mel(x, mask, features)
        elif x.shape[-1] != features.mels:
            raise ValueError(f"the audio's frames have {x.shape[-1]} bands, features.mels is {features.mels}")
        if keys is not None:
            x = audio_features.spec_augment(
                x, keys, mask, time_masks=augment.time_masks, freq_masks=augment.frequency_masks
            )
        return x, mask
    raise ValueError(f"unknown modality {modality!r}; one of text, image, audio, video")


def init_inputs(batch: Batch):
    """One row of a batch: enough to initialise from, without computing on all of it."""
    return jax.tree.map(lambda x: x[:1], batch)
