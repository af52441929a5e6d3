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
    """Calls ``resident, columns = visit(resident, columns)`` for each tile of columns of every device, one by one.

    ``resident`` stays on this device: its rows' results so far. ``block`` is a pytree of arrays ``[n, ...]``, one entry
    for each of this device's n columns: the columns themselves and the results that ``visit`` accumulates for them. A
    tile holds ``tile`` of its entries. The blocks travel once around the ring of devices and return to their own.

    Returns:
      The final ``resident``, and this device's ``block``.
    """
    size = jax.tree.leaves(block)[0].shape[0]
    tile = min(tile, size)
    tile_count = -(-size // tile)  # rounded up
    devices = axis_size(axis_name)

    # A tile takes every tile_count-th entry: where the compiler has split the block over devices, each holds its share
    # of every tile. The padding at the end is zero, so that it is not `present`.
    def split(x):
        """``[n, ...]`` to ``[tile_count, tile, ...]``; `join` is its inverse."""
        x = jnp.pad(x, [(0, tile_count * tile - size)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(tile, tile_count, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        """``[tile_count, tile, ...]`` to ``[n, ...]``, without the padding."""
        return x.swapaxes(0, 1).reshape(tile_count * tile, *x.shape[2:])[:size]

    def pass_to_next_device(x):
        """The array of the device before this one, as this device's goes to the next one in the ring."""
        ring = [(i, (i + 1) % devices) for i in range(devices)]
        return x if axis_name is None else jax.lax.ppermute(x, axis_name, ring)

    def visit_block(carry, _):
        """Visits the tiles of the block that is on this device, and passes it to the next device."""
        resident, tiles = carry
        resident, tiles = jax.lax.scan(visit, resident, tiles)
        return (resident, jax.tree.map(pass_to_next_device, tiles)), None

    start = (resident, jax.tree.map(split, block))
    (resident, tiles), _ = jax.lax.scan(visit_block, start, None, length=devices)
    return resident, jax.tree.map(join, tiles)


# -- log-sum-exp over rows and columns -----------------------------------------------------------------------


class _RunningSums(NamedTuple):
    """A log-sum-exp in progress (the maximum, and the sum relative to it), and the sum of positive logits."""

    maximum: Float[Array, "n"]
    total: Float[Array, "n"]
    positive: Float[Array, "n"]

    def merge(self, other: _RunningSums) -> _RunningSums:
        """The sums over the terms of both, for each of the n entries."""
        maximum = jnp.maximum(self.maximum, other.maximum)
        total = self.total * jnp.exp(self.maximum - maximum) + other.total * jnp.exp(other.maximum - maximum)
        return _RunningSums(maximum, total, self.positive + other.positive)

    def lse(self) -> Float[Array, "n"]:
        return self.maximum + jnp.log(self.total)


def _empty_sums(side: PairSide) -> _RunningSums:
    """The sums over no pairs, for each example of the side."""
    x = side.embeddings
    zero = jnp.zeros_like(x[:, 0], dtype=jnp.promote_types(x.dtype, jnp.float32))
    return _RunningSums(zero + MASKED_LOGIT, zero, zero)


def _sum_tile(logits, positive, axis: int) -> _RunningSums:
    """The sums of a tile of logits ``[rows, columns]`` over one axis; ``positive`` marks the positive pairs."""
    maximum = logits.max(axis)
    total = jnp.exp(logits - jnp.expand_dims(maximum, axis)).sum(axis)
    return _RunningSums(maximum, total, jnp.where(positive, logits, 0.0).sum(axis))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def pair_statistics(rows: PairSide, cols: PairSide, tile: int, axis_name: AxisName) -> PairStatistics:
    """The statistics of this device's rows over all devices' columns, and of its columns over all devices' rows."""
    return _pair_statistics_forward(rows, cols, tile, axis_name)[0]


def _pair_statistics_forward(rows, cols, tile, axis_name):
    """``(statistics, residuals)``: the result of `pair_statistics`, and what its backward pass needs.

    ``rows`` and ``cols``: this device's two sides of the pairs. ``tile``: columns of a tile of the matrix of logits.
    ``axis_name``: the axis of the devices among which the columns travel; None: there is one device.
    """

    def visit(row_sums, tile_state):
        """Adds a tile of columns to the rows' sums, and the rows to the tile's sums.

        ``tile_state``: the columns of the tile, and their sums so far.
        """
        tile_cols, col_sums = tile_state
        valid, positive = pair_masks(rows, tile_cols)
        logits = jnp.where(valid, pair_logits(rows, tile_cols), MASKED_LOGIT)
        row_sums = row_sums.merge(_sum_tile(logits, positive, axis=1))
        return row_sums, (tile_cols, col_sums.merge(_sum_tile(logits, positive, axis=0)))

    row_sums, (_, col_sums) = _scan_tiles(
        visit, _empty_sums(rows), (cols, _empty_sums(cols)), tile, axis_name
    )
    out = PairStatistics(row_sums.lse(), col_sums.lse(), row_sums.positive, col_sums.positive)
    return out, (rows, cols, out.row_lse, out.col_lse)


def _pair_statistics_backward(tile, axis_name, residuals, g):
    """Cotangents of rows and columns from ``g``, the cotangents of the four statistics.

    Each tile of logits s is computed again. The derivative of ``lse_i = log sum_j exp s_ij`` by ``s_ij`` is the softmax
    weight ``exp(s_ij - lse_i)``; that of the sum of positive logits is 1 where the pair is positive. ``tile``: columns
    of a tile. ``axis_name``: the axis of the devices among which the columns travel, if any.
    """
    rows, cols, row_lse, col_lse = residuals

    def visit(d_rows, tile_state):
        """Adds the gradients that come from the pairs of the rows with a tile of columns.

        ``tile_state``: the tile's columns, their log-sum-exp, the cotangents of their two statistics, and the gradient
        of their embeddings so far.
        """
        tile_cols, lse, g_lse, g_positive, d_cols = tile_state
        valid, positive = pair_masks(rows, tile_cols)
        logits = jnp.where(valid, pair_logits(rows, tile_cols), MASKED_LOGIT)
        # The logits' cotangent: from the rows' and the columns' log-sum-exp, and from the sums of positive logits.
        from_row_lse = g.row_lse[:, None] * jnp.exp(logits - row_lse[:, None])
        from_col_lse = g_lse[None, :] * jnp.exp(logits - lse[None, :])
        from_positive = g.row_positive[:, None] + g_positive[None, :]
        d_logits = jnp.where(valid, from_row_lse + from_col_lse, 0.0) + jnp.where(
            positive, from_positive, 0.0
        )
        d_rows, d_cols = _accumulate_embedding_gradients(d_logits, rows, tile_cols, d_rows, d_cols)
        return d_rows, (tile_cols, lse, g_lse, g_positive, d_cols)

    # `_side_cotangent` wraps the gradient of a side's embeddings: its ids and masks have none.
    block = (cols, col_lse, g.col_lse, g.col_positive, _zero_gradient(cols))
    d_rows, (*_, d_cols) = _scan_tiles(visit, _zero_gradient(rows), block, tile, axis_name)
    return _side_cotangent(rows, d_rows), _side_cotangent(cols, d_cols)


pair_statistics.defvjp(_pair_statistics_forward, _pair_statistics_backward)


def _zero_gradient(side: PairSide) -> Float[Array, "n dim"]:
    x = side.embeddings
    return jnp.zeros_like(x, dtype=jnp.promote_types(x.dtype, jnp.float32))


def _accumulate_embedding_gradients(d_logits, rows: PairSide, cols: PairSide, d_rows, d_cols):
    """``(d_rows + d_logits @ cols, d_cols + d_logits.T @ rows)``, the gradients of the two sides' embeddings.

    ``d_logits [rows, columns]`` is the cotangent of a tile of logits. The factors are rounded to the embeddings' dtype,
    and the products summed in float32.
    """
    d_logits = d_logits.astype(rows.embeddings.dtype)
    d_rows = d_rows + jnp.matmul(d_logits, cols.embeddings, preferred_element_type=d_rows.dtype)
    d_cols = d_cols + jnp.matmul(d_logits.T, rows.embeddings, preferred_element_type=d_cols.dtype)
    return d_rows, d_cols


def _side_cotangent(side: PairSide, gradient) -> PairSide:
    """The cotangent of a side: of its embeddings alone, as ids and presence are not differentiable."""
    return PairSide(gradient.astype(side.embeddings.dtype), positive_id=None, group_id=None, present=None)


# -- sums of logistic losses ---------------------------------------------------------------------------------


def signed_logits(
    rows: PairSide, bias: Float[Array, "rows"], cols: PairSide
) -> tuple[Float[Array, "rows cols"], Float[Array, "rows cols"], Array]:
    """``(y (logits + bias), y, valid)``: y is 1 for a positive pair, else -1; ``valid`` marks the pairs that count.

    ``rows`` and ``cols`` are the two sides of the pairs; ``bias`` has one value for each row.
    """
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
    """``(sums, residuals)``: the result of `sigmoid_sums`, and what its backward pass needs.

    ``rows`` and ``cols``: this device's two sides of the pairs. ``bias [rows]``: added to the logits. ``tile``: columns
    of a tile of the matrix of logits. ``axis_name``: the axis of the devices among which the columns travel, if any.
    """

    def visit(total, tile_cols):
        """Adds the losses of the pairs of the rows with a tile of columns."""
        signed, _, valid = signed_logits(rows, bias, tile_cols)
        return total + jnp.where(valid, jax.nn.softplus(-signed), 0.0).sum(1), tile_cols

    total, _ = _scan_tiles(visit, jnp.zeros_like(bias), cols, tile, axis_name)
    return total, (rows, bias, cols)


def _sigmoid_sums_backward(tile, axis_name, residuals, g):
    """Cotangents of rows, biases and columns from ``g``, the cotangent ``[rows]`` of the sums.

    Each tile of logits s is computed again: the derivative of ``-log sigmoid(y s)`` by s is ``-y sigmoid(-y s)``.
    ``tile``: columns of a tile. ``axis_name``: the axis of the devices among which the columns travel, if any.
    """
    rows, bias, cols = residuals

    def visit(gradients, tile_state):
        """Adds the gradients that come from the pairs of the rows with a tile of columns.

        ``gradients``: of the rows' embeddings and biases so far. ``tile_state``: the tile's columns, and the gradient
        of their embeddings so far.
        """
        d_rows, d_bias = gradients
        tile_cols, d_cols = tile_state
        signed, label, valid = signed_logits(rows, bias, tile_cols)
        d_logits = jnp.where(valid, -g[:, None] * label * jax.nn.sigmoid(-signed), 0.0)
        d_rows, d_cols = _accumulate_embedding_gradients(d_logits, rows, tile_cols, d_rows, d_cols)
        return (d_rows, d_bias + d_logits.sum(1)), (tile_cols, d_cols)

    start = (_zero_gradient(rows), jnp.zeros_like(bias))
    # `_side_cotangent` wraps the gradient of a side's embeddings: its ids and masks have none.
    (d_rows, d_bias), (_, d_cols) = _scan_tiles(visit, start, (cols, _zero_gradient(cols)), tile, axis_name)
    return _side_cotangent(rows, d_rows), d_bias, _side_cotangent(cols, d_cols)


sigmoid_sums.defvjp(_sigmoid_sums_forward, _sigmoid_sums_backward)
