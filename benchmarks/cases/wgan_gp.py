"""WGAN-GP on the networks of `dcgan`: the gradient of a gradient in every step of the discriminator."""

from __future__ import annotations

import jax
import optax

from benchmarks.cases.dcgan import BATCH, STEPS, play_jax, play_torch
from benchmarks.cases.sides import Row, Side
from xmodal_jax.losses.penalties import gradient_penalty

RATE, ADAM, WEIGHT = 1e-4, dict(b1=0.5, b2=0.9), 10.0

WHAT = (
    f"WGAN-GP, 32 px, batch {BATCH}: networks of the DCGAN, Wasserstein loss with gradient penalty (double backward), "
    "one Adam step of each player"
)
# torch.compile knows no double backward: only the generator's step is compiled.
VARIANTS = ("eager", "eager, channels last", "compiled generator", "compiled generator, channels last")
ROWS = (Row("wgan_gp", f"{WHAT}; JAX: {STEPS} steps in one program", "scan", VARIANTS, ("loop",)),)


def jax_side() -> Side:
    def loss(judge, real, fake, key):
        held = gradient_penalty(judge, real, fake, jax.random.split(key, BATCH))
        return (judge(fake) - judge(real) + WEIGHT * held).mean()

    return play_jax(loss, optax.adam(RATE, **ADAM))


def torch_side() -> Side:
    import torch

    def loss(judge, real, fake):
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = torch.lerp(fake, real, share).requires_grad_()
        # As a view, for PyTorch's counter of operations takes no leaf.
        seen = judge(between.view_as(between)).sum()
        (slope,) = torch.autograd.grad(seen, between, create_graph=True)
        held = (slope.square().sum(dim=(1, 2, 3)).sqrt() - 1).square().mean()
        return judge(fake).mean() - judge(real).mean() + WEIGHT * held

    return play_torch(loss, ADAM, RATE, compiled="compiled generator")
