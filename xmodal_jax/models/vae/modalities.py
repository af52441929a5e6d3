"""How autoencoders read data: what an encoder is given of each kind, and what its decoder is to say."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.models.towers import AudioFeatures, log_mel_of
from xmodal_jax.models.vae.networks import ModalityConfig, Seen
from xmodal_jax.nets.decoders import DecoderConfig, Size
from xmodal_jax.nets.encoders import (
    AudioEncoder,
    AudioTransformerConfig,
    DCGANEncoderConfig,
    ImageEncoder,
    TextEncoder,
    TextTransformerConfig,
)
from xmodal_jax.preprocess.image import AugmentConfig, augment, to_float
from xmodal_jax.probability.likelihoods import DENSITIES
from xmodal_jax.types import Batch, kind_of

STILL = AugmentConfig(translate=0)
"""Changes nothing."""


@dataclasses.dataclass(frozen=True)
class ImageConfig(ModalityConfig):
    """How images are encoded, decoded and compared."""

    encoder: ImageEncoder
    """Image encoder."""


@dataclasses.dataclass(frozen=True)
class TextConfig(ModalityConfig):
    """How texts are encoded, decoded and compared."""

    encoder: TextEncoder
    """Text encoder."""


@dataclasses.dataclass(frozen=True)
class AudioConfig(ModalityConfig):
    """How log-mel frames are encoded, decoded and compared."""

    encoder: AudioEncoder
    """Audio encoder."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How each kind of data is read and made."""

    image: ImageConfig = ImageConfig(
        DCGANEncoderConfig(width=64, norm="none"),
        DecoderConfig("residual", width=64),
        "normal",
        scale=0.1,
    )
    """Images: values in [0, 1]. A Laplace likelihood asks for the median, which of a small object on a plain ground is
    the ground: it learns such pictures far later."""
    text: TextConfig = TextConfig(
        TextTransformerConfig(width=64), DecoderConfig("parallel", width=64), "categorical"
    )
    """Text: the sum over its tokens."""
    audio: AudioConfig = AudioConfig(
        AudioTransformerConfig(width=64, downsample=16),
        DecoderConfig("conv", width=64),
        "laplace",
        scale=0.75,
    )
    """Log-mel frames, shifted and scaled; silence up to the end is a part of them."""
    label: ModalityConfig = ModalityConfig(None, DecoderConfig("mlp", width=64, depth=1), "categorical")
    """The class, as a modality."""
    features: AudioFeatures = AudioFeatures(mels=40, window=1024, hop=200)
    """The spectrogram."""
    floor: float = 1e-5
    """Least power of a mel band: what is quieter counts as silence."""
    mel_mean: float = -5.0
    """Log-mel frames are shifted by this and divided by ``mel_scale``."""
    mel_scale: float = 4.0
    """See ``mel_mean``."""
    augment: AugmentConfig = STILL
    """Random changes of images in training, before they are encoded and compared."""


def sizes_of(
    batch: Batch,
    modalities: tuple[str, ...],
    config: Reading,
    *,
    vocab_size: int = 0,
    classes: int = 0,
) -> dict[str, Size]:
    """What each modality's decoder has to make, from a batch (arrays or shapes)."""
    sizes = {}
    for name in modalities:
        kind = kind_of(name)
        if kind == "label":
            sizes[name] = Size((), classes)
        elif kind == "text":
            sizes[name] = Size(tuple(batch[name].shape[1:]), vocab_size)
        elif kind == "audio":
            frames = jax.eval_shape(functools.partial(_frames, config), batch[name], batch[f"{name}_mask"])
            sizes[name] = Size(tuple(frames.shape[1:]))
        elif kind == "image":
            sizes[name] = Size(tuple(batch[name].shape[1:]))
        else:
            raise ValueError(f"{name!r}: a multimodal VAE takes images, text, audio and labels")
    return sizes


def _frames(config: Reading, x, mask) -> Float[Array, "batch frames mels"]:
    """Log-mel frames of unit size, silence where there is nothing: waveforms, or what `models.speech.log_mel_transform`
    made."""
    if x.ndim == mask.ndim:
        x, mask = log_mel_of(x, mask, config.features, floor=config.floor)
    x = jnp.where(mask[:, :, None], x, jnp.log(config.floor))
    return (x - config.mel_mean) / config.mel_scale


def to_log_mel(config: Reading, frames: Float[Array, "*batch frames mels"]) -> Array:
    """What a decoder says of audio, as log-mel frames."""
    return frames * config.mel_scale + config.mel_mean


def see(config: Reading, names: tuple[str, ...], batch: Batch, keys=None) -> Seen:
    """A batch as the network takes it."""
    everyone = jnp.ones(batch["index"].shape[0], bool)
    inputs, targets, present = {}, {}, []
    for name in names:
        kind, x, mask = kind_of(name), jnp.asarray(batch[name]), batch.get(f"{name}_mask")
        there = batch.get("present", {}).get(name, everyone)
        if kind == "image":
            x = to_float(x)
            if config.augment != STILL and keys is not None:
                x = augment(x, fold_in_name(keys, f"augment/{name}"), config.augment)
            inputs[name], targets[name] = (x, None), ((x + 1.0) / 2.0, None)
        elif kind == "audio":
            x = _frames(config, x, mask)
            inputs[name] = targets[name] = (x, None)
        elif kind == "text":
            inputs[name] = targets[name] = (x, x != 0 if mask is None else mask)
        else:
            there = there & (x >= 0)
            inputs[name] = targets[name] = (x, None)
        present.append(there)
    return Seen(inputs, targets, jnp.stack(present))


def kinds_of(
    config: Reading, sizes: Mapping[str, Size], used: set[str], *, rescale: bool = False
) -> dict[str, ModalityConfig]:
    """The kinds of data that there are; with ``rescale`` their weights times the largest modality's size over their
    own."""
    kinds, largest = {}, max(size.elements for size in sizes.values())
    for kind in sorted(used):
        own: ModalityConfig = getattr(config, kind)
        categorical = kind in ("text", "label")
        if (own.likelihood == "categorical") != categorical or own.likelihood not in (
            *DENSITIES,
            "categorical",
        ):
            allowed = "categorical" if categorical else ", ".join(DENSITIES)
            raise ValueError(f"{kind}.likelihood must be {allowed}, got {own.likelihood!r}")
        if own.likelihood == "bernoulli" and kind == "audio":
            raise ValueError(
                "audio.likelihood: log-mel frames are no probabilities; choose laplace or normal"
            )
        if rescale:
            elements = max(size.elements for name, size in sizes.items() if kind_of(name) == kind)
            own = dataclasses.replace(own, weight=own.weight * largest / elements)
        kinds[kind] = own
    return kinds
