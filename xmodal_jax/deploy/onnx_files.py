"""Programs as ONNX files, which hold their weights and take any number of examples."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from xmodal_jax.core import trees
from xmodal_jax.deploy.extras import require
from xmodal_jax.deploy.onnx_convert import OPSET, make_model
from xmodal_jax.deploy.onnx_graph import BATCH, NotConvertible
from xmodal_jax.deploy.programs import Program, programs_of
from xmodal_jax.deploy.signature import signature, write_description
from xmodal_jax.deploy.stablehlo import with_stored
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.transfer.weights import DTYPES

EXTENSION = ".onnx"
WEIGHTS_EXTENSION = ".onnx.data"
MOST_BYTES = 2**31 - 2**20
"""Bytes of a file that holds its weights, at most: a message of protobuf has less than 2 GiB. Larger ones have a file
of their own."""


def write_onnx(model: TrainedModel, folder: pathlib.Path, dtype: str) -> dict[str, str]:
    """Writes an ONNX file for each program and the signature; returns a description of each by the name of its file.

    Programs with loops (texts token by token, waveforms) are left out, which ``signature.json`` says with the operation
    that is the reason.

    Raises:
      ValueError: there are no programs of the kind of run, or none can be converted, or the package ``onnx`` is
        missing.
    """
    require("onnx", "--format onnx")
    converted, written, left_out = [], {}, {}
    for program in programs_of(model):
        try:
            proto = convert(model, program, dtype)
        except NotConvertible as error:
            left_out[program.name] = str(error)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        written |= {program.name + EXTENSION: program.meaning} | save(
            proto, folder / (program.name + EXTENSION)
        )
        converted.append(program)
    if not converted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise NotConvertible(f"no program of {model.path} can be converted: {reasons}")
    facts: dict[str, Any] = {"opset": OPSET, "not_converted": left_out}
    write_description(folder, model, signature(model, converted, EXTENSION, dtype, **facts))
    return written | {name + EXTENSION: f"left out: {reason}" for name, reason in left_out.items()}


def save(proto: Any, path: pathlib.Path) -> dict[str, str]:
    """Writes an ONNX model, with its weights in it or, where it would be too large for one file, in a file beside it;
    returns a description of that file by its name. The model is checked."""
    import onnx

    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) + len(proto.graph.node) * 1024
    if size <= MOST_BYTES:
        onnx.checker.check_model(proto)
        onnx.save_model(proto, str(path))
        return {}
    file = path.name.removesuffix(EXTENSION) + WEIGHTS_EXTENSION
    onnx.save_model(proto, str(path), save_as_external_data=True, location=file)
    onnx.checker.check_model(str(path))  # of the files: the model in memory would be serialized once more
    return {file: f"the weights of {path.name}, which it looks for in the same folder"}


def convert(model: TrainedModel, program: Program, dtype: str) -> Any:
    """The ONNX model of a program, with the weights in it.

    Raises:
      NotConvertible: an operation of the program has no ONNX operators here; the message names it.
    """
    stored = DTYPES[dtype].compress(trees.flat(model.params))
    function = with_stored(model, program, dtype)
    names, inputs = list(stored), list(program.inputs)
    (batch,) = jax.export.symbolic_shape(BATCH)

    def flat(*arrays: Any) -> tuple[Any, ...]:
        weights = dict(zip(names, arrays[: len(names)], strict=True))
        outputs = function(weights, dict(zip(inputs, arrays[len(names) :], strict=True)))
        return tuple(outputs[name] for name in program.outputs if name in outputs)

    structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in stored.values()]
    closed = jax.make_jaxpr(flat)(*structs, *(field.struct(batch) for field in program.inputs.values()))
    outputs = program.output_fields(model.params)
    names = [name for name in program.outputs if name in outputs]
    return make_model(closed, stored, program.inputs, names)
