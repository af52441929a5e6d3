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
    """The fundamental frequency of each frame of a waveform, from `yin` or `track_pitch`."""

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

    Frame t, of ``W`` samples and the longest period, is centred on sample ``t * hop``, as in `audio.stft`; beyond its
    ends the waveform is zero. The sums begin with the frame, so that a short period is measured early, by half the
    difference to the longest one: 6 ms at 200 Hz if ``f_min`` is 60 Hz. The difference function is computed by an FFT.
    A constant added to the waveform changes nothing but the frames at its ends.

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
      silence_db: frames this far (in dB of mean power, without their mean) below the loudest frame of the waveform
        are not voiced.

    Raises:
      ValueError: the frequencies are not ``0 < f_min < f_max <= sample_rate / 4``, or ``hop`` or ``window`` is not
        positive.
      TypeError: the waveform is neither int16 nor floating.

    Example::

        time = jnp.arange(16000) / 16000
        yin(jnp.sin(2 * jnp.pi * 200 * time)[None]).frequency[0, 40]  # 200.0
    """
    analysis = _analyse(waveform, mask, sample_rate, hop, f_min, f_max, window, silence_db)
    period, aperiodicity = _choose_periods(analysis, threshold)
    voiced = analysis.may_be_voiced & (aperiodicity < voicing_threshold)
    frequency = jnp.where(voiced, jnp.clip(sample_rate / period, f_min, f_max), 0.0)
    return Pitch(frequency, jnp.where(analysis.mask, aperiodicity, 1.0), analysis.mask)


@check_shapes
def track_pitch(
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
    octave_cost: float = 0.02,
    jump_cost: float = 0.35,
    voicing_cost: float = 0.14,
    candidates: int = 6,
) -> Pitch:
    """The fundamental frequency of each frame by YIN, and of all frames together the most plausible: without jumps to
    another octave, and with few changes between voiced and unvoiced.

    The lags at which YIN's ``d'`` (see `yin`) has a local minimum are the candidates of a frame. Of all sequences of
    candidates, this is the one of the smallest sum over frames of

    - ``max(d', threshold) + octave_cost log2(lag / smallest lag)`` of a voiced frame, ``voicing_threshold`` of an
      unvoiced one: twice the period has nearly the same ``d'`` as the period;
    - ``jump_cost |log2(f_t / f_{t-1})|`` between two voiced frames;
    - ``voicing_cost`` between a voiced and an unvoiced frame,

    found by dynamic programming. The path finder and its costs are Boersma's (1993, Proc. IFA 17, pp. 97-110, sec. 5),
    for frames every 10 ms; of other ``hop`` the last two are multiplied by 10 ms / hop. Of candidates that cost the
    same, the smallest lag is taken. Without these costs the result is that of `yin`, up to ``candidates``. After a
    jump of an octave upwards the new pitch is found if it lasts for 0.2 s or more.

    Args:
      waveform, mask, sample_rate, hop, f_min, f_max, window, threshold, voicing_threshold, silence_db: as for `yin`.
      octave_cost: of an octave downwards, in each frame.
      jump_cost: of an octave from one frame to the next.
      voicing_cost: of a change between voiced and unvoiced.
      candidates: how many lags of each frame are considered.

    Raises:
      ValueError, TypeError: as `yin`; ``threshold`` is not below ``voicing_threshold``.

    Example::

        time = jnp.arange(16000) / 16000
        track_pitch(jnp.sin(2 * jnp.pi * 200 * time)[None]).frequency[0, 40]  # 200.0
    """
    if threshold >= voicing_threshold:
        raise ValueError(
            f"threshold must be below voicing_threshold, got {threshold} and {voicing_threshold}"
        )
    analysis = _analyse(waveform, mask, sample_rate, hop, f_min, f_max, window, silence_db)
    period, difference = _candidate_periods(analysis, threshold, candidates)
    # The tiny cost of the lag decides between candidates that are alike.
    lower = jnp.log2(jnp.maximum(period / analysis.shortest, 1.0))  # octaves below the highest pitch
    own_cost = jnp.maximum(difference, threshold) + octave_cost * lower + 1e-6 * period
    cost = jnp.where(analysis.may_be_voiced[..., None], own_cost, jnp.inf)
    frequency = jnp.clip(sample_rate / period, f_min, f_max)
    per_frame = 0.01 * sample_rate / hop
    chosen = _best_path(
        cost,
        jnp.log2(frequency),
        voicing_threshold,
        analysis.mask,
        jump_cost * per_frame,
        voicing_cost * per_frame,
    )
    is_voiced = chosen < candidates
    pick = lambda x: jnp.take_along_axis(x, jnp.minimum(chosen, candidates - 1)[..., None], axis=-1)[..., 0]
    # An unvoiced frame has the aperiodicity of its best lag.
    least = jnp.minimum(jnp.where(is_voiced, pick(difference), difference.min(axis=-1)), 1.0)
    aperiodicity = jnp.where(analysis.mask, least, 1.0)
    return Pitch(jnp.where(is_voiced, pick(frequency), 0.0), aperiodicity, analysis.mask)


class _Analysis(NamedTuple):
    """What YIN computes of each frame of a waveform, before a period is chosen."""

    normalised: Float[Array, "batch frames lags"]
    """``d'`` of the lags from 0 to ``longest + 1``."""
    shortest: int
    """Smallest lag that may be chosen."""
    longest: int
    """Largest lag that may be chosen."""
    mask: Bool[Array, "batch frames"]
    """Valid frames."""
    may_be_voiced: Bool[Array, "batch frames"]
    """Valid frames that are not silent."""


def _analyse(waveform, mask, sample_rate, hop, f_min, f_max, window, silence_db) -> _Analysis:
    """The arguments are those of `yin`, which says what is raised."""
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
    total_power = jnp.square(frames).mean(axis=-1)
    # Differences do not depend on the mean, but lose digits by it.
    frames = frames - frames.mean(axis=-1, keepdims=True)
    # Lags from 0 to the longest period and one more, so that both ends of the range can be a local minimum.
    normalised = _normalised_difference(frames, window, longest + 1)
    power = jnp.square(frames).mean(axis=-1)
    loudest = jnp.max(jnp.where(frame_mask, power, 0.0), axis=1, keepdims=True)
    # A frame of one value is silent: what is left of it is rounding, far below 1e-9 of its power.
    is_loud = (power > 1e-9 * total_power) & (power >= loudest * 10 ** (silence_db / 10))
    return _Analysis(normalised, shortest, longest, frame_mask, frame_mask & is_loud)


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


def _minima(analysis: _Analysis):
    """``(is_minimum, in_range)`` ``[B, F, lags]``: lags at which ``d'`` has a local minimum, and those that may be
    chosen."""
    normalised = analysis.normalised
    lags = jnp.arange(normalised.shape[-1])[None, None, :]
    in_range = (lags >= analysis.shortest) & (lags <= analysis.longest)
    before, after = jnp.roll(normalised, 1, axis=-1), jnp.roll(normalised, -1, axis=-1)
    return (normalised <= before) & (normalised < after) & in_range, in_range


def _refine(normalised: Float[Array, "batch frames lags"], lag: Array):
    """``(period, difference)`` ``[B, F, K]``: lags ``[B, F, K]`` moved to the vertex of the parabola through ``d'`` at
    the lag and its neighbours, and ``d'`` at the lag."""
    at = lambda shift: jnp.take_along_axis(normalised, lag + shift, axis=-1)
    left, middle, right = at(-1), at(0), at(1)
    return lag + _vertex(left, middle, right), middle


def _choose_periods(analysis: _Analysis, threshold: float):
    """``(period, difference)`` of each frame, in samples: the lag that `yin` chooses, and ``d'`` at the lag."""
    normalised = analysis.normalised
    is_minimum, in_range = _minima(analysis)
    is_below = is_minimum & (normalised < threshold)
    smallest = jnp.argmin(jnp.where(in_range, normalised, jnp.inf), axis=-1)
    lag = jnp.where(is_below.any(axis=-1), jnp.argmax(is_below, axis=-1), smallest)
    period, difference = _refine(normalised, lag[..., None])
    return period[..., 0], difference[..., 0]


def _candidate_periods(analysis: _Analysis, threshold: float, count: int):
    """``(period, difference)`` ``[B, F, count]``: the lags of each frame at which ``d'`` is smallest, of the local
    minima and the smallest of all; ``difference`` is infinite where there are fewer. Of those below ``threshold`` the
    smallest lags come first."""
    normalised = analysis.normalised
    is_minimum, in_range = _minima(analysis)
    limited = jnp.where(in_range, normalised, jnp.inf)
    is_candidate = is_minimum | (limited <= limited.min(axis=-1, keepdims=True))
    order = jnp.where(is_candidate, jnp.maximum(normalised, threshold), jnp.inf)
    order, lag = jax.lax.top_k(-order, count)  # the first of equals comes first
    period, difference = _refine(normalised, jnp.clip(lag, 1, analysis.longest))
    return period, jnp.where(order > -jnp.inf, difference, jnp.inf)


def _best_path(
    cost: Float[Array, "batch frames candidates"],
    octaves: Float[Array, "batch frames candidates"],
    unvoiced_cost: float,
    mask: Bool[Array, "batch frames"],
    jump_cost: float,
    voicing_cost: float,
) -> Array:
    """The candidate of each frame, or their number K where it is unvoiced, int32 ``[B, F]``: the path of the smallest
    cost, see `track_pitch`.

    Args:
      cost: of each candidate.
      octaves: binary logarithm of their frequency.
      unvoiced_cost: of an unvoiced frame.
      mask: valid frames; the others are unvoiced, at no cost.
      jump_cost, voicing_cost: of the step from one frame to the next.
    """
    count = cost.shape[-1]
    of_frame = jnp.pad(cost, [(0, 0), (0, 0), (0, 1)], constant_values=unvoiced_cost)
    padding = jnp.where(jnp.arange(count + 1) < count, jnp.inf, 0.0)[None, None]
    of_frame = jnp.where(mask[..., None], of_frame, padding)
    is_unvoiced = jnp.arange(count + 1) == count
    changes = jnp.where(is_unvoiced[:, None] != is_unvoiced[None, :], voicing_cost, 0.0)[None]

    def forward(state, frame):
        """The least cost of a path to each state of this frame, and the state that it comes from."""
        so_far, before = state
        frame_cost, now, valid = frame
        jumps = jump_cost * jnp.abs(before[:, :, None] - now[:, None, :])
        step = changes + jnp.pad(jumps, [(0, 0), (0, 1), (0, 1)])
        total = so_far[:, :, None] + jnp.where(valid[:, None, None], step, 0.0)
        return (total.min(axis=1) + frame_cost, now), total.argmin(axis=1).astype(jnp.int32)

    def backward(state, origin):
        """The state of the frame before, on the best path to ``state`` of this frame."""
        return jnp.take_along_axis(origin, state[:, None], axis=1)[:, 0], state

    frames = [jnp.moveaxis(x, 1, 0) for x in (of_frame, octaves, mask)]
    start = (of_frame[:, 0], octaves[:, 0])
    (total, _), origins = jax.lax.scan(forward, start, [x[1:] for x in frames])
    last = total.argmin(axis=1).astype(jnp.int32)
    first, later = jax.lax.scan(backward, last, origins, reverse=True)
    return jnp.concatenate([first[None], later]).T


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
