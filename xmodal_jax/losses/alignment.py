"""Losses that align two whole distributions or views: maximum mean discrepancy, Deep CORAL and deep CCA.

Each is one number of the global batch. With ``axis_name`` the returned value is this device's share of it: the sum over
devices is the value on one device, and the same holds for the gradients (see :mod:`xmodal_jax.core.collectives`).
Absent examples (``present`` False) have no influence and zero gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.collectives import AxisName, all_gather, global_index, psum, share
from xmodal_jax.probability.kernels import Kernel, rbf


@check_shapes
def mmd(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    *,
    kernel: Kernel = rbf,
    unbiased: bool = True,
    present: Bool[Array, "n"] | None = None,
    y_present: Bool[Array, "m"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Squared maximum mean discrepancy of two samples.

    .. math:: \langle k(x_i, x_{i'}) \rangle + \langle k(y_j, y_{j'}) \rangle - 2 \langle k(x_i, y_j) \rangle

    where the brackets are means over all pairs of indices. With ``unbiased`` the means within a sample leave out i = i'
    (the value may then be negative); this needs two examples on each side. A mean over no pair is 0.

    Args:
      x, y: samples; their sizes may differ.
      kernel: ``kernel(x, y) -> [n, m]``, see :mod:`xmodal_jax.probability.kernels`; set its widths by
        ``functools.partial``.
      unbiased: whether to leave out the diagonal (eq. 3), or not (eq. 5).
      present: which examples of x count (default: all).
      y_present: which examples of y count (default: as ``present``).
      axis_name: the named axis over which both samples are split, if any. Each device computes its rows of the three
        kernel matrices, so that the devices share the work.
    Returns:
      A scalar in units of the kernel; this device's share of it under ``axis_name``.

    Example:
      >>> import jax
      >>> from xmodal_jax.losses import mmd
      >>> x, y = jax.random.normal(jax.random.key(0), (2, 64, 3))
      >>> bool(mmd(x, y) < mmd(x, y + 2.0))
      True

    References:
      Gretton et al. 2012, A Kernel Two-Sample Test, JMLR 13, eq. 3 and 5.
    """

    def mean_kernel(a, a_present, b, b_present, *, same_sample):
        """This device's share of the mean of ``k(a_i, b_j)`` over all pairs that count.

        The rows i of the matrix are this device's examples of ``a``, the columns j all devices' examples of ``b``.
        ``a_present`` and ``b_present``: which examples count. ``same_sample``: whether a and b are one sample, where
        the unbiased estimate leaves out the pairs of an example with itself.
        """
        valid = a_present[:, None] & all_gather(b_present, axis_name)[None, :]
        if same_sample and unbiased:
            index = global_index(a.shape[0], axis_name=axis_name)
            valid &= index[:, None] != all_gather(index, axis_name)[None, :]
        pair_count = psum(valid.sum(), axis_name)
        values = jnp.where(valid, kernel(a, all_gather(b, axis_name)), 0.0)
        return values.sum() / jnp.maximum(pair_count, 1).astype(values.dtype)

    # Samples with 0 in place of absent examples, and which are present; None becomes all True.
    x, x_present = _zero_absent(x, present)
    y, y_present = _zero_absent(y, present if y_present is None else y_present)
    xx = mean_kernel(x, x_present, x, x_present, same_sample=True)
    yy = mean_kernel(y, y_present, y, y_present, same_sample=True)
    return xx + yy - 2.0 * mean_kernel(x, x_present, y, y_present, same_sample=False)


@check_shapes
def coral(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    *,
    present: Bool[Array, "n"] | None = None,
    y_present: Bool[Array, "m"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Squared distance between the covariances of two samples: the loss of Deep CORAL.

    .. math:: \|C_x - C_y\|_F^2 / (4 d^2)

    for d dimensions. The covariances divide by n - 1.

    Args:
      x, y: samples; their sizes may differ.
      present: which examples of x count (default: all).
      y_present: which examples of y count (default: as ``present``).
      axis_name: the named axis over which both samples are split, if any; only the d x d moments are exchanged.
    Returns:
      A scalar in units of the features to the fourth power; this device's share of it under ``axis_name``.

    Example:
      >>> import jax
      >>> from xmodal_jax.losses import coral
      >>> x, y = jax.random.normal(jax.random.key(0), (2, 64, 3))
      >>> bool(coral(x, y) < coral(x, 3.0 * y))
      True

    References:
      Sun and Saenko 2016, Deep CORAL, arXiv:1607.01719, eq. 1.
    """
    # Samples with 0 in place of absent examples, and which are present; None becomes all True.
    x, x_present = _zero_absent(x, present)
    y, y_present = _zero_absent(y, present if y_present is None else y_present)
    # Subtract the mean of the global batch; absent examples stay 0.
    x = _center(x, x_present, axis_name)
    y = _center(y, y_present, axis_name)
    difference = _covariance(x, x, x_present, axis_name) - _covariance(y, y, y_present, axis_name)
    return share(jnp.sum(difference**2) / (4.0 * x.shape[1] ** 2), axis_name=axis_name)


@check_shapes
def deep_cca(
    x: Float[Array, "batch x_dim"],
    y: Float[Array, "batch y_dim"],
    *,
    ridge: float = 1e-3,
    top: int | None = None,
    present: Bool[Array, "batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Negative sum of the canonical correlations of two paired views: the loss of deep CCA.

    .. math:: -\|T\|_{tr}, \qquad T = C_{xx}^{-1/2} C_{xy} C_{yy}^{-1/2}

    with :math:`C_{xx} = \tfrac{1}{n-1} X X^T + r I` of the centred X. The roots are Cholesky factors here: they differ
    from the symmetric roots by a rotation, which does not change the singular values of T, and their gradients are
    finite at equal eigenvalues.

    Args:
      x, y: the views of the same examples. The batch should hold several times more examples than dimensions: with
        n - 1 <= dim and a small ridge every correlation is near 1, and the gradient carries no information.
      ridge: r, added to the variances (units of the features squared).
      top: how many of the largest correlations to sum (default: all).
      present: which pairs count (default: all).
      axis_name: the named axis over which the batch is split, if any; only moments are exchanged.
    Returns:
      A scalar between minus the number of correlations and 0; this device's share of it under ``axis_name``.
    Raises:
      ValueError: if ``top`` is not between 1 and the smaller dimension.

    Example:
      >>> import jax
      >>> from xmodal_jax.losses import deep_cca
      >>> x = jax.random.normal(jax.random.key(0), (64, 3))
      >>> round(float(deep_cca(x, x[:, ::-1], ridge=1e-6)), 2)
      -3.0

    References:
      Andrew et al. 2013, Deep Canonical Correlation Analysis, ICML, eq. 10.
    """
    dim = min(x.shape[1], y.shape[1])
    if top is not None and not 1 <= top <= dim:
        raise ValueError(f"top={top} correlations of views with {x.shape[1]} and {y.shape[1]} dimensions")
    # Views with 0 in place of absent examples (mask: which are present), minus the mean of the global batch.
    x, mask = _zero_absent(x, present)
    y, _ = _zero_absent(y, present)
    x, y = _center(x, mask, axis_name), _center(y, mask, axis_name)

    def cholesky_factor(view):
        """The lower triangular L with ``L L^T = C + r I`` for the view's covariance C."""
        covariance = _covariance(view, view, mask, axis_name)
        return jnp.linalg.cholesky(covariance + ridge * jnp.eye(view.shape[1], dtype=view.dtype))

    solve = lambda factor, m: jax.scipy.linalg.solve_triangular(factor, m, lower=True)  # factor^-1 m
    # T^T = L_y^-1 (L_x^-1 C_xy)^T; its singular values, those of T, are the canonical correlations.
    t = solve(cholesky_factor(y), solve(cholesky_factor(x), _covariance(x, y, mask, axis_name)).T)
    correlations = jnp.linalg.svd(t, compute_uv=False)
    return share(-correlations[:top].sum(), axis_name=axis_name)


def _zero_absent(x, present):
    """``(x, present)``: the examples ``[B, D]`` with absent ones set to 0, and which are present (``None``: all)."""
    if present is None:
        return x, jnp.ones_like(x[:, 0], dtype=bool)
    return jnp.where(present[:, None], x, 0.0), present


def _center(x, present, axis_name):
    """The examples ``[B, D]`` minus their mean over the global batch; absent ones (already 0) stay 0."""
    count = psum(present.sum(), axis_name)
    mean = psum(x.sum(axis=0), axis_name) / jnp.maximum(count, 1).astype(x.dtype)
    return jnp.where(present[:, None], x - mean[None, :], 0.0)


def _covariance(x, y, present, axis_name):
    """The covariance ``[x_dim, y_dim]`` of two centred views over the global batch, with the divisor n - 1.

    Absent examples are 0 in both views.

    ``x [B, x_dim]`` and ``y [B, y_dim]`` are this device's examples, ``present [B]`` marks those that count.
    ``axis_name``: the named axis that splits the batch over devices, if any.
    """
    count = psum(present.sum(), axis_name)
    return psum(x.T @ y, axis_name) / jnp.maximum(count - 1, 1).astype(x.dtype)
