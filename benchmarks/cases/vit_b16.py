"""CLIP ViT-B/16 of the paper's size in bfloat16, against open_clip's under autocast: for `benchmarks.gpu`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.peers import import_torchvision
from benchmarks.cases.sides import Row, Side, Variant, check, jax_adam, torch_device, torch_size
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import info_nce
from xmodal_jax.nets.image import ViT
from xmodal_jax.nets.text import TextTransformer

BATCH, STEPS = 256, 2
IMAGE, PATCH, WIDTH, DEPTH, HEADS, EMBED = 224, 16, 768, 12, 12, 512
LENGTH, VOCABULARY, TEXT_WIDTH, TEXT_HEADS = 77, 49408, 512, 8

WHAT = (
    f"CLIP ViT-B/16 ({IMAGE} px; text of {LENGTH} tokens, width {TEXT_WIDTH}, depth {DEPTH}), batch {BATCH}, bfloat16 "
    "with float32 parameters, InfoNCE, Adam. PyTorch: open_clip's CLIP and ClipLoss under autocast"
)
ROWS = (Row("vit_b16", WHAT, "loop", ("eager", "compile"), ("scan",)),)


class CLIP(nn.Module):
    @nn.compact
    def __call__(self, images, text):
        half = dict(dtype=jnp.bfloat16)
        image = ViT(PATCH, width=WIDTH, depth=DEPTH, heads=HEADS, class_token=True, **half)(images)
        sizes = dict(width=TEXT_WIDTH, depth=DEPTH, heads=TEXT_HEADS)
        words = TextTransformer(VOCABULARY, LENGTH, causal=True, **sizes, **half)(text).values
        words = words[jnp.arange(len(text)), text.argmax(axis=1)]
        project = lambda x: l2_normalize(nn.Dense(EMBED, use_bias=False, **half)(x).astype(jnp.float32))
        log_scale = self.param("log_scale", nn.initializers.constant(np.log(1 / 0.07)), ())
        return project(image.values[:, 0]), project(words), log_scale


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

    device = torch_device()

    def variant(compiled):
        torch.manual_seed(0)
        model = open_clip.create_model("ViT-B-16", pretrained=None).to(device)
        entropy = open_clip.ClipLoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        apply = torch.compile(model) if compiled else model
        images, text = data()
        batches = [
            (torch.from_numpy(a).to(device), torch.from_numpy(b).long().to(device))
            for a, b in zip(images, text, strict=True)
        ]

        def run():
            for images, text in batches:
                optimizer.zero_grad()
                with torch.autocast(device.split(":")[0], torch.bfloat16):
                    value = entropy(*apply(images, text)[:3])
                value.backward()
                optimizer.step()
            check(value.item())

        return Variant(run, STEPS), model

    (eager, model), (compiled, _) = variant(False), variant(True)
    return Side({"eager": eager, "compile": compiled}, torch_size(model))
