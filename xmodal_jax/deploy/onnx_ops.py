"""The primitives of JAX as ONNX operators. A complex value is a pair of names, of its real and imaginary part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from xmodal_jax.deploy.onnx_graph import Graph, NotConvertible, Operator, product

INNER = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
"""The primitives that only hold another program, and the parameter that it is in."""
EXACT_IN_FLOAT32 = 2**24
"""Up to this number float32 holds every integer."""


def _node(operator: str, **attributes: Any) -> Operator:
    """A primitive that is one ONNX operator of the same inputs, element by element."""
    return lambda graph, equation, *inputs: graph.elementwise(operator, equation, *inputs, **attributes)


def _chain(*operators: str) -> Operator:
    """A primitive that is ONNX operators one after the other; the last ones have one input."""

    def convert(graph: Graph, equation: Any, *inputs: str) -> str:
        x = graph.elementwise(operators[0], equation, *inputs)
        for operator in operators[1:]:
            x = graph.op(operator, x)
        return x

    return convert


def _identity(graph: Graph, equation: Any, *inputs: Any) -> list[Any]:
    return list(inputs)


def _logical(operator: str) -> Operator:
    """A logical operation of bools; that of the bits of integers is not converted."""

    def convert(graph: Graph, equation: Any, *inputs: str) -> str:
        if equation.invars[0].aval.dtype != np.bool_:
            raise NotConvertible(f"{equation.primitive.name!r} of integers cannot be converted to ONNX")
        return graph.elementwise(operator, equation, *inputs)

    return convert


def _plus_one(before: bool, operator: str, sign: int) -> Operator:
    """``operator(x + 1)`` or ``operator(x) - 1`` …: a shift by one ``before`` or after an operator."""

    def convert(graph: Graph, equation: Any, x: str) -> str:
        one = graph.constant(sign, equation.invars[0].aval.dtype)
        return (
            graph.op(operator, graph.op("Add", x, one))
            if before
            else graph.op("Add", graph.op(operator, x), one)
        )

    return convert


def _erfc(graph: Graph, equation: Any, x: str) -> str:
    return graph.op("Sub", graph.constant(1, equation.invars[0].aval.dtype), graph.op("Erf", x))


def _square(graph: Graph, equation: Any, x: str) -> str:
    return graph.op("Mul", x, x)


def _integer_pow(graph: Graph, equation: Any, x: str) -> str:
    exponent, result = int(equation.params["y"]), x
    for _ in range(abs(exponent) - 1):
        result = graph.op("Mul", result, x)
    return graph.op("Reciprocal", result) if exponent < 0 else result


def _is_finite(graph: Graph, equation: Any, x: str) -> str:
    return graph.op("Not", graph.op("Or", graph.op("IsNaN", x), graph.op("IsInf", x)))


def _round(graph: Graph, equation: Any, x: str) -> str:
    if equation.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return graph.op("Round", x)
    half = graph.constant(0.5, equation.invars[0].aval.dtype)
    return graph.op("Mul", graph.op("Sign", x), graph.op("Floor", graph.op("Add", graph.op("Abs", x), half)))


def _convert_element_type(graph: Graph, equation: Any, x: str) -> str:
    converted = graph.cast(x, equation.params["new_dtype"])
    if equation.invars[0].aval.dtype == np.bool_:
        graph.bools[converted] = x
    return converted


def _select_n(graph: Graph, equation: Any, which: str, *cases: str) -> str:
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise NotConvertible("a selection between more than two cases cannot be converted to ONNX")
    if equation.outvars[0].aval.dtype == np.bool_:
        return _where_bool(graph, which, *cases[::-1])
    return graph.elementwise("Where", equation, which, *cases[::-1])


def _where_bool(graph: Graph, which: str, yes: str, no: str) -> str:
    """``Where`` of bools, which runtimes do not select."""
    chosen, other = graph.op("And", which, yes), graph.op("And", graph.op("Not", which), no)
    return graph.op("Or", chosen, other)


def _clamp(graph: Graph, equation: Any, low: str, x: str, high: str) -> str:
    return graph.op("Min", graph.op("Max", x, low), high)


# Shapes


def _to_output_shape(graph: Graph, equation: Any, x: str, *sizes: str) -> str:
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        x = graph.transpose(x, equation.params["dimensions"])  # the order in which elements are read
    return graph.reshape(x, equation.outvars[0].aval.shape)


def _broadcast_in_dim(graph: Graph, equation: Any, x: str, *sizes: str) -> str:
    operand, shape = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    places = equation.params["broadcast_dimensions"]
    placed = [1] * len(shape)
    for axis, place in enumerate(places):
        placed[place] = operand[axis]
    if len(operand) != len(shape):
        x = graph.reshape(x, placed)
    if tuple(placed) == tuple(shape):
        return x
    expanded = graph.op("Expand", x, graph.shape(shape))
    graph.unexpanded[expanded] = x
    return expanded


def _transpose(graph: Graph, equation: Any, x: str) -> str:
    return graph.transpose(x, equation.params["permutation"])


def _concatenate(graph: Graph, equation: Any, *inputs: str) -> str:
    return graph.op("Concat", *inputs, axis=int(equation.params["dimension"]))


def _stack(graph: Graph, equation: Any, *inputs: str) -> str:
    axis = int(equation.params["axis"])
    return graph.op("Concat", *(graph.op("Unsqueeze", x, graph.integers(axis)) for x in inputs), axis=axis)


def _split(graph: Graph, equation: Any, x: str) -> list[str]:
    sizes = equation.params["sizes"]
    return graph.op("Split", x, graph.shape(sizes), outputs=len(sizes), axis=int(equation.params["axis"]))


def _slice(graph: Graph, equation: Any, x: str) -> str:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    axes = graph.integers(*range(len(starts)))
    return graph.op("Slice", x, graph.shape(starts), graph.shape(limits), axes, graph.integers(*strides))


def _rev(graph: Graph, equation: Any, x: str) -> str:
    axes = [int(axis) for axis in equation.params["dimensions"]]
    ones = [-1] * len(axes)
    ends = [np.iinfo(np.int64).min] * len(axes)
    return graph.op("Slice", x, *(graph.integers(*v) for v in (ones, ends, axes, ones)))


def _pad(graph: Graph, equation: Any, x: str, value: str) -> str:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise NotConvertible("padding between elements cannot be converted to ONNX")
    return graph.op("Pad", x, graph.integers(*low, *high), value)


def _iota(graph: Graph, equation: Any, *sizes: str) -> str:
    shape, axis, dtype = equation.params["shape"], equation.params["dimension"], equation.params["dtype"]
    placed = [1] * len(shape)
    placed[axis] = shape[axis]
    if isinstance(shape[axis], int):
        numbers = graph.constant(np.arange(shape[axis]).reshape(placed), dtype)
    else:
        limit = graph.op("Squeeze", graph.size(shape[axis]), graph.integers(0))
        counted = graph.op("Range", graph.constant(0, np.int64), limit, graph.constant(1, np.int64))
        numbers = graph.reshape(graph.cast(counted, dtype), placed)
    return numbers if tuple(placed) == tuple(shape) else graph.op("Expand", numbers, graph.shape(shape))


def _dim_as_value(graph: Graph, equation: Any) -> str:
    size = graph.op("Squeeze", graph.size(equation.params["dim"]), graph.integers(0))
    return graph.cast(size, equation.outvars[0].aval.dtype)


# Reductions


def _reduce(operator: str) -> Operator:
    def convert(graph: Graph, equation: Any, x: str) -> str:
        axes = graph.integers(*(int(axis) for axis in equation.params["axes"]))
        return graph.op(operator, x, axes, keepdims=0)

    return convert


def _reduce_sum(graph: Graph, equation: Any, x: str) -> str:
    """A sum. That of bools is counted in float32, which runtimes add faster than integers, and exactly up to 2^24."""
    axes = [int(axis) for axis in equation.params["axes"]]
    sizes = [equation.invars[0].aval.shape[axis] for axis in axes]
    dtype = equation.outvars[0].aval.dtype
    if x in graph.bools and all(isinstance(n, int) for n in sizes) and product(sizes) <= EXACT_IN_FLOAT32:
        counted = graph.op(
            "ReduceSum", graph.cast(graph.bools[x], np.float32), graph.integers(*axes), keepdims=0
        )
        return graph.cast(counted, dtype)
    return graph.op("ReduceSum", x, graph.integers(*axes), keepdims=0)


def _reduce_logical(operator: str) -> Operator:
    def convert(graph: Graph, equation: Any, x: str) -> str:
        axes = graph.integers(*(int(axis) for axis in equation.params["axes"]))
        return graph.cast(graph.op(operator, graph.cast(x, np.int32), axes, keepdims=0), np.bool_)

    return convert


def _arg(operator: str) -> Operator:
    def convert(graph: Graph, equation: Any, x: str) -> str:
        (axis,) = equation.params["axes"]
        if equation.invars[0].aval.dtype == np.bool_:
            x = graph.cast(x, np.int32)
        index = graph.op(operator, x, axis=int(axis), keepdims=0)
        return graph.cast(index, equation.params["index_dtype"])

    return convert


def _cumsum(graph: Graph, equation: Any, x: str) -> str:
    axis = graph.constant(equation.params["axis"], np.int64)
    return graph.op("CumSum", x, axis, reverse=int(equation.params["reverse"]))


# Products


def _dot_general(graph: Graph, equation: Any, a: str, b: str) -> str:
    """A product as ``[batch, rows, inner] x [batch, inner, columns]``."""
    (inner_a, inner_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    shape_a, shape_b = (v.aval.shape for v in equation.invars)
    free_a = [k for k in range(len(shape_a)) if k not in (*inner_a, *batch_a)]
    free_b = [k for k in range(len(shape_b)) if k not in (*inner_b, *batch_b)]
    sizes = lambda shape, axes: [shape[k] for k in axes]
    batch, inner = sizes(shape_a, batch_a), product(sizes(shape_a, inner_a))
    a = graph.transpose(a, [*batch_a, *free_a, *inner_a])
    b = graph.transpose(b, [*batch_b, *inner_b, *free_b])
    rows, columns = sizes(shape_a, free_a), sizes(shape_b, free_b)
    if len(free_a) != 1 or len(inner_a) != 1:
        a = graph.reshape(a, [*batch, product(rows), inner])
    if len(free_b) != 1 or len(inner_b) != 1:
        b = graph.reshape(b, [*batch, inner, product(columns)])
    result = graph.op("MatMul", a, b)
    if len(free_a) == 1 and len(free_b) == 1:
        return result
    return graph.reshape(result, [*batch, *rows, *columns])


def _conv(graph: Graph, equation: Any, x: str, kernel: str) -> str:
    """A convolution, or a transposed one (zeros between the elements of the input)."""
    params = equation.params
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        raise NotConvertible("a convolution in groups of the batch cannot be converted to ONNX")
    x, kernel = graph.transpose(x, numbers.lhs_spec), graph.transpose(kernel, numbers.rhs_spec)
    if all(n == 1 for n in params["lhs_dilation"]):
        low, high = zip(*params["padding"], strict=True)
        y = graph.op(
            "Conv", x, kernel, pads=[*map(int, low), *map(int, high)], group=int(params["feature_group_count"]),
            strides=[int(n) for n in params["window_strides"]], dilations=[int(n) for n in params["rhs_dilation"]],
        )  # fmt: skip
    else:
        shape = [equation.invars[1].aval.shape[k] for k in numbers.rhs_spec]
        y = _transposed_conv(graph, params, x, kernel, shape)
    return graph.transpose(y, np.argsort(numbers.out_spec))


def _transposed_conv(graph: Graph, params: Any, x: str, kernel: str, shape: Sequence[int]) -> str:
    """A convolution of ``x [N, C, ...]`` with zeros between its elements by ``kernel [O, C / groups, ...]``, whose
    shape is ``shape``: ONNX has it as the gradient of a convolution, with the kernel flipped."""
    if any(n != 1 for n in params["window_strides"]):
        raise NotConvertible("a transposed convolution with strides cannot be converted to ONNX")
    groups, (outputs, inputs, *size) = int(params["feature_group_count"]), shape
    axes = list(range(2, 2 + len(size)))
    ones, ends = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes)
    kernel = graph.op("Slice", kernel, *(graph.integers(*v) for v in (ones, ends, axes, ones)))
    kernel = graph.reshape(kernel, [groups, outputs // groups, inputs, *size])
    kernel = graph.transpose(kernel, [0, 2, 1, *(k + 1 for k in axes)])
    kernel = graph.reshape(kernel, [groups * inputs, outputs // groups, *size])
    dilations = [int(n) for n in params["rhs_dilation"]]
    reach = [(n - 1) * d for n, d in zip(size, dilations, strict=True)]
    before = [r - int(low) for r, (low, _) in zip(reach, params["padding"], strict=True)]
    behind = [r - int(high) for r, (_, high) in zip(reach, params["padding"], strict=True)]
    cut = lambda sizes: [max(n, 0) for n in sizes]
    y = graph.op(
        "ConvTranspose", x, kernel, strides=[int(n) for n in params["lhs_dilation"]], dilations=dilations,
        group=groups, pads=[*cut(before), *cut(behind)],
    )  # fmt: skip
    if min(*before, *behind) >= 0:
        return y
    # What lies farther out than the kernel reaches is 0.
    low, high = ([-min(n, 0) for n in sizes] for sizes in (before, behind))
    return graph.op("Pad", y, graph.integers(0, 0, *low, 0, 0, *high))


def _fft(graph: Graph, equation: Any, x: str) -> tuple[str, str]:
    """The Fourier transform of real numbers along the last axis, as products with cosines and sines."""
    (length,) = equation.params["fft_lengths"]
    if equation.params["fft_type"] != lax.FftType.RFFT:
        raise NotConvertible(
            f"a Fourier transform of the kind {equation.params['fft_type']} cannot be converted"
        )
    angles = 2 * np.pi * np.outer(np.arange(length), np.arange(length // 2 + 1)) / length
    parts = (graph.constant(np.cos(angles), np.float32), graph.constant(-np.sin(angles), np.float32))
    return tuple(graph.op("MatMul", x, part) for part in parts)


def _part(k: int) -> Operator:
    return lambda graph, equation, pair: pair[k]


# Indices


def _gather(graph: Graph, equation: Any, x: str, indices: str) -> str:
    """Entries along one axis: by indices for all examples, or by those of each example."""
    numbers, mode = equation.params["dimension_numbers"], equation.params["mode"]
    operand, index_shape = (v.aval.shape for v in equation.invars)
    if len(index_shape) == 1 and not numbers.operand_batching_dims:
        return _gather_slice(graph, equation, x, indices)
    if len(numbers.start_index_map) != 1 or numbers.collapsed_slice_dims != numbers.start_index_map:
        raise NotConvertible("a gather of slices, or along several axes, cannot be converted to ONNX")
    (axis,) = numbers.start_index_map
    indices = graph.op("Squeeze", indices, graph.integers(len(index_shape) - 1))
    others = [k for k in range(len(operand)) if k != axis and k not in numbers.operand_batching_dims]
    if any(equation.params["slice_sizes"][k] != operand[k] for k in others):
        raise NotConvertible("a gather of parts of an axis cannot be converted to ONNX")
    last = graph.constant(operand[axis] - 1, equation.invars[1].aval.dtype)
    zero = graph.constant(0, equation.invars[1].aval.dtype)
    valid = graph.op("And", graph.op("LessOrEqual", zero, indices), graph.op("LessOrEqual", indices, last))
    inside = graph.op("Min", graph.op("Max", indices, zero), last)
    order = [k for k in range(len(equation.outvars[0].aval.shape)) if k not in numbers.offset_dims]
    if numbers.operand_batching_dims:
        if numbers.operand_batching_dims != (0,) or numbers.start_indices_batching_dims != (0,):
            raise NotConvertible("a gather with several axes of batches cannot be converted to ONNX")
        moved = graph.transpose(x, [0, axis, *others])
        inside = graph.op("Unsqueeze", graph.cast(inside, np.int64), graph.integers(-1))
        entries = graph.op("GatherND", moved, inside, batch_dims=1)
        # Now [batch, indices, others]; the result has the axes of the indices at ``order``.
        places = [*order, *numbers.offset_dims]
    else:
        entries = graph.op("Gather", x, inside, axis=int(axis))
        before = [k for k in range(len(numbers.offset_dims)) if others[k] < axis]
        behind = [k for k in range(len(numbers.offset_dims)) if others[k] > axis]
        places = [
            *(numbers.offset_dims[k] for k in before),
            *order,
            *(numbers.offset_dims[k] for k in behind),
        ]
    result = graph.transpose(entries, np.argsort(places))
    if mode != lax.GatherScatterMode.FILL_OR_DROP or equation.outvars[0].aval.dtype.kind != "f":
        return result
    rank = len(equation.outvars[0].aval.shape)
    shaped = [equation.outvars[0].aval.shape[k] if k in order else 1 for k in range(rank)]
    nan = graph.constant(np.nan, equation.outvars[0].aval.dtype)
    return graph.op("Where", graph.reshape(valid, shaped), result, nan)


def _gather_slice(graph: Graph, equation: Any, x: str, index: str) -> str:
    """One slice, whose start along some axes is the vector ``index``. It has to lie inside, as JAX's own slices do."""
    numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    sizes, axes = equation.params["slice_sizes"], numbers.start_index_map
    low = graph.cast(index, np.int64)
    chosen = [sizes[axis] for axis in axes]
    largest = graph.op("Sub", graph.shape([shape[axis] for axis in axes]), graph.shape(chosen))
    low = graph.op("Min", graph.op("Max", low, graph.integers(0)), largest)
    part = graph.op("Slice", x, low, graph.op("Add", low, graph.shape(chosen)), graph.integers(*axes))
    if any(sizes[k] != shape[k] for k in range(len(shape)) if k not in axes):
        raise NotConvertible("a gather of parts of an axis cannot be converted to ONNX")
    return graph.reshape(part, equation.outvars[0].aval.shape)


def _dynamic_slice(graph: Graph, equation: Any, x: str, *starts: str) -> str:
    shape, sizes = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    if tuple(sizes) == tuple(shape):
        return x
    vector = [
        graph.cast(graph.op("Unsqueeze", start, graph.integers(0)), np.int64)
        for start in starts[: len(shape)]
    ]
    low = graph.op("Concat", *vector, axis=0)
    largest = graph.op("Sub", graph.shape(shape), graph.shape(sizes))
    low = graph.op("Min", graph.op("Max", low, graph.integers(0)), largest)
    return graph.op(
        "Slice", x, low, graph.op("Add", low, graph.shape(sizes)), graph.integers(*range(len(shape)))
    )


def _scatter(graph: Graph, equation: Any, x: str, index: str, update: str) -> str:
    """One entry along an axis replaced."""
    numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    if equation.invars[1].aval.shape != (1,) or len(numbers.scatter_dims_to_operand_dims) != 1:
        raise NotConvertible("a scatter of several entries cannot be converted to ONNX")
    (axis,) = numbers.scatter_dims_to_operand_dims
    if numbers.inserted_window_dims != (axis,):
        raise NotConvertible("a scatter of slices cannot be converted to ONNX")
    places = np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    chosen = graph.op("Equal", graph.constant(places, equation.invars[1].aval.dtype), index)
    update = graph.op("Unsqueeze", update, graph.integers(int(axis)))
    if equation.outvars[0].aval.dtype == np.bool_:
        return _where_bool(graph, chosen, update, x)
    return graph.op("Where", chosen, update, x)


def _named(names: Sequence[str], operator: Operator) -> dict[str, Operator]:
    return dict.fromkeys(names, operator)


OPERATORS: dict[str, Operator] = {
    **{
        name: _node(operator)
        for name, operator in {
            "abs": "Abs", "add": "Add", "ceil": "Ceil", "cos": "Cos", "div": "Div", "eq": "Equal", "erf": "Erf",
            "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log",
            "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "pow": "Pow",
            "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
        }.items()
    },
    **_named(("copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision"), _identity),
    **_named(("expand_dims", "reshape", "squeeze"), _to_output_shape),
    "and": _logical("And"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert_element_type,
    "cumsum": _cumsum,
    "dim_as_value": _dim_as_value,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "erfc": _erfc,
    "expm1": _plus_one(False, "Exp", -1),
    "fft": _fft,
    "gather": _gather,
    "imag": _part(1),
    "integer_pow": _integer_pow,
    "iota": _iota,
    "is_finite": _is_finite,
    "log1p": _plus_one(True, "Log", 1),
    "ne": _chain("Equal", "Not"),
    "not": _logical("Not"),
    "or": _logical("Or"),
    "pad": _pad,
    "real": _part(0),
    "reduce_and": _reduce_logical("ReduceMin"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce_logical("ReduceMax"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce_sum,
    "rem": _node("Mod", fmod=1),
    "rev": _rev,
    "round": _round,
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "scatter": _scatter,
    "select_n": _select_n,
    "slice": _slice,
    "split": _split,
    "square": _square,
    "stack": _stack,
    "transpose": _transpose,
    "xor": _logical("Xor"),
}  # fmt: skip
"""What converts each primitive."""
