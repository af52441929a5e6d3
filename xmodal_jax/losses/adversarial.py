r"""Adversarial objectives: the losses of a GAN's discriminator and generator, one term per example.

``real`` and ``fake`` are the discriminator's logits ``[B]`` of real and of generated examples (r and f in the
equations, before any sigmoid). :math:`\sigma` is the sigmoid and sp the softplus, so that
:math:`-\log \sigma(v) = sp(-v)`. Each objective is a pair of functions, listed by name in :data:`OBJECTIVES`:

* ``*_discriminator(real, fake, *, present=None, axis_name=None) -> [B]``
* ``*_generator(fake, real, *, present=None, axis_name=None) -> [B]``

:func:`xmodal_jax.core.collectives.batch_mean` averages the terms. An example that is not ``present`` has no influence;
its term and its gradient are 0. ``axis_name`` is the named axis that splits the batch over devices; only
``relativistic_average`` compares examples across the batch and uses it.

MMD-GANs compare feature vectors ``[B, D]`` instead of logits, for the batch as a whole: :data:`FEATURE_OBJECTIVES`.

Example::

    hinge = OBJECTIVES["hinge"]
    loss = batch_mean(hinge.discriminator(real_logits, fake_logits), None, axis_name=None)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus
from jaxtyping import Array, Bool, Float, PyTree

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.collectives import AxisName, all_gather, global_mean
from xmodal_jax.losses.alignment import mmd
from xmodal_jax.probability.kernels import (
    Kernel,
    distance,
    rational_quadratic,
    rational_quadratic_star,
    rbf,
)

Logits = Float[Array, "batch"]
Present = Bool[Array, "batch"] | None


class Adversarial(NamedTuple):
    """An adversarial objective on logits, as two pure functions that return one term per example.

    ``discriminator(real, fake, *, present=None, axis_name=None) -> [B]``
    ``generator(fake, real, *, present=None, axis_name=None) -> [B]``
    """

    discriminator: Callable[..., jax.Array]
    generator: Callable[..., jax.Array]


@check_shapes
def minimax_discriminator(
    real: Logits, fake: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r""":math:`-\log \sigma(r) - \log(1 - \sigma(f))`, nats (Goodfellow et al. 2014, arXiv:1406.2661, eq. 1)."""
    return _loss_where_present(lambda r, f: softplus(-r) + softplus(f), present, real, fake)


@check_shapes
def minimax_generator(
    fake: Logits, real: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r""":math:`\log(1 - \sigma(f))`, nats, for the logit f of a generated example: the saturating loss (Goodfellow et
    al. 2014, eq. 1).

    ``fake``: these logits. ``present``: which examples count (None: all); the terms of the others are 0.
    """
    del real, axis_name  # not used: all objectives have the same arguments
    return _loss_where_present(lambda f: -softplus(f), present, fake)


@check_shapes
def non_saturating_generator(
    fake: Logits, real: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r""":math:`-\log \sigma(f)`, nats, for the logit f of a generated example (Goodfellow et al. 2014, section 3).

    Unlike that of the saturating loss, its gradient stays large where the discriminator is sure that f is generated.

    ``fake``: these logits. ``present``: which examples count (None: all); the terms of the others are 0.
    """
    del real, axis_name  # not used: all objectives have the same arguments
    return _loss_where_present(lambda f: softplus(-f), present, fake)


@check_shapes
def least_squares_discriminator(
    real: Logits, fake: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r""":math:`\tfrac12 (r - 1)^2 + \tfrac12 f^2` (Mao et al. 2017, LSGAN, arXiv:1611.04076, eq. 9)."""
    return _loss_where_present(lambda r, f: 0.5 * (r - 1.0) ** 2 + 0.5 * f**2, present, real, fake)


@check_shapes
def least_squares_generator(
    fake: Logits, real: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r""":math:`\tfrac12 (f - 1)^2` for the output f on a generated example (Mao et al. 2017, LSGAN, eq. 9).

    ``fake``: these outputs. ``present``: which examples count (None: all); the terms of the others are 0.
    """
    del real, axis_name  # not used: all objectives have the same arguments
    return _loss_where_present(lambda f: 0.5 * (f - 1.0) ** 2, present, fake)


@check_shapes
def wasserstein_discriminator(
    real: Logits, fake: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    """``f - r`` for the critic's outputs r on real and f on generated examples (Arjovsky et al. 2017).

    arXiv:1701.07875, algorithm 1. The critic must be Lipschitz: :func:`clip_weights` or a penalty of
    :mod:`xmodal_jax.losses.penalties` keeps it so.

    ``present``: which examples count (None: all); the terms of the others are 0. ``axis_name`` is not used: all
    objectives have the same arguments.
    """
    return _loss_where_present(lambda r, f: f - r, present, real, fake)


@check_shapes
def wasserstein_generator(
    fake: Logits, real: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    """``-f`` for the logit f of a generated example (Arjovsky et al. 2017, algorithm 1); the hinge loss has it too.

    ``fake``: these logits. ``present``: which examples count (None: all); the terms of the others are 0.
    """
    del real, axis_name  # not used: all objectives have the same arguments
    return _loss_where_present(lambda f: -f, present, fake)


@check_shapes
def hinge_discriminator(
    real: Logits, fake: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    """``relu(1 - r) + relu(1 + f)`` for logits r of real and f of generated examples.

    Miyato et al. 2018, SN-GAN, arXiv:1802.05957, eq. 16.

    ``present``: which examples count (None: all); the terms of the others are 0. ``axis_name`` is not used: all
    objectives have the same arguments.
    """
    return _loss_where_present(lambda r, f: relu(1.0 - r) + relu(1.0 + f), present, real, fake)


@check_shapes
def jsd_bound(
    positive: Logits, negative: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r"""Terms whose mean is the f-GAN bound of the Jensen-Shannon divergence (Nowozin et al. 2016).

    .. math:: 2 \log 2 - sp(-v_p) - sp(v_q) \quad\text{(nats)}

    (arXiv:1606.00709, eq. 6, table 2), with :math:`v_p` the logits at samples of P and :math:`v_q` at those of Q. At
    best, with v the log of the density ratio, the mean is :math:`KL(P\|M) + KL(Q\|M)` with M the mixture of both: twice
    the Jensen-Shannon divergence, at most 2 log 2. That is no more than :math:`KL(P\|Q)`, so with P the true pairs, and
    Q pairs of which one side is rolled along the batch, the mean is a lower bound of the sides' mutual information.

    ``positive`` are the logits :math:`v_p`, ``negative`` the logits :math:`v_q`. ``present``: which examples count
    (None: all); the terms of the others are 0. ``axis_name`` is not used.
    """
    return _loss_where_present(
        lambda p, q: 2.0 * math.log(2.0) - softplus(-p) - softplus(q), present, positive, negative
    )


@check_shapes
def jsd_discriminator(
    real: Logits, fake: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    """Minus :func:`jsd_bound` with the real examples as P and the generated ones as Q, in nats.

    The discriminator minimises it, and so tightens the bound.

    ``real`` and ``fake`` are the logits of both. ``present``: which examples count (None: all). ``axis_name`` is not
    used: all objectives have the same arguments.
    """
    return -jsd_bound(real, fake, present=present)


@check_shapes
def jsd_generator(
    fake: Logits, real: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    """:func:`jsd_bound` with the real examples as P and the generated ones as Q, in nats.

    The generator minimises it, and so lowers the divergence.

    ``fake`` and ``real`` are the logits of both. ``present``: which examples count (None: all). ``axis_name`` is not
    used: all objectives have the same arguments.
    """
    return jsd_bound(real, fake, present=present)


@check_shapes
def relativistic_discriminator(
    real: Logits, fake: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r""":math:`-\log \sigma(r - f)`, nats, for RSGAN (Jolicoeur-Martineau 2018, arXiv:1807.00734, section 4).

    The logit r of a real example is to exceed that of the generated example at the same position in the batch, f.

    ``real`` and ``fake`` are these logits. ``present``: which examples count (None: all); the terms of the others are
    0. ``axis_name`` is not used.
    """
    return _loss_where_present(lambda r, f: softplus(f - r), present, real, fake)


@check_shapes
def relativistic_generator(
    fake: Logits, real: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r""":math:`-\log \sigma(f - r)`, nats: :func:`relativistic_discriminator` with real and generated exchanged."""
    return relativistic_discriminator(fake, real, present=present)


@check_shapes
def relativistic_average_discriminator(
    real: Logits, fake: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    r"""Compares each real logit r with the mean generated logit, and each generated logit f with the mean real one.

    .. math:: -\log \sigma(r - \bar f) - \log(1 - \sigma(f - \bar r)) \quad\text{(nats)}

    with the means over the present examples of the global batch: RaSGAN (Jolicoeur-Martineau 2018, section 4).

    ``present``: which examples count (None: all). ``axis_name``: the named axis that splits the batch over devices, if
    any.
    """

    def loss(r, f):
        """The terms ``[B]`` of this device's examples, from their real logits ``r`` and generated logits ``f``."""
        weights = None if present is None else present.astype(r.dtype)
        fake_mean = global_mean(f, weights, axis_name=axis_name)
        real_mean = global_mean(r, weights, axis_name=axis_name)
        return softplus(fake_mean - r) + softplus(f - real_mean)

    return _loss_where_present(loss, present, real, fake)


@check_shapes
def relativistic_average_generator(
    fake: Logits, real: Logits, *, present: Present = None, axis_name: AxisName = None
) -> Logits:
    """:func:`relativistic_average_discriminator` with the real and the generated logits exchanged."""
    return relativistic_average_discriminator(fake, real, present=present, axis_name=axis_name)


OBJECTIVES: Mapping[str, Adversarial] = MappingProxyType(
    {
        "minimax": Adversarial(minimax_discriminator, minimax_generator),
        "non_saturating": Adversarial(minimax_discriminator, non_saturating_generator),
        "lsgan": Adversarial(least_squares_discriminator, least_squares_generator),
        "wgan": Adversarial(wasserstein_discriminator, wasserstein_generator),
        "hinge": Adversarial(hinge_discriminator, wasserstein_generator),
        "jsd": Adversarial(jsd_discriminator, jsd_generator),
        "relativistic": Adversarial(relativistic_discriminator, relativistic_generator),
        "relativistic_average": Adversarial(
            relativistic_average_discriminator, relativistic_average_generator
        ),
    }
)
"""The objectives by name."""


def matching_aware(objective: Adversarial) -> Callable[..., jax.Array]:
    r"""The discriminator's loss of GAN-CLS, which also takes real examples with mismatched conditions.

    .. math:: \tfrac12 D(\text{real}, \text{fake}) + \tfrac12 D(\text{real}, \text{mismatched})

    with D the discriminator's loss of ``objective`` (Reed et al. 2016, arXiv:1605.05396, algorithm 1). Mismatched
    examples are treated like generated ones. If D is the sum of one term for real and one for generated examples, the
    terms of generated and of mismatched examples have weight 1/2 each. The generator's loss does not change.

    Returns:
      ``discriminator(real, fake, mismatched, *, present=None, mismatched_present=None, axis_name=None) -> [B]``.
      ``mismatched``: the logits of real examples with the condition of another example. Where ``mismatched_present`` is
      False (the condition comes from an absent example, or is the same) the term is D(real, fake).
    """

    def discriminator(
        real: Logits,
        fake: Logits,
        mismatched: Logits,
        *,
        present: Present = None,
        mismatched_present: Present = None,
        axis_name: AxisName = None,
    ) -> Logits:
        """``D(real, fake) / 2 + D(real, mismatched) / 2``; ``D(real, fake)`` without a mismatched condition."""
        fake_loss = objective.discriminator(real, fake, present=present, axis_name=axis_name)
        # The examples whose mismatched logit counts; None: all.
        has_mismatched = present if mismatched_present is None else mismatched_present
        if present is not None:
            has_mismatched = has_mismatched & present
        mismatched_loss = objective.discriminator(
            real, mismatched, present=has_mismatched, axis_name=axis_name
        )
        mean_loss = 0.5 * (fake_loss + mismatched_loss)
        return mean_loss if has_mismatched is None else jnp.where(has_mismatched, mean_loss, fake_loss)

    return discriminator


def clip_weights(params: PyTree[Float[Array, "..."]], limit: float) -> PyTree[Float[Array, "..."]]:
    """The weights clipped to [-limit, limit], as a WGAN's critic needs after each step (Arjovsky et al. 2017: 0.01).

    Raises:
      ValueError: the limit is not positive.
    """
    if limit <= 0.0:
        raise ValueError(
            f"weights are clipped to [-limit, limit], so the limit must be positive, got {limit}"
        )
    return jax.tree.map(lambda w: jnp.clip(w, -limit, limit), params)


# -- MMD-GAN: features instead of logits ---------------------------------------------------------------------

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {"rbf": rbf, "rq": rational_quadratic, "rq_star": rational_quadratic_star, "distance": distance}
)
"""The kernels of MMD-GANs by name; ``functools.partial`` sets widths."""


@check_shapes
def mmd_discriminator(
    real: Float[Array, "batch dim"],
    fake: Float[Array, "batch dim"],
    *,
    kernel: Kernel = rational_quadratic_star,
    present: Present = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r""":math:`-MMD^2`, unbiased, between the critic's features of real and of generated examples.

    Bińkowski et al. 2018, arXiv:1801.01401, section 2.1 (with 16 features); Li et al. 2017, arXiv:1705.08584. Returns
    this device's share of one number for the global batch; see :func:`xmodal_jax.losses.mmd`. The critic must be kept
    smooth, by :func:`xmodal_jax.losses.gradient_penalty` of :func:`witness` or by :func:`clip_weights`.

    ``kernel(x, y)``: from features ``[n, dim]`` and ``[m, dim]`` to their kernel values ``[n, m]``. ``present``: which
    examples count (None: all). ``axis_name``: the named axis that splits the batch over devices, if any.
    """
    return -mmd_generator(fake, real, kernel=kernel, present=present, axis_name=axis_name)


@check_shapes
def mmd_generator(
    fake: Float[Array, "batch dim"],
    real: Float[Array, "batch dim"],
    *,
    kernel: Kernel = rational_quadratic_star,
    present: Present = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """:math:`MMD^2`, unbiased, between features of real and generated examples: minus :func:`mmd_discriminator`.

    Returns this device's share of one number for the global batch. ``kernel(x, y)``: from features ``[n, dim]`` and
    ``[m, dim]`` to their kernel values ``[n, m]``. ``present``: which examples count, real and generated (None: all).
    ``axis_name``: the named axis that splits the batch over devices, if any.
    """
    return mmd(
        _at_least_float32(real), _at_least_float32(fake), kernel=kernel, present=present, axis_name=axis_name
    )


@check_shapes
def witness(
    x: Float[Array, "points dim"],
    real: Float[Array, "batch dim"],
    fake: Float[Array, "batch dim"],
    *,
    kernel: Kernel = rational_quadratic_star,
    present: Present = None,
    axis_name: AxisName = None,
) -> Float[Array, "points"]:
    r"""The witness function of the MMD at the features ``x``: positive where real examples are denser than generated.

    .. math:: \langle k(x, \text{real}_j) \rangle_j - \langle k(x, \text{fake}_j) \rangle_j

    with means over the present examples of the global batch (Bińkowski et al. 2018, section 2.1, up to a factor).
    It is the critic whose gradient an MMD-GAN penalises, at interpolated inputs and through the features::

        gradient_penalty(lambda x: witness(features(x), real_features, fake_features), real, fake, keys)

    ``kernel(x, y)``: from features ``[n, dim]`` and ``[m, dim]`` to their kernel values ``[n, m]``. ``present``: which
    examples of ``real`` and ``fake`` count (None: all). ``axis_name``: the named axis that splits them over devices.
    """
    present = jnp.ones_like(real[:, 0], dtype=bool) if present is None else present
    all_present = all_gather(present, axis_name)  # [global batch]

    def mean_kernel(y):
        """``[points]``: the mean of ``k(x, y_j)`` over the present examples j of the global batch."""
        # Zero the features of absent examples first, so that an infinite one has no gradient.
        y = all_gather(jnp.where(present[:, None], _at_least_float32(y), 0.0), axis_name)
        values = jnp.where(
            all_present[None, :], kernel(_at_least_float32(x), y), 0.0
        )  # [points, global batch]
        return values.sum(axis=1) / jnp.maximum(all_present.sum(), 1).astype(values.dtype)

    return mean_kernel(real) - mean_kernel(fake)


class FeatureObjective(NamedTuple):
    """An objective on features ``[B, D]``, as pure functions that return this device's share of one number.

    ``discriminator(real, fake, *, present=None, axis_name=None) -> scalar``
    ``generator(fake, real, *, present=None, axis_name=None) -> scalar``
    ``witness(x, real, fake, *, present=None, axis_name=None) -> [points]``: the critic's value at the features ``x``,
    for gradient penalties.
    """

    discriminator: Callable[..., jax.Array]
    generator: Callable[..., jax.Array]
    witness: Callable[..., jax.Array]


FEATURE_OBJECTIVES: Mapping[str, FeatureObjective] = MappingProxyType(
    {
        f"mmd_{name}": FeatureObjective(
            partial(mmd_discriminator, kernel=kernel),
            partial(mmd_generator, kernel=kernel),
            partial(witness, kernel=kernel),
        )
        for name, kernel in KERNELS.items()
    }
)
"""MMD-GANs by the name of their kernel, such as ``mmd_rq_star``."""


def _at_least_float32(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _loss_where_present(loss: Callable[..., jax.Array], present: Present, *logits: Logits) -> Logits:
    """``loss(*logits)`` of each example ``[B]``, computed in float32 at least; 0 where an example is absent."""
    logits = [_at_least_float32(x) for x in logits]
    if present is None:
        return loss(*logits)
    # Zero the logits of absent examples first, so that an infinite one reaches neither value nor gradient.
    logits = [jnp.where(present, x, 0.0) for x in logits]
    return jnp.where(present, loss(*logits), 0.0)
