"""An autoencoder of one modality as a multimodal VAE with one modality, so that the same metrics and reports serve
both."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.models.vae.inference import LatentSamples
from xmodal_jax.models.vae.multimodal import MultimodalVAE
from xmodal_jax.models.vae.single import VAE
from xmodal_jax.models.vae.single_models import AutoencoderConfig
from xmodal_jax.types import Batch, Key, Method, Params


def as_multimodal(vae: VAE, config: AutoencoderConfig, modality: str, classes: int = 0) -> MultimodalVAE:
    """The functions of ``vae``, an autoencoder of one ``modality``, under the names of a multimodal VAE's.

    ``config``: of the autoencoder. ``classes``: number of classes, for a conditional model. In a conditional model
    (cvae) the last element of the latents that are decoded is the label: the example's label or, for samples of the
    prior, one drawn from the key (class 0 without a key). If the prior depends on the label (``learn_prior``),
    ``sample_prior`` is None.
    """
    adapter = _Adapter(vae, config, modality, classes)
    # The adapted model is not trained: its loss is never called.
    method = Method(vae.method.init, lambda *args, **options: None, vae.method.predict)
    sample_prior = None if config.learn_prior else adapter.sample_prior
    return MultimodalVAE(
        method,
        modalities=(modality,),
        infer=adapter.infer,
        decode=adapter.decode,
        decoder_latents=adapter.decoder_latents,
        sample_prior=sample_prior,
        log_likelihood=adapter.log_likelihood,
        class_latents=adapter.class_latents if config.conditional else None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Adapter:
    """Presents a VAE of one modality through the interface of `MultimodalVAE`, with M = 1 modality."""

    vae: VAE
    config: AutoencoderConfig
    modality: str
    classes: int

    def infer(
        self, params: Params, batch: Batch, observed: Any, key: Key | None, samples: int = 1
    ) -> LatentSamples:
        """``samples`` latents of each example; without a key ``samples`` times the posterior's mean.

        The values of ``observed`` are ignored, since there is only one modality to infer from. With S masks (``[S, 1]``
        in place of ``[1]``) all arrays have a leading axis S, see `MultimodalVAE.infer`.
        """

        def encode_sample(index: int) -> Float[Array, "batch dim"]:
            """Sample number ``index`` of each example's latent, or the posterior's mean without a key."""
            return self.vae.encode(params, batch, key=None if key is None else jax.random.fold_in(key, index))

        shared = jnp.stack([encode_sample(index) for index in range(samples)])
        z = self.append_label(shared, batch["label"]) if self.config.conditional else shared
        # The log-ratio of prior and posterior is NaN, "not computed": `log_likelihood` below uses the VAE's estimator.
        z = z[None]  # [1 modality, samples, B, D']
        latents = LatentSamples(z, log_ratio=jnp.full(shared.shape[:2], jnp.nan), shared=shared)
        # Every one of the S masks has the same result.
        if jnp.asarray(observed).ndim == 1:
            return latents
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (len(observed), *x.shape)), latents)

    @staticmethod
    def append_label(
        z: Float[Array, "samples batch dim"], labels: Array
    ) -> Float[Array, "samples batch latent"]:
        """Latents with the number of the example's class (``labels [B]``) as one more element at the end."""
        labels = labels.astype(jnp.float32)[None, :, None]
        return jnp.concatenate([z, jnp.broadcast_to(labels, (*z.shape[:2], 1))], axis=-1)

    def decode(self, params: Params, z: Array, key: Key | None) -> dict[str, Array]:
        """``{modality: data [R, B, ...]}``, decoded from latents ``z [1, R, B, D']``: R samples of each of B examples.

        ``key``: draws texts and classes; None: the likeliest ones. In a conditional model the last element of each
        latent is the number of its class.
        """
        latents, labels = z[0].reshape(-1, z.shape[-1]), None  # [R * B, D']
        if self.config.conditional:
            latents, labels = latents[:, :-1], jnp.round(latents[:, -1]).astype(jnp.int32)
        generated = self.vae.decode(params, latents, labels, key)
        return {self.modality: generated.reshape(*z.shape[1:3], *generated.shape[1:])}

    def decoder_latents(self, params: Params, shared: Float[Array, "n dim"], key: Key | None) -> Array:
        """``[1 modality, 1 sample, N, D']``: the latents ``shared`` as `decode` takes them; in a conditional model each
        followed by a random label (class 0 without a key)."""
        if not self.config.conditional:
            return shared[None, None]
        labels = jnp.zeros(shared.shape[0])
        if key is not None:
            labels = jax.random.randint(key, (shared.shape[0],), 0, self.classes)
        return self.append_label(shared[None], labels)[None]

    def class_latents(self, params: Params, labels: Array, key: Key) -> Array:
        """``[1 modality, 1 sample, N, D']``: a sample of the prior for each of the classes ``labels [N]``, followed by
        the class."""
        shared = self.vae.sample_prior(params, key, labels.shape[0], labels)
        return self.append_label(shared[None], labels)[None]

    def sample_prior(self, params: Params, key: Key, count: int) -> Float[Array, "count dim"]:
        """``count`` samples of N(0, 1)."""
        return jax.random.normal(key, (count, self.config.latent))

    def log_likelihood(
        self, params: Params, batch: Batch, key: Key, observed: Any, targets: Any, samples: int
    ) -> Float[Array, "batch"]:
        """The importance-weighted estimate of ``log p(x)``; ``observed`` and ``targets`` are ignored, since there is
        only one modality."""
        return self.vae.log_likelihood(params, batch, key, samples)
