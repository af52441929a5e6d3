"""What every data set looks like to the rest: random access, a batch of indices at a time."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

RawBatch = dict[str, Any]
"""A batch as NumPy arrays, before tokenization.

As `xmodal_jax.types.Batch`, with ``caption``: an object array ``[B]`` of str in place of ``text``. Fields other than
those (a data set's own, such as factors) are arrays with the example as first axis.
"""


@runtime_checkable
class Source(Protocol):
    """A data set.

    ``modalities``: which of text, image, audio, video its batches hold. ``batch(indices)``: those examples, in that
    order, the same whoever asks and however often (randomness comes from the index). ``class_names``: the meaning of
    ``label``, or None.
    """

    modalities: tuple[str, ...]
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> RawBatch: ...


def labels_of(source: Source, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The fields ``names`` of all examples, ``[N]`` each; those that the batches do not hold are left out."""
    parts = [source.batch(r) for r in np.array_split(np.arange(len(source)), -(-len(source) // 500))]
    return {k: np.concatenate([part[k] for part in parts]) for k in names if k in parts[0]}
