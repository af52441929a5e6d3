"""How many modes of a data set a generative model has, as a classifier sees its samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ModeCoverage(NamedTuple):
    """What samples have of the modes of a data set."""

    modes: int
    """Number of modes that at least one sample has."""
    kl: float
    """KL divergence of the samples' modes from those of the data, in nats."""


def mode_coverage(modes, real) -> ModeCoverage:
    r"""The number of modes of generated samples, and the KL divergence of their frequencies from those of the data.

    .. math:: \#\{k: q_k > 0\}, \qquad KL(q \| p) = \sum_{k: q_k > 0} q_k \log \frac{q_k}{p_k}

    where :math:`q_k` is the fraction of samples of mode k, and p the modes of the data. The divergence is infinite if a
    sample has a mode that the data do not have. N independent samples of the data themselves have a divergence of about
    ``(K - 1) / 2N`` in K modes, and miss ``sum_k (1 - p_k)^N`` modes on average, so compare at the same N (25,600 or
    26,000 for the 1,000 modes of stacked MNIST).

    Args:
      modes: int ``[N]``, the mode of each sample, 0 to K - 1, as a classifier sees it. Report its accuracy as well.
      real: ``[K]``, the probability or the number of examples of each mode of the data; ``np.ones(K)`` if all are
        equally frequent.
    Raises:
      ValueError: if there are no samples, a mode is not one of the K, or ``real`` is no distribution.

    Example:
      >>> from xmodal_jax.metrics import mode_coverage
      >>> mode_coverage([0, 0, 0, 1], real=[1, 1, 1, 1]).modes  # collapsed to two of four
      2

    References:
      Metz et al. 2017, Unrolled Generative Adversarial Networks, arXiv:1611.02163, section 3.3.1; Lin et al. 2018,
      PacGAN, arXiv:1712.04086, section 4.
    """
    modes, real = np.asarray(modes), np.asarray(real, np.float64)
    if real.ndim != 1 or not real.size or not np.isfinite(real).all() or real.min() < 0 or real.sum() <= 0:
        raise ValueError(
            f"real must be probabilities or counts [K], at least 0 and not all 0, got {list(real.shape)}"
        )
    if modes.ndim != 1 or not modes.size or not np.issubdtype(modes.dtype, np.integer):
        raise ValueError(f"modes must be integers [N] and not empty, got {modes.dtype} {list(modes.shape)}")
    if modes.min() < 0 or modes.max() >= len(real):
        raise ValueError(f"modes must lie in 0..{len(real) - 1}, got {modes.min()}..{modes.max()}")
    counts = np.bincount(modes, minlength=len(real))
    hit = counts > 0
    q, p = counts[hit] / len(modes), real[hit] / real.sum()
    if not p.all():
        return ModeCoverage(int(hit.sum()), float("inf"))
    # The divergence is never negative; rounding could make that of equal distributions -1e-16.
    return ModeCoverage(int(hit.sum()), max(float((q * np.log(q / p)).sum()), 0.0))
