"""Spectral normalisation of any network's parameters, without a change to the network."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmodal_jax.core import trees
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import Key, Params

WEIGHTS = r"(kernel|embedding)$"
"""Pattern of the paths of the parameters that are normalised."""


def _matrix(weight):
    """A weight as a matrix ``[inputs, outputs]``."""
    return weight.reshape(-1, weight.shape[-1])


def spectral_vectors(key: Key, params: Params) -> dict[str, Array]:
    """A random unit vector ``[outputs]`` for every weight matrix, by its path, to start the power iteration from.

    Weight matrices are the parameters whose path matches `WEIGHTS` and that have two axes or more.
    """
    vectors = {}
    for name, leaf in zip(trees.leaf_names(params), jax.tree.leaves(params), strict=True):
        if re.search(WEIGHTS, name) and leaf.ndim > 1:
            vectors[name] = jax.random.normal(fold_in_name(key, name), (leaf.shape[-1],))
    return {name: u / jnp.linalg.norm(u) for name, u in vectors.items()}


def spectral_normalize(
    params: Params, vectors: dict[str, Array], *, iterations: int = 1
) -> tuple[Params, dict[str, Array]]:
    r"""``(params, vectors)``: every weight W divided by its largest singular value, and the next vectors u.

    ``vectors`` holds a unit vector u for each weight to normalise, by the path of the weight.

    .. math:: u \leftarrow W^T W u / \|W^T W u\|, \quad v = W u / \|W u\|, \quad W / (v^T W u)

    with the weight as a matrix ``[inputs, outputs]`` (Miyato et al. 2018, arXiv:1802.05957, algorithm 1, except that v
    is computed after u, so that u alone reproduces the estimate). The estimated singular value has a gradient by W, the
    vectors have none. One iteration per step is enough, as weights change slowly; 0 iterations keep the vectors, for
    evaluation.
    """
    next_vectors = {}
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x), 1e-12)

    def normalize(name, weight):
        """``weight / sigma``, if it is one of the normalised parameters; records its next vector."""
        if name not in vectors:
            return weight
        matrix, u = _matrix(weight), jax.lax.stop_gradient(vectors[name])  # [inputs, outputs], [outputs]
        fixed_matrix = jax.lax.stop_gradient(matrix)
        for _ in range(iterations):
            u = unit(fixed_matrix.T @ (fixed_matrix @ u))
        next_vectors[name] = u
        v = unit(fixed_matrix @ u)
        sigma = jnp.vdot(v, matrix @ u)  # the largest singular value, with a gradient
        return weight / sigma

    return trees.map_with_name(normalize, params), next_vectors
