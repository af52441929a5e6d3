"""Asked to stop: SIGTERM, as a cluster sends it before it takes a machine away."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
    """``asked(step)``: whether SIGTERM has come and the run should stop at this step; call it after every dispatch.

    In one process the old handler is put back at the end. Several processes must stop at the same step, whichever of
    them got the signal: there JAX's own service, which has caught it since the processes met, agrees on one.
    """
    if jax.process_count() > 1:
        yield lambda step: bool(multihost_utils.reached_preemption_sync_point(step))
        return
    came = []
    try:
        old = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not in the main thread: nothing to catch
        yield lambda step: False
        return
    try:
        yield lambda step: bool(came)
    finally:
        signal.signal(signal.SIGTERM, old)
