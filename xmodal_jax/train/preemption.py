"""Stopping on SIGTERM, which a cluster sends before it takes a machine away."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from xmodal_jax.core.interrupts import TERMINATED


@contextlib.contextmanager
def exit_on_termination() -> Iterator[None]:
    """Ends the program with status 143 at SIGTERM within the ``with`` block, by an exception, so that temporary files
    are removed and locks are given free. The end of the block restores the handler that was set before."""

    def stop(*_):
        raise SystemExit(TERMINATED)

    try:
        handler = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, which alone can catch signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
    """Catches SIGTERM within the ``with`` block, which gets a function ``stop_requested(step) -> bool``.

    The function returns whether the signal has come and the run should stop at this step; call it after every dispatch.
    The end of the block restores the handler that was set before.

    Several processes must stop at the same step, whichever of them gets the signal. With several processes JAX's own
    service has caught the signal since the processes joined, and it makes them agree on a step.
    """
    if jax.process_count() > 1:
        yield lambda step: bool(multihost_utils.reached_preemption_sync_point(step))
        return
    signals = []
    try:
        handler = signal.signal(signal.SIGTERM, lambda *_: signals.append(True))
    except ValueError:  # not in the main thread, which alone can catch signals
        yield lambda step: False
        return
    try:
        yield lambda step: bool(signals)
    finally:
        signal.signal(signal.SIGTERM, handler)
