"""An autoencoder of one modality as a multimodal VAE of one, so that the same scores and reports serve both."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from xmodal_jax.models.vae.inference import Codes
from xmodal_jax.models.vae.multimodal import MultimodalVAE
from xmodal_jax.models.vae.single import VAE, VAEConfig
from xmodal_jax.types import Method


def as_multimodal(vae: VAE, config: VAEConfig, modality: str, classes: int = 0) -> MultimodalVAE:
    """The autoencoder's functions under the names of a multimodal VAE's.

    Of a conditional one (cvae) the decoder's input is the code and, as its last element, the label: an example's own,
    and in dreams one drawn from the key (class 0 without). With a prior of each label (``learn_prior``) there is no
    ``prior`` of codes alone.
    """
    labelled = config.model == "cvae"

    def told(batch, rows: int):
        return jnp.broadcast_to(
            batch["label"].astype(jnp.float32)[None, :, None], (rows, len(batch["label"]), 1)
        )

    def infer(params, batch, given, key, samples: int = 1):
        def of_row(row):
            own = None if key is None else jax.random.fold_in(key, row)
            return vae.encode(params, batch, own)

        shared = jnp.stack([of_row(row) for row in range(samples)])
        z = jnp.concatenate([shared, told(batch, samples)], axis=-1) if labelled else shared
        codes = Codes(z[None], jnp.full(shared.shape[:2], jnp.nan), shared)
        several = jnp.asarray(given).ndim == 2
        lift = lambda x: jnp.broadcast_to(x[None], (len(given), *x.shape))
        return jax.tree.map(lift, codes) if several else codes

    def decode(params, z, key):
        rows = z[0].reshape(-1, z.shape[-1])
        labels = None
        if labelled:
            rows, labels = rows[:, :-1], jnp.round(rows[:, -1]).astype(jnp.int32)
        made = vae.decode(params, rows, labels, key)
        return {modality: made.reshape(*z.shape[1:3], *made.shape[1:])}

    def unfold(params, shared, key):
        if not labelled:
            return shared[None, None]
        drawn = jnp.zeros(len(shared)) if key is None else jax.random.randint(key, (len(shared),), 0, classes)
        return jnp.concatenate([shared, drawn.astype(jnp.float32)[:, None]], axis=-1)[None, None]

    def prior(params, key, count: int):
        return jax.random.normal(key, (count, config.latent))

    def log_likelihood(params, batch, key, given, told, samples: int):
        return vae.log_likelihood(params, batch, key, samples)

    method = Method(vae.method.init, lambda *args, **how: None, vae.method.predict)
    own = None if labelled and config.learn_prior else prior
    return MultimodalVAE(method, (modality,), infer, decode, unfold, own, log_likelihood)
