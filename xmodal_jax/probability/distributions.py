"""Distributions as pairs of arrays: log-densities, samples and divergences, element by element and in nats.

No function here sums over dimensions or broadcasts silently: the log-density of ``[B, D]`` is ``[B, D]``; for the
log-density of vectors, sum the last axis.
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
    """``N(mean, exp(log_scale)^2)``, independent in each element."""

    mean: Float[Array, "..."]
    log_scale: Float[Array, "..."]

    def log_prob(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """``-(x - mean)^2 / (2 s^2) - log s - log(2 pi) / 2`` for each element, with ``s = exp(log_scale)``."""
        return (
            -0.5 * jnp.square((x - self.mean) * jnp.exp(-self.log_scale))
            - self.log_scale
            - 0.5 * math.log(2 * math.pi)
        )

    def reparametrize(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        """The sample ``mean + exp(log_scale) e`` for standard normal noise e (Kingma and Welling 2014, sec. 2.4)."""
        return self.mean + jnp.exp(self.log_scale) * noise


class Laplace(NamedTuple):
    """``Laplace(mean, exp(log_scale))``, independent in each element."""

    mean: Float[Array, "..."]
    log_scale: Float[Array, "..."]

    def log_prob(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """``-|x - mean| / b - log(2 b)`` for each element, with ``b = exp(log_scale)``."""
        return -jnp.abs(x - self.mean) * jnp.exp(-self.log_scale) - self.log_scale - math.log(2.0)

    def reparametrize(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        """The sample ``mean + exp(log_scale) e`` for standard Laplace noise e."""
        return self.mean + jnp.exp(self.log_scale) * noise


class StudentT(NamedTuple):
    """Student's t distribution with mean (for more than one degree of freedom), scale ``exp(log_scale)`` and the number
    of degrees of freedom, independent in each element. Its tails are heavier than those of a normal distribution, so
    that outliers cost less."""

    mean: Float[Array, "..."]
    log_scale: Float[Array, "..."]
    degrees: Float[Array, "..."] | float

    def log_prob(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """``log G((n + 1) / 2) - log G(n / 2) - log(n pi) / 2 - log s - (n + 1) / 2 log(1 + ((x - mean) / s)^2 / n)``
        for each element, with n degrees of freedom, ``s = exp(log_scale)`` and the gamma function G."""
        n, deviation = jnp.asarray(self.degrees), (x - self.mean) * jnp.exp(-self.log_scale)
        log_gamma = jax.scipy.special.gammaln
        return (
            log_gamma(0.5 * (n + 1.0))
            - log_gamma(0.5 * n)
            - 0.5 * jnp.log(n * math.pi)
            - self.log_scale
            - 0.5 * (n + 1.0) * jnp.log1p(jnp.square(deviation) / n)
        )


Posterior = Normal | Laplace
FAMILIES: dict[str, Any] = {"normal": Normal, "laplace": Laplace}
"""The families that a posterior can have, by name."""
_STANDARD_NOISE: dict[Any, Callable] = {Normal: jax.random.normal, Laplace: jax.random.laplace}


def standard_like(q: Posterior) -> Posterior:
    """The distribution of the same family and shape with mean 0 and scale 1."""
    return type(q)(jnp.zeros_like(q.mean), jnp.zeros_like(q.mean))


def standard_noise(
    keys: ExampleKeys, name: str, shape: tuple[int, ...], family: type = Normal
) -> Float[Array, "..."]:
    """Noise of mean 0 and scale 1, an array of ``shape`` for each of the B examples, drawn from the example's own key.

    The axis of the examples is the second to last one of the result: ``[*shape[:-1], B, shape[-1]]``. ``name`` enters
    the random keys; ``family`` is `Normal` or `Laplace`.
    """
    draw = lambda key: _STANDARD_NOISE[family](key, shape)
    return jnp.moveaxis(jax.vmap(draw)(fold_in_name(keys, name)), 0, -2)


def sample(q: Posterior, keys: ExampleKeys, name: str) -> Float[Array, "*rows batch dim"]:
    """One reparametrised sample of every distribution in ``q [*rows, B, D]``, from a random key for each example.

    ``name`` enters the random keys: samples with different names are independent.
    """
    shape = (*q.mean.shape[:-2], q.mean.shape[-1])
    return q.reparametrize(standard_noise(keys, name, shape, type(q)))


def repeat_leading(tree: Any, count: int) -> Any:
    """Repeats every array ``[...]`` of a pytree (such as a distribution) along a new first axis: ``[count, ...]``."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (count, *x.shape)), tree)


def detach(q: Posterior) -> Posterior:
    """The same distribution, constant under differentiation."""
    return jax.lax.stop_gradient(q)


def kl(q: Posterior, p: Posterior) -> Float[Array, "..."]:
    """``KL(q || p)`` of each element, in nats.

    Normal, with means m and standard deviations s: ``log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2``.
    Laplace, with scales b: ``log(b_p / b_q) + d / b_p + (b_q / b_p) exp(-d / b_q) - 1``, where ``d = |m_q - m_p|``.

    Raises:
      TypeError: if ``q`` and ``p`` are of different families.
    """
    if type(q) is not type(p):
        raise TypeError(f"no closed form for a {type(q).__name__} against a {type(p).__name__}")
    log_ratio = q.log_scale - p.log_scale  # log(s_q / s_p) or log(b_q / b_p)
    difference = q.mean - p.mean
    if isinstance(q, Normal):
        return (
            0.5 * (jnp.exp(2.0 * log_ratio) + jnp.square(difference * jnp.exp(-p.log_scale)) - 1.0)
            - log_ratio
        )
    d = jnp.abs(difference)
    return d * jnp.exp(-p.log_scale) + jnp.exp(log_ratio - d * jnp.exp(-q.log_scale)) - 1.0 - log_ratio


def kl_bernoulli(q: Float[Array, "..."], p: Float[Array, "..."]) -> Float[Array, "..."]:
    """``KL(q || p)`` of each element, in nats, for Bernoulli distributions whose logits are the arguments."""
    probability = jax.nn.sigmoid(q)
    return probability * (jax.nn.log_sigmoid(q) - jax.nn.log_sigmoid(p)) + (1.0 - probability) * (
        jax.nn.log_sigmoid(-q) - jax.nn.log_sigmoid(-p)
    )


def kl_categorical(q: Float[Array, "*batch classes"], p: Float[Array, "*batch classes"]) -> Array:
    """``KL(q || p)`` in nats, ``[*batch]``, of categorical distributions whose logits are the arguments."""
    log_q = jax.nn.log_softmax(q, axis=-1)
    return (jnp.exp(log_q) * (log_q - jax.nn.log_softmax(p, axis=-1))).sum(axis=-1)


def bernoulli_log_prob(logits: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x log sigmoid(l) + (1 - x) log sigmoid(-l)`` for each element with logit l, in nats.

    For x strictly between 0 and 1 this is no log-density but minus the binary cross-entropy, the usual reconstruction
    term.
    """
    return x * jax.nn.log_sigmoid(logits) + (1.0 - x) * jax.nn.log_sigmoid(-logits)


def categorical_log_prob(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Array:
    """``log softmax(logits)[label]``, ``[*batch]``, in nats; a label outside of 0..classes-1 counts as the nearest."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    classes = jnp.clip(labels, 0, logits.shape[-1] - 1)
    return jnp.take_along_axis(log_p, classes[..., None], axis=-1)[..., 0]
