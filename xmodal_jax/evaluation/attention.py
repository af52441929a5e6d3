"""The attention of a classifier by several modalities to the parts of its inputs: words, image patches, frames,
numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.text import Tokenizer
from xmodal_jax.data.views import modality_fields
from xmodal_jax.models.fusion import FusionConfig
from xmodal_jax.models.towers import compute_log_mel, encoder_of, measured_inputs, prefix_tokens
from xmodal_jax.types import KINDS, kind_of


class AttendedInput(NamedTuple):
    """One modality of one example, and the attention to its parts."""

    content: Any
    """An image uint8 ``[H, W, C]``, a list of tokens, a log-mel spectrogram ``[frames, mels]``, a video uint8
    ``[F, H, W, C]``, or measured quantities ``[D]`` or ``[T, C]`` in standard deviations, NaN where they
    are missing."""
    weights: np.ndarray
    """The attention weights, which sum to about 1 over the modality: ``[h, w]`` for an image, ``[t, h, w]`` for a
    video, ``[n]`` for all others."""


class AttentionInputs(NamedTuple):
    """A batch before and after the classifier's preprocessing."""

    batch: Mapping[str, Any]
    """The batch as the classifier gets it."""
    raw: Mapping[str, Any]
    """The batch as the data set has it, with its texts and pixels."""
    model: FusionConfig
    """Configuration of the classifier."""
    tokenizer: Tokenizer | None
    """The classifier's tokenizer; None: there is no text."""

    def attended(self, modality: str, k: int, weights: np.ndarray) -> AttendedInput:
        """Matches the attention ``weights [tokens]`` of example ``k`` to the parts of its ``modality``. Leading tokens
        that belong to no part, such as [CLS], are left out."""
        weights = weights[prefix_tokens(modality, encoder_of(self.model, modality)) :]
        return AttendedInput(*_PARTS[kind_of(modality)](self, modality, k, weights))


def _attended_text(inputs: AttentionInputs, modality: str, k: int, weights: np.ndarray):
    """The tokens of example k's caption, and the attention to each of them."""
    caption = str(inputs.raw[modality_fields(modality)[-1]][k])
    words = inputs.tokenizer.tokens(caption)[: len(weights)]
    return words, weights[: len(words)]


def _attended_audio(inputs: AttentionInputs, modality: str, k: int, weights: np.ndarray):
    """Example k's log-mel spectrogram without padding, and the attention to its tokens, each of several frames."""
    mask = inputs.batch.get(f"{modality}_mask")
    sound = jnp.asarray(inputs.batch[modality])[k : k + 1], None if mask is None else mask[k : k + 1]
    frames, mask = compute_log_mel(*sound, inputs.model.features)
    frames = np.asarray(frames[0] if mask is None else frames[0][np.asarray(mask[0])])
    tokens = -(-len(frames) // encoder_of(inputs.model, modality).frames_per_token)  # rounded up
    return frames, weights[:tokens]


def _attended_image(inputs: AttentionInputs, modality: str, k: int, weights: np.ndarray):
    image = inputs.raw[modality][k]
    return image, _grid(weights, 1, *image.shape[:2])[0]


def _attended_video(inputs: AttentionInputs, modality: str, k: int, weights: np.ndarray):
    """Example k's video, and the attention to it ``[time steps, h, w]``."""
    video = inputs.raw[modality][k]
    steps = len(video) // encoder_of(inputs.model, modality).frames_per_token
    return video, _grid(weights, steps, *video.shape[1:3])


def _attended_numbers(inputs: AttentionInputs, modality: str, k: int, weights: np.ndarray):
    """Example k's measured quantities in standard deviations (or the numbers of a kind of your own), NaN where they are
    missing, and the attention to their tokens."""
    values, mask = (np.asarray(x) for x in measured_inputs(modality, inputs.batch))
    return np.where(mask[k], values[k], np.nan), weights


def _grid(weights: np.ndarray, steps: int, height: int, width: int) -> np.ndarray:
    """The attention to the tokens as a grid for each time step, ``[steps, h, w]``, of the proportions of the image."""
    rows = int(np.sqrt(len(weights) // steps * height / width) + 1e-6)
    columns = int(rows * width / height + 1e-6)
    return weights[: steps * rows * columns].reshape(steps, rows, columns)


_PARTS: dict[str, Callable[[AttentionInputs, str, int, np.ndarray], tuple[Any, np.ndarray]]] = {
    "text": _attended_text,
    "audio": _attended_audio,
    "image": _attended_image,
    "video": _attended_video,
}
_PARTS |= {kind: _attended_numbers for kind in KINDS if kind not in _PARTS}
"""The fields of an `AttendedInput`, for each kind of modality."""
