import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.similarity import l2_normalize, squared_distances

X = jax.random.normal(jax.random.key(0), (7, 3))
Y = jax.random.normal(jax.random.key(1), (5, 3))


def test_normalised_vectors_have_length_one_and_the_old_direction():
    unit = l2_normalize(X)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(X, axis=1, keepdims=True), X, rtol=1e-6)
    np.testing.assert_allclose(l2_normalize(X[0]), unit[0], rtol=1e-6)


def test_the_gradient_of_the_direction_is_orthogonal_to_it():
    weights = jnp.array([1.0, -2.0, 0.7])
    grad = jax.grad(lambda x: l2_normalize(x) @ weights)(X[0])
    np.testing.assert_allclose(grad @ X[0], 0.0, atol=1e-6)
    assert jnp.abs(grad).max() > 0.1


def test_zero_is_safe():
    grad = jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3))
    assert np.isfinite(grad).all() and not l2_normalize(jnp.zeros(3)).any()


def test_squared_distances():
    want = ((np.float64(X)[:, None] - np.float64(Y)[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(X, Y), want, rtol=1e-5)
    same = squared_distances(X + 100.0, X + 100.0)
    assert (same >= 0).all()
    assert np.isfinite(jax.grad(lambda x: squared_distances(x, x).sum())(X)).all()
