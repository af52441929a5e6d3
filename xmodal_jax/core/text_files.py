"""Reading text and JSON that people wrote: UTF-8 and nothing else, with errors that name file, line and byte."""

from __future__ import annotations

import contextlib
import json
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BYTE_ORDER_MARK = "\ufeff"
_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 80


def shorten(value: Any) -> str:
    """``repr(value)`` for a message, at most 100 characters of it."""
    text = _shortened.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def normalise(text: str) -> str:
    """The text in the Unicode form NFC, in which equal texts are equal strings: file systems and editors spell an é as
    one character or as two."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def printable(text: str) -> str:
    """The text with lone surrogates, which neither a terminal nor a file can hold, spelled as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first name that stood there before; None if all names are different."""
    before: set[str] = set()
    for name in names:
        if name in before:
            return name
        before.add(name)
    return None


def distinct_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object, for ``parse_json(pairs=...)``.

    Raises:
      ValueError: two fields have one name (``json`` would keep the last in silence).
    """
    if (twice := first_duplicate(name for name, _ in pairs)) is not None:
        raise ValueError(f"the field {shorten(twice)} is there twice")
    return dict(pairs)


def surrogate_in(text: str) -> str | None:
    """Why a text cannot be written as UTF-8, in words: the first lone surrogate in it. None if there is none.

    `read_damaged` marks a byte that is not UTF-8 by such a character, and JSON can spell one (``"\\ud83d"``).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # These codes are what the error handler "surrogateescape" makes of the byte ``code - 0xDC00``.
        if 0xDC80 <= code <= 0xDCFF:
            byte = len(text[: error.start].encode()) + 1
            return f"byte {byte} (0x{code - 0xDC00:02x}) is not UTF-8; save the file as UTF-8"
        return f"character {error.start + 1} is \\u{code:04x}, half of a surrogate pair, which is no text"
    return None


def _decode(data: bytes, path: str | Path, errors: str) -> str:
    """The text of a file's content, without a byte-order mark; ValueError if it is UTF-16."""
    if data.startswith(_UTF16):
        raise ValueError(f"{path}:1: the file is UTF-16: save it as UTF-8.")
    return data.decode("utf-8", errors).removeprefix(_BYTE_ORDER_MARK)


def read_damaged(path: str | Path) -> str:
    """The text of a file in which single lines may not be UTF-8: `surrogate_in` finds them, so that the others can be
    used. A byte-order mark is left out.

    Raises:
      ValueError: the file is UTF-16.
    """
    return _decode(Path(path).read_bytes(), path, "surrogateescape")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises:
      ValueError: the file is not UTF-8; the message has the line and the byte.
    """
    data = Path(path).read_bytes()
    try:
        return _decode(data, path, "strict")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise ValueError(
            f"{path}:{line}: byte {column} of the line (0x{data[error.start]:02x}) is not UTF-8. Save the file as "
            "UTF-8."
        ) from error


def split_lines(text: str, *, keep_ends: bool = False) -> list[str]:
    """The lines of a text, which end with ``\\n``, ``\\r\\n`` or ``\\r``. (``str.splitlines`` also splits at separators
    that occur within captions, such as U+2028.)"""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if keep_ends:
        lines = [line + "\n" for line in lines]
    return lines[:-1] if not lines[-1].strip("\n") else lines


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file, see `read_text` and `split_lines`."""
    return split_lines(read_text(path))


def _parse_constant(name: str) -> None:
    """The value of NaN, Infinity and -Infinity, which are not JSON but which Python writes."""
    if name != "NaN":
        raise ValueError(f"not JSON ({name} is no number)")


@contextlib.contextmanager
def _json_reasons() -> Iterator[None]:
    """Turns what the JSON parser raises into ValueError with the reason in a few words."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's limit, see sys.set_int_max_str_digits
            raise ValueError("not usable: it has a number of thousands of digits") from error
        raise


def parse_json(text: str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text. NaN, which some programs write for what is missing, is None.

    ``pairs``: makes the value of a JSON object from its names and values, see ``json.loads``.

    Raises:
      ValueError: the reason in a few words: it is not JSON, is nested too deep, or has a number of thousands of digits.
    """
    with _json_reasons():
        return json.loads(text, parse_constant=_parse_constant, object_pairs_hook=pairs)


class JsonDecoder:
    """Reads JSON values within a text, as `parse_json` does, and finds out where they end.

    ``pairs``: see `parse_json`.
    """

    def __init__(self, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None):
        self._decoder = json.JSONDecoder(parse_constant=_parse_constant, object_pairs_hook=pairs)

    def decode(self, text: str, start: int) -> tuple[Any, int]:
        """``(value, end)`` of the value that begins at ``text[start]``; ValueError with the reason if there is none."""
        with _json_reasons():
            return self._decoder.raw_decode(text, start)
