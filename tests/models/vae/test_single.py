import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.vae.vaes import (
    CLASSES,
    COMMON,
    KEY,
    TWO_PLAYERS,
    D,
    calm,
    codes,
    config_of,
    loss_of,
    make,
    nats_of,
    started,
    with_constant_output,
)
from tests.oracles import vae as oracle
from tests.support import assert_trees_identical
from xmodal_jax.core import parts
from xmodal_jax.core.random import example_keys, fold_in_name
from xmodal_jax.models.vae.single import make_vae
from xmodal_jax.models.vae.single_models import CORRUPTIONS, AutoencoderModel
from xmodal_jax.nets.decoders import Size
from xmodal_jax.preprocess.corruption import add_noise, mask_elements
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.probability.distributions import standard_noise

# -- What is minimised ---------------------------------------------------------------------------------------


def test_an_autoencoder_minimises_what_its_reconstruction_misses():
    vae, params, batch = started("ae")
    total, aux = loss_of(vae, params, batch)
    expected = nats_of(vae, params, vae.encode(params, batch), batch).mean()
    np.testing.assert_allclose([total, aux["reconstruction"]], [expected] * 2, rtol=1e-5)
    made = vae.reconstruct(params, batch)
    np.testing.assert_array_equal(made, vae.decode(params, vae.encode(params, batch)))
    np.testing.assert_array_equal(vae.encode(params, batch), vae.encode(params, batch, KEY))
    np.testing.assert_array_equal(vae.method.predict(params, batch)["latent"], vae.encode(params, batch))


@pytest.mark.parametrize("model, beta", [("vae", 1.0), ("beta_vae", 4.0), ("cvae", 1.0), ("iwae", None)])
def test_a_variational_one_minimises_its_bound(model, beta):
    vae, params, batch = started(model, **(dict(samples=1) if model == "iwae" else {}))
    total, aux = loss_of(vae, params, batch)
    z, mean, scale, noise = codes(vae, params, batch)
    rec = nats_of(vae, params, z, batch, batch if model == "cvae" else None)
    divergence = oracle.normal_kl(mean, scale).sum(axis=1)
    if model == "iwae":  # of the one sample
        divergence, beta = (0.5 * z**2 - 0.5 * noise**2 - np.log(scale)).sum(axis=1), 1.0
    np.testing.assert_allclose(aux["reconstruction"], rec.mean(), rtol=1e-5)
    np.testing.assert_allclose(aux["kl"], divergence.mean(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(total, (rec + beta * divergence).mean(), rtol=2e-5)


@pytest.mark.parametrize("kernel, beta", [("imq", None), ("rbf", 3.0)])
def test_wae_matches_codes_with_draws_of_the_prior(kernel, beta):
    vae, params, batch = started("wae_mmd", kernel=kernel, **({} if beta is None else dict(beta=beta)))
    total, aux = loss_of(vae, params, batch)
    z = np.float64(vae.encode(params, batch))
    wanted = np.float64(standard_noise(example_keys(KEY, batch["index"]), "prior", (D,)))
    apart = oracle.mmd(z, wanted, getattr(oracle, kernel))
    np.testing.assert_allclose(aux["mmd"], apart, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        total, nats_of(vae, params, z, batch).mean() + (beta or 10.0) * apart, rtol=1e-5
    )


@pytest.mark.parametrize("model", TWO_PLAYERS)
def test_two_players_minimise_theirs(model):
    vae, params, batch = started(model, beta=2.0)
    method, judge = vae.method, params["discriminator"]
    made, variables = method.generate(params["generator"], {}, batch, KEY)
    # A generation draws codes of its own name.
    keys = fold_in_name(example_keys(KEY, batch["index"]), "generate")
    z, mean, scale, noise = codes(vae, params, batch)
    drawn = mean + scale * np.float64(standard_noise(keys, "code", (1, D)))[0] if model == "jsd_vae" else mean
    np.testing.assert_allclose(made["latent"], drawn, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made["reconstruction"], nats_of(vae, params, drawn, batch), rtol=1e-5)

    def logits(name):
        prior = standard_noise(fold_in_name(example_keys(KEY, batch["index"]), name), "prior", (D,))
        return oracle.critic(judge, prior), oracle.critic(judge, made["latent"])

    real, fake = logits("discriminate")
    total, (aux, _) = method.d_loss(judge, variables, batch, made, KEY, jnp.int32(0))
    constant = 2 * np.log(2) if model == "jsd_vae" else 0.0
    expected = (oracle.softplus(-real) + oracle.softplus(fake)).mean() - constant
    np.testing.assert_allclose([total, aux["d_loss"]], [expected] * 2, rtol=1e-4)
    np.testing.assert_allclose([aux["d_prior"], aux["d_code"]], [real.mean(), fake.mean()], rtol=1e-4)

    real, fake = logits("persuade")
    total, aux = method.g_loss(made, judge, variables, batch, KEY)
    expected = oracle.softplus(-fake).mean()
    if model == "jsd_vae":
        expected = (2 * np.log(2) - oracle.softplus(-real) - oracle.softplus(fake)).mean()
    rec = np.float64(made["reconstruction"]).mean()
    np.testing.assert_allclose(aux["g_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(total, rec + 2.0 * expected, rtol=1e-5)
    alone, (aux, _) = method.pretrain_generator(params["generator"], variables, batch, KEY)
    np.testing.assert_allclose(aux["reconstruction"], alone)
    if model == "aae":
        np.testing.assert_allclose(alone, rec, rtol=1e-6)


def gradients(vae, params, batch, key=KEY):
    return jax.jit(jax.value_and_grad(vae.method.loss, has_aux=True))(params, batch, key)


def test_beta_vae_of_beta_1_is_vae():
    vae, params, batch = started("vae")
    other = started("beta_vae", beta=1.0)[0]
    assert_trees_identical(gradients(vae, params, batch), gradients(other, params, batch))


def test_a_weight_of_the_modality_weighs_its_reconstruction():
    vae, params, batch = started("vae")
    heavy = make("vae", **calm(weight=3.0))
    (total, aux), (again, more) = loss_of(vae, params, batch), loss_of(heavy, params, batch)
    np.testing.assert_allclose(again - total, 2 * aux["reconstruction"], rtol=1e-4)
    np.testing.assert_allclose(more["reconstruction"], 3 * aux["reconstruction"], rtol=1e-6)
    likely = lambda v: v.log_likelihood(params, batch, KEY, 2)
    np.testing.assert_allclose(likely(heavy), likely(vae), rtol=1e-6)


# -- Denoising -----------------------------------------------------------------------------------------------


def test_without_noise_dae_is_ae():
    vae, params, batch = started("ae")
    assert_trees_identical(
        gradients(vae, params, batch), gradients(make("dae", noise=0.0, **calm()), params, batch)
    )


@pytest.mark.parametrize("how", CORRUPTIONS)
def test_only_what_dae_sees_in_training_is_corrupted(how):
    vae, params, batch = started("ae")
    other = make("dae", corruption=how, noise=0.5, **calm())
    assert abs(loss_of(vae, params, batch)[0] - loss_of(other, params, batch)[0]) > 1e-4
    np.testing.assert_array_equal(vae.reconstruct(params, batch), other.reconstruct(params, batch))
    # With a decoder that is deaf only the target is left, and it is clean.
    deaf = with_constant_output(params, np.linspace(-2.0, 2.0, 64)[None])
    np.testing.assert_array_equal(loss_of(vae, deaf, batch)[0], loss_of(other, deaf, batch)[0])


def test_corruptions_are_as_said_and_of_each_example_its_own():
    keys = example_keys(KEY, jnp.arange(50))
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.0, (50, 8, 8, 1)), jnp.float32)
    noise = np.asarray(add_noise(x, keys, 0.3) - x)
    assert abs(noise.std() - 0.3) < 0.02 and abs(noise.mean()) < 0.02
    masked = np.asarray(mask_elements(x, keys, 0.3))
    np.testing.assert_array_equal(masked, np.where(masked == 0, 0, x))
    assert abs((masked == 0).mean() - 0.3) < 0.03
    assert len(np.unique(masked == 0, axis=0)) == 50
    rows = np.array([41, 7])
    np.testing.assert_array_equal(mask_elements(x[rows], keys[rows], 0.3), masked[rows])
    text = jnp.ones((50, 40), jnp.int32)
    found = np.asarray(mask_elements(text, keys, 0.3, COMMON["text"].mask_value))
    assert set(np.unique(found)) == {0, 1} and abs((found == 0).mean() - 0.3) < 0.05
    label = np.asarray(mask_elements(jnp.full(50, 2), keys, 0.5, COMMON["label"].mask_value))
    assert set(np.unique(label)) == {-1, 2}


# -- The schedule, free bits, augmentation -------------------------------------------------------------------


WARMUP = dict(warmup=4), {0: 0.25, 1: 0.5, 3: 1.0, 9: 1.0}
CYCLES = dict(cycle=8, ramp=0.5), {0: 0.25, 2: 0.75, 3: 1.0, 7: 1.0, 8: 0.25}


@pytest.mark.parametrize(
    "model, name, beta, how, weights",
    [("beta_vae", "kl", 4.0, *WARMUP), ("wae_mmd", "mmd", 10.0, *WARMUP), ("beta_vae", "kl", 4.0, *CYCLES)],
    ids=["beta_vae-warmup", "wae_mmd-warmup", "beta_vae-cycles"],
)
def test_the_divergence_is_weighted_by_the_schedule(model, name, beta, how, weights):
    _, params, batch = started(model)
    run = jax.jit(make(model, **how, **calm()).method.loss)
    for at, weight in [*weights.items(), (None, 1.0)]:
        now = batch if at is None else {**batch, "step": jnp.full(6, at, jnp.int32)}
        total, aux = run(params, now, KEY)
        np.testing.assert_allclose(total, aux["reconstruction"] + weight * beta * aux[name], rtol=1e-6)


def test_iwae_is_weighted_by_the_schedule():
    """At a weight of nearly 0 it is the bound of the likelihood alone."""
    _, params, batch = started("iwae")
    vae = make("iwae", warmup=10**6, **calm())
    found, _ = loss_of(vae, params, {**batch, "step": jnp.zeros(6, jnp.int32)})
    keys = example_keys(KEY, batch["index"])
    noise = np.float64(standard_noise(keys, "code", (5, D)))
    _, mean, scale, _ = codes(vae, params, batch)
    nats = np.stack([nats_of(vae, params, mean + scale * each, batch) for each in noise])
    np.testing.assert_allclose(
        found, -np.mean([oracle.importance_bound(list(-n)) for n in nats.T]), rtol=1e-5
    )


def test_free_bits_are_free():
    _, params, batch = started("vae")
    vae = make("vae", free_bits=100.0, **calm())
    (total, aux), grads = gradients(vae, params, batch)
    np.testing.assert_allclose(aux["kl"], 100.0 * D, rtol=1e-6)
    np.testing.assert_allclose(total, aux["reconstruction"] + 100.0 * D, rtol=1e-6)
    _, of_rec = gradients(make("beta_vae", beta=0.0, **calm()), params, batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), grads, of_rec)


def test_augmented_images_are_input_and_target():
    vae, params, batch = started("ae")
    moving = make("ae", **calm(augment=AugmentConfig(translate=0, flip=1.0)))
    flipped = {**batch, "image": batch["image"][:, :, ::-1]}
    np.testing.assert_allclose(loss_of(moving, params, batch)[0], loss_of(vae, params, flipped)[0], rtol=1e-6)
    np.testing.assert_array_equal(moving.reconstruct(params, batch), vae.reconstruct(params, batch))


# -- Generation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["vae", "aae", "cvae"])
def test_samples_are_decoded_draws_of_the_prior(model):
    changes = dict(learn_prior=True) if model == "cvae" else {}
    vae, params, _ = started(model, **changes)
    labels = jnp.array([0, 1, 2, 3, 0]) if model == "cvae" else None
    made = vae.sample(params, KEY, 5, labels)
    z = np.float64(standard_noise(example_keys(KEY, jnp.arange(5)), "prior", (D,)))
    if model == "cvae":
        p = jax.tree.map(np.float64, params["heads"]["prior"])
        hidden = np.maximum(p["hidden"]["kernel"][np.asarray(labels)] + p["hidden"]["bias"], 0)
        mean, raw = (hidden @ p[name]["kernel"] + p[name]["bias"] for name in ("mean", "raw"))
        z = mean + np.exp(raw / 2) * z
        assert np.abs(mean).max() > 0.05
    np.testing.assert_allclose(
        made, vae.decode(params, jnp.asarray(z, jnp.float32), labels), rtol=1e-4, atol=1e-5
    )
    assert made.shape == (5, 8, 8, 1) and made.min() >= 0 and made.max() <= 1


def test_cvae_makes_what_the_label_says():
    vae, params, batch = started("cvae")
    z = jnp.zeros((6, D))
    by_batch = vae.decode(params, z, batch)
    np.testing.assert_array_equal(by_batch, vae.decode(params, z, batch["label"]))
    same = np.asarray(batch["label"])[:, None] == np.asarray(batch["label"])[None]
    made = np.asarray(by_batch).reshape(6, -1)
    np.testing.assert_array_equal(np.isclose(made[:, None], made[None]).all(axis=-1), same)
    other = {**batch, "label": (batch["label"] + 1) % CLASSES}
    assert not np.allclose(vae.encode(params, batch), vae.encode(params, other))


# -- Errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model="vqvae"), "must be one of ae, dae, .*, got 'vqvae'"),
        (dict(model="vae", beta=2.0), "unexpected keyword argument 'beta'"),
        (dict(model="ae", warmup=3), "unexpected keyword argument 'warmup'"),
        (dict(model="iwae", free_bits=0.1), "unexpected keyword argument 'free_bits'"),
        (dict(model="vae", estimator="dreg"), "unexpected keyword argument 'estimator'"),
        (dict(model="vae", learn_prior=True), "unexpected keyword argument 'learn_prior'"),
        (dict(model="iwae", estimator="stl"), "estimator must be one of"),
        (dict(model="wae_mmd", kernel="linear"), "kernel must be one of"),
        (dict(model="dae", corruption="salt"), "corruption must be one of"),
        (dict(model="dae", corruption="masking", noise=1.0), "must be below 1"),
        (dict(model="dae", noise=-0.1), "noise must be at least 0"),
        (dict(model="vae", samples=0), "samples must be at least 1"),
        (dict(model="vae", posterior_scale="square"), "posterior_scale must be one of"),
        (dict(model="vae", cycle=4, ramp=0.0), "ramp must lie in"),
        (dict(model="vae", latent=0), "latent must be at least 1"),
    ],
)
def test_configurations_that_say_nothing_are_refused(changes, message):
    options = dict(changes)
    with pytest.raises((ValueError, TypeError), match=message):
        parts.choose(AutoencoderModel, options.pop("model"))(**options)


@pytest.mark.parametrize(
    "model, modality, size, changes, message",
    [
        ("vae", "video", Size((2, 8, 8, 1)), {}, "takes image, text, audio, vector, series, label"),
        ("vae", "text", Size((5,)), {}, "size.values must say"),
        ("cvae", "label", Size((), 4), {}, "needs another modality"),
        ("dae", "text", Size((5,), 11), {}, "set corruption to 'masking'"),
    ],
)
def test_what_does_not_fit_is_refused(model, modality, size, changes, message):
    config = config_of(model, **changes)
    with pytest.raises(ValueError, match=message):
        make_vae(config, modality, size, classes=4)


def test_a_likelihood_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="image.likelihood must be"):
        dataclasses.replace(COMMON["image"], likelihood="categorical")


def test_cvae_needs_labels():
    config = config_of("cvae")
    with pytest.raises(ValueError, match="classes of 2 at least, got image and 0"):
        make_vae(config, "image", Size((8, 8, 1)))
    vae, params, _ = started("cvae")
    with pytest.raises(ValueError, match="a conditional VAE needs `labels`, one per latent"):
        vae.sample(params, KEY, 3)
    with pytest.raises(ValueError, match="one label for each of 3 samples, got 2"):
        vae.sample(params, KEY, 3, jnp.array([0, 1]))
