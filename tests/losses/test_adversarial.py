from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from scipy.special import rel_entr

from tests.losses.devices import assert_same, values_and_gradients
from tests.oracles import adversarial as oracle
from tests.oracles import alignment
from xmodal_jax.core.collectives import batch_mean
from xmodal_jax.losses import (
    KERNELS,
    OBJECTIVES,
    clip_weights,
    gradient_penalty,
    jsd_bound,
    matching_aware,
    mmd,
    mmd_discriminator,
    mmd_generator,
    witness,
)

NAMES = tuple(OBJECTIVES)
KERNEL_NAMES = {
    "rbf": "rbf",
    "rq": "rational_quadratic",
    "rq_star": "rational_quadratic_star",
    "distance": "distance",
}


def logits(count, seed=0):
    return jnp.asarray(2.0 * np.random.default_rng(seed).normal(size=(count, 11)), jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_definitions(name):
    real, fake = logits(2)
    objective = OBJECTIVES[name]
    want = oracle.discriminator(name, real, fake)
    np.testing.assert_allclose(objective.discriminator(real, fake), want, rtol=1e-5, atol=1e-6)
    want = oracle.generator(name, fake, real)
    np.testing.assert_allclose(objective.generator(fake, real), want, rtol=1e-5, atol=1e-6)


@jax.jit
def all_terms(a, b, present):
    """[objectives, 2, B]: of every discriminator and generator, with a real and b generated."""
    pair = lambda o: jnp.stack([o.discriminator(a, b, present=present), o.generator(b, a, present=present)])
    return jnp.stack([pair(objective) for objective in OBJECTIVES.values()])


all_gradients = jax.jit(jax.jacrev(lambda a, b, present: all_terms(a, b, present).sum(axis=2), (0, 1)))


def test_gradients_are_those_of_the_definitions():
    """Through the means of the relativistic average too."""
    real, fake = np.float64(logits(2))
    by_real, by_fake = all_gradients(jnp.float32(real), jnp.float32(fake), jnp.ones(11, bool))
    for i, name in enumerate(NAMES):
        for player, total in enumerate(
            (
                lambda r, f, name=name: oracle.discriminator(name, r, f).sum(),
                lambda r, f, name=name: oracle.generator(name, f, r).sum(),
            )
        ):
            want = oracle.finite_difference(lambda r, total=total: total(r, fake), real)
            np.testing.assert_allclose(by_real[i, player], want, rtol=1e-4, atol=1e-5, err_msg=name)
            want = oracle.finite_difference(lambda f, total=total: total(real, f), fake)
            np.testing.assert_allclose(by_fake[i, player], want, rtol=1e-4, atol=1e-5, err_msg=name)


def test_absent_examples_have_no_part():
    """Masked equals sliced, and an absent example's gradient is exactly zero, were it infinite."""
    real, fake = logits(2)
    present = jnp.arange(11) % 3 != 1
    keep, absent = np.flatnonzero(present), np.flatnonzero(~np.asarray(present))
    real, fake = real.at[absent[0]].set(jnp.inf), fake.at[absent[1]].set(jnp.nan)
    masked = all_terms(real, fake, present)
    np.testing.assert_array_equal(masked[:, :, absent], 0.0)
    gradients = all_gradients(real, fake, present)
    for i, name in enumerate(NAMES):
        want = oracle.discriminator(name, real[keep], fake[keep])
        np.testing.assert_allclose(masked[i, 0, keep], want, rtol=1e-5, atol=1e-6, err_msg=name)
        want = oracle.generator(name, fake[keep], real[keep])
        np.testing.assert_allclose(masked[i, 1, keep], want, rtol=1e-5, atol=1e-6, err_msg=name)
    for g in gradients:
        assert np.isfinite(g).all()
        np.testing.assert_array_equal(g[:, :, absent], 0.0)


def test_large_logits_have_finite_values_and_the_right_gradients():
    """Where a sigmoid of float32 is exactly 0 or 1."""
    real, fake, present = jnp.full(11, -1e4), jnp.full(11, 1e4), jnp.ones(11, bool)
    values = all_terms(real, fake, present)
    by_real, by_fake = all_gradients(real, fake, present)
    assert np.isfinite(values).all() and np.isfinite(by_real).all() and np.isfinite(by_fake).all()
    i = NAMES.index("minimax")
    np.testing.assert_allclose(by_real[i, 0], -1.0)
    np.testing.assert_allclose(by_fake[i], [[1.0] * 11, [-1.0] * 11])
    i = NAMES.index("non_saturating")  # a generated example taken for real teaches G nothing more
    np.testing.assert_allclose(by_fake[i, 1], 0.0, atol=1e-6)


def test_which_games_are_zero_sum():
    """Where the generator's gradient is the opposite of the discriminator's."""
    real, fake = logits(2)
    _, by_fake = all_gradients(real, fake, jnp.ones(11, bool))
    opposite = {name: np.allclose(g[0], -g[1], atol=1e-6) for name, g in zip(NAMES, by_fake, strict=True)}
    assert {name for name in NAMES if opposite[name]} == {"minimax", "wgan", "jsd"}


@given(st.floats(-3, 3), st.integers(0, 2**16))
def test_relativistic_objectives_do_not_see_a_shift(shift, seed):
    real, fake = logits(2, seed=seed)
    present = jnp.ones(11, bool)
    plain, shifted = all_terms(real, fake, present), all_terms(real + shift, fake + shift, present)
    for name in ("relativistic", "relativistic_average"):
        i = NAMES.index(name)
        np.testing.assert_allclose(plain[i], shifted[i], rtol=1e-4, atol=1e-5, err_msg=name)


COUNTS_OF_P, COUNTS_OF_Q = np.array([5, 1, 4, 2]), np.array([1, 6, 3, 2])
P, Q = COUNTS_OF_P / 12, COUNTS_OF_Q / 12


def bound(v):
    """The mean of the terms over samples that have P and Q for their exact frequencies."""
    v = np.float32(v)
    return float(jsd_bound(jnp.asarray(v.repeat(COUNTS_OF_P)), jnp.asarray(v.repeat(COUNTS_OF_Q))).mean())


def divergence():
    m = (P + Q) / 2
    return rel_entr(P, m).sum() + rel_entr(Q, m).sum()


def test_jsd_bound_is_tight_at_the_density_ratio_and_has_its_ceiling():
    np.testing.assert_allclose(bound(np.log(P / Q)), divergence(), rtol=1e-5)
    v = jnp.full(5, 100.0)
    np.testing.assert_allclose(jsd_bound(v, -v), 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(jsd_bound(0 * v, 0 * v), 0.0, atol=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_jsd_bound_is_below_the_divergences(v):
    assert bound(v) <= divergence() + 1e-6
    assert divergence() < rel_entr(P, Q).sum()


def test_matching_aware_is_algorithm_1_of_gan_cls():
    real, fake, mismatched = logits(3)
    discriminator = matching_aware(OBJECTIVES["minimax"])
    want = oracle.gan_cls(real, fake, mismatched)
    np.testing.assert_allclose(discriminator(real, fake, mismatched), want, rtol=1e-5)
    present, pairs = jnp.arange(11) != 2, jnp.arange(11) != 3
    got = discriminator(real, fake, mismatched.at[3].set(jnp.nan), present=present, mismatched_present=pairs)
    want[2], want[3] = 0.0, oracle.discriminator("minimax", real[3:4], fake[3:4])[0]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_mmd_pair_and_witness_are_their_definitions():
    x, real, fake = jnp.asarray(np.random.default_rng(1).normal(size=(3, 7, 3)), jnp.float32)
    x, fake = x[:5], 1.5 * fake + 0.3

    @jax.jit
    def every(real, fake):
        return {
            name: (
                mmd_generator(fake, real, kernel=kernel),
                mmd_discriminator(real, fake, kernel=kernel),
                witness(x, real, fake, kernel=kernel),
            )
            for name, kernel in KERNELS.items()
        }

    for name, (g, d, at_x) in every(real, fake).items():
        want = alignment.mmd(KERNEL_NAMES[name], real, fake, unbiased=True)
        np.testing.assert_allclose((g, d), (want, -want), rtol=2e-4, atol=2e-5, err_msg=name)
        want = oracle.witness(KERNEL_NAMES[name], x, real, fake)
        np.testing.assert_allclose(at_x, want, rtol=2e-4, atol=1e-5, err_msg=name)


def test_mmd_is_the_mean_difference_of_its_witness():
    """Of real and generated, for the biased estimate."""
    real, fake = jnp.asarray(np.random.default_rng(2).normal(size=(2, 7, 3)), jnp.float32)
    present = jnp.arange(7) != 4
    w = jax.jit(lambda x: witness(x, real, fake.at[4].set(jnp.nan), present=present))
    difference = (w(real) - w(fake))[np.flatnonzero(present)]
    want = mmd(real, fake, kernel=KERNELS["rq_star"], unbiased=False, present=present)
    np.testing.assert_allclose(difference.mean(), want, rtol=1e-5)


def test_clip_weights():
    params = {"a": jnp.array([-3.0, 0.004, 3.0]), "b": jnp.array([[0.02]])}
    got = clip_weights(params, 0.01)
    np.testing.assert_allclose(got["a"], [-0.01, 0.004, 0.01])
    np.testing.assert_allclose(got["b"], [[0.01]])
    with pytest.raises(ValueError, match="limit must be positive, got -1"):
        clip_weights(params, -1.0)


# -- the number of devices -----------------------------------------------------------------------------------


def batch():
    rng = np.random.default_rng(3)
    real, fake, between = rng.normal(size=(3, 24, 3))
    split = {"real": real, "fake": 1.5 * fake + 0.3, "between": between, "present": np.arange(24) % 5 != 2}
    return {k: jnp.asarray(v) for k, v in split.items()}, {"w": jnp.asarray(rng.normal(size=(3, 2)))}


def relativistic_average(split, shared, axis_name):
    """Discriminator, generator and the matching-aware form, at weights that cannot cancel."""
    options = {"present": split["present"], "axis_name": axis_name}
    objective = OBJECTIVES["relativistic_average"]
    real, fake = (jnp.tanh(split[k] @ shared["w"]).sum(axis=1) for k in ("real", "fake"))
    terms = objective.discriminator(real, fake, **options) + 3.0 * objective.generator(fake, real, **options)
    terms += 7.0 * matching_aware(objective)(real, fake, fake * fake, **options)
    return batch_mean(terms, split["present"].astype(real.dtype), axis_name=axis_name)


def mmd_loss(split, shared, axis_name):
    real, fake = (jnp.tanh(split[k] @ shared["w"]) for k in ("real", "fake"))
    return mmd_discriminator(real, fake, present=split["present"], axis_name=axis_name)


def witness_penalty(split, shared, axis_name):
    """What an MMD-GAN's critic minimises besides: a gradient inside of the gradient, through gathered features."""
    features = lambda x: jnp.tanh(x @ shared["w"])
    real, fake = features(split["real"]), features(split["fake"])
    critic = lambda x: witness(features(x), real, fake, present=split["present"], axis_name=axis_name)
    # Both ends are the same points, so that no keys matter.
    keys = jax.vmap(jax.random.key)(jnp.arange(real.shape[0]))
    terms = gradient_penalty(critic, split["between"], split["between"], keys)
    return batch_mean(terms, split["present"].astype(terms.dtype), axis_name=axis_name)


LOSSES = {"relativistic average": relativistic_average, "mmd": mmd_loss, "witness penalty": witness_penalty}


@pytest.fixture(scope="module")
def one_device():
    with jax.enable_x64(True):
        return values_and_gradients(LOSSES, *batch())


@pytest.mark.parametrize(("devices", "mode"), [(4, "pmap"), (8, "shard_map")])
def test_devices_do_not_change_the_result(devices, mode, one_device):
    """In double precision: MMD is a small difference of large means."""
    with jax.enable_x64(True):
        assert_same(values_and_gradients(LOSSES, *batch(), devices, mode), one_device, rtol=1e-9)
    assert all(np.abs(want[1][1]["w"]).max() > 1e-4 for want in one_device.values())


def test_a_batch_without_examples_is_zero():
    none = jnp.zeros(11, bool)
    real, fake = logits(2)
    assert not all_terms(real, fake, none).any()
    assert not any(g.any() for g in all_gradients(real, fake, none))
    x = jnp.ones((11, 3))
    value, gradient = jax.jit(jax.value_and_grad(partial(mmd_generator, real=x, present=none)))(2.0 * x)
    assert value == 0 and not gradient.any()
