import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.metrics.latent import alignment, modality_gap, uniformity


def make():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, 13, 5)) + 0.4, jnp.float32)


def unit(x):
    x = np.float64(x)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_values_are_the_definitions():
    a, b = make()
    u, v = unit(a), unit(b)
    np.testing.assert_allclose(modality_gap(a, b), np.linalg.norm(u.mean(0) - v.mean(0)), rtol=1e-5)
    np.testing.assert_allclose(alignment(a, b), np.mean(((u - v) ** 2).sum(1)), rtol=1e-5)
    np.testing.assert_allclose(alignment(a, b, power=1.0), np.mean(np.sqrt(((u - v) ** 2).sum(1))), rtol=1e-5)
    pairs = [np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i in range(13) for j in range(i)]
    for chunk in (4, 13, 1024):
        np.testing.assert_allclose(uniformity(a, chunk=chunk), np.log(np.mean(pairs)), rtol=1e-4)


def test_extremes():
    a, _ = make()
    same = jnp.ones((5, 3))
    np.testing.assert_allclose(modality_gap(same, -same), 2.0, rtol=1e-6)
    np.testing.assert_allclose([modality_gap(a, 3 * a), alignment(a, 3 * a)], 0.0, atol=1e-6)
    np.testing.assert_allclose(uniformity(same), 0.0, atol=1e-5)
    np.testing.assert_allclose(uniformity(jnp.array([[1.0, 0.0], [-1.0, 0.0]])), -8.0, rtol=1e-5)
    with pytest.raises(ValueError, match="two examples"):
        uniformity(a[:1])
