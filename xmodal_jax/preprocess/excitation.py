"""The waveforms that a source-filter model of speech starts from: pulses and noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.types import ExampleKeys


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
