"""Weights that take less room: half precision, and integers of eight bits with a scale for each output channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

SCALE = ".scale"
"""What the name of an array's scales ends with, after the name of the array."""
MATRICES = ("kernel", "embedding")
"""The last parts of the paths of matrices and convolutions, whose last axes are those of the output channels."""
LEAST_INPUTS = 64
"""Weights that share a scale, at least, where a matrix has as many inputs."""
INT8_LIMIT = 127
"""The largest absolute value; -128 is not used, so that the range is symmetric."""


class WeightFormat(NamedTuple):
    """How weights are stored. Everything is computed in the run's own precision."""

    compress: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]
    """The stored arrays of the parameters by their paths."""
    expand: Callable[[Mapping[str, Any]], dict[str, Any]]
    """The parameters by their paths from the stored arrays; it can be traced."""
    meaning: str
    """What is stored, in words."""


def _to_bfloat16(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every float32 array rounded to the nearest bfloat16."""
    rounded = lambda x: np.asarray(jnp.asarray(x).astype(jnp.bfloat16)) if x.dtype == np.float32 else x
    return {name: rounded(np.asarray(x)) for name, x in arrays.items()}


def _from_bfloat16(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: jnp.asarray(x).astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
        for name, x in arrays.items()
    }


def _to_int8(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Matrices and convolutions as int8 and a scale for each of their output channels, ``weight = int8 * scale``; the
    largest absolute weight of a channel is 127. All other arrays stay."""
    stored: dict[str, np.ndarray] = {}
    for name, x in arrays.items():
        x = np.asarray(x)
        if name.split("/")[-1] not in MATRICES or x.ndim < 2 or x.dtype != np.float32:
            stored[name] = x
            continue
        largest = np.abs(x).max(axis=_input_axes(x.shape), keepdims=True)
        scale = np.where(largest > 0, largest / INT8_LIMIT, 1).astype(np.float32)
        stored[name] = np.round(x / scale).astype(np.int8)
        stored[name + SCALE] = scale
    return stored


def _input_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes, whose weights share a scale.

    Of a product with several axes of outputs, such as ``[width, heads, dim]``, no shape says where these begin: the
    leading axes are as few as have `LEAST_INPUTS` together, and never the last.
    """
    sizes = np.cumprod(shape[:-1])
    return tuple(range(min(int(np.sum(sizes < LEAST_INPUTS)) + 1, len(shape) - 1)))


def _from_int8(arrays: Mapping[str, Any]) -> dict[str, Any]:
    expanded = {}
    for name, x in arrays.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in arrays:
            continue
        scale = arrays.get(name + SCALE)
        expanded[name] = x if scale is None else jnp.asarray(x).astype(jnp.float32) * scale
    return expanded


DTYPES: dict[str, WeightFormat] = {
    "float32": WeightFormat(
        lambda arrays: {name: np.asarray(x) for name, x in arrays.items()}, dict, "as they were trained"
    ),
    "bfloat16": WeightFormat(_to_bfloat16, _from_bfloat16, "rounded to bfloat16, computed in float32"),
    "int8": WeightFormat(
        _to_int8, _from_int8,
        "matrices and convolutions as int8 with a float32 scale for each output channel, computed in float32",
    ),
}  # fmt: skip
"""The formats of weights by name."""
