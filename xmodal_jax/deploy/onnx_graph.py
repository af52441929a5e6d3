"""ONNX graphs from JAX programs: each primitive of a traced function becomes a few nodes, see `onnx_ops`.

The size of a batch is a symbol: sizes that depend on it are computed in the graph.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BATCH = "batch"
"""The name of the symbol of the batch size."""
_SIZE_FUNCTIONS = {"floordiv": operator.floordiv, "mod": operator.mod, "max": max, "min": min}
"""The functions in the text of a symbolic size, as `jax.export.symbolic_shape` reads them."""
_SIZE_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}
"""The operators in this text, in which a power is written ``^``."""


class NotConvertible(ValueError):
    """A primitive of a program has no ONNX operators here."""


class Graph:
    """An ONNX graph that grows node by node. Its values are the names of tensors."""

    def __init__(self, batch_source: str):
        """``batch_source``: the name of an input, whose first axis is the batch."""
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.unexpanded: dict[str, str] = {}
        self._parts: dict[tuple[str, int], str] = {}
        """By the name of a value that is another one expanded along some axes this other one, of as many axes."""
        self.bools: dict[str, str] = {}
        """By the name of integers that are converted bools the bools."""
        self._constants: dict[tuple, str] = {}
        self._batch_source, self._batch = batch_source, None
        self._count = 0

    def name(self) -> str:
        """A name of a new tensor."""
        self._count += 1
        return f"t{self._count}"

    def op(self, name: str, *inputs: str, outputs: int = 0, **attributes: Any) -> Any:
        """The output of a new node; with ``outputs`` a list of as many."""
        from onnx import helper

        names = [self.name() for _ in range(outputs or 1)]
        self.nodes.append(helper.make_node(name, list(inputs), names, **attributes))
        return names if outputs else names[0]

    def elementwise(self, name: str, equation: Any, *inputs: str, **attributes: Any) -> str:
        """The output of a node that computes each element alone. Its operators expand their inputs themselves, so that
        an expanded one need not be in memory where another one has all axes."""
        shape = equation.outvars[0].aval.shape
        has_all = [
            x not in self.unexpanded and atom.aval.shape == shape
            for x, atom in zip(inputs, equation.invars, strict=True)
        ]
        if any(has_all):
            inputs = tuple(self.unexpanded.get(x, x) for x in inputs)
        return self.op(name, *inputs, **attributes)

    def drop_unused(self, outputs: Sequence[str]) -> None:
        """Removes the nodes that the outputs do not depend on."""
        wanted, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                nodes.append(node)
        self.nodes = nodes[::-1]

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

    def take(self, x: str, index: int) -> str:
        """``x[index]`` along the first axis. The same part is one node: a loop that runs several times takes the
        weights of its steps from one copy."""
        if (x, index) not in self._parts:
            self._parts[x, index] = self.op("Gather", x, self.constant(index, np.int64), axis=0)
        return self._parts[x, index]

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
    """A size where the batch has ``batch`` examples.

    Raises:
      NotConvertible: the size has parts that are neither numbers, the size of the batch, nor operations of these.
    """

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name == BATCH:
                return batch
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIZE_OPERATORS:
                return _SIZE_OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=args) if name in _SIZE_FUNCTIONS:
                return _SIZE_FUNCTIONS[name](*map(value, args))
        raise NotConvertible(f"the size {size} is no formula of the size of the batch: {ast.unparse(node)}")

    return value(ast.parse(str(size).replace("^", "**"), mode="eval").body)


Operator = Callable[..., Any]
"""``operator(graph, equation, *inputs)``: the name of the output, or a list of names."""


def product(sizes: Sequence[Any]) -> Any:
    """The product of sizes, which may be symbols."""
    return math.prod(sizes, start=1)
