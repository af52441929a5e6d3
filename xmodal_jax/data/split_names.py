"""The names that splits have in data sets: ``train``, ``validation`` and ``test``, and how else they are called; and
what ``--validation`` and ``--test-split`` say."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

SPLIT_OF_WORD = {
    "train": "train", "training": "train", "restval": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "development": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""The split that a word names, alone or with others: ``val2017``, ``train-clean-100``."""


def split_of(name: str) -> str | None:
    """``train``, ``validation`` or ``test``, which the first such word in a name means: ``dev-clean`` is of
    ``validation``; None: there is no such word."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD), None)


def find_splits(split: str, names: Collection[str]) -> list[str]:
    """Those of the splits ``names`` of a data set that ``split`` means: the one of this name; or else, for ``train``,
    ``validation`` and ``test``, all that are called so in other words, sorted. Empty: there is none.

    ::

        find_splits("validation", ["train-clean-100", "dev-clean", "dev-other"])  # ["dev-clean", "dev-other"]
    """
    if split in names:
        return [split]
    return sorted(name for name in names if split_of(name) == split)


def splits_overlap(first: str, second: str) -> bool:
    """Whether two names can mean the same examples: equal ones, and a bare word and any name of its meaning, such as
    ``val`` and ``validation``, or ``dev`` and ``dev-clean``."""
    meaning = split_of(first)
    is_bare = first.lower() in SPLIT_OF_WORD or second.lower() in SPLIT_OF_WORD
    return first == second or (meaning is not None and meaning == split_of(second) and is_bare)


def test_and_validation(names: Collection[str]) -> tuple[tuple[str, ...], str | None]:
    """``(test_splits, validation_split)`` of a data set with the splits ``names``, as `Source` declares them."""
    has = {split: bool(find_splits(split, names)) for split in ("test", "validation")}
    return ("test",) * has["test"], "validation" if has["validation"] else None


TRAIN_ALONE = "{} has the split train alone: a tenth of it is the test split"
"""Remark on a data set whose only split is ``train``; ``{}`` is its name."""


def require_undivided_split(split: str, data_set: str | Path) -> None:
    """Checks the split of a data set without splits of its own, a tenth of which is the test split.

    Raises:
      ValueError: ``split`` is not ``train``, ``test`` or ``all``; the message names ``data_set``.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(
            f"{data_set} has no split {split!r}: it is not divided into splits, so that the split must be train, test "
            "or all."
        )


class Part(NamedTuple):
    """What ``--validation`` or ``--test-split`` says: one of the three."""

    name: str | None = None
    """The name of a split."""
    share: float | None = None
    """A share of the training examples."""
    count: int | None = None
    """A number of training examples."""

    def size(self, total: int) -> int:
        """The number of examples to hold out of ``total``, one at least.

        Raises:
          ValueError: none would remain.
        """
        count = max(1, round(self.share * total)) if self.count is None else self.count
        if count >= total:
            value = self.share if self.count is None else self.count
            raise ValueError(
                f"--validation or --test-split {value}: that is {count} of {total} training examples, of which some "
                "must remain."
            )
        return count


def parse_part(option: str, value: str | None) -> Part | None:
    """What an option says: ``dev`` is a name, ``0.1`` a share, ``500`` a count; None: nothing.

    Raises:
      ValueError: a share that is not between 0 and 1, a count below 1, or the name of what is trained on; the message
        names ``option``.
    """
    if value is None:
        return None
    if re.fullmatch(r"[+-]?\d+", value):
        if int(value) < 1:
            raise ValueError(f"{option} must be at least one example, not {value}.")
        return Part(count=int(value))
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+)(e[+-]?\d+)?", value, re.IGNORECASE):
        if not 0 < float(value) < 1:
            raise ValueError(f"{option} must be a share between 0 and 1, as 0.1, not {value}.")
        return Part(share=float(value))
    if value in ("", "all") or SPLIT_OF_WORD.get(value.lower()) == "train":
        raise ValueError(f"{option} must be another split than the training split, not {value!r}.")
    return Part(name=value)
