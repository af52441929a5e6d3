"""Bad examples in a data set: stop at the first one, or leave each out, count it and list it."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from xmodal_jax.core.text_files import printable

OnBadExample = Literal["skip", "stop"]
"""What to do with an example that cannot be used: leave it out, or stop the run."""


class BadExample(NamedTuple):
    """One example that cannot be used: the file and line (from 1) that define it, and what is wrong with it."""

    file: str
    line: int
    reason: str


class BadExampleError(ValueError):
    """Raised for the first bad example under ``on_bad_example="stop"``; ``example`` tells which it is."""

    def __init__(self, example: BadExample):
        self.example = example
        super().__init__(
            f"{example.file}:{example.line}: {example.reason}. Correct or remove this line, or leave out all bad "
            "examples with on_bad_example='skip' (--on-bad-example skip); they are then counted and listed."
        )


@dataclass
class BadExamples:
    """Collects what is wrong with a data set while it is read.

    ::

        bad_examples = BadExamples("skip")
        source = open_source("folder:photos", bad_examples=bad_examples)
        print(bad_examples.summary())
    """

    on_bad_example: OnBadExample = "stop"
    items: list[BadExample] = field(default_factory=list)
    """The examples that were left out."""
    notes: Counter = field(default_factory=Counter)
    """What else is worth knowing of the data, such as captions that were cut: the number of examples that it concerns,
    by the sentence that says it, see `note`."""
    remarks: list[str] = field(default_factory=list)
    """Sentences on how all data are read (such as the size of images), where that was not asked for."""
    announce: Callable[[str], None] | None = field(default=None, repr=False)
    """Called with each remark as soon as it is made (such as ``print``); None: remarks appear only in `summary`."""
    _known: set[BadExample] = field(default_factory=set, repr=False)

    def add(self, file: str | Path, line: int, reason: str) -> None:
        """Record a bad example, once however often it is found.

        Raises:
          BadExampleError: under ``on_bad_example="stop"``.
        """
        example = BadExample(printable(str(file)), line, printable(reason))
        if self.on_bad_example == "stop":
            raise BadExampleError(example)
        if example not in self._known:  # the training and the test split can come from one file
            self._known.add(example)
            self.items.append(example)

    def note(self, sentence: str, count: int = 1, *, once: bool = False) -> None:
        """Report what concerns ``count`` more examples, which are used all the same.

        ``sentence``: has a plural in braces, which stands for the number of them and their name:
        ``note("Captions are cut to 20 tokens: this shortens {captions}.", 3)`` says "this shortens 3 captions".
        ``once``: the same is found again each time that the file is read, so that the counts do not add up.
        """
        if count:
            sentence = printable(sentence)
            self.notes[sentence] = count if once else self.notes[sentence] + count

    @contextlib.contextmanager
    def recount(self) -> Iterator[None]:
        """Within the block the same data are opened once more: of each note the larger count remains, not the sum."""
        before, self.notes = self.notes, Counter()
        try:
            yield
        finally:
            self.notes = before | self.notes

    def remark(self, sentence: str) -> None:
        """Say once how all data are read, as in ``remark("images are resized to 64 x 64 pixels")``."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)
            if self.announce is not None:
                self.announce(sentence)

    def __len__(self) -> int:
        return len(self.items)

    def count_left_out(self) -> str:
        """``7 bad ones left out``, and where and why the first one was."""
        first = "".join(f", the first: {b.file}:{b.line}: {b.reason}" for b in self.items[:1])
        return f"{len(self.items)} bad ones left out{first}"

    def summary(self) -> str:
        """One line for the bad examples, and one for each kind of note and each remark; empty if there is nothing to
        report."""
        lines = [with_count(sentence, count) for sentence, count in self.notes.items()]
        if self.items:
            first, count = self.items[0], len(self.items)
            left_out = (
                "1 bad example was left out"
                if count == 1
                else f"{count} bad examples were left out, the first"
            )
            lines.insert(0, f"{left_out}: {first.file}:{first.line}: {first.reason}")
        return "\n".join(lines + self.remarks)

    def write(self, path: str | Path) -> None:
        """Write the bad examples as JSON lines (``file``, ``line``, ``reason``), sorted by file and line."""
        lines = [json.dumps(example._asdict(), ensure_ascii=False) + "\n" for example in sorted(self.items)]
        Path(path).write_text("".join(lines), encoding="utf-8")


def with_count(sentence: str, count: int) -> str:
    """``sentence`` with its plural in braces, such as ``{captions}``, replaced by "3 captions" or "1 caption"."""
    return re.sub(r"\{(\w+)s\}", rf"{count} \1{'' if count == 1 else 's'}", sentence, count=1)
