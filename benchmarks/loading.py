"""Memory and time of loading a pretrained checkpoint, in a new process each.

    python -m benchmarks.loading [--gigabytes 1]

Writes a BERT with random parameters of about this size to a temporary folder and loads it. ``peak`` is the growth of
the process's peak memory, and ``loaded`` that of the parameters, in bytes; the peak is a multiple of the checkpoint's
size. Imports and the writing of the checkpoint are not included.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

WIDTH, WORDS = 1024, 30_522


def make(folder: pathlib.Path, gigabytes: float) -> None:
    from xmodal_jax.core import trees
    from xmodal_jax.pretrained import bert
    from xmodal_jax.pretrained.load import complete_config, make_module, parameter_shapes
    from xmodal_jax.pretrained.rules import to_checkpoint
    from xmodal_jax.pretrained.safetensors_files import write_safetensors

    layer, rest = 12 * WIDTH**2 * 4, (WORDS + 514) * WIDTH * 4
    depth = max(1, round((gigabytes * 1e9 - rest) / layer))
    config = {
        "model_type": "bert",
        "hidden_size": WIDTH,
        "num_hidden_layers": depth,
        "num_attention_heads": 16,
        "intermediate_size": 4 * WIDTH,
    }
    module = make_module("text", complete_config(config))
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.standard_normal(leaf.shape, np.float32)
    params = {name: draw(leaf) for name, leaf in trees.flat(parameter_shapes(module)).items()}
    (folder / "config.json").write_text(json.dumps(config))
    rules = [rule for rule in bert.rules(module) if rule.path in params]
    write_safetensors(folder / "model.safetensors", to_checkpoint(rules, params))


def resident() -> int:
    """The resident memory of this process, in bytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def read(folder: pathlib.Path, dtype: str) -> None:
    import jax
    import jax.numpy as jnp

    from xmodal_jax.core import runtime
    from xmodal_jax.pretrained.files import open_checkpoint
    from xmodal_jax.pretrained.load import complete_config, load_encoder

    runtime.configure()
    jax.block_until_ready(jnp.zeros(3))
    complete_config({"model_type": "bert"})  # imports
    size, before, start = open_checkpoint(folder).size, resident(), time.perf_counter()
    encoder = load_encoder(folder, "text", dtype=getattr(jnp, dtype))
    jax.block_until_ready(encoder.params)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    loaded = sum(leaf.nbytes for leaf in jax.tree.leaves(encoder.params))
    print(
        json.dumps(
            {
                "dtype": dtype,
                "size": size,
                "loaded": loaded,
                "peak": peak / size,
                "seconds": round(seconds, 2),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--make", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.make:
        return make(chosen.make, chosen.gigabytes)
    if chosen.read:
        return read(chosen.read, chosen.dtype)
    module = [sys.executable, "-m", "benchmarks.loading"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*module, "--make", folder, "--gigabytes", str(chosen.gigabytes)], check=True)
        for dtype in ("float32", "bfloat16"):
            subprocess.run([*module, "--read", folder, "--dtype", dtype], check=True)
    return None


if __name__ == "__main__":
    main()
