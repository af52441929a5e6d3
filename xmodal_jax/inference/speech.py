"""Speech of texts: a trained speech synthesiser on new data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.speech import Synthesizer
from xmodal_jax.inference.inputs import as_list, positions_of
from xmodal_jax.inference.model import BATCH_SIZE, RestoredRun, TrainedModel
from xmodal_jax.models.speech import SpeechConfig
from xmodal_jax.train.run import from_json


class SpeechSynthesizer(TrainedModel):
    """A trained speech synthesiser.

    ::

        ((waveform, rate),) = load("runs/speech_synthesis").synthesize("a red star")
    """

    kind = "speech_synthesis"
    actions = ("synthesize",)

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        super().__init__(run, ("text",))
        self.config = from_json(SpeechConfig, self.metadata["config"]["model"])
        """Configuration of the network and of its spectrogram."""
        self.voices: tuple[str, ...] = tuple(self.metadata["speakers"])
        """The names of the voices."""
        self.sample_rate: int = self.config.features.sample_rate
        """Samples per second of the speech."""
        self._synthesizers: dict[float, Synthesizer] = {}

    def describe(self) -> str:
        """What the run is, what it takes and what it gives, as text."""
        return f"{super().describe()}\nvoices: {', '.join(self.voices)}"

    def synthesize(
        self, texts: Any, voices: str | Sequence[str] | None = None, *, speed: float = 1.0
    ) -> list[tuple[np.ndarray, int]]:
        """Speech of each text: pairs of a waveform, float32 ``[T]`` in [-1, 1], and its samples per second.

        Args:
          texts: the texts.
          voices: the name of one voice, or of a voice for each text; None: the first voice.
          speed: factor of the speed of speech; above 1 it is faster.

        Raises:
          ValueError: a text has more tokens than the run was trained for, there is no such voice, or the speed is not
            positive.
        """
        texts = as_list("text", texts)
        names = (
            [voices or self.voices[0]] * len(texts)
            if voices is None or isinstance(voices, str)
            else list(voices)
        )
        if len(names) != len(texts):
            raise ValueError(f"there are {len(texts)} texts and {len(names)} voices")
        speakers = positions_of(names, self.voices, "voice", "voices")
        if not 0 < speed < np.inf:
            raise ValueError(f"speed must be positive and finite, got {speed}")
        if not texts:
            return []
        captions = self.read({"text": texts}).batch(np.arange(len(texts)))["caption"]
        self._check_lengths(captions.tolist())
        source = ArraySource({"caption": captions, "speaker": speakers})
        speech = self._synthesizer(float(speed))(self.params, source)
        return [(wave, self.sample_rate) for wave in speech.waves]

    def _synthesizer(self, speed: float) -> Synthesizer:
        """The compiled synthesiser of this speed."""
        if speed not in self._synthesizers:
            self._synthesizers[speed] = Synthesizer(
                self.config,
                self.format.transform.tokenize,
                frames=self.metadata["frames"],
                speakers=len(self.voices),
                speed=speed,
                batch_size=BATCH_SIZE,
                few_shapes=True,
            )
        return self._synthesizers[speed]

    def _check_lengths(self, texts: Sequence[str]) -> None:
        """Raises ValueError for a text that is too long to be spoken whole."""
        tokenize = self.format.transform.tokenize
        cleaned = [text if tokenize.clean is None else tokenize.clean(text) for text in texts]
        for text, tokens in zip(texts, tokenize.tokenizer.lengths(cleaned), strict=True):
            if tokens > tokenize.max_length:
                raise ValueError(
                    f"{self.path} speaks texts of up to {tokenize.max_length} tokens, this one has {tokens}: {text!r}"
                )
