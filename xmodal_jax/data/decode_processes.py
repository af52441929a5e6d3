"""Processes that decode files: Python's lock lets threads decode small files hardly faster than one of them does."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.decode_file import MediaOptions
from xmodal_jax.data.decode_worker import limits, read_message, write_message

START = "import sys; sys.path[:] = sys.argv[1:]; from xmodal_jax.data.decode_worker import main; main()"
"""The program of a worker. It imports what its parent would import, but not the parent's main module."""


ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # The C library keeps up to 64 MiB rather than to give it back, and to ask for it again, with every file.
    "MALLOC_TOP_PAD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
}
"""Environment variables of a worker."""
PIPE_BYTES = 1 << 20
"""Size of the pipe from a worker, where the system allows it: an answer fits into it."""


class File(NamedTuple):
    """A file to be decoded."""

    kind: str
    """``image``, ``audio`` or ``video``."""
    content: Path | bytes
    """Its path, or what it contains."""


class CrashError(RuntimeError):
    """A decoder ended its process, twice. ``index``: which of the files it decoded."""

    def __init__(self, index: int, ending: str):
        self.index, self.ending = index, ending
        super().__init__(f"the process that decoded file {index} {ending}, twice")


class _EndedError(Exception):
    """A worker has ended before it answered; the message says how."""


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Ctrl-C and SIGTERM are blocked in this thread, and in processes that it starts: a worker decodes what its parent
    still needs, such as for a checkpoint, and ends with it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process of `decode_worker`. One thread at a time may use it."""

    def __init__(self):
        with _signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **ENVIRONMENT},
            )
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> bool:
        """Waits until the worker has imported what it needs; False: it ended before."""
        try:
            return read_message(self._process.stdout)[0] == "ready"
        except (EOFError, OSError, ValueError):
            return False

    def decode(self, files: Sequence[File], options: MediaOptions) -> list[tuple[np.ndarray, bool] | None]:
        """What `decode_file` returns for each of ``files``, or None where this process has to decode it.

        Raises:
          _EndedError: the worker ended.
        """
        if self._process.returncode is not None:
            raise _EndedError(self._ending())
        paths = [None if isinstance(f.content, bytes) else os.path.abspath(f.content) for f in files]
        header = {
            "limits": limits(),
            "options": options,
            "files": [(file.kind, path) for file, path in zip(files, paths, strict=True)],
        }
        contents = [f.content if path is None else b"" for f, path in zip(files, paths, strict=True)]
        try:
            write_message(self._process.stdin, header, contents)
            outcomes, arrays = read_message(self._process.stdout)
        except (EOFError, OSError) as error:
            raise _EndedError(self._ending()) from error
        except BaseException:  # half of an answer may be left in the stream
            self.close()
            raise
        arrays = iter(arrays)
        return [o and (np.frombuffer(next(arrays), o[0]).reshape(o[1]), o[2]) for o in outcomes]

    def _ending(self) -> str:
        """How the worker ended, after the words "the process"."""
        self.close()
        code = self._process.returncode
        if code >= 0:
            return f"ended with status {code}"
        return f"was ended by {signal.Signals(-code).name}"

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)  # it removes what it has written to a temporary file
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class DecodeProcesses:
    """Workers that decode files, for all data sets of a program. Threads may share them."""

    def __init__(self):
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._starting = 0
        self._failed = False

    def start(self, count: int) -> None:
        """Starts workers until there are ``count``, without waiting for them: see `ready`."""
        with self._lock:
            for _ in range(0 if self._failed else count - len(self._workers)):
                try:
                    worker = _Worker()
                except (OSError, TypeError):  # no process can be started here, or there is no Python to start
                    self._failed = True
                    return
                self._workers.append(worker)
                self._starting += 1
                threading.Thread(target=self._wait, args=(worker,), daemon=True).start()

    def _wait(self, worker: _Worker) -> None:
        """Lets a worker decode as soon as it is ready."""
        ready = worker.wait_ready()
        with self._lock:
            self._starting -= 1
            self._failed |= not ready
        if ready:
            self._idle.put(worker)

    @property
    def ready(self) -> bool:
        """Whether workers decode; not if one of them could not start."""
        return bool(self._workers) and not self._starting and not self._failed

    @property
    def pids(self) -> list[int]:
        """The numbers of the workers' processes."""
        return [worker.pid for worker in self._workers]

    def decode(self, files: Sequence[File], options: MediaOptions) -> list[tuple[np.ndarray, bool] | None]:
        """What `decode_file` returns for each of ``files``, or None where this process has to decode it. If a worker
        ends meanwhile, another one takes its place.

        Raises:
          CrashError: the same file ended two workers.
        """
        worker = self._take()
        try:
            return worker.decode(files, options)
        except _EndedError as error:
            ending, decoded = str(error), []
            for index, file in enumerate(files):  # one by one, to learn which of them ends a process
                try:
                    worker = self._replace(worker) if index == 0 else worker
                    decoded += worker.decode([file], options)
                except _EndedError as again:
                    raise CrashError(index, str(again) or ending) from error
            return decoded
        finally:
            self._idle.put(worker)  # one that has ended is replaced when it is next used

    def _take(self) -> _Worker:
        """The next worker that has nothing to do."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._idle.get(timeout=1.0)
            if not self._workers:
                raise RuntimeError("the processes that decode files are closed")

    def _replace(self, ended: _Worker) -> _Worker:
        """A new worker in the place of one that has ended."""
        with self._lock:
            if ended not in self._workers:
                raise RuntimeError("the processes that decode files are closed")
            try:
                worker = _Worker()
            except OSError as error:
                raise RuntimeError(
                    f"a process that decodes files ended, and none can be started: {error}"
                ) from error
            self._workers[self._workers.index(ended)] = worker
        worker.wait_ready()  # if it ended, so says the first request
        return worker

    def close(self) -> None:
        """Ends the workers; no others start."""
        with self._lock:
            workers, self._workers, self._failed = self._workers, [], True
        for worker in workers:
            worker.close()


processes = DecodeProcesses()
"""The workers of this program."""


def _forget() -> None:
    """In a forked process: the workers are the parent's."""
    global processes
    processes = DecodeProcesses()


atexit.register(lambda: processes.close())
os.register_at_fork(after_in_child=_forget)
