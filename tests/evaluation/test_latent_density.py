"""Fitted samplers against a known density, and priors against SciPy.

Gaps are in nats for each example, of likelihoods on 3000 fresh examples.
"""

from functools import partial

import numpy as np
import pytest
import scipy.stats

from tests.oracles.flows import Mixture, gaussian_log_prob
from xmodal_jax.evaluation.latent_density import fit_flow, fit_gaussian_mixture, prior_density
from xmodal_jax.train.loop import NonFiniteError

small_flow = partial(fit_flow, seed=0, steps=400, batch_size=256, hidden=24, layers=4, learning_rate=1e-2)
short_flow = partial(fit_flow, seed=0, steps=20, batch_size=32, hidden=5, layers=2, learning_rate=1e-2)
FITS = {
    "mixture": (partial(fit_gaussian_mixture, components=2, seed=0), 0.02),
    "flow": (small_flow, 0.1),
}
"""How each is fitted, and by how much its likelihood may fall short of the true density's."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((kind, dim), marks=pytest.mark.slow if (kind, dim) == ("flow", 2) else ())
        for kind in FITS
        for dim in (2, 5)
    ],
    ids=str,
)
def fitted(request):
    kind, dim = request.param
    truth = Mixture(dim)
    train = truth.sample(4000, seed=1).astype(np.float32)
    fit, gap = FITS[kind]
    return kind, truth, train, fit(train), gap


def test_likelihood_is_near_the_true_one_and_far_above_a_gaussians(fitted):
    kind, truth, train, sampler, gap = fitted
    assert sampler.name == kind
    fresh = truth.sample(3000, seed=2)
    got = sampler.log_prob(fresh)
    assert got.shape == (3000,) and got.dtype == np.float64
    short = truth.log_prob(fresh).mean() - got.mean()
    # By chance a wrong density may do better on the examples drawn, but only by little.
    assert -0.02 < short < gap
    assert got.mean() > gaussian_log_prob(train, fresh).mean() + 0.8


def test_samples_have_the_moments(fitted):
    _, truth, _, sampler, _ = fitted
    samples = sampler.sample(4000, 3)
    mean, covariance = truth.moments()
    assert samples.shape == (4000, len(mean)) and samples.dtype == np.float32
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.15)
    np.testing.assert_allclose(np.cov(samples, rowvar=False), covariance, atol=0.35)
    share = (samples @ np.ones(len(mean)) > 0).mean()
    np.testing.assert_allclose(share, truth.weights[1], atol=0.04)


def test_samples_are_of_the_density_that_log_prob_tells(fitted):
    """The mean of g / q under q is the integral of g, for narrower Gaussians g within each component."""
    _, truth, _, sampler, _ = fitted
    samples = sampler.sample(20000, 5)
    log_q = sampler.log_prob(samples)
    for mean, covariance in zip(truth.means, truth.covariances, strict=True):
        ratio = np.exp(scipy.stats.multivariate_normal(mean, covariance / 2).logpdf(samples) - log_q)
        error = ratio.std() / np.sqrt(len(ratio))
        assert error < 0.04
        np.testing.assert_allclose(ratio.mean(), 1.0, atol=4 * error)


def test_seeds_decide_the_samples(fitted):
    _, _, _, sampler, _ = fitted
    first = sampler.sample(11, 7)
    np.testing.assert_array_equal(sampler.sample(11, 7), first)
    np.testing.assert_allclose(sampler.sample(29, 7)[:11], first, rtol=1e-4, atol=1e-5)
    assert np.abs(sampler.sample(11, 8) - first).min(axis=1).max() > 0.01
    assert len(np.unique(first, axis=0)) == 11


@pytest.mark.parametrize("fit", [partial(fit_gaussian_mixture, components=3), short_flow])
def test_seeds_decide_the_fit(fit):
    codes = Mixture(3).sample(211, seed=0)
    of = lambda seed: fit(codes, seed=seed).log_prob(codes[:13])
    np.testing.assert_array_equal(of(1), of(1))
    assert not np.array_equal(of(1), of(2))


@pytest.mark.parametrize("fit", [partial(fit_gaussian_mixture, components=3, seed=0), short_flow])
def test_units_of_the_codes_do_not_matter(fit):
    """Powers of two, which change no digit: the fit is the same, its density in the other units."""
    codes = Mixture(3).sample(211, seed=0)
    units = np.array([1024.0, 1.0, 0.25])
    a, b = fit(codes), fit(codes * units)
    np.testing.assert_allclose(b.log_prob(codes * units), a.log_prob(codes) - np.log(units).sum(), rtol=1e-6)
    np.testing.assert_allclose(b.sample(11, 0), a.sample(11, 0) * units, rtol=1e-5)


def test_one_component_is_the_gaussian():
    codes = Mixture(3).sample(1009, seed=0)
    sampler = fit_gaussian_mixture(codes, components=1, seed=0)
    mean, covariance = codes.mean(0), np.cov(codes, rowvar=False, ddof=0)
    want = scipy.stats.multivariate_normal(mean, covariance).logpdf(codes)
    np.testing.assert_allclose(sampler.log_prob(codes), want, atol=1e-3)


def test_many_dimensions_have_diagonal_covariances():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(211, 67))
    # Neighbours are correlated: a full covariance would have a higher likelihood than independent dimensions.
    codes = noise + np.roll(noise, 1, axis=1)
    sampler = fit_gaussian_mixture(codes, components=1, seed=0)
    want = scipy.stats.norm(codes.mean(0), codes.std(0)).logpdf(codes).sum(axis=1)
    np.testing.assert_allclose(sampler.log_prob(codes), want, rtol=1e-4)
    samples = sampler.sample(2003, 0)
    np.testing.assert_allclose(samples.std(0), codes.std(0), rtol=0.1)
    correlation = np.corrcoef(samples, rowvar=False) - np.eye(67)
    assert np.abs(correlation).max() < 0.12 < np.abs(np.corrcoef(codes, rowvar=False) - np.eye(67)).max()


@pytest.mark.parametrize("dim", [1, 3])
def test_a_flow_that_gets_worse_keeps_its_start(dim):
    codes = Mixture(dim).sample(2003, seed=0)
    sampler = fit_flow(
        codes, seed=0, steps=3, batch_size=7, hidden=5, layers=2, learning_rate=30.0, evaluate_every=1
    )
    independent = scipy.stats.norm(codes.mean(0), codes.std(0)).logpdf(codes).sum(axis=1)
    np.testing.assert_allclose(sampler.log_prob(codes), independent, atol=0.3)
    np.testing.assert_allclose(sampler.log_prob(codes).mean(), independent.mean(), atol=0.01)


def test_the_last_step_of_a_flow_is_evaluated():
    codes = Mixture(2).sample(211, seed=0)
    fit = partial(short_flow, codes, steps=7)
    start = fit(learning_rate=1e-30, evaluate_every=1000).log_prob(codes)
    last = fit(evaluate_every=1000).log_prob(codes)
    np.testing.assert_allclose(fit(evaluate_every=7).log_prob(codes), last, rtol=1e-6)
    assert last.mean() > start.mean() + 0.01


def test_a_flow_that_diverges_is_an_error():
    with pytest.raises(NonFiniteError, match=r"step 2 .*learning_rate=1e\+20"):
        short_flow(Mixture(3).sample(211, seed=0), learning_rate=1e20)


@pytest.mark.parametrize("scale", [None, 0.7, (0.5, 2.0, 3.0)])
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_priors_are_scipys(kind, scale):
    prior = prior_density(3, kind, scale)
    assert prior.name == kind
    s = np.broadcast_to(1.0 if scale is None else scale, (3,))
    law = {"normal": scipy.stats.norm, "laplace": scipy.stats.laplace}[kind](scale=s)
    x = np.random.default_rng(0).normal(size=(13, 3)) * 2
    np.testing.assert_allclose(prior.log_prob(x), law.logpdf(x).sum(axis=1), rtol=1e-12)
    samples = prior.sample(2003, 1)
    assert samples.dtype == np.float32
    for uniform in law.cdf(samples).T:
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(samples, rowvar=False) - np.eye(3)).max() < 0.08
    np.testing.assert_array_equal(prior.sample(2003, 1), samples)
    np.testing.assert_array_equal(prior.sample(11, 1), samples[:11])
    assert not np.array_equal(prior.sample(11, 2), samples[:11])


CODES = np.random.default_rng(0).normal(size=(101, 3))


@pytest.mark.parametrize("fit", [partial(fit_gaussian_mixture, seed=0, components=2), short_flow])
def test_codes_without_a_density_are_refused(fit):
    for bad in (np.nan, np.inf):
        codes = CODES.copy()
        codes[7, 1] = bad
        with pytest.raises(ValueError, match="the first is example 7"):
            fit(codes)
    with pytest.raises(ValueError, match=r"latents must be \[examples, dim\]"):
        fit(CODES[:, 0])
    codes = CODES.copy()
    codes[:, 2] = 0.1
    with pytest.raises(ValueError, match="1 of 3 dimensions are constant, the first is 2"):
        fit(codes)


def test_too_few_codes_are_refused():
    with pytest.raises(
        ValueError, match="39 latents of 3 dimensions are too few for 10 components, which need 40"
    ):
        fit_gaussian_mixture(CODES[:39], seed=0)
    wide = np.random.default_rng(0).normal(size=(19, 65))
    with pytest.raises(ValueError, match="19 latents .* need 20"):
        fit_gaussian_mixture(wide, seed=0)
    with pytest.raises(ValueError, match="19 latents are too few to fit a flow"):
        short_flow(wide)


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda: fit_gaussian_mixture(CODES, components=0, seed=0), "components must be at least 1"),
        (lambda: short_flow(CODES, steps=0), "steps must be at least 1"),
        (lambda: short_flow(CODES, batch_size=0), "batch_size must be at least 1"),
        (lambda: short_flow(CODES, evaluate_every=0), "evaluate_every must be at least 1"),
        (lambda: short_flow(CODES, layers=0), "layers must be at least 1"),
        (lambda: short_flow(CODES, learning_rate=0.0), "learning_rate must be positive"),
        (lambda: prior_density(3, "cauchy"), "normal or laplace"),
        (lambda: prior_density(0), "dim must be at least 1"),
        (lambda: prior_density(3, scale=(1.0, 2.0)), "3 of them"),
        (lambda: prior_density(3, scale=0.0), "positive"),
        (lambda: prior_density(3, scale=np.nan), "positive"),
        (lambda: prior_density(3).sample(0, 0), "count must be at least 1"),
        (lambda: prior_density(3).log_prob(CODES[:, :2]), "of 3 dimensions, got latents of 2"),
        (lambda: prior_density(3).log_prob(CODES * np.inf), "NaN or infinity"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
