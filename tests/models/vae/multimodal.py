"""Multimodal VAEs that compile in a second: two image modalities, which share one group, and the class."""

import functools

import jax
import numpy as np

from xmodal_jax.core import parts
from xmodal_jax.models.vae.modalities import ImageConfig, LabelConfig, ModalityConfigs, sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import MultimodalVAEModel
from xmodal_jax.nets.decoders import ConvDecoderConfig, MLPDecoderConfig
from xmodal_jax.nets.encoders import DCGANEncoderConfig, MLPEncoderConfig

NAMES = ("image_0", "image_1", "label")
CLASSES = 3
KEY = jax.random.key(5)
MODELS = parts.parts_of(MultimodalVAEModel)
CONVOLUTIONS = ImageConfig(DCGANEncoderConfig(width=8), ConvDecoderConfig(width=8), "laplace", 0.75)
MODALITIES = dict(
    image=ImageConfig(
        MLPEncoderConfig(width=8, depth=1), MLPDecoderConfig(width=8, depth=1), "laplace", 0.75
    ),
    label=LabelConfig(MLPDecoderConfig(width=8, depth=1), weight=2.0),
)
CONFIGS = ModalityConfigs(**MODALITIES)
OPTIONS = MODALITIES | dict(
    latent=4, private=3, hidden=7, top=5, levels=2, clusters=3, hmc_steps=3, warmup=10, free_bits=0.3
)
"""Options of the models that have them."""
CHANGES = {
    "mvae": dict(image=CONVOLUTIONS),  # which take longer to compile
    "mmvae": dict(
        posterior="laplace", posterior_scale="softmax", learn_prior=True, samples=2, estimator="dreg"
    ),
    "mmvae_plus": dict(posterior_scale="softplus", samples=2),
    "cmvae": dict(posterior="laplace", samples=2, estimator="dreg"),
    "mhvae": dict(subsets=2),
    "mmvm": dict(alpha=0.2, kl_samples=2),
    "code_vae": dict(subsets=2),
}
"""One model each has what only some models can have."""


def config_of(model, **changes):
    options = {k: v for k, v in OPTIONS.items() if k in parts.options_of(MODELS[model])}
    return MODELS[model](**{**options, **CHANGES.get(model, {}), **changes})


def make_batch(n=8, seed=0):
    """With some of every modality missing, and a label that is not known."""
    rng = np.random.default_rng(seed)
    there = {name: rng.random(n) < 0.7 for name in NAMES}
    return {
        **{m: rng.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8) for m in NAMES[:2]},
        "label": rng.integers(-1, CLASSES, n).astype(np.int32),
        "present": there,
        "step": np.full(n, 4, np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


on_device = jax.device_put


@functools.cache
def make(model, **changes):
    config = config_of(model, **changes)
    return make_multimodal_vae(config, sizes_of(make_batch(1), NAMES, config, classes=CLASSES))


@functools.cache
def started(model, **changes):
    """A model and parameters that no initialiser made: zeros would hide much."""
    vae = make(model, **changes)
    leaves, tree = jax.tree.flatten(jax.eval_shape(vae.method.init, KEY, on_device(make_batch(1))))
    rng = np.random.default_rng(2)
    drawn = [(rng.normal(size=x.shape) / max(x.shape[-2:-1] or (9,)) ** 0.5).astype(x.dtype) for x in leaves]
    return vae, on_device(jax.tree.unflatten(tree, drawn))


@functools.cache
def graded(model, stage):
    """Of one of the losses value, scalars and gradient, compiled once for each shape of batch."""
    return jax.jit(jax.value_and_grad(losses_of(started(model)[0])[stage], has_aux=True))


def losses_of(vae):
    """Of both stages, where there are two."""
    return [vae.method.loss] + ([] if vae.method.initial_stage is None else [vae.method.initial_stage.loss])
