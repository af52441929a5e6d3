"""Codes from some of the modalities against closed forms, likelihoods against the exact ones of linear models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.models.vae.multimodal import KEY, MODELS, NAMES, config_of, make_batch, on_device, started
from tests.oracles import linear_gaussian as oracle
from xmodal_jax.core import parts, trees
from xmodal_jax.core.random import example_keys
from xmodal_jax.losses.objective import ObjectiveInputs
from xmodal_jax.models.vae import inference
from xmodal_jax.models.vae.modalities import ImageConfig, sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.nets.decoders import MLPDecoderConfig
from xmodal_jax.nets.encoders import DCGANEncoderConfig
from xmodal_jax.probability.distributions import Laplace, Normal
from xmodal_jax.probability.priors import Prior

M, B, D, P = 3, 5, 2, 2
RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=(M, B, D)).astype(np.float32)
SCALE = np.exp(0.3 * RNG.normal(size=(M, B, D))).astype(np.float32)
OWN_MEAN = RNG.normal(size=(M, B, P)).astype(np.float32)
OWN_SCALE = np.exp(0.3 * RNG.normal(size=(M, B, P))).astype(np.float32)
AUXILIARY = np.exp(0.5 * RNG.normal(size=(M, P))).astype(np.float32)
CENTRES = RNG.normal(size=(4, D)).astype(np.float32)
LOGITS = np.log(np.float32([0.4, 0.3, 0.2, 0.1]))
# All three, two of them, one, another, none.
GIVEN = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0]], bool)


def of(family, mean, scale):
    return family(jnp.asarray(mean), jnp.log(jnp.asarray(scale)))


def problem(family=Normal, private=False, clusters=1):
    centres = CENTRES if clusters > 1 else np.zeros((1, D), np.float32)
    prior = Prior(
        of(family, centres, np.ones_like(centres)),
        jnp.asarray(LOGITS) if clusters > 1 else jnp.zeros(1),
        of(family, np.zeros(P, np.float32), np.ones(P, np.float32)) if private else None,
        of(family, np.zeros((M, P), np.float32), AUXILIARY) if private else None,
    )
    return ObjectiveInputs(
        experts=of(family, MEAN, SCALE), present=jnp.ones((M, B), bool),
        log_likelihood=lambda z: z.sum(axis=-1), kl_to_prior=lambda q, there: q.mean.sum(axis=-1),
        keys=keys_of(B), prior=prior, private=of(family, OWN_MEAN, OWN_SCALE) if private else None,
    )  # fmt: skip


def keys_of(count):
    return example_keys(KEY, jnp.arange(count))


def product_of(given, b, prior):
    """Mean and standard deviation of the product of the given experts of one example, in float64."""
    members = np.flatnonzero(given[:, b])
    if not len(members) and not prior:
        return np.zeros(D), np.ones(D)
    return oracle.product(np.float64(MEAN[members, b]), np.float64(SCALE[members, b]), prior)


PRODUCTS = {
    "product": lambda given, b: 0.0,
    "product_and_prior": lambda given, b: 1.0,
    "full_product_and_prior": lambda given, b: float(given[:, b].all()),
}


def infer_by(name):
    """``infer(inputs, given, keys, rows)``, from a density by name or by a function of its own."""
    density = getattr(inference, name)
    if name.startswith("from_"):
        return density
    return lambda p, given, keys, rows: inference.from_posterior(p, density(p, given), given, keys, rows)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_the_given_experts(name):
    """Mean, spread of 4000 samples (five standard errors), and the density ratio of each."""
    infer, rows = infer_by(name), 4000
    run = jax.jit(lambda keys, given: [infer(problem(), given, k, n) for k, n in ((None, 1), (keys, rows))])
    mean, codes = run(keys_of(B), GIVEN)
    assert codes.z.shape == (M, rows, B, D) and codes.log_ratio.shape == (rows, B)
    np.testing.assert_array_equal(codes.z, np.broadcast_to(codes.shared, codes.z.shape))
    for b in range(B):
        centre, spread = product_of(GIVEN, b, PRODUCTS[name](GIVEN, b))
        np.testing.assert_allclose(mean.shared[0, b], centre, rtol=1e-5, atol=1e-6)
        z = np.float64(codes.shared[:, b])
        np.testing.assert_array_less(np.abs(z.mean(0) - centre), 5 * spread / rows**0.5)
        np.testing.assert_array_less(np.abs(z.std(0) - spread), 5 * spread / (2 * rows) ** 0.5)
        ratio = scipy.stats.norm.logpdf(z) - scipy.stats.norm.logpdf(z, centre, spread)
        np.testing.assert_allclose(codes.log_ratio[:, b], ratio.sum(-1), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", [Normal, Laplace])
@pytest.mark.parametrize("clusters", [1, 4])
def test_a_mixture_uses_each_given_expert_equally_often(family, clusters):
    """Of 12 samples of each example as many in every stratum: 4 of three, 6 of two, 12 of one expert."""
    far = np.float32([-100.0, 0.0, 100.0])[:, None, None] + MEAN

    @jax.jit
    def infer(keys, given):
        p = problem(family, clusters=clusters)._replace(experts=of(family, far, SCALE))
        return inference.from_mixture(p, given, keys, 12)

    codes = infer(keys_of(B), GIVEN)
    density = {Normal: scipy.stats.norm, Laplace: scipy.stats.laplace}[family].logpdf
    centres, logits = (CENTRES, LOGITS) if clusters > 1 else (np.zeros((1, D)), np.zeros(1))
    for b in range(B):
        z, members = np.float64(codes.shared[:, b]), np.flatnonzero(GIVEN[:, b])
        prior = np.logaddexp.reduce(
            [w + density(z, c, 1).sum(-1) for w, c in zip(logits, centres, strict=True)]
        )
        if not len(members):
            assert (np.abs(z) < 20).all() and not codes.log_ratio[:, b].any()
            continue
        nearest = np.abs(z[:, None] - np.float64(far[:, b])).max(-1).argmin(1)
        assert np.bincount(nearest, minlength=M).tolist() == [12 // len(members) * g for g in GIVEN[:, b]]
        q = [density(z, np.float64(far[m, b]), np.float64(SCALE[m, b])).sum(-1) for m in members]
        want = prior - np.logaddexp.reduce(q) + np.log(len(members))
        np.testing.assert_allclose(codes.log_ratio[:, b], want, rtol=1e-4, atol=1e-4)


def test_each_given_modality_keeps_its_own_latent_and_tells_the_others():
    """Of separate VAEs: what is given has samples of its own expert, whose mean and spread are checked to five standard
    errors; the rest has in turns the sample of each given one, as has the shared latent."""
    rows = 3000
    infer = lambda keys, given, n: inference.from_own_expert(problem(), given, keys, n)
    codes = jax.jit(infer, static_argnums=2)(keys_of(B), GIVEN, rows)
    assert codes.z.shape == (M, rows, B, D) and np.isnan(codes.log_ratio).all()
    z, shared = np.float64(codes.z), np.float64(codes.shared)
    for b in range(B):
        members = np.flatnonzero(GIVEN[:, b])
        for m in range(M):
            if m in members:
                assert np.all(np.abs(z[m, :, b].mean(0) - MEAN[m, b]) < 5 * SCALE[m, b] / rows**0.5)
                assert np.all(np.abs(z[m, :, b].std(0) / SCALE[m, b] - 1) < 5 / (2 * rows) ** 0.5)
            else:
                np.testing.assert_array_equal(z[m, :, b], shared[:, b])
        if len(members):
            is_own = np.isclose(z[members, :, b], shared[None, :, b], atol=1e-6).all(-1)
            assert np.all(is_own.sum(0) == 1) and is_own.sum(1).tolist() == [rows // len(members)] * len(
                members
            )
        if len(members) > 1:  # and what is given does not share its noise
            noise = (z[members, :, b] - MEAN[members, None, b]) / SCALE[members, None, b]
            assert np.all(np.abs(np.corrcoef(noise[0, :, 0], noise[1, :, 0])[0, 1]) < 5 / rows**0.5)
    still = infer(None, jnp.asarray(GIVEN), 2)
    for b in range(B - 1):
        np.testing.assert_allclose(still.shared[1, b], MEAN[GIVEN[:, b], b].mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(still.z[GIVEN[:, b], 0, b], MEAN[GIVEN[:, b], b])
    assert not np.any(still.z[:, :, B - 1])


def test_which_expert_a_mixture_begins_with_is_drawn():
    """One sample of each of 3000 examples: every expert a third of the time, within four standard errors."""
    n = 3000
    far = np.broadcast_to(np.float32([-100, 0, 100])[:, None, None], (M, n, D))

    @jax.jit
    def infer(keys):
        everything = jnp.ones((M, n), bool)
        p = problem()._replace(experts=of(Normal, far, np.ones_like(far)), present=everything)
        return inference.from_mixture(p, everything, keys, 1)

    codes = infer(keys_of(n))
    share = np.bincount(np.round(np.asarray(codes.shared[0, :, 0]) / 100).astype(int) + 1) / n
    np.testing.assert_array_less(np.abs(share - 1 / 3), 4 * (2 / 9 / n) ** 0.5)


def test_without_a_key_a_mixture_gives_the_mean_of_the_given_means():
    codes = jax.jit(lambda given: inference.from_mixture(problem(clusters=4), given, None, 1))(GIVEN)
    for b in range(B - 1):
        np.testing.assert_allclose(codes.shared[0, b], MEAN[GIVEN[:, b], b].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(codes.shared[0, B - 1], CENTRES[0])


@pytest.mark.parametrize(
    "name, family", [("product", Normal), ("from_mixture", Normal), ("from_mixture", Laplace)]
)
def test_private_codes_are_their_own_where_given_and_of_the_auxiliary_prior_else(name, family):
    infer, rows = infer_by(name), 2000
    run = jax.jit(
        lambda keys, given: [infer(problem(family, has), given, keys, rows) for has in (True, False)]
    )
    with_, without = run(keys_of(B), GIVEN)
    density = {Normal: scipy.stats.norm, Laplace: scipy.stats.laplace}[family].logpdf
    spread = 1.0 if family is Normal else 2**0.5
    w = np.float64(with_.z[..., D:])
    np.testing.assert_array_equal(with_.z[..., :D], without.z)
    gained = np.zeros((rows, B))
    for m in range(M):
        for b in range(B):
            own = np.float64(OWN_MEAN[m, b]), np.float64(OWN_SCALE[m, b])
            centre, scale = own if GIVEN[m, b] else (np.zeros(P), np.float64(AUXILIARY[m]))
            error = spread * scale / rows**0.5
            np.testing.assert_array_less(np.abs(w[m, :, b].mean(0) - centre), 5 * error)
            # A Laplace's sample variance has a relative variance of 5 / n, a normal's of 2 / n.
            np.testing.assert_array_less(
                np.abs(w[m, :, b].std(0) / (spread * scale) - 1), 5 * (5 / 4 / rows) ** 0.5
            )
            if GIVEN[m, b]:
                gained[:, b] += (density(w[m, :, b], 0, 1) - density(w[m, :, b], *own)).sum(-1)
    np.testing.assert_allclose(with_.log_ratio - without.log_ratio, gained, rtol=1e-3, atol=1e-3)


def test_the_prior_of_clusters():
    """Of 4000 samples the share near each cluster, and without a key the likeliest one's mean."""
    n = 4000
    far = np.float32([[-50, -50], [50, -50], [-50, 50], [50, 50]])
    prior = Prior(of(Normal, far, np.full((4, D), 2.0, np.float32)), jnp.asarray(LOGITS))
    z = np.asarray(jax.jit(lambda keys: inference.sample_prior(prior, keys, 1, n))(keys_of(n)))[0]
    nearest = np.abs(z[:, None] - far).max(-1).argmin(1)
    p = np.exp(LOGITS)
    np.testing.assert_array_less(np.abs(np.bincount(nearest) / n - p), 4 * (p * (1 - p) / n) ** 0.5)
    np.testing.assert_allclose((z - far[nearest]).std(0), 2.0, rtol=5 / (2 * n) ** 0.5)
    np.testing.assert_array_equal(
        inference.sample_prior(prior, None, 2, 3), np.broadcast_to(far[0], (2, 3, D))
    )


@pytest.mark.parametrize(
    "far,steps,leaps,size", [(True, 60, 8, 0.25), (False, 100, 3, 0.65)], ids=["far", "coarse"]
)
def test_hamiltonian_monte_carlo_samples_a_correlated_normal(far, steps, leaps, size):
    """2000 chains, mean and covariance within five standard errors: they get there from far away; and they stay there
    with steps so large that it matters what is refused."""
    rows, batch = 50, 40
    mean = np.array([1.5, -0.5, 2.0])
    cov = np.array([[1.0, 0.6, 0.0], [0.6, 0.8, -0.3], [0.0, -0.3, 0.5]])
    precision = jnp.asarray(np.linalg.inv(cov), jnp.float32)

    def density(z):
        gap = z - jnp.asarray(mean, jnp.float32)[None, None]
        return -0.5 * jnp.einsum("rbi,ij,rbj->rb", gap, precision, gap)

    there = np.random.default_rng(5).multivariate_normal(mean, cov, (rows, batch))
    start = jnp.full((rows, batch, 3), 4.0) if far else jnp.asarray(there, jnp.float32)
    move = jax.jit(
        functools.partial(
            inference.hamiltonian_monte_carlo, density, steps=steps, leapfrog=leaps, step_size=size
        )
    )
    z = np.float64(move(start, keys_of(batch))).reshape(-1, 3)
    n = len(z)
    assert (np.abs(z - np.float64(start).reshape(-1, 3)).max(axis=1) > 0).mean() > 0.99
    np.testing.assert_array_less(np.abs(z.mean(0) - mean), 5 * (np.diag(cov) / n) ** 0.5)
    errors = ((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n) ** 0.5
    np.testing.assert_array_less(np.abs(np.cov(z.T) - cov), 5 * errors)


def test_a_proposal_that_leaves_the_numbers_is_refused():
    """Steps so large that the energy overflows: every chain stays where it is."""
    density = lambda z: -jnp.square(jnp.square(z)).sum(axis=-1)
    start = jnp.ones((2, 3, D))
    move = functools.partial(inference.hamiltonian_monte_carlo, density, steps=3, leapfrog=20, step_size=1e3)
    np.testing.assert_array_equal(jax.jit(move)(start, keys_of(3)), start)


# -- The models' own `infer` -----------------------------------------------------------------------------------


def watched(model, monkeypatch):
    """``look(params, batch, given) -> codes`` of a model, compiled once, with ``(experts, private, flowed)`` for the
    ratio."""
    short = dict(hmc_steps=1, hmc_leapfrog=1, hmc_step_size=0.1) if model == "jnf" else {}
    config = config_of(model, **short)
    infer = config.infer

    def look(_, p, given, keys, rows):
        flowed = p.networks.flow(infer(p, given, keys, rows).shared[0])[0] if model == "jnf" else None
        codes = infer(p, given, keys, rows)
        return codes._replace(log_ratio=(p.experts, p.private, flowed))

    monkeypatch.setattr(MODELS[model], "infer", look)
    vae = make_multimodal_vae(config, sizes_of(make_batch(1), NAMES, config, classes=3))
    return jax.jit(lambda *args: vae.infer(*args, None))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_infers_from_what_it_is_given_alone(model, monkeypatch):
    """One given modality: its expert, and private code; what is not given has no influence; nothing given: the
    prior."""
    params = started(model)[1]  # before: it is kept for other tests
    look = watched(model, monkeypatch)
    batch = {k: v for k, v in make_batch(6).items() if k not in ("present", "step")}
    batch["label"] = np.arange(6, dtype=np.int32) % 3
    other = make_batch(6, seed=7)
    for m, name in enumerate(NAMES):
        given = jnp.arange(3) == m
        mixed = {**batch, **{k: np.abs(other[k]) for k in NAMES if k != name}}
        codes = look(params, on_device(batch), given)
        experts, private, flowed = codes.log_ratio
        np.testing.assert_array_equal(codes.z, look(params, on_device(mixed), given).z)
        own = None if experts is None else experts.mean[m]
        if model == "mvae" or model == "dmvae":  # with the prior as one more expert
            own = own / (1.0 + jnp.exp(2.0 * experts.log_scale[m]))
        if model == "jnf":
            np.testing.assert_allclose(flowed[m], own, rtol=1e-4, atol=1e-4)
        elif model == "nexus":
            np.testing.assert_array_equal(codes.z[m, 0], own)
        elif model != "mhvae":  # whose experts know what is above them
            np.testing.assert_allclose(codes.shared[0], own, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(codes.z[m, 0, :, : own.shape[-1]], codes.shared[0])
        if private is not None:
            w = codes.z[:, 0, :, -private.mean.shape[-1] :]
            np.testing.assert_array_equal(w[m], private.mean[m])
            assert not np.delete(np.asarray(w), m, axis=0).any()
    nothing = look(params, on_device(batch), jnp.zeros(3, bool))
    again = look(params, on_device({**batch, **{k: np.abs(other[k]) for k in NAMES}}), jnp.zeros(3, bool))
    np.testing.assert_array_equal(nothing.z, again.z)
    centre = np.zeros(nothing.shared.shape[-1])
    if model == "cmvae":
        centre = params["cluster_means"][params["cluster_logits"].argmax()]
    np.testing.assert_array_equal(nothing.shared[0], np.broadcast_to(centre, nothing.shared.shape[1:]))


@pytest.mark.parametrize("model", ["jmvae", "jnf"])
def test_the_joint_encoder_speaks_where_all_is_given_that_there_is(model):
    """And where nothing is there, the prior does."""
    vae, params = started(model)
    batch = {**make_batch(4), "label": np.zeros(4, np.int32)}
    batch["present"] = {
        "image_0": np.array([1, 1, 0, 0], bool),
        "image_1": np.array([1, 0, 0, 0], bool),
        "label": np.array([1, 1, 1, 0], bool),
    }
    infer = jax.jit(lambda given: vae.infer(params, on_device(batch), given, None).shared[0])
    everything, two, one = (infer(jnp.array(g, bool)) for g in ([1, 1, 1], [1, 0, 1], [0, 0, 1]))
    np.testing.assert_array_equal(everything[1], two[1])
    np.testing.assert_array_equal(everything[2], one[2])
    assert not np.array_equal(everything[0], two[0]) and not np.array_equal(everything[1], one[1])
    assert not everything[3].any() and not infer(jnp.zeros(3, bool)).any()


def test_several_subsets_are_each_its_own():
    vae, params = started("mmvae_plus")
    batch, subsets = on_device(make_batch(4)), jnp.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]], bool)
    infer = jax.jit(lambda given: vae.infer(params, batch, given, KEY, 3))
    for k, codes in enumerate(zip(*infer(subsets), strict=True)):
        for a, b in zip(codes, infer(subsets[k]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_codes_belong_to_their_examples():
    """Each example's own draws, wherever in the batch it stands."""
    vae, params = started("mmvae")
    infer = jax.jit(lambda batch: vae.infer(params, batch, jnp.ones(3, bool), KEY, 4).z)
    batch, order = make_batch(5), np.array([3, 0, 4, 1, 2])
    turned = jax.tree.map(lambda x: x[order], batch)
    np.testing.assert_allclose(
        infer(on_device(turned)), infer(on_device(batch))[:, :, order], rtol=1e-5, atol=1e-6
    )


# -- Likelihoods -------------------------------------------------------------------------------------------------

COPIES, SAMPLES, FAR = 24, 800, 20.0
PICTURES = ("image_0", "image_1", "image_wide")
LINEAR = ImageConfig(
    DCGANEncoderConfig(width=4), MLPDecoderConfig(width=6, depth=1), "normal", scale=4.5, weight=0.3
)
"""The weight is of the loss alone: a likelihood has none."""


def linear_config(model):
    small = dict(private=1, top=2, flows=1, hmc_steps=1, hmc_leapfrog=1, posterior="normal")
    small = {k: v for k, v in small.items() if k in parts.options_of(MODELS[model])}
    return config_of(model, hidden=6, latent=2, posterior_scale="exp", image=LINEAR, **small)


SHAPES = dict(zip(PICTURES, [(8, 8, 1), (8, 8, 1), (8, 16, 1)], strict=True))


@functools.cache
def linear_vae(model):
    """A model of the pictures of `World`, and its likelihood, which is compiled once for each number of samples."""
    config, batch = linear_config(model), {m: np.zeros((1, *s), np.uint8) for m, s in SHAPES.items()}
    vae = make_multimodal_vae(config, sizes_of(batch, PICTURES, config))
    return vae, jax.jit(vae.log_likelihood, static_argnums=5)


class World:
    """One example of a linear-Gaussian world, and each model with parameters that make it that world.

    A hidden layer with ReLU is linear as long as it stays positive: its bias is ``FAR``, and taken off again.
    """

    def __init__(self, model, wide=None):
        rng = np.random.default_rng(3)
        self.model, self.config = model, linear_config(model)
        self.samples = {"nexus": 4000, "jnf": 200}.get(model, SAMPLES)
        self.wide = wide or (1.6 if model == "nexus" else 2.0)  # Nexus draws a code of each modality's own
        private = getattr(self.config, "private", 0)
        self.w = [0.35 * rng.normal(size=(d, 2)) for d in (64, 64, 128)]
        self.v = [0.3 * rng.normal(size=(d, private)) if private else None for d in (64, 64, 128)]
        self.b = [0.5 + 0.2 * rng.normal(size=d) for d in (64, 64, 128)]
        self.auxiliary = np.array([0.7, 1.4, 0.5]) if model in ("mmvae_plus", "cmvae") else np.ones(3)
        self.falls = rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2)), 0.8
        self.centres, self.weights = rng.normal(size=(3, 2)), np.array([0.5, 0.2, 0.3])
        self.spread = np.array([1.3, 0.6])
        self.x = {m: rng.integers(0, 256, s).astype(np.uint8) for m, s in SHAPES.items()}
        batch = {m: np.stack([x] * COPIES) for m, x in self.x.items()}
        self.batch = on_device({**batch, "index": np.arange(COPIES, dtype=np.int32)})
        self.vae, estimate = linear_vae(model)
        shapes = jax.eval_shape(self.vae.method.init, KEY, self.batch)
        self.params = trees.map_with_name(
            lambda name, s: jnp.asarray(self.set(name, 0.3 * rng.normal(size=s.shape)), jnp.float32), shapes
        )
        self.run = lambda samples, given, told, key=KEY: estimate(
            self.params, self.batch, key, jnp.asarray(given), jnp.asarray(told), samples
        )

    def modality(self, m):
        """As the oracle takes it; the prior of a private variable is N(0, 1), whatever is given."""
        w, b, v = self.w[m], self.b[m], self.v[m]
        if self.model == "mhvae":  # z_1 = a z_2 + c + s e
            a, c, s = self.falls[0][0], self.falls[1][0], self.falls[2]
            w, b = np.concatenate([w @ a, s * w], axis=1), b + w @ c
        if self.model == "nexus":  # z_m = a_m t + c_m + e
            a, c = self.falls[0][m], self.falls[1][m]
            w, b, v = w @ a, b + w @ c, w
        if self.model == "mmvae" and self.config.learn_prior:
            w = w * self.spread
        return oracle.Modality(w, b, LINEAR.scale, v, 1.0)

    def exact(self, told):
        members = [m for m in range(3) if told[m]]
        xs = [np.float64(self.x[PICTURES[m]]).reshape(-1) / 255.0 for m in members]
        modalities = [self.modality(m) for m in members]
        if self.model == "cmvae":
            return oracle.mixture_evidence(xs, modalities, self.centres, self.weights)
        return oracle.evidence(xs, modalities)

    def proposal(self, m):
        """Mean and standard deviation, wider than each modality's own posterior."""
        x = np.float64(self.x[PICTURES[m]]).reshape(-1) / 255.0
        mean, cov = oracle.posterior([x], [oracle.Modality(self.w[m], self.b[m], LINEAR.scale)])
        return mean, self.wide * np.diag(cov) ** 0.5

    def set(self, name, drawn):
        """The value of a parameter, of the shape of ``drawn``."""
        parts = name.split("/")
        top, leaf, new = parts[0], parts[-1], np.zeros(drawn.shape)
        members = [2] if "_8_16_1" in top else [0, 1] if "_8_8_1" in top else [0, 1, 2]

        def linear(kernel, bias):
            """Of a last layer, after a hidden one that is the identity plus ``FAR``."""
            rows = kernel.shape[-1]
            if leaf == "bias":
                return bias - FAR * kernel.sum(axis=1)
            out = np.zeros(drawn.shape[-2:])
            out[:rows] = kernel.T
            return out

        def identity():
            return np.full(drawn.shape, FAR) if leaf == "bias" else new + np.eye(*drawn.shape[-2:])

        if top.startswith("decoders"):
            if "hidden_0" in parts:
                return identity()
            full = [
                w if v is None else np.concatenate([w, v], 1) for w, v in zip(self.w, self.v, strict=True)
            ]
            return np.stack([linear(full[m], self.b[m]) for m in members])
        if top.startswith(("experts", "deepest", "level_experts")) and parts[-2] in ("mean", "raw"):
            if leaf == "kernel":
                return new
            both = [self.proposal(m) for m in members]
            return np.stack([mean if parts[-2] == "mean" else 2 * np.log(scale) for mean, scale in both])
        if parts[-2:-1] in (["private_mean"], ["private_raw"]):
            return new + (0.3 if parts[-2] == "private_mean" and leaf == "bias" else 0.0)
        if top in ("joint_moments", "gathered") and parts[-2] in ("mean", "raw"):
            means, scales = zip(*(self.proposal(m) for m in range(3)), strict=True)
            mean, scale = oracle.product(means, scales)
            if top == "gathered":
                mean, scale = 0 * mean, 0 * scale + 1.2
            return new if leaf == "kernel" else mean if parts[-2] == "mean" else 2 * np.log(scale)
        if top == "code_of_each":
            a, c, _ = self.falls
            return identity() if "hidden" in parts else np.stack([linear(a[m], c[m]) for m in range(3)])
        if top == "falls_0":
            return identity() if "hidden" in parts else linear(np.eye(6)[:, :2], np.zeros(6))
        if top == "priors_0":
            if parts[-2] == "raw":
                return new if leaf == "kernel" else new + 2 * np.log(self.falls[2])
            if leaf == "bias":
                return self.falls[1][0]
            new[:2] = self.falls[0][0].T
            return new
        named = dict(
            auxiliary_raw=2 * np.log(self.auxiliary)[:, None],
            cluster_means=self.centres,
            cluster_logits=np.log(self.weights),
            prior_raw=2 * np.log(self.spread),
        )
        return named.get(top, drawn)


ALL, FIRST, TWO = (np.array(x, bool) for x in ([1, 1, 1], [1, 0, 0], [0, 1, 1]))


def assert_converges(world, given, told):
    """The mean of the copies' estimates within four standard errors of what is exact; and these must be small."""
    estimates, exact = np.float64(world.run(world.samples, given, told)), world.exact(told)
    # Unbiased before the logarithm.
    ratio = np.exp(estimates - exact)
    error = ratio.std(ddof=1) / COPIES**0.5
    assert error < 0.06, f"proposal too far off for a test: {error}"
    assert abs(ratio.mean() - 1) < 4 * error + 1e-3, (estimates.mean(), exact, error)
    return estimates.mean(), exact, error


@functools.cache
def world_of(model):
    return World(model)


LIKE_OTHERS = ("telbo", "mmjsd", "mvtcae", "crmvae")
"""They infer as another model does."""


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(m, marks=pytest.mark.slow) if m in LIKE_OTHERS else m
        for m, config in MODELS.items()
        if config.has_prior
    ],
)
def test_likelihoods_converge_to_the_exact_ones(model):
    """Of all modalities, each with its own influence; given one; and of others than those given."""
    world = world_of(model)
    joint, exact, error = assert_converges(world, ALL, ALL)
    for told in (TWO, FIRST):
        assert abs(world.exact(told) - exact) > 100 * error  # what a dropped modality would give
    one, exact_one, _ = assert_converges(world, FIRST, FIRST)
    both, exact_both, error = assert_converges(world, FIRST, ALL)
    # Conditional on the first: the difference of two.
    np.testing.assert_allclose(both - one, exact_both - exact_one, atol=0.15)
    assert abs(exact_both - exact_one) > 10
    if model != "jnf":  # whose product has no density
        assert_converges(world, TWO, np.array([1, 0, 1], bool))
    assert_converges(world, np.zeros(3, bool), FIRST)


@pytest.mark.parametrize("model", ["mmvae_plus", "cmvae"])
def test_joint_samples_take_private_latents_from_their_prior(model):
    """Of scale 1, and not from the auxiliary priors, of scales 0.7, 1.4 and 0.5."""
    world, count = world_of(model), 5000
    z = world.vae.decoder_latents(world.params, jnp.zeros((count, 2)), KEY)
    private = np.float64(z[:, 0, :, 2:])
    np.testing.assert_allclose(private.std(axis=1), 1.0, atol=5 / (2 * count) ** 0.5)
    still = world.vae.decoder_latents(world.params, jnp.zeros((1, 2)), None)
    assert not np.any(still)


def test_without_a_prior_there_are_no_samples_and_no_likelihood():
    vae, params = started("mmvm")
    assert vae.sample_prior is None and vae.posterior is None
    assert [name for name, config in MODELS.items() if not config.has_prior] == ["mmvm"]
    with pytest.raises(ValueError, match=r"mmvm has no likelihood: its latents have no prior p\(z\)"):
        vae.log_likelihood(params, make_batch(2), KEY, np.ones(3, bool), np.ones(3, bool), 2)


def test_a_product_by_monte_carlo_has_no_density_to_weigh_with():
    assert np.isnan(world_of("jnf").run(200, TWO, ALL)).all()


@pytest.mark.parametrize("model", ["mvae", pytest.param("mmvae", marks=pytest.mark.slow), "mmvae_plus"])
def test_few_samples_are_a_lower_bound(model):
    """The mean of one sample's estimates lies clearly below the exact value, of ten samples' nearer."""
    world = World(model, wide=10.0)
    several = [jax.random.fold_in(KEY, k) for k in range(10)]
    found = {k: np.concatenate([world.run(k, ALL, ALL, key) for key in several]) for k in (1, 10, SAMPLES)}
    gaps = {k: world.exact(ALL) - np.float64(x).mean() for k, x in found.items()}
    errors = {k: np.float64(x).std(ddof=1) / len(x) ** 0.5 for k, x in found.items()}
    assert gaps[1] > gaps[10] + 4 * errors[1] and gaps[10] > gaps[SAMPLES]
    assert abs(gaps[SAMPLES]) < 4 * errors[SAMPLES] + 0.02
