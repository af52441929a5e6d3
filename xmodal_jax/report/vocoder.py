"""Report sections on vocoders: the same recordings through each of them, as sounds and as spectrograms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xmodal_jax.evaluation.speech import Utterances
from xmodal_jax.models.speech import log_mel_transform
from xmodal_jax.models.vocoder import VocoderConfig
from xmodal_jax.report.figures import spectrogram
from xmodal_jax.report.page import Audio, Report

TABLE_ROWS = 8
"""Rows of the table of sounds."""
SPECTROGRAMS = 3
"""Recordings whose spectrograms are shown."""


def add_vocoders(report: Report, utterances: Mapping[str, Utterances], config: VocoderConfig) -> None:
    """A table of sounds of random recordings with a column for each entry of ``utterances``, and their spectrograms.

    Args:
      report: gets the table and the figures.
      utterances: by title, the recordings first; all hold the same recordings in order.
      config: of the vocoder.
    """
    recordings = next(iter(utterances.values()))
    sampled = np.random.default_rng(0).permutation(len(recordings.waves))[:TABLE_ROWS].tolist()
    rate = config.features.sample_rate
    rows = [[str(k), *(Audio(np.asarray(x.waves[k]), rate) for x in utterances.values())] for k in sampled]
    report.add_table("Sounds", ["recording", *utterances], rows, "Random recordings of the test split.")
    to_frames = log_mel_transform(config.features, config.floor)
    for k in sampled[:SPECTROGRAMS]:
        frames = {}
        for title, x in utterances.items():
            wave = np.asarray(x.waves[k])[None]
            frames[title] = to_frames({"audio": wave, "audio_mask": np.ones(wave.shape, bool)})["audio"][0]
        figure = spectrogram(frames, frames_per_second=rate / config.features.hop)
        report.add_figure("Spectrograms", figure, f"Recording {k}.")
