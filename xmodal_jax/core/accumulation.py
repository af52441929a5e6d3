"""Gradient accumulation: a batch that is computed in parts, one after the other, with the loss and the gradient of the
whole batch.

A loss is a sum of weighted means ``sum_i w_i v_i / sum_i w_i`` over the batch (`core.collectives.batch_mean`). The mean
of the parts' means is another number where the parts' denominators differ: for missing modalities, padding, tokens. So
the parts are passed twice. The first pass computes the denominators alone, the second the losses and gradients, with
the denominators' sums over all parts. The compiler removes from the first pass whatever the denominators do not need,
which is nearly everything, as they are functions of masks.

A loss that needs the whole batch at once, such as a contrastive one, cannot be computed in this way. The collectives
that such a loss calls refuse to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


class _Pass:
    """State of the pass over one part of the batch that is being traced."""

    def __init__(self, parts: int, totals: list[Array] | None = None):
        """A pass over the ``parts`` parts of a batch in which the loss is traced.

        ``totals``: the denominators of the whole batch, which the second pass divides by; None: this is the first pass,
        which records the denominators of each part.
        """
        self.parts = parts
        """Number of parts of the batch."""
        self.totals = totals
        """The denominators of the whole batch, in the order in which the loss asks for them; None in the first pass."""
        self.denominators: list[Array] = []
        """The denominators of the part so far, in the same order."""


_current: ContextVar[_Pass | None] = ContextVar("accumulation", default=None)


@contextlib.contextmanager
def _trace(part_pass: _Pass) -> Iterator[_Pass]:
    """Makes ``part_pass`` the current pass while the loss is traced in the ``with`` block."""
    token = _current.set(part_pass)
    try:
        yield part_pass
    finally:
        _current.reset(token)


def whole_batch_total(denominator: Float[Array, ""]) -> Float[Array, ""]:
    """The denominator of the whole batch, given that of the part being traced; unchanged without accumulation.

    In the first pass it only records the part's denominator. In the second it returns the sum over all parts, which it
    finds by the order of calls. Do not call it within a transformation inside the loss, such as a scan: the recorded
    value would be a tracer that is invalid outside.
    """
    current = _current.get()
    if current is None:
        return denominator
    current.denominators.append(denominator)
    return denominator if current.totals is None else current.totals[len(current.denominators) - 1]


def parts() -> int:
    """The number of parts of the loss that is being traced; 1 without accumulation."""
    current = _current.get()
    return 1 if current is None else current.parts


def require_whole_batch(operation: str) -> None:
    """Refuses to compute ``operation`` for a part of a batch.

    Raises:
      ValueError: a part of a batch is being traced.
    """
    if parts() > 1:
        raise ValueError(
            f"accumulate = {parts()} splits the batch into parts, but the loss needs the whole batch at once (it calls "
            f"{operation}): set accumulate to 1 (--optimizer.accumulate), and make the batch or the networks smaller "
            "if memory does not suffice"
        )


def split_examples(
    x: Shaped[Array | np.ndarray, "batch ..."], count: int
) -> Shaped[Array | np.ndarray, "count part ..."]:
    """The ``count`` parts of an array ``[B, ...]`` of the batch, ``[count, B / count, ...]``; ``count`` divides B.

    Part n has every ``count``-th example from the n-th on. Contiguous parts would depend on the number of devices that
    the batch is split over.
    """
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)


def accumulated(grad_fn: Callable[..., Any], loss_fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function like ``grad_fn`` that computes the batch in ``count`` parts, one after the other.

    The loss and the gradient are those of the whole batch, while only one part's activations are in memory. Part n
    holds the examples whose index in the batch is n modulo ``count``: the same set on any number of devices.

    Args:
      grad_fn: ``grad_fn(params, batch, key) -> ((loss, aux), gradient)``, all of them sums of `batch_mean`.
      loss_fn: ``loss_fn(params, batch, key)``: the loss that ``grad_fn`` differentiates.
      count: number of parts; it must divide the batch of every device.

    Returns:
      A function with the arguments and the result of ``grad_fn``. It raises ValueError if ``count`` does not divide the
      batch, or if the loss needs the whole batch at once.
    """
    if count == 1:
        return grad_fn

    def split(x: Array) -> Array:
        """`split_examples` of one array of the batch, once ``count`` is found to divide it."""
        if x.shape[0] % count:
            raise ValueError(
                f"accumulate = {count} does not divide a batch of {x.shape[0]} examples a device"
            )
        return split_examples(x, count)

    def sum_over_parts(function, stacked):
        """The sum of ``function(part)`` over the parts, which ``stacked`` holds along its first axis."""
        first_part = jax.tree.map(lambda x: x[0], stacked)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first_part))
        add_part = lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None)
        total, _ = jax.lax.scan(add_part, zeros, stacked)
        return total

    def accumulated_grad_fn(params, batch, key):
        """``((loss, aux), gradient)`` of the whole batch: a pass for the denominators, then one for the gradients."""
        stacked = jax.tree.map(split, batch)

        def denominators(part):
            """The denominators that the loss of one part asks for, in the order of the calls."""
            # The loss is traced only for the denominators that it records; its value is not used.
            with _trace(_Pass(count)) as first_pass:
                loss_fn(params, part, key)
            return first_pass.denominators

        totals = sum_over_parts(denominators, stacked)

        def gradients(part):
            with _trace(_Pass(count, totals)):
                return grad_fn(params, part, key)

        return sum_over_parts(gradients, stacked)

    return accumulated_grad_fn
