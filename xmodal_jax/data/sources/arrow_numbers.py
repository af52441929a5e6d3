"""Columns of numbers in Arrow files: measured quantities of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from xmodal_jax.data.measured_columns import Cell, is_sequence, join_rows, measure_cells, parse_cell
from xmodal_jax.data.sources.arrow_files import Column
from xmodal_jax.data.sources.arrow_values import is_list


class Numbers(NamedTuple):
    """The numbers in a column."""

    cells: np.ndarray | list[Cell]
    """Of each row of all files: float64 ``[N, 1]`` with NaN for null, or where cells are lists the list of these."""
    reasons: dict[int, str]
    """By the number of a row the reason why its cell cannot be used."""


def read_numbers(name: str, column: Column) -> Numbers:
    """The numbers in each row of all files. ``name``: of the column, for messages."""
    arrays = [a.dictionary_decode() if pa.types.is_dictionary(a.type) else a for a in column.scan()]
    if any(is_list(array.type) for array in arrays):
        return _read_lists(name, arrays)
    numbers = [array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False) for array in arrays]
    values = np.concatenate(numbers or [np.zeros(0)])
    infinite = np.flatnonzero(np.isinf(values)).tolist()
    return Numbers(values[:, None], dict.fromkeys(infinite, f"{name!r} has a number that is infinite"))


def _read_lists(name: str, arrays: Sequence[pa.Array]) -> Numbers:
    """The lists of numbers in the rows of ``arrays``; ``name``: of the column, for messages."""
    cells: list[Cell] = []
    reasons: dict[int, str] = {}
    for array in arrays:
        for value in array.to_pylist():
            try:
                cells.append(parse_cell(name, value))
            except ValueError as error:
                reasons[len(cells)] = str(error)
                cells.append(None)
    return Numbers(cells, reasons)


def join_columns(
    modality: str, names: Sequence[str], columns: Sequence[Numbers], rows: np.ndarray
) -> tuple[np.ndarray, dict[int, str], tuple[str, ...]]:
    """``(values, reasons, features)``: the values of ``rows`` int64 ``[R]``, ``[R, D]`` or ``[R, T, C]`` with NaN where
    they are missing; by position in ``rows`` the reason why one cannot be used; and the names of the features."""
    wrong = [(k, column.reasons) for column in columns for k in range(len(rows)) if column.reasons]
    reasons = {k: of_column[int(rows[k])] for k, of_column in wrong if int(rows[k]) in of_column}
    if not is_sequence(modality) and all(isinstance(column.cells, np.ndarray) for column in columns):
        values = np.concatenate([column.cells[rows] for column in columns], axis=1)
        return values, reasons, tuple(names)
    # Over all splits, so that examples have the same size in each.
    sizes = measure_cells(modality, zip(*(column.cells for column in columns), strict=True), len(columns))
    cells = [[column.cells[row] for column in columns] for row in rows.tolist()]
    values, of_sizes = join_rows(modality, names, cells, sizes)
    return values, of_sizes | reasons, sizes.names(names)
