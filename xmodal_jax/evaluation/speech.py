"""Synthesised speech of whole data sets, and how near it is to recordings."""

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
from xmodal_jax.models.speech import SpeechConfig, frames_of, make_synthesizer, vocode


class Utterances(NamedTuple):
    """Speech as waveforms (floats in [-1, 1] or int16) and log-mel frames ``[F, mels]``, one of each per example."""

    waves: list[np.ndarray]
    frames: list[np.ndarray]
    durations: list[np.ndarray] | None = None
    """Of what was synthesised: frames of each token."""


def first_examples(source: Source, count: int) -> ArraySource:
    """The first ``count`` examples of a split, read once."""
    batch = source.batch(np.arange(min(count, len(source))))
    return ArraySource({k: v for k, v in batch.items() if not isinstance(v, Mapping)})


def recorded(source: ArraySource, config: SpeechConfig) -> Utterances:
    """The recordings of a data set as they are."""
    batch = source.arrays
    framed = frames_of(config.features, config.floor)(batch)
    waves = [wave[there] for wave, there in zip(batch["audio"], batch["audio_mask"], strict=True)]
    frames = [x[there] for x, there in zip(framed["audio"], framed["audio_mask"], strict=True)]
    return Utterances(waves, frames)


class Vocoder:
    """Recordings' own frames back to waveforms: what synthesis with this vocoder could reach at best."""

    def __init__(self, config: SpeechConfig, *, frames: int, batch_size: int = 50):
        self.config, self.frames, self.batch_size = config, frames, batch_size
        self._vocode = lambda params, batch: vocode(batch["audio"], config)

    def __call__(self, sounds: Utterances) -> Utterances:
        silence = np.full(
            (len(sounds.frames), self.frames, sounds.frames[0].shape[1]), np.log(self.config.floor)
        )
        padded = silence.astype(np.float32)
        for row, own in zip(padded, sounds.frames, strict=True):
            row[: len(own)] = own[: self.frames]
        waves = predict_all(self._vocode, {}, ArraySource({"audio": padded}), batch_size=self.batch_size)
        lengths = [len(own) * self.config.features.hop for own in sounds.frames]
        return Utterances([w[:n] for w, n in zip(waves, lengths, strict=True)], sounds.frames)


class Synthesizer:
    """Speech of a data set's texts in its speakers' voices, by `models.speech.make_synthesizer`, compiled once."""

    def __init__(
        self,
        config: SpeechConfig,
        tokenize: TokenizeTransform,
        *,
        frames: int,
        speakers: int,
        rate: float = 1.0,
        batch_size: int = 50,
    ):
        self._speak = make_synthesizer(
            config, vocab_size=tokenize.tokenizer.vocab_size, length=tokenize.max_length, frames=frames,
            speakers=speakers, rate=rate,
        )  # fmt: skip
        self.tokenize, self.batch_size = tokenize, batch_size

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes of a raw batch."""
        batch = self.tokenize(batch)
        fields = {k: batch[k] for k in ("text", "text_mask", "speaker") if k in batch}
        return {**fields, "index": np.arange(len(batch["text"]), dtype=np.int32)}

    def __call__(self, params: Any, source: Source) -> Utterances:
        made = predict_all(self._speak, params, source, batch_size=self.batch_size, transform=self.inputs)
        return Utterances(
            [wave[there] for wave, there in zip(made.waveform, made.mask, strict=True)],
            [x[there] for x, there in zip(made.log_mel, made.frame_mask, strict=True)],
            list(made.durations),
        )


def mel_distances(made: Utterances, true: Utterances) -> np.ndarray:
    """`metrics.speech.mel_distance` of each example, in nats."""
    return np.array([mel_distance(a, b)[0] for a, b in zip(made.frames, true.frames, strict=True)])


def synthesis_scores(made: Utterances, true: Utterances, apart: np.ndarray) -> dict[str, float]:
    """``test/mel_distance``: the mean of `mel_distances`; ``test/length_error``: that of ``|length / true - 1|``."""
    lengths = np.array([(len(a), len(b)) for a, b in zip(made.frames, true.frames, strict=True)], np.float64)
    off = np.abs(lengths[:, 0] / lengths[:, 1] - 1)
    return {"test/mel_distance": float(apart.mean()), "test/length_error": float(off.mean())}


class RecognitionScores(NamedTuple):
    """What another run hears."""

    rates: dict[str, float]
    """``<name>/wer``, ``<name>/cer``."""
    texts: list[str] | None
    """Of the last sounds; None without a run that listens."""


def recognition_scores(
    recognise: Callable[[list[np.ndarray]], list[str]] | None, texts: Sequence[str], **sounds: Utterances
) -> RecognitionScores:
    """How well a run of recognition (`inference.load.Translator.apply`) understands each of the ``sounds``, by their
    names."""
    rates, heard = {}, None
    for name, each in sounds.items() if recognise is not None else ():
        heard = recognise(each.waves)
        rates |= {f"{name}/{k}": v for k, v in error_rates(heard, texts).items()}
    return RecognitionScores(rates, heard)
