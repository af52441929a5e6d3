"""Trained vocoders on new data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.inference.runs import save_run
from tests.inference.test_generation import save_speaker
from tests.support import random_params
from xmodal_jax.inference import load, load_vocoder
from xmodal_jax.inference.translators import TranslationOptions, VoiceOptions, load_translators
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.models.vocoder import VocoderConfig, make_vocoder

HOP = 200
MODEL = VocoderConfig(
    features=AudioFeatures(mels=8, hop=HOP), width=8, depth=1, kernel=3, window=320, pitches=8, crop=8
)


def save_vocoder(folder, model=MODEL):
    """A vocoder with random parameters."""
    method = make_vocoder(model)
    batch = {"audio": np.zeros((1, 1600), np.int16), "index": np.arange(1)}
    params = jax.tree.map(lambda x: 0.1 * x, random_params(method.init, jax.random.key(0), batch))
    options = {"max_seconds": 1.0}
    return save_run(
        folder, {"model": model, "input": options}, params, kind="vocoder", shapes={"audio": (1600,)}
    )


def log_mels(count):
    """Frames of different lengths."""
    rng = np.random.default_rng(0)
    return [rng.normal(-6, 1, (30 + 10 * k, 8)).astype(np.float32) for k in range(count)]


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory):
    return load(save_vocoder(tmp_path_factory.mktemp("vocoder")))


def test_frames_of_any_length_become_sound(vocoder):
    frames = log_mels(3)
    sounds = vocoder.decode(frames)
    assert [len(wave) for wave, _ in sounds] == [HOP * (len(x) - 1) for x in frames]
    assert all(rate == 16_000 and wave.dtype == np.float32 for wave, rate in sounds)
    # Rounding of the phase grows with the number of the harmonic, and differs between programs.
    tolerance = 2e-3 * max(np.abs(wave).max() for wave, _ in sounds)
    ((alone, _),) = vocoder.decode(frames[0])
    np.testing.assert_allclose(alone, sounds[0][0], atol=tolerance)  # padding has no influence
    mask = jnp.ones((1, len(frames[2])), bool)
    np.testing.assert_allclose(
        jax.jit(vocoder.vocode)(frames[2][None], mask)[0], sounds[2][0], atol=tolerance
    )
    assert vocoder.decode([]) == [] and vocoder.reconstruct([]) == [] and "decode(" in vocoder.describe()
    for mistake in (frames[0][:, :7], frames[0][:1]):
        with pytest.raises(ValueError, match=r"\[frames, 8\] with two frames or more, array 0 has"):
            vocoder.decode([mistake])


def test_recordings_become_copies_of_their_length(vocoder):
    rng = np.random.default_rng(0)
    recordings = [(rng.normal(0, 0.1, n).clip(-1, 1).astype(np.float32), 8000) for n in (2000, 20_000)]
    copies = vocoder.reconstruct(recordings)
    assert [len(wave) for wave, _ in copies] == [4000, 40_000]
    np.testing.assert_allclose(vocoder.reconstruct(recordings[0])[0][0], copies[0][0], atol=1e-5)


def test_another_spectrogram_is_refused(vocoder, tmp_path):
    assert load_vocoder(vocoder.path, MODEL.features, floor=MODEL.floor).config == MODEL
    other = dataclasses.replace(MODEL.features, window=512, sample_rate=8000)
    with pytest.raises(
        ValueError, match="with sample_rate 16000 instead of 8000, window 400 instead of 512:"
    ):
        load_vocoder(vocoder.path, other, floor=MODEL.floor)
    with pytest.raises(ValueError, match="floor 1e-05 instead of 0.1"):
        load_vocoder(vocoder.path, MODEL.features, floor=0.1)
    speaker = save_speaker(tmp_path)
    with pytest.raises(ValueError, match="a run of speech_synthesis: give a run of vocoder.py"):
        load_vocoder(speaker, MODEL.features, floor=MODEL.floor)


def test_a_synthesiser_speaks_by_the_vocoder(vocoder, tmp_path):
    """Its frames become sound by the vocoder; one of another spectrogram is refused."""
    speaker = load(save_speaker(tmp_path / "speaker"))
    other = load(save_vocoder(tmp_path / "other", dataclasses.replace(MODEL, floor=1e-3)))
    with pytest.raises(ValueError, match="other spectrograms, with .*floor"):
        speaker.synthesize("red", vocoder=other)
    ((sound, rate),) = speaker.synthesize("red blue", vocoder=vocoder)
    ((plain, _),) = speaker.synthesize("red blue")
    assert rate == speaker.sample_rate and len(sound) == len(plain) - HOP
    assert not np.allclose(sound, plain[: len(sound)])
    # The synthesiser's pitch is that of the vocoder, so that it moves where a control moves it.
    given = []
    decode = vocoder.decode
    vocoder.decode = lambda frames, pitch: given.append(pitch[0]) or decode(frames, pitch)
    for semitones in (0.0, 7.0):
        speaker.synthesize("red blue", vocoder=vocoder, pitch=semitones)
    del vocoder.decode
    np.testing.assert_allclose(given[1] / given[0], 2 ** (7 / 12), rtol=1e-4)


def test_pitch_is_one_number_for_each_frame(vocoder):
    frames = log_mels(2)
    with pytest.raises(ValueError, match=r"one number for each frame, \[30, 40\], got .*\(40,\)"):
        vocoder.decode(frames, [np.full(40, 100.0), np.full(40, 100.0)])


def test_a_translator_speaks_by_the_vocoder(vocoder, tmp_path):
    """``translate.py --vocoder`` gives the waveforms of `SpeechSynthesizer.synthesize` with the vocoder."""
    path = save_speaker(tmp_path / "speaker")
    ((expected, _),) = load(path).synthesize("red blue", vocoder=vocoder, pitch=2.0)
    voice = VoiceOptions(pitch=2.0, vocoder=vocoder.path)
    (translator,) = load_translators(path, TranslationOptions(voice=voice))
    np.testing.assert_array_equal(translator.apply(["red blue"])[0], expected)


def test_frames_and_pitch_are_checked(vocoder):
    """Silence of power 0 is the floor, an unknown pitch is interpolated, and NaN is refused."""
    frames = log_mels(1)[0]
    silent, floor = frames.copy(), frames.copy()
    silent[3, 2], floor[3, 2] = -np.inf, np.log(vocoder.config.floor)
    np.testing.assert_array_equal(vocoder.decode(silent)[0][0], vocoder.decode(floor)[0][0])
    pitch = np.linspace(100.0, 200.0, len(frames))
    gap = np.where((pitch > 120) & (pitch < 160), 0.0, pitch)
    expected, found = (vocoder.decode(frames, x)[0][0] for x in (pitch, gap))
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())
    with pytest.raises(ValueError, match="array 0 of log-mel frames has values that are NaN"):
        vocoder.decode(np.full((5, 8), np.nan))
    for wrong in (-1.0, np.nan):
        with pytest.raises(ValueError, match="pitch must be in Hz"):
            vocoder.decode(frames, np.full(len(frames), wrong))
