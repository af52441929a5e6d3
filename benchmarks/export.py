"""Exported programs against the library: differences of outputs, sizes of files, times, losses of smaller weights.

    python -m benchmarks.export RUN ... > table.md

Every program of every run, on drawn inputs. "Library" is the program compiled by JAX for the size of the batch with the
parameters of the run; ONNX with smaller weights is compared with our own computation of the same weights. Medians of
rounds in which all take turns, after warming up.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.turns import in_turn
from xmodal_jax.core import runtime, trees
from xmodal_jax.deploy.measure import absolute_difference
from xmodal_jax.deploy.onnx_files import convert
from xmodal_jax.deploy.onnx_graph import NotConvertible
from xmodal_jax.deploy.programs import Program, programs_of
from xmodal_jax.deploy.stablehlo import serialize, with_stored
from xmodal_jax.inference.loading import load
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.transfer.weights import DTYPES

BATCHES = (1, 32)
SMALLER = ("bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs to compare on."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Directories of runs."""
    rounds: int = 21
    """Timings of each."""


def draw_inputs(model: TrainedModel, program: Program, count: int) -> dict[str, np.ndarray]:
    """Inputs of a program: all values are there, tokens are of the vocabulary."""
    rng, tokenizer = np.random.default_rng(0), model.format.transform.tokenizer
    words = 2 if tokenizer is None else tokenizer.vocab_size
    draw = {
        "bool": lambda shape: np.ones(shape, bool),
        "uint8": lambda shape: rng.integers(0, 256, shape),
        "int16": lambda shape: rng.integers(-9000, 9000, shape),
        "int32": lambda shape: rng.integers(0, words if len(shape) > 1 else 2, shape),
        "float32": lambda shape: rng.normal(size=shape),
    }
    return {
        name: np.asarray(draw[field.dtype]((count, *field.shape)), field.dtype)
        for name, field in program.inputs.items()
    }


def largest_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The largest absolute difference of all outputs; 1 where a token or a mask differs."""
    return max(float(absolute_difference(a[name], b[name]).max()) for name in a)


def in_stablehlo(model: TrainedModel, program: Program) -> tuple[Callable, int]:
    """The artifact as a function of the inputs, and its bytes (the parameters have a file of their own)."""
    stored = DTYPES["float32"].compress(trees.flat(model.params))
    data = serialize(model, program, stored, "float32")
    call, on_device = jax.jit(jax.export.deserialize(bytearray(data)).call), jax.device_put(stored)
    return lambda inputs: jax.block_until_ready(call(on_device, inputs)), len(data)


def in_onnx(model: TrainedModel, program: Program, dtype: str) -> tuple[Callable | None, int]:
    """The ONNX program with these weights as a function of the inputs, and its bytes; None: it cannot be converted."""
    import onnxruntime

    try:
        data = convert(model, program, dtype).SerializeToString()
    except NotConvertible:
        return None, 0
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    outputs, taken = [x.name for x in session.get_outputs()], [x.name for x in session.get_inputs()]

    def run(inputs):
        values = session.run(None, {name: inputs[name] for name in taken})
        return dict(zip(outputs, values, strict=True))

    return run, len(data)


def compare(model: TrainedModel, program: Program, rounds: int) -> list[str]:
    """The cells of a program's row."""
    compiled = jax.jit(program.function)
    ours = lambda inputs: jax.block_until_ready(compiled(model.params, inputs))
    stablehlo, stablehlo_bytes = in_stablehlo(model, program)
    onnx, onnx_bytes = in_onnx(model, program, "float32")
    functions = {"library": ours, "StableHLO": stablehlo} | ({} if onnx is None else {"ONNX": onnx})
    inputs = {count: draw_inputs(model, program, count) for count in BATCHES}
    expected = ours(inputs[BATCHES[-1]])
    differences = {k: largest_difference(expected, f(inputs[BATCHES[-1]])) for k, f in functions.items()}

    def timed(function, count):
        start = time.perf_counter()
        function(inputs[count])
        return time.perf_counter() - start

    runs = {(k, n): (lambda f=f, n=n: timed(f, n)) for k, f in functions.items() for n in BATCHES}
    for run in runs.values():
        run()
    times = in_turn(runs, rounds)
    losses, small_onnx = [], []
    for dtype in SMALLER:
        stored = DTYPES[dtype].compress(trees.flat(model.params))
        small = jax.jit(with_stored(model, program, dtype))(stored, inputs[BATCHES[-1]])
        losses.append(f"{largest_difference(expected, small):.1e}")
        run_small, _ = in_onnx(model, program, dtype)
        difference = None if run_small is None else largest_difference(small, run_small(inputs[BATCHES[-1]]))
        small_onnx.append("-" if difference is None else f"{difference:.1e}")
    milliseconds = lambda name: " / ".join(
        f"{1e3 * times[name, n]:.2f}" if (name, n) in times else "-" for n in BATCHES
    )
    size = lambda n: f"{n / 1e6:.2f}" if n else "-"
    differs = lambda name: f"{differences[name]:.1e}" if name in differences else "-"
    cells = [differs("StableHLO"), differs("ONNX"), *small_onnx, size(stablehlo_bytes), size(onnx_bytes)]
    return [*cells, *(milliseconds(name) for name in ("library", "StableHLO", "ONNX")), *losses]


def main(arguments: Arguments) -> None:
    runtime.configure()
    heads = ["run", "program", "StableHLO differs by", "ONNX differs by"]
    heads += [f"{dtype} ONNX differs by" for dtype in SMALLER]
    heads += ["MB StableHLO", "MB ONNX"]
    heads += ["ms library", "ms StableHLO", "ms ONNX", *(f"{dtype} loses" for dtype in SMALLER)]
    print(f"| {' | '.join(heads)} |\n|---|---|{'---:|' * (len(heads) - 2)}", flush=True)
    sizes = []
    for path in arguments.runs:
        model = load(path)
        for program in programs_of(model):
            cells = compare(model, program, arguments.rounds)
            print(f"| {path.name} | {program.name} | {' | '.join(cells)} |", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            sizes.append((path.name, *(weight_size(model, dtype, pathlib.Path(folder)) for dtype in DTYPES)))
    print(f"\n| MB of weights | {' | '.join(DTYPES)} |\n|---|{'---:|' * len(DTYPES)}")
    for name, *values in sizes:
        print(f"| {name} | {' | '.join(f'{value / 1e6:.2f}' for value in values)} |")


def weight_size(model: TrainedModel, dtype: str, folder: pathlib.Path) -> int:
    """Bytes of the parameters' file."""
    from xmodal_jax.pretrained.safetensors_files import write_safetensors

    file = folder / f"{dtype}.safetensors"
    write_safetensors(file, list(DTYPES[dtype].compress(trees.flat(model.params)).items()))
    return file.stat().st_size


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
