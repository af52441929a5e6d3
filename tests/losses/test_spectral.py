"""Spectral losses against librosa's transform."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from xmodal_jax.losses import log_mel_distance, multi_resolution_stft_loss, stft_loss

RNG = np.random.default_rng(0)
A, B = (jnp.asarray(RNG.normal(0, 0.1, (3, 1000)), jnp.float32) for _ in range(2))
COUNTS = np.array([1000, 620, 0])
MASK = np.arange(1000)[None, :] < COUNTS[:, None]
RESOLUTIONS = ((128, 32), (256, 64))


def magnitudes(x, n_fft, hop, floor):
    spectrum = librosa.stft(x, n_fft=n_fft, hop_length=hop, window="hann", center=True, pad_mode="constant")
    return np.maximum(np.abs(spectrum).T, floor)


def test_both_terms_are_those_of_the_paper():
    floor = 0.3
    found = jax.jit(lambda a, b: stft_loss(a, b, jnp.asarray(MASK), n_fft=128, hop=32, floor=floor))(A, B)
    for row, count in enumerate(COUNTS[:2]):
        ours, theirs = (
            magnitudes(np.where(MASK[row], np.asarray(x)[row], 0), 128, 32, floor) for x in (A, B)
        )
        frames = -(-count // 32)  # those that are centred on a valid sample
        ours, theirs = ours[:frames], theirs[:frames]
        convergence = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        np.testing.assert_allclose(found.convergence[row], convergence, rtol=1e-4)
        logs = np.abs(np.log(ours) - np.log(theirs)).mean()
        np.testing.assert_allclose(found.log_magnitude[row], logs, rtol=1e-4)
    assert found.convergence[2] == found.log_magnitude[2] == 0


def test_the_mean_over_resolutions():
    mean = multi_resolution_stft_loss(A, B, resolutions=RESOLUTIONS)
    parts = [stft_loss(A, B, n_fft=n, hop=hop) for n, hop in RESOLUTIONS]
    for found, *terms in zip(mean, *parts, strict=True):
        np.testing.assert_allclose(found, np.mean(terms, axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match="at least one pair"):
        multi_resolution_stft_loss(A, B, resolutions=())


def test_equal_sounds_have_no_loss_and_padding_no_gradient():
    total = lambda a, b: sum(
        x.sum() for x in multi_resolution_stft_loss(a, b, jnp.asarray(MASK), resolutions=RESOLUTIONS)
    )
    loss = jax.jit(jax.value_and_grad(total))
    value, gradient = loss(A, A)
    assert value == 0 and np.isfinite(gradient).all()
    usual, gradient = loss(A, B)
    assert not np.asarray(gradient)[~MASK].any() and np.isfinite(gradient).all()
    assert np.asarray(gradient)[0].any() and np.asarray(gradient)[1].any()
    changed, _ = loss(jnp.where(MASK, A, 7.0), jnp.where(MASK, B, -3.0))
    assert changed == usual
    silent, gradient = loss(jnp.zeros_like(A), jnp.zeros_like(A))
    assert silent == 0 and not np.asarray(gradient).any()


def test_log_mel_distance():
    a, b = jnp.asarray(RNG.normal(size=(2, 3, 5, 4)), jnp.float32)
    mask = np.arange(5)[None, :] < np.array([5, 2, 0])[:, None]
    found = log_mel_distance(a, b, jnp.asarray(mask))
    expected = [np.abs(a[0] - b[0]).mean(), np.abs(a[1, :2] - b[1, :2]).mean(), 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(log_mel_distance(a, b), np.abs(a - b).mean(axis=(1, 2)), rtol=1e-5)
