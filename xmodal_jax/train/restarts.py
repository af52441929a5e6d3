"""Random restarts: several initialisations are trained for some steps, and the best one is trained on.

Where an objective has bad local minima, as the assignment of words to objects has, some initialisations never leave
one. A short training shows which: the loss of the others is lower by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Restarts(NamedTuple):
    """How many initialisations a training tries."""

    count: int = 1
    """Number of initialisations; 1: there is no choice."""
    steps: int = 0
    """Number of steps, from the first on, that each of them is trained for before the choice."""

    @property
    def extra_steps(self) -> int:
        """Number of steps whose results are dropped."""
        return (self.count - 1) * self.steps


class Trial(NamedTuple):
    """An initialisation after its first steps; with N seeds one of each, whose numbers may differ."""

    state: Any
    """The state of the training. With seeds their axis is the first of every array."""
    metrics: list[dict[str, np.ndarray]]
    """The metrics of every dispatch, arrays ``[K steps, ...]``, with seeds ``[K, N, ...]``."""
    number: np.ndarray
    """Number of the initialisation, from 0, ``[]`` or ``[N]``."""


class Choice(NamedTuple):
    """Which initialisation each seed goes on with."""

    steps: int
    """Number of steps that each initialisation was trained for."""
    losses: list[list[float | None]]
    """The `trial_loss` of each seed's initialisations; None: it is infinite."""
    chosen: list[int]
    """Number of each seed's initialisation, from 0."""

    @property
    def dropped_steps(self) -> int:
        """Number of steps of the initialisations that were not chosen, of one seed."""
        return self.steps * (len(self.losses[0]) - 1)

    def describe(self, seeds: Sequence[int]) -> list[str]:
        """A sentence for each seed."""
        return [
            f"seed {seed} goes on with initialisation {number + 1} of {len(losses)}: losses "
            f"{', '.join('not finite' if x is None else f'{x:.4g}' for x in losses)} after {self.steps} steps"
            for seed, losses, number in zip(seeds, self.losses, self.chosen, strict=True)
        ]


def make_choice(losses: Sequence[np.ndarray], best: Trial, steps: int) -> Choice:
    """The choice of the trial ``best``, by the ``losses`` of all, each ``[]`` or, with seeds, ``[N]``."""
    by_seed = np.atleast_2d(np.stack(losses, axis=-1))  # [N, initialisations]
    plain = [[float(x) if np.isfinite(x) else None for x in row] for row in by_seed]
    return Choice(steps, plain, [int(n) for n in np.atleast_1d(best.number)])


def trial_loss(metrics: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """The mean loss of the last quarter of a trial's steps, ``[]`` or, with seeds, ``[N]``; infinite where a loss or a
    gradient was not finite.

    In the first pass over the data each loss is that of examples the model has not been trained on yet, so that the
    mean is a validation loss.
    """
    losses = np.concatenate([m["loss"] for m in metrics])  # [steps] or [steps, N]
    finite = np.concatenate([m["finite"] for m in metrics]).all(axis=(0, -1))  # [] or [N]
    last = losses[-max(len(losses) // 4, 1) :].mean(axis=0)
    return np.where(finite, last, np.inf)


def better_trial(first: Trial, second: Trial) -> Trial:
    """The one of two trials with the lower `trial_loss`, the first if they are equal; with seeds, for each seed."""
    is_better = trial_loss(second.metrics) < trial_loss(first.metrics)  # [] or [N]
    if is_better.ndim == 0:
        return second if is_better else first
    return Trial(
        jax.jit(_choose_by_seed)(is_better, second.state, first.state),
        [
            {name: np.where(_align(is_better, b[name].ndim, axis=1), b[name], a[name]) for name in a}
            for a, b in zip(first.metrics, second.metrics, strict=True)
        ],
        np.where(is_better, second.number, first.number),
    )


def _choose_by_seed(is_better, second, first):
    """The arrays of ``second`` for the seeds where it ``is_better``, of ``first`` for the others."""
    return jax.tree.map(lambda b, a: jnp.where(_align(is_better, b.ndim, axis=0), b, a), second, first)


def _align(mask, ndim: int, *, axis: int):
    """``mask [N]`` with axes of size 1 beside it, so that it is ``axis`` of arrays with ``ndim`` axes."""
    return mask.reshape([-1 if n == axis else 1 for n in range(ndim)])
