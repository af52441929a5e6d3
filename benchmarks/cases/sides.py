"""The interface between a case and the driver `benchmarks.cpu`, and helpers to run training steps on each side."""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params


@dataclasses.dataclass(frozen=True)
class Variant:
    """One implementation of the work: ``run()`` makes ``steps`` steps and waits for the last."""

    run: Callable[[], Any]
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Side:
    """The variants of one side, by name; PyTorch's variants with ``torch.compile`` have names that start so."""

    variants: Mapping[str, Variant]
    parameters: int | Mapping[str, int] | None = None
    """Number of trained parameters: of all rows, or of each row by its name."""
    flops: int | Mapping[str, int] | None = None
    """Floating-point operations in a step's matrix products and convolutions: of all rows, or of each by its name."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a variant of JAX is compared with the fastest of some variants of PyTorch."""

    name: str
    what: str
    """The work, in a sentence."""
    jax: str
    """The variant of JAX that is compared."""
    torch: tuple[str, ...] = ("eager", "compile")
    """The variants of PyTorch, of which the fastest is compared."""
    others: tuple[str, ...] = ()
    """Further variants of JAX, whose times are listed."""
    goal: float | None = None
    """Largest acceptable ratio of JAX's time to PyTorch's."""
    limit: float | None = None
    """Largest acceptable time of JAX, in seconds."""


def load(case: str, side: str) -> Side:
    return getattr(importlib.import_module(f"benchmarks.cases.{case}"), f"{side}_side")()


def rows(case: str) -> tuple[Row, ...]:
    return importlib.import_module(f"benchmarks.cases.{case}").ROWS


# ---------------------------------------------------------------------------------------------------------- JAX


def jax_training(step: Callable, state: Any, batches: Any) -> dict[str, Variant]:
    """``step(state, batch) -> (state, loss)`` over ``batches [K, ...]``: K steps in one program, and K programs."""
    k = len(jax.tree.leaves(batches)[0])
    on_device = jax.device_put(batches)
    parts = [jax.tree.map(lambda x, i=i: x[i], on_device) for i in range(k)]
    many = jax.jit(lambda state, xs: jax.lax.scan(step, state, xs), donate_argnums=0)
    one = jax.jit(step, donate_argnums=0)
    held = {name: jax.tree.map(lambda x: jax.numpy.array(x, copy=True), state) for name in ("scan", "loop")}

    def scan():
        held["scan"], losses = many(held["scan"], on_device)
        check(losses)

    def loop():
        for part in parts:
            held["loop"], value = one(held["loop"], part)
        check((held["loop"], value)[1])
        jax.block_until_ready(held["loop"])

    return {"loop": Variant(loop, k), "scan": Variant(scan, k)}


def jax_adam(loss: Callable, params: Any, batches: tuple) -> Side:
    """Training with Adam over ``batches``, a tuple of arrays ``[K, ...]``; ``loss(params, *batch)``."""
    tx = optax.adam(1e-4)

    def step(state, batch):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    state = params, tx.init(params)
    first = tuple(x[0] for x in batches)
    return Side(jax_training(step, state, batches), size(params), jax_flops(step, state, first))


def check(losses) -> None:
    """Waits for the losses, and checks that they are finite: a diverged side may be timing something else."""
    if not np.isfinite(np.asarray(losses)).all():
        raise FloatingPointError("the loss is not finite")


def size(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def jax_flops(step: Callable, *args) -> int:
    """Operations of the matrix products and convolutions that ``step`` needs for its results."""
    from jax.interpreters import partial_eval

    closed = jax.make_jaxpr(step)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            inner = np.prod([eqn.invars[0].aval.shape[axis] for axis in contract], dtype=np.int64)
            total += 2 * int(inner) * eqn.outvars[0].aval.size
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval, eqn.params["dimension_numbers"]
            per_output = kernel.size // kernel.shape[numbers.rhs_spec[0]]
            # The zeros between the pixels of a transposed convolution's input are not counted as work.
            zeros = int(np.prod(eqn.params["lhs_dilation"]))
            total += 2 * per_output * eqn.outvars[0].aval.size // zeros
        elif eqn.primitive.name == "cond":  # one branch per platform; the last is the default
            total += _count(eqn.params["branches"][-1].jaxpr)
        else:
            times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            total += times * sum(_count(inner) for inner in jaxprs_in_params(eqn.params))
    return total


# ------------------------------------------------------------------------------------------------------ PyTorch


def torch_device() -> str:
    """The device of PyTorch's side: the environment variable ``BENCHMARK_TORCH_DEVICE``, by default the CPU."""
    return os.environ.get("BENCHMARK_TORCH_DEVICE", "cpu")


def torch_training(make: Callable[[], tuple[Any, Callable]], batches: list, *, images: bool = False) -> Side:
    """Training with Adam over ``batches``, a list of tuples of tensors; ``make() -> (model, loss(*batch))``.

    The variants are eager and compiled, with ``images`` in both memory layouts; always with the fused Adam, the fastest
    one of PyTorch.
    """
    import torch

    layouts = {"": torch.contiguous_format} | ({", channels last": torch.channels_last} if images else {})

    def variant(compiled, layout):
        torch.manual_seed(0)
        model, loss = make()
        model.to(torch_device(), memory_format=layout)
        fit = lambda x: x.to(torch_device(), memory_format=layout if x.ndim == 4 else torch.preserve_format)
        inputs = [tuple(fit(x) for x in batch) for batch in batches]
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        loss = torch.compile(loss) if compiled else loss

        def run():
            for batch in inputs:
                optimizer.zero_grad()
                value = loss(*batch)
                value.backward()
                optimizer.step()
            check(value.item())

        return Variant(run, len(inputs))

    variants = {
        f"{name}{suffix}": variant(name == "compile", layout)
        for suffix, layout in layouts.items()
        for name in ("eager", "compile")
    }
    torch.manual_seed(0)
    model, loss = make()
    return Side(variants, torch_size(model), torch_flops(lambda: loss(*batches[0]).backward()))


def torch_size(*models) -> int:
    return sum(p.numel() for model in models for p in model.parameters())


def torch_flops(run: Callable[[], Any]) -> int:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # PyTorch counts no operations for the fused attention of the CPU: count those of the plain one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        run()
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------------- worker


def serve(connection, case: str, side: str, threads: int) -> None:
    """The main function of a process that builds one side and runs its variants on request.

    Requests are ``("warm", variant)`` and ``("time", variant, least_seconds)``; each answer is ``(ok, value)``.
    """
    prepare_process(side, threads)
    try:
        built = load(case, side)
    except Exception as error:
        connection.send((False, reason(error)))
        return
    connection.send(
        (True, {"variants": list(built.variants), "parameters": built.parameters, "flops": built.flops})
    )
    while (request := connection.recv()) is not None:
        kind, name, *rest = request
        variant = built.variants[name]
        try:
            if kind == "warm":
                variant.run()
                answer = None
            else:
                calls, start = 0, time.perf_counter()
                while not calls or time.perf_counter() - start < rest[0]:
                    variant.run()
                    calls += 1
                answer = (time.perf_counter() - start) / (calls * variant.steps)
            connection.send((True, answer))
        except Exception as error:
            connection.send((False, reason(error)))


def reason(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def prepare_process(side: str, threads: int) -> None:
    """Restricts the process to ``threads`` cores; sets up JAX as the experiments do, and PyTorch with its defaults."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if side == "jax":
        from xmodal_jax.core import runtime

        runtime.configure()
        return
    import torch

    torch.set_num_threads(threads)
