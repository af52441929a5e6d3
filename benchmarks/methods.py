"""The two methods of the engine's benchmarks: a tiny one, dominated by dispatch, and one dominated by arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core import collectives
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import info_nce
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.types import Method

BATCH = 64


def make_mlp(width: int = 64) -> Method:
    """InfoNCE between two towers of three dense layers over vectors."""

    def init(key, batch):
        def tower(key, size):
            sizes = [(size, width), (width, width), (width, width)]
            keys = jax.random.split(key, len(sizes))
            draw = lambda k, s: {
                "kernel": jax.random.normal(k, s) * (2 / s[0]) ** 0.5,
                "bias": jnp.zeros(s[1]),
            }
            return [draw(k, s) for k, s in zip(keys, sizes, strict=True)]

        keys = dict(zip(("a", "b"), jax.random.split(key), strict=True))
        return {name: tower(k, batch[name].shape[-1]) for name, k in keys.items()}

    def predict(params, batch):
        def apply(layers, x):
            for layer in layers[:-1]:
                x = jax.nn.gelu(x @ layer["kernel"] + layer["bias"][None, :])
            return l2_normalize(x @ layers[-1]["kernel"] + layers[-1]["bias"][None, :])

        return {name: apply(params[name], batch[name]) for name in ("a", "b")}

    def loss(params, batch, key, *, axis_name=None):
        out = predict(params, batch)
        terms = info_nce(out["a"], out["b"], temperature=0.1, axis_name=axis_name)
        return collectives.batch_mean(terms, axis_name=axis_name), {}

    return Method(init, loss, predict)


def mlp_arrays(n: int = 4096) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n, 32)).astype(np.float32)
    return {"a": a, "b": (a @ rng.normal(size=(32, 48))).astype(np.float32)}


def make_default() -> Method:
    """The model that ``experiments/contrastive.py`` trains by default: text, image and speech."""
    return make_contrastive(ContrastiveConfig(), ("text", "image", "audio"), vocab_size=60)


def default_arrays(n: int = 512) -> dict[str, np.ndarray]:
    """Random arrays of the default data set's shapes: the values do not affect the time of a step."""
    rng = np.random.default_rng(0)
    return {
        "text": rng.integers(1, 40, (n, 20)).astype(np.int32),
        "text_mask": np.ones((n, 20), bool),
        "image": rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8),
        "audio": (3000 * rng.normal(size=(n, 51200))).astype(np.int16),
        "audio_mask": np.ones((n, 51200), bool),
    }


METHODS = {"mlp": (make_mlp, mlp_arrays), "default": (make_default, default_arrays)}
