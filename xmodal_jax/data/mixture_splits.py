"""Open several data sets as one: ``--data A B``, each with options of its own, and ``--test-data``."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.held_out import open_parts
from xmodal_jax.data.mixture import MixtureFields, MixtureSource, mixture_fields
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.order import take_turns
from xmodal_jax.data.source import Source
from xmodal_jax.data.views import Subset

DataSpec = str | tuple[str, ...]
"""What ``--data`` says: one data set, or the parts of a mixture."""
OF_ALL = ("data_weights", "test_data", "on_bad_example", "progress")
"""Options that are those of all parts of a mixture."""


def describe_spec(spec: DataSpec) -> str:
    """What ``--data`` says, in one line."""
    return spec if isinstance(spec, str) else " + ".join(spec)


def split_options(spec: str, options: DataOptions) -> tuple[str, DataOptions]:
    """A data set without the options that follow it after ``?``, and ``options`` with these.

    ::

        split_options("shapes?modalities=text,audio&data_seed=1", DataOptions())
        # ("shapes", DataOptions(modalities=("text", "audio"), data_seed=1))

    Raises:
      ValueError: there is no such option for one data set, or a value is not of its type.
    """
    match = re.fullmatch(r"(.+?)\?(\w+=[^&?]*(?:&\w+=[^&?]*)*)", spec)
    if match is None:
        return spec, options
    spec, changes = match[1], {}
    names = [field.name for field in dataclasses.fields(DataOptions) if field.name not in OF_ALL]
    for assignment in match[2].split("&"):
        name, _, text = assignment.partition("=")
        name = name.replace("-", "_")
        if name not in names:
            raise ValueError(
                f"--data {spec}?{assignment}: {name!r} is no option of one data set; these are {', '.join(names)}"
            )
        changes[name] = _convert(name, text, f"--data {spec}?{assignment}")
    try:
        return spec, dataclasses.replace(options, **changes)
    except ValueError as error:
        raise ValueError(f"--data {match[0]}: {error}") from error


def _convert(name: str, text: str, where: str) -> Any:
    """The value of a field of `DataOptions` that ``text`` says; a tuple has commas. ``where``: for the error."""
    annotation = typing.get_type_hints(DataOptions)[name]
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    kind = next(kind for kind in kinds if kind is not type(None))
    if typing.get_origin(kind) is tuple:
        return tuple(text.split(","))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{where}: True or False is expected, got {text!r}")
        return text.lower() == "true"
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ValueError(f"{where}: {expected} is expected, got {text!r}") from None


def part_names(specs: Sequence[str]) -> list[str]:
    """A name for each part of a mixture, under which its scores are reported: the end of its path, or the form of the
    data set, and a number where two would be called alike.

    ::

        part_names(["folder:sets/flickr", "shapes", "shapes?data_seed=1"])  # ["flickr", "shapes_1", "shapes_2"]
    """
    names = []
    for spec in specs:
        form, _, argument = split_options(spec, DataOptions())[0].partition(":")
        name = re.sub(r"\W+", "_", Path(argument).stem).strip("_")
        names.append(name if name not in ("", "train", "validation", "test") else form)
    return [
        name if names.count(name) == 1 else f"{name}_{names[: k + 1].count(name)}"
        for k, name in enumerate(names)
    ]


def open_mixture(
    specs: DataSpec, options: DataOptions, bad_examples: BadExamples, *, validation: int = 300
) -> tuple[Source, Source, dict[str, Source]]:
    """``(training, validation, tests)`` of a mixture, or of one data set with other data for its tests.

    Each part is opened as a data set of its own (see `held_out.open_parts`), with the options that its spec adds to
    ``options``. Training draws from the parts as ``options.data_weights`` says; validation data are those of all parts.
    The tests are ``test``, the test splits of that name of all parts, and the test splits of each part under its name
    (``shapes_1``, ``shapes_1_voices``); with ``options.test_data`` they are the test splits of that data set instead.

    Args:
      specs: the parts, each one of the forms of ``--data`` (see `open_source`), with or without ``?OPTION=VALUE``.
      options: how to read them.
      bad_examples: collects bad examples of all splits.
      validation: training examples of each part to hold out for validation, see `held_out.open_parts`.

    Raises:
      ValueError: no data set, or parts that do not fit together (see `MixtureSource`).
    """
    specs = (specs,) if isinstance(specs, str) else tuple(specs)
    if not specs:
        raise ValueError("--data needs a data set")
    split = [split_options(spec, options) for spec in specs]
    opened = [
        open_parts(spec, part_options, bad_examples, validation=validation) for spec, part_options in split
    ]
    names = part_names(specs)
    if len(specs) == 1 and options.data_weights is None:
        train, validated, tests = opened[0]
    else:
        _check_rates(names, [part_options for _, part_options in split], [train for train, _, _ in opened])
        train = MixtureSource(
            dict(zip(names, (train for train, _, _ in opened), strict=True)), options.data_weights
        )
        validated = _interleave(names, [source for _, source, _ in opened], train.fields)
        tests = _name_tests(names, [tests for _, _, tests in opened], train.fields)
    if options.test_data is not None:
        fields = train.fields if isinstance(train, MixtureSource) else mixture_fields({"training": train})
        tests = _open_tests(options, fields, bad_examples)
    return train, validated, tests


def _check_rates(names: Sequence[str], options: Sequence[DataOptions], trains: Sequence[Source]) -> None:
    """Raises ValueError if two parts with audio have different sample rates, which their arrays do not show."""
    rates = {
        name: part.sample_rate
        for name, part, train in zip(names, options, trains, strict=True)
        if any(m.partition("_")[0] == "audio" for m in train.modalities)
    }
    if len(set(rates.values())) > 1:
        listed = ", ".join(f"{rate} Hz in {name}" for name, rate in rates.items())
        raise ValueError(f"data sets of a mixture need one sample rate (--sample-rate), got {listed}")


def _interleave(names: Sequence[str], sources: Sequence[Source], fields: MixtureFields) -> Source:
    """One split of all parts, which take turns, so that the first examples are of all of them."""
    turns = take_turns([len(source) for source in sources])
    indices = np.empty(len(turns), np.int64)
    indices[np.argsort(turns, kind="stable")] = np.arange(
        len(turns)
    )  # the parts follow each other in a mixture
    return Subset(MixtureSource(dict(zip(names, sources, strict=True)), fields=fields), indices)


def _name_tests(
    names: Sequence[str], tests: Sequence[dict[str, Source]], fields: MixtureFields
) -> dict[str, Source]:
    """The tests of a mixture by name, from those of each part: see `open_mixture`."""
    main = [of_part.get("test", next(iter(of_part.values()))) for of_part in tests]
    named: dict[str, Source] = {"test": _interleave(names, main, fields)}
    for name, of_part in zip(names, tests, strict=True):
        for split, source in of_part.items():
            key = name if split == "test" else f"{name}_{split}"
            named[key] = MixtureSource({name: source}, fields=fields)
    return named


def _open_tests(options: DataOptions, fields: MixtureFields, bad_examples: BadExamples) -> dict[str, Source]:
    """The test splits of ``options.test_data``, in the fields of the training examples."""
    spec, options = split_options(options.test_data, options)
    _, _, tests = open_parts(spec, options, bad_examples)
    (name,) = part_names([spec])
    return {split: MixtureSource({name: source}, fields=fields) for split, source in tests.items()}
