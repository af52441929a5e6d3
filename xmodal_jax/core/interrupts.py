"""Signals that end a program: Ctrl-C during the imports of a script, and signals whose exception is lost."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a program that Ctrl-C has ended, 130, as the shell reports it."""
TERMINATED = 128 + signal.SIGTERM
"""The exit status of a program that SIGTERM has ended, 143."""


def exit_when_interrupted() -> None:
    """Makes Ctrl-C end the program at once, with one line and status 130, if the program is a script of
    ``experiments/``; `raise_when_interrupted` ends that.

    Python's own handler raises KeyboardInterrupt instead, which during an import is a long traceback, or is lost in
    code that tries an import and goes on without it. Programs that only use the package, those that have a handler of
    their own, and those that ignore the signal (such as jobs in the background of a shell script) stay as they are.
    """
    main_file = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    scripts = pathlib.Path(__file__).resolve().parents[2] / "experiments"
    if (
        pathlib.Path(main_file).resolve().parent == scripts
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _exit)


def raise_when_interrupted() -> None:
    """Restores Python's own handler of Ctrl-C, which raises KeyboardInterrupt, after `exit_when_interrupted`."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(*_) -> NoReturn:
    """Ends the process without cleaning up: nothing has been written yet."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def repeat_lost_signals() -> Iterator[None]:
    """Sends SIGINT or SIGTERM to this process again, within the ``with`` block, where the exception that it raised was
    lost: KeyboardInterrupt, or SystemExit with the status `TERMINATED`.

    Python raises the exception of a signal wherever the main thread is. If that is a function that C code calls, such
    as the one that JAX runs with every garbage collection, the exception ends there, in `sys.unraisablehook`, and the
    program would go on as if there had been no signal. Compilation often ends in such a call.
    """
    report, timers = sys.unraisablehook, []

    def hook(args) -> None:
        """Python calls it with an exception that nothing can catch."""
        if isinstance(args.exc_value, KeyboardInterrupt):
            number = signal.SIGINT
        elif isinstance(args.exc_value, SystemExit) and args.exc_value.code == TERMINATED:
            number = signal.SIGTERM
        else:
            report(args)
            return
        # Later, and not here, where the exception would be lost again.
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
        timers.append(timer)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = report
        for timer in timers:
            timer.cancel()
