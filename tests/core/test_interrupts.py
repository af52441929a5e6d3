"""Ctrl-C before a script has begun."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from xmodal_jax.core import interrupts

ROOT = pathlib.Path(__file__).parents[2]
INTERRUPTED_IMPORT = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("lost")
raise ImportError("the import went on")
"""


@pytest.fixture
def jax_that_is_interrupted(tmp_path):
    """A folder with a module ``jax`` that gets SIGINT while it is imported, and does not let the exception through."""
    (tmp_path / "jax.py").write_text(INTERRUPTED_IMPORT)
    return tmp_path


def run(arguments, folder, before=()):
    """Python with the arguments, where the modules in the folder come first; ``before``: words before it."""
    env, words = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}, [*before, sys.executable, *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=env, cwd=folder)


@pytest.mark.parametrize("script", ["contrastive", "vae", "export", "rate"])
def test_during_the_imports_of_a_script_it_is_one_line(jax_that_is_interrupted, script):
    result = run([ROOT / "experiments" / f"{script}.py", "--help"], jax_that_is_interrupted)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_another_program_keeps_its_handler(jax_that_is_interrupted):
    result = run(["-c", "import xmodal_jax.types"], jax_that_is_interrupted)
    assert result.stdout == "lost\n" and "the import went on" in result.stderr


def test_a_script_that_ignores_the_signal_goes_on_ignoring_it(jax_that_is_interrupted):
    script = [ROOT / "experiments" / "vae.py", "--help"]
    result = run(script, jax_that_is_interrupted, before=["sh", "-c", "trap '' INT; exec \"$@\"", "sh"])
    assert result.stdout == "" and "the import went on" in result.stderr


def test_the_handler_of_a_script_gives_way_to_that_of_python(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main = sys.modules["__main__"]
        monkeypatch.setattr(main, "__file__", str(ROOT / "experiments" / "vae.py"), raising=False)
        interrupts.exit_when_interrupted()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        interrupts.raise_when_interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupts.exit_when_interrupted()
        interrupts.raise_when_interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
