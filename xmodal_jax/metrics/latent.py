"""The geometry of a shared embedding space: modality gap, alignment and uniformity, of embeddings of unit length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.similarity import l2_normalize, squared_distances


@check_shapes
def modality_gap(a: Float[Array, "n dim"], b: Float[Array, "m dim"]) -> Float[Array, ""]:
    """The modality gap: distance between the mean embeddings of two modalities, 0 to 2.

    Args:
      a, b: embeddings of the two modalities, of any length; they are normalized first.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.metrics import modality_gap
      >>> a = jnp.ones((5, 3))
      >>> round(float(modality_gap(a, -a)), 4)
      2.0

    References:
      Liang et al. 2022, Mind the Gap, arXiv:2203.02053, section 4.1.
    """
    return jnp.linalg.norm(l2_normalize(a).mean(axis=0) - l2_normalize(b).mean(axis=0))


@check_shapes
def alignment(a: Float[Array, "n dim"], b: Float[Array, "n dim"], *, power: float = 2.0) -> Float[Array, ""]:
    """How near the two embeddings of a pair lie: ``mean_i ||a_i - b_i||^power``; 0 is best.

    Args:
      a, b: paired embeddings of any length; they are normalized first.
      power: exponent of the distance.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.metrics import alignment
      >>> a = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> float(alignment(a, 3.0 * a))
      0.0

    References:
      Wang and Isola 2020, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
      Hypersphere, arXiv:2005.10242, eq. 4.
    """
    return (jnp.linalg.norm(l2_normalize(a) - l2_normalize(b), axis=1) ** power).mean()


@check_shapes
def uniformity(x: Float[Array, "n dim"], *, scale: float = 2.0, chunk: int = 1024) -> Float[Array, ""]:
    """How evenly embeddings cover the sphere: ``log mean_{i != j} exp(-scale ||x_i - x_j||^2)``, in nats.

    It is 0 if all embeddings are equal, and about ``-2 scale`` if they are spread evenly in many dimensions.

    Args:
      x: embeddings of any length; they are normalized first.
      scale: inverse width of the Gaussian potential.
      chunk: examples whose distances are computed at a time; limits the memory, not the result.
    Raises:
      ValueError: with fewer than two examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.metrics import uniformity
      >>> round(float(uniformity(jnp.array([[1.0, 0.0], [-1.0, 0.0]]))), 4)  # opposite: distance 2
      -8.0

    References:
      Wang and Isola 2020, arXiv:2005.10242, eq. 5.
    """
    size = x.shape[0]
    if size < 2:
        raise ValueError("uniformity needs two examples")
    x = l2_normalize(x)

    def sum_over_others(example):
        """``sum_j exp(-scale ||x_i - x_j||^2)`` over all j but i."""
        embedding, index = example
        square = squared_distances(embedding[None, :], x)[0]
        return jnp.where(jnp.arange(size) == index, 0.0, jnp.exp(-scale * square)).sum()

    sums = jax.lax.map(sum_over_others, (x, jnp.arange(size)), batch_size=min(chunk, size))
    return jnp.log(sums.mean() / (size - 1))
