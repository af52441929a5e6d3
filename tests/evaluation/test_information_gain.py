"""A linear-Gaussian model by hand, whose gains are known; and what every multimodal VAE says of its posterior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.metrics.test_information_gain import SCALES, WEIGHTS, exact, information
from tests.models.vae import multimodal
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.information_gain import (
    InformationGainEvaluator,
    InformationGains,
    best_next_modality,
    lacks_modalities,
    observed_subsets,
)
from xmodal_jax.models.vae.modalities import ModalityConfigs, preprocess
from xmodal_jax.models.vae.multimodal import MultimodalVAE
from xmodal_jax.probability import as_mixture

NAMES = tuple(f"vector_{k}" for k in range(len(WEIGHTS)))
UNKNOWN = {"nexus", "mhvae", "jnf", "mmvm"}


def linear_gaussian_vae():
    """Exact posteriors; every function of `MultimodalVAE` that the evaluator needs."""

    def posterior(params, inputs, observed):
        x = jnp.stack([inputs.inputs[name][0] for name in NAMES])
        of = lambda mask: as_mixture(exact(x, mask))
        return of(observed) if observed.ndim == 1 else jax.vmap(of)(observed)

    def sample(params, z, key):
        noise = jax.random.normal(key, z.shape)
        x = (
            z * jnp.asarray(WEIGHTS, jnp.float32)[:, None, None]
            + noise * jnp.asarray(SCALES, "f4")[:, None, None, None]
        )
        return dict(zip(NAMES, x, strict=True))

    return MultimodalVAE(
        None, NAMES, infer=None, decode=None, decoder_latents=None, sample_prior=None, log_likelihood=None,
        posterior=posterior, sample=sample,
        decoder_samples=lambda params, inputs, shared, observed, keys: jnp.stack([shared] * len(NAMES)),
    )  # fmt: skip


def data(n, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 1, 3))
    x = WEIGHTS[None] * z + SCALES[None, :, None] * rng.normal(size=(n, len(WEIGHTS), 3))
    return {name: np.float32(x[:, k]) for k, name in enumerate(NAMES)}


def test_gains_of_a_linear_gaussian_model_are_the_mutual_information():
    """Expected and realised, of every subset and candidate, within four standard errors over examples."""
    evaluator = InformationGainEvaluator(linear_gaussian_vae(), ModalityConfigs(), draws=4, batch_size=100)
    gains = evaluator({}, ArraySource(data(250)))
    assert gains.expected.shape == gains.realised.shape == (250, 15, 4)
    for s, subset in enumerate(gains.subsets):
        observed = tuple(np.flatnonzero(subset).tolist())
        for m in range(4):
            if subset[m]:
                assert np.isnan([gains.expected[:, s, m], gains.realised[:, s, m]]).all()
                continue
            truth = information(observed, m)
            for x in (gains.expected[:, s, m], gains.realised[:, s, m]):
                assert abs(x.mean() - truth) <= 4 * x.std() / 250**0.5 + 1e-6
    metrics = gains.metrics()
    assert metrics["test/information_gain/expected/given_nothing/vector_1"] == pytest.approx(
        gains.expected[:, 0, 1].mean(dtype=np.float64)
    )
    assert metrics["test/information_gain/realised/given_vector_0_vector_2/vector_1"] > 0.3
    assert "test/information_gain/expected/given_vector_0/vector_0" not in metrics
    assert metrics["test/information_gain/correlation"] > 0.4
    assert metrics["test/information_gain/best"] > metrics["test/information_gain/chance"] + 0.2
    # Given nothing the second modality tells most, given the second the first or the third.
    assert [int(np.nanargmax(gains.expected.mean(axis=0)[s])) for s in range(2)] == [
        int(np.argmax([information(observed, m) * (m not in observed) for m in range(4)]))
        for observed in ((), (0,))
    ]


def test_examples_that_lack_what_is_observed_do_not_count():
    """What is missing can be asked for: it has an expected gain and no realised one, whatever its field holds."""
    arrays, found = data(12), []
    present = {NAMES[0]: np.arange(12) % 2 == 0, NAMES[1]: np.arange(12) % 3 == 0}
    for blank in (0.0, 7.0):
        changed = {k: v.copy() for k, v in arrays.items()}
        for name, there in present.items():
            changed[name][~there] = blank
        source = ArraySource(changed | {"present": present})
        evaluator = InformationGainEvaluator(linear_gaussian_vae(), ModalityConfigs(), draws=2, batch_size=5)
        found.append(evaluator({}, source))
        assert lacks_modalities(NAMES, source) and not lacks_modalities(NAMES[2:], source)
    gains = found[0]
    for name in ("expected", "realised"):
        np.testing.assert_array_equal(*(getattr(x, name) for x in found))
    there = np.ones((12, 4), bool)
    there[:, 0], there[:, 1] = present.values()
    for s, subset in enumerate(gains.subsets):
        has = there[:, subset].all(axis=1)
        for m in np.flatnonzero(~subset):
            np.testing.assert_array_equal(np.isfinite(gains.expected[:, s, m]), has)
            np.testing.assert_array_equal(np.isfinite(gains.realised[:, s, m]), has & there[:, m])


@pytest.mark.parametrize("model", sorted(set(multimodal.MODELS) - UNKNOWN))
def test_the_density_of_the_posterior_is_that_of_its_samples(model):
    """log p(z) - log q(z) of the samples, which inference computes by itself, for every subset."""
    vae, params = multimodal.started(model)
    config, batch = multimodal.config_of(model), multimodal.on_device(multimodal.make_batch())
    masks = observed_subsets(3)

    @jax.jit
    def compute(params, batch):
        inputs = preprocess(config, vae.modalities, batch)
        samples = vae.infer(params, batch, masks, multimodal.KEY, 3)
        q = vae.posterior(params, inputs, masks)
        nothing = vae.posterior(params, inputs, masks[0])  # the prior
        log_q = jax.vmap(lambda q, z: q.log_prob(z))(q, samples.shared)
        log_p = jax.vmap(nothing.log_prob)(samples.shared)
        return samples.log_ratio, log_p - log_q, q

    ratio, expected, q = compute(params, batch)
    if not hasattr(config, "private"):
        np.testing.assert_allclose(ratio, expected, rtol=1e-4, atol=1e-4)
    else:  # whose ratio has those of the private latents: where nothing is observed both are 0
        np.testing.assert_allclose(ratio[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(np.exp(q.log_weights).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("model", ["mvtcae", "mmvae_plus", "jmvae"])
def test_gains_of_a_model(model):
    """A number for each candidate; where divergences have a closed form they are positive, and the realised gain is the
    divergence of the posteriors of whole examples."""
    vae, params = multimodal.started(model)
    config = multimodal.config_of(model)
    arrays = multimodal.make_batch(7)
    arrays["label"] = np.maximum(arrays["label"], 0)
    del arrays["present"], arrays["index"], arrays["step"]
    evaluator = InformationGainEvaluator(vae, config, draws=2, samples=3, batch_size=4)
    gains = evaluator(params, ArraySource(arrays))
    asked = ~np.broadcast_to(gains.subsets, gains.expected.shape)
    np.testing.assert_array_equal(np.isfinite(gains.expected), asked)
    np.testing.assert_array_equal(np.isfinite(gains.realised), asked)
    if model == "mmvae_plus":
        return
    assert (gains.expected[asked] > 0).all() and (gains.realised[asked] > 0).all()
    batch = arrays | {"index": np.arange(7, dtype=np.int32)}
    inputs = preprocess(config, vae.modalities, multimodal.on_device(batch))
    q, p = (
        jax.tree.map(np.float64, vae.posterior(params, inputs, jnp.array(mask)).components)
        for mask in ([True, True, False], [True, False, False])
    )
    terms = (
        p.log_scale
        - q.log_scale
        + 0.5
        * (np.exp(2 * (q.log_scale - p.log_scale)) + (q.mean - p.mean) ** 2 * np.exp(-2 * p.log_scale) - 1)
    )
    np.testing.assert_allclose(gains.realised[:, 1, 1], terms.sum(axis=(0, 2)), rtol=1e-3)


@pytest.mark.parametrize("model", sorted(UNKNOWN))
def test_a_model_whose_density_is_not_known_says_so(model):
    vae, _ = multimodal.started(model)
    assert vae.posterior is None
    with pytest.raises(ValueError, match="density of its posterior is not known"):
        InformationGainEvaluator(vae, multimodal.config_of(model))


def test_samples_are_what_is_generated_where_the_likelihood_has_no_noise():
    """Images of one kind get noise of their own each; classes are drawn."""
    exact = dataclasses.replace(multimodal.CONFIGS.image, scale=1e-7)
    vae, noisy = multimodal.make("mvtcae", image=exact), multimodal.make("mvtcae")
    params, z = multimodal.started("mvtcae")[1], jax.random.normal(multimodal.KEY, (3, 400, 1, 4))
    generated, drawn = (jax.jit(f)(params, z, multimodal.KEY) for f in (vae.decode, vae.sample))
    for name in multimodal.NAMES[:2]:
        np.testing.assert_allclose(drawn[name], generated[name], atol=1e-5)
    drawn = jax.jit(noisy.sample)(params, jnp.zeros((3, 400, 1, 4)), multimodal.KEY)
    assert all(0 <= drawn[m].min() < drawn[m].max() <= 1 for m in multimodal.NAMES[:2])
    noise = [np.ravel(drawn[m] - drawn[m].mean(axis=0, keepdims=True)) for m in multimodal.NAMES[:2]]
    assert min(x.std() for x in noise) > 0.2 and abs(np.corrcoef(*noise)[0, 1]) < 0.05
    assert set(np.unique(drawn["label"])) == set(range(multimodal.CLASSES))


def test_gains_do_not_depend_on_where_parameters_lie():
    """On four devices, which share every batch."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    evaluator = InformationGainEvaluator(linear_gaussian_vae(), ModalityConfigs(), draws=2, batch_size=8)
    params, source = {"unused": jnp.zeros(4)}, ArraySource(data(10))
    one, four = (evaluator(x, source) for x in (params, jax.device_put(params, everywhere)))
    np.testing.assert_allclose(four.expected, one.expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(four.realised, one.realised, rtol=1e-5, atol=1e-6)


def test_the_best_next_modality():
    gains = np.array([[np.nan, 0.2, 0.7], [0.3, np.nan, np.nan], [np.nan] * 3])
    assert best_next_modality(gains, ("image", "text", "audio")) == ["audio", "image", None]
    found = InformationGains(np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), observed_subsets(2), ("a", "b"))
    assert found.subset_names() == ["nothing", "a", "b"]
    assert len(observed_subsets(5)) == 31 and len(observed_subsets(6)) == 1 + 6 + 6
    assert not observed_subsets(6).all(axis=1).any()
