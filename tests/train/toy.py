"""A method small enough to reason about: a linear map with noise drawn per example."""

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core import collectives
from xmodal_jax.core.random import example_keys
from xmodal_jax.types import Method

WIDTH = 64


def make_toy(noise=0.1):
    def init(key, batch):
        return {
            "layer": {"kernel": 0.1 * jax.random.normal(key, (WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)},
            "out": {"kernel": 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (WIDTH, 1))},
        }

    def predict(params, batch, noise_keys=None):
        x = batch["x"]
        if noise_keys is not None:
            x = x + noise * jax.vmap(lambda k: jax.random.normal(k, (WIDTH,)))(noise_keys)
        h = jnp.tanh(x @ params["layer"]["kernel"] + params["layer"]["bias"][None, :])
        return (h @ params["out"]["kernel"])[:, 0]

    def loss(params, batch, key, *, axis_name=None):
        error = predict(params, batch, example_keys(key, batch["index"])) - batch["y"]
        value = collectives.batch_mean(error**2, axis_name=axis_name)
        return value, {"absolute": collectives.batch_mean(jnp.abs(error), axis_name=axis_name)}

    return Method(init, loss, predict)


def toy_arrays(n=96, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, WIDTH)).astype(np.float32)
    return {"x": x, "y": np.sin(x[:, 0]).astype(np.float32)}


def toy_batch(n=16):
    return {**toy_arrays(n), "index": np.arange(n, dtype=np.int32)}
