"""An autoencoder under the names of a multimodal VAE says what it says under its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import random_params
from xmodal_jax.core import parts
from xmodal_jax.models.vae.adapter import as_multimodal
from xmodal_jax.models.vae.modalities import ImageConfig, TextConfig, sizes_of
from xmodal_jax.models.vae.single import make_vae
from xmodal_jax.models.vae.single_models import AutoencoderModel
from xmodal_jax.nets.decoders import MLPDecoderConfig, ParallelDecoderConfig
from xmodal_jax.nets.encoders import MLPEncoderConfig, TextTransformerConfig

D, CLASSES, N, WORDS = 3, 5, 7, 9
KEY = jax.random.key(3)
MLP = MLPDecoderConfig(width=8, depth=1)
TOKENS = TextTransformerConfig(width=8, depth=1, heads=2)
KINDS = dict(
    image=ImageConfig(MLPEncoderConfig(width=8, depth=1), MLP, "laplace", scale=1.0),
    text=TextConfig(TOKENS, ParallelDecoderConfig(width=8, depth=1, heads=2)),
)


def make_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (N, 4, 4, 1)).astype(np.uint8),
        "text": rng.integers(1, WORDS, (N, 5)).astype(np.int32),
        "text_mask": np.ones((N, 5), bool),
        "label": (np.arange(N) % CLASSES).astype(np.int32),
        "index": np.arange(N, dtype=np.int32) + 11,
    }


@functools.cache
def make(model, modality="image"):
    """``(the autoencoder, the same as a multimodal one, parameters, a batch)``."""
    config, batch = (
        parts.choose(AutoencoderModel, model)(latent=D, hidden=8, **KINDS),
        jax.tree.map(jnp.asarray, make_batch()),
    )
    sizes = sizes_of(batch, (modality,), config, vocab_size=WORDS)
    vae = make_vae(config, modality, sizes[modality], classes=CLASSES)
    params = random_params(vae.method.init, jax.random.key(0), batch)
    params = params[0] if isinstance(params, tuple) else params
    whole = as_multimodal(vae, config, modality, CLASSES)
    vae = vae._replace(
        encode=jax.jit(vae.encode),
        decode=jax.jit(vae.decode),
        reconstruct=jax.jit(vae.reconstruct),
        log_likelihood=jax.jit(vae.log_likelihood, static_argnums=3),
    )
    whole = whole._replace(
        infer=jax.jit(whole.infer, static_argnames="samples"),
        decode=jax.jit(whole.decode),
        log_likelihood=jax.jit(whole.log_likelihood, static_argnums=5),
    )
    return vae, whole, params, batch


ONE, BOTH = np.ones(1, bool), np.ones((2, 1), bool)


@pytest.mark.parametrize(
    "model,modality", [("vae", "image"), ("cvae", "image"), ("vae", "text"), ("aae", "image")]
)
def test_what_is_encoded_and_decoded_is_the_same(model, modality):
    vae, whole, params, batch = make(model, modality)
    assert whole.modalities == (modality,)
    labelled = model == "cvae"
    codes = whole.infer(params, batch, ONE, None)
    assert codes.z.shape == (1, 1, N, D + labelled) and codes.shared.shape == (1, N, D)
    assert codes.log_ratio.shape == (1, N) and jnp.isnan(codes.log_ratio).all()  # it is not known
    np.testing.assert_array_equal(codes.shared[0], vae.encode(params, batch))
    made = whole.decode(params, codes.z, None)
    assert list(made) == [modality]
    np.testing.assert_array_equal(made[modality][0], vae.reconstruct(params, batch))
    both = jax.jit(lambda *args: [v.method.predict(*args)["latent"] for v in (whole, vae)])
    np.testing.assert_array_equal(*both(params, batch))


@pytest.mark.parametrize("model", ["vae", "cvae"])
def test_what_is_given_changes_nothing(model):
    """There is nothing else to be given; subsets have an axis of their own."""
    _, whole, params, batch = make(model)
    one, both = (whole.infer(params, batch, given, KEY, samples=3) for given in (ONE, BOTH))
    for a, b in zip(one, both, strict=True):
        assert b.shape == (2, *a.shape)
        np.testing.assert_array_equal(b, jnp.stack([a, a]))


def test_samples_are_draws_of_their_own():
    vae, whole, params, batch = make("vae")
    shared = np.asarray(whole.infer(params, batch, ONE, KEY, samples=4).shared)
    assert shared.shape == (4, N, D) and len(np.unique(shared.round(5))) == shared.size
    for row in range(4):
        np.testing.assert_array_equal(shared[row], vae.encode(params, batch, jax.random.fold_in(KEY, row)))
    means = np.asarray(whole.infer(params, batch, ONE, None, samples=2).shared)
    np.testing.assert_array_equal(means[0], means[1])


def test_the_label_goes_through_codes_exactly():
    """Of every example its own, in every row, beside a code that may be anything."""
    vae, whole, params, batch = make("cvae")
    codes = whole.infer(params, batch, ONE, KEY, samples=3)
    np.testing.assert_array_equal(codes.z[0, :, :, -1], np.repeat(batch["label"][None], 3, axis=0))
    np.testing.assert_array_equal(codes.z[0, :, :, :-1], codes.shared)
    made = whole.decode(params, codes.z, None)["image"]
    assert made.shape == (3, N, 4, 4, 1)
    for row in range(3):
        own = vae.decode(params, codes.shared[row], batch["label"])
        np.testing.assert_array_equal(made[row], own)
        other = vae.decode(params, codes.shared[row], (batch["label"] + 1) % CLASSES)
        assert all(abs(made[row, k] - other[k]).max() > 1e-3 for k in range(N))


def test_samples_of_classes_are_those_of_the_conditional_model():
    vae, whole, params, _ = make("cvae")
    labels = jnp.arange(10) % CLASSES
    z = whole.class_latents(params, labels, KEY)
    assert z.shape == (1, 1, 10, D + 1)
    generated = whole.decode(params, z, None)["image"][0]
    np.testing.assert_allclose(generated, vae.sample(params, KEY, 10, labels), rtol=1e-5, atol=1e-6)
    assert make("vae")[1].class_latents is None


def test_dreams_are_of_class_0_or_of_a_class_drawn():
    vae, whole, params, _ = make("cvae")
    shared = jax.random.normal(KEY, (200, D))
    still = whole.decoder_latents(params, shared, None)
    assert still.shape == (1, 1, 200, D + 1) and (still[..., -1] == 0).all()
    np.testing.assert_array_equal(
        whole.decode(params, still, None)["image"][0], vae.decode(params, shared, jnp.zeros(200, jnp.int32))
    )
    drawn = np.asarray(whole.decoder_latents(params, shared, KEY))
    np.testing.assert_array_equal(drawn[0, 0, :, :-1], shared)
    counts = np.bincount(drawn[0, 0, :, -1].astype(int), minlength=CLASSES)
    assert len(counts) == CLASSES and counts.min() > 20  # 40 on average, with a deviation of 6
    assert not np.array_equal(drawn, whole.decoder_latents(params, shared, jax.random.key(4)))
    plain = make("vae")[1]
    np.testing.assert_array_equal(plain.decoder_latents(params, shared, KEY), shared[None, None])


def test_the_prior_is_standard_normal():
    _, whole, params, _ = make("vae")
    drawn = np.asarray(whole.sample_prior(params, KEY, 4001))
    assert drawn.shape == (4001, D)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(D), atol=0.12)


@pytest.mark.parametrize("model", ["vae", "cvae"])
def test_likelihoods_are_the_same(model):
    vae, whole, params, batch = make(model)
    for samples in (1, 9):
        np.testing.assert_array_equal(
            whole.log_likelihood(params, batch, KEY, ONE, ONE, samples),
            vae.log_likelihood(params, batch, KEY, samples),
        )


def test_a_token_is_drawn_where_there_is_a_key():
    vae, whole, params, batch = make("vae", "text")
    z = whole.infer(params, batch, ONE, None, samples=2).z
    made = whole.decode(params, z, KEY)["text"]
    assert made.shape == (2, N, 5) and jnp.issubdtype(made.dtype, jnp.integer)
    np.testing.assert_array_equal(made.reshape(2 * N, 5), vae.decode(params, z[0].reshape(-1, D), None, KEY))
    assert not np.array_equal(made, whole.decode(params, z, None)["text"])
