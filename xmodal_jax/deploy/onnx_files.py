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


def write_onnx(model: TrainedModel, folder: pathlib.Path, dtype: str) -> dict[str, str]:
    """Writes an ONNX file for each program and the signature; returns a description of each by the name of its file.

    Programs with loops (texts token by token, waveforms) are left out, which ``signature.json`` says with the operation
    that is the reason.

    Raises:
      ValueError: there are no programs of the kind of run, or none can be converted, or the package ``onnx`` is
        missing.
    """
    require("onnx", "--format onnx")
    import onnx

    converted, left_out = {}, {}
    programs = programs_of(model)
    for program in programs:
        try:
            converted[program.name] = convert(model, program, dtype)
        except NotConvertible as error:
            left_out[program.name] = str(error)
    if not converted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise NotConvertible(f"no program of {model.path} can be converted: {reasons}")
    folder.mkdir(parents=True)
    for name, proto in converted.items():
        onnx.save_model(proto, str(folder / (name + EXTENSION)))
    programs = [program for program in programs if program.name in converted]
    facts: dict[str, Any] = {"opset": OPSET, "not_converted": left_out}
    write_description(folder, model, signature(model, programs, EXTENSION, dtype, **facts))
    written = {program.name + EXTENSION: program.meaning for program in programs}
    return written | {name + EXTENSION: f"left out: {reason}" for name, reason in left_out.items()}


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
