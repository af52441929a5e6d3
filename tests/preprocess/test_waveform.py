"""Augmentation of waveforms, each part against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.random import example_keys
from xmodal_jax.models.towers import AudioFeatures, Augmentation, precompute_spectrograms, preprocess_modality
from xmodal_jax.preprocess.waveform import (
    WaveformAugmentConfig,
    add_noise,
    add_silence,
    augment_waveform,
    change_speed,
    reverberate,
    telephone,
)

RATE, COUNT, LENGTH = 8000, 24, 6007
KEYS = example_keys(jax.random.key(5), jnp.arange(COUNT))
ALL = WaveformAugmentConfig(
    speed=0.2, reverberation=0.5, noise=0.5, gain_db=6.0, telephone=0.5, silence_seconds=0.1
)


def noise(seed=0):
    """White noise ``[COUNT, LENGTH]`` and its mask; each example is as long as another fraction of the array."""
    samples = np.random.default_rng(seed).normal(size=(COUNT, LENGTH)).astype(np.float32) * 0.1
    mask = np.arange(LENGTH)[None, :] < np.linspace(LENGTH / 3, LENGTH, COUNT)[:, None]
    return jnp.asarray(np.where(mask, samples, 0.0), jnp.float32), jnp.asarray(mask)


def test_each_example_has_random_numbers_of_its_own():
    """The same ones in any batch; and padding stays silent."""
    x, mask = noise()
    augment = jax.jit(lambda x, mask, keys: augment_waveform(x, mask, keys, ALL, sample_rate=RATE))
    whole, valid = augment(x, mask, KEYS)
    part, _ = augment(x[5:8], mask[5:8], KEYS[5:8])
    np.testing.assert_allclose(whole[5:8], part, atol=1e-5)
    assert not np.asarray(whole)[~np.asarray(valid)].any()
    assert len({round(float(v), 6) for v in jnp.abs(whole).mean(axis=1)}) == COUNT


def test_what_stands_in_the_padding_has_no_influence():
    x, mask = noise()
    filled = jnp.where(mask, x, 7.0)
    of = lambda x: augment_waveform(x, mask, KEYS, ALL, sample_rate=RATE)[0]
    np.testing.assert_array_equal(of(x), of(filled))


@pytest.mark.parametrize("config", [ALL, WaveformAugmentConfig()])
def test_without_keys_or_options_nothing_changes(config):
    x, mask = noise()
    keys = None if config is ALL else KEYS
    changed, valid = augment_waveform(x, mask, keys, config, sample_rate=RATE)
    assert (changed == x).all() and (valid == mask).all()


def test_speed_moves_the_pitch_and_the_length_by_one_factor():
    time = np.arange(LENGTH) / RATE
    mask = np.broadcast_to(np.arange(LENGTH) < 4000, (COUNT, LENGTH))
    tone = np.where(mask, np.sin(2 * np.pi * 500 * time), 0.0).astype(np.float32)
    changed, valid = change_speed(jnp.asarray(tone), jnp.asarray(mask), KEYS, largest=0.2)
    lengths, factors = np.asarray(valid.sum(axis=1)), []
    for wave, length in zip(np.asarray(changed), lengths, strict=True):
        spectrum = np.abs(np.fft.rfft(wave[:length] * np.hanning(length), 1 << 18))
        factors.append(spectrum.argmax() * RATE / (1 << 18) / 500)
        assert length == pytest.approx(4000 / factors[-1], rel=2e-3)
    assert 0.8 <= min(factors) < 0.87 and 1.13 < max(factors) <= 1.2


def test_silence_is_put_before_and_after():
    x, mask = noise()
    moved, valid = add_silence(x, mask, KEYS, longest=700)
    starts, ends = [], []
    for wave, heard, before, count in zip(*map(np.asarray, (moved, valid, x, mask.sum(axis=1))), strict=True):
        start = int(np.argmax(wave != 0))
        fits = min(count, LENGTH - start)
        np.testing.assert_array_equal(wave[start : start + fits], before[:fits])
        assert not wave[start + fits :].any() and heard[: start + fits].all()
        starts.append(start)
        if start + fits < LENGTH - 700:
            ends.append(int(heard.sum()) - start - fits)
    assert 0 <= min(starts) < 100 and 600 < max(starts) <= 700
    assert 0 <= min(ends) < 150 and 500 < max(ends) <= 700


def test_a_room_decays_as_its_reverberation_time_says():
    """The energy that is left after each time (Schroeder's integral) falls along a line of dB."""
    impulse = jnp.zeros((COUNT, 8000)).at[:, 0].set(1.0)
    heard = np.asarray(reverberate(impulse, KEYS, sample_rate=RATE, seconds=0.6), np.float64)
    np.testing.assert_allclose(np.linalg.norm(heard, axis=1), 1.0, atol=1e-4)
    times, wet = [], []
    for response in heard:
        left = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] + 1e-30)
        first, last = 40, int(np.argmax(left < left[40] - 25))
        slope = np.polyfit(np.arange(first, last) / RATE, left[first:last], 1)[0]
        times.append(-60 / slope)
        wet.append((response[1:] ** 2).sum() / response[0] ** 2)
    assert 0.08 < min(times) < 0.25 and 0.45 < max(times) < 0.7
    assert 0.04 < min(wet) and max(wet) < 1.05 and max(wet) > 0.6


def test_noise_has_the_ratio_that_was_asked_for():
    x, mask = noise()
    added = np.asarray(add_noise(x, mask, KEYS, decibels=(5.0, 20.0)) - x)
    power = lambda a: np.square(np.asarray(a, np.float64)).sum(axis=1)
    decibels = 10 * np.log10(power(x) / power(added))
    assert 5.0 - 0.01 <= decibels.min() < 8.0 and 17.0 < decibels.max() <= 20.01
    assert not added[~np.asarray(mask)].any()
    # From white to Brownian: the share of the power below 200 Hz.
    low = [(np.abs(np.fft.rfft(a)) ** 2)[: LENGTH // 40].sum() / (a**2).sum() * 2 / LENGTH for a in added]
    assert min(low) < 0.2 and max(low) > 0.7


def test_a_telephone_has_a_band_and_8_bits():
    x, _ = noise()
    heard = np.asarray(telephone(x, KEYS, sample_rate=16_000))
    power = np.square(np.abs(np.fft.rfft(heard))).mean(axis=0)
    hertz = np.fft.rfftfreq(LENGTH, 1 / 16_000)
    inside = power[(hertz > 600) & (hertz < 2300)].mean()
    assert power[hertz < 20].mean() < 0.02 * inside and power[hertz > 4600].mean() < 0.02 * inside
    for wave in heard:
        assert len(np.unique(np.round(wave / np.abs(wave).max(), 6))) <= 255


def test_recognition_is_trained_on_waveforms_that_are_augmented():
    """Spectrograms are computed in the step then, not once; in evaluation nothing is augmented."""
    batch = {"audio": (1000 * noise()[0]).astype(jnp.int16), "audio_mask": noise()[1]}
    features, plain = AudioFeatures(sample_rate=RATE), Augmentation()
    augmentation = Augmentation(waveform=ALL)
    assert precompute_spectrograms(features, augmentation)(batch)["audio"].ndim == 2
    assert precompute_spectrograms(features, plain)(batch)["audio"].ndim == 3
    frames = lambda augmentation, keys: preprocess_modality("audio", batch, features, augmentation, keys)[0]
    np.testing.assert_array_equal(frames(augmentation, None), frames(plain, None))
    assert np.abs(frames(augmentation, KEYS) - frames(plain, KEYS)).mean() > 0.05
    once = precompute_spectrograms(features, plain)(batch)
    with pytest.raises(ValueError, match=r"augment\.waveform changes waveforms"):
        preprocess_modality("audio", once, features, augmentation, KEYS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 1.0}, r"\[0, 1\)"),
        ({"noise": 1.5}, "noise"),
        ({"room_seconds": 0.0}, "positive"),
        ({"noise_db": (9.0, 1.0)}, "range"),
        ({"gain_db": -1.0}, "0 or more"),
        ({"silence_seconds": -1.0}, "0 or more"),
    ],
)
def test_options_out_of_range_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        WaveformAugmentConfig(**options)
