"""Losses of token sequences, one term per example: cross-entropy with label smoothing, and CTC."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.checks import check_shapes


@check_shapes
def token_cross_entropy(
    logits: Float[Array, "batch length vocab"],
    targets: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    *,
    smoothing: float = 0.0,
) -> Float[Array, "batch"]:
    r"""Cross-entropy of the next token, averaged over the tokens of each example, in nats.

    .. math:: -\frac1L \sum_{l=1}^{L} \sum_v q_{lv} \log p_{lv}, \qquad q_l = (1 - \epsilon)\, e_{y_l} + \epsilon / V

    for L tokens, a vocabulary of V and the one-hot vector :math:`e_y` of a target.

    Args:
      logits: unnormalized log-probabilities; the softmax is computed in float32.
      targets: token ids.
      mask: True where there is a target; other positions have no influence. The term of an example without targets is
        0.
      smoothing: :math:`\epsilon`, the label smoothing.
    Returns:
      One term per example, in nats per token.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.losses import token_cross_entropy
      >>> logits, targets = jnp.zeros((2, 3, 8)), jnp.ones((2, 3), int)
      >>> mask = jnp.array([[True, True, False], [False, False, False]])
      >>> print(token_cross_entropy(logits, targets, mask))  # log 8, and no targets
      [2.0794415 0.       ]

    References:
      Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv:1512.00567, section 7 (label smoothing).
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    target_log_p = jnp.take_along_axis(log_p, targets[:, :, None], axis=-1)[:, :, 0]
    # -sum_v q_v log p_v: the smoothed target has 1 - eps on the target, and eps / V on each of the V tokens.
    terms = -(1 - smoothing) * target_log_p - smoothing * log_p.mean(axis=-1)
    terms = jnp.where(mask, terms, 0.0)
    return terms.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


@check_shapes
def ctc(
    logits: Float[Array, "batch frames vocab"],
    logit_mask: Bool[Array, "batch frames"],
    targets: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
    *,
    blank: int = 0,
) -> Float[Array, "batch"]:
    """Connectionist temporal classification: ``-log p(targets | logits)`` over all alignments, in nats.

    An alignment needs one frame per target, and one more for the blank between two equal targets. Where an example has
    too few frames no alignment exists: its term and its gradient are 0 (see :func:`ctc_fits`).

    Args:
      logits: unnormalized log-probabilities per frame.
      logit_mask: True on valid frames, which come first.
      targets: token ids.
      mask: True on valid targets, which come first.
      blank: id of the blank.
    Returns:
      One term per example, in nats (a sum over the sequence, not a mean).

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.losses import ctc
      >>> frames, tokens = jnp.ones((1, 4), bool), jnp.ones((1, 2), bool)
      >>> ctc(jnp.zeros((1, 4, 5)), frames, jnp.array([[1, 2]]), tokens).shape
      (1,)

    References:
      Graves et al. 2006, Connectionist Temporal Classification, ICML, eq. 3 and 14.
    """
    fits = ctc_fits(logit_mask, targets, mask)
    # Targets that do not fit are replaced by an empty sequence, so that loss and gradient stay finite.
    mask = mask & fits[:, None]
    # optax takes paddings, 1 where a frame or token is padding, instead of masks.
    losses = optax.ctc_loss(
        logits.astype(jnp.float32),
        1.0 - logit_mask.astype(jnp.float32),
        targets,
        1.0 - mask.astype(jnp.float32),
        blank_id=blank,
    )
    # A negative log-probability is not negative, but the rounding of its log-sum can make it so. The gradient stays.
    losses = losses + jax.lax.stop_gradient(jnp.maximum(losses, 0.0) - losses)
    return jnp.where(fits, losses, 0.0)


@check_shapes
def ctc_fits(
    logit_mask: Bool[Array, "batch frames"],
    targets: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
) -> Bool[Array, "batch"]:
    """Whether each example has enough frames for its targets: one per target, and one between equal neighbours.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.losses import ctc_fits
      >>> frames = jnp.ones((2, 2), bool)
      >>> ctc_fits(frames, jnp.array([[1, 2], [1, 1]]), jnp.ones((2, 2), bool)).tolist()
      [True, False]
    """
    needs_blank = (targets[:, 1:] == targets[:, :-1]) & mask[:, 1:]
    return mask.sum(axis=1) + needs_blank.sum(axis=1) <= logit_mask.sum(axis=1)
