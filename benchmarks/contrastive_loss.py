"""Memory and time of InfoNCE with gradient: the plain form against the tiled one.

    python -m benchmarks.contrastive_loss

Memory is the growth of a fresh process's peak resident size over what it was with the inputs ready and the program
compiled, in a run of its own for each form and size; the plain form is run only where it fits into ``--limit-gib``, and
otherwise its compiled program says what it would need. Times are medians, forms interleaved.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from xmodal_jax.losses import info_nce

FORMS = {"plain": "global", "tiled": "tiled"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    sizes: tuple[int, ...] = (4096, 32768)
    """Pairs in a batch."""
    dim: int = 512
    """Dimensions of an embedding."""
    rounds: int = 5
    """Timings of each form at the smallest size; the median counts."""
    limit_gib: float = 6.0
    """The plain form runs only where its program needs less than this."""


def compiled(form: str, size: int, dim: int):
    """The compiled loss with both gradients, and its inputs."""

    def loss(a, b):
        return info_nce(a, b, temperature=0.07, normalize=True, form=FORMS[form]).mean()

    a, b = (jax.random.normal(jax.random.key(k), (size, dim), jnp.float32) for k in (0, 1))
    jax.block_until_ready((a, b))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(a, b).compile(), (a, b)


def measure(form: str, size: int, dim: int) -> None:
    """In a process of its own: peak memory and time of the first run."""
    program, inputs = compiled(form, size, dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    value, grads = jax.block_until_ready(program(*inputs))
    seconds = time.perf_counter() - begun
    grew = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"mib": grew / 1024, "seconds": seconds, "loss": float(value)}))


def in_a_process(form: str, size: int, dim: int) -> dict:
    code = f"from benchmarks.contrastive_loss import measure; measure({form!r}, {size}, {dim})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def main(config: Config) -> None:
    print("| pairs | form | extra memory | first run | loss |\n|---|---|---|---|---|")
    for size in config.sizes:
        for form in FORMS:
            needs = compiled(form, size, config.dim)[0].memory_analysis().temp_size_in_bytes
            if needs > config.limit_gib * 2**30:
                print(
                    f"| {size:,} | {form} | {needs / 2**20:,.0f} MiB (not run: by its program) | | |",
                    flush=True,
                )
                continue
            found = in_a_process(form, size, config.dim)
            print(
                f"| {size:,} | {form} | {found['mib']:,.0f} MiB | {found['seconds']:.2f} s | {found['loss']:.5f} |",
                flush=True,
            )
    size = min(config.sizes)
    programs = {form: compiled(form, size, config.dim) for form in FORMS}
    times = {form: [] for form in FORMS}
    for _ in range(config.rounds + 1):
        for form, (program, inputs) in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(*inputs))
            times[form].append(time.perf_counter() - begun)
    medians = {form: float(np.median(values[1:])) for form, values in times.items()}
    shown = ", ".join(f"{form} {1e3 * m:.0f} ms" for form, m in medians.items())
    print(f"\nat {size:,} pairs, loss and gradient, median of {config.rounds}: {shown}; ", end="")
    print(f"plain / tiled = {medians['plain'] / medians['tiled']:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
