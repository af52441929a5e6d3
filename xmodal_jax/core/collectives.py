"""Reductions over the global batch, whether it lies on one device or is split over a named axis.

Every function takes ``axis_name``; ``None`` is the identity. The convention of the whole library: under a
named axis a loss is this device's *share*, so that the sum of shares over devices is the global value.
Differentiating the share and summing gradients over devices then gives the gradient of the global loss, also
through the collectives here, whose transposes carry what one device's loss owes to another device's inputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

AxisName = str | None


def psum(x, axis_name: AxisName):
    """Sum of a pytree over devices."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def all_gather(x: Shaped[Array, "batch ..."], axis_name: AxisName) -> Shaped[Array, "global_batch ..."]:
    """The arrays of all devices, joined along the first axis in device order; differentiable."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=0, tiled=True)


def axis_index(axis_name: AxisName):
    """This device's place on the axis; 0 without one."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name)


def axis_size(axis_name: AxisName) -> int:
    """How many devices share the axis; 1 without one."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def batch_mean(
    values: Float[Array, "batch"], weights: Float[Array, "batch"] | None = None, *, axis_name: AxisName = None
) -> Float[Array, ""]:
    """This device's share of ``sum_i w_i v_i / sum_i w_i`` over the global batch (0 where all weights are 0).

    The one place where per-example terms become a loss. A value whose weight is 0 has no influence, not even
    an infinite one.
    """
    if weights is None:
        weights = jnp.ones_like(values)
    weights = weights.astype(values.dtype)
    total = jax.lax.stop_gradient(psum(weights.sum(), axis_name))
    values = jnp.where(weights > 0, values, 0.0)
    return (weights * values).sum() / jnp.where(total > 0, total, 1.0)


def mesh_size() -> int:
    """Over how many devices the compiler splits the batch of the program being traced; 1 outside of a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else mesh.size


def keep_rows(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """``x``, pinned to be split by examples where the compiler lays out the program (the mode ``sharded``).

    Without it the compiler follows the parameters where these are split (fsdp): it then splits a layer's arithmetic by
    features and sends the activations of the whole batch around, in place of the layer's weights. To be called on what
    goes in and out of every layer. Changes no value, and nothing at all in the other modes.
    """
    size = mesh_size()
    if size == 1 or x.shape[0] % size:
        return x
    names = jax.sharding.get_abstract_mesh().axis_names
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(names))


def share(value: Float[Array, ""], *, axis_name: AxisName = None) -> Float[Array, ""]:
    """This device's share, ``value / devices``, of a scalar that every device has computed alike.

    For losses that are one number of the whole batch (of psum'ed moments, say) and not a mean of terms.
    """
    if axis_name is None:
        return value
    # The zero marks the share as this device's own. Else shard_map, knowing that all devices agree on the
    # value, would differentiate one device's share and not their sum.
    own = (0 * jax.lax.axis_index(axis_name)).astype(value.dtype)
    return value / axis_size(axis_name) + own


def global_index(size: int, *, axis_name: AxisName = None) -> Int[Array, "{size}"]:
    """The place in the global batch of each of this device's ``size`` examples."""
    return axis_index(axis_name) * size + jnp.arange(size, dtype=jnp.int32)


def rolled(x: Shaped[Array, "batch ..."], *, axis_name: AxisName = None) -> Shaped[Array, "batch ..."]:
    """Every example's predecessor in the global batch; the first one's is the last."""
    if axis_name is None:
        return jnp.roll(x, 1, axis=0)
    before = global_index(x.shape[0], axis_name=axis_name) - 1
    return jnp.take(all_gather(x, axis_name), before, axis=0, mode="wrap")
