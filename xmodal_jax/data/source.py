"""The interface of a data set: random access to batches, and optional facts such as class names."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RawBatch = dict[str, Any]
"""A batch as NumPy arrays, before tokenization.

Fields are those of `xmodal_jax.types.Batch`, with ``caption`` (object array ``[B]`` of str) instead of ``text``, and
``caption_NAME`` instead of ``text_NAME``. Any further field is an array, or a dict of arrays, whose first axis is the
example.
"""

_CHUNK = 500
"""Examples read at a time where all of a source is read."""


class Source(abc.ABC):
    """A data set.

    A subclass sets ``modalities`` and defines ``__len__`` and ``batch``. All other attributes and methods below are
    optional facts about the data: their defaults are None (unknown), or read the batches to find the answer. The rest
    of the package uses nothing else of a source.

    ::

        class Digits(Source):
            modalities, class_names = ("image",), tuple("0123456789")

            def __init__(self, images, labels):  # uint8 [N, H, W, C], int32 [N]
                self.images, self.labels = images, labels

            def __len__(self):
                return len(self.labels)

            def batch(self, indices):
                return {"image": self.images[indices], "label": self.labels[indices]}

    Methods that take ``indices`` accept an integer array ``[B]`` in 0..len-1; the optional facts also accept None, for
    all examples in order.
    """

    modalities: tuple[str, ...]
    """The modalities in the batches: text, image, audio, video, vector, series, or further ones of a kind
    (``KIND_NAME``: image_2)."""
    class_names: tuple[str, ...] | None = None
    """The name of each value of ``label``."""
    class_prompts: list[list[str]] | None = None
    """For each class the sentences that describe it, for zero-shot classification."""
    target_classes: Mapping[str, tuple[str, ...]] | None = None
    """The fields to be predicted, each with the names of its classes; None: ``label`` alone."""
    speaker_names: tuple[str, ...] | None = None
    """The name of each value of ``speaker`` that occurs in training."""
    test_splits: tuple[str, ...] = ("test",)
    """The names of the data set's test splits. Empty: it has none, so that a part of another one becomes it."""
    validation_split: str | None = None
    """The name of its validation split; None: it has none, so that a part of the training split becomes it."""
    feature_names: Mapping[str, tuple[str, ...]] | None = None
    """The name of each feature of a modality of measured quantities, such as the columns of ``vector``."""
    arrays: dict[str, Any] | None = None
    """All fields of all examples, where the whole source lies in memory."""
    part_weights: tuple[float, ...] | None = None
    """The weight of each part of a mixture of data sets in the stream of training, in any unit; None: it is none."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batch(self, indices: np.ndarray) -> RawBatch:
        """The examples ``indices``, in that order: the same values in every call, whatever was read before."""

    def caption_batch(self, indices: np.ndarray) -> RawBatch:
        """The fields ``caption`` and ``caption_NAME`` of the examples ``indices``, those that the batches have.

        The default reads the examples; a source that can read captions alone overrides it.
        """
        return {k: v for k, v in self.batch(indices).items() if k.partition("_")[0] == "caption"}

    def measured_batch(self, indices: np.ndarray) -> RawBatch:
        """The fields of measured quantities of the examples ``indices`` (``vector``, ``series_NAME``), their masks, and
        ``present``, those that the batches have.

        The default reads the examples; a source that can read numbers alone overrides it.
        """
        return {k: v for k, v in self.batch(indices).items() if k == "present" or is_measured_field(k)}

    def image_sizes(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
        """Width and height in pixels of the stored images of the examples ``indices`` (None: all), before they were
        resized: int32 ``[B, 2]`` for each image modality, 0 where there is none. None: they are not known."""
        return None

    def location(self, index: int) -> tuple[str | Path, int] | None:
        """The file that defines the example ``index``, and its line or row there, from 1; None: it is not known."""
        return None

    def example_names(self, indices: np.ndarray | None = None) -> list[str]:
        """What people call the examples ``indices`` (None: all): the name of a file, or where the example is defined
        ("metadata.jsonl:3"), or its number."""
        names = []
        for index in self._resolve_indices(indices).tolist():
            location = self.location(index)
            names.append(str(index) if location is None else f"{Path(location[0]).name}:{location[1]}")
        return names

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Which of the examples ``indices`` (None: all) have which modality: bool ``[B]`` for each modality.

        The default reads these examples, unless the batch of the first one has no field ``present``: then every example
        has every modality.
        """
        indices = self._resolve_indices(indices)
        complete = np.ones(len(indices), bool)
        # Either all batches of a source have the field "present" or none has.
        if not len(indices) or "present" not in self.batch(indices[:1]):
            return dict.fromkeys(self.modalities, complete)
        by_chunk = [self.batch(chunk)["present"] for chunk in split_indices(indices)]
        present = {m: np.concatenate([masks[m] for masks in by_chunk]) for m in by_chunk[0]}
        return {m: present.get(m, complete) for m in self.modalities}

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        """The class of each of the examples ``indices`` (None: all), int ``[B]``, -1 where unknown. The result is None
        if there are no labels.

        The default reads the examples.
        """
        return read_fields(self, ("label",), indices).get("label")

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        """A number for each of the examples ``indices`` (None: all), int ``[B]``, equal where examples show the same
        picture, such as an image with several captions (or the same video or recording, where there is no image). -1:
        unknown; such an example shares its picture with no other. The result is None if no two examples show the same
        picture.

        A source that has groups puts the same numbers into its batches, as the field ``group``."""
        return None

    def parts(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        """The part of a mixture of data sets that each of the examples ``indices`` (None: all) belongs to, int ``[B]``.
        The result is None if the source is no mixture."""
        return None

    def factors(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
        """The generative factors of the examples ``indices`` (None: all), arrays ``[B, ...]`` by name. The result is
        None if they are unknown."""
        return None

    def meanings(self, indices: np.ndarray | None = None) -> list[Hashable] | None:
        """What the caption of each of the examples ``indices`` (None: all) means, equal for captions that differ in
        wording alone. The result is None if it is unknown."""
        return None

    def captions(self, indices: np.ndarray | None = None, phrasing: int = 0) -> np.ndarray | None:
        """A paraphrase of the caption of each of the examples ``indices`` (None: all), object ``[B]`` of str: another
        one for each ``phrasing`` 1, 2, ...; ``phrasing`` 0 is the caption of the batches. The result is None if the
        source has no paraphrases."""
        return None

    def _resolve_indices(self, indices: np.ndarray | Sequence[int] | None) -> np.ndarray:
        """``indices`` as int64, or those of all examples for None."""
        return np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)


class SourceView(Source):
    """A source made from another one, ``source``: all facts are those of ``source`` unless a subclass overrides them.

    A subclass sets ``source``, and overrides `source_indices` if its examples have other indices than in ``source``.
    """

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def source_indices(self, indices: np.ndarray | None) -> np.ndarray:
        """The indices in ``source`` of the examples ``indices`` (None: all), int64 ``[B]``."""
        return self._resolve_indices(indices)

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.source.modalities

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names

    @property
    def class_prompts(self) -> list[list[str]] | None:
        return self.source.class_prompts

    @property
    def target_classes(self) -> Mapping[str, tuple[str, ...]] | None:
        return self.source.target_classes

    @property
    def speaker_names(self) -> tuple[str, ...] | None:
        return self.source.speaker_names

    @property
    def feature_names(self) -> Mapping[str, tuple[str, ...]] | None:
        return self.source.feature_names

    @property
    def test_splits(self) -> tuple[str, ...]:
        return self.source.test_splits

    @property
    def validation_split(self) -> str | None:
        return self.source.validation_split

    @property
    def part_weights(self) -> tuple[float, ...] | None:
        return self.source.part_weights

    def parts(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        return self.source.parts(self.source_indices(indices))

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return self.source.presence(self.source_indices(indices))

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        return self.source.class_labels(self.source_indices(indices))

    def location(self, index: int) -> tuple[str | Path, int] | None:
        return self.source.location(int(self.source_indices(np.array([index]))[0]))

    def example_names(self, indices: np.ndarray | None = None) -> list[str]:
        return self.source.example_names(self.source_indices(indices))

    def image_sizes(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
        return self.source.image_sizes(self.source_indices(indices))

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        return self.source.groups(self.source_indices(indices))

    def factors(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
        return self.source.factors(self.source_indices(indices))

    def meanings(self, indices: np.ndarray | None = None) -> list[Hashable] | None:
        return self.source.meanings(self.source_indices(indices))

    def captions(self, indices: np.ndarray | None = None, phrasing: int = 0) -> np.ndarray | None:
        return self.source.captions(self.source_indices(indices), phrasing)


def is_measured_field(field: str) -> bool:
    """Whether a field of a batch holds measured quantities or their mask: ``vector``, ``series_ecg_mask``."""
    from xmodal_jax.types import KINDS  # here: it loads JAX, which generated data sets do not need

    kind = KINDS.get(field.partition("_")[0])
    return kind is not None and kind.measured


def first_of_group(source: Source) -> np.ndarray:
    """For each example the index of the first example that shows the same picture, int64 ``[N]``: its own index if it
    is the first, or shares its picture with no other (see `Source.groups`)."""
    indices, groups = np.arange(len(source)), source.groups()
    if groups is None:
        return indices
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.where(np.asarray(groups) < 0, indices, first[inverse])


def read_fields(
    source: Source, names: tuple[str, ...], indices: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The fields ``names`` of the examples ``indices`` (None: all), ``[B, ...]`` each; those that the batches do not
    hold are left out."""
    indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    batches = [source.batch(chunk) for chunk in split_indices(indices)]
    return {k: np.concatenate([batch[k] for batch in batches]) for k in names if k in batches[0]}


def split_indices(indices: np.ndarray) -> list[np.ndarray]:
    """``indices`` in parts of at most 500, which are read one after the other because examples may be large. Without
    indices there is one empty part."""
    return np.array_split(indices, max(1, -(-len(indices) // _CHUNK)))
