"""Other views of a data set: some of its examples, or all of them transformed once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xmodal_jax.data.arrays import ArraySource, estimate_nbytes, materialise
from xmodal_jax.data.source import RawBatch, Source


class _View:
    """What a view tells of its source as it is."""

    source: Source

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.source.modalities

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names

    @property
    def class_prompts(self) -> list[list[str]] | None:
        return getattr(self.source, "class_prompts", None)

    @property
    def speaker_names(self) -> tuple[str, ...] | None:
        return getattr(self.source, "speaker_names", None)


_BY_EXAMPLE = ("meanings", "captions")
"""What some data sets can tell of examples besides their batches, by their indices."""


class Subset(_View):
    """The examples ``indices`` of a source, in that order."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, np.asarray(indices, np.int64)
        if not self.indices.size:
            raise ValueError("a subset needs at least one example")

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: np.ndarray) -> RawBatch:
        return self.source.batch(self.indices[np.asarray(indices, np.int64)])

    def __getattr__(self, name: str):
        if name not in _BY_EXAMPLE:
            raise AttributeError(name)
        tell = getattr(self.source, name)
        return lambda indices, *args: tell(self.indices[np.asarray(indices, np.int64)], *args)


class Changed(_View):
    """A source whose batches go through ``change`` as they are read."""

    def __init__(self, source: Source, change: Callable[[RawBatch], RawBatch]):
        self.source, self.change = source, change

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: np.ndarray) -> RawBatch:
        return self.change(self.source.batch(indices))


def hold_out(source: Source, count: int, *, seed: int = 0) -> tuple[Subset, Subset]:
    """``(the rest, count examples)``, drawn at random from the seed, each part in the source's order."""
    if not 0 < count < len(source):
        raise ValueError(f"cannot hold out {count} of {len(source)} examples")
    order = np.random.default_rng(seed).permutation(len(source))
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))


def in_memory(
    source: Source,
    transform: Callable[[RawBatch], RawBatch] | None = None,
    *,
    limit: int,
    drop: tuple[str, ...] = (),
    progress: bool = True,
) -> ArraySource | None:
    """The whole source read and transformed once, or None where it would take more than ``limit`` bytes.

    ``drop``: fields to leave out, such as those that training does not need.
    """
    if estimate_nbytes(source) > limit:
        return None
    read = materialise(source, progress=progress)
    arrays = read.arrays if transform is None else transform(read.arrays)
    return ArraySource({k: v for k, v in arrays.items() if k not in drop}, source.class_names)
