"""Waveforms to log-mel frames, and SpecAugment; for use inside a jitted training step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Shaped

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import ExampleKeys


@check_shapes
def to_float_waveform(waveform: Shaped[Array, "batch time"]) -> Float[Array, "batch time"]:
    """A waveform in float32, in [-1, 1]: int16 PCM is divided by 32768, floats keep their values.

    Raises:
      TypeError: neither int16 nor floating.
    """
    if waveform.dtype == jnp.int16:
        return waveform.astype(jnp.float32) / 32768.0
    if jnp.issubdtype(waveform.dtype, jnp.floating):
        return waveform.astype(jnp.float32)
    raise TypeError(f"a waveform is int16 PCM or floating in [-1, 1], got {waveform.dtype}")


def hz_to_mel(frequency: np.ndarray | float) -> np.ndarray:
    """Frequencies in Hz on Slaney's mel scale: linear up to 1 kHz (15 mels), then 27 mels for each factor of 6.4."""
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

    They are those of ``librosa.filters.mel`` (norm="slaney", htk=False), transposed. ``f_min`` and ``f_max`` are the
    lowest and the highest frequency in Hz; ``f_max`` None is half the sample rate.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    # Triangle k rises from edge k to edge k + 1 and falls to edge k + 2; the edges are evenly spaced in mels.
    edges = mel_to_hz(np.linspace(hz_to_mel(f_min), hz_to_mel(f_max), n_mels + 2))
    frequency = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)[:, None]  # of each FFT bin
    low, centre, high = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    triangles = np.maximum(
        0.0, np.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre))
    )
    return (triangles * 2.0 / (high - low)).astype(np.float32)


def split_frames(waveform, n_fft: int, hop: int, pad_mode: str = "constant"):
    """Overlapping frames ``[B, 1 + T // hop, n_fft]`` of a waveform ``[B, T]``; frame t is centred on ``t * hop``.

    The waveform is split into blocks of ``hop`` samples, and a frame concatenated from consecutive blocks. These slices
    are faster than a gather. ``pad_mode``: how the waveform continues beyond its ends, a mode of ``jnp.pad``.
    """
    frame_count = 1 + waveform.shape[1] // hop
    blocks_per_frame = -(-n_fft // hop)  # rounded up: the last block of a frame may be cut
    total = (frame_count - 1 + blocks_per_frame) * hop
    waveform = jnp.pad(waveform, [(0, 0), (n_fft // 2, n_fft // 2)], mode=pad_mode)
    waveform = jnp.pad(waveform, [(0, 0), (0, max(total - waveform.shape[1], 0))])[:, :total]
    blocks = waveform.reshape(waveform.shape[0], -1, hop)
    # Block i of every frame: frame t begins at block t.
    parts = [blocks[:, i : i + frame_count, : min(hop, n_fft - i * hop)] for i in range(blocks_per_frame)]
    return jnp.concatenate(parts, axis=-1)


def valid_samples(waveform, mask, hop: int):
    """``(samples, frame_mask)``: a float waveform with zeros in its padding, and which of ``1 + time // hop`` frames
    are valid: the ``1 + n // hop`` frames of n valid samples, none if ``n = 0``. ``mask``: see `log_mel`."""
    samples = to_float_waveform(waveform)
    frame_count = 1 + samples.shape[1] // hop
    if mask is None:
        return samples, jnp.ones((samples.shape[0], frame_count), bool)
    length = mask.sum(axis=1)[:, None]
    frame_mask = (jnp.arange(frame_count)[None, :] <= length // hop) & (length > 0)
    return jnp.where(mask, samples, 0.0), frame_mask


def fft_length(size: int) -> int:
    """The smallest even length of an FFT from ``size`` on that has no prime factors but 2, 3 and 5."""
    length = size + size % 2
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2


def hann(n_fft: int) -> np.ndarray:
    """The periodic Hann window, float32."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


@check_shapes
def stft(
    waveform: Float[Array, "batch time"], *, n_fft: int, hop: int, pad_mode: str = "constant"
) -> Complex[Array, "batch frames bins"]:
    """Short-time Fourier transform ``[B, 1 + time // hop, n_fft // 2 + 1]`` with Hann windows of ``n_fft`` samples.

    Frame t is centred on sample ``t * hop``; beyond its ends the waveform is zero, or continued by another ``pad_mode``
    of ``jnp.pad``. The result is that of ``librosa.stft(..., center=True, pad_mode=pad_mode)`` with time before
    frequency.
    """
    return jnp.fft.rfft(split_frames(waveform, n_fft, hop, pad_mode) * hann(n_fft)[None, None, :])


@check_shapes
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
    """``(frames, frame_mask)``: the natural logarithm of the mel power spectrum, with ``1 + time // hop`` frames.

    ``log(max(|STFT|^2 @ mel, floor))`` with a periodic Hann window of ``n_fft`` samples, frame t centred on sample
    ``t * hop`` and zeros beyond the ends: ``librosa.feature.melspectrogram(..., center=True, pad_mode="constant")``.
    The STFT is computed by an FFT, which is four times faster on the CPU than a matrix product.

    ::

        frames, frame_mask = log_mel(batch["audio"], batch["audio_mask"], n_mels=40)  # [B, 401, 40], [B, 401]

    Args:
      waveform: int16 PCM, or floats in [-1, 1].
      mask: True on valid samples, which come first; None: all are valid. Padding has no influence: ``frame_mask`` marks
        the ``1 + n // hop`` frames of the n valid samples (none if ``n = 0``), and they are those of the unpadded
        waveform.
      sample_rate: in Hz.
      n_fft, hop: length of a frame and distance between frames, in samples.
      n_mels, f_min, f_max: see `mel_filters`.
      floor: lower limit of the mel power, so that the logarithm of silence is finite.

    Raises:
      ValueError: ``n_fft`` or ``hop`` is not positive, or ``f_max`` is above half the sample rate.
      TypeError: the waveform is neither int16 nor floating.
    """
    if n_fft < 2 or hop < 1:
        raise ValueError(f"n_fft must be at least 2 and hop at least 1, got {n_fft} and {hop}")
    if f_max is not None and not f_min < f_max <= sample_rate / 2:
        raise ValueError(f"f_max must lie in ({f_min}, {sample_rate / 2}] Hz, got {f_max}")
    samples, frame_mask = valid_samples(waveform, mask, hop)
    spectrum = stft(samples, n_fft=n_fft, hop=hop)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = power @ mel_filters(sample_rate, n_fft, n_mels, f_min, f_max)
    return jnp.where(frame_mask[:, :, None], jnp.log(jnp.maximum(mel, floor)), 0.0), frame_mask


@check_shapes
def whisper_log_mel(
    waveform: Shaped[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    mels: int = 80,
) -> tuple[Float[Array, "batch frames mels"], Bool[Array, "batch frames"]]:
    """``(frames, frame_mask)``: Whisper's ``time // 160`` log-mel frames of a waveform at 16 kHz, 100 per second.

    The values are ``log10(max(|STFT|^2 @ mel, 1e-10))`` with Hann windows of 400 samples and the waveform mirrored
    beyond its ends; they are clipped to at most 8 below the largest value of the utterance, then 4 is added and the sum
    divided by 4. So does ``WhisperFeatureExtractor`` of ``transformers``, whose axes are bands before time. Radford et
    al. 2022, arXiv:2212.04356, section 2.2.

    Args:
      waveform: int16 PCM, or floats in [-1, 1].
      mask: True on valid samples, which come first; None: all are valid. Padding counts as silence: the frames are
        those of the waveform padded with zeros to ``time`` samples. A frame is valid if its central sample is.
      mels: number of mel bands.

    Raises:
      TypeError: the waveform is neither int16 nor floating.
      ValueError: the waveform is shorter than a frame's hop of 160 samples.
    """
    n_fft, hop, rate = 400, 160, 16_000
    samples = to_float_waveform(waveform)
    frame_count = samples.shape[1] // hop
    if frame_count == 0:
        raise ValueError(f"Whisper's frames are {hop} samples apart, got a waveform of {samples.shape[1]}")
    if mask is None:
        frame_mask = jnp.ones((samples.shape[0], frame_count), bool)
    else:
        samples = jnp.where(mask, samples, 0.0)
        frame_mask = mask[:, ::hop][:, :frame_count]
    spectrum = stft(samples, n_fft=n_fft, hop=hop, pad_mode="reflect")[:, :frame_count]
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    logs = jnp.log10(jnp.maximum(power @ mel_filters(rate, n_fft, mels), 1e-10))
    logs = jnp.maximum(logs, logs.max(axis=(1, 2), keepdims=True) - 8.0)
    return (logs + 4.0) / 4.0, frame_mask


@check_shapes
def normalize_frames(
    frames: Float[Array, "batch frames n_mels"],
    mask: Bool[Array, "batch frames"] | None = None,
    *,
    per_bin: bool = False,
    eps: float = 1e-5,
) -> Float[Array, "batch frames n_mels"]:
    """Standardises the valid frames of each utterance to mean 0 and variance 1, and sets padding to 0.

    Mean and variance are over the utterance's frames and all mel bins together, or for each bin alone (``per_bin``).
    ``mask``: True on valid frames; None: all are valid. ``eps`` is added to the variance.
    """
    if mask is None:
        mask = jnp.ones(frames.shape[:2], bool)
    axes = (1,) if per_bin else (1, 2)
    valid = jnp.broadcast_to(mask[:, :, None], frames.shape)
    count = jnp.maximum(valid.sum(axis=axes, keepdims=True), 1).astype(frames.dtype)
    mean = jnp.where(valid, frames, 0.0).sum(axis=axes, keepdims=True) / count
    centred = jnp.where(valid, frames - mean, 0.0)
    variance = jnp.square(centred).sum(axis=axes, keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + eps)


@check_shapes
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
      mask: True on valid frames; None: all are valid.
      time_masks, freq_masks: number of bands of time and of frequency.
      max_time_fraction: the width of a time band is drawn uniformly, up to this fraction of the example's valid frames.
      max_freq_bins: the width of a frequency band is drawn uniformly, up to this many bins.
      fill: the value inside the bands.
    """
    if keys is None:
        return frames
    _, length, bins = frames.shape
    # The number of valid frames of each example, [B].
    valid_frames = jnp.full(frames.shape[:1], length) if mask is None else mask.sum(axis=1)

    def random_bands(key, size, *, count, max_width, limit):
        """Bool ``[size]``: True inside any of ``count`` bands of up to ``max_width`` positions, all below ``limit``."""
        draws = jax.random.uniform(key, (2, count, 1))
        width = jnp.floor(draws[0] * (max_width + 1.0))
        start = jnp.floor(draws[1] * (jnp.maximum(limit - width, 0.0) + 1.0))
        position = jnp.arange(size, dtype=jnp.float32)[None, :]
        return ((position >= start) & (position < start + width)).any(axis=0)

    def augment_example(key, x, valid):
        """One example ``[frames, n_mels]`` with its bands; ``valid`` is its number of valid frames."""
        valid = valid.astype(jnp.float32)
        in_time_band = random_bands(
            fold_in_name(key, "time"),
            length,
            count=time_masks,
            max_width=jnp.floor(max_time_fraction * valid),
            limit=valid,
        )
        in_frequency_band = random_bands(
            fold_in_name(key, "frequency"),
            bins,
            count=freq_masks,
            max_width=float(min(max_freq_bins, bins)),
            limit=float(bins),
        )
        return jnp.where(in_time_band[:, None] | in_frequency_band[None, :], fill, x)

    return jax.vmap(augment_example)(fold_in_name(keys, "spec_augment"), frames, valid_frames)
