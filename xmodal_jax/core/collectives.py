"""Reductions over the global batch, whether it lies on one device or is split over a named axis.

Every function takes ``axis_name``, the name of the axis of devices; None means one device, where a reduction over
devices is the identity.

The convention of the whole library: under a named axis a loss is this device's *share*, so that the sum of the shares
over devices is the value for the global batch. (A share is no mean over the device's part of the batch: its
denominator is the global one.) Differentiating the share and summing the gradients over devices therefore gives the
gradient of the global loss, also through the collectives here: their transposes send the derivative of one device's
loss by another device's inputs to that device.

The same holds for the parts of a batch that is computed in parts (`core.accumulation`): the loss of a part is its
share. A loss that needs all examples at once, and so calls another function than `batch_mean`, has no such share, and
is refused.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from xmodal_jax.core import accumulation
from xmodal_jax.core.checks import check_shapes

AxisName = str | None


def _require_axis(axis_name: AxisName) -> None:
    """Raises ValueError if there is no axis of this name in the program that is being traced."""
    if axis_name is None:
        return
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"axis_name is {axis_name!r}, but there is no such axis here: call the function within jax.pmap, jax.vmap "
            f"or jax.shard_map over an axis of this name, or leave axis_name out on one device"
        ) from None


def psum(x, axis_name: AxisName):
    """The sum over devices of each array of a pytree: of shares of a loss, the loss."""
    accumulation.require_whole_batch("psum")
    _require_axis(axis_name)
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def all_gather(x: Shaped[Array, "batch ..."], axis_name: AxisName) -> Shaped[Array, "global_batch ..."]:
    """The arrays of all devices, concatenated along the first axis in the order of devices; differentiable."""
    accumulation.require_whole_batch("all_gather")
    _require_axis(axis_name)
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=0, tiled=True)


def axis_index(axis_name: AxisName):
    """The number of this device on the axis, from 0; 0 without an axis."""
    _require_axis(axis_name)
    return 0 if axis_name is None else jax.lax.axis_index(axis_name)


def axis_size(axis_name: AxisName) -> int:
    """The number of devices on the axis; 1 without an axis."""
    _require_axis(axis_name)
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


@check_shapes
def batch_mean(
    values: Float[Array, "batch"], weights: Float[Array, "batch"] | None = None, *, axis_name: AxisName = None
) -> Float[Array, ""]:
    """This device's share of the weighted mean ``sum_i w_i v_i / sum_i w_i`` over the global batch.

    This is the one place where the terms of single examples become a loss.

    Args:
      values: one term for each example, of this device's part of the batch.
      weights: not negative; None: 1 for all. A value whose weight is 0 has no influence, not even an infinite one.

    Returns:
      A scalar, 0 where all weights of the global batch are 0.

    Example::

        >>> batch_mean(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0]))
        Array(2., dtype=float32)
    """
    _require_axis(axis_name)
    if weights is None:
        weights = jnp.ones_like(values)
    weights = weights.astype(values.dtype)
    total = weights.sum() if axis_name is None else jax.lax.psum(weights.sum(), axis_name)
    total = jax.lax.stop_gradient(accumulation.whole_batch_total(total))
    values = jnp.where(weights > 0, values, 0.0)
    return (weights * values).sum() / jnp.where(total > 0, total, 1.0)


@check_shapes
def global_mean(
    values: Float[Array, "batch"], weights: Float[Array, "batch"] | None = None, *, axis_name: AxisName = None
) -> Float[Array, ""]:
    """The weighted mean ``sum_i w_i v_i / sum_i w_i`` over the global batch, the same number on every device.

    For training steps of one's own: differentiate it, then average the gradients over devices by ``jax.lax.pmean``.
    This gives the gradient of the global mean under ``jax.pmap`` and under ``jax.shard_map`` with and without
    ``check_vma``, also through losses whose terms depend on the batches of all devices. (A device's own mean,
    ``values.mean()``, does not: under ``shard_map``, which adds up the gradients of replicated parameters by itself, it
    gives the gradient times the number of devices.) The steps of `xmodal_jax.train` take the shares of `batch_mean`.

    Args:
      values, weights: as for `batch_mean`.

    Example::

        def step(params, images, texts):  # under jax.shard_map or jax.pmap, with the axis "data"
            def loss(params):
                a, b = encode(params, images), encode(params, texts)
                terms = info_nce(a, b, temperature=0.07, normalize=True, axis_name="data")
                return global_mean(terms, axis_name="data")

            return jax.lax.pmean(jax.grad(loss)(params), "data")
    """
    return psum(batch_mean(values, weights, axis_name=axis_name), axis_name)


def mesh_size() -> int:
    """The number of devices over which the compiler splits the batch of the program being traced; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else mesh.size


def shard_examples(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """``x``, with the constraint that the compiler splits it over devices along its first axis, the examples.

    Call it on the inputs and outputs of every layer. It matters where the compiler partitions the program (the mode
    ``sharded``) and parameters are split over devices (FSDP): without it the compiler would follow the parameters,
    split a layer's arithmetic by features and communicate the activations of the whole batch instead of the layer's
    weights. It changes no value, and does nothing in the other modes.
    """
    size = mesh_size()
    if size == 1 or x.shape[0] % size:
        return x
    names = jax.sharding.get_abstract_mesh().axis_names
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(names))


def share(value: Float[Array, ""], *, axis_name: AxisName = None) -> Float[Array, ""]:
    """This device's share, ``value / devices``, of a scalar that every device has computed for the global batch.

    For losses that are one number of the whole batch, such as a function of its moments, and not a mean of terms; and
    for numbers that do not depend on the batch, such as a temperature.
    """
    _require_axis(axis_name)
    if accumulation.parts() > 1:
        value = value / accumulation.parts()
    if axis_name is None:
        return value
    # Adding this zero tells shard_map that the share varies over devices. Otherwise, knowing that the value is the same
    # on all devices, it would differentiate one device's share instead of their sum.
    varying_zero = (0 * jax.lax.axis_index(axis_name)).astype(value.dtype)
    return value / axis_size(axis_name) + varying_zero


def global_index(size: int, *, axis_name: AxisName = None) -> Int[Array, "{size}"]:
    """The index in the global batch of each of this device's ``size`` examples."""
    accumulation.require_whole_batch("global_index")
    return axis_index(axis_name) * size + jnp.arange(size, dtype=jnp.int32)


def roll_batch(x: Shaped[Array, "batch ..."], *, axis_name: AxisName = None) -> Shaped[Array, "batch ..."]:
    """The global batch rolled by one: each example is replaced by the one before it, the first by the last."""
    accumulation.require_whole_batch("roll_batch")
    if axis_name is None:
        return jnp.roll(x, 1, axis=0)
    before = global_index(x.shape[0], axis_name=axis_name) - 1
    return jnp.take(all_gather(x, axis_name), before, axis=0, mode="wrap")
