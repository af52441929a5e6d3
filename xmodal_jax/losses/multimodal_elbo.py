"""Objectives of multimodal VAEs, one function each: from the encoders' posteriors to a loss per example, in nats.

All take `ObjectiveInputs` and return `ObjectiveTerms`. A missing modality has no influence: the value is that of the
same objective over the modalities that are present, and the gradient of its encoder is exactly zero. Below,
``rec_m(z)`` stands for ``-log p(x_m | z)``, weighted, and 0 where x_m is missing; sums and means over modalities are
over those present. ``beta`` is the weight of the divergence, ``inputs`` are `ObjectiveInputs`.
"""

from __future__ import annotations

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
    draw_allowed,
    draw_uniform_index,
    joint_product,
    masked_product,
    mixture_log_prob,
    product_of_experts,
    select_per_example,
)
from xmodal_jax.types import ExampleKeys


def _sum_present(present: Bool[Array, "m batch"], x: Float[Array, "m batch"]) -> Float[Array, "batch"]:
    return jnp.where(present, x, 0.0).sum(axis=0)


def _reconstruction_loss(
    inputs: ObjectiveInputs, z: Float[Array, "rows batch dim"]
) -> Float[Array, "rows batch"]:
    """``sum_m rec_m(z)`` of the same latents for all modalities."""
    return -inputs.log_likelihood(repeat_leading(z, len(inputs.present))).sum(axis=0)


def _kl_joint_to_experts(inputs: ObjectiveInputs, q: Posterior) -> Float[Array, "batch"]:
    """``sum_m KL(q || q_m)`` of a joint posterior ``[B, D]``."""
    repeated = repeat_leading(q, len(inputs.present))
    return _sum_present(inputs.present, kl(repeated, inputs.experts).sum(axis=-1))


def joint_elbo(inputs: ObjectiveInputs, *, beta: Weight = 1.0) -> ObjectiveTerms:
    """``sum_m rec_m(z) + beta KL(q || p)``, z drawn from the posterior q of the joint encoder.

    The first stage of TELBO (Vedantam et al. 2018) and JNF (Senellart et al. 2025).
    """
    rec = _reconstruction_loss(inputs, sample(inputs.posterior, inputs.keys, "joint")[None])[0]
    divergence = inputs.kl_to_prior(inputs.posterior, inputs.present.any(axis=0))
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def jmvae(inputs: ObjectiveInputs, *, beta: Weight = 1.0, alpha: float = 0.1) -> ObjectiveTerms:
    """`joint_elbo` ``+ beta alpha sum_m KL(q || q_m)``: JMVAE (Suzuki et al. 2016, arXiv:1611.01891, eq. 5)."""
    terms = joint_elbo(inputs, beta=beta)
    to_experts = _kl_joint_to_experts(inputs, inputs.posterior)
    return ObjectiveTerms(
        terms.loss + beta * alpha * to_experts, terms.metrics | {"kl_joint_to_experts": to_experts}
    )


def unimodal_elbos(inputs: ObjectiveInputs, *, beta: Weight = 1.0) -> ObjectiveTerms:
    """``sum_m rec_m(z_m) + beta KL(q_m || p)``: the second stage of TELBO (Vedantam et al. 2018, arXiv:1705.10762,
    eq. 4), in which the decoders are frozen."""
    z = sample(inputs.experts, inputs.keys, "experts")
    rec = -inputs.log_likelihood(z[:, None])[:, 0].sum(axis=0)
    divergence = _sum_present(inputs.present, inputs.kl_to_prior(inputs.experts, inputs.present))
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mvae(
    inputs: ObjectiveInputs, *, beta: Weight = 1.0, subsets: int = 1, single: bool = True
) -> ObjectiveTerms:
    """``sum_S [sum_{m in S} rec_m(z_S) + beta KL(q_S || p)]``: MVAE (Wu and Goodman 2018, arXiv:1802.05335, eq. 2 and
    4), where ``q_S`` is proportional to ``p(z) prod_{m in S} q_m(z)``.

    The subsets S are all modalities, each modality alone (``single``), and ``subsets`` different ones of 2 to M - 1
    modalities, drawn anew for each example (or all such subsets, if there are fewer).
    """
    present = inputs.present
    members = _mvae_subsets(inputs, subsets, single)
    experts = repeat_leading(inputs.experts, len(members))
    zeros = jnp.zeros((len(members), *inputs.experts.mean.shape[1:]))
    q = masked_product(experts, members, Normal(zeros, zeros))
    z = sample(q, inputs.keys, "products")
    count = len(present)
    if single:
        # A modality is decoded only from subsets that it belongs to. So the M unimodal subsets share one sample axis:
        # entry m of it is decoded from the posterior of modality m alone.
        unimodal = z[1 : 1 + count, None]
        latents = jnp.concatenate(
            [repeat_leading(z[:1], count), unimodal, repeat_leading(z[1 + count :], count)], axis=1
        )
        targets = jnp.concatenate(
            [present[:, None], present[:, None], jnp.moveaxis(members[1 + count :], 0, 1)], axis=1
        )
    else:
        latents, targets = repeat_leading(z, count), jnp.moveaxis(members, 0, 1)
    rec = -jnp.where(targets, inputs.log_likelihood(latents), 0.0).sum(axis=(0, 1))
    nonempty = members.any(axis=1)
    divergence = jnp.where(nonempty, inputs.kl_to_prior(q, nonempty), 0.0).sum(axis=0)
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def _mvae_subsets(inputs: ObjectiveInputs, subsets: int, single: bool) -> Bool[Array, "rows m batch"]:
    """The present members of each of the subsets of `mvae`; a subset that does not count is empty."""
    present, count = inputs.present, len(inputs.present)
    members = [present[None]]
    if single:
        members.append(jnp.eye(count, dtype=bool)[:, :, None] & present[None])
    middle = jnp.asarray(all_subsets(count, 2, count - 1))
    if subsets and len(middle):
        complete = (present[None] | ~middle[:, :, None]).all(axis=1)
        allowed = complete & (middle.sum(axis=1)[:, None] < present.sum(axis=0)[None])
        drawn = draw_allowed(inputs.keys, "subsets", allowed, min(subsets, len(middle)))
        drawn_allowed = jnp.take_along_axis(allowed, drawn, axis=0)
        members.append(jnp.moveaxis(middle[drawn], -1, 1) & drawn_allowed[:, None])
    return jnp.concatenate(members)


def mopoe(
    inputs: ObjectiveInputs,
    *,
    beta: Weight = 1.0,
    subsets: Bool[Any, "subsets m"] | None = None,
    prior: str = "full",
) -> ObjectiveTerms:
    """``sum_m rec_m(z) + beta / |P| sum_{S in P} KL(q_S || p)``, z of one ``q_S`` for each example, every S equally
    likely: MoPoE (Sutter et al. 2021, arXiv:2105.02470, eq. 5 and 7).

    Args:
      inputs: see `ObjectiveInputs`.
      beta: weight of the divergence.
      subsets: P (None: all subsets). For each example, only subsets whose members are all present count.
      prior: which products ``q_S`` include the prior as one more expert: "never", "always", or "full", which is the
        product of all modalities that an example has, as in its authors' code.
    Raises:
      ValueError: if ``prior`` is none of these.
    """
    subsets = all_subsets(len(inputs.present)) if subsets is None else subsets
    if prior not in ("never", "always", "full"):
        raise ValueError(f"prior must be 'never', 'always' or 'full', got {prior!r}")
    members = jnp.asarray(subsets)[:, :, None]
    allowed = (inputs.present[None] | ~members).all(axis=1)
    is_full = (members == inputs.present[None]).all(axis=1)
    prior_weight = {"never": 0.0, "always": 1.0, "full": is_full.astype(jnp.float32)}[prior]
    q = product_of_experts(inputs.experts, inputs.present, jnp.asarray(subsets), prior_weight)
    subset = draw_uniform_index(inputs.keys, "subset", allowed)
    z = sample(select_per_example(q, subset), inputs.keys, "product")
    rec = _reconstruction_loss(inputs, z[None])[0]
    divergences = jnp.where(allowed, inputs.kl_to_prior(q, allowed), 0.0)
    divergence = divergences.sum(axis=0) / jnp.maximum(allowed.sum(axis=0), 1)
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mmjsd(inputs: ObjectiveInputs, *, beta: Weight = 1.0) -> ObjectiveTerms:
    r"""``sum_m rec_m(z) + beta JS(q_1, ..., q_M, p)``, z of one expert for each example: mmJSD (Sutter et al. 2020,
    arXiv:2006.08242, eq. 7-9).

    The divergence is ``sum_v pi_v KL(q_v || f)`` over the experts and the prior, of equal weights ``pi = 1 / (M +
    1)``. The dynamic prior ``f`` is their geometric mean: the product of experts and prior with a variance ``M + 1``
    times as large.
    """
    weight = 1.0 / (inputs.num_present + 1.0)
    product = joint_product(inputs.experts, inputs.present, prior=1.0)
    dynamic_prior = Normal(product.mean, product.log_scale - 0.5 * jnp.log(weight)[:, None])
    divergences = kl(inputs.experts, repeat_leading(dynamic_prior, len(inputs.present))).sum(axis=-1)
    prior_divergence = kl(standard_like(dynamic_prior), dynamic_prior).sum(axis=-1)
    divergence = weight * (_sum_present(inputs.present, divergences) + prior_divergence)
    expert = draw_uniform_index(inputs.keys, "expert", inputs.present)
    z = sample(select_per_example(inputs.experts, expert), inputs.keys, "experts")
    rec = _reconstruction_loss(inputs, z[None])[0]
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mvtcae(inputs: ObjectiveInputs, *, beta: Weight = 2.5, alpha: float = 0.1) -> ObjectiveTerms:
    """``(M - alpha) / M sum_m rec_m(z) + beta [(1 - alpha) KL(q || p) + alpha / M sum_m KL(q || q_m)]``, q the
    product of experts: MVTCAE (Hwang et al. 2021, NeurIPS, eq. 8)."""
    q = joint_product(inputs.experts, inputs.present)
    rec = _reconstruction_loss(inputs, sample(q, inputs.keys, "product")[None])[0]
    divergence = inputs.kl_to_prior(q, inputs.present.any(axis=0))
    to_experts = _kl_joint_to_experts(inputs, q)
    count = inputs.num_present
    loss = (count - alpha) / count * rec + beta * ((1 - alpha) * divergence + alpha / count * to_experts)
    return ObjectiveTerms(loss, {"reconstruction": rec, "kl": divergence, "kl_joint_to_experts": to_experts})


def crmvae(inputs: ObjectiveInputs, *, beta: Weight = 1.0) -> ObjectiveTerms:
    """``1 / (M + 1) [sum_m rec_m(z) + sum_m rec_m(z_m)] + beta / (M + 1) [KL(q || p) + sum_m KL(q || q_m)]``, z of the
    product q and z_m of each expert: CRMVAE (Suzuki and Matsuo 2023, openreview Rn8u4MYgeNJ, eq. 9)."""
    q = joint_product(inputs.experts, inputs.present)
    joint = repeat_leading(sample(q, inputs.keys, "product"), len(inputs.present))
    z = jnp.stack([joint, sample(inputs.experts, inputs.keys, "experts")], axis=1)
    rec = -inputs.log_likelihood(z).sum(axis=(0, 1))  # log_likelihood is 0 where a modality is missing
    divergence = inputs.kl_to_prior(q, inputs.present.any(axis=0))
    to_experts = _kl_joint_to_experts(inputs, q)
    loss = (rec + beta * (divergence + to_experts)) / (inputs.num_present + 1.0)
    return ObjectiveTerms(loss, {"reconstruction": rec, "kl": divergence, "kl_joint_to_experts": to_experts})


def dmvae(inputs: ObjectiveInputs, *, beta: Weight = 1.0, private_beta: float = 1.0) -> ObjectiveTerms:
    """``sum_q [sum_t rec_t(z_q, w_t) + beta KL(q || p) + private_beta sum_t KL(q(w_t | x_t) || p)]``, where q is the
    product of experts and prior, and each expert: DMVAE (Lee and Pavlovic 2021, CVPRW, eq. 6). The private ``w_t`` are
    drawn anew for each q."""
    count = len(inputs.present)
    product = joint_product(inputs.experts, inputs.present, prior=1.0)
    q = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), product, inputs.experts)
    q_present = jnp.concatenate([inputs.present.any(axis=0)[None], inputs.present])
    rows = len(q_present)
    private = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:, None], (count, rows, *x.shape[1:])), inputs.private
    )
    shared_latents = repeat_leading(sample(q, inputs.keys, "shared"), count)
    latents = jnp.concatenate([shared_latents, sample(private, inputs.keys, "private")], axis=-1)
    rec = -jnp.where(q_present[None], inputs.log_likelihood(latents), 0.0).sum(axis=(0, 1))
    divergence = jnp.where(q_present, inputs.kl_to_prior(q, q_present), 0.0).sum(axis=0)
    private_kl = kl(inputs.private, standard_like(inputs.private)).sum(axis=-1)
    private_divergence = _sum_present(inputs.present, private_kl) * q_present.sum(axis=0)
    loss = rec + beta * divergence + private_beta * private_divergence
    return ObjectiveTerms(loss, {"reconstruction": rec, "kl": divergence, "kl_private": private_divergence})


def mmvae(
    inputs: ObjectiveInputs, *, beta: Weight = 1.0, samples: int = 1, estimator: str = "iwae"
) -> ObjectiveTerms:
    r"""``-1/M sum_m log 1/K sum_k w_mk`` with ``log w = log p(x_1..M | z) + beta (log p(z) - log q(z | x_1..M))``,
    z of expert m and q the mixture of experts: MMVAE (Shi et al. 2019, arXiv:1911.03393, eq. 3 and appendix A).

    With private variables it is MMVAE+ (Palumbo et al. 2023, openreview sdQGxouELX, eq. 6): expert m also draws its
    ``w_m``, and ``beta (log p(w_m) - log q(w_m | x_m))`` is added to ``log w``; another modality t is decoded with
    ``w_t`` from the auxiliary prior ``inputs.prior.auxiliary``. With a mixture over clusters c as prior of z it is
    CMVAE (Palumbo et al. 2024, openreview k5THrhXDV3, eq. 7). The paper has ``sum_c q(c | z) log [p(c) p(z | c) /
    q(c | z)]`` in place of ``log p(z)``; for the exact posterior ``q(c | z) = p(c | z)`` both are equal.

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
    count, batch = inputs.present.shape
    dreg = estimator == "dreg"
    gradient_probes = []
    # [K, M, B, D]: K before M, so that the first sample of each expert is what K = 1 would draw.
    shared = sample(repeat_leading(inputs.experts, samples), inputs.keys, "shared")
    private = None
    if inputs.private is not None:
        private = sample(repeat_leading(inputs.private, samples), inputs.keys, "private")
    if dreg:
        # Two arrays of zeros beside the samples. Their gradients carry the weights of the bound back to the samples'
        # gradient, which DReG multiplies once more by these weights.
        both = shared if private is None else jnp.concatenate([shared, private], axis=-1)
        both, *gradient_probes = deferred_gradient_scale(both)
        shared, private = (
            both[..., : shared.shape[-1]],
            None if private is None else both[..., shared.shape[-1] :],
        )
    mixture = mixture_log_prob(detach(inputs.experts) if dreg else inputs.experts, inputs.present, shared)
    ratio = inputs.prior.log_prob(shared) - mixture
    latents = repeat_leading(shared, count)
    if private is not None:
        posterior = detach(inputs.private) if dreg else inputs.private
        ratio = ratio + _private_log_prob(inputs.prior.private, private)
        ratio = ratio - repeat_leading(posterior, samples).log_prob(private).sum(axis=-1)
        latents = jnp.concatenate([latents, _private_latents(inputs, private)], axis=-1)
    rows = latents.reshape(count, samples * count, batch, latents.shape[-1])
    log_likelihood = inputs.log_likelihood(rows).sum(axis=0).reshape(samples, count, batch)
    log_weights = log_likelihood + jnp.broadcast_to(beta, (batch,))[None, None] * ratio
    bound = (
        doubly_reparametrized_bound(log_weights, *gradient_probes) if dreg else importance_bound(log_weights)
    )
    loss = -_sum_present(inputs.present, bound) / inputs.num_present
    mean = lambda x: lax.stop_gradient(_sum_present(inputs.present, x.mean(axis=0)) / inputs.num_present)
    return ObjectiveTerms(loss, {"reconstruction": -mean(log_likelihood), "kl": -mean(ratio)})


def _private_log_prob(prior: Posterior, w: Float[Array, "*rows private"]) -> Float[Array, "*rows"]:
    to_w = lambda x: jnp.broadcast_to(x.reshape((1,) * (w.ndim - 1) + x.shape), w.shape)
    return jax.tree.map(to_w, prior).log_prob(w).sum(axis=-1)


def _private_latents(
    inputs: ObjectiveInputs, private: Float[Array, "k sources batch private"]
) -> Float[Array, "targets k sources batch private"]:
    """The private latents that each target is decoded with: its own sample where it is the source of the shared
    latents, else one of its auxiliary prior."""
    count = len(inputs.present)
    to_all = lambda x: jnp.broadcast_to(x[:, None, None, None], (count, *private.shape))
    auxiliary = sample(jax.tree.map(to_all, inputs.prior.auxiliary), inputs.keys, "auxiliary")
    is_source = jnp.eye(count, dtype=bool)[:, None, :, None, None]
    return jnp.where(is_source, private[None], auxiliary)


def flow_match(inputs: ObjectiveInputs) -> ObjectiveTerms:
    """``-sum_m log q_m(z)``, z of the joint encoder, which is frozen: the second stage of JNF (Senellart et al. 2025,
    arXiv:2502.03952, eq. 8).

    ``inputs.networks.flow(z [B, D]) -> (z_0 [M, B, D], log_det [M, B])`` maps z to the base space in which each
    modality's expert is a normal distribution.
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
    where q is computed from the mean of the messages ``message(sg(z_m))`` of the modalities that are present, or, with
    probability ``dropout``, of a random part of them (`modality_dropout`).

    ``inputs.networks``: ``message [M, B, D] -> [M, B, H]``, ``encode_top [B, H] -> Normal [B, T]``, ``decode_top
    [B, T] -> [M, B, D]``, the t_m.
    """
    networks = inputs.networks
    latents = sample(inputs.experts, inputs.keys, "experts")
    # log_likelihood is 0 where a modality is missing.
    rec = -inputs.log_likelihood(latents[:, None])[:, 0].sum(axis=0)
    divergence = _sum_present(inputs.present, inputs.kl_to_prior(inputs.experts, inputs.present))
    latents = lax.stop_gradient(latents)
    messages = networks.message(latents)
    q = networks.encode_top(mean_message(messages, modality_dropout(inputs.keys, inputs.present, dropout)))
    decoded = Normal(networks.decode_top(sample(q, inputs.keys, "top")), jnp.zeros_like(latents))
    latent_loss = -_sum_present(inputs.present, decoded.log_prob(latents).sum(axis=-1))
    top_divergence = inputs.kl_to_prior(q, inputs.present.any(axis=0))
    loss = rec + beta * divergence + gamma * latent_loss + beta * top_beta * top_divergence
    metrics = {"reconstruction": rec, "kl": divergence, "codes": latent_loss, "kl_top": top_divergence}
    return ObjectiveTerms(loss, metrics)


def mean_message(
    messages: Float[Array, "m batch dim"], mask: Bool[Array, "m batch"]
) -> Float[Array, "batch dim"]:
    """The mean of the messages under the mask; 0 where the mask is empty."""
    total = jnp.where(mask[:, :, None], messages, 0.0).sum(axis=0)
    return total / jnp.maximum(mask.sum(axis=0), 1).astype(total.dtype)[:, None]


def modality_dropout(
    keys: ExampleKeys, present: Bool[Array, "m batch"], rate: float
) -> Bool[Array, "m batch"]:
    """``present``, or with probability ``rate`` only 1 to n - 1 of an example's n modalities: "forced perceptual
    dropout" (Vasco et al. 2022, sec. 3.4). Each of these numbers is equally likely, and each choice of that many
    modalities."""
    if not rate:
        return present
    draw = lambda key: jax.random.uniform(key, (len(present) + 2,))
    drawn = jax.vmap(draw)(fold_in_name(keys, "perceived")).T
    count = present.sum(axis=0)
    size = 1 + jnp.floor(drawn[-1] * jnp.maximum(count - 1, 1)).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(jnp.where(present, drawn[: len(present)], 2.0), axis=0), axis=0)
    part = present & (rank < size[None])
    return jnp.where(((drawn[-2] < rate) & (count > 1))[None], part, present)


def mhvae(inputs: ObjectiveInputs, *, beta: Weight = 1.0, subsets: int = 0) -> ObjectiveTerms:
    """``mean_S [sum_m rec_m(z_1) + beta sum_l KL(q_S(z_l | z_>l) || p(z_l | z_>l))]``: MHVAE (Dorent et al. 2023,
    arXiv:2309.08747, eq. 5-7), the posterior of every level the product of its prior and the experts of S.

    The mean is over ``subsets`` random subsets S of the modalities present, drawn for each example (0: over all).
    ``inputs.networks.top_down_pass(members [R, M, B], keys)`` returns the latents of all levels for each subset, as
    ``latents [R, B, D]`` of the level that is decoded, and ``divergences [R, B, L]``.
    """
    all_members = jnp.asarray(all_subsets(len(inputs.present)))
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
    mean = lambda x: x.sum(axis=0) / jnp.maximum(allowed.sum(axis=0), 1)
    return ObjectiveTerms(
        mean(rec) + beta * mean(divergence), {"reconstruction": mean(rec), "kl": mean(divergence)}
    )
