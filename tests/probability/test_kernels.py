import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import alignment as oracle
from xmodal_jax.probability import kernels

KERNELS = ("rbf", "rational_quadratic", "rational_quadratic_star", "distance", "polynomial")


def make(seed=0, n=7, m=5, dim=3):
    x = jax.random.normal(jax.random.key(seed), (n + m, dim))
    return x[:n], 2.0 * x[n:] + 0.5


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_their_formulas(name):
    x, y = make()
    want = [[oracle.kernel(name, a, b) for b in np.float64(y)] for a in np.float64(x)]
    np.testing.assert_allclose(getattr(kernels, name)(x, y), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_are_finite_at_equal_points_and_at_zero(name):
    fn = getattr(kernels, name)
    for x in (jnp.zeros((3, 2)), jnp.ones((3, 2)), make()[0]):
        assert np.isfinite(jax.grad(lambda x, fn=fn: fn(x, x).sum())(x)).all()


@given(st.integers(0, 2**16))
def test_kernels_are_symmetric_and_positive_semidefinite(seed):
    x, _ = make(seed)
    for name in KERNELS:
        gram = np.float64(getattr(kernels, name)(x, x))
        np.testing.assert_allclose(gram, gram.T, rtol=1e-5, atol=1e-5)
        assert np.linalg.eigvalsh(gram).min() > -1e-3 * np.abs(gram).max(), name


def test_options():
    x, y = make()
    np.testing.assert_allclose(
        kernels.rbf(x, y, bandwidths=(1.0, 3.0)),
        kernels.rbf(x, y, bandwidths=(1.0,)) + kernels.rbf(x, y, bandwidths=(3.0,)),
        rtol=1e-6,
    )
    np.testing.assert_allclose(kernels.polynomial(x, y, degree=1, scale=1.0, offset=0.0), x @ y.T, rtol=1e-5)
