"""Timing several variants in turn, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
from tqdm import tqdm

Name = TypeVar("Name", bound=Hashable)


def in_turn(runs: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, float]:
    """The median of the seconds that each of ``runs`` returns; every round calls all of them once."""
    times: dict[Name, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(rounds), desc="timing", unit="round", file=sys.stderr):
        for name, run in runs.items():
            times[name].append(run())
    return {name: float(np.median(values)) for name, values in times.items()}
