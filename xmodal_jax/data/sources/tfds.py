"""``--data tfds:NAME``: data sets prepared by TensorFlow Datasets (ArrayRecord files), read without TensorFlow.

The files are read with TensorFlow Datasets' record reader and example parser. Its builders are avoided for two reasons:
constructing one imports TensorFlow for many data sets (every one with audio), and a prepared folder describes itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.core.nesting import nested, value_at
from xmodal_jax.core.text_files import normalise, read_lines
from xmodal_jax.data import media
from xmodal_jax.data.source import RawBatch, Source


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Where a TensorFlow data set keeps what a batch needs."""

    fields: Mapping[str, str]
    """The path of the feature that holds each modality or ``label``, such as ``captions/text`` in nested features."""
    prompt: str | None = None
    """Template of a caption with {} for the class name, for data sets without text; None: no captions are made."""
    captions: int = 1
    """Captions per image; each gives one example (a shorter list of captions is repeated)."""
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The data set's own name of a split where it differs, with an optional slice in percent: ``train[:95%]``."""
    sample_rate: int | None = None
    """Sample rate of the stored audio in Hz, where the data set's description of the feature does not state it; None:
    assumed to be the rate of the returned audio (``sample_rate`` of `TfdsSource`), so that nothing is resampled."""


_IMAGE_LABEL = {"image": "image", "label": "label"}
ADAPTERS: dict[str, Adapter] = {  # others are read by `generic_adapter`
    "mnist": Adapter(_IMAGE_LABEL, "a photo of the number {}"),
    "fashion_mnist": Adapter(_IMAGE_LABEL, "a photo of a {}"),
    "cifar10": Adapter(_IMAGE_LABEL, "a photo of a {}"),
    "cifar100": Adapter(_IMAGE_LABEL, "a photo of a {}"),
    "oxford_flowers102": Adapter(_IMAGE_LABEL, "a photo of a {}, a type of flower"),
    "coco_captions": Adapter({"image": "image", "text": "captions/text"}, captions=5, splits={"test": "val"}),
    "speech_commands": Adapter({"audio": "audio", "label": "label"}, "{}", sample_rate=16000),
    "librispeech": Adapter(
        {"audio": "speech", "text": "text"},
        splits={"train": "train_clean100", "validation": "dev_clean", "test": "test_clean"},
        sample_rate=16000,
    ),
    "ljspeech": Adapter(
        {"audio": "speech", "text": "text_normalized"},
        splits={"train": "train[:95%]", "test": "train[95%:]"},
        sample_rate=22050,
    ),
}


_IDENTIFIERS = ("id", "file_name", "filename", "file", "url", "image_id", "key")
"""Names of text features that are no captions."""


def clean_class_name(name: str) -> str:
    """A class name as one would say it: ``Ankle boot`` -> ``ankle boot``, ``T-shirt/top`` -> ``t-shirt``."""
    return " ".join(name.split("/")[0].replace("_", " ").lower().split())


def _prepare_command(name: str, data_dir: Path) -> str:
    """The shell command that prepares a data set, for error messages."""
    return (
        f"pip install tensorflow-cpu && tfds build {name} --data_dir={data_dir} --file_format=array_record "
        "(TensorFlow is needed for this once, not for training)"
    )


def find_prepared(name: str, data_dir: str | Path | None = None) -> Path:
    """The folder of the highest prepared version of a data set.

    Args:
      name: ``NAME`` or ``NAME/CONFIG``, each also with ``:VERSION``.
      data_dir: where data sets are prepared; None: the environment variable TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises:
      FileNotFoundError: it is not prepared; the message has the command that does it.
      ValueError: there are several configurations.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    path, _, version = name.partition(":")
    # A version's folder holds features.json: NAME/VERSION/ or NAME/CONFIG/VERSION/.
    folders = [f.parent for pattern in ("*", "*/*") for f in (root / path).glob(f"{pattern}/features.json")]
    folders = [f for f in folders if "incomplete" not in f.name and version in ("", f.name)]
    if not folders:
        raise FileNotFoundError(
            f"tfds:{name} is not prepared in {root}. Prepare it with: {_prepare_command(name, root)}. "
            "If it lies elsewhere, set data_dir (--data-dir)."
        )
    if len({f.parent for f in folders}) > 1:
        configs = sorted(str(f.parent.relative_to(root)) for f in folders)
        raise ValueError(
            f"tfds:{name} is prepared in several configurations: choose one of "
            f"tfds:{', tfds:'.join(configs)}."
        )

    def version_numbers(folder: Path) -> tuple[int, ...]:
        """``3.0.1`` as (3, 0, 1)."""
        return tuple(int(part) if part.isdigit() else -1 for part in folder.name.split("."))

    return max(folders, key=version_numbers)


def _without_audio(node: Any) -> Any:
    """The description of features (features.json) with each Audio feature replaced by the plain tensor or string that
    it is stored as, because TFDS's Audio class needs TensorFlow. ``node`` is a part of the nested description."""
    if not isinstance(node, dict):
        return node
    if str(node.get("pythonClassName", "")).endswith("audio_feature.Audio"):
        audio = node["audio"]
        prefix = "tensorflow_datasets.core.features."
        if audio.get("lazyDecode"):  # stored as the content of an audio file
            return {"pythonClassName": prefix + "text_feature.Text", "text": {}}
        tensor = {
            "shape": audio["shape"],
            "dtype": audio["dtype"],
            "encoding": audio.get("encoding", "none").lower(),
        }
        return {"pythonClassName": prefix + "tensor_feature.Tensor", "tensor": tensor}
    return {key: _without_audio(value) for key, value in node.items()}


def _prune(description: dict, paths: set[str]) -> dict:
    """The description of features with only those top-level features that contain one of ``paths``."""
    features = description["featuresDict"]["features"]
    used = {name: node for name, node in features.items() if any(p.split("/")[0] == name for p in paths)}
    return {**description, "featuresDict": {"features": used}}


def _flatten(description: dict, prefix: str = "") -> dict[str, dict]:
    """The description of each feature by its path, such as ``captions/text``; ``description`` is that of features.json,
    nested in dictionaries and sequences, and ``prefix`` its own path."""
    if "featuresDict" in description:
        nodes = {}
        for name, node in description["featuresDict"].get("features", {}).items():
            nodes |= _flatten(node, f"{prefix}/{name}" if prefix else name)
        return nodes
    if "sequence" in description and "featuresDict" in description["sequence"].get("feature", {}):
        return _flatten(description["sequence"]["feature"], prefix)
    return {prefix: description}


def generic_adapter(nodes: dict[str, dict]) -> Adapter:
    """An adapter for an unknown data set: its first feature of each type (image, audio, text, class label).

    ``nodes``: the description of each feature in features.json, by its path.

    Raises:
      ValueError: no feature is an image or audio.
    """
    fields: dict[str, str] = {}
    field_of_class = {"Image": "image", "Audio": "audio", "Text": "text", "ClassLabel": "label"}
    for path, node in nodes.items():
        field = field_of_class.get(node.get("pythonClassName", "").rsplit(".", 1)[-1])
        is_identifier = field == "text" and path.rsplit("/", 1)[-1] in _IDENTIFIERS  # such as a file name
        if field and field not in fields and not is_identifier:
            fields[field] = path
    if not {"image", "audio"} & set(fields):
        raise ValueError(
            f"no image or audio among the features {', '.join(nodes)}: this data set cannot be used."
        )
    return Adapter(fields, prompt="a photo of a {}" if "image" in fields else "{}")


class TfdsSource(Source):
    """One split of a prepared data set.

    Where an image has several captions, each gives one example; ``group`` int32 ``[B]`` in each batch is equal for
    those. A data set without text but with class names gets captions made of these.

    Args:
      name: see `find_prepared`.
      split: ``train``, ``test`` or another split of the data set; where it has no ``test``, that is ``validation``.
      data_dir: see `find_prepared`.
      image_size: side in pixels that images are resized to; None: the size that the data set states, if its images are
        all of one size, else 64.
      image_fit, resample, image_centre: how images become squares, see `media.Resize`.
      channels: 1 (gray) or 3 (RGB).
      sample_rate: Hz that audio is resampled to.
      max_seconds: length that audio is cut and padded to.
      modalities: which to read; None: all.
      prompt: template of a caption with {} for the class name; None: the adapter's.
      adapter: where the features are; None: the entry of `ADAPTERS`, or `generic_adapter`.

    Raises:
      FileNotFoundError: it is not prepared, or in another file format.
      ValueError: no such split, modality or feature.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        *,
        data_dir: str | Path | None = None,
        image_size: int | None = None,
        image_fit: media.Fit = "crop",
        resample: media.Resample = "bicubic",
        image_centre: float = 1.0,
        channels: int = 3,
        sample_rate: int = 16000,
        max_seconds: float = 4.0,
        modalities: tuple[str, ...] | None = None,
        prompt: str | None = None,
        adapter: Adapter | None = None,
    ):
        import tensorflow_datasets as tfds

        folder = find_prepared(name, data_dir)
        description = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        nodes = _flatten(description)  # the description of each feature by its path
        adapter = adapter or ADAPTERS.get(name.split("/")[0].split(":")[0]) or generic_adapter(nodes)
        absent = [f"{field} -> {path}" for field, path in adapter.fields.items() if path not in nodes]
        if absent:
            raise ValueError(
                f"tfds:{name}: no feature for {absent[0]}; its features are: {', '.join(nodes)}."
            )
        self._fields, self._title = dict(adapter.fields), f"tfds:{name} {split}"
        self.class_names = self._read_class_names(folder, nodes)
        self._prompt = prompt or adapter.prompt
        # Whether captions are made from class names.
        self._prompted = (
            "text" not in self._fields and self.class_names is not None and self._prompt is not None
        )
        self.modalities = self._choose_modalities(name, modalities)
        # Captions, and so examples, per record.
        self._captions = adapter.captions if "text" in self._fields and "text" in self.modalities else 1
        self._records, self._start, self._count = self._open_split(name, folder, split, adapter)
        self._audio_rate = None
        if "audio" in self._fields:
            stated = int(nodes[self._fields["audio"]]["audio"].get("sampleRate", 0))
            self._audio_rate = stated or adapter.sample_rate or sample_rate
        if image_size is None and "image" in self._fields:
            # The image's shape [H, W, C] as strings, -1 where it varies.
            dimensions = (
                nodes[self._fields["image"]].get("image", {}).get("shape", {}).get("dimensions", ["-1"])
            )
            image_size = int(dimensions[0])
        self.resize = media.Resize(image_fit, resample, image_centre)
        self.image_size = image_size if image_size and image_size > 0 else 64
        self.channels, self.sample_rate, self.max_seconds = channels, sample_rate, max_seconds
        used = {self._fields[m] for m in (*self.modalities, "label") if m in self._fields}
        # Only the used features are parsed. Images are left encoded, since `batch` decodes them at the size needed.
        self._features = tfds.features.FeatureConnector.from_json(_prune(_without_audio(description), used))
        skip = {self._fields["image"]: tfds.decode.SkipDecoding()} if "image" in self.modalities else {}
        self._decoders = nested(skip)

    def _choose_modalities(self, name: str, modalities: tuple[str, ...] | None) -> tuple[str, ...]:
        """Those of ``modalities`` (None: all) in the order text, image, audio; ValueError if one is not available."""
        available = [
            m for m in ("text", "image", "audio") if m in self._fields or (m == "text" and self._prompted)
        ]
        absent = [m for m in modalities or () if m not in available]
        if absent:
            raise ValueError(f"tfds:{name} has no {absent[0]}; it has: {', '.join(available)}.")
        return tuple(m for m in available if modalities is None or m in modalities)

    def _read_class_names(self, folder: Path, nodes: dict[str, dict]) -> tuple[str, ...] | None:
        """The class names in ``FEATURE.labels.txt``, else the class numbers as strings; None without labels."""
        path = self._fields.get("label")
        if path is None:
            return None
        listed = folder / f"{path.replace('/', '-')}.labels.txt"
        if listed.is_file():
            names = [line.strip() for line in read_lines(listed) if line.strip()]
            return tuple(clean_class_name(n) for n in names)
        count = int(nodes[path].get("classLabel", {}).get("numClasses", 0))
        return tuple(str(i) for i in range(count)) or None

    def _open_split(self, name: str, folder: Path, split: str, adapter: Adapter):
        """``(records, start, count)``: all records of a stored split, and the range of them that is ``split``.

        ``adapter.splits`` can define a split as a slice of a stored one, such as ``train[:95%]``.
        """
        from array_record.python import array_record_data_source

        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        known = {s["name"] for s in info.get("splits", [])}
        spec = adapter.splits.get(split, split)
        if spec not in known and split == "test" and split not in adapter.splits and "validation" in known:
            spec = "validation"
        base, _, percent_slice = spec.partition("[")  # "train[:95%]" gives "train" and ":95%]"
        if base not in known:
            raise ValueError(f"tfds:{name} has no split {spec!r}; it has: {', '.join(sorted(known))}.")
        files = sorted(str(f) for f in folder.glob(f"*-{base}.array_record*"))
        if not files:
            raise FileNotFoundError(
                f"{folder} has no ArrayRecord files for the split {base!r} (it was prepared in another file format). "
                f"Prepare it with: {_prepare_command(name, folder.parents[1])}."
            )
        records = array_record_data_source.ArrayRecordDataSource(files)
        low, _, high = percent_slice.rstrip("]").partition(":")
        start = len(records) * int(low.rstrip("%") or 0) // 100
        stop = len(records) * int(high.rstrip("%") or 100) // 100
        return records, start, stop - start

    def __len__(self) -> int:
        return self._count * self._captions

    def _parse_records(self, numbers: np.ndarray) -> list[dict]:
        """The features of the records with these numbers, nested dictionaries of NumPy values."""
        records = self._records.__getitems__([int(n) + self._start for n in numbers])
        return [self._features.deserialize_example_np(r, decoders=self._decoders) for r in records]

    def _audio(self, value: Any) -> np.ndarray:
        """One recording, int16 ``[t]`` at ``sample_rate`` Hz and at most ``max_seconds`` long, from a stored ``value``:
        the bytes of an audio file, int16 samples, or floats in [-1, 1]."""
        if isinstance(value, bytes):
            return media.decode_audio(value, self.sample_rate, self.max_seconds)[0]
        waveform = np.asarray(value)
        if waveform.dtype.kind in "iu":
            waveform = waveform.astype(np.float32) / 32768.0
        if not waveform.size:
            return np.zeros(0, np.int16)
        return media.resample_and_cut(waveform, self._audio_rate, self.sample_rate, self.max_seconds)[0]

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray | None:
        """The number of each example's record, int32 ``[B]``: equal for the captions of one image; None if each record
        is one example."""
        if self._captions == 1:
            return None
        return (self._resolve_indices(indices) // self._captions).astype(np.int32)

    def _decode(
        self, decode: Callable[..., Any], field: str, values: list, numbers: np.ndarray, *options
    ) -> list:
        """``decode(value, *options)`` of the stored values of a field; ValueError names the record in which one cannot
        be decoded. ``numbers``: those of the records."""
        decoded = []
        for k, (value, number) in enumerate(zip(values, numbers.tolist(), strict=True)):
            try:
                decoded.append(decode(value, *(option[k] for option in options)))
            except Exception as error:  # decoders raise many types of exceptions on damaged files
                raise ValueError(
                    f"{self._title}: {self._fields[field]!r} of record {number} (from 0) cannot be decoded: {error}"
                ) from error
        return decoded

    def _pad_audio(self, recordings: list[np.ndarray]) -> RawBatch:
        """``audio`` int16 and ``audio_mask`` bool ``[B, max_seconds * sample_rate]`` from recordings int16 ``[t]``."""
        length = int(round(self.max_seconds * self.sample_rate))
        audio, mask = (np.zeros((len(recordings), length), dtype) for dtype in (np.int16, bool))
        for i, samples in enumerate(recordings):
            audio[i, : len(samples)], mask[i, : len(samples)] = samples, True
        return {"audio": audio, "audio_mask": mask}

    def batch(self, indices: np.ndarray) -> RawBatch:
        """``label`` and the fields of the modalities, and ``group`` where images have several captions, for the
        examples ``indices`` ``[B]``; recordings are padded to ``max_seconds``."""
        record_numbers, caption_numbers = np.divmod(np.asarray(indices), self._captions)
        records = self._parse_records(record_numbers)
        columns = {
            field: [value_at(record, path) for record in records]
            for field, path in self._fields.items()
            if field in self.modalities or field == "label"
        }
        batch: RawBatch = {} if self._captions == 1 else {"group": record_numbers.astype(np.int32)}
        if "label" in columns:
            batch["label"] = np.array(columns["label"], np.int32)
        if "image" in columns:
            options = (self.image_size, self.channels, self.resize)
            decode = lambda content: media.decode_image(bytes(content), *options)
            batch["image"] = np.stack(self._decode(decode, "image", columns["image"], record_numbers))
        if "audio" in columns:
            batch |= self._pad_audio(self._decode(self._audio, "audio", columns["audio"], record_numbers))
        if "text" in self.modalities:
            batch["caption"] = np.empty(len(records), object)
            if self._prompted:  # captions from class names; none where the label is unknown (-1)
                names = ["" if label < 0 else self.class_names[label] for label in batch["label"]]
                batch["caption"][:] = [self._prompt.format(name) if name else "" for name in names]
            else:
                batch["caption"][:] = self._decode(
                    _caption, "text", columns["text"], record_numbers, caption_numbers.tolist()
                )
        return batch


def _caption(value: Any, number: int) -> str:
    """Caption ``number`` (modulo their count) of a record's text feature, a string or a list of them, with single
    spaces."""
    value = value if isinstance(value, (bytes, str)) else list(np.atleast_1d(value))
    if isinstance(value, list):
        value = value[number % len(value)] if value else b""
    text = normalise(value.decode("utf-8") if isinstance(value, bytes) else str(value))
    return " ".join(text.split())
