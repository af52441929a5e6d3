"""Linear-Gaussian models, whose mutual information has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import linear_gaussian
from xmodal_jax.core.random import example_keys
from xmodal_jax.metrics.information_gain import (
    compare_gains,
    expected_information_gain,
    information_gain,
    mean_gain,
)
from xmodal_jax.probability import Mixture, Normal, as_mixture, standard_noise

N, DIM, DRAWS = 40, 3, 200
KEYS = example_keys(jax.random.key(1), jnp.arange(N))
# Diagonal weights: exact posteriors are independent in each dimension. The last modality has nothing of z.
WEIGHTS = np.array([[1.0, 0.2, -0.7], [0.3, 2.0, 0.0], [0.0, -0.5, 1.5], [0.0, 0.0, 0.0]])
SCALES = np.array([0.8, 1.3, 0.5, 0.9])
MODALITIES = [
    linear_gaussian.Modality(np.diag(w), np.zeros(DIM), s) for w, s in zip(WEIGHTS, SCALES, strict=True)
]


def information(observed, candidate):
    """I(z; x_m | x_A) in nats: half the difference of the log-determinants of the posteriors' covariances."""

    def log_det(members):
        if not members:
            return 0.0
        return np.linalg.slogdet(linear_gaussian.posterior([np.zeros(DIM)] * len(members), members)[1])[1]

    members = [MODALITIES[m] for m in observed]
    return 0.5 * (log_det(members) - log_det([*members, MODALITIES[candidate]]))


def exact(x, observed):
    """The exact posterior [N, D] given the modalities x [M, N, D] under the mask [M]."""
    weight = jnp.asarray(WEIGHTS / SCALES[:, None] ** 2, jnp.float32)[:, None]
    precision = 1 + jnp.where(
        observed[:, None, None], weight * jnp.asarray(WEIGHTS, jnp.float32)[:, None], 0.0
    ).sum(0)
    mean = jnp.where(observed[:, None, None], weight * x, 0.0).sum(0) / precision
    return Normal(mean, jnp.broadcast_to(-0.5 * jnp.log(precision), mean.shape))


def draw(z, keys):
    noise = standard_noise(keys, "x", (len(WEIGHTS), DIM))
    return (
        jnp.asarray(WEIGHTS, jnp.float32)[:, None] * z[None]
        + jnp.asarray(SCALES, jnp.float32)[:, None, None] * noise
    )


def estimate(observed, wrap=as_mixture, draws=DRAWS):
    """Terms [draws, M, N] and gains of the data [M, N]."""
    mask = jnp.zeros(len(WEIGHTS), bool).at[jnp.asarray(observed, int)].set(True)
    masks = jnp.eye(len(WEIGHTS), dtype=bool) | mask[None]

    def compute():
        data = draw(jax.random.normal(jax.random.key(9), (N, DIM)), KEYS)
        current = wrap(exact(data, mask))
        update = lambda x: jax.vmap(lambda mask: wrap(exact(x, mask)))(masks)

        def simulate(keys):
            x = draw(current.sample(keys, "z", 1)[0], keys)
            return jnp.where(mask[:, None, None], data, x)

        terms = expected_information_gain(current, simulate, update, KEYS, draws=draws, samples=2)
        return terms, information_gain(update(data), current, KEYS, samples=2)

    return jax.tree.map(np.float64, jax.jit(compute)())


@pytest.mark.parametrize("observed", [(), (0,), (0, 2)])
@pytest.mark.parametrize("split", [False, True], ids=["closed form", "mixture"])
def test_expected_gains_are_the_mutual_information(observed, split):
    """Within four standard errors, also where the divergence is estimated: a normal as a mixture of itself."""

    def halves(q):
        twice = jax.tree.map(lambda x: jnp.stack([x, x]), q)
        return Mixture(twice, jnp.full((2, N), jnp.log(0.5)))

    terms, realised = estimate(observed, halves if split else as_mixture)
    flat = np.moveaxis(terms, 1, -1).reshape(-1, len(WEIGHTS))
    error = flat.std(axis=0) / len(flat) ** 0.5
    for m in range(len(WEIGHTS)):
        truth = 0.0 if m in observed else information(observed, m)
        assert abs(flat[:, m].mean() - truth) <= 4 * error[m] + 1e-6
        # What the data told is on average the same, in the model that they come from.
        spread = realised[m].std() / N**0.5
        assert abs(realised[m].mean() - truth) <= 4 * spread + 1e-6
    assert information(observed, 1) > 0.3 and error.max() < 0.05


def test_what_is_observed_already_or_independent_adds_nothing():
    terms, realised = estimate((0, 1), draws=3)
    np.testing.assert_array_equal(terms[:, :2], 0.0)  # observed: the same posterior, exactly
    np.testing.assert_allclose(terms[:, 3], 0.0, atol=1e-6)
    np.testing.assert_array_equal(realised[:2], 0.0)
    assert (terms[:, 2] > 0).all() and (realised[2] > 0).all()


def test_the_more_is_observed_the_less_is_to_gain():
    gains = [estimate(observed)[0].mean(axis=(0, 2))[1] for observed in ((), (0,), (0, 2))]
    assert gains[0] > gains[1] > gains[2] > 0


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="draws and samples must be at least 1, got 0 and 2"):
        estimate((), draws=0)


def test_calibration_counts_only_pairs_of_numbers():
    rng = np.random.default_rng(0)
    expected = rng.uniform(size=(50, 2, 3))
    expected[:, 0, 0] = np.nan  # one of three candidates is observed
    realised = expected + rng.normal(size=expected.shape)
    realised[::5, 1, 1] = np.nan
    found = compare_gains(expected, realised)
    counted = np.isfinite(expected) & np.isfinite(realised)
    assert found.correlation == pytest.approx(np.corrcoef(expected[counted], realised[counted])[0, 1])
    cells = [(s, m) for s in range(2) for m in range(3) if (s, m) != (0, 0)]
    each = [
        np.corrcoef(expected[counted[:, s, m], s, m], realised[counted[:, s, m], s, m])[0, 1]
        for s, m in cells
    ]
    assert found.within == pytest.approx(np.mean(each))
    hits, chances = [], []
    for n, s in np.ndindex(50, 2):
        candidates = np.flatnonzero(counted[n, s])
        hits.append(
            candidates[expected[n, s, candidates].argmax()] == candidates[realised[n, s, candidates].argmax()]
        )
        chances.append(1 / len(candidates))
    assert (found.best, found.chance) == pytest.approx((np.mean(hits), np.mean(chances)))
    assert compare_gains(realised, realised).best == 1.0
    assert np.isnan(compare_gains(expected[:2, :1, :1], realised[:2, :1, :1])).all()
    np.testing.assert_allclose(mean_gain(realised)[1, 1], np.nanmean(realised[:, 1, 1]))
    assert np.isnan(mean_gain(expected)[0, 0])
