"""The classes of files as people read them: the likeliest of each, records, and a page."""

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

SHOWN = 200
"""Files on a page, at most."""


def likeliest_classes(result: Classification, count: int) -> list[list[tuple[str, float]]]:
    """Of each example the ``count`` classes with the highest scores, and these."""
    order = np.argsort(-result.scores, axis=1, kind="stable")[:, :count]
    scores = np.take_along_axis(result.scores, order, axis=1).tolist()
    names = [[result.classes[k] for k in row] for row in order.tolist()]
    return [list(zip(*row, strict=True)) for row in zip(names, scores, strict=True)]


def to_records(files: Sequence[Path], results: Mapping[str, Classification]) -> list[dict[str, Any]]:
    """For each file its class and the scores of all classes, by target."""
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
    """For each target the number of files of each class, and the files with their likeliest classes.

    ``format``: of the run. ``modality``: of the files. ``likeliest``: see `likeliest_classes`, by target.
    """
    shown = [query_content(Query(str(file), modality, file), format) for file in files[:SHOWN]]
    note = f"{SHOWN} of {len(files)} files; results.json has all." if len(files) > SHOWN else ""
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
