"""What smaller weights change: differences of outputs, and scores, on a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from xmodal_jax.core import trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.deploy.programs import Program, prepare_inputs, programs_of
from xmodal_jax.deploy.stablehlo import with_stored
from xmodal_jax.evaluation.embeddings import retrieval_scores
from xmodal_jax.inference.embed_data import open_for_model
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.transfer.weights import DTYPES

MOST_EXAMPLES = 256
"""Examples that are compared."""


def measure_losses(model: TrainedModel, data: str, dtype: str) -> dict[str, Any]:
    """Compares outputs of the programs with stored and with trained weights, on the first examples of a test split.

    Args:
      model: the run.
      data: the data set, in a form of ``--data``.
      dtype: of the stored weights.

    Returns:
      ``data``, the number of ``examples``, ``differences`` (by PROGRAM/OUTPUT the ``largest`` and the ``mean`` absolute
      one; of token ids and masks whether they differ) and ``scores`` (by name a pair: with trained weights, with stored
      ones; empty for kinds of runs without any).
    """
    batch, count = _read_batch(model, data)
    stored = DTYPES[dtype].compress(trees.flat(model.params))
    differences, known = {}, {False: dict(batch), True: dict(batch)}
    results: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    for program in programs_of(model):
        inputs = {name: _value(program, name, known[False], count) for name in program.inputs}
        trained = jax.jit(program.function)(model.params, inputs)
        small = jax.jit(with_stored(model, program, dtype))(stored, inputs)
        for name in trained:
            difference = absolute_difference(trained[name], small[name])
            differences[f"{program.name}/{name}"] = {
                "largest": float(difference.max()),
                "mean": float(difference.mean()),
            }
        known[False] |= trained
        results[False][program.name], results[True][program.name] = trained, small
    score = _SCORES.get(model.kind, lambda outputs: {})
    before, after = score(results[False]), score(results[True])
    scores = {name: (before[name], after[name]) for name in before}
    return {"data": data, "examples": count, "differences": differences, "scores": scores}


def absolute_difference(a: Any, b: Any) -> np.ndarray:
    """``|a - b|``; of token ids, classes and masks whether they differ, 0 or 1."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype == bool or a.dtype == np.int32:
        return (a != b).astype(np.float64)
    return np.abs(a.astype(np.float64) - b.astype(np.float64))


def _read_batch(model: TrainedModel, data: str) -> tuple[dict[str, np.ndarray], int]:
    """The first test examples as the model takes them, and their number."""
    source = open_for_model(model, data, "test", DataOptions(), BadExamples("skip"))
    count = min(MOST_EXAMPLES, len(source))
    batch = prepare_inputs(model, source.batch(np.arange(count)))
    batch |= {f"present_{m}": np.asarray(x) for m, x in batch.pop("present", {}).items()}
    return {name: np.asarray(x) for name, x in batch.items()}, count


def _value(program: Program, name: str, known: Mapping[str, Any], count: int) -> np.ndarray:
    """An input of a program: from the data or from the programs before it; noise and what else it needs are drawn."""
    field = program.inputs[name]
    shape = (count, *field.shape)
    if name in known:
        value = np.asarray(known[name])[(slice(None), *(slice(n) for n in field.shape))].astype(field.dtype)
        return np.pad(value, [(0, n - m) for n, m in zip(shape, value.shape, strict=True)])
    if field.dtype == "bool":
        return np.ones(shape, bool)
    if name == "ids" and "text" in known:
        return np.asarray(known["text"])[:, : field.shape[0]].astype(field.dtype)
    return np.random.default_rng(0).normal(size=shape).astype(field.dtype)


def _retrieval(outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Recall at 1 and 5 between all pairs of modalities."""
    embeddings = {name.removeprefix("encode_"): np.asarray(x["embedding"]) for name, x in outputs.items()}
    scores = retrieval_scores(embeddings) if len(embeddings) > 1 else {}
    return {name: value for name, value in scores.items() if name.endswith(("recall@1", "recall@5"))}


_SCORES: dict[str, Callable[[Mapping[str, Mapping[str, Any]]], dict[str, float]]] = {
    "contrastive": _retrieval,
}
"""Scores of the outputs of a kind of run, by program."""
