"""Waveforms to log-mel frames, and SpecAugment; for use inside a jitted training step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Shaped

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import ExampleKeys


def to_float_waveform(waveform: Shaped[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Float32 in [-1, 1], from int16 PCM (divided by 32768) or from floats (unchanged).

    Raises:
      TypeError: neither int16 nor floating.
    """
    if waveform.dtype == jnp.int16:
        return waveform.astype(jnp.float32) / 32768.0
    if jnp.issubdtype(waveform.dtype, jnp.floating):
        return waveform.astype(jnp.float32)
    raise TypeError(f"a waveform is int16 PCM or floating in [-1, 1], got {waveform.dtype}")


def hz_to_mel(frequency: np.ndarray | float) -> np.ndarray:
    """Slaney's mel scale: linear below 1 kHz (15 mels), logarithmic above (27 mels to a factor of 6.4)."""
    frequency = np.asarray(frequency, np.float64)
    return np.where(
        frequency < 1000.0,
        frequency * 3.0 / 200.0,
        15.0 + 27.0 * np.log(np.maximum(frequency, 1000.0) / 1000.0) / np.log(6.4),
    )


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """The inverse of :func:`hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    return np.where(
        mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp(np.log(6.4) * (np.maximum(mel, 15.0) - 15.0) / 27.0)
    )


@functools.lru_cache(maxsize=16)
def mel_filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float = 0.0, f_max: float | None = None):
    """Mel filters, float32 ``[n_fft // 2 + 1, n_mels]``: triangles on Slaney's scale, each of unit area in Hz.

    ``librosa.filters.mel`` (norm="slaney", htk=False), transposed. ``f_min``, ``f_max``: lowest and highest frequency
    in Hz; None: half the sample rate.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    edges = mel_to_hz(np.linspace(hz_to_mel(f_min), hz_to_mel(f_max), n_mels + 2))
    frequency = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    low, centre, high = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    triangles = np.maximum(
        0.0, np.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre))
    )
    return (triangles * 2.0 / (high - low)).astype(np.float32)


def _frames(waveform, n_fft: int, hop: int, pad_mode: str = "constant"):
    """Frames ``[B, 1 + T // hop, n_fft]`` of a waveform ``[B, T]``: frame t is centred on sample ``t * hop``.

    Made of slices, which are faster than a gather.
    """
    count = 1 + waveform.shape[1] // hop
    blocks = -(-n_fft // hop)
    total = (count - 1 + blocks) * hop
    waveform = jnp.pad(waveform, [(0, 0), (n_fft // 2, n_fft // 2)], mode=pad_mode)
    waveform = jnp.pad(waveform, [(0, 0), (0, max(total - waveform.shape[1], 0))])[:, :total]
    table = waveform.reshape(waveform.shape[0], -1, hop)
    parts = [table[:, i : i + count, : min(hop, n_fft - i * hop)] for i in range(blocks)]
    return jnp.concatenate(parts, axis=-1)


def hann(n_fft: int) -> np.ndarray:
    """The periodic Hann window, float32."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def stft(
    waveform: Float[Array, "batch time"], *, n_fft: int, hop: int, pad_mode: str = "constant"
) -> Complex[Array, "batch frames bins"]:
    """Short-time Fourier transform ``[B, 1 + time // hop, n_fft // 2 + 1]`` with Hann windows of ``n_fft`` samples.

    Frame t is centred on sample ``t * hop``; beyond its ends the waveform is zero, or continued by another ``pad_mode``
    of ``jnp.pad``. ``librosa.stft(..., center=True, pad_mode=pad_mode)``, time before frequency.
    """
    return jnp.fft.rfft(_frames(waveform, n_fft, hop, pad_mode) * hann(n_fft)[None, None, :])


def log_mel(
    waveform: Shaped[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    sample_rate: int = 16000,
    n_fft: int = 400,
    hop: int = 160,
    n_mels: int = 80,
    f_min: float = 0.0,
    f_max: float | None = None,
    floor: float = 1e-10,
) -> tuple[Float[Array, "batch frames n_mels"], Bool[Array, "batch frames"]]:
    """Natural logarithm of the mel power spectrum, and the mask of its frames; ``frames = 1 + time // hop``.

    ``log(max(|STFT|^2 @ mel, floor))`` with a periodic Hann window of ``n_fft`` samples, frame t centred on sample
    ``t * hop`` and zeros beyond the ends: ``librosa.feature.melspectrogram(..., center=True, pad_mode="constant")``.
    It is computed by an FFT, not a matrix product, which is four times faster on the CPU.

    ::

        frames, frame_mask = log_mel(batch["audio"], batch["audio_mask"], n_mels=40)  # [B, 401, 40], [B, 401]

    Args:
      waveform: int16 PCM, or floats in [-1, 1].
      mask: True on content, which must be a prefix; None: all is content. Padding has no influence: a padded waveform
        of ``n`` samples has the ``1 + n // hop`` frames of the unpadded one (none if ``n = 0``).
      sample_rate: Hz.
      n_fft, hop: length of a frame and distance between frames, in samples.
      n_mels, f_min, f_max: see `mel_filters`.
      floor: smallest power.

    Raises:
      ValueError: ``n_fft`` or ``hop`` is not positive, or ``f_max`` is above half the sample rate.
      TypeError: the waveform is neither int16 nor floating.
    """
    if n_fft < 2 or hop < 1:
        raise ValueError(f"n_fft must be at least 2 and hop at least 1, got {n_fft} and {hop}")
    if f_max is not None and not f_min < f_max <= sample_rate / 2:
        raise ValueError(f"f_max must lie in ({f_min}, {sample_rate / 2}] Hz, got {f_max}")
    samples = to_float_waveform(waveform)
    count = 1 + samples.shape[1] // hop
    if mask is None:
        frame_mask = jnp.ones((samples.shape[0], count), bool)
    else:
        samples = jnp.where(mask, samples, 0.0)
        length = mask.sum(axis=1)[:, None]
        frame_mask = (jnp.arange(count)[None, :] <= length // hop) & (length > 0)
    spectrum = stft(samples, n_fft=n_fft, hop=hop)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = power @ mel_filters(sample_rate, n_fft, n_mels, f_min, f_max)
    return jnp.where(frame_mask[:, :, None], jnp.log(jnp.maximum(mel, floor)), 0.0), frame_mask


def whisper_log_mel(
    waveform: Shaped[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    mels: int = 80,
) -> tuple[Float[Array, "batch frames mels"], Bool[Array, "batch frames"]]:
    """Whisper's log-mel frames of a waveform at 16 kHz, and the mask of their content; ``frames = time // 160``, 100
    per second.

    Radford et al. 2022, arXiv:2212.04356, section 2.2; ``WhisperFeatureExtractor`` of ``transformers``, time before
    bands: ``log10(max(|STFT|^2 @ mel, 1e-10))`` with Hann windows of 400 samples and the waveform mirrored beyond its
    ends, clipped at 8 below the largest value of the utterance, plus 4, over 4.

    Args:
      waveform: int16 PCM, or floats in [-1, 1].
      mask: True on content, which must be a prefix; None: all is content. Padding counts as silence: the frames are
        those of the waveform padded with zeros to ``time`` samples. A frame is content if its central sample is.
      mels: number of mel bands.

    Raises:
      TypeError: the waveform is neither int16 nor floating.
      ValueError: the waveform is shorter than a frame's hop of 160 samples.
    """
    n_fft, hop, rate = 400, 160, 16_000
    samples = to_float_waveform(waveform)
    count = samples.shape[1] // hop
    if count == 0:
        raise ValueError(f"Whisper's frames are {hop} samples apart, got a waveform of {samples.shape[1]}")
    if mask is None:
        frame_mask = jnp.ones((samples.shape[0], count), bool)
    else:
        samples = jnp.where(mask, samples, 0.0)
        frame_mask = mask[:, ::hop][:, :count]
    spectrum = stft(samples, n_fft=n_fft, hop=hop, pad_mode="reflect")[:, :count]
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    logs = jnp.log10(jnp.maximum(power @ mel_filters(rate, n_fft, mels), 1e-10))
    logs = jnp.maximum(logs, logs.max(axis=(1, 2), keepdims=True) - 8.0)
    return (logs + 4.0) / 4.0, frame_mask


def normalize_frames(
    frames: Float[Array, "batch frames n_mels"],
    mask: Bool[Array, "batch frames"] | None = None,
    *,
    per_bin: bool = False,
    eps: float = 1e-5,
) -> Float[Array, "batch frames n_mels"]:
    """Scales the content of each utterance to mean 0 and variance 1, over all bins together or ``per_bin``, and sets
    padding to 0.

    ``mask``: True on content; None: all is content. ``eps`` is added to the variance.
    """
    if mask is None:
        mask = jnp.ones(frames.shape[:2], bool)
    axes = (1,) if per_bin else (1, 2)
    weights = jnp.broadcast_to(mask[:, :, None], frames.shape)
    count = jnp.maximum(weights.sum(axis=axes, keepdims=True), 1).astype(frames.dtype)
    mean = jnp.where(weights, frames, 0.0).sum(axis=axes, keepdims=True) / count
    centred = jnp.where(weights, frames - mean, 0.0)
    variance = jnp.square(centred).sum(axis=axes, keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + eps)


def spec_augment(
    frames: Float[Array, "batch frames n_mels"],
    keys: ExampleKeys | None,
    mask: Bool[Array, "batch frames"] | None = None,
    *,
    time_masks: int = 2,
    max_time_fraction: float = 0.1,
    freq_masks: int = 2,
    max_freq_bins: int = 10,
    fill: float = 0.0,
) -> Float[Array, "batch frames n_mels"]:
    """SpecAugment: sets random bands of time and of frequency to ``fill``. Park et al. 2019, arXiv:1904.08779, without
    time warping.

    Args:
      frames: log-mel frames.
      keys: one random key per example; None: nothing is changed.
      mask: True on content; None: all is content.
      time_masks, freq_masks: number of bands of each kind.
      max_time_fraction: each time band covers up to this fraction of the example's content, uniformly drawn.
      max_freq_bins: each frequency band covers up to this many bins, uniformly drawn.
      fill: the value inside the bands.
    """
    if keys is None:
        return frames
    _, length, bins = frames.shape
    valid = jnp.full(frames.shape[:1], length) if mask is None else mask.sum(axis=1)

    def bands(key, number, largest, extent, size):
        """``[size]``: True inside any of ``number`` bands, each at most ``largest`` wide and within the first
        ``extent`` positions."""
        draws = jax.random.uniform(key, (2, number, 1))
        width = jnp.floor(draws[0] * (largest + 1.0))
        start = jnp.floor(draws[1] * (jnp.maximum(extent - width, 0.0) + 1.0))
        position = jnp.arange(size, dtype=jnp.float32)[None, :]
        return ((position >= start) & (position < start + width)).any(axis=0)

    def example(key, x, valid):
        valid = valid.astype(jnp.float32)
        time = bands(
            fold_in_name(key, "time"), time_masks, jnp.floor(max_time_fraction * valid), valid, length
        )
        freq = bands(
            fold_in_name(key, "frequency"), freq_masks, float(min(max_freq_bins, bins)), float(bins), bins
        )
        return jnp.where(time[:, None] | freq[None, :], fill, x)

    return jax.vmap(example)(fold_in_name(keys, "spec_augment"), frames, valid)
