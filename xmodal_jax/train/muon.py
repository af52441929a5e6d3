"""The Muon optimizer for Flax modules, which orthogonalises the momentum of each matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from xmodal_jax.core import trees
from xmodal_jax.types import Params

_STEPS, _QUINTIC = 5, (3.4445, -4.7750, 2.0315)
"""Number of steps of the iteration, and the coefficients a, b and c of its polynomial (see `newton_schulz`)."""


class Axes(NamedTuple):
    """The axes of a parameter that is a stack of matrices: those of the stack, and those of each matrix."""

    stack: tuple[int, ...]
    """Axes along which the matrices are stacked, such as the layers of a scanned transformer."""
    inputs: tuple[int, ...]
    """Axes of a matrix's inputs."""
    outputs: tuple[int, ...]
    """Axes of a matrix's outputs."""


def matrix_axes(name: str, rank: int) -> Axes | None:
    """The axes of a parameter that consists of matrices, by its path and its number of axes.

    A convolution is one matrix, whose inputs are those of the whole window. Query, key and value are three, and the
    layers of a scanned transformer one each. None for vectors, and for tables such as embeddings, of which a batch uses
    some entries only.
    """
    *_, layer, leaf = ["", *name.split("/")]
    first = 1 if re.search(r"(^|/)layers/", name) else 0
    stack, axes = tuple(range(first)), tuple(range(first, rank))
    if leaf != "kernel" or len(axes) < 2:
        return None
    if layer in ("qkv", "key_value"):
        return Axes((*stack, axes[1]), axes[:1], axes[2:])
    if layer == "query":
        return Axes(stack, axes[:1], axes[1:])
    return Axes(stack, axes[:-1], axes[-1:])


def newton_schulz(x: Float[Array, "count rows columns"]) -> Float[Array, "count rows columns"]:
    """Approximates ``U V^T`` of each matrix ``U S V^T`` (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Starting from ``x / |x|``, five steps compute ``x <- P x`` with ``P = a + b A + c A^2`` and ``A = x x^T``; the
    singular values end between about 0.7 and 1.2. It is cheapest where matrices have fewer rows than columns.

    For wide matrices all steps but the last product work on ``[rows, rows]``: the ``P`` of the steps are multiplied,
    and the next step's ``A`` is ``P A P``.
    """
    a, b, c = _QUINTIC
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
    rows, columns = x.shape[1:]
    gram_of = lambda x: x @ x.transpose(0, 2, 1)
    polynomial = lambda gram: b * gram + c * (gram @ gram) + a * jnp.eye(rows, dtype=x.dtype)[None]
    if columns < 2 * rows:
        for _ in range(_STEPS):
            x = polynomial(gram_of(x)) @ x
        return x
    gram = gram_of(x)
    total = step = polynomial(gram)
    for _ in range(_STEPS - 1):
        gram = step @ gram @ step
        step = polynomial(gram)
        total = step @ total
    return total @ x


def scale_by_muon(*, b1: float, b2: float) -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum (`newton_schulz`) for matrices, and Adam's rule with Nesterov momentum for other
    parameters.

    A matrix's update is ``0.2 sqrt(max(inputs, outputs))`` times the orthogonal matrix. Its elements then have a root
    mean square of 0.2, about that of Adam's, so that one learning rate serves both (Liu et al. 2025, arXiv:2502.16982,
    eq. 4).
    """

    def rules(params: Params) -> Params:
        return trees.map_with_name(lambda name, x: "matrix" if matrix_axes(name, x.ndim) else "rest", params)

    matrices = optax.chain(optax.trace(b1, nesterov=True), _orthogonalize())
    return optax.partition(
        {"matrix": matrices, "rest": optax.scale_by_adam(b1=b1, b2=b2, nesterov=True)}, rules
    )


def _orthogonalize() -> optax.GradientTransformation:
    """Orthogonalises the updates, all matrices of one size together: fewer operations to compile and to launch."""

    def update(updates, state, params=None):
        """Orthogonalises the matrices in ``updates``, which it groups by size."""
        del params
        names, leaves = trees.leaf_names(updates), jax.tree.leaves(updates)
        tables = [_as_matrices(x, matrix_axes(name, x.ndim)) for name, x in zip(names, leaves, strict=True)]
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, (table, _) in enumerate(tables):
            groups.setdefault(table.shape[1:], []).append(i)
        for size, members in groups.items():
            together = newton_schulz(jnp.concatenate([tables[i][0] for i in members]))
            ends = np.cumsum([len(tables[i][0]) for i in members])[:-1]
            parts = jnp.split(together * (0.2 * math.sqrt(max(size))), ends)
            for i, part in zip(members, parts, strict=True):
                leaves[i] = tables[i][1](part)
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _as_matrices(x: Array, axes: Axes) -> tuple[Array, Callable[[Array], Array]]:
    """A parameter as matrices ``[count, rows, columns]`` with ``rows <= columns``, and the function that undoes it."""
    order = (*axes.stack, *axes.inputs, *axes.outputs)
    moved = x.transpose(order)
    count, rows = (math.prod(x.shape[i] for i in some) for some in (axes.stack, axes.inputs))
    table = moved.reshape(count, rows, -1)
    is_tall = table.shape[1] > table.shape[2]
    make_wide = lambda t: t.transpose(0, 2, 1) if is_tall else t  # its own inverse
    undo = lambda t: make_wide(t).reshape(moved.shape).transpose([order.index(i) for i in range(x.ndim)])
    return make_wide(table), undo
