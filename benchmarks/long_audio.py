"""How well recordings of minutes are transcribed by windows: words, times, memory, speed and latency.

    python -m benchmarks.long_audio runs/speech_recognition
    python -m benchmarks.long_audio runs/speech_recognition --minutes 3 30 --windows 4,2 3,2 2,1 --noise-db -60

The run is one of experiments/speech_recognition.py on the data set ``shapes``. The recordings are sentences of its
split ``voices`` (voices that are not in training) with random pauses, spoken here by eSpeak NG, which tells when each
word begins. "WER" is the word error rate of the whole transcript; beside it stands that of the same sentences one by
one, by CTC as well. An error of a time is the absolute difference between the beginning of a word that was recognised
and its true beginning, over the words that are correct. "In pauses" counts words that lie wholly in a pause.
"""

from __future__ import annotations

import ctypes
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tyro

from xmodal_jax.data.media import resample_and_cut
from xmodal_jax.data.shapes import espeak
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.shapes.speech import Voice
from xmodal_jax.inference import Transcript
from xmodal_jax.metrics.text import error_rates

RATE = espeak.SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is measured."""

    run: tyro.conf.Positional[pathlib.Path]
    """A run of speech_recognition.py with CTC."""
    minutes: tuple[float, ...] = (3.0, 30.0)
    """Lengths of the recordings. The first one is scored for all windows; all are timed."""
    windows: tuple[str, ...] = ("4,2", "3,1.5", "2,1")
    """Seconds of a window and of the overlap of two. The first is used where only one is."""
    pauses: tuple[float, float] = (0.3, 2.5)
    """Shortest and longest pause between sentences in seconds."""
    noise_db: tuple[float, ...] = (-200.0, -60.0, -40.0)
    """White noise through all of the recording, in dB relative to the speech; -200: the pauses are zeros."""
    seed: int = 0
    """Random seed of sentences, pauses and noise."""


class Event(ctypes.Structure):
    """What eSpeak NG tells beside samples (``espeak_EVENT`` of speak_lib.h)."""

    _fields_ = (
        ("type", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    )  # fmt: skip


class TimedEngine(espeak._Engine):
    """eSpeak NG, which also says when words begin."""

    def _receive(self, samples, count, events):
        """Keeps the time in milliseconds at which each word begins (events of type 1, up to one of type 0)."""
        events = ctypes.cast(events, ctypes.POINTER(Event))
        for k in iter(range(1 << 20)):
            if events[k].type == 0:
                break
            if events[k].type == 1:
                self.word_starts.append(events[k].audio_position / 1000)
        return super()._receive(samples, count, events)

    def utter(self, text: str, voice: Voice) -> tuple[np.ndarray, list[float]]:
        """``(waveform, word_starts)``: floats ``[T]`` at 16 kHz, trimmed as the data set's, and seconds."""
        self.chunks, self.word_starts = [], []
        pcm = np.frombuffer(
            self._speak(text, voice.name, voice.speed, voice.pitch, voice.pitch_range), np.int16
        )
        wave = resample_and_cut(pcm / np.float32(32768), self.rate, RATE, None)[0].astype(np.float32)
        loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
        first = max(0, loud[0] - RATE // 100)
        wave = wave[first : loud[-1] + RATE // 100] * (espeak.PEAK / 32768 / np.abs(wave).max())
        return wave, [max(0.0, start - first / RATE) for start in self.word_starts]


class Sentence(NamedTuple):
    """A sentence of a recording."""

    text: str
    wave: np.ndarray
    start: float
    end: float
    word_starts: list[float]


class Recording(NamedTuple):
    """A recording, and what is said when."""

    wave: np.ndarray
    sentences: list[Sentence]


def speak_sentences(seconds: float, arguments: Arguments) -> Iterator[Sentence]:
    """Sentences with pauses up to a length in seconds."""
    rng, engine = np.random.default_rng(arguments.seed), TimedEngine()
    source = SpokenShapes("voices", size=4000, modalities=("text", "audio"), seed=arguments.seed)
    now, k = rng.uniform(*arguments.pauses), 0
    while True:
        (text,), (voice,) = source.captions([k]), source.voices([k])
        wave, starts = engine.utter(text, voice)
        if now + len(wave) / RATE > seconds or k + 1 == len(source):
            return
        if len(starts) == len(text.split()):
            first = round(now * RATE) / RATE
            yield Sentence(text, wave, first, first + len(wave) / RATE, [first + s for s in starts])
            now = first + len(wave) / RATE + rng.uniform(*arguments.pauses)
        k += 1


def make_recording(sentences: list[Sentence], seconds: float, noise_db: float, seed: int) -> Recording:
    """The sentences with noise, float32 ``[T]``."""
    wave = np.zeros(int(seconds * RATE), np.float32)
    for sentence in sentences:
        first = round(sentence.start * RATE)
        wave[first : first + len(sentence.wave)] = sentence.wave
    level = np.sqrt(np.mean(np.square(np.concatenate([s.wave for s in sentences]))))
    if noise_db > -200:
        rng = np.random.default_rng(seed)
        wave += level * 10 ** (noise_db / 20) * rng.standard_normal(len(wave), np.float32)
    return Recording(wave.clip(-1, 1), sentences)


def score(transcript: Transcript, sentences: list[Sentence]) -> dict[str, float]:
    """Word error rate in %, errors of the beginnings of words in seconds, and words in pauses."""
    import difflib

    true = [
        (word, start) for s in sentences for word, start in zip(s.text.split(), s.word_starts, strict=True)
    ]
    matcher = difflib.SequenceMatcher(
        None, [w for w, _ in true], [w.text for w in transcript.words], autojunk=False
    )
    errors = np.array(
        [
            transcript.words[b + k].start - true[a + k][1]
            for a, b, size in matcher.get_matching_blocks()
            for k in range(size)
        ]
    )
    in_pauses = sum(
        not any(word.end > s.start and word.start < s.end for s in sentences) for word in transcript.words
    )
    wer = error_rates([transcript.text], [" ".join(s.text for s in sentences)])["wer"]
    return {
        "WER %": 100 * wer, "bias s": errors.mean(), "error s": np.abs(errors).mean(),
        "95% s": np.quantile(np.abs(errors), 0.95), "worst s": np.abs(errors).max(), "in pauses": in_pauses,
        "words": len(transcript.words),
    }  # fmt: skip
