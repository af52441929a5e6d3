"""Sources made from another source: some of its examples, some of their modalities, its batches transformed, or all of
it in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xmodal_jax.data.shapes.scenes import uniform
from xmodal_jax.data.source import RawBatch, Source, SourceView, first_of_group
from xmodal_jax.data.sources.arrays import ArraySource, estimate_nbytes, materialise
from xmodal_jax.types import kind_of


class Subset(SourceView):
    """The examples ``indices`` of a source, in that order.

    Raises:
      ValueError: no indices.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, np.asarray(indices, np.int64)
        if not self.indices.size:
            raise ValueError("a subset needs at least one example")

    def __len__(self) -> int:
        return len(self.indices)

    def source_indices(self, indices: np.ndarray | None) -> np.ndarray:
        return self.indices if indices is None else self.indices[np.asarray(indices, np.int64)]

    def batch(self, indices: np.ndarray) -> RawBatch:
        return self.source.batch(self.source_indices(indices))

    def caption_batch(self, indices: np.ndarray) -> RawBatch:
        return self.source.caption_batch(self.source_indices(indices))


class TransformedSource(SourceView):
    """A source whose batches are transformed by ``transform``; labels and presence are those of transformed batches."""

    def __init__(self, source: Source, transform: Callable[[RawBatch], RawBatch]):
        self.source, self.transform = source, transform

    def batch(self, indices: np.ndarray) -> RawBatch:
        return self.transform(self.source.batch(indices))

    presence, class_labels = Source.presence, Source.class_labels


class IncompleteSource(SourceView):
    """A source whose examples lack some of their modalities, drawn at random.

    Each of ``modalities`` (None: all) is dropped with probability p = ``fraction``, independently of the others and
    drawn from (seed, modality, index). An example that would lose all its modalities keeps one of them, chosen at
    random; so each of M modalities is missing in a fraction ``p - p^M / M`` of the examples. Modalities that an example
    lacks in the source stay missing.

    ``present`` of a batch tells which modalities an example has. The fields of missing ones are blank: zeros, ``""``
    for captions, False in masks. Fields that belong to no modality (labels, factors, speakers) are those of the source.

    Raises:
      ValueError: ``fraction`` outside 0..1, a modality that the source does not have, or a source of only one.
    """

    def __init__(
        self, source: Source, *, fraction: float, seed: int, modalities: tuple[str, ...] | None = None
    ):
        if not 0 <= fraction <= 1:
            raise ValueError(f"the fraction of missing modalities must lie in 0..1, got {fraction}")
        unknown = [m for m in modalities or () if m not in source.modalities]
        if unknown or modalities == ():
            raise ValueError(f"modalities must be some of {', '.join(source.modalities)}; got {modalities!r}")
        if len(source.modalities) < 2:
            raise ValueError(
                f"nothing can be missing of data with one modality ({', '.join(source.modalities)}): each example "
                "keeps one. Set the fraction of missing modalities to 0, or read more modalities"
            )
        self.source, self.fraction, self.seed = source, fraction, seed
        self._droppable = tuple(source.modalities if modalities is None else modalities)

    def _drop(self, present: dict[str, np.ndarray], indices: np.ndarray) -> dict[str, np.ndarray]:
        """Which modalities remain, bool ``[B]`` each, when some that the source has (``present``) are dropped."""

        def draw(purpose: str, modality: str) -> np.ndarray:
            """Random numbers ``[B]`` in [0, 1)."""
            return uniform(self.seed, "incomplete", indices, f"{purpose}/{modality}")

        remaining = {
            m: mask & (draw("missing", m) >= self.fraction) if m in self._droppable else mask
            for m, mask in present.items()
        }
        # An example that would lose all its modalities keeps one of them, the one with the largest draw.
        empty = ~np.any(list(remaining.values()), axis=0)
        draws = np.stack([np.where(mask, draw("kept", m), -1.0) for m, mask in present.items()])  # [M, B]
        kept_modality = np.argmax(draws, axis=0)  # [B]
        return {
            m: remaining[m] | (empty & (kept_modality == number) & present[m])
            for number, m in enumerate(present)
        }

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Which examples have which modality, bool ``[B]`` for each. Examples are only read if the source has to read
        them for its own `Source.presence`."""
        indices = self.source_indices(indices)
        return self._drop(self.source.presence(indices), indices)

    def caption_batch(self, indices: np.ndarray) -> RawBatch:
        """As `Source.caption_batch`, ``""`` where a text is dropped."""
        present = self.presence(indices)
        captions = self.source.caption_batch(self.source_indices(indices))
        texts = {name: name.replace("caption", "text", 1) for name in captions}
        return {name: _blank(np.asarray(x), ~present[texts[name]]) for name, x in captions.items()}

    def batch(self, indices: np.ndarray) -> RawBatch:
        """The source's batch with the fields of dropped modalities blank, and ``present`` bool ``[B]`` for each
        modality."""
        indices = np.asarray(indices, np.int64)
        batch = dict(self.source.batch(indices))
        in_source, complete = batch.get("present", {}), np.ones(len(indices), bool)
        present = self._drop({m: np.asarray(in_source.get(m, complete)) for m in self.modalities}, indices)
        for modality, mask in present.items():
            for field in modality_fields(modality):
                if field in batch:
                    batch[field] = _blank(np.asarray(batch[field]), ~mask)
        batch["present"] = {**in_source, **present}
        return batch


def modality_fields(modality: str) -> tuple[str, ...]:
    """The batch fields of a modality: ``text_en`` gives ``text_en``, ``text_en_mask`` and ``caption_en``."""
    caption = (modality.replace("text", "caption", 1),) if kind_of(modality) == "text" else ()
    return (modality, f"{modality}_mask", *caption)


def _blank(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """A copy of ``values`` ``[B, ...]`` with zeros, or ``""`` for strings, in the examples that are ``missing``."""
    values = values.copy()
    values[missing] = "" if values.dtype.kind in "OU" else 0
    return values


def keep_complete(source: Source) -> Subset:
    """The examples that have all modalities.

    Raises:
      ValueError: there are none.
    """
    complete = np.flatnonzero(np.all(list(source.presence().values()), axis=0))
    if not complete.size:
        raise ValueError(
            f"none of the {len(source)} examples has all of {', '.join(source.modalities)}: keep those that lack some, "
            "lower the fraction of missing modalities, or read fewer modalities"
        )
    return Subset(source, complete)


def keep_labelled(source: Source) -> Source:
    """The examples whose class is known (``label`` 0 or more); the source itself if that is all of them.

    Raises:
      ValueError: the source has no labels, or none of them is known.
    """
    labels = source.class_labels()
    if labels is None or not (labels >= 0).any():
        raise ValueError("no example has a class: the data set needs the field 'label'")
    return source if (labels >= 0).all() else Subset(source, np.flatnonzero(labels >= 0))


def one_per_picture(source: Source) -> Source:
    """The first example of each picture; the source itself if no two examples show the same picture."""
    first = np.unique(first_of_group(source))
    return source if len(first) == len(source) else Subset(source, first)


def hold_out(source: Source, count: int, *, seed: int = 0) -> tuple[Subset, Subset]:
    """``(remaining, held_out)``: ``count`` random examples are held out; both parts keep the source's order.

    The parts share no picture: where several examples show one (see `Source.groups`), all of them are held out or none.
    Pictures are then drawn until they have ``count`` examples; one picture at least remains.

    Raises:
      ValueError: ``count`` is not in 1..len-1, or all examples show the same picture.
    """
    if not 0 < count < len(source):
        raise ValueError(f"cannot hold out {count} of {len(source)} examples")
    first = first_of_group(source)
    pictures, sizes = np.unique(first, return_counts=True)  # the first example of each picture; its examples
    if len(pictures) == 1:
        raise ValueError(
            f"cannot hold out {count} of {len(source)} examples: all show the same picture, which cannot be in both "
            "parts; add examples of other pictures"
        )
    order = np.random.default_rng(seed).permutation(len(pictures))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1  # pictures that have `count` examples
    held_out = np.isin(first, pictures[order[: min(enough, len(pictures) - 1)]])
    return Subset(source, np.flatnonzero(~held_out)), Subset(source, np.flatnonzero(held_out))


def read_into_memory(
    source: Source,
    transform: Callable[[RawBatch], RawBatch] | None = None,
    *,
    limit: int,
    drop: tuple[str, ...] = (),
    progress: bool = True,
) -> ArraySource | None:
    """The whole source, read and transformed once; None if it would take more than ``limit`` bytes.

    ``drop``: fields to leave out, such as those that training does not need.
    """
    if estimate_nbytes(source) > limit:
        return None
    read = materialise(source, progress=progress)
    arrays = read.arrays if transform is None else transform(read.arrays)
    return ArraySource(
        {k: v for k, v in arrays.items() if k not in drop}, source.class_names,
        parts=source.parts(), part_weights=source.part_weights,
    )  # fmt: skip
