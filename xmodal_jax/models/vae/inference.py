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
from jaxtyping import Array, Bool, Float, Int

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
from xmodal_jax.probability.mixtures import Mixture
from xmodal_jax.probability.posteriors import joint_product, mixture_log_prob, select_per_example
from xmodal_jax.probability.priors import Prior
from xmodal_jax.types import ExampleKeys


class LatentSamples(NamedTuple):
    """R samples of the latents of each example."""

    z: Float[Array, "m samples batch latent"]
    """``[M, R, B, D']``: the latents that each modality is decoded from."""
    log_ratio: Float[Array, "samples batch"]
    """``[R, B]``: ``log p(z) - log q(z | x_observed)`` of all latents; NaN where the density of q is not known."""
    shared: Float[Array, "samples batch dim"]
    """``[R, B, D]``: the latents that all modalities share (in a hierarchy the deepest ones)."""


Observed = Bool[Array, "m batch"]
"""The modalities to infer from: True only where they are present."""


def sample_or_mean(
    q: Posterior, keys: ExampleKeys | None, name: str, samples: int
) -> Float[Array, "samples *batch dim"]:
    """R samples of ``q [..., B, D]``, where R is ``samples``; without keys R copies of its mean.

    ``name`` selects the random stream of an example's key.
    """
    q = repeat_leading(q, samples)
    return q.mean if keys is None else sample(q, keys, name)


def sample_prior(
    prior: Prior, keys: ExampleKeys | None, samples: int, batch: int
) -> Float[Array, "samples batch dim"]:
    """Samples of the prior of the shared latents, a mixture; without keys the mean of its likeliest component.

    ``samples`` and ``batch`` are the numbers R and B of the result ``[R, B, D]``: R for each of the B ``keys``.
    """
    if keys is None:
        mean = prior.components.mean[prior.logits.argmax()]  # [D]
        return jnp.broadcast_to(mean[None, None], (samples, batch, mean.shape[-1]))
    draw_components = jax.vmap(lambda key: jax.random.categorical(key, prior.logits, shape=(samples,)))
    component = draw_components(fold_in_name(keys, "component")).T  # index of a component, [samples, B]
    drawn_components = jax.tree.map(lambda x: x[component], prior.components)
    return sample(drawn_components, keys, "prior")


def with_exact_prior(inputs: ObjectiveInputs) -> ObjectiveInputs:
    """``inputs`` with the prior ``p(w)`` of private latents in place of their auxiliary priors.

    In training, the private latents of a modality that is not observed are drawn from its auxiliary prior. With the
    result they are drawn from ``p(w)``, as an estimate of the likelihood needs: there ``p(w) / q(w)`` is then 1, which
    `LatentSamples.log_ratio` leaves out.
    """
    prior = inputs.prior
    if inputs.private is None:
        return inputs
    # The prior [P], for each of the M modalities like the auxiliary priors [M, P].
    exact = jax.tree.map(
        lambda p, auxiliary: jnp.broadcast_to(p[None], auxiliary.shape), prior.private, prior.auxiliary
    )
    return inputs._replace(prior=prior._replace(auxiliary=exact))


def add_private(
    inputs: ObjectiveInputs, shared, observed: Observed, keys: ExampleKeys | None, log_ratio
) -> LatentSamples:
    """``shared [R, B, D]`` followed by private latents, where the model has them.

    The private latents of an observed modality are drawn from its posterior ``q(w_m | x_m)``, those of modalities that
    are not observed from their auxiliary priors, as in training. ``log_ratio [R, B]``, that of the shared latents, gets
    ``log p(w_m) - log q(w_m | x_m)`` of the observed modalities added. An estimate of the likelihood needs the private
    latents of modalities that are not observed to be from the prior ``p(w)``: it takes `with_exact_prior` of the
    inputs. Without ``keys`` private latents are means.
    """
    count, samples = len(inputs.present), shared.shape[0]
    latents = repeat_leading(shared, count)  # [M, R, B, D]
    if inputs.private is None:
        return LatentSamples(latents, log_ratio, shared)
    batch = shared.shape[1]
    to_batch = lambda x: jnp.broadcast_to(x[:, None], (count, batch, x.shape[-1]))  # [M, P] -> [M, B, P]
    # The mean and the scale of each modality's distribution: its posterior or its auxiliary prior, [M, B, P].
    q = jax.tree.map(
        lambda private, auxiliary: jnp.where(observed[:, :, None], private, auxiliary),
        inputs.private,
        jax.tree.map(to_batch, inputs.prior.auxiliary),
    )
    w = sample_or_mean(q, keys, "private", samples)  # [R, M, B, P]
    # The prior p(w), [P], the same for all samples, modalities and examples.
    prior = jax.tree.map(lambda x: jnp.broadcast_to(x.reshape(1, 1, 1, -1), w.shape), inputs.prior.private)
    private_ratio = (prior.log_prob(w) - repeat_leading(q, samples).log_prob(w)).sum(axis=-1)  # [R, M, B]
    log_ratio = log_ratio + jnp.where(observed[None], private_ratio, 0.0).sum(axis=1)
    return LatentSamples(jnp.concatenate([latents, jnp.moveaxis(w, 0, 1)], axis=-1), log_ratio, shared)


def from_posterior(
    inputs: ObjectiveInputs, q: Posterior, observed: Observed, keys: ExampleKeys | None, samples: int
) -> LatentSamples:
    """R samples of the posterior ``q [B, D]`` of the shared latents (its mean without keys), and private latents.

    ``observed``: the modalities whose private latents are inferred; see `add_private` for those of the others.
    """
    z = sample_or_mean(q, keys, "shared", samples)
    log_ratio = inputs.prior.log_prob(z) - repeat_leading(q, samples).log_prob(z).sum(axis=-1)
    return add_private(inputs, z, observed, keys, log_ratio)


# The posteriors of the shared latents whose density is known, given the observed modalities.


def product(inputs: ObjectiveInputs, observed: Observed) -> Normal:
    """``[B, D]``: the product of the observed modalities' experts."""
    return joint_product(inputs.experts, observed)


def product_and_prior(inputs: ObjectiveInputs, observed: Observed) -> Normal:
    """``[B, D]``: the product of the observed modalities' experts and the prior N(0, 1)."""
    return joint_product(inputs.experts, observed, prior=1.0)


def full_product_and_prior(inputs: ObjectiveInputs, observed: Observed) -> Normal:
    """``[B, D]``: `product_and_prior` where all modalities that an example has are observed; elsewhere `product`."""
    # Both products are computed, and each example takes one of them. prior: the weight of N(0, 1) as one more expert.
    without_prior, with_prior = product(inputs, observed), product_and_prior(inputs, observed)
    all_observed = (observed | ~inputs.present).all(axis=0)[:, None]  # [B, 1]
    return jax.tree.map(lambda a, b: jnp.where(all_observed, a, b), with_prior, without_prior)


def joint_or_product(inputs: ObjectiveInputs, observed: Observed) -> Posterior:
    """``[B, D]``: the joint encoder's posterior where all modalities that an example has are observed; elsewhere
    `product`."""
    complete = _is_complete(inputs, observed)[:, None]
    return jax.tree.map(lambda a, b: jnp.where(complete, a, b), inputs.posterior, product(inputs, observed))


def mixture(inputs: ObjectiveInputs, observed: Observed) -> Mixture:
    """The mixture ``1/n sum_m q(z | x_m)`` of the n observed modalities' experts; the prior where none is observed.

    It has M components for the experts and, after them, those of the prior; who is not in the mixture has the weight 0.
    """
    batch, prior = observed.shape[1], inputs.prior
    to_batch = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], batch, x.shape[-1]))  # [C, D] -> [C, B, D]
    components = jax.tree.map(
        lambda experts, of_prior: jnp.concatenate([experts, to_batch(of_prior)]),
        inputs.experts,
        prior.components,
    )
    count = observed.sum(axis=0)  # n, [B]
    of_experts = jnp.where(observed, -jnp.log(jnp.maximum(count, 1).astype(jnp.float32))[None], -jnp.inf)
    log_prior = jax.nn.log_softmax(prior.logits)[:, None]
    of_prior = jnp.where(count[None] == 0, jnp.broadcast_to(log_prior, (len(log_prior), batch)), -jnp.inf)
    return Mixture(components, jnp.concatenate([of_experts, of_prior]))


def _is_complete(inputs: ObjectiveInputs, observed: Observed) -> Bool[Array, "batch"]:
    """``bool [B]``: whether all modalities that an example has are observed, and it has at least one."""
    return (observed | ~inputs.present).all(axis=0) & observed.any(axis=0)


def from_mixture(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """Latents from the mixture ``1/n sum_m q(z | x_m)`` of the n observed modalities' experts, R of each example.

    Stratified: the R samples take turns among the experts, beginning with a random one. Without keys: the mean of the
    experts' means. Where nothing is observed: from the prior.
    """
    if keys is None:
        z = _mean_of_experts(inputs, observed, samples)
    else:
        index = _take_turns(observed, keys, samples)
        z = sample(select_per_example(inputs.experts, index), keys, "shared")
    # Where nothing is observed the mixture is empty: the prior replaces it.
    none_observed = ~observed.any(axis=0)
    prior_z = sample_prior(inputs.prior, keys, samples, none_observed.shape[0])
    z = jnp.where(none_observed[None, :, None], prior_z, z)
    log_q = mixture_log_prob(inputs.experts, observed, z)
    log_p = inputs.prior.log_prob(z)
    log_ratio = jnp.where(none_observed[None], 0.0, log_p - log_q)  # q is the prior where nothing is observed
    return add_private(inputs, z, observed, keys, log_ratio)


def _mean_of_experts(
    inputs: ObjectiveInputs, observed: Observed, samples: int
) -> Float[Array, "samples batch dim"]:
    """``samples`` copies of the mean of the mixture of the observed modalities' experts; 0 where none is observed."""
    count = jnp.maximum(observed.sum(axis=0), 1)  # n, [B]
    mean = jnp.where(observed[:, :, None], inputs.experts.mean, 0.0).sum(axis=0) / count[:, None]
    return jnp.broadcast_to(mean[None], (samples, *mean.shape))


def _take_turns(observed: Observed, keys: ExampleKeys, samples: int) -> Int[Array, "samples batch"]:
    """The index of the observed modality that each of R samples is drawn from: they take turns among the n observed
    ones, beginning with a random one; 0 where none is observed."""
    count = jnp.maximum(observed.sum(axis=0), 1)  # n, [B]
    # Sample r is drawn from the observed expert number (start + r) mod n, where start is random.
    uniform = jax.vmap(lambda key: jax.random.uniform(key))(fold_in_name(keys, "expert"))
    number = (jnp.floor(uniform * count)[None, :] + jnp.arange(samples)[:, None]) % count[None, :]  # [R, B]
    # The number of each observed modality among the example's observed ones, from 0: [M, B].
    rank = jnp.cumsum(observed, axis=0) - 1
    is_selected = observed[:, None] & (rank[:, None] == number[None].astype(rank.dtype))  # [M, R, B]
    return is_selected.argmax(axis=0)


def from_own_expert(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """MMVM: each observed modality is decoded from a latent of its own posterior; the others are decoded from the
    latent of an observed one, which is also the shared latent.

    The R samples take turns among the observed modalities, beginning with a random one. Without keys the latents are
    means, and the shared one is the mean of the observed modalities' means. Where nothing is observed all modalities
    have one latent of N(0, 1), as the model has no prior; ``log_ratio`` is NaN for the same reason.
    """
    unimodal = sample_or_mean(inputs.experts, keys, "experts", samples)  # [R, M, B, D]
    if keys is None:
        shared = _mean_of_experts(inputs, observed, samples)
    else:
        index = _take_turns(observed, keys, samples)[:, None, :, None]
        shared = jnp.take_along_axis(unimodal, index, axis=1)[:, 0]  # [R, B, D]
    any_observed = observed.any(axis=0)[None, :, None]
    shared = jnp.where(any_observed, shared, sample_prior(inputs.prior, keys, samples, observed.shape[1]))
    z = jnp.where(observed[:, None, :, None], jnp.moveaxis(unimodal, 0, 1), shared[None])  # [M, R, B, D]
    return LatentSamples(z, jnp.full(shared.shape[:2], jnp.nan), shared)


def from_messages(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """Nexus: each modality has a latent, and a top-level latent t is shared by all.

    The latents of the observed modalities are samples of their experts ``q(z_m | x_m)``. The top-level latent is
    inferred from the mean of their messages, or drawn from its prior N(0, 1) where nothing is observed. The latents of
    the other modalities are drawn from ``p(z_m | t) = N(decode_top(t), 1)``. Without keys all are means.
    """
    count, networks = len(inputs.present), inputs.networks
    unimodal = sample_or_mean(inputs.experts, keys, "experts", samples)  # [R, M, B, D]
    encode_top = lambda latents: networks.encode_top(mean_message(networks.message(latents), observed))
    q = jax.vmap(encode_top)(
        unimodal
    )  # q(t | x) for each of the R samples of the modalities' latents, [R, B, T]
    any_observed = observed.any(axis=0)[None, :, None]
    q = jax.tree.map(lambda a, b: jnp.where(any_observed, a, b), q, standard_like(q))
    top = q.mean if keys is None else sample(q, keys, "top")  # t, [R, B, T]
    # p(z_m | t) of every modality, with log-scale 0: [M, R, B, D].
    p_given_top = Normal(networks.decode_top(top), jnp.zeros((count, samples, *unimodal.shape[2:])))
    unimodal = jnp.moveaxis(unimodal, 0, 1)  # [M, R, B, D]
    from_top = p_given_top.mean
    if keys is not None:
        noise = standard_noise(keys, "codes", (samples, count, unimodal.shape[-1]))
        from_top = p_given_top.reparametrize(jnp.moveaxis(noise, 0, 1))
    z = jnp.where(observed[:, None, :, None], unimodal, from_top)
    # log p(t) - log q(t | x) + sum over observed m of log p(z_m | t) - log q(z_m | x_m)
    experts = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], unimodal.shape), inputs.experts)
    unimodal_ratio = (p_given_top.log_prob(unimodal) - experts.log_prob(unimodal)).sum(axis=-1)
    log_ratio = (standard_like(q).log_prob(top) - q.log_prob(top)).sum(axis=-1)
    log_ratio = log_ratio + jnp.where(observed[:, None], unimodal_ratio, 0.0).sum(axis=0)
    return LatentSamples(z, log_ratio, top)


def from_levels(inputs: ObjectiveInputs, observed: Observed, keys, samples: int) -> LatentSamples:
    """MHVAE (a hierarchy of latents): from the deepest level to the first, each level's latents from the product of its
    prior and the observed modalities' experts.

    ``samples``: R, the number of samples of each example; without ``keys`` all R are the means. The result's
    ``log_ratio`` is ``log p(z) - log q(z | x_observed)``, summed over the levels.
    """
    mask = jnp.broadcast_to(observed[None], (samples, *observed.shape))  # [R, M, B]
    hierarchy = inputs.networks.top_down_pass(mask, keys)
    latents = repeat_leading(
        hierarchy.latents, len(inputs.present)
    )  # all modalities are decoded from the first level
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
    r"""JNF (joint normalizing flows): latents from the joint encoder where all modalities of an example are observed;
    from one observed modality through its flow; from several by Hamiltonian Monte Carlo.

    The target of the Monte Carlo is the product :math:`p(z)^{1-n} \prod_m q_m(z)` over the n observed modalities, its
    start a sample of one of their :math:`q_m` (Senellart et al. 2025, arXiv:2502.03952, sec. 3.3); the samples have no
    known density, so ``log_ratio`` is NaN. Where nothing is observed: from the prior.

    Without ``keys`` there is no Monte Carlo, and the start serves. ``steps``: its proposals. ``leapfrog``: leapfrog
    steps of each proposal. ``step_size``: size of a leapfrog step.
    """
    # Samples of each modality's posterior q_m, through the flow of this modality: [R, M, B, D].
    base = sample_or_mean(inputs.experts, keys, "experts", samples)
    unimodal = jax.vmap(inputs.networks.inverse_flow)(base)
    # The index of each example's first observed modality, [1, 1, B, 1]; 0 where none is, which is replaced below.
    first_observed = jnp.argmax(observed, axis=0)[None, None, :, None]
    start = jnp.take_along_axis(
        unimodal, jnp.broadcast_to(first_observed, (samples, 1, *base.shape[2:])), axis=1
    )[:, 0]  # the first observed modality's: [R, 1, B, D] -> [R, B, D]
    log_density = lambda z: flow_product_log_density(inputs, z, observed)
    count = observed.sum(axis=0)  # n, [B]
    z = start  # right for one observed modality
    if keys is not None:
        chain_samples = hamiltonian_monte_carlo(
            log_density, start, keys, steps=steps, leapfrog=leapfrog, step_size=step_size
        )
        z = jnp.where((count > 1)[None, :, None], chain_samples, start)
    z = jnp.where((count == 0)[None, :, None], sample_prior(inputs.prior, keys, samples, count.shape[0]), z)
    joint = from_posterior(inputs, inputs.posterior, observed, keys, samples)
    complete = _is_complete(inputs, observed)
    # The density of q is known for one observed modality (its flow) and for none (the prior), not for several.
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
    """``sum_m log q_m(z) - (n - 1) log p(z)`` over the n observed modalities, up to a constant (exact for n = 1).

    ``inputs``: has the experts, the flows and the prior p. q_m is the posterior given modality m, through its flow.
    """

    def sum_experts(z):
        """``sum_m log q_m(z)`` ``[B]``, where ``log q_m(z)`` is the expert's log-density in the base space of the
        modality's flow plus the flow's ``log |det|``."""
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
    """The last states of Hamiltonian Monte Carlo chains (Neal 2011, arXiv:1206.1901, sec. 3), one chain for each of the
    R samples of each example.

    Args:
      log_density: ``log_density(z [R, B, D]) -> [R, B]``, the target up to a constant.
      start: the first states.
      keys: of the examples, one each.
      steps: number of proposals of each chain.
      leapfrog: leapfrog steps of each proposal.
      step_size: size of a leapfrog step.
    """
    samples, _, dim = start.shape
    # The gradient of every chain's log-density: as the chains do not depend on each other, that of their sum.
    gradient = jax.grad(lambda z: log_density(z).sum())

    def propose(z, step):
        """One proposal of every chain, accepted or rejected: the next states (a step of `jax.lax.scan`, which also
        wants a second output; here None)."""
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        momentum = standard_noise(step_keys, "momentum", (samples, dim))

        def leapfrog_step(state, _):
            """Half a step of the momentum v, a step of the position z, half a step of v; ``state`` is ``(z, v)``."""
            z, v = state
            v = v + 0.5 * step_size * gradient(z)
            z = z + step_size * v
            return (z, v + 0.5 * step_size * gradient(z)), None

        (proposal, v), _ = jax.lax.scan(leapfrog_step, (z, momentum), None, length=leapfrog)
        # The proposal is accepted with probability min(1, exp(-H(proposal, v) + H(z, momentum))), where the energy is
        # H(z, v) = -log_density(z) + |v|^2 / 2. A proposal whose energy is not finite is rejected.
        negative_energy = lambda z, v: log_density(z) - 0.5 * jnp.square(v).sum(axis=-1)
        gain = negative_energy(proposal, v) - negative_energy(z, momentum)
        draw = jax.vmap(lambda key: jax.random.uniform(key, (samples,)))(fold_in_name(step_keys, "accept"))
        # draw [B, R], the others [R, B].
        accept = jnp.log(draw.T) < jnp.where(jnp.isfinite(gain), gain, -jnp.inf)
        return jnp.where(accept[..., None], proposal, z), None

    return jax.lax.scan(propose, start, jnp.arange(steps))[0]  # the last states
