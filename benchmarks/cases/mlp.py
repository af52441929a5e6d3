"""A small MLP: what a step costs beside its arithmetic."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax

from benchmarks.cases.sides import Row, Side, Variant, check, jax_adam, torch_training

BATCH, WIDTH, CLASSES, STEPS = 64, 64, 10, 256

ROWS = (
    Row(
        "mlp",
        f"MLP of three layers, width {WIDTH}, batch {BATCH}, cross-entropy, Adam; JAX: {STEPS} steps in one program",
        "scan",
        ("eager", "compile", "compile, with Adam"),
        ("loop",),
        goal=0.15,
    ),
)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(WIDTH)(x))
        return nn.Dense(CLASSES)(x)


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(STEPS, BATCH, WIDTH)).astype(np.float32),
        rng.integers(0, CLASSES, (STEPS, BATCH)).astype(np.int32),
    )


def jax_side() -> Side:
    model = MLP()

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

    x, y = data()
    params = jax.jit(model.init)(jax.random.key(0), x[0])
    return jax_adam(loss, params, (x, y))


def torch_side() -> Side:
    import torch
    from torch import nn

    def make():
        layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
        return model, lambda x, y: nn.functional.cross_entropy(model(x), y)

    x, y = data()
    batches = [(torch.from_numpy(a), torch.from_numpy(b).long()) for a, b in zip(x, y, strict=True)]
    side = torch_training(make, batches)

    # For a model this small the optimizer's own calls count, so that it is compiled as well.
    model, loss = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loss, update = torch.compile(loss), torch.compile(optimizer.step)

    def run():
        for batch in batches:
            optimizer.zero_grad()
            value = loss(*batch)
            value.backward()
            update()
        check(value.item())

    return Side({**side.variants, "compile, with Adam": Variant(run, STEPS)}, side.parameters, side.flops)
