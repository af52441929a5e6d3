"""The classes of a data set, from labels that are names or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xmodal_jax.core.text_files import normalise, read_lines, shorten
from xmodal_jax.data.metadata import MIN_CLASS_LIMIT


class Labels:
    """The classes of a data set, and the index of each label's class.

    Labels are the names or the numbers of classes. Without ``classes.txt`` they are what most labels of all splits are;
    the others are bad examples. A whole number in
    a CSV file is a name if most labels are names, because CSV cannot tell one from the other. ::

        labels = Labels({("cat", None): 5, ("dog", None): 3}, Path("photos"))
        labels.index("dog")  # 1

    Args:
      counts: how often each label occurs in all splits, by the label and its text (see `metadata.Record.label_text`);
        the label None, which is unknown, does not count.
      folder: where ``classes.txt`` may be.
    """

    names: tuple[str, ...] | None
    """The name of each class; None: classes have no names."""

    def __init__(self, counts: Mapping[tuple[str | int | None, str | None], int], folder: Path):
        counts = {label: count for label, count in counts.items() if label[0] is not None}
        self._count = sum(counts.values())
        self._numbers = sum(count for (label, _), count in counts.items() if isinstance(label, int))
        self._numbered = 2 * self._numbers > self._count  # most are numbers
        self._listed = (folder / "classes.txt").is_file()
        self.names = None
        if self._listed:
            self.names = _read_class_names(folder / "classes.txt")
        elif counts and not self._numbered:
            names = {label if isinstance(label, str) else text for label, text in counts}
            self.names = tuple(sorted(names - {None}))
        self._index_of = {name: i for i, name in enumerate(self.names or ())}

    def index(self, label: str | int | None, label_text: str | None = None) -> int | None:
        """The index of a label's class, None if it is unknown.

        Raises:
          ValueError: the label cannot be used; the message is the reason.
        """
        if label is None:
            return None
        if not self._numbered and label_text in self._index_of:
            label = label_text
        if isinstance(label, str):
            if label in self._index_of:
                return self._index_of[label]
            if self._listed:
                raise ValueError(f"the label {shorten(label)} is not in classes.txt")
            raise ValueError(
                f"the label {shorten(label)} is a name, while {self._numbers} of {self._count} labels are numbers"
            )
        if self.names is not None and not self._listed:
            raise ValueError(
                f"the label {shorten(label)} is a number, while {self._count - self._numbers} of {self._count} labels "
                "are names (write it in quotes if it is a name)"
            )
        limit = len(self._index_of) if self._listed else max(MIN_CLASS_LIMIT, self._count)
        if not 0 <= label < limit:
            advice = "is not in classes.txt" if self._listed else "number the classes from 0 without gaps"
            raise ValueError(f"the label {shorten(label)} is not in 0..{limit - 1} ({advice})")
        return label


def _read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in ``classes.txt``, one on each line.

    Raises:
      ValueError: a line is blank, or a name is there twice.
    """
    names = [normalise(line.strip()) for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    line_of: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}:{number}: the line is blank; expected the name of class {number - 1}.")
        if name in line_of:
            raise ValueError(f"{path}:{number}: the class {name!r} is in line {line_of[name]} already.")
        line_of[name] = number
    return tuple(names)
