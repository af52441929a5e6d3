"""Loads a trained run for use on new data, as an object whose methods are what the run can do."""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from xmodal_jax.inference.model import RestoredRun, TrainedModel
from xmodal_jax.inference.pretrained import restore_pretrained
from xmodal_jax.train.checkpoint import RestoredCheckpoint, restore_run
from xmodal_jax.transfer.exported import is_exported, restore_exported

MODEL_CLASSES: dict[str, str] = {
    "captioning": "text.Captioner",
    "contrastive": "contrastive.ContrastiveModel",
    "fusion": "fusion.FusionModel",
    "multimodal_flow": "autoencoders.MultimodalFlowModel",
    "multimodal_vae": "autoencoders.MultimodalAutoencoder",
    "speech_recognition": "text.SpeechRecognizer",
    "speech_synthesis": "speech.SpeechSynthesizer",
    "text_to_image_flow": "images.FlowSynthesizer",
    "text_to_image_gan": "images.ImageSynthesizer",
    "vae": "autoencoders.Autoencoder",
    "vocoder": "vocoder.Vocoder",
}
"""The class that loads each kind of run, as MODULE.CLASS in `inference`. A kind is named after the script that trains
such runs, which stores it as ``kind`` in the metadata of its checkpoints."""


def load(run: str | os.PathLike, *, best: bool = False, seed: int | None = None) -> TrainedModel:
    """Loads the trained model of a run, for use on new data.

    ::

        model = load("runs/contrastive-20250131-101500")
        print(model.describe())  # what it takes and gives
        model.classify(["cat", "dog"], images=["photo.png"]).names

    The training data are not needed, and the run may have been moved. The checkpoint is verified against its digests.

    Args:
      run: the run's directory; a folder that `experiments/export.py` wrote; or ``hf:FOLDER``, CLIP or SigLIP in Hugging
        Face layout, as it is.
      best: whether to take the checkpoint with the best validation score instead of the newest.
      seed: the seed of the model to load, if the run trained several; None: its only one.

    Returns:
      An object of the class that `MODEL_CLASSES` names for the run's kind; it has only the methods that the run can do.

    Raises:
      FileNotFoundError: there is no checkpoint.
      DamagedCheckpoint: every checkpoint differs from what was written.
      ValueError: the run has several seeds and ``seed`` is none of them, or its kind is unknown.
    """
    return make_model(restore(run, best=best, seed=seed))


def make_model(run: RestoredRun) -> TrainedModel:
    """The trained model of a run that `restore` has read.

    Raises:
      ValueError: its kind is not known.
    """
    kind = kind_of_run(run.checkpoint.metadata)
    if kind not in MODEL_CLASSES:
        scripts = ", ".join(f"{name}.py" for name in MODEL_CLASSES)
        raise ValueError(
            f"{run.path} is no run that can be used (its kind is {kind!r}): give one of {scripts}"
        )
    module, name = MODEL_CLASSES[kind].split(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)(run)


def restore(run: str | os.PathLike, *, best: bool = False, seed: int | None = None) -> RestoredRun:
    """A run's parameters and metadata, of whatever kind it is. The arguments are those of `load`."""
    return RestoredRun(pathlib.Path(run), _restore(os.fspath(run), best=best, seed=seed))


def _restore(run: str, *, best: bool, seed: int | None) -> RestoredCheckpoint:
    """The parameters and metadata of a run, an exported run, or a Hugging Face folder."""
    is_pretrained = run.startswith("hf:")
    if (is_pretrained or is_exported(run)) and (best or seed is not None):
        raise ValueError(f"{run} holds one model: leave out best and seed")
    if is_pretrained:
        return restore_pretrained(run.removeprefix("hf:"))
    return restore_exported(run) if is_exported(run) else restore_run(run, best=best, seed=seed)


def kind_of_run(metadata: Mapping[str, Any]) -> str | None:
    """What a checkpoint was trained for, a key of `MODEL_CLASSES`, from its metadata.

    Runs of earlier versions do not store it; their kind is recognised by the fields that it alone has. None: unknown.
    """
    if "kind" in metadata:
        return metadata["kind"]
    fields = set(metadata)
    if "target" in fields:
        source, target = metadata["source"], metadata["target"]
        return _KINDS_OF_PAIRS.get((source, target), "captioning")
    for kind, own_fields in _FIELDS_OF_KINDS.items():
        if own_fields <= fields:
            return kind
    return None


_KINDS_OF_PAIRS = {
    ("audio", "text"): "speech_recognition",
    ("text", "audio"): "speech_synthesis",
    ("text", "image"): "text_to_image_gan",
}
"""The kinds of runs from one modality to another; all other pairs are of captioning."""
_FIELDS_OF_KINDS = {
    "vae": {"modality", "size"},
    "multimodal_vae": {"modalities", "sizes"},
    "fusion": {"modalities", "classes"},
    "contrastive": {"modalities", "max_length"},
}
"""The fields by which runs that do not name their kind are told apart, in the order in which they are tried."""
