"""Multi-head self-attention alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.sides import Row, Side, Variant, check, jax_flops, size, torch_flops, torch_size
from xmodal_jax.nets.attention import MultiHeadAttention

BATCH, LENGTH, WIDTH, HEADS, CALLS = 32, 64, 256, 8, 8

WHAT = (
    f"self-attention, batch {BATCH}, {LENGTH} tokens, width {WIDTH}, {HEADS} heads, with its projections. PyTorch: "
    "linear layers around scaled_dot_product_attention"
)
ROWS = (
    Row("attention forward", WHAT, "forward", ("eager forward", "compile forward")),
    Row(
        "attention forward + backward",
        f"{WHAT}; gradients of parameters and input",
        "both",
        ("eager both", "compile both"),
    ),
)


def tokens() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)


def jax_side() -> Side:
    model, x = MultiHeadAttention(HEADS), jnp.asarray(tokens())
    params = jax.jit(model.init)(jax.random.key(0), x)
    forward = jax.jit(model.apply)
    both = jax.jit(jax.value_and_grad(lambda params, x: model.apply(params, x).mean(), (0, 1)))

    def repeat(f):
        def run():
            for _ in range(CALLS):
                out = f(params, x)
            jax.block_until_ready(out)

        return Variant(run, CALLS)

    return Side({"forward": repeat(forward), "both": repeat(both)}, size(params), jax_flops(both, params, x))


def torch_side() -> Side:
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(y.transpose(1, 2).reshape(x.shape))

    torch.manual_seed(0)
    model, x = Attention(), torch.from_numpy(tokens()).requires_grad_()
    mean = lambda x: model(x).mean()

    def forward(f):
        def run():
            with torch.no_grad():
                for _ in range(CALLS):
                    y = f(x)
            check(y[0, 0, 0].item())

        return Variant(run, CALLS)

    def both(f):
        def run():
            for _ in range(CALLS):
                model.zero_grad()
                x.grad = None
                value = f(x)
                value.backward()
            check(value.item())

        return Variant(run, CALLS)

    variants = {
        "eager forward": forward(model),
        "eager both": both(mean),
        "compile forward": forward(torch.compile(model)),
        "compile both": both(torch.compile(mean)),
    }
    return Side(variants, torch_size(model), torch_flops(lambda: mean(x).backward()))
