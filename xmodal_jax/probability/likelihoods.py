"""Log-likelihoods of data given a decoder's outputs: one number per example, in nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.probability.distributions import (
    Laplace,
    Normal,
    StudentT,
    bernoulli_log_prob,
    categorical_log_prob,
)
from xmodal_jax.types import Key


class Density(NamedTuple):
    """A likelihood of real-valued data, element by element."""

    log_prob: Callable[[Array, Array, float], Array]
    """``log_prob(outputs, x, scale)``: log-likelihood of every element of x."""
    mean: Callable[[Array], Array]
    """``mean(outputs)``: the data that a decoder with these outputs expects."""
    sample: Callable[[Key, Array, float], Array]
    """``sample(key, outputs, scale)``: data drawn from the likelihood, with independent noise in every element."""


def _location_scale(family: type[Normal] | type[Laplace]) -> Density:
    """The likelihood in which the decoder's outputs are the means of a family's distributions of one fixed scale."""

    def log_prob(outputs: Array, x: Array, scale: float) -> Array:
        log_scale = jnp.full((1,) * outputs.ndim, math.log(scale), outputs.dtype)
        return family(outputs, log_scale).log_prob(x)

    def draw(key: Key, outputs: Array, scale: float) -> Array:
        """The outputs plus standard noise of the family times the scale."""
        noise = {Normal: jax.random.normal, Laplace: jax.random.laplace}[family]
        return outputs + scale * noise(key, outputs.shape, outputs.dtype)

    return Density(log_prob, lambda outputs: outputs, draw)


DENSITIES: Mapping[str, Density] = MappingProxyType(
    {
        "normal": _location_scale(Normal),
        "laplace": _location_scale(Laplace),
        "bernoulli": Density(
            lambda outputs, x, scale: bernoulli_log_prob(outputs, x),
            lambda outputs: jax.nn.sigmoid(outputs),
            lambda key, outputs, scale: jax.random.bernoulli(key, jax.nn.sigmoid(outputs)).astype(
                outputs.dtype
            ),
        ),
    }
)
"""Likelihoods of real-valued data by name. "normal" and "laplace": outputs are means, ``scale`` is the standard
deviation or Laplace's b. "bernoulli": outputs are logits, x lies in [0, 1] and ``scale`` is ignored."""


def dense_log_likelihood(
    likelihood: str,
    outputs: Float[Array, "samples batch *shape"],
    x: Float[Array, "batch *shape"],
    *,
    scale: float = 1.0,
) -> Float[Array, "samples batch"]:
    """``log p(x | z)`` for several latent samples of each example, summed over the example's elements.

    It is for data of real numbers, such as images and log-mel frames; for tokens see `token_log_likelihood`.

    Args:
      likelihood: a key of `DENSITIES`.
      outputs: the decoder's outputs for each latent sample.
      x: the data.
      scale: standard deviation of "normal" or b of "laplace".

    Raises:
      ValueError: if there is no such likelihood.
    """
    if likelihood not in DENSITIES:
        raise ValueError(f"likelihood must be one of {tuple(DENSITIES)} here, got {likelihood!r}")
    x = jnp.broadcast_to(x[None], outputs.shape)
    terms = DENSITIES[likelihood].log_prob(outputs, x, scale)  # one for each element of x
    return terms.reshape(*terms.shape[:2], -1).sum(axis=-1)


def measured_log_likelihood(
    likelihood: str,
    mean: Float[Array, "samples batch *shape"],
    log_scale: Float[Array, "samples batch *shape"],
    x: Float[Array, "batch *shape"],
    mask: Bool[Array, "batch *shape"],
    *,
    degrees: float = 4.0,
) -> Float[Array, "samples batch"]:
    """``log p(x | z)`` of measured quantities for several latent samples of each example, in nats: the sum over the
    values that are there.

    A value that is missing (``mask`` False) has exactly no influence.

    Args:
      likelihood: one of `MEASURED_LIKELIHOODS`.
      mean, log_scale: of each value, for each latent sample.
      x, mask: the values, and which of them are there.
      degrees: degrees of freedom of "student_t".

    Raises:
      ValueError: if there is no such likelihood.
    """
    if likelihood not in MEASURED_LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {MEASURED_LIKELIHOODS}, got {likelihood!r}")
    # A missing value may be NaN: it is replaced before any arithmetic.
    x = jnp.broadcast_to(jnp.where(mask, x, 0.0)[None], mean.shape)
    if likelihood == "normal":
        terms = Normal(mean, log_scale).log_prob(x)
    else:
        terms = StudentT(mean, log_scale, degrees).log_prob(x)
    terms = jnp.where(mask[None], terms, 0.0)
    return terms.reshape(*terms.shape[:2], -1).sum(axis=-1)


def sample_measured(
    key: Key,
    likelihood: str,
    mean: Float[Array, "*shape"],
    log_scale: Float[Array, "*shape"],
    *,
    degrees: float = 4.0,
) -> Float[Array, "*shape"]:
    """Measured quantities drawn from the likelihood that `measured_log_likelihood` computes."""
    if likelihood == "normal":
        return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)
    return mean + jnp.exp(log_scale) * jax.random.t(key, degrees, mean.shape)


MEASURED_LIKELIHOODS = ("normal", "student_t")
"""The likelihoods of `measured_log_likelihood`."""


def token_log_likelihood(
    logits: Float[Array, "samples batch length vocab"],
    ids: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
) -> Float[Array, "samples batch"]:
    """``log p(text | z)`` for several latent samples of each text, in nats: ``sum_t log p(id_t)`` under the mask."""
    ids = jnp.broadcast_to(ids[None], logits.shape[:-1])
    return jnp.where(mask[None], categorical_log_prob(logits, ids), 0.0).sum(axis=-1)


def label_log_likelihood(
    logits: Float[Array, "samples batch classes"], labels: Int[Array, "batch"]
) -> Float[Array, "samples batch"]:
    """``log p(label | z)`` for several latent samples of each example."""
    return categorical_log_prob(logits, jnp.broadcast_to(labels[None], logits.shape[:-1]))
