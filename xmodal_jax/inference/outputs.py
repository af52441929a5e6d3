"""Converts what a model generates to Pillow images, strings, waveforms, and numbers in the unit of the data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.models.vae.modalities import AudioConfig, ModalityConfigs
from xmodal_jax.types import KINDS, kind_of


class OutputFormat(NamedTuple):
    """How a model's data were preprocessed, which is undone for what it generates."""

    configs: ModalityConfigs
    """How each kind of modality is preprocessed."""
    transform: FittedTransforms
    """Tokens of texts, and standard units of measured quantities."""
    class_names: tuple[str, ...] = ()
    """The name of each class; empty: they are numbered."""

    def to_outputs(self, modality: str, batch: Mapping[str, Any]) -> list[Any]:
        """Converts one modality of a batch of generated data, one object for each example.

        Args:
          modality: determines the type of the objects: Pillow images; strings; pairs (waveform float32 ``[T]`` in
            [-1, 1], samples per second); numbers float64 in the unit of the data, ``[D]`` or ``[T, C]``; names of
            classes.
          batch: fields ``[N, ...]``, as `models.vae.modalities.as_batch` makes them.
        """
        values = np.asarray(batch[modality])
        return _OUTPUTS[kind_of(modality)](self, modality, values, batch.get(f"{modality}_mask"))


def to_picture(pixels: np.ndarray) -> Image.Image:
    """A Pillow image of pixels uint8 ``[H, W, C]``; with one channel it is grey."""
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def _to_pictures(format: OutputFormat, modality: str, values: np.ndarray, mask: Any) -> list[Image.Image]:
    return [to_picture(pixels) for pixels in values]


def _to_texts(format: OutputFormat, modality: str, values: np.ndarray, mask: Any) -> list[str]:
    tokenizer = format.transform.tokenizer
    return [tokenizer.decode(ids[is_token]) for ids, is_token in zip(values, np.asarray(mask), strict=True)]


def _to_sounds(
    format: OutputFormat, modality: str, values: np.ndarray, mask: Any
) -> list[tuple[np.ndarray, int]]:
    """Sounds of log-mel frames ``[B, F, mels]``, by Griffin-Lim; each ends where its ``mask`` does, or, without a mask,
    where silence begins."""
    config = format.configs.for_modality(modality)
    source = ArraySource({"frames": values})
    waves = predict_all(_vocoder(config), {}, source, batch_size=16, few_shapes=True)
    mask = config.speech_mask(jnp.asarray(values)) if mask is None else mask
    waves = config.cut_waveforms(np.clip(waves, -1.0, 1.0), np.asarray(mask))
    return [(wave, config.sample_rate) for wave in waves]


@functools.lru_cache(maxsize=8)
def _vocoder(config: AudioConfig) -> Callable[[Any, Mapping[str, Any]], Any]:
    """``vocoder(params, batch)``: the waveforms of the batch's ``frames``; one function for all calls."""
    return lambda params, batch: config.waveforms(batch["frames"])


def _to_numbers(format: OutputFormat, modality: str, values: np.ndarray, mask: Any) -> list[np.ndarray]:
    standardise = format.transform.standardise
    return list(values if standardise is None else standardise.restore(modality, values))


def _to_classes(format: OutputFormat, modality: str, values: np.ndarray, mask: Any) -> list[str]:
    return [format.class_names[k] if format.class_names else str(k) for k in values.tolist()]


_OUTPUTS: dict[str, Callable[[OutputFormat, str, np.ndarray, Any], list[Any]]] = {
    **dict.fromkeys(KINDS, _to_numbers),
    "image": _to_pictures,
    "text": _to_texts,
    "audio": _to_sounds,
    "label": _to_classes,
}
"""How the generated data of each kind of modality are converted; those of no class of their own are
numbers."""
