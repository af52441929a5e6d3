import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import multimodal as oracle
from xmodal_jax.core.random import example_keys
from xmodal_jax.probability import posteriors
from xmodal_jax.probability.distributions import Laplace, Normal

RNG = np.random.default_rng(13)
M, B, D = 4, 7, 3
MEAN, LOG_SCALE = RNG.normal(size=(M, B, D)), RNG.normal(size=(M, B, D))
PRESENT = np.array(
    [[1, 1, 0, 1, 0, 1, 0], [1, 0, 1, 1, 0, 0, 0], [1, 0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1, 0]], bool
)
SUBSETS = posteriors.all_subsets(M)
CORRELATION = 0.4


def normal(mean=MEAN, log_scale=LOG_SCALE):
    return Normal(jnp.asarray(mean, jnp.float32), jnp.asarray(log_scale, jnp.float32))


def as_numpy(q):
    return jax.tree.map(np.asarray, q)


def of_example(b, members, prior=0.0, weights=None):
    """Mean and scale by the oracle."""
    factors = [(MEAN[m, b], np.exp(LOG_SCALE[m, b])) for m in members]
    if not factors and not prior:
        return np.zeros(D), np.ones(D)
    return oracle.product(factors, weights=weights, prior=prior)


def test_all_subsets():
    assert [set(np.flatnonzero(row)) for row in SUBSETS] == [set(s) for s in oracle.subsets(range(M))]
    assert posteriors.all_subsets(5, 2, 4).sum(axis=1).tolist() == [2] * 10 + [3] * 10 + [4] * 5
    assert posteriors.all_subsets(2, 2, 1).shape == (0, 2)
    assert SUBSETS.shape == (15, M) and SUBSETS.dtype == bool


@pytest.mark.parametrize("prior", [0.0, 1.0, 0.3])
def test_products_of_all_subsets(prior):
    found = as_numpy(
        posteriors.product_of_experts(normal(), jnp.asarray(PRESENT), jnp.asarray(SUBSETS), prior)
    )
    assert found.mean.shape == found.log_scale.shape == (len(SUBSETS), B, D)
    for s, b in itertools.product(range(len(SUBSETS)), range(B)):
        mean, scale = of_example(b, np.flatnonzero(SUBSETS[s] & PRESENT[:, b]), prior)
        np.testing.assert_allclose(found.mean[s, b], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.exp(found.log_scale[s, b]), scale, rtol=1e-5)


def test_each_subset_of_each_example_has_its_own_prior():
    weights = np.linspace(0, 2, len(SUBSETS) * B).reshape(len(SUBSETS), B)
    there = jnp.ones((M, B), bool)
    found = posteriors.product_of_experts(
        normal(), there, jnp.asarray(SUBSETS), jnp.asarray(weights, jnp.float32)
    )
    found = as_numpy(found)
    for s, b in itertools.product(range(len(SUBSETS)), range(B)):
        mean, scale = of_example(b, np.flatnonzero(SUBSETS[s]), weights[s, b])
        np.testing.assert_allclose(found.mean[s, b], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.exp(found.log_scale[s, b]), scale, rtol=1e-5)


def test_weights_make_a_geometric_mean():
    weights = RNG.dirichlet(np.ones(M), size=2)
    found = posteriors.product_of_experts(
        normal(), jnp.ones((M, B), bool), jnp.asarray(weights, jnp.float32), 0.0
    )
    for s, b in itertools.product(range(2), range(B)):
        mean, scale = of_example(b, range(M), weights=weights[s])
        np.testing.assert_allclose(found.mean[s, b], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.exp(found.log_scale[s, b]), scale, rtol=1e-5)


@pytest.mark.parametrize("prior", [False, True])
def test_the_elementwise_form_is_the_matrix_product(prior):
    there = SUBSETS[:, :, None] & PRESENT[None]
    lifted = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (len(SUBSETS), *x.shape)), normal())
    zeros = jnp.zeros((len(SUBSETS), B, D))
    one = posteriors.masked_product(lifted, jnp.asarray(there), Normal(zeros, zeros) if prior else None)
    other = posteriors.product_of_experts(normal(), jnp.asarray(PRESENT), jnp.asarray(SUBSETS), float(prior))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_elementwise_form_with_a_prior_of_its_own():
    mean, log_scale = RNG.normal(size=(B, D)), RNG.normal(size=(B, D))
    found = posteriors.masked_product(normal(), jnp.asarray(PRESENT), normal(mean, log_scale))
    for b in range(B):
        factors = [(MEAN[m, b], np.exp(LOG_SCALE[m, b])) for m in np.flatnonzero(PRESENT[:, b])]
        want = oracle.product([*factors, (mean[b], np.exp(log_scale[b]))])
        np.testing.assert_allclose(found.mean[b], want[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.exp(found.log_scale[b]), want[1], rtol=1e-5)


def test_the_joint_product_is_that_of_all_there():
    for prior in (0.0, 1.0):
        found = posteriors.joint_product(normal(), jnp.asarray(PRESENT), prior)
        for b in range(B):
            mean, scale = of_example(b, np.flatnonzero(PRESENT[:, b]), prior)
            np.testing.assert_allclose(found.mean[b], mean, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(np.exp(found.log_scale[b]), scale, rtol=1e-5)


def every_form(mean, log_scale, present):
    """The product of everything there by both functions, and its consensus, ``[B, D]``."""
    q, present = normal(mean, log_scale), jnp.asarray(present)
    return (
        posteriors.joint_product(q, present),
        posteriors.masked_product(q, present),
        posteriors.consensus_of_experts(q, present, CORRELATION),
    )


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.5, 0.9])
def test_the_consensus_of_dependent_experts_is_by_the_inverse_of_their_covariance(correlation):
    """Of none to four experts; without correlation it is their product without a prior."""
    there, lifted = SUBSETS[:, :, None] & PRESENT[None], jax.tree.map(
        lambda x: jnp.broadcast_to(x[None], (len(SUBSETS), *x.shape)), normal()
    )  # fmt: skip
    found = posteriors.consensus_of_experts(lifted, jnp.asarray(there), correlation)
    counts = set()
    for s, b in itertools.product(range(len(SUBSETS)), range(B)):
        members = np.flatnonzero(there[s, :, b])
        counts.add(len(members))
        mean, scale = np.zeros(D), np.ones(D)
        if len(members):
            experts = [(MEAN[m, b], np.exp(LOG_SCALE[m, b])) for m in members]
            mean, scale = oracle.consensus(experts, correlation)
        np.testing.assert_allclose(found.mean[s, b], mean, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(np.exp(found.log_scale[s, b]), scale, rtol=2e-5)
    assert counts == {0, 1, 2, 3, 4}
    if not correlation:
        product = posteriors.masked_product(lifted, jnp.asarray(there))
        for a, b in zip(found, product, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_consensus_by_hand():
    """Two experts: the mean leaves the range of theirs where one is much less certain. Four alike: the variance falls
    to ``(1 + 3 rho) / 4``. Scales that float32 cannot square change nothing."""
    rho, scale, mean = 0.8, np.array([1.0, 3.0]), np.array([8.0, 4.0])
    total = (scale**2).sum() - 2 * rho * scale.prod()
    weight = (scale[::-1] ** 2 - rho * scale.prod()) / total
    assert weight[1] < 0
    for factor in (0.0, -60.0, 60.0):
        two = normal(mean[:, None, None], np.log(scale)[:, None, None] + factor)
        found = posteriors.consensus_of_experts(two, jnp.ones((2, 1), bool), rho)
        np.testing.assert_allclose(found.mean[0, 0], weight @ mean, rtol=1e-5)
        assert found.mean[0, 0] > mean.max()
        variance = scale.prod() ** 2 * (1 - rho**2) / total
        np.testing.assert_allclose(found.log_scale[0, 0], 0.5 * np.log(variance) + factor, atol=2e-5)
    alike = normal(np.full((4, 1, 1), 2.0), np.zeros((4, 1, 1)))
    found = posteriors.consensus_of_experts(alike, jnp.ones((4, 1), bool), rho)
    np.testing.assert_allclose(np.exp(2 * found.log_scale[0, 0]), (1 + 3 * rho) / 4, rtol=1e-6)
    np.testing.assert_allclose(found.mean[0, 0], 2.0, rtol=1e-6)


@given(st.floats(-30, 30, width=32), st.floats(-100, 100, width=32), st.integers(0, M - 1))
def test_the_product_of_one_expert_is_that_expert(log_scale, mean, m):
    means, log_scales = np.zeros((M, 1, 1)), np.zeros((M, 1, 1))
    means[m], log_scales[m] = mean, log_scale
    present = np.arange(M)[:, None] == m
    for found in every_form(means, log_scales, present):
        np.testing.assert_allclose(found.mean[0, 0], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.log_scale[0, 0], log_scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("far", [-38.0, 38.0])
def test_experts_of_very_different_scales(far):
    """Among the subsets of two experts the single ones are each themselves, and the product is the sharper one."""
    mean, log_scale = np.array([[[2.0]], [[-3.0]]]), np.array([[[far]], [[0.0]]])
    subsets = jnp.asarray([[1, 0], [0, 1], [1, 1]], bool)
    found = posteriors.product_of_experts(normal(mean, log_scale), jnp.ones((2, 1), bool), subsets)
    sharper = 0 if far < 0 else 1
    np.testing.assert_allclose(found.mean[:, 0, 0], [2.0, -3.0, mean[sharper, 0, 0]], rtol=1e-5)
    np.testing.assert_allclose(found.log_scale[:, 0, 0], [far, 0.0, min(far, 0.0)], rtol=1e-5, atol=1e-5)


@given(st.permutations(range(M)))
def test_the_order_of_experts_does_not_matter(order):
    order = np.array(order)
    for a, b in zip(
        every_form(MEAN, LOG_SCALE, PRESENT),
        every_form(MEAN[order], LOG_SCALE[order], PRESENT[order]),
        strict=True,
    ):
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a.log_scale, b.log_scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gone", range(M))
def test_a_missing_modality_is_one_that_is_sliced_away(gone):
    there, kept = np.arange(M) != gone, np.delete(np.arange(M), gone)
    present = np.broadcast_to(there[:, None], (M, B))
    for masked, sliced in zip(
        every_form(MEAN, LOG_SCALE, present),
        every_form(MEAN[kept], LOG_SCALE[kept], np.ones((M - 1, B), bool)),
        strict=True,
    ):
        np.testing.assert_allclose(masked.mean, sliced.mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(masked.log_scale, sliced.log_scale, rtol=1e-6, atol=1e-6)


def test_no_expert_and_no_prior_is_standard():
    for found in every_form(MEAN, LOG_SCALE, np.zeros((M, B), bool)):
        assert not np.any(found.mean) and not np.any(found.log_scale)


GARBAGE = {
    "moderate": (7.0, -2.0),
    "a mean of 1e30": (1e30, 0.0),
    "sharp": (0.0, -60.0),
    "as sharp as float32 holds": (0.0, -87.0),
    "beyond what float32 holds": (1e30, -200.0),
    "wide": (0.0, 60.0),
    "wider than float32 holds": (-1e30, 200.0),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("form", ["product_of_experts", "product", "consensus", "mixture_log_prob"])
def test_what_a_missing_expert_says_has_no_influence(form, garbage):
    """Neither on the value, nor on the others' gradients, and its own is exactly zero."""
    z = jnp.asarray(RNG.normal(size=(B, D)), jnp.float32)

    def value(q):
        if form == "product_of_experts":
            found = posteriors.product_of_experts(q, jnp.asarray(PRESENT), jnp.asarray(SUBSETS), 0.5)
        elif form == "product":
            found = posteriors.masked_product(q, jnp.asarray(PRESENT))
        elif form == "consensus":
            found = posteriors.consensus_of_experts(q, jnp.asarray(PRESENT), CORRELATION)
        else:
            return posteriors.mixture_log_prob(q, jnp.asarray(PRESENT), z).sum()
        return (found.mean + jnp.square(found.log_scale)).sum()

    mean, log_scale = (
        np.where(PRESENT[:, :, None], x, y) for x, y in zip((MEAN, LOG_SCALE), garbage, strict=True)
    )
    both = jax.jit(jax.value_and_grad(value))
    clean, clean_grad = as_numpy(both(normal()))
    found, grad = as_numpy(both(normal(mean, log_scale)))
    np.testing.assert_array_equal(found, clean)
    for g, c in zip(grad, clean_grad, strict=True):
        np.testing.assert_array_equal(g[~PRESENT], 0.0)
        np.testing.assert_array_equal(g[PRESENT], c[PRESENT])
        assert np.any(c[PRESENT]) and np.isfinite(c).all()


@pytest.mark.parametrize("form", ["product_of_experts", "product"])
def test_gradients_of_a_product(form):
    """By central differences of the oracle in float64."""
    weights = RNG.normal(size=(2, D))
    b = 3
    members = np.flatnonzero(PRESENT[:, b])

    def value(q):
        found = (
            posteriors.joint_product(q, jnp.asarray(PRESENT))
            if form == "product_of_experts"
            else posteriors.masked_product(q, jnp.asarray(PRESENT))
        )
        of = jnp.asarray(weights, jnp.float32)
        return (of[0] * found.mean[b] + of[1] * found.log_scale[b]).sum()

    def by_hand(mean, log_scale):
        q = oracle.product([(mean[m, b], np.exp(log_scale[m, b])) for m in members])
        return (weights[0] * q[0] + weights[1] * np.log(q[1])).sum()

    grad = as_numpy(jax.grad(value)(normal()))
    for which, m, j in itertools.product(range(2), range(M), range(D)):
        step = np.zeros((2, M, B, D))
        step[which, m, b, j] = 1e-5
        moved = [by_hand(MEAN + s * step[0], LOG_SCALE + s * step[1]) for s in (1, -1)]
        np.testing.assert_allclose(grad[which][m, b, j], (moved[0] - moved[1]) / 2e-5, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [(), (2,), (2, 5)], ids=str)
@pytest.mark.parametrize("family", [Normal, Laplace])
def test_the_density_of_a_mixture(family, rows):
    z = RNG.normal(size=(*rows, B, D))
    present = PRESENT.copy()
    present[0] = True
    found = posteriors.mixture_log_prob(family(*normal()), jnp.asarray(present), jnp.asarray(z, jnp.float32))
    assert found.shape == (*rows, B)
    found = np.asarray(found)
    log_prob = oracle.normal_log_prob if family is Normal else oracle.laplace_log_prob
    for index in np.ndindex(*rows, B):
        b = index[-1]
        experts = [(MEAN[m, b], np.exp(LOG_SCALE[m, b])) for m in np.flatnonzero(present[:, b])]
        want = oracle.mixture_log_prob(z[index], experts, log_prob)
        np.testing.assert_allclose(found[index], want, rtol=1e-5, atol=1e-5)


def test_masked_log_mean_exp():
    x, mask = 40 * RNG.normal(size=(M, B)), PRESENT
    found = posteriors.masked_log_mean_exp(jnp.asarray(x, jnp.float32), jnp.asarray(mask))
    for b in range(B):
        kept = x[mask[:, b], b]
        want = scipy.special.logsumexp(kept) - np.log(len(kept)) if len(kept) else 0.0
        np.testing.assert_allclose(found[b], want, rtol=1e-5)


@pytest.mark.parametrize("masked", [0.0, 1e30, -1e30, np.inf, -np.inf, np.nan])
def test_masked_log_mean_exp_sees_nothing_of_what_is_masked(masked):
    x = np.where(PRESENT, 300 * RNG.normal(size=(M, B)), masked)
    value, grad = jax.value_and_grad(lambda x: posteriors.masked_log_mean_exp(x, jnp.asarray(PRESENT)).sum())(
        jnp.asarray(x, jnp.float32)
    )
    assert np.isfinite(value) and np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[~PRESENT], 0.0)
    for b in range(B):
        kept = x[PRESENT[:, b], b]
        if len(kept):
            np.testing.assert_allclose(
                np.float64(grad)[PRESENT[:, b], b], scipy.special.softmax(kept), rtol=1e-3, atol=1e-6
            )


COUNT = 6007
ALLOWED = np.array([True, False, True, True, True])
KEYS = example_keys(jax.random.key(2), jnp.arange(COUNT))
EVERY = jnp.asarray(np.broadcast_to(ALLOWED[:, None], (5, COUNT)))


def test_every_allowed_option_is_as_likely():
    found = np.asarray(posteriors.draw_uniform_index(KEYS, "expert", EVERY))
    counts = np.bincount(found, minlength=5)
    assert counts[1] == 0
    assert scipy.stats.chisquare(counts[ALLOWED]).pvalue > 1e-3


def test_every_allowed_order_is_as_likely():
    found = np.asarray(posteriors.draw_allowed(KEYS, "subsets", EVERY, 2))
    assert found.shape == (2, COUNT)
    pairs, counts = np.unique(found, axis=1, return_counts=True)
    assert {tuple(p) for p in pairs.T} == set(itertools.permutations([0, 2, 3, 4], 2))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@given(st.integers(0, 2**16), st.integers(1, 5))
def test_several_are_different_and_allowed_as_long_as_there_are_any(seed, count):
    keys = example_keys(jax.random.key(seed), jnp.arange(11))
    allowed = np.random.default_rng(seed).random((5, 11)) < 0.5
    found = np.asarray(posteriors.draw_allowed(keys, "x", jnp.asarray(allowed), count))
    one = np.asarray(posteriors.draw_uniform_index(keys, "x", jnp.asarray(allowed)))
    for b in range(11):
        assert len(set(found[:, b])) == count
        assert allowed[found[:, b], b].sum() == min(count, allowed[:, b].sum())
        assert np.all(np.diff(allowed[found[:, b], b].astype(int)) <= 0)
        assert allowed[one[b], b] if allowed[:, b].any() else one[b] == 0


def test_choices_belong_to_the_example_and_the_name():
    few, order = KEYS[:101], RNG.permutation(101)
    for draw in (
        lambda keys, name: posteriors.draw_uniform_index(keys, name, EVERY[:, :101])[None],
        lambda keys, name: posteriors.draw_allowed(keys, name, EVERY[:, :101], 3),
    ):
        found = draw(few, "a")
        np.testing.assert_array_equal(draw(few[order], "a"), found[:, order])
        assert np.any(draw(few, "b") != found)


def test_pick():
    q, index = normal(), RNG.integers(0, M, (2, B))
    found = posteriors.select_per_example(q, jnp.asarray(index))
    q, found = as_numpy(q), as_numpy(found)
    for r, b in np.ndindex(2, B):
        np.testing.assert_array_equal(found.mean[r, b], q.mean[index[r, b], b])
        np.testing.assert_array_equal(found.log_scale[r, b], q.log_scale[index[r, b], b])
    one = posteriors.select_per_example(normal(), jnp.asarray(index[0]))
    np.testing.assert_array_equal(one.mean, found.mean[0])
