"""Random keys by name and by example, so that the number of devices never changes what is drawn."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from jaxtyping import Key as KeyArray

from xmodal_jax.types import Batch, ExampleKeys, Key


def fold_in_name(key: KeyArray[Array, "*batch"], name: str) -> KeyArray[Array, "*batch"]:
    """A random key derived from ``key`` for the use that ``name`` names, independent of the order of derivations.

    ``key`` may be an array of keys ``[*batch]``; the result then has the same shape.
    """
    data = jnp.uint32(zlib.crc32(name.encode()))
    fold = jax.random.fold_in
    for _ in range(key.ndim):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(key, data)


def named_keys(key: Key, *names: str) -> tuple[Key, ...]:
    """One key for each name, as `fold_in_name` makes it."""
    return tuple(fold_in_name(key, name) for name in names)


def example_keys(key: Key, index: Int[Array, "batch"]) -> ExampleKeys:
    """One key for each example, ``[B]``, from its index in the global batch: the same on any number of devices."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def batch_index(batch: Batch) -> Int[Array, "batch"] | Int[np.ndarray, "batch"]:
    """The batch's field ``index``: each example's number in the stream of all examples.

    Raises:
      ValueError: the batch has no index.
    """
    if "index" not in batch:
        raise ValueError(
            'the batch has no "index", int32 [B]: the number of each example in the stream of all batches, from which '
            "its random numbers are drawn; the loader adds it, and by hand it is np.arange(B, dtype=np.int32) for the "
            f"first batch (fields: {', '.join(sorted(batch))})"
        )
    return batch["index"]


def batch_keys(key: Key, batch: Batch) -> ExampleKeys:
    """One key for each example of a batch, by its field ``index``; see `example_keys` and `batch_index`."""
    return example_keys(key, batch_index(batch))


def normal_like(keys: ExampleKeys, x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """Standard normal noise of the shape of ``x``, drawn from one key for each example."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
