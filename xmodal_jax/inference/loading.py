"""A trained run for use on new data: one call gives an object whose methods are what the run can do."""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from xmodal_jax.inference.model import Task, TrainedModel
from xmodal_jax.inference.pretrained import restore_pretrained
from xmodal_jax.train.checkpoint import RestoredCheckpoint, restore_run
from xmodal_jax.transfer.exported import is_exported, restore_exported

CLASSES: dict[str, str] = {
    "captioning": "text.Captioner",
    "contrastive": "contrastive.ContrastiveModel",
    "fusion": "fusion.FusionModel",
    "multimodal_vae": "autoencoders.MultimodalAutoencoder",
    "speech_recognition": "text.SpeechRecognizer",
    "speech_synthesis": "speech.SpeechSynthesizer",
    "text_to_image_gan": "images.ImageModel",
    "vae": "autoencoders.Autoencoder",
}
"""For each kind of run the class of `inference` that uses it, as MODULE.CLASS. The kind is the name of the script that
trains such runs, which stores it as ``kind`` in the metadata of its checkpoints."""


def load(run: str | os.PathLike, *, best: bool = False, seed: int | None = None) -> TrainedModel:
    """The trained model of a run, to be used on new data.

    ::

        model = load("runs/contrastive-20250131-101500")
        print(model.describe())  # what it takes and gives
        model.classify(["cat", "dog"], images=["photo.png"]).names

    The data of the training are not needed, and the run may have been moved. All of the checkpoint's content is
    verified by its digests.

    Args:
      run: the run's directory; a folder that `experiments/export.py` wrote; or ``hf:FOLDER``, CLIP or SigLIP in Hugging
        Face layout, as it is.
      best: whether to take the best checkpoint by validation, not the newest.
      seed: which of the run's seeds, if it has several.

    Returns:
      An object of the class that fits the run, whose methods are only those that the run can do: see `CLASSES`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      DamagedCheckpoint: there is none that holds what was written.
      ValueError: the run has several seeds and ``seed`` is none of them, or its kind is not known.
    """
    path, restored = pathlib.Path(run), _restore(os.fspath(run), best=best, seed=seed)
    kind = kind_of_run(restored.metadata)
    if kind not in CLASSES:
        scripts = ", ".join(f"{name}.py" for name in CLASSES)
        raise ValueError(f"{path} is no run that can be used (its kind is {kind!r}): give one of {scripts}")
    module, name = CLASSES[kind].split(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)(Task(path, restored))


def _restore(run: str, *, best: bool, seed: int | None) -> RestoredCheckpoint:
    """The parameters and metadata of a run, an exported run, or a Hugging Face folder."""
    is_pretrained = run.startswith("hf:")
    if (is_pretrained or is_exported(run)) and (best or seed is not None):
        raise ValueError(f"{run} holds one model: leave out best and seed")
    if is_pretrained:
        return restore_pretrained(run.removeprefix("hf:"))
    return restore_exported(run) if is_exported(run) else restore_run(run, best=best, seed=seed)


def kind_of_run(metadata: Mapping[str, Any]) -> str | None:
    """What a checkpoint was trained for, a key of `CLASSES`, from its metadata.

    Runs of earlier versions do not name their kind: it follows from the fields that each kind has. None: it is not
    known.
    """
    if "kind" in metadata:
        return metadata["kind"]
    fields = set(metadata)
    if "target" in fields:
        source, target = metadata["source"], metadata["target"]
        return _TRANSLATIONS.get((source, target), "captioning")
    for kind, own_fields in _FIELDS.items():
        if own_fields <= fields:
            return kind
    return None


_TRANSLATIONS = {
    ("audio", "text"): "speech_recognition",
    ("text", "audio"): "speech_synthesis",
    ("text", "image"): "text_to_image_gan",
}
"""The kinds of runs from one modality to another; all others are of captioning."""
_FIELDS = {
    "vae": {"modality", "size"},
    "multimodal_vae": {"modalities", "sizes"},
    "fusion": {"modalities", "classes"},
    "contrastive": {"modalities", "max_length"},
}
"""The fields by which runs that do not name their kind are told apart, in the order in which they are tried."""
