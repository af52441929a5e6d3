"""Captioners that are trained on texts alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.random import batch_keys
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.evaluation.text_only_captions import TextOnlyCaptioner
from xmodal_jax.nets.encoders import TextDecoderConfig
from xmodal_jax.types import Tokens

TEXTS = [f"{size} {colour}" for size in ("small", "large") for colour in ("red", "green", "blue")]
VECTORS = np.float32(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0][:6])
DECODER = TextDecoderConfig(width=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def trained():
    """A captioner, and its parameters after a training on six texts with embeddings at right angles."""
    tokenize = TokenizeTransform(train_tokenizer(TEXTS, "word"), 5)
    captioner = TextOnlyCaptioner(tokenize, 120, noise=0.4, decoder=DECODER, batch_size=12)
    return captioner, captioner.fit(TEXTS, VECTORS, seed=0)


def test_texts_are_reconstructed_also_from_embeddings_nearby(trained):
    """And from as many embeddings as one wants."""
    captioner, params = trained
    assert captioner.caption(params, VECTORS) == TEXTS
    rng = np.random.default_rng(1)
    near = VECTORS + 0.05 * rng.normal(size=VECTORS.shape)
    many = np.tile(near, (50, 1))  # 300: more than are computed at a time
    assert captioner.caption(params, many) == TEXTS * 50


def test_the_loss_is_the_cross_entropy_per_token_of_noisy_embeddings(trained):
    """In NumPy, one token after the other, with the noise that the examples' keys draw."""
    captioner, params = trained
    tokens, key = captioner.tokenize({"caption": np.array(TEXTS, object)}), jax.random.key(3)
    batch = {name: jnp.asarray(tokens[name]) for name in ("text", "text_mask")}
    batch |= {"embedding": jnp.asarray(VECTORS), "index": jnp.arange(6)}
    noise = np.stack([jax.random.normal(k, (8,)) for k in batch_keys(key, batch)])
    noisy = VECTORS + 0.4 / np.sqrt(8) * noise
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    memory = Tokens(jnp.asarray(np.sqrt(8) * noisy[:, None], jnp.float32), None)
    logits = jax.jit(captioner._decoder.apply)({"params": params}, batch["text"][:, :-1], memory)
    p = np.float64(jax.nn.softmax(logits))
    losses = [
        -np.log(p[i, t, tokens["text"][i, t + 1]])
        for i in range(6)
        for t in range(4)
        if tokens["text_mask"][i, t + 1]
    ]
    np.testing.assert_allclose(jax.jit(captioner._loss)(params, batch, key), np.mean(losses), rtol=1e-4)


def test_the_noise_has_its_length_and_differs_between_examples(trained, monkeypatch):
    captioner, params = trained
    seen = []
    monkeypatch.setattr(
        "xmodal_jax.evaluation.text_only_captions.l2_normalize", lambda x: (seen.append(np.asarray(x)), x)[1]
    )
    n, dim = 40, 64
    batch = {
        "embedding": jnp.zeros((n, dim)), "text": jnp.ones((n, 5), int),
        "text_mask": jnp.ones((n, 5), bool), "index": jnp.arange(n),
    }  # fmt: skip
    monkeypatch.setattr(captioner, "_decoder", type("", (), {"apply": lambda *_: jnp.zeros((n, 4, 9))}))
    captioner._loss(params, batch, jax.random.key(0))
    (noise,) = seen
    np.testing.assert_allclose(np.sqrt(np.mean(np.sum(noise**2, axis=1))), captioner.noise, rtol=0.1)
    np.testing.assert_allclose(noise.mean(), 0.0, atol=0.01)
    assert len(np.unique(noise[:, 0])) == n


def test_a_tokenizer_without_an_end_is_refused(monkeypatch):
    tokenize = TokenizeTransform(train_tokenizer(TEXTS, "word"), 5)
    monkeypatch.setattr(tokenize.tokenizer, "eos_id", -1)
    with pytest.raises(ValueError, match="no begin or no end token"):
        TextOnlyCaptioner(tokenize, 3)
