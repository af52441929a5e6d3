"""Encoding a large batch in chunks, with the loss and the gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree, Shaped

from xmodal_jax.core.accumulation import split_examples


def chunked(encode: Callable[[PyTree, PyTree], PyTree], chunks: int) -> Callable[[PyTree, PyTree], PyTree]:
    """``encode(params, batch)`` computed one chunk of the batch at a time, in the forward and the backward pass.

    Only one chunk's activations are in memory at any time, for the price of one more forward pass. The result is
    unchanged as long as ``encode`` treats every example by itself: no batch statistics, and random keys per example,
    as part of ``batch``.

    Args:
      encode: from parameters and a pytree of arrays ``[B, ...]`` to a pytree of arrays ``[B, ...]``.
      chunks: number of equal chunks; it must divide B.
    Returns:
      A function with the arguments and the result of ``encode``.
    Raises:
      ValueError: when called with a batch that ``chunks`` does not divide.

    Example:
      >>> import jax.numpy as jnp
      >>> from xmodal_jax.losses import chunked
      >>> encode = lambda params, x: jnp.tanh(x @ params)
      >>> chunked(encode, chunks=4)(jnp.ones((3, 2)), jnp.ones((8, 3))).shape
      (8, 2)
    """

    def encode_in_chunks(params, batch):
        """``encode(params, batch)``, one chunk after the other."""
        size = jax.tree.leaves(batch)[0].shape[0]
        if chunks < 1 or size % chunks:
            raise ValueError(f"a batch of {size} does not split into {chunks} equal chunks")
        # Arrays [B, ...] become [chunks, B / chunks, ...], and back.
        split = lambda x: split_examples(x, chunks)
        join = lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[2:])
        # The backward pass recomputes a chunk's activations instead of keeping those of all chunks.
        encode_chunk = jax.checkpoint(encode, prevent_cse=False)
        _, out = jax.lax.scan(
            lambda _, chunk: (None, encode_chunk(params, chunk)), None, jax.tree.map(split, batch)
        )
        return jax.tree.map(join, out)

    return encode_in_chunks


def gradient_cache(
    encode: Callable[[PyTree, PyTree], PyTree],
    loss: Callable[[PyTree, PyTree], Any],
    params: PyTree[Shaped[Array, "..."]],
    batch: PyTree,
    chunks: int,
    *,
    has_aux: bool = False,
) -> tuple[Any, PyTree]:
    """Value and gradient of ``loss(params, encode(params, batch))``, encoding in chunks.

    The loss gets the embeddings of the whole batch, so that the number of negatives does not depend on how many
    examples the encoder can hold. Value and gradient are those of the direct computation. Where the matrix of logits is
    large too, combine it with ``info_nce(..., implementation="tiled")``.

    Args:
      encode: as for :func:`chunked`.
      loss: from parameters (a learned temperature is one) and embeddings to a scalar, or ``(scalar, aux)``.
      params: the parameters to differentiate with respect to.
      batch: pytree of arrays ``[B, ...]``.
      chunks: number of equal chunks; it must divide B.
      has_aux: whether ``loss`` returns ``(scalar, aux)``.
    Returns:
      ``(value, gradient)``, or ``((value, aux), gradient)``, as from ``jax.value_and_grad``.
    Raises:
      ValueError: if ``chunks`` does not divide the batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from xmodal_jax.losses import gradient_cache, info_nce
      >>> batch = dict(zip("ab", jax.random.normal(jax.random.key(0), (2, 8, 3)), strict=True))
      >>> encode = lambda params, batch: {"a": batch["a"] @ params, "b": batch["b"]}
      >>> loss = lambda params, out: info_nce(out["a"], out["b"], temperature=0.1, normalize=True).mean()
      >>> value, gradient = gradient_cache(encode, loss, jnp.eye(3), batch, chunks=4)

    References:
      Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (GradCache),
      arXiv:2101.06983, section 3.
    """
    encode_in_chunks = chunked(encode, chunks)
    whole_loss = lambda p: loss(p, encode_in_chunks(p, batch))
    return jax.value_and_grad(whole_loss, has_aux=has_aux)(params)
