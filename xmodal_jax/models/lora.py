"""Low-rank adapters (LoRA): a method whose frozen kernels learn a small difference.

Hu et al. 2021, arXiv:2106.09685, sec. 4.1: ``W = W_0 + (alpha / rank) A B``, where ``A [in, rank]`` starts at random
and ``B [rank, out]`` at zero, so that training begins at ``W_0``. Query, key and value, one matrix here, share ``A``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmodal_jax.core import trees
from xmodal_jax.core.parts import Basic
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import Batch, Key, Method, Params

NAME = "lora"
"""Where the adapters lie in a method's parameters, by the path of what they change."""


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters."""

    rank: Basic[int] = 0
    """Rank of the low-rank adapters in the pretrained encoders, which are then frozen; 0: no adapters."""
    alpha: float = 16.0
    """Scale of an adapter: it adds ``alpha / rank`` times ``A B`` to its kernel."""
    targets: str = r"(attention/(qkv|query|key_value|out)|mlp/(up|gate|down))/kernel$"
    """Regular expression of the kernels in the pretrained encoders that get an adapter."""

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(
                f"a LoRA's rank is 0 or more and its alpha above 0, got {self.rank} and {self.alpha}"
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"LoRA's targets {self.targets!r} are no regular expression: {error}") from error


def _sizes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """Axes before the matrix (layers that are scanned), and what goes in and out."""
    before = 1 if "/layers/" in path else 0
    inputs = 2 if path.endswith("attention/out/kernel") else 1  # heads and their size
    rest = shape[before:]
    if len(rest) <= inputs:
        raise ValueError(f"{path} of shape {list(shape)} is no matrix: choose other LoRA targets")
    return shape[:before], math.prod(rest[:inputs]), math.prod(rest[inputs:])


def adapt(params: Params, adapters: Params, config: LoRA) -> Params:
    """``params`` with the difference of each adapter added: what a trained model is without adapters."""
    leaves, halves = trees.flat(params), trees.flat(adapters)
    for path in (name.removesuffix("/a") for name in halves if name.endswith("/a")):
        kernel = leaves[path]
        difference = jnp.einsum("...ir,...ro->...io", halves[f"{path}/a"], halves[f"{path}/b"])
        leaves[path] = kernel + (config.alpha / config.rank) * difference.reshape(kernel.shape)
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


def split(params: Params) -> tuple[Params, Params]:
    """Parameters without adapters, and the adapters."""
    return {name: part for name, part in params.items() if name != NAME}, params[NAME]


def with_lora(method: Method, config: LoRA, paths: Sequence[str]) -> Method:
    """``method`` with adapters on the kernels that match ``config.targets``, among the parameters below ``paths``.

    They are parameters of their own, ``a`` and ``b`` under ``params["lora"]`` and the path of the kernel; which others
    learn is the optimizer's business. ``finalize_params`` adds them up: ``predict`` is that of ``method``.

    Raises:
      ValueError: no kernel is a target.
    """
    if not config.rank:
        return method

    def draw(key: Key, path: str, kernel: Array) -> dict[str, Array]:
        before, inputs, outputs = _sizes(path, kernel.shape)
        a = jax.random.normal(fold_in_name(key, path), (*before, inputs, config.rank)) / math.sqrt(inputs)
        return {f"{path}/a": a, f"{path}/b": jnp.zeros((*before, config.rank, outputs))}

    def init(key: Key, batch: Batch) -> Params:
        params = method.init(key, batch)
        chosen = {
            path: leaf
            for path, leaf in trees.flat(params).items()
            if any(path.startswith(f"{prefix}/") for prefix in paths) and re.search(config.targets, path)
        }
        if not chosen:
            raise ValueError(f"LoRA's targets {config.targets!r} match no parameter of {', '.join(paths)}")
        own = fold_in_name(key, NAME)
        halves = [draw(own, path, kernel) for path, kernel in chosen.items()]
        return {**params, NAME: trees.nested({name: half for pair in halves for name, half in pair.items()})}

    def loss(params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        return method.loss(adapt(*split(params), config), batch, key, axis_name=axis_name)

    def load_pretrained(params: Params, batch: Batch) -> Params:
        own, adapters = split(params)
        return {**method.load_pretrained(own, batch), NAME: adapters}

    return method._replace(
        init=init,
        loss=loss,
        load_pretrained=None if method.load_pretrained is None else load_pretrained,
        finalize_params=lambda params: adapt(*split(params), config),
    )
