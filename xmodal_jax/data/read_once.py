"""Files that several splits need are read once in a process, as long as they do not change."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xmodal_jax.data.bad_examples import BadExamples

Value = TypeVar("Value")
KEPT = 16
"""Results that are kept, those that were needed last."""
SETTLED = 2.0
"""Seconds: what was written later before it was read is read again, because the time of a file is not exact enough to
tell that it changed once more."""
_kept: OrderedDict[Hashable, tuple[Any, list[tuple[str, tuple, dict]]]] = OrderedDict()


class _Recorder(BadExamples):
    """Records what is reported, so that it can be reported again."""

    def __init__(self):
        super().__init__("skip")
        self.events: list[tuple[str, tuple, dict]] = []

    def add(self, *args: Any) -> None:
        self.events.append(("add", args, {}))

    def note(self, *args: Any, **kwargs: Any) -> None:
        self.events.append(("note", args, kwargs))

    def remark(self, *args: Any) -> None:
        self.events.append(("remark", args, {}))


def read_once(
    read: Callable[[BadExamples], Value], bad_examples: BadExamples, *, files: Sequence[Path], key: Hashable
) -> Value:
    """Returns ``read(bad_examples)``, or what it returned before if none of the ``files`` has changed since. Bad
    examples and remarks that it reported then are reported again.

    Args:
      read: reads the ``files``. Nobody may change what it returns.
      bad_examples: collects bad examples.
      files: all files that ``read`` opens.
      key: equal for calls that read the same from these files.

    Raises:
      BadExampleError: a bad example, if those stop the run; and what ``read`` raises.
    """
    started = time.time()
    try:
        stats = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    except OSError:
        return read(bad_examples)  # which reports it
    full_key = (key, tuple(stats))
    if full_key in _kept:
        _kept.move_to_end(full_key)
        value, events = _kept[full_key]
        _report(events, bad_examples)
        return value
    recorder = _Recorder()
    try:
        value = read(recorder)
    finally:
        _report(recorder.events, bad_examples)
    if all(modified < (started - SETTLED) * 1e9 for _, _, modified in stats):
        _kept[full_key] = (value, recorder.events)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return value


def _report(events: list[tuple[str, tuple, dict]], bad_examples: BadExamples) -> None:
    for name, args, kwargs in events:
        getattr(bad_examples, name)(*args, **kwargs)
