"""DCGAN at 32 pixels: one step of the discriminator and one of the generator."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cases.sides import (
    Row,
    Side,
    Variant,
    check,
    jax_flops,
    jax_training,
    size,
    torch_device,
    torch_flops,
    torch_size,
)
from xmodal_jax.nets.conv import Conv, ConvTranspose

BATCH, NOISE, WIDTH, STEPS = 64, 100, 64, 4
RATE, ADAM = 2e-4, dict(b1=0.5, b2=0.999)

WHAT = (
    f"DCGAN, 32 px, batch {BATCH}: noise {NOISE} to 4x4x{4 * WIDTH}, three transposed convolutions 4x4 of stride 2, "
    "batch norm (batch statistics) in the generator, the mirrored discriminator with leaky ReLU, hinge loss, "
    "one Adam step of each player"
)
VARIANTS = ("eager", "eager, channels last", "compile", "compile, channels last")
ROWS = (Row("dcgan", f"{WHAT}; JAX: {STEPS} steps in one program", "scan", VARIANTS, ("loop",), goal=0.95),)


class BatchNorm(nn.Module):
    """Over the batch and the pixels, with the statistics of the batch."""

    @nn.compact
    def __call__(self, x):
        axes = tuple(range(x.ndim - 1))
        shape = (1,) * len(axes) + x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = x.mean(axes, keepdims=True)
        variance = jnp.square(x).mean(axes, keepdims=True) - jnp.square(mean)
        return (x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + bias


class Generator(nn.Module):
    @nn.compact
    def __call__(self, z):
        x = nn.Dense(16 * 4 * WIDTH, use_bias=False)(z).reshape(-1, 4, 4, 4 * WIDTH)
        for features in (2 * WIDTH, WIDTH):
            x = nn.relu(BatchNorm()(x))
            x = ConvTranspose(features, (4, 4), 2, use_bias=False)(x)
        return jnp.tanh(ConvTranspose(3, (4, 4), 2)(nn.relu(BatchNorm()(x))))


class Discriminator(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (WIDTH, 2 * WIDTH, 4 * WIDTH):
            x = nn.leaky_relu(Conv(features, (4, 4), 2)(x), 0.2)
        return nn.Dense(1)(x.reshape(x.shape[0], -1))[:, 0]


def jax_side() -> Side:
    hinge = lambda judge, real, fake, key: (nn.relu(1 - judge(real)) + nn.relu(1 + judge(fake))).mean()
    return play_jax(hinge, optax.adam(RATE, **ADAM))


def play_jax(loss: Callable, tx: optax.GradientTransformation) -> Side:
    """A round in one program. ``loss(judge, real, fake, key)``: the discriminator's."""
    generator, discriminator = Generator(), Discriminator()

    def step(state, real):
        g, d, g_opt, d_opt, key = state
        key, for_d, for_g, for_loss = jax.random.split(key, 4)
        noise = lambda key: jax.random.normal(key, (BATCH, NOISE))
        fake = generator.apply(g, noise(for_d))

        def d_loss(d):
            return loss(lambda x: discriminator.apply(d, x), real, fake, for_loss)

        def g_loss(g):
            return -discriminator.apply(d, generator.apply(g, noise(for_g))).mean()

        d_value, grads = jax.value_and_grad(d_loss)(d)
        updates, d_opt = tx.update(grads, d_opt, d)
        d = optax.apply_updates(d, updates)
        g_value, grads = jax.value_and_grad(g_loss)(g)
        updates, g_opt = tx.update(grads, g_opt, g)
        g = optax.apply_updates(g, updates)
        return (g, d, g_opt, d_opt, key), jnp.stack([d_value, g_value])

    real = images().transpose(0, 1, 3, 4, 2)
    g = jax.jit(generator.init)(jax.random.key(0), jnp.zeros((1, NOISE)))
    d = jax.jit(discriminator.init)(jax.random.key(1), real[0, :1])
    state = (g, d, tx.init(g), tx.init(d), jax.random.key(2))
    return Side(jax_training(step, state, real), size((g, d)), jax_flops(step, state, real[0]))


def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (STEPS, BATCH, 3, 32, 32)).astype(np.float32)


def torch_side() -> Side:
    import torch

    hinge = lambda judge, real, fake: torch.relu(1 - judge(real)).mean() + torch.relu(1 + judge(fake)).mean()
    return play_torch(hinge, ADAM, RATE)


def _torch_models():
    """Generator and discriminator."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    norm = lambda channels: nn.BatchNorm2d(channels, track_running_stats=False)
    up = lambda a, b, **kw: nn.ConvTranspose2d(a, b, 4, 2, 1, **kw)
    generator = nn.Sequential(
        nn.Linear(NOISE, 16 * 4 * WIDTH, bias=False),
        nn.Unflatten(1, (4 * WIDTH, 4, 4)),
        norm(4 * WIDTH), nn.ReLU(True), up(4 * WIDTH, 2 * WIDTH, bias=False),
        norm(2 * WIDTH), nn.ReLU(True), up(2 * WIDTH, WIDTH, bias=False),
        norm(WIDTH), nn.ReLU(True), up(WIDTH, 3), nn.Tanh(),
    )  # fmt: skip
    sizes = (3, WIDTH, 2 * WIDTH, 4 * WIDTH)
    layers = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    discriminator = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 4 * WIDTH, 1))
    return generator, discriminator


def play_torch(loss: Callable, adam: dict[str, float], rate: float, *, compiled: str = "compile") -> Side:
    """A round, eager and compiled, in both layouts. ``loss(judge, real, fake)``: the discriminator's; with
    ``compiled`` "compiled generator" only the other player's is compiled."""
    import torch

    def players(generator, discriminator):
        def d_loss(real, z):
            with torch.no_grad():
                fake = generator(z)
            return loss(discriminator, real, fake)

        def g_loss(z):
            return -discriminator(generator(z)).mean()

        return d_loss, g_loss

    def step(generator, discriminator, d_loss, g_loss, d_optimizer, g_optimizer, real):
        # Each player's loss computes the gradients of that player's parameters only.
        d_optimizer.zero_grad()
        d_value = d_loss(real, torch.randn(BATCH, NOISE, device=real.device))
        d_value.backward()
        d_optimizer.step()
        discriminator.requires_grad_(False)
        g_optimizer.zero_grad()
        g_value = g_loss(torch.randn(BATCH, NOISE, device=real.device))
        g_value.backward()
        g_optimizer.step()
        discriminator.requires_grad_(True)
        return d_value, g_value

    def variant(how, layout):
        generator, discriminator = (
            model.to(torch_device(), memory_format=layout) for model in _torch_models()
        )
        losses = list(players(generator, discriminator))
        for k in {"eager": (), "compile": (0, 1), "compiled generator": (1,)}[how]:
            losses[k] = torch.compile(losses[k])
        own = lambda model: torch.optim.Adam(
            model.parameters(), lr=rate, betas=(adam["b1"], adam["b2"]), fused=True
        )
        optimizers = own(discriminator), own(generator)
        real = [torch.from_numpy(x).to(torch_device(), memory_format=layout) for x in images()]

        def run():
            for x in real:
                values = step(generator, discriminator, *losses, *optimizers, x)
            check([value.item() for value in values])

        return Variant(run, STEPS)

    layouts = {"": torch.contiguous_format, ", channels last": torch.channels_last}
    variants = {
        f"{name}{suffix}": variant(name, layout)
        for suffix, layout in layouts.items()
        for name in ("eager", compiled)
    }

    generator, discriminator = _torch_models()
    none = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    real = torch.from_numpy(images()[0])
    count = lambda: step(generator, discriminator, *players(generator, discriminator), none, none, real)
    return Side(variants, torch_size(generator, discriminator), torch_flops(count))
