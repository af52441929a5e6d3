"""Losses that reduce the modality gap of a shared embedding space: the distance of pairs, and the uniformity of their
centroids.

The modality gap is the distance between the mean embeddings of two modalities (Liang et al. 2022, arXiv:2203.02053). A
contrastive loss compares similarities with each other only, so that two modalities may stay in separate regions of the
sphere. With ``axis_name`` the batch is split over a named axis of devices. Pairs that are not ``present`` have no
influence and zero gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.collectives import AxisName, all_gather, global_index, psum, share
from xmodal_jax.core.similarity import l2_normalize, squared_distances


@check_shapes
def pair_distance(
    x: Float[Array, "batch dim"], y: Float[Array, "batch dim"], *, present: Bool[Array, "batch"] | None = None
) -> Float[Array, "batch"]:
    r"""Squared Euclidean distance of the two embeddings of each pair.

    .. math:: \|x_i - y_i\|^2

    Its mean is the alignment loss of Wang and Isola. For unit vectors it lies between 0 and 4.

    Args:
      x, y: embeddings of two modalities, unit vectors.
      present: which pairs count (default: all).
    Returns:
      One term per pair; 0 where ``present`` is False.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.losses import pair_distance
      >>> pair_distance(jnp.eye(2), -jnp.eye(2)).tolist()
      [4.0, 4.0]

    References:
      Grassucci et al. 2026, Closing the Modality Gap Aligns Group-Wise Semantics, arXiv:2601.18525; Wang and Isola
      2020, arXiv:2005.10242, eq. 4.
    """
    difference = x - y
    if present is not None:
        difference = jnp.where(present[:, None], difference, 0.0)
    return jnp.sum(difference**2, axis=1)


@check_shapes
def centroid_uniformity(
    x: Float[Array, "batch dim"],
    y: Float[Array, "batch dim"],
    *,
    scale: float = 2.0,
    present: Bool[Array, "batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""The uniformity loss of the pairs' centroids: how unevenly they cover the sphere.

    .. math:: \log \operatorname{mean}_{i \ne j} \exp(-t \|c_i - c_j\|^2), \qquad
              c_i = \frac{x_i + y_i}{\|x_i + y_i\|}

    It is 0, its largest value, if all centroids are equal, and falls as they spread. Beside `pair_distance` it keeps
    the embeddings from collapsing to a point.

    Args:
      x, y: embeddings of two modalities, unit vectors.
      scale: t, the inverse width of the Gaussian potential.
      present: which pairs count (default: all).
      axis_name: the named axis over which the batch is split, if any. Each device computes its rows of the matrix of
        distances.
    Returns:
      A scalar in nats, 0 with fewer than two pairs; this device's share of it under ``axis_name``.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.losses import centroid_uniformity
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> round(float(centroid_uniformity(x, x)), 4)  # opposite centroids: distance 2
      -8.0

    References:
      Grassucci et al. 2026, Closing the Modality Gap Aligns Group-Wise Semantics, arXiv:2601.18525; Wang and Isola
      2020, arXiv:2005.10242, section 4.1, whose uniformity is of the embeddings of one modality.
    """
    present = jnp.ones_like(x[:, 0], dtype=bool) if present is None else present
    centroids = l2_normalize(jnp.where(present[:, None], x + y, 0.0))
    # The rows of the matrix are this device's centroids, the columns those of all devices.
    index = global_index(x.shape[0], axis_name=axis_name)
    valid = present[:, None] & all_gather(present, axis_name)[None, :]
    valid &= index[:, None] != all_gather(index, axis_name)[None, :]
    exponents = -scale * squared_distances(centroids, all_gather(centroids, axis_name))
    exponents = jnp.where(valid, exponents, -jnp.inf)
    # The logarithm of a sum over devices, relative to the largest exponent against underflow.
    maximum = jax.lax.stop_gradient(exponents.max())
    maximum = maximum if axis_name is None else jax.lax.pmax(maximum, axis_name)
    pairs = psum(valid.sum(), axis_name)
    maximum = jnp.where(pairs > 0, maximum, 0.0)
    total = psum(jnp.exp(exponents - maximum).sum(), axis_name)
    # Twice a choice, so that the branch that is not taken has a finite gradient.
    log_mean = maximum + jnp.log(jnp.where(pairs > 0, total, 1.0) / jnp.maximum(pairs, 1))
    return share(jnp.where(pairs > 0, log_mean, 0.0), axis_name=axis_name)
