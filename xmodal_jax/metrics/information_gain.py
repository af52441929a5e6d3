"""Which missing modality to acquire next: the expected information gain about the latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from xmodal_jax.probability.mixtures import Mixture, kl_mixture
from xmodal_jax.types import ExampleKeys


def information_gain(
    updated: Mixture, current: Mixture, keys: ExampleKeys, *, samples: int
) -> Float[Array, "candidates batch"]:
    """The information gain about the latents of B examples from each of C further modalities, in nats:
    ``KL(q(z | x_A, x_m) || q(z | x_A))``.

    Args:
      updated: ``q(z | x_A, x_m)`` of the C candidates m: every array has a leading axis C.
      current: ``q(z | x_A)``, of what is observed.
      keys: of the examples.
      samples: draws of the Monte-Carlo estimate where a posterior is a mixture, see `probability.kl_mixture`.
    """
    return jax.vmap(lambda q: kl_mixture(q, current, keys, samples=samples))(updated)


def expected_information_gain(
    current: Mixture,
    simulate: Callable[[ExampleKeys], Any],
    update: Callable[[Any], Mixture],
    keys: ExampleKeys,
    *,
    draws: int,
    samples: int = 16,
) -> Float[Array, "draws candidates batch"]:
    r"""The expected information gain about the latents from each of C unobserved modalities, in nats. The estimate is
    the mean of the returned terms over their first axis.

    .. math:: I(z; x_m \mid x_A) = E_{x_m \sim p(x_m \mid x_A)} KL(q(z \mid x_A, x_m) \| q(z \mid x_A))

    (Lindley 1956, On a measure of the information provided by an experiment), by Monte Carlo over
    draws ``z ~ q(z | x_A)``, ``x_m ~ p(x_m | z)``. It is the model's own expectation: for posteriors that are exact it
    is the mutual information, and independent modalities have 0.

    Args:
      current: ``q(z | x_A)`` of B examples.
      simulate: ``simulate(keys)``: for each example one draw of the modalities that are not observed.
      update: ``update(draw)``: ``q(z | x_A, x_m)`` of the C candidates m; every array has a leading axis C.
      keys: of the examples.
      draws: number of draws.
      samples: draws of z for each divergence where a posterior is a mixture.

    Raises:
      ValueError: ``draws`` or ``samples`` is below 1.
    """
    if draws < 1 or samples < 1:
        raise ValueError(f"draws and samples must be at least 1, got {draws} and {samples}")

    def gain_of_draw(number):
        """The divergences ``[C, B]`` for one draw of the modalities."""
        draw_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return information_gain(update(simulate(draw_keys)), current, draw_keys, samples=samples)

    # One draw after the other, so that memory does not grow with their number.
    return jax.lax.map(gain_of_draw, jnp.arange(draws))


class GainAgreement(NamedTuple):
    """How well expected gains agree with those that the true data gave; NaN where there are too few."""

    correlation: float
    """Pearson's correlation over all examples, observed subsets and candidates."""
    within: float
    """The mean over observed subsets and candidates of the correlation over examples: whether it is known for which
    example a modality tells more."""
    best: float
    """The fraction of choices, of one example and one observed subset with several candidates, in which the candidate
    with the largest expected gain is that with the largest true gain."""
    chance: float
    """``best`` of a random choice."""


def compare_gains(
    expected: Num[np.ndarray, "examples subsets candidates"],
    realised: Num[np.ndarray, "examples subsets candidates"],
) -> GainAgreement:
    """Compares expected with realised gains; NaN in either array marks what is left out."""
    counted = np.isfinite(expected) & np.isfinite(realised)
    pairs = [
        (expected[counted[:, s, m], s, m], realised[counted[:, s, m], s, m])
        for s, m in np.ndindex(counted.shape[1:])
    ]
    within = np.array([_correlation(a, b) for a, b in pairs])
    within = within[np.isfinite(within)]
    choices = counted.sum(axis=2) > 1  # [examples, subsets]
    largest = lambda x: np.where(counted, x, -np.inf).argmax(axis=2)[choices]
    has_choices = bool(choices.any())
    return GainAgreement(
        _correlation(expected[counted], realised[counted]),
        float(within.mean()) if within.size else float("nan"),
        float((largest(expected) == largest(realised)).mean()) if has_choices else float("nan"),
        float((1 / counted.sum(axis=2)[choices]).mean()) if has_choices else float("nan"),
    )


def _correlation(a: Num[np.ndarray, "n"], b: Num[np.ndarray, "n"]) -> float:
    """Pearson's correlation; NaN of fewer than 3 pairs, or where one side is constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(np.float64(a), np.float64(b))[0, 1])


def mean_gain(gains: Num[np.ndarray, "examples *rest"]) -> Float[np.ndarray, "*rest"]:
    """Means over the examples (the first axis), without NaN; NaN where all are."""
    finite = np.isfinite(gains)
    total = np.where(finite, gains, 0.0).sum(axis=0, dtype=np.float64)
    return np.where(finite.any(axis=0), total / np.maximum(finite.sum(axis=0), 1), np.nan)
