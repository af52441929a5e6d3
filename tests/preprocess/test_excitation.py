"""The sources of a vocoder against sums of cosines and moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.preprocess.excitation import harmonic_source, noise_source

RATE, HOP = 16_000, 200


def test_pulses_are_the_sum_of_all_harmonics():
    pitch = np.array([[100.0, 110.0, 130.0, 120.0], [90.0, 90.0, 90.0, 90.0]])
    voiced = np.array([[True] * 4, [True, True, False, False]])
    source = jax.jit(lambda p, v: harmonic_source(p, v, sample_rate=RATE, hop=HOP))
    ours = np.asarray(source(pitch.astype(np.float32), voiced))
    n = np.arange(3 * HOP)
    frequency = np.stack([np.interp(n / HOP, np.arange(4), row) for row in pitch])
    # The integral of the interpolated frequency, by the trapezoidal rule, which is exact here.
    steps = (frequency[:, 1:] + frequency[:, :-1]) / 2 / RATE
    phase = np.concatenate([np.zeros((2, 1)), steps.cumsum(axis=1)], axis=1)
    harmonics = np.arange(1, 100)[:, None, None]
    waves = np.where(
        harmonics <= np.floor(RATE / 2 / frequency), np.cos(2 * np.pi * harmonics * phase), 0
    ).sum(axis=0)
    gain = np.stack([np.interp(n / HOP, np.arange(4), row.astype(float)) for row in voiced])
    expected = np.sqrt(4 * frequency / RATE) * waves * gain
    # The number of harmonics jumps where one reaches half the rate; there rounding decides.
    wrong = np.abs(ours - expected) > 0.02
    assert wrong.mean() < 0.01 and not ours[1, 2 * HOP :].any()


def test_pulses_have_variance_1_and_stay_in_phase_for_minutes():
    frames = 60 * RATE // HOP + 1
    pitch = np.full((1, frames), 128.0, np.float32)  # a period of 125 samples
    source = jax.jit(lambda p: harmonic_source(p, jnp.ones(p.shape, bool), sample_rate=RATE, hop=HOP))
    periods = np.asarray(source(pitch))[0].reshape(-1, 125)
    assert np.mean(periods**2) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(periods[-1], periods[0], atol=0.02 * periods[0].max())


def test_noise_is_white_and_more_of_it_only_continues_it():
    keys = jax.random.split(jax.random.key(0), 2)
    long, short = (np.asarray(noise_source(keys, frames=n, hop=100)) for n in (201, 51))
    np.testing.assert_array_equal(long[:, :5000], short)
    assert long.mean() == pytest.approx(0, abs=0.03) and long.var() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(long[0, 1:], long[0, :-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(long[0], long[1])[0, 1]) < 0.03
