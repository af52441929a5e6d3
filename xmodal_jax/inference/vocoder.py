"""Waveforms of log-mel frames: a trained neural vocoder on new data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.evaluation.speech import Utterances
from xmodal_jax.evaluation.vocoder import NeuralVocoder
from xmodal_jax.inference.inputs import as_list
from xmodal_jax.inference.loading import load
from xmodal_jax.inference.model import BATCH_SIZE, RestoredRun, TrainedModel
from xmodal_jax.models.speech import log_mel_transform
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.models.vocoder import VocoderConfig, make_vocode, spectrogram_differences
from xmodal_jax.train.run import from_json


class Vocoder(TrainedModel):
    """A trained neural vocoder.

    ::

        vocoder = load("runs/vocoder")
        ((waveform, rate),) = vocoder.decode(log_mel)
        copies = vocoder.reconstruct(["a.wav", "b.wav"])
    """

    kind = "vocoder"
    actions = ("decode", "reconstruct")

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        super().__init__(run, ("audio",))
        self.format = self.format._replace(
            max_seconds=None
        )  # recordings may be longer than those of training
        self.config = from_json(VocoderConfig, self.metadata["config"]["model"])
        """Configuration of the network and of its spectrogram."""
        self.sample_rate: int = self.config.features.sample_rate
        """Samples per second of the waveforms."""
        self._to_frames = log_mel_transform(self.config.features, self.config.floor)
        self._vocode = make_vocode(self.config)
        self._vocoders: dict[int, NeuralVocoder] = {}

    def decode(self, log_mel: Any, pitch: Any = None) -> list[tuple[np.ndarray, int]]:
        """Waveforms of log-mel frames: pairs of a waveform, float32 ``[(F - 1) * hop]`` in [-1, 1], and its rate.

        Args:
          log_mel: a list of arrays ``[F, mels]``, or one of them: natural logarithms of the power of mel bands, with
            the settings of ``config.features`` (see `load_vocoder`).
          pitch: the pitch of voiced frames in Hz, such as a synthesiser's: an array ``[F]`` for each of ``log_mel``.
            Where it is 0 it is interpolated, and it is limited to ``config.pitch_range``. None: what the network finds
            in the frames.

        Raises:
          ValueError: an array has another shape, fewer than two frames, not as many as its pitch, or NaN; powers below
            ``config.floor`` are raised to it.
        """
        is_one = getattr(log_mel, "ndim", None) == 2  # a list may hold arrays of different lengths
        arrays = [np.asarray(x) for x in ([log_mel] if is_one else log_mel)]
        mels = self.config.features.mels
        for k, x in enumerate(arrays):
            if x.ndim != 2 or x.shape[1] != mels or len(x) < 2:
                raise ValueError(
                    f"log-mel frames have the shape [frames, {mels}] with two frames or more, array {k} has {x.shape}"
                )
            if np.isnan(x).any() or (x == np.inf).any():
                raise ValueError(f"array {k} of log-mel frames has values that are NaN or infinite")
        if not arrays:
            return []
        arrays = [np.maximum(x, np.log(self.config.floor)) for x in arrays]
        contours = None
        if pitch is not None:
            contours = [np.asarray(x, np.float32) for x in ([pitch] if is_one else pitch)]
            if [x.shape for x in contours] != [(len(x),) for x in arrays]:
                raise ValueError(
                    f"pitch must have one number for each frame, {[len(x) for x in arrays]}, got arrays of the shapes "
                    f"{[x.shape for x in contours]}"
                )
            if any(not np.isfinite(x).all() or (x < 0).any() for x in contours):
                raise ValueError(
                    "pitch must be in Hz, 0 where it is not known, got negative or infinite values, or NaN"
                )
        # To whole seconds, so that few lengths occur and few programs are compiled.
        second = -(-self.sample_rate // self.config.features.hop)
        frames = -(-max(map(len, arrays)) // second) * second
        if frames not in self._vocoders:
            self._vocoders[frames] = NeuralVocoder(
                self.config, frames=frames, batch_size=BATCH_SIZE, few_shapes=True
            )
        vocoded = self._vocoders[frames](self.params, Utterances([], arrays, pitch=contours))
        return [(wave, self.sample_rate) for wave in vocoded.waves]

    def reconstruct(self, recordings: Any) -> list[tuple[np.ndarray, int]]:
        """Recordings, turned into log-mel frames and back: what the vocoder loses. The results are those of `decode`.

        ``recordings``: paths, bytes of files or pairs (waveform, samples per second), a list or one of them.
        """
        recordings = as_list("audio", recordings)
        if not len(recordings):
            return []
        batch = self._to_frames(self.read({"audio": recordings}).batch(np.arange(len(recordings))))
        return self.decode([x[valid] for x, valid in zip(batch["audio"], batch["audio_mask"], strict=True)])

    def vocode(
        self,
        log_mel: Float[Array, "batch frames mels"],
        mask: Bool[Array, "batch frames"],
        pitch: Float[Array, "batch frames"] | None = None,
    ) -> Float[Array, "batch time"]:
        """The waveforms ``[B, (F - 1) * hop]`` of log-mel frames in nats, zero behind the mask, as a function for a
        compiled program of one's own, such as a synthesiser's; see `models.make_vocode`. `decode` is for everything
        else."""
        return self._vocode(self.params, log_mel, mask, pitch)[0]


def load_vocoder(
    run: str | os.PathLike, features: AudioFeatures, *, floor: float, seed: int | None = None
) -> Vocoder:
    """The vocoder of a run of ``vocoder.py``, for log-mel frames with these settings.

    ::

        vocoder = load_vocoder("runs/vocoder", speaker.config.features, floor=speaker.config.floor)

    Args:
      run: the run's directory.
      features: settings of the spectrogram that is to be turned into sound.
      floor: smallest power of a mel band in it.
      seed: see `inference.load`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run is none of a vocoder, or was trained on another spectrogram; the message names every setting
        that differs.
    """
    model = load(run, seed=seed)
    if not isinstance(model, Vocoder):
        raise ValueError(f"{run} is a run of {model.kind}: give a run of vocoder.py")
    differences: Sequence[str] = spectrogram_differences(model.config, features, floor)
    if differences:
        raise ValueError(
            f"the vocoder {run} was trained on other spectrograms, with {', '.join(differences)}: train one with "
            "--model.features of the same settings"
        )
    return model
