"""Kinds of faulty inputs, one module each: what is drawn, and what the right answer to it is.

A module has a `Kind`. Its ``draw`` makes one input from a random generator, and knows whether it must be refused, or
which values must come out: never by asking the code that is tested.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

OUTCOMES = ("right", "refused", "raw", "hung", "wrong")
"""What can come of an input:

- ``right``: the value that the generator knows;
- ``refused``: an error that says what to do, with file and field, for an input that must (or may) be refused;
- ``raw``: another exception, or one that does not name file and field;
- ``hung``: no answer within the time limit;
- ``wrong``: another value in silence, or an error for a good input.
"""
REFUSED = object()
"""The right answer to an input that must be refused."""
ANYTHING = object()
"""The answer where no one can know: a flipped bit of a recording. It must neither hang nor raise a raw exception."""
RAW = (UnicodeError, json.JSONDecodeError)
"""Errors of the standard library that are a ValueError but name no file."""


class Case(NamedTuple):
    """An input, and the right answer to it."""

    fault: str
    """What is wrong with the input, in a few words: a row of the table."""
    attempt: Callable[[], Any]
    """Reads the input."""
    expected: Any = REFUSED
    """What ``attempt`` must return; `REFUSED`: it must raise an actionable error; `ANYTHING`: unknown."""
    mentions: tuple[str, ...] = ()
    """What the message of an error must name: the file, the line or the field."""
    may_refuse: bool = False
    """Whether refusing is right as well, where the damage may or may not have harmed anything."""


class Kind(NamedTuple):
    """A kind of input."""

    name: str
    draw: Callable[[np.random.Generator, pathlib.Path], Case]
    """Draws an input, whose files are written to a folder that exists and is empty."""
    count: int
    """Number of inputs in a full run."""
    seconds: float = 10.0
    """Time limit of one input."""


class Result(NamedTuple):
    """What came of an input."""

    kind: str
    index: int
    """The number of the input: with the seed it makes the input again."""
    fault: str
    outcome: str
    """One of `OUTCOMES`."""
    detail: str
    """The message of the error, or what differs."""


class Hung(BaseException):
    """Raised by the timer in an input that takes too long. No ``except Exception`` holds it up."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `Hung` in this context after some seconds (in the main thread, on systems with SIGALRM)."""

    def stop(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def draw(kind: Kind, seed: int, index: int, folder: pathlib.Path) -> Case:
    """The input with a number; its files are in ``folder``, which exists and is empty."""
    return kind.draw(np.random.default_rng([seed, *kind.name.encode(), index]), folder)


def judge(kind: Kind, seed: int, index: int, folder: pathlib.Path) -> Result:
    """Draws an input, tries it, and compares what came of it with the right answer."""
    case = draw(kind, seed, index, folder)
    result = lambda outcome, detail="": Result(kind.name, index, case.fault, outcome, detail[:500])
    try:
        with time_limit(kind.seconds):
            value = case.attempt()
    except Hung:
        return result("hung", f"more than {kind.seconds} s")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return result(*_judge_error(case, error))
    if case.expected is REFUSED:
        return result("wrong", f"not refused: {value!r}")
    if case.expected is not ANYTHING and not same(value, case.expected):
        return result("wrong", f"{value!r} is not {case.expected!r}")
    return result("right")


def _judge_error(case: Case, error: BaseException) -> tuple[str, str]:
    """The outcome of a case that raised an error, and the error's message."""
    text = f"{type(error).__name__}: {error}"
    if not isinstance(error, (ValueError, OSError)) or isinstance(error, RAW):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "raw", f"{text} ({pathlib.Path(frame.filename).name}:{frame.lineno})"
    if unnamed := [name for name in case.mentions if name not in str(error)]:
        return "raw", f"does not name {', '.join(unnamed)}: {text}"
    if not (case.expected is REFUSED or case.expected is ANYTHING or case.may_refuse):
        return "wrong", f"a good input is refused: {text}"
    return "refused", text


def same(value: Any, expected: Any) -> bool:
    """Whether two values are equal: nested dicts and sequences, whose arrays have the same type, shape and bits."""
    if isinstance(expected, np.ndarray) or isinstance(value, np.ndarray):
        value, expected = np.asarray(value), np.asarray(expected)
        if value.dtype == object or expected.dtype == object:
            return value.shape == expected.shape and value.tolist() == expected.tolist()
        return (value.dtype, value.shape, value.tobytes()) == (
            expected.dtype,
            expected.shape,
            expected.tobytes(),
        )
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[k], expected[k]) for k in expected)
    if isinstance(expected, (list, tuple)):
        return len(value) == len(expected) and all(map(same, value, expected))
    return bool(value == expected)


def choose(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of the choices, as it is (NumPy would make an array of them)."""
    return choices[int(rng.integers(len(choices)))]


def flip_bits(
    rng: np.random.Generator, content: bytes, count: int, start: int = 0, stop: int | None = None
) -> bytes:
    """The content with ``count`` bits flipped between two positions, in bytes."""
    damaged = bytearray(content)
    for position in rng.integers(start, len(content) if stop is None else stop, count):
        damaged[position] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def cut(rng: np.random.Generator, content: bytes) -> bytes:
    """The content without its end."""
    return content[: int(rng.integers(len(content)))]
