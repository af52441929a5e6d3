"""Small autoencoders, and what tests of them share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import vae as oracle
from tests.support import random_params
from xmodal_jax.core import parts
from xmodal_jax.core.random import example_keys
from xmodal_jax.models.vae.modalities import AudioConfig, ImageConfig, LabelConfig, TextConfig, sizes_of
from xmodal_jax.models.vae.single import make_vae
from xmodal_jax.models.vae.single_models import AutoencoderModel
from xmodal_jax.nets.decoders import FrameDecoderConfig, MLPDecoderConfig, ParallelDecoderConfig
from xmodal_jax.nets.encoders import AudioTransformerConfig, MLPEncoderConfig, TextTransformerConfig
from xmodal_jax.probability.distributions import standard_noise
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.types import GAN

D, CLASSES, WORDS = 3, 4, 11
TOKENS = TextTransformerConfig(width=8, depth=1, heads=2)
FRAMES = AudioTransformerConfig(width=8, depth=1, heads=2, downsample=2)
MLP = MLPDecoderConfig(width=8, depth=1)
COMMON = dict(
    latent=D,
    hidden=8,
    image=ImageConfig(MLPEncoderConfig(width=8, depth=1, dropout=0.1), MLP, "bernoulli"),
    text=TextConfig(TOKENS, ParallelDecoderConfig(width=8, depth=1, heads=2)),
    audio=AudioConfig(FRAMES, FrameDecoderConfig(width=8), "laplace", scale=0.75),
    label=LabelConfig(MLP),
)
"""Options that all models have here."""
MODELS = parts.parts_of(AutoencoderModel)
TWO_PLAYERS = [name for name, model in MODELS.items() if model.critic_objective]
ADAM = Optimizer(name="adam", learning_rate=1e-2, clip_norm=None, warmup=0.0, schedule="constant")
PLAYERS = GANOptimizer(
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


on_device = jax.device_put


def only(batch, *names):
    """The fields of some modalities."""
    return {k: v for k, v in batch.items() if k in names or k == "index" or k.removesuffix("_mask") in names}


def config_of(model, **changes):
    return parts.choose(AutoencoderModel, model)(**COMMON | changes)


def make(model, modality="image", batch=None, **changes):
    config, batch = config_of(model, **changes), make_batch(1) if batch is None else batch
    size = sizes_of(batch, (modality,), config, vocab_size=WORDS, classes=CLASSES)[modality]
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
    own = COMMON[kind]
    return {kind: dataclasses.replace(own, encoder=dataclasses.replace(own.encoder, dropout=0.0), **changes)}


@functools.cache
def started(model, **changes):
    """The model without dropout, its parameters as `encode` takes them, and as many as any model needs of a batch."""
    vae, batch = make(model, **calm(), **changes), on_device(make_batch(6))
    params = begin(vae, batch)
    return vae, params[0] if isinstance(vae.method, GAN) else params, batch


def begin(vae, batch):
    return random_params(vae.method.init, jax.random.key(1), batch)


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


def slow_but(*quick):
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in MODELS]


def optimizer_of(model):
    return PLAYERS if model in TWO_PLAYERS else ADAM
