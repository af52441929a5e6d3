"""Optimal transport between the examples of two sets of equal size."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from xmodal_jax.core.checks import check_shapes


def squared_distances(x: Float[Array, "n ..."], y: Float[Array, "m ..."]) -> Float[Array, "n m"]:
    """``|x_i - y_j|^2`` for all pairs, summed over all other axes."""
    x, y = x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)
    products = jnp.matmul(x, y.T, precision="highest")
    return jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)[None] - 2.0 * products


@check_shapes
def optimal_assignment(cost: Float[Array, "n n"]) -> Int[Array, "n"]:
    """The permutation p with the least total ``cost[i, p[i]]``, exactly (the Hungarian algorithm of Optax).

    It takes a number of operations of the order n^3, one after the other: for n up to a few hundred.
    """
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(cost.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))
