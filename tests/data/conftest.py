"""The processes that one test's files start decode no other test's files: those have decoders of their own."""

import pytest

from xmodal_jax.data import decode_processes


@pytest.fixture(autouse=True)
def no_processes_of_other_tests(monkeypatch):
    processes = decode_processes.DecodeProcesses()
    monkeypatch.setattr(decode_processes, "processes", processes)
    yield
    processes.close()
