"""Memory and time of InfoNCE with its gradient: the global implementation against the tiled one.

    python -m benchmarks.contrastive_loss

Each implementation and size runs in a fresh process. Its memory is the growth of the peak resident size from the point
where the inputs are ready and the program is compiled. The global implementation runs only where it fits into
``--limit-gib``; elsewhere the table has what the compiler reports that its program needs. Times are medians of runs in
turn.
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

IMPLEMENTATIONS = ("global", "tiled")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    sizes: tuple[int, ...] = (4096, 32768)
    """Pairs in a batch."""
    dim: int = 512
    """Dimensions of an embedding."""
    rounds: int = 5
    """Timings of each implementation at the smallest size; the table has the median."""
    limit_gib: float = 6.0
    """Most memory, in GiB, that a program may need to be run."""


def compiled(implementation: str, size: int, dim: int):
    """The compiled loss with both gradients, and its inputs."""

    def loss(a, b):
        return info_nce(a, b, temperature=0.07, normalize=True, implementation=implementation).mean()

    a, b = (jax.random.normal(jax.random.key(k), (size, dim), jnp.float32) for k in (0, 1))
    jax.block_until_ready((a, b))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(a, b).compile(), (a, b)


def measure(implementation: str, size: int, dim: int) -> None:
    """Prints the peak memory and the time of the first run of this process, as JSON."""
    program, inputs = compiled(implementation, size, dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    value, grads = jax.block_until_ready(program(*inputs))
    seconds = time.perf_counter() - start
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"mib": growth / 1024, "seconds": seconds, "loss": float(value)}))


def measure_in_a_process(implementation: str, size: int, dim: int) -> dict:
    code = f"from benchmarks.contrastive_loss import measure; measure({implementation!r}, {size}, {dim})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def main(config: Config) -> None:
    print("| pairs | implementation | extra memory | first run | loss |\n|---|---|---|---|---|")
    for size in config.sizes:
        for name in IMPLEMENTATIONS:
            needs = compiled(name, size, config.dim)[0].memory_analysis().temp_size_in_bytes
            if needs > config.limit_gib * 2**30:
                print(
                    f"| {size:,} | {name} | {needs / 2**20:,.0f} MiB (not run: as compiled) | | |",
                    flush=True,
                )
                continue
            measured = measure_in_a_process(name, size, config.dim)
            cells = f"{measured['mib']:,.0f} MiB | {measured['seconds']:.2f} s | {measured['loss']:.5f}"
            print(f"| {size:,} | {name} | {cells} |", flush=True)
    size = min(config.sizes)
    programs = {name: compiled(name, size, config.dim) for name in IMPLEMENTATIONS}
    times = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(config.rounds + 1):
        for name, (program, inputs) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*inputs))
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values[1:])) for name, values in times.items()}
    summary = ", ".join(f"{name} {1e3 * m:.0f} ms" for name, m in medians.items())
    print(f"\nat {size:,} pairs, loss and gradient, median of {config.rounds}: {summary}; ", end="")
    print(f"global / tiled = {medians['global'] / medians['tiled']:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
