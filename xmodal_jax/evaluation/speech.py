"""Speech synthesised for whole data sets, and its distance from recordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.metrics.speech import mel_distance
from xmodal_jax.metrics.text import error_rates
from xmodal_jax.models.speech import SpeechConfig, log_mel_transform, make_synthesizer, vocode


class Utterances(NamedTuple):
    """Recorded or synthesised speech of several examples."""

    waves: list[np.ndarray]
    """Waveforms ``[T]``, floats in [-1, 1] or int16."""
    frames: list[np.ndarray]
    """Log-mel frames ``[F, mels]``, in nats."""
    durations: list[np.ndarray] | None = None
    """Frames of each token ``[L]``; None for recordings."""


def first_examples(source: Source, count: int) -> ArraySource:
    """The first ``count`` examples of a split, read once; without fields that are dicts, such as "present"."""
    batch = source.batch(np.arange(min(count, len(source))))
    return ArraySource({k: v for k, v in batch.items() if not isinstance(v, Mapping)})


def recordings_of(source: ArraySource, config: SpeechConfig) -> Utterances:
    """The recordings of a data set without their padding, and their log-mel frames."""
    batch = source.arrays
    log_mel = log_mel_transform(config.features, config.floor)(batch)
    waves = [wave[valid] for wave, valid in zip(batch["audio"], batch["audio_mask"], strict=True)]
    frames = [x[valid] for x, valid in zip(log_mel["audio"], log_mel["audio_mask"], strict=True)]
    return Utterances(waves, frames)


class Vocoder:
    """Copy synthesis: turns log-mel frames of recordings back into waveforms. No synthesis with this vocoder can be
    better.

    Args:
      config: of the model.
      frames: the largest number of frames; longer recordings are cut.
      batch_size: recordings at a time.
    """

    def __init__(self, config: SpeechConfig, *, frames: int, batch_size: int = 50):
        self.config, self.frames, self.batch_size = config, frames, batch_size
        self._vocode = lambda params, batch: vocode(batch["audio"], config)

    def __call__(self, recordings: Utterances) -> Utterances:
        """The recordings with waveforms that the vocoder computes from their log-mel frames."""
        count, mels = len(recordings.frames), recordings.frames[0].shape[1]
        # All log-mel frames as one array [count, frames, mels], padded with silence.
        padded = np.full((count, self.frames, mels), np.log(self.config.floor)).astype(np.float32)
        for example, log_mel in enumerate(recordings.frames):
            padded[example, : len(log_mel)] = log_mel[: self.frames]
        waves = predict_all(self._vocode, {}, ArraySource({"audio": padded}), batch_size=self.batch_size)
        lengths = [len(log_mel) * self.config.features.hop for log_mel in recordings.frames]
        without_padding = [wave[:length] for wave, length in zip(waves, lengths, strict=True)]
        return Utterances(without_padding, recordings.frames)


class Synthesizer:
    """Speech for the texts of a data set in the voices of its speakers, compiled once.

    Args:
      config: of the model.
      tokenize: turns texts into tokens.
      frames: the largest number of frames; longer speech is cut.
      speakers: number of speakers that the model was trained with.
      speed: factor of the speed of speech; above 1 it is faster.
      batch_size: texts at a time.
      few_shapes: see `predict_all`.
    """

    def __init__(
        self,
        config: SpeechConfig,
        tokenize: TokenizeTransform,
        *,
        frames: int,
        speakers: int,
        speed: float = 1.0,
        batch_size: int = 50,
        few_shapes: bool = False,
    ):
        """Builds the model's synthesizer for the tokenizer's vocabulary."""
        self._synthesize = make_synthesizer(
            config, vocab_size=tokenize.tokenizer.vocab_size, length=tokenize.max_length, frames=frames,
            speakers=speakers, speed=speed,
        )  # fmt: skip
        self.tokenize, self._batches = tokenize, dict(batch_size=batch_size, few_shapes=few_shapes)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The model's inputs of a raw batch: tokens, their mask, the speakers where the data name them, and
        ``index``."""
        batch = self.tokenize(batch)
        fields = {k: batch[k] for k in ("text", "text_mask", "speaker") if k in batch}
        return {**fields, "index": np.arange(len(batch["text"]), dtype=np.int32)}

    def __call__(self, params: Any, source: Source) -> Utterances:
        """Speech for each text of ``source``, without padding."""
        speech = predict_all(self._synthesize, params, source, transform=self.inputs, **self._batches)
        return Utterances(
            waves=[wave[valid] for wave, valid in zip(speech.waveform, speech.mask, strict=True)],
            frames=[x[valid] for x, valid in zip(speech.log_mel, speech.frame_mask, strict=True)],
            durations=list(speech.durations),
        )


def mel_distances(synthesized: Utterances, recordings: Utterances) -> np.ndarray:
    """`metrics.speech.mel_distance` of each example, in nats."""
    pairs = zip(synthesized.frames, recordings.frames, strict=True)
    return np.array([mel_distance(a, b)[0] for a, b in pairs])


def synthesis_scores(
    synthesized: Utterances, recordings: Utterances, distances: np.ndarray
) -> dict[str, float]:
    """``test/mel_distance``: the mean of ``distances [N]`` (from `mel_distances`); ``test/length_error``: the mean of
    ``|frames / true frames - 1|``, the relative error of an utterance's length."""
    frames = np.array([len(log_mel) for log_mel in synthesized.frames], np.float64)
    true_frames = np.array([len(log_mel) for log_mel in recordings.frames], np.float64)
    errors = np.abs(frames / true_frames - 1)
    return {"test/mel_distance": float(distances.mean()), "test/length_error": float(errors.mean())}


class RecognizedSpeech(NamedTuple):
    """Transcripts of speech by a recogniser, and their error rates."""

    rates: dict[str, float]
    """``<name>/wer`` and ``<name>/cer`` of each set of utterances; empty without a recogniser."""
    texts: list[str] | None
    """Transcripts of the last set of utterances; None without a recogniser."""


class TranscribedSpeech(NamedTuple):
    """Speech, what a recogniser hears in it, and what it should say."""

    waves: Sequence[np.ndarray]
    """Waveforms ``[T]``, floats in [-1, 1]."""
    transcripts: list[str]
    texts: list[str]

    @property
    def rates(self) -> dict[str, float]:
        """Word and character error rates, ``wer`` and ``cer``; empty if the texts have no words."""
        return error_rates(self.transcripts, self.texts) if any(t.split() for t in self.texts) else {}


def recognize(
    recognizer: Callable[[list[np.ndarray]], list[str]] | None, texts: Sequence[str], **speech: Utterances
) -> RecognizedSpeech:
    """Transcribes sets of utterances, given as keyword arguments, and compares each with the true ``texts``.

    ``recognizer``: a function from waveforms to texts, the ``apply`` of a recognition run that
    `inference.translators.load_translator` returns; None: nothing is transcribed. ``speech``: by name, each set with an
    utterance for each text.
    """
    if recognizer is None:
        return RecognizedSpeech(rates={}, texts=None)
    rates, transcripts = {}, None
    for name, utterances in speech.items():
        transcripts = recognizer(utterances.waves)
        rates |= {f"{name}/{k}": v for k, v in error_rates(transcripts, texts).items()}
    return RecognizedSpeech(rates, transcripts)
