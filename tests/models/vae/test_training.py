import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.vae.vaes import (
    ADAM,
    CLASSES,
    COMMON,
    FRAMES,
    KEY,
    MLP,
    MODELS,
    PLAYERS,
    TWO_PLAYERS,
    WORDS,
    begin,
    config_of,
    loss_of,
    make,
    make_batch,
    on_device,
    only,
    optimizer_of,
    slow_but,
    started,
    with_constant_output,
)
from tests.oracles import vae as oracle
from tests.support import assert_device_invariant, assert_resumes, loss_and_gradient
from xmodal_jax.models.vae.modalities import AudioConfig, ImageConfig, sizes_of
from xmodal_jax.nets.decoders import AutoregressiveDecoderConfig, ParallelDecoderConfig
from xmodal_jax.nets.encoders import MLPEncoderConfig
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.train import gan_step as players
from xmodal_jax.train import step
from xmodal_jax.train.gan_step import GANOptimizer

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
    params, config = begin(vae, on_device(batch)), ADAM
    if model in TWO_PLAYERS:
        params, config = params[0], PLAYERS
    (metrics, grads), (expected, of_rest) = (
        loss_and_gradient(vae.method, b, config=config, params=params) for b in (batch, rest)
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


@pytest.mark.parametrize(
    "decoder",
    [pytest.param(ParallelDecoderConfig, marks=pytest.mark.slow), AutoregressiveDecoderConfig],
    ids=["parallel", "autoregressive"],
)
def test_texts_are_drawn_from_a_key(decoder):
    text = dataclasses.replace(COMMON["text"], decoder=decoder(width=8, depth=1, heads=2))
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
    size = sizes_of(batch, ("audio",), config_of("vae"))["audio"]
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
    audio = AudioConfig(FRAMES, MLP, "normal", scale=0.8, weight=7.0, mel_mean=0.0, mel_scale=1.0)
    batch = {"audio": np.float32(X.reshape(1, 2, 3)), "audio_mask": np.ones((1, 2), bool)}
    batch = on_device({**batch, "index": np.arange(1, dtype=np.int32)})
    vae = make("iwae", "audio", batch, latent=2, audio=audio)
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


@pytest.mark.parametrize("model", [name for name, model in MODELS.items() if not model.has_likelihood])
def test_without_a_density_there_is_no_likelihood(model):
    with pytest.raises(ValueError, match="no posterior density.*vae, beta_vae, cvae, iwae"):
        make(model).log_likelihood({}, make_batch(2), KEY, 2)


# -- Devices, resuming, learning -----------------------------------------------------------------------------

WHOLE = {"vae": dict(free_bits=0.05, warmup=5), "aae": dict(critic_steps=2), "cvae": dict(learn_prior=True)}


@pytest.mark.parametrize("model", slow_but("wae_mmd"))
def test_the_devices_do_not_change_the_result(model):
    batch = {**only(make_batch(), "image", "label"), "present": {"image": np.arange(16) % 7 != 3}}
    image = dataclasses.replace(COMMON["image"], augment=AugmentConfig())
    if (
        model == "iwae"
    ):  # fewer nats: the rounding of hundreds of them shows in the weights, their exponentials
        image = dataclasses.replace(image, weight=0.05)
    vae = make(model, image=image, **WHOLE.get(model, {}))
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
    encoder = MLPEncoderConfig(width=32, depth=1)
    image = ImageConfig(encoder, dataclasses.replace(MLP, width=32), "normal", scale=0.1)
    vae = make(model, latent=2, hidden=32, image=image, **changes)
    adam = dataclasses.replace(ADAM, learning_rate=3e-3)
    two = model in TWO_PLAYERS
    optimizer = GANOptimizer(discriminator=dataclasses.replace(adam, b1=0.5), generator=adam) if two else adam
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
    return vae, training.eval_params(state)


MATCHED = {"wae_mmd": 30.0, "jsd_vae": 100.0, "aae": 30.0}  # with weights that show within so few steps
UNSEEN = quarters(256, 1)
PIXELS = np.float64(UNSEEN["image"]) / 255.0


@pytest.mark.parametrize("model", slow_but("cvae", "aae"))
def test_it_learns(model):
    # In cvae a strong divergence leaves to the label what the label says.
    strong = MATCHED | {"cvae": 4.0}
    vae, params = learn(model, **({"beta": strong[model]} if model in strong else {}))
    batch = on_device(UNSEEN)
    error = np.square(np.asarray(vae.reconstruct(params, batch)) - PIXELS).mean()
    assert error < 0.1 * PIXELS.var(axis=0).mean()  # what the mean image misses is 1
    if MODELS[model].has_likelihood:
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
