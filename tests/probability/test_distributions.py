from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.core.random import example_keys
from xmodal_jax.probability import distributions
from xmodal_jax.probability.distributions import Laplace, Normal, kl, standard_noise

FAMILIES = {Normal: scipy.stats.norm, Laplace: scipy.stats.laplace}
RNG = np.random.default_rng(5)
means, scales = st.floats(-5, 5, width=32), st.floats(-2, 2, width=32)
families = pytest.mark.parametrize("family", FAMILIES)


def make(family, shape=(3, 7), seed=0):
    rng = np.random.default_rng(seed)
    mean, log_scale = np.float32(rng.normal(size=shape)), np.float32(0.7 * rng.normal(size=shape))
    return family(jnp.asarray(mean), jnp.asarray(log_scale)), FAMILIES[family](
        np.float64(mean), np.exp(np.float64(log_scale))
    )


def pair(family, *numbers):
    of = [jnp.float32(n) for n in numbers]
    return family(*of[:2]), family(*of[2:])


@families
def test_log_prob_is_scipys(family):
    q, known = make(family)
    x = np.float32(3 * RNG.normal(size=(3, 7)))
    np.testing.assert_allclose(q.log_prob(jnp.asarray(x)), known.logpdf(x), rtol=1e-5, atol=1e-5)


@families
@pytest.mark.parametrize("log_scale", [-30.0, 30.0])
def test_log_prob_at_extreme_scales(family, log_scale):
    x = 0.5 * np.exp(log_scale)
    found = family(jnp.zeros(1), jnp.full(1, log_scale)).log_prob(jnp.full(1, np.float32(x)))
    np.testing.assert_allclose(found, FAMILIES[family](0, np.exp(log_scale)).logpdf(x), rtol=1e-5)


@families
@given(st.tuples(means, scales, means, scales))
def test_kl_is_the_integral(family, numbers):
    q, p = pair(family, *numbers)
    of = lambda d: FAMILIES[family](float(d.mean), np.exp(float(d.log_scale)))
    known_q, known_p = of(q), of(p)
    integrand = lambda x: known_q.pdf(x) * (known_q.logpdf(x) - known_p.logpdf(x))
    # Piece by piece between the kinks, out to where q holds nothing.
    reach = 40 * np.exp(float(q.log_scale))
    ends = sorted({float(q.mean) - reach, float(q.mean), float(q.mean) + reach})
    middle = [float(p.mean)] if ends[0] < float(p.mean) < ends[-1] else []
    ends = sorted({*ends, *middle, *np.clip(float(p.mean) + np.array([-1, 1]), ends[0], ends[-1])})
    want = sum(scipy.integrate.fixed_quad(integrand, a, b, n=200)[0] for a, b in pairwise(ends))
    np.testing.assert_allclose(kl(q, p), want, rtol=1e-4, atol=1e-5)


@families
@given(st.tuples(means, scales, means, scales))
def test_kl_is_not_negative_and_zero_at_equality(family, numbers):
    q, p = pair(family, *numbers)
    found = float(kl(q, p))
    # What rounding leaves of the difference of terms so large.
    assert found >= -1e-6 * (1 + abs(float(q.log_scale - p.log_scale)))
    assert float(kl(q, q)) == 0 and float(kl(p, p)) == 0
    if max(abs(numbers[0] - numbers[2]), abs(numbers[1] - numbers[3])) > 0.1:
        assert found > 1e-6


@families
def test_kl_gradients_are_zero_at_equality_and_finite(family):
    q, _ = make(family)
    grad = jax.grad(lambda q: kl(q, q).sum())(q)
    np.testing.assert_allclose(grad.mean, 0.0, atol=1e-6)
    np.testing.assert_allclose(grad.log_scale, 0.0, atol=1e-6)
    one = jax.grad(lambda a, b: kl(a, b).sum(), (0, 1))(q, jax.tree.map(lambda x: x, q))
    for g in jax.tree.leaves(one):
        assert np.isfinite(g).all()
    np.testing.assert_allclose(one[0].log_scale, 0.0, atol=1e-6)


def test_kl_of_two_families_is_an_error():
    with pytest.raises(TypeError, match="no closed form for a Normal against a Laplace"):
        kl(make(Normal)[0], make(Laplace)[0])


@families
def test_samples_are_reparametrised(family):
    q, known = make(family)
    noise = jnp.asarray(RNG.normal(size=(3, 7)), jnp.float32)
    np.testing.assert_allclose(
        q.reparametrize(noise), known.args[0] + known.args[1] * noise, rtol=1e-5, atol=1e-6
    )
    grad = jax.grad(lambda q: (q.reparametrize(noise) * jnp.arange(7.0)[None]).sum())(q)
    np.testing.assert_allclose(grad.mean, np.broadcast_to(np.arange(7.0), (3, 7)), rtol=1e-6)
    np.testing.assert_allclose(grad.log_scale, np.arange(7.0) * np.exp(q.log_scale) * noise, rtol=1e-5)


@families
def test_samples_come_from_the_distribution(family, key):
    keys = example_keys(key, jnp.arange(1009))
    drawn = standard_noise(keys, "z", (3, 5), family)
    noise = np.asarray(drawn)
    assert noise.shape == (3, 1009, 5)
    known = FAMILIES[family]()
    assert scipy.stats.kstest(noise.ravel(), known.cdf).pvalue > 1e-3
    # No two elements, examples or rows are alike.
    assert len(np.unique(noise)) > 0.99 * noise.size
    assert np.abs(np.corrcoef(np.moveaxis(noise, 1, -1).reshape(15, -1)) - np.eye(15)).max() < 0.15
    q = family(jnp.full_like(drawn, 0.3), jnp.full_like(drawn, -0.5))
    cdf = FAMILIES[family](0.3, np.exp(-0.5)).cdf
    assert scipy.stats.kstest(np.asarray(q.reparametrize(drawn)).ravel(), cdf).pvalue > 1e-3


@families
def test_noise_belongs_to_the_example_and_the_name(family, key):
    keys = example_keys(key, jnp.arange(11))
    noise = standard_noise(keys, "z", (2, 3), family)
    order = RNG.permutation(11)
    np.testing.assert_array_equal(standard_noise(keys[order], "z", (2, 3), family), noise[:, order])
    np.testing.assert_array_equal(standard_noise(keys[4:6], "z", (2, 3), family), noise[:, 4:6])
    assert not np.any(standard_noise(keys, "w", (2, 3), family) == noise)
    assert standard_noise(keys, "z", (3,), family).shape == (11, 3)


@families
def test_standard_and_detached(family):
    q, _ = make(family)
    one = distributions.standard_like(q)
    assert type(one) is family and one.mean.shape == q.mean.shape
    assert not np.any(one.mean) and not np.any(one.log_scale)
    value, grad = jax.value_and_grad(lambda q: distributions.detach(q).log_prob(jnp.zeros((3, 7))).sum())(q)
    assert value == q.log_prob(jnp.zeros((3, 7))).sum()
    assert not any(np.any(g) for g in grad)


@given(st.floats(-12, 12, width=32), st.floats(-12, 12, width=32))
def test_kl_of_bernoulli_is_scipys(q, p):
    found = distributions.kl_bernoulli(jnp.float32(q), jnp.float32(p))
    chances = [np.array([scipy.special.expit(x), scipy.special.expit(-x)]) for x in (q, p)]
    np.testing.assert_allclose(found, scipy.stats.entropy(*chances), rtol=1e-4, atol=1e-6)
    assert float(distributions.kl_bernoulli(jnp.float32(q), jnp.float32(q))) == 0


def test_kl_of_categorical_is_scipys():
    q, p = (np.float32(2 * RNG.normal(size=(3, 5, 7))) for _ in range(2))
    found = distributions.kl_categorical(jnp.asarray(q), jnp.asarray(p))
    want = scipy.stats.entropy(scipy.special.softmax(q, -1), scipy.special.softmax(p, -1), axis=-1)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    # Logits are up to a constant.
    np.testing.assert_allclose(distributions.kl_categorical(jnp.asarray(q), jnp.asarray(q + 3)), 0, atol=1e-5)


def test_log_prob_of_bernoulli_is_scipys():
    logits, x = np.float32(4 * RNG.normal(size=101)), RNG.integers(0, 2, 101)
    found = distributions.bernoulli_log_prob(jnp.asarray(logits), jnp.asarray(x, jnp.float32))
    known = scipy.stats.bernoulli(scipy.special.expit(np.float64(logits)))
    np.testing.assert_allclose(found, known.logpmf(x), rtol=1e-5, atol=1e-6)
    # Linear in x.
    half = distributions.bernoulli_log_prob(jnp.asarray(logits), jnp.full(101, 0.25))
    np.testing.assert_allclose(half, 0.25 * known.logpmf(1) + 0.75 * known.logpmf(0), rtol=1e-5)


def test_log_prob_of_bernoulli_is_finite_far_out():
    logits, x = jnp.asarray([-300.0, -300.0, 300.0, 300.0]), jnp.asarray([0.0, 1.0, 0.0, 1.0])
    found = distributions.bernoulli_log_prob(logits, x)
    np.testing.assert_allclose(found, [0.0, -300.0, -300.0, 0.0])
    grad = jax.grad(lambda l: distributions.bernoulli_log_prob(l, x).sum())(logits)
    np.testing.assert_allclose(grad, [0.0, 1.0, -1.0, 0.0])


def test_log_prob_of_categorical_is_scipys():
    logits, of = np.float32(3 * RNG.normal(size=(11, 5))), RNG.integers(0, 5, 11)
    found = distributions.categorical_log_prob(jnp.asarray(logits), jnp.asarray(of))
    known = [
        scipy.stats.multinomial(1, scipy.special.softmax(np.float64(row))).logpmf(np.eye(5)[c])
        for row, c in zip(logits, of, strict=True)
    ]
    np.testing.assert_allclose(found, known, rtol=1e-5)


def test_a_class_outside_the_range_takes_the_nearest():
    logits = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    found = distributions.categorical_log_prob(logits, jnp.asarray([-7, -1, 3, 99]))
    np.testing.assert_array_equal(
        found, distributions.categorical_log_prob(logits, jnp.asarray([0, 0, 2, 2]))
    )
