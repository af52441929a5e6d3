"""Contrastive losses: InfoNCE (CLIP), the sigmoid loss (SigLIP) and the triplet loss (VSE++).

All take one embedding per example and modality, ``a_i`` and ``b_i`` being a pair, and return one term per
example of the local batch, to be averaged by :func:`xmodal_jax.core.collectives.batch_mean`. Under
``axis_name`` the other examples are those of the global batch, on all devices.

All take ``present`` (False: the pair is padding or misses a modality; it is neither anchor nor negative, its
term and its gradient are 0) and ``match``, ids that say which pairs have the same content (one caption for
many images). The id -1 is unknown and matches nothing else; without ``match`` nothing matches. ``duplicates``
says what two examples with equal ids are to each other:

* ``"ignore"``: negatives, as in CLIP; ``match`` is not used.
* ``"exclude"``: nothing; neither is a negative of the other.
* ``"positive"``: positives; the target of InfoNCE is uniform over the matches (UniCL, Yang et al. 2022).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from xmodal_jax.core.collectives import (
    AxisName,
    all_gather,
    axis_index,
    axis_size,
    global_index,
    mesh_size,
    psum,
)
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses.tiled import (
    NEVER,
    PairStatistics,
    Side,
    logits,
    pair_masks,
    pair_statistics,
    sigmoid_sums,
    signed_logits,
)

Duplicates = Literal["ignore", "exclude", "positive"]
Form = Literal["auto", "global", "tiled", "ring"]
Scalar = float | int | Num[Array, ""]

AUTO_GLOBAL_LOGITS = 2**24
"""``form="auto"`` keeps the matrix of logits up to this many entries on a device (64 MiB in float32)."""


def info_nce(
    a: Float[Array, "batch dim"],
    b: Float[Array, "batch dim"],
    *,
    temperature: Scalar,
    present: Bool[Array, "batch"] | None = None,
    match: Int[Array, "batch"] | None = None,
    duplicates: Duplicates = "ignore",
    normalize: bool = False,
    axis_name: AxisName = None,
    form: Form = "auto",
    tile: int = 512,
) -> Float[Array, "batch"]:
    r"""Symmetric InfoNCE, the loss of CLIP (Radford et al. 2021, figure 3; van den Oord et al. 2018, eq. 4).

    With logits :math:`s_{ij} = a_i \cdot b_j / \tau`, the term of example i is

    .. math:: \tfrac12 \Big[\log \sum_j e^{s_{ij}} + \log \sum_j e^{s_{ji}}\Big] - s_{ii} \quad\text{(nats)}

    Args:
      a, b: embeddings; cosine logits need unit vectors, so normalise them or pass ``normalize=True``.
      temperature: :math:`\tau > 0` (CLIP's ``logit_scale`` is its inverse); may be learned.
      present, match, duplicates: see the module.
      normalize: divide every embedding by its length first.
      axis_name: the named axis over which the batch is split, if any.
      form: how it is computed; the result is the same. ``"global"`` makes the matrix of logits (and gathers
        both sides under ``axis_name``). ``"tiled"`` makes it ``tile`` columns at a time and again for the
        gradient, in memory O(batch x (dim + tile)), for a third more arithmetic; it gathers one side
        under ``axis_name``. ``"ring"`` is tiled, and passes one side from device to device instead of
        gathering it (without ``axis_name``: the same as tiled). ``"auto"`` is global up to 2^24 logits on a
        device, else tiled.
      tile: columns at a time.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from xmodal_jax.losses import info_nce
      >>> image, text = jax.random.normal(jax.random.key(0), (2, 8, 16))
      >>> loss = lambda image, text: info_nce(image, text, temperature=0.07, normalize=True).mean()
      >>> value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(image, text)
    """
    rows, cols = _sides(a, b, present, match, duplicates, normalize, axis_name)
    rows = rows._replace(x=(rows.x / temperature).astype(rows.x.dtype))
    form = _form(form, a.shape[0], axis_name)
    if form == "global":
        stats = _global_statistics(rows, cols, axis_name)
    elif form == "tiled" and axis_name is not None:
        stats = _gathered_statistics(rows, cols, tile, axis_name)
    else:
        stats = pair_statistics(rows, cols, tile, axis_name)
    positives = _count_positives(rows, axis_name) if duplicates == "positive" and match is not None else 1.0
    terms = stats.row_lse + stats.col_lse - (stats.row_positive + stats.col_positive) / positives
    return jnp.where(rows.present, 0.5 * terms, 0.0)


def sigmoid_loss(
    a: Float[Array, "batch dim"],
    b: Float[Array, "batch dim"],
    *,
    temperature: Scalar,
    bias: Scalar,
    present: Bool[Array, "batch"] | None = None,
    match: Int[Array, "batch"] | None = None,
    duplicates: Duplicates = "ignore",
    normalize: bool = False,
    axis_name: AxisName = None,
    form: Form = "auto",
    tile: int = 512,
) -> Float[Array, "batch"]:
    r"""The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, section 3.2, algorithm 1).

    The term of example i is a sum, not a mean, over the other side:

    .. math:: -\sum_j \log \sigma\big(y_{ij}\,(a_i \cdot b_j / \tau + \beta)\big) \quad\text{(nats)}, \qquad
              y_{ij} = \pm 1 \text{ for positive and negative pairs.}

    Args:
      a, b: embeddings; normalise them or pass ``normalize=True``.
      temperature: :math:`\tau > 0`, the inverse of the paper's t; it starts at 0.1.
      bias: :math:`\beta`; it starts at -10, since almost all pairs are negative.
      present, match, duplicates: see the module.
      normalize, axis_name, form, tile: as for :func:`info_nce`. Under ``axis_name`` ``b`` is gathered, or
        passed around in the ring.
    """
    rows, cols = _sides(a, b, present, match, duplicates, normalize, axis_name)
    rows = rows._replace(x=(rows.x / temperature).astype(rows.x.dtype))
    # One bias per row; the broadcast's transpose then sums their gradients.
    bias = jnp.zeros_like(rows.x[:, 0], dtype=jnp.promote_types(a.dtype, jnp.float32)) + bias
    form = _form(form, a.shape[0], axis_name)
    if form == "ring":
        return sigmoid_sums(rows, bias, cols, tile, axis_name)
    cols = _gather(cols, axis_name)
    if form == "tiled":
        return sigmoid_sums(rows, bias, cols, tile, None)
    z, _, counts = signed_logits(rows, bias, cols)
    return jnp.where(counts, jax.nn.softplus(-z), 0.0).sum(axis=1)


def triplet_loss(
    a: Float[Array, "batch dim"],
    b: Float[Array, "batch dim"],
    *,
    margin: Scalar = 0.2,
    hardest: bool = True,
    present: Bool[Array, "batch"] | None = None,
    match: Int[Array, "batch"] | None = None,
    duplicates: Literal["ignore", "exclude"] = "exclude",
    normalize: bool = False,
    axis_name: AxisName = None,
) -> Float[Array, "batch"]:
    r"""Hinge on the margin to the hardest negative of the batch (Faghri et al. 2018, VSE++, eq. 6).

    With :math:`s_{ij} = a_i \cdot b_j` the term of example i is

    .. math:: \max_{j \ne i}\,[\alpha + s_{ij} - s_{ii}]_+ + \max_{j \ne i}\,[\alpha + s_{ji} - s_{ii}]_+

    or, with ``hardest=False``, sums over j in place of the maxima (their eq. 5). Without a negative it is 0.

    Args:
      a, b: embeddings; normalise them or pass ``normalize=True``.
      margin: :math:`\alpha`, in units of the similarity.
      hardest: the hardest negative only, or the sum over all.
      present, match, duplicates: see the module; ``match`` is excluded from the negatives where it is given.
        A duplicate would be the hardest negative, at distance 0, so that ``"exclude"`` is the default.
      normalize, axis_name: as for :func:`info_nce`.
    """
    rows, cols = _sides(a, b, present, match, duplicates, normalize, axis_name)
    by_row, by_col, counts, positive = _global_logits(rows, cols, axis_name)
    pair = jnp.sum(jnp.where(positive, by_row, 0.0), axis=1, keepdims=True)
    terms = jnp.zeros_like(pair[:, 0])
    for similarity in (by_row, by_col):
        hinge = jnp.where(counts & ~positive, jax.nn.relu(margin + similarity - pair), 0.0)
        terms = terms + (hinge.max(axis=1) if hardest else hinge.sum(axis=1))
    return terms


# -- parts ---------------------------------------------------------------------------------------------------


def _sides(a, b, present, match, duplicates, normalize, axis_name) -> tuple[Side, Side]:
    index = global_index(a.shape[0], axis_name=axis_name)
    target = group = index
    if duplicates != "ignore" and match is not None:
        match = match.astype(index.dtype)
        # An unknown id becomes an id of its own, where no one's ids are likely to be.
        group = jnp.where(match == -1, jnp.iinfo(index.dtype).min + index, match)
        target = group if duplicates == "positive" else index
    if present is None:
        present = jnp.ones_like(a[:, 0], dtype=bool)
    # Zeroed first: even an infinite embedding of an absent example cannot reach a value or a gradient.
    a, b = jnp.where(present[:, None], a, 0), jnp.where(present[:, None], b, 0)
    if normalize:
        a, b = l2_normalize(a), l2_normalize(b)
    return Side(a, target, group, present), Side(b, target, group, present)


def _form(form: Form, size: int, axis_name: AxisName) -> Form:
    if form != "auto":
        return form
    on_each = size * size * axis_size(axis_name) // mesh_size()
    return "global" if on_each <= AUTO_GLOBAL_LOGITS else "tiled"


def _gather(side: Side, axis_name: AxisName) -> Side:
    return jax.tree.map(lambda x: all_gather(x, axis_name), side)


def _global_logits(rows: Side, cols: Side, axis_name: AxisName) -> tuple[Array, Array, Array, Array]:
    """Logits of this device's rows with all columns, of its columns with all rows, and the masks of both."""
    all_cols = _gather(cols, axis_name)
    by_row = logits(rows, all_cols)
    by_col = by_row.T if axis_name is None else logits(cols, _gather(rows, axis_name))
    return by_row, by_col, *pair_masks(rows, all_cols)


def _global_statistics(rows: Side, cols: Side, axis_name: AxisName) -> PairStatistics:
    by_row, by_col, counts, positive = _global_logits(rows, cols, axis_name)
    lse = [jax.nn.logsumexp(jnp.where(counts, s, NEVER), axis=1) for s in (by_row, by_col)]
    sums = [jnp.where(positive, s, 0.0).sum(axis=1) for s in (by_row, by_col)]
    return PairStatistics(*lse, *sums)


def _gathered_statistics(rows: Side, cols: Side, tile: int, axis_name: str) -> PairStatistics:
    """Tiles of this device's rows and all gathered columns, whose sums are then joined over devices."""
    size = cols.x.shape[0]
    part = pair_statistics(rows, _gather(cols, axis_name), tile, None)
    top = jax.lax.pmax(jax.lax.stop_gradient(part.col_lse), axis_name)
    col_lse = top + jnp.log(psum(jnp.exp(part.col_lse - top), axis_name))
    own = lambda x: jax.lax.dynamic_slice_in_dim(x, axis_index(axis_name) * size, size)
    return part._replace(col_lse=own(col_lse), col_positive=own(psum(part.col_positive, axis_name)))


def _count_positives(side: Side, axis_name: AxisName) -> Float[Array, "batch"]:
    """How many present examples of the global batch have each example's target, itself included."""
    never = jnp.iinfo(side.target.dtype).max
    ids = jnp.sort(all_gather(jnp.where(side.present, side.target, never), axis_name))
    first, last = (jnp.searchsorted(ids, side.target, side=s) for s in ("left", "right"))
    return jnp.maximum(last - first, 1).astype(jnp.float32)
