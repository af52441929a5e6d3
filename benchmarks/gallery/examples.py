"""The test examples of a run, as the functions of `xmodal_jax.inference` take them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.source import Source
from xmodal_jax.data.splits import open_splits
from xmodal_jax.data.tasks import Commands, Questions, open_task
from xmodal_jax.data.views import keep_labelled, modality_fields
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.train.run import from_json, read_config_file
from xmodal_jax.types import kind_of

TASKS = {"questions": Questions, "commands": Commands}
"""The tasks of experiments/fusion.py about scenes of the embedded data set."""


def read_test_examples(run: str | os.PathLike, count: int, split: str = "test") -> dict[str, list[Any]]:
    """The first ``count`` test examples of a run, by modality: pixels, texts and pairs (waveform, samples per second).

    Also, where the data have them: ``voice``, the names of the voices, if training had them; ``answer``, the names of
    the classes; ``meaning``, what the captions mean (see `Source.meanings`).

    Args:
      run: the directory of a run, whose ``config.json`` names the data.
      count: number of examples; of a split with fewer, all of them.
      split: the name of a test split; the embedded data set also has "compositions" and, with speech, "voices".
    """
    config = read_config_file(Path(run))
    options = from_json(DataOptions, config["input"])
    source = open_test_split(config, dataclasses.replace(options, progress=False), split)
    indices = np.arange(min(count, len(source)))
    batch = source.batch(indices)
    examples = {m: _as_inputs(batch, m, options.sample_rate) for m in source.modalities}
    if source.speaker_names and "speaker" in batch and batch["speaker"].max() < len(source.speaker_names):
        examples["voice"] = [source.speaker_names[k] for k in batch["speaker"]]
    if source.class_names and "label" in batch:
        examples["answer"] = [source.class_names[k] if k >= 0 else None for k in batch["label"]]
    meanings = source.meanings(indices)
    return examples if meanings is None else examples | {"meaning": meanings}


def open_test_split(config: Mapping[str, Any], options: DataOptions, split: str) -> Source:
    """A test split that the run with this configuration was evaluated on: classifiers of scenes have an example for
    each question, autoencoders the examples whose class is known, and speech the sentences that training lacks."""
    if "task" in config:
        return open_task(config["data"], options, BadExamples(), TASKS[config["task"]]).tests[split]
    splits = open_splits(config["data"], options, BadExamples())
    test = splits.tests[split]
    if config.get("unseen"):
        known = splits.train.caption_batch(np.arange(len(splits.train)))["caption"]
        return ReferenceTexts(test, exclude=set(known)).source
    labels = test.class_labels() if "judge_steps" in config else None
    return keep_labelled(test) if labels is not None and (labels >= 0).any() else test


def _as_inputs(batch: Mapping[str, Any], modality: str, sample_rate: int) -> list[Any]:
    """One modality of a batch as a list of inputs, without padding."""
    if kind_of(modality) == "text":
        return batch[modality_fields(modality)[-1]].tolist()
    if kind_of(modality) != "audio":
        return list(batch[modality])
    masks = batch[f"{modality}_mask"]
    return [(wave[mask], sample_rate) for wave, mask in zip(batch[modality], masks, strict=True)]
