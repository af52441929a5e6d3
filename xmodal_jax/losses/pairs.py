"""All pairs between two sides of a batch: which of them are positive, which negative, and which do not count.

The contrastive losses share this module. Side ``a`` of the batch indexes the rows of a matrix of pairs, side ``b`` its
columns; example i of ``a`` and example i of ``b`` belong together.
"""

from __future__ import annotations

import functools
import operator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.collectives import AxisName, all_gather, global_index
from xmodal_jax.core.similarity import l2_normalize

Duplicates = Literal["ignore", "exclude", "positive"]
"""How pairs of examples with equal ``match`` ids are treated; see :mod:`xmodal_jax.losses.contrastive`."""

Ids = Int[Array, "batch *kinds"]
"""An id of each example ``[batch]``, or several kinds of ids ``[batch, kinds]``, such as those of its text and of its
picture."""

MASKED_LOGIT = -1e30
"""The logit of a pair that does not count; finite, so that a row without any pair still has finite gradients."""


class PairSide(NamedTuple):
    """One side of the pairs: the embeddings, and the ids that decide whether a pair is positive, negative or left out.

    A pair is positive where the two ``positive_id`` are equal. It is left out where only the two ``group_id`` are
    equal, or where either example is absent. All other pairs are negative. Where examples have several ids, two are
    equal if the examples have any of them in common (see `equal_ids`).
    """

    embeddings: Float[Array, "n dim"]
    positive_id: Int[Array, "n *kinds"]
    group_id: Int[Array, "n *kinds"]
    present: Bool[Array, "n"]


def make_pair_sides(
    a: Float[Array, "batch a_dim"],
    b: Float[Array, "batch b_dim"],
    present: Bool[Array, "batch"] | None,
    match: Ids | None,
    duplicates: Duplicates,
    normalize: bool,
    axis_name: AxisName,
) -> tuple[PairSide, PairSide]:
    """The sides a and b of this device's pairs, ``PairSide`` each; absent examples have the embedding 0.

    The arguments are those of the losses, see :mod:`xmodal_jax.losses.contrastive`.
    """
    index = global_index(a.shape[0], axis_name=axis_name)
    # By default only the pair itself has equal ids: its example's index in the global batch.
    positive_id = group_id = index
    if duplicates != "ignore" and match is not None:
        match = match.astype(index.dtype)
        # An unknown id (-1) becomes an id that only this example has: the smallest integer plus the example's index,
        # as the caller's ids are unlikely to be that small.
        example_index = index if match.ndim == 1 else index[:, None]  # match is [B], or [B, kinds of ids]
        group_id = jnp.where(match == -1, jnp.iinfo(index.dtype).min + example_index, match)
        positive_id = group_id if duplicates == "positive" else index
    if present is None:
        present = jnp.ones_like(a[:, 0], dtype=bool)
    # Before anything is computed, so that not even an infinite embedding of an absent example reaches a value or a
    # gradient.
    a, b = jnp.where(present[:, None], a, 0), jnp.where(present[:, None], b, 0)
    if normalize:
        a, b = l2_normalize(a), l2_normalize(b)
    return PairSide(a, positive_id, group_id, present), PairSide(b, positive_id, group_id, present)


def gather_side(side: PairSide, axis_name: AxisName) -> PairSide:
    """The side of the global batch, from all devices on the axis."""
    return jax.tree.map(lambda x: all_gather(x, axis_name), side)


def equal_ids(rows: Int[Array, "rows *kinds"], cols: Int[Array, "cols *kinds"]) -> Bool[Array, "rows cols"]:
    """Whether a row and a column have an equal id; with several kinds of ids, whether at least one of them is equal."""
    if rows.ndim == 1:
        return rows[:, None] == cols[None, :]
    kinds = zip(rows.T, cols.T, strict=True)
    return functools.reduce(operator.or_, [row[:, None] == col[None, :] for row, col in kinds])


def pair_masks(rows: PairSide, cols: PairSide) -> tuple[Bool[Array, "rows cols"], Bool[Array, "rows cols"]]:
    """``(valid, positive)``: which pairs of a row and a column count at all, and which of those are positive.

    The valid pairs that are not positive are negatives.

    ``rows`` and ``cols`` are sides of pairs: embeddings with ids. A pair is positive if its ``positive_id`` agree; a
    pair with the same ``group_id`` that is not positive is ignored.
    """
    same_positive = equal_ids(rows.positive_id, cols.positive_id)
    same_group = equal_ids(rows.group_id, cols.group_id)
    valid = rows.present[:, None] & cols.present[None, :] & (same_positive | ~same_group)
    return valid, valid & same_positive


def pair_logits(rows: PairSide, cols: PairSide) -> Float[Array, "rows cols"]:
    """The inner product of every row's embedding with every column's, in float32 at least."""
    dtype = jnp.promote_types(rows.embeddings.dtype, jnp.float32)
    return jnp.matmul(rows.embeddings, cols.embeddings.T, preferred_element_type=dtype)
