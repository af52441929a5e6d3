"""Sums over all pairs of a batch without the matrix of all pairs, and gradients of a large batch in chunks.

The logits are made a tile at a time, here or on a ring of devices, and made again for the gradient. Memory is
O(batch x (dim + tile)) where the plain form needs O(batch^2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from xmodal_jax.core.collectives import AxisName, axis_size

NEVER = -1e30
"""The logit of a pair that does not count; finite, so that a row without any pair has finite gradients."""


class Side(NamedTuple):
    """One side of the pairs.

    A pair counts if both are present and they are not two targets of one group; it is positive if it counts
    and the targets are equal.
    """

    x: Float[Array, "n dim"]
    target: Int[Array, "n"]
    group: Int[Array, "n"]
    present: Bool[Array, "n"]


class PairStatistics(NamedTuple):
    """Log-sum-exp over the pairs of each example, and the sum of the logits of its positive pairs."""

    row_lse: Float[Array, "rows"]
    col_lse: Float[Array, "cols"]
    row_positive: Float[Array, "rows"]
    col_positive: Float[Array, "cols"]


def pair_masks(rows: Side, cols: Side) -> tuple[Bool[Array, "rows cols"], Bool[Array, "rows cols"]]:
    """Which pairs count, and which of those are positive."""
    same_target = rows.target[:, None] == cols.target[None, :]
    same_group = rows.group[:, None] == cols.group[None, :]
    counts = rows.present[:, None] & cols.present[None, :] & (same_target | ~same_group)
    return counts, counts & same_target


def logits(rows: Side, cols: Side) -> Float[Array, "rows cols"]:
    """Inner products, in float32 at least."""
    dtype = jnp.promote_types(rows.x.dtype, jnp.float32)
    return jnp.matmul(rows.x, cols.x.T, preferred_element_type=dtype)


def _tour(
    visit: Callable, home: PyTree, block: PyTree, tile: int, axis_name: AxisName
) -> tuple[PyTree, PyTree]:
    """``home, part = visit(home, part)`` for the parts, ``tile`` rows each, of every device's block in turn.

    The blocks travel around the ring of devices, and come back with what was gathered on the way.
    """
    size = jax.tree.leaves(block)[0].shape[0]
    tile = min(tile, size)
    steps = -(-size // tile)
    devices = axis_size(axis_name)

    # A part takes every steps-th row: where XLA has split the block over devices, each holds its share of
    # every part. The rows added at the end are zero, so not present.
    def split(x):
        x = jnp.pad(x, [(0, steps * tile - size)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(tile, steps, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(steps * tile, *x.shape[2:])[:size]

    def pass_on(x):
        ring = [(i, (i + 1) % devices) for i in range(devices)]
        return x if axis_name is None else jax.lax.ppermute(x, axis_name, ring)

    def stop(carry, _):
        home, parts = carry
        home, parts = jax.lax.scan(visit, home, parts)
        return (home, jax.tree.map(pass_on, parts)), None

    (home, parts), _ = jax.lax.scan(stop, (home, jax.tree.map(split, block)), None, length=devices)
    return home, jax.tree.map(join, parts)


# -- log-sum-exp over rows and columns -----------------------------------------------------------------------


class _Running(NamedTuple):
    """A log-sum-exp under way (maximum, sum relative to it) and the sum of positive logits."""

    top: Float[Array, "n"]
    total: Float[Array, "n"]
    positive: Float[Array, "n"]

    def add(self, other: _Running) -> _Running:
        top = jnp.maximum(self.top, other.top)
        total = self.total * jnp.exp(self.top - top) + other.total * jnp.exp(other.top - top)
        return _Running(top, total, self.positive + other.positive)

    def lse(self) -> Float[Array, "n"]:
        return self.top + jnp.log(self.total)


def _empty(side: Side) -> _Running:
    zero = jnp.zeros_like(side.x[:, 0], dtype=jnp.promote_types(side.x.dtype, jnp.float32))
    return _Running(zero + NEVER, zero, zero)


def _reduce(values, positive, axis: int) -> _Running:
    top = values.max(axis)
    total = jnp.exp(values - jnp.expand_dims(top, axis)).sum(axis)
    return _Running(top, total, jnp.where(positive, values, 0.0).sum(axis))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pair_statistics(rows: Side, cols: Side, tile: int, axis_name: AxisName) -> PairStatistics:
    """The statistics of this device's rows over all columns, and of its columns over all rows."""
    return _pair_statistics_forward(rows, cols, tile, axis_name)[0]


def _pair_statistics_forward(rows, cols, tile, axis_name):
    def visit(row, part):
        side, col = part
        counts, positive = pair_masks(rows, side)
        values = jnp.where(counts, logits(rows, side), NEVER)
        return row.add(_reduce(values, positive, 1)), (side, col.add(_reduce(values, positive, 0)))

    row, (_, col) = _tour(visit, _empty(rows), (cols, _empty(cols)), tile, axis_name)
    out = PairStatistics(row.lse(), col.lse(), row.positive, col.positive)
    return out, (rows, cols, out.row_lse, out.col_lse)


def _pair_statistics_backward(tile, axis_name, saved, g):
    rows, cols, row_lse, col_lse = saved

    def visit(d_rows, part):
        side, lse, g_lse, g_positive, d_cols = part
        counts, positive = pair_masks(rows, side)
        values = jnp.where(counts, logits(rows, side), NEVER)
        by_row = g.row_lse[:, None] * jnp.exp(values - row_lse[:, None])
        by_col = g_lse[None, :] * jnp.exp(values - lse[None, :])
        pairs = g.row_positive[:, None] + g_positive[None, :]
        d = jnp.where(counts, by_row + by_col, 0.0) + jnp.where(positive, pairs, 0.0)
        d_rows, d_cols = _add_products(d, rows.x, side.x, d_rows, d_cols)
        return d_rows, (side, lse, g_lse, g_positive, d_cols)

    block = (cols, col_lse, g.col_lse, g.col_positive, _zeros(cols))
    d_rows, (*_, d_cols) = _tour(visit, _zeros(rows), block, tile, axis_name)
    return _cotangent(rows, d_rows), _cotangent(cols, d_cols)


pair_statistics.defvjp(_pair_statistics_forward, _pair_statistics_backward)


def _zeros(side: Side) -> Float[Array, "n dim"]:
    return jnp.zeros_like(side.x, dtype=jnp.promote_types(side.x.dtype, jnp.float32))


def _add_products(d, row_x, col_x, d_rows, d_cols):
    """Adds ``d @ col_x`` and ``d.T @ row_x``: factors in the embeddings' precision, sums in float32."""
    d = d.astype(row_x.dtype)
    d_rows = d_rows + jnp.matmul(d, col_x, preferred_element_type=d_rows.dtype)
    d_cols = d_cols + jnp.matmul(d.T, row_x, preferred_element_type=d_cols.dtype)
    return d_rows, d_cols


def _cotangent(side: Side, d_x) -> Side:
    return Side(d_x.astype(side.x.dtype), None, None, None)


# -- sums of logistic losses ---------------------------------------------------------------------------------


def signed_logits(rows: Side, bias: Float[Array, "rows"], cols: Side) -> tuple[Array, Array, Array]:
    """``y z`` with ``z = logits + bias`` and the label ``y = +-1``; the label; and which pairs count."""
    counts, positive = pair_masks(rows, cols)
    label = jnp.where(positive, 1.0, -1.0).astype(bias.dtype)
    return label * (logits(rows, cols) + bias[:, None]), label, counts


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def sigmoid_sums(
    rows: Side, bias: Float[Array, "rows"], cols: Side, tile: int, axis_name: AxisName
) -> Float[Array, "rows"]:
    """``sum_j -log sigmoid(y_ij (rows_i . cols_j + bias_i))`` over all devices' columns."""
    return _sigmoid_sums_forward(rows, bias, cols, tile, axis_name)[0]


def _sigmoid_sums_forward(rows, bias, cols, tile, axis_name):
    def visit(total, side):
        z, _, counts = signed_logits(rows, bias, side)
        return total + jnp.where(counts, jax.nn.softplus(-z), 0.0).sum(1), side

    total, _ = _tour(visit, jnp.zeros_like(bias), cols, tile, axis_name)
    return total, (rows, bias, cols)


def _sigmoid_sums_backward(tile, axis_name, saved, g):
    rows, bias, cols = saved

    def visit(home, part):
        d_rows, d_bias = home
        side, d_cols = part
        z, label, counts = signed_logits(rows, bias, side)
        d = jnp.where(counts, -g[:, None] * label * jax.nn.sigmoid(-z), 0.0)
        d_rows, d_cols = _add_products(d, rows.x, side.x, d_rows, d_cols)
        return (d_rows, d_bias + d.sum(1)), (side, d_cols)

    home = (_zeros(rows), jnp.zeros_like(bias))
    (d_rows, d_bias), (_, d_cols) = _tour(visit, home, (cols, _zeros(cols)), tile, axis_name)
    return _cotangent(rows, d_rows), d_bias, _cotangent(cols, d_cols)


sigmoid_sums.defvjp(_sigmoid_sums_forward, _sigmoid_sums_backward)


# -- the encoder in chunks -----------------------------------------------------------------------------------


def chunked(encode: Callable[[PyTree, PyTree], PyTree], chunks: int) -> Callable[[PyTree, PyTree], PyTree]:
    """``encode(params, batch)`` computed a chunk of the batch at a time, forward and backward.

    The activations of one chunk only are alive at any time, for one more forward pass. ``encode`` must treat
    every example by itself (no batch statistics; random keys per example, as part of ``batch``), and then
    nothing but the memory changes.

    Args:
      encode: from parameters and a pytree of arrays ``[B, ...]`` to a pytree of arrays ``[B, ...]``.
      chunks: how many; it must divide the batch.
    Raises:
      ValueError: if it does not.
    """

    def run(params, batch):
        size = jax.tree.leaves(batch)[0].shape[0]
        if chunks < 1 or size % chunks:
            raise ValueError(f"a batch of {size} does not split into {chunks} equal chunks")
        # Every chunks-th example: where the batch is split over devices, each has its part of every chunk.
        parts = jax.tree.map(lambda x: x.reshape(size // chunks, chunks, *x.shape[1:]).swapaxes(0, 1), batch)
        body = jax.checkpoint(encode, prevent_cse=False)
        _, out = jax.lax.scan(lambda _, part: (None, body(params, part)), None, parts)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[2:]), out)

    return run


def gradient_cache(
    encode: Callable[[PyTree, PyTree], PyTree],
    loss: Callable[[PyTree, PyTree], Any],
    params: PyTree[Shaped[Array, "..."]],
    batch: PyTree,
    chunks: int,
    *,
    has_aux: bool = False,
) -> tuple[Any, PyTree]:
    """Value and gradient of ``loss(params, encode(params, batch))``, encoding in chunks.

    The loss sees the embeddings of the whole batch, so that the number of negatives does not depend on how
    many examples the encoder can hold; value and gradient are those of the direct computation (Gao et al.
    2021, GradCache, section 3). Combine it with ``info_nce(..., form="tiled")`` if the logits are large too.

    Args:
      encode: as for :func:`chunked`.
      loss: from parameters (a learned temperature is one) and embeddings to a scalar, or ``(scalar, aux)``.
      params: what is differentiated.
      batch: pytree of arrays ``[B, ...]``.
      chunks: how many; it must divide B.
    Returns:
      ``(value, gradient)``, or ``((value, aux), gradient)``, as ``jax.value_and_grad`` does.
    Raises:
      ValueError: if ``chunks`` does not divide the batch.
    """
    run = chunked(encode, chunks)
    return jax.value_and_grad(lambda p: loss(p, run(p, batch)), has_aux=has_aux)(params)
