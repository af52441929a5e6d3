"""Codes from some of the modalities: samples of ``q(z | x_given)`` for every kind of multimodal VAE, with the
densities that importance sampling needs."""

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


class Codes(NamedTuple):
    """R samples of the latent variables for each example."""

    z: Float[Array, "m rows batch latent"]
    """What each modality's decoder is given."""
    log_ratio: Float[Array, "rows batch"]
    """``log p(z) - log q(z | x_given)`` of all that was drawn; NaN where q has no density that can be computed."""
    shared: Float[Array, "rows batch dim"]
    """The variables that all modalities share (of several levels the deepest)."""


Given = Bool[Array, "m batch"]


def _draw(q: Posterior, keys, name: str, rows: int) -> Float[Array, "rows *batch dim"]:
    """``rows`` samples of ``q [..., B, D]``; with ``keys`` None its mean."""
    q = repeat_leading(q, rows)
    if keys is None:
        return q.mean
    return sample(q, keys, name)


def from_prior(prior: Prior, keys, rows: int, batch: int) -> Float[Array, "rows batch dim"]:
    """Samples of the shared variables' prior; without ``keys`` the mean of its likeliest component."""
    size = (rows, batch)
    if keys is None:
        return jnp.broadcast_to(
            prior.components.mean[prior.logits.argmax()][None, None], (*size, prior.components.mean.shape[-1])
        )
    choose = jax.vmap(lambda key: jax.random.categorical(key, prior.logits, shape=(rows,)))
    component = choose(fold_in_name(keys, "component")).T
    of_each = jax.tree.map(lambda x: x[component], prior.components)
    return of_each.reparametrize(standard_noise(keys, "prior", (rows, of_each.mean.shape[-1]), type(of_each)))


def _with_private(p: ObjectiveInputs, shared, given: Given, keys, ratio) -> Codes:
    """The shared code beside private ones: a given modality's own, and of another what its auxiliary prior says."""
    count, rows = len(p.present), shared.shape[0]
    codes = repeat_leading(shared, count)
    if p.private is None:
        return Codes(codes, ratio, shared)
    batch = shared.shape[1]
    lift = lambda x: jnp.broadcast_to(x[:, None], (count, batch, x.shape[-1]))
    told = jax.tree.map(
        lambda own, other: jnp.where(given[:, :, None], own, other),
        p.private, jax.tree.map(lift, p.prior.auxiliary),
    )  # fmt: skip
    w = _draw(told, keys, "private", rows)
    lifted = jax.tree.map(lambda x: jnp.broadcast_to(x.reshape(1, 1, 1, -1), w.shape), p.prior.private)
    gained = (lifted.log_prob(w) - repeat_leading(told, rows).log_prob(w)).sum(axis=-1)
    ratio = ratio + jnp.where(given[None], gained, 0.0).sum(axis=1)
    return Codes(jnp.concatenate([codes, jnp.moveaxis(w, 0, 1)], axis=-1), ratio, shared)


def _from(p: ObjectiveInputs, q: Posterior, given: Given, keys, rows: int) -> Codes:
    z = _draw(q, keys, "shared", rows)
    ratio = p.prior.log_prob(z) - repeat_leading(q, rows).log_prob(z).sum(axis=-1)
    return _with_private(p, z, given, keys, ratio)


def from_product(p: ObjectiveInputs, given: Given, keys, rows: int) -> Codes:
    """Of the product of the given experts."""
    return _from(p, joint_product(p.experts, given), given, keys, rows)


def from_product_and_prior(p: ObjectiveInputs, given: Given, keys, rows: int) -> Codes:
    """Of the product of the given experts and the prior."""
    return _from(p, joint_product(p.experts, given, prior=1.0), given, keys, rows)


def from_full_product_and_prior(p: ObjectiveInputs, given: Given, keys, rows: int) -> Codes:
    """`from_product_and_prior` where all that an example has is given, else `from_product`."""
    some = joint_product(p.experts, given)
    whole = joint_product(p.experts, given, prior=1.0)
    complete = (given | ~p.present).all(axis=0)[:, None]
    q = jax.tree.map(lambda a, b: jnp.where(complete, a, b), whole, some)
    return _from(p, q, given, keys, rows)


def _complete(p: ObjectiveInputs, given: Given) -> Bool[Array, "batch"]:
    """Where all that an example has is given, and it has something."""
    return (given | ~p.present).all(axis=0) & given.any(axis=0)


def _joint_or(p: ObjectiveInputs, other: Normal, given: Given) -> Normal:
    complete = _complete(p, given)[:, None]
    return jax.tree.map(lambda a, b: jnp.where(complete, a, b), p.posterior, other)


def from_joint(p: ObjectiveInputs, given: Given, keys, rows: int) -> Codes:
    """Of the joint encoder where all that an example has is given, else of the product of the given experts."""
    return _from(p, _joint_or(p, joint_product(p.experts, given), given), given, keys, rows)


def from_mixture(p: ObjectiveInputs, given: Given, keys, rows: int) -> Codes:
    """Of one of the given experts for each sample, in turn: K samples are stratified. Without keys the mean of their
    means."""
    count = jnp.maximum(given.sum(axis=0), 1)
    if keys is None:
        mean = jnp.where(given[:, :, None], p.experts.mean, 0.0).sum(axis=0) / count[:, None]
        z = jnp.broadcast_to(mean[None], (rows, *mean.shape))
    else:
        # A random first one, then the next that is given.
        first = jax.vmap(lambda key: jax.random.uniform(key))(fold_in_name(keys, "expert"))
        turn = (jnp.floor(first * count)[None, :] + jnp.arange(rows)[:, None]) % count[None, :]
        rank = jnp.cumsum(given, axis=0) - 1
        is_it = given[:, None] & (rank[:, None] == turn[None].astype(rank.dtype))
        q = select_per_example(p.experts, is_it.argmax(axis=0))
        z = q.reparametrize(standard_noise(keys, "shared", (rows, q.mean.shape[-1]), type(q)))
    none = ~given.any(axis=0)
    z = jnp.where(none[None, :, None], from_prior(p.prior, keys, rows, len(none)), z)
    mixture = mixture_log_prob(p.experts, given, z)
    prior = p.prior.log_prob(z)
    return _with_private(p, z, given, keys, jnp.where(none[None], 0.0, prior - mixture))


def from_messages(p: ObjectiveInputs, given: Given, keys, rows: int) -> Codes:
    """Of Nexus: the given modalities' codes send messages, the code above speaks to all; what is given is told from
    its own code. The code above is of the prior where none is given."""
    count = len(p.present)
    own = _draw(p.experts, keys, "experts", rows)  # [R, M, B, D]
    q = jax.vmap(lambda codes: p.networks.encode_top(mean_message(p.networks.message(codes), given)))(own)
    some = given.any(axis=0)[None, :, None]
    q = jax.tree.map(lambda told, prior: jnp.where(some, told, prior), q, standard_like(q))
    top = q.mean
    if keys is not None:
        top = q.reparametrize(standard_noise(keys, "top", (rows, q.mean.shape[-1])))
    told = Normal(p.networks.decode_top(top), jnp.zeros((count, rows, *own.shape[2:])))
    own = jnp.moveaxis(own, 0, 1)
    drawn = (
        told.mean
        if keys is None
        else told.reparametrize(
            jnp.moveaxis(standard_noise(keys, "codes", (rows, count, own.shape[-1])), 0, 1)
        )
    )
    z = jnp.where(given[:, None, :, None], own, drawn)
    here = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], own.shape), p.experts)
    gained = (told.log_prob(own) - here.log_prob(own)).sum(axis=-1)
    ratio = (standard_like(q).log_prob(top) - q.log_prob(top)).sum(axis=-1)
    return Codes(z, ratio + jnp.where(given[:, None], gained, 0.0).sum(axis=0), top)


def from_levels(p: ObjectiveInputs, given: Given, keys, rows: int) -> Codes:
    """Of MHVAE: from the deepest level down, the given experts and the prior of each."""
    there = jnp.broadcast_to(given[None], (rows, *given.shape))
    descent = p.networks.top_down_pass(there, keys)
    return Codes(repeat_leading(descent.latents, len(p.present)), descent.log_ratio, descent.deepest)


def from_flows(
    p: ObjectiveInputs, given: Given, keys, rows: int, *, steps: int, leapfrog: int, step_size: float
) -> Codes:
    r"""Of JNF: the joint encoder where all that an example has is given; one given expert through its flow; of several
    the product :math:`p(z)^{1-n} \prod_m q_m(z)` by Hamiltonian Monte Carlo from a sample of one of them (Senellart
    et al. 2025, arXiv:2502.03952, sec. 3.3), with no density to report. The prior where none is given."""
    base = _draw(p.experts, keys, "experts", rows)
    unflowed = jax.vmap(p.networks.unflow)(base)  # [R, M, B, D]
    start = jnp.take_along_axis(
        unflowed,
        jnp.broadcast_to(jnp.argmax(given, axis=0)[None, None, :, None], (rows, 1, *base.shape[2:])),
        axis=1,
    )[:, 0]
    density = lambda z: flow_product_density(p, z, given)
    count = given.sum(axis=0)
    z = start
    if keys is not None:
        moved = hamiltonian(density, start, keys, steps=steps, leapfrog=leapfrog, step_size=step_size)
        z = jnp.where((count > 1)[None, :, None], moved, start)
    z = jnp.where((count == 0)[None, :, None], from_prior(p.prior, keys, rows, len(count)), z)
    whole = _from(p, p.posterior, given, keys, rows)
    complete = _complete(p, given)
    alone = p.prior.log_prob(z) - density(z)
    ratio = jnp.where((count == 1)[None], alone, jnp.where((count == 0)[None], 0.0, jnp.nan))
    shared = jnp.where(complete[None, :, None], whole.shared, z)
    return Codes(
        repeat_leading(shared, len(p.present)), jnp.where(complete[None], whole.log_ratio, ratio), shared
    )


def flow_product_density(
    p: ObjectiveInputs, z: Float[Array, "rows batch dim"], given: Given
) -> Float[Array, "rows batch"]:
    """``sum_m log q_m(z) - (n - 1) log p(z)`` over the n given, up to a constant (exactly, for n = 1)."""

    def of_row(z):
        base, log_det = p.networks.flow(z)
        terms = p.experts.log_prob(base).sum(axis=-1) + log_det
        return jnp.where(given, terms, 0.0).sum(axis=0)

    return jax.vmap(of_row)(z) - (given.sum(axis=0) - 1)[None] * p.prior.log_prob(z)


def hamiltonian(
    density: Callable[[Array], Array],
    start: Float[Array, "rows batch dim"],
    keys,
    *,
    steps: int,
    leapfrog: int,
    step_size: float,
) -> Float[Array, "rows batch dim"]:
    """Where Hamiltonian Monte Carlo is after ``steps`` proposals of ``leapfrog`` steps each (Neal 2011,
    arXiv:1206.1901, sec. 3), every row of every example a chain of its own."""
    rows, _, dim = start.shape
    force = jax.grad(lambda z: density(z).sum())

    def propose(z, step):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        momentum = standard_noise(own, "momentum", (rows, dim))

        def leap(state, _):
            z, v = state
            v = v + 0.5 * step_size * force(z)
            z = z + step_size * v
            return (z, v + 0.5 * step_size * force(z)), None

        (there, v), _ = jax.lax.scan(leap, (z, momentum), None, length=leapfrog)
        energy = lambda z, v: density(z) - 0.5 * jnp.square(v).sum(axis=-1)
        gain = energy(there, v) - energy(z, momentum)
        draw = jax.vmap(lambda key: jax.random.uniform(key, (rows,)))(fold_in_name(own, "accept"))
        accept = jnp.log(draw.T) < jnp.where(jnp.isfinite(gain), gain, -jnp.inf)
        return jnp.where(accept[..., None], there, z), None

    return jax.lax.scan(propose, start, jnp.arange(steps))[0]
