"""Low-rank adapters (LoRA): frozen kernels with a low-rank difference that is trained.

Hu et al. 2021, arXiv:2106.09685, sec. 4.1: ``W = W_0 + (alpha / rank) A B``, where ``A [in, rank]`` starts at random
and ``B [rank, out]`` at zero, so that training begins at ``W_0``. Query, key and value, one matrix here, share ``A``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmodal_jax.core import trees
from xmodal_jax.core.nesting import nested
from xmodal_jax.core.parts import Basic
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import Batch, Key, Method, Params

ADAPTERS = "lora"
"""Name of the adapters among a method's parameters; below it they have the paths of the kernels that they change."""


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters."""

    rank: Basic[int] = 0
    """Rank of the low-rank adapters in the pretrained encoders, which are then frozen; 0: no adapters."""
    alpha: float = 16.0
    """Scale of the low-rank adapters: each adds ``alpha / rank`` times ``A B`` to the kernel of its layer."""
    targets: str = r"(attention/(qkv|query|key_value|out)|mlp/(up|gate|down))/kernel$"
    """Regular expression over parameter paths: the kernels of the pretrained encoders that get a low-rank adapter."""

    def __post_init__(self):
        """Checks the rank, alpha and the regular expression."""
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(
                f"a LoRA's rank is 0 or more and its alpha above 0, got {self.rank} and {self.alpha}"
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"LoRA's targets {self.targets!r} are no regular expression: {error}") from error


def _matrix_sizes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """``(leading axes, inputs, outputs)``: a kernel's shape, seen as that of a matrix ``[inputs, outputs]``.

    The kernels of scanned layers, and of the networks of several modalities, are stacked along leading axes
    (`core.trees.stack_rank`). The kernel of attention's output projection has two input axes, ``[heads, head size,
    outputs]``; all others have one.
    """
    leading_axes = trees.stack_rank(path)
    input_axes = 2 if path.endswith("attention/out/kernel") else 1
    matrix_shape = shape[leading_axes:]
    if len(matrix_shape) <= input_axes:
        raise ValueError(f"{path} of shape {list(shape)} is no matrix: choose other LoRA targets")
    return shape[:leading_axes], math.prod(matrix_shape[:input_axes]), math.prod(matrix_shape[input_axes:])


def _init_adapter(key: Key, path: str, kernel: Array, rank: int) -> dict[str, Array]:
    """The initial factors ``A`` (random) and ``B`` (zero) of the kernel at ``path``, as ``path/a`` and ``path/b``.

    The kernels of scanned layers are stacked along a leading axis, and so are their factors.
    """
    leading, inputs, outputs = _matrix_sizes(path, kernel.shape)
    a = jax.random.normal(fold_in_name(key, path), (*leading, inputs, rank)) / math.sqrt(inputs)
    return {f"{path}/a": a, f"{path}/b": jnp.zeros((*leading, rank, outputs))}


def merge_adapters(params: Params, adapters: Params, config: LoRA) -> Params:
    """``params`` with ``(alpha / rank) A B`` of each adapter added to its kernel: the trained model without adapters.

    ``adapters`` holds the factors ``A [inputs, rank]`` and ``B [rank, outputs]`` of the kernel at ``path`` under
    ``path/a`` and ``path/b``.
    """
    leaves, factors = trees.flat(params), trees.flat(adapters)
    kernel_paths = [name.removesuffix("/a") for name in factors if name.endswith("/a")]
    for path in kernel_paths:
        kernel = leaves[path]
        # A B, [..., inputs, outputs]; "..." is the axis of stacked layers, if there is one.
        # (Some kernels have more axes, such as attention's output projection [heads, head size, outputs].)
        difference = jnp.einsum("...ir,...ro->...io", factors[f"{path}/a"], factors[f"{path}/b"])
        leaves[path] = kernel + (config.alpha / config.rank) * difference.reshape(kernel.shape)
    # `trees.flat` lists the leaves in the order of the tree.
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


def split_adapters(params: Params) -> tuple[Params, Params]:
    """The parameters without adapters, and the adapters."""
    return {name: part for name, part in params.items() if name != ADAPTERS}, params[ADAPTERS]


def with_lora(method: Method, config: LoRA, paths: Sequence[str]) -> Method:
    """``method`` with low-rank adapters (LoRA) on the kernels that match ``config.targets``.

    The adapters are parameters ``a`` and ``b`` under ``params["lora"]`` and the path of their kernel. The optimizer
    decides which of the other parameters are trained. ``finalize_params`` merges the adapters into the kernels, so
    that ``predict`` is the same function as in ``method``.

    Args:
      method: the method without adapters.
      config: options of LoRA; rank 0 returns the method unchanged.
      paths: parameter paths of the encoders; only kernels below these paths get adapters.

    Raises:
      ValueError: no kernel matches (at initialisation).
    """
    if not config.rank:
        return method

    def init(key: Key, batch: Batch) -> Params:
        """The initial parameters of ``method``, with adapters under `ADAPTERS` for the kernels below the encoders'
        ``paths`` that match ``config.targets``. ``B`` is 0, so that adapters change nothing at first."""
        params = method.init(key, batch)
        kernels = {
            path: leaf
            for path, leaf in trees.flat(params).items()
            if any(path.startswith(f"{prefix}/") for prefix in paths) and re.search(config.targets, path)
        }
        if not kernels:
            raise ValueError(f"LoRA's targets {config.targets!r} match no parameter of {', '.join(paths)}")
        adapter_key = fold_in_name(key, ADAPTERS)
        adapters: dict[str, Array] = {}
        for path, kernel in kernels.items():
            adapters |= _init_adapter(adapter_key, path, kernel, config.rank)
        return {**params, ADAPTERS: nested(adapters)}

    def loss(params: Params, batch: Batch, key: Key, **options: Any):
        return method.loss(merge_adapters(*split_adapters(params), config), batch, key, **options)

    def load_pretrained(params: Params, batch: Batch) -> Params:
        """Loads the pretrained parameters of ``method`` and keeps the adapters."""
        base_params, adapters = split_adapters(params)
        return {**method.load_pretrained(base_params, batch), ADAPTERS: adapters}

    return method._replace(
        init=init,
        loss=loss,
        load_pretrained=None if method.load_pretrained is None else load_pretrained,
        finalize_params=lambda params: merge_adapters(*split_adapters(params), config),
    )
