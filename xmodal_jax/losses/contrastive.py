"""Contrastive losses: InfoNCE (CLIP), the sigmoid loss (SigLIP) and the triplet loss (VSE++).

Each takes one embedding per example and modality, where ``a[i]`` and ``b[i]`` are a pair, and returns one term per
example of this device's batch. :func:`xmodal_jax.core.collectives.batch_mean` averages the terms. With ``axis_name``
the negatives come from the global batch, on all devices; take :func:`xmodal_jax.core.collectives.global_mean` of the
terms, whose gradient, averaged over devices, is that of the global loss.

Two arguments are common to all of them:

* ``present``: False where the pair is padding or lacks a modality. Such a pair is neither anchor nor negative; its
  term and its gradient are exactly 0.
* ``match``: an id per example; equal ids mean equal content (one caption of several images, say). -1 is unknown and
  matches nothing else. Several kinds of ids, ``[batch, kinds]``, such as those of the text and of the picture: examples
  match that have an equal id of any kind. Without ``match`` no two examples match.

``duplicates`` says how two examples with equal ids are treated:

* ``"ignore"``: as negatives of each other, as in CLIP; ``match`` is not used.
* ``"exclude"``: neither as positives nor as negatives.
* ``"positive"``: as positives. InfoNCE's target distribution is then uniform over the matches (UniCL, Yang et al.
  2022, arXiv:2204.03610).

A loss to be added to one of these, `changed_text_loss`, has none of these arguments: it does not compare examples with
each other, as each has a negative of its own.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.collectives import AxisName, all_gather, axis_index, axis_size, mesh_size, psum
from xmodal_jax.losses.pairs import (
    MASKED_LOGIT,
    Duplicates,
    Ids,
    PairSide,
    equal_ids,
    gather_side,
    make_pair_sides,
    pair_logits,
    pair_masks,
)
from xmodal_jax.losses.tiled import PairStatistics, pair_statistics, sigmoid_sums, signed_logits

Implementation = Literal["auto", "global", "tiled", "ring"]
"""How all pairs of a batch are computed; every choice gives the same result. See :func:`info_nce`."""
Scalar = float | int | Num[Array, ""]

AUTO_GLOBAL_LOGITS = 2**24
"""``implementation="auto"`` keeps the matrix of logits up to this many entries per device (64 MiB in float32)."""


@check_shapes
def info_nce(
    a: Float[Array, "batch dim"],
    b: Float[Array, "batch dim"],
    *,
    temperature: Scalar,
    present: Bool[Array, "batch"] | None = None,
    match: Ids | None = None,
    duplicates: Duplicates = "ignore",
    normalize: bool = False,
    axis_name: AxisName = None,
    implementation: Implementation = "auto",
    tile: int = 512,
) -> Float[Array, "batch"]:
    r"""Symmetric InfoNCE, the loss of CLIP.

    With logits :math:`s_{ij} = a_i \cdot b_j / \tau`, the term of example i is

    .. math:: \tfrac12 \Big[\log \sum_j e^{s_{ij}} + \log \sum_j e^{s_{ji}}\Big] - s_{ii} \quad\text{(nats)}

    Args:
      a, b: embeddings. Cosine logits need unit vectors: normalize them first, or pass ``normalize=True``.
      temperature: :math:`\tau > 0`, the inverse of CLIP's ``logit_scale``. It may be a learned scalar.
      present, match, duplicates: see the module's docstring.
      normalize: whether to divide every embedding by its length first.
      axis_name: the named axis over which the batch is split, if any.
      implementation: how the pairs are computed; the result is the same.
        ``"global"`` builds the matrix of logits, and gathers both sides under ``axis_name``.
        ``"tiled"`` builds ``tile`` columns of the matrix at a time, and once more in the backward pass: memory
        O(batch x (dim + tile)) for a third more arithmetic. It gathers one side under ``axis_name``.
        ``"ring"`` is tiled, and passes one side from device to device instead of gathering it (without
        ``axis_name`` it is the same as tiled).
        ``"auto"`` is global up to 2^24 logits per device, and tiled beyond.
      tile: columns per tile.
    Returns:
      One term per example, in nats; 0 where ``present`` is False.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from xmodal_jax.losses import info_nce
      >>> image, text = jax.random.normal(jax.random.key(0), (2, 8, 16))
      >>> loss = lambda image, text: info_nce(image, text, temperature=0.07, normalize=True).mean()
      >>> value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(image, text)

    References:
      van den Oord et al. 2018, Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748, eq. 4;
      Radford et al. 2021 (CLIP), arXiv:2103.00020, figure 3.
    """
    # The examples of a are the rows of the matrix of logits, those of b its columns.
    rows, cols = make_pair_sides(a, b, present, match, duplicates, normalize, axis_name)
    rows = _divide_by_temperature(rows, temperature)
    implementation = choose_implementation(implementation, a.shape[0], axis_name)
    if implementation == "global":
        stats = _global_statistics(rows, cols, axis_name)
    elif implementation == "tiled" and axis_name is not None:
        stats = _gathered_statistics(rows, cols, tile, axis_name)
    else:
        stats = pair_statistics(rows, cols, tile, axis_name)
    # Of each row and of each column: the log-sum-exp of all logits (lse) and the sum of the positive ones. Without
    # matching examples the only positive of an example is its pair.
    positives = _count_positives(rows, axis_name) if duplicates == "positive" and match is not None else 1.0
    terms = stats.row_lse + stats.col_lse - (stats.row_positive + stats.col_positive) / positives
    return jnp.where(rows.present, 0.5 * terms, 0.0)


@check_shapes
def sigmoid_loss(
    a: Float[Array, "batch dim"],
    b: Float[Array, "batch dim"],
    *,
    temperature: Scalar,
    bias: Scalar,
    present: Bool[Array, "batch"] | None = None,
    match: Ids | None = None,
    duplicates: Duplicates = "ignore",
    normalize: bool = False,
    axis_name: AxisName = None,
    implementation: Implementation = "auto",
    tile: int = 512,
) -> Float[Array, "batch"]:
    r"""The pairwise sigmoid loss of SigLIP.

    The term of example i is a sum over the other side, not a mean:

    .. math:: -\sum_j \log \sigma\big(y_{ij}\,(a_i \cdot b_j / \tau + \beta)\big) \quad\text{(nats)}, \qquad
              y_{ij} = \pm 1 \text{ for positive and negative pairs.}

    Args:
      a, b: embeddings; normalize them first, or pass ``normalize=True``.
      temperature: :math:`\tau > 0`, the inverse of the paper's t, where it starts at 0.1. May be learned.
      bias: :math:`\beta`; it starts at -10 in the paper, since almost all pairs are negative. May be learned.
      present, match, duplicates: see the module's docstring.
      normalize, axis_name, implementation, tile: as in :func:`info_nce`. Under ``axis_name`` only ``b`` is gathered,
        or passed around the ring.
    Returns:
      One term per example, in nats; 0 where ``present`` is False.

    Example:
      >>> import jax
      >>> from xmodal_jax.losses import sigmoid_loss
      >>> image, text = jax.random.normal(jax.random.key(0), (2, 8, 16))
      >>> sigmoid_loss(image, text, temperature=0.1, bias=-10.0, normalize=True).shape
      (8,)

    References:
      Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343, section 3.2, algorithm 1.
    """
    # The examples of a are the rows of the matrix of logits, those of b its columns.
    rows, cols = make_pair_sides(a, b, present, match, duplicates, normalize, axis_name)
    rows = _divide_by_temperature(rows, temperature)
    # The bias is repeated for each row, so that each device computes the gradient of its own rows; differentiating
    # the broadcast then sums them.
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    bias = jnp.zeros_like(rows.embeddings[:, 0], dtype=dtype) + bias
    implementation = choose_implementation(implementation, a.shape[0], axis_name)
    if implementation == "ring":
        return sigmoid_sums(rows, bias, cols, tile, axis_name)
    cols = gather_side(cols, axis_name)
    if implementation == "tiled":
        return sigmoid_sums(rows, bias, cols, tile, axis_name=None)  # all columns are on this device now
    signed, _, valid = signed_logits(rows, bias, cols)  # y_ij (s_ij + bias), and which pairs count
    return jnp.where(valid, jax.nn.softplus(-signed), 0.0).sum(axis=1)


@check_shapes
def triplet_loss(
    a: Float[Array, "batch dim"],
    b: Float[Array, "batch dim"],
    *,
    margin: Scalar = 0.2,
    hardest: bool = True,
    present: Bool[Array, "batch"] | None = None,
    match: Ids | None = None,
    duplicates: Literal["ignore", "exclude"] = "exclude",
    normalize: bool = False,
    axis_name: AxisName = None,
) -> Float[Array, "batch"]:
    r"""Triplet hinge loss with the hardest negative of the batch (VSE++).

    With :math:`s_{ij} = a_i \cdot b_j` the term of example i is

    .. math:: \max_{j \ne i}\,[\alpha + s_{ij} - s_{ii}]_+ + \max_{j \ne i}\,[\alpha + s_{ji} - s_{ii}]_+

    or, with ``hardest=False``, sums over j in place of the maxima. It is 0 where an example has no negative.

    Args:
      a, b: embeddings; normalize them first, or pass ``normalize=True``.
      margin: :math:`\alpha`, in units of the similarity.
      hardest: whether only the hardest negative counts (eq. 6), or the sum over all negatives (eq. 5).
      present, match, duplicates: see the module's docstring. ``"exclude"`` is the default, because a duplicate among
        the negatives would always be the hardest one.
      normalize, axis_name: as in :func:`info_nce`.
    Returns:
      One term per example, in units of the similarity; 0 where ``present`` is False.

    Example:
      >>> import jax
      >>> from xmodal_jax.losses import triplet_loss
      >>> image, text = jax.random.normal(jax.random.key(0), (2, 8, 16))
      >>> triplet_loss(image, text, margin=0.2, normalize=True).shape
      (8,)

    References:
      Faghri et al. 2018, VSE++: Improving Visual-Semantic Embeddings with Hard Negatives, arXiv:1707.05612, eq. 5, 6.
    """
    rows, cols = make_pair_sides(a, b, present, match, duplicates, normalize, axis_name)
    # Similarities [batch, global batch]: of this device's a with all b, and of its b with all a.
    a_similarity, b_similarity, valid, positive = _global_logits(rows, cols, axis_name)
    positive_score = jnp.sum(jnp.where(positive, a_similarity, 0.0), axis=1, keepdims=True)  # s_ii
    terms = jnp.zeros_like(positive_score[:, 0])
    for similarity in (a_similarity, b_similarity):
        hinge = jnp.where(valid & ~positive, jax.nn.relu(margin + similarity - positive_score), 0.0)
        terms = terms + (hinge.max(axis=1) if hardest else hinge.sum(axis=1))
    return terms


@check_shapes
def changed_text_loss(
    x: Float[Array, "batch dim"],
    text: Float[Array, "batch dim"],
    changed: Float[Array, "batch dim"],
    *,
    temperature: Scalar,
) -> Float[Array, "batch"]:
    r"""InfoNCE with a single, hard negative: an example's text with one fact changed.

    .. math:: -\log \frac{e^{x \cdot t / \tau}}{e^{x \cdot t / \tau} + e^{x \cdot t' / \tau}} \quad\text{(nats)}

    It is added to a loss over the batch, in which texts that differ in a word, or in the order of words, hardly ever
    meet. (NegCLIP adds such texts to the negatives of the batch instead.)

    Args:
      x: unit vectors of another modality, such as images.
      text: unit vectors t of the examples' texts.
      changed: unit vectors t' of the changed texts.
      temperature: :math:`\tau > 0`. It may be a learned scalar.
    Returns:
      One term per example, in nats. Examples without a text or without x are left to the caller to mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.losses import changed_text_loss
      >>> x = jnp.eye(2)
      >>> [round(float(term), 3) for term in changed_text_loss(x, x, -x, temperature=1.0)]
      [0.127, 0.127]

    References:
      Yuksekgonul et al. 2023 (NegCLIP), When and why vision-language models behave like bags-of-words, and what to do
      about it?, arXiv:2210.01936.
    """
    difference = jnp.sum(x * (changed - text), axis=-1) / temperature
    return jax.nn.softplus(difference)


def choose_implementation(
    implementation: Implementation, batch_size: int, axis_name: AxisName = None
) -> Implementation:
    """Replaces ``"auto"`` by ``"global"`` if one device can hold its part of the matrix of logits, else by ``"tiled"``.

    ``batch_size`` is this device's number of examples under ``axis_name``, else that of the whole batch.
    """
    if implementation != "auto":
        return implementation
    # Under a named axis a device's rows have the columns of all devices; otherwise the compiler splits the matrix over
    # the mesh.
    logits_per_device = batch_size * batch_size * axis_size(axis_name) // mesh_size()
    return "global" if logits_per_device <= AUTO_GLOBAL_LOGITS else "tiled"


# -- the matrix of logits, and sums over it -------------------------------------------------------------------


def _divide_by_temperature(side: PairSide, temperature: Scalar) -> PairSide:
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    # Dividing one side's embeddings instead of the logits takes O(batch x dim) operations instead of O(batch^2).
    return side._replace(embeddings=(side.embeddings / temperature).astype(side.embeddings.dtype))


def _global_logits(rows: PairSide, cols: PairSide, axis_name: AxisName) -> tuple[Array, Array, Array, Array]:
    """``(row_logits, col_logits, valid, positive)``, all ``[batch, global batch]``.

    ``row_logits`` are those of this device's rows with all columns, ``col_logits`` those of its columns with all rows.
    ``valid`` and ``positive`` are the masks of `pair_masks`; they serve both directions, as an example has the same ids
    on both sides.

    ``rows`` and ``cols``: the two sides of this device's pairs. ``axis_name``: the named axis that splits the batch
    over devices, if any.
    """
    all_cols = gather_side(cols, axis_name)
    row_logits = pair_logits(rows, all_cols)
    col_logits = row_logits.T if axis_name is None else pair_logits(cols, gather_side(rows, axis_name))
    return row_logits, col_logits, *pair_masks(rows, all_cols)


def _global_statistics(rows: PairSide, cols: PairSide, axis_name: AxisName) -> PairStatistics:
    """The statistics of `pair_statistics`, from the whole matrix of logits.

    For each row and each column: the log-sum-exp of its logits and the sum of its positive logits. ``rows`` and
    ``cols`` are the two sides of this device's pairs.
    """
    row_logits, col_logits, valid, positive = _global_logits(rows, cols, axis_name)
    both = (row_logits, col_logits)
    row_lse, col_lse = (jax.nn.logsumexp(jnp.where(valid, s, MASKED_LOGIT), axis=1) for s in both)
    row_positive, col_positive = (jnp.where(positive, s, 0.0).sum(axis=1) for s in both)
    return PairStatistics(row_lse, col_lse, row_positive, col_positive)


def _gathered_statistics(rows: PairSide, cols: PairSide, tile: int, axis_name: str) -> PairStatistics:
    """The statistics of `pair_statistics`, tiled, with the columns of all devices gathered: for each row and column the
    log-sum-exp of its logits (lse) and the sum of its positive logits.

    Each device sums over all columns for its rows, which completes the rows' statistics. For the columns it has only
    the part of each sum that comes from its rows: the parts are added over devices, and each device takes the result of
    its own columns.
    """
    size = cols.embeddings.shape[0]
    # axis_name=None: no ring, as all columns are on this device.
    partial_stats = pair_statistics(rows, gather_side(cols, axis_name), tile, axis_name=None)
    # log sum_d exp(lse_d) over devices d, relative to the largest of them against overflow.
    maximum = jax.lax.pmax(jax.lax.stop_gradient(partial_stats.col_lse), axis_name)
    col_lse = maximum + jnp.log(psum(jnp.exp(partial_stats.col_lse - maximum), axis_name))
    local_slice = lambda x: jax.lax.dynamic_slice_in_dim(x, axis_index(axis_name) * size, size)
    return partial_stats._replace(
        col_lse=local_slice(col_lse), col_positive=local_slice(psum(partial_stats.col_positive, axis_name))
    )


def _count_positives(side: PairSide, axis_name: AxisName) -> Float[Array, "batch"]:
    """The number of positives of each example among the present examples of the global batch, itself included.

    ``side``: one side of this device's pairs, with the ids of its examples; examples with the same ``positive_id`` are
    positives of each other.
    """
    if side.positive_id.ndim > 1:  # ids of several kinds, any of which can match: compare all pairs
        positive = equal_ids(side.positive_id, all_gather(side.positive_id, axis_name))
        count = (positive & all_gather(side.present, axis_name)[None, :]).sum(axis=1)
        return jnp.maximum(count, 1).astype(jnp.float32)
    absent_id = jnp.iinfo(side.positive_id.dtype).max  # equals no example's id
    # In the sorted ids of the global batch, equal ids are one run, whose ends a binary search finds.
    sorted_ids = jnp.sort(all_gather(jnp.where(side.present, side.positive_id, absent_id), axis_name))
    start = jnp.searchsorted(sorted_ids, side.positive_id, side="left")
    end = jnp.searchsorted(sorted_ids, side.positive_id, side="right")
    return jnp.maximum(end - start, 1).astype(jnp.float32)
