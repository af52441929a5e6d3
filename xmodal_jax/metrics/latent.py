"""The geometry of a shared embedding space. All embeddings are normalised to unit length first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.similarity import l2_normalize, squared_distances


def modality_gap(a: Float[Array, "n dim"], b: Float[Array, "m dim"]) -> Float[Array, ""]:
    """Distance between the means of two modalities, 0 to 2 (Liang et al. 2022, Mind the Gap, section 4.1)."""
    return jnp.linalg.norm(l2_normalize(a).mean(axis=0) - l2_normalize(b).mean(axis=0))


def alignment(a: Float[Array, "n dim"], b: Float[Array, "n dim"], *, power: float = 2.0) -> Float[Array, ""]:
    """``mean_i ||a_i - b_i||^power`` of the pairs; 0 is best (Wang and Isola 2020, eq. 4)."""
    return (jnp.linalg.norm(l2_normalize(a) - l2_normalize(b), axis=1) ** power).mean()


def uniformity(x: Float[Array, "n dim"], *, scale: float = 2.0, chunk: int = 1024) -> Float[Array, ""]:
    """``log mean_{i != j} exp(-scale ||x_i - x_j||^2)``, in nats (Wang and Isola 2020, eq. 5).

    0 where all embeddings are alike, and about ``-2 scale`` where they are spread evenly in many dimensions.
    Works on ``chunk`` rows at a time; needs two examples.

    Raises:
      ValueError: with fewer.
    """
    size = x.shape[0]
    if size < 2:
        raise ValueError("uniformity needs two examples")
    x = l2_normalize(x)

    def row_sum(row):
        square = squared_distances(row[0][None, :], x)[0]
        return jnp.where(jnp.arange(size) == row[1], 0.0, jnp.exp(-scale * square)).sum()

    sums = jax.lax.map(row_sum, (x, jnp.arange(size)), batch_size=min(chunk, size))
    return jnp.log(sums.mean() / (size - 1))
