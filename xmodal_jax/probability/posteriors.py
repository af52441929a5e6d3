"""Posteriors of several modalities from one expert each, whichever of them are there.

Experts are a `Normal` or `Laplace` ``[M, B, D]``, ``present`` bool ``[M, B]``. A missing modality and one that a
subset leaves out are the same thing: a zero in a matrix, with a gradient of exactly zero to that expert.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.probability.distributions import Normal, Posterior
from xmodal_jax.types import ExampleKeys

_FARTHEST = 80.0
"""Log-precisions differ by no more than this from the largest one, so that float32 holds them all."""


def all_subsets(count: int, smallest: int = 1, largest: int | None = None) -> Bool[np.ndarray, "subsets m"]:
    """The subsets of ``count`` modalities with ``smallest`` to ``largest`` (all) members, by size and then in
    lexicographic order."""
    rows = []
    for size in range(smallest, (count if largest is None else largest) + 1):
        for members in itertools.combinations(range(count), size):
            rows.append([m in members for m in range(count)])
    return np.array(rows, bool).reshape(-1, count)


def only(q: Posterior, there: Bool[Array, "*rows batch"]) -> Posterior:
    """``q`` ``[*rows, B, D]`` where it is there, else mean 0 and scale 1, constant: even the gradient of a value that
    is not used must be finite, as 0 times infinity is not 0."""
    return jax.tree.map(lambda x: jnp.where(there[..., None], x, 0.0), q)


def product_of_experts(
    experts: Normal,
    present: Bool[Array, "m batch"],
    subsets: Float[Array, "subsets m"] | Bool[Array, "subsets m"],
    prior: Float[Array, "subsets batch"] | float = 0.0,
) -> Normal:
    r"""Of every subset the normalised product of its experts, ``[S, B, D]``.

    .. math:: T_S = w_S + \sum_m A_{Sm} T_m, \quad \mu_S = T_S^{-1} \sum_m A_{Sm} T_m \mu_m, \quad T = \sigma^{-2}

    (Wu and Goodman 2018, arXiv:1802.05335, sec. 2.2), as one product of the matrix ``A`` (``subsets``) with the
    precisions of all experts that are present. Entries of ``A`` need not be 0 or 1: weights that sum to 1 make the
    geometric mean. ``prior``: the weight ``w`` of N(0, 1) in each example's products. What has no expert and no
    prior is N(0, 1).
    """
    subsets = jnp.asarray(subsets, jnp.float32)
    prior = jnp.broadcast_to(jnp.asarray(prior, jnp.float32), (len(subsets), present.shape[1]))
    experts = only(experts, present)
    log_precision = jnp.where(present[:, :, None], -2.0 * experts.log_scale, -jnp.inf)
    # Everything relative to the most precise factor (1, the prior's, at least): nothing overflows.
    top = jnp.maximum(lax.stop_gradient(log_precision.max(axis=0)), 0.0)
    relative = jnp.clip(-2.0 * experts.log_scale - top[None], -_FARTHEST, None)
    precision = jnp.where(present[:, :, None], jnp.exp(relative), 0.0)
    located = precision * experts.mean
    of_prior = prior[:, :, None] * jnp.exp(jnp.clip(-top, -_FARTHEST, None))[None]
    total = jnp.einsum("sm,mbd->sbd", subsets, precision) + of_prior
    total_located = jnp.einsum("sm,mbd->sbd", subsets, located)
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    log_scale = jnp.where(some, -0.5 * (jnp.log(safe) + top[None]), 0.0)
    return Normal(jnp.where(some, total_located / safe, 0.0), log_scale)


def product(experts: Normal, there: Bool[Array, "*rows m batch"], prior: Normal | None = None) -> Normal:
    """The normalised product of those experts ``[*rows, M, B, D]`` that are ``there``, and of a prior ``[*rows, B,
    D]``: `product_of_experts` where each example has a subset of its own, or experts of its own in each row."""
    log_precision = jnp.where(there[..., None], -2.0 * experts.log_scale, -jnp.inf)
    top = lax.stop_gradient(log_precision.max(axis=-3))
    if prior is not None:
        top = jnp.maximum(top, lax.stop_gradient(-2.0 * prior.log_scale))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    relative = -2.0 * experts.log_scale - jnp.expand_dims(top, -3)
    precision = jnp.where(there[..., None], jnp.exp(jnp.where(there[..., None], relative, 0.0)), 0.0)
    total = precision.sum(axis=-3)
    located = (precision * experts.mean).sum(axis=-3)
    if prior is not None:
        of_prior = jnp.exp(-2.0 * prior.log_scale - top)
        total, located = total + of_prior, located + of_prior * prior.mean
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    log_scale = jnp.where(some, -0.5 * (jnp.log(safe) + top), 0.0)
    return Normal(jnp.where(some, located / safe, 0.0), log_scale)


def joint_product(experts: Normal, present: Bool[Array, "m batch"], prior: float = 0.0) -> Normal:
    """The product of all experts that are present and of the prior so weighted, ``[B, D]``."""
    all_of_them = jnp.ones((1, len(present)))
    return jax.tree.map(lambda x: x[0], product_of_experts(experts, present, all_of_them, prior))


def masked_log_mean_exp(x: Float[Array, "n *rest"], mask: Bool[Array, "n *rest"]) -> Float[Array, "*rest"]:
    """``log(1/|mask| sum_{mask} exp x)`` over the first axis; 0 where the mask holds nothing. What is masked has no
    influence and a gradient of zero."""
    top = jnp.where(mask, x, -jnp.inf).max(axis=0)
    top = lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    # Replaced before the exponential: the gradient of a branch not taken must be finite too.
    terms = jnp.where(mask, jnp.exp(jnp.where(mask, x - top[None], 0.0)), 0.0)
    count = mask.sum(axis=0)
    some = count > 0
    return jnp.where(
        some, jnp.log(jnp.where(some, terms.sum(axis=0), 1.0)) + top - jnp.log(jnp.maximum(count, 1)), 0.0
    )


def mixture_log_prob(
    experts: Posterior, present: Bool[Array, "m batch"], z: Float[Array, "*rows batch dim"]
) -> Float[Array, "*rows batch"]:
    """``log 1/n sum_m q_m(z)`` over the experts that are present (mixture of experts, Shi et al. 2019,
    arXiv:1911.03393, sec. 3.1)."""
    rows, experts = z.ndim - 2, only(experts, present)

    def of_one(expert, there):
        lift = lambda x: jnp.broadcast_to(x.reshape((1,) * rows + x.shape), z.shape)
        return jax.tree.map(lift, expert).log_prob(z).sum(axis=-1), jnp.broadcast_to(
            there.reshape((1,) * rows + there.shape), z.shape[:-1]
        )

    densities, mask = jax.vmap(of_one)(experts, present)
    return masked_log_mean_exp(densities, mask)


def choose(keys: ExampleKeys, name: str, allowed: Bool[Array, "options batch"]) -> Int[Array, "batch"]:
    """For each example one of the allowed options, each as likely; 0 where none is."""
    draw = jax.vmap(lambda key: jax.random.gumbel(key, (allowed.shape[0],)))(fold_in_name(keys, name))
    return jnp.where(allowed, draw.T, -jnp.inf).argmax(axis=0)


def choose_several(
    keys: ExampleKeys, name: str, allowed: Bool[Array, "options batch"], count: int
) -> Int[Array, "count batch"]:
    """For each example ``count`` different options, allowed ones first, each as likely."""
    draw = jax.vmap(lambda key: jax.random.gumbel(key, (allowed.shape[0],)))(fold_in_name(keys, name))
    return jnp.argsort(-jnp.where(allowed, draw.T, -jnp.inf), axis=0)[:count]


def pick(tree, index: Int[Array, "*rows batch"]):
    """Of arrays ``[S, B, ...]`` the row that each example chose, ``[*rows, B, ...]``."""
    examples = jnp.broadcast_to(
        jnp.arange(index.shape[-1]).reshape((1,) * (index.ndim - 1) + (-1,)), index.shape
    )
    return jax.tree.map(lambda x: x[index, examples], tree)
