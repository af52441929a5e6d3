"""Solvers against closed-form solutions, and densities against the exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from xmodal_jax.probability import ode
from xmodal_jax.probability.transport import optimal_assignment

MEANS, SCALES, WEIGHTS = np.array([-2.0, 1.5]), np.array([0.4, 0.7]), np.array([0.3, 0.7])


def gaussian_velocity(mean, scale):
    """The velocity of the flow from N(0, 1) to N(mean, scale^2) in each dimension, where noise and data are drawn
    independently: the conditional mean of x - noise, by the covariances of two normal variables."""

    mean, scale = (jnp.broadcast_to(jnp.asarray(value, jnp.float32), (1, 2)) for value in (mean, scale))

    def velocity(z, t):
        t = t.reshape(-1, *[1] * (z.ndim - 1))
        variance = (1 - t) ** 2 + (t * scale) ** 2
        covariance = t * scale**2 - (1 - t)
        return mean + covariance / variance * (z - t * mean)

    return velocity


def mixture_velocity(z, t):
    """The same for a mixture of two normal distributions in one dimension: the mean of their velocities, weighted by
    the posterior of the component given z."""
    t = t[:, None]
    log_posterior, velocities = [], []
    for mean, scale, weight in zip(MEANS, SCALES, WEIGHTS, strict=True):
        variance = (1 - t) ** 2 + (t * scale) ** 2
        log_posterior.append(np.log(weight) - 0.5 * jnp.log(variance) - (z - t * mean) ** 2 / (2 * variance))
        velocities.append(mean + (t * scale**2 - (1 - t)) / variance * (z - t * mean))
    posterior = jax.nn.softmax(jnp.stack(log_posterior), axis=0)
    return (posterior * jnp.stack(velocities)).sum(axis=0)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver, order):
    solution = lambda steps: ode.solve(
        lambda x, t: -2.0 * x**2, jnp.ones((2, 3)), ode.time_grid(steps), solver=solver
    )
    coarse, fine = (np.abs(solution(steps) - 1.0 / 3.0).max() for steps in (8, 16))
    assert 2 ** (order - 0.5) < coarse / fine < 2 ** (order + 0.7)


def test_a_linear_flow_has_its_exact_solution():
    """x(1) = mean + scale noise, whatever the solver, and back again."""
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)), jnp.float32)
    mean, scale = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 2.0]])
    velocity = gaussian_velocity(mean, scale)
    data = ode.solve(velocity, noise, ode.time_grid(400))
    np.testing.assert_allclose(data, mean + scale * noise, atol=2e-3)
    adaptive = ode.solve_adaptive(velocity, noise, rtol=1e-5, atol=1e-5)
    assert adaptive.finished.all()
    np.testing.assert_allclose(adaptive.x, mean + scale * noise, atol=1e-4)
    back = ode.solve_adaptive(velocity, adaptive.x, 1.0, 0.0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back.x, noise, atol=2e-3)


def test_an_example_is_solved_as_if_it_were_alone():
    """Step sizes are per example: a stiff neighbour changes nothing."""
    rates = jnp.array([0.1, 50.0, 3.0])
    velocity = lambda x, t: -rates[: x.shape[0], None] * x
    together = ode.solve_adaptive(velocity, jnp.ones((3, 2)))
    alone = ode.solve_adaptive(velocity, jnp.ones((1, 2)))
    np.testing.assert_array_equal(together.x[0], alone.x[0])
    assert together.evaluations[0] == alone.evaluations[0] < together.evaluations[1]
    np.testing.assert_allclose(together.x[:, 0], np.exp(-rates), atol=2e-3)


def test_a_solution_that_needs_too_many_steps_says_so():
    solution = ode.solve_adaptive(lambda x, t: -300.0 * x, jnp.ones((1, 1)), max_steps=3)
    assert not solution.finished[0]


def test_densities_are_exact_ones():
    """Of a normal distribution and of a mixture, within 0.01 nats; and the noise maps back to the data."""
    mean, scale = np.array([1.0, -2.0]), np.array([0.5, 2.0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)) * scale + mean, jnp.float32)
    got, noise = ode.log_density(gaussian_velocity(mean, scale), x, ode.time_grid(200))
    want = stats.norm(mean, scale).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(got, want, atol=0.01)
    np.testing.assert_allclose(noise, (np.asarray(x) - mean) / scale, atol=0.01)

    x = jnp.linspace(-4.0, 4.0, 101)[:, None]
    got, _ = ode.log_density(mixture_velocity, x, ode.time_grid(300))
    want = np.log(stats.norm(MEANS, SCALES).pdf(np.asarray(x)) @ WEIGHTS)
    np.testing.assert_allclose(got, want, atol=0.01)


def test_hutchinson_has_the_exact_mean():
    """Over many probes of a rotation with a trace: each probe is off, their mean is not."""
    matrix = jnp.array([[0.3, 1.0, -2.0], [-1.0, 0.2, 0.5], [0.4, -0.7, -0.9]])
    velocity = lambda x, t: x @ matrix.T
    x = jnp.tile(jnp.array([[0.3, -0.2, 0.9]]), (4000, 1))
    keys = jax.random.split(jax.random.key(0), len(x))
    estimates, _ = ode.log_density(velocity, x, ode.time_grid(20), keys=keys)
    exact, _ = ode.log_density(velocity, x[:1], ode.time_grid(100))
    error = estimates.std() / np.sqrt(len(x))
    assert estimates.std() > 0.5
    assert abs(estimates.mean() - exact[0]) < 4 * error
    trace = -float(jnp.trace(matrix))
    noise = np.asarray(jax.scipy.linalg.expm(-matrix) @ x[0])
    np.testing.assert_allclose(exact[0], stats.norm.logpdf(noise).sum() + trace, atol=1e-3)


def test_bits_per_dimension_of_uniform_pixels_are_eight():
    log_density = jnp.full(1, -12 * np.log(2.0))  # 12 values, uniform in [-1, 1]
    np.testing.assert_allclose(
        ode.bits_per_dimension(log_density, 12, unit=127.5), [np.log2(255.0)], rtol=1e-6
    )


def test_the_grid_is_shifted_toward_the_noise():
    grid = ode.time_grid(10, shift=3.0)
    assert grid[0] == 0 and grid[-1] == 1 and (np.diff(grid) > 0).all()
    np.testing.assert_allclose(grid[5], 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ode.time_grid(0), "steps must be at least 1"),
        (lambda: ode.time_grid(5, shift=0.0), "shift positive"),
        (
            lambda: ode.solve(lambda x, t: x, jnp.ones((1, 1)), ode.time_grid(2), solver="rk"),
            "euler, midpoint",
        ),
        (lambda: ode.solve(lambda x, t: x, jnp.ones((1, 1)), jnp.zeros(1)), "at least two"),
        (
            lambda: ode.log_density(lambda x, t: x, jnp.ones((1, 1)), ode.time_grid(2)[::-1]),
            "must increase",
        ),
        (lambda: optimal_assignment(jnp.zeros((3, 2))), r"cost must be \[n, n\]"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
