import fcntl
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from xmodal_jax.data.shapes import speech
from xmodal_jax.data.shapes.speech import (
    TRAIN_VOICES,
    UNSEEN_VOICES,
    Voice,
    synthesize,
    synthesize_all,
    voices_of,
)

TEXT = "a big red striped circle to the left of a small blue star"


def test_the_same_whatever_was_spoken_before():
    voice = TRAIN_VOICES[1]
    first = synthesize(TEXT, voice)
    synthesize("something else", TRAIN_VOICES[-1])
    assert np.array_equal(first, synthesize(TEXT, voice))
    speech._process.close()  # a new process says the same
    assert np.array_equal(first, synthesize(TEXT, voice))


def test_waveform():
    wave = synthesize(TEXT, TRAIN_VOICES[0])
    assert wave.dtype == np.int16 and 1.5 < len(wave) / speech.SAMPLE_RATE < 4
    assert 0.7 < np.abs(wave.astype(int)).max() / 32768 < 0.85
    edge = speech.SAMPLE_RATE // 40
    assert np.abs(wave[:edge].astype(int)).max() > 100 and np.abs(wave[-edge:].astype(int)).max() > 100


def test_every_voice_exists_and_differs():
    waves = [synthesize("a red circle", v) for v in (*TRAIN_VOICES, *UNSEEN_VOICES)]
    assert min(map(len, waves)) > 5000
    assert len({w.tobytes() for w in waves}) == len(waves)
    assert not set(TRAIN_VOICES) & set(UNSEEN_VOICES)


def test_speed_and_pitch_matter():
    slow, fast = (synthesize(TEXT, Voice("en-us", speed=r)) for r in (150, 300))
    assert len(slow) > 1.5 * len(fast)

    def fundamental(wave):
        spectrum = np.abs(np.fft.rfft(wave * 1.0)) ** 2
        hertz = np.fft.rfftfreq(len(wave), 1 / speech.SAMPLE_RATE)
        band = (hertz > 60) & (hertz < 300)
        return (spectrum * hertz)[band].sum() / spectrum[band].sum()

    low, high = (fundamental(synthesize(TEXT, Voice("en-us", pitch=p, pitch_range=10))) for p in (10, 90))
    assert high > low + 10


def test_too_long_is_spoken_faster_not_cut():
    voice = Voice("en-us", speed=180)
    free = synthesize(TEXT, voice)
    tight = synthesize(TEXT, voice, max_seconds=2.0)
    assert len(free) > 32_000 >= len(tight) > 16_000
    with pytest.raises(ValueError, match="max_seconds"):
        synthesize(TEXT, voice, max_seconds=0.5)


def test_errors():
    with pytest.raises(ValueError, match="no-such"):
        synthesize(TEXT, Voice("no-such-voice"))
    with pytest.raises(ValueError, match="speed"):
        Voice("en-us", speed=1000)
    with pytest.raises(ValueError, match="same length"):
        synthesize_all(["a"], [])


def test_cache(tmp_path, monkeypatch):
    texts = [f"a {c} circle" for c in ("red", "green", "blue", "white")] * 9
    voices = [TRAIN_VOICES[i % 5] for i in range(36)]
    one = synthesize_all(texts, voices, tmp_path / "one", workers=1)
    two = synthesize_all(texts, voices, tmp_path / "two", workers=2)
    assert len(one) == 36 and one.lengths.shape == (36,)
    assert all(np.array_equal(one[i], two[i]) for i in range(36))
    assert np.array_equal(one[7], synthesize(texts[7], voices[7]))

    path = one.folder / "samples.npy"
    for damage in (
        lambda data: data[: len(data) // 2],
        lambda data: data[:-9] + b"damaged!!",
        lambda data: b"",
    ):
        path.write_bytes(damage(path.read_bytes()))
        again = synthesize_all(texts, voices, tmp_path / "one", workers=1)
        assert all(np.array_equal(two[i], again[i]) for i in range(36))

    monkeypatch.setattr(speech, "_write", None)  # from here on only reading is possible
    assert np.array_equal(synthesize_all(texts, voices, tmp_path / "one")[35], two[35])
    assert not list(tmp_path.glob("*/speaking-*"))


def test_a_flipped_bit_anywhere_is_spoken_again(tmp_path, monkeypatch):
    texts, voices = ["a red circle"], [TRAIN_VOICES[0]]
    whole = np.array(synthesize_all(texts, voices, tmp_path)[0])
    [folder] = tmp_path.glob("speech-*/")
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    calls = []

    def write_again(requests, work, workers):
        """In place of eSpeak: what it has written before."""
        calls.append(1)
        (work / "cache").mkdir()
        for path, content in contents.items():
            (work / "cache" / path.name).write_bytes(content)

    monkeypatch.setattr(speech, "_write", write_again)
    draw, damaged = np.random.default_rng(0), 0
    for name in ("header.json", "offsets.npy", "samples.npy"):
        content = contents[folder / name]
        for place in range(0, min(len(content), 130), 3):  # NumPy's header has 128 bytes
            changed = bytearray(content)
            changed[place] ^= 1 << draw.integers(8)
            (folder / name).write_bytes(changed)
            again = synthesize_all(texts, voices, tmp_path)
            assert np.array_equal(again[0], whole)
            damaged += 1
            (folder / name).write_bytes(content)
    # A bit of the version or the sample rate in header.json changes nothing that is read.
    assert damaged - 20 < len(calls) <= damaged


SPEAK = """
import sys
from pathlib import Path
from xmodal_jax.data.shapes.speech import TRAIN_VOICES, synthesize_all
from xmodal_jax.train.preemption import exit_on_termination
with exit_on_termination():
    synthesize_all(["a red circle"] * 3000, TRAIN_VOICES[:1] * 3000, Path(sys.argv[1]), workers=2)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_ends_while_speaking_leaves_no_files_for_ever(tmp_path, monkeypatch, sent):
    process = subprocess.Popen([sys.executable, "-c", SPEAK, str(tmp_path)], stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in tmp_path.glob("speaking-*/*.raw")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sent)
    assert process.wait(60) == (143 if sent == signal.SIGTERM else -9)
    assert bool(list(tmp_path.glob("speaking-*"))) == (sent == signal.SIGKILL)

    (tmp_path / "speaking-other-1").mkdir()
    (tmp_path / "speaking-another-1").mkdir()

    def write(requests, work, workers):  # the next process that needs the same speech
        assert set(tmp_path.glob("speaking-*")) == {work, tmp_path / "speaking-another-1"}
        raise KeyboardInterrupt

    monkeypatch.setattr(speech, "_write", write)
    with (tmp_path / "speech-another.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a process that is speaking
        with pytest.raises(KeyboardInterrupt):
            synthesize_all(["a red circle"] * 3000, TRAIN_VOICES[:1] * 3000, tmp_path)
    assert list(tmp_path.glob("speaking-*")) == [tmp_path / "speaking-another-1"]


def test_a_failing_text_leaves_no_cache(tmp_path):
    with pytest.raises(ValueError, match="no-such"):
        synthesize_all(["a red circle"] * 3, [Voice("no-such-voice")] * 3, tmp_path)
    assert not list(tmp_path.glob("speech-*/header.json")) and not list(tmp_path.glob("speaking-*"))


def test_default_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))
    assert speech.default_cache_dir() == tmp_path


def test_other_languages_have_voices_of_their_own():
    """Spanish is not English, its unseen voices are those of other variants, and a wrong name is explained."""
    spanish = voices_of("es")
    variants = lambda voices: {voice.name.split("+")[1] for voice in voices}
    assert not variants(spanish.train) & variants(spanish.unseen) and voices_of("en").train == TRAIN_VOICES
    say = lambda voice: synthesize("jirafa", voice)
    assert len(say(spanish.train[0])) > 2000
    assert not np.array_equal(say(spanish.train[0]), say(Voice("en-us+m1", *_options(spanish.train[0]))))
    with pytest.raises(ValueError, match="xx"):
        say(voices_of("xx").train[0])


def _options(voice):
    return voice.speed, voice.pitch, voice.pitch_range
