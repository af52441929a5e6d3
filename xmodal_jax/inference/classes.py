"""Classifications of files for people: the likeliest classes, records for JSON, and a page of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.inference.inputs import InputFormat
from xmodal_jax.inference.model import Classification
from xmodal_jax.inference.queries import Query, query_content
from xmodal_jax.report.page import Item, Report

MAX_SHOWN = 200
"""Largest number of files on a page."""


def likeliest_classes(result: Classification, count: int) -> list[list[tuple[str, float]]]:
    """For each example the ``count`` classes with the highest scores, as pairs (name, score), the highest first."""
    order = np.argsort(-result.scores, axis=1, kind="stable")[:, :count]
    scores = np.take_along_axis(result.scores, order, axis=1).tolist()
    names = [[result.classes[k] for k in row] for row in order.tolist()]
    return [list(zip(*row, strict=True)) for row in zip(names, scores, strict=True)]


def to_records(files: Sequence[Path], results: Mapping[str, Classification]) -> list[dict[str, Any]]:
    """For each file a record for JSON: its path, and by target its class and the scores of all classes."""
    records: list[dict[str, Any]] = [{"file": str(file)} for file in files]
    for target, result in results.items():
        for record, name, scores in zip(records, result.names, result.scores.tolist(), strict=True):
            record[target] = {"class": name, "scores": dict(zip(result.classes, scores, strict=True))}
    return records


def add_classes(
    report: Report,
    format: InputFormat,
    modality: str,
    files: Sequence[Path],
    results: Mapping[str, Classification],
    likeliest: Mapping[str, Sequence[Sequence[tuple[str, float]]]],
) -> None:
    """Adds two tables to the report for each target: the number of files of each class, and the files with their
    likeliest classes.

    Args:
      report: the report to add to.
      format: the input format of the run.
      modality: the modality of the files.
      files: the classified files.
      results: the classification of the files, by target.
      likeliest: the value of `likeliest_classes`, by target.
    """
    shown = [query_content(Query(str(file), modality, file), format) for file in files[:MAX_SHOWN]]
    note = f"{MAX_SHOWN} of {len(files)} files; results.json has all." if len(files) > MAX_SHOWN else ""
    for target, result in results.items():
        counts = Counter(result.names)
        report.add_table(
            f"Numbers of files by {target}", (target, "files"), [(c, counts[c]) for c in result.classes]
        )
        columns = ("file", target, *(f"{rank}." for rank in range(2, len(likeliest[target][0]) + 1)))
        rows = []
        for file, picture, classes in zip(files, shown, likeliest[target], strict=False):
            cells = [Item(name, f"{score:.3f}") for name, score in classes]
            rows.append((Item(picture, file.name), *cells))
        report.add_table(f"Files by {target}", columns, rows, note=note)
