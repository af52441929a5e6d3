"""Nested dictionaries, whose entries have paths such as ``encoder/layer_0/kernel``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from values by path, such as the arrays of `trees.flat`.

    Example::

        nested({"encoder/kernel": 1, "encoder/bias": 2})  # {"encoder": {"kernel": 1, "bias": 2}}
    """
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def value_at(tree: Mapping[str, Any], path: str) -> Any:
    """What stands at a path, such as ``image/encoder``, of nested dictionaries."""
    value: Any = tree
    for name in path.split("/"):
        value = value[name]
    return value


def dotted(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested options as pairs of a dotted name and a value: ("model.width", 64)."""
    pairs = []
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            pairs += dotted(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs
