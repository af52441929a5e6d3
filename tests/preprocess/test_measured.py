"""Augmentation of measured quantities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.random import example_keys
from xmodal_jax.preprocess.measured import MeasuredAugmentConfig, augment_measured, jitter

KEY = jax.random.key(3)
CONFIG = MeasuredAugmentConfig(jitter=0.3, feature_masking=0.25, time_masks=2)


def make_series(n=12, steps=40, channels=6, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((n, steps, channels)) < 0.8
    return jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 0.0), jnp.float32), jnp.asarray(mask)


def test_the_noise_has_its_deviation():
    keys = example_keys(KEY, jnp.arange(500))
    noise = np.asarray(jitter(jnp.zeros((500, 40)), keys, scale=0.3))
    assert abs(noise.std() - 0.3) < 0.005 and abs(noise.mean()) < 0.005
    assert len(np.unique(noise)) > 19_000  # of examples and features


@pytest.mark.parametrize("shape", ["vector", "series"])
def test_each_example_has_random_numbers_of_its_own(shape):
    """The same ones in any batch."""
    x, mask = make_series()
    x, mask = (x, mask) if shape == "series" else (x[:, 0], mask[:, 0])
    whole = augment_measured(x, mask, example_keys(KEY, jnp.arange(12)), CONFIG)
    part = augment_measured(x[5:7], mask[5:7], example_keys(KEY, jnp.array([5, 6])), CONFIG)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[5:7], b)


def test_what_is_hidden_is_0_and_masked():
    x, mask = make_series(n=300)
    values, visible = (
        np.asarray(a) for a in augment_measured(x, mask, example_keys(KEY, jnp.arange(300)), CONFIG)
    )
    assert not values[~visible].any() and not visible[~np.asarray(mask)].any()
    hidden_channels = ~visible.any(axis=1)  # [N, C]: of 40 steps at least one has a value
    assert abs(hidden_channels.mean() - 0.25) < 0.03
    # Beside hidden channels, whole steps are hidden: up to 2 spans of up to a tenth of the steps.
    shown = ~hidden_channels
    hidden_steps = (~visible & np.asarray(mask) & shown[:, None]).any(axis=2).sum(axis=1)
    assert 0 < hidden_steps.mean() < 8.0 and hidden_steps.max() <= 8


def test_without_keys_nothing_changes():
    x, mask = make_series()
    values, same = augment_measured(x, mask, None, CONFIG)
    np.testing.assert_array_equal(values, x)
    np.testing.assert_array_equal(same, mask)


@pytest.mark.parametrize("options", [{"jitter": -1.0}, {"feature_masking": 1.0}, {"time_masks": -1}])
def test_a_value_outside_its_range_is_an_error(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MeasuredAugmentConfig(**options)
