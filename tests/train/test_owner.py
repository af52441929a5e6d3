"""A run directory has one owner: who is refused, and what a killed process leaves behind."""

import json
import os
import subprocess
import sys

import pytest

from xmodal_jax.train import owner
from xmodal_jax.train.owner import DirectoryInUse

HOLD = """
import pathlib, sys
from xmodal_jax.train import owner
owner.acquire(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process that acquires the directory, and waits until it has."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_the_first_one_named(tmp_path, start):
    process = start()
    with pytest.raises(DirectoryInUse, match=f"in use by process {process.pid} on {os.uname().nodename}"):
        owner.acquire(tmp_path)
    process.communicate("end\n")
    assert not any(tmp_path.iterdir())
    owner.acquire(tmp_path)
    owner.release(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, start):
    process = start()
    process.kill()
    process.communicate()
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == process.pid
    owner.acquire(tmp_path)
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
    owner.release(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_process_may_open_a_directory_several_times(tmp_path):
    owner.acquire(tmp_path)
    owner.acquire(tmp_path)
    owner.release(tmp_path)
    assert (tmp_path / "lock.json").exists()
    owner.release(tmp_path)
    assert not any(tmp_path.iterdir())
    owner.release(tmp_path)  # once too often: nothing happens


def test_a_directory_that_was_removed_and_made_again_is_another_one(tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        folder.mkdir()
        owner.acquire(folder)
        (folder / "lock.json").unlink()
        folder.rmdir()
    owner.release(folder)


@pytest.mark.parametrize("beats", [True, False])
def test_without_locks_that_hosts_share_the_beat_tells(tmp_path, monkeypatch, capsys, beats):
    monkeypatch.setattr(owner, "SILENCE", 0.1)
    file = tmp_path / "lock.json"
    file.write_text(json.dumps({"process": 7, "host": "elsewhere"}))
    sleep = owner.time.sleep

    def sleep_and_beat(seconds):
        sleep(seconds)
        if beats and seconds < 1:  # not the thread that beats for this process
            os.utime(file)

    monkeypatch.setattr(owner.time, "sleep", sleep_and_beat)
    if beats:
        with pytest.raises(DirectoryInUse, match="in use by process 7 on elsewhere"):
            owner.acquire(tmp_path)
    else:
        owner.acquire(tmp_path)
        owner.release(tmp_path)
    assert "names process 7 on elsewhere" in capsys.readouterr().err


def test_without_locks_of_the_file_system_a_process_that_runs_is_the_owner(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no locks")

    monkeypatch.setattr(owner.fcntl, "flock", fail)
    host = os.uname().nodename
    (tmp_path / "lock.json").write_text(json.dumps({"process": os.getppid(), "host": host}))
    with pytest.raises(DirectoryInUse, match=f"process {os.getppid()} on"):
        owner.acquire(tmp_path)
    (tmp_path / "lock.json").write_text(json.dumps({"process": 2**22 + 1, "host": host}))  # there is none
    owner.acquire(tmp_path)
    owner.release(tmp_path)


def test_the_lock_of_a_machine_that_has_died_is_taken_over_when_the_file_server_drops_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(owner, "SILENCE", 0.05)
    monkeypatch.setattr(owner, "LEASE", 0.5)
    (tmp_path / "lock.json").write_text(json.dumps({"process": 7, "host": "elsewhere"}))
    flock, calls = owner.fcntl.flock, []

    def keep_a_while(*args):
        calls.append(1)
        if len(calls) < 3:
            raise BlockingIOError
        return flock(*args)

    monkeypatch.setattr(owner.fcntl, "flock", keep_a_while)
    owner.acquire(tmp_path)
    assert len(calls) == 3
    owner.release(tmp_path)
