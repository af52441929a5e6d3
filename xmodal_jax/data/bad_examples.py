"""Bad examples in a data set: stop at the first, or leave each out, count it and list it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

OnBadExample = Literal["skip", "stop"]


class Problem(NamedTuple):
    """One bad example: where it is written (line counted from 1) and what is wrong with it."""

    file: str
    line: int
    reason: str


class BadExample(ValueError):
    """Raised for the first bad example under ``on_bad_example="stop"``."""

    def __init__(self, problem: Problem):
        self.problem = problem
        super().__init__(
            f"{problem.file}:{problem.line}: {problem.reason}. Correct or remove this line, or leave "
            "out all bad "
            "examples with on_bad_example='skip' (--on-bad-example skip); they are then counted and listed."
        )


@dataclass
class Problems:
    """Collects what was wrong in a data set.

    ``items``: the examples left out. ``notes``: how often something was changed that a user should know of (a
    caption cut, a recording shortened), by its description.
    """

    on_bad_example: OnBadExample = "stop"
    items: list[Problem] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)

    def add(self, file: str | Path, line: int, reason: str) -> None:
        """Record a bad example; raises `BadExample` if the user chose to stop."""
        problem = Problem(str(file), line, reason)
        if self.on_bad_example == "stop":
            raise BadExample(problem)
        self.items.append(problem)

    def note(self, what: str, count: int = 1) -> None:
        """Count something that was changed."""
        if count:
            self.notes[what] += count

    def __len__(self) -> int:
        return len(self.items)

    def summary(self) -> str:
        """One line per kind of remark; empty if there is none."""
        lines = [f"{count} examples: {what}" for what, count in self.notes.items()]
        if self.items:
            first = self.items[0]
            lines.insert(
                0,
                f"{len(self.items)} bad examples left out, the first: {first.file}:{first.line}: "
                f"{first.reason}",
            )
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Write the bad examples as JSON lines (``file``, ``line``, ``reason``), in the order of the files."""
        rows = [json.dumps(problem._asdict(), ensure_ascii=False) + "\n" for problem in sorted(self.items)]
        Path(path).write_text("".join(rows), encoding="utf-8")
