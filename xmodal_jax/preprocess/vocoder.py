"""Log-mel frames back to a waveform: the inverse of the mel filters, and Griffin-Lim for the phase."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from xmodal_jax.preprocess.audio import hann, mel_filters, stft
from xmodal_jax.types import ExampleKeys


def istft(
    spectrum: Complex[Array, "batch frames bins"], *, n_fft: int, hop: int
) -> Float[Array, "batch time"]:
    """The waveform of ``(frames - 1) * hop`` samples whose `stft` is nearest to ``spectrum`` in squared error.

    Windowed frames are added where they overlap and divided by the sum of the squared windows: Griffin and Lim 1984,
    eq. 6; ``librosa.istft(..., center=True)``.

    Raises:
      ValueError: frames do not overlap.
    """
    if hop >= n_fft:
        raise ValueError(f"frames must overlap: hop {hop} must be below n_fft {n_fft}")
    window = hann(n_fft)
    frames = jnp.fft.irfft(spectrum, n_fft) * window[None, None, :]
    total = _overlap_add(frames, hop)
    weight = _overlap_add(jnp.broadcast_to(jnp.square(window)[None, None], (1, *frames.shape[1:])), hop)
    tiny = jnp.finfo(jnp.float32).tiny
    whole = total / jnp.where(weight > tiny, weight, 1.0)
    left = n_fft // 2
    return whole[:, left : left + (spectrum.shape[1] - 1) * hop]


def _overlap_add(frames: Float[Array, "batch frames n_fft"], hop: int) -> Float[Array, "batch time"]:
    """The sum of overlapping frames, where frame t begins at sample ``t * hop``. Made of slices, not of a scatter."""
    batch, count, n_fft = frames.shape
    blocks = -(-n_fft // hop)
    frames = jnp.pad(frames, [(0, 0), (0, 0), (0, blocks * hop - n_fft)]).reshape(batch, count, blocks, hop)
    parts = [jnp.pad(frames[:, :, i], [(0, 0), (i, blocks - 1 - i), (0, 0)]) for i in range(blocks)]
    return functools.reduce(jnp.add, parts).reshape(batch, -1)


def mel_to_power(
    mel: Float[Array, "batch frames n_mels"],
    *,
    sample_rate: int = 16000,
    n_fft: int = 400,
    f_max: float | None = None,
    iterations: int = 100,
) -> Float[Array, "batch frames bins"]:
    """The power spectrum ``x >= 0`` that minimises ``|x @ filters - mel|^2``.

    By ``iterations`` steps of accelerated projected gradient descent (FISTA: Beck and Teboulle 2009, eq. 4.1-4.3) from
    the clipped pseudo-inverse. ``mel`` is power, not its logarithm; see `audio.mel_filters` for the other arguments.
    """
    filters = np.asarray(mel_filters(sample_rate, n_fft, mel.shape[-1], f_max=f_max), np.float64)
    scale = np.linalg.norm(filters, 2)  # with a largest singular value of 1, a step of 1 never overshoots
    a = jnp.asarray(filters / scale, jnp.float32)
    target = mel / jnp.float32(scale)
    start = jnp.maximum(target @ jnp.asarray(np.linalg.pinv(filters / scale), jnp.float32), 0.0)

    def step(carry, _):
        x, ahead, t = carry
        new = jnp.maximum(ahead - (ahead @ a - target) @ a.T, 0.0)
        t_new = (1.0 + jnp.sqrt(1.0 + 4.0 * t * t)) / 2.0
        return (new, new + (t - 1.0) / t_new * (new - x), t_new), None

    (x, _, _), _ = jax.lax.scan(step, (start, start, jnp.float32(1.0)), length=iterations)
    return x


def griffin_lim(
    magnitude: Float[Array, "batch frames bins"],
    *,
    n_fft: int = 400,
    hop: int = 160,
    iterations: int = 32,
    momentum: float = 0.99,
    keys: ExampleKeys | None = None,
) -> Float[Array, "batch time"]:
    """A waveform of ``(frames - 1) * hop`` samples whose STFT has nearly this magnitude.

    In each iteration the phase is that of the last estimate's STFT, extrapolated by ``momentum``; 0 is the algorithm of
    Griffin and Lim 1984, above 0 that of Perraudin et al. 2013, algorithm 2; ``librosa.griffinlim``.

    Args:
      magnitude: the magnitude spectrum.
      n_fft, hop: those of the STFT.
      iterations: the more, the nearer.
      momentum: 0 or more.
      keys: one random key per example, what the first phases are drawn from; None: they are zero.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    if keys is None:
        angles = jnp.ones(magnitude.shape, jnp.complex64)
    else:
        turn = jax.vmap(lambda key: jax.random.uniform(key, magnitude.shape[1:]))(keys)
        angles = jnp.exp(2j * jnp.pi * turn).astype(jnp.complex64)

    def step(carry, _):
        angles, before = carry
        waveform = istft(magnitude * angles, n_fft=n_fft, hop=hop)
        estimate = stft(waveform, n_fft=n_fft, hop=hop)
        new = estimate - (momentum / (1.0 + momentum)) * before
        return (new / (jnp.abs(new) + tiny), estimate), None

    (angles, _), _ = jax.lax.scan(step, (angles, jnp.zeros_like(angles)), length=iterations)
    return istft(magnitude * angles, n_fft=n_fft, hop=hop)


def log_mel_to_waveform(
    log_mel: Float[Array, "batch frames n_mels"],
    *,
    sample_rate: int = 16000,
    n_fft: int = 400,
    hop: int = 160,
    f_max: float | None = None,
    iterations: int = 60,
    keys: ExampleKeys | None = None,
) -> Float[Array, "batch time"]:
    """A waveform with nearly these log-mel frames, the approximate inverse of `audio.log_mel`.

    The other arguments are those of `mel_to_power` and `griffin_lim`.
    """
    power = mel_to_power(jnp.exp(log_mel), sample_rate=sample_rate, n_fft=n_fft, f_max=f_max)
    return griffin_lim(jnp.sqrt(power), n_fft=n_fft, hop=hop, iterations=iterations, keys=keys)
