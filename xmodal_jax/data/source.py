"""What every data set looks like to the rest: random access, a batch of indices at a time."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

RawBatch = dict[str, Any]
"""A batch as NumPy arrays, before tokenization.

As `xmodal_jax.types.Batch`, with ``caption``: an object array ``[B]`` of str in place of ``text`` (``caption_NAME`` in
place of ``text_NAME``). Fields other than
those (a data set's own, such as factors) are arrays with the example as first axis.
"""


@runtime_checkable
class Source(Protocol):
    """A data set.

    ``modalities``: what its batches hold of text, image, audio, video and others of these kinds, named ``KIND_NAME``.
    ``batch(indices)``: those examples, in that order, the same whoever asks and however often (randomness comes from
    the index). ``class_names``: the meaning of ``label``, or None.
    """

    modalities: tuple[str, ...]
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> RawBatch: ...


def read_fields(source: Source, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The fields ``names`` of all examples, ``[N]`` each; those that the batches do not hold are left out."""
    parts = [source.batch(r) for r in np.array_split(np.arange(len(source)), -(-len(source) // 500))]
    return {k: np.concatenate([part[k] for part in parts]) for k in names if k in parts[0]}


def presence_of(source: Source, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Which of the examples (None: all) have which modality, bool ``[N]`` for each.

    Cheap where the source has a method ``presence(indices)`` of this meaning, or never says that anything is missing;
    else the examples are read.
    """
    indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    if hasattr(source, "presence"):
        return source.presence(indices)
    complete = np.ones(len(indices), bool)
    # Whether batches say what is present does not change from batch to batch.
    if not len(indices) or "present" not in source.batch(indices[:1]):
        return dict.fromkeys(source.modalities, complete)
    parts = [source.batch(part)["present"] for part in np.array_split(indices, -(-len(indices) // 500))]
    held = {m: np.concatenate([part[m] for part in parts]) for m in parts[0]}
    return {m: held.get(m, complete) for m in source.modalities}
