"""Programs as StableHLO, which JAX alone runs: ``jax.export`` artifacts for CPU, CUDA and TPU and any batch size."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from xmodal_jax.core import trees
from xmodal_jax.deploy.extras import require
from xmodal_jax.deploy.programs import Program, programs_of
from xmodal_jax.deploy.signature import signature, write_description
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.pretrained.safetensors_files import write_safetensors
from xmodal_jax.transfer.weights import DTYPES

PLATFORMS = ("cpu", "cuda", "tpu")
EXTENSION = ".stablehlo"
PARAMETERS = "parameters.safetensors"


def write_stablehlo(model: TrainedModel, folder: pathlib.Path, dtype: str) -> dict[str, str]:
    """Writes an artifact for each program, the parameters that all of them take, and their signature; returns a
    description of each program by the name of its file.

    Parameters are an argument and not constants of the programs: those of a captioner would stand in three files, and
    a compiler would compute with int8 constants once and keep the results in float32.

    Raises:
      ValueError: there are no programs of the kind of run, or the package ``flatbuffers`` is missing.
    """
    require("flatbuffers", "--format stablehlo")
    programs = programs_of(model)
    stored = DTYPES[dtype].compress(trees.flat(model.params))
    folder.mkdir(parents=True)
    for program in programs:
        (folder / (program.name + EXTENSION)).write_bytes(serialize(model, program, stored, dtype))
    write_safetensors(folder / PARAMETERS, list(stored.items()))
    facts = {"parameters": PARAMETERS, "platforms": list(PLATFORMS)}
    write_description(folder, model, signature(model, programs, EXTENSION, dtype, **facts))
    return {program.name + EXTENSION: program.meaning for program in programs}


def serialize(model: TrainedModel, program: Program, stored: Mapping[str, Any], dtype: str) -> bytes:
    """The artifact of one program, ``call(parameters, inputs) -> outputs``, all of them dicts of arrays by name."""
    (batch,) = jax.export.symbolic_shape("batch")
    structs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in stored.items()}
    inputs = {name: field.struct(batch) for name, field in program.inputs.items()}
    function = with_stored(model, program, dtype)
    return bytes(jax.export.export(jax.jit(function), platforms=PLATFORMS)(structs, inputs).serialize())


def with_stored(model: TrainedModel, program: Program, dtype: str) -> Callable[..., dict[str, Any]]:
    """``function(stored, inputs)``: the program as a function of the stored arrays by their names."""
    names, structure = trees.leaf_names(model.params), jax.tree.structure(model.params)

    def function(stored: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        params = DTYPES[dtype].expand(stored)
        return program.function(structure.unflatten([params[name] for name in names]), inputs)

    return function
