"""The Muon optimizer for Flax modules, which orthogonalises the momentum of each matrix."""

from __future__ import annotations

import math
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
    """The axes along which a parameter's matrices have their inputs and outputs. ``name``: the parameter's path;
    ``rank``: its number of axes.

    A convolution is one matrix, whose inputs are those of the whole window. Query, key and value are three, and the
    layers of a scanned transformer one each, as are the networks of several modalities (`core.trees.stack_rank`). None
    for parameters that Muon does not suit: vectors, and embeddings, since a batch uses some of their entries only.
    """
    *_, layer, leaf = ["", *name.split("/")]
    first = trees.stack_rank(name)
    stack, axes = tuple(range(first)), tuple(range(first, rank))
    if leaf != "kernel" or len(axes) < 2:
        return None
    if layer in ("qkv", "key_value"):  # [inputs, 3 or 2, heads, head width]
        return Axes(stack=(*stack, axes[1]), inputs=axes[:1], outputs=axes[2:])
    if layer == "query":  # [inputs, heads, head width]
        return Axes(stack=stack, inputs=axes[:1], outputs=axes[1:])
    return Axes(stack=stack, inputs=axes[:-1], outputs=axes[-1:])


def newton_schulz(x: Float[Array, "count rows columns"]) -> Float[Array, "count rows columns"]:
    """Approximates ``U V^T`` of each matrix ``U S V^T`` (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Starting from ``x / |x|``, five steps compute ``x <- P x`` with ``P = a + b A + c A^2`` and ``A = x x^T``; the
    singular values end between about 0.7 and 1.2. It is cheapest where matrices have fewer rows than columns.

    For wide matrices (at least twice as many columns as rows) all products but the last are of ``[rows, rows]``
    matrices, which is cheaper: the ``P`` of all steps are multiplied, and applied to ``x`` at the end. The next step's
    ``A`` is ``P A P``, because ``P`` is symmetric.
    """
    a, b, c = _QUINTIC
    # The Frobenius norm of each matrix: no singular value is above 1, so that the iteration converges.
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
    rows, columns = x.shape[1:]
    identity = jnp.eye(rows, dtype=x.dtype)[None]  # [1, rows, rows]
    gram_of = lambda x: x @ x.transpose(0, 2, 1)  # A
    polynomial = lambda gram: b * gram + c * (gram @ gram) + a * identity  # P
    if columns < 2 * rows:
        for _ in range(_STEPS):
            x = polynomial(gram_of(x)) @ x
        return x
    gram = gram_of(x)
    product = step = polynomial(gram)
    for _ in range(_STEPS - 1):
        gram = step @ gram @ step
        step = polynomial(gram)
        product = step @ product
    return product @ x


def scale_by_muon(*, b1: float, b2: float) -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum (`newton_schulz`) for matrices, and Adam's rule with Nesterov momentum for other
    parameters.

    A matrix's update is ``0.2 sqrt(max(inputs, outputs))`` times the orthogonal matrix. Its elements then have a root
    mean square of 0.2, about that of Adam's, so that one learning rate serves both (Liu et al. 2025, arXiv:2502.16982,
    eq. 4).
    """

    def labels(params: Params) -> Params:
        """Which of the two rules each parameter takes."""
        return trees.map_with_name(lambda name, x: "matrix" if matrix_axes(name, x.ndim) else "rest", params)

    muon = optax.chain(optax.trace(b1, nesterov=True), _orthogonalize())
    adam = optax.scale_by_adam(b1=b1, b2=b2, nesterov=True)
    return optax.partition({"matrix": muon, "rest": adam}, labels)


def _orthogonalize() -> optax.GradientTransformation:
    """Orthogonalises the updates, and scales them as `scale_by_muon` says. Every leaf must consist of matrices.

    All matrices of one size are orthogonalised together: fewer operations to compile and to launch.
    """

    def update(updates, state, params=None):
        """The orthogonalised ``updates``; there is no state."""
        del params
        names, leaves = trees.leaf_names(updates), jax.tree.leaves(updates)
        # Each leaf as matrices [count, rows, columns], and the function that restores its shape.
        matrices, restore = [], []
        for name, x in zip(names, leaves, strict=True):
            stack, restore_shape = _as_matrices(x, matrix_axes(name, x.ndim))
            matrices.append(stack)
            restore.append(restore_shape)
        leaves_by_size: dict[tuple[int, ...], list[int]] = {}
        for i, stack in enumerate(matrices):
            leaves_by_size.setdefault(stack.shape[1:], []).append(i)
        for size, indices in leaves_by_size.items():
            orthogonal = newton_schulz(jnp.concatenate([matrices[i] for i in indices]))
            scaled = orthogonal * (0.2 * math.sqrt(max(size)))
            boundaries = np.cumsum([len(matrices[i]) for i in indices])[:-1]
            for i, stack in zip(indices, jnp.split(scaled, boundaries), strict=True):
                leaves[i] = restore[i](stack)
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _as_matrices(x: Array, axes: Axes) -> tuple[Array, Callable[[Array], Array]]:
    """A parameter as matrices ``[count, rows, columns]`` with ``rows <= columns``, and the function that turns such
    matrices back into the parameter's shape."""
    order = (*axes.stack, *axes.inputs, *axes.outputs)
    inverse_order = [order.index(i) for i in range(x.ndim)]
    moved = x.transpose(order)
    count = math.prod(x.shape[i] for i in axes.stack)
    inputs = math.prod(x.shape[i] for i in axes.inputs)
    matrices = moved.reshape(count, inputs, -1)
    is_tall = matrices.shape[1] > matrices.shape[2]
    make_wide = lambda m: m.transpose(0, 2, 1) if is_tall else m  # a transposition, so it is its own inverse
    restore = lambda m: make_wide(m).reshape(moved.shape).transpose(inverse_order)
    return make_wide(matrices), restore
