import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import vae as oracle
from xmodal_jax.core.random import example_keys
from xmodal_jax.losses import autoencoder
from xmodal_jax.losses.elbo import kl_with_free_bits
from xmodal_jax.losses.objective import ObjectiveInputs
from xmodal_jax.probability.distributions import Normal, standard_noise

RNG = np.random.default_rng(3)
B, D, X, SCALE = 5, 3, 7, 0.8
W, OFFSET = RNG.normal(size=(X, D)), RNG.normal(size=X)
DATA, MEAN = RNG.normal(size=(B, X)), RNG.normal(size=(B, D))
LOG_SCALE = 0.3 * RNG.normal(size=(B, D))
PRIOR_MEAN, PRIOR_LOG_SCALE = 0.5 * RNG.normal(size=(B, D)), 0.2 * RNG.normal(size=(B, D))
PRESENT = np.array([True, True, False, True, True])
KEYS = example_keys(jax.random.key(4), jnp.arange(B))


def compiled(objective, make=None, **options):
    """The terms of an objective of what ``make()`` gives, `problem` by default, as one program."""
    return jax.jit(lambda: objective((make or problem)(), **options))()


def as_float(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def linear(x, w=W, b=OFFSET, scale=SCALE, present=None):
    x, w, b = as_float(x, w, b)

    def log_likelihood(z):
        mean = jnp.einsum("xd,rbd->rbx", w, z) + b[None, None]
        terms = Normal(mean, jnp.full_like(mean, np.log(scale))).log_prob(
            jnp.broadcast_to(x[None], mean.shape)
        )
        found = terms.sum(axis=-1)
        return found if present is None else jnp.where(present[None], found, 0.0)

    return log_likelihood


def problem(
    mean=MEAN,
    log_scale=LOG_SCALE,
    *,
    point=False,
    learned=False,
    present=PRESENT,
    keys=KEYS,
    x=DATA,
    free_bits=0.0,
):
    q = Normal(*as_float(mean, log_scale))
    if point:
        q = q._replace(log_scale=jnp.full_like(q.mean, -jnp.inf))
    prior = Normal(*(as_float(PRIOR_MEAN, PRIOR_LOG_SCALE) if learned else [jnp.zeros_like(q.mean)] * 2))
    there = jnp.asarray(present)
    return inputs_of(q, prior, linear(x, present=there), there, keys, free_bits)


def inputs_of(q, prior, log_likelihood, present, keys, free_bits=0.0):
    kl_to_prior = lambda q, there: kl_with_free_bits(q, prior, free_bits=free_bits, present=there)
    return ObjectiveInputs(present, log_likelihood, kl_to_prior, prior, keys, posterior=q)


def drawn(count, keys=KEYS):
    """The noise that codes are made of, and the codes in float64: [count, B, D]."""
    noise = np.float64(standard_noise(keys, "code", (count, D)))
    return noise, MEAN[None] + np.exp(LOG_SCALE)[None] * noise


def rec(z):
    """[B], 0 where missing."""
    each = [-oracle.linear_log_likelihood(z[b], DATA[b], W, OFFSET, SCALE) for b in range(B)]
    return np.where(PRESENT, each, 0.0)


def test_reconstruction():
    terms = compiled(autoencoder.reconstruction)
    z = drawn(1)[1][0]
    np.testing.assert_allclose(terms.loss, rec(z), rtol=1e-5)
    np.testing.assert_allclose(terms.latent, z, rtol=1e-5, atol=1e-6)
    assert set(terms.metrics) == {"reconstruction"} and not terms.batch_terms


def test_of_a_point_the_code_is_the_point():
    """And nothing is not a number, in values and gradients."""

    def loss(mean):
        terms = autoencoder.reconstruction(problem(mean, point=True))
        return terms.loss.sum(), terms.latent

    (value, code), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(MEAN, jnp.float32))
    np.testing.assert_array_equal(code, np.float32(MEAN))
    np.testing.assert_allclose(value, rec(MEAN).sum(), rtol=1e-5)
    by_hand = -((DATA - MEAN @ W.T - OFFSET) / SCALE**2) @ W
    np.testing.assert_allclose(grad, np.where(PRESENT[:, None], by_hand, 0.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("learned", [False, True], ids=["N(0, 1)", "learned prior"])
def test_the_elbo_is_its_equation(samples, learned):
    beta = np.linspace(0.5, 2.5, B)
    options = dict(beta=jnp.asarray(beta, jnp.float32), samples=samples)
    terms = compiled(autoencoder.elbo, lambda: problem(learned=learned), **options)
    expected = np.mean([rec(z) for z in drawn(samples)[1]], axis=0)
    prior = (PRIOR_MEAN, np.exp(PRIOR_LOG_SCALE)) if learned else (0.0, 1.0)
    divergence = oracle.normal_kl(MEAN, np.exp(LOG_SCALE), *prior).sum(axis=1)
    np.testing.assert_allclose(terms.metrics["reconstruction"], expected, rtol=1e-5)
    np.testing.assert_allclose(terms.metrics["kl"], divergence, rtol=1e-5)
    np.testing.assert_allclose(terms.loss, expected + beta * divergence, rtol=1e-5)


def test_free_bits_count_over_those_present():
    each = oracle.normal_kl(MEAN, np.exp(LOG_SCALE))
    least = float(np.sort(each[PRESENT].mean(axis=0))[1]) * 1.01  # between the second and the third dimension
    below = each[PRESENT].mean(axis=0) < least
    assert 0 < below.sum() < D

    def loss(log_scale, free):
        p = problem(MEAN, log_scale, free_bits=free)
        terms = autoencoder.elbo(p._replace(log_likelihood=lambda z: jnp.zeros(z.shape[:2])))
        return terms.loss.sum(), terms.metrics["kl"]

    scale = jnp.asarray(LOG_SCALE, jnp.float32)
    (_, found), grad = jax.jit(jax.value_and_grad(lambda x: loss(x, least), has_aux=True))(scale)
    grad = np.asarray(grad)
    np.testing.assert_allclose(found, oracle.free_kl(each, least, PRESENT), rtol=1e-5)
    assert not np.any(grad[:, below]) and np.all(grad[:, ~below] != 0)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_importance_weighted_bound_is_its_equation(estimator, beta):
    how = dict(samples=4, estimator=estimator, beta=beta)
    terms = compiled(autoencoder.importance_weighted, **how)
    _, z = drawn(4)
    ratio = (
        oracle.normal_log_prob(z, 0.0, 1.0) - oracle.normal_log_prob(z, MEAN[None], np.exp(LOG_SCALE)[None])
    ).sum(axis=-1)
    weights = beta * ratio - np.stack([rec(each) for each in z])
    expected = [-oracle.importance_bound(list(column)) for column in weights.T]
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(terms.metrics["kl"], -ratio.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        terms.metrics["reconstruction"], np.mean([rec(each) for each in z], axis=0), rtol=1e-5
    )


def test_with_one_sample_it_is_the_elbo_with_that_samples_divergence():
    bound, terms = compiled(autoencoder.importance_weighted, samples=1), compiled(autoencoder.elbo)
    np.testing.assert_allclose(bound.metrics["reconstruction"], terms.metrics["reconstruction"], rtol=1e-6)
    noise, z = drawn(1)
    sampled = (0.5 * z**2 - 0.5 * noise**2 - LOG_SCALE[None]).sum(axis=-1)[0]
    np.testing.assert_allclose(bound.loss, terms.metrics["reconstruction"] + sampled, rtol=1e-5)


def many(count, seed=0):
    """One example again and again, and its evidence."""
    x, n = DATA[0], lambda a: np.broadcast_to(a, (count, len(a)))
    keys = example_keys(jax.random.key(seed), jnp.arange(count))
    return x, n, keys, oracle.linear_evidence(x, W, OFFSET, SCALE)


def test_the_bound_rises_with_the_samples_to_the_evidence():
    count = 1000
    x, n, keys, evidence = many(count)
    mean, cov = oracle.linear_posterior(x, W, OFFSET, SCALE)
    # A posterior that is near, and wider than the true one: weights are bounded.
    p = problem(
        n(mean + 0.2), n(np.full(D, 0.5 * np.log(2 * np.diag(cov).max()))), present=np.ones(count, bool)
    )
    p = p._replace(keys=keys, log_likelihood=linear(n(x)))
    bounds = [
        -np.float64(compiled(autoencoder.importance_weighted, lambda: p, samples=k).loss)
        for k in (1, 4, 16, 256)
    ]
    means = np.array([b.mean() for b in bounds])
    errors = np.array([b.std() for b in bounds]) / np.sqrt(count)
    assert np.all(np.diff(means) > 3 * np.hypot(errors[1:], errors[:-1])), (means, errors)
    assert np.all(means < evidence + 3 * errors)
    assert abs(means[-1] - evidence) < 0.05 < evidence - means[0]


def posterior_gradient(estimator, log_scale, mean, p, samples, beta=1.0):
    """By the parameters of one posterior that all examples share, an example's at a time."""

    def one(key, x):
        def loss(mean, log_scale):
            q = Normal(mean[None], log_scale[None])
            own = inputs_of(
                q, Normal(*[jnp.zeros_like(q.mean)] * 2), linear(x[None]), jnp.ones(1, bool), key[None]
            )
            how = dict(samples=samples, estimator=estimator, beta=beta)
            return autoencoder.importance_weighted(own, **how).loss[0]

        return jnp.concatenate(jax.grad(loss, (0, 1))(mean, log_scale))

    return np.float64(jax.jit(jax.vmap(one, (0, None)))(p.keys, jnp.asarray(DATA[0], jnp.float32)))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.5])
def test_dreg_has_the_same_mean_gradient(beta):
    """As the plain gradient of the value, by Monte-Carlo; with beta 1 also a smaller variance."""
    count = 20000
    x, n, keys, _ = many(count, seed=1)
    mean, cov = oracle.linear_posterior(x, W, OFFSET, SCALE)
    q = as_float(0.5 * np.log(2 * np.diag(cov)), mean + 0.15)
    p = problem()._replace(keys=keys)
    plain, dreg = (posterior_gradient(name, *q, p, 4, beta) for name in ("iwae", "dreg"))
    errors = np.sqrt((plain.var(axis=0) + dreg.var(axis=0)) / count)
    gap = np.abs(plain.mean(axis=0) - dreg.mean(axis=0))
    assert np.all(gap < 4 * errors), (gap, errors)
    assert (np.abs(dreg.mean(axis=0)) / errors).max() > 20  # there is something to agree on
    if beta == 1.0:
        assert np.all(dreg.var(axis=0) < plain.var(axis=0))


def test_dreg_has_no_gradient_at_the_true_posterior():
    """With independent codes: w has orthogonal columns, so that the true posterior is one that q can be."""
    w = np.linalg.qr(W)[0]
    mean, cov = oracle.linear_posterior(DATA[0], w, OFFSET, SCALE)
    assert np.allclose(cov, np.diag(np.diag(cov)))
    x = DATA[:1]

    def grads(estimator):
        def loss(mean, log_scale):
            q = Normal(mean[None], log_scale[None])
            p = inputs_of(q, Normal(*[jnp.zeros_like(q.mean)] * 2), linear(x, w), jnp.ones(1, bool), KEYS[:1])
            return autoencoder.importance_weighted(p, samples=3, estimator=estimator).loss[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(*as_float(mean, 0.5 * np.log(np.diag(cov))))

    value, dreg = grads("dreg")
    np.testing.assert_allclose(value, -oracle.linear_evidence(x[0], w, OFFSET, SCALE), rtol=1e-5)
    assert max(np.abs(g).max() for g in dreg) < 1e-4
    assert max(np.abs(g).max() for g in grads("iwae")[1]) > 0.1


@pytest.mark.parametrize("name", sorted(autoencoder.KERNELS))
def test_the_matched_loss_is_its_equation(name):
    beta = jnp.full((B,), 2.5)
    terms = compiled(autoencoder.mmd_to_prior, beta=beta, kernel=name)
    z = drawn(1)[1][0]
    wanted = np.float64(standard_noise(KEYS, "prior", (D,)))
    expected = oracle.mmd(z[PRESENT], wanted[PRESENT], getattr(oracle, name))
    share, weight = terms.batch_terms["mmd"]
    # The root of "distance" has 1e-6 added to what is under it.
    np.testing.assert_allclose(share, expected, rtol=2e-4, atol=1e-5)
    assert weight == 2.5
    np.testing.assert_allclose(terms.loss, rec(z), rtol=1e-5)


def test_weights_that_differ_count_with_their_mean():
    """Of the examples that are present; equal weights stay what they are, to the last bit."""
    beta = np.linspace(0.0, 7.3, B).astype(np.float32)
    terms = compiled(autoencoder.mmd_to_prior, beta=jnp.asarray(beta))
    np.testing.assert_allclose(terms.batch_terms["mmd"][1], beta[PRESENT].mean(), rtol=1e-6)
    for value in (0.1, 1 / 3, 10.0):
        assert compiled(autoencoder.mmd_to_prior, beta=jnp.full((B,), value)).batch_terms["mmd"][
            1
        ] == np.float32(value)


@pytest.mark.parametrize("name", sorted(autoencoder.KERNELS))
def test_kernels_tell_codes_from_the_prior(name):
    """At any number of dimensions: where the widths do not fit, all are alike."""
    for dim in (2, 61):
        keys = example_keys(jax.random.key(dim), jnp.arange(200))

        @jax.jit
        def both(keys, dim=dim):
            wanted, same, other = (standard_noise(keys, what, (dim,)) for what in ("a", "b", "c"))
            apart = functools.partial(autoencoder.mmd, kernel=autoencoder.make_kernel(name, dim))
            return apart(0.7 * other, wanted), apart(same, wanted)

        far, near = both(keys)
        assert far > 5 * abs(near)


def test_an_absent_example_has_no_influence_on_the_match():
    def share(mean):
        return autoencoder.mmd_to_prior(problem(mean)).batch_terms["mmd"][0]

    value_and_grad = jax.jit(jax.value_and_grad(share))
    value, grad = map(np.asarray, value_and_grad(np.float32(MEAN)))
    assert not np.any(grad[~PRESENT]) and np.all(np.any(grad[PRESENT], axis=1))
    far = np.where(PRESENT[:, None], np.float32(MEAN), np.float32(1e6))
    np.testing.assert_array_equal(value_and_grad(far)[0], value)


def test_errors_say_what_there_is():
    with pytest.raises(ValueError, match="estimator must be one of"):
        autoencoder.importance_weighted(problem(), estimator="stl")
    with pytest.raises(ValueError, match="kernel must be one of imq"):
        autoencoder.mmd_to_prior(problem(), kernel="linear")
