"""The mapping from a checkpoint's arrays to parameters: a table of rules per architecture, for reading and writing.

Throughout, ``name`` is the name of an array in a Hugging Face checkpoint (``encoder.layer.0.output.dense.weight``) and
``path`` that of a parameter of this library (``transformer/layers_0/mlp/down/kernel``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How a checkpoint's array becomes a parameter: its axes are permuted, then it is reshaped."""

    order: Callable[[int], tuple[int, ...]]
    """The permutation of the array's axes, given their number."""
    ungroup: Callable[[Shape], Shape]
    """The shape of the permuted array, before it is reshaped, given the shape of the parameter."""

    def array_shape(self, parameter: Shape) -> Shape:
        """The shape that the checkpoint's array has for a ``parameter`` of this shape."""
        permuted = self.ungroup(parameter)
        inverse = np.argsort(self.order(len(permuted)))
        return tuple(permuted[axis] for axis in inverse)

    def read(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """The parameter, of shape ``shape``, from the checkpoint's array."""
        return array.transpose(self.order(array.ndim)).reshape(shape)

    def write(self, parameter: np.ndarray) -> np.ndarray:
        """The checkpoint's array from the parameter."""
        permuted = parameter.reshape(self.ungroup(parameter.shape))
        return permuted.transpose(np.argsort(self.order(permuted.ndim)))


def _identity(axes: int) -> tuple[int, ...]:
    return tuple(range(axes))


def _transpose(axes: int) -> tuple[int, ...]:
    return (1, 0)


def _channels_last(axes: int) -> tuple[int, ...]:
    return (*range(2, axes), 1, 0)


SAME = Layout(_identity, lambda shape: shape)
"""The array is the parameter."""
FLAT = Layout(_identity, lambda shape: (math.prod(shape),))
"""A vector, where the parameter may have several axes (a bias of attention heads)."""
CONV = Layout(_channels_last, lambda shape: shape)
"""A convolution: ``[out, in, *size]`` to ``[*size, in, out]``."""


def linear(inputs: int = 1, *, transposed: bool = True) -> Layout:
    """A matrix ``[out, in]`` (or ``[in, out]`` if not ``transposed``) to a kernel with ``inputs`` input axes followed
    by the output axes, such as ``[heads, dim, out]`` with two input axes."""
    order = _transpose if transposed else _identity
    return Layout(order, lambda shape: (math.prod(shape[:inputs]), math.prod(shape[inputs:])))


def patches(*size: int) -> Layout:
    """A convolution of patches ``[out, in, *size]`` to a matrix ``[prod(size) * in, out]``."""
    return Layout(_channels_last, lambda shape: (*size, shape[0] // math.prod(size), shape[1]))


class Rule(NamedTuple):
    """One parameter, or a slice of it, and the array or arrays of a checkpoint that it comes from."""

    name: str | tuple[str, ...]
    """The name of the array in the checkpoint; or of several, which ``transform`` combines; or (): the parameter is
    filled with 0."""
    path: str
    """The path of the parameter."""
    layout: Layout = SAME
    """How the axes of the array become those of the parameter."""
    index: tuple[int | slice, ...] = ()
    """The slice of the parameter that is filled; all of it by default."""
    transform: Callable[..., np.ndarray] | None = None
    """Applied to the arrays before ``layout``; the arrays' shapes are then not checked. None: they are taken
    unchanged."""
    invert: Callable[[np.ndarray], Iterable[np.ndarray]] | None = None
    """The inverse of ``transform``, for writing a checkpoint; None: the parameter is written untransformed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays in the checkpoint, as a tuple."""
        return (self.name,) if isinstance(self.name, str) else self.name


def dense(name: str, path: str, *, bias: bool = True) -> list[Rule]:
    """The rules for weight and bias of a linear layer."""
    rules = [Rule(f"{name}.weight", f"{path}/kernel", linear())]
    return rules + ([Rule(f"{name}.bias", f"{path}/bias")] if bias else [])


def norm(name: str, path: str) -> list[Rule]:
    """The rules for scale and bias of a layer norm."""
    return [Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias")]


def embedding(name: str, path: str) -> list[Rule]:
    """The rule of a table of embeddings."""
    return [Rule(f"{name}.weight", f"{path}/embedding")]


def attention(
    names: Mapping[str, str], path: str, *, cross: bool = False, no_bias: tuple[str, ...] = ()
) -> list[Rule]:
    """The rules that map a checkpoint's arrays to the parameters of a `nets.attention.MultiHeadAttention`.

    Args:
      names: the names of the checkpoint's layers for "query", "key", "value" and "out".
      path: path of the module's parameters.
      cross: whether it is cross-attention, which computes queries in a separate layer.
      no_bias: layers without a bias in the checkpoint; it is filled with zeros. (A bias of the keys would add the same
        number to all logits of a query, and so change nothing.)
    """
    # The module has one layer for queries, keys and values, with a kernel [in, 3, heads, dim] and a bias [3, heads,
    # dim]; in cross-attention one for queries and one for keys and values. For each checkpoint layer: the module's
    # layer, and the position on the axis of size 3 or 2.
    layers = {"query": ("qkv", 0), "key": ("qkv", 1), "value": ("qkv", 2)}
    if cross:
        layers = {"query": ("query", None), "key": ("key_value", 0), "value": ("key_value", 1)}
    rules = []
    for part, (layer, position) in layers.items():
        # The slice of the parameter that the array fills; () is the whole parameter.
        kernel_index = () if position is None else (slice(None), position)
        bias_index = () if position is None else (position,)
        rules.append(
            Rule(f"{names[part]}.weight", f"{path}/{layer}/kernel", layout=linear(), index=kernel_index)
        )
        bias_name = () if part in no_bias else f"{names[part]}.bias"  # (): no array, zeros
        rules.append(Rule(bias_name, f"{path}/{layer}/bias", layout=FLAT, index=bias_index))
    rules.append(Rule(f"{names['out']}.weight", f"{path}/out/kernel", linear(inputs=2)))
    return [*rules, Rule(() if "out" in no_bias else f"{names['out']}.bias", f"{path}/out/bias")]


def block(name: str, path: str, names: Mapping[str, str], *, no_bias: tuple[str, ...] = ()) -> list[Rule]:
    """The rules that map a checkpoint's arrays to the parameters of a `nets.transformer.TransformerBlock`.

    Args:
      name: the layer's name in the checkpoint, a prefix of the names of its parts.
      path: path of the block's parameters.
      names: the parts' names without the prefix, for "query", "key", "value", "out", "attention_norm", "up", "down" and
        "mlp_norm".
      no_bias: the parts without a bias in the checkpoint, see `attention`.
    """
    full_names = {part: f"{name}.{suffix}" for part, suffix in names.items()}
    return [
        *attention(full_names, f"{path}/attention", no_bias=no_bias),
        *norm(full_names["attention_norm"], f"{path}/attention_norm"),
        *dense(full_names["up"], f"{path}/mlp/up"),
        *dense(full_names["down"], f"{path}/mlp/down"),
        *norm(full_names["mlp_norm"], f"{path}/mlp_norm"),
    ]


def layers(
    make_rules: Callable[[int, str], list[Rule]], depth: int, scan: bool, path: str = "transformer"
) -> list[Rule]:
    """The rules that map a checkpoint's arrays to all ``depth`` layers of a `nets.transformer.Transformer`.

    ``make_rules(k, path)`` gives the rules of layer ``k``. With ``scan`` (``scan_layers``) the parameters of all layers
    are stacked along a first axis, and each rule fills the slice ``k``.
    """
    if not scan:
        return [rule for k in range(depth) for rule in make_rules(k, f"{path}/layers_{k}")]
    return [
        rule._replace(index=(k, *rule.index))
        for k in range(depth)
        for rule in make_rules(k, f"{path}/layers")
    ]


def prefixed(rules: Iterable[Rule], name: str = "", path: str = "") -> list[Rule]:
    """The rules with the prefix ``name`` before each array's name and the prefix ``path`` before each path."""

    def add_prefixes(rule):
        """The rule with both prefixes; ``rule.name`` is one name or a tuple of names."""
        names = tuple(name + n for n in rule.names)
        return rule._replace(name=names[0] if isinstance(rule.name, str) else names, path=path + rule.path)

    return [add_prefixes(rule) for rule in rules]


def to_checkpoint(
    rules: Iterable[Rule], params: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields ``(name, array)`` for the arrays of a checkpoint, from parameters by path: the inverse of reading."""
    for rule in rules:
        if not rule.names:  # it fills a parameter with zeros that the checkpoint does not have
            continue
        parameter = params[rule.path]
        array = rule.layout.write(np.asarray(parameter[rule.index] if rule.index else parameter))
        arrays = (array,) if rule.invert is None else tuple(rule.invert(array))
        yield from zip(rule.names, arrays, strict=True)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the regular expressions occurs in the name."""
    return any(re.search(pattern, name) for pattern in patterns)
