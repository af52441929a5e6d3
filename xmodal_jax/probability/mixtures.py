"""Mixtures of distributions as posteriors of latents: densities, samples and divergences in nats."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.probability.distributions import Posterior, kl, sample
from xmodal_jax.probability.posteriors import select_per_example
from xmodal_jax.types import ExampleKeys


class Mixture(NamedTuple):
    """For each of B examples a mixture of K distributions of D independent dimensions; with K = 1 it is the one
    distribution itself."""

    components: Posterior
    """``[K, B, D]``."""
    log_weights: Float[Array, "components batch"]
    """The logarithms of the components' probabilities, which sum to 1; -inf: the component is absent."""

    def log_prob(self, z: Float[Array, "rows batch dim"]) -> Float[Array, "rows batch"]:
        """``log sum_k w_k q_k(z)``, for R latents z of each example."""

        def component_log_prob(component, log_weight):
            """``log w_k q_k(z)`` ``[R, B]`` of one component ``[B, D]``."""
            repeated = jax.tree.map(lambda x: jnp.broadcast_to(x[None], z.shape), component)
            return repeated.log_prob(z).sum(axis=-1) + log_weight[None]

        return jax.nn.logsumexp(jax.vmap(component_log_prob)(self.components, self.log_weights), axis=0)

    def sample(self, keys: ExampleKeys, name: str, count: int) -> Float[Array, "count batch dim"]:
        """``count`` samples of each example's mixture, from the example's key; ``name`` enters the random keys."""
        draw = lambda key, logits: jax.random.categorical(key, logits, shape=(count,))
        component = jax.vmap(draw)(
            fold_in_name(keys, f"{name}/component"), self.log_weights.T
        ).T  # [count, B]
        return sample(select_per_example(self.components, component), keys, name)


def as_mixture(q: Posterior) -> Mixture:
    """The distribution ``q [B, D]`` as a mixture of one component."""
    components = jax.tree.map(lambda x: x[None], q)
    return Mixture(components, jnp.zeros(components.mean.shape[:2]))


def kl_mixture(q: Mixture, p: Mixture, keys: ExampleKeys, *, samples: int) -> Float[Array, "batch"]:
    """``KL(q || p)`` of each example's latents, in nats.

    In closed form where both have one component of the same family. Else a Monte-Carlo estimate, unbiased, which may be
    negative: the mean of ``log q(z) - log p(z)`` over ``samples`` draws ``z ~ q`` from the examples' ``keys``; exactly
    0 where q and p are equal.
    """
    if len(q.log_weights) == len(p.log_weights) == 1 and type(q.components) is type(p.components):
        return kl(q.components, p.components).sum(axis=(0, 2))
    z = q.sample(keys, "kl", samples)
    return (q.log_prob(z) - p.log_prob(z)).mean(axis=0)
