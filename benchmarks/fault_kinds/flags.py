"""Mistakes on the command line of every script: one line on stderr, status 2, and no run directory left.

The modules are imported once; every mistake is tried in a fork, which runs the script as ``python SCRIPT`` does.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback

import numpy as np

from benchmarks.fault_kinds import REFUSED, Case, Hung, Kind

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = tuple(sorted(path.name for path in (ROOT / "experiments").glob("*.py")))
SECONDS = 90.0
HAVE_NO_RUN = ("export.py", "rate.py", "translate.py")
MISTAKES: dict[str, tuple[str, ...]] = {
    "unknown flag": ("--no-such-flag", "1"),
    "misspelt flag": ("--stpes", "10"),
    "word without a flag": ("junk",),
    "value missing": ("--steps",),
    "value empty": ("--steps", ""),
    "number is a word": ("--steps", "many"),
    "number not whole": ("--batch-size", "1.5"),
    "number negative": ("--batch-size", "-4"),
    "number zero": ("--batch-size", "0"),
    "steps negative": ("--steps", "-1"),
    "seed is a word": ("--seed", "first"),
    "seeds zero": ("--seeds", "0"),
    "not a number": ("--optimizer.learning-rate", "nan"),
    "infinite": ("--optimizer.learning-rate", "inf"),
    "unknown choice": ("--parallel", "magic"),
    "unknown part": ("--model", "unheard"),
    "data unknown": ("--data", "nonsense"),
    "data without a path": ("--data", "folder:"),
    "folder missing": ("--data", "folder:nowhere"),
    "arrays missing": ("--data", "npz:nowhere.npz"),
    "folder empty": ("--data", "folder:."),
    "lines missing": ("--data", "spoken:nowhere.txt"),
    "run directory is a file": ("--run-dir", "file"),
    "run directory in a file": ("--run-dir", "file/run"),
    "run directory remote": ("--run-dir", "gs://bucket/run"),
    "frames zero": ("--frames", "0"),
    "nothing to start from": ("--init-from", "nowhere"),
    "modality unknown": ("--modalities", "text", "smell"),
    "devices that do not divide": ("--parallel", "sharded", "--fsdp", "3"),
    "option out of range": ("--missing", "2"),
}
"""Words for every script. One that a script does not know is a mistake in it all the more."""


class RawError(Exception):
    """A script ended by an exception."""


def _run(script: str, words: tuple[str, ...], folder: pathlib.Path) -> None:
    """Runs a script in a fork. Its refusal is a ValueError with what it has printed.

    Raises:
      ValueError: it has refused the words in one line, with status 2, and has left no files.
      RawError: it printed a traceback, or more than one line, or ended with another status.
    """
    (folder / "file").write_text("")
    child = os.fork()
    if child == 0:
        _run_in_fork(script, words, folder)
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                raise Hung
            time.sleep(0.01)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
    code, text = os.waitstatus_to_exitcode(status), (folder / "stderr").read_text(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    left = sorted(path.name for path in folder.iterdir() if path.name not in ("file", "stderr", "stdout"))
    if code == 0:
        return
    # Bars of progress and notes may come before a mistake that shows itself late.
    if code != 2 or not lines or "Traceback" in text:
        raise RawError(f"status {code}, {len(lines)} lines: {lines[-1] if lines else ''}")
    if left and left != ["runs"] or (left and any((folder / "runs").iterdir())):
        raise RawError(f"left {', '.join(left)}: {lines[0]}")
    raise ValueError(lines[-1])


def _run_in_fork(script: str, words: tuple[str, ...], folder: pathlib.Path) -> None:
    """The child's part: never returns."""
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        sys.argv = [script, *words]
        sys.path.insert(0, str(ROOT / "experiments"))
        runpy.run_path(str(ROOT / "experiments" / script), run_name="__main__")
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """Scripts and mistakes in turn, from the number of the input; see `KIND`."""
    importlib.import_module("xmodal_jax.experiment")
    cases = [(script, mistake) for mistake in MISTAKES for script in SCRIPTS]
    # The inputs are named after their number, so that each pair is tried once before any is tried again.
    script, mistake = (
        cases[int(folder.name) % len(cases)] if folder.name.isdigit() else cases[rng.integers(len(cases))]
    )
    words = MISTAKES[mistake]
    if script not in HAVE_NO_RUN and "--steps" not in words:
        words = (*words, "--smoke")  # what is not noticed ends soon
    return Case(f"{mistake}", lambda: _run(script, words, folder), REFUSED)


KIND = Kind("flags", _draw, len(SCRIPTS) * len(MISTAKES), seconds=SECONDS + 10)
