"""Kernels for the maximum mean discrepancy: ``kernel(x, y) -> [n, m]``. Mixtures are sums over their widths.

The rational-quadratic and distance kernels are those of Bińkowski et al. 2018 (Demystifying MMD GANs, section
2 and appendix A), the mixture of Gaussians that of Li et al. 2015 (GMMN).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.similarity import squared_distances

Kernel = Callable[[Array, Array], Array]


def rbf(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    *,
    bandwidths: Sequence[float] = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0),
) -> Float[Array, "n m"]:
    """``sum_s exp(-||x - y||^2 / (2 s^2))``; the bandwidths s are in units of the distance."""
    square = squared_distances(x, y)
    return sum((jnp.exp(-square / (2.0 * s * s)) for s in bandwidths), jnp.zeros_like(square))


def rational_quadratic(
    x: Float[Array, "n dim"], y: Float[Array, "m dim"], *, alphas: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0)
) -> Float[Array, "n m"]:
    """``sum_a (1 + ||x - y||^2 / (2 a))^-a`` over the ``alphas`` a."""
    square = squared_distances(x, y)
    return sum((jnp.exp(-a * jnp.log1p(square / (2.0 * a))) for a in alphas), jnp.zeros_like(square))


def rational_quadratic_star(
    x: Float[Array, "n dim"], y: Float[Array, "m dim"], *, alphas: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0)
) -> Float[Array, "n m"]:
    """`rational_quadratic` plus ``<x, y>``: the linear part keeps a gradient where the samples are far apart."""
    return rational_quadratic(x, y, alphas=alphas) + x @ y.T


def distance(x: Float[Array, "n dim"], y: Float[Array, "m dim"], *, eps: float = 1e-6) -> Float[Array, "n m"]:
    """The distance kernel ``||x|| + ||y|| - ||x - y||``; its MMD^2 is the energy distance (Sejdinovic et al. 2013).

    ``eps`` is added to the square inside every root, so that the gradient is finite at 0.
    """
    root = lambda square: jnp.sqrt(square + eps)
    xx, yy = jnp.sum(x * x, axis=-1), jnp.sum(y * y, axis=-1)  # squared norms
    return root(xx)[:, None] + root(yy)[None, :] - root(squared_distances(x, y))


def polynomial(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    *,
    degree: int = 3,
    scale: float | None = None,
    offset: float = 1.0,
) -> Float[Array, "n m"]:
    """``(scale <x, y> + offset)^degree``, where ``scale`` None is 1/dim; the defaults are the kernel of KID."""
    return (x @ y.T * (1.0 / x.shape[-1] if scale is None else scale) + offset) ** degree
