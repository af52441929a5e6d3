import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import audio as oracle
from xmodal_jax.core.random import example_keys
from xmodal_jax.preprocess import audio
from xmodal_jax.preprocess.audio import mel_filters, spec_augment

# Compiled as one program each: operation by operation they take much longer to compile than to run.
log_mel = jax.jit(audio.log_mel, static_argnames=("sample_rate", "n_fft", "hop", "n_mels", "f_max"))
whisper_log_mel = jax.jit(audio.whisper_log_mel, static_argnames="mels")
normalize_frames = jax.jit(audio.normalize_frames, static_argnames="per_bin")

RNG = np.random.default_rng(0)


def waveforms(batch, time):
    return (0.3 * RNG.standard_normal((batch, time))).astype(np.float32)


def mel_of_librosa(samples, rate, n_fft, hop, n_mels):
    import librosa

    return librosa.feature.melspectrogram(
        y=samples, sr=rate, n_fft=n_fft, hop_length=hop, n_mels=n_mels, pad_mode="constant"
    )


def mel_of_transformers(samples, rate, n_fft, hop, n_mels):
    """The same in NumPy."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    how = dict(norm="slaney", mel_scale="slaney")
    filters = mel_filter_bank(1 + n_fft // 2, n_mels, 0.0, rate / 2, rate, **how)
    return spectrogram(
        samples,
        window_function(n_fft, "hann"),
        n_fft,
        hop,
        power=2.0,
        pad_mode="constant",
        mel_filters=filters,
    )


@pytest.mark.parametrize(
    "theirs",
    # librosa compiles its functions with numba, which takes half a minute
    [mel_of_transformers, pytest.param(mel_of_librosa, marks=pytest.mark.slow)],
    ids=["transformers", "librosa"],
)
@pytest.mark.parametrize(
    "rate, n_fft, hop, n_mels, time",
    [
        (16000, 400, 160, 80, 4001),
        (8000, 256, 256, 13, 1021),
        (16000, 512, 97, 40, 1009),
        (22050, 128, 131, 17, 1019),
    ],
)
def test_equals_librosa_and_transformers(rate, n_fft, hop, n_mels, time, theirs):
    waveform = waveforms(2, time)
    frames, mask = log_mel(jnp.asarray(waveform), sample_rate=rate, n_fft=n_fft, hop=hop, n_mels=n_mels)
    for ours, samples in zip(frames, waveform, strict=True):
        expected = theirs(samples, rate, n_fft, hop, n_mels)
        np.testing.assert_allclose(ours, np.log(np.maximum(expected, 1e-10)).T, atol=1e-4)
    assert bool(mask.all())


def test_equals_the_definition():
    waveform = waveforms(1, 307)
    frames, _ = log_mel(jnp.asarray(waveform), sample_rate=8000, n_fft=64, hop=29, n_mels=7)
    expected = oracle.log_mel(waveform[0].astype(np.float64), 8000, 64, 29, 7)
    np.testing.assert_allclose(frames[0], expected, atol=1e-4)
    np.testing.assert_allclose(mel_filters(8000, 64, 7), oracle.mel_filters(8000, 64, 7), atol=1e-8)


def test_int16_is_pcm():
    pcm = (32767 * np.clip(waveforms(2, 997), -1, 1)).astype(np.int16)
    np.testing.assert_array_equal(
        log_mel(jnp.asarray(pcm))[0], log_mel(jnp.asarray(pcm / np.float32(32768)))[0]
    )
    with pytest.raises(TypeError, match="int16"):
        log_mel(jnp.asarray(pcm.astype(np.int32)))


@pytest.mark.parametrize("length", [1, 159, 160, 161, 480, 799])
def test_padded_equals_cut(length):
    waveform = jnp.asarray(waveforms(2, 800))
    mask = jnp.arange(800)[None, :] < jnp.array([length, 0])[:, None]
    frames, frame_mask = log_mel(waveform, mask)
    cut, _ = log_mel(waveform[:1, :length])
    assert cut.shape[1] == 1 + length // 160
    np.testing.assert_array_equal(frame_mask[0], np.arange(6) < cut.shape[1])
    np.testing.assert_allclose(frames[0, : cut.shape[1]], cut[0], atol=1e-5)
    assert not frame_mask[1].any() and not frames[1].any()
    np.testing.assert_array_equal(log_mel(jnp.where(mask, waveform, 0.7), mask)[0], frames)


def test_padding_has_zero_gradient():
    waveform = jnp.asarray(waveforms(1, 800))
    mask = jnp.arange(800)[None, :] < 500
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(log_mel(w, mask)[0]))))(waveform)
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert not gradient[0, 500:].any() and float(jnp.abs(gradient[0, :500]).min()) > 0


def test_errors():
    with pytest.raises(ValueError, match="hop"):
        log_mel(jnp.ones((1, 100)), hop=0)
    with pytest.raises(ValueError, match="f_max"):
        log_mel(jnp.ones((1, 100)), f_max=9000.0)


@pytest.mark.parametrize("per_bin", [False, True])
def test_normalize_equals_the_cut_one(per_bin):
    frames = jnp.asarray(RNG.standard_normal((3, 11, 5)) * 3 + 2, jnp.float32)
    mask = jnp.arange(11)[None, :] < jnp.array([11, 7, 0])[:, None]
    out = normalize_frames(frames, mask, per_bin=per_bin)
    part = np.array(frames[1, :7], np.float64)
    axis = 0 if per_bin else None
    expected = (part - part.mean(axis)) / np.sqrt(part.var(axis) + 1e-5)
    np.testing.assert_allclose(out[1, :7], expected, atol=1e-5)
    assert not out[1, 7:].any() and not out[2].any()
    loss = lambda f: jnp.sum(jnp.sin(normalize_frames(f, mask, per_bin=per_bin)))
    gradient = jax.jit(jax.grad(loss))(frames)
    np.testing.assert_array_equal(jnp.abs(gradient).max(-1) > 0, mask)


def test_spec_augment_masks_bands_per_example():
    frames = jnp.ones((211, 41, 23))
    mask = jnp.arange(41)[None, :] < jnp.arange(211)[:, None] % 40 + 1
    keys = example_keys(jax.random.key(0), jnp.arange(211))
    options = dict(time_masks=1, max_time_fraction=0.5, freq_masks=1, max_freq_bins=5)
    run = jax.jit(functools.partial(spec_augment, **options))
    out = np.array(run(frames, keys, mask))
    order = np.random.default_rng(1).permutation(211)
    np.testing.assert_array_equal(run(frames, keys[order], mask[order]), out[order])
    np.testing.assert_array_equal(spec_augment(frames, None, mask), frames)
    widths = []
    for x, length in zip(out, np.array(mask.sum(1)), strict=True):
        times, bins = (x == 0).all(1), (x == 0).all(0)
        np.testing.assert_array_equal(x == 0, times[:, None] | bins[None, :])  # nothing but whole bands
        for band, largest in ((times, length // 2), (bins, 5)):
            places = np.flatnonzero(band)
            assert len(places) <= largest and (len(places) == 0 or np.ptp(places) == len(places) - 1)
        assert not times[length:].any()
        widths.append(bins.sum())
    assert set(widths) == set(range(6))  # every width up to the largest occurs


def whisper_frames(samples, mels=80):
    """``[F, mels]`` by ``transformers``, in NumPy."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=mels)
    return extractor._np_extract_fbank_features(samples[None], "cpu")[0].T


def speech_like(time, seed=0):
    """A tone of harmonics that rises and fades, in little noise: levels from 1 to 1e-4."""
    t = np.arange(time) / 16000
    fade = np.exp(-6 * t / t[-1])
    voice = sum(np.sin(2 * np.pi * k * (140 * t + 60 * t * t)) / k for k in range(1, 20))
    noise = np.random.default_rng(seed).standard_normal(time)
    return (0.2 * fade * voice + 1e-4 * noise).astype(np.float32)


@pytest.mark.parametrize("mels, time", [(80, 480_000), (80, 16_000), (128, 4001), (13, 331), (80, 160)])
def test_whisper_equals_transformers(mels, time):
    waveform = np.stack([speech_like(time), waveforms(1, time)[0]])
    frames, mask = whisper_log_mel(jnp.asarray(waveform), mels=mels)
    assert frames.shape == (2, time // 160, mels) and bool(mask.all())
    for ours, samples in zip(frames, waveform, strict=True):
        np.testing.assert_allclose(ours, whisper_frames(samples, mels), atol=1e-4)


@jax.jit
@jax.grad
def slope_of_whisper(waveform, mask):
    return jnp.sum(jnp.sin(whisper_log_mel(waveform, mask)[0]))


@pytest.mark.parametrize("length", [1, 160, 161, 1500, 3199])
def test_whisper_padding_is_silence(length):
    waveform = waveforms(2, 3200)
    mask = jnp.arange(3200)[None, :] < jnp.array([length, 0])[:, None]
    frames, frame_mask = whisper_log_mel(jnp.asarray(waveform), mask)
    silent = np.where(np.asarray(mask), waveform, 0)
    for ours, samples in zip(frames, silent, strict=True):
        np.testing.assert_allclose(ours, whisper_frames(samples), atol=1e-4)
    np.testing.assert_array_equal(frame_mask.sum(1), [-(-length // 160), 0])
    gradient = slope_of_whisper(jnp.asarray(waveform), mask)
    assert bool(jnp.isfinite(gradient).all()) and not gradient[~mask].any()


def test_whisper_of_pcm():
    pcm = (32767 * np.clip(waveforms(2, 997), -1, 1)).astype(np.int16)
    np.testing.assert_array_equal(
        whisper_log_mel(jnp.asarray(pcm))[0], whisper_log_mel(jnp.asarray(pcm / np.float32(32768)))[0]
    )
    with pytest.raises(ValueError, match="160 samples apart"):
        whisper_log_mel(jnp.zeros((1, 159)))
