"""Classification with ResNet-18 and group norm, against torchvision's class ``ResNet`` with the same norm."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax

from benchmarks.cases.peers import import_torchvision
from benchmarks.cases.sides import Row, Side, jax_adam, torch_training
from xmodal_jax.nets.image import ResNet

BATCH, IMAGE, CLASSES, STEPS = 64, 64, 100, 2

WHAT = (
    f"ResNet-18 of full width, {IMAGE} px, batch {BATCH}, {CLASSES} classes, cross-entropy, Adam; group norm "
    "(32 groups) on both sides. PyTorch: torchvision's resnet18 with that norm"
)
VARIANTS = ("eager", "eager, channels last", "compile", "compile, channels last")
ROWS = (Row("resnet18", WHAT, "loop", VARIANTS, ("scan",), goal=1.0),)


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(ResNet(18, stem="imagenet")(x).values.mean(axis=1))


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.uniform(-1, 1, (STEPS, BATCH, 3, IMAGE, IMAGE)).astype(np.float32),
        rng.integers(0, CLASSES, (STEPS, BATCH)).astype(np.int32),
    )


def jax_side() -> Side:
    model = Classifier()

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

    x, y = data()
    x = x.transpose(0, 1, 3, 4, 2)
    params = jax.jit(model.init)(jax.random.key(0), x[0, :1])
    return jax_adam(loss, params, (x, y))


def torch_side() -> Side:
    import torch
    from torch import nn

    import_torchvision()
    from torchvision.models import resnet18

    def make():
        model = resnet18(num_classes=CLASSES, norm_layer=lambda channels: nn.GroupNorm(32, channels))
        return model, lambda x, y: nn.functional.cross_entropy(model(x), y)

    x, y = data()
    batches = [(torch.from_numpy(a), torch.from_numpy(b).long()) for a, b in zip(x, y, strict=True)]
    return torch_training(make, batches, images=True)
