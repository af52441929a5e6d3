"""Augmentation of measured quantities in standard units: noise, and values that are hidden."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.checks import check_rates, check_shapes
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.preprocess.audio import spec_augment
from xmodal_jax.types import ExampleKeys


@dataclasses.dataclass(frozen=True)
class MeasuredAugmentConfig:
    """Random changes of vectors and series in training. The defaults change nothing.

    Raises:
      ValueError: a value outside its range.
    """

    jitter: float = 0.0
    """Standard deviation of the normal noise that is added to each value, in standard deviations of its feature; 0: no
    noise."""
    feature_masking: float = 0.0
    """Probability that a feature (a channel of a series, at all its steps) is hidden, as if it were missing."""
    time_masks: int = 0
    """Number of spans of steps of a series that are hidden, each of up to a tenth of its steps; 0: none. Vectors have
    no steps."""

    def __post_init__(self):
        """Checks the ranges of the options."""
        if self.jitter < 0.0:
            raise ValueError(f"jitter must be 0 or more standard deviations, got {self.jitter}")
        if self.time_masks < 0:
            raise ValueError(f"time_masks must be 0 or more, got {self.time_masks}")
        check_rates(self, "feature_masking")


@check_shapes
def jitter(
    values: Float[Array, "batch *shape"], keys: ExampleKeys | None, *, scale: float
) -> Float[Array, "batch *shape"]:
    """Adds normal noise of standard deviation ``scale`` to every value; one random key for each example, None: no
    noise."""
    if keys is None or scale == 0.0:
        return values
    noise = jax.vmap(lambda key: jax.random.normal(key, values.shape[1:]))(fold_in_name(keys, "jitter"))
    return values + scale * noise


@check_shapes
def visible_features(
    keys: ExampleKeys | None, *, features: int, count: int, rate: float
) -> Bool[Array, "batch features"]:
    """Which of the ``features`` of each of ``count`` examples are not hidden, each with probability ``1 - rate``, bool
    ``[count, features]``; all of them without keys."""
    if keys is None or rate == 0.0:
        return jnp.ones((count, features), bool)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (features,)))(fold_in_name(keys, "features"))
    return uniform >= rate


def augment_measured(
    values: Float[Array, "batch *steps features"],
    mask: Bool[Array, "batch *steps features"],
    keys: ExampleKeys | None,
    config: MeasuredAugmentConfig,
) -> tuple[Array, Array]:
    """``(values, mask)`` after the augmentations of ``config``; ``keys=None``: none of them.

    Hidden values are 0, the mean of their feature, and False in the mask, as missing ones are. A vector is ``[B, D]``,
    a series ``[B, T, C]``; ``mask`` has the shape of the values.
    """
    if keys is None:
        return values, mask
    values = jitter(values, keys, scale=config.jitter)
    shown = visible_features(
        keys, features=values.shape[-1], count=len(values), rate=config.feature_masking
    ).reshape(len(values), *(1,) * (values.ndim - 2), values.shape[-1])
    mask = mask & shown
    if config.time_masks and values.ndim == 3:
        # SpecAugment of ones: what it sets to 0 is hidden.
        ones = jnp.ones_like(values)
        visible = spec_augment(
            ones, keys, mask.any(axis=-1), time_masks=config.time_masks, freq_masks=0
        )  # fmt: skip
        mask = mask & (visible > 0)
    return jnp.where(mask, values, 0.0), mask
