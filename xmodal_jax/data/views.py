"""Other views of a data set: some of its examples, some of their modalities, or all of them transformed once and kept
in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xmodal_jax.data.shapes.scenes import uniform
from xmodal_jax.data.source import RawBatch, Source, presence_of, read_fields
from xmodal_jax.data.sources.arrays import ArraySource, estimate_nbytes, materialise
from xmodal_jax.types import kind_of


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

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Of a task's examples; an AttributeError where the source has none."""
        return self.source.targets


_BY_EXAMPLE = ("meanings", "captions", "class_labels", "factors")
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

    def presence(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `source.presence_of`."""
        return presence_of(self.source, self.indices[np.asarray(indices, np.int64)])

    def __getattr__(self, name: str):
        if name not in _BY_EXAMPLE:
            raise AttributeError(name)
        tell = getattr(self.source, name)
        return lambda indices, *args: tell(self.indices[np.asarray(indices, np.int64)], *args)


class TransformedSource(_View):
    """A source whose batches go through ``change`` as they are read."""

    def __init__(self, source: Source, change: Callable[[RawBatch], RawBatch]):
        self.source, self.change = source, change

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: np.ndarray) -> RawBatch:
        return self.change(self.source.batch(indices))


class IncompleteSource(_View):
    """A source whose examples lack some of their modalities.

    Each of ``modalities`` (None: all) is missing with probability ``share``, independently of the others and drawn from
    (seed, modality, index); an example that would lack all it has keeps one of them at random, so that of M modalities
    each is missing in ``share - share^M / M`` of the examples. What the source lacks is missing besides.

    Batches say so in ``present``, and hold nothing of what is missing: zeros, ``""`` for captions, False under the
    masks. Fields that are no modality (labels, factors, speakers) stay.

    Raises:
      ValueError: ``share`` outside 0..1, a modality that the source does not have, or a source of only one.
    """

    def __init__(self, source: Source, *, share: float, seed: int, modalities: tuple[str, ...] | None = None):
        if not 0 <= share <= 1:
            raise ValueError(f"the share of missing modalities must lie in 0..1, got {share}")
        unknown = [m for m in modalities or () if m not in source.modalities]
        if unknown or modalities == ():
            raise ValueError(f"modalities must be some of {', '.join(source.modalities)}; got {modalities!r}")
        if len(source.modalities) < 2:
            raise ValueError(
                f"nothing can be missing of data with one modality ({', '.join(source.modalities)}): each example "
                "keeps one. Set the share of missing modalities to 0, or read more modalities"
            )
        self.source, self.share, self.seed = source, share, seed
        self._lacking = tuple(source.modalities if modalities is None else modalities)

    def __len__(self) -> int:
        return len(self.source)

    def _drawn(self, held: dict[str, np.ndarray], indices: np.ndarray) -> dict[str, np.ndarray]:
        """What is left of what the source has."""
        draw = lambda what, m: uniform(self.seed, "incomplete", indices, f"{what}/{m}")
        left = {
            m: there & (draw("missing", m) >= self.share) if m in self._lacking else there
            for m, there in held.items()
        }
        bare = ~np.any(list(left.values()), axis=0)
        # Where the source has nothing either, all are -1 and none is kept.
        order = np.stack([np.where(there, draw("kept", m), -1.0) for m, there in held.items()])
        kept = np.argmax(order, axis=0)
        return {m: left[m] | (bare & (kept == k) & held[m]) for k, m in enumerate(held)}

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Which of the examples (None: all) have which modality, bool ``[N]`` for each; nothing else is read, unless
        the source can only tell by its batches (see `source.presence_of`)."""
        indices = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        return self._drawn(presence_of(self.source, indices), indices)

    def batch(self, indices: np.ndarray) -> RawBatch:
        indices = np.asarray(indices, np.int64)
        batch = dict(self.source.batch(indices))
        stated, complete = batch.get("present", {}), np.ones(len(indices), bool)
        left = self._drawn({m: np.asarray(stated.get(m, complete)) for m in self.modalities}, indices)
        for modality, there in left.items():
            for field in _fields_of(modality):
                if field in batch:
                    batch[field] = _blank(np.asarray(batch[field]), ~there)
        batch["present"] = {**stated, **left}
        return batch


def _fields_of(modality: str) -> tuple[str, ...]:
    caption = (modality.replace("text", "caption", 1),) if kind_of(modality) == "text" else ()
    return (modality, f"{modality}_mask", *caption)


def _blank(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[rows] = "" if values.dtype.kind in "OU" else 0
    return values


def keep_complete(source: Source) -> Subset:
    """The examples that have all modalities. Raises ValueError where there are none."""
    whole = np.flatnonzero(np.all(list(presence_of(source).values()), axis=0))
    if not whole.size:
        raise ValueError(
            f"none of the {len(source)} examples has all of {', '.join(source.modalities)}: keep those that lack some, "
            "lower the share of missing modalities, or read fewer modalities"
        )
    return Subset(source, whole)


def class_labels(source: Source) -> np.ndarray | None:
    """The class of every example, without reading more of it where the source can tell; None: it has no labels."""
    tell = getattr(source, "class_labels", None)
    return read_fields(source, ("label",)).get("label") if tell is None else tell(np.arange(len(source)))


def keep_labelled(source: Source) -> Source:
    """The examples whose class is known (``label`` 0 or more); the source itself where that is all of them.

    Raises:
      ValueError: the source has no labels, or knows none of them.
    """
    found = class_labels(source)
    if found is None or not (found >= 0).any():
        raise ValueError("no example has a class: the data set needs the field 'label'")
    return source if (found >= 0).all() else Subset(source, np.flatnonzero(found >= 0))


def hold_out(source: Source, count: int, *, seed: int = 0) -> tuple[Subset, Subset]:
    """``(the rest, count examples)``, drawn at random from the seed, each part in the source's order."""
    if not 0 < count < len(source):
        raise ValueError(f"cannot hold out {count} of {len(source)} examples")
    order = np.random.default_rng(seed).permutation(len(source))
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))


def read_into_memory(
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
