"""Columns of numbers as a modality of measured quantities: several columns joined into one ``vector``, lists as a
``series``.

A cell is a number, a list of numbers, or for a series a list of lists, one per step. What it lacks is NaN.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.core.text_files import parse_json, shorten
from xmodal_jax.types import KINDS, kind_of

Cell = np.ndarray | None
"""The numbers of a cell, float64: ``[1]`` of a number, ``[n]`` of a list, ``[T, C]`` of a list of lists. None: it is
empty."""


def expand_columns(path: str | Path, field: str, spec: str, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that ``--columns`` joins into one modality: ``age,weight`` and patterns such as ``lab_*``, which
    stands for the columns that fit it, in the order of the table.

    Args:
      path: the table, for messages.
      field: the modality.
      spec: what stands after ``NAME=``.
      columns: those of the table.

    Raises:
      ValueError: a column is not there, or is named twice.
    """
    if spec in columns:
        return (spec,)
    names: list[str] = []
    for pattern in map(str.strip, spec.split(",")):
        matches = [pattern] if pattern in columns else [c for c in columns if fnmatch.fnmatchcase(c, pattern)]
        if not matches:
            raise ValueError(f"{path}: no column {pattern} (--columns {field}=); found {', '.join(columns)}.")
        names += matches
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path}: --columns {field}={spec} names {repeated[0]} twice.")
    return tuple(names)


def parse_cell(column: str, value: Any) -> Cell:
    """The numbers in a cell of JSON or CSV; in CSV a list is written as in JSON.

    Raises:
      ValueError: it holds something else, or a number that is infinite.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            value = parse_json(text) if text.startswith("[") else float(text) if text else None
        except ValueError as error:
            raise ValueError(f"{column!r} is no number: {shorten(value)}") from error
    if value is None:
        return None
    try:
        numbers = np.asarray(value, np.float64)  # None within a list becomes NaN
    except (TypeError, ValueError) as error:
        raise ValueError(f"{column!r} is no number or list of numbers: {shorten(value)}") from error
    if numbers.ndim > 2 or not numbers.size:
        raise ValueError(f"{column!r} is no number, list of numbers or list of such lists: {shorten(value)}")
    if np.isinf(numbers).any():
        raise ValueError(f"{column!r} has a number that is infinite")
    return numbers.reshape(1) if numbers.ndim == 0 else numbers


def is_sequence(modality: str) -> bool:
    """Whether an example of a measured modality has an axis of steps before that of its features."""
    return KINDS[kind_of(modality)].axes == 3


class ColumnSizes(NamedTuple):
    """How many features each column of a modality gives, and how many steps the longest example has."""

    widths: tuple[int, ...]
    steps: int | None
    """None: examples have no steps."""

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The name of each feature: that of its column, with its number if the column has several."""
        return tuple(
            column if width == 1 else f"{column}[{k}]"
            for column, width in zip(columns, self.widths, strict=True)
            for k in range(width)
        )

    def join(self, columns: Sequence[str], cells: Sequence[Cell]) -> np.ndarray:
        """The cells of one row as an example, float64 ``[D]`` or ``[T, C]``; NaN where a cell is empty or shorter.

        Raises:
          ValueError: a cell has another number of features than most rows.
        """
        parts = []
        for column, width, cell in zip(columns, self.widths, cells, strict=True):
            if self.steps is None:
                part = np.full(width, np.nan) if cell is None else cell
                features = part.size if part.ndim == 1 else -1
            else:
                rows = np.empty((0, width)) if cell is None else cell.reshape(len(cell), -1)
                features = rows.shape[1]
                part = np.full((self.steps, width), np.nan)
            if features != width:
                shape = "numbers" if self.steps is None else "numbers at each step"
                raise ValueError(f"{column!r} has {list(cell.shape)} {shape}, most rows have {width}")
            if self.steps is not None:
                part[: len(rows)] = rows
            parts.append(part)
        return np.concatenate(parts, axis=-1)


def measure_cells(modality: str, rows: Iterable[Sequence[Cell]], count: int) -> ColumnSizes:
    """The sizes of a modality's columns from the cells of all rows; ``count``: the number of columns.

    The width that most cells of a column have is that of the column.
    """
    sequence = is_sequence(modality)
    widths: list[Counter[int]] = [Counter() for _ in range(count)]
    steps = 1
    for cells in rows:
        for counter, cell in zip(widths, cells, strict=True):
            if cell is not None:
                counter[cell[0].size if sequence else cell.size] += 1
                steps = max(steps, len(cell)) if sequence else 1
    most = tuple(counter.most_common(1)[0][0] if counter else 1 for counter in widths)
    return ColumnSizes(most, steps if sequence else None)


def join_rows(
    modality: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], sizes: ColumnSizes
) -> tuple[np.ndarray, dict[int, str]]:
    """``(values, reasons)``: the examples of all rows, float64 ``[R, D]`` or ``[R, T, C]``, and by the number of a row
    the reason why it cannot be used (its values are then NaN)."""
    features = sum(sizes.widths)
    shape = (features,) if sizes.steps is None else (sizes.steps, features)
    values, reasons = np.full((len(rows), *shape), np.nan), {}
    for number, cells in enumerate(rows):
        try:
            values[number] = sizes.join(columns, cells)
        except ValueError as error:
            reasons[number] = str(error)
    return values, reasons


class MeasuredValues(NamedTuple):
    """A measured modality of all examples, as batches have it."""

    values: np.ndarray
    """Numbers ``[N, D]`` or ``[N, T, C]``, 0 where they are missing."""
    mask: np.ndarray
    """Which are there: bool of the same shape, or of a series ``[N, T]``, see `mask_missing`."""
    present: np.ndarray
    """Which examples have any value, bool ``[N]``."""


def mask_missing(modality: str, values: np.ndarray, stated: np.ndarray | None = None) -> MeasuredValues:
    """Measured quantities whose missing values are NaN, with their mask. ``stated``: a mask that they have besides.

    The mask of a kind with an axis of steps is one of steps, ``[N, T]``, unless it is stated for single values, or a
    step has some of its values.
    """
    mask = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    if stated is not None:
        mask &= stated.reshape(*stated.shape, *(1,) * (values.ndim - stated.ndim))
    values = np.where(mask, values, np.zeros((), values.dtype))
    present = mask.reshape(len(mask), -1).any(axis=1)
    can_be_short = min(KINDS[kind_of(modality)].mask_axes) < values.ndim
    if can_be_short and (stated is None or stated.ndim < values.ndim) and (mask == mask[..., :1]).all():
        mask = mask[..., 0]
    return MeasuredValues(values, mask, present)


def stack_measured(
    measured: Mapping[str, MeasuredValues], indices: np.ndarray | slice
) -> dict[str, np.ndarray]:
    """The fields of a batch with the examples ``indices``: the values of each modality and their masks."""
    fields = {}
    for modality, data in measured.items():
        fields[modality], fields[f"{modality}_mask"] = data.values[indices], data.mask[indices]
    return fields
