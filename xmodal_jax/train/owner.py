"""The owner of a run directory: one process at a time writes to it, and a second one is refused.

The owner holds a lock on the file ``lock.json`` in the directory, which names its process and host. The system drops
the lock when the process ends, however it ends, so that the next process takes over what a killed one has left. Where
the file system does not share locks between hosts, a beat tells: the owner touches the file every `BEAT` seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

LOCK_FILE = "lock.json"
BEAT = 10.0
"""Seconds between two beats of the owner."""
SILENCE = 45.0
"""Seconds without a beat after which a process on another host counts as ended."""
LEASE = 120.0
"""Seconds for which a file server may keep the lock of a machine that has died, at most."""


class DirectoryInUse(FileExistsError):
    """Another process writes to the directory."""


@dataclasses.dataclass
class _Lock:
    """A lock that this process holds."""

    descriptor: int
    """Of the open file, which the system's lock belongs to."""
    process: int
    """Id of the process; a fork of it holds nothing."""
    count: int = 1
    """Number of runs in this process that have the directory open."""


_locks: dict[Path, _Lock] = {}
"""The locks that this process holds, by the path of the file."""
_mutex = threading.RLock()
_beating: threading.Thread | None = None


def acquire(directory: Path) -> None:
    """Makes this process the owner of a directory, which must exist. It may acquire a directory several times, and then
    must `release` it as often.

    Raises:
      DirectoryInUse: another process is the owner; the message has its id and host.
    """
    path = directory.absolute() / LOCK_FILE
    with _mutex:
        lock = _locks.get(path)
        if lock is not None and lock.process == os.getpid() and _is_open_at(lock.descriptor, path):
            lock.count += 1
            return
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _take(descriptor, path)
                # Its last owner may have removed the file after it was opened here.
                is_current = _is_open_at(descriptor, path)
            except BaseException:
                os.close(descriptor)
                raise
            if is_current:
                break
            os.close(descriptor)
        owner = {"process": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(owner) + "\n").encode(), 0)
        _locks[path] = _Lock(descriptor, os.getpid())
        _start_beating()


def release(directory: Path) -> None:
    """Gives a directory free that this process has acquired; does nothing if it has not."""
    with _mutex:
        path = directory.absolute() / LOCK_FILE
        lock = _locks.get(path)
        if lock is None or lock.process != os.getpid():
            return
        lock.count -= 1
        if lock.count:
            return
        del _locks[path]
        with contextlib.suppress(OSError):
            if _is_open_at(lock.descriptor, path):
                path.unlink()
        os.close(lock.descriptor)


@atexit.register
def release_all() -> None:
    """Gives all directories of this process free."""
    with _mutex:
        for path, lock in list(_locks.items()):
            lock.count = 1
            release(path.parent)


def _take(descriptor: int, path: Path) -> None:
    """Takes the system's lock on the open file, or raises DirectoryInUse."""
    owner = _read_owner(descriptor)
    is_elsewhere = owner.get("host", socket.gethostname()) != socket.gethostname()
    if is_elsewhere:
        _wait_for_silence(descriptor, path, owner)
    end = time.monotonic() + (LEASE if is_elsewhere else 0)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A file server keeps the lock of a machine that has died for a while.
            if time.monotonic() >= end:
                raise _in_use(path, owner) from None
            time.sleep(min(1.0, LEASE / 10))
            continue
        except OSError:  # a file system without locks
            if owner and not is_elsewhere and _is_alive(owner["process"]):
                raise _in_use(path, owner) from None
        return


def _wait_for_silence(descriptor: int, path: Path, owner: dict) -> None:
    """Waits until the owner on another host has not touched the file for `SILENCE` seconds; raises DirectoryInUse when
    it does."""
    print(
        f"note: {path} names process {owner['process']} on {owner['host']}; waiting {SILENCE:g} s to see whether it "
        "still runs",
        file=sys.stderr,
    )
    last_beat, end = os.fstat(descriptor).st_mtime_ns, time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENCE / 10))
        if os.fstat(descriptor).st_mtime_ns != last_beat:
            raise _in_use(path, owner)


def _read_owner(descriptor: int) -> dict:
    """``process`` and ``host`` of the owner; empty if the file does not name one."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return {"process": int(owner["process"]), "host": str(owner["host"])}
    except (ValueError, TypeError, KeyError):
        return {}


def _in_use(path: Path, owner: dict) -> DirectoryInUse:
    name = f"process {owner['process']} on {owner['host']}" if owner else "another process"
    return DirectoryInUse(
        f"{path.parent} is in use by {name}; wait until it has ended, or choose another directory with --run-dir"
    )


def _is_alive(process: int) -> bool:
    """Whether a process of this host runs. This process does not count: it would know of its lock."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _start_beating() -> None:
    """Starts the thread that touches the lock files of this process, unless it runs already."""
    global _beating
    if _beating is None or not _beating.is_alive():
        _beating = threading.Thread(target=_beat, name="beat of run directories", daemon=True)
        _beating.start()


def _beat() -> None:
    """Touches the lock files every `BEAT` seconds, for ever."""
    while True:
        time.sleep(BEAT)
        with _mutex:
            for lock in _locks.values():
                with contextlib.suppress(OSError):
                    os.utime(lock.descriptor)
