"""A convolutional VAE at 32 pixels."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cases.sides import Row, Side, jax_flops, jax_training, size, torch_training
from xmodal_jax.nets.conv import Conv, ConvTranspose

BATCH, LATENT, STEPS = 64, 64, 4
CHANNELS = (32, 64, 128, 256)

WHAT = (
    f"convolutional VAE, 32 px, batch {BATCH}: four convolutions 4x4 of stride 2 ({', '.join(map(str, CHANNELS))} "
    f"channels), latent {LATENT}, four transposed convolutions back, Bernoulli likelihood, one sample, Adam"
)
VARIANTS = ("eager", "eager, channels last", "compile", "compile, channels last")
ROWS = (Row("vae", WHAT, "loop", VARIANTS, ("scan",), goal=0.95),)


class VAE(nn.Module):
    @nn.compact
    def __call__(self, x, noise):
        for features in CHANNELS:
            x = nn.relu(Conv(features, (4, 4), 2)(x))
        mean, log_variance = jnp.split(nn.Dense(2 * LATENT)(x.reshape(x.shape[0], -1)), 2, axis=1)
        z = mean + jnp.exp(0.5 * log_variance) * noise
        y = nn.relu(nn.Dense(4 * CHANNELS[-1])(z)).reshape(-1, 2, 2, CHANNELS[-1])
        for features in CHANNELS[-2::-1]:
            y = nn.relu(ConvTranspose(features, (4, 4), 2)(y))
        return ConvTranspose(3, (4, 4), 2)(y), mean, log_variance


def jax_side() -> Side:
    model, tx = VAE(), optax.adam(1e-4)

    def loss(params, x, key):
        logits, mean, log_variance = model.apply(params, x, jax.random.normal(key, (BATCH, LATENT)))
        reconstruction = optax.sigmoid_binary_cross_entropy(logits, x).sum()
        kl = -0.5 * (1 + log_variance - jnp.square(mean) - jnp.exp(log_variance)).sum()
        return (reconstruction + kl) / BATCH

    def step(state, x):
        params, opt_state, key = state
        key, now = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, x, now)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), value

    x = images().transpose(0, 1, 3, 4, 2)
    params = jax.jit(model.init)(jax.random.key(0), x[0, :1], jnp.zeros((1, LATENT)))
    state = params, tx.init(params), jax.random.key(1)
    return Side(jax_training(step, state, x), size(params), jax_flops(step, state, x[0]))


def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (STEPS, BATCH, 3, 32, 32)).astype(np.float32)


def torch_side() -> Side:
    import torch
    from torch import nn

    def make():
        sizes = (3, *CHANNELS)
        down, up = [], []
        for a, b in zip(sizes, sizes[1:], strict=False):
            down += [nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(True)]
        for b, a in zip(sizes[-2::-1], sizes[:0:-1], strict=True):
            up += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.ReLU(True)]
        encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(4 * CHANNELS[-1], 2 * LATENT))
        decoder = nn.Sequential(
            nn.Linear(LATENT, 4 * CHANNELS[-1]),
            nn.ReLU(True),
            nn.Unflatten(1, (CHANNELS[-1], 2, 2)),
            *up[:-1],
        )

        def loss(x):
            mean, log_variance = encoder(x).chunk(2, dim=1)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            cross_entropy = nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
            return (cross_entropy + kl) / BATCH

        return nn.ModuleList([encoder, decoder]), loss

    return torch_training(make, [(torch.from_numpy(x),) for x in images()], images=True)
