import numpy as np
import pytest

from xmodal_jax.data.shapes import speech
from xmodal_jax.data.shapes.speech import TRAIN_VOICES, UNSEEN_VOICES, Voice, synthesize, synthesize_all

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


def test_a_failing_text_leaves_no_cache(tmp_path):
    with pytest.raises(ValueError, match="no-such"):
        synthesize_all(["a red circle"] * 3, [Voice("no-such-voice")] * 3, tmp_path)
    assert not list(tmp_path.glob("speech-*/header.json")) and not list(tmp_path.glob("speaking-*"))


def test_default_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))
    assert speech.default_cache_dir() == tmp_path
