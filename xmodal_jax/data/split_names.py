"""The names that splits have in data sets: ``train``, ``validation`` and ``test``, and how else they are called."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

SPLIT_NAMES = {
    "train": ("train", "training", "restval"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""By split the words that name it, alone or with others: ``val2017``, ``train-clean-100``."""
_DELIMITER = re.compile(r"[-._ /\d]+")


def split_of(name: str) -> str | None:
    """``train``, ``validation`` or ``test``, which a name means: ``dev-clean`` is of ``validation``; None: no such."""
    words = [word for word in _DELIMITER.split(name.lower()) if word]
    return next((split for split, names in SPLIT_NAMES.items() if any(word in names for word in words)), None)


def find_splits(split: str, names: Collection[str]) -> list[str]:
    """Those of the splits ``names`` of a data set that ``split`` means: the one of this name; or else, for ``train``,
    ``validation`` and ``test``, all that are called so in other words, sorted. Empty: there is none.

    ::

        find_splits("validation", ["train-clean-100", "dev-clean", "dev-other"])  # ["dev-clean", "dev-other"]
    """
    if split in names:
        return [split]
    return sorted(name for name in names if split in SPLIT_NAMES and split_of(name) == split)


def test_and_validation(names: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """``(test_splits, validation_split)`` of a data set with the splits ``names``, as `Source` declares them."""
    has = {split: bool(find_splits(split, names)) for split in ("test", "validation")}
    return ("test",) * has["test"], "validation" if has["validation"] else None
