"""Blocks of diffusion transformers."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import random_params
from xmodal_jax.nets.dit import DiTBlock


def test_tokens_that_share_a_condition_are_modulated_as_if_each_had_it():
    counts, block = (2, 1, 3), DiTBlock(heads=2)
    x = jax.random.normal(jax.random.key(0), (4, 6, 8))
    of_groups = jax.random.normal(jax.random.key(1), (4, 3, 5))
    params = random_params(lambda key: block.init(key, x, of_groups, counts=counts), jax.random.key(2))
    of_tokens = jnp.stack([of_groups[:, g] for g in (0, 0, 1, 2, 2, 2)], axis=1)
    expected = block.apply(params, x, of_tokens)
    assert float(jnp.abs(expected - x).max()) > 0.1
    np.testing.assert_allclose(block.apply(params, x, of_groups, counts=counts), expected, atol=1e-5)
