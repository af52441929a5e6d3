"""A density fitted by flow matching, against known ones."""

from functools import partial

import jax
import numpy as np
import pytest
import scipy.stats

from tests.oracles.flows import Mixture, gaussian_log_prob
from xmodal_jax.evaluation.matching_density import Whitening, fit_flow_matching
from xmodal_jax.train.loop import NonFiniteError

small_fit = partial(fit_flow_matching, seed=0, steps=800, width=32, depth=1, learning_rate=1e-2)
short_fit = partial(fit_flow_matching, seed=0, steps=20, batch_size=32, width=8, depth=1)


@pytest.fixture(scope="module")
def fitted():
    truth = Mixture(2)
    train = truth.sample(4000, seed=1)
    return truth, train, small_fit(train)


def test_likelihood_is_near_the_true_one_and_far_above_a_gaussians(fitted):
    truth, train, density = fitted
    fresh = truth.sample(1500, seed=2)
    log_prob = density.log_prob(fresh)
    assert density.name == "flow_matching" and log_prob.shape == (1500,) and log_prob.dtype == np.float64
    assert -0.05 < truth.log_prob(fresh).mean() - log_prob.mean() < 0.2
    assert log_prob.mean() > gaussian_log_prob(train, fresh).mean() + 0.5


def test_samples_have_the_moments_and_the_shares(fitted):
    truth, _, density = fitted
    samples = density.sample(4000, 3)
    mean, covariance = truth.moments()
    assert samples.shape == (4000, 2) and samples.dtype == np.float32
    np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.25)
    np.testing.assert_allclose(np.cov(samples, rowvar=False), covariance, atol=0.5)
    assert abs((samples.sum(axis=1) > 0).mean() - truth.weights[1]) < 0.06


def test_samples_are_of_the_density_that_log_prob_tells(fitted):
    """The mean of g / q under q is the integral of g, for narrower Gaussians g within each component."""
    truth, _, density = fitted
    samples = density.sample(4000, 5)
    log_q = density.log_prob(samples)
    for mean, covariance in zip(truth.means, truth.covariances, strict=True):
        ratio = np.exp(scipy.stats.multivariate_normal(mean, covariance / 2).logpdf(samples) - log_q)
        error = ratio.std() / np.sqrt(len(ratio))
        assert error < 0.06
        np.testing.assert_allclose(ratio.mean(), 1.0, atol=4 * error)


def test_normal_latents_are_drawn_with_their_mean_and_covariance():
    """The fitted flow of Gaussian latents: moments within the error of 4000 samples and of 4000 latents."""
    rng = np.random.default_rng(0)
    dim = 6
    root, mean = rng.normal(size=(dim, dim)), rng.normal(size=dim) * 10
    latents = mean + rng.normal(size=(4000, dim)) @ root.T
    samples = small_fit(latents, steps=100).sample(4000, 1)
    covariance = root @ root.T
    std = np.sqrt(np.diag(covariance))
    # A mean differs by std sqrt(2 / 4000), a covariance by at most std_i std_j sqrt(4 / 4000); five times that.
    assert (np.abs(samples.mean(axis=0) - mean) < 5 * std * np.sqrt(2 / 4000)).all()
    difference = np.cov(samples, rowvar=False) - covariance
    assert (np.abs(difference) < 5 * std[:, None] * std[None] * np.sqrt(4 / 4000)).all()


def test_without_training_it_is_the_gaussian_of_the_latents():
    """The velocity is 0 at first: the density of the nine tenths of the latents that are not held out."""
    latents = Mixture(3).sample(211, seed=0)
    density = short_fit(latents, learning_rate=1e-30)
    order = np.random.Generator(np.random.Philox(0)).permutation(211)
    train = latents[order[21:]]
    normal = scipy.stats.multivariate_normal(train.mean(axis=0), np.cov(train, rowvar=False, ddof=0))
    np.testing.assert_allclose(density.log_prob(latents[:50]), normal.logpdf(latents[:50]), rtol=1e-3)
    samples = density.sample(11, 1)
    noise = np.random.Generator(np.random.Philox(np.random.SeedSequence(1).spawn(2)[0])).standard_normal(
        (11, 3)
    )
    np.testing.assert_allclose(samples, Whitening.fit(train).invert(noise), rtol=1e-5, atol=1e-5)


def test_whitened_latents_have_mean_0_and_covariance_1():
    latents = Mixture(4).sample(1000, seed=0) * [1e3, 1.0, 1e-3, 5.0]
    whitening = Whitening.fit(latents)
    whitened = whitening.apply(latents)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(whitened, rowvar=False, ddof=0), np.eye(4), atol=1e-3)
    np.testing.assert_allclose(whitening.invert(whitened), latents, rtol=1e-4, atol=1e-4)
    slope = np.linalg.slogdet(
        np.linalg.lstsq(latents - latents.mean(axis=0), np.float64(whitened), rcond=None)[0]
    )
    np.testing.assert_allclose(whitening.log_det, slope[1], rtol=1e-4)


def test_dimensions_that_are_copies_are_drawn_as_copies():
    latents = Mixture(2).sample(211, seed=0)
    copies = np.concatenate([latents, latents[:, :1]], axis=1)
    samples = short_fit(copies).sample(200, 0)
    assert np.isfinite(samples).all()
    np.testing.assert_allclose(samples[:, 0], samples[:, 2], atol=0.05)


def test_seeds_decide_fit_and_samples():
    latents = Mixture(3).sample(211, seed=0)
    first = short_fit(latents).sample(11, 7)
    np.testing.assert_array_equal(short_fit(latents).sample(11, 7), first)
    np.testing.assert_allclose(short_fit(latents).sample(29, 7)[:11], first, rtol=1e-4, atol=1e-5)
    assert np.abs(short_fit(latents).sample(11, 8) - first).min(axis=1).max() > 0.01
    assert not np.array_equal(short_fit(latents, seed=1).sample(11, 7), first)


def test_units_of_the_latents_do_not_matter():
    """Powers of two, which change no digit."""
    latents, units = Mixture(3).sample(211, seed=0), np.array([1024.0, 1.0, 0.25])
    a, b = short_fit(latents), short_fit(latents * units)
    np.testing.assert_allclose(b.sample(11, 0), a.sample(11, 0) * units, rtol=1e-5)
    np.testing.assert_allclose(b.log_prob(latents[:50] * units), a.log_prob(latents[:50]) - np.log(units).sum(),
                               rtol=1e-5)  # fmt: skip


def test_the_loss_of_the_held_out_latents_decides():
    """Steps that make it worse are not kept: the density is that of the start."""
    latents = Mixture(3).sample(211, seed=0)
    fit = partial(short_fit, latents, steps=3, evaluate_every=1)
    worse, start = fit(learning_rate=30.0), fit(learning_rate=1e-30)
    np.testing.assert_allclose(worse.sample(11, 0), start.sample(11, 0), rtol=1e-4, atol=1e-4)


def test_a_fit_that_diverges_is_an_error():
    with jax.debug_nans(False), pytest.raises(NonFiniteError, match=r"learning_rate=1e\+30"):
        short_fit(Mixture(3).sample(211, seed=0), learning_rate=1e30)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=0), "steps must be at least 1"),
        (dict(width=0), "width must be at least 1"),
        (dict(depth=0), "depth must be at least 1"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(learning_rate=0.0), "learning_rate must be positive"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        short_fit(Mixture(2).sample(101, seed=0), **change)


def test_latents_without_a_density_are_refused():
    latents = Mixture(3).sample(101, seed=0)
    with pytest.raises(ValueError, match="19 latents are too few"):
        short_fit(latents[:19])
    with pytest.raises(ValueError, match="1 of 3 dimensions are constant, the first is 2"):
        short_fit(np.concatenate([latents[:, :2], np.ones((101, 1))], axis=1))
    latents[7, 1] = np.nan
    with pytest.raises(ValueError, match="the first is example 7"):
        short_fit(latents)
