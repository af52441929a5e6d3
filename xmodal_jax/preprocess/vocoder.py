"""Log-mel frames back to a waveform: the inverse of the mel filters, and Griffin-Lim for the phase."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.preprocess.audio import hann, mel_filters, stft
from xmodal_jax.types import ExampleKeys


@check_shapes
def istft(
    spectrum: Complex[Array, "batch frames bins"],
    mask: Bool[Array, "batch frames"] | None = None,
    *,
    n_fft: int,
    hop: int,
) -> Float[Array, "batch time"]:
    """The waveform of ``(frames - 1) * hop`` samples whose `stft` is nearest to ``spectrum`` in squared error.

    The frames of the inverse FFT are windowed, added where they overlap, and divided by the sum of the squared windows
    (Griffin and Lim 1984, eq. 6), as in ``librosa.istft(..., center=True)``.

    Args:
      spectrum: the frames.
      mask: True on valid frames, which come first; None: all are valid. The first ``(F - 1) * hop`` samples are those
        of the F valid frames alone; what follows is no signal.
      n_fft: length of a frame and of its Hann window, in samples.
      hop: distance between frames, in samples.

    Raises:
      ValueError: frames do not overlap.
    """
    if hop >= n_fft:
        raise ValueError(f"frames must overlap: hop {hop} must be below n_fft {n_fft}")
    window = hann(n_fft)  # [n_fft]
    frames = jnp.fft.irfft(spectrum, n_fft) * window[None, None, :]
    valid = jnp.ones((1, spectrum.shape[1]), bool) if mask is None else mask
    frames = frames if mask is None else jnp.where(mask[:, :, None], frames, 0.0)
    total = _overlap_add(frames, hop)
    weight = _overlap_add(jnp.where(valid[:, :, None], jnp.square(window)[None, None], 0.0), hop)
    tiny = jnp.finfo(jnp.float32).tiny
    # At the very ends the windows can be 0, and so is the sum of the frames.
    padded_waveform = total / jnp.where(weight > tiny, weight, 1.0)
    # Frame 0 is centred on the waveform's first sample, so half a frame lies before it.
    start = n_fft // 2
    return padded_waveform[:, start : start + (spectrum.shape[1] - 1) * hop]


def _overlap_add(frames: Float[Array, "batch frames n_fft"], hop: int) -> Float[Array, "batch time"]:
    """The sum of overlapping frames, where frame t begins at sample ``t * hop``.

    Each frame is split into blocks of ``hop`` samples: block i of frame t belongs to block ``t + i`` of the waveform.
    Sums of shifted blocks are faster than a scatter.
    """
    batch, frame_count, n_fft = frames.shape
    blocks = -(-n_fft // hop)  # of each frame, rounded up
    frames = jnp.pad(frames, [(0, 0), (0, 0), (0, blocks * hop - n_fft)])
    frames = frames.reshape(batch, frame_count, blocks, hop)
    shifted = [jnp.pad(frames[:, :, i], [(0, 0), (i, blocks - 1 - i), (0, 0)]) for i in range(blocks)]
    return functools.reduce(jnp.add, shifted).reshape(batch, -1)


@check_shapes
def mel_to_power(
    mel: Float[Array, "batch frames n_mels"],
    *,
    sample_rate: int = 16000,
    n_fft: int = 400,
    f_max: float | None = None,
    iterations: int = 100,
) -> Float[Array, "batch frames bins"]:
    """The power spectrum ``x >= 0`` that minimises ``|x @ filters - mel|^2``, for the mel filters of `mel_filters`.

    It is found by ``iterations`` steps of accelerated projected gradient descent (FISTA: Beck and Teboulle 2009, eq.
    4.1-4.3), which start from the clipped pseudo-inverse. ``mel`` is power, not its logarithm; see
    `audio.mel_filters` for the other arguments.
    """
    filters = np.asarray(mel_filters(sample_rate, n_fft, mel.shape[-1], f_max=f_max), np.float64)
    # The spectral norm. For filters divided by it, a gradient step of size 1 never overshoots.
    scale = np.linalg.norm(filters, 2)
    a = jnp.asarray(filters / scale, jnp.float32)
    target = mel / jnp.float32(scale)
    start = jnp.maximum(target @ jnp.asarray(np.linalg.pinv(filters / scale), jnp.float32), 0.0)

    def step(carry, _):
        """A step of FISTA on ``|x a - target|^2 / 2``: x is the estimate, y the extrapolated point, t the momentum."""
        x, y, t = carry
        x_new = jnp.maximum(y - (y @ a - target) @ a.T, 0.0)
        t_new = (1.0 + jnp.sqrt(1.0 + 4.0 * t * t)) / 2.0
        y_new = x_new + (t - 1.0) / t_new * (x_new - x)
        return (x_new, y_new, t_new), None

    (x, _, _), _ = jax.lax.scan(step, (start, start, jnp.float32(1.0)), length=iterations)
    return x


@check_shapes
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

    Each iteration takes the phase of the STFT of the last estimate, extrapolated by ``momentum``. Without momentum this
    is the algorithm of Griffin and Lim 1984, with it that of Perraudin et al. 2013, algorithm 2, as in
    ``librosa.griffinlim``.

    Args:
      magnitude: the magnitude spectrum.
      n_fft, hop: length of a frame of the STFT and distance between frames, in samples.
      iterations: number of iterations; more of them come nearer to the magnitude.
      momentum: 0 or more.
      keys: one random key per example, from which the initial phases are drawn; None: they are zero.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    # Phases are kept as complex numbers of modulus 1.
    if keys is None:
        phases = jnp.ones(magnitude.shape, jnp.complex64)
    else:
        turns = jax.vmap(lambda key: jax.random.uniform(key, magnitude.shape[1:]))(keys)
        phases = jnp.exp(2j * jnp.pi * turns).astype(jnp.complex64)

    def step(carry, _):
        """One iteration: the phases of the STFT of the waveform that the current phases give; no output per step."""
        phases, last_spectrum = carry
        waveform = istft(magnitude * phases, n_fft=n_fft, hop=hop)
        spectrum = stft(waveform, n_fft=n_fft, hop=hop)
        extrapolated = spectrum - (momentum / (1.0 + momentum)) * last_spectrum
        return (extrapolated / (jnp.abs(extrapolated) + tiny), spectrum), None

    (phases, _), _ = jax.lax.scan(step, (phases, jnp.zeros_like(phases)), length=iterations)
    return istft(magnitude * phases, n_fft=n_fft, hop=hop)


@check_shapes
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

    `mel_to_power` estimates the power spectrum and `griffin_lim` its phase; the other arguments are theirs.
    """
    power = mel_to_power(jnp.exp(log_mel), sample_rate=sample_rate, n_fft=n_fft, f_max=f_max)
    return griffin_lim(jnp.sqrt(power), n_fft=n_fft, hop=hop, iterations=iterations, keys=keys)
