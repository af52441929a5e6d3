"""Inference from some of the modalities: samples of ``q(z | x_observed)`` for every kind of multimodal VAE, with the
densities that importance sampling needs.

All functions take `ObjectiveInputs`, the mask ``observed [M, B]`` of the modalities to infer from, the keys (None:
means instead of samples) and ``samples``, the number R of samples of each example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.losses.multimodal_elbo import mean_message
from xmodal_jax.losses.objective import ObjectiveInputs
from xmodal_jax.probability.distributions import (
    Normal,
    Posterior,
    repeat_leading,
    sample,
    standard_like,
    standard_noise,
)
from xmodal_jax.probability.posteriors import joint_product, mixture_log_prob, select_per_example
from xmodal_jax.probability.priors import Prior
from xmodal_jax.types import ExampleKeys


class LatentSamples(NamedTuple):
    """R samples of the latents of each example."""

    z: Float[Array, "m samples batch latent"]
    """The latents that each modality is decoded from."""
    log_ratio: Float[Array, "samples batch"]
    """``log p(z) - log q(z | x_observed)`` of all latents; NaN where q has no density that can be computed."""
    shared: Float[Array, "samples batch dim"]
    """The latents that all modalities share (in a hierarchy the deepest ones)."""


Observed = Bool[Array, "m batch"]
"""The modalities to infer from: True only where they are present."""


def sample_or_mean(
    q: Posterior, keys: ExampleKeys | None, name: str, samples: int
) -> Float[Array, "samples *batch dim"]:
    """R samples of ``q [..., B, D]``, where R is ``samples``; without keys R copies of its mean."""
    q = repeat_leading(q, samples)
    return q.mean if keys is None else sample(q, keys, name)


def sample_prior(
    prior: Prior, keys: ExampleKeys | None, samples: int, batch: int
) -> Float[Array, "samples batch dim"]:
    """Samples of the prior of the shared latents; without keys the mean of its likeliest component."""
    size = (samples, batch)
    if keys is None:
        return jnp.broadcast_to(
            prior.components.mean[prior.logits.argmax()][None, None], (*size, prior.components.mean.shape[-1])
        )
    draw = jax.vmap(lambda key: jax.random.categorical(key, prior.logits, shape=(samples,)))
    component = draw(fold_in_name(keys, "component")).T
    return sample(jax.tree.map(lambda x: x[component], prior.components), keys, "prior")


def _add_private(
    inputs: ObjectiveInputs, shared, observed: Observed, keys: ExampleKeys | None, log_ratio
) -> LatentSamples:
    """Shared latents followed by private ones: an observed modality's come from its own posterior, those of the
    others of their auxiliary priors."""
    count, samples = len(inputs.present), shared.shape[0]
    latents = repeat_leading(shared, count)
    if inputs.private is None:
        return LatentSamples(latents, log_ratio, shared)
    batch = shared.shape[1]
    to_batch = lambda x: jnp.broadcast_to(x[:, None], (count, batch, x.shape[-1]))
    q = jax.tree.map(
        lambda private, auxiliary: jnp.where(observed[:, :, None], private, auxiliary),
        inputs.private,
        jax.tree.map(to_batch, inputs.prior.auxiliary),
    )
    w = sample_or_mean(q, keys, "private", samples)
    prior = jax.tree.map(lambda x: jnp.broadcast_to(x.reshape(1, 1, 1, -1), w.shape), inputs.prior.private)
    private_ratio = (prior.log_prob(w) - repeat_leading(q, samples).log_prob(w)).sum(axis=-1)
    log_ratio = log_ratio + jnp.where(observed[None], private_ratio, 0.0).sum(axis=1)
    return LatentSamples(jnp.concatenate([latents, jnp.moveaxis(w, 0, 1)], axis=-1), log_ratio, shared)


def _from_posterior(
    inputs: ObjectiveInputs, q: Posterior, observed: Observed, keys: ExampleKeys | None, samples: int
) -> LatentSamples:
    z = sample_or_mean(q, keys, "shared", samples)
    log_ratio = inputs.prior.log_prob(z) - repeat_leading(q, samples).log_prob(z).sum(axis=-1)
    return _add_private(inputs, z, observed, keys, log_ratio)


def from_product(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """From the product of the observed modalities' experts."""
    return _from_posterior(inputs, joint_product(inputs.experts, observed), observed, keys, samples)


def from_product_and_prior(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """From the product of the observed modalities' experts and the prior."""
    return _from_posterior(
        inputs, joint_product(inputs.experts, observed, prior=1.0), observed, keys, samples
    )


def from_full_product_and_prior(
    inputs: ObjectiveInputs, observed: Observed, keys, samples: int
) -> LatentSamples:
    """The same as `from_product_and_prior` where all modalities of an example are observed; elsewhere the same as
    `from_product`."""
    partial = joint_product(inputs.experts, observed)
    full = joint_product(inputs.experts, observed, prior=1.0)
    complete = (observed | ~inputs.present).all(axis=0)[:, None]
    q = jax.tree.map(lambda a, b: jnp.where(complete, a, b), full, partial)
    return _from_posterior(inputs, q, observed, keys, samples)


def _is_complete(inputs: ObjectiveInputs, observed: Observed) -> Bool[Array, "batch"]:
    """``bool [B]``: whether all modalities that an example has are observed, and it has at least one."""
    return (observed | ~inputs.present).all(axis=0) & observed.any(axis=0)


def from_joint(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """From the joint encoder where all modalities of an example are observed; elsewhere the same as `from_product`."""
    product = joint_product(inputs.experts, observed)
    complete = _is_complete(inputs, observed)[:, None]
    q = jax.tree.map(lambda a, b: jnp.where(complete, a, b), inputs.posterior, product)
    return _from_posterior(inputs, q, observed, keys, samples)


def from_mixture(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """From the mixture of the observed modalities' experts, stratified: the samples take turns among these experts.

    Without keys: the mean of the experts' means. Where nothing is observed: from the prior.
    """
    count = jnp.maximum(observed.sum(axis=0), 1)
    if keys is None:
        mean = jnp.where(observed[:, :, None], inputs.experts.mean, 0.0).sum(axis=0) / count[:, None]
        z = jnp.broadcast_to(mean[None], (samples, *mean.shape))
    else:
        # The first sample is of a random observed expert, each further one of the next observed expert in turn.
        start = jax.vmap(lambda key: jax.random.uniform(key))(fold_in_name(keys, "expert"))
        turn = (jnp.floor(start * count)[None, :] + jnp.arange(samples)[:, None]) % count[None, :]
        rank = jnp.cumsum(observed, axis=0) - 1
        is_selected = observed[:, None] & (rank[:, None] == turn[None].astype(rank.dtype))
        z = sample(select_per_example(inputs.experts, is_selected.argmax(axis=0)), keys, "shared")
    none_observed = ~observed.any(axis=0)
    prior_z = sample_prior(inputs.prior, keys, samples, len(none_observed))
    z = jnp.where(none_observed[None, :, None], prior_z, z)
    mixture = mixture_log_prob(inputs.experts, observed, z)
    prior = inputs.prior.log_prob(z)
    return _add_private(inputs, z, observed, keys, jnp.where(none_observed[None], 0.0, prior - mixture))


def from_messages(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """Nexus: the top-level latent is inferred from the mean message of the observed modalities' latents. The latents of
    the other modalities are decoded from it; the observed ones keep their own. Where nothing is observed the top-level
    latent is drawn from the prior."""
    count, networks = len(inputs.present), inputs.networks
    unimodal = sample_or_mean(inputs.experts, keys, "experts", samples)  # [R, M, B, D]
    encode_top = lambda latents: networks.encode_top(mean_message(networks.message(latents), observed))
    q = jax.vmap(encode_top)(unimodal)
    any_observed = observed.any(axis=0)[None, :, None]
    q = jax.tree.map(lambda a, b: jnp.where(any_observed, a, b), q, standard_like(q))
    top = q.mean if keys is None else sample(q, keys, "top")
    decoded = Normal(networks.decode_top(top), jnp.zeros((count, samples, *unimodal.shape[2:])))
    unimodal = jnp.moveaxis(unimodal, 0, 1)
    generated = decoded.mean
    if keys is not None:
        noise = standard_noise(keys, "codes", (samples, count, unimodal.shape[-1]))
        generated = decoded.reparametrize(jnp.moveaxis(noise, 0, 1))
    z = jnp.where(observed[:, None, :, None], unimodal, generated)
    experts = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], unimodal.shape), inputs.experts)
    unimodal_ratio = (decoded.log_prob(unimodal) - experts.log_prob(unimodal)).sum(axis=-1)
    log_ratio = (standard_like(q).log_prob(top) - q.log_prob(top)).sum(axis=-1)
    log_ratio = log_ratio + jnp.where(observed[:, None], unimodal_ratio, 0.0).sum(axis=0)
    return LatentSamples(z, log_ratio, top)


def from_levels(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """MHVAE: from the deepest level to the first, each from the product of its prior and the observed modalities'
    experts."""
    mask = jnp.broadcast_to(observed[None], (samples, *observed.shape))
    hierarchy = inputs.networks.top_down_pass(mask, keys)
    latents = repeat_leading(hierarchy.latents, len(inputs.present))
    return LatentSamples(latents, hierarchy.log_ratio, hierarchy.deepest)


def from_flows(
    inputs: ObjectiveInputs,
    observed: Observed,
    keys,
    samples: int,
    *,
    steps: int,
    leapfrog: int,
    step_size: float,
) -> LatentSamples:
    r"""JNF: from the joint encoder where all modalities of an example are observed; from one observed modality through
    its flow; from several by Hamiltonian Monte Carlo.

    The target of the Monte Carlo is the product :math:`p(z)^{1-n} \prod_m q_m(z)` over the n observed modalities, its
    start a sample of one of their :math:`q_m` (Senellart et al. 2025, arXiv:2502.03952, sec. 3.3); the samples have no
    known density, so ``log_ratio`` is NaN. Where nothing is observed: from the prior.
    """
    base = sample_or_mean(inputs.experts, keys, "experts", samples)
    unimodal = jax.vmap(inputs.networks.inverse_flow)(base)  # [R, M, B, D]
    start = jnp.take_along_axis(
        unimodal,
        jnp.broadcast_to(jnp.argmax(observed, axis=0)[None, None, :, None], (samples, 1, *base.shape[2:])),
        axis=1,
    )[:, 0]
    log_density = lambda z: flow_product_log_density(inputs, z, observed)
    count = observed.sum(axis=0)
    z = start
    if keys is not None:
        chain_samples = hamiltonian_monte_carlo(
            log_density, start, keys, steps=steps, leapfrog=leapfrog, step_size=step_size
        )
        z = jnp.where((count > 1)[None, :, None], chain_samples, start)
    z = jnp.where((count == 0)[None, :, None], sample_prior(inputs.prior, keys, samples, len(count)), z)
    joint = _from_posterior(inputs, inputs.posterior, observed, keys, samples)
    complete = _is_complete(inputs, observed)
    unimodal_ratio = inputs.prior.log_prob(z) - log_density(z)
    log_ratio = jnp.where((count == 1)[None], unimodal_ratio, jnp.where((count == 0)[None], 0.0, jnp.nan))
    shared = jnp.where(complete[None, :, None], joint.shared, z)
    return LatentSamples(
        repeat_leading(shared, len(inputs.present)),
        jnp.where(complete[None], joint.log_ratio, log_ratio),
        shared,
    )


def flow_product_log_density(
    inputs: ObjectiveInputs, z: Float[Array, "samples batch dim"], observed: Observed
) -> Float[Array, "samples batch"]:
    """``sum_m log q_m(z) - (n - 1) log p(z)`` over the n observed modalities, up to a constant (exact for n = 1)."""

    def sum_experts(z):
        base, log_det = inputs.networks.flow(z)
        terms = inputs.experts.log_prob(base).sum(axis=-1) + log_det
        return jnp.where(observed, terms, 0.0).sum(axis=0)

    return jax.vmap(sum_experts)(z) - (observed.sum(axis=0) - 1)[None] * inputs.prior.log_prob(z)


def hamiltonian_monte_carlo(
    log_density: Callable[[Array], Array],
    start: Float[Array, "samples batch dim"],
    keys: ExampleKeys,
    *,
    steps: int,
    leapfrog: int,
    step_size: float,
) -> Float[Array, "samples batch dim"]:
    """The states of Hamiltonian Monte Carlo after ``steps`` proposals of ``leapfrog`` steps of size ``step_size`` each
    (Neal 2011, arXiv:1206.1901, sec. 3). Every sample of every example is a separate chain.

    ``log_density(z [R, B, D]) -> [R, B]``, up to a constant.
    """
    samples, _, dim = start.shape
    gradient = jax.grad(lambda z: log_density(z).sum())

    def propose(z, step):
        """One proposal of every chain, accepted or rejected (a step of `jax.lax.scan`)."""
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        momentum = standard_noise(step_keys, "momentum", (samples, dim))

        def leap(state, _):
            z, v = state
            v = v + 0.5 * step_size * gradient(z)
            z = z + step_size * v
            return (z, v + 0.5 * step_size * gradient(z)), None

        (proposal, v), _ = jax.lax.scan(leap, (z, momentum), None, length=leapfrog)
        negative_energy = lambda z, v: log_density(z) - 0.5 * jnp.square(v).sum(axis=-1)
        gain = negative_energy(proposal, v) - negative_energy(z, momentum)
        draw = jax.vmap(lambda key: jax.random.uniform(key, (samples,)))(fold_in_name(step_keys, "accept"))
        accept = jnp.log(draw.T) < jnp.where(jnp.isfinite(gain), gain, -jnp.inf)
        return jnp.where(accept[..., None], proposal, z), None

    return jax.lax.scan(propose, start, jnp.arange(steps))[0]
