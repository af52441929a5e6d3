"""What stands beside programs in an export: their arrays, the preprocessing before them, the tokenizer."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import xmodal_jax
from xmodal_jax.deploy.programs import Field, Program
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.train.run import write_atomic
from xmodal_jax.transfer.weights import DTYPES
from xmodal_jax.types import kind_of

SIGNATURE = "signature.json"
PREPROCESSING = "preprocessing.json"


def signature(
    model: TrainedModel, programs: Sequence[Program], extension: str, dtype: str, **facts: Any
) -> dict[str, Any]:
    """The content of ``signature.json``: for each program its file, and names, shapes, dtypes and meanings of its
    arrays.

    Args:
      model: the run.
      programs: those that are exported.
      extension: of their files.
      dtype: of the weights, a key of `weights.DTYPES`.
      facts: further entries, such as the platforms.
    """
    described = {
        program.name: {
            "file": program.name + extension,
            "meaning": program.meaning,
            "inputs": _arrays(program.inputs),
            "outputs": _arrays(program.output_fields(model.params)),
        }
        for program in programs
    }
    return {
        "kind": model.kind,
        "step": model.step,
        "weights": {"dtype": dtype, "meaning": DTYPES[dtype].meaning},
        "library": {"xmodal_jax": xmodal_jax.__version__, "jax": jax.__version__},
        **facts,
        "programs": described,
    }


def _arrays(fields: Mapping[str, Field]) -> dict[str, Any]:
    return {
        name: {"shape": ["batch", *field.shape], "dtype": field.dtype, "meaning": field.meaning}
        for name, field in fields.items()
    }


def preprocessing(model: TrainedModel) -> dict[str, Any]:
    """What happens to the inputs of each modality before a program takes them."""
    return {m: _PREPROCESSING.get(kind_of(m), _measured)(model, m) for m in model.format.modalities}


def _image(model: TrainedModel, modality: str) -> dict[str, Any]:
    *_, height, width, channels = model.format.shapes[modality]
    resize = model.format.resize
    return {
        "height": height, "width": width, "channels": channels, "fit": resize.fit, "resample": resize.resample,
        "centre": resize.centre, "values": "uint8 in 0..255: the program scales them",
    }  # fmt: skip


def _text(model: TrainedModel, modality: str) -> dict[str, Any]:
    tokenize = model.format.transform.tokenize
    tokenizer = tokenize.tokenizer
    return {
        "length": tokenize.max_length, "padding": 0, "begin": tokenizer.bos_id, "end": tokenizer.eos_id,
        "cleanup": model.metadata["config"].get("text_cleanup", "none"),
        "cut": "a text with more tokens loses those before its end token",
    }  # fmt: skip


def _audio(model: TrainedModel, modality: str) -> dict[str, Any]:
    facts = {"sample_rate": model.format.sample_rate, "max_seconds": model.format.max_seconds, "channels": 1}
    config = getattr(model, "config", None)
    facts["values"] = "int16: the program computes the spectrogram"
    features = getattr(getattr(config, "audio", None), "spectrogram", None)
    if features is None:
        return facts
    return facts | {"spectrogram": dataclasses.asdict(features), "floor": model.config.audio.floor}


def _measured(model: TrainedModel, modality: str) -> dict[str, Any]:
    standardise = model.format.transform.standardise
    statistics = None if standardise is None else standardise.statistics.get(modality)
    return {} if statistics is None else dataclasses.asdict(statistics)


_PREPROCESSING: dict[str, Callable[[TrainedModel, str], dict[str, Any]]] = {
    "image": _image,
    "video": _image,
    "text": _text,
    "audio": _audio,
}
"""The preprocessing of each kind of modality; that of the others is standardisation."""


def write_description(folder: pathlib.Path, model: TrainedModel, content: Mapping[str, Any]) -> None:
    """Writes ``signature.json`` (``content``), ``preprocessing.json`` and the tokenizer's files."""
    files = {
        SIGNATURE: json.dumps(content, indent=1),
        PREPROCESSING: json.dumps(preprocessing(model), indent=1),
        **(model.metadata.get("tokenizer") or {}),
    }
    for name, text in files.items():
        write_atomic(folder / name, text)
