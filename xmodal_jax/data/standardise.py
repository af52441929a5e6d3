"""Measured quantities in standard units: mean and standard deviation of each feature over the training examples.

They are fitted to the training data like a tokenizer, kept in the run, applied to every batch, and inverted where
people look at values.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.core.text_files import parse_json, read_text
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.types import is_measured

FILE = "standardisation.json"
"""Name of the file in a run's directory."""
_CHUNK = 1000
"""Examples read at a time."""


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of the present values of each feature, float64 ``[D]`` each."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    def merge(self, other: Moments) -> Moments:
        """The moments of two sets of values together (Chan, Golub and LeVeque 1983), without cancellation: no sum of
        squares is subtracted from another."""
        count = self.count + other.count
        weight = other.count / np.maximum(count, 1)
        difference = other.mean - self.mean
        squares = self.squares + other.squares + np.square(difference) * self.count * weight
        return Moments(count, self.mean + difference * weight, squares)


def moments_of(values: np.ndarray, mask: np.ndarray) -> Moments:
    """The moments of the ``values [N, ..., D]`` where ``mask`` (of the same shape) is True."""
    values, mask = (x.reshape(-1, x.shape[-1]) for x in (np.asarray(values, np.float64), mask))
    count = mask.sum(axis=0).astype(np.float64)
    known = np.where(mask, values, 0.0)
    # The mean relative to the first known value, which is exact where all values are equal, however large.
    first = known[mask.argmax(axis=0), np.arange(known.shape[1])]
    mean = first + np.where(mask, values - first, 0.0).sum(axis=0) / np.maximum(count, 1)
    return Moments(count, mean, np.where(mask, np.square(values - mean), 0.0).sum(axis=0))


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Mean and standard deviation of each feature of one modality over the training examples, ``D`` numbers each."""

    mean: tuple[float, ...]
    """In the unit of the data; 0 where no training example has the feature."""
    std: tuple[float, ...]
    """In the unit of the data; 0 where the feature has one value only."""
    names: tuple[str, ...] | None = None
    """Name of each feature; None: they are numbered."""

    @classmethod
    def from_moments(cls, moments: Moments, names: Sequence[str] | None = None) -> FeatureStatistics:
        """The statistics of these moments. A standard deviation that is no more than rounding is 0."""
        std = np.sqrt(moments.squares / np.maximum(moments.count, 1))
        std = np.where(std <= 1e-12 * np.abs(moments.mean), 0.0, std)
        return cls(tuple(moments.mean.tolist()), tuple(std.tolist()), None if names is None else tuple(names))

    @property
    def constant(self) -> np.ndarray:
        """Which features have one value only, or none, bool ``[D]``."""
        return np.asarray(self.std) == 0.0

    def standardise(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """``(values - mean) / std`` of ``values [..., D]``, float32; 0 where ``mask`` is False, and of constant
        features."""
        used = mask & ~self.constant
        scale = np.where(self.constant, 1.0, self.std)
        # Missing values may be NaN: they are replaced before any arithmetic.
        shifted = (np.where(used, values, self.mean).astype(np.float64) - self.mean) / scale
        return np.where(used, shifted, 0.0).astype(np.float32)

    def restore(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `standardise`: ``values [..., D]`` in the unit of the data, float64."""
        return np.asarray(values, np.float64) * self.std + np.asarray(self.mean)


def value_mask(batch: Mapping[str, Any], modality: str) -> np.ndarray:
    """Which values of a raw batch's measured ``modality`` are there, bool with the shape of its field: those that are
    finite and not masked, of examples that have the modality."""
    values = np.asarray(batch[modality])
    mask = np.isfinite(values)
    for stated in (batch.get(f"{modality}_mask"), batch.get("present", {}).get(modality)):
        if stated is not None:  # it has the first axes of the values
            stated = np.asarray(stated)
            mask = mask & stated.reshape(*stated.shape, *(1,) * (mask.ndim - stated.ndim))
    return mask


class StandardiseTransform:
    """A transform of batches that standardises measured quantities, by the statistics of each modality.

    ``vector [B, D]`` and ``series [B, T, C]`` become float32 of mean 0 and standard deviation 1 by feature, and 0 where
    a value is missing. A feature that is constant in training becomes 0. A value that is NaN is missing; the mask says
    so, of the same shape as the values. Where a batch has a mask of the steps of a series, ``series_mask [B, T]``, its
    mask is still one of steps, False where a step has no value at all.

    ::

        standardise = fit_standardisation(train, BadExamples())
        loader = Loader(source, batch_size=64, seed=0, transform=standardise)
    """

    def __init__(self, statistics: Mapping[str, FeatureStatistics]):
        """``statistics``: by modality, such as "vector" and "series_ecg"."""
        self.statistics = dict(statistics)

    def __call__(self, batch: RawBatch) -> RawBatch:
        """The batch with its measured quantities in standard units."""
        changed = {}
        for modality, statistics in self.statistics.items():
            if modality not in batch:
                continue
            values = np.asarray(batch[modality])
            if values.shape[-1] != len(statistics.mean):
                raise ValueError(
                    f"{modality!r} has {values.shape[-1]} features, the statistics of the training data are of "
                    f"{len(statistics.mean)}: all splits need the same features in the same order"
                )
            mask = value_mask(batch, modality)
            changed[modality] = statistics.standardise(values, mask)
            stated = batch.get(f"{modality}_mask")
            mask_axes = values.ndim if stated is None else np.ndim(stated)
            changed[f"{modality}_mask"] = mask if mask_axes == values.ndim else mask.any(axis=-1)
        return {**batch, **changed}

    def restore(self, modality: str, values: np.ndarray) -> np.ndarray:
        """Standardised ``values [..., D]`` in the unit of the data; unchanged where there are no statistics."""
        statistics = self.statistics.get(modality)
        return values if statistics is None else statistics.restore(values)

    def to_json(self) -> dict[str, Any]:
        """The statistics as plain values, as a checkpoint keeps them."""
        return {m: dataclasses.asdict(s) for m, s in self.statistics.items()}

    def save(self, folder: str | Path) -> None:
        """Writes ``standardisation.json`` into a folder that exists."""
        text = json.dumps(self.to_json(), indent=1)
        (Path(folder) / FILE).write_text(text, encoding="utf-8")


def standardisation_from_json(values: Any, where: str | Path = "the checkpoint") -> StandardiseTransform:
    """The transform whose `StandardiseTransform.to_json` this is.

    Raises:
      ValueError: a field is missing, or the numbers of means and standard deviations differ.
    """
    statistics = {}
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: the standardisation is no object of modalities")
    for modality, entry in values.items():
        try:
            names = entry["names"]
            numbers = [tuple(map(float, entry[key])) for key in ("mean", "std")]
            parsed = FeatureStatistics(*numbers, None if names is None else tuple(map(str, names)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: the statistics of {modality!r} are damaged: {error!r}") from error
        if len(parsed.mean) != len(parsed.std) or not np.isfinite([*parsed.mean, *parsed.std]).all():
            raise ValueError(
                f"{where}: the statistics of {modality!r} need as many means as deviations, all finite"
            )
        statistics[modality] = parsed
    return StandardiseTransform(statistics)


def load_standardisation(folder: str | Path) -> StandardiseTransform:
    """The transform that `StandardiseTransform.save` wrote.

    Raises:
      ValueError: the file is damaged.
      FileNotFoundError: there is no such file.
    """
    file = Path(folder) / FILE
    try:
        values = parse_json(read_text(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return standardisation_from_json(values, file)


def fit_standardisation(
    train: Source, bad_examples: BadExamples | None = None
) -> StandardiseTransform | None:
    """The transform with the statistics of all training examples; None where they have no measured quantities.

    ``bad_examples``: notes the features that are constant in training, which become 0.
    """
    modalities = tuple(m for m in train.modalities if is_measured(m))
    if not modalities:
        return None
    moments: dict[str, Moments] = {}
    indices = np.arange(len(train))
    for chunk in np.array_split(indices, -(-len(indices) // _CHUNK)):
        batch = train.measured_batch(chunk)
        for modality in modalities:
            in_chunk = moments_of(batch[modality], value_mask(batch, modality))
            moments[modality] = moments[modality].merge(in_chunk) if modality in moments else in_chunk
    names = train.feature_names or {}
    statistics = {m: FeatureStatistics.from_moments(x, names.get(m)) for m, x in moments.items()}
    for modality, fitted in statistics.items():
        if bad_examples is not None and fitted.constant.any():
            constant = np.flatnonzero(fitted.constant)
            listed = ", ".join(str(k if fitted.names is None else fitted.names[k]) for k in constant[:5])
            more = ", …" if len(constant) > 5 else ""
            count = f"{len(constant)} feature{'s' if len(constant) > 1 else ''}"
            bad_examples.remark(
                f"{count} of {modality!r} with one value, or none, in all training examples: 0 everywhere "
                f"({listed}{more})"
            )
    return StandardiseTransform(statistics)
