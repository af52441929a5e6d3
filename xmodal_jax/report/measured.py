"""Measured quantities as small pictures and texts: a vector as bars or as its largest deviations, a series as lines.

The pictures are drawn by NumPy: a page may show hundreds of them.
"""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb

from xmodal_jax.data.standardise import StandardiseTransform, value_mask
from xmodal_jax.report.figures import GRID, MUTED, PALETTE
from xmodal_jax.types import KINDS, kind_of

SPAN = 3.0
"""Deviations, in standard deviations, that reach the edge of a picture; larger ones are cut."""
DEVIATIONS_SHOWN = 5
"""Features in a list of the largest deviations."""
_COLOURS = [np.round(255 * np.array(to_rgb(c))).astype(np.uint8) for c in PALETTE]
_AXIS, _MISSING = (np.round(255 * np.array(to_rgb(c))).astype(np.uint8) for c in (MUTED, GRID))


def draw_bars(values: np.ndarray, mask: np.ndarray | None = None, *, height: int = 60) -> np.ndarray:
    """A vector ``[D]`` in standard deviations as bars up and down from a line at 0, uint8 ``[height, W, 3]``.

    Values that are missing (``mask`` False) are gray over the whole height.
    """
    values = np.asarray(values, np.float64).reshape(-1)
    mask = np.ones(len(values), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    width = max(1, min(6, 240 // len(values)))  # of a bar, with a gap of one pixel if there is room
    picture = np.full((height, width * len(values), 3), 255, np.uint8)
    middle, rows = (height - 1) / 2, np.arange(height)[:, None]
    ends = middle * (1 - np.clip(values / SPAN, -1, 1))  # the row that each bar reaches
    inside = (rows >= np.minimum(ends, middle)) & (rows <= np.maximum(ends, middle))  # [height, D]
    for k, (filled, known) in enumerate(zip(inside.T, mask, strict=True)):
        column = picture[:, k * width : (k + 1) * width - (width > 2)]
        column[...] = 255 if known else _MISSING
        if known:
            column[filled] = _COLOURS[0]
    picture[int(middle)] = _AXIS
    return picture


def draw_lines(
    values: np.ndarray, mask: np.ndarray | None = None, *, height: int = 80, width: int = 240
) -> np.ndarray:
    """A series ``[T, C]`` in standard deviations as a line for each channel, uint8 ``[height, width, 3]``.

    Values that are missing (``mask`` ``[T]`` or ``[T, C]`` False) are left out; the last step that has a value is at
    the right edge, so that padding takes no room.
    """
    values = np.asarray(values, np.float64)
    mask = np.ones(len(values), bool) if mask is None else np.asarray(mask, bool)
    mask = np.broadcast_to(mask if mask.ndim == 2 else mask[:, None], values.shape)
    present = np.flatnonzero(mask.any(axis=1))
    length = present[-1] + 1 if present.size else len(values)
    values, mask = values[:length], mask[:length]
    steps, channels = values.shape
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[(height - 1) // 2] = _MISSING
    rows = (height - 1) / 2 * (1 - np.clip(values / SPAN, -1, 1))
    columns = np.arange(width)
    places = np.linspace(0, width - 1, steps) if steps > 1 else np.array([width // 2])
    for channel in range(channels):
        known = mask[:, channel]
        if not known.any():
            continue
        line = np.interp(columns, places[known], rows[known, channel])
        nearest = np.abs(columns[:, None] - places[None]).argmin(axis=1)
        colour = _COLOURS[channel % len(_COLOURS)]
        for column in columns[known[nearest]]:
            # From the row of the column before to this one's, so that steep lines have no gaps.
            before = line[max(column - 1, 0)]
            low, high = sorted((int(round(before)), int(round(line[column]))))
            picture[low : high + 1, column] = colour
    return picture


def describe_deviations(
    values: np.ndarray, standard: np.ndarray, mask: np.ndarray, names: tuple[str, ...]
) -> str:
    """The features of one vector ``[D]`` that deviate most from their mean, one on each line, such as "glucose: 182
    (+2.9 sd)".

    ``values``: in the unit of the data; ``standard``: in standard deviations.
    """
    order = np.argsort(-np.where(mask, np.abs(standard), -1.0), kind="stable")
    chosen = [k for k in order[:DEVIATIONS_SHOWN].tolist() if mask[k]]
    missing = int((~np.asarray(mask)).sum())
    listed = [f"{names[k]}: {values[k]:.4g} ({standard[k]:+.1f} sd)" for k in chosen]
    return "\n".join([*listed, *([f"{missing} missing"] if missing else [])]) or "nothing is known"


def show_standard(
    modality: str,
    standard: np.ndarray,
    mask: np.ndarray | None,
    standardise: StandardiseTransform | None = None,
) -> np.ndarray | str:
    """One example in standard deviations as a picture, as its kind is shown (`types.Kind.shown_as`); a vector whose
    features have names as its largest deviations.

    ``mask``: which values are there; None: all. ``standardise``: where the names and units come from; None: there are
    none.
    """
    statistics = None if standardise is None else standardise.statistics.get(modality)
    shown_as = KINDS[kind_of(modality)].shown_as
    if shown_as == "bars" and statistics is not None and statistics.names:
        known = np.ones(standard.shape, bool) if mask is None else np.asarray(mask, bool)
        return describe_deviations(statistics.restore(standard), standard, known, statistics.names)
    if shown_as == "text":
        return " ".join(f"{value:.3g}" for value in np.ravel(standard))
    draw = draw_lines if shown_as == "lines" and standard.ndim == 2 else draw_bars
    return draw(standard, mask)


def show_measured(
    batch: dict, modality: str, index: int, standardise: StandardiseTransform | None = None
) -> np.ndarray | str:
    """The example at ``index`` of a raw batch as `show_standard` shows it.

    ``standardise``: of the run; None: the values are divided by the largest one.
    """
    one = {name: np.asarray(batch[name])[[index]] for name in (modality, f"{modality}_mask") if name in batch}
    mask = value_mask(one, modality)
    if standardise is not None and modality in standardise.statistics:
        return show_standard(modality, standardise(one)[modality][0], mask[0], standardise)
    values = np.where(mask, one[modality], 0.0)[0].astype(np.float64)
    return show_standard(modality, SPAN * values / max(np.abs(values).max(), 1e-300), mask[0])
