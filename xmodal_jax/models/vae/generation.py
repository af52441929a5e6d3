"""Decoding: from the latents of a VAE to data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.models.vae.networks import Apply, Network
from xmodal_jax.probability.distributions import Normal, Posterior, repeat_leading, sample
from xmodal_jax.types import ExampleKeys, Key


def decode_all(
    network: Network,
    apply: Apply,
    z: Float[Array, "m samples batch latent"],
    key: Key | None,
    *,
    with_noise: bool = False,
) -> dict[str, Array]:
    """Data ``[R, B, ...]`` of every modality, decoded from its latents ``z[m]`` (R samples of each of B examples).

    ``apply(method, *args)``: calls a method of ``network`` with its parameters. Texts and classes are drawn from
    ``key``; without a key they are the likeliest ones. ``with_noise``: whether real numbers are drawn from their
    likelihood as well, and are not its mean; it needs a key.
    """
    generated = {}
    for group, latents in network.split_groups(z):
        # Modalities of one kind and size are decoded together; `latents` and `data` have a leading axis over them.
        decode_tokens = functools.partial(apply, "decode", group, latents)
        config = network.modalities[group.kind]
        if with_noise:
            # A key for each group: noise of the same shape would else be the same in all.
            data = config.sample(decode_tokens, latents, group.size, fold_in_name(key, group.names[0]))
        else:
            data = config.generate(decode_tokens, latents, group.size, key)
        generated |= dict(zip(group.names, data, strict=True))
    return {name: generated[name] for name in network.names}


def _sample_or_mean(q: Posterior, keys: ExampleKeys | None, name: str) -> Float[Array, "m batch dim"]:
    """A sample of each distribution of ``q [M, B, D]``; without keys its mean. ``name`` selects the random stream."""
    return q.mean if keys is None else sample(q, keys, name)


def decoder_latents(
    network: Network, apply: Apply, shared: Float[Array, "n dim"], keys: ExampleKeys | None
) -> Float[Array, "m 1 n latent"]:
    """The latents that each modality is decoded from, given N shared latents; the second axis is that of samples.

    ``apply(method, *args)``: calls a method of ``network`` with its parameters. The shared latents are followed by the
    modality's private ones, if the model has them: a sample of their prior ``p(w)``; without ``keys`` the mean of this
    prior. (The auxiliary priors belong to the translation from another modality, see `inference`.)
    """
    modalities, count, private = (
        len(network.names),
        shared.shape[0],
        network.config.private,
    )  # M, N, private dimensions
    z = repeat_leading(shared, modalities)  # [M, N, D]
    if private:
        # The prior [private], the same for all modalities and latents: [M, N, private].
        prior = jax.tree.map(
            lambda x: jnp.broadcast_to(x[None, None], (modalities, count, private)), apply("prior").private
        )
        z = jnp.concatenate([z, _sample_or_mean(prior, keys, "private")], axis=-1)
    return z[:, None]  # [M, 1 sample, N, D']


def decoder_latents_from_top(
    network: Network, apply: Apply, top: Float[Array, "n top"], keys: ExampleKeys | None
) -> Float[Array, "m 1 n latent"]:
    """The same as `decoder_latents`, but from the top-level latent of Nexus: each modality's latent is a sample of
    ``N(mean(top), 1)``, or the mean without ``keys``. ``apply(method, *args)``: calls a method of ``network``."""
    mean = apply("decode_top", top)
    latents = _sample_or_mean(Normal(mean, log_scale=jnp.zeros_like(mean)), keys, name="codes")
    return latents[:, None]  # [M, 1 sample, N, D']


def decoder_latents_from_deepest(
    network: Network, apply: Apply, deepest: Float[Array, "n latent"], keys: ExampleKeys | None
) -> Float[Array, "m 1 n latent"]:
    """The same as `decoder_latents`, but from the deepest latents of a hierarchy.

    Since no modality is observed, the latents of the other levels come from their priors (samples drawn with ``keys``,
    else means), and the encoders' features have no influence. ``apply(method, *args)``: calls a method of ``network``.
    """
    modalities, count = len(network.names), deepest.shape[0]
    features = jnp.zeros((modalities, count, network.config.hidden))
    none_observed = jnp.zeros((1, modalities, count), bool)  # the first axis is that of samples
    hierarchy = apply("top_down_pass", features, none_observed, keys, deepest[None])
    return repeat_leading(
        hierarchy.latents, modalities
    )  # all modalities are decoded from the first level's latents
