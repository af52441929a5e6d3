"""Speech synthesised for whole data sets, and how far spectrum, length and pitch are from those of recordings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.evaluation.embeddings import predict_all, take_evenly
from xmodal_jax.metrics.speech import mel_distance, pitch_agreement
from xmodal_jax.metrics.text import error_rates
from xmodal_jax.models.speech import (
    ProsodyStatistics,
    SpeechConfig,
    griffin_lim_waveform,
    log_mel_transform,
    make_converter,
    make_synthesizer,
    recorded_prosody,
)
from xmodal_jax.preprocess.pitch import track_pitch

STATISTICS_EXAMPLES = 1000
"""Recordings from which `measure_prosody` takes means and standard deviations."""


class Utterances(NamedTuple):
    """Recorded or synthesised speech of several examples."""

    waves: list[np.ndarray]
    """Waveforms ``[T]``, floats in [-1, 1] or int16."""
    frames: list[np.ndarray]
    """Log-mel frames ``[F, mels]``, in nats."""
    durations: list[np.ndarray] | None = None
    """Frames of each token ``[L]``; None for recordings."""
    pitch: list[np.ndarray] | None = None
    """Pitch of each frame ``[F]``, in Hz; None for recordings, and for models without pitch."""


HEADLINE = ("/wer", "/mel_distance", "/length_error", "/pitch_correlation")
"""Ends of the names of the scores that a report shows first."""


def pad_frames(log_mels: Sequence[np.ndarray], frames: int, floor: float) -> dict[str, np.ndarray]:
    """Log-mel frames ``[F, mels]`` of different lengths as the fields of a batch: ``audio`` ``[N, frames, mels]``,
    padded with silence and cut at ``frames``, and ``audio_mask``.

    ``floor``: the smallest power of a mel band, which silence has.
    """
    padded = np.full((len(log_mels), frames, log_mels[0].shape[1]), np.log(floor), np.float32)
    mask = np.zeros((len(log_mels), frames), bool)
    for example, log_mel in enumerate(log_mels):
        padded[example, : len(log_mel)] = log_mel[:frames]
        mask[example, : len(log_mel)] = True
    return {"audio": padded, "audio_mask": mask}


def pad_rows(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Arrays ``[F]`` of different lengths as float32 ``[N, length]``, padded with their last value and cut."""
    padded = [np.pad(row, (0, max(length - len(row), 0)), mode="edge")[:length] for row in rows]
    return np.stack(padded).astype(np.float32)


def pad_waves(waves: Sequence[np.ndarray], samples: int) -> dict[str, np.ndarray]:
    """Waveforms ``[T]`` of different lengths, floats in [-1, 1] or int16, as the fields of a batch: ``audio`` float32
    ``[N, samples]``, padded with zeros and cut at ``samples``, and ``audio_mask``."""
    audio = np.zeros((len(waves), samples), np.float32)
    mask = np.zeros(audio.shape, bool)
    for row, wave in enumerate(waves):
        audio[row, : len(wave)] = (wave / 32768.0 if wave.dtype == np.int16 else wave)[:samples]
        mask[row, : len(wave)] = True
    return {"audio": audio, "audio_mask": mask}


def decode_frames(utterances: Utterances, vocoder: Any) -> Utterances:
    """The utterances with waveforms that a vocoder makes of their log-mel frames.

    ``vocoder``: has ``decode(frames, pitch)``, pairs of a waveform and its rate, as `inference.Vocoder`. Utterances of
    fewer than two frames are silent.
    """
    silence = np.zeros((2, vocoder.config.features.mels), np.float32) + np.log(vocoder.config.floor)
    frames = [x if len(x) > 1 else silence for x in utterances.frames]
    pitch = utterances.pitch and [np.resize(x, max(len(x), 2)) for x in utterances.pitch]
    return utterances._replace(waves=[wave for wave, _ in vocoder.decode(frames, pitch)])


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


def measure_prosody(
    source: Source, config: SpeechConfig, *, speakers: int, examples: int = STATISTICS_EXAMPLES
) -> ProsodyStatistics:
    """Mean and standard deviation of pitch and energy in recordings, and the mean pitch of each voice.

    They are of at most ``examples`` recordings, evenly spread over ``source``: the same for any number of devices. A
    voice that has no voiced frame among them gets the mean of all voices, and what the model does not take keeps the
    default.

    Args:
      source: the training split, with waveforms.
      config: of the model.
      speakers: number of voices.
    """
    if not config.prosody:
        return ProsodyStatistics()
    chosen, values, speaker = take_evenly(source, examples), {"pitch": [], "energy": []}, []
    compute = jax.jit(lambda waveform, mask: recorded_prosody(waveform, mask, config))
    for start in range(0, len(chosen), 64):
        batch = chosen.batch(np.arange(start, min(start + 64, len(chosen))))
        mask = np.asarray(batch.get("audio_mask", np.ones(batch["audio"].shape, bool)))
        prosody = jax.device_get(compute(batch["audio"], mask))
        frame_counts = np.where(mask.any(axis=1), mask.sum(axis=1) // config.features.hop + 1, 0)
        for row, count in enumerate(frame_counts.tolist()):
            for name, frames in prosody.items():
                values[name].append(frames[row, :count].astype(np.float64))
        speaker += np.asarray(batch.get("speaker", np.zeros(len(mask), np.int32))).tolist()
    log_pitch = [np.log(frames[frames > 0]) for frames in values["pitch"]]
    measured = {}
    for name, frames in (("pitch", log_pitch), ("energy", values["energy"])):
        joined = np.concatenate(frames) if frames else np.zeros(0)
        if len(joined) > 1 and joined.std() > 0:
            # Rounded, as sums of another machine differ in their last digits.
            measured |= {f"{name}_mean": round(joined.mean(), 4), f"{name}_scale": round(joined.std(), 4)}
    statistics = dataclasses.replace(ProsodyStatistics(), **{k: float(v) for k, v in measured.items()})
    if not config.pitch:
        return statistics
    voice_pitch = [
        np.concatenate([np.zeros(0), *(x for x, k in zip(log_pitch, speaker, strict=True) if k == voice)])
        for voice in range(speakers)
    ]
    means = [round(float(x.mean()), 4) if len(x) else statistics.pitch_mean for x in voice_pitch]
    return dataclasses.replace(statistics, voice_pitch=tuple(means))


def with_statistics(config: SpeechConfig, source: Source, *, speakers: int) -> SpeechConfig:
    """The configuration with the statistics of pitch and energy in a split, see `measure_prosody`."""
    return dataclasses.replace(config, statistics=measure_prosody(source, config, speakers=speakers))


def read_recorded(source: Source, count: int, config: SpeechConfig) -> tuple[ArraySource, Utterances]:
    """The first ``count`` examples of a split, and their recordings; see `first_examples` and `recordings_of`."""
    examples = first_examples(source, count)
    return examples, recordings_of(examples, config)


class GriffinLimVocoder:
    """Copy synthesis by Griffin-Lim: log-mel frames of recordings, turned back into waveforms. It shows what
    Griffin-Lim alone loses.

    Args:
      config: of the model.
      frames: the largest number of frames; longer recordings are cut.
      batch_size: recordings at a time.
    """

    def __init__(self, config: SpeechConfig, *, frames: int, batch_size: int = 50):
        self.config, self.frames, self.batch_size = config, frames, batch_size
        self._vocode = lambda params, batch: griffin_lim_waveform(batch["audio"], config)

    def __call__(self, recordings: Utterances) -> Utterances:
        """The recordings with waveforms that the vocoder computes from their log-mel frames."""
        source = ArraySource(pad_frames(recordings.frames, self.frames, self.config.floor))
        waves = predict_all(self._vocode, {}, source, batch_size=self.batch_size)
        lengths = [len(log_mel) * self.config.features.hop for log_mel in recordings.frames]
        without_padding = [wave[:length] for wave, length in zip(waves, lengths, strict=True)]
        return Utterances(without_padding, recordings.frames)


def copy_synthesis(recordings: Utterances, config: SpeechConfig, *, frames: int, vocoder: Any) -> Utterances:
    """The recordings with waveforms that a vocoder makes of their log-mel frames; None: Griffin-Lim. See
    `GriffinLimVocoder` and `decode_frames`."""
    if vocoder is None:
        return GriffinLimVocoder(config, frames=frames)(recordings)
    return decode_frames(recordings, vocoder)


CONTROLS = ("speed", "pitch_shift", "energy_shift")
"""The fields of a batch that control synthesis; see `models.speech.make_synthesizer`."""


class Synthesizer:
    """Speech for the texts of a data set in the voices of its speakers, and its recordings in other voices.

    Each is compiled once, for all values of the controls: examples may have the fields ``speed``, ``pitch_shift`` (in
    semitones) and ``energy_shift`` (in decibels), float32 ``[B]``.

    Args:
      config: of the model.
      tokenize: turns texts into tokens.
      frames: the largest number of frames; longer speech is cut.
      speakers: number of speakers that the model was trained with.
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
        batch_size: int = 50,
        few_shapes: bool = False,
    ):
        """Builds the model's synthesizer and converter for the tokenizer's vocabulary, with Griffin-Lim and without."""
        sizes = dict(vocab_size=tokenize.tokenizer.vocab_size, length=tokenize.max_length, frames=frames)
        self._functions = {
            (name, waveforms): make(config, speakers=speakers, waveforms=waveforms, **sizes)
            for name, make in (("synthesize", make_synthesizer), ("convert", make_converter))
            for waveforms in (False, True)
        }
        self.tokenize, self._batches = tokenize, dict(batch_size=batch_size, few_shapes=few_shapes)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of synthesis of a raw batch: tokens, their mask, the speakers where the data name them, controls
        where there are any, and ``index``."""
        batch = self.tokenize(batch)
        fields = {k: batch[k] for k in ("text", "text_mask", "speaker", *CONTROLS) if k in batch}
        return {**fields, "index": np.arange(len(batch["text"]), dtype=np.int32)}

    def __call__(self, params: Any, source: Source, *, vocoder: Any = None) -> Utterances:
        """Speech for each text of ``source``, without padding.

        ``vocoder``: makes the waveforms, see `decode_frames`; None: Griffin-Lim, in the same compiled program.
        """
        return self._speak("synthesize", params, source, self.inputs, vocoder)

    def frames(self, params: Any, source: Source) -> Utterances:
        """The same without waveforms, which saves their computation."""
        return self._run("synthesize", params, source, self.inputs, waveforms=False)

    def convert(self, params: Any, source: Source, *, vocoder: Any = None) -> Utterances:
        """Each recording of ``source``, which says its text, in the voice of its ``speaker``, without padding."""
        recordings = lambda batch: {k: batch[k] for k in ("audio", "audio_mask")}
        return self._speak("convert", params, source, lambda b: self.inputs(b) | recordings(b), vocoder)

    def _speak(self, name: str, params: Any, source: Source, transform: Callable, vocoder: Any) -> Utterances:
        """The utterances of one of the functions, with waveforms by ``vocoder`` or by Griffin-Lim."""
        utterances = self._run(name, params, source, transform, waveforms=vocoder is None)
        return utterances if vocoder is None else decode_frames(utterances, vocoder)

    def _run(
        self, name: str, params: Any, source: Source, transform: Callable, *, waveforms: bool
    ) -> Utterances:
        """The result of one of the functions for all batches of ``source``, without padding."""
        function = self._functions[name, waveforms]
        speech = predict_all(function, params, source, transform=transform, **self._batches)
        valid = lambda rows, masks: [row[mask] for row, mask in zip(rows, masks, strict=True)]
        return Utterances(
            waves=valid(speech.waveform, speech.mask) if waveforms else [],
            frames=valid(speech.log_mel, speech.frame_mask),
            durations=list(speech.durations),
            pitch=None if speech.pitch is None else valid(speech.pitch, speech.frame_mask),
        )


class PitchTracker:
    """The pitch of utterances of different lengths, compiled once.

    Args:
      config: of the model; its sample rate, hop and range of pitch.
      batch_size: utterances at a time.
    """

    def __init__(self, config: SpeechConfig, *, batch_size: int = 25):
        self.config, self.batch_size = config, batch_size
        f, limits = config.features, dict(f_min=config.min_pitch, f_max=config.max_pitch)
        self._track = lambda params, batch: track_pitch(
            batch["audio"], batch["audio_mask"], sample_rate=f.sample_rate, hop=f.hop, **limits
        )

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The pitch of each frame of each waveform ``[T]`` (floats in [-1, 1] or int16): ``[1 + T // hop]`` in Hz, 0
        where unvoiced."""
        # Whole seconds, so that few lengths are compiled.
        rate, hop = self.config.features.sample_rate, self.config.features.hop
        seconds = -(-max(map(len, waves), default=0) // rate)
        source = ArraySource(pad_waves(waves, max(seconds, 1) * rate))
        pitch = predict_all(self._track, {}, source, batch_size=self.batch_size).frequency
        return [frequency[: 1 + len(wave) // hop] for frequency, wave in zip(pitch, waves, strict=True)]


_pitch_tracker = functools.lru_cache(maxsize=4)(PitchTracker)  # compiled once for all seeds


def warp(synthesized: Utterances, recordings: Utterances) -> tuple[np.ndarray, list[np.ndarray]]:
    """``(distances, paths)``: `metrics.speech.mel_distance` of each example in nats, ``[N]``, and its warping path."""
    pairs = zip(synthesized.frames, recordings.frames, strict=True)
    distances, paths = zip(*(mel_distance(a, b) for a, b in pairs), strict=True)
    return np.array(distances), list(paths)


def mel_distances(synthesized: Utterances, recordings: Utterances) -> np.ndarray:
    """`metrics.speech.mel_distance` of each example, in nats."""
    return warp(synthesized, recordings)[0]


class SynthesisComparison(NamedTuple):
    """Synthesised speech beside recordings of the same texts."""

    distances: np.ndarray
    """Mel distance of each example, in nats."""
    pitch: tuple[list[np.ndarray], list[np.ndarray]]
    """Pitch of each frame of the synthesised speech and of the recordings, in Hz, 0 where unvoiced."""
    scores: dict[str, float]
    """Means over the examples; see `compare_speech`."""


def compare_speech(
    synthesized: Utterances, recordings: Utterances, config: SpeechConfig
) -> SynthesisComparison:
    """Compares synthesised speech with recordings of the same texts.

    The scores are means over the examples: ``test/mel_distance`` in nats; ``test/length_error``, the relative error of
    the length ``|frames / true frames - 1|``; and, on pairs of frames along the warping path of the spectrograms
    (`metrics.speech.pitch_agreement`), ``test/pitch_correlation``, ``test/pitch_error_cents`` and
    ``test/voicing_error``. Examples in which a score is not defined, such as the correlation of a constant pitch, are
    left out of its mean. ``config``: of the model.
    """
    distances, paths = warp(synthesized, recordings)
    frames = np.array([len(log_mel) for log_mel in synthesized.frames], np.float64)
    true_frames = np.array([len(log_mel) for log_mel in recordings.frames], np.float64)
    scores = {"mel_distance": distances, "length_error": np.abs(frames / true_frames - 1)}
    track_pitch = _pitch_tracker(config)
    # A synthesised waveform has a sample for each hop of its frames, so that its pitch has a frame more.
    pitch = tuple(
        [frequency[: len(x)] for frequency, x in zip(track_pitch(speech.waves), speech.frames, strict=True)]
        for speech in (synthesized, recordings)
    )
    agreements = [pitch_agreement(a, b, path) for a, b, path in zip(*pitch, paths, strict=True)]
    scores["pitch_correlation"] = np.array([x.correlation for x in agreements])
    scores["pitch_error_cents"] = np.array([x.error_cents for x in agreements])
    scores["voicing_error"] = np.array([x.voicing_error for x in agreements])
    defined = {name: values[np.isfinite(values)] for name, values in scores.items()}
    means = {f"test/{name}": float(values.mean()) for name, values in defined.items() if len(values)}
    return SynthesisComparison(distances, pitch, means)


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
