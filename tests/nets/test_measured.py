"""Encoders of measured quantities, and encoders of one's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.support import random_params
from xmodal_jax.nets.custom import as_encoder, as_tokens, import_object
from xmodal_jax.nets.encoders import (
    CustomEncoderConfig,
    FeatureTransformerConfig,
    SeriesTransformerConfig,
    VectorMLPConfig,
    build_encoder,
)
from xmodal_jax.types import Tokens

RNG = np.random.default_rng(5)
KEY = jax.random.key(0)
VECTOR = np.float32(RNG.normal(size=(6, 5)))
VECTOR_MASK = RNG.random((6, 5)) < 0.6


def applied(kind, config, x, mask):
    module = build_encoder(kind, config)
    params = random_params(module.init, KEY, jnp.asarray(x), jnp.asarray(mask))["params"]
    apply = lambda x, mask: module.apply({"params": params}, jnp.asarray(x), jnp.asarray(mask))
    return jax.tree.map(np.asarray, params), apply


def test_the_mlp_is_that_of_numpy():
    config = VectorMLPConfig(width=7, depth=2, indicators=True)
    params, apply = applied("vector", config, VECTOR, VECTOR_MASK)
    x = np.concatenate([np.where(VECTOR_MASK, VECTOR, 0.0), VECTOR_MASK], axis=1).astype(np.float64)

    def gelu(x):  # the tanh approximation, as in Flax
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = gelu(x @ params["layer_0"]["kernel"] + params["layer_0"]["bias"])
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    x = x * params["norm_1"]["scale"] + params["norm_1"]["bias"]
    x = gelu(x @ params["layer_1"]["kernel"] + params["layer_1"]["bias"])
    tokens = apply(VECTOR, VECTOR_MASK)
    assert tokens.mask is None and tokens.values.shape == (6, 1, 7)
    np.testing.assert_allclose(tokens.values[:, 0], x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "config", [VectorMLPConfig(width=8), FeatureTransformerConfig(width=8, heads=2)], ids=lambda c: c.name
)
def test_a_missing_value_has_no_influence_and_no_gradient(config):
    _, apply = applied("vector", config, VECTOR, VECTOR_MASK)
    summed = lambda x: sum_of_valid(apply(x, VECTOR_MASK))
    gradient = np.asarray(jax.grad(summed)(jnp.asarray(VECTOR)))
    assert not gradient[~VECTOR_MASK].any() and gradient[VECTOR_MASK].all()
    damaged = np.where(VECTOR_MASK, VECTOR, np.nan)
    assert summed(VECTOR) == summed(damaged)


def sum_of_valid(tokens: Tokens):
    """The sum of a nonlinear function of the valid tokens."""
    values = jnp.tanh(tokens.values)
    return values.sum() if tokens.mask is None else jnp.where(tokens.mask[..., None], values, 0.0).sum()


def test_a_padded_series_has_the_same_tokens():
    config = SeriesTransformerConfig(width=8, heads=2, downsample=2)
    series = np.float32(RNG.normal(size=(3, 8, 2)))
    _, apply = applied("series", config, series, np.ones((3, 8), bool))
    padded = np.concatenate([series, np.full((3, 6, 2), np.nan, np.float32)], axis=1)
    mask = np.arange(14)[None] < np.full((3, 1), 8)
    tokens, short = apply(padded, mask), apply(series, np.ones((3, 8), bool))
    np.testing.assert_array_equal(tokens.mask, np.arange(7)[None] < np.full((3, 1), 4))
    np.testing.assert_allclose(tokens.values[:, :4], short.values, rtol=1e-5, atol=1e-6)


def test_a_step_counts_if_one_of_its_values_is_there():
    config = SeriesTransformerConfig(width=8, heads=2, downsample=1)
    series, mask = np.float32(RNG.normal(size=(2, 5, 3))), np.ones((2, 5, 3), bool)
    mask[0, 1, 2] = mask[1, 4] = False
    _, apply = applied("series", config, series, mask)
    tokens = apply(np.where(mask, series, np.nan), mask)
    np.testing.assert_array_equal(tokens.mask, mask.any(axis=2))
    zeroed = apply(np.where(mask, series, 0.0), mask.any(axis=2))
    np.testing.assert_array_equal(tokens.values, zeroed.values)


# Encoders of one's own


class Plain(nn.Module):
    """Knows neither masks nor keys, and returns a vector."""

    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


class Words(nn.Module):
    """Needs the size of the vocabulary."""

    vocab_size: int

    @nn.compact
    def __call__(self, x, mask, keys=None):
        return Tokens(nn.Embed(self.vocab_size, 3)(x), mask)


def test_a_module_of_ones_own():
    encoder = as_encoder(Plain())
    variables = encoder.init(KEY, VECTOR, VECTOR_MASK)
    tokens = encoder.apply(variables, VECTOR, VECTOR_MASK, keys=None)
    dense = jax.tree.map(np.asarray, variables["params"]["module"]["Dense_0"])
    np.testing.assert_allclose(
        tokens.values[:, 0], VECTOR @ dense["kernel"] + dense["bias"], rtol=1e-5, atol=1e-6
    )


def test_a_class_gets_the_sizes_that_it_has_fields_for():
    ids, mask = np.array([[1, 2, 0]]), np.array([[True, True, False]])
    encoder = CustomEncoderConfig(module=Words).build(vocab_size=9, max_length=3)
    variables = encoder.init(KEY, ids, mask)
    assert variables["params"]["module"]["Embed_0"]["embedding"].shape == (9, 3)
    assert encoder.apply(variables, ids, mask).mask is mask


def test_a_pair_of_functions():
    def init(key, inputs):
        return {"layer": {"w": jax.random.normal(key, (inputs.shape[-1], 2))}}

    def apply(params, inputs, mask):
        return jnp.where(mask, inputs, 0.0) @ params["layer"]["w"]

    encoder = as_encoder((init, apply))
    variables = encoder.init(KEY, VECTOR, VECTOR_MASK)
    w = variables["params"]["functions"]["layer"]["w"]
    outputs = encoder.apply(variables, VECTOR, VECTOR_MASK).values[:, 0]
    np.testing.assert_allclose(outputs, np.where(VECTOR_MASK, VECTOR, 0) @ w, rtol=1e-5, atol=1e-6)


class Unset(nn.Module):
    size: int


def test_a_module_by_its_name():
    assert import_object("tests.nets.test_measured:Plain").__name__ == "Plain"
    assert import_object("tests.nets.test_measured:Words").__name__ == "Words"
    for spec, message in (
        ("tests.nets.test_measured:Nothing", "has no 'Nothing'"),
        ("tests.no_such_module:Plain", "cannot be imported"),
        ("tests.nets.test_measured", "write module:PACKAGE.MODULE:NAME"),
        (
            "tests.nets.test_measured:np",
            "module:tests.nets.test_measured:np: an encoder of your own is a Flax module",
        ),
        ("tests.nets.test_measured:Unset", "the field 'size' of the module Unset has no default"),
    ):
        with pytest.raises(ValueError, match=message):
            import_object(spec)


def test_what_is_no_encoder_is_refused():
    with pytest.raises(TypeError, match="a Flax module, a class of Flax modules, or a pair of functions"):
        as_encoder(lambda x: x)
    with pytest.raises(ValueError, match=r"returned \[2, 3, 4, 5\]; expected .* pool a feature map"):
        as_tokens(np.zeros((2, 3, 4, 5)))


class FeatureMap(nn.Module):
    def __call__(self, x):
        return x


def square(params, inputs):
    return inputs**2


@pytest.mark.parametrize(
    ("encoder", "name"), [(FeatureMap(), "FeatureMap"), ((lambda key, x: {"w": x}, square), "square")]
)
def test_an_encoder_with_outputs_of_a_wrong_shape_is_named(encoder, name):
    with pytest.raises(ValueError, match=rf"the encoder {name} returned \[1, 4, 4, 3\]"):
        as_encoder(encoder).init(KEY, np.zeros((1, 4, 4, 3), np.float32))


def test_the_oracle_knows_the_approximation():
    x = np.linspace(-3, 3, 7)
    exact = x * scipy.special.ndtr(x)
    approximate = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(approximate, exact, atol=1e-3)
