"""The contrastive training step compiled for TPU v5e pods, on a machine without TPUs: memory, operations, traffic.

pip install libtpu && python -m benchmarks.tpu_pod --markdown --out pod.json

It uses the compiler inside libtpu and needs no TPU, about 2 GB of memory, and about 17 minutes on two cores for all
cases (a minute each; ``--models``, ``--slices`` and ``--implementations`` choose fewer). Nothing is run: every figure
is read from the compiled program, and the times are lower bounds computed from these figures. docs/scaling.md
interprets the tables.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import re
import time
from typing import Any, Literal, NamedTuple

import tyro

from benchmarks.hlo import KINDS, collective_bytes, hbm_bytes

# Published figures of a v5e chip (cloud.google.com/tpu/docs/v5e). The interconnect's 1600 Gbit/s is taken as what
# a chip can send, the most generous reading, for a lower bound of the time.
FLOPS, HBM_BANDWIDTH, ICI_BANDWIDTH = 197e12, 819e9, 1600e9 / 8


@dataclasses.dataclass(frozen=True)
class Config:
    """Which programs to compile."""

    models: tuple[Literal["vit-b16", "vit-bigg14"], ...] = ("vit-b16", "vit-bigg14")
    """ViT-B/16 with replicated state, and ViT-bigG/14 with its state split over chips (fsdp)."""
    slices: tuple[str, ...] = ("4x4", "8x8", "16x16")
    """Topologies of v5e, such as 4x4 for 16 chips."""
    implementations: tuple[Literal["auto", "global", "tiled", "ring"], ...] = ("global", "tiled", "ring")
    """Implementations of InfoNCE, for ViT-B/16. "ring" needs a named axis: it is compiled with `shard_map` (the program
    of the mode pmap), the others in the mode sharded."""
    fsdp: tuple[int, ...] = (1, 16)
    """Numbers of chips over which the state of ViT-bigG/14 is split."""
    batch: int = 256
    """Examples per chip for ViT-B/16."""
    large_batch: int = 32
    """Examples per chip for ViT-bigG/14."""
    shard_examples: bool = True
    """Whether layers call `core.collectives.shard_examples`; without, the effect of that function can be seen."""
    markdown: bool = False
    """Print Markdown tables."""
    out: pathlib.Path | None = None
    """JSON file to write all figures to."""


class Case(NamedTuple):
    """One program to compile."""

    model: str
    topology: str
    implementation: str
    fsdp: int
    batch: int
    """Examples per chip."""


def cases(config: Config) -> list[Case]:
    """All programs of a configuration, in the order of the tables."""
    out = []
    if "vit-b16" in config.models:
        out += [
            Case("vit-b16", s, implementation, 1, config.batch)
            for implementation in config.implementations
            for s in config.slices
        ]
    if "vit-bigg14" in config.models:
        for fsdp in config.fsdp:
            fitting = [s for s in config.slices if math.prod(map(int, s.split("x"))) % fsdp == 0]
            # Replicated state has the same size on every slice: one case shows whether it fits.
            fitting = fitting[:1] if fsdp == 1 else fitting
            out += [Case("vit-bigg14", s, "auto", fsdp, config.large_batch) for s in fitting]
    return out


# -- the program ---------------------------------------------------------------------------------------------


def matmul_flops(jaxpr, *, unroll: bool = True) -> float:
    """Operations of all matrix products of a jaxpr, summed over all chips; ``unroll=False`` counts loop bodies once."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params["length"] if eqn.primitive.name == "scan" and unroll else 1
        if eqn.primitive.name == "shard_map":
            times = eqn.params["mesh"].size
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * matmul_flops(inner, unroll=unroll)
    return total


def build(case: Case, devices) -> tuple[Any, tuple, Any]:
    """The jitted step of a case, the shapes and shardings of its arguments, and the state's part of them."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from xmodal_jax.models.contrastive import ContrastiveConfig, InfoNCE, make_contrastive
    from xmodal_jax.nets.encoders import TextTransformerConfig, ViTConfig
    from xmodal_jax.train import optim, parallel
    from xmodal_jax.train.step import make_init, make_step

    saving = dict(dtype="bfloat16", remat=True, scan_layers=True)

    if case.model == "vit-b16":
        image = ViTConfig(width=768, depth=12, heads=12, patch=16, **saving)
        text, embed_dim = TextTransformerConfig(width=512, depth=12, heads=8, **saving), 512
    else:
        image = ViTConfig(width=1664, depth=48, heads=16, patch=14, mlp_ratio=8192 / 1664, **saving)
        text, embed_dim = TextTransformerConfig(width=1280, depth=32, heads=20, **saving), 1280
    objective = InfoNCE(implementation=case.implementation)
    config = ContrastiveConfig(embed_dim=embed_dim, image=image, text=text, objective=objective)
    method = make_contrastive(config, ("image", "text"), vocab_size=49_408)
    optimizer = optim.Optimizer()
    tx = optim.make_optimizer(optimizer, 100_000)
    init = make_init(method, tx, optimizer)
    mesh, size = parallel.make_mesh(case.fsdp, devices), case.batch * len(devices)

    def struct(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    fields = {"image": ((224, 224, 3), jnp.uint8), "text": ((77,), jnp.int32), "index": ((), jnp.int32)}
    step_of = functools.partial(make_step, method, tx, optimizer)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if case.implementation != "ring":
        engine = parallel.make_engine(
            "sharded", init, lambda axis: step_of(axis_name=axis), fsdp=case.fsdp, devices=devices
        )
        rows = PartitionSpec(None, (parallel.AXIS, "fsdp"))
        steps = {name: struct((1, size, *shape), dtype, rows) for name, (shape, dtype) in fields.items()}
        state = engine.abstract(
            key, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), steps)
        )
        return engine.run, (state, None, steps), state
    # The engine's pmap needs devices that exist; this is the program that it makes from the same step.
    whole, rows = PartitionSpec(), PartitionSpec(parallel.AXIS)
    batch = {name: struct((size, *shape), dtype, rows) for name, (shape, dtype) in fields.items()}
    state = jax.tree.map(lambda x: struct(x.shape, x.dtype, whole), jax.eval_shape(init, key, batch))
    step = jax.shard_map(
        step_of(axis_name=parallel.AXIS),
        mesh=mesh,
        in_specs=(whole, rows),
        out_specs=(whole, whole),
        check_vma=False,
    )
    return jax.jit(step, donate_argnums=0), (state, batch), state


def measure(case: Case) -> dict[str, Any]:
    """Compiles a case and reads its figures: bytes and operations, per chip and step."""
    import jax
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=f"v5e:{case.topology}").devices
    chips = len(devices)
    result = {**case._asdict(), "chips": chips, "global_batch": case.batch * chips}
    program, arguments, state = build(case, devices)
    traced = program.trace(*arguments)
    local = jax.tree.map(lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize, state)
    result["state"] = sum(jax.tree.leaves(local))
    result["flops"] = matmul_flops(traced.jaxpr.jaxpr) / chips
    result["flops_loops_once"] = matmul_flops(traced.jaxpr.jaxpr, unroll=False) / chips
    start = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"\(([\d.]+)G\) exceeds|Used ([\d.]+)G", str(error))
        return {**result, "does_not_fit": f"{needed.group(1) or needed.group(2)} GiB" if needed else "yes"}
    result["compile_seconds"] = time.perf_counter() - start
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    result["arguments"], result["temporaries"] = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    result["output"] = memory.output_size_in_bytes - memory.alias_size_in_bytes
    result["cost_analysis"] = {k: compiled.cost_analysis()[k] for k in ("flops", "bytes accessed")}
    result["hbm_bytes"] = hbm_bytes(hlo)
    sent = collective_bytes(hlo, chips)
    result["collective_bytes"] = {kind: sent.get(kind, (0.0, 0))[0] for kind in KINDS}
    result["collective_count"] = {kind: sent.get(kind, (0.0, 0))[1] for kind in KINDS}
    result["bounds_ms"] = {
        "compute": 1e3 * result["flops"] / FLOPS,
        "hbm": 1e3 * result["hbm_bytes"] / HBM_BANDWIDTH,
        "interconnect": 1e3 * sum(result["collective_bytes"].values()) / ICI_BANDWIDTH,
    }
    return result


# -- tables --------------------------------------------------------------------------------------------------


def memory_row(r: dict[str, Any]) -> dict[str, str]:
    """The memory of a chip, in GB."""
    row = {**_name(r), "state": f"{r['state'] / 1e9:.2f}"}
    if "does_not_fit" in r:
        return {**row, "arguments": "-", "temporaries": "-", "total": f"does not fit: {r['does_not_fit']}"}
    total = r["arguments"] + r["temporaries"] + r["output"]
    row |= {"arguments": f"{r['arguments'] / 1e9:.2f}", "temporaries": f"{r['temporaries'] / 1e9:.2f}"}
    return {**row, "total": f"{total / 1e9:.2f}"}


def traffic_row(r: dict[str, Any]) -> dict[str, str]:
    """What a chip sends in a step, in MB, and the number of operations."""
    sent = {kind: f"{r['collective_bytes'][kind] / 1e6:,.0f}" for kind in KINDS}
    return {**_name(r), **sent, "operations": f"{sum(r['collective_count'].values()):,}"}


def bounds_row(r: dict[str, Any]) -> dict[str, str]:
    """Operations, HBM traffic, and the lower bounds of a step's time that follow."""
    bounds = r["bounds_ms"]
    row = {**_name(r), "TFLOP": f"{r['flops'] / 1e12:.2f}", "HBM GB": f"{r['hbm_bytes'] / 1e9:.0f}"}
    # Both count loop bodies once. A ratio of 1.00 means that no chip repeats another's matrix products.
    row["XLA's / traced FLOP"] = f"{r['cost_analysis']['flops'] / r['flops_loops_once']:.2f}"
    row |= {f"{name} ms": f"{value:,.0f}" for name, value in bounds.items()}
    return {**row, "bound": max(bounds, key=bounds.get)}


def _name(r: dict[str, Any]) -> dict[str, str]:
    name = (
        f"{r['model']}, fsdp {r['fsdp']}"
        if r["model"] == "vit-bigg14"
        else f"{r['model']}, {r['implementation']}"
    )
    return {"model": name, "chips": str(r["chips"]), "global batch": f"{r['global_batch']:,}"}


def table(rows: list[dict[str, str]], markdown: bool) -> str:
    """Rows with equal keys as text or as Markdown."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    if markdown:
        lines.insert(1, ["---"] * 3 + ["---:"] * (len(rows[0]) - 3))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = lambda line: "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
    return "\n".join(map(pad, lines))


def main(config: Config) -> None:
    """Compiles all cases and prints the tables."""
    # libtpu reads these when it starts: the backend of this machine is the CPU, and no pod can be asked for a topology.
    os.environ["JAX_PLATFORMS"], os.environ["TPU_SKIP_MDS_QUERY"] = "cpu", "1"
    from xmodal_jax.core import collectives

    if not config.shard_examples:
        collectives.mesh_size = lambda: 1
    results = []
    for case in cases(config):
        results.append(measure(case))
        print(f"# {case}: {results[-1].get('compile_seconds', 0):.0f} s to compile", flush=True)
        if config.out:
            versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "flax")}
            config.out.write_text(json.dumps({"versions": versions, "cases": results}, indent=1))
    fitting = [r for r in results if "does_not_fit" not in r]
    for title, row, chosen in (
        ("Memory of a chip (GB)", memory_row, results),
        ("Sent by a chip in a step (MB)", traffic_row, fitting),
        ("Lower bounds of a step's time", bounds_row, fitting),
    ):
        if chosen:
            print(f"\n{title}\n\n{table([row(r) for r in chosen], config.markdown)}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
