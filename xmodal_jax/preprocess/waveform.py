"""Augmentation of waveforms: speed, reverberation, noise, loudness, telephone band and companding.

Each function takes one random key for each example, so that the changes of an example depend on neither its batch nor
the number of devices. For use inside a jitted training step.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.checks import check_rates, check_shapes
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.preprocess.audio import fft_length
from xmodal_jax.types import ExampleKeys

DIRECT_SECONDS = 0.0025
"""Time of a room's response, after its first sample, in which there is no echo yet."""


@dataclasses.dataclass(frozen=True)
class WaveformAugmentConfig:
    """Random changes of waveforms in training. The defaults change nothing.

    Raises:
      ValueError: a value outside its range.
    """

    speed: float = 0.0
    """Largest relative change of speed, and with it of the pitch and of the resonances of the voice: 0.15 plays a
    recording 0.85 to 1.15 times as fast; 0: none. Recordings that become too long are cut."""
    reverberation: float = 0.0
    """Probability that a recording sounds as in a room; 0: never."""
    room_seconds: float = 0.6
    """Longest time in which the sound of a room decays by 60 dB (RT60)."""
    noise: float = 0.0
    """Probability that noise is added to a recording; 0: never."""
    noise_db: tuple[float, float] = (0.0, 30.0)
    """Range of the signal-to-noise ratio: of the speech's power to the noise's, in dB."""
    silence_seconds: float = 0.0
    """Longest silence that is put before a recording, and after it; 0: none. Without it recognisers learn that speech
    begins with the first sample, and fail on recordings with pauses. What then is too long is cut."""
    gain_db: float = 0.0
    """Largest change of the loudness in dB, to both sides; 0: none."""
    telephone: float = 0.0
    """Probability that a recording sounds as by telephone: within a random band, compressed to 8 bits (mu-law); 0:
    never."""

    def __post_init__(self):
        """Checks the ranges of the options."""
        check_rates(self, "reverberation", "noise", "telephone")
        if not 0.0 <= self.speed < 1.0:
            raise ValueError(f"speed must lie in [0, 1), got {self.speed}")
        if self.room_seconds <= 0.0:
            raise ValueError(f"room_seconds must be positive, got {self.room_seconds}")
        if self.noise_db[0] > self.noise_db[1]:
            raise ValueError(f"noise_db must be a range, the smaller value first, got {self.noise_db}")
        for name in ("gain_db", "silence_seconds"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed."""
        return self == WaveformAugmentConfig(room_seconds=self.room_seconds, noise_db=self.noise_db)


def augment_waveform(
    waveform: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    keys: ExampleKeys | None,
    config: WaveformAugmentConfig,
    *,
    sample_rate: int,
) -> tuple[Float[Array, "batch time"], Bool[Array, "batch time"]]:
    """``(waveform, mask)`` after the augmentations of ``config``, in the order speed, silence, room, noise, telephone,
    loudness; ``keys=None``: none of them. The result may exceed [-1, 1].

    Args:
      waveform: floats in [-1, 1].
      mask: True on valid samples, which come first. Padding is 0 in the result, and what it holds has no influence; the
        length of the array has, on what is drawn.
      keys: one random key for each example.
      config: what is changed.
      sample_rate: in Hz.

    Example::

        config = WaveformAugmentConfig(speed=0.15, noise=0.5, telephone=0.3)
        waveform, mask = augment_waveform(waveform, mask, keys, config, sample_rate=16_000)
    """
    if keys is None or config.is_identity:
        return waveform, mask
    waveform = jnp.where(mask, waveform, 0.0)
    if config.speed:
        waveform, mask = change_speed(waveform, mask, keys, largest=config.speed)
    if config.silence_seconds:
        longest = int(config.silence_seconds * sample_rate)
        waveform, mask = add_silence(waveform, mask, keys, longest=longest)
    if config.reverberation:
        echoed = reverberate(waveform, keys, sample_rate=sample_rate, seconds=config.room_seconds)
        waveform = _with_probability(config.reverberation, echoed, waveform, fold_in_name(keys, "room?"))
    if config.noise:
        noisy = add_noise(waveform, mask, keys, decibels=config.noise_db)
        waveform = _with_probability(config.noise, noisy, waveform, fold_in_name(keys, "noise?"))
    if config.telephone:
        narrow = telephone(waveform, keys, sample_rate=sample_rate)
        waveform = _with_probability(config.telephone, narrow, waveform, fold_in_name(keys, "telephone?"))
    if config.gain_db:
        decibels = config.gain_db * _uniform(fold_in_name(keys, "gain"), -1.0, 1.0)
        waveform = waveform * 10.0 ** (decibels / 20.0)[:, None]
    return jnp.where(mask, waveform, 0.0), mask


@check_shapes
def change_speed(
    waveform: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    keys: ExampleKeys,
    *,
    largest: float,
) -> tuple[Float[Array, "batch time"], Bool[Array, "batch time"]]:
    """``(waveform, mask)`` played ``r`` times as fast, where ``r`` is uniform in ``1 - largest`` to ``1 + largest``.

    Sample t becomes the value at ``r * t``, by cubic interpolation (Catmull-Rom): pitch and resonances move by the same
    factor, as if another person spoke. What then lies beyond the end of the array is cut.
    """
    factor = _uniform(fold_in_name(keys, "speed"), 1.0 - largest, 1.0 + largest)[:, None]
    length = waveform.shape[1]
    place = factor * jnp.arange(length, dtype=jnp.float32)[None, :]
    before = jnp.floor(place).astype(jnp.int32)
    x = place - before
    samples = lambda offset: jnp.take_along_axis(waveform, jnp.clip(before + offset, 0, length - 1), axis=1)
    a, b, c, d = (samples(offset) for offset in (-1, 0, 1, 2))
    cubic = b + 0.5 * x * (c - a + x * (2.0 * a - 5.0 * b + 4.0 * c - d + x * (3.0 * (b - c) + d - a)))
    valid = place <= mask.sum(axis=1)[:, None] - 1.0
    return jnp.where(valid, cubic, 0.0), valid


@check_shapes
def add_silence(
    waveform: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    keys: ExampleKeys,
    *,
    longest: int,
) -> tuple[Float[Array, "batch time"], Bool[Array, "batch time"]]:
    """``(waveform, mask)`` with silence before and after the valid samples, each of 0 to ``longest`` samples, uniformly
    drawn. The silence is valid; what lies beyond the end of the array is cut."""
    length = waveform.shape[1]
    before, after = (
        jnp.floor(_uniform(fold_in_name(keys, name), 0.0, longest + 1.0)).astype(jnp.int32)[:, None]
        for name in ("before", "after")
    )
    place = jnp.arange(length)[None, :] - before
    moved = jnp.take_along_axis(jnp.where(mask, waveform, 0.0), jnp.clip(place, 0, length - 1), axis=1)
    count = mask.sum(axis=1)[:, None]
    valid = (place < count + after) & (count > 0)
    return jnp.where((place >= 0) & (place < count), moved, 0.0), valid


@check_shapes
def reverberate(
    waveform: Float[Array, "batch time"], keys: ExampleKeys, *, sample_rate: int, seconds: float
) -> Float[Array, "batch time"]:
    """The waveform as it sounds in a random room, with the power that it had.

    The room's response is 1 at time 0 and then normal noise whose power decays by 60 dB in a time that is uniform
    between 0.1 s (or ``seconds``, if that is less) and ``seconds``; the power of all echoes together is 0.05 to 1 times
    that of the direct sound. Polack's model of a diffuse room, Polack 1988 (thesis, Le Mans).
    """
    length = min(waveform.shape[1], int(seconds * sample_rate))
    time = jnp.arange(length)[None, :] / sample_rate
    decay = _uniform(fold_in_name(keys, "decay"), min(0.1, seconds), seconds)[:, None]
    noise = jax.vmap(lambda key: jax.random.normal(key, (length,)))(fold_in_name(keys, "echoes"))
    echoes = jnp.where(time > DIRECT_SECONDS, noise * 10.0 ** (-3.0 * time / decay), 0.0)
    power = jnp.sqrt(_uniform(fold_in_name(keys, "wet"), 0.05, 1.0)[:, None])
    response = power * echoes / jnp.maximum(jnp.linalg.norm(echoes, axis=1, keepdims=True), 1e-9)
    response = response.at[:, 0].set(1.0)
    size = fft_length(waveform.shape[1] + length)
    product = jnp.fft.rfft(waveform, size) * jnp.fft.rfft(response, size)
    echoed = jnp.fft.irfft(product, size)[:, : waveform.shape[1]]
    norm = lambda x: jnp.linalg.norm(x, axis=1, keepdims=True)
    return echoed * norm(waveform) / jnp.maximum(norm(echoed), 1e-9)


@check_shapes
def add_noise(
    waveform: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    keys: ExampleKeys,
    *,
    decibels: tuple[float, float],
) -> Float[Array, "batch time"]:
    """Adds noise whose spectrum falls by 0 to 6 dB for each octave (white to Brownian), uniformly drawn.

    ``decibels``: the range of the ratio of the power of the valid samples to that of the noise, in dB.
    """
    size = fft_length(waveform.shape[1])
    white = jax.vmap(lambda key: jax.random.normal(key, (size,)))(fold_in_name(keys, "noise"))
    slope = _uniform(fold_in_name(keys, "colour"), 0.0, 1.0)[:, None]
    frequency = np.maximum(np.arange(size // 2 + 1), size / 256.0)[None, :]  # flat below rate / 256
    coloured = jnp.fft.irfft(jnp.fft.rfft(white) * frequency**-slope, size)[:, : waveform.shape[1]]
    coloured = jnp.where(mask, coloured, 0.0)
    norm = lambda x: jnp.linalg.norm(x, axis=1, keepdims=True)
    ratio = 10.0 ** (-_uniform(fold_in_name(keys, "noise_db"), *decibels) / 20.0)[:, None]
    return waveform + coloured * ratio * norm(waveform) / jnp.maximum(norm(coloured), 1e-9)


@check_shapes
def telephone(
    waveform: Float[Array, "batch time"], keys: ExampleKeys, *, sample_rate: int
) -> Float[Array, "batch time"]:
    """The waveform without what is below 50 to 400 Hz and above 2.5 to 4 kHz, rounded to 8 bits by mu-law (G.711).

    Both ends are drawn uniformly. Rounding is by 255 levels of ``sign(x) log(1 + 255 |x|) / log(256)`` of the waveform
    divided by its largest value.
    """
    size = fft_length(waveform.shape[1])
    hertz = jnp.fft.rfftfreq(size, 1.0 / sample_rate)[None, :]
    low = _uniform(fold_in_name(keys, "low"), 50.0, 400.0)[:, None]
    high = _uniform(fold_in_name(keys, "high"), 2500.0, 4000.0)[:, None]
    # Edges of about 50 Hz at the low and 200 Hz at the high end, so that no ringing is heard.
    gain = jax.nn.sigmoid((hertz - low) / 12.0) * jax.nn.sigmoid((high - hertz) / 50.0)
    narrow = jnp.fft.irfft(jnp.fft.rfft(waveform, size) * gain, size)[:, : waveform.shape[1]]
    peak = jnp.maximum(jnp.abs(narrow).max(axis=1, keepdims=True), 1e-9)
    companded = jnp.sign(narrow) * jnp.log1p(255.0 * jnp.abs(narrow) / peak) / np.log(256.0)
    rounded = jnp.round(companded * 127.0) / 127.0
    return peak * jnp.sign(rounded) * jnp.expm1(jnp.abs(rounded) * np.log(256.0)) / 255.0


def _with_probability(probability: float, changed, unchanged, keys: ExampleKeys):
    """``changed`` in a random choice of examples, each with this probability."""
    chosen = _uniform(keys, 0.0, 1.0) < probability
    return jnp.where(chosen[:, None], changed, unchanged)


def _uniform(keys: ExampleKeys, low: float, high: float) -> Float[Array, "batch"]:
    """A uniform number for each example."""
    return jax.vmap(lambda key: jax.random.uniform(key, (), minval=low, maxval=high))(keys)
