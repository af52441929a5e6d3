"""Sums over all pairs of a batch without the matrix of all pairs, on one device or on a ring of devices.

A tile of the logits is computed at a time, and once more in the backward pass. Memory is O(batch x (dim + tile)), where
the matrix of all pairs needs O(batch^2).

The two sums have derivatives of their own (``jax.custom_vjp``). Both directions use `_scan_tiles`: the rows stay on
their device, while tiles of the columns pass by, together with what is accumulated for these columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from xmodal_jax.core.collectives import AxisName, axis_size
from xmodal_jax.losses.pairs import MASKED_LOGIT, PairSide, pair_logits, pair_masks


class PairStatistics(NamedTuple):
    """Per example: log-sum-exp over the logits of its pairs, and the sum of the logits of its positive pairs."""

    row_lse: Float[Array, "rows"]
    col_lse: Float[Array, "cols"]
    row_positive: Float[Array, "rows"]
    col_positive: Float[Array, "cols"]


def _scan_tiles(
    visit: Callable, resident: PyTree, block: PyTree, tile: int, axis_name: AxisName
) -> tuple[PyTree, PyTree]:
    """Applies ``resident, part = visit(resident, part)`` to all parts of every device's block, one after the other.

    ``block`` is a pytree of arrays ``[n, ...]``; a part holds ``tile`` of its n entries. The blocks travel once around
    the ring of devices and return home with what ``visit`` has accumulated in them.

    Returns:
      The final ``resident``, and this device's ``block``.
    """
    size = jax.tree.leaves(block)[0].shape[0]
    tile = min(tile, size)
    steps = -(-size // tile)
    devices = axis_size(axis_name)

    # A part takes every steps-th entry: where the compiler has split the block over devices, each holds its share of
    # every part. The padding at the end is zero, so that it is not `present`.
    def split(x):
        x = jnp.pad(x, [(0, steps * tile - size)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(tile, steps, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(steps * tile, *x.shape[2:])[:size]

    def pass_on(x):
        ring = [(i, (i + 1) % devices) for i in range(devices)]
        return x if axis_name is None else jax.lax.ppermute(x, axis_name, ring)

    def visit_block(carry, _):
        resident, parts = carry
        resident, parts = jax.lax.scan(visit, resident, parts)
        return (resident, jax.tree.map(pass_on, parts)), None

    start = (resident, jax.tree.map(split, block))
    (resident, parts), _ = jax.lax.scan(visit_block, start, None, length=devices)
    return resident, jax.tree.map(join, parts)


# -- log-sum-exp over rows and columns -----------------------------------------------------------------------


class _RunningSums(NamedTuple):
    """A log-sum-exp in progress (the maximum, and the sum relative to it), and the sum of positive logits."""

    maximum: Float[Array, "n"]
    total: Float[Array, "n"]
    positive: Float[Array, "n"]

    def merge(self, other: _RunningSums) -> _RunningSums:
        """The sums over the terms of both."""
        maximum = jnp.maximum(self.maximum, other.maximum)
        total = self.total * jnp.exp(self.maximum - maximum) + other.total * jnp.exp(other.maximum - maximum)
        return _RunningSums(maximum, total, self.positive + other.positive)

    def lse(self) -> Float[Array, "n"]:
        return self.maximum + jnp.log(self.total)


def _empty_sums(side: PairSide) -> _RunningSums:
    x = side.embeddings
    zero = jnp.zeros_like(x[:, 0], dtype=jnp.promote_types(x.dtype, jnp.float32))
    return _RunningSums(zero + MASKED_LOGIT, zero, zero)


def _sum_tile(values, positive, axis: int) -> _RunningSums:
    maximum = values.max(axis)
    total = jnp.exp(values - jnp.expand_dims(maximum, axis)).sum(axis)
    return _RunningSums(maximum, total, jnp.where(positive, values, 0.0).sum(axis))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pair_statistics(rows: PairSide, cols: PairSide, tile: int, axis_name: AxisName) -> PairStatistics:
    """The statistics of this device's rows over all devices' columns, and of its columns over all devices' rows."""
    return _pair_statistics_forward(rows, cols, tile, axis_name)[0]


def _pair_statistics_forward(rows, cols, tile, axis_name):
    def visit(row_sums, part):
        side, col_sums = part
        valid, positive = pair_masks(rows, side)
        values = jnp.where(valid, pair_logits(rows, side), MASKED_LOGIT)
        row_sums = row_sums.merge(_sum_tile(values, positive, 1))
        return row_sums, (side, col_sums.merge(_sum_tile(values, positive, 0)))

    row_sums, (_, col_sums) = _scan_tiles(
        visit, _empty_sums(rows), (cols, _empty_sums(cols)), tile, axis_name
    )
    out = PairStatistics(row_sums.lse(), col_sums.lse(), row_sums.positive, col_sums.positive)
    return out, (rows, cols, out.row_lse, out.col_lse)


def _pair_statistics_backward(tile, axis_name, saved, g):
    """Cotangents of both sides.

    ``d_logits`` is the cotangent of a tile of logits: softmax weights times the cotangents of the sums.
    """
    rows, cols, row_lse, col_lse = saved

    def visit(d_rows, part):
        side, lse, g_lse, g_positive, d_cols = part
        valid, positive = pair_masks(rows, side)
        values = jnp.where(valid, pair_logits(rows, side), MASKED_LOGIT)
        by_row = g.row_lse[:, None] * jnp.exp(values - row_lse[:, None])
        by_col = g_lse[None, :] * jnp.exp(values - lse[None, :])
        by_positive = g.row_positive[:, None] + g_positive[None, :]
        d_logits = jnp.where(valid, by_row + by_col, 0.0) + jnp.where(positive, by_positive, 0.0)
        d_rows, d_cols = _accumulate_embedding_gradients(d_logits, rows, side, d_rows, d_cols)
        return d_rows, (side, lse, g_lse, g_positive, d_cols)

    block = (cols, col_lse, g.col_lse, g.col_positive, _zero_gradient(cols))
    d_rows, (*_, d_cols) = _scan_tiles(visit, _zero_gradient(rows), block, tile, axis_name)
    return _side_cotangent(rows, d_rows), _side_cotangent(cols, d_cols)


pair_statistics.defvjp(_pair_statistics_forward, _pair_statistics_backward)


def _zero_gradient(side: PairSide) -> Float[Array, "n dim"]:
    x = side.embeddings
    return jnp.zeros_like(x, dtype=jnp.promote_types(x.dtype, jnp.float32))


def _accumulate_embedding_gradients(d_logits, rows: PairSide, cols: PairSide, d_rows, d_cols):
    """Adds ``d_logits @ cols`` to ``d_rows`` and ``d_logits.T @ rows`` to ``d_cols``.

    ``d_logits [R, C]`` is the cotangent of a tile of logits. Products are of the embeddings' dtype, sums in float32.
    """
    d_logits = d_logits.astype(rows.embeddings.dtype)
    d_rows = d_rows + jnp.matmul(d_logits, cols.embeddings, preferred_element_type=d_rows.dtype)
    d_cols = d_cols + jnp.matmul(d_logits.T, rows.embeddings, preferred_element_type=d_cols.dtype)
    return d_rows, d_cols


def _side_cotangent(side: PairSide, gradient) -> PairSide:
    """The cotangent of a side: of its embeddings alone, as ids and presence are not differentiable."""
    return PairSide(gradient.astype(side.embeddings.dtype), None, None, None)


# -- sums of logistic losses ---------------------------------------------------------------------------------


def signed_logits(
    rows: PairSide, bias: Float[Array, "rows"], cols: PairSide
) -> tuple[Float[Array, "rows cols"], Float[Array, "rows cols"], Array]:
    """``y (logits + bias)``, the label ``y`` (1 for a positive pair, else -1), and which pairs count."""
    valid, positive = pair_masks(rows, cols)
    label = jnp.where(positive, 1.0, -1.0).astype(bias.dtype)
    return label * (pair_logits(rows, cols) + bias[:, None]), label, valid


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def sigmoid_sums(
    rows: PairSide, bias: Float[Array, "rows"], cols: PairSide, tile: int, axis_name: AxisName
) -> Float[Array, "rows"]:
    """``sum_j -log sigmoid(y_ij (rows_i . cols_j + bias_i))`` over all devices' columns j, in nats."""
    return _sigmoid_sums_forward(rows, bias, cols, tile, axis_name)[0]


def _sigmoid_sums_forward(rows, bias, cols, tile, axis_name):
    def visit(total, side):
        signed, _, valid = signed_logits(rows, bias, side)
        return total + jnp.where(valid, jax.nn.softplus(-signed), 0.0).sum(1), side

    total, _ = _scan_tiles(visit, jnp.zeros_like(bias), cols, tile, axis_name)
    return total, (rows, bias, cols)


def _sigmoid_sums_backward(tile, axis_name, saved, g):
    """Cotangents of rows, biases and columns. ``d_logits`` is the cotangent of a tile of logits."""
    rows, bias, cols = saved

    def visit(gradients, part):
        d_rows, d_bias = gradients
        side, d_cols = part
        signed, label, valid = signed_logits(rows, bias, side)
        d_logits = jnp.where(valid, -g[:, None] * label * jax.nn.sigmoid(-signed), 0.0)
        d_rows, d_cols = _accumulate_embedding_gradients(d_logits, rows, side, d_rows, d_cols)
        return (d_rows, d_bias + d_logits.sum(1)), (side, d_cols)

    start = (_zero_gradient(rows), jnp.zeros_like(bias))
    (d_rows, d_bias), (_, d_cols) = _scan_tiles(visit, start, (cols, _zero_gradient(cols)), tile, axis_name)
    return _side_cotangent(rows, d_rows), d_bias, _side_cotangent(cols, d_cols)


sigmoid_sums.defvjp(_sigmoid_sums_forward, _sigmoid_sums_backward)
