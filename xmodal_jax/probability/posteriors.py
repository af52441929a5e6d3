"""Joint posteriors of several modalities: products and mixtures of one expert per modality, any of them missing.

The experts are a `Normal` or `Laplace` ``[M, B, D]``, ``present`` is bool ``[M, B]``. A missing modality and a modality
outside of a subset are treated alike: its precision is zero, and so is the gradient of its expert, exactly.
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

_MAX_GAP = 80.0
"""Log-precisions are clipped to this distance from the largest one, so that float32 holds them all."""


def all_subsets(count: int, smallest: int = 1, largest: int | None = None) -> Bool[np.ndarray, "subsets m"]:
    """All subsets of ``count`` modalities with ``smallest`` to ``largest`` (None: ``count``) members.

    Each row of the result marks the members of one subset. The subsets are ordered by size, and lexicographically
    within a size.
    """
    subsets = []
    for size in range(smallest, (count if largest is None else largest) + 1):
        for members in itertools.combinations(range(count), size):
            subsets.append([m in members for m in range(count)])
    return np.array(subsets, bool).reshape(-1, count)


def mask_experts(q: Posterior, present: Bool[Array, "*rows batch"]) -> Posterior:
    """``q [*rows, B, D]`` with mean 0 and scale 1, both constant, wherever ``present`` is False.

    Masking only the results later is not enough: where a missing expert is infinite, its gradient would be 0 times
    infinity, NaN.
    """
    return jax.tree.map(lambda x: jnp.where(present[..., None], x, 0.0), q)


def product_of_experts(
    experts: Normal,
    present: Bool[Array, "m batch"],
    subsets: Float[Array, "subsets m"] | Bool[Array, "subsets m"],
    prior: Float[Array, "subsets batch"] | float = 0.0,
) -> Normal:
    r"""The normalised product of the experts of each subset, ``[S, B, D]``.

    .. math:: T_S = w_S + \sum_m A_{Sm} T_m, \quad \mu_S = T_S^{-1} \sum_m A_{Sm} T_m \mu_m, \quad T = \sigma^{-2}

    (Wu and Goodman 2018, arXiv:1802.05335, sec. 2.2), where ``T_m`` and ``mu_m`` are the precision and mean of expert m
    and A is ``subsets``: all products are one matrix product of A with the precisions of the experts that are present.
    The entries of A need not be 0 or 1: weights that sum to 1 give the geometric mean. ``prior`` is ``w``, the weight
    of N(0, 1) in the product of each subset and example. A product of nothing is N(0, 1).
    """
    subsets = jnp.asarray(subsets, jnp.float32)
    prior = jnp.broadcast_to(jnp.asarray(prior, jnp.float32), (len(subsets), present.shape[1]))
    experts = mask_experts(experts, present)
    log_precision = jnp.where(present[:, :, None], -2.0 * experts.log_scale, -jnp.inf)
    # Precisions are relative to the largest one of an example and dimension (at least 1, that of the prior), so that
    # none overflows. The factor cancels in the mean, and the log-scale gets it back at the end.
    max_log_precision = jnp.maximum(lax.stop_gradient(log_precision.max(axis=0)), 0.0)
    relative = jnp.clip(-2.0 * experts.log_scale - max_log_precision[None], -_MAX_GAP, None)
    precision = jnp.where(present[:, :, None], jnp.exp(relative), 0.0)
    weighted_mean = precision * experts.mean
    prior_precision = prior[:, :, None] * jnp.exp(jnp.clip(-max_log_precision, -_MAX_GAP, None))[None]
    total = jnp.einsum("sm,mbd->sbd", subsets, precision) + prior_precision  # T_S
    total_mean = jnp.einsum("sm,mbd->sbd", subsets, weighted_mean)  # T_S mu_S
    nonempty = total > 0
    safe_total = jnp.where(nonempty, total, 1.0)
    log_scale = jnp.where(nonempty, -0.5 * (jnp.log(safe_total) + max_log_precision[None]), 0.0)
    return Normal(jnp.where(nonempty, total_mean / safe_total, 0.0), log_scale)


def masked_product(
    experts: Normal, mask: Bool[Array, "*rows m batch"], prior: Normal | None = None
) -> Normal:
    """The normalised product of the experts ``[*rows, M, B, D]`` under the mask, and of a prior ``[*rows, B, D]``.

    As `product_of_experts`, but the subset (``mask``) may differ between examples, and the experts between rows. A
    product of nothing is N(0, 1).
    """
    # Precisions are relative to the largest one of an example and dimension, as in product_of_experts.
    log_precision = jnp.where(mask[..., None], -2.0 * experts.log_scale, -jnp.inf)
    max_log_precision = lax.stop_gradient(log_precision.max(axis=-3))
    if prior is not None:
        max_log_precision = jnp.maximum(max_log_precision, lax.stop_gradient(-2.0 * prior.log_scale))
    max_log_precision = jnp.where(jnp.isfinite(max_log_precision), max_log_precision, 0.0)
    relative = -2.0 * experts.log_scale - jnp.expand_dims(max_log_precision, -3)
    precision = jnp.where(mask[..., None], jnp.exp(jnp.where(mask[..., None], relative, 0.0)), 0.0)
    total = precision.sum(axis=-3)  # the precision of the product
    total_mean = (precision * experts.mean).sum(axis=-3)  # precision times mean of the product
    if prior is not None:
        prior_precision = jnp.exp(-2.0 * prior.log_scale - max_log_precision)
        total, total_mean = total + prior_precision, total_mean + prior_precision * prior.mean
    nonempty = total > 0
    safe_total = jnp.where(nonempty, total, 1.0)
    log_scale = jnp.where(nonempty, -0.5 * (jnp.log(safe_total) + max_log_precision), 0.0)
    return Normal(jnp.where(nonempty, total_mean / safe_total, 0.0), log_scale)


def consensus_of_experts(experts: Normal, mask: Bool[Array, "*rows m batch"], correlation: float) -> Normal:
    r"""The consensus ``[*rows, B, D]`` of the dependent experts ``[*rows, M, B, D]`` under the mask, whose errors all
    have the same ``correlation`` rho with each other.

    .. math:: \mu = \frac{1^T C^{-1} m}{1^T C^{-1} 1}, \quad \sigma^2 = \frac{1}{1^T C^{-1} 1}, \quad
              C_{ij} = \sigma_i \sigma_j (\rho + (1 - \rho) [i = j])

    (Winkler 1981, Management Science 27(4); Mancisidor et al. 2025, arXiv:2505.01134), in each dimension, where ``m``
    and ``sigma`` are the means and scales of the n experts under the mask. For rho = 0 it is their product without a
    prior. For rho > 0 an expert that is much less certain than the others has a negative weight in the mean, and
    experts that agree in scale are together less certain than their product. A consensus of no expert is N(0, 1).

    ``correlation``: rho, at least 0 and below 1.
    """
    present = mask[..., None]
    # Scales are relative to the smallest one of an example and dimension, as in product_of_experts.
    log_inverse = jnp.where(present, -experts.log_scale, -jnp.inf)
    max_log_inverse = lax.stop_gradient(log_inverse.max(axis=-3))
    max_log_inverse = jnp.where(jnp.isfinite(max_log_inverse), max_log_inverse, 0.0)
    relative = jnp.where(present, -experts.log_scale - jnp.expand_dims(max_log_inverse, -3), 0.0)
    inverse_scale = jnp.where(present, jnp.exp(jnp.maximum(relative, -0.5 * _MAX_GAP)), 0.0)
    # C is a diagonal plus a matrix of rank one, so its inverse is known. With t = 1 / sigma, whose mean is T, the i-th
    # element of C^-1 1 is t_i ((t_i - T) / (1 - rho) + T / (1 + (n - 1) rho)), and their sum is the precision
    # sum_i (t_i - T)^2 / (1 - rho) + n T^2 / (1 + (n - 1) rho), in which nothing cancels.
    count = mask.sum(axis=-2).astype(jnp.float32)[..., None]  # n, [*rows, B, 1]
    mean_inverse = inverse_scale.sum(axis=-3) / jnp.maximum(count, 1.0)  # T
    deviation = jnp.where(present, inverse_scale - jnp.expand_dims(mean_inverse, -3), 0.0)
    of_all = mean_inverse / (1.0 + jnp.maximum(count - 1.0, 0.0) * correlation)
    precision = jnp.square(deviation).sum(axis=-3) / (1.0 - correlation) + count * mean_inverse * of_all
    weight = inverse_scale * (deviation / (1.0 - correlation) + jnp.expand_dims(of_all, -3))  # C^-1 1
    total_mean = (weight * jnp.where(present, experts.mean, 0.0)).sum(axis=-3)
    nonempty = count > 0
    safe_precision = jnp.where(nonempty, precision, 1.0)
    log_scale = jnp.where(nonempty, -0.5 * jnp.log(safe_precision) - max_log_inverse, 0.0)
    return Normal(jnp.where(nonempty, total_mean / safe_precision, 0.0), log_scale)


def joint_product(experts: Normal, present: Bool[Array, "m batch"], prior: float = 0.0) -> Normal:
    """The product ``[B, D]`` of all experts that are present, and of N(0, 1) with the weight ``prior``."""
    full_subset = jnp.ones((1, len(present)))
    product = product_of_experts(experts, present, full_subset, prior)  # [1, B, D]: of a single subset
    return jax.tree.map(lambda x: x[0], product)


def masked_log_mean_exp(x: Float[Array, "n *rest"], mask: Bool[Array, "n *rest"]) -> Float[Array, "*rest"]:
    """The log of the mean of ``exp x`` over the entries of the first axis under the mask; 0 where the mask is empty.

    Values outside of the mask have no influence, and a gradient of exactly zero.
    """
    maximum = jnp.where(mask, x, -jnp.inf).max(axis=0)
    maximum = lax.stop_gradient(jnp.where(jnp.isfinite(maximum), maximum, 0.0))
    # Values outside of the mask are replaced before the exponential too: the gradient of the branch of a `where` that
    # is not taken must be finite.
    terms = jnp.where(mask, jnp.exp(jnp.where(mask, x - maximum[None], 0.0)), 0.0)
    count = mask.sum(axis=0)
    nonempty = count > 0
    return jnp.where(
        nonempty,
        jnp.log(jnp.where(nonempty, terms.sum(axis=0), 1.0)) + maximum - jnp.log(jnp.maximum(count, 1)),
        0.0,
    )


def mixture_log_prob(
    experts: Posterior, present: Bool[Array, "m batch"], z: Float[Array, "*rows batch dim"]
) -> Float[Array, "*rows batch"]:
    """``log 1/n sum_m q_m(z)`` over the n experts that are present, for any number of latents z of each example.

    The log-density of the mixture of experts (Shi et al. 2019, arXiv:1911.03393, sec. 3.1). The experts are ``[M, B,
    D]``.
    """
    row_axes, experts = z.ndim - 2, mask_experts(experts, present)

    def expert_log_prob(expert, expert_present):
        """``(log q_m(z), mask)``, both ``[*rows, B]``, for one expert ``[B, D]`` and its presence ``[B]``."""
        to_shape_of_z = lambda x: jnp.broadcast_to(x.reshape((1,) * row_axes + x.shape), z.shape)
        log_prob = jax.tree.map(to_shape_of_z, expert).log_prob(z).sum(axis=-1)
        mask = jnp.broadcast_to(expert_present.reshape((1,) * row_axes + expert_present.shape), z.shape[:-1])
        return log_prob, mask

    log_probs, mask = jax.vmap(expert_log_prob)(experts, present)  # [M, *rows, B]
    return masked_log_mean_exp(log_probs, mask)


def draw_uniform_index(
    keys: ExampleKeys, name: str, allowed: Bool[Array, "options batch"]
) -> Int[Array, "batch"]:
    """For each example the index of one of its allowed options, drawn uniformly; 0 if none is allowed.

    ``name`` enters the random keys.
    """
    # The option with the largest random score: any independent and identically distributed scores would do.
    draw = jax.vmap(lambda key: jax.random.gumbel(key, (allowed.shape[0],)))
    scores = draw(fold_in_name(keys, name)).T  # [options, B]
    return jnp.where(allowed, scores, -jnp.inf).argmax(axis=0)


def draw_allowed(
    keys: ExampleKeys, name: str, allowed: Bool[Array, "options batch"], count: int
) -> Int[Array, "count batch"]:
    """For each example the indices of ``count`` different options, drawn uniformly from the allowed ones.

    If fewer than ``count`` are allowed, options that are not allowed fill the last places: look up ``allowed`` at the
    returned indices. ``name`` enters the random keys.
    """
    # The options with the largest random scores: any independent and identically distributed scores would do.
    draw = jax.vmap(lambda key: jax.random.gumbel(key, (allowed.shape[0],)))
    scores = draw(fold_in_name(keys, name)).T  # [options, B]
    return jnp.argsort(-jnp.where(allowed, scores, -jnp.inf), axis=0)[:count]


def select_per_example(tree, index: Int[Array, "*rows batch"]):
    """Selects along the first axis of arrays ``[S, B, ...]`` of a pytree: entry ``index[..., b]`` for each example b.

    Returns arrays ``[*rows, B, ...]``.
    """
    examples = jnp.broadcast_to(
        jnp.arange(index.shape[-1]).reshape((1,) * (index.ndim - 1) + (-1,)), index.shape
    )
    return jax.tree.map(lambda x: x[index, examples], tree)
