"""Distributions as pairs of arrays: log-densities, samples and divergences, element by element and in nats.

Nothing here sums over dimensions or broadcasts silently: a density of ``[B, D]`` is ``[B, D]``, and who wants the
density of a vector sums the last axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import ExampleKeys


class Normal(NamedTuple):
    """``N(mean, exp(log_scale)^2)`` in each element."""

    mean: Float[Array, "..."]
    log_scale: Float[Array, "..."]

    def log_prob(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """``-(x - mean)^2 / (2 s^2) - log s - log(2 pi) / 2``."""
        return (
            -0.5 * jnp.square((x - self.mean) * jnp.exp(-self.log_scale))
            - self.log_scale
            - 0.5 * math.log(2 * math.pi)
        )

    def at(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        """The sample that standard noise makes, ``mean + s e``: the reparametrisation of Kingma and Welling 2014,
        arXiv:1312.6114, sec. 2.4."""
        return self.mean + jnp.exp(self.log_scale) * noise


class Laplace(NamedTuple):
    """``Laplace(mean, exp(log_scale))`` in each element."""

    mean: Float[Array, "..."]
    log_scale: Float[Array, "..."]

    def log_prob(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """``-|x - mean| / b - log(2 b)``."""
        return -jnp.abs(x - self.mean) * jnp.exp(-self.log_scale) - self.log_scale - math.log(2.0)

    def at(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        """``mean + b e``."""
        return self.mean + jnp.exp(self.log_scale) * noise


Posterior = Normal | Laplace
FAMILIES: dict[str, Any] = {"normal": Normal, "laplace": Laplace}
_STANDARD: dict[Any, Callable] = {Normal: jax.random.normal, Laplace: jax.random.laplace}


def standard(of: Posterior) -> Posterior:
    """The distribution of that family with mean 0 and scale 1, in the same shape."""
    return type(of)(jnp.zeros_like(of.mean), jnp.zeros_like(of.mean))


def standard_noise(
    keys: ExampleKeys, name: str, shape: tuple[int, ...], family: type = Normal
) -> Float[Array, "..."]:
    """Standard noise for each example, ``[*shape[:-1], B, shape[-1]]``: the examples are the axis before the last."""
    draw = lambda key: _STANDARD[family](key, shape)
    return jnp.moveaxis(jax.vmap(draw)(fold_in_name(keys, name)), 0, -2)


def detached(of: Posterior) -> Posterior:
    """The same, constant under differentiation."""
    return jax.lax.stop_gradient(of)


def kl(q: Posterior, p: Posterior) -> Float[Array, "..."]:
    """``KL(q || p)`` of each element.

    Normal: ``log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2``. Laplace: ``log(b_p / b_q) + |d| / b_p +
    (b_q / b_p) exp(-|d| / b_q) - 1`` with ``d = m_q - m_p``.

    Raises:
      TypeError: of two families.
    """
    if type(q) is not type(p):
        raise TypeError(f"no closed form for a {type(q).__name__} against a {type(p).__name__}")
    ratio = q.log_scale - p.log_scale
    gap = q.mean - p.mean
    if isinstance(q, Normal):
        return 0.5 * (jnp.exp(2.0 * ratio) + jnp.square(gap * jnp.exp(-p.log_scale)) - 1.0) - ratio
    size = jnp.abs(gap)
    return size * jnp.exp(-p.log_scale) + jnp.exp(ratio - size * jnp.exp(-q.log_scale)) - 1.0 - ratio


def kl_bernoulli(q: Float[Array, "..."], p: Float[Array, "..."]) -> Float[Array, "..."]:
    """``KL(q || p)`` of Bernoulli distributions given by their logits."""
    chance = jax.nn.sigmoid(q)
    return chance * (jax.nn.log_sigmoid(q) - jax.nn.log_sigmoid(p)) + (1.0 - chance) * (
        jax.nn.log_sigmoid(-q) - jax.nn.log_sigmoid(-p)
    )


def kl_categorical(q: Float[Array, "*batch classes"], p: Float[Array, "*batch classes"]) -> Array:
    """``KL(q || p)`` of categorical distributions given by their logits; the last axis is summed."""
    log_q = jax.nn.log_softmax(q, axis=-1)
    return (jnp.exp(log_q) * (log_q - jax.nn.log_softmax(p, axis=-1))).sum(axis=-1)


def bernoulli_log_prob(logits: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x log sigmoid(l) + (1 - x) log sigmoid(-l)``; for x in [0, 1] not a density, but the usual reconstruction."""
    return x * jax.nn.log_sigmoid(logits) + (1.0 - x) * jax.nn.log_sigmoid(-logits)


def categorical_log_prob(logits: Float[Array, "*batch classes"], of: Int[Array, "*batch"]) -> Array:
    """``log softmax(logits)[of]``; a class outside the range takes the nearest one."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    classes = jnp.clip(of, 0, logits.shape[-1] - 1)
    return jnp.take_along_axis(log_p, classes[..., None], axis=-1)[..., 0]
