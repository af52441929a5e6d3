"""Pitch and energy of speech, frame by frame; for use inside a jitted program."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.preprocess.audio import fft_length, hann, split_frames, valid_samples


class Pitch(NamedTuple):
    """The fundamental frequency of each frame of a waveform, from `yin`."""

    frequency: Float[Array, "batch frames"]
    """In Hz; 0 in frames that are not voiced."""
    aperiodicity: Float[Array, "batch frames"]
    """The cumulative mean normalised difference at the period, from 0 (periodic) to about 1 (noise); 1 in padding."""
    mask: Bool[Array, "batch frames"]
    """True on valid frames."""

    @property
    def voiced(self) -> Bool[Array, "batch frames"]:
        """True on frames that have a pitch."""
        return self.frequency > 0


@check_shapes
def yin(
    waveform: Shaped[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    sample_rate: int = 16000,
    hop: int = 200,
    f_min: float = 60.0,
    f_max: float = 500.0,
    window: int | None = None,
    threshold: float = 0.1,
    voicing_threshold: float = 0.5,
    silence_db: float = -40.0,
) -> Pitch:
    """The fundamental frequency of each of the ``1 + time // hop`` frames of a waveform, by YIN, and which are voiced.

    With ``W`` the window, and sums over the ``W`` samples of a frame, the difference function and its cumulative mean
    normalisation are::

        d(k)  = sum_j (x_j - x_{j+k})^2
        d'(k) = d(k) / ((1 / k) sum_{i=1..k} d(i)),   d'(0) = 1

    The period is the smallest lag ``k`` at which ``d'`` has a local minimum below ``threshold``, else the lag of its
    smallest value, refined by a parabola through ``d'`` at three lags. De Cheveigné and Kawahara 2002, J. Acoust. Soc.
    Am. 111(4), eq. 6 to 8 and steps 2 to 5. A frame is voiced if ``d'`` at the period is below ``voicing_threshold``
    and the frame is not silent.

    Frame t is centred on sample ``t * hop``, as in `audio.stft`; beyond its ends the waveform is zero. The difference
    function is computed by an FFT.

    Args:
      waveform: int16 PCM, or floats in [-1, 1].
      mask: True on valid samples, which come first; None: all are valid. Padding has no influence: the frames are those
        of the waveform without it.
      sample_rate: in Hz.
      hop: samples from one frame to the next.
      f_min, f_max: lowest and highest pitch, in Hz.
      window: ``W``, in samples; None: 40 ms, or a period of ``f_min`` if that is longer.
      threshold: of ``d'``, for the choice of the lag.
      voicing_threshold: of ``d'`` at the chosen lag. The larger it is, the more frames are voiced.
      silence_db: frames this far (in dB of mean power) below the loudest frame of the waveform are not voiced.

    Raises:
      ValueError: the frequencies are not ``0 < f_min < f_max <= sample_rate / 4``, or ``hop`` or ``window`` is not
        positive.
      TypeError: the waveform is neither int16 nor floating.

    Example::

        time = jnp.arange(16000) / 16000
        yin(jnp.sin(2 * jnp.pi * 200 * time)[None]).frequency[0, 40]  # 200.0
    """
    if not 0 < f_min < f_max <= sample_rate / 4:
        raise ValueError(
            f"pitch is searched from f_min above 0 to f_max of at most a quarter of the sample rate, got {f_min} to "
            f"{f_max} Hz at {sample_rate} Hz"
        )
    shortest, longest = math.floor(sample_rate / f_max), math.ceil(sample_rate / f_min)  # periods in samples
    window = max(round(0.04 * sample_rate), longest) if window is None else window
    if hop < 1 or window < 1:
        raise ValueError(f"hop and window must be at least 1 sample, got {hop} and {window}")
    samples, frame_mask = valid_samples(waveform, mask, hop)
    frames = split_frames(samples, window + longest + 1, hop)
    # Lags from 0 to the longest period and one more, so that both ends of the range can be a local minimum.
    normalised = _normalised_difference(frames, window, longest + 1)
    period, aperiodicity = _choose_periods(normalised, max(shortest, 1), longest, threshold)
    power = jnp.square(frames).mean(axis=-1)
    loudest = jnp.max(jnp.where(frame_mask, power, 0.0), axis=1, keepdims=True)
    is_loud = (power > 0) & (power >= loudest * 10 ** (silence_db / 10))
    voiced = frame_mask & is_loud & (aperiodicity < voicing_threshold)
    frequency = jnp.where(voiced, jnp.clip(sample_rate / period, f_min, f_max), 0.0)
    return Pitch(frequency, jnp.where(frame_mask, aperiodicity, 1.0), frame_mask)


def _normalised_difference(frames: Float[Array, "batch frames time"], window: int, longest: int):
    """``d'(k)`` of each frame for the lags k from 0 to ``longest``, ``[B, F, longest + 1]``; see `yin`."""
    # d(k) = sum_j x_j^2 + sum_j x_{j+k}^2 - 2 sum_j x_j x_{j+k}; the last sum is a correlation, computed by an FFT that
    # is long enough not to wrap around for these lags.
    size = fft_length(frames.shape[-1])
    head = jnp.fft.rfft(frames[..., :window], size)
    correlation = jnp.fft.irfft(jnp.conj(head) * jnp.fft.rfft(frames, size), size)[..., : longest + 1]
    total = jnp.pad(jnp.cumsum(jnp.square(frames), axis=-1), [(0, 0), (0, 0), (1, 0)])
    energy = total[..., window : window + longest + 1] - total[..., : longest + 1]
    difference = jnp.maximum(energy[..., :1] + energy - 2 * correlation, 0.0)
    difference = difference.at[..., 0].set(0.0)
    running_sum = jnp.cumsum(difference, axis=-1)
    # A silent frame differs nowhere: it counts as noise (1), not as periodic.
    is_zero = running_sum <= jnp.finfo(jnp.float32).tiny
    lags = jnp.arange(longest + 1)[None, None, :]
    return jnp.where(is_zero, 1.0, difference * lags / jnp.where(is_zero, 1.0, running_sum))


def _choose_periods(
    normalised: Float[Array, "batch frames lags"], shortest: int, longest: int, threshold: float
):
    """``(period, difference)`` of each frame, in samples: the lag that `yin` chooses from ``shortest`` to ``longest``,
    refined by a parabola, and ``d'`` at the lag. ``normalised``: ``d'`` of the lags from 0 to ``longest + 1``."""
    lags = jnp.arange(longest + 2)[None, None, :]
    in_range = (lags >= shortest) & (lags <= longest)
    before, after = jnp.roll(normalised, 1, axis=-1), jnp.roll(normalised, -1, axis=-1)
    is_minimum = (normalised <= before) & (normalised < after) & in_range
    is_below = is_minimum & (normalised < threshold)
    smallest = jnp.argmin(jnp.where(in_range, normalised, jnp.inf), axis=-1)
    lag = jnp.where(is_below.any(axis=-1), jnp.argmax(is_below, axis=-1), smallest)
    left, middle, right = (
        jnp.take_along_axis(x, lag[..., None], axis=-1)[..., 0] for x in (before, normalised, after)
    )
    return lag + _vertex(left, middle, right), middle


def _vertex(left, middle, right):
    """Position, from -0.5 to 0.5, of the vertex of the parabola through three values at -1, 0 and 1; 0 where they have
    no minimum."""
    curvature = left - 2 * middle + right
    is_convex = curvature > 0
    return jnp.where(
        is_convex, jnp.clip((left - right) / (2 * jnp.where(is_convex, curvature, 1.0)), -0.5, 0.5), 0.0
    )


@check_shapes
def log_energy(
    waveform: Shaped[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    window: int = 400,
    hop: int = 200,
    floor: float = 1e-8,
) -> tuple[Float[Array, "batch frames"], Bool[Array, "batch frames"]]:
    """``(energy, frame_mask)``: the natural logarithm of the mean power of each of the ``1 + time // hop`` frames.

    ``log(max(sum_j (w_j x_j)^2 / sum_j w_j^2, floor))`` with a periodic Hann window ``w`` of ``window`` samples, frame
    t centred on sample ``t * hop``. By Parseval's theorem the sum is, but for a constant, the squared L2 norm of the
    magnitude spectrum, the energy of FastSpeech 2 (Ren et al. 2021, arXiv:2006.04558, sec. 2.3). A sound that is louder
    by x dB has an energy larger by ``x log(10) / 10``.

    Args:
      waveform: int16 PCM, or floats in [-1, 1].
      mask: True on valid samples, which come first; None: all are valid. The energy of padding is 0.
      window, hop: length of a frame and distance between frames, in samples.
      floor: lower limit of the mean power, so that the logarithm of silence is finite.

    Raises:
      ValueError: ``window`` is below 2, or ``hop`` or ``floor`` is not positive.
      TypeError: the waveform is neither int16 nor floating.

    Example::

        time = jnp.arange(16000) / 16000
        log_energy(jnp.sin(2 * jnp.pi * 200 * time)[None])[0][0, 40]  # log(1 / 2)
    """
    if window < 2 or hop < 1 or floor <= 0:
        raise ValueError(
            f"window must be at least 2, hop at least 1 and floor above 0, got {window}, {hop} and {floor}"
        )
    samples, frame_mask = valid_samples(waveform, mask, hop)
    weights = jnp.square(hann(window))
    power = (jnp.square(split_frames(samples, window, hop)) @ weights) / weights.sum()
    return jnp.where(frame_mask, jnp.log(jnp.maximum(power, floor)), 0.0), frame_mask


@check_shapes
def token_means(
    values: Float[Array, "batch frames"],
    durations: Shaped[Array, "batch tokens"],
    mask: Bool[Array, "batch frames"] | None = None,
) -> tuple[Float[Array, "batch tokens"], Bool[Array, "batch tokens"]]:
    """``(means, has_value)``: the mean of the frames' values over each token, and which tokens have any valid frame.

    Łańcucki 2021, arXiv:2006.06873, sec. 2.1, averages pitch so.

    Args:
      values: a value for each frame.
      durations: frames of each token, int; the tokens follow each other from frame 0 on.
      mask: True on frames that count, such as voiced ones; None: all do.

    Returns:
      The means, 0 for a token without valid frames.

    Example::

        token_means(jnp.array([[1.0, 3.0, 5.0]]), jnp.array([[2, 1]]))[0]  # [[2.0, 5.0]]
    """
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    ends = jnp.cumsum(durations, axis=1)
    frame = jnp.arange(values.shape[1])[None, :, None]
    # Frame t belongs to token n if its duration begins at t or before and ends after t: [B, frames, tokens].
    belongs = (frame < ends[:, None, :]) & (frame >= (ends - durations)[:, None, :]) & mask[:, :, None]
    count = belongs.sum(axis=1)
    total = jnp.einsum("bfn,bf->bn", belongs.astype(values.dtype), jnp.where(mask, values, 0.0))
    return total / jnp.maximum(count, 1), count > 0


@check_shapes
def fill_gaps(
    values: Float[Array, "batch tokens"], valid: Bool[Array, "batch tokens"]
) -> Float[Array, "batch tokens"]:
    """Values with those that are not ``valid`` interpolated linearly by position between the nearest valid ones.

    Before the first and after the last valid value these continue; without any valid value all are 0. FastSpeech 2
    fills the pitch of unvoiced sounds so (Ren et al. 2021, arXiv:2006.04558, appendix).

    Example::

        fill_gaps(jnp.array([[1.0, 0.0, 3.0]]), jnp.array([[True, False, True]]))  # [[1.0, 2.0, 3.0]]
    """
    count = values.shape[1]
    position = jnp.arange(count)[None, :]
    # Position of the last valid value up to each position, and of the next one from it on; outside if there is none.
    last = jax.lax.cummax(jnp.where(valid, position, -1), axis=1)
    following = jax.lax.cummin(jnp.where(valid, position, count), axis=1, reverse=True)
    has_last, has_following = last >= 0, following < count
    last, following = jnp.where(has_last, last, following), jnp.where(has_following, following, last)
    before, after = (
        jnp.take_along_axis(values, jnp.clip(index, 0, count - 1), axis=1) for index in (last, following)
    )
    weight = (position - last) / jnp.maximum(following - last, 1)
    return jnp.where(has_last | has_following, before + weight * (after - before), 0.0)
