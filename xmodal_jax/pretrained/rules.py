"""Which array of a checkpoint is which parameter: one table per architecture, read in both directions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """Their array is ours with its axes in another order and grouped otherwise."""

    order: Callable[[int], tuple[int, ...]]
    """The permutation of their axes, of how many there are."""
    split: Callable[[Shape], Shape]
    """From the shape of ours to that of theirs, permuted."""

    def shape(self, ours: Shape) -> Shape:
        """The shape of theirs."""
        permuted = self.split(ours)
        back = np.argsort(self.order(len(permuted)))
        return tuple(permuted[axis] for axis in back)

    def read(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        """Theirs as ours."""
        return theirs.transpose(self.order(theirs.ndim)).reshape(ours)

    def write(self, ours: np.ndarray) -> np.ndarray:
        """Ours as theirs."""
        permuted = ours.reshape(self.split(ours.shape))
        return permuted.transpose(np.argsort(self.order(permuted.ndim)))


def _as_they_are(axes: int) -> tuple[int, ...]:
    return tuple(range(axes))


def _last_to_first(axes: int) -> tuple[int, ...]:
    return (1, 0)


def _kernel(axes: int) -> tuple[int, ...]:
    return (*range(2, axes), 1, 0)


SAME = Layout(_as_they_are, lambda shape: shape)
FLAT = Layout(_as_they_are, lambda shape: (math.prod(shape),))
"""A vector, of which ours may have several axes (a bias of attention heads)."""
CONV = Layout(_kernel, lambda shape: shape)
"""``[out, in, *size]`` to ``[*size, in, out]``."""


def linear(inputs: int = 1, *, turned: bool = True) -> Layout:
    """``[out, in]`` (or, not ``turned``, ``[in, out]``) to a kernel whose first ``inputs`` axes are ``in``."""
    order = _last_to_first if turned else _as_they_are
    return Layout(order, lambda shape: (math.prod(shape[:inputs]), math.prod(shape[inputs:])))


def patches(*size: int) -> Layout:
    """The convolution ``[out, in, *size]`` of patches to a matrix ``[prod(size) in, out]``."""
    return Layout(_kernel, lambda shape: (*size, shape[0] // math.prod(size), shape[1]))


class Rule(NamedTuple):
    """One array of theirs (or several that make one of ours, or none: zeros) and its place in ours."""

    theirs: str | tuple[str, ...]
    ours: str
    """Path of the parameter."""
    layout: Layout = SAME
    at: tuple[int | slice, ...] = ()
    """Where in the parameter."""
    change: Callable[..., np.ndarray] | None = None
    """What is done to theirs first; the shape is then not checked before."""
    restore: Callable[[np.ndarray], Iterable[np.ndarray]] | None = None
    """The reverse of ``change``; None: what is written is not changed back."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of theirs."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def dense(theirs: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """A linear layer."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/kernel", linear())]
    return rules + ([Rule(f"{theirs}.bias", f"{ours}/bias")] if bias else [])


def norm(theirs: str, ours: str) -> list[Rule]:
    """A layer norm."""
    return [Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")]


def embedding(theirs: str, ours: str) -> list[Rule]:
    """A table of embeddings."""
    return [Rule(f"{theirs}.weight", f"{ours}/embedding")]


def attention(
    theirs: Mapping[str, str], ours: str, *, cross: bool = False, no_bias: tuple[str, ...] = ()
) -> list[Rule]:
    """`nets.attention.MultiHeadAttention`; ``theirs`` names its "query", "key", "value" and "out".

    A bias that they lack is filled with zeros. (That of the keys adds the same to all logits of a query.)
    """
    places = {"query": ("qkv", 0), "key": ("qkv", 1), "value": ("qkv", 2)}
    if cross:
        places = {"query": ("query", None), "key": ("key_value", 0), "value": ("key_value", 1)}
    rules = []
    for part, (name, place) in places.items():
        kernel, at = ((), ()) if place is None else ((slice(None), place), (place,))
        rules.append(Rule(f"{theirs[part]}.weight", f"{ours}/{name}/kernel", linear(), kernel))
        bias = () if part in no_bias else f"{theirs[part]}.bias"
        rules.append(Rule(bias, f"{ours}/{name}/bias", FLAT, at))
    rules.append(Rule(f"{theirs['out']}.weight", f"{ours}/out/kernel", linear(inputs=2)))
    return [*rules, Rule(() if "out" in no_bias else f"{theirs['out']}.bias", f"{ours}/out/bias")]


def block(theirs: str, ours: str, names: Mapping[str, str], *, no_bias: tuple[str, ...] = ()) -> list[Rule]:
    """`nets.transformer.TransformerBlock`: ``theirs`` is the prefix of their layer, ``names`` what follows it for
    "query", "key", "value", "out", "attention_norm", "up", "down" and "mlp_norm"."""
    full = {part: f"{theirs}.{name}" for part, name in names.items()}
    return [
        *attention(full, f"{ours}/attention", no_bias=no_bias),
        *norm(full["attention_norm"], f"{ours}/attention_norm"),
        *dense(full["up"], f"{ours}/mlp/up"),
        *dense(full["down"], f"{ours}/mlp/down"),
        *norm(full["mlp_norm"], f"{ours}/mlp_norm"),
    ]


def layers(
    make: Callable[[int, str], list[Rule]], depth: int, scan: bool, ours: str = "transformer"
) -> list[Rule]:
    """The rules ``make(layer, ours)`` of each layer of a `nets.transformer.Transformer`, stacked if it scans them."""
    if not scan:
        return [rule for k in range(depth) for rule in make(k, f"{ours}/layers_{k}")]
    return [rule._replace(at=(k, *rule.at)) for k in range(depth) for rule in make(k, f"{ours}/layers")]


def prefixed(rules: Iterable[Rule], theirs: str = "", ours: str = "") -> list[Rule]:
    """Rules with something before the names of theirs and the paths of ours."""

    def one(rule):
        names = tuple(theirs + name for name in rule.names)
        return rule._replace(
            theirs=names[0] if isinstance(rule.theirs, str) else names, ours=ours + rule.ours
        )

    return [one(rule) for rule in rules]


def write(rules: Iterable[Rule], params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of theirs, by name, from ours by path."""
    for rule in rules:
        if not rule.names:
            continue
        whole = params[rule.ours]
        array = rule.layout.write(np.asarray(whole[rule.at] if rule.at else whole))
        arrays = (array,) if rule.restore is None else tuple(rule.restore(array))
        yield from zip(rule.names, arrays, strict=True)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the regular expressions is found in the name."""
    return any(re.search(pattern, name) for pattern in patterns)
