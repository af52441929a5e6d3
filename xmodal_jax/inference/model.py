"""What all trained runs have in common when they are used on new data."""

from __future__ import annotations

import functools
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.inference.inputs import InputFormat, InputSource, check_count
from xmodal_jax.train.checkpoint import RestoredCheckpoint, params_digest

BATCH_SIZE = 128
"""Number of examples in a batch; a smaller batch is padded to a power of two, so that few programs are compiled."""


class Classification(NamedTuple):
    """Classes of N examples."""

    names: list[str]
    """The class of each example, the one with the highest score."""
    classes: tuple[str, ...]
    """The names of the C classes."""
    scores: np.ndarray
    """float32 ``[N, C]``: probabilities of the classes, or similarities where the model has no probabilities."""

    @classmethod
    def from_scores(cls, classes: Sequence[str], scores: np.ndarray) -> Classification:
        """The classes with the highest of the scores ``[N, C]``."""
        return cls([str(classes[k]) for k in scores.argmax(axis=1)], tuple(map(str, classes)), scores)


class RestoredRun(NamedTuple):
    """The checkpoint of a trained run, and the directory that it was read from."""

    path: pathlib.Path
    """Directory of the run, or the folder it was exported to."""
    checkpoint: RestoredCheckpoint
    """Its parameters, metadata and number of steps."""


class TrainedModel:
    """A trained run, to be used on new data. `inference.load` makes one.

    Each kind of run has a subclass, whose public methods are what such a run can do. They take paths, bytes of files,
    Pillow images, arrays, waveforms and texts (`InputFormat.describe` says which), and return NumPy arrays, Pillow
    images, pairs (waveform, samples per second) or strings: one for each input, in order. A single input counts as a
    list of one. Inputs are processed in padded batches, so that a call with another number of inputs compiles nothing
    new unless it needs a larger batch.

    Attributes:
      path: directory of the run, or the folder that it was exported to.
      metadata: that of its checkpoint.
      step: training steps of the checkpoint.
      params: the parameters to evaluate.
      format: the format of its inputs.
    """

    kind: ClassVar[str]
    """The kind of run, a key of `loading.MODEL_CLASSES`: "contrastive", "captioning", …"""
    actions: ClassVar[tuple[str, ...]]
    """The names of the methods that `describe` lists."""

    path: pathlib.Path
    metadata: Mapping[str, Any]
    step: int
    params: Any
    format: InputFormat

    def __init__(self, run: RestoredRun, modalities: tuple[str, ...]):
        """``modalities``: those that the model takes as inputs."""
        self.path, (self.params, self.metadata, self.step) = run.path, run.checkpoint
        self.format = InputFormat.from_metadata(self.metadata, modalities)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}, step {self.step}>"

    def describe(self) -> str:
        """What the run is, what it takes and what it gives, as text."""
        data = self.metadata["config"].get("data", "")
        lines = [f"{self.kind}: {self.path}, {self.step} training steps on {data}", "inputs:"]
        lines += [f"  {modality}: {self.format.describe(modality)}" for modality in self.format.modalities]
        lines.append("methods:")
        for name in self.actions:
            method = getattr(self, name)
            summary = (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ")
            lines.append(f"  {name}{_arguments(method)}: {summary}")
        return "\n".join(lines)

    def predict(
        self,
        predict: Callable[[Any, Any], Any],
        source: Source,
        *,
        params: Any = None,
        batch_size: int = BATCH_SIZE,
    ) -> Any:
        """The outputs of ``predict(params, batch)`` for all examples of ``source``, as NumPy arrays ``[N, ...]``.

        Args:
          predict: is compiled once for each shape of a batch; pass the same function object in every call.
          source: its batches go through `prepare`.
          params: None: those of the run.
          batch_size: number of examples in a batch.
        """
        check_count("batch_size", batch_size, least=1)
        params = self.params if params is None else params
        return predict_all(
            predict, params, source, batch_size=batch_size, transform=self.prepare, few_shapes=True
        )

    def prepare(self, batch: RawBatch) -> RawBatch:
        """Turns a batch of inputs into one of the model: texts become tokens, measured quantities are standardised."""
        batch = self.format.transform(batch)
        return {k: v for k, v in batch.items() if not k.startswith("caption")}

    @functools.cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that identify the parameters: no other checkpoint has the same."""
        return params_digest(self.params)

    def read(self, inputs: Mapping[str, Any]) -> InputSource:
        """Wraps inputs, given by modality, as a data set in the run's format."""
        return InputSource(inputs, self.format)


def _arguments(method: Callable) -> str:
    """A method's arguments as Python writes them, without types: ``(index, *, k=10, **inputs)``."""
    signature = inspect.signature(method)
    untyped = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(untyped))
