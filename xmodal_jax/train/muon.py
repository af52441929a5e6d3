"""Muon over the parameters of Flax modules: which of them are matrices, and of which axes."""

from __future__ import annotations

import re

import optax
from optax.contrib import MuonDimensionNumbers, muon

from xmodal_jax.core import trees
from xmodal_jax.types import Params


def matrix_axes(name: str, rank: int) -> MuonDimensionNumbers | None:
    """The input and output axes of a parameter that is a matrix (a convolution is one of all its window's inputs); None
    for vectors and for tables, such as embeddings, of which a batch uses some rows only.

    Axes that are neither count several matrices: query, key and value; the layers of a scanned transformer.
    """
    *_, layer, leaf = ["", *name.split("/")]
    axes = tuple(range(1 if re.search(r"(^|/)layers/", name) else 0, rank))
    if leaf != "kernel" or len(axes) < 2:
        return None
    if layer in ("qkv", "key_value"):
        return MuonDimensionNumbers(axes[:1], axes[2:])
    if layer == "query":
        return MuonDimensionNumbers(axes[:1], axes[1:])
    return MuonDimensionNumbers(axes[:-1], axes[-1:])


def scale_by_muon(*, b1: float, b2: float) -> optax.GradientTransformation:
    """Orthogonalised momentum (Jordan et al. 2024) for matrices, Adam's rule for the rest.

    The elements of a matrix's update have a root mean square of 0.2, about that of Adam's, so that one learning rate
    serves both (Liu et al. 2025, arXiv:2502.16982, eq. 4).
    """

    def axes(params: Params) -> Params:
        return trees.map_with_name(lambda name, x: matrix_axes(name, x.ndim), params)

    # Muon also applies a learning rate; at 1 it is nothing but the sign.
    rule = muon(1.0, beta=b1, adam_b1=b1, adam_b2=b2, consistent_rms=0.2, muon_weight_dimension_numbers=axes)
    return optax.chain(rule, optax.scale(-1.0))
