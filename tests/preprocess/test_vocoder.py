"""Griffin-Lim and the inverse of the mel filters against librosa's."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from xmodal_jax.models.speech import SpeechConfig, griffin_lim_waveform
from xmodal_jax.models.towers import AudioFeatures, compute_log_mel
from xmodal_jax.preprocess.audio import log_mel, mel_filters, stft
from xmodal_jax.preprocess.vocoder import griffin_lim, istft, log_mel_to_waveform, mel_to_power

RATE, N_FFT, HOP = 16_000, 400, 160


def chirp(seconds=0.5):
    """A voice-like sound: ten harmonics of a gliding tone that swells and fades."""
    t = np.arange(int(RATE * seconds)) / RATE
    phase = 2 * np.pi * (120 * t + 60 * t**2)
    return (np.hanning(len(t)) * sum(np.sin(k * phase) / k for k in range(1, 11)) / 4).astype(np.float32)


def spectrum(waveform):
    return librosa.stft(
        waveform, n_fft=N_FFT, hop_length=HOP, window="hann", center=True, pad_mode="constant"
    ).T


@pytest.mark.parametrize("n_fft, hop", [(400, 160), (401, 101), (64, 16)])
def test_the_inverse_of_the_transform(n_fft, hop):
    waveform = np.random.default_rng(0).normal(size=(2, 20 * hop)).astype(np.float32)
    there = jax.jit(lambda x: stft(x, n_fft=n_fft, hop=hop))(jnp.asarray(waveform))
    back = jax.jit(lambda x: istft(x, n_fft=n_fft, hop=hop))(there)
    np.testing.assert_allclose(back, waveform, atol=2e-5)
    changed = np.asarray(there) * (1 + 0.3j) + 0.1  # no transform of anything
    for row, found in zip(changed, istft(jnp.asarray(changed), n_fft=n_fft, hop=hop), strict=True):
        expected = librosa.istft(row.T, n_fft=n_fft, hop_length=hop, window="hann", center=True)
        np.testing.assert_allclose(found, expected[: len(found)], atol=2e-5)
    with pytest.raises(ValueError, match="hop 64 must be below n_fft 64"):
        istft(there, n_fft=64, hop=64)


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_griffin_lim_is_librosas(momentum):
    magnitude = np.abs(spectrum(chirp())).astype(np.float32)
    ours = jax.jit(lambda m: griffin_lim(m, n_fft=N_FFT, hop=HOP, iterations=8, momentum=momentum))(
        jnp.asarray(magnitude)[None]
    )[0]
    theirs = librosa.griffinlim(
        magnitude.T, n_iter=8, hop_length=HOP, n_fft=N_FFT, momentum=momentum, init=None, pad_mode="constant"
    )
    np.testing.assert_allclose(ours, theirs[: len(ours)], atol=2e-3 * np.abs(theirs).max())


def test_momentum_and_iterations_bring_the_magnitude_nearer():
    magnitude = jnp.asarray(np.abs(spectrum(chirp())).astype(np.float32))[None]
    keys = jax.random.split(jax.random.key(0), 1)

    def error(**how):
        waveform = jax.jit(lambda m: griffin_lim(m, n_fft=N_FFT, hop=HOP, keys=keys, **how))(magnitude)
        found = jnp.abs(stft(waveform, n_fft=N_FFT, hop=HOP))
        return float(jnp.linalg.norm(found - magnitude) / jnp.linalg.norm(magnitude))

    plain, fast, longer = error(iterations=32, momentum=0.0), error(iterations=32), error(iterations=100)
    assert fast < 0.8 * plain and longer < fast


@pytest.mark.parametrize("f_max", [None, RATE / 4])
def test_mel_to_power_is_at_least_as_near_as_librosas(f_max):
    power = np.abs(spectrum(chirp())) ** 2
    filters = mel_filters(RATE, N_FFT, 40, f_max=f_max)
    mel = (power @ filters).astype(np.float32)
    ours = np.asarray(
        jax.jit(lambda x: mel_to_power(x, sample_rate=RATE, n_fft=N_FFT, f_max=f_max))(
            jnp.asarray(mel)[None]
        )[0]
    )
    theirs = librosa.feature.inverse.mel_to_stft(mel.T, sr=RATE, n_fft=N_FFT, power=1.0, fmax=f_max).T
    residual = lambda x: np.linalg.norm(x @ filters - mel) / np.linalg.norm(mel)
    assert (ours >= 0).all() and residual(ours) < 1.05 * residual(theirs) + 1e-4
    assert residual(ours) < 0.01


def test_speech_comes_back_with_its_spectrogram():
    waveform = jnp.asarray(chirp())[None]
    frames, _ = log_mel(waveform, sample_rate=RATE, n_fft=N_FFT, hop=HOP, n_mels=80)
    back = jax.jit(lambda x: log_mel_to_waveform(x, sample_rate=RATE, n_fft=N_FFT, hop=HOP))(frames)
    again, _ = log_mel(back, sample_rate=RATE, n_fft=N_FFT, hop=HOP, n_mels=80)
    loud = np.asarray(frames[0, : again.shape[1]]) > frames.max() - 9  # 40 dB below the peak
    apart = np.abs(np.asarray(again[0]) - np.asarray(frames[0, : again.shape[1]]))[loud]
    assert apart.mean() < 0.35  # nats of power: 1.5 dB


def test_the_upper_end_of_the_bands_reaches_features_and_vocoder():
    narrow = AudioFeatures(mels=32, max_hz=2000.0)
    high = jnp.sin(2 * jnp.pi * 3000.0 * jnp.arange(6400) / RATE)[None]
    heard, deaf = (compute_log_mel(high, None, f)[0][0, 16].max() for f in (AudioFeatures(mels=32), narrow))
    assert deaf < heard - 10  # nats: what lies above is not heard
    frames, _ = compute_log_mel(jnp.asarray(chirp())[None], None, narrow)
    back = griffin_lim_waveform(frames, SpeechConfig(features=narrow, vocoder_iterations=8))
    energy = np.abs(np.fft.rfft(np.asarray(back[0]))) ** 2
    assert energy[np.fft.rfftfreq(back.shape[1], 1 / RATE) > 2100].sum() < 0.01 * energy.sum()
