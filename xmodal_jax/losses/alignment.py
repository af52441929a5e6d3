"""Losses that align two distributions or two views as wholes: MMD, CORAL and deep CCA.

Each is one number of the global batch. Under ``axis_name`` what is returned is this device's share of it: the
sum over devices is the value on one device, for the gradients too (see :mod:`xmodal_jax.core.collectives`).
Absent examples have no influence and zero gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import AxisName, all_gather, global_index, psum, share
from xmodal_jax.probability.kernels import Kernel, rbf


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
    r"""Squared maximum mean discrepancy (Gretton et al. 2012, eq. 3 unbiased, eq. 5 biased).

    .. math:: \langle k(x_i, x_{i'}) \rangle + \langle k(y_j, y_{j'}) \rangle - 2 \langle k(x_i, y_j) \rangle

    The means within a sample leave out i = i' if ``unbiased`` (the value may then be negative); it needs two
    examples on each side, and a mean over no pair is 0.

    Args:
      x, y: samples; their sizes may differ.
      kernel: ``kernel(x, y) -> [n, m]``, see :mod:`xmodal_jax.probability.kernels`; ``functools.partial``
        sets widths.
      unbiased: leave out the diagonal.
      present, y_present: which examples of x and y count; without ``y_present``, ``present`` is for both.
      axis_name: the named axis over which both samples are split, if any. A device computes its rows of the
        three matrices of kernels, so the devices share the work.
    """

    def sums(a, a_present, b, b_present, same):
        """This device's part of the mean of the kernel over the pairs that count."""
        counts = a_present[:, None] & all_gather(b_present, axis_name)[None, :]
        if same and unbiased:
            rows = global_index(a.shape[0], axis_name=axis_name)
            counts &= rows[:, None] != all_gather(rows, axis_name)[None, :]
        total = psum(counts.sum(), axis_name)
        values = jnp.where(counts, kernel(a, all_gather(b, axis_name)), 0.0)
        return values.sum() / jnp.maximum(total, 1).astype(values.dtype)

    x, x_present = _present(x, present)
    y, y_present = _present(y, present if y_present is None else y_present)
    xx = sums(x, x_present, x, x_present, True)
    yy = sums(y, y_present, y, y_present, True)
    return xx + yy - 2.0 * sums(x, x_present, y, y_present, False)


def coral(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    *,
    present: Bool[Array, "n"] | None = None,
    y_present: Bool[Array, "m"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Distance of covariances, :math:`\|C_x - C_y\|_F^2 / (4 d^2)` (Deep CORAL, Sun and Saenko 2016, eq. 1).

    The covariances divide by n - 1. ``present`` is as for :func:`mmd`. Under ``axis_name`` only the d x d
    moments are exchanged.
    """
    x, x_present = _present(x, present)
    y, y_present = _present(y, present if y_present is None else y_present)
    x = _centered(x, x_present, axis_name)
    y = _centered(y, y_present, axis_name)
    difference = _covariance(x, x, x_present, axis_name) - _covariance(y, y, y_present, axis_name)
    return share(jnp.sum(difference**2) / (4.0 * x.shape[1] ** 2), axis_name=axis_name)


def deep_cca(
    x: Float[Array, "batch x_dim"],
    y: Float[Array, "batch y_dim"],
    *,
    ridge: float = 1e-3,
    top: int | None = None,
    present: Bool[Array, "batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Minus the sum of the canonical correlations of paired views (Andrew et al. 2013, Deep CCA, eq. 10).

    .. math:: -\|T\|_{tr}, \qquad T = C_{xx}^{-1/2} C_{xy} C_{yy}^{-1/2}

    with :math:`C_{xx} = \tfrac{1}{n-1} X X^T + r I` of the centred X. The roots are Cholesky
    factors here: they differ from the symmetric ones by rotations, which leave the singular values of T
    alone, and have finite gradients at equal eigenvalues.

    Args:
      x, y: the views of the same examples. The batch should hold several times more examples than dimensions:
        with n - 1 <= dim and a small ridge every correlation is near 1 and the gradient says nothing.
      ridge: r, added to the variances (units of the features squared).
      top: how many of the largest correlations to sum; all by default.
      present: which pairs count.
      axis_name: the named axis over which the batch is split, if any; only moments are exchanged.
    Raises:
      ValueError: if ``top`` is not between 1 and the smaller dimension.
    """
    dim = min(x.shape[1], y.shape[1])
    if top is not None and not 1 <= top <= dim:
        raise ValueError(f"top={top} correlations of views with {x.shape[1]} and {y.shape[1]} dimensions")
    (x, mask), (y, _) = _present(x, present), _present(y, present)
    x, y = _centered(x, mask, axis_name), _centered(y, mask, axis_name)

    def root(z):
        return jnp.linalg.cholesky(
            _covariance(z, z, mask, axis_name) + ridge * jnp.eye(z.shape[1], dtype=z.dtype)
        )

    solve = lambda factor, m: jax.scipy.linalg.solve_triangular(factor, m, lower=True)
    t = solve(root(y), solve(root(x), _covariance(x, y, mask, axis_name)).T)
    correlations = jnp.linalg.svd(t, compute_uv=False)
    return share(-correlations[:top].sum(), axis_name=axis_name)


def _present(x, present):
    """The examples with absent ones set to 0, and the mask."""
    if present is None:
        return x, jnp.ones_like(x[:, 0], dtype=bool)
    return jnp.where(present[:, None], x, 0.0), present


def _centered(x, present, axis_name):
    """The examples less their mean over the global batch; absent ones stay 0."""
    count = psum(present.sum(), axis_name)
    mean = psum(x.sum(axis=0), axis_name) / jnp.maximum(count, 1).astype(x.dtype)
    return jnp.where(present[:, None], x - mean[None, :], 0.0)


def _covariance(x, y, present, axis_name):
    count = psum(present.sum(), axis_name)
    return psum(x.T @ y, axis_name) / jnp.maximum(count - 1, 1).astype(x.dtype)
