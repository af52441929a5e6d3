"""Read large JSON arrays item by item, each with its line, so that a damaged one costs no other."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from xmodal_jax.core.text_files import JsonDecoder, distinct_fields, shorten, surrogate_in

_SPACE = re.compile(r"[ \t\n]*")
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[{}\[\]]')
_BOUNDARY = re.compile(r",[ \t\n]*(?=\{)|\}[ \t\n]*(?=\])")
"""Before the next object of an array, or the end of the array after an object."""


class JsonItem(NamedTuple):
    """One item of an array, or what is wrong with it."""

    array: str
    """The name of the array in the file's object; empty: the file is the array."""
    line: int
    """Where the item begins, from 1."""
    value: Any
    error: str | None = None
    """The reason why there is no value; None: there is one."""


def read_json_items(text: str, arrays: Collection[str] = ()) -> Iterator[JsonItem]:
    """The items of a JSON array, or of some arrays in a JSON object.

    Args:
      text: the array; or with ``arrays`` the object. It can have bytes that are not UTF-8, see `read_damaged`.
      arrays: the names of the arrays in the object. Those that are not there have no items.

    Yields:
      The items in the order of the file. A damaged one has an ``error``; so has what is not such an array or object.
    """
    return _Reader(text.replace("\r\n", "\n").replace("\r", "\n"), arrays).items()


class _Reader:
    """The position in a text, and the number of its line."""

    def __init__(self, text: str, arrays: Collection[str]):
        self.text, self.arrays, self.decoder = text, arrays, JsonDecoder(distinct_fields)
        self.position, self._line, self._counted = 0, 1, 0
        self._damaged = surrogate_in(text) is not None

    def line(self) -> int:
        """The number of the line at the position."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def take(self, character: str) -> bool:
        """Moves over spaces, and over ``character`` if it comes next; ``""`` always does."""
        self.position = _SPACE.match(self.text, self.position).end()
        if not self.text.startswith(character, self.position):
            return False
        self.position += len(character)
        return True

    def fail(self, array: str, reason: str) -> JsonItem:
        self.position = min(self.position, len(self.text.rstrip()))
        return JsonItem(array, self.line(), None, reason)

    def items(self) -> Iterator[JsonItem]:
        """See `read_json_items`."""
        if not self.arrays:
            if not self.take("["):
                yield self.fail("", "the file is not a JSON array such as [{...}, {...}]")
                return
            yield from self._array("")
            return
        if not self.take("{"):
            yield self.fail("", "the file is not a JSON object")
            return
        while not self.take("}"):
            name = None
            try:
                self.take(",")
                self.take("")
                name, self.position = self.decoder.decode(self.text, self.position)
                if not isinstance(name, str):
                    raise ValueError(f"not JSON ({shorten(name)} is not the name of a field)")
                if not self.take(":"):
                    raise ValueError(f"not JSON (no colon after {shorten(name)})")
                if name in self.arrays and self.take("["):
                    yield from self._array(name)
                elif name in self.arrays:
                    raise ValueError(f"{name!r} is not an array")
                else:
                    self.take("")
                    _, self.position = self.decoder.decode(self.text, self.position)
            except ValueError as error:
                yield self.fail(name if name in self.arrays else "", f"the file cannot be read on: {error}")
                return

    def _array(self, array: str) -> Iterator[JsonItem]:
        """The items of an array up to its end; the position is behind its ``[``."""
        if self.take("]"):
            return
        while True:
            self.take("")
            start, line = self.position, self.line()
            value, error = None, None
            try:
                value, self.position = self.decoder.decode(self.text, start)
            except ValueError as reason:
                error = str(reason)
                self._skip_damaged()
            if self._damaged and error is None:
                line, error = self._damage(start, line)
            yield JsonItem(array, line, value if error is None else None, error)
            if self.take("]"):
                return
            if self.take(","):
                continue
            if error is None:
                yield self.fail(array, "the array ends here without ], or a comma is missing")
                if self.text.startswith("{", self.position):
                    continue
            self.position = len(self.text)
            return

    def _damage(self, start: int, line: int) -> tuple[int, str | None]:
        """The line of the first byte of the item that is not UTF-8, and what is wrong; ``(line, None)``: nothing."""
        for number, content in enumerate(self.text[start : self.position].split("\n")):
            if surrogate_in(content):
                # Bytes are counted from the beginning of the line, in which other items may stand before.
                before = self.text[self.text.rfind("\n", 0, start) + 1 : start] if number == 0 else ""
                return line + number, surrogate_in(before + content)
        return line, None

    def _skip_damaged(self) -> None:
        """Moves behind the damaged item at the position: to where its braces close, or to the next boundary of
        objects; to the end of the text if there is none."""
        open_braces: list[str] = []
        for token in _TOKEN.finditer(self.text, self.position):
            mark = token[0]
            if mark in "{[":
                open_braces.append("}" if mark == "{" else "]")
            elif mark in "}]":
                if not open_braces or open_braces.pop() != mark:
                    break  # more are closed than opened
                after = _SPACE.match(self.text, token.end()).end()
                if not open_braces and self.text[after : after + 1] in (",", "]"):
                    self.position = token.end()
                    return
        boundary = _BOUNDARY.search(self.text, self.position)
        if boundary is None:
            self.position = len(self.text)
        else:
            self.position = boundary.start() + (boundary[0][0] == "}")
