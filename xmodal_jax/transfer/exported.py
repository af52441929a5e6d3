"""An exported run: all of its parameters as plain safetensors, and the metadata of its checkpoint as JSON."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from xmodal_jax.core import trees
from xmodal_jax.core.nesting import nested
from xmodal_jax.pretrained.safetensors_files import read_header
from xmodal_jax.train.checkpoint import DamagedCheckpoint, RestoredCheckpoint, describe, seal, unseal
from xmodal_jax.train.run import write_atomic
from xmodal_jax.transfer.weights import DTYPES

FILE = "run.json"
"""The metadata, in the folder of an export. It is written last: a folder with it is whole."""
PARAMETERS = "parameters"
"""The folder of the parameters within that of an export."""


def is_exported(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an exported run."""
    return (pathlib.Path(folder) / FILE).is_file()


def write_exported(folder: str | os.PathLike, restored: RestoredCheckpoint, dtype: str = "float32") -> None:
    """Writes the metadata of a run whose parameters have been written to ``folder/parameters``.

    ``dtype``: how they have been stored, a key of `weights.DTYPES`.
    """
    content = {
        "step": restored.step,
        "metadata": {name: value for name, value in restored.metadata.items() if name != "arrays"},
        "arrays": describe(DTYPES[dtype].compress(trees.flat(restored.params))),
        "empty": _empty_paths(restored.params),
    }
    if dtype != "float32":  # a folder without the field holds the parameters as they are
        content["dtype"] = dtype
    write_atomic(pathlib.Path(folder) / FILE, json.dumps(seal(content), indent=1))


def restore_exported(folder: str | os.PathLike) -> RestoredCheckpoint:
    """The parameters and metadata of an exported run, verified by their digests.

    Raises:
      FileNotFoundError: a file is missing.
      DamagedCheckpoint: a file holds other content than was written.
    """
    folder = pathlib.Path(folder)
    try:
        content = unseal(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except ValueError as error:
        raise DamagedCheckpoint(f"{folder / FILE} is damaged ({error}): export the run again") from error
    file = folder / PARAMETERS / "model.safetensors"
    try:
        arrays = {name: jnp.asarray(entry.read()) for name, entry in read_header(file).items()}
    except ValueError as error:
        raise DamagedCheckpoint(f"{file} is damaged ({error}): export the run again") from error
    if describe(arrays) != content["arrays"]:
        raise DamagedCheckpoint(f"{file} holds other arrays than were exported: export the run again")
    arrays = DTYPES[content.get("dtype", "float32")].expand(arrays)
    params = nested(arrays | {f"{path}/": None for path in content["empty"]})
    params = _without_marks(params)
    return RestoredCheckpoint(params, content["metadata"], content["step"])


def _empty_paths(params: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The paths of the dictionaries in ``params`` that hold nothing, such as the state of a network that has none."""
    paths = []
    for name, value in params.items():
        if isinstance(value, Mapping):
            paths += _empty_paths(value, f"{prefix}{name}/") if value else [f"{prefix}{name}"]
    return paths


def _without_marks(params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` without the entries of an empty name, which mark dictionaries that hold nothing."""
    named = {name: value for name, value in params.items() if name}
    return {name: _without_marks(x) if isinstance(x, Mapping) else x for name, x in named.items()}
