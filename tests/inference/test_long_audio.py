"""Recordings of any length: windows, words and their times, by networks that are known functions of the waveform."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import soundfile

from tests.inference.runs import COLOURS, save_text_run
from xmodal_jax.data.text import train_tokenizer
from xmodal_jax.inference import load
from xmodal_jax.inference.long_audio import (
    LabelPredictor,
    Transcript,
    WordDecoder,
    stream_words,
    transcribe_recordings,
)
from xmodal_jax.inference.windows import PauseDetector, WindowLayout, split_windows
from xmodal_jax.models.seq2seq import CTCBestPathConfig, JointObjective

RATE, STRIDE = 1000, 50
WORDS = ("alpha", "beta", "gamma", "delta")
TOKENIZER = train_tokenizer(WORDS, "word")
LEVEL = 500
"""A word is said by samples of this level times the id of its token; its sign changes, as that of sounds does."""


def read_levels(samples, lengths):
    """A recogniser of such words: its token i is the label of the samples around ``i * STRIDE``."""
    centres = np.abs(samples[:, ::STRIDE].astype(int))
    labels = np.where(centres < LEVEL, 0, np.rint(centres / LEVEL).astype(int))
    counts = np.where(lengths > 0, (lengths - 1) // STRIDE + 1, 0)
    return labels, np.full(labels.shape, math.log(0.5)), counts


def make_recogniser(window=2.0, overlap=1.0, pause=math.inf):
    layout = WindowLayout.from_seconds(window=window, overlap=overlap, stride=STRIDE, sample_rate=RATE)
    decoder = lambda: WordDecoder(TOKENIZER, token_seconds=STRIDE / RATE, pause=0.5)
    return LabelPredictor(read_levels, layout, decoder, RATE, pause=pause)


def say(word, seconds):
    """A word of the language of `read_levels`."""
    signs = np.where(np.arange(int(seconds * RATE)) % 2, -1, 1)
    return (signs * LEVEL * TOKENIZER.vocabulary()[word]).astype(np.int16)


def in_blocks(samples, rng, longest):
    """The samples in blocks of random lengths, some of them empty."""
    cuts = np.cumsum(rng.integers(0, longest, 2 * len(samples) // longest + 9))
    return np.split(samples, cuts[cuts < len(samples)])


def say_sentences(seconds, seed=0):
    """``(samples, sentences)``: sentences with pauses, and for each ``(text, times)``, the beginnings and ends of its
    words. Of two equal words the second follows after a short gap."""
    rng = np.random.default_rng(seed)
    parts, sentences, now = [], [], 0
    while now < seconds * RATE:
        parts.append(np.zeros(int(rng.uniform(0.4, 3.0) * RATE), np.int16))
        now, words, times = now + len(parts[-1]), rng.choice(WORDS, rng.integers(1, 12)), []
        for before, word in zip([None, *words], words, strict=False):
            if word == before:
                parts.append(np.zeros(120, np.int16))
                now += 120
            parts.append(say(word, rng.uniform(0.15, 0.5)))
            times.append((now / RATE, (now + len(parts[-1])) / RATE))
            now += len(parts[-1])
        sentences.append((" ".join(words), times))
    return np.concatenate([*parts, np.zeros(400, np.int16)]), sentences


@pytest.mark.parametrize("length", [1, 9, 60, 1999, 2000, 2001, 2999, 3000, 3050, 4999, 11_111])
@pytest.mark.parametrize("window,overlap", [(2.0, 1.0), (0.5, 0.2), (1.0, 0.9)])
def test_every_token_of_a_recording_is_kept_once(length, window, overlap):
    rng = np.random.default_rng(length)
    recording = rng.integers(LEVEL, 32_000, length).astype(np.int16)
    recogniser = make_recogniser(window, overlap)
    expected, _, _ = read_levels(recording[None], np.array([length]))
    for longest in (7, 20_000):
        blocks = in_blocks(recording, rng, longest)
        kept = list(recogniser.keep_tokens([blocks], batch_size=3))
        np.testing.assert_array_equal(np.concatenate([labels for _, _, (labels, _) in kept]), expected[0])
        times = [recogniser.first_time(window) for _, window, _ in kept]
        counts = [len(labels) for _, _, (labels, _) in kept]
        np.testing.assert_allclose(times, np.cumsum([0, *counts[:-1]]) * STRIDE / RATE)
        assert [w.ends_speech for _, w, _ in kept] == [False] * (len(kept) - 1) + [True]
        assert all(w.length > recogniser.layout.window - STRIDE for _, w, _ in kept) or len(kept) == 1


@pytest.mark.parametrize("pause", [math.inf, 0.3])
def test_three_minutes_of_words_have_their_times(pause):
    """Seams, times and streaming are exact up to a token."""
    samples, sentences = say_sentences(180)
    recogniser = make_recogniser(pause=pause)
    (transcript,) = transcribe_recordings([[samples]], recogniser, batch_size=4)
    assert transcript.text == " ".join(text for text, _ in sentences)
    known = np.array([time for _, times in sentences for time in times])
    found = np.array([(word.start, word.end) for word in transcript.words])
    assert np.abs(found - known).max() <= 1.5 * STRIDE / RATE
    assert all(word.confidence == pytest.approx(0.5) for word in transcript.words)
    rng = np.random.default_rng(1)
    for longest in (30, 3000):
        streamed = stream_words(in_blocks(samples, rng, longest), recogniser)
        assert Transcript.from_words(streamed) == transcript
    again = transcribe_recordings([[samples], [samples[:5000]], [samples]], recogniser, batch_size=5)
    assert again[0] == again[2] == transcript
    assert transcript.text.startswith(again[1].text) and again[1].words


@pytest.mark.parametrize("pause", [math.inf, 0.3])
@pytest.mark.parametrize("window,overlap", [(1.5, 0.8), (3.0, 2.0)])
def test_streamed_words_come_within_the_latency(window, overlap, pause):
    """With long overlaps the first window makes words wait longest."""
    samples, _ = say_sentences(60)
    recogniser = make_recogniser(window=window, overlap=overlap, pause=pause)
    heard, block = 0, 20

    def microphone():
        nonlocal heard
        for k in range(0, len(samples), block):
            heard = min(k + block, len(samples))
            yield samples[k : k + block]

    delays = [heard / RATE - word.end for word in stream_words(microphone(), recogniser)]
    layout = recogniser.layout
    bound = max(layout.window, layout.wait + 0.5 * RATE) / RATE + (block + STRIDE) / RATE
    assert len(delays) > 50 and max(delays) <= bound


def test_pauses_have_no_windows():
    samples, sentences = say_sentences(60)
    blocks, layout = [samples], make_recogniser().layout
    windows = list(split_windows(blocks, layout, sample_rate=RATE, pause=0.3))
    covered = np.zeros(len(samples), bool)
    for window in windows:
        covered[window.start : window.start + window.length] = True
        np.testing.assert_array_equal(
            window.samples[: window.length], samples[window.start : window.start + window.length]
        )
    said = samples != 0
    assert (
        covered[said].all()
        and covered[~said].mean() < 0.4
        and sum(w.ends_speech for w in windows) == len(sentences)
    )
    silence = np.zeros(9 * RATE, np.int16)
    assert not list(split_windows([silence], layout, sample_rate=RATE, pause=0.3))


def test_pauses_of_a_recording_with_an_offset_have_no_windows():
    """The level is that of the samples without their mean, which some sound cards add."""
    samples, sentences = say_sentences(20)
    layout = make_recogniser().layout
    windows = list(split_windows([samples + np.int16(700)], layout, sample_rate=RATE, pause=0.3))
    expected = list(split_windows([samples], layout, sample_rate=RATE, pause=0.3))
    places = lambda windows: [(w.start, w.length) for w in windows]
    assert places(windows) == places(expected) and len(windows) >= len(sentences)


@pytest.mark.parametrize("noise", [1.0, 30.0])
def test_speech_is_told_from_a_background_that_lasts(noise):
    """After the first seconds, in which all is speech, the background is known."""
    rng = np.random.default_rng(0)
    samples = rng.normal(0, noise, 40 * 16_000)
    said = np.zeros(len(samples), bool)
    for second in range(2, 40, 3):
        said[second * 16_000 : second * 16_000 + 9600] = True
    samples = (samples + said * 1000 * np.sin(np.arange(len(samples)) / 5)).astype(np.int16)
    detector = PauseDetector()
    found = np.array([detector.is_speech(frame) for frame in samples.reshape(-1, 160)])
    late = slice(1100, None)
    assert (found[late] == said[::160][late]).mean() > 0.995


def test_the_memory_does_not_depend_on_the_length():
    def blocks(minutes):
        """Speech without any pause."""
        for k in range(minutes * 60):
            yield say(WORDS[k % 4], 1.0)

    peaks = []
    for minutes in (1, 8):
        tracemalloc.start()
        count = sum(1 for _ in stream_words(blocks(minutes), make_recogniser()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == minutes * 60
    assert peaks[1] < 1.2 * peaks[0] + 20_000


@pytest.mark.parametrize("kind", ["word", "wordpiece", "bpe"])
def test_labels_become_the_words_that_the_tokenizer_decodes(kind):
    texts = ["the red star, above the rings", "a t-shirt", "rings and stars are red.", "naïve café"]
    tokenizer = train_tokenizer(texts, kind, vocab_size=270)
    for text in texts:
        ids = tokenizer.text_ids(text)
        labels = np.array([x for k in ids for x in (0, k, k, 0)])
        decoder = WordDecoder(tokenizer, token_seconds=0.1, pause=math.inf)
        words = []
        for k in range(0, len(labels), 3):
            words += decoder.push(labels[k : k + 3], np.zeros(len(labels[k : k + 3])), start=k * 0.1)
        words += decoder.finish()
        transcript = Transcript.from_words(words)
        assert transcript.text == tokenizer.decode(ids) and len(words) == len(text.split())
        starts = [word.start for word in words]
        assert starts == sorted(starts) and starts[0] == pytest.approx(0.05)
        assert words[-1].end == pytest.approx(len(labels) * 0.1 - 0.15)


def test_special_tokens_and_long_gaps():
    ids = TOKENIZER.vocabulary()
    labels = np.array([TOKENIZER.bos_id, ids["alpha"], TOKENIZER.eos_id, ids["alpha"], TOKENIZER.unk_id, 0])
    decoder = WordDecoder(TOKENIZER, token_seconds=0.1, pause=0.3)
    assert [w.text for w in decoder.push(labels, np.zeros(6), start=0.0)] == ["alpha"]
    assert [w.text for w in decoder.push(np.zeros(1), np.zeros(1), start=0.6)] == ["alpha"]
    assert decoder.finish() == []


def test_overlaps_are_shorter_than_windows():
    for overlap in (2.0, 5.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="overlap"):
            make_recogniser(window=2.0, overlap=overlap)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """A run with random parameters, trained as it were on recordings of 4 s."""
    example = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
    folder = tmp_path_factory.mktemp("recogniser")
    return load(save_text_run(folder, "audio", "speech_recognition", example, objective=JointObjective()))


def make_noise(seconds, rate=16_000, seed=0):
    samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate)).clip(-1, 1)
    return (samples * np.where(np.arange(len(samples)) // (rate // 4) % 3, 1, 0.01)).astype(np.float32)


def test_a_window_is_transcribed_as_the_whole_recording_is(recogniser):
    sound = (make_noise(3.1), 16_000)
    (transcript,) = recogniser.transcribe_long(sound, pause_seconds=math.inf)
    assert transcript.text == recogniser.transcribe(sound, CTCBestPathConfig())[0] != ""
    assert recogniser.trained_seconds == 4.0 and "transcribe_long(" in recogniser.describe()


def test_files_arrays_and_streams_give_the_same_words(recogniser, tmp_path):
    sound = make_noise(21.3)
    soundfile.write(tmp_path / "long.flac", sound, 16_000)
    options = dict(window_seconds=2.0, overlap_seconds=0.5)
    transcripts = recogniser.transcribe_long(
        [tmp_path / "long.flac", str(tmp_path / "long.flac"), (sound, 16_000), (sound[:16_000], 16_000)],
        **options,
    )
    assert transcripts[0] == transcripts[1] == transcripts[2] and len(transcripts[0].words) > 3
    streamed = list(recogniser.stream(np.split(sound, [5, 5, 40_000]), 16_000, **options))
    assert [word.text for word in streamed] == transcripts[0].text.split()
    for ours, theirs in zip(streamed, transcripts[0].words, strict=True):
        np.testing.assert_allclose(ours[1:], theirs[1:], rtol=1e-4)
    times = [time for word in streamed for time in (word.start, word.end)]
    assert times == sorted(times) and times[-1] <= 21.3
    assert recogniser.latency_seconds(**options) == pytest.approx(1.75 + 1.0)
    with pytest.raises(ValueError, match="recording 1 .*none.wav.*No such file"):
        recogniser.transcribe_long([tmp_path / "long.flac", tmp_path / "none.wav"])


def test_any_lengths_are_one_program(recogniser):
    for seconds in (0.01, 1.0, 9.0):
        recogniser.transcribe_long((make_noise(seconds), 16_000), window_seconds=1.5)
    before = recogniser._predict._cache_size()
    for seconds in (0.5, 5.0, 17.7):
        recogniser.transcribe_long([(make_noise(seconds), 16_000)] * 2, window_seconds=1.5)
    assert recogniser._predict._cache_size() == before


def test_a_known_text_is_aligned(recogniser):
    """The text that is decoded has the times of its decoding; any other has its words in order."""
    sound = (make_noise(9.0), 16_000)
    (transcript,) = recogniser.transcribe_long(sound)
    (aligned,) = recogniser.align(sound, transcript.text)
    assert aligned.text == transcript.text
    np.testing.assert_allclose([w[1:] for w in aligned.words], [w[1:] for w in transcript.words], rtol=1e-4)
    (other,) = recogniser.align(sound, " ".join(COLOURS))
    assert [word.text for word in other.words] == list(COLOURS)
    assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(other.words))
    assert math.prod(word.confidence for word in other.words) < 1
    with pytest.warns(UserWarning, match=r"has words that the run was not trained on \('zebra'\)"):
        (known,) = recogniser.align(sound, "red zebra blue")
    assert [word.text for word in known.words] == ["red", "blue"]
    with pytest.raises(ValueError, match="too few for the"):
        recogniser.align((make_noise(0.3), 16_000), "red green " * 40)
    with pytest.raises(ValueError, match="1 recordings and 2 texts"):
        recogniser.align(sound, ["red", "green"])


def test_mistakes_say_what_to_do(recogniser, tmp_path):
    sound = (make_noise(1.0), 16_000)
    for options, message in [
        (dict(window_seconds=9.0), "at most 4, the longest recordings of training"),
        (dict(window_seconds=0.0), "above 0"),
        (dict(window_seconds=1.0, overlap_seconds=1.0), "overlap by less than their length"),
        (dict(pause_seconds=0.01), "pause_seconds must be at least"),
    ]:
        with pytest.raises(ValueError, match=message):
            recogniser.transcribe_long(sound, **options)
        with pytest.raises(ValueError, match=message):
            recogniser.stream([], 16_000, **options)
    with pytest.raises(ValueError, match="recording 0: the recording has no samples"):
        recogniser.transcribe_long((np.zeros(0, np.float32), 16_000))
    example = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
    without = load(save_text_run(tmp_path, "audio", "speech_recognition", example))
    for call in (
        without.transcribe_long,
        lambda x: without.stream([x[0]], 16_000),
        lambda x: without.align(x, "red"),
    ):
        with pytest.raises(ValueError, match="has no CTC.*--model.objective joint"):
            call(sound)
