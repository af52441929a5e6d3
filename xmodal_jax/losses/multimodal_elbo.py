"""Objectives of multimodal VAEs, one function each: from the encoders' posteriors to a loss per example, in nats.

All take `ObjectiveInputs` and return `ObjectiveTerms`. A missing modality has no influence: the value is that of the
same objective over the modalities that are present, and the gradient of its encoder is exactly zero. Below,
``rec_m(z)`` stands for ``-log p(x_m | z)``, weighted, and 0 where x_m is missing; sums and means over modalities are
over those present. ``beta`` is the weight of the divergence, ``inputs`` are `ObjectiveInputs`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.losses.elbo import (
    ESTIMATORS,
    deferred_gradient_scale,
    doubly_reparametrized_bound,
    importance_bound,
)
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms, Weight
from xmodal_jax.probability.distributions import (
    Normal,
    Posterior,
    detach,
    kl,
    repeat_leading,
    sample,
    standard_like,
)
from xmodal_jax.probability.posteriors import (
    all_subsets,
    consensus_of_experts,
    draw_allowed,
    draw_uniform_index,
    joint_product,
    mask_experts,
    masked_product,
    mixture_log_prob,
    product_of_experts,
    select_per_example,
)
from xmodal_jax.types import ExampleKeys


def _sum_present(present: Bool[Array, "m batch"], x: Float[Array, "m batch"]) -> Float[Array, "batch"]:
    """The sum of x over the modalities that each example has."""
    return jnp.where(present, x, 0.0).sum(axis=0)


def _reconstruction_loss(
    inputs: ObjectiveInputs, z: Float[Array, "rows batch dim"]
) -> Float[Array, "rows batch"]:
    """``sum_m -log p(x_m | z)`` over the modalities that each example has, all decoded from the same R latents z."""
    # log_likelihood takes [M, R, B, D] and returns [M, R, B], with 0 where a modality is missing.
    return -inputs.log_likelihood(repeat_leading(z, len(inputs.present))).sum(axis=0)


def _kl_joint_to_experts(inputs: ObjectiveInputs, q: Posterior) -> Float[Array, "batch"]:
    """``sum_m KL(q || q_m)`` over the modalities present, of a joint posterior q ``[B, D]`` and the experts q_m."""
    repeated = repeat_leading(q, len(inputs.present))
    return _sum_present(inputs.present, kl(repeated, inputs.experts).sum(axis=-1))


def joint_elbo(inputs: ObjectiveInputs, *, beta: Weight = 1.0) -> ObjectiveTerms:
    """``sum_m rec_m(z) + beta KL(q || p)``, z drawn from the posterior q of the joint encoder.

    ``rec_m(z)`` is ``-log p(x_m | z)``, 0 where x_m is missing. The first stage of TELBO (Vedantam et al. 2018) and JNF
    (Senellart et al. 2025).
    """
    z = sample(inputs.posterior, inputs.keys, "joint")
    rec = _reconstruction_loss(inputs, z[None])[0]  # one latent for each example: R = 1
    divergence = inputs.kl_to_prior(inputs.posterior, inputs.present.any(axis=0))
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def jmvae(inputs: ObjectiveInputs, *, beta: Weight = 1.0, alpha: float = 0.1) -> ObjectiveTerms:
    """`joint_elbo` ``+ beta alpha sum_m KL(q || q_m)``: JMVAE (Suzuki et al. 2016, arXiv:1611.01891, eq. 5).

    q is the posterior of the joint encoder, q_m that of modality m's encoder; absent modalities are left out.
    """
    terms = joint_elbo(inputs, beta=beta)
    to_experts = _kl_joint_to_experts(inputs, inputs.posterior)
    return ObjectiveTerms(
        terms.loss + beta * alpha * to_experts, terms.metrics | {"kl_joint_to_experts": to_experts}
    )


def unimodal_elbos(inputs: ObjectiveInputs, *, beta: Weight = 1.0) -> ObjectiveTerms:
    """``sum_m [-log p(x_m | z_m) + beta KL(q_m || p)]``, z_m drawn from modality m's posterior q_m.

    The second stage of TELBO (Vedantam et al. 2018, arXiv:1705.10762, eq. 4), in which the decoders are frozen.
    """
    z = sample(inputs.experts, inputs.keys, "experts")  # [M, B, D]
    # One latent for each example (R = 1); the likelihood is 0 where a modality is missing.
    rec = -inputs.log_likelihood(z[:, None])[:, 0].sum(axis=0)
    divergence = _sum_present(inputs.present, inputs.kl_to_prior(inputs.experts, inputs.present))
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mvae(
    inputs: ObjectiveInputs, *, beta: Weight = 1.0, subsets: int = 1, single: bool = True
) -> ObjectiveTerms:
    """``sum_S [sum_{m in S} -log p(x_m | z_S) + beta KL(q_S || p)]``: MVAE (Wu and Goodman 2018, arXiv:1802.05335,
    eq. 2 and 4), where ``q_S`` is proportional to ``p(z) prod_{m in S} q_m(z)`` and ``z_S`` is drawn from it.

    The subsets S are: the set of all modalities; each modality alone (if ``single``); and ``subsets`` different sets of
    2 to M - 1 modalities, drawn anew for each example (or all such sets, if there are fewer).
    """
    present = inputs.present
    members = _mvae_subsets(inputs, subsets, single)  # [S, M, B]
    experts = repeat_leading(inputs.experts, len(members))
    zeros = jnp.zeros(
        (len(members), *inputs.experts.mean.shape[1:])
    )  # mean and log-scale of N(0, 1), [S, B, D]
    q = masked_product(experts, members, prior=Normal(zeros, zeros))  # [S, B, D]; the prior is N(0, 1)
    z = sample(q, inputs.keys, "products")
    modality_count = len(present)
    # latents [M, R, B, D]: the R latents from which each modality is decoded; targets [M, R, B]: which of them count.
    if single:
        # A modality is decoded only from subsets that it belongs to. So the M unimodal subsets take one of the R
        # places together: there modality m is decoded from its own unimodal posterior.
        unimodal = z[1 : 1 + modality_count, None]
        full = repeat_leading(z[:1], modality_count)
        drawn = repeat_leading(z[1 + modality_count :], modality_count)
        latents = jnp.concatenate([full, unimodal, drawn], axis=1)
        targets = jnp.concatenate(
            [present[:, None], present[:, None], jnp.moveaxis(members[1 + modality_count :], 0, 1)], axis=1
        )
    else:
        latents, targets = repeat_leading(z, modality_count), jnp.moveaxis(members, 0, 1)
    rec = -jnp.where(targets, inputs.log_likelihood(latents), 0.0).sum(axis=(0, 1))
    nonempty = members.any(axis=1)
    divergence = jnp.where(nonempty, inputs.kl_to_prior(q, nonempty), 0.0).sum(axis=0)
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def _mvae_subsets(inputs: ObjectiveInputs, subsets: int, single: bool) -> Bool[Array, "s m batch"]:
    """Which modalities each subset of `mvae` holds for each example: all modalities, each one alone, random subsets.

    Missing modalities are left out. A random subset is empty where an example has no such subset left to draw.
    """
    present, modality_count = inputs.present, len(inputs.present)
    members = [present[None]]
    if single:
        members.append(jnp.eye(modality_count, dtype=bool)[:, :, None] & present[None])
    # Bool [subsets, M]: those with more than one modality, but not all.
    partial_subsets = jnp.asarray(all_subsets(modality_count, smallest=2, largest=modality_count - 1))
    if subsets and len(partial_subsets):
        # An example allows a subset if it has all its members, and further modalities besides.
        has_members = (present[None] | ~partial_subsets[:, :, None]).all(axis=1)
        allowed = has_members & (partial_subsets.sum(axis=1)[:, None] < present.sum(axis=0)[None])
        drawn = draw_allowed(inputs.keys, "subsets", allowed, min(subsets, len(partial_subsets)))
        drawn_allowed = jnp.take_along_axis(
            allowed, drawn, axis=0
        )  # False where fewer than `subsets` are allowed
        members.append(jnp.moveaxis(partial_subsets[drawn], -1, 1) & drawn_allowed[:, None])
    return jnp.concatenate(members)


def mopoe(
    inputs: ObjectiveInputs,
    *,
    beta: Weight = 1.0,
    subsets: Bool[Any, "subsets m"] | None = None,
    prior: str = "full",
) -> ObjectiveTerms:
    """``sum_m -log p(x_m | z) + beta / |P| sum_{S in P} KL(q_S || p)``: MoPoE (Sutter et al. 2021, arXiv:2105.02470,
    eq. 5 and 7).

    ``q_S`` is the product of the experts of the subset S. For each example, one S of P is drawn uniformly and z from
    its ``q_S``.

    Args:
      inputs: see `ObjectiveInputs`.
      beta: weight of the divergence.
      subsets: P, one row of booleans for each subset (None: all subsets). For each example, only subsets whose members
        are all present count.
      prior: which products ``q_S`` include the prior as one more expert: "never" any, "always" all of them, or "full":
        only the product of all modalities that an example has, as in the authors' code.
    Raises:
      ValueError: if ``prior`` is none of these.
    """
    subsets = all_subsets(len(inputs.present)) if subsets is None else subsets
    if prior not in ("never", "always", "full"):
        raise ValueError(f"prior must be 'never', 'always' or 'full', got {prior!r}")
    members = jnp.asarray(subsets)[:, :, None]  # [S, M, 1], against present [1, M, B]
    allowed = (inputs.present[None] | ~members).all(axis=1)  # [S, B]: the example has all members
    is_full = (members == inputs.present[None]).all(axis=1)
    prior_weight = {"never": 0.0, "always": 1.0, "full": is_full.astype(jnp.float32)}[prior]
    q = product_of_experts(inputs.experts, inputs.present, jnp.asarray(subsets), prior_weight)  # [S, B, D]
    subset = draw_uniform_index(inputs.keys, "subset", allowed)  # [B], one of the allowed subsets
    z = sample(select_per_example(q, subset), inputs.keys, "product")
    rec = _reconstruction_loss(inputs, z[None])[0]  # one latent for each example: R = 1
    divergences = jnp.where(allowed, inputs.kl_to_prior(q, allowed), 0.0)
    divergence = divergences.sum(axis=0) / jnp.maximum(allowed.sum(axis=0), 1)
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mmjsd(inputs: ObjectiveInputs, *, beta: Weight = 1.0) -> ObjectiveTerms:
    r"""``sum_m -log p(x_m | z) + beta JS(q_1, ..., q_M, p)``: mmJSD (Sutter et al. 2020, arXiv:2006.08242, eq. 7-9).

    z is a sample of one expert, drawn uniformly for each example. The divergence is ``sum_v KL(q_v || f) / (M + 1)``
    over the M experts and the prior. The dynamic prior ``f`` is their geometric mean: the product of experts and prior
    with a variance ``M + 1`` times as large.
    """
    weight = 1.0 / (inputs.num_present + 1.0)  # M counts the modalities that an example has
    product = joint_product(inputs.experts, inputs.present, prior=1.0)
    # log s_f = log s_product + log(M + 1) / 2.
    dynamic_prior = Normal(product.mean, product.log_scale - 0.5 * jnp.log(weight)[:, None])
    divergences = kl(inputs.experts, repeat_leading(dynamic_prior, len(inputs.present))).sum(axis=-1)
    prior_divergence = kl(standard_like(dynamic_prior), dynamic_prior).sum(axis=-1)
    divergence = weight * (_sum_present(inputs.present, divergences) + prior_divergence)
    expert = draw_uniform_index(inputs.keys, "expert", inputs.present)
    z = sample(select_per_example(inputs.experts, expert), inputs.keys, "experts")
    rec = _reconstruction_loss(inputs, z[None])[0]  # one latent for each example: R = 1
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mvtcae(inputs: ObjectiveInputs, *, beta: Weight = 2.5, alpha: float = 0.1) -> ObjectiveTerms:
    """``(M - alpha) / M sum_m rec_m(z) + beta [(1 - alpha) KL(q || p) + alpha / M sum_m KL(q || q_m)]``: MVTCAE (Hwang
    et al. 2021, NeurIPS, eq. 8).

    ``rec_m(z)`` is ``-log p(x_m | z)``, z a sample of q, the product of the experts ``q_m``. M counts the modalities
    that an example has; absent ones are left out.
    """
    q = joint_product(inputs.experts, inputs.present)
    z = sample(q, inputs.keys, "product")
    rec = _reconstruction_loss(inputs, z[None])[0]  # one latent for each example: R = 1
    divergence = inputs.kl_to_prior(q, inputs.present.any(axis=0))
    to_experts = _kl_joint_to_experts(inputs, q)
    count = inputs.num_present
    loss = (count - alpha) / count * rec + beta * ((1 - alpha) * divergence + alpha / count * to_experts)
    return ObjectiveTerms(loss, {"reconstruction": rec, "kl": divergence, "kl_joint_to_experts": to_experts})


def crmvae(inputs: ObjectiveInputs, *, beta: Weight = 1.0) -> ObjectiveTerms:
    """``1 / (M + 1) [sum_m rec_m(z) + sum_m rec_m(z_m)] + beta / (M + 1) [KL(q || p) + sum_m KL(q || q_m)]``: CRMVAE
    (Suzuki and Matsuo 2023, openreview Rn8u4MYgeNJ, eq. 9).

    ``rec_m(z)`` is ``-log p(x_m | z)``; z is a sample of q, the product of experts, and ``z_m`` one of expert ``q_m``.
    M counts the modalities that an example has; absent ones are left out.
    """
    q = joint_product(inputs.experts, inputs.present)
    z_joint = repeat_leading(sample(q, inputs.keys, "product"), len(inputs.present))
    # [M, 2, B, D]: each modality is decoded from the joint and from its unimodal latents.
    z = jnp.stack([z_joint, sample(inputs.experts, inputs.keys, "experts")], axis=1)
    rec = -inputs.log_likelihood(z).sum(axis=(0, 1))  # log_likelihood is 0 where a modality is missing
    divergence = inputs.kl_to_prior(q, inputs.present.any(axis=0))
    to_experts = _kl_joint_to_experts(inputs, q)
    loss = (rec + beta * (divergence + to_experts)) / (inputs.num_present + 1.0)
    return ObjectiveTerms(loss, {"reconstruction": rec, "kl": divergence, "kl_joint_to_experts": to_experts})


def dmvae(inputs: ObjectiveInputs, *, beta: Weight = 1.0, private_beta: float = 1.0) -> ObjectiveTerms:
    """``sum_q [sum_m -log p(x_m | z_q, w_m) + beta KL(q || p) + private_beta sum_m KL(q(w_m | x_m) || p)]``: DMVAE (Lee
    and Pavlovic 2021, CVPRW, eq. 6).

    The outer sum is over M + 1 posteriors q of the shared variables: the product of experts and prior, and each expert
    alone. ``z_q`` is a sample of q; the private variables ``w_m`` of modality m are drawn anew for each q.
    """
    modality_count = len(inputs.present)
    product = joint_product(inputs.experts, inputs.present, prior=1.0)
    # [M + 1, B, D]: the product, then the experts.
    q = jax.tree.map(lambda joint, experts: jnp.concatenate([joint[None], experts]), product, inputs.experts)
    q_present = jnp.concatenate([inputs.present.any(axis=0)[None], inputs.present])  # [M + 1, B]
    posterior_count = len(q_present)
    # [M, M + 1, B, P]: the private posterior of each modality, once for each q.
    private = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:, None], (modality_count, posterior_count, *x.shape[1:])),
        inputs.private,
    )
    shared_latents = repeat_leading(sample(q, inputs.keys, "shared"), modality_count)
    latents = jnp.concatenate([shared_latents, sample(private, inputs.keys, "private")], axis=-1)
    rec = -jnp.where(q_present[None], inputs.log_likelihood(latents), 0.0).sum(axis=(0, 1))
    divergence = jnp.where(q_present, inputs.kl_to_prior(q, q_present), 0.0).sum(axis=0)
    private_kl = kl(inputs.private, standard_like(inputs.private)).sum(axis=-1)
    private_divergence = _sum_present(inputs.present, private_kl) * q_present.sum(axis=0)  # once for each q
    loss = rec + beta * divergence + private_beta * private_divergence
    return ObjectiveTerms(loss, {"reconstruction": rec, "kl": divergence, "kl_private": private_divergence})


def mmvae(
    inputs: ObjectiveInputs, *, beta: Weight = 1.0, samples: int = 1, estimator: str = "iwae"
) -> ObjectiveTerms:
    r"""``-1/M sum_m log 1/K sum_k w_mk`` with ``log w_mk = log p(x_1..M | z) + beta (log p(z) - log q(z | x_1..M))``,
    where z is sample k of expert m and q the mixture of experts: MMVAE (Shi et al. 2019, arXiv:1911.03393, eq. 3 and
    appendix A).

    With private variables it is MMVAE+ (Palumbo et al. 2023, openreview sdQGxouELX, eq. 6): a private latent ``u_m`` is
    drawn from the private posterior of modality m, and ``beta (log p(u_m) - log q(u_m | x_m))`` is added to ``log
    w_mk``. Modality m is decoded with this latent, any other modality with one from its auxiliary prior
    (``inputs.prior.auxiliary``). With a mixture over clusters c as prior of z it is
    CMVAE (Palumbo et al. 2024, openreview k5THrhXDV3, eq. 7). The paper has ``sum_c q(c | z) log [p(c) p(z | c) /
    q(c | z)]`` in place of ``log p(z)``; for the exact posterior ``q(c | z) = p(c | z)`` both are equal.

    With ``estimator="dreg"`` the gradient with respect to a posterior is the doubly reparametrized gradient of each
    expert's samples, with the mixture's parameters held constant; for beta = 1 it is that of the papers' code, which
    has the same weights for every beta. For an example with one modality it is unbiased. With several it is biased,
    since each sample is drawn from one expert but weighted by the density of the mixture; ``"iwae"`` is unbiased, with
    a larger variance.

    Args:
      inputs: see `ObjectiveInputs`.
      beta: weight of the ratio of densities.
      samples: K, for each expert.
      estimator: of the gradient, one of `losses.elbo.ESTIMATORS`.
    Raises:
      ValueError: if there is no such estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
    modality_count, batch = inputs.present.shape
    dreg = estimator == "dreg"
    shared, private, gradient_probes = _mmvae_samples(inputs, samples, dreg=dreg)
    # [K, M, B]: log p(z) - log q(z | x_1..M); DReG takes the densities of the detached posterior.
    mixture = mixture_log_prob(detach(inputs.experts) if dreg else inputs.experts, inputs.present, shared)
    ratio = inputs.prior.log_prob(shared) - mixture
    latents = repeat_leading(shared, modality_count)  # [M, K, M, B, D]: target, sample, source
    if private is not None:
        posterior = detach(inputs.private) if dreg else inputs.private
        ratio = ratio + _private_log_prob(inputs.prior.private, private)
        ratio = ratio - repeat_leading(posterior, samples).log_prob(private).sum(axis=-1)
        latents = jnp.concatenate([latents, _private_latents(inputs, private)], axis=-1)
    # The likelihood takes all latents of a target on one axis: [M, K M, B, D].
    target_latents = latents.reshape(modality_count, samples * modality_count, batch, latents.shape[-1])
    log_likelihood = inputs.log_likelihood(target_latents).sum(axis=0).reshape(samples, modality_count, batch)
    beta = jnp.broadcast_to(beta, (batch,))[None, None]  # [1, 1, B], for [K, M, B]
    log_weights = log_likelihood + beta * ratio
    if dreg:
        bound = doubly_reparametrized_bound(log_weights, *gradient_probes, beta=beta)
    else:
        bound = importance_bound(log_weights)
    loss = -_sum_present(inputs.present, bound) / inputs.num_present
    # The mean [B] of values [K, M, B] over the samples and over the experts of the modalities present.
    mean = lambda x: lax.stop_gradient(_sum_present(inputs.present, x.mean(axis=0)) / inputs.num_present)
    return ObjectiveTerms(loss, {"reconstruction": -mean(log_likelihood), "kl": -mean(ratio)})


def _mmvae_samples(inputs: ObjectiveInputs, samples: int, *, dreg: bool):
    """``(shared [K, M, B, D], private [K, M, B, P] or None, gradient_probes)``: K samples of each posterior.

    The gradient probes are those of `deferred_gradient_scale` for the estimator DReG, else an empty list.
    """
    gradient_probes = []
    # K before M, so that the first sample of each expert is what K = 1 would draw.
    shared = sample(repeat_leading(inputs.experts, samples), inputs.keys, "shared")
    private = None
    if inputs.private is not None:
        private = sample(repeat_leading(inputs.private, samples), inputs.keys, "private")
    if dreg:
        # Shared and private latents of a sample have the same importance weight, and so the same probes.
        both = shared if private is None else jnp.concatenate([shared, private], axis=-1)
        both, *gradient_probes = deferred_gradient_scale(both)
        shared, private = (
            both[..., : shared.shape[-1]],
            None if private is None else both[..., shared.shape[-1] :],
        )
    return shared, private, gradient_probes


def _private_log_prob(prior: Posterior, w: Float[Array, "*rows private"]) -> Float[Array, "*rows"]:
    """``log p(w)`` of private latents under a prior ``[P]`` that is the same for all of them."""
    to_shape_of_w = lambda x: jnp.broadcast_to(x.reshape((1,) * (w.ndim - 1) + x.shape), w.shape)
    return jax.tree.map(to_shape_of_w, prior).log_prob(w).sum(axis=-1)


def _private_latents(
    inputs: ObjectiveInputs, private: Float[Array, "k sources batch private"]
) -> Float[Array, "targets k sources batch private"]:
    """The private latents with which each target modality is decoded, for shared latents of each source modality.

    Where target and source are the same modality, the private latents are the sample ``private`` of its posterior. Any
    other target takes a sample of its auxiliary prior: its private information is not to come from the source.
    """
    modality_count = len(inputs.present)
    # The auxiliary prior [M, P] of each target, for every sample, source and example: [M, K, M, B, P].
    to_all = lambda x: jnp.broadcast_to(x[:, None, None, None], (modality_count, *private.shape))
    auxiliary = sample(jax.tree.map(to_all, inputs.prior.auxiliary), inputs.keys, "auxiliary")
    is_source = jnp.eye(modality_count, dtype=bool)[:, None, :, None, None]
    return jnp.where(is_source, private[None], auxiliary)


def mmvm(
    inputs: ObjectiveInputs, *, beta: Weight = 1.0, alpha: float = 0.0, kl_samples: int = 0
) -> ObjectiveTerms:
    """``sum_m [-log p(x_m | z_m) + beta KL(q_m || h)]``, ``z_m`` drawn from modality m's posterior q_m: MMVM (Sutter et
    al. 2024, arXiv:2403.05300), a VAE for each modality whose prior h is the mixture of the posteriors of all.

    ``h = alpha N(0, 1) + (1 - alpha) / M sum_k q_k``, where M counts the modalities that an example has and absent ones
    are left out. For alpha = 0 the sum of divergences is M times the Jensen-Shannon divergence of the posteriors.

    Args:
      inputs: see `ObjectiveInputs`.
      beta: weight of the divergence.
      alpha: weight of N(0, 1) in the mixture, from 0 to 1.
      kl_samples: samples of each ``q_m`` that estimate ``KL(q_m || h)``, without bias. 0: its closed-form upper bound
        ``alpha KL(q_m || N(0, 1)) + (1 - alpha) / M sum_k KL(q_m || q_k)``, as the divergence is convex in h; the
        authors' code minimises this bound.
    """
    experts = mask_experts(inputs.experts, inputs.present)
    z = sample(experts, inputs.keys, "experts")  # [M, B, D]
    # One latent for each example (R = 1); the likelihood is 0 where a modality is missing.
    rec = -inputs.log_likelihood(z[:, None])[:, 0].sum(axis=0)
    if kl_samples:
        draws = sample(repeat_leading(experts, kl_samples), inputs.keys, "divergence")  # [K, M, B, D]
        log_q = repeat_leading(experts, kl_samples).log_prob(draws).sum(axis=-1)
        divergences = (log_q - _log_mixed_prior(inputs, draws, alpha)).mean(axis=0)
    else:
        count = len(inputs.present)
        of_m = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (count, *x.shape)), experts)
        pairs = kl(of_m, repeat_leading(experts, count)).sum(axis=-1)  # KL(q_m || q_k), [M, M, B]
        to_each = jnp.where(inputs.present[None], pairs, 0.0).sum(axis=1) / inputs.num_present[None]
        to_standard = kl(experts, standard_like(experts)).sum(axis=-1)
        divergences = alpha * to_standard + (1.0 - alpha) * to_each
    divergence = _sum_present(inputs.present, divergences)
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def _log_mixed_prior(
    inputs: ObjectiveInputs, z: Float[Array, "*rows batch dim"], alpha: float
) -> Float[Array, "*rows batch"]:
    """``log h(z)`` of `mmvm`, where ``h = alpha N(0, 1) + (1 - alpha) / M sum_k q_k`` over the modalities present."""
    standard = standard_like(Normal(z, z)).log_prob(z).sum(axis=-1)
    if alpha == 1.0:
        return standard
    of_experts = mixture_log_prob(inputs.experts, inputs.present, z)
    if not alpha:
        return of_experts
    return jnp.logaddexp(math.log(alpha) + standard, math.log1p(-alpha) + of_experts)


def code_vae(
    inputs: ObjectiveInputs,
    subset_logits: Float[Array, "subsets"],
    *,
    beta: Weight = 1.0,
    correlation: float = 0.5,
    entropy_weight: float = 1000.0,
    subsets: int = 0,
) -> ObjectiveTerms:
    """``sum_S w_S [sum_m rec_m(z_S) + beta KL(q_S || p)] - entropy_weight H(w)``: CoDE-VAE (Mancisidor et al. 2025,
    arXiv:2505.01134), ELBOs of all subsets S of the modalities, whose weights w are learned.

    ``rec_m(z_S)`` is ``-log p(x_m | z_S)``, of all modalities that the example has. ``q_S`` is the consensus of the
    experts of S, `consensus_of_experts`, and ``z_S`` a sample of it. w is the softmax of ``subset_logits`` over the
    subsets whose members are all present in the example, and H its entropy: without it the weights would all go to the
    subset with the largest ELBO. With it, the best ones are ``w_S`` proportional to ``exp(ELBO_S / entropy_weight)``.

    Args:
      inputs: see `ObjectiveInputs`.
      subset_logits: one for each subset, in the order of `all_subsets`.
      beta: weight of the divergence.
      correlation: of the experts' errors, see `consensus_of_experts`.
      entropy_weight: weight of the entropy of w, in nats of the ELBO; 1000 in the authors' code.
      subsets: number of random subsets of each example whose reconstructions are computed; they stand for those of all
        subsets, without bias. 0: all are computed.
    """
    all_members = jnp.asarray(all_subsets(len(inputs.present)))  # [S, M]
    # [S, B]: the example has all modalities of the subset.
    allowed = (inputs.present[None] | ~all_members[:, :, None]).all(axis=1)
    log_weights = _log_subset_weights(subset_logits, allowed)
    weights = jnp.where(allowed, jnp.exp(log_weights), 0.0)
    members = all_members[:, :, None] & inputs.present[None]
    q = consensus_of_experts(repeat_leading(inputs.experts, len(members)), members, correlation)  # [S, B, D]
    divergences = jnp.where(allowed, inputs.kl_to_prior(q, allowed), 0.0)
    divergence = (weights * divergences).sum(axis=0)
    rec_weights = weights
    if subsets and subsets < len(all_members):
        drawn = draw_allowed(inputs.keys, "subsets", allowed, subsets)  # [R, B]
        q, rec_weights = select_per_example(q, drawn), jnp.take_along_axis(weights, drawn, axis=0)
        # Each of the n allowed subsets is among the drawn ones with the probability min(R, n) / n.
        count = allowed.sum(axis=0)
        rec_weights = rec_weights * (count / jnp.clip(count, 1, subsets))[None]
    rec = (rec_weights * _reconstruction_loss(inputs, sample(q, inputs.keys, "subsets"))).sum(axis=0)
    entropy = -(weights * log_weights).sum(axis=0)
    return ObjectiveTerms(
        rec + beta * divergence - entropy_weight * entropy,
        {"reconstruction": rec, "kl": divergence, "subset_entropy": entropy},
    )


def _log_subset_weights(
    logits: Float[Array, "subsets"], allowed: Bool[Array, "subsets batch"]
) -> Float[Array, "subsets batch"]:
    """The logarithms of the softmax of the logits over each example's allowed subsets; 0 where a subset is not
    allowed, and there the logit has a gradient of exactly zero."""
    # The softmax of an example without any allowed subset is over all of them, so that it is a number.
    counted = allowed | ~allowed.any(axis=0, keepdims=True)
    log_weights = jax.nn.log_softmax(jnp.where(counted, logits[:, None], -jnp.inf), axis=0)
    return jnp.where(allowed, log_weights, 0.0)


def flow_match(inputs: ObjectiveInputs) -> ObjectiveTerms:
    """``-sum_m log q_m(z)`` for z of the frozen joint encoder: the second stage of JNF (Senellart et al. 2025,
    arXiv:2502.03952, eq. 8), which fits each modality's normalizing flow.

    ``log q_m(z) = log N(z_0; expert m) + log_det``, where ``inputs.networks.flow(z [B, D])`` returns ``z_0 [M, B, D]``,
    z in the base space of each modality's flow, and the log-determinant of its Jacobian, ``[M, B]``.
    """
    z = lax.stop_gradient(sample(inputs.posterior, inputs.keys, "joint"))
    base, log_det = inputs.networks.flow(z)
    loss = -_sum_present(inputs.present, inputs.experts.log_prob(base).sum(axis=-1) + log_det)
    return ObjectiveTerms(loss, {"flow": loss})


def nexus(
    inputs: ObjectiveInputs,
    *,
    beta: Weight = 1.0,
    top_beta: float = 1.0,
    gamma: float = 1.0,
    dropout: float = 0.0,
) -> ObjectiveTerms:
    """Unimodal ELBOs, and one ELBO of their latents under a top-level latent z: Nexus (Vasco et al. 2022, Neural
    Networks 146, eq. 5-8).

    ``sum_m [rec_m(z_m) + beta KL(q_m || p)] + gamma sum_m [-log N(sg(z_m); t_m(z), 1)] + beta top_beta KL(q || p)``,
    where ``rec_m(z_m)`` is ``-log p(x_m | z_m)``, sg stops the gradient, and q is computed from the mean of the
    messages ``message(sg(z_m))`` of the modalities that are present, or, with probability ``dropout``, of a random part
    of them (`modality_dropout`).

    ``inputs.networks`` has three networks: ``message [M, B, D] -> [M, B, H]``, ``encode_top [B, H] -> Normal [B, T]``
    for q, and ``decode_top [B, T] -> [M, B, D]``, the means t_m(z).
    """
    networks = inputs.networks
    latents = sample(inputs.experts, inputs.keys, "experts")  # [M, B, D]
    # One latent for each example (R = 1); log_likelihood is 0 where a modality is missing.
    rec = -inputs.log_likelihood(latents[:, None])[:, 0].sum(axis=0)
    divergence = _sum_present(inputs.present, inputs.kl_to_prior(inputs.experts, inputs.present))
    latents = lax.stop_gradient(latents)
    messages = networks.message(latents)
    encoded_mask = modality_dropout(inputs.keys, inputs.present, dropout)
    q = networks.encode_top(mean_message(messages, encoded_mask))
    decoded = Normal(networks.decode_top(sample(q, inputs.keys, "top")), jnp.zeros_like(latents))
    latent_loss = -_sum_present(inputs.present, decoded.log_prob(latents).sum(axis=-1))
    top_divergence = inputs.kl_to_prior(q, inputs.present.any(axis=0))
    loss = rec + beta * divergence + gamma * latent_loss + beta * top_beta * top_divergence
    metrics = {"reconstruction": rec, "kl": divergence, "codes": latent_loss, "kl_top": top_divergence}
    return ObjectiveTerms(loss, metrics)


def mean_message(
    messages: Float[Array, "m batch dim"], mask: Bool[Array, "m batch"]
) -> Float[Array, "batch dim"]:
    """The mean over the modalities under the mask, for each example; 0 where the mask is empty."""
    total = jnp.where(mask[:, :, None], messages, 0.0).sum(axis=0)
    return total / jnp.maximum(mask.sum(axis=0), 1).astype(total.dtype)[:, None]


def modality_dropout(
    keys: ExampleKeys, present: Bool[Array, "m batch"], rate: float
) -> Bool[Array, "m batch"]:
    """``present``, but with probability ``rate`` only a random part of an example's modalities: "forced perceptual
    dropout" (Vasco et al. 2022, sec. 3.4).

    Of n modalities 1 to n - 1 are kept: each number is equally likely, and so is each choice of that many modalities.
    """
    if not rate:
        return present
    # Uniform numbers [M + 2, B] of each example: one to rank each modality, one to decide whether modalities are
    # dropped, and one for the number of those kept.
    draw = lambda key: jax.random.uniform(key, (len(present) + 2,))
    drawn = jax.vmap(draw)(fold_in_name(keys, "perceived")).T
    count = present.sum(axis=0)
    kept_count = 1 + jnp.floor(drawn[-1] * jnp.maximum(count - 1, 1)).astype(jnp.int32)
    # The argsort of an argsort is the rank of each modality; missing ones (2 is above all draws) come last.
    rank = jnp.argsort(jnp.argsort(jnp.where(present, drawn[: len(present)], 2.0), axis=0), axis=0)
    reduced = present & (rank < kept_count[None])
    return jnp.where(((drawn[-2] < rate) & (count > 1))[None], reduced, present)


def mhvae(inputs: ObjectiveInputs, *, beta: Weight = 1.0, subsets: int = 0) -> ObjectiveTerms:
    """``mean_S [sum_m -log p(x_m | z_1) + beta sum_l KL(q_S(z_l | z_>l) || p(z_l | z_>l))]``: MHVAE (Dorent et al.
    2023, arXiv:2309.08747, eq. 5-7), a hierarchy of latents z_l.

    The posterior ``q_S`` of every level l is the product of that level's prior and the experts of the subset S. The
    mean is over ``subsets`` random subsets S of the modalities present, drawn for each example (0: over all of them).
    ``inputs.networks.top_down_pass(members [R, M, B], keys)`` runs the hierarchy for R subsets; it returns ``latents
    [R, B, D]``, the z_1 that are decoded, and ``divergences [R, B, L]`` of the levels.
    """
    all_members = jnp.asarray(all_subsets(len(inputs.present)))  # [S, M]
    # [S, B]: the example has all modalities of the subset.
    allowed = (inputs.present[None] | ~all_members[:, :, None]).all(axis=1)
    if not subsets or subsets >= len(all_members):
        members = all_members[:, :, None] & inputs.present[None]
    else:
        drawn = draw_allowed(inputs.keys, "subsets", allowed, subsets)
        members = jnp.moveaxis(all_members[drawn], -1, 1) & inputs.present[None]
        allowed = jnp.take_along_axis(allowed, drawn, axis=0)
    hierarchy = inputs.networks.top_down_pass(members, inputs.keys)
    rec = jnp.where(allowed, _reconstruction_loss(inputs, hierarchy.latents), 0.0)
    divergence = jnp.where(allowed, hierarchy.divergences.sum(axis=-1), 0.0)
    subset_mean = lambda x: x.sum(axis=0) / jnp.maximum(allowed.sum(axis=0), 1)
    return ObjectiveTerms(
        subset_mean(rec) + beta * subset_mean(divergence),
        {"reconstruction": subset_mean(rec), "kl": subset_mean(divergence)},
    )
