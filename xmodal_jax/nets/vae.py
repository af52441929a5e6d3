"""What variational autoencoders are made of besides encoders and decoders: experts, and the networks that some of them
have on top."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import keep_rows
from xmodal_jax.nets.encoders import EncoderConfig, build_encoder, build_pool
from xmodal_jax.types import ExampleKeys

SCALES = ("exp", "softplus", "softmax")


def log_scale_of(raw: Float[Array, "*rows dim"], kind: str) -> Float[Array, "*rows dim"]:
    """A network's output as the logarithm of a scale: "exp", raw is the logarithm of its square; "softplus";
    "softmax", scales whose mean is 1 (Shi et al. 2019, arXiv:1911.03393, appendix C).

    Raises:
      ValueError: another kind.
    """
    if kind == "exp":
        return 0.5 * raw
    if kind == "softplus":
        return jnp.log(jax.nn.softplus(raw) + 1e-6)
    if kind == "softmax":
        return jnp.log(jax.nn.softmax(raw, axis=-1) * raw.shape[-1] + 1e-6)
    raise ValueError(f"scale must be one of {SCALES}, got {kind!r}")


class Features(nn.Module):
    """One modality to ``[B, hidden]``: its encoder, all of its tokens (images) or their pool, a hidden layer with
    ReLU.

    A label needs no encoder: its class as a unit vector (a label outside of 0..classes-1 is the zero vector).
    """

    kind: str
    encoder: EncoderConfig | None
    hidden: int
    vocab_size: int = 0
    max_length: int = 0
    classes: int = 0

    @nn.compact
    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> Float[Array, "batch hidden"]:
        if self.kind == "label":
            x = jax.nn.one_hot(inputs, self.classes)
        else:
            sizes = (
                dict(vocab_size=self.vocab_size, max_length=self.max_length) if self.kind == "text" else {}
            )
            tokens = build_encoder(self.kind, self.encoder, **sizes)(inputs, mask, keys=keys)
            if self.kind == "image":
                x = tokens.values.astype(jnp.float32).reshape(len(inputs), -1)
            else:
                x = build_pool(self.encoder)(tokens)
        return nn.relu(keep_rows(nn.Dense(self.hidden, name="hidden")(x)))


class PooledFeatures(nn.Module):
    """One modality to ``[B, hidden]``: what an encoder with a pool of its own makes of the whole (its ``embed``), layer
    norm, a hidden layer with ReLU."""

    encoder: nn.Module
    hidden: int

    @nn.compact
    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> Float[Array, "batch hidden"]:
        x = self.encoder.embed(inputs, mask, keys=keys).astype(jnp.float32)
        x = nn.LayerNorm(name="norm")(x)  # their sizes differ from encoder to encoder
        return nn.relu(keep_rows(nn.Dense(self.hidden, name="hidden")(x)))


class Said(NamedTuple):
    """What one modality says: moments ``[B, D]`` of the shared and ``[B, P]`` of the private code (scales before
    `log_scale_of`), and the features ``[B, hidden]`` they are made of."""

    mean: Array | None
    raw: Array | None
    private_mean: Array | None
    private_raw: Array | None
    features: Array


class Expert(nn.Module):
    """A modality's `Features` (or `PooledFeatures`), and the moments they lead to (of a code of 0 dimensions: none)."""

    features: nn.Module
    latent: int
    private: int = 0

    @nn.compact
    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> Said:
        h = self.features(inputs, mask, keys)
        sizes = [
            ("mean", self.latent),
            ("raw", self.latent),
            ("private_mean", self.private),
            ("private_raw", self.private),
        ]
        return Said(*(nn.Dense(size, name=name)(h) if size else None for name, size in sizes), h)


class Moments(nn.Module):
    """``[..., H]`` to a mean and a scale before `log_scale_of`, ``[..., latent]`` each, after one hidden layer
    (none if ``hidden`` is 0)."""

    latent: int
    hidden: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "*rows dim"]) -> tuple[Array, Array]:
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.latent, name="mean")(x), nn.Dense(self.latent, name="raw")(x)


class MLP(nn.Module):
    """One hidden layer with ReLU, then ``features`` values."""

    features: int
    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows features"]:
        return nn.Dense(self.features, name="out")(nn.relu(nn.Dense(self.hidden, name="hidden")(x)))
