"""The library on a GPU: contrastive training, the tiled contrastive loss, GAN and VAE steps, several seeds.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --parts loss --sizes 65536

The first runs every part and writes docs/benchmarks/gpu.md and gpu.json; with a choice of parts it only prints their
tables. Without a GPU it ends with an error; `benchmarks.cpu` needs none. If PyTorch (with GPU support) and open_clip of
requirements-bench.txt are installed, they are timed too.

MFU, model FLOPs utilization, is the number of operations in a step's matrix products and convolutions, divided by the
step's time and by the rate of a large bfloat16 matrix product that is measured in the same run (rather than by the
figure in the vendor's data sheet).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import cpu
from benchmarks.cases.sides import rows

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEFAULT_OUT = ROOT / "docs" / "benchmarks" / "gpu"
PARTS = ("train", "loss", "steps", "seeds")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run, and how often."""

    parts: tuple[str, ...] = PARTS
    """Parts to run: train (ViT-B/16 and text), loss (tiled InfoNCE), steps (GAN and VAE), seeds."""
    repeats: int = 7
    """Timings of each variant; the tables have medians."""
    seconds: float = 1.0
    """Least duration of a timing, in seconds; the work is repeated until then."""
    sizes: tuple[int, ...] = (65536, 262144, 1048576)
    """Batch sizes, in pairs, of the loss."""
    dim: int = 512
    """Dimensions of an embedding in the loss."""
    seeds: tuple[int, ...] = (1, 4, 16)
    """Numbers of seeds in one program."""
    out: pathlib.Path | None = None
    """Path of the report without its suffix: .md and .json are written. By default docs/benchmarks/gpu if all parts
    ran, else nothing is written."""

    def __post_init__(self):
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise ValueError(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}")
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {self.repeats}")


def median_seconds(run, repeats: int) -> float:
    """The median time of ``run()``, which has to wait for its result, after two calls to warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def matmul_rate(size: int, repeats: int) -> float:
    """Operations per second of bfloat16 matrix products of ``size x size``, sixteen in one program."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    many = jax.jit(lambda x: jax.lax.fori_loop(0, 16, lambda _, y: (y @ a) * (size**-0.5), x))
    return 16 * 2 * size**3 / median_seconds(lambda: many(a).block_until_ready(), repeats)


def call_in_process(call: str) -> Any:
    """Evaluates ``call``, an expression in this module, in a new process with its own memory; returns its JSON."""
    code = f"import json; from benchmarks import gpu; print(json.dumps(gpu.{call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1][:300] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure_rate(repeats: int, size: int = 8192) -> dict[str, float]:
    return {"flops_per_second": matmul_rate(size, repeats)}


def measure_loss(size: int, dim: int, repeats: int) -> dict[str, float]:
    """The tiled InfoNCE with the gradients of both sides: seconds, bytes, operations."""
    from xmodal_jax.losses import info_nce

    def loss(a, b):
        return info_nce(a, b, temperature=0.07, normalize=True, implementation="tiled").mean()

    a, b = (jax.random.normal(jax.random.key(k), (size, dim), jnp.float32) for k in (0, 1))
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(a, b).compile()
    seconds = median_seconds(lambda: jax.block_until_ready(program(a, b)), repeats)
    memory = program.memory_analysis()
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "seconds": seconds,
        "program_bytes": memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        + memory.argument_size_in_bytes,
        "peak_bytes": stats.get("peak_bytes_in_use"),
        # The logits and each side's gradient once; the tiled implementation also recomputes the logits, not counted
        # here.
        "useful_flops": 3 * 2 * size**2 * dim,
    }


def measure_seeds(name: str, count: int, repeats: int) -> dict[str, float]:
    """Seconds for one step of each of ``count`` seeds in one program."""
    from benchmarks.seeds import prepare

    run = prepare(name, None if count == 1 else count, "vmap")
    return {"seconds": float(np.median([run() for _ in range(repeats)]))}


def train(config: Config, rate: float) -> tuple[str, dict]:
    timed = cpu.run_case("vit_b16", cpu.Config(repeats=config.repeats, seconds=config.seconds))
    (row,) = rows("vit_b16")
    result = cpu.summarize(row, timed)
    from benchmarks.cases.vit_b16 import BATCH

    lines = ["| side | variant | ms per step | pairs/s | MFU |", "|---|---|---:|---:|---:|"]
    flops = next((f for f in timed["flops"].values() if f), None)
    for side, variants in result["variants_ms"].items():
        for variant, ms in variants.items():
            mfu = "–" if flops is None else f"{flops / (ms / 1e3) / rate:.1%}"
            lines.append(f"| {side} | {variant} | {ms:.1f} | {BATCH / (ms / 1e3):,.0f} | {mfu} |")
    lines += [f"\n{row.what}."] + [f"- left out: {k}: {v}" for k, v in result["failed"].items()]
    return "\n".join(lines), result


def loss(config: Config, rate: float) -> tuple[str, list]:
    lines = [
        "| pairs | s, loss and gradients | GiB, program | GiB, peak | fraction of the matrix product's rate |"
    ]
    lines.append("|---:|---:|---:|---:|---:|")
    results = []
    for size in config.sizes:
        one = call_in_process(f"measure_loss({size}, {config.dim}, {min(config.repeats, 3)})")
        results.append({"pairs": size, **one})
        if "failed" in one:
            lines.append(f"| {size:,} | failed: {one['failed']} | | | |")
            continue
        gib = lambda n: "–" if n is None else f"{n / 2**30:.2f}"
        fraction = one["useful_flops"] / one["seconds"] / rate
        memory = f"{gib(one['program_bytes'])} | {gib(one['peak_bytes'])}"
        lines.append(f"| {size:,} | {one['seconds']:.3g} | {memory} | {fraction:.1%} |")
    lines.append(f"\nInfoNCE of float32 embeddings of {config.dim} dimensions; the rate is bfloat16's.")
    return "\n".join(lines), results


def steps(config: Config, rate: float) -> tuple[str, list]:
    results = []
    for case in ("dcgan", "vae"):
        timed = cpu.run_case(case, cpu.Config(repeats=config.repeats, seconds=config.seconds))
        results += [cpu.summarize(row, timed) for row in rows(case)]
    return f"{cpu.table(results)}\n\n{cpu.notes(results)}", results


def seeds(config: Config, rate: float) -> tuple[str, list]:
    lines = ["| model | seeds | ms for a step of each | ms per seed |", "|---|---:|---:|---:|"]
    results = []
    for name in ("mlp", "default"):
        for count in config.seeds:
            one = call_in_process(f"measure_seeds({name!r}, {count}, {config.repeats})")
            results.append({"model": name, "seeds": count, **one})
            if "failed" in one:
                lines.append(f"| {name} | {count} | failed: {one['failed']} | |")
            else:
                ms = 1e3 * one["seconds"]
                lines.append(f"| {name} | {count} | {ms:.3g} | {ms / count:.3g} |")
    return "\n".join(lines), results


TITLES = {
    "train": "Contrastive training",
    "loss": "The contrastive loss without the matrix of logits",
    "steps": "GAN and VAE steps",
    "seeds": "Several seeds in one program",
}


def device() -> dict[str, str] | None:
    """The GPU's name and the version of its platform; None without a GPU. Asked in a new process, to leave it free."""
    answer = call_in_process("describe()")
    return None if "failed" in answer or answer["platform"] not in ("gpu", "cuda", "rocm") else answer


def describe() -> dict[str, str]:
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "version": first.client.platform_version.splitlines()[0],
    }


def main(config: Config) -> None:
    # Several processes share the GPU: none may preallocate its memory.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["BENCHMARK_TORCH_DEVICE"] = "cuda"
    gpu = device()
    if gpu is None:
        sys.exit(
            "JAX sees no GPU here, so that there is nothing to time. Install its plugin (pip install 'jax[cuda12]') "
            "on a machine with one, or run python -m benchmarks.cpu"
        )
    measured = call_in_process(f"measure_rate({config.repeats})")
    if "failed" in measured:
        sys.exit(f"the matrix product failed: {measured['failed']}")
    rate = measured["flops_per_second"]
    about = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.gpu",
        "device": gpu,
        "matmul_tflops_bf16": rate / 1e12,
        "repeats": config.repeats,
        "versions": cpu.versions(),
    }
    text = [
        f"# On a GPU\n\n    {about['command']}\n\n{about['date']}, {gpu['kind']}, JAX {about['versions']['jax']}. "
        f"Measured bfloat16 matrix product: {rate / 1e12:.0f} TFLOP/s. Medians of {config.repeats} timings."
    ]
    print(text[0], flush=True)
    results: dict[str, Any] = {}
    for part in config.parts:
        tables, results[part] = globals()[part](config, rate)
        text.append(f"## {TITLES[part]}\n\n{tables}")
        print(f"\n{text[-1]}", flush=True)
    out = config.out or (DEFAULT_OUT if set(config.parts) == set(PARTS) else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
        report = json.dumps({**about, "results": results}, indent=1)
        out.with_suffix(".json").write_text(report + "\n", encoding="utf-8")
        print(f"\n{out.with_suffix('.md')}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
