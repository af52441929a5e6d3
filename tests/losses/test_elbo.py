import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.losses.devices import MODES, assert_same, values_and_gradients
from tests.oracles import multimodal as oracle
from xmodal_jax.core.collectives import batch_mean
from xmodal_jax.losses import elbo
from xmodal_jax.probability.distributions import Normal

RNG = np.random.default_rng(17)


def array(x):
    return jnp.asarray(x, jnp.float32)


def warmup(steps, **how):
    return np.asarray(elbo.kl_warmup(jnp.asarray(steps, jnp.int32), **how))


def test_without_a_schedule_the_weight_is_one():
    np.testing.assert_array_equal(warmup([0, 1, 10**9]), 1.0)


def test_the_weight_rises_and_stays():
    np.testing.assert_allclose(warmup([0, 1, 2, 3, 4, 5, 10**9], warmup=5), [0.2, 0.4, 0.6, 0.8, 1, 1, 1])


def test_the_weight_rises_again_and_again():
    found = warmup(range(20), cycle=10, ramp=0.4)
    np.testing.assert_allclose(found, 2 * [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(warmup(range(6), cycle=3, ramp=1.0), 2 * [1 / 3, 2 / 3, 1], rtol=1e-6)


def test_with_both_the_smaller_counts():
    found = warmup(range(8), warmup=8, cycle=4, ramp=0.5)
    np.testing.assert_allclose(found, [1 / 8, 2 / 8, 3 / 8, 4 / 8, 0.5, 6 / 8, 7 / 8, 1.0])


B, D, ROWS = 12, 5, 2
DIVERGENCE = RNG.gamma(1.0, size=(B, D))
PRESENT = RNG.random(B) < 0.7


def test_no_free_bits_is_the_sum():
    np.testing.assert_allclose(
        elbo.sum_with_free_bits(array(DIVERGENCE), 0.0, present=jnp.asarray(PRESENT)),
        DIVERGENCE.sum(1),
        rtol=1e-6,
    )


@pytest.mark.parametrize("least", [0.01, 0.8, 1.1, 5.0])
def test_free_bits(least):
    """The mean over those present is ``sum_j max(least, mean_b KL_j)``, and so is its gradient."""

    def mean(divergence):
        terms = elbo.sum_with_free_bits(divergence, least, present=jnp.asarray(PRESENT))
        return batch_mean(terms, jnp.asarray(PRESENT, jnp.float32))

    value, grad = jax.value_and_grad(mean)(array(DIVERGENCE))
    each = DIVERGENCE[PRESENT].mean(axis=0)
    np.testing.assert_allclose(value, np.maximum(each, least).sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, np.outer(PRESENT, each > least) / PRESENT.sum(), rtol=1e-6)


def test_free_bits_of_rows():
    """Each row has its own mean, over the examples that are present in it."""
    divergence, present = RNG.gamma(1.0, size=(ROWS, 7, D)), RNG.random((ROWS, 7)) < 0.6
    least = 1.0
    found = elbo.sum_with_free_bits(array(divergence), least, present=jnp.asarray(present))
    for r in range(ROWS):
        kept = divergence[r][present[r]].mean(axis=0) > least
        assert 0 < kept.sum() < D
        np.testing.assert_allclose(found[r], np.where(kept, divergence[r], least).sum(axis=1), rtol=1e-5)


def test_free_bits_see_nothing_of_what_is_absent():
    for far in (1e30, np.inf, np.nan):
        other = np.where(PRESENT[:, None], DIVERGENCE, far)
        a, b = (
            np.asarray(elbo.sum_with_free_bits(array(x), 1.0, present=jnp.asarray(PRESENT)))
            for x in (DIVERGENCE, other)
        )
        np.testing.assert_array_equal(a[PRESENT], b[PRESENT])


def test_nobody_present_is_no_error():
    found = elbo.sum_with_free_bits(array(DIVERGENCE), 0.5, present=jnp.zeros(B, bool))
    np.testing.assert_allclose(found, 0.5 * D)


def divergences(q):
    """From N(0, 1), element by element."""
    found = np.zeros((B, D))
    for index in np.ndindex(B, D):
        found[index] = oracle.normal_kl(
            (np.float64(q["mean"][index]), np.exp(np.float64(q["log_scale"][index]))), (0, 1)
        )
    return found


@pytest.mark.parametrize("mode", MODES)
def test_free_bits_are_those_of_the_global_batch(mode):
    rng = np.random.default_rng(19)
    means = array(rng.normal(size=(B, D)) * np.linspace(0.1, 2, D))
    q = {"mean": means, "log_scale": array(0.1 * rng.normal(size=(B, D)))}
    split = q | {"there": jnp.asarray(PRESENT)}
    each = divergences(q)
    whole = each[PRESENT].mean(axis=0)
    least = np.sort(whole)[2] * 1.02
    # A device alone would decide otherwise.
    assert any(
        np.any((each[i : i + 3][PRESENT[i : i + 3]].mean(axis=0) > least) != (whole > least)) for i in (0, 3)
    )

    def share(split, shared, axis_name):
        q = Normal(split["mean"], split["log_scale"])
        p = Normal(*(jnp.broadcast_to(shared[k][None], q.mean.shape) for k in ("mean", "log_scale")))
        terms = elbo.kl_with_free_bits(q, p, free_bits=least, present=split["there"], axis_name=axis_name)
        return batch_mean(terms, split["there"].astype(jnp.float32), axis_name=axis_name)

    shared = {"mean": jnp.zeros(D), "log_scale": jnp.zeros(D)}
    want = values_and_gradients({"kl": share}, split, shared)
    np.testing.assert_allclose(want["kl"][0], np.maximum(whole, least).sum(), rtol=1e-5)
    assert_same(values_and_gradients({"kl": share}, split, shared, 4, mode), want)


def test_kl_to_is_the_sum():
    q = Normal(*(array(RNG.normal(size=(ROWS, 3, D))) for _ in range(2)))
    p = Normal(*(array(RNG.normal(size=(ROWS, 3, D))) for _ in range(2)))
    found = elbo.kl_with_free_bits(q, p)
    for index in np.ndindex(ROWS, 3):
        a, b = ((np.float64(d.mean[index]), np.exp(np.float64(d.log_scale[index]))) for d in (q, p))
        np.testing.assert_allclose(found[index], oracle.normal_kl(a, b), rtol=1e-5)


def test_handle_is_the_identity():
    z = array(RNG.normal(size=(3, 5, 2)))
    same, *zeros = elbo.deferred_gradient_scale(z)
    np.testing.assert_array_equal(same, z)
    assert all(zero.shape == (3, 5) and not np.any(zero) for zero in zeros)


@pytest.mark.parametrize("held", [False, True], ids=["weights of z", "weights held"])
def test_handle_multiplies_the_gradient(held):
    """By ``w_r``, whatever comes after it multiplies the row's whole part of the loss by (also 0, also negative)."""
    z, inner = RNG.normal(size=(3, 5, 2)), RNG.normal(size=(3, 5))
    after = RNG.normal(size=(3, 5))
    after[0, 1], after[2, 2], inner[1, 1] = 0.0, 0.0, 0.0

    def loss(z):
        z, scale, one = elbo.deferred_gradient_scale(z)
        weight = array(inner) * jnp.exp(0.1 * z.sum(axis=-1))
        weight = jax.lax.stop_gradient(weight) if held else weight
        rows = jnp.sin(z).sum(axis=-1) + weight * scale + one
        return (array(after) * rows).sum()

    value, grad = jax.jit(jax.value_and_grad(loss))(array(z))
    np.testing.assert_allclose(value, (after * np.sin(z).sum(-1)).sum(), rtol=1e-5)
    weight = inner * np.exp(0.1 * z.sum(axis=-1))
    np.testing.assert_allclose(grad, (after * weight)[..., None] * np.cos(z), rtol=1e-4, atol=1e-6)


def test_a_handle_that_is_not_used_stops_the_gradient():
    grad = jax.grad(lambda z: jnp.sin(elbo.deferred_gradient_scale(z)[0]).sum())(jnp.ones((3, 2)))
    assert not np.any(grad)


@pytest.mark.parametrize("shape", [(1, 3), (7, 3), (5, 2, 3)], ids=str)
def test_the_importance_bound(shape):
    x = 50 * RNG.normal(size=shape)
    want = scipy.special.logsumexp(x, axis=0) - np.log(len(x))
    found, pull = jax.vjp(elbo.importance_bound, array(x))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(
        pull(jnp.ones(shape[1:]))[0], scipy.special.softmax(x, axis=0), rtol=1e-4, atol=1e-6
    )


X, LATENT, OUT = 5, 3, 4
W, DATA = RNG.normal(size=(OUT, LATENT)), RNG.normal(size=(X, OUT))
Q = RNG.normal(size=(X, LATENT)), 0.3 * RNG.normal(size=(X, LATENT))
AFTER = np.array([1.0, -0.5, 0.0, 2.0, 1e-3])


def log_weights(z, mean, log_scale, w):
    """``log p(x | z) + log p(z) - log q(z)``, all up to constants: [K, B]."""
    told = -0.5 * jnp.square(array(DATA)[None] - jnp.einsum("od,kbd->kbo", w, z)).sum(axis=-1)
    q = Normal(*(jnp.broadcast_to(x[None], z.shape) for x in (mean, log_scale)))
    return told - 0.5 * jnp.square(z).sum(axis=-1) - q.log_prob(z).sum(axis=-1)


@pytest.mark.parametrize("samples", [1, 4])
def test_doubly_reparametrized_bound(samples):
    """Against two passes: the weights first, then ``sum_k w_k^2 (d log w_k / d z) (d z / d phi)`` for the posterior and
    ``sum_k w_k d log w_k / d theta`` for the model."""
    noise = array(RNG.normal(size=(samples, X, LATENT)))
    args = (*map(array, Q), array(W))

    def bound(mean, log_scale, w):
        at = mean[None] + jnp.exp(log_scale)[None] * noise
        z, *zeros = elbo.deferred_gradient_scale(at)
        of = log_weights(z, *map(jax.lax.stop_gradient, (mean, log_scale)), w)
        return elbo.doubly_reparametrized_bound(of, *zeros), of

    def loss(*args):
        found, of = bound(*args)
        return (found * array(AFTER)).sum(), (found, of)

    grads, (found, of) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*args)
    np.testing.assert_allclose(found, scipy.special.logsumexp(of, axis=0) - np.log(samples), rtol=1e-5)

    # The first pass.
    z = Q[0] + np.exp(Q[1]) * np.float64(noise)
    told = -0.5 * ((DATA - z @ W.T) ** 2).sum(-1) - 0.5 * (z**2).sum(-1)
    weights = told - oracle.normal_log_prob(z, Q[0], np.exp(Q[1])).sum(-1)
    share = scipy.special.softmax(weights, axis=0)
    # The second, by hand.
    by_z = (DATA - z @ W.T) @ W - z + (z - Q[0]) * np.exp(-2 * Q[1])
    squared = (AFTER * share**2)[..., None] * by_z
    np.testing.assert_allclose(grads[0], squared.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        grads[1], (squared * np.exp(Q[1]) * np.float64(noise)).sum(0), rtol=1e-4, atol=1e-5
    )
    by_w = np.einsum("kb,kbo,kbd->od", AFTER * share, DATA - z @ W.T, z)
    np.testing.assert_allclose(grads[2], by_w, rtol=1e-4, atol=1e-5)


def test_the_mean_gradient_of_the_doubly_reparametrized_bound_is_that_of_the_bound():
    """By Monte-Carlo over the samples, four for each bound, and by automatic differentiation of the bound alone."""
    count = 20_000
    noise = jax.random.normal(jax.random.key(0), (count, 4, X, LATENT))

    def bound(mean, log_scale, noise, *, doubly):
        z, held, probes = mean[None] + jnp.exp(log_scale)[None] * noise, (mean, log_scale), []
        if doubly:
            z, *probes = elbo.deferred_gradient_scale(z)
            held = jax.lax.stop_gradient(held)
        of = log_weights(z, *held, array(W))
        return (elbo.doubly_reparametrized_bound(of, *probes) if doubly else elbo.importance_bound(of)).sum()

    @jax.jit
    def both(noise):
        gradient = lambda doubly: jax.vmap(
            jax.grad(lambda *args: bound(*args, doubly=doubly), (0, 1)), in_axes=(None, None, 0)
        )(*map(array, Q), noise)
        return [jnp.stack(gradient(doubly), axis=1) for doubly in (False, True)]

    plain, doubly = map(np.asarray, both(noise))
    error = np.sqrt((plain.var(axis=0) + doubly.var(axis=0)) / count)
    assert np.all(np.abs(plain.mean(axis=0) - doubly.mean(axis=0)) < 4.5 * error)
    assert np.abs(plain.mean(axis=0) / error).max() > 20
