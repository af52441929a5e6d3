"""Processes that decode small files. Threads would hardly be faster than one of them, because of the interpreter's
lock."""

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
from xmodal_jax.data.decode_worker import pillow_settings, read_message, write_message

WORKER_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; from xmodal_jax.data.decode_worker import main; main()"
)
"""The program of a worker. It has the import path of its parent, but does not import the parent's main module."""
WORKER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # The C library keeps up to 64 MiB, instead of returning memory to the system after each file and asking for it
    # anew.
    "MALLOC_TOP_PAD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
}
"""Environment variables that a worker has beside those of its parent."""
PIPE_BYTES = 1 << 20
"""Size of the pipe from a worker, where the system allows it: large enough for an answer, so that it is written at
once."""


class File(NamedTuple):
    """A file to be decoded."""

    kind: str
    """``image``, ``audio`` or ``video``."""
    content: Path | bytes
    """Its path, or what it contains."""


class CrashError(RuntimeError):
    """A file crashed two worker processes.

    ``index``: of the file in the request. ``ending``: how the process ended, such as "was ended by SIGKILL".
    """

    def __init__(self, index: int, ending: str):
        self.index, self.ending = index, ending
        super().__init__(f"the process that decoded file {index} {ending}, twice")


class _EndedError(Exception):
    """A worker ended before it answered; the message says how, such as "ended with status 1"."""


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks Ctrl-C and SIGTERM in this thread, and so in the processes that it starts meanwhile: a worker goes on
    while its parent still needs files, such as to write a checkpoint, and ends with the parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process that runs `decode_worker.main`. One thread at a time may use it."""

    def __init__(self):
        with _signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-c", WORKER_PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **WORKER_ENVIRONMENT},
            )
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> bool:
        """Waits until the worker has imported its modules; False if it ended before."""
        try:
            return read_message(self._process.stdout)[0] == "ready"
        except (EOFError, OSError, ValueError):
            return False

    def decode(self, files: Sequence[File], options: MediaOptions) -> list[tuple[np.ndarray, bool] | None]:
        """Decodes files: for each what `decode_file` returns, or None where it failed, for the caller to decode itself.

        Raises:
          _EndedError: the worker ended.
        """
        if self._process.returncode is not None:
            raise _EndedError(self._ending())
        paths = [None if isinstance(f.content, bytes) else os.path.abspath(f.content) for f in files]
        header = {
            "pillow_settings": pillow_settings(),
            "options": options,
            "files": [(file.kind, path) for file, path in zip(files, paths, strict=True)],
        }
        contents = [f.content if path is None else b"" for f, path in zip(files, paths, strict=True)]
        try:
            write_message(self._process.stdin, header, contents)
            outcomes, arrays = read_message(self._process.stdout)
        except (EOFError, OSError) as error:
            raise _EndedError(self._ending()) from error
        except BaseException:  # the stream may hold half of an answer, which the next request would read
            self.close()
            raise
        arrays = iter(arrays)
        return [o and (np.frombuffer(next(arrays), o[0]).reshape(o[1]), o[2]) for o in outcomes]

    def _ending(self) -> str:
        """How the worker ended, as a predicate: "ended with status 1"."""
        self.close()
        code = self._process.returncode
        if code >= 0:
            return f"ended with status {code}"
        return f"was ended by {signal.Signals(-code).name}"

    def close(self) -> None:
        """Ends the process, within about a second."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)  # time to remove its temporary files
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class DecodeProcesses:
    """A pool of worker processes that decode files, for all data sets of a program. Threads may share it."""

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
                except (OSError, TypeError):  # processes cannot be started, or `sys.executable` is None
                    self._failed = True
                    return
                self._workers.append(worker)
                self._starting += 1
                threading.Thread(target=self._add_when_ready, args=(worker,), daemon=True).start()

    def _add_when_ready(self, worker: _Worker) -> None:
        """Waits for a worker to be ready, then adds it to the idle ones."""
        ready = worker.wait_ready()
        with self._lock:
            self._starting -= 1
            self._failed |= not ready
        if ready:
            self._idle.put(worker)

    @property
    def ready(self) -> bool:
        """Whether all workers that were started can decode; False if there are none or one could not start."""
        return bool(self._workers) and not self._starting and not self._failed

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def decode(self, files: Sequence[File], options: MediaOptions) -> list[tuple[np.ndarray, bool] | None]:
        """Decodes files in the next idle worker: for each what `decode_file` returns, or None where it failed, for the
        caller to decode itself. If the worker crashes, the files are decoded one by one in a new one.

        Raises:
          CrashError: the same file crashed two workers.
        """
        worker = self._take()
        try:
            return worker.decode(files, options)
        except _EndedError as error:
            ending, decoded = str(error), []
            for index, file in enumerate(files):  # one by one, to learn which of them crashes a worker
                try:
                    worker = self._replace(worker) if index == 0 else worker
                    decoded += worker.decode([file], options)
                except _EndedError as second_error:
                    raise CrashError(index, str(second_error) or ending) from error
            return decoded
        finally:
            self._idle.put(worker)  # one that has ended is replaced when it is next used

    def _take(self) -> _Worker:
        """Waits for an idle worker and takes it."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._idle.get(timeout=1.0)
            if not self._workers:
                raise RuntimeError("the processes that decode files are closed")

    def _replace(self, ended: _Worker) -> _Worker:
        """Starts a new worker in the place of one that has ended."""
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
        worker.wait_ready()  # should it end meanwhile, the next request raises
        return worker

    def close(self) -> None:
        """Ends all workers; none is started afterwards."""
        with self._lock:
            workers, self._workers, self._failed = self._workers, [], True
        for worker in workers:
            worker.close()


processes = DecodeProcesses()
"""The pool of this program."""


def _reset_after_fork() -> None:
    """Gives a forked process a pool of its own: the workers belong to its parent."""
    global processes
    processes = DecodeProcesses()


atexit.register(lambda: processes.close())
os.register_at_fork(after_in_child=_reset_after_fork)
