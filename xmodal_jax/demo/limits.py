"""What one request to a demo may cost, and what is said where it is too much or wrong."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 2000
"""Characters of a text."""
MAX_SECONDS = 30.0
"""Length of a recording."""
MAX_PIXELS = 2**25
"""Pixels of a picture, which decoded take 100 MB."""
MAX_CLASSES = 100
"""Classes among which a picture is classified."""
MAX_PICTURES = 16
"""Pictures that one request draws."""
MAX_RESULTS = 24
"""Pictures that one search shows."""
QUEUE_SIZE = 20
"""Requests that wait; further ones are refused."""


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Where a demo listens, and what a request may cost."""

    host: str = "127.0.0.1"
    """Address that the server listens on."""
    port: int = 7860
    """Its port; 0: any free one."""
    max_upload_mb: float = 10.0
    """Size of an uploaded file in megabytes, at most."""
    max_seconds: float = 60.0
    """Seconds that a request may compute, at most; the first one of its kind compiles programs."""

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise ValueError(f"--port must be in 0..65535, got {self.port}")
        for flag, value in {"--max-upload-mb": self.max_upload_mb, "--max-seconds": self.max_seconds}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{flag} must be positive, got {value}")

    @property
    def max_upload_bytes(self) -> int:
        """Bytes of an uploaded file, at most."""
        return int(self.max_upload_mb * 2**20)


class ModelWorker:
    """One thread that computes for all users, one request after the other.

    A computation cannot be stopped from outside. Of one that takes too long the user gets a message; it ends in its
    thread, and the next request waits for it, as long as it may take itself.
    """

    def __init__(self, max_seconds: float):
        """``max_seconds``: of a request, with the time that it waits for the one before."""
        self._max_seconds = max_seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="demo-model")
        self._running: Future | None = None
        self._lock = threading.Lock()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``.

        Raises:
          ValueError: it takes too long, or the one before does. Its own errors are raised as well.
        """
        with self._lock:
            waits = self._running is not None and not self._running.done()
            future = self._running = self._pool.submit(function, *args)
        try:
            return future.result(self._max_seconds)
        except FutureTimeout as error:
            if future.done():  # an error of the function itself
                raise
            future.cancel()  # has an effect only while it waits
            reason = (
                "the server is still busy with another request: try again"
                if waits
                else "make the input shorter, ask for less, or try again: a first request compiles programs too"
            )
            raise ValueError(f"this took longer than {self._max_seconds:g} s; {reason}") from error

    def close(self) -> None:
        """Ends the thread once it has nothing to compute."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def message_of(error: BaseException, hidden: dict[str, str]) -> str:
    """What the page shows of an error: a mistake in the input is explained, a fault of the program is not.

    ``hidden``: texts of the server's own that a message must not show, such as the path of a run, and what stands in
    their place.
    """
    if not isinstance(error, ValueError | OSError):
        logger.error("a request failed", exc_info=error)
        return "Something went wrong here; the terminal of the server shows what."
    text = str(error)
    if isinstance(error, OSError):
        text = error.strerror or "the file cannot be read"
    for own_text, word in hidden.items():
        text = text.replace(own_text, word)
    text = text if len(text) < 400 else f"{text[:400]} …"
    return text[:1].upper() + text[1:]
