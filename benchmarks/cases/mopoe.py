"""MoPoE VAE over five modalities, against ``multivae``'s with its own encoders and decoders."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cases.peers import import_torchvision
from benchmarks.cases.sides import (
    Row,
    Side,
    jax_flops,
    jax_training,
    size,
    torch_training,
)

MODALITIES, SHAPE, HIDDEN, LATENT, BATCH, STEPS = 5, (3, 28, 28), 512, 512, 128, 2
PIXELS = int(np.prod(SHAPE))
SCALE = 0.75

WHAT = (
    f"MoPoE VAE, {MODALITIES} modalities of {'x'.join(map(str, SHAPE))}, batch {BATCH}: MLP encoders (two layers of "
    f"{HIDDEN}) and decoders (one), latent {LATENT}, the products of experts of all {2**MODALITIES - 1} subsets, "
    "Laplace likelihood, Adam. PyTorch: multivae's MoPoE with its default networks"
)
ROWS = (Row("mopoe", WHAT, "loop", ("eager", "compile"), ("scan",), goal=0.3),)

SUBSETS = [
    list(subset) for n in range(1, MODALITIES + 1) for subset in itertools.combinations(range(MODALITIES), n)
]


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(LATENT, name="mean")(x), nn.Dense(LATENT, name="log_variance")(x)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, z):
        return nn.sigmoid(nn.Dense(PIXELS, name="pixels")(nn.relu(nn.Dense(HIDDEN, name="hidden")(z))))


class MoPoE(nn.Module):
    """The negative ELBO as multivae writes it: Sutter et al. 2021, arXiv:2105.02470."""

    @nn.compact
    def __call__(self, x, noise):
        encoded = [Encoder(name=f"encoder_{m}")(x[:, m]) for m in range(MODALITIES)]
        means, log_variances = (jnp.stack(values) for values in zip(*encoded, strict=True))
        mean, log_variance = products(means, log_variances)
        kl = -0.5 * (1 + log_variance - jnp.square(mean) - jnp.exp(log_variance)).sum(-1).mean()
        # Each example takes the subset that its place in the batch says, the same number for each subset.
        chosen = np.minimum(np.arange(len(x)) // (len(x) // len(SUBSETS)), len(SUBSETS) - 1)
        rows = np.arange(len(x))
        z = mean[chosen, rows] + jnp.exp(0.5 * log_variance[chosen, rows]) * noise
        decoded = jnp.stack([Decoder(name=f"decoder_{m}")(z) for m in range(MODALITIES)], axis=1)
        error = jnp.abs(x - decoded).sum((1, 2)).mean() / SCALE
        return error + MODALITIES * PIXELS * np.log(2 * SCALE) + kl


def products(means, log_variances):
    """``[M, B, D]`` to the products of all subsets ``[S, B, D]``; the prior is an expert of the full one."""
    member = np.zeros((len(SUBSETS), MODALITIES + 1), np.float32)
    for row, subset in enumerate(SUBSETS):
        member[row, subset] = 1.0
    member[-1, -1] = 1.0
    precision = 1.0 / (jnp.exp(log_variances) + 1e-8)
    prior = jnp.full((1, *precision.shape[1:]), 1.0 / (1.0 + 1e-8))
    weighted = jnp.concatenate([means * precision, jnp.zeros_like(prior)])
    total = _sums(member, jnp.concatenate([precision, prior]))
    return _sums(member, weighted) / total, -jnp.log(total)


def _sums(member, values):
    """``member [S, M] @ values [M, B, D]``, whose gradient is the product with the transpose, in that order.

    The other order, which JAX would write, transposes the gradient of all subsets first.
    """
    multiply = lambda matrix, x: jnp.tensordot(matrix, x, 1)
    return jax.custom_derivatives.linear_call(
        multiply, lambda matrix, x: multiply(matrix.T, x), jnp.asarray(member), values
    )


def loss(params, x, noise):
    return MoPoE().apply(params, x, noise)


def images() -> np.ndarray:
    shape = (STEPS, BATCH, MODALITIES, PIXELS)
    return np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)


def jax_side() -> Side:
    tx = optax.adam(1e-4)

    def step(state, x):
        params, opt_state, key = state
        key, now = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, x, jax.random.normal(now, (BATCH, LATENT)))
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), value

    x = images()
    params = jax.jit(MoPoE().init)(jax.random.key(0), x[0], jnp.zeros((BATCH, LATENT)))
    state = params, tx.init(params), jax.random.key(1)
    return Side(jax_training(step, state, x), size(params), jax_flops(step, state, x[0]))


def make_multivae():
    """multivae's model and the inputs' type."""
    import_torchvision()
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.models import MoPoE, MoPoEConfig

    names = [f"m{m}" for m in range(MODALITIES)]
    config = MoPoEConfig(
        n_modalities=MODALITIES,
        latent_dim=LATENT,
        input_dims={name: SHAPE for name in names},
        decoders_dist={name: "laplace" for name in names},
        decoder_dist_params={name: {"scale": SCALE} for name in names},
    )
    return MoPoE(config), lambda parts: MultimodalBaseDataset(dict(zip(names, parts, strict=True)))


def torch_side() -> Side:
    import torch

    def make():
        model, dataset = make_multivae()
        return model, lambda *parts: model(dataset(parts))["loss"]

    batches = [
        tuple(torch.from_numpy(x[:, m].copy()).reshape(-1, *SHAPE) for m in range(MODALITIES))
        for x in images()
    ]
    return torch_training(make, batches)


def from_multivae(model) -> dict:
    """The parameters of multivae's model in the layout of :class:`MoPoE`."""
    array = lambda linear: {
        "kernel": jnp.asarray(linear.weight.detach().numpy().T),
        "bias": jnp.asarray(linear.bias.detach().numpy()),
    }
    params = {}
    for m in range(MODALITIES):
        encoder, decoder = model.encoders[f"m{m}"], model.decoders[f"m{m}"]
        params[f"encoder_{m}"] = {
            "Dense_0": array(encoder.layers[0][0]),
            "Dense_1": array(encoder.layers[1][0]),
            "mean": array(encoder.embedding),
            "log_variance": array(encoder.log_var),
        }
        params[f"decoder_{m}"] = {
            "hidden": array(decoder.layers[0][0]),
            "pixels": array(decoder.layers[1][0]),
        }
    return {"params": params}
