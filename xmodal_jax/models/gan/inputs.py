"""Inputs of a GAN's networks: images with features of frozen networks, and the frozen networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from xmodal_jax.types import Params


class ImageInputs(NamedTuple):
    """Images, with what a frozen network extracts from them."""

    image: Float[Array, "batch height width channels"]
    tokens: Float[Array, "batch length dim"] | None = None
    """Tokens of a `FrozenCaptioner` or a `FrozenEncoder`; None: the images alone are used."""
    word_attention: Float[Array, "batch words length"] | None = None
    """The captioner's attention to ``tokens`` for each word of the caption; None: it guides nothing."""


class FrozenCaptioner(NamedTuple):
    """A trained captioner of images, whose parameters do not change."""

    encode: Callable[..., jax.Array]
    """``encode(params, pixels) -> [B, N, D]``, from `models.seq2seq.make_captioner`."""
    cross_entropy: Callable[..., jax.Array]
    """``cross_entropy(params, tokens, ids, mask) -> [B]``, from the same."""
    attention: Callable[..., jax.Array]
    """``attention(params, tokens, ids) -> [B, length, N]``, from the same."""
    params: Params


class FrozenEncoder(NamedTuple):
    """A trained image encoder, whose parameters do not change."""

    encode: Callable[..., jax.Array]
    """``encode(params, pixels) -> [B, N, D]``."""
    params: Params
