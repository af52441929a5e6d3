"""Flow matching against the closed forms of normal distributions."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from tests.probability.test_ode import gaussian_velocity
from xmodal_jax.losses import flow
from xmodal_jax.probability import ode

MEAN, SCALE = 1.5, 0.4


def mean_velocity(z, t, r):
    """The mean velocity of the flow from N(0, 1) to N(MEAN, SCALE^2): the path keeps the standardised value, so that
    ``z_r = r MEAN + s_r / s_t (z_t - t MEAN)``, with s_t the standard deviation at the time t."""
    deviation = lambda t: jnp.sqrt((1 - t) ** 2 + (t * SCALE) ** 2)[:, None]
    t_, r_ = t[:, None], r[:, None]
    end = r_ * MEAN + deviation(r) / deviation(t) * (z - t_ * MEAN)
    velocity = gaussian_velocity(MEAN, SCALE)(z, t)
    length = r_ - t_
    return jnp.where(length > 0, (end - z) / jnp.where(length > 0, length, 1.0), velocity)


def points(count=50, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, 2)), jnp.float32)


def test_the_best_predictor_is_the_closed_form_velocity():
    """The mean of the loss over noise and data is lowest at the exact velocity: any shift or scale of it costs."""
    count = 200_000
    noise, x = points(count), MEAN + SCALE * points(count, 1)
    t = jnp.asarray(np.random.default_rng(2).uniform(size=count), jnp.float32)
    z = flow.interpolate(x, noise, t)
    exact = gaussian_velocity(MEAN, SCALE)(z, t)
    loss = lambda change: float(flow.velocity_loss(change(exact), x, noise).mean())
    best = loss(lambda v: v)
    for change in (lambda v: v + 0.05, lambda v: v - 0.05, lambda v: 1.05 * v, lambda v: 0.95 * v):
        assert loss(change) > best + 1e-3
    np.testing.assert_allclose(loss(lambda v: v + 0.5), best + 0.25, atol=0.01)


def test_data_and_velocity_are_the_same_prediction():
    noise, x = points(), MEAN + SCALE * points(seed=1)
    t = jnp.linspace(0.0, 0.9, 50)
    z = flow.interpolate(x, noise, t)
    np.testing.assert_allclose(flow.data_to_velocity(x, z, t), x - noise, atol=1e-4)


def test_the_mean_velocity_satisfies_its_identity():
    """For the exact mean velocity the target is that velocity itself, at all pairs of times."""
    rng = np.random.default_rng(3)
    t = jnp.asarray(rng.uniform(0, 0.9, 50), jnp.float32)
    r = jnp.asarray(t + rng.uniform(0.01, 1.0, 50) * (1 - t), jnp.float32)
    z = t[:, None] * MEAN + points()
    velocity = gaussian_velocity(MEAN, SCALE)(z, t)
    prediction, target = flow.mean_velocity_target(mean_velocity, z, t, r, velocity)
    np.testing.assert_allclose(target, prediction, atol=2e-3)
    # A wrong tangent is told apart: without the part of t the identity does not hold.
    frozen_time = lambda z, _, r: mean_velocity(z, t, r)
    _, wrong = flow.mean_velocity_target(frozen_time, z, t, r, velocity)
    assert np.abs(wrong - prediction).max() > 0.1


def test_one_step_of_the_mean_velocity_is_the_solution():
    noise = points()
    zero, one = jnp.zeros(50), jnp.ones(50)
    sample = noise + mean_velocity(noise, zero, one)
    np.testing.assert_allclose(sample, MEAN + SCALE * noise, atol=1e-4)
    solved = ode.solve(gaussian_velocity(MEAN, SCALE), noise, ode.time_grid(200))
    np.testing.assert_allclose(sample, solved, atol=2e-3)


def test_the_target_has_no_gradient():
    z, t, r = points(), jnp.full(50, 0.2), jnp.full(50, 0.7)

    def total(factor):
        """The sum of targets, of a network with one factor."""
        u = lambda z, t, r: factor * mean_velocity(z, t, r)
        return (
            flow.mean_velocity_target(u, z, t, r, jnp.ones_like(z))[1].sum()
            + flow.shortcut_target(u, z, t, 0.25 * jnp.ones(50)).sum()
        )

    assert jax.grad(total)(1.3) == 0


def test_two_shortcuts_make_a_larger_one():
    """The mean of two exact consecutive mean velocities is the exact one of twice the length."""
    z, t, step = points(), jnp.full(50, 0.25), jnp.full(50, 0.125)
    got = flow.shortcut_target(mean_velocity, z, t, step)
    np.testing.assert_allclose(got, mean_velocity(z, t, t + 0.25), atol=1e-4)


def test_guidance_is_an_extrapolation():
    c, u = points(seed=1), points(seed=2)
    np.testing.assert_allclose(flow.guide(c, u, 1.0), c, atol=1e-6)
    np.testing.assert_allclose(flow.guide(c, u, 0.0), u, atol=1e-6)
    np.testing.assert_allclose(flow.guide(c, u, 3.0), 3 * c - 2 * u, atol=1e-5)


def test_times_have_their_distribution():
    keys = jax.random.split(jax.random.key(0), 20_000)
    normal = stats.norm(-0.4, 1.2)
    cdf = lambda t: normal.cdf(np.log(t / (1 - t)))
    assert stats.kstest(np.asarray(flow.logit_normal_times(keys, -0.4, 1.2)), cdf).pvalue > 1e-3
    assert stats.kstest(np.asarray(flow.uniform_times(keys)), "uniform").pvalue > 1e-3


def test_the_adaptive_weight_bounds_the_gradient():
    """The gradient of error / (error + c)^p with a stopped denominator: 1 / (error + c)^p."""
    error = jnp.array([0.1, 4.0])
    gradient = jax.grad(lambda e: flow.adaptive_weight(e, power=0.75, constant=0.01).sum())(error)
    np.testing.assert_allclose(gradient, (np.array([0.1, 4.0]) + 0.01) ** -0.75, rtol=1e-5)
