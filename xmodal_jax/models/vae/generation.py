"""Decoding: from the latents of a VAE to data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.models.vae.networks import Apply, Network
from xmodal_jax.probability.distributions import Normal, Posterior, repeat_leading, standard_noise
from xmodal_jax.types import ExampleKeys, Key


def decode_all(
    network: Network, apply: Apply, z: Float[Array, "m samples batch latent"], key: Key | None
) -> dict[str, Array]:
    """Data ``[R, B, ...]`` of every modality, as `ModalityConfig.generate` makes it from latents."""
    generated = {}
    for group, latents in network.split_groups(z):
        decode = lambda tokens, group=group, latents=latents: apply("decode", group, latents, tokens)
        data = network.modalities[group.kind].generate(decode, latents, group.size, key)
        generated |= dict(zip(group.names, data, strict=True))
    return {name: generated[name] for name in network.names}


def _per_modality(q: Posterior, keys: ExampleKeys | None, name: str) -> Float[Array, "m batch dim"]:
    """A sample of each distribution of ``q [M, B, D]``; without keys its mean."""
    if keys is None:
        return q.mean
    return q.reparametrize(standard_noise(keys, name, (len(q.mean), q.mean.shape[-1]), type(q)))


def decoder_latents(
    network: Network, apply: Apply, shared: Float[Array, "n dim"], keys: ExampleKeys | None
) -> Float[Array, "m 1 n latent"]:
    """The latents that all modalities are decoded from, given the shared ones alone.

    Private latents are samples of their auxiliary priors; without ``keys``, the means of these.
    """
    count, batch, private = len(network.names), len(shared), network.config.private
    z = repeat_leading(shared, count)
    if private:
        auxiliary = jax.tree.map(
            lambda x: jnp.broadcast_to(x[:, None], (count, batch, private)), apply("prior").auxiliary
        )
        z = jnp.concatenate([z, _per_modality(auxiliary, keys, "private")], axis=-1)
    return z[:, None]


def decoder_latents_from_top(
    network: Network, apply: Apply, top: Float[Array, "n top"], keys: ExampleKeys | None
) -> Float[Array, "m 1 n latent"]:
    """The same as `decoder_latents`, but from the top-level latent of Nexus."""
    mean = apply("decode_top", top)
    return _per_modality(Normal(mean, jnp.zeros_like(mean)), keys, "codes")[:, None]


def decoder_latents_from_deepest(
    network: Network, apply: Apply, deepest: Float[Array, "n latent"], keys: ExampleKeys | None
) -> Float[Array, "m 1 n latent"]:
    """The same as `decoder_latents`, but from the deepest latents of a hierarchy."""
    count, batch = len(network.names), len(deepest)
    features = jnp.zeros((count, batch, network.config.hidden))
    none_observed = jnp.zeros((1, count, batch), bool)
    hierarchy = apply("top_down_pass", features, none_observed, keys, deepest[None])
    return repeat_leading(hierarchy.latents, count)
