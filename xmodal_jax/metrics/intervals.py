"""Confidence intervals of scores, by the bootstrap over the examples of a test set."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_DRAWS_AT_A_TIME = 2**24
"""Number of drawn units that are in memory at a time."""


class Interval(NamedTuple):
    """A score of a test set, and a confidence interval for the score over all examples of its kind."""

    value: float
    """The score of the test set."""
    low: float
    """Lower end of the interval; NaN where there is no interval."""
    high: float
    """Upper end of the interval; NaN where there is no interval."""


def bootstrap_interval(
    values,
    *,
    units: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The mean of ``values`` with its percentile bootstrap interval (Efron and Tibshirani 1993, section 13.3).

    Examples are drawn with replacement, as many as there are, ``resamples`` times; the interval goes from the
    ``(1 - level) / 2`` quantile of the means to the ``(1 + level) / 2`` quantile. Correlated examples are drawn
    together, such as all captions of one picture, since the interval would be too narrow otherwise.

    Args:
      values: ``[N]``, one for each example, such as 1 where it is classified correctly and 0 elsewhere.
      units: int ``[N]``, equal for examples that are drawn together; None: each is drawn alone.
      level: the confidence level of the interval, in (0, 1).
      resamples: number of resampled test sets.
      seed: seed of the resampling.

    Raises:
      ValueError: there are no values, or not one unit for each.

    Example::

        bootstrap_interval(np.array([1, 1, 0, 1]))  # Interval(value=0.75, low=0.25, high=1.0)
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values are a sequence of at least one number, got the shape {values.shape}")
    units = np.arange(len(values)) if units is None else np.asarray(units)
    if units.shape != values.shape:
        raise ValueError(f"there are {len(values)} values and {len(units)} units")
    # The sum of the values and their number in each unit: a mean is a ratio of sums over the drawn units.
    _, unit_of_value = np.unique(units, return_inverse=True)
    counts = np.bincount(unit_of_value)
    sums = np.bincount(unit_of_value, weights=values)
    means = _resample(
        lambda drawn: sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), len(sums), resamples, seed
    )
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(values.mean()), float(low), float(high))


def _resample(
    statistic: Callable[[np.ndarray], np.ndarray], units: int, resamples: int, seed: int
) -> np.ndarray:
    """Computes a statistic of ``resamples`` draws with replacement from 0..units-1, each of ``units`` numbers:
    ``[resamples]``.

    ``statistic(drawn)``: its values ``[n]`` for the draws ``drawn``, int ``[n, units]``; n is limited by memory.
    """
    rng, at_a_time = np.random.default_rng(seed), max(1, _DRAWS_AT_A_TIME // units)
    parts = []
    for start in range(0, resamples, at_a_time):
        drawn = rng.integers(units, size=(min(at_a_time, resamples - start), units))
        parts.append(statistic(drawn))
    return np.concatenate(parts)
