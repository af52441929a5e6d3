"""Reads the inputs of a trained run: paths, bytes of files, pictures, arrays, sounds, texts, numbers.

New inputs are brought into the format of the run's training data: the size of its images, the rate of its audio, its
tokens, its standard units.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from xmodal_jax.core.text_files import normalise, printable, shorten, surrogate_in
from xmodal_jax.data.media import (
    Resize,
    check_known_range,
    decode_audio,
    decode_image,
    decode_video,
    resample_and_cut,
    to_square,
)
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.splits import FittedTransforms, make_text_cleaner
from xmodal_jax.data.standardise import standardisation_from_json
from xmodal_jax.data.text import TokenizeTransform, tokenizer_from_files
from xmodal_jax.data.views import modality_fields
from xmodal_jax.types import KINDS, is_measured, kind_of

PLURALS = {"images": "image", "texts": "text", "videos": "video", "vectors": "vector"}
"""Keywords of inputs that are not the name of their modality."""
WORKERS = 8
"""Threads that decode inputs."""
MAX_WORDS = 5
"""Words that a warning names."""
_NOT_THE_USERS = ("xmodal_jax", "jaxtyping", "beartype")
"""Packages whose lines no warning points at: this one, and those that can check the types of its arguments."""


class InputFormat(NamedTuple):
    """The format of a run's training data, which new inputs are brought into."""

    modalities: tuple[str, ...]
    """The modalities of the inputs."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of one training example by field, such as ``{"image": (64, 64, 3)}``."""
    sample_rate: int
    """Samples of audio per second."""
    max_seconds: float | None
    """Length that audio is cut to; None: any length."""
    resize: Resize
    """How images and video frames become squares."""
    transform: FittedTransforms
    """Tokens of captions, and standard units of measured quantities."""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], modalities: Sequence[str]) -> InputFormat:
        """The format of a run from the metadata of its checkpoint (`train.checkpoint.RestoredCheckpoint`)."""
        options = metadata["config"].get("input", {})
        return cls(
            tuple(modalities),
            {name: tuple(shape) for name, shape in metadata.get("shapes", {}).items()},
            sample_rate=options.get("sample_rate", 16_000),
            max_seconds=options.get("max_seconds"),
            resize=Resize.from_options(options),
            transform=_read_transforms(metadata),
        )

    def limit_audio(self, *limits: float | None) -> InputFormat:
        """This format, in which audio is cut to the shortest of `max_seconds` and ``limits``; None: any length."""
        known = [seconds for seconds in (self.max_seconds, *limits) if seconds is not None]
        return self._replace(max_seconds=min(known, default=None))

    def describe(self, modality: str) -> str:
        """What an input of ``modality`` may be, in words."""
        return _input_kind(modality).accepts(self, modality)


def _read_transforms(metadata: Mapping[str, Any]) -> FittedTransforms:
    """The transforms that were fitted to a run's training data, from the metadata of its checkpoint."""
    tokenize = standardise = None
    if metadata.get("tokenizer"):
        length = metadata.get(
            "max_length", metadata.get("length")
        )  # contrastive and fusion runs have the first
        clean = make_text_cleaner(metadata["config"].get("text_cleanup", "none"))
        tokenize = TokenizeTransform(tokenizer_from_files(metadata["tokenizer"]), length, clean=clean)
    if metadata.get("standardisation"):
        standardise = standardisation_from_json(metadata["standardisation"], "the checkpoint")
    return FittedTransforms(tokenize, standardise)


class _KindOfInput(NamedTuple):
    """How inputs of one kind are read."""

    read: Callable[[Any, InputFormat, str], Any]
    """``read(example, format, modality)``: the example as it stands in a batch. Raises ValueError or OSError."""
    stack: Callable[[list, InputFormat, str], dict[str, np.ndarray]]
    """``stack(examples, format, modality)``: the fields of a batch; an example of None is missing."""
    accepts: Callable[[InputFormat, str], str]
    """``accepts(format, modality)``: what an input may be, in words."""
    is_one: Callable[[Any], bool]
    """Whether a value is one input rather than several."""


class InputSource(Source):
    """Inputs as a data set: they are read when a batch needs them, files in several threads.

    ::

        source = InputSource({"image": ["a.png", picture, None], "text": ["red", "blue", "green"]}, format)
        source.batch(np.array([0, 1]))  # {"image": uint8 [2, H, W, C], "caption": ..., "present": ...}

    Args:
      inputs: for each modality as many inputs; None: the example lacks the modality.
      format: of the run's training data.
      fields: further fields of the batches, ``[N]`` each, such as ``label``.

    Raises:
      ValueError: the numbers of inputs differ, there are none, or an example has no modality at all.
    """

    def __init__(
        self,
        inputs: Mapping[str, Iterable[Any]],
        format: InputFormat,
        fields: Mapping[str, np.ndarray] | None = None,
    ):
        """Keeps the inputs, which are not read yet."""
        # As lists: an element of an array is another object each time that it is taken (see `_read`).
        self.inputs = {name: list(values) for name, values in inputs.items()}
        counts = {name: len(values) for name, values in self.inputs.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"all modalities need the same number of inputs, got {counts or 'no inputs'}")
        self.format, self._length = format, next(iter(counts.values()))
        self.modalities, self.fields = tuple(self.inputs), dict(fields or {})
        if not self._length:
            raise ValueError("there is no input")
        missing = np.array([[value is None for value in values] for values in self.inputs.values()])
        if missing.all(axis=0).any():
            index = int(missing.all(axis=0).argmax())
            raise ValueError(f"example {index} has none of {', '.join(self.modalities)}: leave it out")
        self._present = None if not missing.any() else dict(zip(self.modalities, ~missing, strict=True))

    def __len__(self) -> int:
        return self._length

    def presence(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
        indices = self._resolve_indices(indices)
        if self._present is None:
            return dict.fromkeys(self.modalities, np.ones(len(indices), bool))
        return {m: present[indices] for m, present in self._present.items()}

    def batch(self, indices: np.ndarray) -> RawBatch:
        """The fields of the inputs ``indices``.

        Raises:
          ValueError: an input cannot be used; the message names it.
        """
        fields: RawBatch = {name: values[indices] for name, values in self.fields.items()}
        for modality in self.modalities:
            kind = _input_kind(modality)
            fields |= kind.stack(self._read(modality, kind, indices), self.format, modality)
        if self._present is not None:
            fields["present"] = {m: present[indices] for m, present in self._present.items()}
        return fields

    def _read(self, modality: str, kind: _KindOfInput, indices: np.ndarray) -> list:
        """The inputs ``indices`` of one modality as they stand in a batch; None for those that are missing."""
        values = self.inputs[modality]
        # An object that stands for several examples, such as the picture of all questions, is read once.
        distinct: dict[int, int] = {}  # the first index of each object
        for index in indices.tolist():
            distinct.setdefault(id(values[index]), index)
        has_files = kind_of(modality) != "text" and any(
            _is_file(values[index]) for index in distinct.values()
        )
        read = lambda index: self._read_one(modality, kind, index, values[index])
        contents = dict(
            zip(distinct, (_pool().map if has_files else map)(read, distinct.values()), strict=True)
        )
        return [contents[id(values[index])] for index in indices.tolist()]

    def _read_one(self, modality: str, kind: _KindOfInput, index: int, value: Any) -> Any:
        if value is None:
            return None
        try:
            return kind.read(value, self.format, modality)
        except (
            ValueError,
            OSError,
            TypeError,
            RuntimeError,
        ) as error:  # the last of tensors of other libraries
            name = f" ({printable(str(value))})" if isinstance(value, (str, Path)) else ""
            reason = getattr(error, "strerror", None) or error  # without the number of the error and the path
            raise ValueError(f"{modality} {index}{name}: {reason}") from error


def warn_unknown_words(texts: Iterable[Any], tokenize: TokenizeTransform) -> None:
    """A `UserWarning` that names the first of ``texts`` with a word that the tokenizer does not know, and such words.
    It points at the line that called the package."""
    tokenizer = tokenize.tokenizer
    if not tokenizer.has_unknown_token:
        return
    texts = [text for text in texts if isinstance(text, str) and not surrogate_in(text)]
    cleaned = [text if tokenize.clean is None else tokenize.clean(text) for text in texts]
    ids, mask = tokenizer.encode_batch(cleaned, tokenize.max_length)
    which = np.flatnonzero((mask & (ids == tokenizer.unk_id)).any(axis=1))
    if len(which):
        others = f" (and {len(which) - 1} further texts)" if len(which) > 1 else ""
        words = list(dict.fromkeys(word for k in which for word in tokenizer.unknown_words(cleaned[k])))
        names = ", ".join(map(shorten, words[:MAX_WORDS])) + (", ..." if len(words) > MAX_WORDS else "")
        warn_user(
            f"the text {shorten(texts[which[0]])}{others} has words that the run was not trained on ({names}), which "
            "it cannot tell apart: use words of the training texts"
        )


def warn_user(message: str) -> None:
    """A `UserWarning` that points at the line that called the package."""
    frame, level = sys._getframe(), 1
    while (
        frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USERS
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The threads that decode files, which all sources share."""
    return ThreadPoolExecutor(WORKERS, thread_name_prefix="inputs")


def collect_inputs(format: InputFormat, keywords: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The inputs of each modality from keyword arguments: ``images=`` or ``image=`` for the modality image.

    A value is a list of inputs, an array of them, or one input. Keywords whose value is None are left out.

    Raises:
      ValueError: a keyword names no modality of the run, or two name the same, or a value is no list.
    """
    inputs: dict[str, Sequence[Any]] = {}
    for keyword, value in keywords.items():
        modality = PLURALS.get(keyword, keyword)
        if modality not in format.modalities:
            known = ", ".join(format.modalities)
            raise ValueError(f"this run has no modality {modality!r}; it has {known}")
        if modality in inputs:
            raise ValueError(f"{modality} is given twice, the second time as {keyword}")
        if value is not None:
            inputs[modality] = as_list(modality, value)
    return inputs


def broadcast_inputs(inputs: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The inputs by modality, where a modality with one input has it for every example if others have several: one
    picture and ten questions about it are ten examples."""
    counts = {len(values) for values in inputs.values()} - {1}
    if len(counts) != 1:
        return dict(inputs)
    (count,) = counts
    return {m: list(values) * count if len(values) == 1 else values for m, values in inputs.items()}


def as_list(modality: str, value: Any) -> Sequence[Any]:
    """Several inputs of ``modality``: a value that is one input becomes a list of one.

    Raises:
      ValueError: the value is neither one input nor several in an order.
    """
    if getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U", "S"):
        return list(np.asarray(value))  # a NumPy array or pandas Series of paths, texts or other inputs
    if _is_one_input(modality, value):
        return [value]
    if isinstance(value, (set, frozenset, Mapping)) or not hasattr(value, "__iter__"):
        raise ValueError(f"inputs of {modality} are one input or a list of them, got {type(value).__name__}")
    return list(np.asarray(value)) if hasattr(value, "shape") else list(value)


def positions_of(names: Sequence[str], known: Sequence[str], singular: str, plural: str) -> np.ndarray:
    """The position of each name in ``known``, int32 ``[N]``.

    Raises:
      ValueError: there is no such name; ``singular`` and ``plural`` say of what, such as "class" and "classes".
    """
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no {singular} {unknown[0]!r}; the {plural} are {', '.join(known)}")
    return np.array([known.index(name) for name in names], np.int32)


def check_count(name: str, count: int | None, *, least: int) -> None:
    """Raises ValueError where the argument ``name`` is neither None nor a whole number from ``least`` on."""
    is_whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
    if count is not None and not (is_whole and count >= least):
        raise ValueError(f"{name} must be at least {least} and a whole number, got {count!r}")


# Readers of single inputs.


def _read_text(value: Any, format: InputFormat, modality: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is a str, got {type(value).__name__}")
    return normalise(value)


def _read_image(value: Any, format: InputFormat, modality: str) -> np.ndarray:
    """Pixels uint8 ``[S, S, C]`` from a path, the bytes of a file, a Pillow image, or pixels uint8, which are taken as
    they are where they have this shape."""
    size, width, channels = format.shapes[modality]
    if getattr(value, "shape", None) == (size, width, channels) and value.dtype == np.uint8:
        return np.asarray(value)
    _check_square(format.shapes[modality])
    if isinstance(value, (str, Path, bytes)):
        return decode_image(value, size, channels, format.resize)
    return to_square(_to_picture(value), size, channels, format.resize)


def _check_square(shape: tuple[int, ...]) -> None:
    """Raises ValueError for images or frames ``[..., H, W, C]`` of training that were no squares, which other images
    would become."""
    *_, height, width, channels = shape
    if height != width:
        raise ValueError(
            f"the images of training have {height} x {width} pixels: give pixels uint8 of exactly the shape "
            f"{tuple(shape)}, as others are made square"
        )


def _to_picture(value: Any) -> Image.Image:
    """A Pillow image of a Pillow image, which is turned as its camera says (EXIF), or of an array of pixels, uint8
    ``[H, W]`` or ``[H, W, C]`` with 1, 3 or 4 channels."""
    if isinstance(value, Image.Image):
        if not value.width * value.height:
            raise ValueError(f"the image is empty: it has {value.width} x {value.height} pixels")
        check_known_range(value)
        return ImageOps.exif_transpose(value)
    pixels = _to_array(value, "an image is a path, the bytes of a file, a Pillow image or an array of pixels")
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are uint8 in 0..255, got {pixels.dtype}: convert them first")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        raise ValueError(
            f"pixels have the shape [H, W] or [H, W, C] with 1, 3 or 4 channels, got {pixels.shape}"
        )
    if not pixels.size:
        raise ValueError(f"the image is empty: its shape is {pixels.shape}")
    return Image.fromarray(pixels)


def _to_array(value: Any, expected: str) -> np.ndarray:
    """``value`` as an array of numbers; ``expected``: what is accepted, for the error."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{expected}, got {type(value).__name__}")
    return array


def _read_audio(value: Any, format: InputFormat, modality: str) -> np.ndarray:
    """Samples int16 ``[t]`` at the run's rate, from a path, the bytes of a file, or (waveform, rate)."""
    if isinstance(value, (str, Path, bytes)):
        return decode_audio(value, format.sample_rate, format.max_seconds)[0]
    waveform, rate = check_sound(value)
    waveform = to_float_samples(waveform)
    return resample_and_cut(waveform, rate, format.sample_rate, format.max_seconds)[0]


def check_sound(value: Any) -> tuple[np.ndarray, int]:
    """``(waveform, rate)`` of an input that is no file: ``[T]`` or ``[T, channels]``, and samples per second.

    Raises:
      ValueError: it is no such pair.
    """
    if not _is_sound(value):
        raise ValueError("a sound is a path, the bytes of a file, or a pair (waveform, samples per second)")
    waveform, rate = np.asarray(value[0]), int(value[1])
    if rate < 1 or waveform.ndim not in (1, 2):
        raise ValueError(
            f"a waveform has the shape [T] or [T, channels] and a positive rate, got {waveform.shape}, {rate}"
        )
    if waveform.ndim == 2 and waveform.shape[1] > waveform.shape[0]:
        raise ValueError(
            f"a waveform has the shape [T] or [T, channels], got {waveform.shape}, which has more channels than "
            "samples: transpose it"
        )
    return waveform, rate


def to_float_samples(waveform: np.ndarray) -> np.ndarray:
    """Samples as floats in [-1, 1]: int16 and int32 are divided by their range.

    Raises:
      ValueError: they are of another type, or floats out of range.
    """
    if waveform.dtype in (np.int16, np.int32):
        return waveform / np.float32(np.iinfo(waveform.dtype).max + 1)
    if waveform.dtype.kind != "f" or np.abs(waveform).max(initial=0) > 1.01:
        raise ValueError("a waveform holds floats in [-1, 1], or int16 or int32")
    return waveform


def _is_sound(value: Any) -> bool:
    """Whether ``value`` is a pair (waveform, samples per second)."""
    if not isinstance(value, tuple) or len(value) != 2 or isinstance(value[1], tuple):
        return False  # two pairs, for example
    return np.ndim(value[1]) == 0 and np.ndim(value[0]) > 0


def _read_video(value: Any, format: InputFormat, modality: str) -> np.ndarray:
    """Frames uint8 ``[F, S, S, C]`` from a path, the bytes of a file, or a list or array of frames."""
    frames, size, width, channels = format.shapes[modality]
    if getattr(value, "shape", None) == (frames, size, width, channels) and value.dtype == np.uint8:
        return np.asarray(value)
    _check_square(format.shapes[modality])
    if isinstance(value, (str, Path, bytes)):
        return decode_video(value, frames, size, channels, format.resize)
    if not len(value):
        raise ValueError("the video has no frames")
    chosen = np.round(np.linspace(0, len(value) - 1, frames)).astype(int)  # evenly spaced, as files are read
    return np.stack([to_square(_to_picture(value[k]), size, channels, format.resize) for k in chosen])


def _read_vector(value: Any, format: InputFormat, modality: str) -> np.ndarray:
    """Numbers ``[D]`` in the unit of the data, from an array or a dict by the names of features; NaN is missing."""
    (size,) = format.shapes[modality]
    if isinstance(value, Mapping):
        return _check_finite(_by_name(value, _feature_names(format, modality)))
    numbers = _to_array(value, "a vector is an array or a dict of numbers").astype(np.float64)
    if numbers.shape != (size,):
        raise ValueError(f"the vector has the shape {numbers.shape}, the training data have ({size},)")
    return _check_finite(numbers)


def _check_finite(numbers: np.ndarray) -> np.ndarray:
    """``numbers`` of measured quantities, of which NaN is missing and infinity a mistake, as in data of training."""
    if np.isinf(numbers).any():
        raise ValueError("a value is infinite (NaN: the value is missing)")
    return numbers


def _read_array(value: Any, format: InputFormat, modality: str) -> np.ndarray:
    """Numbers of a kind of your own, in the shape that the training data have. Of measured quantities, in the unit of
    the data, NaN is missing, and where the first axis is shorter the rest is missing too. Others may be shorter along
    the axes of their mask, see `_stack_masked_arrays`."""
    numbers, shape = _to_array(value, "it is an array of numbers"), tuple(format.shapes[modality])
    if is_measured(modality):
        numbers = numbers.astype(np.float64)
        if numbers.ndim == len(shape) and numbers.shape[1:] == shape[1:] and len(numbers) < shape[0]:
            missing = np.full((shape[0] - len(numbers), *shape[1:]), np.nan)
            numbers = np.concatenate([numbers, missing])
    masked = _masked_axes(format, modality)
    fits = numbers.ndim == len(shape) and numbers.shape[masked:] == shape[masked:]
    if not fits or not all(0 < n <= most for n, most in zip(numbers.shape[:masked], shape, strict=False)):
        shorter = " (or less along the axes of the mask)" if masked else ""
        raise ValueError(f"it has the shape {numbers.shape}, the training data have {shape}{shorter}")
    return _check_finite(numbers) if is_measured(modality) else numbers


def _masked_axes(format: InputFormat, modality: str) -> int:
    """How many axes of an example of a kind of your own a mask covers, from the first one on; 0 for measured
    quantities, whose missing values say the same, and where the training data had no mask."""
    return 0 if is_measured(modality) else len(format.shapes.get(f"{modality}_mask", ()))


def _describe_array(format: InputFormat, modality: str) -> str:
    """What an input of a kind of your own may be, in words."""
    shape, masked = list(format.shapes[modality]), _masked_axes(format, modality)
    axes = "its first axis" if masked == 1 else f"its first {masked} axes"
    shorter = f", without padding: {axes} may be shorter" if masked else ""
    return f"an array of numbers of the shape {shape}{shorter}"


def _by_name(value: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """The values of the features ``names``, NaN where there is none."""
    unknown = [name for name in value if name not in names]
    if unknown:
        raise ValueError(
            f"there is no feature {unknown[0]!r}; the features are {', '.join(names) or 'without names'}"
        )
    return np.array([np.nan if value.get(name) is None else float(value[name]) for name in names])


def _feature_names(format: InputFormat, modality: str) -> tuple[str, ...]:
    """The names of a modality's features; empty where they are numbered."""
    standardise = format.transform.standardise
    statistics = None if standardise is None else standardise.statistics.get(modality)
    return (statistics.names or ()) if statistics is not None else ()


def _read_series(value: Any, format: InputFormat, modality: str) -> np.ndarray:
    """Numbers ``[t, C]`` in the unit of the data, ``t`` at most that of the training data; NaN is missing."""
    steps, channels = format.shapes[modality]
    numbers = _to_array(value, "a series is an array of numbers").astype(np.float64)
    if numbers.ndim != 2 or numbers.shape[1] != channels:
        raise ValueError(f"the series has the shape {numbers.shape}, the training data have [T, {channels}]")
    if not 1 <= len(numbers) <= steps:
        raise ValueError(f"the series has {len(numbers)} steps, at least 1 and at most {steps} can be used")
    return _check_finite(numbers)


# How examples become the fields of a batch.


def _stack_arrays(examples: list, format: InputFormat, modality: str) -> dict[str, np.ndarray]:
    """One field of arrays of equal shape; zeros where an example is missing."""
    known = next((x for x in examples if x is not None), None)
    if known is None:
        known = np.zeros(format.shapes[modality], np.uint8)
    return {modality: np.stack([np.zeros_like(known) if x is None else x for x in examples])}


def _stack_masked_arrays(examples: list, format: InputFormat, modality: str) -> dict[str, np.ndarray]:
    """Arrays of a kind of your own. Where the training data had a mask, they are padded with zeros along its axes, and
    the mask says where an example has numbers."""
    masked = _masked_axes(format, modality)
    if not masked:
        return _stack_arrays(examples, format, modality)
    shape = (len(examples), *format.shapes[modality])
    values = np.zeros(shape, np.result_type(np.bool_, *(x for x in examples if x is not None)))
    mask = np.zeros(shape[: 1 + masked], bool)
    for k, example in enumerate(examples):
        if example is not None:
            region = (k, *map(slice, example.shape))
            values[region], mask[region[: 1 + masked]] = example, True
    return {modality: values, f"{modality}_mask": mask}


def _stack_texts(examples: list, format: InputFormat, modality: str) -> dict[str, np.ndarray]:
    field = modality_fields(modality)[-1]
    return {field: np.array(["" if x is None else x for x in examples], object)}


def _stack_audio(examples: list, format: InputFormat, modality: str) -> dict[str, np.ndarray]:
    """Waveforms padded to whole seconds, so that few lengths occur and few programs are compiled."""
    longest = max((len(x) for x in examples if x is not None), default=1)
    length = -(-longest // format.sample_rate) * format.sample_rate
    return _pad(examples, (length,), modality, np.int16)


def _stack_series(examples: list, format: InputFormat, modality: str) -> dict[str, np.ndarray]:
    return _pad(examples, format.shapes[modality], modality, np.float64)


def _pad(examples: list, shape: Sequence[int], modality: str, dtype: Any) -> dict[str, np.ndarray]:
    """Sequences padded with zeros to ``shape``, and their mask ``[N, T]``."""
    values, mask = np.zeros((len(examples), *shape), dtype), np.zeros((len(examples), shape[0]), bool)
    for k, example in enumerate(examples):
        if example is not None:
            values[k, : len(example)], mask[k, : len(example)] = example, True
    return {modality: values, f"{modality}_mask": mask}


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, Path, bytes))


_PIXELS = "a path, the bytes of a file, a Pillow image, or pixels uint8 [H, W, C] of any size"
_KINDS: dict[str, _KindOfInput] = {
    "text": _KindOfInput(
        _read_text,
        _stack_texts,
        lambda f, m: (
            "a str"
            + (f", at most {f.transform.tokenize.max_length} tokens of it" if f.transform.tokenize else "")
        ),
        lambda v: isinstance(v, str),
    ),
    "image": _KindOfInput(
        _read_image,
        _stack_arrays,
        lambda f, m: f"{_PIXELS}; it becomes {f.shapes[m][0]} x {f.shapes[m][1]} pixels",
        lambda v: _is_file(v) or isinstance(v, Image.Image) or (hasattr(v, "shape") and len(v.shape) < 4),
    ),
    "audio": _KindOfInput(
        _read_audio,
        _stack_audio,
        lambda f, m: (
            "a path, the bytes of a file, or (waveform, samples per second); "
            f"it becomes {f.sample_rate} Hz" + (f", at most {f.max_seconds:g} s" if f.max_seconds else "")
        ),
        lambda v: _is_file(v) or _is_sound(v),
    ),
    "video": _KindOfInput(
        _read_video,
        _stack_arrays,
        lambda f, m: (
            f"a path, the bytes of a file, or frames uint8 [F, H, W, C]; {f.shapes[m][0]} frames are used"
        ),
        lambda v: _is_file(v) or (hasattr(v, "shape") and len(v.shape) < 5),
    ),
    "vector": _KindOfInput(
        _read_vector,
        _stack_arrays,
        lambda f, m: f"{f.shapes[m][0]} numbers in the unit of the data, or a dict by the names of features",
        lambda v: isinstance(v, Mapping) or (hasattr(v, "shape") and len(v.shape) < 2),
    ),
    "series": _KindOfInput(
        _read_series,
        _stack_series,
        lambda f, m: f"numbers [T, {f.shapes[m][1]}] in the unit of the data, T at most {f.shapes[m][0]}",
        lambda v: hasattr(v, "shape") and len(v.shape) < 3,
    ),
}
"""How the inputs of each kind of modality are read."""
_ANOTHER_KIND = _KindOfInput(
    _read_array,
    _stack_masked_arrays,
    _describe_array,
    lambda v: False,  # the number of axes decides, see `_is_one_input`
)
"""How those of a kind of your own are read, which has no entry."""


def _input_kind(modality: str) -> _KindOfInput:
    return _KINDS.get(kind_of(modality), _ANOTHER_KIND)


def _is_one_input(modality: str, value: Any) -> bool:
    """Whether ``value`` is one input, not several."""
    kind = kind_of(modality)
    if kind not in _KINDS and kind in KINDS:
        return hasattr(value, "shape") and len(value.shape) < KINDS[kind].axes
    return _input_kind(modality).is_one(value)
