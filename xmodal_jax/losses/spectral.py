"""Distances between waveforms in their spectra, one term per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.preprocess.audio import stft


class SpectralTerms(NamedTuple):
    """The two terms of an STFT loss."""

    convergence: Float[Array, "batch"]
    """``|| |S| - |S'| ||_F / || |S| ||_F``, relative to the target's spectrum S."""
    log_magnitude: Float[Array, "batch"]
    """Mean over frames and bins of ``| log|S| - log|S'| |``, in nats."""


@check_shapes
def stft_loss(
    generated: Float[Array, "batch time"],
    target: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    n_fft: int,
    hop: int,
    floor: float = 1e-3,
) -> SpectralTerms:
    """Spectral convergence and the distance of log-magnitudes between two waveforms.

    Yamamoto et al. 2020, arXiv:1910.11480, eq. 4 and 5.

    Args:
      generated, target: the waveforms, with gradients to both.
      mask: True on valid samples, which come first; None: all are valid. Others count as zeros in both waveforms, and
        frames that are centred on them are left out.
      n_fft, hop: length of a frame and of its Hann window, and distance between frames, in samples.
      floor: magnitudes below this value are raised to it, so that silence has a logarithm; they have no gradient.

    Returns:
      `SpectralTerms`, which are 0 for an example without valid samples.
    """
    if mask is not None:
        generated, target = jnp.where(mask, generated, 0.0), jnp.where(mask, target, 0.0)
    magnitudes = [_magnitude(x, n_fft=n_fft, hop=hop, floor=floor) for x in (generated, target)]
    frame_count = magnitudes[0].shape[1]
    length = jnp.full(target.shape[:1], target.shape[1]) if mask is None else mask.sum(axis=1)
    valid = jnp.arange(frame_count)[None, :] * hop < length[:, None]  # [B, frames]
    ours, theirs = (jnp.where(valid[:, :, None], x, floor) for x in magnitudes)
    # Invalid frames are equal in both, so that they add nothing to a difference.
    squared_error = jnp.square(ours - theirs).sum(axis=(1, 2))
    energy = jnp.where(valid[:, :, None], jnp.square(theirs), 0.0).sum(axis=(1, 2))
    positive = squared_error > 0  # the root has no gradient at 0
    error = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared_error, 1.0)), 0.0)
    convergence = error / jnp.sqrt(jnp.maximum(energy, floor**2))
    log_error = jnp.abs(jnp.log(ours) - jnp.log(theirs)).mean(axis=2).sum(axis=1)
    return SpectralTerms(convergence, log_error / jnp.maximum(valid.sum(axis=1), 1))


def _magnitude(waveform, *, n_fft: int, hop: int, floor: float):
    """``max(|STFT|, floor)``, with a gradient of 0 below the floor."""
    spectrum = stft(waveform, n_fft=n_fft, hop=hop)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.sqrt(jnp.maximum(power, floor**2))


@check_shapes
def multi_resolution_stft_loss(
    generated: Float[Array, "batch time"],
    target: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    resolutions: Sequence[tuple[int, int]] = ((512, 128), (1024, 256), (2048, 512)),
    floor: float = 1e-3,
) -> SpectralTerms:
    """The mean of `stft_loss` over several resolutions. Yamamoto et al. 2020, arXiv:1910.11480, eq. 6.

    No resolution alone says how a waveform sounds: short frames resolve time and long ones frequency.

    Args:
      generated, target, mask, floor: see `stft_loss`.
      resolutions: for each resolution the length of a frame and the distance between frames, in samples.

    Raises:
      ValueError: there is no resolution.

    Example::

        terms = multi_resolution_stft_loss(generated, audio, mask)  # each [B]
        loss = batch_mean(terms.convergence + terms.log_magnitude, axis_name=axis_name)
    """
    if not resolutions:
        raise ValueError("resolutions must hold at least one pair (frame length, hop)")
    terms = [stft_loss(generated, target, mask, n_fft=n, hop=hop, floor=floor) for n, hop in resolutions]
    return SpectralTerms(*(sum(term) / len(terms) for term in zip(*terms, strict=True)))


@check_shapes
def log_mel_distance(
    generated: Float[Array, "batch frames mels"],
    target: Float[Array, "batch frames mels"],
    mask: Bool[Array, "batch frames"] | None = None,
) -> Float[Array, "batch"]:
    """The mean absolute difference of two log-mel spectrograms over valid frames and bands, in nats.

    ``mask``: True on valid frames; None: all are. 0 for an example without valid frames.
    """
    if mask is None:
        mask = jnp.ones(target.shape[:2], bool)
    difference = jnp.where(mask[:, :, None], jnp.abs(generated - target), 0.0)
    return difference.mean(axis=2).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
