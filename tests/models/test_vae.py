import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import vae as oracle
from tests.support import assert_device_invariant, assert_resumes, assert_trees_identical, loss_and_gradient
from xmodal_jax.core.random import example_keys, fold_in_name
from xmodal_jax.models.multimodal_network import ModalityConfig
from xmodal_jax.models.vae import CORRUPTIONS, MODELS, VAEConfig, corrupt, make_vae, size_of
from xmodal_jax.nets.decoders import DecoderConfig, Size
from xmodal_jax.nets.encoders import EncoderConfig
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.probability.distributions import standard_noise
from xmodal_jax.train import players, step
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.players import Players
from xmodal_jax.types import GAN

D, CLASSES, WORDS = 3, 4, 11
TOKENS = EncoderConfig("transformer", width=8, depth=1, heads=2, downsample=2)
MLP = DecoderConfig("mlp", width=8, depth=1)
CONFIG = VAEConfig(
    latent=D,
    hidden=8,
    image=ModalityConfig(EncoderConfig("mlp", width=8, depth=1, dropout=0.1), MLP, "bernoulli"),
    text=ModalityConfig(TOKENS, DecoderConfig("parallel", width=8, depth=1, heads=2), "categorical"),
    audio=ModalityConfig(TOKENS, DecoderConfig("conv", width=8), "laplace", scale=0.75),
    label=ModalityConfig(None, MLP, "categorical"),
)
TWO_PLAYERS = [name for name, member in MODELS.items() if member.opponent]
ONE_PLAYER = [name for name in MODELS if name not in TWO_PLAYERS]
ADAM = Optimizer(name="adam", learning_rate=1e-2, clip_norm=None, warmup=0.0, schedule="constant")
PLAYERS = Players(
    discriminator=dataclasses.replace(ADAM, b1=0.5), generator=dataclasses.replace(ADAM, ema=0.9)
)
KEY = jax.random.key(11)


def make_batch(n=16, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(1, WORDS, (n, 5)).astype(np.int32)
    text[:, 3:] *= rng.random((n, 1)) < 0.5
    return {
        "image": rng.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8),
        "text": text,
        "text_mask": text > 0,
        "audio": rng.normal(-5.0, 4.0, (n, 6, 5)).astype(np.float32),
        "audio_mask": np.arange(6)[None] < rng.integers(3, 7, (n, 1)),
        "label": rng.integers(0, CLASSES, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def only(batch, *names):
    """The fields of some modalities."""
    return {k: v for k, v in batch.items() if k in names or k == "index" or k.removesuffix("_mask") in names}


def make(model, modality="image", batch=None, **changes):
    config = dataclasses.replace(CONFIG, model=model, **changes)
    size = size_of(
        make_batch(1) if batch is None else batch, modality, config, vocab_size=WORDS, classes=CLASSES
    )
    vae = make_vae(config, modality, size, classes=CLASSES)
    return vae._replace(
        encode=jax.jit(vae.encode),
        decode=jax.jit(vae.decode),
        reconstruct=jax.jit(vae.reconstruct),
        sample=jax.jit(vae.sample, static_argnums=2),
        log_likelihood=jax.jit(vae.log_likelihood, static_argnums=3),
    )


def calm(kind="image", **changes):
    """Without dropout: what training computes is what `encode` and `decode` do."""
    own = getattr(CONFIG, kind)
    return {kind: dataclasses.replace(own, encoder=dataclasses.replace(own.encoder, dropout=0.0), **changes)}


@functools.cache
def started(model, **changes):
    """The model without dropout, its parameters as `encode` takes them, and as many as any model needs of a batch."""
    vae, batch = make(model, **calm(), **changes), on_device(make_batch(6))
    params = begin(vae, batch)
    return vae, params[0] if isinstance(vae.method, GAN) else params, batch


def begin(vae, batch):
    return jax.jit(vae.method.init)(jax.random.key(1), batch)


def loss_of(vae, params, batch, key=KEY):
    return jax.jit(vae.method.loss)(params, batch, key)


def codes(vae, params, batch):
    """Code, posterior's mean and scale, and the noise, in float64, as a step with ``KEY`` draws them."""
    noise = np.float64(standard_noise(example_keys(KEY, batch["index"]), "code", (1, D)))[0]
    z, mean = np.float64(vae.encode(params, batch, KEY)), np.float64(vae.encode(params, batch))
    return z, mean, (z - mean) / noise, noise


def nats_of(vae, params, z, batch, labels=None):
    made = np.float64(vae.decode(params, jnp.asarray(z, jnp.float32), labels))
    return oracle.bernoulli_nats(np.float64(batch["image"]) / 255.0, made)


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
    vae, params, batch = started("wae_mmd", kernel=kernel, beta=beta)
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
    made, memory = method.generate(params["generator"], {}, batch, KEY)
    # A generation draws codes of its own name.
    keys = fold_in_name(example_keys(KEY, batch["index"]), "generate")
    z, mean, scale, noise = codes(vae, params, batch)
    drawn = mean + scale * np.float64(standard_noise(keys, "code", (1, D)))[0] if model == "jsd_vae" else mean
    np.testing.assert_allclose(made["code"], drawn, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made["reconstruction"], nats_of(vae, params, drawn, batch), rtol=1e-5)

    def logits(name):
        prior = standard_noise(fold_in_name(example_keys(KEY, batch["index"]), name), "prior", (D,))
        return oracle.critic(judge, prior), oracle.critic(judge, made["code"])

    real, fake = logits("discriminate")
    total, (aux, _) = method.d_loss(judge, memory, batch, made, KEY, jnp.int32(0))
    constant = 2 * np.log(2) if model == "jsd_vae" else 0.0
    expected = (oracle.softplus(-real) + oracle.softplus(fake)).mean() - constant
    np.testing.assert_allclose([total, aux["d_loss"]], [expected] * 2, rtol=1e-4)
    np.testing.assert_allclose([aux["d_prior"], aux["d_code"]], [real.mean(), fake.mean()], rtol=1e-4)

    real, fake = logits("persuade")
    total, aux = method.g_loss(made, judge, memory, batch, KEY)
    expected = oracle.softplus(-fake).mean()
    if model == "jsd_vae":
        expected = (2 * np.log(2) - oracle.softplus(-real) - oracle.softplus(fake)).mean()
    rec = np.float64(made["reconstruction"]).mean()
    np.testing.assert_allclose(aux["g_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(total, rec + 2.0 * expected, rtol=1e-5)
    alone, (aux, _) = method.rehearse(params["generator"], memory, batch, KEY)
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


def with_constant_output(params, value):
    """A decoder whose last layer says ``value``, whatever it is told."""
    (name,) = [name for name in params["network"] if name.startswith("decoders")]
    (module,) = params["network"][name].values()
    last = "out" if "out" in module else max(module)
    zeros = jax.tree.map(jnp.zeros_like, module[last])
    flat = zeros.get("bias", zeros)
    said = {**zeros, "bias": jnp.broadcast_to(jnp.asarray(value, jnp.float32), flat.shape)}
    inner = {**params["network"][name], **{k: {**module, last: said} for k in params["network"][name]}}
    return {**params, "network": {**params["network"], name: inner}}


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
    noise = np.asarray(corrupt("image", x, keys, how="gaussian", amount=0.3) - x)
    assert abs(noise.std() - 0.3) < 0.02 and abs(noise.mean()) < 0.02
    masked = np.asarray(corrupt("image", x, keys, how="masking", amount=0.3))
    np.testing.assert_array_equal(masked, np.where(masked == 0, 0, x))
    assert abs((masked == 0).mean() - 0.3) < 0.03
    assert len(np.unique(masked == 0, axis=0)) == 50
    rows = np.array([41, 7])
    np.testing.assert_array_equal(
        corrupt("image", x[rows], keys[rows], how="masking", amount=0.3), masked[rows]
    )
    text = jnp.ones((50, 40), jnp.int32)
    found = np.asarray(corrupt("text", text, keys, how="masking", amount=0.3))
    assert set(np.unique(found)) == {0, 1} and abs((found == 0).mean() - 0.3) < 0.05
    label = np.asarray(corrupt("label", jnp.full(50, 2), keys, how="masking", amount=0.5))
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
    moving = make("ae", augment=AugmentConfig(translate=0, flip=1.0), **calm())
    flipped = {**batch, "image": batch["image"][:, :, ::-1]}
    np.testing.assert_allclose(loss_of(moving, params, batch)[0], loss_of(vae, params, flipped)[0], rtol=1e-6)
    np.testing.assert_array_equal(moving.reconstruct(params, batch), vae.reconstruct(params, batch))


# -- Who is missing ------------------------------------------------------------------------------------------


def present_and_rest(model):
    """A batch of which some lack something (with garbage in its place), and the others alone."""
    batch, there = make_batch(6), np.array([True, False, True, True, False, True])
    rest = jax.tree.map(lambda x: x[there], batch)
    garbage = np.random.default_rng(8).integers(0, 256, batch["image"].shape).astype(np.uint8)
    batch["image"] = np.where(there[:, None, None, None], batch["image"], garbage)
    present = {"image": there, "label": np.ones(6, bool)}
    if model == "cvae":  # one without its image, the other without its label
        present = {"image": np.arange(6) != 1, "label": np.ones(6, bool)}
        batch["label"][4] = -1
    return {**batch, "present": present}, rest


@pytest.mark.parametrize(
    "model, changes",
    [
        pytest.param("vae", dict(free_bits=0.05), marks=pytest.mark.slow),
        ("cvae", dict(learn_prior=True)),
        ("jsd_vae", {}),
        pytest.param("iwae", dict(estimator="dreg"), marks=pytest.mark.slow),
        *[pytest.param(name, {}, marks=pytest.mark.slow) for name in MODELS if name != "jsd_vae"],
    ],
    ids=lambda x: x if isinstance(x, str) else "_".join(x),
)
def test_who_is_missing_has_no_influence(model, changes):
    """Values and all gradients are those of the others alone, with the same keys (and dropout)."""
    vae = make(model, **changes)
    batch, rest = present_and_rest(model)
    (metrics, grads), (expected, of_rest) = (
        loss_and_gradient(vae.method, b, config=PLAYERS if model in TWO_PLAYERS else ADAM)
        for b in (batch, rest)
    )
    assert set(metrics) == set(expected) and max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-3
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), grads, of_rest)


def test_cvae_takes_a_missing_label_for_a_missing_example():
    vae, params, _ = started("cvae")
    batch, rest = present_and_rest("cvae")
    by_flag = {**batch, "label": make_batch(6)["label"]}
    by_flag["present"] = {**batch["present"], "label": np.arange(6) != 4}
    expected = loss_of(vae, params, on_device(rest))[0]
    for each in (batch, by_flag):
        np.testing.assert_allclose(loss_of(vae, params, on_device(each))[0], expected, rtol=1e-5)
    likely = vae.log_likelihood(params, on_device(batch), KEY, 3)
    np.testing.assert_array_equal(np.asarray(likely) == 0, [False, True, False, False, True, False])


def test_a_label_that_is_missing_is_not_learned():
    vae, batch = make("vae", "label"), on_device(only(make_batch(6), "label"))
    params = begin(vae, batch)
    some = {**batch, "label": batch["label"].at[jnp.array([1, 4])].set(-1)}
    rest = jax.tree.map(lambda x: x[np.array([0, 2, 3, 5])], batch)
    np.testing.assert_allclose(loss_of(vae, params, some)[0], loss_of(vae, params, rest)[0], rtol=1e-6)


# -- Kinds of data -------------------------------------------------------------------------------------------


def log_softmax(x):
    return x - np.log(np.exp(x).sum())


def expected_nats(kind, batch, said):
    """[B] of a decoder that says the same of everything."""
    if kind == "label":
        return -log_softmax(said)[batch["label"]]
    if kind == "text":
        return -np.where(batch["text_mask"], log_softmax(said)[batch["text"]], 0.0).sum(axis=1)
    frames = np.where(batch["audio_mask"][:, :, None], np.float64(batch["audio"]), np.log(1e-5))
    gap = np.abs((frames + 5.0) / 4.0 - said)
    return (gap / 0.75 + np.log(2 * 0.75)).sum(axis=(1, 2))


@pytest.mark.parametrize("kind, values", [("label", CLASSES), ("text", WORDS), ("audio", 5)])
def test_of_every_kind_the_likelihood_is_that_of_what_is_said(kind, values):
    vae, batch = make("ae", kind), make_batch(6)
    own = on_device(only(batch, kind))
    params = begin(vae, own)
    said = np.random.default_rng(5).normal(size=values)
    deaf = with_constant_output(params, said)
    np.testing.assert_allclose(loss_of(vae, deaf, own)[0], expected_nats(kind, batch, said).mean(), rtol=1e-5)
    made = np.asarray(vae.reconstruct(deaf, own))
    shape = {"label": (6,), "text": (6, 5), "audio": (6, 6, 5)}[kind]
    expected = said[None, None] if kind == "audio" else said.argmax()
    np.testing.assert_allclose(made, np.broadcast_to(expected, shape), rtol=1e-6)
    # And what is said depends on the data where the decoder listens.
    swapped = jax.tree.map(lambda x: x[::-1], own)
    assert not np.allclose(vae.encode(params, own), vae.encode(params, swapped))


@pytest.mark.parametrize("decoder", [pytest.param("parallel", marks=pytest.mark.slow), "autoregressive"])
def test_texts_are_drawn_from_a_key(decoder):
    text = dataclasses.replace(CONFIG.text, decoder=dataclasses.replace(CONFIG.text.decoder, name=decoder))
    vae, batch = make("vae", "text", text=text), on_device(only(make_batch(6), "text"))
    params = begin(vae, batch)
    a, b, c = (vae.sample(params, key, 20) for key in (KEY, KEY, jax.random.key(0)))
    assert a.shape == (20, 5) and a.dtype == jnp.int32 and a.min() >= 0 and a.max() < WORDS
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    likeliest = np.asarray(vae.reconstruct(params, batch))
    np.testing.assert_array_equal(likeliest, vae.reconstruct(params, batch))
    assert (vae.decode(params, vae.encode(params, batch), None, KEY) != likeliest).any()
    total, aux = loss_of(vae, params, batch)
    assert np.isfinite(total) and aux["reconstruction"] > 0


@pytest.mark.slow
def test_waveforms_are_taken_as_their_frames():
    batch = only(make_batch(2), "index")
    batch |= {"audio": np.random.default_rng(0).integers(-9999, 9999, (2, 4000)).astype(np.int16)}
    batch |= {"audio_mask": np.ones((2, 4000), bool)}
    vae = make("vae", "audio", batch)
    size = size_of(batch, "audio", CONFIG)
    assert size.shape[1] == 40

    @jax.jit
    def run(batch):
        params = vae.method.init(KEY, batch)
        return vae.reconstruct(params, batch), vae.method.loss(params, batch, KEY)[0]

    made, total = run(on_device(batch))
    assert made.shape == (2, *size.shape) and np.isfinite(total)


# -- Likelihoods ---------------------------------------------------------------------------------------------

W = np.random.default_rng(1).normal(size=(6, 2))
OFFSET = np.random.default_rng(2).normal(size=6)
X = np.random.default_rng(3).normal(size=6)


@functools.cache
def of_frames():
    audio = ModalityConfig(TOKENS, MLP, "normal", scale=0.8, weight=7.0)
    batch = {"audio": np.float32(X.reshape(1, 2, 3)), "audio_mask": np.ones((1, 2), bool)}
    batch = on_device({**batch, "index": np.arange(1, dtype=np.int32)})
    vae = make("iwae", "audio", batch, latent=2, audio=audio, mel_mean=0.0, mel_scale=1.0)
    return vae, begin(vae, batch), batch


def linear_gaussian(w, q_mean, q_scale):
    """``z ~ N(0, 1), x ~ N(w z + b, 0.8^2)`` with frames for x, and ``q = N(q_mean, q_scale^2)``, written into the
    parameters of a model: a hidden layer with ReLU is linear where its bias is large."""
    vae, params, batch = of_frames()
    params = jax.tree.map(np.array, params)
    decoder = params["network"]["decoders_audio_2_3"]["MLPDecoder_0"]
    decoder["hidden_0"]["kernel"][0] = np.eye(2, 8)
    decoder["hidden_0"]["bias"][0] = 20.0 * (np.arange(8) < 2)
    decoder["out"]["kernel"][0] = np.concatenate([w.T, np.zeros((6, 6))])
    decoder["out"]["bias"][0] = OFFSET - 20.0 * w.sum(axis=1)
    head = params["heads"]["posterior"]
    for name, value in (("mean", q_mean), ("raw", 2 * np.log(q_scale))):
        head[name]["kernel"][:], head[name]["bias"][:] = 0.0, value
    return vae, on_device(params), batch


def test_at_the_true_posterior_one_sample_is_the_likelihood():
    """Of columns that are orthogonal: every weight is then p(x)."""
    w = np.linalg.qr(W)[0] * np.array([[1.5, 0.7]])
    mean, cov = oracle.linear_posterior(X, w, OFFSET, 0.8)
    assert abs(cov[0, 1]) < 1e-12
    vae, params, batch = linear_gaussian(w, mean, np.sqrt(np.diag(cov)))
    evidence = oracle.linear_evidence(X, w, OFFSET, 0.8)
    for key in (0, 1, 2):
        found = vae.log_likelihood(params, batch, jax.random.key(key), 1)
        np.testing.assert_allclose(found, [evidence], atol=2e-4)


def test_the_estimate_converges_to_the_likelihood():
    mean, cov = oracle.linear_posterior(X, W, OFFSET, 0.8)
    scale = np.full(2, 1.5 * np.sqrt(np.linalg.eigvalsh(cov).max()))
    vae, params, batch = linear_gaussian(W, mean + 0.1, scale)
    evidence = oracle.linear_evidence(X, W, OFFSET, 0.8)
    errors = {
        k: np.abs(
            [vae.log_likelihood(params, batch, jax.random.key(seed), k)[0] - evidence for seed in range(8)]
        ).mean()
        for k in (1, 50, 5000)
    }
    assert errors[5000] < 0.03 < 10 * errors[50] < 30 * errors[1], errors


@pytest.mark.parametrize("model", [name for name, member in MODELS.items() if not member.density])
def test_without_a_density_there_is_no_likelihood(model):
    with pytest.raises(ValueError, match="no density of codes.*vae, beta_vae, cvae, iwae"):
        make(model).log_likelihood({}, make_batch(2), KEY, 2)


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
        (dict(model="vqvae"), "model must be one of ae, dae"),
        (dict(model="vae", beta=2.0), "vae has no beta"),
        (dict(model="ae", warmup=3), "ae has no warmup: leave it as it is .its options: none"),
        (dict(model="iwae", free_bits=0.1), "iwae has no free_bits"),
        (dict(model="vae", estimator="dreg"), "vae has no estimator"),
        (dict(model="vae", learn_prior=True), "vae has no learn_prior"),
        (dict(model="iwae", estimator="stl"), "estimator must be one of"),
        (dict(model="wae_mmd", kernel="linear"), "kernel must be one of"),
        (dict(model="dae", corruption="salt"), "corruption must be one of"),
        (dict(model="dae", corruption="masking", noise=1.0), "must be below 1"),
        (dict(model="dae", noise=-0.1), "noise must not be negative"),
        (dict(model="vae", samples=0), "samples must be at least 1"),
        (dict(model="vae", scale="square"), "scale must be one of"),
        (dict(model="vae", cycle=4, ramp=0.0), "ramp must lie in"),
        (dict(latent=0), "latent must be at least 1"),
    ],
)
def test_configurations_that_say_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig(**changes)


@pytest.mark.parametrize(
    "model, modality, size, changes, message",
    [
        ("vae", "video", Size((2, 8, 8, 1)), {}, "takes image, text, audio, label"),
        ("vae", "text", Size((5,)), {}, "size.values must say"),
        ("cvae", "label", Size((), 4), {}, "needs another modality"),
        ("dae", "text", Size((5,), 11), {}, "set corruption to 'masking'"),
        ("vae", "image", Size((8, 8, 1)), dict(image=CONFIG.text), "image.likelihood must be"),
    ],
)
def test_what_does_not_fit_is_refused(model, modality, size, changes, message):
    config = dataclasses.replace(CONFIG, model=model, **changes)
    with pytest.raises(ValueError, match=message):
        make_vae(config, modality, size, classes=4)


def test_cvae_needs_labels():
    config = dataclasses.replace(CONFIG, model="cvae")
    with pytest.raises(ValueError, match="classes of 2 at least, got image and 0"):
        make_vae(config, "image", Size((8, 8, 1)))
    vae, params, _ = started("cvae")
    with pytest.raises(ValueError, match="give labels"):
        vae.sample(params, KEY, 3)
    with pytest.raises(ValueError, match="one label for each of 3 samples, got 2"):
        vae.sample(params, KEY, 3, jnp.array([0, 1]))


# -- Devices, resuming, learning -----------------------------------------------------------------------------

WHOLE = {"vae": dict(free_bits=0.05, warmup=5), "aae": dict(critic_steps=2), "cvae": dict(learn_prior=True)}


def slow_but(*quick):
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in MODELS]


def optimizer_of(model):
    return PLAYERS if model in TWO_PLAYERS else ADAM


@pytest.mark.parametrize("model", slow_but("wae_mmd"))
def test_the_devices_do_not_change_the_result(model):
    batch = {**only(make_batch(), "image", "label"), "present": {"image": np.arange(16) % 7 != 3}}
    changes = WHOLE.get(model, {})
    if (
        model == "iwae"
    ):  # fewer nats: the rounding of hundreds of them shows in the weights, their exponentials
        changes = {"image": dataclasses.replace(CONFIG.image, weight=0.05)}
    vae = make(model, augment=AugmentConfig(), **changes)
    assert_device_invariant(
        vae.method, batch, layouts=[("pmap", 4, 1), ("sharded", 4, 2)], config=optimizer_of(model)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "audio", "label"])
def test_the_devices_do_not_change_the_result_of_other_kinds(kind):
    vae = make("iwae", kind, estimator="dreg", samples=3)
    assert_device_invariant(
        vae.method, only(make_batch(), kind), layouts=[("pmap", 4, 1), ("sharded", 4, 2)], config=ADAM
    )


@pytest.mark.parametrize("model", slow_but("jsd_vae"))
def test_a_stopped_run_ends_bit_identical(model, tmp_path):
    arrays = {k: v for k, v in make_batch().items() if k in ("image", "label")}
    vae = make(model, **WHOLE.get(model, {}))
    assert_resumes(vae.method, arrays, tmp_path, optimizer=optimizer_of(model))


def quarters(n, seed):
    """Images of which one quarter is bright, the label says which, more or less so; some noise."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n).astype(np.int32)
    place = np.arange(8)[:, None] // 4 * 2 + np.arange(8)[None] // 4
    bright = (place[None] == label[:, None, None]) * rng.uniform(80, 200, (n, 1, 1))
    image = np.clip(40 + bright + rng.normal(0, 6, (n, 8, 8)), 0, 255).astype(np.uint8)
    return {"image": image[..., None], "label": label, "index": np.arange(n, dtype=np.int32)}


def learn(model, steps=300, offset=3.0, **changes):
    """A model and what it has learned of quarters, in one program. The codes of models that have an aggregate posterior
    start at a mean that is ``offset``."""
    encoder = EncoderConfig("mlp", width=32, depth=1)
    image = ModalityConfig(encoder, dataclasses.replace(MLP, width=32), "normal", scale=0.1)
    vae = make(model, latent=2, hidden=32, image=image, **changes)
    adam = dataclasses.replace(ADAM, learning_rate=3e-3)
    two = model in TWO_PLAYERS
    optimizer = Players(discriminator=dataclasses.replace(adam, b1=0.5), generator=adam) if two else adam
    training = (players if two else step).make_training(vae.method, optimizer, steps)
    data = on_device(quarters(1280, 0))

    def run():
        state = training.init(jax.random.key(3), jax.tree.map(lambda x: x[:64], data))
        if model in MATCHED:
            heads = (state.params["generator"] if two else state.params)["heads"]
            name = "point" if "point" in heads else "posterior"
            head = heads[name].get("mean", heads[name])
            head["bias"] = head["bias"] + offset
        parts = jax.tree.map(lambda x: x.reshape(20, 64, *x.shape[1:]), data)
        one = training.make_step(None)
        body = lambda state, i: one(state, jax.tree.map(lambda x: x[i % 20], parts))
        return jax.lax.scan(body, state, jnp.arange(steps))

    state, metrics = jax.jit(run)()
    assert np.all(metrics["finite"])
    return vae, training.evaluated(state)


MATCHED = {"wae_mmd": 30.0, "jsd_vae": 100.0, "aae": 30.0}  # with weights that show within so few steps
UNSEEN = quarters(256, 1)
PIXELS = np.float64(UNSEEN["image"]) / 255.0


@pytest.mark.parametrize("model", slow_but("cvae", "aae"))
def test_it_learns(model):
    # In cvae a strong divergence leaves to the label what the label says.
    strong = MATCHED | {"cvae": 4.0}
    vae, params = learn(model, beta=strong.get(model))
    batch = on_device(UNSEEN)
    error = np.square(np.asarray(vae.reconstruct(params, batch)) - PIXELS).mean()
    assert error < 0.1 * PIXELS.var(axis=0).mean()  # what the mean image misses is 1
    if MODELS[model].density:
        # The best that normal densities of each pixel alone reach, were they told the test images.
        one_by_one = -0.5 * np.log(2 * np.pi * np.e * PIXELS.var(axis=0)).sum()
        likely = vae.log_likelihood(params, batch, KEY, 16)
        assert likely.mean() > one_by_one + 40, (likely.mean(), one_by_one)
    if model == "cvae":
        made = np.asarray(vae.sample(params, KEY, 100, jnp.arange(100) % CLASSES))
        sums = made.reshape(100, 2, 4, 2, 4).sum(axis=(2, 4)).reshape(100, 4)
        assert np.mean(sums.argmax(axis=1) == np.arange(100) % CLASSES) > 0.7  # by chance: 0.25
    if model in MATCHED:
        assert from_prior(vae, params) < 0.35


def from_prior(vae, params):
    """How far the codes of images are from the prior, in MMD^2."""
    z = np.float64(vae.encode(params, on_device(UNSEEN), KEY))[:100]
    return oracle.mmd(z, np.random.default_rng(0).normal(size=(100, 2)), oracle.imq)


@pytest.mark.slow
@pytest.mark.parametrize("model", MATCHED)
def test_codes_stay_away_from_the_prior_if_nothing_matches_them(model):
    """What the test above measures is the match's doing."""
    assert from_prior(*learn(model, beta=0.0)) > 0.5
