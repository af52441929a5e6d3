"""The pitch of a waveform, and the waveforms that a source-filter model of speech starts from: pulses and noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.preprocess.audio import frame_waveform, hann
from xmodal_jax.types import ExampleKeys


@check_shapes
def estimate_pitch(
    waveform: Float[Array, "batch time"],
    *,
    sample_rate: int = 16000,
    n_fft: int = 1024,
    hop: int = 200,
    f_min: float = 60.0,
    f_max: float = 500.0,
    octave_cost: float = 0.01,
) -> tuple[Float[Array, "batch frames"], Float[Array, "batch frames"]]:
    """``(pitch, periodicity)`` of each frame ``[B, 1 + time // hop]``, by autocorrelation.

    The autocorrelation of a windowed frame is divided by that of its window, ``r(lag) = r_frame(lag) / r_window(lag)``,
    with both 1 at lag 0. The pitch in Hz is the reciprocal of the lag with the largest ``r(lag) - octave_cost *
    log2(f_min * lag)`` among local maxima, refined by a parabola through three points; the periodicity is ``r`` there,
    1 for a periodic sound and near 0 for noise. Boersma 1993, Proc. Inst. Phonetic Sciences 17, eq. 9, 23 and 26
    (without its path through several frames).

    Args:
      waveform: floats in [-1, 1].
      sample_rate: in Hz.
      n_fft, hop: length of a frame, three periods of ``f_min`` or more, and distance between frames, in samples.
      f_min, f_max: range of the pitch, in Hz.
      octave_cost: what a pitch loses for each octave that it is below ``1 / f_min``'s; prefers the shorter of two
        periods that fit equally well.

    Raises:
      ValueError: a frame is shorter than three periods of ``f_min``, or ``f_max`` is not above it.
    """
    if n_fft * f_min < 3 * sample_rate or not f_min < f_max <= sample_rate / 4:
        raise ValueError(
            f"a frame of {n_fft} samples at {sample_rate} Hz must hold three periods of f_min, and f_max lie between "
            f"f_min and a quarter of the sample rate, got f_min {f_min} and f_max {f_max}"
        )
    frames = frame_waveform(waveform, n_fft, hop)
    frames = frames - frames.mean(axis=-1, keepdims=True)
    correlation = _autocorrelation(frames * hann(n_fft)[None, None])
    of_window = np.maximum(np.asarray(_autocorrelation_numpy(hann(n_fft))), 1e-6)
    # Silence has no pitch: the small constant keeps its correlation at 0.
    r = correlation / (correlation[..., :1] + 1e-7) / (of_window / of_window[0])[None, None]
    shortest, longest = int(sample_rate / f_max), int(np.ceil(sample_rate / f_min))
    lags = np.arange(shortest, longest + 1)
    before, here, after = (r[..., shortest + i : longest + 1 + i] for i in (-1, 0, 1))
    strength = here - octave_cost * np.log2(lags * f_min / sample_rate).astype(np.float32)[None, None]
    is_peak = (here >= before) & (here > after)
    best = jnp.argmax(jnp.where(is_peak, strength, -2.0), axis=-1)[..., None]
    low, middle, high = (jnp.take_along_axis(x, best, axis=-1)[..., 0] for x in (before, here, after))
    # The top of the parabola through (-1, low), (0, middle), (1, high).
    curvature = jnp.minimum(low - 2.0 * middle + high, -1e-9)
    shift = jnp.clip(0.5 * (low - high) / curvature, -0.5, 0.5)
    pitch = sample_rate / (best[..., 0] + shortest + shift)
    any_peak = is_peak.any(axis=-1)
    return jnp.where(any_peak, pitch, f_min), jnp.where(any_peak, jnp.clip(middle, 0.0, 1.0), 0.0)


def _autocorrelation(frames):
    """``r[lag] = sum_i x[i] x[i + lag]`` for lags up to half a frame, by an FFT of twice the length."""
    spectrum = jnp.fft.rfft(frames, 2 * frames.shape[-1])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.fft.irfft(power)[..., : frames.shape[-1] // 2 + 2]


def _autocorrelation_numpy(window: np.ndarray) -> np.ndarray:
    """The same of one constant array, computed when the program is traced."""
    full = np.correlate(window, window, mode="full")[len(window) - 1 :]
    return full[: len(window) // 2 + 2].astype(np.float32)


@check_shapes
def harmonic_source(
    pitch: Float[Array, "batch frames"], voiced: Bool[Array, "batch frames"], *, sample_rate: int, hop: int
) -> Float[Array, "batch time"]:
    """A train of band-limited pulses of variance 1 with this pitch, ``(frames - 1) * hop`` samples; 0 where unvoiced.

    ``sqrt(4 f / sample_rate) * sum_{h=1}^H cos(2 pi h phi)`` with the phase ``phi`` in cycles, the integral of the
    pitch f, and all H harmonics up to half the sample rate (Wang et al. 2019, arXiv:1904.12088, sec. 2.2, with the
    harmonics of a pulse in place of a single sine). The pitch is interpolated between frames. Between a voiced and an
    unvoiced frame the sound fades.

    Args:
      pitch: in Hz, positive.
      voiced: frames that have a pitch.
      sample_rate: in Hz.
      hop: distance between frames, in samples.
    """
    # An unvoiced frame continues the pitch of a voiced neighbour, so that no pulse glides to an arbitrary one.
    beside = lambda x: (jnp.pad(x[:, 1:], [(0, 0), (0, 1)]), jnp.pad(x[:, :-1], [(0, 0), (1, 0)]))
    (next_pitch, last_pitch), (next_voiced, last_voiced) = beside(pitch), beside(voiced)
    pitch = jnp.where(
        voiced, pitch, jnp.where(last_voiced, last_pitch, jnp.where(next_voiced, next_pitch, pitch))
    )
    left, right = pitch[:, :-1, None], pitch[:, 1:, None]  # of each interval between frames
    # Cycles since the begin of each interval, by the integral of the interpolated pitch; and whole cycles before it,
    # which are taken modulo 1 at every addition: a sum over minutes would lose the digits after the point.
    samples = np.arange(hop, dtype=np.float32)[None, None, :]
    cycles = lambda n: (left * n + (right - left) * n * n / (2 * hop)) / sample_rate
    add = lambda a, b: (a + b) % 1.0
    ends = jax.lax.associative_scan(add, cycles(np.float32(hop))[:, :, 0] % 1.0, axis=1)
    starts = jnp.pad(ends[:, :-1], [(0, 0), (1, 0)])
    phase = (starts[:, :, None] + cycles(samples)) % 1.0
    frequency = left + (right - left) * samples / hop
    pulses = jnp.sqrt(4.0 * frequency / sample_rate) * _cosine_sum(
        phase, jnp.floor(0.5 * sample_rate / frequency)
    )
    gains = voiced.astype(jnp.float32)
    gain = gains[:, :-1, None] + (gains[:, 1:] - gains[:, :-1])[:, :, None] * samples / hop
    return (pulses * gain).reshape(pitch.shape[0], -1)


def _cosine_sum(phase, count):
    """``sum_{h=1}^count cos(2 pi h phase)`` (Dirichlet's kernel), for a phase in cycles."""
    half = jnp.pi * (phase - jnp.round(phase))  # in [-pi / 2, pi / 2]
    near_zero = jnp.abs(half) < 1e-4
    kernel = jnp.sin(count * half) * jnp.cos((count + 1.0) * half) / jnp.sin(jnp.where(near_zero, 1.0, half))
    return jnp.where(near_zero, count, kernel)


@check_shapes
def noise_source(keys: ExampleKeys, *, frames: int, hop: int) -> Float[Array, "batch time"]:
    """White noise of variance 1, ``(frames - 1) * hop`` samples from each key; more frames only continue it."""

    def draw(key):
        blocks = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(frames - 1))
        return jax.vmap(lambda block: jax.random.normal(block, (hop,)))(blocks).reshape(-1)

    return jax.vmap(draw)(keys)
