"""ONNX models of traced JAX programs: every equation becomes nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jax_core

from xmodal_jax.deploy.onnx_graph import BATCH, Graph, NotConvertible
from xmodal_jax.deploy.onnx_ops import INNER, OPERATORS

OPSET = 20
"""Version of the operators."""
IR_VERSION = 10
"""Version of the file format."""


def convert_jaxpr(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Appends the equations of a jaxpr to the graph; returns the names of its outputs.

    Raises:
      NotConvertible: a primitive has no ONNX operators here; its name is in the message.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {var: graph.constant(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom: Any) -> Any:
        if isinstance(atom, jax_core.Literal):
            return graph.constant(atom.val, atom.aval.dtype)
        return values[atom]

    needed = _needed(jaxpr)
    for equation, is_needed in zip(jaxpr.eqns, needed, strict=True):
        if not is_needed:
            continue
        name, arguments = equation.primitive.name, [read(atom) for atom in equation.invars]
        if name in INNER:
            inner = equation.params[INNER[name]]
            closed = hasattr(inner, "consts")
            results = convert_jaxpr(
                graph, inner.jaxpr if closed else inner, inner.consts if closed else (), arguments
            )
        elif name == "scan":
            results = _unroll_scan(graph, equation, arguments)
        elif name in OPERATORS:
            results = OPERATORS[name](graph, equation, *arguments)
        else:
            shapes = ", ".join(str(atom.aval) for atom in equation.invars)
            raise NotConvertible(
                f"the operation {name!r} of ({shapes}) cannot be converted to ONNX: use --format stablehlo"
            )
        results = results if isinstance(results, list) else [results]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _unroll_scan(graph: Graph, equation: Any, arguments: list[Any]) -> list[Any]:
    """The outputs of a loop over a fixed number of steps, such as the layers of a transformer or the steps of a
    sampler: the graph holds each step."""
    params = equation.params
    constants, carry, stacked = np.split(
        np.asarray(arguments, object), [params["num_consts"], params["num_consts"] + params["num_carry"]]
    )
    steps = range(params["length"])
    outputs = {}  # of each step, those that are stacked
    for i in reversed(steps) if params["reverse"] else steps:
        parts = [graph.take(x, i) for x in stacked]
        results = convert_jaxpr(
            graph, params["jaxpr"].jaxpr, params["jaxpr"].consts, [*constants, *carry, *parts]
        )
        carry, outputs[i] = results[: len(carry)], results[len(carry) :]
    axis = graph.integers(0)
    join = lambda parts: graph.op("Concat", *(graph.op("Unsqueeze", x, axis) for x in parts), axis=0)
    return [*carry, *(join([outputs[i][k] for i in steps]) for k in range(len(outputs[0])))]


def _needed(jaxpr: Any) -> list[bool]:
    """Which equations the outputs depend on."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, jax_core.Literal)}
    needed = []
    for equation in reversed(jaxpr.eqns):
        needed.append(any(v in wanted for v in equation.outvars))
        if needed[-1]:
            wanted |= {v for v in equation.invars if not isinstance(v, jax_core.Literal)}
    return needed[::-1]


def make_model(
    closed: Any,
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
) -> Any:
    """An ONNX model of a closed jaxpr.

    Args:
      closed: takes the weights in the order of ``weights`` and the inputs in the order of ``inputs``.
      weights: arrays that the model holds, by name.
      inputs: ``programs.Field`` by name.
      outputs: the names of what it gives.
    """
    from onnx import helper, numpy_helper

    graph = Graph(next(iter(inputs)))
    results = convert_jaxpr(graph, closed.jaxpr, closed.consts, [*weights, *inputs])
    for name, result in zip(outputs, results, strict=True):
        graph.nodes.append(helper.make_node("Identity", [result], [name]))
    graph.drop_unused(outputs)
    used = {name for node in graph.nodes for name in node.input}
    arrays = {name: np.asarray(x) for name, x in weights.items() if name in used} | graph.initializers

    def value(name: str, shape: Sequence[Any], dtype: Any) -> Any:
        dims = [n if isinstance(n, int) else BATCH for n in shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)

    taken = [value(name, (BATCH, *field.shape), field.dtype) for name, field in inputs.items()]
    returned = [
        value(name, aval.shape, aval.dtype)
        for name, aval in zip(outputs, closed.out_avals, strict=True)
    ]  # fmt: skip
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "program", taken, returned, stored),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="xmodal_jax",
    )
    return made
