"""Multimodal VAEs of this library over five image modalities, against multivae's with the same networks."""

from __future__ import annotations

import jax
import numpy as np

from benchmarks.cases import multivae_peer
from benchmarks.cases.sides import Row, Side, jax_flops, jax_training, size, torch_training

MODALITIES, SHAPE, BATCH, STEPS, LATENT, PRIVATE = 5, (28, 28, 3), 128, 2, 64, 32
WIDTH = {"conv": 64, "mlp": 512}
HIDDEN = 256
OURS = {"mopoe": "MoPoE", "mvtcae": "MVTCAE", "mmvae_plus": "MMVAEPlus"}
"""Our models, and what multivae calls them."""
PAIRS = tuple((model, kind) for kind in ("conv", "mlp") for model in OURS)

WHAT = (
    f"a step of a multimodal VAE, {MODALITIES} image modalities of 28 x 28, batch {BATCH}, latent {LATENT}"
    f" (MMVAE+: and {PRIVATE} private), Laplace likelihood, Adam"
)
KINDS = {
    "conv": "two convolutions 4x4 of stride 2 (32, 64 channels) and their mirror, hidden layer of 256",
    "mlp": "two hidden layers of 512 each way and one of 256",
}
ROWS = tuple(
    Row(
        f"{model}_{kind}", f"{OURS[model]}: {WHAT}; {KINDS[kind]}", f"{model}_{kind} loop",
        (f"{model}_{kind} eager", f"{model}_{kind} compile"), (f"{model}_{kind} scan",),
        goal=0.8 if kind == "conv" else 0.3,
    )
    for model, kind in PAIRS
)  # fmt: skip


def images() -> np.ndarray:
    shape = (STEPS, BATCH, MODALITIES, *SHAPE)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def config_of(model: str, kind: str):
    """Our configuration with these networks."""
    from xmodal_jax.core import parts
    from xmodal_jax.models.vae.modalities import ImageConfig
    from xmodal_jax.models.vae.multimodal_models import MultimodalVAEModel
    from xmodal_jax.nets.decoders import ImageDecoders
    from xmodal_jax.nets.encoders import DCGANEncoderConfig, MLPEncoderConfig

    width = WIDTH[kind]
    encoder = (
        DCGANEncoderConfig(width=width, norm="none") if kind == "conv" else MLPEncoderConfig(width=width)
    )
    decoder = parts.choose(ImageDecoders, kind)(width=width)
    image = ImageConfig(encoder, decoder, "laplace", scale=multivae_peer.SCALE)
    config = parts.choose(MultimodalVAEModel, model)
    private = dict(private=PRIVATE) if "private" in parts.options_of(config) else {}
    return config(latent=LATENT, hidden=HIDDEN, image=image, **private)


def jax_side() -> Side:
    import optax

    from xmodal_jax.models.vae.modalities import sizes_of
    from xmodal_jax.models.vae.multimodal import make_multimodal_vae

    forms, parameters, flops = {}, {}, {}
    x = images()
    names = [f"image_{m}" for m in range(MODALITIES)]
    batches = {name: x[:, :, m] for m, name in enumerate(names)}
    batches["index"] = np.arange(STEPS * BATCH, dtype=np.int32).reshape(STEPS, BATCH)
    first = jax.tree.map(lambda x: x[0], batches)
    tx = optax.adam(1e-4)
    for model, kind in PAIRS:
        config = config_of(model, kind)
        vae = make_multimodal_vae(config, sizes_of(first, tuple(names), config))

        def step(state, batch, vae=vae):
            params, opt_state, key = state
            key, now = jax.random.split(key)
            (value, _), grads = jax.value_and_grad(vae.method.loss, has_aux=True)(params, batch, now)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, key), value

        params = jax.jit(vae.method.init)(jax.random.key(0), first)
        state = params, tx.init(params), jax.random.key(1)
        forms |= {f"{model}_{kind} {name}": form for name, form in jax_training(step, state, batches).items()}
        parameters[f"{model}_{kind}"], flops[f"{model}_{kind}"] = size(params), jax_flops(step, state, first)
    return Side(forms, parameters, flops)


def torch_side() -> Side:
    forms, parameters, flops = {}, {}, {}
    names = [f"image_{m}" for m in range(MODALITIES)]
    of_each = lambda x: tuple(
        multivae_peer.tensors({n: x[:, m] for m, n in enumerate(names)}, names)[n] for n in names
    )
    batches = [of_each(x) for x in images()]
    for model, kind in PAIRS:

        def make(model=model, kind=kind):
            options = {"K": 1, "learn_shared_prior": False} if model == "mmvae_plus" else {}
            options |= {"prior_and_posterior_dist": "normal"} if model == "mmvae_plus" else {}
            peer = multivae_peer.make(
                OURS[model], MODALITIES, (3, 28, 28), kind=kind, latent=LATENT, private=PRIVATE, width=WIDTH[kind],
                hidden=HIDDEN, **options,
            )  # fmt: skip
            loss = lambda *parts: peer(multivae_peer.batch_of(dict(zip(names, parts, strict=True))))["loss"]
            return peer, loss

        side = torch_training(make, batches)
        parameters[f"{model}_{kind}"], flops[f"{model}_{kind}"] = side.parameters, side.flops
        forms |= {f"{model}_{kind} {name}": form for name, form in side.forms.items()}
    return Side(forms, parameters, flops)
