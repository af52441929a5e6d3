"""Vocoders over whole data sets: copy synthesis, and its scores against the recordings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.evaluation.speech import Utterances, pad_frames, pad_rows, pad_waves
from xmodal_jax.metrics.perceptual import perceptual_scores
from xmodal_jax.models.speech import log_mel_transform
from xmodal_jax.models.vocoder import VocoderConfig, make_vocode


class NeuralVocoder:
    """Turns log-mel frames into waveforms with the parameters of a `make_vocoder` method, compiled once.

    Args:
      config: of the model.
      frames: the largest number of frames; longer recordings are cut.
      batch_size: recordings at a time.
      few_shapes: see `predict_all`.
    """

    def __init__(self, config: VocoderConfig, *, frames: int, batch_size: int = 50, few_shapes: bool = False):
        self.config, self.frames = config, frames
        self._batches = dict(batch_size=batch_size, few_shapes=few_shapes)
        vocode = make_vocode(config)
        self._vocode = lambda params, batch: vocode(
            params, batch["audio"], batch["audio_mask"], batch.get("pitch")
        )

    def __call__(self, params: Any, recordings: Utterances) -> Utterances:
        """The recordings with waveforms that the vocoder computes from their log-mel frames, and their pitch if they
        have it."""
        fields = pad_frames(recordings.frames, self.frames, self.config.floor)
        if recordings.pitch is not None:
            fields["pitch"] = pad_rows(recordings.pitch, self.frames)
        waves, masks = predict_all(self._vocode, params, ArraySource(fields), **self._batches)
        return recordings._replace(waves=[w[valid] for w, valid in zip(waves, masks, strict=True)])


def vocoder_scores(
    vocoded: Utterances, recordings: Utterances, config: VocoderConfig, *, prefix: str
) -> dict[str, float]:
    """``mel_distance``, the mean absolute difference in nats of the log-mel frames of vocoded and recorded waveforms,
    and the scores of `perceptual_scores`, each after ``prefix``."""
    to_frames = log_mel_transform(config.features, config.floor)
    longest = max(len(wave) for wave in recordings.waves)
    computed = to_frames(pad_waves(vocoded.waves, longest))["audio"]
    distances = [np.abs(x[: len(y)] - y).mean() for x, y in zip(computed, recordings.frames, strict=True)]
    options = dict(sample_rate=config.features.sample_rate)
    scores = {"mel_distance": float(np.mean(distances))}
    scores |= perceptual_scores(vocoded.waves, recordings.waves, **options)
    return {f"{prefix}{name}": value for name, value in scores.items()}


def real_time_factor(
    vocode: Callable[[Utterances], Utterances], recordings: Utterances, *, sample_rate: int
) -> float:
    """Seconds of computation for each second of sound, after a first call that compiles; below 1 is faster than real
    time."""
    vocode(recordings)
    start = time.perf_counter()
    waves = vocode(recordings).waves
    return (time.perf_counter() - start) * sample_rate / sum(map(len, waves))
