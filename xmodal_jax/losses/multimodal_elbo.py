"""The objectives of multimodal VAEs: one function each, from what the encoders say to a loss per example, in nats.

All take a `Problem` and return `Terms`. A missing modality has no influence: the value is that of the same objective
over the modalities that are there, and its encoder's gradient is exactly zero. ``rec_m(z)`` below stands for
``-log p(x_m | z)``, weighted and 0 where x_m is missing; sums and means over modalities are over those present.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.losses.elbo import doubly_reparametrised, handle, importance_bound
from xmodal_jax.probability.distributions import Normal, Posterior, detached, kl, standard, standard_noise
from xmodal_jax.probability.posteriors import (
    all_subsets,
    choose,
    choose_several,
    joint_product,
    mixture_log_prob,
    pick,
    product,
    product_of_experts,
)
from xmodal_jax.types import ExampleKeys


class Prior(NamedTuple):
    """Of the latent variables: a mixture of C components for the shared ones; one distribution for private ones."""

    components: Posterior
    """``[C, D]``."""
    logits: Float[Array, "components"]
    private: Posterior | None = None
    """``[P]``, what private posteriors are compared with."""
    auxiliary: Posterior | None = None
    """``[M, P]``, what the private variables of a modality come from when another one speaks of it."""

    def log_prob(self, z: Float[Array, "*rows dim"]) -> Float[Array, "*rows"]:
        """``log sum_c p(c) p(z | c)``."""
        rows = z.ndim - 1

        def of_one(component):
            lift = lambda x: jnp.broadcast_to(x.reshape((1,) * rows + x.shape), z.shape)
            return jax.tree.map(lift, component).log_prob(z).sum(axis=-1)

        log_p = jax.nn.log_softmax(self.logits).reshape((-1,) + (1,) * rows)
        return jax.nn.logsumexp(log_p + jax.vmap(of_one)(self.components), axis=0)


class Problem(NamedTuple):
    """What an objective needs to know. M modalities, B examples, D latent dimensions, P private ones."""

    experts: Posterior | None
    """``[M, B, D]``: what each modality says alone."""
    present: Bool[Array, "m batch"]
    log_likelihood: Callable[[Float[Array, "m rows batch latent"]], Float[Array, "m rows batch"]]
    """``log p(x_m | z_m)`` of several latent codes (rows) for each modality, 0 where x_m is missing."""
    to_prior: Callable[..., Array]
    """``to_prior(q [*rows, B, D], present [*rows, B]) -> KL(q || N(0, 1)) [*rows, B]``."""
    keys: ExampleKeys
    prior: Prior
    private: Posterior | None = None
    """``[M, B, P]``."""
    joint: Normal | None = None
    """``[B, D]``, of an encoder that sees all modalities."""
    nets: Any = None
    """Further networks that an objective names."""

    @property
    def count(self) -> Float[Array, "batch"]:
        """How many modalities each example has, 1 at least."""
        return jnp.maximum(self.present.sum(axis=0), 1).astype(jnp.float32)


class Terms(NamedTuple):
    """A loss per example, and what it consists of."""

    loss: Float[Array, "batch"]
    parts: dict[str, Float[Array, "batch"]]


def _over_present(present, x):
    return jnp.where(present, x, 0.0).sum(axis=0)


def sample(q: Posterior, keys: ExampleKeys, name: str) -> Float[Array, "*rows batch dim"]:
    """One sample of each, ``q`` being ``[*rows, B, D]``."""
    shape = (*q.mean.shape[:-2], q.mean.shape[-1])
    return q.at(standard_noise(keys, name, shape, type(q)))


def for_all(z: Float[Array, "*rows batch dim"], count: int) -> Float[Array, "count *rows batch dim"]:
    """The same codes for each of ``count`` modalities."""
    return jnp.broadcast_to(z[None], (count, *z.shape))


def _reconstruct(p: Problem, z: Float[Array, "rows batch dim"]) -> Float[Array, "rows batch"]:
    """``sum_m rec_m(z)``, of the same codes for all modalities."""
    return -p.log_likelihood(for_all(z, len(p.present))).sum(axis=0)


def joint_elbo(p: Problem, *, beta: Float[Array, "batch"] | float = 1.0) -> Terms:
    """``sum_m rec_m(z) + beta KL(q || p)``, z of the joint encoder's q."""
    rec = _reconstruct(p, sample(p.joint, p.keys, "joint")[None])[0]
    divergence = p.to_prior(p.joint, p.present.any(axis=0))
    return Terms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def jmvae(p: Problem, *, beta: Float[Array, "batch"] | float = 1.0, alpha: float = 0.1) -> Terms:
    """`joint_elbo` ``+ alpha sum_m KL(q || q_m)``: JMVAE (Suzuki et al. 2016, arXiv:1611.01891, eq. 5). ``beta`` is
    also the schedule's weight of the second divergence."""
    terms = joint_elbo(p, beta=beta)
    q = jax.tree.map(lambda x: for_all(x, len(p.present)), p.joint)
    near = _over_present(p.present, kl(q, p.experts).sum(axis=-1))
    return Terms(terms.loss + beta * alpha * near, terms.parts | {"kl_joint_to_experts": near})


def unimodal_elbos(p: Problem, *, beta: Float[Array, "batch"] | float = 1.0) -> Terms:
    """``sum_m rec_m(z_m) + beta KL(q_m || p)``: the second stage of TELBO (Vedantam et al. 2018, arXiv:1705.10762,
    eq. 4), in which the decoders no longer learn."""
    rec = -p.log_likelihood(sample(p.experts, p.keys, "experts")[:, None])[:, 0].sum(axis=0)
    divergence = _over_present(p.present, p.to_prior(p.experts, p.present))
    return Terms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mvae(
    p: Problem, *, beta: Float[Array, "batch"] | float = 1.0, subsets: int = 1, single: bool = True
) -> Terms:
    """``sum_S [sum_{m in S} rec_m(z_S) + beta KL(q_S || p)]``, ``q_S ~ p(z) prod_{m in S} q_m``: MVAE (Wu and Goodman
    2018, arXiv:1802.05335, eq. 2 and 4).

    S is all modalities, each alone (``single``), and ``subsets`` different ones of 2 to M - 1, drawn anew for each
    example (as many as there are, where there are fewer).
    """
    count = len(p.present)
    there = [p.present[None]]
    if single:
        there.append(jnp.eye(count, dtype=bool)[:, :, None] & p.present[None])
    middle = jnp.asarray(all_subsets(count, 2, count - 1))
    if subsets and len(middle):
        whole = (p.present[None] | ~middle[:, :, None]).all(axis=1)
        allowed = whole & (middle.sum(axis=1)[:, None] < p.present.sum(axis=0)[None])
        rows = choose_several(p.keys, "subsets", allowed, min(subsets, len(middle)))
        kept = jnp.take_along_axis(allowed, rows, axis=0)
        there.append(jnp.moveaxis(middle[rows], -1, 1) & kept[:, None])
    there = jnp.concatenate(there)
    lifted = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (len(there), *x.shape)), p.experts)
    one = jnp.zeros((len(there), *p.experts.mean.shape[1:]))
    q = product(lifted, there, Normal(one, one))
    z = sample(q, p.keys, "products")
    # Each modality is only told from the subsets it belongs to: its own row in place of all the other single ones.
    if single:
        own = z[1 : 1 + count, None]
        codes = jnp.concatenate([for_all(z[:1], count), own, for_all(z[1 + count :], count)], axis=1)
        told = jnp.concatenate(
            [p.present[:, None], p.present[:, None], jnp.moveaxis(there[1 + count :], 0, 1)], axis=1
        )
    else:
        codes, told = for_all(z, count), jnp.moveaxis(there, 0, 1)
    rec = -jnp.where(told, p.log_likelihood(codes), 0.0).sum(axis=(0, 1))
    some = there.any(axis=1)
    divergence = jnp.where(some, p.to_prior(q, some), 0.0).sum(axis=0)
    return Terms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mopoe(
    p: Problem,
    *,
    beta: Float[Array, "batch"] | float = 1.0,
    subsets: Bool[Any, "subsets m"] | None = None,
    prior: str = "full",
) -> Terms:
    """``sum_m rec_m(z) + beta / |P| sum_{S in P} KL(q_S || p)``, z of one ``q_S`` for each example, every S as likely:
    MoPoE (Sutter et al. 2021, arXiv:2105.02470, eq. 5 and 7).

    P: the given subsets (all) whose members are all present. ``prior``: whether ``q_S`` has the prior as one more
    expert: "never", "always", or "full", that of all the modalities an example has alone, as its authors do.

    Raises:
      ValueError: another ``prior``.
    """
    subsets = all_subsets(len(p.present)) if subsets is None else subsets
    if prior not in ("never", "always", "full"):
        raise ValueError(f"prior must be 'never', 'always' or 'full', got {prior!r}")
    members = jnp.asarray(subsets)[:, :, None]
    allowed = (p.present[None] | ~members).all(axis=1)
    whole = (members == p.present[None]).all(axis=1)
    has_prior = {"never": 0.0, "always": 1.0, "full": whole.astype(jnp.float32)}[prior]
    q = product_of_experts(p.experts, p.present, jnp.asarray(subsets), has_prior)
    z = sample(pick(q, choose(p.keys, "subset", allowed)), p.keys, "product")
    rec = _reconstruct(p, z[None])[0]
    divergences = jnp.where(allowed, p.to_prior(q, allowed), 0.0)
    divergence = divergences.sum(axis=0) / jnp.maximum(allowed.sum(axis=0), 1)
    return Terms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mmjsd(p: Problem, *, beta: Float[Array, "batch"] | float = 1.0) -> Terms:
    r"""``sum_m rec_m(z) + beta JS(q_1, ..., q_M, p)``, z of one expert for each example: mmJSD (Sutter et al. 2020,
    arXiv:2006.08242, eq. 7-9).

    The divergence is ``sum_v pi_v KL(q_v || f)`` over the experts and the prior, of equal weights ``pi = 1 / (M +
    1)``; ``f``, the dynamic prior, is their geometric mean: the product of experts and prior with a variance ``M +
    1`` times as large.
    """
    weight = 1.0 / (p.count + 1.0)
    whole = joint_product(p.experts, p.present, prior=1.0)
    mean = Normal(whole.mean, whole.log_scale - 0.5 * jnp.log(weight)[:, None])
    divergences = kl(p.experts, jax.tree.map(lambda x: for_all(x, len(p.present)), mean)).sum(axis=-1)
    of_prior = kl(standard(mean), mean).sum(axis=-1)
    divergence = weight * (_over_present(p.present, divergences) + of_prior)
    z = sample(pick(p.experts, choose(p.keys, "expert", p.present)), p.keys, "experts")
    rec = _reconstruct(p, z[None])[0]
    return Terms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def mvtcae(p: Problem, *, beta: Float[Array, "batch"] | float = 2.5, alpha: float = 0.1) -> Terms:
    """``(M - alpha) / M sum_m rec_m(z) + beta [(1 - alpha) KL(q || p) + alpha / M sum_m KL(q || q_m)]``, q the
    product of experts: MVTCAE (Hwang et al. 2021, NeurIPS, eq. 8)."""
    count = len(p.present)
    q = joint_product(p.experts, p.present)
    rec = _reconstruct(p, sample(q, p.keys, "product")[None])[0]
    divergence = p.to_prior(q, p.present.any(axis=0))
    near = _over_present(p.present, kl(jax.tree.map(lambda x: for_all(x, count), q), p.experts).sum(axis=-1))
    loss = (p.count - alpha) / p.count * rec + beta * ((1 - alpha) * divergence + alpha / p.count * near)
    return Terms(loss, {"reconstruction": rec, "kl": divergence, "kl_joint_to_experts": near})


def crmvae(p: Problem, *, beta: Float[Array, "batch"] | float = 1.0) -> Terms:
    """``1 / (M + 1) [sum_m rec_m(z) + sum_m rec_m(z_m)] + beta / (M + 1) [KL(q || p) + sum_m KL(q || q_m)]``, z of the
    product q and z_m of each expert: CRMVAE (Suzuki and Matsuo 2023, openreview Rn8u4MYgeNJ, eq. 9)."""
    count = len(p.present)
    q = joint_product(p.experts, p.present)
    z = jnp.stack(
        [for_all(sample(q, p.keys, "product"), count), sample(p.experts, p.keys, "experts")], axis=1
    )
    rec = -p.log_likelihood(z).sum(axis=(0, 1))
    divergence = p.to_prior(q, p.present.any(axis=0))
    near = _over_present(p.present, kl(jax.tree.map(lambda x: for_all(x, count), q), p.experts).sum(axis=-1))
    loss = (rec + beta * (divergence + near)) / (p.count + 1.0)
    return Terms(loss, {"reconstruction": rec, "kl": divergence, "kl_joint_to_experts": near})


def dmvae(p: Problem, *, beta: Float[Array, "batch"] | float = 1.0, private_beta: float = 1.0) -> Terms:
    """``sum_q [sum_t rec_t(z_q, w_t) + beta KL(q || p) + private_beta sum_t KL(q(w_t | x_t) || p)]``, the sum over the
    product of experts and prior, and each expert: DMVAE (Lee and Pavlovic 2021, CVPRW, eq. 6). The private ``w_t`` are
    drawn anew for each."""
    count = len(p.present)
    whole = joint_product(p.experts, p.present, prior=1.0)
    q = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), whole, p.experts)
    there = jnp.concatenate([p.present.any(axis=0)[None], p.present])
    rows = len(there)
    lifted = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (count, rows, *x.shape[1:])), p.private)
    shared = for_all(sample(q, p.keys, "shared"), count)
    codes = jnp.concatenate([shared, sample(lifted, p.keys, "private")], axis=-1)
    rec = -jnp.where(there[None], p.log_likelihood(codes), 0.0).sum(axis=(0, 1))
    divergence = jnp.where(there, p.to_prior(q, there), 0.0).sum(axis=0)
    own = _over_present(p.present, kl(p.private, standard(p.private)).sum(axis=-1)) * there.sum(axis=0)
    loss = rec + beta * divergence + private_beta * own
    return Terms(loss, {"reconstruction": rec, "kl": divergence, "kl_private": own})


def mmvae(
    p: Problem,
    *,
    samples: int = 1,
    estimator: str = "iwae",
    beta: Float[Array, "batch"] | float = 1.0,
) -> Terms:
    r"""``-1/M sum_m log 1/K sum_k w_mk`` with ``log w = log p(x_1..M | z) + beta (log p(z) - log q(z | x_1..M))``,
    z of expert m and q the mixture of experts: MMVAE (Shi et al. 2019, arXiv:1911.03393, eq. 3 and appendix A).

    With private variables (MMVAE+, Palumbo et al. 2023, openreview sdQGxouELX, eq. 6) expert m draws its own ``w_m``,
    whose ``log p(w_m) - log q(w_m | x_m)`` joins the bracket, and what it says of the other modalities t takes ``w_t``
    from the auxiliary prior ``p.prior.auxiliary``. With a mixture as prior of z it is CMVAE (Palumbo et al. 2024,
    openreview k5THrhXDV3, eq. 7), whose sum over clusters ``sum_c q(c | z) log [p(c) p(z | c) / q(c | z)]`` is
    ``log p(z)`` for the exact ``q(c | z)``.

    ``estimator``: "iwae", the gradient of that value, or "dreg" (`losses.elbo.doubly_reparametrised`).

    Raises:
      ValueError: another estimator.
    """
    if estimator not in ("iwae", "dreg"):
        raise ValueError(f"estimator must be 'iwae' or 'dreg', got {estimator!r}")
    count, batch = p.present.shape
    dreg = estimator == "dreg"

    def many(q: Posterior, name: str):
        # K before M: the first sample of each is what K = 1 draws.
        noise = standard_noise(p.keys, name, (samples, *q.mean.shape[:-2], q.mean.shape[-1]), type(q))
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], noise.shape), q).at(noise)

    def density(q, z):
        lifted = jax.tree.map(lambda x: jnp.broadcast_to(x[None], z.shape), detached(q) if dreg else q)
        return lifted.log_prob(z).sum(axis=-1)

    zeros = [jnp.zeros(()), jnp.zeros(())]
    shared = many(p.experts, "shared")
    own = None if p.private is None else many(p.private, "private")
    if dreg:
        both, *zeros = handle(shared if own is None else jnp.concatenate([shared, own], axis=-1))
        shared, own = both[..., : shared.shape[-1]], None if own is None else both[..., shared.shape[-1] :]
    mixture = mixture_log_prob(detached(p.experts) if dreg else p.experts, p.present, shared)
    ratio = p.prior.log_prob(shared) - mixture
    codes = for_all(shared, count)
    if own is not None:
        ratio = ratio + _private_log_prob(p.prior.private, own) - density(p.private, own)
        # [targets, K, sources, B, P]: a modality tells of itself by its own, of others by their auxiliary prior.
        lift = lambda x: jnp.broadcast_to(x[:, None, None, None], (count, *own.shape))
        drawn = sample(jax.tree.map(lift, p.prior.auxiliary), p.keys, "auxiliary")
        itself = jnp.eye(count, dtype=bool)[:, None, :, None, None]
        codes = jnp.concatenate([codes, jnp.where(itself, own[None], drawn)], axis=-1)
    rows = codes.reshape(count, samples * count, batch, codes.shape[-1])
    told = p.log_likelihood(rows).sum(axis=0).reshape(samples, count, batch)
    log_weights = told + jnp.broadcast_to(beta, (batch,))[None, None] * ratio
    bound = doubly_reparametrised(log_weights, *zeros) if dreg else importance_bound(log_weights)
    loss = -_over_present(p.present, bound) / p.count
    mean = lambda x: lax.stop_gradient(_over_present(p.present, x.mean(axis=0)) / p.count)
    return Terms(loss, {"reconstruction": -mean(told), "kl": -mean(ratio)})


def _private_log_prob(prior: Posterior, w):
    lift = lambda x: jnp.broadcast_to(x.reshape((1,) * (w.ndim - 1) + x.shape), w.shape)
    return jax.tree.map(lift, prior).log_prob(w).sum(axis=-1)


def flow_match(p: Problem) -> Terms:
    """``-sum_m log q_m(z)``, z of the joint encoder, which no longer learns: the second stage of JNF (Senellart et al.
    2025, arXiv:2502.03952, eq. 8). ``p.nets.flow(z [B, D]) -> (z_0 [M, B, D], log_det [M, B])`` takes z to where
    each modality's expert lives."""
    z = lax.stop_gradient(sample(p.joint, p.keys, "joint"))
    base, log_det = p.nets.flow(z)
    loss = -_over_present(p.present, p.experts.log_prob(base).sum(axis=-1) + log_det)
    return Terms(loss, {"flow": loss})


def nexus(
    p: Problem,
    *,
    beta: Float[Array, "batch"] | float = 1.0,
    top_beta: float = 1.0,
    gamma: float = 1.0,
    dropout: float = 0.0,
) -> Terms:
    """Unimodal ELBOs, and one of the codes they make: Nexus (Vasco et al. 2022, Neural Networks 146, eq. 5-8).

    ``sum_m [rec_m(z_m) + beta KL(q_m || p)] + gamma sum_m [-log N(sg(z_m); t_m(z), 1)] + beta top_beta KL(q || p)``,
    where q is of the mean of the messages ``p.nets.message(sg(z_m))`` of the modalities that are there, and with
    probability ``dropout`` of a random part of these only (forced perceptual dropout). ``p.nets``: ``message [M, B,
    D] -> [M, B, H]``, ``gather [B, H] -> Normal [B, T]``, ``codes [B, T] -> [M, B, D]``.
    """
    own = sample(p.experts, p.keys, "experts")
    rec = -p.log_likelihood(own[:, None])[:, 0].sum(axis=0)
    divergence = _over_present(p.present, p.to_prior(p.experts, p.present))
    own = lax.stop_gradient(own)
    q = p.nets.gather(mean_message(p.nets.message(own), perceived(p.keys, p.present, dropout)))
    codes = Normal(p.nets.codes(sample(q, p.keys, "top")), jnp.zeros_like(own))
    told = -_over_present(p.present, codes.log_prob(own).sum(axis=-1))
    top = p.to_prior(q, p.present.any(axis=0))
    loss = rec + beta * divergence + gamma * told + beta * top_beta * top
    return Terms(loss, {"reconstruction": rec, "kl": divergence, "codes": told, "kl_top": top})


def mean_message(
    messages: Float[Array, "m batch dim"], there: Bool[Array, "m batch"]
) -> Float[Array, "batch dim"]:
    """The mean of the messages that are there; 0 where there is none."""
    total = jnp.where(there[:, :, None], messages, 0.0).sum(axis=0)
    return total / jnp.maximum(there.sum(axis=0), 1).astype(total.dtype)[:, None]


def perceived(keys: ExampleKeys, present: Bool[Array, "m batch"], rate: float) -> Bool[Array, "m batch"]:
    """With probability ``rate`` only some of an example's modalities: 1 to n - 1 of its n, each number and each
    choice as likely. All of them otherwise."""
    if not rate:
        return present
    draw = lambda key: jax.random.uniform(key, (len(present) + 2,))
    drawn = jax.vmap(draw)(fold_in_name(keys, "perceived")).T
    count = present.sum(axis=0)
    size = 1 + jnp.floor(drawn[-1] * jnp.maximum(count - 1, 1)).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(jnp.where(present, drawn[: len(present)], 2.0), axis=0), axis=0)
    some = present & (rank < size[None])
    return jnp.where(((drawn[-2] < rate) & (count > 1))[None], some, present)


def mhvae(p: Problem, *, beta: Float[Array, "batch"] | float = 1.0, subsets: int | None = None) -> Terms:
    """``mean_S [sum_m rec_m(z_1) + beta sum_l KL(q_S(z_l | z_>l) || p(z_l | z_>l))]``: MHVAE (Dorent et al. 2023,
    arXiv:2309.08747, eq. 5-7), every level's posterior the product of its prior and the experts of S.

    The mean is over all subsets of the modalities present (``subsets`` None) or over so many drawn for each example.
    ``p.nets.descend(there [R, M, B])`` gives ``first [R, B, D]``, what the decoders are given, and ``divergences
    [R, B, L]``.
    """
    every = jnp.asarray(all_subsets(len(p.present)))
    allowed = (p.present[None] | ~every[:, :, None]).all(axis=1)
    if subsets is None or subsets >= len(every):
        there = every[:, :, None] & p.present[None]
    else:
        rows = choose_several(p.keys, "subsets", allowed, subsets)
        there = jnp.moveaxis(every[rows], -1, 1) & p.present[None]
        allowed = jnp.take_along_axis(allowed, rows, axis=0)
    descent = p.nets.descend(there)
    rec = jnp.where(allowed, _reconstruct(p, descent.first), 0.0)
    divergence = jnp.where(allowed, descent.divergences.sum(axis=-1), 0.0)
    mean = lambda x: x.sum(axis=0) / jnp.maximum(allowed.sum(axis=0), 1)
    return Terms(mean(rec) + beta * mean(divergence), {"reconstruction": mean(rec), "kl": mean(divergence)})
