import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from xmodal_jax.probability import likelihoods

RNG = np.random.default_rng(11)
ROWS, B = 2, 5
KNOWN = {
    "normal": lambda said, x, scale: scipy.stats.norm(said, scale).logpdf(x),
    "laplace": lambda said, x, scale: scipy.stats.laplace(said, scale).logpdf(x),
    "bernoulli": lambda said, x, scale: (
        x * np.log(scipy.special.expit(said)) + (1 - x) * np.log(scipy.special.expit(-said))
    ),
}


@pytest.mark.parametrize("kind", likelihoods.DENSITIES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2)], ids=str)
def test_a_dense_likelihood_is_the_sum_over_the_elements(kind, shape):
    said, x = RNG.normal(size=(ROWS, B, *shape)), RNG.uniform(size=(B, *shape))
    said, x = np.float32(said), np.float32(x)
    found = likelihoods.dense_log_likelihood(kind, jnp.asarray(said), jnp.asarray(x), scale=0.75)
    want = [
        [KNOWN[kind](np.float64(said[r, b]), np.float64(x[b]), 0.75).sum() for b in range(B)]
        for r in range(ROWS)
    ]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_a_binary_image_has_the_probability_of_its_pixels():
    said, x = np.float32(RNG.normal(size=(1, B, 7))), RNG.integers(0, 2, (B, 7))
    found = likelihoods.dense_log_likelihood("bernoulli", jnp.asarray(said), jnp.asarray(x, jnp.float32))
    known = scipy.stats.bernoulli(scipy.special.expit(np.float64(said[0]))).logpmf(x).sum(axis=1)
    np.testing.assert_allclose(found[0], known, rtol=1e-5)


def test_another_kind_is_an_error():
    with pytest.raises(ValueError, match="likelihood must be one of .* got 'poisson'"):
        likelihoods.dense_log_likelihood("poisson", jnp.zeros((1, 2, 3)), jnp.zeros((2, 3)))


def test_tokens_count_under_the_mask():
    logits, ids = np.float32(2 * RNG.normal(size=(ROWS, B, 7, 11))), RNG.integers(0, 11, (B, 7))
    mask = np.arange(7) < np.array([7, 1, 0, 3, 5])[:, None]
    ids = np.where(mask, ids, -1)

    def found(logits):
        return likelihoods.token_log_likelihood(logits, jnp.asarray(ids), jnp.asarray(mask))

    log_p = scipy.special.log_softmax(np.float64(logits), axis=-1)
    want = [
        [sum(log_p[r, b, t, ids[b, t]] for t in range(7) if mask[b, t]) for b in range(B)]
        for r in range(ROWS)
    ]
    np.testing.assert_allclose(found(jnp.asarray(logits)), want, rtol=1e-5, atol=1e-6)
    assert not np.any(found(jnp.asarray(logits))[:, 2])
    grad = np.asarray(jax.grad(lambda l: found(l).sum())(jnp.asarray(logits)))
    assert not np.any(grad[:, ~mask]) and np.all(np.any(grad[:, mask], axis=-1))
    # What lies under no mask may be anything.
    other = np.where(mask[None, :, :, None], logits, 1e30)
    np.testing.assert_array_equal(found(jnp.asarray(np.float32(other))), found(jnp.asarray(logits)))


def test_labels():
    logits, labels = np.float32(2 * RNG.normal(size=(ROWS, B, 3))), RNG.integers(0, 3, B)
    found = likelihoods.label_log_likelihood(jnp.asarray(logits), jnp.asarray(labels))
    want = scipy.special.log_softmax(np.float64(logits), axis=-1)[:, np.arange(B), labels]
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize("kind", likelihoods.MEASURED_LIKELIHOODS)
@pytest.mark.parametrize("degrees", [1.5, 4.0, 60.0])
def test_measured_quantities_have_the_density_of_scipy(kind, degrees):
    """Each feature with its scale, also far from the mean; values that are missing do not count, even if they are
    NaN."""
    mean, scale = RNG.normal(size=(ROWS, B, 3, 4)), np.exp(RNG.normal(size=4))
    x, mask = 3 * RNG.standard_cauchy(size=(B, 3, 4)), RNG.random((B, 3, 4)) < 0.7
    x = np.float32(np.where(mask, x, np.nan))
    log_scale = np.broadcast_to(np.log(scale), mean.shape)
    arrays = [jnp.asarray(a, jnp.float32) for a in (mean, log_scale, x)]
    found = likelihoods.measured_log_likelihood(kind, *arrays, jnp.asarray(mask), degrees=degrees)
    known = scipy.stats.norm(mean, scale) if kind == "normal" else scipy.stats.t(degrees, mean, scale)
    terms = np.where(mask, known.logpdf(np.where(mask, x, 0.0)), 0.0)
    np.testing.assert_allclose(found, terms.sum(axis=(2, 3)), rtol=2e-5)


@pytest.mark.parametrize("kind", likelihoods.MEASURED_LIKELIHOODS)
def test_a_missing_value_has_exactly_no_gradient(kind):
    mask = RNG.random((B, 6)) < 0.5
    x = jnp.asarray(np.where(mask, RNG.normal(size=mask.shape), np.nan), jnp.float32)
    mean, log_scale = jnp.zeros((1, B, 6)), jnp.zeros((1, B, 6))
    summed = lambda *args: likelihoods.measured_log_likelihood(kind, *args, jnp.asarray(mask)).sum()
    for gradient in jax.grad(summed, argnums=(0, 1, 2))(mean, log_scale, x):
        gradient = np.asarray(gradient).reshape(mask.shape)
        assert not gradient[~mask].any() and gradient[mask].all()


def test_another_measured_likelihood_is_an_error():
    zeros = jnp.zeros((1, 2, 3))
    with pytest.raises(ValueError, match="likelihood must be one of .* got 'laplace'"):
        likelihoods.measured_log_likelihood("laplace", zeros, zeros, zeros[0], zeros[0] == 0)


@pytest.mark.parametrize("kind", likelihoods.DENSITIES)
def test_draws_have_the_distribution_of_the_likelihood(kind):
    """By the test of Kolmogorov and Smirnov, and for pixels that are on or off by their fraction."""
    outputs = jnp.full((20_000,), 0.4)
    x = np.float64(likelihoods.DENSITIES[kind].sample(jax.random.key(0), outputs, 0.75))
    if kind == "bernoulli":
        assert set(np.unique(x)) == {0.0, 1.0}
        assert x.mean() == pytest.approx(scipy.special.expit(0.4), abs=0.015)
    else:
        family = {"normal": scipy.stats.norm, "laplace": scipy.stats.laplace}[kind]
        assert scipy.stats.kstest(x, family(0.4, 0.75).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", likelihoods.MEASURED_LIKELIHOODS)
def test_measured_draws_have_the_distribution_of_the_likelihood(kind):
    mean, log_scale = jnp.full((20_000,), -0.3), jnp.full((20_000,), 0.2)
    x = np.float64(likelihoods.sample_measured(jax.random.key(1), kind, mean, log_scale, degrees=3.0))
    known = scipy.stats.norm(-0.3, np.exp(0.2)) if kind == "normal" else scipy.stats.t(3.0, -0.3, np.exp(0.2))
    assert scipy.stats.kstest(x, known.cdf).pvalue > 1e-3
