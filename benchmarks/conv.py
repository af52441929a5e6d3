"""Single convolutions on a CPU: the library's implementation against that of ``lax``.

    python -m benchmarks.conv

For layers of a ResNet-18 at 64 pixels, and of a DCGAN and a VAE at 32, at batch 64: the median time of the forward pass
and of the two gradients, in milliseconds, timed in turn after warming up. "lax" is what ``nn.Conv`` compiles to outside
of a loop (inside ``lax.scan`` its gradients take many times as long).
"""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from xmodal_jax.core import runtime
from xmodal_jax.nets import conv_cpu, conv_lax
from xmodal_jax.nets.conv import conv_geometry

LAYERS = {  # side, channels, features, kernel, stride
    "ResNet, stem": (64, 3, 64, 7, 2),
    "ResNet, 16 x 16": (16, 64, 64, 3, 1),
    "ResNet, 16 x 16 to 8 x 8": (16, 64, 128, 3, 2),
    "ResNet, 8 x 8": (8, 128, 128, 3, 1),
    "ResNet, 4 x 4": (4, 256, 256, 3, 1),
    "ResNet, 2 x 2": (2, 512, 512, 3, 1),
    "DCGAN, 32 x 32": (32, 3, 64, 4, 2),
    "DCGAN, 16 x 16": (16, 64, 128, 4, 2),
    "DCGAN, 8 x 8": (8, 128, 256, 4, 2),
    "VAE, 16 x 16": (16, 32, 64, 4, 2),
    "VAE, 4 x 4": (4, 128, 256, 4, 2),
}
MAPS = {"forward": "correlate", "input": "input_gradient", "kernel": "kernel_gradient"}
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """How often to time."""

    repeats: int = 9
    """Timings of each implementation; the table has the median."""


def programs(layer: str, which: str):
    """For each implementation a compiled function that runs it and waits; and the number of operations."""
    side, channels, features, kernel, stride = LAYERS[layer]
    geometry = conv_geometry((side, side), (kernel, kernel), (stride, stride), (kernel - 1) // 2)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x = draw(BATCH, side, side, channels)
    k = draw(kernel, kernel, channels, features)
    dy = draw(BATCH, *geometry.output_size, features)
    args = {"forward": (x, k), "input": (dy, k), "kernel": (x, dy)}[which]
    options = {} if which == "forward" else {"permute": False}
    implementations = {
        "lax": lambda a, b: getattr(conv_lax, MAPS[which])(a, b, geometry=geometry, **options),
        "conv_cpu": lambda a, b: getattr(conv_cpu, MAPS[which])(a, b, geometry=geometry),
    }
    runs = {}
    for name, implementation in implementations.items():
        program = jax.jit(implementation)
        runs[name] = lambda program=program: program(*args).block_until_ready()
        runs[name]()
        runs[name]()
    work = 2 * kernel**2 * channels * features * BATCH * np.prod(geometry.output_size)
    return runs, float(work)


def main(config: Config) -> None:
    runtime.configure()
    heads = [f"{which}, {variant}" for which in MAPS for variant in ("lax", "conv_cpu")]
    print(f"| layer | GFLOP | {' | '.join(heads)} |")
    print("|---|---:" + "|---:" * len(heads) + "|")
    for layer in LAYERS:
        cells = []
        for which in MAPS:
            runs, work = programs(layer, which)
            times = {variant: [] for variant in runs}
            for _ in range(config.repeats):
                for variant, run in runs.items():
                    start = time.perf_counter()
                    run()
                    times[variant].append(time.perf_counter() - start)
            cells += [f"{1e3 * np.median(values):.3g}" for values in times.values()]
        print(f"| {layer} | {work / 1e9:.3g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
