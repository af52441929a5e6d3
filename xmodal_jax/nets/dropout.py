"""Dropout and stochastic depth with random keys per example, so that splitting the batch does not change the draws."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.types import ExampleKeys


def fold_in_layer(keys: ExampleKeys | None, layer) -> ExampleKeys | None:
    """One key per example for one layer of a stack, by the layer's number; None stays None (no dropout).

    The stack has to call it, because scanned layers share one module path, by which dropout would otherwise tell them
    apart.
    """
    return None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, layer)


def random_stream_name(path: tuple[str, ...]) -> str:
    """The name of a module's random stream: its path without layer numbers (``layers_3`` becomes ``layers``)."""
    return "/".join(re.sub(r"^layers_\d+$", "layers", part) for part in path)


def _keep(keys: ExampleKeys, rate: float, shape: tuple[int, ...]):
    """``(keep, probability)``: which elements ``[B, *shape]`` are kept, and the exact probability of keeping one.

    Each element uses 16 random bits, so that the rate is a multiple of 2^-16. ``keys``: one per example.
    """
    threshold = round(rate * 65536)
    bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint16))(keys)
    return bits >= threshold, 1.0 - threshold / 65536


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"a dropout rate lies in [0, 1), got {rate}")


class Dropout(nn.Module):
    """Dropout: sets elements to zero with probability ``rate`` and scales the others, so that the mean is the same.

    The rate is rounded to a multiple of 2^-16. ``keys=None`` means evaluation: the identity. Srivastava et al. 2014,
    JMLR 15.

    Raises:
      ValueError: ``rate`` is not in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *shape"], keys: ExampleKeys | None
    ) -> Float[Array, "batch *shape"]:
        """``x`` with random elements set to 0 and the others scaled up; ``x`` itself without ``keys`` (evaluation)."""
        _check_rate(self.rate)
        if keys is None or self.rate == 0.0:
            return x
        keep, probability = _keep(fold_in_name(keys, random_stream_name(self.path)), self.rate, x.shape[1:])
        return jnp.where(keep, x / probability, jnp.zeros_like(x))


class DropPath(nn.Module):
    """Stochastic depth: sets the whole residual branch of an example to zero with probability ``rate``.

    ``keys=None`` means evaluation: the identity. Huang et al. 2016, arXiv:1603.09382.

    Raises:
      ValueError: ``rate`` is not in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *shape"], keys: ExampleKeys | None
    ) -> Float[Array, "batch *shape"]:
        """``x`` with random examples set to 0 and the others scaled up; ``x`` itself without ``keys`` (evaluation)."""
        _check_rate(self.rate)
        if keys is None or self.rate == 0.0:
            return x
        shape = (1,) * (x.ndim - 1)  # one random number for all elements of an example
        keep, probability = _keep(fold_in_name(keys, random_stream_name(self.path)), self.rate, shape)
        return jnp.where(keep, x / probability, jnp.zeros_like(x))


UNKNOWN_ID = 3
"""The id of the token that stands for unknown words, of every tokenizer that this library trains; smaller ids are
padding, begin and end."""


class TokenDropout(nn.Module):
    """Word dropout: replaces token ids by `UNKNOWN_ID` with probability ``rate``, but not padding, begin and end.

    ``keys=None`` means evaluation: the identity. A text encoder learns not to rely on single words, and what an unknown
    word means: nothing. Without it the unknown token keeps its random embedding where every word of the training texts
    has an id. Iyyer et al. 2015, ACL, section 4; Bowman et al. 2016, arXiv:1511.06349, section 3.

    Raises:
      ValueError: ``rate`` is not in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch length"], keys: ExampleKeys | None
    ) -> Int[Array, "batch length"]:
        """``ids`` with random words replaced; ``ids`` themselves without ``keys`` (evaluation)."""
        _check_rate(self.rate)
        if keys is None or self.rate == 0.0:
            return ids
        keep, _ = _keep(fold_in_name(keys, random_stream_name(self.path)), self.rate, ids.shape[1:])
        return jnp.where(keep | (ids < UNKNOWN_ID), ids, UNKNOWN_ID)
