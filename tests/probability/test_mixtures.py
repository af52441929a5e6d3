import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from xmodal_jax.core.random import example_keys
from xmodal_jax.probability import Laplace, Mixture, Normal, as_mixture, kl_mixture

KEYS = example_keys(jax.random.key(0), jnp.arange(2))
GRID = np.linspace(-12, 12, 40_001)


def make(family, weights):
    """Two components for each of two examples, of one dimension."""
    mean = jnp.array([[[-1.0], [0.3]], [[2.0], [-0.5]]])
    return Mixture(
        family(mean, jnp.log(jnp.array([[[0.5], [1.1]], [[0.8], [0.6]]]))), jnp.log(jnp.asarray(weights))
    )


def density(mixture, b):
    """By SciPy, on the grid."""
    family = scipy.stats.norm if isinstance(mixture.components, Normal) else scipy.stats.laplace
    weights = np.exp(np.float64(mixture.log_weights))[:, b]
    mean, scale = (
        np.float64(x)[:, b, 0] for x in (mixture.components.mean, jnp.exp(mixture.components.log_scale))
    )
    return sum(w * family.pdf(GRID, m, s) for w, m, s in zip(weights, mean, scale, strict=True))


@pytest.mark.parametrize("family", [Normal, Laplace])
def test_the_density_is_the_weighted_sum(family):
    mixture = make(family, [[0.3, 1.0], [0.7, 0.0]])
    z = jnp.asarray(GRID[::4000], jnp.float32)[:, None, None]
    found = mixture.log_prob(jnp.broadcast_to(z, (len(z), 2, 1)))
    for b in range(2):
        np.testing.assert_allclose(found[:, b], np.log(density(mixture, b)[::4000]), rtol=1e-4)


@pytest.mark.parametrize("family", [Normal, Laplace])
def test_the_divergence_is_the_integral(family):
    """Within four standard errors; both mixtures, and one component against a mixture."""
    q, p = make(family, [[0.3, 0.5], [0.7, 0.5]]), make(family, [[0.9, 0.2], [0.1, 0.8]])
    for a in (q, as_mixture(family(jnp.full((2, 1), 0.4), jnp.full((2, 1), -0.2)))):
        samples = 4000
        found = kl_mixture(a, p, KEYS, samples=samples)
        z = a.sample(KEYS, "kl", samples)
        error = np.std(a.log_prob(z) - p.log_prob(z), axis=0) / samples**0.5
        for b in range(2):
            x, y = density(a, b), density(p, b)
            truth = np.trapezoid(x * (np.log(x) - np.log(y)), GRID)
            assert truth > 5 * error[b] and abs(found[b] - truth) < 4 * error[b]


def test_one_component_has_the_closed_form_and_equal_mixtures_diverge_by_nothing():
    a = as_mixture(Normal(jnp.ones((2, 3)), jnp.zeros((2, 3))))
    b = as_mixture(Normal(jnp.zeros((2, 3)), jnp.zeros((2, 3))))
    np.testing.assert_allclose(kl_mixture(a, b, KEYS, samples=1), 1.5)
    q = make(Normal, [[0.3, 1.0], [0.7, 0.0]])
    np.testing.assert_array_equal(kl_mixture(q, q, KEYS, samples=5), 0.0)


def test_components_are_drawn_by_their_weights_and_an_absent_one_never():
    drawn = np.asarray(make(Normal, [[0.3, 0.0], [0.7, 1.0]]).sample(KEYS, "z", 4000))[..., 0]
    np.testing.assert_allclose(drawn.mean(axis=0), [0.3 * -1 + 0.7 * 2.0, -0.5], atol=0.1)
    assert drawn[:, 1].std() == pytest.approx(0.6, abs=0.03)
