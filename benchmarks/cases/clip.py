"""CLIP: a vision transformer and a causal text transformer with InfoNCE, against open_clip's class ``CLIP``."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.peers import import_torchvision
from benchmarks.cases.sides import Row, Side, jax_adam, torch_training
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import info_nce
from xmodal_jax.nets.image import ViT
from xmodal_jax.nets.text import TextTransformer

BATCH, IMAGE, PATCH, WIDTH, DEPTH, HEADS, EMBED = 64, 64, 8, 192, 4, 3, 128
LENGTH, VOCABULARY, STEPS = 32, 1000, 2

WHAT = (
    f"CLIP, batch {BATCH}: ViT of {IMAGE} px, patch {PATCH}, with a class token, and a causal text transformer of "
    f"{LENGTH} tokens, each of width {WIDTH}, depth {DEPTH}, {HEADS} heads; InfoNCE, Adam. PyTorch: open_clip's CLIP "
    "and ClipLoss"
)
ROWS = (Row("clip", WHAT, "loop", ("eager", "compile"), ("scan",), goal=0.9),)


class CLIP(nn.Module):
    @nn.compact
    def __call__(self, images, text):
        sizes = dict(width=WIDTH, depth=DEPTH, heads=HEADS)
        image = ViT(PATCH, class_token=True, **sizes)(images).values[:, 0]
        words = TextTransformer(VOCABULARY, LENGTH, causal=True, **sizes)(text).values
        words = words[jnp.arange(len(text)), text.argmax(axis=1)]
        project = lambda x: l2_normalize(nn.Dense(EMBED, use_bias=False)(x))
        log_scale = self.param("log_scale", nn.initializers.constant(np.log(1 / 0.07)), ())
        return project(image), project(words), log_scale


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    text = rng.integers(1, VOCABULARY - 1, (STEPS, BATCH, LENGTH)).astype(np.int32)
    text[..., -1] = VOCABULARY - 1  # the end of the text, where open_clip reads the text's features
    return rng.uniform(-1, 1, (STEPS, BATCH, 3, IMAGE, IMAGE)).astype(np.float32), text


def jax_side() -> Side:
    model = CLIP()

    def loss(params, images, text):
        image, words, log_scale = model.apply(params, images, text)
        return info_nce(image, words, temperature=jnp.exp(-log_scale)).mean()

    images, text = data()
    images = images.transpose(0, 1, 3, 4, 2)
    params = jax.jit(model.init)(jax.random.key(0), images[0, :1], text[0, :1])
    return jax_adam(loss, params, (images, text))


def torch_side() -> Side:
    import torch

    import_torchvision()
    import open_clip

    vision = open_clip.CLIPVisionCfg(
        layers=DEPTH,
        width=WIDTH,
        head_width=WIDTH // HEADS,
        patch_size=PATCH,
        image_size=IMAGE,
        no_ln_pre=True,  # the library's ViT has no norm before the first block
    )
    words = open_clip.CLIPTextCfg(
        context_length=LENGTH, vocab_size=VOCABULARY, width=WIDTH, heads=HEADS, layers=DEPTH
    )

    def make():
        model = open_clip.CLIP(EMBED, vision, words)
        entropy = open_clip.ClipLoss()
        return model, lambda images, text: entropy(*model(images, text))

    images, text = data()
    batches = [(torch.from_numpy(a), torch.from_numpy(b).long()) for a, b in zip(images, text, strict=True)]
    return torch_training(make, batches)
