"""How much speech is changed, as listeners would judge: STOI and PESQ, by optional packages."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import soxr

RATE = 16_000
"""Samples per second at which both scores are computed."""


def _stoi(package: ModuleType, reference: np.ndarray, degraded: np.ndarray) -> float:
    return float(package.stoi(reference, degraded, RATE, extended=False))


def _pesq(package: ModuleType, reference: np.ndarray, degraded: np.ndarray) -> float:
    """NaN for what has no score, such as a recording without speech."""
    try:
        return float(package.pesq(RATE, reference, degraded, "wb"))
    except package.PesqError:
        return math.nan


_SCORES: dict[str, tuple[str, Callable[[ModuleType, np.ndarray, np.ndarray], float]]] = {
    "stoi": ("pystoi", _stoi),
    "pesq": ("pesq", _pesq),
}
"""By score, the package that computes it and how."""


def missing_score_packages() -> list[str]:
    """The packages of `perceptual_scores` that are not installed (``pip install -r requirements-speech.txt``)."""
    return [package for package, _ in _SCORES.values() if _load(package) is None]


def _load(package: str) -> ModuleType | None:
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def perceptual_scores(
    degraded: Sequence[np.ndarray], references: Sequence[np.ndarray], *, sample_rate: int
) -> dict[str, float]:
    """Means over recordings of the scores whose packages are installed; empty if none is.

    - ``stoi``: short-time objective intelligibility, up to 1 (Taal et al. 2011, doi:10.1109/TASL.2011.2114881);
    - ``pesq``: perceptual evaluation of speech quality, wide-band, about 1 to 4.6 (ITU-T P.862.2).

    A pair without a score, such as silence, is left out of the mean; a score without any pair is left out.

    Args:
      degraded: waveforms ``[T]``, floats in [-1, 1] or int16.
      references: as many recordings, each aligned with its degraded version; the longer of two is cut.
      sample_rate: of both, in Hz; other rates than 16,000 are resampled.

    Raises:
      ValueError: the numbers of waveforms differ.
    """
    scores = {}
    for name, (package_name, score) in _SCORES.items():
        if (package := _load(package_name)) is None:
            continue
        values = []
        for ours, theirs in zip(degraded, references, strict=True):
            length = min(len(ours), len(theirs))
            values.append(score(package, *(_as_float(x[:length], sample_rate) for x in (theirs, ours))))
        if not np.isnan(values).all():
            scores[name] = float(np.nanmean(values))
    return scores


def _as_float(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """float32 in [-1, 1] at `RATE`."""
    if waveform.dtype == np.int16:
        waveform = waveform / np.float32(32768)
    waveform = np.asarray(waveform, np.float32)
    return waveform if sample_rate == RATE else soxr.resample(waveform, sample_rate, RATE)
