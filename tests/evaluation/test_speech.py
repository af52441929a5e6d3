"""Synthesised speech beside recordings: statistics of pitch and energy, and the scores of whole data sets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation import speech
from xmodal_jax.models.speech import ProsodyStatistics, SpeechConfig, recorded_prosody
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.report.speech import spectrograms

RATE, HOP = 8000, 100
CONFIG = SpeechConfig(features=AudioFeatures(sample_rate=RATE, mels=8, window=400, hop=HOP), max_pitch=400.0)


def melody(*frequencies, seconds=0.25):
    """Tones of these frequencies in Hz, one after the other."""
    phase = np.cumsum(np.repeat(frequencies, round(seconds * RATE))) / RATE
    return (8000 * (np.sin(2 * np.pi * phase) + 0.5 * np.sin(4 * np.pi * phase))).astype(np.int16)


def recordings(waves):
    audio = np.zeros((len(waves), max(map(len, waves))), np.int16)
    mask = np.zeros(audio.shape, bool)
    for row, wave in enumerate(waves):
        audio[row, : len(wave)], mask[row, : len(wave)] = wave, True
    return ArraySource(
        {"audio": audio, "audio_mask": mask, "speaker": np.arange(len(waves), dtype=np.int32) % 2}
    )


def test_statistics_are_those_of_all_voiced_frames():
    waves = [melody(100, 120), melody(200, 240), melody(110), melody(220, 210, 200)]
    source = recordings(waves)
    found = speech.measure_prosody(source, CONFIG, speakers=3)
    frames = [jax.device_get(recorded_prosody(jnp.asarray(wave)[None], None, CONFIG)) for wave in waves]
    voiced = [np.log(x["pitch"][0][x["pitch"][0] > 0].astype(np.float64)) for x in frames]
    pitch, energy = np.concatenate(voiced), np.concatenate([x["energy"][0] for x in frames])
    expected = {
        "pitch_mean": pitch.mean(), "pitch_scale": pitch.std(), "energy_mean": energy.mean(),
        "energy_scale": energy.std(),
        "voice_pitch": (np.mean([*voiced[0], *voiced[2]]), np.mean([*voiced[1], *voiced[3]]), pitch.mean()),
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=2e-3), name
    assert np.exp(found.voice_pitch[0]) == pytest.approx(110, rel=0.03)
    without = dataclasses.replace(CONFIG, pitch=False, energy=False)
    assert speech.measure_prosody(source, without, speakers=3) == ProsodyStatistics()
    silent = ArraySource({"audio": np.zeros((2, 800), np.int16)})
    assert speech.measure_prosody(silent, CONFIG, speakers=1).voice_pitch == (5.0,)


def test_speech_is_compared_with_recordings():
    spoken = speech.recordings_of(recordings([melody(100, 150, 120), melody(200, 240, 180)]), CONFIG)
    same = speech.compare_speech(spoken, spoken, CONFIG)
    scores = {
        "mel_distance": 0,
        "length_error": 0,
        "pitch_correlation": 1,
        "pitch_error_cents": 0,
        "voicing_error": 0,
    }
    assert same.scores == pytest.approx({f"test/{name}": value for name, value in scores.items()}, abs=1e-6)
    flat = speech.recordings_of(recordings([melody(120, 120, 120), melody(200, 200, 200)]), CONFIG)
    assert speech.compare_speech(flat, spoken, CONFIG).scores["test/pitch_correlation"] < 0.5
    tones, higher = (
        speech.recordings_of(recordings([melody(*x), melody(200)]), CONFIG) for x in ([100], [106])
    )
    moved = speech.compare_speech(higher, tones, CONFIG)  # by 101 cents in the first of two
    assert moved.scores["test/pitch_error_cents"] == pytest.approx(101 / 2, abs=10)
    assert [len(x) for x in moved.pitch[1]] == [len(x) for x in tones.frames]


def test_the_figure_shows_both_pitches():
    tones = speech.recordings_of(recordings([melody(100), melody(200)]), CONFIG)
    spoken = tones._replace(durations=[np.array([10, 11])] * 2)
    pitch = [np.full(len(x), 106.0) for x in tones.frames], [np.full(len(x), 100.0) for x in tones.frames]
    figure = spectrograms([0], ["one", "two"], [["a", "b"], ["c", "d"]], spoken, tones, pitch, CONFIG)
    lines = [line.get_ydata() for ax in figure.axes for line in ax.get_lines() if len(line.get_ydata()) > 2]
    np.testing.assert_allclose(np.nanmedian(lines, axis=1), [106, 100])
