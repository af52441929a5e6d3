"""ONNX graphs from JAX programs: each primitive of a traced function becomes a few nodes, see `onnx_ops`.

The size of a batch is a symbol: sizes that depend on it are computed in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jax_core

OPSET = 20
"""Version of the operators."""
IR_VERSION = 10
"""Version of the file format."""
BATCH = "batch"
"""The name of the symbol of the batch size."""
_SIZE_FUNCTIONS = {"floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "max": max, "min": min}
"""The functions in the text of a symbolic size, as `jax.export.symbolic_shape` reads them."""


class NotConvertible(ValueError):
    """A primitive of a program has no ONNX operators here."""


class Graph:
    """An ONNX graph that grows node by node. Its values are the names of tensors."""

    def __init__(self, batch_source: str):
        """``batch_source``: the name of an input, whose first axis is the batch."""
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._constants: dict[tuple, str] = {}
        self._batch_source, self._batch = batch_source, None
        self._count = 0

    def name(self) -> str:
        """A name of a new tensor."""
        self._count += 1
        return f"t{self._count}"

    def op(self, operator: str, *inputs: str, outputs: int = 0, **attributes: Any) -> Any:
        """The output of a new node; with ``outputs`` a list of as many."""
        from onnx import helper

        names = [self.name() for _ in range(outputs or 1)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names if outputs else names[0]

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant; equal ones are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.name()
            self.initializers[self._constants[key]] = array
        return self._constants[key]

    def integers(self, *values: Any) -> str:
        """A vector of int64."""
        return self.constant(list(values), np.int64)

    def size(self, size: Any) -> str:
        """A vector of int64 of length 1 that holds a size, which may depend on the batch's."""
        if isinstance(size, int | np.integer):
            return self.integers(int(size))
        zero, one, two = (size_at(size, count) for count in (0, 1, 2))
        if two - one != one - zero:
            raise NotConvertible(f"the size {size} is not linear in the size of the batch")
        if self._batch is None:
            shape = self.op("Shape", self._batch_source)
            self._batch = self.op("Slice", shape, self.integers(0), self.integers(1))
        scaled = self.op("Mul", self._batch, self.integers(one - zero)) if one - zero != 1 else self._batch
        return self.op("Add", scaled, self.integers(zero)) if zero else scaled

    def shape(self, shape: Sequence[Any]) -> str:
        """A vector of int64 that holds a shape."""
        if all(isinstance(n, int | np.integer) for n in shape):
            return self.integers(*map(int, shape))
        return self.op("Concat", *(self.size(n) for n in shape), axis=0)

    def reshape(self, x: str, shape: Sequence[Any]) -> str:
        """``x`` with another shape."""
        symbolic = [k for k, n in enumerate(shape) if not isinstance(n, int | np.integer)]
        if len(symbolic) == 1 and all(shape[k] for k in range(len(shape)) if k not in symbolic):
            known = [-1 if k in symbolic else int(n) for k, n in enumerate(shape)]
            return self.op("Reshape", x, self.integers(*known))
        return self.op("Reshape", x, self.shape(shape))

    def transpose(self, x: str, order: Any) -> str:
        """``x`` with its axes in another order."""
        order = [int(k) for k in order]
        return x if order == sorted(order) else self.op("Transpose", x, perm=order)

    def cast(self, x: str, dtype: Any) -> str:
        """``x`` as another dtype."""
        from onnx import helper

        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def size_at(size: Any, batch: int) -> int:
    """A size where the batch has ``batch`` examples."""
    names = {BATCH: batch, "__builtins__": {}} | _SIZE_FUNCTIONS
    return int(eval(str(size).replace("^", "**"), names))  # the text of an expression that JAX made


def convert_jaxpr(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Appends the equations of a jaxpr to the graph; returns the names of its outputs.

    Raises:
      NotConvertible: a primitive has no ONNX operators here; its name is in the message.
    """
    from xmodal_jax.deploy.onnx_ops import INNER, OPERATORS

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
    import onnx
    from onnx import helper, numpy_helper

    graph = Graph(next(iter(inputs)))
    results = convert_jaxpr(graph, closed.jaxpr, closed.consts, [*weights, *inputs])
    for name, result in zip(outputs, results, strict=True):
        graph.nodes.append(helper.make_node("Identity", [result], [name]))
    used = {name for node in graph.nodes for name in node.input}
    arrays = {name: np.asarray(x) for name, x in weights.items() if name in used} | graph.initializers

    def value(name: str, shape: Sequence[Any], dtype: Any) -> Any:
        dims = [n if isinstance(n, int) else BATCH for n in shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)

    taken = [value(name, (BATCH, *field.shape), field.dtype) for name, field in inputs.items()]
    given = [
        value(name, aval.shape, aval.dtype)
        for name, aval in zip(outputs, closed.out_avals, strict=True)
    ]  # fmt: skip
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "program", taken, given, stored),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="xmodal_jax",
    )
    onnx.checker.check_model(made)
    return made


Operator = Callable[..., Any]
"""``operator(graph, equation, *inputs)``: the name of the output, or a list of names."""


def product(sizes: Sequence[Any]) -> Any:
    """The product of sizes, which may be symbols."""
    return math.prod(sizes, start=1)
