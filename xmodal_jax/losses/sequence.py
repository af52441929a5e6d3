"""Losses of sequences of tokens, one term per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def token_cross_entropy(
    logits: Float[Array, "batch length vocab"],
    targets: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    *,
    smoothing: float = 0.0,
) -> Float[Array, "batch"]:
    """The mean over an example's tokens of ``-sum_v q_v log p_v``, in nats; 0 where it has none.

    ``q = (1 - smoothing) onehot(target) + smoothing / V`` (label smoothing, Szegedy et al. 2016, arXiv:1512.00567,
    sec. 7). ``mask``: which targets there are; the rest has no influence.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    of_target = jnp.take_along_axis(log_p, targets[:, :, None], axis=-1)[:, :, 0]
    terms = -(1 - smoothing) * of_target - smoothing * log_p.mean(axis=-1)
    terms = jnp.where(mask, terms, 0.0)
    return terms.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def ctc(
    logits: Float[Array, "batch frames vocab"],
    logit_mask: Bool[Array, "batch frames"],
    targets: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    *,
    blank: int = 0,
) -> Float[Array, "batch"]:
    """``-log p(targets | logits)`` over all alignments, in nats: connectionist temporal classification.

    Content comes first in both masks. Where the frames are too few for the targets (one for each, and a blank between
    equal ones) no alignment exists: such an example gives 0 and no gradient (see `ctc_fits`). Graves et al. 2006, eq. 3
    and 14.
    """
    fits = ctc_fits(logit_mask, targets, mask)
    mask = mask & fits[:, None]  # an impossible target is replaced by the empty one, so that all stays finite
    losses = optax.ctc_loss(
        logits.astype(jnp.float32),
        1.0 - logit_mask.astype(jnp.float32),
        targets,
        1.0 - mask.astype(jnp.float32),
        blank_id=blank,
    )
    return jnp.where(fits, losses, 0.0)


def ctc_fits(
    logit_mask: Bool[Array, "batch frames"],
    targets: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
) -> Bool[Array, "batch"]:
    """Which examples have frames enough for their targets."""
    equal = (targets[:, 1:] == targets[:, :-1]) & mask[:, 1:]
    return mask.sum(axis=1) + equal.sum(axis=1) <= logit_mask.sum(axis=1)
