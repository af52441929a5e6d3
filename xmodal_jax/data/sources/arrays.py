"""Data sets held as NumPy arrays: ``--data npz:PATH``, and any other source read into memory once."""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from xmodal_jax.core.text_files import normalise, parse_json, read_text, surrogate_in
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.measured_columns import mask_missing
from xmodal_jax.data.media import require_file
from xmodal_jax.data.metadata import MIN_CLASS_LIMIT, choose_test
from xmodal_jax.data.source import RawBatch, Source, first_of_group, is_measured_field
from xmodal_jax.data.split_names import require_undivided_split
from xmodal_jax.data.table import evenly_spaced
from xmodal_jax.types import KINDS, MODALITIES, is_measured, kind_of

_FIELDS = {
    **{name: (kind.dtypes, kind.array_axes, kind.array) for name, kind in KINDS.items()},
    **{
        f"{name}_mask": ("b", kind.mask_axes, "bool with the first axes of the values")
        for name, kind in KINDS.items()
        if kind.mask_axes
    },
    "caption": ("UO", (1,), "strings [N] (a fixed-width unicode array, or captions.json)"),
    "label": ("iu", (1,), "int32 [N]"),
    "group": ("iuUO", (1,), "integers or strings [N], equal for examples that show the same picture"),
    **{f"{m}_present": ("b", (1,), "bool [N]") for m in MODALITIES},
}
"""For each field the allowed kinds of dtypes (as in NumPy's ``dtype.kind``), the allowed ranks, and both in words."""


def _parse(field: str) -> tuple[str, str] | None:
    """``(modality, entry)``: the modality that a field belongs to and its key in `_FIELDS`; None if it belongs to none.

    ``image_1_present`` gives ``("image_1", "image_present")``, ``caption_en`` gives ``("text_en", "caption")``.
    """
    suffix = next((s for s in ("_mask", "_present") if field.endswith(s)), "")
    base = field.removesuffix(suffix)
    kind, underscore, name = base.partition("_")
    entry = kind + suffix
    if entry not in _FIELDS or kind in ("label", "group") or (underscore and not name):
        return None
    return ("text" if kind == "caption" else kind) + underscore + name, entry


def modalities_of(fields: Iterable[str]) -> tuple[str, ...]:
    """The modalities that a batch with these fields holds, in the order of `sort_modalities`."""
    # ``(modality, entry)`` of each field that belongs to a modality. A caption is a text that is not tokenised yet;
    # masks and flags of presence do not count, since they hold no data.
    parsed = filter(None, map(_parse, fields))
    return sort_modalities(
        {modality for modality, entry in parsed if entry in MODALITIES or entry == "caption"}
    )


def sort_modalities(modalities: Iterable[str]) -> tuple[str, ...]:
    """Modalities sorted by kind in the order of `MODALITIES`, then by name with numbers in numeric order: image,
    image_2, image_10."""

    def sort_key(modality):
        """The kind's place in `MODALITIES`, then the name with each run of digits as a number."""
        name = modality.partition("_")[2]
        pieces = re.findall(r"\d+|\D+", name)
        return (
            MODALITIES.index(kind_of(modality)),
            [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces],
            name,
        )

    return tuple(sorted(modalities, key=sort_key))


def _map(fn, tree):
    """``fn`` applied to each array of a nested dict."""
    return {k: _map(fn, v) for k, v in tree.items()} if isinstance(tree, dict) else fn(tree)


def _leaves(tree) -> list[np.ndarray]:
    """The arrays of a nested dict."""
    return [leaf for v in tree.values() for leaf in _leaves(v)] if isinstance(tree, dict) else [tree]


def nbytes(arrays: dict[str, Any]) -> int:
    """Bytes of all arrays in a nested dict; strings count their UTF-8 length."""

    def size(array: np.ndarray) -> int:
        if array.dtype == object:
            return sum(len(str(text).encode()) for text in array)
        return array.nbytes

    return sum(size(np.asarray(array)) for array in _leaves(arrays))


def estimate_nbytes(source: Source, sample: int = 16) -> int:
    """Bytes that all examples of a source would take in memory, estimated from ``sample`` of them."""
    indices = evenly_spaced(len(source), sample)
    return nbytes(source.batch(indices)) * len(source) // len(indices)


class ArraySource(Source):
    """A source of arrays in memory (or memory-mapped) whose first axis is the example; dicts of arrays may nest.

    ::

        source = ArraySource({"image": images, "label": labels}, class_names=("cat", "dog"))

    ``parts`` int ``[N]`` and ``part_weights`` are those of a mixture that was read into memory (see `Source.parts`).

    Raises:
      ValueError: the arrays differ in length.
    """

    def __init__(
        self,
        arrays: dict[str, Any],
        class_names: tuple[str, ...] | None = None,
        *,
        parts: np.ndarray | None = None,
        part_weights: tuple[float, ...] | None = None,
    ):
        lengths = {len(a) for a in _leaves(arrays)}
        if len(lengths) != 1:
            shapes = {k: _map(lambda a: a.shape, v) for k, v in arrays.items()}
            raise ValueError(f"all arrays need the same first axis: {shapes}")
        self.arrays, self.class_names = arrays, class_names
        self._parts, self.part_weights = parts, part_weights
        self._length = lengths.pop()
        self.modalities = modalities_of(arrays)

    def __len__(self) -> int:
        return self._length

    def measured_batch(self, indices: np.ndarray) -> RawBatch:
        fields = {k: v for k, v in self.arrays.items() if k == "present" or is_measured_field(k)}
        return _map(lambda a: np.asarray(a[indices]), fields)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return nbytes(self.arrays)

    def batch(self, indices: np.ndarray) -> RawBatch:
        """Copies of the examples ``indices``."""
        return _map(lambda a: np.asarray(a[indices]), self.arrays)

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        indices = self._resolve_indices(indices)
        present, complete = self.arrays.get("present", {}), np.ones(self._length, bool)
        return {m: np.asarray(present.get(m, complete)[indices]) for m in self.modalities}

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        """The field ``group``, int ``[B]``; None if there is none."""
        groups = self.arrays.get("group")
        return None if groups is None else np.asarray(groups[self._resolve_indices(indices)])

    def parts(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        return None if self._parts is None else self._parts[self._resolve_indices(indices)]

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        labels = self.arrays.get("label")
        return None if labels is None else np.asarray(labels[self._resolve_indices(indices)])


def materialise(source: Source, *, workers: int = 4, chunk: int = 256, progress: bool = True) -> ArraySource:
    """All of ``source`` in memory: each example is read once, ``chunk`` examples at a time in ``workers`` threads."""
    if isinstance(source, ArraySource):
        return source
    n = len(source)
    starts = range(0, n, chunk)
    first_batch = source.batch(np.arange(min(chunk, n)))  # shows the fields, shapes and dtypes
    arrays = _map(lambda a: np.empty((n, *a.shape[1:]), a.dtype), first_batch)

    def store(target: dict, batch: dict, start: int) -> None:
        """Copies a batch, which may nest, to the examples from ``start`` on of the arrays ``target``."""
        for key, value in batch.items():
            if isinstance(value, dict):
                store(target[key], value, start)
            else:
                target[key][start : start + len(value)] = value

    def read(start: int) -> None:
        batch = first_batch if start == 0 else source.batch(np.arange(start, min(start + chunk, n)))
        store(arrays, batch, start)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        jobs = pool.map(read, starts)
        for _ in tqdm(
            jobs, total=len(starts), desc="reading the data set", unit="chunk", disable=not progress
        ):
            pass
    return ArraySource(arrays, source.class_names, parts=source.parts(), part_weights=source.part_weights)


def _read_fields(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file or of a folder of .npy files, by name."""
    try:
        if path.is_file():
            with zipfile.ZipFile(path):  # raises BadZipFile if it is something else
                pass
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        files = sorted(path.glob("*.npy"))
        for file in files:
            require_file(file)  # reading a pipe would wait for ever
        fields = {f.stem: np.load(f, allow_pickle=False, mmap_mode="r") for f in files}
    except Exception as error:  # NumPy and zipfile raise a dozen types of exceptions on damaged files
        if "allow_pickle" not in str(error):
            raise ValueError(f"{path} cannot be read, it is damaged or no file of arrays: {error}") from error
        raise ValueError(
            f"{path}: {error}. Arrays of Python objects are not read (that would need pickle): store captions as "
            "np.array(captions, dtype='U'), or as captions.json beside the .npy files."
        ) from error
    captions = path / "captions.json"
    if captions.is_file():
        try:
            texts = parse_json(read_text(captions))
        except ValueError as error:
            raise ValueError(f"{captions}: {error}") from error
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{captions}: expected a JSON list of strings, one per example.")
        fields["caption"] = np.array(texts, object)
    return fields


def _check_unknown(name: str, array: np.ndarray, path: Path) -> np.ndarray:
    """Returns the array of a field that `_FIELDS` does not list, which is passed on unchanged.

    Raises:
      ValueError: the name is close to a known field's, so probably a spelling mistake; or the array is a single value.
    """
    similar = difflib.get_close_matches(name, [*_FIELDS, "class_names"], n=1, cutoff=0.8)
    if similar:
        raise ValueError(f"{path}: the field {name!r} is not known; did you mean {similar[0]!r}?")
    if array.ndim == 0:
        raise ValueError(f"{path}: the field {name!r} is a single value; expected one row per example.")
    return array


def _check_audio(name: str, array: np.ndarray, path: Path, expected: str) -> np.ndarray:
    """The audio as int16 or float32; ValueError if it has another dtype, or if most recordings leave [-1, 1]."""
    if array.dtype.kind == "f":
        outside = _outside_unit(array)
        if 2 * outside.sum() > len(array):
            raise ValueError(
                f"{path}: {name!r} is {array.dtype} with values beyond [-1, 1]; divide by its scale."
            )
        return array.astype(np.float32)
    if array.dtype != np.int16:
        raise ValueError(f"{path}: {name!r} is {array.dtype}; expected {expected}.")
    return array


def _number_groups(array: np.ndarray) -> np.ndarray:
    """The numbers of the groups, int32 ``[N]``, from integers of any size or strings, such as file names; -1 where the
    group is unknown, which a negative number or an empty string states."""
    array = array.astype(str) if array.dtype.kind in "UO" else array
    unknown = array == "" if array.dtype.kind == "U" else array < 0
    numbers = np.unique(array, return_inverse=True)[1]
    return np.where(unknown, -1, numbers).astype(np.int32)


def _outside_unit(audio: np.ndarray) -> np.ndarray:
    """Which of the recordings ``[N, T]`` have values that are not finite or beyond [-1, 1], bool ``[N]``."""
    parts = [audio[i : i + 256] for i in range(0, len(audio), 256)]  # which may lie on disk
    inside = [(np.abs(part) <= 1.0).all(axis=1) for part in parts]
    return ~np.concatenate(inside) if parts else np.zeros(0, bool)


def _find_bad_rows(arrays: dict[str, Any], class_names: Sequence[str] | None) -> dict[int, str]:
    """The examples with a value that cannot be used, each with the reason: a label that is the number of no class, a
    token id that is none, audio beyond [-1, 1], a measured value that is infinite, a caption that cannot be written as
    UTF-8."""
    reasons: dict[int, str] = {}
    for name, array in arrays.items():
        entry = "label" if name == "label" else (_parse(name) or ("", ""))[1]
        if entry == "label":
            limit = len(array) if class_names is None else len(class_names)
            limit = max(limit, MIN_CLASS_LIMIT) if class_names is None else limit
            for i in np.flatnonzero((array < -1) | (array >= limit)):
                reasons[int(i)] = f"label {array[i]} is not in 0..{limit - 1} (-1: unknown)"
        elif entry == "text":
            for i in np.flatnonzero(((array < 0) | (array > np.iinfo(np.int32).max)).any(axis=1)):
                reasons[int(i)] = f"{name} has an id outside 0..{np.iinfo(np.int32).max}"
        elif entry == "audio" and array.dtype.kind == "f":
            for i in np.flatnonzero(_outside_unit(array)):
                reasons[int(i)] = f"{name} has values that are not finite or beyond [-1, 1]"
        elif entry in KINDS and KINDS[entry].measured:
            infinite = np.isinf(array) if array.dtype.kind == "f" else np.zeros(len(array), bool)
            for i in np.flatnonzero(infinite.reshape(len(array), -1).any(axis=1)):
                reasons[int(i)] = f"{name} has a value that is infinite (NaN: the value is missing)"
        elif entry == "caption":
            for i, text in enumerate(array):
                if damage := surrogate_in(text):
                    reasons[i] = f"{name} is no text: {damage}"
    return reasons


def _check_class_names(names: np.ndarray | None, path: Path) -> tuple[str, ...] | None:
    """The class names as strings; ValueError if they are not a list of strings."""
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(
            f"{path}: 'class_names' is {names.dtype} {list(names.shape)}; expected strings [classes]."
        )
    return tuple(str(name) for name in names)


def _convert(name: str, array: np.ndarray) -> np.ndarray:
    """The array of a field of good rows in the dtype that batches have: int32 for labels and token ids; captions in the
    Unicode form NFC."""
    entry = "label" if name == "label" else (_parse(name) or ("", ""))[1]
    if entry == "caption":
        captions = np.empty(len(array), object)
        captions[:] = [normalise(text) for text in array]
        return captions
    return array.astype(np.int32) if entry in ("label", "text") else array


def _check(name: str, array: np.ndarray, path: Path) -> np.ndarray:
    """The array of field ``name``, converted to the dtype and rank that batches have.

    Raises:
      ValueError: a dtype or rank that `_FIELDS` does not allow for this field.
    """
    parsed = _parse(name)
    entry = name if parsed is None else parsed[1]  # the key in `_FIELDS`: "image" for "image_1"
    if entry not in _FIELDS:
        return _check_unknown(name, array, path)
    kinds, ranks, expected = _FIELDS[entry]
    if array.dtype.kind not in kinds or array.ndim not in ranks or (kinds == "u" and array.dtype != np.uint8):
        advice = ""
        if entry in ("image", "video") and array.dtype.kind == "f":
            advice = " Convert it first: np.round(255 * x).astype(np.uint8) for values in [0, 1]."
        if entry != name:
            advice += f" Rename it if it is not meant as {entry.partition('_')[0]}."
        raise ValueError(
            f"{path}: {name!r} is {array.dtype} {list(array.shape)}; expected {expected}.{advice}"
        )
    if entry in ("image", "video") and array.ndim == ranks[0]:  # gray levels without an axis for channels
        return array[..., None]
    if entry == "audio":
        return _check_audio(name, array, path, expected)
    if entry in KINDS and KINDS[entry].measured and array.dtype.kind in "fb":
        # 16-bit floats would overflow in sums; 64 bits are kept until the values are standardised.
        return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    if entry == "caption":
        return array.astype(object)
    if entry == "group":
        return _number_groups(array)
    return array


def _find_split(root: Path, split: str) -> tuple[Path, bool]:
    """The file or folder that holds a split, and whether it holds all splits: ``root`` where they are not separate, or
    the split ``train`` where there is no other one."""
    path = next((p for p in (root / f"{split}.npz", root / split) if p.exists()), root)
    if not path.exists():
        raise FileNotFoundError(f"npz:{root}: there is no such file or folder.")
    if root.is_dir() and not any(root.glob("*.npy")):
        names = sorted(p.stem for p in root.iterdir() if p.suffix == ".npz" or p.is_dir())
        if names == ["train"] and split in ("train", "test", "all"):
            return next(p for p in (root / "train.npz", root / "train") if p.exists()), True
        if path == root:
            raise FileNotFoundError(
                f"{root} has no {split}.npz, no folder {split}/ and no .npy files (found: "
                f"{', '.join(names) or 'nothing'})."
            )
    return path, path == root


def _pop_presence(arrays: dict[str, Any], modalities: tuple[str, ...], path: Path) -> dict[str, np.ndarray]:
    """Removes the fields ``<m>_present`` from ``arrays`` and returns them by modality, bool ``[N]`` each.

    Raises:
      ValueError: such a field names a modality that the data set does not have.
    """
    with_presence = [m for m in modalities if f"{m}_present" in arrays]
    present = {m: arrays.pop(f"{m}_present") for m in dict.fromkeys(with_presence)}
    unmatched = [k for k in arrays if (parsed := _parse(k)) and parsed[1].endswith("_present")]
    if unmatched:
        raise ValueError(
            f"{path}: {unmatched[0]!r} is about a modality that is not there; found: {', '.join(arrays)}."
        )
    return present


def _add_masks(arrays: dict[str, Any], modalities: tuple[str, ...], path: Path) -> None:
    """Adds ``<m>_mask`` to each text and audio modality that has none: False on token 0 of a text, True on all of a
    recording. Checks the shapes of all masks but those of measured quantities (see `_mask_measured`)."""
    for name in (m for m in modalities if m in arrays and not is_measured(m)):
        if kind_of(name) in ("text", "audio"):
            valid = arrays[name] != 0 if kind_of(name) == "text" else np.ones(arrays[name].shape, bool)
            arrays.setdefault(f"{name}_mask", valid)
        mask = arrays.get(f"{name}_mask")
        if mask is not None and mask.shape != arrays[name].shape[: mask.ndim]:
            raise ValueError(f"{path}: '{name}_mask' is {mask.shape}, '{name}' is {arrays[name].shape}.")


def _mask_measured(arrays: dict[str, Any], name: str, path: Path) -> np.ndarray:
    """Writes the mask of a modality of measured quantities, where NaN values are missing too, and sets these to 0.
    Returns which examples have any value, bool ``[N]``."""
    values, stated = arrays[name], arrays.get(f"{name}_mask")
    if stated is not None and stated.shape != values.shape[: stated.ndim]:
        raise ValueError(f"{path}: '{name}_mask' is {stated.shape}, '{name}' is {values.shape}.")
    arrays[name], arrays[f"{name}_mask"], present = mask_missing(name, values, stated)
    return present


def _mask_all_measured(
    arrays: dict[str, Any], modalities: tuple[str, ...], present: dict[str, np.ndarray], path: Path
) -> None:
    """`_mask_measured` of all of ``modalities`` that are measured; an example without any value lacks the modality in
    ``present``."""
    for name in filter(is_measured, modalities):
        has_values = _mask_measured(arrays, name, path)
        if not has_values.all():
            present[name] = present.get(name, np.ones(len(has_values), bool)) & has_values


def _pop_feature_names(fields: dict[str, np.ndarray], path: Path) -> dict[str, tuple[str, ...]]:
    """Removes the fields ``<m>_feature_names`` and returns them by modality.

    Raises:
      ValueError: one is not a list of strings, one for each feature of its modality.
    """
    names = {}
    for field in [name for name in fields if name.endswith("_feature_names")]:
        modality, values = field.removesuffix("_feature_names"), fields.pop(field)
        features = fields[modality].shape[-1] if modality in fields else None
        if values.dtype.kind != "U" or values.shape != (features,):
            expected = (
                f"strings [{features}]" if features else f"a field {modality!r} that it names the features of"
            )
            raise ValueError(
                f"{path}: {field!r} is {values.dtype} {list(values.shape)}; expected {expected}."
            )
        names[modality] = tuple(map(str, values))
    return names


def _select_modalities(arrays: dict[str, Any], modalities: tuple[str, ...], path: Path) -> dict[str, Any]:
    """The fields of ``modalities``, and the fields that belong to no modality, such as ``label``."""
    absent = [m for m in modalities if m not in modalities_of(arrays)]
    if absent:
        raise ValueError(f"{path} has no {absent[0]}; it has: {', '.join(arrays)}.")
    modality_of = {field: parsed[0] for field in arrays if (parsed := _parse(field))}
    return {k: v for k, v in arrays.items() if k not in modality_of or modality_of[k] in modalities}


def _check_image_size(source: ArraySource, image_size: int, path: str | Path) -> None:
    """Raises ValueError unless all images and frames are ``image_size`` pixels high and wide."""
    for name in source.modalities:
        if kind_of(name) not in ("image", "video"):
            continue
        height, width = source.arrays[name].shape[-3:-1]
        if (height, width) != (image_size, image_size):
            raise ValueError(
                f"npz:{path}: {name!r} is {height} x {width} pixels, image_size asks for {image_size}. Arrays are "
                "taken as they are: save them at that size, or set image_size (--image-size) to theirs."
            )


def _note_others(arrays: dict[str, Any], path: Path, bad_examples: BadExamples) -> None:
    """Notes the fields that are passed on without being understood."""
    for name, array in arrays.items():
        if _parse(name) is None and name not in _FIELDS:
            sentence = f"The field {name!r} of {path} is no modality or label: batches have it as it is, {{examples}}."
            bad_examples.note(sentence, len(array), once=True)


def _in_split(source: ArraySource, split: str, path: Path) -> np.ndarray:
    """Which examples of a file that holds all splits are in ``split``, bool ``[N]``: see `choose_test`.

    Raises:
      ValueError: there is no such split.
    """
    if split == "all":
        return np.ones(len(source), bool)
    require_undivided_split(split, path)
    # Examples that show the same picture are in one split: the number of the first of them decides.
    in_test = choose_test([str(first) for first in first_of_group(source).tolist()], path)
    return in_test == (split == "test")


def load_npz(
    path: str | Path,
    split: str = "train",
    modalities: tuple[str, ...] | None = None,
    *,
    image_size: int | None = None,
    bad_examples: BadExamples | None = None,
) -> ArraySource:
    """Read one split of a data set from ``PATH.npz`` or a folder of ``.npy`` files, one per field.

    Fields are those of a batch (`xmodal_jax.types.Batch`): ``image``, ``video``, ``text`` (token ids) or ``caption``
    (or ``captions.json``), ``audio``, ``vector``, ``series``, ``label``, ``<m>_mask``, ``<m>_present``; also
    ``class_names`` and ``vector_feature_names`` (strings). Others are passed on. Several modalities of one kind are
    named ``KIND_NAME``, such as ``image_1``, ``image_2`` (with captions ``caption_NAME``), and follow the rules of
    their kind.

    ``group``, integers or strings ``[N]`` (such as file names), is equal for examples that show the same picture: the
    captions of one image. A negative number or an empty string: unknown.

    ``PATH/train.npz`` or ``PATH/train/`` hold one split each. Without them, or with ``train`` alone, a tenth of the
    examples, chosen by the SHA-1 of their number (of the first one of a group), is the split ``test``, the rest
    ``train``, and ``all`` is everything.

    Args:
      path: the file or folder.
      split: see above.
      modalities: which to read; None: all.
      image_size: the side in pixels that images and frames are required to have; None: any. They are never resized.
      bad_examples: collects examples with a label that is the number of no class, a token id that is none, audio beyond
        [-1, 1] or a caption that is no text, and decides whether they stop the run (the default).

    Raises:
      ValueError: naming file and field, a wrong dtype, rank, length or size. Images in floating point are refused,
        because their range is not known.
      FileNotFoundError: there is no such data.
    """
    bad_examples = BadExamples() if bad_examples is None else bad_examples
    root = Path(path).expanduser()
    file, holds_all = _find_split(root, split)
    fields = _read_fields(file)
    class_names = _check_class_names(fields.pop("class_names", None), file)
    feature_names = _pop_feature_names(fields, file)
    arrays: dict[str, Any] = {k: _check(k, v, file) for k, v in fields.items()}
    available = modalities_of(arrays)
    if not available:
        raise ValueError(f"{file}: no field {', '.join(KINDS)} or caption (found: {', '.join(arrays)}).")
    lengths = {k: len(v) for k, v in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{file}: the fields differ in length: {lengths}.")
    bad_rows = _find_bad_rows(arrays, class_names)
    for row, reason in sorted(bad_rows.items()):
        bad_examples.add(file, row + 1, f"{reason} (row {row}, from 0)")
    arrays = {k: _convert(k, v) for k, v in arrays.items()}
    present = _pop_presence(arrays, available, file)
    _note_others(arrays, file, bad_examples)
    _add_masks(arrays, available, file)
    _mask_all_measured(arrays, available, present, file)
    if modalities is not None:
        arrays = _select_modalities(arrays, modalities, file)
        present = {m: v for m, v in present.items() if m in modalities}
    # This source gives the final modalities and the number of examples.
    source = ArraySource(arrays | ({"present": present} if present else {}), class_names=None)
    if present:  # batches state the presence of all modalities, or of none
        complete = np.ones(len(source), bool)
        arrays["present"] = {m: np.asarray(present.get(m, complete)) for m in source.modalities}
    used = _in_split(source, split, file) if holds_all else np.ones(len(source), bool)
    used[list(bad_rows)] = False
    if not used.any():
        raise ValueError(
            f"{file}: no usable example in the split {split!r} ({len(bad_rows)} bad ones left out). Correct those, or "
            "add examples."
        )
    if not used.all():
        arrays = _map(lambda a: a[used], arrays)
    source = ArraySource(arrays, class_names)
    source.feature_names = {m: names for m, names in feature_names.items() if m in source.modalities} or None
    if image_size is not None:
        _check_image_size(source, image_size, path)
    return source
