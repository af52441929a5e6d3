"""How well recordings of minutes are transcribed by windows: words, times, memory, speed and latency.

    python -m benchmarks.long_audio runs/speech_recognition
    python -m benchmarks.long_audio runs/speech_recognition --minutes 3 30 --windows 4,2 2,1 --noise-level-db -60

The run is one of experiments/speech_recognition.py on the data set ``shapes``. The recordings are sentences of its
split ``voices`` (voices that are not in training) with random pauses, spoken here by eSpeak NG, which tells when each
word begins; longer ones repeat the first. "WER" is the word error rate of the whole transcript, and above the table
stand those of the same sentences one by one. "Error" is the absolute difference between the beginning of a word that
was recognised and its true beginning, over the words that are correct, and "bias" the mean difference. "In pauses"
counts words that lie wholly in a pause. A word's latency is what was heard of the recording when the word was given,
after the word's end, without the time to compute it, which "s per window" is.
"""

from __future__ import annotations

import ctypes
import dataclasses
import difflib
import itertools
import math
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import soundfile
import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.media import resample_and_cut
from xmodal_jax.data.shapes import espeak
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.shapes.speech import Voice
from xmodal_jax.inference import SpeechRecognizer, Transcript, load
from xmodal_jax.metrics.text import error_rates
from xmodal_jax.models.seq2seq import CTCBestPathConfig

RATE = espeak.SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is measured."""

    run: tyro.conf.Positional[pathlib.Path]
    """A run of speech_recognition.py with CTC."""
    minutes: tuple[float, ...] = (3.0, 30.0)
    """Lengths of the recordings. The first one is scored for all windows; all are timed."""
    windows: tuple[str, ...] = ("4,2", "2,1")
    """Seconds of a window and of the overlap of two. The first is used where only one is."""
    cuts: tuple[float, ...] = (0.3, math.inf)
    """Silence at which recordings are cut in seconds; inf: overlapping windows cover everything."""
    pauses: tuple[float, float] = (0.3, 2.5)
    """Shortest and longest pause between sentences in seconds."""
    noise_level_db: tuple[float, ...] = (-200.0, -60.0, -40.0)
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
        array = ctypes.cast(events, ctypes.POINTER(Event))
        for k in itertools.count() if events else ():
            if array[k].type == 0:
                break
            if array[k].type == 1:
                self.word_starts.append(array[k].audio_position / 1000)
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
    """A sentence of a recording; times are in seconds from the recording's beginning."""

    text: str
    """What is said."""
    wave: np.ndarray
    """Its samples, floats ``[T]``."""
    start: float
    """When it begins."""
    end: float
    """When it ends."""
    word_starts: list[float]
    """When each of its words begins."""


class Recording(NamedTuple):
    """A recording, and what is said when."""

    wave: np.ndarray
    """Floats ``[T]`` in [-1, 1]."""
    sentences: list[Sentence]
    """What is said."""


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


def make_recording(sentences: list[Sentence], seconds: float, noise_level_db: float, seed: int) -> Recording:
    """The sentences with noise, float32 ``[T]``."""
    wave = np.zeros(int(seconds * RATE), np.float32)
    for sentence in sentences:
        first = round(sentence.start * RATE)
        wave[first : first + len(sentence.wave)] = sentence.wave
    level = np.sqrt(np.mean(np.square(np.concatenate([s.wave for s in sentences]))))
    if noise_level_db > -200:
        rng = np.random.default_rng(seed)
        wave += level * 10 ** (noise_level_db / 20) * rng.standard_normal(len(wave), np.float32)
    return Recording(wave.clip(-1, 1), sentences)


def score(transcript: Transcript, sentences: list[Sentence]) -> dict[str, float]:
    """Word error rate in %, errors of the beginnings of words in seconds, and words in pauses."""
    true = [
        (word, start) for s in sentences for word, start in zip(s.text.split(), s.word_starts, strict=True)
    ]
    words = transcript.words
    matcher = difflib.SequenceMatcher(None, [w for w, _ in true], [w.text for w in words], autojunk=False)
    errors = np.array(
        [
            words[found + k].start - true[known + k][1]
            for known, found, size in matcher.get_matching_blocks()
            for k in range(size)
        ]
        or [math.nan]
    )
    in_pauses = sum(not any(w.end > s.start and w.start < s.end for s in sentences) for w in words)
    wer = error_rates([transcript.text], [" ".join(s.text for s in sentences)])["wer"]
    absolute = np.abs(errors)
    return {
        "WER %": 100 * wer, "bias s": errors.mean(), "error s": absolute.mean(),
        "95% s": np.quantile(absolute, 0.95), "worst s": absolute.max(), "words": len(words), "in pauses": in_pauses,
    }  # fmt: skip


def measure_words(recogniser: SpeechRecognizer, sentences: list[Sentence], arguments: Arguments) -> None:
    """Prints the scores of transcripts by windows, for each noise, window and cut."""
    texts, sounds = [s.text for s in sentences], [(s.wave, RATE) for s in sentences]
    for name, generation in (("as configured", None), ("by CTC", CTCBestPathConfig())):
        wer = error_rates(recogniser.transcribe(sounds, generation), texts)["wer"]
        print(f"The {len(texts)} sentences one by one, {name}: {100 * wer:.1f}% WER")
    columns = "noise dB|window, overlap s|cut at s|WER %|bias s|error s|95% s|worst s|words|in pauses"
    print(f"\n|{columns}|\n|{'---:|' * 10}")
    for noise_level_db in arguments.noise_level_db:
        recording = make_recording(sentences, 60 * arguments.minutes[0], noise_level_db, arguments.seed)
        for window in arguments.windows:
            for cut in arguments.cuts:
                options = window_options(window) | {"pause_seconds": cut}
                (transcript,) = recogniser.transcribe_long((recording.wave, RATE), **options)
                scores = [f"{value:.4g}" for value in score(transcript, sentences).values()]
                print("|", " | ".join([f"{noise_level_db:g}", window, f"{cut:g}", *scores]), "|", flush=True)


def measure_speed(
    recogniser: SpeechRecognizer, recording: np.ndarray, arguments: Arguments, folder: pathlib.Path
) -> None:
    """Prints the time and the peak of the memory for files of all lengths, which repeat the recording."""
    options = window_options(arguments.windows[0])
    print(
        "\n| minutes | seconds to transcribe | real-time factor | peak of memory so far MB |\n|---:|---:|---:|---:|"
    )
    recogniser.transcribe_long((recording[: 9 * RATE], RATE), **options)  # compiles
    for minutes in arguments.minutes:
        path = folder / f"{minutes:g}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for _ in range(max(1, round(60 * minutes * RATE / len(recording)))):
                file.write(recording)
        begin = time.perf_counter()
        recogniser.transcribe_long(path, **options)
        seconds = time.perf_counter() - begin
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {minutes:g} | {seconds:.1f} | {seconds / 60 / minutes:.4f} | {memory:.0f} |", flush=True)


def measure_latency(recogniser: SpeechRecognizer, recording: np.ndarray, arguments: Arguments) -> None:
    """Prints how much later than its end a word is given."""
    print(
        "\n| window, overlap s | latency s | longest s | bound s | s per window |\n|---:|---:|---:|---:|---:|"
    )
    heard = 0.0

    def microphone() -> Iterator[np.ndarray]:
        """Blocks of 0.1 s."""
        nonlocal heard
        for k in range(0, len(recording), RATE // 10):
            block = recording[k : k + RATE // 10]
            heard = (k + len(block)) / RATE
            yield block

    for window in arguments.windows:
        options = window_options(window)
        silence = np.zeros(1, np.float32)
        list(recogniser.stream([silence], RATE, pause_seconds=math.inf, **options))  # compiles
        begin = time.perf_counter()
        list(recogniser.stream([silence], RATE, pause_seconds=math.inf, **options))
        per_window = time.perf_counter() - begin
        delays = [heard - word.end for word in recogniser.stream(microphone(), RATE, **options)]
        bound = recogniser.latency_seconds(**options)
        numbers = (np.mean(delays), np.max(delays), bound, per_window)
        print("|", " | ".join([window, *(f"{x:.3f}" for x in numbers)]), "|", flush=True)


def window_options(window: str) -> dict[str, float]:
    """The arguments that "4,2" stands for."""
    seconds, overlap = map(float, window.split(","))
    return {"window_seconds": seconds, "overlap_seconds": overlap}


def main(arguments: Arguments) -> None:
    runtime.configure()
    recogniser = load(arguments.run)
    seconds = 60 * arguments.minutes[0]
    sentences = list(speak_sentences(seconds, arguments))
    recording = make_recording(sentences, seconds, arguments.noise_level_db[-1], arguments.seed).wave
    with tempfile.TemporaryDirectory() as folder:
        measure_speed(recogniser, recording, arguments, pathlib.Path(folder))
    measure_latency(recogniser, recording, arguments)
    print()
    measure_words(recogniser, sentences, arguments)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
