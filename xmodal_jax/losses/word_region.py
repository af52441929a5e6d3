"""Word-region matching: a contrastive loss between the words of captions and the regions of images.

DAMSM of AttnGAN (Xu et al. 2018, arXiv:1711.10485, eq. 7-13) and the word loss of XMC-GAN (Zhang et al. 2021,
arXiv:2101.04702, section 4.1) differ only in how words attend to regions.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.collectives import AxisName, all_gather
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses.contrastive import Scalar
from xmodal_jax.losses.gradient_cache import chunked
from xmodal_jax.losses.pairs import MASKED_LOGIT, Duplicates, Ids, gather_side, make_pair_sides, pair_masks

Attention = Literal["cosine", "damsm"]


@check_shapes
def word_region_scores(
    words: Float[Array, "captions length dim"],
    word_mask: Bool[Array, "captions length"],
    regions: Float[Array, "images regions dim"],
    *,
    gamma1: Scalar = 5.0,
    gamma2: Scalar = 5.0,
    attention: Attention = "cosine",
    chunks: int = 1,
    axis_name: AxisName = None,
) -> Float[Array, "images all_captions"]:
    r"""Similarity of this device's images (rows) with the captions of all devices (columns).

    Every word :math:`w_l` attends to the regions :math:`v_r` of an image and is compared with the attended mean:

    .. math::

        c_l = \sum_r \alpha_{lr} v_r, \qquad
        S = \frac{1}{\gamma_2} \log \sum_l e^{\gamma_2 \cos(w_l, c_l)}, \qquad
        \alpha_{lr} = \operatorname{softmax}_r(\gamma_1 a_{lr})

    (AttnGAN eq. 9, 10). S is a soft maximum over the words and grows with their number: with n words that all match
    exactly it is :math:`1 + \log(n) / \gamma_2`. A caption without words scores about -1e30.

    Args:
      words: :math:`w`; any length.
      word_mask: True at words; masked positions have no influence and zero gradient.
      regions: :math:`v`, such as the positions of a feature map; any number.
      gamma1: inverse temperature of the attention.
      gamma2: inverse temperature of the soft maximum over words.
      attention: ``"cosine"``: :math:`a = \cos(w_l, v_r)`, and regions of unit length (XMC-GAN, section 4.1).
        ``"damsm"``: :math:`a` is the softmax over the caption's words of :math:`w_l \cdot v_r`, with regions of any
        length (AttnGAN, eq. 7, 8).
      chunks: number of chunks of images, computed one after the other (again in the backward pass) to save memory; it
        must divide the number of images. The attention of b images has b x all captions x length x regions elements.
      axis_name: the named axis that splits captions and images over devices, if any. The words are gathered, as they
        usually are fewer than the regions.
    Raises:
      ValueError: unknown attention, or ``chunks`` does not divide the number of images.
    """
    if attention not in ("cosine", "damsm"):
        raise ValueError(f"attention is 'cosine' or 'damsm', got {attention!r}")
    # Zero masked words first, so that an infinite one reaches neither value nor gradient.
    words = jnp.where(word_mask[:, :, None], words, 0)
    captions = (all_gather(words, axis_name), all_gather(word_mask, axis_name), gamma1, gamma2)
    score_images = partial(_scores, attention=attention)
    if chunks != 1:
        score_images = chunked(score_images, chunks)
    return score_images(captions, regions)


@check_shapes
def word_region_loss(
    words: Float[Array, "batch length dim"],
    word_mask: Bool[Array, "batch length"],
    regions: Float[Array, "batch regions dim"],
    *,
    gamma1: Scalar = 5.0,
    gamma2: Scalar = 5.0,
    gamma3: Scalar = 50.0,
    attention: Attention = "cosine",
    present: Bool[Array, "batch"] | None = None,
    match: Ids | None = None,
    duplicates: Duplicates = "ignore",
    chunks: int = 1,
    axis_name: AxisName = None,
) -> Float[Array, "batch"]:
    r"""Symmetric cross-entropy of :func:`word_region_scores` over the global batch, one term per example, in nats.

    .. math:: \tfrac12 \Big[\log \sum_j e^{\gamma_3 S_{ij}} + \log \sum_j e^{\gamma_3 S_{ji}}\Big] - \gamma_3 S_{ii}

    (AttnGAN, eq. 11-13): :func:`xmodal_jax.losses.info_nce` with the inverse temperature :math:`\gamma_3`. Both papers
    add the two directions; this is their mean, so that a batch of N equal pairs gives log N.

    Args:
      words, word_mask, regions: the captions and images, pair by pair; see :func:`word_region_scores`.
      gamma1, gamma2, attention, chunks: see :func:`word_region_scores`.
      gamma3: the inverse temperature; 50 is XMC-GAN's, AttnGAN has 10 with ``attention="damsm"``.
      present, match, duplicates: as in :mod:`xmodal_jax.losses.contrastive`; AttnGAN's masked classes are
        ``duplicates="exclude"``. An example whose caption has no word counts as absent.
      axis_name: the named axis over which the batch is split, if any.
    Raises:
      ValueError: see :func:`word_region_scores`.
    """
    has_words = word_mask.any(axis=1)
    present = has_words if present is None else present & has_words
    flatten = lambda x: x.reshape(x.shape[0], -1)
    # An image's regions (a caption's words) are one flat embedding here: only the ids, and the zeros in place of absent
    # examples, matter.
    images, captions = make_pair_sides(
        flatten(regions),
        flatten(words),
        present,
        match,
        duplicates,
        normalize=False,
        axis_name=axis_name,
    )
    # gamma3 S: [images of this device, captions of all devices]
    by_image = gamma3 * word_region_scores(
        captions.embeddings.reshape(words.shape),
        word_mask & present[:, None],
        images.embeddings.reshape(regions.shape),
        gamma1=gamma1,
        gamma2=gamma2,
        attention=attention,
        chunks=chunks,
        axis_name=axis_name,
    )
    # Ids and presence belong to the example, so one pair of masks serves both directions.
    valid, positive = pair_masks(images, gather_side(captions._replace(embeddings=None), axis_name))
    terms = jnp.zeros_like(by_image[:, 0])
    for scores in (by_image, _scores_by_caption(by_image, axis_name)):
        mean_positive = jnp.where(positive, scores, 0.0).sum(axis=1) / jnp.maximum(positive.sum(axis=1), 1)
        terms += jax.nn.logsumexp(jnp.where(valid, scores, MASKED_LOGIT), axis=1) - mean_positive
    return jnp.where(present, 0.5 * terms, 0.0)


def _scores(captions, regions, *, attention: Attention):
    """The scores S ``[images, captions]`` of `word_region_scores`, for all captions.

    ``captions`` is the tuple of words ``[captions, length, dim]``, their mask, gamma1 and gamma2. Axes of the einsums:
    i image, n caption, l word, r region, d dimension.

    ``regions`` are the images', ``[images, regions, dim]``. ``attention``: "cosine" or "damsm".
    """
    words, mask, gamma1, gamma2 = captions
    # Multiply in the features' precision, accumulate in float32 at least.
    einsum = partial(jnp.einsum, preferred_element_type=jnp.promote_types(words.dtype, jnp.float32))
    unit_words = l2_normalize(words)
    if attention == "cosine":
        regions = l2_normalize(regions)
        affinity = einsum("nld,ird->inlr", unit_words, regions)
    else:
        affinity = einsum("nld,ird->inlr", words, regions)
        # A softmax over the words of the caption (AttnGAN, eq. 8).
        affinity = jax.nn.softmax(jnp.where(mask[None, :, :, None], affinity, MASKED_LOGIT), axis=2)
    # alpha: attention over the regions; c: the attended mean of the regions, of unit length here.
    weights = jax.nn.softmax(gamma1 * affinity, axis=3).astype(regions.dtype)
    attended = l2_normalize(einsum("inlr,ird->inld", weights, regions))
    cosine = jnp.where(mask[None, :, :], einsum("inld,nld->inl", attended, unit_words), MASKED_LOGIT)
    return jax.nn.logsumexp(gamma2 * cosine, axis=2) / gamma2  # the soft maximum over words


def _scores_by_caption(scores, axis_name: AxisName):
    """Scores ``[local images, all captions]`` as ``[local captions, all images]``: a transpose over devices."""
    if axis_name is not None:
        scores = jax.lax.all_to_all(scores, axis_name, split_axis=1, concat_axis=0, tiled=True)
    return scores.T
