"""Operations without matrix products: random normals, softmax and the optimizer's update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cases.sides import Row, Side, Variant

NORMALS, CALLS = 1 << 20, 16
LOGITS = (32 * 8 * 64, 64)
KERNELS = ((3, 3, 512, 512),) * 3 + ((3, 3, 256, 256),) * 4 + ((512,),) * 20

SOFTMAX = (
    f"softmax over the last axis of {LOGITS[0]:,} x {LOGITS[1]} logits (attention of 32 x 8 heads, 64 tokens)"
)
ROWS = (
    Row(
        "random normals",
        f"{NORMALS:,} normal numbers; JAX: threefry, the same numbers on every platform",
        "normals",
        ("eager normals",),
    ),
    Row("softmax forward", SOFTMAX, "softmax", ("eager softmax", "compile softmax")),
    Row(
        "softmax forward + backward",
        f"{SOFTMAX}, and the gradient from that of the output",
        "softmax both",
        ("eager softmax both", "compile softmax both"),
    ),
    Row(
        "Adam",
        f"one update of Adam, {sum(int(np.prod(shape)) for shape in KERNELS):,} parameters in {len(KERNELS)} arrays. "
        "PyTorch: its default for the CPU, its foreach variant and its fused kernel",
        "adam",
        ("eager adam", "eager adam, foreach", "eager adam, fused"),
    ),
)


def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=LOGITS).astype(np.float32)


def jax_side() -> Side:
    x = jnp.asarray(logits())
    normals = jax.jit(lambda key: jax.random.normal(key, (NORMALS,)))
    softmax = jax.jit(jax.nn.softmax)

    @jax.jit
    def both(x, cotangent):
        y, backward = jax.vjp(jax.nn.softmax, x)
        return y, backward(cotangent)

    def repeat(f, *args):
        def run():
            for _ in range(CALLS):
                out = f(*args)
            jax.block_until_ready(out)

        return Variant(run, CALLS)

    tx = optax.adam(1e-3)
    params = [jnp.ones(shape) for shape in KERNELS]
    grads = [0.1 * p for p in params]
    held = {"adam": (params, tx.init(params))}

    def update(state, grads):
        params, opt_state = state
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    update = jax.jit(update, donate_argnums=0)

    def adam():
        for _ in range(CALLS):
            held["adam"] = update(held["adam"], grads)
        jax.block_until_ready(held["adam"])

    return Side(
        {
            "normals": repeat(normals, jax.random.key(0)),
            "softmax": repeat(softmax, x),
            "softmax both": repeat(both, x, x),
            "adam": Variant(adam, CALLS),
        }
    )


def torch_side() -> Side:
    import torch

    x = torch.from_numpy(logits())
    leaf = x.clone().requires_grad_()

    def repeat(f):
        def run():
            for _ in range(CALLS):
                f()

        return Variant(run, CALLS)

    def softmax_both(f):
        def once():
            leaf.grad = None
            f(leaf).backward(x)

        return once

    def adam(**options):
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in KERNELS]
        for p in params:
            p.grad = 0.1 * p.detach()
        return torch.optim.Adam(params, lr=1e-3, **options).step

    softmax = lambda x: x.softmax(-1)
    compiled = torch.compile(softmax)
    variants = {
        "eager normals": lambda: torch.randn(NORMALS),
        "eager softmax": lambda: softmax(x),
        "compile softmax": lambda: compiled(x),
        "eager softmax both": softmax_both(softmax),
        "compile softmax both": softmax_both(compiled),
        "eager adam": adam(),
        "eager adam, foreach": adam(foreach=True),
        "eager adam, fused": adam(fused=True),
    }
    return Side({name: repeat(f) for name, f in variants.items()})
