"""Several data sets as one, each with modalities of its own: a mixture."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.source import RawBatch, Source, is_measured_field
from xmodal_jax.data.sources.arrays import sort_modalities
from xmodal_jax.data.views import modality_fields
from xmodal_jax.types import is_measured

_UNKNOWN = np.int32(-1)
"""The label, or the speaker, of an example whose part has none."""


FeatureNames = Mapping[str, tuple[str, ...]]
"""The names of features by modality, see `Source.feature_names`."""


class MixtureFields(NamedTuple):
    """What the batches of a mixture hold, in all of its splits: see `mixture_fields`."""

    modalities: tuple[str, ...]
    """The modalities of all parts."""
    blanks: dict[str, Any]
    """For each field its value in an example that lacks it, ``[...]`` without the batch axis; dicts may nest."""
    classes: dict[str, int] | None
    """The number of each class by its name; None: no part has labels."""
    class_names: tuple[str, ...] | None
    """The names of the classes; None: no part has names, and the name of a class is its number."""
    speaker_names: tuple[str, ...] | None
    """The names of the speakers; None: the batches have no ``speaker``."""
    feature_names: FeatureNames | None
    """The names of the features of measured quantities; None: they have no names."""


def mixture_fields(parts: Mapping[str, Source]) -> MixtureFields:
    """Determines the fields of a mixture from the training splits of its parts, given by name. Their first examples are
    read.

    Fields of a modality come from the parts that have it. ``label`` has the classes of all parts; classes of the same
    name are one class. ``speaker`` is kept if all parts that have it name the same speakers, and any other field, such
    as ``factors``, if all parts have it in the same shape.

    Raises:
      ValueError: two parts have a modality in different sizes, or one as strings and the other as token ids.
    """
    first = {name: source.batch(np.arange(1)) for name, source in parts.items()}
    modalities = sort_modalities({m for source in parts.values() for m in source.modalities})
    blanks: dict[str, Any] = {}
    for modality in modalities:
        names_with = [name for name, source in parts.items() if modality in source.modalities]
        for name in names_with[1:]:
            _check_same_layout(modality, names_with[0], first[names_with[0]], name, first[name])
            _check_features(
                modality, names_with[0], parts[names_with[0]].feature_names, name, parts[name].feature_names
            )
        for field in modality_fields(modality):
            values = [first[name][field] for name in names_with if field in first[name]]
            if values:
                blanks[field] = _blank_of(values[0])
        if is_measured(modality):  # numbers of any type, which have one in the mixture
            types = [np.asarray(first[name][modality]).dtype for name in names_with]
            blanks[modality] = blanks[modality].astype(np.result_type(np.float32, *types))
    classes, class_names = _join_classes(parts)
    if classes is not None:
        blanks["label"] = _UNKNOWN
    speakers = {source.speaker_names for name, source in parts.items() if "speaker" in first[name]}
    speaker_names = speakers.pop() if len(speakers) == 1 else None
    if speaker_names is not None:
        blanks["speaker"] = _UNKNOWN
    special = {"label", "speaker", "group", "present", *(f for m in modalities for f in modality_fields(m))}
    batches = list(first.values())
    for field in batches[0]:
        if field not in special and len({_layout(batch.get(field)) for batch in batches}) == 1:
            blanks[field] = _blank_of(batches[0][field])
    features = {m: names for source in parts.values() for m, names in (source.feature_names or {}).items()}
    return MixtureFields(modalities, blanks, classes, class_names, speaker_names, features or None)


def _check_same_layout(modality: str, name: str, batch: RawBatch, other: str, other_batch: RawBatch) -> None:
    """Raises ValueError if two parts, ``name`` and ``other``, have fields of a modality in other sizes or types. A mask
    may be in one of them only, and measured quantities may be numbers of any type."""
    for field in modality_fields(modality):
        layouts = [_layout(batch.get(field)), _layout(other_batch.get(field))]
        if field == f"{modality}_mask" and None in layouts:
            continue
        if is_measured(modality) and None not in layouts:
            layouts = [("numbers", shape) for _, shape in layouts]
        if layouts[0] == layouts[1]:
            continue
        shown = ["not there" if layout is None else f"{layout[0]} {list(layout[1])}" for layout in layouts]
        raise ValueError(
            f"data sets of a mixture need one size for each modality: {field!r} of an example is {shown[0]} in {name} "
            f"and {shown[1]} in {other}. Give all of them the same --image-size, --channels, --frames and "
            "--max-seconds; arrays (npz:PATH) are taken as they are"
        )


def _check_features(
    modality: str, name: str, names: FeatureNames | None, other: str, other_names: FeatureNames | None
) -> None:
    """Raises ValueError if two parts, ``name`` and ``other``, name the features of a modality differently."""
    features, others = ((of_part or {}).get(modality) for of_part in (names, other_names))
    if features and others and features != others:
        raise ValueError(
            f"data sets of a mixture need the same features in one order: {modality!r} is {', '.join(features)} in "
            f"{name} and {', '.join(others)} in {other}. Name the columns by --columns, or give one of them a modality "
            f"of its own ({modality}_NAME)"
        )


def _layout(values: Any) -> Hashable:
    """What two fields must have in common to be one field of a mixture: dtype and shape without the first axis, of a
    dict those of all entries; None for a field that is not there."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        return tuple(sorted((key, _layout(value)) for key, value in values.items()))
    values = np.asarray(values)
    return ("text" if values.dtype.kind in "OU" else str(values.dtype), values.shape[1:])


def _blank_of(values: Any) -> Any:
    """A blank example of a field: zeros, ``""`` for strings."""
    if isinstance(values, Mapping):
        return {key: _blank_of(value) for key, value in values.items()}
    values = np.asarray(values)
    if values.dtype.kind in "OU":
        blank = np.empty(values.shape[1:], object)
        blank[...] = ""
        return blank
    return np.zeros(values.shape[1:], values.dtype)


def _join_classes(parts: Mapping[str, Source]) -> tuple[dict[str, int] | None, tuple[str, ...] | None]:
    """``(classes, class_names)`` of `MixtureFields`, in the order in which the parts name them."""
    names = [name for source in parts.values() for name in class_names_of(source)]
    if not names:
        return None, None
    classes = {name: number for number, name in enumerate(dict.fromkeys(names))}
    # Without names the classes keep their numbers, which an order of first occurrence does not change.
    has_names = any(source.class_names is not None for source in parts.values())
    return classes, tuple(classes) if has_names else None


def class_names_of(source: Source) -> tuple[str, ...]:
    """The names of a source's classes: their numbers where they have no names; empty where there are no labels."""
    if source.class_names is not None:
        return tuple(source.class_names)
    labels = source.class_labels()
    return () if labels is None else tuple(str(k) for k in range(int(labels.max(initial=-1)) + 1))


class MixtureSource(Source):
    """Several data sets as one: the examples of the first part, then those of the second, and so on.

    All batches have the fields of all parts. A modality that a part does not have is missing in its examples: zeros,
    ``""``, and False in ``present``, which is in every batch. Examples of different parts show different pictures. The
    labels are those of ``fields.classes``, -1 where a class is none of them or unknown.

    ::

        pictures = SpokenShapes(modalities=("text", "image"))
        speech = SpokenShapes(modalities=("text", "audio"), seed=1)
        mixture = MixtureSource({"pictures": pictures, "speech": speech}, weights=(2.0, 1.0))
        mixture.batch(np.array([0, len(pictures)]))["present"]["image"]  # [True, False]

    Args:
      sources: the parts by name.
      weights: how often training draws from each part, in any unit (see `order.MixtureOrder`); None: in proportion to
        its number of examples.
      fields: those of the mixture's training split, for another split; None: from ``sources``.

    Raises:
      ValueError: no parts, a number of weights that is not that of the parts, or one that is not above 0; a part in
        other sizes (see `mixture_fields`).
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Sequence[float | int] | None = None,
        fields: MixtureFields | None = None,
    ):
        if not sources:
            raise ValueError("a mixture needs at least one part")
        self.names, self._sources = tuple(sources), tuple(sources.values())
        sizes = np.array([len(source) for source in self._sources], np.int64)
        self.part_weights = tuple(float(w) for w in (sizes if weights is None else weights))
        if len(self.part_weights) != len(sizes) or not all(0 < w < np.inf for w in self.part_weights):
            raise ValueError(
                f"--data-weights needs a number above 0 for each of the {len(sizes)} data sets, "
                f"{', '.join(self.names)}; got {', '.join(f'{w:g}' for w in self.part_weights)}"
            )
        self.fields = mixture_fields(sources) if fields is None else fields
        self.modalities, self.class_names = self.fields.modalities, self.fields.class_names
        self.speaker_names, self.feature_names = self.fields.speaker_names, self.fields.feature_names
        self._ends = np.cumsum(sizes)
        self._blanks = self.fields.blanks if fields is None else self._fields_of_split()
        self._new_labels = [self._renumbering(source) for source in self._sources]
        self._groups = self._number_groups()

    def _fields_of_split(self) -> dict[str, Any]:
        """The blank examples of this split's fields: those of the training split, without further fields such as
        ``factors`` that a part lacks here.

        Raises:
          ValueError: a part has a modality in another form than the training split, or none of its modalities.
        """
        of_modalities = {field for m in self.modalities for field in modality_fields(m)}
        trained = {
            field: np.asarray(blank)[None]
            for field, blank in self.fields.blanks.items()
            if field in of_modalities
        }
        blanks = dict(self.fields.blanks)
        for name, source in zip(self.names, self._sources, strict=True):
            shared, batch = set(source.modalities) & set(self.modalities), source.batch(np.arange(1))
            if not shared:
                raise ValueError(
                    f"{name} has {', '.join(source.modalities)}, none of the training examples' modalities "
                    f"({', '.join(self.modalities)})"
                )
            for modality in sorted(shared):
                _check_same_layout(modality, "the training examples", trained, name, batch)
                _check_features(
                    modality, "the training examples", self.fields.feature_names, name, source.feature_names
                )
            for field in set(blanks) - of_modalities - {"label", "speaker"} - set(batch):
                del blanks[field]
        return blanks

    def _renumbering(self, source: Source) -> np.ndarray | None:
        """The number in the mixture of each class of a part, and -1 at the end, for unknown ones: int32
        ``[classes + 1]``; None: the part has no labels."""
        if self.fields.classes is None or not (names := class_names_of(source)):
            return None
        return np.array([*(self.fields.classes.get(name, -1) for name in names), -1], np.int32)

    def _number_groups(self) -> np.ndarray | None:
        """The number of each example's picture, int32 ``[N]``, of which no two parts have the same; None: no two
        examples show the same picture."""
        groups, used = [], 0
        for source in self._sources:
            in_part = source.groups()
            if in_part is None:
                groups.append(np.full(len(source), -1, np.int32))
                continue
            known, numbers = np.asarray(in_part) >= 0, np.full(len(source), -1, np.int32)
            values, inverse = np.unique(np.asarray(in_part)[known], return_inverse=True)
            numbers[known] = used + inverse
            used += len(values)
            groups.append(numbers)
        return np.concatenate(groups) if used else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def example_names(self, indices: np.ndarray | None = None) -> list[str]:
        indices = self._resolve_indices(indices)
        names = np.empty(len(indices), object)
        for source, rows, in_part in self._by_part(indices):
            names[rows] = source.example_names(in_part)
        return names.tolist()

    def parts(self, indices: np.ndarray | None = None) -> np.ndarray:
        """The number of the part of each example, int64 ``[B]``."""
        return np.searchsorted(self._ends, self._resolve_indices(indices), side="right")

    def _by_part(self, indices: np.ndarray) -> list[tuple[Source, np.ndarray, np.ndarray]]:
        """Distributes the examples ``indices [B]`` over the parts: ``(source, rows, indices in the part)`` for each
        part that has some of them, where ``rows`` are their positions in the batch."""
        parts, starts = self.parts(indices), self._ends - [len(source) for source in self._sources]
        return [
            (self._sources[part], rows := np.flatnonzero(parts == part), indices[rows] - starts[part])
            for part in np.unique(parts)
        ]

    def batch(self, indices: np.ndarray) -> RawBatch:
        """The examples ``indices``, with the fields of all parts: see the class."""
        indices = self._resolve_indices(indices)
        present = {m: np.zeros(len(indices), bool) for m in self.modalities}
        read = []
        for source, rows, in_part in self._by_part(indices):
            part = source.batch(in_part)
            for modality in set(source.modalities) & set(self.modalities):
                present[modality][rows] = part.get("present", {}).get(modality, True)
                if f"{modality}_mask" not in part:  # another part has one
                    part = {**part, f"{modality}_mask": True}
            read.append((rows, part))
        batch = {name: _join(read, name, blank, len(indices)) for name, blank in self._blanks.items()}
        if "label" in batch:
            batch["label"] = self._renumber(batch["label"], indices)
        if self._groups is not None:
            batch["group"] = self._groups[indices]
        return {**batch, "present": present}

    def _renumber(self, labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The numbers in the mixture of the parts' own ``labels`` of the examples ``indices``, int32 ``[B]``."""
        parts, renumbered = self.parts(indices), np.full(len(indices), -1, np.int32)
        for part, numbers in enumerate(self._new_labels):
            if numbers is not None:
                rows = parts == part
                renumbered[rows] = numbers[np.maximum(labels[rows], -1)]
        return renumbered

    def caption_batch(self, indices: np.ndarray) -> RawBatch:
        """See `Source.caption_batch`; a part without captions is not read."""
        names = [name for name in self.fields.blanks if name.partition("_")[0] == "caption"]
        indices = self._resolve_indices(indices)
        has_text = lambda source: any(m.partition("_")[0] == "text" for m in source.modalities)
        read = [
            (rows, source.caption_batch(in_part))
            for source, rows, in_part in self._by_part(indices)
            if has_text(source)
        ]
        return {name: _join(read, name, self.fields.blanks[name], len(indices)) for name in names}

    def measured_batch(self, indices: np.ndarray) -> RawBatch:
        """As `Source.measured_batch`; a part without measured quantities is not read."""
        names = [name for name in self.fields.blanks if is_measured_field(name)]
        indices = self._resolve_indices(indices)
        read = []
        for source, rows, in_part in self._by_part(indices):
            measured = [m for m in source.modalities if is_measured(m)]
            masks = {f"{m}_mask": True for m in measured}  # of a part that has none, where another one has
            read.append((rows, masks | source.measured_batch(in_part) if measured else {}))
        batch = {name: _join(read, name, self.fields.blanks[name], len(indices)) for name in names}
        return {**batch, "present": self.presence(indices)}

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        indices = self._resolve_indices(indices)
        read = [(rows, source.presence(in_part)) for source, rows, in_part in self._by_part(indices)]
        return {m: _join(read, m, np.False_, len(indices)) for m in self.modalities}

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        if self.fields.classes is None:
            return None
        indices = self._resolve_indices(indices)
        labels = [(rows, source.class_labels(in_part)) for source, rows, in_part in self._by_part(indices)]
        read = [(rows, {"label": values}) for rows, values in labels if values is not None]
        return self._renumber(_join(read, "label", _UNKNOWN, len(indices)), indices)

    def image_sizes(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
        indices = self._resolve_indices(indices)
        read = [(rows, source.image_sizes(in_part) or {}) for source, rows, in_part in self._by_part(indices)]
        names = sorted({name for _, sizes in read for name in sizes})
        return {name: _join(read, name, np.zeros(2, np.int32), len(indices)) for name in names} or None

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        return None if self._groups is None else self._groups[self._resolve_indices(indices)]

    def factors(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
        """As `Source.factors`; None unless the parts have the same factors."""
        indices = self._resolve_indices(indices)
        first = [source.factors(np.arange(1)) for source in self._sources]
        if first[0] is None or len({_layout(factors) for factors in first}) > 1:
            return None
        read = [
            (rows, {"factors": source.factors(in_part)}) for source, rows, in_part in self._by_part(indices)
        ]
        return _join(read, "factors", _blank_of(first[0]), len(indices))

    def meanings(self, indices: np.ndarray | None = None) -> list[Hashable] | None:
        """As `Source.meanings`; None unless it is known of all parts."""
        indices = self._resolve_indices(indices)
        meanings: list[Hashable] = [None] * len(indices)
        for source, rows, in_part in self._by_part(indices):
            of_part = source.meanings(in_part)
            if of_part is None:
                return None
            for row, meaning in zip(rows, of_part, strict=True):
                meanings[row] = meaning
        return meanings

    def captions(self, indices: np.ndarray | None = None, phrasing: int = 0) -> np.ndarray | None:
        """As `Source.captions`, ``""`` where a part has no text; None unless all parts with text have paraphrases."""
        indices = self._resolve_indices(indices)
        captions = np.full(len(indices), "", object)
        for source, rows, in_part in self._by_part(indices):
            if "text" in source.modalities:
                of_part = source.captions(in_part, phrasing)
                if of_part is None:
                    return None
                captions[rows] = of_part
        return captions

    @property
    def class_prompts(self) -> list[list[str]] | None:
        """The prompts of each class in all parts; None unless every part with labels has prompts."""
        named = [source for source in self._sources if class_names_of(source)]
        if self.fields.classes is None or any(source.class_prompts is None for source in named):
            return None
        prompts: list[dict[str, None]] = [{} for _ in self.fields.classes]  # dicts as ordered sets
        for source in named:
            for name, of_class in zip(class_names_of(source), source.class_prompts, strict=False):
                if name in self.fields.classes:
                    prompts[self.fields.classes[name]].update(dict.fromkeys(of_class))
        return [list(of_class) for of_class in prompts]


def _join(read: Sequence[tuple[np.ndarray, Mapping[str, Any]]], name: str, blank: Any, size: int) -> Any:
    """The field ``name`` of ``size`` examples from those of the parts.

    Args:
      read: of each part the rows of its examples, and their fields.
      name: the field; where a part does not have it, its rows are ``blank``.
      blank: of one example ``[...]``; a dict for a field that is one.
      size: number of examples, B.
    """
    if isinstance(blank, Mapping):
        inner = [(rows, fields.get(name, {})) for rows, fields in read]
        return {key: _join(inner, key, value, size) for key, value in blank.items()}
    blank = np.asarray(blank)
    joined = np.empty((size, *blank.shape), blank.dtype)
    joined[...] = blank
    for rows, fields in read:
        if name in fields:
            joined[rows] = fields[name]
    return joined
