"""From codes of a multimodal VAE to data."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.models.vae.networks import Group, Network
from xmodal_jax.probability.distributions import Normal, repeat_leading, standard_noise
from xmodal_jax.types import kind_of

Apply = Callable[..., Array]
"""``apply(method, *args)``: a method of the network with its parameters."""


def decode_all(network: Network, apply: Apply, z, key) -> dict[str, Array]:
    """Of every modality what its decoder says of ``z [M, R, B, D]``, ``[R, B, ...]``: images in [0, 1], ids, frames,
    classes; ids and classes drawn from ``key``, the likeliest where it is None."""
    found = {}
    for group, codes in network.parts(z):
        config = network.kinds[group.kind]
        if group.kind == "text":
            out = _write(network, apply, group, codes, key)
        else:
            out = apply("decode", group, codes)
            if group.kind == "label":
                out = out.argmax(axis=-1) if key is None else jax.random.categorical(key, out)
            elif group.kind == "image":
                out = jax.nn.sigmoid(out) if config.likelihood == "bernoulli" else jnp.clip(out, 0.0, 1.0)
        found |= dict(zip(group.names, out, strict=True))
    return {name: found[name] for name in network.names}


def _write(network: Network, apply, group: Group, codes, key) -> Array:
    """Ids ``[G, R, B, L]``: all at once, or one after another where each goes on from those before."""
    length = group.size.shape[0]
    choose = lambda logits, t: (
        logits.argmax(axis=-1) if key is None else jax.random.categorical(jax.random.fold_in(key, t), logits)
    )
    if network.kinds["text"].decoder.name != "autoregressive":
        return choose(apply("decode", group, codes), 0)

    def go_on(t, ids):
        logits = apply("decode", group, codes, ids)
        return ids.at[..., t].set(choose(logits[..., t, :], t))

    return jax.lax.fori_loop(0, length, go_on, jnp.zeros((*codes.shape[:3], length), jnp.int32))


def unfold_shared(
    apply: Apply, network: Network, shared: Float[Array, "n dim"], keys
) -> Float[Array, "m 1 n latent"]:
    c, count, batch = network.config, len(network.names), len(shared)

    def draw(told, name):
        return (
            told.mean
            if keys is None
            else told.reparametrize(standard_noise(keys, name, (count, told.mean.shape[-1]), type(told)))
        )

    if c.top:
        codes = apply("decode_top", shared)
        return draw(Normal(codes, jnp.zeros_like(codes)), "codes")[:, None]
    if c.levels > 1:
        features, none = jnp.zeros((count, batch, c.hidden)), jnp.zeros((1, count, batch), bool)
        return repeat_leading(apply("top_down_pass", features, none, keys, shared[None]).latents, count)
    z = repeat_leading(shared, count)
    if c.private:
        other = jax.tree.map(
            lambda x: jnp.broadcast_to(x[:, None], (count, batch, c.private)), apply("prior").auxiliary
        )
        z = jnp.concatenate([z, draw(other, "private")], axis=-1)
    return z[:, None]


def as_batch(
    outputs: dict[str, Array], to_log_mel: Callable[[Array], Array], *, end: int = -1
) -> dict[str, Array]:
    """What `decode_all` gave, without rows (``[B, ...]``), as a batch of data: uint8 images, texts masked up to their
    first ``end`` token, log-mel frames."""
    batch: dict[str, Array] = {}
    for name, x in outputs.items():
        kind = kind_of(name)
        if kind == "image":
            batch[name] = jnp.round(x * 255.0).astype(jnp.uint8)
        elif kind == "text":
            ended = jnp.cumsum(x == end, axis=-1) - (x == end)
            batch[name], batch[f"{name}_mask"] = x, (ended == 0) & (x != 0)
        elif kind == "audio":
            batch[name], batch[f"{name}_mask"] = to_log_mel(x), jnp.ones(x.shape[:2], bool)
        else:
            batch[name] = x.astype(jnp.int32)
    batch["index"] = jnp.arange(len(x), dtype=jnp.int32)
    return batch
