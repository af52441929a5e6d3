"""Pytrees of parameters: paths of their arrays, norms, moving averages and checks for finite values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree


def path_name(path) -> str:
    """A key path of ``jax.tree_util`` as a string, such as ``encoder/layer_0/kernel``."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_names(tree: PyTree) -> list[str]:
    """The path of every array, in the order of ``jax.tree.leaves``."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def flat(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree by their paths (``encoder/layer_0/kernel``), in the order of ``jax.tree.leaves``.
    `nesting.nested` is the inverse."""
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def map_with_name(fn: Callable[[str, Array], Array], tree: PyTree) -> PyTree:
    """A tree of ``fn(path, array)`` of every array."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(path_name(path), leaf), tree)


_STACKS = re.compile(
    r"(?:^|/)(?:layers|(?:experts|trunks|decoders|projections|classifiers)_[^/]+|\w+_of_each|rises_\d+|deepest"
    r"|level_experts_\d+)(?=/)"
)
"""Modules of equal networks, such as the layers of a scanned transformer, or one network for each modality."""


def stack_rank(path: str) -> int:
    """How many of a parameter's first axes number equal networks: one for each module in its path whose parameters are
    stacked, which are scanned layers (``layers``) and the networks of several modalities
    (`models.vae.networks.stack_modalities`).

    ::

        stack_rank("encoder/layers/mlp/kernel")  # 1: [layers, inputs, outputs]
    """
    return len(_STACKS.findall(path))


def match_names(pattern: str, tree: PyTree, *, what: str = "pattern") -> PyTree:
    """A tree of bools with the structure of ``tree``: whether a regular expression is found in each array's path.

    ``what`` is what the error's message calls the expression, such as the option that holds it.

    Raises:
      ValueError: the expression is found in no path. (A typo must not silently train all parameters.)
    """
    names = leaf_names(tree)
    if not any(re.search(pattern, name) for name in names):
        shown = "\n  ".join(names[:40])
        raise ValueError(f"{what} {pattern!r} matches no parameter. Parameters are:\n  {shown}")
    return map_with_name(lambda name, _: bool(re.search(pattern, name)), tree)


def count(tree: PyTree) -> int:
    """The number of elements of all arrays together."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of all elements together, in float32."""
    leaves = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(leaves, jnp.float32(0.0)))


def finite_leaves(tree: PyTree) -> Bool[Array, "leaves"]:
    """Whether all elements are finite, for each array."""
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])


def update_ema(ema: PyTree, new: PyTree, decay: float | Float[Array, ""]) -> PyTree:
    """The exponential moving average after one more value: ``decay * ema + (1 - decay) * new``, leaf by leaf."""
    return jax.tree.map(lambda e, x: e + (1.0 - decay) * (x - e), ema, new)
