"""Layers of variational autoencoders between encoder and decoder: features, experts and moments.

An *expert* is the posterior ``q(z | x_m)`` of one modality alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.encoders import EncoderConfig, build_encoder, build_pool
from xmodal_jax.types import ExampleKeys

SCALES = ("exp", "softplus", "softmax")
"""Ways in which a network's output becomes the scale of a distribution (`to_log_scale`)."""


def to_log_scale(raw: Float[Array, "*rows dim"], scale: str) -> Float[Array, "*rows dim"]:
    """The log-scale of a distribution, such as the log standard deviation, from a network's output ``raw``.

    ``scale`` chooses how: with "exp" ``raw`` is the log of the squared scale, a log-variance; with "softplus" the scale
    is softplus(raw); with "softmax" the scale is a softmax over the dimensions times their number, so that its mean
    over dimensions is 1 (Shi et al. 2019, arXiv:1911.03393, appendix C).

    Raises:
      ValueError: if ``scale`` is none of these.
    """
    if scale == "exp":
        return 0.5 * raw
    if scale == "softplus":
        return jnp.log(jax.nn.softplus(raw) + 1e-6)
    if scale == "softmax":
        return jnp.log(jax.nn.softmax(raw, axis=-1) * raw.shape[-1] + 1e-6)
    raise ValueError(f"scale must be one of {SCALES}, got {scale!r}")


class EncoderFeatures(nn.Module):
    """One modality to ``[B, hidden]``: an encoder, its tokens as one vector, and a hidden layer with ReLU."""

    modality: str
    """A key of `nets.encoders.ENCODERS`."""
    encoder: EncoderConfig
    hidden: int
    flatten: bool
    """Whether the tokens are concatenated (as those of images are) instead of pooled."""
    shape_info: Mapping[str, int]
    """Sizes of the data that `nets.encoders.build_encoder` takes, such as ``vocab_size``."""

    @nn.compact
    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> Float[Array, "batch hidden"]:
        """The features of the inputs of one modality: encoder, flattened or pooled tokens, dense layer and ReLU.

        ``inputs [B, ...]`` are preprocessed; ``mask`` is True on valid positions, None for modalities without padding.
        ``self.flatten``: keep all tokens as one long vector instead of pooling them. ``keys``: for dropout in training.
        """
        tokens = build_encoder(self.modality, self.encoder, **self.shape_info)(inputs, mask, keys=keys)
        if self.flatten:
            x = tokens.values.astype(jnp.float32).reshape(inputs.shape[0], -1)
        else:
            x = build_pool(self.encoder)(tokens)
        return nn.relu(shard_examples(nn.Dense(self.hidden, name="hidden")(x)))


class LabelFeatures(nn.Module):
    """Labels to ``[B, hidden]``: the one-hot class (zeros for a label outside of 0..classes-1), and a hidden layer with
    ReLU."""

    classes: int
    hidden: int

    @nn.compact
    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> Float[Array, "batch hidden"]:
        """The features of the labels ``inputs [B]``; ``mask`` and ``keys`` are unused."""
        x = jax.nn.one_hot(inputs, self.classes)
        return nn.relu(shard_examples(nn.Dense(self.hidden, name="hidden")(x)))


class PretrainedFeatures(nn.Module):
    """One modality to ``[B, hidden]``: a pretrained encoder, a pool, layer norm, and a hidden layer with ReLU."""

    encoder: nn.Module
    hidden: int
    pool: nn.Module | None = None
    """Pools the encoder's tokens; None: the encoder's own pool (its method ``embed``)."""

    @nn.compact
    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> Float[Array, "batch hidden"]:
        """The features of the inputs of one modality, from the pooled output of a pretrained encoder.

        ``inputs [B, ...]`` are preprocessed; ``mask`` is True on valid positions, None for modalities without padding.
        ``self.pool`` None: the pool of the encoder's pretraining. ``keys``: for dropout in training.
        """
        if self.pool is None:
            x = self.encoder.embed(inputs, mask, keys=keys).astype(jnp.float32)
        else:
            x = self.pool(self.encoder(inputs, mask, keys=keys)).astype(jnp.float32)
        x = nn.LayerNorm(name="norm")(x)  # the norm of embeddings differs between encoders
        return nn.relu(shard_examples(nn.Dense(self.hidden, name="hidden")(x)))


class ExpertOutputs(NamedTuple):
    """Moments of one modality's posterior, and the features ``[B, hidden]`` that they are computed from.

    Means and raw scales (see `to_log_scale`) are ``[B, D]`` of the shared and ``[B, P]`` of the private latent; None
    where the latent has no dimensions.
    """

    mean: Array | None
    raw: Array | None
    private_mean: Array | None
    private_raw: Array | None
    features: Array


class Expert(nn.Module):
    """The moments of one modality's posterior, from its features."""

    features: nn.Module
    """`EncoderFeatures`, `LabelFeatures` or `PretrainedFeatures`."""
    latent: int
    """Dimensions of the shared latent; 0: none."""
    private: int = 0
    """Dimensions of the private latent; 0: none."""

    @nn.compact
    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> ExpertOutputs:
        """Mean and raw scale of the shared and of the private latent, given one modality's inputs.

        Each is a linear map of the features; None for a latent without dimensions. "Raw" is the network's output, which
        `to_log_scale` turns into a log-scale. ``inputs``, ``mask`` and ``keys`` are those of ``self.features``.
        """
        features = self.features(inputs, mask, keys)

        def linear(name, size):
            """A dense layer on the features, ``[B, size]``; None for size 0."""
            return nn.Dense(size, name=name)(features) if size else None

        return ExpertOutputs(
            mean=linear("mean", self.latent),
            raw=linear("raw", self.latent),
            private_mean=linear("private_mean", self.private),
            private_raw=linear("private_raw", self.private),
            features=features,
        )


class Moments(nn.Module):
    """Mean and raw scale (see `to_log_scale`) of a distribution, ``[..., latent]`` each, from features ``[..., H]``,
    after one hidden layer of ``hidden`` units with ReLU (0: none)."""

    latent: int
    hidden: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "*rows dim"]) -> tuple[Array, Array]:
        """``(mean, raw)``: the mean, and the network's output that becomes the scale."""
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.latent, name="mean")(x), nn.Dense(self.latent, name="raw")(x)


class MLP(nn.Module):
    """One hidden layer of ``hidden`` units with ReLU, then ``features`` outputs."""

    features: int
    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows features"]:
        return nn.Dense(self.features, name="out")(nn.relu(nn.Dense(self.hidden, name="hidden")(x)))
