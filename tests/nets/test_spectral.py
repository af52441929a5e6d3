"""Spectral normalisation against the singular value decomposition and one iteration by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import gan as oracle
from xmodal_jax.nets.spectral import spectral_normalize, spectral_vectors

KEY = jax.random.key(0)
SHAPES = {
    "trunk": {
        "conv": {"kernel": (3, 5, 2, 7), "bias": (7,)},
        "norm": {"scale": (7,), "bias": (7,)},
        "words": {"embedding": (13, 5)},
    },
    "out": {"kernel": (11, 3), "bias": (3,)},
    "rate": {"kernel": (4,)},
}
WEIGHTS = {"trunk/conv/kernel", "trunk/words/embedding", "out/kernel"}


def draw(seed):
    rng = np.random.default_rng(seed)
    of = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return jax.tree.map(of, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def weights(tree):
    return {
        "trunk/conv/kernel": tree["trunk"]["conv"]["kernel"],
        "trunk/words/embedding": tree["trunk"]["words"]["embedding"],
        "out/kernel": tree["out"]["kernel"],
    }


def largest(weight):
    weight = np.asarray(weight, np.float64)
    return np.linalg.svd(weight.reshape(-1, weight.shape[-1]), compute_uv=False)[0]


@pytest.fixture(scope="module")
def once():
    return jax.jit(lambda params, vectors: spectral_normalize(params, vectors))


PARAMS = draw(1)
VECTORS = spectral_vectors(KEY, PARAMS)


def test_there_is_a_unit_vector_for_every_weight():
    assert set(VECTORS) == WEIGHTS
    for name, weight in weights(PARAMS).items():
        assert VECTORS[name].shape == weight.shape[-1:]
        np.testing.assert_allclose(np.linalg.norm(VECTORS[name]), 1.0, rtol=1e-6)
    alone = spectral_vectors(KEY, {"out": PARAMS["out"]})  # by the name, not the place
    np.testing.assert_array_equal(alone["out/kernel"], VECTORS["out/kernel"])
    other = spectral_vectors(jax.random.key(1), PARAMS)
    assert all((other[name] != VECTORS[name]).all() for name in WEIGHTS)


def test_the_largest_singular_value_becomes_one(once):
    """A step of training at a time, with weights that stand still; everything else is left as it is."""
    vectors = VECTORS
    for _ in range(200):
        normal, vectors = once(PARAMS, vectors)
    for name, weight in weights(normal).items():
        assert largest(weight) == pytest.approx(1.0, rel=1e-5), name
        assert abs(largest(weights(PARAMS)[name]) - 1.0) > 0.5
        np.testing.assert_allclose(
            weight * largest(weights(PARAMS)[name]), weights(PARAMS)[name], rtol=1e-4, atol=1e-6
        )
    for rest in (("trunk", "conv", "bias"), ("trunk", "norm", "scale"), ("out", "bias"), ("rate", "kernel")):
        a, b = normal, PARAMS
        for part in rest:
            a, b = a[part], b[part]
        np.testing.assert_array_equal(a, b)


def test_one_iteration_is_the_papers(once):
    normal, moved = once(PARAMS, VECTORS)
    for name, weight in weights(PARAMS).items():
        weight = np.asarray(weight, np.float64)
        sigma, _, u = oracle.power_iteration(weight, np.asarray(VECTORS[name], np.float64))
        assert abs(sigma / largest(weight) - 1) > 1e-3  # not there yet
        np.testing.assert_allclose(weights(normal)[name], weight / sigma, rtol=1e-5)
        np.testing.assert_allclose(moved[name], u, rtol=1e-4, atol=1e-6)


def test_without_iterations_the_vectors_give_the_estimate_again(once):
    normal, moved = once(PARAMS, VECTORS)
    again, kept = jax.jit(lambda p, v: spectral_normalize(p, v, iterations=0))(PARAMS, moved)
    for name in WEIGHTS:
        np.testing.assert_array_equal(kept[name], moved[name])
        np.testing.assert_allclose(weights(again)[name], weights(normal)[name], rtol=1e-6)


def test_two_iterations_are_one_and_one(once):
    twice, moved = jax.jit(lambda p, v: spectral_normalize(p, v, iterations=2))(PARAMS, VECTORS)
    normal, after = once(PARAMS, once(PARAMS, VECTORS)[1])
    for name in WEIGHTS:
        np.testing.assert_allclose(moved[name], after[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(weights(twice)[name], weights(normal)[name], rtol=1e-5)


@pytest.mark.parametrize("iterations", [0, 1])
def test_the_gradient_passes_the_estimate_and_not_the_vectors(iterations):
    given = draw(2)

    def loss(params, vectors):
        normal, moved = spectral_normalize(params, vectors, iterations=iterations)
        total = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (given, normal)), strict=True))
        return total + sum(jnp.sum(jnp.sin(u)) for u in moved.values())

    slopes, of_vectors = jax.jit(jax.grad(loss, (0, 1)))(PARAMS, VECTORS)
    for name, weight in weights(PARAMS).items():
        w = np.asarray(weight, np.float64)
        u = np.asarray(VECTORS[name], np.float64)
        sigma, v, u_next = oracle.power_iteration(w, u)
        if not iterations:
            v = w.reshape(-1, w.shape[-1]) @ u
            sigma, v, u_next = np.linalg.norm(v), v / np.linalg.norm(v), u
        to = np.asarray(weights(given)[name], np.float64)
        expected = oracle.spectral_gradient(w, sigma, v, u_next, to)
        np.testing.assert_allclose(weights(slopes)[name], expected, rtol=1e-4, atol=1e-5)
        assert not np.any(of_vectors[name])
    np.testing.assert_array_equal(slopes["out"]["bias"], given["out"]["bias"])
    np.testing.assert_array_equal(slopes["rate"]["kernel"], given["rate"]["kernel"])
